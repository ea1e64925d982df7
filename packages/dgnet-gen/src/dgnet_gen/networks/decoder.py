"""G: paint a structure with an appearance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.layers import SLOPE, ConvUnit, ResidualBlock, kaiming_init


class Decoder(nn.Module):
    """AdaIN residual blocks on the structure map, then upsampling to a picture.

    The appearance code is cut into as many slices as there are residual blocks; slice k passes through two small
    networks whose outputs are the scales and shifts of block k. Nothing is stored between calls: the parameters of the
    norms travel as arguments.

    Shapes:
        appearance  (B, code_length)   code_length a multiple of n_res
        structure   (B, channels, h, w)
        returns     (B, 3, h * 2^n_upsample, w * 2^n_upsample), network input space, unbounded
    """

    def __init__(
        self, code_length: int, channels: int = 128, *, n_upsample: int = 2, n_res: int = 4, mlp_dim: int = 512
    ) -> None:
        super().__init__()
        if code_length % n_res:
            raise ValueError(f"an appearance code of {code_length} cannot be cut into {n_res} equal slices")
        slice_length = code_length // n_res
        self.blocks = nn.ModuleList(ResidualBlock(channels, "adain") for _ in range(n_res))
        self.scales = nn.ModuleList(_mlp(slice_length, mlp_dim, 2 * channels) for _ in range(n_res))
        self.shifts = nn.ModuleList(_mlp(slice_length, mlp_dim, 2 * channels) for _ in range(n_res))
        units = []
        width = channels
        for _ in range(n_upsample):
            units.append(ConvUnit(width, width // 2, 5, norm="layer"))
            width //= 2
        self.upsampled = nn.ModuleList(units)
        self.finish = nn.Sequential(
            ConvUnit(width, width, 3), ConvUnit(width, width, 3), ConvUnit(width, 3, 1, active=False)
        )
        kaiming_init(self)

    def forward(self, appearance: Tensor, structure: Tensor) -> Tensor:
        x = structure
        slices = appearance.chunk(len(self.blocks), dim=1)
        for block, scale, shift, part in zip(self.blocks, self.scales, self.shifts, slices, strict=True):
            x = block(x, scale(part), shift(part))
        for unit in self.upsampled:
            x = unit(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.finish(x)


def _mlp(in_features: int, hidden: int, out_features: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, out_features),
    )


def mix(appearance: Tensor, structure: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of R structures and C appearances, structures slowest: codes for R * C pictures.

    Shapes:
        appearance  (C, D)
        structure   (R, channels, h, w)
        returns     (R C, D) and (R C, channels, h, w)
    """
    rows, columns = len(structure), len(appearance)
    return appearance.repeat(rows, 1), torch.repeat_interleave(structure, columns, dim=0)
