"""Which dataset lies in a folder: judged by all that it holds, not by what it or one of its folders is called.

    recognise(Path("Market-1501-v15.09.15"), Folders())          # "market1501"
    parse_name("0002_c1s1_000451_03.jpg")                        # FileIdentity(pid=2, camid=1)

Every layout is tried. That one is taken whose own folders hold what they should, most of them: pictures with parsable
names, or a folder per person. So a backup, thumbnails or an empty folder of a telling name decide nothing. Names are
parsed from the file name alone. What does not parse is nobody's; nothing is guessed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reid_eval.errors import ReidError, reason_of
from reid_eval.files import is_image_name, is_system_folder
from reid_eval.reading import read_bytes, read_json_object, unsealed
from reid_eval.stopping import check_stop
from reid_eval.tables import portable

SPLITS = ("train", "val", "query", "gallery", "multi-query")
LAYOUTS = (
    "market1501", "dukemtmc", "occluded-duke", "msmt17", "cuhk03np", "veri776", "viper", "prepared", "folders", "csv",
)  # fmt: skip
MARKET_FOLDERS = {
    "bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery", "gt_bbox": "multi-query",
}  # fmt: skip
VERI_FOLDERS = {"image_train": "train", "image_query": "query", "image_test": "gallery"}
VIPER_FOLDERS = ("cam_a", "cam_b")
PREPARED_FOLDERS = ("train_all", "train", "val", "query", "gallery", "multi-query", "test")
MSMT_LISTS = tuple(f"list_{split}.txt" for split in ("train", "val", "query", "gallery"))
MSMT_HALVES = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
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


_NAMES_OF = {
    "market1501": re.compile(r"-?\d+_c\d+s\d+_", re.ASCII),
    "dukemtmc": re.compile(r"\d+_c\d+_f\d+", re.ASCII),
    "veri776": re.compile(r"\d+_c\d{3}_\d+_\d+\.", re.ASCII),
    "cuhk03np": re.compile(r"\d+_c\d+_\d+\.", re.ASCII),
    "viper": re.compile(r"c[ab]_\d+_\d+\.|0*(\d+)_c[12]_0*\1_\d+\.", re.ASCII),  # prepared: the number twice
    "msmt17": _MSMT_NAME,
}


def kind_of_name(name: str) -> str | None:
    """The published dataset that calls its files so; None for other names."""
    return next((kind for kind, names in _NAMES_OF.items() if names.match(name)), None)


class Listing(NamedTuple):
    """What lies in a folder: the names of its pictures, of its folders and of its other files, each sorted."""

    pictures: Sequence[str]
    folders: Sequence[str]
    others: Sequence[str]


class Folders:
    """What folders hold, each looked into once. What a system keeps for itself (`@eaDir`, `.Trash`) is not there."""

    def __init__(self) -> None:
        self._seen: dict[Path, Listing] = {}

    def look(self, folder: Path) -> Listing:
        """What lies in a folder. A folder is no picture, whatever it is called.

        Raises:
            DatasetError: it cannot be opened.
        """
        if folder not in self._seen:
            check_stop()
            try:
                self._seen[folder] = _listing(folder)
            except OSError as error:
                raise DatasetError(
                    f"{folder}: cannot be opened ({reason_of(error)}); what lies in it would be missing; give yourself "
                    "permission, or take the folder out of the dataset"
                ) from None
        return self._seen[folder]

    def peek(self, folder: Path) -> Listing:
        """The same of a folder that may be of no concern: nothing, if it cannot be opened."""
        try:
            return self.look(folder)
        except DatasetError:
            return Listing((), (), ())


def _listing(folder: Path) -> Listing:
    pictures: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    for entry in os.scandir(folder):
        if _is_folder(entry):
            if not is_system_folder(entry.name):
                folders.append(entry.name)
        else:
            (pictures if is_image_name(entry.name) else others).append(entry.name)
    return Listing(sorted(pictures), sorted(folders), sorted(others))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def holds_pictures(folders: Folders, folder: Path) -> bool:
    """Whether there are pictures in a folder or in its folders."""
    here = folders.peek(folder)
    return bool(here.pictures) or any(folders.peek(folder / name).pictures for name in here.folders)


# ---------------------------------------------------------------------------------------------------- recognition


class _Evidence(NamedTuple):
    """What speaks for a layout."""

    strength: int
    """3: says so itself; 2: cannot be by chance; 1: could be; 0: folders of its names, with nothing that fits"""
    folders: int
    """how many hold what the layout puts there"""
    layout: str


def recognise(root: Path, folders: Folders) -> str:
    """The layout of the dataset in `root`.

    Raises:
        DatasetError: nothing known; a folder below that is known is suggested.
    """
    evidence = list(_evidence(root, folders))
    if evidence:
        return _best(evidence).layout
    raise DatasetError(_what_is_there_instead(root, folders))


def refuse_other_layout(root: Path, layout: str, folders: Folders) -> None:
    """See that a layout which somebody chose does not contradict what lies there.

    Raises:
        DatasetError: something else lies there, and nothing of that layout; or the names are those of another dataset.
    """
    evidence = [found for found in _evidence(root, folders) if found.strength]
    is_market = layout in _MARKET_FAMILY
    ours = [found for found in evidence if found.layout == layout or (is_market and found.layout in _MARKET_FAMILY)]
    kind = _market_kind(root, folders) if ours and is_market else None
    if kind is not None and kind != layout and {kind, layout} != {"dukemtmc", "occluded-duke"}:
        found = kind
    elif evidence and not ours:
        found = _best(evidence).layout
    else:
        return
    raise DatasetError(
        f"{root}: holds no dataset of layout {layout}, but of {found}; leave --layout out, or say --layout {found}"
    )


_SPLIT_FOLDERS = {*MARKET_FOLDERS, *VERI_FOLDERS, *VIPER_FOLDERS, *PREPARED_FOLDERS}  # nobody is called so
_MARKET_FAMILY = ("market1501", "dukemtmc", "occluded-duke", "cuhk03np")


def _best(evidence: Iterable[_Evidence]) -> _Evidence:
    return max(evidence, key=lambda found: (found.strength, found.folders))  # of equals the first


def _evidence(root: Path, folders: Folders) -> Iterator[_Evidence]:
    here = folders.look(root)
    known = [_prepared(root, folders), _msmt17(root, folders), _flat(root, folders, "veri776", VERI_FOLDERS),
             _viper(root, folders), _flat(root, folders, "market1501", MARKET_FOLDERS)]  # fmt: skip
    yield from (found for found in known if found is not None)
    if not _RAW_CUHK03 & {*here.folders, *here.others}:
        people, mixed = 0, 0
        for name in here.folders:
            if name not in _SPLIT_FOLDERS and (pictures := folders.peek(root / name).pictures):
                is_mixed = shows_several_people(pictures)
                people, mixed = people + (not is_mixed), mixed + is_mixed
        if people > mixed:
            yield _Evidence(1, people, "folders")


def _holds(
    folders: Folders, folder: Path, parses: Callable[[str], object] = lambda name: parse_name(name)
) -> Literal["named pictures", "people", "pictures", "nothing"]:
    """What a folder holds most of: pictures whose names parse, folders of pictures, or else other pictures."""
    here = folders.look(folder)
    named = sum(bool(parses(name)) for name in here.pictures[:_LOOKED_AT])
    people = sum(bool(folders.peek(folder / name).pictures) for name in here.folders)
    if named > people:
        return "named pictures"
    if people:
        return "people"
    return "pictures" if here.pictures else "nothing"


_LOOKED_AT = 1000


def _prepared(root: Path, folders: Folders) -> _Evidence | None:
    here = folders.look(root)
    if PREPARED_FILE in here.others and read_marker(root) is not None:
        return _Evidence(3, 0, "prepared")
    there = [name for name in PREPARED_FOLDERS if name in here.folders]
    fit = [name for name in there if _holds(folders, root / name) == "people"]
    if "test" in fit and not {"query", "gallery"} & {*fit} and _is_msmt17(root, folders):
        return None  # its lists are missing
    if fit:
        return _Evidence(2 if "train_all" in fit or len(fit) > 1 else 1, len(fit), "prepared")
    if {"train_all", "gallery"} & {*there} or {"train", "val", "query"} <= {*there}:
        return _Evidence(0, 0, "prepared")
    return None


def _msmt17(root: Path, folders: Folders) -> _Evidence | None:
    here = folders.look(root)
    lists = [name for name in MSMT_LISTS if name in here.others]
    if MSMT_LISTS[0] not in lists:
        return None
    halves = sum(any(name in here.folders for name in names) for names in MSMT_HALVES.values())
    telling = sum(_lists_pictures(root / name) for name in lists)
    return _Evidence(2, telling + halves, "msmt17") if telling and halves else _Evidence(0, 0, "msmt17")


def _lists_pictures(file: Path) -> bool:
    """Whether a list begins with names that parse."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    lines = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace").splitlines()
    names = (portable(line.split()[0]).rpartition("/")[2] for line in lines if line.split())
    return any(parse_name(name) for name in names)


