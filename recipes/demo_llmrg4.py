"""The demo of LLM-RG4 on two CPU cores, from no data to a page: token weights, two stages, four input scenarios.

    make demo-llmrg4                                      # python recipes/demo_llmrg4.py --seeds 0
    make demo-llmrg4 SEEDS="0 1 2"

Each stage is a command that is printed before it runs, so that it can be run by hand; outputs/demo-llmrg4/logs has its
output. A stage that has finished is not run again unless its command, its config file or one of its inputs changed
(`--fresh` starts over). The same two stages are trained with and without token weights (TLW), side by side. At the end
outputs/demo-llmrg4 holds results.json and index.html.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.figures import compare_systems
from recipes.demos.page import read_history, write_page
from recipes.demos.scenarios import PLAIN, SHUFFLED, TLW, compare_scenarios, make_checks
from recipes.demos.stages import Stages, score_stage
from recipes.files import InputError

PHANTOM = ["recipes/build_phantom.py", "--balanced", "--style", "prose", "--n_validation", "1"]
PHANTOM += ["--shapes", "square"]
DATA = [*PHANTOM, "--scenarios", "sn,sw,mn,mw", "--seed", "42", "--n_train", "5000", "--n_test", "1000"]
BALANCED = [*PHANTOM, "--scenarios", "mn,mw", "--seed", "43", "--n_train", "4000", "--n_test", "1"]
LABELER = ["recipes/train_chexbert.py", "--texts", "20000", "--bar", "0.9"]
TINY = ["recipes/build_tiny.py", "--system", "llmrg4", "--prompt_file", "prompts/llmrg4.txt"]
TINY += ["--warm_up_steps", "650"]
WEIGH = ["recipes/weigh_tokens.py", "--splits", "train"]
TRAIN = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", "recipes/sft_llmrg4.py"]
CONFIG = "recipes/configs/llmrg4/demo_stage{}.yaml"
GENERATE = ["recipes/generate.py", "--prompt_file", "prompts/llmrg4.txt", "--views", "frontal+lateral"]
GENERATE += ["--split", "test", "--batch_size", "64", "--max_new_tokens", "100"]
CURVES = {"loss": "Loss, key tokens weighed", "mean_token_accuracy": "Token accuracy"}
MINUTES = 12


@dataclass
class DemoArguments:
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds, one run each."})
    out: str = field(default="outputs/demo-llmrg4", metadata={"help": "Folder for all, from the project root."})
    fresh: bool = field(default=False, metadata={"help": "Run every stage again."})


def main() -> None:
    (args,) = parse(DemoArguments)
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds takes different numbers from 0 on, not {args.seeds}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a running stage is ended too
    disable_progress_bars()  # they would break the table of the stages
    os.chdir(Path(__file__).parents[1])
    if args.fresh and Path(args.out).is_dir():
        shutil.rmtree(args.out)

    ################
    # Stages
    ################
    data, balanced, labeler, weighed = (f"{args.out}/{name}" for name in ("data", "balanced", "labeler", "weighed"))
    predictions = {}
    with Stages(args.out) as stages:
        made = [("data", data, DATA), ("balanced data", balanced, BALANCED)]
        stages.run(*((name, out, [*command, "--out", out]) for name, out, command in made))
        stages.run(("labeler", labeler, [*LABELER, "--dataset", data, "--output_dir", labeler]))
        jobs = [("token weights", weighed, [*WEIGH, "--dataset", data, "--model", labeler, "--out", weighed])]
        for seed in args.seeds:
            tiny = f"{args.out}/seed{seed}/tiny"
            command = [*TINY, "--chexbert", labeler, "--dataset", data, "--warm_up", balanced, "--seed", str(seed)]
            jobs.append((f"seed {seed}: tiny model", tiny, [*command, "--out", tiny]))
        stages.run(*jobs)
        models = {seed: dict.fromkeys((TLW, PLAIN), f"{args.out}/seed{seed}/tiny") for seed in args.seeds}
        for stage in (1, 2):
            jobs = []
            for seed, (system, weight) in product(args.seeds, ((TLW, []), (PLAIN, ["--key_weight", "1"]))):
                out = f"{args.out}/seed{seed}/stage{stage}{'' if system == TLW else '_plain'}"
                command = [*TRAIN, "--config", CONFIG.format(stage), "--seed", str(seed), *weight]
                command += ["--model_name_or_path", models[seed][system], "--dataset", weighed, "--output_dir", out]
                jobs.append((f"seed {seed}: stage {stage}, {system}", out, command))
                models[seed][system] = out
            stages.run(*jobs)
        jobs = []
        for seed in args.seeds:
            predictions[seed] = {}
            for system, model in {**models[seed], SHUFFLED: models[seed][TLW]}.items():
                control = ["--shuffle_images"] if system == SHUFFLED else []
                file = f"{model}_shuffled.jsonl" if control else f"{model}.jsonl"
                command = [*GENERATE, *control, "--model", model, "--dataset", data, "--out", file]
                jobs.append((f"seed {seed}: reports of {system}", file, command))
                predictions[seed][system] = file
        stages.run(*jobs)
        stages.run(score_stage(args.out, data, predictions[args.seeds[0]], TLW, SHUFFLED))

    ################
    # Figures
    ################
    started, judge = time.monotonic(), load_labeler("lexical")
    figures = compare_systems(data, predictions, judge, own=TLW) | compare_scenarios(data, predictions, judge)
    seconds = {**stages.seconds(), "figures": time.monotonic() - started}
    per_seed = sum(value / (len(args.seeds) if stage.startswith("seed ") else 1) for stage, value in seconds.items())
    checks = make_checks(figures, per_seed / 60, MINUTES, stages.peak_memory_gb())
    results = {"data": "phantom", "seeds": args.seeds, "stages": seconds, **figures}
    table = Table("system", "scenario", *next(iter(figures["scenarios"].values()))["sn"], title=f"seeds {args.seeds}")
    for system, by_scenario in figures["scenarios"].items():
        for scenario, row in by_scenario.items():
            table.add_row(
                system, scenario, *(str(value) if name == "studies" else f"{value:.3f}" for name, value in row.items())
            )
    Console(width=120).print(table)
    report(args.out, results, checks)

    ################
    # Page
    ################
    rows = read_labelled(data, "test", judge)
    logs = {seed: read_history(f"{args.out}/seed{seed}/stage2") for seed in args.seeds}
    page = {"template": "demo_llmrg4.html.jinja", "own": TLW, "beside": PLAIN, "curves": CURVES}
    write_page(f"{args.out}/index.html", results, checks, rows, predictions[args.seeds[0]], logs, **page)
    print(f"{args.out}/index.html shows it all; {args.out}/scores/report.html has every report")


if __name__ == "__main__":
    run(main)
