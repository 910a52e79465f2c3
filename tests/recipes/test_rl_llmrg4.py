"""GRPO of LLM-RG4 in all four scenarios: what is trained, what is refused, and that a killed run resumes."""

import sys
from pathlib import Path

import pytest
import torch
from replicas import SENTENCES
from safetensors.torch import load_file
from trl import ModelConfig

from modeling.tiny_llmrg4 import build_llmrg4
from recipes import rl_llmrg4
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import parse
from recipes.data.schema import write_dataset
from recipes.files import InputError, read_prompt
from recipes.trainers.grpo import MRGR1Config
from rewards.table import RewardArguments

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs/llmrg4"

CPU = """dtype: float32
rewards: [rouge]
num_generations: 2
effective_batch_size: 8
per_device_train_batch_size: 4
max_completion_length: 8
beta: 0.04
learning_rate: 1.0e-3
lr_scheduler_type: constant
use_cpu: true
bf16: false
gradient_checkpointing: false
report_to: none
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[str, str, str]:
    """A data set with studies of each scenario, an LLM-RG4 of one layer, and the YAML of a CPU run."""
    folder, args = tmp_path_factory.mktemp("rl"), BuildArguments(size=64)
    rows = [build_row("train", number, scenario, args) for number, scenario in enumerate(("sn", "sw", "mn", "mw") * 3)]
    write_dataset({"train": lambda: iter(rows)}, folder / "data", {"builder": "build_phantom"})
    texts = [*SENTENCES, *(row["report"] for row in rows)]
    model, processor = build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, text_layers=1)
    model.config.perceiver_dropout = 0.0
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "cpu.yaml").write_text(CPU)
    return str(folder / "data"), str(folder / "model"), str(folder / "cpu.yaml")


@pytest.fixture
def train(call, start):
    def train(out, *words) -> dict[str, torch.Tensor]:
        data, model, config = start
        call(
            rl_llmrg4.main, "--config", config, "--dataset", data, "--model_name_or_path", model,
            "--output_dir", out, *words,
        )  # fmt: skip
        return load_file(out / "model.safetensors")

    return train


def test_fusion_and_decoder_are_trained_and_encoders_are_not(train, start, tmp_path):
    """Lateral images and prior reports are learned from: their perceivers change."""
    after = train(tmp_path / "out", "--max_steps", 2)
    before = load_file(f"{start[1]}/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for part in ("lateral_perceiver", "prior_perceiver", "frontal_perceiver", "language_model"):
        assert any(part in name for name in changed), part
    assert not any("vision_encoder" in name or "prior_encoder" in name for name in changed)


def test_a_resumed_run_ends_where_the_whole_one_does(train, tmp_path):
    words = ["--max_steps", 3, "--save_strategy", "steps", "--save_steps", 1]
    whole = train(tmp_path / "whole", *words)
    train(tmp_path / "cut", *words)
    for step in (2, 3):
        folder = tmp_path / "cut" / f"checkpoint-{step}"
        folder.rename(tmp_path / f"away-{step}")
    resumed = train(tmp_path / "cut", *words, "--resume_from_checkpoint", "latest")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_lora_is_merged_and_trains_the_fusion(train, start, tmp_path):
    lora = ["--use_peft", "true", "--lora_r", 4, "--lora_target_modules", r".*language_model.*\.(q|v)_proj"]
    after = train(tmp_path / "out", "--max_steps", 1, *lora)
    before = load_file(f"{start[1]}/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("token_fusion" in name for name in changed)
    assert all("token_fusion" in name or "q_proj" in name or "v_proj" in name for name in changed)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("grpo*.yaml")), ids=lambda path: path.name)
def test_every_key_of_the_files_is_known(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true"])
    args, rewards, training_args, model_args = parse(
        rl_llmrg4.RecipeArguments, RewardArguments, MRGR1Config, ModelConfig
    )
    assert "severity" in rewards.rewards and training_args.output_dir.startswith("outputs/llmrg4/grpo")
    assert model_args.model_name_or_path.endswith("stage2") and read_prompt(args.prompt_file)


def test_another_model_is_refused(train, tiny, tmp_path):
    with pytest.raises(InputError, match="is a qwen2_5_vl model, not an LLM-RG4"):
        train(tmp_path / "out", "--model_name_or_path", tiny)
