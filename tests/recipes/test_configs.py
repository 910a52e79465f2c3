"""The YAMLs: the paper's values where the paper gives them, one order of groups, every key known to its script."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from recipes import grpo_mrgr1, sft_mrgr1
from recipes.cli import parse, read_prompt
from recipes.trainers.grpo import MRGR1Config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes/configs/mrgr1"
FILES = sorted(FOLDER.glob("*.yaml"))
PAPER = {  # MRG-R1 section IV-B
    "model_name_or_path": "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL",  # MR-029
    "use_peft": True,
    "lora_r": 128,  # MR-030
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "attn_implementation": "flash_attention_2",  # MR-031
    "dtype": "bfloat16",
    "bf16": True,
    "optim": "adamw_bnb_8bit",  # MR-032
    "learning_rate": 5e-6,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",  # MR-033
    "warmup_steps": 0.1,  # a float below 1 is a share of the steps
    "max_grad_norm": 0.1,
    "num_train_epochs": 1,  # MR-034
    "views": "each",  # MR-027
}
PAPER_GRPO = {
    "effective_batch_size": 16,  # MR-034
    "num_generations": 4,  # MR-036
    "rewards": ["mccs", "format"],
    "reward_weights": [0.75, 0.25],
    "advantage_norm": "paper",  # MR-011
    "loss_type": "grpo",  # MR-009
    "use_bias_correction_kl": False,
    "labeler": "chexbert",  # MR-015
}
PROCESSES = 2  # the paper's 2 x A100


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_key_is_known_to_the_script(file, monkeypatch):
    script, config = (sft_mrgr1, SFTConfig) if "sft" in file.name else (grpo_mrgr1, MRGR1Config)
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true"])
    args, training_args, _ = parse(script.RecipeArguments, config, ModelConfig)
    assert args.dataset == load(file.name)["dataset"]
    assert training_args.output_dir == load(file.name)["output_dir"]
    assert read_prompt(args.prompt_file)


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml", "sft_iu.yaml", "sft_mimic.yaml"])
@pytest.mark.parametrize(("key", "value"), PAPER.items(), ids=str)
def test_values_of_the_paper(name, key, value):
    assert load(name)[key] == value


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml"])
@pytest.mark.parametrize(("key", "value"), PAPER_GRPO.items(), ids=str)
def test_values_of_the_paper_for_grpo(name, key, value):
    assert load(name)[key] == value


@pytest.mark.parametrize("name", ["sft_iu.yaml", "sft_mimic.yaml"])
def test_sft_batch_is_16_on_two_gpus(name):
    values = load(name)
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * PROCESSES == 16


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml"])
def test_kl_is_on(name):
    assert load(name)["beta"] > 0  # TRL's default drops the term


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_groups_stand_in_one_order(file):
    headings = re.findall(r"^# (\w+)$", file.read_text(), re.MULTILINE)
    order = ["Model", "LoRA", "Data", "Trainer"]
    assert headings == [title for title in order if title in headings]
    assert {"Model", "Data", "Trainer"} <= set(headings)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_no_key_twice(file):
    keys = re.findall(r"^(\w+):", file.read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys))  # YAML would silently keep the last


@pytest.mark.parametrize(("one", "other"), [("iu.yaml", "mimic.yaml"), ("sft_iu.yaml", "sft_mimic.yaml")])
def test_the_two_data_sets_are_trained_alike(one, other):
    first, second = load(one), load(other)
    assert {key for key in first | second if first.get(key) != second.get(key)} == {"dataset", "output_dir"}


def test_models_trained_on_mimic_stay_private():
    assert load("mimic.yaml")["hub_private_repo"] is True  # DESIGN section 9
    assert load("sft_mimic.yaml")["hub_private_repo"] is True


@pytest.mark.parametrize(
    ("name", "processes", "kind"),
    [
        ("single_gpu.yaml", 1, "NO"),
        ("multi_gpu.yaml", 2, "MULTI_GPU"),  # MR-028: 2 x A100
        ("zero1.yaml", 2, "DEEPSPEED"),  # MR-035
    ],
)
def test_accelerate_configs(name, processes, kind):
    values = yaml.safe_load((ROOT / "accelerate_configs" / name).read_text())
    assert (values["num_processes"], values["distributed_type"], values["mixed_precision"]) == (
        processes,
        kind,
        "bf16",
    )
    assert values.get("deepspeed_config", {}).get("zero_stage") == (1 if kind == "DEEPSPEED" else None)
