"""The converter on a folder in the published form (config.json of a BERT with CREPE's settings), and what is none."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from modeling.tiny_crepe import build_crepe
from recipes import convert_crepe
from recipes.files import InputError
from rewards.crepe import Crepe

TEXTS = ["There is a small pleural effusion.", "No edema.", "The heart is normal."]
SETTINGS = {
    "num_error_categories": 6,
    "use_poisson_loss": False,
    "use_presence_loss": True,
    "presence_loss_weight": 0.5,
}


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the checkpoint was run')",)


@pytest.fixture
def published(tmp_path):
    """A folder as the authors' `save_pretrained` writes it: its BERT's configuration, more keys, their weights."""
    model, tokenizer = build_crepe(TEXTS * 3, vocab_size=80, hidden_size=16, heads=4)
    settings = {key: value for key, value in model.config.to_dict().items() if key != "model_type"}
    folder = tmp_path / "published"
    BertConfig(**settings).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | SETTINGS
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForCategoryErrorRegression"]}))
    tokenizer.save_pretrained(folder)
    weights = model.state_dict()
    save_file({**weights, "bert.embeddings.position_ids": torch.arange(512)[None]}, folder / "model.safetensors")
    return folder


def change(folder, **weights) -> None:
    found = load_file(folder / "model.safetensors") | {name.replace("__", "."): each for name, each in weights.items()}
    save_file({name: each for name, each in found.items() if each is not None}, folder / "model.safetensors")


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_converted_weights_are_the_published_ones(published, tmp_path, call, form):
    weights = load_file(published / "model.safetensors")
    if form == "pytorch_model.bin":
        torch.save(weights, published / form)
        (published / "model.safetensors").unlink()
    call(convert_crepe.main, "--checkpoint", published, "--out", tmp_path / "out")
    crepe = Crepe(tmp_path / "out", device="cpu")
    found = crepe.model.state_dict()
    assert found.keys() == weights.keys() - {"bert.embeddings.position_ids"}
    assert all(torch.equal(found[name], weights[name]) for name in found)
    assert crepe(TEXTS, TEXTS[::-1]).shape == (3,)
    assert (tmp_path / "out/modeling_crepe.py").is_file()  # for trust_remote_code


def without(name: str):
    return lambda folder: (folder / name).unlink()


def config_without(key: str):
    def change_config(folder):
        config = json.loads((folder / "config.json").read_text())
        del config[key]
        (folder / "config.json").write_text(json.dumps(config))

    return change_config


def attack(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.x": Attack()}, protocol=2))


def half(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: change(folder, error_regressors__3__weight=None), "error_regressors.3.weight"),
        (lambda folder: change(folder, error_presence__0__bias=torch.zeros(2)), "error_presence.0.bias"),
        (lambda folder: change(folder, lm_head__weight=torch.zeros(2)), "lm_head.weight"),
        (config_without("num_error_categories"), "is no CREPE: its config.json has no num_error_categories"),
        (without("config.json"), "is no CREPE: its config.json has no num_error_categories"),
        (without("model.safetensors"), "has no weights"),
        (attack, "holds code|is no PyTorch checkpoint"),
        (half, "is damaged"),
        (no_tokenizer, "has no tokenizer"),
    ],
)
def test_what_is_no_crepe_ends_in_a_sentence(published, tmp_path, call, damage, sentence):
    damage(published)
    with pytest.raises(InputError, match=sentence):
        call(convert_crepe.main, "--checkpoint", published, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_id_that_cannot_be_reached(tmp_path, call):
    with pytest.raises(InputError, match="gihuncho/crepe-biomedbert: no such folder, or the Hub is out of reach"):
        call(convert_crepe.main, "--out", tmp_path / "out")
