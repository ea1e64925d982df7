"""The toy world: a dataset of drawn pedestrians of whom everything is known, so that every swap has a true picture.

`data/drawing.py` draws one picture from two records; here are the people and cameras, and the published raw layouts.

    make_toy_dataset("data/toy", ids=16, cameras=4, per_camera=6, seed=0)
    records = load_toy_records("data/toy")
    truth = draw(records.appearance("0002_c1s1_000026_01.jpg"), records.structure("0004_c2s1_000226_01.jpg"))

Everything is a function of the arguments: the same call writes the same bytes. The first people and their pictures do
not change when more people are asked for.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reid_eval.errors import OutputError, ReidError
from reid_eval.files import remove_abandoned, save_image, write_text
from reid_eval.locks import BusyError, locked
from reid_eval.outputs import claim_folder, refuse_foreign_folder
from reid_eval.progress import track
from reid_eval.reading import read_json_object, reading, seal_of
from reid_eval.stopping import check_stop
from reid_models.config import ConfigError
from reid_models.data.drawing import (
    Appearance,
    BagKind,
    BottomKind,
    HairStyle,
    PasserBy,
    Pattern,
    Rgb,
    Sleeves,
    Structure,
    View,
    draw,
)
from reid_models.data.places import PLACES

__all__ = [
    "LAYOUTS", "Appearance", "Camera", "Structure", "ToyRecords", "ToyWorldError", "camera_world", "clothes_distance",
    "contact_sheet", "draw", "load_toy_records", "make_toy_dataset", "parse_image_size", "sample_appearance",
    "sample_people", "sample_structure",
]  # fmt: skip

RECORDS_FILE = "toy.json"
RECORDS_FORMAT = 1
LAYOUTS = ("market1501", "dukemtmc", "msmt17", "cuhk03np", "folders")

T = TypeVar("T")


class ToyWorldError(ReidError):
    """The records of a toy dataset are missing, or do not know a picture."""


# ------------------------------------------------------------------------------------------- people and cameras


@dataclass(frozen=True)
class Camera:
    """What all pictures of one camera share; the fields mean what they mean in `Structure`."""

    camid: int
    place: str
    place_seed: int
    brightness: float
    warmth: float
    blur: float
    light_from: float


def camera_world(seed: int, cameras: int) -> list[Camera]:
    """The cameras 1..`cameras` of a world, each in its own place and light."""
    rng = np.random.default_rng([seed, 1])
    places = [str(place) for place in rng.permutation(PLACES)]
    return [
        Camera(
            camid=camid,
            place=places[(camid - 1) % len(places)],
            place_seed=int(rng.integers(1 << 30)),
            brightness=_within(rng, 0.86, 1.08),
            warmth=_within(rng, -0.07, 0.07),
            blur=_within(rng, 0.2, 0.55),
            light_from=float(rng.choice([-1.0, 1.0])) * _within(rng, 0.4, 1.0),
        )
        for camid in range(1, cameras + 1)
    ]


def sample_structure(rng: np.random.Generator, camera: Camera, view: View | None = None) -> Structure:
    """A body somewhere in front of a camera, seen from a side chosen by chance or from `view`."""
    values = asdict(camera)
    values["brightness"] = round(camera.brightness * _within(rng, 0.97, 1.03), 4)
    return Structure(
        **values,
        shift_x=_within(rng, -0.05, 0.05),
        shift_y=_within(rng, -0.015, 0.015),
        view=view if view is not None else _pick(rng, _VIEWS),
        turn=_within(rng, -0.30, 0.30),
        phase=_within(rng, 0, 2 * math.pi),
        height=_within(rng, 0.85, 0.94),
        center_x=_within(rng, 0.46, 0.54),
        feet_y=_within(rng, 0.955, 0.98),
        noise=1.5,
        noise_seed=int(rng.integers(1 << 30)),
    )


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Somebody, dressed by chance."""
    top = _cloth(rng, _TOPS)
    second = _unlike(rng, top)
    bottom = _cloth(rng, _BOTTOMS)
    while math.dist(top, bottom) < 70:  # a waist that can be seen
        bottom = _cloth(rng, _BOTTOMS)
    skin = _pick(rng, _SKINS)
    return Appearance(
        skin=skin,
        hair=_pick(rng, _HAIRS if sum(skin) > 420 else _HAIRS[:3]),
        hair_style=_pick(rng, _HAIR_STYLES, (0.42, 0.22, 0.11, 0.15, 0.10)),
        top=top,
        top_second=second,
        top_pattern=_pick(rng, _PATTERNS, (0.26, 0.15, 0.11, 0.17, 0.13, 0.18)),
        sleeves=_pick(rng, _SLEEVES),
        bottom=bottom,
        bottom_kind=_pick(rng, _BOTTOM_KINDS, (0.54, 0.22, 0.24)),
        shoes=_cloth(rng, _SHOES),
        bag_kind=_pick(rng, _BAG_KINDS, (0.34, 0.30, 0.20, 0.16)),
        bag=_unlike(rng, top),
    )


