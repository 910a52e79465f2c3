"""Measures what it saves to read each study once per group, at MRG-R1's shape and at the demo's.

    python tests/bench/shared_prefix.py

A Qwen2.5-VL of 25 million parameters with a frozen image encoder and gradient checkpointing, as in MRG-R1's YAML: one
image of 1,024 tokens, a prompt of 1,135 tokens with it, completions of 512. For groups of 2, 4, 8 and 16 the plain and
the shared pass take turns, each in a process of its own: processor seconds of forward and backward pass, which other
processes on the machine change little, tokens that are read, and memory at its peak above that of the loaded model.
Then a short generation (8 rows, 8 tokens), and whole steps of `MRGR1Trainer` with and without, at the shape of
recipes/configs/mrgr1/phantom.yaml. Writes outputs/bench/shared_prefix/results.json; exits 0 whatever comes out.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback, set_seed
from trl.trainer.utils import add_fused_lm_head

from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run
from recipes.data.samples import to_samples
from recipes.data.schema import read_dataset, write_dataset
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.image_memory import ImageMemory
from recipes.trainers.shared_prefix import SharedPrefix

PROMPT, IMAGE, COMPLETION = 1135, 1024, 512
GROUPS = (2, 4, 8, 16)
BARS = {4: 1.8, 8: 2.4}  # times faster
MEMORY_BAR = 0.6
ROUNDS = {2: 1, 4: 2, 8: 1, 16: 1}
BLOCKS, STEPS = 2, 4  # of the demo's shape; a block's first step is not counted
TEXTS = ["The heart is normal in size.", "There is a left pleural effusion.", "No pneumothorax."] * 20


def build() -> tuple[torch.nn.Module, SharedPrefix, ImageMemory]:
    """The model with TRL's head, and what shares its prompts."""
    model, _ = build_qwen2_5_vl(train_tokenizer(TEXTS), hidden_size=512, text_layers=7, vision_layers=3)
    model.model.visual.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model.train())
    sharing, memory = SharedPrefix(), ImageMemory()
    memory.attach(model)
    sharing.attach(model, check=False)
    return model, sharing, memory


def batch_of(model, rows: int) -> dict[str, torch.Tensor]:
    """Rows of one prompt with one image, and random completions of full length."""
    set_seed(0)
    config, length = model.config, PROMPT + COMPLETION
    text = torch.randint(20, 300, (1, PROMPT))
    text[0, 10 : 10 + IMAGE] = config.image_token_id
    ids = torch.cat([text.expand(rows, -1), torch.randint(20, 300, (rows, COMPLETION))], dim=1)
    side = 2 * int(IMAGE**0.5)
    pixels = torch.randn(side * side, 3 * 2 * 14 * 14)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": pixels.repeat(rows, 1),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
        "labels": labels,
    }


def resident() -> float:
    """Bytes of memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(shared: bool, rows: int) -> dict[str, float]:
    """One forward and backward pass after a small one that warms up."""
    torch.set_num_threads(1)
    model, sharing, memory = build()

    def go(batch: dict) -> torch.Tensor:
        memory.clear()
        if not shared:  # each row's image is encoded, as without a memory
            memory.features = lambda images, encode, state: encode(list(range(len(images))))
        with sharing.completions(COMPLETION if shared else 0):
            output = model(**batch, fused_lm_head=True)
        output.log_probs.sum().backward()
        return output.log_probs.detach()[:, -COMPLETION:]

    small = batch_of(model, 2)
    go({name: small[name][:, -COMPLETION - 90 :] for name in ("input_ids", "attention_mask", "labels")})  # no image
    batch, before, sharing.saved = batch_of(model, rows), resident(), [0, 0]
    start = time.process_time()
    log_probs = go(batch)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    tokens = sharing.saved[0] if shared else batch["input_ids"].numel()
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "seconds": seconds,
        "peak": peak,
        "tokens": tokens,
        "sum": float(log_probs.sum()),
        "parameters": parameters,
    }


def measure_generation(shared: bool, rows: int) -> dict[str, float]:
    torch.set_num_threads(1)
    model, sharing, memory = build()
    batch = batch_of(model.eval(), rows)
    prompts = {name: value if name in ("pixel_values", "image_grid_thw") else value[:, :PROMPT]
               for name, value in batch.items() if name != "labels"}  # fmt: skip
    if not shared:
        memory.features = lambda images, encode, state: encode(list(range(len(images))))
    sharing._writing = shared
    start = time.process_time()
    with torch.no_grad():
        ids = model.generate(**prompts, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return {"seconds": time.process_time() - start, "sum": int(ids.sum())}


def in_a_process(part: str, shared: bool, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, part, str(int(shared)), str(rows)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


class StepTimes(TrainerCallback):
    """Processor seconds from the end of one step to the end of the next."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.process_time())


