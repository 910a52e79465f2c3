"""What a lab downloads, in miniature: Open-i's images, PhysioNet's tree, a labelled CSV. X-rays of uneven size.

Texts are Open-i's own (torchxrayvision's wheel) and those of tests/make_mimic_tree.py. Images are phantoms in the
formats of detectors, and, where $RRG_DATA or ../shared/data is there, the real X-rays in its folder images.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from make_mimic_tree import DATA, make_tree
from PIL import Image

from recipes.data.dicom import load_dicom
from recipes.data.openi import read_studies, text_columns
from recipes.data.phantom import make_study, render, sample_states
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS

# Width and height in pixels: portrait, landscape and square, below and above every longest side that a builder keeps.
FORMATS = ((1270, 1528), (1528, 1270), (512, 624), (640, 512), (2048, 2048), (420, 512), (760, 512), (300, 380))
MIMIC_STUDIES = 40


def mimic_seed() -> int:
    """A seed whose tree has all four scenarios to train and to test on, which LLM-RG4 needs. Its draws depend on the
    sentences that make_mimic_tree.py finds."""
    return 6 if (DATA / "radlabels" / "dev.json").is_file() else 5


def real_images() -> list[Path]:
    """The files of the real X-rays, PNG, JPEG and DICOM; none where the folder is absent."""
    return sorted(path for path in (DATA / "images").rglob("*.*") if path.suffix in (".png", ".jpg", ".dcm"))


def images(suffix: str) -> Iterator[bytes]:
    """Encoded X-rays without end, as .png or .jpg: the real ones first, then phantoms of the formats in turn."""

    def encode(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, {".png": "PNG", ".jpg": "JPEG"}[suffix])
        return file.getvalue()

    for path in real_images():
        if path.suffix == suffix:
            yield path.read_bytes()
        else:
            yield encode(load_dicom(path) if path.suffix == ".dcm" else Image.open(path).convert("L"))
    rng = np.random.default_rng(0)
    phantoms = [render(make_study(sample_states(rng), rng), "frontal", rng, 256) for _ in range(4)]
    number = 0
    while True:
        yield encode(phantoms[number % 4].resize(FORMATS[number % len(FORMATS)]))
        number += 1


def write_openi(folder: Path, studies: int) -> None:
    """Open-i's images of the first `studies` reports that have findings, by the names that the reports use."""
    folder.mkdir(parents=True)
    usable = [
        study for study in read_studies()[0] if study.images and text_columns(study, "findings", "plain")["report"]
    ]
    for name, content in zip(
        (name for study in usable[:studies] for name in study.images), images(".png"), strict=False
    ):
        (folder / f"{name}.png").write_bytes(content)


def write_mimic(folder: Path) -> None:
    """PhysioNet's tree, `folder` being physionet.org/files, whose JPGs are `images`."""
    make_tree(folder, MIMIC_STUDIES, seed=mimic_seed())
    tables = folder / "mimic-cxr-jpg" / "2.1.0"
    with gzip.open(tables / "mimic-cxr-2.0.0-split.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    for row, content in zip(rows, images(".jpg"), strict=False):
        subject, study = row["subject_id"], row["study_id"]
        place = tables / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{row['dicom_id']}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def write_labelled_csv(file: Path, reports: int) -> None:
    """Open-i's first impressions with CheXpert's columns, as CheXbert's own label files have them."""
    texts = [text_columns(study, "impression", "plain")["report"] for study in read_studies()[0]]
    texts = list(dict.fromkeys(filter(None, texts)))[:reports]
    values = {0: "", 1: "1.0", 2: "0.0", 3: "-1.0"}
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(("Report Impression", *CONDITIONS))
        for text, states in zip(texts, LexicalLabeler()(texts).tolist(), strict=True):
            rows.writerow((text, *(values[state] for state in states)))


def read_texts(count: int) -> list[str]:
    """The findings of Open-i's first studies that have some."""
    texts = (text_columns(study, "findings", "plain")["report"] for study in read_studies()[0])
    return list(islice(filter(None, texts), count))


def write_reports(file: Path, reports: int) -> None:
    """Predictions with references, Open-i's findings and each study's next one, as evaluate.py reads them."""
    texts = read_texts(reports + 1)
    rows = [{"id": f"sn/{i}", "prediction": texts[i + 1], "reference": texts[i]} for i in range(reports)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
