"""What every demo is made of: its plan of jobs, and the figures of its systems on the same held-out studies."""

import json
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.data.labels import read_labelled
from recipes.demos.plans import Levels, make_job, report_file, write_reports
from recipes.demos.stages import Job
from recipes.demos.tables import Table
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import Part, bootstrap, draw_counts, efficacy_name, efficacy_part, means_part
from recipes.evaluation.inputs import SHUFFLED
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.scores import as_interval
from recipes.files import InputError
from rewards.completions import parse_completion
from rewards.mccs import mccs

RESAMPLES = 2000
MARGIN = 0.2
MCCS, MICRO = "MCCS", "micro-F1 13"
DISTINCT = "distinct reports"
COLUMNS = {  # of the table of every demo: the figures of metrics.json
    MCCS: "mccs",
    MICRO: efficacy_name("13", "positive", "micro", "f1"),
    "macro-F1 13": efficacy_name("13", "positive", "macro", "f1"),
    "precision 13": efficacy_name("13", "positive", "micro", "precision"),
    "recall 13": efficacy_name("13", "positive", "micro", "recall"),
    "format": "format_rate",
    DISTINCT: DISTINCT,
}
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass
class Reports:
    """Generated reports of the test split of `dataset`, n studies.

    `rows`: the split, labelled; `states`: its CheXpert states (n, 14). One entry per seed have `metrics`, what
    recipes/evaluate.py wrote, and of each system `completions` (n), `texts` (their reports) and `labels` (n, 14).
    """

    dataset: str
    rows: Dataset
    labeler: Callable
    seeds: list[int]
    completions: dict[str, list[list[str]]]
    metrics: list[dict]

    def __post_init__(self) -> None:
        self.states = np.asarray(self.rows["labels"])
        self.texts = {
            system: [[parse_completion(text).report for text in run] for run in runs]
            for system, runs in self.completions.items()
        }
        self.labels = {system: [np.asarray(self.labeler(run)) for run in runs] for system, runs in self.texts.items()}

    def mean(self, system: str, figure: str, scenario: str | None = None) -> float:
        """A figure of metrics.json, mean over the seeds; `scenario`: on its studies alone."""
        values = []
        for metrics in self.metrics:
            entry = metrics["systems"][system]
            if figure == DISTINCT:
                values.append(entry["lengths"]["distinct"])
            else:
                part = entry["by_scenario"][scenario] if scenario else entry
                values.append(part["figures"][figure]["value"])
        return float(np.mean(values))

    def parts(self, measure: Callable[[list[str], np.ndarray], Part]) -> dict[str, Part]:
        """System -> `measure(texts, labels)` of the reports of all seeds, seed by seed."""
        return {
            system: measure([text for texts in by_seed for text in texts], np.concatenate(self.labels[system]))
            for system, by_seed in self.texts.items()
        }


