"""MRG-R1: GRPO with the MCCS reward and the <think>/<report> format reward on a Qwen2.5-VL.

    accelerate launch recipes/grpo_mrgr1.py                                                # the paper's IU X-Ray run
    accelerate launch --config_file accelerate_configs/zero1.yaml recipes/grpo_mrgr1.py \
        --config recipes/configs/mrgr1/mimic.yaml                                          # the paper's MIMIC-CXR run
    accelerate launch recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/phantom.yaml    # two CPU cores, see there
    torchrun --nproc_per_node 2 recipes/grpo_mrgr1.py --config recipes/configs/mrgr1/phantom.yaml

Any value of the YAML can be overridden, e.g. `--learning_rate 1e-5`; `--resume_from_checkpoint latest` continues.
"""

import sys
from dataclasses import dataclass, field

from trl import ModelConfig, get_peft_config

from recipes.cli import check_hardware, parse, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.data.model_files import check_model
from recipes.data.processors import load_processor
from recipes.data.samples import prepare_images, to_samples
from recipes.files import InputError, read_prompt
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import resume_from, save_final
from recipes.trainers.collapse import StopOnCollapse
from recipes.trainers.config import check_run
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.setup import choose_rewards, save_run
from rewards.table import RewardArguments


@dataclass
class RecipeArguments:
    dataset: str = field(metadata={"help": "A built data set's folder, or its Hub id."})
    prompt_file: str = field(
        default="prompts/mrgr1_reasoning.txt", metadata={"help": "The prompt: a path, or a file beside the recipes."}
    )
    views: str = field(default="each", metadata={"help": "each image a sample (paper), frontal, or all at once."})
    max_samples: int | None = field(default=None, metadata={"help": "Use this many training samples at most."})
    min_pixels: int | None = field(default=None, metadata={"help": "Images are scaled up to this many pixels."})
    max_pixels: int | None = field(default=None, metadata={"help": "Images are scaled down to this many pixels."})
    stop_on_collapse: int = field(
        default=256, metadata={"help": "Stop once 0.95 of this many completions are one report; 0: never."}
    )
    allow_no_kl: bool = field(default=False, metadata={"help": "Allow beta 0: no KL term, unlike Eq. 1."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    args, reward_args, training_args, model_args = parse(
        RecipeArguments, RewardArguments, MRGR1Config, ModelConfig, default_config="configs/mrgr1/iu.yaml"
    )
    if training_args.beta == 0 and not args.allow_no_kl:
        raise InputError("beta is 0, so Eq. 1's KL term would be off: set beta (ours: 0.04) or pass --allow_no_kl")
    check_hardware(training_args, model_args)
    resume = resume_from(training_args)

    ################
    # Dataset
    ################
    prompt, labeler = read_prompt(args.prompt_file), load_labeler(reward_args.labeler)
    rows, data, keep = {}, {}, ("study_id", "report", "labels")
    for split in ("train", "validation") if training_args.eval_strategy != "no" else ("train",):
        rows[split] = read_labelled(args.dataset, split, labeler)
        data[split] = to_samples(rows[split], prompt, args.views, keep=keep, limit=args.max_samples)
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
    # Rewards
    ################
    reward_funcs = choose_rewards(reward_args, labeler, rows["train"]["report"], training_args.reward_weights)
    check_run(training_args, len(data["train"]), rewards=reward_funcs)

    ################
    # Training
    ################
    interrupt = SaveOnInterrupt()
    trainer = MRGR1Trainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        peft_config=get_peft_config(model_args),
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
    save_final(trainer, training_args.output_dir)
    if repository:
        push_checkpoint(repository, training_args.output_dir)


if __name__ == "__main__":
    run(main)
