"""Runs jobs, the commands of a plan: printed, logged, timed, and not again once they are done."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets import disable_progress_bars
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from recipes.files import InputError, replacing
from recipes.progress import PERIOD, is_quiet

# tqdm's "12/100 [", the tiny model's "epoch 1/4:", "12/100, " of recipes/progress.py, "12/100  12%" of a training log
COUNT = re.compile(r"(\d+)/(\d+)(?: \[|:|, | +\d+%)")
# GOMP_SPINCOUNT: two threads that wait for each other spin at first; with the default, any other work on the two
# cores slows training up to twentyfold (measured: 5.9 s idle, 113 s beside other work, 18 s with this value)
# MALLOC_: without them glibc gives the memory of a step back to the system and asks for it anew in the next one
# (measured in 40 steps of the tiny model's SFT: 2.8 million page faults, with these values 0.8, and 17 % less time)
QUIET = {"GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
QUIET |= {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "536870912"}  # bytes
QUIET[PERIOD] = "2"  # seconds between two lines that this display reads


def read_count(log: str) -> tuple[int, int] | None:
    """The last (done, total) that a progress bar wrote to `log`, or None."""
    counts = COUNT.findall(log)
    return (int(counts[-1][0]), int(counts[-1][1])) if counts else None


def read_reached(log: str) -> str:
    """What the last row of a training's log has first, such as "reward 0.531"; empty where there is none."""
    titles, reached = [], ""
    for line in log.splitlines():
        cells = line.split()
        if cells[:3] == ["step", "done", "left"]:
            titles = cells
        elif len(cells) == len(titles) > 3 and COUNT.match(line.lstrip()):  # a step without reward has fewer
            reached = f"{titles[3]} {cells[3]}"
    return reached


def failure_of(log: str) -> str:
    """The sentence with which a script refused, or the last line of its `log`."""
    lines = last_lines(log, 200).splitlines() or ["it wrote nothing"]
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (sentences or lines)[-1].strip()


def last_lines(log: str, number: int = 15) -> str:
    """The last lines of `log` that say something: no progress bars, no empty ones."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", log)]
    return "\n".join([line for line in lines if line and not COUNT.search(line)][-number:])


class Job(NamedTuple):
    """Python with the arguments `command`, which writes `out`."""

    name: str
    out: str
    command: list[str]

    @property
    def shown(self) -> str:
        """The command as one types it."""
        return shlex.join(["python", *self.command])


def read_record(folder: str | Path) -> dict[str, dict]:
    """What the jobs in `folder` have written -> `name`, `command`, `seconds`, `processor_seconds`, `finished`."""
    file = Path(folder) / "stages.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def prepare(seeds: list[int]) -> None:
    """What the demos' scripts do before their first stage. Raises InputError on seeds that are not different."""
    if min(seeds, default=-1) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds takes different numbers from 0 on, not {seeds}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a running stage is ended too
    disable_progress_bars()  # they would break the table of the stages
    os.chdir(Path(__file__).parents[2])


def minutes_of_a_seed(seconds: dict[str, float], seeds: int) -> float:
    """Wall time of a run with one seed, from the seconds of the stages of a run with `seeds` of them."""
    return sum(value / (seeds if stage.startswith("seed ") else 1) for stage, value in seconds.items()) / 60


def places_in(command: list[str]) -> list[str]:
    """The words of a command that may be files, and of `NAME=FILE` what stands behind the name.

    >>> places_in(["--predictions", "SFT=out/sft.jsonl"])
    ['--predictions', 'SFT=out/sft.jsonl', 'out/sft.jsonl']
    """
    return [place for word in command for place in dict.fromkeys((word, word.partition("=")[2] or word))]


def memory_gb(sessions: Container[int]) -> float:
    """Memory in GB (1e9 bytes) of this process and all of `sessions`; a page that several have counts once.

    0 where the system has no /proc/PID/smaps_rollup.
    """
    kilobytes = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.name == str(os.getpid()) or os.getsid(int(place.name)) in sessions:
                lines = (place / "smaps_rollup").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has ended, or is another user's
            continue
    return kilobytes * 1024 / 1e9


