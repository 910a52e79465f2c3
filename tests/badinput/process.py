"""A command in a forked child of one warm process, and what it did: its words, its files, its seconds."""

import importlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

from .commands import Command

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if "    run(main)\n" in path.read_text())
MARK = "BADINPUT_COMMAND"  # in the environment of whatever a command starts
WORK = {  # where a script would install packages, start processes for minutes, or serve: it is ended there, accepted
    "setup_gpu": ("recipes.setup_gpu", "install"),
    "demo": ("recipes.demo", "Stages"),
    "ablations": ("recipes.ablations", "Stages"),
    "lab": ("recipes.lab", "Stages"),
    "app": ("recipes.app", "serve"),
}
ALLOWED = re.compile(r"\.cache/|\.answers\.sqlite")  # what a refused command may leave: caches, paid answers


class Outcome(NamedTuple):
    """What a command did. `fault` is None where it was refused as it must be."""

    command: Command
    sentence: str
    noise: list[str]
    seconds: float
    fault: str | None


def warm_up() -> None:
    """Imports what any script imports, so that a forked child starts at once. Nothing is computed: no thread runs."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    os.environ |= {
        "UV_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    from recipes import cli  # noqa: F401  (before the libraries, as in a script)

    for script in SCRIPTS:
        importlib.import_module(f"recipes.{script}")


def fork(action, folder: Path, environment: dict[str, str]) -> int:
    """A child's process id; it calls `action` in `folder`/room in a session of its own, its output beside that."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder / "room")
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ |= environment
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    finally:
        if sys.exc_info()[1]:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def accept(*arguments, **settings) -> NoReturn:
    """Stands for the work of a script: it would begin."""
    sys.exit()


def start(command: Command, folder: Path) -> int:
    """The process id of a child that runs `command` as `python recipes/SCRIPT.py WORDS` would."""
    from recipes.cli import run

    (folder / "room").mkdir(parents=True)

    def action() -> None:
        script = ROOT / "recipes" / f"{command.script}.py"
        sys.argv = [str(script), *command.words]
        sys.path.insert(0, str(script.parent))  # as Python does for a script
        sys.modules["__main__"] = ModuleType("__main__")  # which a builder's workers import
        sys.modules["__main__"].__file__ = str(script)
        if command.script in WORK:
            module, name = WORK[command.script]
            setattr(importlib.import_module(module), name, accept)
        run(importlib.import_module(f"recipes.{command.script}").main)

    return fork(action, folder, command.environment | {MARK: str(folder)})


def end(child: int, folder: Path) -> None:
    """Ends a command at its time limit: its session, and what it started in others."""
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={folder}\0".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def judge(command: Command, folder: Path, code: int | None, seconds: float) -> Outcome:
    """What is wrong with the end of `command`, if anything; `code` None: it was stopped at its time limit."""
    output, errors = ((folder / name).read_text(errors="replace") for name in ("stdout.txt", "stderr.txt"))
    lines = [line for line in re.split(r"[\r\n]+", errors) if line.strip()]
    sentences = [line for line in lines if line.startswith("error: ")]
    sentence = sentences[0].removeprefix("error: ") if sentences else " ".join(lines[-1:])
    remains = [path.relative_to(folder / "room") for path in (folder / "room").rglob("*") if path.is_file()]
    remains = [str(path) for path in remains if not ALLOWED.search(str(path))]
    fault = None
    if "Traceback (most recent call last)" in output + errors:
        fault = "a traceback"
    elif code is None:
        fault = f"it went on for {seconds:.0f} s"
    elif code == 0:
        fault = "accepted in silence"
    elif code < 0:
        fault = f"ended by signal {-code}"
    elif len(sentences) != 1 or lines[-1] != sentences[0]:
        fault = "no one sentence at the end"
    elif not re.search(command.expected, sentence):
        fault = f"another sentence: it has no {command.expected!r}"
    elif len(sentence) > 750:
        fault = f"{len(sentence)} characters are no sentence"
    elif remains:
        fault = f"left behind: {', '.join(remains[:3])}"
    noise = lines if fault == "a traceback" else [line for line in lines if line not in sentences]
    return Outcome(command, sentence, noise, seconds, fault)


def run_all(commands: Iterable[Command], folder: Path, workers: int, limit: float) -> Iterator[Outcome]:
    """Runs `commands`, `workers` at a time, each for `limit` seconds at most; yields what each did as it ends."""
    waiting, running = list(enumerate(commands))[::-1], {}
    while waiting or running:
        while waiting and len(running) < workers:
            number, command = waiting.pop()
            place = folder / f"{number:03d}"
            running[start(command, place)] = (command, place, time.monotonic())
        for child, (command, place, begin) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - begin
            if not ended and seconds < limit:
                continue
            if not ended:
                end(child, place)
            del running[child]
            yield judge(command, place, os.waitstatus_to_exitcode(status) if ended else None, seconds)
        time.sleep(0.02)
