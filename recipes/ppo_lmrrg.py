"""LM-RRG's second stage, CQRL: PPO on RadCliQ with a KL weight that follows the reward (section 2.3, Eqs. 3 to 5).

    accelerate launch recipes/ppo_lmrrg.py                                              # from stage 1 on MIMIC-CXR
    accelerate launch recipes/ppo_lmrrg.py --config recipes/configs/lmrrg/iu_cqrl.yaml
    accelerate launch recipes/ppo_lmrrg.py --rewards bleu --theta 0.15                  # Table 3, reward: BLEU4
    accelerate launch recipes/ppo_lmrrg.py --kl_controller fixed                        # Table 3, fixed lambda_KL of 1

It starts from the folder that recipes/sft_lmrrg.py ends in. E is frozen, each image is encoded once per batch of
completions, and the reference is a copy of G, or with LoRA (--use_peft) G without it. recipes/trainers/README.md has
the equations. The folder at the end holds the whole model; `--resume_from_checkpoint latest` continues.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig, get_peft_config

from recipes.cli import check_hardware, parse, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.data.samples import columns_of, prepare_images, to_samples
from recipes.files import InputError, read_prompt
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import resume_from, save_final
from recipes.trainers.collapse import StopOnCollapse
from recipes.trainers.config import check_run
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.lmrrg import LORA_OF_DECODER, check_trained, load_checkpoint
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.setup import choose_rewards, save_run
from rewards.table import RewardArguments


@dataclass
class RecipeArguments:
    dataset: str = field(metadata={"help": "A built data set's folder, or its Hub id."})
    prompt_file: str = field(default="prompts/lmrrg.txt", metadata={"help": "Prompt file, the one of stage 1."})
    views: Literal["frontal", "each"] = field(
        default="frontal", metadata={"help": "Images of a study: the frontal one, or every image as a sample."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Largest number of training samples; none: all."})
    stop_on_collapse: int = field(
        default=256, metadata={"help": "Stop once 0.95 of this many completions are one report; 0: never."}
    )
    allow_scratch: bool = field(default=False, metadata={"help": "Start from a model that was never trained."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    args, reward_args, training_args, model_args = parse(
        RecipeArguments, RewardArguments, PPOConfig, ModelConfig, default_config="configs/lmrrg/mimic_cqrl.yaml"
    )
    if training_args.use_vllm:
        raise InputError("vLLM does not know LM-RRG: set use_vllm: false")
    check_hardware(training_args, model_args)
    resume = resume_from(training_args)
    if not args.allow_scratch:
        check_trained(model_args.model_name_or_path)

    ################
    # Dataset
    ################
    prompt, labeler = read_prompt(args.prompt_file), load_labeler(reward_args.labeler)
    rows, data, keep = {}, {}, ("study_id", "report", "labels")
    for split in ("train", "validation") if training_args.eval_strategy != "no" else ("train",):
        rows[split] = read_labelled(args.dataset, split, labeler, columns_of(prompt, args.views))
        data[split] = to_samples(rows[split], prompt, args.views, keep=keep, limit=args.max_samples)
    sources = sources_of(rows, model_args.model_name_or_path, resume)
    repository = claim(training_args, sources, args.public_because)

    ################
    # Rewards
    ################
    reward_funcs = choose_rewards(reward_args, labeler, rows["train"]["report"], training_args.reward_weights)
    check_run(training_args, len(data["train"]), rewards=reward_funcs)

    ################
    # Model
    ################
    model, processor = load_checkpoint(model_args.model_name_or_path, model_args, freeze_extractor=True)
    data = prepare_images(data, processor)
    peft_config = get_peft_config(model_args)
    if peft_config:
        peft_config.target_modules = peft_config.target_modules or LORA_OF_DECODER
        peft_config.modules_to_save = ["visual_transfer"]

    ################
    # Training
    ################
    interrupt = SaveOnInterrupt()
    trainer = PPOTrainer(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        peft_config=peft_config,
        callbacks=[interrupt],
    )
    collapse = StopOnCollapse(trainer, args.stop_on_collapse)
    trainer.add_callback(collapse)
    save_run(training_args.output_dir, args, reward_args, training_args, model_args, sources=sources)
    trainer.train(resume_from_checkpoint=resume)
    if collapse.sentence:
        sys.exit(collapse.sentence)
    if interrupt.interrupted:
        sys.exit(f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint latest")

    ################
    # Saving
    ################
    # transformers reads no adapter that has whole modules
    save_final(trainer, training_args.output_dir, merged=peft_config is not None)
    if repository:
        push_checkpoint(repository, training_args.output_dir)


if __name__ == "__main__":
    run(main)
