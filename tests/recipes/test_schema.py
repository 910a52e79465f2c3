"""The one schema: what is written is what is read, and nothing is half-written."""

import errno
import json
from pathlib import Path

import pytest
from datasets import Dataset

from recipes.cli import InputError
from recipes.data.references import load_labeler, with_labels
from recipes.data.schema import FEATURES, read_build, read_dataset, write_dataset


def row(name: str = "s1", **changed) -> dict:
    return {"study_id": name, "subject_id": name, "images": [], "views": [], "report": "No edema."} | changed


def test_written_and_read(phantom):
    dataset = read_dataset(str(phantom))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 12, "validation": 4, "test": 6}
    assert dataset["train"].features == FEATURES
    assert dataset["train"][0]["images"][0].size == (64, 64)
    assert read_build(phantom)["rows"] == {"train": 12, "validation": 4, "test": 6}


def test_subjects_are_in_one_split_only(phantom):
    dataset = read_dataset(str(phantom))
    subjects = [set(rows["subject_id"]) for rows in dataset.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))


def test_missing_columns_become_null(tmp_path):
    write_dataset({"train": lambda: iter([row()])}, tmp_path / "d", {})
    found = read_dataset(str(tmp_path / "d"))["train"][0]
    assert found["labels"] is None
    assert found["prior_report"] is None
    assert sorted(path.name for path in (tmp_path / "d").iterdir() if path.name[0] != ".") == [
        "build.json",
        "train.parquet",
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("row 2 is bad"), InputError),  # a builder's refusal arrives as it was
        (OSError(errno.ENOSPC, "No space left on device"), OSError),  # so does a full disk
    ],
)
def test_a_failed_build_leaves_the_earlier_one(tmp_path, error, expected):
    def rows():
        yield row()
        raise error

    out = tmp_path / "d"
    write_dataset({"train": lambda: iter([row("before")])}, out, {})
    with pytest.raises(expected) as caught:
        write_dataset({"train": rows}, out, {})
    assert str(caught.value) == str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert read_dataset(str(out))["train"]["study_id"][:] == ["before"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("./absent", "there is no data set at ./absent"),
        ("absent", "there is no data set at absent"),  # no Hub id either
        ("a/b/c", "there is no data set at a/b/c"),
        ("nobody/nothing", "nobody/nothing is no local folder"),  # looks like a Hub id; offline here
        ("empty", "empty holds no train.parquet"),
    ],
)
def test_read_names_what_is_missing(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        read_dataset(path)


def test_read_names_a_missing_column(tmp_path):
    Dataset.from_dict({"images": [[]], "study_id": ["s"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"split train of .* has no column report"):
        read_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",  # cut off at once
        b"PAR1 and then nothing",  # cut off later
    ],
)
def test_read_names_a_broken_file(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(InputError, match="train.parquet|" + tmp_path.name):
        read_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        ({"labeler": "lexical"}, True),  # labelled by this labeler when it was built
        ({"labeler": "chexbert"}, False),  # a reward must not compare two labelers
        ({}, False),  # nobody knows by which
    ],
)
def test_reference_labels_come_from_the_runs_labeler(tmp_path, build, kept):
    stored = [0] * 13 + [1]
    (tmp_path / "build.json").write_text(json.dumps(build))
    rows = Dataset.from_list([{"report": "Cardiomegaly.", "labels": stored}])
    labels = with_labels(rows, str(tmp_path), load_labeler("lexical"))["labels"][0]
    assert (labels == stored) is kept
    assert kept or labels[1] == 1  # Cardiomegaly, positive


@pytest.mark.parametrize(
    ("name", "sentence"), [("chexbert:absent", "no CheXbert could be loaded from absent"), ("nlp", "no labeler 'nlp'")]
)
def test_unknown_labeler(name, sentence):
    with pytest.raises(InputError, match=sentence):
        load_labeler(name)
