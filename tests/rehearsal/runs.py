"""Commands of a rehearsal: started in a session of their own, written to logs, killed where the plan says so."""

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from recipes.trainers.checkpoints import all_checkpoints, find_damage
from rewards.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800  # seconds that one command may take, also on a machine that is busy with other work


class Failed(Exception):
    """A stage that did not do what it should; the sentence says what."""


@dataclass
class Stage:
    """One thing that is done for a run: a command, or a function of this process, and a look at what came out.

    `command` runs in the job's room. `kill_in`: the run's folder; a SIGKILL comes once it holds a checkpoint.
    `check(room, output)` raises Failed; it returns figures or None.
    """

    name: str
    command: Sequence[str | Path] = ()
    check: Callable[[Path, str], dict | None] = lambda room, output: None
    kill_in: str | None = None


@dataclass
class Job:
    """Stages in their order, in the folder `room`, after the jobs that `needs` names; `in_table`: it has a row.

    `skipped`: why it cannot be run here, which its row then says.
    """

    name: str
    room: str
    stages: list[Stage]
    needs: Sequence[str] = ()
    in_table: bool = False
    skipped: str | None = None
    successes: list[str] = field(default_factory=list)
    failure: str | None = None
    figures: dict = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Processes:
    """The processes that are running, and how to end all of them."""

    def __init__(self):
        self.lock, self.running, self.ended = threading.Lock(), set(), False

    def start(self, command: Sequence[str], room: Path, log: Path) -> subprocess.Popen:
        """Starts a command in a session of its own, so that its children end with it."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),  # the tree that is rehearsed, whatever the environment has installed
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(log.parents[1] / "cache"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "200",
        }
        with self.lock, log.open("w") as output:
            if self.ended:
                raise Failed("the rehearsal was ended")
            process = subprocess.Popen(
                command, cwd=room, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running.add(process)
        return process

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL to the command and its children, and waits for it."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with self.lock:
            self.running.discard(process)

    def end(self) -> None:
        """Kills all, and lets none start any more."""
        with self.lock:
            self.ended, running = True, list(self.running)
        for process in running:
            self.kill(process)


def run_stage(stage: Stage, room: Path, log: Path, processes: Processes) -> dict:
    """Runs one stage; returns its figures, raises Failed."""
    output = ""
    if stage.command:
        process = processes.start([str(word) for word in stage.command], room, log)
        start = time.monotonic()
        try:
            while process.poll() is None:
                if stage.kill_in and all_checkpoints(room / stage.kill_in):
                    break
                if time.monotonic() - start > PATIENCE:
                    raise Failed(f"is not done after {PATIENCE} s")
                time.sleep(0.02)
            alive = process.poll() is None
        finally:
            processes.kill(process)
        if processes.ended:
            raise Failed("the rehearsal was ended")
        output = log.read_text(errors="replace")
        if stage.kill_in:
            if not alive:
                raise Failed(f"ended by itself ({process.returncode}) before it could be killed: {last_line(output)}")
            check_killed(room / stage.kill_in)
        elif process.returncode:
            raise Failed(f"exit status {process.returncode}: {last_line(output)}")
    return stage.check(room, output) or {}


def last_line(output: str) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip(" ^~─╯╰│")]
    return lines[-1][-300:] if lines else "no output"


################
# What came out
################


def check_killed(run: Path) -> None:
    """A whole checkpoint is there, and no model yet."""
    if not any(find_damage(path) is None for path in all_checkpoints(run)):
        raise Failed(f"no checkpoint of {run.name} is whole after the kill")
    if list(run.glob("*.safetensors")):
        raise Failed(f"{run.name} was killed after its last step")


def check_trained(run: str, steps: int, compare: Callable[[dict], None]) -> Callable:
    """A check of a resumed run: it went on from a checkpoint, has all steps, finite losses, and the YAML's values."""

    def check(room: Path, output: str) -> dict:
        folder = room / run
        state = json.loads((folder / "trainer_state.json").read_text())
        losses = {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}
        if state["global_step"] != steps or sorted(losses) != list(range(1, steps + 1)):
            raise Failed(f"step {state['global_step']} and losses of steps {sorted(losses)}, of {steps} steps")
        if not 0 < len(re.findall(rf"^ *\d+/{steps} +\d+% ", output, re.MULTILINE)) < steps:  # rows of its log
            raise Failed("it did not go on from the checkpoint")
        if not all(map(math.isfinite, losses.values())):
            raise Failed(f"losses {losses}")
        compare(json.loads((folder / "run_config.json").read_text()))
        return {"losses": [losses[step] for step in sorted(losses)]}

    return check


def check_equal(one: str, other: str) -> Callable:
    """A check that two runs ended with the same weights, to the last bit."""

    def check(room: Path, output: str) -> dict:
        files = {path.name for run in (one, other) for path in (room / run).glob("*.safetensors")}
        for name in sorted(files):
            first, second = (load_file(room / run / name) for run in (one, other))
            if wrong := [key for key in first if not torch.equal(first[key], second[key])]:
                raise Failed(
                    f"{len(wrong)} of {len(first)} weights differ from those of a run without a kill: {wrong[0]}"
                )
        return {"files": sorted(files)}

    return check


def check_lines(file: str, more: int = 1) -> Callable:
    """A check of a JSONL file of generate.py: at least so many lines, each with a completion."""

    def check(room: Path, output: str) -> dict:
        lines = [json.loads(line) for line in (room / file).read_text().splitlines()]
        if len(lines) < more or not all(isinstance(line["completion"], str) and line["tokens"] for line in lines):
            raise Failed(f"{file} has {len(lines)} lines, or one without tokens")
        return {"samples": len(lines)}

    return check


def check_loaded(room: Path, output: str) -> dict:
    """load.py's line."""
    return json.loads(output.splitlines()[-1])


def check_scores(out: str, system: str) -> Callable:
    """A check of evaluate.py's folder: the system's figures are there and the page is written."""

    def check(room: Path, output: str) -> dict:
        figures = json.loads((room / out / "metrics.json").read_text())
        if system not in figures["systems"] or not (room / out / "report.html").is_file():
            raise Failed(f"{out} has no figures of {system}")
        return {"studies": figures["studies"]}

    return check


def check_scenarios(out: str) -> Callable:
    """A check of build_mimic_rg4.py's folder: all four scenarios have rows to train and to test on."""

    def check(room: Path, output: str) -> dict:
        build = json.loads((room / out / "build.json").read_text())
        if missing := [name for name in SCENARIOS if not {"train", "test"} <= build["rows"].get(name, {}).keys()]:
            raise Failed(f"{out} has no rows of {', '.join(missing)}")
        return {"rows": build["rows"], "reports": build["reports"]}

    return check
