"""evaluate.py: hand-made predictions against hand-computed figures, what it writes, and each mistake named."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from test_baselines import picture
from test_build_from_table import write_sheet
from test_scores import expand

from recipes.data.schema import write_dataset
from recipes.evaluate import main
from recipes.evaluation.baselines import NEAREST, TEMPLATE
from recipes.evaluation.figures import PRESETS
from recipes.evaluation.references import Truth, read_originals
from recipes.evaluation.scores import score
from recipes.files import InputError
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


FORMATS = {
    "answers.csv": lambda frame, file: frame.to_csv(file, index=False),
    "with_index.csv": lambda frame, file: frame.to_csv(file),
    "semicolons.csv": lambda frame, file: frame.to_csv(file, index=False, sep=";"),
    "answers.tsv": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    "table.txt": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    "answers.xlsx": lambda frame, file: write_sheet(file, [list(frame), *frame.astype(str).values.tolist()]),
    "answers.parquet": lambda frame, file: frame.to_parquet(file, index=False),
    "answers.jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True),
    "list.json": lambda frame, file: frame.to_json(file, orient="records"),
    "columns.json": lambda frame, file: frame.to_json(file),
    "by_id.json": lambda frame, file: frame.set_index("image_id").to_json(file, orient="index"),
    "cp1252.csv": lambda frame, file: frame.to_csv(file, index=False, encoding="cp1252"),
    "utf16.csv": lambda frame, file: frame.to_csv(file, index=False, encoding="utf-16"),
}


def test_every_kind_of_file_has_the_same_scores(tmp_path, call):
    """Edema found; a pneumothorax that is not there, and the cardiomegaly missed; nothing written."""
    frame = pandas.DataFrame(
        {
            "image_id": [50414267, 50414268, 50414269],
            "gt": ["There is pulmonary edema.", "The heart is enlarged, as before.", "Clear – no edema."],
            "Generated Report": ["There is pulmonary edema.", "There is a pneumothorax.", "Caf\xe9: no edema."],
        }
    )
    scores = {}
    for name, write in FORMATS.items():
        write(frame, tmp_path / name)
        encoding = ("--encoding", "cp1252") if name == "cp1252.csv" else ()
        call(main, "--predictions", f"a={tmp_path / name}", "--out", tmp_path / "out", *QUICK, *encoding)
        scores[name] = json.loads((tmp_path / "out/metrics.json").read_text())["systems"]["a"]["figures"]
    for name, column in (("hyp.txt", "Generated Report"), ("ref.txt", "gt")):
        (tmp_path / name).write_text("\n".join(frame[column]) + "\n")
    pair = ("--predictions", f"a={tmp_path / 'hyp.txt'}", "--references", tmp_path / "ref.txt")
    call(main, *pair, "--out", tmp_path / "out", *QUICK)
    scores["hyp.txt"] = json.loads((tmp_path / "out/metrics.json").read_text())["systems"]["a"]["figures"]
    assert scores["answers.csv"]["ce/5/positive/micro/f1"]["value"] == pytest.approx(2 / 3)  # as above
    for name, figures in scores.items():
        assert figures == scores["answers.csv"], name
    with pytest.raises(
        InputError, match=r"cp1252\.csv is not UTF-8 in 1 of 5 lines, line 4 first.*such as --encoding cp1252"
    ):
        call(main, "--predictions", f"a={tmp_path / 'cp1252.csv'}", "--out", tmp_path / "out", *QUICK)


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


@pytest.mark.parametrize(
    ("given", "resamples", "seed"),
    [((), 10000, 0), (("--resamples", "150", "--seed", "5"), 150, 5)],
)
def test_seed_and_resamples(tmp_path, call, given, resamples, seed):
    """The interval of the mean length of four reports, drawn here study by study."""
    words = np.array([1, 3, 9, 27])
    lines = [
        {"id": study, "prediction": "clear " * count, "reference": "Clear."}
        for study, count in zip("abcd", words, strict=True)
    ]
    file = write_lines(tmp_path / "ours.jsonl", lines)
    call(main, "--predictions", f"ours={file}", "--out", tmp_path / "out", "--meteor", "no", *given)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    draws = np.random.default_rng(seed)
    means = [words[draws.integers(4, size=4)].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert metrics["systems"]["ours"]["figures"]["words"] == pytest.approx({"value": 10, "low": low, "high": high})
    assert (metrics["protocol"]["resamples"], metrics["protocol"]["seed"]) == (resamples, seed)


def test_several_lines_of_a_study_are_several_samples(evaluate):
    metrics = evaluate([{"study_id": "a"} | EDEMA] * 2 + [{"study_id": "b"} | PNEUMOTHORAX])
    ours = metrics["systems"]["ours"]
    assert ours["lengths"]["samples"] == 3
    assert ours["figures"]["mccs"]["value"] == pytest.approx(2 / 3)
    assert ours["spread"]["studies"] == 1 and ours["spread"]["mccs"]["low"] is None  # one study has no interval


@pytest.mark.parametrize("margin", [0.2, 0.5])
def test_spread_by_hand(evaluate, margin):
    """Of a one sample is right and one has a finding too many, of b one is right and one wrong; of two s = |x - y|/2.

    With one finding of two right the cosine is 1/sqrt(2), MCCS (1/sqrt(2) - m)/(1 - m) and F1 2/3.
    """
    texts = {"a": ("There is pulmonary edema.", "There is pulmonary edema. There is a pneumothorax."),
             "b": ("The heart is enlarged.", "There is a pneumothorax.")}  # fmt: skip
    lines = [{"study_id": study, "completion": text} for study, own in texts.items() for text in own]
    spread = evaluate(lines, "--margin", margin)["systems"]["ours"]["spread"]
    of_a = (1 - 0.5**0.5) / (1 - margin) / 2  # .183 for m = .2, .293 for .5
    assert spread["studies"] == 2
    for name, low in (("mccs", of_a), ("ce_f1", 1 / 6)):
        found = [spread[name][key] for key in ("value", "low", "high")]
        assert found == pytest.approx([(low + 1 / 2) / 2, low, 1 / 2])  # a drawn twice, b drawn twice


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
    reliance = metrics["image_reliance"]["ours"]
    row = reliance["figures"]["ce/13/positive/micro/f1"]
    assert (reliance["control"], row["score"], row["shuffled"]) == ("ours.shuffled", 1, 0)
    assert row["drop"]["value"] == row["share"]["value"] == 1
    assert reliance["figures"]["radcliq_lite-v1"]["drop"]["value"] > 0  # turned round: lower is better
    assert reliance["figures"]["radcliq_lite-v1"]["share"] is None


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


# --- the nearest training report, original references --------------------------------------------------------------

LEFT, RIGHT = np.array([[255.0, 0], [255, 0]]), np.array([[0, 255.0], [0, 255]])  # bright halves: correlation -1
RATHER_LEFT, RATHER_RIGHT = np.array([[255.0, 0], [255, 255]]), np.array([[0, 255.0], [255, 255]])  # 0.58 with theirs
PATTERNS = {"RATHER_LEFT": RATHER_LEFT, "LEFT": LEFT, "RATHER_RIGHT": RATHER_RIGHT, "RIGHT": RIGHT}
HEART, AIR = "The heart is enlarged.", "There is a pneumothorax."


def image_row(study: str, pattern: np.ndarray, report: str | None, scenario: str | None = None) -> dict:
    return {"study_id": study, "images": [picture(pattern)], "report": report, "scenario": scenario}


@pytest.mark.parametrize(
    ("train_pool", "scenarios", "right", "said"),
    [
        (5000, [None] * 4, "a", ""),  # of all four the same pictures: a's has edema, b's not what b has
        (4, [None] * 4, "a", ""),  # as many as there are
        (3, [None] * 4, "b", "sought among 2 of 4 training studies"),  # every second one: the rather similar pictures
        (5000, ["sw", "sn", "sw", "sn"], "ab", ""),  # a is sn, b sw
        (3, ["sw", "sw", "sn", "sw"], "", "sought among 2 of 4"),  # the first is sw, the third sn: both crosswise
    ],
)
def test_nearest_training_report(tmp_path, call, train_pool, scenarios, right, said):
    """Which of the two test studies gets a right report from the training study that looks most like it."""
    texts = [AIR, "There is pulmonary edema.", HEART, AIR]
    train = [
        image_row(f"t{number}", pattern, text, scenario)
        for number, (pattern, text, scenario) in enumerate(zip(PATTERNS.values(), texts, scenarios, strict=True))
    ]
    train.append(image_row("silent", LEFT, None))  # has no report to give
    own = ["sn", "sw"] if any(scenarios) else [None] * 2
    test = [image_row("a", LEFT, "There is pulmonary edema.", own[0]), image_row("b", RIGHT, HEART, own[1])]
    write_dataset({"train": lambda: iter(train), "test": lambda: iter(test)}, tmp_path / "data", {})
    file = write_lines(tmp_path / "ours.jsonl", OURS)
    given = ["--dataset", tmp_path / "data", "--predictions", f"ours={file}", "--out", tmp_path / "out", *QUICK]
    call(main, *given, "--train_pool", train_pool)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    nearest = metrics["systems"][NEAREST]
    assert nearest["kind"] == "baseline" and nearest["lengths"]["samples"] == 2
    recall = {name: nearest["per_label"][name]["recall"]["value"] for name in ("Edema", "Cardiomegaly")}
    assert recall == {"Edema": "a" in right, "Cardiomegaly": "b" in right}
    assert nearest["figures"]["ce/13/positive/micro/f1"]["value"] == len(right) / 2  # two findings, two said
    notes = [note for note in metrics["notes"] if NEAREST in note]
    assert len(notes) == bool(said) and all(said in note for note in notes)


def test_nearest_training_report_of_the_same_scenario(tmp_path, call):
    """Study 1 looks alike in sn and mw, and their training studies with that picture say different things; sw has no
    training split and searches both, where mw has its very picture."""
    edema = "There is pulmonary edema."
    train = {
        "sn": [image_row("t", LEFT, edema), image_row("u", RATHER_RIGHT, AIR)],
        "mw": [image_row("v", LEFT, AIR), image_row("w", RIGHT, HEART)],
    }
    test = {"sn": [("1", LEFT, edema)], "sw": [("2", RIGHT, HEART)], "mw": [("3", RIGHT, HEART), ("1", LEFT, edema)]}
    lines = []
    for scenario, studies in test.items():
        splits = {"test": [image_row(*study, scenario) for study in studies]}
        splits |= {"train": train[scenario]} if scenario in train else {}
        given = {name: lambda rows=rows: iter(rows) for name, rows in splits.items()}
        write_dataset(given, tmp_path / "rg4" / scenario, {})
        lines += [{"study_id": study, "scenario": scenario, "completion": "Clear."} for study, _, _ in studies]
    file = write_lines(tmp_path / "ours.jsonl", lines)
    call(main, "--dataset", tmp_path / "rg4", "--predictions", f"ours={file}", "--out", tmp_path / "out", *QUICK)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = {
        name: each["figures"]["ce/13/positive/micro/f1"]["value"]
        for name, each in metrics["systems"][NEAREST]["by_scenario"].items()
    }
    assert found == {"sn": 1, "sw": 1, "mw": 1 / 2}


def write_originals(where: Path, kind: str, texts: dict[str, str]) -> None:
    """Original references by study, as a file of lines or as a data set."""
    if kind == "file":
        write_lines(where, [{"id": study, "reference": text} for study, text in texts.items()])
    else:
        rows = [{"study_id": study, "report": text} for study, text in texts.items()]
        write_dataset({"test": lambda: iter(rows)}, where, {})


@pytest.mark.parametrize("kind", ["file", "dataset"])
def test_clean_and_original_references_in_one_call(evaluate, tmp_path, kind):
    originals = {"b": "No pneumothorax, and no pleural effusion.", "a": "Moderate edema."}  # 8 and 3 tokens
    where = tmp_path / "originals"
    write_originals(where, kind, originals)
    copy = [{"study_id": study, "completion": text} for study, text in originals.items()]
    files = [write_lines(tmp_path / f"{name}.jsonl", lines) for name, lines in (("ours", OURS), ("copy", copy))]
    given = ["--predictions", f"ours={files[0]}", f"copy={files[1]}", "--original_references", where]
    metrics = evaluate([], *given)
    systems = metrics["systems"]
    ours = {name: each["value"] for name, each in systems["ours"]["figures"].items()}
    brevity = np.exp(1 - 11 / 10)  # both reports have 5 tokens, the full stop one of them

    def rouge(precision: float, recall: float) -> float:
        return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)

    expected = {
        "bleu-1": (5 + 2) / 10,  # b: "is" and the full stop
        "bleu-2": (7 / 10 * 4 / 8) ** 0.5,
        "rouge-l": (1 + 2 / 5) / 2,
        "cider": 10 / 2,  # a is the reference; b shares with its own what both references have, which counts nothing
        "original/bleu-1": brevity * (2 + 2) / 10,  # edema, pneumothorax and two full stops
        "original/bleu-2": brevity * (4 / 10 * 1 / 8) ** 0.5,  # "edema."
        "original/rouge-l": (rouge(2 / 5, 2 / 3) + rouge(2 / 5, 2 / 8)) / 2,
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    copied = {name: each["value"] for name, each in systems["copy"]["figures"].items()}
    assert [copied[f"original/{name}"] for name in ("bleu-1", "rouge-l")] == pytest.approx([1, 1])
    assert copied["bleu-1"] < 0.5 and copied["mccs"] == pytest.approx(1 / 2)  # labels are the clean references'
    assert metrics["protocol"]["original_references"] == str(where)


@pytest.mark.parametrize("kind", ["file", "dataset"])
def test_original_references_that_lack_studies(tmp_path, kind):
    truth = Truth(["sn/a", "sn/b", "sn/c"], [""] * 3, np.zeros((3, 14), int), ["sn"] * 3, np.arange(3))
    texts = {"a": "Edema.", "c": " "}  # c has white space, b nothing
    where = tmp_path / "originals"
    write_originals(where, kind, texts)
    with pytest.raises(InputError, match=r"--original_references .*originals lacks 2 of 3 studies, 'b' first"):
        read_originals(str(where), "test", truth)


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
    with pytest.raises(InputError, match=r"tables\.md is a file: name a folder"):
        evaluate(OURS, "--out", out / "tables.md")


def all_keys(value, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of all that a JSON value holds; an interval, {value, low, high}, is one thing."""
    if isinstance(value, dict) and value and set(value) != {"value", "low", "high"}:
        return set().union(*(all_keys(each, (*path, key)) for key, each in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(all_keys(each, path) for each in value))
    return {path}


def test_every_key_is_documented(tmp_path, call):
    """The tables under "All keys" of recipes/scoring.md name every key of metrics.json, and no other.

    The run has all that adds keys: scenarios, several samples, a control, the judge, the papers' rows.
    """
    rows = {"1": "There is pulmonary edema.", "2": HEART}
    for scenario in ("sn", "mw"):
        own = [{"study_id": study, "report": text, "scenario": scenario} for study, text in rows.items()]
        write_dataset({"test": lambda own=own: iter(own)}, tmp_path / "rg4" / scenario, {})
    lines = [
        {"study_id": study, "scenario": scenario, "completion": text, "input_tokens": 9, "tokens": 5, "seconds": 0.1}
        for scenario in ("sn", "mw")
        for study in rows
        for text in (AIR, HEART)
    ]
    file = write_lines(tmp_path / "ours.jsonl", lines)
    given = ["--dataset", tmp_path / "rg4", "--predictions", f"ours={file}", "--shuffled", f"ours={file}", *QUICK]
    call(main, *given, "--out", tmp_path / "out", "--hall_judge", "rule", "--compare", "paper")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    text = (Path(__file__).parents[2] / "recipes" / "scoring.md").read_text()
    section = text.split("### All keys\n")[1].split("\n### ")[0].split("\n## ")[0]
    cells = [row.split(" | ")[0] for row in section.split("\n") if row.startswith("| `")]
    patterns = {tuple(name.split(".")) for cell in cells for each in cell.split("`")[1::2] for name in expand(each)}

    def fits(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
        return len(path) == len(pattern) and all(a in (b, "*") for a, b in zip(pattern, path, strict=True))

    found = all_keys(metrics)
    # a path may end early: null, {} or [] stands for what there is none of
    assert {path for path in found if not any(fits(path, each[: len(path)]) for each in patterns)} == set()
    assert {each for each in patterns if not any(fits(path, each) for path in found)} == set()


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
    with pytest.raises(InputError, match=r"p\.jsonl, line 2: 'b' has no reference.*--only_common"):
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
        (["--predictions", "x.jsonl"], "--predictions takes NAME=FILE, .* not 'x.jsonl'"),  # no name
        (["--predictions", "=x.jsonl"], "--predictions takes NAME=FILE, .* not '=x.jsonl'"),
        (["--predictions", "a=x", "a=y"], "each name once, and not 'a=y'"),
        (["--predictions", f"{TEMPLATE}=x"], f"each name once, and not '{TEMPLATE}=x'"),  # the baseline's name
        (["--predictions", "a=x", "--shuffled", "x"], "--shuffled takes NAME=FILE, .* not 'x'"),
        (["--predictions", "a=absent.jsonl"], "there is no predictions file absent.jsonl"),
        (["--predictions", "a=absent_{scenario}.jsonl"], "absent_sn.jsonl, nor one of another scenario"),
        (["--split", "dev"], r"has no split 'dev' \(has test\)"),
        (["--predictions", "a=x", "--shuffled", "b=y"], "b.shuffled is a control, and --predictions has no b"),
        (["--labeler", "radgraph"], "there is no labeler 'radgraph'; choose lexical, chexbert or chexbert:MODEL"),
        (["--labeler", "chexbert:/no/such"], "labeler chexbert:/no/such: no CheXbert could be loaded from /no/such"),
        (["--radgraph", "/no/such"], "--radgraph, --bertscore or --semb: no RadGraph could be loaded from /no/such"),
        (["--resamples", "10"], "--resamples must be at least 100, not 10"),
        (["--margin", "1"], r"--margin must lie in \(-1, 1\), not 1"),
        (["--preset", "r2gen"], "argument --preset: invalid choice: 'r2gen'"),
        (["--references", "y"], "--dataset and --references both name references: give one"),
        (["--train_pool", "0"], "--train_pool must be at least 1, not 0"),
    ],
)
def test_mistakes_on_the_command_line(evaluate, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate([], *arguments)


# --- METEOR ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def aligner(monkeypatch, tmp_path):
    """Stands in for METEOR's Java: equal texts match whole, others not at all. Holds the pairs of each call."""
    calls = []

    def statistics(generated, references):
        calls.append(list(zip(generated, references, strict=True)))
        counts = np.zeros(
            (len(generated), 23)
        )  # columns of recipes.evaluation.meteor.meteor_statistics, no function words
        for row, pair in zip(counts, calls[-1], strict=True):
            words = [len(text.split()) for text in pair]
            row[:2] = words
            if pair[0] == pair[1]:
                row[4:6] = row[21:23] = words  # content words that match as they are
        return counts

    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'stand-in version 9' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("recipes.evaluation.scores.meteor_statistics", statistics)
    return calls


def test_meteor_of_each_system_and_reference(evaluate, tmp_path, aligner):
    """METEOR without fragments is P R / (.15 R + .85 P), P and R the matched share of all words of the corpus."""
    heart = {"study_id": "b", "completion": "The heart is enlarged."}
    other = write_lines(tmp_path / "other.jsonl", [{"study_id": "a"} | EDEMA, {"study_id": "a"} | PNEUMOTHORAX, heart])
    ours = write_lines(tmp_path / "ours.jsonl", OURS)
    originals = [{"id": "b", "reference": "There is a pneumothorax."}, {"id": "a", "reference": "Edema."}]
    given = ["--predictions", f"other={other}", f"ours={ours}", "--meteor", "yes"]
    metrics = evaluate([], *given, "--original_references", write_lines(tmp_path / "originals.jsonl", originals))
    found = {name: each["figures"] for name, each in metrics["systems"].items()}
    expected = {
        ("other", "meteor"): (2 / 3, 1 / 2, 1),  # 8 of 12 words; a drawn twice: 8 of 16; b twice: all
        ("other", "original/meteor"): (0, 0, 0),
        ("ours", "meteor"): (1 / 2, 0, 1),  # b drawn twice, a drawn twice
        ("ours", "original/meteor"): (0.4 / (0.15 * 0.8 + 0.85 * 0.5), 0, 1),  # 4 of 8 words, 4 of the references' 5
        (TEMPLATE, "meteor"): (0, 0, 0),
        (TEMPLATE, "original/meteor"): (0, 0, 0),
    }
    for (name, figure), values in expected.items():
        interval = found[name][figure]
        assert [interval[key] for key in ("value", "low", "high")] == pytest.approx(values), (name, figure)
    assert [len(call) for call in aligner] == [14]  # Java starts once: 2 + 3 + 2 reports, two references each
    assert metrics["versions"]["java"] == "stand-in version 9"
    row = next(
        row
        for row in metrics["differences"]
        if (row["system"], row["minus"], row["figure"]) == ("ours", "other", "meteor")
    )
    assert row["difference"] == pytest.approx(1 / 2 - 2 / 3)


def test_meteor_that_gives_up(evaluate, aligner, monkeypatch):
    def statistics(generated, references):
        raise RuntimeError("METEOR's Java gave no answer for pair 1: it ended")

    monkeypatch.setattr("recipes.evaluation.scores.meteor_statistics", statistics)
    with pytest.raises(InputError, match="no answer for pair 1: it ended; give --meteor no to do without"):
        evaluate(OURS, "--meteor", "auto")


@pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs Java: install a Java runtime (8 or newer)")
def test_meteor_by_java(tmp_path, call):
    """The jar's own corpus score of these pairs, 0.2950438 (METEOR_CORPUS of tests/rewards/test_nlg.py)."""
    pairs = [
        ("The heart is normal in size. No pleural effusion.", "The heart is normal in size. No pleural effusion."),
        (
            "Small effusions on the left side, heart enlarged.",
            "There is a small left pleural effusion. The heart is enlarged.",
        ),
        ("There is a pneumothorax.", "No pneumothorax is seen. The lungs are clear."),
        ("", "Clear lungs."),
    ]
    lines = [{"id": f"{n}", "prediction": text, "reference": truth} for n, (text, truth) in enumerate(pairs)]
    file = write_lines(tmp_path / "predictions.jsonl", lines)
    call(main, "--predictions", f"ours={file}", "--out", tmp_path / "out", "--meteor", "yes", "--resamples", "200")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = metrics["systems"]["ours"]["figures"]["meteor"]
    assert found["value"] == pytest.approx(0.2950438175733979, abs=1e-12)
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_no_java(evaluate, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    metrics = evaluate(OURS, "--meteor", "auto")
    assert "meteor" not in metrics["figures"] and "meteor" in metrics["protocol"]["presets"]["llmrg4"]["absent"]
    # study a: the reference's five tokens in one chunk; study b: "is", the full stop, of five and five, in two chunks
    expected = (1 - 0.5 / 5**3 + 2 / 5 * (1 - 0.5)) / 2
    assert metrics["systems"]["ours"]["figures"]["meteor_lite"]["value"] == pytest.approx(expected)
    assert any(
        "meteor_lite in its place, nltk's without synonyms, is not comparable" in note for note in metrics["notes"]
    )
    assert metrics["versions"]["nltk"]
    assert "meteor_lite" not in evaluate(OURS, "--meteor", "no")["figures"]
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


@pytest.mark.parametrize("files", ["one", "of each scenario"])
def test_what_a_report_cost(tmp_path, call, files):
    """What generate.py noted, means by hand; a file that lacks a figure of one report tells nothing."""
    costs = {
        ("sn", "1"): (100, 20, 0.5),
        ("sn", "2"): (110, 30, 0.5),
        ("mw", "1"): (300, 30, 2.0),
        ("mw", "2"): (330, 40, 1.0),
    }
    lines = {"sn": [], "mw": []}
    for (scenario, study), (inputs, tokens, seconds) in costs.items():
        own = {"study_id": study, "completion": HEART, "input_tokens": inputs, "tokens": tokens, "seconds": seconds}
        lines[scenario].append(own if files == "of each scenario" else own | {"scenario": scenario})
    for scenario in lines:
        rows = [{"study_id": study, "report": HEART, "images": [], "scenario": scenario} for study in "12"]
        write_dataset({"test": lambda rows=rows: iter(rows)}, tmp_path / "rg4" / scenario, {})
    silent = [{name: value for name, value in row.items() if name != "seconds"} for row in lines["mw"][1:]]
    for name, last in (("ours", lines["mw"][1:]), ("silent", silent)):
        written = {"sn": lines["sn"], "mw": [*lines["mw"][:1], *last]}
        if files == "one":
            write_lines(tmp_path / f"{name}.jsonl", [row for own in written.values() for row in own])
        for scenario, own in written.items() if files != "one" else ():
            write_lines(tmp_path / f"{name}_{scenario}.jsonl", own)
    end = ".jsonl" if files == "one" else "_{scenario}.jsonl"
    given = ["--predictions", *(f"{name}={tmp_path}/{name}{end}" for name in ("ours", "silent"))]
    call(main, "--dataset", tmp_path / "rg4", *given, "--out", tmp_path / "out", *QUICK)
    systems = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]
    assert systems["silent"]["cost"] is None and systems[TEMPLATE]["cost"] is None
    assert systems["ours"]["cost"] == {
        "all": {"samples": 4, "input_tokens": 210, "largest_input": 330, "tokens": 30, "seconds": 1},
        "sn": {"samples": 2, "input_tokens": 105, "largest_input": 110, "tokens": 25, "seconds": 0.5},
        "mw": {"samples": 2, "input_tokens": 315, "largest_input": 330, "tokens": 35, "seconds": 1.5},
    }
    assert "| ours | mw | 2 | 315 | 330 | 35 | 1.50 |" in (tmp_path / "out" / "tables.md").read_text()


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


def test_one_study_alone(tmp_path, call):
    """LLM-RG4's Fig. 4: study 2 under both scenarios, the reports of two models, and nothing of study 1."""
    reports = {"sn": {"1": "Edema.", "2": "Edema."}, "mw": {"1": "Edema.", "2": "Edema. Pleural effusion."}}
    for scenario, texts in reports.items():
        rows = [{"study_id": name, "report": text, "images": [], "scenario": scenario} for name, text in texts.items()]
        write_dataset({"test": lambda rows=rows: iter(rows)}, tmp_path / "rg4" / scenario, {})
        for system in ("tlw", "plain"):
            lines = [{"study_id": name, "completion": f"{system} {scenario} {name}. Edema."} for name in texts]
            write_lines(tmp_path / f"{system}_{scenario}.jsonl", lines)
    given = ["--dataset", tmp_path / "rg4", "--out", tmp_path / "out", *QUICK]
    given += ["--predictions", *(f"{system}={tmp_path}/{system}_{{scenario}}.jsonl" for system in ("tlw", "plain"))]
    call(main, *given, "--case", "2")
    page = (tmp_path / "out" / "case.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["alone"] and [(row["scenario"], row["group"]) for row in data["cases"]] == [("sn", "2"), ("mw", "2")]
    systems = [each["name"] for each in data["systems"]]
    for row in data["cases"]:
        texts = dict(zip(systems, [data["texts"][report[0]] for report in row["reports"]], strict=True))
        assert [texts[name] for name in ("tlw", "plain")] == [
            f"{name} {row['scenario']} 2. Edema." for name in ("tlw", "plain")
        ]
        assert data["texts"][row["reference"]] == reports[row["scenario"]]["2"]
    assert not any(" 1. " in text for text in data["texts"])
    assert "<h1>Study 2: 2 systems,\n2 scenarios</h1>" in page and 'id="scores"' not in page
    assert 'id="scores"' in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(InputError, match="--case: no study 'sn/3' is scored; '1' is one"):
        call(main, *given, "--case", "sn/3")
    call(main, *given)
    assert not (tmp_path / "out" / "case.html").exists()