def _viper(root: Path, folders: Folders) -> _Evidence | None:
    if not all(name in folders.look(root).folders for name in VIPER_FOLDERS):
        return None
    fit = [name for name in VIPER_FOLDERS if _holds(folders, root / name, VIPER_NAME.fullmatch) == "named pictures"]
    return _Evidence(2 if fit else 0, len(fit), "viper")


def _flat(root: Path, folders: Folders, layout: str, splits: Iterable[str]) -> _Evidence | None:
    """Of a layout whose split folders hold the pictures themselves."""
    there = [name for name in splits if name in folders.look(root).folders]
    if not there:
        return None
    fit = [name for name in there if _holds(folders, root / name) == "named pictures"]
    if layout == "market1501":
        layout = _market_kind(root, folders) or layout
    return _Evidence(2 if {*fit} - {"query"} else 1 if fit else 0, len(fit), layout)


def _market_kind(root: Path, folders: Folders) -> str | None:
    """Which dataset of Market's family the names are of; None if they do not tell."""
    there = [name for name in MARKET_FOLDERS if name in folders.look(root).folders]
    names = (picture for name in there for picture in folders.look(root / name).pictures[:50])
    kinds = Counter(kind for name in names if (kind := kind_of_name(name)) in _MARKET_FAMILY)
    return kinds.most_common(1)[0][0] if kinds else None


