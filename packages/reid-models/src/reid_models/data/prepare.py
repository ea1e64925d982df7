"""A raw dataset as one folder per identity, under the names the field uses.

    prepare_dataset("Market-1501-v15.09.15", "data/market")

    data/market/  train_all/0002/*.jpg   train/  val/  query/  gallery/  multi-query/   index.json

`val` holds the first picture of each identity in sorted order (MSMT17: its published list), `train` the others,
`train_all` both. A name that does not tell the camera (VIPeR, a CSV) gets both numbers in front: `0004_c2_x.jpg`.
Pictures are links unless copies are asked for. Nothing is moved or removed; a second run adds what is missing. Until
a run has ended, `index.json` says so and the folder is not opened as a dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import reid_models
from reid_eval.errors import OutputError
from reid_eval.files import atomic_path, write_text
from reid_eval.outputs import claim_folder
from reid_eval.progress import track
from reid_models.data.index import PREPARED_FILE, SPLITS, DatasetError, DatasetIndex, ImageRecord, parse_name

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
        OutputError: `out` holds other files or another dataset, or links cannot be made there.
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
    claim_folder(out, PREPARED_FILE, what="a prepared dataset", is_ours=_is_marker)
    made = _claim_for(out, raw, index, copy=copy)
    _place_all(out, targets, copy=copy)
    if not made["complete"]:
        write_text(out / PREPARED_FILE, json.dumps({**made, "complete": True}, indent=2) + "\n")
    return DatasetIndex.from_prepared(out)


def _is_marker(file: Path) -> bool:
    """Whether a folder's index.json is of `prepare`, if perhaps damaged; not that of another program."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # `_claim_for` says that it is damaged
    return isinstance(found, dict) and "index_fingerprint" in found


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
    if first in FOLDERS or first in {path.parts[0] for path in inside}:
        raise DatasetError(f"{out}: lies in {root / first} of the raw dataset; choose another --out")


def _claim_for(out: Path, raw: Path, index: DatasetIndex, *, copy: bool) -> dict[str, object]:
    """Remember which dataset a folder holds, and refuse another one."""
    marker = out / PREPARED_FILE
    wanted: dict[str, object] = {
        "format": MARKER_FORMAT,
        "made_by": f"reid_models {reid_models.__version__}",
        "raw": str(raw.resolve()),
        "layout": index.layout,
        "copies": copy,
        "index_fingerprint": index.fingerprint,
        "images": len(index),
        "complete": False,
    }
    if marker.exists():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
            same = found["format"] == MARKER_FORMAT and found["index_fingerprint"] == index.fingerprint
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"{marker}: damaged or not made by 'reid-models prepare'; choose another --out") from None
        if not same:
            raise OutputError(
                f"{out}: holds another dataset ({found.get('images')} images of {found.get('raw')}), not "
                f"{len(index)} images of {index.root}; choose another --out"
            )
        if found.get("raw") == wanted["raw"] and found.get("complete", True):
            return {**found, "complete": True}
    write_text(marker, json.dumps(wanted, indent=2) + "\n")
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
    """The picture's own name if it tells the camera; otherwise identity and camera go in front."""
    name = record.path.name
    told = parse_name(name)
    if record.camid < 0 or (told is not None and told.camid == record.camid):
        return name
    return f"{_person(record)}_c{record.camid}_{name}"


def _place_all(out: Path, targets: list[tuple[Path, Path]], *, copy: bool) -> None:
    for folder in sorted({target.parent for target, _ in targets}):
        (out / folder).mkdir(parents=True, exist_ok=True)
    placed = _copy_all(out, targets) if copy else _link_all(out, targets)
    for _ in track(placed, f"preparing {out}", total=len(targets)):
        pass


def _copy_all(out: Path, targets: list[tuple[Path, Path]]) -> Iterator[None]:
    def place(pair: tuple[Path, Path]) -> None:
        target, source = out / pair[0], pair[1]
        if target.is_symlink() or not target.exists():
            picture = source.read_bytes()
            with atomic_path(target, follow_link=False) as part:
                part.write_bytes(picture)

    # A copy waits for the disk most of its time. Few at once, so that an interrupt has little to wait for.
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        for start in range(0, len(targets), 8 * _COPIES_AT_ONCE):
            yield from pool.map(place, targets[start : start + 8 * _COPIES_AT_ONCE])


_COPIES_AT_ONCE = 8


def _link_all(out: Path, targets: list[tuple[Path, Path]]) -> Iterator[None]:
    real = {folder: folder.resolve() for folder in {(out / target).parent for target, _ in targets}}
    for name, source in targets:
        target = out / name
        if not target.exists():
            _link(target, os.path.relpath(source.resolve(), real[target.parent]))
        yield


def _link(target: Path, to: str) -> None:
    try:
        if not target.is_symlink():
            target.symlink_to(to)
            return
        beside = target.with_name(f".{target.name}.part")  # its picture has moved
        beside.unlink(missing_ok=True)
        beside.symlink_to(to)
        beside.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: no link can be made here ({error.strerror}); use --copy") from None
