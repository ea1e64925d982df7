"""The features of a set of pictures, in memory, in a file that others can read too, and in a cache keyed by content.

made = FeatureSet(extractor="mean colour", name="mean_colour", features=vectors, files=("a.png", ...))
made.save("real.npz")                  # mu and sigma as pytorch-fid reads them, with features and a card beside them
FeatureSet.load("real.npz")            # or a file with nothing but mu and sigma
"""

from __future__ import annotations

import json
import logging
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import atomic_path
from reid_eval.frechet import ImageStats, StatisticsError, frechet_distance, frechet_distance_of_features

FEATURES_FORMAT = 1
_ROWS = 4096

logger = logging.getLogger(__name__)


class FeatureSetError(ReidError):
    """A statistics file cannot be used, or two sets cannot be compared."""


@dataclass(frozen=True)
class FeatureSet:
    """Vectors of N pictures, or only their mean and covariance.

    `extractor` is the description of what made them, "" if that is not known; `name` names metrics. `files` are paths
    relative to the folder, a row each. `pictures` says which pictures they were (folder, images, fingerprint, and
    what was met while reading them).
    """

    extractor: str
    name: str
    quotable: bool = True
    features: np.ndarray | None = None
    files: tuple[str, ...] = ()
    moments: tuple[np.ndarray, np.ndarray] | None = None
    pictures: dict[str, Any] = field(default_factory=dict)

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.features.shape[1] if self.features is not None else len(self.mean))

    @property
    def count(self) -> int | None:
        """N, or None where a file does not say it."""
        if self.features is not None:
            return len(self.features)
        images = self.pictures.get("images")
        return int(images) if images is not None else None

    @property
    def where(self) -> str:
        """The folder or file, for messages."""
        return str(self.pictures.get("folder", "?"))

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        if self.moments is not None:
            return self.moments
        assert self.features is not None
        stats = ImageStats(self.features.shape[1])
        for start in range(0, len(self.features), _ROWS):
            stats.update(self.features[start : start + _ROWS])
        return stats.mean, stats.covariance

    @property
    def mean(self) -> np.ndarray:
        """(D,) float64."""
        return self._moments[0]

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, divisor N - 1."""
        return self._moments[1]

    def needed_features(self, what: str) -> np.ndarray:
        """The vectors.

        Raises:
            FeatureSetError: only their mean and covariance are known.
        """
        if self.features is None:
            raise FeatureSetError(
                f"{self.where}: holds mu and sigma alone, and {what} needs the features of each picture; give the "
                "folder, or "
                "a file of reid-eval stats"
            )
        return self.features

    def save(self, file: Path | str) -> None:
        """Write mu and sigma, as pytorch-fid reads them, with the features, their files and a card; whole or not at
        all.
        """
        extra: dict[str, Any] = {}
        if self.features is not None:
            extra = {"features": self.features, "files": np.array(self.files, dtype=np.str_)}
        card = {
            "extractor": self.extractor,
            "name": self.name,
            "quotable": self.quotable,
            "pictures": self.pictures,
            "reid_eval": reid_eval.__version__,
        }
        with atomic_path(file) as part, part.open("wb") as stream:
            np.savez(
                stream, mu=self.mean, sigma=self.covariance, format=FEATURES_FORMAT, card=json.dumps(card), **extra
            )

    @classmethod
    def load(cls, file: Path | str) -> FeatureSet:
        """Read what `save` wrote, or a file of mu and sigma by pytorch-fid.

        Raises:
            FeatureSetError: the file is missing, damaged, of another format, or holds neither.
        """
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            raise FeatureSetError(
                f"{file}: no such file; expected a folder of pictures or a statistics file .npz"
            ) from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise FeatureSetError(
                f"{file}: not a statistics file ({reason}); make it again with reid-eval stats"
            ) from None
        if not {"mu", "sigma"} <= arrays.keys():
            raise FeatureSetError(
                f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected mu and sigma, as pytorch-fid and "
                "reid-eval "
                "stats write them"
            )
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise FeatureSetError(
                f"{file}: mu of shape {mean.shape} and sigma of {covariance.shape} do not belong together"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise FeatureSetError(f"{file}: mu or sigma hold values that are not finite; make the file again")
        if "format" not in arrays:
            return cls(extractor="", name="", moments=(mean, covariance), pictures={"folder": str(file)})
        if int(arrays["format"]) != FEATURES_FORMAT:
            raise FeatureSetError(
                f"{file}: statistics format {int(arrays['format'])}, expected {FEATURES_FORMAT}; made by another "
                "version"
            )
        try:
            card = json.loads(str(arrays["card"]))
            return cls(
                extractor=card["extractor"],
                name=card["name"],
                quotable=bool(card["quotable"]),
                features=arrays.get("features"),
                files=tuple(arrays["files"].tolist()) if "files" in arrays else (),
                moments=(mean, covariance),
                pictures=dict(card["pictures"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureSetError(
                f"{file}: its card cannot be read ({error}); make it again with reid-eval stats"
            ) from None


def frechet_of_sets(real: FeatureSet, fake: FeatureSet) -> float:
    """Squared Frechet distance of two sets, the cheap way where there are fewer pictures than features.

    Raises:
        FeatureSetError: they were made by different extractors.
        StatisticsError: a set has fewer than two pictures.
    """
    refuse_unlike(real, fake)
    for side in (real, fake):
        if side.count is not None and side.count < 2:
            raise StatisticsError(
                f"{side.where}: {side.count} pictures, a Frechet distance needs at least 2 on each side"
            )
    few = min((side.count or side.num_features) for side in (real, fake)) < real.num_features
    if few and real.features is not None and fake.features is not None:
        return frechet_distance_of_features(real.features, fake.features)
    return frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)


def refuse_unlike(real: FeatureSet, fake: FeatureSet) -> None:
    """Numbers are only made from features of one extractor.

    Raises:
        FeatureSetError: the two sides name different extractors, or have different numbers of features.
    """
    if real.num_features != fake.num_features:
        raise FeatureSetError(
            f"{real.where} has {real.num_features} features and {fake.where} {fake.num_features}: made by different "
            "extractors"
        )
    if real.extractor and fake.extractor and real.extractor != fake.extractor:
        raise FeatureSetError(
            f"{real.where} and {fake.where} were made by different extractors: {real.extractor}; against "
            f"{fake.extractor}"
        )
