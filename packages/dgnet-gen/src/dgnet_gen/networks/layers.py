"""The convolution unit and residual block that all of DG-Net is built from.

Norms: "instance" has no parameters and no running statistics; "layer" is DG-Net's per-sample norm over channels and
positions; "adain" is an instance norm whose scale and shift are passed in by the caller.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["none", "instance", "layer", "adain"]

SLOPE = 0.2


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, then a scale and a shift per sample and channel (Huang and Belongie 2017); there is no 1 + scale.

    Shapes:
        x             (B, C, H, W)
        scale, shift  (B, C)
        returns       (B, C, H, W)
    """
    # Two passes over the map, but on a CPU half the time of folding the norm into the scale: its kernel is vectorised.
    return torch.addcmul(shift[:, :, None, None], F.instance_norm(x, eps=eps), scale[:, :, None, None])


class SampleNorm(nn.Module):
    """DG-Net's layer norm: each sample by its own mean and unbiased deviation over all channels and positions.

    Computed in float32 whatever the input. Keys `gamma` (uniform in 0..1 at first) and `beta` (0).

    Shapes:
        x, returns  (B, C, H, W)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        deviation, mean = torch.std_mean(wide, dim=(1, 2, 3), correction=1, keepdim=True)
        scale = self.gamma[:, None, None] / (deviation + 1e-5)
        return torch.addcmul(self.beta[:, None, None] - mean * scale, wide, scale).to(x.dtype)


class ConvUnit(nn.Module):
    """Reflection padding, convolution, norm, leaky ReLU.

    Shapes:
        x             (B, C_in, H, W)
        scale, shift  (B, C_out), for norm "adain" only
        returns       (B, C_out, H/stride, W/stride)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm = "none",
        active: bool = True,
    ) -> None:
        super().__init__()
        self.norm_name = norm
        self.active = active
        self.padding = dilation * (kernel // 2)
        self.norm = SampleNorm(out_channels) if norm == "layer" else None
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, dilation=dilation)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = self.conv(reflect_pad(x, self.padding))
        match self.norm_name:
            case "instance":
                x = F.instance_norm(x)
            case "layer":
                assert self.norm is not None
                x = self.norm(x)
            case "adain":
                assert scale is not None
                assert shift is not None
                x = adaptive_instance_norm(x, scale, shift)
        return F.leaky_relu(x, SLOPE) if self.active else x


class ResidualBlock(nn.Module):
    """Two 3x3 units and the input added; nothing after the sum.

    Shapes:
        x              (B, C, H, W)
        scales, shifts (B, 2 C), for norm "adain" only: the first unit's C, then the second's
        returns        (B, C, H, W)
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, 3, norm=norm)
        self.second = ConvUnit(channels, channels, 3, norm=norm, active=False)

    def forward(self, x: Tensor, scales: Tensor | None = None, shifts: Tensor | None = None) -> Tensor:
        if scales is None or shifts is None:
            return x + self.second(self.first(x))
        scale1, scale2 = scales.chunk(2, dim=1)
        shift1, shift2 = shifts.chunk(2, dim=1)
        return x + self.second(self.first(x, scale1, shift1), scale2, shift2)


def reflect_pad(x: Tensor, padding: int) -> Tensor:
    """Reflection padding on all four sides; where the map is too small to reflect, the edge is repeated.

    A padding of p needs a map of more than p in both directions. Small pictures have maps smaller than the widest
    dilation of the structure encoder, and these are the only place where the edge is repeated.
    """
    if padding == 0:
        return x
    mode = "reflect" if padding < min(x.shape[-2:]) else "replicate"
    return F.pad(x, (padding,) * 4, mode=mode)


def kaiming_init(module: nn.Module) -> None:
    """Kaiming normal weights (fan in, gain for a = 0) and zero biases for every convolution and linear layer."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, a=0, mode="fan_in")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
