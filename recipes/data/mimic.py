"""MIMIC-CXR: PhysioNet's files, which studies can be used and why others cannot, prior reports, rows, shards.

A plan is made of the CSVs alone. It is cut into shards of whole subjects; each is built by one process, written to one
Parquet file that is named by the hash of all that went into it, and used again by a later run whose hash is the same.
The splits are put together from the shards in the order of subjects, so that the result is the same byte for byte
however many processes made it. Source: Johnson et al. 2019, MIMIC-CXR and MIMIC-CXR-JPG 2.0.0 and 2.1.0, PhysioNet.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import struct
import sys
import threading
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd
from pyarrow import parquet

from recipes.data import dicom, imagenome, mimic_images, mimic_sections, sections, studies, views
from recipes.data import images as image_files
from recipes.data.labels import load_labeler
from recipes.data.mimic_images import find_image, read_as_stored
from recipes.data.mimic_sections import read_sections
from recipes.data.schema import FEATURES, SPLITS, write_rows
from recipes.data.schema import ROWS_PER_GROUP as ROWS_WITH_IMAGES
from recipes.data.sources import MIMIC
from recipes.data.studies import (
    Moment,
    PlainImage,
    PlainStudy,
    Skipped,
    add_labels,
    full_rows,
    link_priors,
    text_rows,
)
from recipes.data.views import order_views
from recipes.files import InputError, replacing
from recipes.progress import follow
from rewards import labelers
from rewards.labels import CONDITIONS, from_csv

CHEXPERT_CSV = "chexpert_csv"  # as a labeler: PhysioNet's own table
REPORTS = "mimic-cxr-reports.zip"
STUDIES_PER_SHARD = 2000  # and 200 with images: what a killed process loses at most
ROWS_PER_GROUP = 1000  # of text alone; schema.py's with images
_SPLITS = {"train": "train", "validate": "validation", "val": "validation", "test": "test"}
_PLACES = ("", "mimic-cxr*/", "mimic-cxr*/*/", "*/mimic-cxr*/", "*/mimic-cxr*/*/", "*/*/mimic-cxr*/*/")
_REPORT = re.compile(r"(?:^|/)files/p\d\d/p(\d+)/s(\d+)\.txt$")
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*")
_VIEW_CODES = {"postero-anterior": "PA", "antero-posterior": "AP", "lateral": "LATERAL", "left lateral": "LL"}


class Study(NamedTuple):
    """One study of a subject, as the CSVs and the list of reports know it."""

    study_id: str
    subject_id: str
    split: str  # "" where it can only be the prior of another study
    date: int | None  # YYYYMMDD, shifted by PhysioNet
    time: float | None  # HHMMSS.ffffff as a number
    images: tuple[tuple[str, str], ...]  # (dicom_id, view), frontal first
    report: str | None  # its name among the reports
    stamp: str  # changes with the report's bytes
    member: tuple[int, int, int] | None  # of a zip: where the report begins, its packed size and its CRC-32
    states: tuple[int, ...] | None  # of PhysioNet's CheXpert table
    sizes: tuple[str, ...] = ()  # of each image, "Columns x Rows", where boxes are to be joined


@dataclass(frozen=True)
class Settings:
    """What decides on a shard, besides its studies."""

    reports: str  # mimic-cxr-reports.zip, or the folder that holds files/
    images: str | None  # the folder that holds files/
    labeler: str  # its name
    labeler_argument: str
    target: str
    cleaning: str
    sample_unit: str
    image_size: int
    image_size_of: str
    max_images: int
    imagenome: str | None = None  # Chest ImaGenome's archive of scene graphs, or their folder

    def common(self) -> studies.Settings:
        """What the common path asks for, in the one process that builds a shard."""
        names = ("labeler", "target", "cleaning", "sample_unit", "image_size", "image_size_of", "max_images")
        return studies.Settings(MIMIC.name, MIMIC.license, workers=1, **{name: getattr(self, name) for name in names})


# --- files -------------------------------------------------------------------------------------------------------


def find_file(root: str, explicit: str | None, pattern: str, argument: str) -> Path:
    """The file `explicit` or, without it, the one file of that pattern in PhysioNet's folders below `root`."""
    if explicit:
        if not Path(explicit).exists():
            raise InputError(f"--{argument}: there is no {explicit}")
        return Path(explicit)
    if not Path(root).is_dir():
        raise InputError(f"there is no folder {root}; --root wants the folder with PhysioNet's files")
    files = sorted({path for place in _PLACES for path in Path(root).glob(place + pattern)})
    if not files:
        raise InputError(f"{root} holds no {pattern}; download it from PhysioNet, or name it with --{argument}")
    if len(files) > 1:
        raise InputError(f"{root} holds {', '.join(map(str, files))}; name the one to read with --{argument}")
    return files[0]


