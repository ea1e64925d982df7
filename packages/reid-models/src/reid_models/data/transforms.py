"""Pixels to network input and back: the one place that knows the mean and the deviation.

*Pixels* are uint8, RGB, (H, W, 3), 0..255. *Images* are network input: float32, (B, 3, H, W), normalised with the
ImageNet mean and deviation. Nothing else in the project turns one into the other. All randomness comes from the
generator that is passed in.

    images = to_images(resize_pixels(read_pixels(file), (256, 128)))
    save_image("copy.png", to_pixels(images)[0])
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def resize_pixels(pixels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Bicubic, antialiased resize of pixels to (height, width)."""
    height, width = image_hw
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def to_images(pixels: np.ndarray) -> Tensor:
    """Pixels (H, W, 3) or (B, H, W, 3) to images (B, 3, H, W)."""
    batch = torch.from_numpy(np.array(pixels, copy=True)).reshape(-1, *pixels.shape[-3:])
    return normalise(batch.permute(0, 3, 1, 2).float().div_(255))


def normalise(unit: Tensor) -> Tensor:
    """RGB in 0..1, (..., 3, H, W), to network input."""
    mean = unit.new_tensor(MEAN)[:, None, None]
    deviation = unit.new_tensor(DEVIATION)[:, None, None]
    return (unit - mean).div_(deviation)


def to_pixels(images: Tensor, *, levels: Literal["rounded", "truncated"] = "rounded") -> np.ndarray:
    """Images (B, 3, H, W) to pixels (B, H, W, 3), clipped and rounded.

    `truncated`, as published DG-Net pictures are, cuts off what stands behind the point, reckoned in float64.
    """
    images = images.detach().float().cpu()
    if levels == "truncated":
        images = images.double()
    mean = images.new_tensor(MEAN)[:, None, None]
    deviation = images.new_tensor(DEVIATION)[:, None, None]
    values = ((images * deviation + mean) * 255).clamp(0, 255)
    if levels == "rounded":
        values = values.round()
    return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_gray(images: Tensor) -> Tensor:
    """The structure encoder's input (B, 1, H, W): the plain mean of the three normalised channels."""
    return images.mean(dim=1, keepdim=True)


def eval_transform(pixels: np.ndarray, image_hw: tuple[int, int]) -> Tensor:
    """Pixels of any size to one image (3, H, W), the same every time."""
    return to_images(resize_pixels(pixels, image_hw))[0]


def train_transform(
    pixels: np.ndarray,
    image_hw: tuple[int, int],
    *,
    generator: torch.Generator,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.0,
) -> Tensor:
    """Pixels of any size to one augmented image (3, H, W).

    Mirrored with probability `flip`; resized; padded by `pad` pixels of edge colour and cropped back at random;
    a rectangle erased with probability `erase` (random_erasing). `pad` is in pixels of the network input.
    """
    resized = resize_pixels(pixels, image_hw)
    mirror = bool(torch.rand((), generator=generator) < flip)
    if mirror:
        resized = resized[:, ::-1]
    if pad > 0:
        top, left = torch.randint(0, 2 * pad + 1, (2,), generator=generator).tolist()
        height, width = image_hw
        padded = np.pad(resized, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        resized = padded[top : top + height, left : left + width]
    image = to_images(resized)
    if erase > 0:
        image = random_erasing(image, erase, generator=generator)
    return image[0]


def random_erasing(images: Tensor, probability: float, *, generator: torch.Generator) -> Tensor:
    """A copy of the images (B, 3, H, W), each with a random rectangle set to the mean colour with `probability`.

    Zhong et al. 2017, with the sizes used for re-identification: area 2 % to 40 %, aspect 0.3 to 1/0.3 uniform.
    """
    images = images.clone()
    height, width = images.shape[-2:]
    for image in images:
        if torch.rand((), generator=generator) > probability:
            continue
        for _ in range(100):
            area_share, aspect_share = torch.rand(2, generator=generator).tolist()
            area = (0.02 + 0.38 * area_share) * height * width
            aspect = 0.3 + (1 / 0.3 - 0.3) * aspect_share
            erased_h, erased_w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if erased_h < height and erased_w < width:
                top = int(torch.randint(0, height - erased_h + 1, (), generator=generator))
                left = int(torch.randint(0, width - erased_w + 1, (), generator=generator))
                image[:, top : top + erased_h, left : left + erased_w] = 0
                break
    return images


def random_tone(gray: Tensor, most: float, *, generator: torch.Generator) -> Tensor:
    """Grey pictures (B, 1, H, W) whose levels follow a random curve, by a share that is uniform in 0..`most`.

    The curve of a picture goes straight between four random values in its own range, so it may fall: edges mostly stay,
    what is bright and what is dark does not.
    """
    shares = most * torch.rand(len(gray), 1, 1, 1, generator=generator)
    knots = torch.rand(len(gray), 4, generator=generator).to(gray)
    low, high = gray.amin((1, 2, 3), keepdim=True), gray.amax((1, 2, 3), keepdim=True)
    place = 3 * (gray - low) / (high - low).clamp(min=1e-6)
    left = place.floor().clamp(max=2)
    before, after = (knots.gather(1, (left + step).long().flatten(1)).view_as(gray) for step in (0, 1))
    curved = low + (high - low) * torch.lerp(before, after, place - left)
    return torch.lerp(gray, curved, shares.to(gray))
