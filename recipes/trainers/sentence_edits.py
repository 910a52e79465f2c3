"""Half of a group's completions are edited copies of the others, after EditGRPO (arXiv 2509.22812).

Once a group of G completions is sampled, the reports of some of them are put right in one sentence by the reference
(`edit_completion` of recipes/evaluation/sentence_edits.py) and take the places of others; rewards, advantages and the
loss are TRL's, to whom an edited completion is one that was sampled: its old log-probability is the policy's own.
"""

from dataclasses import dataclass, field

import torch

from recipes.evaluation.sentence_edits import KINDS, SIMILAR, count_errors, edit_completion
from recipes.files import InputError
from rewards.completions import completion_text, parse_completion


@dataclass
class SentenceEditsConfig:
    """The settings of trainers that edit completions; a base class before a GRPOConfig.

    Raises InputError where a group has no whole completion to edit or lies in two processes, and with vLLM's
    importance correction, for which an edited token has no log-probability.

    Example:

        @dataclass
        class MyConfig(SentenceEditsConfig, PolicyConfig):
            pass

        MyConfig("out", edit_share=0.5, num_generations=8)  # MRGR1Config has it among its bases
    """

    edit_share: float = field(
        default=0.0,
        metadata={"help": "Share of a group's completions that are others of it after an edit, at most 0.5; 0: none."},
    )
    edit_source: str = field(
        default="sampled",
        metadata={
            "help": "Completions that are edited. sampled: the first ones of a group, in place of its last ones. "
            "best: those with the fewest wrong findings, in place of those with the most.",
            "choices": ["sampled", "best"],
        },
    )
    edit_threshold: float = field(
        default=SIMILAR,
        metadata={
            "help": "Similarity, 0 to 1, from which a sentence with a false finding is replaced by one of the "
            "reference; below it the sentence is deleted."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.edit_share:
            return
        rows, size = self.per_device_train_batch_size * self.steps_per_generation, self.num_generations
        for refused, sentence in (
            (int(size * self.edit_share) < 1, f"edit_share {self.edit_share} edits none of {size} completions"),
            (
                rows % size,
                f"edit_share needs whole groups in each process: per_device_train_batch_size x steps_per_generation "
                f"({rows}) must be a multiple of num_generations ({size})",
            ),
            (
                self.use_vllm and self.vllm_importance_sampling_correction,
                "edit_share and vLLM's importance correction exclude each other, since vLLM did not sample what was "
                "edited: set vllm_importance_sampling_correction to false",
            ),
        ):
            if refused:
                raise InputError(sentence)


class EditsSentences:
    """Before a trainer of TRL's GRPOTrainer among a class's bases: `SentenceEditsConfig`'s settings are obeyed.

    The data need a column `report`; a null there leaves its group as it was sampled, as a completion that was cut off
    and one without an error leave the place of their copy. Nothing is edited in an evaluation. TRL's figures of
    completions' lengths are of the sampled ones.
    """

    _references: list[str | None] = []  # noqa: RUF012, replaced, never changed

    def _generate_and_score_completions(self, inputs):
        if self.args.edit_share:
            if "report" not in inputs[0]:
                raise InputError("edit_share takes sentences of the references: the data need a column 'report'")
            self._references = [row["report"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        output = super()._generate(prompts)
        if self.args.edit_share and self.model.training:
            _, completion_ids, _, completions, log_probs, *_ = output
            kinds = self._edit(completion_ids, completions, log_probs)
            counts = torch.tensor([[kinds.count(kind) for kind in KINDS]], device=self.accelerator.device)
            counts = self.accelerator.gather(counts).float().mean(0) / len(completions)
            for kind, share in zip(("share", *KINDS), (counts.sum(), *counts), strict=True):
                self._metrics["train"][f"edits/{kind}"].append(share.item())
        return output

    def _edit(self, completion_ids: list, completions: list, log_probs: list | None) -> list[str]:
        """Puts edited copies into the three lists, whose rows are completions; the kinds of the edits."""
        size, kinds = self.num_generations, []
        number = int(size * self.args.edit_share)
        for first in range(0, len(completions), size):
            reference, order = self._references[first], list(range(first, first + size))
            if reference is None:
                continue
            if self.args.edit_source == "best":
                reports = [parse_completion(completions[row]).report for row in order]
                errors = count_errors(reports, [reference] * size)
                order.sort(key=lambda row, first=first, errors=errors: errors[row - first])
            for source, target in zip(order[:number], order[-number:], strict=True):
                end = completion_ids[source][-1]
                text = completion_text(completions[source])
                edit = (
                    edit_completion(text, reference, self.args.edit_threshold) if end in self.eos_token_ids else None
                )
                if edit is None:
                    continue
                ids = [*self._tokenizer(edit.text, add_special_tokens=False)["input_ids"], end]
                if len(ids) > self.max_completion_length:
                    continue
                completion_ids[target] = ids
                conversational = not isinstance(completions[target], str)
                completions[target] = [{"role": "assistant", "content": edit.text}] if conversational else edit.text
                if log_probs is not None:
                    log_probs[target] = [None] * len(ids)  # TRL: not known
                kinds.append(edit.kind)
        return kinds
