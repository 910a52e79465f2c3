"""What a user of recipes/app.py gives: uploaded X-rays, which are checked by what they hold, and typed text."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pydicom.pixels
from PIL import Image
from pydicom.errors import InvalidDicomError

from recipes.data.dicom import load_dicom
from recipes.data.images import decode_image, load_image
from recipes.files import InputError

MAX_PIXELS = 50_000_000  # three times the largest flat detector
MIN_SIDE = 32  # pixels: on less, no model here has learnt to read
MAX_CHARACTERS = 4000  # of a typed text: the longest reports of MIMIC-CXR are shorter
XRAYS = ("CR", "DX", "RG")  # DICOM's modalities of plain X-rays
CHESTS = ("CHEST", "THORAX", "PORT CHEST")
LATERALS = ("LL", "RL", "LATERAL")
SEXES = {"not known": None, "female": "F", "male": "M"}
SECTIONS = ("findings", "impression", "findings and impression")


@dataclass
class Picture:
    """An X-ray as the models get it: the bytes of an 8-bit grey PNG; `size` of the file's own in pixels.

    `view`: as a DICOM file names it. `warnings`: sentences about what a DICOM file says of itself. `boxes`: of a data
    set's study, in pixels of the PNG.
    """

    name: str
    png: bytes
    size: tuple[int, int]
    view: str | None = None
    warnings: list[str] = field(default_factory=list)
    boxes: list[dict] | None = None


def read_picture(path: Path, name: str, image_size: int, frontal: bool = True) -> Picture:
    """The X-ray in the file at `path`, which the user calls `name`, with no side longer than `image_size` pixels.

    PNG, JPEG and DICOM are told apart by their first bytes. Raises InputError, naming `name` and the remedy, on any
    other file, on a damaged one, on one of more than `MAX_PIXELS`, which is not decoded, or with a side of fewer than
    `MIN_SIDE`, and on a compression that is not read here. `frontal`: whether it ought to be one.
    """
    with path.open("rb") as file:
        head = file.read(132)
    picture = Picture(name, b"", (0, 0))
    try:
        if head[128:] == b"DICM":
            _read_header(path, picture, frontal)
            image = load_dicom(path)
        elif head.startswith(b"\xff\xd8\xff") and _is_jpeg_ls(path):
            raise InputError(f"{name} is a JPEG-LS file, which is not read; save it as PNG or plain JPEG")
        elif head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            with Image.open(path, formats=("PNG", "JPEG")) as unread:
                _check_size(name, *unread.size)
            image = load_image(path)
        else:
            raise InputError(
                f"{name} is no PNG, JPEG or DICOM file, whatever its name says; export it as one of these"
            )
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} has far more pixels than an X-ray; export it with at most {MAX_PIXELS // 10**6} million"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on a damaged header
        raise InputError(f"{name} is truncated or damaged; export it again") from error
    picture.size = image.size
    picture.png = _shrink(image, image_size)
    return picture


def _shrink(image: Image.Image, image_size: int) -> bytes:
    image.thumbnail((image_size, image_size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _is_jpeg_ls(path: Path) -> bool:
    """Whether the JPEG file's first frame is of JPEG-LS (marker FFF7, ISO 14495-1), by its segments in turn."""
    with path.open("rb") as file:
        file.seek(2)
        for _ in range(100):
            marker, length = file.read(2), file.read(2)
            if len(length) < 2 or marker[0] != 0xFF or 0xC0 <= marker[1] <= 0xCF:
                return False
            if marker[1] == 0xF7:
                return True
            file.seek(int.from_bytes(length) - 2, io.SEEK_CUR)
    return False


def take_row(row: dict, image_size: int) -> list[Picture]:
    """The pictures of a data set's row: its first image, with the row's boxes, and its second one if it has two.

    Raises InputError where it has none or one that cannot be read.
    """
    pictures = []
    for number, image in enumerate((row.get("images") or [])[:2]):
        name = f"{row['study_id']}, image {number + 1}"
        opened = decode_image(image["bytes"], name).convert("L")
        picture = Picture(name, b"", opened.size)
        picture.png = _shrink(opened, image_size)
        picture.view = ((row.get("views") or [])[number : number + 1] or [None])[0]
        if number == 0 and row.get("boxes"):
            scale = max(opened.size) / max(picture.size)
            sides = ("x0", "y0", "x1", "y1")
            picture.boxes = [box | {side: box[side] * scale for side in sides} for box in row["boxes"]]
        pictures.append(picture)
    if not pictures:
        raise InputError(f"study {row['study_id']} has no image")
    return pictures


