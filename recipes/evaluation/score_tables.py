"""The tables of recipes/evaluate.py: on screen, as Markdown and as LaTeX, each named by its protocol."""

import re
from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Screen

from recipes.evaluation.comparisons import ALPHA
from recipes.evaluation.error_taxonomy import KINDS
from recipes.evaluation.figures import HEADLINE, PRESETS

ARROWS = {"higher": "↑", "lower": "↓", None: ""}
MARK = "‡"
LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
         "‡": r"$^\ddagger$", "–": "--", "→": r"$\rightarrow$"}  # fmt: skip


_INTERVAL = re.compile(r" \(-?[\d.]+–-?[\d.]+\)")
ROOMY = 7  # columns of a screen's table that have room for intervals
WIDE = 11  # columns of figures that fit side by side


class Table(NamedTuple):
    """A title, the columns' titles, rows of cells, and sentences below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def number(value: float | None) -> str:
    """Three decimals; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def cell(interval: dict | None, mark: str = "") -> str:
    """The value with its interval behind it."""
    if interval is None:
        return ""
    bounds = f" ({number(interval['low'])}–{number(interval['high'])})" if interval["low"] is not None else ""
    return f"{number(interval['value'])}{mark}{bounds}"


def significant(metrics: dict) -> dict[tuple[str, str], bool]:
    """(other system, figure) -> whether the first model differs from it, by Wilcoxon's test, Holm-adjusted."""
    first = next(name for name, system in metrics["systems"].items() if system["kind"] == "model")
    marks = {}
    for row in metrics["differences"]:
        pair = {row["system"], row["minus"]}
        if first in pair:
            p = row["p_wilcoxon_holm"]
            marks[(pair - {first}).pop(), row["figure"]] = p is not None and p < ALPHA
    return marks


def _systems_table(metrics: dict, title: str, names: Sequence[str], notes: list[str], scenario: str | None) -> Table:
    marks = significant(metrics) if scenario is None else {}
    rows = []
    for system, values in metrics["systems"].items():
        figures = values["figures"] if scenario is None else values["by_scenario"][scenario]["figures"]
        rows.append([system, *(cell(figures.get(name), MARK * marks.get((system, name), False)) for name in names)])
    columns = ["system", *(_column(metrics, name) for name in names)]
    if any(MARK in text for row in rows for text in row[1:]):
        first = next(name for name, system in metrics["systems"].items() if system["kind"] == "model")
        notes = [*notes, f"{MARK} differs from {first}: p < {ALPHA} by Wilcoxon's signed-rank test, Holm-adjusted"]
    return Table(title, columns, rows, notes)


def _column(metrics: dict, name: str) -> str:
    about = metrics["figures"][name]
    return f"{about['short']} {ARROWS[about['better']]}".strip()


def make_tables(metrics: dict) -> Iterator[Table]:
    """All tables of a metrics.json: the chosen protocols, other figures, scenarios, errors, differences, papers."""
    presets = PRESETS if metrics["protocol"]["preset"] == "all" else [metrics["protocol"]["preset"]]
    data = f"{metrics['studies']} studies, labeler {metrics['labeler']}"
    shown: set[str] = set()
    for name in presets:
        preset = metrics["protocol"]["presets"][name]
        if preset["figures"]:
            absent = f"Not computed: {', '.join(preset['absent'])}" if preset["absent"] else ""
            title = f"By the protocol of {preset['title']} ({data})"
            yield _systems_table(
                metrics, title, preset["figures"], [preset["why"], *([absent] if absent else [])], None
            )
        shown |= set(preset["figures"])
    others = [name for name in HEADLINE if name in metrics["figures"] and name not in shown]
    if others:
        yield _systems_table(metrics, f"Other figures ({data})", others, [], None)
    scenarios = next(iter(metrics["systems"].values()))["by_scenario"]
    names = ("ce/14/positive/micro/f1", "bleu-1", "bleu-4", "rouge-l", "meteor", "hall")
    names = [name for name in names if name in metrics["figures"]]
    for scenario, block in scenarios.items():
        yield _systems_table(metrics, f"Scenario {scenario} ({block['studies']} studies)", names, [], scenario)
    if "hall" in metrics["references"]:
        yield _hall_table(metrics)
    if any(system["consistency"] for system in metrics["systems"].values()):
        yield _consistency_table(metrics)
    yield _errors_table(metrics)
    if any(system["cost"] for system in metrics["systems"].values()):
        yield _cost_table(metrics)
    if metrics["image_reliance"]:
        yield _image_reliance_table(metrics)
    if metrics["differences"]:
        yield _differences_table(metrics)
    if metrics["paper"]:
        yield _paper_table(metrics)


