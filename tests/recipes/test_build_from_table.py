"""A lab's own table becomes a data set: every kind of file, every rule of columns, and no study lost in silence."""

import csv
import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from recipes import build_from_table
from recipes.data.columns import TableReader, age_of, match_columns, moment_of, names_in
from recipes.data.schema import read_build, read_dataset
from recipes.data.studies import Moment, PlainStudy, Settings, assign_splits, link_priors
from recipes.data.tables import Record, absent, read_records
from recipes.data.views import view_in_name, view_name
from recipes.files import InputError
from rewards.labels import CONDITIONS, CheXpertState

REPORT = "FINDINGS: Small left pleural effusion. No pneumothorax.\nIMPRESSION: Effusion."
ROWS = [
    {"study_id": "s1", "subject_id": "p1", "image": "a_pa.png", "report": REPORT, "study_date": "20240101"},
    {"study_id": "s1", "subject_id": "p1", "image": "a_lateral.png", "report": REPORT, "study_date": "20240101"},
    {"study_id": "s2", "subject_id": "p1", "image": "b_pa.png", "report": "Clear lungs.", "study_date": "20240301"},
    {"study_id": "s3", "subject_id": "p2", "image": "c_ap.png", "report": "Cardiomegaly.", "study_date": "20240101"},
    {"study_id": "s4", "subject_id": "p3", "image": "d_pa.png", "report": "Edema.", "study_date": "20240101"},
]


@pytest.fixture
def lab(tmp_path):
    """A folder with `images` for ROWS, each of a shade of its own."""
    (tmp_path / "images").mkdir()
    for shade, row in enumerate(ROWS):
        Image.new("L", (80 + shade, 60), 40 * shade).save(tmp_path / "images" / row["image"])
    return tmp_path


