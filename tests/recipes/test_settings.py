"""Settings: by YAML and by command line the same is refused, in one sentence; a batch holds on any number of GPUs."""

import importlib
import re
import sys
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_type_hints

import pytest
import torch
import yaml
from test_long_runs import make_trainer, small_llama
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, RLOOConfig, SFTConfig

from recipes import generate, grpo_mrgr1, ppo_lmrrg, sft_llmrg4, sft_lmrrg, sft_mrgr1, train_chexbert, train_discbert
from recipes.cli import parse
from recipes.data.settings import RANGES, Range, check_settings, choices_of
from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.config import LabelerConfig, SFTRecipeConfig, check_run
from recipes.trainers.grpo import MRGR1Config
from recipes.trainers.llmrg4 import FusionParts
from recipes.trainers.lmrrg import CQRLConfig, ModelParts
from recipes.trainers.ppo import PPOConfig
from recipes.trainers.rloo import RLOORecipeConfig
from recipes.trainers.scenario_sft import ScenarioSFTConfig
from rewards.table import RewardArguments

CONFIGS = Path(sft_mrgr1.__file__).parent / "configs"
SCRIPTS = {  # the dataclasses of each script, and a YAML of it that needs no GPU
    "grpo": ((grpo_mrgr1.RecipeArguments, RewardArguments, MRGR1Config, ModelConfig), "mrgr1/phantom.yaml"),
    "sft": ((sft_mrgr1.RecipeArguments, SFTRecipeConfig, ModelConfig), "mrgr1/sft_phantom.yaml"),
    "ppo": ((ppo_lmrrg.RecipeArguments, RewardArguments, CQRLConfig, ModelConfig), "lmrrg/demo_cqrl.yaml"),
    "lmrrg": (
        (sft_lmrrg.RecipeArguments, ModelParts, SFTRecipeConfig, ModelConfig),
        "lmrrg/demo.yaml",
    ),
    "llmrg4": (
        (sft_llmrg4.RecipeArguments, FusionParts, ScenarioSFTConfig, ModelConfig),
        "llmrg4/demo_stage1.yaml",
    ),
    "chexbert": ((train_chexbert.RecipeArguments, LabelerConfig), "chexbert/openi.yaml"),
    "discbert": ((train_discbert.RecipeArguments, LabelerConfig), "discbert/openi.yaml"),
    "generate": ((generate.GenerateArguments,), None),
}


def parsed(monkeypatch, script: str, *words, types: tuple | None = None) -> tuple:
    kinds, config = SCRIPTS[script]
    base = ["--config", str(CONFIGS / config)] if config else ["--model", "m", "--dataset", "d", "--out", "o"]
    monkeypatch.setattr(sys, "argv", ["script", *base, *map(str, words)])
    return parse(*(types or kinds), several_processes=True)


