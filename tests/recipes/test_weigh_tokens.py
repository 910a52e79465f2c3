"""Key sentences by integrated gradients: the integral, from attributions to spans, and the script."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from torch import nn
from transformers import BertConfig, BertModel

from modeling.tiny import build_chexbert
from recipes import weigh_tokens
from recipes.data.schema import read_dataset, write_dataset
from recipes.files import InputError
from recipes.rg4 import token_weights
from recipes.rg4.token_weights import (
    Attribution,
    TokenWeigher,
    Weighed,
    find_key_sentences,
    gradients_on_path,
    integrated_gradients,
    join_spans,
    original_places,
    score_tokens,
    sentence_spans,
    smooth,
    spline_integrals,
)
from rewards.chexbert import clean_text
from rewards.labelers import LexicalLabeler
from rewards.labels import CheXpertState

ROOT = Path(__file__).resolve().parents[2]
POSITIVE, UNCERTAIN = CheXpertState.POSITIVE, CheXpertState.UNCERTAIN
REPORTS = [
    "The heart is normal. There is a small left pleural effusion. No pneumothorax.",
    "Lungs are clear. No edema.",
    "Possible pneumonia in the right lower lobe! Is there a nodule? The bones are intact.",
    "Cardiomegaly. Interstitial edema with bilateral effusions. Old rib fractures.",
    "No acute disease.",
    "There is a large right pneumothorax. Heart size is normal. Lungs are clear otherwise.",
]


@pytest.fixture(scope="module")
def chexberts(tmp_path_factory) -> dict[str, Path]:
    """A tiny CheXbert with random weights that says something, and one taught the reports above for some seconds."""
    made = {}
    for name, steps in (("random", 0), ("taught", 120)):
        model, tokenizer = build_chexbert(REPORTS, vocab_size=400, hidden_size=32, layers=2, heads=2)
        for head in model.linear_heads:
            head.weight.data *= 20  # so that labels differ and logits are far from 0
        batch = tokenizer([clean_text(text) for text in REPORTS], padding=True, return_tensors="pt")
        labels = torch.tensor(LexicalLabeler()(REPORTS))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(batch["input_ids"], batch["attention_mask"], labels=labels).loss.backward()
            optimizer.step()
        made[name] = tmp_path_factory.mktemp("chexbert") / name
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module", params=["random", "taught"])
def weigher(request, chexberts) -> TokenWeigher:
    return TokenWeigher(chexberts[request.param])


@pytest.fixture(scope="module")
def taught(chexberts) -> TokenWeigher:
    return TokenWeigher(chexberts["taught"])


def rows_of(weigher: TokenWeigher) -> list[list[int]]:
    return weigher.tokenizer([clean_text(text) for text in REPORTS])["input_ids"]


def close(given: list[np.ndarray], wanted: list[np.ndarray], tolerance: float) -> None:
    for one, other in zip(given, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


# --- the integral ------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Logit (condition 0, state s) = sum over tokens of `power`-th powers of w_s . embedding."""

    def __init__(self, power: int):
        super().__init__()
        self.power, self.embed = power, nn.Embedding(5, 2)
        self.embed.weight.data = torch.tensor([[0.0, 0.0], [0.2, 0.2], [1.0, 2.0], [-1.0, 0.5], [3.0, 1.0]])

    def get_input_embeddings(self):
        return self.embed

    def forward(self, inputs_embeds, attention_mask):
        projected = inputs_embeds @ torch.tensor([[1.0, 2.0], [0.5, -1.0]])  # w_0 = (1, .5), w_1 = (2, -1)
        return SimpleNamespace(logits=((projected**self.power) * attention_mask[..., None]).sum(1)[:, None, :])


