"""DPO on pairs of reports that a reward ranks, for Qwen2.5-VL, LLM-RG4 and LM-RRG.

    accelerate launch recipes/dpo.py --dataset outputs/data/phantom --pairs outputs/phantom/pairs.jsonl \
        --model_name_or_path outputs/phantom/sft --prompt_file prompts/mrgr1_tiny.txt --views frontal --use_cpu true

recipes/build_preferences.py makes the pairs. The prompt, the views and the range of pixels are those that the model
was trained with. TRL's DPOTrainer does the rest: `--loss_type`, `--beta`, `--ld_alpha` are its own.
"""

from dataclasses import dataclass, field

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import AutoModelForImageTextToText
from trl import ModelConfig, get_peft_config

from recipes.data.samples import ImageArguments, read_samples
from recipes.evaluation.preferences import read_pairs
from recipes.files import InputError
from recipes.trainers.dpo import PreferenceConfig, PreferenceTrainer, with_pairs
from recipes.trainers.setup import load_base_processor


@dataclass(kw_only=True)
class RecipeArguments(ImageArguments):
    pairs: str = field(metadata={"help": "JSONL file of recipes/build_preferences.py: study_id, chosen, rejected."})


def main() -> None:
    args, training_args, model_args = parse_run(
        RecipeArguments, PreferenceConfig, ModelConfig, default_config="configs/mrgr1/dpo.yaml"
    )

    ################
    # Dataset
    ################
    pairs = read_pairs(args.pairs)
    data = read_samples(args, training_args, args.views, keep=("study_id",))
    samples = {split: with_pairs(table, pairs) for split, table in data.samples.items()}
    if not len(samples["train"]):
        raise InputError(f"no study of {args.dataset}, split train, has a pair in {args.pairs}")

    ################
    # Model
    ################
    processor = load_base_processor(model_args, args.min_pixels, args.max_pixels)
    peft_config = get_peft_config(model_args)
    # With LoRA the reference is the model without its adapter, and is not loaded a second time.
    model, *references = (
        AutoModelForImageTextToText.from_pretrained(
            model_args.model_name_or_path,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            revision=model_args.model_revision,
        )
        for _ in range(1 if peft_config else 2)
    )

    ################
    # Training
    ################
    trainer = PreferenceTrainer(
        model=model,
        ref_model=next(iter(references), None),
        args=training_args,
        train_dataset=samples["train"],
        eval_dataset=samples.get("validation"),
        processing_class=processor,
        peft_config=peft_config,
        setup=PreferenceTrainer.prepare(
            *(args, training_args, model_args),
            samples=len(samples["train"]),
            rows=data.rows,
            starts=[model_args.model_name_or_path],
        ),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
