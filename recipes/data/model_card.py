"""A model card, README.md in the checkpoint's folder, filled from metrics.json."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recipes.cli import InputError, replacing
from recipes.data.error_taxonomy import KINDS
from recipes.data.score_tables import cell, number
from rewards.labels import FINDINGS

OURS, TRAINERS = "generated-by-evaluate", "generated_from_trainer"  # cards that may be replaced
ARGUMENTS = ("model_name_or_path", "dataset", "dataset_name", "max_steps", "num_train_epochs", "learning_rate", "seed")


def check_card(folder: str | Path) -> None:
    """Raises InputError unless `folder` exists and has no README.md of somebody's own."""
    card = Path(folder) / "README.md"
    if not Path(folder).is_dir():
        raise InputError(f"--write_model_card {folder}: there is no such folder; name the model's")
    if card.is_file() and not any(mark in card.read_text(errors="replace") for mark in (OURS, TRAINERS)):
        raise InputError(f"{card} was written by somebody else; move it away first")


def read_run(folder: Path) -> dict:
    """What run_config.json beside a checkpoint says of its training: the commit and some arguments."""
    file = folder / "run_config.json"
    if not file.is_file():
        return {}
    saved = json.loads(file.read_text())
    told = {"commit": saved.get("commit")}
    for block in saved.values():
        if isinstance(block, dict):
            told |= {name: block[name] for name in ARGUMENTS if block.get(name) not in (None, -1)}
    return {name: value for name, value in told.items() if value}


def write_card(folder: str | Path, metrics: dict) -> Path:
    """Writes the card about the first model of `metrics` and returns its path; the other systems stand beside it.

    It holds no report text. Raises InputError as `check_card` does.
    """
    check_card(folder)
    folder, systems = Path(folder), metrics["systems"]
    own = next(name for name, system in systems.items() if system["kind"] == "model")
    names = [own, *(name for name in systems if name != own)]
    figures = dict.fromkeys(
        figure for preset in metrics["protocol"]["presets"].values() for figure in preset["figures"]
    )
    figures |= dict.fromkeys(metrics["protocol"]["headline"])
    rows = [
        (metrics["figures"][figure]["title"], [cell(systems[name]["figures"].get(figure)) for name in names])
        for figure in figures
    ]
    labels = []
    for label in FINDINGS:
        found, errors = systems[own]["per_label"][label], systems[own]["errors"][label]
        cells = [cell(found[quantity]) for quantity in ("precision", "recall", "f1")]
        labels.append((label, [*cells, str(found["support"]), *(str(errors[kind]) for kind in KINDS)]))
    what = metrics["looking"].get(own, {"control": None, "figures": {}})
    looking = [
        [
            metrics["figures"][figure]["title"],
            number(row["score"]),
            number(row["shuffled"]),
            cell(row["drop"]),
            cell(row["share"]),
        ]
        for figure, row in what["figures"].items()
    ]
    run = read_run(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # Markdown: nothing of it is a report's text
    card = environment.get_template("model_card.md.jinja").render(
        name=own, m=metrics, columns=names, rows=rows, labels=labels, kinds=KINDS, looking=looking, run=run,
        looking_control=what["control"], base_model=run.get("model_name_or_path"),
    )  # fmt: skip
    with replacing(folder / "README.md") as file:
        file.write_text(card)
    return folder / "README.md"
