"""The phantom: every sign is where it should be, the words match the states, the data set follows the schema."""

import functools
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling.configuration_lmrrg import REGION_NAMES
from recipes import build_phantom
from recipes.data import phantom
from recipes.data.phantom import (
    STYLES,
    Sign,
    earlier,
    make_study,
    render,
    sample_states,
    to_png,
    with_no_finding,
    write_report,
    write_request,
)
from recipes.data.phantom_sites import SITES
from recipes.data.schema import read_build, read_dataset
from recipes.files import InputError
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, NO_FINDING, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState


def only(name: str, state: int = POSITIVE) -> list[int]:
    return [state if finding == name else BLANK for finding in FINDINGS]


def pixels(states, view: str, seed: int, size: int = 112, site: str = "a") -> np.ndarray:
    image = SITES[site].render(states, view, np.random.default_rng(seed), size, lateral_only=False)
    return np.asarray(image, dtype=float)


@pytest.fixture(params=[*SITES])
def site(request) -> str:
    return request.param


@pytest.mark.parametrize("view", phantom.VIEWS)
@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_shows_clearly_when_certain_and_faintly_when_not(name, view, site):
    for seed in range(3):
        normal, certain, faint, denied = (
            pixels(only(name, state), view, seed, site=site) for state in (BLANK, POSITIVE, UNCERTAIN, NEGATIVE)
        )
        certain, faint = np.abs(certain - normal), np.abs(faint - normal)
        assert np.array_equal(denied, normal)  # nothing is drawn
        assert (certain > 25).sum() >= 60  # a tenth of the grey range over a third of a 14-pixel patch
        assert 0.15 * certain.sum() < faint.sum() < 0.8 * certain.sum()


CENTRAL = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema", "Support Devices")  # both sides or the midline


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name",
    [name for name in FINDINGS if name not in CENTRAL],
)
def test_the_patients_left_is_the_images_right(name, side, site):
    rng = np.random.default_rng(0)
    study = make_study(only(name), rng)
    study = replace(study, signs={**study.signs, name: Sign(side, "moderate", "lower")})
    normal = replace(study, states=make_study(only(name, BLANK), rng).states)
    change = np.abs(pixels(study, "frontal", 1, site=site) - pixels(normal, "frontal", 1, site=site)).sum(axis=0)
    left, right = change[58:].sum(), change[:54].sum()
    assert (left > 4 * right) if side == "left" else (right > 4 * left)
    text = SITES[site].write_report(study, rng).lower()
    assert side in text and {"left": "right", "right": "left"}[side] not in text


@pytest.mark.parametrize(
    "name, sign",
    [
        ("Pleural Effusion", Sign("left", "small", "lower")),  # fills the posterior recess first
        ("Lung Lesion", Sign("left", "moderate", "retrocardiac")),  # the heart covers it
    ],
)
def test_what_only_the_lateral_view_shows(name, sign, site):
    study = make_study(only(name), np.random.default_rng(0))
    study = replace(study, signs={**study.signs, name: sign})
    normal = replace(study, states=tuple(with_no_finding(only(name, BLANK)).tolist()))
    assert study.lateral_only == {name} and normal.lateral_only == set()
    front, side = (
        np.abs(pixels(study, view, 2, site=site) - pixels(normal, view, 2, site=site)) for view in phantom.VIEWS
    )
    assert not front.any() and (side > 25).sum() >= 60


def test_lateral_only_findings_are_a_minority_and_can_be_switched_off():
    states = [POSITIVE] * 13
    hidden = [make_study(states, np.random.default_rng(seed)).lateral_only for seed in range(300)]
    assert 0.15 < np.mean(["Pleural Effusion" in names for names in hidden]) < 0.35  # a quarter are small
    assert 0.10 < np.mean(["Lung Lesion" in names for names in hidden]) < 0.30  # a fifth
    assert not any(
        make_study(states, np.random.default_rng(seed), lateral_only=False).lateral_only for seed in range(99)
    )


