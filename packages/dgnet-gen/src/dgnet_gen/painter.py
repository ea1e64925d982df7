"""The networks as a workshop for many pairs: every picture is encoded once, and no pixel depends on its neighbours.

    painter = Painter(model, files)
    for number, pixels in enumerate(painter.paint(pairs)):      # pairs (N, 2): positions of structure and appearance
        save_image(f"{number}.png", pixels)

Convolutions of another batch size round differently, now and then by a grey level. So all networks work on units of
`UNIT` pictures, the last one filled up: a picture comes out the same alone, among thousands, or after an interruption.

Pairs come sorted by structure. A structure's code, a mebibyte at full size, is kept while its pairs are painted and no
longer. An appearance is kept as what the decoder wants of it, the scales and shifts of its norms, 8 KiB: in memory up
to a bound, on disk beyond. Files are read ahead by threads. So what is held does not grow with N.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from dgnet_gen.model import DGNet
from dgnet_gen.networks.painting import Ground, paint, prepare, ready, styles
from reid_eval.files import read_pixels
from reid_models.data.transforms import eval_transform, to_pixels
from reid_models.runtime import Runtime

K = TypeVar("K")
V = TypeVar("V")

UNIT = 8
"""pictures that pass through a network together, always"""


class Painter:
    """Paints pairs of files with one model. `memory_mib` bounds the appearances kept in memory, `levels` says how
    numbers become grey levels.

    A `runtime` of less than float32 rounds in the decoder alone, on a CPU its maps too where there is the arithmetic;
    pixels are then off by half a grey level in the mean, here and there by some. Encoders rounded as well would double
    that, and work on far fewer pictures.
    """

    def __init__(
        self,
        model: DGNet,
        files: Sequence[Path],
        *,
        runtime: Runtime | None = None,
        workers: int = 2,
        ahead: int = 32,
        memory_mib: float = 1024,
        levels: Literal["rounded", "truncated"] = "rounded",
    ) -> None:
        self.model, self.files, self.workers, self.memory_mib, self.levels = model, files, workers, memory_mib, levels
        self.ahead = max(ahead, UNIT)
        self._runtime = runtime or Runtime(model.device)
        self._decoder = ready(model.decoder, self._runtime.map_dtype)

    def paint(self, pairs: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The pictures of pairs (N, 2) in their order, each uint8 RGB (H, W, 3).

        `pairs` holds positions in `files`, structure first, sorted by structure.

        Raises:
            ImageError: a file is missing or no readable picture; what came before has been given.
        """
        _, first_use = np.unique(pairs[:, 1], return_index=True)
        appearances = pairs[np.sort(first_use), 1]
        structures = pairs[np.flatnonzero(np.diff(pairs[:, 0], prepend=-1)), 0]
        with (
            ThreadPoolExecutor(self.workers, "read") as pool,
            self._runtime.side_by_side(UNIT) as painters,
            tempfile.TemporaryFile() as spill,
        ):
            try:
                worn = _Worn(self._in_units(pool, appearances, self._encode_appearances), self.memory_mib, spill)
                ground = _Grounds(self._in_units(pool, structures, self._encode_structures))
                for start in range(0, len(pairs), UNIT):
                    unit = pairs[start : start + UNIT]
                    yield from self._paint_unit(painters, ground.of(unit[:, 0]), worn.of(unit[:, 1]), len(unit))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _paint_unit(
        self, painters: ThreadPoolExecutor | None, ground: Ground, worn: Tensor, number: int
    ) -> Iterable[np.ndarray]:
        """The first `number` pictures of a unit: each by itself, or where there are no painters together."""
        worn = worn.to(self.model.device)
        with self._runtime.rounded_products():
            if painters is None:
                return self._paint(worn, ground)[:number]
            each = (torch.tensor([position]) for position in range(number))
            return [pixels for [pixels] in painters.map(lambda row: self._paint(worn[row], ground.pick(row)), each)]

    @torch.no_grad()
    def _paint(self, worn: Tensor, ground: Ground) -> np.ndarray:
        return to_pixels(paint(self._decoder, worn, ground), levels=self.levels)

    def _in_units(
        self, pool: ThreadPoolExecutor, rows: np.ndarray, encode: Callable[[Tensor], V]
    ) -> Iterator[tuple[np.ndarray, V]]:
        """Rows in units and what the networks make of their pictures, files read ahead."""
        images = _ahead(pool, self._read, rows.tolist(), self.ahead)
        for start in range(0, len(rows), UNIT):
            unit = rows[start : start + UNIT]
            read = [next(images) for _ in unit]
            yield unit, encode(torch.stack(read + read[-1:] * (UNIT - len(read))))

    def _read(self, row: int) -> Tensor:
        return eval_transform(read_pixels(self.files[row]), self.model.image_hw)

    @torch.no_grad()
    def _encode_appearances(self, images: Tensor) -> np.ndarray:
        return styles(self.model.decoder, self.model.appearance(images)).cpu().numpy()

    @torch.no_grad()
    def _encode_structures(self, images: Tensor) -> Ground:
        return prepare(self.model.decoder, self.model.structure(images))


