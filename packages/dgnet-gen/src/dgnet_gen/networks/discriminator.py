"""D: which patches look like photographs, at several scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.layers import ConvUnit, ResidualBlock


class MultiScaleDiscriminator(nn.Module):
    """The same patch network at the picture's size, half and a quarter of it (Wang et al. 2018), without norms.

    Shapes:
        images   (B, 3, H, W)
        returns  num_scales maps (B, 1, H/(2^n_layer 2^k), W/(2^n_layer 2^k)), no sigmoid, the finest first
    """

    def __init__(self, dim: int = 32, n_layer: int = 2, n_res: int = 4, num_scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_patches(dim, n_layer, n_res) for _ in range(num_scales))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for number, scale in enumerate(self.scales):
            if number:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            maps.append(scale(images))
        return maps


def _patches(dim: int, n_layer: int, n_res: int) -> nn.Module:
    units: list[nn.Module] = [ConvUnit(3, dim, 1), ConvUnit(dim, dim, 3), ConvUnit(dim, dim, 3, stride=2)]
    width = dim
    for _ in range(n_layer - 1):
        wider = min(2 * width, 512)
        units += [ConvUnit(width, width, 3), ConvUnit(width, wider, 3, stride=2)]
        width = wider
    units += [ResidualBlock(width, "none") for _ in range(n_res)]
    return nn.Sequential(*units, nn.Conv2d(width, 1, 1))


def gradient_penalty(maps: list[Tensor], images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018) per scale, summed: mean over samples of the squared gradient of the map's sum.

    Shapes:
        maps     what the discriminator said of `images`
        images   (B, 3, H, W), requiring gradients
        returns  ()
    """
    penalty = images.new_zeros(())
    for patch_map in maps:
        (gradient,) = torch.autograd.grad(patch_map.float().sum(), images, create_graph=True)
        penalty = penalty + gradient.square().sum(dim=(1, 2, 3)).mean()
    return penalty
