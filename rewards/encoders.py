"""What the rewards that run a network share: their device, their checkpoints, and batches of little padding."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

PASS_COST = {"cpu": 32}  # what a pass costs beside its tokens, in tokens: few on a CPU, which is busy with one report
ACCELERATOR_COST = 2048


def process_device() -> torch.device:
    """The accelerator of this process (that of `LOCAL_RANK` where a launcher set it), or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(accelerator.type, rank % torch.accelerator.device_count())


def pass_cost(device: torch.device) -> int:
    """What a pass costs on `device` beside its tokens, in tokens, for `plan_batches`."""
    return PASS_COST.get(device.type, ACCELERATOR_COST)


def plan_batches(sizes: Sequence[tuple[int, int]], budget: int, cost: int) -> list[range]:
    """Batches of consecutive reports at the least cost: padded tokens, and `cost` more for each batch.

    `sizes`: rows and longest row of each report, the longest row descending. A batch has at most `budget` tokens,
    padding included, but for a report that alone has more.
    """
    best, first = [0.0], [0]
    for end in range(1, len(sizes) + 1):
        rows, start, choices = 0, end, []
        while start and (start == end or (rows + sizes[start - 1][0]) * sizes[start - 1][1] <= budget):
            start -= 1
            rows += sizes[start][0]
            choices.append((best[start] + rows * sizes[start][1] + cost, start))
        cheapest = min(choices)
        best.append(cheapest[0])
        first.append(cheapest[1])
    batches, end = [], len(sizes)
    while end:
        batches.append(range(first[end], end))
        end = first[end]
    return batches[::-1]


def map_rows(
    compute: Callable[[BatchEncoding], Iterable],
    rows: Sequence[tuple[int, ...]],
    tokenizer: PreTrainedTokenizerBase,
    token_budget: int,
    device: torch.device,
) -> list[Any]:
    """The result of each row of token ids; `compute` gives those of one padded batch. Equal rows are computed once."""
    distinct = sorted(dict.fromkeys(rows), key=len, reverse=True)
    results: dict[tuple[int, ...], Any] = {}
    for span in plan_batches([(1, len(row)) for row in distinct], token_budget, pass_cost(device)):
        members = distinct[span.start : span.stop]
        batch = tokenizer.pad({"input_ids": [list(row) for row in members]}, return_tensors="pt")
        results |= zip(members, compute(batch.to(device)), strict=True)
    return [results[row] for row in rows]


def fingerprint(*modules: torch.nn.Module) -> str:
    """Eight hexadecimal digits that tell apart checkpoints whose `modules` differ."""
    weights = (weight.detach().cpu().numpy().tobytes() for module in modules for weight in module.parameters())
    return hashlib.blake2b(b"".join(weights), digest_size=4).hexdigest()


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are tokens but the special ones: without its files, transformers makes up an empty tokenizer."""
    return len(tokenizer) > len(set(tokenizer.all_special_ids))


def load_checkpoint(
    name: str,
    title: str,
    model_class: type[PreTrainedModel],
    how_to_get: str,
    spare_embeddings: bool = False,
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32, `model_class`) and tokenizer of the folder or Hub id `name`; `title` is what people call it.

    The model is frozen, in evaluation mode and on `device`, by default that of the process. With `spare_embeddings` it
    may have more embeddings than the tokenizer has tokens. Raises ValueError, whose sentence ends in `how_to_get`,
    where it is not there, another architecture, incomplete, damaged, or without its tokenizer. Pickles are never
    opened.
    """
    try:
        config, _ = model_class.config_class.get_config_dict(name)
        kind = config.get("model_type", "missing")
        if kind == model_class.config_class.model_type:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model, notes = model_class.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # not there, no tokenizer, other shapes
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no {title} could be loaded from {name} ({reason}); {how_to_get}") from error
    if kind != model_class.config_class.model_type:
        raise ValueError(f"{name} is no {title} (the model_type of its config.json is {kind}); {how_to_get}")
    if faults := sorted(notes["missing_keys"]) or sorted(notes["unexpected_keys"]):
        raise ValueError(f"{name} is no complete {title} ({len(faults)} weights such as {faults[0]}); {how_to_get}")
    size = model.get_input_embeddings().num_embeddings
    if not has_vocabulary(tokenizer) or len(tokenizer) > size or (len(tokenizer) < size and not spare_embeddings):
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the model {size}"
        raise ValueError(f"{name} has no tokenizer, or another model's ({sizes}); {how_to_get}")
    return model.eval().requires_grad_(False).to(process_device() if device is None else device), tokenizer
