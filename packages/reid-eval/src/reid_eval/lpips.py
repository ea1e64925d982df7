"""LPIPS 0.1 (Zhang et al. 2018): the distance of two pictures in the layers of a network, weighted by learned heads.

Each of several layers' maps is scaled to unit length over its channels, squared differences are weighted per channel
by a head, averaged over positions and summed over layers. Trunk and heads come from two files in their published
formats: torchvision's of AlexNet, VGG16 or SqueezeNet 1.1, and the head files of LPIPS 0.1.

    lpips = Lpips("alex")
    lpips(first, second)             # (P,) distances of P pairs of pictures of one size
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.extractors import torch_device
from reid_eval.files import fingerprint, max_pixels
from reid_eval.weights import find_weights, known_weights, read_tensors, refuse_unfit, verify_weights, weights_sha256

if TYPE_CHECKING:
    from torch import Tensor, device, nn

LpipsNet = Literal["alex", "vgg", "squeeze"]

# Published network, its weight file, and after which of its layers to look.
_TRUNKS: dict[LpipsNet, tuple[str, tuple[int, ...]]] = {
    "alex": ("alexnet", (1, 4, 7, 9, 11)),
    "vgg": ("vgg16", (3, 8, 15, 22, 29)),
    "squeeze": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12)),
}
_CHANNELS: dict[LpipsNet, tuple[int, ...]] = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
_NET_NAMES: dict[LpipsNet, str] = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet 1.1"}
# Pixels arrive as -1..1; these are ImageNet's mean and deviation on that scale, rounded as published.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_MIN_SIZE_PX = 32
# So many pixels at once take about 1 GiB: maps of many channels at native size.
_PIXELS_AT_ONCE: dict[LpipsNet, int] = {"alex": 1 << 23, "vgg": 3 << 19, "squeeze": 1 << 22}


class LpipsError(ReidError):
    """The pictures cannot be compared."""


class Lpips:
    """The distance with one network; its weights are found at once, and the network is built when it is needed."""

    def __init__(
        self,
        net: LpipsNet = "alex",
        *,
        weights: Path | None = None,
        heads: Path | None = None,
        device: str = "auto",
        offline: bool = False,
        any_weights: bool = False,
    ) -> None:
        """Find `weights` (the trunk) and `heads`, or take those given.

        Raises:
            WeightFileError: one cannot be had, or is not the published one and `any_weights` does not allow that.
        """
        self.net = net
        self._device_name = device
        hashes, is_published = [], True
        files = []
        for published, given in ((known_weights(_TRUNKS[net][0]), weights), (known_weights(f"lpips-{net}"), heads)):
            file = given if given is not None else find_weights(published, offline=offline)
            allowed = any_weights and given is not None
            sha256 = weights_sha256(file, expected=published) if allowed else verify_weights(published, file)
            is_published &= sha256.startswith(published.sha256_start)
            hashes.append(sha256)
            files.append(file)
        self.trunk_file, self.heads_file = files
        self.weights = {f"{net} trunk": hashes[0], f"{net} heads": hashes[1]}
        self.quotable = is_published
        self.name = f"lpips_{net}" if is_published else f"lpips_{net}_demo"
        self.fingerprint = fingerprint([net, *hashes])
        whose = "" if is_published else "NOT the published ones, never to be quoted, "
        self.description = (
            f"LPIPS 0.1 with {_NET_NAMES[net]}, weights {whose}SHA-256 {hashes[0][:8]} and heads {hashes[1][:8]}, "
            "at native size"
        )

    @cached_property
    def _device(self) -> device:
        return torch_device(self._device_name)

    @cached_property
    def _trunk(self) -> nn.Module:
        import torch
        from torchvision import models

        name, layers = _TRUNKS[self.net]
        features = getattr(models, name)(weights=None).features[: layers[-1] + 1]
        wanted = {str(number) for number in range(layers[-1] + 1)}
        state = {
            key.removeprefix("features."): value
            for key, value in read_tensors(self.trunk_file).items()
            if key.startswith("features.") and key.split(".")[1] in wanted
        }
        refuse_unfit(
            self.trunk_file,
            {f"features.{key}": value.shape for key, value in state.items()},
            {f"features.{key}": value.shape for key, value in features.state_dict().items()},
        )
        features.load_state_dict(state)
        for module in features.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # a layer's output is read after the next layer has run
        return features.requires_grad_(False).eval().to(self._device, memory_format=torch.channels_last)

    @cached_property
    def _heads(self) -> list[Tensor]:
        state = read_tensors(self.heads_file)
        names = [f"lin{number}.model.1.weight" for number in range(len(_CHANNELS[self.net]))]
        shapes = {name: (1, channels, 1, 1) for name, channels in zip(names, _CHANNELS[self.net], strict=True)}
        refuse_unfit(self.heads_file, {name: value.shape for name, value in state.items()}, shapes)
        return [state[name].to(self._device).float() for name in names]

    def __call__(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
        """Distances of pairs of pictures, all of one size; a picture that occurs again is looked at once.

        Shapes:
            first, second  uint8, RGB, (H, W, 3) each, P of them, H and W at least 32
            returns        (P,)  float64, 0 for equal pictures

        Raises:
            LpipsError: the pictures are of different size, or too small for the network.
        """
        shapes = {pixels.shape for pixels in (*first, *second)}
        if len(shapes) != 1:
            raise LpipsError(f"pictures of {len(shapes)} different sizes; resize them before comparing")
        height, width = next(iter(shapes))[:2]
        if min(height, width) < _MIN_SIZE_PX:
            raise LpipsError(f"pictures of {height}x{width} pixels: LPIPS needs at least {_MIN_SIZE_PX}x{_MIN_SIZE_PX}")
        at_once = _PIXELS_AT_ONCE[self.net]
        if (allowed := max_pixels(at_once // 2)) < height * width:
            raise LpipsError(
                f"pictures of {height}x{width} pixels: LPIPS with {_NET_NAMES[self.net]} takes more than 1 GiB for a "
                f"pair above {allowed:,} pixels; make them smaller, or set REID_MAX_PIXELS"
            )
        pairs = max(1, at_once // (2 * height * width))
        some = [slice(start, start + pairs) for start in range(0, len(first), pairs)]
        return np.concatenate([self._distances(first[rows], second[rows]) for rows in some])

    def _distances(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        seen: dict[int, int] = {}
        unique: list[np.ndarray] = []
        for pixels in (*first, *second):
            if id(pixels) not in seen:
                seen[id(pixels)] = len(unique)
                unique.append(pixels)
        left = torch.tensor([seen[id(pixels)] for pixels in first], device=self._device)
        right = torch.tensor([seen[id(pixels)] for pixels in second], device=self._device)
        with torch.inference_mode():
            levels = torch.from_numpy(np.stack(unique)).to(self._device).permute(0, 3, 1, 2).float()
            shift, scale = (torch.tensor(values, device=self._device)[:, None, None] for values in (_SHIFT, _SCALE))
            x = ((levels / 127.5 - 1 - shift) / scale).contiguous(memory_format=torch.channels_last)
            distances = torch.zeros(len(left), dtype=torch.float64, device=self._device)
            heads = dict(zip(_TRUNKS[self.net][1], self._heads, strict=True))
            for number, layer in enumerate(self._trunk.children()):
                x = layer(x)
                if number in heads:
                    unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                    different = (unit[left] - unit[right]).square()
                    distances += (different * heads[number]).sum(dim=1).mean(dim=(1, 2)).double()
        return distances.cpu().numpy()
