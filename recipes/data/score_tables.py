"""What recipes/evaluate.py prints."""

from rich.console import Console
from rich.table import Table

from rewards.clinical_efficacy import AVERAGES, LABEL_SETS


def print_table(systems: dict[str, dict], labeler_name: str) -> None:
    """One row per system: MCCS, micro-F1 of 14, 13 and 5 labels, 13-label averages, format rate."""
    table = Table(title=f"labeler: {labeler_name}; uncertain counts as positive")
    for title in ("system", "MCCS", "P 14", "R 14", "F1 14", "F1 13", "F1 5", *(f"{a} F1 13" for a in AVERAGES[1:])):
        table.add_column(title, justify="left" if title == "system" else "right")
    for title in ("format", "distinct"):
        table.add_column(title, justify="right")
    for name, figures in systems.items():
        by_set = {size: figures["clinical_efficacy"][f"{size} labels, uncertain as positive"] for size in LABEL_SETS}
        cells = [
            figures["mccs"],
            *by_set["14"]["micro"].values(),
            by_set["13"]["micro"]["f1"],
            by_set["5"]["micro"]["f1"],
        ]
        cells += [by_set["13"][average]["f1"] for average in AVERAGES[1:]] + [figures["format_rate"]]
        table.add_row(name, *(f"{cell:.3f}" for cell in cells), str(figures["distinct_reports"]))
    Console(width=140).print(table)


def print_hall(judge: str, mode: str, rates: dict[str, dict[str, float]]) -> None:
    """One row per system and one for the references, one column per scenario, in per cent."""
    counted = "what the scenario forbids" if mode == "scenario" else "any category"
    columns = next(iter(rates.values()))
    table = Table("hall. %", *columns, title=f"judge: {judge}; counted: {counted}")
    for name, row in rates.items():
        table.add_row(name, *(f"{100 * rate:.1f}" for rate in row.values()))
    Console(width=140).print(table)