def write_csv(file: Path, rows: list[dict], delimiter: str = ",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def build(lab: Path, table: Path, *more: str, monkeypatch, images: str | None = None) -> dict[str, list[dict]]:
    """The rows per split that the script writes to lab/out."""
    words = [
        "build_from_table.py",
        "--table",
        str(table),
        "--images",
        images or str(lab / "images"),
        "--source",
        "ours",
    ]
    words += ["--license", "internal", "--out", str(lab / "out"), "--workers", "1", *more]
    monkeypatch.setattr(sys, "argv", words)
    build_from_table.main()
    return {split: rows.to_list() for split, rows in read_dataset(str(lab / "out"), bare=True).items()}


def by_study(splits: dict[str, list[dict]]) -> dict[str, dict]:
    return {row["study_id"]: row for rows in splits.values() for row in rows}


def sizes(row: dict) -> list[tuple[int, int]]:
    return [Image.open(io.BytesIO(image["bytes"])).size for image in row["images"]]


def test_rows_of_a_table_become_studies(lab, monkeypatch):
    rows = by_study(build(lab, write_csv(lab / "studies.csv", ROWS), monkeypatch=monkeypatch))
    assert set(rows) == {"s1", "s2", "s3", "s4"}
    first, second = rows["s1"], rows["s2"]
    assert first["views"] == ["PA", "LATERAL"] and sizes(first) == [(80, 60), (81, 60)]
    assert first["findings"] == "Small left pleural effusion. No pneumothorax." and first["impression"] == "Effusion."
    assert first["report"] == f"{first['findings']} Effusion."
    assert first["scenario"] == "mn" and first["labels"][9] == 1 and first["labels"][8] == 2  # effusion, pneumothorax
    assert second["prior_report"] == first["report"] and second["scenario"] == "sw"
    assert second["report"] == "Clear lungs." and second["findings"] is None
    assert {row["source"] for row in rows.values()} == {"ours"} and rows["s3"]["license"] == "internal"
    assert read_build(lab / "out")["rows"] == {"train": 2, "validation": 1, "test": 1}  # a subject or more each


def test_every_kind_of_table_gives_the_same_rows(lab, monkeypatch):
    import pandas

    studies = [
        {**ROWS[0], "image": ["a_pa.png", "a_lateral.png"]},
        *[{**row, "image": [row["image"]]} for row in ROWS[2:]],
    ]
    frame = pandas.DataFrame(studies)
    frame.to_parquet(lab / "studies.parquet")
    (lab / "studies.json").write_text(json.dumps(studies))
    (lab / "studies.jsonl").write_text("\n".join(map(json.dumps, studies)))
    (lab / "by_id.json").write_text(json.dumps({row.pop("study_id"): row for row in [dict(row) for row in studies]}))
    write_csv(lab / "studies.tsv", ROWS, "\t")
    write_csv(lab / "semicolons.csv", [{**row, "image": ";".join(names_in(row["image"]))} for row in studies], "|")
    (lab / "packed.csv.gz").write_bytes(gzip.compress(write_csv(lab / "c.csv", ROWS).read_bytes()))
    (lab / "marked.csv").write_bytes((lab / "c.csv").read_text().encode("utf-8-sig"))
    (lab / "wide.csv").write_bytes((lab / "c.csv").read_text().encode("utf-16"))
    turns = [
        {
            **{name: row[name] for name in ("study_id", "subject_id", "image", "study_date")},
            "conversations": [
                {"from": "human", "value": "<image>\nWrite the report."},
                {"from": "gpt", "value": row["report"]},
            ],
        }
        for row in studies
    ]
    (lab / "llava.json").write_text(json.dumps(turns))
    expected = build(lab, lab / "c.csv", monkeypatch=monkeypatch)
    for name in ("studies.parquet", "studies.json", "studies.jsonl", "by_id.json", "studies.tsv", "semicolons.csv",
                 "packed.csv.gz", "marked.csv", "wide.csv", "llava.json"):  # fmt: skip
        assert build(lab, lab / name, monkeypatch=monkeypatch) == expected, name


def write_sheet(file: Path, rows: list[list]) -> None:
    """An Excel workbook by hand: texts inline, numbers as floats, dates as days since 1899-12-30 in a date's style."""
    from datetime import date

    def cell(value) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        number, style = (
            ((value - date(1899, 12, 30)).days, ' s="1"') if isinstance(value, date) else (float(value), "")
        )
        return f"<c{style}><v>{number}</v></c>"

    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kinds = {"workbook": "xl/workbook.xml", "worksheet": "worksheets/sheet1.xml", "styles": "styles.xml"}
    relation = {
        kind: f'<Relationship Id="{kind}" Type="{office}/{kind}" Target="{path}"/>' for kind, path in kinds.items()
    }
    relation["workbook"] = relation["workbook"].replace(f"{office}/workbook", f"{office}/officeDocument")
    links = f'<Relationships xmlns="{package}/relationships">{{}}</Relationships>'
    sheet = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType='
        f'"application/xml"/><Override PartName="/xl/workbook.xml" ContentType="{sheet}.sheet.main+xml"/></Types>',
        "_rels/.rels": links.format(relation["workbook"]),
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{office}"><sheets>'
        '<sheet name="a" sheetId="1" r:id="worksheet"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": links.format(relation["worksheet"] + relation["styles"]),
        "xl/styles.xml": f'<styleSheet {main}><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
        "</styleSheet>",
        "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData>{lines}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def test_sheets_dates_and_numbers_are_read_as_a_csv_has_them(lab, monkeypatch):
    from datetime import datetime

    lines = [["study_id", "subject_id", "image", "report", "study_date"]]
    for row in ROWS:
        date = datetime.strptime(row["study_date"], "%Y%m%d").date()
        lines.append([int(row["study_id"][1:]), row["subject_id"], row["image"], row["report"], date])
    write_sheet(lab / "studies.xlsx", lines)
    rows = by_study(build(lab, lab / "studies.xlsx", monkeypatch=monkeypatch))
    assert set(rows) == {"1", "2", "3", "4"} and rows["2"]["prior_report"] == rows["1"]["report"]
    (lab / "broken.xlsx").write_bytes((lab / "studies.xlsx").read_bytes()[:300])
    with pytest.raises(InputError, match=r"broken\.xlsx is no workbook"):
        read_records(lab / "broken.xlsx")


def test_r2gen_annotation_with_one_row_per_image_and_other_folders(lab, monkeypatch):
    """R2Gen's MIMIC file: a row per image, its path from another machine's root, "val", and .jpg for .png."""
    entries = [
        {"id": row["image"][0] + "x", "study_id": row["study_id"], "subject_id": row["subject_id"],
         "report": row["report"], "image_path": [f"/data/mimic/images/{row['image'][:-4]}.jpg"]}
        for row in ROWS
    ]  # fmt: skip
    table = lab / "annotation.json"
    table.write_text(json.dumps({"train": entries[:3], "val": entries[3:4], "test": entries[4:]}))
    splits = build(lab, table, monkeypatch=monkeypatch)
    assert {split: [row["study_id"] for row in rows] for split, rows in splits.items()} == {
        "train": ["s1", "s2"],
        "validation": ["s3"],
        "test": ["s4"],
    }
    assert len(splits["train"][0]["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (("--target", "findings"), CheXpertState.BLANK),  # the heart stands in the impression alone
        (("--target", "findings+impression", "--cleaning", "r2gen"), CheXpertState.POSITIVE),
    ],
)
def test_labels_are_those_of_the_target_before_its_cleaning(lab, monkeypatch, arguments, state):
    rows = [row | {"report": "FINDINGS: Clear lungs.\nIMPRESSION: Cardiomegaly."} for row in ROWS]
    studies = by_study(build(lab, write_csv(lab / "t.csv", rows), *arguments, monkeypatch=monkeypatch))
    assert studies["s1"]["labels"][CONDITIONS.index("Cardiomegaly")] == state


def test_headers_that_are_not_known_are_counted(lab, monkeypatch):
    rows = [row | {"report": "FINDINGS: Clear.\nBOWEL GAS: Normal.\nIMPRESSION: Normal."} for row in ROWS]
    build(lab, write_csv(lab / "t.csv", rows), monkeypatch=monkeypatch)
    assert read_build(lab / "out")["counts"]["header not known: BOWEL GAS"] == 4


def test_an_imagefolder_with_a_folder_per_split(lab, monkeypatch):
    for split, row in zip(("train", "valid", "test"), ROWS[2:], strict=True):
        folder = lab / "folder" / split
        folder.mkdir(parents=True)
        (lab / "images" / row["image"]).rename(folder / row["image"])
        line = {"file_name": row["image"], "text": row["report"], "patient": row["subject_id"]}
        (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    splits = build(lab, lab / "folder", images=str(lab / "folder"), monkeypatch=monkeypatch)
    assert {split: rows[0]["report"] for split, rows in splits.items()} == {
        "train": "Clear lungs.",
        "validation": "Cardiomegaly.",
        "test": "Edema.",
    }


def test_a_folder_of_vilmedics(lab, monkeypatch):
    """Parallel lines, a file for each split and column; a study's images stand between commas."""
    folder = lab / "vilmedic"
    folder.mkdir()
    for split, report, images in (
        ("train", ["clear lungs .", "small effusion ."], ["b_pa.png", "a_pa.png,a_lateral.png"]),
        ("validate", ["cardiomegaly ."], ["c_ap.png"]),
        ("test", ["edema ."], ["d_pa.png"]),
    ):
        (folder / f"{split}.report.tok").write_text("\n".join(report) + "\n")
        (folder / f"{split}.image.tok").write_text("\n".join(images) + "\n")
    splits = build(lab, folder, "--no_subjects", monkeypatch=monkeypatch)
    assert {split: [row["report"] for row in rows] for split, rows in splits.items()} == {
        "train": ["clear lungs.", "small effusion."], "validation": ["cardiomegaly."], "test": ["edema."],
    }  # fmt: skip
    assert splits["train"][1]["views"] == ["PA", "LATERAL"]
    (folder / "train.image.tok").write_text("b_pa.png\n")
    with pytest.raises(InputError, match=r"train\.image\.tok has 1, train\.report\.tok has 2 lines"):
        read_records(folder)


def test_llmrg4s_annotation(lab, monkeypatch):
    """An s and 0 stand for what is absent; MIMIC-CXR's ids come from the path, the report before from its own keys."""
    (lab / "images" / "p10" / "p10000032" / "s50000001").mkdir(parents=True)
    (lab / "images" / "a_pa.png").rename(lab / "images" / "p10" / "p10000032" / "s50000001" / "a.png")
    entry = {
        "id": "a", "finding": "s", "impression": "No pneumonia.", "APPA_flag": "AP",
        "APPA_imagepath": "p10/p10000032/s50000001/a.jpg", "lateral_imagepath": "a_lateral.png",
        "last_APPA_imagepath": "x.jpg", "last_finding": "Large heart.", "last_impression": "s", "history": "Cough.",
        "indication": 0, "new_scores": [1.0, 2.0],
    }  # fmt: skip
    other = {"id": "b", "finding": "Clear lungs.", "impression": "s", "APPA_flag": "PA", "APPA_imagepath": "b_pa.png"}
    table = lab / "final_multi_view_with_long_add1score_sentence_level.json"
    table.write_text(json.dumps({"train": [entry], "val": [], "test": [other | {"subject_id": "p2"}]}))
    splits = build(lab, table, images=str(lab / "images"), monkeypatch=monkeypatch)
    [row] = splits["train"]
    assert row["study_id"] == "50000001" and row["subject_id"] == "10000032"
    assert row["report"] == "No pneumonia." and row["findings"] is None and row["prior_report"] == "Large heart."
    assert row["history"] == "Cough." and row["indication"] is None
    assert row["views"] == ["AP", "LATERAL"] and row["scenario"] == "mw"
    assert splits["test"][0]["report"] == "Clear lungs." and splits["test"][0]["scenario"] == "sn"


KAGGLE = [
    {"uid": "1", "MeSH": "normal", "Problems": "normal", "image": "Xray Chest PA and Lateral", "indication": "Cough.",
     "comparison": "None.", "findings": "Clear lungs.", "impression": "Normal chest."},
    {"uid": "2", "MeSH": "Cardiomegaly", "Problems": "Cardiomegaly", "image": "PA Chest", "indication": "",
     "comparison": "", "findings": "", "impression": "Cardiomegaly."},
]  # fmt: skip
PROJECTIONS = [
    {"uid": "1", "filename": "a_pa.png", "projection": "Lateral"},  # the table knows better than the name
    {"uid": "1", "filename": "b_pa.png", "projection": "Frontal"},
    {"uid": "2", "filename": "c_ap.png", "projection": ""},
    {"uid": "3", "filename": "d_pa.png", "projection": "Frontal"},
]


def test_kaggles_two_tables_of_openi(lab, monkeypatch, capsys):
    table = write_csv(lab / "indiana_reports.csv", KAGGLE)
    images = write_csv(lab / "indiana_projections.csv", PROJECTIONS)
    words = ("--image_table", str(images), "--columns", "study_id=uid", "subject_id=uid")
    rows = by_study(build(lab, table, *words, monkeypatch=monkeypatch))
    assert rows["1"]["report"] == "Clear lungs. Normal chest." and rows["1"]["indication"] == "Cough."
    assert rows["1"]["views"] == ["FRONTAL", "LATERAL"] and rows["1"]["images"][0]["bytes"] != b""
    assert rows["2"]["report"] == "Cardiomegaly." and rows["2"]["subject_id"] == "2"
    assert "4 images, 1 of no study" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        ({"uid": "number"}, (), r"projections\.csv has no column for study_id"),
        ({"filename": "which"}, (), r"projections\.csv has no column for images"),
        ({"filename": "which"}, ("images=which",), ""),
        ({}, ("images=which",), "has no column which"),
    ],
)
def test_two_tables_that_cannot_be_joined(lab, monkeypatch, changes, words, sentence):
    table = write_csv(lab / "indiana_reports.csv", KAGGLE)
    renamed = [{changes.get(name, name): value for name, value in row.items()} for row in PROJECTIONS]
    images = write_csv(lab / "projections.csv", renamed)
    words = ("--image_table", str(images), "--columns", "study_id=uid", "subject_id=uid", *words)
    if not sentence:
        assert len(by_study(build(lab, table, *words, monkeypatch=monkeypatch))) == 2
        return
    with pytest.raises(InputError, match=sentence):
        build(lab, table, *words, monkeypatch=monkeypatch)


