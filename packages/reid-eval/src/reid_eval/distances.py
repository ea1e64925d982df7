"""Distances between feature vectors, reproducible to the bit of a float32.

Products are summed in float64 and the result is rounded to float32, so a distance does not depend on the block it was
computed in, on the number of threads or on the BLAS library: their float64 differences, some eight digits below the
last one of a float32, vanish in the rounding. Equal vectors therefore tie, and ties are settled by the order of the
gallery and not by chance.

    distance_sq = squared_distances(query, gallery)    # (Q, G) float32
"""

from __future__ import annotations

import numpy as np

# Columns and pairs taken at a time: enough for a fast product, and a few megabytes of float64.
_COLUMNS = 4096
_PAIRS = 2048

# Squared distances below this share of |x|^2 + |y|^2 are rounding of the float64 sum: the vectors are the same.
_RESOLUTION = 1e-12


def unit_length(features: np.ndarray) -> np.ndarray:
    """Scale each vector to length 1.

    Shapes:
        features  (N, D)
        returns   (N, D)  float32; a zero vector stays zero
    """
    wide = features.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return (wide / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)


def squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between all pairs.

    Shapes:
        rows     (B, D)
        columns  (G, D)
        returns  (B, G)  float32, never negative, 0 for equal vectors
    """
    wide_rows = rows.astype(np.float64)
    rows_sq = np.einsum("bd,bd->b", wide_rows, wide_rows)
    distance_sq = np.empty((len(rows), len(columns)), dtype=np.float32)
    for start in range(0, len(columns), _COLUMNS):
        wide_columns = columns[start : start + _COLUMNS].astype(np.float64)
        columns_sq = np.einsum("gd,gd->g", wide_columns, wide_columns)
        products = wide_rows @ wide_columns.T  # (B, G')
        distance_sq[:, start : start + _COLUMNS] = _combine(rows_sq[:, None] + columns_sq, products)
    return distance_sq


def paired_squared_distances(points: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between `points[first[m]]` and `points[second[m]]`.

    Shapes:
        points         (N, D)
        first, second  (M,)    rows of points
        returns        (M,)    float32, the values `squared_distances` gives for these pairs
    """
    distance_sq = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), _PAIRS):
        x = points[first[start : start + _PAIRS]].astype(np.float64)
        y = points[second[start : start + _PAIRS]].astype(np.float64)
        squares = np.einsum("md,md->m", x, x) + np.einsum("md,md->m", y, y)
        distance_sq[start : start + _PAIRS] = _combine(squares, np.einsum("md,md->m", x, y))
    return distance_sq


def _combine(squares: np.ndarray, products: np.ndarray) -> np.ndarray:
    distance_sq = squares - 2 * products
    return np.where(distance_sq > _RESOLUTION * squares, distance_sq, 0.0)
