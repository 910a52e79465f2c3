"""Open-i: reading, joining, splitting and building, on small XML files written here and, where it is, on the wheel.

No text of Open-i stands here. File names, ids and views are facts of the published lists.
"""

import csv
import importlib.util
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import build_iu_xray
from recipes.data import openi
from recipes.data.schema import SPLITS, read_build, read_dataset
from recipes.data.views import scenario_of
from recipes.files import InputError
from rewards.labels import CONDITIONS, CheXpertState

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
CLEAR = "The lungs are clear. Heart size is normal. No effusion or pneumothorax."


def xml(number, findings=CLEAR, impression="Normal chest.", mesh=("normal",), images=None, uid=True):
    """An Open-i-like report with the images `images` (default: a frontal and a lateral one)."""
    images = [f"CXR{number}_IM-{number:04d}-1001", f"CXR{number}_IM-{number:04d}-2001"] if images is None else images
    return (
        "<?xml version='1.0' encoding='utf-8'?><eCitation>"
        + f"<uId id='CXR{number}'/>" * uid
        + "<MedlineCitation><Article><Abstract><AbstractText Label='COMPARISON'/>"
        f"<AbstractText Label='INDICATION'>Cough &amp;gt; 2 weeks.</AbstractText>"
        f"<AbstractText Label='FINDINGS'>{findings}</AbstractText>"
        f"<AbstractText Label='IMPRESSION'>{impression}</AbstractText></Abstract></Article></MedlineCitation><MeSH>"
        + "".join(f"<major>{term}</major>" for term in mesh)
        + "<automatic>lung</automatic></MeSH>"
        + "".join(f"<parentImage id='{i}'><caption> PA and lateral\n XXXX </caption></parentImage>" for i in images)
        + "</eCitation>"
    )


def write_reports(folder, reports):
    folder.mkdir(exist_ok=True)
    for name, content in reports.items():
        (folder / f"{name}.xml").write_text(content)
    return folder


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_reads_a_folder_and_an_archive(tmp_path, packed):
    source = write_reports(tmp_path / "ecgen-radiology", {n: xml(n, mesh=("Cardiomegaly/mild",)) for n in (10, 2, 1)})
    if packed:
        with tarfile.open(tmp_path / "reports.tgz", "w:gz") as archive:
            archive.add(source, "ecgen-radiology")
        source = tmp_path / "reports.tgz"
    studies, skipped = openi.read_studies(source)
    assert [study.study_id for study in studies] == ["CXR1", "CXR2", "CXR10"] and not skipped  # by number, not by name
    study = studies[2]
    assert study.sections["findings"] == CLEAR and study.sections["comparison"] == ""
    assert study.mesh == ("Cardiomegaly/mild",) and study.automatic == ("lung",)
    assert study.images == ("CXR10_IM-0010-1001", "CXR10_IM-0010-2001")
    assert study.caption == "PA and lateral XXXX" and study.file.endswith("10.xml")


def test_reads_an_annotation(tmp_path):
    row = {"id": "CXR7_IM-2263", "report": CLEAR, "image_path": ["CXR7_IM-2263/0.png", "CXR7_IM-2263/1.png"]}
    content = {"train": [row], "val": [{**row, "id": "8", "image_path": ["8.png"]}], "test": [{"id": "9"}]}
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    studies, skipped = openi.read_studies(tmp_path / "annotation.json")
    assert [(study.study_id, study.split, study.report) for study in studies] == [
        ("CXR7", "train", CLEAR),
        ("CXR8", "validation", CLEAR),
    ]
    assert (
        skipped[0].place.endswith("annotation.json: test[0]") and "lacks id, report or image_path" in skipped[0].reason
    )


@pytest.mark.parametrize(
    ("bad", "study_id", "reason"),
    [
        ("<eCitation><uId id='CXR3'/>", "CXR3", "does not parse"),  # cut off
        ("", "CXR3", "does not parse"),
        (xml(3, uid=False), "CXR3", "no uId"),
        (xml(1), "CXR1", "CXR1 was already read from"),  # same id in another file
        (xml(3, images=["CXR3_a", "CXR3_a"]), "CXR3", "image CXR3_a twice"),
        (xml(3, images=["CXR1_IM-0001-1001"]), "CXR3", "already belongs to CXR1"),
    ],
)
def test_a_bad_study_is_skipped_with_its_reason(tmp_path, bad, study_id, reason):
    studies, skipped = openi.read_studies(write_reports(tmp_path / "xml", {1: xml(1), 2: xml(2), 3: bad}))
    assert [study.study_id for study in studies] == ["CXR1", "CXR2"]
    assert len(skipped) == 1 and skipped[0].study_id == study_id and skipped[0].place.endswith("3.xml")
    assert reason in skipped[0].reason


