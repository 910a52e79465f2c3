"""Trains a CREPE, which counts the errors of a report: a tiny one, or one from BERT, on errors put in by rule.

    python recipes/train_crepe.py                                                # Open-i's reports, two CPU cores
    python recipes/train_crepe.py --dataset outputs/data/phantom --output_dir outputs/crepe_phantom
    accelerate launch recipes/train_crepe.py --config recipes/configs/crepe/biomedbert.yaml \
        --dataset outputs/data/mimic_cxr

Each pair is a reference and the same report with 0 to 7 errors of ReXVal's six kinds, whose numbers are known because
rules put them in. The published CREPE learned from the counts of a language model on generated reports instead; a
model of this script knows the errors of the rules, and is a stand-in where those weights are not at hand. A part of
the distinct reports is held out; how well the counts agree there is printed and written to results.json.
"""

import random
import sys
from dataclasses import dataclass, field

import numpy as np
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, set_seed

from modeling import CrepeModel
from modeling.tiny_crepe import build_crepe
from recipes.cli import parse, report, run
from recipes.data.model_files import load_bert
from recipes.data.openi import read_studies, text_columns
from recipes.data.schema import read_split
from recipes.data.sources import OPENI
from recipes.evaluation.injected_pairs import inject_pairs, score_counts
from recipes.files import InputError
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import WholeCheckpoints, check_whole, resume_from, save_final
from recipes.trainers.config import LabelerConfig, check_run
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.setup import save_run
from rewards.batches import token_rows
from rewards.chexbert import clean_text
from rewards.crepe import Crepe


@dataclass
class RecipeArguments:
    dataset: str | None = field(default=None, metadata={"help": "A built data set's reports instead of Open-i's."})
    model: str | None = field(default=None, metadata={"help": "A BERT to start from; none: a tiny, random one."})
    held_out: float = field(default=0.1, metadata={"help": "Share of the distinct reports held out for evaluation."})
    texts: int = field(default=32_000, metadata={"help": "Number of pairs to train on; the paper has 32,000."})
    bar: float = field(default=0.45, metadata={"help": "Wanted Kendall tau with the number of errors, held out."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


class CrepeTrainer(WholeCheckpoints, Trainer):
    """transformers' Trainer, a kill of which leaves no half-written checkpoint."""


def main() -> None:
    args, training_args = parse(RecipeArguments, LabelerConfig, default_config="configs/crepe/openi.yaml")
    check_whole(training_args, "CREPE")
    resume, out = resume_from(training_args), training_args.output_dir

    ################
    # Dataset
    ################
    if args.dataset:
        rows = read_split(args.dataset, "train", ("report",))
        reports, sources = rows["report"], sources_of(rows)
    else:
        sections = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
        reports, sources = [each["report"] for each in sections if each["report"]], [OPENI.name]
    rng = random.Random(training_args.seed)
    reports = list(dict.fromkeys(clean_text(text) for text in reports))
    reports = rng.sample(reports, len(reports))
    size = round(args.held_out * len(reports))
    if not 0 < size < len(reports):
        raise InputError(f"of {len(reports)} distinct reports --held_out {args.held_out} leaves none on one side")
    sources = sorted({*sources, *sources_of(None, args.model, resume)})
    repository = claim(training_args, sources, args.public_because)
    held_out = inject_pairs(reports[:size], max(size, min(2000, args.texts)), rng)
    pairs = inject_pairs(reports[size:], args.texts, rng)
    check_run(training_args, len(pairs), ["tau", "error"])

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    if start := args.model or resume:  # a tiny one's tokenizer, trained anew, would be another
        model, tokenizer = load_bert(start, AutoTokenizer, CrepeModel)
    else:
        model, tokenizer = build_crepe(reports[size:], seed=training_args.seed)

    ################
    # Training
    ################
    def rows_of(pairs: list) -> list[dict]:
        references, generated, errors = map(list, zip(*pairs, strict=True))
        rows = zip(token_rows(tokenizer, references, generated), errors, strict=True)
        return [
            {"input_ids": list(ids), "token_type_ids": list(types), "labels": counts} for (ids, types), counts in rows
        ]

    interrupt = SaveOnInterrupt()
    trainer = CrepeTrainer(
        model=model,
        args=training_args,
        train_dataset=rows_of(pairs),
        eval_dataset=rows_of(held_out),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: score_counts(found.predictions[0], found.label_ids)["all"],
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
        references, generated, errors = zip(*held_out, strict=True)
        counts = Crepe(out, device=training_args.device).counts(generated, references)
        figures = score_counts(counts, np.array(errors))
        tau = figures["all"]["tau"]
        check = {"name": "Kendall tau, number of errors", "value": tau, "bar": args.bar, "holds": tau >= args.bar}
        report(out, {"pairs": len(held_out), "held_out": figures}, [check])
    if repository:
        push_checkpoint(repository, out)


if __name__ == "__main__":
    run(main)