def test_images_of_a_pattern_and_columns_by_name(lab, monkeypatch):
    rows = [{"AccNr": row["study_id"], "Pat": row["subject_id"], "Befund": row["report"]} for row in ROWS[2:]]
    for row, image in zip(rows, ("b_pa.png", "c_ap.png", "d_pa.png"), strict=True):
        (lab / "scans" / row["AccNr"]).mkdir(parents=True)
        (lab / "images" / image).rename(lab / "scans" / row["AccNr"] / image)
    table = write_csv(lab / "t.csv", rows, ";")
    columns = ("--columns", "study_id=AccNr", "subject_id=Pat")  # "Befund" is known
    studies = by_study(build(lab, table, *columns, images=f"{lab}/scans/{{study_id}}/*", monkeypatch=monkeypatch))
    assert studies["s3"]["views"] == ["AP"] and studies["s4"]["report"] == "Edema."


def test_a_folder_in_use_is_told_before_the_table_is_read(lab, monkeypatch):
    (lab / "out").mkdir()
    (lab / "out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="out exists and is no earlier result"):
        build(lab, lab / "no_such_table.csv", monkeypatch=monkeypatch)
    assert (lab / "out/thesis.txt").read_text() == "mine"


def test_reports_without_a_column_that_names_them(lab, monkeypatch):
    table = write_csv(lab / "studies.csv", ROWS)
    with pytest.raises(InputError, match="--reports is a folder of files that a column names"):
        build(lab, table, "--reports", str(lab), monkeypatch=monkeypatch)
    assert not (lab / "out").exists()


def test_what_is_left_out_is_counted_and_named(lab, monkeypatch):
    rows = [*ROWS, *[dict(ROWS[4], study_id=f"s{number}", subject_id=f"p{number}") for number in range(5, 9)]]
    rows[5]["report"], rows[6]["report"] = "None", "Clear. <|image_pad|>"
    rows[7]["image"] = "gone.png"
    (lab / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows[8]["image"] = "broken.png"
    build(lab, write_csv(lab / "t.csv", rows), monkeypatch=monkeypatch)
    with (lab / "out" / "skipped.csv").open() as file:
        entries = {(row["study_id"], row["left_out"]): row for row in csv.DictReader(file)}
    assert entries["s5", "study"]["reason"] == "it has no findings+impression"
    assert entries["s6", "study"]["detail"] == "<|image_pad|>"
    assert entries["s7", "image"]["detail"] == "gone.png" and entries["s7", "study"]["reason"] == "it has no image"
    assert "broken.png" in entries["s8", "image"]["detail"] and ("s8", "study") in entries
    assert entries["s5", "study"]["place"] == "t.csv, line 9"  # two rows of two lines, three of one
    assert read_build(lab / "out")["skipped"] == len(entries) == 6


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        ({"study_date": "03/04/2024"}, (), "--date_format"),
        ({"image": "elsewhere.png"}, (), r"5 of the 5 images .* not below --images"),
        ({"subject_id": ""}, (), "--no_subjects"),
        ({"split": "somewhere"}, (), "the split 'somewhere' is none of train, validation and test"),
        ({}, ("--columns", "text=report"), "there is no text"),
        ({}, ("--columns", "report=Text"), "has no column Text"),
        ({}, ("--fractions", "0.5", "0.5"), "--fractions"),
        ({"report": "-"}, (), "none of 4 studies can be used"),
        ({}, ("--limit", "-1"), "limit must be 0 or more"),
        ({}, ("--labeler", "mine"), "there is no labeler 'mine'"),
    ],
    ids=["date", "images", "subject", "split", "meaning", "column", "fractions", "reports", "limit", "labeler"],
)
def test_a_column_that_fails_stops_the_build(lab, monkeypatch, change, arguments, sentence):
    table = write_csv(lab / "t.csv", [row | change for row in ROWS])
    with pytest.raises(InputError, match=sentence):
        build(lab, table, *arguments, monkeypatch=monkeypatch)
    assert not (lab / "out").exists()


