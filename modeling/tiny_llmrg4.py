"""A seeded, random-weight miniature of LLM-RG4 with its tokenizers: the tests' and the demo's model."""

from collections.abc import Iterable

from transformers import BertConfig, BitImageProcessor, Dinov2Config, LlamaConfig, set_seed

from .configuration_llmrg4 import LLMRG4Config
from .modeling_llmrg4 import LLMRG4ForConditionalGeneration
from .processing_llmrg4 import LLMRG4Processor
from .tiny import build_chexbert, train_tokenizer


def build_llmrg4(
    texts: Iterable[str],
    image_size: int = 56,
    hidden_size: int = 64,
    text_layers: int = 2,
    vision_size: int = 64,
    vision_layers: int = 2,
    prior_size: int = 48,
    prior_layers: int = 1,
    num_visual_tokens: int = 8,
    fusion: str = "atf",
    projector: str = "linear",
    perceiver: str = "paper",
    max_prior_tokens: int = 100,
    vocab_size: int = 768,
    seed: int = 0,
) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    """A random-weight LLM-RG4 and its processor, whose tokenizers (`vocab_size` at most) are made from `texts`.

    Images become `image_size` x `image_size` pixels, patches have 14. Raises ValueError where `image_size` is no
    multiple of 14, or a width (`hidden_size`, `vision_size`, `prior_size`) no multiple of 16.
    """
    if image_size % 14 or any(width % 16 for width in (hidden_size, vision_size, prior_size)):
        raise ValueError(f"image_size ({image_size}) must be a multiple of 14 and the widths multiples of 16")
    texts = list(texts)
    tokenizer = train_tokenizer(texts, vocab_size - 1)
    tokenizer.chat_template = None  # the processor has its own
    _, prior_tokenizer = build_chexbert(texts, vocab_size, hidden_size=16, layers=1, heads=1)
    set_seed(seed)
    processor = LLMRG4Processor(
        BitImageProcessor(
            size={"height": image_size, "width": image_size},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        prior_tokenizer,
        num_visual_tokens=num_visual_tokens,
        fusion=fusion,
        max_prior_tokens=max_prior_tokens,
    )

    def widths(size: int, layers: int) -> dict:
        return {
            "hidden_size": size,
            "num_hidden_layers": layers,
            "num_attention_heads": size // 16,
            "initializer_range": 0.5 * size**-0.5,  # the usual 0.02 suits wide models
        }

    config = LLMRG4Config(
        vision_config=Dinov2Config(
            image_size=image_size, patch_size=14, mlp_ratio=2, **widths(vision_size, vision_layers)
        ),
        prior_config=BertConfig(
            vocab_size=len(prior_tokenizer), intermediate_size=2 * prior_size, **widths(prior_size, prior_layers)
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            intermediate_size=3 * hidden_size,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **widths(hidden_size, text_layers),
        ),
        image_token_id=processor.image_token_id,
        num_visual_tokens=num_visual_tokens,
        fusion=fusion,
        projector=projector,
        perceiver=perceiver,
        prior_length=max_prior_tokens,
        projector_hidden_size=2 * hidden_size,
        perceiver_heads=vision_size // 16,
    )
    model = LLMRG4ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [processor.image_token_id]
    return model, processor
