"""LLM-RG4's two stages: what each trains, what stage 2 starts from, prompts, the order of scenarios, errors."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch.utils.data import BatchSampler
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, SFTTrainer

from modeling.processing_llmrg4 import PRIOR_END, PRIOR_START
from modeling.tiny import build_chexbert
from modeling.tiny_llmrg4 import build_llmrg4
from recipes import build_tiny, generate, sft_llmrg4
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import parse
from recipes.data.prompt_tokens import count_tokens
from recipes.data.samples import fill_prompt, to_samples
from recipes.data.schema import read_split, write_dataset
from recipes.evaluation.decoding import trained_with
from recipes.files import InputError, read_prompt
from recipes.trainers import scenario_sft
from recipes.trainers.llmrg4 import FusionParts, load_start, report_long_priors
from recipes.trainers.scenario_sft import RoundRobinSampler, ScenarioSFTConfig, ScenarioSFTTrainer
from recipes.trainers.weighted_sft import WeightedSFTTrainer
from rewards.scenarios import SCENARIOS

CONFIGS = Path(sft_llmrg4.__file__).parent / "configs/llmrg4"
PROMPT = read_prompt("prompts/llmrg4.txt")
FUSION = "model.token_fusion."


def first_sentence(row: dict) -> dict:
    return {**row, "key_spans": [[0, row["report"].index(".") + 1]]}


def write(folder, rows: list[dict]) -> str:
    write_dataset({"train": lambda: iter(rows), "test": lambda: iter(rows)}, folder, {"labeler": "lexical"})
    return str(folder)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Two studies of each scenario in turn, their first sentences key sentences."""
    args = BuildArguments(size=64, seed=3)
    return [first_sentence(build_row("train", i, SCENARIOS[i % 4], args)) for i in range(8)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, rows) -> str:
    return write(tmp_path_factory.mktemp("data") / "rg4", rows)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, rows) -> str:
    """The miniature that stage 1 starts from."""
    folder = str(tmp_path_factory.mktemp("models") / "tiny")
    texts = [text for row in rows for text in (row["report"], row["prior_report"] or "", fill_prompt(PROMPT, row))]
    model, processor = build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, fusion="interleaved", text_layers=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def words(dataset):
    """The command line of a stage; `changed` overrides arguments, and an argument that is None is left out."""

    def words(stage: int, model: str | None, out, **changed) -> list:
        given = {"config": CONFIGS / f"demo_stage{stage}.yaml", "model_name_or_path": model}
        given |= {"dataset": dataset, "output_dir": out, "max_steps": 2, "per_device_train_batch_size": 2}
        given |= {"learning_rate": 0.05, "disable_tqdm": "true", **changed}
        words = [(f"--{name}", *(value if isinstance(value, list) else [value])) for name, value in given.items()
                 if value is not None]  # fmt: skip
        return [word for each in words for word in each]

    return words


@pytest.fixture
def train(call, words):
    """Runs a stage with the arguments of `words`."""

    def train(stage: int, model: str | None, out, **changed) -> str:
        call(sft_llmrg4.main, *words(stage, model, out, **changed))
        return str(out)

    return train


@pytest.fixture
def stage1(tmp_path_factory, train, tiny) -> str:
    folder = tmp_path_factory.getbasetemp() / "stage1"
    return str(folder) if (folder / "config.json").is_file() else train(1, tiny, folder)


def changed_weights(before: str, after: str) -> tuple[set[str], set[str]]:
    """Names of the weights that differ, and of those that only `after` has."""
    old, new = (load_file(f"{folder}/model.safetensors") for folder in (before, after))
    assert set(old) <= set(new)
    return {name for name in old if not torch.equal(old[name], new[name])}, set(new) - set(old)


# What each stage trains


def test_stage_1_trains_the_fusion_alone(tiny, stage1):
    changed, new = changed_weights(tiny, stage1)
    assert not new  # and all else is equal to the last bit
    assert changed == {name for name in load_file(f"{stage1}/model.safetensors") if name.startswith(FUSION)}
    assert AutoModelForImageTextToText.from_pretrained(stage1).config.fusion == "interleaved"
    assert AutoProcessor.from_pretrained(stage1).fusion == "interleaved"


