"""Pairs with known errors, their scores by hand, and training a CREPE in a few steps."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from modeling.tiny import build_chexbert
from recipes import train_crepe
from recipes.cli import parse
from recipes.data.schema import write_dataset
from recipes.evaluation import injected_pairs
from recipes.evaluation.error_injection import INJECTIONS
from recipes.evaluation.injected_pairs import InjectedPair, inject_pairs, score_counts
from recipes.files import InputError
from recipes.trainers import crepe
from recipes.trainers.config import LabelerConfig
from recipes.trainers.crepe import CrepeTrainer
from rewards.crepe import CATEGORIES, Crepe
from rewards.findings import FindingReader

CONFIGS = Path(train_crepe.__file__).parent / "configs/crepe"
REPORTS = [
    "There is a small left pleural effusion. The heart is normal.",
    "The lungs are clear. No pneumothorax.",
    "Right lower lobe pneumonia is increased since the prior study. There is a large hiatal hernia.",
    "Mild cardiomegaly. No effusion.",
    "Moderate pulmonary edema. Small right pneumothorax.",
]
SMALL = {"texts": 40, "max_steps": 2, "held_out": 0.4, "bar": 0, "disable_tqdm": "true", "use_cpu": "true"}


def test_the_kinds_are_those_of_the_injections():
    assert list(INJECTIONS) == list(CATEGORIES)  # A to F of ReXVal, the order of the published heads


def test_pairs_have_the_errors_that_were_put_in(monkeypatch):
    """Each kind alone, neither reversed nor reworded: one error, at the kind's place, and one text is the report's."""
    for name in ("PARAPHRASED", "SHUFFLED", "EXACT"):
        monkeypatch.setattr(injected_pairs, name, 0)
    for kind, inject in INJECTIONS.items():
        others = {name: (lambda report: None) for name in INJECTIONS if name != kind}
        monkeypatch.setattr(injected_pairs, "INJECTIONS", {kind: inject, **others})
        injected_pairs._inject.cache_clear()
        added = kind == "false finding"
        monkeypatch.setattr(injected_pairs, "_add_finding", lambda report, *rest, on=added: on and report + " Hernia.")
        pairs = [pair for pair in inject_pairs(REPORTS, 200, random.Random(0)) if sum(pair.errors) == 1]
        reverse = {"false finding": "omission", "omission": "false finding"}
        reverse |= {"invented comparison": "missing comparison", "missing comparison": "invented comparison"}
        for reference, report, errors in pairs:
            found = CATEGORIES[errors.index(1)]
            assert found == (kind if reference in REPORTS else reverse.get(kind, kind))
            assert reference != report
        assert len(pairs) > 5, kind
        assert {pair.reference in REPORTS for pair in pairs} == {True, False}
    injected_pairs._inject.cache_clear()


def test_a_false_finding_is_one_of_which_the_report_says_nothing():
    reader = FindingReader()
    stated = injected_pairs._single_findings(REPORTS, reader)
    assert {sentence.text for sentence in stated} >= {"Mild cardiomegaly.", "Small right pneumothorax."}
    rng = random.Random(0)
    for report in REPORTS * 20:
        longer = injected_pairs._add_finding(report, stated, reader, rng)
        before, after = (reader([text])[0] for text in (report, longer))
        named = before.absent.union(*(finding.concepts for finding in before.findings))
        assert len(after.findings) == len(before.findings) + 1
        assert not set(after.findings[-1].concepts) & named or any(
            not set(finding.concepts) & named for finding in after.findings
        )


def test_pairs_are_repeatable_and_varied():
    pairs = inject_pairs(REPORTS, 400, random.Random(0))
    assert pairs == inject_pairs(REPORTS, 400, random.Random(0)) and len(pairs) == 400
    errors = np.array([pair.errors for pair in pairs])
    assert (errors.sum(0) > 0).all() and (errors.sum(1) == 0).mean() > 0.15 and errors.max() == 2
    assert any(pair.reference != pair.report and not sum(pair.errors) for pair in pairs)  # reworded is no error
    with pytest.raises(ValueError, match="there is none"):
        inject_pairs([], 1, random.Random(0))


def test_scores_by_hand():
    errors = np.zeros((4, 6))
    errors[:, 1] = [0, 1, 2, 3]
    found = np.zeros((4, 6))
    found[:, 1], found[:, 2] = [0, 1, 3, 2], [0.5, 0.5, 0.5, 0.5]
    scores = score_counts(found, errors)
    assert scores["omission"] == {"tau": pytest.approx(4 / 6), "error": 0.5, "mean": 1.5}  # 5 of 6 pairs in order
    assert scores["wrong place"] == {"tau": 0.0, "error": 0.5, "mean": 0.0}  # nothing to agree on
    assert scores["all"] == {"tau": pytest.approx(4 / 6), "error": (0.5 + 0.5 + 1.5 + 0.5) / 4, "mean": 1.5}


def test_rows_are_the_reference_and_then_the_report():
    _, tokenizer = build_chexbert(["no edema", "no effusion"] * 2, 60)
    [row, bare] = CrepeTrainer.rows_of(
        tokenizer,
        [InjectedPair("no edema", "no effusion", (1, 0, 0, 0, 0, 2)), InjectedPair("no edema", "", (0,) * 6)],
    )
    words = tokenizer.decode(row["input_ids"])
    assert words == "[CLS] no edema [SEP] no effusion [SEP]" and row["labels"] == (1, 0, 0, 0, 0, 2)
    first = tokenizer("no edema")["input_ids"]
    assert row["token_type_ids"] == [0] * len(first) + [1] * (len(row["input_ids"]) - len(first))
    assert bare["input_ids"] == first and bare["token_type_ids"] == [0] * len(first)  # no separator of an empty report


def test_the_saved_model_scores_reports_against_their_references(monkeypatch):
    class Counter:
        """Counts one omission where the pair is in the order of `Crepe.counts`."""

        def __init__(self, model, device):
            assert (model, device) == ("out", "cpu")

        def counts(self, generated, references):
            pairs = zip(generated, references, strict=True)
            return np.array([[0, float(pair == ("wrong", "right")), 0, 0, 0, 0] for pair in pairs])

    monkeypatch.setattr(crepe, "Crepe", Counter)
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="out", device="cpu"))
    pairs = [InjectedPair("right", "wrong", (0, 1, 0, 0, 0, 0)), InjectedPair("same", "same", (0,) * 6)]
    assert CrepeTrainer.measure(trainer, pairs)["omission"] == {"tau": 1.0, "error": 0.0, "mean": 0.5}


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = [{"study_id": str(i), "report": f"{text} Number {i}."} for i, text in enumerate(REPORTS * 4)]
    write_dataset({"train": lambda: iter(rows)}, tmp_path / "data", {})
    return tmp_path / "data"


def run(call, **arguments) -> Path:
    call(train_crepe.main, *(word for name, value in arguments.items() for word in (f"--{name}", value)))
    return Path(arguments["output_dir"])


def test_from_nothing_and_from_a_bert(dataset, tmp_path, call):
    out = run(call, dataset=dataset, output_dir=tmp_path / "out", **SMALL)
    results = json.loads((out / "results.json").read_text())
    assert results["pairs"] == 40 and set(results["held_out"]) == {*CATEGORIES, "all"}
    assert Crepe(out, device="cpu")(["x"], ["y"]).shape == (1,)
    _, tokenizer = build_chexbert(REPORTS * 2, 60)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "tau", "save_strategy": "steps"}
    best |= {"dataset": dataset, "output_dir": tmp_path / "bert_out", "model": tmp_path / "bert", "save_steps": 2}
    out = run(call, **SMALL | best)
    assert Crepe(out, device="cpu").model.config.hidden_size == 16
    run(call, **SMALL | best | {"max_steps": 3, "resume_from_checkpoint": "latest"})
    assert Crepe(out, device="cpu").model.config.model_type == "crepe"


def test_a_tiny_one_learns(dataset, tmp_path, call):
    """Sixty steps on five reports: the loss falls to less than half."""
    settings = SMALL | {"texts": 960, "max_steps": 60, "logging_steps": 5, "learning_rate": 0.003}
    torch.manual_seed(0)
    out = run(call, dataset=dataset, output_dir=tmp_path / "out", save_strategy="steps", save_steps=60, **settings)
    log = json.loads((out / "checkpoint-60/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0], losses


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": 0}, "leaves none on one side"),
        ({"model": "/no/such/bert"}, "no such folder"),
        ({"dataset": "/no/such/data"}, "there is no data set"),
    ],
)
def test_bad_arguments(dataset, tmp_path, call, changes, said):
    with pytest.raises(InputError, match=said):
        run(call, **{"dataset": dataset, "output_dir": tmp_path / "out", **SMALL, **changes})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_is_known_to_the_script(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true", "--bf16", "false"])
    _, training_args = parse(train_crepe.RecipeArguments, LabelerConfig)
    values = yaml.safe_load(file.read_text())
    assert training_args.output_dir == values["output_dir"] == "outputs/crepe"
    assert values["texts"] == 32000  # the paper's number of pairs
    if file.stem == "biomedbert":
        assert (values["num_train_epochs"], values["effective_batch_size"]) == (10, 64)  # section 4.1
