"""The table of images: who is in which picture, seen by which camera, in which split.

Layouts are recognised by what a folder holds, not by what it is called, and names are parsed from the file name
alone. A name that does not parse is listed in `unparsed`; nothing is guessed.

    index = DatasetIndex.open("Market-1501-v15.09.15")
    train = index.split("train_all")
    train[0]                       # ImageRecord(path=..., pid=2, camid=1, split="train")
    train.labels[2]                # 0, the position of pid 2 among this split's sorted pids

Identities and cameras are numbered as the dataset numbers them: cameras from 1, camera -1 where it is unknown,
identity 0 for a distractor, -1 for a junk box.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.files import ImageError, fingerprint, is_image_name, list_images

SPLITS = ("train", "val", "query", "gallery", "multi-query")
LAYOUTS = (
    "market1501", "dukemtmc", "occluded-duke", "msmt17", "cuhk03np", "veri776", "viper", "prepared", "folders", "csv",
)  # fmt: skip
PREPARED_FILE = "index.json"


class DatasetError(ReidError):
    """A dataset is missing, not recognised, or cannot do what is asked of it."""


@dataclass(frozen=True)
class ImageRecord:
    """One picture. `pid` -1 is junk, 0 a distractor; `camid` counts from 1, -1 is unknown."""

    path: Path
    pid: int
    camid: int
    split: str


class FileIdentity(NamedTuple):
    """What a file name says."""

    pid: int
    camid: int


# Numbers of up to 18 digits, which 64 bits hold.
_CAMERA_NAME = re.compile(r"(-1|\d{1,18})_c(\d{1,18})(?:s\d+)?(?:_.*)?\.\w+", re.ASCII)
_MSMT_NAME = re.compile(r"(\d{4})_\d+_(\d{2})_\d{4}(?:morning|noon|afternoon)_\d+_\d+(?:_ex)?\.\w+", re.ASCII)
_VIPER_NAME = re.compile(r"(\d{1,18})_\d+\.\w+", re.ASCII)
_PREPARED_VIPER_NAME = re.compile(r"c([ab])_(\d{1,18})_\d+\.\w+", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


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


@dataclass(frozen=True)
class DatasetIndex:
    """Image records in a fixed order (split, then relative path)."""

    root: Path
    layout: str
    records: tuple[ImageRecord, ...]
    unparsed: tuple[Path, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> ImageRecord:
        return self.records[row]

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.records)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        present = {record.split for record in self.records}
        return tuple(split for split in (*SPLITS, "images") if split in present)

    def split(self, name: str) -> DatasetIndex:
        """The records of one split; "train_all" is train and val together.

        Raises:
            DatasetError: the split has no images; those that have are named.
        """
        wanted = {"train", "val"} if name == "train_all" else {name}
        records = tuple(record for record in self.records if record.split in wanted)
        if not records:
            raise DatasetError(f"{self.root}: no images in split {name}; found {', '.join(self.splits) or 'none'}")
        return DatasetIndex(self.root, self.layout, records)

    def subset(self, rows: Sequence[int]) -> DatasetIndex:
        """The records of some rows, in the order given."""
        return DatasetIndex(self.root, self.layout, tuple(self.records[row] for row in rows))

    @cached_property
    def pids(self) -> np.ndarray:
        """(N,) int64"""
        return np.array([record.pid for record in self.records], np.int64)

    @cached_property
    def camids(self) -> np.ndarray:
        """(N,) int64"""
        return np.array([record.camid for record in self.records], np.int64)

    @property
    def paths(self) -> list[Path]:
        """The image files, in row order."""
        return [record.path for record in self.records]

    @cached_property
    def labels(self) -> dict[int, int]:
        """The identities renumbered 0, 1, ... in sorted order, for a classifier over these records."""
        return {pid: label for label, pid in enumerate(sorted({record.pid for record in self.records}))}

    @cached_property
    def label_array(self) -> np.ndarray:
        """(N,) int64, the label of every row."""
        return np.array([self.labels[record.pid] for record in self.records], np.int64)

    @property
    def num_ids(self) -> int:
        """How many identities these records have."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of relative names, identities, cameras and splits: equal wherever the folder lies."""
        return fingerprint(
            f"{os.path.relpath(record.path, self.root).replace(os.sep, '/')}|{record.pid}|{record.camid}|{record.split}"
            for record in self.records
        )

    @classmethod
    def open(cls, root: Path | str, layout: str = "auto") -> DatasetIndex:
        """Read a dataset in any known layout; "auto" recognises it by its content.

        Raises:
            DatasetError: no such folder, no known layout, no image that parses.
        """
        root = Path(root)
        if layout != "auto" and layout not in LAYOUTS:
            close = difflib.get_close_matches(layout, LAYOUTS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(LAYOUTS)}"
            raise DatasetError(f"layout {layout!r} is not known; {hint}")
        if layout == "csv" or (layout == "auto" and root.suffix.lower() == ".csv" and not root.is_dir()):
            return cls.from_csv(root)
        if not root.exists():
            raise DatasetError(f"{root}: no such folder; expected the folder that holds a dataset")
        if not root.is_dir():
            raise DatasetError(f"{root}: is a file; expected the folder that holds a dataset, or a .csv")
        if layout == "auto":
            root, layout = recognise(root)
        index = _READERS[layout](root)
        if not index.records:
            named = (
                f"; {len(index.unparsed)} names do not parse, e.g. {index.unparsed[0].name}" if index.unparsed else ""
            )
            raise DatasetError(f"{root}: no usable images in layout {layout}{named}; is this the right folder?")
        if layout == "dukemtmc" and _query_lies_in_gallery(index):
            index = DatasetIndex(index.root, "occluded-duke", index.records, index.unparsed)
        return index

    @classmethod
    def from_raw(cls, root: Path | str, layout: str = "auto") -> DatasetIndex:
        """Read a dataset as it was unpacked; the same as `open`."""
        return cls.open(root, layout)

    @classmethod
    def from_prepared(cls, root: Path | str) -> DatasetIndex:
        """Read a folder-per-identity dataset (`train_all train val query gallery multi-query`)."""
        return cls.open(root, "prepared")

    @classmethod
    def from_images(cls, folder: Path | str) -> DatasetIndex:
        """All pictures of a folder and those below it as one split, "images", whatever they are called.

        Who is seen is taken from names that parse, and is -1 for all others.

        Raises:
            DatasetError: no such folder, or no picture in it.
        """
        folder = Path(folder)
        try:
            files = list_images(folder)
        except ImageError as error:
            raise DatasetError(str(error)) from None
        if not files:
            raise DatasetError(f"{folder}: no images here or below")
        named = [parse_name(file.name) or FileIdentity(-1, -1) for file in files]
        records = (ImageRecord(file, *who, "images") for file, who in zip(files, named, strict=True))
        return cls(folder, "images", tuple(records))

    @classmethod
    def from_csv(cls, file: Path | str) -> DatasetIndex:
        """Read a table with the columns path, pid, camid, split; paths are relative to the table, with / or \\.

        Raises:
            DatasetError: no such file, no text, a column is missing, a value is no number, a split is unknown (with
                its line).
        """
        file = Path(file)
        if not file.is_file():
            raise DatasetError(f"{file}: no such file; expected a CSV with the columns path,pid,camid,split")
        table = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
        try:
            missing = {"path", "pid", "camid", "split"} - set(table.fieldnames or ())
            if missing:
                raise DatasetError(
                    f"{file}: no column {', '.join(sorted(missing))}; expected path,pid,camid,split in the first line"
                )
            records = [_table_record(file, table.line_num, row) for row in table]
        except csv.Error as error:
            line = table.line_num + 1  # where the row begins; an open quote is met at the end of the file only
            raise DatasetError(f"{file}, line {line}: {error}; expected comma-separated values") from None
        if not records:
            raise DatasetError(f"{file}: no rows; expected one image per line")
        return cls(file.parent, "csv", _in_order(records))


