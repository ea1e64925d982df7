"""Distances between feature vectors, reproducible to the bit of a float32.

Products are summed in float64 and the result is rounded to float32, so a distance does not depend on the block it was
computed in, on the number of threads or on the BLAS library: their float64 differences, some eight digits below the
last one of a float32, vanish in the rounding. Equal vectors therefore tie, and ties are settled by the order of the
gallery and not by chance.

Where only few of many distances matter, `rough_distances` takes float32 products, twice as fast, and says how far
they can be off; the few that this leaves open are then taken exactly, so speed changes no result.

    distance_sq = squared_distances(query, gallery)    # (Q, G) float32
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

Metric = Literal["cosine", "euclidean", "dot", "hamming", "hamming-packed"]
Side = Literal["query", "gallery"]

# Columns and pairs taken at a time, and entries of vectors: enough for a fast product, and no more float64 than a
# processor's cache holds where every entry is looked at once.
_COLUMNS = 2048
_PAIRS = 32
_ENTRIES = 2**18

# Squared distances below this share of |x|^2 + |y|^2 are rounding of the float64 sum: the vectors are the same.
_RESOLUTION = 1e-12

# Columns of float32 products at a time: they are still in a processor's cache when they are added up.
_TILE = 4096

# Entries of a vector that one float32 product sums: the fewer, the smaller the possible error.
_DEPTH = 512
_HALF_ULP = 2.0**-24


class Vectors(Protocol):
    """N vectors as they are compared, float32, some at a time: they may lie on disk or need scaling first."""

    def __len__(self) -> int: ...

    @property
    def num_features(self) -> int:
        """D, the length of each vector."""

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """The vectors of these rows, (M, D) float32; a copy or a view that nobody changes."""


class ArrayVectors:
    """Vectors of an array, just as they are."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @property
    def num_features(self) -> int:
        return int(self.array.shape[1])

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.asarray(self.array[rows], dtype=np.float32)


class MetricVectors:
    """Some rows of an array, made such that their squared Euclidean distances rank as the metric does.

    cosine          scaled to length 1: the squared distance is 2 - 2 cos
    euclidean       times 2 ** exponent, which is exact
    dot             the same, and gallery vectors are lengthened by two entries to the squared length `longest_sq`, so
                    that the squared distance is |x|^2 + longest_sq - 2 x y; the second holds what the first rounds off
    hamming         1 for a positive entry and 0 for the others: the squared distance is the number of differing bits
    hamming-packed  the same for bytes, each of which holds eight bits
    """

    def __init__(
        self,
        array: np.ndarray,
        rows: np.ndarray,
        metric: Metric,
        exponent: int = 0,
        *,
        side: Side = "query",
        longest_sq: float = 0.0,
    ) -> None:
        self.array, self.rows, self.metric, self.exponent = array, rows, metric, exponent
        self.side, self.longest_sq = side, longest_sq

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_features(self) -> int:
        stored = int(self.array.shape[1])
        return {"dot": stored + 2, "hamming-packed": 8 * stored}.get(self.metric, stored)

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        wanted = self.rows[rows]
        found = np.empty((len(wanted), self.num_features), dtype=np.float32)
        for some in _some_rows(found):
            self._compare(self._stored(wanted[some]), found[some])
        return found

    def _compare(self, stored: np.ndarray, out: np.ndarray) -> None:
        match self.metric:
            case "cosine":
                unit_length(stored, out)
            case "euclidean":
                np.ldexp(stored, self.exponent, out=out, casting="same_kind")
            case "dot":
                np.ldexp(stored, self.exponent, out=out[:, :-2], casting="same_kind")
                self._lengthen(out)
            case "hamming":
                np.greater(stored, 0, out=out)
            case "hamming-packed":
                out[...] = np.unpackbits(stored.astype(np.uint8), axis=1)

    def _lengthen(self, vectors: np.ndarray) -> None:
        vectors[:, -2:] = 0
        if self.side == "gallery":
            missing = np.maximum(self.longest_sq - squared_lengths(vectors), 0)
            vectors[:, -2] = np.sqrt(missing)
            vectors[:, -2] = np.nextafter(vectors[:, -2], np.float32(0))  # no longer than what is missing
            vectors[:, -1] = np.sqrt(np.maximum(missing - vectors[:, -2].astype(np.float64) ** 2, 0))

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():  # a run needs no copy
            return self.array[rows[0] : rows[-1] + 1]
        return self.array[rows]


class JoinedVectors:
    """The vectors of one, then those of the other."""

    def __init__(self, first: Vectors, second: Vectors) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def num_features(self) -> int:
        return self.first.num_features

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        in_first = wanted < len(self.first)
        found = np.empty((len(wanted), self.num_features), dtype=np.float32)
        if in_first.any():
            found[in_first] = self.first.take(wanted[in_first])
        if not in_first.all():
            found[~in_first] = self.second.take(wanted[~in_first] - len(self.first))
        return found