def test_stage_2_trains_fusion_and_lora(train, stage1, tmp_path):
    out = train(2, stage1, tmp_path / "stage2", lora_target_modules=r".*language_model.*\.(q|v)_proj")
    changed, new = changed_weights(stage1, out)
    assert {name.split(".")[2] for name in new} == {
        *("lateral_perceiver", "lateral_projection", "prior_perceiver", "prior_projection", "fusion")
    }
    counts = json.loads(Path(out, "input_tokens.json").read_text())
    assert {name: row["visual"] for name, row in counts.items()} == dict.fromkeys(SCENARIOS, 4)  # ATF: N for each
    history = json.loads(Path(out, "trainer_state.json").read_text())["log_history"]
    costs = [row for row in history if "batch/seconds" in row]
    assert costs and all(row["batch/largest_input"] >= row["batch/input_tokens"] > 4 for row in costs)
    rest = {name for name in changed if not name.startswith(FUSION)}
    assert rest == {f"model.language_model.layers.0.self_attn.{name}_proj.weight" for name in ("q", "v")}
    assert any(name.startswith(FUSION) for name in changed)
    model, loaded = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.fusion, AutoProcessor.from_pretrained(out).fusion) == ("atf", "atf")


def test_the_authors_perceiver_goes_through_both_stages(train, rows, tmp_path):
    texts = [row["report"] for row in rows] * 3
    sizes = {"num_visual_tokens": 4, "fusion": "interleaved", "text_layers": 1, "projector": "mlp"}
    model, processor = build_llmrg4(texts, vocab_size=400, perceiver="authors", **sizes)
    model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    first = train(1, tmp_path / "tiny", tmp_path / "first")
    changed, _ = changed_weights(first, train(2, first, tmp_path / "second", max_steps=4, learning_rate=0.01))
    assert FUSION + "frontal_perceiver.layers.0.attention.bias_k" in changed
    back, loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "second", output_loading_info=True)
    assert (back.config.perceiver, back.config.projector) == ("authors", "mlp") and not loaded["missing_keys"]
    assert all(bool(tensor.isfinite().all()) for tensor in back.state_dict().values())


def test_the_lateral_perceiver_may_start_as_the_frontal_one(train, stage1, tmp_path):
    out = train(2, stage1, tmp_path / "out", lateral_start="frontal", learning_rate=0.0, max_steps=1)
    new = load_file(f"{out}/model.safetensors")
    for part in ("perceiver", "projection"):
        names = [name for name in new if name.startswith(f"{FUSION}lateral_{part}.")]
        assert names and all(torch.equal(new[name], new[name.replace("lateral", "frontal")]) for name in names)
    weight = new[FUSION + "fusion.weight"]
    size = len(weight)
    assert weight[:, size : 2 * size].diagonal().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(weight[:, :size], torch.eye(size))  # alone, the frontal image counts as before


def test_both_new_inputs_are_learned_from(train, stage1, tmp_path):
    # batches come in the order sn, sw, mn, mw: the last two bring lateral images, the last a prior report too
    first, last = (train(2, stage1, tmp_path / str(steps), max_steps=steps, lr_scheduler_type="constant")
                   for steps in (2, 4))  # fmt: skip
    changed, _ = changed_weights(first, last)
    for part in ("lateral_perceiver", "lateral_projection", "prior_perceiver", "prior_projection", "fusion"):
        assert any(name.startswith(FUSION + part) for name in changed), part


