"""Read many pictures once for several measures at the same time, decoding ahead of the networks.

A measure says which pictures it needs together: one for a feature vector, two for a similarity. Each picture is decoded
once, kept until all groups that it belongs to are complete, and forgotten. Where pictures are so large that those kept
would take much memory, fewer are decoded ahead, batches are smaller, and a picture that has to wait is decoded again.

    features = FeaturesOf(paths, extractor)
    alike = PairValues(pairs, ssim_of_batch)
    reading = read_once([features, alike])
    features.vectors, alike.values, reading.unreadable
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from reid_eval.errors import ReidError
from reid_eval.extractors import Extractor
from reid_eval.files import ImageError, Picture, max_pixels, read_picture
from reid_eval.progress import progress
from reid_eval.resizing import rows_by_shape
from reid_eval.stopping import check_stop

logger = logging.getLogger(__name__)

_AHEAD_PER_WORKER = 16
# Pictures of people come nowhere near these; they bound what pictures of any size take.
_PIXELS_AHEAD = 1 << 24
_BATCH_BYTES = 32 << 20
_HELD_BYTES = 256 << 20

# Pictures of one size, first and second of each pair, to a value per pair.
PairMeasure = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]


class Measure(Protocol):
    """Something that is computed from groups of pictures."""

    batch_size: int
    """how many groups at a time"""

    @property
    def groups(self) -> Sequence[tuple[Path, ...]]:
        """The pictures that are needed together."""

    def take(self, numbers: list[int], pictures: list[tuple[np.ndarray, ...]]) -> None:
        """Pixels of the groups of these numbers."""


class MeasureError(ReidError):
    """A measure gave what is no number."""


class FeaturesOf:
    """A feature vector per picture; those that are known already need no pixels."""

    def __init__(self, paths: Sequence[Path], extractor: Extractor, *, batch_size: int = 50) -> None:
        self.paths, self.extractor, self.batch_size = paths, extractor, batch_size
        self._rows = np.arange(len(paths))
        """which picture each group is"""
        self._vectors: np.ndarray | None = None
        self._is_there = np.zeros(len(paths), bool)

    @property
    def groups(self) -> Sequence[tuple[Path, ...]]:
        """The pictures whose vectors are not known yet, each by itself."""
        return [(self.paths[row],) for row in self._rows.tolist()]

    def know(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Take vectors that were made earlier; before the pictures are read."""
        self._put(rows, vectors)
        self._rows = np.flatnonzero(~self._is_there)

    def take(self, numbers: list[int], pictures: list[tuple[np.ndarray, ...]]) -> None:
        """Pixels of single pictures."""
        self._put(self._rows[numbers], self.extractor([pixels for (pixels,) in pictures]))

    def _put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        if self._vectors is None:
            self._vectors = np.empty((len(self.paths), vectors.shape[1]), vectors.dtype)
        self._vectors[rows] = vectors
        self._is_there[rows] = True

    @property
    def rows(self) -> np.ndarray:
        """Which of the pictures have their vectors."""
        return np.flatnonzero(self._is_there)

    @property
    def vectors(self) -> np.ndarray:
        """(N, D) of the pictures that could be read, in the order of `paths`."""
        if self._vectors is None:
            return np.empty((0, self.extractor.num_features), np.float32)
        return self._vectors if self._is_there.all() else self._vectors[self._is_there]

    @property
    def read_paths(self) -> list[Path]:
        """The pictures that could be read."""
        return [path for path, is_there in zip(self.paths, self._is_there, strict=True) if is_there]


