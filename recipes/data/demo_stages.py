"""Runs the demo's commands one after another: printed, logged, timed, and not again once they are done."""

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
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from recipes.cli import replacing

COUNT = re.compile(r"(\d+)/(\d+)(?: \[|:)")  # tqdm's "12/100 [", the tiny model's "epoch 1/4:"
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def read_count(log: str) -> tuple[int, int] | None:
    """The last (done, total) that a progress bar wrote to `log`, or None."""
    counts = COUNT.findall(log)
    return (int(counts[-1][0]), int(counts[-1][1])) if counts else None


def last_lines(log: str, number: int = 15) -> str:
    """The last lines of `log` that say something: no progress bars, no empty ones."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", log)]
    return "\n".join([line for line in lines if line and not COUNT.search(line)][-number:])


class Stages:
    """A context manager with the terminal's progress display; `folder` gets log.txt and stages.json."""

    def __init__(self, folder: str | Path):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.log, self.record = Path(folder) / "log.txt", Path(folder) / "stages.json"
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

    def run(self, name: str, out: str, command: list[str]) -> None:
        """Runs Python with the arguments `command`, which writes `out`, unless that is done; a failure ends all."""
        self.used.append(out)
        task = self.progress.add_task(name, total=None, note="")
        if self.is_done(out, command):
            self.progress.update(task, total=1, completed=1, note="done before")
            return
        if Path(out).is_dir():
            shutil.rmtree(out)
        Path(out).unlink(missing_ok=True)
        shown = shlex.join(["python", *command])
        self.progress.console.print(shown, style="dim", markup=False, highlight=False, soft_wrap=True)
        started = time.time()
        with self.log.open("a") as file:
            file.write(f"\n$ {shown}\n")
            file.flush()
            begin = file.tell()
            environment = {"OMP_NUM_THREADS": str(os.cpu_count()), **os.environ, **QUIET}
            child = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # accelerate starts a process of its own: all of them end together
            )
            try:
                while child.poll() is None:
                    time.sleep(0.3)
                    if count := read_count(self._written(max(begin, self.log.stat().st_size - 4000))):
                        done, total = count
                        self.progress.update(task, completed=done, total=total, note=f"{done}/{total}")
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        if child.returncode or not Path(out).exists():
            self.progress.stop()
            tail = last_lines(self._written(begin))
            sys.exit(
                f"{tail}\n\nerror: the stage {name!r} failed (above: the end of {self.log}); its command is {shown}"
            )
        self.progress.update(task, completed=1, total=1, note="done")
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kilobytes on Linux
        self.finished[out] = {
            "name": name,
            "command": command,
            "seconds": time.time() - started,
            "finished": time.time(),
            "peak_memory_gb": memory,
        }
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps(self.finished, indent=2) + "\n")

    def _written(self, begin: int) -> str:
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    def seconds(self) -> dict[str, float]:
        """Wall time of each stage by its name, whenever it ran."""
        return {self.finished[out]["name"]: self.finished[out]["seconds"] for out in self.used}

    def peak_memory_gb(self) -> float:
        """Resident memory in GB (1e9 bytes) of the largest process so far, plus that of the demo itself."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return own + max(self.finished[out]["peak_memory_gb"] for out in self.used)
