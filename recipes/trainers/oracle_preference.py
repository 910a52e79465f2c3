"""Failed completions learn from the reference report by preference, after OraPO (arXiv 2509.18600).

Of each batch of completions, over all processes, z is the share that earned nothing, m its moving average, and

    w = w_min + (w_max - w_min) m^gamma,    m <- alpha z + (1 - alpha) m,
    L = (1 - w) L_GRPO + w mean over completions of [failed] x -log sigmoid(beta ((a_c - b_c) - (a_r - b_r)))

with a the mean log-probability of a token under the policy and b under the reference model, c the reference report
(the chosen answer) and r the failed completion (the rejected one): DPO normalised by length, TRL's `sigmoid_norm`.
The weight is one number for a batch, so that (1 - w) scales all that TRL's loss holds, its KL term too, exactly.

The policy reads the chosen answers in the pass that TRL makes over a micro-batch, as more rows of it: a prompt and its
images are still read once (shared_prefix.py), and every process makes equally many passes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import unsplit_pixel_values_by_grid, use_adapter

from recipes.data.samples import write_answer
from recipes.files import InputError
from recipes.trainers.shared_prefix import split_rows, take_rows
from recipes.trainers.study_inputs import PASS_INPUTS, STUDY_INPUTS

STATE_FILE = "oracle_state.json"
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # TRL's are as wide as prompt and completion


@dataclass
class OraclePreferenceConfig:
    """The settings of trainers that learn from references where completions fail; a base class before a GRPOConfig.

    Raises InputError without a KL term, since TRL has no reference model then, and on weights in a wrong order.

    Example:

        @dataclass
        class MyConfig(OraclePreferenceConfig, PolicyConfig):
            pass

        MyConfig("out", oracle_preference=True, beta=0.04)  # MRGR1Config has it among its bases
    """

    oracle_preference: bool = field(
        default=False,
        metadata={
            "help": "Preference of the reference report to completions without reward (a weighted sum of rewards of 0 "
            "or less), as a DPO term of the loss."
        },
    )
    oracle_weight_min: float = field(
        default=0.05, metadata={"help": "Weight of the DPO term while every completion earns something."}
    )
    oracle_weight_max: float = field(
        default=0.15, metadata={"help": "Weight of the DPO term while no completion earns anything."}
    )
    oracle_gamma: float = field(
        default=2.0, metadata={"help": "Exponent of the share of completions without reward in that weight."}
    )
    oracle_smoothing: float = field(
        default=0.5, metadata={"help": "Weight of the newest batch in the moving average of that share."}
    )
    oracle_beta: float = field(default=0.1, metadata={"help": "Beta of the DPO term."})
    oracle_answer: str = field(
        default="plain",
        metadata={
            "help": "Form of the chosen answer: plain, the reference report alone, or reasoning, in tags after its "
            "findings, as sft_mrgr1.py's target.",
            "choices": ["plain", "reasoning"],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for refused, sentence in (
            (
                self.beta == 0,
                "oracle_preference compares with the reference model, which TRL has for a KL term alone: set beta "
                "above 0",
            ),
            (
                self.oracle_weight_min > self.oracle_weight_max,
                f"oracle_weight_min ({self.oracle_weight_min}) is above oracle_weight_max ({self.oracle_weight_max})",
            ),
        ):
            if self.oracle_preference and refused:
                raise InputError(sentence)


def preference_weight(share: float, lowest: float, highest: float, gamma: float) -> float:
    """The weight w of the DPO term at a `share` of completions without reward, 0 to 1.

    >>> preference_weight(0.5, 0.05, 0.15, 2.0)
    0.07500000000000001
    """
    return lowest + (highest - lowest) * share**gamma


def token_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of each row's tokens, (rows,), from (rows, tokens); 0 of a row without any."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def encode_answer(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    answer: str,
    ends: Sequence[int],
    conversational: bool,
    **template_kwargs,
) -> list[int]:
    """The tokens of `answer` as a policy that stops at one of `ends` would write it, the end among them.

    In a conversation the end is that of the chat template, as in supervised fine-tuning. Raises InputError where the
    template ends an answer with nothing at which generation stops.
    """
    is_processor = isinstance(processing_class, ProcessorMixin)
    tokenizer = processing_class.tokenizer if is_processor else processing_class
    text = f"{answer}{tokenizer.eos_token}"
    if conversational:
        example = {"prompt": [{"role": "user", "content": "Report."}]}
        example["completion"] = [{"role": "assistant", "content": answer}]
        if is_processor:
            example = {name: prepare_multimodal_messages(messages) for name, messages in example.items()}
        text = apply_chat_template(example, processing_class, **template_kwargs)["completion"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    length = next((number for number, token in enumerate(ids, start=1) if token in ends), None)
    if length is None:
        raise InputError(
            f"oracle_preference: the chat template ends an answer with {text[-20:]!r}, and generation stops at "
            f"{tokenizer.convert_ids_to_tokens(list(ends))}: no end token is in it"
        )
    return ids[:length]


def with_completions(
    batch: dict, rows: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """What a pass reads of `rows` of TRL's `batch` with other completions: ids, attention mask, further inputs.

    `ids`, `mask`: (number of rows, tokens), padded on the right. A row may be taken more than once.
    """
    rows = list(rows)
    prompts, length = batch["prompt_ids"][rows], batch["prompt_ids"].shape[1]
    fields = {name: batch[name] for name in (*PASS_INPUTS, *STUDY_INPUTS) if batch.get(name) is not None}
    if "pixel_values" in fields:
        fields = split_rows(fields)
    fields = {name: take_rows(value, rows) for name, value in fields.items()}
    for name in TOKEN_TYPES:
        if name in fields:
            fields[name] = torch.cat([fields[name][:, :length], torch.zeros_like(ids)], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"][rows], mask.to(batch["prompt_mask"].dtype)], dim=1)
    return torch.cat([prompts, ids], dim=1), attention_mask, unsplit_pixel_values_by_grid(fields)


class PrefersReferences:
    """Before a trainer of TRL's GRPOTrainer among a class's bases: `OraclePreferenceConfig`'s settings are obeyed.

    The data need a column `report`, and for `oracle_answer` reasoning `labels`; a row with a null there has no pair.
    The moving average is in checkpoints. Nothing changes in an evaluation.
    """

    zero_reward_share: float | None = None  # m, once there was a batch
    _earned: tuple[torch.Tensor, torch.Tensor] | None = None  # of all processes: which failed, which were scored
    _with_answers: dict | None = None  # the micro-batch whose next pass reads the chosen answers too
    _log_probs: torch.Tensor | None = None  # of that pass, all rows

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        plain = self.args.oracle_preference and self.args.oracle_answer == "plain"
        if plain and "format_reward" in self.reward_func_names:
            raise InputError(
                "the reward format pays for tags, and oracle_preference would prefer reports without them: set "
                "oracle_answer reasoning, or leave format out of the rewards"
            )

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        scored = ~scores.isnan().all(dim=1)
        rewards = (scores * self.reward_weights.to(scores.device)).nansum(dim=1)
        self._earned = (rewards <= 0) & scored, scored
        return scores

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.args.oracle_preference and self.model.training:
            output |= self._make_pairs(inputs, output)
        return output

    def _make_pairs(self, inputs: list[dict], output: dict) -> dict:
        """What the loss needs of a batch of completions (rows,) beside TRL's: the weight, the pairs, their answers."""
        args, rows, device = self.args, len(inputs), self.accelerator.device
        failed, scored = self._earned
        if scored.any():
            share = (failed.sum() / scored.sum()).item()
            before = share if self.zero_reward_share is None else self.zero_reward_share
            self.zero_reward_share = args.oracle_smoothing * share + (1 - args.oracle_smoothing) * before
        weight = preference_weight(
            self.zero_reward_share or 0.0, args.oracle_weight_min, args.oracle_weight_max, args.oracle_gamma
        )
        for name, value in (("zero_reward_share", self.zero_reward_share or 0.0), ("weight", weight)):
            self._metrics["train"][f"oracle/{name}"].append(value)

        start = self.accelerator.process_index * rows
        groups = [(start + row) // self.num_generations for row in range(rows)]
        leaders = [groups.index(group) for group in dict.fromkeys(groups)]
        answers = [self._encode(inputs[row]) for row in leaders]
        ids = [torch.tensor(answer or [self._tokenizer.pad_token_id], device=device) for answer in answers]
        mask = pad_sequence([torch.ones_like(answer) for answer in ids], batch_first=True)
        ids = pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        log_probs = self._reference_log_probs(output, leaders, ids, mask)

        place = torch.tensor([leaders.index(groups.index(group)) for group in groups], device=device)
        has_answer = torch.tensor([bool(answer) for answer in answers], device=device)[place]
        return {
            "oracle_weight": torch.tensor(weight, device=device),
            "oracle_pairs": failed[start : start + rows] & has_answer & output["completion_mask"].any(dim=1),
            "oracle_groups": torch.tensor(groups, device=device),
            "chosen_ids": ids[place],
            "chosen_mask": mask[place],
            "chosen_ref_logps": token_mean(log_probs, mask)[place],
        }

    def _encode(self, row: dict) -> list[int] | None:
        """The tokens of the answer to prefer for a row of the data, or None where it has no reference."""
        names = ("report", "labels") if self.args.oracle_answer == "reasoning" else ("report",)
        if missing := [name for name in names if name not in row]:
            raise InputError(f"oracle_preference: the data need a column {missing[0]!r} to write the chosen answers")
        if any(row[name] is None for name in names):
            return None
        answer = row["report"] if len(names) == 1 else write_answer(row["labels"], row["report"])
        conversational = not isinstance(row["prompt"], str)
        return encode_answer(
            self.processing_class, answer, self.eos_token_ids, conversational, **self.chat_template_kwargs
        )

    def _reference_log_probs(
        self, output: dict, leaders: list[int], ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The reference model's log-probabilities (len(leaders), tokens) of the answers `ids` to rows of `output`.

        All processes read equally many rows, as split weights (FSDP, ZeRO-3) need it.
        """
        rows, size = len(output["prompt_ids"]), self.num_generations
        number = rows // size if rows % size == 0 else rows // size + 2
        order = [*range(len(leaders)), *[0] * (number - len(leaders))]
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self._reference() as reference,
        ):
            input_ids, attention_mask, fields = with_completions(
                output, [leaders[place] for place in order], ids[order], mask[order]
            )
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                reference,
                input_ids,
                attention_mask,
                ids.shape[1],
                batch_size=self.args.per_device_train_batch_size,
                **fields,
            )
        return log_probs[: len(leaders)]

    @contextmanager
    def _reference(self) -> Iterator[torch.nn.Module]:
        """The model that TRL's KL term is taken from: one of its own, or the policy without its adapter."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            yield self.model

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        batch, self._with_answers = self._with_answers, None
        if batch is not None:
            rows, tokens = batch["completion_ids"].shape
            leaders = list(pair_leaders(batch).values())
            parts = [(batch["completion_ids"], batch["completion_mask"])]
            parts += [(batch["chosen_ids"][leaders], batch["chosen_mask"][leaders])]
            logits_to_keep = max(ids.shape[1] for ids, _ in parts)
            ids, mask = (
                torch.cat([functional.pad(part[kind], (0, logits_to_keep - part[kind].shape[1])) for part in parts])
                for kind in (0, 1)
            )
            order = [*range(rows), *leaders]
            input_ids, attention_mask, fields = with_completions(batch, order, ids, mask)
            kwargs |= fields
        log_probs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if batch is not None:
            self._log_probs = log_probs
            log_probs, entropies = log_probs[:rows, :tokens], entropies[:rows, :tokens]
        return log_probs, entropies, aux_loss

    def _compute_loss(self, model, inputs):
        has_pairs = "oracle_pairs" in inputs and bool(inputs["oracle_pairs"].any())
        self._with_answers = inputs if has_pairs else None
        loss = super()._compute_loss(model, inputs)
        if "oracle_weight" not in inputs:
            return loss
        preference = self._preference_loss(inputs) if has_pairs else torch.zeros_like(loss)
        self._metrics["train"]["oracle/loss"].append(self.accelerator.gather(preference.detach()).mean().item())
        weight = inputs["oracle_weight"]
        return (1 - weight) * loss + weight * preference / self.current_gradient_accumulation_steps

    def _preference_loss(self, inputs: dict) -> torch.Tensor:
        """The DPO term of a micro-batch: the sum over its pairs, divided by its number of completions."""
        log_probs, self._log_probs = self._log_probs, None
        rows, tokens = inputs["completion_ids"].shape
        leaders = pair_leaders(inputs)
        chosen_mask = inputs["chosen_mask"][list(leaders.values())]
        answers = token_mean(log_probs[rows:, : chosen_mask.shape[1]], chosen_mask)
        mask, pairs = inputs["completion_mask"], inputs["oracle_pairs"]
        rejected = token_mean(log_probs[:rows, :tokens] - inputs["ref_per_token_logps"], mask)[pairs]
        numbers = [list(leaders).index(group) for group in inputs["oracle_groups"][pairs].tolist()]
        chosen = answers[numbers] - inputs["chosen_ref_logps"][pairs]
        return -functional.logsigmoid(self.args.oracle_beta * (chosen - rejected)).sum() / rows

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.oracle_preference and self.args.should_save:
            (Path(output_dir) / STATE_FILE).write_text(json.dumps({"zero_reward_share": self.zero_reward_share}))

    def _load_optimizer_and_scheduler(self, checkpoint):
        if self.args.oracle_preference and checkpoint is not None:
            file = Path(checkpoint) / STATE_FILE
            if not file.is_file():
                raise InputError(
                    f"{checkpoint} is no checkpoint of a run with oracle_preference: it has no {STATE_FILE}"
                )
            self.zero_reward_share = json.loads(file.read_text())["zero_reward_share"]
        super()._load_optimizer_and_scheduler(checkpoint)


def pair_leaders(batch: dict) -> dict[int, int]:
    """Of each group of a micro-batch that has a pair the first row with one."""
    leaders: dict[int, int] = {}
    for row, (group, paired) in enumerate(
        zip(batch["oracle_groups"].tolist(), batch["oracle_pairs"].tolist(), strict=True)
    ):
        if paired:
            leaders.setdefault(group, row)
    return leaders
