"""LM-RRG's second stage, CQRL: PPO on RadCliQ, its KL weight following the reward (Eqs. 3 to 5).

    accelerate launch recipes/ppo_lmrrg.py                                              # from stage 1 on MIMIC-CXR
    accelerate launch recipes/ppo_lmrrg.py --config recipes/configs/lmrrg/iu_cqrl.yaml
    accelerate launch recipes/ppo_lmrrg.py --rewards bleu --theta 0.15                  # Table 3, reward: BLEU4
    accelerate launch recipes/ppo_lmrrg.py --kl_controller fixed                        # Table 3, fixed lambda_KL of 1

It starts from the folder that recipes/sft_lmrrg.py ends in. E is frozen, each image is encoded once per batch of
completions, and the reference is a copy of G, or with LoRA (--use_peft) G without it. recipes/trainers/README.md has
the equations. The folder at the end holds the whole model; `--resume_from_checkpoint latest` continues.
"""

from dataclasses import dataclass, field

from trl import ModelConfig

from recipes.cli import parse_run, run
from recipes.data.samples import read_samples
from recipes.trainers.lmrrg import CQRLConfig, LMRRGArguments, check_trained, load_stage2
from recipes.trainers.ppo import PPOTrainer
from recipes.trainers.setup import choose_rewards
from rewards.table import RewardArguments


@dataclass
class RecipeArguments(LMRRGArguments):
    allow_scratch: bool = field(
        default=False, metadata={"help": "Permission to start from a model that was never trained."}
    )


def main() -> None:
    args, reward_args, training_args, model_args = parse_run(
        RecipeArguments, RewardArguments, CQRLConfig, ModelConfig, default_config="configs/lmrrg/mimic_cqrl.yaml"
    )
    if not args.allow_scratch:
        check_trained(model_args.model_name_or_path)

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
    setup = PPOTrainer.prepare(
        *(args, reward_args, training_args, model_args),
        samples=len(data.train),
        rows=data.rows,
        starts=[model_args.model_name_or_path],
        rewards=reward_funcs,
    )

    ################
    # Model
    ################
    model, processor, peft_config = load_stage2(model_args)

    ################
    # Training
    ################
    trainer = PPOTrainer(
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
