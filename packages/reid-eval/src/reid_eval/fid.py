"""The Frechet distance between two sets of pictures, in the features of a network that is always named.

Two numbers can be compared only if network, weights, resize and sets agree, so each result says all of them.
Statistics are gathered in one pass in float64; neither the batch size nor the order of the files matters.

    extractor = extractor_from_name("inception", weights=Path("pt_inception-2015-12-05-6726825d.pth"))
    fid("real", "fake", extractor)                                # MetricResult("fid_inception", ...)
    fid("real", "fake", extractor_from_name("reid:runs/teacher"))  # MetricResult("fid_reid", ...)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import describe_images, file_fingerprint, list_images, read_pixels
from reid_eval.progress import progress
from reid_eval.report import MetricResult

if TYPE_CHECKING:
    from torch import Tensor, device

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_START = "6726825d"

logger = logging.getLogger(__name__)


class ExtractorError(ReidError):
    """A feature extractor is not known, or its weights are missing or damaged."""


class StatisticsError(ReidError):
    """The pictures do not give a Frechet distance."""


class Extractor(Protocol):
    """Pictures of any sizes in, one feature vector each out; a picture's vector depends on no other picture."""

    name: str
    """names the metric, fid_<name up to a colon>"""
    description: str
    """network, weights and resize, for the protocol sentence"""
    num_features: int
    quotable: bool
    """False if the number only shows that the machinery works; its metric's name then ends in _demo"""

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, num_features)."""


def extractor_from_name(name: str, *, weights: Path | None = None, device: str = "auto") -> Extractor:
    """`inception`, `random`, or what an installed package offers, such as `reid:RUN` from reid-models.

    A package offers `kind:ARGUMENT` by an entry point named `kind` in the group "reid_eval.extractors", called with
    the argument and the device. Only `inception` takes `weights`.

    Raises:
        ExtractorError: no such extractor or device, or its weights cannot be had.
    """
    kind, _, argument = name.partition(":")
    if weights is not None and kind != "inception":
        raise ExtractorError(f"--weights {weights}: only the extractor inception takes a weight file, not {name}")
    if name == "inception":
        return _published_inception(weights, device)
    if name == "random":
        return RandomExtractor()
    offered = {entry.name: entry for entry in entry_points(group="reid_eval.extractors")}
    if kind in offered:
        if not argument:
            raise ExtractorError(f"--extractor {name}: which one? expected {kind}:RUN, the folder of a trained run")
        extractor: Extractor = offered[kind].load()(argument, device)
        return extractor
    if kind == "reid":
        raise ExtractorError(f"--extractor {name}: reid-models is not installed; pip install reid-models")
    known = ["inception", "random", *(f"{offer}:RUN" for offer in sorted(offered))]
    raise ExtractorError(f"--extractor {name}: not known; expected one of {', '.join(known)}")


class InceptionExtractor:
    """FID's Inception network (pool3, 2048 features) with given weights, fed as pytorch-fid feeds it.

    Each picture is resized to 299x299 by itself (bilinear, half-pixel centres, no antialiasing), so their sizes may
    differ, and scaled to -1..1.
    """

    name = "inception"
    num_features = 2048
    quotable = True

    def __init__(self, state: Mapping[str, Tensor], device: str = "auto") -> None:
        from pytorch_fid import inception

        self._device = _torch_device(device)
        self.description = (
            f"Inception of 2015-12-05 as ported by pytorch-fid, weights {INCEPTION_SHA256_START} (pool3, 2048 features)"
            ", pictures resized to 299x299, bilinear without antialiasing"
        )
        # pytorch-fid takes no weights, it calls this function for them while it builds the network.
        fetch = inception.load_state_dict_from_url
        inception.load_state_dict_from_url = lambda *_, **__: state
        try:
            network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]], resize_input=False)
        finally:
            inception.load_state_dict_from_url = fetch
        self._network = network.eval().to(self._device)

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, 2048), float32."""
        import torch

        with torch.inference_mode():
            images = torch.cat([_resized(pixels, (299, 299), self._device) for pixels in pixels_batch])
            features: Tensor = self._network(images)[0]
        return features.flatten(1).cpu().numpy()


