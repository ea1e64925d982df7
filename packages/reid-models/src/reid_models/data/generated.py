"""A folder of generated pictures, as `dgnet-gen generate` writes it: a card, a manifest, what has been made, pictures.

    card, rows = read_manifest("runs/dgnet/fake/00100000")
    index = generated_index("runs/dgnet/fake/00100000")        # people are those whose appearance is shown

card.json is sealed and holds the SHA-256 of manifest.csv, so neither is taken for what it is not. A line of
pictures.csv (or of pictures.K-of-N.csv, where parts were made by themselves) is added when a picture is complete: its
row in the manifest, its size and SHA-256, and that of its parents. A picture counts as made if a line says what it
holds. Folders of version 0.1.0 have neither seal nor lines: there a picture counts if it is not empty.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError, reason_of
from reid_eval.files import file_fingerprint
from reid_eval.progress import track
from reid_eval.reading import read_bytes, read_json_object, reading, refuse_irregular, unsealed
from reid_models.data.index import DatasetIndex, ImageRecord

MANIFEST_FILE = "manifest.csv"
CARD_FILE = "card.json"
MANIFEST_FORMAT = 2
COLUMNS = (
    "file", "structure", "appearance",
    "structure_pid", "appearance_pid", "structure_camid", "appearance_camid", "camid",
)  # fmt: skip
RECORDS_HEADER = "row,bytes,sha256,parents_sha256"

_MOST_BYTES = 1 << 34
_RECORDS_NAME = re.compile(r"pictures(\.\d+-of-\d+)?\.csv")
_RECORD = re.compile(rb"(\d{1,12}),(\d{1,12}),([0-9a-f]{64}),([0-9a-f]{64})")


class ManifestError(ReidError):
    """A folder of generated pictures has no readable manifest, or lacks what it names."""


def read_card(folder: Path | str) -> dict[str, Any]:
    """How a folder's pictures were made.

    Raises:
        ManifestError: no card there, damaged, changed since it was written, or of an unknown format.
    """
    file = Path(folder) / CARD_FILE
    expected = "the card of a folder made by 'dgnet-gen generate'"
    if not file.is_file():
        raise ManifestError(f"{folder}: no {CARD_FILE}; expected a folder made by 'dgnet-gen generate'")
    card = read_json_object(file, ManifestError, expected)
    if card.get("format") != MANIFEST_FORMAT:
        found = f"format {card['format']}" if "format" in card else "no format"
        raise ManifestError(f"{file}: {found}, this version reads {MANIFEST_FORMAT}; expected {expected}")
    if is_sealed(card):
        unsealed(file, ManifestError, expected)
    wrong = [name for name, fits in _CARD.items() if name not in card or not fits(card[name])]
    if wrong:
        raise ManifestError(f"{file}: damaged: {', '.join(wrong)} missing or wrong; expected {expected}; restore it")
    return card


def is_sealed(card: Mapping[str, Any]) -> bool:
    """Whether a card was written with a seal, and its folder with lines about its pictures."""
    return "sha256" in card


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


_CARD = {
    "checkpoint": _is_text,
    "iteration": _is_count,
    "plan": _is_text,
    "seed": _is_count,
    "images": lambda value: _is_count(value) and value > 0,
    "image_hw": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
    "grouping": lambda value: value in ("appearance", "structure"),
    "image_format": lambda value: value in ("png", "jpg", "webp"),
    "quality": lambda value: value is None or (_is_count(value) and 1 <= value <= 100),
    "precision": lambda value: value in ("fp32", "bf16", "fp16"),
    "manifest_sha256": _is_text,
    "data": _is_text,
    "complete": lambda value: isinstance(value, bool),
}
"""what is read of a card, and how it has to be"""


def read_manifest(folder: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The card and the manifest's rows of a folder; identities and cameras as numbers.

    Raises:
        ManifestError: none there, damaged, changed since it was written, or of an unknown format.
    """
    card = read_card(folder)
    file = Path(folder) / MANIFEST_FILE
    if not os.path.lexists(file):
        raise ManifestError(f"{file}: not there; run the same 'dgnet-gen generate' again to finish it")
    verify_manifest(folder, card)
    expected = f"the manifest that {CARD_FILE} was written with"
    content = read_bytes(file, ManifestError, expected, limit=_MOST_BYTES)
    with reading(file, ManifestError, expected):
        # Bytes of file names that are no UTF-8 are in the text what they are in Python's paths.
        table = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True)
        if tuple(next(table, ())) != COLUMNS:
            raise ManifestError(f"{file}: expected the columns {','.join(COLUMNS)}")
        rows = [_row(file, table.line_num, values) for values in table]
    if len(rows) != card["images"]:
        raise ManifestError(f"{file}: {len(rows)} rows; expected {card['images']}, as {CARD_FILE} says")
    return card, rows


