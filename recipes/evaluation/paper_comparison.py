"""Our figures beside the papers': recipes/paper_results.json has every row of their result tables.

A row says where its figures come from: the paper's `own` system, `reproduced` by its authors, `quoted` from another
paper, or `not said`. Figures stand as they are printed, MRG-R1's in per cent.
"""

import json
from functools import lru_cache
from pathlib import Path

from recipes.evaluation.figures import ORIGINAL

PAPERS = ("mrgr1", "lmrrg", "llmrg4")
FILE = Path(__file__).parents[1] / "paper_results.json"
SOURCES = {"openi": "IU X-Ray", "mimic-cxr": "MIMIC-CXR"}  # of the schema's column `source`


@lru_cache(maxsize=1)
def read_results() -> dict:
    """{"papers": {name: title, unit, protocol, figures (column -> ours), contradictions}, "rows": [...]}"""
    return json.loads(FILE.read_text())


def compare_with_papers(metrics: dict, which: str) -> list[dict]:
    """The block `paper` of metrics.json: of each of the papers' figures that we measured, theirs and ours.

    `which`: "paper" for the three systems' own rows, or one of `PAPERS` for all its rows. Rows on other data than ours
    are left out where ours are one of the papers' data sets, and else say in `why_not` that they cannot be compared.
    """
    results, entries = read_results(), []
    data = SOURCES.get(metrics["source"] or "")
    for row in results["rows"]:
        same_data = row["data"] == data or (data == "MIMIC-CXR" and row["data"] == "MIMIC-RG4")
        if (row.get("main") if which == "paper" else row["paper"] == which) and (same_data or data is None):
            paper = results["papers"][row["paper"]]
            for column, value in row["values"].items():
                for figure in paper["figures"].get(column, []):
                    entries += _entry(metrics, row, paper, column, value, figure)
    return entries


def _entry(metrics: dict, row: dict, paper: dict, column: str, value: float, figure: str) -> list[dict]:
    why_not = []
    our_figure = figure
    if figure not in metrics["figures"] and figure.startswith("radcliq-"):
        our_figure = figure.replace("radcliq-", "radcliq_lite-")
        why_not.append("RadCliQ is made of stand-ins for its parts")
    if our_figure not in metrics["figures"]:
        return []
    ours = _of_setting(metrics, row["setting"], our_figure)
    if not ours:
        return []
    if row["data"] != SOURCES.get(metrics["source"] or "") and not (
        row["data"] == "MIMIC-RG4" and metrics["source"] == "mimic-cxr"
    ):
        why_not.append(f"its data are {row['data']}, ours {metrics['source'] or metrics['dataset'] or 'a file'}")
    if figure.startswith("ce/") and not metrics["labeler"].startswith("chexbert"):
        why_not.append(f"its labeler is CheXbert, ours {metrics['labeler']}")
    if figure.startswith("ce/") and row["paper"] == "mrgr1":
        why_not.append("its averaging is not said")
    if figure == "hall" and not str(metrics["protocol"]["hall_judge"]).startswith("discbert"):
        why_not.append(f"its judge is DiscBERT, ours {metrics['protocol']['hall_judge']}")
    entry = {"paper": paper["title"], **{key: row[key] for key in ("table", "row", "data", "setting", "source")}}
    return [
        {
            **entry,
            "column": column.removeprefix(ORIGINAL) + (" (original)" if column.startswith(ORIGINAL) else ""),
            "published": round(value / 100, 6) if paper["unit"] == "per cent" else value,
            "figure": our_figure,
            "ours": ours,
            "comparable": not why_not,
            "why_not": why_not,
            "note": row.get("note"),
        }
    ]


def _of_setting(metrics: dict, setting: str | None, figure: str) -> dict[str, dict]:
    """{system: interval} of the models in the row's scenario; empty where ours has other scenarios only."""
    models = {name: system for name, system in metrics["systems"].items() if system["kind"] == "model"}
    scenarios = metrics["references"]["scenarios"]
    if setting in (None, "mean of four") or set(scenarios) <= {setting}:
        return {name: system["figures"][figure] for name, system in models.items()}
    by_system = {name: system["by_scenario"].get(setting, {}).get("figures", {}) for name, system in models.items()}
    return {name: figures[figure] for name, figures in by_system.items() if figure in figures}
