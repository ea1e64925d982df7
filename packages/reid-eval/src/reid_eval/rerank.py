"""Re-rank a gallery by k-reciprocal neighbours, exactly and without a matrix of all pairs.

Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017. Two pictures are close when
they are close to the same pictures. Query and gallery together are N points; what enters is their *squared* Euclidean
distance, as in the authors' program, or one of the two variants that other programs have (`RerankParams.distance`).
Points are kept as rows of neighbours (N x (k1 + 1)) and as sparse encodings, and distances are taken in blocks of rows,
so memory grows with N and not with N x N. Weights are float32 and are summed in the authors' order, so the same
distances give their result to the last bit.

    distance = rerank(query, gallery, RerankParams(k1=20, k2=6, lambda_=0.3))    # (Q, G) float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.neighbours import FeatureDistances, Neighbours, PointDistances, memory_of_neighbours

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

_BLOCK_ROWS = 256
_SET_ROWS = 8192
_SHARING_ROWS = 32

# Entries of an averaged encoding as a share of (k1 + 1) x k2: neighbours have neighbours in common.
_ENCODED_SHARE = 1.0

# Roundings of float32 values up to 1 on the way from distances to their mixture with the Jaccard distance.
_MIXING_ERROR = 16 * 2.0**-24

Entering = Literal["squared", "quartic", "raw"]
ENTERING: tuple[Entering, ...] = ("squared", "quartic", "raw")


class RerankError(ReidError):
    """Re-ranking cannot be done with these settings or on so few pictures."""


@dataclass(frozen=True)
class RerankParams:
    """k1 neighbours must be mutual, k2 neighbours are averaged, lambda_ is the share of the original distance.

    `distance` says which power of the Euclidean distance enters: "squared" as in the authors' program and MGN-pytorch,
    "quartic" as in torchreid and layumi's scripts, which square once more, or "raw".
    """

    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3
    distance: Entering = "squared"

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise RerankError(f"re-ranking: k1 must be at least 1, got {self.k1}")
        if not 1 <= self.k2 <= self.k1 + 1:
            raise RerankError(f"re-ranking: k2 must lie between 1 and k1 + 1 = {self.k1 + 1}, got {self.k2}")
        if not 0 <= self.lambda_ <= 1:
            raise RerankError(f"re-ranking: lambda must lie between 0 and 1, got {self.lambda_}")
        if self.distance not in ENTERING:
            raise RerankError(f"re-ranking: distance must be one of {', '.join(ENTERING)}, got {self.distance!r}")


def params_grid(start: RerankParams, values: Mapping[str, Sequence[float]]) -> list[RerankParams]:
    """All combinations of values of "k1", "k2" and "lambda"; what is not named stays as it is at the start."""
    k1s, k2s, lambdas = (values.get(name, [kept]) for name, kept in _named(start))
    return [RerankParams(int(k1), int(k2), lambda_, start.distance) for k1 in k1s for k2 in k2s for lambda_ in lambdas]


def _named(params: RerankParams) -> list[tuple[str, float]]:
    return [("k1", params.k1), ("k2", params.k2), ("lambda", params.lambda_)]


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
    distance = np.empty((len(query), len(gallery)), dtype=np.float32)
    start = 0
    for block in reranked_blocks(points, len(query), params or RerankParams(), block_rows=2 * _BLOCK_ROWS):
        distance[start : start + len(block)] = block
        start += len(block)
    return distance


def reranked_blocks(
    distances: PointDistances, num_query: int, params: RerankParams, *, block_rows: int = _BLOCK_ROWS
) -> Iterator[np.ndarray]:
    """The rows of the re-ranked distances, (B, G) at a time, for the first `num_query` points against the others.

    Neighbours and encodings are ready when this returns; the blocks are computed as they are asked for.
    """
    queries = np.arange(num_query)
    blocks = swept_blocks(distances, queries, [params], first_gallery=num_query, block_rows=block_rows)
    return (block for (block,) in blocks)


def swept_blocks(
    distances: PointDistances,
    queries: np.ndarray,
    sweep: Sequence[RerankParams],
    *,
    first_gallery: int,
    block_rows: int = _BLOCK_ROWS,
) -> Iterator[list[np.ndarray]]:
    """Re-ranked distances under several settings: for each block of the queries one (B, G) per setting.

    `queries` (Q,) are points; the gallery is all points from `first_gallery` on. Neighbours are found once, for the
    largest k1. The blocks may be overwritten.
    """
    encoded = _encoded(distances, sweep, first_gallery)
    return _swept_blocks(distances, queries, sweep, first_gallery, encoded, block_rows)


_Key = tuple[int, int, Entering]


def _key(params: RerankParams) -> _Key:
    """What decides the encoding; lambda does not."""
    return params.k1, params.k2, params.distance


def _encodings(
    distances: PointDistances, neighbours: Neighbours, sweep: Sequence[RerankParams]
) -> dict[_Key, csr_array]:
    encodings: dict[_Key, csr_array] = {}
    before_averaging: dict[tuple[int, Entering], csr_array] = {}
    for params in sweep:
        half = (params.k1, params.distance)
        if half not in before_averaging:
            members = _expanded_reciprocal_sets(neighbours.nearest[:, : params.k1 + 1], params.k1)
            before_averaging[half] = _encode(distances, members, neighbours, params.distance)
        if _key(params) not in encodings:
            encoding, nearest = before_averaging[half], neighbours.nearest[:, : params.k2]
            encodings[_key(params)] = _average_over(nearest, encoding) if params.k2 > 1 else encoding
    return encodings


@dataclass(frozen=True)
class RoughBlock:
    """Re-ranked distances (B, G) of a block of queries, how far they can be off (B,), and the exact ones of pairs."""

    values: np.ndarray
    error: np.ndarray
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray]


def rough_swept_blocks(
    distances: FeatureDistances, num_query: int, sweep: Sequence[RerankParams], *, block_rows: int = _BLOCK_ROWS
) -> Iterator[list[RoughBlock]]:
    """`swept_blocks` of squared distances between the first points and the others, from float32 products."""
    encoded = _encoded(distances, sweep, num_query)
    for start in range(0, num_query, block_rows):
        points = np.arange(start, min(start + block_rows, num_query))
        farthest_sq = encoded.farthest_sq[points]
        block = distances.rough(start, int(points[-1]) + 1, num_query)
        block /= farthest_sq[:, None]
        jaccard = encoded.jaccard(points)
        yield [
            RoughBlock(
                values=_mixed(params, jaccard[_key(params)], block),
                error=params.lambda_ * distances.error[points] / farthest_sq + _MIXING_ERROR,
                exact=_ExactMixture(distances, params, jaccard[_key(params)], points, farthest_sq, num_query),
            )
            for params in sweep
        ]


@dataclass(frozen=True)
class _ExactMixture:
    distances: FeatureDistances
    params: RerankParams
    jaccard: np.ndarray
    points: np.ndarray
    farthest_sq: np.ndarray
    first_gallery: int

    def __call__(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        distance_sq = self.distances.pairs(self.points[queries], self.first_gallery + columns)
        return _mixed(self.params, self.jaccard[queries, columns], distance_sq / self.farthest_sq[queries])


def _mixed(params: RerankParams, jaccard: np.ndarray, original: np.ndarray) -> np.ndarray:
    return (1 - params.lambda_) * jaccard + params.lambda_ * original


@dataclass(frozen=True)
class _Encoded:
    """What is known of all points once neighbours and encodings are ready."""

    farthest_sq: np.ndarray
    encodings: dict[_Key, csr_array]
    gallery_columns: dict[_Key, csc_array]

    def jaccard(self, points: np.ndarray) -> dict[_Key, np.ndarray]:
        """Jaccard distances (B, G) between some points and the gallery, for each kind of encoding."""
        found = {}
        for key, encoding in self.encodings.items():
            shared = _shared_weight(encoding[points], self.gallery_columns[key])
            # Rows of the encoding sum to 1, so the weight in the union is 2 minus the weight in the intersection.
            found[key] = 1 - shared / (2 - shared)
        return found


def _encoded(distances: PointDistances, sweep: Sequence[RerankParams], first_gallery: int) -> _Encoded:
    num_points = distances.num_points
    k1 = max(params.k1 for params in sweep)
    if k1 >= num_points:
        raise RerankError(
            f"re-ranking: k1 = {k1} needs more than {k1} pictures in query and gallery together, found "
            f"{num_points}; use k1 = {num_points - 1} or less"
        )
    neighbours = distances.neighbours(k1 + 1)
    encodings = _encodings(distances, neighbours, sweep)
    columns = {key: encoding[first_gallery:].tocsc() for key, encoding in encodings.items()}
    return _Encoded(neighbours.farthest_sq, encodings, columns)


def _swept_blocks(
    distances: PointDistances,
    queries: np.ndarray,
    sweep: Sequence[RerankParams],
    first_gallery: int,
    encoded: _Encoded,
    block_rows: int,
) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(queries), block_rows):
        points = queries[start : start + block_rows]
        distance_sq = distances.rows(points, first_gallery)  # (B, G)
        original = {
            entering: _entered(distance_sq, entering) / _entered(encoded.farthest_sq[points], entering)[:, None]
            for entering in {params.distance for params in sweep}
        }
        jaccard = encoded.jaccard(points)
        yield [_mixed(params, jaccard[_key(params)], original[params.distance]) for params in sweep]


def _entered(distance_sq: np.ndarray, entering: Entering) -> np.ndarray:
    match entering:
        case "squared":
            return distance_sq
        case "quartic":
            return distance_sq * distance_sq
        case "raw":
            return np.sqrt(distance_sq)


def _expanded_reciprocal_sets(neighbours: np.ndarray, k1: int) -> csr_array:
    """Row i marks the members of R*(i): the mutual neighbours of i, and those of theirs who fit.

    The mutual neighbours of a member j, in lists of half the length, join if more than two thirds of them are mutual
    neighbours of i already. The test always asks the set as it was before anybody joined.
    """
    from scipy.sparse import csr_array, vstack  # which takes longer to import than a ranking without it needs

    mutual = _mutual(neighbours)
    half_mutual = _mutual(neighbours[:, : round(k1 / 2) + 1])  # round half to even, as the authors' np.around
    half_transposed = half_mutual.T.tocsr()
    half_size = half_mutual.sum(axis=1)
    expanded = []
    for start in range(0, len(neighbours), _SET_ROWS):
        some = mutual[start : start + _SET_ROWS]
        common = (some @ half_transposed).multiply(some).tocoo()  # |H(j) and R(i)| for j in R(i)
        fits = 3 * common.data > 2 * half_size[common.col]
        invited = csr_array((common.data[fits], (common.row[fits], common.col[fits])), shape=some.shape)
        expanded.append(some + invited @ half_mutual)
    members = vstack(expanded, format="csr")
    members.sort_indices()
    return members


def _mutual(neighbours: np.ndarray) -> csr_array:
    """1 where each of two points has the other in its list of neighbours."""
    lists = _from_lists(neighbours, np.int32)
    return lists.multiply(lists.T).tocsr()


def _from_lists(lists: np.ndarray, dtype: type) -> csr_array:
    """Row i holds 1 in the columns `lists[i]`, stored in the order of the list."""
    from scipy.sparse import csr_array

    num_points, length = lists.shape
    starts = np.arange(0, lists.size + 1, length)
    return csr_array((np.ones(lists.size, dtype=dtype), lists.ravel(), starts), shape=(num_points, num_points))


def _encode(
    distances: PointDistances, members: csr_array, neighbours: Neighbours, entering: Entering = "squared"
) -> csr_array:
    """Weight exp(-distance) for the members of each row, distances as shares of the row's largest; rows sum to 1."""
    from scipy.sparse import csr_array

    rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
    entered = _entered(_member_distances(distances, rows, members.indices, neighbours), entering)
    weights = np.exp(-entered / _entered(neighbours.farthest_sq, entering)[rows])
    totals = np.array([weights[start:stop].sum() for start, stop in pairwise(members.indptr)], dtype=np.float32)
    return csr_array((weights / totals[rows], members.indices, members.indptr), shape=members.shape)