def sample_people(rng: np.random.Generator, count: int) -> list[Appearance]:
    """`count` people of whom no two could be taken for one another by the colours of their clothes.

    The more people, the less they can differ: the distance asked for sinks when nobody new is found.
    """
    people: list[Appearance] = []
    worn = np.empty((count, 2, 3))  # the colours of top and bottom
    apart, refused = 130.0, 0
    while len(people) < count:
        check_stop()
        somebody = sample_appearance(rng)
        clothes = np.array([somebody.top, somebody.bottom])
        distances = np.linalg.norm(worn[: len(people)] - clothes, axis=2).sum(axis=1)  # as in clothes_distance
        if (distances >= apart).all():
            worn[len(people)] = clothes
            people.append(somebody)
            refused = 0
        else:
            refused += 1
            if refused > 100:
                apart, refused = apart * 0.93, 0
    return people


def clothes_distance(a: Appearance, b: Appearance) -> float:
    """How differently two people are dressed: the RGB distances of their tops and of what they wear below, added."""
    return math.dist(a.top, b.top) + math.dist(a.bottom, b.bottom)


_VIEWS: tuple[View, ...] = ("front", "right", "back", "left")
_HAIR_STYLES: tuple[HairStyle, ...] = ("short", "long", "bun", "ponytail", "shaved")
_PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "check", "block", "print", "open")
_SLEEVES: tuple[Sleeves, ...] = ("long", "short")
_BOTTOM_KINDS: tuple[BottomKind, ...] = ("trousers", "shorts", "skirt")
_BAG_KINDS: tuple[BagKind, ...] = ("none", "backpack", "shoulder", "hand")
_SKINS: tuple[Rgb, ...] = ((244, 208, 180), (228, 180, 146), (200, 142, 106), (150, 96, 64), (98, 64, 48))
_HAIRS: tuple[Rgb, ...] = ((32, 26, 26), (74, 48, 34), (160, 156, 152), (142, 98, 58), (208, 172, 108), (148, 64, 36))
_CLOTHS: dict[str, Rgb] = {
    "red": (204, 40, 46), "orange": (236, 122, 34), "yellow": (242, 204, 58), "green": (44, 142, 72),
    "lime": (156, 204, 68), "teal": (22, 146, 146), "sky": (98, 176, 228), "blue": (38, 86, 196), "navy": (30, 38, 84),
    "purple": (112, 56, 156), "pink": (240, 136, 178), "magenta": (196, 36, 118), "brown": (112, 72, 46),
    "beige": (216, 192, 152), "white": (236, 236, 232), "grey": (132, 136, 142), "black": (34, 34, 38),
    "wine": (118, 28, 48), "olive": (110, 116, 56), "denim": (70, 104, 152),
}  # fmt: skip
_TOPS = ("red", "orange", "yellow", "green", "lime", "teal", "sky", "blue", "navy", "purple", "pink", "magenta",
         "brown", "beige", "white", "white", "grey", "black", "wine")  # fmt: skip
