"""Training a DiscBERT end to end in a few steps, its judgements, its scores and the radiologists' sheet."""

import csv
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from replicas import bert_base_uncased
from transformers import BertConfig, BertModel

from modeling.modeling_discbert import DiscBertModel
from modeling.tiny import build_chexbert
from recipes import train_discbert
from recipes.cli import parse
from recipes.data.schema import write_dataset
from recipes.files import InputError
from recipes.rg4.judgements import mix, read_judgements, score_heads, write_sheet
from recipes.rg4.rules import RuleJudge
from recipes.trainers import discbert
from recipes.trainers.config import LabelerConfig
from rewards.discbert import DiscBertJudge
from rewards.scenarios import CATEGORIES

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs/discbert"
REPORTS = [
    "The effusion is unchanged. Heart is normal.",
    "Lungs are clear. The nurse was notified.",
    "Patient is status post CABG. No edema.",
    "PA and lateral views were obtained. No effusion.",
    "Lungs are clear. Heart is normal.",
]
SMALL = {"texts": 40, "max_steps": 2, "held_out": 0.4, "bar": 0, "disable_tqdm": "true"}


def write_csv(file: Path, rows: list[list], columns=CATEGORIES, text="report") -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([[text, *columns], *rows])
    return file


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = [{"study_id": str(i), "report": f"{text} Number {i}."} for i, text in enumerate(REPORTS * 4)]
    write_dataset({"train": lambda: iter(rows)}, tmp_path / "data", {})
    return tmp_path / "data"


def run(call, **arguments) -> Path:
    call(train_discbert.main, *(word for name, value in arguments.items() for word in (f"--{name}", value)))
    return Path(arguments["output_dir"])


# --- judgements --------------------------------------------------------------------------------------------------


def test_judgements_of_a_csv(tmp_path):
    rows = [["A\n b", 1, 0, "1.0", "1"], ["A b", 0, 0, 0, 0], ["", 1, 1, 1, 1]]  # equal reports: the first counts
    rows += [["D", "0.0", 1, 0, 0]]
    assert read_judgements(str(write_csv(tmp_path / "x.csv", rows))) == {"A b": [1, 0, 1, 1], "D": [0, 1, 0, 0]}
    columns = [CATEGORIES[3], CATEGORIES[0], CATEGORIES[2], CATEGORIES[1]]  # by their names, in any order
    found = read_judgements(str(write_csv(tmp_path / "y.csv", [["A", 0, 1, 0, 0], ["B", 0, 0, 0, 1]], columns)))
    assert found == {"A": [1, 0, 0, 0], "B": [0, 1, 0, 0]}


def test_judgements_of_a_provenance(tmp_path):
    from datasets import Dataset

    history = [[{"findings": "A!", "impression": "B."}, ["view"]], [{"findings": "A", "impression": ""}, []]]
    history += [[{"findings": name}, [name]] for name in CATEGORIES]
    notes = [{"scenario": "sn", "history": json.dumps(history)}, {"scenario": "mw", "history": json.dumps(history)}]
    Dataset.from_list(notes).to_parquet(tmp_path / "p.parquet")
    assert read_judgements(str(tmp_path / "p.parquet")) == {
        "A! B.": [0, 0, 1, 0],
        "A": [0, 0, 0, 0],
        "prior_comparison": [1, 0, 0, 0],
        "prior_procedure": [0, 1, 0, 0],
        "view": [0, 0, 1, 0],
        "communication": [0, 0, 0, 1],
    }


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([["x", 1, 0, 0]], CATEGORIES[:3], "no column 'communication'"),
        ([], CATEGORIES, "or no row"),
        ([["x", 0, 0, 0, 0], ["y", 0, 2, 0, 0]], CATEGORIES, "record 3: prior_procedure must be 0 or 1, not '2'"),
        ([["x", "", "", "", ""]], CATEGORIES, "record 2: prior_comparison must be 0 or 1, not ''"),  # not filled in
        ([["", 0, 0, 0, 0]], CATEGORIES, "holds no judged report"),
    ],
)
def test_bad_csvs(tmp_path, rows, columns, said):
    with pytest.raises(InputError, match=said):
        read_judgements(str(write_csv(tmp_path / "x.csv", rows, columns)))