def _hall_table(metrics: dict) -> Table:
    references, protocol = metrics["references"], metrics["protocol"]
    scenarios = list(references["hall_by_scenario"])
    systems = metrics["systems"].items()
    rows = [
        [
            "references",
            *(number(references["hall_by_scenario"][scenario]) for scenario in scenarios),
            number(references["hall"]),
        ]
    ]
    for name, system in systems:
        rates = [system["by_scenario"].get(scenario, {}).get("figures", {}).get("hall") for scenario in scenarios]
        rows.append(
            [
                name,
                *map(cell, rates if len(scenarios) > 1 else [system["figures"]["hall"]] * len(scenarios)),
                cell(system["figures"]["hall"]),
            ]
        )
    counted = "what the scenario forbids" if protocol["hall_mode"] == "scenario" else "any category"
    return Table(
        f"hall. ↓, judge: {protocol['hall_judge']}; counted: {counted}", ["system", *scenarios, "all"], rows, []
    )


def _consistency_table(metrics: dict) -> Table:
    columns = ["system", "studies", "pairs of scenarios", "same 13 findings ↑", "F1 of the findings ↑"]
    blocks = [(name, system["consistency"]) for name, system in metrics["systems"].items() if system["consistency"]]
    first = blocks[0][1]
    rows = [["references", first["references_agreement"], first["references_f1"]]]
    rows += [[name, block["agreement"], block["f1"]] for name, block in blocks]
    counts = [str(first["studies"]), str(first["pairs"])]
    rows = [[name, *counts, *map(cell, cells)] for name, *cells in rows]
    return Table("One study under several scenarios", columns, rows, ["Not 1 for references that may say more."])


def _errors_table(metrics: dict) -> Table:
    rows = []
    for name, system in metrics["systems"].items():
        totals = [sum(counts[kind] for counts in system["errors"].values()) for kind in KINDS]
        lengths = system["lengths"]
        rows.append(
            [name, *map(str, totals), str(lengths["empty"]), str(lengths["distinct"]), f"{lengths['mean_words']:.0f}",
             f"{lengths['longest_words']} in {lengths['longest_study']}"]
        )  # fmt: skip
    columns = ["system", *KINDS, "empty", "distinct", "words", "longest, words"]
    return Table("Errors of 13 findings, and lengths", columns, rows, [])


def _cost_table(metrics: dict) -> Table:
    rows = [
        [name, scenario, str(cost["samples"]), f"{cost['input_tokens']:.0f}", str(cost["largest_input"]),
         f"{cost['tokens']:.0f}", f"{cost['seconds']:.2f}"]
        for name, system in metrics["systems"].items()
        for scenario, cost in (system["cost"] or {}).items()
    ]  # fmt: skip
    columns = ["system", "scenario", "reports", "input tokens", "at most", "tokens", "seconds"]
    return Table("Cost of a report", columns, rows, ["Means, as recipes/generate.py noted them on its machine."])


def _image_reliance_table(metrics: dict) -> Table:
    rows = []
    for system, control in metrics["image_reliance"].items():
        for figure, row in control["figures"].items():
            share = cell(row["share"]) if row["share"] else "none"
            rows.append(
                [
                    system,
                    _column(metrics, figure),
                    number(row["score"]),
                    number(row["shuffled"]),
                    cell(row["drop"]),
                    share,
                ]
            )
    columns = ["model", "figure", "right images", "other studies' images", "drop", "share of the score"]
    return Table("What comes from looking", columns, rows, ["The drop is above 0 where the right images help."])


