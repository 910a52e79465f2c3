"""MIMIC-CXR's sections and R2Gen's cleaning, on reports written here in the forms that MIMIC-CXR's have."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.mimic_sections import clean_mimic, read_sections
from recipes.data.sections import clean_as_r2gen

RULE = "_" * 78
FULL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  History: ___F with cough  // eval for
 infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  ___
 
 FINDINGS: 
 
 The lungs are clear.  There is no effusion
 or pneumothorax.
 
 The heart is normal.
 
 IMPRESSION: 
 
 No acute process.
"""


def read(text: str) -> dict[str, str]:
    return {name: " ".join(part.split()) for name, part in read_sections(text).items()}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_reads_the_usual_sections(newline):
    assert read(FULL.replace("\n", newline)) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "History: ___F with cough // eval for infection",  # "History:" is a word of the indication
        "technique": "Chest PA and lateral",
        "findings": "The lungs are clear. There is no effusion or pneumothorax. The heart is normal.",
        "impression": "No acute process.",
        "findings_from": "header",
    }


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("Findings: A is b.\n Impression: C.", "A is b.", "C."),  # odd case
        ("findings: A is b\n \n impression: C.", "A is b", "C."),
        ("FINDINGS A is b.\n IMPRESSION  Clear.", "A is b.", "Clear."),  # no colon
        ("COMPARISON: NONE FINDINGS: A. TECHNIQUE: AP", "A.", None),
        ("REFERENCE STUDY: ___.\n IMPRESSION: C.", None, "C."),
        (" FINDINGS\n A is b.\n IMPRESSION\n C.", "A is b.", "C."),  # no colon, but alone on a line
        ("FINDINGS: A is b. IMPRESSION: C.", "A is b.", "C."),  # in the middle of a line
        ("Chest film. Findings: A is b. Impression: C.", "A is b.", "C."),
        ("FINDINGS: A with these\n findings: x and y.", "A with these findings: x and y.", None),  # a wrapped sentence
        ("FINDINGS: A has no impression: none.", "A has no impression: none.", None),  # lower case within a sentence
        ("FINDINGS : A is b.\nIMPRESSION; C.", "A is b.", "C."),
        ("FINDINGS: \nIMPRESSION: C.", None, "C."),  # empty
        ("FINDINGS: ___\nIMPRESSION: C.", None, "C."),  # de-identified away
        ("FINDINGS: A.\nFINDINGS: B.", "A. B.", None),  # twice
        ("FINDINGS AND IMPRESSION: A is b.", None, "A is b."),  # as MIMIC-CXR's authors count it
        ("CONCLUSION: C.", None, "C."),
        ("IMPRESSON: C.", None, "C."),  # a typo of MIMIC-CXR's
        ("FINDINGS: A.\n LUNGS: clear.\n HEART: big.\n IMPRESSION: C.", "A. LUNGS: clear. HEART: big.", "C."),
        ("FINDINGS: A.\n NOTIFICATION: Dr. ___ at 9:30.", "A.", None),  # not part of the findings
        ("IMPRESSION: C at 9:30 AM.\n RECOMMENDATION(S): CT.", None, "C at 9:30 AM."),
        ("CHEST, TWO VIEWS: A is b.\n IMPRESSION: C.", "A is b.", "C."),  # a view's header
        ("AP CHEST, 5:00 AM, ___: A is b.", "A is b.", None),  # with a clock
        ("PA CHEST: A.\n FINDINGS: B.", "B.", None),  # the real header wins
        ("CHEST, PA LATERAL:\n\nINDICATION: cough.\n\nFINDINGS: B.", "B.", None),  # a title that looks like a header
    ],
)
@pytest.mark.parametrize("head", ["FINAL REPORT\n ", ""])
def test_finds_headers(text, findings, impression, head):
    found = read(head + text)
    assert (found.get("findings"), found.get("impression")) == (findings, impression)


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        (" CHEST RADIOGRAPH ___\n \n The lungs are clear.\n", "The lungs are clear."),  # no header at all
        (" CHEST RADIOGRAPH\n \n Clear.\n \n No edema.\n", "Clear. No edema."),
        (" The lungs are clear.\n No edema.\n", "The lungs are clear. No edema."),  # no title either
        (" HISTORY:  Cough.\n \n The lungs are clear.\n", "The lungs are clear."),
        (" REFERENCE EXAM: ___.\n \n The lungs are clear.\n", "The lungs are clear."),  # header without words
        (" HISTORY:  Cough, eval for edema.\n", None),  # nothing follows
        (" CHEST RADIOGRAPH\n", None),
    ],
)
def test_takes_what_follows_the_first_paragraph_where_no_header_helps(text, findings):
    found = read("FINAL REPORT\n" + text)
    assert found.get("findings") == findings
    assert found.get("findings_from") == ("last paragraph" if findings else None)
    assert "lungs" not in found.get("history", "")  # what the images show never becomes an input


