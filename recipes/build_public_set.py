"""Builds a public set of X-rays with reports, as it is given out, in the project's schema.

    python recipes/build_public_set.py --set rexgradient-160k --root ReXGradient-160K --out outputs/data/rexgradient
    python recipes/build_public_set.py --set chexpert-plus --root chexpert_plus --split_scheme rexrank \
        --target impression --out outputs/data/chexpert_plus
    python recipes/build_public_set.py --set padchest-gr --root BIMCV-Padchest-GR --language es \
        --out outputs/data/padchest_gr
    python recipes/build_public_set.py --set rexrank --root images --files ReXRank_IUXray_test.json \
        --out outputs/data/rexrank_iu

`--out` then holds train, validation and test.parquet (those that the set has), build.json (arguments, counts) and
skipped.csv: what was left out, and why. None of the sets may be given on: what is built stays private.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from recipes.build_from_table import argument, show
from recipes.cli import parse, run
from recipes.data import public_sets, sources
from recipes.data.labels import load_labeler
from recipes.data.studies import StudyArguments, build
from recipes.files import InputError

SETS = ("rexgradient-160k", "chexpert-plus", "padchest-gr", "rexrank")


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    marker: ClassVar[str] = "build.json"

    set: Literal[SETS] = field(metadata={"help": "Public set to build."})
    root: str = field(metadata={"help": "Folder with the set's files as they came (rexrank: with its images)."})
    out: str = field(metadata={"help": "Folder to write; an earlier build there is replaced."})
    images: str | None = argument(None, "Folder of the images where they are not below --root.")
    files: list[str] = field(default_factory=list, metadata={"help": "JSON files of ReXrank (with --set rexrank)."})
    split_scheme: Literal[public_sets.SCHEMES] = argument("official", "Split of CheXpert Plus: its own, or ReXrank's.")
    language: Literal[public_sets.LANGUAGES] = argument("en", "Language of PadChest-GR's sentences.")


def main() -> None:
    arguments, study_args = parse(BuildArguments, StudyArguments)
    if (arguments.set == "rexrank") != bool(arguments.files):
        raise InputError("--files names ReXrank's JSON files: --set rexrank needs it, and no other set takes it")
    labeler = load_labeler(study_args.labeler)

    # Studies
    reading = public_sets.Reading(arguments.root, arguments.images)
    if arguments.set == "rexgradient-160k":
        source, studies = sources.REXGRADIENT, public_sets.read_rexgradient(reading)
    elif arguments.set == "chexpert-plus":
        source, studies = sources.CHEXPERT_PLUS, public_sets.read_chexpert_plus(reading, arguments.split_scheme)
    elif arguments.set == "padchest-gr":
        source, studies = sources.PADCHEST_GR, public_sets.read_padchest_gr(reading, arguments.language)
    else:
        source = public_sets.rexrank_source(arguments.files[0])
        studies = public_sets.read_rexrank(reading, arguments.files)
    studies = studies[: study_args.limit] if study_args.limit else studies

    # Priors, images, labels, writing
    settings = study_args.settings(source.name, source.license, labeler.name)
    note = {"set": arguments.set, "root": Path(arguments.root).name, "split_scheme": arguments.split_scheme}
    note |= {"language": arguments.language, "reading": reading.notes}
    sizes = build(studies, arguments.out, settings, note, reading.skipped, labeler, show, study_args.check)
    print(f"{arguments.out}: {sizes}; {len(reading.skipped)} entries left out", flush=True)


if __name__ == "__main__":
    run(main)
