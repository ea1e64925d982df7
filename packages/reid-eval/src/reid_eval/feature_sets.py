"""The features of a set of pictures, in memory, and in a file that others can read too.

made = FeatureSet(extractor="mean colour", name="mean_colour", features=vectors, files=("a.png", ...))
made.save("real.npz")                  # mu and sigma as pytorch-fid reads them, with features and a card beside them
FeatureSet.load("real.npz")            # or a file with nothing but mu and sigma

Of a file only what is needed is read, its checksums are compared, and what does not fit together is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import reid_eval
from reid_eval.arrays import StoredArrays, open_npz
from reid_eval.errors import ReidError
from reid_eval.files import atomic_path
from reid_eval.frechet import Frechet, ImageStats, StatisticsError, frechet, frechet_distance_of_features
from reid_eval.reading import reading

FEATURES_FORMAT = 1
_ROWS = 4096
_EXPECTED = "a folder of pictures, or a statistics file .npz as reid-eval stats and pytorch-fid write it"
_OURS = ("format", "card", "features", "files")


class FeatureSetError(ReidError):
    """A statistics file cannot be used, or two sets cannot be compared."""


class Maker(NamedTuple):
    """What made features, as far as the names of metrics ask: its description, its name, and if it may be quoted."""

    extractor: str
    name: str
    quotable: bool


@dataclass(frozen=True)
class FeatureSet:
    """Vectors of N pictures, or only their mean and covariance.

    `extractor` is the description of what made them, "" if that is not known; `name` names metrics, and `weights` has
    the whole SHA-256 of each weight file that decided the vectors. `files` are paths relative to the folder, a row
    each. `pictures` says which pictures they were (folder, images, fingerprint, and what was met while reading them).
    `file` is the statistics file that all this was read from, if any, and `bits` those of its mu and sigma.
    """

    extractor: str
    name: str
    quotable: bool = True
    features: np.ndarray | None = None
    files: tuple[str, ...] = ()
    moments: tuple[np.ndarray, np.ndarray] | None = None
    pictures: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    file: str = ""
    bits: int = 64

    @property
    def maker(self) -> Maker:
        """What made the vectors."""
        return Maker(self.extractor, self.name, self.quotable)

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
        """The file or folder, for messages."""
        return self.file or str(self.pictures.get("folder", "?"))

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
            "weights": self.weights,
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
        with open_npz(file, FeatureSetError, _EXPECTED) as stored:
            mean, covariance, bits = _stored_moments(Path(file), stored)
            ours = [name for name in _OURS if name in stored]
            if not ours:
                found = cls(
                    "", "", moments=(mean, covariance), pictures={"folder": str(file)}, file=str(file), bits=bits
                )
            else:
                with reading(file, FeatureSetError, _EXPECTED, remedy="make it again with reid-eval stats"):
                    found = _with_card(Path(file), stored, mean, covariance)
        return found


def is_statistics_file(file: Path | str) -> bool:
    """Whether a file is one that `FeatureSet.save` wrote."""
    try:
        with open_npz(file, FeatureSetError, _EXPECTED) as stored:
            return {"mu", "sigma", "format", "card"} <= set(stored)
    except FeatureSetError:
        return False


def _stored_moments(file: Path, stored: StoredArrays) -> tuple[np.ndarray, np.ndarray, int]:
    """mu and sigma as float64, and the bits of their numbers in the file."""
    if not {"mu", "sigma"} <= set(stored):
        raise FeatureSetError(
            f"{file}: holds {', '.join(sorted(stored)[:8]) or 'nothing'}; expected mu and sigma, as pytorch-fid and "
            "reid-eval stats write them"
        )
    headers = [stored.header(name) for name in ("mu", "sigma")]
    shapes = [header.shape for header in headers]
    if len(shapes[0]) != 1 or not shapes[0][0] or shapes[1] != shapes[0] * 2:  # before any memory is taken
        raise FeatureSetError(f"{file}: mu of shape {shapes[0]} and sigma of {shapes[1]} do not belong together")
    moments = []
    for name, header in zip(("mu", "sigma"), headers, strict=True):
        if header.dtype.kind not in "biuf":
            raise FeatureSetError(f"{file}: {name} of type {header.dtype}, expected real numbers; make the file again")
        moments.append(np.asarray(stored[name], np.float64))
        if not np.isfinite(moments[-1]).all():
            raise FeatureSetError(f"{file}: {name} holds values that are not finite; make the file again")
    bits = min((8 * header.dtype.itemsize for header in headers if header.dtype.kind == "f"), default=64)
    return moments[0], moments[1], min(bits, 64)


def _with_card(file: Path, stored: StoredArrays, mean: np.ndarray, covariance: np.ndarray) -> FeatureSet:
    """What `FeatureSet.save` wrote."""
    if missing := [name for name in ("format", "card") if name not in stored]:
        raise FeatureSetError(f"{file}: {', '.join(missing)} missing beside {', '.join(sorted(stored))}; damaged")
    if (version := int(stored["format"])) != FEATURES_FORMAT:
        raise FeatureSetError(
            f"{file}: statistics format {version}, expected {FEATURES_FORMAT}; made by another version"
        )
    card = json.loads(str(stored["card"]))
    features, files = None, tuple[str, ...]()
    if "features" in stored or "files" in stored:
        if (header := stored.header("features")).shape[1:] != mean.shape or header.dtype.kind != "f":
            raise FeatureSetError(
                f"{file}: features {header.dtype} of shape {header.shape} do not belong to mu of {mean.shape}"
            )
        if (named := stored.header("files").shape) not in (header.shape[:1], (0,)):
            raise FeatureSetError(f"{file}: features of {header.shape[0]} pictures, but {named} names of files")
        features, files = np.asarray(stored["features"]), tuple(str(name) for name in stored["files"].tolist())
        _refuse_other_moments(file, features, mean, covariance)
    return FeatureSet(
        extractor=_known("extractor", card["extractor"], str),
        name=_known("name", card["name"], str, pattern=r"[a-z0-9_]+(:.*)?"),
        quotable=_known("quotable", card["quotable"], bool),
        features=features,
        files=files,
        moments=(mean, covariance),
        pictures=_known_pictures(card["pictures"]),
        weights={str(name): _known(name, digest, str) for name, digest in card.get("weights", {}).items()},
        file=str(file),
    )


def _refuse_other_moments(file: Path, features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """See that mu and the diagonal of sigma are those of the features."""
    if len(features) < 2:
        raise FeatureSetError(f"{file}: features of {len(features)} pictures, expected at least 2")
    total = np.zeros(len(mean))
    for start in range(0, len(features), _ROWS):
        total += np.square(features[start : start + _ROWS].astype(np.float64) - mean).sum(axis=0)
    variance = total / (len(features) - 1)
    own_mean = features.mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(variance.max()) + np.abs(mean).max())
    if not (
        np.allclose(own_mean, mean, rtol=1e-6, atol=1e-6 * scale)
        and np.allclose(variance, covariance.diagonal(), rtol=1e-6, atol=1e-6 * scale**2)
    ):
        raise FeatureSetError(f"{file}: mu and sigma are not those of the features beside them; make the file again")


def _known(key: str, value: Any, kind: type, pattern: str = "") -> Any:
    """A value of a card, of the kind that it has to be.

    Raises:
        ValueError: it is of another.
    """
    fits = type(value) is kind
    if fits and pattern:
        fits = re.fullmatch(pattern, value) is not None
    if not fits or (kind is int and value < 0):
        raise ValueError(f"its card says {value!r} for {key}")
    return value


def _known_pictures(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of its pictures; keys of other versions stay."""
    kinds = {"folder": str, "fingerprint": str, **dict.fromkeys(("images", "unreadable"), int)}
    kinds |= dict.fromkeys(("animated", "rotated", "transparent"), int)
    found = {key: _known(key, value, kinds[key]) if key in kinds else value for key, value in said.items()}
    for key in ("codecs", "modes", "sizes", "passed_over"):
        found |= (
            {key: {str(name): _known(name, number, int) for name, number in found[key].items()}} if key in found else {}
        )
    return found


