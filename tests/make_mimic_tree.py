"""Makes a synthetic tree in PhysioNet's layout, of any size, for tests and for the bench of build_mimic_cxr.py.

    python tests/make_mimic_tree.py --studies 2000 --out /tmp/mimic
    python tests/make_mimic_tree.py --studies 200 --out /tmp/mimic_images --images jpg

`--out` then holds mimic-cxr/2.1.0/mimic-cxr-reports.zip and mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-{split,metadata,
chexpert}.csv.gz, with files/p10/p10000032/s50414267/*.jpg (or .dcm under mimic-cxr) where images are asked for. File
names, columns, views, and the share of each split are PhysioNet's; patients and texts are invented. The headers of
DICOM files are as frequent as in Open-i's, the only public ones that were at hand (`HEADERS`).

Sentences come from $RRG_DATA/radlabels/dev.json (MIT), read at run time, or, where it is absent, from templates of the
phantom. Two in three sentences are altered: measures and sides are drawn anew, and one word in eight is exchanged for
one of another sentence, so that most sentences of a large tree are unique, as in MIMIC-CXR. Reports have the forms of
MIMIC-CXR's: sections, view headers, wet reads, addenda, no headers.
"""

import csv
import gzip
import io
import json
import os
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from recipes.cli import parse, run
from recipes.data.mimic_sections import read_sections
from recipes.data.phantom import make_study, sample_states, write_report
from recipes.files import InputError
from rewards.labels import CONDITIONS

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
VIEWS = (("PA", "LATERAL"), ("AP",), ("AP",), ("PA", "LL"), ("AP", "LATERAL"), ("AP", "AP"), ("LATERAL",), ("PA", ""))
METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)
HEADERS = {  # (MONOCHROME, bits, VOI LUT, windows, slope and intercept): how many of Open-i's 7,469 DICOM files
    (1, 12, True, 0, True): 2878, (2, 12, False, 1, False): 2576, (2, 15, False, 1, True): 866,
    (1, 15, False, 1, True): 439, (2, 12, False, 0, False): 281, (1, 15, True, 0, True): 133,
    (2, 12, False, 1, True): 98, (1, 10, False, 0, True): 58, (2, 15, False, 1, False): 38,
    (1, 12, False, 1, False): 32, (2, 14, True, 3, True): 26, (1, 12, False, 1, True): 25,
    (1, 12, False, 0, False): 16, (1, 10, False, 1, True): 3,
}  # fmt: skip
RULE = "_" * 78


@dataclass
class TreeArguments:
    """Arguments of the script."""

    out: str = field(metadata={"help": "folder to write"})
    studies: int = field(default=2000, metadata={"help": "number of studies; MIMIC-CXR has 227,835"})
    images: Literal["none", "jpg", "dcm"] = field(default="none", metadata={"help": "tiny images beside the CSVs"})
    seed: int = field(default=0, metadata={"help": "the same seed makes the same tree"})


def load_sentences() -> list[str]:
    """Sentences of radlabels' findings and impressions or, without that file, of the phantom's reports."""
    file = DATA / "radlabels" / "dev.json"
    if file.is_file():
        found = [read_sections(each["report"]) for each in json.loads(file.read_text(encoding="utf-8")).values()]
        texts = [each.get(name, "") for each in found for name in ("findings", "impression")]
    else:
        rng = np.random.default_rng(0)
        texts = [write_report(make_study(sample_states(rng), rng), rng) for _ in range(500)]
    sentences = (" ".join(each.split()) for text in texts for each in re.split(r"(?<=[.])\s+", text))
    return sorted({each for each in sentences if 15 < len(each) < 300 and each.endswith(".")})


