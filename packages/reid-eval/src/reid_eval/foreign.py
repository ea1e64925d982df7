"""Features in files of other programs: .mat, .npz, .npy with a table, and .pt, all turned into `ReidFeatures`.

    load_features("pytorch_result.mat", multi_query="multi_query.mat")
    load_features("features.npz")                         # ours, or query_f gallery_f ..., qf gf q_pids ..., feats ...
    load_features_and_labels("q.npy", "g.npy", "labels.csv")
    load_matrix_and_labels("vectors.npy", "people.csv")

What a file is, its content tells. Nothing in it is ever executed: pickles are refused. Identities and cameras may be
words; they are numbered then, and `ReidFeatures.name_of` knows the words.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid_eval.arrays import (
    ArraysInMemory,
    Header,
    StoredArrays,
    begins_like_npy,
    read_npy,
    refuse_disproportion,
)
from reid_eval.features import (
    FeatureFileError,
    ReidFeatures,
    open_feature_file,
    some_of,
    stacked,
    vectors_of,
)
from reid_eval.matlab import begins_like_mat, open_mat
from reid_eval.reading import reading, refuse_irregular, verify_zip
from reid_eval.tables import number_identities, portable, read_table

# Other names for what we call (split, column); the first is that of layumi's and DG-Net's programs.
_NAMES = {
    ("query", "features"): ("query_f", "qf", "query_features"),
    ("query", "pids"): ("query_label", "q_pids", "query_pids"),
    ("query", "camids"): ("query_cam", "q_camids", "query_camids"),
    ("query", "paths"): ("query_path", "q_paths", "query_paths"),
    ("gallery", "features"): ("gallery_f", "gf", "gallery_features"),
    ("gallery", "pids"): ("gallery_label", "g_pids", "gallery_pids"),
    ("gallery", "camids"): ("gallery_cam", "g_camids", "gallery_camids"),
    ("gallery", "paths"): ("gallery_path", "g_paths", "gallery_paths"),
    ("multi-query", "features"): ("mquery_f",),
    ("multi-query", "pids"): ("mquery_label",),
    ("multi-query", "camids"): ("mquery_cam",),
    ("multi-query", "paths"): ("mquery_path",),
}
_ONE_AFTER_ANOTHER = ("feats", "pids", "camids", "num_query")  # fast-reid's: the first num_query rows are the queries

_TORCH = "a dictionary of tensors, written with torch.save"
_ALL = "all"
"""the split of pictures that are queries and gallery alike"""


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of the features to be, as they came: labels are numbers or words, paths may not be known."""

    splits: np.ndarray
    vectors: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    paths: np.ndarray | None


def load_features(file: Path | str, *, multi_query: Path | str | None = None) -> ReidFeatures:
    """Read a feature file of ours or of another program, told apart by content; `multi_query` is a second one.

    Raises:
        FeatureFileError: a file is missing, damaged or pickled, or does not hold what is needed.
    """
    file = Path(file)
    with open_arrays(file) as arrays:
        if "format" in arrays:
            features = ReidFeatures.from_arrays(arrays, file)
        else:
            features = _joined(_parts(arrays, file), file, {"file": str(file)})
    if multi_query is None:
        return features
    more = Path(multi_query)
    with open_arrays(more) as arrays:
        parts = _parts(arrays, more, needed=("multi-query",))
    if features.num_features != parts[-1].vectors.shape[1]:
        raise FeatureFileError(
            f"{more}: vectors of length {parts[-1].vectors.shape[1]}, expected {features.num_features} as in the other "
            "feature file"
        )
    return _joined([_as_part(features), parts[-1]], file, {**features.meta, "multi_query": str(more)})


def load_features_and_labels(query: Path | str, gallery: Path | str, labels: Path | str) -> ReidFeatures:
    """Read two files of vectors (.npy) and a table with a line per vector: split, pid and, if known, camid, path.

    The lines of split query come in the order of the first file, those of gallery in the order of the second.

    Raises:
        FeatureFileError: a file is missing or damaged, or the lines are not as many as the vectors.
    """
    labels = Path(labels)
    table = _table(labels, required=("split", "pid"), optional=("camid", "path"))
    parts = []
    for split, file in (("query", Path(query)), ("gallery", Path(gallery))):
        rows = [row for _, row in table if row["split"].lower() == split]
        vectors = _one_matrix(file)
        _refuse_other_number(vectors, len(rows), f"{len(rows)} lines of split {split}", labels, file, table)
        parts.append(_labelled(vectors, rows, split))
    for line, row in table:
        if row["split"].lower() not in ("query", "gallery"):
            raise FeatureFileError(f"{labels}: line {line} has split {row['split']!r}, expected query or gallery")
    return _joined(parts, labels, {"files": [str(query), str(gallery), str(labels)]})


