"""A folder of generated pictures while it is made: whose it is, who works in it, and which pictures are right.

    folder = GeneratedFolder(model, plan, Path("fake"), "appearance", Writing(), Runtime(model.device))
    with folder.held((1, 1), "dgnet-gen generate"):           # BusyError where somebody else makes the same pictures
        for position in folder.faulty(0, len(plan)):
            folder.save(position, pixels_of(position))
        folder.finish()

A picture counts as made when it is what the folder's records say of it (see `reid_models.data.generated`), from parents
that are what they were. So what is missing, empty, cut off, replaced, or made of other photographs is made again, and
a process may be killed at any moment.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import dgnet_gen
from dgnet_gen.generation_plan import GenerationPlan, Grouping
from dgnet_gen.model import DGNet
from reid_eval.errors import OutputError, reason_of
from reid_eval.files import ImageError, atomic_path, file_fingerprint, read_pixels, remove_abandoned, write_text
from reid_eval.locks import BusyError, locked
from reid_eval.outputs import claim_folder, refuse_foreign_folder
from reid_eval.progress import say, track
from reid_eval.reading import sealed
from reid_models.data.generated import (
    CARD_FILE,
    COLUMNS,
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    RECORDS_HEADER,
    MadePicture,
    ManifestError,
    is_sealed,
    read_card,
    read_records,
    record_of,
    records_file,
    verify_manifest,
)
from reid_models.runtime import Runtime

CameraPolicy = Literal["structure", "appearance", "unknown"]
ImageFormat = Literal["png", "jpg", "webp"]
Levels = Literal["rounded", "truncated"]


@dataclass(frozen=True)
class Writing:
    """How pictures are written, and what is said of them."""

    image_format: ImageFormat = "png"
    quality: int = 95
    """of jpg and webp"""
    camera: CameraPolicy = "structure"
    """whose camera a picture is said to be of: background and light come with the structure"""
    levels: Levels = "rounded"
    """how numbers become grey levels; the published program cuts off what stands behind the point"""

    @property
    def suffix(self) -> str:
        """Of the files' names."""
        return f".{self.image_format}"

    def encoded(self, pixels: np.ndarray) -> bytes:
        """The bytes of a picture's file."""
        stream = io.BytesIO()
        kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[self.image_format]
        quality = {} if self.image_format == "png" else {"quality": self.quality}
        Image.fromarray(pixels).save(stream, format=kind, **quality)
        return stream.getvalue()


PLAIN = Writing()

PUBLISHED = Writing("jpg", 75, levels="truncated")
"""as the published program writes: JPEG of Pillow's own quality, colours at half the resolution"""


class Parents:
    """What the files hold that pictures are made of. Each is read once."""

    def __init__(self, plan: GenerationPlan) -> None:
        self._plan = plan
        self._content: dict[int, bytes] = {}

    def sha256_of(self, position: int) -> str:
        """Of both files of a picture, or "" where one cannot be read."""
        digest = hashlib.sha256()
        for row in self._plan.pairs[position].tolist():
            if row not in self._content:
                try:
                    self._content[row] = bytes.fromhex(file_fingerprint(self._plan.index[row].path))
                except OSError:
                    return ""
            digest.update(self._content[row])
        return digest.hexdigest()