class _Grounds:
    """The structures in use: the units of the pairs at hand."""

    def __init__(self, units: Iterator[tuple[np.ndarray, Ground]]) -> None:
        self._units = units
        self._held: deque[tuple[np.ndarray, Ground]] = deque()

    def of(self, rows: np.ndarray) -> Ground:
        """The grounds of some rows, not before any that were asked for earlier, filled up to a unit."""
        while self._held and self._held[0][0][-1] < rows[0]:
            self._held.popleft()
        while not self._held or self._held[-1][0][-1] < rows[-1]:
            self._held.append(next(self._units))
        place = {
            row: number * UNIT + position
            for number, (unit, _) in enumerate(self._held)
            for position, row in enumerate(unit.tolist())
        }
        joined = _joined([ground for _, ground in self._held])
        return joined.pick(torch.tensor([place[row] for row in _filled(rows)], device=joined.structure.device))


class _Worn:
    """The appearances that have been encoded: the first ones in memory, those beyond the bound in a file."""

    def __init__(self, units: Iterator[tuple[np.ndarray, np.ndarray]], memory_mib: float, spill: IO[bytes]) -> None:
        self._units, self._memory_bytes, self._spill = units, memory_mib * (1 << 20), spill
        self._place: dict[int, int] = {}
        """row to position, counted through memory and file"""
        self._kept: list[np.ndarray] = []
        self._shape: tuple[int, ...] = ()

    def of(self, rows: np.ndarray) -> Tensor:
        """The styles of some rows, filled up to a unit."""
        while any(row not in self._place for row in rows.tolist()):
            fresh, values = next(self._units)
            for row, value in zip(fresh.tolist(), values[: len(fresh)], strict=True):
                self._keep(row, value)
        return torch.from_numpy(np.stack([self._read(self._place[row]) for row in _filled(rows)]))

    def _keep(self, row: int, value: np.ndarray) -> None:
        position = self._place[row] = len(self._place)
        self._shape = value.shape
        if (position + 1) * value.nbytes <= self._memory_bytes:
            self._kept.append(value.copy())
        else:
            self._spill.seek((position - len(self._kept)) * value.nbytes)
            self._spill.write(value.tobytes())

    def _read(self, position: int) -> np.ndarray:
        if position < len(self._kept):
            return self._kept[position]
        size = 4 * int(np.prod(self._shape))
        self._spill.seek((position - len(self._kept)) * size)
        return np.frombuffer(self._spill.read(size), np.float32).reshape(self._shape)


def _filled(rows: np.ndarray) -> list[int]:
    listed = rows.tolist()
    return listed + listed[-1:] * (UNIT - len(listed))


def _joined(grounds: list[Ground]) -> Ground:
    if len(grounds) == 1:
        return grounds[0]
    kept = [ground.normalised for ground in grounds if ground.normalised is not None]
    return Ground(torch.cat([ground.structure for ground in grounds]), torch.cat(kept) if kept else None)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[K], V], keys: Iterable[K], depth: int) -> Iterator[V]:
    """function(key) for every key, in order, `depth` of them begun before they are asked for."""
    waiting: deque[Future[V]] = deque()
    for key in keys:
        waiting.append(pool.submit(function, key))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
