"""LM-RRG's first stage: report and diseases learned together (section 2.4), E trained with the rest.

    accelerate launch recipes/sft_lmrrg.py                                              # MIMIC-CXR, as the paper
    accelerate launch recipes/sft_lmrrg.py --config recipes/configs/lmrrg/iu.yaml       # IU X-Ray, the same values
    accelerate launch recipes/sft_lmrrg.py --lambda_disease 0                           # Table 3, w/o L_disease
    accelerate launch recipes/sft_lmrrg.py --region_attn_mode text_query --lambda_region 0.1  # ours: boxes

Without --model_name_or_path the model is put together from BiomedCLIP and a decoder, and the rows of Table 3 that
concern it are arguments: --use_global_feature, --use_region_features, --use_instruction false, --region_prompt name.
With LoRA (--use_peft) the decoder is trained by adapters, E and VTrans as a whole; it is merged at the end. The folder
then holds the whole model, which recipes/ppo_lmrrg.py, the second stage, and recipes/generate.py read.
"""

from dataclasses import dataclass, field

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import set_seed
from trl import ModelConfig

from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.disease_sft import DiseaseSFTTrainer
from recipes.trainers.lmrrg import LMRRGArguments, ModelParts, load_stage1, read_stage1, report_boxes


@dataclass
class RecipeArguments(LMRRGArguments):
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of the diseases: lexical, chexbert or chexbert:MODEL."}
    )
    lambda_disease: float = field(default=1.0, metadata={"help": "Weight of L_disease; 0: no labels, no head."})
    lambda_region: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss that pulls each region's attention into its box (column boxes; needs "
            "--region_attn_mode text_query or --region_pool text_attn); 0: none, as in the paper."
        },
    )


def main() -> None:
    args, parts, training_args, model_args = parse_run(
        RecipeArguments, ModelParts, SFTRecipeConfig, ModelConfig, default_config="configs/lmrrg/mimic.yaml"
    )

    ################
    # Dataset
    ################
    data = read_stage1(args, training_args)
    losses = [f"{name}_loss" for name in ("disease", "region") if getattr(args, f"lambda_{name}")]
    start = model_args.model_name_or_path
    setup = DiseaseSFTTrainer.prepare(
        *(args, parts, training_args, model_args),
        samples=len(data.train),
        rows=data.rows,
        starts=[start] if start else [parts.biomedclip, parts.decoder],
        metrics=("report_loss", *losses) if losses else (),
    )

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new modules
    model, processor, peft_config = load_stage1(parts, args, model_args)
    if args.lambda_region:
        report_boxes(data.rows["train"], model.config.region_names)

    ################
    # Training
    ################
    trainer = DiseaseSFTTrainer(
        model=model,
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