REFUSED = [  # script, setting, value, words of the sentence beside the setting's name
    # ranges
    ("grpo", "temperature", -0.5, ["above 0", "-0.5"]),
    ("grpo", "temperature", 0, ["above 0", "0"]),  # completions are sampled
    ("ppo", "temperature", 0.0, ["above 0"]),
    ("generate", "temperature", -1, ["0 or more", "-1"]),  # 0 is greedy
    ("grpo", "top_p", 0, ["above 0 and at most 1", "0"]),
    ("grpo", "top_p", 1.01, ["above 0 and at most 1", "1.01"]),
    ("generate", "top_p", 1.5, ["above 0 and at most 1"]),
    ("grpo", "min_p", -0.1, ["at least 0 and at most 1"]),
    ("grpo", "top_k", -3, ["0 or more", "-3"]),
    ("grpo", "min_pixels", 0, ["1 or more", "0"]),
    ("sft", "max_pixels", -28, ["1 or more", "-28"]),
    ("sft", "max_samples", 0, ["1 or more", "0"]),  # was all of them
    ("grpo", "max_samples", -1, ["1 or more", "-1"]),
    ("sft", "clinical_samples", -2, ["0 or more", "-2"]),
    ("grpo", "beta", -0.04, ["0 or more", "-0.04"]),
    ("ppo", "beta", -1, ["beta must not be below 0", "-1"]),
    ("grpo", "std_epsilon", -1e-8, ["0 or more", "-1e-08"]),
    ("grpo", "epsilon", 0, ["above 0"]),
    ("grpo", "num_generations", 1, ["2 or more", "1"]),
    ("grpo", "num_iterations", 0, ["1 or more"]),
    ("grpo", "repetition_penalty", 0, ["above 0"]),
    ("sft", "learning_rate", -1e-4, ["0 or more", "-0.0001"]),
    ("ppo", "value_learning_rate", -1, ["0 or more"]),
    ("sft", "weight_decay", -0.1, ["0 or more"]),
    ("sft", "adam_beta2", 1, ["at least 0 and below 1"]),
    ("sft", "max_grad_norm", -1, ["0 or more"]),
    ("sft", "num_train_epochs", 0, ["above 0", "0"]),
    ("sft", "max_steps", 0, ["at least 1, or -1 for num_train_epochs", "0"]),  # was all epochs
    ("sft", "max_steps", -7, ["at least 1, or -1", "-7"]),
    ("sft", "per_device_train_batch_size", 0, ["1 or more"]),
    ("chexbert", "per_device_train_batch_size", -2, ["1 or more", "-2"]),
    ("discbert", "gradient_accumulation_steps", 0, ["1 or more"]),
    ("lmrrg", "effective_batch_size", 0, ["1 or more"]),
    ("lmrrg", "lambda_disease", -1, ["0 or more"]),
    ("llmrg4", "key_weight", 0, ["above 0"]),
    ("llmrg4", "num_visual_tokens", 0, ["1 or more"]),
    ("sft", "lora_dropout", 1, ["at least 0 and below 1"]),
    ("sft", "lora_r", 0, ["1 or more"]),
    ("sft", "save_steps", 0, ["above 0"]),
    ("sft", "seed", -1, ["0 or more"]),
    ("generate", "batch_size", 0, ["1 or more"]),
    ("generate", "limit", 0, ["1 or more"]),  # was all of them
    ("chexbert", "texts", 0, ["1 or more"]),
    # numbers that are none
    ("sft", "learning_rate", float("nan"), ["nan"]),
    ("sft", "learning_rate", float("inf"), ["0 or more", "inf"]),
    ("sft", "warmup_steps", float("nan"), ["nan"]),
    ("grpo", "reward_weights", [0.5, float("nan"), 0.5], ["a finite number", "nan"]),
    ("ppo", "theta", float("nan"), ["nan"]),
    ("llmrg4", "key_weight", float("nan"), ["nan"]),
    ("grpo", "margin", float("nan"), ["a finite number"]),
    ("grpo", "beta", float("nan"), ["nan"]),
    # choices
    ("grpo", "advantage_norm", "papers", ["papers", "paper", "trl"]),
    ("sft", "target", "both", ["both", "plain", "reasoning"]),
    ("ppo", "views", "all", ["all", "frontal", "each"]),
    ("ppo", "radcliq_version", "v2", ["v2", "v0", "v1"]),
    ("ppo", "kl_mode", "both", ["both", "loss", "reward"]),
    ("ppo", "value_model", "tail", ["tail", "head", "detached", "none"]),
    ("lmrrg", "region_pool", "max", ["max", "mean", "text_attn", "cls"]),  # a Literal or None
    ("llmrg4", "stage", 3, ["3", "1", "2"]),  # a Literal of numbers
    ("llmrg4", "scenario_sampling", "random", ["random", "mixed", "round_robin"]),
    ("llmrg4", "weight_reduction", "mean", ["mean", "token_mean", "weight_mean", "official"]),
    ("generate", "engine", "sglang", ["sglang", "transformers", "vllm"]),
    ("sft", "save_strategy", "sometimes", ["sometimes", "no", "steps", "epoch", "best"]),  # an Enum of transformers
    ("sft", "optim", "sgdd", ["sgdd", "adamw_torch"]),
    ("sft", "lr_scheduler_type", "cosin", ["cosin", "cosine"]),
    ("sft", "dtype", "float17", ["float17", "float32"]),  # of TRL's ModelConfig
    # types
    ("sft", "max_samples", "many", ["many", "int"]),
    ("sft", "max_samples", 1.5, ["1.5", "int"]),
    ("sft", "learning_rate", "fast", ["fast", "float"]),
    ("sft", "use_peft", "maybe", ["maybe"]),
]


