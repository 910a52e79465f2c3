"""The app: it asks as generate.py does, reads only X-rays, keeps nothing, and works in a real browser."""

import io
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from contextlib import closing
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import torch
from datasets import Dataset
from make_mimic_tree import write_dicom
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BertConfig

from modeling.tiny import warm_up
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes import app, generate
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import run
from recipes.data.phantom import render, to_png
from recipes.data.samples import fill_prompt
from recipes.data.schema import write_dataset
from recipes.evaluation.error_taxonomy import Evidence
from recipes.files import InputError, read_prompt
from recipes.viewer.anatomy import choose_regions, place_findings, regions_of
from recipes.viewer.attribution import (
    Attention,
    Look,
    attend,
    draw_look,
    find_area,
    find_cells,
    log_likelihood,
    look_for,
    regions_to_attend,
)
from recipes.viewer.html import (
    describe,
    show_attention,
    show_boxes,
    show_comparison,
    show_findings,
    show_look,
    show_picture,
    show_report,
)
from recipes.viewer.page import NOTICE, build_page, serve
from recipes.viewer.study import MAX_CHARACTERS, Picture, make_study, read_picture, take_row, take_upload
from recipes.viewer.systems import list_findings, load_system, read_completion
from rewards.labelers import LexicalLabeler

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
TINY_PROMPT = "prompts/mrgr1_tiny.txt"
NASTY = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>${window.hacked = 3}{{value}}`"


################
# Models
################


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Four studies with two views; every second one has a prior report."""
    return [build_row("test", i, ("mn", "mw")[i % 2], BuildArguments(size=64, seed=4)) for i in range(4)]


@pytest.fixture(scope="module")
def llmrg4(tmp_path_factory, rows) -> Path:
    prompt, out = read_prompt("prompts/llmrg4.txt"), tmp_path_factory.mktemp("models") / "llmrg4"
    texts = [text for row in rows for text in (row["report"], row["prior_report"] or "", fill_prompt(prompt, row))]
    for part in build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, text_layers=1):
        part.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def lmrrg(tmp_path_factory, rows) -> Path:
    out = tmp_path_factory.mktemp("models") / "lmrrg"
    texts = [read_prompt("prompts/lmrrg.txt"), *(row["report"] for row in rows)]
    for part in build_lmrrg(texts, text_layers=1, vision_layers=1, vocab_size=400):
        part.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def attentive(tmp_path_factory, rows) -> dict[str, Path]:
    """Tiny LM-RRGs whose regions weigh their 4 x 4 patches, by the way in which they do."""
    ways = {"query": {"region_attn_mode": "text_query"}, "pool": {"region_pool": "text_attn"}}
    texts = [read_prompt("prompts/lmrrg.txt"), *(row["report"] for row in rows)]
    folders = {way: tmp_path_factory.mktemp("models") / f"attentive_{way}" for way in ways}
    for way, config in ways.items():
        for part in build_lmrrg(texts, text_layers=1, vision_layers=1, vocab_size=400, **config):
            part.save_pretrained(folders[way])
    return folders


def load(model, prompt_file: str | None = TINY_PROMPT, views: str | None = None, **changed):
    """The system of `model` by the app's own defaults."""
    args = {**vars(app.AppArguments(models=[])), "model": str(model), "prompt_file": prompt_file, "views": views}
    args |= {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": 12, **changed}
    return load_system(SimpleNamespace(**args), torch.device("cpu"), Event())


def upload(folder: Path, content: bytes, name: str = "x.png") -> Picture:
    (folder / name).write_bytes(content)
    return read_picture(folder / name, name, 512)


@pytest.mark.parametrize(
    ("model", "prompt_file", "views"),
    [
        ("tiny", TINY_PROMPT, "frontal"),
        ("tiny", TINY_PROMPT, "all"),
        ("llmrg4", "prompts/llmrg4.txt", "frontal+lateral"),  # indication, history and prior report; two images
        ("lmrrg", "prompts/lmrrg.txt", "frontal"),
    ],
)
def test_a_study_typed_in_is_asked_as_generate_asks(request, call, tmp_path, rows, model, prompt_file, views):
    model = request.getfixturevalue(model)
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    given = {"model": model, "dataset": tmp_path / "data", "out": tmp_path / "out.jsonl", "batch_size": 1}
    given |= {"prompt_file": prompt_file, "views": views, "max_new_tokens": 12}
    call(generate.main, *(word for name, value in given.items() for word in (f"--{name}", value)))
    system = load(model, prompt_file, views)
    for row, line in zip(rows, (tmp_path / "out.jsonl").read_text().splitlines(), strict=True):
        frontal, lateral = (upload(tmp_path, image["bytes"]) for image in row["images"])
        typed = {name: row[name] for name in ("indication", "history", "prior_report")}
        study = make_study(frontal, lateral, row["views"][0], "findings", **typed)
        expected = json.loads(line)
        *growing, (completion, cut) = system.write(study)
        assert system.sample(study)[0] == expected["prompt"]
        assert completion == expected["completion"]
        assert cut == (expected["tokens"] == 12)
        texts = [text for text, _ in growing]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        assert texts[-1] == completion
    priors = [bool(row["prior_report"]) for row in rows]
    assert priors == [False, True, False, True]


def test_sections_and_view_reach_the_prompt(llmrg4, rows, tmp_path):
    system, frontal = load(llmrg4, "prompts/llmrg4.txt"), upload(tmp_path, rows[0]["images"][0]["bytes"])
    for view, sections, asked in (
        (None, "impression", "Write the impression of the report on this frontal chest X-ray."),
        ("AP", "findings and impression",
         "Write the findings and impression of the report on this anteroposterior (AP) chest X-ray."),
    ):  # fmt: skip
        assert system.sample(make_study(frontal, None, view, sections))[0] == asked


def test_decoding_in_words(tiny):
    greedy = load(tiny)
    warm = load(tiny, temperature=0.7, top_p=0.9, repetition_penalty=1.2, min_new_tokens=3, seed=5)
    assert greedy.decoding == "greedy search, at most 12 tokens"
    assert warm.decoding == (
        "sampling, temperature 0.7, top-p 0.9, seed 5, repetition penalty 1.2, at least 3 tokens, at most 12 tokens"
    )
    assert "greedy search, at most 12 tokens" in describe(greedy) and str(tiny) in describe(greedy)


def test_what_a_model_was_trained_with_is_what_it_is_asked(tiny, tmp_path):
    link = tmp_path / "run"
    link.mkdir()
    for file in tiny.iterdir():
        (link / file.name).symlink_to(file)
    settings = {"commit": "x", "RecipeArguments": {"prompt_file": "prompts/mrgr1_plain.txt", "views": "all"}}
    (link / "run_config.json").write_text(json.dumps(settings))
    own, given = load(link, None), load(link, TINY_PROMPT, "frontal")
    assert (own.prompt, own.views) == (read_prompt("prompts/mrgr1_plain.txt"), "all")
    assert (given.prompt, given.views) == (read_prompt(TINY_PROMPT), "frontal")
    assert own.reads_lateral and not given.reads_lateral
    (link / "run_config.json").write_text("{")
    with pytest.raises(InputError, match=r"run_config\.json is damaged"):
        load(link, None)


def test_two_images_for_a_model_that_reads_one(lmrrg, rows, tmp_path):
    pictures = [upload(tmp_path, image["bytes"]) for image in rows[0]["images"]]
    system = load(lmrrg, "prompts/lmrrg.txt", "all")
    with pytest.raises(InputError, match="LM-RRG reads one, the frontal view"):
        list(system.write(make_study(*pictures)))


@pytest.mark.parametrize("how", ["closed", "ending"])
def test_a_stopped_report_is_not_written_on(tiny, rows, tmp_path, how):
    system, tokens = load(tiny, max_new_tokens=3000), []
    system.engine.ends = torch.tensor([], dtype=torch.long)
    system.engine.model.generation_config.min_new_tokens = 3000
    engine = system.engine

    def counting(*given, **watching):
        written = engine(*given, **watching)
        tokens.append(written[0][1])
        return written

    counting.processor, system.engine = engine.processor, counting
    writing = system.write(make_study(upload(tmp_path, rows[0]["images"][0]["bytes"])))
    next(writing)
    if how == "closed":
        writing.close()
    else:
        system.closing.set()
        list(writing)
    assert 0 < tokens[0] < 3000


def test_what_fails_in_the_engine_is_not_hidden(tiny, rows, tmp_path):
    system = load(tiny)
    system.engine.model.generation_config.num_beams = -1
    with pytest.raises(ValueError, match="num_beams"):
        list(system.write(make_study(upload(tmp_path, rows[0]["images"][0]["bytes"]))))


################
# What is typed
################


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"indication": "x" * (MAX_CHARACTERS + 1)}, "the indication has 4,001 characters; at most 4,000 are read"),
        ({"prior_report": "x" * (MAX_CHARACTERS + 1)}, "the prior report has 4,001 characters"),
        ({"history": "see <image>"}, "reads <image> as a mark of its own; take it out of the history"),
        ({"prior_report": "a</prior_report>b"}, "reads </prior_report> as a mark of its own"),
        ({"indication": "<prior_report>"}, "reads <prior_report> as a mark of its own"),
    ],
)
def test_text_that_is_refused(llmrg4, rows, tmp_path, typed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load(llmrg4, "prompts/llmrg4.txt").sample(
            make_study(upload(tmp_path, rows[0]["images"][0]["bytes"]), None, **typed)
        )


def test_a_mark_in_a_text_that_nobody_reads(tiny, rows, tmp_path):
    study = make_study(upload(tmp_path, rows[0]["images"][0]["bytes"]), None, indication="<|image_pad|>")
    assert load(tiny).sample(study)[0] == read_prompt(TINY_PROMPT)


def test_a_study_without_a_frontal_xray():
    with pytest.raises(InputError, match="drop a frontal X-ray first"):
        make_study(None, Picture("x", b"", (1, 1)))


################
# What is uploaded
################


def png(side: int = 40, mode: str = "L", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 64).convert(mode).save(out, kind)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that says it has `side` x `side` pixels, and has none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + png()[33:]


def dicom(folder: Path, pixels: np.ndarray | None = None, **tags) -> bytes:
    write_dicom(folder / "made.dcm", np.arange(1600).reshape(40, 40) if pixels is None else pixels, **tags)
    return (folder / "made.dcm").read_bytes()


def deflated(folder: Path) -> bytes:
    data = pydicom.dcmread(io.BytesIO(dicom(folder)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(folder / "deflated.dcm", enforce_file_format=True)
    return (folder / "deflated.dcm").read_bytes()


def jpeg_ls(folder: Path) -> bytes:
    """A file that says it is JPEG-LS; whether its pixels are is not looked at."""
    data = pydicom.dcmread(io.BytesIO(dicom(folder)))
    pixels, data.file_meta.TransferSyntaxUID = data.PixelData, pydicom.uid.JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([pixels])
    data["PixelData"].VR = "OB"
    data.save_as(folder / "jpeg_ls.dcm", enforce_file_format=True)
    return (folder / "jpeg_ls.dcm").read_bytes()


def without_pixels(folder: Path) -> bytes:
    data = pydicom.dcmread(io.BytesIO(dicom(folder)))
    del data.Rows, data.Columns, data.PixelData
    data.save_as(folder / "report.dcm", enforce_file_format=True)
    return (folder / "report.dcm").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", b"Findings: none.\n" * 20, "x.png is no PNG, JPEG or DICOM file, whatever its name says"),
        ("x.png", b"", "x.png is no PNG, JPEG or DICOM file"),
        ("x.jpg", png(kind="GIF"), "x.jpg is no PNG, JPEG or DICOM file"),  # Pillow would read it
        ("x.png", png()[:300], "x.png is truncated or damaged"),
        ("x.png", png()[:20], "x.png is (truncated|no PNG|not an image)"),
        ("x.jpg", png(kind="JPEG")[:300], "x.jpg is truncated or damaged"),
        ("x.png", png(16), r"x.png has 16 x 16 pixels, too few for an X-ray \(a side has at least 32\); drop"),
        ("x.dcm", lambda f: dicom(f, np.zeros((16, 16))), "x.dcm has 16 x 16 pixels, too few for an X-ray"),
        ("x.dcm", jpeg_ls, "x.dcm is compressed as JPEG-LS Lossless .* uncompressed, .*gdcmconv --raw` or `dcmdj"),
        ("x.jls", b"\xff\xd8\xff\xf7" + bytes(200), "x.jls is a JPEG-LS file, which is not read; save it as PNG"),
        ("x.jpg", b"\xff\xd8\xff\xe0\x00\x04ab\xff\xf7" + bytes(99), "x.jpg is a JPEG-LS file"),  # behind APP0
        ("x.png", bomb(60_000), "x.png has far more pixels than an X-ray"),  # Pillow's own limit
        ("x.png", bomb(8000), "x.png has 8000 x 8000 pixels, far more than an X-ray"),  # ours
        ("x.dcm", lambda f: dicom(f)[:200], "x.dcm is a (damaged or incomplete DICOM file|DICOM file without)"),
        ("x.dcm", lambda f: dicom(f)[:-3], "x.dcm.*(damaged|cannot be decoded)"),
        ("x.dcm", without_pixels, "x.dcm is a DICOM file without an image"),
        ("x.png", deflated, "x.png is a deflated DICOM file, which is not read"),
        ("x.dcm", lambda f: dicom(f, NumberOfFrames=9_000_000), "has 40 x 40 .*9000000 times.*export .* most 50 mill"),
        ("x.dcm", lambda f: dicom(f, Rows=20_000, Columns=20_000), "x.dcm has 20000 x 20000 pixels"),
    ],
)  # fmt: skip
def test_files_that_are_no_xrays(tmp_path, name, content, message):
    folder = tmp_path / "uploads" / "hash"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(InputError, match=message) as refused:
        take_upload({"path": str(folder / name), "orig_name": name}, tmp_path / "uploads", 512)
    assert str(tmp_path) not in str(refused.value)  # where it was put is nobody's business
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_pictures_become_grey_pngs_of_the_builders_size(tmp_path, mode):
    picture = upload(tmp_path, png(600, mode), "misnamed.jpg")
    with Image.open(io.BytesIO(picture.png)) as image:
        assert (image.format, image.mode, image.size, picture.size) == ("PNG", "L", (512, 512), (600, 600))
    assert not picture.warnings and picture.view is None


@pytest.mark.parametrize(
    ("tags", "view", "warnings"),
    [
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "AP"}, "AP", []),
        ({"Modality": "CR"}, None, []),
        ({"Modality": "CR", "ViewPosition": "LL"}, "LL", ["x.dcm says that it is a lateral view (LL)"]),
        ({"Modality": "CT"}, None, ["x.dcm is of the modality CT, not an X-ray"]),
        ({}, None, ["x.dcm names no modality"]),
        ({"Modality": "CR", "BodyPartExamined": "HAND"}, None, ["x.dcm says that it shows HAND, not the chest."]),
        ({"Modality": "MG", "BodyPartExamined": "BREAST"}, None, ["of the modality MG", "shows BREAST"]),
    ],
)
def test_what_a_dicom_file_says_of_itself(tmp_path, tags, view, warnings):
    picture = upload(tmp_path, dicom(tmp_path, **tags), "x.dcm")
    assert picture.view == view and picture.size == (40, 40)
    assert len(picture.warnings) == len(warnings)
    assert all(part in sentence for part, sentence in zip(warnings, picture.warnings, strict=True))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "", None, "uploads", "link/secret.png"])
def test_only_uploads_are_read_and_deleted(tmp_path, path):
    """The path comes from the browser, and what it names is deleted."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "uploads" / "link").symlink_to(tmp_path)
    where = path if path is None or path.startswith("/") else str(tmp_path / "uploads" / path)
    with pytest.raises(InputError, match="has not arrived whole"):
        take_upload({"path": where}, tmp_path / "uploads", 512)
    assert (tmp_path / "secret.png").is_file()


################
# What is shown
################


def test_findings_with_their_sentences():
    report = (
        "There is a small left pleural effusion. No pneumothorax. Pneumonia is possible. "
        "The effusion measures 2.5 cm. No edema, no pneumothorax on the right."
    )
    assert list_findings(report, LexicalLabeler(), Evidence()) == [
        ("Edema", "absent", ["No edema, no pneumothorax on the right."]),
        ("Pneumonia", "possible", ["Pneumonia is possible."]),
        ("Pneumothorax", "absent", ["No pneumothorax.", "No edema, no pneumothorax on the right."]),
        ("Pleural Effusion", "present",
         ["There is a small left pleural effusion.", "The effusion measures 2.5 cm."]),
    ]  # fmt: skip


def test_another_labeler_decides_and_the_sentence_is_the_one_that_speaks_of_it():
    contrary = lambda texts: np.array([[0] * 9 + [3] + [0] * 4])  # noqa: E731  (effusion: uncertain)
    assert list_findings("There is an effusion. Heart normal.", contrary, Evidence()) == [
        ("Pleural Effusion", "possible", ["There is an effusion."])
    ]
    assert list_findings("Nothing.", contrary, Evidence()) == [("Pleural Effusion", "possible", [])]


def test_the_table_of_findings():
    html = show_findings([("Edema", "present", ["Edema."]), ("Fracture", "absent", ["No fracture."])])
    assert "Not mentioned: Enlarged Cardiomediastinum, " in html and "Edema, Consolidation" not in html
    assert "none of the 13 findings" in show_findings([])


def test_two_models_side_by_side():
    """What one has and the other denies, then what one alone mentions, then what is the same."""
    first = [("Edema", "present", []), ("Fracture", "absent", []), ("Pneumonia", "possible", [])]
    second = [("Edema", "present", []), ("Pneumothorax", "absent", []), ("Fracture", "present", [])]
    html = show_comparison(["a", "b"], [first, second])
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">(\w+).*?<td[^>]*>([^<]*)</td><td[^>]*>([^<]*)<', html)
    assert rows == [
        ("differs", "Fracture", "absent", "present"),
        ("differs", "Pneumonia", "possible", "not mentioned"),
        ("differs", "Pneumothorax", "not mentioned", "absent"),
        ("same", "Edema", "present", "present"),
    ]
    assert "differ in 3 of 4 labels" in html
    assert "All labels are the same." in show_comparison(["a", "b"], [first, first])
    assert "Neither report mentions a finding" in show_comparison(["a", "b"], [[], []])


@pytest.mark.parametrize(
    ("finding", "sentence", "regions"),
    [
        ("Pleural Effusion", "There is a small left effusion.", ["left costophrenic angle"]),
        ("Pleural Effusion", "Both, left more.", ["right costophrenic angle", "left costophrenic angle"]),
        ("Pneumothorax", "A right apical pneumothorax.", ["right apical zone"]),
        ("Atelectasis", "Bibasilar atelectasis.", ["right lower lung zone", "left lower lung zone"]),
        ("Pneumonia", "Left lower and mid lung pneumonia.", ["left mid lung zone", "left lower lung zone"]),
        ("Lung Opacity", "An opacity on the left.", ["left lung"]),
        ("Edema", "Mild edema.", ["right lung", "left lung"]),
        ("Cardiomegaly", "The left heart is enlarged.", ["cardiac silhouette"]),
        ("Enlarged Cardiomediastinum", "Widened upper mediastinum.", ["upper mediastinum"]),
        ("Fracture", "Old left rib fracture.", []),
        ("Fracture", "Left clavicle fracture.", ["left clavicle"]),
        ("Support Devices", "A left pacemaker.", []),
    ],
)  # fmt: skip
def test_regions_of_a_sentence(finding, sentence, regions):
    assert regions_of(finding, sentence) == regions
    ours = {region["name"] for region in json.loads((ROOT / "modeling/region_descriptions.json").read_text())}
    assert set(regions) <= ours


def box(region: str, *sides: float) -> dict:
    return {"region": region, **dict(zip(("x0", "y0", "x1", "y1"), sides, strict=True))}


def test_boxes_of_what_is_present_or_possible(rows, tmp_path):
    boxes = [box("left costophrenic angle", 30, 40, 50, 60), box("left lung", 1, 2, 3, 4)]
    row = {"study_id": "1", "images": [{"bytes": png(80)}], "views": ["AP"], "boxes": boxes}
    (picture,) = take_row(row, 40)  # half as large
    assert (picture.size, picture.view) == ((80, 80), "AP")
    findings = [
        ("Pleural Effusion", "possible", ["Possible left effusion."]),
        ("Pneumothorax", "absent", ["No left pneumothorax."]),
        ("Edema", "present", ["Edema on the right."]),  # the study has no box there
    ]
    places = place_findings(findings, picture.boxes)
    assert places == [("Pleural Effusion", "possible", box("left costophrenic angle", 15, 20, 25, 30))]
    html = show_boxes(picture.png, (40, 40), places)
    assert 'viewBox="0 0 40 40"' in html and "not where the model looked" in html
    assert '<rect class="possible" x="15.0" y="20.0" width="10.0" height="10.0">' in html
    assert not show_boxes(picture.png, (40, 40), []) and not place_findings(findings, None)
    with pytest.raises(InputError, match="study 1 has no image"):
        take_row(row | {"images": []}, 40)


def test_boxes_of_a_real_phantom():
    """Of its own reports' words: each box lies in the X-ray, on the side that it names; the right is on the left."""
    labeler, evidence, placed = LexicalLabeler(), Evidence(), []
    for number in range(40):
        row = build_row("test", number, "mn", BuildArguments(size=128, seed=4, balanced=True))
        picture, _ = take_row(row, 64)
        for name, _, found in place_findings(list_findings(row["report"], labeler, evidence), picture.boxes):
            with Image.open(io.BytesIO(picture.png)) as image:
                width, height = image.size
            assert max(width, height) == 64
            assert 0 <= found["x0"] < found["x1"] <= width and 0 <= found["y0"] < found["y1"] <= height
            side, middle = found["region"].split()[0], (found["x0"] + found["x1"]) / 2 / width
            assert {"right": middle < 0.5, "left": middle > 0.5}.get(side, abs(middle - 0.5) < 0.25)
            placed.append(name)
    assert {"Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Atelectasis"} <= set(placed)


@pytest.mark.parametrize(
    ("completion", "report", "think"),
    [
        ("", "", ""),
        ("<thi", "", ""),  # half a tag is not shown
        ("<think>Heart. Lu", "", "Heart. Lu"),
        ("<think>a < b", "", "a < b"),  # no tag
        ("<think>a</think>\n<rep", "", "a"),
        ("<think>a</think><report>No ede", "No ede", "a"),
        ("<think>a</think><report>No edema.</repo", "No edema.", "a"),
        ("<think>a</think><report>No edema.</report>", "No edema.", "a"),
        ("No edema.", "No edema.", ""),  # a model that does not reason
    ],
)
def test_a_growing_completion(completion, report, think):
    assert read_completion(completion) == (report, think)


def test_what_comes_from_outside_is_escaped():
    rows = [(NASTY, "present", [NASTY])]
    for html in (
        show_report(f"{NASTY} edema {NASTY}", True),
        show_report(NASTY, False),
        show_findings(rows),
        show_comparison([NASTY, NASTY], [[("Edema", NASTY, [])], []]),
        show_boxes(png(), (1, 1), [(NASTY, NASTY + '"', box(NASTY + '"', 0, 0, 1, 1))]),
        show_look(png(), Look(np.ones((2, 2)), regions=[(NASTY, 1.0)]), NASTY + '"'),
        show_attention(png(), Attention(Look(np.ones((2, 2))), 0.25, 4), NASTY + '"', (1, 1), []),
        show_picture(Picture(NASTY + '"', png(), (1, 1), warnings=[NASTY])),
    ):
        assert "&lt;script&gt;" in html and "<script" not in html and "<img src=x" not in html
        assert "onerror='" not in html


def test_marks():
    html = show_report("Possible edema. No effusion. Pneumothorax.", True, cut=5)
    assert re.findall(r'<mark class="(\w+)">([^<]*)', html) == [
        ("possible", "edema"), ("absent", "effusion"), ("present", "Pneumothorax")
    ]  # fmt: skip
    assert "Cut off after 5 tokens" in html and "<mark" not in show_report("Edema.", False)


################
# Where a model looked
################


@pytest.mark.parametrize(("corner", "cell"), [((0, 0), (0, 0)), ((84, 28), (1, 3)), ((28, 84), (3, 1))])
def test_cells_of_qwen_lie_as_the_image(tiny, corner, cell):
    """A white square on black, taken for a gradient: its cell is the largest one."""
    processor = AutoProcessor.from_pretrained(tiny)
    image = Image.new("RGB", (140, 112))
    image.paste((255, 255, 255), (*corner, corner[0] + 28, corner[1] + 28))
    inputs = processor.image_processor(
        image, do_normalize=False, return_tensors="pt", size={"shortest_edge": 112 * 140, "longest_edge": 112 * 140}
    )
    cells = find_cells(inputs["pixel_values"], inputs, processor)
    assert cells.shape == (4, 5) and np.unravel_index(cells.argmax(), cells.shape) == cell


def test_cells_of_other_models_lie_as_the_image():
    pixels = torch.zeros(1, 2, 3, 64, 64)
    pixels[0, 0, :, 8:12, 40:44] = 1
    cells = find_cells(pixels, {}, None)
    assert cells.shape == (16, 16) and np.argwhere(cells).tolist() == [[2, 10]]


@pytest.mark.parametrize(
    ("size", "area"), [((60, 60), (0, 0, 1, 1)), ((120, 60), (0.25, 0, 0.75, 1)), ((60, 80), (0, 0.125, 1, 0.875))]
)
def test_the_area_of_a_crop(size, area):
    crop = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    assert find_area(crop, size) == pytest.approx(area)
    assert find_area(SimpleNamespace(do_center_crop=False), size) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("model", "prompt_file"), [("tiny", TINY_PROMPT), ("llmrg4", "prompts/llmrg4.txt"), ("lmrrg", "prompts/lmrrg.txt")]
)
def test_the_gradient_is_that_of_the_sentence(request, rows, tmp_path, monkeypatch, model, prompt_file):
    """Against difference quotients of the log-likelihood, of which the models compute parts in float32: of three steps
    the best, since a long one bends and a short one rounds."""
    system = load(request.getfixturevalue(model), prompt_file, "frontal")
    system.engine.model.double()
    if model == "lmrrg":
        system.engine.model.config.freeze_vision = system.engine.model.config.freeze_extractor = True
    calls, grad = [], torch.autograd.grad

    def watch(value, inputs, **options):
        gradients = grad(value, inputs, **options)
        calls.append((inputs.detach(), gradients[0]))
        return gradients

    likelihoods = []

    def record(model, inputs, *rest):
        likelihoods.append((model, dict(inputs), rest))
        return log_likelihood(model, inputs, *rest)

    monkeypatch.setattr(torch.autograd, "grad", watch)
    monkeypatch.setattr("recipes.viewer.attribution.log_likelihood", record)
    study = make_study(upload(tmp_path, rows[0]["images"][0]["bytes"]))
    look = look_for(system, study, "<think>x</think><report>No edema. No effusion.</report>", "No effusion.")
    pixels, gradient = calls[0]
    model, inputs, rest = likelihoods[0]
    norm, errors = float(gradient.norm()), []
    for size in (1e-2, 1e-3, 1e-4):
        ends = [pixels + sign * size * gradient / norm for sign in (1, -1)]
        with torch.no_grad():
            high, low = (float(log_likelihood(model, {**inputs, "pixel_values": end}, *rest)) for end in ends)
        errors.append(abs((high - low) / (2 * size) / norm - 1))
    assert min(errors) < 0.01
    assert look.cells.max() == 1 and look.cells.min() >= 0
    assert bool(look.regions) == (system.engine.model.config.model_type == "lmrrg")
    if look.regions:
        assert len(look.regions) == 5 and 0 < sum(share for _, share in look.regions) <= 1
        assert system.engine.model.config.freeze_vision  # as before
    tokens = system.engine.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, -rest[0] :][rest[1]])
    assert "effusion" in system.engine.processor.tokenizer.convert_tokens_to_string(tokens)
    assert "edema" not in system.engine.processor.tokenizer.convert_tokens_to_string(tokens)
    with pytest.raises(InputError, match="not in what the model wrote"):
        look_for(system, study, "No edema.", "Effusion.")


def test_the_picture_of_a_look(tmp_path):
    grey = io.BytesIO()
    Image.new("L", (64, 64), 100).save(grey, "PNG")
    look = Look(np.array([[0.0, 0.0], [0.0, 1.0]]), (0.5, 0, 1, 1))
    with Image.open(io.BytesIO(draw_look(grey.getvalue(), look))) as image:
        assert image.getpixel((10, 60)) == (100, 100, 100)  # outside of what the encoder saw
        red, _, blue = image.getpixel((62, 62))
        assert red > 180 and blue < 50 and image.getpixel((36, 4)) == (100, 100, 100)


def test_a_region_is_drawn_with_its_weights(attentive, rows, tmp_path, monkeypatch):
    """Half of the weight on the last patch of the second row; the box has that patch and the one before it."""
    system = load(attentive["query"], "prompts/lmrrg.txt")
    weights = torch.full((1, 29, 16), 1 / 16)
    weights[0, 8] = 0.5 / 15
    weights[0, 8, 7] = 0.5
    given = []

    def features(pixels, region_attention):
        given.append((tuple(pixels.shape), region_attention))
        return SimpleNamespace(attentions=weights.log())

    monkeypatch.setattr(system.engine.model.model, "get_image_features", features)
    picture = upload(tmp_path, png(128))  # of four pixels of the X-ray the model has one
    boxes = [box("left lung", 64, 32, 128, 64), box("right lung", 0, 0, 128, 128)]
    attention = attend(system, make_study(picture), "left lung", boxes)
    assert given == [((1, 3, 64, 64), True)]
    assert attention.look.cells.shape == (4, 4) and attention.look.area == (0, 0, 1, 1)
    assert np.unravel_index(attention.look.cells.argmax(), (4, 4)) == (1, 3) and attention.look.cells.max() == 1
    assert (attention.largest, attention.patches) == (pytest.approx(0.5), 16)
    assert attention.inside == pytest.approx(0.5 + 0.5 / 15) and attention.even == pytest.approx(2 / 16)
    html = show_attention(picture.png, attention, "left lung", (128, 128), boxes)
    assert html.count("<rect") == 1 and '<rect x="64.0" y="32.0" width="64.0" height="32.0">' in html
    assert "Of 16 patches the strongest weighs 50% (all alike: 6.2%)." in html
    assert "53% of the weight (all alike: 12%)" in html and "no outline of a finding" in html
    assert attend(system, make_study(picture), "left lung").inside is None
    with pytest.raises(InputError, match="has no region 'the moon'"):
        attend(system, make_study(picture), "the moon")


@pytest.mark.parametrize("way", ["query", "pool"])
def test_the_attention_of_a_network(attentive, rows, tmp_path, way):
    """Weights sum to 1, and differ between regions and between images."""
    system = load(attentive[way], "prompts/lmrrg.txt")
    pictures = [upload(tmp_path, row["images"][0]["bytes"]) for row in rows[:2]]
    first, other, another = (
        attend(system, make_study(picture), region)
        for picture, region in ((pictures[0], "left lung"), (pictures[0], "spine"), (pictures[1], "left lung"))
    )
    for attention in (first, other, another):
        assert attention.look.cells.sum() * attention.largest == pytest.approx(1, abs=1e-5)
        assert attention.look.cells.min() >= 0
    assert not np.allclose(first.look.cells, other.look.cells) and not np.allclose(
        first.look.cells, another.look.cells
    )


def test_models_without_region_attention(tiny, lmrrg, llmrg4, attentive):
    assert [regions_to_attend(load(model, "prompts/lmrrg.txt")) for model in (tiny, lmrrg, llmrg4)] == [[]] * 3
    assert len(regions_to_attend(load(attentive["pool"], "prompts/lmrrg.txt"))) == 29


def test_regions_of_findings_come_first():
    findings = [
        ("Pleural Effusion", "possible", ["Possible left effusion."]),
        ("Pneumothorax", "absent", ["No right apical pneumothorax."]),
        ("Atelectasis", "present", ["Left lower lung atelectasis.", "Left basal atelectasis."]),
        ("Pneumonia", "present", ["Left lower pneumonia."]),
    ]
    names = ["right apical zone", "left lower lung zone", "left costophrenic angle"]
    assert choose_regions(names, findings) == [
        ("left lower lung zone (Atelectasis, Pneumonia)", "left lower lung zone"),
        ("left costophrenic angle (Pleural Effusion)", "left costophrenic angle"),
        ("right apical zone", "right apical zone"),
    ]
    assert choose_regions([], findings) == []


################
# Mistakes
################


def text_model(folder: Path, tiny: Path) -> Path:
    BertConfig().save_pretrained(folder / "bert")
    return folder / "bert"


def without_weights(folder: Path, tiny: Path) -> Path:
    (folder / "bare").mkdir()
    for file in tiny.iterdir():
        if file.name != "model.safetensors":
            (folder / "bare" / file.name).symlink_to(file)
    return folder / "bare"


def damaged(folder: Path, tiny: Path) -> Path:
    without_weights(folder, tiny)
    (folder / "bare" / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:5000])
    return folder / "bare"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"--models": None}, ["--models"]),
        ({"--models": ["a", "b", "c"]}, ["one checkpoint or two, not 3"]),
        ({"--models": "./absent"}, ["./absent"]),
        ({"--models": text_model}, ["bert", "no images"]),
        ({"--models": without_weights}, ["bare has no weights"]),
        ({"--models": damaged}, ["bare has a damaged model.safetensors"]),
        ({"--prompt_files": None}, ["run_config.json", "--prompt_files"]),  # nothing says how it was trained
        ({"--prompt_files": "absent.txt"}, ["absent.txt"]),
        ({"--prompt_files": [TINY_PROMPT, TINY_PROMPT]}, ["--prompt_files", "(1)"]),
        ({"--views": "both"}, ["--views", "both"]),
        ({"--labeler": "nlp"}, ["'nlp'"]),
        ({"--labeler": "chexbert:./absent"}, ["chexbert", "lexical"]),
        ({"--port": "70000"}, ["--port", "70000"]),
        ({"--host": "not.an.address.invalid"}, ["not.an.address.invalid", "cannot be used"]),
        ({"--max_upload": "0"}, ["--max_upload"]),
        ({"--image_size": "9"}, ["--image_size"]),
        ({"--dtype": "float12"}, ["--dtype", "float12"]),
        ({"--dataset": "./absent"}, ["no data set at ./absent"]),
    ],
)
def test_mistakes_end_in_one_sentence(tiny, tmp_path, monkeypatch, changed, named):
    given = {"--models": tiny, "--prompt_files": TINY_PROMPT, "--port": free_port()} | changed
    words = ["app.py"]
    for name, value in given.items():
        value = value(tmp_path, tiny) if callable(value) else value
        words += [] if value is None else [name, *map(str, value if isinstance(value, list) else [value])]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"\Aerror: .+\Z") as ended:
        run(app.main)
    assert all(word in ended.value.code for word in named), ended.value.code


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_port_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--models", "any", "--port", str(port)])
        sentence = f"error: 127.0.0.1:{port} cannot be used (Address already in use); name another --port"
        with pytest.raises(SystemExit, match=rf"\A{re.escape(sentence)}\Z"):
            run(app.main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_ends_quietly_and_leaves_nothing(tiny, tmp_path, number):
    """As a shell starts it with nohup and &: SIGINT and SIGHUP are ignored in what it starts."""
    port = free_port()
    command = [
        sys.executable,
        ROOT / "recipes/app.py",
        "--models",
        tiny,
        "--port",
        port,
        "--prompt_files",
        TINY_PROMPT,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    ignoring = "import os, signal, sys; signal.signal(1, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN); "
    ignoring += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        list(map(str, [sys.executable, "-c", ignoring, *command])),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert f"http://127.0.0.1:{port}/ is the page" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert NOTICE in page.read().decode()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors and not output
    assert not list(tmp_path.glob("rrg_recipes_app_*"))


################
# In a browser
################

REASONING = "Present: Pleural Effusion."
REPORT = "There is a left pleural effusion. No pneumothorax. " + NASTY


@pytest.fixture(scope="module")
def parrot(tmp_path_factory, tiny) -> Path:
    """The tiny model, having learnt one answer by heart."""
    model, processor = AutoModelForImageTextToText.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
    # Four tokens for any picture, as in its lessons: an answer known by heart does not survive a longer prompt.
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    images = [Image.effect_noise((56, 56), spread) for spread in (1, 30, 60, 200)]
    answers = [f"<think>{REASONING}{NASTY}</think><report>{REPORT}</report><|im_end|>"] * 4
    prompt = read_prompt(TINY_PROMPT)
    warm_up(model, processor, images, torch.zeros(4, 13), prompt, answers, steps=100, batch_size=4, learning_rate=1e-2)
    out = tmp_path_factory.mktemp("models") / "parrot"
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory, parrot, llmrg4, rows):
    """A served page of two models and a data set with a box: address, folder of uploads, hosts that this process
    reached for, first model."""
    boxes = [box("left costophrenic angle", 45, 40, 60, 60)]
    names = ("study_id", "images", "views", "indication", "history", "prior_report")
    studies = Dataset.from_list([{name: row[name] for name in names} | {"boxes": boxes} for row in rows])
    systems = [load(parrot, max_new_tokens=250), load(llmrg4, "prompts/llmrg4.txt", max_new_tokens=30)]
    reached, connect, folders = [], socket.socket.connect, []

    def watch(self, address):
        reached.append(address)
        return connect(self, address)

    def page_of(folder):
        folders.append(folder)
        return build_page(systems, LexicalLabeler(), folder, 512, studies)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", watch)
    patch.setenv("GRADIO_TEMP_DIR", "")  # which serve sets
    patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
    with closing(serve(page_of, "127.0.0.1", free_port(), 1)) as server:
        yield next(server), folders[0], reached, systems[0]
    patch.undo()
    assert not folders[0].exists()


class Visitor:
    """What one does with the page."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get("about:blank")
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(address)
        self.wait("document.querySelector('#start')")

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def wait(self, script: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 120, 0.05).until(lambda driver: self.run(f"return {script}"))

    def drop(self, name: str, file: Path) -> None:
        self.driver.find_element("css selector", f"#{name} input[type=file]").send_keys(str(file))

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def write(self) -> None:
        self.click("#start")
        self.wait("document.querySelector('#status').innerText.startsWith('Done')")


@pytest.fixture
def visitor(browser, site):
    visitor = Visitor(browser, site[0])
    yield visitor
    problems = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert problems == []


@pytest.fixture
def xray(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path / "phantom <b>.png"
    file.write_bytes(to_png(render([0] * 14, "frontal", rng, 112)))
    return file


def test_a_report_in_the_browser(visitor, site, xray):
    assert visitor.text("#notice") == NOTICE
    visitor.drop("frontal", xray)
    visitor.wait("document.querySelector('#frontal .xray img')?.naturalWidth === 112")
    assert visitor.text("#frontal figcaption").endswith("112 × 112")
    visitor.run("document.querySelector('#indication textarea').focus()")
    visitor.driver.find_element("css selector", "#indication textarea").send_keys(NASTY)
    visitor.write()

    assert visitor.text("#model-0 .report") == REPORT
    cells = visitor.run(
        "return [...document.querySelectorAll('#model-0 .findings tbody tr')].map((row) => "
        "[row.cells[0].innerText, row.cells[1].firstChild.textContent, row.cells[2].innerText.split('\\n')[0]])"
    )
    assert ["Pleural Effusion", "present", "There is a left pleural effusion."] in cells
    assert ["Pneumothorax", "absent", "No pneumothorax."] in cells

    thought = "[...document.querySelectorAll('#model-0 .think .report')].some((e) => e.checkVisibility())"
    assert not visitor.run(f"return {thought}")  # folded
    visitor.click("#model-0 .think button")
    visitor.wait(thought)
    assert visitor.text("#model-0 .think .report").startswith(REASONING)
    visitor.click("#model-1 .asked button")
    visitor.wait("document.querySelector('#model-1 .asked .report')?.checkVisibility()")
    assert NASTY in visitor.text("#model-1 .asked .report")

    assert visitor.run("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    events = [json.loads(entry["message"])["message"] for entry in visitor.driver.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith((site[0], "data:", "blob:"))]
    assert not [
        address for address in site[2] if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1")
    ]
    assert not [path for path in site[1].rglob("*") if path.is_file()]
    assert visitor.run("return localStorage.length + sessionStorage.length") == 0

    visitor.click("#clear")
    visitor.wait("document.querySelector('#model-0 .result').innerText === 'The report is written here.'")
    assert not visitor.text("#frontal figcaption") and visitor.text("#notice") == NOTICE


def test_mistakes_on_the_page(visitor, site, xray, tmp_path):
    visitor.click("#start")
    visitor.wait("document.querySelector('#status').innerText === 'drop a frontal X-ray first'")
    (tmp_path / "notes.png").write_text("no picture")
    visitor.drop("frontal", tmp_path / "notes.png")
    visitor.wait("document.querySelector('#status').innerText.startsWith('notes.png is no PNG, JPEG or DICOM file')")
    visitor.wait("document.querySelector('#frontal input[type=file]')")
    visitor.drop("frontal", xray)  # and the next one is taken
    visitor.wait("document.querySelector('#frontal .xray img')")
    assert visitor.text("#status") == ""
    assert not [path for path in site[1].rglob("*") if path.is_file()]


def test_a_file_that_is_too_large(visitor, site, xray, tmp_path):
    (tmp_path / "large.png").write_bytes(png(1200))  # 1.4 MB of noise; the site takes 1 MB
    visitor.drop("frontal", tmp_path / "large.png")
    sentence = "large.png has 2 MB, and at most 1 are taken: export it smaller, or start the app with a larger"
    visitor.wait(f"document.querySelector('#oversize').innerText.startsWith('{sentence}')")
    assert not visitor.text("#frontal figcaption")
    assert not [path for path in site[1].rglob("*") if path.is_file()]
    visitor.drop("frontal", xray)
    visitor.wait("document.querySelector('#frontal .xray img')")
    assert visitor.text("#oversize") == ""


def test_results_vanish_with_the_image(visitor, xray):
    visitor.drop("frontal", xray)
    visitor.wait("document.querySelector('#frontal .xray img')")
    visitor.write()
    blank = "document.querySelector('#model-0 .result').innerText === 'The report is written here.'"
    assert visitor.text("#model-0 .findings") and visitor.text("#comparison")
    visitor.click("#frontal .remove")
    visitor.wait(blank)
    assert not visitor.text("#model-0 .findings") and not visitor.text("#comparison")
    visitor.drop("frontal", xray)
    visitor.wait("document.querySelector('#frontal .xray img')")
    visitor.write()
    visitor.drop("lateral", xray)
    visitor.wait(blank)
    assert not visitor.text("#model-0 .findings") and not visitor.text("#comparison")


SIGHT = """const place = document.querySelector(arguments[0])?.getBoundingClientRect();
return Boolean(place) && place.height > 0 && place.top >= 0 && Math.floor(place.bottom) <= innerHeight"""


def resize(driver, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.3)


def test_the_button_is_in_sight(visitor, xray):
    """With two models, two X-rays, three texts and a picture."""
    try:
        for width, height in ((1400, 860), (420, 860)):
            resize(visitor.driver, width, height)
            visitor.run("window.scrollTo(0, 0)")
            assert visitor.run(SIGHT, "#start")
            if not visitor.text("#frontal figcaption"):
                visitor.drop("frontal", xray)
                visitor.wait("document.querySelector('#frontal .xray img')")
            assert visitor.run(SIGHT, "#start")
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_by_keyboard_on_a_phone(visitor):
    """A study of the data set, its report, where the model looked, and another study."""
    from selenium.webdriver import Keys
    from selenium.webdriver.common.action_chains import ActionChains

    def press(*keys: str) -> None:
        ActionChains(visitor.driver).send_keys(*keys).perform()

    def go(selector: str) -> None:
        for _ in range(60):
            if visitor.run("return document.activeElement.matches(arguments[0])", selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"Tab does not lead to {selector}")

    try:
        resize(visitor.driver, 420, 860)
        go("#choice input")
        press(Keys.ARROW_DOWN, Keys.ENTER)
        visitor.wait("document.querySelector('#frontal .xray img')")
        name = visitor.text("#frontal figcaption")
        assert name.startswith("phantom-4-test-00000")
        go("#start")
        press(Keys.ENTER)
        visitor.wait("document.querySelector('#status').innerText.startsWith('Done')")
        visitor.wait("document.querySelector('#comparison').getBoundingClientRect().top < innerHeight / 2")
        assert "labels" in visitor.text("#comparison h2") and visitor.run(SIGHT, "#comparison h2")
        assert visitor.run("return document.querySelectorAll('#model-0 .boxes rect').length") == 1
        assert "Pleural Effusion (present): left costophrenic angle" in visitor.text("#model-0 .boxes figcaption")
        assert not visitor.run("return document.querySelector('#model-0 .look')")  # off until asked for
        go("#model-0 .where button")
        press(Keys.ENTER)
        visitor.wait("document.querySelector('#model-0 .where input[type=radio]')?.checkVisibility()")
        go("#model-0 .where input[type=radio]")
        press(Keys.SPACE)
        visitor.wait("document.querySelector('#model-0 .look img')?.naturalWidth > 0")
        assert visitor.text("#model-0 .look q") == "There is a left pleural effusion."
        assert "Input gradient" in visitor.text("#model-0 .look")
        assert visitor.run("return document.documentElement.scrollWidth") <= 420
        visitor.run("document.querySelector('#choice input').focus()")
        press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
        visitor.wait("document.querySelector('#model-0 .result').innerText === 'The report is written here.'")
        visitor.wait(f"document.querySelector('#frontal figcaption').innerText !== {json.dumps(name)}")
        assert not visitor.run("return document.querySelector('.look, .boxes svg, .comparison')")
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_region_attention_by_keyboard(browser, attentive, lmrrg, tmp_path, monkeypatch):
    """Of a real phantom's study: the attention of a region under the study's box. Another model says it has none."""
    from selenium.webdriver import Keys
    from selenium.webdriver.common.action_chains import ActionChains

    rows = [build_row("test", number, "sn", BuildArguments(size=128, seed=4)) for number in range(2)]
    studies = Dataset.from_list([{name: row[name] for name in ("study_id", "images", "boxes")} for row in rows])
    systems = [load(model, "prompts/lmrrg.txt") for model in (attentive["query"], lmrrg)]
    page_of = lambda folder: build_page(systems, LexicalLabeler(), folder, 512, studies)  # noqa: E731
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def go(selector: str) -> None:
        for _ in range(60):
            if visitor.run("return document.activeElement.matches(arguments[0])", selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"Tab does not lead to {selector}")

    with closing(serve(page_of, "127.0.0.1", free_port(), 1)) as server:
        visitor = Visitor(browser, next(server))
        try:
            resize(browser, 420, 860)
            go("#choice input")
            press(Keys.ARROW_DOWN, Keys.ENTER)
            visitor.wait("document.querySelector('#frontal .xray img')")
            visitor.write()
            go("#model-0 .where button")
            press(Keys.ENTER)
            visitor.wait("document.querySelector('#model-0 .region input')?.checkVisibility()")
            assert not visitor.run("return document.querySelector('.attention')")  # off until asked for
            go("#model-0 .region input")
            press(Keys.ARROW_DOWN, Keys.ENTER)
            visitor.wait("document.querySelector('#model-0 .attention svg rect')")
            assert visitor.text("#model-0 .attention b") in regions_to_attend(systems[0])
            assert "Region attention" in visitor.text("#model-0 .attention")
            assert "In the study's box of the region" in visitor.text("#model-0 .attention")
            assert visitor.run("return document.documentElement.scrollWidth") <= 420
            assert not visitor.run("return document.querySelector('#model-1 .region input')")
            visitor.click("#clear")
            visitor.wait("!document.querySelector('.attention')")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_stop(visitor, site, xray, monkeypatch):
    engine, ended = site[3].engine, []

    def counting(*given, **watching):
        ended.append(engine(*given, **watching)[0][1])
        return [("<report>No edema.</report>", 5, 9)]

    counting.processor = engine.processor
    visitor.drop("frontal", xray)
    visitor.wait("document.querySelector('#frontal .xray img')")
    with monkeypatch.context() as slow:
        slow.setattr(site[3], "engine", counting)
        slow.setattr(engine.model.generation_config, "max_new_tokens", 4000)
        slow.setattr(engine.model.generation_config, "min_new_tokens", 4000)
        visitor.click("#start")
        visitor.wait("document.querySelector('#model-0 .growing')")
        visitor.click("#stop")
        visitor.wait("document.querySelector('#status').innerText === 'Stopped.'")
        until = time.monotonic() + 30
        while not ended and time.monotonic() < until:
            time.sleep(0.05)
    assert 0 < ended[0] < 4000  # the model has ended too, not the page alone
    visitor.write()


@pytest.mark.parametrize("name", ["nih/00000032_007.png", "misc/16747_3_1.jpg", "*.dcm"])
def test_real_xrays(visitor, name):
    files = sorted((DATA / "images" / "misc").glob(name)) if "*" in name else [DATA / "images" / name]
    if not files or not files[0].is_file():
        pytest.skip("the real X-rays are not shipped: set RRG_DATA")
    visitor.drop("frontal", files[0])
    visitor.wait("document.querySelector('#frontal .xray img')?.naturalWidth > 300")
    visitor.write()
    assert visitor.text("#model-0 .report").startswith("There is a left pleural effusion.")


@pytest.mark.parametrize("width", [360, 420, 820])
def test_on_a_narrow_page(visitor, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.2)
    wide = visitor.run("return document.documentElement.scrollWidth")
    visitor.run("window.scrollTo(0, 400)")
    top = visitor.run("return [window.scrollY, document.querySelector('.notice').getBoundingClientRect().top]")
    visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width
    assert top[0] > 0 <= top[1]  # the notice stays in sight
