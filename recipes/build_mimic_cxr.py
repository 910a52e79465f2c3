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

With Chest ImaGenome's boxes of 29 regions (for LM-RRG's region loss), joined by image, the split being MIMIC-CXR's:

    python recipes/build_mimic_cxr.py --root physionet.org/files --images physionet.org/files/mimic-cxr-jpg/2.1.0 \
        --imagenome physionet.org/files/chest-imagenome/1.0.0 --image_size 224 --out outputs/data/mimic_boxes

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
from typing import ClassVar, Literal

from recipes.cli import parse, run
from recipes.data import mimic
from recipes.data.imagenome import find_graphs
from recipes.data.images import SIDES
from recipes.data.labels import load_labeler
from recipes.data.mimic_sections import CLEANINGS
from recipes.data.schema import read_build
from recipes.data.sections import TARGETS
from recipes.data.settings import COUNT, NOT_NEGATIVE, Range
from recipes.files import InputError, replacing


def argument(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("image_size", "max_images", "limit"), NOT_NEGATIVE),
        "workers": COUNT,
    }

    root: str = argument("physionet.org/files", "Folder with PhysioNet's mimic-cxr and mimic-cxr-jpg, as downloaded.")
    out: str = argument("outputs/data/mimic_cxr", "Folder to write; an earlier build there is replaced.")
    images: str = argument("none", "Folder that holds files/p10/...; none: no images, but their views.")
    reports: str | None = argument(None, "mimic-cxr-reports.zip or its extracted folder, if not below --root.")
    split_file: str | None = argument(None, "PhysioNet's split CSV, if not below --root, or R2Gen's annotation.json.")
    metadata: str | None = argument(None, "PhysioNet's metadata CSV, if not below --root.")
    chexpert: str | None = argument(None, "PhysioNet's CheXpert CSV, if not below --root.")
    imagenome: str | None = argument(
        None, "Folder of Chest ImaGenome, whose boxes of regions are joined to the images; none: no boxes."
    )
    target: Literal[(*TARGETS,)] = argument("findings+impression", "Sections that make a report.")
    cleaning: Literal[(*CLEANINGS,)] = argument("plain", "Cleaning of the texts; rg4: LLM-RG4's.")
    labeler: str = argument("lexical", "Labeler: lexical, chexbert:MODEL, or chexpert_csv (PhysioNet's table).")
    sample_unit: Literal["study", "image"] = argument(
        "study", "What a row is; image: each image with its study's report (MRG-R1)."
    )
    image_size: int = argument(512, "Pixels of the side that --image_size_of names; 0 stores the files as they are.")
    image_size_of: Literal[SIDES] = argument(
        "longest", "Side of an image that is shrunk to --image_size; shortest: for a model that crops."
    )
    max_images: int = argument(0, "Images of a study at most: a frontal one, a lateral one, then others; 0: all.")
    limit: int = argument(0, "Number of subjects to use, the first ones of each split; 0: all.")
    workers: int = argument(2, "Number of processes; the result is the same for any.")
    push_to_hub: str | None = argument(None, "Private repository of the Hub to push to, USER/NAME.")
    public_because: str | None = argument(
        None, "Reason why the data set may be public; without one the repository is private."
    )


def main() -> None:
    (arguments,) = parse(BuildArguments)
    out, images = Path(arguments.out), None if arguments.images == "none" else arguments.images
    if images and not (Path(images) / "files").is_dir():
        raise InputError(f"--images {images} holds no folder files/; name the folder above files/, or none")
    if out.exists() and not read_build(out):
        raise InputError(f"--out {out} exists and is no earlier build: name a folder that may be replaced")
    graphs = find_graphs(arguments.imagenome, images)
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
    settings = mimic.Settings(str(reports), images, labeler, arguments.labeler, **choices, imagenome=graphs)
    listed = mimic.list_reports(reports)
    studies = list(mimic.plan_studies(planned, listed, states, settings, skipped))
    if not arguments.limit:
        skipped += [mimic.Skipped(key, str(reports), "study", "no CSV names it") for key in sorted(listed)]
    shards = mimic.cut_shards(studies, settings)
    del split_of_study, planned, listed, states, studies

    # Rows, in shards that a later run finds
    parts = out.with_name(f".{out.name}.parts")
    files = mimic.build_shards(shards, settings, parts, arguments.workers)

    build = asdict(settings) | {"split_file": str(split_file), "metadata": str(metadata), "limit": arguments.limit}
    rows = write(out, files, skipped, build)
    shutil.rmtree(parts)
    print(f"{out}: {rows}; {len(skipped)} entries in {out / 'skipped.csv'}, counted in build.json")
    if arguments.push_to_hub:
        from recipes.hub.dataset import push_dataset  # needs torch, which each worker would load too

        push_dataset(out, arguments.push_to_hub, arguments.public_because)


def write(out: Path, files: dict[str, list[Path]], skipped: list[mimic.Skipped], build: dict) -> dict[str, int]:
    """Joins each split's shards in the folder `out`, with manifest, skipped.csv and build.json; rows by split."""
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
        if build["images"] is None:
            (folder / "manifest.csv").unlink()
        with (folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([mimic.Skipped._fields, *skipped])
        build |= {"rows": rows, "skipped": len(skipped), "counts": dict(sorted(counts.items()))}
        (folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    run(main)