def test_linear_by_hand():
    # tokens (1, 2), (-1, .5), (3, 1) between ends 1: w_0 gives 2, -.75, 3.5; w_1 gives 0, -2.5, 5; the ends give 0
    found = gradients_on_path(Toy(1), 0, [([1, 2, 3, 4, 1], 0.3, [(0, 0), (0, 1)])], 100)[0]
    np.testing.assert_allclose(found[1], [[0, 2, -0.75, 3.5, 0], [0, 0, -2.5, 5, 0]], atol=1e-6)
    # one point is exact for a linear function: f(x) - f(baseline) = 4.75 and 2.5
    np.testing.assert_allclose(found[1].sum(1), [4.75, 2.5], atol=1e-6)
    ends = 2 * 0.3  # the two ends (.2, .2), which the baseline keeps, add .3 each
    np.testing.assert_allclose(found[0][0], ends + 0.3 * 4.75, atol=1e-5)
    (own,) = integrated_gradients(Toy(1), 0, [[1, 2, 3, 4, 1]], [[(0, 0)]], 0.01, 65, 100)
    np.testing.assert_allclose(own[0].tokens, [0, 2, -0.75, 3.5, 0], atol=1e-6)
    assert (own[0].nodes, own[0].met) == (5, True)
    assert own[0].error < 1e-6


def test_squares_by_hand():  # the spline is exact for the straight lines that their gradients are
    (own,) = integrated_gradients(Toy(2), 0, [[1, 2, 3, 4, 1]], [[(0, 0)]], 0.01, 65, 100)
    np.testing.assert_allclose(own[0].tokens, [0, 2**2, (-0.75) ** 2, 3.5**2, 0], rtol=1e-5)
    assert own[0].nodes == 5


def test_integrals_of_splines():
    generator = np.random.default_rng(0)
    for n in (5, 12, 40):
        x, y = np.sort(generator.random(n)), generator.normal(size=(n, 3))
        wanted = np.diff(CubicSpline(x, y, bc_type="natural").antiderivative()(x), axis=0)
        np.testing.assert_allclose(spline_integrals(x, y), wanted, atol=1e-9)


def test_labels_of_a_report_share_their_points():
    """The steeper one's points are the other's, until that is done."""
    seen = []
    toy = Toy(12)
    toy.register_forward_pre_hook(lambda _, __, given: seen.append(len(given["inputs_embeds"])), with_kwargs=True)
    (own,) = integrated_gradients(toy, 0, [[1, 2, 4, 1]], [[(0, 0), (0, 1)]], 1e-3, 65, 10_000)
    assert all(each.met for each in own) and max(each.nodes for each in own) == sum(seen)


def test_a_jump_ends_without_being_met():
    """No point is near enough to one, so that halving must end by itself."""

    class Jump(Toy):
        def forward(self, inputs_embeds, attention_mask):
            logits = super().forward(inputs_embeds, attention_mask).logits
            return SimpleNamespace(logits=logits + 10 * (logits > 2))

    (own,) = integrated_gradients(Jump(1), 0, [[1, 2, 3, 4, 1]], [[(0, 0)]], 0.01, 1025, 100)
    assert not own[0].met and own[0].error > 0.5 and own[0].nodes < 100


class Wave(Toy):
    """f = p - cos(2 pi p) / (4 pi) of p = the share of the path: the errors of its two halves are opposite."""

    def forward(self, inputs_embeds, attention_mask):
        p = inputs_embeds[:, 1, 0] / self.embed.weight[4, 0]
        return SimpleNamespace(logits=(p - torch.cos(2 * torch.pi * p) / (4 * torch.pi))[:, None, None])


@pytest.mark.parametrize(("tolerances", "met"), [(15.5, True), (16.5, False)])
def test_errors_that_cancel_may_be_sixteen_tolerances(tolerances, met):
    """The whole is right at the five first points, and its parts are wrong by so many tolerances together."""
    x = np.linspace(0, 1, 5)
    gradients = 1 + np.sin(2 * np.pi * x) / 2
    changes = np.diff(x - np.cos(2 * np.pi * x) / (4 * np.pi))
    errors = np.diff(CubicSpline(x, gradients, bc_type="natural").antiderivative()(x)) - changes
    assert abs(errors.sum()) < 1e-12 < np.abs(errors).sum()
    tolerance = np.abs(errors).sum() / tolerances  # of a gap of 1
    (own,) = integrated_gradients(Wave(1), 0, [[1, 4, 1]], [[(0, 0)]], tolerance, 65, 100)
    assert own[0].met and own[0].error < 1e-6 and (own[0].nodes == 5) == met
    (own,) = integrated_gradients(Wave(1), 0, [[1, 4, 1]], [[(0, 0)]], tolerance, 5, 100)
    assert own[0].met == met


