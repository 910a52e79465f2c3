"""Scores reports against a built data set: clinical efficacy in every averaging, MCCS, format.

    python recipes/evaluate.py --dataset outputs/data/phantom --split test --out outputs/phantom/scores.json \
        --predictions sft=outputs/phantom/sft.jsonl grpo=outputs/phantom/grpo.jsonl

A predictions file has one JSON line per sample with `study_id` and `completion`; recipes/generate.py writes it, and
so may any other system. A baseline that says the same normal report of every study always stands beside them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from recipes.cli import InputError, parse, replacing, run
from recipes.data.references import load_labeler, with_labels
from recipes.data.schema import read_split
from rewards.clinical_efficacy import AVERAGES, LABEL_SETS, clinical_efficacy
from rewards.completions import parse_completion
from rewards.mccs import mccs

NORMAL_REPORT = (
    "The heart is normal in size. The mediastinum is unremarkable. The lungs are clear. "
    "There is no focal consolidation, pleural effusion or pneumothorax."
)
TEMPLATE = "fixed normal report"


@dataclass
class EvaluateArguments:
    dataset: str = field(metadata={"help": "The built data set's folder, or its Hub id, with the references."})
    predictions: list[str] = field(metadata={"help": "NAME=FILE.jsonl, one or more."})
    out: str = field(metadata={"help": "The JSON file for all figures."})
    split: str = field(default="test")
    labeler: str = field(default="lexical", metadata={"help": "lexical, chexbert or chexbert:MODEL."})
    margin: float = field(default=0.2, metadata={"help": "m of MCCS."})


def read_predictions(file: str, known: dict[str, int]) -> dict[str, list[str]]:
    """Completions by study id, in the file's order; every study of `known` must be there."""
    if not Path(file).is_file():
        raise InputError(f"there is no predictions file {file}")
    completions: dict[str, list[str]] = {}
    for number, line in enumerate(Path(file).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            study, completion = str(row["study_id"]), row["completion"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: not a JSON object with study_id and completion") from error
        if study not in known or not isinstance(completion, str):
            raise InputError(f"{file}, line {number}: {study!r} is not in this split, or its completion is no text")
        completions.setdefault(study, []).append(completion)
    if missing := [study for study in known if study not in completions]:
        raise InputError(f"{file} lacks {len(missing)} of {len(known)} studies of the split, {missing[0]!r} first")
    return completions


def score(generated: np.ndarray, reference: np.ndarray, margin: float) -> dict:
    """MCCS and clinical efficacy of labels (n, 14) against reference labels (n, 14)."""
    return {
        "mccs": float(mccs(generated, reference, margin).mean()),
        "clinical_efficacy": {
            f"{size} labels, uncertain as {'positive' if positive else 'negative'}": clinical_efficacy(
                generated, reference, size, positive
            )
            for size in LABEL_SETS
            for positive in (True, False)
        },
    }


def score_completions(completions: list[str], reference: np.ndarray, labeler, margin: float) -> dict:
    """`score` of the report part of each completion, with the format's and the diversity's figures."""
    parsed = [parse_completion(completion) for completion in completions]
    reports = [each.report for each in parsed]
    return {
        **score(labeler(reports), reference, margin),
        "format_rate": sum(each.format_score == 1 for each in parsed) / len(parsed),
        "distinct_reports": len(set(reports)),
        "empty_reports": reports.count(""),
        "samples": len(parsed),
    }


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


def main() -> None:
    (args,) = parse(EvaluateArguments)
    named = dict(pair.split("=", 1) for pair in args.predictions if "=" in pair)
    if len(named) < len(args.predictions) or TEMPLATE in named:
        raise InputError("--predictions takes NAME=FILE.jsonl, each name once")
    labeler = load_labeler(args.labeler)
    rows = read_split(args.dataset, args.split, columns=("report", "study_id"))
    rows = with_labels(rows, args.dataset, labeler)
    labels = dict(zip(rows["study_id"], np.asarray(rows["labels"]), strict=True))

    systems = {}
    for name, file in {TEMPLATE: None, **named}.items():
        if file is None:
            completions = {study: [NORMAL_REPORT] for study in labels}
        else:
            completions = read_predictions(file, labels)
        reference = np.stack([labels[study] for study, texts in completions.items() for _ in texts])
        texts = [text for texts in completions.values() for text in texts]
        systems[name] = score_completions(texts, reference, labeler, args.margin)
    figures = {"dataset": args.dataset, "split": args.split, "labeler": labeler.name, "margin": args.margin}
    with replacing(args.out) as file:
        file.write_text(json.dumps({**figures, "systems": systems}, indent=2) + "\n")
    print_table(systems, labeler.name)


if __name__ == "__main__":
    run(main)
