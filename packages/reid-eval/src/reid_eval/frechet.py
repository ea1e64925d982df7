"""The Frechet distance of two Gaussians, and the moments of a set of vectors: arrays in, numbers out.

d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2. With C = F F^T on both sides the last trace is the sum of the
singular values of F1^T F2, which are the roots of the eigenvalues of the symmetric matrix F1^T C2 F1. So everything
stays real and no general matrix root is taken, which loses digits for singular covariances.

    frechet_distance(mean1, cov1, mean2, cov2)
    frechet_distance_of_features(x, y)              # the same; much cheaper with fewer vectors than features
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from reid_eval.errors import ReidError

# Eigenvalues of F1^T C2 F1 have an absolute error of about 1e-16 of the largest. With none below this share of it the
# sum of their roots is right to 1e-8; otherwise singular values are taken, whose own error is 1e-16 of the largest.
_SAFE_SHARE = 1e-10
_EPSILON = float(np.finfo(np.float64).eps)


class StatisticsError(ReidError):
    """A set of pictures does not give the number that was asked for."""


class ImageStats:
    """Mean and covariance of vectors (D,), gathered batch by batch in float64."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.mean = np.zeros(num_features)
        self._scatter = np.zeros((num_features, num_features))

    def update(self, features: np.ndarray) -> None:
        """Add vectors (B, D), at least one.

        Raises:
            StatisticsError: a value is not finite.
        """
        batch = np.asarray(features, dtype=np.float64)
        if not np.isfinite(batch).all():
            raise StatisticsError("the extractor gave features that are not finite; are its weights damaged?")
        # Chan, Golub, LeVeque 1983: two sets' moments merge exactly, without the cancellation of raw sums of squares.
        count = self.count + len(batch)
        batch_mean = batch.mean(axis=0)
        centred = batch - batch_mean
        step = batch_mean - self.mean
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(batch) / count)
        self.mean = self.mean + step * (len(batch) / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divisor count - 1.

        Raises:
            StatisticsError: fewer than two vectors.
        """
        if self.count < 2:
            raise StatisticsError(f"{self.count} pictures: a covariance needs at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982), never negative.

    Shapes:
        mean1, mean2  (D,)
        cov1, cov2    (D, D)  symmetric, positive semidefinite, of any rank

    Raises:
        StatisticsError: the two sides have different numbers of features.
    """
    _refuse_unequal(len(mean1), len(mean2))
    spread = float(np.trace(cov1) + np.trace(cov2))
    return _distance(mean1, mean2, spread, _trace_of_root(cov1, cov2))


def frechet_distance_of_features(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances (divisor N - 1) of two sets of vectors.

    The covariances' factors are the centred vectors themselves, so with fewer vectors than features the trace comes
    from a small matrix of their products, and no covariance is made.

    Shapes:
        x  (N, D)
        y  (M, D)   N and M at least 2

    Raises:
        StatisticsError: different numbers of features, fewer than two vectors, or a value that is not finite.
    """
    _refuse_unequal(x.shape[1], y.shape[1])
    sides = []
    for features in (x, y):
        if min(len(x), len(y)) >= x.shape[1]:
            stats = ImageStats(features.shape[1])
            for start in range(0, len(features), 4096):
                stats.update(features[start : start + 4096])
            sides.append((stats.mean, stats.covariance))
        else:
            wide = _finite(features)
            mean = wide.mean(axis=0)
            sides.append((mean, (wide - mean) / np.sqrt(len(wide) - 1)))
    (mean1, first), (mean2, second) = sides
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet_distance(mean1, first, mean2, second)
    spread = float(np.square(first).sum() + np.square(second).sum())
    return _distance(mean1, mean2, spread, _nuclear_norm(first @ second.T))


def _finite(features: np.ndarray) -> np.ndarray:
    if len(features) < 2:
        raise StatisticsError(f"{len(features)} pictures: a covariance needs at least 2")
    if not np.isfinite(features).all():
        raise StatisticsError("the extractor gave features that are not finite; are its weights damaged?")
    return np.asarray(features, dtype=np.float64)


def _refuse_unequal(first: int, second: int) -> None:
    if first != second:
        raise StatisticsError(f"{first} features against {second}: expected one extractor for both sides")


def _distance(mean1: np.ndarray, mean2: np.ndarray, spread: float, trace_of_root: float) -> float:
    return max(float(np.square(mean1 - mean2).sum() + spread - 2 * trace_of_root), 0.0)  # -1e-15 for equal sets


def _trace_of_root(cov1: np.ndarray, cov2: np.ndarray) -> float:
    """tr (C1 C2)^1/2."""
    triangles = [_triangle(cov) for cov in (cov1, cov2)]
    if triangles[0] is None or triangles[1] is None:
        factors = [_factor(cov) for cov in (cov1, cov2)]
        return _nuclear_norm(factors[0].T @ factors[1])
    inner = triangles[0].T @ cov2 @ triangles[0]
    values = linalg.eigvalsh((inner + inner.T) / 2, check_finite=False)
    if values[0] > _SAFE_SHARE * values[-1]:
        return float(np.sqrt(values).sum())
    return _nuclear_norm(triangles[0].T @ triangles[1])


def _nuclear_norm(matrix: np.ndarray) -> float:
    """Sum of the singular values."""
    if 0 in matrix.shape:
        return 0.0
    return float(linalg.svdvals(matrix, check_finite=False).sum())


def _triangle(cov: np.ndarray) -> np.ndarray | None:
    """F (D, D), a triangle with F F^T = cov, or None if cov is singular within rounding."""
    try:
        triangle = linalg.cholesky(cov, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return None
    pivots = np.square(np.diagonal(triangle))
    return triangle if pivots.min() > 10 * len(cov) * _EPSILON * pivots.max() else None


def _factor(cov: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = cov."""
    values, vectors = linalg.eigh(cov, check_finite=False)
    there = values > values.max(initial=0.0) * len(values) * _EPSILON
    return vectors[:, there] * np.sqrt(values[there])
