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

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from transformers.hf_argparser import HfArg

from recipes.cli import parse, run
from recipes.data import openi, phantom
from recipes.data.images import SIDES, below
from recipes.data.schema import read_build
from recipes.data.settings import COUNT, Range
from recipes.data.studies import PlainImage, PlainStudy, Settings, Skipped, build, text_columns
from recipes.files import InputError
from rewards.labelers import LexicalLabeler


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    ranges: ClassVar[dict[str, Range]] = {"image_size": Range(64, 1024), "max_images": COUNT, "workers": COUNT}

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
    workers: int = HfArg(default=2, help="Processes that read images; the result is the same for any number.")
    limit: int | None = HfArg(default=None, help="Number of studies to use, drawn at random; all when not given.")
    seed: int = HfArg(default=0, help="Seed of the split, of --limit and of the phantoms.")


def check_arguments(arguments: BuildArguments) -> None:
    """Raises InputError on arguments that do not go together, before anything is read."""
    if bool(arguments.image_source) == bool(arguments.image_root):
        raise InputError("give either --image_root DIR (the X-rays) or --image_source phantom (stand-in images)")
    if Path(arguments.out).exists() and not read_build(arguments.out):
        raise InputError(f"--out {arguments.out} exists and is no earlier build: name a folder that may be replaced")


def read_reports(arguments: BuildArguments) -> tuple[list[openi.Study], list[Skipped], str]:
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
    studies: list[openi.Study], settings: Settings, arguments: BuildArguments, skipped: list[Skipped]
) -> dict[str, PlainStudy]:
    """The studies with a report and an image, by their ids. The others join `skipped`."""
    root = arguments.image_root
    index, projections = (openi.index_images(root), openi.read_projections(root)) if root else ({}, {})
    usable = {}
    for study in studies:
        plain = openi.plain_study(study)
        text = text_columns(plain, settings)["report"]
        images = openi.find_images(study, index, root) if root else openi.stand_in_images(study)
        views, files = openi.order_views(images, study.caption, projections, arguments.max_images)
        try:
            for place, (view, file) in enumerate(zip(views, files, strict=True)):
                drawn = partial(openi.draw_stand_in, study, views, place, settings.image_size, arguments.seed)
                plain.images.append(PlainImage(below(file, root) if root else drawn, view))
        except InputError as error:
            skipped.append(Skipped(study.study_id, study.file, "study", str(error)))
            continue
        if text and images:
            usable[study.study_id] = plain
            continue
        lacking = "image under --image_root" if root else "human MeSH label that says what to draw"
        reason = f"it has no {lacking if text else settings.target}"
        skipped.append(Skipped(study.study_id, study.file, "study", reason))
    if not usable:
        [(reason, times)] = Counter(row.reason for row in skipped).most_common(1)
        raise InputError(f"none of {len(studies)} studies can be used; of {times} of them: {reason}")
    return usable


def main() -> None:
    (arguments,) = parse(BuildArguments)
    check_arguments(arguments)
    as_phantom = bool(arguments.image_source)
    size, side = arguments.image_size or (112 if as_phantom else 512), arguments.image_size_of
    studies, skipped, target = read_reports(arguments)
    more = {"image_size": size, "image_size_of": side, "max_images": arguments.max_images, "seed": arguments.seed}
    settings = openi.settings_for(target, arguments.cleaning, workers=arguments.workers, **more)
    usable = find_usable(studies, settings, arguments, skipped)

    # Splits
    ids, rng = list(usable), np.random.default_rng(arguments.seed)
    if arguments.limit is not None:
        ids = [ids[i] for i in sorted(rng.permutation(len(ids))[: arguments.limit])]
    file_splits = {study.study_id: study.split for study in studies if study.split}
    if arguments.split_file:
        file_splits = openi.read_split(arguments.split_file.split(","))
    scheme = arguments.split_scheme or ("r2gen" if file_splits else "random")
    for key, split in openi.assign_splits(ids, scheme, file_splits, rng).items():
        usable[key].split = split
    unnamed = [usable[key] for key in ids if usable[key].split is None]
    skipped += [Skipped(study.study_id, study.place, "study", "the split file does not name it") for study in unnamed]

    # Images, labels, writing
    note = {"image_source": "X-rays", "reports": arguments.reports, "limit": arguments.limit, "split_scheme": scheme}
    if as_phantom:
        note["image_source"] = f"stand-ins drawn from human MeSH labels. {phantom.NOTE}"
    plain = [usable[key] for key in ids if usable[key].split]
    sizes = build(plain, arguments.out, settings, note, skipped, LexicalLabeler())
    print(f"{arguments.out}: {sizes}; {len(skipped)} entries left out, see {Path(arguments.out) / 'skipped.csv'}")


if __name__ == "__main__":
    run(main)
