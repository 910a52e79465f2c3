"""The lab's judgement of its rows: every row by the rewards it was trained on and all it was not, in and out of
distribution, with its habits, its cost, and a flag where its own reward rises and others fall, or itself outside.

A gain is a row minus the base on the same studies, a drop is a row on a test set outside minus the same row on the
test split; intervals are 95 %, of a bootstrap that draws studies and, with several, seeds, alike for all rows.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from recipes.demos.ablation_matrix import JUDGES, Resampled, compare, judge_title, make_judges, resample
from recipes.demos.figures import make_check
from recipes.demos.lab_cluster import cluster_failure
from recipes.demos.lab_costs import fronts_of, measure_cost
from recipes.demos.lab_jobs import site_reports
from recipes.demos.lab_plan import BASE, SHUFFLED, TEST, Plan
from recipes.demos.reward_habits import habits_of_runs
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import Truth, read_truth
from recipes.evaluation.scores import as_interval
from recipes.files import InputError
from rewards.table import Reward

OUTSIDERS = ("severity", "radcliq_lite", "radgraph_lexical", "crepe")  # judges of a row that they did not train
NO_CREPE = (
    "CREPE does not judge: there is no model in {}; recipes/convert_crepe.py makes one of the published weights, "
    "recipes/train_crepe.py trains one."
)


class Run(NamedTuple):
    """What a row wrote: `runs`: row -> per seed -> its n answers, of `truth`'s studies."""

    truth: Truth
    runs: dict[str, list[list[str]]]


class Missing(NamedTuple):
    """What is not judged, and why."""

    row: str
    site: str
    sentence: str


def judges_of(
    plan: Plan, rows: Sequence[str], crepe: str, labeler: Callable, references: Sequence[str]
) -> dict[str, Reward]:
    """The rewards that trained a row of `rows` and need no model, those of `JUDGES`, and the outsiders.

    `crepe`: folder of the model of that judge, which is left out where there is none.
    """
    names = dict.fromkeys([*JUDGES, *OUTSIDERS, *(reward for row in rows for reward in plan.rewards_of(row))])
    if not (Path(crepe) / "config.json").is_file():
        names.pop("crepe")
    judges = {}
    for name in names:
        try:
            judges |= make_judges([name], labeler, references, crepe=crepe)
        except InputError:
            if name in JUDGES or name in OUTSIDERS:
                raise
    return judges


