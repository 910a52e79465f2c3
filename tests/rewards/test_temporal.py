"""Temporal F1 by hand, and its published list of words.

Libra's code (X-iZhang/Libra 0d6c56a) and ours agreed on all 3,140 distinct Open-i reports against their neighbours.
"""

import pytest

from rewards.temporal import WORDS, temporal_f1, temporal_words


@pytest.mark.parametrize(
    ("report", "reference", "score"),
    [
        ("Clear.", "No effusion.", 1.0),  # no such word on either side
        ("New effusion.", "Effusion.", 0.0),  # said of the report alone
        ("Effusion.", "New effusion.", 0.0),
        ("New effusion, unchanged heart.", "New effusion. Stable heart.", 0.5),  # stable is not unchanged
        ("NEW effusion", "new", 1.0),
        ("Increased, increased, increased.", "Increased and larger.", 2 / 3),  # a set
        ("The renewed stables", "New.", 0.0),  # whole words
        ("", "Unchanged.", 0.0),
    ],
)
def test_by_hand(report, reference, score):
    assert temporal_f1([report], [reference])[0] == pytest.approx(score, abs=1e-9)


def test_words():
    assert len(WORDS) == 44
    assert temporal_words("Interval-change;\nnew_effusion, st%able (worse)") == {"change", "new", "stable", "worse"}
    assert temporal_f1([], []).shape == (0,)
    with pytest.raises(ValueError, match="zip"):
        temporal_f1(["a"], [])
