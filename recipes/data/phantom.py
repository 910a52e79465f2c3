"""A synthetic chest X-ray phantom: images and template reports from CheXpert states. Not medical data.

`make_study` decides side, size and zone of every finding once; `render` draws the study from the front or from the
side and `write_report` describes it, so that picture and text agree. Image left is the patient's right. Lengths are
in half image widths: x in [-1, 1] to the image's right, y from -1 downwards, to 1 where the image is square. An image
is the sum of soft tissue and bone minus the air on the way of the ray; a sign mostly takes air away, so borders vanish
as they do in a patient.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from recipes.data.phantom_canvas import SHAPES, Canvas, Stroke, bands, covered, curve, union, vessels_from
from rewards.labels import CONDITIONS, FINDINGS, CheXpertState

NOTE = "Synthetic phantom drawn by recipes/data/phantom.py from finding states; not medical data."
VIEWS = ("frontal", "lateral")
STYLES = ("terse", "prose", "systematic", "mimic")
DEVICES = ("pacemaker", "central venous catheter", "endotracheal tube", "chest tube")
STRENGTH = {CheXpertState.POSITIVE: 1.0, CheXpertState.UNCERTAIN: 0.5}  # contrast of a sign; other states: absent

# Relative frequency of each finding, positive or uncertain; the share of those that is uncertain; and the share of the
# reports without the finding that say so. Measured on 1,684 Open-i reports (the development half of NegBio's gold)
# with the LexicalLabeler and rounded; an Enlarged Cardiomediastinum is rarely called so there and was raised.
FREQUENCIES = {
    "Enlarged Cardiomediastinum": (0.020, 0.30, 0.57),
    "Cardiomegaly": (0.095, 0.14, 0.72),
    "Lung Opacity": (0.165, 0.05, 0.25),
    "Lung Lesion": (0.050, 0.18, 0.05),
    "Edema": (0.025, 0.40, 0.06),
    "Consolidation": (0.010, 0.20, 0.33),
    "Pneumonia": (0.035, 0.60, 0.05),
    "Atelectasis": (0.095, 0.18, 0.01),
    "Pneumothorax": (0.007, 0.15, 0.77),
    "Pleural Effusion": (0.035, 0.20, 0.80),
    "Pleural Other": (0.020, 0.25, 0.01),
    "Fracture": (0.020, 0.20, 0.03),
    "Support Devices": (0.075, 0.0, 0.01),
}
# (cause, companion, share of the cause's studies that also show the companion)
COMPANIONS = (
    ("Edema", "Cardiomegaly", 0.6),
    ("Edema", "Pleural Effusion", 0.5),
    ("Pleural Effusion", "Atelectasis", 0.35),
    ("Pneumothorax", "Fracture", 0.2),
    ("Pneumothorax", "Support Devices", 0.3),
    ("Cardiomegaly", "Support Devices", 0.1),
)


class Prevalence(NamedTuple):
    """What a site's patients have: `frequencies` as in `FREQUENCIES`, `companions` as in `COMPANIONS`, and `counts`,
    the shares of the studies with findings that have one, two, three and more before the companions are added."""

    frequencies: dict[str, tuple[float, float, float]]
    companions: tuple[tuple[str, str, float], ...]
    counts: tuple[float, ...]


OPEN_I = Prevalence(FREQUENCIES, COMPANIONS, (0.5, 0.33, 0.17))


@dataclass(frozen=True)
class Sign:
    """Where and how large a finding is: `side` of the patient, `size`, `zone` of the lung."""

    side: str  # "left", "right" or "bilateral"
    size: str  # "small", "moderate" or "large"
    zone: str  # "upper", "mid", "lower" or "retrocardiac"


@dataclass(frozen=True)
class Study:
    """One imaginary patient's study: 14 `CheXpertState` values, a `Sign` for each of the 13 findings, the device."""

    states: tuple[int, ...]
    signs: dict[str, Sign]
    device: str

    def state(self, condition: str) -> CheXpertState:
        """The state of `condition`, one of `CONDITIONS`."""
        return CheXpertState(self.states[CONDITIONS.index(condition)])

    @property
    def lateral_only(self) -> frozenset[str]:
        """Findings present in this study that only its lateral view shows."""
        hidden = {
            "Pleural Effusion": self.signs["Pleural Effusion"].size == "small",  # fills the posterior recess first
            "Lung Lesion": self.signs["Lung Lesion"].zone == "retrocardiac",
        }
        return frozenset(name for name, is_hidden in hidden.items() if is_hidden and self.state(name) in STRENGTH)


def with_no_finding(states: Sequence[int]) -> np.ndarray:
    """`states` (13 or 14 values) as an int array (14,) whose No Finding is positive iff the first 12 are absent."""
    states = np.asarray(states, dtype=np.int64)
    if states.shape not in ((13,), (14,)) or states.min() < 0 or states.max() > 3:
        raise ValueError(f"a study needs 13 or 14 CheXpert states from 0 to 3, got {states.tolist()}")
    absent = not np.isin(states[:12], list(STRENGTH)).any()
    return np.append(states[:13], CheXpertState.POSITIVE if absent else CheXpertState.BLANK)


def sample_states(
    rng: np.random.Generator, abnormal: float = 0.4, balanced: bool = False, prevalence: Prevalence = OPEN_I
) -> np.ndarray:
    """Draws the 14 states of one study; int array (14,).

    Args:
        abnormal: expected share of studies with a finding, in [0, 1]; the findings keep their relative frequencies.
        balanced: every finding about equally frequent instead (to warm up a vision tower); one study in eight normal.
        prevalence: how often each finding is there, hedged, denied and in company.
    """
    if not 0 <= abnormal <= 1:
        raise ValueError(f"abnormal is a share of studies from 0 to 1, got {abnormal}")
    frequency, uncertain, said_absent = np.array([prevalence.frequencies[name] for name in FINDINGS]).T
    present = np.zeros(13, dtype=bool)
    if balanced:
        if rng.random() < 0.875:
            present[rng.choice(13, size=rng.integers(1, 4), replace=False)] = True
        uncertain = np.full(13, 0.2)
    elif rng.random() < abnormal:
        count = 1 + rng.choice(len(prevalence.counts), p=prevalence.counts)
        present[rng.choice(13, size=count, replace=False, p=frequency / frequency.sum())] = True
        for cause, companion, share in prevalence.companions:
            if present[FINDINGS.index(cause)] and rng.random() < share:
                present[FINDINGS.index(companion)] = True
    mentioned = rng.random(13) < said_absent
    states = np.where(mentioned, CheXpertState.NEGATIVE, CheXpertState.BLANK)
    hedged = rng.random(13) < uncertain
    states[present] = np.where(hedged, CheXpertState.UNCERTAIN, CheXpertState.POSITIVE)[present]
    return with_no_finding(states)


