"""Every ablation row of the three papers on the phantom, beside the papers' figures.

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
import time
from dataclasses import dataclass, field
from pathlib import Path

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.ablation_figures import count_inputs, format_check, measure, reward_spread, token_check
from recipes.demos.ablation_page import sample_reports, update_results, write_markdown, write_page
from recipes.demos.ablation_runs import ROWS, choose_rows, plan
from recipes.demos.figures import make_check
from recipes.demos.reward_habits import reward_habits
from recipes.demos.stages import Stages, minutes_of_a_seed, prepare
from recipes.evaluation.references import read_truth
from recipes.files import InputError, replacing


@dataclass
class AblationArguments:
    system: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": "Systems whose rows are run, all of " + ", ".join(ROWS)}
    )
    row: list[str] = field(
        default_factory=list, metadata={"help": "Rows of one system, beside the whole system; none named: all rows."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds, one run of each row each."}
    )
    out: str = field(default="outputs/ablations", metadata={"help": "Folder for everything, from the project root."})
    write_results: bool = field(
        default=False, metadata={"help": "Whether to put the tables into recipes/RESULTS.md too."}
    )
    fresh: bool = field(default=False, metadata={"help": "Whether to run every stage again."})


def main() -> None:
    (args,) = parse(AblationArguments)
    if unknown := [system for system in args.system if system not in ROWS]:
        raise InputError(f"there is no system {unknown[0]!r}; choose among {', '.join(ROWS)}")
    if args.row and len(args.system) != 1:
        raise InputError("--row names rows of one system: give --system too")
    prepare(args.seeds)
    labeler = load_labeler("lexical")
    for system, rows in {system: choose_rows(system, args.row) for system in args.system}.items():
        folder = f"{args.out}/{system}"
        with Stages(folder, args.fresh) as stages:
            for jobs in plan(system, folder, args.seeds, rows):
                stages.run(*jobs)

        ################
        # Figures
        ################
        started, truth = time.monotonic(), read_truth(f"{folder}/data", "test", labeler)
        figures = measure(system, folder, args.seeds, rows, truth, labeler)
        figures |= {"spread": {}, "habits": {}, "tokens": {}, "other_checks": []}
        if system == "mrgr1":
            ran = list(figures["groups"][0]["rows"])  # in the table's order
            figures["spread"] = reward_spread(folder, args.seeds, rows)
            figures["habits"] = reward_habits(folder, args.seeds, ran, truth, labeler)
            figures["other_checks"] = format_check(figures["groups"])
        if system == "llmrg4":
            figures["tokens"] = count_inputs(folder, args.seeds, rows)
            figures["other_checks"] = token_check(figures["tokens"])
        seconds = {**stages.seconds(), "figures": time.monotonic() - started}
        minutes = minutes_of_a_seed(seconds, len(args.seeds))
        figures["other_checks"].append(
            make_check("wall time of one seed without installation, minutes", minutes, "<= 20")
        )
        results = {"system": system, "seeds": args.seeds, "labeler": labeler.name, "minutes": minutes}
        results |= {**figures, "stages": seconds}

        ################
        # Tables
        ################
        with replacing(f"{args.out}/{system}.json") as file:
            file.write_text(json.dumps(results, indent=1) + "\n")
        table = write_markdown(f"{args.out}/{system}.md", results)
        studies = read_labelled(f"{folder}/data", "test", labeler)
        write_page(f"{args.out}/{system}.html", results, sample_reports(studies, folder, args.seeds[0], rows))
        if args.write_results:
            update_results("recipes/RESULTS.md", system, table)

    files = {system: Path(f"{args.out}/{system}.json") for system in ROWS}
    systems = {system: json.loads(file.read_text()) for system, file in files.items() if file.is_file()}
    checks = [
        {**check, "name": f"{system}: {check['name']}"}
        for system, results in systems.items()
        for check in [*results["claims"], *results["other_checks"]]
    ]
    if len(systems) == len(ROWS) and min(len(results["seeds"]) for results in systems.values()) >= 3:
        hours = sum(sum(results["stages"].values()) for results in systems.values()) / 3600
        checks.append(make_check("everything, hours", hours, "<= 3"))
    report(args.out, {"seeds": {system: results["seeds"] for system, results in systems.items()}}, checks)
    print(f"{args.out}/SYSTEM.html shows it all, for {', '.join(systems)}")


if __name__ == "__main__":
    run(main)
