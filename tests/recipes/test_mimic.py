"""build_mimic_cxr on small trees in PhysioNet's layout that are written here; no text of MIMIC-CXR stands here."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from make_mimic_tree import make_tree, write_dicom
from PIL import Image

from recipes import build_mimic_cxr
from recipes.data import mimic
from recipes.data.dicom import load_dicom
from recipes.data.schema import FEATURES, read_build, read_dataset
from recipes.data.studies import Moment, PlainStudy, link_priors
from recipes.data.views import order_views, scenario_of
from recipes.files import InputError
from rewards.labels import CONDITIONS, CheXpertState

ROOT = Path(__file__).resolve().parents[2]
CLEAR = "FINAL REPORT\n FINDINGS:  The lungs are clear.\n \n IMPRESSION:  No pneumonia.\n"
IMAGES = [  # dicom_id, subject, study, split, view, date, time
    ("a1", "10000032", "50000003", "train", "LATERAL", "21800506", "213014.531"),
    ("a0", "10000032", "50000003", "train", "PA", "21800506", "213014.531"),
    ("b0", "10000032", "50000001", "train", "AP", "21800626", "92505.0"),  # 9:25, the leading zero is gone
    ("c0", "10000032", "50000002", "train", "AP", "21800626", "165500.0"),
    ("d0", "10000032", "50000004", "train", "LL", "21800723", "80556.875"),
    ("e0", "11000000", "50000005", "validate", "PA", "21300101", "100000.0"),
    ("f0", "12000000", "50000006", "test", "", "21300101", "100000.0"),
]
HEADERS = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime"),
}


def path_of(subject: str, study: str) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def write_csv(file: Path, header, rows) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.getvalue().encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_tree(root: Path, images=IMAGES, reports=None, suffix=".gz", zipped=True, split=None) -> Path:
    """A tree with `images`, and `reports` by (subject, study), which default to clear ones for all studies."""
    defaults = {(image[1], image[2]): CLEAR for image in images}
    reports = defaults | (reports or {})
    files = [(path_of(*key) + ".txt", text) for key, text in reports.items() if text is not None]
    files = [(name, text if isinstance(text, bytes) else text.encode()) for name, text in files]
    root.mkdir(exist_ok=True)
    if zipped:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files:
                archive.writestr(name, text)
    else:
        for name, text in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)
    split = split or [(i[0], i[2], i[1], i[3]) for i in images]
    write_csv(root / f"mimic-cxr-2.0.0-split.csv{suffix}", HEADERS["split"], split)
    metadata = [(i[0], i[1], i[2], i[4], 8, 8, i[5], i[6]) for i in images]
    write_csv(root / f"mimic-cxr-2.0.0-metadata.csv{suffix}", HEADERS["metadata"], metadata)
    return root


@pytest.fixture
def build(call, tmp_path):
    """Builds in this process and returns the rows by study id, the entries of skipped.csv, and build.json."""

    def build(root, *arguments, out=None):
        out = out or tmp_path / "out"
        call(build_mimic_cxr.main, "--root", root, "--out", out, "--workers", 1, *arguments)
        rows = [dict(row, split=split) for split, rows in read_dataset(str(out)).items() for row in rows]
        with (out / "skipped.csv").open(newline="") as file:
            skipped = [mimic.Skipped(**row) for row in csv.DictReader(file)]
        assert not list(out.parent.glob(".*"))  # neither shards nor temporary files stay
        return SimpleNamespace(
            rows=rows, by_study={row["study_id"]: row for row in rows}, skipped=skipped, note=read_build(out), out=out
        )

    return build


def reasons(built) -> set[tuple[str, str, str]]:
    return {(each.study_id, each.left_out, each.reason) for each in built.skipped}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("[!.]*"))}


def changed(name: str, change):
    def spoil(root: Path) -> None:
        file = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
        file.write_bytes(gzip.compress(change(gzip.decompress(file.read_bytes()))))

    return spoil


# --- what is built -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("zipped", [True, False])
def test_builds_from_untouched_files(tmp_path, build, suffix, zipped):
    built = build(write_tree(tmp_path / "mimic", suffix=suffix, zipped=zipped))
    assert read_dataset(str(built.out))["train"].features == FEATURES
    assert {row["study_id"]: row["split"] for row in built.rows} == {
        **dict.fromkeys(("50000001", "50000002", "50000003", "50000004"), "train"),
        "50000005": "validation",
        "50000006": "test",
    }
    row = built.by_study["50000003"]
    assert row["subject_id"] == "10000032" and row["source"] == "mimic-cxr" and "PhysioNet" in row["license"]
    assert row["findings"] == "The lungs are clear." and row["impression"] == "No pneumonia."
    assert row["report"] == "The lungs are clear. No pneumonia." and row["key_spans"] is None
    assert row["views"] == ["PA", "LATERAL"] and row["images"] == []  # text only: the views are kept
    assert row["labels"][CONDITIONS.index("Pneumonia")] == CheXpertState.NEGATIVE
    assert built.note["rows"] == {"train": 4, "validation": 1, "test": 1} and built.note["labeler"] == "lexical"
    assert not (built.out / "manifest.csv").exists()


def test_finds_the_files_where_physionet_puts_them(tmp_path, build):
    make_tree(tmp_path / "files", 30)
    assert sum(build(tmp_path / "files").note["rows"].values()) == 30
    (tmp_path / "physionet.org").mkdir()
    (tmp_path / "files").rename(tmp_path / "physionet.org" / "files")  # as wget names it
    assert sum(build(tmp_path / "physionet.org").note["rows"].values()) == 30


@pytest.mark.parametrize(
    ("arguments", "report", "other"),
    [
        (("--target", "findings"), "The lungs are clear.", "No pneumonia."),
        (("--target", "impression"), "No pneumonia.", "No pneumonia."),
        (("--cleaning", "r2gen"), "the lungs are clear . no pneumonia .", "no pneumonia ."),
    ],
)
def test_target_and_cleaning(tmp_path, build, arguments, report, other):
    row = build(write_tree(tmp_path / "mimic"), *arguments).by_study["50000002"]
    assert row["report"] == report and row["impression"] == other
    assert row["prior_report"] == "The lungs are clear. No pneumonia."  # an input: always plain, always both


def test_prior_is_the_study_before_by_date_and_time_and_scenarios_follow(tmp_path, build):
    reports = {("10000032", f"5000000{i}"): f"FINAL REPORT\n IMPRESSION: Number {'xabcd'[i]}." for i in (1, 2, 3, 4)}
    built = build(write_tree(tmp_path / "mimic", reports=reports))
    found = {key[-1]: (row["prior_report"], row["scenario"]) for key, row in built.by_study.items()}
    assert found == {
        "3": (None, "mn"),  # the first, with a lateral view
        "1": ("Number c.", "sw"),
        "2": ("Number a.", "sw"),  # the same day, later: 92505 is 9:25
        "4": ("Number b.", None),  # a lateral view only
        "5": (None, "sn"),
        "6": (None, None),  # a view that nobody named
    }
    named = "it has no frontal view; the study is kept"
    assert reasons(built) == {("50000004", "scenario", named), ("50000006", "scenario", named)}


def study(number: int, date: int | None, time: float | None) -> PlainStudy:
    moment = None if date is None else Moment(date, time)
    return PlainStudy(f"{number}", "1", "", findings=f"Of {number}.", moment=moment)


@pytest.mark.parametrize(
    ("others", "prior"),  # of study 50, on day 20 at 12:00; others as (id, day, time)
    [
        ([(90, 20, 80000.0), (10, 20, 110000.0), (70, 20, 90000.0)], "10"),  # by time and not by id
        ([(10, 20, 80000.0), (90, 20, 80000.5)], "90"),  # fractions of a second
        (
            [(90, 19, 235959.0), (10, 20, 0.0)],
            "10",
        ),  # midnight is after the whole day before
        ([(10, 19, None), (90, 18, 235959.0)], "10"),  # a later day without a time
        ([(10, 19, None), (90, 19, 1.0)], "90"),  # one with a time goes before one without
        ([(10, 19, None), (9, 19, None)], "10"),  # as numbers: 10 is greater than 9
        ([(10, 20, 120000.0), (90, 20, 130000.0), (70, 21, 1.0)], None),  # none is earlier
        ([(50, 20, 120000.0)], None),  # nor is a study its own prior
        ([(10, None, 80000.0), (90, 20, None)], None),
    ],
)
def test_the_prior_among_several(others, prior):
    for order in (others, others[::-1]):
        current = study(50, 20, 120000.0)
        link_priors([*(study(*each) for each in order), current], [])
        assert current.prior_report == (prior and f"Of {prior}.")


def test_another_patients_study_is_no_prior(tmp_path, build):
    reports = {(subject, name): f"FINAL REPORT\n FINDINGS: Of {subject}." for subject, name in
               (("10000032", "50000002"), ("10000033", "50000001"), ("10000032", "50000003"))}  # fmt: skip
    images = [
        ("a", "10000032", "50000002", "train", "PA", "21300102", "100000.0"),
        ("b", "10000033", "50000001", "train", "PA", "21300101", "100000.0"),  # the day before, the id before
        ("c", "10000032", "50000003", "train", "PA", "21300103", "100000.0"),
    ]
    rows = build(write_tree(tmp_path / "mimic", reports=reports, images=images)).by_study
    priors = {name: row["prior_report"] for name, row in rows.items()}
    assert priors == {"50000001": None, "50000002": None, "50000003": "Of 10000032."}


@pytest.mark.parametrize(
    ("views", "without", "with_prior"),
    [
        (["PA"], "sn", "sw"),
        (["AP"], "sn", "sw"),
        (["PA", "AP"], "sn", "sw"),  # two frontal images are one view
        (["AP", "AP"], "sn", "sw"),
        (["PA", "LATERAL"], "mn", "mw"),
        (["AP", "LL"], "mn", "mw"),  # the other name of a lateral view
        (["PA", "AP", "LATERAL"], "mn", "mw"),
        (["LATERAL"], None, None),  # all four scenarios have a frontal image
        (["LATERAL", "LL"], None, None),
        ([], None, None),
    ],
)
def test_scenarios(views, without, with_prior):
    assert scenario_of(views, None) == scenario_of(views, "") == without
    assert scenario_of(views, "The lungs are clear.") == with_prior


@pytest.mark.parametrize(
    ("date", "time", "other_date", "other_time", "prior"),
    [
        ("21300102", "", "21300101", "", True),  # days are enough
        ("21300101", "100000.0", "21300101", "95959.9", True),
        ("21300101", "100000.0", "21300101", "", False),  # of one day, without a clock: no order
        ("21300101", "100000.0", "21300101", "100000.0", False),  # the same moment
        ("21300101", "100000.0", "21300101", "999999.0", False),  # no time
        ("", "100000.0", "21300101", "90000.0", False),  # no date
        ("21300102", "100000.0", "", "90000.0", False),
    ],
)
def test_prior_needs_a_study_that_is_certainly_earlier(tmp_path, build, date, time, other_date, other_time, prior):
    images = [
        ("a", "10000032", "50000002", "train", "PA", date, time),
        ("b", "10000032", "50000001", "train", "PA", other_date, other_time),
    ]
    built = build(write_tree(tmp_path / "mimic", images=images))
    assert (built.by_study["50000002"]["prior_report"] is not None) == prior
    dateless = {each.study_id for each in built.skipped if each.reason == "its StudyDate cannot be read"}
    assert dateless == {study for study, day in (("50000002", date), ("50000001", other_date)) if not day}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("21800506", "213014.531"), (21800506, 213014.531)),
        (("21800506", "0.0"), (21800506, 0.0)),  # midnight is a time
        (("21800506", "250000"), (21800506, None)),
        (("21800506", ""), (21800506, None)),
        (("2180-05-06", "100000.0"), (None, None)),  # a time without a day orders nothing
    ],
)
def test_reads_date_and_time(cells, expected):
    assert mimic.moment(*cells) == expected


def test_a_studys_first_known_moment_is_its_own(tmp_path, build):
    images = [
        ("a", "10000032", "50000001", "train", "PA", "21300101", ""),
        ("b", "10000032", "50000001", "train", "LATERAL", "21300101", "90000.0"),
        ("c", "10000032", "50000001", "train", "LATERAL", "21300101", "110000.0"),
        ("d", "10000032", "50000002", "train", "PA", "21300101", "100000.0"),
    ]
    assert build(write_tree(tmp_path / "mimic", images=images)).by_study["50000002"]["prior_report"]


def test_a_metadata_table_without_a_clock_column(tmp_path, build):
    root = write_tree(tmp_path / "mimic")
    rows = [(i[0], i[1], i[2], i[4], i[5]) for i in IMAGES]
    write_csv(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"),
        rows,
    )
    found = build(root).by_study
    assert found["50000002"]["prior_report"] and found["50000001"]["prior_report"]  # of 50000003, a month before


def test_a_prior_without_findings_and_impression_is_named(tmp_path, build):
    reports = {("10000032", "50000001"): "FINAL REPORT\n HISTORY: Cough.\n"}
    built = build(write_tree(tmp_path / "mimic", reports=reports))
    assert built.by_study["50000002"]["prior_report"] is None and built.by_study["50000002"]["scenario"] == "sn"
    reason = "the study before it has no report with findings or impression"
    assert ("50000002", "prior", reason) in reasons(built)
    assert ("50000001", "study", "it has no findings+impression") in reasons(built)


@pytest.mark.parametrize(
    ("views", "most", "chosen"),
    [
        (("LL", "LATERAL", "AP", "PA"), 0, ("PA", "AP", "LATERAL", "LL")),
        (("LATERAL", "AP", "PA"), 2, ("PA", "LATERAL")),  # one of each kind before a second frontal one
        (("AP", "PA"), 2, ("PA", "AP")),
        (("LATERAL", "AP"), 1, ("AP",)),
        (("", "XTABLE LATERAL", "AP LLD"), 0, ("AP LLD", "XTABLE LATERAL", "")),
        (("SWIMMERS", "PA RLD", "AP"), 0, ("AP", "PA RLD", "SWIMMERS")),
        (("LATERAL", "LL", "PA"), 2, ("PA", "LATERAL")),
        (("LL", "LATERAL"), 1, ("LATERAL",)),
    ],
)
def test_orders_views(views, most, chosen):
    images = [(str(number), view) for number, view in enumerate(views)]
    assert tuple(view for _, view in order_views(images, most)) == chosen


def test_images_of_one_view_are_in_the_order_of_their_names():
    """And not of the CSV's rows, by which two copies of it would give two data sets."""
    images = [("b", "AP"), ("c", "LATERAL"), ("a", "AP")]
    for order in (images, images[::-1]):
        assert order_views(order, 0) == (("a", "AP"), ("b", "AP"), ("c", "LATERAL"))


