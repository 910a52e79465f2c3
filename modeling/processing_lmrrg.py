"""The processor of LM-RRG: chat text and one image become what the model reads.

The multimodal prompt of section 2.2 is [global feature][region features][instruction], then the report (A-07); the
chat template writes the decoder's begin token, where it has one, between features and instruction.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AddedToken, BatchFeature, ProcessorMixin
from transformers.image_transforms import get_resize_output_image_size

IMAGE_TOKEN = "<image>"
DEFAULT_INSTRUCTION = (  # T_inst of section 2.2, to the letter and to the space at its end
    "Please generate a radiology report for this chest X-ray image based on the provided global visual feature and "
    "region visual features. Assistant: "
)
_IMAGES = (
    "{% for message in messages %}{% if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE_TOKEN + "{% endif %}{% endfor %}{% endif %}{% endfor %}{{ bos_token }}"
)
_TEXT = (
    "{% set text = namespace(all='') %}"
    "{% if message.content is string %}{% set text.all = message.content %}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{% set text.all = text.all + part.text %}{% endif %}{% endfor %}{% endif %}"
)
_INSTRUCTION = "{% set asked = text.all | trim %}{% if asked %}{{ asked }} {% endif %}"


def make_chat_template(use_instruction: bool = True) -> str:
    """All images, the begin token, then the turns: a question trimmed and one space after it, an answer and its end.

    Without `use_instruction`, what is not an answer is left out (Table 3, w/o F_inst).
    """
    return (
        f"{_IMAGES}{{% for message in messages %}}{_TEXT}"
        "{% if message.role == 'assistant' %}{{ text.all }}{{ eos_token }}"
        f"{{% else %}}{_INSTRUCTION if use_instruction else ''}{{% endif %}}{{% endfor %}}"
    )


class LMRRGProcessor(ProcessorMixin):
    """Image and chat text of a batch. Adds `<image>` to a `tokenizer` that lacks it.

    `num_visual_tokens` and `use_instruction` are the model's.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_visual_tokens: int = 30,
        use_instruction: bool = True,
        chat_template: str | None = None,
    ):
        self.num_visual_tokens, self.use_instruction = num_visual_tokens, use_instruction
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
        self.image_token, self.image_token_id = IMAGE_TOKEN, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or make_chat_template(use_instruction)
        )

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        """Tokens of n texts, and the pixels of their images.

        `images`: one for each text, alone or as a list of one; no image or an empty list for a text that has none. A
        text's `<image>` marker becomes `num_visual_tokens` placeholders. Other arguments are the tokenizer's;
        `add_special_tokens` is False by default, since the chat template writes them.

        Returns `input_ids` and `attention_mask`; with images also `pixel_values` (images, 3, height, width). Raises
        ValueError naming the text where images and markers do not fit.
        """
        texts = [text] if isinstance(text, str) else list(text)
        studies = self._group(images, len(texts))
        for number, (study, content) in enumerate(zip(studies, texts, strict=True)):
            markers = content.count(IMAGE_TOKEN)
            if len(study) > 1:
                raise ValueError(f"text {number} has {len(study)} images; LM-RRG reads one, the frontal view")
            if markers != len(study):
                raise ValueError(f"text {number} has {markers} {IMAGE_TOKEN} markers and {len(study)} images")
        texts = [content.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.num_visual_tokens) for content in texts]
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        options["text_kwargs"].setdefault("add_special_tokens", False)
        tensors = options["text_kwargs"].get("return_tensors")
        data = dict(self.tokenizer(texts, **options["text_kwargs"]))
        if any(studies):
            flat = [image for study in studies for image in study]
            pixels = self.image_processor(flat, **options["images_kwargs"] | {"return_tensors": "pt"})
            data["pixel_values"] = pixels["pixel_values"]
        return BatchFeature(data, tensor_type=tensors)

    def cover_patches(
        self, boxes: Sequence[dict], size: tuple[int, int], region_names: Sequence[str], patch_size: int
    ) -> torch.Tensor:
        """How much of each patch the box of each region covers, float32 (K, N), rows of zeros where there is no box.

        `boxes`: {region, x0, y0, x1, y1} in pixels of an image of `size` (width, height), which are scaled, cut and
        shifted as the image processor does with the image; those of other regions than `region_names` are left out,
        several of one region are added. `patch_size`: pixels of the processed image; the N patches are its rows from
        top to bottom. Each row is divided by its largest value, so that a box that is smaller than a patch reaches 1
        too. Raises ValueError where the image processor does what is not known here.

        Example: of an image of 200 x 100 that becomes 64 x 64, a box (0, 0, 100, 100) covers the left half, 8 of 16
        patches of 16 pixels.
        """
        (width, scale_x, shift_x), (height, scale_y, shift_y) = self._place(*size)
        places = {name: place for place, name in enumerate(region_names)}
        boxes = [box for box in boxes if box["region"] in places]
        cover = torch.zeros(len(places), (width // patch_size) * (height // patch_size))
        if not boxes:
            return cover
        sides = torch.tensor([[float(box[side]) for side in ("x0", "y0", "x1", "y1")] for box in boxes])
        sides = sides * torch.tensor([scale_x, scale_y] * 2) + torch.tensor([shift_x, shift_y] * 2)
        across, down = (
            torch.minimum(end, start + patch_size).sub_(torch.maximum(begin, start)).clamp_(0) / patch_size
            for begin, end, start in (
                (sides[:, :1], sides[:, 2:3], torch.arange(0, width - patch_size + 1, patch_size)),
                (sides[:, 1:2], sides[:, 3:], torch.arange(0, height - patch_size + 1, patch_size)),
            )
        )
        rows = torch.tensor([places[box["region"]] for box in boxes])
        cover.index_add_(0, rows, (down[:, :, None] * across[:, None]).flatten(1)).clamp_(max=1)
        return cover / cover.amax(1, keepdim=True).clamp(min=torch.finfo(cover.dtype).tiny)

    def _place(self, width: int, height: int) -> list[tuple[int, float, int]]:
        """Across and down: pixels of the processed image, how much the image is scaled, where its first pixel is."""
        processor = self.image_processor
        size, resized = processor.size, (height, width)
        if getattr(processor, "do_pad", False):
            raise ValueError("the image processor pads images (do_pad): where boxes are then is not known")
        if processor.do_resize and size.get("height") and size.get("width"):
            resized = size["height"], size["width"]
        elif processor.do_resize and size.get("shortest_edge") and not size.get("longest_edge"):
            blank = np.broadcast_to(np.uint8(0), (height, width, 3))
            resized = get_resize_output_image_size(
                blank, size["shortest_edge"], default_to_square=False, input_data_format="channels_last"
            )
        elif processor.do_resize:
            raise ValueError(f"the image processor resizes to {dict(size)}: where boxes are then is not known")
        places = []
        for before, after, name in ((width, resized[1], "width"), (height, resized[0], "height")):
            end = processor.crop_size[name] if processor.do_center_crop else after
            shift = (end - after) // 2 if end > after else -((after - end) // 2)
            places.append((end, after / before, shift))
        return places

    def _group(self, images, texts: int) -> list[list]:
        """The images of each text."""
        if images is None:
            return [[] for _ in range(texts)]
        if not isinstance(images, list | tuple):
            images = [images]
        studies = [list(study) if isinstance(study, list | tuple) else [study] for study in images]
        if len(studies) != texts:
            raise ValueError(f"there are images of {len(studies)} studies for {texts} texts")
        return [[image for image in study if image is not None] for study in studies]


LMRRGProcessor.register_for_auto_class("AutoProcessor")