@pytest.mark.parametrize(
    ("name", "content"), [("x.csv", b"\xff\xfe\x00bad"), ("x.parquet", b"no parquet"), ("absent.csv", None)]
)
def test_files_that_are_no_judgements(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_judgements(str(tmp_path / name))


def test_scores_by_hand():
    truth = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    found = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]])
    scores = score_heads(found, truth)
    assert scores["PC"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert scores["PP"] == {"precision": 1, "recall": 1, "f1": 1, "support": 2}
    assert scores["View"] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "support": 1}
    assert scores["Comm"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    # the published evaluation averages F1 where it says recall
    assert scores["mean"] == {"precision": 0.5, "recall": 0.625, "f1": pytest.approx((0.5 + 1 + 2 / 3) / 4)}


def test_the_sheet_is_blind_and_stratified(tmp_path):
    reports = [f"{text} Number {i}." for i, text in enumerate([REPORTS[4]] * 200 + REPORTS[:4] * 5)]
    assert write_sheet(reports, 50, RuleJudge(), tmp_path / "s.csv", random.Random(0)) == 50
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["report", *CATEGORIES, "comment"]
    assert all(row[name] == "" for row in rows for name in (*CATEGORIES, "comment"))
    assert len({row["report"] for row in rows}) == 50
    counts = RuleJudge()([row["report"] for row in rows]).sum(0)
    assert (counts == 5).all()  # all there are; of 50 drawn at random one in fifty would hold each


def test_a_sheet_of_more_than_there_is(tmp_path):
    assert write_sheet(REPORTS * 2, 200, RuleJudge(), tmp_path / "s.csv", random.Random(0)) == len(REPORTS)


def test_mixtures_show_every_category_often():
    reports = [f"Lungs are clear. Number {i}." for i in range(99)] + REPORTS[:4]
    texts = mix(reports, 400, RuleJudge(), random.Random(0))
    assert texts == mix(reports, 400, RuleJudge(), random.Random(0)) and len(texts) == 400 and all(texts)
    assert (RuleJudge()(texts).mean(0) > 0.1).all()  # one in a hundred reports


# --- the script --------------------------------------------------------------------------------------------------


def test_from_the_rules(dataset, tmp_path, call, capsys):
    hand = write_csv(tmp_path / "hand.csv", [["The effusion is unchanged.", 1, 0, 0, 0], ["Clear.", 0, 0, 0, 0]])
    out = run(call, dataset=dataset, output_dir=tmp_path / "out", eval_file=hand, **SMALL)
    assert DiscBertJudge(out, device="cpu")(["x"]).shape == (1, 4)
    results = json.loads((out / "results.json").read_text())
    assert results["teacher"] == "rule" and results["reports"] == 8
    assert set(results["held_out"]) == set(results["by_hand"]) == {"PC", "PP", "View", "Comm", "mean"}
    assert results["by_hand"]["PC"]["support"] == 1
    printed = capsys.readouterr().out
    assert "precision" in printed and "hand.csv" in printed
    call(train_discbert.main, "--model", str(out), "--eval_only", "true", "--eval_file", str(hand))
    assert "PC " in capsys.readouterr().out


def test_from_judgements_and_a_bert_best_epoch(tmp_path, call):
    rows = [[f"{text} Number {i}.", *RuleJudge()([text])[0]] for i, text in enumerate(REPORTS * 4)]
    _, tokenizer = build_chexbert([row[0] for row in rows], 60)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": "true"}
    best |= {"metric_for_best_model": "mean_f1", "num_train_epochs": 2, "max_steps": -1}
    arguments = {"judgements": write_csv(tmp_path / "x.csv", rows), "model": tmp_path / "bert"}
    out = run(call, output_dir=tmp_path / "out", **arguments, **SMALL | best)
    assert DiscBertJudge(out, device="cpu").model.config.hidden_size == 16
    assert "mean_f1" in (out / "results.json").read_text() or (out / "model.safetensors").is_file()


def test_sheet_of_the_script(dataset, tmp_path, call):
    out = run(call, dataset=dataset, output_dir=tmp_path / "out", export_annotation_sheet=5, held_out=0.5)
    with (out / "annotation_sheet.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": 0}, "leaves none on one side"),
        ({"held_out": 1}, "leaves none on one side"),
        ({"model": "/no/such/bert"}, "no such folder"),
        ({"dataset": "/no/such/data"}, "there is no data set"),
        ({"judgements": "/no/such.csv"}, "no file of judgements /no/such.csv"),
        ({"eval_file": "/no/such.csv"}, "no file of judgements /no/such.csv"),
        ({"eval_only": "true"}, "--eval_only needs --model"),
    ],
)
def test_bad_arguments(dataset, tmp_path, call, changes, said):
    with pytest.raises(InputError, match=said):
        run(call, **({"dataset": dataset, "output_dir": tmp_path / "out"} | SMALL | changes))
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_is_known_to_the_script(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true", "--bf16", "false"])
    args, training_args = parse(train_discbert.RecipeArguments, LabelerConfig)
    assert training_args.output_dir == "outputs/discbert" and args.held_out < 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "bert-base-uncased"),
        ("optim", "adamw_torch"),
        ("learning_rate", 2e-5),
        ("lr_scheduler_type", "cosine_with_min_lr"),
        ("lr_scheduler_kwargs", '{"min_lr": 1.0e-6}'),
        ("num_train_epochs", 15),
        ("per_device_train_batch_size", 8),
        ("metric_for_best_model", "mean_f1"),
        ("load_best_model_at_end", True),
        ("hub_private_repo", True),
    ],
)
def test_published_values(key, value):  # RG-010
    assert yaml.safe_load((CONFIGS / "mimic.yaml").read_text())[key] == value


