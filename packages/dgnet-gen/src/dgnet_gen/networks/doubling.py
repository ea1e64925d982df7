"""A 5x5 convolution of a map doubled by nearest neighbours, without ever doubling it.

Of the 25 pixels under the kernel many are copies of one: each output sees 3x3 pixels of the small map only. So the
four outputs that a small pixel becomes are four 3x3 convolutions of the small map, whose kernels are sums of the 5x5
kernel's numbers: 9 products in place of 25, and no large map to pad. Exact up to the order of sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DoubledKernels(NamedTuple):
    """A 5x5 kernel as the small map needs it."""

    inner: Tensor
    """(4 C_out, C_in, 3, 3) for the four outputs of a small pixel"""
    bias: Tensor | None
    """(4 C_out,)"""
    rows: Tensor
    """(2, 5 C_in, C_out) its first and last row, for the two edges where a reflected padding differs"""
    columns: Tensor
    """(2, 5 C_in, C_out) its first and last column"""


def doubled_kernels(weight: Tensor, bias: Tensor | None) -> DoubledKernels:
    """The kernels of a 5x5 convolution (C_out, C_in, 5, 5), bias (C_out,), that sees doubled maps."""
    inner = _halves(_halves(weight, 2), 4)  # (C_out, C_in, 2, 3, 2, 3): row parity, rows, column parity, columns
    return DoubledKernels(
        inner.permute(0, 2, 4, 1, 3, 5).flatten(0, 2),
        None if bias is None else bias.repeat_interleave(4),
        weight[:, :, [0, 4]].permute(2, 1, 3, 0).flatten(1, 2),
        weight[:, :, :, [0, 4]].permute(3, 1, 2, 0).flatten(1, 2),
    )


def convolve_doubled(x: Tensor, kernels: DoubledKernels, *, reflect: bool, zero: bool = False) -> Tensor:
    """conv2d(pad(doubled x, 2), weight, bias), where pad reflects, or fills with zeros, or repeats the edge.

    Shapes:
        x        (B, C_in, H, W)   H, W at least 2 to reflect
        returns  (B, C_out, 2 H, 2 W)
    """
    # Repeating the edge of the small map is repeating that of the doubled one, and so it is with zeros.
    padded = F.pad(x, (1, 1, 1, 1)) if zero else F.pad(x, (1, 1, 1, 1), mode="replicate")
    y = F.pixel_shuffle(F.conv2d(padded, kernels.inner, kernels.bias), 2)
    if not reflect:
        return y
    # Reflected, the outermost ring of the padding has other pixels: it holds what lies two away from the edge. That
    # reaches the first and last row and column of the output, through one row or column of the kernel.
    top, beside_top, beside_bottom, bottom = _edges(x, 2)  # each (B, C_in, 1, W)
    far, near = torch.cat([beside_top, beside_bottom], 2), torch.cat([top, bottom], 2)
    first, last = near[:, :, :, :1].expand(-1, -1, -1, 2), near[:, :, :, -1:].expand(-1, -1, -1, 2)
    ring = F.pad(_doubled(far, 3), (2, 2, 0, 0), mode="reflect") - torch.cat([first, _doubled(near, 3), last], 3)
    rows = _along(ring, kernels.rows)
    left, beside_left, beside_right, right = _edges(x, 3)  # each (B, C_in, H, 1)
    ring = _doubled(torch.cat([beside_left - left, beside_right - right], 3), 2)
    ring = torch.cat([ring[:, :, :1], ring, ring[:, :, -1:]], 2)
    ring = F.pad(ring, (0, 0, 1, 1))  # the corners are in the rows already
    columns = _along(ring.transpose(2, 3), kernels.columns).transpose(2, 3)
    if torch.is_grad_enabled():
        y.index_add_(2, torch.tensor([0, y.shape[2] - 1], device=x.device), rows)
        return y.index_add_(3, torch.tensor([0, y.shape[3] - 1], device=x.device), columns)
    y[:, :, :: y.shape[2] - 1].add_(rows)  # the same: in bfloat16 an index_add_ takes longer than the convolution
    y[:, :, :, :: y.shape[3] - 1].add_(columns)
    return y


def _edges(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The first two and the last two lines of a map."""
    size = x.shape[dim]
    return x.index_select(dim, torch.tensor([0, 1, size - 2, size - 1], device=x.device)).split(1, dim)


def _along(ring: Tensor, kernels: Tensor) -> Tensor:
    """Two lines (B, C_in, 2, L + 4), each convolved with five numbers of its own (2, 5 C_in, C_out): (B, C_out, 2, L).

    As products of matrices: a convolution of so little costs mostly its preparation.
    """
    seen = ring.unfold(3, 5, 1).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (2, B L, 5 C_in)
    products = seen @ kernels.to(seen.dtype)
    return products.unflatten(1, (len(ring), -1)).permute(1, 3, 0, 2)


def _halves(weight: Tensor, dim: int) -> Tensor:
    """Five numbers along a dimension to those of an even and of an odd output, (2, 3)."""
    w0, w1, w2, w3, w4 = weight.unbind(dim)
    even, odd = torch.stack([w0 + w1, w2 + w3, w4], dim), torch.stack([w0, w1 + w2, w3 + w4], dim)
    return torch.stack([even, odd], dim)


def _doubled(x: Tensor, dim: int) -> Tensor:
    return x.repeat_interleave(2, dim=dim)