def test_a_resumed_run_ends_where_the_whole_one_does(train, stage1, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = train(2, stage1, tmp_path / "whole", **options)
    shutil.copytree(f"{whole}/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    options |= {"resume_from_checkpoint": "latest", "dataloader_num_workers": 2}
    resumed = train(2, stage1, tmp_path / "resumed", **options)
    assert changed_weights(whole, resumed) == (set(), set())


def test_interleaved_adds_nothing(train, stage1, tmp_path):
    out = train(2, stage1, tmp_path / "out", fusion="interleaved", max_steps=1)
    assert changed_weights(stage1, out)[1] == set()
    assert AutoModelForImageTextToText.from_pretrained(out).config.fusion == "interleaved"


def test_key_weight_changes_what_is_learned(train, tiny, tmp_path):
    runs = [train(1, tiny, tmp_path / weight, key_weight=weight) for weight in ("1", "1.75")]
    assert changed_weights(*runs)[0]


def test_reports_of_all_scenarios_are_written(call, train, stage1, dataset, tmp_path):
    model = train(2, stage1, tmp_path / "model", max_steps=1)
    options = ["--views", "frontal+lateral", "--prompt_file", "prompts/llmrg4.txt", "--max_new_tokens", 3]
    for number, extra in enumerate([[], ["--shuffle_images", "true", "--num_beams", 2, "--min_new_tokens", 2]]):
        file = tmp_path / f"{number}.jsonl"
        call(generate.main, "--model", model, "--dataset", dataset, "--out", file, *options, *extra)
        assert len(file.read_text().splitlines()) == 8


def test_an_adapter_checkpoint_is_not_generated_from(call, train, stage1, dataset, tmp_path):
    """transformers would read its LoRA and leave out its fusion."""
    out = train(2, stage1, tmp_path / "out", save_strategy="steps", save_steps=1, max_steps=1)
    arguments = ["--model", f"{out}/checkpoint-1", "--dataset", dataset, "--out", tmp_path / "reports.jsonl"]
    with pytest.raises(InputError, match="checkpoint-1 is an adapter that transformers reads in part"):
        call(generate.main, *arguments)
    assert not (tmp_path / "reports.jsonl").exists()


def test_the_demos_model_is_a_start(call, train, dataset, rows, tmp_path):
    chexbert, tokenizer = build_chexbert([row["report"] for row in rows], hidden_size=32, layers=2, heads=2)
    for part in (chexbert, tokenizer):
        part.save_pretrained(tmp_path / "chexbert")
    call(build_tiny.main, "--system", "llmrg4", "--prompt_file", "prompts/llmrg4.txt", "--image_size", 56,
         "--hidden_size", 64, "--vocab_size", 400, "--dataset", dataset, "--warm_up", dataset, "--warm_up_steps", 2,
         "--chexbert", tmp_path / "chexbert", "--out", tmp_path / "tiny")  # fmt: skip
    old = chexbert.bert.encoder.layer[0].state_dict()
    new = AutoModelForImageTextToText.from_pretrained(tmp_path / "tiny").model.prior_encoder.encoder.layer
    assert len(new) == 1 and all(torch.equal(old[name], value) for name, value in new[0].state_dict().items())
    stage1 = train(1, str(tmp_path / "tiny"), tmp_path / "stage1", max_steps=1)
    train(2, stage1, tmp_path / "stage2", max_steps=1)


def test_the_ablation_row_with_the_authors_perceiver(call, train, dataset, tmp_path):
    """Its file makes the tiny model, and goes over the demo's of stage 1 (`recipes/ablations.py`)."""
    row = CONFIGS / "ablations/stage1_authors_perceiver.yaml"
    call(build_tiny.main, "--system", "llmrg4", "--prompt_file", "prompts/llmrg4.txt", "--image_size", 56,
         "--hidden_size", 64, "--vocab_size", 400, "--dataset", dataset, "--warm_up", dataset, "--warm_up_steps", 2,
         "--config", row, "--out", tmp_path / "tiny")  # fmt: skip
    both = [CONFIGS / "demo_stage1.yaml", "--config", row]
    stage1 = train(1, str(tmp_path / "tiny"), tmp_path / "stage1", max_steps=1, config=both)
    both = [CONFIGS / "demo_stage2.yaml", "--config", CONFIGS / "ablations/stage2_authors_perceiver.yaml"]
    stage2 = train(2, stage1, tmp_path / "stage2", max_steps=1, config=both)
    assert [AutoConfig.from_pretrained(folder).perceiver for folder in (tmp_path / "tiny", stage2)] == ["authors"] * 2


# Prompts


@pytest.mark.parametrize("number", range(4), ids=SCENARIOS)
def test_prompts_of_the_scenarios(rows, dataset, number):
    scenario, row = SCENARIOS[number], rows[number]
    sample = to_samples(read_split(dataset, "train", ()), PROMPT, "frontal+lateral", "plain")[number]
    [message], text = sample["prompt"], sample["prompt"][0]["content"]
    assert message["role"] == "user" and sample["completion"][0]["content"] == row["report"]
    assert len(sample["images"]) == (1 if scenario[0] == "s" else 2)
    marked = f"{PRIOR_START}{row['prior_report']}{PRIOR_END}\n"
    assert text.startswith(marked) if scenario[1] == "w" else PRIOR_START not in text
    for name in ("indication", "history"):
        assert (f"{name.capitalize()}: {row[name]}\n" in text) if row[name] else (f"{name.capitalize()}:" not in text)
    assert text.endswith("Write the findings of the report on this posteroanterior (PA) chest X-ray.")


def test_nine_instructions():
    study = {"prior_report": None, "indication": None, "history": None, "findings": "A.", "impression": "B."}
    texts = {
        fill_prompt(PROMPT, {**study, "views": [view], "report": report})
        for view, report in product(["PA", "AP", ""], ["A.", "B.", "A. B."])
    }
    assert len(texts) == 9
    assert "Write the findings and impression of the report on this frontal chest X-ray." in texts


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Say {this} and {view}.", "Say {this} and anteroposterior (AP)."),  # other braces are text
        ("{indication}Go.", "Indication: {history}\nGo."),  # what is filled in is not filled again
        ("Plain.", "Plain."),
        ("{history}{prior_report}Go.", "Go."),  # neither is there
    ],
)
def test_fields(prompt, text):
    study = {"prior_report": " ", "indication": "{history}", "history": None, "views": ["AP"]}
    assert fill_prompt(prompt, study) == text


