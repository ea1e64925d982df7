"""Which dataset lies in a folder: judged by what it holds, not by what it is called.

    root, layout = recognise(Path("Market-1501-v15.09.15"))      # layout "market1501"
    parse_name("0002_c1s1_000451_03.jpg")                        # FileIdentity(pid=2, camid=1)

Names are parsed from the file name alone. What does not parse is nobody's; nothing is guessed.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple

from reid_eval.errors import ReidError
from reid_eval.files import is_image_name

SPLITS = ("train", "val", "query", "gallery", "multi-query")
LAYOUTS = (
    "market1501", "dukemtmc", "occluded-duke", "msmt17", "cuhk03np", "veri776", "viper", "prepared", "folders", "csv",
)  # fmt: skip
PREPARED_FILE = "index.json"


class DatasetError(ReidError):
    """A dataset is missing, not recognised, or cannot do what is asked of it."""


class FileIdentity(NamedTuple):
    """What a file name says."""

    pid: int
    camid: int


# Numbers of up to 18 digits, which 64 bits hold.
_CAMERA_NAME = re.compile(r"(-1|\d{1,18})_c(\d{1,18})(?:s\d+)?(?:_.*)?\.\w+", re.ASCII)
_MSMT_NAME = re.compile(r"(\d{4})_\d+_(\d{2})_\d{4}(?:morning|noon|afternoon)_\d+_\d+(?:_ex)?\.\w+", re.ASCII)
VIPER_NAME = re.compile(r"(\d{1,18})_\d+\.\w+", re.ASCII)
_PREPARED_VIPER_NAME = re.compile(r"c([ab])_(\d{1,18})_\d+\.\w+", re.ASCII)
NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def parse_name(name: str) -> FileIdentity | None:
    """Identity and camera of a file name of Market-1501, DukeMTMC-reID, CUHK03-NP, VeRi-776 or MSMT17; None for others.

    Takes the name alone, never a path, and all digits of the camera. VIPeR's own names hold no camera; prepared ones
    (`ca_001_45.bmp`, `cb_...`) do.
    """
    if match := _CAMERA_NAME.fullmatch(name) or _MSMT_NAME.fullmatch(name):
        return FileIdentity(int(match.group(1)), int(match.group(2)))
    if match := _PREPARED_VIPER_NAME.fullmatch(name):
        return FileIdentity(int(match.group(2)), "ab".index(match.group(1)) + 1)
    return None


def recognise(root: Path) -> tuple[Path, str]:
    """The dataset's folder and its layout, from what `root` holds.

    Raises:
        DatasetError: nothing known; a folder below that is known is suggested.
    """
    layout = _layout_of(root)
    if layout is not None:
        return root, layout
    below = _datasets_below(root)
    if len(below) > 1 and {child.name for child in below} <= {"labeled", "detected"}:
        raise DatasetError(f"{root}: holds both {below[0].name} and {below[1].name}; choose one of the two folders")
    if below:
        there = "there is one below" if len(below) == 1 else f"there are {len(below)} below"
        raise DatasetError(f"{root}: no dataset here, but {there}; did you mean {_few(below)}?")
    names = {entry.name for entry in os.scandir(root)}
    if packed := sorted(names & _RAW_CUHK03):
        raise DatasetError(
            f"{root}: CUHK03 as its authors pack it ({', '.join(packed)}), without a split; expected "
            "CUHK03-NP, whose folders labeled and detected hold bounding_box_train, bounding_box_test and query"
        )
    if names & {"list_query.txt", "list_gallery.txt", "mask_train_v2", "mask_test_v2"} or {"train", "test"} <= names:
        raise DatasetError(
            f"{root}: looks like MSMT17 without list_train.txt; unpack its four lists beside the folders of images"
        )
    images = sum(1 for name in names if is_image_name(name))
    mixed = next((child for child in subfolders(root) if _shows_several_people(child)), None)
    if images:
        found = f"{images} images without a folder per person or split"
    elif mixed:
        found = f"{mixed.name} holds images of several people; if it is one person, say --layout folders"
    else:
        found = "no images and no known folders"
    raise DatasetError(
        f"{root}: no known dataset layout ({found}); expected for example bounding_box_train, list_train.txt, "
        "train_all, one folder per person, or a .csv"
    )


_RAW_CUHK03 = {"cuhk-03.mat", "images_labeled", "images_detected"}
_LOOK_INTO = 500  # folders, in search of a suggestion


def _datasets_below(root: Path) -> list[Path]:
    """The datasets in the folders of `root`, or else in theirs; a plain folder per person is too little to tell."""
    level = [root]
    for _ in range(2):
        level = list(itertools.islice((child for folder in level for child in _readable(folder)), _LOOK_INTO))
        if found := [folder for folder in level if _layout_of(folder) not in (None, "folders")]:
            return found
    return []


def _readable(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if os.access(folder, os.R_OK | os.X_OK)]


def _few(paths: list[Path]) -> str:
    return " or ".join(map(str, paths[:3])) + (" or ..." if len(paths) > 3 else "")


def _layout_of(root: Path) -> str | None:
    names = {entry.name for entry in os.scandir(root)}
    if {"train_all", "gallery"} & names or {"train", "val", "query"} <= names:
        return "prepared"
    if "list_train.txt" in names:
        return "msmt17"
    if {"image_train", "image_test"} & names:
        return "veri776"
    if {"cam_a", "cam_b"} <= names:
        return "viper"
    if names & _RAW_CUHK03:
        return None
    if "query" in names or {"train", "val"} <= names:  # flat in the raw datasets, a folder per person when prepared
        folder = root / ("query" if "query" in names else "train")
        if any(_holds_images(child) for child in _readable(folder)):
            return "prepared"
    for name in ("bounding_box_train", "bounding_box_test", "query"):
        if name in names:
            return _market_kind(root / name)
    people = [child for child in _readable(root) if _holds_images(child)]
    return "folders" if people and not any(_shows_several_people(child) for child in people) else None


def _holds_images(folder: Path) -> bool:
    return any(is_image_name(entry.name) for entry in os.scandir(folder))


def _shows_several_people(folder: Path) -> bool:
    names = itertools.islice((entry.name for entry in os.scandir(folder) if is_image_name(entry.name)), 50)
    return len({found.pid for name in names if (found := parse_name(name))}) > 1


_NAMES_OF = {
    "market1501": re.compile(r"-?\d+_c\d+s\d+_", re.ASCII),
    "dukemtmc": re.compile(r"\d+_c\d+_f\d+", re.ASCII),
    "veri776": re.compile(r"\d+_c\d{3}_\d+_\d+\.", re.ASCII),
    "cuhk03np": re.compile(r"\d+_c\d+_\d+\.", re.ASCII),
    "viper": re.compile(r"c[ab]_\d+_\d+\.|0*(\d+)_c[12]_0*\1_\d+\.", re.ASCII),  # prepared: the number twice
    "msmt17": _MSMT_NAME,
}


def kind_of_name(name: str) -> str | None:
    return next((kind for kind, names in _NAMES_OF.items() if names.match(name)), None)


def _market_kind(folder: Path) -> str:
    """Which dataset of Market's family a folder's first names belong to."""
    for name in sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry.name))[:50]:
        if (kind := kind_of_name(name)) in ("market1501", "dukemtmc", "cuhk03np"):
            return kind
    return "market1501"


def subfolders(root: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
