"""The Frechet distance of two Gaussians, and the moments of a set of vectors: arrays in, numbers out.

d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2. With C = F F^T on both sides the last trace is the sum of the
singular values of G = F1^T F2, the roots of the eigenvalues of G G^T. So everything stays real and no general matrix
root is taken, which loses digits for singular covariances. F has as many columns as C has rank: it comes from a
Cholesky decomposition with pivoting, or is made of the vectors themselves.

    frechet_distance(mean1, cov1, mean2, cov2)
    frechet_distance_of_features(x, y)              # the same; much cheaper with fewer vectors than features
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from reid_eval.errors import ReidError

# How far the sum of singular values may be off, as a share of it, when they are taken as roots of eigenvalues.
_ROOTS_ERROR = 1e-10
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
    return _distance(mean1, mean2, spread, _nuclear_norm(_factor(cov1).T @ _factor(cov2)))


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
    if min(len(x), len(y)) >= x.shape[1]:
        first, second = _stats(x), _stats(y)
        return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    (mean1, factor1), (mean2, factor2) = _mean_and_factor(x), _mean_and_factor(y)
    spread = float(np.square(factor1).sum() + np.square(factor2).sum())
    return _distance(mean1, mean2, spread, _nuclear_norm(factor1.T @ factor2))


def _stats(features: np.ndarray) -> ImageStats:
    stats = ImageStats(features.shape[1])
    for start in range(0, len(features), 4096):
        stats.update(features[start : start + 4096])
    return stats


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and F (D, N - 1) with F F^T = covariance.

    A reflection that turns the vector of ones into the first axis leaves products of columns as they are, and the
    first row of centred vectors empty.
    """
    wide = _finite(features)
    mean = wide.mean(axis=0)
    centred = (wide - mean) / np.sqrt(len(wide) - 1)
    mirror = np.full(len(wide), 1 / np.sqrt(len(wide)))
    mirror[0] -= 1
    mirror /= np.linalg.norm(mirror)
    centred -= np.outer(2 * mirror, mirror @ centred)
    return mean, centred[1:].T


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


def _nuclear_norm(matrix: np.ndarray) -> float:
    """Sum of the singular values.

    Eigenvalues of the product with itself have an absolute error of about epsilon times the square of the Frobenius
    norm. Their roots are taken if what that makes of the sum is small, otherwise singular values, which take several
    times as long and have an error of epsilon times the largest only.
    """
    if 0 in matrix.shape:
        return 0.0
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    product = matrix @ matrix.T
    error = _EPSILON * float(np.trace(product))
    values = linalg.eigvalsh(product, overwrite_a=True, check_finite=False)
    if values[0] > error:
        roots = np.sqrt(values)
        if error * (0.5 / roots).sum() <= _ROOTS_ERROR * roots.sum():
            return float(roots.sum())
    return float(linalg.svdvals(matrix, check_finite=False).sum())


def _factor(cov: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = cov, by a Cholesky decomposition that takes the largest pivot left and ends where none
    is larger than rounding.
    """
    triangle, pivots, rank, _ = linalg.lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    return factor
