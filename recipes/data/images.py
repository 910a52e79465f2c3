"""Reading X-ray images of every kind that data sets hold, and scaling them to what a model takes."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from recipes.data.dicom import is_dicom, load_dicom
from recipes.files import InputError

SIDES = ("longest", "shortest")  # of an image, which a size is that of
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than 8 bits per pixel


@contextmanager
def open_image(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Pillow's image of `file`, its pixels not yet read.

    Raises InputError, calling the image `name`, where it or what is done with it shows that it is truncated, damaged,
    no image, or too large to be an X-ray.
    """
    try:
        with Image.open(file) as image:
            yield image
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that can be read (PNG, JPEG, TIFF or BMP)") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has far more pixels than an X-ray: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged pixels, chunks and headers
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is truncated or damaged: {getattr(error, 'strerror', None) or error}") from error


def decode_image(content: bytes, name: str) -> Image.Image:
    """The image in an encoded file's `content` as the models read it: 8 bits, mode "RGB", turned as its EXIF says.

    Deep and transparent images as of `load_image`. Raises InputError, calling it `name`, as `open_image` does.
    """
    return _upright(content, name).convert("RGB")


def check_image(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of the image in an encoded file's `content`, by its header and its last bytes.

    Only a PNG or JPEG without its end is decoded, to be sure. Raises InputError as `decode_image` does, where that
    much shows it.
    """
    with open_image(io.BytesIO(content), name) as image:
        size = image.size
        if _ENDS.get(image.format, b"") not in content[-64:]:
            image.load()
    return size


def shrink(image: Image.Image, size: int, side: str = "longest") -> Image.Image:
    """`image` made smaller, its shape kept, so that its `side` of `SIDES` has `size` pixels; never enlarged.

    A model that resizes the shortest side and crops the rest, as RAD-DINO does, wants "shortest": an X-ray of 2544 x
    3056 pixels becomes 518 x 622, of which it crops 518 x 518. With "longest" it is 431 x 518, and the model enlarges.
    """
    # Whole multiples by averages (reducing_gap), the rest by HAMMING: LANCZOS took half of a builder's time with an
    # image of 1,024 pixels (6.2 ms, now .4). Pixels differ from it by .7 grey levels on average, by 9 at most.
    if min(image.size) > size and side == "shortest":
        scale = size / min(image.size)
        width, height = (round(length * scale) for length in image.size)
        return image.resize((width, height), Image.Resampling.HAMMING, reducing_gap=1.0)
    if max(image.size) > size and side == "longest":
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.HAMMING, reducing_gap=1.0)
    return image


def load_image(file: str | Path | bytes, size: int | None = None, side: str = "longest") -> Image.Image:
    """Reads an X-ray as an 8-bit grey image (mode "L"), shrunk to `size` pixels (`shrink`) if that is named.

    `file` is a path, or a file's content. Accepts DICOM (`load_dicom`, whatever the file's name), and PNG, JPEG, TIFF
    and BMP with 1, 8, 16 or 32 bits, grey, palette, RGB, CMYK or with transparency, turned as their EXIF says. Deeper
    images are stretched from their own minimum and maximum to 0..255, since a 16-bit file mostly holds 10 to 14 bits.
    What is transparent becomes black. Raises InputError, naming the file, on a missing, truncated or damaged file, on
    what is no image, and on one too large to be an X-ray.
    """
    name = "an image of the table" if isinstance(file, bytes) else str(file)
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no image {file}") from error
    except OSError as error:
        raise InputError(f"the image {file} cannot be read: {error.strerror or error}") from error
    image = load_dicom(content, name) if is_dicom(content) else _upright(content, name).convert("L")
    return image if size is None else shrink(image, size, side)


def below(path: str | Path, root: str | Path) -> Path:
    """`path` as it is; raises InputError unless it lies below the folder `root`, links and `..` followed."""
    if not Path(path).resolve().is_relative_to(Path(root).resolve()):
        raise InputError(
            f"the image {path} is not below --image_root {root}, by its path or by a link: nothing outside is read; "
            "copy the file there, or name the folder that holds all images"
        )
    return Path(path)


def read_png(path: str | Path, size: int | None = None, side: str = "longest") -> bytes:
    """`load_image` as the bytes of a PNG."""
    return encode_png(load_image(path, size, side))


def image_to_store(file: str | Path | bytes, size: int, side: str = "longest") -> tuple[bytes, float]:
    """The bytes to store of an image, `size` (0: all pixels) and `side` as in `shrink`, and its width by the file's.

    A PNG, or the file's own bytes where it is a JPEG whose pixels stay as they are (`_is_plain_jpeg`). Raises
    InputError as `load_image` does.
    """
    image = load_image(file)
    small = shrink(image, size, side) if size else image
    if small.size == image.size:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        if _is_plain_jpeg(content):
            return content, 1.0
    return encode_png(small), small.width / image.width


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether a file is a grey JPEG with nothing beside its pixels: no EXIF, comment or other note on a patient."""
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return False
    with Image.open(io.BytesIO(content)) as image:
        return (
            image.format == "JPEG" and image.mode == "L" and {name for name, _ in image.applist} <= {"APP0", "APP14"}
        )


