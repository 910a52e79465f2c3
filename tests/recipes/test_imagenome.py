"""Chest ImaGenome's boxes on a MIMIC-CXR build: synthetic scene graphs in the layout that PhysioNet describes."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_mimic import IMAGES, path_of, write_csv, write_tree

from modeling.configuration_lmrrg import REGION_NAMES
from recipes import build_mimic_cxr
from recipes.data.imagenome import fit_boxes
from recipes.data.schema import read_dataset
from recipes.files import InputError

MORE = ("left cardiophrenic angle", "right cardiophrenic angle", "left cardiac silhouette", "right cardiac silhouette",
        "descending aorta", "left upper abdomen", "right upper abdomen")  # fmt: skip
WIDTH, HEIGHT = 300, 400  # of each image of the tree
EXPECTED = {"x0": 7.5, "y0": 10.0, "x1": 75.0, "y1": 50.0}  # of BOX, where 400 pixels of height become 100
BOX = (30, 40, 300, 200)


def scene_object(name: str, sides=BOX, dicom_id="a0") -> dict:
    """An object as in the silver set: in a padded square of 224 pixels, and in pixels of the whole image."""
    original = dict(zip(("original_x1", "original_y1", "original_x2", "original_y2"), sides, strict=True))
    padded = dict(zip(("x1", "y1", "x2", "y2"), (1, 2, 3, 4), strict=True))  # which nobody reads
    return {"object_id": f"{dicom_id}_{name}", "bbox_name": name, "name": name.title(), "synsets": ["C1"],
            **padded, "width": 2, "height": 2, **original, "original_width": 9, "original_height": 9}  # fmt: skip


def graph(dicom_id: str, objects: list[dict]) -> str:
    attribute = {
        "carina": True,
        "bbox_name": "unknown",
        "phrases": ["WET READ: ___"],
        "attributes": [["nlp|yes|abnormal"]],
    }
    return json.dumps({"image_id": dicom_id, "viewpoint": "PA", "patient_id": 1, "study_id": 2, "gender": "F",
                       "objects": objects, "attributes": [attribute], "relationships": []})  # fmt: skip


def write_graphs(root: Path, graphs: dict[str, str | bytes], form: str = "zip") -> Path:
    """Scene graphs by image below `root`, in PhysioNet's layout: its archive, or one of the ways to unpack it."""
    silver = root / "chest-imagenome/1.0.0/silver_dataset"
    (silver / "splits").mkdir(parents=True)
    for split in ("train", "valid", "test"):  # the opposite of MIMIC-CXR's, and not even a CSV
        (silver / "splits" / f"{split}.csv").write_text("not read\0")
    nested = "scene_graph/scene_graph/" if form.endswith("nested") else "scene_graph/"
    if form.startswith("zip"):
        with zipfile.ZipFile(silver / "scene_graph.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/scene_graph/._a0_SceneGraph.json", b"\0\5\26\7")
            for name, text in graphs.items():
                archive.writestr(f"{nested}{name}_SceneGraph.json", text)
    else:
        (silver / nested).mkdir(parents=True)
        for name, text in graphs.items():
            file = silver / nested / f"{name}_SceneGraph.json"
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / "chest-imagenome/1.0.0"


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six images of 300 x 400 pixels, as their metadata say, a lateral one among them."""
    root = write_tree(tmp_path / "mimic")
    header = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime")
    rows = [(i[0], i[1], i[2], i[4], HEIGHT, WIDTH, i[5], i[6]) for i in IMAGES]
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", header, rows)
    for dicom_id, subject, study, *_ in IMAGES:
        folder = root / path_of(subject, study)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH), 90, np.uint8)).save(folder / f"{dicom_id}.jpg")
    return root


@pytest.fixture
def build(call, tree, tmp_path):
    """Builds with boxes; returns the boxes by study, the reasons of skipped.csv, and build.json."""

    def build(imagenome, *words, size=100):
        out = tmp_path / "out"
        call(build_mimic_cxr.main, "--root", tree, "--images", tree, "--out", out, "--workers", 1,
             "--imagenome", imagenome, "--image_size", size, *words)  # fmt: skip
        dataset = read_dataset(str(out))
        boxes = {split: dict(zip(rows["study_id"], rows["boxes"], strict=True)) for split, rows in dataset.items()}
        with (out / "skipped.csv").open(newline="") as file:
            skipped = [row for row in csv.DictReader(file) if row["left_out"] == "boxes"]
        return boxes, skipped, json.loads((out / "build.json").read_text())

    return build


@pytest.mark.parametrize("form", ["zip", "zip nested", "folder", "folder nested"])
def test_boxes_are_joined_by_image_whatever_the_layout(form, build, tmp_path):
    names = [*REGION_NAMES, *MORE]
    graphs = {"a0": graph("a0", [scene_object(name) for name in names]), "f0": graph("f0", [scene_object("svc")])}
    boxes, skipped, note = build(write_graphs(tmp_path, graphs, form))
    assert boxes["train"]["50000003"] == [{"region": name, **EXPECTED} for name in names]
    assert boxes["test"] == {"50000006": [{"region": "svc", **EXPECTED}]}  # MIMIC-CXR's test patient stays there
    assert boxes["validation"] == {"50000005": None}  # no graph
    assert not skipped
    assert note["counts"]["boxes of the row's first image"] == 2
    assert note["counts"]["no boxes of the row's first image"] == 4
    assert note["imagenome"].startswith(str(tmp_path / "chest-imagenome"))


def test_places_where_the_graphs_are_found(build, tmp_path):
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    for place in (tmp_path, root, root / "silver_dataset", root / "silver_dataset/scene_graph.zip"):
        assert build(place)[0]["train"]["50000003"] == [{"region": "svc", **EXPECTED}]


@pytest.mark.parametrize(("size", "scale"), [(0, 1), (100, 0.25), (800, 1)])
def test_boxes_follow_the_stored_image(size, scale, build, tmp_path):
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    [box] = build(root, size=size)[0]["train"]["50000003"]
    assert [box[side] for side in ("x0", "y0", "x1", "y1")] == [side * scale for side in BOX]


def test_a_smaller_copy_of_the_images_has_its_boxes(build, tree, tmp_path):
    """The boxes are in pixels of the whole image, whose size the metadata know, not of the file's."""
    Image.new("L", (150, 200)).save(tree / path_of("10000032", "50000003") / "a0.jpg")
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    assert build(root)[0]["train"]["50000003"] == [{"region": "svc", **EXPECTED}]