_BOTTOMS = ("denim", "denim", "navy", "black", "black", "grey", "beige", "white", "olive", "brown", "red", "blue",
            "yellow", "green", "teal", "pink", "purple", "orange")  # fmt: skip
_SHOES = ("white", "white", "black", "brown", "red", "grey", "blue", "lime")


def _cloth(rng: np.random.Generator, names: tuple[str, ...]) -> Rgb:
    dye = np.asarray(_CLOTHS[_pick(rng, names)]) + rng.integers(-8, 9, 3)
    red, green, blue = (int(channel) for channel in np.clip(dye, 0, 255))
    return red, green, blue


def _unlike(rng: np.random.Generator, other: Rgb) -> Rgb:
    """A colour that stands out from another."""
    while True:
        colour = _cloth(rng, _TOPS)
        if math.dist(colour, other) >= 120:
            return colour


def _pick(rng: np.random.Generator, choices: tuple[T, ...], shares: tuple[float, ...] | None = None) -> T:
    return choices[int(rng.choice(len(choices), p=shares))]


def _within(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


# ------------------------------------------------------------------------------------------------------ records


class ToyRecords:
    """The two records of every picture of a toy dataset, found by file name in whatever folder the picture lies."""

    def __init__(self, root: Path, made_of: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]) -> None:
        self.root = root
        self.made_of = made_of
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, name: object) -> bool:
        return name in self._images

    @property
    def names(self) -> list[str]:
        """All file names, sorted."""
        return sorted(self._images)

    @property
    def image_hw(self) -> tuple[int, int]:
        """The size the pictures were drawn at."""
        height, width = self.made_of["image_hw"]
        return height, width

    def appearance(self, name: str) -> Appearance | None:
        """What the person in the picture looks like; None for an empty window.

        Raises:
            ToyWorldError: the picture is not of this dataset.
        """
        values = self._record(name)
        with reading(self.root / RECORDS_FILE, ToyWorldError, "the appearance of each picture", remedy=_DRAW_AGAIN):
            look = values["appearance"]
            return None if look is None else Appearance.from_dict(look)

    def structure(self, name: str) -> Structure:
        """Where the body is in the picture, and its camera.

        Raises:
            ToyWorldError: the picture is not of this dataset.
        """
        values = self._record(name)
        with reading(self.root / RECORDS_FILE, ToyWorldError, "the structure of each picture", remedy=_DRAW_AGAIN):
            return Structure.from_dict(values["structure"])

    def _record(self, name: str) -> Mapping[str, Any]:
        try:
            return self._images[Path(name).name]
        except KeyError:
            raise ToyWorldError(
                f"{Path(name).name}: not in {self.root / RECORDS_FILE}; is this the toy dataset the picture is from?"
            ) from None


def load_toy_records(root: Path | str) -> ToyRecords:
    """The records of the toy dataset in `root`.

    Raises:
        ToyWorldError: there are none, or the file is damaged.
    """
    root = Path(root)
    if not (root / RECORDS_FILE).is_file():
        raise ToyWorldError(f"{root}: no {RECORDS_FILE} here; expected a finished folder made by 'reid-models toy'")
    values = _read_json(root / RECORDS_FILE)
    return ToyRecords(root, values["made_of"], values["images"])


_DRAW_AGAIN = "draw the dataset again in a new folder"
_MAX_BYTES = 8 << 30  # a kilobyte for each of five million pictures, and more


def _read_json(file: Path) -> dict[str, Any]:
    expected = "the records of a toy dataset"
    with reading(file, ToyWorldError, expected, remedy=_DRAW_AGAIN):
        values = read_json_object(file, ToyWorldError, expected, limit=_MAX_BYTES)
        if values.get("format") != RECORDS_FORMAT:
            raise ToyWorldError(f"{file}: format {values.get('format')}, expected {RECORDS_FORMAT}; {_DRAW_AGAIN}")
        seal = values.pop("sha256", None)  # which earlier versions did not write
        if seal is not None and seal != seal_of(values):
            raise ToyWorldError(f"{file}: its values are not those that were written (SHA-256); {_DRAW_AGAIN}")
        height, width = (int(side) for side in values["made_of"]["image_hw"])
        if min(height, width) < 1 or not all(isinstance(image, dict) for image in values["images"].values()):
            raise ValueError("records of another kind")
    return values


