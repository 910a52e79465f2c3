"""What a data set holds, in numbers, plots and one HTML page: LLM-RG4's Table 1, lengths, labels and views."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from recipes.files import replacing
from recipes.templates import html_environment
from rewards.labels import CONDITIONS, CheXpertState
from rewards.scenarios import CATEGORIES, COLUMNS, FORBIDDEN, SCENARIOS

# LLM-RG4, Table 1: percentage of reports of the setting sn that hold each category, as judged by its DiscBERT.
PAPER = [
    dict(zip(("data", "split", "reports", *COLUMNS), row, strict=True))
    for row in (
        ("MIMIC-CXR (paper)", "train", "16.9K", 39.90, 15.99, 1.17, 4.56),
        ("MIMIC-CXR (paper)", "validation", "0.1K", 38.36, 11.28, 1.50, 3.01),
        ("MIMIC-CXR (paper)", "test", "0.1K", 65.63, 25.78, 3.13, 10.16),
        ("MIMIC-RG4 (paper)", "train", "172.6K", 0.30, 0.30, 0.12, 0.00),
        ("MIMIC-RG4 (paper)", "validation", "1.4K", 0.07, 0.07, 0.14, 0.00),
        ("MIMIC-RG4 (paper)", "test", "2.4K", 0.42, 0.42, 0.04, 0.04),
    )
]
TEXTS = ("findings", "impression", "report", "indication", "history", "prior_report")
STATES = {
    state: state.name.lower() for state in (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN, CheXpertState.NEGATIVE)
}
COLOURS = {"positive": "#b5651d", "uncertain": "#d9b48f", "negative": "#1f5f8b"}


def measure(data: str, split: str, rows: Dataset, judge: Callable) -> dict:
    """The statistics of one split.

    `categories`: a row of Table 1 for each scenario that occurs, percentages of 0 to 100, and `hall`, the percentage
    with a category that the scenario forbids. `lengths`: words of each text that exists. `labels`: reports by state of
    each condition. `views`: images by view; `images`: rows by number of images; `present`: rows with each text.
    """
    rows = rows.select_columns([name for name in rows.column_names if name != "images"])
    scenarios = np.array(rows["scenario"])
    verdicts = np.asarray(judge(rows["report"])) > 0
    categories = []
    for scenario in (name for name in SCENARIOS if (scenarios == name).any()):
        flags = verdicts[scenarios == scenario]
        forbidden = [category in FORBIDDEN[scenario] for category in CATEGORIES]
        shares = dict(zip(COLUMNS, (100 * flags.mean(0)).tolist(), strict=True))
        row = {"data": data, "split": split, "scenario": scenario, "reports": len(flags), **shares}
        categories.append({**row, "hall": 100 * float(flags[:, forbidden].any(1).mean())})
    lengths = {}
    for name in (name for name in TEXTS if name in rows.column_names):
        words = np.array([len(text.split()) for text in rows[name] if text])
        if len(words):
            spread = {"mean": float(words.mean()), "95th percentile": float(np.percentile(words, 95))}
            lengths[name] = {
                "texts": len(words),
                **spread,
                "median": float(np.median(words)),
                "longest": int(words.max()),
            }
    states = np.array([row for row in rows["labels"] if row is not None]).reshape(-1, len(CONDITIONS))
    return {
        "data": data,
        "split": split,
        "rows": len(rows),
        "subjects": len(set(rows["subject_id"])),
        "sources": dict(Counter(rows["source"])),
        "categories": categories,
        "lengths": lengths,
        "labels": {
            condition: {name: int((states[:, i] == state).sum()) for state, name in STATES.items()}
            for i, condition in enumerate(CONDITIONS)
        },
        "views": dict(Counter(view for views in rows["views"] for view in views or ()).most_common()),
        "images": dict(sorted(Counter(len(views or ()) for views in rows["views"]).items())),
        "words": [len(text.split()) for text in rows["report"]],
    }


def draw(splits: Sequence[dict], folder: Path) -> list[Path]:
    """Writes the plots to `folder` as PNG: categories, lengths, labels and views."""
    files = []

    def save(figure: Figure, name: str) -> None:
        files.append(folder / name)
        figure.savefig(files[-1], dpi=130)

    rows = [row for split in splits for row in split["categories"]]
    names = [f"{row['data']} {row['split']} {row['scenario']} ({row['reports']})" for row in rows]
    names += [f"{row['data']} {row['split']} sn ({row['reports']})" for row in PAPER]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, column in enumerate(COLUMNS):
        places = np.arange(len(names)) + 0.19 * (i - 1.5)
        axes.barh(places, [row[column] for row in [*rows, *PAPER]], height=0.18, label=column)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.axhline(len(rows) - 0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("reports that hold the category, %")
    axes.legend(fontsize=8, frameon=False)
    save(figure, "categories.png")

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for split in splits:
        limit = np.percentile(split["words"], 99.5)
        words = [count for count in split["words"] if count <= limit]
        axes.hist(words, bins=40, density=True, histtype="step", label=f"{split['data']} {split['split']}")
    axes.set_xlabel("words of the report")
    axes.legend(fontsize=7, frameon=False)
    save(figure, "lengths.png")

    totals = {
        name: [sum(split["labels"][c][name] for split in splits) for c in CONDITIONS] for name in STATES.values()
    }
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    offsets = np.zeros(len(CONDITIONS))
    for name, counts in totals.items():
        axes.barh(CONDITIONS, counts, left=offsets, color=COLOURS[name], label=name)
        offsets += counts
    axes.invert_yaxis()
    axes.set_xlabel("reports")
    axes.legend(fontsize=8, frameon=False)
    save(figure, "labels.png")

    views = sum((Counter(split["views"]) for split in splits), Counter())
    if views:
        figure = Figure(figsize=(8, 0.8 + 0.3 * len(views)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(views), list(views.values()), color="#1f5f8b")
        axes.invert_yaxis()
        axes.set_xlabel("images")
        save(figure, "views.png")
    return files


def write_page(splits: Sequence[dict], judge: str, folder: Path) -> None:
    """Writes `folder`/index.html, one self-contained file, and the plots beside it."""
    files = draw(splits, folder)
    page = (
        html_environment(Path(__file__).parent)
        .get_template("statistics_page.html.jinja")
        .render(
            found=splits,
            judge=judge,
            paper=PAPER,
            columns=COLUMNS,
            plots={file.stem: base64.b64encode(file.read_bytes()).decode() for file in files},
        )
    )
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