@pytest.mark.parametrize(
    "state, low, high",
    [
        (NEGATIVE, 0.35, 0.50),  # a normal heart is at most half as wide as the chest
        (POSITIVE, 0.55, 0.75),  # cardiomegaly: a cardiothoracic ratio above 0.5
    ],
)
def test_cardiothoracic_ratio(state, low, high, site):
    rows, grey = {"a": (slice(140, 172), 115), "b": (slice(142, 160), 128)}[site]  # between a lung's and a heart's
    for seed in range(8):
        image = pixels(only("Cardiomegaly", state), "frontal", seed, 256, site)
        ratios = []
        for row in image[rows]:  # above the diaphragm, through the ventricles
            skin = np.flatnonzero(row > grey)[[0, -1]]
            air = skin[0] + np.flatnonzero(row[skin[0] : skin[1]] < grey)
            right, left = air[air < 128], air[air >= 128]
            ratios.append((left.min() - right.max()) / (left.max() - right.min()))
        assert low < np.median(ratios) < high


@functools.cache
def change_by(site: str, name: str, sign: Sign, shape: str, seed: int) -> tuple[np.ndarray, dict[str, dict]]:
    """What a finding changes in the picture, (height, width), and the boxes by their regions."""
    rng = np.random.default_rng(seed)
    study = make_study(only(name), rng, lateral_only=False)
    study = replace(study, signs={**study.signs, name: sign})
    normal = replace(study, states=make_study(only(name, BLANK), rng).states)
    drawn, blank = (
        np.asarray(SITES[site].render(each, "frontal", np.random.default_rng(seed), 256, shape=shape), dtype=float)
        for each in (study, normal)
    )
    boxes = {box["region"]: box for box in SITES[site].region_boxes(study, np.random.default_rng(seed), 256, shape)}
    return np.abs(drawn - blank), boxes


def share_inside(site: str, name: str, region: str, sign: Sign, shape: str, seed: int) -> float:
    """Of all that a finding changes in the picture, the share in the box of a region, a pixel of border included."""
    change, boxes = change_by(site, name, sign, shape, seed)
    box = boxes[region]
    rows, columns = (
        slice(int(box[low]) - 1, int(np.ceil(box[high])) + 2) for low, high in (("y0", "y1"), ("x0", "x1"))
    )
    return change[rows, columns].sum() / change.sum()


