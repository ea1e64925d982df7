"""Sheets of swapped pictures: structures down the left, appearances across the top.

pixels = swap_grid(DGNet.load("runs/dgnet"), structures=[Path("a.jpg")], appearances=[Path("b.jpg")])
save_image("swap.png", pixels)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_gen.model import Codes, DGNet
from dgnet_gen.networks.decoder import mix
from reid_eval.files import read_pixels
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.transforms import eval_transform, resize_pixels, to_pixels

GAP_PX = 2


def swap_grid(
    model: DGNet, structures: Sequence[Path], appearances: Sequence[Path], *, batch_size: int = 32
) -> np.ndarray:
    """Everybody of `appearances` in every pose of `structures`; photographs of any size.

    Shapes:
        returns  (H, W, 3)  uint8, RGB; the first row and column show the photographs, the corner is blank

    Raises:
        ImageError: a file is no readable picture.
    """
    structure_images = _read(structures, model.image_hw)
    appearance_images = _read(appearances, model.image_hw)
    return grid_of(
        model,
        structure_images,
        appearance_images,
        model.structure(structure_images),
        model.appearance(appearance_images),
        batch_size=batch_size,
    )


def grid_of(
    model: DGNet,
    structure_images: Tensor,
    appearance_images: Tensor,
    structure: Tensor,
    appearance: Tensor,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """The same sheet from images (R, 3, H, W), (C, 3, H, W) and their codes."""
    rows, columns = len(structure), len(appearance)
    appearances, structures = mix(appearance, structure)
    made = [
        to_pixels(model.decode(Codes(*codes)))
        for codes in zip(appearances.split(batch_size), structures.split(batch_size), strict=True)
    ]
    height, width = model.image_hw
    swapped = np.concatenate(made).reshape(rows, columns, height, width, 3)
    step_h, step_w = height + GAP_PX, width + GAP_PX
    sheet = np.full(((rows + 1) * step_h - GAP_PX, (columns + 1) * step_w - GAP_PX, 3), 255, np.uint8)
    tops, lefts = to_pixels(appearance_images), to_pixels(structure_images)
    for column in range(columns):
        _put(sheet, tops[column], 0, (column + 1) * step_w)
    for row in range(rows):
        _put(sheet, lefts[row], (row + 1) * step_h, 0)
        for column in range(columns):
            _put(sheet, swapped[row, column], (row + 1) * step_h, (column + 1) * step_w)
    return sheet


def _put(sheet: np.ndarray, pixels: np.ndarray, top: int, left: int) -> None:
    sheet[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels


def _read(paths: Sequence[Path], image_hw: tuple[int, int]) -> Tensor:
    return torch.stack([eval_transform(read_pixels(path), image_hw) for path in paths])


def pick_people(index: DatasetIndex, rows: int, columns: int, *, seed: int = 0) -> tuple[list[Path], list[Path]]:
    """Pictures of different people for a sheet: `rows` structures and `columns` appearances.

    One picture per person; people are repeated, with other pictures, only when there are too few. Junk and distractors
    are left out.
    """
    rng = np.random.default_rng([seed, 5])
    people = [pid for pid in index.labels if pid > 0]
    if not people:
        raise DatasetError(f"{index.root}: no pictures of known people to swap")
    pids = index.pids

    def pick(count: int) -> list[Path]:
        chosen: list[int] = []
        while len(chosen) < count:
            chosen += [int(pid) for pid in rng.permutation(people)]
        return [index[int(rng.choice(np.flatnonzero(pids == pid)))].path for pid in chosen[:count]]

    return pick(rows), pick(columns)


def enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """The same picture `factor` times as large, smoothly."""
    if factor == 1:
        return pixels
    return resize_pixels(pixels, (pixels.shape[0] * factor, pixels.shape[1] * factor))
