"""CheXbertLabeler: the original's cleaning and 512-token rule, batches that change nothing, clear failures."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from modeling.tiny import build_chexbert
from rewards import labelers, make_mccs_reward
from rewards.chexbert import CheXbertLabeler, clean_text, encode
from rewards.encoders import process_device

TEXTS = [
    "There is a small left pleural effusion. No pneumothorax.",
    "The heart is normal in size. The lungs are clear.",
    "Possible edema or pneumonia; the tube is in place.",
    "no",
    "",
    "edema " * 700,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved tiny CheXbert, its heads large enough that texts differ in their labels."""
    model, tokenizer = build_chexbert(TEXTS * 3, vocab_size=200, hidden_size=32, heads=4, layers=2)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("chexbert") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def labeler(folder) -> CheXbertLabeler:
    return CheXbertLabeler(folder, device="cpu")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" Edema. ", "Edema."),  # strip
        ("No\nedema.\r\n\n  No effusion.", "No edema. No effusion."),  # line breaks and runs of white space
        ("a\tb\u00a0c", "a b c"),  # tabs, no-break spaces
        ("\n", ""),
        ("EDEMA, 2.5 cm", "EDEMA, 2.5 cm"),  # case and punctuation are the tokenizer's business
        ("edema\ud800", "edema?"),  # half a surrogate pair
    ],
)
def test_cleaning(text, cleaned):
    assert clean_text(text) == cleaned


def test_512_tokens(labeler):
    cls, sep = labeler.tokenizer.cls_token_id, labeler.tokenizer.sep_token_id
    word = labeler.tokenizer.convert_tokens_to_ids("edema")
    fits, longer, empty = encode(labeler.tokenizer, ["edema " * 510, "edema " * 511, " "])
    assert fits == longer == [cls, *[word] * 510, sep]  # the first 511 tokens, then [SEP]
    assert empty == [cls, sep]
    assert labeler.truncated(["edema " * 510, "edema " * 511, "edema " * 900, " "]) == [False, True, True, False]


def test_same_tokens_as_f1chexbert(labeler):
    if importlib.util.find_spec("f1chexbert") is None or importlib.util.find_spec("appdirs") is None:
        pytest.skip("needs f1chexbert and appdirs: make .venv/oracles")
    original = importlib.import_module("f1chexbert.f1chexbert").tokenize
    ours = labeler.tokenizer

    def encode_plus(tokens: list[str]) -> dict:  # transformers 4's method on a list of tokens
        return {"input_ids": [ours.cls_token_id, *ours.convert_tokens_to_ids(tokens), ours.sep_token_id]}

    ids = {"cls_token_id": ours.cls_token_id, "sep_token_id": ours.sep_token_id}
    theirs = SimpleNamespace(tokenize=ours.tokenize, encode_plus=encode_plus, **ids)
    texts = [*TEXTS, " Two\n\nlines.\tAnd  a tab ", "edema " * 510, "edema " * 511, "é — µ\u00a0x", "[SEP] tube", "??"]
    assert encode(ours, texts) == original(pd.Series(texts), theirs)


def test_shapes_and_order(labeler):
    labeler.cache.results.clear()
    labels, embeddings = labeler.labels_and_embeddings([*TEXTS, TEXTS[0]])
    assert labels.shape == (7, 14) and labels.dtype == np.int64 and embeddings.shape == (7, 32)
    assert embeddings.dtype == np.float32
    assert len(np.unique(labels, axis=0)) > 2  # else the tests below could not fail
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            output = labeler.model(torch.tensor(encode(labeler.tokenizer, [text])))  # alone, without padding
        assert labels[i].tolist() == output.labels[0].tolist()
        np.testing.assert_allclose(embeddings[i], output.embedding[0], atol=1e-5)
    assert (labels[6] == labels[0]).all() and (embeddings[6] == embeddings[0]).all()
    assert np.array_equal(labeler(TEXTS), labels[:6]) and np.array_equal(labeler.embed(TEXTS), embeddings[:6])


def test_no_texts(labeler):
    labels, embeddings = labeler.labels_and_embeddings([])
    assert labels.shape == (0, 14) and embeddings.shape == (0, 32)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(TEXTS[:5]) | st.text(max_size=20), min_size=1, max_size=8), st.integers(1, 200))
def test_batch_mates_change_nothing(labeler, texts, token_budget):
    labeler.token_budget = token_budget
    together, embeddings = labeler.labels_and_embeddings(texts)
    alone = []
    for text in texts:
        labeler.cache.results.clear()
        alone.append(labeler.labels_and_embeddings([text]))
    assert np.array_equal(together, np.concatenate([labels for labels, _ in alone]))
    np.testing.assert_allclose(embeddings, np.concatenate([each for _, each in alone]), atol=1e-5)


