"""Training losses: plain functions of tensors, unweighted.

terms = {"id": cross_entropy(output.logits, labels, label_smoothing=0.1),
         "triplet": batch_hard_triplet(output.embeddings, labels, margin=0.3)}
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy against (1 - e) of the one-hot label plus e / K of every class, e being `label_smoothing`.

    Shapes:
        logits   (B, K)   any float type; computed in at least float32
        labels   (B,)     int64
        returns  ()
    """
    return F.cross_entropy(_at_least_float32(logits), labels, label_smoothing=label_smoothing)


def batch_hard_triplet(features: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Triplet loss on the farthest positive and the nearest negative of every anchor (Hermans et al. 2017).

    Euclidean distances of the features as they are. An anchor is its own positive too, so one without a second picture
    counts with distance 0. Anchors without a negative are left out of the mean; if none is left the result is 0.

    Shapes:
        features  (B, D)   any float type; computed in at least float32
        labels    (B,)     int64
        returns   ()
    """
    distance = pairwise_distance(features)  # (B, B)
    same = labels[:, None] == labels[None, :]
    farthest_positive = distance.masked_fill(~same, -torch.inf).amax(1)  # (B,)
    nearest_negative = distance.masked_fill(same, torch.inf).amin(1)
    usable = nearest_negative.isfinite()
    violation = F.relu(farthest_positive[usable] - nearest_negative[usable] + margin)
    return violation.sum() / usable.sum().clamp(min=1)


def pairwise_distance(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) between the rows of features (B, D), with a gradient that stays finite at 0."""
    features = _at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        norm_sq = features.square().sum(1)
        distance_sq = norm_sq[:, None] + norm_sq[None, :] - 2 * features @ features.T
        return distance_sq.clamp(min=1e-12).sqrt()


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
