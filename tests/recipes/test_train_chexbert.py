"""Training a CheXbert end to end in a few steps, and the text that it learns from."""

import csv
import inspect
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertConfig, BertModel, Trainer, TrainingArguments

from modeling import CheXbertModel
from modeling.tiny import build_chexbert
from recipes import cli, train_chexbert
from recipes.files import InputError
from recipes.trainers.evidence import EvidenceCollator, EvidenceTrainer, find_evidence, mix, read_csv
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


def test_csv_of_chexpert(tmp_path, capsys):
    rows = [
        (" A\n small effusion ", {"Pleural Effusion": "1.0", "Edema": "0", "Pneumonia": "-1.0"}),
        ("Clear.", {"No Finding": "1"}),
        ("Clear.", {"Edema": "1"}),  # the same report again
        ("Edema.", {"Edema": "1.0", "No Finding": "0.0"}),  # No Finding is positive or blank
        ("", {"Edema": "1"}),
        (" ...", {"Edema": "1"}),
    ]
    labelled = read_csv(str(write_csv(tmp_path / "x.csv", rows)), "Report Impression")
    sentence = "2 of 6 records of --csv .*x.csv have no report and are left out, record 6 first\n"
    assert re.fullmatch(sentence, capsys.readouterr().out)
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


# The words' loss, in batches of any size and in any processes


TEXTS = [" ".join(" ".join(REPORTS * 2).split()[:length]) for length in (2, 4, 8, 11, 15, 18, 22, 26)]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Of a model and its tokenizer, which is not the same when it is trained again."""
    folder = tmp_path_factory.mktemp("start")
    for part in build_chexbert(TEXTS, 60, hidden_size=16, layers=2, heads=2):
        part.save_pretrained(folder)
    return folder


def evidence_trainer(start, out, size: int, **changes) -> EvidenceTrainer:
    """Two steps with all of eight rows of eight lengths; SGD, so that equal gradients give equal weights."""
    model, tokenizer = CheXbertModel.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    teacher = LexicalLabeler()
    columns = (tokenizer(TEXTS)["input_ids"], teacher(TEXTS).tolist(), find_evidence(tokenizer, TEXTS, teacher))
    rows = [dict(zip(("input_ids", "labels", "evidence"), row, strict=True)) for row in zip(*columns, strict=True)]
    values = {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": size, "per_device_eval_batch_size": size, "learning_rate": 0.1, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "remove_unused_columns": False, "prediction_loss_only": True, "seed": 3,
    }  # fmt: skip
    args, collator = TrainingArguments(**values | changes), EvidenceCollator(tokenizer)
    return EvidenceTrainer(model, args, collator, train_dataset=rows, eval_dataset=rows)


def learned(trainer: EvidenceTrainer) -> dict:
    """The weights after training, and the loss of each step."""
    trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return {"weights": weights, "loss": torch.tensor([row["loss"] for row in trainer.state.log_history[:-1]])}


def assert_equal_runs(one: dict, other: dict) -> None:
    assert len(one["loss"]) == 2 and one["loss"][0] > one["loss"][1]
    torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


def test_the_words_loss_by_hand(start, tmp_path):
    """Rows one by one, without padding: the mean over the labels, and the words' sum over the number of tokens."""
    trainer = evidence_trainer(start, tmp_path, 8)
    reports, words, tokens = [], 0.0, 0
    for row in trainer.train_dataset:
        states = torch.zeros(len(row["input_ids"]), 13, dtype=torch.long)
        for token, condition, state in row["evidence"]:
            states[token, condition] = state
        with torch.no_grad():
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            out = trainer.model.eval()(ids, labels=labels, output_hidden_states=True)
            logits = [trainer.model.linear_heads[finding](out.hidden_states[-2][0]) for finding in range(13)]
        reports.append(float(out.loss))
        words += sum(float(cross_entropy(each, states[:, i], reduction="sum")) for i, each in enumerate(logits))
        tokens += len(states)
    expected = sum(reports) / len(reports) + words / tokens
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert float(learned(trainer)["loss"][0]) == pytest.approx(expected, rel=1e-4)


def test_accumulation_of_evidence_changes_nothing(start, tmp_path):
    whole = learned(evidence_trainer(start, tmp_path, 8))
    for size, steps in ((4, 2), (1, 8)):
        parts = learned(evidence_trainer(start, tmp_path, size, gradient_accumulation_steps=steps))
        assert_equal_runs(whole, parts)


def one_of_two(start: str, out: str) -> None:
    """What each of the processes of the next test runs: a step of batches of 4, or of two times 2."""
    for size, steps in ((4, 1), (2, 2)):
        trainer = evidence_trainer(start, out, size, gradient_accumulation_steps=steps)
        results = learned(trainer)
        if trainer.is_world_process_zero():
            torch.save(results, Path(out) / f"{steps}.pt")


def test_two_processes_are_one(start, tmp_path, torchrun):
    command = [sys.executable, *torchrun(__file__, start, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = learned(evidence_trainer(start, tmp_path, 8))
    for steps in (1, 2):
        assert_equal_runs(whole, torch.load(tmp_path / f"{steps}.pt", weights_only=True))


def test_transformers_gives_what_is_relied_on():
    """A new transformers fails here first."""
    assert [*inspect.signature(Trainer._get_num_items_in_batch).parameters] == ["self", "batch_samples", "device"]
    assert [*inspect.signature(Trainer.compute_loss).parameters] == [
        "self", "model", "inputs", "return_outputs", "num_items_in_batch"
    ]  # fmt: skip


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


if __name__ == "__main__":
    cli.run(lambda: one_of_two(*sys.argv[1:]))
