"""G: paint a structure with an appearance."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.layers import (
    Activation,
    ConvUnit,
    Init,
    Norm,
    Padding,
    ResidualBlock,
    SelfAttention,
    init_weights,
    make_activation,
)

Blocks = Literal["basic", "series", "parallel"]
_NORM_OF: dict[Blocks, Norm] = {"basic": "adain", "series": "adain_series", "parallel": "adain_parallel"}


class Decoder(nn.Module):
    """AdaIN residual blocks on the structure map, then upsampling to a picture.

    The appearance code is cut into as many slices as there are residual blocks; slice k passes through two small
    networks whose outputs are the scales and shifts of block k. Nothing is stored between calls: the parameters of the
    norms travel as arguments. `blocks` says how a block uses them (see `layers`), `attention` adds self-attention after
    the blocks, `dropout` acts on the structure that comes in.

    Shapes:
        appearance  (B, code_length)   code_length a multiple of n_res
        structure   (B, channels, h, w)
        returns     (B, 3, h * 2^n_upsample, w * 2^n_upsample), network input space, unbounded
    """

    def __init__(
        self,
        code_length: int,
        channels: int = 128,
        *,
        n_upsample: int = 2,
        n_res: int = 4,
        mlp_dim: int = 512,
        mlp_norm: Literal["none", "instance"] = "none",
        blocks: Blocks = "basic",
        attention: bool = False,
        dropout: float = 0.0,
        activation: Activation = "leaky_relu",
        padding: Padding = "reflect",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        if code_length % n_res:
            raise ValueError(f"an appearance code of {code_length} cannot be cut into {n_res} equal slices")
        slice_length = code_length // n_res

        def unit(in_channels: int, out_channels: int, **options: Any) -> ConvUnit:
            return ConvUnit(in_channels, out_channels, activation=activation, padding=padding, **options)

        def mlp() -> nn.Module:
            return nn.Sequential(
                nn.Linear(slice_length, mlp_dim),
                _Hidden(activation, mlp_norm),
                nn.Linear(mlp_dim, mlp_dim),
                _Hidden(activation, mlp_norm),
                nn.Linear(mlp_dim, 2 * channels),
            )

        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, _NORM_OF[blocks], activation=activation, padding=padding) for _ in range(n_res)
        )
        self.scales = nn.ModuleList(mlp() for _ in range(n_res))
        self.shifts = nn.ModuleList(mlp() for _ in range(n_res))
        self.attention = SelfAttention(channels) if attention else None
        units = []
        width = channels
        for _ in range(n_upsample):
            units.append(unit(width, width // 2, kernel=5, norm="layer", doubling=True))
            width //= 2
        self.upsampled = nn.ModuleList(units)
        last = ConvUnit(width, 3, 1, active=False)
        self.finish = nn.Sequential(unit(width, width, kernel=3), unit(width, width, kernel=3), last)
        init_weights(self, init)

    def forward(self, appearance: Tensor, structure: Tensor) -> Tensor:
        x = self.dropout(structure)
        for block, (scales, shifts) in zip(self.blocks, self.styles(appearance), strict=True):
            x = block(x, scales, shifts)
        return self.upsample(x)

    def styles(self, appearance: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scales and shifts (B, 2 channels) of each residual block, of appearances (B, code_length)."""
        slices = appearance.chunk(len(self.blocks), dim=1)
        return [(scale(part), shift(part)) for scale, shift, part in zip(self.scales, self.shifts, slices, strict=True)]

    def upsample(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of what the residual blocks made, (B, channels, h, w)."""
        if self.attention is not None:
            x = self.attention(x)
        for unit in self.upsampled:
            x = unit(x)
        return self.finish(x)


class _Hidden(nn.Module):
    """What follows a hidden linear layer: an activation, before it perhaps a norm of each sample over its features."""

    def __init__(self, activation: Activation, norm: Literal["none", "instance"]) -> None:
        super().__init__()
        self.normalised = norm == "instance"
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.layer_norm(x, x.shape[1:]) if self.normalised else x)


def mix(appearance: Tensor, structure: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of R structures and C appearances, structures slowest: codes for R * C pictures.

    Shapes:
        appearance  (C, D)
        structure   (R, channels, h, w)
        returns     (R C, D) and (R C, channels, h, w)
    """
    rows, columns = len(structure), len(appearance)
    return appearance.repeat(rows, 1), torch.repeat_interleave(structure, columns, dim=0)