def test_a_view_that_only_its_code_names(tmp_path, build):
    root = write_tree(tmp_path / "mimic")
    header = (*HEADERS["metadata"], "ViewCodeSequence_CodeMeaning")
    rows = [(i[0], i[1], i[2], "", 8, 8, i[5], i[6], "antero-posterior") for i in IMAGES]
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", header, rows)
    assert build(root).by_study["50000006"]["views"] == ["AP"]


@pytest.mark.parametrize(
    ("meaning", "view"),
    [
        ("postero-anterior", "PA"),
        ("Antero-posterior", "AP"),  # in any case
        ("lateral", "LATERAL"),
        ("left lateral", "LL"),
        ("Erect", ""),  # no view
    ],
)
def test_what_the_codes_of_views_mean(tmp_path, build, meaning, view):
    root = write_tree(tmp_path / "mimic")
    header = (*HEADERS["metadata"], "ViewCodeSequence_CodeMeaning")
    rows = [(i[0], i[1], i[2], i[4], 8, 8, i[5], i[6], meaning) for i in IMAGES]
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", header, rows)
    found = build(root).by_study
    assert found["50000006"]["views"] == [view]
    assert found["50000003"]["views"] == ["PA", "LATERAL"]  # ViewPosition, where it says something, decides


def test_columns_of_a_row(tmp_path, build):
    """Each section in its own column; of the model's inputs the first paragraph alone."""
    text = (
        "FINAL REPORT\n EXAMINATION:  CHEST\n \n INDICATION:  Cough.\n \n HISTORY:  Smoker,\n ex.\n \n PA view shows "
        "edema.\n \n COMPARISON:  None.\n \n FINDINGS:  Mild edema.\n \n IMPRESSION:  Edema.\n"
    )
    row = build(write_tree(tmp_path / "mimic", reports={("11000000", "50000005"): text})).by_study["50000005"]
    assert {name: row[name] for name in ("indication", "history", "findings", "impression", "report")} == {
        "indication": "Cough.",
        "history": "Smoker, ex.",
        "findings": "Mild edema.",
        "impression": "Edema.",
        "report": "Mild edema. Edema.",
    }


