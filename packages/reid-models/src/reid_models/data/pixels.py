"""The pictures of an index at network size, decoded once and kept while memory allows.

store = PixelStore(index, (256, 128), cache_bytes=512 << 20)
store.read(3)       # uint8, RGB, (256, 128, 3)
"""

from __future__ import annotations

import numpy as np

from reid_eval.files import read_pixels
from reid_models.data.index import DatasetIndex
from reid_models.data.transforms import resize_pixels


class PixelStore:
    """Resized pixels by row. Keeps the first pictures read until `cache_bytes` are used; decodes the rest each time."""

    def __init__(self, index: DatasetIndex, image_hw: tuple[int, int], cache_bytes: int = 0) -> None:
        self.index, self.image_hw = index, image_hw
        self._left_bytes = cache_bytes
        self._kept: dict[int, np.ndarray] = {}

    def read(self, row: int) -> np.ndarray:
        """The picture of a row: uint8, RGB, (H, W, 3), not to be changed in place.

        Raises:
            ImageError: the file is missing or no readable picture.
        """
        pixels = self._kept.get(row)
        if pixels is None:
            pixels = resize_pixels(read_pixels(self.index[row].path), self.image_hw)
            if pixels.nbytes <= self._left_bytes:
                self._left_bytes -= pixels.nbytes
                self._kept[row] = pixels
        return pixels
