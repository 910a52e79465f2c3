"""DPO on pairs of reports, for vision-language models and ours, with RRG-DPO's and CheXalign's terms.

    accelerate launch recipes/dpo.py --dataset outputs/data/phantom --pairs outputs/phantom/pairs.jsonl \
        --model_name_or_path outputs/phantom/sft --prompt_file prompts/mrgr1_tiny.txt --views frontal --use_cpu true

recipes/build_preferences.py makes the pairs. The prompt, the views and the range of pixels are those that the model
was trained with; encoders are frozen and LoRA placed as in recipes/rl.py. TRL's DPOTrainer does the rest:
`--loss_type`, `--beta`, `--ld_alpha` are its own. recipes/configs/mrgr1/algorithms/rrg_dpo.yaml is RRG-DPO,
mrgr1/dpo_phantom.yaml is for two CPU cores.
"""

from dataclasses import dataclass, field

from trl import ModelConfig

from recipes.cli import parse_run, run
from recipes.data.samples import ImageArguments, read_samples
from recipes.files import InputError
from recipes.trainers.dpo import PreferenceConfig, PreferenceTrainer, read_preferences, with_pairs
from recipes.trainers.policies import load_policy


@dataclass(kw_only=True)
class RecipeArguments(ImageArguments):
    pairs: str = field(metadata={"help": "JSONL file of recipes/build_preferences.py: study_id, chosen, rejected."})
    labeler: str = field(
        default="lexical",
        metadata={"help": "Labeler of conflict_weight's sentences: lexical, chexbert or chexbert:MODEL."},
    )


def main() -> None:
    args, training_args, model_args = parse_run(
        RecipeArguments, PreferenceConfig, ModelConfig, default_config="configs/mrgr1/dpo.yaml"
    )

    ################
    # Dataset
    ################
    pairs = read_preferences(args, training_args)
    data = read_samples(args, training_args, args.views, keep=("study_id",))
    samples = {split: with_pairs(table, pairs) for split, table in data.samples.items()}
    if not len(samples["train"]):
        raise InputError(f"no study of {args.dataset}, split train, has a pair in {args.pairs}")

    ################
    # Model
    ################
    model, processor, peft_config = load_policy(args, training_args, model_args)

    ################
    # Training
    ################
    trainer = PreferenceTrainer(
        model=model,
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
