"""A second site of the phantom, for tests out of distribution: the findings of recipes/data/phantom.py, drawn anew.

States, sides, sizes and zones mean what they mean at the first site, and a report is read to the same labels. All else
differs: other patients (narrow lungs, a round heart, flat diaphragms, the lateral view from the other side), other
signs of the same findings, a film that is darker, harder and noisier between black borders, findings of a ward rather
than of a walk-in clinic, and other words (recipes/data/phantom_site_b_reports.py). Not medical data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.data import phantom
from recipes.data.phantom import (
    GROWTH,
    SIDES,
    Prevalence,
    Study,
    check_picture,
    make_study,
    picture_streams,
    strengths_in,
)
from recipes.data.phantom_canvas import SHAPES, Canvas, Stroke, bands, covered, curve, union, vessels_from

# As phantom.FREQUENCIES, for the patients of a ward: not measured, but far from Open-i's in every column.
WARD = Prevalence(
    {
        "Enlarged Cardiomediastinum": (0.050, 0.40, 0.20),
        "Cardiomegaly": (0.150, 0.30, 0.30),
        "Lung Opacity": (0.060, 0.20, 0.55),
        "Lung Lesion": (0.015, 0.40, 0.20),
        "Edema": (0.140, 0.25, 0.45),
        "Consolidation": (0.060, 0.35, 0.60),
        "Pneumonia": (0.070, 0.35, 0.30),
        "Atelectasis": (0.060, 0.35, 0.15),
        "Pneumothorax": (0.040, 0.30, 0.40),
        "Pleural Effusion": (0.150, 0.10, 0.40),
        "Pleural Other": (0.050, 0.40, 0.10),
        "Fracture": (0.045, 0.40, 0.20),
        "Support Devices": (0.200, 0.0, 0.05),
    },
    (
        ("Edema", "Pleural Effusion", 0.7),
        ("Edema", "Cardiomegaly", 0.4),
        ("Pneumonia", "Pleural Effusion", 0.3),
        ("Consolidation", "Support Devices", 0.3),
        ("Fracture", "Pneumothorax", 0.3),
        ("Pneumothorax", "Support Devices", 0.6),
    ),
    (0.30, 0.35, 0.20, 0.15),
)


def sample_states(rng: np.random.Generator, abnormal: float = 0.4, balanced: bool = False) -> np.ndarray:
    """As `phantom.sample_states`, with this site's prevalence."""
    return phantom.sample_states(rng, abnormal, balanced, WARD)


def render(
    states: Sequence[int] | Study,
    view: str,
    rng: np.random.Generator,
    size: int = 112,
    lateral_only: bool = True,
    shape: str = "square",
) -> Image.Image:
    """As `phantom.render`, at this site; on a lateral view the patient faces the image's right."""
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
    return _film(image if view == "frontal" else image[:, ::-1], canvas, film_rng)


