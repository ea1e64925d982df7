"""From pictures to vectors: any embedder over any index gives a feature file.

embedder = load_embedder("runs/teacher", which="best")
features = extract_features(embedder, DatasetIndex.open("data/market"))
features.save("features.npz")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import reid_models
from reid_eval.features import ReidFeatures
from reid_eval.files import file_fingerprint
from reid_eval.progress import track
from reid_models.config import ConfigError, config_from_dict
from reid_models.data.index import DatasetIndex
from reid_models.data.loading import PersonDataset, make_loader
from reid_models.data.samplers import in_order
from reid_models.data.transforms import eval_transform
from reid_models.networks import MGN, PCB, Baseline, ReidNetwork
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import WeightsError, load_weights, network_of, read_weights

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

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) on any device to vectors (B, num_features), float32, on the CPU."""


class NetworkEmbedder:
    """An `Embedder` around a network, which is set to evaluation for each call."""

    def __init__(
        self,
        network: ReidNetwork,
        *,
        name: str,
        image_hw: tuple[int, int],
        num_features: int,
        runtime: Runtime,
        made_by: dict[str, Any] | None = None,
    ) -> None:
        self.network, self.runtime = network, runtime
        self.name, self.image_hw, self.num_features = name, image_hw, num_features
        self.made_by = made_by or {}

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) on any device to vectors (B, num_features), float32, on the CPU."""
        was_training = self.network.training
        self.network.eval()
        with torch.inference_mode(), self.runtime.autocast():
            embeddings = self.network.embed(self.runtime.to_device(images))
        self.network.train(was_training)
        return embeddings.float().cpu()


def load_embedder(
    run: Path | str, which: Which = "last", device: str = "auto", *, untrained: bool = False
) -> NetworkEmbedder:
    """The network of a trained run, ready to embed; needs nothing but the run's folder.

    `untrained` gives the same network with the weights that its training started from: what it is to be compared with.

    Raises:
        CheckpointError: no run of a re-identification network there, or no such checkpoint.
        WeightsError: `untrained`, and the run started from a weight file that is gone.
    """
    from reid_models.training import ReidTrainConfig, build_network  # which imports this module to evaluate with

    found = RunDir.open(run, "reid")
    checkpoint = found.load(which)
    config = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(found.checkpoint_file(which)))
    runtime = Runtime.from_environment(device, config.precision)
    runtime.seed_everything(config.seed)
    start = found.made_by.get("weights")  # a file given to the training in place of the trunk's weights
    network = build_network(config.network, checkpoint.made_by["num_ids"], load_weights=untrained and not start)
    if untrained and start:
        load_weights(network, start["file"], start["dropped"])
    if not untrained:
        # A moving average, where one was kept, is what was evaluated.
        network.load_state_dict(checkpoint.networks.get("average", checkpoint.networks["reid"]))
    state = "untrained" if untrained else str(checkpoint.iteration)
    return NetworkEmbedder(
        runtime.prepare(network).eval(),
        name=f"reid:{found.path.resolve().name}@{state}",
        image_hw=config.image_hw,
        num_features=network.num_features,
        runtime=runtime,
        made_by={"run": str(found.path), "iteration": 0 if untrained else checkpoint.iteration, **checkpoint.made_by},
    )


def load_file(file: Path | str, device: str = "auto") -> NetworkEmbedder:
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
    runtime = Runtime.from_environment(device)
    return NetworkEmbedder(
        runtime.prepare(network).eval(),
        name=f"file:{Path(file).name}",
        image_hw=weights.origin.image_hw,
        num_features=network.num_features,
        runtime=runtime,
        made_by={"file": str(file), "sha256": file_fingerprint(file), "network": weights.describe()},
    )


def extract_features(
    embedder: Embedder,
    index: DatasetIndex,
    splits: Sequence[str] = ("query", "gallery"),
    *,
    flip: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
) -> ReidFeatures:
    """Vectors of unit length for every picture of some splits; with `flip`, of a picture and its mirror image together.

    Raises:
        DatasetError: a split has no images.
        ImageError: a picture is damaged.
    """
    parts = [index.split(split) for split in splits]
    chosen = DatasetIndex(index.root, index.layout, tuple(record for part in parts for record in part))
    features = np.empty((len(chosen), embedder.num_features), np.float32)
    dataset = PersonDataset(chosen, embedder.image_hw)
    loader = make_loader(dataset, in_order(len(chosen), batch_size), num_workers=num_workers)
    for batch in track(loader, "extracting", total=-(-len(chosen) // batch_size)):
        vectors = embedder.embed(batch.images)
        if flip:
            vectors = vectors + embedder.embed(batch.images.flip(3))
        features[batch.rows.numpy()] = nn.functional.normalize(vectors, dim=1).numpy()
    return ReidFeatures(
        features=features,
        pids=chosen.pids,
        camids=chosen.camids,
        splits=np.array([record.split for record in chosen]),
        paths=np.array([Path(os.path.relpath(path, index.root)).as_posix() for path in chosen.paths]),
        meta={
            "extractor": embedder.name,
            "reid_models": reid_models.__version__,
            "torch": str(torch.__version__),
            "flip": flip,
            "image_hw": list(embedder.image_hw),
            "data": str(index.root),
            "index_fingerprint": index.fingerprint,
            **({"network_made_by": made_by} if (made_by := getattr(embedder, "made_by", None)) else {}),
        },
    )


class FrechetExtractor:
    """A trained re-identification network as the features of a Frechet distance: the domain's own."""

    quotable = True

    def __init__(self, embedder: NetworkEmbedder) -> None:
        self.embedder = embedder
        self.name, self.num_features = embedder.name, embedder.num_features
        height, width = embedder.image_hw
        self.description = f"embeddings of {embedder.name}, {self.num_features} features, bicubic to {height}x{width}"

    def __call__(self, pixels_batch: list[np.ndarray]) -> np.ndarray:
        """Pixels of any sizes to embeddings (B, num_features), float32, of whatever length they have."""
        images = torch.stack([eval_transform(pixels, self.embedder.image_hw) for pixels in pixels_batch])
        return self.embedder.embed(images).numpy()


def frechet_extractor(argument: str, device: str = "auto") -> FrechetExtractor:
    """What `reid-eval fid --extractor reid:RUN` measures with; `argument` is the run's folder.

    Raises:
        CheckpointError: there is no such run, or it has no checkpoint yet.
    """
    return FrechetExtractor(load_embedder(argument, device=device))