def _is_msmt17(root: Path, folders: Folders) -> bool:
    """Whether train or test hold the pictures of MSMT17."""
    halves = [root / name for names in MSMT_HALVES.values() for name in names if name in folders.look(root).folders]
    people = (half / name for half in halves for name in folders.look(half).folders[:50])
    names = [name for person in people for name in folders.look(person).pictures[:5]]
    return 2 * sum(_MSMT_NAME.fullmatch(name) is not None for name in names) > len(names)


def shows_several_people(pictures: Sequence[str]) -> bool:
    """Whether no person has more than half of a folder's pictures, as far as their names parse."""
    people = Counter(found.pid for name in pictures[:_LOOKED_AT] if (found := parse_name(name)))
    return bool(people) and 2 * max(people.values()) <= people.total()


def read_marker(root: Path) -> dict[str, Any] | None:
    """What `reid-models prepare` says of a folder that it made; None if nothing does, or another program's file.

    Raises:
        DatasetError: the file is `prepare`'s, and damaged.
    """
    file = root / PREPARED_FILE
    expected = "the index.json of 'reid-models prepare'"
    try:
        content = read_bytes(file, DatasetError, expected)
    except DatasetError:
        return None
    if b'"index_fingerprint"' not in content or b'"reid_models ' not in content:
        return None
    try:
        found = read_json_object(file, DatasetError, expected)
        if "sha256" in found:  # earlier versions sealed nothing
            found = unsealed(file, DatasetError, expected)
    except DatasetError as error:
        raise DatasetError(f"{error}; prepare the dataset again in a new folder") from None
    return found


# ------------------------------------------------------------------------------------------------------- nothing


_RAW_CUHK03 = {"cuhk-03.mat", "images_labeled", "images_detected"}
_LOOK_INTO = 500  # folders, in search of a suggestion


def _what_is_there_instead(root: Path, folders: Folders) -> str:
    """What to say of a folder that is no dataset."""
    below = _datasets_below(root, folders)
    if len(below) > 1 and {child.name for child in below} <= {"labeled", "detected"}:
        return f"{root}: holds both {below[0].name} and {below[1].name}; choose one of the two folders"
    if below:
        there = "there is one below" if len(below) == 1 else f"there are {len(below)} below"
        return f"{root}: no dataset here, but {there}; did you mean {_few(below)}?"
    here = folders.look(root)
    if packed := sorted(_RAW_CUHK03 & {*here.folders, *here.others}):
        return (
            f"{root}: CUHK03 as its authors pack it ({', '.join(packed)}), without a split; expected "
            "CUHK03-NP, whose folders labeled and detected hold bounding_box_train, bounding_box_test and query"
        )
    if {*MSMT_LISTS} & {*here.others} or {"mask_train_v2", "mask_test_v2"} & {*here.folders} or (
        {"train", "test"} & {*here.folders} and _is_msmt17(root, folders)
    ):  # fmt: skip
        return f"{root}: looks like MSMT17 without list_train.txt; unpack its four lists beside the folders of images"
    mixed = next((name for name in here.folders if shows_several_people(folders.peek(root / name).pictures)), None)
    flat = [name for name in ("train", "val", "test") if folders.peek(root / name).pictures]
    if here.pictures:
        found = f"{len(here.pictures)} images without a folder per person or split"
    elif flat:
        found = f"{' and '.join(flat)} with images of anybody; expected a folder per person in it"
    elif mixed:
        found = f"{mixed} holds images of several people; if it is one person, say --layout folders"
    else:
        found = "no images and no known folders"
    tables = [root / name for name in here.others if name.lower().endswith(TABLE_SUFFIXES)]
    return (
        f"{root}: no known dataset layout ({found}); expected for example bounding_box_train, list_train.txt, "
        f"train_all, one folder per person, or a .csv{f'; did you mean {_few(tables)}?' if tables else ''}"
    )


TABLE_SUFFIXES = (".csv", ".tsv")


def _datasets_below(root: Path, folders: Folders) -> list[Path]:
    """The datasets in the folders of `root`, or else in theirs; a plain folder per person is too little to tell."""
    level = [root]
    for _ in range(2):
        below = (parent / name for parent in level for name in folders.peek(parent).folders)
        level = list(itertools.islice(below, _LOOK_INTO))
        if found := [folder for folder in level if _is_dataset(folder, folders)]:
            return found
    return []


def _is_dataset(folder: Path, folders: Folders) -> bool:
    try:
        evidence = list(_evidence(folder, folders))
    except DatasetError:
        return False
    return bool(evidence) and _best(evidence).layout != "folders"


def _few(paths: list[Path]) -> str:
    return " or ".join(map(str, paths[:3])) + (" or ..." if len(paths) > 3 else "")
