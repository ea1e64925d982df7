"""A raw dataset as one folder per identity, under the names the field uses.

    prepare_dataset("Market-1501-v15.09.15", "data/market")

    data/market/  train_all/0002/*.jpg   train/  val/  query/  gallery/  multi-query/   index.json

`val` holds the first picture of each identity in sorted order (MSMT17: its published list), `train` the others,
`train_all` both. Pictures are links unless copies are asked for. Nothing is moved or removed; a second run adds
what is missing and changes nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import reid_models
from reid_eval.errors import OutputError
from reid_eval.files import atomic_path, claim_folder, write_text
from reid_eval.progress import track
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord

MARKER_FILE = "index.json"
MARKER_FORMAT = 1


def prepare_dataset(
    raw: Path | str, out: Path | str, *, layout: str = "auto", copy: bool = False, index: DatasetIndex | None = None
) -> DatasetIndex:
    """Lay a dataset out as one folder per identity; returns the index of the result.

    `index` saves reading `raw` again when it was read already.

    Raises:
        DatasetError: `raw` is no known dataset, lies inside `out`, or two of its pictures would get one name.
        OutputError: `out` holds other files or another dataset, or links cannot be made there.
    """
    raw, out = Path(raw), Path(out)
    index = index or DatasetIndex.open(raw, layout)
    if out.resolve() == index.root.resolve() or index.root.resolve().is_relative_to(out.resolve()):
        raise DatasetError(f"{out}: the raw dataset itself, or a folder around it; choose another --out")
    claim_folder(out, MARKER_FILE, what="a prepared dataset")
    _claim_for(out, index)
    for target, source in track(list(_targets(index)), f"preparing {out}"):
        _place(source, out / target, copy=copy)
    return DatasetIndex.from_prepared(out)


def _claim_for(out: Path, index: DatasetIndex) -> None:
    """Remember which dataset a folder holds, and refuse another one."""
    marker = out / MARKER_FILE
    wanted = {
        "format": MARKER_FORMAT,
        "made_by": f"reid_models {reid_models.__version__}",
        "raw": str(index.root.resolve()),
        "layout": index.layout,
        "index_fingerprint": index.fingerprint,
        "images": len(index),
    }
    if marker.exists():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
            same = found["format"] == MARKER_FORMAT and found["index_fingerprint"] == index.fingerprint
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"{marker}: damaged; choose another --out") from None
        if not same:
            raise OutputError(
                f"{out}: holds another dataset ({found.get('images')} images of {found.get('raw')}), not "
                f"{len(index)} images of {index.root}; choose another --out"
            )
        return
    write_text(marker, json.dumps(wanted, indent=2) + "\n")


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
            target = Path(folder, _person(record), record.path.name)
            if targets.setdefault(target, record.path) != record.path:
                raise DatasetError(f"{record.path} and {targets[target]}: two pictures of one name; rename one of them")
    return list(targets.items())


def _person(record: ImageRecord) -> str:
    return f"{record.pid:04d}" if record.pid >= 0 else str(record.pid)


def _place(source: Path, target: Path, *, copy: bool) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        with atomic_path(target) as part:
            part.write_bytes(source.read_bytes())
        return
    try:
        if target.is_symlink():  # its picture has moved
            raise OutputError(f"{target}: links to {os.readlink(target)}, which is gone; prepare into another folder")
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    except OSError as error:
        raise OutputError(f"{target}: no link can be made here ({error.strerror}); use --copy") from None
