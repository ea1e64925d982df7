"""A raw dataset as one folder per identity, under the names the field uses.

    prepare_dataset("Market-1501-v15.09.15", "data/market")

    data/market/  train_all/0002/*.jpg   train/  val/  query/  gallery/  multi-query/   index.json

`val` holds the first picture of each identity in sorted order (MSMT17: its published list), `train` the others,
`train_all` both. A name that does not tell the camera (VIPeR, a CSV) gets both numbers in front: `0004_c2_x.jpg`.
Where people have names, folders have their numbers and `index.json` the names. Pictures are links unless copies are
asked for. Nothing is moved or removed; a second run adds what is missing and makes a copy again that has not the size
of its picture. Until a run has ended, `index.json` says so and the folder is not opened as a dataset.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import reid_models
from reid_eval.errors import OutputError
from reid_eval.files import atomic_path, remove_abandoned, replace_link, short_name, write_text
from reid_eval.locks import BusyError, locked
from reid_eval.outputs import claim_folder, refuse_foreign_folder
from reid_eval.progress import track
from reid_eval.reading import sealed
from reid_models.data.index import PREPARED_FILE, SPLITS, DatasetError, DatasetIndex, ImageRecord, parse_name
from reid_models.data.layouts import PREPARED_FOLDERS, read_marker

MARKER_FORMAT = 1
FOLDERS = ("train_all", *SPLITS)


def prepare_dataset(
    raw: Path | str, out: Path | str, *, layout: str = "auto", copy: bool = False, index: DatasetIndex | None = None
) -> DatasetIndex:
    """Lay a dataset out as one folder per identity; returns the index of the result.

    Links of an earlier run whose pictures have moved are mended, and become copies if those are asked for now.
    `index` saves reading `raw` again when it was read already.

    Raises:
        DatasetError: `raw` is no known dataset or lacks pictures it lists, `out` is in its way, or two of its pictures
            would get one name.
        OutputError: `out` holds other files or another dataset, somebody else is writing there, or links cannot be
            made there.
        Stopped: something asked to stop; run it again to go on.
    """
    raw, out = Path(raw), Path(out)
    index = index or DatasetIndex.open(raw, layout)
    _refuse_in_the_way(out, index)
    targets = _targets(index)
    missing = [record.path for record in index if not record.path.is_file()]
    if missing:
        raise DatasetError(
            f"{index.root}: {len(missing)} of {len(index)} pictures are not there, e.g. {missing[0]}; "
            "restore them or correct the list"
        )
    _refuse_other(out, index)
    claim_folder(out, PREPARED_FILE, what=_WHAT, is_ours=_is_marker)
    try:
        with locked(out, "reid-models prepare"):
            _refuse_other(out, index)
            made = _begin(out, raw, index, copy=copy)
            _place_all(out, targets, copy=copy)
            if not made["complete"]:
                write_text(out / PREPARED_FILE, sealed({**made, "complete": True}))
    except BusyError:
        _refuse_other(out, index)
        raise
    return DatasetIndex.from_prepared(out)


_WHAT = "a prepared dataset"


def _is_marker(file: Path) -> bool:
    return read_marker(file.parent) is not None


def _refuse_other(out: Path, index: DatasetIndex) -> None:
    """See that a folder holds nothing, or this dataset."""
    refuse_foreign_folder(out, PREPARED_FILE, what=_WHAT, is_ours=_is_marker)
    found = read_marker(out)
    if found is None:
        return
    if found.get("format") != MARKER_FORMAT:
        raise OutputError(
            f"{out / PREPARED_FILE}: format {found.get('format')}, expected {MARKER_FORMAT}; choose another --out"
        )
    if found["index_fingerprint"] != index.fingerprint:
        raise OutputError(
            f"{out}: holds another dataset ({found.get('images')} images of {found.get('raw')}), not "
            f"{len(index)} images of {index.root}, or pictures were removed or renamed there; choose another --out"
        )


def _refuse_in_the_way(out: Path, index: DatasetIndex) -> None:
    """The result may lie inside the raw folder, but not around it, not among its pictures, and not under a name that
    would make the raw folder look like a prepared one."""
    there, root = out.resolve(), index.root.resolve()
    if root.is_relative_to(there):
        raise DatasetError(f"{out}: the raw dataset itself, or a folder around it; choose another --out")
    if not there.is_relative_to(root):
        return
    first = there.relative_to(root).parts[0]
    inside = [record.path.relative_to(index.root) for record in index if record.path.is_relative_to(index.root)]
    if first in (*FOLDERS, *PREPARED_FOLDERS) or first in {path.parts[0] for path in inside}:
        raise DatasetError(f"{out}: lies in {root / first} of the raw dataset; choose another --out")


def _begin(out: Path, raw: Path, index: DatasetIndex, *, copy: bool) -> Mapping[str, Any]:
    """Remember which dataset a folder holds, before anything is put there."""
    found = read_marker(out) or {}
    wanted: dict[str, Any] = {
        "format": MARKER_FORMAT,
        "made_by": f"reid_models {reid_models.__version__}",
        "raw": str(raw.resolve()),
        "layout": index.layout,
        "copies": copy,
        "index_fingerprint": index.fingerprint,
        "images": len(index),
        "complete": False,
    }
    if index.names:
        wanted["names"] = {str(pid): name for pid, name in index.names.items()}
    is_same = all(found.get(key) == wanted.get(key) for key in ("raw", "names"))
    if is_same and found.get("complete", True) and (found.get("copies") or not copy):
        return {**found, "complete": True}
    write_text(out / PREPARED_FILE, sealed(wanted))
    return wanted


def _targets(index: DatasetIndex) -> list[tuple[Path, Path]]:
    """Every file of the result, relative to it, with the picture it shows."""
    publishes_val = any(record.split == "val" for record in index)
    held_out: set[int] = set()
    targets: dict[Path, Path] = {}
    for record in index:
        folders = [record.split]
        if record.split in ("train", "val"):
            is_first = record.pid not in held_out
            held_out.add(record.pid)
            is_val = record.split == "val" if publishes_val else is_first
            folders = ["train_all", "val" if is_val else "train"]
        for folder in folders:
            target = Path(folder, _person(record), _file_name(record))
            if targets.setdefault(target, record.path) != record.path:
                raise DatasetError(f"{record.path} and {targets[target]}: two pictures of one name; rename one of them")
    return list(targets.items())


def _person(record: ImageRecord) -> str:
    return f"{record.pid:04d}" if record.pid >= 0 else str(record.pid)


def _file_name(record: ImageRecord) -> str:
    """The picture's own name if it tells the camera; otherwise identity and camera go in front, or, of a picture whose
    camera is said to be unknown, the identity alone, so that the name does not tell."""
    name = record.path.name
    told = parse_name(name)
    if (told.camid if told is not None else -1) == record.camid:
        return name
    camera = f"c{record.camid}_" if record.camid >= 0 else ""
    return short_name(f"{_person(record)}_{camera}{name}")


def _place_all(out: Path, targets: list[tuple[Path, Path]], *, copy: bool) -> None:
    for folder in sorted({target.parent for target, _ in targets}):
        (out / folder).mkdir(parents=True, exist_ok=True)
        remove_abandoned(out / folder)
    placed = _copy_all(out, targets) if copy else _link_all(out, targets)
    for _ in track(placed, f"preparing {out}", total=len(targets)):
        pass


def _copy_all(out: Path, targets: list[tuple[Path, Path]]) -> Iterator[None]:
    def place(pair: tuple[Path, Path]) -> None:
        target, source = out / pair[0], pair[1]
        if not _is_copy(target, source):
            picture = source.read_bytes()
            with atomic_path(target, follow_link=False) as part:
                part.write_bytes(picture)

    # A copy waits for the disk most of its time. Few at once, so that an interrupt has little to wait for.
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        for start in range(0, len(targets), 8 * _COPIES_AT_ONCE):
            yield from pool.map(place, targets[start : start + 8 * _COPIES_AT_ONCE])


_COPIES_AT_ONCE = 8


def _is_copy(target: Path, source: Path) -> bool:
    """Whether a file of its own lies there, of the picture's size."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == os.stat(source).st_size


def _link_all(out: Path, targets: list[tuple[Path, Path]]) -> Iterator[None]:
    real: dict[Path, str] = {}
    between: dict[tuple[str, str], str] = {}
    for name, source in targets:
        target = out / name
        if source.is_symlink():
            source = source.resolve()
        begin, end = (
            real.get(folder) or real.setdefault(folder, os.path.realpath(folder))
            for folder in (target.parent, source.parent)
        )
        way = between.get((begin, end)) or between.setdefault((begin, end), os.path.relpath(end, begin))
        _link(target, os.path.join(way, source.name), source)
        yield


def _link(target: Path, to: str, source: Path) -> None:
    try:
        led_to = os.readlink(target)
    except FileNotFoundError:
        led_to = None
    except OSError:  # no link
        if _is_copy(target, source):
            return
        led_to = ""
    try:
        if led_to is None:
            target.symlink_to(to)
        elif led_to != to:  # its picture has moved, or it is no whole copy
            replace_link(target, to)
    except OSError as error:
        raise OutputError(f"{target}: no link can be made here ({error.strerror}); use --copy") from None