def test_the_worst_interval_is_halved_first():
    """A step within the path's last quarter: points go there, and as few others as the error allows."""
    seen = []

    class Step(Wave):
        def forward(self, inputs_embeds, attention_mask):
            p = inputs_embeds[:, 1, 0] / self.embed.weight[4, 0]
            seen.extend(p.tolist())
            return SimpleNamespace(logits=torch.sigmoid(40 * (p - 0.9))[:, None, None])

    (own,) = integrated_gradients(Step(1), 0, [[1, 4, 1]], [[(0, 0)]], 0.01, 65, 100)
    assert own[0].met and own[0].nodes == len(seen)
    assert sum(p > 0.75 for p in seen) > len(seen) / 2


def test_more_points_where_needed_and_no_more_than_allowed():
    few, many = (integrated_gradients(Toy(12), 0, [[1, 4, 1]], [[(0, 0)]], e, 65, 100)[0][0] for e in (0.1, 1e-4))
    assert 5 <= few.nodes < many.nodes <= 65
    assert few.met and many.met
    assert many.error < 1e-4
    np.testing.assert_allclose(many.tokens[1], 3.5**12, rtol=1e-4)
    capped = integrated_gradients(Toy(12), 0, [[1, 4, 1]], [[(0, 0)]], 1e-7, 5, 100)[0][0]
    assert (capped.nodes, capped.met) == (5, False)


def test_attributions_are_complete(weigher):
    ids = rows_of(weigher)
    found = weigher.attribute(ids)
    assert sum(map(len, found)) >= 4
    tokens, mask, baseline = token_weights._pad(ids, weigher.tokenizer.pad_token_id, weigher.device)
    with torch.no_grad():
        gaps = weigher.model(tokens, mask).logits - weigher.model(baseline, mask).logits
    for row, own in enumerate(found):
        for label, each in own.items():
            gap = float(gaps[row][label])
            assert abs(each.tokens.sum() - gap) <= 0.01 * max(abs(gap), 0.1) + 1e-5
            assert each.met
            assert each.tokens[0] == each.tokens[-1] == 0  # [CLS] and [SEP] are the baseline's, too
            assert label[0] < 13 and label[1] in (POSITIVE, UNCERTAIN)


def test_captum(weigher):
    """The same points: equal to rounding. The adaptive integral: equal to captum's with many points."""
    attr = pytest.importorskip("captum.attr", reason="the other implementation: pip install captum")
    model, pad = weigher.model, weigher.tokenizer.pad_token_id
    captum = attr.LayerIntegratedGradients(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits, model.get_input_embeddings()
    )
    ids = rows_of(weigher)
    at, weights = np.polynomial.legendre.leggauss(8)
    for row, own in list(zip(ids, weigher.attribute(ids), strict=True))[:4]:
        tokens = torch.tensor([row])
        baseline = torch.full_like(tokens, pad)
        baseline[:, [0, -1]] = tokens[:, [0, -1]]
        options = {"baselines": baseline, "additional_forward_args": (torch.ones_like(tokens),)}
        path = gradients_on_path(model, pad, [(row, (1 + x) / 2, list(own) or [(0, 0)]) for x in at], 4096)
        same_points = sum(w / 2 * products for w, (_, products) in zip(weights, path, strict=True))
        exact = integrated_gradients(model, pad, [row], [list(own)], 1e-6, 4097, 4096)[0]
        for label, mine, precise in list(zip(own, same_points, exact, strict=False))[:2]:
            eight = captum.attribute(tokens, target=label, n_steps=8, **options).sum(-1)[0].numpy()
            many = captum.attribute(tokens, target=label, n_steps=1000, **options).sum(-1)[0].numpy()
            np.testing.assert_allclose(mine, eight, atol=1e-4)
            np.testing.assert_allclose(precise.tokens, many, atol=1e-4)