def test_check_writes_nothing(lab, monkeypatch, capsys):
    words = ["x", "--table", str(write_csv(lab / "t.csv", ROWS)), "--images", str(lab / "images"), "--source", "ours"]
    monkeypatch.setattr(sys, "argv", [*words, "--license", "l", "--out", str(lab / "out"), "--check"])
    build_from_table.main()
    printed = capsys.readouterr().out
    assert not (lab / "out").exists() and '"report": "Clear lungs."' in printed and "would be written" in printed


@pytest.mark.parametrize(
    "content",
    [
        "id,report\n".encode("utf-16-le"),
        b"",
        b"\xff\xfe",
        b"a,b\n1,2,3\n",
        b"study_id\n\xe4\n",
        b"[1, 2]",
        b'{"a": ',
        b"a,a\n1,2\n",
    ],
)
def test_a_damaged_table_is_told_in_one_sentence(tmp_path, content):
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.csv"):
        read_records(file)


def test_a_table_in_an_old_encoding_needs_its_name(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,report\n1,Erguß\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"1 of 3 lines, line 2 first; no encoding.*--encoding cp1252"):
        read_records(tmp_path / "t.csv")
    assert read_records(tmp_path / "t.csv", "cp1252")[0].values["report"] == "Erguß"
    for marked in ("utf-8-sig", "utf-16"):  # its mark says more than a name does
        (tmp_path / "t.csv").write_bytes("id,report\n1,Erguß\n".encode(marked))
        assert read_records(tmp_path / "t.csv", "cp1252")[0].values == {"id": "1", "report": "Erguß"}


