"""What files a stage read and wrote, by content: what has changed, is missing or has come since.

    then = Contents.of([Path("data/train_all")])
    then.change([Path("data/train_all")])          # None, or what is other: "3 files changed (0002_c1s1.jpg, ...)"

Size, times and inode are looked at first; where one of them differs, or a file was written only just before it was
looked at, its SHA-256 decides. So a copy with its old date (`cp -p`, rsync) is noticed, and a touched file is no other.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_eval.files import file_fingerprint, is_system_folder

# A file that changed so shortly before it was looked at may have changed once more within one tick of the clock.
_TICK_NS = 2_000_000_000


@dataclass(frozen=True)
class _Seen:
    """One file: its state in the file system (size, times, inode) and its SHA-256."""

    state: tuple[int, int, int, int]
    sha256: str


@dataclass(frozen=True)
class Contents:
    """Files as they were at one moment, `at_ns` by the system's clock."""

    files: Mapping[str, _Seen]
    at_ns: int

    @classmethod
    def of(cls, places: Iterable[Path], known: Contents | None = None) -> Contents:
        """All files of some places, files or folders; what `known` says of unchanged ones is not computed again.

        Raises:
            OSError: a file is missing or cannot be read.
        """
        at_ns = time.time_ns()
        seen = {}
        for path in files_of(places):
            state = _state(path)
            entry = known.files.get(path) if known is not None else None
            if known is None or entry is None or not known._is_surely(state, entry):
                entry = _Seen(state, file_fingerprint(path))
            seen[path] = entry
        return cls(seen, at_ns)

    def change(self, places: Iterable[Path] | None = None) -> str | None:
        """What is other now than it was, in words; None if nothing is.

        With `places` files that have come since count too; without, only those that were there.
        """
        now = self.files.keys() if places is None else set(files_of(places))
        missing = [path for path in self.files if path not in now or not os.path.exists(path)]
        changed = [path for path in self.files if path not in set(missing) and not self._is_same(path)]
        new = sorted(now - self.files.keys())
        said = [
            f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {what} ({os.path.basename(paths[0])}"
            f"{', ...' if len(paths) > 1 else ''})"
            for paths, what in ((changed, "changed"), (missing, "missing"), (new, "new"))
            if paths
        ]
        return ", ".join(said) or None

    def _is_same(self, path: str) -> bool:
        entry = self.files[path]
        try:
            state = _state(path)
            return self._is_surely(state, entry) or (
                state[0] == entry.state[0] and file_fingerprint(path) == entry.sha256
            )
        except OSError:
            return False

    def _is_surely(self, state: tuple[int, int, int, int], entry: _Seen) -> bool:
        return state == entry.state and max(state[1:3]) < self.at_ns - _TICK_NS

    def to_values(self, root: Path) -> dict[str, Any]:
        """Plain values for a record; files below `root` are named from there, so that it may be moved."""
        files = {_from(root, path): [*seen.state, seen.sha256] for path, seen in self.files.items()}
        return {"at_ns": self.at_ns, "files": files}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], root: Path) -> Contents:
        """Back from a record.

        Raises:
            KeyError, TypeError, ValueError: the values are not those of `to_values`.
        """
        files = {}
        for path, (*state, sha256) in values["files"].items():
            size, changed_ns, touched_ns, inode = map(int, state)
            files[os.path.join(os.path.abspath(root), path)] = _Seen((size, changed_ns, touched_ns, inode), str(sha256))
        return cls(files, int(values["at_ns"]))


def _from(root: Path, path: str) -> str:
    absolute = os.path.join(os.path.abspath(root), "")
    return path.removeprefix(absolute)


def files_of(places: Iterable[Path]) -> Iterator[str]:
    """The files of some places, absolute, in sorted order: files themselves, and those below folders.

    Links are followed. Hidden files and folders, and those a system keeps for itself, are no part of a folder.
    """
    for place in places:
        if not place.is_dir():
            yield os.path.abspath(place)
            continue
        for folder, subfolders, names in os.walk(os.path.abspath(place), followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not is_system_folder(name))
            yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))


def _state(path: str) -> tuple[int, int, int, int]:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path}: not a regular file")
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