def test_bf16(taught, chexberts):
    """In bfloat16 the labels stay, and the attributions by and large."""
    ids = rows_of(taught)
    weigher = TokenWeigher(chexberts["taught"], bf16=True, tolerance=0.1)
    assert (taught.max_nodes, weigher.max_nodes) == (1025, 65)
    rough = weigher.attribute(ids)
    for own, other in zip(taught.attribute(ids), rough, strict=True):
        assert list(own) == list(other)
        for label in own:
            assert np.corrcoef(own[label].tokens, other[label].tokens)[0, 1] > 0.95
    assert next(taught.model.parameters()).dtype == torch.float32


def test_weights_that_are_no_numbers(chexberts):
    broken = TokenWeigher(chexberts["taught"])
    broken.differentiated = copy.deepcopy(broken.model)
    broken.differentiated.linear_heads[9].weight.data[:] = torch.nan
    with pytest.raises(InputError, match="no finite numbers"):
        broken([REPORTS[0]])


@pytest.mark.parametrize("budget", [1, 200, 100_000])  # every row alone, some, all in one batch
def test_batch_mates_do_not_matter(taught, budget):
    ids = rows_of(taught)
    targets = [list(own) for own in taught.attribute(ids)]
    pad = taught.tokenizer.pad_token_id
    together = integrated_gradients(taught.model, pad, ids, targets, 0.01, 65, budget)
    for row, labels, own in zip(ids, targets, together, strict=True):
        alone = integrated_gradients(taught.model, pad, [row], [labels], 0.01, 65, 4096)[0]
        close([each.tokens for each in own], [each.tokens for each in alone], 1e-5)
        assert [each.nodes for each in own] == [each.nodes for each in alone]


# --- from attributions to spans ----------------------------------------------------------------------------------


def test_smoothing_by_hand():
    e1, e2, e3 = np.exp(-0.5), np.exp(-2), np.exp(-4.5)  # exp(-k^2 / 2)
    whole = 1 + 2 * (e1 + e2 + e3)
    middle = smooth(np.eye(15)[7])
    np.testing.assert_allclose(middle[7:11], np.array([1, e1, e2, e3]) / whole)
    np.testing.assert_allclose(middle, middle[::-1])
    np.testing.assert_allclose(smooth(np.full(5, 2.5)), 2.5)  # the kernel sums to 1 at the ends, too
    np.testing.assert_allclose(smooth(np.array([1.0, 0.0])), [1 / (1 + e1), e1 / (1 + e1)])


def test_scores_by_hand():
    # each label by its largest magnitude, (-1, 0, .5) and (1, 0, 0); the maximum is (1, 0, .5)
    maps = np.array([[-4.0, 0.0, 2.0], [0.1, 0.0, 0.0]])
    e1, e2 = np.exp(-0.5), np.exp(-2)
    smoothed = np.array([(1 + 0.5 * e2) / (1 + e1 + e2), 1.5 * e1 / (1 + 2 * e1), (0.5 + e2) / (1 + e1 + e2)])
    np.testing.assert_allclose(score_tokens(maps), smoothed / smoothed.max())
    assert (score_tokens(np.zeros((2, 4))) == 0).all()  # nothing to divide by
    assert score_tokens(np.array([[-3.0, -1.0]])).max() < 0  # what speaks against a label lifts nothing


def test_the_papers_threshold():
    assert weigh_tokens.WeighArguments("data", "out").threshold == 0.4  # Implementation Details


def test_threshold_is_strict():
    keys = find_key_sentences([(0, 10), (11, 20)], [0, 5, 12], np.array([0.4, 0.39, 0.41]), 0.4)
    assert keys == [False, True]


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        (0, [True, False]),  # a sentence's first character is its own
        (9, [True, False]),
        (10, [False, False]),  # the space between
        (11, [False, True]),
        (19, [False, True]),
        (20, [False, False]),
    ],
)
def test_the_sentence_of_a_token(place, keys):
    assert find_key_sentences([(0, 10), (11, 20)], [place], np.array([0.9]), 0.4) == keys


