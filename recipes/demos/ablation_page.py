"""The ablations' tables as Markdown and as one HTML file."""

import re
from pathlib import Path

from datasets import Dataset

from recipes.demos.ablation_figures import AGREE, BLEU, DISAGREE, MCCS, MICRO, RADCLIQ
from recipes.demos.ablation_runs import report_file
from recipes.demos.page import choose_studies
from recipes.demos.reward_habits import HABITS, MEANING
from recipes.evaluation.baselines import TEMPLATE
from recipes.evaluation.bootstrap import efficacy_name
from recipes.evaluation.figures import describe
from recipes.evaluation.paper_comparison import read_results
from recipes.evaluation.prediction_files import read_predictions
from recipes.files import InputError, replacing
from recipes.templates import html_environment

ALONE = ("base", "nlg", "reasoning", "ce_f1", "mccs", "mccs_margin_0", "radcliq_lite", "mccs_reasoning")
DATA = {"mrgr1": "IU X-Ray / MIMIC-CXR", "lmrrg": "MIMIC-CXR", "llmrg4": "MIMIC-RG4"}
F1_5, EXAMPLE_F1 = efficacy_name("5", "positive", "micro", "f1"), efficacy_name("14", "negative", "example", "f1")
HEADLINE = (MICRO, F1_5, EXAMPLE_F1, MCCS, BLEU, RADCLIQ)  # what the Markdown shows; the page has all figures
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def sample_reports(rows: Dataset, out: str, seed: int, ran: list[str]) -> list[dict[str, str]]:
    """Of three studies with a finding and one without, by place: the reference and what the rows of `ALONE` write."""
    known = dict.fromkeys(rows["study_id"])
    files = {row: read_predictions(report_file(f"{out}/seed{seed}", row, False), known) for row in ALONE if row in ran}
    return [
        {"reference": rows[i]["report"], **{row: texts[rows[i]["study_id"]][0] for row, texts in files.items()}}
        for i in choose_studies(rows["labels"], abnormal=3, normal=1)
    ]


def write_markdown(file: str | Path, results: dict) -> str:
    """Writes the headline tables of a system's `results` to `file` and returns them; `write_page` has every figure.

    recipes/RESULTS.md says what a cell holds.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [
        f"Seeds {seeds}; the paper's figures are those on {DATA[results['system']]}.",
        "",
        "| claim | better minus worse | by seed | here |",
        "|---|---|---|---|",
    ]
    for claim in results["claims"]:
        said = claim["verdict"] + ", style" * claim["style"]
        each = ", ".join(f"{value:+.3f}" for value in claim["gain"]["by_seed"])
        lines.append(f"| {claim['name']} | {_signed(claim['gain'])} | {each} | {said} |")
    for check in results["other_checks"]:
        holds = "holds" if check["holds"] else "does not hold"
        lines.append(f"| {check['name']} ({check['bar']}) | {check['value']:.3g} | | {holds} |")
    for group in results["groups"]:
        columns = [figure for figure in group["columns"] if figure in HEADLINE]
        titles = [describe(figure)["short"] + ARROWS[describe(figure)["better"]] for figure in columns]
        lines += [
            "",
            f"{group['title']}, {group['studies']} test studies:",
            "",
            "| row | " + " | ".join(titles) + " |",
        ]
        lines.append("|---" * (len(titles) + 1) + "|")
        for row, figures in group["rows"].items():
            name = group["names"][row].replace("|", "\\|")
            name = f"**{name}**" if row == group["full"] else name
            lines.append("| " + " | ".join([name, *(_cell(figures[figure]) for figure in columns)]) + " |")
        template = (f"{group[TEMPLATE][figure]:.3f}" for figure in columns)
        lines.append("| " + " | ".join([TEMPLATE, *template]) + " |")
        lines += [f"| {group['names'][row]} | not run |" + " |" * (len(titles) - 1) for row in group["not_run"]]
    text = "\n".join(lines) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _signed(each: dict) -> str:
    return f"{each['value']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"


def _cell(each: dict) -> str:
    parts = [f"{each['value']:.3f} ({each['low']:.3f}–{each['high']:.3f})"]
    if each["paper"]:
        parts.append(" / ".join(f"{value:.3f}" for value in each["paper"]))
        if each.get("verdict") in (AGREE, DISAGREE):
            parts.append(each["verdict"])
    return "<br>".join(parts) + "<br>style" * each.get("style", False)


def write_page(file: str | Path, results: dict, shown: list[dict[str, str]]) -> None:
    """Writes the self-contained page of a system's `results`; `shown`: see `sample_reports`."""
    columns = {figure: describe(figure) for group in results["groups"] for figure in group["columns"]}
    page = (
        html_environment(Path(__file__).parent)
        .get_template("ablations.html.jinja")
        .render(
            **results,
            paper=read_results()["papers"][results["system"]]["title"],
            data=DATA[results["system"]],
            template=TEMPLATE,
            titles={name: each["short"] for name, each in columns.items()},
            arrows={name: ARROWS[each["better"]] for name, each in columns.items()},
            habit_titles=HABITS,
            meaning=MEANING,
            shown=shown,
        )
    )
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


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
