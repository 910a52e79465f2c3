"""What the recipes that train a CheXbert, a DiscBERT or a CREPE share: where reports come from, which are held out."""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from recipes.data.openi import read_studies, text_columns
from recipes.data.privacy import UNKNOWN, WHY_PUBLIC
from recipes.data.schema import read_split
from recipes.data.sources import OPENI
from recipes.files import InputError
from recipes.hub.push import sources_of
from rewards.chexbert import clean_text


@dataclass
class LabelerArguments:
    """What a labeler learns from, and what it starts from."""

    dataset: str | None = field(
        default=None, metadata={"help": "Built data set whose reports are read; none: Open-i's reports."}
    )
    model: str | None = field(
        default=None, metadata={"help": "BERT to start from, a folder or a Hub id; none: a tiny, random one."}
    )
    held_out: float = field(
        default=0.2, metadata={"help": "Fraction of the distinct reports that is held out for evaluation."}
    )
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


class Reports(NamedTuple):
    """Distinct, cleaned reports: the states of each by the teacher, and which of them are for what."""

    labels: dict[str, list[int]]
    held_out: list[str]
    training: list[str]
    sources: list[str]

    def labels_of(self, texts: list[str]) -> list[list[int]]:
        """The teacher's states of reports."""
        return [self.labels[text] for text in texts]


def read_texts(args: LabelerArguments) -> tuple[list[str], list[str]]:
    """Distinct, cleaned reports, those of `args.dataset` or Open-i, and their sources."""
    if args.dataset:
        rows = read_split(args.dataset, "train", ("report",))
        texts, sources = rows["report"], sources_of(rows)
    else:
        studies = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
        texts, sources = [study["report"] for study in studies if study["report"]], [OPENI.name]
    return list(dict.fromkeys(clean_text(text) for text in texts)), sources


def hold_out(reports: list[str], fraction: float, rng: random.Random) -> tuple[list[str], list[str]]:
    """The reports in a random order: `fraction` of them, which are held out, and the others.

    Raises InputError where either would be empty.
    """
    reports = rng.sample(reports, len(reports))
    size = round(fraction * len(reports))
    if not 0 < size < len(reports):
        raise InputError(f"of {len(reports)} distinct reports --held_out {fraction} leaves none on one side")
    return reports[:size], reports[size:]


def read_reports(
    args: LabelerArguments,
    teacher: Callable,
    rng: random.Random,
    labels: dict[str, list[int]] | None = None,
    without: Collection[str] = (),
) -> Reports:
    """Reports in a random order, `args.held_out` of which are held out.

    They are those of `labels`, read from a file, of which nobody knows the source, or those of `args.dataset` or
    Open-i, labelled by `teacher`: n texts to states (n, conditions). `without`: reports that are left out. Raises
    InputError where a side would be empty.
    """
    if labels is not None:
        sources = [UNKNOWN]
    else:
        texts, sources = read_texts(args)
        labels = dict(zip(texts, teacher(texts).tolist(), strict=True))
    held_out, training = hold_out([text for text in labels if text not in without], args.held_out, rng)
    return Reports(labels, held_out, training, sources)
