"""From records of a table to studies: which column is what, what a cell means, which rows are one study."""

import csv
import glob
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from recipes.data.dicom import view_in_dicom
from recipes.data.studies import Moment, PlainImage, PlainStudy, Skipped
from recipes.data.tables import SPLIT_NAMES, Record, absent, decode
from recipes.data.views import UNKNOWN, view_in_name, view_name
from recipes.files import InputError
from rewards.labels import CONDITIONS, CheXpertState

# Names that a column of the key's meaning has in the field; the first one that a table has wins.
NAMES = {
    "study_id": "study_id study accession accession_number study_instance_uid uid id report_id question_id",
    "subject_id": "subject_id subject patient_id patient mrn deid_patient_id",
    "images": """images image image_paths image_path file_names file_name filename filenames path paths img
        path_to_image image_id dicom_id""",
    "views": "views view view_position view_positions view_pos projection frontal_lateral image_view_position",
    "findings": "findings section_findings finding",
    "impression": "impression section_impression impressions conclusion",
    "report": "report report_text text caption befund reports answer ground_truth",
    "report_file": "report_file report_path",
    "indication": "indication reason reason_for_exam section_indication clinical_information",
    "history": "history clinical_history section_clinical_history section_history",
    "comparison": "comparison section_comparison",
    "technique": "technique section_technique",
    "date": "study_date date study_date_time datetime",
    "time": "study_time time",
    "order": "order patient_report_date_order study_order",
    "prior_study_id": "prior_study_id previous_study_id",
    "prior_report": "prior_report previous_report",
    "split": "split fold subset",
    "age": "age patient_age",
    "sex": "sex gender patient_sex",
    "boxes": "boxes",
}
TEXTS = ("findings", "impression", "report", "indication", "history", "comparison", "technique", "prior_report")
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".bmp")
CHEXPERT_VALUES = {"1": CheXpertState.POSITIVE, "0": CheXpertState.NEGATIVE, "-1": CheXpertState.UNCERTAIN}
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # of DICOM's age strings, such as 063Y


def _key(name: str) -> str:
    """A column's name as names are compared: "Study Date", "StudyDate" and "study-date" are one."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def match_columns(columns: Iterable[str], requested: dict[str, str]) -> dict[str, str]:
    """Meaning -> column of a table, by `NAMES`; `requested` (of --columns) wins.

    Raises InputError where `requested` names a meaning or a column that there is not.
    """
    columns = list(dict.fromkeys(map(str, columns)))
    for meaning, column in requested.items():
        if meaning not in NAMES:
            raise InputError(f"--columns {meaning}={column}: there is no {meaning}; it takes {', '.join(NAMES)}")
        if column not in columns:
            raise InputError(f"--columns {meaning}={column}: the table has no column {column} (has {columns})")
    by_key = {}
    for column in columns:
        by_key.setdefault(_key(column), column)
    matched = dict(requested)
    for meaning, names in NAMES.items():
        column = next((by_key[_key(name)] for name in names.split() if _key(name) in by_key), None)
        if meaning not in matched and column is not None and column not in matched.values():
            matched[meaning] = column
    return matched


def text_of(value: object) -> str | None:
    """A cell's text, or None where it says nothing (`absent`). Raises ValueError where it is no text."""
    if absent(value):
        return None
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return text_of(value[0])
    if isinstance(value, (bool, list, tuple, dict, bytes)):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return str(value).strip()


def identity(value: object) -> str | None:
    """An id as text; "50414267.0", which a table saved once more by pandas holds, is 50414267."""
    text = text_of(value)
    return re.sub(r"^(\d+)\.0+$", r"\1", text) if text else None


def study_name(value: object, number: int) -> str:
    """The id of a row for skipped.csv, whatever its cell holds."""
    return f"row{number}" if absent(value) else str(value)[:80]


def names_in(value: object) -> list:
    """The entries of a cell with one name or several: a list, a JSON list, or names between ";" or "|"."""
    if isinstance(value, (list, tuple)):
        return [entry for entry in value if not absent(entry)]
    if isinstance(value, dict):
        return [value]
    if absent(value):
        return []
    text = str(value).strip()
    if text[:1] == "[" and text[-1:] == "]":
        try:
            return names_in(json.loads(text))
        except json.JSONDecodeError:  # as Python prints a list, with single quotes
            [row] = csv.reader(io.StringIO(text[1:-1]), quotechar="'", skipinitialspace=True)
            return [entry for entry in row if not absent(entry)]
    return [part.strip() for part in re.split(r"[;|]", text) if part.strip()]


