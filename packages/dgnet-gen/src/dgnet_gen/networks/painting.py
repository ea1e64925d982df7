"""G in parts that many pictures share: what depends on the appearance alone, and on the structure alone.

    worn = styles(decoder, appearance)                  # once per appearance
    ground = prepare(decoder, structure)                # once per structure
    pictures = paint(ready(decoder), worn, ground)      # what decoder(appearance, structure) gives

In evaluation this is the decoder's own arithmetic, only not done again for every pair: the eight small networks that
turn an appearance into scales and shifts, the first convolution and its instance norm, which no appearance has touched
yet, and the sums of kernels that doubled maps are convolved with.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from dgnet_gen.networks.decoder import Decoder
from dgnet_gen.networks.doubling import DoubledKernels, doubled_kernels
from dgnet_gen.networks.layers import ConvUnit, ResidualBlock, SampleNorm, instance_norm, pad


class Ground(NamedTuple):
    """What is known of a picture before anybody's clothes are."""

    structure: Tensor
    """(B, channels, h, w)"""
    normalised: Tensor | None
    """(B, channels, h, w) the first convolution, instance-normed; None where its norm needs the appearance"""

    def pick(self, rows: Tensor) -> Ground:
        """The grounds of some rows (N,), in their order; a row may come several times."""
        layout = torch.channels_last
        kept = None if self.normalised is None else self.normalised[rows].contiguous(memory_format=layout)
        return Ground(self.structure[rows].contiguous(memory_format=layout), kept)


def ready(decoder: Decoder, dtype: torch.dtype = torch.float32) -> Decoder:
    """A copy to paint with, never to be trained: what follows from the weights alone is there beforehand.

    Maps and kernels are of `dtype`, while norms sum in float32 at least.
    """
    decoder = copy.deepcopy(decoder).eval().requires_grad_(False)
    for unit in decoder.modules():
        if isinstance(unit, ConvUnit) and unit.doubling:
            inner, bias, rows, columns = doubled_kernels(unit.conv.weight, unit.conv.bias)
            assert bias is not None
            inner = inner.to(dtype=dtype, memory_format=torch.channels_last)
            unit.kernels = DoubledKernels(inner, bias.to(dtype), rows.to(dtype), columns.to(dtype))
    for part in decoder.modules():
        if not isinstance(part, SampleNorm):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return decoder


def styles(decoder: Decoder, appearance: Tensor) -> Tensor:
    """The scales and shifts of every residual block.

    Shapes:
        appearance  (B, code_length)
        returns     (B, n_res, 2, 2 channels)   scales, then shifts
    """
    return torch.stack([torch.stack(both, dim=1) for both in decoder.styles(appearance)], dim=1)


def prepare(decoder: Decoder, structure: Tensor) -> Ground:
    """The first convolution of a structure (B, channels, h, w), as far as it goes without an appearance."""
    unit = _first_block(decoder).first
    if unit.norm_name != "adain":
        return Ground(structure, None)
    return Ground(structure, instance_norm(unit.conv(pad(structure, unit.padding, unit.padding_kind))))


def paint(decoder: Decoder, styles: Tensor, ground: Ground) -> Tensor:
    """Pictures (B, 3, H, W) of styles (B, n_res, 2, 2 channels) on as many grounds, in network input space.

    `decoder` may be a `ready` one; pictures are then of its type, whatever that of styles and grounds. On a CPU one
    picture at a time is best: its maps stay in the cache, and each norm takes one pass.
    """
    x = ground.structure.to(_first_block(decoder).first.conv.weight.dtype)
    for number, block in enumerate(decoder.blocks):
        scales, shifts = styles[:, number].unbind(1)
        if number == 0 and ground.normalised is not None:
            x = x + _rest_of_first_block(_first_block(decoder), ground.normalised, scales, shifts)
        else:
            x = block(x, scales, shifts)
    return decoder.upsample(x)


def _first_block(decoder: Decoder) -> ResidualBlock:
    block = decoder.blocks[0]
    assert isinstance(block, ResidualBlock)
    return block


def _rest_of_first_block(block: ResidualBlock, normalised: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    scale1, scale2 = scales.chunk(2, dim=1)
    shift1, shift2 = shifts.chunk(2, dim=1)
    y = torch.addcmul(shift1[:, :, None, None], normalised, scale1[:, :, None, None]).to(block.first.conv.weight.dtype)
    assert block.first.activation is not None
    return block.second(block.first.activation(y), scale2, shift2)