@pytest.mark.parametrize("name", ["indication", "history"])
def test_what_follows_the_first_paragraph_is_no_input(name):
    text = f"{name.upper()}:  Cough,\n fever.\n \n PA view shows pneumonia.\n \n IMPRESSION:  Pneumonia.\n"
    assert read(f"FINAL REPORT\n {text}") == {name: "Cough, fever.", "impression": "Pneumonia."}


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        (f" WET READ: ___ 9 PM\n  Pneumonia.\n {RULE}\n FINAL REPORT\n FINDINGS: A.\n", "A.", None),
        ("FINAL REPORT\n FINDINGS: A.\n WET READ VERSION #1 ___\n IMPRESSION: wet.\n", "A.", None),  # after it
        (f"FINAL REPORT\n HISTORY: h.\n WET READ: wet.\n {RULE}\n IMPRESSION: C.\n", None, "C."),  # in its middle
        (f"FINAL ADDENDUM\n ADDENDUM:  Not B.\n {RULE}\n FINAL REPORT\n FINDINGS: A.\n", "A.", None),
        ("FINAL REPORT\n FINDINGS: A.\n ADDENDUM:\n IMPRESSION: added.\n", "A.", None),
        ("FINAL REPORT\n FINDINGS: A.\n FINAL REPORT\n FINDINGS: B.\n", "B.", None),  # two reports: the last
        ("FINAL REPORT\n FINDINGS: A.\n FINAL REPORT\n HISTORY: h.\n", "A.", None),  # that has any
        (f"FINAL REPORT\n FINDINGS: A.\n {RULE}\n IMPRESSION: C.\n", "A.", "C."),  # a line within a report
        (f" WET READ: wet.\n {RULE}\n FINDINGS: A.\n", "A.", None),  # no FINAL REPORT anywhere
        ("FINAL REPORT\n FINDINGS: As the\n wet read says, A.\n", "As the wet read says, A.", None),  # wrapped words
        ("Final Report HISTORY: h.\n FINDINGS: A.", "A.", None),
        ("FINAL REPORT FINDINGS: A.", "A.", None),  # on one line
        ("PROVISIONAL FINDINGS IMPRESSION (PFI): 1. wet.\n FINAL REPORT\n IMPRESSION: C.\n", None, "C."),
    ],
)
def test_wet_reads_and_addenda_are_set_aside(text, findings, impression):
    found = read(text)
    assert (found.get("findings"), found.get("impression")) == (findings, impression)


@pytest.mark.parametrize(
    "text", ["WET READ: ___\n  Pneumonia.\n", "", " \n", "___", "PRELIMINARY REPORT\n FINDINGS: A."]
)
def test_no_final_report(text):
    assert read_sections(text) == {}


def test_time_is_linear_in_length():
    text = "FINAL REPORT\n" + "FINDINGS IMPRESSION : A _ ; : \n HISTORY " * 5000
    assert read_sections(text)  # 200,000 characters: a regex that backtracks would take minutes


