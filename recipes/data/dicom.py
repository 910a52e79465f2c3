"""DICOM files as 8-bit grey images, in the order that the standard gives (PS3.3, C.11 and C.7.6.3).

Stored values become modality values (LUT, or slope and intercept), then display values (VOI LUT, or window), and last
of all MONOCHROME1 is inverted: a window that is applied after the inversion is wrong.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.files import InputError

MAGIC = b"DICM"  # from byte 128 on


def is_dicom(content: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file, whatever its name."""
    return content[128:132] == MAGIC


def load_dicom(file: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The X-ray of a DICOM file (its path, or its content) as 8-bit grey, mode "L".

    The first VOI LUT or window of several decides; without either, and where a window has no width or leaves one
    shade of an image that has many, the image's own minimum and maximum map onto 0..255. Padding (PixelPaddingValue,
    perhaps to PixelPaddingRangeLimit) is left out of that range and black in the end. Stored values of any depth and
    sign are read. Raises InputError, naming the file, where it is damaged, holds no single grey image, or is
    compressed in a way that needs another package.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut

    name = name or (str(file) if not isinstance(file, bytes) else "the DICOM file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's on values that break the standard but can be read
            dataset = pydicom.dcmread(io.BytesIO(file) if isinstance(file, bytes) else file)
            stored = dataset.pixel_array
            if stored.ndim != 2:
                raise InputError(f"{name} holds {stored.shape} values, not one grey image")
            padding = _padding(dataset, stored)
            values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
            low, high, values = _displayed(dataset, values, ~padding)
    except InvalidDicomError as error:
        raise InputError(f"{name} is no DICOM file") from error
    except InputError:
        raise
    except (OSError, EOFError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        raise InputError(f"{name} is a damaged or incomplete DICOM file: {' '.join(str(error).split())}") from error
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:  # no decoder for its syntax, too few pixels
        raise InputError(f"{name}: its pixels cannot be decoded: {' '.join(str(error).split())}") from error
    grey = np.clip((values - low) * (255 / ((high - low) or 1)), 0, 255)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = 0
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def view_in_dicom(path: Path) -> str | None:
    """The ViewPosition that the header of a DICOM file names, or None where it names none or cannot be read."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ViewPosition"])
    except (InvalidDicomError, OSError, EOFError, AttributeError, KeyError, ValueError):
        return None  # the reason is told where its pixels are read
    return str(header.get("ViewPosition") or "") or None


def _padding(dataset, stored: np.ndarray) -> np.ndarray:
    """Where `stored` is no part of the image, by PixelPaddingValue and PixelPaddingRangeLimit; bool (height, width).

    Nowhere, where that would be everywhere: then the tag is wrong.
    """
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    first, last = (int(_as_stored(value, dataset)) for value in (first, last))
    padding = (stored >= min(first, last)) & (stored <= max(first, last))
    return np.zeros_like(padding) if padding.all() else padding


def _as_stored(value, dataset) -> int:
    """A padding value as the stored values count: files have it unsigned where their pixels are signed, too."""
    number, bits = int(value), int(dataset.get("BitsAllocated", 16))
    return number - (1 << bits) if dataset.get("PixelRepresentation") == 1 and number >= 1 << (bits - 1) else number


def _displayed(dataset, values: np.ndarray, inside: np.ndarray) -> tuple[float, float, np.ndarray]:
    """What black and white are, and the display values, of modality `values`; `inside`: where there is no padding."""
    from pydicom.pixels import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        # A look-up table is indexed by whole modality values, which may be negative where the stored ones are not.
        shown = np.asarray(apply_voi(np.rint(values).astype(np.int64), dataset), dtype=np.float64)
        return shown[inside].min(), shown[inside].max(), shown
    width, centre = (_first(dataset.get(name)) for name in ("WindowWidth", "WindowCenter"))
    if width is not None and centre is not None and width > 0:
        try:
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)  # the ends of what a window yields
            shown = np.asarray(apply_windowing(values, dataset), dtype=np.float64)
        except ValueError:  # a width that the window's function does not take
            low = high = 0.0
        if high > low and (np.ptp(shown[inside]) > 0 or np.ptp(values[inside]) == 0):
            return low, high, shown
    return values[inside].min(), values[inside].max(), values


def _first(value) -> float | None:
    """The first of one or several numbers of a tag; None where it is empty."""
    if value is None or value == "":
        return None
    try:
        return float(value)
    except TypeError:  # several
        return float(value[0]) if len(value) else None
