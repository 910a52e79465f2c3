"""LM-RRG's first stage: report and diseases learned together (section 2.4), E trained with the rest.

    accelerate launch recipes/sft_lmrrg.py                                              # MIMIC-CXR, as the paper
    accelerate launch recipes/sft_lmrrg.py --config recipes/configs/lmrrg/iu.yaml       # IU X-Ray, the same values
    accelerate launch recipes/sft_lmrrg.py --lambda_disease 0                           # Table 3, w/o L_disease

Without --model_name_or_path the model is put together from BiomedCLIP and a decoder, and the rows of Table 3 that
concern it are arguments: --use_global_feature, --use_region_features, --use_instruction false, --region_prompt name.
With LoRA (--use_peft) the decoder is trained by adapters, E and VTrans as a whole; it is merged at the end. The folder
then holds the whole model, which recipes/ppo_lmrrg.py, the second stage, and recipes/generate.py read.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from transformers import set_seed
from trl import ModelConfig, get_peft_config

from recipes.cli import check_hardware, parse, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.data.samples import columns_of, prepare_images, to_samples
from recipes.data.schema import read_split
from recipes.files import read_prompt
from recipes.hub.push import WHY_PUBLIC, claim, push_checkpoint, sources_of
from recipes.trainers.checkpoints import resume_from, save_final
from recipes.trainers.clinical_evaluation import ClinicalArguments, ClinicalEvaluation
from recipes.trainers.config import SFTRecipeConfig, check_run
from recipes.trainers.disease_sft import DiseaseSFTTrainer
from recipes.trainers.interrupt import SaveOnInterrupt
from recipes.trainers.lmrrg import LORA_OF_DECODER, load_checkpoint, load_parts
from recipes.trainers.setup import save_run


@dataclass
class RecipeArguments:
    dataset: str = field(metadata={"help": "A built data set's folder, or its Hub id."})
    prompt_file: str = field(
        default="prompts/lmrrg.txt", metadata={"help": "Prompt file: a path, or a name beside the recipes."}
    )
    views: Literal["frontal", "each"] = field(
        default="frontal", metadata={"help": "Images of a study: the frontal one, or every image as a sample."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Largest number of training samples; none: all."})
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of the diseases: lexical, chexbert or chexbert:MODEL."}
    )
    lambda_disease: float = field(default=1.0, metadata={"help": "Weight of L_disease; 0: no labels, no head."})
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


@dataclass
class ModelParts:
    """Of a model that is put together; what is not given is as in the paper (modeling/configuration_lmrrg.py)."""

    biomedclip: str = field(
        default="outputs/biomedclip",
        metadata={"help": "Folder of a BiomedCLIP converted by recipes/convert_biomedclip.py."},
    )
    decoder: str = field(
        default="Salesforce/blip2-opt-2.7b", metadata={"help": "A BLIP-2 or any causal language model."}
    )
    region_descriptions: str | None = field(
        default=None, metadata={"help": "JSON file with the regions' names and descriptions; none: the 29 shipped."}
    )
    region_prompt: Literal["description", "name"] | None = field(
        default=None,
        metadata={"help": "Text of a region: its description or its bare name (Table 3); none: description."},
    )
    region_attn_mode: Literal["image_query", "text_query"] | None = field(
        default=None,
        metadata={
            "help": "Query of the cross-attention: image patches (the paper's wording) or the region's text; "
            "none: image_query."
        },
    )
    region_pool: Literal["mean", "text_attn", "cls"] | None = field(
        default=None,
        metadata={
            "help": "Feature of a region from its patches: their mean, their mean weighted by likeness to the text, "
            "or the class token's; none: mean."
        },
    )
    region_text: Literal["pooled", "tokens"] | None = field(
        default=None,
        metadata={"help": "Features of a region's text: one for the whole text, or one for each token; none: pooled."},
    )
    region_chunk_size: int | None = field(default=None, metadata={"help": "Regions at once: less memory, more time."})
    use_global_feature: bool | None = field(default=None)
    use_region_features: bool | None = field(default=None)
    use_instruction: bool | None = field(default=None)


def main() -> None:
    args, parts, clinical, training_args, model_args = parse(
        RecipeArguments,
        ModelParts,
        ClinicalArguments,
        SFTRecipeConfig,
        ModelConfig,
        default_config="configs/lmrrg/mimic.yaml",
    )
    check_hardware(training_args, model_args)
    resume = resume_from(training_args)

    ################
    # Dataset
    ################
    prompt, rows, data = read_prompt(args.prompt_file), {}, {}
    columns, keep, labeler = columns_of(prompt, args.views), (), None
    if args.lambda_disease:
        keep, labeler = ("disease_labels",), load_labeler(args.labeler)
    for split in ("train", "validation") if training_args.eval_strategy != "no" else ("train",):
        if labeler:
            rows[split] = read_labelled(args.dataset, split, labeler, columns)
            rows[split] = rows[split].rename_column("labels", "disease_labels")
        else:
            rows[split] = read_split(args.dataset, split, columns)
        limit = args.max_samples if split == "train" else None
        data[split] = to_samples(rows[split], prompt, args.views, completion="plain", keep=keep, limit=limit)
    losses = ("report_loss", "disease_loss") if args.lambda_disease else ()
    check_run(training_args, len(data["train"]), (*clinical.metrics, *losses))
    starts = [model_args.model_name_or_path] if model_args.model_name_or_path else [parts.biomedclip, parts.decoder]
    sources = sources_of(rows, *starts, resume)
    repository = claim(training_args, sources, args.public_because)

    ################
    # Model
    ################
    set_seed(training_args.seed)  # of new modules
    if model_args.model_name_or_path:
        changed = {"freeze_extractor": False, "lambda_disease": args.lambda_disease}
        model, processor = load_checkpoint(model_args.model_name_or_path, model_args, parts=parts, **changed)
    else:
        model, processor = load_parts(parts, args.lambda_disease, model_args)
    data = prepare_images(data, processor)
    peft_config = get_peft_config(model_args)
    if peft_config:
        peft_config.target_modules = peft_config.target_modules or LORA_OF_DECODER
        peft_config.modules_to_save = ["visual_extractor", "visual_transfer"]

    ################
    # Training
    ################
    interrupt = SaveOnInterrupt()
    trainer = DiseaseSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        peft_config=peft_config,
        callbacks=[interrupt],
    )
    if clinical.clinical_samples:
        trainer.add_callback(ClinicalEvaluation(trainer, clinical, rows.get("validation"), prompt, args.views))
    save_run(training_args.output_dir, args, parts, clinical, training_args, model_args, sources=sources)
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
