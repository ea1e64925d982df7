"""How alike two pictures are: SSIM, PSNR, and the Lab dissimilarity of the DG-Net paper. Pixels in, numbers out.

Pixels are uint8, RGB, 0..255. Several different numbers are called SSIM; the one here is scikit-image's default (a
uniform 7x7 window, sample covariance, data range 255), computed on each RGB channel, windows wholly inside the
picture, mean over positions and channels. `SSIM_PROTOCOL` says so in every result.

    ssim(made, truth)                                 # at most 1, and 1 for equal pictures
    psnr_db(made, truth)                              # dB, infinite for equal pictures
    ssim_of_batch([made, ...], [truth, ...])          # (P,)
    dssim_lab_of_batch([made, ...], [truth, ...])     # (P,), 0 for equal pictures
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from reid_eval.errors import ReidError

WINDOW_PX = 7
DATA_RANGE = 255
SSIM_PROTOCOL = (
    "SSIM on RGB 0..255 at native size: uniform 7x7 window, sample covariance, data range 255, "
    "mean over inner positions and channels (scikit-image's default)."
)
DSSIM_LAB_PROTOCOL = (
    "(1 - SSIM) / 2 in Lab colours at native size: pixels through -1..1 and back with truncation, sRGB to Lab "
    "(D65), uniform "
    "7x7 window, sample covariance, data range 100, mean over inner positions and channels (the DG-Net paper's 'SSIM')."
)
_LAB_RANGE = 100
_AREA = WINDOW_PX * WINDOW_PX
_STRIP_ELEMENTS = 24_000  # of a picture at a time: what a strip needs stays in the processor's cache
_LAB_PX = 1 << 18  # of a picture at a time in Lab colours, which take a hundred bytes a pixel while they are made
_BLOCK = 1 << 20


class SimilarityError(ReidError):
    """The pictures cannot be compared."""


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures; at most 1, and 1 for equal pictures.

    Window sums are exact whole numbers; the last division is done in float32.

    Shapes:
        first, second  (H, W, 3) or (H, W)  uint8, H and W at least 7
        returns        mean over the (H - 6, W - 6) windows wholly inside, then over channels

    Raises:
        SimilarityError: the sizes differ, or are smaller than the window.
    """
    return float(ssim_of_batch([first], [second])[0])