class PairValues:
    """A value per pair of pictures; NaN where one of them could not be read.

    With `resize_second` the second picture of a pair of different sizes is resized to the first (bicubic) and counted
    in `num_resized`; without, such a pair is an error that names both.
    """

    batch_size = 32

    def __init__(self, pairs: Sequence[tuple[Path, Path]], measure: PairMeasure, *, resize_second: bool) -> None:
        self.groups, self._measure, self._resize_second = pairs, measure, resize_second
        self.values = np.full(len(pairs), np.nan)
        self.num_resized = 0

    def take(self, numbers: list[int], pictures: list[tuple[np.ndarray, ...]]) -> None:
        """Pixels of pairs."""
        firsts, seconds = [first for first, _ in pictures], [second for _, second in pictures]
        if self._resize_second:
            is_other = [first.shape != second.shape for first, second in pictures]
            self.num_resized += sum(is_other)
            seconds = [
                resized_like(second, first) if other else second
                for first, second, other in zip(firsts, seconds, is_other, strict=True)
            ]
        for rows in rows_by_shape(firsts):
            try:
                values = self._measure([firsts[row] for row in rows], [seconds[row] for row in rows])
            except ReidError:
                self._name_the_pair([numbers[row] for row in rows], firsts, seconds, rows)
                raise
            if np.isnan(values).any():  # which stands for a pair that could not be read
                first, second = self.groups[numbers[rows[int(np.isnan(values).argmax())]]]
                raise MeasureError(f"{first} and {second}: measured as what is no number; are the weights damaged?")
            self.values[[numbers[row] for row in rows]] = values

    def _name_the_pair(
        self, numbers: list[int], firsts: list[np.ndarray], seconds: list[np.ndarray], rows: list[int]
    ) -> None:
        """Raise the error of the first pair of a batch that has one, with its files."""
        for number, row in zip(numbers, rows, strict=True):
            try:
                self._measure([firsts[row]], [seconds[row]])
            except ReidError as error:
                first, second = self.groups[number]
                raise type(error)(f"{first} and {second}: {error}") from None


def resized_like(pixels: np.ndarray, example: np.ndarray) -> np.ndarray:
    """Pixels at the height and width of others, bicubic."""
    height, width = example.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


class Met(NamedTuple):
    """What a picture file was, beside its pixels."""

    codec: str
    mode: str
    size: str
    is_animated: bool
    is_rotated: bool
    is_transparent: bool

    @classmethod
    def of(cls, picture: Picture) -> Met:
        size = "x".join(map(str, picture.pixels.shape[:2]))
        return cls(picture.codec, picture.mode, size, picture.is_animated, picture.is_rotated, picture.is_transparent)


@dataclass
class Reading:
    """What a pass met in each picture, and what could not be read and why."""

    met: dict[Path, Met] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def described(self, paths: Iterable[Path]) -> dict[str, dict[str, int] | int]:
        """How many of some pictures are of each codec, mode and size, and how many are peculiar: only what is there."""
        paths = list(paths)
        met = [self.met[path] for path in paths if path in self.met]
        counts: dict[str, dict[str, int] | int] = {
            "codecs": dict(sorted(Counter(one.codec for one in met).items())),
            "modes": dict(sorted(Counter(one.mode for one in met).items())),
            "sizes": dict(sorted(Counter(one.size for one in met).items())),
            "animated": sum(one.is_animated for one in met),
            "rotated": sum(one.is_rotated for one in met),
            "transparent": sum(one.is_transparent for one in met),
            "unreadable": sum(path in self.unreadable for path in paths),
        }
        return {key: value for key, value in counts.items() if value}


def read_once(
    measures: Sequence[Measure],
    *,
    workers: int | None = None,
    strict: bool = True,
    what: str = "pictures",
    reading: Reading | None = None,
) -> Reading:
    """Decode every picture that a measure needs, once, and hand it on; returns what was met, beside what `reading` has.

    `workers` threads decode ahead. They change nothing in the result, nor does the order of the files on the disk.
    Not `strict`, a picture that cannot be read is noted and left out wherever it was needed.

    Raises:
        ImageError: strict, and a picture cannot be read.
        Stopped: within `stopping.stoppable`, something asked to stop; what was taken so far is in the measures.
    """
    reading = reading if reading is not None else Reading()
    max_pixels()  # a setting that makes no sense is no fault of the pictures
    owners = [_Waiting(measure) for measure in measures]
    order = _order(measures)
    with progress(what, len(order)) as bar:
        for path, found in _decoded(order, workers or min(4, os.cpu_count() or 1)):
            if isinstance(found, ImageError):
                if strict:
                    raise found
                logger.warning("left out: %s", found)
                reading.unreadable[path] = str(found)
            else:
                reading.met[path] = Met.of(found)
            for owner in owners:
                owner.receive(path, found.pixels if isinstance(found, Picture) else None)
            del found  # a large picture should not wait for the next one
            bar.advance()
            check_stop()
        for owner in owners:
            owner.flush()
    return reading


