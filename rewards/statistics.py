"""Confidence intervals for the difference of two systems on the same studies."""

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap


def paired_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], first: np.ndarray, second: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Difference `statistic(first) - statistic(second)` and its 95 % percentile interval: (difference, low, high).

    `first`, `second`: shape (k, n), k numbers for each of n studies, in the same order. `statistic` maps an array of
    shape (..., k, m) of resampled studies to shape (...). The studies are resampled 2,000 times, the same ones for
    both systems.
    """

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(first[:, rows].swapaxes(0, -2) if rows.ndim > 1 else first[:, rows]) - statistic(
            second[:, rows].swapaxes(0, -2) if rows.ndim > 1 else second[:, rows]
        )

    studies = np.arange(first.shape[1])
    result = bootstrap(
        (studies,),
        difference,
        n_resamples=2000,
        batch=200,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(difference(studies)), float(low), float(high)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over studies of the one number per study: (..., 1, m) -> (...)."""
    return values[..., 0, :].mean(-1)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Micro-F1 from true positives, predicted and actual positives per study: (..., 3, m) -> (...); 0/0 is 0."""
    matched, predicted, actual = np.moveaxis(counts.sum(-1), -1, 0)
    return 2 * matched / np.maximum(predicted + actual, 1)


def match_counts(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """True positives, predicted and actual positives per study, shape (3, n), from boolean labels (n, labels)."""
    return np.stack([(generated & reference).sum(1), generated.sum(1), reference.sum(1)])