@pytest.mark.parametrize("form", ["yaml", "command line"])
@pytest.mark.parametrize(("script", "name", "value", "words"), REFUSED, ids=lambda value: str(value)[:25])
def test_refused(monkeypatch, tmp_path, script, name, value, words, form):
    if form == "yaml":
        (tmp_path / "row.yaml").write_text(yaml.safe_dump({name: value}))
        arguments = ["--config", tmp_path / "row.yaml"]
    else:
        arguments = [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    with pytest.raises(InputError, match=name) as refused:
        parsed(monkeypatch, script, *arguments)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("script", "text", "words"),
    [
        ("grpo", "learning_rate: null", ["learning_rate must have a value, not null"]),
        ("grpo", "rewards: null", ["rewards must have a value, not null"]),
        ("grpo", "dataset: null", ["dataset must have a value, not null"]),  # one without a default
        ("grpo", "num_generations: null", ["num_generations must be 2 or more, not null"]),  # TRL's type allows it
        ("sft", "learning_rate: {a: 1}", ["learning_rate must be a value, not the mapping"]),
        ("sft", "dataset: {path: x}", ["dataset must be a value, not the mapping"]),
        ("sft", "learning_rate: [1, 2]", ["learning_rate must be one value, not the list [1, 2]"]),
        ("grpo", "rewards: []", ["rewards must be a list of one value or more"]),
        ("grpo", "rewards: [mccs, null]", ["rewards must be a list of one value or more"]),
        ("grpo", "rewards: [{mccs: 1}]", ["rewards must be a list of one value or more"]),
        ("grpo", "reward_weights: [0.5, heavy, 0.5]", ["reward_weights", "heavy", "float"]),
        ("sft", "save_strategy: no", ["save_strategy must not be false", "quote"]),  # YAML reads no as false
        ("sft", "max_samples: true", ["max_samples must not be true"]),
        ("sft", "env: on", ["env must be a mapping"]),
        ("sft", "_n_gpu: 2", ["there is no argument _n_gpu"]),  # a field that is no argument
        ("sft", "learning_rat: 1", ["there is no argument learning_rat"]),
    ],
)
def test_refused_in_a_yaml(monkeypatch, tmp_path, script, text, words):
    (tmp_path / "row.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(words[0])) as refused:
        parsed(monkeypatch, script, "--config", tmp_path / "row.yaml")
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("word", ["--learning_rat", "--max_step", "--margi"])
def test_no_abbreviation_is_taken(monkeypatch, word):
    with pytest.raises(InputError, match=f"{word}"):
        parsed(monkeypatch, "grpo", word, "1")


def test_pixels_in_the_wrong_order(monkeypatch):
    with pytest.raises(InputError, match="--min_pixels must be at most --max_pixels, which is 784, not 3136"):
        parsed(monkeypatch, "sft", "--min_pixels", 3136, "--max_pixels", 784)
    assert parsed(monkeypatch, "sft", "--min_pixels", 784, "--max_pixels", 784)[0].min_pixels == 784


@pytest.mark.parametrize(
    ("script", "text", "name", "expected"),
    [
        ("sft", "learning_rate: 1e-5", "learning_rate", 1e-5),  # YAML's text
        ("sft", "learning_rate: 1", "learning_rate", 1.0),
        ("sft", "max_length: null", "max_length", None),
        ("chexbert", "model: null", "model", None),
        ("sft", "max_grad_norm: .inf", "max_grad_norm", float("inf")),  # no clipping
        ("sft", "report_to: [tensorboard]", "report_to", ["tensorboard"]),  # text or a list
        ("sft", "lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("sft", "lr_scheduler_kwargs: '{\"num_cycles\": 2}'", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("sft", "save_strategy: 'no'", "save_strategy", "no"),
        ("sft", "model_name_or_path: 7", "model_name_or_path", "7"),  # a folder of that name
        ("sft", "trackio_static_space_id: false", "trackio_static_space_id", False),  # text or a Literal
        ("grpo", "rewards: mccs", "rewards", ["mccs"]),  # was the list of its letters
        ("grpo", "{scale_rewards: none, advantage_norm: trl}", "scale_rewards", "none"),
        ("sft", "clinical_samples: 0", "clinical_samples", 0),
        ("generate", "temperature: 0", "temperature", 0.0),
        ("sft", "use_peft: true", "use_peft", True),
        ("sft", "max_steps: -1", "max_steps", -1),
    ],
)
def test_taken(monkeypatch, tmp_path, script, text, name, expected):
    monkeypatch.setattr("recipes.trainers.config.get_available_reporting_integrations", lambda: ["tensorboard"])
    (tmp_path / "row.yaml").write_text(text)
    arguments = parsed(monkeypatch, script, "--config", tmp_path / "row.yaml")
    (value,) = [getattr(each, name) for each in arguments if hasattr(each, name)]
    assert value == expected and isinstance(value, type(expected))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MRGR1Config(temperature=0.0, use_cpu=True, bf16=False), "temperature must be above 0"),
        (lambda: PPOConfig(top_p=2.0, use_cpu=True, bf16=False), "top_p must be above 0 and at most 1"),
        (lambda: SFTRecipeConfig(learning_rate=float("nan")), "learning_rate must be 0 or more, not nan"),
        (lambda: ScenarioSFTConfig(scenario_sampling="x"), "scenario_sampling must be one of mixed, round_robin"),
        (lambda: LabelerConfig("x", max_steps=0), "max_steps must be at least 1"),
    ],
)
def test_python_is_told_the_same(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(), [-1e9, 0], [float("nan")], "a finite number"),
        (Range(0), [0, 5], [-1e-9, float("nan")], "0 or more"),
        (Range(0, above=True), [1e-9], [0], "above 0"),
        (Range(0, 1), [0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
        (Range(0, 1, above=True), [1], [0], "above 0 and at most 1"),
        (Range(0, 1, below=True), [0], [1], "at least 0 and below 1"),
    ],
)
def test_a_range(allowed, inside, outside, words):
    assert all(number in allowed for number in inside) and not any(number in allowed for number in outside)
    assert str(allowed) == words


