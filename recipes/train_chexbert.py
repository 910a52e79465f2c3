"""Trains a CheXbert: a tiny one on what the LexicalLabeler labels, or any on a labelled CSV.

    python recipes/train_chexbert.py                                             # Open-i's reports, two CPU cores
    python recipes/train_chexbert.py --dataset outputs/data/phantom --output_dir outputs/chexbert_phantom
    accelerate launch recipes/train_chexbert.py --config recipes/configs/chexbert/csv.yaml --csv labelled_reports.csv

The CSV has a column of reports and CheXpert's 14 columns (1, 0, -1 or empty), as CheXbert and the CheXpert labeler
write them. Without one, the LexicalLabeler teaches: it labels any text, so besides reports the student reads texts
put together from their sentences and the teacher's phrases, and it is told which words made the teacher say what. A
fifth of the distinct reports is held out; how well the student agrees with the labels there is printed and written to
results.json.
"""

import random
from dataclasses import dataclass, field

from recipes.cli import parse_run, report, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import set_seed

from recipes.trainers.config import LabelerConfig
from recipes.trainers.evidence import EvidenceTrainer, mix, read_csv
from recipes.trainers.labelers import LabelerArguments, read_reports
from rewards.labelers import LexicalLabeler


@dataclass
class RecipeArguments(LabelerArguments):
    csv: str | None = field(
        default=None, metadata={"help": "CSV of labelled reports; none: the LexicalLabeler labels."}
    )
    text_column: str = field(default="Report Impression", metadata={"help": "Column of the CSV that holds reports."})
    texts: int = field(
        default=80_000, metadata={"help": "Number of texts to train on, reports and mixtures (without --csv)."}
    )
    bar: float = field(default=0.95, metadata={"help": "Micro-F1 of the 13 findings on held-out reports to reach."})


def main() -> None:
    args, training_args = parse_run(RecipeArguments, LabelerConfig, default_config="configs/chexbert/openi.yaml")

    ################
    # Dataset
    ################
    teacher, rng = LexicalLabeler(), random.Random(training_args.seed)
    labelled = read_csv(args.csv, args.text_column) if args.csv else None
    reports = read_reports(args, teacher, rng, labelled)
    texts = reports.training if args.csv else mix(reports.training, args.texts, teacher, rng)
    labels = reports.labels_of(texts) if args.csv else teacher(texts).tolist()
    setup = EvidenceTrainer.prepare(
        args, training_args, samples=len(texts), sources=reports.sources, starts=[args.model]
    )

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    # a tiny one's tokenizer, trained anew, would be another
    start = args.model or training_args.resume_from_checkpoint
    model, tokenizer = EvidenceTrainer.load_start(start, reports.training, training_args.seed)

    ################
    # Training
    ################
    trainer = EvidenceTrainer(
        model=model,
        args=training_args,
        train_dataset=EvidenceTrainer.rows_of(tokenizer, texts, labels, None if args.csv else teacher),
        processing_class=tokenizer,
        setup=setup,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        figures = trainer.measure(reports.held_out, reports.labels_of(reports.held_out))
        value = figures["micro"]["f1"]
        check = {"name": "micro-F1, 13 findings", "value": value, "bar": args.bar, "holds": value >= args.bar}
        report(training_args.output_dir, {"reports": len(reports.held_out), "held_out": figures}, [check])
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