# ------------------------------------------------------------------------------------------------------ dataset


@dataclass(frozen=True)
class _Picture:
    """One picture to be drawn: where it goes, and its two records (no appearance: an empty window)."""

    file: str
    appearance: Appearance | None
    structure: Structure

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]


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

    Half of the people train, half test; one picture of a test person and camera is a query. The layout of Market-1501
    has distractors (0000) and junk boxes (-1) too, that of CUHK03-NP a labeled and a less exact detected half. A folder
    made with the same arguments is completed if pictures are missing or empty, otherwise left alone.

    Raises:
        ConfigError: the arguments make no dataset.
        OutputError: `out` holds other files, or a toy dataset of other arguments, or somebody else is drawing there.
        ToyWorldError: the records in `out` are damaged.
        Stopped: something asked to stop; run it again to go on.
    """
    _refuse_impossible(ids, cameras, per_camera, seed, layout, image_hw)
    made_of: dict[str, Any] = {"ids": ids, "cameras": cameras, "per_camera": per_camera, "seed": seed}
    made_of |= {"layout": layout, "image_hw": list(image_hw)}
    out = Path(out)
    _refuse_other(out, made_of)
    claim_folder(out, _marker(out) or RECORDS_FILE, what=_WHAT, is_ours=lambda _: True)
    try:
        with locked(out, "reid-models toy"):
            _refuse_other(out, made_of)
            _draw_missing(out, made_of, *_plan(ids, cameras, per_camera, seed, layout))
    except BusyError:
        _refuse_other(out, made_of)
        raise
    return out


_WHAT = "a toy dataset"
# Lies in a folder that is not finished yet, so that a second run knows it may go on; the records come last.
_BEGUN_FILE = ".toy-begun.json"


def _marker(out: Path) -> str | None:
    return next((name for name in (RECORDS_FILE, _BEGUN_FILE) if (out / name).is_file()), None)


def _refuse_other(out: Path, made_of: Mapping[str, Any]) -> None:
    """See that a folder is new, empty, or a toy dataset of the same arguments, perhaps only begun."""
    marker = _marker(out)
    if marker is None:
        refuse_foreign_folder(out, RECORDS_FILE, what=_WHAT, is_ours=lambda _: False)
        return
    found = _read_json(out / marker)["made_of"]
    if found != made_of:
        differing = [f"{key} {found.get(key)} (now {value})" for key, value in made_of.items()
                     if found.get(key) != value]  # fmt: skip
        raise OutputError(
            f"{out}: holds a toy dataset with {', '.join(differing)}; nothing was changed; choose another folder"
        )


def _draw_missing(out: Path, made_of: Mapping[str, Any], pictures: list[_Picture], texts: Mapping[str, str]) -> None:
    if not (out / RECORDS_FILE).exists():
        write_text(out / _BEGUN_FILE, json.dumps({"format": RECORDS_FORMAT, "made_of": made_of, "images": {}}) + "\n")
    for folder in sorted({out, *((out / picture.file).parent for picture in pictures)}):
        remove_abandoned(folder)
    missing = [picture for picture in pictures if not _is_there(out / picture.file)]
    for picture in track(missing, f"drawing {out}"):
        save_image(
            out / picture.file, draw(picture.appearance, picture.structure, tuple(made_of["image_hw"])), quality=95
        )
    for name, text in texts.items():
        if not _is_there(out / name) or (out / name).read_bytes() != text.encode():
            write_text(out / name, text)
    if not (out / RECORDS_FILE).exists():
        write_text(out / RECORDS_FILE, _records_text(made_of, pictures))
    (out / _BEGUN_FILE).unlink(missing_ok=True)


def _is_there(file: Path) -> bool:
    """Whether there is a file with something in it."""
    try:
        found = os.stat(file)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _records_text(made_of: Mapping[str, Any], pictures: list[_Picture]) -> str:
    """toy.json, one picture a line, with a seal."""
    images = {
        picture.name: {
            "appearance": picture.appearance.to_dict() if picture.appearance else None,
            "structure": picture.structure.to_dict(),
        }
        for picture in pictures
    }
    seal = seal_of({"format": RECORDS_FORMAT, "made_of": made_of, "images": images})
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(records)}" for name, records in images.items())
    return (
        f'{{"format": {RECORDS_FORMAT},\n "made_of": {json.dumps(made_of)},\n "sha256": "{seal}",\n '
        f'"images": {{\n{lines}\n }}}}\n'
    )


_MOST_CAMERAS = {"market1501": 6, "dukemtmc": 8, "msmt17": 15, "cuhk03np": 2, "folders": 99}
_MOST_PICTURES = {"market1501": 200_000, "msmt17": 110_000}


def _refuse_impossible(
    ids: int, cameras: int, per_camera: int, seed: int, layout: str, image_hw: tuple[int, int]
) -> None:
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if not 2 <= ids <= 9000:
        raise ConfigError(f"ids {ids}: expected 2 to 9000, at least one to train on and one to test on")
    if not 1 <= cameras <= _MOST_CAMERAS[layout]:
        raise ConfigError(
            f"cameras {cameras}: {layout} has 1 to {_MOST_CAMERAS[layout]}; choose fewer or another layout"
        )
    if per_camera < 1:
        raise ConfigError(f"per-camera {per_camera}: expected at least 1 picture of a person in a camera")
    if cameras * per_camera < 2 and layout != "folders":
        raise ConfigError("one camera and one picture a person: a query would have no gallery; raise one of the two")
    if cameras * per_camera > 999:
        raise ConfigError(f"{cameras * per_camera} pictures of a person: expected at most 999; lower per-camera")
    most = _MOST_PICTURES.get(layout, 5_000_000)
    if ids * cameras * per_camera > most:
        raise ConfigError(
            f"{ids * cameras * per_camera} pictures: the file names of {layout} count to {most}; ask for fewer"
        )
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected 0 or more")
    if not (16 <= image_hw[0] <= 2048 and 8 <= image_hw[1] <= 2048):
        raise ConfigError(f"image size {image_hw[0]}x{image_hw[1]}: expected height x width from 16x8 to 2048x2048")


def _plan(ids: int, cameras: int, per_camera: int, seed: int, layout: str) -> tuple[list[_Picture], dict[str, str]]:
    """Every picture of the dataset in its layout, and the text files that go with it."""
    world = camera_world(seed, cameras)
    gallery_size = (ids // 2) * cameras * max(1, per_camera - 1)
    extras = max(8, gallery_size // 8) if layout == "market1501" else 0
    people = sample_people(np.random.default_rng([seed, 2]), ids + min(extras, 200))
    people, strangers = people[:ids], people[ids:]
    namer = _Namer(layout)
    pictures: list[_Picture] = []
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    for person, look in enumerate(people):
        for split, structure in _shots(person, world, per_camera, seed, layout):
            name = namer.name(person, structure.camid, is_query=split == "query")
            pictures.append(_Picture(_folder(layout, split, name) + name, look, structure))
            lists[split].append(f"{name[:4]}/{name} {int(name[:4])}")
    if layout == "cuhk03np":
        pictures += _detected(pictures, namer, seed)
    if extras:
        pictures += _distractors(extras, strangers, world, namer, seed)
        pictures += _junk(extras, people[1::2], strangers, world, namer, seed)
    assert len({picture.name for picture in pictures}) == len(pictures), "file names repeat"
    texts = {f"list_{split}.txt": "".join(f"{line}\n" for line in lines) for split, lines in lists.items()}
    return pictures, texts if layout == "msmt17" else {}


def _shots(
    person: int, world: list[Camera], per_camera: int, seed: int, layout: str
) -> Iterator[tuple[str, Structure]]:
    """The pictures of one person with their splits. Every second person is for testing."""
    rng = np.random.default_rng([seed, 3, person])
    for camera in world:
        first_view = int(rng.integers(4))
        for shot in range(per_camera):
            # With one picture a camera, the first camera asks and the others answer.
            asks = shot == 0 and (per_camera > 1 or camera is world[0])
            if person % 2:
                split = "query" if asks else "gallery"
            else:
                held_out = layout == "msmt17" and camera is world[-1] and shot == per_camera - 1 > 0
                split = "val" if held_out else "train"
            yield split, sample_structure(rng, camera, _VIEWS[(first_view + shot) % 4])


class _Namer:
    """File names of a layout, each given once."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.given = 0
        self.of_camera: dict[int, int] = {}
        self.of_person: dict[int, int] = {}

    def name(self, person: int | None, camid: int, *, is_query: bool = False, junk: bool = False) -> str:
        """The next name for a person (from 0) in a camera; None is a distractor or, if so said, junk."""
        in_camera = self.of_camera[camid] = self.of_camera.get(camid, -1) + 1
        self.given += 1
        if person is None:
            pid, in_person = "-1" if junk else "0000", 0
        else:
            # MSMT17 numbers train and test from 0 each; the others share one numbering, from 2 as in Market-1501.
            pid = f"{person // 2:04d}" if self.layout == "msmt17" else f"{person + 2:04d}"
            in_person = self.of_person[person] = self.of_person.get(person, -1) + 1
        match self.layout:
            case "market1501":
                sequence, frame = 1 + in_camera // 39_000, 25 * (in_camera % 39_000) + 1
                return f"{pid}_c{camid}s{sequence}_{frame:06d}_{0 if is_query else 1 + in_camera % 4:02d}.jpg"
            case "cuhk03np":
                return f"{pid}_c{camid}_{in_person + 1}.png"
            case "msmt17":
                slot, time = divmod(self.given, 10_000)
                day = ("0113", "0114", "0302", "0303")[slot // 3]
                period = ("morning", "noon", "afternoon")[slot % 3]
                return f"{pid}_{in_person:03d}_{camid:02d}_{day}{period}_{time:04d}_{in_person % 3}.jpg"
            case _:
                return f"{pid}_c{camid}_f{25 * in_camera + 1:07d}.jpg"


def _folder(layout: str, split: str, name: str) -> str:
    if layout == "folders":
        return f"{name[:4]}/"
    if layout == "msmt17":
        return f"{'train' if split in ('train', 'val') else 'test'}/{name[:4]}/"
    folder = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}[split]
    return f"labeled/{folder}/" if layout == "cuhk03np" else f"{folder}/"


