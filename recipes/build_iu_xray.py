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
from typing import Literal

import numpy as np
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from recipes.cli import run
from recipes.data import openi, phantom
from recipes.data.images import SIDES, below, read_png
from recipes.data.schema import SPLITS, read_build, write_dataset
from recipes.files import InputError, replacing
from rewards.labelers import LexicalLabeler


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    out: str = HfArg(default="outputs/data/openi", help="folder to write; an earlier build there is replaced")
    reports: str | None = HfArg(default=None, help="folder or .tgz of XML, or annotation.json; default: the wheel's")
    image_root: str | None = HfArg(default=None, help="folder with the X-rays, at any depth")
    image_source: str | None = HfArg(default=None, help="phantom: stand-in images instead of X-rays")
    target: str | None = HfArg(default=None, help="findings (default, as R2Gen), impression or findings+impression")
    cleaning: Literal["plain", "r2gen"] = HfArg(default="plain", help="r2gen: lower case, ' . ' between sentences")
    split_scheme: str | None = HfArg(default=None, help="random (70/10/20), r2gen (as named) or rexrank (rest: train)")
    split_file: str | None = HfArg(default=None, help="annotation.json, or ReXrank's JSONs with commas between")
    image_size: int | None = HfArg(default=None, help="pixels of the side below; default 512, phantoms 112")
    image_size_of: Literal[SIDES] = HfArg(default="longest", help="what is shrunk to that: longest or shortest side")
    max_images: int = HfArg(default=2, help="images per study: a frontal one, a lateral one, then others")
    limit: int | None = HfArg(default=None, help="use only so many studies, drawn at random")
    seed: int = HfArg(default=0, help="of the split, of --limit and of the phantoms")


def main() -> None:  # noqa: C901
    arguments, unknown = HfArgumentParser(BuildArguments).parse_args_into_dataclasses(return_remaining_strings=True)
    out, as_phantom = Path(arguments.out), arguments.image_source == "phantom"
    size, side = arguments.image_size or (112 if as_phantom else 512), arguments.image_size_of
    if unknown:
        raise InputError(f"there is no argument {unknown[0]}; --help lists those that there are")
    if arguments.image_source not in (None, "phantom") or as_phantom == bool(arguments.image_root):
        raise InputError("give either --image_root DIR (the X-rays) or --image_source phantom (stand-in images)")
    if not 64 <= size <= 1024 or arguments.max_images < 1:
        raise InputError("--image_size must be from 64 to 1024 pixels and --max_images at least 1")
    if out.exists() and not read_build(out):
        raise InputError(f"--out {out} exists and is no earlier build: name a folder that may be replaced")

    # Reports
    studies, skipped = openi.read_studies(arguments.reports)
    annotated = studies[0].report is not None
    if annotated and arguments.target:
        raise InputError(f"{arguments.reports} holds whole reports, not sections: leave --target out")
    target = "report" if annotated else arguments.target or "findings"
    if annotated and as_phantom:
        mesh = {study.study_id: study.mesh for study in openi.read_studies()[0]}
        studies = [replace(study, mesh=mesh.get(study.study_id, ())) for study in studies]

    # Images
    index = {} if as_phantom else openi.index_images(arguments.image_root)
    projections = {} if as_phantom else openi.read_projections(arguments.image_root)
    usable = {}
    for study in studies:
        row = openi.text_columns(study, target, arguments.cleaning)
        images_of_study = (
            openi.stand_in_images(study) if as_phantom else openi.find_images(study, index, arguments.image_root)
        )
        if row["report"] and images_of_study:
            row["views"], files = openi.order_views(images_of_study, study.caption, projections, arguments.max_images)
            row["scenario"] = openi.scenario_of(row["views"])
            usable[study.study_id] = study, row, files
            continue
        lacking = "human MeSH label that says what to draw" if as_phantom else "image under --image_root"
        reason = f"it has no {lacking if row['report'] else target}"
        skipped.append(openi.Skipped(study.study_id, study.file, reason))
    if not usable:
        [(reason, times)] = Counter(row.reason for row in skipped).most_common(1)
        raise InputError(f"none of {len(studies)} studies can be used; of {times} of them: {reason}")

    # Labels and splits
    ids, rng = list(usable), np.random.default_rng(arguments.seed)
    if arguments.limit is not None:
        ids = [ids[i] for i in sorted(rng.permutation(len(ids))[: max(arguments.limit, 0)])]
    labels = LexicalLabeler()([openi.text_columns(usable[key][0], target, "plain")["report"] for key in ids])
    splits_by_study = {study.study_id: study.split for study in studies if study.split}
    splits_by_study = openi.read_split(arguments.split_file.split(",")) if arguments.split_file else splits_by_study
    scheme = arguments.split_scheme or ("r2gen" if splits_by_study else "random")
    split_of = openi.assign_splits(ids, scheme, splits_by_study, rng)
    unnamed = [key for key in ids if key not in split_of]
    skipped += [openi.Skipped(key, usable[key][0].file, "the split file does not name it") for key in unnamed]

    # Writing
    def rows_of(split: str) -> Iterator[dict]:
        before, written = len(skipped), 0
        for key, states in zip(ids, labels.tolist(), strict=True):
            study, row, files = usable[key]
            if split_of.get(key) != split:
                continue
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
