"""MIMIC-CXR's images: where they lie, and how JPG, PNG and DICOM files become what is stored."""

from pathlib import Path

from recipes.data.dicom import is_dicom
from recipes.data.images import image_to_store, load_image

SUFFIXES = (".jpg", ".png", ".dcm")


def find_image(root: str, subject_id: str, study_id: str, dicom_id: str) -> Path | None:
    """files/p10/p10000032/s50414267/DICOM_ID.jpg (or .png, .dcm) below `root`, or None where there is none."""
    folder = Path(root) / "files" / f"p{subject_id[:2]}" / f"p{subject_id}" / f"s{study_id}"
    return next((path for suffix in SUFFIXES if (path := folder / (dicom_id + suffix)).is_file()), None)


def read_as_stored(path: Path, size: int, side: str = "longest") -> bytes:
    """The bytes to store: `image_to_store`, its longest or shortest `side` of at most `size` pixels.

    With `size` 0, the file's own bytes (checked to be readable), or for a DICOM a PNG of all its pixels. Raises
    InputError, naming the file, where it cannot be read.
    """
    if size or is_dicom(content := path.read_bytes()):
        return image_to_store(path, size, side)[0]
    load_image(path)
    return content