@pytest.mark.parametrize("shape", phantom.SHAPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_boxes_are_where_the_findings_of_their_regions_are_drawn(side, shape, site):
    """The picture tells where a region is: what a finding of it changes is there, and not on the other side."""
    other = {"left": "right", "right": "left"}[side]
    for seed in range(3):
        for zone in ("upper", "mid", "lower"):
            lesion = ("Lung Lesion", Sign(side, "small", zone), shape, seed)
            assert share_inside(site, lesion[0], f"{side} {zone} lung zone", *lesion[1:]) > 0.8
            assert share_inside(site, lesion[0], f"{side} lung", *lesion[1:]) > 0.97
            assert share_inside(site, lesion[0], f"{other} lung", *lesion[1:]) < 0.02
        effusion = ("Pleural Effusion", Sign(side, "moderate", "lower"), shape, seed)
        assert share_inside(site, effusion[0], f"{side} lower lung zone", *effusion[1:]) > 0.9
        assert share_inside(site, effusion[0], f"{side} apical zone", *effusion[1:]) < 0.01
        chest = Sign(side, "moderate", "mid")
        assert share_inside(site, "Cardiomegaly", "cardiac silhouette", chest, shape, seed) > 0.97
        assert share_inside(site, "Enlarged Cardiomediastinum", "mediastinum", chest, shape, seed) > 0.95


@pytest.mark.parametrize("shape", phantom.SHAPES)
def test_boxes_have_the_models_names_and_lie_in_the_image(shape, site):
    study = make_study(only("Cardiomegaly"), np.random.default_rng(0))
    for seed, size in ((0, 112), (1, 64), (2, 1024)):
        boxes = SITES[site].region_boxes(study, np.random.default_rng(seed), size, shape)
        height = round(size * phantom.SHAPES[shape])
        assert len(boxes) == 27 and {box["region"] for box in boxes} == {*REGION_NAMES} - {
            "svc",
            "cavoatrial junction",
        }
        for box in boxes:
            assert 0 <= box["x0"] < box["x1"] <= size and 0 <= box["y0"] < box["y1"] <= height


def test_draws_of_anatomy_signs_and_noise_do_not_depend_on_the_states():
    for seed in range(5):
        absent, all_there = (make_study([s] * 13, np.random.default_rng(seed)) for s in (BLANK, POSITIVE))
        assert absent.signs == all_there.signs and absent.device == all_there.device


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    a, b, c = (to_png(render([POSITIVE] * 13, "frontal", np.random.default_rng(seed), 112)) for seed in (3, 3, 4))
    assert a == b != c
    saved = Image.open(io.BytesIO(a))
    assert saved.mode == "L" and saved.size == (112, 112) and "not medical data" in saved.text["Description"]


@pytest.mark.parametrize("size", [112, 224, 512])
def test_the_picture_does_not_depend_on_the_size(size):
    image = render(only("Pneumothorax"), "frontal", np.random.default_rng(0), size, lateral_only=False)
    small = np.asarray(image.resize((56, 56), Image.Resampling.BOX), dtype=float)
    reference = np.asarray(
        render(only("Pneumothorax"), "frontal", np.random.default_rng(0), 112, lateral_only=False).resize(
            (56, 56), Image.Resampling.BOX
        ),
        dtype=float,
    )
    assert np.abs(small - reference).mean() < 5  # grey levels of 255: only noise and line widths differ


@pytest.mark.parametrize("shape, height", [("portrait", 134), ("landscape", 90)])
@pytest.mark.parametrize("view", phantom.VIEWS)
@pytest.mark.parametrize("name", FINDINGS)
def test_every_shape_shows_the_same_chest_with_its_finding(name, view, shape, height, site):
    """All begin at the same height; a portrait image shows more below the chest, a landscape one less."""
    draw = lambda state, shape: np.asarray(  # noqa: E731
        SITES[site].render(only(name, state), view, np.random.default_rng(5), 112, False, shape), dtype=float
    )
    image, square = draw(POSITIVE, shape), draw(POSITIVE, "square")
    assert image.shape == (height, 112)
    both, same = image[:112], square[:height]
    assert np.abs(both - same).mean() < 12 < np.abs(both[8:] - same[:-8]).mean()  # grey levels; the noise differs
    assert (np.abs(image - draw(BLANK, shape)) > 25).sum() >= 60  # as above: the finding is not cut off


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([0] * 13, "oblique"), "frontal, lateral"),
        (([0] * 12, "frontal"), "13 or 14"),
        (([4] * 13, "frontal"), "0 to 3"),
        (([0] * 13, "frontal", 8), "64 to 1024"),
        (([0] * 13, "frontal", 112, True, "round"), "portrait, square, landscape"),
    ],
)
def test_bad_arguments_of_render(arguments, words):
    states, view, *size = arguments
    with pytest.raises(ValueError, match=words):
        render(states, view, np.random.default_rng(0), *size)


# --- states and words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "present, expected",
    [
        ({}, POSITIVE),
        ({"Edema": NEGATIVE}, POSITIVE),  # a denied finding is none
        ({"Edema": UNCERTAIN}, BLANK),  # CheXpert: neither positive nor uncertain
        ({"Fracture": POSITIVE}, BLANK),
        ({"Support Devices": POSITIVE}, POSITIVE),  # a device is no finding
    ],
)
def test_no_finding(present, expected):
    states = with_no_finding([present.get(name, BLANK) for name in FINDINGS])
    assert states[NO_FINDING] == expected and states.shape == (14,)


def test_sampled_states_are_imbalanced_as_in_open_i():
    rng = np.random.default_rng(0)
    states = np.array([sample_states(rng) for _ in range(4000)])
    share = dict(zip(CONDITIONS, np.isin(states, (POSITIVE, UNCERTAIN)).mean(axis=0), strict=True))
    for name, gold in (
        ("Cardiomegaly", 0.083),  # shares of NegBio's human gold of Open-i
        ("Atelectasis", 0.086),
        ("Pleural Effusion", 0.041),
        ("Pneumothorax", 0.006),
        ("Edema", 0.012),
        ("Consolidation", 0.007),
    ):
        assert gold / 2 < share[name] < gold * 2 + 0.01, name
    assert 0.57 < (states[:, NO_FINDING] == POSITIVE).mean() < 0.72
    edema = np.isin(states[:, CONDITIONS.index("Edema")], (POSITIVE, UNCERTAIN))
    heart = np.isin(states[:, CONDITIONS.index("Cardiomegaly")], (POSITIVE, UNCERTAIN))
    assert heart[edema].mean() > 3 * heart.mean()  # failing hearts are large


