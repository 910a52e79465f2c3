"""Commands of careless users over every script, forked from one warm process: each must end in one clear sentence.

    make badinput
    make badinput ONLY="models YAML"          # these kinds

It fails on a traceback, on exit status 0 where nonsense was given, on anything half-written, and on a sentence that
does not name the file, row or argument. `--out` then holds sentences.md, every sentence beside its command to be read,
and results.json.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from recipes.cli import parse, run

from .commands import make_commands, of_each_kind
from .process import Outcome, fork, run_all, warm_up
from .shelf import fill


@dataclass
class BadInputArguments:
    out: str = field(default="outputs/badinput", metadata={"help": "Folder to write; an earlier one gives way."})
    only: list[str] | None = field(default=None, metadata={"help": "Kinds of mistakes to run, all when not given."})
    scripts: list[str] | None = field(default=None, metadata={"help": "Scripts to run, all when not given."})
    sample: bool = field(default=False, metadata={"help": "Run the first command of each kind alone."})
    workers: int = field(default=2, metadata={"help": "Commands at a time; each takes one core."})
    limit: float = field(default=180, metadata={"help": "Seconds of one command at most."})


def write_sentences(file: Path, outcomes: list[Outcome], shelf: Path) -> None:
    """Every sentence beside its command, by kind, the paths shortened; faults come first in their kind."""
    lines = ["# Sentences of `make badinput`", ""]
    for kind in dict.fromkeys(outcome.command.kind for outcome in outcomes):
        lines += [f"## {kind}", ""]
        for outcome in sorted(
            (each for each in outcomes if each.command.kind == kind), key=lambda each: each.fault is None
        ):
            command = outcome.command
            words = " ".join([f"{command.script}.py", *command.words]).replace(str(shelf), "SHELF")
            lines += [f"- `{words}` ({outcome.seconds:.1f} s)"]
            lines += [f"  **{outcome.fault}**"] * (outcome.fault is not None)
            lines += [f"  > {outcome.sentence}".replace(str(shelf), "SHELF")]
            lines += [f"  ({line[:200]})" for line in outcome.noise[-8:]]
        lines.append("")
    file.write_text("\n".join(lines) + "\n")


def main() -> None:
    (args,) = parse(BadInputArguments)
    begin, out = time.monotonic(), Path(args.out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    shelf = out / "shelf"
    (out / "making/room").mkdir(parents=True)
    warm_up()
    child = fork(lambda: fill(shelf), out / "making", {})
    if os.waitpid(child, 0)[1]:
        sys.exit((out / "making/stderr.txt").read_text())
    print(f"warm, and all files are made: {time.monotonic() - begin:.0f} s", flush=True)
    commands = make_commands(shelf)
    commands = [each for each in commands if not args.only or each.kind in args.only]
    commands = [each for each in commands if not args.scripts or each.script in args.scripts]
    commands = list(of_each_kind(commands)) if args.sample else commands
    before = {path for path in shelf.rglob("*") if ".cache" not in path.parts}
    outcomes = []
    for outcome in run_all(commands, out / "commands", args.workers, args.limit):
        outcomes.append(outcome)
        if outcome.fault:
            words = " ".join([outcome.command.script, *outcome.command.words]).replace(str(shelf), "SHELF")
            print(f"{outcome.fault}\n    {words}\n    {outcome.sentence}", flush=True)
    order = {id(command): number for number, command in enumerate(commands)}
    outcomes.sort(key=lambda outcome: order[id(outcome.command)])
    write_sentences(out / "sentences.md", outcomes, shelf)
    added = sorted({path for path in shelf.rglob("*") if ".cache" not in path.parts} - before)
    faults = Counter(outcome.fault.partition(":")[0] for outcome in outcomes if outcome.fault)
    seconds = time.monotonic() - begin
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = usage.ru_utime + usage.ru_stime  # of a core, which other work on this machine does not add to
    results = {
        "commands": len(outcomes),
        "faults": faults,
        "seconds": seconds,
        "processor_seconds": processor,
        "added": [str(path) for path in added],
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(outcomes)} commands in {seconds:.0f} s, {processor:.0f} s of a core")
    print(f"{args.out}/sentences.md has every sentence")
    for fault, number in faults.most_common():
        print(f"{number} {fault}")
    if faults or added:
        sys.exit(f"{sum(faults.values())} of {len(outcomes)} commands are not refused as they must be; {len(added)} "
                 "files were left beside the data")  # fmt: skip


if __name__ == "__main__":
    run(main)
