"""A certificate: rows are run one after the other, what is absent is a row too, and the files are written as one."""

import json
import math
import platform
import re
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from recipes.certificate.laboratory import ABSENCES, FAULTS, Absent, Bar, Lab
from recipes.files import WRITE_FAILED, InputError, read_commit, replacing

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
PACKAGES += ("open_clip_torch", "kernels", "flash-attn")
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s/:'\"]+/)+")  # of an absolute path, but not of a URL


def run_row(name: str, row: Callable[[Lab], tuple], lab: Lab) -> dict:
    """One row of the certificate: {name, value, bar, holds, versions, date, seconds}.

    `holds`: whether the value is within the bar; None for a value without one, which is set beside another's, and for
    a row that could not be run, whose value says why. A checkpoint that its converter refuses, and any other fault of
    ours, does not hold; a missing file, a missing package, a full disk and too small a GPU are absences.
    """
    lab.versions.clear()
    start = time.perf_counter()
    try:
        value, bar = row(lab)
        holds = bar.holds(value) if isinstance(bar, Bar) else None
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # which JSON has no number for
    except (*ABSENCES, *FAULTS) as error:
        absent = is_absence(error)
        value = f"{'not run' if absent else 'failed'}: {describe(error, lab)}"
        bar, holds = "", None if absent else False
    return {
        "name": name,
        "value": value,
        "bar": str(bar),
        "holds": holds,
        "versions": versions_of_packages("torch", "transformers") | lab.versions,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def is_absence(error: BaseException) -> bool:
    """Whether something is missing, the disk is full, or the GPU too small; or one of these stands behind `error`, as
    where a converter's sentence comes from the Hub's error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ABSENCES):
        cause = cause.__cause__
    return cause is not None or any(words in str(error) for words in WRITE_FAILED)


def describe(error: BaseException, lab: Lab) -> str:
    """One sentence: what is wrong, and where in this project a fault arose that no sentence of ours foresees.

    No folder of this machine is named: a local checkpoint is called by its argument, a path by its last part.
    """
    sentence = " ".join(str(error).split())[:400]
    if not isinstance(error, (Absent, InputError)):
        sentence = f"{type(error).__name__}: {sentence}"
    if not isinstance(error, InputError) and not is_absence(error):
        frames = traceback.extract_tb(error.__traceback__)[1:]  # without run_row's
        places = [(Path(frame.filename), frame.lineno) for frame in frames]
        ours = [(file.relative_to(ROOT), line) for file, line in places if file.is_relative_to(ROOT / "recipes")]
        sentence += f" ({ours[-1][0]}:{ours[-1][1]})" if ours else ""
    for argument, place in lab.places.items():
        if place and Path(place).is_absolute():
            sentence = sentence.replace(f"--{argument} {place}", f"--{argument}").replace(place, f"--{argument}")
    return FOLDERS.sub(".../", sentence)


def versions_of_packages(*names: str) -> dict[str, str]:
    """The installed versions of packages; what is not installed is left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict:
    """What the certificate says of the machine: nothing that names it or its user."""
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "gpus": [f"{device.name}, {device.total_memory / 1e9:.0f} GB" for device in devices],
        "cuda": torch.version.cuda,
    }


def make_certificate(rows: list[dict], replicas: bool) -> dict:
    return {
        "project": "RRG Recipes",
        "commit": read_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "checkpoints": "miniatures with random weights" if replicas else "published",
        "machine": describe_machine(),
        "packages": versions_of_packages(*PACKAGES),
        "rows": rows,
    }


def write_certificate(folder: str | Path, certificate: Mapping) -> None:
    """Writes `folder`/certificate.json and certificate.md; an earlier certificate there gives way as a whole."""
    with replacing(folder, marker="certificate.json") as temporary:
        temporary.mkdir()
        (temporary / "certificate.json").write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
        (temporary / "certificate.md").write_text(to_markdown(certificate), encoding="utf-8")


def to_markdown(certificate: Mapping) -> str:
    """The certificate as a page: what it was made with, and its table."""
    machine, packages = certificate["machine"], certificate["packages"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    lines = [
        f"# Certificate of {certificate['project']}, {certificate['date']}",
        "",
        f"Checkpoints: {certificate['checkpoints']}. Commit {certificate['commit'] or 'unknown'}. "
        f"{machine['platform']}; {gpus}; CUDA {machine['cuda']}.",
        "",
        ", ".join(f"{name} {number}" for name, number in packages.items()),
        "",
        "| name | value | bar | holds | versions | date |",
        "|---|---|---|---|---|---|",
    ]
    for row in certificate["rows"]:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        cells = (row["name"], format_value(row["value"]), row["bar"], in_words(row["holds"]), versions, row["date"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def format_value(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def in_words(holds: bool | None) -> str:
    return "-" if holds is None else "yes" if holds else "NO"
