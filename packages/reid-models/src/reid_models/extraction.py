"""From pictures to vectors: any embedder over any index gives a feature file.

embedder = load_embedder("runs/teacher", which="best")
features = extract_features(embedder, DatasetIndex.open("data/market"))
features.save("features.npz")
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import reid_models
from reid_eval.errors import OutputError, Stopped
from reid_eval.features import FeatureFileError, ReidFeatures, open_feature_file
from reid_eval.files import file_fingerprint, fingerprint
from reid_eval.progress import progress
from reid_models.checkpoints import load_state
from reid_models.config import ConfigError, config_from_dict
from reid_models.data.index import DatasetIndex
from reid_models.data.loading import Batch, PersonDataset, make_loader
from reid_models.data.samplers import in_order
from reid_models.networks import MGN, PCB, Baseline
from reid_models.networks.folding import folded
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import WeightsError, load_weights, network_of, read_weights

logger = logging.getLogger(__name__)

Which = int | Literal["last", "best"]


def parse_which(text: str) -> Which:
    """What `--which` says: last, best, or an iteration.

    Raises:
        ConfigError: anything else.
    """
    match text:
        case "last":
            return "last"
        case "best":
            return "best"
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"--which {text}: expected last, best, or the iteration of a checkpoint")


class Embedder(Protocol):
    """Whatever turns network input into vectors to rank by."""

    name: str
    """names the maker in feature files and metrics"""
    image_hw: tuple[int, int]
    num_features: int

    @property
    def fingerprint(self) -> str:
        """A hash of whatever decides the vectors."""

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) on any device to vectors (B, num_features), float32, on the CPU."""

    def finish(self, vectors: Tensor) -> Tensor:
        """Vectors, or sums of those of a picture and its mirror image, to what is ranked by, of length 1."""


class NetworkEmbedder:
    """An `Embedder` around a copy of a network, made for nothing else: without graph, classifiers and batch norms.

    `network` is a module with `num_features` and `embed(images)`, such as a ReidNetwork.
    `compile` compiles it for one size of batch, to which smaller ones are filled up; where that fails it goes on
    without, and says so. While `runtime` watches signals, `embed` raises `Stopped` once one has come.
    """

    def __init__(
        self,
        network: Any,
        *,
        name: str,
        image_hw: tuple[int, int],
        runtime: Runtime,
        made_by: dict[str, Any] | None = None,
        compile: bool = False,
    ) -> None:
        self.runtime, self.name, self.image_hw = runtime, name, image_hw
        self.num_features = network.num_features
        self.made_by = made_by or {}
        self.network = runtime.prepare(folded(network))
        self._embed = runtime.compiled(self.network.embed, frozen=True) if compile else self.network.embed
        self._batch_size = 0 if compile else None

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) on any device to vectors (B, num_features), float32, on the CPU.

        Raises:
            Stopped: a signal or the time limit asked for it.
        """
        if reason := self.runtime.stop_reason():
            raise Stopped(reason)
        number = len(images)
        if self._batch_size is not None:
            self._batch_size = max(number, self._batch_size)
            images = nn.functional.pad(images, (0,) * 7 + (self._batch_size - number,))
        with torch.inference_mode(), self.runtime.autocast():
            return self._embed(self.runtime.to_device(images))[:number].float().cpu()

    def finish(self, vectors: Tensor) -> Tensor:
        """Vectors, or sums of those of a picture and its mirror image, to what is ranked by, of length 1."""
        return nn.functional.normalize(vectors, dim=1)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of what the network computes in."""
        state = self.network.state_dict()
        return fingerprint([self.runtime.precision, *(value.cpu().numpy().tobytes() for value in state.values())])


