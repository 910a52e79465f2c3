"""A user's mistake, and files: written whole or not at all, by one process first."""

import csv
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

WRITE_FAILED = (
    "No space left on device",
    "PytorchStreamWriter",
    "iostream error",
    "inline_container",
)  # in torch's words
RAISED = "recipes.files.InputError: "  # before its sentence in a traceback, all that a data loader's worker hands on


class InputError(ValueError):
    """A mistake in what the user gave: the message names the file, row or argument and says what to do."""


@contextmanager
def one_process_first() -> Iterator[None]:
    """Within it the first process of a run goes alone, then the first one of every other node, then all others.

    So what the first one writes is there for the others, whether their nodes share a disk with it or not, and where
    the disk knows no locks. Every process has to come by, as often as the others.
    """
    distributed = sys.modules.get("torch.distributed")
    if not (distributed and distributed.is_available() and distributed.is_initialized()):
        yield
        return
    from accelerate import PartialState

    processes = PartialState()
    with processes.main_process_first(), processes.local_main_process_first():
        yield


@contextmanager
def replacing(path: str | Path, marker: str = "") -> Iterator[Path]:
    """Yields a temporary sibling of `path` to write a file or a folder to; renamed to `path` only on success.

    A folder that is there already gives way only if it holds the file `marker`, so that a slip in `--out` cannot
    delete anything else; otherwise InputError.
    """
    path = Path(path)
    check_free(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def check_free(path: str | Path, marker: str = "") -> None:
    """Raises InputError where `path` is a folder with anything in it but an earlier result, which has the file
    `marker`."""
    path = Path(path)
    if path.is_dir() and any(path.iterdir()) and not (marker and (path / marker).is_file()):
        raise InputError(f"{path} exists and is no earlier result of this command; name another folder")


def check_writable(path: str | Path, name: str, is_file: bool = False) -> None:
    """Raises InputError, calling `path` by the argument `name`, where nothing could be written there; writes nothing.

    A folder, or with `is_file` a file, is to be written. What is tried is a nameless file in the nearest folder above
    that is there: a right or a mount that forbids it shows, a lack of space does not.
    """
    path = Path(path).absolute()
    if is_file and path.is_dir():
        raise InputError(f"--{name} {path} is a folder: name a file")
    places = (path.parent, *path.parent.parents) if is_file else (path, *path.parents)
    place = next(place for place in places if os.path.lexists(place))
    if not place.is_dir():
        what = "is a file: name a folder" if place == path else f"is below {place}, which is no folder: name another"
        raise InputError(f"--{name} {path} {what}")
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = os.strerror(errno.EACCES) if error.errno == errno.ENOENT else error.strerror  # /proc has no new files
        raise InputError(f"--{name} {path} cannot be written: nothing can be made in {place} ({reason})") from error


def read_commit() -> str:
    """The git commit of the checkout that this file is in.

    Empty where there is none: no git, or a wheel, whose folder may lie within the repository of another project.
    """
    checkout = Path(__file__).resolve().parents[1]
    if not shutil.which("git"):
        return ""
    command = ("git", "-C", checkout, "rev-parse", "--show-toplevel", "HEAD")
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[1] if len(lines) == 2 and Path(lines[0]).resolve() == checkout else ""


def read_prompt(file: str) -> str:
    """The prompt's text, without a byte-order mark; `file` is a path, or one relative to the recipes' folder."""
    candidate = next((path for path in (Path(file), Path(__file__).parent / file) if path.is_file()), None)
    if candidate is None:
        raise InputError(f"there is no prompt file {file}")
    try:
        return candidate.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt file {candidate} is not UTF-8 text: {error.reason}") from error


def csv_records(file: str, name: str) -> list[dict[str, str]]:
    """The records of a CSV file with a header, named `name` in a sentence; a field may be as long as it is.

    Raises InputError where it cannot be read, is no UTF-8 or no CSV, or a record is longer or shorter than the header.
    """
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except OSError as error:
        raise InputError(f"{name} {file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} {file} is no CSV in UTF-8 ({error}): save it as that") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            fault = "more" if None in row else "fewer"
            remedy = "put a text that has commas in quotes"
            raise InputError(f"{name} {file}, record {number}: it has {fault} fields than the header; {remedy}")
    return rows
