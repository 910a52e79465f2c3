"""From rows to TRL's samples."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from PIL import Image
from transformers import BitImageProcessor, Qwen2VLImageProcessor, SiglipImageProcessor

from recipes.cli import InputError
from recipes.data.samples import fill_prompt, report_enlarged, to_samples, write_reasoning
from recipes.data.schema import FEATURES, read_dataset
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
        ("each", ["a", "a", "b"], [[0], [255], [128]]),  # MR-027: every image a sample with the study's report
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
