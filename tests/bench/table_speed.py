"""Times recipes/build_from_table.py on a table with images, and the memory that all its processes take together.

    python tests/bench/table_speed.py [--rows 20000]

X-rays are phantoms of 1,024 x 1,024 pixels, PNG and JPEG, stored at 512; the table has a row for each. A quarter of
the rows is built first, so that time can be seen to be linear. Writes outputs/bench/table_speed/results.json. A figure
is not a test: exits 0 whether or not the bars hold.
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from mimic_speed import measure

from recipes.cli import report, run
from recipes.data.phantom import make_study, render, sample_states

ROOT = Path(__file__).resolve().parents[2]
BARS = {"images/s": 150, "GB": 2.0, "linear": 1.3}


def draw_images(folder: Path) -> list[Path]:
    """Eight phantoms, as PNG and as JPEG."""
    rng, files = np.random.default_rng(0), []
    for number in range(8):
        image = render(make_study(sample_states(rng), rng), "frontal", rng, 1024)
        for suffix in ("png", "jpg"):
            files.append(folder / f"{number}_pa.{suffix}")
            image.save(files[-1], quality=92)
    return files


def write_table(folder: Path, rows: int, files: list[Path]) -> Path:
    """A row for each image, which is a link to one of `files`; three studies a subject."""
    images = folder / f"images{rows}"
    images.mkdir()
    with (folder / f"{rows}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["study_id", "subject_id", "image", "report", "study_date"])
        for row in range(rows):
            file = files[row % len(files)]
            os.link(file, images / f"{row}_pa{file.suffix}")
            text = f"FINDINGS: The lungs are clear. No pleural effusion, case {row}.\nIMPRESSION: No acute disease."
            writer.writerow([f"s{row}", f"p{row // 3}", f"{row}_pa{file.suffix}", text, f"2024{row % 12 + 1:02d}01"])
    return folder / f"{rows}.csv"


def build(folder: Path, table: Path, rows: int) -> dict[str, float]:
    """What `measure` says of one build."""
    command = [ROOT / "recipes" / "build_from_table.py", "--table", table, "--source", "phantom"]
    command += ["--images", folder / f"images{rows}", "--license", "CC0-1.0", "--out", folder / f"out{rows}"]
    return measure(*command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="Rows of the larger table.")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = draw_images(folder)
        figures = {}
        for number in (rows // 4, rows):
            figures[number] = build(folder, write_table(folder, number, files), number)
    (small, large) = figures.values()
    seconds, growth = large["seconds"], large["seconds"] / small["seconds"] / 4
    checks = []
    for title, value, bar, holds in (
        ("images per second", rows / seconds, f">= {BARS['images/s']}", rows / seconds >= BARS["images/s"]),
        ("GB of all processes, PSS", large["gb_pss"], f"<= {BARS['GB']}", large["gb_pss"] <= BARS["GB"]),
        ("seconds, against four times a quarter's", growth, f"<= {BARS['linear']}", growth <= BARS["linear"]),
    ):
        checks.append({"name": title, "value": value, "bar": bar, "holds": holds})
    report("outputs/bench/table_speed", {"rows": {str(key): value for key, value in figures.items()}}, checks)


if __name__ == "__main__":
    run(main)
