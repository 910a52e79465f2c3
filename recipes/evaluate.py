"""Scores reports against a built data set: clinical efficacy in every averaging, MCCS, format, LLM-RG4's hall.

    python recipes/evaluate.py --dataset outputs/data/phantom --split test --out outputs/phantom/scores.json \
        --predictions sft=outputs/phantom/sft.jsonl grpo=outputs/phantom/grpo.jsonl

    python recipes/evaluate.py --dataset outputs/data/rg4/sn --hall_judge discbert:outputs/discbert \
        --predictions llmrg4=outputs/llmrg4/sn.jsonl --out outputs/llmrg4/sn_scores.json

A predictions file has one JSON line per sample with `study_id` and `completion`; recipes/generate.py writes it, and
so may any other system. A baseline that says the same normal report of every study always stands beside them.
With --hall_judge the share of reports that say what their input cannot show is told for each scenario; the figures of
two judges are not comparable, so its name stands with them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from recipes.cli import InputError, parse, replacing, run
from recipes.data.references import load_labeler, with_labels
from recipes.data.rg4 import load_judge
from recipes.data.schema import read_split
from recipes.data.score_tables import print_hall, print_table
from rewards.clinical_efficacy import LABEL_SETS, clinical_efficacy
from rewards.completions import parse_completion
from rewards.discbert import MODES, hall_rates
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
    hall_judge: str | None = field(
        default=None, metadata={"help": "Also tell hall. by rule, discbert:MODEL or rule+discbert:MODEL."}
    )
    hall_mode: Literal[MODES] = field(
        default="scenario",
        metadata={"help": "Count the categories that a report's scenario forbids, or any, as the published script."},
    )


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


def main() -> None:
    (args,) = parse(EvaluateArguments)
    named = dict(pair.split("=", 1) for pair in args.predictions if "=" in pair)
    if len(named) < len(args.predictions) or TEMPLATE in named:
        raise InputError("--predictions takes NAME=FILE.jsonl, each name once")
    labeler = load_labeler(args.labeler)
    judge = load_judge(args.hall_judge) if args.hall_judge else None
    rows = read_split(args.dataset, args.split, ("report", "study_id", *(["scenario"] if judge else [])))
    rows = with_labels(rows, args.dataset, labeler)
    labels = dict(zip(rows["study_id"], np.asarray(rows["labels"]), strict=True))

    systems, hall = {}, {}
    if judge:
        scenarios = dict(zip(rows["study_id"], rows["scenario"], strict=True))
        try:
            hall["references"] = hall_rates(rows["report"][:], rows["scenario"][:], args.hall_mode, judge)
        except ValueError as error:
            where = f"split {args.split} of {args.dataset}"
            raise InputError(f"--hall_judge: {where}: {error}; --hall_mode any needs no scenario") from error
    for name, file in {TEMPLATE: None, **named}.items():
        if file is None:
            completions = {study: [NORMAL_REPORT] for study in labels}
        else:
            completions = read_predictions(file, labels)
        reference = np.stack([labels[study] for study, texts in completions.items() for _ in texts])
        texts = [text for texts in completions.values() for text in texts]
        systems[name] = score_completions(texts, reference, labeler, args.margin)
        if judge:
            reports = [parse_completion(text).report for text in texts]
            own = [scenarios[study] for study, texts in completions.items() for _ in texts]
            hall[name] = hall_rates(reports, own, args.hall_mode, judge)
    figures = {"dataset": args.dataset, "split": args.split, "labeler": labeler.name, "margin": args.margin}
    if judge:
        figures["hall"] = {"judge": judge.name, "mode": args.hall_mode, "rates": hall}
    with replacing(args.out) as file:
        file.write_text(json.dumps({**figures, "systems": systems}, indent=2) + "\n")
    print_table(systems, labeler.name)
    if judge:
        print_hall(judge.name, args.hall_mode, hall)


if __name__ == "__main__":
    run(main)
