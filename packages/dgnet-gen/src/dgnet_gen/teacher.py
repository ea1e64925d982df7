"""Soft labels for swapped pictures, from one or more trained re-identification networks.

    teacher = Teacher.load(["runs/teacher"], index, train_bn=True, dropout=True)
    target = teacher.soft_labels(x_ba, labels_a, labels_b)      # (B, K), rows sum to 1

A teacher is a run of `reid-models train`, one of its checkpoints, or a published file of the re-id baseline
(`net_last.pth`; beside it opts.yaml, which tells the stride). It must know the people of the training pictures, in
the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.losses import soft_target
from dgnet_gen.networks.batches import in_batches, norm_by_batch
from reid_eval.errors import ReidError
from reid_eval.files import file_fingerprint
from reid_models.config import config_from_dict
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.networks import ReidNetwork
from reid_models.published import WeightsError
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, build_network
from reid_models.weights import load_weights, network_of, read_weights

PUBLISHED_FILE = "net_last.pth"


class TeacherError(ReidError):
    """A teacher is missing where one is needed, or is of other people than the training pictures."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A re-identification network and the size of picture that it was trained on."""

    network: ReidNetwork
    image_hw: tuple[int, int]
    made_by: dict[str, Any]
    """file and its fingerprint"""


class Teacher:
    """Frozen networks whose classifiers are asked about swapped pictures.

    `train_bn`: batch norms use the batch, each picture batch on its own. `dropout`: dropout acts. `style` and `decay`
    as in `losses.soft_target`. A network with several classifiers says the mean of their probabilities. Pictures of
    another size than a network's are resized for it.
    """

    def __init__(
        self,
        networks: Sequence[TrainedNetwork],
        *,
        train_bn: bool = True,
        dropout: bool = False,
        style: int = 0,
        decay: float = 1.0,
    ) -> None:
        self.networks, self.style, self.decay = networks, style, decay
        for trained in networks:
            trained.network.eval().requires_grad_(False)
            norm_by_batch(trained.network)
            for part in trained.network.modules():
                if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    part.train(train_bn)
                elif isinstance(part, nn.Dropout):
                    part.train(dropout)

    @classmethod
    def load(
        cls,
        paths: Sequence[Path | str],
        index: DatasetIndex,
        runtime: Runtime,
        *,
        train_bn: bool = True,
        dropout: bool = False,
        style: int = 0,
        decay: float = 1.0,
    ) -> Teacher:
        """The teachers at some paths, for the training pictures `index`.

        Raises:
            TeacherError: a teacher is of another number of people, or of other pictures.
            CheckpointError, WeightsError: no teacher there, damaged, or a network that classifies nobody.
        """
        networks = [_load(Path(path), index) for path in paths]
        for trained in networks:
            runtime.prepare(trained.network)
        return cls(networks, train_bn=train_bn, dropout=dropout, style=style, decay=decay)

    @property
    def made_by(self) -> list[dict[str, Any]]:
        """The files it came from, for a run's records."""
        return [trained.made_by for trained in self.networks]

    @torch.no_grad()
    def soft_labels(self, images: Tensor, appearance: Tensor, structure: Tensor, batches: int = 1) -> Tensor:
        """What the primary head is to say of pictures, which may be several batches of equal size after one another.

        Shapes:
            images                 (B, 3, H, W)   network input, B a multiple of batches
            appearance, structure  (B,)           labels of who lent clothes and pose
            returns                (B, K)         rows sum to 1, float32 at least
        """
        said = [self.probabilities(trained, images, batches) for trained in self.networks]
        return soft_target(said, appearance, structure, style=self.style, decay=self.decay)

    def recognised(self, images: Tensor, labels: Tensor) -> list[float]:
        """The share of photographs (B, 3, H, W) that each network names rightly, of labels (B,)."""
        said = [self.probabilities(trained, images).argmax(1) for trained in self.networks]
        return [float((first == labels).float().mean()) for first in said]

    @torch.no_grad()
    def probabilities(self, trained: TrainedNetwork, images: Tensor, batches: int = 1) -> Tensor:
        """One network's identities (B, K) of images (B, 3, H, W), mean of the pictures as they are and mirrored."""
        if images.shape[-2:] != trained.image_hw:
            images = F.interpolate(images, size=trained.image_hw, mode="bilinear", antialias=True)
        views = torch.cat([view for part in images.chunk(batches) for view in (part, part.flip(3))])
        with in_batches(trained.network, 2 * batches):  # mirrored pictures are batches of their own
            seen = trained.network(views).logits
        wide = torch.promote_types(images.dtype, torch.float32)
        said = torch.stack([logits.to(wide).softmax(1) for logits in seen])  # (heads, 2 B, K)
        return said.unflatten(1, (batches, 2, -1)).mean(dim=(0, 2)).flatten(0, 1)


