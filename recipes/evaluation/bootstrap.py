"""Corpus figures from sums over reports, so that a bootstrap over studies is one matrix product.

A `Part` holds what each report adds to a family of figures and how these follow from the sums: BLEU from matched
n-grams and lengths, clinical efficacy from true, predicted and actual positives, METEOR from its aligner's counts, and
what is a mean of reports from values and their number. The figures of a corpus are those of the sums; those of a
resample are those of the sums weighted by how often each study was drawn. No report is scored twice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from rewards.clinical_efficacy import AVERAGES, LABEL_SETS
from rewards.labels import CONDITIONS, to_binary

QUANTITIES = ("precision", "recall", "f1")
READINGS = ("positive", "negative")  # what an uncertain label counts as
CHUNK = 500  # resamples at a time: 500 x 3,000 studies in float64 take 12 MB


class Part(NamedTuple):
    """A family of figures of n reports.

    `statistics`: (n, k), what is added up. `figures`: maps sums (..., k) to {name: values (...)}. `reports`: the
    figure of each report alone, {name: (n,)}, for tests on paired reports.
    """

    statistics: np.ndarray
    figures: Callable[[np.ndarray], dict[str, np.ndarray]]
    reports: dict[str, np.ndarray]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0)


def means_part(values: dict[str, Sequence[float]]) -> Part:
    """Figures that are means over reports; `values`: name to one number per report, all of the same length."""
    reports = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    columns = np.stack(list(reports.values()), axis=1)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(reports)}

    return Part(np.concatenate([columns, np.ones((len(columns), 1))], axis=1), figures, reports)


def efficacy_name(label_set: str, reading: str, average: str, quantity: str) -> str:
    """The name of a figure of clinical efficacy, such as ce/14/positive/micro/f1."""
    return f"ce/{label_set}/{reading}/{average}/{quantity}"


def label_name(label: str, reading: str, quantity: str) -> str:
    """The name of one label's figure, such as label/positive/Edema/f1; quantities also support and predicted."""
    return f"label/{reading}/{label}/{quantity}"


def efficacy_part(generated: np.ndarray, reference: np.ndarray) -> Part:
    """Clinical efficacy of CheXpert states (n, 14): every label set, average and reading, and per label.

    The values are those of `rewards.clinical_efficacy.clinical_efficacy`, named by `efficacy_name` and `label_name`.
    Of `reports` the example-based value serves every average.
    """
    blocks, reports = [], {}
    for reading in READINGS:
        predicted, truth = (to_binary(states, reading == "positive") for states in (generated, reference))
        blocks += [predicted & truth, predicted, truth]
    for reading, (matched, predicted, truth) in zip(READINGS, (blocks[:3], blocks[3:]), strict=True):
        for label_set, names in LABEL_SETS.items():
            columns = [CONDITIONS.index(name) for name in names]
            sums = [counts[:, columns].sum(1) for counts in (matched, predicted, truth)]
            for quantity, values in zip(QUANTITIES, _precision_recall_f1(*sums), strict=True):
                reports |= {efficacy_name(label_set, reading, average, quantity): values for average in AVERAGES}
    example_names = [name for name in reports if "/example/" in name]
    size = len(CONDITIONS)
    statistics = np.concatenate(
        [*blocks, np.stack([reports[name] for name in example_names], axis=1), np.ones((len(generated), 1))], axis=1
    ).astype(np.float64)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        result = {name: ratio(sums[..., 6 * size + i], sums[..., -1]) for i, name in enumerate(example_names)}
        for start, reading in zip((0, 3 * size), READINGS, strict=True):
            counts = [sums[..., start + i * size : start + (i + 1) * size] for i in range(3)]
            per_label = _precision_recall_f1(*counts)
            for i, label in enumerate(CONDITIONS):
                for quantity, values in zip(QUANTITIES, per_label, strict=True):
                    result[label_name(label, reading, quantity)] = values[..., i]
                result[label_name(label, reading, "predicted")] = counts[1][..., i]
                result[label_name(label, reading, "support")] = counts[2][..., i]
            for label_set, names in LABEL_SETS.items():
                columns = [CONDITIONS.index(name) for name in names]
                weights = counts[2][..., columns]
                micro = _precision_recall_f1(*(block[..., columns].sum(-1) for block in counts))
                for quantity, pooled, single in zip(QUANTITIES, micro, per_label, strict=True):
                    weighted = ratio((single[..., columns] * weights).sum(-1), weights.sum(-1))
                    averages = {"micro": pooled, "macro": single[..., columns].mean(-1), "weighted": weighted}
                    for average, values in averages.items():
                        result[efficacy_name(label_set, reading, average, quantity)] = values
        return result

    return Part(statistics, figures, reports)


def _precision_recall_f1(
    matched: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return ratio(matched, predicted), ratio(matched, truth), ratio(2 * matched, predicted + truth)


def draw_counts(studies: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each study is drawn in each resample, uint16, (resamples, studies): studies draws with replacement."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, studies), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(studies, size=studies), minlength=studies)
    return counts


def add_up(statistics: np.ndarray, studies: np.ndarray) -> np.ndarray:
    """Sums (studies, k) of the rows (n, k) of each study; `studies`: (n,), the study's number of each row."""
    sums = np.zeros((studies.max() + 1, statistics.shape[1]))
    np.add.at(sums, studies, statistics)
    return sums


def bootstrap(
    part: Part,
    studies: np.ndarray,
    counts: np.ndarray,
    names: Sequence[str] | None = None,
    seed_counts: np.ndarray | None = None,
) -> dict:
    """{figure: (1 + resamples,)}: the corpus's own value, then that of each resample.

    `studies`: (n,), the study's number of each report, so that all reports of a study are drawn together; `counts`:
    see `draw_counts`, the same for all systems, so that differences are paired. `names`: of these figures only.
    `seed_counts`: (resamples, seeds), how often each training seed is drawn, independently of the studies; the reports
    of a study then follow each other in the order of the seeds. Source: Efron and Tibshirani 1993, chapter 13.
    """
    if seed_counts is None:
        seed_counts = np.ones((len(counts), 1))
    seeds = seed_counts.shape[1]
    # A report counts as often as its study times its seed was drawn: one sum per study and seed is all it takes.
    sums = [add_up(part.statistics[seed::seeds], studies[seed::seeds]) for seed in range(seeds)]
    batches = [part.figures(part.statistics.sum(0)[None])]
    for start in range(0, len(counts), CHUNK):
        rows = slice(start, start + CHUNK)
        draws = counts[rows].astype(np.float64)
        total = sum(seed_counts[rows, seed, None] * (draws @ sums[seed]) for seed in range(seeds))
        batches.append(part.figures(total))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names or batches[0]}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of what follows the first of `values` (see `bootstrap`)."""
    low, high = np.percentile(values[1:], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value that a difference is 0: twice the smaller share of resamples on either side of 0.

    `differences`: as from `bootstrap`, the first one is the corpus's own. At least 2 / (resamples + 1), for a finite
    number of resamples cannot show less (Davison and Hinkley 1997, section 4.2).
    """
    drawn = differences[1:]
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(drawn) + 1)))


def wilcoxon_p(first: np.ndarray, second: np.ndarray) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired values (n,); None where no pair differs.

    Pairs without a difference are left out, as Wilcoxon did; differences below 1e-12 are rounding.
    """
    differences = np.asarray(first) - np.asarray(second)
    differences = differences[np.abs(differences) > 1e-12]
    return float(wilcoxon(differences).pvalue) if len(differences) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979) over the given p-values; None stays None and is not counted."""
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        adjusted[i] = highest
    return adjusted
