"""METEOR, for evaluation: that of a corpus, version 1.5, by its Java, and a stand-in of nltk's, which needs none."""

import shutil
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from pycocoevalcap.meteor.meteor import Meteor

from rewards.bleu import tokenize

ALPHA, BETA_METEOR, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's for English, with the weights of its matchers:
MATCHERS = (1.0, 0.6, 0.8, 0.6)  # the word itself, its stem, a synonym, a paraphrase
METEOR_TOKENS = 2000  # of a text are aligned: the aligner's memory grows with their square, and 10,000 take over 2 GB


def meteor_statistics(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What METEOR 1.5's aligner counts in each of n pairs of `tokenize`d texts, float64, (n, 23), to be added up.

    Columns: tokens of the generated text and of the reference, function words of both; of each of the four matchers
    the content words matched in both texts and the function words in both; chunks; matched tokens of both texts.
    A text's first 2,000 tokens are read. Needs Java: raises RuntimeError where there is none or it gives up;
    ValueError where the two differ in length or are empty.
    """
    if shutil.which("java") is None:
        raise RuntimeError("METEOR needs Java and there is no `java` on the PATH: install a Java runtime (8 or newer)")
    if len(generated) != len(references) or not references:
        raise ValueError(f"METEOR needs pairs of reports, not {len(generated)} and {len(references)} texts")
    scorer = Meteor()
    clean = [
        [" ".join(tokenize(text).encode(errors="replace").decode().split(" ")[:METEOR_TOKENS]) for text in texts]
        for texts in (generated, references)
    ]
    rows = []
    for text, reference in zip(*clean, strict=True):
        row = scorer._stat(text, [reference]).split()
        if len(row) != 23:
            raise RuntimeError(f"METEOR's Java gave no answer for pair {len(rows)}: {' '.join(row) or 'it ended'}")
        rows.append(row)
    counts = np.array(rows, dtype=np.float64)
    identical = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[identical, 20] = 0  # an exact match is not fragmented at all
    return counts


def meteor_of_sums(sums: np.ndarray) -> np.ndarray:
    """METEOR, shape (...), of sums (..., 23) of `meteor_statistics` (Denkowski and Lavie 2014, equations 1 to 4)."""
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)

    def share(content: int, function: int, length: np.ndarray, function_words: np.ndarray) -> np.ndarray:
        matched = (DELTA * matches[..., content] + (1 - DELTA) * matches[..., function]) @ np.array(MATCHERS)
        weight = DELTA * (length - function_words) + (1 - DELTA) * function_words
        return np.divide(matched, weight, out=np.zeros_like(matched), where=weight > 0)

    precision = share(0, 2, sums[..., 0], sums[..., 2])
    recall = share(1, 3, sums[..., 1], sums[..., 3])
    below = (1 - ALPHA) * recall + ALPHA * precision  # of precision * recall: the weighted harmonic mean
    mean = np.divide(precision * recall, below, out=np.zeros_like(below), where=below > 0)
    matched = (sums[..., 21] + sums[..., 22]) / 2
    fragments = np.divide(sums[..., 20], matched, out=np.zeros_like(matched), where=matched > 0)
    return mean * (1 - GAMMA * fragments**BETA_METEOR)


def meteor_lite(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """nltk's METEOR of each of n pairs of `tokenize`d texts, in [0, 1], for evaluation where there is no Java.

    Not the METEOR of the papers: it is the first version's (Banerjee and Lavie 2005; alpha 0.9, beta 3, gamma 0.5),
    which counts function words as much as others, and without WordNet, which nltk would download: words match as they
    are or by Porter's stem, never as synonyms or paraphrases. An empty generated text scores 0, an identical one of n
    tokens 1 - 0.5 / n^3. A text's first 2,000 tokens are read.
    """
    from nltk.translate.meteor_score import single_meteor_score  # a second, which those who have Java need not wait

    synonyms = SimpleNamespace(synsets=lambda word: ())
    return [
        single_meteor_score(*(tokenize(text).split()[:METEOR_TOKENS] for text in pair), wordnet=synonyms)
        for pair in zip(references, generated, strict=True)
    ]
