"""The ablations' tables, as Markdown and as one HTML file."""

import re
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from matplotlib.figure import Figure

from recipes.demos.ablation_figures import AGREE, DISAGREE, OPEN
from recipes.demos.ablation_matrix import DIFFERENCES, MATRIX, PAIRS, differences_table, matrix_table
from recipes.demos.ablation_runs import PHANTOM, row_reports
from recipes.demos.page import choose_studies, render
from recipes.demos.reward_habits import HABITS, MEANING, REFERENCES
from recipes.demos.tables import Table, with_interval
from recipes.evaluation.baselines import TEMPLATE
from recipes.evaluation.bootstrap import efficacy_name
from recipes.evaluation.figures import describe
from recipes.evaluation.paper_comparison import read_results
from recipes.evaluation.prediction_files import read_predictions
from recipes.files import InputError, replacing

SAMPLED = (
    *("base", "nlg", "reasoning", "ce_f1", "mccs", "mccs_margin_0", "radcliq_lite", "severity", "severity_format"),
    "mccs_reasoning",
)
DATA = {"mrgr1": "IU X-Ray / MIMIC-CXR", "lmrrg": "MIMIC-CXR", "llmrg4": "MIMIC-RG4"}
HEADLINE = (  # what the Markdown shows; the page has all figures
    efficacy_name("14", "positive", "micro", "f1"),
    efficacy_name("5", "positive", "micro", "f1"),
    efficacy_name("14", "negative", "example", "f1"),
    *("mccs", "bleu-4", "radcliq_lite-v1"),
)
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
COLOURS = {AGREE: "#2a7f4f", DISAGREE: "#b3372f", OPEN: "#777777"}
SPREAD = "Spread of the rewards within a study's four samples, before anything was learned:"


def sample_reports(rows: Dataset, folder: str, seed: int, ran: list[str]) -> list[dict[str, str]]:
    """Of three studies with a finding and one without, by place: the reference and what the rows `SAMPLED` write."""
    return shown_reports(rows, {row: row_reports(folder, seed, row) for row in SAMPLED if row in ran})


def shown_reports(rows: Dataset, files: dict[str, str]) -> list[dict[str, str]]:
    """Of three studies with a finding and one without, by place: the reference and what stands in `files`, by row."""
    ids = dict.fromkeys(rows["study_id"])
    texts = {row: read_predictions(file, ids) for row, file in files.items()}
    return [
        {"reference": rows[i]["report"], **{row: by_study[rows[i]["study_id"]][0] for row, by_study in texts.items()}}
        for i in choose_studies(rows["labels"], abnormal=3, normal=1)
    ]


def explain(results: dict) -> str:
    """What the tables' cells hold."""
    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"Seeds {seeds}; {results['minutes']:.1f} minutes a seed. A cell: our value (95 % interval), with several "
        f"seeds the value of each, the paper's on {DATA[results['system']]}, ours with the images of other studies "
        "(sh.), and whether the difference to the row in bold has the paper's sign. Style: half of it or more is "
        "there with other studies' images too."
    )


def make_tables(results: dict) -> list[tuple[str, str, Table]]:
    """The claims, groups, habits, matrix and spread of the rewards, each with its heading and the sentence before."""
    tables = [("What the paper says", "", _claims_table(results))]
    for group in results["groups"]:
        tables.append(
            (group["title"], f"{group['title']}, {group['studies']} test studies:", _group_table(group, _cell))
        )
    if habits := results["habits"]:
        names = results["groups"][0]["names"]
        tables.append(("What a reward learns alone", *habits_table(habits, names)))
    if matrix := results["matrix"]:
        names = results["groups"][0]["names"]
        tables.append(("Trained on one reward, judged by others", MATRIX, matrix_table(matrix, names)))
        if matrix["differences"]:
            tables.append(("The severity reward beside the paper's", DIFFERENCES, differences_table(matrix)))
    if results["spread"]:
        columns = ["reward", "groups", "standard deviation", "groups without any", "distinct rewards"]
        rows = [
            [row, str(entry["groups"]), f"{entry['std']:.3f}", f"{entry['equal']:.3f}", str(entry["values"])]
            for row, entry in results["spread"].items()
        ]
        tables.append(("What a reward has to go by", SPREAD, Table(columns, rows)))
    return tables