DEMOGRAPHICS = "prompts/llmrg4_demographics.txt"


@pytest.mark.parametrize(
    ("age", "sex", "lines"),
    [
        (63.0, "F", "Age: 63 years\nSex: female\n"),
        (63.99, "M", "Age: 63 years\nSex: male\n"),  # completed years
        (1.5, None, "Age: 18 months\n"),
        (0.0, None, "Age: 0 months\n"),  # a newborn's is known
        (None, "F", "Sex: female\n"),
        (float("nan"), "", ""),
        (None, None, ""),
    ],
)
def test_age_and_sex_where_they_are_asked_for(age, sex, lines):
    """A line each before the indication; the paper's prompt has neither, whatever the study has."""
    study = {"prior_report": "Old.", "indication": "Cough.", "history": None, "views": ["AP"], "report": "A."}
    study |= {"findings": "A.", "impression": None}
    text = fill_prompt(read_prompt(DEMOGRAPHICS), study | {"age": age, "sex": sex})
    start = f"{PRIOR_START}Old.{PRIOR_END}\n"
    assert text.removeprefix(start).startswith(f"{lines}Indication: Cough.\nWrite the findings")
    assert (
        text.replace(lines, "") == fill_prompt(PROMPT, study | {"age": age, "sex": sex}) == fill_prompt(PROMPT, study)
    )


def test_the_prompt_of_age_and_sex_is_remembered(train, tiny, rows, tmp_path):
    """It is an argument of the run, which the app reads and generate.py is told."""
    rows = [row | {"age": 40.0 + i, "sex": "FM"[i % 2]} for i, row in enumerate(rows)]
    dataset = write(tmp_path / "data", rows)
    out = train(1, tiny, tmp_path / "out", dataset=dataset, prompt_file=DEMOGRAPHICS, max_steps=1)
    assert trained_with(out)["prompt_file"] == DEMOGRAPHICS
    samples = to_samples(read_split(dataset, "train", ()), read_prompt(DEMOGRAPHICS), "frontal+lateral")
    texts = [sample["prompt"][0]["content"] for sample in samples.remove_columns("images")]
    assert all(f"Age: {40 + i} years\nSex: {('female', 'male')[i % 2]}\n" in text for i, text in enumerate(texts))


def test_age_and_sex_that_cannot_be_read(train, tiny, rows, tmp_path):
    marked = write(tmp_path / "marked", [row | {"age": 40.0, "sex": "<image>"} for row in rows])
    with pytest.raises(InputError, match=f"the sex of study {rows[0]['study_id']} holds '<image>'"):
        train(1, tiny, tmp_path / "out", dataset=marked, prompt_file=DEMOGRAPHICS)
    old = Path(write(tmp_path / "old", rows))  # as it was before there were such columns
    for file in old.glob("*.parquet"):
        table = parquet.read_table(file)
        parquet.write_table(table.drop_columns(["age", "sex", "boxes"]), file)
    with pytest.raises(InputError, match="old has no column age, sex"):
        train(1, tiny, tmp_path / "out", dataset=str(old), prompt_file=DEMOGRAPHICS)
    train(1, tiny, tmp_path / "out", dataset=str(old), max_steps=1)


# Scenarios in turn


