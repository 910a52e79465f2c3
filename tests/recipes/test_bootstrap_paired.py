"""The paired bootstrap against scikit-learn, scipy, a direct loop and values worked by hand."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from recipes.evaluation.bootstrap import match_counts, micro_f1, paired_bootstrap

RNG = np.random.default_rng(0)
REFERENCE = RNG.random((60, 13)) < 0.2
GOOD = REFERENCE ^ (RNG.random((60, 13)) < 0.05)
POOR = REFERENCE ^ (RNG.random((60, 13)) < 0.25)


@pytest.mark.parametrize(
    "generated, reference, counts, f1",
    [
        ([[1, 1], [0, 0]], [[1, 0], [0, 1]], [[1, 0], [2, 0], [1, 1]], 0.5),  # 2 x 1 / (2 + 2)
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]], 0.0),  # nothing to find, nothing found: 0/0
        ([[1, 1], [1, 0]], [[1, 1], [1, 0]], [[2, 1], [2, 1], [2, 1]], 1.0),  # all found
    ],
)
def test_counts_by_hand(generated, reference, counts, f1):
    found = match_counts(np.array(generated, dtype=bool), np.array(reference, dtype=bool))
    assert found.tolist() == counts
    assert micro_f1(found) == f1


@pytest.mark.parametrize("generated", [GOOD, POOR, ~REFERENCE])
def test_micro_f1_is_scikit_learns(generated):
    expected = f1_score(REFERENCE, generated, average="micro", zero_division=0)
    assert micro_f1(match_counts(generated, REFERENCE)) == pytest.approx(expected)


def test_pooled_micro_f1_adds_the_systems_counts():
    both = np.stack([match_counts(GOOD, REFERENCE), match_counts(POOR, REFERENCE)], axis=1)
    stacked = match_counts(np.concatenate([GOOD, POOR]), np.concatenate([REFERENCE, REFERENCE]))
    assert micro_f1(both) == micro_f1(stacked)


def test_interval_of_a_mean_is_scipys():
    first, second = RNG.normal(1.0, 1.0, 200), RNG.normal(0.8, 1.0, 200)
    expected = bootstrap((first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, rng=1)
    difference, low, high = paired_bootstrap(np.mean, first, second, n_resamples=9999)
    assert difference == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)  # BCa, other draws


def test_interval_of_micro_f1_is_a_direct_loops():
    first, second = match_counts(GOOD, REFERENCE), match_counts(POOR, REFERENCE)
    draws = np.random.default_rng(3)
    differences = []
    for _ in range(4000):
        rows = draws.integers(60, size=60)
        scores = []
        for generated in (GOOD, POOR):
            matched = (generated[rows] & REFERENCE[rows]).sum()
            scores.append(2 * matched / (generated[rows].sum() + REFERENCE[rows].sum()))
        differences.append(scores[0] - scores[1])
    _, low, high = paired_bootstrap(micro_f1, first, second, n_resamples=4000)
    assert (low, high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=0.01)


@pytest.mark.parametrize(("options", "resamples", "seed"), [({}, 2000, 0), ({"n_resamples": 50, "seed": 7}, 50, 7)])
def test_the_seed_draws_the_studies(options, resamples, seed):
    """`resamples` draws of the same ten studies for both systems: their interval, and no other seed's."""
    first, second = np.arange(10.0) ** 2, np.arange(10.0)
    rows = np.random.default_rng(seed).integers(10, size=(resamples, 10))
    low, high = np.percentile((first - second)[rows].mean(1), [2.5, 97.5])
    assert paired_bootstrap(np.mean, first, second, **options) == pytest.approx((28.5 - 4.5, low, high))


def test_a_study_keeps_its_seeds_together():
    first = np.tile([0.0, 1.0], 20)
    _, low, high = paired_bootstrap(np.mean, first, np.zeros(40))
    _, low_3, high_3 = paired_bootstrap(np.mean, np.stack([first] * 3), np.zeros((3, 40)))
    assert (low_3, high_3) == pytest.approx((low, high))  # three equal seeds are no more evidence than one


def test_equal_systems_have_no_difference():
    assert paired_bootstrap(np.mean, np.arange(9.0), np.arange(9.0)) == (0.0, 0.0, 0.0)  # paired: the noise cancels


@pytest.mark.parametrize("first, second", [(np.ones(3), np.ones(4)), (np.ones(0), np.ones(0))])
def test_studies_must_match(first, second):
    with pytest.raises(ValueError, match="the same studies"):
        paired_bootstrap(np.mean, first, second)