def _tgz(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("reports/1.xml")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "there is no .*gone"),
        ("gone.json", None, "there is no .*gone.json"),
        ("folder", "mkdir", "folder holds no .xml file"),
        ("empty.tgz", b"", "empty.tgz is no complete .tgz archive"),
        ("text.tgz", b"hello", "text.tgz is no complete .tgz archive"),
        ("cut.tgz", _tgz(os.urandom(5000))[:3000], "cut.tgz is no complete .tgz archive"),
        ("bad.tgz", _tgz(b"<eCitation>"), r"no study in .*bad.tgz can be read.*does not parse"),
        ("cut.json", b'{"train": [', "cut.json cannot be read as JSON"),
        ("list.json", b"[1, 2]", "list.json holds no studies"),
        ("other.json", b'{"images": []}', "needs lists named train, val and test"),
        ("none.json", b'{"train": []}', "none.json can be read; it lists none"),
        ("latin.json", b"\xff\xfe\xfa", "latin.json cannot be read as JSON"),
    ],
)
def test_an_unusable_source_is_one_sentence(tmp_path, name, content, message):
    if content == "mkdir":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        openi.read_studies(tmp_path / name)


def test_says_what_to_install_without_the_wheel(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torchxrayvision, or give --reports"):
        openi.read_studies()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CXR2384_IM-0942", "CXR2384"),  # R2Gen, ReXrank
        ("CXR2372_IM-0933-0001", "CXR2372"),  # R2Gen, a study with two series
        ("3321", "CXR3321"),  # a copy of R2Gen's file without the series
        (3321, "CXR3321"),
        ("CXR17", "CXR17"),
        ("02aa804e-bde0afdd", "02aa804e-bde0afdd"),  # MIMIC-CXR's ids are left alone
    ],
)
def test_study_id(name, expected):
    assert openi.study_id_of(name) == expected


