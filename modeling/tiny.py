"""Seeded, random-weight miniatures of the systems: the tests' and the demo's models. LLM-RG4's is in tiny_llmrg4.py.

recipes/build_tiny.py makes one from a built data set, in the format of the published Qwen2.5-VL checkpoints.
"""

import json
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    set_seed,
)

from .configuration_chexbert import CheXbertConfig
from .modeling_chexbert import CheXbertModel

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TAGS = ["<think>", "</think>", "<report>", "</report>"]
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 16384}  # Qwen2.5-VL's own range of an image's pixels
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 768) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen2.5-VL's special tokens, of at most `vocab_size` entries; any text round-trips."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    spec = json.loads(bpe.to_str())["model"]  # the tokenizers library has no other way to read the merges back
    tokenizer = Qwen2Tokenizer(
        vocab=spec["vocab"],
        merges=[tuple(pair) for pair in spec["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_qwen2_5_vl(
    tokenizer: Qwen2Tokenizer,
    hidden_size: int = 128,
    text_layers: int = 3,
    vision_layers: int = 3,
    seed: int = 0,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A random-weight Qwen2.5-VL and its processor, which reads images in their own size and shape as the real one's.

    Each side becomes the nearest multiple of 28 pixels, and an image takes one token for 28 x 28 of them. Raises
    ValueError where `hidden_size` is no multiple of 64.
    """
    if hidden_size % 64:
        raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of 64")
    set_seed(seed)
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    heads = hidden_size // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "initializer_range": 0.5 * hidden_size**-0.5,  # the usual 0.02 suits wide models; here it learns 3x slower
            "intermediate_size": 3 * hidden_size,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": 128,
            "initializer_range": 0.5 * 128**-0.5,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": list(range(vision_layers)),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def warm_up(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    images: Sequence[Image.Image],
    targets: torch.Tensor,
    prompt: str,
    answers: Sequence[str],
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
) -> float:
    """Teaches `model` in place to see and to say it: one image, what is on it as numbers, and the answer to `prompt`.

    The vision tower predicts `targets` (n, 13), values in [0, 1], through a linear head that is dropped afterwards,
    and the language model writes the image's answer. Images may have any sizes: the head reads their tokens by row and
    column, from the upper left corner. Returns the mean loss (cross-entropy of the answer plus binary cross-entropy)
    of the last 50 steps.
    """
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    question = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)[0]
    inputs = processor(
        images=list(images),
        text=[question + answer for answer in answers],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    rest = len(processor.tokenizer(question)["input_ids"]) - 1  # of the question, without its image
    grids = inputs["image_grid_thw"][:, 1:] // 2  # rows and columns of an image's tokens
    places = torch.arange(inputs["input_ids"].shape[1])
    ignored = (inputs["attention_mask"] == 0) | (places < rest + grids.prod(1, keepdim=True))
    inputs["labels"] = inputs["input_ids"].masked_fill(ignored, -100)
    patches = inputs.pop("pixel_values").split((4 * grids.prod(1)).tolist())
    most_rows, most_columns = grids.max(dim=0).values.tolist()
    head = nn.Linear(most_rows * most_columns * model.config.text_config.hidden_size, targets.shape[1])
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    tokens = []
    handle = model.model.visual.register_forward_hook(lambda module, args, output: tokens.append(output.pooler_output))
    model.train()
    losses = []
    for step in range(1, steps + 1):
        rows = torch.randint(len(images), (batch_size,))
        batch = {name: values[rows] for name, values in inputs.items()}
        length = int(batch["attention_mask"].sum(1).max())
        batch = {name: v[:, :length] if v.shape[1] > length else v for name, v in batch.items()}
        loss = model(**batch, pixel_values=torch.cat([patches[row] for row in rows])).loss
        features = tokens.pop().split(grids[rows].prod(1).tolist())
        fields = [
            nn.functional.pad(image.T.unflatten(1, (height, width)), (0, most_columns - width, 0, most_rows - height))
            for image, (height, width) in zip(features, grids[rows].tolist(), strict=True)
        ]
        logits = head(torch.stack(fields).flatten(1))
        loss = loss + nn.functional.binary_cross_entropy_with_logits(logits, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"warm-up step {step}/{steps}: loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    handle.remove()
    return sum(losses[-50:]) / len(losses[-50:])


def build_chexbert(
    texts: Iterable[str],
    vocab_size: int = 3000,
    hidden_size: int = 96,
    layers: int = 3,
    heads: int = 6,
    seed: int = 0,
) -> tuple[CheXbertModel, BertTokenizer]:
    """A random-weight CheXbert, and its uncased WordPiece tokenizer of at most `vocab_size` entries made from `texts`.

    So that few reports teach it what a negation reaches, attention begins local: positions are sinusoids, and keys
    equal queries. Raises ValueError where `hidden_size` is no even multiple of `heads`.
    """
    if hidden_size % heads or hidden_size % 2:
        raise ValueError(f"hidden_size ({hidden_size}) must be even and a multiple of heads ({heads})")
    set_seed(seed)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    word_piece = BertTokenizer(dict(zip(specials, range(5), strict=True))).backend_tokenizer
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    word_piece.train_from_iterator(texts, trainer)
    tokenizer = BertTokenizer(word_piece.get_vocab(), model_max_length=512)
    config = CheXbertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5 * hidden_size**-0.5,
    )
    model = CheXbertModel(config)
    angles = torch.arange(512)[:, None] / 1000 ** (torch.arange(0, hidden_size, 2) / hidden_size)
    positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    model.bert.embeddings.position_embeddings.weight.data = config.initializer_range * positions
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.query.weight.data *= 1.5
        attention.key.weight.data = attention.query.weight.data.clone()
    return model, tokenizer