def test_checkpoints_of_the_published_bert_are_read_back(call, dataset, tmp_path, caplog):
    """Its layer norms are called gamma and beta: a run that goes on, or ends with its best step, has trained ones."""
    bert = bert_base_uncased(tmp_path / "bert")
    settings = SMALL | {"model": bert, "dataset": dataset, "max_steps": 4, "learning_rate": 0.01, "logging_steps": 1}
    settings |= {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": "false"}
    whole = run(call, output_dir=tmp_path / "whole", **settings)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
    resumed = run(call, output_dir=tmp_path / "resumed", resume_from_checkpoint="latest", **settings)
    ended, followed = (DiscBertModel.from_pretrained(folder).state_dict() for folder in (whole, resumed))
    assert all(torch.equal(value, followed[name]) for name, value in ended.items())
    norm = "bert.embeddings.LayerNorm.weight"
    assert not torch.equal(ended[norm], DiscBertModel.from_pretrained(whole / "checkpoint-2").state_dict()[norm])

    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": "true", "load_best_model_at_end": "true"}
    first = run(call, output_dir=tmp_path / "first", **settings)
    state = json.loads((first / "trainer_state.json").read_text())
    best = DiscBertModel.from_pretrained(state["best_model_checkpoint"]).state_dict()
    assert state["best_global_step"] == 1
    assert all(
        torch.equal(value, best[name]) for name, value in DiscBertModel.from_pretrained(first).state_dict().items()
    )
    assert not [record for record in caplog.records if "missing keys in the checkpoint" in record.getMessage()]


def test_a_tiny_one_goes_on_with_its_own_tokenizer(call, dataset, tmp_path, monkeypatch):
    """Its training is no pure function of the texts: another run's tokenizer may number the same words otherwise."""
    settings = SMALL | {"dataset": dataset, "output_dir": tmp_path, "save_strategy": "steps", "save_steps": 1}
    run(call, **settings)
    vocabulary = (tmp_path / "checkpoint-2/tokenizer.json").read_text()
    shutil.rmtree(tmp_path / "checkpoint-2")
    monkeypatch.setattr(discbert, "build_discbert", None)  # it may not be asked
    run(call, resume_from_checkpoint="latest", **settings)
    assert (tmp_path / "tokenizer.json").read_text() == vocabulary
