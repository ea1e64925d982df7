"""The feature file: vectors of query and gallery pictures with identities, cameras and where they came from.

Whoever can write this file can be scored, whatever computed the vectors. A `pid` of -1 marks a junk crop, 0 a
distractor; a `camid` of -1 says that the camera is unknown. Splits are "query" and "gallery"; others are carried
along and left alone by the ranking.

    features = ReidFeatures(vectors, pids, camids, splits, paths, meta={"extractor": "baseline", ...})
    features.save("features.npz")
    ReidFeatures.load("features.npz").query.pids
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reid_eval.arrays import StoredArrays, open_npz
from reid_eval.errors import ReidError
from reid_eval.files import atomic_path, fingerprint
from reid_eval.reading import reading, refuse_irregular

FORMAT = 1

# Features of this size stay on the disk until they are needed.
_MAPPED_BYTES = 256 * 2**20

_FINGERPRINTED = 4096  # vectors at a time

_ARRAYS = ("features", "pids", "camids", "splits", "paths")


class FeatureFileError(ReidError):
    """Features that cannot be scored, or a file that does not hold any."""


@dataclass(frozen=True, eq=False)
class ReidFeatures:
    """One vector per picture, and what is known about the picture.

    Shapes:
        features  (N, D)  float32, finite
        pids      (N,)    int64, at least -1
        camids    (N,)    int64, at least -1
        splits    (N,)    str
        paths     (N,)    str, for reading only: nothing is opened
    `meta` is a JSON object: package version, fingerprints of the inputs, extractor or checkpoint. Where identities were
    words, `meta["names"]` has the word for each number: {"1": "Anna"}, and `meta["camera_names"]` those of cameras.

    Raises:
        FeatureFileError: lengths differ, a value is not finite, labels are not whole numbers from -1 up, or `meta`
            is no mapping.
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    splits: np.ndarray
    paths: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        in_files = isinstance(self.features, StackedVectors)
        features = self.features if in_files else np.asarray(self.features)
        if features.ndim != 2 or features.dtype.kind not in "fiub":
            raise FeatureFileError(
                f"features: found {features.dtype} of shape {features.shape}, expected numbers of shape (N, D)"
            )
        if features.shape[1] == 0:
            raise FeatureFileError("features: the vectors have no entries (D = 0), expected at least one")
        if not in_files:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
                features = features.astype(np.float32, copy=False)
        columns: dict[str, np.ndarray] = {
            "features": features,
            "pids": _whole_numbers("pids", self.pids),
            "camids": _whole_numbers("camids", self.camids),
            "splits": _texts("splits", self.splits),
            "paths": _texts("paths", self.paths),
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise FeatureFileError(_unlike(lengths))
        bad = _rows_not_finite(features)
        if len(bad):
            raise FeatureFileError(
                f"features: {len(bad)} of {len(features)} vectors hold NaN or infinite values, the first is row "
                f"{bad[0]} ({columns['paths'][bad[0]]}), expected finite numbers; extract these pictures again"
            )
        if not isinstance(self.meta, dict):
            raise FeatureFileError(f"meta: found {self.meta!r}, expected a JSON object such as {{}}")
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_features(self) -> int:
        """D, the length of each vector."""
        return self.features.shape[1]

    @property
    def query(self) -> ReidFeatures:
        """The rows of split "query"."""
        return self.split("query")

    @property
    def gallery(self) -> ReidFeatures:
        """The rows of split "gallery"."""
        return self.split("gallery")

    def split(self, name: str) -> ReidFeatures:
        """The rows of one split, in their order; none if there is no such split."""
        return self.rows(np.flatnonzero(self.splits == name))

    def rows(self, rows: np.ndarray | Sequence[int]) -> ReidFeatures:
        """The rows with these numbers, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            chosen: Any = slice(int(rows[0]), int(rows[0]) + len(rows))  # a run of rows needs no copy
        else:
            chosen = rows
        return ReidFeatures(
            features=self.features[chosen],
            pids=self.pids[chosen],
            camids=self.camids[chosen],
            splits=self.splits[chosen],
            paths=self.paths[chosen],
            meta=self.meta,
        )

    def name_of(self, pid: int) -> int | str:
        """What an identity is called: the word that it was given by, else its number."""
        return named(self.meta, "names", pid)

    def camera_name(self, camid: int) -> int | str:
        """What a camera is called, likewise."""
        return named(self.meta, "camera_names", camid)

    @property
    def fingerprint(self) -> str:
        """A short hash of vectors, identities, cameras and splits; paths and meta do not count."""
        length = 4 * len(self) * self.num_features
        some = _FINGERPRINTED
        pieces = (_bytes_of(self.features[start : start + some]) for start in range(0, len(self), some))
        return fingerprint(
            [(length, pieces), _bytes_of(self.pids), _bytes_of(self.camids), "\n".join(self.splits.tolist())]
        )

    def save(self, file: Path | str) -> None:
        """Write a `.npz` file, whole or not at all; equal features give equal bytes."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with atomic_path(file) as part, part.open("wb") as stream:
            np.savez(stream, format=FORMAT, meta=json.dumps(self.meta, sort_keys=True), **arrays)

    @staticmethod
    def load(file: Path | str) -> ReidFeatures:
        """Read a feature file. Nothing in it is executed: pickled objects are refused.

        Raises:
            FeatureFileError: the file is missing, damaged, no feature file, or of a format we do not know.
        """
        with open_feature_file(file) as arrays:
            return ReidFeatures.from_arrays(arrays, file)

    @staticmethod
    def from_arrays(arrays: StoredArrays, file: Path | str) -> ReidFeatures:
        """Features from the arrays of a feature file, which `file` names in messages.

        What the arrays say of themselves is compared before the large one is read.
        """
        missing = [name for name in ("format", *_ARRAYS, "meta") if name not in arrays]
        if missing:
            found = some_of(sorted(arrays)) or "no named arrays"
            raise FeatureFileError(
                f"{file}: not a feature file: {', '.join(missing)} missing, found {found}; see docs/evaluation.md"
            )
        if arrays["format"].shape != () or arrays["format"] != FORMAT:
            raise FeatureFileError(
                f"{file}: feature file of format {arrays['format']}, this version reads format {FORMAT}; "
                "extract again or use the version that wrote it"
            )
        lengths = {name: (arrays.header(name).shape or (1,))[0] for name in _ARRAYS}
        if len(set(lengths.values())) > 1:
            raise FeatureFileError(f"{file}: {_unlike(lengths)}")
        with reading(file, FeatureFileError, "the meta of a feature file in JSON", remedy="extract again"):
            meta = json.loads(str(arrays["meta"]))
        columns = {name: arrays[name] for name in _ARRAYS if name != "features"}
        try:
            return ReidFeatures(features=vectors_of(arrays, "features"), **columns, meta=meta)
        except FeatureFileError as error:
            raise _about(file, error) from None


def is_feature_file(file: Path | str) -> bool:
    """Whether a file is a feature file of ours, by the names of its arrays."""
    try:
        with open_feature_file(file) as arrays:
            return {"format", *_ARRAYS, "meta"} <= set(arrays)
    except FeatureFileError:
        return False


@contextmanager
def open_feature_file(file: Path | str) -> Iterator[StoredArrays]:
    """The arrays of a feature file of ours, or of another program's .npz, within the block.

    Raises:
        FeatureFileError: the file is missing or damaged; while arrays are read too.
    """
    expected = "a feature file, the .npz that reid-models extract writes"
    if not refuse_irregular(file, FeatureFileError, expected):
        raise FeatureFileError(f"{file}: not a feature file: it is empty; expected what reid-models extract writes")
    with reading(file, FeatureFileError, expected), open(file, "rb") as stream:
        start = stream.read(4)
    if start != b"PK\x03\x04":
        raise FeatureFileError(
            f"{file}: not a feature file: it begins with {start!r} and not as .npz files do; expected what reid-models "
            "extract writes"
        )
    with open_npz(file, FeatureFileError, expected) as arrays:
        yield arrays


def vectors_of(arrays: StoredArrays, name: str) -> np.ndarray:
    """An array of vectors; a large one is left on the disk, if it can be read there."""
    if arrays.header(name).nbytes >= _MAPPED_BYTES and (mapped := arrays.mapped(name)) is not None:
        return mapped
    return arrays[name]


def _about(file: Path | str, error: FeatureFileError) -> FeatureFileError:
    """The same with the file's name at its beginning."""
    return error if str(error).startswith(f"{file}:") else FeatureFileError(f"{file}: {error}")


def named(meta: Mapping[str, Any], kind: str, number: int) -> int | str:
    """What `meta` calls a number of some kind ("names", "camera_names"); the number itself where it has no word."""
    names = meta.get(kind)
    word = names.get(str(number)) if isinstance(names, dict) else None
    return int(number) if word is None else str(word)


def _unlike(lengths: dict[str, int]) -> str:
    found = ", ".join(f"{name} {length}" for name, length in lengths.items())
    return f"features: every picture needs one row in each array, found lengths {found}"


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class StackedVectors:
    """Several arrays (N, D) of numbers one below the other, left where they lie; their rows are read as float32.

    It is indexed by rows only, and stands in a `ReidFeatures` in place of an array if its parts lie in several files.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.shape = (int(self.starts[-1]), self.parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as in `ReidFeatures`
            if isinstance(rows, slice) and rows.step is None:
                start, stop, _ = rows.indices(len(self))
                number = int(np.searchsorted(self.starts, start, "right")) - 1
                if start < stop <= self.starts[number + 1]:  # a run of one array needs no copy
                    first = self.starts[number]
                    return self.parts[number][start - first : stop - first].astype(np.float32, copy=False)
            wanted = np.arange(len(self))[rows]
            found = np.empty((wanted.size, self.shape[1]), dtype=np.float32)
            of_part = np.searchsorted(self.starts, wanted.ravel(), "right") - 1
            for number in np.unique(of_part):
                here = of_part == number
                found[here] = self.parts[number][wanted.ravel()[here] - self.starts[number]]
        return found.reshape(*wanted.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


def stacked(parts: Sequence[np.ndarray]) -> Any:
    """One array of several; if they are large and lie in files they stay there."""
    if all(map(is_mapped, parts)) and sum(part.nbytes for part in parts) >= _MAPPED_BYTES:
        return StackedVectors(parts)
    return np.concatenate(parts)


def is_mapped(array: np.ndarray) -> bool:
    """Whether the numbers lie in a file and come into memory as they are needed."""
    if isinstance(array, StackedVectors):
        return all(map(is_mapped, array.parts))
    owner: Any = array
    while owner is not None and not isinstance(owner, np.memmap):
        owner = getattr(owner, "base", None)
    return owner is not None


def _rows_not_finite(features: np.ndarray) -> np.ndarray:
    some = 4096
    bad = [
        start + np.flatnonzero(~np.isfinite(features[start : start + some]).all(axis=1))
        for start in range(0, len(features), some)
    ]
    return np.concatenate(bad) if bad else np.empty(0, dtype=np.int64)


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    found = np.asarray(values)
    if found.size == 0:
        found = found.astype(np.int64)
    # Unsigned camera numbers beside signed identities are a classical trap: everything is int64 from here on.
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise FeatureFileError(f"{name}: found {found.dtype} of shape {found.shape}, expected whole numbers (N,)")
    if len(found) and (found.min() < -1 or found.max() > np.iinfo(np.int64).max):
        row = int(found.argmin() if found.min() < -1 else found.argmax())
        raise FeatureFileError(
            f"{name}: found {found[row]} in row {row}, expected -1 (junk or unknown) or more, within 64 bits"
        )
    return found.astype(np.int64, copy=False)


def _texts(name: str, values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        values = [str(value) for value in values]  # Path objects are welcome
    found = np.asarray(values)
    if found.size == 0:
        found = found.astype(str)
    if found.ndim != 1 or found.dtype.kind != "U":
        raise FeatureFileError(f"{name}: found {found.dtype} of shape {found.shape}, expected texts of shape (N,)")
    return found