def find_reports(root: str, explicit: str | None) -> Path:
    """mimic-cxr-reports.zip or, where there is none, the folder in which it was extracted (it holds files/)."""
    if not explicit and Path(root).is_dir() and not any(any(Path(root).glob(place + REPORTS)) for place in _PLACES):
        for place in (*_PLACES, "mimic-cxr-reports/", "*/mimic-cxr-reports/"):
            for folder in sorted(Path(root).glob(place + "files")):
                if next(folder.glob("p??/p*/s*.txt"), None):
                    return folder.parent
    return find_file(root, explicit, REPORTS, "reports")


def list_reports(source: Path) -> dict[str, list[tuple]]:
    """Study id -> (subject id, name, stamp, member) of each of its reports, the last three as `Study` has them."""
    reports: dict[str, list[tuple]] = {}
    if source.is_dir():
        for path in sorted((source / "files").glob("p??/p*/s*.txt")):
            name, status = path.relative_to(source).as_posix(), path.stat()
            if match := _REPORT.search(name):
                stamp = f"{status.st_size}-{status.st_mtime_ns}"
                reports.setdefault(match[2], []).append((match[1], name, stamp, None))
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                for member in archive.infolist():
                    if match := _REPORT.search(member.filename):
                        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                            raise InputError(f"{source} is packed in another way than PhysioNet's; unpack it")
                        stamp = f"{member.file_size}-{member.CRC}"
                        place = member.header_offset, member.compress_size, member.CRC
                        reports.setdefault(match[2], []).append((match[1], member.filename, stamp, place))
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{source} is no complete zip archive ({error}); download it again") from error
    if not reports:
        raise InputError(f"{source} holds no report files/pXX/pSUBJECT/sSTUDY.txt; --reports wants {REPORTS}")
    return reports


@contextmanager
def open_reports(source: str) -> Iterator[Callable[[Study], bytes]]:
    """Yields what reads the bytes of a study's report, from the folder or the zip `source`.

    A zip's list of 227,835 members would take each worker 130 MB and a second; the plan says where a report begins.
    """
    if os.path.isdir(source):
        yield lambda study: (Path(source) / study.report).read_bytes()
        return
    if not os.path.isfile(source):
        raise InputError(f"{source} was there when the build began, and is gone")
    with open(source, "rb") as archive:
        yield lambda study: _read_member(archive, *study.member)


def _read_member(archive: BinaryIO, start: int, size: int, checksum: int) -> bytes:
    """A member of a zip, stored or deflated. Source: PKWARE's APPNOTE.TXT 6.3.10, section 4.3.7."""
    archive.seek(start)
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", archive.read(30))
    archive.seek(name + extra, os.SEEK_CUR)
    content = archive.read(size)
    content = zlib.decompress(content, -zlib.MAX_WBITS) if method == zipfile.ZIP_DEFLATED else content
    if signature != b"PK\3\4" or zlib.crc32(content) != checksum:
        raise zipfile.BadZipFile("its bytes are not those that the archive lists")
    return content