def frechet_of_sets(real: FeatureSet, fake: FeatureSet) -> Frechet:
    """Squared Frechet distance of two sets, the cheap way where there are fewer pictures than features; its remarks
    say what is to be known of statistics that are kept in few bits.

    Raises:
        FeatureSetError: they were made by different extractors.
        StatisticsError: a set has fewer than two pictures, or its statistics are no mean and covariance.
    """
    refuse_unlike(real, fake)
    for side in (real, fake):
        if side.count is not None and side.count < 2:
            raise StatisticsError(
                f"{side.where}: {side.count} pictures, a Frechet distance needs at least 2 on each side"
            )
    few = min((side.count or side.num_features) for side in (real, fake)) < real.num_features
    if few and real.features is not None and fake.features is not None:
        return Frechet(frechet_distance_of_features(real.features, fake.features))
    found = frechet(real.mean, real.covariance, fake.mean, fake.covariance, names=(real.where, fake.where))
    kept = [f"{side.where}: mu and sigma are kept in {side.bits} bits." for side in (real, fake) if side.bits < 64]
    return Frechet(found.value, (*kept, *found.remarks))


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
    if other := [name for name, digest in real.weights.items() if fake.weights.get(name, digest) != digest]:
        raise FeatureSetError(
            f"{real.where} and {fake.where} were made with different weights: {other[0]}, SHA-256 "
            f"{real.weights[other[0]]} against {fake.weights[other[0]]}"
        )
    if real.extractor and fake.extractor and real.extractor != fake.extractor:
        raise FeatureSetError(
            f"{real.where} and {fake.where} were made by different extractors: {real.extractor}; against "
            f"{fake.extractor}"
        )