def _differences_table(metrics: dict) -> Table:
    rows = []
    for row in metrics["differences"]:
        interval = {"value": row["difference"], "low": row["low"], "high": row["high"]}
        p_values = [_p(row[name]) for name in ("p_bootstrap", "p_holm", "p_wilcoxon", "p_wilcoxon_holm")]
        rows.append([row["system"], row["minus"], _column(metrics, row["figure"]), cell(interval), *p_values])
    columns = ["system", "minus", "figure", "difference", "p bootstrap", "Holm", "p Wilcoxon", "Holm"]
    return Table("Differences", columns, rows, ["Both systems on the same studies; Holm over all rows."])


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _paper_table(metrics: dict) -> Table:
    rows = []
    for row in metrics["paper"]:
        setting = f", {row['setting']}" if row["setting"] else ""
        ours = "; ".join(f"{name} {cell(value)}" for name, value in row["ours"].items())
        place = f"{row['paper']}, {row['table']}: {row['row']} ({row['data']}{setting})"
        rows.append(
            [
                place,
                row["source"],
                _column(metrics, row["figure"]),
                number(row["published"]),
                ours,
                "; ".join(row["why_not"]) or "yes",
            ]
        )
    return Table("Beside the papers", ["row", "whose", "figure", "paper", "ours", "comparable"], rows, [])


def print_tables(metrics: dict) -> None:
    """The tables that say most, on screen, and the notes: intervals where there is room; tables.md has them all."""
    console = Console(width=140)
    for table in make_tables(metrics):
        roomy = len(table.columns) <= ROOMY
        for part in _to_screen(table):
            screen = Screen(title=part.title, title_justify="left")
            for i, column in enumerate(part.columns):
                screen.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
            for row in part.rows:
                cells = (text if roomy else _INTERVAL.sub("", text) for text in row[1:])
                screen.add_row(escape(row[0]), *map(escape, cells))
            console.print(screen)
        for note in part.notes:
            console.print(note, style="dim", markup=False, highlight=False)
        console.print()
    for note in metrics["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)


def _to_screen(table: Table) -> list[Table]:
    """What the screen shows of a table: a wide one in parts, and of long ones what is not the same in every row."""
    if table.title.startswith("Differences"):
        significant_rows = sum(bool(row[5]) and float(row[5].removeprefix("< ")) < ALPHA for row in table.rows)
        summary = f"{significant_rows} of {len(table.rows)} have p < {ALPHA} by the bootstrap, Holm-adjusted"
        return [table._replace(columns=["differences of systems"], rows=[[f"{summary}: see tables.md"]], notes=[])]
    if table.title.startswith("Beside"):
        reasons = dict.fromkeys(reason for row in table.rows for reason in row[-1].split("; ") if reason != "yes")
        rows = [[*row[:-2], _INTERVAL.sub("", row[-2]), "yes" if row[-1] == "yes" else "no"] for row in table.rows]
        return [table._replace(rows=rows, notes=[*table.notes, *(f"Not comparable: {reason}" for reason in reasons)])]
    count = len(table.columns) - 1
    size = ceil(count / ceil(count / WIDE))
    return [
        table._replace(
            title=table.title if start == 0 else "",
            columns=[table.columns[0], *table.columns[1 + start : 1 + start + size]],
            rows=[[row[0], *row[1 + start : 1 + start + size]] for row in table.rows],
        )
        for start in range(0, count, size)
    ]


def write_markdown(metrics: dict) -> str:
    """tables.md."""
    parts = ["# Scores\n"]
    for table in make_tables(metrics):
        head = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
        rows = "\n".join("| " + " | ".join(map(_markdown, row)) + " |" for row in [*head, *table.rows])
        parts.append("\n\n".join([f"## {_markdown(table.title)}", rows, *map(_markdown, table.notes)]) + "\n")
    notes = "".join(f"- {_markdown(note)}\n" for note in metrics["notes"])
    parts.append(
        f"{notes}\nResearch use, not for clinical use.\n" if notes else "Research use, not for clinical use.\n"
    )
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def write_latex(metrics: dict) -> str:
    """tables.tex: tables for a document with no more than the standard packages."""
    parts = ["% written by recipes/evaluate.py\n"]
    for table in make_tables(metrics):
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
        head = " & ".join(map(_latex, table.columns)) + r" \\ \hline"
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        ]
        lines += [r"\hline", head, *rows, r"\hline", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_latex(note)}" for note in table.notes] + [r"\end{table}", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text).replace("\n", " ")
