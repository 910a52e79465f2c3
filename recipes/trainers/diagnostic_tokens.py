"""Tokens that name findings weigh more in GRPO's loss, after DiTPO (arXiv 2603.04022).

A completion's advantage A becomes A x w_t at its token t, with w_t = T n_t / (sum of n_s over its T tokens), where n_t
is d at a diagnostic token and 1 elsewhere. Weights have the mean 1 over a completion, so that d moves weight between
its tokens and leaves the completion's own. The KL term, which TRL adds apart, stays as it is.

DiTPO weighs by TF-IDF or by the gradients of a CheXbert; its equation is not known to us. Here a token is diagnostic
where it touches a phrase by which the LexicalLabeler reads a finding, whatever is said of it. What stands in the
reasoning weighs 1: findings are weighed up there, and ruled out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

import torch
from transformers import PreTrainedTokenizerBase

from recipes.rg4.token_weights import sentence_spans
from rewards.completions import report_spans
from rewards.labelers import LexicalLabeler

LABELER = LexicalLabeler()


@dataclass
class DiagnosticTokensConfig:
    """The settings of trainers whose diagnostic tokens weigh more; a base class before a TrainingArguments.

    Example:

        DiagnosticTokensConfig(diagnostic_weight=2.0)  # or MRGR1Config("out", diagnostic_weight=2.0)
    """

    diagnostic_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of a report's tokens that name findings, where others have 1; then all are divided by "
            "their mean over the completion. 1: none weighs more."
        },
    )
    diagnostic_unit: str = field(
        default="phrase",
        metadata={
            "help": "Tokens that diagnostic_weight lifts: those of the phrase that names a finding, or of the whole "
            "sentence around it, negations and places among them.",
            "choices": ["phrase", "sentence"],
        },
    )


def diagnostic_spans(text: str, unit: str = "phrase") -> list[tuple[int, int]]:
    """The characters [start, end) of a completion's report that name findings: phrases, or whole sentences.

    >>> diagnostic_spans("<think>An effusion?</think><report>No effusion.</report>")
    [(38, 46)]
    """
    spans = []
    for start, end in report_spans(text):
        report = text[start:end]
        mentions = [(first, last) for first, last, *_ in LABELER.mentions(report)]
        if unit == "sentence":
            mentions = [
                (first, last)
                for first, last in sentence_spans(report)
                if any(first <= at < last for at, _ in mentions)
            ]
        spans += [(start + first, start + last) for first, last in mentions]
    return spans


def token_places(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of sampled tokens, and the characters [start, end) of each in it; a special token has (0, 0).

    A policy may sample other tokens than the tokenizer cuts the same text into. Then, or where the tokenizer tells no
    offsets, a token's characters are those by which it lengthens the decoded text.
    """
    special = set(tokenizer.all_special_ids)
    plain = [token for token in ids if token not in special]
    text = tokenizer.decode(plain)
    places = None
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"] == plain:
            places = encoded["offset_mapping"]
    if places is None:
        prefixes = tokenizer.batch_decode([plain[:number] for number in range(len(plain) + 1)])
        ends = [shared_length(prefix, text) for prefix in prefixes]
        places = [(start, max(start + 1, end)) for start, end in pairwise(ends)]  # half a character is the whole one
    remaining = iter(places)
    return text, [(0, 0) if token in special else next(remaining) for token in ids]


def shared_length(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def weigh_tokens(diagnostic: torch.Tensor, mask: torch.Tensor, weight: float) -> torch.Tensor:
    """Weights (rows, tokens), float32, whose mean over each row's tokens is 1; 0 at padding.

    `diagnostic`, `mask`: (rows, tokens), which tokens weigh `weight` instead of 1, and which are none of padding.

        >>> weigh_tokens(torch.tensor([[True, False, False, False]]), torch.tensor([[1, 1, 1, 0]]), 2.0)
        tensor([[1.5000, 0.7500, 0.7500, 0.0000]])
    """
    raw = torch.where(diagnostic, weight, 1.0) * mask
    return raw * mask.sum(1, keepdim=True) / raw.sum(1, keepdim=True).clamp(min=1e-9)


class WeighsDiagnosticTokens:
    """Before a trainer of TRL's GRPOTrainer among a class's bases: `DiagnosticTokensConfig`'s settings are obeyed.

    The weights travel with their completions (`token_weights`), so that whatever makes the advantages may do so later.
    """

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.args.diagnostic_weight != 1:
            mask = output["completion_mask"]
            diagnostic = self._find_diagnostic(output["completion_ids"], mask)
            output["token_weights"] = weigh_tokens(diagnostic, mask, self.args.diagnostic_weight)
            counts = self.accelerator.gather(torch.stack([diagnostic.sum(), mask.sum()])[None]).sum(0)
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["diagnostic/share"].append((counts[0] / counts[1].clamp(min=1)).item())
        return output

    def _find_diagnostic(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Which tokens of completions (rows, tokens) are diagnostic, bool."""
        diagnostic = torch.zeros_like(mask, dtype=torch.bool)
        for row, length in enumerate(mask.sum(1).tolist()):
            text, places = token_places(self._tokenizer, ids[row, :length].tolist())
            for first, last in diagnostic_spans(text, self.args.diagnostic_unit):
                for column, (start, end) in enumerate(places):
                    if start < last and first < end:
                        diagnostic[row, column] = True
        return diagnostic

    def _compute_loss(self, model, inputs):
        if "token_weights" in inputs:
            inputs = inputs | {"advantages": inputs["advantages"][:, None] * inputs["token_weights"]}
        return super()._compute_loss(model, inputs)
