"""Draw a pedestrian from two separate records: what is worn, and where the body is.

An `Appearance` belongs to a person and is the same in all their pictures; a `Structure` belongs to a picture: camera,
place, light, view, gait, size, position, noise. Every appearance can be drawn in every structure, so
`draw(appearance_j, structure_i)` is the true picture of person j in the pose of picture i.

    pixels = draw(appearance, structure)                    # uint8, RGB, (128, 64, 3)

The body is a small solid model: tubes for limbs, stacks of elliptic rings for head, trunk and skirt. Its own axes are
`l` to the person's left, `f` forward and `h` up from the ground, in units of the person's height; angles around the
body are 0 in front and grow towards its left. It is painted at several times the size asked for and reduced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reid_models.data.places import paint_place

HairStyle = Literal["short", "long", "bun", "ponytail", "shaved"]
Pattern = Literal["plain", "stripes", "check", "block", "print", "open"]
Sleeves = Literal["long", "short"]
BottomKind = Literal["trousers", "shorts", "skirt"]
BagKind = Literal["none", "backpack", "shoulder", "hand"]
View = Literal["front", "right", "back", "left"]

Rgb = tuple[int, int, int]
Point = tuple[float, float]
Solid = tuple[float, float, float]  # (l, f, h)


@dataclass(frozen=True)
class Appearance:
    """What one person looks like, the same in all their pictures. Colours are RGB, 0..255.

    `top_second` is the other colour of stripes, check, block and print, and the shirt under an open jacket.
    """

    skin: Rgb
    hair: Rgb
    hair_style: HairStyle
    top: Rgb
    top_second: Rgb
    top_pattern: Pattern
    sleeves: Sleeves
    bottom: Rgb
    bottom_kind: BottomKind
    shoes: Rgb
    bag_kind: BagKind
    bag: Rgb

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in toy.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Appearance:
        """The record that `to_dict` described."""
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**fields)


@dataclass(frozen=True)
class PasserBy:
    """Somebody else who is in the picture too. The fields mean what they mean in `Structure`."""

    appearance: Appearance
    view: View
    turn: float
    phase: float
    height: float
    center_x: float
    feet_y: float


@dataclass(frozen=True)
class Structure:
    """Where the body is, and what this camera makes of it.

    The first seven fields are the camera's. `light_from` runs from -1 (left) to 1 (right); `shift_x` and `shift_y` say
    how far the crop slid over the place, in shares of the picture's width and height. `view` is the side of the
    person that is seen and `turn` the radians by which it is missed; `phase` is the gait in radians; `height` and
    `feet_y` are shares of the picture's height, `center_x` of its width. `noise` is its deviation in grey levels.
    """

    camid: int
    place: str
    place_seed: int
    brightness: float
    warmth: float
    blur: float
    light_from: float
    shift_x: float
    shift_y: float
    view: View
    turn: float
    phase: float
    height: float
    center_x: float
    feet_y: float
    noise: float
    noise_seed: int
    passer_by: PasserBy | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in toy.json."""
        values = asdict(self)
        if self.passer_by is not None:
            values["passer_by"]["appearance"] = self.passer_by.appearance.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Structure:
        """The record that `to_dict` described."""
        other = values["passer_by"]
        if other is not None:
            other = PasserBy(**{**other, "appearance": Appearance.from_dict(other["appearance"])})
        return cls(**{**values, "passer_by": other})


