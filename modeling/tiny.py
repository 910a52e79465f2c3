"""Seeded, random-weight miniatures of the systems: the tests' and the demo's models. A Qwen2.5-VL so far.

    python -m modeling.tiny --data outputs/data/phantom --out outputs/tiny [--warm_up outputs/data/balanced]

trains a byte-level BPE tokenizer on the data set's training reports and saves model and processor in the format of
the published Qwen2.5-VL checkpoints. `--warm_up` first teaches the vision tower to tell the 13 findings apart on a
built data set's images and labels, as real systems start from a medical image encoder.
"""

import argparse
import json
from collections.abc import Iterable, Sequence

import torch
from datasets import load_dataset
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    set_seed,
)

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
    image_size: int = 112,
    hidden_size: int = 128,
    text_layers: int = 3,
    vision_layers: int = 3,
    seed: int = 0,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A random-weight Qwen2.5-VL and its processor: images are resized to `image_size` x `image_size` pixels.

    An image takes (`image_size` / 28) ** 2 tokens. Raises ValueError where `image_size` is no multiple of 28 or
    `hidden_size` no multiple of 64.
    """
    if image_size % 28 or hidden_size % 64:
        raise ValueError(f"image_size ({image_size}) must be a multiple of 28, hidden_size ({hidden_size}) of 64")
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
            "window_size": image_size,
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
    size = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def warm_up_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    images: Sequence[Image.Image],
    targets: torch.Tensor,
    epochs: int = 4,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> float:
    """Trains the vision tower in place to predict `targets` (n, 13) in [0, 1] through a linear head, then dropped.

    Returns the mean binary cross-entropy of the last epoch.
    """
    features = processor.image_processor(images=list(images), return_tensors="pt")
    patches = features["pixel_values"].view(len(images), -1, features["pixel_values"].shape[-1])
    visual = model.model.visual.train()
    head = nn.Linear(model.config.text_config.hidden_size, targets.shape[1])
    optimizer = torch.optim.AdamW([*visual.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    losses = []
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            merged = visual(patches[batch].flatten(0, 1), grid_thw=features["image_grid_thw"][batch]).pooler_output
            logits = head(merged.view(len(batch), -1, merged.shape[-1]).mean(1))  # what attention can average too
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"vision tower, epoch {epoch + 1}/{epochs}: loss {sum(losses) / len(losses):.3f}")
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a built data set's folder")
    parser.add_argument("--out", required=True, help="folder of the new model")
    parser.add_argument("--warm_up", help="a built data set's folder for the vision tower")
    parser.add_argument("--warm_up_epochs", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--vocab_size", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reports = load_dataset("parquet", data_files=f"{args.data}/train.parquet", split="train")["report"]
    model, processor = build_qwen2_5_vl(
        train_tokenizer(reports, args.vocab_size), args.image_size, args.hidden_size, seed=args.seed
    )
    if args.warm_up:
        rows = load_dataset("parquet", data_files=f"{args.warm_up}/train.parquet", split="train")
        images = [image for row in rows["images"] for image in row]
        labels = [states[:13] for row, states in zip(rows["images"], rows["labels"], strict=True) for _ in row]
        value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
        warm_up_vision(model, processor, images, value[torch.tensor(labels)], args.warm_up_epochs)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