@dataclass
class _Child:
    job: Job
    task: TaskID
    log: Path
    seconds: float = 0.0  # its share of the wall time

    def start(self, threads: int) -> None:
        if Path(self.job.out).is_dir():
            shutil.rmtree(self.job.out)
        Path(self.job.out).unlink(missing_ok=True)
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self.job.command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ, **QUIET},
                start_new_session=True,  # and its workers: all of them end together
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
            self.memory = usage.ru_maxrss * 1024 / 1e9  # kilobytes on Linux
            self.processor_seconds = usage.ru_utime + usage.ru_stime  # of all its cores, with its own children's
        return bool(ended)

    def end(self) -> None:
        if hasattr(self, "process") and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Stages:
    """A context manager with the terminal's progress display; `folder` gets stages.json, failures.json and logs/.

    `fresh`: what was there is removed first. `failures`: what a job that was not needed should have written -> why it
    is not there, in one sentence.
    """

    def __init__(self, folder: str | Path, fresh: bool = False):
        if fresh and Path(folder).is_dir():
            shutil.rmtree(folder)
        self.logs, self.record = Path(folder) / "logs", Path(folder) / "stages.json"
        self.failures_file = Path(folder) / "failures.json"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.finished = read_record(folder)
        self.failures: dict[str, str] = {}
        self.failures_file.unlink(missing_ok=True)  # of an earlier run
        self.used: list[str] = []
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:34}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]:>12}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[reached]}"),
            disable=is_quiet(),
        )

    def __enter__(self) -> "Stages":
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()

    def is_done(self, job: Job) -> bool:
        """Whether the job was done before, later than its config file and all it reads were made."""
        before = self.finished.get(job.out)
        if before is None or before["command"] != job.command or not Path(job.out).exists():
            return False
        inputs = [self.finished[place]["finished"] for place in places_in(job.command) if place in self.finished]
        configs = (Path(word) for word in job.command if word.endswith(".yaml"))
        inputs += [file.stat().st_mtime for file in configs if file.is_file()]
        return before["finished"] >= max(inputs)

    def run(self, *jobs: Job, needed: Container[str] | None = None) -> None:
        """Runs jobs that do not need each other, two at a time; the failure of a needed one ends all.

        A job is left out if it was done before. The next one starts as soon as one has ended. The cores are shared
        among those that run. `needed`: what must be written, `out` of the jobs; None: all of it. Where another job
        fails, or reads what has failed, `failures` says so and the others go on.
        """
        self.needed = needed
        children = [child for job in jobs if (child := self._prepare(job))]
        places = min(len(children), 2)
        waiting, running, last = list(children), [], time.time()
        sampled, largest = last, 0.0
        try:
            while waiting or running:
                while waiting and len(running) < places:
                    child = waiting.pop(0)
                    line = {"markup": False, "highlight": False, "soft_wrap": True}
                    self.progress.console.print(child.job.shown, style="dim", **line)
                    child.start(threads=max(1, (os.cpu_count() or 1) // places))
                    running.append(child)
                time.sleep(0.2)
                now = time.time()
                for child in running:
                    child.seconds += (now - last) / len(running)
                last = now
                if now - sampled >= 1:
                    sampled, largest = now, max(largest, memory_gb([child.process.pid for child in running]))
                for child in list(running):
                    written = child.written(100_000)
                    if count := read_count(written[-4000:]):
                        figures = {"completed": count[0], "total": count[1], "note": f"{count[0]}/{count[1]}"}
                        self.progress.update(child.task, **figures, reached=read_reached(written))
                    if child.has_ended():
                        running.remove(child)
                        self._finish(child)
            # of jobs that were too short, or a system that does not tell: the largest at the same time
            largest = largest or sum(sorted((child.memory for child in children), reverse=True)[:places])
            for child in children:
                if child.job.out not in self.failures:
                    self.finished[child.job.out]["peak_memory_gb"] = largest
            if children:
                self._write_record()
        finally:
            for child in children:
                child.end()

    def _prepare(self, job: Job) -> _Child | None:
        """The child that runs `job`; None where it was done before, or reads what has failed."""
        self.used.append(job.out)
        task = self.progress.add_task(job.name, total=None, note="", reached="")
        if missing := [place for place in places_in(job.command) if place in self.failures]:
            self._give_up(job, task, self.failures[missing[0]])
        elif self.is_done(job):
            self.progress.update(task, total=1, completed=1, note="done before")
        else:
            return _Child(job, task, self.logs / f"{Path(job.out).name}-{task}.txt")
        return None

    def _finish(self, child: _Child) -> None:
        job = child.job
        if child.process.returncode or not Path(job.out).exists():
            if self.needed is not None and job.out not in self.needed:
                self._give_up(job, child.task, failure_of(child.written()))
                return
            self.progress.stop()
            sys.exit(
                f"{last_lines(child.written())}\n\nerror: the stage {job.name!r} failed (above: the end of "
                f"{child.log}); its command is {job.shown}"
            )
        self.progress.update(child.task, completed=1, total=1, note="done")
        figures = {"seconds": child.seconds, "processor_seconds": child.processor_seconds, "finished": time.time()}
        figures["peak_memory_gb"] = child.memory
        self.finished[job.out] = {"name": job.name, "command": job.command, **figures}
        self._write_record()

    def _give_up(self, job: Job, task: TaskID, sentence: str) -> None:
        self.progress.update(task, completed=1, total=1, note="failed")
        self.failures[job.out] = sentence
        self.finished.pop(job.out, None)
        with replacing(self.failures_file) as temporary:
            temporary.write_text(json.dumps(self.failures, indent=2) + "\n")

    def _write_record(self) -> None:
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps(self.finished, indent=2) + "\n")

    def seconds(self) -> dict[str, float]:
        """Wall time of each stage by its name, whenever it ran; of stages side by side each has its share."""
        entries = [self.finished[out] for out in self.used if out in self.finished]
        return {entry["name"]: entry["seconds"] for entry in entries}

    def peak_memory_gb(self) -> float:
        """Memory in GB (1e9 bytes) of the largest stages at once, with this process; sampled every second."""
        return max(self.finished[out]["peak_memory_gb"] for out in self.used if out in self.finished)
