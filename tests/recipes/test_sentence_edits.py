"""Edits of one sentence: every priority on worked examples, and odd texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.evaluation.sentence_edits import (
    ADDITION,
    CONFLICT,
    DELETION,
    INSERTION,
    REPLACEMENT,
    count_errors,
    edit_completion,
    edit_report,
)
from rewards.completions import parse_completion

HEART, NO_EFFUSION, OPACITY = "The heart is normal.", "No pleural effusion is seen.", "There is a left lung opacity."


@pytest.mark.parametrize(
    ("report", "reference", "kind", "expected"),
    [
        # conflict: present here and absent there, or the other way round, for certain or perhaps
        (f"{HEART} Small pleural effusion.", f"{NO_EFFUSION} {OPACITY}", CONFLICT, f"{HEART} {NO_EFFUSION}"),
        (f"{NO_EFFUSION} {HEART}", "Small left effusion.", CONFLICT, f"Small left effusion. {HEART}"),
        ("Possible pleural effusion.", NO_EFFUSION, CONFLICT, NO_EFFUSION),
        # of two the first in the text, before any other kind of error
        (
            f"There is a rib fracture. {NO_EFFUSION} No pneumothorax.",
            "Large effusion. Small pneumothorax.",
            CONFLICT,
            "There is a rib fracture. Large effusion. No pneumothorax.",
        ),
        # the reference's sentence is there already: what contradicts it goes
        (f"Small pleural effusion. {NO_EFFUSION}", NO_EFFUSION, CONFLICT, NO_EFFUSION),
        # replacement: {left, lung, nodule} and {left, lung, opacity} have the cosine 2 / 3
        (f"Left lung nodule. {HEART}", f"{HEART} Left lung opacity.", REPLACEMENT, f"Left lung opacity. {HEART}"),
        # deletion: {rib, fracture} shares nothing with it
        (f"{HEART} There is a rib fracture.", OPACITY, DELETION, HEART),
        (f"There is a rib fracture. {HEART}", OPACITY, DELETION, HEART),
        ("Rib fracture.\nThe heart is normal.", OPACITY, DELETION, HEART),
        # addition
        (HEART, f"{HEART} {OPACITY}", ADDITION, f"{HEART} {OPACITY}"),
        ("The heart is normal", OPACITY, ADDITION, f"{HEART} {OPACITY}"),  # a full stop keeps the scopes apart
        (HEART, "Possible pneumonia", ADDITION, f"{HEART} Possible pneumonia."),
        # insertion: a sentence with a finding first; where a deletion would leave nothing too
        ("", f"{HEART} {OPACITY}", INSERTION, OPACITY),
        (" \n", HEART, INSERTION, HEART),
        ("There is a rib fracture.", f"{HEART} {OPACITY}", INSERTION, OPACITY),
    ],
)
def test_every_priority(report, reference, kind, expected):
    edit = edit_report(report, reference)
    assert (edit.kind, edit.text) == (kind, expected)


@pytest.mark.parametrize(
    ("report", "reference"),
    [
        (HEART, HEART),
        (HEART, "Lungs are clear."),  # absent in one, not mentioned in the other
        ("Possible pneumonia.", "Pneumonia is present."),  # present in both
        ("xyz", "abc"),  # no findings anywhere
        (HEART, ""),  # nothing to take from
        ("", " "),
    ],
)
def test_nothing_to_put_right(report, reference):
    assert edit_report(report, reference) is None


@pytest.mark.parametrize(("threshold", "kind"), [(0.66, REPLACEMENT), (2 / 3, REPLACEMENT), (0.67, DELETION)])
def test_threshold_is_of_the_mean(threshold, kind):
    """One entity with a cosine of 2 / 3."""
    assert edit_report(f"Left lung nodule. {HEART}", f"{HEART} Left lung opacity.", threshold).kind == kind


def test_the_mean_is_over_all_false_entities():
    """{left, lung, nodule} has 2 / 3 and {rib, fracture} has 0: together 1 / 3."""
    reference, report = f"{HEART} Left lung opacity.", f"Left lung nodule, rib fracture. {HEART}"
    assert edit_report(report, reference, 0.3).kind == REPLACEMENT
    assert edit_report(report, reference, 0.35).kind == DELETION


def test_edits_one_after_the_other_end_without_errors():
    report = f"Small pneumothorax. Left lung nodule. There is a rib fracture. {HEART}"
    reference = "No pneumothorax. Left lung opacity. Small right pleural effusion. The heart is enlarged."
    kinds, errors = [], count_errors([report], [reference])
    while (edit := edit_report(report, reference)) is not None:
        report, kinds = edit.text, [*kinds, edit.kind]
        assert len(kinds) < 10
    assert kinds == [CONFLICT, CONFLICT, REPLACEMENT, DELETION, ADDITION]
    assert errors[0] > 0 and count_errors([report], [reference]) == [0]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # reasoning and tags stay, white space around the report too
        (
            "<think>Effusion.</think>\n<report> Small effusion. </report>\n",
            f"<think>Effusion.</think>\n<report> {NO_EFFUSION} </report>\n",
        ),
        ("Größe: Herz — groß. Small effusion.", f"Größe: Herz — groß. {NO_EFFUSION}"),  # untagged, not ASCII
        ("<think>a</think> Small effusion.", f"<think>a</think> {NO_EFFUSION}"),
        ("<report></report>", f"<report>{NO_EFFUSION}</report>"),
        ("<think>a</think>", f"<think>a</think>{NO_EFFUSION}"),  # no report at all
        ("<think>Small effusion.</think><report>No effusion.</report>", None),  # reasoning is not looked at
        ("Small effusion. <think>a</think> Edema.", None),  # no single run
        ("<think>Small effusion", None),  # nothing to put a sentence into
    ],
)
def test_completions(completion, expected):
    edit = edit_completion(completion, NO_EFFUSION)
    assert (edit and edit.text) == expected


PIECES = ["<think>", "</think>", "<report>", "</report>", "Small effusion. ", "No edema.", " é—\n", "Dr. No. 5 ", "."]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from([NO_EFFUSION, OPACITY, "", "é"]))
def test_any_text_is_edited_in_its_report_alone(completion, reference):
    edit = edit_completion(completion, reference)
    if edit is not None:
        before, after = parse_completion(completion), parse_completion(edit.text)
        assert (after.think, after.tagged) == (before.think, before.tagged)
        assert after.report and after.report != before.report


def test_errors_are_counted():
    reports = ["", HEART, "Small effusion. There is a rib fracture.", NO_EFFUSION]
    assert count_errors(reports, [f"{NO_EFFUSION} {OPACITY}"] * 4) == [1, 1, 3, 1]
