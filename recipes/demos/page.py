"""The demo's page: one HTML file with results, training curves and reports whose findings are coloured."""

import base64
import io
import json
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from recipes.demos.figures import DISTINCT, MCCS, MICRO, Demo, Reports, pooled
from recipes.demos.tables import Table, with_interval
from recipes.evaluation.agreement import PRESENT, WORDS, mark_findings, missed_findings
from recipes.evaluation.baselines import encoded_images
from recipes.files import replacing
from recipes.templates import html_environment
from rewards.completions import parse_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState
from rewards.mccs import mccs

COLOURS = ("#1f5f8b", "#b5651d", "#4a7c3a", "#7a4a8c")


def choose_studies(labels: np.ndarray, abnormal: int = 9, normal: int = 3) -> list[int]:
    """Rows of the studies to show: the first `abnormal` with a finding and the first `normal` without, by place.

    `labels`: CheXpert states (n, 14). No score takes part in the choice.
    """
    has_finding = np.isin(np.asarray(labels)[:, : len(FINDINGS)], PRESENT).any(1)
    return sorted(
        [
            *islice(np.flatnonzero(has_finding).tolist(), abnormal),
            *islice(np.flatnonzero(~has_finding).tolist(), normal),
        ]
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
    return to_svg(figure, key)


def to_svg(figure: Figure, salt: str) -> Markup:
    """The figure inline; `salt` keeps the names within it apart from those of other figures of a page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": salt}):
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
        **{key: row[key] for key in ("study_id", "scenario", "prior_report")},
        "images": [base64.b64encode(image["bytes"]).decode() for image in row["images"]],
        "reference": row["report"],
        "states": {
            WORDS[state]: [FINDINGS[i] for i in range(len(FINDINGS)) if reference[i] == state]
            for state in (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN, CheXpertState.NEGATIVE)
        },
        "reports": reports,
    }


def results_table(demo: Demo, results: dict) -> Table:
    """The figures of every system, and what the best one has more, with intervals."""
    table = results["table"]
    highest = {measure: max(row[measure] for row in table.values()) for measure in (MCCS, MICRO)}
    rows, best = [], set()
    for i, (system, row) in enumerate(table.items()):
        best |= {(i, j) for j, (title, value) in enumerate(row.items(), 1) if highest.get(title) == value}
        cells = [f"{value:.0f}" if title == DISTINCT else f"{value:.3f}" for title, value in row.items()]
        gains = ["–"] * len(highest)
        if system != demo.best:
            entries = (pooled(results["differences"], demo.best, system, measure) for measure in highest)
            gains = [
                with_interval(*(entry[key] for key in ("difference", "low", "high")), "+.3f") for entry in entries
            ]
        rows.append([system, *cells, *gains])
    titles = [title.replace(" ", "\n") for title in table[demo.best]]
    minus = [f"{demo.best} minus this,\n{measure}" for measure in highest]
    return Table(["system", *titles, *minus], rows, demo.best, frozenset(best))


def checks_table(checks: list[dict]) -> Table:
    """Each check with its value and bar."""
    rows = [
        [check["name"], f"{check['value']:.3g}", check["bar"], "yes" if check["holds"] else "no"] for check in checks
    ]
    return Table(["check", "value", "bar", "holds"], rows)


def write_page(
    file: str | Path, system: str, demo: Demo, results: dict, checks: list[dict], reports: Reports, folder: str
) -> None:
    """Writes the self-contained page from `system`.html.jinja.

    `results`: what results.json holds (`data`, `seeds`, `stages` and the figures of `Demo.compare`). The reports are
    those of the first seed; `folder`: of the demo, for the logs of the best system's training.
    """
    rows = encoded_images(reports.rows)
    shown = []
    for i in choose_studies(rows["labels"]):
        completions = {name: reports.completions[name][0][i] for name in (demo.beside, demo.best)}
        shown.append(describe_study(rows[i], completions, results["margin"]))
    logs = {seed: read_history(f"{folder}/seed{seed}/{demo.systems[demo.best]}") for seed in reports.seeds}
    curves = [draw_curve(logs, key, title) for key, title in demo.curves.items()]
    tables = {"results": results_table(demo, results), "checks": checks_table(checks), "tables": demo.tables(results)}
    render(file, f"{system}.html.jinja", **results | tables, curves=[curve for curve in curves if curve], shown=shown)


def render(file: str | Path, template: str, stages: dict[str, float], **values) -> None:
    """Writes a page from a template beside this module; `stages`: seconds, for the table of times at its end."""
    time = Table(["stage", "minutes"], [[name, f"{seconds / 60:.1f}"] for name, seconds in stages.items()])
    page = html_environment(Path(__file__).parent).get_template(template).render(**values, stages=stages, time=time)
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
