"""Features in files of other programs: .mat, .npz, .npy with a .csv, and .pt, all turned into `ReidFeatures`.

    load_features("pytorch_result.mat", multi_query="multi_query.mat")
    load_features("features.npz")                         # ours, or query_f gallery_f ..., qf gf q_pids ..., feats ...
    load_features_and_labels("q.npy", "g.npy", "labels.csv")

Nothing in a file is ever executed: pickles are refused.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reid_eval.features import FeatureFileError, ReidFeatures, arrays_of_npz, stacked

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

_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_features(file: Path | str, *, multi_query: Path | str | None = None) -> ReidFeatures:
    """Read a feature file of ours or of another program, told apart by suffix and names; `multi_query` is a second one.

    Raises:
        FeatureFileError: a file is missing, damaged or pickled, or does not hold what is needed.
    """
    file = Path(file)
    if file.suffix == ".npz" and "format" in (arrays := arrays_of_npz(file)):
        features = ReidFeatures.from_arrays(arrays, file)
    else:
        features = _from_names(arrays if file.suffix == ".npz" else _named_arrays(file), file)
    if multi_query is None:
        return features
    more = _from_names(_named_arrays(Path(multi_query)), Path(multi_query), needed=("multi-query",))
    return _joined(features, more.split("multi-query"))


def load_features_and_labels(query: Path | str, gallery: Path | str, labels: Path | str) -> ReidFeatures:
    """Read two .npy files of vectors and a .csv with a line per vector: columns split, pid, camid and, if known, path.

    The lines of split query come in the order of the first file, those of gallery in the order of the second.

    Raises:
        FeatureFileError: a file is missing or damaged, or the lines are not as many as the vectors.
    """
    vectors = {"query": _npy(Path(query)), "gallery": _npy(Path(gallery))}
    lines = _labels(Path(labels))
    for split, array in vectors.items():
        if len(lines[split]["pid"]) != len(array):
            raise FeatureFileError(
                f"{labels}: {len(lines[split]['pid'])} lines of split {split}, expected {len(array)}, as many as "
                f"vectors in {query if split == 'query' else gallery}"
            )
    return _of_parts(
        [
            (
                split,
                array,
                np.array(lines[split]["pid"], dtype=np.int64),
                np.array(lines[split]["camid"], dtype=np.int64),
                np.array(lines[split]["path"], dtype=str),
            )
            for split, array in vectors.items()
        ],
        Path(labels),
        {"files": [str(query), str(gallery), str(labels)]},
    )


def _named_arrays(file: Path) -> dict[str, Any]:
    match file.suffix:
        case ".npz":
            return dict(arrays_of_npz(file))
        case ".mat":
            return _mat(file)
        case ".pt" | ".pth":
            return _torch(file)
        case other:
            raise FeatureFileError(
                f"{file}: features are read from .npz, .mat, .pt and .pth, and from .npy with --query, --gallery and "
                f"--labels, not from {other or 'files without suffix'}"
            )


def _mat(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    start = _start_of(file, "a .mat of MATLAB 5 to 7")
    if _HDF5 in start or b"MATLAB 7.3" in start:
        raise FeatureFileError(
            f"{file}: a .mat of MATLAB 7.3 (HDF5), expected one of MATLAB 5 to 7; save it again with -v7, or with "
            "scipy.io.savemat"
        )
    try:
        return {name: value for name, value in loadmat(file).items() if not name.startswith("__")}
    # Damaged files make scipy's reader fail in many ways.
    except Exception as error:
        raise _damaged(file, error, "a .mat of MATLAB 5 to 7") from None


def _torch(file: Path) -> dict[str, Any]:
    import torch

    _start_of(file, "a dictionary written with torch.save")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FeatureFileError(
            f"{file}: holds pickled objects, or is damaged; expected a dictionary of tensors, lists and numbers, which "
            "alone are read because others can run code; save tensors in place of NumPy arrays and objects"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _damaged(file, error, "a dictionary written with torch.save") from None
    if not isinstance(content, dict):
        raise FeatureFileError(f"{file}: found {type(content).__name__}, expected a dictionary of tensors")
    return {str(name): value.numpy() if isinstance(value, torch.Tensor) else value for name, value in content.items()}


def _start_of(file: Path, expected: str) -> bytes:
    """The first bytes of a file, at least one."""
    try:
        with file.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FeatureFileError(f"{file}: cannot be read ({reason}); expected {expected}") from None
    if not start:
        raise FeatureFileError(f"{file}: is empty; expected {expected}")
    return start


def _damaged(file: Path, error: Exception, expected: str) -> FeatureFileError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return FeatureFileError(f"{file}: cut off or damaged ({reason}); expected {expected}; write it again")


def _npy(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(file, error, "the .npy of one array of numbers") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiub":
        raise FeatureFileError(f"{file}: expected one array of numbers of shape (N, D)")
    return array


def _labels(file: Path) -> dict[str, dict[str, list[Any]]]:
    lines: dict[str, dict[str, list[Any]]] = {
        name: {"pid": [], "camid": [], "path": []} for name in ("query", "gallery")
    }
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in ("split", "pid", "camid") if name not in (reader.fieldnames or [])]
        if missing:
            found = ", ".join(reader.fieldnames or []) or "none"
            raise FeatureFileError(f"{file}: column {', '.join(missing)} missing, found {found}")
        for number, line in enumerate(reader, start=2):
            of_split = lines.get(line["split"] or "")
            if of_split is None:
                raise FeatureFileError(f"{file}: line {number} has split {line['split']!r}, expected query or gallery")
            try:
                of_split["pid"].append(int(line["pid"]))
                of_split["camid"].append(int(line["camid"]))
            except (TypeError, ValueError):
                raise FeatureFileError(
                    f"{file}: line {number} has pid {line['pid']!r} and camid {line['camid']!r}, expected whole numbers"
                ) from None
            of_split["path"].append(line.get("path") or f"{line['split']} {len(of_split['pid']) - 1}")
    return lines


def _from_names(arrays: Mapping[str, Any], file: Path, needed: tuple[str, ...] = ("query", "gallery")) -> ReidFeatures:
    if {"feats", "pids", "camids", "num_query"} <= set(arrays):
        arrays = _split_at_num_query(arrays, file)
    parts = []
    for split in ("query", "gallery", "multi-query"):
        found = {
            column: next((arrays[name] for name in _NAMES[split, column] if name in arrays), None)
            for column in ("features", "pids", "camids", "paths")
        }
        missing = [_NAMES[split, column][0] for column in ("features", "pids", "camids") if found[column] is None]
        if missing and (split in needed or len(missing) < 3):
            names = ", ".join(sorted(map(str, arrays))[:12]) or "nothing"
            raise FeatureFileError(f"{file}: {', '.join(missing)} missing, found {names}; see docs/evaluation.md")
        if missing:
            continue
        vectors = np.asarray(found["features"])
        pids, camids = (_as_column(found[name], name, split, file) for name in ("pids", "camids"))
        _refuse_transposed(vectors, pids, split, file)
        paths = [f"{split} {number}" for number in range(len(vectors))]
        if found["paths"] is not None:
            paths = [str(path).strip() for path in np.ravel(np.asarray(found["paths"], dtype=object))]
        parts.append((split, vectors, pids, camids, np.array(paths, dtype=str)))
    return _of_parts(parts, file, {"file": str(file)})


def _split_at_num_query(arrays: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """fast-reid's order: the first num_query rows are the queries."""
    num_query = int(np.ravel(arrays["num_query"])[0])
    if not 0 < num_query < len(arrays["feats"]):
        raise FeatureFileError(
            f"{file}: num_query is {num_query}, expected fewer than the {len(arrays['feats'])} rows of feats"
        )
    of = {"f": arrays["feats"], "pids": np.ravel(arrays["pids"]), "camids": np.ravel(arrays["camids"])}
    query = {("qf" if name == "f" else f"q_{name}"): column[:num_query] for name, column in of.items()}
    return query | {("gf" if name == "f" else f"g_{name}"): column[num_query:] for name, column in of.items()}


