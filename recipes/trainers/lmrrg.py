"""What LM-RRG's two stages start from, and the published RadCliQ."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import cached_file
from trl import ModelConfig

from modeling import LMRRGForConditionalGeneration, LMRRGProcessor
from recipes.data.model_files import check_folder
from recipes.files import InputError

LORA_OF_DECODER = r".*language_model.*\.(q|v)_proj"  # the image encoder has a q_proj too


def load_parts(
    parts, lambda_disease: float, model_args: ModelConfig
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor]:
    """A fresh LM-RRG from the pretrained parts and with the settings of `parts`, recipes/sft_lmrrg.py's ModelParts.

    Raises InputError on a part that cannot be loaded, and on settings that LMRRGConfig refuses.
    """
    if model_args.dtype == "auto":
        raise InputError("--dtype auto: name float32 or bfloat16")
    check_folder(parts.biomedclip)
    check_folder(parts.decoder)
    try:
        model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(
            **{name: value for name, value in vars(parts).items() if value is not None},
            lambda_disease=lambda_disease,
            dtype=getattr(torch, model_args.dtype),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"stage 1 cannot start: {str(error).splitlines()[0]}") from error
    model.set_attn_implementation(model_args.attn_implementation or "sdpa")
    return model, processor


def load_checkpoint(
    name: str, model_args: ModelConfig, parts=None, **config
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor]:
    """The LM-RRG in folder or Hub id `name`, its configuration changed by `config`, and its processor.

    Raises InputError where it is not there or of another system, its weights are not those of its configuration (the
    disease head alone may come or go with `lambda_disease`), or it was made otherwise than `parts` say.
    """
    try:
        found = AutoConfig.from_pretrained(name, revision=model_args.model_revision).model_type
        if found != "lmrrg":
            raise InputError(f"{name} is a {found} model, not an LM-RRG")
        check_folder(name, images=True)
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
    wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind]]
    if wrong := sorted(key for key in wrong if "disease_head" not in key):
        raise InputError(f"the weights of {name} are not those of its config.json: {wrong[0]} does not fit")
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