def habits_table(habits: dict, names: dict[str, str]) -> tuple[str, Table]:
    """The sentence before the table of `reward_habits`, and the table; `names`: titles of rows."""
    studies = f"{habits['studies']} test studies, {habits['abnormal']} of them abnormal"
    rows = [[names.get(row, row), *map(_habit, figures.values())] for row, figures in habits["rows"].items()]
    return f"What the rows' reports name and leave out, {studies}. {MEANING}", Table(["row", *HABITS.values()], rows)


def _claims_table(results: dict) -> Table:
    rows = []
    for claim in results["claims"]:
        gain = claim["gain"]
        better = with_interval(gain["value"], gain["low"], gain["high"], "+.3f")
        by_seed = ", ".join(f"{value:+.3f}" for value in gain["by_seed"])
        rows.append([claim["name"], better, by_seed, claim["verdict"] + ", style" * claim["style"]])
    for check in results["other_checks"]:
        holds = "holds" if check["holds"] else "does not hold"
        rows.append([f"{check['name']} ({check['bar']})", f"{check['value']:.3g}", "", holds])
    return Table(["claim", "better minus worse", "by seed", "here"], rows)


def _group_table(group: dict, cell: Callable[[dict], str]) -> Table:
    columns = group["columns"]
    titles = [describe(name)["short"] + ARROWS[describe(name)["better"]] for name in columns]
    first = {row: f"{name}\n{row}" for row, name in group["names"].items()}
    rows = [[first[row], *(cell(figures[name]) for name in columns)] for row, figures in group["rows"].items()]
    rows.append([TEMPLATE, *(f"{group[TEMPLATE][name]:.3f}" for name in columns)])
    rows += [[first[row], "not run", *[""] * (len(columns) - 1)] for row in group["not_run"]]
    return Table(["row", *titles], rows, first[group["full"]])


def _cell(figure: dict) -> str:
    lines = [with_interval(figure["value"], figure["low"], figure["high"])]
    if len(figure["by_seed"]) > 1:
        lines.append(", ".join(f"{value:.3f}" for value in figure["by_seed"]))
    if figure["paper"]:
        lines.append("paper " + " / ".join(f"{value:.3f}" for value in figure["paper"]))
    lines.append(f"sh. {figure['shuffled']:.3f}")
    if figure["paper"] and "verdict" in figure:
        lines.append(figure["verdict"])
    return "\n".join(lines) + "\nstyle" * figure.get("style", False)


def _habit(figure: dict) -> str:
    if figure["value"] is None:
        return "–"
    by_seed = ", ".join(f"{value:.3f}" for value in figure["by_seed"])
    return f"{figure['value']:.3f}" + f"\n{by_seed}" * (len(figure["by_seed"]) > 1)