@pytest.mark.parametrize(
    ("cleaning", "report"), [("r2gen", "no edema pneumonia ."), ("rg4", "no edema : pneumonia .")]
)
def test_labels_are_read_before_cleaning(tmp_path, build, monkeypatch, cleaning, report):
    """The labelers read punctuation: "No edema: pneumonia." has pneumonia, "no edema pneumonia" has none."""
    texts = []

    def labeler(reports):
        texts.extend(reports)
        return np.zeros((len(reports), 14), int)

    monkeypatch.setattr(mimic, "_labeler", lambda name: labeler)
    text = "FINAL REPORT\n IMPRESSION:  No edema: pneumonia.\n"
    reports = {(image[1], image[2]): text for image in IMAGES}
    built = build(write_tree(tmp_path / "mimic", reports=reports), "--cleaning", cleaning)
    assert {row["report"] for row in built.rows} == {report}
    assert set(texts) == {"No edema: pneumonia."}
    priors = {row["prior_report"] for row in built.rows}
    assert priors == {None, "No edema: pneumonia."}  # an input: plain


def test_every_image_a_row(tmp_path, build):
    built = build(write_tree(tmp_path / "mimic"), "--sample_unit", "image")
    rows = [row for row in built.rows if row["study_id"] == "50000003"]
    assert [(row["views"], row["scenario"]) for row in rows] == [(["PA"], "sn"), (["LATERAL"], None)]
    assert len({row["report"] for row in rows}) == 1 and len(built.rows) == len(IMAGES)