def _member_distances(
    distances: PointDistances, rows: np.ndarray, members: np.ndarray, neighbours: Neighbours
) -> np.ndarray:
    """Squared distances (M,) between points and members of theirs, most of which are neighbours and known."""
    num_points = distances.num_points
    order = np.argsort(neighbours.nearest, axis=1)
    known = np.take_along_axis(neighbours.nearest, order, axis=1) + num_points * np.arange(num_points)[:, None]
    known_sq = np.take_along_axis(neighbours.distance_sq, order, axis=1).ravel()
    wanted = rows * num_points + members
    place = np.minimum(np.searchsorted(known.ravel(), wanted), known.size - 1)
    distance_sq = known_sq[place]
    missing = known.ravel()[place] != wanted
    distance_sq[missing] = distances.pairs(rows[missing], members[missing])
    return distance_sq


def _average_over(nearest: np.ndarray, encoding: csr_array) -> csr_array:
    """Replace each row by the mean of the rows of its nearest points: local query expansion."""
    mean = _from_lists(nearest, np.float32) @ encoding
    mean.data /= np.float32(nearest.shape[1])  # a sparse array would multiply by the rounded reciprocal
    mean.sort_indices()
    return mean


def _shared_weight(own: csr_array, gallery_columns: csc_array) -> np.ndarray:
    """Sum over the columns of the smaller of two weights, between rows (B, N) and gallery rows: (B, G) float32.

    Only the columns of a row's own members are visited; elsewhere the smaller weight is 0.
    """
    num_gallery = gallery_columns.shape[0]
    shared = np.zeros((own.shape[0], num_gallery), dtype=np.float32)
    for start in range(0, len(shared), _SHARING_ROWS):
        some = own[start : start + _SHARING_ROWS]
        first = gallery_columns.indptr[some.indices]
        length = gallery_columns.indptr[some.indices + 1] - first
        # Where the entries of these columns stand, one column after the other.
        entries = np.arange(length.sum()) + np.repeat(first - np.cumsum(length) + length, length)
        smaller = np.minimum(np.repeat(some.data, length), gallery_columns.data[entries])
        row_starts = np.repeat(np.arange(some.shape[0]) * num_gallery, np.diff(some.indptr))
        places = np.repeat(row_starts, length) + gallery_columns.indices[entries]
        np.add.at(shared[start : start + _SHARING_ROWS].reshape(-1), places, smaller)
    return shared


def memory_of_reranking(
    num_points: int, num_gallery: int, num_features: int, sweep: Sequence[RerankParams], block_rows: int
) -> int:
    """Bytes that `swept_blocks` on features needs at its peak, about: encodings grow with the data."""
    count = max(params.k1 for params in sweep) + 1
    encodings = sum(_ENCODED_SHARE * (k1 + 1) * k2 * 16 for k1, k2, _ in {_key(params) for params in sweep})
    sets = 12 * 8 * count
    final = block_rows * num_gallery * 4 * (4 + 3 * len(sweep)) + 3 * 8 * 4096 * num_features
    stage = max(memory_of_neighbours(num_points, count), int(num_points * (encodings + sets) + final))
    return num_points * (4 * num_features + 8 * count) + stage + 48 * 2048 * num_features