def _detected(labeled: list[_Picture], namer: _Namer, seed: int) -> list[_Picture]:
    """CUHK03's second half: the same moments, boxed less exactly by a detector."""
    rng = np.random.default_rng([seed, 4])
    pictures = []
    for picture in labeled:
        folder, _, name = picture.file.rpartition("/")
        structure = picture.structure
        structure = replace(
            structure,
            height=round(structure.height * _within(rng, 0.90, 1.06), 4),
            center_x=round(structure.center_x + _within(rng, -0.07, 0.07), 4),
            noise_seed=int(rng.integers(1 << 30)),
        )
        new_name = namer.name(int(name[:4]) - 2, structure.camid)
        pictures.append(_Picture(f"detected/{folder.partition('/')[2]}/{new_name}", picture.appearance, structure))
    return pictures


def _distractors(
    count: int, strangers: list[Appearance], world: list[Camera], namer: _Namer, seed: int
) -> list[_Picture]:
    """Market's 0000: strangers, and windows with nobody in them."""
    rng = np.random.default_rng([seed, 5])
    pictures = []
    for number in range(count):
        camera = world[number % len(world)]
        look = None if number // len(world) % 2 else strangers[number % len(strangers)]
        name = namer.name(None, camera.camid)
        pictures.append(_Picture(f"bounding_box_test/{name}", look, sample_structure(rng, camera)))
    return pictures


