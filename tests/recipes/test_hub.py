"""Pushes to a Hub on this machine (tests/hub_server.py) with the real client: who may see what, faults, downloads."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import CUT, TOKEN, serve

from recipes.cli import InputError
from recipes.data.hub import CHECKPOINT, files_of, open_repository, push_files, sources_of


@pytest.fixture
def hub(monkeypatch):
    """The server, with the client of this process logged in, online and without waiting between its retries."""
    constants = huggingface_hub.constants
    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "a.safetensors", "b.safetensors", "c.safetensors", "training_args.bin"):
        (folder / name).write_text(f"{{}} {name}")
    return folder


def push(folder: Path, name: str = "me/x", sources=("phantom",), public=False, because=None) -> str:
    repository = open_repository(name, "model", sources, public, because)
    return push_files(repository, files_of(folder, CHECKPOINT), CHECKPOINT, "test")


def test_a_push(hub, tmp_path):
    push(checkpoint(tmp_path / "x"))
    repository = hub.repositories["model", "me/x"]
    assert repository.private
    assert set(repository.files) == {
        ".gitattributes",
        "config.json",
        "a.safetensors",
        "b.safetensors",
        "c.safetensors",
    }
