"""Preference learning on TRL's DPOTrainer, for any policy whose processor its collator can call.

RRG-DPO (MICCAI 2025) changes DPO in two places, both off unless set: a report's log-probability is a weighted mean
over its tokens, in which those of sentences whose findings conflict between the two reports weigh more
(`conflict_weight`), and a chosen report that the policy finds less likely than the reference does lowers the margin
(`chosen_penalty`). CheXalign (arXiv 2410.07025) adds the difference of lengths to it (`length_weight`). With m the
policy's log-ratio of the chosen to the rejected report less the reference's, d = log p(chosen) - log p_ref(chosen) and
n the tokens of each, the loss of a pair is

    -log sigmoid(beta x (m - chosen_penalty x max(0, -d)) + length_weight x (n_chosen - n_rejected))
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from datasets import Dataset
from torch.nn import functional
from trl import DPOConfig, DPOTrainer

from recipes.data.labels import load_labeler
from recipes.data.samples import image_reader
from recipes.data.settings import NOT_NEGATIVE, POSITIVE, Range
from recipes.evaluation.preferences import read_pairs, with_conflicts
from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.config import RecipeConfig
from recipes.trainers.setup import remove_dropout
from recipes.trainers.weighted_sft import TOKENS, KeyTokenCollator

SIDES = ("chosen", "rejected")
SPANS = tuple(f"{side}_spans" for side in SIDES)


@dataclass
class PreferenceConfig(RecipeConfig, DPOConfig):
    """TRL's DPOConfig with what RecipeConfig, RRG-DPO and CheXalign add.

    Raises InputError on what the latter cannot be combined with: a loss_type or a divergence that is not DPO's own.

    Example:

        PreferenceConfig("out", beta=0.1, conflict_weight=5.0, chosen_penalty=0.1, effective_batch_size=16)
    """

    ranges: ClassVar[dict[str, Range]] = {
        "beta": NOT_NEGATIVE, "conflict_weight": POSITIVE, "chosen_penalty": NOT_NEGATIVE,
    }  # fmt: skip

    conflict_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the tokens of sentences whose findings conflict between the two reports, a report's "
            "log-probability being the weighted mean over its tokens (RRG-DPO: 5); none: TRL's sum over all tokens."
        },
    )
    chosen_penalty: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the nats by which the chosen report is less likely than in the reference, taken off "
            "the margin (RRG-DPO: 0.1)."
        },
    )
    length_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the tokens by which the chosen report is longer than the rejected one, added to beta x "
            "the margin, so that length earns nothing (CheXalign: 0.05)."
        },
    )

    @property
    def changes_margin(self) -> bool:
        """Whether the loss differs from DPO's on the same log-probabilities."""
        return bool(self.chosen_penalty or self.length_weight)

    def __post_init__(self):
        super().__post_init__()
        kinds = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        divergence = str(getattr(self.f_divergence_type, "value", self.f_divergence_type))
        if self.conflict_weight is None and not self.changes_margin:
            return
        for refused, sentence in (
            (
                kinds != ["sigmoid"] or self.loss_weights not in (None, [1.0]),
                "loss_type [sigmoid] without loss_weights",
            ),
            (divergence != "reverse_kl", "f_divergence_type reverse_kl"),
            (self.ld_alpha is not None, "no ld_alpha"),
            (self.use_weighting, "use_weighting false"),
            (self.precompute_ref_log_probs, "precompute_ref_log_probs false"),
        ):
            if refused:
                raise InputError(
                    f"conflict_weight, chosen_penalty and length_weight change DPO's own loss: {sentence}"
                )


class ConflictCollator(KeyTokenCollator):
    """TRL's collator of pairs, and in its batch `token_weights`, (2 x pairs, length), that sum to 1 in each row.

    A row of `chosen_spans` and `rejected_spans` has [start, end) characters of a text; tokens that touch them weigh
    `weight`, the answer's other tokens 1, and the prompt's 0.
    """

    def __init__(self, collator, tokenizer, weight: float):
        super().__init__(collator, tokenizer)
        self.weight = weight

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = []
        for side, spans in zip(SIDES, SPANS, strict=True):  # now: TRL's collator changes the rows
            for row in rows:
                message = row[side][-1]["content"] if isinstance(row[side], list) else row[side]
                texts.append((row[spans], message))
        batch = self.collator([{name: row[name] for name in row if name not in SPANS} for row in rows])
        mask = batch["completion_mask"]
        weights = mask.float()
        encoded = self.encode([text for _, text in texts])
        for number, ((spans, text), *tokens) in enumerate(
            zip(texts, *(encoded[name] for name in TOKENS), strict=True)
        ):
            if spans:
                places = mask[number].nonzero().flatten()
                touched = self._find(spans, text, batch["input_ids"][number, places], *tokens)
                weights[number, places[touched]] = self.weight
        batch["token_weights"] = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return batch