def test_each_text_goes_through_once_in_batches_of_like_length(labeler):
    sizes = []
    labeler.cache.results.clear()
    handle = labeler.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    labeler.token_budget = 66
    words = (20, 1, 30, 19, 5, 18, 17)
    labeler(["edema " * n for n in words] * 3 + ["edema\n"])  # differs only before the cleaning
    handle.remove()
    # [CLS] and [SEP] beside the words; 64 + 63 + 14 tokens. 32 | 22 21 20 | 19 7 3 would be 32 + 66 + 57
    assert sorted(sizes) == [(2, 7), (2, 32), (3, 21)]


def test_labels_and_embeddings_share_a_pass_that_is_cached(labeler):
    labeler.cache.results.clear()
    rows = []
    handle = labeler.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    labeler(TEXTS)
    labeler.embed(TEXTS)
    handle.remove()
    assert sum(rows) == len({clean_text(text) for text in TEXTS})


@pytest.mark.parametrize("text", ["", "\x00\ufffd\U0001f4a9", "\ud83d", "edema " * 10_000, "漢字" * 400, "<report>"])
def test_strange_texts_are_labelled(labeler, text):
    labels, embeddings = labeler.labels_and_embeddings([text])
    assert labels.min() >= 0 and labels.max() <= 3 and np.isfinite(embeddings).all()


def test_no_gradients_and_no_dropout(labeler):
    assert not labeler.model.training
    assert not any(parameter.requires_grad for parameter in labeler.model.parameters())
    assert np.array_equal(labeler.embed(TEXTS[:1]), labeler.embed(TEXTS[:1]))


def test_name_tells_checkpoints_apart(labeler, folder, tmp_path):
    assert labeler.name == CheXbertLabeler(folder, device="cpu").name
    assert labeler.name.startswith("chexbert-") and labeler.checkpoint == str(folder)
    labeler.model.linear_heads[0].bias.data[0] += 1
    labeler.model.save_pretrained(tmp_path)
    labeler.model.linear_heads[0].bias.data[0] -= 1
    labeler.tokenizer.save_pretrained(tmp_path)
    assert CheXbertLabeler(tmp_path, device="cpu").name != labeler.name


def test_serves_a_reward(labeler):
    reward = make_mccs_reward(labeler=labeler)
    assert reward([TEXTS[0]], report=[TEXTS[0]]) == [pytest.approx(1)]


@pytest.mark.parametrize(
    ("devices", "local_rank", "device"),
    [
        (0, None, "cpu"),
        (1, None, "cuda:0"),
        (4, "2", "cuda:2"),  # torchrun, accelerate: one process per device
        (1, "3", "cuda:0"),  # a launcher that shows each process its own device only
    ],
)
def test_device_of_the_process(monkeypatch, devices, local_rank, device):
    accelerator = torch.device("cuda") if devices else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: accelerator)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert process_device() == torch.device(device)


def without(name: str):
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


def as_bert(folder: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder)


def bare_encoder(folder: Path) -> None:
    """Weights of another model under CheXbert's configuration."""
    config = json.loads((folder / "config.json").read_text())
    as_bert(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 8, "num_attention_heads": 1}))


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "is no CheXbert .* missing"),
        (without("model.safetensors"), "no CheXbert could be loaded"),
        (without("tokenizer.json"), "has no tokenizer"),
        (as_bert, "is no CheXbert .* bert"),
        (bare_encoder, "no CheXbert could be loaded|no complete CheXbert"),
        (cut_weights, "no CheXbert could be loaded"),
        (only_a_pickle, "no CheXbert could be loaded"),  # a pickle is never opened
    ],
)
def test_bad_folders_are_refused(folder, tmp_path, damage, message):
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        CheXbertLabeler(tmp_path, device="cpu")
    assert "\n" not in str(refused.value) and "recipes/convert_chexbert.py" in str(refused.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/chexbert"])  # the tests are offline
def test_missing_models_are_refused(name):
    with pytest.raises(ValueError, match="no CheXbert could be loaded") as refused:
        CheXbertLabeler(name)
    assert "\n" not in str(refused.value)


def test_bad_token_budget(folder):
    with pytest.raises(ValueError, match="token_budget"):
        CheXbertLabeler(folder, token_budget=0)


def test_rewards_stay_light():
    import subprocess

    script = "import sys, rewards; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_it_is_found_beside_the_lexical_labeler():
    assert labelers.CheXbertLabeler is CheXbertLabeler
    with pytest.raises(AttributeError, match="CheXpertLabeler"):
        assert labelers.CheXpertLabeler
