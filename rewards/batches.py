"""Token rows of unequal length through a network: sorted by length, in batches of little padding, each row once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.encoders import pass_cost, plan_batches

Row = tuple[tuple[int, ...], tuple[int, ...]]  # token ids, token types


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None = None, max_tokens: int = 512
) -> list[Row]:
    """Token ids and types of n texts, or of n pairs of texts, cut to `max_tokens`, the longer of a pair first.

    An empty second text adds nothing, not even its separator, as where transformers encodes one pair alone. A
    character that has no encoding (half of a surrogate pair) becomes "?", since a tokenizer refuses it.
    """
    texts, pairs = ([text.encode(errors="replace").decode() for text in column or ()] for column in (texts, pairs))
    rows: dict[int, Row] = {}
    paired = [row for row, pair in enumerate(pairs) if pair]
    for numbers, columns in ((paired, (texts, pairs)), (sorted(set(range(len(texts))) - set(paired)), (texts,))):
        if numbers:
            chosen = [[column[row] for row in numbers] for column in columns]
            encoded = tokenizer(*chosen, truncation=True, max_length=max_tokens, verbose=False)
            ids = encoded["input_ids"]
            types = encoded.get("token_type_ids") or [[0] * len(row) for row in ids]
            rows |= zip(numbers, zip(map(tuple, ids), map(tuple, types), strict=True), strict=True)
    return [rows[row] for row in range(len(texts))]


@torch.inference_mode()
def run_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    take: Callable[[Any, torch.Tensor], Sequence],
    token_budget: int = 2048,
) -> list:
    """One result for each of `rows`, equal rows from one pass.

    `take(output, mask)` gives a result for each row of a batch: `output` is the model's, `mask` (n, length) is 1 where
    a token is no padding. A batch has at most `token_budget` tokens, padding included, but for a row that alone has
    more. Padding is masked, so that no row depends on the others of its batch but for rounding.
    """
    distinct = sorted(dict.fromkeys(rows), key=lambda row: len(row[0]), reverse=True)
    results = {}
    typed = "token_type_ids" in tokenizer.model_input_names
    for each in plan_batches([(1, len(row[0])) for row in distinct], token_budget, pass_cost(model.device)):
        batch = distinct[each.start : each.stop]
        columns = {"input_ids": [list(ids) for ids, _ in batch]}
        if typed:
            columns["token_type_ids"] = [list(kinds) for _, kinds in batch]
        inputs = tokenizer.pad(columns, return_tensors="pt").to(model.device)
        results |= zip(batch, take(model(**inputs), inputs["attention_mask"]), strict=True)
    return [results[row] for row in rows]
