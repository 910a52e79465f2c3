"""MIMIC-CXR's images: where they lie, and how JPG, PNG and DICOM files become what is stored."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.data.images import encode_png, load_image, shrink
from recipes.files import InputError

SUFFIXES = (".jpg", ".png", ".dcm")


def find_image(root: str, subject_id: str, study_id: str, dicom_id: str) -> Path | None:
    """files/p10/p10000032/s50414267/DICOM_ID.jpg (or .png, .dcm) below `root`, or None where there is none."""
    folder = Path(root) / "files" / f"p{subject_id[:2]}" / f"p{subject_id}" / f"s{study_id}"
    return next((path for suffix in SUFFIXES if (path := folder / (dicom_id + suffix)).is_file()), None)


def read_as_stored(path: Path, size: int, side: str = "longest") -> bytes:
    """The bytes to store: a PNG of 8-bit grey, its longest or shortest `side` of at most `size` pixels.

    With `size` 0, the file's own bytes (checked to be readable), or for a DICOM a PNG of all its pixels. Raises
    InputError, naming the file, where it cannot be read.
    """
    image = load_dicom(path) if path.suffix == ".dcm" else load_image(path)
    if not size and path.suffix != ".dcm":
        return path.read_bytes()
    return encode_png(shrink(image, size, side) if size else image)


def load_dicom(path: Path) -> Image.Image:
    """The X-ray of a DICOM file as 8-bit grey: rescaled, windowed, MONOCHROME1 inverted.

    The first window in the file maps onto 0..255 (with a VOI LUT or without either, the image's own minimum and
    maximum do). Stored values of any depth and sign are read. Raises InputError, naming the file, where it is damaged,
    holds no single grey image, or is compressed in a way that needs another package.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's on values that break the standard but can be read
            dataset = pydicom.dcmread(path)
            values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset), dtype=np.float64)
            if values.ndim != 2:
                raise InputError(f"{path} holds {values.shape} values, not one grey image")
            if "VOILUTSequence" in dataset:
                values = np.asarray(apply_voi_lut(dataset.pixel_array, dataset), dtype=np.float64)
                low, high = values.min(), values.max()
            elif dataset.get("WindowWidth") and dataset.get("WindowCenter") not in (None, ""):
                low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)  # the ends of what a window yields
                values = np.asarray(apply_windowing(values, dataset), dtype=np.float64)
            else:
                low, high = values.min(), values.max()
    except InvalidDicomError as error:
        raise InputError(f"{path} is no DICOM file") from error
    except InputError:
        raise
    except (OSError, EOFError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        raise InputError(f"{path} is a damaged or incomplete DICOM file: {' '.join(str(error).split())}") from error
    except (RuntimeError, ValueError, TypeError) as error:  # a transfer syntax without decoder, too few pixels
        raise InputError(f"{path}: its pixels cannot be decoded: {' '.join(str(error).split())}") from error
    grey = np.clip((values - low) * (255 / ((high - low) or 1)), 0, 255)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(np.rint(grey).astype(np.uint8))
