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
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.files import fingerprint, is_image_name

SPLITS = ("train", "val", "query", "gallery", "multi-query")
LAYOUTS = (
    "market1501", "dukemtmc", "occluded-duke", "msmt17", "cuhk03np", "veri776", "viper", "prepared", "folders", "csv",
)  # fmt: skip


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


_CAMERA_NAME = re.compile(r"(-?\d+)_c(\d+)(?:s\d+)?(?:_.*)?\.\w+", re.ASCII)
_MSMT_NAME = re.compile(r"(\d{4})_\d+_(\d{2})_\d{4}(?:morning|noon|afternoon)_\d+_\d+(?:_ex)?\.\w+", re.ASCII)
_VIPER_NAME = re.compile(r"(\d+)_\d+\.\w+", re.ASCII)


def parse_name(name: str) -> FileIdentity | None:
    """Identity and camera of a file name of Market-1501, DukeMTMC-reID, CUHK03-NP, VeRi-776 or MSMT17; None for others.

    Takes the name alone, never a path, and all digits of the camera.
    """
    match = _CAMERA_NAME.fullmatch(name) or _MSMT_NAME.fullmatch(name)
    return FileIdentity(int(match.group(1)), int(match.group(2))) if match else None


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
        return tuple(split for split in SPLITS if split in present)

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
            f"{os.path.relpath(record.path, self.root)}|{record.pid}|{record.camid}|{record.split}"
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
        if layout == "csv" or (layout == "auto" and root.suffix.lower() == ".csv"):
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
    def from_csv(cls, file: Path | str) -> DatasetIndex:
        """Read a table with the columns path, pid, camid, split; paths are relative to the table.

        Raises:
            DatasetError: no such file, a column is missing, a value is no number, a split is unknown (with its line).
        """
        file = Path(file)
        if not file.is_file():
            raise DatasetError(f"{file}: no such file; expected a CSV with the columns path,pid,camid,split")
        records = []
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            missing = {"path", "pid", "camid", "split"} - set(table.fieldnames or ())
            if missing:
                raise DatasetError(f"{file}: no column {', '.join(sorted(missing))}; expected path,pid,camid,split")
            for row in table:
                where = f"{file}, line {table.line_num}"
                split = row["split"].strip()
                if split not in SPLITS:
                    raise DatasetError(f"{where}: split {split!r}; expected one of {', '.join(SPLITS)}")
                try:
                    pid, camid = int(row["pid"]), int(row["camid"])
                except (TypeError, ValueError):
                    raise DatasetError(
                        f"{where}: pid {row['pid']!r}, camid {row['camid']!r}; expected numbers"
                    ) from None
                records.append(ImageRecord(file.parent / row["path"], pid, camid, split))
        if not records:
            raise DatasetError(f"{file}: no rows; expected one image per line")
        return cls(file.parent, "csv", _in_order(records))


def recognise(root: Path) -> tuple[Path, str]:
    """The dataset's folder and its layout, from what `root` holds.

    Raises:
        DatasetError: nothing known; a folder below that is known is suggested.
    """
    layout = _layout_of(root)
    if layout is not None:
        return root, layout
    children = [child for child in _subfolders(root) if _layout_of(child) not in (None, "folders")]
    if len(children) > 1 and {child.name for child in children} <= {"labeled", "detected"}:
        raise DatasetError(
            f"{root}: holds both {children[0].name} and {children[1].name}; choose one of the two folders"
        )
    if children:
        raise DatasetError(f"{root}: no dataset here, but there is one below; did you mean {children[0]}?")
    images = sum(1 for entry in os.scandir(root) if is_image_name(entry.name))
    found = f"{images} images without a folder per person or split" if images else "no images and no known folders"
    raise DatasetError(
        f"{root}: no known dataset layout ({found}); expected for example bounding_box_train, list_train.txt, "
        "train_all, one folder per person, or a .csv"
    )


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
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        if folder in names:
            return _market_kind(root / folder)
    people = [child for child in _subfolders(root) if any(is_image_name(entry.name) for entry in os.scandir(child))]
    return "folders" if people else None


def _market_kind(folder: Path) -> str:
    """Which dataset of Market's family a folder's first names belong to."""
    for name in sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry.name))[:50]:
        if re.match(r"-?\d+_c\d+s\d+_", name):
            return "market1501"
        if re.match(r"\d+_c\d+_f\d+", name):
            return "dukemtmc"
        if re.match(r"\d+_c\d+_\d+\.", name):
            return "cuhk03np"
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
        folder[half] = existing[0]
    records: list[ImageRecord] = []
    unparsed: list[Path] = []
    for split in ("train", "val", "query", "gallery"):
        file = root / f"list_{split}.txt"
        if not file.is_file():
            continue
        base = folder["train" if split in ("train", "val") else "test"]
        for line in file.read_text(encoding="utf-8").splitlines():
            parts = line.split()
            if not parts:
                continue
            path = base / parts[0]
            found = parse_name(path.name)
            if found is None or len(parts) != 2 or not parts[1].isdigit():
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
    records: list[ImageRecord] = []
    unparsed: list[Path] = []
    for split in ("val", "query", "gallery", "multi-query"):
        if split in folders:
            records += _read_people(folders[split], split, unparsed)
    held_out = {(record.path.parent.name, record.path.name) for record in records if record.split == "val"}
    if "train_all" in folders:
        everyone = _read_people(folders["train_all"], "train", unparsed)
        records += [record for record in everyone if (record.path.parent.name, record.path.name) not in held_out]
    elif "train" in folders:
        records += _read_people(folders["train"], "train", unparsed)
    return DatasetIndex(root, "prepared", _in_order(records), tuple(sorted(unparsed)))


def _read_folders(root: Path) -> DatasetIndex:
    """One folder per person and nothing else: everything is for training."""
    unparsed: list[Path] = []
    return DatasetIndex(root, "folders", _in_order(_read_people(root, "train", unparsed)), tuple(sorted(unparsed)))


def _read_people(folder: Path, split: str, unparsed: list[Path]) -> list[ImageRecord]:
    """The images of one folder per person. The folder says who, the file name which camera (-1 if it does not)."""
    people = _subfolders(folder)
    unparsed.extend(Path(entry.path) for entry in os.scandir(folder) if is_image_name(entry.name))
    numbers = [_person_number(person.name) for person in people]
    if any(number is None for number in numbers):  # names: numbered from 1 in sorted order
        numbers = list(range(1, len(people) + 1))
    records = []
    for person, pid in zip(people, numbers, strict=True):
        assert pid is not None
        for entry in os.scandir(person):
            if is_image_name(entry.name):
                found = parse_name(entry.name)
                records.append(ImageRecord(Path(entry.path), pid, found.camid if found else -1, split))
    return records


def _person_number(name: str) -> int | None:
    match = re.fullmatch(r"v?(-?\d+)", name, re.ASCII)
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
