"""Real tables that torchxrayvision's wheel carries: PadChest's 160,861 report rows, Open-i's 7,469 DICOM headers.

They are read where they lie, or from $RRG_DATA/xrv, and no row of them stands here.
"""

import csv
import gzip
import importlib.util
import io
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from make_mimic_tree import HEADERS, draw_dicom

from recipes.data import columns
from recipes.data.columns import TableReader, match_columns
from recipes.data.dicom import load_dicom
from recipes.data.studies import link_priors
from recipes.data.tables import read_records

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
OPENI = "nlmcxr_dicom_metadata.csv.gz"


def table(name: str) -> Path:
    spec = importlib.util.find_spec("torchxrayvision")
    folders = [Path(os.environ["RRG_DATA"]) / "xrv"] if "RRG_DATA" in os.environ else []
    folders += [Path(spec.origin).parent / "data"] if spec and spec.origin else []
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        pytest.skip(f"{name} is not shipped: install torchxrayvision, or set RRG_DATA")
    return file


def lines(name: str) -> list[dict[str, str]]:
    with gzip.open(table(name), "rb") as stream:
        return list(csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline="")))


################
# DICOM headers
################


def test_made_dicom_headers_are_as_frequent_as_openis():
    def number(cell: str) -> int:
        return cell.count(",") + 1 if cell else 0

    headers = Counter(
        (
            int(row["Photometric Interpretation"].removeprefix("MONOCHROME")),
            int(row["Bits Stored"]),
            bool(row["LUT Descriptor"]),
            number(row["Window Center"]),
            bool(row["Rescale Slope"]),
        )
        for row in lines(OPENI)
    )
    assert headers == HEADERS and sum(HEADERS.values()) == 7469


def test_files_with_such_headers_show_the_same_picture(tmp_path):
    """Wrong by up to 255 grey levels were an inversion before the window, or a deep file's lower bits."""
    picture, rng = np.tile(np.arange(256, dtype=np.uint8), (4, 1)), random.Random(0)
    drawn = Counter()
    for number in range(300):
        drawn[draw_dicom(tmp_path / "x.dcm", picture, rng)] += 1
        shown = np.asarray(load_dicom(tmp_path / "x.dcm")).astype(int)
        assert np.abs(shown - picture).max() <= 1, number
    share = sum(times for header, times in drawn.items() if header[0] == 1) / 300
    assert abs(share - 3584 / 7469) < 0.1  # four times its standard error


################
# PadChest
################


def test_padchests_table_is_read_as_it_is(monkeypatch):
    """All rows; what is expected is counted here from the raw cells. The images are not at hand: all are found."""
    monkeypatch.setattr(columns.ImageFinder, "__call__", lambda finder, name: Path(name))
    rows = lines(PADCHEST)
    records = read_records(table(PADCHEST))
    assert len(records) == len(rows) == 160_861
    matched = match_columns(rows[0], {"date": "StudyDate_DICOM", "sex": "PatientSex_DICOM"})
    names = {"study_id": "StudyID", "subject_id": "PatientID", "images": "ImageID", "views": "Projection"}
    assert matched.items() >= (names | {"report": "Report"}).items()
    reader = TableReader(matched, "images")
    studies, skipped = reader.studies(records, subjects=True)

    first: dict[str, dict[str, str]] = {}
    images = Counter()
    for row in rows:
        first.setdefault(row["StudyID"], row)
        images[row["StudyID"]] += row["PatientID"] == first[row["StudyID"]]["PatientID"]
    assert len(studies) == len(first) == 109_931
    assert len({study.subject_id for study in studies}) == 67_625 - 1  # of one study's two patients the first stands
    assert [entry.left_out for entry in skipped] == ["row"] and "in another row" in skipped[0].reason
    assert {study.study_id: len(study.images) for study in studies} == images
    views = {"L": "LATERAL", "AP_horizontal": "AP", "UNK": "UNKNOWN"}
    shown = Counter(image.view for study in studies for image in study.images)
    expected = Counter(views.get(row["Projection"], row["Projection"]) for row in rows)
    assert sum((expected - shown).values()) == 1 and not shown - expected
    said = {key for key, row in first.items() if row["Report"].strip() not in ("nan", "", ".", "-")}
    texts = {study.study_id: study.report for study in studies if study.report}
    assert set(texts) >= said and not any(text.startswith(" ") for text in texts.values())
    assert len(set(texts) - said) <= 30  # whose first row says nothing and a further one does

    link_priors(studies, [])
    days: dict[str, set[str]] = {}
    for row in first.values():
        days.setdefault(row["PatientID"], set()).add(row["StudyDate_DICOM"])
    reports = {(study.subject_id, study.moment.day): study for study in studies if study.report}
    later = sum(min(days[study.subject_id]) < str(study.moment.day) for study in studies)
    assert 0 <= later - sum(study.prior_report is not None for study in studies) <= 200  # a prior without a text
    assert len(reports) > 100_000