def test_r2gens_annotation_gives_split_and_images(tmp_path, build):
    def entry(name, subject, study):
        return {"subject_id": int(subject), "study_id": int(study), "id": name, "report": "unused",
                "image_path": [f"p{subject[:2]}/p{subject}/s{study}/{name}.jpg"]}  # fmt: skip

    annotation = {
        "train": [entry("a0", "10000032", "50000003"), entry("c0", "10000032", "50000002")],
        "val": [entry("f0", "12000000", "50000006")],
        "test": [entry("e0", "11000000", "50000005"), entry("../../../x", "11000000", "50000005")],
    }
    annotation["train"][0]["image_path"] += ["p10/p10000032/s50000003/a1.jpg"]  # an entry may have several images
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    built = build(write_tree(tmp_path / "mimic"), "--split_file", tmp_path / "annotation.json")
    assert {row["study_id"]: (row["split"], row["views"]) for row in built.rows} == {
        "50000003": ("train", ["PA", "LATERAL"]),
        "50000002": ("train", ["AP"]),
        "50000006": ("validation", [""]),
        "50000005": ("test", ["PA"]),
    }
    assert built.by_study["50000002"]["prior_report"]  # 50000001, which the file does not name
    annotation["train"][0]["image_path"].pop()
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    again = build(tmp_path / "mimic", "--split_file", tmp_path / "annotation.json").by_study["50000003"]
    assert (again["views"], again["scenario"]) == (["PA"], "sn")  # its lateral view is not among R2Gen's images
    assert ("50000001", "study", "the split file does not name it") in reasons(built)
    assert ("50000005", "image", "its path would leave the folder of images") in reasons(built)


def test_labels_of_physionets_table(tmp_path, build):
    root = write_tree(tmp_path / "mimic")
    header = ("subject_id", "study_id", *sorted(CONDITIONS))
    rows = [(10000032, 50000003, *("1.0" if name == "Edema" else "" for name in header[2:])),
            (11000000, 50000005, *("-1.0" if name == "Fracture" else "0.0" for name in header[2:])),
            (12000000, 50000006, *[""] * 14)]  # fmt: skip
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", header, rows)
    built = build(root, "--labeler", "chexpert_csv")
    labels = {key[-1]: dict(zip(CONDITIONS, row["labels"], strict=True)) for key, row in built.by_study.items()}
    assert labels["3"] == {**dict.fromkeys(CONDITIONS, 0), "Edema": CheXpertState.POSITIVE}
    assert labels["5"]["Fracture"] == CheXpertState.UNCERTAIN and labels["5"]["Edema"] == CheXpertState.NEGATIVE
    assert ("50000001", "study", "the CheXpert table does not list it") in reasons(built) and "1" not in labels
    assert built.note["labeler"] == "chexpert_csv"


def test_limit_takes_whole_subjects_of_each_split(tmp_path, build):
    images = [*IMAGES, ("g0", "13000000", "50000007", "train", "PA", "21300101", "1.0")]
    built = build(write_tree(tmp_path / "mimic", images=images), "--limit", 1)
    assert built.note["rows"] == {"train": 4, "validation": 1, "test": 1} and len(built.skipped) == 2  # no frontal


# --- images ------------------------------------------------------------------------------------------------------


def grey(size=(40, 60), value=100) -> Image.Image:
    return Image.fromarray(np.full(size, value, np.uint8))


def with_images(root: Path, suffix=".jpg") -> Path:
    for dicom_id, subject, study, *_ in IMAGES:
        folder = root / path_of(subject, study)
        folder.mkdir(parents=True, exist_ok=True)
        if suffix == ".dcm":
            write_dicom(folder / f"{dicom_id}.dcm", np.arange(2400, dtype=np.uint16).reshape(40, 60))
        else:
            grey().save(folder / f"{dicom_id}{suffix}")
    return root