@pytest.mark.parametrize(
    ("text", "r2gen", "rg4"),
    [
        ("The lungs\n are clear.", "the lungs are clear .", "the lungs are clear ."),
        ("Seen on ___ and ______.", "seen on and .", "seen on and ."),  # de-identification
        ("1. No edema. 2. Small effusion.", "no edema . small effusion .", "no edema . small effusion ."),
        ("Clear.. No edema...", "clear . no edema .", "clear . no edema ."),
        ("PICC: 3.5 cm.", "picc 35 cm .", "picc : 35 cm ."),  # LLM-RG4 keeps the colon
        ("Size < 3 mm [old].", "size 3 mm old .", "size < 3 mm old ."),  # the range ":-[" of R2Gen's
        ("A \"b\" c/d 'e' (f); g, h?", "a b cd e f g h .", "a b cd e f g h ."),
        ("Right-sided tube.", "right-sided tube .", "right-sided tube ."),  # the hyphen stays
        ("Stable. ___. Clear.", "stable . . clear .", "stable . . clear ."),  # R2Gen keeps the empty sentence
        ("Old 3. New 4. Big 5. Sub.", "old . new . big . sub .", "old . new . big . sub ."),  # without a stop before
        ("A. 3. B. 4. C. 5. D.", "a . b . c . d .", "a . b . c . d ."),
        ("1. A. 11. B.", "a . 1b .", "a . 1b ."),  # "1. " goes wherever it stands
        ("A@b*c!d%e^f&g=h>i<j", "abcdefghij .", "a@bcdefg=h>i<j ."),
        ("6. Old. 7. New.", "6 . old . 7 . new .", "6 . old . 7 . new ."),  # it knows the numbers 1 to 5
    ],
)
def test_r2gen_cleaning(text, r2gen, rg4):
    assert clean_as_r2gen(text, "mimic") == clean_mimic(text, "r2gen") == r2gen
    assert clean_mimic(text, "rg4") == rg4
    assert re.fullmatch(r"[^A-Z_\n]*", rg4)


@pytest.mark.parametrize("cleaning", ["plain", "r2gen", "rg4"])
def test_a_section_without_words_is_none(cleaning):
    assert clean_mimic("___ .", cleaning) is None and clean_mimic(None, cleaning) is None


@given(st.text(alphabet="xX_. 12345a:?é²\n", max_size=30), st.sampled_from(["r2gen", "rg4"]))
def test_what_has_words_keeps_some_under_any_cleaning(text, cleaning):
    """So a target that is there before cleaning is there after it, and none comes of it."""
    assert bool(clean_mimic(text, cleaning)) == bool(clean_mimic(text, "plain"))


def test_plain_cleaning_keeps_words_case_and_marks():
    assert clean_mimic(" 1. No edema.\n 2. ___ cm  Tube ..", "plain") == "No edema. ___ cm Tube."


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("IMPRESSION/RECOMMENDATION", "impression"),
        ("IMPRESSION AND PLAN", "impression"),
        ("IMPRESSION (PRELIMINARY)", "impression"),
        ("IMPRESSION #1", "impression"),
        ("FINAL/REVISED IMPRESSION", "impression"),
        ("IMPRESSION/FINDINGS", "impression"),
        ("OPINION", "impression"),
        ("SUMMARY", "impression"),
        ("MPRESSION", "impression"),
        ("IMPERSSION", "impression"),
        ("IMORESSION", "impression"),
        ("IMPRESSSION", "impression"),
        ("FINDINDGS", "findings"),
        ("FNDINGS", "findings"),
        ("CHEST FINDINGS", "findings"),
        ("FINDINGS (CHEST)", "findings"),
        ("COMPARISON/FINDINGS", "findings"),
        ("REPORT", "findings"),
        ("REASON FOR THIS EXAMINATION", "indication"),
        ("NDICATION", "indication"),
    ],
)
def test_headers_are_known_by_their_form(header, section):
    text = f"FINAL REPORT\n EXAMINATION: CHEST\n\n {header}: Mild edema.\n"
    assert read_sections(text)[section] == "Mild edema."


@pytest.mark.parametrize("header", ["COMPRESSION", "MEDICATIONS", "LUNGS", "PROGRESSION", "DICTATION"])
def test_other_words_are_no_header_of_a_section(header):
    sections = read_sections(f"FINAL REPORT\n FINDINGS: No effusion.\n {header}: T12.\n")
    assert sections["findings"] == f"No effusion.\n {header}: T12." and sections["unknown_headers"] == header


def test_a_view_after_the_impression_continues_the_findings():
    text = "FINAL REPORT\n {}: Clear.\n\n IMPRESSION: Normal.\n\n PORTABLE CHEST, 5 PM: A line was placed.\n"
    for header in ("FINDINGS", "CHEST, TWO VIEWS"):
        sections = read_sections(text.format(header))
        assert sections["findings"] == "Clear.\nA line was placed." and sections["impression"] == "Normal."
