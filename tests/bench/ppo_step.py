"""Times a training step of PPOTrainer against the stock GRPOTrainer.

    python tests/bench/ppo_step.py

Both train the same tiny Qwen2.5-VL on the same phantom studies with the same reward, KL term and batch, one epoch over
each batch of completions and E frozen, in blocks that alternate within one process, so that a busy machine slows both
alike. The first step of a block is left out. PPO makes one forward pass more (old log-probabilities and values) and
has the value head. Writes outputs/bench/ppo_step/results.json; exits 0 whether or not the bar holds.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run
from recipes.data.samples import to_samples
from recipes.data.schema import read_dataset, write_dataset
from recipes.trainers.ppo import PPOConfig, PPOTrainer

BLOCKS = 6  # of each trainer
STEPS = 7  # of a block, the first of which is not counted
BAR = 1.25
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "ppo": (PPOTrainer, PPOConfig)}


class StepTimes(TrainerCallback):
    """Seconds from the end of one step to the end of the next: generation, rewards, update and logging."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def letters_reward(completions: list, **kwargs) -> list[float]:
    return [len(set(completion[0]["content"])) / 30 for completion in completions]


def time_block(name: str, folder: Path, samples, completion_length: int) -> list[float]:
    """Seconds of each counted step of one `train()` from the same weights."""
    trainer_class, config_class = TRAINERS[name]
    times = StepTimes()
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.model.visual.requires_grad_(False)
    args = config_class(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=8,
        num_generations=4,
        num_iterations=1,
        max_completion_length=completion_length,
        max_steps=STEPS,
        beta=0.04,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    processor = AutoProcessor.from_pretrained(folder)
    trainer = trainer_class(model, [letters_reward], args, samples, processing_class=processor, callbacks=[times])
    trainer.train()
    return np.diff(times.ends).tolist()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data, model = Path(folder) / "data", Path(folder) / "model"
        args = BuildArguments(size=112)
        write_dataset({"train": lambda: (build_row("train", i, "mn", args) for i in range(64))}, data, {})
        rows = read_dataset(str(data))["train"]
        samples = to_samples(rows, "Report the findings.", "frontal")
        network, processor = build_qwen2_5_vl(train_tokenizer(rows["report"]))
        network.save_pretrained(model)
        processor.save_pretrained(model)

        figures, checks = {}, []
        for length in (12, 60):
            seconds: dict[str, list[float]] = {name: [] for name in TRAINERS}
            ratios = []
            for block in range(BLOCKS):
                order = list(TRAINERS) if block % 2 == 0 else list(TRAINERS)[::-1]
                steps = {name: time_block(name, model, samples, length) for name in order}
                for name in TRAINERS:
                    seconds[name] += steps[name]
                ratios.append(statistics.median(steps["ppo"]) / statistics.median(steps["grpo"]))
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            ratio = medians["ppo"] / medians["grpo"]
            print(f"{length} tokens: " + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians.items()))
            figures[f"{length}_tokens"] = {"median_seconds": medians, "ratios_of_blocks": ratios}
            name = f"PPOTrainer step / GRPOTrainer step, {length} tokens"
            checks.append({"name": name, "value": ratio, "bar": f"<= {BAR}", "holds": ratio <= BAR})
    report("outputs/bench/ppo_step", figures, checks)


if __name__ == "__main__":
    run(main)
