"""What was measured before, by content: whole answers, the features of sets, and vectors of sets that are not done yet.

    cache = ImageCache(cache_folder())             # ImageCache(None) keeps nothing and knows nothing
    cache.answer(key)                              # the results, or None
    cache.keep_answer(key, results)

What is kept is verified before it is believed: answers by a SHA-256 of their values and by their key, arrays by their
checksums. What is damaged is measured again. A cache only saves time, so one that cannot be written to (a full disk, a
home that is read-only, a file in its place) costs a warning and never the number. Several processes may use it at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid_eval.arrays import open_npz
from reid_eval.errors import OutputError, ReidError, reason_of
from reid_eval.feature_sets import FeatureSet
from reid_eval.files import atomic_path, remove_abandoned, write_text
from reid_eval.one_pass import Met
from reid_eval.reading import read_text, reading, sealed, unsealed
from reid_eval.report import MetricResult

logger = logging.getLogger(__name__)

_ANSWER = "an answer that reid-eval kept"
_PART = "features that reid-eval kept"


class CacheError(ReidError):
    """Something kept is not what was kept."""


class Part(NamedTuple):
    """Vectors of some pictures of a set: which of them (N,), the vectors (N, D), and what was met in each picture."""

    rows: np.ndarray
    vectors: np.ndarray
    met: list[Met]


class ImageCache:
    """A folder of what was measured before, or nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._is_writable = True

    def answer(self, key: str) -> list[MetricResult] | None:
        """The results that were kept under a key."""
        if (file := self._file("answers", f"{key}.json")) is None:
            return None

        def read() -> list[MetricResult]:
            kept = unsealed(file, CacheError, _ANSWER)
            if kept.get("key") != key or sealed(kept) != read_text(file, CacheError, _ANSWER):
                raise CacheError(f"{file}: not what was written; expected {_ANSWER}")
            with reading(file, CacheError, _ANSWER):
                return [MetricResult(**{**values, "value": float(values["value"])}) for values in kept["results"]]

        found = self._known(file, read, "measured again")
        if found is not None:
            logger.warning("answered from the cache: nothing has changed (%s)", file)
        return found

    def keep_answer(self, key: str, results: Sequence[MetricResult]) -> None:
        """Keep results under a key."""
        plain = [
            {**asdict(result), "value": str(result.value) if np.isinf(result.value) else result.value}
            for result in results
        ]
        self._keep("answers", f"{key}.json", lambda file: write_text(file, sealed({"key": key, "results": plain})))

    def features(self, key: str, fingerprint: str) -> FeatureSet | None:
        """The features that were kept under a key, if they are of pictures with this fingerprint."""
        if (file := self._file("features", f"{key}.npz")) is None:
            return None

        def read() -> FeatureSet:
            found = FeatureSet.load(file)
            if found.features is None or found.pictures.get("fingerprint") != fingerprint:
                raise CacheError(f"{file}: not the features of these pictures")
            return found

        return self._known(file, read, "computed again")

    def keep_features(self, key: str, features: FeatureSet) -> None:
        """Keep the features of a set; what was kept of its parts is not needed any more."""
        if self._keep("features", f"{key}.npz", features.save) and self.folder is not None:
            (self.folder / "features" / f"{key}.part.npz").unlink(missing_ok=True)

    def part(self, key: str, num_pictures: int) -> Part | None:
        """What is known of a set of so many pictures whose features are not complete."""
        if (file := self._file("features", f"{key}.part.npz")) is None:
            return None

        def read() -> Part:
            with open_npz(file, CacheError, _PART) as stored, reading(file, CacheError, _PART):
                if {"key", "rows", "vectors", "met"} - set(stored) or str(stored["key"]) != key:
                    raise CacheError(f"{file}: not the features of these pictures")
                part = Part(
                    np.asarray(stored["rows"], np.int64),
                    np.asarray(stored["vectors"]),
                    [Met(*one) for one in json.loads(str(stored["met"]))],
                )
                of_one_set = part.rows.ndim == 1 and (np.diff(part.rows, prepend=-1) > 0).all()
                if not (of_one_set and part.vectors.ndim == 2 and len(part.rows) == len(part.vectors) == len(part.met)):
                    raise CacheError(f"{file}: arrays that do not belong together")
                if part.rows.max(initial=-1) >= num_pictures or not np.isfinite(part.vectors).all():
                    raise CacheError(f"{file}: not the features of {num_pictures} pictures")
            return part

        return self._known(file, read, "computed again")

    def keep_part(self, key: str, part: Part) -> bool:
        """Keep what is known of a set so far; whether that was possible."""

        def write(file: Path) -> None:
            with atomic_path(file) as unfinished, unfinished.open("wb") as stream:
                arrays: Mapping[str, Any] = {"key": key, "rows": part.rows, "vectors": part.vectors}
                np.savez(stream, **arrays, met=json.dumps(part.met))

        return self._keep("features", f"{key}.part.npz", write)

    def _file(self, kind: str, name: str) -> Path | None:
        """A kept file, if it is there."""
        if self.folder is None:
            return None
        file = self.folder / kind / name
        try:
            return file if file.is_file() else None
        except OSError:  # nobody may look there
            return None

    def _known(self, file: Path, read: Callable[[], Any], otherwise: str) -> Any:
        try:
            return read()
        except ReidError as error:
            logger.warning("%s: %s", otherwise, error)
            return None

    def _keep(self, kind: str, name: str, write: Callable[[Path], None]) -> bool:
        if self.folder is None or not self._is_writable:
            return False
        try:
            remove_abandoned(self.folder / kind)
            write(self.folder / kind / name)
        except (OutputError, OSError) as error:
            self._is_writable = False
            logger.warning("nothing is kept for the next time, which changes no number: %s", reason_of(error))
            return False
        return True
