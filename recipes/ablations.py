"""Every ablation row of the three papers on a small set, beside the papers' figures.

    make ablations                                        # all three systems, seeds 0, 1 and 2
    make ablations SYSTEM=mrgr1 SEEDS=0                   # python recipes/ablations.py --system mrgr1 --seeds 0
    make ablations SYSTEM=mrgr1 ROW="mccs ce_f1"          # these rows and the whole system
    make ablations SYSTEM=mrgr1 ROW="mccs ce_f1 severity" DATA=openi    # on real reports with stand-in images
    python recipes/ablations.py --write_results true      # also puts tables and picture into the pages of results

A row is a YAML in recipes/configs/SYSTEM/ablations that changes a base, here the demo's. A lab with GPUs gives it
another base: accelerate launch recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/mimic.yaml \
--config recipes/configs/mrgr1/ablations/ce_f1.yaml --output_dir outputs/mrgr1/ce_f1

Each stage is a command that is printed before it runs; one that has finished is not run again unless its command, its
config files or its inputs changed (`--fresh` starts over). outputs/ablations gets SYSTEM.json, SYSTEM.md, SYSTEM.html
(on Open-i SYSTEM_openi), claims.png and results.json, whose checks say whether each claim holds.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.ablation_figures import count_inputs, format_check, measure, reward_spread, token_check
from recipes.demos.ablation_matrix import JUDGES, PAIRS, goal_checks, make_judges, measure_matrix, rewards_of
from recipes.demos.ablation_page import draw_claims, sample_reports, update_results, write_markdown, write_page
from recipes.demos.ablation_runs import DATA, PHANTOM, ROWS, check_data, choose_rows, home_of, plan
from recipes.demos.figures import make_check
from recipes.demos.reward_habits import read_runs, reward_habits
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
    data: Literal[tuple(DATA)] = field(
        default=PHANTOM, metadata={"help": "All synthetic, or (mrgr1 only) real reports with stand-in images."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds, one run of each row each."}
    )
    out: str = field(default="outputs/ablations", metadata={"help": "Folder for everything, from the project root."})
    write_results: bool = field(
        default=False,
        metadata={
            "help": "Whether to put tables and picture into recipes/RESULTS.md too, Open-i's into its system's page."
        },
    )
    fresh: bool = field(default=False, metadata={"help": "Whether to run every stage again."})


def main() -> None:
    (args,) = parse(AblationArguments)
    if unknown := [system for system in args.system if system not in ROWS]:
        raise InputError(f"there is no system {unknown[0]!r}; choose among {', '.join(ROWS)}")
    if args.row and len(args.system) != 1:
        raise InputError("--row names rows of one system: give --system too")
    check_data(args.data, args.system)
    prepare(args.seeds)
    labeler = load_labeler("lexical")
    for system, rows in {system: choose_rows(system, args.row) for system in args.system}.items():
        home = home_of(system, args.data)
        folder = f"{args.out}/{home}"
        with Stages(folder, args.fresh) as stages:
            for jobs in plan(system, folder, args.seeds, rows, args.data):
                stages.run(*jobs)

        ################
        # Figures
        ################
        started, truth = time.monotonic(), read_truth(f"{folder}/data", "test", labeler)
        figures = measure(system, folder, args.seeds, rows, truth, labeler)
        figures |= {"spread": {}, "habits": {}, "matrix": {}, "tokens": {}, "other_checks": []}
        if system == "mrgr1":
            ran = list(figures["groups"][0]["rows"])  # in the table's order
            figures["spread"] = reward_spread(folder, args.seeds, rows)
            figures["habits"] = reward_habits(folder, args.seeds, ran, truth, labeler)
            runs, trained = read_runs(folder, args.seeds, ran, truth), {row: rewards_of(row) for row in ran}
            judges = make_judges(JUDGES, labeler, truth.reports)
            figures["matrix"] = measure_matrix(truth, runs, trained, judges, labeler, PAIRS)
            figures["other_checks"] = [*format_check(figures["groups"]), *goal_checks(figures["matrix"])]
        if system == "llmrg4":
            figures["tokens"] = count_inputs(folder, args.seeds, rows)
            figures["other_checks"] = token_check(figures["tokens"])
        seconds = {**stages.seconds(), "figures": time.monotonic() - started}
        minutes = minutes_of_a_seed(seconds, len(args.seeds))
        if args.data == PHANTOM:
            check = make_check("wall time of one seed without installation, minutes", minutes, "<= 20")
            figures["other_checks"].append(check)
        results = {
            "system": system,
            "data": args.data,
            "seeds": args.seeds,
            "labeler": labeler.name,
            "minutes": minutes,
        }
        results |= {**figures, "stages": seconds}

        ################
        # Tables
        ################
        with replacing(f"{args.out}/{home}.json") as file:
            file.write_text(json.dumps(results, indent=1) + "\n")
        table = write_markdown(f"{args.out}/{home}.md", results)
        studies = read_labelled(f"{folder}/data", "test", labeler)
        write_page(f"{args.out}/{home}.html", results, sample_reports(studies, folder, args.seeds[0], rows))
        if args.write_results:
            page = "RESULTS.md" if args.data == PHANTOM else f"configs/{system}/README.md"
            update_results(f"recipes/{page}", home, table)

    homes = [home_of(system, data) for data in DATA for system in DATA[data]]
    files = {home: Path(f"{args.out}/{home}.json") for home in homes}
    systems = {home: json.loads(file.read_text()) for home, file in files.items() if file.is_file()}
    checks = [
        {**check, "name": f"{system}: {check['name']}"}
        for system, results in systems.items()
        for check in [*results["claims"], *results["other_checks"]]
    ]
    papers = [results for results in systems.values() if results["data"] == PHANTOM]
    if any(results["claims"] for results in papers):
        picture = draw_claims({results["system"]: results for results in papers})
        picture.savefig(f"{args.out}/claims.png", dpi=110)
        if args.write_results:
            picture.savefig("recipes/demos/claims.png", dpi=110)
    if len(papers) == len(ROWS) and min(len(results["seeds"]) for results in papers) >= 3:
        hours = sum(sum(results["stages"].values()) for results in papers) / 3600
        checks.append(make_check("everything, hours", hours, "<= 3"))
    report(args.out, {"seeds": {system: results["seeds"] for system, results in systems.items()}}, checks)
    print(f"{args.out}/SYSTEM.html shows it all, for {', '.join(systems)}")


if __name__ == "__main__":
    run(main)
