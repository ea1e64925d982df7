"""Re-rank a gallery by k-reciprocal neighbours, exactly and without a matrix of all pairs.

Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017. Two pictures are close when
they are close to the same pictures. Query and gallery together are N points; what enters is their *squared* Euclidean
distance, as in the authors' program. Points are kept as rows of neighbours (N x (k1 + 1)) and as sparse encodings, and
distances are taken in blocks of rows, so memory grows with N and not with N x N. Weights are float32 and are summed in
the authors' order, so the same distances give their result to the last bit.

    distance = rerank(query, gallery, RerankParams(k1=20, k2=6, lambda_=0.3))    # (Q, G) float32
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from reid_eval.distances import paired_squared_distances, squared_distances
from reid_eval.errors import ReidError
from reid_eval.progress import progress

_BLOCK_ROWS = 256


class RerankError(ReidError):
    """Re-ranking cannot be done with these settings or on so few pictures."""


@dataclass(frozen=True)
class RerankParams:
    """k1 neighbours must be mutual, k2 neighbours are averaged, lambda_ is the share of the original distance."""

    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise RerankError(f"re-ranking: k1 must be at least 1, got {self.k1}")
        if not 1 <= self.k2 <= self.k1 + 1:
            raise RerankError(f"re-ranking: k2 must lie between 1 and k1 + 1 = {self.k1 + 1}, got {self.k2}")
        if not 0 <= self.lambda_ <= 1:
            raise RerankError(f"re-ranking: lambda must lie between 0 and 1, got {self.lambda_}")


class PointDistances(Protocol):
    """Squared distances among N points, as float32, a block of rows or a list of pairs at a time."""

    num_points: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Distances (B, N) from points `start` to `stop` to all points."""

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Distances (M,) between points `first[m]` and `second[m]`."""


class FeatureDistances:
    """Distances of points (N, D) computed when they are asked for."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points
        self.num_points = len(points)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return squared_distances(self.points[start:stop], self.points)

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return paired_squared_distances(self.points, first, second)


class MatrixDistances:
    """Distances that somebody else computed, all N x N of them, queries first; not squared yet.

    Of a matrix that is not symmetric, column i holds the distances of point i, as in the authors' program.
    """

    def __init__(self, distances: np.ndarray) -> None:
        by_point = np.asarray(distances, dtype=np.float32).T
        self.distance_sq = by_point * by_point
        self.num_points = len(by_point)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.distance_sq[start:stop]

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self.distance_sq[first, second]


def rerank(query: np.ndarray, gallery: np.ndarray, params: RerankParams | None = None) -> np.ndarray:
    """Re-ranked distances between query and gallery.

    Shapes:
        query    (Q, D)  vectors as they are: scale them to unit length first if they shall be compared by cosine
        gallery  (G, D)
        returns  (Q, G)  float32, about 0 to 1, smaller is closer; may be -1e-7 by rounding

    Raises:
        RerankError: query and gallery together have no more than k1 pictures.
    """
    points = FeatureDistances(np.concatenate([query, gallery]))
    return np.concatenate(list(reranked_blocks(points, len(query), params or RerankParams())))


def reranked_blocks(
    distances: PointDistances, num_query: int, params: RerankParams, *, block_rows: int = _BLOCK_ROWS
) -> Iterator[np.ndarray]:
    """The rows of the re-ranked distances, (B, G) at a time, for the first `num_query` points against the others.

    Neighbours and encodings are ready when this returns; the blocks are computed as they are asked for.
    """
    num_points = distances.num_points
    if params.k1 >= num_points:
        raise RerankError(
            f"re-ranking: k1 = {params.k1} needs more than {params.k1} pictures in query and gallery together, found "
            f"{num_points}; use k1 = {num_points - 1} or less"
        )
    neighbours, farthest_sq = _nearest(distances, params.k1 + 1, block_rows)
    members = _expanded_reciprocal_sets(neighbours, params.k1)
    encoding = _encode(distances, members, farthest_sq)
    if params.k2 > 1:
        encoding = _average_over(neighbours[:, : params.k2], encoding)
    return _blocks(distances, num_query, params.lambda_, encoding, farthest_sq, block_rows)


def _blocks(
    distances: PointDistances,
    num_query: int,
    lambda_: float,
    encoding: csr_array,
    farthest_sq: np.ndarray,
    block_rows: int,
) -> Iterator[np.ndarray]:
    gallery_columns = encoding[num_query:].tocsc()
    for start in range(0, num_query, block_rows):
        stop = min(start + block_rows, num_query)
        original = distances.rows(start, stop)[:, num_query:] / farthest_sq[start:stop, None]  # (B, G)
        shared = np.stack([_shared_weight(encoding, row, gallery_columns) for row in range(start, stop)])
        # Rows of the encoding sum to 1, so the weight in the union is 2 minus the weight in the intersection.
        jaccard = 1 - shared / (2 - shared)
        yield (1 - lambda_) * jaccard + lambda_ * original