def make_writer(rng: random.Random) -> Callable[[], str]:
    """A function that writes another report at every call."""
    sentences = load_sentences()
    words = [word for sentence in sentences for word in sentence.split()[1:-1]]

    def sentence() -> str:
        text = rng.choice(sentences)
        if rng.random() < 1 / 3:
            return text
        parts = [rng.choice(words) if rng.random() < 1 / 8 else part for part in text.split()]
        text = " ".join(parts)
        text = re.sub(r"\b\d+(?:\.\d)?(?= ?[cm]m\b)", lambda _: f"{rng.uniform(0.5, 30):.1f}", text)
        text = re.sub(r"\b(?:left|right)\b", lambda _: rng.choice(("left", "right")), text)
        return text if text.endswith(".") else text + "."

    def paragraph(low: int, high: int) -> str:
        lines, width = [""], 78
        for word in " ".join(sentence() for _ in range(rng.randint(low, high))).split():
            if len(lines[-1]) + len(word) > width:
                lines.append("")
            lines[-1] += " " + word
        return "\n".join(lines).strip()

    def report() -> str:
        kind, age = rng.random(), rng.choice(("___F", "___M", "___ year old woman", "___ year old man"))
        head = f" EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  {age} with cough  // eval for pneumonia\n \n"
        head += " TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___.\n \n"
        text = "                                 FINAL REPORT\n"
        if kind < 0.55:
            text += f"{head} FINDINGS: \n \n {paragraph(3, 8)}\n \n IMPRESSION: \n \n {paragraph(1, 3)}\n"
        elif kind < 0.7:
            text += f"{head} IMPRESSION:  {paragraph(2, 5)}\n"
        elif kind < 0.8:
            text += f" HISTORY:  {age}, chest pain.\n \n FINDINGS:  {paragraph(3, 8)}\n"
        elif kind < 0.87:
            text += f" HISTORY:  {age}.\n \n PORTABLE AP CHEST RADIOGRAPH:  {paragraph(3, 7)}\n"
        elif kind < 0.92:
            text += f" CHEST RADIOGRAPH\n \n {paragraph(3, 6)}\n"
        elif kind < 0.97:
            text = f" WET READ: ___ ___ 9:22 PM\n  {paragraph(1, 2)}\n \n {RULE}\n{text}"
            text += f"{head} Findings: {paragraph(3, 6)} IMPRESSION: {paragraph(1, 2)}\n"
        else:
            text = f"                                 FINAL ADDENDUM\n ADDENDUM:  {paragraph(1, 1)}\n {RULE}\n{text}"
            text += f"{head} FINDINGS:  {paragraph(3, 6)}\n \n IMPRESSION:  {paragraph(1, 2)}\n"
        return text

    return report


def make_studies(count: int, rng: random.Random) -> Iterator[dict]:
    """Studies of subjects with 1 to 12 of them, days and minutes apart, with the rows that the metadata have."""
    made, subject = 0, 10_000_000
    while made < count:
        subject += rng.randint(1, 300)
        split = rng.choices(("train", "validate", "test"), (0.978, 0.008, 0.014))[0] if made > 20 else "train"
        if made in (10, 11, 12, 13):
            split = ("validate", "test")[made % 2]
        day = 21_000_101 + rng.randint(0, 90) * 10_000
        for _ in range(min(rng.choice((1, 1, 1, 2, 2, 3, 4, 12)), count - made)):
            day += rng.choice((0, 1, 1, 2, 100))
            made += 1
            yield {
                "subject_id": subject,
                "study_id": 50_000_000 + (made * 7_368_787) % 9_999_991,  # no order that would tell that of time
                "split": split,
                "StudyDate": day,
                "StudyTime": f"{rng.randint(0, 23) * 10000 + rng.randint(0, 5959)}.{rng.randint(0, 999)}",
                "views": rng.choice(VIEWS),
            }


def make_image(rng: random.Random) -> Image.Image:
    """A small grey gradient with noise."""
    values = np.add.outer(np.arange(72), np.arange(64)) + np.random.default_rng(rng.getrandbits(32)).integers(0, 64)
    return Image.fromarray(values.astype(np.uint8))


