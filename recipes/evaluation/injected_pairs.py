"""Pairs of a reference and a report with a known number of errors, for recipes/train_crepe.py.

A report is its reference with errors put in by the rules of recipes/evaluation/error_injection.py, then perhaps in
other words and in another order, which is no error.
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from recipes.evaluation.error_injection import INJECTIONS, paraphrase
from rewards.crepe import CATEGORIES
from rewards.findings import FindingReader

SHARE = 0.35  # how often each kind of error is tried
EXACT = 0.15  # how often none is
PARAPHRASED = 0.4
SHUFFLED = 0.3
FALSE_FINDING, OMISSION, PLACE, SEVERITY, INVENTED, MISSING = CATEGORIES
REVERSED = {FALSE_FINDING: OMISSION, OMISSION: FALSE_FINDING, INVENTED: MISSING, MISSING: INVENTED}


class InjectedPair(NamedTuple):
    """A reference, a report, and how many errors of each of `CATEGORIES` the report has."""

    reference: str
    report: str
    errors: tuple[int, ...]


class _Sentence(NamedTuple):
    """A sentence that states one finding, and the names that the finding has."""

    text: str
    concepts: frozenset[str]


@lru_cache(maxsize=65536)
def _inject(kind: str, report: str) -> str | None:
    return INJECTIONS[kind](report)


def _single_findings(reports: Sequence[str], reader: FindingReader) -> list[_Sentence]:
    """The distinct sentences of `reports` that state exactly one finding."""
    sentences = list(dict.fromkeys(sentence for report in reports for sentence in split_sentences(report)))
    readings = zip(sentences, reader(sentences), strict=True)
    return [
        _Sentence(text, frozenset(reading.findings[0].concepts))
        for text, reading in readings
        if len(reading.findings) == 1
    ]


def split_sentences(report: str) -> list[str]:
    """The sentences of a report, each with its full stop."""
    return [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+", report) if sentence.strip()]


def _add_finding(report: str, stated: list[_Sentence], reader: FindingReader, rng: random.Random) -> str | None:
    """The report with a finding of another report, of which it says nothing, at any place; by rule where none fits."""
    read = reader([report])[0]
    concepts = read.absent.union(*(finding.concepts for finding in read.findings))
    for sentence in rng.sample(stated, min(5, len(stated))):
        if not sentence.concepts & concepts:
            sentences = split_sentences(report)
            sentences.insert(rng.randint(0, len(sentences)), sentence.text)
            return " ".join(sentences)
    return _inject(FALSE_FINDING, report)


def _pair(reference: str, stated: list[_Sentence], reader: FindingReader, rng: random.Random) -> InjectedPair:
    report, errors = reference, dict.fromkeys(CATEGORIES, 0)
    comparison = rng.choice((INVENTED, MISSING))
    # An omission could take back a false finding and so comes first; of the two about comparisons one alone is tried,
    # since the second could undo the first, and a place or a size is exchanged once, for twice would be never.
    kinds = (OMISSION, OMISSION, PLACE, SEVERITY, comparison, FALSE_FINDING, FALSE_FINDING)
    for kind in kinds if rng.random() >= EXACT else ():
        if rng.random() >= SHARE:
            continue
        false = kind == FALSE_FINDING
        if changed := _add_finding(report, stated, reader, rng) if false else _inject(kind, report):
            report = changed
            errors[kind] += 1
    if rng.random() < PARAPHRASED:
        report = paraphrase(report) or report
    if rng.random() < SHUFFLED:
        sentences = split_sentences(report)
        report = " ".join(rng.sample(sentences, len(sentences)))
    if rng.random() < 0.5:  # the other way round what was added is missing, and what was omitted is false
        return InjectedPair(report, reference, tuple(errors[REVERSED.get(kind, kind)] for kind in CATEGORIES))
    return InjectedPair(reference, report, tuple(errors.values()))


def inject_pairs(reports: Sequence[str], count: int, rng: random.Random) -> list[InjectedPair]:
    """`count` pairs made of `reports`, each of which is taken about equally often.

    A pair has 0 to 7 errors; where a report offers no place for a kind (no side to exchange, no comparison to omit),
    it has none of it. Same reports and same state of `rng`, same pairs. Raises ValueError without reports.

        inject_pairs(["There is a small left effusion."], 1, random.Random(0))
    """
    if not reports:
        raise ValueError("pairs are made of reports, and there is none")
    reader = FindingReader()
    stated = _single_findings(reports, reader)
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(list(reports), len(reports))
    return [_pair(reference, stated, reader, rng) for reference in order[:count]]


def score_counts(counts: np.ndarray, errors: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each of `CATEGORIES`, and of `all` as their sum: how predicted counts (n, 6) agree with the true ones (n, 6).

    `tau`: Kendall's tau-b, -1 to 1, 0 where either never varies; `error`: mean absolute difference, in errors;
    `mean`: the true number of errors a report.
    """
    columns = {kind: (counts[:, i], errors[:, i]) for i, kind in enumerate(CATEGORIES)}
    columns["all"] = (counts.sum(1), errors.sum(1))
    scores = {}
    for name, (predicted, truth) in columns.items():
        varies = np.ptp(predicted) > 0 and np.ptp(truth) > 0
        scores[name] = {
            "tau": float(kendalltau(predicted, truth).statistic) if varies else 0.0,
            "error": float(np.abs(predicted - truth).mean()),
            "mean": float(truth.mean()),
        }
    return scores
