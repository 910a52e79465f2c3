"""The pixel range is applied once, to the images themselves; images that cannot be read are named by their study."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from replicas import QWEN3_PREPROCESSOR, QWEN_PREPROCESSOR
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessor

from recipes import generate, grpo_mrgr1, sft_mrgr1
from recipes.data.images import PixelRange, pixel_range
from recipes.data.processors import load_processor
from recipes.data.samples import prepare_images, to_samples
from recipes.data.schema import FEATURES, write_dataset
from recipes.evaluation.generation import encode_prompts, scale_images
from recipes.files import InputError

SIZES = [(512, 426), (624, 512), (64, 64), (97, 301), (3000, 2500), (2048, 2500), (1000, 40), (31, 5000), (28, 28)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("range_", "size", "scaled"),
    [
        # rounded to multiples: 640 / 28 = 22.9 -> 23, 480 / 28 = 17.1 -> 17
        ((3136, 12845056, 28), (640, 480), (644, 476)),
        # down by sqrt(3000 * 2000 / 1003520) = 2.445, then 43.8 -> 43 and 29.2 -> 29 times 28
        ((200704, 1003520, 28), (3000, 2000), (1204, 812)),
        # up by sqrt(200704 / 20000) = 3.168, then 22.6 -> 23 and 11.3 -> 12 times 28
        ((200704, 1003520, 28), (200, 100), (644, 336)),
        ((65536, 16777216, 32), (640, 480), (640, 480)),  # 20 x 15 times 32
        ((65536, 16777216, 32), (100, 100), (256, 256)),  # up by 2.56, to 8 times 32
    ],
)
def test_size(range_, size, scaled):
    assert PixelRange(*range_).size(*size) == scaled
    assert PixelRange(*range_)(noise(*size)).size == scaled


def test_without_the_familys_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", None)
    with pytest.raises(InputError, match="need the package qwen-vl-utils: pip install qwen-vl-utils"):
        PixelRange(3136, 12845056, 28)(noise(64, 64))


@pytest.mark.parametrize(("published", "factor"), [(QWEN_PREPROCESSOR, 28), (QWEN3_PREPROCESSOR, 32)])
@pytest.mark.parametrize("pixels", [{}, {"min_pixels": 200704, "max_pixels": 1003520}, {"max_pixels": 200704}])
def test_a_processor_leaves_a_scaled_image_as_it_is(tmp_path, published, factor, pixels):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    (tmp_path / "again").mkdir()
    (tmp_path / "again/preprocessor_config.json").write_text(json.dumps(published))
    processor = AutoImageProcessor.from_pretrained(tmp_path, **pixels)
    holder = type("Processor", (), {"image_processor": processor})
    range_ = pixel_range(holder)
    assert range_.factor == factor
    assert range_.most == pixels.get("max_pixels", published.get("max_pixels", 16777216))
    for size in SIZES:
        image = range_(noise(*size))
        width, height = image.size
        assert width % factor == height % factor == 0
        assert range_.least <= width * height <= range_.most
        scaled, untouched = (processor(images=image, return_tensors="pt", do_resize=do) for do in (True, False))
        assert torch.equal(scaled["pixel_values"], untouched["pixel_values"])
        assert scaled["image_grid_thw"].tolist() == [[1, height * 2 // factor, width * 2 // factor]]
        # and a program that knows the model's own range alone, as vLLM, does the same
        plain = AutoImageProcessor.from_pretrained(tmp_path / "again")(images=image, return_tensors="pt")
        assert torch.equal(plain["pixel_values"], scaled["pixel_values"])


def test_trainer_and_generation_see_the_same_pixels(tiny, tmp_path):
    """The trainer's rows, and those of generation, clinical evaluation and the page, in a range that scales."""
    images = [noise(*size) for size in SIZES[:4]]
    rows = [
        {"study_id": f"s{i}", "report": "Clear.", "views": ["PA"], "images": [{"bytes": png(image), "path": None}]}
        for i, image in enumerate(images)
    ]
    samples = to_samples(
        Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], FEATURES), "?"
    )
    processor = load_processor(str(tiny), min_pixels=16 * 784, max_pixels=40 * 784)
    rows = prepare_images({"train": samples}, processor)["train"]
    scaled = scale_images(processor, [[image] for image in images])
    lengths = []
    for row, (image,) in zip(rows, scaled, strict=True):
        assert row["images"][0].mode == "RGB"
        assert row["images"][0].tobytes() == image.tobytes() and row["images"][0].size == image.size
        ids = encode_prompts(processor, [row["images"]], ["?"])["input_ids"][0]
        lengths.append(list(ids).count(processor.image_token_id))
        assert lengths[-1] == image.size[0] * image.size[1] / 784
    assert len(set(lengths)) > 2  # uneven, as X-rays are