def moment_of(date: object, time: object, form: str | None) -> Moment | None:
    """The moment of a study, or None where its date says nothing.

    Dates are ISO's (2024-03-01, with or without a time), 20240301 or 20240301.0; any other form has to be named, as
    `form` in the words of Python's strptime. Raises ValueError where the date is of no such form.
    """
    text, clock = text_of(date), text_of(time)
    if text is None:
        return None
    text = re.sub(r"^(\d{8})\.0+$", r"\1", text)
    if form:
        parsed = datetime.strptime(text, form)
        timed = any(mark in form for mark in ("%H", "%I", "%X", "%c"))
    elif re.fullmatch(r"\d{8}", text):
        parsed, timed = datetime.strptime(text, "%Y%m%d"), False
    elif re.match(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}", text):
        parsed, timed = datetime.fromisoformat(text.replace("/", "-")), len(text) > 10
    else:
        raise ValueError(f"the date {text!r} could be read in several ways")
    day, seconds = int(parsed.strftime("%Y%m%d")), None
    if timed and parsed.time().isoformat() != "00:00:00":  # a sheet's date has midnight for "no time"
        seconds = parsed.hour * 3600 + parsed.minute * 60 + parsed.second + parsed.microsecond / 1e6
    return Moment(day, seconds_of(clock) if clock else seconds)


def seconds_of(clock: str) -> float:
    """Seconds since midnight of "9:25", "09:25:05" or DICOM's "92505.0"; ValueError where it is neither."""
    match = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", clock)
    if not match:
        digits, _, fraction = clock.partition(".")
        match = re.fullmatch(
            r"(\d{2})(\d{2})(\d{2}(?:\.\d+)?)", digits.zfill(6) + (f".{fraction}" if fraction else "")
        )
    if not match or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError(f"the time {clock!r} is no HH:MM:SS or HHMMSS")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3] or 0)


def age_of(value: object) -> float | None:
    """Years of a cell: a number, or DICOM's "063Y", "018M", "002D"; None where it says neither."""
    text = text_of(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text or "", re.IGNORECASE)
    return round(float(match[1]) * YEARS[match[2].upper() or "Y"], 3) if match else None


def sex_of(value: object) -> str | None:
    """ "F" or "M", or None where the cell says neither."""
    letter = (text_of(value) or "")[:1].upper()
    return letter if letter in ("F", "M") else None


def states_of(values: dict[str, object], columns: dict[str, str]) -> list[int] | None:
    """CheXpert states, in the order of CONDITIONS, of the 14 `columns` by condition; None where no cell is filled.

    Cells as CheXpert's tables have them: 1 present, 0 absent, -1 uncertain, blank not mentioned.
    """
    states = []
    for condition in CONDITIONS:
        text = re.sub(r"\.0+$", "", text_of(values.get(columns[condition])) or "")
        if text and text not in CHEXPERT_VALUES:
            raise ValueError(f"the label {condition} is {text!r}, not 1, 0, -1 or blank")
        states.append(int(CHEXPERT_VALUES.get(text, CheXpertState.BLANK)))
    return states if any(states) else None


def boxes_of(value: object) -> list[dict] | None:
    """Boxes of a cell: a list, or its JSON, of objects with region (or label), x0, y0, x1 and y1 in pixels."""
    if absent(value):
        return None
    entries = json.loads(value) if isinstance(value, str) else value
    boxes = []
    for entry in entries:
        sides = {side: float(entry[side]) for side in ("x0", "y0", "x1", "y1")}
        boxes.append({"region": str(entry.get("region", entry.get("label", ""))), **sides})
    return boxes or None


def join(study: PlainStudy, more: PlainStudy, notes: Counter) -> str | None:
    """Adds the images of `more`, a further row of `study`, to it; the reason where they cannot be one study.

    Texts of the first row stand; where the first row has none but the further one has, that counts.
    """
    if study.subject_id != more.subject_id:
        return f"its study is of subject {study.subject_id} in another row, and of {more.subject_id} here"
    differ = False
    for name in (*TEXTS, "moment", "split", "age", "sex", "labels", "prior_study_id"):
        value, addition = getattr(study, name), getattr(more, name)
        if value is None:
            setattr(study, name, addition)
        differ |= name in TEXTS and None not in (value, addition) and value != addition
    files = [image.file for image in study.images]
    study.images += [image for image in more.images if image.file not in files]
    if differ:
        notes["rows whose text differs from that of their study's first row, which stands"] += 1
    return None


