"""MCCS, the margin CheXbert cosine similarity of MRG-R1 (section III-B.2, Eqs. 3 to 6), as a TRL reward."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rewards.inputs import LabelReward
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, to_binary, to_signed

logger = logging.getLogger(__name__)
COS_EPSILON = 1e-8  # Eq. 5


def ccs(generated, reference, uncertain: float = 1.0) -> np.ndarray:
    """CheXbert cosine similarity (Eq. 5) of the signed label vectors (Eqs. 3 and 4).

    `generated`, `reference`: CheXpert states, shape (..., 13) or (..., 14); No Finding (index 13) is dropped.
    `uncertain` is the signed value of an uncertain finding (paper: 1). Returns float64 of shape (...) in [-1, 1];
    0 where either vector is zero.
    """
    z, z_star = (to_signed(states, uncertain)[..., : len(FINDINGS)] for states in (generated, reference))
    # Epsilon keeps a report without any label, a zero vector, at 0 instead of 0/0.
    norms = (np.linalg.norm(z, axis=-1) + COS_EPSILON) * (np.linalg.norm(z_star, axis=-1) + COS_EPSILON)
    return (z * z_star).sum(-1) / norms


def mccs(
    generated, reference, margin: float = 0.2, uncertain: float = 1.0, empty_match: float | None = None
) -> np.ndarray:
    """MCCS (Eq. 6): max((CCS - m) / (1 - m), 0), float64 of shape (...) in [0, 1].

    Arguments as in `ccs`. `margin` is m in (-1, 1); the paper gives no value, ours is 0.2 (A-21). By Eq. 6 a report
    without any label earns max(-m / (1 - m), 0) against a reference without any, which is 0 for m >= 0;
    `empty_match` replaces that value. Raises ValueError on a margin outside (-1, 1).
    """
    if not -1 < margin < 1:
        raise ValueError(f"margin must lie in (-1, 1), not {margin}")
    # A report that names common findings agrees a little with any reference; below the margin that earns nothing, and
    # the rest is stretched so that full agreement still earns 1.
    score = np.maximum((ccs(generated, reference, uncertain) - margin) / (1 - margin), 0.0)
    if empty_match is not None:
        blank = [~to_signed(states)[..., : len(FINDINGS)].any(-1) for states in (generated, reference)]
        score = np.where(blank[0] & blank[1], empty_match, score)
    return score


class MCCSReward(LabelReward):
    """The reward that `make_mccs_reward` returns. Its first call logs the labeler's name."""

    def __init__(self, margin: float, labeler: Callable, uncertain: float, empty_match: float | None, untagged: str):
        mccs(np.zeros((1, 13), int), np.zeros((1, 13), int), margin)  # a bad margin fails here, not in training
        score = partial(mccs, margin=margin, uncertain=uncertain, empty_match=empty_match)
        super().__init__("mccs_reward", score, labeler, untagged)
        self.margin, self.announced = margin, False

    def __call__(self, completions: list, **kwargs) -> list[float | None]:
        if not self.announced:
            logger.warning("mccs_reward: labeler %s, margin %s", self.labeler.name, self.margin)
            self.announced = True
        return super().__call__(completions, **kwargs)

    def log(self, texts, tagged, generated, truth, log_metric, log_extra) -> None:
        """How many reports agree with the reference on each finding, and how many are empty, untagged, equal, cut."""
        if log_metric and len(generated):
            agree = (to_binary(generated) == to_binary(truth)).mean(0)
            for finding, share in zip(FINDINGS, agree, strict=False):
                log_metric(f"agreement/{finding}", float(share))
        if log_metric and texts:
            log_metric("mccs/empty_reports", sum(not text for text in texts) / len(texts))
            log_metric("mccs/untagged", tagged.count(False) / len(tagged))
            log_metric("mccs/distinct_reports", len(set(texts)) / len(texts))
            # a CheXbert reads 512 tokens, a lexicon all
            if truncated := getattr(self.labeler.compute, "truncated", None):
                log_metric("mccs/truncated_reports", truncated(texts).count(True) / len(texts))
        if log_extra:
            log_extra("report", texts)


def make_mccs_reward(
    margin: float = 0.2,
    labeler: Callable[[Sequence[str]], np.ndarray] | None = None,
    uncertain: float = 1.0,
    empty_match: float | None = None,
    untagged: str = "whole",
) -> MCCSReward:
    """Returns a TRL reward function for MCCS with values in [0, 1], higher is better.

    `labeler` maps n texts to CheXpert states of shape (n, 14); without one the LexicalLabeler is used, and its name is
    logged at the first call. `untagged` says what is labelled where a completion has no `<report>` tag: the `whole`
    text outside `<think>`, or nothing, `zero`, so that it earns 0. The other arguments are those of `mccs`.
    Raises ValueError on a margin or a mode that does not exist.

    Example:
        >>> reward = make_mccs_reward(margin=0.2)
        >>> values = reward(["<report>Small effusion.</report>"], report=["Small effusion. No pneumothorax."])
        >>> round(values[0], 3)  # (1, 0) and (1, -1) have the cosine 0.707, and (0.707 - 0.2) / (1 - 0.2) is
        0.634
    """
    return MCCSReward(margin, labeler or LexicalLabeler(), uncertain, empty_match, untagged)


mccs_reward = make_mccs_reward()