def _as_column(values: Any, name: str, split: str, file: Path) -> np.ndarray:
    """Labels as (N,) int64: rows and columns of any kind of number that is whole, -1 included."""
    column = np.ravel(np.asarray(values))
    if column.dtype.kind not in "iuf" or (column.dtype.kind == "f" and not (column == np.round(column)).all()):
        raise FeatureFileError(f"{file}: the {name} of split {split} are {column.dtype}, expected whole numbers")
    return column.astype(np.int64)


def _refuse_transposed(vectors: np.ndarray, pids: np.ndarray, split: str, file: Path) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiub":
        raise FeatureFileError(
            f"{file}: the features of split {split} are {vectors.dtype} of shape {vectors.shape}, expected numbers "
            "(N, D)"
        )
    if len(vectors) != len(pids):
        turned = "; they lie transposed: save features.T" if vectors.shape[1] == len(pids) else ""
        raise FeatureFileError(
            f"{file}: split {split} has features of shape {vectors.shape} and {len(pids)} identities, expected as many "
            f"rows{turned}"
        )


_Part = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # split, features, pids, camids, paths


def _of_parts(parts: list[_Part], file: Path, meta: dict[str, Any]) -> ReidFeatures:
    lengths = {array.shape[1] for _, array, *_ in parts if array.ndim == 2}
    if len(lengths) > 1:
        found = ", ".join(f"{split} {array.shape[1]}" for split, array, *_ in parts)
        raise FeatureFileError(f"{file}: vectors of different length ({found}), expected one length")
    try:
        return ReidFeatures(
            features=stacked([array for _, array, *_ in parts]),
            pids=np.concatenate([pids for _, _, pids, _, _ in parts]),
            camids=np.concatenate([camids for *_, camids, _ in parts]),
            splits=np.repeat([split for split, *_ in parts], [len(array) for _, array, *_ in parts]),
            paths=np.concatenate([paths for *_, paths in parts]),
            meta=meta,
        )
    except FeatureFileError as error:
        raise FeatureFileError(f"{file}: {error}") from None


def _joined(features: ReidFeatures, more: ReidFeatures) -> ReidFeatures:
    both = (features, more)
    if features.num_features != more.num_features:
        raise FeatureFileError(
            f"{more.meta.get('file')}: vectors of length {more.num_features}, expected {features.num_features} as in "
            "the other feature file"
        )
    return ReidFeatures(
        **{
            name: np.concatenate([getattr(part, name) for part in both])
            for name in ("features", "pids", "camids", "splits", "paths")
        },
        meta={**features.meta, "multi_query": more.meta.get("file", "")},
    )