def test_round_robin_by_hand():
    scenarios = ["sn", "mn", "sw", "sn", "sn", "mn", "sw", "sn", "mn", "sn"]  # 5 sn, 2 sw, 3 mn, no mw
    sampler = RoundRobinSampler(scenarios, SCENARIOS, block=2, seed=1)
    drawn = list(sampler)
    assert len(sampler) == len(drawn) == 18  # 3 blocks complete sn; 3 x 3 scenarios x 2 rows
    assert [scenarios[i] for i in drawn] == ["sn", "sn", "sw", "sw", "mn", "mn"] * 3
    by_name = {name: [i for i in drawn if scenarios[i] == name] for name in ("sn", "sw", "mn")}
    assert set(by_name["sn"][:5]) == {0, 3, 4, 7, 9}  # each once before one comes again
    assert all(set(by_name["sw"][k : k + 2]) == {2, 6} for k in (0, 2, 4))
    assert all(set(by_name["mn"][k : k + 3]) == {1, 5, 8} for k in (0, 3))
    again = RoundRobinSampler(scenarios, SCENARIOS, block=2, seed=1)
    assert list(again) == drawn == list(sampler)  # in every process, and when the epoch is begun again
    again.set_epoch(1)
    assert sorted(map(scenarios.__getitem__, again)) == sorted(scenarios[i] for i in drawn)
    assert list(again) != drawn


@pytest.mark.parametrize(("size", "block"), [(1, 2), (2, 4)], ids=["batches of 1", "batches of 2"])
def test_two_processes_have_one_scenario_at_a_time(size, block):
    scenarios = ["sn"] * 5 + ["sw"] * 4 + ["mn"] * 3 + ["mw"] * 1
    batches = BatchSampler(RoundRobinSampler(scenarios, SCENARIOS, block), size, drop_last=False)
    first, second = (list(BatchSamplerShard(batches, 2, rank)) for rank in range(2))
    steps = [{scenarios[i] for i in one + other} for one, other in zip(first, second, strict=True)]
    assert steps == [{name} for name in SCENARIOS] * (len(steps) // 4)


def test_a_block_is_what_an_optimizer_step_takes(train, stage1, tmp_path, monkeypatch):
    blocks = []

    class Watched(RoundRobinSampler):
        def __init__(self, scenarios, order, block, seed):
            blocks.append((block, seed))
            super().__init__(scenarios, order, block, seed)

    monkeypatch.setattr(scenario_sft, "RoundRobinSampler", Watched)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1, "seed": 5}
    train(2, stage1, tmp_path / "out", **options)
    train(2, stage1, tmp_path / "mixed", scenario_sampling="mixed", **options)
    assert blocks == [(6, 5)]  # and none where the scenarios are mixed


def test_trl_gives_what_is_relied_on():
    """A new TRL fails here first."""
    assert [*inspect.signature(SFTTrainer._get_train_sampler).parameters] == ["self", "train_dataset"]


def weights_and_losses(folder: str) -> tuple[dict, list[float]]:
    history = json.loads(Path(folder, "checkpoint-4/trainer_state.json").read_text())["log_history"]
    return load_file(f"{folder}/model.safetensors"), [row["loss"] for row in history if "loss" in row]


@pytest.mark.parametrize("under", [None, "fsdp2.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml"])
def test_two_processes_are_one(under, words, train, stage1, rows, tmp_path, torchrun):
    """Four steps of stage 2, one of each scenario, so that in each some of the fusion's modules have no part.

    A block is a batch of every process together, so one process with batch 2 has the rows of two with batch 1 at each
    step. SGD, so that equal gradients give equal weights.
    """
    tokenizer = AutoProcessor.from_pretrained(stage1).tokenizer
    lengths = [len(tokenizer(row["report"])["input_ids"]) for row in rows]
    assert all(one != other for one, other in zip(lengths[:4], lengths[4:], strict=True))  # of each scenario
    start = str(tmp_path / "start")
    shutil.copytree(stage1, start)
    values = json.loads(Path(start, "config.json").read_text())
    assert values["perceiver_dropout"] > 0  # each process would draw its own
    Path(start, "config.json").write_text(json.dumps(values | {"perceiver_dropout": 0.0}))
    if under == "zero3.yaml":  # which draws new modules in another order, so they are no new ones here
        AutoModelForImageTextToText.from_pretrained(start, fusion="atf").save_pretrained(tmp_path / "atf")
        shutil.copy(tmp_path / "atf/model.safetensors", start)
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "max_steps": 4,
               "save_strategy": "steps", "save_steps": 4}  # fmt: skip
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    given = words(2, start, two, per_device_train_batch_size=1, **options)
    command = torchrun(sft_llmrg4.__file__, *given, under=under)
    train(2, start, one, **options)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (weights, losses), (other_weights, other_losses) = map(weights_and_losses, (one, two))
    assert len(losses) == 4 and other_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(other_weights, weights, atol=1e-5, rtol=1e-4)
    changed, new = changed_weights(str(start), one)
    assert changed and bool(new) == (under != "zero3.yaml")
    _, loaded = AutoModelForImageTextToText.from_pretrained(two, output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((["sn"], SCENARIOS, 0), "block must be at least 1"), ((["sn", "xx"], SCENARIOS, 1), "rows of 'xx'")],
)
def test_round_robin_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        RoundRobinSampler(*arguments)