@pytest.mark.parametrize(("side", "size"), [("longest", (30, 20)), ("shortest", (45, 30))])  # of 60 x 40
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".dcm"])
def test_images_are_stored_once_at_the_models_size(tmp_path, build, suffix, side, size):
    root = with_images(write_tree(tmp_path / "mimic"), suffix)
    built = build(root, "--images", root, "--image_size", 30, "--image_size_of", side)
    row = built.by_study["50000003"]
    assert [image.size for image in row["images"]] == [size] * 2 and row["views"] == ["PA", "LATERAL"]
    assert (built.note["image_size"], built.note["image_size_of"]) == (30, side)
    stored = read_dataset(str(built.out))["train"].with_format("arrow")[:]["images"].to_pylist()
    digest = {hashlib.sha256(image["bytes"]).hexdigest() for images in stored for image in images}
    with (built.out / "manifest.csv").open(newline="") as file:
        manifest = {row["image"]: row for row in csv.DictReader(file)}
    assert len(manifest) == len(IMAGES) and digest <= {each["sha256"] for each in manifest.values()}
    assert f"{path_of('10000032', '50000003')}/a0{suffix}" in manifest


def test_size_0_stores_the_files_own_bytes(tmp_path, build):
    root = with_images(write_tree(tmp_path / "mimic"))
    built = build(root, "--images", root, "--image_size", 0)
    own = hashlib.sha256((root / path_of("11000000", "50000005") / "e0.jpg").read_bytes()).hexdigest()
    assert own in (built.out / "manifest.csv").read_text()


def test_a_study_keeps_the_images_that_can_be_read(tmp_path, build):
    root = with_images(write_tree(tmp_path / "mimic"))
    folder = root / path_of("10000032", "50000003")
    (folder / "a1.jpg").write_bytes(b"\xff\xd8 not a picture")
    (root / path_of("11000000", "50000005") / "e0.jpg").unlink()
    (root / path_of("12000000", "50000006") / "f0.jpg").unlink()
    write_dicom(root / path_of("12000000", "50000006") / "f0.dcm", np.zeros((8, 8), np.uint16))
    cut = root / path_of("12000000", "50000006") / "f0.dcm"
    cut.write_bytes(cut.read_bytes()[:-40])
    built = build(root, "--images", root)
    assert built.by_study["50000003"]["views"] == ["PA"] and built.by_study["50000003"]["scenario"] == "sn"
    assert reasons(built) >= {
        ("50000003", "image", "its file cannot be read"),
        ("50000005", "image", "there is no file of it"),
        ("50000005", "study", "none of its images can be read"),
        ("50000006", "image", "its file cannot be read"),  # a corrupt DICOM
    }
    assert any("f0.dcm" in each.detail for each in built.skipped)
    assert built.note["counts"]["image left out: its file cannot be read"] == 2
    assert not (built.out / "validation.parquet").exists()  # of which nothing is left


def test_an_image_outside_its_folder_is_not_read(tmp_path, build):
    images = [*IMAGES, ("../../../../secret", "11000000", "50000005", "validate", "AP", "21300101", "100000.0")]
    root = with_images(write_tree(tmp_path / "mimic", images=images))
    grey(value=7).save(tmp_path / "mimic" / "secret.jpg")
    built = build(root, "--images", root)
    assert ("50000005", "image", "its path would leave the folder of images") in reasons(built)
    assert built.by_study["50000005"]["views"] == ["PA"]


RAMP = np.array([[0, 1000], [2000, 4000]], np.uint16)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, [[0, 64], [128, 255]]),  # own minimum and maximum: 1000 / 4000 * 255 = 63.75
        ({"PhotometricInterpretation": "MONOCHROME1"}, [[255, 191], [128, 0]]),  # 0 is white; 191.25, 127.5
        ({"WindowCenter": 1000.5, "WindowWidth": 2001}, [[0, 127], [255, 255]]),  # (1000 / 2000) * 255 = 127.5
        ({"WindowCenter": [1000.5, 50], "WindowWidth": [2001, 9]}, [[0, 127], [255, 255]]),  # the first window
        ({"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000.5, "WindowWidth": 4001},
         [[0, 127], [255, 255]]),  # rescaled to -1000, 1000, 3000, 7000; (1000 + 1000) / 4000 * 255 = 127.5
        ({"WindowCenter": 1000.5, "WindowWidth": 2001, "PhotometricInterpretation": "MONOCHROME1"},
         [[255, 127], [0, 0]]),
        ({"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}, [[0, 64], [128, 255]]),  # signed
    ],
)  # fmt: skip
def test_dicom_becomes_8_bit_grey(tmp_path, tags, expected):
    write_dicom(tmp_path / "x.dcm", RAMP, **tags)
    assert np.abs(np.asarray(load_dicom(tmp_path / "x.dcm")).astype(int) - expected).max() <= 1  # rounding of halves


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is no DICOM file"),
        (b"", "is no DICOM file"),
        ("cut", "cannot be decoded|damaged"),
        ("header", "damaged or incomplete"),
    ],
)
def test_a_damaged_dicom_is_named(tmp_path, content, message):
    file = tmp_path / "x.dcm"
    write_dicom(file, RAMP)
    file.write_bytes({"cut": file.read_bytes()[:-3], "header": file.read_bytes()[:180]}.get(content, content))
    with pytest.raises(InputError, match=f"x.dcm.*({message})"):
        load_dicom(file)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (None, "there is no report of it"),
        (b"", "the report is empty"),
        (b" \n\n", "the report is empty"),
        ("FINAL REPORT\n FINDINGS: Caf\xe9.".encode("latin-1"), "the report is not UTF-8 text"),
        ("WET READ: Pneumonia.", "it holds no final report"),
        ("FINAL REPORT\n FINDINGS: ___", "it holds no final report"),  # nothing of it is left
        ("FINAL REPORT\n HISTORY: Cough.", "it has no findings+impression"),
    ],
)
def test_a_study_without_a_usable_report_is_listed(tmp_path, build, report, reason):
    built = build(write_tree(tmp_path / "mimic", reports={("10000032", "50000003"): report}))
    assert ("50000003", "study", reason) in reasons(built) and "50000003" not in built.by_study
    assert built.note["counts"][f"study left out: {reason}"] == 1
    assert len(built.rows) == 5 and built.by_study["50000001"]["prior_report"] is None


