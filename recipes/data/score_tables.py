"""The tables of recipes/evaluate.py: on screen, as Markdown and as LaTeX, each named by its protocol."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as Screen

from recipes.data.error_taxonomy import KINDS
from recipes.data.figures import HEADLINE, PRESETS

ARROWS = {"higher": "↑", "lower": "↓", None: ""}
ALPHA = 0.05  # LLM-RG4 names no level (RG-045)
MARK = "‡"
LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
         "‡": r"$^\ddagger$", "–": "--", "→": r"$\rightarrow$"}  # fmt: skip


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
    found = {}
    for row in metrics["differences"]:
        pair = {row["system"], row["minus"]}
        if first in pair:
            p = row["p_wilcoxon_holm"]
            found[(pair - {first}).pop(), row["figure"]] = p is not None and p < ALPHA
    return found


def _systems_table(metrics: dict, title: str, names: Sequence[str], notes: list[str], scenario: str | None) -> Table:
    marks = significant(metrics) if scenario is None else {}
    rows = []
    for system, each in metrics["systems"].items():
        figures = each["figures"] if scenario is None else each["by_scenario"][scenario]["figures"]
        rows.append([system, *(cell(figures.get(name), MARK * marks.get((system, name), False)) for name in names)])
    columns = ["system", *(_column(metrics, name) for name in names)]
    if any(MARK in text for row in rows for text in row[1:]):
        first = next(name for name, system in metrics["systems"].items() if system["kind"] == "model")
        notes = [*notes, f"{MARK} differs from {first}: p < {ALPHA} by Wilcoxon's signed-rank test, Holm-adjusted"]
    return Table(title, columns, rows, notes)


def _column(metrics: dict, name: str) -> str:
    what = metrics["figures"][name]
    return f"{what['short']} {ARROWS[what['better']]}".strip()


def make_tables(metrics: dict) -> Iterator[Table]:
    """All tables of a metrics.json: the chosen protocols, other figures, scenarios, errors, differences, papers."""
    chosen = PRESETS if metrics["protocol"]["preset"] == "all" else [metrics["protocol"]["preset"]]
    data = f"{metrics['studies']} studies, labeler {metrics['labeler']}"
    shown: set[str] = set()
    for name in chosen:
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
    for scenario, own in scenarios.items():
        yield _systems_table(metrics, f"Scenario {scenario} ({own['studies']} studies)", names, [], scenario)
    if "hall" in metrics["references"]:
        yield _hall_table(metrics)
    yield _errors_table(metrics)
    if metrics["looking"]:
        yield _looking_table(metrics)
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
            *(number(references["hall_by_scenario"][each]) for each in scenarios),
            number(references["hall"]),
        ]
    ]
    for name, system in systems:
        own = [system["by_scenario"].get(each, {}).get("figures", {}).get("hall") for each in scenarios]
        rows.append(
            [
                name,
                *map(cell, own if len(scenarios) > 1 else [system["figures"]["hall"]] * len(scenarios)),
                cell(system["figures"]["hall"]),
            ]
        )
    counted = "what the scenario forbids" if protocol["hall_mode"] == "scenario" else "any category"
    return Table(
        f"hall. ↓, judge: {protocol['hall_judge']}; counted: {counted}", ["system", *scenarios, "all"], rows, []
    )


def _errors_table(metrics: dict) -> Table:
    rows = []
    for name, system in metrics["systems"].items():
        totals = [sum(counts[kind] for counts in system["errors"].values()) for kind in KINDS]
        lengths = system["lengths"]
        rows.append(
            [name, *map(str, totals), str(lengths["empty"]), str(lengths["distinct"]), f"{lengths['mean_words']:.0f}",
             f"{lengths['longest_words']} ({lengths['longest_study']})"]
        )  # fmt: skip
    columns = ["system", *KINDS, "empty", "distinct", "words", "longest (study)"]
    return Table("Errors of 13 findings, and lengths", columns, rows, [])


def _looking_table(metrics: dict) -> Table:
    rows = []
    for system, what in metrics["looking"].items():
        for figure, own in what["figures"].items():
            share = cell(own["share"]) if own["share"] else "none"
            rows.append(
                [
                    system,
                    _column(metrics, figure),
                    number(own["score"]),
                    number(own["shuffled"]),
                    cell(own["drop"]),
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
    """The tables that say most, on screen, each interval below its value, and the notes."""
    console = Console()
    for table in make_tables(metrics):
        if table.title == "Differences":
            continue  # long: in tables.md
        screen = Screen(title=table.title, title_justify="left", caption_justify="left")
        for i, column in enumerate(table.columns):
            screen.add_column(column, justify="left" if i == 0 or table.title == "Beside the papers" else "right")
        for row in table.rows:
            screen.add_row(row[0], *(text.replace(" (", "\n(", 1) for text in row[1:]))
        console.print(screen, markup=False)
        for note in table.notes:
            console.print(note, style="dim", markup=False)
    for note in metrics["notes"]:
        console.print(f"note: {note}", markup=False)


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
