"""Trains a DiscBERT: a tiny one on what the rules judge, or BERT-base on an LLM's judgements.

    python recipes/train_discbert.py                                             # Open-i's reports, one CPU core
    python recipes/build_mimic_rg4.py --config recipes/configs/rg4/mimic.yaml --judge llm --scenarios sn \
        --limit 10000 --out outputs/data/rg4_judged
    accelerate launch recipes/train_discbert.py --config recipes/configs/discbert/mimic.yaml \
        --judgements outputs/data/rg4_judged/provenance.parquet

Against radiologists: write a sheet, have it filled in with 0 and 1, and measure any DiscBERT on it:

    python recipes/train_discbert.py --dataset outputs/data/mimic_cxr --export_annotation_sheet 200
    python recipes/train_discbert.py --model outputs/discbert --eval_only --eval_file annotation_sheet.csv

A part of the distinct reports is held out; the sheet is drawn from it. Precision, recall and F1 of each head against
the teacher there, and against --eval_file, are printed and written to results.json.
"""

import random
from dataclasses import dataclass, field

from recipes.cli import parse_run, report, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import set_seed

from recipes.rg4 import judgements
from recipes.rg4.rules import RuleJudge
from recipes.trainers.config import LabelerConfig
from recipes.trainers.discbert import DiscBertArguments, DiscBertTrainer
from recipes.trainers.labelers import read_reports


@dataclass
class RecipeArguments(DiscBertArguments):
    texts: int = field(default=20_000, metadata={"help": "Number of texts to train on (without --judgements)."})
    bar: float = field(default=0.95, metadata={"help": "Mean F1 of the four heads on held-out reports to reach."})


def main() -> None:
    args, training_args = parse_run(RecipeArguments, LabelerConfig, default_config="configs/discbert/openi.yaml")
    out = training_args.output_dir
    by_hand = judgements.read_judgements(args.eval_file) if args.eval_file else {}
    if args.eval_only:
        scores = judgements.measure(args.model, by_hand, training_args.device)
        return judgements.print_scores(f"{args.model} on {args.eval_file}", scores)

    ################
    # Dataset
    ################
    teacher, rng = RuleJudge(), random.Random(training_args.seed)
    judged = judgements.read_judgements(args.judgements) if args.judgements else None
    reports = read_reports(args, teacher, rng, judged, without=by_hand)
    if args.export_annotation_sheet:
        file = f"{out}/annotation_sheet.csv"
        rows = judgements.write_sheet(reports.held_out, args.export_annotation_sheet, teacher, file, rng)
        return print(f"{file}: {rows} reports, to be labelled with 0 or 1 in four columns")
    texts = reports.training if judged else judgements.mix(reports.training, args.texts, teacher, rng)
    labels = reports.labels_of(texts) if judged else teacher(texts).tolist()
    truth = reports.labels_of(reports.held_out)
    settings = {"samples": len(texts), "sources": reports.sources, "starts": [args.model], "metrics": ["mean_f1"]}
    setup = DiscBertTrainer.prepare(args, training_args, **settings)

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    # a tiny one's tokenizer, trained anew, would be another
    start = args.model or training_args.resume_from_checkpoint
    model, tokenizer = DiscBertTrainer.load_start(start, reports.training, training_args.seed)

    ################
    # Training
    ################
    trainer = DiscBertTrainer(
        model=model,
        args=training_args,
        train_dataset=DiscBertTrainer.rows_of(tokenizer, texts, labels),
        eval_dataset=DiscBertTrainer.rows_of(tokenizer, reports.held_out, truth),
        processing_class=tokenizer,
        setup=setup,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(out)
    if trainer.is_world_process_zero():
        verdicts = dict(zip(reports.held_out, truth, strict=True))
        figures = {"held_out": trainer.measure(f"{len(truth)} held-out reports, against the teacher", verdicts)}
        if by_hand:
            figures["by_hand"] = trainer.measure(f"{len(by_hand)} reports of {args.eval_file}", by_hand)
        value, teacher_name = figures["held_out"]["mean"]["f1"], args.judgements or teacher.name
        check = {"name": "mean F1 of four heads", "value": value, "bar": args.bar, "holds": value >= args.bar}
        report(out, {"reports": len(truth), "teacher": teacher_name, **figures}, [check])
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
