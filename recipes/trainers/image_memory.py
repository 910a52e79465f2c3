"""A frozen image encoder reads each distinct image once per generated batch, for generation and all passes."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

BLOCK = 65_536


@functools.lru_cache(maxsize=4)
def _weights(device: torch.device) -> torch.Tensor:
    """Random 64-bit numbers (2, 2, BLOCK), the same in every run."""
    numbers = torch.randint(-(2**63), 2**63 - 1, (2, 2, BLOCK), generator=torch.Generator().manual_seed(0))
    return numbers.to(device)


def fingerprint(values: torch.Tensor) -> tuple:
    """What tells tensors apart: shape, type and 128 bits of the values, computed where they are.

    Each half is a sum, modulo 2^64, of the values' bits weighted by random numbers. Tensors that differ anywhere have
    one fingerprint with a chance of about 2^-60, whatever they hold.

        >>> fingerprint(torch.zeros(2, 3)) == fingerprint(torch.zeros(2, 3)), fingerprint(torch.zeros(3, 2))[0]
        (True, (3, 2))
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = values.detach().contiguous().view(integers[values.element_size()]).flatten()
    number = -(-len(bits) // BLOCK)
    blocks = functional.pad(bits, (0, number * BLOCK - len(bits))).view(number, BLOCK)
    sums = [((blocks * inner).sum(1) * outer[: len(blocks)]).sum() for inner, outer in _weights(bits.device)]
    return (tuple(values.shape), values.dtype, *torch.stack(sums).tolist())


def split_images(pixel_values: torch.Tensor, grids: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Of each image its part of `pixel_values`; `grids` (images, 3) has the patches of Qwen's images."""
    return list(pixel_values) if grids is None else pixel_values.split(grids.prod(-1).tolist())


@dataclass
class ImageFeatures(BaseModelOutputWithPooling):
    """What `get_image_features` of Qwen2.5-VL, Qwen3-VL and Gemma 3 gives: of each image its features, per level for
    Qwen3-VL."""

    deepstack_features: list | None = None


class ImageMemory:
    """The features of frozen image encoders' images since the last `clear`, one entry for encoders of equal weights.

    `split`: a process holds a part of the weights only (FSDP, ZeRO-3). Then an encoder runs in all processes where one
    of them has an image to encode, since each waits for the others' parts.
    """

    def __init__(self, split: bool = False) -> None:
        self._split = split
        self._encoders: list[nn.Module] = []
        self._features: dict[tuple, Any] = {}

    def clear(self) -> None:
        self._features.clear()

    def features(
        self, images: Sequence[torch.Tensor], encode: Callable[[list[int]], Sequence], state: Hashable = None
    ) -> list:
        """Of each of `images` its features; `encode(numbers)` gives those of images that are not here yet.

        What autocast makes of them in a training pass is remembered apart from what they are without it, and so is
        what an encoder makes of them in another `state`.
        """
        device = images[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        keys = [(state, precision, *fingerprint(image)) for image in images]
        new = {key: number for number, key in enumerate(keys) if key not in self._features}
        if self._split:
            number = reduce(torch.tensor(len(new), device=images[0].device), reduction="sum")
            new = new or ({keys[0]: 0} if number else {})
        if new:
            with torch.no_grad():
                features = encode(list(new.values()))
            self._features.update(zip(new, features, strict=True))
        return [self._features[key] for key in keys]

    def attach(self, policy: PreTrainedModel, constant: bool = False) -> None:
        """Lets `policy` take its images' features from here, where its image encoder is one that is not trained.

        That is known of a model whose backbone has a method `encode_images(pixel_values)`, one row per image, of
        Qwen2.5-VL and Qwen3-VL, and of Gemma 3; any other stays as it is. `constant`: no weight of `policy` is
        trained, as of a reference, whatever `requires_grad` is.
        """
        backbone, encoder = policy.base_model, image_encoder(policy)
        is_gemma = getattr(getattr(policy, "config", None), "model_type", None) == "gemma3"
        if is_gemma:  # the features are what the projector makes of the encoder's
            encoder = nn.ModuleList([encoder, backbone.multi_modal_projector])
        if encoder is None or not (constant or all(not weight.requires_grad for weight in encoder.parameters())):
            return
        if hasattr(backbone, "encode_images"):
            name, read = "encode_images", self._read_rows
        elif hasattr(backbone, "visual"):
            name, read = "get_image_features", self._read_grids
        elif is_gemma:
            name, read = "get_image_features", self._read_pooled
        else:
            return
        known = () if self._split else enumerate(self._encoders)  # parts of weights tell nothing
        number = next((place for place, other in known if have_equal_weights(encoder, other)), len(self._encoders))
        self._encoders.append(encoder)
        original = getattr(backbone, name)

        @functools.wraps(original)
        def with_memory(pixel_values, *args, **kwargs):
            if varies(encoder):
                return original(pixel_values, *args, **kwargs)
            return read(original, (number, has_adapters_off(encoder)), pixel_values, *args, **kwargs)

        setattr(backbone, name, with_memory)

    def _read_rows(self, encode_images: Callable, state: Hashable, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.features(pixel_values, lambda rows: encode_images(pixel_values[rows]), state))

    def _read_pooled(
        self, get_image_features: Callable, state: Hashable, pixel_values: torch.Tensor, **kwargs
    ) -> ImageFeatures:
        def encode(rows: list[int]) -> torch.Tensor:
            return get_image_features(pixel_values[rows], **kwargs).pooler_output

        return ImageFeatures(pooler_output=torch.stack(self.features(pixel_values, encode, state)))

    def _read_grids(
        self, get_image_features: Callable, state: Hashable, pixel_values, image_grid_thw, **kwargs
    ) -> ImageFeatures:
        pixels = split_images(pixel_values, image_grid_thw)

        def encode(numbers: list[int]) -> list[tuple]:
            chosen = torch.cat([pixels[number] for number in numbers])
            output = get_image_features(chosen, image_grid_thw[numbers], **kwargs)
            return list(zip(output.pooler_output, *(getattr(output, "deepstack_features", None) or ()), strict=True))

        pooled, *levels = zip(*self.features(pixels, encode, state), strict=True)
        return ImageFeatures(pooler_output=pooled, deepstack_features=levels or None)


def have_equal_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules of one class have the same parameters and buffers, wherever they are."""
    ones, twins = ([*module.parameters(), *module.buffers()] for module in (first, second))
    return len(ones) == len(twins) and all(
        one is twin or ((one.shape, one.dtype) == (twin.shape, twin.dtype) and torch.equal(one.to(twin.device), twin))
        for one, twin in zip(ones, twins, strict=True)
    )


def image_encoder(policy: PreTrainedModel) -> nn.Module | None:
    """What `policy.get_encoder(modality="image")` gives, or None where it names none."""
    encoder = policy.get_encoder(modality="image")
    return None if encoder is policy else encoder


def varies(module: nn.Module) -> bool:
    """Whether two passes of `module` may differ now: in training mode by dropout or by batch normalisation."""
    return any(
        isinstance(part, _BatchNorm)
        or any(
            isinstance(value, float) and value > 0 and "drop" in f"{type(part).__name__}.{name}".lower()
            for name, value in vars(part).items()
        )
        for part in module.modules()
        if part.training
    )


def has_adapters_off(module: nn.Module) -> bool:
    """Whether a part of `module` passes its adapter over now, as LoRA's reference does."""
    return any(getattr(part, "disable_adapters", False) is True for part in module.modules())