def load_embedder(
    run: Path | str,
    which: Which = "last",
    device: str = "auto",
    *,
    untrained: bool = False,
    half: bool = False,
    compile: bool = False,
    alpha: float | Literal["parts"] | None = None,
) -> NetworkEmbedder:
    """The network of a trained run, ready to embed; needs nothing but the run's folder.

    A run of another package, or whatever else it trained, is embedded by that package: it offers a function of this
    name, without `untrained`, by an entry point in the group `reid_models.embedders`, which gives None for what is not
    its own. `alpha`, a number or "parts", is for these (see `dgnet_gen.features`).

    `untrained` gives the same network with the weights that its training started from: what it is to be compared with.
    `half` computes in 16 bits, whatever the precision of the training was; without it, in 32.

    Raises:
        CheckpointError: no run of a re-identification network there, or no such checkpoint.
        WeightsError: `untrained`, and the run started from a weight file that is gone.
        ConfigError: `alpha` for a network that has no use for it, or `untrained` for one of another package.
    """
    is_ours = (Path(run) / "run.json").is_file() and RunDir.open(run).kind == "reid"
    for offer in () if is_ours else entry_points(group="reid_models.embedders"):
        embedder: NetworkEmbedder | None = offer.load()(run, which, device, half=half, compile=compile, alpha=alpha)
        if embedder is not None:
            if untrained:
                raise ConfigError(f"{run}: --untrained is for runs of reid-models train, this one is of {offer.name}")
            return embedder
    if alpha is not None:
        raise ConfigError(f"--alpha {alpha}: weighs the heads of a DG-Net, and {run} is none")
    from reid_models.training import ReidTrainConfig, build_network  # which imports this module to evaluate with

    found = RunDir.open(run, "reid")
    checkpoint = found.load(which)
    config = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(found.checkpoint_file(which)))
    runtime = Runtime.for_inference(device, half=half)
    runtime.seed_everything(config.seed)
    start = found.made_by.get("weights")  # a file given to the training in place of the trunk's weights
    network = build_network(config.network, checkpoint.num_ids(run), load_weights=untrained and not start)
    if untrained and start:
        load_weights(network, start["file"], start["dropped"])
    if not untrained:
        # A moving average, where one was kept, is what was evaluated.
        load_state(network, checkpoint.network("average", "reid", source=run), run)
    state = "untrained" if untrained else str(checkpoint.iteration)
    return NetworkEmbedder(
        network,
        name=f"reid:{found.path.resolve().name}@{state}",
        image_hw=config.image_hw,
        runtime=runtime,
        made_by={"run": str(found.path), "iteration": 0 if untrained else checkpoint.iteration, **checkpoint.made_by},
        compile=compile,
    )


def load_file(file: Path | str, device: str = "auto", *, half: bool = False, compile: bool = False) -> NetworkEmbedder:
    """The network of a file that another program published, ready to embed pictures of the size it was made for.

    Raises:
        WeightsError: no weights, none of a network known here, or a trunk alone, which embeds nothing.
    """
    weights = read_weights(file)
    if isinstance(weights.origin, Checkpoint):
        raise WeightsError(f"{file}: {weights.describe()}; give the run's folder with --run")
    network = network_of(weights.origin)
    if not isinstance(network, Baseline | MGN | PCB):
        raise WeightsError(f"{file}: {weights.describe()}, a trunk without a head; train one on it (network.weights)")
    load_weights(network, weights, features_only=True)
    return NetworkEmbedder(
        network,
        name=f"file:{weights.path.name}",
        image_hw=weights.origin.image_hw,
        runtime=Runtime.for_inference(device, half=half),
        made_by={"file": str(file), "sha256": file_fingerprint(weights.path), "network": weights.describe()},
        compile=compile,
    )


def extract_features(
    embedder: Embedder,
    index: DatasetIndex,
    splits: Sequence[str] = ("query", "gallery"),
    *,
    flip: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    partial: Path | str | None = None,
) -> ReidFeatures:
    """Vectors of unit length for every picture of some splits; with `flip`, of a picture and its mirror image together.

    With `partial`, vectors go to that file as they are made, and an extraction that was interrupted goes on from it,
    as far as the pictures are still what they were: the same as one that was not. It holds a row per picture, as large
    as the feature file will be, and is the caller's to remove. A file of another extraction is begun anew, with a
    notice.

    Raises:
        DatasetError: a split has no images.
        ImageError: a picture is damaged.
        FeatureFileError: a vector is not finite.
        OutputError: `partial` is a file of something else.
        Stopped: a signal came; with `partial`, run again to go on.
    """
    parts = [index.split(split) for split in splits]
    records = tuple(record for part in parts for record in part)
    chosen = DatasetIndex(index.root, index.layout, records, names=index.names)
    meta = {
        "extractor": embedder.name,
        "reid_models": reid_models.__version__,
        "torch": str(torch.__version__),
        "flip": flip,
        "image_hw": list(embedder.image_hw),
        "data": str(index.root),
        "index_fingerprint": index.fingerprint,
        **({"precision": runtime.precision} if (runtime := getattr(embedder, "runtime", None)) else {}),
        **({"network_made_by": made_by} if (made_by := getattr(embedder, "made_by", None)) else {}),
        **({"names": names} if (names := _names_in(chosen)) else {}),
        **({"parts": places} if (places := getattr(embedder, "parts", None)) else {}),
    }
    shape = (len(chosen), embedder.num_features)
    if partial is None:
        rows: _Rows = _Rows(shape)
    else:
        key = fingerprint([json.dumps(meta), *splits, embedder.fingerprint, "rows with hashes"])
        rows = _RowsInFile(shape, Path(partial), key, chosen.paths)
    dataset = PersonDataset(chosen, embedder.image_hw)
    loader = make_loader(dataset, in_order(len(chosen), batch_size, first=rows.done), num_workers=num_workers)
    with rows, progress("extracting", len(chosen), rows.done) as bar:
        for batch in loader:
            vectors = embedder.embed(batch.images)
            if flip:
                vectors = vectors + embedder.embed(batch.images.flip(3))
            _refuse_nonfinite(vectors, chosen, batch)
            rows.append(embedder.finish(vectors).numpy())
            bar.advance(len(vectors))
    return ReidFeatures(
        features=rows.features(),
        pids=chosen.pids,
        camids=chosen.camids,
        splits=np.array([record.split for record in chosen]),
        paths=np.array([Path(os.path.relpath(path, index.root)).as_posix() for path in chosen.paths]),
        meta=meta,
    )


