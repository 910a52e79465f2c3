"""Times recipes/build_mimic_cxr.py from mimic-cxr-reports.zip to labelled Parquet, at three sizes up to MIMIC-CXR's.

    python tests/bench/mimic_speed.py            # 2,000, 20,000 and 227,835 reports; 3 minutes on 2 idle cores
    python tests/bench/mimic_speed.py --quick    # without the largest: the bars on it are left out

The trees are those of tests/make_mimic_tree.py, which says how texts are varied; the share of sentences that occur
once stands in the results, since LexicalLabeler remembers the last 8,192 sentences that it read. Each run is a fresh
process with `--workers 2`: its seconds hold the start of Python, its memory is the sum over it and its workers, looked
at ten times a second: what they hold (PSS, where each page counts once) and what is resident (RSS, where a shared page
counts in each). CPU seconds, halved, are what two idle cores take. Growth compares what a further report costs
between the two larger sizes with what it costs between the two smaller ones, which leaves the start out. Writes
outputs/bench/mimic_speed/results.json. A figure is not a test: exits 0 whether or not the bars hold.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pyarrow import parquet

from recipes.cli import parse, report, run

ROOT = Path(__file__).resolve().parents[2]
SIZES = (2000, 20_000, 227_835)
WORKERS = 2


@dataclass
class BenchArguments:
    """Arguments of the bench."""

    quick: bool = field(default=False, metadata={"help": "leave out the largest size"})


def measure(*command) -> dict[str, float]:
    """Seconds, CPU seconds and peak GB, PSS and RSS, of a command that must succeed and all its processes."""
    peaks, cpu, start = {"pss": 0, "rss": 0}, {}, time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
            memory = [each.memory_full_info() for each in family]
            peaks = {name: max(peak, sum(getattr(each, name) for each in memory)) for name, peak in peaks.items()}
            cpu |= {each.pid: sum(each.cpu_times()[:2]) for each in family}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass  # one of them ended while it was looked at
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    figures = {"seconds": time.perf_counter() - start, "cpu_seconds": sum(cpu.values())}
    return figures | {f"gb_{name}": peak / 1e9 for name, peak in peaks.items()}


def distinct_share(built: Path) -> float:
    """Share of the sentences of the training reports that occur once in them."""
    reports = parquet.read_table(built / "train.parquet", columns=["report"])["report"].to_pylist()
    counts = Counter(sentence for text in reports for sentence in re.split(r"(?<=\.)\s+", text))
    return sum(count == 1 for count in counts.values()) / counts.total()


def main() -> None:
    (arguments,) = parse(BenchArguments)
    rows, load = {}, os.getloadavg()[0]
    for size in SIZES[: 2 if arguments.quick else 3]:
        with tempfile.TemporaryDirectory() as folder:
            tree, out = Path(folder) / "tree", Path(folder) / "out"
            measure(ROOT / "tests/make_mimic_tree.py", "--studies", size, "--out", tree)
            figures = measure(ROOT / "recipes/build_mimic_cxr.py", "--root", tree, "--out", out, "--workers", WORKERS)
            written = sum(parquet.read_metadata(file).num_rows for file in out.glob("*.parquet"))
            rows[size] = figures | {
                "reports_per_second": size / figures["seconds"],
                "written": written,
                "sentences_that_occur_once": distinct_share(out),
            }
            print(f"{size:>7} reports: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[size].items()))

    checks = []
    if not arguments.quick:
        small, middle, large = SIZES
        seconds = {size: rows[size]["seconds"] for size in SIZES}
        growth = (seconds[large] - seconds[middle]) / (large - middle)
        growth /= (seconds[middle] - seconds[small]) / (middle - small)
        checks = [
            ("seconds for 227,835 reports", seconds[large], "<= 60", seconds[large] <= 60),
            ("GB of all processes, PSS", rows[large]["gb_pss"], "<= 1.5", rows[large]["gb_pss"] <= 1.5),
            ("GB of all processes, RSS", rows[large]["gb_rss"], "<= 1.5", rows[large]["gb_rss"] <= 1.5),
            ("cost of a further report, large to small", growth, "<= 1.2", growth <= 1.2),
            ("reports written", rows[large]["written"], f"= {large}", rows[large]["written"] == large),
        ]
    figures = {"workers": WORKERS, "load_before": load, "sizes": {str(size): row for size, row in rows.items()}}
    checks = [dict(zip(("name", "value", "bar", "holds"), check, strict=True)) for check in checks]
    report(ROOT / "outputs" / "bench" / f"mimic_speed{'_quick' * arguments.quick}", figures, checks)


if __name__ == "__main__":
    run(main)
