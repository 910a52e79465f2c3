"""evaluate.py: hand-made predictions against hand-computed figures, what it writes, and each mistake named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from recipes.cli import InputError
from recipes.data.baselines import NEAREST, TEMPLATE
from recipes.data.figures import PRESETS
from recipes.data.schema import write_dataset
from recipes.data.scores import score
from recipes.evaluate import main
from rewards.bleu import tokenize
from rewards.completions import parse_completion
from rewards.labels import CONDITIONS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
EDEMA = {"completion": "<think>Haze.</think><report>There is pulmonary edema.</report>"}
PNEUMOTHORAX = {"completion": "There is a pneumothorax."}
QUICK = ("--meteor", "no", "--resamples", "200")  # METEOR's Java takes 15 s to start


def states(**named: CheXpertState) -> list[int]:
    return [int(named.get(name.replace(" ", "_"), BLANK)) for name in CONDITIONS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two studies: a has edema, b has cardiomegaly; nothing else is said."""
    labels = {"a": states(Edema=POSITIVE), "b": states(Cardiomegaly=POSITIVE)}
    texts = {"a": "There is pulmonary edema.", "b": "The heart is enlarged."}
    rows = [
        {"study_id": name, "report": texts[name], "images": [], "labels": value, "source": "phantom"}
        for name, value in labels.items()
    ]
    out = tmp_path_factory.mktemp("evaluate") / "data"
    write_dataset({"test": lambda: iter(rows)}, out, {"labeler": "lexical"})
    return out


def write_lines(file: Path, lines: list[str | dict]) -> Path:
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


@pytest.fixture
def evaluate(dataset, tmp_path, call):
    def evaluate(lines: list[str | dict], *arguments) -> dict:
        file = write_lines(tmp_path / "predictions.jsonl", lines)
        out = tmp_path / "scores"
        given = arguments if "--predictions" in arguments else (*arguments, "--predictions", f"ours={file}")
        call(main, "--dataset", dataset, "--out", out, *QUICK, *given)
        return json.loads((out / "metrics.json").read_text())

    return evaluate


# Study a: edema found. Study b: a pneumothorax that is not there, and the cardiomegaly missed.
OURS = [{"study_id": "a"} | EDEMA, {"study_id": "b"} | PNEUMOTHORAX]


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
    figures = evaluate(OURS)["systems"]["ours"]["figures"]
    found = [figures[f"ce/{labels}/positive/{average}/{name}"]["value"] for name in ("precision", "recall", "f1")]
    assert found == pytest.approx([precision, recall, f1])