def test_split_files(tmp_path):
    r2gen = {"train": [{"id": "CXR1_IM-0001"}, {"id": "CXR2_IM-0652"}], "val": [{"id": "3"}], "test": [{"id": "CXR2"}]}
    rexrank = {"CXR3030_IM-1405": {"split": "test"}, "CXR38_IM-1911": {"split": "valid"}}
    for name, content in (("r2gen", r2gen), ("rexrank", rexrank), ("other", {"CXR1": {"fold": 3}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert openi.read_split([tmp_path / "r2gen.json"]) == {"CXR1": "train", "CXR2": "test", "CXR3": "validation"}
    assert openi.read_split([tmp_path / "rexrank.json"]) == {"CXR3030": "test", "CXR38": "validation"}
    with pytest.raises(InputError, match=r"other\.json: CXR1 is neither"):
        openi.read_split([tmp_path / "other.json"])


# --- images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CXR4_IM-2050-1001", "4_IM-2050-1001"),  # XML
        ("CXR4_IM-2050-1001.png", "4_IM-2050-1001"),  # Open-i's PNGs
        ("4_IM-2050-1001.dcm.png", "4_IM-2050-1001"),  # Kaggle's PNGs
        ("CXR1_1_IM-0001-3001", "1_IM-0001-3001"),  # the first study is named otherwise in the XML
        ("CXR37_IM-1847-0001-0002", "37_IM-1847-0001-0002"),
        ("CXR4_IM-2050/0", "4_IM-2050/0"),  # R2Gen's folders
        ("photo", "photo"),
    ],
)
def test_image_key(name, key):
    assert openi.image_key(name) == key


@pytest.mark.parametrize(
    ("images", "files"),
    [
        (None, ["CXR4_IM-0004-1001.png", "CXR4_IM-0004-2001.png"]),  # Open-i
        (None, ["normalized/4_IM-0004-1001.dcm.png", "normalized/4_IM-0004-2001.dcm.png"]),  # Kaggle
        (None, ["CXR4_IM-0004/0.png", "CXR4_IM-0004/1.png"]),  # R2Gen: a folder per study
        (["CXR4_IM-0004/0.png", "CXR4_IM-0004/1.png"], ["CXR4_IM-0004/0.png", "CXR4_IM-0004/1.png"]),  # its annotation
        (["a/x.png", "a/y.png"], ["a/x.png", "a/y.png"]),  # any path of an annotation
    ],
)
def test_images_are_found_in_every_layout(tmp_path, images, files):
    for file in [*files, "CXR5_IM-0005-1001.png", "notes.txt"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    study = openi.Study("CXR4", "4.xml", images=tuple(images or ["CXR4_IM-0004-1001", "CXR4_IM-0004-2001"]))
    found = openi.find_images(study, openi.index_images(tmp_path), tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for _, file in found] == files


def test_image_root_must_hold_images(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*gone"):
        openi.index_images(tmp_path / "gone")
    with pytest.raises(InputError, match="holds no image"):
        openi.index_images(tmp_path)


FL, LF = ["FRONTAL", "LATERAL"], ["LATERAL", "FRONTAL"]


@pytest.mark.parametrize(
    ("names", "caption", "views"),
    [  # views as in Kaggle's indiana_projections.csv
        (["3_IM-1384-1001", "3_IM-1384-2001"], "", FL),  # the usual pair
        (["3_IM-1384-2001", "3_IM-1384-1001"], "", LF),  # its order does not matter
        (["20_IM-0653-1001", "20_IM-0653-1002"], "", FL),
        (["23_IM-0001-10001", "23_IM-0001-9001"], "", LF),  # numbers, not strings
        (["64_IM-2218-4004", "64_IM-2218-2001"], "", FL),  # 4004 is frontal
        (["62_IM-2202-1001", "62_IM-2202-12012", "62_IM-2202-4004"], "", ["LATERAL", "FRONTAL", "FRONTAL"]),
        (["27_IM-1168-2002", "27_IM-1168-3003"], "", FL),
        (["44_IM-2078-1001"], "", ["FRONTAL"]),
        (["74_IM-2296-2001"], "", ["LATERAL"]),  # alone, numbered as the second of a pair
        (["74_IM-2296-1002"], "", ["LATERAL"]),
        (["37_IM-1847-0001-0002"], "", ["LATERAL"]),
        (["37_IM-1847-0001-0001"], "", ["FRONTAL"]),
        (["62_IM-2202-1001", "62_IM-2202-12012"], "", LF),  # 12012 is frontal
        (["7/0", "7/1"], "", FL),  # R2Gen's numbering
        (["3_IM-1384-1001", "3_IM-1384-2001"], "PA and lateral chest", ["PA", "LATERAL"]),
        (["45_IM-2081-1001"], "PORTABLE CHEST", ["AP"]),
        (["45_IM-2081-1001"], "Chest AP view", ["AP"]),
        (["45_IM-2081-1001"], "PA and AP views", ["PA"]),
        (["45_IM-2081-1001"], "Pa view, capital", ["FRONTAL"]),  # words that hold the letters are no views
        ([], "", []),
    ],
)
def test_views_from_numbers_and_caption(names, caption, views):
    assert openi.views_of(names, caption) == views


def test_projections_decide(tmp_path):
    rows = "uid,filename,projection\n10,10_IM-0002-2001.dcm.png,Frontal\n10,10_IM-0002-1001.dcm.png,Lateral\n"
    (tmp_path / "indiana_projections.csv").write_text(rows)
    (tmp_path / "images").mkdir()
    projections = openi.read_projections(tmp_path / "images")
    names = ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001"]
    assert openi.views_of(names, "", projections) == LF and openi.views_of(names) == FL
    files = [Path("lateral.png"), Path("frontal.png")]
    assert openi.order_views(list(zip(names, files, strict=True)), "", projections, 2) == (FL, files[::-1])
    (tmp_path / "indiana_projections.csv").write_text("uid,view\n")
    with pytest.raises(InputError, match="has no column filename, projection"):
        openi.read_projections(tmp_path / "images")


@pytest.mark.parametrize(
    ("maximum", "files"),
    [(1, ["f1"]), (2, ["f1", "l1"]), (3, ["f1", "f2", "l1"]), (9, ["f1", "f2", "l1"])],  # both views before a second
)
def test_frontal_first(maximum, files):
    images = [("1_IM-1-1001", "l1"), ("1_IM-1-4004", "f1"), ("1_IM-1-12012", "f2")]
    assert openi.order_views(images, "", {}, maximum)[1] == files


# --- MeSH --------------------------------------------------------------------------------------------------------

P, U = CheXpertState.POSITIVE, CheXpertState.UNCERTAIN


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (["normal"], {"No Finding": P}),
        (["normal", "Cardiomegaly/mild"], {"Cardiomegaly": P}),  # "normal" beside another term is no normal study
        (["normal", "Calcinosis/aorta"], {}),
        (["Markings/lung/interstitial"], {"Lung Opacity": U}),  # mostly hedged
        (["Markings/lung/bronchovascular"], {}),
        (["Cardiomegaly/mild"], {"Cardiomegaly": P}),
        (["Cardiomegaly/borderline"], {"Cardiomegaly": U}),
        (["Cardiomegaly/borderline", "Cardiac Shadow/enlarged"], {"Cardiomegaly": P}),  # any sure term wins
        (["Cardiac Shadow/enlarged"], {"Cardiomegaly": P}),
        (["Cardiac Shadow/obscured"], {}),
        (["Mediastinum/prominent"], {"Enlarged Cardiomediastinum": P}),
        (["Opacity/lung/base/left", "Pulmonary Atelectasis/base/left"], {"Lung Opacity": P, "Atelectasis": P}),
        (["Opacity/lung/upper lobe/round"], {"Lung Lesion": P}),  # a nodular opacity
        (["Opacity/ribs/left"], {}),  # not in the lung
        (["Density/lung/base"], {"Lung Opacity": U}),
        (["Calcified Granuloma/lung/apex/left", "Emphysema", "Calcinosis/aorta"], {}),  # abnormal, none of the 13
        (["Nodule/lung/lingula"], {"Lung Lesion": P}),
        (["Mass/breast/large"], {}),
        (["Pulmonary Congestion"], {"Edema": U}),
        (["Heart Failure"], {"Edema": P}),
        (["Thickening/pleura/apex/left"], {"Pleural Other": P}),
        (["Cicatrix/lung/base/left"], {"Lung Opacity": P}),
        (["Cicatrix/pleura"], {"Pleural Other": P}),
        (["Hydropneumothorax/right"], {"Pneumothorax": P, "Pleural Effusion": P}),
        (["Pericardial Effusion/large"], {}),  # no pleural one
        (["Fractures, Bone/ribs/left/healed"], {"Fracture": P}),
        (["Catheters, Indwelling/right"], {"Support Devices": P}),
        (["Surgical Instruments/abdomen"], {"Support Devices": P}),  # clips
        (["AIRSPACE DISEASE / lung"], {"Lung Opacity": P}),  # case and spaces
        (["No Indexing"], {}),
        ([], {}),
    ],
)
def test_states_from_mesh(terms, expected):
    states = openi.states_from_mesh(terms)
    assert states.shape == (14,)
    assert {name: state for name, state in zip(CONDITIONS, states, strict=True) if state} == expected


MESH = {  # each heading with the places that decide; "?" where most reports hedge
    "Cardiomegaly": "cardiomegaly; cardiac shadow/enlarged; cardiac shadow/borderline?; heart/enlarged",
    "Enlarged Cardiomediastinum": "mediastinum/enlarged; mediastinum/prominent",
    "Lung Opacity": "opacity; opacity/lung; airspace disease; infiltrate; lung/interstitial; cicatrix; cicatrix/lung; "
    "lung diseases, interstitial; markings/interstitial?; thickening/interstitial; thickening/bronchi; "
    "thickening/bronchovascular; density/lung?; density/retrocardiac?; density/pulmonary alveoli?; "
    "density/costophrenic angle?; density/cardiophrenic angle?",
    "Lung Lesion": "opacity/round; density/round?; nodule; mass; mass/lung; cavitation",
    "Edema": "pulmonary edema; pulmonary congestion?; heart failure",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "pulmonary atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion; hemothorax",
    "Pleural Other": "thickening/pleura; cicatrix/pleura; pulmonary fibrosis; calcinosis/pleura; pleura/abnormal",
    "Fracture": "fractures, bone",
    "Support Devices": "catheters, indwelling; tube, inserted; implanted medical device; medical device; stents; "
    "surgical instruments; sutures",
    None: "cardiac shadow; heart; mediastinum; lung; markings; thickening; calcinosis; pleura; density; mass/breast; "
    "opacity/ribs; opacity/thoracic vertebrae; opacity/clavicle; opacity/breast; opacity/adipose tissue; "
    "cicatrix/ribs; cicatrix/thoracic vertebrae; cicatrix/clavicle; cicatrix/breast; cicatrix/adipose tissue",
}


@pytest.mark.parametrize("condition", MESH)
def test_every_heading_of_mesh(condition):
    for term in MESH[condition].split("; "):
        states = openi.states_from_mesh([term.removesuffix("?")])
        expected = {condition: U if term.endswith("?") else P} if condition else {}
        assert {name: state for name, state in zip(CONDITIONS, states, strict=True) if state} == expected, term


@pytest.mark.parametrize(
    ("term", "sign"),
    [
        *((f"Opacity/{place}", {"zone": "upper"}) for place in ("apex", "upper lobe")),
        *((f"Opacity/{place}", {"zone": "mid"}) for place in ("middle lobe", "lingula", "hilum")),
        *((f"Opacity/{place}", {"zone": "lower"}) for place in ("base", "lower lobe", "costophrenic angle")),
        *((f"Opacity/{size}", {"size": "small"}) for size in ("small", "mild")),
        ("Opacity/moderate", {"size": "moderate"}),
        *((f"Opacity/{size}", {"size": "large"}) for size in ("large", "severe")),
        *((f"Opacity/{side}", {"side": side}) for side in ("left", "right", "bilateral")),
        ("Opacity/left/bilateral", {"side": "bilateral"}),
        ("Opacity/large/small", {"size": "large"}),
    ],
)
def test_words_of_mesh_for_signs(term, sign):
    assert openi.signs_from_mesh([term]) == {"Lung Opacity": sign}


@pytest.mark.parametrize("cleaning", ["plain", "r2gen"])
def test_the_indication_is_cleaned_and_stays_plain(cleaning):
    """It is what the model reads, and no target."""
    raw = {"indication": " 1.  Cough &gt;  2 weeks . ", "findings": "A.", "comparison": "None."}
    row = openi.text_columns(openi.Study("CXR1", "1.xml", sections=raw), "findings", cleaning)
    assert row["indication"] == "Cough > 2 weeks."
    assert row["findings"] == row["report"] == {"plain": "A.", "r2gen": "a ."}[cleaning] and row["impression"] is None


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (["Pleural Effusion/right/small"], {"Pleural Effusion": {"side": "right", "size": "small"}}),
        (["Pleural Effusion/right/small", "Pleural Effusion/left/large"],
         {"Pleural Effusion": {"side": "bilateral", "size": "large"}}),  # both sides, the larger size
        (["Opacity/lung/upper lobe/left"], {"Lung Opacity": {"side": "left", "zone": "upper"}}),
        (["Opacity/retrocardiac"], {"Lung Opacity": {"zone": "lower"}}),
        (["Pneumothorax"], {"Pneumothorax": {}}),  # nothing said
        (["normal"], {}),
    ],
)  # fmt: skip
def test_signs_from_mesh(terms, expected):
    assert openi.signs_from_mesh(terms) == expected


