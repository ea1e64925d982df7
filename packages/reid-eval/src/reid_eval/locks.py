"""One writer at a time: a lock for each run folder, output folder and output file.

    with locked("runs/teacher", "reid-models train"):
        ...                                   # a second process gets BusyError, which says who holds it and since when

A lock belongs to the process: when that ends, however it ends, the lock is free. A folder is locked by `.lock` in it, a
file by `.NAME.lock` beside it; both are gone when the work is done.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from reid_eval.errors import OutputError
from reid_eval.files import short_name

_LOOKS, _BETWEEN_LOOKS_S = 50, 0.02


class BusyError(OutputError):
    """Another process is writing there."""


@contextlib.contextmanager
def locked(target: Path | str, by: str) -> Iterator[None]:
    """Hold the lock of a folder that exists, or of a file that may not exist yet, within the block.

    `by` is the command or function that holds it, for the message of whoever comes second. A lock is not re-entrant.

    Raises:
        BusyError: another process, or another block of this one, holds it.
        OutputError: the lock cannot be made, since the folder may not be written to.
    """
    target = Path(target)
    file = _lock_file(target)
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, file)
    except Timeout:
        raise BusyError(
            f"{target}: {_holder(file) or 'another process'} is writing here; wait until it has finished, stop it, or "
            "choose another place; nothing was changed"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be locked ({error.strerror or error}); choose a place that may be written to"
        ) from None
    try:
        is_plain = not isinstance(lock, SoftFileLock)  # on file systems without locks the library keeps its own marks
        if is_plain:
            _sign(file, by)
        yield
    finally:
        if is_plain:
            with contextlib.suppress(OSError):  # on Windows an open file stays; whoever comes next takes it over
                file.unlink()
        lock.release()


def _acquire(lock: BaseFileLock, file: Path) -> None:
    """Take the lock, or wait until whoever has taken it a moment ago has signed."""
    for _ in range(_LOOKS - 1):
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            if _holder(file):
                raise
        time.sleep(_BETWEEN_LOOKS_S)
    lock.acquire(timeout=0)


def is_locked(target: Path | str) -> bool:
    """Whether somebody writes there now."""
    file = _lock_file(Path(target))
    if not file.exists():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _lock_file(target: Path) -> Path:
    return target / ".lock" if target.is_dir() else target.with_name(short_name(f".{target.name}.lock"))


def _sign(file: Path, by: str) -> None:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # the lock holds without it
        file.write_text(json.dumps({"by": by, "pid": os.getpid(), "host": socket.gethostname(), "since": since}))


def _holder(file: Path) -> str:
    """Who holds a lock, as they have written; "" where nothing can be read of it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        since = datetime.datetime.fromisoformat(found["since"]).strftime("%Y-%m-%d %H:%M:%S")
        return f"{found['by']} (process {found['pid']} on {found['host']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written yet, or may not be read
        return ""
