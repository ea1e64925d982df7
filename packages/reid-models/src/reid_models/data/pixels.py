"""The pictures of an index at network size, decoded once and kept while memory allows.

store = PixelStore(index, (256, 128), cache_bytes=512 << 20)
store.read(3)       # uint8, RGB, (256, 128, 3)
take_remarks()      # what is odd about the pictures read since the last time, such as a rotation not applied
"""

from __future__ import annotations

import numpy as np

from reid_eval.files import Picture, read_picture
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
            picture = read_picture(self.index[row].path)
            _remark_on(picture)
            pixels = resize_pixels(picture.pixels, self.image_hw)
            if pixels.nbytes <= self._left_bytes:
                self._left_bytes -= pixels.nbytes
                self._kept[row] = pixels
        return pixels


_remarks: list[str] = []


def _remark_on(picture: Picture) -> None:
    for is_so, remark in (
        (picture.is_rotated, "some pictures ask for a rotation (Exif) that is not applied"),
        (picture.is_animated, "some pictures are animations, of which the first frame counts"),
        (picture.is_transparent, "some pictures have transparency, which is dropped"),
        (picture.mode == "CMYK", "some pictures are CMYK and become RGB without their colour profile"),
    ):
        if is_so and (text := f"{remark}; 'reid-models check --decode' counts them") not in _remarks:
            _remarks.append(text)


def take_remarks() -> list[str]:
    """What is odd about the pictures that this process has read since it was last asked."""
    taken = _remarks[:]
    _remarks.clear()
    return taken
