"""Batches of uneven rows: images of several sizes, prompts of several lengths, one or two images a study."""

import pytest
from datasets import Dataset
from test_long_runs import PROMPTS, make_words, says_clear, small_llama

from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer

GENERATING = {"grpo": (MRGR1Trainer, MRGR1Config), "ppo": (PPOTrainer, PPOConfig)}


@pytest.fixture
def settings(tmp_path):
    """Arguments of a trainer in a folder of its own: four rows a batch on a CPU."""
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    }


@pytest.mark.parametrize("saved", ["right", "left"])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_tokenizer_pads_left_whatever_it_was_saved_with(settings, kind, saved):
    trainer_class, config_class = GENERATING[kind]
    tokenizer = make_words()
    tokenizer.padding_side = saved
    trainer = trainer_class(
        model=small_llama(),
        reward_funcs=[says_clear],
        args=config_class(**settings, num_generations=2),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    assert trainer.processing_class(PROMPTS[:2], padding=True)["attention_mask"] == [[0, 1], [1, 1]]
