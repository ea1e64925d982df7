"""The toy world: pedestrians drawn from two separate records, so that the truth of every swap is known.

An `Appearance` says what is worn and by whom; a `Structure` says where the body is and what the camera sees. `draw`
puts them together. `draw(appearance_j, structure_i)` is the true picture of person j in the pose of picture i.

    make_toy_dataset(Path("data/toy"), ids=16, cameras=4, per_camera=6, seed=0)
    records = load_toy_records("data/toy")
    truth = draw(records.appearance("0002_c1s1_000451_01.jpg"), records.structure("0007_c2s1_000951_01.jpg"))

Everything is a function of the arguments: the same call writes the same bytes. Lengths inside the drawing are
fractions of the person's height; x grows to the right, y downwards.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reid_eval.errors import OutputError
from reid_eval.files import claim_folder, save_image, write_text
from reid_eval.progress import track
from reid_models.config import ConfigError

RECORDS_FILE = "toy.json"
RECORDS_FORMAT = 1
LAYOUTS = ("market1501", "dukemtmc", "msmt17", "cuhk03np", "folders")
VIEWS = ("front", "right", "back", "left")
PLACES = ("pavement", "lawn", "brick", "glass", "hall", "car park")

Rgb = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Appearance:
    """What one person looks like, the same in all their pictures. Colours are RGB, 0..255."""

    skin: Rgb
    hair: Rgb
    hair_style: Literal["short", "long", "bun", "bald"]
    top: Rgb
    top_second: Rgb
    top_pattern: Literal["plain", "stripes", "check", "block", "print"]
    sleeves: Literal["long", "short"]
    bottom: Rgb
    bottom_kind: Literal["trousers", "shorts", "skirt"]
    shoes: Rgb
    bag_kind: Literal["none", "backpack", "shoulder"]
    bag: Rgb

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in toy.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Appearance:
        """The record that `to_dict` described."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class Structure:
    """Where the body is, and what this camera makes of it.

    `phase` is the gait in radians. `height` is the person's share of the picture's height; `center_x` and `feet_y` are
    shares of its width and height. `crowd` counts further people in the box (junk crops have one).
    """

    camid: int
    place: str
    place_seed: int
    brightness: float
    warmth: float
    blur: float
    view: Literal["front", "right", "back", "left"]
    phase: float
    height: float
    center_x: float
    feet_y: float
    noise: float
    noise_seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in toy.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Structure:
        """The record that `to_dict` described."""
        return cls(**values)


# ---------------------------------------------------------------------------------------------------- drawing


def draw(appearance: Appearance | None, structure: Structure, image_hw: tuple[int, int] = (128, 64)) -> np.ndarray:
    """The picture of a person in a place; without a person, the place alone.

    Shapes:
        returns  (H, W, 3)  uint8, RGB
    """
    height, width = image_hw
    zoom = max(2, math.ceil(448 / height))
    scene = _place(structure.place, structure.place_seed, image_hw).copy()
    if appearance is not None:
        figure = _Figure(appearance, structure, (height * zoom, width * zoom))
        shadow = _reduced(figure.shadow(), zoom)[..., None]
        scene *= 1 - 0.45 * shadow
        layer = _reduced(figure.paint(), zoom)
        # Light falls from the left: the body is a cylinder to the eye.
        x = np.arange(width, dtype=np.float32) + 0.5
        across = (x - structure.center_x * width) / (0.13 * structure.height * height)
        light = np.clip(1.04 - 0.13 * across - 0.05 * across**2, 0.7, 1.15)[None, :, None]
        scene = scene * (1 - layer[..., 3:]) + layer[..., :3] * 255 * light
    tint = np.array([1 + structure.warmth, 1, 1 - structure.warmth], np.float32) * structure.brightness
    scene = scene * tint
    if structure.blur > 0:
        blurred = Image.fromarray(np.clip(scene + 0.5, 0, 255).astype(np.uint8))
        radius = structure.blur * height / 128
        scene = np.asarray(blurred.filter(ImageFilter.GaussianBlur(radius))).astype(np.float32)
    noise = np.random.default_rng(structure.noise_seed).normal(0, structure.noise, scene.shape)
    return np.clip(np.round(scene + noise), 0, 255).astype(np.uint8)