class RandomExtractor:
    """A small convolutional network with seeded random weights: it needs no file, and its distance means nothing.

    It runs on the CPU in float64, so that a demonstration shows the same number everywhere.
    """

    name = "random_demo"
    num_features = 64
    quotable = False
    description = (
        "a small network with random weights (64 features), pictures resized to 64x32, bilinear: "
        "for demonstration only, never to be quoted"
    )

    def __init__(self) -> None:
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(2019)
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((3, 16), (16, 32), (32, self.num_features)):
            conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
            nn.init.normal_(conv.weight, std=(2 / (9 * in_channels)) ** 0.5, generator=generator)
            layers += [conv, nn.ReLU()]
        self._network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, 64), float64."""
        import torch

        with torch.inference_mode():
            images = torch.cat([_resized(pixels, (64, 32), torch.device("cpu")) for pixels in pixels_batch])
            features: Tensor = self._network(2 * images.double() - 1)
        return features.numpy()


def _resized(pixels: np.ndarray, image_hw: tuple[int, int], device: device) -> Tensor:
    """Pixels to float32 (1, 3, height, width), 0..1."""
    import torch
    import torch.nn.functional as F

    image = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, size=image_hw, mode="bilinear", align_corners=False)


def _torch_device(name: str) -> device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        zeros = torch.zeros(1, device=name)
        zeros.cpu()  # "meta" is a device too, but holds no numbers
        return zeros.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExtractorError(f"--device {name}: cannot be used here ({reason}); try auto or cpu") from None


def _published_inception(weights: Path | None, device: str) -> InceptionExtractor:
    """The Inception network with the published weights: from `weights`, or the torch hub cache, fetched if missing."""
    import torch
    from pytorch_fid.inception import FID_WEIGHTS_URL

    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        remedy = f"get it from {FID_WEIGHTS_URL} (91 MiB) and put it there, or name it with --weights FILE"
        if weights is not None:
            raise ExtractorError(f"{file}: no such file, expected {INCEPTION_FILE}; {remedy}")
        logger.warning("fetching FID's Inception weights (91 MiB): %s -> %s", FID_WEIGHTS_URL, file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(file), hash_prefix=INCEPTION_SHA256_START)
        except (OSError, RuntimeError, HTTPException) as error:
            raise ExtractorError(f"{file}: not there, and could not be fetched ({error}); {remedy}") from None
    sha256 = file_fingerprint(file)
    if not sha256.startswith(INCEPTION_SHA256_START):
        raise ExtractorError(
            f"{file}: SHA-256 {sha256[:8]}..., expected {INCEPTION_SHA256_START}...: damaged, or not {INCEPTION_FILE}; "
            "remove it, or name the right file with --weights"
        )
    return InceptionExtractor(torch.load(file, map_location="cpu", weights_only=True), device)


class ImageStats:
    """Mean and covariance of vectors (D,), gathered batch by batch in float64."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.mean = np.zeros(num_features)
        self._scatter = np.zeros((num_features, num_features))

    def update(self, features: np.ndarray) -> None:
        """Add vectors (B, D), at least one.

        Raises:
            StatisticsError: a value is not finite.
        """
        batch = np.asarray(features, dtype=np.float64)
        if not np.isfinite(batch).all():
            raise StatisticsError("the extractor gave features that are not finite; are its weights damaged?")
        # Chan, Golub, LeVeque 1983: two sets' moments merge exactly, without the cancellation of raw sums of squares.
        count = self.count + len(batch)
        batch_mean = batch.mean(axis=0)
        centred = batch - batch_mean
        step = batch_mean - self.mean
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(batch) / count)
        self.mean = self.mean + step * (len(batch) / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divisor count - 1.

        Raises:
            StatisticsError: fewer than two vectors.
        """
        if self.count < 2:
            raise StatisticsError(f"{self.count} pictures: a covariance needs at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2, never negative.

    With C = F F^T on both sides the last trace is the sum of the singular values of F1^T F2. F comes from a symmetric
    eigenproblem, so everything stays real, and covariances without full rank lose no digits.

    Shapes:
        mean1, mean2  (D,)
        cov1, cov2    (D, D)  symmetric, positive semidefinite

    Raises:
        StatisticsError: the two sides have different numbers of features.
    """
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise StatisticsError(f"{len(mean1)} features against {len(mean2)}: expected one extractor for both sides")
    with progress(f"Frechet distance of {len(mean1)} features", 3) as bar:
        factors = []
        for cov in (cov1, cov2):
            factors.append(_factor(cov))
            bar.advance()
        cross_trace = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
        bar.advance()
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross_trace
    return max(float(distance), 0.0)  # rounding may leave -1e-15 for equal sets


def _factor(cov: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = cov."""
    values, vectors = np.linalg.eigh(cov)
    there = values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, there] * np.sqrt(values[there])


def pictures_below(folder: Path | str) -> list[Path]:
    """All pictures below a folder, at any depth, at least the two that a covariance needs.

    Raises:
        ImageError: there is no such folder.
        StatisticsError: there are fewer than two pictures.
    """
    paths = list_images(folder)
    if len(paths) < 2:
        raise StatisticsError(
            f"{folder}: {len(paths)} pictures below it, a Frechet distance needs at least 2 on each side"
        )
    return paths


def image_stats(folder: Path | str, extractor: Extractor, *, batch_size: int = 50) -> ImageStats:
    """Mean and covariance of the features of all pictures below a folder, at any depth.

    Raises:
        ImageError: there is no such folder, or a picture cannot be read.
        StatisticsError: there are fewer than two pictures.
    """
    paths = pictures_below(folder)
    if batch_size < 1:
        raise StatisticsError(f"batch size {batch_size}: expected at least 1")
    stats = ImageStats(extractor.num_features)
    with progress(f"features of {folder}", len(paths)) as bar:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            stats.update(extractor([read_pixels(path) for path in batch]))
            bar.advance(len(batch))
    return stats


def fid(real: Path | str, fake: Path | str, extractor: Extractor, *, batch_size: int = 50) -> MetricResult:
    """The Frechet distance between the pictures of two folders, as `fid_<extractor>`.

    Few pictures, or very different numbers of them, give a warning in the log and a sentence in the protocol.

    Raises:
        ImageError: a folder is missing, or a picture cannot be read.
        StatisticsError: a folder holds fewer than two pictures, or a feature is not finite.
    """
    pictures_below(fake)  # known before the real pictures have taken their time
    sides = [image_stats(folder, extractor, batch_size=batch_size) for folder in (real, fake)]
    num_real, num_fake = (side.count for side in sides)
    value = frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    remarks = list(_remarks(num_real, num_fake, extractor.num_features))
    for remark in remarks:
        logger.warning("fid: %s", remark)
    name = f"fid_{extractor.name.partition(':')[0]}"
    return MetricResult(
        name=name if extractor.quotable or name.endswith("_demo") else f"{name}_demo",
        value=value,
        higher_is_better=False,
        protocol=" ".join(
            [
                f"Squared Frechet distance between {num_real} real and {num_fake} generated pictures.",
                f"Features: {extractor.description}.",
                *remarks,
            ]
        ),
        made_by={
            "reid_eval": reid_eval.__version__,
            "extractor": extractor.name,
            "real": describe_images(real, list_images(real)),
            "fake": describe_images(fake, list_images(fake)),
        },
    )


def _remarks(num_real: int, num_fake: int, num_features: int) -> Sequence[str]:
    remarks = []
    if min(num_real, num_fake) <= num_features:
        remarks.append(
            f"With {min(num_real, num_fake)} pictures for {num_features} features the covariance is singular and the "
            "value too high: compare it only with values from as many pictures."
        )
    if max(num_real, num_fake) > 1.1 * min(num_real, num_fake):
        remarks.append(f"The sides differ in size ({num_real} and {num_fake}); the bias depends on it.")
    return remarks
