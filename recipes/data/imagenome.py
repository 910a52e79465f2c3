"""Chest ImaGenome's boxes of anatomical regions on MIMIC-CXR's frontal images (Wu et al. 2021, PhysioNet, 1.0.0).

Its silver scene graphs are read, one JSON an image, from scene_graph.zip as it was downloaded, of which one member is
unpacked at a time, or from the folder in which it was unpacked. An object of a graph has its box twice: x1, y1, x2, y2
in a square of 224 pixels, into which the image was padded, and original_x1, ... in pixels of the whole image, that of
the DICOM file and of MIMIC-CXR-JPG. The second are read. `bbox_name` is the region: 29 names are those of LM-RRG
(modeling/region_descriptions.json), and up to 7 more have boxes.

The set's folder splits/ is not read: that split is of its own, and patients of MIMIC-CXR's test split are in its
training split. A graph belongs to an image by the image's id, and the image is in MIMIC-CXR's split.
"""

import json
import math
import re
import zipfile
import zlib
from functools import cache
from pathlib import Path

from recipes.data.images import check_image
from recipes.files import InputError

ENDING = "_SceneGraph.json"
ARCHIVE = "scene_graph.zip"
SIDES = ("x0", "y0", "x1", "y1")
_KEYS = ("original_x1", "original_y1", "original_x2", "original_y2")
_PLACES = ("", "silver_dataset/", "1.0.0/silver_dataset/", "chest-imagenome/1.0.0/silver_dataset/")
_FOLDERS = ("", "scene_graph/", "scene_graph/scene_graph/")
_SLACK = 2  # pixels by which two roundings of a side may differ