def test_a_report_of_a_megabyte_is_one_cell(tmp_path):
    write_csv(tmp_path / "t.csv", [{"id": "1", "report": "a" * 1_000_000}])
    assert len(read_records(tmp_path / "t.csv")[0].values["report"]) == 1_000_000


################
# Cells
################


def test_moments_of_cells():
    assert moment_of("2024-03-01", None, None) == Moment(20240301)
    assert moment_of("20240301.0", "92505.0", None) == Moment(20240301, 9 * 3600 + 25 * 60 + 5)
    assert moment_of("2024-03-01 10:20:30", None, None) == Moment(20240301, 37230)
    assert moment_of("01.03.2024", "9:25", "%d.%m.%Y") == Moment(20240301, 33900)
    assert moment_of(" ", "10", None) is None
    for date, time in (("01/03/2024", None), ("20240399", None), ("20240301", "noon"), ("20240301", "25:00")):
        with pytest.raises(ValueError, match=r"date|day|time|month|unconverted"):
            moment_of(date, time, None)


def test_cells_that_say_nothing():
    assert all(map(absent, (None, "", " ", "None", "nan", "N/A", "None.", float("nan"), "-")))
    assert not any(map(absent, ("No change.", "normal", 0, "0")))


def test_ages_of_dicom():
    assert [age_of(text) for text in ("063Y", "018M", "002D", "77.0", 45, "old", "")] == [
        63.0, 1.5, 0.005, 77.0, 45.0, None, None,
    ]  # fmt: skip


