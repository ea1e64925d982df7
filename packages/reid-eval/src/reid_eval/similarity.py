"""How alike two pictures are (SSIM, PSNR), and how varied the pictures of one person are.

Pixels in (uint8, RGB, 0..255), numbers out. Several different numbers are called SSIM; the one here is scikit-image's
default (a uniform 7x7 window, sample covariance, data range 255), computed on each RGB channel, windows wholly inside
the picture, mean over positions and channels. `SSIM_PROTOCOL` says so in every result.

    ssim(made, truth)                                 # at most 1, and 1 for equal pictures
    psnr_db(made, truth)                              # dB, infinite for equal pictures
    ssim_within_identity("fake", pairs=10, seed=0)    # MetricResult: diversity, not fidelity
    ssim_of_pairs("made", "truth")                    # MetricResult: fidelity
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import describe_images, fingerprint, list_images, read_pixels
from reid_eval.progress import track
from reid_eval.report import MetricResult

WINDOW_PX = 7
DATA_RANGE = 255
SSIM_PROTOCOL = (
    "SSIM on RGB 0..255 at native size: uniform 7x7 window, sample covariance, data range 255, "
    "mean over inner positions and channels (scikit-image's default)."
)


class SimilarityError(ReidError):
    """The pictures cannot be compared."""


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures; at most 1, and 1 for equal pictures.

    Shapes:
        first, second  (H, W, 3) or (H, W)  uint8, H and W at least 7
        returns        mean over the (H - 6, W - 6) windows wholly inside, then over channels

    Raises:
        SimilarityError: the sizes differ, or are smaller than the window.
    """
    _refuse_unequal(first, second)
    height, width = first.shape[:2]
    if min(height, width) < WINDOW_PX:
        raise SimilarityError(f"pictures of {height}x{width} pixels: SSIM needs at least {WINDOW_PX}x{WINDOW_PX}")
    x, y = first.astype(np.float64), second.astype(np.float64)
    area = WINDOW_PX * WINDOW_PX
    to_sample = area / (area - 1)
    mean_x, mean_y = _window_sums(x) / area, _window_sums(y) / area
    var_x = to_sample * (_window_sums(x * x) / area - mean_x * mean_x)
    var_y = to_sample * (_window_sums(y * y) / area - mean_y * mean_y)
    cov_xy = to_sample * (_window_sums(x * y) / area - mean_x * mean_y)
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * cov_xy + c2)
    largest = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return float((alike / largest).mean())


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sums over all 7x7 windows: (H, W, ...) to (H - 6, W - 6, ...), exact, because the values are integers."""
    for axis in (0, 1):
        padding = [(1, 0) if other == axis else (0, 0) for other in range(values.ndim)]
        running = np.moveaxis(np.cumsum(np.pad(values, padding), axis=axis), axis, 0)
        values = np.moveaxis(running[WINDOW_PX:] - running[:-WINDOW_PX], 0, axis)
    return values


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite for equal pictures.

    Raises:
        SimilarityError: the sizes differ.
    """
    _refuse_unequal(first, second)
    error_sq = float(np.square(first.astype(np.float64) - second.astype(np.float64)).mean())
    return math.inf if error_sq == 0 else 10 * math.log10(DATA_RANGE**2 / error_sq)


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