def test_each_image_of_a_study_has_its_boxes(build, tmp_path):
    graphs = {"a0": graph("a0", [scene_object("svc")]), "a1": graph("a1", [scene_object("spine")])}
    build(write_graphs(tmp_path, graphs), "--sample_unit", "image")
    rows = read_dataset(str(tmp_path / "out"))["train"].filter(lambda row: row["study_id"] == "50000003")
    regions = [
        (views, [box["region"] for box in boxes]) for views, boxes in zip(rows["views"], rows["boxes"], strict=True)
    ]
    assert regions == [(["PA"], ["svc"]), (["LATERAL"], ["spine"])]


def test_odd_boxes_are_cut_or_counted(build, tmp_path):
    """A negative corner, one beyond the border, no area, outside, a missing side."""
    objects = [
        scene_object("trachea", (-40, -8, 60, 80)),
        scene_object("abdomen", (0, 200, 900, 900)),
        scene_object("carina", (50, 50, 50, 90)),
        scene_object("svc", (310, 10, 330, 90)),
        scene_object("spine", (None, 10, 30, 90)),
        scene_object("right lung", ("3", 10, 30, 90)),
    ]
    boxes, [entry], _ = build(write_graphs(tmp_path, {"a0": graph("a0", objects)}))
    assert boxes["train"]["50000003"] == [
        {"region": "trachea", "x0": 0, "y0": 0, "x1": 15, "y1": 20},
        {"region": "abdomen", "x0": 0, "y0": 50, "x1": 75, "y1": 100},
    ]
    assert (entry["study_id"], entry["place"]) == ("50000003", "a0")
    assert entry["reason"] == "some lie outside the image, have no area or lack a side"
    assert entry["detail"] == "carina, svc, spine, right lung"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "its scene graph cannot be read"),
        (b"\xff\xfe", "its scene graph cannot be read"),
        (b"[]", "its scene graph has no list of objects with a bbox_name"),
        (b"{}", "its scene graph has no list of objects with a bbox_name"),
        (b'{"objects": [{"name": "svc"}]}', "its scene graph has no list of objects with a bbox_name"),
        (graph("b0", [scene_object("svc")]).encode(), "its scene graph is that of another image"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_broken_graph_is_listed_and_the_build_goes_on(form, content, reason, build, tmp_path):
    graphs = {"a0": content, "e0": graph("e0", [scene_object("svc")])}
    boxes, [entry], note = build(write_graphs(tmp_path, graphs, form))
    assert boxes["train"]["50000003"] is None and boxes["validation"]["50000005"] is not None
    assert (entry["study_id"], entry["place"], entry["reason"]) == ("50000003", "a0", reason)
    assert note["counts"][f"boxes left out: {reason}"] == 1


def test_a_damaged_member_is_listed(build, tmp_path):
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")]), "e0": graph("e0", [scene_object("svc")])})
    archive = root / "silver_dataset/scene_graph.zip"
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo("scene_graph/a0_SceneGraph.json").header_offset + 70
    content[start : start + 20] = b"\0" * 20
    archive.write_bytes(content)
    boxes, [entry], _ = build(root)
    assert boxes["train"]["50000003"] is None and boxes["validation"]["50000005"] is not None
    assert entry["reason"] == "its scene graph cannot be read"


def test_an_image_of_another_shape_has_no_boxes(build, tree, tmp_path):
    """One that was cut, turned or padded: nothing tells where its regions are."""
    Image.new("L", (HEIGHT, WIDTH)).save(tree / path_of("10000032", "50000003") / "a0.jpg")
    boxes, [entry], _ = build(write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])}))
    assert boxes["train"]["50000003"] is None
    assert entry["reason"] == "its file has another shape than the metadata say"
    assert entry["detail"] == "100 x 75 pixels of 300 x 400"


