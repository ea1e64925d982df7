"""How alike two pictures are (SSIM, PSNR), and how varied the pictures of one person are.

SSIM here is that of scikit-image's defaults: a uniform 7 x 7 window, sample covariance, per RGB channel, windows that
lie wholly inside, data range 255. Other programs call other numbers SSIM; results name this one.

    ssim(made, truth)                                   # -1..1, 1 for equal pictures
    ssim_within_identity("fake", pairs=10, seed=0)      # MetricResult: diversity, not fidelity
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import fingerprint, list_images, read_pixels
from reid_eval.progress import track
from reid_eval.report import MetricResult

WINDOW = 7
SSIM_PROTOCOL = "RGB 0..255, uniform 7x7 window, sample covariance, mean over positions and channels, at native size"


class SimilarityError(ReidError):
    """The pictures cannot be compared."""


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two pictures (Wang et al. 2004, with scikit-image's default window), -1..1.

    Shapes:
        first, second  (H, W, 3) or (H, W)  uint8, equal sizes of at least 7 x 7

    Raises:
        SimilarityError: the sizes differ or are below the window.
    """
    _refuse_unequal(first, second)
    if min(first.shape[:2]) < WINDOW:
        raise SimilarityError(
            f"a picture of {first.shape[0]} x {first.shape[1]} is smaller than SSIM's window of 7 x 7"
        )
    # 8-bit sums over a window stay below 2^53 in float64: the moments are exact.
    x, y = first.astype(np.float64), second.astype(np.float64)
    count = WINDOW * WINDOW
    mean_x, mean_y = _window_sum(x) / count, _window_sum(y) / count
    unbiased = count / (count - 1)
    var_x = unbiased * (_window_sum(x * x) / count - mean_x * mean_x)
    var_y = unbiased * (_window_sum(y * y) / count - mean_y * mean_y)
    cov = unbiased * (_window_sum(x * y) / count - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((numerator / denominator).mean())


def _window_sum(x: np.ndarray) -> np.ndarray:
    """Sums over all 7 x 7 windows that lie wholly inside."""
    total = np.cumsum(np.pad(x, [(1, 0)] + [(0, 0)] * (x.ndim - 1)), axis=0)
    x = total[WINDOW:] - total[:-WINDOW]
    total = np.cumsum(np.pad(x, [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2)), axis=1)
    return total[:, WINDOW:] - total[:, :-WINDOW]


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for uint8 pictures of equal size; infinite for equal ones."""
    _refuse_unequal(first, second)
    error = float(np.square(first.astype(np.float64) - second.astype(np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _refuse_unequal(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise SimilarityError(f"pictures of {first.shape} and {second.shape} cannot be compared; resize one of them")


def ssim_within_identity(root: Path | str, *, pairs: int = 10, seed: int = 0) -> MetricResult:
    """Mean SSIM of random pairs of pictures inside each identity's folder: lower means more varied pictures.

    This measures diversity, not fidelity. Draws `pairs` pairs per folder of two or more pictures; when two pictures of
    a pair differ in size, the second is resized (bicubic) to the first's and this is counted.

    Raises:
        SimilarityError: no folder below `root` holds two pictures.
        ImageError: no such folder, or a picture cannot be read.
    """
    root = Path(root)
    folders: dict[Path, list[Path]] = {}
    for path in list_images(root):
        if path.parent != root:
            folders.setdefault(path.parent, []).append(path)
    usable = {folder: paths for folder, paths in folders.items() if len(paths) > 1}
    if not usable:
        raise SimilarityError(f"{root}: no folder with two pictures below it; expected one folder per identity")
    values, resized = [], 0
    for number, (folder, paths) in enumerate(track(sorted(usable.items()), "SSIM")):
        rng = np.random.default_rng([seed, number])
        per_folder = []
        for _ in range(pairs):
            a, b = rng.choice(len(paths), 2, replace=False)
            first, second = read_pixels(paths[a]), read_pixels(paths[b])
            if first.shape != second.shape:
                second, resized = _resized_to(second, first), resized + 1
            per_folder.append(ssim(first, second))
        values.append(float(np.mean(per_folder)))
    single = len(folders) - len(usable)
    return MetricResult(
        name="ssim_within_identity",
        value=float(np.mean(values)),
        higher_is_better=False,
        protocol=(
            f"mean SSIM ({SSIM_PROTOCOL}) of {pairs} random pairs in each of {len(usable)} identity folders, seed {seed}; "
            f"{single} folders of one picture skipped, {resized} pairs resized; diversity, not fidelity"
        ),
        made_by={
            "reid_eval": reid_eval.__version__,
            "folder": str(root),
            "images": sum(len(paths) for paths in folders.values()),
            "names": fingerprint(str(path.relative_to(root)) for paths in folders.values() for path in paths),
        },
    )


def ssim_of_pairs(first: Path | str, second: Path | str) -> MetricResult:
    """Mean SSIM of the pictures of two folders that have equal relative names (the suffix may differ): fidelity.

    Raises:
        SimilarityError: no name is in both.
    """
    first, second = Path(first), Path(second)
    left = {path.relative_to(first).with_suffix(""): path for path in list_images(first)}
    right = {path.relative_to(second).with_suffix(""): path for path in list_images(second)}
    common = sorted(left.keys() & right.keys())
    if not common:
        raise SimilarityError(
            f"{first} and {second}: no picture has the same relative name in both ({len(left)}, {len(right)})"
        )
    values = [ssim(read_pixels(left[name]), read_pixels(right[name])) for name in track(common, "SSIM")]
    return MetricResult(
        name="ssim_pairs",
        value=float(np.mean(values)),
        higher_is_better=True,
        protocol=(
            f"mean SSIM ({SSIM_PROTOCOL}) of {len(common)} pictures with equal names; "
            f"{len(left) + len(right) - 2 * len(common)} without a partner left out"
        ),
        made_by={"reid_eval": reid_eval.__version__, "first": str(first), "second": str(second)},
    )


def _resized_to(pixels: np.ndarray, like: np.ndarray) -> np.ndarray:
    from PIL import Image

    size = (like.shape[1], like.shape[0])
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
