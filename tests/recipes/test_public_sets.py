"""Public sets in the layouts that their pages and readers describe, on small trees made by hand."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import build_public_set
from recipes.data.public_sets import Reading, read_chexpert_plus, read_padchest_gr, read_rexgradient, read_rexrank
from recipes.data.schema import read_build, read_dataset
from recipes.files import InputError
from rewards.labels import CONDITIONS


def draw(path: Path, size: tuple[int, int] = (40, 30), depth: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255 if depth == 8 else 4095, size[0]).astype(np.uint8 if depth == 8 else np.uint16)
    Image.fromarray(np.tile(ramp, (size[1], 1))).save(path)


def build(name: str, root: Path, out: Path, *more: str, monkeypatch) -> dict[str, list[dict]]:
    words = ["build_public_set.py", "--set", name, "--root", str(root), "--out", str(out), "--workers", "1", *more]
    monkeypatch.setattr(sys, "argv", words)
    build_public_set.main()
    return {split: rows.to_list() for split, rows in read_dataset(str(out), bare=True).items()}


################
# ReXGradient-160K
################


def rexgradient_record(patient: str, study: str, date: str, images: list[str], views: list, **more) -> dict:
    paths = [f"../deid_png/{patient}/{study}/studies/1.{study}/series/2/instances/{name}.png" for name in images]
    record = {"PatientID": patient, "AccessionNumber": study, "StudyInstanceUid": f"1.{study}", "StudyDate": date}
    record |= {"PatientSex": "F", "PatientAge": "002D", "Indication": "Cough.", "Comparison": "None", "Findings": ""}
    return record | {"Impression": f"Impression {study}.", "ImagePath": paths, "ImageViewPosition": views} | more


@pytest.fixture
def rexgradient(tmp_path):
    train = [
        rexgradient_record("P1", "A", "20130101", ["a", "b"], ["PA"]),  # fewer views than images
        rexgradient_record("P1", "B", "20130201", ["c"], ["UNKNOWN"], Findings="None", PatientAge="063Y"),
        rexgradient_record("P1", "C", "20130201", ["d", "e"], ["AP", "KUB"], Findings="Clear lungs."),
    ]
    valid = [rexgradient_record("P2", "D", "20130101", ["f"], ["LATERAL"])]
    test = [rexgradient_record("P3", "E", "20130101", ["g"], [None]), rexgradient_record("P4", "F", "x", ["gone"], [])]
    (tmp_path / "metadata").mkdir()
    for split, records in {"train": train, "valid": valid, "test": test}.items():
        content = {f"p{record['PatientID']}_a_s{record['StudyInstanceUid']}": record for record in records}
        file = tmp_path / "metadata" / f"{split}_metadata_view_position.json"
        file.write_text(json.dumps(content))
        for record in records:
            for path in record["ImagePath"]:
                if "gone" not in path:
                    draw(tmp_path / path.removeprefix("../"), depth=16 if path.endswith("a.png") else 8)
    return tmp_path


def test_rexgradient(rexgradient, tmp_path, monkeypatch):
    splits = build("rexgradient-160k", rexgradient, tmp_path / "out", monkeypatch=monkeypatch)
    rows = {row["study_id"]: row for split in splits.values() for row in split}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "validation": 1, "test": 1}
    assert rows["1.A"]["views"] == ["PA", "UNKNOWN"] and rows["1.A"]["scenario"] == "sn"
    assert rows["1.A"]["findings"] is None and rows["1.A"]["report"] == "Impression A."
    assert rows["1.A"]["comparison"] is None and rows["1.A"]["indication"] == "Cough."
    assert rows["1.B"]["views"] == ["UNKNOWN"] and rows["1.B"]["scenario"] is None and rows["1.B"]["age"] == 63.0
    assert rows["1.B"]["prior_report"] == rows["1.C"]["prior_report"] == "Impression A."  # of one day: no order
    assert rows["1.C"]["views"] == ["AP"] and rows["1.C"]["report"] == "Clear lungs. Impression C."
    assert rows["1.D"]["views"] == ["LATERAL"] and rows["1.E"]["sex"] == "F"
    build_note = read_build(tmp_path / "out")
    assert build_note["reading"]["studies with fewer views than images"] == 2
    assert build_note["counts"]["image left out: it is not there"] == 1
    assert build_note["counts"]["image left out: its view is KUB"] == 1
    assert build_note["counts"]["prior left out: its date cannot be read"] == 1
    pixels = np.asarray(Image.open(io.BytesIO(rows["1.A"]["images"][0]["bytes"])))
    assert pixels.min() == 0 and pixels.max() == 255  # 12 bits in 16


def test_a_folder_without_the_sets_files(tmp_path):
    with pytest.raises(InputError, match="holds no metadata"):
        read_rexgradient(Reading(tmp_path))
    with pytest.raises(InputError, match=r"holds no .*df_chexpert_plus"):
        read_chexpert_plus(Reading(tmp_path))
    with pytest.raises(InputError, match="there is no folder"):
        Reading(tmp_path / "absent")


################
# CheXpert Plus
################


@pytest.fixture
def chexpert(tmp_path):
    columns = ["", "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id",
               "patient_report_date_order", "report", "section_narrative", "section_clinical_history",
               "section_history", "section_comparison", "section_technique", "section_findings", "section_impression",
               "age", "sex", "split"]  # fmt: skip
    rows = [
        # patient, study, view, kind, ap_pa, order, report, history, findings, impression, split
        ("patient1", "study1", 1, "Frontal", "AP", 1, "R1", "Fever.", "", "\n1. NO EFFUSION.", "train"),
        ("patient1", "study1", 2, "Lateral", "", 1, "R1 other dates", "Fever.", "", "\n1. NO EFFUSION.", "train"),
        ("patient1", "study2", 1, "Frontal", "LL", 2, "R2", "", "The heart is large.", "\nCARDIOMEGALY.", "train"),
        ("patient1", "study3", 1, "Lateral", "", 4, "R3", "", "", "Unchanged.", "train"),
        ("patient2", "study1", 1, "Frontal", "PA", 1, "R4", "", "", "Clear.", "valid"),
    ]
    with (tmp_path / "df_chexpert_plus_240401.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, values in enumerate(rows):
            patient, study, view, kind, side, order, report, history, findings, impression, split = values
            path = f"{split}/{patient}/{study}/view{view}_{kind.lower()}"
            row = [number, f"{path}.jpg", f"{path}.dcm", kind, side, patient, order, report, "", history, "", "", ""]
            writer.writerow([*row, findings, impression, 77.0, "Female", split])
            draw(tmp_path / "PNG" / f"{path}.png")
    draw(tmp_path / "PNG" / "train" / "patient1" / "study1" / ".azDownload-view1_frontal.png")
    (tmp_path / "chexbert_labels").mkdir()
    states = dict.fromkeys(reversed(CONDITIONS)) | {"Pleural Effusion": 0.0, "Edema": -1.0, "Fracture": 1.0}
    line = {"path_to_image": "train/patient1/study1/view1_frontal.jpg", **states}
    (tmp_path / "chexbert_labels" / "report_fixed.json").write_text(json.dumps(line) + "\n")
    return tmp_path


def test_chexpert_plus(chexpert, monkeypatch, tmp_path):
    splits = build("chexpert-plus", chexpert, tmp_path / "out", monkeypatch=monkeypatch)
    rows = {row["study_id"]: row for split in splits.values() for row in split}
    assert set(splits) == {"train", "validation"} and len(splits["train"]) == 3
    first = rows["patient1/study1"]
    assert first["views"] == ["AP", "LATERAL"] and first["scenario"] == "mn" and first["history"] == "Fever."
    assert first["report"] == "NO EFFUSION." and first["age"] == 77.0 and first["sex"] == "F"
    assert first["labels"][CONDITIONS.index("Pleural Effusion")] == 2
    assert first["labels"][CONDITIONS.index("Edema")] == 3 and first["labels"][CONDITIONS.index("Fracture")] == 1
    assert sum(map(bool, first["labels"])) == 3
    second, third = rows["patient1/study2"], rows["patient1/study3"]
    assert second["views"] == ["FRONTAL"] and second["prior_report"] == "NO EFFUSION." and second["scenario"] == "sw"
    assert third["prior_report"] == "The heart is large. CARDIOMEGALY." and third["scenario"] is None
    notes = read_build(tmp_path / "out")["reading"]
    assert notes["rows whose text differs from that of their study's first frontal row, which stands"] == 1


def test_chexpert_plus_under_rexranks_split(chexpert):
    studies = {study.study_id: study for study in read_chexpert_plus(Reading(chexpert), "rexrank")}
    assert studies["patient2/study1"].split == "test" and studies["patient1/study1"].split == "train"


################
# PadChest-GR
################


@pytest.fixture
def padchest(tmp_path):
    root = tmp_path / "BIMCV-Padchest-GR "  # the folder's name ends in a blank
    draw(root / "Padchest_GR_files" / "PadChest_GR" / "1_a.png", (200, 100), depth=16)
    draw(root / "Padchest_GR_files" / "PadChest_GR" / "2_b.png")
    draw(root / "PadChest_GR_progression_prior_studies" / "0_z.png")
    effusion = {"sentence_en": "Left pleural effusion", "sentence_es": "Derrame pleural izquierdo."}
    effusion |= {"abnormal": True, "boxes": [[0.5, 0.6, 0.9, 0.8]], "labels": ["pleural effusion"]}
    clear = {"sentence_en": "", "sentence_es": "Sin neumotorax.", "abnormal": False, "boxes": [], "labels": []}
    reports = [
        {"StudyID": "2", "ImageID": "2_b.png", "PreviousStudyID": "1", "PreviousImageID": "1_a.png", 
         "findings": [effusion]},
        {"StudyID": "1", "ImageID": "1_a.png", "PreviousStudyID": "0", "PreviousImageID": "0_z.png",
         "findings": [effusion, clear]},
        {"StudyID": "9", "ImageID": "1_a.png", "PreviousStudyID": None, "PreviousImageID": None, "findings": [clear]},
    ]  # fmt: skip
    (root / "grounded_reports_20240819.json").write_text(json.dumps(reports))
    with (root / "master_table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["StudyID", "ImageID", "split", "PatientID", "PatientSex_DICOM", "StudyDate_DICOM", "PatientAge"]
        )
        writer.writerow(["1", "1_a.png", "train", "p", "M", "20100101", "60.0"])
        writer.writerow(["1", "1_a.png", "train", "p", "M", "20100101", "60.0"])  # one row per sentence
        writer.writerow(["2", "2_b.png", "train", "p", "M", "20110101", "61.0"])
    return root


def test_padchest_gr_in_both_languages(padchest, monkeypatch, tmp_path):
    more = ("--image_size", "100", "--prior_images", "true")
    splits = build("padchest-gr", padchest, tmp_path / "en", *more, monkeypatch=monkeypatch)
    rows = {row["study_id"]: row for row in splits["train"]}
    assert set(rows) == {"1", "2"}
    assert rows["1"]["findings"] == "Left pleural effusion." and rows["1"]["sex"] == "M" and rows["1"]["age"] == 60.0
    assert rows["2"]["prior_report"] == "Left pleural effusion." and rows["2"]["scenario"] == "sw"
    [box] = rows["1"]["boxes"]
    assert box == {"region": "pleural effusion", "x0": 50.0, "y0": 30.0, "x1": 90.0, "y1": 40.0}  # 200 x 100 halved
    assert len(rows["1"]["prior_images"]) == len(rows["2"]["prior_images"]) == 1
    splits = build("padchest-gr", padchest, tmp_path / "es", "--language", "es", monkeypatch=monkeypatch)
    spanish = {row["study_id"]: row for row in splits["train"]}
    assert spanish["1"]["report"] == "Derrame pleural izquierdo. Sin neumotorax."
    reading = Reading(padchest)
    read_padchest_gr(reading)
    assert [(entry.study_id, entry.reason) for entry in reading.skipped] == [
        ("9", "master_table.csv does not list it")
    ]


################
# ReXrank
################


def test_rexrank(tmp_path, monkeypatch):
    entries = {
        "CXR1_IM-0001": {
            "image_path": ["CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png"], "key_image_path": "CXR1_IM-0001/1.png",
            "frontal_lateral": ["Frontal"], "context": "Indication: Chest pain. Comparison: None.",
            "section_findings": "Clear lungs.", "section_impression": "Normal.", "report": "-", "split": "test",
        },
        "patient7_study1": {
            "image_path": ["/CXR2/0.png"], "key_image_path": "/CXR2/0.png", "frontal_lateral": ["Lateral"],
            "context": "Age:77.0.Gender:F.Indication:nanComparison: None.", "section_findings": float("nan"),
            "section_impression": "\nEdema.\n", "report": "-",
        },
    }  # fmt: skip
    file = tmp_path / "ReXRank_IUXray_test.json"
    file.write_text(json.dumps(entries))  # with the literal NaN, as theirs
    for name in ("CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png", "CXR2/0.png"):
        draw(tmp_path / "images" / name)
    splits = build("rexrank", tmp_path / "images", tmp_path / "out", "--files", str(file), monkeypatch=monkeypatch)
    first, second = splits["test"]
    assert first["views"] == ["FRONTAL", "UNKNOWN"] and first["indication"] == "Chest pain."
    assert first["source"] == "openi" and first["report"] == "Clear lungs. Normal."
    assert second["report"] == "Edema." and second["indication"] is None and second["findings"] is None
    assert [study.subject_id for study in read_rexrank(Reading(tmp_path / "images"), [str(file)])][1] == "patient7"
    with pytest.raises(InputError, match="--files"):
        build("rexrank", tmp_path / "images", tmp_path / "x", monkeypatch=monkeypatch)
