"""Vectors that are made of a coarse and a fine part, as those of DG-Net's two heads, and the weight between them.

The published score of a query and a gallery picture is <coarse, coarse> + alpha <fine, fine>, each part of length 1;
alpha = -1 means the fine part alone. Here each part is weighted by the root of its weight, on both sides, and the whole
taken to length 1, so any ranking by cosine or Euclidean distance is the published one.

    for alpha in (0, 0.5, -1):
        rank(weighted(features, alpha))
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from reid_eval.features import FeatureFileError, ReidFeatures

COARSE, FINE = "coarse", "fine"

_ROWS = 4096
_TOLERANCE = 1e-3
"""of a length of 1: vectors may be stored in half precision"""


def weighted(features: ReidFeatures, alpha: float) -> ReidFeatures:
    """The same pictures, compared by both parts: the fine one counts alpha times; with -1 alone.

    Raises:
        FeatureFileError: the vectors have no parts, one that is needed is zero, or alpha is neither -1 nor from 0 on.
    """
    if not (alpha == -1 or 0 <= alpha < math.inf):
        raise FeatureFileError(f"alpha {alpha:g}: expected 0 or more, or -1 for the fine part alone")
    places = parts_of(features)
    if places is None:
        raise FeatureFileError(
            f"features: vectors of {features.num_features} numbers that are not said to have a coarse and a fine part "
            "(meta parts), nor have halves of length 1 as DG-Net's; expected such for --alpha"
        )
    weights = {COARSE: 0.0, FINE: 1.0} if alpha == -1 else {COARSE: 1.0, FINE: math.sqrt(alpha)}
    used = [(name, places[name], weight) for name, weight in weights.items() if weight]
    vectors = np.empty((len(features), sum(place.stop - place.start for _, place, _ in used)), dtype=np.float32)
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        wide = np.asarray(features.features[rows], dtype=np.float64)
        pieces = [weight * _unit(wide[:, place], features, start, name) for name, place, weight in used]
        whole = np.concatenate(pieces, axis=1)
        vectors[rows] = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    return replace(features, features=vectors, meta={**features.meta, "alpha": alpha})


def parts_of(features: ReidFeatures) -> dict[str, slice] | None:
    """Where the parts of the vectors stand: as their file says, or the halves where each has length 1; None if none do.

    Raises:
        FeatureFileError: the file says what cannot be.
    """
    said = features.meta.get("parts")
    if said is None:
        half = features.num_features // 2
        places = {COARSE: slice(0, half), FINE: slice(half, 2 * half)}
        return places if features.num_features == 2 * half and _have_length_1(features, places) else None
    try:
        places = {name: slice(*(int(end) for end in said[name])) for name in (COARSE, FINE)}
        fits = all(0 <= place.start < place.stop <= features.num_features for place in places.values())
    except (TypeError, ValueError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise FeatureFileError(
            f"meta: parts {said!r}, expected {{'coarse': [start, stop], 'fine': [start, stop]}} within "
            f"{features.num_features} numbers"
        )
    return places


def _have_length_1(features: ReidFeatures, places: dict[str, slice]) -> bool:
    for start in range(0, len(features), _ROWS):
        wide = np.asarray(features.features[start : start + _ROWS], dtype=np.float64)
        for place in places.values():
            if (np.abs(np.linalg.norm(wide[:, place], axis=1) - 1) > _TOLERANCE).any():
                return False
    return len(features) > 0 and features.num_features > 2


def _unit(part: np.ndarray, features: ReidFeatures, start: int, name: str) -> np.ndarray:
    length = np.linalg.norm(part, axis=1, keepdims=True)
    zero = np.flatnonzero(length == 0)
    if len(zero):
        raise FeatureFileError(
            f"features: the {name} part of {features.paths[start + zero[0]]} is zero; were these vectors extracted "
            "without it? extract again"
        )
    return part / length
