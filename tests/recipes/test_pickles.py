"""Published pickles: hyperparameters come out as a dict, and nothing that a pickle could run is run."""

import argparse
import builtins
import os
import pickle
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from recipes.data.pickles import SETTINGS, read_pickle, read_published
from recipes.files import InputError

WEIGHTS = {"labeler.bert.embeddings.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor([7])}
SETTINGS_OF_A_RUN = {"batch_size": 4, "learning_rate": 3e-5, "views": ["PA", "LATERAL"], "lora": None, "beams": True}
FORMATS = [True, False]  # a zip archive; the format before torch 1.6


def save(file: Path, content, zipped: bool = True) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


def checkpoint(settings) -> dict:
    return {"model": WEIGHTS, "config": settings, "epoch": 3, "step": 40000}


@pytest.fixture
def lightning(monkeypatch):
    """Lightning's class as it is defined there: a dict with attributes. Gone again when the file is read."""

    def make(module: str) -> dict:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        kind = type("AttributeDict", (dict,), {"__module__": module})
        sys.modules[module].AttributeDict = kind
        return kind(SETTINGS_OF_A_RUN)

    return make


@pytest.mark.parametrize("zipped", FORMATS)
@pytest.mark.parametrize(
    "module",
    [
        None,
        *("lightning.pytorch.utilities.parsing", "lightning.fabric.utilities.data"),
        *("pytorch_lightning.utilities.parsing", "lightning_fabric.utilities.data"),
    ],
)
def test_hyperparameters_come_back_as_a_dict(module, zipped, tmp_path, lightning, monkeypatch):
    settings = lightning(module) if module else Namespace(**SETTINGS_OF_A_RUN)
    file = save(tmp_path / "DiscBERT.pth", checkpoint(settings), zipped)
    with pytest.raises(pickle.UnpicklingError):  # as torch reads it
        torch.load(file, weights_only=True)
    monkeypatch.undo()
    weights, settings = read_published(file)
    assert settings == SETTINGS_OF_A_RUN and type(settings) is dict
    assert weights.keys() == WEIGHTS.keys() and all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    with pytest.raises(pickle.UnpicklingError):  # what was allowed for one file is not allowed for the next
        torch.load(file, weights_only=True)


def test_a_checkpoint_without_hyperparameters(tmp_path):
    assert read_published(save(tmp_path / "plain.pth", {"model": WEIGHTS}))[1] == {}


class Runs:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def mark(file: str) -> None:
    Path(file).touch()


@pytest.mark.parametrize("zipped", FORMATS)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {mark}",), r"(posix|nt)\.system"),
        (builtins.eval, ("open('{mark}', 'w')",), "eval"),
        (builtins.open, ("{mark}", "w"), r"(_?io\.)?open"),
        (builtins.getattr, (argparse, "_sys"), None),
        (mark, ("{mark}",), r"test_pickles\.mark"),
        (argparse.FileType("w"), ("{mark}",), r"argparse\.FileType"),
        (pickle.loads, (pickle.dumps(Runs(mark, "{mark}")),), r"_?pickle\.loads"),
    ],
)
@pytest.mark.parametrize("place", ["alone", "as the weights", "as the config", "in a Namespace", "in the weights"])
def test_code_is_not_run(function, arguments, name, place, zipped, tmp_path):
    target = tmp_path / "mark"
    arguments = [each.replace("{mark}", str(target)) if isinstance(each, str) else each for each in arguments]
    if function is getattr:
        arguments = [Namespace(key="value"), "key"]
    bad = Runs(function, *arguments)
    content = {
        "alone": bad,
        "as the weights": {"model": bad, "config": Namespace()},
        "as the config": checkpoint(bad),
        "in a Namespace": checkpoint(Namespace(learning_rate=bad)),
        "in the weights": {"model": WEIGHTS | {"more": bad}, "config": Namespace()},
    }[place]
    file = save(tmp_path / "bad.pth", content, zipped)
    with pytest.raises(
        InputError, match=rf"bad\.pth holds code \({name or 'getattr'}\), so it was not opened$"
    ) as error:
        read_published(file)
    assert "\n" not in str(error.value) and not target.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (WEIGHTS, "has no 'model' of tensors, so it is no checkpoint of LLM-RG4 or DiscBERT"),
        ([1, 2], "has no 'model' of tensors"),
        ({"model": {}}, "has no 'model' of tensors"),
        ({"model": {"name": 3}}, "has no 'model' of tensors"),
        ({"model": WEIGHTS, "config": [1]}, "has a 'config' that is no settings but a list"),
        ({"model": WEIGHTS, "config": torch.nn.Linear(1, 1)}, r"holds code \(torch\.nn\.modules\.linear\.Linear\)"),
    ],
)
def test_other_contents_are_refused(content, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        read_published(save(tmp_path / "other.pth", content))


@pytest.mark.parametrize("zipped", FORMATS)
@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_file(left, zipped, tmp_path):
    file = save(tmp_path / "half.pth", checkpoint(Namespace(**SETTINGS_OF_A_RUN)), zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(
        InputError, match=r"half\.pth (is damaged; download it again|is no PyTorch checkpoint)"
    ) as error:
        read_published(file)
    assert "\n" not in str(error.value)


def test_no_checkpoint(tmp_path):
    (tmp_path / "page.pth").write_text("<html>Quota exceeded</html>")  # what a download from a drive may be
    with pytest.raises(InputError, match=r"page\.pth is (no PyTorch checkpoint|damaged)"):
        read_published(tmp_path / "page.pth")
    with pytest.raises(InputError, match=r"there is no checkpoint .*none\.pth"):
        read_published(tmp_path / "none.pth")
    file = save(tmp_path / "namespace.pth", Namespace(a=1))
    assert read_pickle(file, SETTINGS) == Namespace(a=1)
    with pytest.raises(InputError, match=r"holds code \(argparse\.Namespace\)"):
        read_pickle(file)