def test_sizes_that_the_metadata_lack(build, tree, tmp_path):
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    header = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    rows = [(i[0], i[1], i[2], i[4], i[5], i[6]) for i in IMAGES]
    write_csv(tree / "mimic-cxr-2.0.0-metadata.csv.gz", header, rows)
    with pytest.raises(InputError, match="no Columns and Rows, which --imagenome needs"):
        build(root)
    sizes = [("300.0", "400.0") if i[0] == "e0" else ("", "") for i in IMAGES]  # a table that was saved again
    rows = [(*row, *pair) for row, pair in zip(rows, sizes, strict=True)]
    write_csv(tree / "mimic-cxr-2.0.0-metadata.csv.gz", (*header, "Columns", "Rows"), rows)
    boxes, [entry], _ = build(
        write_graphs(tmp_path / "2", {name: graph(name, [scene_object("svc")]) for name in ("a0", "e0")})
    )
    assert boxes["validation"]["50000005"] == [{"region": "svc", **EXPECTED}]
    assert (entry["place"], entry["reason"]) == ("a0", "the metadata have no Columns and Rows of it")


def test_a_run_with_boxes_uses_no_shard_without_or_of_other_graphs(build, tree, tmp_path, call):
    """A shard is used again only where all that went into it is the same."""
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    assert build(root)[0]["train"]["50000003"][0]["region"] == "svc"
    other = write_graphs(tmp_path / "2", {"a0": graph("a0", [scene_object("spine")])})
    assert build(other)[0]["train"]["50000003"][0]["region"] == "spine"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("empty", r"empty holds neither scene_graph.zip nor DICOM_ID_SceneGraph.json files: name PhysioNet's folder"),
        ("nowhere", "nowhere holds neither scene_graph.zip"),
        ("broken/scene_graph.zip", "is no complete zip archive"),
        ("other.zip", "holds no DICOM_ID_SceneGraph.json; --imagenome wants"),
    ],
)
def test_wrong_places_are_refused(place, sentence, build, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/scene_graph.zip").write_bytes(b"PK\3\4 half")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("reports/s1.txt", "text")
    with pytest.raises(InputError, match=sentence):
        build(tmp_path / place)
    assert not (tmp_path / "out").exists()


def test_boxes_need_images(call, tree, tmp_path):
    root = write_graphs(tmp_path, {"a0": graph("a0", [scene_object("svc")])})
    with pytest.raises(InputError, match=r"--imagenome joins boxes, in pixels, to images: .* --images"):
        call(build_mimic_cxr.main, "--root", tree, "--out", tmp_path / "out", "--imagenome", root)


def test_boxes_by_hand():
    box = {"region": "svc", "x0": 10, "y0": 20, "x1": 200, "y1": 400}
    assert fit_boxes([box], (2000, 1000), (200, 100)) == (
        [{"region": "svc", "x0": 1, "y0": 2, "x1": 20, "y1": 40}],
        [],
    )
    assert fit_boxes([box | {"x1": 10}, box | {"y0": float("nan")}], (2000, 1000), (200, 100)) == ([], ["svc", "svc"])
    fit_boxes([box], (2544, 3056), (426, 512))  # what a shrunk image is rounded to
    with pytest.raises(InputError, match="another shape"):
        fit_boxes([box], (2544, 3056), (512, 512))


def test_the_archive_is_read_member_by_member(tmp_path):
    """Nothing but the list and the graphs asked for: bytes read of an archive of 200 graphs of 30 kB."""
    from recipes.data.imagenome import SceneGraphs

    archive = write_graphs(tmp_path, {f"i{i}": graph(f"i{i}", [scene_object("svc")] * 60) for i in range(200)})
    graphs = SceneGraphs(archive / "silver_dataset/scene_graph.zip")
    stream, sizes = graphs.archive.fp, []

    class Counter(io.BufferedReader):
        def read(self, size=-1):
            content = super().read(size)
            sizes.append(len(content))
            return content

    graphs.archive.fp = Counter(stream.raw)
    assert len(graphs.boxes("i7")) == 60 and graphs.boxes("i200") is None
    assert 0 < sum(sizes) < 20_000