def test_balanced_states():
    rng = np.random.default_rng(0)
    present = np.isin([sample_states(rng, balanced=True)[:13] for _ in range(2000)], (POSITIVE, UNCERTAIN))
    assert present.mean(axis=0).min() > 0.10 and present.mean(axis=0).max() < 0.17  # 0.875 * 2 / 13 = 0.135
    assert 0.09 < (~present.any(axis=1)).mean() < 0.16  # one in eight


@pytest.mark.parametrize("abnormal", [0.0, 1.0])
def test_share_of_abnormal_studies(abnormal):
    rng = np.random.default_rng(0)
    present = np.isin([sample_states(rng, abnormal=abnormal)[:13] for _ in range(100)], (POSITIVE, UNCERTAIN))
    assert present.any(axis=1).mean() == abnormal


@pytest.fixture(scope="module")
def labeler():
    return LexicalLabeler()


@pytest.mark.parametrize("style", STYLES)
def test_the_labeler_reads_the_states_back(labeler, style, site):
    sample_states, write_report, write_impression = (
        getattr(SITES[site], name) for name in ("sample_states", "write_report", "write_impression")
    )
    rng = np.random.default_rng(STYLES.index(style))
    texts, impressions, studies = [], [], []
    for index in range(300):
        states = rng.integers(0, 4, 13) if index % 3 == 0 else sample_states(rng, 0.7, balanced=index % 3 == 1)
        study = make_study(states, rng)
        texts.append(write_report(study, rng, style, earlier(study, rng) if index % 2 else None, views=1 + index % 2))
        impressions.append(write_impression(study, rng))
        studies.append(study)
    expected, read = np.array([study.states for study in studies]), labeler(texts)
    wrong = [(texts[i], CONDITIONS[j], expected[i, j], read[i, j]) for i, j in np.argwhere(expected != read)]
    assert not wrong, wrong[:3]
    expected[expected == NEGATIVE] = BLANK  # an impression lists what there is
    read = labeler(impressions)
    wrong = [(impressions[i], CONDITIONS[j]) for i, j in np.argwhere(expected != read)]
    assert not wrong, wrong[:3]


def test_words_come_only_with_their_reason(site):
    rng = np.random.default_rng(0)
    for _ in range(300):
        study = make_study(rng.choice([BLANK, POSITIVE, NEGATIVE], 13), rng)
        text = SITES[site].write_report(study, rng)
        hedges = r"possibl|may|question|cannot|suspect|might|perhaps|probabl|suspici|equivocal|could|borderline"
        comparisons = r"\bnew\b|unchanged|resolved|previous|lateral views|recently|persistent|disappear|projections"
        assert not re.search(hedges, text, re.IGNORECASE), text  # only for uncertain findings
        assert not re.search(comparisons, text, re.IGNORECASE), text  # needs a prior or two views
        assert "{" not in text and "  " not in text and text[0].isupper() and text.endswith("."), text


def test_comparison_with_the_prior():
    rng = np.random.default_rng(0)
    now, absent = only("Pleural Effusion"), only("Pleural Effusion", NEGATIVE)
    study, healthy = make_study(now, rng), make_study(absent, rng)
    texts = [write_report(study, rng, "terse", prior=healthy) for _ in range(30)]
    assert any(text.startswith("New ") for text in texts) and not any("nchanged" in text for text in texts)
    texts = [write_report(study, rng, "terse", prior=study) for _ in range(30)]
    assert any(text.startswith("Unchanged ") for text in texts) and not any("New" in text for text in texts)
    assert write_report(healthy, rng, "terse", prior=study) == "The previously seen pleural effusion has resolved."


