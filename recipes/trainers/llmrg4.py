"""What LLM-RG4's two stages add to weighted SFT: their starts, the order of scenarios, counts of tokens."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from pyarrow.compute import list_value_length
from torch import nn
from torch.utils.data import Sampler
from transformers import AutoConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import cached_file
from trl import ModelConfig
from trl.data_utils import prepare_multimodal_messages

from modeling import LLMRG4ForConditionalGeneration, LLMRG4Processor
from recipes.cli import InputError, replacing
from recipes.data.model_files import check_folder
from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer, check_spans

SCENARIOS = ("sn", "sw", "mn", "mw")
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


def count_tokens(
    samples: Dataset, processor: LLMRG4Processor, folder: str | Path | None = None
) -> dict[str, dict[str, float]]:
    """Prints and returns how many tokens the prompts of each scenario have; no image is read for it.

    Per scenario: `samples` in the data set, `visual` tokens and tokens of the whole `prompt`, means and largest.
    ATF's visual tokens do not depend on the scenario, those of interleaved do (RG-080 to RG-085). `folder`: where
    they are kept too, in input_tokens.json.
    """
    counts = {}
    scenarios = samples["scenario"]
    prompts = samples.select_columns("prompt").with_format(None)
    views = list_value_length(samples.with_format("arrow")[:]["images"]).to_pylist()
    for scenario in SCENARIOS:
        rows = [i for i, own in enumerate(scenarios) if own == scenario]
        if not rows:
            continue
        visual, prompt = [], []
        for start in range(0, len(rows), 1000):
            texts = []
            for i in rows[start : start + 1000]:
                messages = prepare_multimodal_messages(prompts[i]["prompt"], images=[None] * views[i])
                text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                texts.append(processor.write_out(text, views[i])[0])
            ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            visual += [own.count(processor.image_token_id) for own in ids]
            prompt += map(len, ids)
        counts[scenario] = {
            "samples": len(rows),
            "visual": sum(visual) / len(visual),
            "visual, largest": max(visual),
            "prompt": sum(prompt) / len(prompt),
            "prompt, largest": max(prompt),
        }
        print(f"{scenario}: {len(rows)} samples; visual tokens {counts[scenario]['visual']:.0f}; prompt tokens "
              f"{counts[scenario]['prompt']:.0f}, {max(prompt)} at most")  # fmt: skip
    if folder is not None:
        with replacing(Path(folder) / "input_tokens.json") as file:
            file.write_text(json.dumps(counts, indent=1) + "\n")
    return counts


class RoundRobinSampler(Sampler[int]):
    """Blocks of `block` rows of one scenario, the scenarios in turn, until each row has come at least once.

    `scenarios`: of each row, by name; they take turns in the order of `order`. A scenario's rows come in a new random
    order each time it begins again. An epoch ends with the block that completes the largest scenario, so it has as
    many blocks of each (authors' code: 4 x 172,608 rows an epoch; REQUIREMENTS RG-041, A-36). Equal `seed` and epoch
    give equal orders in every process. Raises ValueError where `block` is below 1, or a scenario not in `order`.
    """

    def __init__(self, scenarios: Sequence[str], order: Sequence[str], block: int, seed: int = 0):
        if block < 1:
            raise ValueError(f"block must be at least 1, not {block}")
        if unknown := sorted(set(scenarios) - set(order)):
            raise ValueError(f"there are rows of {unknown[0]!r}, which is not in the order {', '.join(order)}")
        rows = {name: [i for i, own in enumerate(scenarios) if own == name] for name in order}
        self.rows = [torch.tensor(own) for own in rows.values() if own]
        self.block, self.seed, self.epoch = block, seed, 0
        self.rounds = -(-max(map(len, self.rows)) // block)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next order is of; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds * self.block * len(self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        orders = []
        for own in self.rows:
            times = -(-self.rounds * self.block // len(own))
            orders.append(torch.cat([own[torch.randperm(len(own), generator=generator)] for _ in range(times)]))
        for start in range(0, self.rounds * self.block, self.block):
            for order in orders:
                yield from order[start : start + self.block].tolist()


@dataclass
class ScenarioSFTConfig(WeightedSFTConfig):
    """WeightedSFTConfig, and the order in which scenarios come."""

    scenario_sampling: str = field(
        default="mixed",
        metadata={
            "help": "mixed: all rows shuffled; round_robin: batches of one scenario, in turn, small ones used again.",
            "choices": ["mixed", "round_robin"],
        },
    )


class ScenarioSFTTrainer(WeightedSFTTrainer):
    """WeightedSFTTrainer on rows with a column `scenario`, in the order of `args.scenario_sampling`.

    With round_robin an optimizer step has one scenario, whatever the number of processes and accumulation steps. The
    log, and so trainer_state.json, says what this process's batches cost: `batch/seconds` forward and backward,
    `batch/input_tokens` of a sample (image, prompt and report) and `batch/largest_input`, since the last entry.
    """

    def training_step(self, model, inputs, num_items_in_batch=None):
        """TRL's step, timed."""
        tokens = inputs["attention_mask"].sum(1).tolist()
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        loss.item()  # waits for the device, as Trainer does after each step to see whether the loss is finite
        metrics = self._metrics["train"]  # TRL logs the mean of each list
        metrics["batch/seconds"].append(time.perf_counter() - start)
        metrics["batch/input_tokens"] += tokens
        metrics["batch/largest_input"] = [max(metrics["batch/largest_input"] + tokens)]
        return loss

    def _get_train_sampler(self, train_dataset=None):
        """TRL's sampler, or the round-robin in its place."""
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.scenario_sampling == "mixed":
            return sampler
        block = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return RoundRobinSampler(self.train_dataset["scenario"], SCENARIOS, block, self.args.seed)
