"""Predictions and references in every kind of file, and every fault named and counted."""

import json
import re

import pytest

from recipes.evaluation.prediction_files import Reading, odd_texts, read_predictions, read_references, split_id
from recipes.files import InputError

KNOWN = {"a": 0, "b": 1}
REXRANK = {
    "a": {
        "model_prediction": "Clear.",
        "section_findings": "Lungs are clear.",
        "section_impression": "",
        "age": 40,
        "section_indication": "Cough.",
        "section_history": "Fever.",
    },
    "b": {"model_prediction": "", "section_findings": None, "section_impression": " ", "report": "Edema."},
}

OURS = [{"study_id": "a", "completion": "Clear."}, {"study_id": "b", "completion": ""}]


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", lines(*OURS)),
        ("p.jsonl", lines({"id": "a", "prediction": "Clear.", "report": "x"}, "", {"id": "b", "prediction": ""})),
        ("p.json", json.dumps([{"id": "a", "prediction": "Clear."}, {"id": "b", "prediction": ""}], indent=1)),
        ("p.csv", "id,reference,prediction\na,Clear lungs.,Clear.\nb,Edema.,\n"),
        ("p.csv", "\ufeffprediction,study_id\r\nClear.,a\r\n,b\r\n"),  # as Excel writes it
        ("p.json", json.dumps(REXRANK)),
        ("res.json", json.dumps({"a": ["Clear."], "b": [""]})),  # pycocoevalcap's and R2Gen's
        ("res.json", json.dumps({"a": "Clear.", "b": ""})),
        ("p.jsonl", lines(*OURS).encode("utf-16")),
        ("p.jsonl", lines(*({**row, "scenario": "sn"} for row in OURS))),  # a data set of one scenario
    ],
)
def test_kinds_of_files(write, name, content):
    assert read_predictions(write(name, content), KNOWN) == {"a": ["Clear."], "b": [""]}


def test_row_numbers_of_pandas_are_ids(write):
    """DataFrame(list).to_csv, as R2Gen's test script writes its pair."""
    file = write("res.csv", ',0\n0,"No effusion, no pneumothorax"\n1,Clear.\n')
    assert read_predictions(file, ["0", "1"]) == {"0": ["No effusion, no pneumothorax"], "1": ["Clear."]}
    assert read_references(file)[0] == {"0": "No effusion, no pneumothorax", "1": "Clear."}


@pytest.mark.parametrize(
    ("name", "content", "references"),
    [
        (
            "p.csv",
            "id,reference,prediction\na,Clear lungs.,Clear.\nb,Edema.,x\n",
            {"a": "Clear lungs.", "b": "Edema."},
        ),
        ("p.json", json.dumps(REXRANK), {"a": "Lungs are clear.", "b": "Edema."}),  # without the empty impression
        (
            "p.json",
            json.dumps({"a": REXRANK["a"] | {"section_impression": "Normal.", "report": "All of it."}}),
            {"a": "Lungs are clear. Normal."},  # both, in this order, and neither indication nor history
        ),
        ("gts.json", json.dumps({"a": ["Clear."], "b": ["Edema."]}), {"a": "Clear.", "b": "Edema."}),
        ("refs.jsonl", lines({"id": "a", "report": "Clear."}), {"a": "Clear."}),  # the report alone: the reference
        ("p.jsonl", lines(*({"id": "a", "completion": x, "reference": "Clear."} for x in "xy")), {"a": "Clear."}),
    ],
)
def test_references(write, name, content, references):
    assert read_references(write(name, content)) == (references, [])


def test_studies_without_a_reference_are_counted(write):
    file = write("p.csv", "id,reference,prediction\na,Clear.,x\nb,,x\nc, ,x\n")
    references, notes = read_references(file)
    assert references == {"a": "Clear."}
    assert notes == [f"2 studies of {file} have no reference and are left out, 'b' first"]


USUAL = {
    "study_id": "completion", "image_id": "caption", "id": "report", "Study ID": "Generated Report", "uid": "hyp",
    "accession_number": "pred", "filename": "text", "image_path": "model_output", "Accession": "response",
}  # fmt: skip


