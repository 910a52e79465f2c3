"""Builds MIMIC-CXR from PhysioNet's files, as they were downloaded, in the project's schema.

Text only (mimic-cxr-reports.zip and two CSVs, 150 MB), which is all that labels, text statistics and MIMIC-RG4 need:

    python recipes/build_mimic_cxr.py --root physionet.org/files --out outputs/data/mimic_cxr_text

With images (the JPG or DICOM tree, or a copy made smaller), stored as PNGs of at most 512 pixels a side (for RAD-DINO,
which crops: --image_size 518 --image_size_of shortest):

    python recipes/build_mimic_cxr.py --root physionet.org/files --images physionet.org/files/mimic-cxr-jpg/2.1.0 \
        --image_size 512 --out outputs/data/mimic_cxr

MRG-R1 (every image a sample), R2Gen's split and cleaning, CheXbert's labels, and a first try:

    python recipes/build_mimic_cxr.py --root physionet.org/files --sample_unit image --out outputs/data/mimic_images
    python recipes/build_mimic_cxr.py --root physionet.org/files --split_file annotation.json --cleaning r2gen \
        --target findings --labeler chexbert:outputs/chexbert --workers 1 --out outputs/data/mimic_r2gen
    python recipes/build_mimic_cxr.py --root physionet.org/files --limit 20 --out outputs/data/mimic_try

`--out` then holds train, validation and test.parquet, build.json (arguments, counts), skipped.csv (what was left out,
and why) and, with images, manifest.csv (the SHA-256 of each). A run that was stopped goes on where it was. What is
built is credentialed data: keep it private; `--push_to_hub` does.
"""

import csv
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from recipes.cli import parse, run
from recipes.data import mimic
from recipes.data.images import SIDES
from recipes.data.labels import load_labeler
from recipes.data.mimic_sections import CLEANINGS
from recipes.data.schema import read_build
from recipes.data.sections import TARGETS
from recipes.files import InputError, replacing


