"""What LLM-RG4's two stages add to weighted SFT: their starts, the order of scenarios, counts of tokens."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import cached_file
from trl import ModelConfig

from modeling import LLMRG4ForConditionalGeneration, LLMRG4Processor
from recipes.data.model_files import check_folder
from recipes.files import InputError
from recipes.trainers.weighted_sft import check_spans

NEW_IN_STAGE_2 = ("lateral_perceiver", "lateral_projection", "prior_perceiver", "prior_projection", "fusion")


def load_start(args, model_args: ModelConfig) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    """The model and processor that a stage of recipes/sft_llmrg4.py starts from, the fusion in float32.

    Stage 1 reads `model_name_or_path`, or assembles the parts that `args` names. Stage 2 reads stage 1's checkpoint,
    of which only the fusion's modules for lateral images and prior reports may be missing. Raises InputError on a
    checkpoint that is not there, of another system or of another stage.
    """
    name = model_args.model_name_or_path
    if name is None and args.stage == 2:
        raise InputError("stage 2 starts from a checkpoint of stage 1: train --stage 1, then name its folder with "
                         "--model_name_or_path")  # fmt: skip
    if model_args.dtype == "auto":
        raise InputError("--dtype auto: name float32 or bfloat16")
    try:
        if name is None:
            check_folder(args.vision)
            check_folder(args.text)
            check_folder(args.decoder)
            model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
                args.vision, args.text, args.decoder, getattr(torch, model_args.dtype),
                fusion="interleaved", **_network(args),
            )  # fmt: skip
            model.set_attn_implementation(model_args.attn_implementation or "sdpa")
        else:
            model, processor = _load(name, args, model_args)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"stage {args.stage} cannot start: {str(error).splitlines()[0]}") from error
    model.model.token_fusion.float()  # what is trained whole needs more than bfloat16's digits
    return model, processor


def _load(name: str, args, model_args: ModelConfig) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    config = AutoConfig.from_pretrained(name, revision=model_args.model_revision)
    if config.model_type != "llmrg4":
        raise InputError(f"{name} is a {config.model_type} model, not an LLM-RG4")
    check_folder(name, images=True)
    if args.stage == 2:
        options = {"revision": model_args.model_revision, "_raise_exceptions_for_missing_entries": False}
        note = cached_file(name, "run_config.json", **options)
        run = json.loads(Path(note).read_text()) if note else {}
        if config.fusion != "interleaved" or run.get("RecipeArguments", {}).get("stage") != 1:
            raise InputError(f"{name} is no checkpoint of stage 1, which stage 2 starts from: train --stage 1 first")
    for key, value in _network(args).items():
        if value != getattr(config, key):
            raise InputError(
                f"--{key} {value} is for a new model, and {name} has {getattr(config, key)}: leave it out"
            )
    fusion = "interleaved" if args.stage == 1 else args.fusion
    model, loaded = LLMRG4ForConditionalGeneration.from_pretrained(
        name,
        fusion=fusion,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.model_revision,
        output_loading_info=True,
    )
    new = [f"model.token_fusion.{part}." for part in NEW_IN_STAGE_2 if fusion == "atf"]
    wrong = [key for key in loaded["missing_keys"] if not any(key.startswith(part) for part in new)]
    if wrong := wrong + [str(key) for key in (*loaded["unexpected_keys"], *loaded["mismatched_keys"])]:
        raise InputError(f"the weights of {name} are not those of its config.json: {sorted(wrong)[0]} does not fit")
    if fusion == "atf" and args.lateral_start == "frontal":
        atf = model.model.token_fusion
        linear = atf.fusion[0] if config.projector == "mlp" else atf.fusion
        size = linear.out_features
        with torch.no_grad(), _put_together(atf):
            atf.lateral_perceiver.load_state_dict(atf.frontal_perceiver.state_dict())
            atf.lateral_projection.load_state_dict(atf.frontal_projection.state_dict())
            linear.weight[:, size : 2 * size] += 0.5 * torch.eye(size)
    return model, LLMRG4Processor.from_pretrained(name, fusion=fusion)


def _network(args) -> dict:
    """What `args` says of a new fusion; a checkpoint's is as it is."""
    values = {key: getattr(args, key) for key in ("projector", "perceiver", "num_visual_tokens")}
    return {key: value for key, value in values.items() if value is not None}


def _put_together(module: nn.Module):
    """Within it a module's weights are whole. ZeRO-3 splits what the first process has made of them."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0)


def check_key_spans(rows: Dataset, names: Sequence[str]) -> None:
    """Raises InputError where no row has `key_spans`, so that a key_weight would weigh nothing, or one is no span of
    its report; it names the study."""
    if not any(spans is not None for spans in rows["key_spans"]):
        raise InputError(
            f"no row of {', '.join(names)} has key_spans: run recipes/weigh_tokens.py on it, or train without token "
            "weights by --key_weight 1"
        )
    for study, report, spans in zip(rows["study_id"], rows["report"], rows["key_spans"], strict=True):
        check_spans(spans, report, f"study {study}")


def report_long_priors(rows: Dataset, processor: LLMRG4Processor) -> int:
    """Prints how many prior reports the processor will cut, and of which study the first is; returns the number."""
    longest = processor.max_prior_tokens
    priors = [(study, text) for study, text in zip(rows["study_id"], rows["prior_report"], strict=True) if text]
    lengths = processor.prior_tokenizer([text for _, text in priors])["input_ids"] if priors else []
    long = [study for (study, _), ids in zip(priors, lengths, strict=True) if len(ids) > longest]
    if long:
        print(f"{len(long)} of {len(priors)} prior reports have more than {longest} tokens and are cut there, that of "
              f"study {long[0]} first")  # fmt: skip
    return len(long)