# Counts


@pytest.mark.parametrize(("fusion", "two_views"), [("atf", 4), ("interleaved", 8)])
def test_tokens_by_scenario(tiny, dataset, fusion, two_views):
    samples = to_samples(read_split(dataset, "train", ()), PROMPT, "frontal+lateral", "plain", keep=("scenario",))
    counts = count_tokens(samples, AutoProcessor.from_pretrained(tiny, fusion=fusion))
    assert {name: row["visual"] for name, row in counts.items()} == {
        "sn": 4, "sw": 4, "mn": two_views, "mw": two_views
    }  # fmt: skip
    assert all(row["samples"] == 2 for row in counts.values())


def test_what_a_batch_costs(monkeypatch):
    """Two batches since the last log: samples of 2, 3 and 4 tokens, in 1 and in 3 seconds."""
    clock = iter([10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr("recipes.trainers.scenario_sft.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(WeightedSFTTrainer, "training_step", lambda *given: torch.tensor(0.5))
    trainer = ScenarioSFTTrainer.__new__(ScenarioSFTTrainer)
    trainer._metrics = {"train": defaultdict(list)}
    for mask in ([[1, 1, 0], [1, 1, 1]], [[1, 1, 1, 1]]):
        assert trainer.training_step(None, {"attention_mask": torch.tensor(mask)}) == 0.5
    means = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}  # as TRL logs them
    assert means == {"batch/seconds": 2, "batch/input_tokens": 3, "batch/largest_input": 4}


@pytest.mark.parametrize("fusion", ["atf", "interleaved"])
def test_the_most_tokens_are_those_of_the_last_row_too(tiny, rows, tmp_path, fusion):
    """Of 60 rows the last has the longest prompt; the counts are those of the processor itself, with images."""
    study = {**rows[3], "indication": None, "history": None}
    last = {**study, "history": "Cough and fever. " * 20}
    folder = write(tmp_path / "data", [study] * 59 + [last])
    samples = to_samples(read_split(folder, "train", ()), PROMPT, "frontal+lateral", "plain", keep=("scenario",))
    processor = AutoProcessor.from_pretrained(tiny, fusion=fusion)
    lengths = []
    for i in (0, 59):
        content = [*({"type": "image"} for _ in samples[i]["images"])]
        content.append({"type": "text", "text": samples[i]["prompt"][0]["content"]})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        lengths.append(len(processor(images=[samples[i]["images"]], text=[text])["input_ids"][0]))
    counts = count_tokens(samples, processor)["mw"]
    assert (counts["samples"], counts["prompt, largest"]) == (60, lengths[1]) and lengths[1] > lengths[0] + 20
    assert counts["prompt"] == pytest.approx((59 * lengths[0] + lengths[1]) / 60)


def test_long_priors_are_counted(tiny, dataset, capsys):
    rows = read_split(dataset, "train", ())
    processor = AutoProcessor.from_pretrained(tiny)
    assert report_long_priors(rows, processor) == 0 and capsys.readouterr().out == ""
    processor.max_prior_tokens = 3
    assert report_long_priors(rows, processor) == 4
    first = rows["study_id"][1]
    assert capsys.readouterr().out.startswith(f"4 of 4 prior reports have more than 3 tokens and are cut there, that "
                                              f"of study {first} first")  # fmt: skip


def test_a_prior_of_exactly_the_most_tokens_is_not_counted(tiny, rows, tmp_path):
    """Of priors with 5, 6 and 7 tokens one is cut at 6; a study without a prior report has none."""
    priors = ("no edema .", "no edema . no", "no edema . no edema", None)
    folder = write(tmp_path / "data", [{**rows[1], "prior_report": text} for text in priors])
    processor = AutoProcessor.from_pretrained(tiny)
    processor.max_prior_tokens = 6
    assert [len(ids) for ids in processor.prior_tokenizer(list(priors[:3]))["input_ids"]] == [5, 6, 7]
    assert report_long_priors(read_split(folder, "train", ()), processor) == 1


@pytest.mark.parametrize("stage", [1, 2])
def test_the_fusion_trains_in_float32_whatever_the_rest_has(stage1, tiny, stage):
    """It is trained whole, and bfloat16 would round its small steps away."""
    args = SimpleNamespace(stage=stage, fusion="atf", lateral_start="new")
    start = tiny if stage == 1 else stage1
    model, _ = load_start(args, FusionParts(), ModelConfig(model_name_or_path=start, dtype="bfloat16"))
    kinds = defaultdict(set)
    for name, parameter in model.named_parameters():
        kinds[name.startswith(FUSION)].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}


# Errors


def without_model(config: Path, folder: Path) -> Path:
    lines = [line for line in config.read_text().splitlines() if not line.startswith("model_name_or_path")]
    (folder / "config.yaml").write_text("\n".join(lines))
    return folder / "config.yaml"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"views": ["LATERAL"]}, r"study phantom-3-train-000000: a study with the views LATERAL has no frontal view"),
        ({"views": ["PA", "LATERAL"]}, "study phantom-3-train-000000: 1 images have 2 views"),
        ({"images": []}, "study phantom-3-train-000000 has no image"),
        ({"prior_report": f"a {PRIOR_START} b"}, "study phantom-3-train-000000: the prior report"),
        ({"key_spans": [[0, 9000]]}, r"study phantom-3-train-000000: key span \[0, 9000\] is not within its text of"),
        ({"key_spans": None}, "no row of .* has key_spans: run recipes/weigh_tokens.py"),
        ({"scenario": "mw"}, "no row of .* has a scenario of sn"),
    ],
)
def test_bad_rows(train, tiny, rows, tmp_path, change, sentence):
    folder = write(tmp_path / "data", [{**rows[0], **change}])
    with pytest.raises(InputError, match=sentence):
        train(1, tiny, tmp_path / "out", dataset=folder, prompt_file="prompts/llmrg4.txt")
    assert not (tmp_path / "out/model.safetensors").exists()