def letters_reward(completions: list, **kwargs) -> list[float]:
    return [len(set(completion[0]["content"])) / 30 for completion in completions]


def time_steps(shared: bool, model: Path, samples, folder: str) -> tuple[list[float], float]:
    """Seconds of the counted steps of a run at the demo's shape, and the share of the plain pass's tokens."""
    times = StepTimes()
    args = MRGR1Config(
        output_dir=folder, effective_batch_size=64, per_device_train_batch_size=32, num_generations=4,
        max_completion_length=100, max_steps=STEPS, temperature=0.7, beta=0.04, loss_type="grpo", share_prefix=shared,
        use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, generation_kwargs={"min_new_tokens": 60},
    )  # fmt: skip
    trainer = MRGR1Trainer(
        AutoModelForImageTextToText.from_pretrained(model), [letters_reward], args, samples,
        processing_class=AutoProcessor.from_pretrained(model), callbacks=[times],
    )  # fmt: skip
    trainer.train()
    read, of = trainer._sharing.saved if shared else (1, 1)
    return np.diff(times.ends).tolist(), read / of


def measure_demo(figures: dict, checks: list) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, model = Path(folder) / "data", Path(folder) / "model"
        args = BuildArguments(size=112)
        write_dataset({"train": lambda: (build_row("train", i, "mn", args) for i in range(64))}, data, {})
        rows = read_dataset(str(data))["train"]
        samples = to_samples(rows, "Report the findings.", "frontal")
        network, processor = build_qwen2_5_vl(train_tokenizer(rows["report"]))
        network.save_pretrained(model)
        processor.save_pretrained(model)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for block in range(BLOCKS):
            for shared in (False, True) if block % 2 == 0 else (True, False):
                steps, share = time_steps(shared, model, samples, f"{folder}/run")
                seconds[shared] += steps
                figures["demo_share_of_tokens"] = share if shared else figures.get("demo_share_of_tokens")
    medians = {shared: statistics.median(values) for shared, values in seconds.items()}
    figures["demo_step_seconds"] = {"plain": seconds[False], "shared": seconds[True]}
    ratio = medians[True] / medians[False]
    checks.append(
        {"name": "a step of the demo's shape, shared / plain", "value": ratio, "bar": "<= 1.0", "holds": ratio <= 1}
    )


def main() -> None:
    if len(sys.argv) > 1:
        part, shared, rows = sys.argv[1:]
        measured = (measure if part == "pass" else measure_generation)(bool(int(shared)), int(rows))
        print(json.dumps(measured))
        return
    figures, checks = {}, []
    for rows in GROUPS:
        runs: dict[str, list[dict]] = {"plain": [], "shared": []}
        for number in range(ROUNDS[rows]):
            for name in runs if number % 2 == 0 else [*runs][::-1]:
                runs[name].append(in_a_process("pass", name == "shared", rows))
        row = {
            name: {key: statistics.median(run[key] for run in values) for key in values[0]}
            for name, values in runs.items()
        }
        row["times_faster"] = row["plain"]["seconds"] / row["shared"]["seconds"]
        row["memory"] = row["shared"]["peak"] / row["plain"]["peak"]
        figures[f"G={rows}"] = row | {"rounds": runs}
        print(f"G = {rows}: " + ", ".join(f"{name} {row[name]['seconds']:.1f} s, {row[name]['peak'] / 1e6:.0f} MB, "
              f"{row[name]['tokens']:,.0f} tokens" for name in runs) + f"; {row['times_faster']:.2f} times faster, "
              f"{row['memory']:.0%} of the memory", flush=True)  # fmt: skip
        if rows in BARS:
            checks.append({"name": f"pass of G = {rows}, plain / shared", "value": row["times_faster"],
                           "bar": f">= {BARS[rows]}", "holds": row["times_faster"] >= BARS[rows]})  # fmt: skip
            checks.append({"name": f"peak memory of G = {rows}, shared / plain", "value": row["memory"],
                           "bar": f"<= {MEMORY_BAR}", "holds": row["memory"] <= MEMORY_BAR})  # fmt: skip
        difference = abs(row["plain"]["sum"] - row["shared"]["sum"]) / abs(row["plain"]["sum"])
        checks.append({"name": f"difference of log-probabilities, G = {rows}", "value": difference, "bar": "<= 1e-5",
                       "holds": difference <= 1e-5})  # fmt: skip
    generation = {name: in_a_process("generation", name == "shared", 8) for name in ("plain", "shared")}
    figures["generation"] = generation
    print(
        "generation of 8 tokens, 8 rows: "
        + ", ".join(f"{name} {row['seconds']:.1f} s" for name, row in generation.items())
    )
    measure_demo(figures, checks)
    report("outputs/bench/shared_prefix", figures, checks)


if __name__ == "__main__":
    run(main)
