"""What LLM-RG4's two stages add to weighted SFT: what they read, their starts, counts of tokens."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import AutoConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import cached_file
from trl import ModelConfig

from modeling import LLMRG4ForConditionalGeneration, LLMRG4Processor
from recipes.data.model_files import check_folder
from recipes.data.prompt_tokens import count_tokens
from recipes.data.samples import (
    DataArguments,
    TrainingData,
    columns_of,
    report_enlarged,
    splits_of,
    to_samples,
)
from recipes.data.schema import read_split
from recipes.files import InputError, read_prompt
from recipes.trainers.scenario_sft import ScenarioSFTConfig
from recipes.trainers.setup import load_base_processor
from recipes.trainers.weighted_sft import check_spans
from rewards.scenarios import SCENARIOS

NEW_IN_STAGE_2 = ("lateral_perceiver", "lateral_projection", "prior_perceiver", "prior_projection", "fusion")


VIEWS = "frontal+lateral"  # images of a sample


@dataclass(kw_only=True)
class ScenarioArguments(DataArguments):
    """DataArguments of several data sets and of some of their scenarios."""

    dataset: list[str] = field(
        metadata={"help": "Built data sets, folders or Hub ids, whose train splits are put together."}
    )
    scenarios: list[str] = field(
        default_factory=lambda: list(SCENARIOS), metadata={"help": "Scenarios whose rows are trained on (Table 5)."}
    )
    prompt_file: str = field(
        default="prompts/llmrg4.txt", metadata={"help": "Prompt file: a path, or a name beside the recipes."}
    )


@dataclass
class FusionParts:
    """Of a model that is put together in stage 1."""

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

    def network(self) -> dict[str, str | int]:
        """What is set of a new fusion; a checkpoint's is as it is."""
        settings = {key: getattr(self, key) for key in ("projector", "perceiver", "num_visual_tokens")}
        return {key: value for key, value in settings.items() if value is not None}


def read_scenarios(args: ScenarioArguments, training_args: ScenarioSFTConfig) -> TrainingData:
    """The samples of the rows of `args.scenarios`, all data sets together; of each split `max_samples` at most.

    A sample has the first frontal image and the first lateral one. Raises InputError where no row has such a scenario,
    and with a key_weight as `check_key_spans`.
    """
    prompt = read_prompt(args.prompt_file)
    columns = (*columns_of(prompt, VIEWS), "scenario", "prior_report", "key_spans")
    rows = {}
    for split in splits_of(training_args):
        table = concatenate_datasets([read_split(name, split, columns) for name in args.dataset])
        places = [place for place, scenario in enumerate(table["scenario"]) if scenario in args.scenarios]
        if not places:
            raise InputError(f"no row of {', '.join(args.dataset)} has a scenario of {', '.join(args.scenarios)}")
        rows[split] = table.select(places[: args.max_samples])
    if training_args.key_weight != 1:
        check_key_spans(rows["train"], args.dataset)
    keep = ("scenario", "key_spans", "report")
    samples = {
        split: to_samples(table, prompt, VIEWS, completion="plain", keep=keep, check=args.check_images)
        for split, table in rows.items()
    }
    return TrainingData(rows, samples)


def load_start(
    args, parts: FusionParts, model_args: ModelConfig
) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    """The model and processor that a stage starts from, the fusion in float32.

    `args`: the RecipeArguments of recipes/sft_llmrg4.py. Stage 1 reads `model_name_or_path`, or assembles `parts`.
    Stage 2 reads stage 1's checkpoint, of which only the fusion's modules for lateral images and prior reports may be
    missing. Raises InputError on a checkpoint that is not there, of another system or of another stage.
    """
    name = model_args.model_name_or_path
    if name is None and args.stage == 2:
        raise InputError("stage 2 starts from a checkpoint of stage 1: train --stage 1, then name its folder with "
                         "--model_name_or_path")  # fmt: skip
    if model_args.dtype == "auto":
        raise InputError("--dtype auto: name float32 or bfloat16")
    try:
        if name is None:
            for part in (parts.vision, parts.text, parts.decoder):
                check_folder(part)
            model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
                parts.vision, parts.text, parts.decoder, getattr(torch, model_args.dtype),
                fusion="interleaved", **parts.network(),
            )  # fmt: skip
            model.set_attn_implementation(model_args.attn_implementation or "sdpa")
        else:
            model, processor = _load(name, args, parts, model_args)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"stage {args.stage} cannot start: {str(error).splitlines()[0]}") from error
    model.model.token_fusion.float()  # what is trained whole needs more than bfloat16's digits
    return model, processor


def _load(
    name: str, args, parts: FusionParts, model_args: ModelConfig
) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    check_folder(name, weights=False)
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
    for key, value in parts.network().items():
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
    misfits = [key for key in loaded["missing_keys"] if not any(key.startswith(part) for part in new)]
    if misfits := misfits + [str(key) for key in (*loaded["unexpected_keys"], *loaded["mismatched_keys"])]:
        raise InputError(f"the weights of {name} are not those of its config.json: {sorted(misfits)[0]} does not fit")
    if fusion == "atf" and args.lateral_start == "frontal":
        atf = model.model.token_fusion
        linear = atf.fusion[0] if config.projector == "mlp" else atf.fusion
        size = linear.out_features
        with torch.no_grad(), _put_together(atf):
            atf.lateral_perceiver.load_state_dict(atf.frontal_perceiver.state_dict())
            atf.lateral_projection.load_state_dict(atf.frontal_projection.state_dict())
            linear.weight[:, size : 2 * size] += 0.5 * torch.eye(size)
    return model, LLMRG4Processor.from_pretrained(name, fusion=fusion)


def load_policy_processor(model_args: ModelConfig) -> LLMRG4Processor:
    """The processor of the LLM-RG4 that RL starts from. Raises InputError where `model_args` names no such model."""
    name = model_args.model_name_or_path
    if name is None:
        raise InputError("RL starts from a checkpoint of stage 2: name its folder with --model_name_or_path")
    check_folder(name)
    config = AutoConfig.from_pretrained(name, revision=model_args.model_revision)
    if config.model_type != "llmrg4":
        raise InputError(f"{name} is a {config.model_type} model, not an LLM-RG4")
    return load_base_processor(model_args)


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


def report_inputs(data: TrainingData, processor: LLMRG4Processor, folder: str | Path) -> None:
    """Prints what the processor makes of the training samples: images enlarged, prior reports cut, and how many tokens
    the prompts of each scenario have, which go to input_tokens.json in `folder` too."""
    report_enlarged(data.train, processor)
    report_long_priors(data.rows["train"], processor)
    count_tokens(data.train, processor, folder)
