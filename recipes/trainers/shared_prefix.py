"""Each study is read once per group: completions of one prompt share its tokens and its images in every pass.

GRPO, RLOO and PPO ask a model for the log-probabilities of several completions of one prompt. TRL's pass repeats the
prompt in each row: G x (P + C) tokens. Here the rows of a batch that have one prompt and one study's images become

    [prompt 1 | prompt 2 | ... | completion 1 | completion 2 | ... ]

a single row without padding, P + G x C tokens for a group, which the backbone reads once. A completion's tokens attend
to their prompt and to themselves, at the positions that they have in the plain pass, so that log-probabilities, losses
and gradients are the plain pass's (Prefix Grouper, arXiv 2506.05433, does so for text). The states are put back where
TRL's head expects them; all that follows is TRL's own code.
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from recipes.files import InputError
from recipes.trainers.checkpoints import weights_are_split
from recipes.trainers.image_memory import ImageMemory, fingerprint, split_images

ATTENTION = "shared_prefix"  # the name by which transformers finds `attend`
# Decoders whose tokens attend to all earlier ones, at positions that `token_positions` gives, and mix in no other way.
DECODERS = ("llama", "opt", "phi", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")
INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids", "use_cache")
PREFILL = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "mm_encoder_outputs")
SUMS = ("grpo", "dapo", "dr_grpo")  # losses of which a step's gradient is one sum over its completions
TOLERANCE = 1e-3  # of a log-probability in the first batch, in nats
TOLERANCE_16_BITS = 2e-2


@dataclass
class SharePrefixConfig:
    """The setting of trainers that read each study once per group; a base class before a TrainingArguments.

    Example:

        SharePrefixConfig(share_prefix=False)  # or MRGR1Config("out", share_prefix=False): the plain pass
    """

    share_prefix: bool | None = field(
        default=None,
        metadata={
            "help": "Read a prompt and its images once for all its completions in a batch; the numbers stay those of "
            "the plain pass. Default: where the model is one for which this is exact. true: refuse a model or an "
            "attention implementation that cannot (flash_attention_2). false: never."
        },
    )


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch (R rows) with N distinct prompts stand in one row of T tokens.

    First come the prompts, then the completions, both without padding; P and C are the lengths of the longest.
    """

    rows: torch.Tensor  # (T,) the row of the batch that each token is taken from
    columns: torch.Tensor  # (T,)
    groups: torch.Tensor  # (T,) number of the prompt
    completions: torch.Tensor  # (T,) number of the row, -1 for a prompt's token
    prompt_places: torch.Tensor  # (N, P) place in the row of T tokens; padding has the first place
    completion_places: torch.Tensor  # (R, C)
    prompt_of: torch.Tensor  # (R,)
    mask: torch.Tensor  # (R, 1, C, P + C) bool: which keys a completion's token attends to
    order: torch.Tensor  # (T,) place among the N x P + R x C padded tokens
    states: torch.Tensor  # (R, tokens + 1) place of the state that chose each token, and of the last one

    @classmethod
    def of(cls, mask: torch.Tensor, leaders: Sequence[int], prompt_of: Sequence[int], tokens: int) -> "Layout":
        """The layout of a batch with the attention `mask` (R, length), whose last `tokens` columns are completions.

        `leaders`: the row that each prompt is taken from; `prompt_of`: each row's prompt, by its number.
        """
        device, mask = mask.device, mask.bool()
        prompt_of, leaders = (torch.tensor(list(rows), device=device) for rows in (prompt_of, leaders))
        start = mask.shape[1] - tokens
        prompts, answers = mask[leaders, :start], mask[:, start:]
        number, columns = prompts.nonzero(as_tuple=True)
        rows, answer_columns = answers.nonzero(as_tuple=True)
        prompt_lengths, lengths = prompts.sum(1), answers.sum(1)

        def places(sizes: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
            step = torch.arange(max(int(sizes.max()), 1), device=device)
            real = step < sizes[:, None]
            return ((sizes.cumsum(0) - sizes)[:, None] + step + first).where(real, 0), real

        prompt_places, real_prompts = places(prompt_lengths, 0)
        completion_places, real = places(lengths, len(number))
        width = completion_places.shape[1]
        earlier = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        prompt_keys = real_prompts[prompt_of][:, None].expand(-1, width, -1)
        states = torch.zeros(len(mask), tokens + 1, dtype=torch.long, device=device)
        states[:, 0] = prompt_lengths.cumsum(0)[prompt_of] - 1
        states[rows, answer_columns + 1] = torch.arange(len(rows), device=device) + len(number)
        return cls(
            rows=torch.cat([leaders[number], rows]),
            columns=torch.cat([columns, answer_columns + start]),
            groups=torch.cat([number, prompt_of[rows]]),
            completions=torch.cat([torch.full_like(number, -1), rows]),
            prompt_places=prompt_places,
            completion_places=completion_places,
            prompt_of=prompt_of,
            mask=torch.cat([prompt_keys, earlier.expand(len(mask), -1, -1)], dim=2)[:, None],
            order=torch.cat([real_prompts.flatten(), real.flatten()]).nonzero().squeeze(1),
            states=states,
        )

    def allows(self, batch, head, query, key):
        """Whether the token at place `query` attends to the one at `key`; numbers or tensors of places."""
        inside = (self.completions[key] == -1) | (self.completions[key] == self.completions[query])
        return (query >= key) & (self.groups[query] == self.groups[key]) & inside

    def attention_mask(self, implementation: str, dtype: torch.dtype) -> Any:
        """What the attention `implementation` of transformers takes for the mask of (1, 1, T, T)."""
        length, device = len(self.rows), self.rows.device
        if implementation == "flex_attention":
            allows = lambda batch, head, query, key: self.allows(batch, head, query, key)  # noqa: E731, no bound method
            return create_block_mask(allows, None, None, length, length, device=device)
        if implementation == ATTENTION:  # `attend` has the layout; a mask of four dimensions is passed on as it is
            return torch.empty(1, 1, 0, 0, device=device)
        place = torch.arange(length, device=device)
        allowed = self.allows(0, 0, place[:, None], place)[None, None]
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def attend(module, query, key, value, attention_mask, shared_prefix: Layout | None = None, **kwargs):
    """transformers' SDPA attention; with a layout, prompts first, causally, and then each completion on its prompt.

    `query`: (1, heads, T, width); `key` and `value` may have fewer heads. No product is computed of which the (T, T)
    mask would leave nothing, so G completions cost G x C x (P + C) products, never (P + G x C) squared.
    """
    sdpa, layout = ALL_ATTENTION_FUNCTIONS["sdpa"], shared_prefix
    if layout is None:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # (T, heads, width)

    def take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return states.index_select(0, places.flatten()).unflatten(0, places.shape)

    prompts = [take(states, layout.prompt_places) for states in flat]  # (N, P, heads, width)
    answers = [take(states, layout.completion_places) for states in flat]  # (R, C, heads, width)
    rows = len(layout.prompt_of)
    for part in (1, 2):
        before = prompts[part]
        before = before.expand(rows, -1, -1, -1) if len(before) == 1 else before.index_select(0, layout.prompt_of)
        answers[part] = torch.cat([before, answers[part]], dim=1)
    first, _ = sdpa(module, *(states.transpose(1, 2) for states in prompts), None, **kwargs)
    second, _ = sdpa(module, *(states.transpose(1, 2) for states in answers), layout.mask, **kwargs)
    return torch.cat([first.flatten(0, 1), second.flatten(0, 1)]).index_select(0, layout.order)[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def token_positions(backbone: PreTrainedModel, inputs: dict) -> torch.Tensor:
    """The positions that `backbone` gives to a batch's tokens: (rows, length), or (3, rows, length) for M-RoPE."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if hasattr(backbone, "compute_3d_position_ids"):
        positions = backbone.compute_3d_position_ids(
            input_ids=ids,
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=None,
            inputs_embeds=None,
            attention_mask=mask,
            cache=None,
            mm_token_type_ids=inputs.get("mm_token_type_ids"),
        )
        if positions is not None:
            return positions
    if decoder_of(backbone).config.model_type == "opt":
        return (mask.cumsum(1) * mask - 1).long()
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def decoder_of(backbone: PreTrainedModel) -> PreTrainedModel:
    return getattr(backbone, "language_model", backbone)


class Images:
    """The images of a batch's rows, by the places that the prompts have for them.

    `rows`: of each row the numbers of its images; `keys`: of each image what tells it from others.
    """

    def __init__(self, backbone: PreTrainedModel, inputs: dict):
        self.grids = inputs.get("image_grid_thw")
        self.pixels = split_images(inputs["pixel_values"], self.grids)
        if self.grids is None:
            sizes = None
        else:
            sizes = (self.grids.prod(-1) // backbone.config.vision_config.spatial_merge_size**2).tolist()
        self.rows = share_out(inputs["input_ids"] == backbone.config.image_token_id, len(self.pixels), sizes)

    @functools.cached_property
    def keys(self) -> list[tuple]:
        return [fingerprint(image) for image in self.pixels]

    def of(self, rows: Sequence[int]) -> dict:
        """The model's inputs for the images of `rows`."""
        numbers = [number for row in rows for number in self.rows[row]]
        if not numbers:
            return {}
        pixels = [self.pixels[number] for number in numbers]
        if self.grids is None:
            return {"pixel_values": torch.stack(pixels)}
        return {"pixel_values": torch.cat(pixels), "image_grid_thw": self.grids[numbers]}


def share_out(places: torch.Tensor, images: int, sizes: Sequence[int] | None) -> list[range]:
    """The numbers of each row's images, of which `sizes` has the features, or all have equally many.

    `places`: (rows, length) bool, where a row has a place for a feature. Raises InputError where the numbers of places
    and of features differ.

        >>> share_out(torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(), 3, [2, 1, 2])
        [range(0, 1), range(1, 3)]
    """
    counts = places.sum(1).tolist()
    sizes = [sum(counts) // images] * images if sizes is None else sizes
    rows, number = [], 0
    for count in counts:
        first = number
        while count > 0 and number < images:
            count, number = count - sizes[number], number + 1
        if count:
            break
        rows.append(range(first, number))
    if len(rows) < len(counts) or number < images:
        raise InputError(f"prompts have {counts} places for the features of images, and the images have {sizes}")
    return rows


class SharedPrefix:
    """Lets the models of one trainer read each prompt and its images once for the completions that share it.

    `attach` puts it before a model's forward and its backbone's; nothing changes but for calls within `completions`
    that have TRL's fused head. `required`: the setting is true, so that what cannot be shared is an error.
    """

    def __init__(self, required: bool = False):
        self.required = required
        self.checked = False
        self.saved = [0, 0]  # tokens that were read, and those of the plain pass
        self._tokens = 0
        self._writing = False
        self._plan_in_use: tuple | None = None
        self._notes: set[str] = set()

    def note(self, sentence: str) -> None:
        """Prints `sentence` once a run; raises InputError where sharing is required."""
        if self.required:
            raise InputError(f"share_prefix true: {sentence}")
        if sentence not in self._notes and PartialState().is_main_process:
            print(f"share_prefix: {sentence}; the plain pass is taken", flush=True)
        self._notes.add(sentence)

    @contextmanager
    def completions(self, tokens: int) -> Iterator[None]:
        """Within it the last `tokens` columns of a batch are completions."""
        self._tokens = tokens
        try:
            yield
        finally:
            self._tokens = 0

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Within it a generation's first pass reads each prompt once for the rows that have it."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def attach(self, model: nn.Module, check: bool = True) -> bool:
        """Puts this before the forward of `model`, which has TRL's fused head; whether the model can share."""
        policy: PreTrainedModel = model.get_base_model() if is_peft_model(model) else model
        backbone = policy.base_model
        if reason := obstacle(model, policy):
            self.note(reason)
            return False
        decoder = decoder_of(backbone)
        implementation = decoder.config._attn_implementation
        if implementation == "sdpa":
            implementation = ATTENTION
            for module in decoder.modules():
                if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                    config._attn_implementation = ATTENTION
        self._wrap_backbone(backbone, implementation)
        self._wrap_policy(policy, backbone, check)
        return True

    def _wrap_policy(self, policy: PreTrainedModel, backbone: PreTrainedModel, check: bool) -> None:
        original = policy.forward

        @functools.wraps(type(policy).forward)  # generation looks at the signature
        def forward(_, *args, fused_lm_head=False, labels=None, **kwargs):
            if labels is not None:
                kwargs["labels"] = labels
            if not fused_lm_head:
                return original(*args, **kwargs)
            plain = functools.partial(original, *args, fused_lm_head=True)
            if not self._tokens or args:
                return plain(**kwargs)
            if check and not self.checked:
                self.checked = True
                self._check(policy, plain, kwargs)
            return self._run(plain, kwargs, self._plan(backbone, kwargs))

        policy.forward = types.MethodType(forward, policy)

    def _wrap_backbone(self, backbone: PreTrainedModel, implementation: str) -> None:
        original = backbone.forward

        @functools.wraps(type(backbone).forward)
        def forward(_, *args, **kwargs):
            if self._plan_in_use is None:
                return self._prefill(backbone, original, args, kwargs)
            layout, images, leaders = self._plan_in_use
            self._plan_in_use = None
            positions = token_positions(backbone, kwargs)[..., layout.rows, layout.columns]
            packed = {
                "input_ids": kwargs["input_ids"][layout.rows, layout.columns][None],
                "position_ids": positions[..., None, :],
                "attention_mask": layout.attention_mask(implementation, decoder_of(backbone).dtype),
                "use_cache": False,
            }
            if implementation == ATTENTION:
                packed["shared_prefix"] = layout
            if images is not None:
                packed |= images.of(leaders)
            output = original(**packed)
            output["last_hidden_state"] = output.last_hidden_state[0][layout.states]
            return output

        backbone.forward = types.MethodType(forward, backbone)

    def _plan(self, backbone: PreTrainedModel, inputs: dict, always: bool = False) -> tuple | None:
        """How to share a batch: the layout, its images and the row of each prompt; None where there is nothing to."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        start = ids.shape[1] - self._tokens
        prompts, answers = mask[:, :start], mask[:, start:]
        others = {name for name, value in inputs.items() if value is not None} - {*INPUTS, "labels"}
        if others:
            self.note(f"the model reads {', '.join(sorted(others))} too, which is not shared")
            return None
        if (prompts[:, :-1] & ~prompts[:, 1:]).any() or (answers[:, 1:] & ~answers[:, :-1]).any():
            self.note("the prompts are not padded on the left, or the completions not on the right")
            return None
        images = None
        keys = [(tuple(row),) for row in ids[:, :start].where(prompts, -1).tolist()]
        if inputs.get("pixel_values") is not None:
            if (ids[:, start:] == backbone.config.image_token_id).any():
                return None  # a tool's images are in the completion
            images = Images(backbone, inputs)
            keys = [
                (*key, *(images.keys[number] for number in row)) for key, row in zip(keys, images.rows, strict=True)
            ]
        leaders, prompt_of = number_prompts(keys)
        if len(leaders) == len(ids) and not always:
            if not self.saved[0]:
                self.note("no two completions of a batch have one prompt")
            return None
        return Layout.of(mask, leaders, prompt_of, self._tokens), images, leaders

    def _prefill(self, backbone: PreTrainedModel, original: Callable, args: tuple, inputs: dict) -> Any:
        """The pass `original`; where it is a generation's first, of one row of each prompt, whose cache all share."""
        names = {name for name, value in inputs.items() if isinstance(value, (torch.Tensor, dict))}
        cache = inputs.get("cache")
        if (
            not self._writing
            or type(cache) is not DynamicCache
            or cache.get_seq_length()
            or not {"input_ids", "position_ids"} <= names <= {*PREFILL}
        ):
            return original(*args, **inputs)
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        read = ids if mask is None else ids.where(mask.bool(), -1)  # without padding there is no mask
        keys = [(tuple(row),) for row in read.tolist()]
        features = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if features is not None:
            pooled = features.pooler_output
            rows = share_out(ids == backbone.config.image_token_id, len(pooled), [len(image) for image in pooled])
            prints = [fingerprint(image) for image in pooled]
            keys = [(*key, *(prints[number] for number in row)) for key, row in zip(keys, rows, strict=True)]
        leaders, prompt_of = number_prompts(keys)
        if len(leaders) == len(keys):
            return original(*args, **inputs)
        part = {name: inputs[name][..., leaders, :] for name in names - {"mm_encoder_outputs"}}
        if features is not None:
            numbers = [number for leader in leaders for number in rows[leader]]
            part["mm_encoder_outputs"] = {"image": choose_features(features, numbers)}
        output = original(**inputs | part)
        back = torch.tensor(prompt_of, device=ids.device)
        cache.batch_select_indices(back)
        output["last_hidden_state"] = output.last_hidden_state[back]
        return output

    def _run(self, plain: Callable, inputs: dict, plan: tuple | None) -> Any:
        if plan is None:
            return plain(**inputs)
        self._plan_in_use = plan
        self.saved[0] += len(plan[0].rows)
        self.saved[1] += inputs["input_ids"].numel()
        return plain(**inputs | {"labels": inputs["labels"][:, -self._tokens - 1 :]})

    @torch.no_grad()
    def _check(self, policy: PreTrainedModel, plain: Callable, inputs: dict) -> None:
        """Raises InputError where one prompt's completions have other log-probabilities than in the plain pass."""
        plan = self._plan(policy.base_model, inputs, always=True)
        if plan is None:
            return
        prompt_of = plan[0].prompt_of.tolist()
        group = max(prompt_of, key=prompt_of.count)
        rows = [row for row, number in enumerate(prompt_of) if number == group]
        part = {
            name: value[rows] if name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels") else value
            for name, value in inputs.items()
            if name not in ("pixel_values", "image_grid_thw")
        }
        if plan[1] is not None:
            part |= plan[1].of(rows)
        training = [module for module in policy.modules() if module.training]
        policy.eval()  # dropout would make any two passes differ
        try:
            expected = plain(**part).log_probs[:, -self._tokens :]
            actual = self._run(plain, part, self._plan(policy.base_model, part, always=True)).log_probs
        finally:
            self.saved = [0, 0]
            for module in training:
                module.training = True
        labelled = part["labels"][:, -self._tokens :] != -100
        difference = (expected - actual).abs()[labelled].float()
        device = expected.device.type
        half = policy.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(device)
        # Single tokens differ by more in 16 bits, between any two ways to compute attention.
        worst = float(difference.mean() if half else difference.max()) if labelled.any() else 0.0
        if not worst <= (TOLERANCE_16_BITS if half else TOLERANCE):
            raise InputError(
                f"share_prefix: the log-probabilities of the first batch differ by {worst:.2g} from those of the "
                f"plain pass, so {type(policy).__name__} cannot share its prompts: set share_prefix false"
            )


def number_prompts(keys: Sequence) -> tuple[list[int], list[int]]:
    """The first row with each distinct key, and of each row the number of its key.

    >>> number_prompts(["a", "b", "a"])
    ([0, 1], [0, 1, 0])
    """
    numbers: dict = {}
    prompt_of = [numbers.setdefault(key, len(numbers)) for key in keys]
    return [prompt_of.index(number) for number in range(len(numbers))], prompt_of


def choose_features(features: Any, numbers: Sequence[int]) -> Any:
    """What `get_image_features` gave, of the images with these numbers alone."""
    pooled, levels = features.pooler_output, getattr(features, "deepstack_features", None)
    if isinstance(pooled, torch.Tensor):
        return type(features)(last_hidden_state=features.last_hidden_state[numbers], pooler_output=pooled[numbers])
    parts = {"pooler_output": tuple(pooled[number] for number in numbers)}
    if levels:
        parts["deepstack_features"] = [[level[number] for number in numbers] for level in levels]
    return type(features)(**parts)


def obstacle(model: nn.Module, policy: PreTrainedModel) -> str | None:
    """Why a model cannot read a prompt once for several completions, as a part of a sentence, or None."""
    config = decoder_of(policy.base_model).config
    attention = config._attn_implementation
    if config.model_type == "gemma3_text":
        return "an image's tokens attend to each other in both directions, and most layers of Gemma 3 see a window"
    if config.model_type not in DECODERS:
        return f"prompts are not shared for a decoder of the type {config.model_type}"
    if attention not in ("sdpa", "eager", "flex_attention", ATTENTION):
        return f"attn_implementation {attention} takes no mask of this kind: set sdpa (or flex_attention)"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return f"the {config.model_type} has layers with a sliding window"
    if is_peft_model(model) and any(adapter.is_prompt_learning for adapter in model.peft_config.values()):
        return "an adapter with a learned prompt has tokens of its own"
    return None


def join(parts: list) -> Any:
    """What micro-batches have under one name, together: rows, or one number or None that is all of them's."""
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return parts[0] if parts[0] is None or parts[0].ndim == 0 else torch.cat(parts)


def take_rows(value: Any, order: list[int]) -> Any:
    """What `join` gave, its rows in another order."""
    if isinstance(value, list):
        return [value[row] for row in order]
    return value if value is None or value.ndim == 0 else value[order]


def split_rows(batch: dict) -> dict:
    """`batch` with a list of pixels, one entry a row, however many images the rows have.

    TRL leaves a batch as it is whose pixels are padded to one row a study, unless each study has one image.
    """
    batch = split_pixel_values_by_grid(batch)
    pixels = batch.get("pixel_values")
    return batch | {"pixel_values": list(pixels.split(1))} if isinstance(pixels, torch.Tensor) else batch


def gather_groups(batches: list[dict], window: int) -> list[dict]:
    """The completions of `batches`, those of one prompt side by side within each `window` of micro-batches.

    TRL shuffles a generation's completions over the micro-batches of a step. Their order in a step changes no sum, and
    a prompt whose completions stand in one micro-batch is read once. `batches`: what TRL's `_prepare_inputs` buffers.
    """
    gathered = []
    for first in range(0, len(batches), window):
        some = [split_rows(batch) for batch in batches[first : first + window]]
        batch = {name: join([part[name] for part in some]) for name in some[0]}
        images = batch.get("pixel_values")
        images = [None] * len(batch["prompt_ids"]) if images is None else images
        prompts = batch["prompt_ids"].where(batch["prompt_mask"].bool(), -1).tolist()
        keys = [
            (tuple(prompt), None if image is None else fingerprint(image))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        order = sorted(range(len(keys)), key=lambda row: keys.index(keys[row]))
        batch = {name: take_rows(value, order) for name, value in batch.items()}
        gathered += [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(batch, len(some))]
    return gathered


class SharesPrefix:
    """Before TRL's GRPOTrainer or RLOOTrainer among a class's bases; its constructor calls `_share_prefix` at its end.

    What it does is in this file's first lines; `args.share_prefix` is `SharePrefixConfig`'s.
    """

    _sharing: SharedPrefix | None = None

    @property
    def _loss_is_sum(self) -> bool:
        """Whether the order of a step's completions over its micro-batches changes nothing but rounding."""
        return self.args.loss_type in SUMS and self.args.top_entropy_quantile == 1

    @functools.cached_property
    def _image_memory(self) -> ImageMemory:
        return ImageMemory(split=weights_are_split(self.args))

    def _share_prefix(self) -> None:
        setting = self.args.share_prefix
        if setting is False:
            return
        model, reference = (
            None if network is None else self.accelerator.unwrap_model(network)
            for network in (self.model, self.ref_model)
        )
        self._image_memory.attach(model.get_base_model() if is_peft_model(model) else model)
        if reference is not None:
            self._image_memory.attach(reference, constant=True)
        sharing = SharedPrefix(required=bool(setting))
        if self.aux_loss_enabled:
            sharing.note("the load of experts is balanced over the tokens of the plain pass")
        elif sharing.attach(model):
            self._sharing = sharing
            if reference is not None:
                sharing.attach(reference, check=False)

    def _generate(self, prompts):
        with nullcontext() if self._sharing is None else self._sharing.generation():
            return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs):
        self._image_memory.clear()
        return super()._generate_and_score_completions(inputs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        with nullcontext() if self._sharing is None else self._sharing.completions(logits_to_keep):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        args, batches = self.args, self._buffered_inputs
        if self._sharing is None or batches is before or not self._loss_is_sum:
            return inputs
        slices, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
        window = slices if accumulated % slices == 0 else accumulated if slices % accumulated == 0 else 1
        if window > 1:
            self._buffered_inputs = gather_groups(batches, window)
        return self._buffered_inputs[self._step % slices]