class GeneratedFolder:
    """One output folder: its card, its manifest, its records, its pictures. `parents` may be shared by several."""

    def __init__(
        self,
        model: DGNet,
        plan: GenerationPlan,
        path: Path,
        grouping: Grouping,
        writing: Writing,
        runtime: Runtime,
        parents: Parents | None = None,
    ) -> None:
        self.model, self.plan, self.grouping, self.writing = model, plan, grouping, writing
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link is followed, also to nowhere
        self.parents = parents or Parents(plan)
        self.manifest = self.path / MANIFEST_FILE
        self.made: dict[int, MadePicture] = {}
        """what is known to be right, by position in the plan"""
        self._is_complete = False
        self._lines_to: int | None = None
        digest = hashlib.sha256()
        for line in self._manifest_lines():
            digest.update(line)
        self.card: dict[str, Any] = {
            "format": MANIFEST_FORMAT,
            "kind": "dgnet-generation",
            "checkpoint": model.checkpoint_id,
            "iteration": model.iteration,
            "plan": plan.kind,
            "seed": plan.seed,
            "images": len(plan),
            "image_hw": list(model.image_hw),
            "grouping": grouping,
            "image_format": writing.image_format,
            "quality": None if writing.image_format == "png" else writing.quality,
            "levels": writing.levels,
            "camera_policy": writing.camera,
            "precision": runtime.precision,
            "index_fingerprint": plan.index.fingerprint,
            "manifest_sha256": digest.hexdigest(),
            "data": str(plan.index.root.resolve()),
            "made_by": f"dgnet_gen {dgnet_gen.__version__}",
            "torch": str(torch.__version__),
            "device": str(model.device),
            "complete": False,
        }

    def refuse_foreign(self) -> None:
        """See that the folder may be written to; nothing is changed.

        Raises:
            OutputError: it holds other files, pictures of another plan, or a card or manifest that is damaged.
        """
        refuse_foreign_folder(self.path, CARD_FILE, what=_WHAT, is_ours=_is_card, inputs=[self.plan.index.root])
        if not (self.path / CARD_FILE).exists():
            return
        try:
            found = read_card(self.path)
            if os.path.lexists(self.manifest):
                verify_manifest(self.path, found)
        except ManifestError as error:
            raise OutputError(f"{error}; or choose another --out") from None
        differing = [
            f"{key} {found.get(key)} -> {value}"
            for key, value in self.card.items()
            if key not in _MAY_CHANGE and not self._is_same(key, found)
        ]
        if differing:
            told = [text for text in differing if not text.startswith("manifest_sha256")] or ["other pairs"]
            raise OutputError(f"{self.path}: holds pictures of another plan ({', '.join(told)}); choose another --out")

    def _is_same(self, key: str, found: dict[str, Any]) -> bool:
        if key == "checkpoint":
            return self.model.is_made_from(found[key])
        return found.get(key, _BEFORE.get(key)) == self.card[key]

    @contextmanager
    def held(self, part: tuple[int, int], by: str) -> Iterator[None]:
        """Within the block nobody else makes the pictures of `part` (k, n) in this folder.

        Parts of the same n may be made beside each other; the whole, which is part (1, 1), is made alone. The card and
        the manifest are there within the block.

        Raises:
            BusyError: somebody does.
            OutputError: the folder is not ours, or cannot be written to.
        """
        self.refuse_foreign()
        claim_folder(self.path, CARD_FILE, what=_WHAT, is_ours=_is_card)
        with ExitStack() as stack:
            with _in_turn(self.path / CARD_FILE, by):
                self.refuse_foreign()  # somebody may have come before
                self._refuse_others(part, by)
                stack.enter_context(locked(self._place_of(part), by))
                self._begin(part)
            stack.callback(self._close)
            yield

    def _place_of(self, part: tuple[int, int]) -> Path:
        """What is locked while a part is made: the folder, or a name in it that no file has."""
        return self.path if part[1] == 1 else self.path / f"part-{part[0]}-of-{part[1]}"

    def _refuse_others(self, part: tuple[int, int], by: str) -> None:
        """See that nobody makes pictures that belong to `part` too. What a killed process has left is removed."""
        places = [] if part[1] == 1 else [self.path]
        for lock in self.path.glob(".part-*-of-*.lock"):
            name = lock.name.removeprefix(".").removesuffix(".lock")
            if not name.endswith(f"-of-{part[1]}"):
                places.append(self.path / name)
        for place in places:
            with locked(place, by):
                pass

    def _begin(self, part: tuple[int, int]) -> None:
        """Write what is not there yet, and remove what a killed process left half written."""
        found = read_card(self.path) if (self.path / CARD_FILE).exists() else None
        remove_abandoned(self.path)
        for folder in {self._file(position).parent for position in range(len(self.plan))}:
            remove_abandoned(folder)
        if found is not None and not is_sealed(found):  # of version 0.1.0, which recorded nothing
            self._adopt()
        if found is not None and is_sealed(found):
            self._is_complete = found["complete"]
        else:  # first of all in a new folder, so that it is known as ours; after the records in an old one
            self._write_card(complete=False)
        if not self.manifest.exists():
            with atomic_path(self.manifest) as written, written.open("wb") as stream:
                stream.writelines(self._manifest_lines())
        self._open_records(part)

    def _open_records(self, part: tuple[int, int]) -> None:
        """Go on with the records of a part, after the last line that is whole."""
        file = self.path / records_file(part)
        try:
            self._lines_to = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            size = os.fstat(self._lines_to).st_size
            with file.open("rb") as stream:
                stream.seek(max(0, size - 4096))
                cut_off = len(stream.read().rpartition(b"\n")[2])
            os.ftruncate(self._lines_to, size - cut_off)
            if size == cut_off:
                os.write(self._lines_to, f"{RECORDS_HEADER}\n".encode())
        except OSError as error:
            raise OutputError(
                f"{file}: could not be written ({error.strerror or error}); choose another --out"
            ) from None

    def _adopt(self) -> None:
        """Record the pictures of a folder of version 0.1.0 that are whole and of the right size."""
        lines = [f"{RECORDS_HEADER}\n"]
        for position in track(range(len(self.plan)), "looking through pictures"):
            file = self._file(position)
            with suppress(ImageError, OSError):
                if read_pixels(file).shape[:2] == self.model.image_hw:
                    made = MadePicture(file.stat().st_size, file_fingerprint(file), self.parents.sha256_of(position))
                    lines.append(made.to_line(position))
        write_text(self.path / records_file(), "".join(lines))

    def _close(self) -> None:
        if self._lines_to is not None:
            os.close(self._lines_to)
            self._lines_to = None

    def faulty(self, first: int, last: int) -> list[int]:
        """The positions, from first to last - 1, whose picture is not there or not right, which is said.

        Raises:
            Stopped: within `stopping.stoppable`, something asked to stop.
        """
        faulty, told = [], ""
        records = read_records(self.path)
        for position in track(range(first, last), "checking pictures"):
            fault = self._fault(position, records.get(position, ()))
            if fault is None:
                continue
            faulty.append(position)
            if self._file(position).exists() and not told:
                told = f"{self._file(position)}: {fault}"
        if told:
            number = sum(self._file(position).exists() for position in faulty)
            say(f"{told}; so it is made again" + (f", as are {number - 1} others" if number > 1 else ""))
        if faulty and self._is_complete:
            self._write_card(complete=False)
        return faulty

    def _fault(self, position: int, records: tuple[MadePicture, ...]) -> str | None:
        """What is wrong with a picture, or None, and then it is noted as right."""
        parents = self.parents.sha256_of(position) if records else ""
        of_these = [made for made in records if made.parents_sha256 == parents]
        if records and not of_these:
            return "was made of other photographs than are there now"
        found = record_of(self._file(position), of_these)
        if isinstance(found, str):
            return found
        self.made[position] = found
        return None

    def save(self, position: int, pixels: np.ndarray) -> None:
        """Write a picture, then its record."""
        with atomic_path(self._file(position), follow_link=False) as part:
            content = self.writing.encoded(pixels)
            part.write_bytes(content)
        self._record(
            position,
            MadePicture(len(content), hashlib.sha256(content).hexdigest(), self.parents.sha256_of(position)),
        )

    def link(self, position: int, other: GeneratedFolder) -> None:
        """The picture of another folder here too: the same file where the disk can, or a copy."""
        source = other._file(position)
        with atomic_path(self._file(position), follow_link=False) as part:
            part.unlink()
            try:
                os.link(source, part)
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(source, part)
        self._record(position, other.made[position])

    def _record(self, position: int, made: MadePicture) -> None:
        assert self._lines_to is not None
        line = made.to_line(position).encode()
        try:
            written = os.write(self._lines_to, line)  # at once, so that lines of threads do not mix
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OutputError(
                f"{self.path}: could not be written ({reason_of(error)}); what was made stays; free some space "
                "and run again"
            ) from None
        self.made[position] = made

    def finish(self) -> None:
        """Say in the card that all pictures are there, if they are and are right."""
        rest = [position for position in range(len(self.plan)) if position not in self.made]
        if rest:  # parts that others make
            records = read_records(self.path)
            if not all(position in records for position in rest):
                return
            if any(self._fault(position, records[position]) for position in track(rest, "checking the other parts")):
                return
        if not self._is_complete:
            self._write_card(complete=True)

    def _write_card(self, *, complete: bool) -> None:
        write_text(self.path / CARD_FILE, sealed(self.card | {"complete": complete}))
        self._is_complete = complete

    def _file(self, position: int) -> Path:
        return self.path / self.plan.file(position, self.writing.suffix, self.grouping)

    def _manifest_lines(self) -> Iterator[bytes]:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for position in range(len(self.plan)):
            writer.writerow(manifest_row(self.plan, position, self.grouping, self.writing))
            yield stream.getvalue().encode("utf-8", "surrogateescape")  # bytes of names that are no UTF-8 stay
            stream.seek(0)
            stream.truncate()