class SceneGraphs:
    """The scene graphs in a zip archive or in a folder; none is read before `boxes` asks for it.

    Example: `SceneGraphs(Path("chest-imagenome/1.0.0/silver_dataset/scene_graph.zip")).boxes("02aa804e-bde0afdd")`
    """

    def __init__(self, place: Path):
        self.place, self.archive, self.folders = place, None, []
        if place.is_dir():
            return
        try:
            self.archive = zipfile.ZipFile(place)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{place} is no complete zip archive ({error}); download it again") from error
        names = [name for name in self.archive.namelist() if name.endswith(ENDING) and "__MACOSX" not in name]
        self.folders = sorted({name.rpartition("/")[0] for name in names})
        if not names:
            raise InputError(f"{place} holds no DICOM_ID{ENDING}; --imagenome wants Chest ImaGenome's {ARCHIVE}")

    def _find(self, dicom_id: str) -> zipfile.ZipInfo | Path | None:
        """The member or the file of an image's graph, or None where there is none."""
        if self.archive is None:
            file = self.place / (dicom_id + ENDING)
            return file if file.is_file() else None
        names = (f"{folder}/{dicom_id}{ENDING}".lstrip("/") for folder in self.folders)
        return next((self.archive.NameToInfo[name] for name in names if name in self.archive.NameToInfo), None)

    def stamp(self, dicom_id: str) -> str:
        """A text that changes with the bytes of the image's graph; empty where it has none."""
        entry = self._find(dicom_id)
        if isinstance(entry, Path):
            status = entry.stat()
            return f"{status.st_size}-{status.st_mtime_ns}"
        return f"{entry.file_size}-{entry.CRC}" if entry else ""

    def boxes(self, dicom_id: str) -> list[dict] | None:
        """{region, x0, y0, x1, y1} of each object of an image's graph, in pixels of the whole image; None: no graph.

        A coordinate that is missing is NaN. Raises InputError(reason, detail) where the graph cannot be read.
        """
        entry = self._find(dicom_id)
        if entry is None:
            return None
        try:
            content = entry.read_bytes() if isinstance(entry, Path) else self.archive.read(entry)
            graph = json.loads(content.decode("utf-8-sig"))
            name, objects = graph.get("image_id", dicom_id), graph["objects"]
            boxes = [
                {"region": str(thing["bbox_name"])}
                | {side: _pixels(thing.get(key)) for side, key in zip(SIDES, _KEYS, strict=True)}
                for thing in objects
            ]
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise InputError("its scene graph cannot be read", str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("its scene graph has no list of objects with a bbox_name", repr(error)) from error
        if str(name).removesuffix(".dcm") != dicom_id:
            raise InputError("its scene graph is that of another image", str(name))
        return boxes


def _pixels(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan


@cache
def open_graphs(place: str) -> SceneGraphs:
    """The graphs at `place`, opened once in a process: the list of 242,072 members takes seconds to read."""
    return SceneGraphs(Path(place))


def find_graphs(root: str | None, images: str | None) -> str | None:
    """The archive of scene graphs, or the folder of their files, at or below `root`; None where that is None.

    `root`: PhysioNet's chest-imagenome/1.0.0, a folder above or below it, or the archive itself. `images`: where the
    images are. Raises InputError where there are no graphs, the archive is damaged, or there are no images.
    """
    if root is None:
        return None
    if images is None:
        raise InputError("--imagenome joins boxes, in pixels, to images: name the folder of the images with --images")
    folders = [Path(root, place, folder) for place in _PLACES for folder in _FOLDERS]
    archives = [Path(root)] if Path(root).is_file() else [folder / ARCHIVE for folder in folders]
    candidates = [file for file in archives if file.is_file()]
    candidates += [folder for folder in folders if next(folder.glob(f"[!.]*{ENDING}"), None)]
    if not candidates:
        raise InputError(
            f"--imagenome {root} holds neither {ARCHIVE} nor DICOM_ID{ENDING} files: name PhysioNet's folder "
            "chest-imagenome/1.0.0, or its silver_dataset"
        )
    open_graphs(str(candidates[0]))
    return str(candidates[0])


def read_boxes(place: str, dicom_id: str, size: str, content: bytes) -> tuple[list[dict] | None, list[str]]:
    """`fit_boxes` of the graph of an image of `size` ("Columns x Rows" of the metadata), stored as `content`.

    None where `place` has no graph of it. Raises InputError(reason, detail) where graph or size cannot be read.
    """
    boxes = open_graphs(place).boxes(dicom_id)
    if boxes is None:
        return None, []
    match = re.fullmatch(r"([1-9]\d*)(?:\.0+)? x ([1-9]\d*)(?:\.0+)?", size)
    if not match:
        raise InputError("the metadata have no Columns and Rows of it", size)
    return fit_boxes(boxes, (int(match[1]), int(match[2])), check_image(content, dicom_id))


def fit_boxes(boxes: list[dict], size: tuple[int, int], stored: tuple[int, int]) -> tuple[list[dict], list[str]]:
    """`boxes`, in pixels of an image of `size` (width, height), in pixels of its copy of size `stored`.

    They are cut at the image's border. The second list names the regions whose box is then without area: it lay
    outside, has a width or a height of 0, or lacks a coordinate. Raises InputError(reason, detail) where the copy is
    no shrunk or enlarged image, but has another shape, so that nothing tells where a box is.

        >>> fit_boxes([{"region": "carina", "x0": -4, "y0": 10, "x1": 50, "y1": 30}], (200, 100), (100, 50))
        ([{'region': 'carina', 'x0': 0.0, 'y0': 5.0, 'x1': 25.0, 'y1': 15.0}], [])
    """
    scales = [part / full for part, full in zip(stored, size, strict=True)]
    if any(abs(full * scale - part) > _SLACK for full, part in zip(size, stored, strict=True) for scale in scales):
        detail = f"{stored[0]} x {stored[1]} pixels of {size[0]} x {size[1]}"
        raise InputError("its file has another shape than the metadata say", detail)
    fitted, lost = [], []
    for box in boxes:
        ends = [
            min(max(box[side], 0), size[axis]) * scales[axis] for side, axis in zip(SIDES, (0, 1, 0, 1), strict=True)
        ]
        if ends[0] < ends[2] and ends[1] < ends[3] and all(map(math.isfinite, (box[side] for side in SIDES))):
            fitted.append({"region": box["region"], **dict(zip(SIDES, map(float, ends), strict=True))})
        else:
            lost.append(box["region"])
    return fitted, lost
