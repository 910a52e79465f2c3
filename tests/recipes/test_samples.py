"""From rows to TRL's samples."""

import io
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BitImageProcessor, Qwen2VLImageProcessor, SiglipImageProcessor

from recipes.cli import run
from recipes.data import samples as samples_module
from recipes.data.labels import read_labelled
from recipes.data.samples import fill_prompt, report_enlarged, to_samples, write_reasoning
from recipes.data.schema import FEATURES, read_dataset, read_split, write_dataset
from recipes.files import InputError
from rewards.completions import parse_completion
from rewards.labels import FINDINGS, CheXpertState


def labels(**states: CheXpertState) -> list[int]:
    named = {name.replace("_", " "): state for name, state in states.items()}
    return [int(named.get(name, CheXpertState.BLANK)) for name in FINDINGS] + [0]


@pytest.fixture(scope="module")
def rows():
    """Study a has two images (black, white), study b one (grey)."""
    shades = {"a": (0, 255), "b": (128,)}
    states = {"a": labels(Edema=CheXpertState.POSITIVE), "b": labels()}
    return Dataset.from_list(
        [
            dict.fromkeys(FEATURES)
            | {
                "study_id": name,
                "images": [Image.new("L", (8, 8), shade) for shade in values],
                "report": f"Report {name}.",
                "labels": states[name],
            }
            for name, values in shades.items()
        ],
        features=FEATURES,
    )


@pytest.mark.parametrize(
    ("findings", "impression", "report", "sections"),
    [
        ("No change. Clear.", "Clear.", "No change. Clear.", "findings"),  # the impression is a part of the findings
        ("Clear.", "All is Clear. So far.", "All is Clear. So far.", "impression"),
        ("Clear.", "Normal.", "Clear. Normal.", "findings and impression"),
        (None, "Normal.", "Normal.", "impression"),
        ("Clear.", None, "Clear.", "findings"),
        ("Clear.", "Normal.", "Something else.", "findings"),  # a report that no section tells of
        (None, None, "A whole report.", "findings"),
        (None, None, None, "findings"),
    ],
)
def test_sections_in_a_prompt(findings, impression, report, sections):
    study = {"findings": findings, "impression": impression, "report": report}
    assert fill_prompt("Write the {sections}.", study) == f"Write the {sections}."


@pytest.mark.parametrize(
    ("views", "shades"),  # of the images, 0, 1, 2 ...
    [
        (["PA"], [0]),
        (["PA", "LATERAL"], [0, 1]),
        (["PA", "AP"], [0]),  # as build_mimic_rg4.py takes them: a second frontal view is left out
        (["PA", "AP", "LATERAL", "LL"], [0, 2]),
        (["AP", ""], [0]),
        (["PA", "XTABLE LATERAL", "LL"], [0, 1]),
        (["LATERAL", "PA"], None),
        (["LATERAL"], None),
    ],
)
def test_llmrg4_takes_the_first_frontal_and_the_first_lateral_view(views, shades):
    images = [Image.new("L", (8, 8), shade) for shade in range(len(views))]
    study = dict.fromkeys(FEATURES) | {"study_id": "a", "images": images, "views": views, "report": "Clear."}
    rows = Dataset.from_list([study], features=FEATURES)
    if shades is None:
        with pytest.raises(InputError, match="study a: a study with the views LATERAL"):
            to_samples(rows, "Write.", "frontal+lateral")
    else:
        samples = to_samples(rows, "Write.", "frontal+lateral")
        assert [image.getpixel((0, 0))[0] for image in samples[0]["images"]] == shades


RAD_DINO = {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}}


