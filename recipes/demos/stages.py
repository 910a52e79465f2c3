"""Runs the demo's commands: printed, logged, timed, and not again once they are done."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from recipes.files import replacing

COUNT = re.compile(r"(\d+)/(\d+)(?: \[|:)")  # tqdm's "12/100 [", the tiny model's "epoch 1/4:"
# GOMP_SPINCOUNT: two threads that wait for each other spin at first; with the default, any other work on the two
# cores slows training up to twentyfold (measured: 5.9 s idle, 113 s beside other work, 18 s with this value)
QUIET = {"GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def read_count(log: str) -> tuple[int, int] | None:
    """The last (done, total) that a progress bar wrote to `log`, or None."""
    counts = COUNT.findall(log)
    return (int(counts[-1][0]), int(counts[-1][1])) if counts else None


def last_lines(log: str, number: int = 15) -> str:
    """The last lines of `log` that say something: no progress bars, no empty ones."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", log)]
    return "\n".join([line for line in lines if line and not COUNT.search(line)][-number:])


@dataclass
class _Child:
    name: str
    out: str
    command: list[str]
    task: TaskID
    log: Path
    seconds: float = 0.0  # its share of the wall time

    def start(self, threads: int) -> None:
        if Path(self.out).is_dir():
            shutil.rmtree(self.out)
        Path(self.out).unlink(missing_ok=True)
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ, **QUIET},
                start_new_session=True,  # accelerate starts a process of its own: all of them end together
            )

    def written(self, last: int | None = None) -> str:
        """What it has printed so far, or the `last` bytes of that."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - last) if last else 0)
            return file.read().decode(errors="replace")

    def has_ended(self) -> bool:
        """Whether its process has; then `memory` is that process's largest resident size in GB."""
        ended, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if ended:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.memory = usage.ru_maxrss / 1e6  # kilobytes on Linux
        return bool(ended)

    def end(self) -> None:
        if hasattr(self, "process") and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def score_stage(folder: str, dataset: str, files: dict[str, str], own: str, shuffled: str) -> tuple:
    """The job in which recipes/evaluate.py scores one seed's reports and writes `folder`/scores/report.html.

    `files`: system -> JSONL; that of the name `shuffled` is the control of the system `own`.
    """
    named = [f"{name}={file}" for name, file in files.items() if name != shuffled]
    command = ["recipes/evaluate.py", "--dataset", dataset, "--meteor", "no", "--predictions", *named]
    command += ["--shuffled", f"{own}={files[shuffled]}", "--out", f"{folder}/scores"]
    return "scores and report page", f"{folder}/scores", command


class Stages:
    """A context manager with the terminal's progress display; `folder` gets stages.json and logs/."""

    def __init__(self, folder: str | Path):
        self.logs, self.record = Path(folder) / "logs", Path(folder) / "stages.json"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.finished: dict[str, dict] = json.loads(self.record.read_text()) if self.record.is_file() else {}
        self.used: list[str] = []
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:34}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]:>12}"),
            TimeElapsedColumn(),
        )

    def __enter__(self) -> "Stages":
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()

    def is_done(self, out: str, command: list[str]) -> bool:
        """Whether `command` made `out` before, later than its config file and all it reads were made."""
        before = self.finished.get(out)
        if before is None or before["command"] != command or not Path(out).exists():
            return False
        inputs = [self.finished[word]["finished"] for word in command if word in self.finished]
        inputs += [Path(word).stat().st_mtime for word in command if word.endswith(".yaml") and Path(word).is_file()]
        return before["finished"] >= max(inputs)

    def run(self, *jobs: tuple[str, str, list[str]]) -> None:
        """Runs jobs (name, out, command), two at a time; a failure ends all.

        A job is Python with the arguments `command`, which writes `out`; it is left out if that was done before. The
        next one starts as soon as one has ended. The cores are shared among those that run.
        """
        children = []
        for name, out, command in jobs:
            self.used.append(out)
            task = self.progress.add_task(name, total=None, note="")
            if self.is_done(out, command):
                self.progress.update(task, total=1, completed=1, note="done before")
            else:
                children.append(_Child(name, out, command, task, self.logs / f"{Path(out).name}-{task}.txt"))
        places = min(len(children), 2)
        waiting, running, last = list(children), [], time.time()
        try:
            while waiting or running:
                while waiting and len(running) < places:
                    child = waiting.pop(0)
                    shown = shlex.join(["python", *child.command])
                    self.progress.console.print(shown, style="dim", markup=False, highlight=False, soft_wrap=True)
                    child.start(threads=max(1, (os.cpu_count() or 1) // places))
                    running.append(child)
                time.sleep(0.2)
                now = time.time()
                for child in running:
                    child.seconds += (now - last) / len(running)
                last = now
                for child in list(running):
                    if count := read_count(child.written(4000)):
                        done, total = count
                        self.progress.update(child.task, completed=done, total=total, note=f"{done}/{total}")
                    if child.has_ended():
                        running.remove(child)
                        self._finish(child)
            largest = sum(sorted((child.memory for child in children), reverse=True)[:places])
            for child in children:  # the largest at the same time: more than they ever had
                self.finished[child.out]["peak_memory_gb"] = largest
            if children:
                self._write_record()
        finally:
            for child in children:
                child.end()

    def _finish(self, child: "_Child") -> None:
        if child.process.returncode or not Path(child.out).exists():
            self.progress.stop()
            sys.exit(
                f"{last_lines(child.written())}\n\nerror: the stage {child.name!r} failed (above: the end of "
                f"{child.log}); its command is {shlex.join(['python', *child.command])}"
            )
        self.progress.update(child.task, completed=1, total=1, note="done")
        self.finished[child.out] = {
            "name": child.name,
            "command": child.command,
            "seconds": child.seconds,
            "finished": time.time(),
            "peak_memory_gb": child.memory,
        }
        self._write_record()

    def _write_record(self) -> None:
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps(self.finished, indent=2) + "\n")

    def seconds(self) -> dict[str, float]:
        """Wall time of each stage by its name, whenever it ran; of stages side by side each has its share."""
        return {self.finished[out]["name"]: self.finished[out]["seconds"] for out in self.used}

    def peak_memory_gb(self) -> float:
        """Resident memory in GB (1e9 bytes) of the largest stage, plus the demo's own."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return own + max(self.finished[out]["peak_memory_gb"] for out in self.used)
