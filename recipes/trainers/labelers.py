"""What the recipes that train a CheXbert or a DiscBERT share: where reports come from, and which are held out."""

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
    elif args.dataset:
        rows = read_split(args.dataset, "train", ("report",))
        texts, sources = rows["report"], sources_of(rows)
    else:
        studies = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
        texts, sources = [study["report"] for study in studies if study["report"]], [OPENI.name]
    if labels is None:
        texts = list(dict.fromkeys(clean_text(text) for text in texts))
        labels = dict(zip(texts, teacher(texts).tolist(), strict=True))
    reports = [text for text in labels if text not in without]
    reports = rng.sample(reports, len(reports))
    size = round(args.held_out * len(reports))
    if not 0 < size < len(reports):
        raise InputError(f"of {len(reports)} distinct reports --held_out {args.held_out} leaves none on one side")
    return Reports(labels, reports[:size], reports[size:], sources)