@pytest.mark.parametrize(
    ("images", "sizes", "enlarged"),
    [
        (BitImageProcessor(**RAD_DINO), [(431, 518), (518, 622), (518, 518), (2544, 3056)], 1),
        (BitImageProcessor(**RAD_DINO), [(517, 700), (700, 517), (518, 700)], 2),
        (BitImageProcessor(**RAD_DINO), [(518, 622)], 0),
        (BitImageProcessor(**RAD_DINO, do_resize=False), [(9, 9)], 0),
        (SiglipImageProcessor(size={"height": 60, "width": 50}), [(50, 59), (49, 60), (50, 60), (90, 90)], 2),
        (Qwen2VLImageProcessor(), [(9, 9)], 0),  # its shortest_edge is an area: samples are in its range already
    ],
)
def test_images_that_the_model_would_enlarge_are_counted(images, sizes, enlarged, capsys):
    studies = [
        dict.fromkeys(FEATURES) | {"study_id": str(i), "images": [Image.new("L", size)], "report": "Clear."}
        for i, size in enumerate(sizes)
    ]
    samples = to_samples(Dataset.from_list(studies, features=FEATURES), "Write.")
    assert report_enlarged(samples, SimpleNamespace(image_processor=images)) == enlarged
    printed = capsys.readouterr().out
    assert printed.startswith(f"{enlarged} of {len(sizes)} images looked at are enlarged") if enlarged else not printed


def test_of_many_samples_some_are_looked_at(capsys):
    study = dict.fromkeys(FEATURES) | {"images": [Image.new("L", (8, 8))] * 2, "report": "Clear."}
    rows = Dataset.from_list([study | {"study_id": str(i)} for i in range(11)], features=FEATURES)
    processor = SimpleNamespace(image_processor=BitImageProcessor(**RAD_DINO))
    assert report_enlarged(to_samples(rows, "Write.", "all"), processor, most=3) == 6
    assert "the first from 8 x 8 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("views", "studies", "shades"),
    [
        ("each", ["a", "a", "b"], [[0], [255], [128]]),  # every image a sample with the study's report
        ("frontal", ["a", "b"], [[0], [128]]),  # the first image
        ("all", ["a", "b"], [[0, 255], [128]]),
    ],
)
def test_views(rows, views, studies, shades):
    samples = to_samples(rows, " Write. ", views, keep=("study_id", "report", "labels"))
    assert samples["study_id"][:] == studies
    assert [[image.getpixel((0, 0))[0] for image in images] for images in samples["images"]] == shades
    assert samples["report"][:] == [f"Report {study}." for study in studies]
    assert samples[0]["prompt"] == [{"role": "user", "content": "Write."}]
    assert set(samples.column_names) == {"prompt", "images", "study_id", "report", "labels"}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "Report a."),
        ("reasoning", "<think>Present: Edema.</think>\n<report>Report a.</report>"),
    ],
)
def test_completion(rows, completion, text):
    sample = to_samples(rows, "Write.", "frontal", completion)[0]
    assert sample["completion"] == [{"role": "assistant", "content": text}]


def test_reasoning_target_has_a_perfect_format(rows):
    for sample in to_samples(rows, "Write.", "all", "reasoning"):
        assert parse_completion(sample["completion"]).format_score == 1.0


@pytest.mark.parametrize(
    ("states", "text"),
    [
        (labels(), "No abnormal finding."),  # nothing mentioned
        (labels(Edema=CheXpertState.NEGATIVE), "No abnormal finding."),  # a denied finding is none
        (labels(Fracture=1, Edema=1), "Present: Edema, Fracture."),  # in CheXpert's order
        (labels(Edema=3), "Possible: Edema."),  # uncertain
        (labels(Edema=3, Pneumonia=1), "Present: Pneumonia. Possible: Edema."),  # the certain ones first
        ([0] * 13 + [1], "No abnormal finding."),  # No Finding is no finding
    ],
)
def test_reasoning(states, text):
    assert write_reasoning(states) == text


def test_unknown_views(rows):
    with pytest.raises(InputError, match="each, frontal, all"):
        to_samples(rows, "Write.", "both")


