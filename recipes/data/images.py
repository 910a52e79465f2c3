"""Reading X-ray images of every kind that data sets hold, as 8-bit grey."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.cli import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than 8 bits per pixel


def load_image(path: str | Path, max_side: int | None = None) -> Image.Image:
    """Reads an X-ray as an 8-bit grey image (mode "L"), shrunk so that no side is longer than `max_side` pixels.

    Accepts PNG, JPEG, TIFF and BMP with 1, 8, 16 or 32 bits, grey, palette, RGB or RGBA. Deeper images are stretched
    from their own minimum and maximum to 0..255, since a 16-bit file mostly holds 10 to 14 bits. What is transparent
    becomes black. Raises InputError, naming the file, on a missing, truncated or damaged file, on DICOM (whatever
    its name), on what is no image, and on one too large to be an X-ray.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                raise InputError(f"{path} is a DICOM file; convert it to PNG first (the pixels need its window)")
            file.seek(0)
            with Image.open(file) as image:
                image.load()
                if image.mode in _DEEP_MODES:
                    image = _stretch(image)
                elif image.has_transparency_data:
                    rgba = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
                image = image.convert("L")
    except FileNotFoundError as error:
        raise InputError(f"there is no image {path}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that can be read (PNG, JPEG, TIFF or BMP)") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has far more pixels than an X-ray: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged pixels, chunks and headers
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is truncated or damaged: {getattr(error, 'strerror', None) or error}") from error
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def below(path: str | Path, root: str | Path) -> Path:
    """`path` as it is; raises InputError unless it lies below the folder `root`, links and `..` followed."""
    if not Path(path).resolve().is_relative_to(Path(root).resolve()):
        raise InputError(
            f"the image {path} is not below --image_root {root}, by its path or by a link: nothing outside is read; "
            "copy the file there, or name the folder that holds all images"
        )
    return Path(path)


def read_png(path: str | Path, max_side: int | None = None) -> bytes:
    """`load_image` as the bytes of a PNG."""
    file = io.BytesIO()
    load_image(path, max_side).save(file, "PNG")
    return file.getvalue()


def _stretch(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    values -= values.min()
    return Image.fromarray(np.rint(values * (255 / (values.max() or 1))).astype(np.uint8))