def read_sites(folder: str, plan: Plan, labeler: Callable) -> tuple[dict[str, Truth], list[Missing]]:
    """The references of every test set: of the split, and of those outside that were built.

    Raises InputError where there is no `folder`.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is nothing to judge in {folder}: run the lab without --judge_only first")
    truths, missing = {}, []
    dataset = plan.data.dataset.format(folder=folder)
    for site, place in {TEST: dataset, **{name: f"{folder}/{name}" for name in plan.data.outside}}.items():
        if site != TEST and not Path(place).is_dir():
            sentence = read_failures(folder).get(place, f"{place} is not there")
            missing.append(Missing("", site, sentence))
            continue
        truths[site] = read_truth(place, "test", labeler)
    return truths, missing


def read_failures(folder: str) -> dict[str, str]:
    """What a run of the lab could not write -> why, in a sentence."""
    file = Path(folder) / "failures.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def read_runs(
    folder: str, plan: Plan, seeds: list[int], rows: list[str], truths: Mapping[str, Truth]
) -> tuple[list[int], dict[str, Run], list[Missing]]:
    """The seeds that are judged; test set (with `SHUFFLED`) -> `Run` of the rows that have reports of all of them; and
    what is missing.

    Of the seeds those are judged that leave most reports of the test split. Raises InputError where the base has none.
    """
    failures, missing, lost = read_failures(folder), [], {}

    def file_of(row: str, seed: int, site: str) -> Path:
        return Path(site_reports(f"{folder}/seed{seed}", row, site))

    def is_there(row: str, seed: int, site: str = TEST) -> bool:
        file = file_of(row, seed, site)
        return file.is_file() and str(file) not in failures

    judged = choose_seeds({row: [seed for seed in seeds if is_there(row, seed)] for row in rows}, seeds)
    if not judged:
        raise InputError(f"{folder} has no reports of the row {BASE}: run the lab first")
    sites = {}
    for site in [*truths, SHUFFLED]:
        truth = truths[TEST if site == SHUFFLED else site]
        ids, runs = dict.fromkeys(truth.ids), {}
        for row in rows:
            absent = [seed for seed in seeds if not is_there(row, seed, site)]
            if site == TEST:
                lost[row] = absent
            if absent and (site == TEST or absent != lost[row]):  # once is enough
                file = file_of(row, absent[0], site)
                why = failures.get(str(file)) or why_missing(folder, plan, row, absent[0])
                number = f"seed {', '.join(map(str, absent))}: " if len(seeds) > 1 else ""
                missing.append(Missing(row, site, number + why))
            if set(absent) & set(judged):
                continue
            try:
                files = [read_predictions(file_of(row, seed, site), ids) for seed in judged]
            except InputError as error:
                missing.append(Missing(row, site, str(error)))
                continue
            runs[row] = [[texts[study][0] for study in truth.ids] for texts in files]
        if runs:
            sites[site] = Run(truth, runs)
        if site == TEST and BASE not in runs:
            raise InputError(f"the row {BASE} cannot be judged: {missing[0].sentence}")
    return judged, sites, missing


def why_missing(folder: str, plan: Plan, row: str, seed: int) -> str:
    """Why a row has no reports, in a sentence."""
    if files := plan.missing_files(row):
        return f"there is no {files[0]}"
    if time_of := plan.rows[row].time_of:
        return f"it is trained as long as {time_of}, whose time is not known here"
    return cluster_failure(folder, row, seed) or "its reports are not there"


def choose_seeds(seeds_of: Mapping[str, Sequence[int]], seeds: Sequence[int]) -> list[int]:
    """Of `seeds` those of the base with which most reports can be judged: rows that have all of them, times their
    number; of equal ones the fewer seeds with more rows.

    `seeds_of`: row -> seeds that it has reports of.

        >>> choose_seeds({"base": [0, 1], "grpo": [0], "sft": [0, 1]}, [0, 1])
        [0, 1]
    """
    base = [seed for seed in seeds if seed in seeds_of.get(BASE, ())]
    base.sort(key=lambda seed: -sum(seed in row for row in seeds_of.values()))
    choices = [base[:number] for number in range(1, len(base) + 1)]
    size = lambda choice: len(choice) * sum(set(choice) <= set(row) for row in seeds_of.values())  # noqa: E731
    return sorted(max(choices, key=size, default=[]))


def judge_lab(plan: Plan, folder: str, seeds: list[int], rows: list[str], crepe: str, labeler: Callable) -> dict:
    """All figures of a system's rows, as far as their reports are in `folder`, for the page and SYSTEM.json.

    `rows`: row -> `algorithm`, `reward`, `trained` (judges that trained it); `sites`: test set outside -> its title;
    `matrices`: test set -> `compare` with the gains over the base and the pairs of `plan.better`; `drops`: test set
    outside -> `drops`; `looking`: the same of the right images minus those of other studies; `habits`, `flags`,
    `costs`, `fronts` (clinical score -> rows), `checks`, `missing` and `notes`.
    """
    truths, missing = read_sites(folder, plan, labeler)
    judged, sites, absent = read_runs(folder, plan, seeds, rows, truths)
    judges = judges_of(plan, rows, crepe, labeler, sites[TEST].truth.reports)
    trained = {row: plan.rewards_of(row) for row in sites[TEST].runs}
    resampled = {
        site: resample(run.truth, run.runs, judges, labeler, draw=0 if site == SHUFFLED else number)
        for number, (site, run) in enumerate(sites.items())
    }
    pairs = [(row, BASE) for row in trained if row != BASE] + plan.better
    matrices = {
        site: compare(values, trained, judges, pairs) for site, values in resampled.items() if site != SHUFFLED
    }
    costs = measure_cost(folder, plan, judged, trained)
    return {
        "system": plan.system,
        "title": plan.title,
        "data": plan.source,
        "samples": plan.data.samples,
        "seeds": judged,
        "labeler": labeler.name,
        "tau_source": plan.tau_source,
        "rows": {
            row: {"algorithm": plan.rows[row].algorithm, "reward": plan.rows[row].reward, "trained": trained[row]}
            for row in trained
        },
        "sites": {site: part.title for site, part in plan.data.outside.items()},
        "matrices": matrices,
        "drops": {site: drops(resampled[TEST], resampled[site], trained) for site in matrices if site != TEST},
        "looking": drops(resampled[SHUFFLED], resampled[TEST], trained) if SHUFFLED in resampled else {},
        "habits": habits_of_runs(sites[TEST].runs, sites[TEST].truth, labeler),
        "flags": flags(matrices, trained),
        "costs": costs,
        "fronts": fronts_of(matrices[TEST], costs),
        "checks": hypotheses(plan, resampled, matrices),
        "missing": [entry._asdict() for entry in [*missing, *absent]],
        "notes": [] if "crepe" in judges else [NO_CREPE.format(crepe)],
    }


def drops(inside: Resampled, outside: Resampled, rows: Iterable[str]) -> dict[str, dict[str, dict]]:
    """Row -> figure -> `value`, `low`, `high`: outside minus inside; and `change`: that minus the base's, likewise.

    Rows that lack one of the two are left out. Two test sets are drawn independently, their seeds together.
    """
    table: dict[str, dict[str, dict]] = {}
    size = min(inside.studies, outside.studies)
    for row in rows:
        if row in inside.values and row in outside.values:
            table[row] = {}
            for name, values in inside.values[row].items():
                drop = outside.values[row][name] - values
                entry = as_interval(drop, size)
                if BASE in inside.values and BASE in outside.values:
                    base = outside.values[BASE][name] - inside.values[BASE][name]
                    entry["change"] = as_interval(drop - base, size)
                table[row][name] = entry
    return table


def gains_of(matrix: dict) -> dict[str, dict[str, dict]]:
    """Row -> figure -> its gain over the base, of `compare`'s result."""
    return {entry["system"]: entry["figures"] for entry in matrix["differences"] if entry["minus"] == BASE}


