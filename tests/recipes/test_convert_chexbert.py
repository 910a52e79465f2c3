"""The converter on a checkpoint laid out like the published one: a DataParallel's names, stray entries, a pickle."""

import pickle
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config

from modeling.tiny import build_chexbert
from recipes import convert_chexbert
from recipes.files import InputError
from rewards.chexbert import CheXbertLabeler

TEXTS = ["There is a small pleural effusion.", "No edema.", "The heart is normal."]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict:
    """`checkpoint`: the file; `bert`: the folder of its BERT's configuration and tokenizer; `weights`: our names."""
    model, tokenizer = build_chexbert(TEXTS * 3, vocab_size=80, hidden_size=16, heads=4)
    folder = tmp_path_factory.mktemp("published")
    config = BertConfig(**{key: value for key, value in model.config.to_dict().items() if key != "model_type"})
    config.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    weights = model.state_dict()
    pooler = {f"bert.{name}": tensor for name, tensor in BertModel(config).state_dict().items() if "pooler" in name}
    stray = {"bert.embeddings.position_ids": torch.arange(512)[None]}
    content = {f"module.{name}": tensor for name, tensor in {**weights, **pooler, **stray}.items()}
    torch.save({"epoch": 3, "model_state_dict": content}, folder / "chexbert.pth")
    return {"checkpoint": folder / "chexbert.pth", "bert": folder / "bert", "weights": weights}


def arguments(published: dict, out: Path, **others) -> list:
    values = {"checkpoint": published["checkpoint"], "tokenizer": published["bert"], "out": out} | others
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def test_converted_weights_are_the_published_ones(published, tmp_path, call):
    call(convert_chexbert.main, *arguments(published, tmp_path / "out"))
    labeler = CheXbertLabeler(tmp_path / "out", device="cpu")
    found = labeler.model.state_dict()
    assert found.keys() == published["weights"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in published["weights"].items())
    assert labeler(TEXTS).shape == (3, 14)
    assert (tmp_path / "out/modeling_chexbert.py").is_file()  # for trust_remote_code


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "bad.pth")
    return folder / "bad.pth"


def changed(published: dict, **changes) -> dict:
    """The published content with some weights replaced, or dropped where None."""
    weights = torch.load(published["checkpoint"], weights_only=True)["model_state_dict"]
    weights |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {"model_state_dict": {name: tensor for name, tensor in weights.items() if tensor is not None}}


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the checkpoint was run')",)


def raw_pickle(published: dict, folder: Path) -> Path:
    (folder / "bad.pth").write_bytes(pickle.dumps({"model_state_dict": Attack()}, protocol=2))
    return folder / "bad.pth"


def half_a_file(published: dict, folder: Path) -> Path:
    content = published["checkpoint"].read_bytes()
    (folder / "bad.pth").write_bytes(content[: len(content) // 2])
    return folder / "bad.pth"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda published, folder: folder / "none.pth", "there is no checkpoint"),
        (lambda published, folder: save({"model_state_dict": Attack()}, folder), "holds code"),
        (raw_pickle, "holds code"),
        (half_a_file, "is damaged"),
        (lambda published, folder: save({"state_dict": {}}, folder), "no 'model_state_dict'"),
        (lambda published, folder: save([torch.zeros(2)], folder), "no 'model_state_dict'"),
        (
            lambda published, folder: save(changed(published, **{"module__linear_heads__13__bias": None}), folder),
            r"1 weights differ, such as linear_heads.13.bias \(shape none, and \(2,\) is expected\)",
        ),
        (
            lambda published, folder: save(changed(published, module__classifier__weight=torch.zeros(2, 2)), folder),
            r"1 weights differ, such as classifier.weight \(shape \(2, 2\), and none is expected\)",
        ),
        (
            lambda published, folder: save(
                changed(published, **{"module__linear_heads__0__weight": torch.zeros(4, 9)}), folder
            ),
            r"such as linear_heads.0.weight \(shape \(4, 9\), and",
        ),
    ],
)
def test_bad_checkpoints_are_refused(published, tmp_path, call, make, message):
    checkpoint = make(published, tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        call(convert_chexbert.main, *arguments(published, tmp_path / "out", checkpoint=checkpoint))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [("/no/such/folder", "no such folder"), ("gpt2", "is a gpt2 model, and the checkpoint's is a BERT")],
)
def test_bad_tokenizers_are_refused(published, tmp_path, call, tokenizer, message):
    if tokenizer == "gpt2":
        tokenizer = tmp_path / "gpt2"
        GPT2Config(n_layer=1, n_head=1, n_embd=4).save_pretrained(tokenizer)
        for file in published["bert"].glob("tokenizer*"):
            (tokenizer / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=message):
        call(convert_chexbert.main, *arguments(published, tmp_path / "out", tokenizer=tokenizer))


def test_without_the_hub(published, tmp_path, call):
    with pytest.raises(InputError, match=r"cannot be downloaded .* give --checkpoint"):  # the tests are offline
        call(convert_chexbert.main, "--tokenizer", published["bert"], "--out", tmp_path / "out")


def test_only_an_earlier_result_is_replaced(published, tmp_path, call):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no earlier result"):
        call(convert_chexbert.main, *arguments(published, tmp_path / "out"))
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