def test_mesh_agrees_with_negbios_reading_of_it():
    file = DATA / "openi_gold" / "dev.csv"
    if not file.is_file() or importlib.util.find_spec("torchxrayvision") is None:
        pytest.skip("NegBio's Open-i labels are not shipped: set RRG_DATA, and install torchxrayvision")
    mesh = {study.study_id: study.mesh for study in openi.read_studies()[0]}
    with file.open() as lines:
        gold = list(csv.DictReader(lines))
    states = np.stack([openi.states_from_mesh(mesh[row["filename"]]) for row in gold])
    for theirs, ours, missed, added in (  # `added`: terms that they do not count
        ("Atelectasis", "Atelectasis", 0, 0),
        ("Pneumonia", "Pneumonia", 0, 0),
        ("Consolidation", "Consolidation", 0, 0),
        ("Pneumothorax", "Pneumothorax", 0, 1),  # a hydropneumothorax
        ("Effusion", "Pleural Effusion", 2, 2),  # pericardial ones; blood or air with the fluid
        ("Cardiomegaly", "Cardiomegaly", 0, 15),  # "Cardiac Shadow/enlarged"
        ("Edema", "Edema", 0, 30),  # congestion, heart failure
        ("Nodule", "Lung Lesion", 0, 50),  # masses, cavities, round opacities
        ("Mass", "Lung Lesion", 0, 100),  # nodules
        ("normal", "No Finding", 0, 0),
    ):
        expected = np.array([row[theirs] == "1" for row in gold])
        present = np.isin(states[:, CONDITIONS.index(ours)], (P, U))
        assert (expected & ~present).sum() <= missed, theirs
        assert (present & ~expected).sum() <= added, theirs


