"""Corpus figures from sums: against scikit-learn and pycocoevalcap, the bootstrap by hand, Holm and Wilcoxon."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from recipes.evaluation.bootstrap import (
    QUANTITIES,
    READINGS,
    Part,
    bootstrap,
    bootstrap_p,
    draw_counts,
    efficacy_name,
    efficacy_part,
    holm,
    interval,
    label_name,
    means_part,
    wilcoxon_p,
)
from rewards.bleu import bleu_of_sums, match_statistics, tokenize
from rewards.clinical_efficacy import AVERAGES, LABEL_SETS, clinical_efficacy


def whole(part: Part) -> dict[str, float]:
    return {name: float(value) for name, value in part.figures(part.statistics.sum(0)).items()}


states = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=14, max_size=14), min_size=2 * n, max_size=2 * n)
)


@given(states)
def test_clinical_efficacy_is_scikit_learns(rows):
    """rewards.clinical_efficacy calls scikit-learn; every average, label set, reading, and each label."""
    generated, reference = np.array(rows).reshape(2, -1, 14)
    found = whole(efficacy_part(generated, reference))
    for reading in READINGS:
        for label_set, labels in LABEL_SETS.items():
            truth = clinical_efficacy(generated, reference, label_set, reading == "positive")
            for quantity in QUANTITIES:
                for average in AVERAGES:
                    name = efficacy_name(label_set, reading, average, quantity)
                    assert found[name] == pytest.approx(truth[average][quantity], abs=1e-12)
                for label in labels:
                    assert found[label_name(label, reading, quantity)] == pytest.approx(truth[label][quantity])
            for label in labels:
                assert found[label_name(label, reading, "support")] == truth[label]["support"]


texts = st.lists(st.sampled_from(["the", "heart", "is", "normal", ".", "no", "effusion"]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=5))
def test_bleu_is_pycocoevalcaps(pairs):
    scorer = BleuScorer(n=4)
    for text, reference in pairs:
        scorer += (tokenize(text), [tokenize(reference)])
    expected = scorer.compute_score(option="closest")[0]
    sums = match_statistics(*zip(*pairs, strict=True)).sum(0)
    assert bleu_of_sums(sums).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_means_and_several_reports_of_a_study():
    part = means_part({"score": [1.0, 2.0, 6.0]})
    assert whole(part) == {"score": 3.0}
    counts = np.array([[2, 0], [0, 2], [1, 1]])  # the first study, with two reports, twice; the second; both
    values = bootstrap(part, np.array([0, 0, 1]), counts)["score"]
    assert values.tolist() == pytest.approx([3.0, 1.5, 6.0, 3.0])


def test_a_bootstrap_draws_studies_with_replacement():
    counts = draw_counts(50, 200, seed=3)
    assert (counts.sum(1) == 50).all()
    assert (draw_counts(50, 200, seed=3) == counts).all()
    draws = np.random.default_rng(3)  # resample by resample
    assert counts[:2].tolist() == [np.bincount(draws.integers(50, size=50), minlength=50).tolist() for _ in range(2)]
    assert (draw_counts(50, 200, seed=4) != counts).any() and (draw_counts(50, 200) == draw_counts(50, 200, 0)).all()
    assert counts.var() == pytest.approx(1, abs=0.1)  # multinomial: 50 * 1/50 * 49/50


def test_the_interval_of_a_mean_is_the_normal_one():
    """Means of 400 values of standard deviation 1 have a 95 % interval of about 1.96 / 20 on either side."""
    values = np.random.default_rng(0).normal(size=400)
    values = (values - values.mean()) / values.std()
    low, high = interval(bootstrap(means_part({"x": values}), np.arange(400), draw_counts(400, 4000))["x"])
    assert (low, high) == pytest.approx((-0.098, 0.098), abs=0.006)


@pytest.mark.parametrize(
    ("drawn", "p"),
    [
        ([1.0] * 99, 2 / 100),  # never on the other side: no less than the resamples can show
        ([-1.0] * 99, 2 / 100),
        ([1.0] * 89 + [-1.0] * 10, 22 / 100),
        ([0.0] * 99, 1),  # equal systems
    ],
)
def test_bootstrap_p(drawn, p):
    assert bootstrap_p(np.array([1.0, *drawn])) == pytest.approx(p)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0], 2 / 32),  # all five signs alike: 2 of 2 ** 5
        ([1, -2, 3, 4, 5], [0, 0, 0, 0, 0], 6 / 32),  # rank sum 2 against 13: 0, 1, 2 on one side, so 3 of 32, twice
        ([1, 1, 1], [1, 1, 1], None),  # nothing differs
        ([1, 1, 1, 2, 3, 4, 5, 6], [1, 1, 1, 0, 0, 0, 0, 0], 2 / 32),  # pairs that do not differ are left out
    ],
)
def test_wilcoxon_exact(first, second, p):
    found = wilcoxon_p(np.array(first, float), np.array(second, float))
    assert found == (p if p is None else pytest.approx(p))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01; 2 * 0.03; the larger of 0.04 and the one before
        ([0.5, 0.9], [1.0, 1.0]),
        ([None, 0.02], [None, 0.02]),  # only one is a test
        ([], []),
    ],
)
def test_holm(p_values, adjusted):
    found = holm(p_values)
    assert [p is None for p in found] == [p is None for p in adjusted]
    assert [p for p in found if p is not None] == pytest.approx([p for p in adjusted if p is not None])
