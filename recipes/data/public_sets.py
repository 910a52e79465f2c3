"""Readers of public sets of X-rays with reports: their files, as they are given out, become `PlainStudy`s.

None of the sets may be given on. The layouts are those that other people's readers and the sets' pages describe; what
could not be checked on real files is in the page recipes/data/README.md.
"""

import csv
import io
import re
import zipfile
from collections import Counter
from pathlib import Path

from recipes.data.columns import ImageFinder, age_of, moment_of, sex_of, states_of, text_of
from recipes.data.sources import CHEXPERT_PLUS, MIMIC, OPENI, Source
from recipes.data.studies import Moment, PlainImage, PlainStudy, Skipped
from recipes.data.tables import SPLIT_NAMES, absent, read_records
from recipes.data.views import NO_CHEST, view_name
from recipes.files import InputError
from rewards.labels import CONDITIONS

LANGUAGES = ("en", "es")
SCHEMES = ("official", "rexrank")
FOLDERS = (  # of the images below the root, beside the root itself
    "", "PNG", "CheXpert-v1.0", "CheXpert-v1.0-small", "Padchest_GR_files", "Padchest_GR_files/PadChest_GR",
    "PadChest_GR_progression_prior_studies",
)  # fmt: skip
_FINAL = re.compile(r"\.?\s*$")


class Reading:
    """What a reader notes on its way: `skipped` for skipped.csv, `notes` for build.json."""

    def __init__(self, root: str | Path, images: str | Path | None = None):
        self.root, self.skipped, self.notes = Path(root), [], Counter()
        if not self.root.is_dir():
            raise InputError(f"--root: there is no folder {root}")
        self.find = ImageFinder(*([images] if images else [self.root / folder for folder in FOLDERS]))

    def moment(self, study: PlainStudy, date: object) -> Moment | None:
        """The day of `study`; None, and an entry of `skipped`, where its date cannot be read."""
        try:
            return moment_of(date, None, None)
        except ValueError as error:
            self.skipped.append(Skipped(study.study_id, study.place, "prior", "its date cannot be read", str(error)))
            return None

    def image(self, study: PlainStudy, name: str, view: str | None) -> None:
        """Adds the file of that name to `study`, or its absence to `skipped`; an image of no chest is left out."""
        label = view_name(view)
        if label in NO_CHEST:
            self.skipped.append(Skipped(study.study_id, study.place, "image", f"its view is {label}", name))
        elif file := self.find(name):
            study.images.append(PlainImage(file, label))
        else:
            self.skipped.append(Skipped(study.study_id, study.place, "image", "it is not there", name))

    def one(self, *patterns: str) -> Path:
        """The first file below the root that one of `patterns` names; InputError where there is none."""
        for pattern in patterns:
            for file in sorted(self.root.glob(pattern)):
                return file
        raise InputError(f"{self.root} holds no {patterns[0]}; --root is the folder with the set's files as they came")

    def check(self, studies: list[PlainStudy]) -> list[PlainStudy]:
        """`studies`; raises InputError where there is none, or not one of their images."""
        if not studies:
            raise InputError(f"{self.root} names no study")
        if not any(study.images for study in studies):
            name = next((entry.detail for entry in self.skipped if entry.left_out == "image"), "none named")
            places = ", ".join(map(str, self.find.attempts[:3]))
            raise InputError(f"no image of the set is below {self.root}: {name} (looked for {places})")
        return studies


def read_rexgradient(reading: Reading) -> list[PlainStudy]:
    """ReXGradient-160K: metadata/{train,valid,test}_metadata_view_position.json and the PNGs below deid_png/.

    A study's views may be fewer than its images: the rest is UNKNOWN. A prior is of an earlier day.
    """
    studies = []
    for split in ("train", "valid", "test"):
        for file in sorted(reading.root.glob(f"**/{split}_metadata_view_position.json")):
            for record in read_records(file):
                values = record.values
                identity = str(values.get("StudyInstanceUid") or values["study_id"])
                study = PlainStudy(identity, text_of(values.get("PatientID")), f"{file.name}, {record.place}")
                for name in ("indication", "comparison", "findings", "impression"):
                    setattr(study, name, text_of(values.get(name.capitalize())))
                study.split, study.moment = SPLIT_NAMES[split], reading.moment(study, values.get("StudyDate"))
                study.age, study.sex = age_of(values.get("PatientAge")), sex_of(values.get("PatientSex"))
                views = list(values.get("ImageViewPosition") or ())
                names = list(values.get("ImagePath") or ())
                if len(views) < len(names):
                    reading.notes["studies with fewer views than images"] += 1
                for place, name in enumerate(names):
                    reading.image(study, name, views[place] if place < len(views) else None)
                studies.append(study)
    if not studies:
        raise InputError(f"{reading.root} holds no metadata/*_metadata_view_position.json of ReXGradient-160K")
    return reading.check(studies)