def test_a_first_token_lifts_its_sentence(taught, monkeypatch):
    text = "Clear lungs. Edema of both. No more."

    def attribute(ids):
        tokens = taught.tokenizer.convert_ids_to_tokens(ids[0])
        first = tokens.index(".") + 1  # of the second sentence
        return [{(4, POSITIVE): Attribution(np.eye(len(tokens))[first] * 5, 9, 0.0, True)}]

    monkeypatch.setattr(taught, "attribute", attribute)
    monkeypatch.setattr(token_weights, "smooth", lambda scores: scores)  # that token alone
    (found,) = taught([text])
    assert [text[start:end] for start, end in found.spans] == ["Edema of both."]


@pytest.mark.parametrize(
    ("keys", "spans"),
    [
        ([False, False, False], []),
        ([True, False, True], [[0, 3], [8, 11]]),
        ([True, True, False], [[0, 7]]),  # neighbours are one span
        ([True, True, True], [[0, 11]]),
    ],
)
def test_joining(keys, spans):
    assert join_spans([(0, 3), (4, 7), (8, 11)], keys) == spans


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("No full stop", ["No full stop"]),
        ("  Heart is 3.5 cm.\n Clear?  Yes! ", ["Heart is 3.5 cm.", "Clear?", "Yes!"]),  # a decimal ends nothing
        ("clear lungs . no effusion .", ["clear lungs .", "no effusion ."]),  # R2Gen's cleaning
        ("Same. Same.", ["Same.", "Same."]),
        ("FINDINGS\n\n  Edema.", ["FINDINGS", "Edema."]),
    ],
)
def test_sentences(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                *REPORTS,
                "effusion",
                "\n\n",
                " ",
                "\t\u00a0",
                ".",
                " . ",
                "é",
                "ﬁ",
                "İ",
                "\U0001f600",
                "\ud800",
                "[SEP]",
                "中",
            ]
        ),
        max_size=8,
    ).map("".join),
)


@given(TEXTS)
def test_original_places(text):
    cleaned, places = clean_text(text), original_places(text)
    assert len(places) == len(cleaned)
    assert places == sorted(places)
    for character, place in zip(cleaned, places, strict=True):
        source = text[place]
        assert source == character or source.isspace() or "\ud800" <= source <= "\udfff"


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_spans_of_any_text(taught, text):
    (found,) = taught([text])
    sentences = sentence_spans(text)
    before = -1
    for start, end in found.spans:
        assert before < start < end <= len(text)
        assert start in [first for first, _ in sentences]
        assert end in [last for _, last in sentences]
        before = end
    assert found.sentences[0] == len(sentences)
    assert (found.sentences[1] > 0) == bool(found.spans)
    if not found.labels:
        assert found.spans == []


def test_nothing_is_lifted_where_nothing_is_found(taught):
    found = taught(REPORTS)
    assert [bool(each.labels) for each in found] == [True, False, True, True, False, True]
    assert [bool(each.spans) for each in found] == [True, False, True, True, False, True]
    assert [label[:2] for label in found[0].labels] == [("Pleural Effusion", "positive")]


def test_attributions_decide_alone(taught, monkeypatch):
    """A stand-in that points at one token: its sentence, in the original text with its odd white space."""
    text = "Heart\n  normal.  Small\u00a0 effusion\there. No edema."

    def attribute(ids):
        tokens = taught.tokenizer.convert_ids_to_tokens(ids[0])
        values = np.array([5.0 if token == "effusion" else 0.0 for token in tokens])
        return [{(9, POSITIVE): Attribution(values, 9, 0.0, True)}]

    monkeypatch.setattr(taught, "attribute", attribute)
    (found,) = taught([text])
    assert [text[start:end] for start, end in found.spans] == ["Small\u00a0 effusion\there."]


def test_past_the_last_token(taught, chexberts):
    text = "No effusion. " * 200 + "Cardiomegaly."
    tokens = len(taught.tokenizer(clean_text(text))["input_ids"])
    (found,) = taught([text])
    assert tokens > 512 and found.truncated
    per_sentence = (tokens - 2) // 201  # words of three or more pieces are possible
    assert found.sentences[0] == 201
    assert 0 < found.sentences[2] <= 201 - 510 // (per_sentence + 2)
    assert all(end <= len(text) for _, end in found.spans)


