"""The paired bootstrap of two systems against scikit-learn, scipy, a direct loop and values worked by hand."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import f1_score

from recipes.evaluation.bootstrap import bootstrap, draw_counts, efficacy_name, efficacy_part, interval, means_part

MICRO = efficacy_name("13", "positive", "micro", "f1")
RNG = np.random.default_rng(0)
REFERENCE = (RNG.random((60, 14)) < 0.2).astype(int)  # 0 blank, 1 positive
GOOD = REFERENCE ^ (RNG.random((60, 14)) < 0.05)
POOR = REFERENCE ^ (RNG.random((60, 14)) < 0.25)


def difference(first, second, figure: str, counts: np.ndarray, runs: int = 1) -> np.ndarray:
    """First minus second, of the corpus and of every resample; `runs`: reports of a study, run by run."""
    studies = np.tile(np.arange(counts.shape[1]), runs)
    values = [bootstrap(part, studies, counts, [figure])[figure] for part in (first, second)]
    return values[0] - values[1]


@pytest.mark.parametrize("generated", [GOOD, POOR, 1 - REFERENCE])
def test_micro_f1_is_scikit_learns(generated):
    expected = f1_score(REFERENCE[:, :13], generated[:, :13], average="micro", zero_division=0)
    values = bootstrap(efficacy_part(generated, REFERENCE), np.arange(60), draw_counts(60, 2), [MICRO])
    assert values[MICRO][0] == pytest.approx(expected)


def test_interval_of_a_mean_is_scipys():
    first, second = RNG.normal(1.0, 1.0, 200), RNG.normal(0.8, 1.0, 200)
    expected = scipy_bootstrap((first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, rng=1)
    values = difference(means_part({"x": first}), means_part({"x": second}), "x", draw_counts(200, 9999))
    assert values[0] == pytest.approx(first.mean() - second.mean())
    assert interval(values) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)  # BCa, other draws


def test_interval_of_micro_f1_is_a_direct_loops():
    draws = np.random.default_rng(3)
    differences = []
    for _ in range(4000):
        rows = draws.integers(60, size=60)
        scores = []
        for generated in (GOOD[:, :13], POOR[:, :13]):
            matched = (generated[rows] & REFERENCE[rows, :13]).sum()
            scores.append(2 * matched / (generated[rows].sum() + REFERENCE[rows, :13].sum()))
        differences.append(scores[0] - scores[1])
    parts = (efficacy_part(generated, REFERENCE) for generated in (GOOD, POOR))
    values = difference(*parts, MICRO, draw_counts(60, 4000, 3))
    assert values[1:] == pytest.approx(differences)  # the same draws


def test_a_study_keeps_its_runs_together():
    """Three equal runs are no more evidence than one."""
    first = np.tile([0.0, 1.0], 20)
    once, thrice = (
        difference(means_part({"x": np.tile(first, runs)}), means_part({"x": np.zeros(40 * runs)}), "x",
                   draw_counts(40, 500), runs)
        for runs in (1, 3)
    )  # fmt: skip
    assert once == pytest.approx(thrice)


def test_equal_systems_have_no_difference():
    part = means_part({"x": np.arange(9.0)})
    assert not difference(part, part, "x", draw_counts(9, 100)).any()  # paired: the noise cancels


def test_one_seed_drawn_once_is_no_draw_of_seeds():
    """Reports 3 and 1 of one study, drawn together, and 5 of another."""
    part, studies = means_part({"a": [3.0, 1.0, 5.0]}), np.array([0, 0, 1])
    counts = np.array([[1, 1], [2, 0], [0, 2]])
    values = bootstrap(part, studies, counts, seed_counts=np.ones((3, 1)))["a"]
    np.testing.assert_allclose(values, [3, 3, 2, 5])
    np.testing.assert_allclose(values, bootstrap(part, studies, counts)["a"])


def test_seeds_are_drawn_beside_studies():
    """Two studies, reports 1 and 2 (seed 0), 5 and 8 (seed 1)."""
    part, counts = means_part({"a": [1.0, 5.0, 2.0, 8.0]}), np.array([[1, 1], [2, 0], [1, 1], [0, 2]])
    seed_counts = np.array([[1, 1], [1, 1], [2, 0], [0, 2]], float)
    values = bootstrap(part, np.array([0, 0, 1, 1]), counts, seed_counts=seed_counts)["a"]
    np.testing.assert_allclose(values, [4, 4, 3, 1.5, 8])
