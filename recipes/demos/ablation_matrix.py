"""What reports earn by rewards that they were trained on and by rewards that they were not, and what they name.

A system is anything with one report of every study from each of several seeds: here the ablation rows of MRG-R1. A
judge is any reward (rewards/table.py, or a dotted path). `measure_matrix` has every system by every judge and by its
habits (`habits_part`), with intervals; a cell says whether the system was trained on the judge.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from recipes.demos.ablation_runs import row_file
from recipes.demos.figures import RESAMPLES, make_check
from recipes.demos.reward_habits import NAMED, REFERENCES, habits_part
from recipes.demos.tables import Table, with_interval
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import Part, bootstrap, draw_counts, means_part
from recipes.evaluation.references import Truth
from recipes.evaluation.scores import as_interval
from recipes.files import InputError
from rewards.completions import parse_completion
from rewards.table import Reward, RewardArguments, make_rewards

JUDGES = {  # rewards that need no weights -> titles; the last three train no row of `PAIRS`
    "mccs": "MCCS",
    "ce_f1": "CE-F1",
    "severity": "severity",
    "radgraph_lexical": "RadGraph (lexical)",
    "rouge": "ROUGE-L",
    "bleu": "BLEU-4",
}
TITLES = {**JUDGES, "radcliq_lite": "RadCliQ (lite)", "crepe": "CREPE", "positive_f1": "positive F1"}
PARTS = {"radcliq_lite": ("radgraph_lexical", "bleu")}  # judges that a reward is made of
PAIRS = (  # rows whose difference is measured, the first minus the second
    ("severity", "mccs"),
    ("severity", "ce_f1"),
    ("severity_format", "mccs_reasoning"),
    ("severity_format", "ce_f1_reasoning"),
)
GOALS = (PAIRS[0], PAIRS[2])  # those on which the severity reward's goal is checked
MATRIX = (
    "The columns up to BLEU-4 are judges: mean rewards of the reports. * marks a judge that the row was trained on. "
    "Beside them, of the first 13 labels: findings named in a report; silent, the abnormal studies whose report names "
    "none; recall and precision of the findings; recall of the references' negatives and of No Finding."
)
DIFFERENCES = "First row minus second, paired by study and seed (95 % interval):"


def rewards_of(row: str) -> list[str]:
    """The rewards that a row of MRG-R1 is trained on: those of its YAML, and what they are made of; SFT has none."""
    rewards = yaml.safe_load(Path(row_file("mrgr1", row)).read_text(encoding="utf-8")).get("rewards", [])
    return [*rewards, *(part for reward in rewards for part in PARTS.get(reward, ()))]


def make_judges(
    names: Iterable[str], labeler: Callable, references: Sequence[str], **settings: str
) -> dict[str, Reward]:
    """The rewards of these names or dotted paths; `references`: the reports that CIDEr takes its frequencies from;
    `settings`: of RewardArguments.

    Raises InputError on one that does not exist or lacks its weights.
    """
    names = list(names)
    try:
        return dict(
            zip(names, make_rewards(RewardArguments(rewards=names, **settings), labeler, references), strict=True)
        )
    except (OSError, ValueError) as error:
        raise InputError(f"a judge cannot be made: {error}") from error


def judge_reports(judges: dict[str, Reward], completions: Sequence[str], references: Sequence[str]) -> Part:
    """What each judge pays for n completions, as means over reports, for `bootstrap`.

    Raises InputError where a judge gives a completion no score.

    Example:
        >>> from rewards import severity_reward
        >>> part = judge_reports({"severity": severity_reward}, ["Effusion.", "Clear."], ["Effusion.", "Clear."])
        >>> part.reports["severity"]
        array([1., 1.])
    """
    values = {name: judge(completions=list(completions), report=list(references)) for name, judge in judges.items()}
    for name, column in values.items():
        if failed := sum(value is None for value in column):
            raise InputError(f"the judge {name} gives {failed} of {len(column)} reports no score")
    return means_part(values)


class Resampled(NamedTuple):
    """Figures of systems on the same studies, resampled together: a difference of two `values` is paired.

    `values`: system -> figure -> (1 + resamples,), the figure itself first; `by_seed`: system -> figure -> a value of
    each seed; `studies`: their number.
    """

    values: dict[str, dict[str, np.ndarray]]
    by_seed: dict[str, dict[str, list[float]]]
    studies: int


def resample(
    truth: Truth, completions: dict[str, list[list[str]]], judges: dict[str, Reward], labeler: Callable, draw: int = 0
) -> Resampled:
    """Every system by every judge and habit; `completions`: system -> per seed -> the n studies' answers.

    The bootstrap draws studies and, with several, seeds; the references and the fixed normal report stand last.
    `draw`: seed of the draws of studies. The draws of seeds are the same for every `truth`, so that a difference
    between two test sets is paired by seed. Raises InputError where two systems have different numbers of seeds.
    """
    numbers = {len(runs) for runs in completions.values()}
    if len(numbers) != 1:
        raise InputError(f"the systems must have as many seeds as each other, not {sorted(numbers)}")
    (seeds,) = numbers
    counts = draw_counts(truth.studies.max() + 1, RESAMPLES, draw)
    seed_counts = draw_counts(seeds, RESAMPLES, 1).astype(float) if seeds > 1 else None
    runs_of = {**completions, REFERENCES: [truth.reports], TEMPLATE: [[NORMAL_REPORT] * len(truth.ids)]}
    resamples: dict[str, dict[str, np.ndarray]] = {}
    by_seed: dict[str, dict[str, list[float]]] = {}
    for system, runs in runs_of.items():
        # A study's reports follow each other in the order of the seeds.
        answers = [run[study] for study in range(len(truth.ids)) for run in runs]
        references = [reference for reference in truth.reports for _ in runs]
        states, studies = (np.repeat(values, len(runs), axis=0) for values in (truth.states, truth.studies))
        texts = [parse_completion(answer).report for answer in answers]
        parts = [judge_reports(judges, answers, references), habits_part(texts, labeler(texts), states)]
        drawn = seed_counts if system in completions else None
        resamples[system], by_seed[system] = {}, {}
        for part in parts:
            resamples[system] |= bootstrap(part, studies, counts, seed_counts=drawn)
            sums = np.stack([part.statistics[seed :: len(runs)].sum(0) for seed in range(len(runs))])
            by_seed[system] |= {name: values.tolist() for name, values in part.figures(sums).items()}
    return Resampled(resamples, by_seed, int(truth.studies.max()) + 1)


def compare(
    resampled: Resampled,
    trained: dict[str, Sequence[str]],
    judges: Iterable[str],
    pairs: Iterable[tuple[str, str]] = (),
) -> dict:
    """`judges` and `habits` (names), `studies`, and `rows`: system -> figure -> `value`, `low`, `high` (95 %),
    `by_seed` and `trained` (whether the figure is one of its rewards in `trained`).

    And `differences` of the `pairs` of systems that there are: `system`, `minus`, `figures`: figure -> `value`,
    `low`, `high`, `by_seed`.
    """
    values, by_seed, size = resampled
    rows = {
        system: {
            name: {
                **as_interval(column, size),
                "by_seed": by_seed[system][name],
                "trained": name in trained.get(system, ()),
            }
            for name, column in figures.items()
        }
        for system, figures in values.items()
    }
    differences = [
        {"system": system, "minus": rival, "figures": {
            name: {
                **as_interval(column - values[rival][name], size),
                "by_seed": [a - b for a, b in zip(by_seed[system][name], by_seed[rival][name], strict=True)],
            }
            for name, column in values[system].items()
        }}
        for system, rival in pairs
        if {system, rival} <= set(values)
    ]  # fmt: skip
    names = {"judges": list(judges), "habits": list(NAMED)}
    return {**names, "studies": size, "rows": rows, "differences": differences}


def measure_matrix(
    truth: Truth,
    completions: dict[str, list[list[str]]],
    trained: dict[str, Sequence[str]],
    judges: dict[str, Reward],
    labeler: Callable,
    pairs: Iterable[tuple[str, str]] = (),
) -> dict:
    """`compare` of `resample`: every system by every judge and habit, with intervals, and differences of `pairs`."""
    return compare(resample(truth, completions, judges, labeler), trained, judges, pairs)


def goal_checks(matrix: dict) -> list[dict]:
    """The goal of the severity reward: more of the findings than MCCS, and at most .02 less of the negatives.

    Both must be shown, by the low end of the difference's interval.
    """
    checks = []
    for entry in matrix["differences"]:
        if (entry["system"], entry["minus"]) in GOALS:
            for figure, bar in (("recall", "> 0"), ("negative_recall", ">= -0.02")):
                name = f"goal: {entry['system']} minus {entry['minus']}, {NAMED[figure]}, low end"
                checks.append(make_check(name, entry["figures"][figure]["low"], bar))
    return checks


def judge_title(name: str) -> str:
    """What a judge, a reward's name or dotted path, is called.

    >>> judge_title("mccs"), judge_title("rewards.radcliq.lexical_words_reward")
    ('MCCS', 'lexical words')
    """
    return TITLES.get(name) or name.rpartition(".")[2].removesuffix("_reward").replace("_", " ")


def titles_of(matrix: dict) -> dict[str, str]:
    """Judge or habit -> its title."""
    return {name: judge_title(name) for name in matrix["judges"]} | {name: NAMED[name] for name in matrix["habits"]}


def matrix_table(matrix: dict, names: dict[str, str], intervals: bool = True) -> Table:
    """Rows by judges and habits; `names`: titles of rows; without `intervals` the values alone."""
    titles = titles_of(matrix)

    def cell(name: str, figure: dict) -> str:
        form = ".1f" if name == "words" else ".3f"
        star = "*" * figure["trained"]
        if not intervals:
            return f"{figure['value']:{form}}{star}"
        text = with_interval(figure["value"], figure["low"], figure["high"], form).replace("\t", f"{star}\t")
        several = len(figure["by_seed"]) > 1
        return text + ("\n" + ", ".join(f"{value:{form}}" for value in figure["by_seed"])) * several

    rows = [
        [names.get(row, row), *(cell(name, figures[name]) for name in titles)]
        for row, figures in matrix["rows"].items()
    ]
    return Table(["row", *titles.values()], rows)


def differences_table(matrix: dict) -> Table:
    """The pairs by judges and habits."""
    titles = titles_of(matrix)

    def cell(name: str, figure: dict) -> str:
        form = "+.1f" if name == "words" else "+.3f"
        text = with_interval(figure["value"], figure["low"], figure["high"], form)
        several = len(figure["by_seed"]) > 1
        return text + ("\n" + ", ".join(f"{value:{form}}" for value in figure["by_seed"])) * several

    pairs = [f"{entry['system']} minus {entry['minus']}" for entry in matrix["differences"]]
    columns = [[cell(name, entry["figures"][name]) for entry in matrix["differences"]] for name in titles]
    rows = [[title, *cells] for title, cells in zip(titles.values(), columns, strict=True)]
    return Table(["figure", *pairs], rows)