def other_stage(stage1, folder):
    values = json.loads((folder / "run_config.json").read_text())
    values["RecipeArguments"]["stage"] = 2
    (folder / "run_config.json").write_text(json.dumps(values))


def without_note(stage1, folder):
    (folder / "run_config.json").unlink()


def without_weight(stage1, folder):
    weights = load_file(folder / "model.safetensors")
    del weights[f"{FUSION}queries"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (other_stage, "is no checkpoint of stage 1"),
        (without_note, "is no checkpoint of stage 1"),
        (without_weight, "model.token_fusion.queries does not fit"),
    ],
)
def test_stage_2_refuses_other_checkpoints(train, stage1, tmp_path, damage, sentence):
    folder = tmp_path / "damaged"
    shutil.copytree(stage1, folder)
    damage(stage1, folder)
    with pytest.raises(InputError, match=sentence) as error:
        train(2, str(folder), tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "own"),
    [("perceiver", "authors", "paper"), ("projector", "mlp", "linear"), ("num_visual_tokens", 128, "4")],
)
def test_a_network_other_than_the_checkpoints(train, tiny, stage1, tmp_path, option, value, own):
    """It would be passed over: the checkpoint's network is trained."""
    for stage, start in ((1, tiny), (2, stage1)):
        sentence = f"--{option} {value} is for a new model, and .* has {own}: leave it out"
        with pytest.raises(InputError, match=sentence):
            train(stage, start, tmp_path / "out", **{option: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "model", "sentence"),
    [
        (2, "none", "stage 2 starts from a checkpoint of stage 1: train --stage 1"),
        (2, "./absent", "stage 2 cannot start: "),
        (1, "./absent", "stage 1 cannot start: "),
        (2, "chexbert", "is a chexbert model, not an LLM-RG4"),
    ],
)
def test_stage_without_its_start(train, tmp_path, stage, model, sentence):
    if model == "chexbert":
        from modeling import CheXbertConfig

        CheXbertConfig(vocab_size=40).save_pretrained(tmp_path / "other")
        model = str(tmp_path / "other")
    config = CONFIGS / f"demo_stage{stage}.yaml"
    if model == "none":
        config, model = without_model(config, tmp_path), None
    with pytest.raises(InputError, match=sentence):
        train(stage, model, tmp_path / "out", config=config)


