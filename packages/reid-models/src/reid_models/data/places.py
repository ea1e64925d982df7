"""The places that toy cameras look at: calm scenes of flat shapes, soft as if out of focus.

A place is painted once, somewhat larger than the picture; a camera's pictures are crops of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[int, int, int]


class _Pen:
    """Shapes in shares of the canvas: x and y run from 0 to 1."""

    def __init__(self, image: Image.Image) -> None:
        self.pen = ImageDraw.Draw(image)
        self.width, self.height = image.size

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb, round_: float = 0.0) -> None:
        corners = [left * self.width, top * self.height, right * self.width, bottom * self.height]
        self.pen.rounded_rectangle(corners, round_ * self.height, colour)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Rgb) -> None:
        self.pen.polygon([(x * self.width, y * self.height) for x, y in points], fill=colour)

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: Rgb, thickness: float) -> None:
        ends = [(a[0] * self.width, a[1] * self.height), (b[0] * self.width, b[1] * self.height)]
        self.pen.line(ends, fill=colour, width=max(1, round(thickness * self.height)))

    def blob(self, x: float, y: float, radius: float, colour: Rgb, flat: float = 1.0) -> None:
        """A disc; `radius` is a share of the height."""
        cx, cy, r = x * self.width, y * self.height, radius * self.height
        self.pen.ellipse([cx - r, cy - flat * r, cx + r, cy + flat * r], fill=colour)

    def slabs(self, horizon: float, colour: Rgb, columns: int, rows: int) -> None:
        """Joints of a paved ground that runs away from the camera."""
        for column in range(-2 * columns, 3 * columns):
            x = column / columns
            self.line((0.5 + (x - 0.5) * 0.5, horizon), (x, 1.0), colour, 0.003)
        for row in range(1, rows):
            y = horizon + (1 - horizon) * (row / rows) ** 1.6
            self.line((0.0, y), (1.0, y), colour, 0.003)


def _shade(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (max(0, min(255, round(channel * factor))) for channel in colour)
    return red, green, blue


def _pavement(pen: _Pen, rng: np.random.Generator) -> None:
    wall: Rgb = ((186, 180, 168), (172, 182, 190), (196, 178, 160))[int(rng.integers(3))]
    horizon = 0.52
    pen.box(0, 0, 1, horizon, wall)
    left = float(rng.uniform(-0.1, 0.25))
    for x in (left, left + 0.62):  # windows of the house across the road
        pen.box(x, 0.06, x + 0.34, 0.33, _shade(wall, 0.80))
        pen.box(x + 0.03, 0.075, x + 0.31, 0.315, (128, 146, 160))
    pen.box(0, 0.45, 1, horizon, _shade(wall, 0.84))
    pen.box(0, horizon, 1, 0.625, (112, 114, 118))
    pen.line((0.0, 0.575), (1.0, 0.575), (176, 176, 170), 0.006)
    pen.box(0, 0.625, 1, 0.645, (190, 188, 182))
    pen.box(0, 0.645, 1, 0.655, (128, 126, 122))
    pen.box(0, 0.655, 1, 1, (160, 157, 150))
    pen.slabs(0.655, (143, 140, 134), 3, 4)


def _lawn(pen: _Pen, rng: np.random.Generator) -> None:
    sky: Rgb = (196, 212, 222)
    grass: Rgb = ((126, 158, 92), (140, 160, 98))[int(rng.integers(2))]
    pen.box(0, 0, 1, 1, sky)
    for x in np.linspace(-0.1, 1.1, 7):
        pen.blob(float(x), 0.36 + float(rng.uniform(-0.05, 0.03)), 0.17, _shade((92, 128, 84), rng.uniform(0.92, 1.1)))
    trunk = float(rng.choice([0.12, 0.86]))
    pen.box(trunk - 0.035, 0.30, trunk + 0.035, 0.55, (110, 90, 74))
    pen.box(0, 0.49, 1, 1, grass)
    pen.box(0, 0.49, 1, 0.51, _shade(grass, 0.85))
    far, near = float(rng.uniform(0.55, 0.8)), float(rng.uniform(0.0, 0.2))
    pen.polygon([(far, 0.51), (far + 0.16, 0.51), (near + 0.95, 1), (near - 0.1, 1)], (188, 178, 156))


def _brick(pen: _Pen, rng: np.random.Generator) -> None:
    brick: Rgb = ((168, 112, 92), (158, 122, 104), (176, 128, 100))[int(rng.integers(3))]
    ground = 0.68
    pen.box(0, 0, 1, 1, _shade(brick, 1.14))
    rows, columns = 26, 5
    for row in range(rows):
        top = ground * row / rows
        for column in range(-1, columns + 1):
            left = (column + 0.5 * (row % 2)) / columns
            tone = _shade(brick, rng.uniform(0.95, 1.05))
            pen.box(left + 0.012, top + 0.003, left + 1 / columns - 0.003, top + ground / rows - 0.001, tone)
    pen.box(0, ground - 0.03, 1, ground, _shade(brick, 0.72))
    pen.box(0, ground, 1, 1, (142, 140, 138))
    pen.slabs(ground, (130, 128, 126), 2, 4)


def _glass(pen: _Pen, rng: np.random.Generator) -> None:
    pane: Rgb = ((134, 164, 180), (146, 168, 172), (126, 152, 176))[int(rng.integers(3))]
    ground = 0.70
    pen.box(0, 0, 1, ground, pane)
    start = float(rng.uniform(-0.2, 0.1))
    for x in (start, start + 0.5, start + 1.0):
        pen.polygon([(x + 0.10, 0), (x + 0.26, 0), (x + 0.10, ground), (x - 0.06, ground)], _shade(pane, 1.08))
        pen.polygon([(x + 0.31, 0), (x + 0.35, 0), (x + 0.19, ground), (x + 0.15, ground)], _shade(pane, 1.06))
    for x in (start + 0.02, start + 0.52, start + 1.02):
        pen.box(x - 0.018, 0, x + 0.018, ground, (84, 94, 104))
    pen.box(0, 0.10, 1, 0.118, (84, 94, 104))
    pen.box(0, ground - 0.035, 1, ground, (104, 108, 112))
    pen.box(0, ground, 1, 1, (172, 172, 168))
    pen.slabs(ground, (156, 156, 152), 3, 4)


def _hall(pen: _Pen, rng: np.random.Generator) -> None:
    wall: Rgb = ((214, 206, 190), (202, 208, 204), (212, 200, 196))[int(rng.integers(3))]
    ground = 0.58
    pen.box(0, 0, 1, ground, wall)
    pen.box(0, 0.30, 1, 0.315, _shade(wall, 0.86))
    pen.box(0, 0.315, 1, ground, _shade(wall, 0.93))
    pillar = float(rng.choice([0.02, 0.78]))
    pen.box(pillar, 0, pillar + 0.2, ground + 0.03, _shade(wall, 1.06))
    pen.box(pillar + 0.15, 0, pillar + 0.2, ground + 0.03, _shade(wall, 0.88))
    pen.box(0, ground - 0.025, pillar, ground, (132, 122, 112))
    pen.box(pillar + 0.2, ground - 0.025, 1, ground, (132, 122, 112))
    edges = [ground + (1 - ground) * (row / 5) ** 1.5 for row in range(6)]
    for row, (far, near) in enumerate(itertools.pairwise(edges)):
        for column in range(-6, 12):
            corners = [
                (0.5 + (x - 2.5) * (0.22 + 0.22 * (y - ground) / (1 - ground)), y)
                for x, y in ((column, far), (column + 1, far), (column + 1, near), (column, near))
            ]
            pen.polygon(corners, (196, 186, 170) if (row + column) % 2 else (170, 158, 142))


def _car_park(pen: _Pen, rng: np.random.Generator) -> None:
    body: Rgb = ((122, 134, 152), (160, 120, 112), (176, 176, 172))[int(rng.integers(3))]
    ground = 0.44
    pen.box(0, 0, 1, ground, (176, 182, 186))
    pen.box(0, 0.22, 1, 0.26, (150, 156, 160))
    pen.box(0, ground - 0.05, 1, ground, (140, 144, 146))
    pen.box(0, ground, 1, 1, (118, 120, 124))
    for x in (-0.45, 0.25, 0.95, 1.65):
        pen.polygon(
            [(0.5 + (x - 0.5) * 0.6, 0.60), (0.54 + (x - 0.5) * 0.6, 0.60), (x + 0.09, 1), (x, 1)], (188, 188, 182)
        )
    x = float(rng.uniform(-0.75, -0.5))
    pen.blob(x + 0.55, 0.625, 0.30, (92, 94, 98), flat=0.09)
    pen.polygon([(x + 0.25, 0.44), (x + 0.42, 0.33), (x + 0.85, 0.33), (x + 1.02, 0.45)], _shade(body, 0.9))
    pen.polygon([(x + 0.33, 0.44), (x + 0.46, 0.35), (x + 0.81, 0.35), (x + 0.93, 0.45)], (88, 100, 112))
    pen.box(x, 0.43, x + 1.18, 0.58, body, 0.04)
    pen.box(x, 0.52, x + 1.18, 0.59, _shade(body, 0.82), 0.02)
    for wheel in (x + 0.25, x + 0.93):
        pen.blob(wheel, 0.585, 0.048, (58, 60, 64))
        pen.blob(wheel, 0.585, 0.024, (150, 152, 154))


def _shutter(pen: _Pen, rng: np.random.Generator) -> None:
    metal: Rgb = ((158, 170, 166), (176, 172, 160), (150, 160, 176))[int(rng.integers(3))]
    ground = 0.66
    pen.box(0, 0, 1, ground, metal)
    for row in range(30):
        y = ground * row / 30
        pen.box(0, y, 1, y + 0.006, _shade(metal, 0.90))
        pen.box(0, y + 0.006, 1, y + 0.010, _shade(metal, 1.05))
    post = float(rng.choice([0.04, 0.84]))
    pen.box(post, 0, post + 0.12, ground, (206, 200, 188))
    pen.box(post + 0.095, 0, post + 0.12, ground, (182, 176, 164))
    pen.box(0, ground - 0.012, 1, ground, (112, 112, 112))
    pen.box(0, ground, 1, 1, (152, 146, 140))
    pen.slabs(ground, (136, 131, 126), 4, 5)


def _platform(pen: _Pen, rng: np.random.Generator) -> None:
    tile: Rgb = ((196, 208, 206), (208, 204, 190), (186, 200, 212))[int(rng.integers(3))]
    ground = 0.60
    pen.box(0, 0, 1, ground, tile)
    for row in range(1, 9):
        pen.line((0, ground * row / 9), (1, ground * row / 9), _shade(tile, 0.93), 0.003)
    for column in range(1, 6):
        pen.line((column / 6, 0), (column / 6, ground), _shade(tile, 0.93), 0.003)
    pen.box(0, 0.17, 1, 0.23, ((60, 96, 150), (150, 70, 66), (70, 128, 96))[int(rng.integers(3))])
    pen.box(0, 0.185, 1, 0.215, (224, 224, 218))
    pen.box(0, ground, 1, 0.70, (84, 84, 88))
    pen.box(0, 0.70, 1, 0.735, (218, 190, 92))
    pen.box(0, 0.735, 1, 1, (164, 162, 160))
    pen.slabs(0.735, (150, 148, 146), 3, 3)


_PAINTERS: dict[str, Callable[[_Pen, np.random.Generator], None]] = {
    "pavement": _pavement,
    "lawn": _lawn,
    "brick": _brick,
    "glass": _glass,
    "hall": _hall,
    "car park": _car_park,
    "shutter": _shutter,
    "platform": _platform,
}
PLACES = tuple(_PAINTERS)


def paint_place(place: str, seed: int, canvas_hw: tuple[int, int]) -> Image.Image:
    """The empty place, RGB. `seed` chooses among its colours and where its things stand."""
    height, width = canvas_hw
    image = Image.new("RGB", (width, height))
    _PAINTERS[place](_Pen(image), np.random.default_rng([seed, 17]))
    soft = image.filter(ImageFilter.GaussianBlur(height / 300))
    falloff = np.linspace(1.04, 0.95, height, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.clip(np.asarray(soft) * falloff, 0, 255).astype(np.uint8))
