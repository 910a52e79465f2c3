"""ROUGE-L of one report as a TRL reward (MRG-R1, Table II, Base + NLG), and METEOR of a corpus, for evaluation."""

import shutil
from collections.abc import Callable, Sequence

from pycocoevalcap.meteor.meteor import Meteor

from rewards.bleu import tokenize
from rewards.inputs import check_untagged, score_texts

BETA = 1.2  # weight of recall over precision: pycocoevalcap's, which the papers' figures use


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by Hyyrö's bit-parallel recurrence (2004).

    pycocoevalcap's own table takes 1 ms a report and over 2 s for 10,000 tokens against 300; this 0.06 and 8 ms.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # a 0 at bit i: the common subsequence grows there
    for token in b:
        if found := row & places.get(token, 0):
            row = (row + found | row - found) & full
    return len(a) - row.bit_count()


def rouge_l(
    generated: Sequence[str], references: Sequence[str], tokens: Callable[[str], str] = tokenize
) -> list[float]:
    """ROUGE-L of each of n pairs (Lin 2004, beta 1.2), each in [0, 1]; equal to pycocoevalcap 1.2 on the same tokens.

    `tokens` turns a text into tokens joined by spaces. An empty generated text scores 0.
    """
    scores = []
    for text, reference in zip(generated, references, strict=True):
        a, b = tokens(text).split(" "), tokens(reference).split(" ")
        common = common_subsequence(b, a)
        precision, recall = common / len(a), common / len(b)
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if common else 0.0)
    return scores


def make_rouge_reward(
    tokens: Callable[[str], str] = tokenize, untagged: str = "whole"
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `rouge_l` of each completion's report, in [0, 1], higher is better (A-24).

    Raises ValueError on an `untagged` mode that does not exist (see `make_mccs_reward`).
    """
    check_untagged(untagged)

    def score(generated: list[str], references: list[str]) -> list[float]:
        return rouge_l(generated, references, tokens)

    def rouge_reward(completions: list, *, report: list[str | None] | None = None, **kwargs) -> list[float | None]:
        """ROUGE-L of each completion's report against the column `report`; a null reference gives None."""
        return score_texts("rouge_reward", score, completions, report, untagged)

    return rouge_reward


rouge_reward = make_rouge_reward()


def corpus_meteor(generated: Sequence[str], references: Sequence[str]) -> float:
    """METEOR 1.5 of n pairs as pycocoevalcap computes it, in [0, 1], on `tokenize`d text. For evaluation, no reward.

    Needs Java: raises RuntimeError where there is none; ValueError where the two differ in length or are empty.
    """
    if shutil.which("java") is None:
        raise RuntimeError("METEOR needs Java and there is no `java` on the PATH: install a Java runtime (8 or newer)")
    if len(generated) != len(references) or not references:
        raise ValueError(f"METEOR needs pairs of reports, not {len(generated)} and {len(references)} texts")

    def lines(texts: Sequence[str]) -> dict[int, list[str]]:
        return {i: [tokenize(text).encode(errors="replace").decode()] for i, text in enumerate(texts)}

    return Meteor().compute_score(lines(references), lines(generated))[0]