def load_matrix_and_labels(matrix: Path | str, labels: Path | str) -> ReidFeatures:
    """Read one file of vectors and a table with a line per vector: column pid and, if known, split, camid, path.

    Without the column split every row is of split "all": query and gallery at once, see the protocol leave-one-out.

    Raises:
        FeatureFileError: a file is missing or damaged, the lines are not as many as the vectors, or these are
            distances.
    """
    matrix, labels = Path(matrix), Path(labels)
    table = _table(labels, required=("pid",), optional=("split", "camid", "path"))
    vectors = _one_matrix(matrix)
    _refuse_other_number(vectors, len(table), f"{len(table)} lines", labels, matrix, table)
    _refuse_distances(vectors, matrix)
    return _joined([_labelled(vectors, [row for _, row in table])], labels, {"files": [str(matrix), str(labels)]})


@contextmanager
def open_arrays(file: Path | str) -> Iterator[StoredArrays]:
    """The named arrays of a .npz, .mat, .pt or .pth, within the block; what it is, its content tells.

    Raises:
        FeatureFileError: it is none of these, missing or damaged; while arrays are read too.
    """
    file = Path(file)
    match _kind(file):
        case "npz":
            with open_feature_file(file) as arrays:
                yield arrays
        case "mat":
            with open_mat(file, FeatureFileError) as arrays:
                yield arrays
        case "torch":
            yield _torch(file)
        case "npy":
            raise FeatureFileError(
                f"{file}: holds one array (.npy) and no labels; give a table with a line per vector (--labels "
                "people.csv), or two arrays with --query, --gallery and --labels"
            )
        case _:
            raise FeatureFileError(
                f"{file}: features are read from .npz, .mat, .pt and .pth, and from .npy with --labels, not from "
                f"{file.suffix or 'files without suffix'}"
            )


def _kind(file: Path) -> str:
    """What a file holds, by its first bytes; where they do not tell, by its suffix."""
    expected = "a file of features"
    size = refuse_irregular(file, FeatureFileError, expected)
    with reading(file, FeatureFileError, expected), file.open("rb") as stream:
        start = stream.read(1024)
    suffix = file.suffix.lower()
    of_suffix = {".npz": "npz", ".mat": "mat", ".pt": "torch", ".pth": "torch", ".npy": "npy"}.get(suffix, "")
    if start.startswith(b"PK"):
        with reading(file, FeatureFileError, expected), zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        return "npz" if any(name.endswith(".npy") for name in names) else of_suffix
    if begins_like_npy(start):
        return "npy"
    if begins_like_mat(start):
        return "mat"
    if start.startswith(b"\x80"):  # a pickle
        return "torch"
    if not size and of_suffix:
        raise FeatureFileError(f"{file}: not a feature file: it is empty; write it again")
    return of_suffix


_PLAIN = (bool, int, float, str)


class _TorchArrays(ArraysInMemory):
    """What torch.save wrote, as arrays: tensors of any float type, and flat lists of numbers or texts."""

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        super().__init__(values)
        self._file = file

    def header(self, name: str) -> Header:
        import torch

        value = super().__getitem__(name)
        if isinstance(value, torch.Tensor):
            with reading(self._file, FeatureFileError, f"{name} of plain numbers", remedy="write it again"):
                return Header(tuple(value.shape), np.dtype(np.float32))
        return super().header(name)

    def __getitem__(self, name: str) -> np.ndarray:
        import torch

        value = super().__getitem__(name)
        size = self._file.stat().st_size
        with reading(self._file, FeatureFileError, f"{name} of plain numbers", remedy="write it again"):
            if isinstance(value, torch.Tensor):
                refuse_disproportion(self._file, name, value.numel() * value.element_size(), size, FeatureFileError)
                return _numbers(value)
            if isinstance(value, _PLAIN):
                return np.asarray(value)
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"found {type(value).__name__}")
            if value and all(isinstance(one, torch.Tensor) for one in value):
                refuse_disproportion(self._file, name, 8 * sum(one.numel() for one in value), size, FeatureFileError)
                return np.stack([_numbers(one) for one in value])
            # A list of lists may be much larger than its file: each may be there many times.
            if not all(isinstance(one, _PLAIN) for one in value):
                raise ValueError("a list of other things than numbers or texts")
            return np.asarray(value)


