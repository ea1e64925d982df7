"""D: which patches look like photographs, at several scales."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.layers import Activation, ConvUnit, Padding, ResidualBlock, SelfAttention

DiscriminatorNorm = Literal["none", "batch", "instance", "layer"]


class MultiScaleDiscriminator(nn.Module):
    """The same patch network at the picture's size, half and a quarter of it (Wang et al. 2018).

    As published it has no norm. `attention` 1 adds self-attention before the last convolution, 2 also before the
    residual blocks. With norm "batch" what it says of a picture depends on the batch.

    Shapes:
        images   (B, 3, H, W)
        returns  num_scales maps (B, 1, H/(2^n_layer 2^k), W/(2^n_layer 2^k)), no sigmoid, the finest first
    """

    def __init__(
        self,
        dim: int = 32,
        n_layer: int = 2,
        n_res: int = 4,
        num_scales: int = 3,
        *,
        norm: DiscriminatorNorm = "none",
        activation: Activation = "leaky_relu",
        padding: Padding = "reflect",
        attention: int = 0,
    ) -> None:
        super().__init__()
        if attention not in (0, 1, 2):
            raise ValueError(f"attention must be 0, 1 or 2, got {attention}")
        self.scales = nn.ModuleList(
            _patches(dim, n_layer, n_res, norm, activation, padding, attention) for _ in range(num_scales)
        )
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


def _patches(
    dim: int,
    n_layer: int,
    n_res: int,
    norm: DiscriminatorNorm,
    activation: Activation,
    padding: Padding,
    attention: int,
) -> nn.Module:
    def unit(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        return ConvUnit(
            in_channels, out_channels, kernel, stride=stride, norm=norm, activation=activation, padding=padding
        )

    units = [unit(3, dim, kernel=1), unit(dim, dim), unit(dim, dim, stride=2)]
    width = dim
    for _ in range(n_layer - 1):
        wider = min(2 * width, 512)
        units += [unit(width, width), unit(width, wider, stride=2)]
        width = wider
    if attention == 2:
        units.append(SelfAttention(width))
    units += [ResidualBlock(width, norm, activation=activation, padding=padding) for _ in range(n_res)]
    if attention:
        units.append(SelfAttention(width))
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
