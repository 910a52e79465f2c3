"""Trains a CheXbert: a tiny one on text that the LexicalLabeler labels, or one of any size on a labelled CSV.

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
import sys
from dataclasses import dataclass, field

import numpy as np
from transformers import AutoTokenizer, set_seed

from modeling import CheXbertModel
from modeling.tiny import build_chexbert
from recipes.cli import parse, report, run
from recipes.data.model_files import load_bert
from recipes.data.openi import read_studies, text_columns
from recipes.data.schema import read_split
from recipes.data.sources import OPENI
from recipes.files import InputError
from recipes.hub.push import UNKNOWN, WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import check_whole, resume_from, save_final
from recipes.trainers.config import LabelerConfig, check_run
from recipes.trainers.evidence import EvidenceCollator, EvidenceTrainer, find_evidence, mix, read_csv
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.setup import save_run
from rewards.chexbert import CheXbertLabeler, clean_text, encode
from rewards.clinical_efficacy import clinical_efficacy
from rewards.labelers import LexicalLabeler


@dataclass
class RecipeArguments:
    csv: str | None = field(default=None, metadata={"help": "Labelled reports; none: the LexicalLabeler labels."})
    text_column: str = field(default="Report Impression", metadata={"help": "The CSV's column of reports."})
    dataset: str | None = field(default=None, metadata={"help": "A built data set's reports instead of Open-i's."})
    model: str | None = field(default=None, metadata={"help": "A BERT to start from; none: a tiny, random one."})
    held_out: float = field(default=0.2, metadata={"help": "Share of the distinct reports held out for evaluation."})
    texts: int = field(default=80_000, metadata={"help": "Without --csv: texts to train on, reports and mixtures."})
    bar: float = field(default=0.95, metadata={"help": "Wanted micro-F1 of the 13 findings on held-out reports."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    args, training_args = parse(RecipeArguments, LabelerConfig, default_config="configs/chexbert/openi.yaml")
    check_whole(training_args, "CheXbert")
    resume = resume_from(training_args)

    ################
    # Dataset
    ################
    teacher = LexicalLabeler()
    if args.csv:
        labelled, sources = read_csv(args.csv, args.text_column), [UNKNOWN]
    else:
        if args.dataset:
            rows = read_split(args.dataset, "train", ("report",))
            reports, sources = rows["report"], sources_of(rows)
        else:
            sections = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
            reports, sources = [each["report"] for each in sections if each["report"]], [OPENI.name]
        reports = list(dict.fromkeys(clean_text(text) for text in reports))
        labelled = dict(zip(reports, teacher(reports).tolist(), strict=True))
    sources = sorted({*sources, *sources_of(None, args.model, resume)})
    repository = claim(training_args, sources, args.public_because)
    rng = random.Random(training_args.seed)
    reports = rng.sample(list(labelled), len(labelled))
    size = round(args.held_out * len(reports))
    if not 0 < size < len(reports):
        raise InputError(f"of {len(reports)} distinct reports --held_out {args.held_out} leaves none on one side")
    held_out, reports = reports[:size], reports[size:]
    texts = reports if args.csv else mix(reports, args.texts, teacher, rng)
    check_run(training_args, len(texts))
    labels = [labelled[text] for text in texts] if args.csv else teacher(texts).tolist()

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    if start := args.model or resume:  # a tiny one's tokenizer, trained anew, would be another
        model, tokenizer = load_bert(start, AutoTokenizer, CheXbertModel)
    else:
        model, tokenizer = build_chexbert(reports, seed=training_args.seed)

    ################
    # Training
    ################
    distinct = list(dict.fromkeys(texts))
    ids = dict(zip(distinct, encode(tokenizer, distinct), strict=True))
    columns = {"input_ids": [ids[text] for text in texts], "labels": labels}
    if not args.csv:
        columns["evidence"] = find_evidence(tokenizer, texts, teacher)
    interrupt = SaveOnInterrupt()
    trainer = EvidenceTrainer(
        model=model,
        args=training_args,
        train_dataset=[dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        data_collator=EvidenceCollator(tokenizer),
        processing_class=tokenizer,
        callbacks=[interrupt],
    )
    save_run(training_args.output_dir, args, training_args, sources=sources)
    trainer.train(resume_from_checkpoint=resume)
    if interrupt.interrupted:
        sys.exit(f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint latest")

    ################
    # Saving
    ################
    save_final(trainer, training_args.output_dir)
    if trainer.is_world_process_zero():
        found = CheXbertLabeler(training_args.output_dir, device=training_args.device)(held_out)
        truth = np.array([labelled[text] for text in held_out])
        figures = clinical_efficacy(found, truth, "13")
        value = figures["micro"]["f1"]
        check = {"name": "micro-F1, 13 findings", "value": value, "bar": args.bar, "holds": value >= args.bar}
        report(training_args.output_dir, {"reports": len(held_out), "held_out": figures}, [check])
    if repository:
        push_checkpoint(repository, training_args.output_dir)


if __name__ == "__main__":
    run(main)
