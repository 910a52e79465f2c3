"""BLEU of one report as a TRL reward (MRG-R1, Table II, Base + NLG), and the tokens of all text-overlap rewards."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test

from rewards.inputs import TextReward

TOKEN = re.compile(r"\d+(?:\.\d+)+|\w+(?:['-]\w+)*|[^\w\s]")


def tokenize(text: str) -> str:
    """The tokens of a report, joined by single spaces: lower case, every punctuation mark a token of its own.

    Decimals ("1.5"), hyphenated words ("right-sided") and apostrophes stay whole; white space only separates. Text as
    data sets ship it tokenised ("no effusion . heart is normal .") comes back as it was. pycocoevalcap's own tokenizer
    needs Java and drops punctuation, which the field's report figures count.
    """
    return " ".join(TOKEN.findall(text.lower()))


@lru_cache(maxsize=64)  # n-grams of one group's reference: about 50 kB for 60 tokens
def _reference_counts(text: str, order: int, tokens: Callable[[str], str]) -> tuple:
    return cook_refs([tokens(text)], n=order)


def bleu(
    generated: Sequence[str],
    references: Sequence[str],
    order: int = 4,
    smoothing: float = 0.1,
    tokens: Callable[[str], str] = tokenize,
) -> list[float]:
    """Sentence BLEU of each of n pairs, each in [0, 1].

    `smoothing` replaces an n-gram order's count of 0 matches (Chen and Cherry 2014, method 1), and a text shorter than
    `order` tokens is judged by the orders that it has; no common token scores 0. With 0 the figures are those of
    pycocoevalcap 1.2, where a report without a common 4-gram is practically 0 whatever else it says.
    `tokens` turns a text into tokens joined by spaces. Raises ValueError where `order` < 1 or `smoothing` < 0.
    """
    if order < 1 or smoothing < 0:
        raise ValueError(f"order must be at least 1 and smoothing at least 0, not {order} and {smoothing}")
    scorer = BleuScorer(n=order)
    for text, reference in zip(generated, references, strict=True):
        counts = _reference_counts(reference, order, tokens)
        scorer.crefs.append(counts)
        scorer.ctest.append(cook_test(tokens(text), counts, n=order))
    if not smoothing:
        return scorer.compute_score(option="closest")[1][order - 1]
    lengths = [counts["testlen"] if counts["correct"][0] else 0 for counts in scorer.ctest]
    for counts in scorer.ctest:
        counts["correct"] = [matches or smoothing for matches in counts["correct"]]
    by_order = scorer.compute_score(option="closest")[1]
    return [by_order[min(order, length) - 1][i] if length else 0.0 for i, length in enumerate(lengths)]


def match_statistics(
    generated: Sequence[str], references: Sequence[str], order: int = 4, tokens: Callable[[str], str] = tokenize
) -> np.ndarray:
    """What BLEU adds up over the pairs of a corpus: float64, shape (n, 2 + 2 `order`).

    Columns: generated tokens, reference tokens, matched n-grams of each order, generated n-grams of each order.
    """
    rows = []
    for text, reference in zip(generated, references, strict=True):
        counts = cook_test(tokens(text), _reference_counts(reference, order, tokens), n=order)
        rows.append([counts["testlen"], counts["reflen"][0], *counts["correct"], *counts["guess"]])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 2 + 2 * order)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-k, shape (..., k), of sums (..., 2 + 2k) of `match_statistics`; equal to pycocoevalcap 1.2."""
    order = sums.shape[-1] // 2 - 1
    length, reference = sums[..., 0], sums[..., 1]
    matched, guessed = sums[..., 2 : 2 + order], sums[..., 2 + order :]
    precision = np.cumprod((matched + 1e-15) / (guessed + 1e-9), axis=-1) ** (1 / np.arange(1, order + 1))
    shortness = (length + 1e-15) / (reference + 1e-9)
    return precision * np.exp(np.minimum(1 - 1 / shortness, 0.0))[..., None]


def make_bleu_reward(
    order: int = 4, smoothing: float = 0.1, tokens: Callable[[str], str] = tokenize, untagged: str = "whole"
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `bleu` of each completion's report, in [0, 1], higher is better.

    The paper names neither order nor smoothing: BLEU-4, smoothed. RadCliQ's part is `order=2`. An empty report
    scores 0. Raises ValueError as `bleu` does, and on an `untagged` mode that does not exist (see `make_mccs_reward`).

    Example:
        >>> reward = make_bleu_reward(order=1)
        >>> values = reward(["No effusion."], report=["No effusion or edema."])
        >>> round(values[0], 3)  # all three tokens match, and exp(1 - 5 / 3) is the penalty for being shorter
        0.513
    """
    bleu([], [], order, smoothing)
    return TextReward("bleu_reward", partial(bleu, order=order, smoothing=smoothing, tokens=tokens), untagged)


bleu_reward = make_bleu_reward()
