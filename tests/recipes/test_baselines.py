"""The nearest training image: found where it is made to be found, and never by its text."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from recipes.evaluation.baselines import SIDE, encoded_images, nearest_reports, shrink

FEATURES = Features({"images": List(Image()), "report": Value("string")})


def picture(pattern: np.ndarray, kind: str = "PNG", size: int = 64) -> dict:
    file = io.BytesIO()
    grey = Picture.fromarray(np.uint8(np.clip(pattern, 0, 255))).resize((size, size), Picture.Resampling.NEAREST)
    grey.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def rows(*images: list[dict]) -> Dataset:
    reports = [f"report {number}" for number in range(len(images))]
    return Dataset.from_dict({"images": list(images), "report": reports}, features=FEATURES)


RNG = np.random.default_rng(0)
PATTERNS = [RNG.integers(0, 256, (8, 8)).astype(float) for _ in range(4)]


def test_shrink():
    small, numbers = shrink(rows([picture(PATTERNS[0])], [], [picture(np.full((8, 8), 7.0)), picture(PATTERNS[1])]))
    assert small.shape == (2, SIDE * SIDE) and numbers.tolist() == [0, 2]
    assert np.linalg.norm(small[0]) == pytest.approx(1, abs=1e-6) and small[0].mean() == pytest.approx(0, abs=1e-6)
    assert not small[1].any()  # a blank image has no pattern; the second image is not looked at


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_nearest_whatever_brightness_contrast_and_size(kind):
    train = rows(*([picture(pattern)] for pattern in PATTERNS))
    test = rows(*([picture(20 + pattern / 2, kind, size=96)] for pattern in PATTERNS[::-1]))
    assert nearest_reports(test, train, [None] * 4, [None] * 4) == ["report 3", "report 2", "report 1", "report 0"]


def test_the_scenarios_own_training_studies_are_searched():
    train = rows(*([picture(pattern)] for pattern in PATTERNS[:3]))
    test = rows([picture(PATTERNS[0])], [picture(PATTERNS[0])])
    found = nearest_reports(test, train, ["sn", "mw"], ["sn", "sw", "sw"])
    assert found == ["report 0", "report 0"]  # nobody trained on mw: among all
    found = nearest_reports(test, train, ["sn", "sw"], ["sn", "sw", "sn"])
    assert found == ["report 0", "report 1"]  # sw: the only one, however unlike


@pytest.mark.parametrize("missing", ["test", "train"])
def test_without_images(missing):
    data = {"test": rows([picture(PATTERNS[0])], [picture(PATTERNS[1])]), "train": rows([picture(PATTERNS[0])])}
    data[missing] = rows([])
    test, train = data["test"], data["train"]
    assert nearest_reports(test, train, [None] * len(test), [None] * len(train)) is None


def test_a_deep_image_is_compared_by_its_picture():
    """Of 12 bits in 16, Pillow would make one white square, and all such images would be alike."""
    ramp = np.tile(np.linspace(0, 4095, 64), (64, 1)).astype(np.uint16)
    images = []
    for values in (ramp, ramp[:, ::-1], (ramp // 16).astype(np.uint8)):
        file = io.BytesIO()
        Picture.fromarray(np.ascontiguousarray(values)).save(file, "PNG")
        images.append([{"bytes": file.getvalue(), "path": None}])
    first, mirrored, shallow = shrink(encoded_images(rows(*images)))[0]
    assert first @ shallow > 0.999 and first @ mirrored < -0.999
