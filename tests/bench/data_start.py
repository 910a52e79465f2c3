"""Times how a training run reaches its first batch from a built data set, and counts what it writes to the disk.

    python tests/bench/data_start.py [--images 5000]

Against the former way, kept here as `copy_samples`: images in the rows that `map` and `cast_column` write anew. Each
in one process and in two, with a first start and a start with another prompt, from files outside the page cache.
Writes outputs/bench/data_start/results.json. A figure is not a test: exits 0 whether or not the bars hold.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, List, load_dataset
from datasets import Image as ImageColumn
from PIL import Image
from torch.utils.data import DataLoader

from recipes.cli import report, run
from recipes.data.images import check_image, decode_image
from recipes.data.samples import to_samples
from recipes.data.schema import read_split, write_dataset

SIDE = (512, 420)  # of an image; the JPEG of such noise has 150 kB, as an X-ray's PNG of this size
BATCH = 8
WAYS = ("copies", "places")
COPIES, SHARE = 1.1, 0.25  # bars


def make_images(number: int) -> Iterator[bytes]:
    """JPEGs, each with a comment of its own, so that no two are the same."""
    generator, files = np.random.default_rng(0), []
    for _ in range(16):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, SIDE, np.uint8)).save(file, "JPEG", quality=64)
        files.append(file.getvalue())
    for i in range(number):
        content = files[i % len(files)]
        yield content[:2] + b"\xff\xfe\x00\x0a" + i.to_bytes(8) + content[2:]


def build(folder: Path, number: int) -> int:
    """A data set of `number` images, two a study; returns its bytes."""

    def rows() -> Iterator[dict]:
        contents = make_images(number)
        for study, pair in enumerate(zip(contents, contents, strict=True)):
            images = [{"bytes": image, "path": None} for image in pair]
            yield {"study_id": str(study), "images": images, "report": "The lungs are clear. " * 20}

    write_dataset({"train": rows}, folder, {})
    return (folder / "train.parquet").stat().st_size


def copy_samples(folder: Path, prompt: str) -> Dataset:
    """The former way: images in the rows of the samples, each checked by every process."""
    rows = load_dataset("parquet", data_files=str(folder / "train.parquet"), cache_dir=str(folder / ".cache"))["train"]
    encoded = rows.cast_column("images", List(ImageColumn(decode=False)))

    def explode(batch: dict) -> dict:
        pairs = [(row, image) for row, images in enumerate(batch["images"]) for image in images]
        return {
            "prompt": [[{"role": "user", "content": prompt}] for _ in pairs],
            "images": [[image] for _, image in pairs],
            "completion": [[{"role": "assistant", "content": batch["report"][row]}] for row, _ in pairs],
        }

    samples = encoded.map(explode, batched=True, batch_size=256, remove_columns=encoded.column_names)
    samples = samples.cast_column("images", List(ImageColumn(decode=False)))
    for batch in samples.select_columns("images").with_format("arrow").iter(100):
        for image in batch["images"].combine_chunks().flatten().to_pylist():
            check_image(image["bytes"], "an image")
    return samples.with_transform(read_images)


def read_images(batch: dict) -> dict:
    batch["images"] = [[decode_image(image["bytes"], "an image") for image in images] for images in batch["images"]]
    return batch


def place_samples(folder: Path, prompt: str) -> Dataset:
    """The recipes' way: places of images in the rows of the samples."""
    return to_samples(read_split(str(folder), "train"), prompt, "each", completion="plain")


class Memory(threading.Thread):
    """Watches the memory of this process that is no mapped file: `peak`, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = max(self.peak, 1024 * int(fields["RssAnon"].split()[0]))
            time.sleep(0.02)


def start(way: str, folder: Path, prompt: str, out: Path) -> None:
    """One process of a run: from the data set to its first batch; `out` gets its figures."""
    processes, memory = PartialState(cpu=True), Memory()
    memory.start()
    time.sleep(0.1)
    before, written, started = memory.peak, bytes_written(), time.perf_counter()
    samples = (copy_samples if way == "copies" else place_samples)(folder, prompt)
    next(iter(DataLoader(samples, BATCH, shuffle=True, collate_fn=list)))
    seconds = time.perf_counter() - started
    figures = {"seconds": seconds, "bytes": bytes_written() - written, "memory": memory.peak - before}
    (out / f"{processes.process_index}.json").write_text(json.dumps(figures))


def bytes_written() -> int:
    """What this process has handed to the system to be written."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def forget(folder: Path) -> None:
    """Takes the files of `folder` out of the page cache."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as content:
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(way: str, folder: Path, prompt: str, processes: int) -> dict[str, float]:
    """A run's figures: `bytes` of all processes, `seconds` and `memory` of the one with most."""
    forget(folder)
    with tempfile.TemporaryDirectory() as out:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        command = [*launcher, "--nproc_per_node", str(processes), __file__]
        words = ["--way", way, "--folder", str(folder), "--prompt", prompt, "--out", out]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        subprocess.run([sys.executable, *command, *words], env=environment, check=True)
        notes = [json.loads(file.read_text()) for file in Path(out).glob("*.json")]
    figures = {name: max(note[name] for note in notes) for name in ("seconds", "memory")}
    return figures | {"bytes": sum(note["bytes"] for note in notes)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    for name in ("way", "folder", "prompt", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return start(args.way, Path(args.folder), args.prompt, Path(args.out))

    figures, checks = {}, []
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "data"
        size = build(folder, args.images)
        print(f"{args.images} images, {size / 1e6:.0f} MB of Parquet")
        for processes in (1, 2):
            for way in WAYS:
                shutil.rmtree(folder / ".cache", ignore_errors=True)
                for occasion in ("first start", "another prompt"):
                    figures[f"{way}, {processes} processes, {occasion}"] = row = measure(
                        way, folder, occasion, processes
                    )
                    row["copies"] = row["bytes"] / size
                    print(f"{way:7} {processes} processes, {occasion:15} {row['copies']:5.2f} copies, "
                          f"{row['seconds']:6.1f} s, {row['memory'] / 1e6:6.0f} MB", flush=True)  # fmt: skip
    for processes in (1, 2):
        copies, places = (figures[f"{way}, {processes} processes, first start"] for way in WAYS)
        share = places["seconds"] / copies["seconds"]
        where = f"in {processes} processes" if processes > 1 else "in one process"
        checks += [
            {"name": f"copies of the data set written {where}", "value": places["copies"], "bar": f"<= {COPIES}",
             "holds": places["copies"] <= COPIES},
            {"name": f"seconds to the first batch {where}, share of the former", "value": share, "bar": f"<= {SHARE}",
             "holds": share <= SHARE},
            {"name": f"peak of private memory {where}, share of the former", "bar": "<= 1",
             "value": places["memory"] / copies["memory"], "holds": places["memory"] <= copies["memory"]},
        ]  # fmt: skip
    report("outputs/bench/data_start", {"bytes": size, "runs": figures}, checks)


if __name__ == "__main__":
    run(main)
