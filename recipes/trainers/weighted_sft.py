"""Supervised fine-tuning in which key sentences weigh more (LLM-RG4, Eq. 10), on TRL's SFTTrainer.

    trainer = WeightedSFTTrainer(model=..., args=WeightedSFTConfig(...), train_dataset=dataset)

For any causal or vision-language model and whatever else SFTTrainer takes but packing. Beside TRL's columns the data
set has `key_spans`: of each row the [start, end] characters of its key sentences in the completion's text (or, without
prompts, in `text` or the last message), or null. Characters suit any tokenizer.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from datasets import Dataset
from trl import SFTTrainer

from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.config import SFTRecipeConfig

TOKENS = ("input_ids", "offset_mapping")  # of a text, as a tokenizer gives them


@dataclass
class WeightedSFTConfig(SFTRecipeConfig):
    """SFTRecipeConfig, and how tokens are weighed. Raises InputError on what cannot be combined with weights.

    Example:

        WeightedSFTConfig("out", key_weight=1.75, weight_reduction="token_mean")
    """

    key_weight: float = field(
        default=1.75, metadata={"help": "Weight of the key sentences' tokens (lambda in Eq. 10)."}
    )
    weight_reduction: str = field(
        default="token_mean",
        metadata={
            "help": "Reduction of the weighted losses. With c = key_weight at key tokens and else 1, the loss l and n "
            "tokens: token_mean, sum(c l) / n; weight_mean, sum(c l) / sum(c); official, mean(l) + (key_weight - 1) "
            "mean(l of the key tokens).",
            "choices": ["token_mean", "weight_mean", "official"],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for refused, sentence in (
            (self.key_weight <= 0, f"key_weight must be above 0, not {self.key_weight}"),
            (self.packing or self.padding_free, "weighted SFT pads its rows: set packing and padding_free to false"),
            (self.loss_type != "nll", f"weighted SFT weighs the loss_type nll, not {self.loss_type}"),
            (self.label_smoothing_factor > 0, "weighted SFT has no label smoothing: set label_smoothing_factor to 0"),
        ):
            if refused:
                raise InputError(sentence)


def weighted_text(row: dict) -> str:
    """The text of a row that `key_spans` counts in: its completion, else `text`, else its last message."""
    text = row.get("completion") or row.get("text") or row["messages"]
    if isinstance(text, list):
        text = text[-1]["content"]
    if isinstance(text, list):
        text = "".join(part.get("text") or "" for part in text)
    return text


def check_spans(spans: list | None, text: str, where: str) -> None:
    """Raises InputError that says `where`, unless each span is [start, end], 0 <= start < end <= the text's length."""
    for span in spans or ():
        if len(span) != 2 or not 0 <= span[0] < span[1] <= len(text):
            raise InputError(f"{where}: key span {list(span)} is not within its text of {len(text)} characters")


