"""The demo: MRG-R1 end to end with a tiny model on a CPU, from no data to a page with results.

    make demo                                             # python recipes/demo.py --data phantom --seeds 0
    make demo DATA=openi SEEDS="0 1 2"                    # real reports with stand-in images, three seeds

Each stage is a command that is printed before it runs, so that it can be run by hand; outputs/demo/DATA/logs has its
output. A stage that has finished is not run again unless its command, its config file or one of its inputs changed
(`--fresh` starts over): an interrupted demo continues. At the end outputs/demo holds results.json and index.html.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.figures import GRPO, SFT, SFT_MORE, SHUFFLED, compare_systems, make_checks
from recipes.demos.page import read_history, write_page
from recipes.demos.stages import Stages, score_stage
from recipes.files import InputError

PHANTOM = ["recipes/build_phantom.py", "--scenarios", "sn", "--n_validation", "1"]
BALANCED = [*PHANTOM, "--balanced", "--seed", "7", "--n_train", "3000", "--n_test", "1"]
GENERATE = ["recipes/generate.py", "--prompt_file", "prompts/mrgr1_tiny.txt", "--views", "frontal"]
GENERATE += ["--split", "test", "--batch_size", "64", "--max_new_tokens", "160"]
SFT_DEMO = ["--config", "recipes/configs/mrgr1/sft_demo.yaml"]
GRPO_DEMO = ["--config", "recipes/configs/mrgr1/demo.yaml"]
OPTIONS = {
    "phantom": {
        "data": [*PHANTOM, "--abnormal", "0.6", "--seed", "6", "--n_train", "2500", "--n_test", "1000"],
        "balanced": BALANCED,
        "tiny": ["--warm_up_steps", "450"],
        "sft": SFT_DEMO,
        "grpo": GRPO_DEMO,
        "minutes": 15,
    },
    "openi": {
        "data": ["recipes/build_iu_xray.py", "--image_source", "phantom", "--target", "findings+impression"],
        "balanced": [*BALANCED, "--shapes", "square"],
        "tiny": ["--warm_up_steps", "500", "--vocab_size", "1024"],
        "sft": [*SFT_DEMO, "--max_steps", "800"],
        "grpo": [*GRPO_DEMO, "--max_steps", "120", "--max_completion_length", "160"],
        "minutes": 40,
    },
}
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]


@dataclass
class DemoArguments:
    data: Literal["phantom", "openi"] = field(default="phantom", metadata={"help": "All synthetic, or real reports."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds, one run each."})
    out: str = field(default="outputs/demo", metadata={"help": "Folder for everything, from the project root."})
    fresh: bool = field(default=False, metadata={"help": "Run every stage again."})


def steps_of_equal_time(grpo: str, sft: str) -> int:
    """How many SFT steps take as long as the GRPO run in folder `grpo` did, at the pace of the SFT run in `sft`."""
    times = [read_history(folder)[-1] for folder in (grpo, sft)]
    return max(1, round(times[0]["train_runtime"] / (times[1]["train_runtime"] / times[1]["step"])))


def print_table(figures: dict, seeds: list[int]) -> None:
    """One row per system, means over the seeds."""
    title = f"{figures['studies']} test studies, seeds {seeds}, labeler {figures['labeler']}; uncertain is positive"
    table = Table("system", title=title)
    for name in figures["table"][GRPO]:
        table.add_column(name, justify="right")
    for name, row in figures["table"].items():
        cells = (f"{value:.0f}" if column == "distinct reports" else f"{value:.3f}" for column, value in row.items())
        table.add_row(name, *cells)
    Console(width=120).print(table)


def main() -> None:
    (args,) = parse(DemoArguments)
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds takes different numbers from 0 on, not {args.seeds}")
    options, folder = OPTIONS[args.data], f"{args.out}/{args.data}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a running stage is ended too
    disable_progress_bars()  # they would break the table of the stages
    os.chdir(Path(__file__).parents[1])
    if args.fresh and Path(folder).is_dir():
        shutil.rmtree(folder)

    ################
    # Stages
    ################
    data, balanced = f"{folder}/data", f"{folder}/balanced"
    predictions = {}
    with Stages(folder) as stages:
        made = [("data", data, options["data"]), ("balanced data", balanced, options["balanced"])]
        stages.run(*((name, out, [*command, "--out", out]) for name, out, command in made))
        for seed in args.seeds:
            name, own = f"seed {seed}: ", f"{folder}/seed{seed}"
            tiny, sft, grpo, more = (f"{own}/{stage}" for stage in ("tiny", "sft", "grpo", "sft_more"))
            sft_script = [*LAUNCH, "recipes/sft_mrgr1.py", *options["sft"], "--seed", str(seed)]
            grpo_script = [*LAUNCH, "recipes/grpo_mrgr1.py", *options["grpo"], "--seed", str(seed)]
            build = ["recipes/build_tiny.py", "--dataset", data, "--warm_up", balanced, *options["tiny"]]
            stages.run((name + "tiny model", tiny, [*build, "--seed", str(seed), "--out", tiny]))
            starts = ["--model_name_or_path", tiny, "--dataset", data, "--output_dir", sft]
            stages.run((name + "SFT", sft, sft_script + starts))
            starts = ["--model_name_or_path", sft, "--dataset", data, "--output_dir", grpo]
            stages.run((name + "GRPO", grpo, grpo_script + starts))
            starts = ["--model_name_or_path", sft, "--dataset", data, "--output_dir", more]
            starts += ["--max_steps", str(steps_of_equal_time(grpo, sft))]
            stages.run((name + "SFT, as long as GRPO", more, sft_script + starts))

            predictions[seed], jobs = {}, []
            for system, model in {SFT: sft, SFT_MORE: more, GRPO: grpo, SHUFFLED: grpo}.items():
                control = ["--shuffle_images"] if system == SHUFFLED else []
                file = f"{model}_shuffled.jsonl" if control else f"{model}.jsonl"
                command = [*GENERATE, *control, "--model", model, "--dataset", data, "--out", file]
                jobs.append((f"{name}reports of {system}", file, command))
                predictions[seed][system] = file
            stages.run(*jobs)
        stages.run(score_stage(folder, data, predictions[args.seeds[0]], GRPO, SHUFFLED))

    ################
    # Figures
    ################
    started, labeler = time.monotonic(), load_labeler("lexical")
    figures = compare_systems(data, predictions, labeler)
    seconds = {**stages.seconds(), "figures": time.monotonic() - started}
    per_seed = sum(value / (len(args.seeds) if stage.startswith("seed ") else 1) for stage, value in seconds.items())
    checks = make_checks(figures, per_seed / 60, options["minutes"], stages.peak_memory_gb())
    results = {"data": args.data, "seeds": args.seeds, "stages": seconds, **figures}
    print_table(figures, args.seeds)
    report(args.out, results, checks)

    ################
    # Page
    ################
    rows = read_labelled(data, "test", labeler)
    logs = {seed: read_history(f"{folder}/seed{seed}/grpo") for seed in args.seeds}
    write_page(f"{args.out}/index.html", results, checks, rows, predictions[args.seeds[0]], logs)
    print(f"{args.out}/index.html shows it all; {folder}/scores/report.html has every report")


if __name__ == "__main__":
    run(main)
