"""Builds the synthetic phantom: rendered images and template reports in the project's schema.

Synthetic phantom, not medical data. Equal arguments give equal rows, and the first rows do not depend on how many
follow. From the repository's root:

    python recipes/build_phantom.py --out outputs/data/phantom
    python recipes/build_phantom.py --out outputs/data/phantom_rg4 --scenarios sn,sw,mn,mw --n_train 4000
    python recipes/build_phantom.py --out outputs/data/phantom_balanced --balanced   # to warm up a vision tower
    python recipes/build_phantom.py --out outputs/data/phantom_b --site b            # for tests out of distribution
    python recipes/build_phantom.py --contact_sheet recipes/data/contact_sheet.png   # only the picture of all signs

Site b has other patients, signs, films, prevalences and words than site a, and the same findings and labels.
Every argument may stand in a YAML file instead (--config build.yaml); the command line wins.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from recipes.cli import parse, run
from recipes.data.phantom import NOTE, SHAPES, STYLES, earlier, make_study, to_png
from recipes.data.phantom_sites import SITES
from recipes.data.schema import SPLITS, write_dataset
from recipes.data.settings import COUNT, Range
from recipes.data.sources import PHANTOM
from recipes.files import InputError, replacing
from recipes.progress import follow
from rewards.scenarios import SCENARIOS


@dataclass
class BuildArguments:
    """What to build; sizes count studies."""

    marker: ClassVar[str] = "build.json"
    ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("n_train", "n_validation", "n_test"), COUNT),
        "size": Range(64, 1024),
        "abnormal": Range(0, 1),
    }

    site: Literal[(*SITES,)] = field(
        default="a", metadata={"help": "Site of the phantom: a, or b with other pictures, words and prevalences."}
    )
    out: str | None = field(
        default=None, metadata={"help": "Folder of the data set; an earlier build there is replaced."}
    )
    n_train: int = field(default=2000, metadata={"help": "Studies of the train split."})
    n_validation: int = field(default=200, metadata={"help": "Studies of the validation split."})
    n_test: int = field(default=400, metadata={"help": "Studies of the test split."})
    size: int = field(default=112, metadata={"help": "Width of an image in pixels, 64 to 1024."})
    shapes: str = field(
        default="portrait,square,landscape",
        metadata={"help": "Shapes of images, one drawn for each: 1.2, 1.0 or 0.8 times as high as wide."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of all draws."})
    scenarios: str = field(
        default="mn",
        metadata={"help": "Input scenarios, taken in turn: s/m one or two views, n/w without or with a prior report."},
    )
    abnormal: float = field(default=0.4, metadata={"help": "Share of studies with a finding, 0 to 1."})
    balanced: bool = field(
        default=False, metadata={"help": "Draw all findings equally often, not as often as Open-i has them."}
    )
    style: Literal[(*STYLES,)] | None = field(default=None, metadata={"help": "Style of all reports; none: any."})
    contact_sheet: str | None = field(default=None, metadata={"help": "PNG file for a picture of all signs."})


def build_row(split: str, index: int, scenario: str, args: BuildArguments) -> dict:
    """One study as a row of the schema; depends on nothing but its arguments."""
    site, name = SITES[args.site], PHANTOM.name + ("" if args.site == "a" else f"_{args.site}")
    rng = np.random.default_rng((args.seed, SPLITS.index(split), index))
    study = make_study(site.sample_states(rng, args.abnormal, args.balanced), rng)
    prior = earlier(study, rng) if scenario[1] == "w" else None
    shown = ("frontal", "lateral") if scenario[0] == "m" else ("frontal",)
    indication, history = site.write_request(rng)
    findings = site.write_report(study, rng, args.style, prior, len(shown))
    films = np.random.default_rng(
        (args.seed, SPLITS.index(split), index, 1)
    )  # of its own: no other draw depends on it
    shapes = [str(shape) for shape in films.choice(args.shapes.split(","), len(shown))]
    boxes = site.region_boxes(study, deepcopy(rng), args.size, shapes[0])  # of the film that is drawn from `rng` next
    return {
        "study_id": f"{name}-{args.seed}-{split}-{index:06d}",
        "subject_id": f"{name}-{args.seed}-{split}-{index:06d}",
        "images": [
            {"bytes": to_png(site.render(study, view, rng, args.size, shape=shape)), "path": None}
            for view, shape in zip(shown, shapes, strict=True)
        ],
        "views": ["PA", "LATERAL"][: len(shown)],
        "indication": indication,
        "history": history,
        "prior_report": site.write_report(prior, rng, args.style) if prior else None,
        "findings": findings,
        "impression": site.write_impression(study, rng),
        "report": findings,
        "scenario": scenario,
        "labels": list(study.states),
        "boxes": boxes,
        "source": PHANTOM.name,
        "license": PHANTOM.license,
    }


def main() -> None:
    (args,) = parse(BuildArguments)
    scenarios = args.scenarios.split(",")
    sizes = {split: getattr(args, f"n_{split}") for split in SPLITS}
    if args.out is None and args.contact_sheet is None:
        raise InputError("name the folder to write with --out, or a picture with --contact_sheet")
    if unknown := [shape for shape in args.shapes.split(",") if shape not in SHAPES]:
        raise InputError(f"--shapes takes a comma-separated list of {', '.join(SHAPES)}, got {unknown[0]!r}")
    if unknown := [scenario for scenario in scenarios if scenario not in SCENARIOS]:
        raise InputError(f"--scenarios takes a comma-separated list of {', '.join(SCENARIOS)}, got {unknown[0]!r}")

    if args.contact_sheet:
        with replacing(args.contact_sheet) as file:
            file.write_bytes(to_png(SITES[args.site].contact_sheet()))
    if args.out:

        def rows(split: str) -> Iterator[dict]:
            for index in follow(range(sizes[split]), f"{split}: studies"):
                yield build_row(split, index, scenarios[index % len(scenarios)], args)

        build = {"builder": "build_phantom", "labeler": "lexical", "note": NOTE, **vars(args)}
        del build["out"], build["contact_sheet"]  # where it was written says nothing about what it is
        if args.site == "a":
            del build["site"]  # a record without a site is site a's: those of earlier builds have none
        written = write_dataset({split: lambda split=split: rows(split) for split in SPLITS}, args.out, build)
        print(f"{args.out}: {written} (synthetic phantom, not medical data)")


if __name__ == "__main__":
    run(main)