class _Waiting:
    """The pictures that a measure's incomplete groups wait with, and the complete ones that wait for a full batch."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._groups = measure.groups
        self._groups_of: dict[Path, list[int]] = {}
        for number, group in enumerate(self._groups):
            for path in set(group):
                self._groups_of.setdefault(path, []).append(number)
        self._missing = [len(set(group)) for group in self._groups]
        self._held: dict[Path, np.ndarray] = {}
        self._held_bytes = 0
        self._open: Counter[Path] = Counter({path: len(numbers) for path, numbers in self._groups_of.items()})
        self._ready: list[tuple[int, tuple[np.ndarray, ...]]] = []
        self._ready_bytes = 0

    def receive(self, path: Path, pixels: np.ndarray | None) -> None:
        numbers = self._groups_of.get(path, ())
        if not numbers:
            return
        if pixels is None:
            for number in numbers:
                self._missing[number] = -1  # never complete
                self._release(number)
            return
        self._held[path] = pixels
        self._held_bytes += pixels.nbytes
        for number in numbers:
            if self._missing[number] < 0:
                continue
            self._missing[number] -= 1
            if self._missing[number] == 0:
                members = tuple(self._pixels(member) for member in self._groups[number])
                self._ready.append((number, members))
                self._ready_bytes += sum(member.nbytes for member in members)
                self._release(number)
                if len(self._ready) >= self.measure.batch_size or self._ready_bytes >= _BATCH_BYTES:
                    self.flush()
        if self._open[path] <= 0 or self._held_bytes > _HELD_BYTES:
            self._forget(path)

    def _pixels(self, path: Path) -> np.ndarray:
        """A picture that was received, decoded again if it could not be held."""
        return self._held[path] if path in self._held else read_picture(path).pixels

    def _release(self, number: int) -> None:
        for member in set(self._groups[number]):
            self._open[member] -= 1
            if self._open[member] <= 0:
                self._forget(member)

    def _forget(self, path: Path) -> None:
        if path in self._held:
            self._held_bytes -= self._held.pop(path).nbytes

    def flush(self) -> None:
        if self._ready:
            ready, self._ready, self._ready_bytes = self._ready, [], 0
            self.measure.take([number for number, _ in ready], [pictures for _, pictures in ready])


def _order(measures: Iterable[Measure]) -> list[Path]:
    """Every picture once, each followed by those it is paired with, so that few have to wait in memory."""
    partners: dict[Path, list[Path]] = {}
    for measure in measures:
        for group in measure.groups:
            for path in group:
                partners.setdefault(path, []).extend(other for other in group if other != path)
    order: dict[Path, None] = {}
    for path, others in partners.items():
        for member in (path, *others):
            order.setdefault(member)
    return list(order)


class _TooLarge(BaseException):  # `read_picture` turns every other exception into its own
    """A picture that is not decoded ahead."""


class _Allowance:
    """So many pixels may be decoded, or being decoded, and not yet used.

    Pictures are let in one after the other, so whoever is waited for is never kept out by those behind.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._taken, self._next, self._is_over = pixels, 0, 0, False
        self._of: dict[int, int] = {}
        self._changed = Condition()

    def enter(self, number: int, pixels: int) -> None:
        """Wait for the place of picture `number`.

        Raises:
            _TooLarge: there is none for so large a picture.
        """
        if pixels > self._pixels:
            raise _TooLarge
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over or (self._next == number and self._taken + pixels <= self._pixels)
            )
            self._of[number], self._taken, self._next = pixels, self._taken + pixels, number + 1
            self._changed.notify_all()

    def leave(self, number: int) -> None:
        """Give the place back, or let those behind pass where it was never taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._next >= number)
            self._next = max(self._next, number + 1)
            self._taken -= self._of.pop(number, 0)
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody has to wait any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def _decoded(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, Picture | ImageError]]:
    """Pictures in the order of their paths, decoded by threads that are some pictures ahead.

    Large ones are decoded here, one at a time: a thread would not give all of their memory back.
    """
    allowance = _Allowance(_PIXELS_AHEAD)

    def decode(number: int) -> Picture | ImageError | None:
        try:
            return read_picture(paths[number], before_decoding=lambda pixels: allowance.enter(number, pixels))
        except _TooLarge:
            allowance.leave(number)
            return None
        except ImageError as error:
            allowance.leave(number)
            return error

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Picture | ImageError | None]] = deque()
        begun = 0
        try:
            for number, path in enumerate(paths):
                while begun < len(paths) and len(waiting) <= _AHEAD_PER_WORKER * workers:
                    waiting.append(pool.submit(decode, begun))
                    begun += 1
                yield path, waiting.popleft().result() or _large(path)
                allowance.leave(number)  # now that it has been used
        finally:
            allowance.end()
            for future in waiting:
                future.cancel()


def _large(path: Path) -> Picture | ImageError:
    try:
        return read_picture(path)
    except ImageError as error:
        return error