def _film(image: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> Image.Image:
    """A hard, dark film with coarse noise, brighter towards the feet, between black borders, with a lead marker."""
    gain, offset, bend = rng.uniform([0.96, -0.05, -0.50], [1.10, 0.01, -0.25]).tolist()
    row = (np.arange(canvas.height, dtype=np.float32)[:, None] + 0.5) * canvas.pixel - 1
    image = np.clip((image * gain + offset) * (1 + 0.07 * row), 0, 1)
    image = image + bend * image * (1 - image)
    image = image + 0.016 * canvas.clouds(rng, max(canvas.size // 10, 6))
    image = image + 0.024 * rng.standard_normal((canvas.height, canvas.size), dtype=np.float32)
    border = max(round(0.025 * canvas.size), 1)
    image[:, :border] = image[:, -border:] = image[:border] = 0
    film = Image.fromarray(np.clip(255 * image, 0, 255).astype(np.uint8))
    font = ImageFont.load_default(0.07 * canvas.size)
    ImageDraw.Draw(film).text((0.92 * canvas.size, 0.05 * canvas.size), "L", 235, font, anchor="mt")
    return film


class _Chest(NamedTuple):
    """Measures of a frontal view: half width and top of the lungs, tops of the diaphragm by side, heart, ribs."""

    width: float
    apex: float
    domes: dict[str, float]
    heart: float
    heart_base: float
    rib_start: float
    rib_spacing: float
    breasts: float

    def half_width(self, y: np.ndarray | float) -> np.ndarray | float:
        """Half the width of the thorax at `y`: straight walls that close only above."""
        return self.width * (1 - 0.42 * np.clip((0.30 - y) / 1.15, 0, 1) ** 3)

    def ventricles(self) -> tuple[float, float, float, float, float]:
        """The heart's ellipse: its centre, half axes and tilt."""
        return 0.06 * self.heart, self.heart_base - 0.25 * self.heart, 0.29 * self.heart, 0.25 * self.heart, 0.35

    def atrium(self) -> tuple[float, float, float, float]:
        """The right atrium's ellipse: its centre and half axes."""
        return -0.11 * self.heart, 0.10, 0.10 * self.heart, 0.18


def _chest(study: Study, strength: dict[str, float], anatomy: np.random.Generator) -> _Chest:
    width, apex, right_dome, dome_step, heart, rib_start, rib_spacing, breasts = anatomy.uniform(
        [0.61, -0.88, 0.26, 0.01, 0.90, -0.80, 0.15, 0], [0.67, -0.83, 0.34, 0.05, 0.99, -0.72, 0.17, 1]
    ).tolist()
    domes = {"right": right_dome, "left": right_dome + dome_step}
    heart_base = domes["left"] + 0.07
    heart += 0.62 * strength["Cardiomegaly"]
    domes[study.signs["Atelectasis"].side] -= 0.10 * strength["Atelectasis"]
    return _Chest(width, apex, domes, heart, heart_base, rib_start, rib_spacing, breasts)


FLATNESS = 1.0  # of the diaphragm: how fast it falls away from its top, where the first site has 1.6
TOP = 0.32  # how far from the middle the diaphragm's and the lung's tops are
PEDICLE = {"right": 0.26, "left": 0.10}  # how far each side of the upper mediastinum moves out when it is wide


def region_boxes(study: Study, rng: np.random.Generator, size: int = 112, shape: str = "square") -> list[dict]:
    """As `phantom.region_boxes`, for this site's `render`."""
    _, anatomy, *_ = picture_streams(rng)
    canvas = Canvas(size, shape, anatomy)
    strength = strengths_in(study, "frontal")
    chest = _chest(study, strength, anatomy)
    bottom = 2 * SHAPES[shape] - 1 + 0.2  # a little below the image, as -1.2 is above it
    boxes = [
        (f"{side} {name}", *sorted((SIDES[side] * x0, SIDES[side] * x1)), y0, y1)
        for side in SIDES
        for name, x0, x1, y0, y1 in _lung_regions(chest, side)
    ]
    wide = {side: 0.085 + reach * strength["Enlarged Cardiomediastinum"] for side, reach in PEDICLE.items()}
    x, y, across, along, tilt = chest.ventricles()
    reach_x, reach_y = np.hypot(
        [across * np.cos(tilt), across * np.sin(tilt)], [along * np.sin(tilt), along * np.cos(tilt)]
    ).tolist()
    atrium_x, atrium_y, atrium_width, atrium_height = chest.atrium()
    x0, x1 = min(x - reach_x, atrium_x - atrium_width), x + reach_x
    y0, y1 = min(y - reach_y, atrium_y - atrium_height), max(y + reach_y, atrium_y + atrium_height)
    arch = 0.16
    boxes += [
        ("trachea", -0.05, 0.05, -1.2, -0.28),
        ("spine", -0.10, 0.10, -1.2, bottom),
        ("aortic arch", 0.0, max(arch, wide["left"]), -0.48, -0.32),
        ("mediastinum", min(-wide["right"], x0), max(arch, wide["left"], x1), chest.apex, y1),
        ("upper mediastinum", -wide["right"], max(arch, wide["left"]), chest.apex, -0.22),
        ("cardiac silhouette", x0, x1, y0, y1),
        ("right atrium", x0, 0.06 * chest.heart, atrium_y - atrium_height, atrium_y + atrium_height),
        ("carina", -0.08, 0.08, -0.37, -0.21),
        ("abdomen", -1.2, 1.2, min(chest.domes.values()), bottom),
    ]
    return [{"region": name, **canvas.upright_box(*box)} for name, *box in boxes]


def _lung_regions(chest: _Chest, side: str) -> list[tuple[str, float, float, float, float]]:
    """(name, x0, x1, y0, y1) of what each side has, x growing away from the middle."""
    dome, width = chest.domes[side], chest.width
    angle = dome + FLATNESS * (width - TOP) ** 2  # the lowest point of the lung
    inner = 0.085
    apical, upper, middle = (float(chest.half_width(y)) for y in (-0.60, -0.30, 0.02))  # of zones, at the lower border
    return [
        ("lung", inner, width, chest.apex, angle),
        ("apical zone", inner, apical, chest.apex, -0.60),
        ("upper lung zone", inner, upper, chest.apex, -0.30),
        ("mid lung zone", inner, middle, -0.30, 0.02),
        ("lower lung zone", inner, width, 0.02, angle),
        ("hilar structures", 0.06, 0.28, -0.28, 0.06),
        ("costophrenic angle", width - 0.18, width, angle - 0.22, angle),
        ("hemidiaphragm", inner, width, dome - 0.03, angle),
        ("clavicle", 0.08, 0.94, -0.86, -0.60),
    ]


def _lung_signs(
    study: Study, strength: dict[str, float], canvas: Canvas, rng: np.random.Generator, centres: dict
) -> list[np.ndarray]:
    """Opacities of the findings that look alike in both views, around `centres`: zone -> (x, y) on the left."""
    opacities = []

    def centre(name: str) -> tuple[float, float, float]:
        sign = study.signs[name]
        x, y = centres[sign.zone]
        shift_x, shift_y = rng.uniform(-1, 1, 2).tolist()
        side = SIDES[sign.side] if centres["mirrored"] else 1
        return side * (x + 0.05 * shift_x), y + 0.025 * shift_y, GROWTH[sign.size]

    if shown := strength["Lung Opacity"]:  # ground glass: an even plateau of fine grain
        x, y, grow = centre("Lung Opacity")
        distance = canvas.to_ellipse(x, y, 0.23 * grow, 0.16 * grow, rng.uniform(-0.6, 0.6))
        grain = 0.78 + 0.28 * canvas.clouds(rng, 30)
        opacities.append(0.62 * shown * canvas.edge(distance + 0.03, 0.07) * np.clip(grain, 0, 1))
    if shown := strength["Lung Lesion"]:  # lobulated; a large one is a ring around a cavity
        x, y, grow = centre("Lung Lesion")
        angle, start = np.arctan2(canvas.y - y, canvas.x - x), rng.uniform(0, 2 * np.pi)
        outline = 1 + 0.13 * np.sin(3 * angle + start) + 0.08 * np.sin(5 * angle - start)
        distance = 0.118 * grow * outline - np.hypot(canvas.x - x, canvas.y - y)
        hole = 0.6 * canvas.edge(distance - 0.055) * (study.signs["Lung Lesion"].size == "large")
        opacities.append(0.92 * shown * canvas.edge(distance) * (1 - hole))
    if shown := strength["Pneumonia"]:  # a rosette of nodular shadows
        x, y, grow = centre("Pneumonia")
        angles = np.linspace(0, 2 * np.pi, 7)[:6] + rng.uniform(0, 1)
        spots = [canvas.blob(x, y, 0.055 * grow, 0.055 * grow)]
        for angle, radius in zip(angles.tolist(), rng.uniform(0.09, 0.15, 6).tolist(), strict=True):
            where = x + grow * radius * np.cos(angle), y + 0.8 * grow * radius * np.sin(angle)
            spots.append(canvas.blob(*where, 0.042 * grow, 0.042 * grow))
        opacities.append(0.9 * shown * np.clip(1.3 * sum(spots) - 0.15, 0, 1))
    return opacities


def _frontal(  # noqa: C901
    study: Study, strength: dict[str, float], canvas: Canvas, anatomy: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    signs, x, y, edge, across = study.signs, canvas.x, canvas.y, canvas.edge, np.abs(canvas.x)
    halves = {"right": 1 - edge(x, 0.02), "left": edge(x, 0.02), "bilateral": 1.0}
    chest = _chest(study, strength, anatomy)
    width, domes = chest.width, chest.domes

    # distances to the borders of the thorax, positive inside
    floor = domes["right"] + (domes["left"] - domes["right"]) * edge(x, 0.1)
    dome = floor + FLATNESS * (across - TOP) ** 2
    to_wall = chest.half_width(y) - across
    to_roof = y - chest.apex - 1.9 * (across - TOP) ** 2
    lung = edge(np.minimum(np.minimum(to_wall, to_roof), dome - y), 0.014)

    # heart and great vessels
    bulge = strength["Enlarged Cardiomediastinum"] * np.clip(1 - ((y + 0.48) / 0.32) ** 2, 0, 1)
    widening = bulge * (PEDICLE["right"] + (PEDICLE["left"] - PEDICLE["right"]) * edge(x, 0.02))
    shapes = [
        0.085 + widening - across,
        canvas.to_ellipse(*chest.ventricles()),
        canvas.to_ellipse(*chest.atrium()),
        canvas.to_ellipse(0.085, -0.40, 0.075, 0.075),
    ]
    middle = edge(union(shapes, 0.025), 0.02)

    # what takes the air away
    centres = {"upper": (0.31, -0.53), "mid": (0.40, -0.15), "lower": (0.42, 0.17), "retrocardiac": (0.20, 0.15)}
    opacities = _lung_signs(study, strength, canvas, rng, {**centres, "mirrored": True})
    plates: list[Stroke] = []
    vessels: list[Stroke] = []
    for side in SIDES.values():
        fan = np.linspace(-1.2, 1.45, 7) + anatomy.uniform(-0.2, 0.2, 7)
        roots = np.stack([np.full(7, side * 0.13), -0.12 + 0.09 * np.sin(fan)], axis=1)
        vessels += vessels_from(anatomy, roots, fan if side > 0 else np.pi - fan, 0.42)
    hila = 0.42 * (canvas.blob(-0.15, -0.10, 0.045, 0.07) + canvas.blob(0.15, -0.13, 0.045, 0.07))
    if shown := strength["Edema"]:  # an even veil that grows towards the bases, with cuffs and long septal lines
        veil = np.clip(0.38 + 0.75 * y, 0.08, 0.62) * (0.9 + 0.15 * canvas.clouds(rng, 28))
        opacities.append(shown * veil)
        for side in SIDES.values():
            for angle in (-0.9, -0.2, 0.5):
                ring = np.abs(canvas.to_ellipse(side * (0.22 + 0.06 * angle), -0.10 + 0.14 * angle, 0.05, 0.05))
                opacities.append(0.6 * shown * edge(0.016 - ring, 0.014))
            for level in (-0.42, -0.30, -0.02, 0.10, 0.20):
                septum = [(side * 0.50, level), (side * 0.24, level + 0.09)]
                plates.append((septum, 0.016, 0.5 * shown))
    if shown := strength["Consolidation"]:  # a wedge with its base on the wall
        sign = signs["Consolidation"]
        level = -0.36 if sign.zone == "upper" else 0.12
        wedge = across - 0.16 / GROWTH[sign.size] - 1.25 * np.abs(y - level)
        opacities.append(0.90 * shown * edge(wedge, 0.018) * halves[sign.side])
    if shown := strength["Atelectasis"]:  # one thick band that falls towards the middle
        side, base = SIDES[signs["Atelectasis"].side], domes[signs["Atelectasis"].side]
        slope, far = rng.uniform(0.06, 0.12), 0.56
        band = curve((side * 0.16, base - 0.05), (side * 0.36, base - 0.10 - slope), (side * far, base - 0.17 - slope))
        plates += [(band, 0.105, 0.45 * shown), (band, 0.07, 0.95 * shown)]
    if shown := strength["Pleural Effusion"]:  # a level, and a veil above it; a small one is behind the dome
        sign = signs["Pleural Effusion"]
        depth = {"moderate": 0.13, "large": 0.32}[sign.size]
        level = floor - depth + 0.06 * across
        veil = 0.45 * np.clip(1 - (level - y) / (0.5 * depth), 0, 1)
        opacities.append(0.93 * shown * np.maximum(edge(y - level, 0.05), veil) * halves[sign.side])
    if shown := strength["Pleural Other"]:  # plaques along the wall
        sign = signs["Pleural Other"]
        grow = GROWTH[sign.size]
        for level, length in ((-0.46, 0.10), (-0.20, 0.13), (0.06, 0.10)):
            wall = SIDES[sign.side] * (float(chest.half_width(level)) - 0.045)
            plaque = edge(canvas.to_ellipse(wall, level, 0.062 * grow, length * grow), 0.014)
            opacities.append((0.85 + 0.1 * canvas.clouds(rng, 20)) * shown * plaque)

    air = lung * (0.55 - 0.05 * np.clip(to_wall * 4, 0, 1) + 0.02 * canvas.clouds(anatomy, 10))
    air = air * (1 - 0.92 * middle) * (1 - covered([*opacities, hila]))
    vascular = canvas.lines(vessels)
    line = 0.0
    if shown := strength["Pneumothorax"]:  # a cap of air over the lung, and along the wall down to its angle
        sign = signs["Pneumothorax"]
        gap = {"small": 0.15, "moderate": 0.21, "large": 0.30}[sign.size]
        inner = -union([-to_wall / (0.35 + 0.65 * edge(-0.30 - y, 0.3)), -to_roof], 0.03)
        empty = shown * edge(gap - inner, 0.008) * halves[sign.side]
        line = shown * lung * (1 - middle) * halves[sign.side] * canvas.thin(inner - gap)
        vascular = vascular * (1 - empty)
        air = air + 0.12 * lung * empty * (1 - middle) - 0.09 * shown * lung * (1 - empty) * halves[sign.side]
    air = air * (1 - 0.42 * vascular)

    # bones
    drop = across * across * (0.55 / width) * (1 - 0.35 * across / width)  # of a rib from the spine
    shift, gap, callus = 0.0, 0.0, 0.0
    if shown := strength["Fracture"]:  # a gap, a step that dies away towards the side, and callus around it
        side, cut = SIDES[signs["Fracture"].side], 0.40
        rib = {"upper": 2, "mid": 3, "lower": 4}[signs["Fracture"].zone]
        level = chest.rib_start + rib * chest.rib_spacing + cut * cut * (0.55 / width) * (1 - 0.35 * cut / width)
        near = edge(canvas.to_ellipse(side * (cut + 0.08), level, 0.26, 0.16), 0.06)
        shift = 0.085 * shown * near * (across > cut)
        gap = shown * near * np.clip(1.4 - np.abs(across - cut) / 0.03, 0, 1)
        callus = shown * edge(canvas.to_ellipse(side * cut, level + 0.03, 0.15, 0.12), 0.04)
    cage = edge(to_wall + 0.03, 0.01) * edge(across - 0.06, 0.03) * (1 - 0.6 * edge(y - dome, 0.05))
    phase = (y - shift - drop - chest.rib_start) / chest.rib_spacing
    posterior = bands(phase, canvas.pixel / chest.rib_spacing, 8) * cage * (1 - gap)
    front = (y + 0.26 - 0.30 * np.clip(1 - across / width, 0, 1)) / (1.5 * chest.rib_spacing)
    anterior = (
        bands(front, canvas.pixel / chest.rib_spacing, 4) * cage * edge(across - 0.34, 0.14) * edge(0.4 - y, 0.1)
    )
    spine = edge(0.095 - across, 0.012) * (0.6 + 0.4 * (np.cos(2 * np.pi * (y - chest.rib_start) / 0.17) > -0.6))
    skeleton: list[Stroke] = []
    for side in SIDES.values():
        collar = curve((side * 0.10, -0.64), (side * 0.40, -0.66), (side * 0.60, -0.86), (side * 0.92, -0.80))
        blade = curve((side * 0.94, -0.60), (side * 0.80, -0.40), (side * 0.86, -0.10), (side * 0.94, 0.20))
        skeleton += [(blade, 0.05, 0.3), (collar, 0.075, 0.55)]

    # soft tissue: neck, shoulders, trunk, breasts
    trunk = np.maximum(0.80 + 0.02 * y, 1.05 - 0.75 * np.clip(y + 0.5, 0, 1)) - across
    outline = union([0.19 - across, np.minimum(trunk, y + 0.98 - 0.20 * across)], 0.06)
    body = edge(outline, 0.025) * (0.82 + 0.18 * np.clip(outline / 0.16, 0, 1))
    breasts = [edge(canvas.to_ellipse(side * 0.40, 0.14, 0.27, 0.26), 0.03) for side in SIDES.values()]
    tissue = 0.62 + 0.16 * (1 - across**2) + 0.07 * edge(y - dome + 0.02, 0.05)
    trachea = edge(0.05 - np.abs(x), 0.015) * edge(-0.30 - y, 0.05)
    image = (
        body
        * (
            tissue
            + 0.06 * (chest.breasts < 0.5) * sum(breasts)
            + 0.09 * spine
            + 0.05 * middle
            + 0.2 * canvas.lines(skeleton)
        )
        - air
    )
    image = image + 0.12 * posterior * (1 + 2.4 * callus) + 0.17 * callus + 0.03 * anterior - 0.09 * trachea
    image = image + 0.26 * line
    if plates:
        image = image + 0.44 * canvas.lines(plates) * lung * (1 - middle)
    return image


def _lateral(
    study: Study, strength: dict[str, float], canvas: Canvas, anatomy: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    """The patient faces the image's left here; the film is turned over afterwards."""
    signs, x, y, edge = study.signs, canvas.x, canvas.y, canvas.edge
    back, front, dome_height, dome_gap, heart, rib_start, rib_spacing = anatomy.uniform(
        [0.60, -0.64, 0.24, 0.02, 0.88, -0.85, 0.15], [0.68, -0.58, 0.32, 0.05, 0.98, -0.75, 0.17]
    ).tolist()
    heart += 0.45 * strength["Cardiomegaly"]
    raised = 0.11 * strength["Atelectasis"]

    spine_line = back - 0.06 * y**2 - 0.42 * np.minimum(y + 0.2, 0) ** 2
    sternum = front + 0.40 * np.minimum(y - 0.1, 0) ** 2
    dome = dome_height - raised + 0.36 * (x + 0.10) ** 2
    to_back, to_front, to_roof = spine_line - x, x - sternum, y + 0.88 - 1.5 * (x - 0.05) ** 2
    walls = np.minimum(np.minimum(to_back, to_front), to_roof)
    lung = 0.5 * edge(np.minimum(walls, dome - y), 0.014)
    lung = lung + 0.5 * edge(np.minimum(walls, dome + raised + dome_gap - y), 0.014)

    # heart and great vessels
    shapes = [
        canvas.to_ellipse(-0.28 + 0.08 * (heart - 1), 0.14 - 0.05 * (heart - 1), 0.25 * heart, 0.26 * heart, -0.3),
        canvas.to_ellipse(-0.30, 0.45, 0.18 * heart, 0.25),
    ]
    arch = 0.30 * edge(0.06 - np.abs(canvas.to_ellipse(0.06, -0.20, 0.22, 0.25)), 0.025) * edge(-0.16 - y, 0.12)
    wide = 0.80 * strength["Enlarged Cardiomediastinum"] * edge(canvas.to_ellipse(-0.06, -0.50, 0.24, 0.20, 0.5), 0.07)
    hila = 0.5 * canvas.blob(0.0, -0.12, 0.09, 0.09)
    middle = covered([0.85 * edge(union(shapes), 0.03), hila, arch, wide])

    # what takes the air away
    centres = {"upper": (0.02, -0.56), "mid": (-0.24, -0.24), "lower": (0.33, 0.10), "retrocardiac": (0.16, 0.08)}
    opacities = _lung_signs(study, strength, canvas, rng, {**centres, "mirrored": False})
    plates: list[Stroke] = []
    fan = np.linspace(-2.7, 3.0, 10) + anatomy.uniform(-0.2, 0.2, 10)
    roots = np.stack([0.08 * np.cos(fan), -0.12 + 0.09 * np.sin(fan)], axis=1)
    vessels = vessels_from(anatomy, roots, fan, 0.38)
    if shown := strength["Edema"]:
        veil = np.clip(0.34 + 0.6 * y, 0.10, 0.55) * (0.9 + 0.15 * canvas.clouds(rng, 28))
        opacities.append(shown * veil)
        for level in (-0.35, -0.20, 0.0, 0.12):
            plates.append(([(0.50, level), (0.22, level + 0.10)], 0.018, 0.55 * shown))
    if shown := strength["Consolidation"]:
        place = (-0.48, -0.36) if signs["Consolidation"].zone == "upper" else (0.56, 0.10)
        toward = np.abs(x - place[0])
        wedge = 0.46 * GROWTH[signs["Consolidation"].size] - toward - 1.25 * np.abs(y - place[1])
        opacities.append(0.86 * shown * edge(wedge, 0.02))
    if shown := strength["Atelectasis"]:
        slope, base = rng.uniform(0.06, 0.12), dome_height - raised + 0.05
        band = curve((0.02, base - 0.10), (0.24, base - 0.12 - slope), (0.48, base - 0.10 - slope))
        plates += [(band, 0.105, 0.45 * shown), (band, 0.07, 0.95 * shown)]
    if shown := strength["Pleural Effusion"]:
        depth = {"small": 0.17, "moderate": 0.27, "large": 0.45}[signs["Pleural Effusion"].size]
        fluid = dome_height + 0.30 - depth - 0.35 * np.clip(x - 0.20, 0, 1) + 0.8 * np.clip(0.20 - x, 0, 1)
        opacities.append(0.90 * shown * edge(y - fluid, 0.045))
    if shown := strength["Pleural Other"]:
        grow = GROWTH[signs["Pleural Other"].size]
        for level in (-0.40, -0.10, 0.16):
            wall = back - 0.06 * level**2 - 0.42 * min(level + 0.2, 0) ** 2 - 0.05
            plaque = edge(canvas.to_ellipse(wall, level, 0.065 * grow, 0.11 * grow), 0.014)
            opacities.append((0.85 + 0.1 * canvas.clouds(rng, 20)) * shown * plaque)

    air = lung * (0.50 - 0.10 * edge(-0.50 - y, 0.3) + 0.02 * canvas.clouds(anatomy, 10))
    air = air * (1 - 0.8 * middle) * (1 - covered(opacities))
    vascular = canvas.lines(vessels)
    line = 0.0
    if shown := strength["Pneumothorax"]:
        gap = {"small": 0.18, "moderate": 0.24, "large": 0.31}[signs["Pneumothorax"].size]
        inner = np.minimum(to_back / (0.35 + 0.65 * edge(-0.30 - y, 0.3)), to_roof)
        empty = shown * edge(gap - inner, 0.008)
        line = shown * lung * edge(0.2 - y, 0.2) * canvas.thin(inner - gap)
        vascular = vascular * (1 - empty)
        air = air + 0.17 * lung * empty * (1 - middle)
    air = air * (1 - 0.34 * vascular)

    # bones
    shift, gap, callus = 0.0, 0.0, 0.0
    if shown := strength["Fracture"]:
        level = {"upper": -0.30, "mid": -0.12, "lower": 0.04}[signs["Fracture"].zone]
        near = edge(canvas.to_ellipse(0.30, level, 0.26, 0.20), 0.06)
        shift = 0.085 * shown * near * (x > 0.26)
        gap = shown * near * np.clip(1.4 - np.abs(x - 0.26) / 0.03, 0, 1)
        callus = shown * edge(canvas.to_ellipse(0.26, level, 0.14, 0.13), 0.04)
    drop = 0.42 * (0.60 - x)
    inside = edge(np.minimum(to_back + 0.03, to_front + 0.02), 0.02) * (1 - 0.6 * edge(y - dome, 0.05))
    ribs = bands((y - shift - drop - rib_start) / rib_spacing, canvas.pixel / rib_spacing, 9) * inside * (1 - gap)
    vertebrae = edge(0.095 - np.abs(x - spine_line + 0.09), 0.012)
    vertebrae = vertebrae * (0.6 + 0.4 * (np.cos(2 * np.pi * (y - rib_start) / 0.19) > -0.6))
    breastbone = edge(0.03 - np.abs(to_front + 0.035), 0.012) * edge(0.22 - y, 0.06) * edge(y + 0.66, 0.05)
    trachea = edge(0.048 - np.abs(x - 0.02 + 0.16 * (y + 0.2)), 0.014) * edge(-0.24 - y, 0.04)

    # soft tissue
    shoulders = edge(-0.52 - y, 0.22)
    outline = np.minimum(spine_line + 0.22 + 0.4 * shoulders - x, x - sternum + 0.14 + 0.34 * shoulders)
    body = edge(outline, 0.025) * (0.82 + 0.18 * np.clip(outline / 0.16, 0, 1))
    tissue = 0.66 + 0.08 * edge(y - dome + 0.02, 0.06) + 0.06 * shoulders
    fading = 1 - 0.55 * edge(y - dome, 0.05) - 0.3 * shoulders
    image = body * (tissue + 0.15 * vertebrae * fading + 0.12 * breastbone) - air
    image = image + 0.065 * ribs * (1 + 1.2 * callus) + 0.16 * callus - 0.09 * trachea + 0.18 * line
    image = image + 0.05 * middle * lung
    if plates:
        image = image + 0.42 * canvas.lines(plates) * lung * (1 - 0.7 * middle)
    return image


def _device(study: Study, view: str, canvas: Canvas) -> np.ndarray:
    """Where the metal or plastic of the study's device lies, from 0 to 1."""
    side = SIDES[study.signs["Support Devices"].side]
    if view == "frontal":
        paths = {
            "pacemaker": [
                curve((side * 0.44, -0.55), (side * 0.20, -0.60), (-0.08, -0.50), (-0.12, 0.02)),
                curve((side * 0.44, -0.50), (side * 0.18, -0.50), (-0.10, 0.30), (0.24, 0.24)),
            ],
            "central venous catheter": [
                curve((side * 0.98, -0.30), (side * 0.62, -0.66), (side * 0.20, -0.70), (-0.09, -0.56)),
                curve((-0.09, -0.56), (-0.10, -0.3), (-0.10, -0.06), steps=6),
            ],
            "endotracheal tube": [curve((0.03, -1.1), (0.02, -0.7), (0.0, -0.44))],
            "chest tube": [curve((side * 0.95, 0.05), (side * 0.62, 0.12), (side * 0.40, 0.24), (side * 0.20, 0.02))],
        }
        can = (side * 0.46, -0.48, 0.11)
    else:
        paths = {
            "pacemaker": [
                curve((-0.48, -0.50), (-0.2, -0.66), (-0.02, -0.5), (-0.06, 0.02)),
                curve((-0.48, -0.46), (-0.1, -0.5), (-0.1, 0.2), (-0.36, 0.24)),
            ],
            "central venous catheter": [curve((-0.30, -0.95), (-0.10, -0.72), (-0.05, -0.4), (-0.05, -0.04))],
            "endotracheal tube": [curve((0.16, -1.1), (0.10, -0.7), (0.05, -0.44))],
            "chest tube": [curve((-0.30, 0.62), (0.02, 0.34), (0.30, 0.24), (0.46, -0.02))],
        }
        can = (-0.54, -0.46, 0.10)
    width = {"endotracheal tube": 0.062, "chest tube": 0.055, "central venous catheter": 0.034}.get(study.device, 0.02)
    metal = canvas.lines([(path, width, 0.85) for path in paths[study.device]], rounded=True)
    if study.device == "pacemaker":
        metal = np.maximum(metal, canvas.edge(canvas.to_ellipse(*can, can[2]), 0.01))
    return metal


def contact_sheet(size: int = 128) -> Image.Image:
    """As `phantom.contact_sheet`, of this site's signs."""
    return phantom.contact_sheet(size, render)