class Demo:
    """What the demo of a system runs, measures and shows; each is a subclass."""

    data: str  # words of the command that makes the data set
    balanced: str  # and of that which makes the studies of the warm-up
    systems: dict[str, str]  # name -> folder of its model under that of a seed
    best: str  # the system that the others are compared with
    beside: str  # the system whose reports are shown beside its
    shuffled: str  # name of its control, which gets the images of other studies
    generate: str  # words of the command that writes reports
    curves: dict[str, str]  # figures of the log of its training, and their titles
    minutes: float  # what one seed may take
    memory_gb: float = 6  # and all processes together, 1e9 bytes
    columns = COLUMNS
    on_screen: str | None = None  # which of `tables` the terminal shows; None: the results

    def train(self, folder: str, seeds: list[int]) -> Levels:
        """The levels of the plan between data and reports."""
        raise NotImplementedError

    def measure(self, reports: Reports) -> dict:
        """Figures of this demo alone."""
        return {}

    def check(self, figures: dict) -> list[dict]:
        """What the demo must show; `aim:` before a name marks what is hoped for, not promised."""
        raise NotImplementedError

    def tables(self, figures: dict) -> dict[str, Table]:
        """For the page, beside the results."""
        return {}

    def files(self, folder: str, seed: int) -> dict[str, str]:
        """System -> JSONL file of its reports."""
        models = {system: f"{folder}/seed{seed}/{name}" for system, name in self.systems.items()}
        files = {system: report_file(model) for system, model in models.items()}
        return {**files, self.shuffled: report_file(models[self.best], shuffled=True)}

    def scores(self, folder: str, seeds: list[int]) -> dict[int, str]:
        """Seed -> folder of recipes/evaluate.py; that of the first seed stands beside its data."""
        return {seed: f"{folder}/{'' if seed == seeds[0] else f'seed{seed}/'}scores" for seed in seeds}

    def plan(self, folder: str, seeds: list[int]) -> Levels:
        """All jobs. A level's commands may depend on what the levels before it wrote.

        Where the trainings of a level are odd in number, and the last would leave a core idle, the reports of models
        that are trained already are written beside it.
        """
        data = f"{folder}/data"
        yield [make_job("data", data, self.data), make_job("balanced data", f"{folder}/balanced", self.balanced)]
        waiting = [
            write_reports(
                f"seed {seed}: reports of {system}",
                file,
                self.generate,
                f"{folder}/seed{seed}/{self.systems.get(system, self.systems[self.best])}",
                data,
                shuffled=system == self.shuffled,
            )
            for seed in seeds
            for system, file in self.files(folder, seed).items()
        ]
        models: set[str] = set()
        for jobs in self.train(folder, seeds):
            ready = [job for job in waiting if len(jobs) % 2 and models & set(job.command)]
            yield [*jobs, *ready]
            waiting = [job for job in waiting if job not in ready]
            models |= {job.out for job in jobs}
        yield waiting
        yield self.score_jobs(folder, seeds)

    def score_jobs(self, folder: str, seeds: list[int]) -> list[Job]:
        """The jobs in which recipes/evaluate.py scores each seed's reports."""
        jobs = []
        for seed, out in self.scores(folder, seeds).items():
            files = self.files(folder, seed)
            control = files.pop(self.shuffled)
            pairs = [f"{system}={file}" for system, file in files.items()]
            command = ["recipes/evaluate.py", "--dataset", f"{folder}/data", "--meteor", "no", "--predictions", *pairs]
            command += ["--shuffled", f"{self.best}={control}", "--out", out]
            jobs.append(Job(f"seed {seed}: scores and report page", out, command))
        return jobs

    def read(self, folder: str, seeds: list[int], labeler: Callable) -> Reports:
        """The reports that the plan's jobs wrote, with their scores."""
        rows = read_labelled(f"{folder}/data", "test", labeler)
        ids = dict.fromkeys(rows["study_id"])
        completions, metrics = {TEMPLATE: [[NORMAL_REPORT] * len(ids)] * len(seeds)}, []
        for seed in seeds:
            for system, file in self.files(folder, seed).items():
                texts = read_predictions(file, ids)
                if max(map(len, texts.values())) > 1:
                    raise InputError(f"{file} has several reports of a study; generate with --views frontal or all")
                completions.setdefault(system, []).append([texts[study][0] for study in ids])
        for scores in self.scores(folder, seeds).values():
            metrics.append(json.loads((Path(scores) / "metrics.json").read_text()))
            metrics[-1]["systems"][self.shuffled] = metrics[-1]["systems"][self.best + SHUFFLED]
        return Reports(f"{folder}/data", rows, labeler, seeds, completions, metrics)

    def compare(self, reports: Reports) -> dict:
        """All figures: fractions of 1.

        `table`: system -> `columns`, means over the seeds. `differences`: `best` minus each other system in MCCS and
        micro-F1, see `differences`. And those of `measure`.
        """
        states = np.tile(reports.states, (len(reports.seeds), 1))
        measures = {
            MCCS: reports.parts(lambda _, labels: means_part({COLUMNS[MCCS]: mccs(labels, states, MARGIN)})),
            MICRO: reports.parts(lambda _, labels: efficacy_part(labels, states)),
        }
        pairs = [(self.best, system) for system in reports.texts if system != self.best]
        return {
            "labeler": reports.labeler.name,
            "margin": MARGIN,
            "studies": len(reports.rows),
            "table": {
                system: {title: reports.mean(system, name) for title, name in self.columns.items()}
                for system in reports.texts
            },
            "differences": differences(measures, pairs, reports.seeds),
            **self.measure(reports),
        }

    def check_all(self, figures: dict, minutes: float, memory_gb: float) -> list[dict]:
        """The checks of `check`, that of the minutes of one seed, and that of the memory in GB (1e9 bytes)."""
        return [
            *self.check(figures),
            make_check("wall time of one seed without installation, minutes", minutes, f"<= {self.minutes:g}"),
            make_check("peak memory, GB", memory_gb, f"<= {self.memory_gb:g}"),
        ]


def differences(
    measures: dict[str, dict[str, Part]], pairs: Iterable[tuple[str, str]], seeds: list[int]
) -> list[dict]:
    """First system minus second in each measure, with 95 % intervals of a paired bootstrap over studies.

    `measures`: title -> system -> part of the reports of all seeds, seed by seed; its figure has the
    name that `COLUMNS` gives to the title, or the title. Per seed and pooled, where a study's reports from all seeds
    are drawn together: `system`, `minus`, `measure`, `seed`, `difference`, `low`, `high`.
    """
    size = len(next(iter(next(iter(measures.values())).values())).statistics) // len(seeds)
    studies, counts = np.tile(np.arange(size), len(seeds)), draw_counts(size, RESAMPLES)
    runs = {str(seed): slice(i * size, (i + 1) * size) for i, seed in enumerate(seeds)} | {"pooled": slice(None)}

    @cache
    def resampled(measure: str, system: str, run: str) -> np.ndarray:
        part, rows = measures[measure][system], runs[run]
        name = COLUMNS.get(measure, measure)
        return bootstrap(part._replace(statistics=part.statistics[rows]), studies[rows], counts, [name])[name]

    entries = []
    for system, rival in pairs:
        for measure in measures:
            for run in runs:
                gain = as_interval(resampled(measure, system, run) - resampled(measure, rival, run), size)
                entry = {"system": system, "minus": rival, "measure": measure, "seed": run}
                entries.append({**entry, "difference": gain["value"], "low": gain["low"], "high": gain["high"]})
    return entries


def pooled(entries: list[dict], system: str, rival: str, measure: str) -> dict:
    """The pooled entry of `differences` for two systems."""
    key = {"system": system, "minus": rival, "measure": measure, "seed": "pooled"}
    return next(entry for entry in entries if key.items() <= entry.items())


def make_check(name: str, value: float, bar: str) -> dict:
    """A check as `recipes.cli.report` takes it; `bar` says what holds, such as ">= 0.95"."""
    symbol, limit = bar.split()
    return {"name": name, "value": value, "bar": bar, "holds": bool(OPERATORS[symbol](value, float(limit)))}


def check_difference(entries: list[dict], system: str, rival: str, measure: str, bar: str, prefix: str = "") -> dict:
    """The check that the whole interval of a pooled difference lies above or below a bar."""
    end = "high" if bar.startswith("<") else "low"
    name = f"{prefix}{system} minus {rival}, {measure}, {end} end of the 95 % interval"
    return make_check(name, pooled(entries, system, rival, measure)[end], bar)