def _load(path: Path, index: DatasetIndex) -> TrainedNetwork:
    file = _file_of(path)
    weights = read_weights(file)
    made_by = {"file": str(file.resolve()), "fingerprint": file_fingerprint(weights.path)[:16]}
    if isinstance(weights.origin, Checkpoint):
        checkpoint = weights.origin
        if checkpoint.kind != "reid":
            raise WeightsError(f"{file}: {weights.describe()}, expected a teacher, a run of reid-models train")
        _refuse_strangers(path, checkpoint.made_by | {"num_ids": checkpoint.num_ids(file)}, index)
        config = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(file))
        network = build_network(config.network, checkpoint.num_ids(file), load_weights=False)
        image_hw = config.image_hw
    else:
        if weights.origin.kind == "trunk":
            raise WeightsError(f"{file}: {weights.describe()}, which classifies nobody; expected a trained teacher")
        _refuse_strangers(path, {"num_ids": weights.origin.num_ids}, index)
        made = network_of(weights.origin)
        assert isinstance(made, ReidNetwork)
        network, image_hw = made, weights.origin.image_hw
    load_weights(network, weights)
    return TrainedNetwork(network, image_hw, made_by)


def _file_of(path: Path) -> Path:
    """The weights at a path: the file itself, a run's newest checkpoint, or a folder's net_last.pth."""
    if not path.is_dir():
        return path
    if (path / "run.json").is_file():
        return RunDir.open(path, "reid").checkpoint_file("last")
    if (path / PUBLISHED_FILE).is_file():
        return path / PUBLISHED_FILE
    raise WeightsError(
        f"{path}: no teacher here; expected a run of reid-models train (run.json) or the re-id baseline's "
        f"{PUBLISHED_FILE}"
    )


def _refuse_strangers(path: Path, made_by: dict[str, Any], index: DatasetIndex) -> None:
    """A teacher of other people would teach wrong names."""
    if made_by["num_ids"] != index.num_ids:
        raise TeacherError(
            f"{path}: this teacher knows {made_by['num_ids']} people, the training pictures in {index.root} show "
            f"{index.num_ids}; train a teacher on the same data"
        )
    fingerprint = made_by.get("index_fingerprint")
    if fingerprint is None or fingerprint == index.fingerprint:
        return
    # Other files may still show the same people: a raw dataset and its prepared folder.
    try:
        theirs = DatasetIndex.open(made_by["data"]).split("train_all")
    except (DatasetError, KeyError):
        raise TeacherError(
            f"{path}: this teacher was trained on other pictures (fingerprint {fingerprint}, here "
            f"{index.fingerprint}), and its data is gone, so whether it knows the same people cannot be told; "
            "train a teacher on this data"
        ) from None
    if theirs.fingerprint != fingerprint or list(theirs.labels) != list(index.labels):
        raise TeacherError(
            f"{path}: this teacher knows {made_by['num_ids']} other people (trained on {made_by['data']}, fingerprint "
            f"{fingerprint}, here {index.fingerprint}); train a teacher on this data"
        )
