"""The two encoders of DG-Net (Zheng et al. 2019): what is worn, and where the body is."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.layers import ConvUnit, ResidualBlock, kaiming_init


class StructureEncoder(nn.Module):
    """E_s: a grey picture to a map of structure.

    A stem, `n_downsample` halvings, residual blocks, and an ASPP that doubles the width. With dim 16, n_downsample 2
    and 4 blocks this is the published network.

    Shapes:
        gray     (B, 1, H, W)   H, W multiples of 2^n_downsample
        returns  (B, out_channels, H/2^n_downsample, W/2^n_downsample); out_channels = dim * 2^(n_downsample + 1)
    """

    def __init__(self, dim: int = 16, n_downsample: int = 2, n_res: int = 4) -> None:
        super().__init__()
        if n_downsample < 1:
            raise ValueError(f"n_downsample must be at least 1, got {n_downsample}")
        units = [
            ConvUnit(1, dim, 3, stride=2, norm="instance"),
            ConvUnit(dim, 2 * dim, 3, norm="instance"),
        ]
        width = 2 * dim
        for _ in range(n_downsample - 1):
            units += [
                ConvUnit(width, width, 3, norm="instance"),
                ConvUnit(width, 2 * width, 3, stride=2, norm="instance"),
            ]
            width *= 2
        self.stem = nn.Sequential(*units)
        self.blocks = nn.Sequential(*(ResidualBlock(width, "instance") for _ in range(n_res)))
        self.pyramid = _Pyramid(width)
        self.out_channels = 2 * width
        kaiming_init(self)

    def forward(self, gray: Tensor) -> Tensor:
        return self.pyramid(self.blocks(self.stem(gray)))


class _Pyramid(nn.Module):
    """ASPP: a 1x1 unit beside three 3x3 units of dilation 3, 6 and 9, fused to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.plain = ConvUnit(width, half, 1, norm="instance", active=False)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                ConvUnit(width, half, 1, norm="instance"),
                ConvUnit(half, half, 3, dilation=dilation, norm="instance", active=False),
            )
            for dilation in (3, 6, 9)
        )
        self.fuse = ConvUnit(4 * half, 2 * width, 1, norm="instance", active=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.plain(x)]
        maps += [unit(x) for unit in self.dilated]
        return self.fuse(torch.cat(maps, dim=1))


class AppearanceOutput(NamedTuple):
    """What the appearance encoder says of a picture."""

    code: Tensor
    """(B, stripes * num_features) appearance code, without gradient"""
    primary: Tensor
    """(B, K) logits of the primary head"""
    fine: Tensor
    """(B, K) logits of the fine-grained head"""
    embeddings: Tensor
    """(B, 2 * bottleneck) both heads' embeddings, for retrieval"""


class AppearanceEncoder(nn.Module):
    """E_a: a picture to an appearance code, and the re-identification network whose features the code is made of.

    The code is the trunk's map, max-pooled in horizontal stripes, flattened channel by channel (number stripes * c + p
    is channel c in stripe p, the top stripe first) and cut off from the graph: pictures that are drawn from it never
    train this network. Two heads sit on the globally max-pooled features.

    Shapes:
        images   (B, 3, H, W)
        returns  AppearanceOutput
    """

    def __init__(
        self, trunk: nn.Module, num_ids: int, *, stripes: int = 4, bottleneck: int = 512, dropouts: tuple[float, float]
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.stripes = stripes
        num_features = int(trunk.num_features)  # type: ignore[arg-type]
        self.code_length = stripes * num_features
        self.primary = _Head(num_features, bottleneck, num_ids, dropouts[0])
        self.fine = _Head(num_features, bottleneck, num_ids, dropouts[1])

    def forward(self, images: Tensor) -> AppearanceOutput:
        feature_map = self.trunk(images)
        code = F.adaptive_max_pool2d(feature_map, (self.stripes, 1)).flatten(1).detach()
        pooled = F.adaptive_max_pool2d(feature_map, 1).flatten(1)
        embedding1, primary = self.primary(pooled)
        embedding2, fine = self.fine(pooled)
        return AppearanceOutput(code, primary, fine, torch.cat([embedding1, embedding2], dim=1))


class _Head(nn.Module):
    """Linear, batch norm, dropout, classifier; the embedding is what leaves the batch norm."""

    def __init__(self, num_features: int, bottleneck: int, num_ids: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(num_features, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bottleneck, num_ids)
        nn.init.kaiming_normal_(self.reduce.weight, a=0, mode="fan_out")
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.norm(self.reduce(pooled))
        return embedding, self.classifier(self.dropout(embedding))