def _reduced(layer: Image.Image, zoom: int) -> np.ndarray:
    """A supersampled layer at its final size, 0..1, colours premultiplied with their cover."""
    if layer.mode == "RGBA":
        layer = layer.convert("RGBa")
        array = np.asarray(layer.resize((layer.width // zoom, layer.height // zoom), Image.Resampling.BOX))
        return array.astype(np.float32) / 255
    return np.asarray(layer.reduce(zoom)).astype(np.float32) / 255


class _Figure:
    """One person on a transparent canvas. Coordinates are shares of the person's height, feet at y = 1."""

    def __init__(self, appearance: Appearance, structure: Structure, canvas_hw: tuple[int, int]) -> None:
        self.look, self.pose = appearance, structure
        self.canvas_hw = canvas_hw
        self.unit = structure.height * canvas_hw[0]
        self.x0 = structure.center_x * canvas_hw[1]
        self.y0 = structure.feet_y * canvas_hw[0] - self.unit
        self.side = {"right": 1, "left": -1}.get(structure.view, 0)
        self.swing = math.sin(structure.phase)
        self.bob = 0.008 * abs(self.swing)
        self.image = Image.new("RGBA", (canvas_hw[1], canvas_hw[0]), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)

    def shadow(self) -> Image.Image:
        """How dark the ground is under the feet, 0..255."""
        cover = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(cover).ellipse([*self._at((-0.2, 0.955)), *self._at((0.24, 1.025))], fill=255)
        return cover.filter(ImageFilter.GaussianBlur(0.012 * self.unit))

    def paint(self) -> Image.Image:
        """The person, painted from far to near."""
        near, far = (1, -1) if self.side >= 0 else (-1, 1)
        if self.side:
            self._bag(behind=True)
            self._arm(far)
            self._leg(far)
            self._leg(near)
            self._skirt()
            self._torso()
            self._bag(behind=False)
            self._head()
            self._arm(near)
        else:
            self._leg(-1)
            self._leg(1)
            self._skirt()
            self._arm(-1)
            self._arm(1)
            self._torso()
            self._bag(behind=False)
            self._head()
        return self.image

    def _at(self, point: Point) -> Point:
        return self.x0 + point[0] * self.unit, self.y0 + (point[1] + self.bob * (1 - point[1])) * self.unit

    def _polygon(self, points: list[Point], colour: Rgb) -> None:
        self.pen.polygon([self._at(point) for point in points], fill=colour)

    def _ellipse(self, centre: Point, radius_x: float, radius_y: float, colour: Rgb) -> None:
        (x, y), unit = self._at(centre), self.unit
        self.pen.ellipse([x - radius_x * unit, y - radius_y * unit, x + radius_x * unit, y + radius_y * unit], colour)

    def _limb(self, joints: list[Point], widths: list[float], colour: Rgb) -> None:
        """A tapered tube through the joints, round at each."""
        for (a, b), (wa, wb) in zip(
            zip(joints, joints[1:], strict=False), zip(widths, widths[1:], strict=False), strict=True
        ):
            length = math.hypot(b[0] - a[0], b[1] - a[1]) or 1e-6
            nx, ny = -(b[1] - a[1]) / length / 2, (b[0] - a[0]) / length / 2
            corners = [(a[0] + nx * wa, a[1] + ny * wa), (b[0] + nx * wb, b[1] + ny * wb)]
            corners += [(b[0] - nx * wb, b[1] - ny * wb), (a[0] - nx * wa, a[1] - ny * wa)]
            self._polygon(corners, colour)
        for joint, width in zip(joints, widths, strict=True):
            self._ellipse(joint, width / 2, width / 2, colour)

    def _leg_joints(self, which: int) -> list[Point]:
        swing = self.swing * which
        if self.side:
            thigh = 0.42 * swing
            bend = 0.15 + 0.55 * max(0.0, math.cos(self.pose.phase) * which)
            shank = thigh - bend
            hip = (0.0, 0.5)
            knee = (hip[0] + self.side * 0.235 * math.sin(thigh), hip[1] + 0.235 * math.cos(thigh))
            ankle = (knee[0] + self.side * 0.225 * math.sin(shank), knee[1] + 0.225 * math.cos(shank))
            return [hip, knee, ankle]
        lift = 0.035 * max(0.0, swing)
        return [(0.048 * which, 0.5), (0.056 * which, 0.735 - lift * 0.6), (0.052 * which, 0.955 - lift)]

    def _leg(self, which: int) -> None:
        look = self.look
        hip, knee, ankle = self._leg_joints(which)
        dim = 0.82 if self.side and which != (1 if self.side >= 0 else -1) else 1.0
        skin, cloth, shoe = _dimmed(look.skin, dim), _dimmed(look.bottom, dim), _dimmed(look.shoes, dim)
        toe = 0.075 * self.side if self.side else 0.012 * which
        heel = (ankle[0] - 0.02 * self.side, ankle[1] + 0.03)
        self._limb([heel, (ankle[0] + toe, ankle[1] + 0.034)], [0.042, 0.034], shoe)
        if look.bottom_kind == "trousers":
            self._limb([hip, knee, ankle], [0.105, 0.078, 0.058], cloth)
        else:
            self._limb([hip, knee, ankle], [0.09, 0.06, 0.042], skin)
            if look.bottom_kind == "shorts":
                hem = (hip[0] + 0.85 * (knee[0] - hip[0]), hip[1] + 0.85 * (knee[1] - hip[1]))
                self._limb([hip, hem], [0.108, 0.092], cloth)

    def _skirt(self) -> None:
        hips = 0.085 if not self.side else 0.07
        if self.look.bottom_kind == "skirt":
            hem = 0.125 + 0.02 * abs(self.swing)
            self._polygon([(-hips, 0.46), (hips, 0.46), (hem, 0.7), (-hem, 0.7)], self.look.bottom)
        else:
            self._polygon([(-hips, 0.45), (hips, 0.45), (hips + 0.008, 0.54), (-hips - 0.008, 0.54)], self.look.bottom)

    def _outline(self) -> list[Point]:
        if self.side:
            front, back = self.side * 0.078, -self.side * 0.07
            return [
                (-self.side * 0.02, 0.145), (self.side * 0.03, 0.15), (front, 0.25), (front * 0.92, 0.4),
                (front * 0.98, 0.5), (back * 1.05, 0.5), (back * 0.85, 0.4), (back * 1.1, 0.24), (back * 0.75, 0.17),
            ]  # fmt: skip
        return [
            (-0.04, 0.145), (0.04, 0.145), (0.1, 0.168), (0.122, 0.2), (0.098, 0.32), (0.09, 0.4), (0.1, 0.5),
            (-0.1, 0.5), (-0.09, 0.4), (-0.098, 0.32), (-0.122, 0.2), (-0.1, 0.168),
        ]  # fmt: skip

    def _torso(self) -> None:
        look, outline = self.look, self._outline()
        self._polygon([(-0.028, 0.11), (0.028, 0.11), (0.036, 0.17), (-0.036, 0.17)], look.skin)
        self._polygon(outline, look.top)
        cloth = self.image.copy()
        pen, self.pen = self.pen, ImageDraw.Draw(cloth)
        match look.top_pattern:
            case "stripes":
                for row in range(5):
                    top = 0.19 + 0.065 * row
                    self._polygon([(-0.2, top), (0.2, top), (0.2, top + 0.03), (-0.2, top + 0.03)], look.top_second)
            case "check":
                for row in range(6):
                    for column in range(6):
                        if (row + column) % 2:
                            x, y = -0.15 + 0.05 * column, 0.14 + 0.062 * row
                            corners = [(x, y), (x + 0.05, y), (x + 0.05, y + 0.062), (x, y + 0.062)]
                            self._polygon(corners, look.top_second)
            case "block":
                self._polygon([(-0.2, 0.33), (0.2, 0.33), (0.2, 0.55), (-0.2, 0.55)], look.top_second)
            case "print":
                self._ellipse((0.03 * self.side, 0.28), 0.05, 0.045, look.top_second)
        self.pen = pen
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon([self._at(point) for point in outline], fill=255)
        self.image.paste(cloth, (0, 0), mask)

    def _arm(self, which: int) -> None:
        look, swing = self.look, -self.swing * which
        dim = 0.82 if self.side and which != (1 if self.side >= 0 else -1) else 0.93
        if self.side:
            upper, fore = 0.5 * swing, 0.5 * swing + 0.32
            shoulder = (-0.005 * self.side, 0.195)
            elbow = (shoulder[0] + self.side * 0.155 * math.sin(upper), shoulder[1] + 0.155 * math.cos(upper))
            hand = (elbow[0] + self.side * 0.15 * math.sin(fore), elbow[1] + 0.15 * math.cos(fore))
        else:
            short = 1 - 0.12 * abs(swing)
            shoulder = (0.112 * which, 0.195)
            elbow = (0.142 * which, 0.195 + 0.155 * short)
            hand = (0.135 * which, elbow[1] + 0.145 * (short if swing < 0 else short * 0.92))
        skin, cloth = _dimmed(look.skin, dim), _dimmed(look.top, dim)
        self._limb([elbow, hand], [0.042, 0.034], skin)
        self._ellipse(hand, 0.021, 0.026, skin)
        if look.sleeves == "long":
            wrist = (elbow[0] + 0.85 * (hand[0] - elbow[0]), elbow[1] + 0.85 * (hand[1] - elbow[1]))
            self._limb([shoulder, elbow, wrist], [0.066, 0.054, 0.044], cloth)
        else:
            self._limb([shoulder, elbow], [0.05, 0.042], skin)
            sleeve = (shoulder[0] + 0.55 * (elbow[0] - shoulder[0]), shoulder[1] + 0.55 * (elbow[1] - shoulder[1]))
            self._limb([shoulder, sleeve], [0.068, 0.066], cloth)

    def _bag(self, *, behind: bool) -> None:
        look, view = self.look, self.pose.view
        if look.bag_kind == "backpack":
            if view == "back":
                self._polygon([(-0.07, 0.19), (0.07, 0.19), (0.078, 0.4), (-0.078, 0.4)], look.bag)
                self._ellipse((0, 0.19), 0.07, 0.025, look.bag)
                self._polygon([(-0.05, 0.31), (0.05, 0.31), (0.05, 0.38), (-0.05, 0.38)], _dimmed(look.bag, 0.75))
            elif view == "front" and not behind:
                for x in (-0.07, 0.07):
                    self._polygon(
                        [(x - 0.013, 0.158), (x + 0.013, 0.158), (x + 0.016, 0.36), (x - 0.01, 0.36)], look.bag
                    )
            elif behind:
                self._ellipse((-0.1 * self.side, 0.29), 0.055, 0.105, look.bag)
        elif look.bag_kind == "shoulder" and not behind:
            x = {"front": 0.115, "back": -0.115}.get(view, 0.0)
            strap = _dimmed(look.bag, 0.85)
            self._limb([(-x * 0.6 if x else -0.01, 0.165), (x, 0.45)], [0.016, 0.016], strap)
            self._polygon([(x - 0.06, 0.43), (x + 0.06, 0.43), (x + 0.065, 0.54), (x - 0.065, 0.54)], look.bag)
            self._polygon([(x - 0.06, 0.43), (x + 0.06, 0.43), (x + 0.055, 0.47), (x - 0.055, 0.47)], strap)

    def _head(self) -> None:
        look, view, side = self.look, self.pose.view, self.side
        centre = (0.012 * side, 0.068)
        hair = look.hair if look.hair_style != "bald" else look.skin
        if look.hair_style == "long":
            if side:
                self._limb([(-0.02 * side, 0.06), (-0.035 * side, 0.175)], [0.085, 0.06], hair)
            else:
                self._limb([(-0.038, 0.07), (-0.045, 0.165)], [0.045, 0.04], hair)
                self._limb([(0.038, 0.07), (0.045, 0.165)], [0.045, 0.04], hair)
        if look.hair_style == "bun":
            self._ellipse((-0.055 * side, 0.03 if side else 0.002), 0.027, 0.025, hair)
        if view == "back":
            self._ellipse(centre, 0.053, 0.066, hair)
            if look.hair_style == "long":
                self._limb([(0, 0.08), (0, 0.17)], [0.1, 0.105], hair)
            elif look.hair_style != "bald":
                self._polygon([(-0.03, 0.11), (0.03, 0.11), (0.028, 0.135), (-0.028, 0.135)], look.skin)
            return
        self._ellipse(centre, 0.053, 0.066, hair)
        eye = (40, 30, 30)
        if view == "front":
            self._ellipse((0, 0.08), 0.046, 0.055, look.skin)
            if look.hair_style != "bald":
                self._polygon([(-0.045, 0.055), (-0.035, 0.02), (0.035, 0.02), (0.045, 0.055)], hair)
            for x in (-0.018, 0.018):
                self._ellipse((x, 0.075), 0.0065, 0.0055, eye)
            self._polygon([(-0.014, 0.108), (0.014, 0.108), (0.01, 0.114), (-0.01, 0.114)], (150, 70, 70))
        else:
            self._ellipse((0.026 * side, 0.08), 0.037, 0.054, look.skin)
            self._polygon([(0.055 * side, 0.07), (0.075 * side, 0.092), (0.055 * side, 0.095)], look.skin)
            if look.hair_style != "bald":
                self._polygon([(-0.02 * side, 0.02), (0.06 * side, 0.03), (0.052 * side, 0.052), (0, 0.055)], hair)
            self._ellipse((0.046 * side, 0.074), 0.0065, 0.006, eye)


def _dimmed(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


# ----------------------------------------------------------------------------------------------------- places


def _place(name: str, seed: int, image_hw: tuple[int, int]) -> np.ndarray:
    """The empty scene of one camera, float32 (H, W, 3), 0..255; calm, and the same for every picture of the camera."""
    key = (name, seed, image_hw)
    if key not in _PLACES:
        _PLACES[key] = _paint_place(name, seed, image_hw)
    return _PLACES[key]


_PLACES: dict[tuple[str, int, tuple[int, int]], np.ndarray] = {}


def _paint_place(name: str, seed: int, image_hw: tuple[int, int]) -> np.ndarray:
    zoom = 4
    height, width = image_hw[0] * zoom, image_hw[1] * zoom
    rng = np.random.default_rng([seed, 17])
    wall, ground = _PLACE_COLOURS[name]
    shift = rng.integers(-10, 11, 3)
    wall, ground = _shifted(wall, shift), _shifted(ground, shift)
    horizon = round(height * rng.uniform(0.5, 0.66))
    image = Image.new("RGB", (width, height), wall)
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, horizon, width, height], ground)
    line = _dimmed(ground, 0.88)
    match name:
        case "pavement":
            pen.rectangle([0, horizon, width, horizon + height // 40], _dimmed(ground, 1.12))
            for x in range(-width, 2 * width, width // 3):
                pen.line([x, horizon, x + (x - width // 2) // 2, height], line, zoom)
            for y in (0.75, 0.88):
                pen.line([0, height * y, width, height * y], line, zoom)
        case "lawn":
            path = [(0, height), (width * 0.75, horizon), (width * 0.9, horizon), (width * 0.55, height)]
            pen.polygon(path, _dimmed((176, 166, 146), 1.0))
            for x in np.linspace(0.05, 0.95, 5):
                radius = width * rng.uniform(0.1, 0.2)
                cx, cy = x * width, horizon - radius * 0.4
                pen.ellipse([cx - radius, cy - radius * 1.4, cx + radius, cy + radius], _dimmed(ground, 0.78))
        case "brick":
            brick_h, brick_w = height // 26, width // 5
            for row in range(horizon // brick_h + 1):
                y = horizon - row * brick_h
                pen.line([0, y, width, y], _dimmed(wall, 1.12), zoom // 2)
                for x in range(-brick_w + (row % 2) * brick_w // 2, width, brick_w):
                    pen.line([x, y - brick_h, x, y], _dimmed(wall, 1.12), zoom // 2)
        case "glass":
            for x in range(0, width + 1, width // 3):
                pen.rectangle([x - zoom, 0, x + zoom, horizon], _dimmed(wall, 0.78))
                pen.polygon(
                    [(x, 0), (x + width // 7, 0), (x + width // 16, horizon), (x, horizon)], _dimmed(wall, 1.06)
                )
            pen.rectangle([0, horizon - 2 * zoom, width, horizon], _dimmed(wall, 0.7))
        case "hall":
            for x in range(-2 * width, 3 * width, width // 2):
                pen.line([width // 2 + (x - width // 2) // 4, horizon, x, height], line, zoom)
            for step in range(1, 6):
                y = horizon + (height - horizon) * (step / 5) ** 1.8
                pen.line([0, y, width, y], line, zoom)
            pen.rectangle([0, horizon - height // 30, width, horizon], _dimmed(wall, 0.85))
        case "car park":
            for x in (-0.5, 0.15, 0.8, 1.45):
                pen.line([x * width, height, width / 2 + (x * width - width / 2) * 0.4, horizon], (214, 212, 200), zoom)
            body = _dimmed((120, 130, 146), rng.uniform(0.8, 1.2))
            pen.rounded_rectangle(
                [-width * 0.3, horizon - height * 0.14, width * 0.35, horizon + height * 0.02], 20, body
            )
    tone = np.asarray(image.reduce(zoom)).astype(np.float32)
    rows = np.linspace(1.05, 0.95, image_hw[0], dtype=np.float32)[:, None, None]
    return tone * rows


_PLACE_COLOURS: dict[str, tuple[Rgb, Rgb]] = {
    "pavement": ((168, 170, 174), (146, 142, 138)),
    "lawn": ((176, 196, 208), (120, 152, 92)),
    "brick": ((172, 118, 98), (140, 136, 132)),
    "glass": ((138, 166, 182), (152, 154, 156)),
    "hall": ((206, 198, 182), (176, 166, 150)),
    "car park": ((150, 154, 164), (104, 106, 112)),
}


def _shifted(colour: Rgb, shift: np.ndarray) -> Rgb:
    red, green, blue = (int(min(255, max(0, channel + step))) for channel, step in zip(colour, shift, strict=True))
    return red, green, blue


# --------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Camera:
    """What all pictures of one camera share."""

    camid: int
    place: str
    place_seed: int
    brightness: float
    warmth: float
    blur: float


def camera_world(seed: int, cameras: int) -> list[Camera]:
    """The cameras 1..`cameras` of a world, each in its own place and light."""
    rng = np.random.default_rng([seed, 1])
    places = [str(place) for place in rng.permutation(PLACES)]
    return [
        Camera(
            camid=camid,
            place=places[(camid - 1) % len(places)],
            place_seed=int(rng.integers(1 << 30)),
            brightness=round(float(rng.uniform(0.86, 1.1)), 4),
            warmth=round(float(rng.uniform(-0.05, 0.05)), 4),
            blur=round(float(rng.uniform(0.0, 0.5)), 4),
        )
        for camid in range(1, cameras + 1)
    ]


def sample_structure(rng: np.random.Generator, camera: Camera) -> Structure:
    """A body somewhere in front of a camera."""
    return Structure(
        **asdict(camera),
        view=VIEWS[int(rng.integers(4))],
        phase=round(float(rng.uniform(0, 2 * math.pi)), 4),
        height=round(float(rng.uniform(0.84, 0.95)), 4),
        center_x=round(float(rng.normal(0.5, 0.03)), 4),
        feet_y=round(float(rng.uniform(0.965, 0.99)), 4),
        noise=2.0,
        noise_seed=int(rng.integers(1 << 30)),
    )


_SKINS: tuple[Rgb, ...] = ((244, 208, 177), (224, 172, 135), (198, 134, 98), (141, 85, 54), (92, 58, 42))
_HAIRS: tuple[Rgb, ...] = ((34, 26, 24), (78, 50, 32), (150, 106, 58), (206, 170, 104), (150, 146, 144), (150, 62, 34))
_NEUTRALS: tuple[Rgb, ...] = ((28, 28, 32), (236, 236, 232), (120, 122, 126), (28, 36, 66), (188, 166, 128))


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Somebody, dressed by chance."""
    top, second = _cloth(rng, neutral=0.25), _cloth(rng, neutral=0.4)
    while _colour_distance(top, second) < 110:
        second = _cloth(rng, neutral=0.4)
    return Appearance(
        skin=_SKINS[int(rng.integers(len(_SKINS)))],
        hair=_HAIRS[int(rng.integers(len(_HAIRS)))],
        hair_style=("short", "long", "bun", "bald")[int(rng.choice(4, p=[0.45, 0.3, 0.15, 0.1]))],  # type: ignore[arg-type]
        top=top,
        top_second=second,
        top_pattern=("plain", "stripes", "check", "block", "print")[int(rng.choice(5, p=[0.4, 0.15, 0.1, 0.2, 0.15]))],  # type: ignore[arg-type]
        sleeves=("long", "short")[int(rng.integers(2))],  # type: ignore[arg-type]
        bottom=_cloth(rng, neutral=0.5),
        bottom_kind=("trousers", "shorts", "skirt")[int(rng.choice(3, p=[0.6, 0.22, 0.18]))],  # type: ignore[arg-type]
        shoes=_cloth(rng, neutral=0.7),
        bag_kind=("none", "backpack", "shoulder")[int(rng.choice(3, p=[0.5, 0.3, 0.2]))],  # type: ignore[arg-type]
        bag=_cloth(rng, neutral=0.4),
    )


def sample_people(rng: np.random.Generator, count: int) -> list[Appearance]:
    """`count` people of whom no two could be taken for one another by their clothes."""
    people: list[Appearance] = []
    apart, refused = 120.0, 0
    while len(people) < count:
        somebody = sample_appearance(rng)
        if all(_clothes_distance(somebody, other) >= apart for other in people):
            people.append(somebody)
            refused = 0
        else:
            refused += 1
            if refused > 200:  # the world is full at this distance
                apart, refused = apart * 0.9, 0
    return people


def _clothes_distance(a: Appearance, b: Appearance) -> float:
    return _colour_distance(a.top, b.top) + _colour_distance(a.bottom, b.bottom)


def _colour_distance(a: Rgb, b: Rgb) -> float:
    return math.dist(a, b)


def _cloth(rng: np.random.Generator, *, neutral: float) -> Rgb:
    if rng.random() < neutral:
        return _NEUTRALS[int(rng.integers(len(_NEUTRALS)))]
    hue = float(rng.integers(12)) / 12
    saturation, value = ((0.85, 0.85), (0.6, 0.95), (0.8, 0.5))[int(rng.integers(3))]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


# ---------------------------------------------------------------------------------------------------- dataset


@dataclass(frozen=True)
class ToyImage:
    """One picture to be drawn: where it goes, and its two records (no appearance: an empty place)."""

    file: str
    appearance: Appearance | None
    structure: Structure


class ToyRecords:
    """The records of a toy dataset, found by file name."""

    def __init__(self, root: Path, images: Mapping[str, Mapping[str, Any]]) -> None:
        self.root = root
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, name: object) -> bool:
        return name in self._images

    @property
    def names(self) -> list[str]:
        """All file names, sorted."""
        return sorted(self._images)

    def appearance(self, name: str) -> Appearance | None:
        """What the person in the picture looks like; None for an empty place."""
        values = self._record(name)["appearance"]
        return None if values is None else Appearance.from_dict(values)

    def structure(self, name: str) -> Structure:
        """Where the body is in the picture, and its camera."""
        return Structure.from_dict(self._record(name)["structure"])

    def _record(self, name: str) -> Mapping[str, Any]:
        try:
            return self._images[Path(name).name]
        except KeyError:
            raise ToyWorldError(
                f"{Path(name).name}: not in {self.root / RECORDS_FILE}; is this the toy dataset the picture is from?"
            ) from None


class ToyWorldError(OutputError):
    """The toy dataset's records are missing or do not know a picture."""


def load_toy_records(root: Path | str) -> ToyRecords:
    """The records of the toy dataset in `root`.

    Raises:
        ToyWorldError: there are none, or the file is damaged.
    """
    root = Path(root)
    file = root / RECORDS_FILE
    if not file.is_file():
        raise ToyWorldError(f"{root}: no {RECORDS_FILE} here; expected a folder made by 'reid-models toy'")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != RECORDS_FORMAT:
            raise ToyWorldError(f"{file}: format {values['format']}, this version reads {RECORDS_FORMAT}")
        return ToyRecords(root, values["images"])
    except (ValueError, KeyError, TypeError):
        raise ToyWorldError(f"{file}: damaged; draw the dataset again in a new folder") from None


def make_toy_dataset(
    out: Path | str,
    *,
    ids: int = 16,
    cameras: int = 4,
    per_camera: int = 6,
    seed: int = 0,
    layout: str = "market1501",
    image_hw: tuple[int, int] = (128, 64),
) -> Path:
    """Draw a dataset of `ids` people, `per_camera` pictures of each in each camera, in a published raw layout.

    Half of the people are for training, half for testing. Market-1501's layout has distractors (0000) and junk boxes
    (-1) too. A folder made with the same arguments is completed if pictures are missing, otherwise left alone.

    Raises:
        ConfigError: the arguments make no dataset.
        OutputError: `out` holds other files, or a toy dataset of other arguments.
    """
    _refuse_impossible(ids, cameras, per_camera, layout, image_hw)
    out = claim_folder(out, RECORDS_FILE, what="a toy dataset")
    made_of = {"ids": ids, "cameras": cameras, "per_camera": per_camera, "seed": seed, "layout": layout}
    made_of["image_hw"] = list(image_hw)  # type: ignore[assignment]
    images, texts = _plan(ids, cameras, per_camera, seed, layout)
    records_file = out / RECORDS_FILE
    if records_file.exists():
        stored = json.loads(records_file.read_text(encoding="utf-8")).get("made_of")
        if stored != made_of:
            raise OutputError(f"{out}: holds a toy dataset made with {stored}, not {made_of}; choose another folder")
    records = {
        Path(image.file).name: {
            "appearance": image.appearance.to_dict() if image.appearance else None,
            "structure": image.structure.to_dict(),
        }
        for image in images
    }
    assert len(records) == len(images), "file names repeat"
    write_text(
        records_file, json.dumps({"format": RECORDS_FORMAT, "made_of": made_of, "images": records}, indent=1) + "\n"
    )
    for name, text in texts.items():
        write_text(out / name, text)
    for image in track(images, f"drawing {out}"):
        if not (out / image.file).exists():
            save_image(out / image.file, draw(image.appearance, image.structure, image_hw))
    return out


def _refuse_impossible(ids: int, cameras: int, per_camera: int, layout: str, image_hw: tuple[int, int]) -> None:
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: expected one of {', '.join(LAYOUTS)}")
    if ids < 2:
        raise ConfigError(f"--ids {ids}: expected at least 2, one to train on and one to test on")
    most_cameras = {"market1501": 9, "dukemtmc": 9, "cuhk03np": 2}.get(layout, 99)
    if not 1 <= cameras <= most_cameras:
        raise ConfigError(f"--cameras {cameras}: {layout} names hold 1 to {most_cameras} cameras")
    if per_camera < 1:
        raise ConfigError(f"--per-camera {per_camera}: expected at least 1")
    if min(image_hw) < 16:
        raise ConfigError(f"--image-size {image_hw[0]}x{image_hw[1]}: expected at least 16 by 16 (height x width)")


def _plan(ids: int, cameras: int, per_camera: int, seed: int, layout: str) -> tuple[list[ToyImage], dict[str, str]]:
    """Every picture of the dataset in its layout, and the text files that go with it."""
    rng = np.random.default_rng([seed, 2])
    world = camera_world(seed, cameras)
    people = sample_people(rng, ids)
    images: list[ToyImage] = []
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    for person, look in enumerate(people):
        is_test = person % 2 == 1
        number = person // 2
        for camera in world:
            for shot in range(per_camera):
                is_query = is_test and shot == 0 and (per_camera > 1 or camera.camid == 1)
                split = "query" if is_query else "gallery" if is_test else "train"
                if layout == "msmt17" and split == "train" and camera.camid == 1 and shot == per_camera - 1 > 0:
                    split = "val"
                serial = len(images) + 1
                name = _file_name(layout, person, number, camera.camid, shot, serial, query=is_query)
                images.append(ToyImage(_folder(layout, split, name) + name, look, sample_structure(rng, camera)))
                lists[split].append(f"{name[:4]}/{name} {number}")
    if layout == "market1501":
        images += _extras(rng, world, people, 100 * ids)
    texts = {}
    if layout == "msmt17":
        texts = {f"list_{split}.txt": "".join(f"{line}\n" for line in lines) for split, lines in lists.items()}
    return images, texts


def _file_name(layout: str, person: int, number: int, camid: int, shot: int, serial: int, *, query: bool) -> str:
    pid, frame = person + 2, 50 * serial + 1
    match layout:
        case "market1501":
            return f"{pid:04d}_c{camid}s1_{frame:06d}_{0 if query else 1:02d}.jpg"
        case "cuhk03np":
            return f"{pid:04d}_c{camid}_{serial}.png"
        case "msmt17":
            return f"{number:04d}_{shot:03d}_{camid:02d}_0303morning_{serial:04d}_0.jpg"
        case _:
            return f"{pid:04d}_c{camid}_f{frame:07d}.jpg"


def _folder(layout: str, split: str, name: str) -> str:
    if layout == "folders":
        return f"{name[:4]}/"
    if layout == "msmt17":
        return f"{'train' if split in ('train', 'val') else 'test'}/{name[:4]}/"
    folder = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}[split]
    return f"labeled/{folder}/" if layout == "cuhk03np" else f"{folder}/"


def _extras(
    rng: np.random.Generator, world: list[Camera], people: list[Appearance], first_serial: int
) -> list[ToyImage]:
    """Market's distractors, strangers and empty windows (0000), and its junk boxes, badly cut people (-1)."""
    extras = []
    testers = people[1::2]
    for number in range(2 * len(testers)):
        camera = world[number % len(world)]
        frame = 50 * (first_serial + number) + 1
        structure = sample_structure(rng, camera)
        stranger = sample_appearance(rng) if number % 2 else None
        name = f"0000_c{camera.camid}s1_{frame:06d}_01.jpg"
        extras.append(ToyImage(f"bounding_box_test/{name}", stranger, structure))
        cut = sample_structure(rng, camera)
        values = cut.to_dict()
        if number % 2:
            values |= {"height": 1.7, "feet_y": 1.65}  # the upper half only
        else:
            values["center_x"] = round(float(rng.choice([-0.08, 1.08])), 4)  # half outside
        name = f"-1_c{camera.camid}s1_{frame + 25:06d}_02.jpg"
        extras.append(
            ToyImage(f"bounding_box_test/{name}", testers[number % len(testers)], Structure.from_dict(values))
        )
    return extras


def contact_sheet(root: Path | str, *, people: int = 8, pictures: int = 12) -> np.ndarray:
    """Some people of a toy dataset, one row each, uint8 (H, W, 3)."""
    records = load_toy_records(root)
    by_person: dict[str, list[str]] = {}
    for name in records.names:
        if records.appearance(name) is not None and not name.startswith(("-1", "0000_c")):
            by_person.setdefault(json.dumps(records.appearance(name).to_dict()), []).append(name)  # type: ignore[union-attr]
    rows = []
    for names in list(by_person.values())[:people]:
        step = max(1, len(names) // pictures)
        drawn = [
            draw(records.appearance(name), records.structure(name), (256, 128)) for name in names[::step][:pictures]
        ]
        drawn += [np.full_like(drawn[0], 255)] * (pictures - len(drawn))
        rows.append(np.concatenate(drawn, axis=1))
    return np.concatenate(rows, axis=0)
