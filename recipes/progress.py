"""One line that says what runs, how far it is and how long it still takes; none with `--quiet`.

On a terminal it is a bar that moves; elsewhere, as in the log of a job, a new line from time to time.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

QUIET = "RRG_QUIET"  # variables of the environment, so that processes started by this one know them too
PERIOD = "RRG_PROGRESS_SECONDS"


def take_quiet(words: list[str]) -> list[str]:
    """`words` of a command line without `--quiet`, which is noted for this process and for those that it starts."""
    if "--quiet" in words:
        os.environ[QUIET] = "1"
    return [word for word in words if word != "--quiet"]


def is_quiet() -> bool:
    """Whether `--quiet` was set."""
    return os.environ.get(QUIET) == "1"


def is_terminal() -> bool:
    """Whether somebody watches: a bar may move."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def clock(seconds: float) -> str:
    """`seconds` as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


def silence_libraries() -> None:
    """No bars of datasets, transformers and the Hub where they would be lines full of carriage returns, or are
    unwanted."""
    if is_terminal() and not is_quiet():
        return
    for library in ("HF_DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")  # read where they are imported later
    for module, name in (
        ("datasets", "disable_progress_bars"),
        ("huggingface_hub.utils", "disable_progress_bars"),
        ("transformers.utils.logging", "disable_progress_bar"),
    ):
        if module in sys.modules:
            getattr(sys.modules[module], name)()


def follow(items: Iterable, title: str, total: int | None = None, reached: Callable[[], str] = str) -> Iterator:
    """Yields `items` and says how far it is: of `total` ones, or of `len(items)` where they have a length.

    `reached` returns what has been reached so far, in a few words. Where nobody watches, lines come every 30 seconds,
    none in the first ones; the variable RRG_PROGRESS_SECONDS changes that.

    Example:

        for study in follow(studies, "reading images"):
            read(study)
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if is_quiet():
        yield from items
    elif is_terminal():
        yield from _bar(items, title, total, reached)
    else:
        yield from _lines(items, title, total, reached)


def _bar(items: Iterable, title: str, total: int | None, reached: Callable[[], str]) -> Iterator:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description:30}"), *columns, TextColumn("{task.fields[reached]}")) as progress:
        task = progress.add_task(title, total=total, reached="")
        for item in items:
            yield item
            progress.update(task, advance=1, reached=reached())


def _lines(items: Iterable, title: str, total: int | None, reached: Callable[[], str]) -> Iterator:
    period = float(os.environ.get(PERIOD, 30))
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= period:
            last = now
            left = f", {clock((now - start) * (total - done) / done)} left" if total else ""
            words = reached()
            print(f"{title}: {done}{f'/{total}' * bool(total)}{left}{f', {words}' * bool(words)}", flush=True)
