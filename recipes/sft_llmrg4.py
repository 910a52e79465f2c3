"""LLM-RG4's supervised fine-tuning in two stages, key sentences weighing more (TLW).

    accelerate launch recipes/sft_llmrg4.py --stage 1                                       # MIMIC-RG4, as the paper
    accelerate launch recipes/sft_llmrg4.py --stage 2 --config recipes/configs/llmrg4/mimic_rg4_stage2.yaml

Stage 1 trains the token fusion (ATF) alone, on frontal images without prior reports (sn). Stage 2 starts from its
checkpoint, adds the fusion's modules for lateral images and prior reports, and trains ATF and LoRA on the decoder, on
all four scenarios. `--key_weight 1` is the paper's ablation without TLW. Either stage ends in a folder that
`AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` read: LoRA is merged.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from datasets import concatenate_datasets
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from recipes.cli import check_hardware, parse, run
from recipes.data.prompt_tokens import count_tokens
from recipes.data.samples import columns_of, prepare_images, report_enlarged, to_samples
from recipes.data.schema import read_split
from recipes.files import InputError, read_prompt
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import resume_from, save_final
from recipes.trainers.clinical_evaluation import ClinicalArguments, ClinicalEvaluation
from recipes.trainers.config import check_run
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.llmrg4 import check_key_spans, load_start, report_long_priors
from recipes.trainers.scenario_sft import ScenarioSFTConfig, ScenarioSFTTrainer
from recipes.trainers.setup import save_run
from rewards.scenarios import SCENARIOS

VIEWS = "frontal+lateral"


@dataclass
class RecipeArguments:
    stage: Literal[1, 2] = field(metadata={"help": "1: the fusion alone, on sn; 2: fusion and LoRA, on all."})
    dataset: list[str] = field(metadata={"help": "Built data sets, folders or Hub ids; their train splits together."})
    scenarios: list[str] = field(
        default_factory=lambda: list(SCENARIOS), metadata={"help": "Scenarios whose rows are trained on (Table 5)."}
    )
    prompt_file: str = field(
        default="prompts/llmrg4.txt", metadata={"help": "Prompt file: a path, or a name beside the recipes."}
    )
    fusion: Literal["atf", "interleaved"] = field(
        default="atf", metadata={"help": "Fusion of stage 2: adaptive token fusion, or interleaved tokens (Table 4)."}
    )
    lateral_start: Literal["new", "frontal"] = field(
        default="new",
        metadata={
            "help": "Start of the lateral perceiver and its projection in stage 2: new weights, or the frontal ones."
        },
    )
    vision: str = field(
        default="microsoft/rad-dino", metadata={"help": "Image encoder (stage 1, when no checkpoint is given)."}
    )
    text: str = field(
        default="microsoft/BiomedVLP-CXR-BERT-specialized",
        metadata={"help": "Text encoder of the prior report (stage 1, when no checkpoint is given)."},
    )
    decoder: str = field(
        default="lmsys/vicuna-7b-v1.5",
        metadata={"help": "Decoder, of the Llama family (stage 1, when no checkpoint is given)."},
    )
    projector: Literal["linear", "mlp"] | None = field(
        default=None,
        metadata={
            "help": "Projections of a new fusion: one linear layer (the paper), or the authors' MLP; none: linear."
        },
    )
    perceiver: Literal["paper", "authors"] | None = field(
        default=None,
        metadata={
            "help": "Layers of a new fusion's perceivers: our reading of the paper, or the authors' code; none: paper."
        },
    )
    num_visual_tokens: int | None = field(
        default=None, metadata={"help": "Number of visual tokens of a new fusion (N in the paper); none: 128."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Largest number of training samples; none: all."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    args, clinical, training_args, model_args = parse(
        RecipeArguments,
        ClinicalArguments,
        ScenarioSFTConfig,
        ModelConfig,
        default_config="configs/llmrg4/mimic_rg4_stage1.yaml",
    )
    check_hardware(training_args, model_args)
    resume = resume_from(training_args)
    if args.stage == 1 and args.scenarios != ["sn"]:
        raise InputError(f"stage 1 trains on sn alone, not on --scenarios {' '.join(args.scenarios)}")

    ################
    # Dataset
    ################
    prompt, data = read_prompt(args.prompt_file), {}
    columns = (*columns_of(prompt, VIEWS), "scenario", "prior_report", "key_spans")
    for split in ("validation", "train") if training_args.eval_strategy != "no" else ("train",):
        rows = concatenate_datasets([read_split(name, split, columns) for name in args.dataset])
        kept = [i for i, scenario in enumerate(rows["scenario"]) if scenario in args.scenarios]
        if not kept:
            raise InputError(f"no row of {', '.join(args.dataset)} has a scenario of {', '.join(args.scenarios)}")
        data[split] = rows = rows.select(kept[: args.max_samples])
    if training_args.key_weight != 1:
        check_key_spans(rows, args.dataset)
    keep = ("scenario", "key_spans")
    samples = {name: to_samples(each, prompt, VIEWS, completion="plain", keep=keep) for name, each in data.items()}
    check_run(training_args, len(samples["train"]), clinical.metrics)
    parts = (
        [model_args.model_name_or_path] if model_args.model_name_or_path else [args.vision, args.text, args.decoder]
    )
    sources = sources_of(data, *parts, resume)
    repository = claim(training_args, sources, args.public_because)

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of the fusion's new modules
    model, processor = load_start(args, model_args)
    samples = prepare_images(samples, processor)
    peft_config = get_peft_config(model_args) if args.stage == 2 else None
    if args.stage == 1:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("model.token_fusion."))
    elif peft_config:
        peft_config.modules_to_save = ["token_fusion"]

    ################
    # Training
    ################
    interrupt = SaveOnInterrupt()
    trainer = ScenarioSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=samples["train"],
        eval_dataset=samples.get("validation"),
        processing_class=processor,
        peft_config=peft_config,
        callbacks=[interrupt],
    )
    if clinical.clinical_samples:
        trainer.add_callback(ClinicalEvaluation(trainer, clinical, data.get("validation", rows), prompt, VIEWS))
    save_run(training_args.output_dir, args, clinical, training_args, model_args, sources=sources)
    if training_args.process_index == 0:
        report_enlarged(samples["train"], processor)
        report_long_priors(rows, processor)
        count_tokens(samples["train"], processor, training_args.output_dir)
    trainer.train(resume_from_checkpoint=resume)
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
