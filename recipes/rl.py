"""GRPO, RLOO or PPO on any rewards, of a Qwen2.5-VL, an LLM-RG4 or an LM-RRG.

    accelerate launch recipes/rl.py --algorithm rloo --dataset outputs/data/iu_xray --rewards severity \
        --model_name_or_path outputs/mrgr1/sft_iu --output_dir outputs/rl/rloo
    python recipes/rl.py --config recipes/configs/rl/ppo.yaml --config recipes/configs/rl/llmrg4.yaml

The second line is for two CPU cores: rl/grpo.yaml, rl/rloo.yaml and rl/ppo.yaml have an algorithm's settings, and
rl/mrgr1.yaml, rl/llmrg4.yaml and rl/lmrrg.yaml a tiny policy and its data; any two go together. The policy is what
the model's config.json says; prompt, views, frozen encoders and LoRA's place are those of its own scripts. Each
algorithm has its own arguments: `--algorithm ppo --help` lists PPO's.
"""

from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig

from recipes.cli import parse_run, read_setting, run
from recipes.data.samples import read_samples
from recipes.trainers.policies import PolicyArguments, choose_algorithm, complete_arguments, load_policy
from recipes.trainers.setup import choose_rewards
from rewards.table import RewardArguments


@dataclass
class RecipeArguments(PolicyArguments):
    algorithm: Literal["grpo", "rloo", "ppo"] = field(
        default="grpo", metadata={"help": "Algorithm: grpo (MRG-R1's), rloo, or ppo (LM-RRG's)."}
    )


def main() -> None:
    algorithm = read_setting("algorithm", "grpo")
    config_class, trainer_class = choose_algorithm(algorithm)
    args, reward_args, training_args, model_args = parse_run(
        *(RecipeArguments, RewardArguments, config_class, ModelConfig), default_config=f"configs/rl/{algorithm}.yaml"
    )
    complete_arguments(args, training_args, model_args)

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
    # Rewards
    ################
    references = data.rows["train"]["report"]
    reward_funcs = choose_rewards(reward_args, data.labeler, references, training_args.reward_weights)
    setup = trainer_class.prepare(
        *(args, reward_args, training_args, model_args),
        samples=len(data.train),
        rows=data.rows,
        starts=[model_args.model_name_or_path],
        rewards=reward_funcs,
    )

    ################
    # Model
    ################
    model, processor, peft_config = load_policy(args, training_args, model_args)

    ################
    # Training
    ################
    trainer = trainer_class(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        peft_config=peft_config,
        setup=setup,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
