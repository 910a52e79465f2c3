"""The ablations' tables, as Markdown and as one HTML file."""

import re
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from recipes.demos.ablation_figures import AGREE, DISAGREE
from recipes.demos.ablation_matrix import DIFFERENCES, GOALS, MATRIX, PAIRS, differences_table, matrix_table
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
    """Writes the claims, the headline figures and the paired rewards of a system's `results` to `file`; returns them.

    `write_page` has every figure; recipes/RESULTS.md says what a cell holds.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    on_phantom, lines = results["data"] == PHANTOM, [f"Seeds {seeds}."]
    if on_phantom:
        lines = [f"Seeds {seeds}; the paper's figures are those on {DATA[results['system']]}."]
    lines += ["", *_claims_table(results).to_markdown()]
    for group in results["groups"] * on_phantom:  # with other images than the paper's
        columns = [name for name in group["columns"] if name in HEADLINE]
        table = _group_table(group | {"columns": columns}, _headline_cell)
        lines += ["", f"{group['title']}, {group['studies']} test studies:", "", *table.to_markdown()]
    if matrix := results["matrix"]:
        paired = {"base", REFERENCES, TEMPLATE, *(row for pair in PAIRS for row in pair)}
        rows = {row: figures for row, figures in matrix["rows"].items() if row in paired}
        table = matrix_table(matrix | {"rows": rows}, results["groups"][0]["names"], intervals=False)
        lines += ["", f"Trained on one reward, judged by others, {matrix['studies']} test studies:", ""]
        lines += table.to_markdown()
        goals = [entry for entry in matrix["differences"] if (entry["system"], entry["minus"]) in GOALS]
        if goals:
            table = differences_table(matrix | {"differences": goals}, by_seed=False)
            lines += ["", DIFFERENCES, "", *table.to_markdown()]
    text = "\n".join(lines) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


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
