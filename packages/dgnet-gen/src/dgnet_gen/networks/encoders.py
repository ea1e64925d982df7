"""The two encoders of DG-Net (Zheng et al. 2019): what is worn, and where the body is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.batches import norm_by_batch
from dgnet_gen.networks.layers import Activation, ConvUnit, Init, Padding, ResidualBlock, init_weights


class StructureEncoder(nn.Module):
    """E_s: a grey picture to a map of structure.

    A stem, `n_downsample` halvings, residual blocks, and an ASPP that doubles the width. With dim 16, n_downsample 2
    and 4 blocks this is the published network. `tanh` bounds the code.

    Shapes:
        gray     (B, 1, H, W)   H, W multiples of 2^n_downsample
        returns  (B, out_channels, H/2^n_downsample, W/2^n_downsample); out_channels = dim * 2^(n_downsample + 1)
    """

    def __init__(
        self,
        dim: int = 16,
        n_downsample: int = 2,
        n_res: int = 4,
        *,
        tanh: bool = False,
        activation: Activation = "leaky_relu",
        padding: Padding = "reflect",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        if n_downsample < 1:
            raise ValueError(f"n_downsample must be at least 1, got {n_downsample}")

        def unit(in_channels: int, out_channels: int, stride: int = 1) -> ConvUnit:
            return ConvUnit(
                in_channels, out_channels, 3, stride=stride, norm="instance", activation=activation, padding=padding
            )

        units = [unit(1, dim, 2), unit(dim, 2 * dim)]
        width = 2 * dim
        for _ in range(n_downsample - 1):
            units += [unit(width, width), unit(width, 2 * width, 2)]
            width *= 2
        self.stem = nn.Sequential(*units)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, "instance", activation=activation, padding=padding) for _ in range(n_res))
        )
        self.pyramid = _Pyramid(width, activation, padding)
        self.tanh = tanh
        self.out_channels = 2 * width
        init_weights(self, init)

    def forward(self, gray: Tensor) -> Tensor:
        code = self.pyramid(self.blocks(self.stem(gray)))
        return code.tanh() if self.tanh else code


class _Pyramid(nn.Module):
    """ASPP: a 1x1 unit beside three 3x3 units of dilation 3, 6 and 9, fused to twice the width."""

    def __init__(self, width: int, activation: Activation, padding: Padding) -> None:
        super().__init__()
        half = width // 2
        self.plain = ConvUnit(width, half, 1, norm="instance", active=False)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                ConvUnit(width, half, 1, norm="instance", activation=activation),
                ConvUnit(half, half, 3, dilation=dilation, norm="instance", padding=padding, active=False),
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
    """(B, stripes * num_features) appearance code; without gradient where there are two heads"""
    primary: Tensor
    """(B, K) logits of the primary head"""
    fine: Tensor
    """(B, K) logits of the fine-grained head; with one head, those of the primary"""
    embeddings: Tensor
    """(B, num_heads * bottleneck) the heads' embeddings side by side, for retrieval"""


class AppearanceEncoder(nn.Module):
    """E_a: a picture to an appearance code, and the re-identification network whose features the code is made of.

    The code is the trunk's map, pooled in horizontal stripes, flattened channel by channel (number stripes * c + p
    is channel c in stripe p, the top stripe first) and cut off from the graph: pictures that are drawn from it never
    train this network. Two heads sit on the globally pooled features.

    With one head, the published "plain" style, the code keeps its graph, and `normalise_code` gives it length 1.
    `enlarge_small` doubles pictures of up to 128 rows, as the published code does with whatever it encodes.

    Several batches in one pass: see `dgnet_gen.networks.batches`.

    Shapes:
        images   (B, 3, H, W)
        returns  AppearanceOutput
    """

    def __init__(
        self,
        trunk: nn.Module,
        num_ids: int,
        *,
        stripes: int = 4,
        bottleneck: int = 512,
        dropouts: tuple[float, float],
        heads: Literal["two", "one"] = "two",
        pool: Literal["max", "avg"] = "max",
        normalise_code: bool = False,
        enlarge_small: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.stripes, self.pool = stripes, pool
        self.normalise_code, self.enlarge_small = normalise_code, enlarge_small
        num_features = int(trunk.num_features)  # type: ignore[arg-type]
        self.code_length = stripes * num_features
        self.primary = _Head(num_features, bottleneck, num_ids, dropouts[0])
        self.num_heads = 2 if heads == "two" else 1
        # With one head a module without parameters stands here, so that whoever lists both lists nothing.
        self.fine = _Head(num_features, bottleneck, num_ids, dropouts[1]) if heads == "two" else nn.Identity()
        norm_by_batch(self)

    def forward(self, images: Tensor) -> AppearanceOutput:
        if self.enlarge_small and images.shape[2] <= 128:
            images = F.interpolate(images, scale_factor=2, mode="nearest")
        feature_map = self.trunk(images)
        pool = F.adaptive_max_pool2d if self.pool == "max" else F.adaptive_avg_pool2d
        code = pool(feature_map, (self.stripes, 1)).flatten(1)
        pooled = pool(feature_map, (1, 1)).flatten(1)
        embedding, primary = self.primary(pooled)
        if self.num_heads == 1:
            if self.normalise_code:
                code = code / (code.norm(dim=1, keepdim=True) + 1e-8)
            return AppearanceOutput(code, primary, primary, embedding)
        embedding2, fine = self.fine(pooled)
        return AppearanceOutput(code.detach(), primary, fine, torch.cat([embedding, embedding2], dim=1))


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
