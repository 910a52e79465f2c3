"""What LM-RRG's two stages read and start from."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import AutoConfig
from transformers.utils import cached_file
from trl import ModelConfig, SFTConfig, get_peft_config

from modeling import LMRRGForConditionalGeneration, LMRRGProcessor
from recipes.data.model_files import check_folder
from recipes.data.samples import DataArguments, TrainingData, read_samples
from recipes.files import InputError
from recipes.trainers.ppo import PPOConfig


@dataclass
class LMRRGArguments(DataArguments):
    """DataArguments of both stages."""

    prompt_file: str = field(
        default="prompts/lmrrg.txt",
        metadata={"help": "Prompt file, the same one in both stages: a path, or a name beside the recipes."},
    )
    views: Literal["frontal", "each"] = field(
        default="frontal", metadata={"help": "Images of a study: the frontal one, or every image as a sample."}
    )


@dataclass
class CQRLConfig(PPOConfig):
    """PPOConfig of stage 2. Raises InputError where reports are to be written by vLLM.

    Example:

        CQRLConfig("outputs/cqrl", theta=0.5, lam=1.0)
    """

    def __post_init__(self):
        super().__post_init__()
        if self.use_vllm:
            raise InputError("vLLM does not know LM-RRG: set use_vllm: false")


@dataclass
class ModelParts:
    """Of a model that is put together; what is None is as in the paper (modeling/configuration_lmrrg.py)."""

    biomedclip: str = field(
        default="outputs/biomedclip",
        metadata={"help": "Folder of a BiomedCLIP converted by recipes/convert_biomedclip.py."},
    )
    decoder: str = field(
        default="Salesforce/blip2-opt-2.7b", metadata={"help": "Decoder: a BLIP-2 or any causal language model."}
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
    region_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Number of regions computed at once (fewer: less memory, more time); none: all."},
    )
    use_global_feature: bool | None = field(
        default=None, metadata={"help": "Use of the whole image's feature in the prompt (Table 3); none: true."}
    )
    use_region_features: bool | None = field(
        default=None, metadata={"help": "Use of the regions' features in the prompt (Table 3); none: true."}
    )
    use_instruction: bool | None = field(
        default=None, metadata={"help": "Use of the instruction's text in the prompt (Table 3); none: true."}
    )


LOSS_WEIGHTS = ("lambda_disease", "lambda_region")  # of stage 1, beside the report's loss
LORA_OF_DECODER = r".*language_model.*\.(q|v)_proj"  # the image encoder has a q_proj too


def lora_of_decoder(model_args: ModelConfig, modules: list[str]) -> PeftConfig | None:
    """The LoRA that `model_args` ask for, on the decoder's queries and values unless they name others; or None.

    `modules` are trained as a whole beside it.
    """
    peft_config = get_peft_config(model_args)
    if peft_config:
        peft_config.target_modules = peft_config.target_modules or LORA_OF_DECODER
        peft_config.modules_to_save = modules
    return peft_config


def read_stage1(args: LMRRGArguments, training_args: SFTConfig) -> TrainingData:
    """The samples of stage 1, with the columns that its losses need, `disease_labels` and `boxes`.

    `args`: the RecipeArguments of recipes/sft_lmrrg.py. Raises InputError where a column is missing.
    """
    diseases = {"labeler": args.labeler, "labels": "disease_labels"} if args.lambda_disease else {}
    keep = ("report", *["disease_labels"] * bool(args.lambda_disease), *["boxes"] * bool(args.lambda_region))
    return read_samples(args, training_args, args.views, completion="plain", keep=keep, **diseases)


def report_boxes(rows: Dataset, region_names: Sequence[str]) -> Counter:
    """Prints how many of `rows` have boxes of the regions, and which other names boxes have; returns boxes by name.

    Raises InputError where no box has the name of a region, and where a side of one is missing, naming the study.
    """
    names, boxed = Counter(), 0
    for study, boxes in zip(rows["study_id"], rows["boxes"], strict=True):
        names.update(box["region"] for box in boxes or ())
        boxed += any(box["region"] in region_names for box in boxes or ())
        for box in boxes or ():
            sides = [box[side] for side in ("x0", "y0", "x1", "y1")]
            if not all(side is not None and math.isfinite(side) for side in sides):
                raise InputError(f"study {study}: the box of {box['region']} has the sides {sides}; build it again")
    if not boxed:
        raise InputError(
            f"no row has a box of a region ({', '.join(region_names[:3])}, ...), which --lambda_region needs: build "
            "with boxes (build_mimic_cxr.py --imagenome, or the phantom), or leave it 0"
        )
    if os.environ.get("RANK", "0") == "0":
        others = {name: number for name, number in names.items() if name not in region_names}
        note = (
            f"; {sum(others.values())} boxes have other names ({', '.join(sorted(others)[:3])}, ...)" if others else ""
        )
        print(f"{boxed} of {len(rows)} training rows have boxes of regions{note}", flush=True)
    return names


def load_stage1(
    parts: ModelParts, args: LMRRGArguments, model_args: ModelConfig
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor, PeftConfig | None]:
    """The model, processor and LoRA, if any, of stage 1, which trains E and VTrans as a whole (section 2.4).

    The model is `model_name_or_path`, or put together from `parts`; its losses have the weights of `args`. Raises
    InputError as `load_checkpoint` and `load_parts`.
    """
    name, weights = model_args.model_name_or_path, {key: getattr(args, key) for key in LOSS_WEIGHTS}
    if name is None:
        model, processor = load_parts(parts, weights, model_args)
    else:
        model, processor = load_checkpoint(name, model_args, parts, freeze_extractor=False, **weights)
    return model, processor, lora_of_decoder(model_args, ["visual_extractor", "visual_transfer"])


def load_stage2(model_args: ModelConfig) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor, PeftConfig | None]:
    """The model, processor and LoRA, if any, of stage 2, in which E is frozen and VTrans trained as a whole
    (section 2.3). Raises InputError as `load_checkpoint`."""
    model, processor = load_checkpoint(model_args.model_name_or_path, model_args, freeze_extractor=True)
    return model, processor, lora_of_decoder(model_args, ["visual_transfer"])


def load_parts(
    parts: ModelParts, weights: dict[str, float], model_args: ModelConfig
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor]:
    """A fresh LM-RRG from the pretrained parts and with the settings of `parts`; `weights`: of its losses, by name.

    Raises InputError on a part that cannot be loaded, and on settings that LMRRGConfig refuses.
    """
    if model_args.dtype == "auto":
        raise InputError("--dtype auto: name float32 or bfloat16")
    check_folder(parts.biomedclip)
    check_folder(parts.decoder)
    try:
        model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(
            **{name: value for name, value in vars(parts).items() if value is not None},
            **weights,
            dtype=getattr(torch, model_args.dtype),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"stage 1 cannot start: {str(error).splitlines()[0]}") from error
    model.set_attn_implementation(model_args.attn_implementation or "sdpa")
    return model, processor


def load_checkpoint(
    name: str, model_args: ModelConfig, parts: ModelParts | None = None, **config
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor]:
    """The LM-RRG in folder or Hub id `name`, its configuration changed by `config`, and its processor.

    Raises InputError where it is not there or of another system, its weights are not those of its configuration (the
    disease head alone may come or go with `lambda_disease`), or it was made otherwise than `parts` say.
    """
    check_folder(name, weights=False)
    try:
        settings = AutoConfig.from_pretrained(name, revision=model_args.model_revision, **config)
        if settings.model_type != "lmrrg":
            raise InputError(f"{name} is a {settings.model_type} model, not an LM-RRG")
        check_folder(name, images=True)
        settings.check_weights()  # of `config`, which from_pretrained does not check
        model, loaded = LMRRGForConditionalGeneration.from_pretrained(
            name,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            revision=model_args.model_revision,
            output_loading_info=True,
            **config,
        )
        processor = LMRRGProcessor.from_pretrained(name, revision=model_args.model_revision)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id  # OPT's own is the newline
    misfits = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind]]
    if misfits := sorted(key for key in misfits if "disease_head" not in key):
        raise InputError(f"the weights of {name} are not those of its config.json: {misfits[0]} does not fit")
    for key, value in vars(parts).items() if parts else ():
        if key == "region_chunk_size":
            model.config.region_chunk_size = value
        elif key not in ("biomedclip", "decoder") and value not in (None, getattr(model.config, key, None)):
            raise InputError(
                f"--{key} {value} is for a model that is put together, and {name} was made otherwise: leave out "
                "--model_name_or_path"
            )
    return model, processor


def check_trained(name: str) -> None:
    """Raises InputError unless `name`, a folder or Hub id, has the trainer_state.json of at least one step."""
    if not name:
        raise InputError("no model is named: give --model_name_or_path, the folder of stage 1 or a Hub id")
    check_folder(name, weights=False)
    try:
        cached_file(name, "config.json")
        file = cached_file(name, "trainer_state.json", _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise InputError(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    try:
        steps = json.loads(Path(file).read_text())["global_step"] if file else 0
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged (no trainer_state.json of a run): copy {name} again") from error
    if steps < 1:
        raise InputError(
            f"{name} was never trained (it has no trainer_state.json of a step): train stage 1 with "
            "recipes/sft_lmrrg.py and name its folder, or pass --allow_scratch"
        )
