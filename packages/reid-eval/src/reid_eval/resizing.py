"""From pixels of any size to a network's square: five rules that give five different numbers, so each has a name.

legacy      bilinear with half-pixel centres, without antialiasing, in float32: pytorch-fid
clean       bicubic with antialiasing, per channel in float32, clipped to 0..255 and not rounded: clean-fid
tensorflow  bilinear without half-pixel centres: the TensorFlow graph of the first FID, and torch-fidelity
dgnet       bicubic to 256x128 in 8 bits, then `tensorflow`: the DG-Net paper
none        native size: every picture as it is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, device

ResizeRule = Literal["legacy", "clean", "tensorflow", "dgnet", "none"]
RESIZE_RULES: tuple[ResizeRule, ...] = get_args(ResizeRule)

RESIZE_TEXT: dict[ResizeRule, str] = {
    "legacy": "bilinear with half-pixel centres, without antialiasing (rule legacy, as pytorch-fid)",
    "clean": "bicubic with antialiasing (rule clean, as clean-fid)",
    "tensorflow": "bilinear without half-pixel centres (rule tensorflow, as the first FID and torch-fidelity)",
    "dgnet": "bicubic to 256x128, then bilinear without half-pixel centres (rule dgnet, as the DG-Net paper)",
    "none": "not resized (rule none)",
}

DGNET_HW = (256, 128)


def resized(pixels_batch: list[np.ndarray], rule: ResizeRule, image_hw: tuple[int, int], device: device) -> Tensor:
    """Pixels to levels 0..255 as float32 at one size.

    Shapes:
        pixels_batch  uint8, RGB, (H, W, 3) each, of any sizes; for the rule none of one size
        returns       (B, 3, height, width)  float32 on the device
    """
    import torch
    import torch.nn.functional as F

    def stacked(some: list[np.ndarray]) -> Tensor:
        # A single picture may be a large one, and one copy of it is enough.
        pixels = np.stack(some) if len(some) > 1 else some[0].astype(np.float32)[None]
        return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()

    match rule:
        case "none":
            return stacked(pixels_batch)
        case "clean":
            return torch.from_numpy(np.stack([_clean(pixels, image_hw) for pixels in pixels_batch])).to(device)
        case "dgnet":
            pixels_batch = [_bicubic_u8(pixels, DGNET_HW) for pixels in pixels_batch]
    images = torch.empty((len(pixels_batch), 3, *image_hw), device=device)
    for rows in rows_by_shape(pixels_batch):
        levels = stacked([pixels_batch[row] for row in rows])
        if rule == "legacy":
            images[rows] = F.interpolate(levels, size=image_hw, mode="bilinear", align_corners=False)
        else:
            images[rows] = _tensorflow(levels, image_hw)
    return images


def rows_by_shape(pixels_batch: list[np.ndarray]) -> list[list[int]]:
    """Rows of the pictures of each size."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, pixels in enumerate(pixels_batch):
        rows.setdefault(pixels.shape, []).append(row)
    return list(rows.values())


def _bicubic_u8(pixels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(image_hw[::-1], Image.Resampling.BICUBIC))


def _clean(pixels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """One picture to (3, height, width) float32, each channel resized as a picture of floats."""
    channels = [
        Image.fromarray(np.ascontiguousarray(pixels[:, :, channel], np.float32)).resize(
            image_hw[::-1], Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)


def _tensorflow(levels: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) to (B, 3, height, width): output pixel i lies at i * H / height, whatever lies beyond is the
    edge.
    """
    import torch

    for axis, size in ((2, image_hw[0]), (3, image_hw[1])):
        length = levels.shape[axis]
        position = torch.arange(size, dtype=torch.float32, device=levels.device) * (length / size)
        before = position.floor().long().clamp(max=length - 1)
        after = (before + 1).clamp(max=length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = (position - before).reshape(shape)
        low, high = levels.index_select(axis, before), levels.index_select(axis, after)
        levels = low + (high - low) * share
    return levels
