"""The lab: policy x algorithm x reward; every row is judged by its own rewards and by all others.

    make lab SYSTEM=mrgr1 SEEDS=0                         # python recipes/lab.py --system mrgr1 --seeds 0
    make lab SYSTEM=mrgr1 ROW="grpo_severity ditpo_severity" DATA=openi
    python recipes/lab.py --system mrgr1 --judge_only true      # the page of what is there
    python recipes/lab.py --system mrgr1 --submit slurm --sbatch_options "--gpus 2 --time 8:00:00" \
        --launch "--config_file accelerate_configs/multi_gpu.yaml"  # scripts for a cluster, and how to submit them

recipes/demos/lab.yaml names the rows; `--plan` takes another file. All rows of a system start at one base and learn
from as many reports. Each stage is a command that is printed before it runs, and is not run again unless it changed
(`--fresh` starts over). A row that cannot be run is named with its sentence, and the others go on. outputs/lab gets
SYSTEM.html (matrix, drops out of distribution, habits, costs, flags, reports), SYSTEM.json, SYSTEM.md and SYSTEM.png.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.demos.ablation_page import shown_reports
from recipes.demos.ablation_runs import OPENI, PHANTOM, home_of
from recipes.demos.figures import make_check
from recipes.demos.lab_cluster import write_slurm
from recipes.demos.lab_costs import row_seconds
from recipes.demos.lab_jobs import all_jobs, equal_time_jobs, into_levels, site_reports
from recipes.demos.lab_judges import judge_lab
from recipes.demos.lab_page import draw_picture, reward_curves, write_markdown, write_page
from recipes.demos.lab_plan import TEST, Plan, read_plan
from recipes.demos.stages import Stages, minutes_of_a_seed, prepare, read_record
from recipes.files import replacing


@dataclass
class LabArguments:
    system: str = field(default="mrgr1", metadata={"help": "System of the plan whose rows are run."})
    row: list[str] = field(
        default_factory=list, metadata={"help": "Rows to run, beside the base; none named: all rows."}
    )
    data: Literal[PHANTOM, OPENI] = field(
        default=PHANTOM, metadata={"help": "All synthetic, or (mrgr1 only) real reports with stand-in images."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds, one run of each row each."}
    )
    samples: int | None = field(
        default=None, metadata={"help": "Number of reports that every row learns from; none: the plan's."}
    )
    plan: str = field(
        default="recipes/demos/lab.yaml", metadata={"help": "YAML of systems, algorithms, rewards and rows."}
    )
    crepe: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a CREPE that judges, from the project root; none: that of the plan, if it has one."
        },
    )
    out: str = field(default="outputs/lab", metadata={"help": "Folder for everything, from the project root."})
    judge_only: bool = field(default=False, metadata={"help": "Whether to run nothing, and judge what is there."})
    submit: Literal["slurm"] | None = field(
        default=None,
        metadata={"help": "Scheduler to write scripts for, in place of running anything: slurm, or none."},
    )
    launch: str = field(
        default="--num_processes 1 --cpu", metadata={"help": "Words after accelerate launch in those scripts."}
    )
    sbatch_options: str = field(default="", metadata={"help": "Words for every sbatch, such as --gpus 1."})
    fresh: bool = field(default=False, metadata={"help": "Whether to run every stage again."})


def run_rows(plan: Plan, folder: str, seeds: list[int], rows: list[str], fresh: bool) -> dict[str, float]:
    """Runs the plan; returns the seconds of its stages."""
    with Stages(folder, fresh) as stages:
        jobs, needed = all_jobs(plan, folder, seeds, rows)
        for level in into_levels(jobs):
            stages.run(*level, needed=needed)

        def seconds(row: str, seed: int) -> float | None:
            return row_seconds(stages.finished, f"{folder}/seed{seed}", row)

        for level in into_levels(equal_time_jobs(plan, folder, seeds, rows, seconds)):
            stages.run(*level, needed=())
    return stages.seconds()


def stage_seconds(record: Mapping[str, dict]) -> dict[str, float]:
    """The seconds of the stages of an earlier run."""
    return {entry["name"]: entry["seconds"] for entry in record.values()}


def main() -> None:
    (args,) = parse(LabArguments)
    prepare(args.seeds)
    plan = read_plan(args.plan, args.system, args.data, args.samples)
    rows, home = plan.choose(args.row), home_of(args.system, args.data)
    folder = f"{args.out}/{home}"
    if args.submit:
        words = ["--system", args.system, "--data", args.data, "--seeds", *map(str, args.seeds), "--plan", args.plan]
        words += [*(["--row", *args.row] if args.row else []), "--out", args.out]
        words += [*(["--crepe", args.crepe] if args.crepe else [])]
        words += [*(["--samples", str(args.samples)] if args.samples else []), "--judge_only", "true"]
        commands = write_slurm(plan, folder, args.seeds, rows, args.launch, args.sbatch_options, words)
        print("\n".join(commands))
        print(f"nothing was submitted; bash '{folder}/slurm/submit.sh' does, from the project's root")
        return
    seconds = stage_seconds(read_record(folder)) if args.judge_only else {}
    if not args.judge_only:
        seconds = run_rows(plan, folder, args.seeds, rows, args.fresh)

    ################
    # Figures
    ################
    started, labeler = time.monotonic(), load_labeler("lexical")
    results = judge_lab(plan, folder, args.seeds, rows, args.crepe or f"{folder}/crepe", labeler)
    seconds["figures"] = time.monotonic() - started
    minutes = minutes_of_a_seed(seconds, len(args.seeds))
    if plan.data.minutes and not args.row and not args.judge_only:
        bar = f"<= {plan.data.minutes:g}"
        results["checks"].append(make_check("wall time of one seed without installation, minutes", minutes, bar))
    results |= {"minutes": minutes, "stages": seconds}

    ################
    # Page
    ################
    with replacing(f"{args.out}/{home}.json") as file:
        file.write_text(json.dumps(results, indent=1) + "\n")
    studies = read_labelled(plan.data.dataset.format(folder=folder), "test", labeler)
    seed = results["seeds"][0]
    files = {row: site_reports(f"{folder}/seed{seed}", row, TEST) for row in results["costs"]}
    curves = reward_curves(folder, results["seeds"], list(results["costs"]))
    write_page(f"{args.out}/{home}.html", results, curves, shown_reports(studies, files))
    write_markdown(f"{args.out}/{home}.md", results)
    draw_picture(f"{args.out}/{home}.png", results)
    report(folder, {"system": args.system, "seeds": results["seeds"]}, results["checks"])
    for entry in results["missing"]:
        print(f"missing: {entry['row'] or 'all rows'}, {entry['site']}: {entry['sentence']}")
    print(f"{args.out}/{home}.html shows it all")


if __name__ == "__main__":
    run(main)