def draw(appearance: Appearance | None, structure: Structure, image_hw: tuple[int, int] = (128, 64)) -> np.ndarray:
    """The picture of a person in a place; without a person, the place alone. The same records give the same pixels.

    Shapes:
        returns  (H, W, 3)  uint8, RGB
    """
    height, width = image_hw
    zoom = max(2, math.ceil(_CANVAS_HEIGHT / height))
    scene = _empty_scene(structure, (height * zoom, width * zoom))
    light = Image.new("L", scene.size, _NEUTRAL)
    if structure.passer_by is not None:
        _Figure(structure.passer_by.appearance, structure.passer_by, structure.light_from, scene, light).paint()
    if appearance is not None:
        _Figure(appearance, structure, structure.light_from, scene, light).paint()
    light = light.filter(ImageFilter.BoxBlur(light.height / 300))  # joins the bands that bodies are shaded with
    pixels = np.asarray(scene.reduce(zoom)).astype(np.float32)
    shade = np.asarray(light.reduce(zoom)).astype(np.float32) / _NEUTRAL
    tint = np.array([1 + structure.warmth, 1, 1 - structure.warmth], np.float32) * structure.brightness
    pixels *= shade[..., None] * tint
    if structure.blur > 0:
        soft = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
        pixels = np.asarray(soft.filter(ImageFilter.GaussianBlur(structure.blur * height / 128))).astype(np.float32)
    noise = np.random.default_rng(structure.noise_seed).standard_normal((height, width, 1), np.float32)
    return np.clip(np.rint(pixels + structure.noise * noise), 0, 255).astype(np.uint8)


_CANVAS_HEIGHT = 448  # painted at least this high, then reduced
_NEUTRAL = 128  # the light canvas holds factors: 128 leaves a colour as it is
_MARGIN = 0.08  # of the place on every side, so that the crop can slide


def _empty_scene(structure: Structure, canvas_hw: tuple[int, int]) -> Image.Image:
    """The place as this picture crops it, without anybody."""
    height, width = canvas_hw
    place = _whole_place(structure.place, structure.place_seed, canvas_hw)
    x = round((_MARGIN + max(-_MARGIN, min(_MARGIN, structure.shift_x))) * width)
    y = round((_MARGIN + max(-_MARGIN, min(_MARGIN, structure.shift_y))) * height)
    return place.crop((x, y, x + width, y + height))


@lru_cache(maxsize=64)
def _whole_place(place: str, seed: int, canvas_hw: tuple[int, int]) -> Image.Image:
    return paint_place(place, seed, (round(canvas_hw[0] * (1 + 2 * _MARGIN)), round(canvas_hw[1] * (1 + 2 * _MARGIN))))


# ------------------------------------------------------------------------------------------------------ body


class Ring(NamedTuple):
    """One horizontal slice of a solid: its height, half its extent across and along, and its centre."""

    h: float
    across: float
    along: float
    l: float = 0.0  # noqa: E741
    f: float = 0.0


_TRUNK = (
    Ring(0.852, 0.034, 0.036), Ring(0.841, 0.048, 0.040), Ring(0.832, 0.072, 0.046), Ring(0.822, 0.097, 0.053),
    Ring(0.805, 0.113, 0.060), Ring(0.775, 0.117, 0.068), Ring(0.720, 0.112, 0.076), Ring(0.670, 0.102, 0.073),
    Ring(0.620, 0.095, 0.067), Ring(0.570, 0.097, 0.069), Ring(0.520, 0.104, 0.075), Ring(0.495, 0.106, 0.076),
)  # fmt: skip
_HIPS = (
    Ring(0.560, 0.092, 0.066), Ring(0.520, 0.101, 0.073), Ring(0.480, 0.104, 0.074), Ring(0.455, 0.098, 0.066),
    Ring(0.440, 0.080, 0.050),
)  # fmt: skip
_NECK = (Ring(0.880, 0.032, 0.034), Ring(0.815, 0.040, 0.038))
_PACK = (
    Ring(0.822, 0.030, 0.020, 0, -0.085), Ring(0.810, 0.060, 0.040, 0, -0.100), Ring(0.770, 0.074, 0.052, 0, -0.112),
    Ring(0.650, 0.080, 0.060, 0, -0.118), Ring(0.585, 0.076, 0.056, 0, -0.115), Ring(0.570, 0.062, 0.040, 0, -0.110),
)  # fmt: skip
_PACK_POCKET = tuple(Ring(r.h, r.across * 0.98, r.along + 0.012, 0, r.f) for r in _PACK)


