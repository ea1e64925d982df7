"""Generated pictures beside photographs in a training: which share of a batch, and what is said of them.

    extra = Extra.open("runs/dgnet/fake/00100000", ratio=0.5, labels="hard")
    run = train_reid(config, data, "runs/with", runtime, extra=extra)

A generated picture wears one person's clothes in another's pose. Its label is the person whose clothes they are, for
every loss that compares pictures; what the classifiers are to say of it is a choice:

hard     that person, as of a photograph
smooth   that person with probability 1 - s, the rest spread over all evenly
teacher  what a network that was trained on photographs says of the picture
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_eval.errors import ReidError
from reid_eval.files import file_fingerprint
from reid_eval.reading import reading
from reid_models.config import ConfigError
from reid_models.data.generated import generated_index, read_card
from reid_models.data.index import DatasetIndex
from reid_models.data.samplers import BatchSampler, Draw
from reid_models.networks import ReidNetwork
from reid_models.runs import RunDir

Labels = Literal["hard", "smooth", "teacher"]
SMOOTHING = 0.3


class ExtraDataError(ReidError):
    """Generated pictures do not go with the photographs, or with the teacher."""


@dataclass(frozen=True)
class Extra:
    """Generated pictures for a training."""

    index: DatasetIndex
    ratio: float
    """of all pictures of a batch"""
    labels: Labels
    teacher: Path | None
    """a run of `reid-models train`, for labels teacher"""
    smoothing: float
    """s of labels smooth"""
    made_by: dict[str, Any]
    """where they come from, for a run's records"""

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        ratio: float = 0.5,
        labels: Labels = "hard",
        teacher: Path | str | None = None,
        smoothing: float = SMOOTHING,
    ) -> Extra:
        """A folder made by `dgnet-gen generate`.

        Raises:
            ManifestError: no such folder, or it is not finished.
            ConfigError: a ratio that is none, or labels teacher without a teacher, or the other way round.
        """
        if not 0 < ratio < 1:
            raise ConfigError(f"--ratio {ratio:g}: expected the generated share of a batch, above 0 and below 1")
        if labels not in get_args(Labels):
            raise ConfigError(f"--labels {labels}: expected {', '.join(get_args(Labels))}")
        if (labels == "teacher") != (teacher is not None):
            raise ConfigError("--labels teacher and --teacher RUN need each other: give both or neither")
        index, card = generated_index(folder), read_card(folder)
        teacher_file = None if teacher is None else RunDir.open(teacher, "reid").checkpoint_file("last")
        made_by = {
            "folder": str(Path(folder).resolve()),
            "checkpoint": card["checkpoint"],
            "manifest": card["manifest_sha256"],
            "images": len(index),
            "ratio": ratio,
            "labels": labels,
            "smoothing": smoothing if labels == "smooth" else None,
            "teacher": None if teacher is None else str(Path(teacher).resolve()),
            "teacher_sha256": None if teacher_file is None else file_fingerprint(teacher_file),
        }
        return cls(index, ratio, labels, None if teacher is None else Path(teacher), smoothing, made_by)

    @classmethod
    def recorded(cls, made_by: Mapping[str, Any]) -> Extra:
        """The generated pictures that a run's records name.

        Raises:
            ManifestError, ConfigError, CheckpointError: they are not there any more, or the record is damaged.
        """
        with reading("run.json", ConfigError, "a record of generated pictures (made_by.extra)"):
            folder, teacher = Path(made_by["folder"]), made_by["teacher"]
            smoothing = SMOOTHING if made_by["smoothing"] is None else float(made_by["smoothing"])
            ratio, labels = float(made_by["ratio"]), made_by["labels"]
        return cls.open(folder, ratio=ratio, labels=labels, teacher=teacher, smoothing=smoothing)

    def joined(self, photographs: DatasetIndex) -> DatasetIndex:
        """The photographs, then these pictures; the labels are those of the photographs.

        Raises:
            ExtraDataError: somebody is generated who is in no photograph.
        """
        if strangers := sorted(set(self.index.labels) - set(photographs.labels)):
            raise ExtraDataError(
                f"{self.index.root}: shows {len(strangers)} people who are in none of the training pictures of "
                f"{photographs.root}, such as {strangers[0]}; generate from the same data"
            )
        records = photographs.records + self.index.records
        return DatasetIndex(photographs.root, photographs.layout, records, names=photographs.names)

    def sampler(self, sampler: BatchSampler, joined: DatasetIndex, seed: int) -> MixedSampler:
        """A sampler of photographs with generated pictures in it."""
        return MixedSampler(sampler, joined.label_array, len(joined) - len(self.index), self.ratio, seed)


class MixedSampler:
    """Another sampler's batches with a share of the pictures replaced by generated ones of the same people.

    `labels` are those of all rows, photographs first; the rows from `num_photographs` on are generated. In a batch of
    B, round(ratio B) places are drawn; where nothing of a person is generated, the photograph stays. So every batch has
    the people that it had, and an epoch as many batches. A batch is a function of the seed and the iteration.
    """

    def __init__(
        self, sampler: BatchSampler, labels: np.ndarray, num_photographs: int, ratio: float, seed: int
    ) -> None:
        self.sampler, self.labels, self.ratio, self.seed = sampler, labels, ratio, seed
        self.iterations_per_epoch = sampler.iterations_per_epoch
        generated = labels[num_photographs:]
        self.rows_of = {
            label: num_photographs + np.flatnonzero(generated == label) for label in np.unique(generated).tolist()
        }

    def batch(self, iteration: int) -> list[Draw]:
        """The batch of one iteration, counted from 0 through all epochs."""
        draws = self.sampler.batch(iteration)
        # The third number keeps these draws apart from those of the sampler and of augmentation.
        generator = np.random.default_rng((self.seed, iteration, 2))
        for place in generator.permutation(len(draws))[: round(self.ratio * len(draws))].tolist():
            rows = self.rows_of.get(int(self.labels[draws[place].row]))
            if rows is not None:
                draws[place] = Draw(int(generator.choice(rows)), draws[place].seed)
        return draws

    def batches(self, first: int, last: int) -> Iterator[list[Draw]]:
        """The batches of the iterations first, ..., last - 1."""
        return (self.batch(iteration) for iteration in range(first, last))


class SoftTargets:
    """What the classifiers are to say of mixed batches."""

    def __init__(
        self,
        *,
        num_ids: int,
        num_photographs: int,
        label_smoothing: float,
        smoothing: float,
        teacher: ReidNetwork | None = None,
    ) -> None:
        self.num_ids, self.num_photographs = num_ids, num_photographs
        self.label_smoothing, self.smoothing, self.teacher = label_smoothing, smoothing, teacher

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Targets (B, K) whose rows sum to 1, of images (B, 3, H, W), their labels (B,) and rows (B,).

        Photographs have their label, smoothed as all training is; generated pictures the teacher's word or, without
        one, their label smoothed by `smoothing`.
        """
        generated = rows.to(labels.device) >= self.num_photographs
        smoothing = torch.where(generated, self.smoothing, self.label_smoothing)[:, None]
        targets = (1 - smoothing) * F.one_hot(labels, self.num_ids) + smoothing / self.num_ids
        if self.teacher is not None and bool(generated.any()):
            said = [logits.float().softmax(1) for logits in self.teacher(images[generated]).logits]
            targets[generated] = torch.stack(said).mean(0)
        return targets
