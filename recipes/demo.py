"""The demos: a paper's system end to end with a tiny model on two CPU cores, then a page of results.

    make demo                                             # python recipes/demo.py: real reports, stand-in images
    make demo DATA=phantom SEEDS="0 1 2"                  # all synthetic, three seeds
    make demo-llmrg4                                      # python recipes/demo.py --system llmrg4
    make demo-lmrrg                                       # python recipes/demo.py --system lmrrg

mrgr1: SFT, then GRPO. llmrg4: token weights and two stages on four input scenarios. lmrrg: supervised training, then
PPO on RadCliQ (CQRL). Each stage is a command that is printed before it runs, so that it can be run by hand; logs/ in
the demo's folder has its output. A stage that has finished is not run again unless its command, its config file or one
of its inputs changed (`--fresh` starts over): an interrupted demo continues. At the end the folder (outputs/demo,
outputs/demo-llmrg4 or outputs/demo-lmrrg) holds results.json and index.html.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler
from recipes.demos.llmrg4 import LLMRG4Demo
from recipes.demos.lmrrg import LMRRGDemo
from recipes.demos.mrgr1 import OpenIDemo, PhantomDemo
from recipes.demos.page import results_table, write_page
from recipes.demos.stages import Stages, minutes_of_a_seed, prepare
from recipes.files import InputError

DEMOS = {
    "mrgr1": {"openi": OpenIDemo(), "phantom": PhantomDemo()},
    "llmrg4": {"phantom": LLMRG4Demo()},
    "lmrrg": {"phantom": LMRRGDemo()},
}


@dataclass
class DemoArguments:
    system: Literal[tuple(DEMOS)] = field(default="mrgr1", metadata={"help": "Paper whose system is trained."})
    data: Literal["phantom", "openi"] | None = field(
        default=None,
        metadata={"help": "openi: real reports with stand-in images, for mrgr1, its default; phantom: all synthetic."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds, one run each."})
    out: str | None = field(
        default=None,
        metadata={"help": "Folder for everything, from the project root; none: outputs/demo or outputs/demo-SYSTEM."},
    )
    fresh: bool = field(default=False, metadata={"help": "Whether to run every stage again."})


def main() -> None:
    (args,) = parse(DemoArguments)
    data = args.data or next(iter(DEMOS[args.system]))
    if data not in DEMOS[args.system]:
        raise InputError(f"--data {data} is for --system mrgr1; {args.system} has --data phantom alone")
    demo = DEMOS[args.system][data]
    out = args.out or f"outputs/demo{'' if args.system == 'mrgr1' else f'-{args.system}'}"
    folder = f"{out}/{data}" if args.system == "mrgr1" else out
    prepare(args.seeds)
    with Stages(folder, args.fresh) as stages:
        for jobs in demo.plan(folder, args.seeds):
            stages.run(*jobs)

    ################
    # Figures
    ################
    started = time.monotonic()
    reports = demo.read(folder, args.seeds, load_labeler("lexical"))
    figures = demo.compare(reports)
    seconds = {**stages.seconds(), "figures": time.monotonic() - started}
    checks = demo.check_all(figures, minutes_of_a_seed(seconds, len(args.seeds)), stages.peak_memory_gb())
    results = {"data": data, "seeds": args.seeds, "stages": seconds, **figures}

    ################
    # Table and page
    ################
    table = demo.tables(figures)[demo.on_screen] if demo.on_screen else results_table(demo, figures)
    title = f"{figures['studies']} test studies, seeds {args.seeds}, labeler {figures['labeler']}"
    Console(width=120).print(table.to_screen(title))
    report(out, results, checks)
    write_page(f"{out}/index.html", args.system, demo, results, checks, reports, folder)
    print(f"{out}/index.html shows it all; {folder}/scores/report.html has every report")


if __name__ == "__main__":
    run(main)
