"""Read many pictures once for several measures at the same time, decoding ahead of the networks.

A measure says which pictures it needs together: one for a feature vector, two for a similarity. Each picture is decoded
once, kept until all groups that it belongs to are complete, and forgotten.

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
from typing import Protocol

import numpy as np
from PIL import Image

from reid_eval.errors import ReidError
from reid_eval.extractors import Extractor
from reid_eval.files import ImageError, Picture, read_picture
from reid_eval.progress import progress
from reid_eval.resizing import rows_by_shape

logger = logging.getLogger(__name__)

_AHEAD_PER_WORKER = 16

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


class FeaturesOf:
    """A feature vector per picture."""

    def __init__(self, paths: Sequence[Path], extractor: Extractor, *, batch_size: int = 50) -> None:
        self.paths, self.extractor, self.batch_size = paths, extractor, batch_size
        self.groups = [(path,) for path in paths]
        self._vectors: np.ndarray | None = None
        self._is_there = np.zeros(len(paths), bool)

    def take(self, numbers: list[int], pictures: list[tuple[np.ndarray, ...]]) -> None:
        """Pixels of single pictures."""
        vectors = self.extractor([pixels for (pixels,) in pictures])
        if self._vectors is None:
            self._vectors = np.empty((len(self.groups), vectors.shape[1]), vectors.dtype)
        self._vectors[numbers] = vectors
        self._is_there[numbers] = True

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


@dataclass
class Reading:
    """What a pass met: how many pictures of each codec, mode and size, and what could not be read and why."""

    codecs: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    animated: int = 0
    rotated: int = 0
    transparent: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def see(self, picture: Picture) -> None:
        """Count one."""
        self.codecs[picture.codec] += 1
        self.modes[picture.mode] += 1
        self.sizes["x".join(map(str, picture.pixels.shape[:2]))] += 1
        self.animated += picture.is_animated
        self.rotated += picture.is_rotated
        self.transparent += picture.is_transparent


def read_once(
    measures: Sequence[Measure],
    *,
    roots: Sequence[Path] = (),
    workers: int | None = None,
    strict: bool = True,
    what: str = "pictures",
) -> dict[Path, Reading]:
    """Decode every picture that a measure needs, once, and hand it on; returns what was met below each of `roots`.

    `workers` threads decode ahead. They change nothing in the result, nor does the order of the files on the disk.
    Not `strict`, a picture that cannot be read is noted and left out wherever it was needed.

    Raises:
        ImageError: strict, and a picture cannot be read.
    """
    readings = {root: Reading() for root in roots}
    owners = [_Waiting(measure) for measure in measures]
    order = _order(measures)
    with progress(what, len(order)) as bar:
        for path, found in _decoded(order, workers or min(4, os.cpu_count() or 1)):
            reading = next((readings[root] for root in roots if path.is_relative_to(root)), None)
            if isinstance(found, ImageError):
                if strict:
                    raise found
                logger.warning("left out: %s", found)
                if reading is not None:
                    reading.unreadable[str(path)] = str(found)
            elif reading is not None:
                reading.see(found)
            for owner in owners:
                owner.receive(path, found.pixels if isinstance(found, Picture) else None)
            bar.advance()
        for owner in owners:
            owner.flush()
    return readings


class _Waiting:
    """The pictures that a measure's incomplete groups wait with, and the complete ones that wait for a full batch."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._groups_of: dict[Path, list[int]] = {}
        for number, group in enumerate(measure.groups):
            for path in set(group):
                self._groups_of.setdefault(path, []).append(number)
        self._missing = [len(set(group)) for group in measure.groups]
        self._held: dict[Path, np.ndarray] = {}
        self._open: Counter[Path] = Counter({path: len(numbers) for path, numbers in self._groups_of.items()})
        self._ready: list[tuple[int, tuple[np.ndarray, ...]]] = []

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
        for number in numbers:
            if self._missing[number] < 0:
                continue
            self._missing[number] -= 1
            if self._missing[number] == 0:
                self._ready.append((number, tuple(self._held[member] for member in self.measure.groups[number])))
                self._release(number)
                if len(self._ready) >= self.measure.batch_size:
                    self.flush()
        if self._open[path] <= 0:
            self._held.pop(path, None)

    def _release(self, number: int) -> None:
        for member in set(self.measure.groups[number]):
            self._open[member] -= 1
            if self._open[member] <= 0:
                self._held.pop(member, None)

    def flush(self) -> None:
        if self._ready:
            ready, self._ready = self._ready, []
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


def _decoded(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, Picture | ImageError]]:
    """Pictures in the order of their paths, decoded by threads that are some pictures ahead."""

    def decode(path: Path) -> Picture | ImageError:
        try:
            return read_picture(path)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Path, Future[Picture | ImageError]]] = deque()
        try:
            for path in paths:
                waiting.append((path, pool.submit(decode, path)))
                if len(waiting) > _AHEAD_PER_WORKER * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
