"""DiscBERT against transformers' BERT and four matrix products, its judge, and the rate of hallucinations."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertModel

from modeling.configuration_discbert import DiscBertConfig
from modeling.modeling_discbert import DiscBertModel
from recipes.rg4.judgements import build_discbert
from rewards.discbert import DiscBertJudge, hall_flags
from rewards.scenarios import CATEGORIES

CONFIG = DiscBertConfig(
    vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40
)
IDS = torch.tensor([[2, 9, 8, 7, 3, 0], [2, 30, 3, 0, 0, 0], [2, 59, 58, 57, 56, 3]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def model() -> DiscBertModel:
    """Random weights, large enough that every part shows in the output."""
    torch.manual_seed(0)
    model = DiscBertModel(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_four_heads_on_cls(model):
    bert = BertModel(CONFIG, add_pooling_layer=False).eval()
    weights = model.state_dict()
    bert.load_state_dict({name[5:]: tensor for name, tensor in weights.items() if name.startswith("bert.")})
    cls = bert(IDS, attention_mask=MASK).last_hidden_state[:, 0]
    output = model(IDS, attention_mask=MASK)
    for i in range(4):
        expected = cls @ weights[f"heads.{i}.weight"].T + weights[f"heads.{i}.bias"]
        torch.testing.assert_close(output.logits[:, i], expected, atol=1e-5, rtol=0)
        assert torch.equal(output.labels[:, i], expected.argmax(1))
    assert output.logits.shape == (3, 4, 2) and output.loss is None


def test_loss_is_the_mean_of_four_cross_entropies(model):  # RG-010
    labels = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    output = model(IDS, attention_mask=MASK, labels=labels)
    four = [F.cross_entropy(output.logits[:, i], labels[:, i]) for i in range(4)]
    assert output.loss.item() == pytest.approx(torch.stack(four).mean().item(), rel=1e-6)


def test_dropout_is_the_published_one():
    assert DiscBertConfig().hidden_dropout_prob == 0.1
    assert DiscBertModel(CONFIG).dropout.p == 0.1


def test_dropout_stands_before_the_heads():
    """All of [CLS] dropped, a head says its bias; without dropout the same as after training."""
    model = DiscBertModel(CONFIG).train()
    model.bert.eval()
    with torch.no_grad():
        for head in model.heads:
            head.bias.normal_()
        model.dropout.p = 1.0
        biases = torch.stack([head.bias for head in model.heads])
        assert torch.equal(model(IDS, attention_mask=MASK).logits, biases.expand(3, 4, 2))
        model.dropout.p = 0.0
        trained = model(IDS, attention_mask=MASK).logits
        assert torch.equal(trained, model.eval()(IDS, attention_mask=MASK).logits) and not torch.equal(
            trained[0], biases
        )


@torch.no_grad()
def test_saved_model_needs_no_project(model, tmp_path, run_without_project):
    model.save_pretrained(tmp_path / "saved")
    torch.save({"ids": IDS, "mask": MASK, "logits": model(IDS, attention_mask=MASK).logits}, tmp_path / "expected.pt")
    run_without_project("""
model = AutoModel.from_pretrained("saved", trust_remote_code=True)
expected = torch.load("expected.pt")
with torch.no_grad():
    logits = model(expected["ids"], attention_mask=expected["mask"]).logits
assert type(model).__name__ == "DiscBertModel" and torch.equal(logits, expected["logits"])
""")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny, untrained DiscBERT with its tokenizer."""
    model, tokenizer = build_discbert(["unchanged small effusion", "clear lungs"] * 3)
    folder = tmp_path_factory.mktemp("discbert")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_judge_depends_on_the_text_alone(saved):
    judge = DiscBertJudge(saved, device="cpu", token_budget=20)
    texts = ["unchanged effusion", "", "clear", "small " * 900, "unchanged  effusion\n", "\ud800", "clear lungs clear"]
    found = judge(texts)
    assert found.shape == (7, 4) and found.dtype == np.int8
    assert all((judge([text])[0] == row).all() for text, row in zip(texts, found, strict=True))
    assert (judge(texts[::-1]) == found[::-1]).all() and judge([]).shape == (0, 4)
    assert (found[0] == found[4]).all()


def test_tiny_is_seeded():
    (one, tokenizer), (other, _) = (build_discbert(["small effusion", "clear"], seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert len(tokenizer) == one.config.vocab_size and one.config.model_type == "discbert"


@pytest.mark.parametrize("kind", ["absent", "no config", "a BERT", "without its tokenizer", "without a head"])
def test_what_is_no_discbert_is_refused(saved, tmp_path, kind):
    folder = tmp_path / "model"
    if kind != "absent":
        folder.mkdir()
    if kind == "a BERT":
        BertModel(CONFIG).save_pretrained(folder)
    if kind in ("without its tokenizer", "without a head"):
        model = DiscBertModel.from_pretrained(saved)
        dropped = "heads.3" if kind == "without a head" else "nothing"
        weights = {name: tensor for name, tensor in model.state_dict().items() if dropped not in name}
        model.save_pretrained(folder, state_dict=weights)
    if kind == "without a head":
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((saved / file).read_bytes())
    with pytest.raises(ValueError, match=r"recipes/train_discbert\.py"):
        DiscBertJudge(folder)


def stub(texts):
    """Holds the categories whose initial stands in the text: c, p, v, m."""
    return np.array([[initial in text for initial in "cpvm"] for text in texts])


@pytest.mark.parametrize(
    ("reports", "scenarios", "mode", "expected"),
    [
        (["c", "p", "v", "m", "-"], ["sn"] * 5, "scenario", 0.8),
        (["c", "p", "v", "m", "-"], ["sw"] * 5, "scenario", 0.6),  # comparisons are allowed
        (["c", "p", "v", "m", "-"], ["mn"] * 5, "scenario", 0.6),  # views are allowed
        (["c", "p", "v", "m", "-"], ["mw"] * 5, "scenario", 0.4),
        (["c", "p", "v", "m", "-"], ["mw"] * 5, "any", 0.8),  # as the published script counts
        (["cpvm", "-"], ["sn", "sn"], "scenario", 0.5),  # a report counts once
        (["c", "c"], ["sn", "sw"], "scenario", 0.5),  # each by its own scenario
    ],
)
def test_share_of_hallucinations(reports, scenarios, mode, expected):
    assert hall_flags(reports, scenarios, mode, judge=stub).mean() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scenario", "counted"),  # comparison, procedure, view, communication
    [("sn", [1, 1, 1, 1]), ("sw", [0, 1, 1, 1]), ("mn", [1, 1, 0, 1]), ("mw", [0, 1, 0, 1])],
)
def test_which_categories_a_scenario_counts(scenario, counted):
    assert hall_flags(list("cpvm"), [scenario] * 4, judge=stub).tolist() == [bool(each) for each in counted]


def test_hallucinations_by_a_saved_discbert(saved):
    texts = ["unchanged effusion", "clear"]
    verdicts = DiscBertJudge(saved)(texts)
    assert hall_flags(texts, ["sn", "sn"], judge=str(saved)).tolist() == verdicts.any(1).tolist()
    assert verdicts.shape[1] == len(CATEGORIES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], []), "0 reports"),
        ((["a"], ["sn", "sw"]), "1 reports and 2 scenarios"),
        ((["a"], ["xx"]), "'xx'"),
        ((["a"], ["sn"], "all"), "'all'"),
        ((["a"], ["sn"], "any", "/no/such"), "train one with"),
    ],
)
def test_hall_flags_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        hall_flags(*arguments)
