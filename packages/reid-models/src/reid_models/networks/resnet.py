"""Trunks: pictures in, a feature map out.

`resnet50_trunk` is torchvision's ResNet-50 without its classifier; `small_trunk` has the same shape of thought at a
size that trains on a CPU. Both tell their width in `num_features`.

    trunk = make_trunk("resnet50", last_stride=1)
    feature_map = trunk(images)      # (B, 2048, H/16, W/16)
"""

from __future__ import annotations

from typing import Literal

import torchvision
from torch import Tensor, nn

TrunkName = Literal["resnet50", "small"]


def make_trunk(name: TrunkName, *, last_stride: int = 1, width: int = 16) -> nn.Module:
    """A trunk by name, with random weights; `width` is that of the small one's first stage."""
    match name:
        case "resnet50":
            return ResNet50Trunk(last_stride)
        case "small":
            return SmallTrunk(width, last_stride)
    raise ValueError(f"trunk must be 'resnet50' or 'small', got {name!r}")


class ResNet50Trunk(nn.Module):
    """ResNet-50 (He et al. 2016, torchvision's v1.5) up to its last feature map.

    State keys are torchvision's (conv1, bn1, layer1 ... layer4; no fc), so its weight files fit.

    Shapes:
        images   (B, 3, H, W)
        returns  (B, 2048, H/16, W/16) for last_stride 1, (B, 2048, H/32, W/32) for 2
    """

    num_features = 2048

    def __init__(self, last_stride: int = 1) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
        resnet = torchvision.models.resnet50(weights=None)
        if last_stride == 1:
            resnet.layer4[0].conv2.stride = (1, 1)
            resnet.layer4[0].downsample[0].stride = (1, 1)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


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
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))
