"""Trains a DiscBERT: a tiny one on what the rules judge, or BERT-base on the judgements of an LLM, as LLM-RG4 does.

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
import sys
from dataclasses import dataclass, field

from transformers import BertTokenizer, DataCollatorWithPadding, Trainer, set_seed

from modeling.modeling_discbert import DiscBertModel
from recipes.cli import parse, report, run
from recipes.data.model_files import load_bert
from recipes.data.openi import read_studies, text_columns
from recipes.data.schema import read_split
from recipes.data.sources import OPENI
from recipes.files import InputError
from recipes.hub.push import UNKNOWN, WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.rg4.judgements import (
    build_discbert,
    measure,
    mix,
    print_scores,
    read_judgements,
    score_heads,
    write_sheet,
)
from recipes.rg4.rules import RuleJudge
from recipes.trainers.checkpoints import WholeCheckpoints, check_whole, resume_from, save_final
from recipes.trainers.config import LabelerConfig, check_run
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.setup import save_run
from rewards.chexbert import clean_text, encode


@dataclass
class RecipeArguments:
    judgements: str | None = field(
        default=None, metadata={"help": "CSV or provenance.parquet; none: the rules judge."}
    )
    dataset: str | None = field(default=None, metadata={"help": "A built data set's reports instead of Open-i's."})
    model: str | None = field(default=None, metadata={"help": "A BERT to start from; none: a tiny, random one."})
    held_out: float = field(default=0.2, metadata={"help": "Share of the distinct reports held out for evaluation."})
    texts: int = field(default=20_000, metadata={"help": "Without --judgements: texts to train on."})
    eval_file: str | None = field(default=None, metadata={"help": "CSV labelled by hand: report and four columns."})
    eval_only: bool = field(default=False, metadata={"help": "Measure --model on --eval_file, train nothing."})
    export_annotation_sheet: int = field(default=0, metadata={"help": "Write a sheet of so many reports, and end."})
    bar: float = field(default=0.95, metadata={"help": "Wanted mean F1 of the four heads on held-out reports."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


class DiscBertTrainer(WholeCheckpoints, Trainer):
    """transformers' Trainer, a kill of which leaves no half-written checkpoint."""


def main() -> None:  # noqa: C901
    args, training_args = parse(RecipeArguments, LabelerConfig, default_config="configs/discbert/openi.yaml")
    check_whole(training_args, "DiscBERT")
    resume, out = resume_from(training_args), training_args.output_dir
    by_hand = read_judgements(args.eval_file) if args.eval_file else {}
    if args.eval_only:
        if not (args.model and by_hand):
            raise InputError("--eval_only needs --model, a trained DiscBERT, and --eval_file, a CSV labelled by hand")
        return print_scores(f"{args.model} on {args.eval_file}", measure(args.model, by_hand, training_args.device))

    ################
    # Dataset
    ################
    teacher, rng = RuleJudge(), random.Random(training_args.seed)
    if args.judgements:
        judged, sources = read_judgements(args.judgements), [UNKNOWN]
    else:
        if args.dataset:
            rows = read_split(args.dataset, "train", ("report",))
            reports, sources = rows["report"], sources_of(rows)
        else:
            sections = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
            reports, sources = [each["report"] for each in sections if each["report"]], [OPENI.name]
        reports = list(dict.fromkeys(clean_text(text) for text in reports))
        judged = dict(zip(reports, teacher(reports).tolist(), strict=True))
    reports = [text for text in judged if text not in by_hand]
    reports = rng.sample(reports, len(reports))
    size = round(args.held_out * len(reports))
    if not 0 < size < len(reports):
        raise InputError(f"of {len(reports)} distinct reports --held_out {args.held_out} leaves none on one side")
    held_out, reports = reports[:size], reports[size:]
    if args.export_annotation_sheet:
        rows = write_sheet(held_out, args.export_annotation_sheet, teacher, f"{out}/annotation_sheet.csv", rng)
        return print(f"{out}/annotation_sheet.csv: {rows} reports, to be labelled with 0 or 1 in four columns")
    sources = sorted({*sources, *sources_of(None, args.model, resume)})
    repository = claim(training_args, sources, args.public_because)
    texts = reports if args.judgements else mix(reports, args.texts, teacher, rng)
    check_run(training_args, len(texts), ["mean_f1"])
    labels = [judged[text] for text in texts] if args.judgements else teacher(texts).tolist()

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    if start := args.model or resume:  # a tiny one's tokenizer, trained anew, would be another
        model, tokenizer = load_bert(start, BertTokenizer, DiscBertModel)
    else:
        model, tokenizer = build_discbert(reports, seed=training_args.seed)

    ################
    # Training
    ################
    def rows_of(texts: list[str], labels: list[list[int]]) -> list[dict]:
        ids = encode(tokenizer, texts)
        return [{"input_ids": each, "labels": row} for each, row in zip(ids, labels, strict=True)]

    interrupt = SaveOnInterrupt()
    trainer = DiscBertTrainer(
        model=model,
        args=training_args,
        train_dataset=rows_of(texts, labels),
        eval_dataset=rows_of(held_out, [judged[text] for text in held_out]),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"mean_f1": score_heads(found.predictions[1], found.label_ids)["mean"]["f1"]},
        processing_class=tokenizer,
        callbacks=[interrupt],
    )
    save_run(out, args, training_args, sources=sources)
    trainer.train(resume_from_checkpoint=resume)
    if interrupt.interrupted:
        sys.exit(f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint latest")

    ################
    # Saving
    ################
    save_final(trainer, out)
    if trainer.is_world_process_zero():
        figures = {"held_out": measure(out, {text: judged[text] for text in held_out}, training_args.device)}
        print_scores(f"{len(held_out)} held-out reports, against the teacher", figures["held_out"])
        if by_hand:
            figures["by_hand"] = measure(out, by_hand, training_args.device)
            print_scores(f"{len(by_hand)} reports of {args.eval_file}", figures["by_hand"])
        value = figures["held_out"]["mean"]["f1"]
        check = {"name": "mean F1 of four heads", "value": value, "bar": args.bar, "holds": value >= args.bar}
        report(out, {"reports": len(held_out), "teacher": args.judgements or teacher.name, **figures}, [check])
    if repository:
        push_checkpoint(repository, out)


if __name__ == "__main__":
    run(main)
