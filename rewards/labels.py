"""The 14 CheXpert conditions, their four states and every encoding of them that the papers use.

Order and raw codes are CheXbert's (Smit et al. 2020): 13 findings, then No Finding. Arrays of states have shape
(..., 14) or (..., 13) and hold `CheXpertState` values. Sources: MRG-R1 Eq. 3; LLM-RG4, Algorithm 1.
"""

from enum import IntEnum

import numpy as np

CONDITIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
FINDINGS = CONDITIONS[:13]  # without No Finding: the labels of the reward (MRG-R1 Eq. 4)
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")  # CheXpert's competition labels
NO_FINDING = CONDITIONS.index("No Finding")


class CheXpertState(IntEnum):
    """State of one condition in one report, in CheXbert's raw order."""

    BLANK = 0
    POSITIVE = 1
    NEGATIVE = 2
    UNCERTAIN = 3


def _check(states) -> np.ndarray:
    states = np.asarray(states)
    if states.size and (not np.issubdtype(states.dtype, np.integer) or states.min() < 0 or states.max() > 3):
        raise ValueError(
            "labels must be CheXpert states: integers 0 (blank), 1 (positive), 2 (negative) or 3 (uncertain)"
        )
    return states


def _take(table: list[float], states) -> np.ndarray:
    return np.asarray(table, dtype=np.float64)[_check(states)]


def to_signed(states, uncertain: float = 1.0) -> np.ndarray:
    """Signed values f of MRG-R1 Eq. 3: positive 1, negative -1, blank 0, uncertain `uncertain` (paper: 1). Float64."""
    return _take([0.0, 1.0, -1.0, uncertain], states)


def from_csv(values) -> np.ndarray:
    """States of CheXpert's CSV encoding: positive 1, negative 0, uncertain -1, blank NaN; same shape.

    Raises ValueError on any other value.
    """
    values = np.asarray(values, dtype=np.float64)
    states = np.select(
        [np.isnan(values), values == 1, values == 0, values == -1],
        [CheXpertState.BLANK, CheXpertState.POSITIVE, CheXpertState.NEGATIVE, CheXpertState.UNCERTAIN],
        default=-1,
    )
    if (states < 0).any():
        raise ValueError("a CheXpert CSV holds 1, 0, -1 or an empty cell; found " + str(values[states < 0].flat[0]))
    return states


def to_binary(states, uncertain_positive: bool = True) -> np.ndarray:
    """Presence: positive is True; uncertain is True where `uncertain_positive`; negative and blank False. Boolean."""
    states = _check(states)
    present = states == CheXpertState.POSITIVE
    return present | (states == CheXpertState.UNCERTAIN) if uncertain_positive else present
