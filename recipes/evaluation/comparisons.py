"""What differs between systems on the same studies, and by how much a system's score comes from looking.

`differences`: of each model minus each baseline, each control of its own and each model named before it, in every
headline figure and every one of the papers' protocols: the difference of the corpus's figures with its 95 % interval
and p-value by a bootstrap that draws the same studies for both, and the p-value of Wilcoxon's signed-rank test on the
two reports of each study (a study's samples are averaged; of precision, recall and F1 the values of a single report,
LLM-RG4 section "Metrics"). `p_holm` and `p_wilcoxon_holm` are adjusted over all differences of the file.

`image_reliance`: a model beside its own reports for images exchanged between studies. The drop is what the right
images are worth; its share of the score is what comes from looking, the rest from knowing how reports usually read.
"""

from collections.abc import Sequence

import numpy as np

from recipes.evaluation.bootstrap import add_up, bootstrap_p, holm, interval, ratio, wilcoxon_p
from recipes.evaluation.figures import HEADLINE, SHOWN, describe
from recipes.evaluation.references import Truth
from recipes.evaluation.scores import System, as_interval

ALPHA = 0.05  # LLM-RG4 names no level


def _pairs(systems: Sequence[System]) -> list[tuple[System, System]]:
    models = [system for system in systems if system.kind == "model"]
    pairs = []
    for place, model in enumerate(models):
        others = [system for system in systems if system.kind == "baseline" or system.of == model.name]
        pairs += [(model, opponent) for opponent in [*others, *models[:place]]]
    return pairs


def compare(systems: dict[str, System], truth: Truth) -> list[dict]:
    """The block `differences`; `systems` are those of `measure_systems`, summarised."""
    rows = []
    per_study = {name: _per_study(system, truth) for name, system in systems.items()}
    for system, opponent in _pairs(list(systems.values())):
        for figure in SHOWN:
            if figure in system.values and figure in opponent.values:
                differences = system.values[figure] - opponent.values[figure]
                low, high = interval(differences) if len(truth.ids) > 1 else (None, None)
                reports = [per_study[member.name].get(figure) for member in (system, opponent)]
                rows.append(
                    {
                        "system": system.name,
                        "minus": opponent.name,
                        "figure": figure,
                        "difference": float(differences[0]),
                        "low": low,
                        "high": high,
                        "p_bootstrap": bootstrap_p(differences),
                        "p_wilcoxon": wilcoxon_p(*reports) if reports[0] is not None else None,
                    }
                )
    for name, adjusted in (("p_bootstrap", "p_holm"), ("p_wilcoxon", "p_wilcoxon_holm")):
        for row, value in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[adjusted] = value
    return rows


def too_few_resamples(differences: list[dict], resamples: int) -> list[str]:
    """A sentence where the bootstrap cannot show any difference to be beyond chance, however large, or nothing."""
    needed = round(2 * len(differences) / ALPHA)
    if not differences or resamples >= needed:
        return []
    return [
        f"{len(differences)} differences are tested: adjusted by Holm's method no p-value of {resamples} resamples "
        f"can be below {ALPHA}; give --resamples {needed}, or read Wilcoxon's"
    ]


def _per_study(system: System, truth: Truth) -> dict[str, np.ndarray]:
    """{figure: (rows of the truth,)}: the mean over a row's samples."""
    reports = {name: values for part in system.parts for name, values in part.reports.items() if name in SHOWN}
    numbers = np.bincount(system.rows, minlength=len(truth.ids))
    sums = add_up(np.stack(list(reports.values()), axis=1), system.rows)
    return dict(zip(reports, (sums / numbers[:, None]).T, strict=True))


def image_reliance(systems: dict[str, System], studies: int) -> dict[str, dict]:
    """The block `image_reliance`: of each model with a control, by headline figure, score, shuffled score and drop.

    The drop of a figure where lower is better is turned round, so that above 0 always means that the images help; it
    has no share, for such a figure has no zero to count from.
    """
    result = {}
    for control in systems.values():
        if control.kind == "control":
            system, figures = systems[control.of], {}
            for figure in HEADLINE:
                if figure in system.values and figure in control.values:
                    right, shuffled = system.values[figure], control.values[figure]
                    lower = describe(figure)["better"] == "lower"
                    drop = shuffled - right if lower else right - shuffled
                    figures[figure] = {
                        "score": float(right[0]),
                        "shuffled": float(shuffled[0]),
                        "drop": as_interval(drop, studies),
                        "share": None if lower or right[0] <= 0 else as_interval(ratio(drop, right), studies),
                    }
            result[system.name] = {"control": control.name, "figures": figures}
    return result