def test_study_without_image(rows):
    bare = Dataset.from_list([rows[1] | {"images": []}], features=FEATURES)
    with pytest.raises(InputError, match="study b has no image"):
        to_samples(bare, "Write.")


def test_phantom_studies_have_both_views(phantom):
    samples = to_samples(read_dataset(str(phantom))["test"], "Write.")
    assert len(samples) == 2 * 6


################
# One copy of the images
################

STUDIES = 24


def noise(number: int) -> bytes:
    """A PNG of 120 x 110 pixels and 13 kB, which compresses no further; its first pixel is `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (110, 120), np.uint8)
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def number_of(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def contents(samples) -> list[tuple[str, int]]:
    return [(row["study_id"], number_of(image)) for row in samples for image in row["images"]]


def build(folder: Path, bad: bytes | None = None) -> Path:
    """Studies with two images each, number 2 i and 2 i + 1; every fifth has no report. `bad`: the last image."""
    studies = [
        {
            "study_id": f"s{i}",
            "images": [{"bytes": noise(2 * i + place), "path": None} for place in (0, 1)],
            "report": None if i % 5 == 2 else f"Report {i}.",
            "scenario": "sn" if i % 2 else "mn",
            "labels": [0] * 14,
        }
        for i in range(STUDIES)
    ]
    if bad is not None:
        studies[-1]["images"][1] = {"bytes": bad, "path": None}
    write_dataset({"train": lambda: iter(studies)}, folder, {"labeler": "another"})
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "data")


REPORTED = [i for i in range(STUDIES) if i % 5 != 2]


class Labeler:
    """Another one than the data set was built with, so that its labels take the place of those there."""

    name = "test"

    def __call__(self, texts):
        return np.ones((len(texts), 14), int)


def test_the_images_are_written_once(tmp_path):
    """Whatever is done with the rows: rows without a report left out, new labels, a choice of rows, another prompt."""
    folder = build(tmp_path / "data")
    size = sum(file.stat().st_size for file in folder.glob("*.parquet"))
    for prompt in ("Write.", "Write the report."):
        rows = read_labelled(str(folder), "train", Labeler())
        to_samples(rows, prompt, "all", completion="reasoning", keep=("labels",))
        rows = read_split(str(folder), "train")
        chosen = rows.select([i for i, scenario in enumerate(rows["scenario"]) if scenario == "sn"])
        to_samples(concatenate_datasets([chosen, rows]), prompt, "frontal")
    files = list(folder.rglob("*.arrow"))
    assert len(files) > 4  # one of images, others of texts
    assert sum(file.stat().st_size for file in files) <= 1.1 * size + 10_000 * len(files)  # a small file's head
    assert sorted(file.stat().st_size for file in files)[-2] < 0.02 * size


def test_what_was_looked_at_once_is_known(built, monkeypatch):
    looks = []
    monkeypatch.setattr(samples_module, "check_image", lambda *image: looks.append(image) or (120, 110))
    for prompt, number in (("First.", 2 * len(REPORTED)), ("Second.", 0), ("First.", 0)):
        looks.clear()
        to_samples(read_split(str(built), "train"), prompt)
        assert len(looks) == number


@pytest.mark.parametrize("views", ["each", "frontal", "all"])
@pytest.mark.parametrize("limit", [1, 5, 6, 1000])
def test_a_limit_takes_the_first_samples(views, limit, built, monkeypatch):
    rows = read_split(str(built), "train")
    whole = to_samples(rows, "Write.", views, keep=("study_id",))
    looks = []
    monkeypatch.setattr(samples_module, "check_image", lambda *image: looks.append(image) or (120, 110))
    some = to_samples(rows, "Write.", views, keep=("study_id",), limit=limit)
    assert some["study_id"] == whole["study_id"][:limit] and len(some) == min(limit, len(whole))
    assert len(looks) <= 2 * limit  # of what is left out no image is opened


def test_a_sample_keeps_its_images(built):
    """Through what trainers, recipes and data loaders do with a data set."""
    rows = read_split(str(built), "train")
    rows = concatenate_datasets([rows, rows.select(range(3))])
    samples = to_samples(rows, "Write.", "each", keep=("study_id",))
    expected = [(f"s{i}", 2 * i + place) for i in [*REPORTED, *REPORTED[:3]] for place in (0, 1)]

    assert contents(samples) == expected
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    assert contents(samples.select(order)) == [expected[i] for i in order]
    assert sorted(contents(samples.shuffle(seed=1))) == sorted(expected)
    assert contents(samples.select(range(3, 9)).remove_columns("prompt")) == expected[3:9]
    odd = samples.filter(lambda study: int(study[1:]) % 2, input_columns="study_id")
    assert contents(odd) == [pair for pair in expected if int(pair[0][1:]) % 2]
    assert contents(pickle.loads(pickle.dumps(samples.select(order)))) == [expected[i] for i in order]
    loader = DataLoader(samples, 4, num_workers=2, collate_fn=contents)
    assert [pair for batch in loader for pair in batch] == expected


def appears(file: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return file.exists()


def look_in_one_of_two(folder: Path) -> None:
    """Notes how many images this process has looked at, how many files it has begun, and what its samples hold.

    The first process waits at its first image until the second one asks for samples too, and gives that one 3 seconds
    to look at an image itself, which it would do if it did not wait for the first.
    """
    rank, looks, files = PartialState(cpu=True).process_index, [], []
    check, begin = samples_module.check_image, ArrowWriter.__init__

    def look(*image):
        looks.append(image)
        (folder / f"{rank}.looks").touch()
        if rank == 0 and len(looks) == 1:
            assert appears(folder / "1.asks", 120)
            appears(folder / "1.looks", 3)
        return check(*image)

    def note_file(writer, *args, **kwargs):
        files.extend(filter(None, [kwargs.get("path")]))  # a table in memory has none
        begin(writer, *args, **kwargs)

    samples_module.check_image, ArrowWriter.__init__ = look, note_file
    rows = read_labelled(str(folder), "train", Labeler())
    (folder / f"{rank}.asks").touch()
    samples = to_samples(rows, "Write.", "each")
    numbers = [number_of(row["images"][0]) for row in samples]
    note = {"looks": len(looks), "files": files, "numbers": numbers}
    (folder / f"{rank}.json").write_text(json.dumps(note))


def test_of_two_processes_one_makes_the_copy(tmp_path, torchrun):
    folder = build(tmp_path / "data")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, *torchrun(__file__, folder)], env=environment, check=True, timeout=300)
    notes = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [note["looks"] for note in notes] == [2 * len(REPORTED), 0]
    assert notes[0]["files"] and not notes[1]["files"]
    assert notes[0]["numbers"] == notes[1]["numbers"] == [2 * i + place for i in REPORTED for place in (0, 1)]
    files = sorted(file.name for file in folder.rglob("*.arrow"))
    to_samples(read_labelled(str(folder), "train", Labeler()), "Write.", "each")  # of one process
    assert files == sorted(file.name for file in folder.rglob("*.arrow"))


def test_an_image_that_a_worker_cannot_read(tmp_path):
    """The one sentence that ends a script is that of a process without workers."""
    content = bytearray(noise(0))
    content[4000:4060] = bytes(60)  # in the middle: its end is there
    folder = build(tmp_path / "data", bytes(content))
    samples = to_samples(read_split(str(folder), "train"), "Write.", "all")
    endings = []
    for workers in (0, 2):
        with pytest.raises(SystemExit, match=r"^error: image 2 of study s23 is truncated or damaged") as ended:
            run(lambda workers=workers: list(DataLoader(samples, 8, num_workers=workers, collate_fn=len)))
        endings.append(ended.value.code)
    assert endings[0] == endings[1] and "\n" not in endings[0]


if __name__ == "__main__":
    look_in_one_of_two(Path(sys.argv[1]))
