"""Where a model looked: for a sentence by the gradient of its probability, for a region of LM-RRG by its attention.

The first is the plain input gradient (Simonyan, Vedaldi and Zisserman 2013, section 3): how much the log-probability
of the sentence's tokens, after all that stands before them, changes with each pixel. It says what a small change would
do, not why the sentence was written, and it is no outline of a finding: a picture to be doubted, not evidence. The
second is what the region's text weighs the patches with (LM-RRG, section 2.1, where it is the query or pools them,
A-01): it is there before a word is written, the same for all sentences, and of patches that have seen the whole image.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from recipes.data.images import decode_image
from recipes.evaluation.generation import encode_prompts
from recipes.files import InputError
from recipes.viewer.systems import System

CELLS = 16  # of the longer side, where the encoder has no patches of its own to count
FROZEN = ("freeze_vision", "freeze_extractor")  # of a config: under these no gradient reaches the image
HEAT = (255, 120, 0)
REGIONS = 5  # that are named


@dataclass
class Look:
    """How much a sentence depends on each part of the frontal X-ray.

    `cells`: (rows, columns), from 0 to 1 at the largest. `area`: what the encoder saw of the picture, as fractions of
    its width and height (left, top, right, bottom). `regions`: LM-RRG's names and shares, which add up to 1, the
    largest first; empty for another model.
    """

    cells: np.ndarray
    area: tuple[float, float, float, float] = (0, 0, 1, 1)
    regions: list[tuple[str, float]] = field(default_factory=list)


def look_for(system: System, study: dict, completion: str, sentence: str) -> Look:
    """The `Look` of `system` for `sentence` of the `completion` that it wrote about `study` (of `make_study`).

    Takes one pass forward and one back, about as long as a step of training and its memory without the optimizer's.
    Raises InputError where the sentence is not in the completion, the tokenizer tells no places, or no gradient
    reaches the pixels.
    """
    start = completion.rfind(sentence)
    if start < 0 or not sentence:
        raise InputError("the sentence is not in what the model wrote")
    model, processor = system.engine.model, system.engine.processor
    prompt, encoded = system.sample(study)
    images = [decode_image(image, "the X-ray") for image in encoded]
    inputs = encode_prompts(processor, [images], [prompt], return_tensors="pt", padding=True)
    if not processor.tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {system.name} does not tell where a token stands, so none can be looked up"
        )
    answer = processor.tokenizer(
        completion, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt"
    )
    spans = answer["offset_mapping"][0].tolist()
    places = [place for place, (low, high) in enumerate(spans) if low < start + len(sentence) and high > start]
    inputs = _with_answer(inputs, answer["input_ids"]).to(system.engine.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype).requires_grad_()
    with torch.enable_grad(), _unfrozen(model.config):
        likelihood = log_likelihood(model, inputs, len(spans), places)
        (gradient,) = torch.autograd.grad(likelihood, inputs["pixel_values"], allow_unused=True)
    if gradient is None:
        raise InputError(f"no gradient reaches the pixels of {system.name}: it cannot be looked up where it looked")
    cells = find_cells(gradient.detach().float().abs().cpu(), inputs, processor)
    peak = float(cells.max())
    regions = _regions(model, inputs, len(spans), places)
    return Look(cells / peak if peak > 0 else cells, find_area(processor.image_processor, images[0].size), regions)


def log_likelihood(model, inputs, length: int, places: list[int]) -> torch.Tensor:
    """The log-probability of those tokens of the answer, the last `length` of `inputs`, that stand at `places`."""
    logits = model(**inputs).logits[0, -length - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = inputs["input_ids"][0, -length:]
    return logits.log_softmax(-1)[places, tokens[places]].sum()


def _with_answer(inputs, answer: torch.Tensor):
    """`inputs` with the tokens (1, n) of an answer behind those of the prompt; other rows of that length get zeros."""
    length = inputs["input_ids"].shape[1]
    for name, values in list(inputs.items()):
        if isinstance(values, torch.Tensor) and values.shape == (1, length):
            more = answer if name == "input_ids" else torch.full_like(answer, name == "attention_mask")
            inputs[name] = torch.cat([values, more.to(values.dtype)], dim=1)
    return inputs


@contextmanager
def _unfrozen(config) -> Iterator[None]:
    """Lets gradients through the parts that `config` freezes; no weight changes."""
    frozen = [name for name in FROZEN if getattr(config, name, False)]
    for name in frozen:
        setattr(config, name, False)
    try:
        yield
    finally:
        for name in frozen:
            setattr(config, name, True)


def find_cells(gradient: torch.Tensor, inputs, processor) -> np.ndarray:
    """Mean size of the gradient in each cell of the first image, (rows, columns).

    Qwen's pixels are (patches, values), the patches of one token together; others are (..., 3, height, width).
    """
    if "image_grid_thw" in inputs:
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        merge = processor.image_processor.merge_size
        patches = gradient[: rows * columns].mean(1)
        return patches.reshape(rows // merge, columns // merge, merge * merge).mean(-1).numpy()
    image = gradient.reshape(-1, *gradient.shape[-2:])[:3].mean(0)
    side = max(1, max(image.shape) // CELLS)
    return torch.nn.functional.avg_pool2d(image[None, None], side)[0, 0].numpy()


def find_area(images, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What a processor with a crop of the centre leaves of an image of `size`; all of it for any other."""
    crop, resized = getattr(images, "crop_size", None), getattr(images, "size", None) or {}
    if not getattr(images, "do_center_crop", False) or not crop or not resized.get("shortest_edge"):
        return (0, 0, 1, 1)
    scale = min(size) / resized["shortest_edge"]
    width, height = (
        min(1.0, crop[side] * scale / total) for side, total in zip(("width", "height"), size, strict=True)
    )
    return ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)


