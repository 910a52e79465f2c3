"""The demo of LM-RRG on two CPU cores, from no data to a page: supervised training, then PPO on RadCliQ (CQRL).

    make demo-lmrrg                                       # python recipes/demo_lmrrg.py --seeds 0
    make demo-lmrrg SEEDS="0 1 2"

Each stage is a command that is printed before it runs, so that it can be run by hand; outputs/demo-lmrrg/logs has its
output. A stage that has finished is not run again unless its command, its config file or one of its inputs changed
(`--fresh` starts over). From one stage 1 start the rows of Table 3 on reinforcement learning: CQRL, the same with
BLEU-4 as the reward, the same with a fixed lambda_KL. At the end outputs/demo-lmrrg holds results.json and index.html.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.figures import compare_systems
from recipes.demos.page import read_history, write_page
from recipes.demos.stages import Stages, score_stage
from recipes.demos.table3 import BLEU, CQRL, FIXED, SHUFFLED, STAGE1, compare_rewards, make_checks
from recipes.files import InputError

PHANTOM = ["recipes/build_phantom.py", "--scenarios", "sn", "--shapes", "square", "--n_validation", "1"]
DATA = [*PHANTOM, "--abnormal", "0.6", "--seed", "60", "--n_train", "2500", "--n_test", "1000"]
BALANCED = [*PHANTOM, "--balanced", "--seed", "61", "--n_train", "3000", "--n_test", "1"]
TINY = ["recipes/build_tiny.py", "--system", "lmrrg", "--prompt_file", "prompts/lmrrg.txt"]
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
SFT = [*LAUNCH, "recipes/sft_lmrrg.py", "--config", "recipes/configs/lmrrg/demo.yaml"]
PPO = [*LAUNCH, "recipes/ppo_lmrrg.py", "--config", "recipes/configs/lmrrg/demo_cqrl.yaml"]
ROWS = {
    CQRL: ("cqrl", []),
    BLEU: ("cqrl_bleu", ["--rewards", "bleu", "--theta", "0.4"]),
    FIXED: ("cqrl_fixed", ["--kl_controller", "fixed"]),
}
GENERATE = ["recipes/generate.py", "--prompt_file", "prompts/lmrrg.txt", "--views", "frontal"]
GENERATE += ["--split", "test", "--batch_size", "64", "--max_new_tokens", "100"]
CURVES = {"reward": "Reward", "kl": "KL to stage 1", "kl_lambda/mean": "lambda_KL", "value/loss": "Value loss"}
MINUTES = 15


@dataclass
class DemoArguments:
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds, one run each."})
    out: str = field(default="outputs/demo-lmrrg", metadata={"help": "Folder for all, from the project root."})
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
    data, balanced = f"{args.out}/data", f"{args.out}/balanced"
    predictions = {}
    with Stages(args.out) as stages:
        made = [("data", data, DATA), ("balanced data", balanced, BALANCED)]
        stages.run(*((name, out, [*command, "--out", out]) for name, out, command in made))
        levels = [[], [], [], []]  # of jobs: the jobs of a level read what those before it wrote
        for seed in args.seeds:
            name, folder = f"seed {seed}: ", f"{args.out}/seed{seed}"
            tiny, stage1 = f"{folder}/tiny", f"{folder}/stage1"
            build = [*TINY, "--dataset", data, "--warm_up", balanced, "--seed", str(seed), "--out", tiny]
            levels[0].append((f"{name}tiny model", tiny, build))
            starts = ["--seed", str(seed), "--model_name_or_path", tiny, "--dataset", data, "--output_dir", stage1]
            levels[1].append((f"{name}stage 1", stage1, [*SFT, *starts]))

            systems, predictions[seed] = {STAGE1: stage1}, {}
            for system, (row, changed) in ROWS.items():
                systems[system] = f"{folder}/{row}"
                starts = ["--seed", str(seed), "--model_name_or_path", stage1, "--dataset", data]
                command = [*PPO, *changed, *starts, "--output_dir", systems[system]]
                levels[2].append((f"{name}{system}", systems[system], command))
            for system, model in {**systems, SHUFFLED: systems[CQRL]}.items():
                control = ["--shuffle_images"] if system == SHUFFLED else []
                file = f"{model}_shuffled.jsonl" if control else f"{model}.jsonl"
                command = [*GENERATE, *control, "--model", model, "--dataset", data, "--out", file]
                levels[3].append((f"{name}reports of {system}", file, command))
                predictions[seed][system] = file
        for jobs in levels:
            stages.run(*jobs)
        stages.run(score_stage(args.out, data, predictions[args.seeds[0]], CQRL, SHUFFLED))

    ################
    # Figures
    ################
    started, judge = time.monotonic(), load_labeler("lexical")
    figures = compare_systems(data, predictions, judge, own=CQRL) | compare_rewards(data, predictions, judge)
    for row in figures["table"].values():
        del row["format"]  # of <think> and <report>, which LM-RRG does not write
    seconds = {**stages.seconds(), "figures": time.monotonic() - started}
    per_seed = sum(value / (len(args.seeds) if stage.startswith("seed ") else 1) for stage, value in seconds.items())
    checks = make_checks(figures, per_seed / 60, MINUTES, stages.peak_memory_gb())
    results = {"data": "phantom", "seeds": args.seeds, "stages": seconds, **figures}
    table = Table("system", *figures["table3"][CQRL], title=f"{figures['studies']} test studies, seeds {args.seeds}")
    for system, row in figures["table3"].items():
        table.add_row(system, *(f"{value:.3f}" for value in row.values()))
    Console(width=120).print(table)
    report(args.out, results, checks)

    ################
    # Page
    ################
    rows = read_labelled(data, "test", judge)
    logs = {seed: read_history(f"{args.out}/seed{seed}/cqrl") for seed in args.seeds}
    page = {"template": "demo_lmrrg.html.jinja", "own": CQRL, "beside": STAGE1, "curves": CURVES}
    write_page(f"{args.out}/index.html", results, checks, rows, predictions[args.seeds[0]], logs, **page)
    print(f"{args.out}/index.html shows it all; {args.out}/scores/report.html has every report")


if __name__ == "__main__":
    run(main)
