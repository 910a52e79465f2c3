"""Section cleaning: golden strings worked by hand from the rules in the docstrings and in ASSUMPTIONS.md, LM-025."""

import pytest

from recipes.data.sections import clean, clean_as_r2gen, target_text
from recipes.files import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart size normal.  Lungs\n\tclear.", "Heart size normal. Lungs clear."),  # white space
        ("1. No acute disease. 2. Stable nodule.", "No acute disease. Stable nodule."),  # list numbers
        ("1) Clear lungs. 2) Small heart.", "Clear lungs. Small heart."),  # the other way to number
        ("1.No acute disease.", "No acute disease."),  # number without a space
        ("A 3.5 cm mass at T10. Rib 7 is cut.", "A 3.5 cm mass at T10. Rib 7 is cut."),  # measures and levels stay
        ("1.5 cm nodule. No change.", "1.5 cm nodule. No change."),  # a decimal is no list number
        ("Fracture of rib 2. No pneumothorax.", "Fracture of rib 2. No pneumothorax."),  # nor is the end of a sentence
        ("No acute findings. .", "No acute findings."),  # repeated stop, as R2Gen's joins leave it
        ("Clear.. No effusion , or edema .", "Clear. No effusion, or edema."),  # doubled and detached marks
        ("XXXX XXXX and lateral views.", "XXXX XXXX and lateral views."),  # placeholders stay
        ("Size &gt; 3 cm", "Size > 3 cm"),  # entities escaped twice in the XML
        ("XXXX. 1. XXXX.", None),  # no word is left
        (". .", None),  # punctuation only
        ("", None),  # empty section
        (None, None),  # absent section
    ],
)
def test_plain_cleaning(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize("text", ["1. Clear. . 2. No XXXX , effusion ..", "a. b. 3. c"])
def test_plain_cleaning_is_idempotent(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart normal. Lungs clear.", "heart normal . lungs clear ."),  # lower case, spaced stops
        ("1. No disease. 2. Stable.", "no disease . stable ."),  # list numbers
        ("No disease 2. Stable", "no disease . stable ."),  # a number without a stop before it ends a sentence
        ("Level L1. No fracture.", "level lno fracture ."),  # side effect: "1. " goes wherever it stands
        ("A 3.5 cm (round) mass; stable?", "a 35 cm round mass stable ."),  # marks vanish, decimals too
        ("X-ray of XXXX/ribs", "x-ray of xxxxribs ."),  # hyphen stays, slash goes
        ("Clear.... No effusion.", "clear . no effusion ."),  # runs of stops
        ("Old 3. New 4. Big 5. Sub.", "old . new . big . sub ."),  # list numbers up to 5
        ("A. 3. B. 4. C. 5. D. 6. E.", "a . b . c . d . 6 . e ."),
        (
            "A@b*c!d%e^f&g=h>i<j[k]l{m}n" + r'"o/p\\q+r;s:t,u?v' + "'w",
            "abcdefghijklmnopqrstuvw .",
        ),  # all that vanishes
        ("No findings. .", "no findings . ."),  # an empty sentence keeps its stop
        (" No findings. ", "no findings ."),  # white space around it makes none
    ],
)
def test_r2gen_cleaning(text, expected):
    assert clean_as_r2gen(text) == expected
    assert clean(text, "r2gen") == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("findings", "Clear lungs."),
        ("impression", "Normal."),
        ("findings+impression", "Clear lungs. Normal."),
    ],
)
def test_target(target, expected):
    assert target_text({"findings": "Clear lungs.", "impression": "Normal."}, target) == expected


def test_target_uses_what_there_is():
    assert target_text({"findings": None, "impression": "Normal."}, "findings+impression") == "Normal."
    assert target_text({"findings": None, "impression": "Normal."}, "findings") is None


def test_wrong_names_are_refused():
    for target in ("conclusion", "finding", "report", "impression+findings", ""):
        with pytest.raises(InputError, match="--target must be one of findings, impression, "):
            target_text({"findings": "Clear.", "conclusion": "Normal."}, target)
    with pytest.raises(InputError, match="--cleaning must be one of plain, r2gen"):
        clean("Clear.", "gentle")