def _regions(model, inputs, length: int, places: list[int]) -> list[tuple[str, float]]:
    """How much the sentence depends on each feature of LM-RRG's extractor: |gradient x feature|, as shares."""
    config = model.config
    if config.model_type != "lmrrg" or not config.use_region_features:
        return []
    with torch.no_grad():
        features = model.model.encode_images(inputs["pixel_values"])
    features.requires_grad_()
    with torch.enable_grad():
        likelihood = log_likelihood(model, {**inputs, "pixel_values": features}, length, places)
        (gradient,) = torch.autograd.grad(likelihood, features)
    sizes = (gradient * features.detach()).sum(-1).abs()[0].float().cpu()
    shares = (sizes / sizes.sum().clamp(min=1e-12)).tolist()
    names = ["the whole image"] * config.use_global_feature + list(config.region_names)
    return sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1])[:REGIONS]


@dataclass
class Attention:
    """What a region of LM-RRG weighs the patches of the frontal X-ray with; the weights sum to 1.

    `look`: the weights, 1 at the largest. `largest`: that weight. `patches`: their number. `inside`: the weight of
    what the study's box of the region covers, and `even`: the same, did all patches weigh alike; None without a box.
    """

    look: Look
    largest: float
    patches: int
    inside: float | None = None
    even: float | None = None


def regions_to_attend(system: System) -> list[str]:
    """Names of the regions whose `Attention` can be drawn: LM-RRG's, where they weigh patches; else none."""
    config = system.engine.model.config
    weighs = config.model_type == "lmrrg" and config.use_region_features and config.weighs_patches
    return list(config.region_names) if weighs else []


@torch.no_grad()
def attend(system: System, study: dict, region: str, boxes: Sequence[dict] | None = None) -> Attention:
    """The `Attention` of one of `regions_to_attend` of `system` in `study` (of `make_study`).

    `boxes`: of the schema, in pixels of the frontal image of `study`. Takes one pass of the image encoder and the
    region blocks. Raises InputError on another region.
    """
    names = regions_to_attend(system)
    if region not in names:
        raise InputError(f"{system.name} has no region {region!r} whose attention could be drawn")
    model, processor = system.engine.model, system.engine.processor
    image = decode_image(system.sample(study)[1][0], "the X-ray")
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    features = model.model.get_image_features(pixels.to(system.engine.device, model.dtype), region_attention=True)
    weights = features.attentions[0, names.index(region)].exp().float().cpu()
    patch = model.config.vision_config.patch_size
    cells = weights.reshape(pixels.shape[-2] // patch, pixels.shape[-1] // patch).numpy()
    look = Look(cells / cells.max(), find_area(processor.image_processor, image.size))
    attention = Attention(look, float(cells.max()), cells.size)
    if box := [box for box in boxes or () if box["region"] == region]:
        cover = processor.cover_patches(box, image.size, [region], patch)[0]
        attention.inside, attention.even = float(weights @ cover), float(cover.mean())
    return attention


def draw_look(png: bytes, look: Look) -> bytes:
    """The X-ray with the `look` over it, a PNG: the more orange, the larger the gradient."""
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    x0, y0, x1, y1 = (round(part * side) for part, side in zip(look.area, (*image.size, *image.size), strict=True))
    heat = Image.fromarray(np.uint8(200 * np.sqrt(look.cells)))
    heat = heat.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BICUBIC)
    image.paste(Image.new("RGB", heat.size, HEAT), (x0, y0), heat)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
