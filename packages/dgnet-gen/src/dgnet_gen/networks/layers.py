"""The convolution unit and residual block that all of DG-Net is built from.

Norms: "instance" has no parameters and no running statistics; "layer" is DG-Net's per-sample norm over channels and
positions; "batch" is PyTorch's. "adain" is an instance norm whose scale and shift are passed in by the caller. Two
variants of it add and then normalise once more, without parameters: "adain_series" adds adain(y) to the convolved y,
"adain_parallel" adds the adain of what comes in.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.doubling import DoubledKernels, convolve_doubled, doubled_kernels

Norm = Literal["none", "instance", "layer", "batch", "adain", "adain_series", "adain_parallel"]
Activation = Literal["leaky_relu", "relu", "prelu", "selu", "tanh"]
Padding = Literal["reflect", "replicate", "zero"]
Init = Literal["kaiming", "gaussian", "xavier", "orthogonal", "default"]

SLOPE = 0.2


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each sample (B, C, H, W) by its own mean and biased deviation.

    As a group norm with a group per channel: that keeps the memory layout, which PyTorch's instance norm does not, and
    so spares the convolutions around it from rearranging maps.
    """
    return F.group_norm(x, x.shape[1], eps=eps)


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, then a scale and a shift per sample and channel (Huang and Belongie 2017); there is no 1 + scale.

    Shapes:
        x             (B, C, H, W)
        scale, shift  (B, C)
        returns       (B, C, H, W)
    """
    if _alone(x):
        return F.group_norm(x, x.shape[1], scale[0], shift[0], eps)
    return _AdaptiveNorm.apply(x, scale, shift, eps)


def _alone(x: Tensor) -> bool:
    """Whether this is one picture without gradient: a group norm then takes scales and shifts for its weights.

    It reads the map once less, and sums in float32 whatever it reads.
    """
    return len(x) == 1 and not torch.is_grad_enabled() and _group_norm_fits(x)


def _group_norm_fits(x: Tensor) -> bool:
    """Whether PyTorch's group norm takes channels that come last, and keeps them there: that of the CPU alone does.

    On CUDA it refuses such a map or, in newer versions, rearranges it.
    """
    return x.device.type == "cpu"


class _AdaptiveNorm(torch.autograd.Function):
    """The gradient is written out: two sums and one combination of two maps, half of what those of its parts read.

    Computed in float32 at least.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        b, c, h, w = x.shape
        if _group_norm_fits(x):
            normalised, mean, rstd = torch.native_group_norm(_wide(x), None, None, b, c, h * w, c, eps)
            y = torch.addcmul(_per_map(_wide(shift)), normalised, _per_map(_wide(scale)))
        else:
            variance, mean = torch.var_mean(_wide(x), (2, 3), correction=0)
            rstd = (variance + eps).rsqrt()
            factor = _wide(scale) * rstd
            y = torch.addcmul(_per_map(_wide(shift) - mean * factor), _wide(x), _per_map(factor))
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        ctx.eps = eps
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            y = torch.addcmul(_per_map(shift), instance_norm(x, ctx.eps), _per_map(scale))
            return *torch.autograd.grad(y, (x, scale, shift), grad, create_graph=True), None
        size = x.shape[2] * x.shape[3]
        of_y, wide, factor = _wide(grad), _wide(x), _wide(scale) * rstd
        total, product = of_y.sum((2, 3)), (of_y * wide).sum((2, 3))
        along = (product - mean * total) * rstd  # of the gradient on what is normalised
        of_x = -factor * along * rstd / size
        constant = -factor * total / size - mean * of_x
        through = torch.addcmul(_per_map(constant), wide, _per_map(of_x)).addcmul_(of_y, _per_map(factor))
        return through.to(x.dtype), along.to(scale.dtype), total.to(shift.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_map(values: Tensor) -> Tensor:
    return values[..., None, None]


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
        if not _alone(x):
            return _SampleNorm.apply(x, self.gamma, self.beta)
        _, c, h, w = x.shape
        size, eps = c * h * w, 1e-12
        _, _, rstd = torch.native_group_norm(x, self.gamma, self.beta, 1, c, h * w, 1, eps)
        deviation = ((rstd**-2 - eps).clamp(min=0) * size / (size - 1)).sqrt()
        return F.group_norm(x, 1, self.gamma / ((deviation + 1e-5) * rstd)[0], self.beta, eps)


class _SampleNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        b, c, h, w = x.shape
        size = c * h * w
        if _group_norm_fits(x):
            _, mean, rstd = torch.native_group_norm(_wide(x), None, None, b, c, h * w, 1, 0.0)
            deviation = math.sqrt(size / (size - 1)) / rstd
        else:
            deviation, mean = (each[:, None] for each in torch.std_mean(_wide(x), (1, 2, 3)))
        ctx.save_for_backward(x, gamma, beta, mean, deviation)
        scale = gamma / (deviation + 1e-5)
        return torch.addcmul(_per_map(beta - mean * scale), _wide(x), _per_map(scale)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, gamma, beta, mean, deviation = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            spread, middle = torch.std_mean(_wide(x), dim=(1, 2, 3), correction=1, keepdim=True)
            y = _per_map(gamma) * (x - middle) / (spread + 1e-5) + _per_map(beta)
            return torch.autograd.grad(y, (x, gamma, beta), _wide(grad), create_graph=True)
        size = x[0].numel()
        of_y, wide = _wide(grad), _wide(x)
        total, product = of_y.sum((2, 3)), (of_y * wide).sum((2, 3))
        along = product - mean * total  # (B, C), of the gradient on what lies above the mean
        slope = 1 / (deviation + 1e-5)  # (B, 1)
        of_x = -(along @ gamma)[:, None] * slope.square() / (deviation * (size - 1))
        of_x = of_x.masked_fill(deviation == 0, 0.0)
        constant = -(total @ gamma)[:, None] * slope / size - mean * of_x
        through = torch.addcmul(_per_map(constant), wide, _per_map(of_x)).addcmul_(of_y, _per_map(gamma * slope))
        return through.to(x.dtype), (along * slope).sum(0), total.sum(0)


def make_activation(name: Activation) -> nn.Module:
    """A non-linearity by name, in place where it can be; the one that learns, prelu, has a single slope."""
    match name:
        case "leaky_relu":
            return nn.LeakyReLU(SLOPE, inplace=True)
        case "relu":
            return nn.ReLU(inplace=True)
        case "prelu":
            return nn.PReLU()
        case "selu":
            return nn.SELU(inplace=True)
        case "tanh":
            return nn.Tanh()
    raise ValueError(f"activation must be leaky_relu, relu, prelu, selu or tanh, got {name!r}")


class ConvUnit(nn.Module):
    """Padding, convolution, norm, activation; with `doubling`, the map is doubled by nearest neighbours before all.

    Shapes:
        x             (B, C_in, H, W)   C_in = C_out for norm "adain_parallel"
        scale, shift  (B, C_out), for the norms of the adain family only
        returns       (B, C_out, H/stride, W/stride), twice that if doubled
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
        activation: Activation = "leaky_relu",
        padding: Padding = "reflect",
        active: bool = True,
        doubling: bool = False,
    ) -> None:
        super().__init__()
        if doubling and kernel != 5:
            raise ValueError(f"doubling needs a kernel of 5, got {kernel}")
        self.doubling = doubling
        self.kernels: DoubledKernels | None = None
        """those of a weight that changes no more, for `doubling`"""
        self.norm_name: Norm = norm
        self.padding = dilation * (kernel // 2)
        self.padding_kind: Padding = padding
        self.norm: nn.Module | None = None
        if norm in ("layer", "batch"):
            self.norm = SampleNorm(out_channels) if norm == "layer" else nn.BatchNorm2d(out_channels)
        self.activation = make_activation(activation) if active else None
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, dilation=dilation)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if self.doubling:
            zero, reflect = self.padding_kind == "zero", self.padding_kind == "reflect" and min(x.shape[-2:]) > 1
            kernels = self.kernels or doubled_kernels(self.conv.weight, self.conv.bias)
            y = convolve_doubled(x, kernels, reflect=reflect, zero=zero)
        else:
            y = self.conv(pad(x, self.padding, self.padding_kind))
        match self.norm_name:
            case "instance":
                y = instance_norm(y)
            case "layer" | "batch":
                assert self.norm is not None
                y = self.norm(y)
            case "adain" | "adain_series" | "adain_parallel":
                assert scale is not None
                assert shift is not None
                painted = adaptive_instance_norm(x if self.norm_name == "adain_parallel" else y, scale, shift)
                y = painted if self.norm_name == "adain" else instance_norm(y + painted)
        return y if self.activation is None else self.activation(y)


class ResidualBlock(nn.Module):
    """Two 3x3 units and the input added; nothing after the sum.

    Shapes:
        x              (B, C, H, W)
        scales, shifts (B, 2 C), for the norms of the adain family only: the first unit's C, then the second's
        returns        (B, C, H, W)
    """

    def __init__(
        self, channels: int, norm: Norm, *, activation: Activation = "leaky_relu", padding: Padding = "reflect"
    ) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, 3, norm=norm, activation=activation, padding=padding)
        self.second = ConvUnit(channels, channels, 3, norm=norm, padding=padding, active=False)

    def forward(self, x: Tensor, scales: Tensor | None = None, shifts: Tensor | None = None) -> Tensor:
        if scales is None or shifts is None:
            return self.second(self.first(x)).add_(x)  # the gradient of no norm or convolution asks for its output
        scale1, scale2 = scales.chunk(2, dim=1)
        shift1, shift2 = shifts.chunk(2, dim=1)
        return self.second(self.first(x, scale1, shift1), scale2, shift2).add_(x)


class SelfAttention(nn.Module):
    """Every position adds what it attends to among all positions (Zhang et al. 2019), times a gamma that starts at 0.

    Queries and keys have an eighth of the channels; products are not scaled. The positions make an (H W)^2 matrix.

    Shapes:
        x, returns  (B, C, H, W)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 8, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)  # (B, c, H W)
        attention = (query.transpose(1, 2) @ key).softmax(dim=2)  # (B, H W, H W), a row for each position that looks
        return self.gamma * (value @ attention.transpose(1, 2)).view_as(x) + x


def pad(x: Tensor, padding: int, kind: Padding = "reflect") -> Tensor:
    """Padding on all four sides; where the map is too small to reflect, the edge is repeated.

    Reflecting p needs a map of more than p in both directions. Small pictures have maps smaller than the widest
    dilation of the structure encoder, and these are the only place where the edge is repeated unasked.
    """
    if padding == 0:
        return x
    if kind == "zero":
        return F.pad(x, (padding,) * 4)
    mode = "reflect" if kind == "reflect" and padding < min(x.shape[-2:]) else "replicate"
    return F.pad(x, (padding,) * 4, mode=mode)


def init_weights(module: nn.Module, kind: Init = "kaiming") -> None:
    """Fresh weights and zero biases for every convolution and linear layer; "default" leaves PyTorch's.

    kaiming: normal, fan in, gain for a = 0. gaussian: deviation 0.02. xavier (normal), orthogonal: gain sqrt 2.
    """
    if kind == "default":
        return
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            match kind:
                case "kaiming":
                    nn.init.kaiming_normal_(part.weight, a=0, mode="fan_in")
                case "gaussian":
                    nn.init.normal_(part.weight, std=0.02)
                case "xavier":
                    nn.init.xavier_normal_(part.weight, gain=math.sqrt(2))
                case "orthogonal":
                    nn.init.orthogonal_(part.weight, gain=math.sqrt(2))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