def read_chexpert_plus(reading: Reading, scheme: str = "official") -> list[PlainStudy]:
    """CheXpert Plus: df_chexpert_plus_240401.csv, a row per image, and the PNGs (or the older JPGs).

    A study is patientN/studyM of the path; its text is that of its first frontal row. `scheme` "official" validates
    on the set's valid, "rexrank" tests on it, and a validation set is then drawn from train by patient. Labels come
    from chexbert_labels/ where that is there.
    """
    table = reading.one("**/df_chexpert_plus_*.csv")
    labels = _chexpert_labels(reading)
    studies: dict[str, PlainStudy] = {}
    texts: dict[str, str | None] = {}
    records = sorted(read_records(table), key=lambda record: record.values["frontal_lateral"] != "Frontal")
    for record in records:
        values = record.values
        match = re.search(r"(patient\d+)/(study\d+)/", str(values["path_to_image"]))
        if not match:
            reading.skipped.append(Skipped("", record.place, "row", "its path names no patient and study"))
            continue
        identity = f"{match[1]}/{match[2]}"
        frontal = values["frontal_lateral"] == "Frontal"
        if identity not in studies:
            study = studies[identity] = PlainStudy(identity, match[1], record.place)
            for name in ("findings", "impression", "comparison", "technique"):
                setattr(study, name, text_of(values.get(f"section_{name}")))
            history = (text_of(values.get(f"section_{name}")) for name in ("clinical_history", "history"))
            study.history = " ".join(dict.fromkeys(filter(None, history))) or None
            study.moment = Moment(float(values["patient_report_date_order"]))
            study.age, study.sex = age_of(values.get("age")), sex_of(values.get("sex"))
            split = SPLIT_NAMES[values["split"]]
            study.split = "test" if (scheme, split) == ("rexrank", "validation") else split
            study.labels, texts[identity] = labels.get(values["path_to_image"]), text_of(values.get("report"))
        elif text_of(values.get("report")) != texts[identity]:
            reading.notes["rows whose text differs from that of their study's first frontal row, which stands"] += 1
        view = text_of(values.get("ap_pa"))
        view = (
            "LATERAL" if not frontal else view if view in ("AP", "PA") else "FRONTAL"
        )  # LL and RL stand on frontal rows
        reading.image(studies[identity], values["path_to_image"], view)
    if scheme == "rexrank":  # a tenth of the patients of train, the last ones of their ids' order
        patients = sorted({study.subject_id for study in studies.values() if study.split == "train"})
        held_out = set(patients[len(patients) - len(patients) // 10 :])
        for study in studies.values():
            study.split = "validation" if study.split == "train" and study.subject_id in held_out else study.split
    return reading.check(list(studies.values()))


def _chexpert_labels(reading: Reading) -> dict[str, list[int]]:
    """States by path_to_image of chexbert_labels/report_fixed.json (JSON lines), by the labels' names."""
    files = sorted(reading.root.glob("**/chexbert_labels/report_fixed.json"))
    columns = dict(zip(CONDITIONS, CONDITIONS, strict=True))
    labels = {}
    for record in read_records(files[0]) if files else ():
        filled = {name: value for name, value in record.values.items() if name in columns and not absent(value)}
        values = {name: f"{float(value):g}" for name, value in filled.items()}
        labels[record.values["path_to_image"]] = states_of(values, columns)
    return labels


def read_padchest_gr(reading: Reading, language: str = "en") -> list[PlainStudy]:
    """PadChest-GR: grounded_reports_*.json and master_table.csv (or its zip), one frontal image a study.

    The report is the sentences of that `language`, in their order; boxes, fractions of the image in the file, become
    pixels and are named after their labels.
    """
    table = reading.one("**/master_table.csv", "**/master_table.csv.zip")
    if table.suffix == ".zip":
        with zipfile.ZipFile(table) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith(".csv")))
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    else:
        rows = [record.values for record in read_records(table)]
    first = {}
    for row in rows:
        first.setdefault(str(row["StudyID"]), row)
    studies = []
    for record in read_records(reading.one("**/grounded_reports_*.json")):
        values, identity = record.values, str(record.values["StudyID"])
        row = first.get(identity)
        study = PlainStudy(identity, text_of(row and row["PatientID"]), record.place)
        if row is None:
            reading.skipped.append(Skipped(identity, record.place, "study", "master_table.csv does not list it"))
            continue
        study.split, study.moment = SPLIT_NAMES[row["split"]], reading.moment(study, row["StudyDate_DICOM"])
        study.age, study.sex = age_of(row["PatientAge"]), sex_of(row["PatientSex_DICOM"])
        sentences = [text_of(finding.get(f"sentence_{language}")) for finding in values["findings"]]
        reading.notes[f"sentences without a text in {language}"] += sentences.count(None)
        study.findings = " ".join(_FINAL.sub(".", sentence, count=1) for sentence in filter(None, sentences)) or None
        study.prior_study_id = text_of(values.get("PreviousStudyID"))
        reading.image(study, values["ImageID"], "FRONTAL")
        study.boxes = _padchest_boxes(values["findings"], study.images)
        if previous := text_of(values.get("PreviousImageID")):
            file = reading.find(previous)
            study.prior_images = [PlainImage(file, "FRONTAL")] if file else []
        studies.append(study)
    return reading.check(studies)


