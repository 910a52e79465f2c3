"""A frozen image encoder reads each distinct image once per generated batch, for generation and all passes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
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
    """What `get_image_features` of Qwen2.5-VL and Qwen3-VL gives: of each image its features, per level for Qwen3."""

    deepstack_features: list | None = None


class ImageMemory:
    """The features of a frozen image encoder's images since the last `clear`, for all models with its weights."""

    def __init__(self) -> None:
        self._features: dict[tuple, Any] = {}

    def clear(self) -> None:
        self._features.clear()

    def features(self, images: Sequence[torch.Tensor], encode: Callable[[list[int]], Sequence]) -> list:
        """Of each of `images` its features; `encode(numbers)` gives those of images that are not here yet.

        What autocast makes of them in a training pass is remembered apart from what they are without it.
        """
        device = images[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        keys = [(precision, *fingerprint(image)) for image in images]
        new = {key: number for number, key in enumerate(keys) if key not in self._features}
        if new:
            with torch.no_grad():
                features = encode(list(new.values()))
            self._features.update(zip(new, features, strict=True))
        return [self._features[key] for key in keys]

    def attach(self, backbone: PreTrainedModel) -> None:
        """Lets `backbone`, a Qwen2.5-VL or Qwen3-VL, take its images' features from here."""
        original = backbone.get_image_features

        @functools.wraps(original)
        def get_image_features(pixel_values, image_grid_thw=None, **kwargs):
            pixels = split_images(pixel_values, image_grid_thw)

            def encode(numbers: list[int]) -> list[tuple]:
                output = original(torch.cat([pixels[number] for number in numbers]), image_grid_thw[numbers], **kwargs)
                return list(
                    zip(output.pooler_output, *(getattr(output, "deepstack_features", None) or ()), strict=True)
                )

            pooled, *levels = zip(*self.features(pixels, encode), strict=True)
            return ImageFeatures(pooler_output=pooled, deepstack_features=levels or None)

        backbone.get_image_features = get_image_features


def is_frozen(backbone: PreTrainedModel) -> bool:
    """Whether `backbone` has the image encoder of a Qwen-VL, and no parameter of it is trained."""
    encoder = getattr(backbone, "visual", None)
    return encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters())


def same_encoder(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two models' image encoders have the same weights."""
    pairs = zip(first.visual.parameters(), second.visual.parameters(), strict=True)
    return all(one is twin or torch.equal(one, twin) for one, twin in pairs)
