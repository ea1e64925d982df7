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

import difflib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reid_eval.files import ImageError, fingerprint, list_images
from reid_eval.reading import read_text, reading
from reid_eval.tables import number_identities, portable, read_table
from reid_models.data.layouts import (
    LAYOUTS,
    MARKET_FOLDERS,
    MSMT_HALVES,
    MSMT_LISTS,
    NUMBER,
    PREPARED_FILE,
    PREPARED_FOLDERS,
    SPLITS,
    TABLE_SUFFIXES,
    VERI_FOLDERS,
    VIPER_FOLDERS,
    VIPER_NAME,
    DatasetError,
    FileIdentity,
    Folders,
    holds_pictures,
    kind_of_name,
    parse_name,
    read_marker,
    recognise,
    refuse_other_layout,
    shows_several_people,
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
    """pictures whose names do not parse, or whose folder is no person's"""
    names: dict[int, str] = field(default_factory=dict, repr=False, hash=False)
    """what people are called, by their numbers, where identities were words; otherwise empty"""
    left_out: tuple[Path, ...] = field(default=(), repr=False)
    """folders with pictures that are no part of the dataset"""

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
        return DatasetIndex(self.root, self.layout, records, names=self.names)

    def subset(self, rows: Sequence[int]) -> DatasetIndex:
        """The records of some rows, in the order given."""
        return DatasetIndex(self.root, self.layout, tuple(self.records[row] for row in rows), names=self.names)

    def name_of(self, pid: int) -> str:
        """What a person is called: a name where identities were words, otherwise the number."""
        return self.names.get(pid, str(pid))

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

    @cached_property
    def has_distractors(self) -> bool:
        """Whether identity 0 in the gallery is nobody in particular, as in Market-1501.

        In MSMT17, in tables and in folders of one's own it is a person like any other, and so it is wherever a query
        shows it. In training it is a person always.
        """
        if self.layout in _NUMBERED_FROM_0:
            return False
        splits = {record.split for record in self.records if record.pid == 0}
        return "gallery" in splits and "query" not in splits

    @property
    def num_ids(self) -> int:
        """How many identities these records have."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of relative names, identities, cameras and splits: equal wherever the folder lies."""
        root = f"{self.root}{os.sep}"
        return fingerprint(
            f"{_below(root, str(record.path))}|{record.pid}|{record.camid}|{record.split}" for record in self.records
        )

    @classmethod
    def open(cls, root: Path | str, layout: str = "auto") -> DatasetIndex:
        """Read a dataset in any known layout; "auto" recognises it by its content.

        Raises:
            DatasetError: no such folder, no known layout, another one than was asked for, no image that parses.
        """
        root = Path(root)
        if layout != "auto" and layout not in LAYOUTS:
            close = difflib.get_close_matches(layout, LAYOUTS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(LAYOUTS)}"
            raise DatasetError(f"layout {layout!r} is not known; {hint}")
        is_folder = os.path.isdir(root)
        if layout == "csv" or (layout == "auto" and root.suffix.lower() in TABLE_SUFFIXES and not is_folder):
            return cls.from_csv(root)
        if not is_folder:
            found = "is a file" if os.path.lexists(root) else "no such folder"
            raise DatasetError(f"{root}: {found}; expected the folder that holds a dataset, or a .csv")
        folders = Folders()
        if layout == "auto":
            layout = recognise(root, folders)
        else:
            refuse_other_layout(root, layout, folders)
        index = _READERS[layout](root, folders)
        if not index.records:
            named = (
                f"; {len(index.unparsed)} names do not parse, e.g. {index.unparsed[0].name}" if index.unparsed else ""
            )
            raise DatasetError(f"{root}: no usable images in layout {layout}{named}; is this the right folder?")
        if layout == "dukemtmc" and _query_lies_in_gallery(index):
            index = replace(index, layout="occluded-duke")
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

        Who is seen is the folder's name, a number or a word, where it is a person's: where most names in it do not
        parse, and there are at least two such folders. Otherwise it is what the file name says, and -1 where that does
        not parse. Cameras are taken from names alone.

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
        told = [parse_name(file.name) for file in files]
        in_folder: dict[Path, list[bool]] = {}
        for file, found in zip(files, told, strict=True):
            in_folder.setdefault(file.parent, []).append(found is not None)
        persons = _folders_of_persons({place: telling for place, telling in in_folder.items() if place != folder})
        who = (
            persons.get(file.parent) or str(found.pid if found else -1) for file, found in zip(files, told, strict=True)
        )
        pids, names = number_identities(who)
        records = (
            ImageRecord(file, pid, found.camid if found else -1, "images")
            for file, pid, found in zip(files, pids.tolist(), told, strict=True)
        )
        return cls(folder, "images", tuple(records), names=names)

    @classmethod
    def from_csv(cls, file: Path | str) -> DatasetIndex:
        """Read a table with the columns path and pid, and perhaps camid and split, as `reid_eval.tables` reads them.

        Paths are relative to the table, or to the one folder beside it that holds them. Identities may be words. Where
        there is no camera, it is unknown; where there is no column split, all pictures are for training. Pictures of
        split "test" are the gallery.

        Raises:
            DatasetError: no such file, no text, a column is missing, a value is none (with its line).
        """
        file = Path(file)
        rows = read_table(file, DatasetError, required=["path", "pid"], optional=["camid", "split"], expected=_TABLE)
        if not rows:
            raise DatasetError(f"{file}: no rows; expected one image per line")
        for line, row in rows:
            for column, what in (("path", "an image file, relative to the table"), ("pid", "a number or a name")):
                if not row[column]:
                    raise DatasetError(f"{file}, line {line}: no {column}; expected {what}")
        splits = _splits_of_table(file, rows)
        pids, names = _numbers_of_table(file, rows, "pid")
        camids, _ = _numbers_of_table(file, rows, "camid")
        base = _where_pictures_lie(file.parent, [portable(row["path"]) for _, row in rows[:20]])
        records = [
            ImageRecord(base / portable(row["path"]), pid, camid, split)
            for (_, row), pid, camid, split in zip(rows, pids, camids, splits, strict=True)
        ]
        return cls(file.parent, "csv", _in_order(records), names=names)


_NUMBERED_FROM_0 = ("msmt17", "folders", "csv", "images")


def _below(root: str, path: str) -> str:
    """A path relative to a folder whose name ends in a separator, with / between its parts."""
    if path.startswith(root) and ".." not in path:  # nearly always, and much faster
        return path[len(root) :].replace(os.sep, "/")
    return os.path.relpath(path, root).replace(os.sep, "/")


_TABLE = "a table with the columns path and pid, and perhaps camid and split"
_SPLITS_ALSO_CALLED = {"training": "train", "validation": "val", "valid": "val", "test": "gallery"}


def _splits_of_table(file: Path, rows: Sequence[tuple[int, Mapping[str, str]]]) -> list[str]:
    """The split of every row; "train" where the table does not tell."""
    splits = [row.get("split", "train").lower() for _, row in rows]
    for (line, _), split in zip(rows, splits, strict=True):
        if split not in SPLITS and split not in _SPLITS_ALSO_CALLED:
            raise DatasetError(f"{file}, line {line}: split {split!r}; expected one of {', '.join(SPLITS)}")
        if split == "test" and {"query", "gallery"} & {*splits}:
            raise DatasetError(
                f"{file}, line {line}: split 'test' beside query or gallery; expected test people in query and gallery"
            )
    return [_SPLITS_ALSO_CALLED.get(split, split) for split in splits]


def _numbers_of_table(
    file: Path, rows: Sequence[tuple[int, Mapping[str, str]]], column: str
) -> tuple[list[int], dict[int, str]]:
    """A column's numbers, or words as numbers; what is empty is unknown, -1."""
    texts = [_WHOLE_NUMBER.sub(r"\1", row.get(column, "")) or "-1" for _, row in rows]
    for (line, _), text in zip(rows, texts, strict=True):
        if text.startswith("-") and text[1:].isdecimal() and int(text) != -1:
            raise DatasetError(
                f"{file}, line {line}: {column} {text}; expected a number from 0, -1 for none, or a name"
            )
    numbers, names = number_identities(texts)
    return numbers.tolist(), names


_WHOLE_NUMBER = re.compile(r"^(-?\d{1,18})\.0+$", re.ASCII)  # of programs that keep numbers with gaps as fractions


def _where_pictures_lie(folder: Path, paths: Sequence[str]) -> Path:
    """The folder that a table's paths begin in: the table's own, or else the one beside the table that has them."""
    if any(os.path.lexists(folder / path) for path in paths):
        return folder
    others = (folder / name for name in Folders().peek(folder).folders)
    beside = [other for other in others if any(os.path.lexists(other / path) for path in paths)]
    return beside[0] if len(beside) == 1 else folder


def _folders_of_persons(in_folder: Mapping[Path, Sequence[bool]]) -> dict[Path, str]:
    """The folders that say who is in their pictures, with what they say, by which names of pictures in them parse.

    A folder's name does if it is a number, or if most names in the folder say nothing. One word alone is no person's:
    it is a folder of pictures.
    """
    persons = {}
    for folder, telling in in_folder.items():
        number = _person_number(folder.name)
        if number is not None:
            persons[folder] = str(number)
        elif 2 * sum(telling) < len(telling):
            persons[folder] = folder.name
    return {} if len(in_folder) == 1 and not all(map(_is_numbered, in_folder)) else persons


def _is_numbered(folder: Path) -> bool:
    return _person_number(folder.name) is not None


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


def _market_family(layout: str, splits: Mapping[str, str]) -> Callable[[Path, Folders], DatasetIndex]:
    """A reader of flat split folders whose file names carry identity and camera."""

    def read(root: Path, folders: Folders) -> DatasetIndex:
        records: list[ImageRecord] = []
        unparsed: list[Path] = []
        there = {folder: split for folder, split in splits.items() if folder in folders.look(root).folders}
        for folder, split in there.items():
            for name in folders.look(root / folder).pictures:
                if found := parse_name(name):
                    records.append(ImageRecord(root / folder / name, found.pid, found.camid, split))
                else:
                    unparsed.append(root / folder / name)
        left_out = _left_out(folders, root, there, (root / folder for folder in there))
        return DatasetIndex(root, layout, _in_order(records), tuple(sorted(unparsed)), left_out=left_out)

    return read


def _left_out(folders: Folders, root: Path, known: Iterable[str], inside: Iterable[Path]) -> tuple[Path, ...]:
    """The folders with pictures that are no part of a dataset: in `root`, beside the known ones, and in some others."""
    others = [root / name for name in folders.look(root).folders if name not in known]
    others += [folder / name for folder in inside for name in folders.look(folder).folders]
    return tuple(sorted(folder for folder in others if holds_pictures(folders, folder)))


def _read_msmt17(root: Path, folders: Folders) -> DatasetIndex:
    """MSMT17: lists name the files; train and test number their people from 0 independently."""
    here = folders.look(root)
    folder: dict[str, Path] = {}
    for half, names in MSMT_HALVES.items():
        existing = [root / name for name in names if name in here.folders]
        if not existing:
            raise DatasetError(f"{root}: has lists but no folder {' or '.join(names)}; unpack the images beside them")
        if len(existing) > 1:
            raise DatasetError(
                f"{root}: holds {names[0]} of V1 and {names[1]} of V2; expected one release, move the other away"
            )
        folder[half] = existing[0]
    records: list[ImageRecord] = []
    unparsed: list[Path] = []
    for file in (root / name for name in MSMT_LISTS if name in here.others):
        split = file.stem.removeprefix("list_")
        base = folder["train" if split in ("train", "val") else "test"]
        for line in read_text(file, DatasetError, "a list of MSMT17").splitlines():
            parts = line.split()
            if not parts:
                continue
            path = base / portable(parts[0])
            found = parse_name(path.name)
            if found is None or len(parts) != 2 or not NUMBER.fullmatch(parts[1]):
                unparsed.append(path)
            else:
                records.append(ImageRecord(path, int(parts[1]), found.camid, split))
    left_out = _left_out(folders, root, [half.name for half in folder.values()], ())
    return DatasetIndex(root, "msmt17", _in_order(records), tuple(sorted(unparsed)), left_out=left_out)


def _read_viper(root: Path, folders: Folders) -> DatasetIndex:
    """VIPeR publishes no split: half of the people, drawn with seed 0, train; of the rest cam_a asks, cam_b answers."""
    found: list[tuple[Path, int, int]] = []
    unparsed: list[Path] = []
    there = [name for name in VIPER_FOLDERS if name in folders.look(root).folders]
    for folder in there:
        for name in folders.look(root / folder).pictures:
            if match := VIPER_NAME.fullmatch(name):
                found.append((root / folder / name, int(match.group(1)), VIPER_FOLDERS.index(folder) + 1))
            else:
                unparsed.append(root / folder / name)
    pids = sorted({pid for _, pid, _ in found})
    random.Random(0).shuffle(pids)
    training = set(pids[: len(pids) // 2])
    records = [
        ImageRecord(path, pid, camid, "train" if pid in training else ("query" if camid == 1 else "gallery"))
        for path, pid, camid in found
    ]
    left_out = _left_out(folders, root, there, (root / folder for folder in there))
    return DatasetIndex(root, "viper", _in_order(records), tuple(sorted(unparsed)), left_out=left_out)


def _read_prepared(root: Path, folders: Folders) -> DatasetIndex:
    """Folders per identity. Pictures of val lie in train_all too; where there is no gallery, test is it."""
    there = {name: root / name for name in PREPARED_FOLDERS if name in folders.look(root).folders}
    if not there:
        raise DatasetError(f"{root}: none of {', '.join(PREPARED_FOLDERS)} here; is this a prepared dataset?")
    marker = read_marker(root) or {}
    _refuse_unfinished(root, marker)
    training = "train_all" if "train_all" in there else "train"
    splits = {split: there[split] for split in SPLITS[1:] if split in there}
    if training in there:
        splits["train"] = there[training]
    if "test" in there and "gallery" not in there:
        splits["gallery"] = there["test"]
    known = {*there} - ({"test"} if "gallery" in there else set())
    index = _read_people(root, "prepared", splits, folders, known)
    records = index.records
    if training == "train_all":
        held_out = {record.path.parts[-2:] for record in records if record.split == "val"}
        records = tuple(
            record for record in records if record.split != "train" or record.path.parts[-2:] not in held_out
        )
    names = _names_in(root, marker) if marker else index.names
    return replace(index, records=records, names=names)


def _refuse_unfinished(root: Path, marker: Mapping[str, Any]) -> None:
    if marker.get("complete") is False:
        copy = " --copy" if marker.get("copies") else ""
        raise DatasetError(
            f"{root}: its preparation was cut short; finish it with "
            f"'reid-models prepare --raw {marker.get('raw')} --out {root}{copy}'"
        )


def _names_in(root: Path, marker: Mapping[str, Any]) -> dict[int, str]:
    """The names of people in the table that `prepare` keeps, if it kept any."""
    with reading(root / PREPARED_FILE, DatasetError, "the names of people by their numbers"):
        return {int(pid): str(name) for pid, name in marker.get("names", {}).items()}


def _read_folders(root: Path, folders: Folders) -> DatasetIndex:
    """One folder per person and nothing else: everything is for training."""
    return _read_people(root, "folders", {"train": root}, folders, known=folders.look(root).folders)


def _read_people(
    root: Path, layout: str, splits: Mapping[str, Path], folders: Folders, known: Iterable[str]
) -> DatasetIndex:
    """The images of one folder per person, and those that are nobody's.

    The folder says who, the file name which camera (-1 if it does not). Where most people have numbers, those without
    are nobody. Otherwise all are names, numbered from 1 in sorted order of all splits' names; a folder with pictures
    of several people, as far as their own names tell, is then nobody's, unless all are.
    """
    unparsed: list[Path] = []
    images: list[tuple[str, Path, Sequence[str]]] = []  # split, person's folder, file names
    nobody: list[Path] = []
    for split, folder in splits.items():
        here = folders.look(folder)
        unparsed.extend(folder / name for name in here.pictures)
        for person in (folder / name for name in here.folders):
            if pictures := folders.look(person).pictures:
                images.append((split, person, pictures))
            elif holds_pictures(folders, person):
                nobody.append(person)
    pids, names = _person_numbers(images)
    spelled: dict[tuple[str, int], Path] = {}
    records: list[ImageRecord] = []
    for split, person, pictures in images:
        pid = pids.get(person.name)
        if pid is None:
            unparsed.extend(person / name for name in pictures)
            continue
        if (other := spelled.setdefault((split, pid), person)) != person:
            raise DatasetError(f"{person}: the same number as {other.name}; expected one folder per person, rename one")
        for name in pictures:
            found = parse_name(name)
            records.append(ImageRecord(person / name, pid, found.camid if found else -1, split))
    nobody += _left_out(folders, root, known, (person for _, person, _ in images))
    left_out = tuple(sorted({*nobody}))
    return DatasetIndex(root, layout, _in_order(records), tuple(sorted(unparsed)), left_out=left_out, names=names)


def _person_numbers(images: Sequence[tuple[str, Path, Sequence[str]]]) -> tuple[dict[str, int], dict[int, str]]:
    """The numbers of people by their folders' names, and the names where they were words."""
    numbers = {person.name: _person_number(person.name) for _, person, _ in images}
    numbered = {name: number for name, number in numbers.items() if number is not None}
    words = numbers.keys() - {name for name, number in numbered.items() if number == -1}
    if len(words & numbered.keys()) * 2 > len(words):
        return numbered, {}
    of_several = {person.name for _, person, pictures in images if shows_several_people(pictures)}
    named = sorted(words - of_several or words)
    pids = {name: position for position, name in enumerate(named, start=1)}
    return {**pids, **{name: -1 for name, number in numbered.items() if number == -1}}, dict(enumerate(named, start=1))


def _person_number(name: str) -> int | None:
    match = re.fullmatch(r"v?(-1|\d{1,18})", name, re.ASCII)
    return int(match.group(1)) if match else None


_READERS: dict[str, Callable[[Path, Folders], DatasetIndex]] = {
    "market1501": _market_family("market1501", MARKET_FOLDERS),
    "dukemtmc": _market_family("dukemtmc", MARKET_FOLDERS),
    "occluded-duke": _market_family("occluded-duke", MARKET_FOLDERS),
    "cuhk03np": _market_family("cuhk03np", MARKET_FOLDERS),
    "veri776": _market_family("veri776", VERI_FOLDERS),
    "msmt17": _read_msmt17,
    "viper": _read_viper,
    "prepared": _read_prepared,
    "folders": _read_folders,
}