def test_reports_vary_and_follow_their_draws():
    study = make_study(only("Edema"), np.random.default_rng(0))
    texts = {write_report(study, np.random.default_rng(seed)) for seed in range(40)}
    assert len(texts) > 8 and write_report(study, np.random.default_rng(1)) in texts
    assert write_report(only("Edema", BLANK), np.random.default_rng(0), "terse") == "No acute abnormality is seen."
    with pytest.raises(ValueError, match="terse, prose, systematic, mimic"):
        write_report(study, np.random.default_rng(0), "haiku")


def test_requests_do_not_depend_on_findings_and_may_be_missing():
    rng = np.random.default_rng(0)
    requests = [write_request(rng) for _ in range(200)]
    assert 20 < sum(indication is None for indication, _ in requests) < 60  # one in five
    assert 20 < sum(history is None for _, history in requests) < 60


# --- data set ----------------------------------------------------------------------------------------------------


def build(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["build_phantom.py", *arguments])
    build_phantom.main()


def test_build_follows_the_schema_and_repeats(monkeypatch, tmp_path, labeler):
    sizes = ["--n_train", "8", "--n_validation", "2", "--n_test", "4", "--size", "64", "--scenarios", "sn,sw,mn,mw"]
    build(monkeypatch, "--out", str(tmp_path / "a"), *sizes)
    build(monkeypatch, "--out", str(tmp_path / "b"), *sizes)
    build(monkeypatch, "--out", str(tmp_path / "c"), *sizes, "--seed", "1")
    a, b, c = (read_dataset(str(tmp_path / name)) for name in "abc")
    assert {split: len(rows) for split, rows in a.items()} == {"train": 8, "validation": 2, "test": 4}
    assert a["train"].to_list() == b["train"].to_list() != c["train"].to_list()
    subjects = [row["subject_id"] for rows in a.values() for row in rows]
    assert len(set(subjects)) == len(subjects) == 14
    for row in a["train"]:
        views = 2 if row["scenario"][0] == "m" else 1
        assert len(row["images"]) == views and row["views"] == ["PA", "LATERAL"][:views]
        assert (row["prior_report"] is not None) == (row["scenario"][1] == "w")
        assert row["labels"] == labeler([row["report"]])[0].tolist()
        assert len(row["boxes"]) == 27
        assert (row["source"], row["license"]) == ("phantom", "CC0-1.0")
        assert row["images"][0].width == 64 and "not medical data" in row["images"][0].text["Description"]
    box = next(box for box in a["train"][0]["boxes"] if box["region"] == "cardiac silhouette")
    values = np.asarray(a["train"][0]["images"][0], dtype=float)
    inside = values[int(box["y0"]) : int(box["y1"]), int(box["x0"]) : int(box["x1"])].mean()
    assert inside > values[: int(box["y0"])].mean()  # of the film in the row: the heart is brighter than lungs and air
    heights = {image.height for rows in a.values() for row in rows for image in row["images"]}
    assert heights == {77, 64, 51}  # 1.2, 1.0 and 0.8 x 64
    note = read_build(tmp_path / "a")
    assert note["builder"] == "build_phantom" and note["labeler"] == "lexical" and note["seed"] == 0
    assert "not medical data" in note["note"] and str(tmp_path) not in json.dumps(note)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--out"),
        (["--out", "x", "--n_train", "-3"], "--n_train"),
        (["--out", "x", "--size", "0"], "--size"),
        (["--out", "x", "--seed", "-1"], "--seed"),
        (["--out", "x", "--shapes", "square,round"], "portrait, square, landscape, got 'round'"),
        (["--out", "x", "--abnormal", "1.5"], "--abnormal"),
        (["--out", "x", "--style", "verse"], "invalid choice: 'verse'"),
        (["--out", "x", "--scenarios", "sn,xx"], "'xx'"),
        (["--out", "x", "--config", "missing.yaml"], "missing.yaml"),
        (["--out", "x", "--colour", "red"], "colour"),
    ],
)
def test_bad_arguments_of_the_builder(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        build(monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())


def test_contact_sheet_in_the_repository():
    file = Path(phantom.__file__).with_name("contact_sheet.png")
    assert file.stat().st_size <= 400_000
    assert "not medical data" in Image.open(file).text["Description"]
