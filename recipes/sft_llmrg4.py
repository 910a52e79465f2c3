"""LLM-RG4's supervised fine-tuning in two stages, key sentences weighing more (TLW).

    accelerate launch recipes/sft_llmrg4.py --stage 1                                       # MIMIC-RG4, as the paper
    accelerate launch recipes/sft_llmrg4.py --stage 2 --config recipes/configs/llmrg4/mimic_rg4_stage2.yaml

Stage 1 trains the token fusion (ATF) alone, on frontal images without prior reports (sn). Stage 2 starts from its
checkpoint, adds the fusion's modules for lateral images and prior reports, and trains ATF and LoRA on the decoder, on
all four scenarios. `--key_weight 1` is the paper's ablation without TLW. Either stage ends in a folder that
`AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` read: LoRA is merged.
"""

from dataclasses import dataclass, field
from typing import Literal

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from recipes.files import InputError
from recipes.trainers.llmrg4 import FusionParts, ScenarioArguments, load_start, read_scenarios, report_inputs
from recipes.trainers.scenario_sft import ScenarioSFTConfig, ScenarioSFTTrainer


@dataclass(kw_only=True)
class RecipeArguments(ScenarioArguments):
    stage: Literal[1, 2] = field(
        metadata={"help": "Stage of training: 1, the fusion alone, on sn; 2, the fusion and LoRA, on all scenarios."}
    )
    fusion: Literal["atf", "interleaved"] = field(
        default="atf", metadata={"help": "Fusion of stage 2: adaptive token fusion, or interleaved tokens (Table 4)."}
    )
    lateral_start: Literal["new", "frontal"] = field(
        default="new",
        metadata={
            "help": "Start of the lateral perceiver and projection in stage 2: new weights, or the frontal ones."
        },
    )


def main() -> None:
    args, parts, training_args, model_args = parse_run(
        *(RecipeArguments, FusionParts, ScenarioSFTConfig, ModelConfig),
        default_config="configs/llmrg4/mimic_rg4_stage1.yaml",
    )
    if args.stage == 1 and args.scenarios != ["sn"]:
        raise InputError(f"stage 1 trains on sn alone, not on --scenarios {' '.join(args.scenarios)}")

    ################
    # Dataset
    ################
    data = read_scenarios(args, training_args)
    start = model_args.model_name_or_path
    setup = ScenarioSFTTrainer.prepare(
        *(args, parts, training_args, model_args),
        samples=len(data.train),
        rows=data.rows,
        starts=[start] if start else [parts.vision, parts.text, parts.decoder],
    )

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of the fusion's new modules
    model, processor = load_start(args, parts, model_args)
    peft_config = get_peft_config(model_args) if args.stage == 2 else None
    if args.stage == 1:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("model.token_fusion."))
    elif peft_config:
        peft_config.modules_to_save = ["token_fusion"]

    ################
    # Training
    ################
    trainer = ScenarioSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        peft_config=peft_config,
        setup=setup,
    )
    if training_args.process_index == 0:
        report_inputs(data, processor, training_args.output_dir)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ################
    # Saving
    ################
    trainer.save_model(training_args.output_dir)
    trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