class PreferenceTrainer(RecipeTrainer, DPOTrainer):
    """DPOTrainer (Rafailov et al., 2023, Eq. 7), with what `PreferenceConfig` adds, and the recipes' checks and saves.

    Its collator hands all that a processor makes of a prompt on to the model: an LLM-RG4 gets laterals and prior
    reports, an LM-RRG its images, and the reference too. With `conflict_weight` the data set is one of images and has
    the columns `chosen_spans` and `rejected_spans` (`read_preferences`). Without the three settings of RRG-DPO and
    CheXalign training is DPOTrainer's to the last bit.

    Example:

        pair = {"prompt": "Report: ", "chosen": "Clear lungs.", "rejected": "Large heart."}
        dataset = Dataset.from_list([pair] * 8)
        trainer = PreferenceTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=PreferenceConfig("out"), train_dataset=dataset)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.disable_dropout:
            remove_dropout(self.model)
            remove_dropout(self.ref_model)
        if self.args.conflict_weight is not None:
            if not self._is_vision_dataset or not {*SPANS} <= {*self.train_dataset.column_names}:
                raise InputError(f"conflict_weight needs a data set of images with the columns {' and '.join(SPANS)}")
            self.data_collator = ConflictCollator(self.data_collator, self._tokenizer, self.args.conflict_weight)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in SPANS if name not in self._signature_columns]

    def _compute_loss(self, model, inputs, return_outputs):
        """TRL's loss of weighed log-probabilities, and what the terms of the margin change of it."""
        inputs, weights = dict(inputs), inputs.get("token_weights")
        inputs.pop("token_weights", None)
        with self._weighed(weights) as passes:
            result = super()._compute_loss(model, inputs, return_outputs)
        if not self.args.changes_margin:
            return result
        loss, *outputs = result if return_outputs else (result,)
        loss = loss + self._change_of_loss(passes[0] - passes[1], inputs["completion_mask"][..., 1:].sum(dim=1))
        return (loss, *outputs) if return_outputs else loss

    @contextmanager
    def _weighed(self, weights: torch.Tensor | None) -> Iterator[list[torch.Tensor]]:
        """Within it the log-probabilities of policy and reference are weighed before TRL adds them up.

        Yields a list that gets each pass's sums, (2 x pairs,), the policy's first. `weights`: (2 x pairs, tokens).
        """
        passes: list[torch.Tensor] = []
        if weights is None and not self.args.changes_margin:
            yield passes
            return

        def weigh(module, args, output):
            if "log_probs" in output:  # not in a pass that is made for its logits
                if weights is not None:
                    output.log_probs = output.log_probs * weights[:, 1:]
                passes.append(output.log_probs.sum(dim=1))
            return output

        networks = [self.accelerator.unwrap_model(network) for network in (self.model, self.ref_model) if network]
        handles = [network.register_forward_hook(weigh) for network in networks]
        try:
            yield passes
        finally:
            for handle in handles:
                handle.remove()

    def _change_of_loss(self, log_ratios: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The loss with both terms less the one without; `log_ratios` to the reference, `lengths`: (2 x pairs,)."""
        (chosen, rejected), (longer, shorter) = log_ratios.chunk(2), lengths.chunk(2)
        margin = self.beta * (chosen - rejected)
        changed = margin - self.beta * self.args.chosen_penalty * functional.relu(-chosen)
        changed = changed + self.args.length_weight * (longer - shorter)
        return (functional.logsigmoid(margin) - functional.logsigmoid(changed)).mean()


def read_preferences(args, training_args: PreferenceConfig) -> dict[str, dict]:
    """Study -> its pair of `args.pairs`, with the spans of conflicting sentences where `conflict_weight` needs them.

    `args`: the RecipeArguments of recipes/dpo.py. Raises InputError as `read_pairs` and `load_labeler`.
    """
    pairs = read_pairs(args.pairs)
    if training_args.conflict_weight is None:
        return pairs
    return with_conflicts(pairs, load_labeler(args.labeler))


def with_pairs(samples: Dataset, pairs: dict[str, dict]) -> Dataset:
    """`samples` (recipes/data/samples.py, with `study_id`) of the studies with a pair, and `chosen` and `rejected`.

    Both are the assistant's message. A study's samples, one an image, all have its pair, and its spans if it has any.
    """
    reader, samples = image_reader(samples), samples.with_format(None)  # no image is read while columns are added
    samples = samples.select([place for place, study in enumerate(samples["study_id"]) if study in pairs])
    for name in SIDES:
        texts = [pairs[study][name] for study in samples["study_id"]]
        samples = samples.add_column(name, [[{"role": "assistant", "content": text}] for text in texts])
    for name in SPANS:
        if all(name in pairs[study] for study in samples["study_id"]):
            samples = samples.add_column(name, [pairs[study][name] for study in samples["study_id"]])
    return samples.with_transform(reader)