def _names_in(index: DatasetIndex) -> dict[str, str]:
    return {str(pid): index.names[pid] for pid in sorted({*index.pids.tolist()}) if pid in index.names}


def _refuse_nonfinite(vectors: Tensor, index: DatasetIndex, batch: Batch) -> None:
    bad = (~vectors.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise FeatureFileError(
            f"{index[int(batch.rows[bad[0, 0]])].path}: its vector is not finite; extract without half precision, or "
            "with an earlier checkpoint"
        )


def _content_hash(path: Path) -> bytes:
    """Of a picture's content; of none where it cannot be read, which whoever decodes it will say."""
    try:
        return bytes.fromhex(file_fingerprint(path))
    except OSError:
        return b""


class _Rows:
    """Vectors (N, D), filled in from the first row on."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.done = shape, 0
        self._array = np.empty(shape, np.float32)

    def append(self, vectors: np.ndarray) -> None:
        """The next rows."""
        self._array[self.done : self.done + len(vectors)] = vectors
        self.done += len(vectors)

    def features(self) -> np.ndarray:
        """All rows, once they are there."""
        return self._array

    def __enter__(self) -> None:
        """Rows are appended within the block."""

    def __exit__(self, *error: object) -> None:
        """Nothing more will be appended."""


class _RowsInFile(_Rows):
    """The same in a file: a line of text that says what the rows are of, then the rows, in the order they were made.

    Before each row stands the SHA-256 of its picture and the row together. The file may be left at any moment: a row
    that was cut off or damaged is made again, and so is everything from the first picture on that is another by now.

    Raises:
        OutputError: something else lies there; it is left alone.
    """

    def __init__(self, shape: tuple[int, int], file: Path, key: str, paths: Sequence[Path]) -> None:
        self.shape, self.file, self.done = shape, file, 0
        # Before any is decoded: what is replaced later than that has another hash when its row is looked at again.
        self._pictures = [_content_hash(path) for path in paths]
        header = (_ROWS_BEGIN + b"by content " + key.encode()).ljust(_HEADER_BYTES - 1) + b"\n"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("r+b" if file.exists() else "w+b")
        row_bytes = _DIGEST_BYTES + 4 * shape[1]
        found = self._stream.read(_HEADER_BYTES)
        if found == header:
            while self.done < shape[0] and self._is_of(self._pictures[self.done], self._stream.read(row_bytes)):
                self.done += 1
            logger.warning("%s: going on after %d of %d pictures", file, self.done, shape[0])
        elif found.startswith(_ROWS_BEGIN):
            logger.warning("%s: is of another extraction, so this one begins anew", file)
        elif found:
            self._stream.close()
            raise OutputError(f"{file}: holds no rows of an extraction; move it away, or choose another --out")
        if self.done == 0:
            self._stream.seek(0)
            self._stream.write(header)
        self._stream.seek(_HEADER_BYTES + self.done * row_bytes)
        self._stream.truncate()

    def append(self, vectors: np.ndarray) -> None:
        """The next rows."""
        for vector in np.ascontiguousarray(vectors, np.float32):
            self._stream.write(self._digest(self._pictures[self.done], vector.tobytes()) + vector.tobytes())
            self.done += 1
        self._stream.flush()

    def features(self) -> np.ndarray:
        """All rows, read from the file as they are needed."""
        row = np.dtype([("digest", f"V{_DIGEST_BYTES}"), ("vector", np.float32, self.shape[1:])])
        rows: np.ndarray = np.memmap(self.file, row, "r", _HEADER_BYTES, self.shape[:1])
        return rows["vector"]

    def _is_of(self, picture: bytes, row: bytes) -> bool:
        digest, vector = row[:_DIGEST_BYTES], row[_DIGEST_BYTES:]
        return len(vector) == 4 * self.shape[1] and digest == self._digest(picture, vector)

    @staticmethod
    def _digest(picture: bytes, vector: bytes) -> bytes:
        return hashlib.sha256(picture + vector).digest()

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        if self.done == 0:  # nothing to go on from
            self.file.unlink()


def is_feature_file(file: Path) -> bool:
    """Whether a file is an earlier output of an extraction, by its content."""
    try:
        with open_feature_file(file) as arrays:
            return set(_FEATURE_ARRAYS) <= set(arrays) and "reid_models" in json.loads(str(arrays["meta"]))
    except (FeatureFileError, ValueError, TypeError):
        return False


_FEATURE_ARRAYS = ("format", "features", "pids", "camids", "splits", "paths", "meta")
_ROWS_BEGIN = b"reid-models rows "
_HEADER_BYTES, _DIGEST_BYTES = 64, 32
