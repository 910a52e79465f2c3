"""Errors by kind: the table of states, made-up pairs of reports, sides and severities."""

import numpy as np
import pytest

from recipes.evaluation.error_taxonomy import (
    DOUBT,
    FLIP,
    HALLUCINATION,
    KEPT,
    KINDS,
    OMISSION,
    SEVERITY,
    SIDE,
    STATE_KINDS,
    Evidence,
    confusion,
    count_errors,
    find_errors,
    severities,
    sides,
    state_errors,
)
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState


# Rows: the reference's state; columns: the generated one, blank, positive, negative, uncertain.
@pytest.mark.parametrize(
    ("reference", "kinds"),
    [
        (BLANK, [None, HALLUCINATION, None, HALLUCINATION]),  # a negative that the reference leaves out is no error
        (POSITIVE, [OMISSION, None, FLIP, DOUBT]),
        (NEGATIVE, [None, FLIP, None, DOUBT]),
        (UNCERTAIN, [OMISSION, DOUBT, DOUBT, None]),
    ],
)
def test_every_pair_of_states(reference, kinds):
    generated = np.array([[int(state)] * 13 for state in CheXpertState])
    found = state_errors(generated, np.full((4, 13), int(reference)))
    assert [STATE_KINDS[i] if i >= 0 else None for i in found[:, 0]] == kinds
    assert (found == found[:, :1]).all()  # alike for every finding


def errors(generated: str, reference: str) -> dict[str, set[str]]:
    labeler = LexicalLabeler()
    (found,) = find_errors(labeler([generated]), labeler([reference]), [generated], [reference], Evidence())
    kinds: dict[str, set[str]] = {}
    for error in found:
        kinds.setdefault(error["label"], set()).add(error["kind"])
    return kinds


EFFUSION = "Pleural Effusion"


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("No pleural effusion.", "There is a pleural effusion.", {EFFUSION: {FLIP}}),
        ("The heart is enlarged.", "The heart is normal in size.", {"Cardiomegaly": {FLIP}}),
        ("Lungs are clear.", "There is a pleural effusion.", {EFFUSION: {OMISSION}}),
        ("There is a pneumothorax.", "The heart is normal.", {"Pneumothorax": {HALLUCINATION}}),
        ("Possible pneumonia.", "There is pneumonia.", {"Pneumonia": {DOUBT}}),
        ("No pneumothorax.", "Clear lungs.", {}),  # a negative more
        ("Left pleural effusion.", "Right pleural effusion.", {EFFUSION: {SIDE}}),
        ("Left pleural effusion.", "Bilateral pleural effusions.", {}),  # half of it: neither side is wrong
        ("Left and right pleural effusions.", "Left pleural effusion.", {}),
        ("Left pleural effusion.", "Pleural effusion.", {}),  # the reference does not say where
        # what is uncertain is said of a side and of a size, too
        ("Possible left pleural effusion.", "Possible right pleural effusion.", {EFFUSION: {SIDE}}),
        ("Possible small effusion.", "Possible large effusion.", {EFFUSION: {SEVERITY}}),
        ("Left pleural effusion.", "Possible right pleural effusion.", {EFFUSION: {DOUBT, SIDE}}),
        ("Possible large effusion.", "Small effusion.", {EFFUSION: {DOUBT, SEVERITY}}),
        ("Small pleural effusion.", "Large pleural effusion.", {EFFUSION: {SEVERITY}}),
        ("Mild cardiomegaly.", "Severe cardiomegaly.", {"Cardiomegaly": {SEVERITY}}),
        ("Tiny pleural effusion.", "Small pleural effusion.", {}),  # words for one grade
        ("Small to moderate pleural effusion.", "Large pleural effusion.", {}),  # two grades in a sentence: neither
        ("Large pleural effusion.", "Small to moderate pleural effusion.", {}),
        ("Small to large pleural effusion.", "Small to moderate pleural effusion.", {}),
        ("Small left pleural effusion. Large right pleural effusion.", "Small pleural effusion.", {}),  # nor in two
        (  # another finding's side and size, in the same sentence
            "Small left pleural effusion and large right lung mass.",
            "Large right lung mass with small left pleural effusion.",
            {},
        ),
        (
            "No left pleural effusion. Right pleural effusion.",
            "Right pleural effusion.",
            {},
        ),  # what is absent has none
        ("", "", {}),
    ],
)
def test_pairs_of_reports(generated, reference, expected):
    assert errors(generated, reference) == expected


