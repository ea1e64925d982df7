"""Trunks: pictures in, a feature map out.

"resnet50" is torchvision's ResNet-50 without its classifier, "resnet50_ibn_a" the same with instance normalisation;
"small" has the same shape of thought at a size that trains on a CPU. All tell their width in `num_features`, and copy
themselves in two parts for networks that branch before the last stage.

    trunk = make_trunk("resnet50", last_stride=1)
    feature_map = trunk(images)      # (B, 2048, H/16, W/16)
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn

TrunkName = Literal["resnet50", "resnet50_ibn_a", "small"]


def make_trunk(name: TrunkName, *, last_stride: int = 1, width: int = 16) -> Trunk:
    """A trunk by name, with random weights; `width` is that of the small one's first stage."""
    match name:
        case "resnet50":
            return ResNet50Trunk(last_stride)
        case "resnet50_ibn_a":
            return ResNet50IbnTrunk(last_stride)
        case "small":
            return SmallTrunk(width, last_stride)
    raise ValueError(f"trunk must be 'resnet50', 'resnet50_ibn_a' or 'small', got {name!r}")


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is the second's (He et al. 2016, as v1.5)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels, downsample = 4 * channels, None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(in_channels, channels, stride), *rest)


class _ResNet50(nn.Module):
    num_features = 2048

    def __init__(self, last_stride: int = 1) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=last_stride)
        # Drawn and thrown away: with torchvision's classifier a seed gives the weights that its network has.
        nn.Linear(2048, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def shared_part(self) -> nn.Sequential:
        """A copy of what comes before branches: through the first block of layer3, (B, 1024, H/16, W/16)."""
        names = "conv1", "bn1", "relu", "maxpool", "layer1", "layer2"
        layers = OrderedDict((name, getattr(self, name)) for name in names)
        return copy.deepcopy(nn.Sequential(layers | {"layer3": nn.Sequential(self.layer3[0])}))

    def branch(self, stride: int) -> nn.Sequential:
        """A copy of the rest, (B, 1024, H/16, W/16) to (B, 2048, ...), whose layer4 has this stride."""
        layer3 = copy.deepcopy(nn.Sequential(*self.layer3[1:]))
        layer4: Any = copy.deepcopy(self.layer4)
        layer4[0].conv2.stride = layer4[0].downsample[0].stride = (stride, stride)
        return nn.Sequential(OrderedDict(layer3=layer3, layer4=layer4))


class ResNet50Trunk(_ResNet50):
    """ResNet-50 (He et al. 2016, torchvision's v1.5) up to its last feature map.

    State keys are torchvision's (conv1, bn1, layer1 ... layer4; no fc), so its weight files fit.

    Shapes:
        images   (B, 3, H, W)
        returns  (B, 2048, H/16, W/16) for last_stride 1, (B, 2048, H/32, W/32) for 2
    """


class ResNet50IbnTrunk(_ResNet50):
    """ResNet-50 IBN-a (Pan et al. 2018): half of some norms see one picture, so light and camera change less.

    The first norm of each block of layer1, layer2 and layer3 is split. State keys are those of the published IBN-Net:
    bn1.IN.* and bn1.BN.* in these blocks, elsewhere torchvision's.

    Shapes: as of ResNet50Trunk.
    """

    def __init__(self, last_stride: int = 1) -> None:
        super().__init__(last_stride)
        for block in (*self.layer1, *self.layer2, *self.layer3):
            block.bn1 = _InstanceBatchNorm(block.bn1.num_features)


class _InstanceBatchNorm(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the others."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(num_channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(num_channels - num_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class SmallTrunk(nn.Module):
    """Four stages of one residual block each, for small pictures on a CPU.

    Shapes:
        images   (B, 3, H, W)
        returns  (B, 8 width, H/8, W/8) for last_stride 1, (B, 8 width, H/16, W/16) for 2
    """

    def __init__(self, width: int = 16, last_stride: int = 1) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
        self.num_features = 8 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(
            _ResidualBlock(width, width, 1),
            _ResidualBlock(width, 2 * width, 2),
            _ResidualBlock(2 * width, 4 * width, 2),
            _ResidualBlock(4 * width, 8 * width, last_stride),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))

    def shared_part(self) -> nn.Sequential:
        """A copy of what comes before branches: all but the last stage, (B, 4 width, H/8, W/8)."""
        return copy.deepcopy(nn.Sequential(OrderedDict(stem=self.stem, stages=self.stages[:3])))

    def branch(self, stride: int) -> nn.Sequential:
        """A copy of the last stage, (B, 4 width, H/8, W/8) to (B, 8 width, ...), with this stride."""
        stage: Any = copy.deepcopy(self.stages[3])
        stage.body[0].stride = stage.shortcut[0].stride = (stride, stride)
        return nn.Sequential(OrderedDict(stage=stage))


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _PointwiseConv(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class _PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that first takes the pixels its stride asks for: the same products.

    Given the stride, oneDNN's AVX2 kernel of the weights' gradient writes past its workspace when a channels-last input
    has fewer than 8 channels, and the process dies (uxlfoundation/oneDNN#6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        return nn.functional.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)


Trunk = ResNet50Trunk | ResNet50IbnTrunk | SmallTrunk