def test_a_range_too_narrow_for_a_shape_is_left_to_the_processor(tiny):
    """Of 56 x 56 pixels exactly, 200 x 100 has no multiple: what the processor makes of it, it would scale again."""
    assert PixelRange(3136, 3136, 28)(noise(200, 100)).size == (200, 100)
    assert PixelRange(3136, 3136, 28)(noise(64, 60)).size == (56, 56)
    image = noise(200, 100).convert("RGB")
    processor = load_processor(str(tiny), min_pixels=3136, max_pixels=3136)
    once = processor.image_processor(images=image, return_tensors="pt")
    again = processor.image_processor(images=scale_images(processor, [[image]])[0], return_tensors="pt")
    assert torch.equal(once["pixel_values"], again["pixel_values"])


def test_only_the_qwen_family_has_a_range():
    assert pixel_range(type("Processor", (), {"image_processor": CLIPImageProcessor()})) is None
    assert pixel_range(object()) is None


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        ({"min_pixels": 5000, "max_pixels": 4000}, r"min_pixels \(5000\) is above max_pixels \(4000\)"),
        (
            {"min_pixels": 12845057},
            r"min_pixels \(12845057\) is above max_pixels \(12845056\) of .*: give both",
        ),  # its own
    ],
)
def test_a_range_that_is_none(tiny, pixels, sentence):
    with pytest.raises(InputError, match=sentence):
        load_processor(str(tiny), **pixels)


################
# Images that cannot be read
################

GOOD = png(noise(64, 60))
DEEP = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


BAD = [
    (b"", "is not an image that can be read"),
    (b"not a picture", "is not an image that can be read"),
    (GOOD[:-500], "is truncated or damaged"),
    (jpeg(noise(64, 60))[:-500], "is truncated or damaged"),
    (png(noise(3000, 8)), "has 3000 x 8 pixels, a strip that is no X-ray"),
]


def make_rows(content: bytes | None) -> list[dict]:
    """Two studies of two images each; `content` is the last."""
    image = {"bytes": GOOD, "path": None}
    rows = [
        {"study_id": name, "report": "The lungs are clear.", "views": ["PA", "LATERAL"], "images": [image, second]}
        for name, second in (("s1", image), ("s2", None if content is None else {"bytes": content, "path": None}))
    ]
    return [{name: row.get(name) for name in FEATURES} | {"labels": [0] * 14} for row in rows]


def make_samples(content: bytes | None) -> Dataset:
    return to_samples(Dataset.from_list(make_rows(content), FEATURES), "?", "all")


@pytest.mark.parametrize(("content", "sentence"), BAD)
def test_a_bad_image_is_named_before_the_first_step(tiny, content, sentence):
    with pytest.raises(InputError, match=f"^image 2 of study s2 {sentence}") as caught:
        prepare_images({"train": make_samples(content)}, AutoProcessor.from_pretrained(tiny))
    assert "\n" not in str(caught.value)


def test_what_shows_when_it_is_decoded_is_named_then(tiny):
    content = bytearray(GOOD)
    content[200:260] = bytes(60)  # in the middle, the end is there
    samples = make_samples(bytes(content))
    rows = prepare_images({"train": samples}, AutoProcessor.from_pretrained(tiny))["train"]
    assert len(rows[0]["images"]) == 2
    with pytest.raises(InputError, match=r"^image 2 of study s2 is truncated or damaged"):
        rows[1]


def test_a_missing_image_is_named():
    with pytest.raises(InputError, match=r"^image 2 of study s2 is missing"):
        make_samples(None)


def test_a_deep_image_keeps_its_greys():
    samples = make_samples(png(DEEP))
    values = np.asarray(samples[1]["images"][1])
    assert (values[0, 0, 0], values[-1, -1, 0]) == (0, 255)  # of 0 to 4,095
    assert abs(int(values[32, 0, 0]) - 128) <= 1


@pytest.fixture(params=BAD, ids=lambda case: case[1][:20])
def bad_folder(request, tmp_path):
    rows = make_rows(request.param[0])
    write_dataset({"train": lambda: iter(rows), "test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    return tmp_path / "data", request.param[1]


def test_scripts_name_a_bad_image_before_the_first_step(bad_folder, tiny, tmp_path, call):
    folder, sentence = bad_folder
    train = ["--dataset", folder, "--output_dir", tmp_path / "run", "--views", "all", "--model_name_or_path", tiny]
    out, small = tmp_path / "out.jsonl", ["--per_device_train_batch_size", "4", "--effective_batch_size", "4"]
    for main, arguments in (
        (grpo_mrgr1.main, ["--config", "recipes/configs/mrgr1/demo.yaml", *train, *small]),
        (sft_mrgr1.main, ["--config", "recipes/configs/mrgr1/sft_demo.yaml", *train, *small]),
        (generate.main, ["--model", tiny, "--dataset", folder, "--out", out, "--views", "all"]),
    ):
        with pytest.raises(InputError, match=f"^image 2 of study s2 {sentence}"):
            call(main, *arguments)
    assert not (tmp_path / "run").exists() and not out.exists()
