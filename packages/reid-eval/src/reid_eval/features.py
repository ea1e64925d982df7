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
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.files import atomic_path, fingerprint

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
    `meta` is a JSON object: package version, fingerprints of the inputs, extractor or checkpoint.

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
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise FeatureFileError(f"features: every picture needs one row in each array, found lengths {found}")
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
        return ReidFeatures.from_arrays(arrays_of_npz(file), file)

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], file: Path | str) -> ReidFeatures:
        """Features from the arrays of a feature file, which `file` names in messages."""
        missing = [name for name in ("format", *_ARRAYS, "meta") if name not in arrays]
        if missing:
            found = _some_of(sorted(arrays)) or "no named arrays"
            raise FeatureFileError(
                f"{file}: not a feature file: {', '.join(missing)} missing, found {found}; see docs/evaluation.md"
            )
        if arrays["format"].shape != () or arrays["format"] != FORMAT:
            raise FeatureFileError(
                f"{file}: feature file of format {arrays['format']}, this version reads format {FORMAT}; "
                "extract again or use the version that wrote it"
            )
        try:
            meta = json.loads(str(arrays["meta"]))
            return ReidFeatures(**{name: arrays[name] for name in _ARRAYS}, meta=meta)
        except json.JSONDecodeError as error:
            raise FeatureFileError(f"{file}: its meta is not JSON ({error}); extract again") from None
        except FeatureFileError as error:
            raise FeatureFileError(f"{file}: {error}") from None


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


def _mapped_features(file: Path) -> dict[str, np.ndarray]:
    """The array "features" of a .npz, mapped from the disk if large and not compressed; its checksum is tested."""
    with zipfile.ZipFile(file) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename == "features.npy"), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size < _MAPPED_BYTES:
            return {}
        with archive.open(entry) as content:
            version = np.lib.format.read_magic(content)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, in_columns, dtype = read_header(content)
            start = content.tell()
            while content.read(1 << 20):  # to the end, where the checksum is compared
                pass
        with file.open("rb") as stream:
            stream.seek(entry.header_offset + 26)  # the lengths of the name and of the extra field of this entry
            name_length, extra_length = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    offset = entry.header_offset + 30 + name_length + extra_length + start
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    order: Any = "F" if in_columns else "C"
    return {"features": np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)}


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


def arrays_of_npz(file: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(4)
            if start != b"PK\x03\x04":
                found = f"begins with {start!r} and not as .npz files do" if start else "is empty"
                raise FeatureFileError(
                    f"{file}: not a feature file: it {found}; expected what reid-models extract writes"
                )
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                mapped = _mapped_features(Path(file))
                names = [name for name in archive.files if name not in mapped]
                arrays = {name: archive[name] for name in names}
                return mapped | {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    except FileNotFoundError:
        raise FeatureFileError(f"{file}: no such feature file; write one with reid-models extract") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FeatureFileError(
            f"{file}: cannot be read ({reason}); expected the .npz that reid-models extract writes"
        ) from None
    # zipfile says RuntimeError or NotImplementedError where a damaged header claims encryption or another method.
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FeatureFileError(
            f"{file}: not a feature file, or one that was cut off or damaged ({reason}); expected the .npz that "
            "reid-models extract writes; extract again"
        ) from None


def _some_of(names: Sequence[str]) -> str:
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
