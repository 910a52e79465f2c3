"""MRG-R1's SFT ablation (Table II), and the warm start of models that cannot write reports yet.

    accelerate launch recipes/sft_mrgr1.py                                                 # the paper's IU X-Ray row
    accelerate launch recipes/sft_mrgr1.py --config recipes/configs/mrgr1/sft_phantom.yaml # two CPU cores

Cross-entropy on the reports, with TRL's own SFTTrainer. `--target reasoning` puts the report inside
<think>/<report>, the reasoning being the reference labels by name; `--target plain` is the report alone.
"""

from dataclasses import dataclass, field
from typing import Literal

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from trl import ModelConfig, SFTTrainer, get_peft_config

from recipes.data.samples import ImageArguments, read_samples
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.setup import load_base_processor


@dataclass
class RecipeArguments(ImageArguments):
    target: Literal["plain", "reasoning"] = field(
        default="plain", metadata={"help": "Text that is learned: the report alone, or in tags after its findings."}
    )
    labeler: str = field(
        default="lexical",
        metadata={"help": "Labeler of the findings in <think>: lexical, chexbert or chexbert:MODEL."},
    )


class MRGR1SFTTrainer(RecipeTrainer, SFTTrainer):
    """SFTTrainer with atomic checkpoints: a killed run never leaves a partial one."""


def main() -> None:
    args, training_args, model_args = parse_run(
        RecipeArguments, SFTRecipeConfig, ModelConfig, default_config="configs/mrgr1/sft_iu.yaml"
    )

    ################
    # Dataset
    ################
    labeler = args.labeler if args.target == "reasoning" else None
    data = read_samples(args, training_args, args.views, completion=args.target, keep=("report",), labeler=labeler)

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
    # Training
    ################
    trainer = MRGR1SFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        setup=MRGR1SFTTrainer.prepare(
            *(args, training_args, model_args),
            samples=len(data.train),
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
