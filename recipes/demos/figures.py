"""Figures of the demo: several systems, each trained from several seeds, on the same held-out studies."""

import numpy as np

from recipes.data.labels import read_labelled
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import match_counts, micro_f1, paired_bootstrap
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.scores import score_completions
from recipes.files import InputError
from rewards.completions import parse_completion
from rewards.labels import FINDINGS, to_binary
from rewards.mccs import mccs

SFT, SFT_MORE, GRPO, SHUFFLED = "SFT", "SFT, more steps", "GRPO", "GRPO, shuffled images"
MEASURES = {"MCCS": np.mean, "micro-F1 13": micro_f1}
LABELS = "13 labels, uncertain as positive"


def compare_systems(
    dataset: str, predictions: dict[int, dict[str, str]], labeler, margin: float = 0.2, own: str = GRPO
) -> dict:
    """Scores generated test reports; all values are fractions of 1.

    `predictions`: seed -> system -> JSONL file of recipes/generate.py, one report per study. Returns `systems` (every
    figure of recipes/evaluate.py per seed), `table` (means over the seeds) and `differences`: `own` minus each other
    system in `MEASURES` with 95 % intervals of a paired bootstrap over studies, per seed and pooled, where a study's
    reports from all seeds are drawn together.
    """
    rows = read_labelled(dataset, "test", labeler, ("report", "study_id"))
    reference = np.asarray(rows["labels"])
    known = dict(zip(rows["study_id"], reference, strict=True))
    systems: dict[str, dict[str, dict]] = {}
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for seed, files in predictions.items():
        completions = {TEMPLATE: [NORMAL_REPORT] * len(known)}
        for name, file in files.items():
            texts = read_predictions(file, known)
            if max(map(len, texts.values())) > 1:
                raise InputError(f"{file} has several reports of a study; generate with --views frontal or all")
            completions[name] = [texts[study][0] for study in known]
        systems[str(seed)] = {}
        for name, texts in completions.items():
            systems[str(seed)][name] = score_completions(texts, reference, labeler, margin)
            labels = labeler([parse_completion(text).report for text in texts])
            present = [to_binary(states)[:, : len(FINDINGS)] for states in (labels, reference)]
            found = scores.setdefault(name, {quantity: [] for quantity in MEASURES})
            found["MCCS"].append(mccs(labels, reference, margin))
            found["micro-F1 13"].append(match_counts(*present))

    differences = []
    for other in (name for name in scores if name != own):
        for quantity, statistic in MEASURES.items():
            first, second = (np.stack(scores[name][quantity], axis=-2) for name in (own, other))
            parts = {str(seed): (first[..., [i], :], second[..., [i], :]) for i, seed in enumerate(predictions)}
            for which, pair in {**parts, "pooled": (first, second)}.items():
                difference, low, high = paired_bootstrap(statistic, *pair)
                differences.append(
                    {"minus": other, "measure": quantity, "seed": which}
                    | {"difference": difference, "low": low, "high": high}
                )
    return {
        "labeler": labeler.name,
        "margin": margin,
        "studies": len(known),
        "table": {name: _mean_row([each[name] for each in systems.values()]) for name in scores},
        "differences": differences,
        "systems": systems,
    }


def _mean_row(seeds: list[dict]) -> dict[str, float]:
    rows = []
    for figures in seeds:
        averages = figures["clinical_efficacy"][LABELS]
        rows.append(
            {
                "MCCS": figures["mccs"],
                "micro-F1 13": averages["micro"]["f1"],
                "macro-F1 13": averages["macro"]["f1"],
                "precision 13": averages["micro"]["precision"],
                "recall 13": averages["micro"]["recall"],
                "format": figures["format_rate"],
                "distinct reports": figures["distinct_reports"],
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def pooled(figures: dict, other: str, measure: str) -> dict:
    """The pooled entry of `differences` for the own system minus `other`."""
    wanted = {"minus": other, "measure": measure, "seed": "pooled"}
    return next(entry for entry in figures["differences"] if wanted.items() <= entry.items())


def resource_checks(minutes: float, minutes_bar: float, memory_gb: float) -> list[dict]:
    """The checks of every demo: the minutes of one seed, and the memory of its largest stage in GB (1e9 bytes)."""
    return [
        {
            "name": "wall time of one seed without installation, minutes",
            "value": minutes,
            "bar": f"<= {minutes_bar:g}",
            "holds": minutes <= minutes_bar,
        },
        {"name": "peak memory, GB", "value": memory_gb, "bar": "<= 6", "holds": memory_gb <= 6},
    ]


def make_checks(figures: dict, minutes: float, minutes_bar: float, memory_gb: float) -> list[dict]:
    """What the demo must show, as `recipes.cli.report` takes it; `aim:` marks what is hoped for, not promised."""
    checks = []
    for other, prefix in ((SFT, ""), (SFT_MORE, "aim: "), (SHUFFLED, "")):
        for quantity in MEASURES:
            low = pooled(figures, other, quantity)["low"]
            name = f"{prefix}GRPO minus {other}, {quantity}, low end of the 95 % interval"
            checks.append({"name": name, "value": low, "bar": "> 0", "holds": low > 0})
    compliance = min(systems[GRPO]["format_rate"] for systems in figures["systems"].values())
    checks += [
        {"name": "GRPO, format (lowest seed)", "value": compliance, "bar": ">= 0.95", "holds": compliance >= 0.95},
        *resource_checks(minutes, minutes_bar, memory_gb),
    ]
    return checks