_WHAT = "generated pictures"

_MAY_CHANGE = ("made_by", "torch", "device", "data", "complete")
"""entries of a card that do not make it another plan"""

_BEFORE = {"levels": "rounded"}
"""what was meant where a card of version 0.1.0 says nothing"""

_TURN_S = 60.0


@contextmanager
def _in_turn(file: Path, by: str) -> Iterator[None]:
    """Hold a lock that everybody needs for a moment; waits for those who have it."""
    with ExitStack() as stack:
        until = time.monotonic() + _TURN_S
        while True:
            try:
                stack.enter_context(locked(file, by))
                break
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield


def _is_card(file: Path) -> bool:
    """Whether a card.json is of generated pictures, if perhaps damaged; not that of another program."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # `read_card` says that it is damaged
    return isinstance(found, dict) and found.get("kind") == "dgnet-generation"


def manifest_row(plan: GenerationPlan, position: int, grouping: Grouping, writing: Writing) -> tuple[object, ...]:
    """A picture's values in the order of `COLUMNS`."""
    structure, appearance = (int(row) for row in plan.pairs[position])
    pose, look = plan.index[structure], plan.index[appearance]
    camid = {"structure": pose.camid, "appearance": look.camid, "unknown": -1}[writing.camera]
    return (
        plan.file(position, writing.suffix, grouping),
        plan.relative_paths[structure],
        plan.relative_paths[appearance],
        pose.pid,
        look.pid,
        pose.camid,
        look.camid,
        camid,
    )


def in_fixed_order(folders: Iterable[GeneratedFolder]) -> list[GeneratedFolder]:
    """Folders in the order in which everybody takes hold of them, so that nobody waits for each other."""
    return sorted(folders, key=lambda folder: os.path.realpath(folder.path))
