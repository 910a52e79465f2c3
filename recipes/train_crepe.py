"""Trains a CREPE, which counts a report's errors, on errors put in by rule: tiny, or from BERT.

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
from dataclasses import dataclass, field

from recipes.cli import parse_run, report, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import set_seed

from recipes.evaluation.injected_pairs import inject_pairs
from recipes.trainers.config import LabelerConfig
from recipes.trainers.crepe import CrepeTrainer
from recipes.trainers.labelers import LabelerArguments, hold_out, read_texts


@dataclass
class RecipeArguments(LabelerArguments):
    held_out: float = field(
        default=0.1, metadata={"help": "Fraction of the distinct reports that is held out for evaluation."}
    )
    texts: int = field(default=32_000, metadata={"help": "Number of pairs to train on; the paper has 32,000."})
    bar: float = field(
        default=0.45, metadata={"help": "Kendall's tau with the number of errors of held-out pairs to reach."}
    )


def main() -> None:
    args, training_args = parse_run(RecipeArguments, LabelerConfig, default_config="configs/crepe/openi.yaml")

    ################
    # Dataset
    ################
    rng = random.Random(training_args.seed)
    texts, sources = read_texts(args)
    held_out, reports = hold_out(texts, args.held_out, rng)
    setup = CrepeTrainer.prepare(
        args, training_args, samples=args.texts, sources=sources, starts=[args.model], metrics=["tau", "error"]
    )
    held_out = inject_pairs(held_out, max(len(held_out), min(2000, args.texts)), rng)
    pairs = inject_pairs(reports, args.texts, rng)

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new heads
    # a tiny one's tokenizer, trained anew, would be another
    start = args.model or training_args.resume_from_checkpoint
    model, tokenizer = CrepeTrainer.load_start(start, reports, training_args.seed)

    ################
    # Training
    ################
    trainer = CrepeTrainer(
        model=model,
        args=training_args,
        train_dataset=CrepeTrainer.rows_of(tokenizer, pairs),
        eval_dataset=CrepeTrainer.rows_of(tokenizer, held_out),
        processing_class=tokenizer,
        setup=setup,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        figures = trainer.measure(held_out)
        tau = figures["all"]["tau"]
        check = {"name": "Kendall tau, number of errors", "value": tau, "bar": args.bar, "holds": tau >= args.bar}
        report(training_args.output_dir, {"pairs": len(held_out), "held_out": figures}, [check])
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