class KeyTokenCollator:
    """`collator`, and in its batch `key_tokens`: (n, length) bool, the labelled tokens that touch a key span."""

    def __init__(self, collator, tokenizer):
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} tells no offsets, which key_spans need: use a fast one")
        self.collator = collator
        self.encode = partial(tokenizer, add_special_tokens=False, return_offsets_mapping=True)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [(row.get("key_spans"), weighted_text(row)) for row in rows]  # now: TRL's collators change the rows
        batch = self.collator([{name: row[name] for name in row if name != "key_spans"} for row in rows])
        batch["key_tokens"] = torch.zeros_like(batch["labels"], dtype=torch.bool)
        keyed = [number for number, (spans, _) in enumerate(texts) if spans]
        encoded = self.encode([texts[number][1] for number in keyed]) if keyed else {}
        for number, *tokens in zip(keyed, *(encoded.get(name, ()) for name in TOKENS), strict=True):
            spans, text = texts[number]
            check_spans(spans, text, f"row {number} of a batch")
            places = batch["labels"][number].ne(-100).nonzero().flatten()
            ids = batch["input_ids"][number, places]
            batch["key_tokens"][number, places] = self._find(spans, text, ids, *tokens)
        return batch

    def _find(self, spans: list, text: str, ids: torch.Tensor, text_ids: list, offsets: list) -> torch.Tensor:
        """Which of the labelled token `ids`, (m,), touch `spans` of `text`; their end may have been cut off.

        `text_ids`, `offsets`: the text's tokens and the characters of each, as the tokenizer has them.

        The text is where most of its tokens stand in a row, and the last of such places: a message may say again what
        an earlier one said.
        """
        ids, places = ids.tolist(), []
        for merged in (0, 1):  # the text's first token may have been merged with what stands before it
            tail = text_ids[merged:]
            likely = [s for s in range(merged, len(ids)) if tail and ids[s] == tail[0]]
            starts = [s for s in likely if ids[s : s + len(tail)] == tail[: len(ids) - s]]
            places += [(min(len(tail), len(ids) - start), start, merged) for start in starts]
        if not places:
            raise InputError(f"the tokens of {text[:60]!r} are not in its row: does the template change the text?")
        length, start, merged = max(places)
        touched = [
            any(first < end and begin < last for begin, end in spans) for first, last in offsets[: length + merged]
        ]
        keys = torch.zeros(len(ids), dtype=torch.bool)
        keys[start - merged : start + length] = torch.tensor(touched)
        return keys


class WeightedSFTTrainer(RecipeTrainer, SFTTrainer):
    """SFTTrainer whose tokens in `key_spans` weigh `args.key_weight`, under any accumulation and in any processes.

    TRL sums the tokens' log-probabilities and divides by their number in the whole batch; here they are weighed before
    it sums. With key_weight 1, or without spans, training is SFTTrainer's to the last bit.

    Example:

        rows = {"prompt": ["Report: "], "completion": ["Clear lungs. Large heart."], "key_spans": [[[13, 25]]]}
        trainer = WeightedSFTTrainer("Qwen/Qwen2.5-0.5B-Instruct", WeightedSFTConfig("out"), Dataset.from_dict(rows))
    """

    def __init__(self, model, args: WeightedSFTConfig, train_dataset, **kwargs):
        datasets = [train_dataset, kwargs.get("eval_dataset")]
        for dataset in datasets:
            if isinstance(dataset, Dataset) and "key_spans" in dataset.column_names:
                texts = {"key_spans", "completion", "text", "messages"} & set(dataset.column_names)
                for number, row in enumerate(dataset.select_columns(sorted(texts))):
                    check_spans(row["key_spans"], weighted_text(row), f"row {number}")
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        self.data_collator = KeyTokenCollator(self.data_collator, self._tokenizer)
        self._key_share = None

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = ("key_spans", "completion", "text", "messages")
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _get_num_items_in_batch(self, batch_samples, device):
        number = super()._get_num_items_in_batch(batch_samples, device)
        self._key_share = None
        if number is not None:
            keys = sum(batch["key_tokens"][..., 1:].sum() for batch in batch_samples).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                keys = self.accelerator.gather(keys).sum()
            self._key_share = keys / number.clamp(min=1)  # as TRL's loss of a batch without a token to learn
        return number

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss of the weighed tokens."""
        keys = inputs.pop("key_tokens")[..., 1:]
        share = self._key_share  # of the whole batch; outside training, of this one
        if share is None or num_items_in_batch is None:
            share = keys.sum() / inputs["labels"][..., 1:].ne(-100).sum().clamp(min=1)
        extra = self.args.key_weight - 1
        if self.args.weight_reduction == "official":
            extra = extra / share.clamp(min=1e-9)
        weights = 1 + extra * keys
        if self.args.weight_reduction == "weight_mean":
            weights = weights / (1 + extra * share)

        def weigh(module, args, output):
            if "log_probs" in output:  # not in a pass that is made for its logits
                output.log_probs = output.log_probs * weights
            return output

        handle = model.register_forward_hook(weigh)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            handle.remove()
