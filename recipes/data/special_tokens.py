"""Words of a text that a tokenizer or a recipe reads as a mark of its own, and not as text."""

import re

_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,60}\|>"  # Qwen's <|image_pad|> and <|im_end|>, Llama 3's <|eot_id|>
    r"|</?(?:think|report|image|img|video|s|bos|eos|pad|unk|mask|prior)\d*/?>"
    r"|<(?:start_of_turn|end_of_turn|start_of_image|image_soft_token)>"
    r"|\[/?INST\]",
    re.IGNORECASE,
)


def special_token(text: str) -> str | None:
    """The first mark in `text` that a model or a recipe would act on, or None.

    >>> special_token("No effusion. <|image_pad|>"), special_token("T < 38, <3 cm>")
    ('<|image_pad|>', None)
    """
    match = _SPECIAL.search(text)
    return match[0] if match else None