def _padchest_boxes(findings: list[dict], images: list[PlainImage]) -> list[dict] | None:
    from PIL import Image

    if not images or not any(finding.get("boxes") for finding in findings):
        return None
    with Image.open(images[0].file) as image:
        width, height = image.size
    boxes = []
    for finding in findings:
        region = ", ".join(finding.get("labels") or ())
        for x0, y0, x1, y1 in finding.get("boxes") or ():
            sides = {"x0": x0 * width, "y0": y0 * height, "x1": x1 * width, "y1": y1 * height}
            boxes.append({"region": region, **sides})
    return boxes


def read_rexrank(reading: Reading, files: list[str]) -> list[PlainStudy]:
    """ReXrank's own files (ReXRank_*_test.json and the like): all studies in the split that the name says.

    The frontal image is key_image_path; `frontal_lateral` is used only where it has as many entries as there are
    images.
    """
    studies = []
    for file in files:
        match = re.search(r"(train|valid|test)", Path(file).name.lower())
        for record in read_records(file):
            values = record.values
            place = f"{Path(file).name}, {record.place}"
            study = PlainStudy(str(values["study_id"]), _rexrank_subject(values), place)
            for name in ("findings", "impression"):
                setattr(study, name, text_of(values.get(f"section_{name}")))
            study.indication, study.comparison = _rexrank_context(str(values.get("context") or ""))
            study.split = SPLIT_NAMES.get(str(values.get("split")), SPLIT_NAMES[match[1]] if match else "test")
            study.age, study.sex = age_of(values.get("age")), sex_of(values.get("sex"))
            names = list(values.get("image_path") or ())
            views = list(values.get("frontal_lateral") or ())
            for place, name in enumerate(names):
                view = views[place] if len(views) == len(names) else None
                if name == values.get("key_image_path"):
                    view = view if view and "lateral" not in str(view).lower() else "FRONTAL"
                reading.image(study, name, view)
            studies.append(study)
    return reading.check(studies)


def _rexrank_subject(values: dict) -> str:
    """The patient of a study: subject_id, patientN of the id, or the id itself (Open-i's subjects have one study)."""
    identity = str(values["study_id"])
    match = re.match(r"patient\d+", identity)
    return str(values["subject_id"]) if values.get("subject_id") else match[0] if match else identity


def _rexrank_context(context: str) -> tuple[str | None, str | None]:
    """Indication and comparison of `context`, whose parts follow one another with or without a blank."""
    parts = re.split(r"(Age|Gender|Indication|Comparison):", context)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    return tuple(text_of(texts.get(name, "").strip()) for name in ("Indication", "Comparison"))


def rexrank_source(file: str) -> Source:
    """Whose data a file of ReXrank holds, by its name."""
    name = Path(file).name.lower()
    return MIMIC if "mimic" in name else CHEXPERT_PLUS if "chexpert" in name else OPENI