@pytest.mark.parametrize(("study", "text"), USUAL.items())
def test_usual_names(write, study, text):
    rows = [{study: "a", "ref": "Clear.", text: "No edema."}, {study: "b", "ref": "Edema.", text: ""}]
    file = write("p.jsonl", lines(*rows))
    assert read_predictions(file, KNOWN) == {"a": ["No edema."], "b": [""]}
    assert read_references(file, beside=True)[0] == {"a": "Clear.", "b": "Edema."}


@pytest.mark.parametrize("text", ["hyp", "generated_report", "pred"])
def test_a_report_beside_what_is_surely_generated_is_the_reference(write, text):
    file = write(
        "p.jsonl", lines({"id": "a", "report": "Clear.", text: "x"}, {"id": "b", "report": "Edema.", text: "y"})
    )
    assert read_references(file, beside=True)[0] == {"a": "Clear.", "b": "Edema."}
    assert read_predictions(file, KNOWN) == {"a": ["x"], "b": ["y"]}


def test_named_columns_win(write):
    file = write("p.csv", "id,AccNr,prediction,Modell,Befund\n1,a,no,x,Clear.\n2,b,no,y,Edema.\n")
    reading = Reading.of(["id=AccNr", "prediction=Modell", "reference=Befund"])
    assert read_predictions(file, KNOWN, reading=reading) == {"a": ["x"], "b": ["y"]}
    assert read_references(file, reading, beside=True)[0] == {"a": "Clear.", "b": "Edema."}
    for role in ("id", "prediction"):
        with pytest.raises(
            InputError, match=rf"no column 'X' \(--columns {role}=X\); it has id, AccNr, prediction, M"
        ):
            read_predictions(file, KNOWN, reading=Reading.of([f"{role}=X"]))
    with pytest.raises(InputError, match=r"no column 'X' \(--columns reference=X\); it has id, AccNr"):
        read_references(file, Reading.of(["reference=X"]))


@pytest.mark.parametrize("pair", ["prediction", "id=", "=x", "text=x", "id=a id=b"])
def test_columns_that_are_none(pair):
    with pytest.raises(InputError, match="--columns takes id=NAME, prediction=NAME and reference=NAME, and not '"):
        Reading.of(pair.split())


@pytest.mark.parametrize("content", [lines({"id": "a", "report": "x"}), '{"a": "x"}', "x\n"])
def test_one_text_is_not_prediction_and_reference_at_once(write, content):
    """Else a file that has no references would be scored against itself."""
    with pytest.raises(InputError, match="holds no references"):
        read_references(write("p.txt", content), beside=True)


TEXTS, TRUE = ["Clear.", "", "No effusion, no edema."], ["Clear lungs.", "Edema.", "Small effusion."]


@pytest.mark.parametrize(
    ("name", "predictions", "references"),
    [
        ("x.txt", "Clear.\n\nNo effusion, no edema.\n", "Clear lungs.\r\nEdema.\r\nSmall effusion."),
        ("x.hyp", "Clear.\n\nNo effusion, no edema.\n", "Clear lungs.\nEdema.\nSmall effusion.\n"),
        ("x.json", json.dumps(TEXTS), json.dumps(TRUE)),
        ("x.json", json.dumps({"hyp": TEXTS}), json.dumps({"ref": TRUE})),
        ("x.csv", 'hyp\nClear.\n""\n"No effusion, no edema."\n', "ref\nClear lungs.\nEdema.\nSmall effusion.\n"),
    ],
)
def test_pairs_without_ids(write, name, predictions, references):
    truth, notes = read_references(write(f"ref_{name}", references))
    assert list(truth.values()) == TRUE and "paired in their order" in notes[0]
    completions = read_predictions(write(name, predictions), truth)
    assert list(completions) == list(truth) and [texts for (texts,) in completions.values()] == TEXTS