@pytest.mark.parametrize(
    "both",
    ["Left and right", "right and left", "Both", "bilateral", "bilaterally", "BILATERAL", "bibasilar", "bibasal",
     "biapical"],
)  # fmt: skip
def test_words_for_both_sides(both):
    """A side named beside them, in the same clause, does not make the finding one-sided."""
    clause = f"{both} effusions greater on the left"
    ((_, _, words),) = Evidence()(f"{clause}.")[FINDINGS.index(EFFUSION)]
    assert sides([words]) == {"left", "right"}
    assert errors(f"{clause}.", "Right pleural effusion.") == {}
    assert errors("Right pleural effusion.", f"{clause}.") == {}
    assert errors("Effusions greater on the left.", "Right pleural effusion.") == {EFFUSION: {SIDE}}
    assert sides([f" effusion {both.lower()[:3]} on the left"]) == {"left"}  # a part of the word says nothing


def test_words_of_the_grades():
    grades = {
        1: "tiny trace minimal small mild mildly slight slightly subtle minor minimally",
        2: "moderate moderately",
        3: "large severe severely marked markedly massive extensive gross grossly",
    }
    for grade, words in grades.items():
        for word in words.split():
            assert severities([f" {word} effusion"]) == {grade}, word
    assert severities(["small effusion", "large mass"]) == {1, 3} and severities(["a smaller one", "mildew"]) == set()


def test_sentences_of_an_error():
    generated = "The lungs are clear. No pleural effusion. Heart is normal."
    reference = "A 2.5 cm nodule is seen. There is a small left pleural effusion."
    labeler = LexicalLabeler()
    (found,) = find_errors(labeler([generated]), labeler([reference]), [generated], [reference], Evidence())
    assert {
        "label": EFFUSION,
        "kind": FLIP,
        "generated": "No pleural effusion.",
        "reference": "There is a small left pleural effusion.",
    } in found
    omitted = next(error for error in found if error["label"] == "Lung Lesion")
    assert (omitted["generated"], omitted["reference"]) == (None, "A 2.5 cm nodule is seen.")  # 2.5 ends nothing


@pytest.mark.parametrize("unit", ["edema ", "edema, ", "edema and left effusion ", "EDEMA\u2003\u0130 ", "edema."])
def test_a_runaway_report_is_kept_in_its_own_length(unit):
    """Of 100,000 characters without an end the mentions share what is kept: pieces of the sentence, and clauses."""
    text = unit * (100_000 // len(unit))
    mentions = [each for found in Evidence()(text).values() for each in found]
    assert len(mentions) >= 100_000 // len(unit) - 1  # each of them
    sentences, clauses = ({id(each[part]): each[part] for each in mentions}.values() for part in (1, 2))
    assert sum(map(len, sentences)) <= 3 * len(text) and sum(map(len, clauses)) <= 3 * len(text)
    assert max(map(len, sentences)) <= KEPT + 4  # and two ellipses
    assert all("edema" in sentence.lower() for sentence in sentences)


def test_an_over_long_sentence_is_shortened_around_the_mention():
    far = "one word " * 100
    (found,) = Evidence()(f"Left {far}small edema {far}right.").values()
    ((_, sentence, clause),) = found
    assert sentence.startswith("… ") and sentence.endswith(" …") and 250 < len(sentence) <= KEPT + 4
    assert " small edema " in sentence and {*sentence.split()} == {"…", "one", "word", "small", "edema"}
    assert clause.startswith("left one") and clause.endswith("right.")  # sides and sizes are read in all of it
    (found,) = Evidence()(f"Edema {far}").values()
    assert found[0][1].startswith("Edema one word") and found[0][1].endswith(" …")
    whole = "Edema " + "one word " * 30 + "said."
    assert Evidence()(whole)[FINDINGS.index("Edema")][0][1] == whole  # 281 characters


def test_a_letter_that_grows_in_lower_case():
    """An "İ" has two characters in lower case; the clause of what follows it is still its own."""
    ((_, _, clause),) = Evidence()("İİİİİİ left mass, small edema, large heart")[FINDINGS.index("Edema")]
    assert clause == " small edema"


def test_a_labeler_that_sees_what_no_word_says():
    """The states decide; where the lexicon finds no mention, there is no sentence."""
    states = np.zeros((1, 14), int)
    states[0, FINDINGS.index("Edema")] = POSITIVE
    (found,) = find_errors(states, np.zeros((1, 14), int), ["Wet lungs."], ["Dry."], Evidence())
    assert found == [{"label": "Edema", "kind": HALLUCINATION, "generated": None, "reference": None}]


def test_counts():
    found = [[{"label": "Edema", "kind": FLIP}] * 2, [], [{"label": "Edema", "kind": SIDE}]]
    counts = count_errors(found)
    assert list(counts) == list(FINDINGS)
    assert counts["Edema"] == {FLIP: 2, OMISSION: 0, HALLUCINATION: 0, DOUBT: 0, SIDE: 1, SEVERITY: 0}
    assert list(counts["Edema"]) == list(KINDS)


def test_confusion():
    generated, reference = np.array([[1], [1], [2], [0]]), np.array([[1], [3], [2], [1]])
    assert confusion(generated, reference).tolist() == [[[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]]
