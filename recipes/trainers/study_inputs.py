"""What a model reads of a study beside TRL's image inputs reaches every pass of GRPO, RLOO and PPO.

TRL hands the inputs of its own list (`PASS_INPUTS`) from a processor to the policy. LLM-RG4 reads three more: which of
two views are real, and the prior report. Here they travel with a batch's rows, through shuffling and micro-batches,
and are put into the model's forward as it is called, so that TRL's passes stay as they are.

Gemma 3 has its prompts' types of tokens (`token_type_ids`: 1 in an image, whose tokens attend to each other) put right
here: TRL 1.16 takes them from a second reading of the prompts' text, in which the tokenizer writes its first token
before that of the chat template, so that the types stand one token too far to the right.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from recipes.files import InputError

PASS_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
STUDY_INPUTS = ("view_mask", "prior_input_ids", "prior_attention_mask")  # one row per completion


def check_pass_inputs(fields: dict) -> None:
    """Raises InputError where a processor's `fields` for the prompts hold one that GRPOTrainer trains without."""
    if unknown := sorted(set(fields) - {*PASS_INPUTS, *STUDY_INPUTS}):
        raise InputError(
            f"the model reads {', '.join(unknown)} of these prompts to write, and GRPOTrainer does not hand it on to "
            "training"
        )


def right_aligned(types: torch.Tensor, length: int) -> torch.Tensor:
    """The last `length` columns of `types` (rows, length or one more), as a row's last token is the last one of both.

    >>> right_aligned(torch.tensor([[0, 0, 1, 1, 0]]), 4)
    tensor([[0, 1, 1, 0]])
    """
    return types[:, -length:]


@contextmanager
def with_study_inputs(model: nn.Module, study: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within it a call of `model` also gets its rows of `study`, in their order: TRL may cut a batch into chunks.

    Raises ValueError where the calls have more rows than `study`.
    """
    if not study:
        yield
        return
    place = 0

    def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        nonlocal place
        rows = slice(place, place + len(kwargs["input_ids"]))
        place = rows.stop
        parts = {name: value[rows] for name, value in study.items()}
        if any(len(value) < rows.stop - rows.start for value in parts.values()):
            raise ValueError(f"a pass has more rows than the {len(next(iter(study.values())))} of its studies")
        return args, kwargs | parts

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class StudyInputs:
    """Before TRL's GRPOTrainer or RLOOTrainer among a class's bases: `STUDY_INPUTS` of a processor reach the policy.

    They are those of the batch that was tokenized last, and in a loss those of its own rows.
    """

    _study: dict[str, torch.Tensor] = {}  # noqa: RUF012, replaced, never changed

    def _tokenize_prompts(self, prompts):
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        check_pass_inputs(fields)
        study = {}
        for name in set(STUDY_INPUTS) & set(fields):
            rows = [torch.as_tensor(row, device=self.accelerator.device) for row in fields[name]]
            study[name] = pad_sequence(rows, batch_first=True)  # on the right: TRL would on the left, as prompts
        self._study = study
        return prompt_ids, images, {**fields, **study}

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        study = {name: kwargs.pop(name) for name in STUDY_INPUTS if name in kwargs} or self._study
        if (types := kwargs.get("token_type_ids")) is not None:
            kwargs["token_type_ids"] = right_aligned(types, input_ids.shape[1])
        with with_study_inputs(self.accelerator.unwrap_model(model), study):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return output | self._study

    def _compute_loss(self, model, inputs):
        self._study = {name: inputs[name] for name in STUDY_INPUTS if name in inputs}
        return super()._compute_loss(model, inputs)