def test_names_in_a_cell():
    for cell in (["a.png", "b.png"], '["a.png", "b.png"]', "['a.png', 'b.png']", "a.png;b.png", "a.png | b.png"):
        assert names_in(cell) == ["a.png", "b.png"]
    assert names_in("a, b.png") == ["a, b.png"] and names_in("") == []


def test_columns_by_the_names_of_the_field():
    columns = ["Study Date", "Patient-ID", "REPORT", "file_name", "AccessionNumber", "PatientAge", "notes"]
    assert match_columns(columns, {}) == {
        "study_id": "AccessionNumber", "subject_id": "Patient-ID", "images": "file_name", "report": "REPORT",
        "date": "Study Date", "age": "PatientAge",
    }  # fmt: skip


def test_views_of_columns_and_of_file_names():
    assert [view_name(text) for text in ("postero-anterior", "AP_horizontal", "left lateral", "", "LL", "Erect")] == [
        "PA", "AP", "LATERAL", "UNKNOWN", "LL", "FRONTAL",
    ]  # fmt: skip
    names = ("view1_frontal.jpg", "1001_pa.png", "patient2.png", "CXR_lat.png", "map.png", "x-AP-2.dcm")
    assert [view_in_name(name) for name in names] == ["FRONTAL", "PA", "UNKNOWN", "LATERAL", "UNKNOWN", "AP"]