def _nearest(distances: PointDistances, count: int, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest points of each point, itself normally first, and its largest squared distance.

    Shapes: (N, count) int64, equal distances in the order of the points; (N,) float32, 1 where all distances are 0.
    """
    num_points = distances.num_points
    neighbours = np.empty((num_points, count), dtype=np.int64)
    farthest_sq = np.empty(num_points, dtype=np.float32)
    with progress("re-ranking: neighbours", num_points) as bar:
        for start in range(0, num_points, block_rows):
            stop = min(start + block_rows, num_points)
            distance_sq = distances.rows(start, stop)
            farthest_sq[start:stop] = distance_sq.max(axis=1)
            # The bits of a non-negative float32 sort like its value. With the point's number below them every key is
            # different, so a partial sort finds exactly the neighbours that a full stable sort would.
            bits = np.ascontiguousarray(distance_sq).view(np.uint32).astype(np.uint64)
            keys = (bits << np.uint64(32)) | np.arange(num_points, dtype=np.uint64)
            nearest = np.sort(np.partition(keys, count - 1, axis=1)[:, :count], axis=1)
            neighbours[start:stop] = (nearest & np.uint64(0xFFFFFFFF)).astype(np.int64)
            bar.advance(stop - start)
    return neighbours, np.where(farthest_sq > 0, farthest_sq, np.float32(1))


def _expanded_reciprocal_sets(neighbours: np.ndarray, k1: int) -> csr_array:
    """Row i marks the members of R*(i): the mutual neighbours of i, and those of theirs who fit.

    The mutual neighbours of a member j, in lists of half the length, join if more than two thirds of them are mutual
    neighbours of i already. The test always asks the set as it was before anybody joined.
    """
    mutual = _mutual(neighbours)
    half_mutual = _mutual(neighbours[:, : round(k1 / 2) + 1])  # round half to even, as the authors' np.around
    half_size = half_mutual.sum(axis=1)
    common = (mutual @ half_mutual.T).multiply(mutual).tocoo()  # |H(j) and R(i)| for j in R(i)
    fits = 3 * common.data > 2 * half_size[common.col]
    invited = csr_array((common.data[fits], (common.row[fits], common.col[fits])), shape=mutual.shape)
    expanded = (mutual + invited @ half_mutual).tocsr()
    expanded.sort_indices()
    return expanded


def _mutual(neighbours: np.ndarray) -> csr_array:
    """1 where each of two points has the other in its list of neighbours."""
    lists = _from_lists(neighbours, np.int32)
    return lists.multiply(lists.T).tocsr()


def _from_lists(lists: np.ndarray, dtype: type) -> csr_array:
    """Row i holds 1 in the columns `lists[i]`, stored in the order of the list."""
    num_points, length = lists.shape
    starts = np.arange(0, lists.size + 1, length)
    return csr_array((np.ones(lists.size, dtype=dtype), lists.ravel(), starts), shape=(num_points, num_points))


def _encode(distances: PointDistances, members: csr_array, farthest_sq: np.ndarray) -> csr_array:
    """Weight exp(-distance) for the members of each row, distances as shares of the row's largest; rows sum to 1."""
    rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
    weights = np.exp(-distances.pairs(rows, members.indices) / farthest_sq[rows])
    totals = np.array([weights[start:stop].sum() for start, stop in pairwise(members.indptr)], dtype=np.float32)
    return csr_array((weights / totals[rows], members.indices, members.indptr), shape=members.shape)


def _average_over(nearest: np.ndarray, encoding: csr_array) -> csr_array:
    """Replace each row by the mean of the rows of its nearest points: local query expansion."""
    mean = _from_lists(nearest, np.float32) @ encoding
    mean.data /= np.float32(nearest.shape[1])  # a sparse array would multiply by the rounded reciprocal
    mean.sort_indices()
    return mean


def _shared_weight(encoding: csr_array, row: int, gallery_columns: csr_array) -> np.ndarray:
    """Sum over the columns of the smaller of two weights, between one row and each gallery row: (G,) float32.

    Only the columns of the row's own members are visited; elsewhere the smaller weight is 0.
    """
    here = slice(encoding.indptr[row], encoding.indptr[row + 1])
    columns = gallery_columns[:, encoding.indices[here]]
    own = np.repeat(encoding.data[here], np.diff(columns.indptr))
    shared = np.zeros(columns.shape[0], dtype=np.float32)
    np.add.at(shared, columns.indices, np.minimum(columns.data, own))
    return shared