def _numbers(tensor: Any) -> np.ndarray:
    """A tensor as an array: half precision of any kind as float32, gradients forgotten."""
    import torch

    if tensor.layout != torch.strided:
        raise ValueError(f"a sparse tensor ({tensor.layout}); save tensor.to_dense()")
    plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
        plain = plain.float()
    return plain.resolve_conj().resolve_neg().numpy()


def _torch(file: Path) -> _TorchArrays:
    import torch

    if zipfile.is_zipfile(file):
        verify_zip(file, FeatureFileError, _TORCH)
    with reading(file, FeatureFileError, _TORCH, remedy="cut off or damaged? write it again"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise FeatureFileError(
                f"{file}: holds pickled objects, or is damaged; expected a dictionary of tensors, lists and numbers, "
                "which alone are read because others can run code; save tensors in place of NumPy arrays and objects"
            ) from None
    if isinstance(content, torch.Tensor):
        content = {"features": content}
    if not isinstance(content, dict):
        raise FeatureFileError(f"{file}: found {type(content).__name__}, expected a dictionary of tensors")
    return _TorchArrays({str(name): value for name, value in content.items()}, file)


# --- tables ---------------------------------------------------------------------------------------------------------


_Table = Sequence[tuple[int, dict[str, str]]]


def _table(file: Path, *, required: Sequence[str], optional: Sequence[str]) -> _Table:
    expected = f"a line per vector, with the columns {', '.join(required)} and, if known, {', '.join(optional)}"
    rows = read_table(file, FeatureFileError, required=required, optional=optional, expected=expected)
    for line, row in rows:
        if not row["pid"]:
            raise FeatureFileError(f"{file}: line {line} names nobody, expected an identity; -1 marks a junk crop")
    return rows


def _labelled(vectors: np.ndarray, rows: Sequence[Mapping[str, str]], split: str = "") -> _Part:
    """Vectors with the rows of their table, in its order."""
    names_pictures = bool(rows) and "path" in rows[0]
    return _Part(
        splits=np.array([split or _split_of(row) for row in rows], dtype=np.str_),
        vectors=vectors,
        pids=np.array([row["pid"] for row in rows], dtype=np.str_),
        camids=np.array([row.get("camid") or "-1" for row in rows], dtype=np.str_),
        paths=np.array([portable(row["path"]) for row in rows], dtype=np.str_) if names_pictures else None,
    )


def _split_of(row: Mapping[str, str]) -> str:
    split = row.get("split", _ALL)
    return split.lower() if split.lower() in ("query", "gallery") else split


def _one_matrix(file: Path) -> np.ndarray:
    """The one array of vectors in a file: a .npy, or the only array of two dimensions elsewhere."""
    if _kind(file) == "npy":
        array = read_npy(file, FeatureFileError, "the .npy of one array of numbers")
    else:
        with open_arrays(file) as arrays:
            found = [name for name in arrays if len(arrays.header(name).shape) == 2]
            if len(found) != 1:
                raise FeatureFileError(
                    f"{file}: holds {len(found)} arrays of two dimensions ({some_of(sorted(arrays))}), expected one of "
                    "shape (N, D) beside a table"
                )
            array = vectors_of(arrays, found[0])
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise FeatureFileError(
            f"{file}: {array.dtype} of shape {array.shape}, expected one array of numbers of shape (N, D)"
        )
    return array


def _refuse_other_number(
    vectors: np.ndarray, num_rows: int, found: str, labels: Path, file: Path, table: _Table
) -> None:
    if len(vectors) == num_rows:
        return
    splits = [row.get("split", "").lower() for _, row in table]
    if vectors.shape == (splits.count("query"), splits.count("gallery")):
        raise _distances(file, "a row for each query and a column for each gallery picture")
    turned = "; the vectors lie transposed: save features.T" if vectors.shape[1] == num_rows else ""
    raise FeatureFileError(f"{labels}: {found}, expected {len(vectors)}, as many as vectors in {file}{turned}")


def _refuse_distances(vectors: np.ndarray, file: Path) -> None:
    """A square matrix that equals its mirror image and is the same all along its diagonal is one of distances."""
    some = min(len(vectors), 64)
    if len(vectors) < 3 or len(vectors) != vectors.shape[1]:
        return
    diagonal, corner = np.diagonal(vectors), vectors[:some, :some].astype(np.float64)
    near = 1e-3 * float(np.abs(corner).max())  # they may have been rounded
    if np.ptp(diagonal) <= near and np.abs(corner - corner.T).max() <= near:
        raise _distances(file, "square, symmetric, and the same all along its diagonal")


def _distances(file: Path, why: str) -> FeatureFileError:
    return FeatureFileError(
        f"{file}: looks like distances ({why}), expected vectors (N, D); give the vectors, or score distances from "
        "Python with reid_eval.ranking.rank_distances"
    )


# --- named arrays ---------------------------------------------------------------------------------------------------


def _parts(arrays: StoredArrays, file: Path, needed: tuple[str, ...] = ("query", "gallery")) -> list[_Part]:
    """The splits that a file holds under the names of some program; labels are compared before vectors are read."""
    if set(_ONE_AFTER_ANOTHER) <= set(arrays):
        return _split_at_num_query(arrays, file)
    parts = []
    for split in ("query", "gallery", "multi-query"):
        found = {
            column: next((name for name in _NAMES[split, column] if name in arrays), "")
            for column in ("features", "pids", "camids", "paths")
        }
        missing = [_NAMES[split, column][0] for column in ("features", "pids", "camids") if not found[column]]
        if missing and (split in needed or len(missing) < 3):
            hint = "; -1 is a camera that is not known" if missing == [_NAMES[split, "camids"][0]] else ""
            if len(arrays) == 1:
                hint = "; one array of vectors needs a table with a line for each: --labels people.csv"
            raise FeatureFileError(
                f"{file}: {', '.join(missing)} missing, found {some_of(sorted(arrays)) or 'nothing'}{hint}; see "
                "docs/evaluation.md"
            )
        if missing:
            continue
        pids, camids = (_as_labels(arrays[found[name]], name, split, file) for name in ("pids", "camids"))
        paths = _as_texts(arrays[found["paths"]]) if found["paths"] else None
        for name, column in (("camids", camids), ("paths", paths)):
            if column is not None and len(column) != len(pids):
                raise FeatureFileError(
                    f"{file}: split {split} has {len(column)} {name} and {len(pids)} identities, expected as many"
                )
        _refuse_unlike(arrays.header(found["features"]).shape, len(pids), split, file)
        vectors = np.asanyarray(vectors_of(arrays, found["features"]))
        _refuse_unlike(vectors.shape, len(pids), split, file, vectors.dtype)
        parts.append(_Part(np.full(len(vectors), split), vectors, pids, camids, paths))
    return parts


def _split_at_num_query(arrays: StoredArrays, file: Path) -> list[_Part]:
    pids, camids = (_as_labels(arrays[name], name, _ALL, file) for name in ("pids", "camids"))
    numbers = np.ravel(np.asarray(arrays["num_query"]))
    num_query = int(numbers[0]) if len(numbers) and numbers.dtype.kind in "iu" else -1
    _refuse_unlike(arrays.header("feats").shape, len(pids), _ALL, file)
    if not 0 < num_query < len(pids):
        raise FeatureFileError(f"{file}: num_query is {num_query}, expected fewer than the {len(pids)} rows of feats")
    vectors = np.asanyarray(vectors_of(arrays, "feats"))
    _refuse_unlike(vectors.shape, len(pids), _ALL, file, vectors.dtype)
    splits = np.where(np.arange(len(pids)) < num_query, "query", "gallery")
    return [_Part(splits, vectors, pids, camids, None)]


def _as_labels(values: Any, name: str, split: str, file: Path) -> np.ndarray:
    """Labels as (N,) int64 or as texts: rows and columns of any kind of number that is whole, or of words."""
    column = np.ravel(np.asarray(values))
    if column.dtype.kind == "S":
        column = _as_texts(column)
    if column.dtype.kind == "U":
        return np.array([text.strip() for text in column.tolist()], dtype=np.str_)
    is_whole = column.dtype.kind in "iu" or (
        column.dtype.kind == "f" and bool((np.isfinite(column) & (column == np.round(column))).all())
    )
    limit = 2**53 if column.dtype.kind == "f" else 2**63  # beyond it floats skip whole numbers
    if column.size and not (is_whole and -limit <= int(column.min()) and int(column.max()) < limit):
        raise FeatureFileError(
            f"{file}: the {name} of split {split} are {column.dtype}, expected whole numbers of at most 64 bits, or "
            "words"
        )
    return column.astype(np.int64)


def _as_texts(values: Any) -> np.ndarray:
    found = np.ravel(np.asarray(values)).tolist()
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in found]
    return np.array([text.strip() for text in texts], dtype=np.str_)


