import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, fbeta_score

from rewards import ce_f1_reward, make_ce_f1_reward
from rewards.ce_f1 import report_f1
from rewards.labels import CONDITIONS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
pairs = st.tuples(*[arrays(np.int64, (6, 14), elements=st.integers(0, 3))] * 2)


def states(**named: CheXpertState) -> list[int]:
    return [named.get(condition.split()[-1].lower(), BLANK) for condition in CONDITIONS]


@pytest.mark.parametrize(
    ("generated", "reference", "options", "f1"),
    [
        (states(edema=POSITIVE), states(edema=POSITIVE, fracture=POSITIVE), {}, 2 / 3),  # 2 * 1 / (1 + 2)
        (states(edema=UNCERTAIN), states(edema=POSITIVE), {}, 1.0),  # uncertain counts as present
        (states(edema=UNCERTAIN), states(edema=POSITIVE), {"uncertain_positive": False}, 0.0),
        (states(edema=NEGATIVE), states(edema=BLANK), {}, 1.0),  # nothing present on either side: 0/0
        (states(edema=NEGATIVE), states(edema=BLANK), {"empty_match": 0.0}, 0.0),
        (states(edema=POSITIVE), states(), {"empty_match": 0.0}, 0.0),  # one side present: no 0/0
        (states(finding=POSITIVE), states(finding=POSITIVE, fracture=POSITIVE), {}, 2 / 3),  # No Finding is a label
        (states(finding=POSITIVE), states(finding=POSITIVE, fracture=POSITIVE), {"label_set": "13"}, 0.0),
        (states(edema=POSITIVE, fracture=POSITIVE), states(edema=POSITIVE), {"label_set": "5"}, 1.0),  # not of the 5
        (states(edema=POSITIVE), states(edema=POSITIVE, fracture=POSITIVE), {"beta": 2.0}, 5 / 9),  # 5 + 4 of one FN
        (states(edema=POSITIVE, fracture=POSITIVE), states(edema=POSITIVE), {"beta": 2.0}, 5 / 6),  # 5 + 1 of one FP
        (states(edema=POSITIVE), states(edema=POSITIVE, fracture=POSITIVE), {"beta": 0.5}, 1.25 / 1.5),
    ],
)
def test_values_by_hand(generated, reference, options, f1):
    assert report_f1([generated], [reference], **options) == pytest.approx([f1])


@given(pairs)
def test_equals_scikit_learn(pair):
    generated, reference = ((states == POSITIVE) | (states == UNCERTAIN) for states in pair)
    expected = [f1_score(t, g, zero_division=1.0) for g, t in zip(generated, reference, strict=True)]
    assert report_f1(*pair) == pytest.approx(expected)


@given(pairs, st.sampled_from([0.5, 1.0, 2.0]))
def test_f_beta_equals_scikit_learn(pair, beta):
    generated, reference = ((states == POSITIVE) | (states == UNCERTAIN) for states in pair)
    expected = [fbeta_score(t, g, beta=beta, zero_division=0.0) for g, t in zip(generated, reference, strict=True)]
    assert report_f1(*pair, empty_match=0.0, beta=beta) == pytest.approx(expected)


LABELS = {
    "edema, perhaps a fracture": states(edema=POSITIVE, fracture=UNCERTAIN),
    "normal": states(finding=POSITIVE, edema=NEGATIVE),
    "silent": states(),
    "": states(),
}


def labeler(texts: list[str]) -> np.ndarray:
    return np.array([LABELS[text] for text in texts])


@pytest.mark.parametrize(
    ("text", "reference", "options", "reward"),
    [
        ("edema, perhaps a fracture", states(edema=POSITIVE, devices=POSITIVE), {}, 2 / 4),  # 2 * 1 / (2 + 2)
        ("edema, perhaps a fracture", states(edema=POSITIVE, devices=POSITIVE), {"uncertain_positive": False}, 2 / 3),
        ("edema, perhaps a fracture", states(edema=POSITIVE, devices=POSITIVE), {"label_set": "5"}, 1),  # edema alone
        ("edema, perhaps a fracture", states(edema=POSITIVE), {"untagged": "zero"}, 0),  # no tags: an empty report
        ("normal", states(finding=POSITIVE, fracture=POSITIVE), {}, 2 / 3),  # No Finding is the 14th label
        ("normal", states(finding=POSITIVE, fracture=POSITIVE), {"label_set": "13"}, 0),
        ("normal", states(finding=POSITIVE, fracture=UNCERTAIN), {"uncertain_positive": False}, 1),
        ("silent", states(edema=NEGATIVE), {}, 1),  # 0/0
        ("silent", states(edema=NEGATIVE), {"empty_match": 0.25}, 0.25),
        ("normal", states(finding=POSITIVE), {"label_set": "13", "empty_match": 0.0}, 0),
    ],
)
def test_options_of_the_factory(text, reference, options, reward):
    assert make_ce_f1_reward(labeler, **options)([text], labels=[reference]) == [pytest.approx(reward)]


def test_as_a_reward():
    reports = ["Pulmonary edema.", "No pulmonary edema.", "<think>Edema.</think><report>Rib fracture.</report>"]
    assert ce_f1_reward(reports, report=["There is edema. Rib fracture."] * 3) == pytest.approx([2 / 3, 0, 2 / 3])
    labels = [states(edema=POSITIVE), None, states(edema=POSITIVE)]
    assert ce_f1_reward(reports, labels=labels) == [1.0, None, 0.0]  # reasoning is never labelled
    assert make_ce_f1_reward(untagged="zero", label_set="13")(reports[:1], labels=labels[:1]) == [0.0]
    assert make_ce_f1_reward().__name__ == ce_f1_reward.__name__ == "ce_f1_reward"  # TRL logs by it
    assert make_ce_f1_reward(name="positive_f1_reward").__name__ == "positive_f1_reward"
    with pytest.raises(ValueError, match="positive_f1_reward needs"):
        make_ce_f1_reward(name="positive_f1_reward")(reports)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({}, "ce_f1_reward needs the data set's column 'labels'"),
        ({"report": [""]}, "row 0 of column 'report' is an empty text"),
        ({"labels": [[0] * 13]}, "row 0 of column 'labels' holds 13 states, not 14"),
        ({"labels": []}, "1 completions but 0 references"),
    ],
)
def test_bad_columns(columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        ce_f1_reward(["Edema."], **columns)


def test_bad_options():
    with pytest.raises(ValueError, match="label_set must be one of 14, 13, 5, not '12'"):
        make_ce_f1_reward(label_set="12")
    with pytest.raises(ValueError, match="untagged must be 'whole' or 'zero', not 'half'"):
        make_ce_f1_reward(untagged="half")
