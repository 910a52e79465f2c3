"""Crepe: pairs as the original encodes them, batches that change nothing, the reward, clear failures."""

import math
import pickle

import numpy as np
import pytest
import torch
from transformers import BertModel

from modeling import CrepeConfig, CrepeModel
from modeling.tiny_crepe import build_crepe
from rewards.crepe import CATEGORIES, Crepe, make_crepe_reward
from rewards.encoders import ONEDNN, OneDNNLinear, token_rows
from rewards.table import RewardArguments, make_rewards

TEXTS = [
    "There is a small left pleural effusion. No pneumothorax.",
    "The heart is normal in size. The lungs are clear.",
    "no",
    "",
    "edema " * 700,
    "half \ud800 a pair",
]
PAIRS = [*zip(TEXTS, TEXTS[::-1], strict=True), (TEXTS[0], TEXTS[0]), (TEXTS[4], TEXTS[4] + "clear")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tokenizer = build_crepe(TEXTS[:5] * 3, vocab_size=200, hidden_size=32, heads=4, layers=2)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("crepe") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def crepe(folder) -> Crepe:
    return Crepe(folder, device="cpu")


@torch.no_grad()
def test_counts_are_those_of_one_pair_padded_to_512(crepe):
    """Reference first, one pair at a time and 512 tokens, as the original scores: nothing of that may show."""
    expected = []
    for report, reference in PAIRS:
        pair = [text.encode(errors="replace").decode() for text in (reference, report)]
        inputs = crepe.tokenizer(*pair, padding="max_length", truncation=True, max_length=512, return_tensors="pt")
        assert inputs["input_ids"].shape == (1, 512)
        expected.append(crepe.model(**inputs).counts[0].numpy())
    generated, references = map(list, zip(*PAIRS, strict=True))
    counts = crepe.counts(generated, references)
    np.testing.assert_allclose(counts, expected, atol=1e-5)
    np.testing.assert_allclose(crepe(generated, references), np.sum(expected, axis=1), atol=1e-5)
    assert counts.shape == (len(PAIRS), len(CATEGORIES)) and (counts >= 0).all() and len(np.unique(counts)) > 12


def test_a_pair_depends_on_itself_alone(folder, crepe):
    generated, references = map(list, zip(*PAIRS, strict=True))
    small = Crepe(folder, device="cpu", token_budget=40)
    alone = [crepe([a], [b])[0] for a, b in PAIRS]
    for scores in (small(generated, references), crepe(generated[::-1], references[::-1])[::-1]):
        np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert crepe([], []).shape == (0,) and crepe.counts([], []).shape == (0, 6)
    with pytest.raises(ValueError, match="1 reports and 2 references"):
        crepe(["a"], ["a", "b"])


def test_the_longer_of_a_pair_is_cut(crepe):
    (ids, types), (other, kinds) = token_rows(crepe.tokenizer, ["no", TEXTS[4]], [TEXTS[4], "no"], 20)
    assert len(ids) == len(other) == 20 and types.count(0) == 3 and kinds.count(1) == 2  # [CLS] no [SEP]; no [SEP]


def test_equal_pairs_go_through_once(crepe, monkeypatch):
    rows = []
    forward = crepe.model.forward
    monkeypatch.setattr(
        crepe.model, "forward", lambda **kwargs: rows.append(len(kwargs["input_ids"])) or forward(**kwargs)
    )
    crepe(["a", "b", "a"], ["c", "c", "c"])
    assert sum(rows) == 2


def test_the_reward_turns_errors_round_and_pays_nothing_for_nothing(folder, crepe):
    reward = make_crepe_reward(folder, device="cpu")
    errors = crepe([TEXTS[0]], [TEXTS[1]])[0]
    given = reward([f"<report>{TEXTS[0]}</report>", "<report> </report>", "x"], report=[TEXTS[1], TEXTS[1], None])
    assert given == [pytest.approx(1 / (1 + errors)), 0.0, None] and 0 < given[0] <= 1
    assert reward.__name__ == "crepe_reward"
    assert pickle.loads(pickle.dumps(reward))([TEXTS[0]], report=[TEXTS[1]]) == [pytest.approx(given[0])]
    (named,) = make_rewards(RewardArguments(rewards=["crepe"], crepe=str(folder)), None, [])
    assert named([TEXTS[0]], report=[TEXTS[1]]) == [pytest.approx(given[0])]
    with pytest.raises(ValueError, match="untagged must be"):
        make_crepe_reward("/no/such", untagged="half")


@pytest.mark.parametrize("kind", ["absent", "a BERT", "without a head", "of two kinds of errors"])
def test_what_is_no_crepe_is_refused(folder, tmp_path, kind):
    other = tmp_path / "model"
    model = CrepeModel.from_pretrained(folder)
    if kind == "a BERT":
        BertModel(CrepeConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(other)
    elif kind == "without a head":  # PyTorch would leave a random one
        weights = {name: tensor for name, tensor in model.state_dict().items() if "error_regressors.3" not in name}
        model.save_pretrained(other, state_dict=weights)
    elif kind == "of two kinds of errors":
        config = CrepeConfig.from_dict(model.config.to_dict() | {"num_error_categories": 2})
        CrepeModel(config).save_pretrained(other)
    for file in ("tokenizer.json", "tokenizer_config.json") if other.is_dir() else ():
        (other / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(ValueError, match=r"recipes/train_crepe\.py"):
        Crepe(other)
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        Crepe(folder, token_budget=0)


def test_a_perfect_score_is_one(folder, crepe, monkeypatch):
    reward = make_crepe_reward(folder, device="cpu")
    monkeypatch.setattr(reward.score, "crepe", lambda generated, references: np.zeros(len(generated)))
    assert reward(["x"], report=["x"]) == [1.0]
    assert math.isclose(
        make_crepe_reward(folder, device="cpu").score(["x"], ["y"])[0], 1 / (1 + crepe(["x"], ["y"])[0])
    )


def test_large_layers_are_computed_by_onednn_and_change_nothing(tmp_path, monkeypatch):
    """Of a CREPE with the widths of a real one: what PyTorch's own linear layers give, one pair at a time."""
    torch.manual_seed(0)
    config = CrepeConfig(
        vocab_size=60, hidden_size=512, num_hidden_layers=2, num_attention_heads=4, intermediate_size=600
    )
    _, tokenizer = build_crepe(TEXTS[:3], vocab_size=60)
    config.vocab_size = len(tokenizer)
    CrepeModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    crepe = Crepe(tmp_path, device="cpu")
    layers = [module for module in crepe.model.modules() if isinstance(module, OneDNNLinear)]
    assert len(layers) == ONEDNN * (2 * 6 + 1)  # of each layer six, and the pooler; not the heads
    calls = []
    kernel = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: calls.append(1) or kernel(*given))
    counts = crepe.counts(TEXTS[:3], TEXTS[2::-1])
    assert len(calls) == len(layers) * ONEDNN
    for layer in layers:
        layer.__class__ = torch.nn.Linear
    np.testing.assert_allclose(counts, crepe.counts(TEXTS[:3], TEXTS[2::-1]), rtol=0, atol=1e-5)
    assert len(calls) == len(layers) * ONEDNN and (counts > 0).any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_onednn_layer_by_another_route(bias):
    layer = OneDNNLinear(40, 30, bias=bias)
    inputs = torch.randn(2, 3, 40)
    exact = inputs.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs).double(), exact, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer(inputs[:, :1]).double(), exact[:, :1], atol=1e-5, rtol=0)
        assert layer(inputs[:0]).shape == (0, 3, 30)
    layer(inputs).sum().backward()  # where gradients are recorded, PyTorch's own layer
    torch.testing.assert_close(layer.weight.grad[0], inputs.sum((0, 1)), atol=1e-5, rtol=0)
    with torch.no_grad():
        assert layer.to(torch.bfloat16)(inputs.bfloat16()).dtype == torch.bfloat16
