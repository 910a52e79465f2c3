"""The miniature Qwen2.5-VL: seeded, save-and-load, images of any size and shape, any text round-trips."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling.tiny import SPECIAL_TOKENS, TAGS, build_qwen2_5_vl, train_tokenizer, warm_up

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


def test_an_impossible_width_is_refused(tokenizer):
    with pytest.raises(ValueError, match="multiple"):
        build_qwen2_5_vl(tokenizer, hidden_size=96)  # three heads cannot be shared by two


def test_seed_decides_the_weights(tokenizer):
    sizes = {"hidden_size": 64, "text_layers": 1, "vision_layers": 1}
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


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((64, 64), 2, 2),  # 64 / 28 is nearest to 2
        ((112, 134), 5, 4),  # a portrait phantom: 134 / 28 = 4.8
        ((112, 90), 3, 4),  # a landscape one
        ((2544, 3056), 109, 91),  # a detector's image: within the range, so it is not scaled
        ((28, 28), 2, 2),  # below 3,136 pixels: scaled up
        (
            (8400, 2800),
            73,
            221,
        ),  # above 16,384 tokens: 2,800 x sqrt(12,845,056 / 23,520,000) = 73.9 x 28, rounded down
    ],
)
def test_an_image_keeps_its_size_and_shape(tiny, size, rows, columns):
    processor = AutoProcessor.from_pretrained(tiny)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    inputs = processor(images=[Image.new("RGB", size)], text=[text], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]  # patches of 14 pixels
    assert inputs["input_ids"].shape[1] == 2 + rows * columns  # tokens of 28 pixels between the two markers


def test_warm_up_learns_which_image_has_which_answer_whatever_its_shape(tokenizer):
    model, processor = build_qwen2_5_vl(tokenizer, hidden_size=64, text_layers=1, vision_layers=1)
    images = [Image.new("RGB", size, shade) for size in ((56, 84), (84, 56), (56, 56)) for shade in ("black", "white")]
    answers = ["heart<|im_end|>", "pleural effusion<|im_end|>"] * 3
    targets = torch.tensor([[0.0] * 13, [1.0] * 13] * 3)
    sizes = {"steps": 60, "batch_size": 6, "learning_rate": 1e-2}
    assert warm_up(model, processor, images, targets, "Report.", answers, **sizes) < 0.5  # blind: at least log 2 each
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Report."}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=images, text=[text] * 6, padding=True, padding_side="left", return_tensors="pt")
    tokens = model.eval().generate(**inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(tokens, skip_special_tokens=True) == ["heart", "pleural effusion"] * 3
