"""The one schema: what is written is what is read, and nothing is half-written."""

import errno
import json
import os
import random
import re
import shutil
import string
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from recipes.cli import run
from recipes.data import schema
from recipes.data.labels import load_labeler, with_labels
from recipes.data.schema import FEATURES, LATER, read_build, read_dataset, read_split, write_dataset
from recipes.files import InputError


def row(name: str = "s1", **changed) -> dict:
    return {"study_id": name, "subject_id": name, "images": [], "views": [], "report": "No edema."} | changed


def test_written_and_read(phantom):
    dataset = read_dataset(str(phantom))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 12, "validation": 4, "test": 6}
    assert dataset["train"].features == FEATURES
    assert dataset["train"][0]["images"][0].width == 64
    assert read_build(phantom)["rows"] == {"train": 12, "validation": 4, "test": 6}


def test_subjects_are_in_one_split_only(phantom):
    dataset = read_dataset(str(phantom))
    subjects = [set(rows["subject_id"]) for rows in dataset.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))


def test_a_disk_too_small_for_the_copy_is_known_before_it_is_written(tmp_path, monkeypatch):
    """Of 400 kB that no coding makes smaller; the Arrow file has the size that was asked for, but for its head."""
    folder, cache = tmp_path / "d", tmp_path / "larger/disk"
    text = random.Random(0).choices(string.printable, k=400_000)
    write_dataset({"train": lambda: iter([row(findings="".join(text))])}, folder, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=399_000))
    for named in (folder / ".cache", cache):
        with pytest.raises(
            InputError, match=rf"copy in {named}, which takes 0\.00 GB, and 0\.00 GB are free .* HF_DATASETS"
        ):
            read_dataset(str(folder))
        assert not list(tmp_path.rglob("*.arrow"))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=402_000))
    read_dataset(str(folder))
    [file] = cache.rglob("*.arrow")
    assert 400_000 < file.stat().st_size < 410_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert len(read_dataset(str(folder))["train"]) == 1  # it is there


def test_a_disk_that_is_full_in_the_middle(tmp_path, monkeypatch):
    def fill(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_dataset({"train": lambda: iter([row(), row()])}, tmp_path / "d", {})
    monkeypatch.setattr(ArrowWriter, "write_table", fill)
    with pytest.raises(SystemExit, match=r"^error: cannot write .*No space left on device"):
        run(lambda: read_dataset(str(tmp_path / "d")))
    monkeypatch.undo()
    assert len(read_dataset(str(tmp_path / "d"))["train"]) == 2  # nothing half-written is taken for the copy


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
    with pytest.raises(expected, match=rf"\A{re.escape(str(error))}\Z"):
        write_dataset({"train": rows}, out, {})
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


def test_read_names_a_column_that_a_later_split_lacks(tmp_path):
    for split, columns in (("train", {"report": ["Clear."]}), ("test", {"report": ["Clear."], "images": [[]]})):
        Dataset.from_dict(columns | {"study_id": ["s"]}).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match="has no column images"):
        read_dataset(str(tmp_path))
    with pytest.raises(InputError, match="has other columns than the others"):
        read_dataset(str(tmp_path), ("report",))
    Dataset.from_dict({"study_id": ["s"], "images": [[]]}).to_parquet(tmp_path / "test.parquet")
    Dataset.from_dict({"study_id": ["s"], "images": [[]], "report": ["Clear."]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"split test of .* has no column report"):
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


SILENT = (None, "", " \n\t", ". - _", "___")  # what MIMIC-CXR writes for a name is no report either


def with_silence(folder: Path, reports: list, study_ids: bool = True) -> str:
    folder.mkdir()
    columns = {"report": reports, "images": [[] for _ in reports]}
    columns |= {"study_id": [f"s{i}" for i in range(len(reports))]} if study_ids else {}
    features = Features({name: FEATURES[name] for name in columns})
    for split in ("train", "test"):
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("report", SILENT, ids=repr)
def test_rows_without_a_report_are_left_out_and_counted(tmp_path, capsys, report):
    data = with_silence(tmp_path / "x", ["Clear.", report, "XXXX.", "?", "3"])
    sentence = f"2 of 5 rows of split train of {data} have no report and are left out, study 's1' first\n"
    rows = read_split(data, "train")
    assert rows["study_id"] == ["s0", "s2", "s4"] and rows["report"] == ["Clear.", "XXXX.", "3"]
    assert capsys.readouterr().out == sentence  # of the split that is read, and once
    splits = read_dataset(data)
    assert [splits[name]["study_id"] for name in ("train", "test")] == [["s0", "s2", "s4"]] * 2
    assert capsys.readouterr().out == sentence + sentence.replace("train", "test")
    assert len(read_split(data, "train", bare=True)) == len(read_dataset(data, bare=True)["train"]) == 5
    assert len(read_split(data, "train", ("images",))) == 5  # who asks for no reports has them all
    assert not capsys.readouterr().out


def test_a_row_without_a_study_is_named_by_its_place(tmp_path, capsys):
    read_split(with_silence(tmp_path / "x", ["Clear.", "Edema.", None, None], study_ids=False), "test")
    assert "2 of 4 rows of split test" in (sentence := capsys.readouterr().out) and "row 2 first" in sentence


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), (None, 1)])
def test_one_of_several_processes_says_it(tmp_path, monkeypatch, capsys, rank, lines):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert len(read_split(with_silence(tmp_path / "x", ["Clear.", None]), "train")) == 1
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_split_of_no_reports_at_all(tmp_path):
    data = with_silence(tmp_path / "x", [None, " "])
    for read in (lambda: read_split(data, "train"), lambda: read_dataset(data)):
        with pytest.raises(InputError, match=rf"^split train of {data} has no reports: none of its 2 rows"):
            read()


def test_who_reads_rows_without_a_report():
    """generate.py and the app write for them, evaluate.py counts them by its own rule; all others leave them out."""
    recipes = Path(schema.__file__).parents[1]
    readers = {file.name for file in recipes.rglob("*.py") if "bare=True" in file.read_text()}
    assert readers == {"schema.py", "app.py", "generate.py", "references.py", "labels.py", "inputs.py"}


def test_a_data_set_from_before_the_later_columns_is_read(tmp_path):
    """MIMIC-RG4's pipeline asks for all columns but those that a data set of an earlier version cannot have."""
    from pyarrow import parquet

    from recipes.rg4.pipeline import read_rows

    row = {"study_id": "1", "report": "Clear.", "scenario": "sn", "images": [{"bytes": b"x", "path": None}]}
    write_dataset({"train": lambda: iter([row])}, tmp_path / "data", {})
    file = tmp_path / "data" / "train.parquet"
    parquet.write_table(parquet.read_table(file).drop_columns(list(LATER)), file)
    [rows] = read_rows(str(tmp_path / "data")).values()
    assert rows["report"] == ["Clear."] and rows[0]["images"][0]["bytes"] == b"x" and "boxes" not in rows.column_names
