"""evaluate.py: hand-made predictions against hand-computed figures, and each mistake named."""

import json

import numpy as np
import pytest

from recipes.cli import InputError
from recipes.data.schema import write_dataset
from recipes.evaluate import TEMPLATE, main, score
from rewards.labels import CONDITIONS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
EDEMA = {"completion": "<think>Haze.</think><report>There is pulmonary edema.</report>"}
PNEUMOTHORAX = {"completion": "There is a pneumothorax."}


def states(**named: CheXpertState) -> list[int]:
    return [int(named.get(name.replace(" ", "_"), BLANK)) for name in CONDITIONS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two studies: a has edema, b has cardiomegaly; nothing else is said."""
    labels = {"a": states(Edema=POSITIVE), "b": states(Cardiomegaly=POSITIVE)}
    rows = [{"study_id": name, "report": "x", "images": [], "labels": value} for name, value in labels.items()]
    out = tmp_path_factory.mktemp("evaluate") / "data"
    write_dataset({"test": lambda: iter(rows)}, out, {"labeler": "lexical"})
    return out


@pytest.fixture
def evaluate(dataset, tmp_path, call):
    def evaluate(lines: list[str | dict], *arguments) -> dict:
        file = tmp_path / "predictions.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        out = tmp_path / "scores.json"
        given = ["--dataset", dataset, "--out", out, *(arguments or ["--predictions", f"ours={file}"])]
        call(main, *given)
        return json.loads(out.read_text())

    return evaluate


# Study a: edema found. Study b: a pneumothorax that is not there, and the cardiomegaly missed.
@pytest.mark.parametrize(
    ("labels", "average", "precision", "recall", "f1"),
    [
        ("14", "micro", 1 / 2, 1 / 2, 1 / 2),  # 1 hit, 1 false alarm, 1 miss
        ("14", "macro", 1 / 14, 1 / 14, 1 / 14),  # Edema alone scores
        ("13", "macro", 1 / 13, 1 / 13, 1 / 13),  # without No Finding
        ("13", "weighted", 1 / 2, 1 / 2, 1 / 2),  # Edema and Cardiomegaly have one study each
        ("13", "example", 1 / 2, 1 / 2, 1 / 2),  # 1 for study a, 0 for study b
        ("5", "micro", 1, 1 / 2, 2 / 3),  # Pneumothorax is none of the five
        ("5", "macro", 1 / 5, 1 / 5, 1 / 5),
    ],
)
def test_clinical_efficacy_by_hand(evaluate, labels, average, precision, recall, f1):
    figures = evaluate([{"study_id": "a"} | EDEMA, {"study_id": "b"} | PNEUMOTHORAX])
    found = figures["systems"]["ours"]["clinical_efficacy"][f"{labels} labels, uncertain as positive"][average]
    assert found == pytest.approx({"precision": precision, "recall": recall, "f1": f1})


def test_other_figures_by_hand(evaluate):
    figures = evaluate([{"study_id": "b"} | PNEUMOTHORAX, {"study_id": "a"} | EDEMA])  # the order is the file's
    ours = figures["systems"]["ours"]
    assert ours["mccs"] == pytest.approx(0.5)  # identical vectors 1, orthogonal ones 0
    assert ours["format_rate"] == 0.5  # b has no tags
    assert (ours["samples"], ours["distinct_reports"], ours["empty_reports"]) == (2, 2, 0)
    assert (figures["labeler"], figures["split"], figures["margin"]) == ("lexical", "test", 0.2)
    template = figures["systems"][TEMPLATE]
    assert (template["samples"], template["distinct_reports"], template["format_rate"]) == (2, 1, 0)
    assert template["clinical_efficacy"]["13 labels, uncertain as positive"]["micro"]["f1"] == 0  # finds nothing


def test_several_lines_of_a_study_are_several_samples(evaluate):
    figures = evaluate([{"study_id": "a"} | EDEMA] * 2 + [{"study_id": "b"} | PNEUMOTHORAX])
    ours = figures["systems"]["ours"]
    assert ours["samples"] == 3
    assert ours["mccs"] == pytest.approx(2 / 3)


def test_an_empty_completion_is_counted(evaluate):
    figures = evaluate([{"study_id": "a", "completion": ""}, {"study_id": "b"} | PNEUMOTHORAX])
    assert figures["systems"]["ours"]["empty_reports"] == 1


@pytest.mark.parametrize(
    ("reading", "f1"),
    [
        ("positive", 1.0),  # possible pneumonia in the reference, pneumonia in the report
        ("negative", 0.0),  # then the reference has none
    ],
)
def test_both_readings_of_uncertain(reading, f1):
    found = score(np.array([states(Pneumonia=POSITIVE)]), np.array([states(Pneumonia=UNCERTAIN)]), 0.2)
    assert found["clinical_efficacy"][f"14 labels, uncertain as {reading}"]["micro"]["f1"] == f1
    assert found["mccs"] == pytest.approx(1)  # Eq. 3 gives both 1


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([{"study_id": "a"} | EDEMA], "lacks 1 of 2 studies of the split, 'b'"),  # half a file is no result
        ([{"study_id": "a"} | EDEMA, '{"study_id": "b", "compl'], "line 2: not a JSON object"),  # cut off
        ([{"study_id": "a"}], "line 1: not a JSON object with study_id and completion"),
        (["[1, 2]"], "line 1: not a JSON object"),
        (["3"], "line 1: not a JSON object"),
        ([{"study_id": "z"} | EDEMA], "line 1: 'z' is not in this split"),  # predictions of another split
        ([{"study_id": "a", "completion": 3}], "line 1: 'a'"),
        ([{"study_id": "a", "completion": None}], "line 1: 'a'"),
        ([], "lacks 2 of 2 studies"),
    ],
)
def test_mistakes_in_a_predictions_file(evaluate, tmp_path, lines, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate(lines)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--predictions", "x.jsonl"], "NAME=FILE"),  # no name
        (["--predictions", "a=x", "a=y"], "each name once"),
        (["--predictions", f"{TEMPLATE}=x"], "each name once"),  # the baseline's name
        (["--predictions", "a=absent.jsonl"], "there is no predictions file absent.jsonl"),
        (["--predictions", "a=x", "--split", "dev"], "no split 'dev'"),
        (["--predictions", "a=x", "--labeler", "chexbert"], "chexbert"),
    ],
)
def test_mistakes_on_the_command_line(evaluate, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate([], *arguments)


# --- LLM-RG4's hall. ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """Study a has no prior report, b has one, of c nothing is known; the reference of b compares."""
    reports = {"a": ("Clear.", "sn"), "b": ("Unchanged.", "sw"), "c": ("Clear.", None)}
    rows = [
        {"study_id": name, "report": report, "images": [], "labels": states(), "scenario": scenario}
        for name, (report, scenario) in reports.items()
    ]
    out = tmp_path_factory.mktemp("hall") / "data"
    splits = {"test": lambda: iter(rows[:2]), "validation": lambda: iter(rows)}
    write_dataset(splits, out, {"labeler": "lexical"})
    return out


COMPARES = "<think>The nurse was called.</think><report>Stable effusion.</report>"


@pytest.mark.parametrize(
    ("split", "mode", "references", "ours"),
    [
        ("test", "scenario", {"sn": 0, "sw": 0, "all": 0}, {"sn": 1, "sw": 0, "all": 0.5}),  # sw may compare
        ("test", "any", {"sn": 0, "sw": 1, "all": 0.5}, {"sn": 1, "sw": 1, "all": 1}),  # as the published script
        ("validation", "any", {"sn": 0, "sw": 1, "all": 1 / 3}, {"sn": 1, "sw": 1, "all": 1}),  # c counts in all
    ],
)
def test_hall_by_hand(scenarios, tmp_path, call, capsys, split, mode, references, ours):
    file, out = tmp_path / "ours.jsonl", tmp_path / "scores.json"
    lines = [json.dumps({"study_id": name, "completion": COMPARES}) for name in "abc"[: 3 if split != "test" else 2]]
    file.write_text("\n".join(lines))
    given = ["--dataset", scenarios, "--split", split, "--predictions", f"ours={file}", "--out", out]
    call(main, *given, "--hall_judge", "rule", "--hall_mode", mode)
    hall = json.loads(out.read_text())["hall"]
    assert (hall["judge"], hall["mode"]) == ("rule", mode)
    assert hall["rates"]["references"] == pytest.approx(references)
    assert hall["rates"]["ours"] == pytest.approx(ours)  # the report counts, not what was thought
    assert hall["rates"][TEMPLATE]["all"] == 0
    assert "judge: rule" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "validation", "--hall_judge", "rule"], "not None; --hall_mode any needs no scenario"),
        (["--hall_judge", "rules"], "there is no judge 'rules'; choose rule"),
        (["--hall_judge", "discbert:/no/such"], "/no/such.*train_discbert"),
        (["--hall_judge", "rule", "--hall_mode", "all"], "hall_mode"),
    ],
)
def test_mistakes_with_the_judge(scenarios, tmp_path, call, arguments, said):
    with pytest.raises(InputError, match=said):
        call(main, "--dataset", scenarios, "--predictions", "a=x", "--out", tmp_path / "scores.json", *arguments)
    assert not (tmp_path / "scores.json").exists()
