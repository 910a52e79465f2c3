"""Confidence intervals for the difference of two systems on the same studies."""

from collections.abc import Callable

import numpy as np


def paired_bootstrap(
    statistic: Callable[[np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference `statistic(first) - statistic(second)` and its 95 % percentile interval: (difference, low, high).

    `first`, `second`: shape (..., n), the n studies in the same order along the last axis. Each resample draws n
    studies with replacement, the same ones for both systems; whatever the other axes hold of a study (counts, training
    seeds) is drawn with it. `statistic` maps such an array to a number. Source: Efron and Tibshirani 1993, chapter 13.
    Raises ValueError where the shapes differ or there is no study.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"two systems need numbers for the same studies; got shapes {first.shape} and {second.shape}")
    studies = first.shape[-1]
    draws = np.random.default_rng(seed).integers(studies, size=(n_resamples, studies))
    differences = [statistic(first[..., rows]) - statistic(second[..., rows]) for rows in draws]
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(statistic(first) - statistic(second)), float(low), float(high)


def micro_f1(counts: np.ndarray) -> float:
    """Micro-F1, 0 to 1, of `match_counts`, shape (3, n), or of several systems' together, (3, ..., n); 0/0 is 0."""
    matched, predicted, actual = counts.reshape(3, -1).sum(1)
    return float(2 * matched / max(predicted + actual, 1))


def match_counts(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """True positives, predicted and actual positives per study, shape (3, n), from boolean labels (n, labels)."""
    return np.stack([(generated & reference).sum(1), generated.sum(1), reference.sum(1)])
