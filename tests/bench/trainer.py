"""Times a step of our GRPO, PPO and weighted SFT against plain TRL's, same model, same data, a reward of no work.

    python tests/bench/trainer.py

Per method the trainers run at once, each in a process of one thread, and take turns step by step: while one computes,
the others wait. What is compared are processor seconds of neighbouring steps, which other work on the machine hardly
changes; a process's first steps, which warm up, are left out. The demos' settings of malloc keep a step's memory for
the next one: without them the page faults differ from process to process, and plain TRL's SFT against itself gave
ratios of up to 1.04 (with them, 1.01). PPO makes one forward pass more than GRPO (old
log-probabilities and values) and has the value head. Our GRPO and PPO are timed with shared prompts, the default, and
without (`share_prefix: false`), which shows what the rest costs. Writes outputs/bench/trainer/results.json; exits 0
whether or not a bar holds.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run
from recipes.data.samples import image_reader, to_samples
from recipes.data.schema import read_dataset, write_dataset
from recipes.demos.stages import QUIET
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer

WARM_UP, STEPS = 3, 24
LENGTH = 60  # tokens of a completion
COMMON = {
    "per_device_train_batch_size": 8,
    "max_steps": WARM_UP + STEPS,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
POLICY = {
    "num_generations": 4,
    "num_iterations": 1,
    "max_completion_length": LENGTH,
    "generation_kwargs": {"min_new_tokens": LENGTH},
    "beta": 0.04,
}
TRAINERS = {
    "TRL's GRPO": (GRPOTrainer, GRPOConfig, POLICY),
    "our GRPO": (MRGR1Trainer, MRGR1Config, POLICY),
    "our GRPO, prompts not shared": (MRGR1Trainer, MRGR1Config, POLICY | {"share_prefix": False}),
    "our PPO": (PPOTrainer, PPOConfig, POLICY),
    "our PPO, prompts not shared": (PPOTrainer, PPOConfig, POLICY | {"share_prefix": False}),
    "TRL's SFT": (SFTTrainer, SFTConfig, {"max_length": None}),
    "our weighted SFT": (WeightedSFTTrainer, WeightedSFTConfig, {"max_length": None}),
}
METHODS = [  # the plain trainer, and ours with their bars
    ("TRL's GRPO", {"our GRPO": 1.03, "our GRPO, prompts not shared": 1.03}),
    ("TRL's GRPO", {"our PPO": 1.20, "our PPO, prompts not shared": 1.20}),
    ("TRL's SFT", {"our weighted SFT": 1.03}),
]


class Turns(TrainerCallback):
    """After each step: says the processor seconds since the one before, and waits for the next turn."""

    last = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        now = time.process_time()
        print(f"step {now - self.last}", flush=True)
        sys.stdin.readline()
        self.last = time.process_time()


def null_reward(completions: list, **kwargs) -> list[float]:
    """No work, but no group without spread either."""
    return [float(index % 2) for index in range(len(completions))]


def train(name: str, folder: Path) -> None:
    """A worker: a training run from the same weights, which waits for its turn after each step."""
    torch.set_num_threads(1)
    trainer_class, config_class, settings = TRAINERS[name]
    rows = read_dataset(str(folder / "data"))["train"]
    samples = to_samples(rows, "Report the findings.", "frontal")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    model.model.visual.requires_grad_(False)
    rewards = [[null_reward]] if "SFT" not in name else []
    if not rewards:  # the first half of a report counts as its key sentences
        reader, samples = image_reader(samples), samples.with_format(None)
        texts = rows["report"][: len(samples)]
        answers = [[{"role": "assistant", "content": text}] for text in texts]
        samples = samples.add_column("completion", answers)
        if "weighted" in name:
            samples = samples.add_column("key_spans", [[[0, len(text) // 2]] for text in texts])
        samples = samples.with_transform(reader)
    processor = AutoProcessor.from_pretrained(folder / "model")
    processor.tokenizer.padding_side = "left" if rewards else "right"  # TRL's GRPO needs it; ours sees to it
    trainer = trainer_class(
        model,
        *rewards,
        args=config_class(str(folder / name.replace(" ", "_")), **COMMON, **settings),
        train_dataset=samples,
        processing_class=processor,
        callbacks=[Turns()],
    )
    trainer.train()


class Worker:
    """The process of a trainer, which computes a step when asked for its seconds."""

    def __init__(self, name: str, folder: Path):
        command = [sys.executable, __file__, name, str(folder)]
        self.log = (folder / f"{name}.log").open("w+")
        pipe = subprocess.PIPE
        environment = {**os.environ, **QUIET}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=environment)

    def step(self) -> float:
        for line in self.process.stdout:
            if line.startswith("step "):
                return float(line.split()[1])
        self.log.seek(0)
        sys.exit(f"{self.log.read()}\nerror: a trainer ended before its last step")

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def take_turns(names: list[str], folder: Path) -> dict[str, list[float]]:
    """Processor seconds of the counted steps of each trainer; the order turns round by one with every step."""
    workers = {name: Worker(name, folder) for name in names}
    seconds: dict[str, list[float]] = {name: [worker.step()][:0] for name, worker in workers.items()}
    for step in range(1, WARM_UP + STEPS):
        turn = step % len(names)
        for name in names[turn:] + names[:turn]:
            workers[name].go_on()
            seconds[name].append(workers[name].step())
    for worker in workers.values():
        worker.go_on()
        worker.process.communicate()
    return {name: values[WARM_UP - 1 :] for name, values in seconds.items()}


def main() -> None:
    if len(sys.argv) > 1:
        train(sys.argv[1], Path(sys.argv[2]))
        return
    figures, checks = {}, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        args = BuildArguments(size=112)
        write_dataset({"train": lambda: (build_row("train", i, "mn", args) for i in range(256))}, folder / "data", {})
        network, processor = build_qwen2_5_vl(train_tokenizer(read_dataset(str(folder / "data"))["train"]["report"]))
        network.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        for plain, bars in METHODS:
            seconds = take_turns([plain, *bars], folder)
            for name, bar in bars.items():
                ratios = np.array(seconds[name]) / np.array(seconds[plain])
                resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
                low, high = np.quantile(resampled, (0.025, 0.975)).tolist()  # what this machine's noise lets one tell
                ratio = float(np.median(ratios))
                of, plain_of = (1000 * np.median(values) for values in (seconds[name], seconds[plain]))
                print(
                    f"{name} / {plain}: {ratio:.3f} ({low:.3f} to {high:.3f}), {of:.0f} and {plain_of:.0f} ms a step"
                )
                figures[name] = {"ratio": ratio, "interval": [low, high], "of": plain}
                figures[name] |= {"seconds": seconds[name], "seconds_of": seconds[plain]}
                checks.append({"name": f"a step of {name} / of {plain}", "value": ratio, "bar": f"<= {bar}",
                               "holds": ratio <= bar})  # fmt: skip
    report("outputs/bench/trainer", figures, checks)


if __name__ == "__main__":
    run(main)
