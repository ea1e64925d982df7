"""Distances among N points, and who is nearest to each and how far the farthest is, without a matrix of all pairs.

Distances are squared Euclidean ones as float32 (`reid_eval.distances`). Of vectors, float32 products of half of all
pairs choose the candidates, so generously that none can be missed, and exact distances decide among these.

    FeatureDistances(points).neighbours(21).nearest    # (N, 21): each point first, then its 20 nearest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reid_eval.distances import (
    ArrayVectors,
    paired_squared_distances,
    rough_distances,
    rough_error,
    squared_distances_to,
    squared_lengths,
)
from reid_eval.progress import progress
from reid_eval.sorting import rising_bits

# A tile of distances lies in a processor's cache while it is looked at.
_BLOCK_ROWS = 512
_TILE_COLUMNS = 2048

# Points that every point is compared with first, to know about how near its nearest are.
_SAMPLE = 512

# Candidates per wanted neighbour above which exact distances thin them out: only equal distances come to so many.
_MANY = 8

# Candidates per point that may wait to be thinned out.
_PENDING = 16

# Of a given matrix.
_TILE_ROWS = 256


@dataclass(frozen=True)
class Neighbours:
    """The K nearest points of each of N points, itself normally first, and how far its farthest is.

    Shapes:
        nearest      (N, K)  int32; equal distances in the order of the points
        distance_sq  (N, K)  float32, their squared distances
        farthest_sq  (N,)    float32, the largest squared distance of each point to any; 1 where all are 0
    """

    nearest: np.ndarray
    distance_sq: np.ndarray
    farthest_sq: np.ndarray


class PointDistances(Protocol):
    """Squared distances among N points, as float32: rows, pairs, or what is nearest."""

    num_points: int

    def rows(self, points: np.ndarray, first: int) -> np.ndarray:
        """Distances (B, N - first) from these points to all points from number `first` on."""

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Distances (M,) between points `first[m]` and `second[m]`."""

    def neighbours(self, count: int) -> Neighbours:
        """The `count` nearest points of each, at most N."""


class FeatureDistances:
    """Distances of points (N, D) computed when they are asked for."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = ArrayVectors(points)
        self.num_points = len(points)
        self.lengths_sq = squared_lengths(points)
        self.error = rough_error(self.lengths_sq, float(self.lengths_sq.max(initial=0)), points.shape[1])
        self.buffer = np.empty(0, dtype=np.float32)

    def rough(self, start: int, stop: int, first: int = 0) -> np.ndarray:
        """Distances (B, N - first) from points `start` to `stop` to all from `first` on, no farther off than `error`.

        The block is overwritten by the next call.
        """
        return self._rough(start, stop, self.points.array[first:], self.lengths_sq[first:])

    def _rough(self, start: int, stop: int, columns: np.ndarray, columns_sq: np.ndarray) -> np.ndarray:
        size = (stop - start) * len(columns)
        if self.buffer.size < size:
            self.buffer = np.empty(size, dtype=np.float32)
        out = self.buffer[:size].reshape(stop - start, len(columns))
        block = rough_distances(self.points.array[start:stop], columns, columns_sq.astype(np.float32), out)
        block += self.lengths_sq[start:stop, None].astype(np.float32)
        return block

    def rows(self, points: np.ndarray, first: int) -> np.ndarray:
        return squared_distances_to(self.points.take(points), self.points, first)

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return paired_squared_distances(self.points, first, self.points, second, y_sq=self.lengths_sq)

    def neighbours(self, count: int) -> Neighbours:
        num_points = self.num_points
        near, far = self._first_candidates(count)
        with progress("re-ranking: neighbours", num_points) as bar:
            for start in range(0, num_points, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, num_points)
                for first in range(start, num_points, _TILE_COLUMNS):
                    columns = slice(first, first + _TILE_COLUMNS)
                    tile = self._rough(start, stop, self.points.array[columns], self.lengths_sq[columns])
                    met = max(stop - first, 0)  # of two points of the block both distances are in it
                    for candidates in (near, far):
                        candidates.add_rows(tile, start, first)
                        candidates.add_columns(tile[:, met:], start, first + met)
                bar.advance(stop - start)
        return _neighbours(near, far)

    def _first_candidates(self, count: int) -> tuple[_Candidates, _Candidates]:
        """None yet, but bounds: among an evenly spread sample there are neighbours as near as that already."""
        step = _sample_step(self.num_points, count)
        sample, sample_sq = np.ascontiguousarray(self.points.array[::step]), self.lengths_sq[::step]
        nearest, farthest = np.empty((2, self.num_points), dtype=np.float32)
        for start in range(0, self.num_points, _TILE_COLUMNS):
            stop = min(start + _TILE_COLUMNS, self.num_points)
            block = self._rough(start, stop, sample, sample_sq)
            nearest[start:stop] = np.partition(block, count - 1, axis=1)[:, count - 1]
            farthest[start:stop] = block.max(axis=1)
        margin = (2 * self.error).astype(np.float32)
        return _Candidates(self, count, nearest, margin), _Candidates(self, 1, -farthest, margin, sign=-1)


class _Candidates:
    """Pairs of points of which the second may be among the `count` nearest of the first; the farthest with sign -1.

    `bound` (N,) is a distance, times the sign, that at least `count` points do not exceed; it falls as pairs come in.
    `margin` (N,) is twice the error of the distances that come in: what exceeds the bound by more cannot belong.
    """

    def __init__(
        self, distances: PointDistances, count: int, bound: np.ndarray, margin: np.ndarray, *, sign: int = 1
    ) -> None:
        self.distances, self.count, self.margin, self.sign = distances, count, margin, np.float32(sign)
        self.bound = bound + margin
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.num_thinned = self.num_new = 0

    def add_rows(self, tile: np.ndarray, start: int, first: int) -> None:
        """Take what may count for the points of the rows, from `start` on, of a tile (B, C) of distances.

        The others are the points of the columns, from `first` on.
        """
        limit = self.sign * self.bound[start : start + len(tile)]
        rows, columns = self._within(tile, limit[:, None])
        self._take(start + rows, first + columns, tile[rows, columns])

    def add_columns(self, tile: np.ndarray, start: int, first: int) -> None:
        """The same for the points of the columns; the others are those of the rows."""
        limit = self.sign * self.bound[first : first + tile.shape[1]]
        rows, columns = self._within(tile, limit)
        self._take(first + columns, start + rows, tile[rows, columns])

    def _within(self, tile: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hits = np.flatnonzero(tile <= limit if self.sign > 0 else tile >= limit)
        rows = hits // max(tile.shape[1], 1)
        return rows, hits - rows * tile.shape[1]

    def _take(self, points: np.ndarray, others: np.ndarray, values: np.ndarray) -> None:
        self.found.append((points.astype(np.int32), others.astype(np.int32), self.sign * values))
        self.num_new += len(points)
        if self.num_new > max(self.num_thinned, _PENDING * len(self.bound)):
            self._thin_out()

    def _thin_out(self) -> None:
        """Leave out what cannot count any more, and ask for exact distances where equal ones are many."""
        points, others, values = self._joined()
        order = np.argsort(points.astype(np.int64) * 2**32 + rising_bits(values))
        points, others, values = points[order], others[order], values[order]
        starts = np.searchsorted(points, np.arange(len(self.bound) + 1, dtype=np.int32))
        enough = np.flatnonzero(np.diff(starts) >= self.count)
        bound = values[starts[enough] + self.count - 1] + self.margin[enough]
        self.bound[enough] = np.minimum(self.bound[enough], bound)
        kept = values <= self.bound[points]
        self.found = [(points[kept], others[kept], values[kept])]
        if len(self.found[0][0]) > _MANY * self.count * len(self.bound):
            self._decide()
        self.num_thinned, self.num_new = len(self.found[0][0]), 0

    def _decide(self) -> None:
        """Leave the `count` nearest of those that there are, by exact distances."""
        points, others, _ = self._joined()
        order = np.argsort(points, kind="stable")
        points, others = points[order], others[order]
        values = self.sign * self.distances.pairs(points, others)
        order = np.lexsort((others, values, points))
        place = np.arange(len(points)) - np.searchsorted(points, points)
        order = order[place < self.count]
        self.found = [(points[order], others[order], values[order])]

    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, others, values = zip(*self.found, strict=True)
        return np.concatenate(points), np.concatenate(others), np.concatenate(values)

    def decided(self) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest of each point, and their exact distances: (N, count) int32 and float32."""
        self._thin_out()
        self._decide()
        _, others, values = self._joined()
        return others.reshape(-1, self.count), self.sign * values.reshape(-1, self.count)