def write_dicom(file: Path, values: np.ndarray, **tags) -> None:
    """A DICOM file with the pixels `values` (16 bits unsigned) and other `tags` by their keyword."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[file.name])
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = values.astype("<u2").tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file, enforce_file_format=True)


def draw_dicom(file: Path, picture: np.ndarray, rng: random.Random) -> tuple:
    """A DICOM file that shows `picture` (8 bits), with a header drawn from `HEADERS`, which is returned.

    Every window and table is that of the whole range, so that each header must show the same picture.
    """
    [header] = rng.choices(list(HEADERS), list(HEADERS.values()))
    monochrome, bits, look_up, windows, rescaled = header
    top = 2**bits - 1
    stored = np.rint(picture * (top / 255)).astype(np.uint16)
    tags = {"PhotometricInterpretation": f"MONOCHROME{monochrome}", "BitsStored": bits, "HighBit": bits - 1}
    if windows:
        widths = [top + 1, 0.75 * (top + 1), 1.5 * (top + 1)][:windows]
        tags |= {"WindowCenter": [(top + 1) / 2] * windows, "WindowWidth": widths}
    if rescaled:
        tags |= {"RescaleSlope": 1, "RescaleIntercept": 0}
    if look_up:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        table = Dataset()
        table.add_new("LUTDescriptor", "US", [top + 1, 0, 16])
        table.add_new("LUTData", "OW", np.rint(np.linspace(0, 65535, top + 1)).astype("<u2").tobytes())
        tags["VOILUTSequence"] = Sequence([table])
    write_dicom(file, top - stored if monochrome == 1 else stored, **tags)
    return header


def _open_csv(file: Path):
    return io.TextIOWrapper(gzip.GzipFile(file, "wb", mtime=0), encoding="utf-8", newline="")


def make_tree(out: str | Path, studies: int, images: str = "none", seed: int = 0) -> None:
    """Writes the tree; `images` is none, jpg or dcm. The same arguments give the same files."""
    rng = random.Random(seed)
    write = make_writer(rng)
    texts, tables = Path(out) / "mimic-cxr" / "2.1.0", Path(out) / "mimic-cxr-jpg" / "2.1.0"
    texts.mkdir(parents=True)
    tables.mkdir(parents=True)
    with (
        zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        _open_csv(tables / "mimic-cxr-2.0.0-split.csv.gz") as split_file,
        _open_csv(tables / "mimic-cxr-2.0.0-metadata.csv.gz") as metadata_file,
        _open_csv(tables / "mimic-cxr-2.0.0-chexpert.csv.gz") as chexpert_file,
    ):
        split, metadata = csv.writer(split_file), csv.DictWriter(metadata_file, METADATA)
        chexpert = csv.writer(chexpert_file)
        split.writerow(("dicom_id", "study_id", "subject_id", "split"))
        chexpert.writerow(("subject_id", "study_id", *sorted(CONDITIONS)))
        metadata.writeheader()
        for study in make_studies(studies, rng):
            subject_id, study_id = study["subject_id"], study["study_id"]
            folder = f"files/p{str(subject_id)[:2]}/p{subject_id}"
            member = zipfile.ZipInfo(f"{folder}/s{study_id}.txt")
            archive.writestr(member, write(), zipfile.ZIP_DEFLATED)
            chexpert.writerow((subject_id, study_id, *rng.choices(("", "1.0", "0.0", "-1.0"), (80, 10, 7, 3), k=14)))
            for view in study["views"]:
                dicom_id = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
                split.writerow((dicom_id, study_id, subject_id, study["split"]))
                row = {"dicom_id": dicom_id, "ViewPosition": view, "Rows": 72, "Columns": 64}
                metadata.writerow({**{name: study.get(name, "") for name in METADATA}, **row})
                place = (texts if images == "dcm" else tables) / folder / f"s{study_id}" / f"{dicom_id}.{images}"
                if images != "none":
                    place.parent.mkdir(parents=True, exist_ok=True)
                if images == "jpg":
                    make_image(rng).save(place)
                elif images == "dcm":
                    draw_dicom(place, np.asarray(make_image(rng)), rng)


def main() -> None:
    (arguments,) = parse(TreeArguments)
    if Path(arguments.out).exists():
        raise InputError(f"--out {arguments.out} exists; name a new folder")
    make_tree(arguments.out, arguments.studies, arguments.images, arguments.seed)


if __name__ == "__main__":
    run(main)
