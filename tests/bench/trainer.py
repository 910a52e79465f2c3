"""Times a training step of MRGR1Trainer (`advantage_norm: paper`) against the stock GRPOTrainer.

    python tests/bench/trainer.py

Both train the same tiny Qwen2.5-VL on the same phantom studies with a reward that does nothing, in blocks that
alternate within one process, so that a busy machine slows both alike. A block is one `train()` of a few steps; its
first step, which warms up, is left out. Writes outputs/bench/trainer/results.json. A figure is not a test: exits 0
whether or not the bar holds.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import AutoProcessor, TrainerCallback
from trl import GRPOTrainer

from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run
from recipes.data.samples import to_samples
from recipes.data.schema import read_dataset, write_dataset
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer

BLOCKS = 10  # of each trainer
STEPS = 7  # of a block, the first of which is not counted
BAR = 1.03
TRAINERS = {"stock": GRPOTrainer, "ours": MRGR1Trainer}


class StepTimes(TrainerCallback):
    """Seconds from the end of one step to the end of the next: generation, rewards, update and logging."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def null_reward(completions: list, **kwargs) -> list[float]:
    """No work, but no group without spread either."""
    return [float(index % 2) for index in range(len(completions))]


def time_block(trainer_class: type[GRPOTrainer], model: Path, samples, folder: str) -> list[float]:
    """Seconds of each counted step of one `train()` from the same weights."""
    times = StepTimes()
    args = MRGR1Config(
        output_dir=folder,
        effective_batch_size=8,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        loss_type="grpo",
        max_steps=STEPS,
        beta=0.04,
        use_bias_correction_kl=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        log_completions=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trainer_class(
        model=str(model),
        reward_funcs=[null_reward],
        args=args,
        train_dataset=samples,
        processing_class=AutoProcessor.from_pretrained(model),
        callbacks=[times],
    )
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

        seconds: dict[str, list[float]] = {name: [] for name in TRAINERS}
        ratios = []
        for block in range(BLOCKS):
            order = list(TRAINERS) if block % 2 == 0 else list(TRAINERS)[::-1]
            steps = {name: time_block(TRAINERS[name], model, samples, f"{folder}/run") for name in order}
            for name in TRAINERS:
                seconds[name] += steps[name]
            ratios.append(statistics.median(steps["ours"]) / statistics.median(steps["stock"]))

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["ours"] / medians["stock"]
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, BLOCKS)), axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()  # what this machine's noise lets one tell
    for name, value in medians.items():
        print(f"{name}: median {1000 * value:.1f} ms a step over {len(seconds[name])} steps")
    print(f"ratio {ratio:.3f}; median ratio of a pair of blocks: 95 % interval {low:.3f} to {high:.3f}")
    report(
        "outputs/bench/trainer",
        {"median_seconds": medians, "ratios_of_blocks": ratios, "interval_of_ratio": [low, high]},
        [
            {
                "name": "MRGR1Trainer step / GRPOTrainer step",
                "value": ratio,
                "bar": f"<= {BAR}",
                "holds": ratio <= BAR,
            }
        ],
    )


if __name__ == "__main__":
    run(main)
