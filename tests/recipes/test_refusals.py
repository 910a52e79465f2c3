"""What is refused in a sentence before any work: outputs, YAMLs, processes, trackers, columns, images, CSVs."""

import io
import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from recipes import grpo_mrgr1, ppo_lmrrg, sft_llmrg4, sft_lmrrg, sft_mrgr1
from recipes.cli import check_outputs, parse
from recipes.data.model_files import check_folder
from recipes.data.samples import to_samples
from recipes.data.schema import kind_of, read_build, read_dataset, read_split, write_dataset
from recipes.files import InputError, check_free, check_writable, csv_records
from recipes.trainers.config import SFTRecipeConfig


@dataclass
class Arguments:
    """Arguments of a script that writes a folder."""

    marker: ClassVar[str] = "config.json"

    out: str = "out"
    seed: int = 0


def parsed(monkeypatch, *words, **settings) -> Arguments:
    monkeypatch.setattr(sys, "argv", ["recipes/script.py", *map(str, words)])
    return parse(Arguments, **settings)[0]


################
# Outputs
################


@pytest.mark.parametrize(
    ("path", "is_file", "sentence"),
    [
        ("file", False, "--out .*file is a file: name a folder"),
        ("file/deep/er", False, "--out .*file/deep/er is below .*file, which is no folder"),
        ("folder", True, "--out .*folder is a folder: name a file"),
        ("/proc/new/run", False, r"--out /proc/new/run cannot be written: nothing can be made in /proc \(Permission"),
        ("/sys/run", False, "--out /sys/run cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written(path, is_file, sentence, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=sentence):
        check_writable(tmp_path / path, "out", is_file)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(("path", "is_file"), [("folder", False), ("new/deep", False), ("file", True), ("n/x", True)])
def test_an_output_that_can_be_written_is_not_touched(path, is_file, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    check_writable(tmp_path / path, "out", is_file)
    assert sorted(place.name for place in tmp_path.rglob("*")) == ["file", "folder"]


def test_an_output_gives_way_only_where_it_is_an_earlier_result(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is no earlier result of this command"):
        check_outputs(Arguments(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    check_outputs(Arguments(str(tmp_path)))
    check_free(tmp_path / "absent")


def test_outputs_are_looked_at_when_arguments_are_parsed(monkeypatch):
    with pytest.raises(InputError, match="--out /proc/x cannot be written"):
        parsed(monkeypatch, "--out", "/proc/x")


################
# YAML and processes
################


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"seed: 1\nseed: 2\n", r"x\.yaml has seed twice: leave one of them"),
        (b"env: {A: 1, A: 2}\n", r"x\.yaml has A twice"),
        ("# für\nseed: 1\n".encode("latin-1"), r"x\.yaml is no UTF-8 text"),
        (b"seed: 1\n\tother: 2\n", r"x\.yaml is no YAML in line 2: "),
        (b"env: {A: {B: 1}}\n", "env must be a mapping of variables to values, and A has {'B': 1}"),
        (b"env: {A: null}\n", "env must be a mapping of variables to values, and A has None"),
    ],
)
def test_a_yaml_that_says_nothing(content, sentence, tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as error:
        parsed(monkeypatch, "--config", tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_a_misspelt_argument_is_named_with_the_likely_one(monkeypatch):
    with pytest.raises(InputError, match=r"^there is no argument --sed: did you mean --seed\? --help lists"):
        parsed(monkeypatch, "--sed", "3")
    with pytest.raises(InputError, match=r"^there is no argument 3: --help lists"):
        parsed(monkeypatch, "3")


def test_a_yaml_with_a_byte_order_mark(tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_bytes("seed: 7\n".encode("utf-8-sig"))
    assert parsed(monkeypatch, "--config", tmp_path / "x.yaml").seed == 7


def test_a_script_for_one_process_is_not_run_by_two(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"script\.py is for one process"):
        parsed(monkeypatch)
    assert parsed(monkeypatch, several_processes=True).seed == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parsed(monkeypatch).seed == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("script", [grpo_mrgr1, sft_mrgr1, sft_llmrg4, sft_lmrrg, ppo_lmrrg])
def test_without_a_gpu_a_script_names_its_own_config(script, monkeypatch, tmp_path):
    """What it names is there, and the same script takes it on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(InputError, match="needs a GPU and there is none") as error:
        script.main()
    name = str(error.value).partition("recipes/configs/")[2].partition(".yaml")[0]
    config = os.path.join(os.path.dirname(script.__file__), "configs", f"{name}.yaml")
    monkeypatch.setattr(sys, "argv", ["script.py", "--config", config])
    with pytest.raises(InputError, match=r"no (data set|model)"):  # past its settings
        script.main()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wandbb", "report_to must be none, or some of .*wandb.*, not wandbb"),
        ("neptune", "report_to neptune: its package is not installed: pip install neptune, or set report_to: none"),
    ],
)
def test_a_tracker_that_is_not_there(name, sentence, monkeypatch):
    monkeypatch.setattr("recipes.trainers.config.get_available_reporting_integrations", lambda: ["wandb"])
    SFTRecipeConfig("out", use_cpu=True, bf16=False, report_to="wandb")
    with pytest.raises(InputError, match=sentence):
        SFTRecipeConfig("out", use_cpu=True, bf16=False, report_to=name)


################
# Data sets
################


def png(width: int = 64, height: int = 64) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a data set of two studies, the second one changed, and returns its folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(**changes) -> str:
        row = {"study_id": "a", "report": "Clear.", "labels": [0] * 13 + [1], "views": ["PA"]}
        row["images"] = [{"bytes": png(), "path": None}]
        write_dataset({"train": lambda: iter([row, row | {"study_id": "b"} | changes])}, tmp_path / "data", {})
        return str(tmp_path / "data")

    return write


@pytest.mark.parametrize("labels", [None, [7] * 14, [-1] + [0] * 13])
def test_labels_that_are_no_states(labels, write):
    with pytest.raises(InputError, match="the labels of study b must be 14 of CheXpert's states"):
        read_split(write(labels=labels), "train", ("report", "labels"))
    assert len(read_split(write(labels=labels, report=None), "train", ("report", "labels"))) == 1  # of no report
    assert len(read_split(write(labels=labels), "train", ("report",))) == 2  # not asked for


def test_a_study_without_an_id(write):
    with pytest.raises(InputError, match="row 1 has no study_id"):
        read_split(write(study_id=None), "train", ("report", "study_id"))


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("report", [1, 2], "the column report holds whole numbers, and text must be there"),
        ("report", [["Clear."], ["Clear."]], "the column report holds lists of text, and text must be there"),
        ("images", ["a.png", "b.png"], "the column images holds text, and lists of encoded images must be there"),
        ("labels", [[0.0] * 14] * 2, "the column labels holds lists of numbers, and lists of whole numbers must be"),
        ("views", [3, 4], "the column views holds whole numbers, and lists of text must be there"),
    ],
)
def test_a_column_of_another_kind(column, values, sentence, write):
    folder = write()
    table = parquet.read_table(f"{folder}/train.parquet")
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    parquet.write_table(table.replace_schema_metadata(None), f"{folder}/train.parquet")
    with pytest.raises(InputError, match=f"split train of .*data: {sentence}"):
        read_dataset(folder, (column,))


def test_kinds_that_can_stand_for_each_other():
    assert kind_of(pa.large_string()) == kind_of(pa.dictionary(pa.int8(), pa.string())) == "text"
    assert kind_of(pa.large_list(pa.int64())) == kind_of(pa.list_(pa.int8(), 14)) == "lists of whole numbers"
    assert kind_of(pa.null()) == kind_of(pa.list_(pa.null())) == "nothing"
    assert kind_of(pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))) == "lists of encoded images"


@pytest.mark.parametrize("content", [b'{"labeler": "lex', b"", b"null", b'["x"]', b'{"labeler": 3}', b'{"a": "\xfc"}'])
def test_a_damaged_note(content, write, tmp_path):
    folder = write()
    (tmp_path / "data/build.json").write_bytes(content)
    for read in (read_build, read_dataset):
        with pytest.raises(InputError, match=r"data/build\.json is damaged, since it .*: build"):
            read(folder)


@pytest.mark.parametrize("check", [False, True])
def test_a_strip_is_no_x_ray(check, write):
    rows = read_split(write(images=[{"bytes": png(8, 3000), "path": None}]), "train")
    with pytest.raises(InputError, match="image 1 of study b has 8 x 3000 pixels, a strip that is no X-ray"):
        to_samples(rows, "Write.", check=check)
    assert len(to_samples(read_split(write(images=[{"bytes": png(64, 640), "path": None}]), "train"), "Write.")) == 2


def test_an_image_damaged_in_its_middle_is_found_before_where_that_is_asked_for(write):
    """Its header and its end are whole, so that only its pixels show it."""
    content = bytearray(png())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    rows = read_split(write(images=[{"bytes": bytes(content), "path": None}]), "train")
    sentence = "image 1 of study b is truncated or damaged"
    with pytest.raises(InputError, match=sentence):
        to_samples(rows, "Write.", check=True)
    samples = to_samples(rows, "Write.")
    assert samples[0]["images"][0].size == (64, 64)
    with pytest.raises(InputError, match=sentence):
        samples[1]


################
# Models' folders and CSVs
################


def test_what_is_no_folder_of_a_model(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("empty", "listed", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "listed/config.json").write_text("[]")
    (tmp_path / "other/notes.txt").write_text("x")
    sentences = {
        "file": "file is a file, and a model is a folder",
        "empty": "empty is empty",
        "listed": r"listed has a damaged config\.json",
        "other": r"other is no model's folder \(no config\.json or adapter_config\.json\)",
        "absent/sft": "there is no model .*absent/sft: no such folder, and no name that the Hub could have",
    }
    for name, sentence in sentences.items():
        with pytest.raises(InputError, match=sentence):
            check_folder(str(tmp_path / name))
    for name in ("outputs/one/two", "a b/c"):
        with pytest.raises(InputError, match="there is no model"):
            check_folder(name)
    for name in ("bert-base-uncased", "Qwen/Qwen2.5-VL-3B-Instruct", "lmsys/vicuna-7b-v1.5"):
        check_folder(name)  # may be on the Hub


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b\nü,1\n".encode("latin-1"), r"--csv .*x\.csv is no CSV in UTF-8"),
        ("a,b\nü,1\n".encode("utf-16"), r"--csv .*x\.csv is no CSV in UTF-8"),
        (b"a,b\n1,2\n3,4,5\n", r"x\.csv, record 3: it has more fields than the header"),
        (b"a,b\n1,2\n3\n", r"x\.csv, record 3: it has fewer fields than the header"),
    ],
)
def test_a_csv_that_cannot_be_read(content, sentence, tmp_path):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        csv_records(str(tmp_path / "x.csv"), "--csv")


def test_a_csv_with_a_field_of_a_megabyte(tmp_path):
    (tmp_path / "x.csv").write_bytes(('a,b\nü,"' + "word " * 300_000 + '"\n').encode("utf-8-sig"))
    [row] = csv_records(str(tmp_path / "x.csv"), "--csv")
    assert row["a"] == "ü" and len(row["b"]) == 1_500_000
    with pytest.raises(InputError, match=r"absent\.csv cannot be read: No such file"):
        csv_records(str(tmp_path / "absent.csv"), "--csv")
