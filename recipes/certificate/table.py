"""A certificate: rows are run one after the other, what is absent is a row too, and the files are written as one."""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from recipes.certificate.laboratory import Absent, Bar, Lab
from recipes.cli import replacing

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "kernels", "flash-attn")
ROOT = Path(__file__).resolve().parents[2]
ABSENCES = (Absent, OSError, ImportError, torch.OutOfMemoryError)
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    except ABSENCES as error:
        value, bar, holds = f"not run: {describe(error, lab)}", "", None
    except FAILURES as error:
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


def is_absence(error: BaseException | None) -> bool:
    """Whether an absence stands behind `error`, as where a converter's sentence comes from the Hub's error."""
    while error is not None and not isinstance(error, ABSENCES):
        error = error.__cause__
    return error is not None


def describe(error: BaseException, lab: Lab) -> str:
    """One sentence: what is wrong, and of a fault that no sentence of ours foresees, where in this project it arose.

    Folders of this machine are left out: a local checkpoint is called by its argument.
    """
    sentence = " ".join(str(error).split())[:400] or type(error).__name__
    if not isinstance(error, (Absent, ValueError)):
        sentence = f"{type(error).__name__}: {sentence}"
        trace, places = error.__traceback__, []
        while trace:
            places.append((Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno))
            trace = trace.tb_next
        ours = [(file.relative_to(ROOT), line) for file, line in places if file.is_relative_to(ROOT / "recipes")]
        sentence += f" ({ours[-1][0]}:{ours[-1][1]})" if ours else ""
    private = {str(lab.work): "WORK", str(ROOT): ".", str(Path.home()): "~"}
    private |= {place: f"--{name}" for name, place in lab.places.items() if place and Path(place).is_absolute()}
    for path in sorted(private, key=len, reverse=True):
        sentence = sentence.replace(path, private[path])
    return sentence


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
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "project": "RRG Recipes",
        "commit": commit,
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
