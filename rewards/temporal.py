"""Temporal F1 (Zhang et al. 2024, Libra): do two reports use the same words of change since an earlier study?

The half that is exact without a model: the published list of words, matched whole. It knows neither what changed nor
that "stable" is "unchanged", and two reports without any such word agree by definition.
"""

import re
from collections.abc import Sequence

import numpy as np

_LIST = """bigger change cleared constant decrease decreased decreasing elevated elevation enlarged enlargement
    enlarging expanded greater growing improved improvement improving increase increased increasing larger new
    persistence persistent persisting progression progressive reduced removal resolution resolved resolving
    smaller stability stable stably unchanged unfolded worse worsen worsened worsening unaltered"""
WORDS = frozenset(_LIST.split())  # 44, as Libra's code has them (0d6c56a)
EPSILON = 1e-10
_DROPPED = re.compile(r"[^\w\s.,:;()-]")
_WORD = re.compile(rf"\b(?:{'|'.join(sorted(WORDS))})\b")


def temporal_words(text: str) -> set[str]:
    """The words of `WORDS` in a text, lower case; underscores and hyphens count as spaces, other signs as nothing."""
    plain = _DROPPED.sub("", re.sub(r"[\n_-]+", " ", text))
    return set(_WORD.findall(plain.lower()))


def temporal_f1(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Temporal F1 of n pairs, float64 of shape (n,) in [0, 1], higher is better.

    1 where neither report has such a word; almost 0 where only the generated one has. Raises ValueError where the two
    differ in length.

        temporal_f1(["New effusion."], ["A new, larger effusion."])  # [0.667]
    """
    scores = []
    for report, reference in zip(generated, references, strict=True):
        ours, truth = temporal_words(report), temporal_words(reference)
        if not truth:
            scores.append(EPSILON if ours else 1.0)
            continue
        shared = len(ours & truth) + EPSILON
        precision, recall = shared / (len(ours) + EPSILON), shared / (len(truth) + EPSILON)
        scores.append(2 * precision * recall / (precision + recall + EPSILON))
    return np.array(scores, dtype=np.float64)
