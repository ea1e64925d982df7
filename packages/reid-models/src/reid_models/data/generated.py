"""A folder of generated pictures, as `dgnet-gen generate` writes it: a card, a manifest, one folder per identity.

card, rows = read_manifest("runs/dgnet/fake/00100000")
index = generated_index("runs/dgnet/fake/00100000")        # people are those whose appearance is shown
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError
from reid_models.data.index import DatasetIndex, ImageRecord

MANIFEST_FILE = "manifest.csv"
CARD_FILE = "card.json"
MANIFEST_FORMAT = 2
COLUMNS = (
    "file", "structure", "appearance",
    "structure_pid", "appearance_pid", "structure_camid", "appearance_camid", "camid",
)  # fmt: skip


class ManifestError(ReidError):
    """A folder of generated pictures has no readable manifest, or lacks what it names."""


def read_card(folder: Path | str) -> dict[str, Any]:
    """How a folder's pictures were made.

    Raises:
        ManifestError: no card there, damaged, or of an unknown format.
    """
    file = Path(folder) / CARD_FILE
    if not file.is_file():
        raise ManifestError(f"{folder}: no {CARD_FILE}; expected a folder made by 'dgnet-gen generate'")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        found = card["format"]
    except (ValueError, KeyError, TypeError):
        raise ManifestError(f"{file}: damaged; generate again into a new folder") from None
    if found != MANIFEST_FORMAT:
        raise ManifestError(f"{file}: format {found}, this version reads {MANIFEST_FORMAT}")
    return card


def read_manifest(folder: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The card and the manifest's rows of a folder; identities and cameras as numbers.

    Raises:
        ManifestError: none there, damaged, or of an unknown format.
    """
    card = read_card(folder)
    file = Path(folder) / MANIFEST_FILE
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise ValueError
            rows: list[dict[str, Any]] = [
                {name: int(value) if name.endswith(("pid", "camid")) else value for name, value in row.items()}
                for row in table
            ]
    except FileNotFoundError:
        raise ManifestError(f"{file}: not there; run 'dgnet-gen generate' again to finish it") from None
    except (ValueError, TypeError, csv.Error):
        raise ManifestError(f"{file}: damaged; run the same 'dgnet-gen generate' again to write it anew") from None
    return card, rows


def generated_index(folder: Path | str) -> DatasetIndex:
    """The pictures of a finished folder, of the people whose appearance they show, in the manifest's order.

    Raises:
        ManifestError: no manifest, or the pictures are not all there yet.
    """
    folder = Path(folder)
    card, rows = read_manifest(folder)
    if not card.get("complete"):
        raise ManifestError(f"{folder}: not finished; run the same 'dgnet-gen generate' again")
    records = [ImageRecord(folder / row["file"], row["appearance_pid"], row["camid"], "train") for row in rows]
    if missing := next((record.path for record in records if not record.path.is_file()), None):
        raise ManifestError(f"{missing}: named in the manifest but not there; run 'dgnet-gen generate' again")
    return DatasetIndex(folder, "generated", tuple(records))
