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
COLUMNS = ("input_ids", "token_type_ids")  # of a row
LARGE = 2**18  # weights of a layer from which on the kernel that OneDNNLinear calls is worth its preparation
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

Row = tuple[tuple[int, ...], ...]  # token ids and, where the network reads them, token types


class OneDNNLinear(torch.nn.Linear):
    """A linear layer that a CPU computes with oneDNN in float32, where no gradients are recorded.

    PyTorch calls MKL, which has no AVX-512 on a processor that is not Intel's; oneDNN has (measured: twice as fast
    on an AMD EPYC, both 2e-6 from float64). Anything but float32 on a CPU, and a layer that records gradients, is
    computed as ever.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` (..., in_features) to (..., out_features)."""
        plain = torch.is_grad_enabled() or inputs.device.type != "cpu" or not inputs.numel()
        if plain or not inputs.dtype == self.weight.dtype == torch.float32:
            return super().forward(inputs)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


def for_inference(model: torch.nn.Module) -> torch.nn.Module:
    """`model` itself in evaluation mode, frozen, its large linear layers as OneDNNLinear where PyTorch has oneDNN."""
    for module in model.modules():
        if ONEDNN and type(module) is torch.nn.Linear and module.weight.numel() >= LARGE:
            module.__class__ = OneDNNLinear  # the same weights under the same names
    return model.eval().requires_grad_(False)


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


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None = None, max_tokens: int = 512
) -> list[Row]:
    """Rows of n texts, or of n pairs of texts, cut to `max_tokens`, the longer of a pair first.

    An empty second text adds nothing, not even its separator, as where transformers encodes one pair alone. A
    character that has no encoding (half of a surrogate pair) becomes "?", since a tokenizer refuses it.
    """
    texts, pairs = ([text.encode(errors="replace").decode() for text in column or ()] for column in (texts, pairs))
    rows: dict[int, Row] = {}
    paired = [row for row, pair in enumerate(pairs) if pair]
    for numbers, columns in ((paired, (texts, pairs)), (sorted(set(range(len(texts))) - set(paired)), (texts,))):
        if numbers:
            selection = [[column[row] for row in numbers] for column in columns]
            encoded = tokenizer(*selection, truncation=True, max_length=max_tokens, verbose=False)
            parts = (map(tuple, encoded[name]) for name in COLUMNS if name in encoded)
            rows |= zip(numbers, zip(*parts, strict=True), strict=True)
    return [rows[row] for row in range(len(texts))]


def map_rows(
    compute: Callable[[BatchEncoding], Iterable],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    token_budget: int,
    device: torch.device,
) -> list[Any]:
    """The result of each row, equal rows from one pass; `compute` gives those of one padded batch.

    A batch has at most `token_budget` tokens, padding included, but for a row that alone has more. Its
    `attention_mask` is 0 at the padding, so that no row depends on the others of its batch but for rounding.
    """
    distinct = sorted(dict.fromkeys(rows), key=lambda row: len(row[0]), reverse=True)
    results: dict[Row, Any] = {}
    for span in plan_batches([(1, len(row[0])) for row in distinct], token_budget, pass_cost(device)):
        members = distinct[span.start : span.stop]
        columns = dict(zip(COLUMNS, zip(*members, strict=True), strict=False))  # without types where rows have none
        batch = tokenizer.pad({name: [*map(list, column)] for name, column in columns.items()}, return_tensors="pt")
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
    # not there, no tokenizer, other shapes; a config.json or tokenizer.json that is no such object
    except (OSError, RuntimeError, ValueError, SafetensorError, LookupError, TypeError, AttributeError) as error:
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
    return for_inference(model).to(process_device() if device is None else device), tokenizer
