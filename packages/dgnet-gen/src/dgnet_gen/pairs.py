"""Which two people meet in a step, and which second picture of each.

Two independent passes over the training pictures, a and b, give the anchors; each anchor comes with a positive,
another picture of the same person. What a step sees is a function of (seed, iteration) alone: the number of
workers changes nothing, and a resumed run meets the same pairs.

    pairs = PairDataset(index.split("train_all"), (256, 128), batch_size=8, seed=0)
    pairs.batch(1000).anchors_a      # (8, 3, 256, 128)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.loading import load_each
from reid_models.data.pixels import PixelStore
from reid_models.data.transforms import train_transform


class PairBatch(NamedTuple):
    """Two batches of people and a second picture of each; labels (B,), rows of the index (B,)."""

    anchors_a: Tensor
    positives_a: Tensor
    labels_a: Tensor
    anchors_b: Tensor
    positives_b: Tensor
    labels_b: Tensor
    rows_a: Tensor
    rows_b: Tensor


class PairDataset:
    """The batches of a training, by iteration.

    `pad_px` is the padding of the random crop, in pixels of the network input.

    Raises:
        DatasetError: fewer pictures than a batch holds, or a single identity.
    """

    def __init__(
        self,
        index: DatasetIndex,
        image_hw: tuple[int, int],
        *,
        batch_size: int,
        seed: int,
        flip: float = 0.5,
        pad_px: int = 10,
        cache_bytes: int = 0,
    ) -> None:
        if index.num_ids < 2:
            raise DatasetError(
                f"{index.root}: {len(index)} training images show {index.num_ids} people, expected at least 2 to swap "
                "clothes between; is this the whole dataset?"
            )
        if len(index) < batch_size:
            raise DatasetError(
                f"{index.root}: {len(index)} training images, expected at least batch_size ({batch_size}); "
                f"set batch_size={len(index)} or less"
            )
        self.store = PixelStore(index, image_hw, cache_bytes)
        self.image_hw, self.batch_size, self.seed = image_hw, batch_size, seed
        self.flip, self.pad_px = flip, pad_px
        self.labels = index.label_array
        self._rows_of = [np.flatnonzero(self.labels == label) for label in range(index.num_ids)]

    @property
    def steps_per_epoch(self) -> int:
        """Iterations in one pass over the pictures; an incomplete last batch is left out."""
        return len(self.labels) // self.batch_size

    def anchors(self, side: int, iteration: int) -> np.ndarray:
        """The rows of side 0 (a) or 1 (b) at a 0-based iteration, (B,); each side has its own order in every epoch."""
        epoch, position = divmod(iteration, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, side, epoch]).permutation(len(self.labels))
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def positives(self, side: int, iteration: int) -> np.ndarray:
        """For each anchor another row of the same person, drawn evenly; itself when there is no other."""
        rng = np.random.default_rng([self.seed, 2 + side, iteration])
        return np.array([self._another(int(row), rng) for row in self.anchors(side, iteration)])

    def _another(self, row: int, rng: np.random.Generator) -> int:
        own = self._rows_of[self.labels[row]]
        others = own[own != row]
        return int(rng.choice(others)) if len(others) else row

    def cast(self, count: int) -> list[int]:
        """Rows of up to `count` different people, the same every time: who is shown on sample sheets."""
        rng = np.random.default_rng([self.seed, 5])
        people = rng.permutation(len(self._rows_of))[:count]
        return [int(rng.choice(self._rows_of[label])) for label in people]

    def batch(self, iteration: int) -> PairBatch:
        """The batch of a 0-based iteration.

        Raises:
            ImageError: a file is missing or damaged.
        """
        seed = int(np.random.SeedSequence([self.seed, 4, iteration]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        sides = []
        for side in (0, 1):
            anchors, positives = self.anchors(side, iteration), self.positives(side, iteration)
            images = [self._images(rows, generator) for rows in (anchors, positives)]
            sides.append((*images, torch.from_numpy(self.labels[anchors]), torch.from_numpy(anchors)))
        (a, a_positives, a_labels, a_rows), (b, b_positives, b_labels, b_rows) = sides
        return PairBatch(a, a_positives, a_labels, b, b_positives, b_labels, a_rows, b_rows)

    def _images(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        return torch.stack(
            [
                train_transform(
                    self.store.read(int(row)), self.image_hw, generator=generator, flip=self.flip, pad=self.pad_px
                )
                for row in rows
            ]
        )


def pair_batches(pairs: PairDataset, start: int, stop: int, *, num_workers: int) -> Iterator[PairBatch]:
    """The batches of iterations start .. stop - 1, in order, made by `num_workers` processes (0: by this one)."""
    return load_each(pairs.batch, range(start, stop), num_workers=num_workers)