def encode_png(image: Image.Image) -> bytes:
    """The bytes of an 8-bit grey `image` (mode "L") as a PNG file.

    Each line is stored as its difference to the line above it, where Pillow tries five ways: two fifths of its time at
    X-rays of 512 x 512 pixels, and a tenth smaller than its files of compress_level 3. Source: PNG specification, W3C
    2003, sections 5, 9.2 and 11.2.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape
    lines = np.full((height, width + 1), 2, dtype=np.uint8)  # filter type 2, "up", and the line
    lines[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=lines[1:, 1:])
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    chunks = {b"IHDR": header, b"IDAT": packer.compress(lines.tobytes()) + packer.flush(), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    )


def _upright(content: bytes, name: str) -> Image.Image:
    with open_image(io.BytesIO(content), name) as image:
        return in_eight_bits(ImageOps.exif_transpose(image))


def in_eight_bits(image: Image.Image) -> Image.Image:
    """`image` in 8 bits: deeper ones are stretched, where Pillow would clip them, and what is transparent is black."""
    image.load()
    if image.mode in _DEEP_MODES:
        return _stretch(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    return image


def _stretch(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    finite = np.isfinite(values)  # a float TIFF may hold NaN where there was no detector
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    grey = np.where(finite, (np.where(finite, values, low) - low) * (255 / ((high - low) or 1)), 0)
    return Image.fromarray(np.rint(grey).astype(np.uint8))


################
# What a model takes
################


def enlarged_by(processor, width: int, height: int) -> bool:
    """Whether the image processor in `processor` enlarges an image of `width` x `height` pixels.

    Known of processors that resize the shortest side (RAD-DINO's), or to a fixed height and width; of any other False.
    """
    images = getattr(processor, "image_processor", None)
    size = getattr(images, "size", None) or {}
    if not getattr(images, "do_resize", False):
        return False
    if size.get("height") and size.get("width"):
        return width < size["width"] or height < size["height"]
    shortest = size.get("shortest_edge") if pixel_range(processor) is None else None  # Qwen's is an area
    return shortest is not None and min(width, height) < shortest


def _qwen_vl_utils() -> ModuleType:
    """The Qwen-VL family's own package. Raises InputError where it is not installed."""
    try:
        import qwen_vl_utils
    except ImportError as error:
        raise InputError(
            "models of the Qwen-VL family need the package qwen-vl-utils: pip install qwen-vl-utils"
        ) from error
    return qwen_vl_utils


@dataclass(frozen=True)
class PixelRange:
    """Scales an image to from `least` to `most` pixels and to sides that are multiples of `factor` pixels.

    It is what the image processors of the Qwen-VL family do, by their authors' own package (qwen-vl-utils), and done
    with the images themselves, so that whatever reads them afterwards sees the same pixels: a processor leaves such an
    image as it is. Called with an image it returns one of mode "RGB"; it raises InputError, calling the image `name`,
    where one side is more than 200 times as long as the other.

    Example: `PixelRange(56 * 56, 1280 * 28 * 28, factor=28)(image)`, with 28 pixels for Qwen2.5-VL (patches of 14, 2
    x 2 of them a token) and 32 for Qwen3-VL.
    """

    least: int
    most: int
    factor: int

    def size(self, width: int, height: int, name: str = "an image") -> tuple[int, int]:
        """Width and height that an image of `width` x `height` pixels is scaled to."""
        package = _qwen_vl_utils()
        try:
            height, width = package.smart_resize(height, width, self.factor, self.least, self.most)
        except ValueError as error:
            raise InputError(
                f"{name} has {width} x {height} pixels, a strip that the model does not read (one side is more than "
                "200 times the other): leave the study out, or cut the image to the chest"
            ) from error
        return width, height

    def __call__(self, image: Image.Image, name: str = "an image") -> Image.Image:
        width, height = self.size(*image.size, name)
        if (width, height) == image.size:  # it needs no resampling, which qwen-vl-utils would do all the same
            return image.convert("RGB")
        # In a range too narrow for this shape no size lies within it, and the processor would scale the image a second
        # time: it gets the image as it is, and scales it once.
        if min(width, height) == 0 or self.size(width, height) != (width, height):
            return image.convert("RGB")
        return _qwen_vl_utils().fetch_image(
            {"image": image, "min_pixels": self.least, "max_pixels": self.most}, image_patch_size=self.factor // 2
        )


def pixel_range(processor) -> PixelRange | None:
    """The range of the image processor in `processor`; None where it has none, as outside the Qwen-VL family."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

    images = getattr(processor, "image_processor", None)
    if not isinstance(images, (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)):
        return None
    return PixelRange(
        images.size["shortest_edge"], images.size["longest_edge"], factor=images.patch_size * images.merge_size
    )