def flags(matrices: Mapping[str, dict], trained: Mapping[str, Sequence[str]]) -> list[dict]:
    """The rows of which a trained reward rises above the base while others fall, both beyond their intervals.

    A trained reward that rises on the test split counts on every site, and may itself fall outside: the field's
    warning is of gains at home and losses elsewhere. The others are outsiders. Of each `row`, `site` (of `fallen`),
    `risen` and `fallen`, the names of the judges.
    """
    marks, home = [], gains_of(matrices[TEST])
    for site, matrix in matrices.items():
        for row, gains in gains_of(matrix).items():
            teachers = trained.get(row, ())
            places = (gains, home.get(row, {}))
            risen = [name for name in teachers if any(name in at and at[name]["low"] > 0 for at in places)]
            watched = [*risen, *outsiders_of(matrix, teachers)]
            fallen = [name for name in watched if name in gains and gains[name]["high"] < 0]
            if risen and fallen:
                marks.append({"row": row, "site": site, "risen": risen, "fallen": fallen})
    return marks


def outsiders_of(matrix: dict, teachers: Iterable[str]) -> list[str]:
    """The outsiders among the judges that are none of `teachers`."""
    teachers = set(teachers)
    return [name for name in OUTSIDERS if name in matrix["judges"] and name not in teachers]


def rank_correlation(ranked: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Spearman's rho of `ranked` (k,) with each column of `values` (k, n): (n,); 0 where all of a column are equal.

    >>> rank_correlation([1, 2, 3], np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    array([ 1., -1.])
    """
    first, second = rankdata(ranked), rankdata(values, axis=0)
    first, second = first - first.mean(), second - second.mean(0)
    norm = np.sqrt((first**2).sum() * (second**2).sum(0))
    return np.divide(first @ second, norm, out=np.zeros_like(norm), where=norm > 0)


def hypotheses(plan: Plan, resampled: Mapping[str, Resampled], matrices: Mapping[str, dict]) -> list[dict]:
    """The issue's hypotheses as checks, on what was run: pairs by the judges that trained neither, and whether rewards
    that agree with radiologists rise more out of distribution."""
    checks, matrix = [], matrices[TEST]
    for entry in matrix["differences"]:
        if entry["minus"] != BASE:
            first, second = (plan.rewards_of(entry[side]) for side in ("system", "minus"))
            shared = first if first == second else []  # two algorithms on the same rewards may be judged by these too
            for name in [*shared, *outsiders_of(matrix, {*first, *second})]:
                title = f"{entry['system']} minus {entry['minus']}, {judge_title(name)}, low end"
                checks.append(
                    {**make_check(title, entry["figures"][name]["low"], "> 0"), "gain": entry["figures"][name]}
                )
    outside = [values for site, values in resampled.items() if site not in (TEST, SHUFFLED)]
    rows = {}  # row -> the reward that alone trained it by GRPO
    for row, settings in plan.rows.items():
        terms = [*plan.rewards.get(settings.reward or "", {})]
        is_single = settings.algorithm == "grpo" and not settings.time_of and len(terms) == 1
        if is_single and terms[0] in plan.tau and all({row, BASE} <= set(values.values) for values in outside):
            rows[row] = terms[0]
    if len(rows) < 3 or not outside:
        return checks
    tau = [plan.tau[reward] for reward in rows.values()]

    def gain(row: str, names: Sequence[str]) -> np.ndarray:
        return np.mean(
            [values.values[row][name] - values.values[BASE][name] for values in outside for name in names], axis=0
        )

    by_reward = np.stack([gain(row, [reward]) for row, reward in rows.items()])
    by_others = np.stack([gain(row, outsiders_of(matrix, plan.rewards_of(row))) for row in rows])
    for title, gains in (("its own reward", by_reward), ("outsiders", by_others)):
        entry = as_interval(rank_correlation(tau, gains), min(values.studies for values in outside))
        name = (
            f"a reward's tau and the gain outside of its row by {title}: rank correlation, {len(rows)} rows, low end"
        )
        checks.append({**make_check(name, entry["low"], "> 0"), "gain": entry})
    return checks