def make_study(states: Sequence[int], rng: np.random.Generator, lateral_only: bool = True) -> Study:
    """Draws side, size and zone of every finding for `states` (13 or 14 values).

    The draws do not depend on the states: equal seeds give equal signs, whatever is present. With
    `lateral_only=False` every finding shows on the frontal view too.
    """
    draws = rng.random((len(FINDINGS) + 1, 4)).tolist()
    signs = {}
    for name, (where, how_large, how_high, special) in zip(FINDINGS, draws, strict=False):
        side = "left" if where < 0.5 else "right"
        size = "small" if how_large < 0.25 else "moderate" if how_large < 0.7 else "large"
        zone = ("upper", "mid", "lower")[int(3 * how_high)]
        if name == "Pleural Effusion":
            side = "bilateral" if special < 0.3 else side
            size = "moderate" if size == "small" and not lateral_only else size
        elif name == "Lung Lesion" and special < 0.2 and lateral_only:
            side, zone = "left", "retrocardiac"
        elif name == "Consolidation":  # of a lobe: only the right lung has an upper lobe with a straight lower border
            zone = "upper" if zone == "upper" and side == "right" else "lower"
        signs[name] = Sign(side, size, zone)
    device = DEVICES[int(len(DEVICES) * draws[-1][0])]
    return Study(tuple(with_no_finding(states).tolist()), signs, device)


# --- drawing -----------------------------------------------------------------------------------------------------

GROWTH = {"small": 0.8, "moderate": 1.0, "large": 1.25}
SIDES = {"right": -1.0, "left": 1.0}  # towards the patient's left is towards +x on a frontal image


def check_picture(view: str, size: int, shape: str) -> None:
    """Raises ValueError on a view, a width in pixels or a shape that no site draws."""
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    if not 64 <= size <= 1024:
        raise ValueError(f"size must be from 64 to 1024 pixels, got {size}")


def picture_streams(rng: np.random.Generator) -> list[np.random.Generator]:
    """The random numbers of one picture: for the study where only states are known, the anatomy, signs and film."""
    return [np.random.default_rng(seed) for seed in rng.integers(2**62, size=4).tolist()]


