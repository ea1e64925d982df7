"""The Frechet distance of two Gaussians, and the moments of a set of vectors: arrays in, numbers out.

d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2. With C = F F^T on both sides the last trace is the sum of the
singular values of G = F1^T F2, the roots of the eigenvalues of G G^T. So everything stays real and no general matrix
root is taken, which loses digits for singular covariances. F has as many columns as C has rank: it comes from a
Cholesky decomposition with pivoting, or is made of the vectors themselves.

A covariance has no negative eigenvalues. Rounding makes some (a file that keeps it in 16 bits): where the Cholesky
decomposition leaves anything over, eigenvalues are taken, those that rounding explains count as 0 with a remark, and
what it does not explain is refused. The sum of singular values is at most (tr F1 F1^T + tr F2 F2^T) / 2, whatever F1
and F2 are. So it is known how far rounding takes a distance below 0, and what is further below is refused.

    frechet(mean1, cov1, mean2, cov2)               # Frechet(value=..., remarks=(...))
    frechet_distance(mean1, cov1, mean2, cov2)      # the value alone
    frechet_distance_of_features(x, y)              # the same; much cheaper with fewer vectors than features
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from reid_eval.errors import ReidError

logger = logging.getLogger(__name__)

# How far the sum of singular values may be off, as a share of it, when they are taken as roots of eigenvalues.
_ROOTS_ERROR = 1e-10
# How far below 0 a distance may come out by rounding, as a share of the traces that it is the difference of.
_ROUNDED_BELOW_0 = 1e-9
_EPSILON = float(np.finfo(np.float64).eps)
_SINGLE = float(np.finfo(np.float32).eps) / 2


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
        batch = _real(features, "the extractor gave features", "are its weights damaged?")
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


@dataclass(frozen=True)
class Frechet:
    """The squared distance, and what had to be done to a covariance for it, in sentences."""

    value: float
    remarks: tuple[str, ...] = ()


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The value of `frechet`, whose remarks become warnings."""
    found = frechet(mean1, cov1, mean2, cov2)
    for remark in found.remarks:
        logger.warning("%s", remark)
    return found.value


def frechet(
    mean1: np.ndarray,
    cov1: np.ndarray,
    mean2: np.ndarray,
    cov2: np.ndarray,
    *,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> Frechet:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982), never negative; `names` are for messages.

    Shapes:
        mean1, mean2  (D,)
        cov1, cov2    (D, D)  symmetric, positive semidefinite but for rounding, of any rank

    Raises:
        StatisticsError: the two sides have different numbers of features, or one is no mean and covariance.
    """
    first, second = _moments(mean1, cov1, names[0]), _moments(mean2, cov2, names[1])
    _refuse_unequal(len(first.mean), len(second.mean))
    return Frechet(_distance(first, second), tuple(side.remark for side in (first, second) if side.remark))


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
    return _distance(_moments_of(x), _moments_of(y))


def _stats(features: np.ndarray) -> ImageStats:
    stats = ImageStats(features.shape[1])
    for start in range(0, len(features), 4096):
        stats.update(features[start : start + 4096])
    return stats


@dataclass(frozen=True)
class _Moments:
    """A mean (D,), the trace of a covariance, and F (D, rank) with F F^T = C but for what counts as 0.

    `above` is how much larger the trace of F F^T is, since negative eigenvalues count as 0 there. The trace itself is
    taken as it was kept: rounding moves it both ways, and leaving negative eigenvalues out only up.
    """

    mean: np.ndarray
    factor: np.ndarray
    trace: float
    above: float = 0.0
    remark: str = ""


def _moments_of(features: np.ndarray) -> _Moments:
    """Mean and F (D, N - 1).

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
    return _Moments(mean, centred[1:].T, float(np.square(centred[1:]).sum()))


def _finite(features: np.ndarray) -> np.ndarray:
    if len(features) < 2:
        raise StatisticsError(f"{len(features)} pictures: a covariance needs at least 2")
    return _real(features, "the extractor gave features", "are its weights damaged?")


