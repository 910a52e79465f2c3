"""The miniature Qwen2.5-VL: seeded, save-and-load, one token block per image, any text round-trips."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling.tiny import SPECIAL_TOKENS, TAGS, build_qwen2_5_vl, train_tokenizer

TEXTS = ["The heart is normal in size.", "There is a small right pleural effusion."] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 350)


@pytest.mark.parametrize(
    "text",
    [
        "The heart is normal in size.",  # seen
        "<think>Present: Edema.</think>\n<report>No edema.</report>",  # the tags of the format reward
        "心脏 Größe é \U0001fac0",  # bytes never seen in training
        "  two  spaces\n\nand lines ",  # white space is kept
        "",  # nothing
    ],
)
def test_text_round_trips(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS + TAGS)
def test_markers_are_one_token(tokenizer, token):
    assert len(tokenizer(token)["input_ids"]) == 1


def test_vocabulary_stays_within_its_limit(tokenizer):
    assert len(tokenizer) <= 350


@pytest.mark.parametrize(
    ("image_size", "hidden_size"),
    [
        (60, 64),  # 60 is no multiple of 28, the side of a merged patch
        (56, 96),  # 96 is no multiple of 64: an odd number of heads cannot be shared by two
    ],
)
def test_impossible_sizes_are_refused(tokenizer, image_size, hidden_size):
    with pytest.raises(ValueError, match="multiple"):
        build_qwen2_5_vl(tokenizer, image_size=image_size, hidden_size=hidden_size)


def test_seed_decides_the_weights(tokenizer):
    sizes = {"image_size": 56, "hidden_size": 64, "text_layers": 1, "vision_layers": 1}
    first, same, other = (build_qwen2_5_vl(tokenizer, **sizes, seed=seed)[0] for seed in (1, 1, 2))
    pairs = list(zip(first.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_saved_model_sees_its_image(tiny):
    model = AutoModelForImageTextToText.from_pretrained(tiny).eval()
    processor = AutoProcessor.from_pretrained(tiny)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Report."}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    logits = []
    for shade in (0, 255):
        image = Image.new("RGB", (64, 64), (shade, shade, shade))
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**inputs).logits[:, -1])
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)


def test_square_image_takes_four_tokens(tiny):
    processor = AutoProcessor.from_pretrained(tiny)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    inputs = processor(images=[Image.new("RGB", (64, 64))], text=[text], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]  # 56 / 14 patches a side
    assert inputs["input_ids"].shape[1] == 2 + 4  # (56 / 28) ** 2 tokens between the two markers