def ssim_within_identity(
    root: Path | str, *, pairs: int = 10, seed: int = 0, name: str = "ssim_within_identity"
) -> MetricResult:
    """Mean SSIM of random pairs of pictures inside each identity's folder: the lower, the more varied the pictures.

    This is diversity, not fidelity. `root` holds one folder per identity, at any depth; each folder's pairs follow
    from `seed` and its own name. Folders of one picture are skipped and counted, and so are pictures beside the
    folders. Where the pictures of a pair differ in size, the second is resized to the first (bicubic) and counted.
    `name` names the result, when several sets of pictures are measured for one report: `ssim_within_identity_real`.

    Raises:
        SimilarityError: no folder below `root` holds two pictures, or a picture is smaller than the window.
        ImageError: there is no such folder, or a picture cannot be read.
    """
    root = Path(root)
    if pairs < 1:
        raise SimilarityError(f"pairs = {pairs}: expected at least 1 pair per identity")
    if seed < 0:
        raise SimilarityError(f"seed = {seed}: expected 0 or more")
    paths = list_images(root)
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        if path.parent != root:
            folders.setdefault(path.parent, []).append(path)
    varied = {folder: members for folder, members in folders.items() if len(members) > 1}
    if not varied:
        raise SimilarityError(
            f"{root}: {len(paths)} pictures in {len(folders)} folders, none of which holds two pictures; "
            "expected one folder per identity"
        )
    values: list[float] = []
    num_resized = 0
    for folder, members in track(sorted(varied.items()), f"SSIM within {root}"):
        rng = np.random.default_rng([seed, int(fingerprint([folder.relative_to(root).as_posix()]), 16)])
        for _ in range(pairs):
            files = [members[chosen] for chosen in rng.choice(len(members), 2, replace=False)]
            first, second = (read_pixels(file) for file in files)
            if first.shape != second.shape:
                second = _resized_like(second, first)
                num_resized += 1
            values.append(_ssim_of_files(files, first, second))
    skipped = len(folders) - len(varied)
    num_beside = len(paths) - sum(map(len, folders.values()))
    beside = f"{num_beside} pictures beside the folders left out. " if num_beside else ""
    return MetricResult(
        name=name,
        value=float(np.mean(values)),
        higher_is_better=False,
        protocol=(
            f"Mean over {pairs} random pairs of pictures in each of {len(varied)} identity folders (seed {seed}): "
            f"diversity, not fidelity. {skipped} folders of a single picture skipped, {num_resized} of {len(values)} "
            f"pairs resized to equal size. {beside}{SSIM_PROTOCOL}"
        ),
        made_by={"reid_eval": reid_eval.__version__, "pictures": describe_images(root, paths)},
    )


def ssim_of_pairs(first: Path | str, second: Path | str, *, name: str = "ssim_of_pairs") -> MetricResult:
    """Mean SSIM of the pictures that two folders hold under the same relative path, whatever the suffix: fidelity.

    Raises:
        SimilarityError: no path is in both folders, or the two pictures of a path differ in size.
        ImageError: a folder is missing, or a picture cannot be read.
    """
    sides = [_by_stem(Path(first)), _by_stem(Path(second))]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise SimilarityError(
            f"{first} ({len(sides[0])} pictures) and {second} ({len(sides[1])} pictures): no relative path is in both; "
            "expected the same folders and names on both sides"
        )
    values = []
    for stem in track(common, "SSIM of pairs"):
        files = [side[stem] for side in sides]
        values.append(_ssim_of_files(files, *(read_pixels(file) for file in files)))
    alone = len(sides[0]) + len(sides[1]) - 2 * len(common)
    return MetricResult(
        name=name,
        value=float(np.mean(values)),
        higher_is_better=True,
        protocol=(
            f"Mean over {len(common)} pairs of pictures with equal relative path: fidelity. "
            f"{alone} pictures without a partner left out. {SSIM_PROTOCOL}"
        ),
        made_by={
            "reid_eval": reid_eval.__version__,
            "first": describe_images(first, sides[0].values()),
            "second": describe_images(second, sides[1].values()),
        },
    )


def _ssim_of_files(files: Sequence[Path], first: np.ndarray, second: np.ndarray) -> float:
    try:
        return ssim(first, second)
    except SimilarityError as error:
        raise SimilarityError(f"{files[0]} and {files[1]}: {error}") from None


def _by_stem(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(root):
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise SimilarityError(f"{path} and {found[stem].name} differ only in their suffix: which one is meant?")
        found[stem] = path
    return found


def _resized_like(pixels: np.ndarray, example: np.ndarray) -> np.ndarray:
    height, width = example.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