def test_every_range_is_of_a_setting_that_there_is():
    names = {name for kinds, _ in SCRIPTS.values() for kind in kinds for name in kind.__dataclass_fields__}
    elsewhere = {
        "timeout",
        "retries",
        "judge_retries",
        "backoff",
        "token_budget",
        "warm_up_steps",
        "neighbours",
    }  # of scripts that do not train
    assert set(RANGES) - elsewhere <= names


def test_the_defaults_of_every_script_are_allowed():
    scripts = [
        path.stem for path in Path(sft_mrgr1.__file__).parent.glob("*.py") if path.stem not in ("__init__", "cli")
    ]
    kinds = {
        kind
        for script in scripts
        for kind in vars(importlib.import_module(f"recipes.{script}")).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ in {f"recipes.{each}" for each in scripts}
    }
    assert len(kinds) > 20
    for kind in kinds:
        arguments, hints = object.__new__(kind), get_type_hints(kind)
        for each in fields(kind):
            value = each.default if each.default_factory is MISSING else each.default_factory()
            value = next(iter(choices_of(hints[each.name])), "x") if value is MISSING else value
            object.__setattr__(arguments, each.name, value)
        check_settings(arguments)


def test_a_required_literal_is_checked():
    @dataclass
    class Arguments:
        size: Literal[1, 2] = field()

    check_settings(Arguments(2))
    with pytest.raises(InputError, match="size must be one of 1, 2, not 3"):
        check_settings(Arguments(3))


