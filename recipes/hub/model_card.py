"""A model card, README.md in the checkpoint's folder, filled from its run_config.json and from metrics.json."""

import json
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recipes.data.privacy import normalise
from recipes.data.sources import SOURCES
from recipes.evaluation.error_taxonomy import KINDS
from recipes.evaluation.score_tables import cell, number
from recipes.files import InputError, replacing
from rewards.labels import FINDINGS

OURS, PUSHED = "generated-by-evaluate", "generated-by-push"
TRAINERS = (
    "generated_from_trainer",
    "It has been trained using [TRL]",
    "[More Information Needed]",
)  # the last: PEFT's
REPLACED = (OURS, PUSHED, *TRAINERS)  # cards that may be
ARGUMENTS = ("model_name_or_path", "dataset", "dataset_name", "max_steps", "num_train_epochs", "learning_rate", "seed")

_MRGR1 = (
    "Wang et al. 2025, MRG-R1: Reinforcement Learning for Clinically Aligned Medical Report Generation, "
    "arXiv:2512.16145"
)
_LLMRG4 = (
    "Wang et al. 2024, LLM-RG4: Flexible and Factual Radiology Report Generation Across Diverse Input Contexts, "
    "arXiv:2412.12001"
)
_LMRRG = (
    "Zhou et al. 2024, Large Model driven Radiology Report Generation with Clinical Quality Reinforcement Learning, "
    "arXiv:2403.06728"
)
_CHEXBERT = (
    "Smit et al. 2020, CheXbert: Combining Automatic Labelers and Expert Annotations for Accurate Radiology Report "
    "Labeling Using BERT, arXiv:2004.09167"
)
_CREPE = (
    "Cho et al. 2025, CREPE: Rapid Chest X-ray Report Evaluation by Predicting Multi-category Error Counts, "
    "EMNLP 2025, aclanthology.org/2025.emnlp-main.1102"
)
CITATIONS = {
    **{"mrgr1": _MRGR1, "llmrg4": _LLMRG4, "discbert": _LLMRG4, "lmrrg": _LMRRG, "chexbert": _CHEXBERT},
    "crepe": _CREPE,
}


def check_card(folder: str | Path) -> None:
    """Raises InputError unless `folder` exists and has no README.md of somebody's own."""
    card = Path(folder) / "README.md"
    if not Path(folder).is_dir():
        raise InputError(f"--write_model_card {folder}: there is no such folder; name the model's")
    if card.is_file() and not any(mark in card.read_text(errors="replace") for mark in REPLACED):
        raise InputError(f"{card} was written by somebody else; move it away first")


def read_run(folder: Path) -> dict:
    """What run_config.json beside a checkpoint says of its training: the commit and some arguments."""
    file = folder / "run_config.json"
    if not file.is_file():
        return {}
    saved = json.loads(file.read_text())
    facts = {"commit": saved.get("commit")}
    for block in saved.values():
        if isinstance(block, dict):
            facts |= {name: block[name] for name in ARGUMENTS if block.get(name) not in (None, -1)}
    return {name: value for name, value in facts.items() if value}


def card_for_push(folder: str | Path, repository: str) -> Path:
    """The card that goes to the Hub with the checkpoint in `folder`: what lies there, or a new one.

    A card of somebody's own, or evaluate.py's with figures that are not at hand any more, stays as it is.
    """
    card, metrics = Path(folder) / "README.md", Path(folder) / "metrics.json"
    text = card.read_text(errors="replace") if card.is_file() else ""
    if text and ((OURS in text and not metrics.is_file()) or not any(mark in text for mark in REPLACED)):
        return card
    return write_card(folder, json.loads(metrics.read_text()) if metrics.is_file() else None, repository)


def describe_training(folder: Path) -> dict:
    """What the card says of a checkpoint's making: `run`, `yaml`, `sources` with licences, `paper`, how to load it."""
    saved = _read_json(folder / "run_config.json")
    adapter, config = _read_json(folder / "adapter_config.json"), _read_json(folder / "config.json")
    run = read_run(folder)
    base = adapter.get("base_model_name_or_path") or run.get("model_name_or_path")
    system = saved.get("script", "").removesuffix(".py").rpartition("_")[2]
    return {
        "run": run,
        "script": saved.get("script"),
        "yaml": yaml.safe_dump(saved["changed"], sort_keys=False) if saved.get("changed") else None,
        "sources": [
            (source, SOURCES[normalise(source)].license if normalise(source) in SOURCES else "licence not known")
            for source in saved.get("sources", ())
        ],
        "paper": CITATIONS.get(system) or CITATIONS.get(config.get("model_type")),
        "base_model": base,
        "hub_base": base if base and base.count("/") == 1 and not Path(base).exists() else None,
        "adapter": bool(adapter),
        "results": (folder / "results.json").is_file(),
        "own_code": bool(config.get("auto_map")),
        "auto_class": "AutoModelForImageTextToText"
        if "ForConditionalGeneration" in "".join(config.get("architectures") or ["ForConditionalGeneration"])
        else "AutoModel",
    }


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text()) if file.is_file() else {}


def write_card(folder: str | Path, metrics: dict | None, repository: str | None = None) -> Path:
    """Writes the card of the checkpoint in `folder` and returns its path.

    It is about the first model of `metrics`, and the other systems stand beside it; without `metrics` it has no
    figures. `repository` is the Hub's name of it. It holds no report text. Raises InputError as `check_card` does.
    """
    check_card(folder)
    folder = Path(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # Markdown: nothing of it is a report's text
    figures = _tabulate(metrics) if metrics else {"name": repository or folder.resolve().name, "m": None}
    card = environment.get_template("model_card.md.jinja").render(
        **figures, **describe_training(folder), repository=repository
    )
    with replacing(folder / "README.md") as file:
        file.write_text(card)
    return folder / "README.md"


def _tabulate(metrics: dict) -> dict:
    systems = metrics["systems"]
    model = next(name for name, system in systems.items() if system["kind"] == "model")
    names = [model, *(name for name in systems if name != model)]
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
        quantities, errors = systems[model]["per_label"][label], systems[model]["errors"][label]
        cells = [cell(quantities[quantity]) for quantity in ("precision", "recall", "f1")]
        labels.append((label, [*cells, str(quantities["support"]), *(str(errors[kind]) for kind in KINDS)]))
    control = metrics["image_reliance"].get(model, {"control": None, "figures": {}})
    image_reliance = [
        [
            metrics["figures"][figure]["title"],
            number(row["score"]),
            number(row["shuffled"]),
            cell(row["drop"]),
            cell(row["share"]),
        ]
        for figure, row in control["figures"].items()
    ]
    return {
        "name": model,
        "m": metrics,
        "columns": names,
        "rows": rows,
        "labels": labels,
        "kinds": KINDS,
        "image_reliance": image_reliance,
        "image_reliance_control": control["control"],
    }