def _refuse_unlike(
    shape: tuple[int, ...], num_pids: int, split: str, file: Path, dtype: np.dtype[Any] | None = None
) -> None:
    if len(shape) != 2 or (dtype is not None and dtype.kind not in "fiub"):
        raise FeatureFileError(
            f"{file}: the features of split {split} are {dtype or 'numbers'} of shape {shape}, expected numbers (N, D)"
        )
    if shape[0] != num_pids:
        turned = "; they lie transposed: save features.T" if shape[1] == num_pids else ""
        raise FeatureFileError(
            f"{file}: split {split} has features of shape {shape} and {num_pids} identities, expected as many "
            f"rows{turned}"
        )


# --- into one -------------------------------------------------------------------------------------------------------


def _as_part(features: ReidFeatures) -> _Part:
    """Features that were read already, as they would have come."""
    pids: np.ndarray = features.pids
    if features.meta.get("names"):
        pids = np.array([str(features.name_of(pid)) for pid in pids.tolist()], dtype=np.str_)
    camids: np.ndarray = features.camids
    if features.meta.get("camera_names"):
        camids = np.array([str(features.camera_name(camid)) for camid in camids.tolist()], dtype=np.str_)
    return _Part(features.splits, features.features, pids, camids, features.paths)


def _joined(parts: Sequence[_Part], file: Path, meta: dict[str, Any]) -> ReidFeatures:
    """Features of all rows; what is a word becomes a number, the same one everywhere."""
    lengths = {part.vectors.shape[1] for part in parts}
    if len(lengths) > 1:
        found = ", ".join(f"{part.splits[0]} {part.vectors.shape[1]}" for part in parts if len(part.splits))
        raise FeatureFileError(f"{file}: vectors of different length ({found}), expected one length")
    pids, names = _numbered([part.pids for part in parts])
    camids, camera_names = _numbered([part.camids for part in parts])
    known = {
        "names": {str(number): name for number, name in names.items()},
        "camera_names": {str(number): name for number, name in camera_names.items()},
    }
    meta = {key: value for key, value in meta.items() if key not in known} | {k: v for k, v in known.items() if v}
    if any(part.paths is None for part in parts):
        meta["picture_names"] = False
    splits = np.concatenate([part.splits for part in parts])
    try:
        return ReidFeatures(
            features=stacked([part.vectors for part in parts]),
            pids=pids,
            camids=camids,
            splits=splits,
            paths=np.concatenate([_paths_of(part) for part in parts]),
            meta=meta,
        )
    except FeatureFileError as error:
        raise FeatureFileError(f"{file}: {error}") from None


def _numbered(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, dict[int, str]]:
    if all(column.dtype.kind != "U" for column in columns):
        return np.concatenate(columns), {}
    return number_identities(str(value) for column in columns for value in column.tolist())


def _paths_of(part: _Part) -> np.ndarray:
    """Names of pictures, or what stands for them: their split and number."""
    numbers: dict[str, int] = {}
    placeholders = []
    for split in part.splits.tolist():
        numbers[split] = numbers.get(split, -1) + 1
        placeholders.append(f"{split} {numbers[split]}")
    if part.paths is None:
        return np.array(placeholders, dtype=np.str_)
    both = zip(part.paths.tolist(), placeholders, strict=True)
    return np.array([path or placeholder for path, placeholder in both], dtype=np.str_)
