"""The Frechet distance between two sets of pictures, in the features of a network that is always named.

    extractor = extractor_from_name("inception", weights=Path("pt_inception-2015-12-05-6726825d.pth"))
    fid("real", "fake", extractor)              # MetricResult("fid_inception", ...)

Two numbers can be compared only when extractor, resize and sets agree: each result says all of them. Statistics are
gathered in one pass, in float64, whatever the batch size.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import fingerprint, list_images, read_pixels
from reid_eval.progress import track
from reid_eval.report import MetricResult

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_START = "6726825d"
INCEPTION_MIB = 91


class ExtractorError(ReidError):
    """A feature extractor is unknown, or its weights are missing or damaged."""


class StatisticsError(ReidError):
    """The pictures cannot give a Frechet distance."""


class Extractor(Protocol):
    """Pictures of any size in, one feature vector each out."""

    name: str
    """names the metric, fid_<name up to a colon>"""
    description: str
    """network, weights and resize, for the protocol sentence"""
    num_features: int
    quotable: bool
    """whether the number means anything outside a demo"""

    def __call__(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """A list of uint8 RGB (H, W, 3) to float (B, num_features)."""


def extractor_from_name(name: str, *, weights: Path | None = None, device: str = "auto") -> Extractor:
    """`inception`, `random`, or one that another package provides, such as `reid:RUN` from reid-models.

    Raises:
        ExtractorError: no such extractor, or its weights cannot be had.
    """
    kind, _, argument = name.partition(":")
    if kind == "inception":
        return InceptionExtractor(weights, device)
    if kind == "random":
        return RandomExtractor(device)
    plugins = {entry.name: entry for entry in entry_points(group="reid_eval.extractors")}
    if kind in plugins:
        if not argument:
            raise ExtractorError(f"--extractor {name}: expected {kind}:RUN, the folder of a trained run")
        extractor: Extractor = plugins[kind].load()(argument, device)
        return extractor
    known = ["inception", "random", *(f"{plugin}:RUN" for plugin in sorted(plugins))]
    hint = "; install reid-models for reid:RUN" if kind == "reid" else ""
    raise ExtractorError(f"--extractor {name}: expected one of {', '.join(known)}{hint}")


class InceptionExtractor:
    """The Inception network of the published FID, ported from TensorFlow: pool3, 2048 features.

    Pictures are resized inside the network to 299 x 299, bilinear without antialiasing, as pytorch-fid does.
    """

    num_features = 2048
    name = "inception"
    quotable = True

    def __init__(self, weights: Path | None, device: str) -> None:
        import torch
        from pytorch_fid import inception

        file = _inception_weights(weights)
        state = torch.load(file, map_location="cpu", weights_only=True)
        # pytorch-fid takes no file: it asks this function for its weights while it is built.
        original = inception.load_state_dict_from_url
        inception.load_state_dict_from_url = lambda *args, **kwargs: state
        try:
            self._network = inception.InceptionV3([3]).eval()
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ExtractorError(f"{file}: not the weights of FID's Inception network ({reason})") from None
        finally:
            inception.load_state_dict_from_url = original
        self._device = torch.device(_device(device))
        self._network.to(self._device)
        self.description = f"Inception 2015-12-05 pool3 ({file.name}), bilinear to 299x299 without antialiasing"

    def __call__(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            rows = []
            for image in pixels:  # sizes may differ, and the resize is part of the network
                batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(self._device).float() / 255
                rows.append(batch)
            if len({tuple(row.shape) for row in rows}) == 1:
                features = self._network(torch.cat(rows))[0]
            else:
                features = torch.cat([self._network(row)[0] for row in rows])
        return features.flatten(1).cpu().numpy()


class RandomExtractor:
    """A small convolutional network with seeded random weights: it works without any file and means nothing.

    Its metric is called fid_random_demo so that nobody can quote it.
    """

    name = "random_demo"
    num_features = 64
    quotable = False
    description = (
        "a random untrained network of 64 features, bilinear to 64x32: for demonstration only, never to be quoted"
    )

    def __init__(self, device: str = "cpu") -> None:
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(2019)
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((3, 16), (16, 32), (32, 64)):
            conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
            nn.init.normal_(conv.weight, std=(2 / (9 * in_channels)) ** 0.5, generator=generator)
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
        self._device = torch.device(_device(device))
        self._network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().to(self._device)

    def __call__(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            batch = [
                F.interpolate(
                    torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1,
                    size=(64, 32), mode="bilinear", antialias=True, align_corners=False,
                )
                for image in pixels
            ]  # fmt: skip
            return self._network(torch.cat(batch).to(self._device)).cpu().numpy()


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _inception_weights(weights: Path | None) -> Path:
    """The weight file: given, in the torch hub cache, or downloaded there with an announcement."""
    if weights is not None:
        if not weights.is_file():
            raise ExtractorError(f"{weights}: no such weight file; expected {INCEPTION_FILE} ({INCEPTION_MIB} MiB)")
        return weights
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not cached.is_file():
        missing = (
            f"the Inception weights {INCEPTION_FILE} ({INCEPTION_MIB} MiB, SHA-256 {INCEPTION_SHA256_START}...) are not in "
            f"{cached.parent}; put the file there or name it with --weights"
        )
        if os.environ.get("REID_OFFLINE"):
            raise ExtractorError(f"{missing} (REID_OFFLINE is set)")
        from pytorch_fid.inception import FID_WEIGHTS_URL

        print(f"downloading {INCEPTION_FILE} ({INCEPTION_MIB} MiB) to {cached.parent}", file=sys.stderr)
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(cached), hash_prefix=INCEPTION_SHA256_START)
        except (OSError, RuntimeError) as error:
            raise ExtractorError(f"{missing}; the download failed ({error})") from None
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not digest.startswith(INCEPTION_SHA256_START):
        raise ExtractorError(
            f"{cached}: SHA-256 {digest[:8]}..., expected {INCEPTION_SHA256_START}...; remove the file"
        )
    return cached


class ImageStats:
    """Mean and covariance of feature vectors, gathered batch by batch in float64."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self._mean = np.zeros(num_features)
        self._scatter = np.zeros((num_features, num_features))

    def update(self, features: np.ndarray) -> None:
        """Add vectors (B, D)."""
        batch = np.asarray(features, np.float64)
        if not np.isfinite(batch).all():
            raise StatisticsError("the extractor gave values that are not finite; check its weights")
        mean = batch.mean(axis=0)
        centred = batch - mean
        count = self.count + len(batch)
        step = mean - self._mean
        # Chan et al. 1983: exact merging of two sets' moments.
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(batch) / count)
        self._mean += step * (len(batch) / count)
        self.count = count

    @property
    def mean(self) -> np.ndarray:
        """(D,)"""
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divided by count - 1."""
        if self.count < 2:
            raise StatisticsError(f"{self.count} picture; a covariance takes at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    The trace of the root is the sum of the roots of the eigenvalues of R C2 R with R the symmetric root of C1: real,
    also for covariances without full rank. Never negative.

    Shapes:
        mean1, mean2  (D,)
        cov1, cov2    (D, D) symmetric
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov2 @ root)
    # Rounding leaves eigenvalues of the size of epsilon where zeros belong; their roots would add up.
    cross[cross < cross.size * np.finfo(np.float64).eps * max(cross.max(initial=0), 0)] = 0
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(cross).sum()
    return max(float(distance), 0.0)


def image_stats(folder: Path | str, extractor: Extractor, *, batch_size: int = 50) -> ImageStats:
    """The statistics of all pictures below a folder."""
    paths = list_images(folder)
    if len(paths) < 2:
        raise StatisticsError(f"{folder}: {len(paths)} pictures; a Frechet distance takes at least 2 on each side")
    stats = ImageStats(extractor.num_features)
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    for batch in track(batches, f"features of {folder}"):
        stats.update(extractor([read_pixels(path) for path in batch]))
    return stats


def fid(real: Path | str, fake: Path | str, extractor: Extractor, *, batch_size: int = 50) -> MetricResult:
    """The Frechet distance between the pictures of two folders.

    Raises:
        ImageError: a folder is missing or a picture cannot be read.
        StatisticsError: fewer than two pictures on a side.
    """
    sides = [image_stats(folder, extractor, batch_size=batch_size) for folder in (real, fake)]
    value = frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    few = min(side.count for side in sides)
    protocol = (
        f"squared Frechet distance in {extractor.description}; {sides[0].count} real and {sides[1].count} made pictures"
    )
    if few < extractor.num_features:
        protocol += f"; {few} pictures are fewer than {extractor.num_features} features, so the value is biased upwards"
    return MetricResult(
        name=f"fid_{extractor.name.partition(':')[0]}",
        value=value,
        higher_is_better=False,
        protocol=protocol,
        made_by={
            "reid_eval": reid_eval.__version__,
            "extractor": extractor.description,
            "real": _origin(real),
            "fake": _origin(fake),
        },
    )


def _origin(folder: Path | str) -> dict[str, object]:
    paths = list_images(folder)
    names = fingerprint(str(path.relative_to(folder)) for path in paths)
    return {"folder": str(folder), "images": len(paths), "names": names}