def write_markdown(file: str | Path, results: dict) -> str:
    """Writes one table of a system's `results` to `file` and returns it.

    On a phantom the headline figures of all groups, beside the paper's; on other data, which the paper has not, what
    judges say of the rows that the severity reward is compared with. `write_page` has every figure, `draw_claims` the
    claims; recipes/RESULTS.md says what a cell holds.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [f"Seeds {seeds}; the paper's figures are those on {DATA[results['system']]}."]
    table = _headline_table(results["groups"])
    if results["data"] != PHANTOM:
        matrix = results["matrix"]
        paired = {"base", REFERENCES, TEMPLATE, *(row for pair in PAIRS for row in pair)}
        rows = {row: figures for row, figures in matrix["rows"].items() if row in paired}
        table = matrix_table(matrix | {"rows": rows}, results["groups"][0]["names"], intervals=False)
        lines = [f"Seeds {seeds}; {matrix['studies']} test studies."]
    text = "\n".join([*lines, "", *table.to_markdown()]) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _headline_table(groups: list[dict]) -> Table:
    """The rows of all groups under the figures of `HEADLINE` that any of them has; a group begins with its title."""
    columns = [name for name in HEADLINE if any(name in group["columns"] for group in groups)]
    titles = [describe(name)["short"] + ARROWS[describe(name)["better"]] for name in columns]
    rows = []
    for group in groups:
        rows.append([f"*{group['title']}, {group['studies']} test studies*", *[""] * len(columns)])
        for row, name in group["names"].items():
            figures = group["rows"].get(row)
            cells = [_headline_cell(figures[name]) if name in figures else "" for name in columns] if figures else []
            title = f"**{name}**" if row == group["full"] else name
            rows.append([title, *(cells or ["not run", *[""] * (len(columns) - 1)])])
        template = group[TEMPLATE]
        rows.append([TEMPLATE, *(f"{template[name]:.3f}" if name in template else "" for name in columns)])
    return Table(["row", *titles], rows)


def _headline_cell(figure: dict) -> str:
    lines = [f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"]
    if figure["paper"]:
        lines.append(" / ".join(f"{value:.3f}" for value in figure["paper"]))
        if figure.get("verdict") in (AGREE, DISAGREE):
            lines.append(figure["verdict"])
    return "\n".join(lines) + "\nstyle" * figure.get("style", False)


def write_page(file: str | Path, results: dict, shown: list[dict[str, str]]) -> None:
    """Writes the self-contained page of a system's `results`; `shown`: see `sample_reports`."""
    paper = read_results()["papers"][results["system"]]["title"]
    values = {"paper": paper, "explanation": explain(results), "tables": make_tables(results), "shown": shown}
    render(file, "ablations.html.jinja", **results, **values)


def draw_claims(systems: dict[str, dict]) -> Figure:
    """The claims of all `systems` (name -> results): better row minus worse with its 95 % interval, a line a claim.

    Green where a claim agrees with the paper, red where it disagrees, grey where it is not significant.
    """
    claims = [(home, claim) for home, results in systems.items() for claim in results["claims"]]
    figure = Figure(figsize=(10, 1 + 0.3 * len(claims)), layout="constrained")
    axes = figure.subplots()
    for place, (_, claim) in enumerate(claims):
        gain, colour = claim["gain"], COLOURS[claim["verdict"]]
        axes.plot([gain["low"], gain["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(gain["value"], place, "o", color=colour)
        axes.plot(gain["by_seed"], [place] * len(gain["by_seed"]), "|", color=colour, markersize=9)
        axes.annotate(f"{gain['value']:+.3f}", (gain["value"], place - 0.22), ha="center", fontsize=7)
    axes.set_yticks(range(len(claims)), [f"{home}: {claim['name']}" for home, claim in claims], fontsize=8)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_ylim(len(claims) - 0.5, -0.8)
    axes.set_xlabel("better row minus worse, 95 % interval; strokes: seeds; RadCliQ with its sign turned", fontsize=9)
    handles = [axes.plot([], [], color=colour, label=verdict)[0] for verdict, colour in COLOURS.items()]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    return figure


def update_results(file: str | Path, system: str, table: str) -> None:
    """Puts `table` between the marks `<!-- SYSTEM table -->` and `<!-- /SYSTEM table -->` of a Markdown file.

    Raises InputError where the file lacks them.
    """
    start, end = f"<!-- {system} table -->", f"<!-- /{system} table -->"
    text = Path(file).read_text(encoding="utf-8")
    if len(re.findall(re.escape(start), text)) != 1 or end not in text.split(start)[1]:
        raise InputError(f"{file} needs {start} and {end}, once each, to say where the table goes")
    before, rest = text.split(start)
    with replacing(file) as temporary:
        temporary.write_text(f"{before}{start}\n{table}{end}{rest.split(end, 1)[1]}", encoding="utf-8")