def join_images(records: list[Record], identified: str, image_records: list[Record], columns: dict[str, str]) -> int:
    """Gives each of `records` the images that `image_records`, one each, name for its study, and their views.

    They become the cells `images` and `views`, in place of what `records` had there. `identified` is the column of
    the study's id in `records`; `columns` names by meaning those of `image_records`. Returns how many of these are of
    no study.
    """
    by_study: dict[str | None, list[dict]] = defaultdict(list)
    for image in image_records:
        by_study[identity(image.values.get(columns["study_id"]))].append(image.values)
    studies = {identity(record.values.get(identified)) for record in records} - {None}
    for record in records:
        images = by_study.get(identity(record.values.get(identified)), [])
        views = [text_of(image.get(columns.get("views"))) for image in images]
        record.values["images"] = [image.get(columns["images"]) for image in images]
        record.values["views"] = [view or UNKNOWN for view in views] if any(views) else []
    return sum(len(images) for study, images in by_study.items() if study not in studies)


class ImageFinder:
    """Finds the files that a table names below a folder.

    A name may be a path below one of `folders`, or have folders before it that this copy lacks ("data/images/x.png"),
    or another suffix (x.jpg for x.png). `attempts` are the places of the last name that was not there.
    """

    def __init__(self, *folders: str | Path):
        self.folders, self.attempts = [Path(folder) for folder in folders], []

    def __call__(self, name: str) -> Path | None:
        if Path(name).is_absolute() and Path(name).is_file():
            return Path(name)
        parts = [part for part in Path(name).parts if part not in ("/", "..", ".")]
        tails = [parts[start:] for start in range(max(1, len(parts)))]
        places = [folder.joinpath(*tail) for folder in self.folders for tail in tails]
        for place in places:
            if place.is_file():
                return place
        for place in places:
            for suffix in SUFFIXES:
                sibling = place.with_name((place.stem if place.suffix.lower() in SUFFIXES else place.name) + suffix)
                if sibling.is_file():
                    return sibling
        self.attempts = places
        return None