@pytest.mark.parametrize("cleaning", ["plain", "r2gen", "rg4"])
def test_a_target_without_words_is_none_under_any_cleaning(tmp_path, build, cleaning):
    """De-identified away; cleaned as R2Gen does it, "xxxx ." would be a report."""
    reports = {("11000000", "50000005"): "FINAL REPORT\n FINDINGS: XXXX.\n \n IMPRESSION: No edema.\n"}
    root = write_tree(tmp_path / "mimic", reports=reports)
    built = build(root, "--target", "findings", "--cleaning", cleaning)
    assert ("50000005", "study", "it has no findings") in reasons(built) and "50000005" not in built.by_study
    both = build(root, "--cleaning", cleaning).by_study["50000005"]
    assert both["findings"] is None and both["report"] == both["impression"]
    assert both["report"].lower().replace(" ", "") == "noedema."


def test_studies_that_only_one_file_knows_are_listed(tmp_path, build):
    reports = {("19000000", "59999999"): CLEAR}  # in the zip only
    split = [(i[0], i[2], i[1], i[3]) for i in IMAGES[:-1]]  # lacks 50000006
    split.append(("z0", "58888888", "10000032", "train"))  # in the split only
    built = build(write_tree(tmp_path / "mimic", reports=reports, split=split))
    assert reasons(built) >= {
        ("59999999", "study", "no CSV names it"),
        ("50000006", "study", "the split file does not name it"),
        ("58888888", "study", "the metadata does not list it"),
    }
    assert len(built.rows) == 5


def test_duplicates_are_listed(tmp_path, build):
    images = [
        *IMAGES,
        IMAGES[0],  # the same row again
        ("g0", "13000000", "50000005", "train", "PA", "21300101", "1.0"),  # the study of another subject
        ("h0", "14x", "50000008", "train", "PA", "21300101", "1.0"),
    ]
    root = write_tree(tmp_path / "mimic", images=images, reports={("14x", "50000008"): None})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(root / "mimic-cxr-reports.zip", "a") as archive:
        archive.writestr(path_of("12000000", "50000006") + ".txt", "Another text.")
    changed("metadata", lambda text: text + b"cut,1500")(root)  # a line that ends in its middle
    built = build(root)
    assert reasons(built) >= {
        ("", "row", "subject_id or study_id is no number"),
        ("50000003", "row", "the image stands in an earlier row"),
        ("50000005", "study", "the CSVs file it under more than one subject or study"),
        ("50000006", "study", "there are two reports of it"),
        ("50000008", "row", "subject_id or study_id is no number"),
    }
    assert any(each.place.endswith("split.csv.gz:9") for each in built.skipped)  # line 1 holds the columns' names
    assert sorted(built.by_study) == ["50000001", "50000002", "50000003", "50000004"]


def test_rows_that_contradict_each_other_are_listed(tmp_path, build):
    split = [(i[0], i[2], i[1], i[3]) for i in IMAGES[:-2]] + [("e0", "50000006", "12000000", "test")]
    built = build(write_tree(tmp_path / "mimic", split=split))
    reason = "the CSVs file it under more than one subject or study"
    assert reasons(built) >= {("50000005", "study", reason), ("50000006", "study", reason)}  # e0 is of the first
    assert len(built.rows) == 4


def test_a_report_with_a_models_own_token_is_listed(tmp_path, build):
    reports = {("11000000", "50000005"): CLEAR.replace("clear", "clear <|im_end|>")}
    built = build(write_tree(tmp_path / "mimic", reports=reports))
    assert ("50000005", "study", "its text holds what a model reads as a token of its own") in reasons(built)


def test_a_report_under_another_subject_is_listed(tmp_path, build):
    reports = {("11000000", "50000005"): None, ("12000000", "50000005"): CLEAR}
    built = build(write_tree(tmp_path / "mimic", reports=reports))
    assert ("50000005", "study", "its report lies under another subject") in reasons(built)


def test_a_damaged_member_of_the_archive_is_listed(tmp_path, build):
    root = write_tree(tmp_path / "mimic", reports={("12000000", "50000006"): CLEAR + " Unique words."})
    content = bytearray((root / "mimic-cxr-reports.zip").read_bytes())
    at = content.rfind(b"s50000006.txt", 0, content.rfind(b"PK\x01\x02")) + 20
    content[at : at + 4] = b"\0\0\0\0"
    (root / "mimic-cxr-reports.zip").write_bytes(content)
    assert ("50000006", "study", "the report cannot be read") in reasons(build(root))


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_a_zip_are_read_as_zipfile_reads_them(tmp_path, packing):
    """Also behind other bytes, with the extra fields that a long name's archive has, and from a stream."""
    file = tmp_path / "mimic-cxr-reports.zip"
    file.write_bytes(b"a self-extracting archive")
    with zipfile.ZipFile(file, "a", packing) as archive:
        for number in range(3):
            name = zipfile.ZipInfo(f"mimic/files/p10/p10000032/s5000000{number}.txt", (2019, 1, 1, 0, 0, 0))
            name.compress_type, name.extra = packing, b"UT\5\0\1\0\0\0\0" * number
            with archive.open(name, "w", force_zip64=number == 2) as member:
                member.write(CLEAR.encode() * (number + 1))
    listed = mimic.list_reports(file)
    with mimic.open_reports(str(file)) as read:
        for number in range(3):
            [(_, name, _, member)] = listed[f"5000000{number}"]
            study = mimic.Study("", "", "", None, None, (), name, "", member, None)
            assert read(study) == CLEAR.encode() * (number + 1)


