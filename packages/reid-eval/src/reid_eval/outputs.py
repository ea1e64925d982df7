"""Whose output is it? What another program, another command or another person wrote is never replaced unasked.

    claim_file("curves.png", "reid-eval rank --plot", inputs=["features.npz"])     # OutputError, or it may be written
    claim_folder("runs/teacher", "run.json", is_ours=..., what="a run")

A file is known as a command's own by its content: pictures, pages and films hold the text "made by COMMAND", tables
begin with the command's columns, other kinds are recognised by who reads them. What a command reads is never replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from reid_eval.errors import OutputError

_LOOKED_AT = 1 << 16


def is_made_by(file: Path | str, maker: str) -> bool:
    """Whether a file says near its beginning or its end that this command made it."""
    signature = re.compile(re.escape(f"made by {maker}".encode()) + rb"(?![\w-]| --\w)")  # not of a longer name
    try:
        with open(file, "rb") as stream:
            start = stream.read(_LOOKED_AT)
            stream.seek(-min(_LOOKED_AT, os.fstat(stream.fileno()).st_size), os.SEEK_END)
            return any(map(signature.search, (start, stream.read(_LOOKED_AT))))
    except OSError:
        return False


def begins_with(file: Path | str, line: str) -> bool:
    """Whether a text file's first line is this one: the columns of a table."""
    wanted = f"{line}\n".encode()
    try:
        with open(file, "rb") as stream:
            return stream.read(len(wanted) + 1).replace(b"\r\n", b"\n").startswith(wanted)
    except OSError:
        return False


def claim_file(
    file: Path | str,
    maker: str,
    *,
    is_ours: Callable[[Path], bool] | None = None,
    inputs: Iterable[Path | str] = (),
    suffixes: Iterable[str] = (),
    overwrite: bool = False,
) -> Path:
    """See that a command may write a file: it is absent, or an earlier output of the same command.

    `maker` is the command, as its outputs name it. `is_ours` recognises an earlier output by its content; without it
    the file has to say "made by MAKER". `inputs` are the files and folders that the command reads: none of them, and
    no file that lies in such a folder and is not the command's own, is ever replaced. `suffixes` are those that the
    name may end in. `overwrite` allows everything else. Nothing is changed here.
    A folder above it that may not be written to is refused too, so a command that asks before its work loses none.

    Raises:
        OutputError: it may not; says why, and what to do.
    """
    file = Path(file)
    if file.is_dir():
        raise OutputError(f"{file}: is a folder; expected a file's name")
    _refuse_wrong_suffix(file, list(suffixes))
    _refuse_unwritable(file)
    if not os.path.lexists(file) or not file.exists():  # also a link that leads nowhere
        return file
    read = [Path(place) for place in inputs]
    if any(place.exists() and os.path.samefile(place, file) for place in read):
        raise OutputError(f"{file}: is read by this command, so it is no place to write to; choose another name")
    if is_ours(file) if is_ours is not None else is_made_by(file, maker):
        return file
    if inside := next((place for place in read if _lies_in(file, place)), None):
        raise OutputError(
            f"{file}: exists in {inside}, which this command reads; nothing was changed; choose another place"
        )
    if not overwrite:
        raise OutputError(
            f"{file}: exists and was not made by {maker}; nothing was changed; choose another name, or replace it "
            "with --overwrite"
        )
    return file


def _refuse_wrong_suffix(file: Path, suffixes: list[str]) -> None:
    if suffixes and file.suffix.lower() not in suffixes:
        expected = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]] if len(suffixes) > 1 else suffixes)
        raise OutputError(f"{file}: expected a name that ends in {expected}")


def _refuse_unwritable(file: Path) -> None:
    """What is above the file and exists has to be a folder that may be written to."""
    above = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(f"{file}: {above} is not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{file}: {above} may not be written to; choose another place")


def _lies_in(file: Path, folder: Path) -> bool:
    return folder.is_dir() and folder.resolve() in file.resolve().parents


def claim_folder(
    folder: Path | str, marker: str, *, what: str, is_ours: Callable[[Path], bool], inputs: Iterable[Path | str] = ()
) -> Path:
    """Make `folder` ours to write into: it is absent, empty, or its file `marker` is ours by its content.

    Hidden files count as nobody's. Nothing in the folder is ever removed. `inputs` are the files and folders that the
    command reads: none of them is a place to write into.

    Raises:
        OutputError: the folder holds files of somebody else, or is read by the same command.
    """
    folder = Path(folder)
    refuse_foreign_folder(folder, marker, what=what, is_ours=is_ours, inputs=inputs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be written ({error.strerror or error}); choose another --out") from None
    return folder


def refuse_foreign_folder(
    folder: Path | str, marker: str, *, what: str, is_ours: Callable[[Path], bool], inputs: Iterable[Path | str] = ()
) -> None:
    """What `claim_folder` checks, without making anything.

    Raises:
        OutputError: the folder holds files of somebody else, or is read by the same command.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; {what} needs a folder; choose another place")
    if not folder.is_dir():
        return
    if any(Path(place).exists() and os.path.samefile(place, folder) for place in inputs):
        raise OutputError(f"{folder}: is read by this command, so it is no place for {what}; choose another place")
    found = folder / marker
    if found.is_file() and is_ours(found):
        return
    strangers = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if strangers:
        raise OutputError(
            f"{folder}: holds {len(strangers)} other files or folders ({strangers[0]}, ...), expected an empty or "
            f"new folder for {what}; nothing was changed; choose another --out"
        )