def test_other_figures_by_hand(evaluate):
    metrics = evaluate(OURS[::-1])  # the order is the file's
    ours = metrics["systems"]["ours"]
    assert ours["figures"]["mccs"]["value"] == pytest.approx(0.5)  # identical vectors 1, orthogonal ones 0
    interval = ours["figures"]["mccs"]
    assert (interval["low"], interval["high"]) == pytest.approx((0, 1))  # b drawn twice, a drawn twice
    assert ours["figures"]["format_rate"]["value"] == 0.5  # b has no tags
    assert ours["figures"]["words"]["value"] == 4
    assert ours["kind"] == "model" and ours["lengths"]["samples"] == 2 and ours["lengths"]["distinct"] == 2
    assert ours["per_label"]["Edema"]["recall"]["value"] == 1
    assert (ours["per_label"]["Cardiomegaly"]["support"], ours["per_label"]["Cardiomegaly"]["predicted"]) == (1, 0)
    assert ours["errors"]["Cardiomegaly"]["omission"] == 1
    assert ours["errors"]["Pneumothorax"]["hallucination"] == 1
    assert ours["figures"]["errors/omission"]["value"] == 0.5
    assert ours["confusion"]["Edema"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert (metrics["labeler"], metrics["split"], metrics["source"]) == ("lexical", "test", "phantom")
    assert metrics["protocol"]["margin"] == 0.2
    template = metrics["systems"][TEMPLATE]
    assert template["kind"] == "baseline" and template["lengths"]["distinct"] == 1
    assert template["figures"]["ce/13/positive/micro/f1"]["value"] == 0  # finds nothing
    assert any(NEAREST in note and "left out" in note for note in metrics["notes"])  # no images here
    assert list(metrics["protocol"]["presets"]) == list(PRESETS)
    assert set(metrics["figures"]) == set(ours["figures"])  # every figure is explained


def test_differences_by_hand(evaluate):
    metrics = evaluate(OURS)
    row = next(
        row for row in metrics["differences"] if (row["minus"], row["figure"]) == (TEMPLATE, "ce/13/positive/micro/f1")
    )
    assert row["difference"] == pytest.approx(0.5)
    assert (row["low"], row["high"]) == (0, 1)  # b drawn twice, a drawn twice
    assert row["p_wilcoxon"] == 1  # one study of two differs
    assert "are tested" in metrics["notes"][-1]  # 200 resamples are too few for so many


def test_several_lines_of_a_study_are_several_samples(evaluate):
    metrics = evaluate([{"study_id": "a"} | EDEMA] * 2 + [{"study_id": "b"} | PNEUMOTHORAX])
    ours = metrics["systems"]["ours"]
    assert ours["lengths"]["samples"] == 3
    assert ours["figures"]["mccs"]["value"] == pytest.approx(2 / 3)
    assert ours["spread"] == {
        "studies": 1,
        **{name: {"value": 0, "low": None, "high": None} for name in ("mccs", "ce_f1")},
    }


def test_empty_completions_are_counted(evaluate):
    metrics = evaluate([{"study_id": "a", "completion": ""}, {"study_id": "b", "completion": "<report> </report>"}])
    ours = metrics["systems"]["ours"]
    assert ours["lengths"]["empty"] == 2
    assert "ours: 2 of 2 reports are empty and score 0" in metrics["notes"]
    assert ours["figures"]["radcliq_lite-v1"]["value"] == pytest.approx(2.4501, abs=1e-4)  # zero overlap
    assert all(ours["figures"][name]["value"] == 0 for name in ("lexical_words", "rouge-l", "cider", "mccs"))


def test_what_comes_from_looking(evaluate, tmp_path):
    """The control says of each study what the other one's image shows: nothing is left."""
    right = [{"study_id": "a"} | EDEMA, {"study_id": "b", "completion": "The heart is enlarged."}]
    swapped = [{"study_id": "b"} | EDEMA, {"study_id": "a", "completion": "The heart is enlarged."}]
    control = write_lines(tmp_path / "shuffled.jsonl", swapped)
    metrics = evaluate(right, "--shuffled", f"ours={control}")
    assert metrics["systems"]["ours.shuffled"]["kind"] == "control"
    looking = metrics["looking"]["ours"]
    row = looking["figures"]["ce/13/positive/micro/f1"]
    assert (looking["control"], row["score"], row["shuffled"]) == ("ours.shuffled", 1, 0)
    assert row["drop"]["value"] == row["share"]["value"] == 1
    assert looking["figures"]["radcliq_lite-v1"]["drop"]["value"] > 0  # turned round: lower is better
    assert looking["figures"]["radcliq_lite-v1"]["share"] is None


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


# --- what it writes ---------------------------------------------------------------------------------------------


def test_the_folder(evaluate, tmp_path, capsys):
    odd = {"study_id": "b", "completion": "No pneumothorax & 50 % <script>alert(1)</script> | {edema}."}
    metrics = evaluate([OURS[0], odd], "--compare", "paper", "--preset", "lmrrg")
    out = tmp_path / "scores"
    assert {file.name for file in out.iterdir()} == {
        "metrics.json", "tables.md", "tables.tex", "errors.jsonl", "report.html"
    }  # fmt: skip
    printed, markdown, latex = (
        capsys.readouterr().out,
        (out / "tables.md").read_text(),
        (out / "tables.tex").read_text(),
    )
    for text in (printed, markdown, latex):
        assert "LM-RRG" in text and TEMPLATE in text and "MRG-R1 (" not in text.split("Beside")[0]
    assert "| ours | " in markdown and "CheXbert, ours lexical" in markdown
    assert r"50 \%" not in latex and r"\begin{tabular}" in latex
    found = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    kinds = {(each["study_id"], each["label"], each["kind"]) for each in found if each["system"] == "ours"}
    assert ("b", "Cardiomegaly", "omission") in kinds
    assert "The heart is enlarged" not in (out / "metrics.json").read_text()  # quotes no report
    assert metrics["paper"] and not any(row["comparable"] for row in metrics["paper"])
    assert "<script>alert" not in (out / "report.html").read_text()
    evaluate(OURS)  # an earlier result gives way
    (out / "metrics.json").unlink()
    with pytest.raises(InputError, match="is no earlier result"):
        evaluate(OURS)
    with pytest.raises(InputError, match=r"tables\.md is a file; name a folder"):
        evaluate(OURS, "--out", out / "tables.md")


def test_the_model_card(evaluate, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    saved = {"commit": "abc", "ScriptArguments": {"dataset": "outputs/data/phantom", "max_steps": 3}}
    (folder / "run_config.json").write_text(json.dumps(saved))
    evaluate(OURS, "--write_model_card", folder)
    card = (folder / "README.md").read_text()
    for said in (
        "Research use, not for clinical use",
        "labeler: **lexical**",
        "| F1, micro, 13 labels",
        "max_steps: `3`",
    ):
        assert said in card
    assert "pulmonary edema" not in card and "heart is enlarged" not in card
    evaluate(OURS, "--write_model_card", folder)  # its own card may be replaced
    (folder / "README.md").write_text("mine")
    with pytest.raises(InputError, match="was written by somebody else"):
        evaluate(OURS, "--write_model_card", folder)
    with pytest.raises(InputError, match="there is no such folder"):
        evaluate(OURS, "--write_model_card", tmp_path / "absent")


# --- files of other systems -----------------------------------------------------------------------------------------


def test_figures_of_published_reports(tmp_path, call):
    """R2Gen's pair of 382 Open-i reports: BLEU, ROUGE-L and CIDEr are pycocoevalcap's."""
    folder = DATA / "mrg_rl" / "dev" / "result"
    if not folder.is_dir():
        pytest.skip("the Open-i outputs are not shipped: set RRG_DATA")
    res, gts = (folder / name for name in ("test_result.json", "test_refs.json"))
    given = ["--predictions", f"r2gen={res}", "--references", gts, "--out", tmp_path / "out", *QUICK]
    call(main, *given, "--original_references", gts)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    figures = metrics["systems"]["r2gen"]["figures"]
    truth, found = (
        {key: [tokenize(parse_completion(texts[0]).report)] for key, texts in json.loads(file.read_text()).items()}
        for file in (gts, res)  # one report has a stray </think>
    )
    bleu = Bleu(4).compute_score(truth, found, verbose=0)[0]
    expected = {f"bleu-{order}": value for order, value in enumerate(bleu, 1)}
    expected |= {"rouge-l": Rouge().compute_score(truth, found)[0], "cider": Cider().compute_score(truth, found)[0]}
    for name, value in expected.items():
        assert figures[name]["value"] == pytest.approx(value, rel=1e-9)
        assert figures[f"original/{name}"] == figures[name]
        assert figures[name]["low"] < value < figures[name]["high"]
    assert metrics["studies"] == 382 and metrics["protocol"]["references"] == "file"


def test_references_in_the_predictions_file(tmp_path, call):
    rows = [
        {"id": "a", "reference": "Edema.", "prediction": "Edema."},
        {"id": "b", "reference": "", "prediction": "x"},
        {"id": "c", "reference": "Pneumonia.", "prediction": "Clear."},
    ]
    file, other = write_lines(tmp_path / "p.jsonl", rows), write_lines(tmp_path / "q.jsonl", rows[:1])
    given = ["--predictions", f"x={file}", f"y={other}", "--out", tmp_path / "out", *QUICK]
    with pytest.raises(InputError, match="line 2: 'b' is not in this split"):  # it has no reference
        call(main, *given)
    call(main, *given, "--only_common")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["studies"] == 1
    assert metrics["systems"]["x"]["figures"]["ce/13/positive/micro/f1"]["value"] == 1
    assert metrics["systems"]["x"]["figures"]["mccs"]["low"] is None  # one study has no interval
    for said in ("1 studies of", "1 of 2 studies are not in every file", "CIDEr was not computed"):
        assert any(said in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (OURS[:1], "lacks 1 of 2 studies of the split, 'b'"),  # half a file is no result
        ([OURS[0], '{"study_id": "b", "compl'], "line 2: not a JSON object"),  # cut off
        ([{"study_id": "z"} | EDEMA], "line 1: 'z' is not in this split"),  # predictions of another split
        ([], "lacks 2 of 2 studies"),
    ],
)
def test_mistakes_in_a_predictions_file(evaluate, tmp_path, lines, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate(lines)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--predictions", "x.jsonl"], "NAME=FILE"),  # no name
        (["--predictions", "=x.jsonl"], "NAME=FILE"),
        (["--predictions", "a=x", "a=y"], "each name once"),
        (["--predictions", f"{TEMPLATE}=x"], "each name once"),  # the baseline's name
        (["--predictions", "a=absent.jsonl"], "there is no predictions file absent.jsonl"),
        (["--predictions", "a=absent_{scenario}.jsonl"], "absent_sn.jsonl, nor one of another scenario"),
        (["--predictions", "a=x", "--split", "dev"], "there is no predictions file x|no split 'dev'"),
        (["--predictions", "a=x", "--shuffled", "b=y"], "b.shuffled is a control, and --predictions has no b"),
        (["--predictions", "a=x", "--labeler", "chexbert"], "chexbert"),
        (["--predictions", "a=x", "--radgraph", "/no/such"], "--radgraph, --bertscore or --semb: .*no/such"),
        (["--predictions", "a=x", "--resamples", "10"], "--resamples must be at least 100"),
        (["--predictions", "a=x", "--margin", "1"], "--margin must lie"),
        (["--predictions", "a=x", "--preset", "r2gen"], "preset"),
        (["--predictions", "a=x", "--references", "y"], "there is no predictions file x|both name references"),
    ],
)
def test_mistakes_on_the_command_line(evaluate, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate([], *arguments)


def test_no_java(evaluate, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "meteor" not in evaluate(OURS, "--meteor", "auto")["figures"]
    with pytest.raises(InputError, match="no `java` on the PATH"):
        evaluate(OURS, "--meteor", "yes")


# --- scenarios, LLM-RG4's hall. -----------------------------------------------------------------------------------


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
    names = "abc"[: 3 if split != "test" else 2]
    file = write_lines(tmp_path / "ours.jsonl", [{"study_id": name, "completion": COMPARES} for name in names])
    given = ["--dataset", scenarios, "--split", split, "--predictions", f"ours={file}", "--out", tmp_path / "out"]
    call(main, *given, *QUICK, "--hall_judge", "rule", "--hall_mode", mode)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["protocol"]["hall_judge"], metrics["protocol"]["hall_mode"]) == ("rule", mode)
    found = metrics["references"]
    assert {**found["hall_by_scenario"], "all": found["hall"]} == pytest.approx(references)
    system = metrics["systems"]["ours"]
    by_scenario = {name: each["figures"]["hall"]["value"] for name, each in system["by_scenario"].items()}
    own = {**by_scenario, "all": system["figures"]["hall"]["value"]}
    assert own == pytest.approx(ours)  # the report counts, not what was thought
    assert metrics["systems"][TEMPLATE]["figures"]["hall"]["value"] == 0
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
    file = write_lines(tmp_path / "p.jsonl", [{"study_id": name, "completion": COMPARES} for name in "abc"])
    with pytest.raises(InputError, match=said):
        call(main, "--dataset", scenarios, "--predictions", f"a={file}", "--out", tmp_path / "out", *QUICK,
             "--only_common", *arguments)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_one_study_under_four_scenarios(tmp_path, call):
    """A folder of data sets. Study 1 is told alike in sn and mw, study 2 with an effusion in one of them only."""
    reports = {"sn": {"1": "Edema.", "2": "Edema."}, "mw": {"1": "Edema.", "2": "Edema. Pleural effusion."}}
    for scenario, texts in reports.items():
        rows = [{"study_id": name, "report": text, "images": [], "scenario": scenario} for name, text in texts.items()]
        write_dataset({"test": lambda rows=rows: iter(rows)}, tmp_path / "rg4" / scenario, {})
        lines = [{"study_id": name, "completion": text} for name, text in texts.items()]
        write_lines(tmp_path / f"ours_{scenario}.jsonl", lines)
    (tmp_path / "rg4" / "provenance.parquet").write_bytes(b"")  # as build_mimic_rg4.py leaves one: no data set
    given = ["--dataset", tmp_path / "rg4", "--predictions", f"ours={tmp_path}/ours_{{scenario}}.jsonl"]
    call(main, *given, "--out", tmp_path / "out", *QUICK)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["studies"], metrics["samples"]) == (2, 4)
    ours = metrics["systems"]["ours"]
    assert {name: each["studies"] for name, each in ours["by_scenario"].items()} == {"sn": 2, "mw": 2}
    found = ours["consistency"]
    assert (found["studies"], found["pairs"]) == (2, 2)
    assert found["agreement"]["value"] == found["references_agreement"]["value"] == pytest.approx((1 + 12 / 13) / 2)
    assert found["f1"]["value"] == pytest.approx(2 * 2 / (2 + 3))  # edema twice in common, of 2 and 3 findings
    assert metrics["systems"][TEMPLATE]["consistency"]["agreement"]["value"] == 1