# --- the batch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch):
    """The number of processes that a config sees; the configs do not wait for the other ones."""
    for kind in (GRPOConfig, RLOOConfig, SFTConfig, TrainingArguments):
        monkeypatch.setattr(kind, "__post_init__", lambda self: None)

    def set_number(number: int | None) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if number:
            monkeypatch.setenv("WORLD_SIZE", str(number))

    return set_number


CONFIGS_OF_TRAINERS = (MRGR1Config, PPOConfig, RLOORecipeConfig, SFTRecipeConfig, ScenarioSFTConfig, LabelerConfig)


@pytest.mark.parametrize("kind", CONFIGS_OF_TRAINERS)
@pytest.mark.parametrize(
    ("number", "size", "batch", "expected"),  # size and accumulation
    [
        (1, 4, 16, (4, 4)),
        (None, 4, 16, (4, 4)),  # started by plain python
        (2, 4, 16, (4, 2)),  # the paper's two GPUs
        (2, 8, 16, (8, 1)),
        (8, 4, 16, (2, 1)),  # 32 at once would be too many
        (2, 16, 16, (8, 1)),
        (2, 24, 48, (24, 1)),  # LLM-RG4
        (8, 24, 48, (6, 1)),
        (1, 24, 48, (24, 2)),
    ],
)
def test_a_batch_is_shared(processes, capsys, kind, number, size, batch, expected):
    processes(number)
    args = kind("out", per_device_train_batch_size=size, effective_batch_size=batch)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected
    sentence = f"per_device_train_batch_size is {expected[0]} instead of {size}: effective_batch_size is {batch} "
    assert capsys.readouterr().out == (f"{sentence}over {number} processes\n" if expected[0] != size else "")


@pytest.mark.parametrize(
    ("number", "size", "batch", "steps", "sentence"),
    [
        (1, 5, 16, 1, r"effective_batch_size \(16\) must be a multiple of .* x processes \(5\)"),
        (3, 4, 16, 1, r"effective_batch_size \(16\) must be a multiple of the processes \(3\)"),
        (8, 18, 18, 1, r"effective_batch_size \(18\) must be a multiple of the processes \(8\)"),  # CheXbert's
        (1, 4, 16, 1, r"gradient_accumulation_steps \(1\) contradicts effective_batch_size \(16\), which makes it 4"),
        (2, 4, 16, 4, r"gradient_accumulation_steps \(4\) contradicts effective_batch_size \(16\), which makes it 2"),
    ],
)
def test_a_batch_that_cannot_be_shared(processes, number, size, batch, steps, sentence):
    processes(number)
    with pytest.raises(InputError, match=sentence):
        MRGR1Config(per_device_train_batch_size=size, effective_batch_size=batch, gradient_accumulation_steps=steps)