def test_rows_of_one_study_with_two_subjects_or_texts(lab):
    rows = [dict(ROWS[0]), dict(ROWS[1], subject_id="p9"), dict(ROWS[1], report="Another text.")]
    records = [Record(row, f"line {number}") for number, row in enumerate(rows, start=2)]
    reader = TableReader(match_columns(ROWS[0], {}), str(lab / "images"))
    [study], skipped = reader.studies(records, subjects=True)
    assert study.report == REPORT and len(study.images) == 2
    assert [entry.place for entry in skipped] == ["line 3"] and "subject p1" in skipped[0].reason
    assert reader.notes["rows whose text differs from that of their study's first row, which stands"] == 1


################
# Order
################


def studies_of(*moments: tuple, subject: str = "p") -> list[PlainStudy]:
    return [
        PlainStudy(f"s{number}", subject, "", report=f"Report {number}.", moment=moment and Moment(*moment))
        for number, moment in enumerate(moments)
    ]


def priors_of(studies: list[PlainStudy]) -> list[str | None]:
    link_priors(studies, [])
    return [study.prior_report for study in studies]


def test_a_prior_is_certainly_earlier():
    # Days out of order; two studies of one day without times; one day with times; one without a date.
    studies = studies_of((20240301,), (20240101,), (20240301,), (20240401, 100.0), (20240401, 50.0), None)
    assert priors_of(studies) == ["Report 1.", None, "Report 1.", "Report 4.", "Report 2.", None]


def test_a_prior_of_another_subject_is_none():
    assert priors_of([*studies_of((20240101,)), *studies_of((20240301,), subject="q")]) == [None, None]


def test_a_prior_that_the_table_names_wins():
    studies = studies_of((20240101,), (20240201,), (20240301,))
    studies[2].prior_study_id, studies[1].prior_study_id = "s0", "absent"
    skipped = []
    link_priors(studies, skipped)
    assert studies[2].prior_report == "Report 0." and studies[1].prior_report is None
    assert [(entry.study_id, entry.detail) for entry in skipped] == [("s1", "absent")]


def test_splits_keep_subjects_whole_and_do_not_depend_on_the_order():
    studies = [PlainStudy(f"s{number}", f"p{number // 3}", "") for number in range(300)]
    assign_splits(studies, Settings("x", "y"))
    by_subject = {
        study.subject_id: {other.split for other in studies if other.subject_id == study.subject_id}
        for study in studies
    }
    assert all(len(splits) == 1 for splits in by_subject.values())
    assert Counter(next(iter(splits)) for splits in by_subject.values()) == {"train": 80, "validation": 10, "test": 10}
    expected = {study.study_id: study.split for study in studies}
    again = [PlainStudy(study.study_id, study.subject_id, "") for study in reversed(studies)]
    assign_splits(again, Settings("x", "y"))
    assert {study.study_id: study.split for study in again} == expected
    assign_splits(
        again_with_seed := [PlainStudy(s.study_id, s.subject_id, "") for s in studies], Settings("x", "y", seed=1)
    )
    assert {study.study_id: study.split for study in again_with_seed} != expected


def test_a_subject_in_two_splits_stops_or_moves():
    studies = [PlainStudy("a", "p", "", split="train"), PlainStudy("b", "p", "", split="test")]
    with pytest.raises(InputError, match="subject p is in the splits train and test"):
        assign_splits(studies, Settings("x", "y"))
    assign_splits(studies, Settings("x", "y", split_by_subject=True))
    assert [study.split for study in studies] == ["train", "train"]


def test_workers_write_the_same_file(lab, monkeypatch):
    table = write_csv(lab / "t.csv", ROWS)
    build(lab, table, monkeypatch=monkeypatch)
    alone = {file.name: file.read_bytes() for file in (lab / "out").glob("*.parquet")}
    command = [
        sys.executable,
        build_from_table.__file__,
        "--table",
        table,
        "--images",
        lab / "images",
        "--source",
        "ours",
    ]
    command += ["--license", "internal", "--out", lab / "out", "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    assert {file.name: file.read_bytes() for file in (lab / "out").glob("*.parquet")} == alone
