"""What the phantom's pictures are drawn with: a patient's coordinates on an image, soft borders, lines and noise.

Lengths are in half image widths: x in [-1, 1] to the image's right, y from -1 downwards, to 1 where the image is
square. The sites of the phantom (recipes/data/phantom.py, recipes/data/phantom_site_b.py) draw with nothing else.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

SHAPES = {"portrait": 1.2, "square": 1.0, "landscape": 0.8}  # height over width; detectors have 35 x 43 or 43 x 43 cm
Stroke = tuple[Sequence, float, float]  # points (n, 2), width, brightness from 0 to 1


@lru_cache(maxsize=len(SHAPES))
def grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each pixel's centre in half image widths; float32 arrays (height, width)."""
    column, row = (((np.arange(length) + 0.5) * 2 / width - 1).astype(np.float32) for length in (width, height))
    return np.broadcast_to(column, (height, width)), np.broadcast_to(row[:, None], (height, width))


class Canvas:
    """Coordinates of one image: a slightly shifted, scaled and turned patient, and what can be drawn on it.

    `size` is its width in pixels, `shape` one of `SHAPES`. Fields are float32 arrays (height, width). A higher image
    shows more below the chest, none more above.
    """

    def __init__(self, size: int, shape: str, rng: np.random.Generator):
        self.size, self.pixel = size, 2 / size
        self.height = round(size * SHAPES[shape])
        self.shift_x, self.shift_y, self.turn = (rng.uniform(-1, 1, 3) * [0.04, 0.04, 0.035]).tolist()
        self.scale = rng.uniform(0.93, 1.03)
        column, row = grid(size, self.height)
        column, row = (column - self.shift_x) / self.scale, (row - self.shift_y) / self.scale
        self.x, self.y = column + self.turn * row, row - self.turn * column
        self.strokes_per_pixel = 3 if size < 200 else 2  # how much finer lines are drawn, to smooth them

    def edge(self, distance: np.ndarray, soft: float = 0.02) -> np.ndarray:
        """1 where `distance` is positive, 0 where negative, a smooth step at least one pixel wide between."""
        t = distance * (0.5 / max(soft, self.pixel))
        t += 0.5
        np.minimum(np.maximum(t, 0, out=t), 1, out=t)
        step = 3 - 2 * t
        step *= t
        step *= t
        return step

    def thin(self, distance: np.ndarray) -> np.ndarray:
        """A thin line where `distance` is zero."""
        return np.clip(1.5 - np.abs(distance) / max(0.01, self.pixel / 2), 0, 1)

    def blob(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """A Gaussian of peak 1 with the given standard deviations."""
        return np.exp(-0.5 * (((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2))

    def to_ellipse(self, x: float, y: float, width: float, height: float, tilt: float = 0.0) -> np.ndarray:
        """Distance to an ellipse with these half axes (turned clockwise by `tilt` radians), positive inside."""
        dx, dy, cos, sin = self.x - x, self.y - y, float(np.cos(tilt)), float(np.sin(tilt))
        along, beside = (dx * cos + dy * sin) / width, (dy * cos - dx * sin) / height
        return (1 - np.sqrt(along**2 + beside**2)) * min(width, height)

    def clouds(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Smooth noise of about unit variance with `cells` lumps across the image."""
        coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        return np.asarray(coarse.resize((self.size, self.height), Image.Resampling.BICUBIC))

    def _turned(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the patient from the image's corner, in half image widths."""
        x, y = points[:, 0], points[:, 1]
        column = (x - self.turn * y) * self.scale + self.shift_x
        row = (y + self.turn * x) * self.scale + self.shift_y
        return np.stack([column, row], axis=1) + 1

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Where points (n, 2) of the patient are in the image, in pixels from its corner."""
        return self._turned(points) * (self.size / 2)

    def upright_box(self, x0: float, x1: float, y0: float, y1: float) -> dict[str, float]:
        """The box {x0, y0, x1, y1} in pixels around a rectangle of the patient, cut at the image's border."""
        points = np.array([(x, y) for x in (x0, x1) for y in (y0, y1)])
        pixels = self.to_pixels(points).clip(0, (self.size, self.height))
        (x0, y0), (x1, y1) = pixels.min(0).tolist(), pixels.max(0).tolist()
        return {"x0": x0, "y0": y0, "x1": x1, "y1": y1}

    def lines(self, strokes: list[Stroke], rounded: bool = False) -> np.ndarray:
        """Polylines, the later over the earlier; `rounded` joints are slower and only matter for thick ones."""
        fine = self.size * self.strokes_per_pixel
        image = Image.new("L", (fine, self.height * self.strokes_per_pixel))
        pen = ImageDraw.Draw(image)
        points = np.concatenate([stroke[0] for stroke in strokes])
        flat = (self._turned(points) * (fine / 2)).ravel().tolist()
        start = 0
        for stroke, width, value in strokes:
            end = start + 2 * len(stroke)
            thickness = max(round(max(width, 0.8 * self.pixel) * self.scale * fine / 2), 1)
            pen.line(flat[start:end], fill=round(255 * value), width=thickness, joint="curve" if rounded else None)
            start = end
        return np.asarray(image.reduce(self.strokes_per_pixel), dtype=np.float32) / 255


def curve(*points: tuple[float, float], steps: int = 14) -> np.ndarray:
    """The Bezier curve with these control points; (steps, 2)."""
    t = np.linspace(0, 1, steps)[:, None]
    curve = [np.asarray(point, dtype=np.float64) for point in points]
    while len(curve) > 1:
        curve = [(1 - t) * first + t * second for first, second in pairwise(curve)]
    return curve[0]


def union(distances: list[np.ndarray], reach: float = 0.035) -> np.ndarray:
    """Distance to the union of shapes whose borders flow into each other over about `reach`."""
    return reach * np.log(sum(np.exp(np.clip(distance, -1, 1) / reach) for distance in distances))


def vessels_from(rng: np.random.Generator, roots: np.ndarray, angles: np.ndarray, length: float) -> list[Stroke]:
    """Tapering vessels with one twig each, from `roots` (n, 2) in directions `angles` (n,) in radians."""
    n = len(angles)
    reach = (length * rng.uniform(0.65, 1.1, n))[:, None]
    bend, fork = angles + rng.uniform(-0.45, 0.45, n), angles + rng.choice([-0.6, 0.6], n)
    middle = roots + 0.5 * reach * np.stack([np.cos(bend), np.sin(bend)], axis=1)
    end = roots + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    t = np.linspace(0, 1, 9)[:, None]
    branches = (1 - t) ** 2 * roots[:, None] + 2 * t * (1 - t) * middle[:, None] + t**2 * end[:, None]
    twigs = branches[:, 4] + 0.45 * reach * np.stack([np.cos(fork), np.sin(fork)], axis=1)
    strokes: list[Stroke] = []
    for branch, twig in zip(branches, twigs, strict=True):
        strokes += [(branch[6:], 0.008, 0.28), (np.stack([branch[4], twig]), 0.008, 0.28)]
        strokes += [(branch[3:7], 0.014, 0.42), (branch[:4], 0.024, 0.6)]
    return strokes


def bands(phase: np.ndarray, soft: float, count: int) -> np.ndarray:
    """Bands with brighter borders around each integer phase from 0 to `count`; `soft` is a pixel's phase."""
    offset = np.abs(phase - np.round(phase))
    band, marrow = (np.clip(0.5 + (half - offset) / max(soft, 0.1), 0, 1) for half in (0.25, 0.14))
    return (band - 0.4 * marrow) * ((phase > -0.5) & (phase < count + 0.5))


def covered(opacities: list[np.ndarray]) -> np.ndarray | float:
    """Share of the air that overlapping opacities take away."""
    clear = 1.0
    for opacity in opacities:
        clear = clear * (1 - np.clip(opacity, 0, 1))
    return 1 - clear