def _real(values: np.ndarray, what: str, remedy: str) -> np.ndarray:
    """Real, finite values as float64."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise StatisticsError(f"{what} of type {values.dtype}, expected real numbers; {remedy}")
    if not np.isfinite(values).all():
        raise StatisticsError(f"{what} that are not finite; {remedy}")
    return values.astype(np.float64)


def _refuse_unequal(first: int, second: int) -> None:
    if first != second:
        raise StatisticsError(f"{first} features against {second}: expected one extractor for both sides")


def _moments(mean: np.ndarray, cov: np.ndarray, name: str) -> _Moments:
    """Mean and F of a covariance that is one, or is one but for rounding.

    Raises:
        StatisticsError: it is none; says in what.
    """
    remedy = "make the statistics again"
    mean = _real(mean, f"{name}: a mean with values", remedy)
    cov = _real(cov, f"{name}: a covariance with values", remedy)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise StatisticsError(f"{name}: a mean of shape {mean.shape} and a covariance of {cov.shape}; {remedy}")
    if not len(mean):
        raise StatisticsError(f"{name}: a mean of no features; {remedy}")
    rounding = _Rounding.of(mean, cov)
    smallest = float(cov.diagonal().min())
    if smallest < -rounding.of_sums:
        raise StatisticsError(f"{name}: no covariance: a variance of {smallest:.3g} on its diagonal; {remedy}")
    if not np.array_equal(cov, cov.T):
        apart = float(np.abs(cov - cov.T).max())
        if apart > rounding.whole:
            raise StatisticsError(f"{name}: no covariance: not symmetric, by up to {apart:.3g}; {remedy}")
        cov = (cov + cov.T) / 2
    trace, factor = float(np.trace(cov)), _cholesky(cov)
    if factor is not None:
        return _Moments(mean, factor, trace)
    from scipy import linalg  # which takes longer to import than most commands need

    values, vectors = linalg.eigh(cov, check_finite=False)
    if values[0] < -rounding.whole:
        raise StatisticsError(
            f"{name}: no covariance: not positive semidefinite, with eigenvalues from {values[0]:.3g} to "
            f"{values[-1]:.3g}, and rounding explains {-rounding.whole:.1g} at most; {remedy}"
        )
    kept = values > 0
    above = float(-values[~kept].sum())
    remark = (
        f"{name}: {int((values < 0).sum())} of {len(values)} eigenvalues of the covariance are negative, down to "
        f"{values[0]:.1e} beside a largest of {values[-1]:.1e}; that is rounding ({rounding.bits} bits), they count as "
        f"0, and the value may be off by about {above:.1g}."
    )
    return _Moments(mean, vectors[:, kept] * np.sqrt(values[kept]), trace, above, remark)


@dataclass(frozen=True)
class _Rounding:
    """How far rounding moves a covariance: in the sums that it was made of, and in those and in how it was kept.

    Values rounded to a unit u move eigenvalues by at most u times the trace, for |c_ij| <= (c_ii c_jj)^1/2. Sums of
    products lose more the larger the mean is, which some programs subtract only at the end.
    """

    bits: int
    of_sums: float
    whole: float

    @classmethod
    def of(cls, mean: np.ndarray, cov: np.ndarray) -> _Rounding:
        """By the coarsest type of numbers that holds the values, whatever type they have now."""
        trace = float(np.abs(cov.diagonal()).sum())
        kinds = (np.float16, np.float32)
        kind = next((kind for kind in kinds if _holds(kind, cov[0]) and _holds(kind, cov)), np.float64)
        about = np.finfo(kind)
        unit = len(cov) * _EPSILON if kind is np.float64 else _SINGLE
        of_sums = 4 * unit * (trace + float(mean @ mean))
        kept = float(about.eps) / 2 * trace + len(cov) * float(about.smallest_subnormal) / 2
        return cls(about.bits, of_sums, of_sums + kept)


def _holds(kind: type[np.floating[Any]], values: np.ndarray) -> bool:
    """Whether a type of numbers holds all values exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(kind), values)


def _distance(first: _Moments, second: _Moments) -> float:
    """The squared distance.

    Raises:
        StatisticsError: it comes out as no number, or further below 0 than rounding takes it.
    """
    spread = first.trace + second.trace
    gap = float(np.square(first.mean - second.mean).sum())
    value = gap + spread - 2 * _nuclear_norm(first.factor.T @ second.factor)
    if not np.isfinite(value):
        raise StatisticsError("the numbers are too large for a distance; were features scaled, or files damaged?")
    if value < -first.above - second.above - _ROUNDED_BELOW_0 * spread:
        raise StatisticsError(
            f"the distance came out as {value:.3g}, which is impossible and more than rounding; nothing is reported: "
            "please send these statistics to whoever looks after this program"
        )
    return max(value, 0.0)


def _nuclear_norm(matrix: np.ndarray) -> float:
    """Sum of the singular values.

    Eigenvalues of the product with itself have an absolute error of about epsilon times the square of the Frobenius
    norm. Their roots are taken if what that makes of the sum is small, otherwise singular values, which take several
    times as long and have an error of epsilon times the largest only.
    """
    from scipy import linalg

    if 0 in matrix.shape:
        return 0.0
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    with np.errstate(over="ignore"):
        product = matrix @ matrix.T
    error = _EPSILON * float(np.trace(product))
    if not np.isfinite(error):
        return float("nan")
    values = linalg.eigvalsh(product, overwrite_a=True, check_finite=False)
    if values[0] > error:
        roots = np.sqrt(values)
        if error * (0.5 / roots).sum() <= _ROOTS_ERROR * roots.sum():
            return float(roots.sum())
    return float(linalg.svdvals(matrix, check_finite=False).sum())


def _cholesky(cov: np.ndarray) -> np.ndarray | None:
    """F (D, rank) with F F^T = cov, by a Cholesky decomposition that takes the largest pivot left and ends where none
    is larger than rounding; None if what is left then is more than rounding, so that `cov` has negative eigenvalues.
    """
    from scipy import linalg

    triangle, pivots, rank, _ = linalg.lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    left = pivots[rank:] - 1
    if len(left):
        rest = cov[np.ix_(left, left)] - factor[left] @ factor[left].T
        if np.abs(rest).max() > 8 * len(cov) * _EPSILON * cov.diagonal().max():
            return None
    return factor