def _egg(centre: float, up: float, down: float, across: float, along: float, f: float = 0.0) -> tuple[Ring, ...]:
    """A head-shaped stack, from its top to its bottom."""
    rings = []
    for step in range(13):
        angle = math.pi * step / 12
        vertical, size = math.cos(angle), math.sin(angle) ** 0.8
        h = centre + vertical * (up if vertical > 0 else down)
        chin = 1 - 0.16 * max(0.0, -vertical)
        rings.append(Ring(h, across * size * chin, along * size, 0.0, f + 0.006 * max(0.0, -vertical)))
    return tuple(rings)


_SKULL = _egg(0.934, 0.062, 0.074, 0.052, 0.060)
_HAIR = _egg(0.936, 0.068, 0.074, 0.0575, 0.065, -0.003)
_LONG_HAIR = (
    Ring(0.950, 0.058, 0.050, 0, -0.016), Ring(0.900, 0.063, 0.044, 0, -0.030), Ring(0.840, 0.068, 0.038, 0, -0.044),
    Ring(0.780, 0.066, 0.030, 0, -0.058), Ring(0.750, 0.052, 0.020, 0, -0.062),
)  # fmt: skip
_TAIL = (
    Ring(0.955, 0.016, 0.018, 0, -0.066), Ring(0.930, 0.024, 0.022, 0, -0.080), Ring(0.860, 0.022, 0.020, 0, -0.088),
    Ring(0.800, 0.014, 0.014, 0, -0.088), Ring(0.780, 0.004, 0.004, 0, -0.086),
)  # fmt: skip
_BUN = _egg(0.985, 0.026, 0.026, 0.028, 0.028, -0.040)

_THIGH, _SHANK, _HIP_L, _HIP_H = 0.235, 0.225, 0.050, 0.505
_UPPER_ARM, _FOREARM, _SHOULDER_L, _SHOULDER_H = 0.165, 0.145, 0.103, 0.790
_ALL_ROUND = (-math.pi, math.pi)
_VIEW_ANGLES = {"front": 0.0, "right": math.pi / 2, "back": math.pi, "left": -math.pi / 2}


class _Leg(NamedTuple):
    hip: Solid
    knee: Solid
    ankle: Solid
    heel: Solid
    toe: Solid


def _leg(side: int, phase: float) -> _Leg:
    """One leg; `side` is 1 for the left. The knee bends while the leg swings forward."""
    swing = phase if side > 0 else phase + math.pi
    thigh = 0.37 * math.sin(swing) + 0.04
    shank = thigh - 0.10 - 0.95 * max(0.0, math.cos(swing + 0.35)) ** 1.3
    pitch = 0.9 * min(0.0, shank + 0.1) + 0.5 * max(0.0, shank)
    l = side * _HIP_L  # noqa: E741
    knee = (l, _THIGH * math.sin(thigh), _HIP_H - _THIGH * math.cos(thigh))
    ankle = (l, knee[1] + _SHANK * math.sin(shank), knee[2] - _SHANK * math.cos(shank))
    heel = (l, ankle[1] - 0.020 * math.cos(pitch), ankle[2] - 0.030 - 0.020 * math.sin(pitch))
    toe = (l + side * 0.012, heel[1] + 0.115 * math.cos(pitch), heel[2] - 0.004 + 0.115 * math.sin(pitch))
    return _Leg((l, 0.0, _HIP_H), knee, ankle, heel, toe)


def _arm(side: int, phase: float) -> tuple[Solid, Solid, Solid]:
    """Shoulder, elbow and hand; an arm swings against the leg of its side."""
    swing = math.sin(phase if side < 0 else phase + math.pi)
    upper = 0.48 * swing - 0.02
    fore = upper + 0.28 + 0.20 * swing
    shoulder = (side * _SHOULDER_L, -0.004, _SHOULDER_H)
    elbow = (side * 0.132, shoulder[1] + _UPPER_ARM * math.sin(upper), shoulder[2] - _UPPER_ARM * math.cos(upper))
    hand = (side * 0.136, elbow[1] + _FOREARM * math.sin(fore), elbow[2] - _FOREARM * math.cos(fore))
    return shoulder, elbow, hand


