"""Precision and recall, density and coverage: are generated pictures like real ones, and all kinds of them.

Around each vector lies a ball that reaches to its k-th nearest neighbour in its own set.

precision  share of generated vectors inside some real ball
recall     share of real vectors inside some generated ball
density    number of real balls a generated vector lies in, divided by k; may exceed 1
coverage   share of real balls that hold a generated vector

The first two are those of Kynkaanniemi et al. 2019 (k = 3, the border is inside), the others of Naeem et al. 2020
(k = 5, the border is outside).

    prdc(real, fake)                 # Prdc(precision=..., recall=..., density=..., coverage=...)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid_eval.distances import squared_distances
from reid_eval.frechet import StatisticsError
from reid_eval.stopping import check_stop

PRECISION_K = 3
DENSITY_K = 5
_ROWS = 1024


@dataclass(frozen=True)
class Prdc:
    """Fractions 0..1, except density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, fake: np.ndarray, *, k: int = PRECISION_K, density_k: int = DENSITY_K) -> Prdc:
    """All four, from one matrix of distances that is never whole in memory.

    Distances are Euclidean, summed in float64 and compared in float32; equal vectors are at distance 0.

    Shapes:
        real  (N, D)
        fake  (M, D)   N and M more than k and density_k

    Raises:
        StatisticsError: different numbers of features, or too few vectors for k neighbours.
        Stopped: within `stopping.stoppable`, something asked to stop.
    """
    if real.shape[1] != fake.shape[1]:
        raise StatisticsError(
            f"{real.shape[1]} features against {fake.shape[1]}: expected one extractor for both sides"
        )
    for side, name in ((real, "real"), (fake, "generated")):
        largest = max(k, density_k)
        if len(side) <= largest:
            raise StatisticsError(
                f"{len(side)} {name} pictures: precision, recall, density and coverage need more than {largest}, their "
                "number of neighbours"
            )
        if not np.isfinite(side).all():  # which is never inside a ball
            raise StatisticsError(f"{name} features that are not finite; are the extractor's weights damaged?")
    real_sq = _radii_sq(real, (k, density_k))
    fake_sq = _radii_sq(fake, (k,))
    in_real = np.zeros(len(fake), bool)
    num_balls = np.zeros(len(fake), np.int64)
    in_fake = np.empty(len(real), bool)
    covered = np.empty(len(real), bool)
    for start in range(0, len(real), _ROWS):
        check_stop()
        rows = slice(start, start + _ROWS)
        distance_sq = squared_distances(real[rows], fake)  # (B, M)
        in_real |= (distance_sq <= real_sq[rows, :1]).any(axis=0)
        in_fake[rows] = (distance_sq <= fake_sq[None, :, 0]).any(axis=1)
        inside = distance_sq < real_sq[rows, 1:]
        num_balls += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
    return Prdc(
        precision=float(in_real.mean()),
        recall=float(in_fake.mean()),
        density=float(num_balls.mean() / density_k),
        coverage=float(covered.mean()),
    )


def _radii_sq(points: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Squared distances (N, len(ks)) to the k-th nearest other vectors."""
    radii = np.empty((len(points), len(ks)), np.float32)
    for start in range(0, len(points), _ROWS):
        check_stop()
        distance_sq = squared_distances(points[start : start + _ROWS], points)
        rows = np.arange(len(distance_sq))
        distance_sq[rows, start + rows] = np.inf
        nearest = np.sort(np.partition(distance_sq, max(ks) - 1, axis=1)[:, : max(ks)], axis=1)
        radii[start : start + len(rows)] = nearest[:, [k - 1 for k in ks]]
    return radii