def test_a_zip_that_is_packed_in_another_way_is_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("files/p10/p10000032/s50000001.txt", CLEAR)
    with pytest.raises(InputError, match=r"r\.zip is packed in another way"):
        mimic.list_reports(tmp_path / "r.zip")


def without(name: str):
    return lambda root: (root / name).unlink()


def rewritten(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (without("mimic-cxr-reports.zip"), (), "mimic holds no mimic-cxr-reports.zip.*--reports"),
        (without("mimic-cxr-2.0.0-split.csv.gz"), (), "holds no mimic-cxr.*split.*--split_file"),
        (without("mimic-cxr-2.0.0-metadata.csv.gz"), (), "holds no mimic-cxr.*metadata.*--metadata"),
        (None, ("--labeler", "chexpert_csv"), "holds no mimic-cxr.*chexpert.*--chexpert"),
        (rewritten("mimic-cxr-2.0.0-split.csv", b"x"), (), "split.csv, .*split.csv.gz; name the one"),
        (rewritten("mimic-cxr-2.0.0-split.csv.gz", b"not gzip"), (), "split.csv.gz cannot be read as a CSV"),
        (rewritten("mimic-cxr-2.0.0-split.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-9]), (), "cannot be read"),
        (rewritten("mimic-cxr-2.0.0-split.csv.gz", gzip.compress(b"")), (), "cannot be read as a CSV"),
        (rewritten("mimic-cxr-reports.zip", b"PK not"), (), "reports.zip is no complete zip archive"),
        (changed("split", lambda text: text.splitlines()[0] + b"\n"), (), "split.csv.gz has no row"),
        (
            changed("split", lambda text: text.replace(b"dicom_id", b"image")),
            (),
            "has no column dicom_id .it has image",
        ),
        (changed("split", lambda text: text.replace(b"test", b"dev")), (), "train, validate or test, found 'dev'"),
        (changed("split", lambda text: text.replace(b",train", b",test", 1)), (), "subject 10000032 is in more than"),
        (changed("metadata", lambda text: text.replace(b"StudyDate", b"Date")), (), "has no column StudyDate"),
        (changed("metadata", lambda text: text.replace(b"LATERAL", b"LAT\xe9RAL")), (), "metadata.*is not UTF-8"),
        (None, ("--split_file", "{tmp}/gone.csv"), "--split_file: there is no .*gone.csv"),
        (None, ("--split_file", "{tmp}/bad.json"), "bad.json is no annotation.json"),
        (None, ("--root", "{tmp}/gone"), "there is no folder .*gone"),
        (None, ("--images", "{tmp}"), "--images .* holds no folder files/"),
        (None, ("--target", "all"), "invalid choice: 'all'"),
        (None, ("--cleaning", "none"), "invalid choice: 'none'"),
        (None, ("--workers", "0"), "--workers must be 1 or more, not 0"),
        (None, ("--labeler", "chexber"), "there is no labeler 'chexber'"),
        (None, ("--out", "{tmp}"), "exists and is no earlier build"),
        (None, ("--sample_unit", "patient"), "sample_unit"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, build, spoil, arguments, message):
    root = write_tree(tmp_path / "mimic")
    (tmp_path / "bad.json").write_text('{"train": [{"id": 1}], "val": [], "test": []}')
    if spoil:
        spoil(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        build(root, *(str(each).format(tmp=tmp_path) for each in arguments))
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_ids_that_are_no_numbers_leave_nothing(tmp_path, build):
    images = [(i[0], "x" + i[1], *i[2:]) for i in IMAGES]
    with pytest.raises(InputError, match="no row of the column subject_id can be read, 'x10000032' first"):
        build(write_tree(tmp_path / "mimic", images=images, reports={("10000001", "50000001"): CLEAR}))


def test_no_usable_study_is_an_error(tmp_path, build):
    with pytest.raises(InputError, match="no study can be used; most often: study left out: the report is empty"):
        build(write_tree(tmp_path / "mimic", reports={(i[1], i[2]): b"" for i in IMAGES}))
    assert not (tmp_path / "out").exists()


# --- many processes, stopping, going on --------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(mimic, "STUDIES_PER_SHARD", 20)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, build, small_shards):
    make_tree(tmp_path / "mimic", 120)
    one = build(tmp_path / "mimic", out=tmp_path / "one")
    two = build(tmp_path / "mimic", "--workers", 2, out=tmp_path / "two")
    assert digests(one.out) == digests(two.out) and len(digests(one.out)) >= 4


def test_a_worker_loads_no_torch():
    """Each worker imports the script, and holds what that imports for itself: torch alone would be half a gigabyte."""
    code = (
        "import sys, recipes.build_mimic_cxr; print(*{'torch', 'transformers', 'trl', 'modeling'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not process.stdout.strip()


def test_a_stopped_run_goes_on(tmp_path, build, monkeypatch, capsys, small_shards):
    make_tree(tmp_path / "mimic", 120)
    whole = digests(build(tmp_path / "mimic", out=tmp_path / "whole").out)
    written, build_shard = [], mimic.build_shard

    def stop(studies, settings, file):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(file)
        build_shard(studies, settings, file)

    monkeypatch.setattr(mimic, "build_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "mimic")
    assert not (tmp_path / "out").exists() and len(list((tmp_path / ".out.parts").iterdir())) == 3
    monkeypatch.setattr(mimic, "build_shard", lambda *work: written.append(work[2]) or build_shard(*work))
    assert digests(build(tmp_path / "mimic").out) == whole
    assert len(written) == len(set(written)) and "3 of " in capsys.readouterr().out  # none was made twice


def test_shards_of_other_arguments_or_inputs_are_not_used(tmp_path, monkeypatch, call, build, small_shards):
    root = write_tree(tmp_path / "mimic")
    monkeypatch.setattr(mimic, "join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for arguments in ((), ("--target", "findings")):
        with pytest.raises(KeyboardInterrupt):
            build(root, *arguments)
    write_tree(root, reports={("11000000", "50000005"): CLEAR.replace("clear", "grey")})
    with pytest.raises(KeyboardInterrupt):
        build(root)
    assert len(list((tmp_path / ".out.parts").iterdir())) == 3 + 3 + 1  # three splits, twice, and the changed one


@pytest.mark.parametrize("zipped", [True, False])
def test_the_stamp_of_a_report_is_that_of_its_bytes(tmp_path, zipped):
    """A report of equal length, as one mistyped letter makes it, is another report; the same one is the same."""
    key, stamps = ("11000000", "50000005"), []
    for number, text in enumerate((CLEAR, CLEAR, CLEAR.replace("clear", "cloud"), CLEAR + "\n")):
        root = write_tree(tmp_path / f"{number}", reports={key: text}, zipped=zipped)
        if not zipped:
            moment = 10**9 * (1 + (text != CLEAR))  # a folder has no sum of its files' bytes: their time stands for it
            os.utime(root / f"{path_of(*key)}.txt", ns=(moment, moment))
        listed = mimic.list_reports(root / "mimic-cxr-reports.zip" if zipped else root)
        [(subject, name, stamp, _)] = listed["50000005"]
        assert (subject, name) == ("11000000", f"{path_of(*key)}.txt")
        stamps.append(stamp)
    first, same, other, longer = stamps
    assert first == same and len({first, other, longer}) == 3


def test_a_changed_report_of_equal_length_is_built_anew(tmp_path, build, monkeypatch):
    root = write_tree(tmp_path / "mimic")
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(mimic, "join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        build(root)
    write_tree(root, reports={("11000000", "50000005"): CLEAR.replace("clear", "cloud")})
    assert build(root).by_study["50000005"]["findings"] == "The lungs are cloud."


def test_a_killed_process_leaves_nothing_half_written(tmp_path):
    make_tree(tmp_path / "mimic", 3000)
    command = [
        sys.executable,
        ROOT / "recipes/build_mimic_cxr.py",
        "--root",
        "mimic",
        "--out",
        "out",
        "--workers",
        "1",
    ]
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    with subprocess.Popen(command, **settings, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.parts/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.parts/*.parquet"))
    done = subprocess.run(command, cwd=tmp_path, env=settings["env"], capture_output=True, text=True, check=True)
    assert "are there from an earlier run" in done.stdout
    assert sum(read_build(tmp_path / "out")["rows"].values()) == 3000 and not (tmp_path / ".out.parts").exists()


def test_a_full_disk_keeps_the_earlier_build(tmp_path, build, monkeypatch):
    root = write_tree(tmp_path / "mimic")
    before = digests(build(root).out)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(mimic.parquet.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space"):
        build(root, "--target", "findings")
    assert digests(tmp_path / "out") == before and not list((tmp_path / ".out.parts").iterdir())


@pytest.mark.parametrize("reason", [None, "invented text"])
def test_a_build_that_is_pushed(tmp_path, build, monkeypatch, reason):
    """tests/recipes/test_hub.py has what `push_dataset` does."""
    calls = []
    monkeypatch.setattr("recipes.hub.dataset.push_dataset", lambda *given: calls.append(given))
    arguments = ["--push_to_hub", "me/mimic", *(["--public_because", reason] if reason else [])]
    built = build(write_tree(tmp_path / "mimic"), *arguments)
    assert calls == [(built.out, "me/mimic", reason)]


def saved_again(tmp_path: Path, **columns: list[str]) -> Path:
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_a_table_that_pandas_saved_again_is_read(tmp_path):
    file = saved_again(
        tmp_path,
        subject_id=["10000032.0", "10000198"],
        StudyDate=["21530102.0", "2153-01-02"],
        ViewPosition=["pa", " LATERAL"],
    )
    table = mimic.read_table(file, ("subject_id", "StudyDate", "ViewPosition"))
    assert table.to_numpy().tolist() == [["10000032", "21530102", "PA"], ["10000198", "21530102", "LATERAL"]]


@pytest.mark.parametrize(("name", "value"), [("StudyDate", "02/01/2153"), ("subject_id", "p10"), ("study_id", "5e7")])
def test_a_column_of_which_no_row_can_be_read_stops_the_build(tmp_path, name, value):
    file = saved_again(tmp_path, **{name: [value, value]})
    with pytest.raises(InputError, match=rf"no row of the column {name} can be read, '{re.escape(value)}' first"):
        mimic.read_table(file, (name,))
    file = saved_again(tmp_path, **{name: [value, "21530102"]})
    assert mimic.read_table(file, (name,))[name].tolist() == [value, "21530102"]  # one row: left out where it is used