def verify_manifest(folder: Path | str, card: Mapping[str, Any]) -> None:
    """See that the manifest is the one that the card was written with.

    Raises:
        ManifestError: it is not, or cannot be read.
    """
    file = Path(folder) / MANIFEST_FILE
    expected = f"the manifest that {CARD_FILE} was written with"
    refuse_irregular(file, ManifestError, expected)
    with reading(file, ManifestError, expected):
        found = file_fingerprint(file)
    if found != card["manifest_sha256"]:
        raise ManifestError(
            f"{file}: damaged, or changed since it was written (its SHA-256 is not that in {CARD_FILE}); remove it and "
            "run the same 'dgnet-gen generate' again, which writes it anew"
        )


def _row(file: Path, line: int, values: Sequence[str]) -> dict[str, Any]:
    where = f"{file}, line {line}"
    if len(values) != len(COLUMNS):
        raise ManifestError(f"{where}: {len(values)} values; expected {len(COLUMNS)}")
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    for name in COLUMNS[3:]:
        try:
            row[name] = int(row[name])
        except ValueError:
            raise ManifestError(f"{where}: {name} {row[name]!r}; expected a whole number") from None
        if not -1 <= row[name] < 1 << 63:
            raise ManifestError(f"{where}: {name} {row[name]}; expected a number from -1 up, of 64 bits")
    name = row["file"]
    steps = re.split(r"[/\\]", name)
    if "\0" in name or ".." in steps or "" in steps or re.match(r"[A-Za-z]:", name):
        raise ManifestError(f"{where}: file {name!r} leads out of the folder; expected a picture in it")
    return row


@dataclass(frozen=True)
class MadePicture:
    """What is recorded of a picture when it is complete."""

    bytes: int
    sha256: str
    parents_sha256: str
    """of its parents' files"""

    def to_line(self, row: int) -> str:
        """The line of pictures.csv."""
        return f"{row},{self.bytes},{self.sha256},{self.parents_sha256}\n"


def records_file(part: tuple[int, int] = (1, 1)) -> str:
    """The name of the file that whoever makes a part of the pictures writes lines to."""
    return "pictures.csv" if part[1] == 1 else f"pictures.{part[0]}-of-{part[1]}.csv"


def read_records(folder: Path | str) -> dict[int, tuple[MadePicture, ...]]:
    """What has been recorded of each row's picture; a line that was cut off says nothing.

    Raises:
        ManifestError: a file of records cannot be read.
    """
    records: dict[int, tuple[MadePicture, ...]] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if _RECORDS_NAME.fullmatch(name):
            file = Path(folder, name)
            content = read_bytes(file, ManifestError, "what is recorded of generated pictures", limit=_MOST_BYTES)
            for line in content.split(b"\n"):
                if match := _RECORD.fullmatch(line):
                    made = MadePicture(int(match[2]), match[3].decode(), match[4].decode())
                    records[int(match[1])] = (*records.get(int(match[1]), ()), made)
    return records


def record_of(file: Path | str, records: Sequence[MadePicture]) -> MadePicture | str:
    """Which of its records a generated picture fits, or what is wrong with it: missing, empty, or something else."""
    if not records:
        return "is not recorded as complete"
    if (fault := _missing(file)) is not None:
        return fault
    try:
        size = os.stat(file).st_size
        if size not in {made.bytes for made in records}:
            return f"has {size:,} bytes, not the {records[-1].bytes:,} that were written"
        sha256 = file_fingerprint(file)
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    fits = (made for made in reversed(records) if made.sha256 == sha256)
    return next(fits, "holds something else than what was written")


def _missing(file: Path | str) -> str | None:
    """Why a file is no picture at all; None for one that may be."""
    try:
        state = os.stat(file)
    except FileNotFoundError:
        return "named in the manifest but not there"
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    if not stat.S_ISREG(state.st_mode):
        return "is a folder, a pipe or a device"
    return None if state.st_size else "is empty"


def refuse_faulty_pictures(folder: Path | str, card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """See that the pictures of a manifest are as they were made. All are read, so one that was replaced is found too.

    Raises:
        ManifestError: one is not; says what is wrong with it.
    """
    records = read_records(folder) if is_sealed(card) else None
    for number, row in enumerate(track(rows, "checking generated pictures")):
        file = Path(folder, row["file"])
        fault = _missing(file) if records is None else record_of(file, records.get(number, ()))
        if isinstance(fault, str):
            raise ManifestError(f"{file}: {fault}; run the same 'dgnet-gen generate' again, which makes it anew")


def generated_index(folder: Path | str) -> DatasetIndex:
    """The pictures of a finished folder, of the people whose appearance they show, in the manifest's order.

    Raises:
        ManifestError: no manifest, or the pictures are not all there yet, or one is not what was made.
    """
    folder = Path(folder)
    card, rows = read_manifest(folder)
    if not card["complete"]:
        raise ManifestError(f"{folder}: not finished; run the same 'dgnet-gen generate' again")
    refuse_faulty_pictures(folder, card, rows)
    records = [ImageRecord(folder / row["file"], row["appearance_pid"], row["camid"], "train") for row in rows]
    return DatasetIndex(folder, "generated", tuple(records))
