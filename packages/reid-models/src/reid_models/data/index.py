"""The table of images: who is in which picture, seen by which camera, in which split.

Which layout a folder has is for `data/layouts.py` to say. A name that does not parse is listed in `unparsed`; nothing
is guessed.

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
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from reid_eval.files import ImageError, fingerprint, is_image_name, list_images
from reid_models.data.layouts import (
    LAYOUTS,
    NUMBER,
    PREPARED_FILE,
    SPLITS,
    VIPER_NAME,
    DatasetError,
    FileIdentity,
    kind_of_name,
    parse_name,
    recognise,
    subfolders,
)

__all__ = ["LAYOUTS", "PREPARED_FILE", "SPLITS", "DatasetError", "DatasetIndex", "FileIdentity", "ImageRecord",
           "dataset_of_names", "parse_name"]  # fmt: skip


@dataclass(frozen=True)
class ImageRecord:
    """One picture. `pid` -1 is junk, 0 a distractor; `camid` counts from 1, -1 is unknown."""

    path: Path
    pid: int
    camid: int
    split: str


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


def dataset_of_names(index: DatasetIndex) -> str | None:
    """The published dataset whose file names these are; None for others. Tells what a prepared folder was made of."""
    kind = next((kind for record in index if (kind := kind_of_name(record.path.name))), None)
    return "occluded-duke" if kind == "dukemtmc" and _query_lies_in_gallery(index) else kind


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
            if found is None or len(parts) != 2 or not NUMBER.fullmatch(parts[1]):
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
            match = VIPER_NAME.fullmatch(entry.name)
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
        for person in subfolders(folder):
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
