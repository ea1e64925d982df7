"""Distances as whole numbers in the same order, which sort faster together with where they stood."""

from __future__ import annotations

import numpy as np


def rising_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers (M,) int32 in the order of float32 values (M,), no NaN among them."""
    bits = values.view(np.int32)
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits)  # negative numbers are stored by size and sign


def in_whole_numbers(*arrays: np.ndarray) -> list[np.ndarray]:
    """Numbers from 0 to 2 ** 32 - 2, int64, that are in the order of all values of the arrays; equal where they are."""
    if all(array.dtype == np.float32 for array in arrays):
        return [rising_bits(array) + np.int64(2**31) for array in arrays]
    _, ranks = np.unique(np.concatenate(arrays), return_inverse=True)
    return np.split(ranks.astype(np.int64), np.cumsum([len(array) for array in arrays])[:-1])


def sorted_with_places(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (M,), rising, and where they stood (M,) int64; equal ones keep their order."""
    (keys,) = in_whole_numbers(values)
    shift = (len(values) - 1).bit_length()
    keys <<= shift
    keys += np.arange(len(values))
    keys.sort()
    places = keys & ((1 << shift) - 1)
    return values[places], places
