"""MRG-R1's SFT ablation (Table II, Base + SFT), and the warm start of models that cannot write reports yet.

    accelerate launch recipes/sft_mrgr1.py                                                 # the paper's IU X-Ray row
    accelerate launch recipes/sft_mrgr1.py --config recipes/configs/mrgr1/sft_phantom.yaml # two CPU cores

Cross-entropy on the reports, with TRL's own SFTTrainer. `--target reasoning` puts the report inside
<think>/<report>, the reasoning being the reference labels by name; `--target plain` is the report alone.
"""

import sys
from dataclasses import dataclass, field

from trl import ModelConfig, SFTTrainer, get_peft_config

from recipes.cli import check_hardware, parse, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.data.model_files import check_model
from recipes.data.processors import load_processor
from recipes.data.samples import prepare_images, to_samples
from recipes.data.schema import read_split
from recipes.files import read_prompt
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import WholeCheckpoints, resume_from, save_final
from recipes.trainers.clinical_evaluation import ClinicalArguments, ClinicalEvaluation
from recipes.trainers.config import SFTRecipeConfig, check_run
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.setup import save_run


@dataclass
class RecipeArguments:
    dataset: str = field(metadata={"help": "A built data set's folder, or its Hub id."})
    prompt_file: str = field(
        default="prompts/mrgr1_plain.txt", metadata={"help": "The prompt: a path, or a file beside the recipes."}
    )
    target: str = field(
        default="plain",
        metadata={"help": "plain: the report; reasoning: tags around.", "choices": ["plain", "reasoning"]},
    )
    views: str = field(default="each", metadata={"help": "each image a sample (paper), frontal, or all at once."})
    max_samples: int | None = field(default=None, metadata={"help": "Use this many training samples at most."})
    min_pixels: int | None = field(default=None, metadata={"help": "Images are scaled up to this many pixels."})
    max_pixels: int | None = field(default=None, metadata={"help": "Images are scaled down to this many pixels."})
    labeler: str = field(
        default="lexical", metadata={"help": "What names the findings in <think>: see grpo_mrgr1.py."}
    )
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


class MRGR1SFTTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer, a kill of which leaves no half-written checkpoint."""


def main() -> None:
    args, clinical, training_args, model_args = parse(
        RecipeArguments, ClinicalArguments, SFTRecipeConfig, ModelConfig, default_config="configs/mrgr1/sft_iu.yaml"
    )
    check_hardware(training_args, model_args)
    resume = resume_from(training_args)

    ################
    # Dataset
    ################
    prompt, rows, data = read_prompt(args.prompt_file), {}, {}
    labeler = load_labeler(args.labeler) if args.target == "reasoning" else None
    for split in ("train", "validation") if training_args.eval_strategy != "no" else ("train",):
        if labeler:
            rows[split] = read_labelled(args.dataset, split, labeler)
        else:
            rows[split] = read_split(args.dataset, split)
        limit = args.max_samples if split == "train" else None
        data[split] = to_samples(rows[split], prompt, args.views, completion=args.target, limit=limit)
    check_run(training_args, len(data["train"]), clinical.metrics)
    sources = sources_of(rows, model_args.model_name_or_path, resume)
    repository = claim(training_args, sources, args.public_because)

    ################
    # Model
    ################
    check_model(model_args.model_name_or_path, attention=model_args.attn_implementation)
    processor = load_processor(
        model_args.model_name_or_path,
        model_args.model_revision,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
    )
    data = prepare_images(data, processor)
    training_args.model_init_kwargs = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "revision": model_args.model_revision,
    }

    ################
    # Training
    ################
    interrupt = SaveOnInterrupt()
    trainer = MRGR1SFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        callbacks=[interrupt],
    )
    if clinical.clinical_samples:
        trainer.add_callback(ClinicalEvaluation(trainer, clinical, rows.get("validation"), prompt, args.views))
    save_run(training_args.output_dir, args, clinical, training_args, model_args, sources=sources)
    trainer.train(resume_from_checkpoint=resume)
    if interrupt.interrupted:
        sys.exit(f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint latest")

    ################
    # Saving
    ################
    save_final(trainer, training_args.output_dir)
    if repository:
        push_checkpoint(repository, training_args.output_dir)


if __name__ == "__main__":
    run(main)
