"""The one reader of tables (.csv), whoever wrote them: spreadsheets, Windows programs, scripts.

    for line, row in read_table("people.csv", DatasetError, required=["path", "pid"], optional=["camid", "split"]):
        row["path"], row["pid"], row.get("camid")

UTF-8 with or without a byte order mark, or UTF-16; commas, semicolons or tabs; column names in any case and order, also
under the names that people give them (filename, person, camera); columns that are not asked for are ignored.

What we write for people to open in a spreadsheet goes through `csv_text`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.reading import read_text, reading

ALSO_CALLED: Mapping[str, Sequence[str]] = {
    "path": ("filename", "file", "file_name", "filepath", "image", "img", "image_path", "img_path", "picture"),
    "pid": ("person", "id", "identity", "person_id", "personid", "label", "who"),
    "camid": ("camera", "cam", "camera_id", "cam_id", "cameraid"),
    "split": ("set", "subset", "partition"),
}

_DELIMITERS = (",", ";", "\t")


def read_table(
    file: Path | str,
    error: type[ReidError],
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    expected: str = "",
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table as (line number, values by column), values without the spaces around them.

    Every row has all `required` columns, and those of `optional` that the table has; empty lines are skipped.

    Raises:
        error: no such file, no text, a column is missing, or a row has too many or too few values (with its line).
    """
    expected = expected or f"a table with the columns {', '.join(required)}"
    text = read_text(file, error, expected)
    header = next((line for line in text.splitlines() if line.strip()), "")
    wanted = [*required, *optional]
    # The delimiter under which the first line names most of what is looked for.
    delimiter = max(_DELIMITERS, key=lambda one: len(_columns(header.split(one), wanted)))
    with reading(file, error, expected):
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows: list[tuple[int, list[str]]] = []
        begins = 1  # the line; a quote that is left open is met at the end of the file only
        try:
            for row in table:
                if any(value.strip() for value in row):
                    rows.append((table.line_num, row))
                begins = table.line_num + 1
        except csv.Error as raised:
            raise error(f"{file}, line {begins}: {raised}; expected comma-separated values") from None
    if not rows:
        raise error(f"{file}: no rows; expected {expected}")
    names = rows[0][1]
    position = _columns(names, wanted)
    if missing := [name for name in required if name not in position]:
        found = ", ".join(name.strip() for name in names[:8]) or "none"
        raise error(f"{file}: no column {', '.join(missing)}, found {found}; expected {expected}")
    for line, row in rows[1:]:
        if len(row) != len(names):
            many = "many" if len(row) > len(names) else "few"
            raise error(f"{file}, line {line}: too {many} values ({len(row)}); expected {len(names)}, one a column")
    return [(line, {name: row[at].strip() for name, at in position.items()}) for line, row in rows[1:]]


def _columns(names: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Where each of the wanted columns stands, by its own name or else by another that people give it."""
    found = {name.strip().strip('"').lower(): at for at, name in reversed(list(enumerate(names)))}
    position = {}
    for name in wanted:
        called = next((other for other in (name, *ALSO_CALLED.get(name, ())) if other in found), None)
        if called is not None:
            position[name] = found[called]
    return position


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Lines of comma-separated values, the column names first.

    A text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a carriage return) gets a ' in
    front, which spreadsheets take for "this is text"; numbers stay as they are.
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        # With this end of a line any other end of a line within a cell is quoted.
        writer = csv.writer(line, lineterminator="\r\n")
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_RUN) else cell for cell in row])
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


_RUN = ("=", "+", "-", "@", "\t", "\r")


def portable(path: str) -> str:
    """A path in a table as every system reads it: tables are written on Windows too."""
    return path.replace("\\", "/")


def number_identities(texts: Iterable[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Identities as whole numbers (N,) int64, and the name behind each number where they were words.

    Numbers stay what they are, from -1 (junk) up. If any text is a word, or too long for 64 bits, all are names: they
    are numbered from 1 in sorted order, and only -1 keeps its meaning.
    """
    texts = list(texts)
    if all(_is_number(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64), {}
    number_of = {name: number for number, name in enumerate(sorted({*texts} - {"-1"}), start=1)}
    names = {number: name for name, number in number_of.items()}
    return np.array([number_of.get(text, -1) for text in texts], dtype=np.int64), names


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-").removeprefix("+")
    return digits.isascii() and digits.isdecimal() and len(digits) < 20 and -1 <= int(text) < 1 << 63