def _table_record(file: Path, line: int, row: Mapping[str | None, str | None]) -> ImageRecord:
    where = f"{file}, line {line}"
    if None in row or None in row.values():
        raise DatasetError(f"{where}: too {'many' if None in row else 'few'} values; expected one for each column")
    path, pid, camid, split = (str(row[column]).strip() for column in ("path", "pid", "camid", "split"))
    if not path:
        raise DatasetError(f"{where}: no path; expected an image file, relative to the table")
    if split not in SPLITS:
        raise DatasetError(f"{where}: split {split!r}; expected one of {', '.join(SPLITS)}")
    try:
        numbers = int(pid), int(camid)
    except ValueError:
        raise DatasetError(f"{where}: pid {pid!r}, camid {camid!r}; expected numbers") from None
    if min(numbers) < -1 or max(numbers) >= 1 << 63:
        raise DatasetError(f"{where}: pid {pid}, camid {camid}; expected numbers from 0, or -1 (junk, unknown camera)")
    return ImageRecord(file.parent / _portable(path), *numbers, split)


def _read_text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: no text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise DatasetError(f"{file}: holds a zero byte and is no text; save it as UTF-8")
    return text


def _portable(path: str) -> str:
    """A listed path as every system reads it: lists are written on Windows too."""
    return path.replace("\\", "/")


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
    mixed = next((child for child in _subfolders(root) if _shows_several_people(child)), None)
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
    return [folder for folder in _subfolders(root) if os.access(folder, os.R_OK | os.X_OK)]


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


