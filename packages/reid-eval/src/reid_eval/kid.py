"""Kernel Inception distance (Binkowski et al. 2018): are two sets of vectors of one distribution?

The kernel is k(x, y) = (x.y / D + 1)^3. The estimate is without bias and may be negative. It is taken over all pairs at
once, which needs no random subsets; its interval comes from the same sums.

    kid(x, y)                        # Kid(value=..., low=..., high=...)
    kid_subsets(x, y)                # mean and deviation over random subsets, as torch-fidelity does it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid_eval.frechet import StatisticsError
from reid_eval.progress import track
from reid_eval.stopping import check_stop

_ROWS = 1024
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Kid:
    """The squared distance, with a 95 % interval for the value of the two distributions behind the sets."""

    value: float
    low: float
    high: float


def kid(x: np.ndarray, y: np.ndarray) -> Kid:
    """Unbiased squared maximum mean discrepancy over all vectors, block by block in float64.

    The interval is 1.96 standard errors to both sides. The variance is that of the first term of Hoeffding's
    decomposition, 4 (Var h(x) / N + Var h(y) / M), where h of a vector is its mean kernel value with its own set less
    that with the other. If both sets are of one distribution it is about twice the true one, so the interval is on
    the safe side.

    Shapes:
        x  (N, D)
        y  (M, D)   N and M at least 2

    Raises:
        StatisticsError: different numbers of features, or fewer than two vectors.
        Stopped: within `stopping.stoppable`, something asked to stop.
    """
    _refuse(x, y)
    n, m = len(x), len(y)
    own_x, own_y = _kernel_sums(x, x), _kernel_sums(y, y)
    cross_x, cross_y = _cross_sums(x, y)
    own_x, own_y = own_x - _self_kernel(x), own_y - _self_kernel(y)
    value = own_x.sum() / (n * (n - 1)) + own_y.sum() / (m * (m - 1)) - 2 * cross_x.sum() / (n * m)
    first = own_x / (n - 1) - cross_x / m
    second = own_y / (m - 1) - cross_y / n
    margin = _Z_95 * 2 * np.sqrt(first.var(ddof=1) / n + second.var(ddof=1) / m)
    return Kid(float(value), float(value - margin), float(value + margin))


def kid_subsets(
    x: np.ndarray, y: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and deviation (divisor `subsets`) of the unbiased estimate over random subsets, in torch-fidelity's order.

    Shapes:
        x  (N, D)
        y  (M, D)   N and M at least `subset_size`

    Raises:
        StatisticsError: different numbers of features, or too few vectors.
        Stopped: within `stopping.stoppable`, something asked to stop.
    """
    _refuse(x, y)
    if min(len(x), len(y)) < subset_size:
        raise StatisticsError(
            f"{min(len(x), len(y))} pictures for subsets of {subset_size}; expected no larger --subset-size"
        )
    draw = np.random.RandomState(seed)  # the generator that the numbers of that program depend on
    values = []
    for _ in track(range(subsets), "KID subsets", total=subsets):
        some_x = np.asarray(x[draw.choice(len(x), subset_size, replace=False)], np.float64)
        some_y = np.asarray(y[draw.choice(len(y), subset_size, replace=False)], np.float64)
        own = [(_kernel_sums(some, some) - _self_kernel(some)).sum() for some in (some_x, some_y)]
        cross = _kernel_sums(some_x, some_y).sum()
        values.append(sum(own) / (subset_size * (subset_size - 1)) - 2 * cross / subset_size**2)
    return float(np.mean(values)), float(np.std(values))


def _refuse(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise StatisticsError(f"{x.shape[1]} features against {y.shape[1]}: expected one extractor for both sides")
    if min(len(x), len(y)) < 2:
        raise StatisticsError(f"{min(len(x), len(y))} pictures: KID needs at least 2 on each side")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise StatisticsError("features that are not finite; are the extractor's weights damaged?")


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x.astype(np.float64) @ y.T.astype(np.float64)
    base = products / x.shape[1] + 1
    return base * base * base


def _self_kernel(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    base = np.einsum("nd,nd->n", wide, wide) / x.shape[1] + 1
    return base**3


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of each row's kernel values, (N,)."""
    return _cross_sums(x, y)[0]


def _cross_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel matrix (N, M) along its rows (N,) and columns (M,)."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for i in range(0, len(x), _ROWS):
        check_stop()
        for j in range(0, len(y), _ROWS):
            block = _kernel(x[i : i + _ROWS], y[j : j + _ROWS])
            rows[i : i + _ROWS] += block.sum(axis=1)
            columns[j : j + _ROWS] += block.sum(axis=0)
    return rows, columns