def _sample_step(num_points: int, count: int) -> int:
    return max(1, num_points // max(_SAMPLE, 4 * count))


def _neighbours(near: _Candidates, far: _Candidates) -> Neighbours:
    nearest, distance_sq = near.decided()
    _, farthest_sq = far.decided()
    return Neighbours(nearest, distance_sq, np.where(farthest_sq > 0, farthest_sq, np.float32(1))[:, 0])


def memory_of_neighbours(num_points: int, count: int) -> int:
    """Bytes that `FeatureDistances.neighbours` needs at its peak, about, beyond the points."""
    tile = min(_BLOCK_ROWS, num_points) * min(_TILE_COLUMNS, num_points)
    return 70 * (count + _PENDING) * num_points + 20 * tile


class MatrixDistances:
    """Distances that somebody else computed, all N x N of them, queries first; not squared yet.

    Of a matrix that is not symmetric, column i holds the distances of point i, as in the authors' program.
    """

    def __init__(self, distances: np.ndarray) -> None:
        self.matrix = np.asarray(distances, dtype=np.float32)
        self.num_points = len(self.matrix)

    def rows(self, points: np.ndarray, first: int) -> np.ndarray:
        found = np.empty((len(points), self.num_points - first), dtype=np.float32)
        for start in range(0, found.shape[1], _TILE_ROWS):  # to turn a tile at a time is much faster
            tile = self.matrix[first + start : first + start + _TILE_ROWS, points]
            found[:, start : start + _TILE_ROWS] = np.square(tile).T
        return found

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.square(self.matrix[second, first])

    def neighbours(self, count: int) -> Neighbours:
        sample = np.square(self.matrix[:: _sample_step(self.num_points, count)])
        exact = np.zeros(self.num_points, dtype=np.float32)
        near = _Candidates(self, count, np.partition(sample, count - 1, axis=0)[count - 1], exact)
        far = _Candidates(self, 1, -sample.max(axis=0), exact, sign=-1)
        with progress("re-ranking: neighbours", self.num_points) as bar:
            for start in range(0, self.num_points, _TILE_ROWS):
                for first in range(0, self.num_points, _TILE_COLUMNS):
                    tile = np.square(self.matrix[start : start + _TILE_ROWS, first : first + _TILE_COLUMNS])
                    near.add_columns(tile, start, first)
                    far.add_columns(tile, start, first)
                bar.advance(len(tile))
        return _neighbours(near, far)