def _junk(
    count: int, testers: list[Appearance], strangers: list[Appearance], world: list[Camera], namer: _Namer, seed: int
) -> list[_Picture]:
    """Market's -1: a detector's bad boxes of test people. As many as there are distractors."""
    rng = np.random.default_rng([seed, 6])
    kinds: tuple[Callable[[Structure], Structure], ...] = (
        lambda body: replace(body, height=1.7, feet_y=1.68),  # the upper half
        lambda body: replace(body, height=1.7, feet_y=0.97),  # the legs
        lambda body: replace(body, center_x=_pick(rng, (0.0, 1.0))),  # beside the person
        lambda body: replace(body, center_x=0.28, passer_by=_passer_by(rng, _pick(rng, tuple(strangers)))),  # two
    )
    pictures = []
    for number in range(count):
        camera = world[number % len(world)]
        body = kinds[(number + number // len(world)) % len(kinds)](sample_structure(rng, camera))
        name = namer.name(None, camera.camid, junk=True)
        pictures.append(_Picture(f"bounding_box_test/{name}", testers[number % len(testers)], body))
    return pictures


def _passer_by(rng: np.random.Generator, look: Appearance) -> PasserBy:
    return PasserBy(
        appearance=look,
        view=_pick(rng, _VIEWS),
        turn=_within(rng, -0.3, 0.3),
        phase=_within(rng, 0, 2 * math.pi),
        height=_within(rng, 0.8, 0.88),
        center_x=_within(rng, 0.68, 0.78),
        feet_y=_within(rng, 0.94, 0.96),
    )


def parse_image_size(text: str) -> tuple[int, int]:
    """ "128x64" as (128, 64).

    Raises:
        ConfigError: the text is not two numbers with an x between.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip(), re.ASCII)
    if match is None:
        raise ConfigError(f"image size {text!r}: expected height x width in pixels, e.g. 128x64")
    return int(match.group(1)), int(match.group(2))


def contact_sheet(root: Path | str, *, people: int = 6, pictures: int = 12) -> np.ndarray:
    """Some people of a toy dataset, drawn at twice their size without noise: a row each, from camera to camera.

    Shapes:
        returns  (H, W, 3)  uint8, RGB

    Raises:
        ToyWorldError: there are no records, or they are damaged.
    """
    records = load_toy_records(root)
    height, width = (2 * side for side in records.image_hw)
    of_person: dict[Appearance, list[Structure]] = {}
    for name in records.names:
        look, structure = records.appearance(name), records.structure(name)
        if look is not None and not name.startswith(("-1_", "0000_c")):
            of_person.setdefault(look, []).append(structure)
    shown: list[tuple[Appearance, list[Structure]]] = []
    for look, structures in list(of_person.items())[:people]:
        structures.sort(key=lambda structure: structure.camid)
        cameras = [list(group) for _, group in groupby(structures, key=lambda structure: structure.camid)]
        per_camera = max(1, pictures // len(cameras))
        shown.append((look, [structure for group in cameras for structure in group[:per_camera]][:pictures]))
    columns = max((len(chosen) for _, chosen in shown), default=0)
    rows = []
    for look, chosen in shown:
        row = np.full((height + _GAP_PX, columns * (width + _GAP_PX), 3), 255, np.uint8)
        for column, structure in enumerate(chosen):
            left = column * (width + _GAP_PX)
            row[:height, left : left + width] = draw(look, replace(structure, noise=0.0), (height, width))
        rows.append(row)
    if not rows:
        raise ToyWorldError(f"{root}: shows nobody; {_DRAW_AGAIN}")
    return np.concatenate(rows)[:-_GAP_PX, :-_GAP_PX]


_GAP_PX = 4