def test_stage_1_takes_sn_alone(train, tiny, tmp_path):
    with pytest.raises(InputError, match="stage 1 trains on sn alone, not on --scenarios sn mw"):
        train(1, tiny, tmp_path / "out", scenarios=["sn", "mw"])


def test_parts_that_cannot_be_loaded(train, tmp_path):
    config = without_model(CONFIGS / "demo_stage1.yaml", tmp_path)
    with pytest.raises(InputError, match=r"stage 1 cannot start: vision='\./absent' cannot be loaded"):
        train(1, None, tmp_path / "out", config=config, vision="./absent")


# The YAMLs

VALUES = {  # the paper's Implementation Details, else the authors' code (RG-051)
    "key_weight": 1.75,
    "optim": "adamw_torch",
    "learning_rate": 3e-4,
    "weight_decay": 0.01,  # AdamW's default in torch, which their code leaves as it is
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 2,
    "warmup_steps": 0.05,  # a tenth of one of the two epochs
    "bf16": True,
    "dtype": "bfloat16",
    "hub_private_repo": True,  # MIMIC-CXR is credentialed
}
STAGES = {
    1: {
        "num_visual_tokens": 128,
        "vision": "microsoft/rad-dino",
        "text": "microsoft/BiomedVLP-CXR-BERT-specialized",
        "decoder": "lmsys/vicuna-7b-v1.5",
        "scenarios": ["sn"],
        "per_device_train_batch_size": 24,
        "effective_batch_size": 48,
    },
    2: {
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.1,
        "scenarios": list(SCENARIOS),
        "scenario_sampling": "round_robin",
        "per_device_train_batch_size": 16,
        "effective_batch_size": 32,
        "fusion": "atf",
    },
}


DECODING = {  # the authors' code (RG-052); a temperature would sample
    "--num_beams": 3,
    "--min_new_tokens": 50,
    "--max_new_tokens": 200,
    "--repetition_penalty": 2.0,
    "--length_penalty": 2.0,
}


def test_decoding_of_the_readme_is_the_authors():
    [command] = re.findall(r"python recipes/generate\.py (?:.*\\\n)*.*", (CONFIGS / "README.md").read_text())
    words = command.replace("\\\n", " ").split()
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert {name: float(options[name]) for name in DECODING} == DECODING and "--temperature" not in options


@pytest.mark.parametrize("variant", ["mimic_rg4", "mimic_rg4_findings"])
@pytest.mark.parametrize("stage", [1, 2])
def test_values_of_the_paper_and_its_code(variant, stage):
    values = yaml.safe_load((CONFIGS / f"{variant}_stage{stage}.yaml").read_text())
    assert VALUES | STAGES[stage] | {"stage": stage} == {
        name: values[name] for name in (*VALUES, *STAGES[stage], "stage")
    }
    if stage == 2:  # it starts where stage 1 ends
        before = yaml.safe_load((CONFIGS / f"{variant}_stage1.yaml").read_text())
        assert values["model_name_or_path"] == before["output_dir"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*stage*.yaml")), ids=lambda path: path.name)
def test_files_are_read_and_ordered(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true"])
    args, _, training_args, _ = parse(sft_llmrg4.RecipeArguments, FusionParts, ScenarioSFTConfig, ModelConfig)
    assert f"stage{args.stage}" in file.name and training_args.output_dir.endswith(f"stage{args.stage}")
    read_prompt(args.prompt_file)
    text = file.read_text()
    order = ["Model", "LoRA", "Data", "Trainer"]
    assert re.findall(r"^# (\w+)$", text, re.MULTILINE) == [
        each for each in order if args.stage == 2 or each != "LoRA"
    ]
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert max(map(len, text.splitlines())) < 120
