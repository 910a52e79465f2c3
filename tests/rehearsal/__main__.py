"""The papers' runs, rehearsed: every YAML with miniature replicas of the published checkpoints, on CPUs.

    make rehearsal
    make rehearsal ONLY="mrgr1/iu.yaml lmrrg/iu_cqrl.yaml"     # these and what they need

Each YAML is trained through `accelerate launch` from a synthetic raw tree that its own builder reads, killed after its
first checkpoint, resumed, saved, loaded by a process that has not this project, and its reports written and scored.
What is changed in a YAML is printed first (overrides.py); plan.py has the commands. Where packages with weights are
installed, LLM-RG4 and LM-RRG are trained on real text weights too (real_weights.py). `--out` then holds results.json,
a log for each command, and what the commands wrote. The exit status is 1 where a check failed.
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from recipes.cli import parse, run

from .rehearse import rehearse


@dataclass
class RehearsalArguments:
    out: str = field(default="outputs/rehearsal", metadata={"help": "Folder to write; an earlier one gives way."})
    only: list[str] | None = field(default=None, metadata={"help": "These YAMLs, and what they need."})
    workers: int = field(default=2, metadata={"help": "Commands at a time; each takes one core."})


def main() -> None:
    (args,) = parse(RehearsalArguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    checks = rehearse(Path(args.out).resolve(), args.only, args.workers)
    if failed := [check["name"] for check in checks if check["holds"] is False]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