def read_report(read: Callable[[Study], bytes], study: Study) -> str:
    """The text of a study's report; raises InputError(reason, detail) where it is empty, damaged or no UTF-8."""
    try:
        content = read(study)
    except (OSError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise InputError("the report cannot be read", str(error)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the report is not UTF-8 text", f"byte {error.start}") from error
    if not text.strip():
        raise InputError("the report is empty")
    return text


def read_table(file: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Those columns of a CSV, gzipped or not, as text; an optional one that it lacks is empty. Else InputError."""
    try:
        header = pd.read_csv(file, nrows=0).columns
        if missing := [name for name in needed if name not in header]:
            raise InputError(f"{file} has no column {', '.join(missing)} (it has {', '.join(header)})")
        columns = [name for name in (*needed, *optional) if name in header]
        table = pd.read_csv(file, usecols=columns, dtype=str, keep_default_na=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{file} cannot be read as a CSV ({error}); download it again") from error
    if table.empty:
        raise InputError(f"{file} has no row; download it again")
    return _plain_cells(table.fillna(""), file).reindex(columns=[*needed, *optional], fill_value="")


def _plain_cells(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """`table` as PhysioNet wrote it, where a spreadsheet or pandas saved it again: "21530102.0", "2153-01-02", "pa".

    Raises InputError where not one cell of a column of ids or dates can be read: then the column is at fault, no row.
    """
    for name in [name for name in ("subject_id", "study_id", "StudyDate") if name in table]:
        cells = table[name].str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
        if name == "StudyDate":
            cells = cells.str.replace(r"^(\d{4})-(\d{2})-(\d{2})(?: 00:00:00)?$", r"\1\2\3", regex=True)
        filled = cells[cells != ""]
        if len(filled) and not filled.str.fullmatch(r"\d{8}" if name == "StudyDate" else r"\d{1,18}").any():
            raise InputError(
                f"{file}: no row of the column {name} can be read, {filled.iloc[0]!r} first; the table was saved in "
                "another form: take PhysioNet's file as it was downloaded"
            )
        table[name] = cells
    if "ViewPosition" in table:
        table["ViewPosition"] = table["ViewPosition"].str.strip().str.upper()
    return table


def read_split(file: Path) -> pd.DataFrame:
    """The columns of PhysioNet's split CSV, of it or of R2Gen's annotation.json, which has an entry per image."""
    columns = ["dicom_id", "study_id", "subject_id", "split"]
    if file.suffix != ".json":
        table = read_table(file, tuple(columns))
    else:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            rows = [
                (str(path), str(row["study_id"]), str(row["subject_id"]), split)
                for split in ("train", "val", "test")
                for row in content[split]
                for path in row["image_path"]
            ]
        except (OSError, ValueError) as error:
            raise InputError(f"--split_file {file} cannot be read as JSON: {error}") from error
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"--split_file {file} is no annotation.json of R2Gen's for MIMIC-CXR: it needs lists train, val and "
                f"test of entries with study_id, subject_id and image_path ({error!r})"
            ) from error
        table = pd.DataFrame(rows, columns=columns, dtype=str)
        inside = table["dicom_id"].str.fullmatch(r"(?!/)(?:(?!\.\.).)*")
        table.loc[inside, "dicom_id"] = table["dicom_id"].str.extract(r"([^/]*?)(?:\.\w+)?$")[0]
    if unknown := sorted(set(table["split"]) - set(_SPLITS)):
        raise InputError(f"{file}: split must be train, validate or test, found {unknown[0]!r}")
    return table.assign(split=table["split"].map(_SPLITS))


def read_states(file: Path) -> dict[str, tuple[int, ...]]:
    """Study id -> CheXpert states of PhysioNet's CheXpert table, which the labeler made of the whole report."""
    table = read_table(file, ("study_id", *CONDITIONS))
    try:
        states = from_csv(table[list(CONDITIONS)].replace("", "nan").astype("float64").to_numpy())
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    return dict(zip(table["study_id"], map(tuple, states.tolist()), strict=True))


# --- plan --------------------------------------------------------------------------------------------------------


def plan_images(
    assigned: pd.DataFrame, file: Path, metadata: Path, limit: int, skipped: list[Skipped]
) -> pd.DataFrame:
    """An image a row, in the order of subjects and studies, with `split` ("" where `assigned` lacks the image).

    `assigned` is what the split `file` says, `limit` keeps the first so many subjects of each split (0: all). What
    cannot be used is added to `skipped`. Raises InputError where a subject is in two splits.
    """
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate")
    images = read_table(metadata, columns, ("StudyTime", "ViewCodeSequence_CodeMeaning", "Columns", "Rows"))
    splits = assigned[assigned["subject_id"].str.isdigit()].groupby("subject_id", sort=True)["split"].nunique()
    if (splits > 1).any():
        raise InputError(f"{file}: subject {splits.index[splits > 1][0]} is in more than one split")
    assigned, images = _check_rows(assigned, file, skipped), _check_rows(images, metadata, skipped)
    if limit:
        subjects = assigned.drop_duplicates("subject_id").groupby("split")["subject_id"].head(limit)
        assigned, images = (table[table["subject_id"].isin(subjects)] for table in (assigned, images))
    both = images.merge(assigned, how="outer", on="dicom_id", suffixes=("", "_"))
    lost = both["study_id"].isna()
    study_ids = set(images["study_id"])
    for _, row in both[lost].drop_duplicates("study_id_").iterrows():
        left_out = "image" if row["study_id_"] in study_ids else "study"
        skipped.append(Skipped(row["study_id_"], str(metadata), left_out, "the metadata does not list it"))
    both = both[~lost]
    moved = both["study_id_"].notna() & (
        (both["study_id_"] != both["study_id"]) | (both["subject_id_"] != both["subject_id"])
    )
    subjects = both.groupby("study_id")["subject_id"].nunique()
    doubtful = {*both["study_id"][moved], *both["study_id_"][moved], *subjects.index[subjects > 1]}
    skipped += [
        Skipped(study, str(metadata), "study", "the CSVs file it under more than one subject or study")
        for study in sorted(doubtful)
    ]
    both = both[~both["study_id"].isin(doubtful)].fillna("")
    order = both[["subject_id", "study_id"]].astype("int64")
    order["dicom_id"] = both["dicom_id"]
    return both.loc[order.sort_values(["subject_id", "study_id", "dicom_id"]).index]


def _check_rows(table: pd.DataFrame, file: Path, skipped: list[Skipped]) -> pd.DataFrame:
    ids = table["subject_id"].str.fullmatch(r"\d{1,18}") & table["study_id"].str.fullmatch(r"\d{1,18}")
    names = table["dicom_id"].str.fullmatch(_FILE_NAME.pattern)
    repeated = table.duplicated("dicom_id") & ids & names
    for bad, left_out, reason in (
        (~ids, "row", "subject_id or study_id is no number"),
        (ids & ~names, "image", "its path would leave the folder of images"),
        (repeated, "row", "the image stands in an earlier row"),
    ):
        for line, row in table[bad].iterrows():
            skipped.append(Skipped(row["study_id"], f"{file}:{line + 2}", left_out, reason, row["dicom_id"]))
    return table[ids & names & ~repeated]


def plan_studies(
    images: pd.DataFrame, reports: dict, states: dict | None, settings: Settings, skipped: list[Skipped]
) -> Iterator[Study]:
    """The studies of `images` in its order; what is wrong with one is added to `skipped`.

    `reports` as from `list_reports`: those that no CSV names are left in it. `states` as from `read_states` where they
    are to be the labels.
    """
    columns = ("subject_id", "study_id", "dicom_id", "split", "StudyDate", "StudyTime")
    view = images["ViewPosition"].where(
        images["ViewPosition"] != "", images["ViewCodeSequence_CodeMeaning"].str.lower().map(_VIEW_CODES)
    )
    rows = zip(*(images[name].tolist() for name in columns), view.fillna("").tolist(), strict=True)
    sizes = {}
    if settings.imagenome:
        if not (images["Columns"] + images["Rows"]).any():
            raise InputError("the metadata have no Columns and Rows, which --imagenome needs: take PhysioNet's file")
        sizes = dict(zip(images["dicom_id"], images["Columns"] + " x " + images["Rows"], strict=True))
    for (subject_id, study_id), group in groupby(rows, key=lambda row: row[:2]):
        group = list(group)
        split = sys.intern(next((row[3] for row in group if row[3]), ""))  # one text for 200,000 studies
        when = min(
            (moment(row[4], row[5]) for row in group), key=lambda parts: [(part is None, part) for part in parts]
        )
        filed = reports.pop(study_id, [])
        problem = ""
        if not split:
            problem = "the split file does not name it" if filed else ""
        elif not filed:
            problem = "there is no report of it"
        elif len(filed) > 1:
            problem = "there are two reports of it"
        elif filed[0][0] != subject_id:
            problem = "its report lies under another subject"
        elif states is not None and study_id not in states:
            problem = "the CheXpert table does not list it"
        if problem:
            skipped.append(Skipped(study_id, settings.reports, "study", problem))
        if split and when[0] is None:
            skipped.append(Skipped(study_id, "", "prior", "its StudyDate cannot be read", group[0][4]))
        readable = len(filed) == 1 and filed[0][0] == subject_id
        report = filed[0][1:] if readable else (None, "", None)
        shown = order_views([(row[2], sys.intern(row[6])) for row in group if row[3]], settings.max_images)
        labels = states.get(study_id) if states else None
        pixels = tuple(sizes[dicom_id] for dicom_id, _ in shown if sizes)
        yield Study(study_id, subject_id, "" if problem else split, *when, shown, *report, labels, pixels)


def moment(date: str, time: str) -> tuple[int | None, float | None]:
    """(YYYYMMDD, HHMMSS.ffffff) as numbers, None where the cell holds none; "92505.0" is 9:25:05."""
    day = int(date) if re.fullmatch(r"\d{8}", date) else None
    clock = float(time) if day and re.fullmatch(r"\d{1,6}(\.\d*)?", time) and float(time) < 240000 else None
    return day, clock


# --- rows --------------------------------------------------------------------------------------------------------


def build_rows(studies: list[Study], settings: Settings, notes: dict) -> Iterator[dict]:
    """Rows of the schema of those studies that have a split; `notes` takes what was skipped, counts and hashes."""
    skipped, counts, common = notes["skipped"], Counter(), settings.common()
    plain = list(_plain_studies(studies, settings, notes))
    link_priors(plain, skipped)
    rows = text_rows([study for study in plain if study.split], common, skipped, counts)
    add_labels(rows, common, None if settings.labeler == CHEXPERT_CSV else _labeler(settings.labeler_argument))
    for row in full_rows(rows, common, skipped, counts):
        if settings.sample_unit == "study" and row["scenario"] is None:
            skipped.append(Skipped(row["study_id"], "", "scenario", "it has no frontal view; the study is kept"))
        if settings.imagenome:
            counts[f"{'no ' * (row['boxes'] is None)}boxes of the row's first image"] += 1
        yield row
    notes["counts"] = dict(sorted(counts.items()))


def _plain_studies(studies: list[Study], settings: Settings, notes: dict) -> Iterator[PlainStudy]:
    """All of `studies` with their reports: those without a split as well, which may be another study's prior."""
    with open_reports(settings.reports) as read:
        for study in studies:
            sections: dict[str, str] = {}
            try:
                sections = read_sections(read_report(read, study)) if study.report else {}
                if study.split and not sections:
                    raise InputError("it holds no final report")
            except InputError as error:
                if study.split:
                    notes["skipped"].append(Skipped(study.study_id, study.report, "study", *error.args))
            names = ("findings", "impression", "indication", "history", "findings_from", "unknown_headers")
            yield PlainStudy(
                study.study_id,
                study.subject_id,
                study.report or "",
                images=[
                    PlainImage(
                        settings.images and partial(_stored_image, study, name, settings, notes),
                        view,
                        settings.imagenome and partial(_boxes, study, name, settings, notes),
                    )
                    for name, view in study.images
                ],
                split=(study.split if sections else "") or None,
                moment=None if study.date is None else Moment(study.date, study.time),
                labels=study.states and list(study.states),
                **{name: sections.get(name) for name in names},
            )


def _stored_image(study: Study, dicom_id: str, settings: Settings, notes: dict) -> bytes:
    """The bytes to store, noted in the manifest; raises InputError(reason, detail)."""
    path = find_image(settings.images, study.subject_id, study.study_id, dicom_id)
    if path is None:
        raise InputError("there is no file of it", f"{dicom_id}: there is no .jpg, .png or .dcm")
    try:
        content = read_as_stored(path, settings.image_size, settings.image_size_of)
    except InputError as error:
        raise InputError("its file cannot be read", str(error)) from error
    name = path.relative_to(settings.images).as_posix()
    notes["manifest"].append((study.study_id, name, len(content), hashlib.sha256(content).hexdigest()))
    return content


def _boxes(study: Study, dicom_id: str, settings: Settings, notes: dict, content: bytes) -> list[dict] | None:
    """Chest ImaGenome's boxes of an image, in pixels of what is stored of it; None where it has none."""
    size = study.sizes[[image[0] for image in study.images].index(dicom_id)]
    try:
        boxes, lost = imagenome.read_boxes(settings.imagenome, dicom_id, size, content)
    except InputError as error:
        notes["skipped"].append(Skipped(study.study_id, dicom_id, "boxes", *error.args))
        return None
    if lost:
        reason = "some lie outside the image, have no area or lack a side"
        notes["skipped"].append(Skipped(study.study_id, dicom_id, "boxes", reason, ", ".join(lost)))
    return boxes or None


@cache
def _labeler(name: str):
    return load_labeler(name)


# --- shards ------------------------------------------------------------------------------------------------------


def build_shard(studies: list[Study], settings: Settings, file: Path) -> None:
    """Writes the rows of `studies` to the Parquet `file`, with what there is to say of them in its metadata."""
    notes = {"skipped": [], "manifest": [], "counts": {}}
    size = ROWS_WITH_IMAGES if settings.images else ROWS_PER_GROUP
    with replacing(file) as temporary:
        write_rows(build_rows(studies, settings, notes), temporary, size, lambda: {"notes": json.dumps(notes)})


def cut_shards(studies: list[Study], settings: Settings) -> dict[str, list[list[Study]]]:
    """Shards of whole subjects, by split; subjects without a study to write are dropped."""
    most = 200 if settings.images else STUDIES_PER_SHARD
    shards: dict[str, list[list[Study]]] = {split: [[]] for split in SPLITS}
    counts = Counter()
    for _, group in groupby(studies, key=lambda study: study.subject_id):
        group = list(group)
        split = next((study.split for study in group if study.split), None)
        if split is None:
            continue
        shards[split][-1] += group
        counts[split] += sum(bool(study.split) for study in group)
        if counts[split] >= most:
            shards[split].append([])
            counts[split] = 0
    return {split: [shard for shard in split_shards if shard] for split, split_shards in shards.items()}


def name_shard(studies: list[Study], settings: Settings) -> str:
    """The hash of all that decides on a shard: code, settings, studies, and size and time of the images' files."""
    identities = [study._replace(member=None) for study in studies]  # the same in an archive that was packed again
    key = hashlib.sha256(repr((_code(), astuple(settings), identities, str(FEATURES))).encode())
    for study in studies if settings.images else ():
        for dicom_id, _ in study.images:
            path = find_image(settings.images, study.subject_id, study.study_id, dicom_id)
            status = path.stat() if path else None
            key.update(f"{path} {status and (status.st_size, status.st_mtime_ns)}".encode())
            if settings.imagenome:
                key.update(imagenome.open_graphs(settings.imagenome).stamp(dicom_id).encode())
    return key.hexdigest()[:32] + ".parquet"


@cache
def _code() -> str:
    modules = (labelers, dicom, image_files, imagenome, mimic_images, mimic_sections, sections, studies, views)
    modules = (*modules, sys.modules[__name__])
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()


def build_shards(
    shards: dict[str, list[list[Study]]], settings: Settings, folder: Path, workers: int
) -> dict[str, list[Path]]:
    """Builds the shards that `folder` lacks, in `workers` processes; returns all their files, in order, by split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        split: [folder / name_shard(shard, settings) for shard in split_shards]
        for split, split_shards in shards.items()
    }
    pairs = [pair for split in shards for pair in zip(shards[split], files[split], strict=True)]
    todo = [(shard, settings, file) for shard, file in pairs if not file.is_file()]
    if len(todo) < len(pairs):
        print(f"{len(pairs) - len(todo)} of {len(pairs)} shards are there from an earlier run", flush=True)
    if workers == 1:
        for work in follow(todo, "shards"):
            build_shard(*work)
        return files
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    waiting: deque = deque()
    try:
        for work in follow(todo, "shards"):
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the process that a submit may start:
            waiting.append(pool.submit(build_shard, *work))  # Ctrl-C is the parent's, which lets shards finish
            signal.signal(signal.SIGINT, handler)
            if len(waiting) > 2 * workers:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; what is finished is kept: give the same command "
            "again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return files


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # the parent was killed; without this a worker would wait for it forever


def join_shards(files: list[Path], out: Path) -> tuple[int, list[dict]]:
    """Writes the shards one after the other to the Parquet `out`; returns its rows and the shards' notes."""
    notes, rows = [], 0
    with parquet.ParquetWriter(out, FEATURES.arrow_schema) as writer:
        for file in files:
            if not file.is_file():
                raise InputError(f"the shard {file} is gone; does another run write to the same --out?")
            shard = parquet.ParquetFile(file)
            notes.append(json.loads(shard.metadata.metadata[b"notes"]))
            rows += shard.metadata.num_rows
            for group in range(shard.num_row_groups):
                writer.write_table(shard.read_row_group(group))
    return rows, notes
