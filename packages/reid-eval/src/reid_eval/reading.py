"""Read what comes from elsewhere: regular files, whole, of bounded size; whatever goes wrong is one line.

    with reading(file, FeatureFileError, "a feature file"):        # any exception of a parser becomes FeatureFileError
        arrays = np.load(file)
    settings = read_json_object(file, RunError, "the run.json of a run")
    verify_zip("00001000.pt", CheckpointError)                     # every CRC-32 of the archive is compared

What we write as JSON and read again can be sealed: `sealed` adds a SHA-256 of the values, `unsealed` compares it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError, reason_of

MAX_TEXT_BYTES = 256 << 20
_SEAL = "sha256"


@contextmanager
def reading(
    file: Path | str, error: type[ReidError], expected: str, *, remedy: str = "restore it, or make it again"
) -> Iterator[None]:
    """Within the block any exception about `file` becomes one line of `error`; those of `ReidError` stay.

    Parsers raise whatever damaged data makes of them; a list of what they may raise is never complete.
    """
    try:
        yield
    except ReidError:
        raise
    except FileNotFoundError:
        raise error(f"{file}: no such file; expected {expected}") from None
    except Exception as raised:
        raise error(f"{file}: cannot be read ({reason_of(raised)}); expected {expected}; {remedy}") from None


def refuse_irregular(file: Path | str, error: type[ReidError], expected: str) -> int:
    """See that a file is a regular one, and give its size in bytes.

    Raises:
        error: it is missing, a folder, a pipe or a device, or may not be looked at.
    """
    with reading(file, error, expected):
        state = os.stat(file)
        if stat.S_ISDIR(state.st_mode):
            raise error(f"{file}: is a folder; expected {expected}")
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{file}: is a pipe or a device; expected {expected}")
    return state.st_size


def read_bytes(file: Path | str, error: type[ReidError], expected: str, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        error: it is missing, too large, or cannot be read.
    """
    size = refuse_irregular(file, error, expected)
    if size > limit:
        raise error(f"{file}: {size:,} bytes; expected {expected}, of at most {limit:,}")
    with reading(file, error, expected):
        return Path(file).read_bytes()


def read_text(file: Path | str, error: type[ReidError], expected: str, *, limit: int = MAX_TEXT_BYTES) -> str:
    """A text file in UTF-8 (with or without a byte order mark) or in UTF-16 with one.

    Raises:
        error: it is missing, too large, or no such text.
    """
    content = read_bytes(file, error, expected, limit=limit)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as raised:
        raise error(f"{file}: no text in UTF-8 (byte {raised.start}); expected {expected}; save it as UTF-8") from None
    if "\0" in text:
        raise error(f"{file}: holds a zero byte and is no text; expected {expected}")
    return text


def read_json(file: Path | str, error: type[ReidError], expected: str, *, limit: int = MAX_TEXT_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        error: it is missing, too large, or no JSON.
    """
    text = read_text(file, error, expected, limit=limit)
    with reading(file, error, expected):
        return json.loads(text)


def read_json_object(
    file: Path | str, error: type[ReidError], expected: str, *, limit: int = MAX_TEXT_BYTES
) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        error: it is missing, too large, no JSON, or JSON of another kind.
    """
    found = read_json(file, error, expected, limit=limit)
    if not isinstance(found, dict):
        raise error(f"{file}: holds {type(found).__name__}, not a JSON object; expected {expected}")
    return found


def verify_zip(file: Path | str, error: type[ReidError], expected: str) -> None:
    """Compare the CRC-32 of every member of a zip archive (.pt, .npz) with its content.

    Raises:
        error: a member differs, or it is no whole archive; says which.
    """
    with reading(file, error, expected), zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise error(f"{file}: damaged: the checksum of {damaged} in it does not fit; restore it from a copy")


def sealed(values: Mapping[str, Any]) -> str:
    """A JSON object with a SHA-256 of its values, which `unsealed` compares."""
    plain = json.loads(json.dumps(values))  # as it will be read: keys are texts, tuples are lists
    return json.dumps({**plain, _SEAL: seal_of(plain)}, indent=2) + "\n"


def unsealed(file: Path | str, error: type[ReidError], expected: str) -> dict[str, Any]:
    """The values of a sealed JSON object.

    Raises:
        error: the file is missing or damaged, or its values are not those that were sealed.
    """
    values = read_json_object(file, error, expected)
    digest = values.pop(_SEAL, None)
    with reading(file, error, expected):
        if digest != seal_of(values):
            raise error(f"{file}: its values are not those that were written (SHA-256); expected {expected}")
    return values


def seal_of(values: Mapping[str, Any]) -> str:
    """The SHA-256 that `sealed` writes as "sha256": for JSON that is laid out in another way, and unsealed like it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