@dataclass(frozen=True)
class TableReader:
    """Reads the records of a table as studies: `matched` is meaning -> column, and the rest says where files are.

    `images` is the folder of the images, or a pattern such as "images/{study_id}/*". `notes` counts what was decided
    on the way (views guessed, texts that differ within a study), for build.json.
    """

    matched: dict[str, str]
    images: str
    reports: str | None = None
    date_format: str | None = None
    notes: Counter = field(default_factory=Counter)
    missing: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def cell(self, record: Record, meaning: str) -> object:
        """What `record` has in the column of that meaning, or None."""
        return record.values.get(self.matched.get(meaning))

    @cached_property
    def finder(self) -> ImageFinder:
        return ImageFinder(self.images)

    def study(self, record: Record, number: int) -> PlainStudy:
        """The study that one record is, or a part of; `number` is its place in the table, from 1.

        Raises ValueError, in words for skipped.csv, where a cell cannot be what its column means.
        """
        study_id = identity(self.cell(record, "study_id")) or f"row{number}"
        study = PlainStudy(study_id, identity(self.cell(record, "subject_id")), record.place)
        for name in TEXTS:
            setattr(study, name, text_of(self.cell(record, name)))
        if file := text_of(self.cell(record, "report_file")):
            study.report = study.report or self._report(file)
        study.images = self._images(record, study_id)
        study.prior_study_id = identity(self.cell(record, "prior_study_id"))
        if split := text_of(self.cell(record, "split")):
            if split.lower() not in SPLIT_NAMES:
                raise ValueError(f"the split {split!r} is none of train, validation and test")
            study.split = SPLIT_NAMES[split.lower()]
        if order := text_of(self.cell(record, "order")):
            study.moment = Moment(float(order))
        elif (date := self.cell(record, "date")) is not None:
            study.moment = moment_of(date, self.cell(record, "time"), self.date_format)
        study.age, study.sex = age_of(self.cell(record, "age")), sex_of(self.cell(record, "sex"))
        labels = {name: name for name in CONDITIONS if name in record.values}
        if len(labels) == len(CONDITIONS):
            study.labels = states_of(record.values, labels)
        study.boxes = boxes_of(self.cell(record, "boxes"))
        return study

    def _report(self, file: str) -> str:
        path = Path(self.reports or ".") / file
        if not path.is_file():
            raise ValueError(f"there is no report file {path}")
        return decode(path.read_bytes(), str(path))

    def _images(self, record: Record, study_id: str) -> list[PlainImage]:
        if "{study_id}" in self.images:
            files: list = [
                Path(name) for name in sorted(glob.glob(self.images.format(study_id=glob.escape(study_id))))
            ]
        else:
            files = names_in(self.cell(record, "images"))
        views = [text_of(view) for view in names_in(self.cell(record, "views"))]
        if len(views) != len(files):
            if views:
                self.notes["studies whose views are not as many as their images, and are not used"] += 1
            views = [None] * len(files)
        images = []
        for name, view in zip(files, views, strict=True):
            if isinstance(name, dict):  # as datasets stores an image in Parquet
                content, name = name.get("bytes"), name.get("path") or ""
            else:
                content = name if isinstance(name, bytes) else None
            file = content or self.finder(str(name))
            self.notes["images in the table"] += 1
            if file is None:
                self.notes["images that are not there"] += 1
                self.missing.append((study_id, str(name), [str(place) for place in self.finder.attempts[:3]]))
                continue
            images.append(PlainImage(file, view_name(view) if view else self._view(name, file)))
        return images

    def _view(self, name: str | Path | bytes, file: Path | bytes) -> str:
        """The view of an image whose record names none: by its DICOM header, else by its name, else UNKNOWN."""
        tag = view_in_dicom(file) if isinstance(file, Path) and file.suffix == ".dcm" else None
        view = view_name(tag) if tag else view_in_name(Path(str(name)).name if not isinstance(name, bytes) else "")
        self.notes[
            f"views {'of DICOM headers' if tag else 'not known' if view == UNKNOWN else 'guessed by name'}"
        ] += 1
        return view

    def studies(self, records: list[Record], subjects: bool) -> tuple[list[PlainStudy], list[Skipped]]:
        """Studies of `records`, rows of one id joined, and what was left out.

        Raises InputError where a whole column cannot be read, most images are not there, or no subject is named though
        `subjects` asks for them.
        """
        skipped, joined, faults = [], {}, Counter()
        for number, record in enumerate(records, start=1):
            try:
                study = self.study(record, number)
            except ValueError as error:
                skipped.append(
                    Skipped(study_name(self.cell(record, "study_id"), number), record.place, "row", str(error))
                )
                faults[re.sub(r"'.*'", "...", str(error))] += 1
                continue
            if study.study_id not in joined:
                joined[study.study_id] = study
            elif reason := join(joined[study.study_id], study, self.notes):
                skipped.append(Skipped(study.study_id, record.place, "row", reason))
        for fault, times in faults.items():
            if times * 2 > len(records):
                example = next(entry for entry in skipped if re.sub(r"'.*'", "...", entry.reason) == fault)
                remedy = "; give --date_format, for example %d/%m/%Y" if "date" in fault else ""
                raise InputError(
                    f"{times} of {len(records)} rows cannot be read; {example.place}: {example.reason}{remedy}"
                )
        if not joined:
            raise InputError(f"no row of the table can be read; {skipped[0].place}: {skipped[0].reason}")
        self._check_images()
        bare = [study for study in joined.values() if study.subject_id is None]
        if bare and subjects:
            raise InputError(
                f"{len(bare)} of {len(joined)} studies name no subject, {bare[0].study_id} first, so that one patient "
                "could be in several splits: name the column with --columns subject_id=NAME, or give --no_subjects, "
                "which takes a study as its subject"
            )
        for study, name, _ in self.missing:
            skipped.append(
                Skipped(study, joined[study].place if study in joined else "", "image", "it is not there", name)
            )
        return list(joined.values()), skipped

    def _check_images(self) -> None:
        number, missing = self.notes["images in the table"], self.notes["images that are not there"]
        if missing * 2 > number:
            _, name, attempts = self.missing[0]
            others = ", ".join(entry[1] for entry in self.missing[1:3])
            raise InputError(
                f"{missing} of the {number} images that the table names are not below --images {self.images}: {name} "
                f"(looked for {', '.join(attempts)}){f', {others}' if others else ''}; name the folder that the "
                "table's paths begin in"
            )
        if not number:
            raise InputError(
                "the table names no image: give --columns images=NAME, or a pattern such as --images "
                "'images/{study_id}/*'"
            )