def test_pairs_without_ids_of_other_lengths(write):
    truth, _ = read_references(write("ref.txt", "Clear.\nEdema.\n"))
    for content, number in (("x\n", 1), ("x\ny\nz\n", 3)):
        with pytest.raises(InputError, match=rf"hyp\.txt has {number} entries and the references end at the 2th"):
            read_predictions(write("hyp.txt", content), truth, only_common=True)
    rows = [{"hyp": "x", "ref": "Edema."}, {"hyp": "y", "ref": "Clear."}]
    with pytest.raises(InputError, match=r"line 1: another reference than that of row 1 before, and there are no ids"):
        read_predictions(write("hyp.jsonl", lines(*rows)), truth)
    assert len(read_predictions(write("hyp.jsonl", lines(*rows[::-1])), truth)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lines({"id": "a", "prediction": "x", "report": "y"}),
            r"no references \(its fields: id, prediction, report\): name a data .* --columns reference=NAME$",
        ),  # generated?
        (lines({"id": "a", "reference": "x"}, {"id": "a", "reference": "y"}), "line 2: another reference of 'a'"),
        ("", "holds no references"),
        ('{"a": ["x", "y"], "b": "z"}', "entry 'a': the reference of 'a' is a list: give one text$"),
        (r'{"id": "\ud800", "reference": "x"}', r"line 1: the id '\\ud800' holds half a character"),
        (lines("[1]", {"reference": "x"}), r"entry 1: not a JSON object|line 1: not a JSON object.*1 more of 2"),
    ],
)
def test_mistakes_in_references(write, content, said):
    with pytest.raises(InputError, match=said):
        read_references(write("r.jsonl", content))


GOOD = {"id": "a", "prediction": "x"}
OTHER = {"Bild": "a", "Befund": "x"}
MIXED = b'{"id": "a", "prediction": "\xe9"}\n{"id": "b", "prediction": "\xc3\xa9"}\n{"\xff'  # Latin-1, UTF-8, neither
FOREIGN = [{"id": name, "prediction": "x"} for name in ("a", "b", "y", "z")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", lines(GOOD), "lacks 1 of 2 studies of the split, 'b' first"),
        (
            "p.jsonl",
            lines(*FOREIGN),
            r"line 3: 'y' is not in this split or .*empty \(and 1 more of 4\); --only_common",
        ),
        ("p.jsonl", lines(GOOD, GOOD, {**GOOD, "id": "b"}), "line 2: 'a' is there more than once$"),  # a duplicate
        ("p.json", '{"a": "x", "b": "y", "a": "z"}', "1 ids more than once, 'a' first"),
        (
            "p.json",
            json.dumps({"scores": [1, 2]}),
            "entry 'scores': the text of 'scores' is a list of 2",
        ),  # another schema
        (
            "p.jsonl",
            lines(OTHER, OTHER),
            "p.jsonl has no prediction by a usual name; it has Bild, Befund: name the column with --columns predict",
        ),
        ("p.csv", "Bild,Befund\na,x\n", "no prediction by a usual name; it has Bild, Befund: name the column"),
        (
            "p.csv",
            "Bild,output\na,x\n",
            "no id by a usual name; it has Bild, output: name the column with --columns id",
        ),
        ("p.jsonl", lines(GOOD, {"id": "b"}), r"line 2: no prediction \(its fields: id\)$"),
        ("p.jsonl", lines(GOOD, {"prediction": "b"}), r"line 2: no id \(its fields: prediction\)$"),
        ("p.txt", "Clear.\nEdema.\n", "has texts without ids: name the references in the same order"),
        ("p.json", json.dumps({"id": ["a", "b"], "hyp": ["x"]}), "columns of different lengths: id 2, hyp 1"),
        ("p.xlsx", "no workbook", "p.xlsx is no workbook"),
        ("p.jsonl", lines(GOOD, '{"id": "b", "predic'), "line 2: not a JSON object"),  # cut off
        ("p.json", "3", "line 1: not a JSON object"),
        ("p.json", json.dumps([GOOD, 3]), "entry 2: not a JSON object"),
        ("p.jsonl", lines({"id": "a", "prediction": None}), "the prediction of 'a' is no text"),
        ("p.jsonl", lines({"id": ["a", "b"], "prediction": "x"}), r"line 1: no id \(its fields: id, prediction\)$"),
        ("p.jsonl", "", "lacks 2 of 2 studies"),
        ("p.jsonl", MIXED, "not UTF-8 in 2 of 3 lines, line 1 first"),
        ("p.jsonl", b"\xff\xfea", "p.jsonl is not utf-16 in line 1"),
        ("p.json", lines(GOOD).encode("utf-16-le"), "is UTF-16 or UTF-32 without its mark.*save it as UTF-8"),
        ("p.csv", "id,prediction\na,Clear.\nb,é\n".encode("utf-16-be"), "is UTF-16 or UTF-32 without its mark"),
        (  # unquoted commas
            "p.csv",
            "id,prediction\na,Edema, and pneumothorax, small\nb,No edema, clear\n",
            "p.csv, line 2: 4 cells under 2 columns; a text with ',' or a line break needs quotes around it",
        ),
        ("p.json", "[" * 100_000, "p.json has brackets in brackets, too many to be read, line 1 first$"),
        ("p.json", "[\n" * 100_000, "p.json has brackets in brackets, too many to be read$"),  # one in each line
        ("p.jsonl", lines(GOOD, '{"a":' * 100_000), "too many to be read, line 2 first$"),
        ("p.jsonl", r'{"id": "a\udc00", "prediction": "x"}', r"line 1: the id 'a\\udc00' holds half a character"),
        ("p.json", '{"a": "x", "b": "y', "p.json is cut off: its JSON breaks off in line 1$"),
        ("p.json", '{\n "a": "x",\n "b":', "p.json is cut off: its JSON breaks off in line 3$"),
        ("p.json", json.dumps([GOOD], indent=1)[:-2], "p.json is cut off: its JSON breaks off in line 5$"),
        ("p.json", '{\n "a": x\n}', "p.json is no JSON: Expecting value in line 2$"),
        ("p.json", "1" * 5000, "line 1: not a JSON object"),  # more digits than Python reads
        (
            "p.json",
            '{"a": ["x", "y"], "b": "z"}',
            "the text of 'a' is a list of 2: give one text, or a line of study_id",
        ),
        (
            "p.csv",
            "id,reference,prediction\na,Edema.,x\nc,,y\n",
            "p.csv, line 3: 'c' has no reference, its reference is empty; --only_common scores the others$",
        ),
    ],
)
def test_mistakes(write, name, content, said):
    with pytest.raises(InputError, match=said):
        read_predictions(write(name, content), KNOWN)


