"""The vectors of both heads in the files that the published program ranks: pytorch_result.mat and multi_query.mat.

    features = extract_features(load_embedder("runs/dgnet", alpha="parts"), index)
    save_results("pytorch_result.mat", features)

Of the 1024 columns of `query_f` and `gallery_f` (and `mquery_f` of the second file) the first 512 are the primary
part, the last 512 the fine-grained one, each of length 1; `query_label`, `query_cam` and so on are rows of numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from reid_eval.errors import OutputError
from reid_eval.features import ReidFeatures
from reid_eval.files import atomic_path
from reid_eval.outputs import claim_file

_MAKER = "dgnet-gen test"
_TEXT_BYTES = 116
"""of a MATLAB file's beginning: SciPy writes the time there, which would make equal vectors unequal files"""


def claim_results(
    file: Path, *, multi_query: bool, inputs: Iterable[Path | str] = (), overwrite: bool = False
) -> list[Path]:
    """The files that `save_results` will write, if they may be written.

    Raises:
        OutputError: one is something else, or read by this command.
    """
    files, inputs = [file, *([file.with_name("multi_query.mat")] if multi_query else [])], list(inputs)
    if len({place.resolve() for place in files}) < len(files):
        raise OutputError(
            f"{file}: the second file beside it has this name; choose another, such as pytorch_result.mat"
        )
    for place in files:
        claim_file(place, _MAKER, inputs=inputs, suffixes=[".mat"], overwrite=overwrite)
    return files


def save_results(file: Path | str, features: ReidFeatures) -> list[Path]:
    """Write query and gallery into a file, and pictures of split multi-query into multi_query.mat beside it.

    Raises:
        OutputError: a file cannot be written.
    """
    file = Path(file)
    contents = {file: _arrays(features, query="query", gallery="gallery")}
    if "multi-query" in features.splits:
        contents[file.with_name("multi_query.mat")] = _arrays(features, mquery="multi-query")
    for place, arrays in contents.items():
        with atomic_path(place) as part:
            part.write_bytes(_encoded(arrays))
    return list(contents)


def _arrays(features: ReidFeatures, **split_of: str) -> dict[str, np.ndarray]:
    arrays = {}
    for name, split in split_of.items():
        rows = np.flatnonzero(features.splits == split)
        arrays[f"{name}_f"] = np.asarray(features.features[rows], np.float32)
        arrays[f"{name}_label"] = features.pids[rows]
        arrays[f"{name}_cam"] = features.camids[rows]
    return arrays


def _encoded(arrays: dict[str, np.ndarray]) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, arrays, oned_as="row")
    stream.seek(0)
    stream.write(f"MATLAB 5.0 MAT-file, made by {_MAKER}".encode().ljust(_TEXT_BYTES))
    return stream.getvalue()
