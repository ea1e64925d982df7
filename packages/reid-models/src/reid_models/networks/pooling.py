"""From a feature map to one vector per horizontal stripe of the person."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PoolKind = Literal["avg", "max", "gem"]


class StripePool(nn.Module):
    """Pool a feature map into stripes of equal height, over their whole width.

    "gem" is the generalised mean (Radenovic et al. 2018), mean(max(x, 1e-6)^p)^(1/p), with one learned exponent:
    p = 1 is the average, and the larger p, the nearer the maximum. Where H is no multiple of S, adaptive pooling lets
    neighbouring stripes overlap by a row, and the first such map is warned of.

    Shapes:
        feature_map  (B, C, H, W)   H >= S; ValueError otherwise
        returns      (B, C, S, 1)   S = num_stripes, the top of the person first
    """

    def __init__(self, num_stripes: int, kind: PoolKind = "avg") -> None:
        super().__init__()
        if num_stripes < 1:
            raise ValueError(f"num_stripes must be at least 1, got {num_stripes}")
        if kind not in get_args(PoolKind):
            raise ValueError(f"pool must be one of {', '.join(get_args(PoolKind))}, got {kind!r}")
        self.num_stripes, self.kind = num_stripes, kind
        if kind == "gem":
            self.p = nn.Parameter(torch.full((1,), 3.0))
        self._has_warned = False

    def forward(self, feature_map: Tensor) -> Tensor:
        height, stripes = feature_map.shape[2], self.num_stripes
        if height < stripes:
            raise ValueError(f"a feature map of {height} rows cannot be cut into {stripes} stripes; use higher images")
        if height % stripes and not self._has_warned:
            self._has_warned = True
            logger.warning("feature maps of %d rows are cut into %d stripes, which overlap", height, stripes)
        match self.kind:
            case "avg":
                return F.adaptive_avg_pool2d(feature_map, (stripes, 1))
            case "max":
                return F.adaptive_max_pool2d(feature_map, (stripes, 1))
            case "gem":
                # p has a dimension, so powers of a half-precision map are taken in p's type: x^3 leaves float16 at 41.
                powers = feature_map.clamp(min=1e-6).pow(self.p)
                return F.adaptive_avg_pool2d(powers, (stripes, 1)).pow(1 / self.p)