def test_a_missing_file():
    with pytest.raises(InputError, match=r"there is no predictions file absent\.jsonl"):
        read_predictions("absent.jsonl", KNOWN)


def test_several_completions_of_a_study_are_samples(write):
    rows = [{"study_id": study, "completion": text} for study, text in (("a", "1"), ("b", "2"), ("a", "3"))]
    file = write("p.jsonl", lines(*rows))
    assert read_predictions(file, KNOWN) == {"a": ["1", "3"], "b": ["2"]}
    with pytest.raises(InputError, match="line 3: 'a' is there more than once"):
        read_predictions(file, KNOWN, several=False)


def test_only_common(write):
    file = write("p.jsonl", lines(*FOREIGN[1:]))
    notes = []
    assert read_predictions(file, KNOWN, only_common=True, notes=notes) == {"b": ["x"]}
    assert notes == [
        f"2 studies of {file} have no reference in this split or file of references and are left out, 'y' first"
    ]
    samples = write("q.jsonl", lines(*OURS, *[{"study_id": "z", "completion": "x"}] * 3))
    read_predictions(samples, KNOWN, only_common=True, notes=notes)
    assert re.match("1 studies of .*'z' first$", notes[1])  # of three samples
    read_predictions(write("r.jsonl", lines(*OURS)), KNOWN, only_common=True, notes=notes)
    assert len(notes) == 2  # none is left out


def test_one_study_under_several_scenarios(write):
    rows = [{"study_id": "1", "scenario": each, "completion": each} for each in ("sn", "mw")]
    found = read_predictions(write("p.jsonl", lines(*rows)), ["sn/1", "mw/1"])
    assert found == {"sn/1": ["sn"], "mw/1": ["mw"]}


@pytest.mark.parametrize(
    ("study", "parts"),
    [("sn/1", ("sn", "1")), ("1", (None, "1")), ("p10/s2/x.dcm", (None, "p10/s2/x.dcm")), ("sn/", (None, "sn/"))],
)
def test_split_id(study, parts):
    assert split_id(study) == parts


def test_a_runaway_report_and_markup(write):
    """100,000 characters are read from JSON and CSV; what is odd is counted, our own tags are not."""
    long = "effusion " * 11200 + "<script>alert(1)</script>"
    assert read_predictions(write("p.csv", f'id,prediction\na,"{long}"\nb,x\n'), KNOWN)["a"] == [long]
    assert odd_texts("ours", [long, "", "<think>a < b</think><report>5 > 3</report>"]) == [
        "ours: 1 of 3 reports are empty and score 0",
        "ours: 1 of 3 reports are longer than 10,000 characters",
        "ours: 1 of 3 reports are with HTML tags, which are shown as text",
    ]
