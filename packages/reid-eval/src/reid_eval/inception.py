"""The Inception-v3 of the published FID (TensorFlow's graph of 2015-12-05), for features only.

Szegedy et al. 2016, with three peculiarities of that graph: average pools do not count what lies outside the picture,
the last block pools by maximum, and the classifier, which is not needed here, has 1008 classes. Weights come as the
tensors of the published file. Batch norms are folded into the convolutions, and a 1x1 convolution goes before the
average pool that precedes it, which gives the same and is cheaper.

    network = FidInception(read_tensors(file))
    network(images)          # (B, 3, 299, 299), -1..1, to (B, 2048)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FEATURES = 2048
MIN_SIZE_PX = 75
_BATCH_NORM_EPSILON = 0.001
_NUM_CLASSES = 1008

_STRIDE_2 = {
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
}
_UNPADDED = _STRIDE_2 | {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}

Shape = tuple[int, int, int, int]


def _conv_shapes() -> Iterator[tuple[str, Shape]]:
    """Name and weight shape (out, in, height, width) of each convolution of the published file."""
    yield "Conv2d_1a_3x3", (32, 3, 3, 3)
    yield "Conv2d_2a_3x3", (32, 32, 3, 3)
    yield "Conv2d_2b_3x3", (64, 32, 3, 3)
    yield "Conv2d_3b_1x1", (80, 64, 1, 1)
    yield "Conv2d_4a_3x3", (192, 80, 3, 3)
    for block, width, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        yield f"Mixed_{block}.branch1x1", (64, width, 1, 1)
        yield f"Mixed_{block}.branch5x5_1", (48, width, 1, 1)
        yield f"Mixed_{block}.branch5x5_2", (64, 48, 5, 5)
        yield f"Mixed_{block}.branch3x3dbl_1", (64, width, 1, 1)
        yield f"Mixed_{block}.branch3x3dbl_2", (96, 64, 3, 3)
        yield f"Mixed_{block}.branch3x3dbl_3", (96, 96, 3, 3)
        yield f"Mixed_{block}.branch_pool", (pooled, width, 1, 1)
    yield "Mixed_6a.branch3x3", (384, 288, 3, 3)
    yield "Mixed_6a.branch3x3dbl_1", (64, 288, 1, 1)
    yield "Mixed_6a.branch3x3dbl_2", (96, 64, 3, 3)
    yield "Mixed_6a.branch3x3dbl_3", (96, 96, 3, 3)
    for block, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        yield f"Mixed_{block}.branch1x1", (192, 768, 1, 1)
        yield f"Mixed_{block}.branch7x7_1", (inner, 768, 1, 1)
        yield f"Mixed_{block}.branch7x7_2", (inner, inner, 1, 7)
        yield f"Mixed_{block}.branch7x7_3", (192, inner, 7, 1)
        yield f"Mixed_{block}.branch7x7dbl_1", (inner, 768, 1, 1)
        yield f"Mixed_{block}.branch7x7dbl_2", (inner, inner, 7, 1)
        yield f"Mixed_{block}.branch7x7dbl_3", (inner, inner, 1, 7)
        yield f"Mixed_{block}.branch7x7dbl_4", (inner, inner, 7, 1)
        yield f"Mixed_{block}.branch7x7dbl_5", (192, inner, 1, 7)
        yield f"Mixed_{block}.branch_pool", (192, 768, 1, 1)
    yield "Mixed_7a.branch3x3_1", (192, 768, 1, 1)
    yield "Mixed_7a.branch3x3_2", (320, 192, 3, 3)
    yield "Mixed_7a.branch7x7x3_1", (192, 768, 1, 1)
    yield "Mixed_7a.branch7x7x3_2", (192, 192, 1, 7)
    yield "Mixed_7a.branch7x7x3_3", (192, 192, 7, 1)
    yield "Mixed_7a.branch7x7x3_4", (192, 192, 3, 3)
    for block, width in (("7b", 1280), ("7c", 2048)):
        yield f"Mixed_{block}.branch1x1", (320, width, 1, 1)
        yield f"Mixed_{block}.branch3x3_1", (384, width, 1, 1)
        yield f"Mixed_{block}.branch3x3_2a", (384, 384, 1, 3)
        yield f"Mixed_{block}.branch3x3_2b", (384, 384, 3, 1)
        yield f"Mixed_{block}.branch3x3dbl_1", (448, width, 1, 1)
        yield f"Mixed_{block}.branch3x3dbl_2", (384, 448, 3, 3)
        yield f"Mixed_{block}.branch3x3dbl_3a", (384, 384, 1, 3)
        yield f"Mixed_{block}.branch3x3dbl_3b", (384, 384, 3, 1)
        yield f"Mixed_{block}.branch_pool", (192, width, 1, 1)


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the published file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _conv_shapes():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (_NUM_CLASSES, NUM_FEATURES), "fc.bias": (_NUM_CLASSES,)}


class FidInception(nn.Module):
    """Features of the last average pool.

    Shapes:
        images   (B, 3, H, W)   -1..1, H and W at least 75, published at 299
        returns  (B, 2048)      in the precision of the weights
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Fold the published tensors, which have the names and shapes of `tensor_shapes`."""
        super().__init__()
        self.convs = nn.ModuleDict()
        for name, (num_out, num_in, height, width) in _conv_shapes():
            padding = (0, 0) if name in _UNPADDED else (height // 2, width // 2)
            conv = nn.Conv2d(num_in, num_out, (height, width), 2 if name in _STRIDE_2 else 1, padding)
            norm = {
                part: state[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            }
            scale = norm["weight"] / (norm["running_var"] + _BATCH_NORM_EPSILON).sqrt()
            assert conv.bias is not None
            with torch.no_grad():
                conv.weight.copy_(state[f"{name}.conv.weight"].double() * scale[:, None, None, None])
                conv.bias.copy_(norm["bias"] - norm["running_mean"] * scale)
            self.convs[name.replace(".", "/")] = conv
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        x = images
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = self._conv(x, name)
        x = F.max_pool2d(x, 3, stride=2)
        x = self._chain(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        x = F.max_pool2d(x, 3, stride=2)
        for block in ("Mixed_5b/", "Mixed_5c/", "Mixed_5d/"):
            x = torch.cat(
                [
                    self._conv(x, f"{block}branch1x1"),
                    self._chain(x, f"{block}branch5x5_1", f"{block}branch5x5_2"),
                    self._chain(x, *(f"{block}branch3x3dbl_{number}" for number in (1, 2, 3))),
                    self._pooled(x, f"{block}branch_pool"),
                ],
                dim=1,
            )
        x = torch.cat(
            [
                self._conv(x, "Mixed_6a/branch3x3"),
                self._chain(x, *(f"Mixed_6a/branch3x3dbl_{number}" for number in (1, 2, 3))),
                F.max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )
        for block in ("Mixed_6b/", "Mixed_6c/", "Mixed_6d/", "Mixed_6e/"):
            x = torch.cat(
                [
                    self._conv(x, f"{block}branch1x1"),
                    self._chain(x, *(f"{block}branch7x7_{number}" for number in (1, 2, 3))),
                    self._chain(x, *(f"{block}branch7x7dbl_{number}" for number in (1, 2, 3, 4, 5))),
                    self._pooled(x, f"{block}branch_pool"),
                ],
                dim=1,
            )
        x = torch.cat(
            [
                self._chain(x, "Mixed_7a/branch3x3_1", "Mixed_7a/branch3x3_2"),
                self._chain(x, *(f"Mixed_7a/branch7x7x3_{number}" for number in (1, 2, 3, 4))),
                F.max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )
        x = self._last(x, "Mixed_7b/", by_maximum=False)
        x = self._last(x, "Mixed_7c/", by_maximum=True)
        return x.mean(dim=(2, 3), dtype=torch.float32)

    def _last(self, x: Tensor, block: str, *, by_maximum: bool) -> Tensor:
        single = self._conv(x, f"{block}branch3x3_1")
        double = self._chain(x, f"{block}branch3x3dbl_1", f"{block}branch3x3dbl_2")
        if by_maximum:
            pooled = self._conv(F.max_pool2d(x, 3, stride=1, padding=1), f"{block}branch_pool")
        else:
            pooled = self._pooled(x, f"{block}branch_pool")
        return torch.cat(
            [
                self._conv(x, f"{block}branch1x1"),
                self._conv(single, f"{block}branch3x3_2a"),
                self._conv(single, f"{block}branch3x3_2b"),
                self._conv(double, f"{block}branch3x3dbl_3a"),
                self._conv(double, f"{block}branch3x3dbl_3b"),
                pooled,
            ],
            dim=1,
        )

    def _conv(self, x: Tensor, name: str) -> Tensor:
        return self.convs[name](x).relu_()

    def _chain(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self._conv(x, name)
        return x

    def _pooled(self, x: Tensor, name: str) -> Tensor:
        """Average pool, 1x1 convolution, ReLU. Means and 1x1 convolutions commute, and the convolution thins the
        channels out.
        """
        thin = self.convs[name](x)
        return F.avg_pool2d(thin, 3, stride=1, padding=1, count_include_pad=False).relu_()