def test_a_cut_text_keeps_its_end_token(taught, monkeypatch):
    """As CheXbert is given it: [CLS], what fits, [SEP]; a text of exactly as many tokens is whole."""
    count = lambda text: len(taught.tokenizer(clean_text(text))["input_ids"])  # noqa: E731
    whole = "no " * 510
    assert (count(whole), count("no " * 511)) == (512, 513)
    asked = []
    monkeypatch.setattr(taught, "attribute", lambda ids: asked.extend(ids) or [{}] * len(ids))
    found = taught([whole, "no " * 511, "no effusion"])
    cls, sep = taught.tokenizer.cls_token_id, taught.tokenizer.sep_token_id
    (no,) = taught.tokenizer("no", add_special_tokens=False)["input_ids"]
    assert asked[:2] == [[cls, *[no] * 510, sep]] * 2 and asked[2][-1] == sep
    assert [each.truncated for each in found] == [False, True, False]


def test_equal_texts_once(taught, monkeypatch):
    """Each text is attributed once; its errors alone depend on its batch mates, by float32 rounding."""
    alone = taught([REPORTS[0]]) * 3 + taught([REPORTS[3]])
    attribute, asked = taught.attribute, []
    monkeypatch.setattr(taught, "attribute", lambda ids: asked.extend(ids) or attribute(ids))
    together = taught([REPORTS[0]] * 3 + [REPORTS[3]])
    assert len(asked) == 2
    for own, other in zip(together, alone, strict=True):
        assert (own.spans, own.sentences, own.truncated) == (other.spans, other.sentences, other.truncated)
        assert [label[:3] for label in own.labels] == [label[:3] for label in other.labels]
        assert [label[3] for label in own.labels] == pytest.approx([label[3] for label in other.labels], abs=1e-5)
        assert [label[4] for label in own.labels] == [label[4] for label in other.labels]
    assert taught([]) == []


def test_figures_by_hand():
    weighed = {
        "Edema. No.": Weighed([[0, 6]], (2, 1, 0), False, [("Edema", "positive", 9, 0.002, True)]),
        "No. " * 5: Weighed([], (5, 0, 2), True, []),
        "Mass": Weighed([[0, 4]], (1, 1, 0), False, [("Lung Lesion", "uncertain", 65, 0.04, False)]),
    }
    figures = token_weights.summarise(["Edema. No.", "Mass", "No. " * 5, "Edema. No."], weighed)
    assert figures["mean_share_of_characters_lifted"] == pytest.approx((0.6 + 1 + 0 + 0.6) / 4)
    assert figures["mean_nodes"] == pytest.approx((9 + 65 + 9) / 3)
    assert figures["mean_error"] == pytest.approx((0.002 + 0.04 + 0.002) / 3)
    assert figures["largest_error"] == 0.04
    assert {name: figures[name] for name in figures if not name.startswith(("mean", "largest"))} == {
        "reports": 4,
        "distinct_reports": 3,
        "reports_with_labels": 3,
        "labels": 3,
        "sentences": 10,
        "sentences_lifted": 3,
        "labels_that_missed_the_tolerance": 1,
        "reports_truncated": 1,
        "sentences_past_the_last_token": 2,
    }


# --- the script --------------------------------------------------------------------------------------------------


def build(folder: Path, reports: list[str], **columns) -> Path:
    rows = [{"study_id": str(i), "report": text, "labels": [0] * 14, **columns} for i, text in enumerate(reports)]
    write_dataset({"train": lambda: iter(rows), "test": lambda: iter(rows[:2])}, folder, {"labeler": "lexical"})
    return folder


def test_script(call, chexberts, phantom, tmp_path, capsys):
    """Every other column stays as it is, images to the byte; the spans are the library's."""
    out = tmp_path / "out"
    arguments = ("--dataset", phantom, "--model", chexberts["taught"], "--splits", "train", "test")
    call(weigh_tokens.main, *arguments, "--out", out)
    before, after = read_dataset(str(phantom)), read_dataset(str(out))
    assert after["train"].features == before["train"].features
    for split in before:
        old, new = (rows.with_format("arrow")[:] for rows in (before[split], after[split]))
        assert old.drop_columns(["key_spans"]).equals(new.drop_columns(["key_spans"]))
    assert after["validation"]["key_spans"][:] == [None] * 4  # not asked for
    found = TokenWeigher(chexberts["taught"])(after["train"]["report"])
    assert after["train"]["key_spans"][:] == [each.spans for each in found]
    notes = json.loads((out / "token_weights.json").read_text())
    assert notes["figures"]["train"]["reports"] == 12
    assert json.loads((out / "build.json").read_text())["labeler"] == "lexical"
    assert "mean_nodes" in capsys.readouterr().out
    assert not (tmp_path / ".out.parts").exists()


