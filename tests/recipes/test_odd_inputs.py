"""Odd inputs as people have reported them: each file of odd_inputs has its right value here."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from recipes.data.images import load_image
from recipes.data.samples import check_text, to_samples
from recipes.data.schema import read_split
from recipes.files import InputError

ODD = Path(os.environ.get("RRG_DATA", "../shared/data")) / "odd_inputs"
needs_files = pytest.mark.skipif(not ODD.is_dir(), reason=f"needs odd_inputs below RRG_DATA ({ODD} is absent)")


@pytest.fixture
def read(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return lambda name, split="train": read_split(str(ODD / name), split)


@needs_files
@pytest.mark.parametrize("name", ["d_pad", "r_img"])
def test_a_token_in_a_report_is_refused_naming_the_study(read, name):
    rows = read(f"special_tokens/{name}")
    with pytest.raises(InputError, match=r"the report of study phantom-0-train-000002 holds '<\|?image"):
        to_samples(rows, "Write.", completion="plain")
    assert len(to_samples(rows, "Write.", "frontal")) == len(rows)  # as a reference it is read by no model


@pytest.mark.parametrize(
    "token",
    ["<image>", "<|im_end|>", "</report>", "<THINK>", "</s>", "<start_of_image>", "[/INST]", "<prior>", "<|x|>"],
)
def test_tokens_of_models_and_recipes(token):
    with pytest.raises(InputError, match="a token of its own"):
        check_text(f"No effusion. {token} Clear.", "it")


@pytest.mark.parametrize("text", [None, "", "Nodule < 3 cm.", "a <b> c", "T > 38, <2 weeks", "[sic]"])
def test_what_is_text(text):
    check_text(text, "it")


@needs_files
@pytest.mark.parametrize(("name", "number"), [("d_null", 1), ("d_empty", 1)])
def test_a_report_without_text_is_left_out_and_counted(read, capsys, name, number):
    rows = load_dataset("parquet", data_files=str(ODD / "null_report" / name / "train.parquet"), split="train")
    assert len(read(f"null_report/{name}")) == len(rows) - number
    assert f"{number} of {len(rows)} rows" in capsys.readouterr().out


@needs_files
@pytest.mark.parametrize("name", ["d_zero", "d_trunc"])
def test_a_bad_image_is_named_with_its_study(read, name):
    with pytest.raises(InputError, match=r"image 1 of study phantom-\S+ is (truncated|not an image)"):
        to_samples(read(f"bad_image/{name}"), "Write.")


@needs_files
def test_sixteen_bits_are_the_picture_and_not_white(read):
    picture = np.asarray(load_image(ODD / "png16" / "i16.png"))
    assert 20 < picture.mean() < 235 and picture.std() > 20
    stored = np.asarray(to_samples(read("png16/d_16"), "Write.")[0]["images"][0])
    assert stored.std() > 20 and stored.min() == 0 and stored.max() == 255


@pytest.mark.parametrize("name", ["x [1]", "a::b", "with space", "100%", "star*"])
def test_a_data_set_in_a_folder_with_any_name(tmp_path, monkeypatch, name):
    from recipes.data.schema import write_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    row = {"study_id": "1", "report": "Clear.", "images": [{"bytes": (tmp_path / "x.png").read_bytes(), "path": None}]}
    write_dataset({"train": lambda: iter([row])}, tmp_path / name, {})
    assert read_split(str(tmp_path / name), "train")["report"] == ["Clear."]


def test_a_data_set_on_a_share_that_cannot_be_written_is_read_from_the_users_cache(tmp_path, monkeypatch):
    """Rows are read from a copy in the user's own cache, so that the share needs no room and no right."""
    from recipes.data.schema import cache_folder, write_dataset

    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_dataset(
        {"train": lambda: iter([{"study_id": "1", "report": "Clear.", "images": []}])}, tmp_path / "mounted", {}
    )
    before = sorted(path.name for path in (tmp_path / "mounted").iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "mounted")
    assert read_split(str(tmp_path / "mounted"), "train")["report"] == ["Clear."]
    assert sorted(path.name for path in (tmp_path / "mounted").iterdir()) == before
    assert Path(cache_folder(str(tmp_path / "mounted"))).is_relative_to(tmp_path / "home")


def test_a_prompt_with_a_byte_order_mark(tmp_path):
    from recipes.files import read_prompt

    (tmp_path / "p.txt").write_bytes("Write the report.\n".encode("utf-8-sig"))
    assert read_prompt(str(tmp_path / "p.txt")) == "Write the report."
    (tmp_path / "p.txt").write_bytes("Schreibe über den Erguß.".encode("cp1252"))
    with pytest.raises(InputError, match=r"p\.txt is not UTF-8 text"):
        read_prompt(str(tmp_path / "p.txt"))