class _Memory:
    """Arrays that all strips use again, since fresh memory costs as much as the sums over it."""

    def __init__(self) -> None:
        self._narrow = np.empty((4, 0), np.uint16)
        self._wide = np.empty((6, 0), np.int32)

    def of(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Four arrays of uint16 and six of int32 of some length, with anything in them."""
        if size > self._wide.shape[1]:
            self._narrow, self._wide = np.empty((4, size), np.uint16), np.empty((6, size), np.int32)
        return self._narrow[:, :size], self._wide[:, :size]


def _ssim(first: np.ndarray, second: np.ndarray, memory: _Memory) -> float:
    _refuse_unequal(first, second)
    _refuse_small(first)
    first, second = _upright(first), _upright(second)
    height, width = first.shape[:2]
    channels = first.size // (height * width)
    row = width * channels
    x, y = first.reshape(-1), second.reshape(-1)
    num_windows = height - WINDOW_PX + 1, width - WINDOW_PX + 1
    num_strips = max(1, round(num_windows[0] * row / _STRIP_ELEMENTS))
    rows = max(WINDOW_PX + 1, -(-num_windows[0] // num_strips))
    total = 0.0
    for start in range(0, num_windows[0], rows):
        strip = slice(start * row, (start + rows + WINDOW_PX - 1) * row)
        total += _sum_inside(_strip_ssim(x[strip], y[strip], row, channels, memory), row, channels)
    return total / (num_windows[0] * num_windows[1] * channels)


def _upright(pixels: np.ndarray) -> np.ndarray:
    """A picture that is much wider than high turned on its side, which changes no mean over its windows: its strips
    would be long.
    """
    if pixels.shape[1] <= max(pixels.shape[0], _STRIP_ELEMENTS):
        return pixels
    return np.ascontiguousarray(pixels.swapaxes(0, 1))


def _strip_ssim(x: np.ndarray, y: np.ndarray, row: int, channels: int, memory: _Memory) -> np.ndarray:
    """Similarities of all windows of a strip of flat pixels, as `_window_sums` places them; float32."""
    (narrow_x, narrow_y, spare_1, spare_2), (xy, sq, spare_3, spare_4, wide_x, wide_y) = memory.of(len(x))
    narrow_x[:], narrow_y[:] = x, y  # a window's sum stays below 2^16, a product too
    xy[:] = np.multiply(narrow_x, narrow_y, out=spare_1)
    sq[:] = np.multiply(narrow_x, narrow_x, out=spare_1)
    spare_3[:] = np.multiply(narrow_y, narrow_y, out=spare_1)
    sq += spare_3
    sum_x, sum_y = (_window_sums(side, row, channels, spare_1, spare_2) for side in (narrow_x, narrow_y))
    sum_xy, sum_sq = (_window_sums(side, row, channels, spare_3, spare_4) for side in (xy, sq))
    means, mean_sq, other_sq, spare = (array[: len(sum_xy)] for array in (spare_3, wide_x, wide_y, spare_4))
    mean_sq[:], other_sq[:] = sum_x, sum_y
    np.multiply(mean_sq, other_sq, out=means)
    mean_sq *= mean_sq
    other_sq *= other_sq
    mean_sq += other_sq  # of squared means
    sum_xy *= _AREA
    sum_xy -= means  # covariance times 49 * 48, exact
    sum_sq *= _AREA
    sum_sq -= mean_sq  # sum of both variances times 49 * 48, exact
    c1 = np.float32((0.01 * DATA_RANGE) ** 2 * _AREA**2)
    c2 = np.float32((0.03 * DATA_RANGE) ** 2 * _AREA * (_AREA - 1))
    alike, cov, largest, var = (array.view(np.float32) for array in (other_sq, spare, sum_xy, means))
    alike[:] = means
    cov[:] = sum_xy
    largest[:] = mean_sq
    var[:] = sum_sq
    alike *= 2
    alike += c1
    cov *= 2
    cov += c2
    largest += c1
    var += c2
    alike *= cov
    largest *= var
    alike /= largest
    return alike


def _window_sums(values: np.ndarray, row: int, channels: int, spare: np.ndarray, other_spare: np.ndarray) -> np.ndarray:
    """Sums over 7x7 windows of flat values (H * row,), each in its first value's place; the values are lost.

    Long runs of memory are added faster than rows that end. So the windows that begin in the last 6 pixels of a row,
    and go on in the next, are there too; `_sum_inside` leaves them out.
    """
    return _runs(_runs(values, row, spare, other_spare), channels, spare, values)


def _runs(values: np.ndarray, step: int, spare: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Sums of 7 values that lie `step` apart, in the beginning of `out`, by doubling: 7 = 4 + 2 + 1."""
    two = np.add(values[:-step], values[step:], out=spare[: len(values) - step])
    sums = out[: len(values) - 6 * step]
    np.add(two[: -5 * step], two[2 * step : -3 * step], out=sums)
    sums += two[4 * step : -step]
    sums += values[6 * step :]
    return sums


def _sum_inside(values: np.ndarray, row: int, channels: int) -> float:
    """Sum of what belongs to windows wholly inside the picture; the last row ends with the last of them."""
    inside = row - (WINDOW_PX - 1) * channels
    whole = values[:-inside].reshape(-1, row)[:, :inside]
    return float(whole.sum(dtype=np.float64) + values[-inside:].sum(dtype=np.float64))


def ssim_of_batch(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """SSIM of P pairs, (P,)."""
    memory = _Memory()
    return np.array([_ssim(*pair, memory) for pair in zip(first, second, strict=True)])


def psnr_of_batch(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """PSNR of P pairs in dB, (P,)."""
    return np.array([psnr_db(*pair) for pair in zip(first, second, strict=True)])


def dssim_lab_of_batch(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """`dssim_lab` of P pairs, (P,); a picture that occurs again is converted once, unless it is large."""
    labs: dict[int, np.ndarray] = {}
    for pair in zip(first, second, strict=True):
        _refuse_unequal(*pair)
        _refuse_small(pair[0])
        for pixels in pair:
            if id(pixels) not in labs and pixels.size <= 3 * _LAB_PX:
                labs[id(pixels)] = _lab(pixels)
    return np.array([_dssim(a, b, labs) for a, b in zip(first, second, strict=True)])


def dssim_lab(first: np.ndarray, second: np.ndarray) -> float:
    """The dissimilarity (1 - SSIM) / 2 in Lab colours that the DG-Net paper calls SSIM: 0 for equal pictures, higher is
    more different.

    Shapes:
        first, second  (H, W, 3)  uint8, H and W at least 7

    Raises:
        SimilarityError: the sizes differ, or are smaller than the window.
    """
    return float(dssim_lab_of_batch([first], [second])[0])


def _lab(pixels: np.ndarray) -> np.ndarray:
    """Pixels to Lab (H, W, 3) float32, after the round trip through -1..1 of the authors' program, which truncates."""
    from skimage.color import rgb2lab

    on_unit = (pixels / 127.5 - 1).astype(np.float32)
    back = ((on_unit + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return rgb2lab(back).astype(np.float32)


def _dssim(first: np.ndarray, second: np.ndarray, labs: Mapping[int, np.ndarray]) -> float:
    """(1 - SSIM) / 2 of pictures (H, W, 3): those that are not known in Lab colours are converted in strips."""
    height, width, channels = first.shape
    num_windows = (height - WINDOW_PX + 1) * (width - WINDOW_PX + 1) * channels
    if id(first) in labs:
        return (1 - _sum_of_lab(labs[id(first)], labs[id(second)]) / num_windows) / 2
    first, second = _upright(first), _upright(second)
    rows = max(WINDOW_PX + 1, _LAB_PX // first.shape[1])
    total = 0.0
    for start in range(0, len(first) - WINDOW_PX + 1, rows):
        strip = slice(start, start + rows + WINDOW_PX - 1)
        total += _sum_of_lab(_lab(first[strip]), _lab(second[strip]))
    return (1 - total / num_windows) / 2


def _sum_of_lab(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of SSIM over all windows and channels of Lab pictures (H, W, 3)."""
    _, width, channels = x.shape
    row = width * channels
    x, y = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    spares = np.empty((2, x.size))
    mean_xy, mean_sq, mean_x, mean_y = (
        _window_sums(values, row, channels, *spares) / _AREA for values in (x * y, x * x + y * y, x, y)
    )
    to_sample = _AREA / (_AREA - 1)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    c1, c2 = (0.01 * _LAB_RANGE) ** 2, (0.03 * _LAB_RANGE) ** 2
    alike = (2 * product + c1) * (2 * to_sample * (mean_xy - product) + c2)
    largest = (squares + c1) * (to_sample * (mean_sq - squares) + c2)
    return _sum_inside(alike / largest, row, channels)


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite for equal pictures.

    Raises:
        SimilarityError: the sizes differ.
    """
    _refuse_unequal(first, second)
    total = 0  # of whole numbers, so exact
    x, y = first.reshape(-1), second.reshape(-1)
    for start in range(0, x.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        total += int(np.square(x[block].astype(np.int32) - y[block]).sum(dtype=np.int64))
    error_sq = total / first.size
    return math.inf if error_sq == 0 else 10 * math.log10(DATA_RANGE**2 / error_sq)


def mean_psnr_db(values: np.ndarray) -> tuple[float, int]:
    """Mean of the finite ones of some PSNR values, and how many are infinite, of pictures that are equal.

    The mean is infinite only if all are.
    """
    values = np.asarray(values, np.float64)
    is_equal = np.isposinf(values)
    return (math.inf if is_equal.all() else float(values[~is_equal].mean())), int(is_equal.sum())


def _refuse_small(pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < WINDOW_PX:
        raise SimilarityError(f"pictures of {height}x{width} pixels: SSIM needs at least {WINDOW_PX}x{WINDOW_PX}")


def _refuse_unequal(first: np.ndarray, second: np.ndarray) -> None:
    for pixels in (first, second):
        if pixels.dtype != np.uint8:
            raise SimilarityError(f"pixels of type {pixels.dtype}: expected uint8, 0..255")
    if first.shape != second.shape:
        raise SimilarityError(
            f"pictures of different size, {_size(first)} and {_size(second)}: resize one of them before comparing"
        )


def _size(pixels: np.ndarray) -> str:
    return "x".join(map(str, pixels.shape))