def render(
    states: Sequence[int] | Study,
    view: str,
    rng: np.random.Generator,
    size: int = 112,
    lateral_only: bool = True,
    shape: str = "square",
) -> Image.Image:
    """Draws a study (or 13 or 14 states, whose signs are then drawn from `rng` too) as an 8-bit grey image.

    Anatomy, exposure and noise vary with `rng` and do not depend on the states. POSITIVE findings are clear,
    UNCERTAIN ones faint, others absent. `view` is "frontal" or "lateral"; `size` the width in pixels, from 64 to 1024;
    `lateral_only` as in `make_study`; `shape` one of `SHAPES`, each with the whole chest at the same scale. Raises
    ValueError on other values.
    """
    check_picture(view, size, shape)
    study_rng, anatomy_rng, sign_rng, film_rng = picture_streams(rng)
    study = states if isinstance(states, Study) else make_study(states, study_rng, lateral_only)
    canvas = Canvas(size, shape, anatomy_rng)
    strength = strengths_in(study, view)
    draw = _frontal if view == "frontal" else _lateral
    image = draw(study, strength, canvas, anatomy_rng, sign_rng)
    if strength["Support Devices"]:
        metal = _device(study, view, canvas)
        image = image + strength["Support Devices"] * metal * np.clip(1 - image, 0.12, 1)
    gain, offset, bend = film_rng.uniform([0.93, -0.03, -0.15], [1.07, 0.03, 0.15]).tolist()
    image = np.clip(image * gain + offset, 0, 1)
    image = image + bend * image * (1 - image)
    image = image + 0.012 * canvas.clouds(film_rng, max(size // 6, 8))
    image = image + 0.010 * film_rng.standard_normal((canvas.height, size), dtype=np.float32)
    return Image.fromarray(np.clip(255 * image, 0, 255).astype(np.uint8))


def to_png(image: Image.Image) -> bytes:
    """PNG bytes of a phantom, whose text chunk "Description" says that it is no medical image."""
    description = PngImagePlugin.PngInfo()
    description.add_text("Description", NOTE)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=description, compress_level=4)
    return file.getvalue()


def _lung_signs(
    study: Study, strength: dict[str, float], canvas: Canvas, rng: np.random.Generator, centres: dict
) -> list[np.ndarray]:
    """Opacities of the findings that look alike in both views, around `centres`: finding -> (x, y)."""
    opacities = []
    if shown := strength["Lung Opacity"]:  # a haze without border
        grow = GROWTH[study.signs["Lung Opacity"].size]
        haze = canvas.blob(*centres["Lung Opacity"], 0.16 * grow, 0.19 * grow)
        opacities.append(0.66 * shown * haze * (1 + 0.15 * canvas.clouds(rng, 9)))
    if shown := strength["Lung Lesion"]:  # round, with a sharp border
        grow = GROWTH[study.signs["Lung Lesion"].size]
        distance = canvas.to_ellipse(*centres["Lung Lesion"], 0.135 * grow, 0.127 * grow)
        opacities.append(0.95 * shown * canvas.edge(distance))
    if shown := strength["Pneumonia"]:  # a segment of small patches that run into each other
        grow = GROWTH[study.signs["Pneumonia"].size]
        segment = canvas.blob(*centres["Pneumonia"], 0.16 * grow, 0.15 * grow)
        opacities.append(
            shown * np.clip(1.25 * segment - 0.1, 0, 1) * np.clip(0.62 + 0.55 * canvas.clouds(rng, 22), 0, 1)
        )
    return opacities


def break_rib(shown: float, canvas: Canvas, distance: np.ndarray, x: float, y: float) -> tuple:
    """Shift of the ribs, gap between the fragments and brightening around (x, y); `distance` grows along the rib."""
    near = shown * canvas.edge(canvas.to_ellipse(x, y, 0.30, 0.25), 0.05)
    gap = near * np.clip(1.5 - np.abs(distance) / 0.026, 0, 1)
    return 0.075 * near * ((distance > 0) - np.float32(0.3)), gap, near


class _Chest(NamedTuple):
    """Measures of a frontal view: half width and top of the lungs, tops of the diaphragm by side, heart, ribs, gas."""

    width: float
    apex: float
    domes: dict[str, float]
    heart: float
    heart_base: float
    rib_start: float
    rib_spacing: float
    gas_x: float
    gas: float


def _chest(study: Study, strength: dict[str, float], anatomy: np.random.Generator) -> _Chest:
    width, apex, right_dome, dome_step, heart, rib_start, rib_spacing, gas_x, gas = anatomy.uniform(
        [0.70, -0.83, 0.30, 0.03, 0.86, -0.80, 0.125, 0.25, 0], [0.76, -0.78, 0.40, 0.09, 0.97, -0.72, 0.14, 0.42, 1]
    ).tolist()
    domes = {"right": right_dome, "left": right_dome + dome_step}
    heart += 0.42 * strength["Cardiomegaly"]
    heart_base = domes["left"] + 0.06
    domes[study.signs["Atelectasis"].side] -= 0.14 * strength["Atelectasis"]
    return _Chest(width, apex, domes, heart, heart_base, rib_start, rib_spacing, gas_x, gas)


def region_boxes(study: Study, rng: np.random.Generator, size: int = 112, shape: str = "square") -> list[dict]:
    """Where the anatomical regions are in `render(study, "frontal", rng, size, shape=shape)`, `rng` in the same state.

    Dicts {region, x0, y0, x1, y1} in pixels, for 27 of the 29 names of LM-RRG's regions
    (modeling/region_descriptions.json): the superior vena cava and its junction with the atrium are not drawn. Boxes
    are upright around regions that may be turned by 2 degrees, and are cut at the image's border.
    """
    _, anatomy, *_ = picture_streams(rng)
    canvas = Canvas(size, shape, anatomy)
    chest = _chest(study, strengths_in(study, "frontal"), anatomy)
    bottom = 2 * SHAPES[shape] - 1 + 0.2  # a little below the image, as -1.2 is above it
    sided = [(side, name, *sides) for side in SIDES for name, *sides in _lung_regions(chest, side)]
    boxes = [
        (f"{side} {name}", *sorted((SIDES[side] * x0, SIDES[side] * x1)), y0, y1)
        for side, name, x0, y0, x1, y1 in sided
    ]
    boxes += [(name, x0, x1, y0, y1) for name, x0, y0, x1, y1 in _midline_regions(study, chest, bottom)]
    return [{"region": name, **canvas.upright_box(*box)} for name, *box in boxes]


def _lung_regions(chest: _Chest, side: str) -> list[tuple[str, float, float, float, float]]:
    """(name, x0, y0, x1, y1) of what each side has, x growing away from the middle."""
    dome, width = chest.domes[side], chest.width
    angle = dome + 1.6 * (width - 0.34) ** 2  # the lowest point of the lung
    inner = 0.10
    apical, upper, middle = (width * _narrowed(y) for y in (-0.58, -0.25, 0.07))  # of the zones at their lower border
    return [
        ("lung", inner, chest.apex, width, angle),
        ("apical zone", inner, chest.apex, apical, -0.58),
        ("upper lung zone", inner, chest.apex, upper, -0.25),
        ("mid lung zone", inner, -0.25, middle, 0.07),
        ("lower lung zone", inner, 0.07, width, angle),
        ("hilar structures", 0.06, -0.26, 0.30, 0.12),
        ("costophrenic angle", width - 0.2, angle - 0.25, width, angle),
        ("hemidiaphragm", inner, dome - 0.03, width, angle),
        ("clavicle", 0.08, -0.83, 0.92, -0.53),
    ]


def _midline_regions(study: Study, chest: _Chest, bottom: float) -> list[tuple[str, float, float, float, float]]:
    """(name, x0, y0, x1, y1) of what lies in the middle, x growing to the image's right."""
    heart, base = chest.heart, chest.heart_base
    wide = 0.10 + 0.20 * strengths_in(study, "frontal")["Enlarged Cardiomediastinum"]
    reach = 0.341 * heart, 0.325 * heart  # of an ellipse of half axes 0.39 and 0.265 that is turned by 0.72
    atrium = (-0.20 * heart, -0.04, 0.06 * heart, 0.40)
    x0, y0 = min(0.12 * heart - reach[0], atrium[0]), min(base - 0.31 * heart - reach[1], atrium[1])
    x1, y1 = 0.12 * heart + reach[0], max(base - 0.31 * heart + reach[1], atrium[3])
    return [
        ("trachea", -0.06, -1.2, 0.035, -0.24),
        ("spine", -0.09, -1.2, 0.09, bottom),
        ("aortic arch", 0.0, -0.47, max(0.20, wide), -0.27),
        ("mediastinum", min(-wide, x0), chest.apex, max(0.20, wide, x1), y1),
        ("upper mediastinum", -wide, chest.apex, max(0.20, wide), -0.20),
        ("cardiac silhouette", x0, y0, x1, y1),
        ("right atrium", *atrium),
        ("carina", -0.09, -0.34, 0.07, -0.18),
        ("abdomen", -1.2, min(chest.domes.values()), 1.2, bottom),
    ]


def _narrowed(y: np.ndarray | float) -> np.ndarray | float:
    """The half width of the thorax at `y`, as a share of the largest."""
    taper = np.clip((0.35 - y) / 1.2, 0, 1)
    return 1 - 0.5 * taper**2 * (0.65 + 0.35 * taper)


def strengths_in(study: Study, view: str) -> dict[str, float]:
    """Contrast of each finding in that view."""
    hidden = study.lateral_only if view == "frontal" else ()
    return {name: 0.0 if name in hidden else STRENGTH.get(study.state(name), 0.0) for name in FINDINGS}


def _frontal(  # noqa: C901
    study: Study, strength: dict[str, float], canvas: Canvas, anatomy: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    signs, x, y, edge, across = study.signs, canvas.x, canvas.y, canvas.edge, np.abs(canvas.x)
    halves = {"right": 1 - edge(x, 0.02), "left": edge(x, 0.02), "bilateral": 1.0}

    width, apex, domes, heart, heart_base, rib_start, rib_spacing, gas_x, gas = _chest(study, strength, anatomy)
    raised = signs["Atelectasis"].side

    # distances to the borders of the thorax, positive inside
    floor = domes["right"] + (domes["left"] - domes["right"]) * edge(x, 0.1)
    dome = floor + 1.6 * (across - 0.34) ** 2
    to_wall = width * _narrowed(y) - across
    to_roof = y - apex - 2.6 * (across - 0.33) ** 2
    lung = edge(np.minimum(np.minimum(to_wall, to_roof), dome - y), 0.014)

    # heart and great vessels
    widening = 0.20 * strength["Enlarged Cardiomediastinum"] * np.exp(-(((y + 0.42) / 0.27) ** 2))
    size = 0.39 * heart, 0.265 * heart
    shapes = [
        0.10 + widening - across,
        canvas.to_ellipse(0.12 * heart, heart_base - 0.31 * heart, *size, 0.72),
        canvas.to_ellipse(-0.07 * heart, 0.18, 0.13 * heart, 0.22),
        canvas.to_ellipse(0.10, -0.37, 0.09, 0.09),
        canvas.to_ellipse(0.08, -0.18, 0.10, 0.13),
    ]
    middle = edge(union(shapes), 0.02)

    # what takes the air away
    heights = {"upper": -0.45, "mid": -0.08, "lower": 0.19, "retrocardiac": 0.19}
    columns = {"upper": 0.36, "mid": 0.46, "lower": 0.52, "retrocardiac": 0.30}
    centres = {
        name: (SIDES[signs[name].side] * columns[signs[name].zone], heights[signs[name].zone])
        for name in ("Lung Opacity", "Lung Lesion", "Pneumonia")
    }
    opacities = _lung_signs(study, strength, canvas, rng, centres)
    plates: list[Stroke] = []
    dark = 0.0
    vessels: list[Stroke] = []
    for side in SIDES.values():
        fan = np.linspace(-1.35, 1.35, 9) + anatomy.uniform(-0.14, 0.14, 9)
        roots = np.stack([np.full(9, side * 0.15), -0.08 + 0.10 * np.sin(fan)], axis=1)
        vessels += vessels_from(anatomy, roots, fan if side > 0 else np.pi - fan, 0.48)
    hila = 0.30 * (canvas.blob(-0.17, -0.06, 0.05, 0.09) + canvas.blob(0.17, -0.09, 0.05, 0.09))
    if shown := strength["Edema"]:
        wings = canvas.blob(-0.30, -0.04, 0.14, 0.24) + canvas.blob(0.30, -0.04, 0.14, 0.24)
        opacities.append(shown * wings * (0.74 + 0.2 * canvas.clouds(rng, 9)))
        for side in SIDES.values():
            fan = np.linspace(-1.5, -0.6, 6)
            roots = np.full((6, 2), (side * 0.17, -0.1))
            congested = vessels_from(rng, roots, fan if side > 0 else np.pi - fan, 0.55)
            vessels += [(points, 1.8 * thick, min(1.5 * value, 0.8) * shown) for points, thick, value in congested]
            for level in (0.08, 0.16, 0.24, 0.32):  # septal lines reach the pleura at right angles
                septum = [(side * (width - 0.01), level), (side * (width - 0.14), level + 0.01)]
                plates.append((septum, 0.014, 0.55 * shown))
    if shown := strength["Consolidation"]:
        sign, side = signs["Consolidation"], SIDES[signs["Consolidation"].side]
        if sign.zone == "upper":  # ends at the horizontal fissure
            lobe = edge(-0.14 + 0.1 * (across - 0.3) - y, 0.012)
            tips = [(0.30, -0.52), (0.46, -0.44), (0.54, -0.28)]
        else:
            lobe = edge(y - 0.03 + 0.12 * GROWTH[sign.size] - 0.45 * (0.5 - across), 0.09)
            tips = [(0.32, 0.28), (0.46, 0.24), (0.56, 0.12)]
        opacities.append(0.92 * shown * lobe * halves[sign.side])
        bronchi = [
            (curve((side * 0.17, -0.08), (side * 0.25, b), (side * a, b), steps=8), 0.026, 0.8) for a, b in tips
        ]
        dark = 0.26 * shown * canvas.lines(bronchi)
    if shown := strength["Atelectasis"]:
        tilts = rng.uniform(-0.01, 0.06, 3).tolist()
        side, base = SIDES[raised], domes[raised]
        for level, half, slope in zip((0.05, 0.14, 0.23), (0.21, 0.17, 0.12), tilts, strict=True):
            ends = (0.44 - half, base - level - slope), (0.44 + half, base - level + slope)
            plate = curve(
                (side * ends[0][0], ends[0][1]), (side * 0.44, base - level - 0.02), (side * ends[1][0], ends[1][1])
            )
            plates += [(plate, 0.045, 0.35 * shown), (plate, 0.028, 0.75 * shown)]
    if shown := strength["Pleural Effusion"]:
        sign = signs["Pleural Effusion"]
        depth, rise = {"moderate": (0.03, 0.24), "large": (0.26, 0.26)}[sign.size]  # a small one is behind the dome
        meniscus = floor - depth - rise * np.clip((across - 0.1) / (width - 0.1), 0, 1) ** 3
        opacities.append(0.95 * shown * edge(y - meniscus, 0.025) * halves[sign.side])
    if shown := strength["Pleural Other"]:
        sign = signs["Pleural Other"]
        rind = (0.062 + 0.012 * canvas.clouds(rng, 9)) * GROWTH[sign.size]
        cap = to_roof - 0.10 * edge(-0.55 - y, 0.1)
        opacities.append(0.9 * shown * edge(rind - np.minimum(to_wall, cap), 0.012) * halves[sign.side])

    air = lung * (0.46 + 0.05 * np.clip(to_wall * 5, 0, 1) + 0.015 * canvas.clouds(anatomy, 14))
    air = air * (1 - 0.94 * middle) * (1 - covered([*opacities, hila]))
    vascular = canvas.lines(vessels)
    line = 0.0
    if shown := strength["Pneumothorax"]:
        sign = signs["Pneumothorax"]
        gap = {"small": 0.16, "moderate": 0.22, "large": 0.32}[sign.size] * (0.55 + 0.45 * edge(-0.25 - y, 0.35))
        inner = -union([-to_wall, -0.8 * to_roof], 0.03)
        empty = shown * edge(gap - inner, 0.008) * halves[sign.side]
        line = shown * lung * (1 - middle) * halves[sign.side] * canvas.thin(inner - gap)
        vascular = vascular * (1 - empty)
        air = air + 0.13 * lung * empty * (1 - middle) - 0.05 * shown * lung * (1 - empty) * halves[sign.side]
    air = air * (1 - 0.5 * vascular)

    # bones
    drop = across * (across * (across * (0.12 / width) + 0.32) / width - 0.10) / width  # of a rib from the spine
    shift, broken, near = 0.0, 0.0, 0.0
    if shown := strength["Fracture"]:
        side, cut = SIDES[signs["Fracture"].side], 0.48
        rib = {"upper": 2, "mid": 3, "lower": 4}[signs["Fracture"].zone]
        level = rib_start + rib * rib_spacing + 0.05
        shift, broken, near = break_rib(shown, canvas, across - cut, side * cut, level)
    cage = edge(to_wall + 0.03, 0.01) * edge(across - 0.06, 0.03) * (1 - 0.5 * edge(y - dome, 0.05))
    soft = canvas.pixel / rib_spacing
    posterior = bands((y - shift - drop - rib_start) / rib_spacing, soft, 9) * cage * (1 - broken) * (1 + 3.2 * near)
    front = (y + 0.32 - 0.41 * np.clip(1 - across / width, 0, 1)) / (1.35 * rib_spacing)
    anterior = bands(front, soft, 5) * cage * edge(across - 0.38, 0.14) * edge(0.5 - y, 0.1) * (1 - near)
    rim = np.clip(1 - np.abs(to_wall + 0.012) / 0.03, 0, 1) * edge(y + 0.72, 0.1) * (1 - 0.6 * edge(y - dome, 0.2))
    spine = edge(0.085 - across, 0.015) * (0.75 + 0.25 * np.cos(2 * np.pi * (y - rib_start) / 0.15))
    skeleton: list[Stroke] = []
    for side in SIDES.values():
        collar = curve((side * 0.10, -0.57), (side * 0.32, -0.58), (side * 0.48, -0.82), (side * 0.90, -0.78))
        blade = curve((side * 0.90, -0.70), (side * 0.74, -0.50), (side * 0.80, -0.22), (side * 0.86, 0.05))
        arm = [(side * 0.93, -0.64), (side * 1.12, 0.1)]
        skeleton += [(arm, 0.17, 0.35), (blade, 0.035, 0.25), (collar, 0.066, 0.6), (collar, 0.04, 0.38)]

    # soft tissue: neck, shoulders, trunk
    trunk = np.maximum(0.90 - 0.05 * y, 1.08 - 0.6 * np.clip(y + 0.42, 0, 1)) - across
    outline = union(
        [0.23 + 0.12 * np.clip(-0.85 - y, 0, 1) - across, np.minimum(trunk, y + 1.0 - 0.28 * across)], 0.05
    )
    body = edge(outline, 0.03) * (0.76 + 0.24 * np.clip(outline / 0.22, 0, 1))
    tissue = 0.50 + 0.24 * (1 - across**2) + 0.10 * edge(y - dome + 0.02, 0.06)
    trachea = edge(0.042 - np.abs(x + 0.012), 0.012) * edge(-0.26 - y, 0.04)
    bubble = edge(canvas.to_ellipse(gas_x, domes["left"] + 0.20, 0.14, 0.06), 0.03) * (gas < 0.6) * (1 - lung)

    image = body * (tissue + 0.10 * rim + 0.07 * spine + 0.05 * middle + 0.2 * canvas.lines(skeleton)) - air
    image = image + 0.09 * posterior + 0.045 * anterior - 0.11 * trachea - 0.15 * bubble - dark + 0.26 * line
    if plates:
        image = image + 0.42 * canvas.lines(plates) * lung * (1 - middle)
    return image


def _lateral(
    study: Study, strength: dict[str, float], canvas: Canvas, anatomy: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    """The patient faces the image's left."""
    signs, x, y, edge = study.signs, canvas.x, canvas.y, canvas.edge

    back, front, dome_height, dome_gap, heart, rib_start, rib_spacing = anatomy.uniform(
        [0.66, -0.72, 0.28, 0.04, 0.90, -0.85, 0.13], [0.74, -0.66, 0.38, 0.08, 1.02, -0.75, 0.15]
    ).tolist()
    heart += 0.42 * strength["Cardiomegaly"]
    raised = 0.12 * strength["Atelectasis"]

    above = np.minimum(y, 0)
    spine_line = back - 0.10 * y**2 - 0.32 * above**2
    sternum = front + 0.05 * y**2 + 0.57 * above**2
    dome = dome_height - raised + 0.50 * (x + 0.15) ** 2
    to_back, to_front, to_roof = spine_line - x, x - sternum, y + 0.86 - 1.25 * (x - 0.07) ** 2
    chest = np.minimum(np.minimum(to_back, to_front), to_roof)
    lung = 0.6 * edge(np.minimum(chest, dome - y), 0.014)
    lung = lung + 0.4 * edge(np.minimum(chest, dome + raised + dome_gap - y), 0.014)

    # heart and great vessels
    centre = -0.38 + 0.16 * (heart - 1), 0.17 - 0.12 * (heart - 1)
    shapes = [
        canvas.to_ellipse(*centre, 0.24 * heart, 0.31 * heart, -0.55),
        canvas.to_ellipse(-0.36, 0.55, 0.22 * heart, 0.30),
    ]
    ring = np.abs(canvas.to_ellipse(0.07, -0.15, 0.27, 0.29))
    arch = 0.28 * edge(0.065 - ring, 0.025) * edge(-0.12 - y, 0.12)
    descending = 0.22 * edge(0.07 - np.abs(x - 0.34 - 0.06 * y), 0.03) * edge(y + 0.16, 0.12)
    wide = 0.85 * strength["Enlarged Cardiomediastinum"] * edge(canvas.to_ellipse(-0.18, -0.38, 0.28, 0.27), 0.11)
    hila = 0.45 * canvas.blob(0.0, -0.08, 0.10, 0.11)
    middle = covered([0.85 * edge(union(shapes), 0.035), hila, arch, descending, wide])

    # what takes the air away
    places = {"upper": (0.10, -0.46), "mid": (-0.32, -0.22), "lower": (0.38, 0.16), "retrocardiac": (0.20, 0.16)}
    centres = {name: places[signs[name].zone] for name in ("Lung Opacity", "Lung Lesion", "Pneumonia")}
    opacities = _lung_signs(study, strength, canvas, rng, centres)
    plates: list[Stroke] = []
    dark = 0.0
    fan = np.linspace(-2.7, 3.0, 13) + anatomy.uniform(-0.15, 0.15, 13)
    roots = np.stack([0.09 * np.cos(fan), -0.08 + 0.10 * np.sin(fan)], axis=1)
    vessels = vessels_from(anatomy, roots, fan, 0.42)
    if shown := strength["Edema"]:
        opacities.append(shown * canvas.blob(0.02, -0.06, 0.26, 0.28) * (0.72 + 0.2 * canvas.clouds(rng, 9)))
        vessels = [(points, 1.6 * thick, value) for points, thick, value in vessels]
        for end in ((0.45, -0.45), (-0.32, 0.40)):  # the thickened oblique fissure
            plates.append(([(0.03, -0.03), end], 0.018, 0.6 * shown))
    if shown := strength["Consolidation"]:
        below = y - 0.02 + 0.95 * (x - 0.05)  # from the oblique fissure, positive in the lower lobe
        if signs["Consolidation"].zone == "upper":
            lobe, tips = edge(-below, 0.02) * edge(-0.16 - y, 0.02), [(-0.25, -0.42), (-0.05, -0.6)]
        else:
            lobe, tips = edge(below, 0.02) * edge(y + 0.12, 0.1), [(0.30, 0.36), (0.46, 0.26), (0.52, 0.1)]
        opacities.append(0.88 * shown * lobe)
        bronchi = [(curve((0.02, -0.06), (0.5 * a, 0.7 * b), (a, b), steps=8), 0.026, 0.8) for a, b in tips]
        dark = 0.22 * shown * canvas.lines(bronchi)
    if shown := strength["Atelectasis"]:
        tilts = rng.uniform(-0.01, 0.06, 3).tolist()
        for level, half, slope in zip((0.05, 0.13, 0.21), (0.20, 0.16, 0.11), tilts, strict=True):
            base = dome_height - raised + 0.08 - level
            plate = curve((0.28 - half, base - slope), (0.28, base - 0.02), (0.28 + half, base + slope))
            plates += [(plate, 0.045, 0.35 * shown), (plate, 0.028, 0.75 * shown)]
    if shown := strength["Pleural Effusion"]:
        depth = {"small": 0.20, "moderate": 0.30, "large": 0.50}[signs["Pleural Effusion"].size]
        fluid = dome_height + 0.38 - depth - 0.5 * np.clip(x - 0.30, 0, 1) + 1.1 * np.clip(0.30 - x, 0, 1) ** 2
        opacities.append(0.92 * shown * edge(y - fluid, 0.025) * edge(x + 0.35, 0.1))
    if shown := strength["Pleural Other"]:
        rind = (0.062 + 0.012 * canvas.clouds(rng, 9)) * GROWTH[signs["Pleural Other"].size]
        opacities.append(0.85 * shown * edge(rind - np.minimum(to_back, to_roof - 0.04), 0.012))

    air = lung * (0.46 - 0.14 * edge(-0.48 - y, 0.3) + 0.015 * canvas.clouds(anatomy, 14))
    air = air * (1 - 0.8 * middle) * (1 - covered(opacities))
    vascular = canvas.lines(vessels)
    line = 0.0
    if shown := strength["Pneumothorax"]:
        gap = {"small": 0.13, "moderate": 0.19, "large": 0.26}[signs["Pneumothorax"].size]
        gap = gap * (0.5 + 0.5 * edge(-0.3 - y, 0.3))
        inner = np.minimum(np.minimum(to_back, to_front), 0.8 * to_roof)
        empty = shown * edge(gap - inner, 0.008)
        line = shown * lung * edge(0.2 - y, 0.2) * canvas.thin(inner - gap)
        vascular = vascular * (1 - empty)
        air = air + 0.10 * lung * empty * (1 - middle)
    air = air * (1 - 0.32 * vascular)

    # bones
    shift, broken, near = 0.0, 0.0, 0.0
    if shown := strength["Fracture"]:
        level = {"upper": -0.35, "mid": -0.15, "lower": 0.05}[signs["Fracture"].zone]
        shift, broken, near = break_rib(shown, canvas, 0.22 - x, 0.22, level)
    drop = 0.30 * (0.65 - x) + 0.25 * (x - 0.05) ** 2
    inside = edge(np.minimum(to_back + 0.03, to_front + 0.02), 0.02) * (1 - 0.6 * edge(y - dome, 0.05))
    ribs = bands((y - shift - drop - rib_start) / rib_spacing, canvas.pixel / rib_spacing, 9)
    ribs = ribs * inside * (1 - broken) * (1 + 4.5 * near)
    vertebrae = edge(0.085 - np.abs(x - spine_line + 0.10), 0.012) * (
        0.72 + 0.28 * np.cos(2 * np.pi * (y - rib_start) / 0.17)
    )
    breastbone = edge(0.026 - np.abs(to_front + 0.03), 0.012) * edge(0.30 - y, 0.06) * edge(y + 0.68, 0.05)
    trachea = edge(0.042 - np.abs(x - 0.03 + 0.1 * (y + 0.2)), 0.014) * edge(-0.20 - y, 0.04)

    # soft tissue
    shoulders = edge(-0.50 - y, 0.25)
    outline = np.minimum(
        spine_line + 0.20 + 0.5 * shoulders - x, x - sternum + 0.15 + 0.06 * edge(y, 0.4) + 0.3 * shoulders
    )
    body = edge(outline, 0.03) * (0.76 + 0.24 * np.clip(outline / 0.22, 0, 1))
    tissue = 0.60 + 0.10 * edge(y - dome + 0.02, 0.06) + 0.08 * shoulders
    fading = 1 - 0.55 * edge(y - dome, 0.05) - 0.3 * shoulders  # bone is hardly seen through shoulders and belly
    image = body * (tissue + 0.13 * vertebrae * fading + 0.10 * breastbone) - air
    image = image + 0.05 * ribs - 0.10 * trachea - dark + 0.18 * line + 0.05 * middle * lung
    if plates:
        image = image + 0.40 * canvas.lines(plates) * lung * (1 - 0.7 * middle)
    return image


def _device(study: Study, view: str, canvas: Canvas) -> np.ndarray:
    """Where the metal or plastic of the study's device lies, from 0 to 1."""
    side = SIDES[study.signs["Support Devices"].side]
    if view == "frontal":
        paths = {
            "pacemaker": [
                curve((side * 0.50, -0.42), (side * 0.25, -0.75), (-0.10, -0.62), (-0.10, -0.1)),
                curve((-0.10, -0.1), (-0.10, 0.32), (0.05, 0.36), (0.30, 0.30)),
            ],
            "central venous catheter": [curve((side * 0.42, -1.0), (side * 0.16, -0.8), (-0.11, -0.62), (-0.11, 0.0))],
            "endotracheal tube": [curve((-0.015, -1.1), (-0.012, -0.36), steps=2)],
            "chest tube": [curve((side * 0.95, 0.34), (side * 0.50, 0.30), (side * 0.52, -0.1), (side * 0.36, -0.62))],
        }
        box = (side * 0.54, -0.44, 0.13, 0.11)
    else:
        paths = {
            "pacemaker": [
                curve((-0.55, -0.42), (-0.3, -0.75), (0.0, -0.6), (-0.08, -0.05)),
                curve((-0.08, -0.05), (-0.12, 0.25), (-0.3, 0.32), (-0.46, 0.28)),
            ],
            "central venous catheter": [curve((0.02, -1.0), (-0.04, -0.7), (-0.06, -0.4), (-0.05, 0.0))],
            "endotracheal tube": [curve((0.12, -1.1), (0.05, -0.36), steps=2)],
            "chest tube": [curve((0.0, 0.55), (0.35, 0.35), (0.45, -0.1), (0.18, -0.66))],
        }
        box = (-0.62, -0.42, 0.06, 0.12)
    width = {"endotracheal tube": 0.05, "chest tube": 0.042, "central venous catheter": 0.032}.get(study.device, 0.024)
    metal = canvas.lines([(path, width, 0.95) for path in paths[study.device]], rounded=True)
    if study.device == "pacemaker":
        corner = (np.abs(canvas.x - box[0]) / box[2]) ** 4 + (np.abs(canvas.y - box[1]) / box[3]) ** 4
        metal = np.maximum(metal, canvas.edge((1 - corner**0.25) * 0.1, 0.01))
    return metal


# --- words -------------------------------------------------------------------------------------------------------

REGIONS = {
    "Heart": ("Cardiomegaly",),
    "Mediastinum": ("Enlarged Cardiomediastinum",),
    "Lungs": ("Consolidation", "Pneumonia", "Lung Opacity", "Lung Lesion", "Edema", "Atelectasis"),
    "Pleura": ("Pleural Effusion", "Pneumothorax", "Pleural Other"),
    "Bones": ("Fracture",),
    "Other": ("Support Devices",),
}
WHOLE_SENTENCES = {  # conditions that are an organ's size: an adjective of the organ, not a thing that is there
    ("Enlarged Cardiomediastinum", CheXpertState.POSITIVE): (
        "The mediastinum is widened.",
        "The superior mediastinum is widened.",
        "There is widening of the mediastinum.",
    ),
    ("Enlarged Cardiomediastinum", CheXpertState.UNCERTAIN): (
        "Possible widening of the mediastinum.",
        "The mediastinum may be widened.",
        "The superior mediastinum is possibly widened.",
    ),
    ("Enlarged Cardiomediastinum", CheXpertState.NEGATIVE): (
        "The mediastinum is not widened.",
        "The mediastinum is unremarkable.",
        "The mediastinal contours are normal.",
    ),
    ("Cardiomegaly", CheXpertState.POSITIVE): (
        "The heart is enlarged.",
        "There is cardiomegaly.",
        "The cardiac silhouette is enlarged.",
    ),
    ("Cardiomegaly", CheXpertState.UNCERTAIN): (
        "Possible cardiomegaly.",
        "The heart may be enlarged.",
        "The cardiac silhouette is possibly enlarged.",
    ),
    ("Cardiomegaly", CheXpertState.NEGATIVE): (
        "The heart is normal in size.",
        "Heart size is normal.",
        "The cardiac silhouette is normal in size.",
        "Heart size is within normal limits.",
    ),
}
ABSENT = {
    "Lung Opacity": ("lung opacity", "focal opacity"),
    "Lung Lesion": ("pulmonary nodule", "pulmonary mass"),
    "Edema": ("pulmonary edema", "edema"),
    "Consolidation": ("focal consolidation", "consolidation"),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis",),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural effusion", "effusion"),
    "Pleural Other": ("pleural thickening",),
    "Fracture": ("rib fracture", "acute fracture"),
    "Support Devices": ("support devices",),
}
RESOLVING = ("Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion")
FRAMES = {
    ("terse", CheXpertState.POSITIVE): ("{bare}.",),
    ("terse", CheXpertState.UNCERTAIN): ("possible {bare}.", "questionable {bare}.", "{bare} cannot be excluded."),
    ("prose", CheXpertState.POSITIVE): ("there {is_} {noun}.", "{noun} {is_} present.", "{noun} {is_} seen."),
    ("prose", CheXpertState.UNCERTAIN): ("there may be {noun}.", "possible {bare}.", "{noun} cannot be excluded."),
    ("mimic", CheXpertState.POSITIVE): ("there {is_} {noun}.", "{noun} {is_} noted.", "{noun} {is_} demonstrated."),
    ("mimic", CheXpertState.UNCERTAIN): (
        "findings may represent {noun}.",
        "{noun} cannot be excluded.",
        "there {is_} possible {bare}.",
    ),
}
INDICATIONS = (
    "Cough.",
    "Shortness of breath.",
    "Chest pain.",
    "Fever.",
    "Preoperative evaluation.",
    "Weakness and dizziness.",
    "Follow-up examination.",
    "Weight loss.",
    "Back pain.",
    "Routine screening.",
)
CONDITIONS_OF_HISTORY = (
    "hypertension",
    "diabetes",
    "a history of smoking",
    "asthma",
    "no relevant medical history",
    "chronic kidney disease",
    "hyperlipidemia",
    "a prior appendectomy",
)


def _noun(name: str, sign: Sign, device: str, rng: np.random.Generator) -> tuple[str, bool, bool]:
    """A noun phrase without article for a finding that is there, whether it takes "a" and whether it is a plural."""
    side, zone = sign.side, sign.zone
    lobe = f"{side} {'upper' if zone == 'upper' else 'lower'} lobe"
    if name == "Lung Lesion" and zone == "retrocardiac":
        choices = ("retrocardiac nodule", "round retrocardiac nodule", "nodule behind the heart")
    elif name == "Lung Lesion":
        kind = "mass" if sign.size == "large" else "nodule"
        choices = (f"round {kind} in the {side} {zone} lung", f"well-defined {side} {zone} lung {kind}")
    elif name == "Pleural Effusion":
        where = "posterior " if sign.size == "small" else ""
        noun = "pleural effusions" if side == "bilateral" else "pleural effusion"
        choices = (f"{sign.size} {where}{side} {noun}", f"{sign.size} {side} {where}{noun}")
    else:
        choices = {
            "Lung Opacity": (f"hazy opacity in the {side} {zone} lung", f"ill-defined {side} {zone} lung opacity"),
            "Edema": ("pulmonary edema", "perihilar pulmonary edema", "interstitial pulmonary edema"),
            "Consolidation": (f"dense consolidation in the {lobe}", f"lobar consolidation in the {lobe}"),
            "Pneumonia": (f"patchy pneumonia in the {side} {zone} lung", f"{side} {zone} lung pneumonia"),
            "Atelectasis": (f"{side} basilar atelectasis", f"linear atelectasis at the {side} lung base"),
            "Pneumothorax": (f"{sign.size} {side} pneumothorax", f"{sign.size} {side} apical pneumothorax"),
            "Pleural Other": (f"{side} pleural thickening", f"{side} apical pleural thickening"),
            "Fracture": (f"displaced {side} rib fractures", f"displaced fractures of {side} ribs"),
            "Support Devices": {
                "pacemaker": (f"{side}-sided pacemaker", f"{side} chest wall pacemaker"),
                "central venous catheter": (f"{side} central venous catheter", f"{side} internal jugular catheter"),
                "endotracheal tube": ("endotracheal tube", "endotracheal tube above the carina"),
                "chest tube": (f"{side} chest tube", f"{side}-sided chest tube"),
            }[device],
        }[name]
    plural = name == "Fracture" or (name == "Pleural Effusion" and side == "bilateral")
    uncounted = name in ("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pleural Other")
    return str(rng.choice(choices)), not plural and not uncounted, plural


class Wording(NamedTuple):
    """How a site puts its findings: `whole_sentences` by (finding, state), `frames` by (style, state), and `noun`,
    which fills them."""

    whole_sentences: dict
    frames: dict
    noun: Callable[[str, Sign, str, np.random.Generator], tuple[str, bool, bool]]


def finding_sentence(
    name: str, study: Study, rng: np.random.Generator, style: str, change: str, wording: Wording | None = None
) -> str:
    """One sentence about one positive or uncertain finding; `change` is empty or stands before the noun.

    `wording`: another site's.
    """
    whole_sentences, frames, noun_of = wording or (WHOLE_SENTENCES, FRAMES, _noun)
    state = study.state(name)
    if (name, state) in whole_sentences:
        return str(rng.choice(whole_sentences[name, state]))
    bare, takes_article, plural = noun_of(name, study.signs[name], study.device, rng)
    bare = f"{change} {bare}" if change else bare
    noun = f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}" if takes_article else bare
    choices = frames["prose" if style == "systematic" else style, state]
    text = str(rng.choice(choices)).format(bare=bare, noun=noun, is_="are" if plural else "is")
    return text[0].upper() + text[1:]


def _negatives(names: list[str], rng: np.random.Generator) -> list[str]:
    """Sentences that deny `names`, at most three in one."""
    sentences = []
    while names:
        group, names = names[:3], names[3:]
        nouns = [str(rng.choice(ABSENT[name])) for name in group]
        listed = nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " or " + nouns[-1]
        sentences.append(str(rng.choice(["No {}.", "There is no {}.", "No evidence of {}."])).format(listed))
    return sentences


def write_report(
    states: Sequence[int] | Study,
    rng: np.random.Generator,
    style: str | None = None,
    prior: Study | None = None,
    views: int = 1,
) -> str:
    """The findings section of a study, in one of `STYLES` (None: drawn from `rng`).

    It mentions every positive, uncertain and negative finding and no blank one, hedges exactly the uncertain ones
    and names the sides, sizes and zones that `render` draws. With `prior`, findings are called new, unchanged or
    resolved; with `views` > 1, some styles name the views. Raises ValueError on an unknown style.
    """
    study = states if isinstance(states, Study) else make_study(states, rng)
    style = str(rng.choice(STYLES)) if style is None else style
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")

    def present(name: str) -> str:
        change = ""
        if prior is not None and rng.random() < 0.8:
            change = "new" if prior.state(name) not in STRENGTH else "unchanged"
            if change == "unchanged" and study.state(name) == CheXpertState.UNCERTAIN:
                change = ""  # "possible unchanged" is nobody's wording
        return finding_sentence(name, study, rng, style, change)

    def absent(names: list[str]) -> list[str]:
        organs = [name for name in names if (name, CheXpertState.NEGATIVE) in WHOLE_SENTENCES]
        resolved = [name for name in names if name in RESOLVING and prior and prior.state(name) in STRENGTH]
        sentences = [str(rng.choice(WHOLE_SENTENCES[name, CheXpertState.NEGATIVE])) for name in organs]
        sentences += [f"The previously seen {ABSENT[name][0]} has resolved." for name in resolved]
        return sentences + _negatives([name for name in names if name not in organs + resolved], rng)

    visible = [name for name in FINDINGS if study.state(name) in STRENGTH]
    denied = [name for name in FINDINGS if study.state(name) == CheXpertState.NEGATIVE]
    sentences = []
    if style == "terse":
        sentences = [present(visible[i]) for i in rng.permutation(len(visible))] + absent(denied)
    elif style == "mimic":
        if views > 1:
            sentences.append("PA and lateral views of the chest were obtained.")
        order = [
            name
            for region in ("Lungs", "Pleura", "Heart", "Mediastinum", "Bones", "Other")
            for name in REGIONS[region]
        ]
        sentences += [present(name) for name in order if name in visible]
        sentences += absent([name for name in order if name in denied])
    else:
        for region, names in REGIONS.items():
            part = [present(name) for name in names if name in visible]
            part += absent([name for name in names if name in denied])
            if part and style == "systematic":
                part[0] = f"{region}: {part[0]}"
            sentences += part
    return " ".join(sentences if visible or denied else [*sentences, "No acute abnormality is seen."])


def write_impression(study: Study, rng: np.random.Generator) -> str:
    """A one-line impression: the positive and uncertain findings, or that there is nothing acute."""
    visible = [name for name in FINDINGS if study.state(name) in STRENGTH]
    sentences = [finding_sentence(name, study, rng, "terse", "") for name in visible]
    return " ".join(sentences) or "No acute cardiopulmonary abnormality."


def earlier(study: Study, rng: np.random.Generator) -> Study:
    """The same patient some time before: some findings not there yet, others as they are, some since resolved."""
    states = np.array(study.states)
    for i, name in enumerate(FINDINGS):
        if study.state(name) in STRENGTH and rng.random() < 0.4:
            states[i] = CheXpertState.NEGATIVE if rng.random() < 0.5 else CheXpertState.BLANK
        elif name in RESOLVING and study.state(name) == CheXpertState.NEGATIVE and rng.random() < 0.12:
            states[i] = CheXpertState.POSITIVE
    return replace(study, states=tuple(with_no_finding(states).tolist()))


def write_request(rng: np.random.Generator) -> tuple[str | None, str | None]:
    """Indication and history, drawn without regard to the findings; each missing in one study of five."""
    sex = rng.choice(["man", "woman"])
    history = f"A {rng.integers(22, 90)}-year-old {sex} with {rng.choice(CONDITIONS_OF_HISTORY)}."
    indication = str(rng.choice(INDICATIONS))
    return (indication if rng.random() < 0.8 else None), (history if rng.random() < 0.8 else None)


# --- contact sheet -----------------------------------------------------------------------------------------------


def contact_sheet(size: int = 128, draw: Callable[..., Image.Image] = render) -> Image.Image:
    """A labelled grid: the normal chest, then each finding, certain and uncertain, frontal and lateral; mode L.

    `size` is a tile's width in pixels, `draw` a site's `render`. A finding's tiles share one anatomy, so only the
    sign differs.
    """
    header, caption, rows = 34, 15, 7
    sheet = Image.new("L", (2 * 4 * size, header + rows * (size + caption)))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((6, 2), NOTE, 255, font)
    pen.text(
        (6, 17), "Of each finding: frontal certain, frontal uncertain, lateral certain, lateral uncertain.", 200, font
    )
    tiles = [(view, state) for view in VIEWS for state in STRENGTH]
    for place, name in enumerate(("Normal", *FINDINGS)):
        x, y = place // rows * 4 * size, header + place % rows * (size + caption)
        pen.text((x + 4, y), name, 255, font)
        for tile, (view, state) in enumerate(tiles):
            states = [state if name == finding else CheXpertState.BLANK for finding in FINDINGS]
            seed = tile if name == "Normal" else 11 + place
            image = draw(states, view, np.random.default_rng(seed), size, lateral_only=False)
            sheet.paste(image, (x + tile * size, y + caption))
    return sheet