def test_a_lone_process_shares_with_all_gpus_that_it_sees(processes, monkeypatch):
    processes(None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = {"per_device_train_batch_size": 4, "effective_batch_size": 16}
    assert SFTRecipeConfig("out", **settings).gradient_accumulation_steps == 2
    assert SFTRecipeConfig("out", use_cpu=True, **settings).gradient_accumulation_steps == 4
    processes(1)
    assert SFTRecipeConfig("out", **settings).gradient_accumulation_steps == 2  # accelerate's single_gpu.yaml


def test_the_accumulation_that_follows_may_be_named(processes):
    processes(2)
    settings = {"per_device_train_batch_size": 4, "effective_batch_size": 16, "gradient_accumulation_steps": 2}
    assert SFTRecipeConfig("out", **settings).gradient_accumulation_steps == 2


def test_one_process_says_that_the_batch_is_smaller(processes, monkeypatch, capsys):
    processes(8)
    monkeypatch.setenv("RANK", "3")
    assert SFTRecipeConfig("out", effective_batch_size=16).per_device_train_batch_size == 2
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    SFTRecipeConfig("out", effective_batch_size=16)
    assert "per_device_train_batch_size is 2 instead of 8" in capsys.readouterr().out


PAPERS = [  # file, script, samples of one optimizer step, numbers of GPUs
    ("mrgr1/iu.yaml", "grpo", 16, (1, 2, 4, 8)),  # completions
    ("mrgr1/mimic.yaml", "grpo", 16, (1, 2, 4, 8)),
    ("mrgr1/sft_iu.yaml", "sft", 16, (1, 2, 4, 8)),
    ("mrgr1/sft_mimic.yaml", "sft", 16, (1, 2, 4, 8)),
    ("llmrg4/mimic_rg4_stage1.yaml", "llmrg4", 48, (1, 2, 4, 8)),  # 24 x 2
    ("llmrg4/mimic_rg4_stage2.yaml", "llmrg4", 32, (1, 2, 4, 8)),  # 16 x 2
    ("llmrg4/mimic_rg4_findings_stage1.yaml", "llmrg4", 48, (1, 2, 4, 8)),
    ("llmrg4/mimic_rg4_findings_stage2.yaml", "llmrg4", 32, (1, 2, 4, 8)),
    ("lmrrg/iu.yaml", "lmrrg", 16, (1, 2, 4, 8)),  # section 8, ours
    ("lmrrg/mimic.yaml", "lmrrg", 16, (1, 2, 4, 8)),
    ("lmrrg/iu_cqrl.yaml", "ppo", 32, (1, 2, 4, 8)),
    ("lmrrg/mimic_cqrl.yaml", "ppo", 32, (1, 2, 4, 8)),
    ("discbert/mimic.yaml", "discbert", 8, (1, 2, 4, 8)),
    ("chexbert/csv.yaml", "chexbert", 18, (1, 2)),  # eight do not divide it
]


@pytest.mark.parametrize(("file", "script", "batch", "numbers"), PAPERS, ids=lambda value: str(value)[:30])
def test_the_papers_batch_on_any_number_of_gpus(processes, monkeypatch, file, script, batch, numbers):
    for number in numbers:
        processes(number)
        args = next(
            each
            for each in parsed(monkeypatch, script, "--config", CONFIGS / file)
            if isinstance(each, TrainingArguments)
        )
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps * number == batch
        if isinstance(args, GRPOConfig):
            assert batch % args.num_generations == 0  # whole groups


# --- runs that would train nothing -----------------------------------------------------------------------------------


def run_settings(kind, **changes):
    return kind("out", use_cpu=True, bf16=False, **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "samples", "need"),
    [
        (MRGR1Config, {"per_device_train_batch_size": 8, "num_generations": 4}, 2, 2),
        (MRGR1Config, {"per_device_train_batch_size": 8, "num_generations": 4}, 1, 2),
        (MRGR1Config, {"effective_batch_size": 16, "per_device_train_batch_size": 8, "num_generations": 4}, 3, 4),
        (MRGR1Config, {"per_device_train_batch_size": 8, "num_generations": 2, "steps_per_generation": 2}, 7, 8),
        (PPOConfig, {"per_device_train_batch_size": 8}, 3, 4),
        (PPOConfig, {"per_device_train_batch_size": 8}, 4, 4),
        (RLOORecipeConfig, {"per_device_train_batch_size": 8, "num_generations": 4}, 1, 2),
        (SFTRecipeConfig, {"per_device_train_batch_size": 8}, 1, 1),  # the last, small batch counts
        (SFTRecipeConfig, {"per_device_train_batch_size": 8}, 0, 1),
        (SFTRecipeConfig, {"per_device_train_batch_size": 8, "dataloader_drop_last": True}, 7, 8),
        (SFTRecipeConfig, {"per_device_train_batch_size": 8, "dataloader_drop_last": True}, 8, 8),
        (LabelerConfig, {"per_device_train_batch_size": 16, "dataloader_drop_last": True}, 15, 16),
    ],
)
def test_enough_samples(kind, changes, samples, need):
    args = run_settings(kind, **changes)
    if samples >= need:
        check_run(args, samples)
        return
    with pytest.raises(InputError, match=rf"^nothing would be trained: there are {samples} training .* takes {need};"):
        check_run(args, samples)


