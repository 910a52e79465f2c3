"""Training a CheXbert end to end in a few steps, and the text that it learns from."""

import csv
import json
import os
import random
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from modeling.tiny import build_chexbert
from recipes import train_chexbert
from recipes.cli import InputError
from recipes.data.labelled import mix, read_csv
from rewards.chexbert import CheXbertLabeler
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
REPORTS = [
    "There is no edema. The heart is normal.",
    "Small pleural effusion! Possible pneumonia?",
    "Lungs are clear.",
]


def write_csv(
    file: Path, rows: list[tuple[str, dict[str, str]]], columns=CONDITIONS, text="Report Impression"
) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [text, *columns])
        writer.writeheader()
        writer.writerows({text: report, **cells} for report, cells in rows)
    return file


def test_csv_of_chexpert(tmp_path):
    rows = [
        (" A\n small effusion ", {"Pleural Effusion": "1.0", "Edema": "0", "Pneumonia": "-1.0"}),
        ("Clear.", {"No Finding": "1"}),
        ("Clear.", {"Edema": "1"}),  # the same report again
        ("Edema.", {"Edema": "1.0", "No Finding": "0.0"}),  # No Finding is positive or blank
        ("", {"Edema": "1"}),
    ]
    labelled = read_csv(str(write_csv(tmp_path / "x.csv", rows)), "Report Impression")
    assert list(labelled) == ["A small effusion", "Clear.", "Edema."]
    named = [dict(zip(CONDITIONS, states, strict=True)) for states in labelled.values()]
    assert {name: state for name, state in named[0].items() if state} == {
        "Pleural Effusion": POSITIVE,
        "Edema": NEGATIVE,
        "Pneumonia": UNCERTAIN,
    }
    assert {name: state for name, state in named[1].items() if state} == {"No Finding": POSITIVE}
    assert {name: state for name, state in named[2].items() if state} == {"Edema": POSITIVE}


def test_published_sample():
    file = DATA / "chexbert_sample/labeled_reports.csv"
    if not file.is_file():
        pytest.skip("the published sample is not shipped: set RRG_DATA")
    labelled = read_csv(str(file), "Report Impression")
    assert len(labelled) == 4
    first = dict(zip(CONDITIONS, next(iter(labelled.values())), strict=True))
    assert first["Edema"] == NEGATIVE and first["No Finding"] == POSITIVE and first["Fracture"] == BLANK


@pytest.mark.parametrize(
    ("rows", "columns", "text", "message"),
    [
        ([("x", {})], CONDITIONS[:13], "Report Impression", "no column 'No Finding'"),
        ([("x", {})], CONDITIONS, "report", "no column 'Report Impression'"),
        ([], CONDITIONS, "Report Impression", "or no row"),
        ([("x", {}), ("y", {"Edema": "2"})], CONDITIONS, "Report Impression", "record 3: a CheXpert CSV holds 1, 0"),
        ([("x", {"Edema": "yes"})], CONDITIONS, "Report Impression", "record 2: could not convert"),
    ],
)
def test_bad_csvs_are_refused(tmp_path, rows, columns, text, message):
    with pytest.raises(InputError, match=message):
        read_csv(str(write_csv(tmp_path / "x.csv", rows, columns, text)), "Report Impression")


def test_missing_csv():
    with pytest.raises(InputError, match="No such file"):
        read_csv("/no/such.csv", "Report Impression")


def test_mixtures_are_made_of_the_reports_and_of_phrases_that_the_teacher_knows():
    teacher = LexicalLabeler()
    texts = mix(REPORTS, 400, teacher, random.Random(0))
    assert texts == mix(REPORTS, 400, teacher, random.Random(0)) and len(texts) == 400
    known = REPORTS + [phrase for phrases in teacher.phrases() for phrase in phrases]
    assert {word for text in texts for word in text.split()} <= {word for text in known for word in text.split()}
    whole = sum(text in REPORTS for text in texts)
    assert 100 < whole < 220 and len(set(texts)) > 200 and all(texts)


def test_mixtures_show_rare_states_often():
    reports = ["The heart is normal in size."] * 99 + ["There is a rib fracture."]
    reports = [f"{report} Number {i}." for i, report in enumerate(reports)]
    teacher = LexicalLabeler()
    states = teacher(mix(reports, 400, teacher, random.Random(0)))
    assert (states[:, CONDITIONS.index("Fracture")] == POSITIVE).mean() > 0.2  # one in a hundred of the reports


SMALL = {"texts": 40, "max_steps": 2, "held_out": 0.5, "bar": 0, "disable_tqdm": "true"}


def run(call, **arguments) -> Path:
    call(train_chexbert.main, *(word for name, value in arguments.items() for word in (f"--{name}", value)))
    return Path(arguments["output_dir"])


def test_distilled(phantom, tmp_path, call, monkeypatch):
    seen = {}
    real_mix, real_call = train_chexbert.mix, CheXbertLabeler.__call__
    monkeypatch.setattr(
        train_chexbert, "mix", lambda reports, *rest: real_mix(seen.setdefault("trained", reports), *rest)
    )
    monkeypatch.setattr(
        CheXbertLabeler, "__call__", lambda self, texts: real_call(self, seen.setdefault("held_out", texts))
    )
    out = run(call, dataset=phantom, output_dir=tmp_path / "out", **SMALL)
    assert seen["trained"] and seen["held_out"] and not set(seen["trained"]) & set(seen["held_out"])
    assert CheXbertLabeler(out, device="cpu").embed(["No edema."]).shape == (1, 96)
    results = json.loads((out / "results.json").read_text())
    assert results["reports"] == len(seen["held_out"])
    assert set(results["held_out"]) >= {"micro", "macro", "Edema"} and results["checks"][0]["holds"]
    assert json.loads((out / "run_config.json").read_text())["RecipeArguments"]["texts"] == 40


def test_from_a_csv_and_a_bert(tmp_path, call):
    rows = [(f"{size} effusion {n}", {"Pleural Effusion": "1"}) for size in ("Small", "Large") for n in range(4)]
    _, tokenizer = build_chexbert([text for text, _ in rows], 60)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    file = write_csv(tmp_path / "x.csv", rows)
    out = run(call, csv=file, model=tmp_path / "bert", output_dir=tmp_path / "out", **SMALL)
    labeler = CheXbertLabeler(out, device="cpu")
    assert labeler.model.config.hidden_size == 16 and labeler.model.config.model_type == "chexbert"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0}, "leaves none on one side"),
        ({"held_out": 1}, "leaves none on one side"),
        ({"model": "/no/such/bert"}, "no such folder"),
        ({"dataset": "/no/such/data"}, "there is no data set"),
    ],
)
def test_bad_arguments_are_refused(phantom, tmp_path, call, changes, message):
    arguments = {"dataset": phantom, "output_dir": tmp_path / "out"} | SMALL | changes
    with pytest.raises(InputError, match=message):
        run(call, **arguments)
    assert not (tmp_path / "out/model.safetensors").exists()
