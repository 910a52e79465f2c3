"""Which labeler judges a run, and references whose labels come from the same one."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.data.labels import with_labels
from recipes.data.schema import SPLITS, read_split
from recipes.evaluation.prediction_files import USUAL, Reading, read_references, split_id
from recipes.files import InputError
from rewards.labels import CONDITIONS
from rewards.scenarios import SCENARIOS


@dataclass
class Truth:
    """The references of n studies.

    `ids`: distinct; "SCENARIO/ID" where the data set is a folder of scenarios. `states`: (n, 14). `studies`: (n,), the
    study's number, equal for one study under several scenarios. `rows`: the data sets that these came from, by the
    prefix of their ids, or nothing for a file; `places`: prefix and row there of each.
    """

    ids: list[str]
    reports: list[str]
    states: np.ndarray
    scenarios: list[str | None]
    studies: np.ndarray
    rows: dict[str, Dataset] = field(default_factory=dict)
    places: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def select(self, ids: Collection[str]) -> "Truth":
        """The studies of `ids` alone, in this order, numbered anew."""
        rows = [row for row, study in enumerate(self.ids) if study in ids]
        take = lambda values: [values[row] for row in rows] if values else []  # noqa: E731
        studies = np.unique(self.studies[rows], return_inverse=True)[1]
        ids, reports, scenarios = map(take, (self.ids, self.reports, self.scenarios))
        return Truth(ids, reports, self.states[rows], scenarios, studies, self.rows, take(self.places), self.notes)


def number_studies(ids: Sequence[str]) -> np.ndarray:
    """A number for each distinct study, (n,), whatever scenario stands before its id."""
    return np.unique([split_id(study)[1] for study in ids], return_inverse=True)[1]


def scenario_folders(dataset: str) -> dict[str, str]:
    """The data sets in a folder of recipes/build_mimic_rg4.py by "SCENARIO/", or {"": dataset} for any other."""
    folders = {f"{name}/": str(Path(dataset) / name) for name in SCENARIOS if (Path(dataset) / name).is_dir()}
    plain = any((Path(dataset) / f"{split}.parquet").is_file() for split in SPLITS)  # a provenance.parquet is none
    return {"": dataset} if plain or not folders else folders


def read_truth(dataset: str, split: str, labeler: Callable) -> Truth:
    """The references of a built data set, or of a folder of four, one for each scenario.

    Rows of one study with one report, as of `--sample_unit image`, are one reference. Rows without a report are left
    out and counted. Raises InputError on a study with two different reports.
    """
    tables = {}
    for prefix, folder in scenario_folders(dataset).items():
        rows = with_labels(read_split(folder, split, ("report", "study_id"), bare=True), folder, labeler)
        tables[prefix] = rows
    places = [(prefix, row) for prefix, rows in tables.items() for row in range(len(rows))]
    columns = {name: [value for rows in tables.values() for value in rows[name]] for name in ("study_id", "report")}
    blank = [0] * len(CONDITIONS)  # of rows without a report, which are left out below
    states = np.array([labels or blank for rows in tables.values() for labels in rows["labels"]])
    scenarios = [
        value
        for prefix, rows in tables.items()
        for value in (rows["scenario"] if "scenario" in rows.column_names else [prefix[:-1] or None] * len(rows))
    ]
    ids = [prefix + study for (prefix, _), study in zip(places, columns["study_id"], strict=True)]
    first_rows: dict[str, int] = {}
    for row, study in enumerate(ids):
        if columns["report"][first_rows.setdefault(study, row)] != columns["report"][row]:
            raise InputError(f"split {split} of {dataset} has two different reports of study {study!r}")
    ids, reports, scenarios, places = (
        [values[row] for row in first_rows.values()] for values in (ids, columns["report"], scenarios, places)
    )
    truth = Truth(ids, reports, states[list(first_rows.values())], scenarios, number_studies(ids), tables, places)
    if len(first_rows) < len(states):  # a row for each image: its references are one reference
        truth.notes.append(
            f"{len(states)} rows of {dataset} are of {len(first_rows)} studies, each scored against one report"
        )
    with_report = [study for study, report in zip(ids, truth.reports, strict=True) if report and report.strip()]
    if len(with_report) == len(ids):
        return truth
    empty = [study for study, report in zip(ids, truth.reports, strict=True) if not (report and report.strip())]
    if not with_report:
        raise InputError(f"split {split} of {dataset} has no reports")
    truth.notes.append(
        f"{len(empty)} of {len(ids)} studies of {dataset} have no reference report and are left out, "
        f"{empty[0]!r} first"
    )
    return truth.select(set(with_report))


def read_truth_file(file: str, labeler: Callable, reading: Reading = USUAL, beside: bool = False) -> Truth:
    """The references in a file (see recipes/evaluation/prediction_files.py), labelled.

    `beside`: whether the predictions are read from the same file.
    """
    references, notes = read_references(file, reading, beside)
    ids, reports = list(references), list(references.values())
    print(f"labelling {len(ids)} reference reports of {file} with the labeler {labeler.name}", flush=True)
    scenarios = [split_id(study)[0] for study in ids]
    return Truth(ids, reports, np.asarray(labeler(reports)), scenarios, number_studies(ids), notes=notes)


def read_originals(where: str, split: str, truth: Truth, reading: Reading = USUAL) -> list[str]:
    """A second reference for each of the truth's rows, from a file or a data set, by the study's id alone.

    Raises InputError with the number of studies that have none.
    """
    if Path(where).is_file():
        originals = {split_id(study)[1]: text for study, text in read_references(where, reading)[0].items()}
    else:
        rows = read_split(where, split, ("report", "study_id"), bare=True)
        originals = dict(zip(rows["study_id"], rows["report"], strict=True))
    bare = [split_id(study)[1] for study in truth.ids]
    if missing := [study for study in bare if not (originals.get(study) or "").strip()]:
        raise InputError(
            f"--original_references {where} lacks {len(missing)} of {len(bare)} studies, {missing[0]!r} first"
        )
    return [originals[study] for study in bare]
