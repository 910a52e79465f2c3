"""LLM-RG4 trained further by GRPO on any rewards, in all four scenarios: no part of the paper.

    accelerate launch recipes/rl_llmrg4.py --dataset outputs/data/mimic_rg4 --rewards severity \
        --model_name_or_path outputs/llmrg4/stage2 --output_dir outputs/llmrg4/grpo
    python recipes/rl_llmrg4.py --config recipes/configs/llmrg4/grpo_phantom.yaml          # two CPU cores, see there

It starts from a folder of stage 2 (recipes/sft_llmrg4.py). Lateral images and prior reports reach the policy and its
reference in every pass (recipes/trainers/study_inputs.py). With LoRA the decoder is trained by adapters and the fusion
as a whole; the encoders stay frozen. TRL's GRPOConfig has the rest: `--beta`, `--num_generations`, `--epsilon`.
"""

from dataclasses import dataclass, field

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from trl import ModelConfig, get_peft_config

from recipes.data.samples import DataArguments, read_samples
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.llmrg4 import VIEWS, load_policy_processor
from recipes.trainers.setup import choose_rewards
from rewards.table import RewardArguments


@dataclass
class RecipeArguments(DataArguments):
    prompt_file: str = field(
        default="prompts/llmrg4.txt",
        metadata={"help": "Prompt file of stage 2: a path, or a name beside the recipes."},
    )


def main() -> None:
    args, reward_args, training_args, model_args = parse_run(
        RecipeArguments, RewardArguments, MRGR1Config, ModelConfig, default_config="configs/llmrg4/grpo.yaml"
    )
    processor = load_policy_processor(model_args)

    ################
    # Dataset
    ################
    data = read_samples(
        args,
        training_args,
        VIEWS,
        keep=("study_id", "report", "labels"),
        labeler=reward_args.labeler,
        limited=("train", "validation"),
    )

    ################
    # Model
    ################
    training_args.model_init_kwargs = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "revision": model_args.model_revision,
    }
    peft_config = get_peft_config(model_args)
    if peft_config:
        peft_config.modules_to_save = ["token_fusion"]

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
        peft_config=peft_config,
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