def dataset_of_names(index: DatasetIndex) -> str | None:
    """The published dataset whose file names these are; None for others. Tells what a prepared folder was made of."""
    kind = next((kind for record in index if (kind := _kind_of_name(record.path.name))), None)
    return "occluded-duke" if kind == "dukemtmc" and _query_lies_in_gallery(index) else kind


def _kind_of_name(name: str) -> str | None:
    return next((kind for kind, names in _NAMES_OF.items() if names.match(name)), None)


def _market_kind(folder: Path) -> str:
    """Which dataset of Market's family a folder's first names belong to."""
    for name in sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry.name))[:50]:
        if (kind := _kind_of_name(name)) in ("market1501", "dukemtmc", "cuhk03np"):
            return kind
    return "market1501"


def _subfolders(root: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _in_order(records: list[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=lambda record: (SPLITS.index(record.split), record.path.parts)))


def _query_lies_in_gallery(index: DatasetIndex) -> bool:
    names: dict[str, set[str]] = {"query": set(), "gallery": set()}
    for record in index.records:
        if record.split in names:
            names[record.split].add(record.path.name)
    return bool(names["query"] & names["gallery"])


def _market_family(layout: str, folders: dict[str, str]) -> Callable[[Path], DatasetIndex]:
    """A reader of flat split folders whose file names carry identity and camera."""

    def read(root: Path) -> DatasetIndex:
        records: list[ImageRecord] = []
        unparsed: list[Path] = []
        for folder, split in folders.items():
            if not (root / folder).is_dir():
                continue
            for entry in os.scandir(root / folder):
                if not is_image_name(entry.name):
                    continue
                found = parse_name(entry.name)
                if found is None:
                    unparsed.append(Path(entry.path))
                else:
                    records.append(ImageRecord(Path(entry.path), found.pid, found.camid, split))
        return DatasetIndex(root, layout, _in_order(records), tuple(sorted(unparsed)))

    return read


def _read_msmt17(root: Path) -> DatasetIndex:
    """MSMT17: lists name the files; train and test number their people from 0 independently."""
    halves = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
    folder: dict[str, Path] = {}
    for half, names in halves.items():
        existing = [root / name for name in names if (root / name).is_dir()]
        if not existing:
            raise DatasetError(f"{root}: has lists but no folder {' or '.join(names)}; unpack the images beside them")
        if len(existing) > 1:
            raise DatasetError(
                f"{root}: holds {names[0]} of V1 and {names[1]} of V2; expected one release, move the other away"
            )
        folder[half] = existing[0]
    records: list[ImageRecord] = []
    unparsed: list[Path] = []
    for split in ("train", "val", "query", "gallery"):
        file = root / f"list_{split}.txt"
        if not file.is_file():
            continue
        base = folder["train" if split in ("train", "val") else "test"]
        for line in _read_text(file).splitlines():
            parts = line.split()
            if not parts:
                continue
            path = base / _portable(parts[0])
            found = parse_name(path.name)
            if found is None or len(parts) != 2 or not _NUMBER.fullmatch(parts[1]):
                unparsed.append(path)
            else:
                records.append(ImageRecord(path, int(parts[1]), found.camid, split))
    return DatasetIndex(root, "msmt17", _in_order(records), tuple(sorted(unparsed)))


def _read_viper(root: Path) -> DatasetIndex:
    """VIPeR publishes no split: half of the people, drawn with seed 0, train; of the rest cam_a asks, cam_b answers."""
    found: list[tuple[Path, int, int]] = []
    unparsed: list[Path] = []
    for camid, folder in enumerate(("cam_a", "cam_b"), start=1):
        for entry in os.scandir(root / folder):
            if not is_image_name(entry.name):
                continue
            match = _VIPER_NAME.fullmatch(entry.name)
            if match:
                found.append((Path(entry.path), int(match.group(1)), camid))
            else:
                unparsed.append(Path(entry.path))
    pids = sorted({pid for _, pid, _ in found})
    random.Random(0).shuffle(pids)
    training = set(pids[: len(pids) // 2])
    records = [
        ImageRecord(path, pid, camid, "train" if pid in training else ("query" if camid == 1 else "gallery"))
        for path, pid, camid in found
    ]
    return DatasetIndex(root, "viper", _in_order(records), tuple(sorted(unparsed)))


def _read_prepared(root: Path) -> DatasetIndex:
    """Folders per identity. Images of val are those of train_all that lie in val/ too."""
    folders = {name: root / name for name in ("train_all", "train", *SPLITS[1:]) if (root / name).is_dir()}
    if not folders:
        raise DatasetError(f"{root}: none of train_all, train, val, query, gallery here; is this a prepared dataset?")
    _refuse_unfinished(root)
    training = "train_all" if "train_all" in folders else "train"
    splits = {split: folders[split] for split in SPLITS[1:] if split in folders}
    if training in folders:
        splits["train"] = folders[training]
    records, unparsed = _read_people(splits)
    if training == "train_all":
        held_out = {record.path.parts[-2:] for record in records if record.split == "val"}
        records = [record for record in records if record.split != "train" or record.path.parts[-2:] not in held_out]
    return DatasetIndex(root, "prepared", _in_order(records), tuple(sorted(unparsed)))


def _refuse_unfinished(root: Path) -> None:
    try:
        made = json.loads((root / PREPARED_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # prepared by others
        return
    if isinstance(made, dict) and made.get("complete") is False:
        copy = " --copy" if made.get("copies") else ""
        raise DatasetError(
            f"{root}: its preparation was cut short; finish it with "
            f"'reid-models prepare --raw {made.get('raw')} --out {root}{copy}'"
        )


def _read_folders(root: Path) -> DatasetIndex:
    """One folder per person and nothing else: everything is for training."""
    records, unparsed = _read_people({"train": root})
    return DatasetIndex(root, "folders", _in_order(records), tuple(sorted(unparsed)))


def _read_people(splits: Mapping[str, Path]) -> tuple[list[ImageRecord], list[Path]]:
    """The images of one folder per person, and those that are nobody's.

    The folder says who, the file name which camera (-1 if it does not). People without a number are numbered from 1,
    in sorted order of all splits' names; where some have numbers, the others are nobody.
    """
    unparsed: list[Path] = []
    images: list[tuple[str, Path, list[str]]] = []  # split, person's folder, file names
    for split, folder in splits.items():
        unparsed.extend(Path(entry.path) for entry in os.scandir(folder) if is_image_name(entry.name))
        for person in _subfolders(folder):
            if names := [entry.name for entry in os.scandir(person) if is_image_name(entry.name)]:
                images.append((split, person, names))
    pids = _person_numbers(person.name for _, person, _ in images)
    spelled: dict[tuple[str, int], Path] = {}
    records: list[ImageRecord] = []
    for split, person, names in images:
        pid = pids.get(person.name)
        if pid is None:
            unparsed.extend(person / name for name in names)
            continue
        if (other := spelled.setdefault((split, pid), person)) != person:
            raise DatasetError(f"{person}: the same number as {other.name}; expected one folder per person, rename one")
        for name in names:
            found = parse_name(name)
            records.append(ImageRecord(person / name, pid, found.camid if found else -1, split))
    return records, unparsed


def _person_numbers(names: Iterable[str]) -> dict[str, int]:
    numbers = {name: _person_number(name) for name in names}
    if all(number is None for number in numbers.values()):
        return {name: position for position, name in enumerate(sorted(numbers), start=1)}
    return {name: number for name, number in numbers.items() if number is not None}


def _person_number(name: str) -> int | None:
    match = re.fullmatch(r"v?(-1|\d{1,18})", name, re.ASCII)
    return int(match.group(1)) if match else None


_MARKET_FOLDERS = {
    "bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery", "gt_bbox": "multi-query",
}  # fmt: skip
_READERS: dict[str, Callable[[Path], DatasetIndex]] = {
    "market1501": _market_family("market1501", _MARKET_FOLDERS),
    "dukemtmc": _market_family("dukemtmc", _MARKET_FOLDERS),
    "occluded-duke": _market_family("occluded-duke", _MARKET_FOLDERS),
    "cuhk03np": _market_family("cuhk03np", _MARKET_FOLDERS),
    "veri776": _market_family(
        "veri776", {"image_train": "train", "image_query": "query", "image_test": "gallery"}
    ),
    "msmt17": _read_msmt17,
    "viper": _read_viper,
    "prepared": _read_prepared,
    "folders": _read_folders,
}  # fmt: skip