def argument(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    root: str = argument("physionet.org/files", "folder with PhysioNet's mimic-cxr and mimic-cxr-jpg, as downloaded")
    out: str = argument("outputs/data/mimic_cxr", "folder to write; an earlier build there is replaced")
    images: str = argument("none", "folder that holds files/p10/...; none: no images, `views` are kept")
    reports: str | None = argument(None, "mimic-cxr-reports.zip or its extracted folder, if not found below --root")
    split_file: str | None = argument(None, "PhysioNet's split CSV, if not below --root, or R2Gen's annotation.json")
    metadata: str | None = argument(None, "PhysioNet's metadata CSV, if not found below --root")
    chexpert: str | None = argument(None, "PhysioNet's CheXpert CSV, if not found below --root")
    target: str = argument("findings+impression", "findings, impression or findings+impression")
    cleaning: str = argument("plain", "plain, r2gen, or rg4 (LLM-RG4's)")
    labeler: str = argument("lexical", "lexical, chexbert:MODEL, or chexpert_csv (PhysioNet's table)")
    sample_unit: Literal["study", "image"] = argument("study", "image: a row for each image (MRG-R1)")
    image_size: int = argument(512, "pixels of the side that --image_size_of names; 0 stores the files as they are")
    image_size_of: Literal[SIDES] = argument(
        "longest", "the side that is shrunk to --image_size; shortest: for a model that crops"
    )
    max_images: int = argument(0, "images per study: a frontal one, a lateral one, then others; 0: all")
    limit: int = argument(0, "use only the first so many subjects of each split; 0: all")
    workers: int = argument(2, "processes; the result is the same for any number")
    push_to_hub: str | None = argument(None, "USER/NAME on the Hub, private")
    public_because: str | None = argument(None, "why the data set may be public; without it no push is public")


def main() -> None:  # noqa: C901
    (arguments,) = parse(BuildArguments)
    out, images = Path(arguments.out), None if arguments.images == "none" else arguments.images
    if arguments.target not in TARGETS or arguments.cleaning not in CLEANINGS:
        raise InputError(f"--target takes one of {', '.join(TARGETS)}, --cleaning one of {', '.join(CLEANINGS)}")
    if min(arguments.image_size, arguments.max_images, arguments.limit) < 0 or arguments.workers < 1:
        raise InputError("--workers must be at least 1, and --image_size, --max_images and --limit at least 0")
    if images and not (Path(images) / "files").is_dir():
        raise InputError(f"--images {images} holds no folder files/; name the folder above files/, or none")
    if out.exists() and not read_build(out):
        raise InputError(f"--out {out} exists and is no earlier build: name a folder that may be replaced")
    from_table = arguments.labeler == mimic.CHEXPERT_CSV
    labeler = arguments.labeler if from_table else load_labeler(arguments.labeler).name

    # Files
    skipped: list[mimic.Skipped] = []
    tables = "mimic-cxr-2.?.?-{}.csv*"
    reports = mimic.find_reports(arguments.root, arguments.reports)
    metadata = mimic.find_file(arguments.root, arguments.metadata, tables.format("metadata"), "metadata")
    split_file = mimic.find_file(arguments.root, arguments.split_file, tables.format("split"), "split_file")
    states = None
    if from_table:
        table = mimic.find_file(arguments.root, arguments.chexpert, tables.format("chexpert"), "chexpert")
        states = mimic.read_states(table)

    # Plan: images by study, studies by split and shard
    split_of_study = mimic.read_split(split_file)
    planned = mimic.plan_images(split_of_study, split_file, metadata, arguments.limit, skipped)
    keys = ("target", "cleaning", "sample_unit", "image_size", "image_size_of", "max_images")
    choices = {key: getattr(arguments, key) for key in keys}
    settings = mimic.Settings(str(reports), images, labeler, arguments.labeler, **choices)
    listed = mimic.list_reports(reports)
    studies = list(mimic.plan_studies(planned, listed, states, settings, skipped))
    if not arguments.limit:
        skipped += [mimic.Skipped(key, str(reports), "study", "no CSV names it") for key in sorted(listed)]
    shards = mimic.cut_shards(studies, settings)
    del split_of_study, planned, listed, states, studies

    # Rows, in shards that a later run finds
    parts = out.with_name(f".{out.name}.parts")
    files = mimic.build_shards(shards, settings, parts, arguments.workers)

    # Writing
    with replacing(out, marker="build.json") as folder:
        folder.mkdir()
        rows, counts = {}, Counter()
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            manifest = csv.writer(file)
            manifest.writerow(("study_id", "image", "bytes", "sha256"))
            for split in files:
                rows[split], notes = mimic.join_shards(files[split], folder / f"{split}.parquet")
                for note in notes:
                    manifest.writerows(note["manifest"])
                    skipped += [mimic.Skipped(*entry) for entry in note["skipped"]]
                    counts.update(note["counts"])
        counts.update(f"{entry.left_out} left out: {entry.reason}" for entry in skipped)
        if not sum(rows.values()):
            raise InputError(f"no study can be used; most often: {counts.most_common(1)[0][0] if counts else 'none'}")
        for split in [split for split in rows if not rows[split]]:
            (folder / f"{split}.parquet").unlink()
        if images is None:
            (folder / "manifest.csv").unlink()
        with (folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([mimic.Skipped._fields, *skipped])
        build = asdict(settings) | {"split_file": str(split_file), "metadata": str(metadata), "limit": arguments.limit}
        build |= {"rows": rows, "skipped": len(skipped), "counts": dict(sorted(counts.items()))}
        (folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    shutil.rmtree(parts)
    print(f"{out}: {rows}; {len(skipped)} entries in {out / 'skipped.csv'}, counted in build.json")
    if arguments.push_to_hub:
        from recipes.hub.dataset import push_dataset  # needs torch, which each worker would load too

        push_dataset(out, arguments.push_to_hub, arguments.public_because)


if __name__ == "__main__":
    run(main)