def _read_header(path: Path, picture: Picture, frontal: bool) -> None:
    """Fills in what a DICOM file says of itself, and refuses one whose pixels need not be looked at."""
    name = picture.name
    try:
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:  # a few bytes may inflate to all memory
            raise InputError(f"{name} is a deflated DICOM file, which is not read; save it uncompressed")
        if syntax is not None and syntax.is_transfer_syntax and syntax.is_encapsulated and not _decodes(syntax):
            raise InputError(
                f"{name} is compressed as {syntax.name}, which is not read here; save it uncompressed, for example "
                "with `gdcmconv --raw`" + " or `dcmdjpls`" * ("JPEG-LS" in syntax.name)
            )
        header = pydicom.dcmread(path, stop_before_pixels=True)
        rows, columns, frames = (int(header.get(keyword) or 0) for keyword in ("Rows", "Columns", "NumberOfFrames"))
    except InputError:
        raise
    except (InvalidDicomError, OSError, EOFError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{name} is a damaged or incomplete DICOM file") from error
    if not rows or not columns:
        raise InputError(f"{name} is a DICOM file without an image")
    _check_size(name, columns, rows, max(frames, 1))
    modality, part = str(header.get("Modality") or ""), str(header.get("BodyPartExamined") or "").upper()
    if modality not in XRAYS:
        description = f"is of the modality {modality}" if modality else "names no modality"
        difference = f"{name} {description}, not an X-ray (CR or DX)"
        picture.warnings.append(f"{difference}: no model here has learnt from such images.")
    if part and part not in CHESTS:
        picture.warnings.append(f"{name} says that it shows {part}, not the chest.")
    picture.view = str(header.get("ViewPosition") or "").upper() or None
    if frontal and picture.view in LATERALS:
        picture.warnings.append(f"{name} says that it is a lateral view ({picture.view}), not a frontal one.")


def _decodes(syntax: pydicom.uid.UID) -> bool:
    try:
        return pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _check_size(name: str, width: int, height: int, frames: int = 1) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} has {width} x {height} pixels, too few for an X-ray (a side has at least {MIN_SIDE}); drop the "
            "original, not its thumbnail"
        )
    if width * height * frames > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels, far more than an X-ray"
            + f" ({frames} times)" * (frames > 1)
            + f"; export it with at most {MAX_PIXELS // 10**6} million"
        )


def take_upload(payload: dict, folder: Path, image_size: int, frontal: bool = True) -> Picture:
    """`read_picture` of an uploaded file, which is deleted whatever comes of it.

    `payload`: what the browser says, {path, orig_name}; a path that is not of an upload in `folder` raises InputError.
    """
    path = Path(str(payload.get("path"))).resolve()
    if folder.resolve() not in path.parents or not path.is_file():
        raise InputError("the file has not arrived whole; drop it again")
    name = Path(str(payload.get("orig_name") or path.name)).name[-80:]
    try:
        return read_picture(path, name, image_size, frontal)
    finally:
        path.unlink()
        if path.parent != folder.resolve() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def make_study(
    frontal: Picture | None,
    lateral: Picture | None = None,
    view: str | None = None,
    sections: str = "findings",
    indication: str | None = None,
    history: str | None = None,
    prior_report: str | None = None,
    age: float | None = None,
    sex: str | None = None,
) -> dict:
    """A row of the schema as `samples_of` reads it; raises InputError without a frontal X-ray or on too long a text.

    `view`: PA, AP or, not known, None. `sections`: one of `SECTIONS`, what `{sections}` in a prompt asks for.
    `age`: in years, from 0 to 130, else InputError. `sex`: one of `SEXES`.
    """
    if frontal is None:
        raise InputError("drop a frontal X-ray first")
    texts = {"indication": indication, "history": history, "prior_report": prior_report}
    for name, text in texts.items():
        if text and len(text) > MAX_CHARACTERS:
            raise InputError(
                f"the {name.replace('_', ' ')} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
            )
    if age is not None and not 0 <= age <= 130:
        raise InputError(f"an age is from 0 to 130 years, not {age:g}")
    asked = sections.split(" and ")
    return {
        "study_id": "of the page",
        "images": [picture.png for picture in (frontal, lateral) if picture],
        "views": [view or "FRONTAL", "LATERAL"][: 2 if lateral else 1],
        **{name: (text or "").strip() or None for name, text in texts.items()},
        "age": age,
        "sex": SEXES.get(sex),
        # A data set's row says by its texts which sections its report is made of, so their names stand for them.
        **{name: name if name in asked else None for name in ("findings", "impression")},
        "report": " ".join(asked),
    }
