"""What a reward teaches beside its score: how much the reports of MRG-R1's rows find, deny and leave out."""

from collections.abc import Callable, Sequence

import numpy as np

from recipes.demos.ablation_runs import row_reports
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import Part, ratio
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import Truth
from rewards.clinical_efficacy import clinical_efficacy
from rewards.completions import parse_completion
from rewards.findings import FindingReader
from rewards.inputs import cached
from rewards.labels import FINDINGS, NO_FINDING, CheXpertState, to_binary
from rewards.mccs import mccs

REFERENCES = "references"
READER = cached(FindingReader())
NAMED = {  # figures of `habits_part`, as the matrix of rewards titles them
    "findings": "findings named",
    "silent": "silent",
    "recall": "recall of findings",
    "precision": "precision",
    "negative_recall": "recall of negatives",
    "normal": "recall of No Finding",
    "words": "words",
}
HABITS = {
    "f1": "micro F1 13",
    "findings": "findings a report",
    "negatives": "negatives a report",
    "negative_recall": "recall of negatives",
    "silent": "silent",
    "words": "words",
    "distinct": "distinct reports",
    "contradictions": "contradict themselves",
    "mccs": "MCCS",
    "mccs_abnormal": "MCCS of abnormal studies",
    "think": "reasoning = report",
}
MEANING = (
    "Findings: positive or uncertain among the first 13 labels; negatives: findings named as absent; silent: abnormal "
    "studies whose report names no finding; distinct: different texts as a share of the reports; contradict "
    "themselves: reports that both state and deny a finding; reasoning = report: share of the answers with a "
    "reasoning whose reasoning names the same findings as their report (–: fewer than half have one)."
)


def habits_part(reports: Sequence[str], labels: np.ndarray, states: np.ndarray) -> Part:
    """Figures of what n reports name, deny and leave out, each a ratio of sums over reports, for `bootstrap`.

    `labels`: the reports' CheXpert states, `states`: the references', both (n, 14). Of the first 13 labels, where a
    finding is named if it is positive or uncertain: `findings` and `negatives`, their number in a report; `silent`,
    the share of abnormal studies whose report names no finding; `recall` and `precision` of the findings;
    `negative_recall`, the share of the references' negatives that are denied too; `normal`, the share of the
    references with No Finding whose report has it too; and `words` of a report. A ratio to nothing is 0.

    Example:
        >>> from rewards.labelers import LexicalLabeler
        >>> label, reports = LexicalLabeler(), ["Pleural effusion.", "Clear lungs."]
        >>> part = habits_part(reports, label(reports), label(["Pleural effusion.", "Pneumothorax."]))
        >>> float(part.figures(part.statistics.sum(0))["recall"])
        0.5
    """
    labels, states = np.asarray(labels), np.asarray(states)
    predicted, present = (to_binary(values)[:, : len(FINDINGS)] for values in (labels, states))
    denied, absent = (values[:, : len(FINDINGS)] == CheXpertState.NEGATIVE for values in (labels, states))
    normal, truly_normal = (to_binary(values)[:, NO_FINDING] for values in (labels, states))
    found, abnormal, each = (predicted & present).sum(1), present.any(1), np.ones(len(states))
    sums = {
        "findings": (predicted.sum(1), each),
        "negatives": (denied.sum(1), each),
        "silent": (~predicted.any(1) & abnormal, abnormal),
        "recall": (found, present.sum(1)),
        "precision": (found, predicted.sum(1)),
        "negative_recall": ((denied & absent).sum(1), absent.sum(1)),
        "normal": (normal & truly_normal, truly_normal),
        "words": ([len(report.split()) for report in reports], each),
    }
    columns = [np.asarray(column, dtype=np.float64) for pair in sums.values() for column in pair]

    def figures(totals: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio(totals[..., 2 * i], totals[..., 2 * i + 1]) for i, name in enumerate(sums)}

    alone = {name: ratio(np.asarray(above), np.asarray(below)) for name, (above, below) in sums.items()}
    return Part(np.stack(columns, axis=1), figures, alone)


def report_habits(completions: Sequence[str], states: np.ndarray, labeler: Callable) -> dict[str, float | None]:
    """The figures of `HABITS` of n completions against the references' CheXpert states (n, 14).

    The recall of negatives is that of all references' negatives together. None: no abnormal study or no negative, and
    for `think` fewer than half of the completions with a `<think>` text.
    """
    parsed = [parse_completion(completion) for completion in completions]
    reports = [answer.report for answer in parsed]
    labels, states = np.asarray(labeler(reports)), np.asarray(states)
    part = habits_part(reports, labels, states)
    habits = {name: float(value) for name, value in part.figures(part.statistics.sum(0)).items()}
    predicted = to_binary(labels)[:, : len(FINDINGS)]
    abnormal, scores = to_binary(states)[:, : len(FINDINGS)].any(1), mccs(labels, states)
    absent = states[:, : len(FINDINGS)] == CheXpertState.NEGATIVE
    thinks = [row for row, answer in enumerate(parsed) if answer.think]
    same = None
    if 2 * len(thinks) >= len(parsed):
        thought = to_binary(labeler([parsed[row].think for row in thinks]))[:, : len(FINDINGS)]
        same = float((thought == predicted[thinks]).all(1).mean())
    return {
        "f1": clinical_efficacy(labels, states, "13")["micro"]["f1"],
        "findings": habits["findings"],
        "negatives": habits["negatives"],
        "negative_recall": habits["negative_recall"] if absent.any() else None,
        "silent": habits["silent"] if abnormal.any() else None,
        "words": habits["words"],
        "distinct": len(set(reports)) / len(reports),
        "contradictions": float(
            np.mean([any(finding.denied for finding in read.findings) for read in READER(reports)])
        ),
        "mccs": float(scores.mean()),
        "mccs_abnormal": float(scores[abnormal].mean()) if abnormal.any() else None,
        "think": same,
    }


def read_runs(folder: str, seeds: list[int], rows: list[str], truth: Truth) -> dict[str, list[list[str]]]:
    """Row -> per seed -> what it wrote of each of the truth's n studies, from the reports in a system's folder."""
    ids, runs = dict.fromkeys(truth.ids), {}
    for row in rows:
        files = [read_predictions(row_reports(folder, seed, row), ids) for seed in seeds]
        runs[row] = [[texts[study][0] for study in truth.ids] for texts in files]
    return runs


def reward_habits(folder: str, seeds: list[int], rows: list[str], truth: Truth, labeler: Callable) -> dict:
    """`habits_of_runs` of the reports in a system's folder."""
    return habits_of_runs(read_runs(folder, seeds, rows, truth), truth, labeler)


def habits_of_runs(completions: dict[str, list[list[str]]], truth: Truth, labeler: Callable) -> dict:
    """`studies`, `abnormal` (their number), and `rows`: row -> figure -> `value` (mean over seeds) and `by_seed`.

    `completions`: row -> per seed -> the n studies' answers. The references themselves and the fixed normal report
    stand last.
    """
    runs = {**completions, REFERENCES: [truth.reports], TEMPLATE: [[NORMAL_REPORT] * len(truth.ids)]}
    habits = {}
    for row, by_seed in runs.items():
        figures = [report_habits(texts, truth.states, labeler) for texts in by_seed]
        habits[row] = {}
        for name in HABITS:
            values = [run[name] for run in figures]
            habits[row][name] = {"value": None if None in values else float(np.mean(values)), "by_seed": values}
    abnormal = to_binary(truth.states)[:, : len(FINDINGS)].any(1).sum()
    return {"studies": len(truth.ids), "abnormal": int(abnormal), "rows": habits}
