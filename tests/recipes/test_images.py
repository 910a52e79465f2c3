"""Images as they come: depths, palettes, transparency, and the files that are none."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.images import encode_png, image_to_store, load_image, read_png
from recipes.files import InputError

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))  # 64 wide, 48 high
DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def _rgba(array: np.ndarray, alpha: int) -> Image.Image:
    image = Image.fromarray(array).convert("RGBA")
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("name", "image", "expected", "tolerance"),
    [
        ("grey.png", Image.fromarray(RAMP), RAMP, 0),  # 8-bit grey: untouched
        ("rgb.png", Image.fromarray(RAMP).convert("RGB"), RAMP, 1),  # grey stored as RGB
        ("palette.png", Image.fromarray(RAMP).convert("P"), RAMP, 1),
        ("opaque.png", _rgba(RAMP, 255), RAMP, 1),
        ("clear.png", _rgba(RAMP, 0), 0 * RAMP, 0),  # what is transparent is black
        ("photo.jpg", Image.fromarray(RAMP), RAMP, 4),  # lossy
        ("deep.png", Image.fromarray(RAMP.astype(np.uint16) * 16 + 100), RAMP / 252 * 255, 1),  # 12 bits, stretched
        ("float.tif", Image.fromarray(RAMP.astype(np.float32) / 7), RAMP / 252 * 255, 1),
        ("flat.png", Image.fromarray(np.full((48, 64), 700, dtype=np.uint16)), 0 * RAMP, 0),  # nothing to stretch
        ("binary.png", Image.fromarray(RAMP > 100), (RAMP > 100) * 255, 0),  # 1 bit
    ],
)
def test_every_kind_becomes_8_bit_grey(tmp_path, name, image, expected, tolerance):
    image.save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    assert loaded.mode == "L"
    assert np.abs(np.asarray(loaded, dtype=float) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("arguments", "size"),  # of an image of 64 x 48: shrunk, never enlarged
    [
        ((32,), (32, 24)),
        ((64,), (64, 48)),
        ((500,), (64, 48)),
        ((), (64, 48)),
        ((24, "shortest"), (32, 24)),
        ((24, "longest"), (24, 18)),
        ((47, "shortest"), (63, 47)),  # 47 * 64 / 48 = 62.7
        ((48, "shortest"), (64, 48)),
        ((50, "shortest"), (64, 48)),  # the shortest side is smaller already
        ((None, "shortest"), (64, 48)),
    ],
)
@pytest.mark.parametrize("upright", [False, True])
def test_size(tmp_path, arguments, size, upright):
    Image.fromarray(RAMP.T if upright else RAMP).save(tmp_path / "ramp.png")
    size = size[::-1] if upright else size
    assert load_image(tmp_path / "ramp.png", *arguments).size == size
    assert Image.open(io.BytesIO(read_png(tmp_path / "ramp.png", *arguments))).size == size


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (33, 50)])
def test_a_png_holds_the_pixels_that_pillow_reads(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = encode_png(Image.fromarray(pixels))
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # the chunks' checksums
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.mode == "L" and np.array_equal(np.asarray(image), pixels)


def _jpeg(image: Image.Image, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **more)
    return file.getvalue()


def test_a_grey_jpeg_that_fits_is_stored_as_it_is(tmp_path):
    content = _jpeg(Image.fromarray(RAMP))
    (tmp_path / "ramp.jpg").write_bytes(content)
    for file in (tmp_path / "ramp.jpg", content):
        assert image_to_store(file, 0) == image_to_store(file, 64) == (content, 1.0)
    stored, scale = image_to_store(content, 32)
    assert scale == 0.5 and stored[:4] == b"\x89PNG"


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the picture lies on its side
    return exif


@pytest.mark.parametrize(
    "content",
    [
        _jpeg(Image.fromarray(RAMP).convert("RGB")),  # a model would read colours
        _jpeg(Image.fromarray(RAMP), exif=_turned()),
        _jpeg(Image.fromarray(RAMP), comment=b"Jane Doe, 1950-01-01"),  # a patient's name must not come along
        _jpeg(Image.fromarray(RAMP)) + b"Jane Doe",
    ],
    ids=["colours", "turned", "comment", "words after its end"],
)
def test_any_other_jpeg_is_stored_as_a_png_of_its_pixels(content):
    stored, _ = image_to_store(content, 0)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), np.asarray(load_image(content)))
    assert b"Jane" not in stored


def test_a_truncated_jpeg_is_not_stored():
    with pytest.raises(InputError, match="truncated or damaged"):
        image_to_store(_jpeg(Image.fromarray(RAMP))[:-40], 0)


def _png(noise: bool = False) -> bytes:
    file = io.BytesIO()
    array = np.random.default_rng(0).integers(0, 255, RAMP.shape, dtype=np.uint8) if noise else RAMP
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truncated.png", _png(noise=True)[:1500], "truncated.png is truncated or damaged"),
        ("header_only.png", _png()[:20], "header_only.png is truncated or damaged"),
        ("dicom.png", b"\0" * 128 + b"DICM" + b"\0" * 400, "dicom.png is a damaged or incomplete DICOM file"),
        ("text.png", b"not an image at all", "text.png is not an image"),
        ("page.png", b"<!DOCTYPE html><html>404</html>", "page.png is not an image"),  # a failed download
        ("empty.png", b"", "empty.png is not an image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_image(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"there is no image .*gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_image(tmp_path)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    draw, content, refused = random.Random(0), _png(noise=True), 0
    for _ in range(300):
        damaged = bytearray(content[: draw.randrange(len(content))] if draw.random() < 0.3 else content)
        for _ in range(3 * bool(damaged)):
            damaged[draw.randrange(min(len(damaged), 120))] = draw.randrange(256)
        (tmp_path / "damaged.png").write_bytes(damaged)
        try:
            load_image(tmp_path / "damaged.png")
        except InputError as error:
            refused += 1
            assert "damaged.png" in str(error)
    assert refused > 200


def test_real_images():
    files = sorted((DATA / "images").glob("*/*.png")) + sorted((DATA / "images").glob("*/*.jpg"))
    if not files:
        pytest.skip("the real X-rays are not shipped: set RRG_DATA")
    for file in files:
        image = load_image(file, 256)
        assert image.mode == "L" and max(image.size) == 256, file
        assert np.asarray(image).std() > 20, file  # an X-ray, not a blank
    for file in (DATA / "images").glob("*/*.dcm"):
        assert load_image(file, 256).mode == "L", file
