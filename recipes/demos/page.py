"""The demo's page: one HTML file with results, training curves and reports whose findings are coloured."""

import base64
import io
import json
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from datasets import Dataset, Image, List
from markupsafe import Markup
from matplotlib.figure import Figure

from recipes.demos.figures import GRPO, MEASURES, SFT, pooled
from recipes.evaluation.agreement import PRESENT, WORDS, mark_findings, missed_findings
from recipes.evaluation.prediction_files import read_predictions
from recipes.files import replacing
from recipes.templates import html_environment
from rewards.completions import parse_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState
from rewards.mccs import mccs

CURVES = {
    "reward": "Reward",
    "rewards/mccs_reward/mean": "MCCS",
    "rewards/format_reward/mean": "Format",
    "kl": "KL to the SFT model",
}
COLOURS = ("#1f5f8b", "#b5651d", "#4a7c3a", "#7a4a8c")


def choose_studies(labels: np.ndarray, abnormal: int = 9, normal: int = 3) -> list[int]:
    """Rows of the studies to show: the first `abnormal` with a finding and the first `normal` without, by place.

    `labels`: CheXpert states (n, 14). No score takes part in the choice.
    """
    found = np.isin(np.asarray(labels)[:, : len(FINDINGS)], PRESENT).any(1)
    return sorted(
        [*islice(np.flatnonzero(found).tolist(), abnormal), *islice(np.flatnonzero(~found).tolist(), normal)]
    )


def draw_curve(histories: dict[int, list[dict]], key: str, title: str) -> Markup | None:
    """An inline SVG of one logged figure over the training steps, a line per seed: faint as logged, bold the mean of
    the last ten steps. None where no history has the figure."""
    figure = Figure(figsize=(3.3, 2.2), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for (seed, history), colour in zip(histories.items(), COLOURS * len(histories), strict=False):
        points = [(entry["step"], float(entry[key])) for entry in history if key in entry]
        if points:
            steps, values = np.array(points).T
            recent = [values[max(0, i - 9) : i + 1].mean() for i in range(len(values))]
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, recent, color=colour, linewidth=1.8, label=f"seed {seed}")
            drawn = True
    if not drawn:
        return None
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8, colors="#555555", length=2)
    axes.set_xlabel("step", fontsize=8, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    if len(histories) > 1:
        axes.legend(fontsize=7, frameon=False)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": key}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])


def read_history(folder: str | Path) -> list[dict]:
    """The entries that a trainer logged, from `folder`/trainer_state.json."""
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


def describe_study(row: dict, completions: dict[str, str], margin: float) -> dict:
    """What the template shows of one study; `row` is of the schema with encoded images."""
    labeler, reference = LexicalLabeler(), row["labels"]
    reports = []
    for name, completion in completions.items():
        parsed = parse_completion(completion)
        mentions = labeler.mentions(parsed.report)
        reports.append(
            {
                "name": name,
                "think": parsed.think,
                "html": mark_findings(parsed.report, mentions, reference),
                "missed": missed_findings(mentions, reference),
                "mccs": float(mccs(labeler([parsed.report])[0], reference, margin)),
            }
        )
    return {
        "study_id": row["study_id"],
        "scenario": row["scenario"],
        "prior_report": row["prior_report"],
        "images": [base64.b64encode(image["bytes"]).decode() for image in row["images"]],
        "reference": row["report"],
        "states": {
            WORDS[state]: [FINDINGS[i] for i in range(len(FINDINGS)) if reference[i] == state]
            for state in (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN, CheXpertState.NEGATIVE)
        },
        "reports": reports,
    }


def write_page(
    file: str | Path,
    results: dict,
    checks: list[dict],
    rows: Dataset,
    predictions: dict[str, str],
    histories: dict[int, list[dict]],
    template: str = "demo_page.html.jinja",
    own: str = GRPO,
    beside: str = SFT,
    curves: dict[str, str] = CURVES,
) -> None:
    """Writes the self-contained page.

    `results`: what results.json holds (`data`, `seeds`, `stages` and the figures of `compare_systems`). `rows`: the
    test split with the labels of the same labeler. `predictions`: system -> JSONL file of the seed whose reports are
    shown, those of the systems `beside` and `own`. `histories`: seed -> log of its run, of which `curves` are drawn.
    """
    encoded = rows.cast_column("images", List(Image(decode=False)))
    known = dict.fromkeys(encoded["study_id"])
    texts = {name: read_predictions(predictions[name], known) for name in (beside, own)}
    studies = []
    for i in choose_studies(encoded["labels"]):
        row = encoded[i]
        completions = {name: texts[name][row["study_id"]][0] for name in texts}
        studies.append(describe_study(row, completions, results["margin"]))
    margins = {
        other: {measure: pooled(results, other, measure) for measure in MEASURES}
        for other in results["table"]
        if other != own
    }
    drawn = [draw_curve(histories, key, title) for key, title in curves.items()]
    page = (
        html_environment(Path(__file__).parent)
        .get_template(template)
        .render(
            **results,
            own=own,
            checks=checks,
            margins=margins,
            curves=[curve for curve in drawn if curve],
            shown=studies,
            best={measure: max(row[measure] for row in results["table"].values()) for measure in MEASURES},
        )
    )
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
