"""The processor of LLM-RG4: chat text, one or two images and a prior report become what the model reads.

TRL's trainers hand a processor text and images, nothing else, so a prior report travels inside the prompt's text:

    {"role": "user", "content": f"{mark_prior(prior_report)}{indication and instruction}"}

With `fusion: atf` the processor takes the marked report out of the text, for the model's own text encoder; with
`interleaved` it takes out the markers only. The markers are plain characters that never reach a tokenizer, so any
decoder's vocabulary does, and a stock collator, chat template or data set stays as it is. SFTTrainer hands all that
the processor returns on to the model; GRPOTrainer hands on `pixel_values` alone, so it trains on single views without
prior reports only.
"""

import re
from collections.abc import Sequence

import torch
from transformers import AddedToken, BatchFeature, ProcessorMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

IMAGE_TOKEN = "<image>"
PRIOR_START, PRIOR_END = "<prior_report>", "</prior_report>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}Human: {% elif message.role == 'assistant' %}Assistant:\n{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_PRIOR = re.compile(f"{PRIOR_START}(.*?){PRIOR_END}(\n?)", re.DOTALL)


def mark_prior(report: str | None) -> str:
    """A prior report as the processor finds it in a prompt, or the empty string for a study that has none."""
    if not report or not report.strip():
        return ""
    if PRIOR_START in report or PRIOR_END in report:
        raise ValueError(f"the prior report {report[:60]!r} itself contains {PRIOR_START} or {PRIOR_END}")
    return f"{PRIOR_START}{report.strip()}{PRIOR_END}\n"


def check_views(views: Sequence[str]) -> None:
    """Raises ValueError unless `views`, one name per image, is a frontal view that a lateral one may follow.

    The model cannot tell views apart: the first image is the frontal one (Eq. 2), the second the lateral (Eq. 3).
    """
    lateral = [view == "LL" or "LATERAL" in view for view in views]
    if lateral not in ([False], [False, True]):
        fault = "has no frontal view" if all(lateral) else "is not one frontal view and at most one lateral after it"
        raise ValueError(f"a study with the views {', '.join(views) or 'none'} {fault}, as LLM-RG4 needs (Eqs. 2, 3)")