# --- splits ------------------------------------------------------------------------------------------------------

IDS = [f"CXR{i}" for i in range(200)]


@pytest.mark.parametrize(
    ("scheme", "named", "sizes"),
    [
        ("random", {}, (140, 20, 40)),  # 70/10/20
        ("random", {"CXR1": "test"}, (140, 20, 40)),  # names play no part
        ("r2gen", {"CXR1": "train", "CXR2": "test", "CXR999": "test"}, (1, 0, 1)),  # the rest is left out
        ("rexrank", dict.fromkeys(IDS[:40], "test"), (140, 20, 40)),  # an eighth of the rest validates
        ("rexrank", dict.fromkeys(IDS[:40], "test") | {IDS[40]: "validation"}, (159, 1, 40)),
    ],
)
def test_split_sizes(scheme, named, sizes):
    splits = openi.assign_splits(IDS, scheme, named, np.random.default_rng(0))
    assert tuple(list(splits.values()).count(split) for split in SPLITS) == sizes
    assert set(splits) <= set(IDS)
    assert scheme == "random" or all(splits[key] == split for key, split in named.items() if key in IDS)


def test_split_is_seeded():
    first, again, other = (openi.assign_splits(IDS, "random", {}, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("ids", "scheme", "named", "message"),
    [
        (IDS, "official", {}, "--split_scheme must be one of random, r2gen, rexrank"),
        (IDS, "r2gen", {}, "needs --split_file"),
        (IDS, "rexrank", {}, "needs --split_file"),
        (IDS, "rexrank", {"CXR999": "test"}, "none is left to test on"),
        (IDS, "r2gen", {"CXR999": "test"}, "none is left to test and train on"),
        (IDS[:2], "random", {}, "of 2 usable studies none is left to test on"),
    ],
)
def test_splits_that_cannot_be(ids, scheme, named, message):
    with pytest.raises(InputError, match=message):
        openi.assign_splits(ids, scheme, named, np.random.default_rng(0))


# --- building ----------------------------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs the builder in this process with the given arguments; the data set, build.json and skipped.csv."""

    def run_it(*arguments, out="built"):
        monkeypatch.setattr(
            sys, "argv", ["build_iu_xray.py", "--out", str(tmp_path / out), "--workers", "1", *map(str, arguments)]
        )
        build_iu_xray.main()
        with (tmp_path / out / "skipped.csv").open() as lines:
            return read_dataset(str(tmp_path / out)), read_build(tmp_path / out), list(csv.DictReader(lines))

    return run_it


def test_build_with_stand_ins(tmp_path, build):
    effusion = xml(13, "Large left effusion.", mesh=("Pleural Effusion/left/large",), images=["CXR13_IM-0013-1001"])
    reports = {n: xml(n) for n in range(1, 11)} | {11: xml(11, ""), 12: xml(12, mesh=("No Indexing",)), 13: effusion}
    source = write_reports(tmp_path / "xml", reports)
    data, note, skipped = build("--reports", source, "--image_source", "phantom", "--image_size", 64)
    assert {split: len(rows) for split, rows in data.items()} == note["rows"]
    assert note["rows"] == {"train": 8, "validation": 1, "test": 2}
    assert "stand-ins" in note["image_source"] and "not medical data" in note["image_source"]
    assert (note["labeler"], note["split_scheme"], note["skipped"]) == ("lexical", "random", 2)
    assert [(row["study_id"], row["reason"]) for row in skipped] == [
        ("CXR11", "it has no findings"),
        ("CXR12", "it has no human MeSH label that says what to draw"),
    ]
    rows = {row["study_id"]: row for split in data.values() for row in split}
    assert len(rows) == 11 and {row["subject_id"] for row in rows.values()} == set(rows)
    row = rows["CXR3"]
    assert row["report"] == row["findings"] == CLEAR and row["impression"] == "Normal chest."
    assert row["indication"] == "Cough > 2 weeks." and row["prior_report"] is None
    assert row["views"] == ["PA", "LATERAL"] and [image.size for image in row["images"]] == [(64, 64)] * 2
    assert (row["scenario"], row["source"], row["license"]) == ("mn", "openi", "CC BY-NC-ND 4.0")
    effusion = CONDITIONS.index("Pleural Effusion")
    assert row["labels"][effusion] == CheXpertState.NEGATIVE and rows["CXR13"]["labels"][effusion] == P
    assert rows["CXR13"]["scenario"] == "sn" and len(rows["CXR13"]["images"]) == 1


@pytest.mark.parametrize(
    ("views", "scenario"),
    [
        (["PA"], "sn"),
        (["AP", "LATERAL"], "mn"),
        (["FRONTAL", "FRONTAL"], "sn"),  # two images, but no lateral view
        (["LATERAL"], None),  # as 122 of Open-i's studies: LLM-RG4 has no scenario for it, and refuses it as sn
    ],
)
def test_scenario_follows_the_views(views, scenario):
    assert scenario_of(views, None) == scenario


@pytest.mark.parametrize(
    ("target", "report"),
    [("findings", CLEAR), ("impression", "Normal chest."), ("findings+impression", f"{CLEAR} Normal chest.")],
)
def test_targets(tmp_path, build, target, report):
    source = write_reports(tmp_path / "xml", {n: xml(n) for n in range(1, 11)})
    arguments = ("--image_source", "phantom", "--reports", source, "--image_size", 64, "--target", target)
    data, note, _ = build(*arguments)
    assert {row["report"] for rows in data.values() for row in rows} == {report} and note["target"] == target


def test_limit_draws_studies_at_random(tmp_path, build):
    source = write_reports(tmp_path / "xml", {n: xml(n) for n in range(1, 31)})
    arguments = ("--image_source", "phantom", "--reports", source, "--image_size", 64, "--limit", 10)

    def drawn(seed: int) -> set[str]:
        data, _, _ = build(*arguments, "--seed", seed)
        return {study for rows in data.values() for study in rows["study_id"]}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again != other and len(first) == len(other) == 10
    assert first != {f"CXR{n}" for n in range(1, 11)}  # the first ten would have one decade's technique


def test_a_lone_lateral_image_is_built_without_a_scenario(tmp_path, build):
    reports = {n: xml(n) for n in range(1, 11)} | {11: xml(11, images=["CXR11_IM-0011-2001"])}
    source = write_reports(tmp_path / "xml", reports)
    data, _, _ = build("--image_source", "phantom", "--reports", source, "--image_size", 64)
    rows = {row["study_id"]: row for split in data.values() for row in split}
    assert (rows["CXR11"]["views"], rows["CXR11"]["scenario"]) == (["LATERAL"], None)


def test_stand_ins_depend_on_mesh_alone():
    pair = ["PA", "LATERAL"]

    def draw(mesh, text="", seed=0):
        study = openi.Study("CXR5", "5.xml", sections={"findings": text}, mesh=mesh)
        return [
            np.asarray(Image.open(io.BytesIO(png)), dtype=int) for png in openi.draw_stand_ins(study, pair, 96, seed)
        ]

    normal, same, large = (
        draw(("normal",)),
        draw(("normal",), "Large effusion."),
        draw(("Pleural Effusion/left/large",)),
    )
    assert all((one == two).all() for one, two in zip(normal, same, strict=True))
    assert (normal[0] != draw(("normal",), seed=1)[0]).any()
    change = (large[0] - normal[0])[48:80]
    assert change[:, 48:].mean() > 10 > abs(change[:, :48].mean())  # the patient's left is on the image's right
    assert np.abs(large[1] - normal[1]).max() > 40


def test_build_with_images(tmp_path, build, monkeypatch):
    """R2Gen's annotation and folders; a damaged image is left out, and a study without any, not the build."""
    labels = build_iu_xray.LexicalLabeler()
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    splits = {"train": range(1, 7), "val": [7], "test": [8, 9]}
    annotation = {split: [] for split in splits}
    for split, numbers in splits.items():
        for n in numbers:
            paths = [f"CXR{n}_IM-{n:04d}/{i}.png" for i in range(2)]
            annotation[split].append({"id": f"CXR{n}_IM-{n:04d}", "report": f"1. {CLEAR}", "image_path": paths})
            for path in paths[: 0 if n == 6 else 2]:
                (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                ramp.save(tmp_path / "images" / path)
    damaged = tmp_path / "images" / "CXR5_IM-0005" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    arguments = ("--reports", tmp_path / "annotation.json", "--image_root", tmp_path / "images", "--image_size", 64)
    data, note, skipped = build(*arguments)
    assert note["rows"] == {"train": 5, "validation": 1, "test": 2} and note["split_scheme"] == "r2gen"
    assert [(row["study_id"], row["left_out"]) for row in skipped] == [("CXR6", "study"), ("CXR5", "image")]
    assert "CXR5_IM-0005/1.png is truncated or damaged" in skipped[1]["detail"]
    assert [row["views"] for row in data["train"] if row["study_id"] == "CXR5"] == [["FRONTAL"]]
    assert data["train"][0]["images"][0].size == (64, 32) and data["train"][0]["report"] == CLEAR
    assert data["test"][0]["views"] == FL
    # replaces the earlier build
    texts = []
    monkeypatch.setattr(
        build_iu_xray, "LexicalLabeler", lambda: lambda reports: texts.extend(reports) or labels(reports)
    )
    data, note, _ = build(*arguments, "--cleaning", "r2gen", "--image_size_of", "shortest")
    assert data["train"][0]["images"][0].size == (128, 64) and note["image_size_of"] == "shortest"
    assert data["train"][0]["report"].startswith("the lungs are clear . heart size is normal .")
    assert set(texts) == {CLEAR}  # labelled before cleaning


def test_no_image_outside_the_image_root_is_read(tmp_path, build):
    """By a path with `..`, an absolute one, and links to a file and to a folder; a link within it is fine."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    root = tmp_path / "images"
    for folder in (root, root / "own", tmp_path / "private"):
        folder.mkdir()
    ramp.save(tmp_path / "private" / "secret.png")
    ramp.save(root / "own" / "a.png")
    (root / "file.png").symlink_to(tmp_path / "private" / "secret.png")
    (root / "folder").symlink_to(tmp_path / "private")
    (root / "inner.png").symlink_to(root / "own" / "a.png")
    names = ["../private/secret.png", f"{tmp_path}/private/secret.png", "file.png", "folder/secret.png"]
    names += ["own/../../private/secret.png", "inner.png", "own/a.png"]
    entries = [{"id": f"CXR{n}", "report": CLEAR, "image_path": [name]} for n, name in enumerate(names, start=1)]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": entries[:-1], "test": entries[-1:]}))
    (tmp_path / "link").symlink_to(root)  # the root itself may be one
    for given in (root, tmp_path / "link"):
        data, _, skipped = build("--reports", tmp_path / "annotation.json", "--image_root", given)
        assert [data[split]["study_id"] for split in ("train", "test")] == [["CXR6"], ["CXR7"]]
        assert [row["study_id"] for row in skipped] == [f"CXR{n}" for n in range(1, 6)]
        assert all("is not below --image_root" in row["reason"] for row in skipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --image_root DIR .* or --image_source phantom"),
        (["--image_source", "phantom", "--image_root", "x"], "either --image_root DIR .* or --image_source phantom"),
        (["--image_source", "gan"], "--image_source must be one of phantom, not 'gan'|invalid choice: 'gan'"),
        (
            ["--image_source", "phantom", "--image_size", "5000"],
            "--image_size must be at least 64 and at most 1024, not 5000",
        ),
        (["--image_source", "phantom", "--colour", "red"], "there is no argument --colour"),
        (["--image_source", "phantom", "--target", "conclusion"], "--target must be one of findings"),
        (["--image_source", "phantom", "--target", "report"], "--target must be one of findings"),
        (["--image_source", "phantom", "--split_scheme", "r2gen"], "needs --split_file"),
        (["--image_root", "nowhere"], "there is no folder nowhere"),
        (["--image_source", "phantom", "--reports", "nowhere"], "there is no nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path, build, arguments, message):
    reports = [] if "--reports" in arguments else ["--reports", write_reports(tmp_path / "xml", {1: xml(1)})]
    with pytest.raises(InputError, match=message):
        build(*reports, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["xml"])  # nothing half-written


def test_no_other_folder_is_replaced(tmp_path, build):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="is no earlier build: name a folder that may be replaced"):
        build("--image_source", "phantom", out="thesis")


def test_unreadable_images_of_a_whole_split(tmp_path, build):
    source = write_reports(tmp_path / "xml", {n: xml(n) for n in range(1, 11)})
    (tmp_path / "images").mkdir()
    for n in range(1, 11):
        (tmp_path / "images" / f"CXR{n}_IM-{n:04d}-1001.png").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"no study has an image .*CXR\d+_IM-\d+-1001.png is not an image"):
        build("--reports", source, "--image_root", tmp_path / "images")
    assert not (tmp_path / "built").exists() and len(list(tmp_path.iterdir())) == 2


def test_the_wrong_image_root(tmp_path, build):
    source = write_reports(tmp_path / "xml", {1: xml(1, ""), 2: xml(2), 3: xml(3)})
    Image.new("L", (9, 9)).save(tmp_path / "xml" / "holiday.png")
    with pytest.raises(InputError, match="none of 3 studies can be used; of 2 of them: it has no image under"):
        build("--reports", source, "--image_root", source)


def test_full_disk(tmp_path, build, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    source = write_reports(tmp_path / "xml", {n: xml(n) for n in range(1, 11)})
    monkeypatch.setattr(openi, "draw_stand_ins", full)
    with pytest.raises(OSError, match="No space left") as raised:
        build("--reports", source, "--image_source", "phantom")
    assert raised.value.errno == 28  # what recipes.cli.run turns into a sentence
    assert [path.name for path in tmp_path.iterdir()] == ["xml"]


# --- the real reports --------------------------------------------------------------------------------------------


def test_all_real_reports():
    if importlib.util.find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision, which carries the Open-i reports, is not installed")
    studies, skipped = openi.read_studies()
    assert len(studies) == 3955 and not skipped  # the published size: 3,955 reports, 7,470 images
    assert sum(len(study.images) for study in studies) == 7470
    assert len({image for study in studies for image in study.images}) == 7470
    assert sum("findings" in study.sections for study in studies) == 3955
    ids = [study.study_id for study in studies if openi.text_columns(study, "findings", "plain")["report"]]
    assert len(ids) == 3425  # reports whose FINDINGS are not empty, counted with grep
    splits = openi.assign_splits(ids, "random", {}, np.random.default_rng(0))
    assert [list(splits.values()).count(split) for split in SPLITS] == [2398, 342, 685]


def test_real_annotation():
    file = DATA / "iu_xray_r2gen" / "annotation.json"
    if not file.is_file():
        pytest.skip("the annotation file is not shipped: set RRG_DATA")
    studies, skipped = openi.read_studies(file)
    sizes = [sum(study.split == split for study in studies) for split in SPLITS]
    assert sizes == [3062, 382, 382] and not skipped
    assert openi.read_split([file]) == {study.study_id: study.split for study in studies}
