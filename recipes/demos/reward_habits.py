"""What a reward teaches beside its score: how much the reports of MRG-R1's rows find, deny and leave out."""

from collections.abc import Callable, Sequence

import numpy as np

from recipes.demos.ablation_runs import report_file
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
    labels, states = np.asarray(labeler([each.report for each in parsed])), np.asarray(states)
    found, present = (to_binary(each)[:, : len(FINDINGS)] for each in (labels, states))
    denied, absent = (each[:, : len(FINDINGS)] == CheXpertState.NEGATIVE for each in (labels, states))
    abnormal, scores = present.any(1), mccs(labels, states)
    thinks = [row for row, each in enumerate(parsed) if each.think]
    same = None
    if 2 * len(thinks) >= len(parsed):
        thought = to_binary(labeler([parsed[row].think for row in thinks]))[:, : len(FINDINGS)]
        same = float((thought == found[thinks]).all(1).mean())
    return {
        "f1": clinical_efficacy(labels, states, "13")["micro"]["f1"],
        "findings": float(found.sum(1).mean()),
        "negatives": float(denied.sum(1).mean()),
        "negative_recall": float(denied[absent].mean()) if absent.any() else None,
        "silent": float((~found.any(1))[abnormal].mean()) if abnormal.any() else None,
        "mccs": float(scores.mean()),
        "mccs_abnormal": float(scores[abnormal].mean()) if abnormal.any() else None,
        "think": same,
    }


def reward_habits(out: str, seeds: list[int], rows: list[str], truth: Truth, labeler: Callable) -> dict:
    """`studies`, `abnormal` (their number), and `rows`: row -> figure -> `value` (mean over seeds) and `by_seed`.

    Of the reports in folder `out`; the references themselves and the fixed normal report stand last, with one value.
    """
    known, runs = dict.fromkeys(truth.ids), {}
    for row in rows:
        files = [read_predictions(report_file(f"{out}/seed{seed}", row, False), known) for seed in seeds]
        runs[row] = [[texts[study][0] for study in truth.ids] for texts in files]
    runs |= {REFERENCES: [truth.reports], TEMPLATE: [[NORMAL_REPORT] * len(truth.ids)]}
    found = {}
    for row, texts in runs.items():
        own = [report_habits(each, truth.states, labeler) for each in texts]
        by_seed = {figure: [each[figure] for each in own] for figure in HABITS}
        found[row] = {
            figure: {"value": None if None in values else float(np.mean(values)), "by_seed": values}
            for figure, values in by_seed.items()
        }
    abnormal = to_binary(truth.states)[:, : len(FINDINGS)].any(1).sum()
    return {"studies": len(truth.ids), "abnormal": int(abnormal), "rows": found}
