"""Every ablation row of the three papers on the phantom, beside the papers' figures: two CPU cores, no download.

    make ablations                                        # all three systems, seeds 0, 1 and 2
    make ablations SYSTEM=mrgr1 SEEDS=0                   # python recipes/ablations.py --system mrgr1 --seeds 0
    make ablations SYSTEM=mrgr1 ROW="mccs ce_f1"          # these rows and the whole system
    python recipes/ablations.py --write_results true      # also puts the tables into recipes/RESULTS.md

A row is a YAML in recipes/configs/SYSTEM/ablations that changes a base, here the demo's. A lab with GPUs gives it
another base: accelerate launch recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/mimic.yaml \
--config recipes/configs/mrgr1/ablations/ce_f1.yaml --output_dir outputs/mrgr1/ce_f1

Each stage is a command that is printed before it runs; one that has finished is not run again unless its command, its
config files or its inputs changed (`--fresh` starts over). outputs/ablations gets SYSTEM.json, SYSTEM.md, SYSTEM.html
and results.json, whose checks say whether each claim holds.
"""

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from datasets import disable_progress_bars

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.ablation_figures import count_inputs, format_check, measure, reward_spread, time_check, token_check
from recipes.demos.ablation_page import sample_reports, update_results, write_markdown, write_page
from recipes.demos.ablation_runs import ROWS, choose_rows, plan, shared_jobs
from recipes.demos.reward_habits import reward_habits
from recipes.demos.stages import Stages
from recipes.evaluation.references import read_truth
from recipes.files import InputError, replacing


@dataclass
class AblationArguments:
    system: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": "Whose rows: " + ", ".join(ROWS)})
    row: list[str] = field(default_factory=list, metadata={"help": "Of one system these rows alone; none: all."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds, one run of each row each."}
    )
    out: str = field(default="outputs/ablations", metadata={"help": "Folder for all, from the project root."})
    write_results: bool = field(default=False, metadata={"help": "Also put the tables into recipes/RESULTS.md."})
    fresh: bool = field(default=False, metadata={"help": "Run every stage again."})


def main() -> None:
    (args,) = parse(AblationArguments)
    if min(args.seeds, default=-1) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds takes different numbers from 0 on, not {args.seeds}")
    if unknown := [system for system in args.system if system not in ROWS]:
        raise InputError(f"there is no system {unknown[0]!r}; choose among {', '.join(ROWS)}")
    if args.row and len(args.system) != 1:
        raise InputError("--row names rows of one system: give --system too")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a running stage is ended too
    disable_progress_bars()  # they would break the table of the stages
    os.chdir(Path(__file__).parents[1])

    labeler = load_labeler("lexical")
    for system, rows in {system: choose_rows(system, args.row) for system in args.system}.items():
        ################
        # Stages
        ################
        out = f"{args.out}/{system}"
        if args.fresh and Path(out).is_dir():
            shutil.rmtree(out)
        plans = [plan(system, out, seed, rows)[0] for seed in args.seeds]
        levels = [
            *shared_jobs(system, out),
            *([job for jobs in each for job in jobs] for each in zip(*plans, strict=True)),
        ]
        with Stages(out) as stages:
            for jobs in levels:
                stages.run(*jobs)

        ################
        # Figures
        ################
        started, truth = time.monotonic(), read_truth(f"{out}/data", "test", labeler)
        figures = measure(system, out, args.seeds, rows, truth, labeler)
        spread = reward_spread(out, args.seeds, rows) if system == "mrgr1" else {}
        ran = list(figures["groups"][0]["rows"])  # in the table's order
        habits = reward_habits(out, args.seeds, ran, truth, labeler) if system == "mrgr1" else {}
        tokens = count_inputs(f"{out}/data", out, args.seeds, rows) if system == "llmrg4" else {}
        others = format_check(figures["groups"]) if system == "mrgr1" else token_check(tokens)
        seconds = {**stages.seconds(), "figures": time.monotonic() - started}
        shares = (value / (len(args.seeds) if stage.startswith("seed ") else 1) for stage, value in seconds.items())
        minutes = sum(shares) / 60
        others += time_check(minutes)
        results = {"system": system, "seeds": args.seeds, "labeler": labeler.name, "minutes": minutes, **figures}
        results |= {"other_checks": others, "spread": spread, "habits": habits, "tokens": tokens, "stages": seconds}

        ################
        # Tables
        ################
        with replacing(f"{args.out}/{system}.json") as file:
            file.write_text(json.dumps(results, indent=1) + "\n")
        table = write_markdown(f"{args.out}/{system}.md", results)
        studies = read_labelled(f"{out}/data", "test", labeler)
        write_page(f"{args.out}/{system}.html", results, sample_reports(studies, out, args.seeds[0], rows))
        if args.write_results:
            update_results("recipes/RESULTS.md", system, table)

    found = {system: Path(f"{args.out}/{system}.json") for system in ROWS}
    found = {system: json.loads(file.read_text()) for system, file in found.items() if file.is_file()}
    checks = [
        {**check, "name": f"{system}: {check['name']}"}
        for system, results in found.items()
        for check in [*results["claims"], *results["other_checks"]]
    ]
    if len(found) == len(ROWS) and min(len(results["seeds"]) for results in found.values()) >= 3:
        hours = sum(sum(results["stages"].values()) for results in found.values()) / 3600
        checks.append({"name": "everything, hours", "value": hours, "bar": "<= 3", "holds": hours <= 3})
    report(args.out, {"seeds": {system: results["seeds"] for system, results in found.items()}}, checks)
    print(f"{args.out}/SYSTEM.html shows it all, for {', '.join(found)}")


if __name__ == "__main__":
    run(main)
