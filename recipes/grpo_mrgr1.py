"""MRG-R1: GRPO with the MCCS reward and the <think>/<report> format reward on a Qwen2.5-VL.

    accelerate launch recipes/grpo_mrgr1.py                                                # the paper's IU X-Ray run
    accelerate launch --config_file accelerate_configs/zero1.yaml recipes/grpo_mrgr1.py \
        --config recipes/configs/mrgr1/mimic.yaml                                          # the paper's MIMIC-CXR run
    accelerate launch recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/phantom.yaml    # two CPU cores, see there
    torchrun --nproc_per_node 2 recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/phantom.yaml

Any value of the YAML can be overridden, e.g. `--learning_rate 1e-5`; `--resume_from_checkpoint latest` continues.
"""

from dataclasses import dataclass, field

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from trl import ModelConfig, get_peft_config

from recipes.data.samples import ImageArguments, read_samples
from recipes.files import InputError
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.setup import choose_rewards, load_base_processor
from rewards.table import RewardArguments


@dataclass
class RecipeArguments(ImageArguments):
    prompt_file: str = field(
        default="prompts/mrgr1_reasoning.txt", metadata={"help": "Prompt file: a path, or a name beside the recipes."}
    )
    allow_no_kl: bool = field(default=False, metadata={"help": "Permission for beta 0: no KL term, unlike Eq. 1."})


def main() -> None:
    args, reward_args, training_args, model_args = parse_run(
        RecipeArguments, RewardArguments, MRGR1Config, ModelConfig, default_config="configs/mrgr1/iu.yaml"
    )
    if training_args.beta == 0 and not args.allow_no_kl:
        raise InputError("beta is 0, so Eq. 1's KL term would be off: set beta (ours: 0.04) or pass --allow_no_kl")

    ################
    # Dataset
    ################
    data = read_samples(
        args,
        training_args,
        args.views,
        keep=("study_id", "report", "labels"),
        labeler=reward_args.labeler,
        limited=("train", "validation"),
    )

    ################
    # Model
    ################
    processor = load_base_processor(model_args, args.min_pixels, args.max_pixels)
    training_args.model_init_kwargs = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "revision": model_args.model_revision,
    }

    ################
    # Rewards
    ################
    references = data.rows["train"]["report"]
    reward_funcs = choose_rewards(reward_args, data.labeler, references, training_args.reward_weights)

    ################
    # Training
    ################
    trainer = MRGR1Trainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        setup=MRGR1Trainer.prepare(
            *(args, reward_args, training_args, model_args),
            samples=len(data.train),
            rows=data.rows,
            starts=[model_args.model_name_or_path],
            rewards=reward_funcs,
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