def unit_length(features: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Scale each vector to length 1.

    Shapes:
        features      (N, D)
        out, returns  (N, D)  float32; a zero vector stays zero
    """
    scaled = np.empty(features.shape, dtype=np.float32) if out is None else out
    for some in _some_rows(features):
        wide = features[some].astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        np.divide(wide, np.where(lengths > 0, lengths, 1)[:, None], out=scaled[some], casting="same_kind")
    return scaled


def _some_rows(vectors: np.ndarray) -> Iterator[slice]:
    rows = max(1, _ENTRIES // vectors.shape[1])
    return (slice(start, start + rows) for start in range(0, len(vectors), rows))


def squared_lengths(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths (N,) float64 of vectors (N, D), summed in float64."""
    lengths_sq = np.empty(len(vectors))
    for some in _some_rows(vectors):
        wide = vectors[some].astype(np.float64)
        lengths_sq[some] = np.einsum("nd,nd->n", wide, wide)
    return lengths_sq


def squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between all pairs.

    Shapes:
        rows     (B, D)
        columns  (G, D)
        returns  (B, G)  float32, never negative, 0 for equal vectors
    """
    return squared_distances_to(rows, ArrayVectors(columns))


def squared_distances_to(rows: np.ndarray, columns: Vectors, first: int = 0) -> np.ndarray:
    """`squared_distances` from rows (B, D) to all columns from number `first` on, which are taken a few at a time."""
    wide_rows = rows.astype(np.float64)
    rows_sq = np.einsum("bd,bd->b", wide_rows, wide_rows)
    distance_sq = np.empty((len(rows), len(columns) - first), dtype=np.float32)
    for start in range(first, len(columns), _COLUMNS):
        wide_columns = columns.take(slice(start, start + _COLUMNS)).astype(np.float64)
        columns_sq = np.einsum("gd,gd->g", wide_columns, wide_columns)
        products = wide_rows @ wide_columns.T  # (B, G')
        distance_sq[:, start - first : start - first + _COLUMNS] = _combine(rows_sq[:, None] + columns_sq, products)
    return distance_sq


def paired_squared_distances(
    x: Vectors, first: np.ndarray, y: Vectors, second: np.ndarray, *, y_sq: np.ndarray | None = None
) -> np.ndarray:
    """Squared Euclidean distances between `x[first[m]]` and `y[second[m]]`; fast where `first` repeats itself.

    Shapes:
        first, second  (M,)  rows of x and of y
        y_sq           (N,)  the `squared_lengths` of all of y, if they are known
        returns        (M,)  float32, the values `squared_distances` gives for these pairs
    """
    num_pairs = len(first)
    # Runs of pairs with one first vector, cut where a piece ends.
    runs = np.union1d(np.flatnonzero(np.diff(first)) + 1, np.arange(0, num_pairs, _PAIRS))
    products, x_sq = np.empty(num_pairs), np.empty(len(runs))
    squares = np.empty(num_pairs) if y_sq is None else y_sq[second]
    wide_y = np.empty((min(_PAIRS, num_pairs), y.num_features))
    bounds = [*runs.tolist(), num_pairs]
    for start in range(0, num_pairs, _PAIRS):
        stop = min(start + _PAIRS, num_pairs)
        first_run, last_run = bisect_left(bounds, start), bisect_left(bounds, stop)
        wide_x = x.take(first[runs[first_run:last_run]]).astype(np.float64)
        wide_y[: stop - start] = y.take(second[start:stop])
        x_sq[first_run:last_run] = np.einsum("rd,rd->r", wide_x, wide_x)
        if y_sq is None:
            squares[start:stop] = np.einsum("md,md->m", wide_y[: stop - start], wide_y[: stop - start])
        for run, vector in enumerate(wide_x, first_run):
            here = slice(bounds[run], bounds[run + 1])
            np.matmul(wide_y[bounds[run] - start : bounds[run + 1] - start], vector, out=products[here])
    squares += np.repeat(x_sq, np.diff(bounds))
    return _combine(squares, products).astype(np.float32)


def rough_distances(rows: np.ndarray, columns: np.ndarray, columns_sq: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Squared distances less the squared length of the row, |y|^2 - 2 x y, in float32 throughout.

    Shapes:
        rows          (B, D)  float32
        columns       (G, D)  float32
        columns_sq    (G,)    float32, their squared lengths
        out, returns  (B, G)  float32, no farther from the exact values than `rough_error` says
    """
    doubled = -2 * rows
    scratch = np.empty(2 * len(rows) * min(_TILE, len(columns)), dtype=np.float32)
    for start in range(0, len(columns), _TILE):
        some = columns[start : start + _TILE]
        tile, part = scratch[: 2 * len(rows) * len(some)].reshape(2, len(rows), len(some))
        np.matmul(doubled[:, :_DEPTH], some[:, :_DEPTH].T, out=tile)
        for deep in range(_DEPTH, rows.shape[1], _DEPTH):
            np.matmul(doubled[:, deep : deep + _DEPTH], some[:, deep : deep + _DEPTH].T, out=part)
            tile += part
        np.add(tile, columns_sq[start : start + _TILE], out=out[:, start : start + _TILE])
    return out


def rough_error(rows_sq: np.ndarray, largest_sq: float, num_features: int) -> np.ndarray:
    """How far |x|^2 + `rough_distances` can be from the exact float32 distance, for columns no longer than the largest.

    A sum of n products in any order errs by no more than n half units in the last place of sum |x y|, which is at most
    |x| |y| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). The sum runs over `_DEPTH` entries and then
    over the parts; a dozen roundings of |x|^2, |y|^2 and of what a caller adds or compares come on top.

    Shapes:
        rows_sq  (B,)  squared lengths
        returns  (B,)  float64
    """
    roundings = min(num_features, _DEPTH) + num_features / _DEPTH + 1
    lengths = np.sqrt(rows_sq) + np.sqrt(largest_sq)
    return (roundings / 2 + 12) * 1.001 * _HALF_ULP * lengths * lengths


def _combine(squares: np.ndarray, products: np.ndarray) -> np.ndarray:
    """|x|^2 + |y|^2 - 2 x y, in place of the products; the squares are overwritten too."""
    products *= -2
    products += squares
    squares *= _RESOLUTION
    products[products <= squares] = 0
    return products