class LLMRG4Processor(ProcessorMixin):
    """Images, chat text and prior reports of a batch. Adds `<image>` to a `tokenizer` that lacks it.

    `prior_tokenizer`: of the prior report's encoder. `num_visual_tokens` and `fusion` are the model's.
    `max_prior_tokens`: a prior report is cut to this many tokens of `prior_tokenizer` in either fusion (100 in the
    authors' code); `truncated_priors` counts the reports that this object has cut.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        prior_tokenizer=None,
        num_visual_tokens: int = 128,
        fusion: str = "atf",
        max_prior_tokens: int = 100,
        chat_template: str | None = CHAT_TEMPLATE,
    ):
        self.num_visual_tokens, self.fusion, self.max_prior_tokens = num_visual_tokens, fusion, max_prior_tokens
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
        self.image_token, self.image_token_id = IMAGE_TOKEN, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.truncated_priors = 0
        if prior_tokenizer is not None and not prior_tokenizer.is_fast:
            raise ValueError(
                f"{type(prior_tokenizer).__name__} tells no offsets, by which prior reports are cut: use a fast one"
            )
        super().__init__(image_processor, tokenizer, prior_tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        """Tokens of n texts, and what their studies show.

        `images`: of each text a list of one image (frontal) or two (frontal, lateral), as many as it has `<image>`
        markers; the first marker becomes `num_visual_tokens` placeholders, and so does the second where the fusion is
        `interleaved`, else it goes. Other arguments are the tokenizer's; `add_special_tokens` is False by default,
        since the chat template writes them.

        Returns `input_ids` and `attention_mask`; with images also `pixel_values` (n, v, 3, height, width), v being the
        most images of a study, and where v is 2 `view_mask` (n, 2) bool; with a prior report in some text and the
        fusion `atf` also `prior_input_ids` and `prior_attention_mask` (n, length), rows of zeros where there is none.
        Raises ValueError naming the text where images, markers or a prior report do not fit.
        """
        texts = [text] if isinstance(text, str) else list(text)
        studies = self._group(images, len(texts))
        priors = []
        for number, (study, content) in enumerate(zip(studies, texts, strict=True)):
            texts[number], prior = self.write_out(content, len(study), number)
            priors.append(prior)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        options["text_kwargs"].setdefault("add_special_tokens", False)
        tensors = options["text_kwargs"].get("return_tensors")
        data = dict(self.tokenizer(texts, **options["text_kwargs"]))
        if any(studies):
            data |= self._stack(studies, options["images_kwargs"])
        if any(priors) and self.fusion == "atf":
            data |= self._encode(priors)
        return BatchFeature(data, tensor_type=tensors)

    def write_out(self, text: str, images: int, number: int = 0) -> tuple[str, dict | None]:
        """`text` as the tokenizer reads it, markers of its `images` as placeholders; and its prior report, encoded.

        Raises ValueError, calling it text `number`, where images, markers or a prior report do not fit.
        """
        markers = text.count(IMAGE_TOKEN)
        if markers != images:
            raise ValueError(f"text {number} has {markers} {IMAGE_TOKEN} markers and {images} images")
        text, prior = self._take_prior(text, number)
        if prior and not images:
            raise ValueError(f"text {number} has a prior report but no image, which LLM-RG4 needs")
        block = IMAGE_TOKEN * self.num_visual_tokens
        blocks = iter([block, block if self.fusion == "interleaved" else ""])
        return re.sub(IMAGE_TOKEN, lambda match: next(blocks), text), prior

    def _group(self, images, texts: int) -> list[list]:
        """The images of each text, checked."""
        if images is None:
            return [[] for _ in range(texts)]
        if not isinstance(images, list | tuple):
            images = [[images]]
        elif not any(isinstance(study, list | tuple) for study in images):
            images = [images] if texts == 1 else [[image] for image in images]
        studies = [list(study) for study in images]
        if len(studies) != texts:
            raise ValueError(f"there are images of {len(studies)} studies for {texts} texts")
        for number, study in enumerate(studies):
            if len(study) > 2:
                raise ValueError(f"text {number} has {len(study)} images; LLM-RG4 takes a frontal and a lateral one")
            if study and study[0] is None:
                raise ValueError(f"text {number} has no frontal image, which LLM-RG4 starts from")
        return [[image for image in study if image is not None] for study in studies]

    def _take_prior(self, text: str, number: int) -> tuple[str, dict | None]:
        """`text` as the decoder reads it, and the encoded prior report that was marked in it."""
        matches = _PRIOR.findall(text)
        if text.count(PRIOR_START) != len(matches) or text.count(PRIOR_END) != len(matches) or len(matches) > 1:
            raise ValueError(f"text {number} needs at most one {PRIOR_START} with its {PRIOR_END}: use mark_prior")
        if not matches or not matches[0][0].strip():
            return _PRIOR.sub("", text), None
        report, line_break = matches[0]
        encoded = self.prior_tokenizer(
            report,
            truncation=True,
            max_length=self.max_prior_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        if len(encoded["input_ids"]) > 1:  # the rest of a report that is too long
            self.truncated_priors += 1
            logger.warning_once(
                f"prior reports are cut to {self.max_prior_tokens} tokens; truncated_priors counts them"
            )
        shortened = report[: max(end for _, end in encoded["offset_mapping"][0])] + line_break
        text = _PRIOR.sub("" if self.fusion == "atf" else lambda match: shortened, text)
        return text, {"input_ids": encoded["input_ids"][0]}

    def _stack(self, studies: list[list], options: dict) -> dict[str, torch.Tensor]:
        flat = [image for study in studies for image in study]
        pixels = self.image_processor(flat, **options | {"return_tensors": "pt"})["pixel_values"]
        mask = torch.zeros(len(studies), max(map(len, studies)), dtype=torch.bool)
        for number, study in enumerate(studies):
            mask[number, : len(study)] = True
        stacked = pixels.new_zeros(*mask.shape, *pixels.shape[1:])
        stacked[mask] = pixels
        return {"pixel_values": stacked} | ({"view_mask": mask} if mask.shape[1] == 2 else {})

    def _encode(self, priors: list[dict | None]) -> dict[str, torch.Tensor]:
        padded = self.prior_tokenizer.pad([p or {"input_ids": []} for p in priors], padding_side="right")
        return {
            "prior_input_ids": torch.tensor(padded["input_ids"]),
            "prior_attention_mask": torch.tensor(padded["attention_mask"]),
        }


LLMRG4Processor.register_for_auto_class("AutoProcessor")
