"""A 5x5 convolution of a map doubled by nearest neighbours, without ever doubling it.

Of the 25 pixels under the kernel many are copies of one: each output sees 3x3 pixels of the small map only. So the
four outputs that a small pixel becomes are four 3x3 convolutions of the small map, whose kernels are sums of the 5x5
kernel's numbers: 9 products in place of 25, and no large map to pad. Exact up to the order of sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None, *, reflect: bool, zero: bool = False) -> Tensor:
    """conv2d(pad(doubled x, 2), weight, bias), where pad reflects, or fills with zeros, or repeats the edge.

    Shapes:
        x        (B, C_in, H, W)   H, W at least 2 to reflect
        weight   (C_out, C_in, 5, 5)
        bias     (C_out,)
        returns  (B, C_out, 2 H, 2 W)
    """
    # Repeating the edge of the small map is repeating that of the doubled one, and so it is with zeros.
    padded = F.pad(x, (1, 1, 1, 1)) if zero else F.pad(x, (1, 1, 1, 1), mode="replicate")
    kernels = _halves(_halves(weight, 2), 4)  # (C_out, C_in, 2, 3, 2, 3): row parity, rows, column parity, columns
    kernels = kernels.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (4 C_out, C_in, 3, 3)
    y = F.pixel_shuffle(F.conv2d(padded, kernels, None if bias is None else bias.repeat_interleave(4)), 2)
    if not reflect:
        return y
    # Reflected, the outermost ring of the padding has other pixels: it holds what lies two away from the edge. That
    # reaches the first and last row and column of the output, through one row or column of the kernel.
    near, far = x[:, :, [0, -1]], x[:, :, [1, -2]]  # (B, C_in, 2, W): the rows at the edges, and those beside them
    ring = F.pad(_doubled(far, 3), (2, 2, 0, 0), mode="reflect") - F.pad(
        _doubled(near, 3), (2, 2, 0, 0), mode="replicate"
    )
    top, bottom = ring.split(1, dim=2)
    rows = torch.cat([F.conv2d(top, weight[:, :, :1]), F.conv2d(bottom, weight[:, :, 4:])], dim=2)
    ring = F.pad(_doubled(x[:, :, :, [1, -2]] - x[:, :, :, [0, -1]], 2), (0, 0, 1, 1), mode="replicate")
    left, right = F.pad(ring, (0, 0, 1, 1)).split(1, dim=3)  # the corners are in the rows already
    columns = torch.cat([F.conv2d(left, weight[:, :, :, :1]), F.conv2d(right, weight[:, :, :, 4:])], dim=3)
    y.index_add_(2, torch.tensor([0, y.shape[2] - 1], device=x.device), rows)
    return y.index_add_(3, torch.tensor([0, y.shape[3] - 1], device=x.device), columns)


def _halves(weight: Tensor, dim: int) -> Tensor:
    """Five numbers along a dimension to those of an even and of an odd output, (2, 3)."""
    w0, w1, w2, w3, w4 = weight.unbind(dim)
    even, odd = torch.stack([w0 + w1, w2 + w3, w4], dim), torch.stack([w0, w1 + w2, w3 + w4], dim)
    return torch.stack([even, odd], dim)


def _doubled(x: Tensor, dim: int) -> Tensor:
    return x.repeat_interleave(2, dim=dim)