# --------------------------------------------------------------------------------------------------- painting


class _Figure:
    """One person, painted onto two canvases of the same size: colours, and the light that falls on them."""

    def __init__(
        self, look: Appearance, pose: Structure | PasserBy, light_from: float, scene: Image.Image, light: Image.Image
    ) -> None:
        self.look, self.phase = look, pose.phase
        self.colours, self.light = ImageDraw.Draw(scene), ImageDraw.Draw(light)
        self.unit = pose.height * scene.height
        self.x0, self.y0 = pose.center_x * scene.width, pose.feet_y * scene.height
        angle = _VIEW_ANGLES[pose.view] + pose.turn
        self.sin, self.cos = math.sin(angle), math.cos(angle)
        self.light_x, self.light_y, self.light_z = 0.5 * light_from, -0.30, 0.75
        self.legs = {side: _leg(side, self.phase) for side in (1, -1)}
        self.arms = {side: _arm(side, self.phase) for side in (1, -1)}
        # The lower foot stands on the ground; the whole body sinks or rises with it.
        lowest = min(min(leg.heel[2], leg.toe[2]) for leg in self.legs.values())
        self.sink = lowest - 0.018

    def paint(self) -> None:
        """The person and the shadow on the ground, from far to near."""
        near_first = sorted((1, -1), key=lambda side: self._nearness((side * 1.0, 0.0, 0.0)))
        far, near = near_first
        sideways = abs(self.sin) > 0.5
        self._shadow()
        if self.look.bag_kind == "hand" and far == -1 and sideways:
            self._hand_bag()
        if sideways:
            self._paint_arm(far)
        if self.cos > -0.2:
            self._hanging_hair()
        if self.cos > 0.15:
            self._pack()
        for side in sorted((1, -1), key=lambda side: self._nearness(self.legs[side].knee)):
            self._paint_leg(side, dim=0.80 if side == far and sideways else 1.0)
        if self.look.bag_kind == "shoulder" and far == -1 and sideways:
            self._shoulder_bag()
        self._paint_hips()
        if abs(self.cos) <= 0.15:
            self._pack()
        self._paint_trunk()
        if self.cos < -0.15:
            self._pack()
        self._paint_head()
        if self.look.bag_kind == "shoulder" and not (far == -1 and sideways):
            self._shoulder_bag()
        for side in (near,) if sideways else (far, near):
            self._paint_arm(side)
        if self.look.bag_kind == "hand" and not (far == -1 and sideways):
            self._hand_bag()

    # what is worn

    def _paint_leg(self, side: int, dim: float) -> None:
        look, leg = self.look, self.legs[side]
        self._tube([leg.heel, leg.toe], [0.050, 0.036], look.shoes, dim)
        joints = [leg.hip, leg.knee, leg.ankle]
        if look.bottom_kind == "trousers":
            self._tube([leg.ankle, leg.heel], [0.045, 0.045], look.shoes, dim)
            self._tube(joints, [0.112, 0.084, 0.064], look.bottom, dim, end="flat")
            return
        self._tube(joints, [0.098, 0.066, 0.042], look.skin, dim)
        self._tube([leg.ankle, leg.heel], [0.042, 0.045], look.shoes, dim)
        if look.bottom_kind == "shorts":
            hem = _between(leg.hip, leg.knee, 0.86)
            self._tube([leg.hip, hem], [0.116, 0.108], look.bottom, dim, end="flat")

    def _paint_hips(self) -> None:
        look = self.look
        if look.bottom_kind != "skirt":
            self._stack(_HIPS, look.bottom)
            return
        stride = 0.055 * abs(math.sin(self.phase))
        hem = (Ring(0.400, 0.118, 0.094 + stride), Ring(0.315, 0.126, 0.104 + 1.3 * stride))
        self._stack((*_HIPS[:3], *hem), look.bottom)

    def _paint_trunk(self) -> None:
        look = self.look
        self._stack(_NECK, look.skin, dim=0.86)
        self._stack(_TRUNK, look.top)
        match look.top_pattern:
            case "stripes":
                for h in (0.795, 0.725, 0.655, 0.585, 0.515):
                    self._patch(_TRUNK, h, h - 0.036, _ALL_ROUND, look.top_second)
            case "check":
                step = math.pi / 7
                for row in range(6):
                    h = 0.852 - 0.060 * row
                    for sector in range(-7, 7, 2):
                        start = (sector + row % 2 - 0.5) * step
                        self._patch(_TRUNK, h, h - 0.060, (start, start + step), look.top_second)
            case "block":
                self._patch(_TRUNK, 0.685, 0.49, _ALL_ROUND, look.top_second)
            case "print":
                self._patch(_TRUNK, 0.765, 0.645, (-0.62, 0.62), look.top_second)
            case "open":
                self._patch(_TRUNK, 0.852, 0.49, (-0.42, 0.42), look.top_second)
        self._patch(_TRUNK, 0.852, 0.818, (-0.75, 0.75), look.skin)  # the neckline, seen from the front only
        self._patch(_NECK, 0.880, 0.832, (-1.3, 1.3), look.skin)
        if look.bag_kind == "backpack":
            for middle in (-0.72, 0.72):
                self._patch(_TRUNK, 0.835, 0.625, (middle - 0.14, middle + 0.14), look.bag)

    def _paint_arm(self, side: int) -> None:
        look, (shoulder, elbow, hand) = self.look, self.arms[side]
        dim = 0.80 if abs(self.sin) > 0.5 and self._nearness(shoulder) < 0 else 0.96
        self._ball(_between(elbow, hand, 1.06), 0.022, 0.026, look.skin, dim)
        if look.sleeves == "long":
            self._tube([elbow, hand], [0.044, 0.034], look.skin, dim)
            cuff = _between(elbow, hand, 0.88)
            self._tube([shoulder, elbow, cuff], [0.064, 0.056, 0.048], look.top, dim)
            if look.top_pattern == "stripes":
                for a, b, width in ((shoulder, elbow, 0.062), (elbow, cuff, 0.052)):
                    for start in (0.12, 0.56):
                        ends = [_between(a, b, start), _between(a, b, start + 0.22)]
                        self._tube(ends, [width, width], look.top_second, dim, end="bare")
        else:
            self._tube([shoulder, elbow, hand], [0.054, 0.046, 0.034], look.skin, dim)
            self._tube([shoulder, _between(shoulder, elbow, 0.62)], [0.066, 0.070], look.top, dim, end="flat")

    def _pack(self) -> None:
        if self.look.bag_kind == "backpack":
            self._stack(_PACK, self.look.bag)
            self._patch(_PACK_POCKET, 0.675, 0.590, (math.pi - 0.85, math.pi + 0.85), _dimmed(self.look.bag, 0.72))

    def _shoulder_bag(self) -> None:
        strap = _dimmed(self.look.bag, 0.8)
        for start, end in ((0.55, -1.4), (math.pi - 0.55, math.pi + 1.75)):  # over the chest, and over the back
            line = [(start + (end - start) * step / 12, 0.832 - 0.29 * step / 12) for step in range(13)]
            self._line_on(_TRUNK, line, 0.016, strap)
        rings = [Ring(h, 0.026, 0.072, -0.122, 0.01) for h in (0.545, 0.53, 0.44)] + [
            Ring(0.43, 0.02, 0.06, -0.122, 0.01)
        ]
        self._stack(rings, self.look.bag)
        self._patch(rings, 0.545, 0.505, _ALL_ROUND, strap)

    def _hand_bag(self) -> None:
        l, f, h = self.arms[-1][2]  # noqa: E741
        rings = [Ring(h - drop, 0.022, along, l, f) for drop, along in ((0.045, 0.05), (0.06, 0.06), (0.16, 0.066))]
        self._tube([(l, f, h - 0.01), (l, f - 0.028, h - 0.05)], [0.01, 0.01], _dimmed(self.look.bag, 0.8))
        self._tube([(l, f, h - 0.01), (l, f + 0.028, h - 0.05)], [0.01, 0.01], _dimmed(self.look.bag, 0.8))
        self._stack(rings, self.look.bag)

    def _hanging_hair(self) -> None:
        match self.look.hair_style:
            case "long":
                self._stack(_LONG_HAIR, self.look.hair, dim=0.9)
            case "ponytail":
                self._stack(_TAIL, self.look.hair, dim=0.9)

    def _paint_head(self) -> None:
        look = self.look
        self._stack(_SKULL, look.skin)
        self._face()
        if look.hair_style == "shaved":
            self._patch(_SKULL, 1.0, 0.965, _ALL_ROUND, _mixed(look.skin, look.hair, 0.35))
            self._patch(_SKULL, 0.97, 0.91, (1.45, 2 * math.pi - 1.45), _mixed(look.skin, look.hair, 0.35))
        else:
            if look.hair_style == "bun":
                self._stack(_BUN, look.hair)
            nape = 0.885 if look.hair_style == "short" else 0.870
            self._stack([ring for ring in _HAIR if ring.h > 0.962], look.hair)
            for start, end in ((1.15, math.pi), (math.pi, 2 * math.pi - 1.15)):
                self._patch(_HAIR, 0.992, 0.930, (start, end), look.hair, shaded=True)
            for start, end in ((1.75, math.pi), (math.pi, 2 * math.pi - 1.75)):
                self._patch(_HAIR, 0.935, nape, (start, end), look.hair, shaded=True)
        if self.cos <= -0.2:
            self._hanging_hair()
        elif look.hair_style == "long":
            for start, end in ((1.2, math.pi), (math.pi, 2 * math.pi - 1.2)):
                self._patch(_LONG_HAIR, 0.95, 0.752, (start, end), look.hair)

    def _face(self) -> None:
        look = self.look
        dark = (38, 28, 26)
        for angle in (-0.42, 0.42):
            self._patch(_SKULL, 0.9445, 0.9335, (angle - 0.13, angle + 0.13), dark)
            self._patch(_SKULL, 0.9585, 0.9525, (angle - 0.20, angle + 0.20), _mixed(look.hair, dark, 0.3))
        self._patch(_SKULL, 0.935, 0.913, (-0.10, 0.10), _dimmed(look.skin, 0.85))
        self._patch(_SKULL, 0.897, 0.888, (-0.34, 0.34), _mixed(look.skin, (150, 40, 50), 0.6))
        if abs(self.sin) > 0.4:  # the nose stands out of a profile
            tip = self._at((0.0, 0.071, 0.917))
            bridge, below = self._at((0.0, 0.055, 0.942)), self._at((0.0, 0.057, 0.909))
            self._polygon([bridge, tip, below], look.skin, 1.0)
        for side in (-1, 1):
            if side * -self.sin > 0.35:
                self._ball((side * 0.052, -0.004, 0.928), 0.009, 0.015, _dimmed(look.skin, 0.88), 0.92)

    def _shadow(self) -> None:
        """A soft pool under the body, a harder one under each foot that stands."""
        lean = -0.05 * self.light_x
        for size, level in ((1.0, 0.94), (0.86, 0.88), (0.72, 0.82), (0.58, 0.76), (0.44, 0.70)):
            self._shade_ellipse((self.x0 + lean * self.unit, self.y0), 0.21 * size, 0.036 * size, level)
        for leg in self.legs.values():
            lift = min(leg.heel[2], leg.toe[2]) - self.sink
            if lift < 0.06:
                middle = _between(leg.heel, leg.toe, 0.5)
                x, y = self._at((middle[0], middle[1], self.sink))
                self._shade_ellipse((x, y), 0.062 if abs(self.sin) > 0.5 else 0.036, 0.016, 0.52)

    # how it gets onto the canvases

    def _nearness(self, point: Solid) -> float:
        """How far a point stands out of the body's middle towards the camera."""
        return point[1] * self.cos - point[0] * self.sin

    def _at(self, point: Solid) -> Point:
        l, f, h = point  # noqa: E741
        x = l * self.cos + f * self.sin
        # The camera looks down a little: what is nearer is lower.
        return self.x0 + x * self.unit, self.y0 - (h - self.sink - _TILT * self._nearness(point)) * self.unit

    def _polygon(self, points: Sequence[Point], colour: Rgb, level: float | None) -> None:
        self.colours.polygon(points, fill=colour)
        if level is not None:
            self.light.polygon(points, fill=_level(level))

    def _shade_ellipse(self, centre: Point, half_width: float, half_height: float, level: float) -> None:
        (x, y), a, b = centre, half_width * self.unit, half_height * self.unit
        self.light.ellipse([x - a, y - b, x + a, y + b], fill=_level(level))

    def _ball(self, point: Solid, half_width: float, half_height: float, colour: Rgb, dim: float = 1.0) -> None:
        (x, y), a, b = self._at(point), half_width * self.unit, half_height * self.unit
        self.colours.ellipse([x - a, y - b, x + a, y + b], fill=colour)
        self.light.ellipse([x - a, y - b, x + a, y + b], fill=_level(0.80 * dim))
        x, y, a, b = x + 0.25 * a * _sign(self.light_x), y - 0.2 * b, 0.72 * a, 0.72 * b
        self.light.ellipse([x - a, y - b, x + a, y + b], fill=_level(1.02 * dim))

    def _tube(
        self, joints: Sequence[Solid], widths: Sequence[float], colour: Rgb, dim: float = 1.0,
        *, end: Literal["round", "flat", "bare"] = "round",
    ) -> None:  # fmt: skip
        """A tapered limb through the joints, rounded at each, with a thin dark rim that sets it off from the body.

        A "flat" end is a hem; a "bare" tube is colour on a limb whose light is already there.
        """
        points = [self._at(joint) for joint in joints]
        radii = [width * self.unit / 2 for width in widths]
        segments = list(zip(_pairs(points), _pairs(radii), strict=True))
        if end != "bare":
            rim = 0.004 * self.unit
            for (a, b), (ra, rb) in segments:
                self.light.polygon(_slab(a, b, ra, rb + rim, -1, 1), fill=_level(0.78 * dim))
            for (x, y), r in list(zip(points, radii, strict=True))[: -1 if end == "flat" else None]:
                self.colours.ellipse([x - r, y - r, x + r, y + r], fill=colour)
                self.light.ellipse([x - r, y - r, x + r, y + r], fill=_level(0.94 * dim))
        for (a, b), (ra, rb) in segments:
            self.colours.polygon(_slab(a, b, ra, rb, -1, 1), fill=colour)
            if end != "bare":
                nx, ny = _normal(a, b)
                for start, stop in _pairs(_BANDS):
                    u = (start + stop) / 2
                    level = self._lambert(u * nx, u * ny, u)
                    self.light.polygon(_slab(a, b, ra, rb, start, stop), fill=_level(level * dim))

    def _stack(self, rings: Sequence[Ring], colour: Rgb, dim: float = 1.0) -> None:
        """A solid of rings, from the top down."""
        middles = [self._at((ring.l, ring.f, ring.h)) for ring in rings]
        radii = [math.hypot(ring.across * self.cos, ring.along * self.sin) * self.unit for ring in rings]
        self._polygon(_column(middles, radii, -1, 1), colour, None)
        for start, end in _pairs(_BANDS):
            u = (start + end) / 2
            self.light.polygon(_column(middles, radii, start, end), fill=_level(self._lambert(u, 0.0, u) * dim))

    def _patch(
        self, rings: Sequence[Ring], top: float, bottom: float, angles: tuple[float, float], colour: Rgb,
        *, shaded: bool = False,
    ) -> None:  # fmt: skip
        """A piece of a solid's surface between two heights and two angles, as far as it is seen."""
        left: list[Point] = []
        right: list[Point] = []
        for ring in _slices(rings, top, bottom):
            facing = -math.atan2(self.sin / max(ring.across, 1e-6), self.cos / max(ring.along, 1e-6))
            start, end = _visible(angles, facing)
            if start < end:
                left.append(self._on(ring, start))
                right.append(self._on(ring, end))
        if len(left) > 1:
            self._polygon(left + right[::-1], colour, 0.95 if shaded else None)

    def _line_on(self, rings: Sequence[Ring], line: Sequence[tuple[float, float]], width: float, colour: Rgb) -> None:
        """A ribbon over a solid's surface through points (angle, height), as far as it is seen."""
        seen: list[Point] = []
        for angle, h in line:
            ring = next(_slices(rings, h, h))
            facing = -math.atan2(self.sin / ring.across, self.cos / ring.along)
            if math.cos(angle - facing) > -0.05:
                seen.append(self._on(ring, angle))
        if len(seen) > 1:
            self.colours.line(seen, fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def _on(self, ring: Ring, angle: float) -> Point:
        return self._at((ring.l + ring.across * math.sin(angle), ring.f + ring.along * math.cos(angle), ring.h))

    def _lambert(self, x: float, y: float, u: float) -> float:
        """Light on a round surface with normal (x, y) in the picture, at the share u (-1..1) of its width."""
        towards = math.sqrt(max(0.0, 1 - u * u))
        return 0.60 + 0.48 * max(0.0, self.light_x * x + self.light_y * y + self.light_z * towards)


_TILT = 0.16
_BANDS = (-1.0, -0.86, -0.62, -0.3, 0.05, 0.4, 0.7, 0.9, 1.0)


def _level(factor: float) -> int:
    return max(0, min(255, round(_NEUTRAL * factor)))


def _sign(value: float) -> float:
    return math.copysign(1.0, value)


def _dimmed(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _mixed(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _between(a: Solid, b: Solid, share: float) -> Solid:
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


def _pairs(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return itertools.pairwise(items)


def _normal(a: Point, b: Point) -> Point:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    return (dy / length, -dx / length)


def _slab(a: Point, b: Point, ra: float, rb: float, start: float, end: float) -> list[Point]:
    """The part of a tapered bar between two shares (-1..1) of its width."""
    nx, ny = _normal(a, b)
    return [
        (a[0] + nx * ra * start, a[1] + ny * ra * start), (b[0] + nx * rb * start, b[1] + ny * rb * start),
        (b[0] + nx * rb * end, b[1] + ny * rb * end), (a[0] + nx * ra * end, a[1] + ny * ra * end),
    ]  # fmt: skip


def _column(middles: Sequence[Point], radii: Sequence[float], start: float, end: float) -> list[Point]:
    """The part of a stack between two shares (-1..1) of its width."""
    left = [(x + start * r, y) for (x, y), r in zip(middles, radii, strict=True)]
    right = [(x + end * r, y) for (x, y), r in zip(middles, radii, strict=True)]
    return left + right[::-1]


def _slices(rings: Sequence[Ring], top: float, bottom: float) -> Iterator[Ring]:
    """The rings between two heights, with new ones at the heights themselves; from the top down."""
    top, bottom = min(top, rings[0].h), max(bottom, rings[-1].h)
    yield _ring_at(rings, top)
    for ring in rings:
        if bottom < ring.h < top:
            yield ring
    yield _ring_at(rings, bottom)


def _ring_at(rings: Sequence[Ring], h: float) -> Ring:
    for above, below in _pairs(rings):
        if h >= below.h:
            share = (above.h - h) / (above.h - below.h)
            return Ring(*(a + share * (b - a) for a, b in zip(above, below, strict=True)))
    return rings[-1]


def _visible(angles: tuple[float, float], facing: float) -> tuple[float, float]:
    """The part of an interval of angles within a quarter turn of `facing`, the angle that looks at the camera."""
    start, end = angles
    if end - start >= 2 * math.pi - 1e-9:
        return facing - math.pi / 2, facing + math.pi / 2
    turns = round((facing - (start + end) / 2) / (2 * math.pi)) * 2 * math.pi
    return max(start + turns, facing - math.pi / 2), min(end + turns, facing + math.pi / 2)
