"""What a reward teaches beside its score: how much the reports of MRG-R1's rows find, deny and leave out."""

from collections.abc import Callable, Sequence

import numpy as np

from recipes.demos.ablation_runs import row_reports
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import Truth
from rewards.clinical_efficacy import clinical_efficacy
from rewards.completions import parse_completion
from rewards.labels import FINDINGS, CheXpertState, to_binary
from rewards.mccs import mccs

REFERENCES = "references"
HABITS = {
    "f1": "micro F1 13",
    "findings": "findings a report",
    "negatives": "negatives a report",
    "negative_recall": "recall of negatives",
    "silent": "silent",
    "mccs": "MCCS",
    "mccs_abnormal": "MCCS of abnormal studies",
    "think": "reasoning = report",
}
MEANING = (
    "Findings: positive or uncertain among the first 13 labels; negatives: findings named as absent; silent: abnormal "
    "studies whose report names no finding; reasoning = report: share of the answers with a reasoning whose reasoning "
    "names the same findings as their report (–: fewer than half have one)."
)


def report_habits(completions: Sequence[str], states: np.ndarray, labeler: Callable) -> dict[str, float | None]:
    """The figures of `HABITS` of n completions against the references' CheXpert states (n, 14).

    The recall of negatives is that of all references' negatives together. None: no abnormal study or no negative, and
    for `think` fewer than half of the completions with a `<think>` text.
    """
    parsed = [parse_completion(completion) for completion in completions]
    labels, states = np.asarray(labeler([answer.report for answer in parsed])), np.asarray(states)
    predicted, present = (to_binary(values)[:, : len(FINDINGS)] for values in (labels, states))
    denied, absent = (values[:, : len(FINDINGS)] == CheXpertState.NEGATIVE for values in (labels, states))
    abnormal, scores = present.any(1), mccs(labels, states)
    thinks = [row for row, answer in enumerate(parsed) if answer.think]
    same = None
    if 2 * len(thinks) >= len(parsed):
        thought = to_binary(labeler([parsed[row].think for row in thinks]))[:, : len(FINDINGS)]
        same = float((thought == predicted[thinks]).all(1).mean())
    return {
        "f1": clinical_efficacy(labels, states, "13")["micro"]["f1"],
        "findings": float(predicted.sum(1).mean()),
        "negatives": float(denied.sum(1).mean()),
        "negative_recall": float(denied[absent].mean()) if absent.any() else None,
        "silent": float((~predicted.any(1))[abnormal].mean()) if abnormal.any() else None,
        "mccs": float(scores.mean()),
        "mccs_abnormal": float(scores[abnormal].mean()) if abnormal.any() else None,
        "think": same,
    }


def reward_habits(folder: str, seeds: list[int], rows: list[str], truth: Truth, labeler: Callable) -> dict:
    """`studies`, `abnormal` (their number), and `rows`: row -> figure -> `value` (mean over seeds) and `by_seed`.

    Of the reports in a system's folder; the references themselves and the fixed normal report stand last.
    """
    ids, runs = dict.fromkeys(truth.ids), {}
    for row in rows:
        files = [read_predictions(row_reports(folder, seed, row), ids) for seed in seeds]
        runs[row] = [[texts[study][0] for study in truth.ids] for texts in files]
    runs |= {REFERENCES: [truth.reports], TEMPLATE: [[NORMAL_REPORT] * len(truth.ids)]}
    habits = {}
    for row, by_seed in runs.items():
        figures = [report_habits(texts, truth.states, labeler) for texts in by_seed]
        habits[row] = {}
        for name in HABITS:
            values = [run[name] for run in figures]
            habits[row][name] = {"value": None if None in values else float(np.mean(values)), "by_seed": values}
    abnormal = to_binary(truth.states)[:, : len(FINDINGS)].any(1).sum()
    return {"studies": len(truth.ids), "abnormal": int(abnormal), "rows": habits}