def test_resumed_after_a_kill(call, chexberts, tmp_path):
    """Killed after its first shard and started again: what is written has the bytes of a run that was not."""
    texts = [f"{text} Study {number}." for number in range(60) for text in REPORTS]
    data = build(tmp_path / "data", texts)
    command = [sys.executable, ROOT / "recipes/weigh_tokens.py", "--dataset", data, "--model", chexberts["taught"]]
    threads = str(torch.get_num_threads())  # as the runs below, since another number sums in another order
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    parts = tmp_path / ".out.parts"
    process = subprocess.Popen(
        list(map(str, [*command, "--out", tmp_path / "out"])), env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert 1 <= len(list(parts.glob("[0-9a-f]*.json"))) < 3
    for name in ("out", "whole"):
        call(weigh_tokens.main, *command[2:], "--out", tmp_path / name)
    for file in ("train.parquet", "test.parquet", "token_weights.json", "build.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_finished_shard_is_not_computed_again(taught, tmp_path, monkeypatch):
    first = taught.weigh_shard(REPORTS, tmp_path)
    monkeypatch.setattr(taught, "attribute", None)
    assert taught.weigh_shard(REPORTS, tmp_path) == first
    monkeypatch.setitem(taught.settings, "threshold", 0.9)  # other settings are another shard
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        taught.weigh_shard(REPORTS, tmp_path)


def test_refused(call, chexberts, tmp_path):
    good, model = build(tmp_path / "data", REPORTS), chexberts["taught"]
    bert = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        bert
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    Dataset.from_dict({"report": []}, features=Features({"report": Value("string")})).to_parquet(
        empty / "test.parquet"
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    Dataset.from_dict({"findings": ["x"]}).to_parquet(bare / "train.parquet")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.parquet").write_text("x" * 99)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    done = tmp_path / "done"
    call(weigh_tokens.main, "--dataset", good, "--model", model, "--out", done)
    new = tmp_path / "new"
    for dataset, name, out, more, sentence in [
        (tmp_path / "absent", model, new, (), "there is no data set at"),
        (bare, model, new, (), "has no column report"),
        (broken, model, new, (), "train.parquet or another split is damaged"),
        (empty, model, new, (), "test.parquet has no rows"),
        (good, model, new, ("--splits", "dev"), "no split 'dev' .has train, test"),
        (good, tmp_path / "absent", new, (), "--model: there is no model .*absent: no such folder"),
        (good, bert, new, (), "--model: .*bert has no tokenizer"),
        (good, model, new, ("--threshold", "1"), "--threshold must be"),
        (good, model, new, ("--tolerance", "0"), "--tolerance must be"),
        (good, model, new, ("--max_nodes", "4"), "--max_nodes must be"),
        (good, model, good, (), "is the data set itself"),
        (good, model, tmp_path / "other", (), "no earlier result of this command"),
        (good, model, done, ("--threshold", ".5"), "another run .threshold 0.4 there, 0.5 here"),
        (good, chexberts["random"], done, (), "another run"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call(weigh_tokens.main, "--dataset", dataset, "--model", name, "--out", out, *more)
        assert not new.exists() and not list(tmp_path.glob(".new*"))
    call(weigh_tokens.main, "--dataset", good, "--model", model, "--out", done)  # the same again is allowed
    assert (tmp_path / "other" / "thesis.txt").read_text() == "x"


def test_a_tokenizer_without_offsets(chexberts, monkeypatch):
    monkeypatch.setattr("transformers.BertTokenizer.is_fast", property(lambda self: False))
    with pytest.raises(InputError, match=re.escape("its tokenizer tells no offsets")):
        TokenWeigher(chexberts["taught"])