def test_samples_of_all_processes(monkeypatch):
    """With dataloader_drop_last a step needs a whole batch in each of three processes."""
    args = run_settings(SFTRecipeConfig, per_device_train_batch_size=8, dataloader_drop_last=True)
    monkeypatch.setattr(SFTRecipeConfig, "world_size", 3)
    check_run(args, 24)
    with pytest.raises(
        InputError, match="there are 23 training samples, and with dataloader_drop_last a step takes 24"
    ):
        check_run(args, 23)


def test_nothing_is_saved_at_step_0(tmp_path):
    trainer = RecipeTrainer.__new__(RecipeTrainer)
    trainer.state = SimpleNamespace(global_step=0)
    with pytest.raises(InputError, match=f"no step was trained, so nothing is saved to {tmp_path}/run"):
        trainer.save_model(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@dataclass
class ClinicalConfig(SFTRecipeConfig):
    """One that writes reports at each evaluation."""

    clinical_samples: int = 2


def reward(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("kind", "metric", "more", "allowed"),
    [
        (SFTRecipeConfig, "loss", {}, True),
        (SFTRecipeConfig, "eval_loss", {}, True),
        (SFTRecipeConfig, "eval_mean_token_accuracy", {}, True),
        (SFTRecipeConfig, "clinical_f1", {}, False),  # nobody asked for it
        (ClinicalConfig, "clinical_f1", {}, True),
        (ClinicalConfig, "mccs", {}, True),
        (SFTRecipeConfig, "reward", {}, False),
        (ScenarioSFTConfig, "mean_token_accuracy", {}, True),
        (MRGR1Config, "reward", {}, True),
        (MRGR1Config, "rewards/reward/mean", {"rewards": [reward]}, True),
        (MRGR1Config, "eval_rewards/reward/std", {"rewards": [reward]}, True),
        (MRGR1Config, "rewards/mccs_reward/mean", {"rewards": [reward]}, False),  # not a reward of this run
        (MRGR1Config, "rewards/reward", {"rewards": [reward]}, False),
        (MRGR1Config, "reward/part", {"rewards": [reward]}, True),  # what a reward logs of its own
        (MRGR1Config, "value/loss", {}, False),
        (PPOConfig, "value/loss", {}, True),
        (LabelerConfig, "mean_f1", {"metrics": ["mean_f1"]}, True),
        (LabelerConfig, "mean_f1", {}, False),
        (LabelerConfig, "accuracy", {"metrics": ["mean_f1"]}, False),
    ],
)
def test_the_metric_of_the_best_model(kind, metric, more, allowed):
    args = run_settings(kind, metric_for_best_model=metric, eval_strategy="steps", eval_steps=1)
    if allowed:
        check_run(args, 100, **more)
        return
    with pytest.raises(InputError, match=f"^metric_for_best_model must be one of .*loss.*, not {metric}$"):
        check_run(args, 100, **more)


def test_a_metric_without_evaluation():
    args = run_settings(SFTRecipeConfig, metric_for_best_model="loss")
    with pytest.raises(InputError, match=r"metric_for_best_model \(loss\) is looked at in evaluations"):
        check_run(args, 100)
    check_run(run_settings(SFTRecipeConfig), 100)


@pytest.mark.parametrize("kind", ["grpo", "ppo", "weighted_sft"])
def test_the_metrics_are_those_that_an_evaluation_has(kind, tmp_path):
    """No name is missing from a config's list, and none of the list is missing from an evaluation."""
    changes = {}
    if kind == "grpo":
        small_llama().save_pretrained(tmp_path / "model")
        changes = {"beta": 0.1, "model": str(tmp_path / "model")}  # its reference is loaded from there
    trainer = make_trainer(kind, tmp_path, save_strategy="no", per_device_eval_batch_size=4, **changes)
    figures = trainer.evaluate(trainer.train_dataset)  # TRL adds its own in `log`, where Trainer looks for the best
    names = {name.removeprefix("eval_") for name, value in figures.items() if name.startswith("eval_")}
    names -= {"loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
    names -= {"rewards/says_clear/mean", "rewards/says_clear/std"}
    assert names == set(trainer.args.metrics)
