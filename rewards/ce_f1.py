"""CE-F1: the F1 of one report's CheXpert labels, the discrete reward that MRG-R1 compares MCCS with (Table II)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rewards.clinical_efficacy import LABEL_SETS
from rewards.inputs import LabelReward
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, to_binary


def report_f1(
    generated,
    reference,
    label_set: str = "14",
    uncertain_positive: bool = True,
    empty_match: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:
    """F1 of the present labels of each report, 2 TP / (2 TP + FP + FN), float64 of shape (...) in [0, 1].

    `generated`, `reference`: CheXpert states, shape (..., 14). Where neither has a present label, 0/0, the value is
    `empty_match` (ours: 1). With another `beta` it is F_beta, (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP):
    above 1 a label that is missed costs more than one that is made up.
    """
    columns = [CONDITIONS.index(name) for name in LABEL_SETS[label_set]]
    predicted, truth = (to_binary(states, uncertain_positive)[..., columns] for states in (generated, reference))
    sizes = predicted.sum(-1) + beta**2 * truth.sum(-1)
    hits = (1 + beta**2) * (predicted & truth).sum(-1)
    return np.where(sizes == 0, empty_match, hits / np.where(sizes == 0, 1, sizes))


def make_ce_f1_reward(
    labeler: Callable[[Sequence[str]], np.ndarray] | None = None,
    label_set: str = "14",
    uncertain_positive: bool = True,
    empty_match: float = 1.0,
    untagged: str = "whole",
    name: str = "ce_f1_reward",
    beta: float = 1.0,
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `report_f1` of each completion's report, in [0, 1], higher is better.

    `labeler` maps n texts to CheXpert states of shape (n, 14); default LexicalLabeler. `label_set`: 14 (the paper's
    table), 13 (without No Finding) or 5. The paper says neither how uncertain labels count nor what 0/0 is (A-24);
    13 labels with `empty_match` 0 are the F1 of the positive findings alone: a normal study cannot earn anything.
    `name` is what TRL logs it by, `beta` that of `report_f1`. Raises ValueError on a label set or a mode that does
    not exist.

    Example:
        >>> reward = make_ce_f1_reward()
        >>> values = reward(["<report>Effusion.</report>"], report=["Effusion and edema."])
        >>> round(values[0], 3)  # of two findings one is there: 2 / (2 + 1)
        0.667
        >>> positive = make_ce_f1_reward(label_set="13", empty_match=0.0, name="positive_f1_reward")
        >>> positive(["<report>Clear lungs.</report>"], report=["The lungs are clear."])
        [0.0]
        >>> recall = make_ce_f1_reward(label_set="13", beta=2.0)
        >>> round(recall(["<report>Effusion.</report>"], report=["Effusion and edema."])[0], 3)  # 5 / (5 + 4)
        0.556
    """
    if label_set not in LABEL_SETS:
        raise ValueError(f"label_set must be one of {', '.join(LABEL_SETS)}, not {label_set!r}")
    settings = {"label_set": label_set, "uncertain_positive": uncertain_positive}
    settings |= {"empty_match": empty_match, "beta": beta}
    return LabelReward(name, partial(report_f1, **settings), labeler or LexicalLabeler(), untagged)


ce_f1_reward = make_ce_f1_reward()
