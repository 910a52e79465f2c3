"""Seeded, random-weight miniatures of BiomedCLIP and LM-RRG with their tokenizers: the tests' and demo's models."""

from collections.abc import Iterable
from pathlib import Path

from transformers import BertConfig, BertTokenizer, CLIPImageProcessor, OPTConfig, ViTConfig, set_seed

from .configuration_lmrrg import BiomedCLIPConfig, LMRRGConfig
from .modeling_lmrrg import (
    REGIONS_FILE,
    BiomedCLIPModel,
    LMRRGForConditionalGeneration,
    encode_texts,
    read_regions,
)
from .processing_lmrrg import LMRRGProcessor
from .tiny import train_tokenizer


def build_biomedclip(
    texts: Iterable[str],
    image_size: int = 64,
    patch_size: int = 16,
    vision_size: int = 64,
    vision_layers: int = 2,
    text_size: int = 32,
    text_layers: int = 2,
    projection_dim: int = 32,
    seed: int = 0,
) -> tuple[BiomedCLIPModel, BertTokenizer, CLIPImageProcessor]:
    """A random-weight BiomedCLIP, its uncased WordPiece tokenizer of the words in `texts`, and its image processor.

    Images become `image_size` x `image_size` pixels, patches have `patch_size`. Raises ValueError where a width
    (`vision_size`, `text_size`, `projection_dim`) is no multiple of 16, or `image_size` none of `patch_size`.
    """
    sizes = {"vision_size": vision_size, "text_size": text_size, "projection_dim": projection_dim}
    for name, size, unit in [("image_size", image_size, patch_size), *((*pair, 16) for pair in sizes.items())]:
        if size % unit:
            raise ValueError(f"{name} ({size}) must be a multiple of {unit}")
    set_seed(seed)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    split = BertTokenizer(dict(zip(specials, range(5), strict=True))).backend_tokenizer
    words = {
        word
        for text in texts
        for word, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(text))
    }
    letters = sorted(set("".join(words)))
    vocabulary = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *sorted(words)])
    tokenizer = BertTokenizer({word: number for number, word in enumerate(vocabulary)}, model_max_length=256)

    def widths(size: int, layers: int) -> dict:
        return {
            "hidden_size": size,
            "num_hidden_layers": layers,
            "num_attention_heads": size // 16,
            "intermediate_size": 2 * size,
            "initializer_range": size**-0.5,  # the usual 0.02 suits wide models; here all texts would be alike
        }

    config = BiomedCLIPConfig(
        vision_config=ViTConfig(
            image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6, **widths(vision_size, vision_layers)
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **widths(text_size, text_layers),
        ),
        projection_dim=projection_dim,
        initializer_range=text_size**-0.5,
    )
    image_processor = CLIPImageProcessor(
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    model = BiomedCLIPModel(config).eval()
    for layer in model.text_model.encoder.layer:  # else what the first token reads is the same in all texts
        layer.attention.self.query.weight.data *= 16
        layer.attention.output.dense.weight.data *= 8
    return model, tokenizer, image_processor


def build_lmrrg(
    texts: Iterable[str],
    image_size: int = 64,
    patch_size: int = 16,
    hidden_size: int = 64,
    text_layers: int = 2,
    vision_size: int = 64,
    vision_layers: int = 2,
    projection_dim: int = 32,
    region_descriptions: str | Path = REGIONS_FILE,
    vocab_size: int = 768,
    seed: int = 0,
    **config,
) -> tuple[LMRRGForConditionalGeneration, LMRRGProcessor]:
    """A random-weight LM-RRG with an OPT decoder and its processor, whose tokenizer (`vocab_size` at most) is made
    from `texts`; `config` is LMRRGConfig's.

    Its BiomedCLIP is `build_biomedclip`'s with the region texts' words. Raises ValueError where a width
    (`hidden_size`, `vision_size`, `projection_dim`) is no multiple of 16, or `image_size` none of `patch_size`.
    """
    if hidden_size % 16:
        raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of 16")
    regions = read_regions(region_descriptions)
    prompts = [region[config.get("region_prompt", "description")] for region in regions]
    words = [text for region in regions for text in (region["name"], region["description"])]
    clip, clip_tokenizer, image_processor = build_biomedclip(
        words, image_size, patch_size, vision_size, vision_layers, projection_dim=projection_dim, seed=seed
    )
    features, mask = encode_texts(clip, clip_tokenizer, prompts, config.get("region_text", "pooled"))
    tokenizer = train_tokenizer(texts, vocab_size - 1)
    tokenizer.chat_template = None  # the processor has its own
    tokenizer.bos_token = "<|im_start|>"
    processor = LMRRGProcessor(image_processor, tokenizer, use_instruction=config.get("use_instruction", True))
    set_seed(seed)
    sizes = {
        "text_config": OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            ffn_dim=3 * hidden_size,
            num_hidden_layers=text_layers,
            num_attention_heads=hidden_size // 16,
            max_position_embeddings=1024,
            init_std=0.5 * hidden_size**-0.5,  # the usual 0.02 suits wide models
            dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        "image_token_id": processor.image_token_id,
        "projection_dim": projection_dim,
        "region_names": [region["name"] for region in regions],
        "region_texts": prompts,
        "region_length": features.shape[1],
        "region_heads": projection_dim // 16,
        "mlp_ratio": 2,
        "initializer_range": 0.5 * projection_dim**-0.5,
    }
    model = LMRRGForConditionalGeneration(LMRRGConfig(vision_config=clip.config.vision_config, **sizes | config))
    extractor = model.model.visual_extractor
    extractor.vision_model.load_state_dict(clip.vision_model.state_dict())
    extractor.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    if model.config.use_region_features:
        extractor.region_features, extractor.region_mask = features, mask
    processor.num_visual_tokens = model.config.num_visual_tokens
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [processor.image_token_id]
    return model, processor
