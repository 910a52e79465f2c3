"""Builds the IU X-Ray (Open-i) data set: reports, images, labels and splits in the project's schema.

Real reports with stand-in images, nothing to download (torchxrayvision brings the reports):

    python recipes/build_iu_xray.py --image_source phantom --out outputs/data/openi

Real images (Open-i's NLMCXR_png.tgz, Kaggle's or R2Gen's copy, unpacked) with R2Gen's reports and split:

    python recipes/build_iu_xray.py --image_root images --reports annotation.json --out outputs/data/iu_xray

Sections of the XML reports instead, under R2Gen's split or ReXrank's:

    python recipes/build_iu_xray.py --image_root images --split_scheme r2gen --split_file annotation.json \
        --target findings+impression --out outputs/data/iu_xray
    python recipes/build_iu_xray.py --image_root images --split_scheme rexrank \
        --split_file ReXRank_IUXray_test.json,ReXRank_IUXray_valid.json --out outputs/data/iu_xray

`--out` then holds train, validation and test.parquet, build.json, and skipped.csv: each study left out, and why.
The text is CC BY-NC-ND 4.0: do not publish what is built. Stand-in images are drawn from the human MeSH labels of
the study, never from its text; they are not medical data, and build.json says so.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from transformers.hf_argparser import HfArg

from recipes.cli import parse, run
from recipes.data import openi, phantom
from recipes.data.images import SIDES, below, read_png
from recipes.data.schema import SPLITS, read_build, write_dataset
from recipes.data.settings import COUNT, Range
from recipes.data.views import scenario_of
from recipes.files import InputError, replacing
from recipes.progress import follow
from rewards.labelers import LexicalLabeler


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    ranges: ClassVar[dict[str, Range]] = {"image_size": Range(64, 1024), "max_images": COUNT}

    out: str = HfArg(default="outputs/data/iu_xray", help="Folder to write; an earlier build there is replaced.")
    reports: str | None = HfArg(
        default=None, help="Folder or .tgz of XML, or annotation.json; torchxrayvision's reports when not given."
    )
    image_root: str | None = HfArg(default=None, help="Folder with the X-rays, at any depth.")
    image_source: Literal["phantom"] | None = HfArg(default=None, help="Source of stand-in images, without X-rays.")
    target: str | None = HfArg(
        default=None, help="Sections of the report: findings (when not given), impression or findings+impression."
    )
    cleaning: Literal["plain", "r2gen"] = HfArg(
        default="plain", help="Cleaning of the texts; r2gen: lower case, ' . ' between sentences."
    )
    split_scheme: str | None = HfArg(
        default=None,
        help="Scheme of the splits: random (70/10/20), r2gen (as named) or rexrank (the rest is trained on).",
    )
    split_file: str | None = HfArg(
        default=None, help="File of the splits: annotation.json, or ReXrank's, comma-separated."
    )
    image_size: int | None = HfArg(
        default=None, help="Pixels of the side that --image_size_of names; 512, of phantoms 112, when not given."
    )
    image_size_of: Literal[SIDES] = HfArg(default="longest", help="Side of an image that is shrunk to --image_size.")
    max_images: int = HfArg(default=2, help="Images of a study at most: a frontal one, a lateral one, then others.")
    limit: int | None = HfArg(default=None, help="Number of studies to use, drawn at random; all when not given.")
    seed: int = HfArg(default=0, help="Seed of the split, of --limit and of the phantoms.")


def check_arguments(arguments: BuildArguments) -> None:
    """Raises InputError on arguments that do not go together, before anything is read."""
    if bool(arguments.image_source) == bool(arguments.image_root):
        raise InputError("give either --image_root DIR (the X-rays) or --image_source phantom (stand-in images)")
    if Path(arguments.out).exists() and not read_build(arguments.out):
        raise InputError(f"--out {arguments.out} exists and is no earlier build: name a folder that may be replaced")


def read_reports(arguments: BuildArguments) -> tuple[list[openi.Study], list[openi.Skipped], str]:
    """The studies, those skipped, and the sections that make a report; `report` where it is one text."""
    studies, skipped = openi.read_studies(arguments.reports)
    if studies[0].report is None:
        return studies, skipped, arguments.target or "findings"
    if arguments.target:
        raise InputError(f"{arguments.reports} holds whole reports, not sections: leave --target out")
    if arguments.image_source:  # whose MeSH labels say what to draw stands in the XML files alone
        mesh = {study.study_id: study.mesh for study in openi.read_studies()[0]}
        studies = [replace(study, mesh=mesh.get(study.study_id, ())) for study in studies]
    return studies, skipped, "report"


def find_usable(
    studies: list[openi.Study], target: str, arguments: BuildArguments, skipped: list[openi.Skipped]
) -> dict[str, tuple[openi.Study, dict, list[Path | None]]]:
    """Of each study with a report and an image, by its id: study, row, image files. The others join `skipped`."""
    root = arguments.image_root
    index, projections = (openi.index_images(root), openi.read_projections(root)) if root else ({}, {})
    usable = {}
    for study in studies:
        row = openi.text_columns(study, target, arguments.cleaning)
        images = openi.find_images(study, index, root) if root else openi.stand_in_images(study)
        if row["report"] and images:
            row["views"], files = openi.order_views(images, study.caption, projections, arguments.max_images)
            row["scenario"] = scenario_of(row["views"], None)
            usable[study.study_id] = study, row, files
            continue
        lacking = "image under --image_root" if root else "human MeSH label that says what to draw"
        reason = f"it has no {lacking if row['report'] else target}"
        skipped.append(openi.Skipped(study.study_id, study.file, reason))
    if not usable:
        [(reason, times)] = Counter(row.reason for row in skipped).most_common(1)
        raise InputError(f"none of {len(studies)} studies can be used; of {times} of them: {reason}")
    return usable


def main() -> None:
    (arguments,) = parse(BuildArguments)
    check_arguments(arguments)
    out, as_phantom = Path(arguments.out), bool(arguments.image_source)
    size, side = arguments.image_size or (112 if as_phantom else 512), arguments.image_size_of
    studies, skipped, target = read_reports(arguments)
    usable = find_usable(studies, target, arguments, skipped)

    # Labels and splits
    ids, rng = list(usable), np.random.default_rng(arguments.seed)
    if arguments.limit is not None:
        ids = [ids[i] for i in sorted(rng.permutation(len(ids))[: arguments.limit])]
    labels = LexicalLabeler()([openi.text_columns(usable[key][0], target, "plain")["report"] for key in ids])
    file_splits = {study.study_id: study.split for study in studies if study.split}
    if arguments.split_file:
        file_splits = openi.read_split(arguments.split_file.split(","))
    scheme = arguments.split_scheme or ("r2gen" if file_splits else "random")
    split_of = openi.assign_splits(ids, scheme, file_splits, rng)
    unnamed = [key for key in ids if key not in split_of]
    skipped += [openi.Skipped(key, usable[key][0].file, "the split file does not name it") for key in unnamed]

    # Writing
    def rows_of(split: str) -> Iterator[dict]:
        before, written = len(skipped), 0
        labelled = [pair for pair in zip(ids, labels.tolist(), strict=True) if split_of.get(pair[0]) == split]
        for key, states in follow(labelled, f"{split}: studies"):
            study, row, files = usable[key]
            try:
                if as_phantom:
                    images = openi.draw_stand_ins(study, row["views"], size, arguments.seed)
                else:
                    images = [read_png(below(file, arguments.image_root), size, side) for file in files]
            except InputError as error:
                skipped.append(openi.Skipped(key, study.file, str(error)))
                continue
            written += 1
            yield row | {"labels": states, "images": [{"bytes": image, "path": None} for image in images]}
        if not written:
            raise InputError(f"no study of split {split} has images that can be read; {skipped[before].reason}")

    note = f"stand-ins drawn from human MeSH labels. {phantom.NOTE}" if as_phantom else "X-rays"
    build = {name: getattr(arguments, name) for name in ("reports", "cleaning", "max_images", "limit", "seed")}
    build |= {"labeler": "lexical", "target": target, "split_scheme": scheme}
    build |= {"image_source": note, "image_size": size, "image_size_of": side}
    with replacing(out, marker="build.json") as folder:
        splits = {split: partial(rows_of, split) for split in SPLITS if split in split_of.values()}
        sizes = write_dataset(splits, folder, build)
        (folder / "build.json").write_text(json.dumps(read_build(folder) | {"skipped": len(skipped)}, indent=2) + "\n")
        with (folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([openi.Skipped._fields, *skipped])
    print(f"{out}: {sizes}; {len(skipped)} studies skipped, see {out / 'skipped.csv'}")


if __name__ == "__main__":
    run(main)
