"""Which pictures meet in which training step.

A batch is a pure function of the seed and the iteration: nothing is remembered from step to step, so a resumed run
sees exactly the batches it would have seen, however many processes load them.

    sampler = IdentitySampler(index.label_array, ids_per_batch=16, images_per_id=4, seed=0)
    for draws in sampler.batches(first=500, last=1000):
        rows = [draw.row for draw in draws]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np

from reid_models.data.index import DatasetError


class Draw(NamedTuple):
    """One picture of a batch: its row in the index, and the seed of its augmentation."""

    row: int
    seed: int


class BatchSampler(Protocol):
    """What a trainer needs to know of a sampler."""

    @property
    def iterations_per_epoch(self) -> int:
        """How many batches hold about as many pictures as there are."""

    def batch(self, iteration: int) -> list[Draw]:
        """The batch of one iteration, counted from 0 through all epochs."""

    def batches(self, first: int, last: int) -> Iterator[list[Draw]]:
        """The batches of the iterations first, ..., last - 1."""


class IdentitySampler:
    """Batches of `ids_per_batch` different identities with `images_per_id` pictures of each, side by side.

    Identities come round in shuffled order, all equally often, however many pictures they have; each goes through its
    own pictures in shuffled order and starts over when it has none left. Whoever is left over when a round of
    identities does not divide evenly waits for the next round. An epoch has as many batches as hold all pictures once
    (epoch "images"), or all identities once (epoch "identities").

    Raises:
        DatasetError: fewer than two identities, or fewer than `ids_per_batch`; no identity has two pictures and
            `images_per_id` asks for more than one.
        ValueError: `ids_per_batch` or `images_per_id` is below 1.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        ids_per_batch: int,
        images_per_id: int,
        seed: int,
        *,
        epoch: Literal["images", "identities"] = "images",
    ) -> None:
        if min(ids_per_batch, images_per_id) < 1:
            raise ValueError(f"expected at least 1 identity with 1 picture, got {ids_per_batch} x {images_per_id}")
        labels = np.asarray(labels)
        self.rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.ids_per_batch, self.images_per_id, self.seed = ids_per_batch, images_per_id, seed
        if len(self.rows_of) < 2:
            raise DatasetError(f"training data has {len(self.rows_of)} identity; telling people apart needs at least 2")
        if ids_per_batch > len(self.rows_of):
            raise DatasetError(
                f"sampler.ids_per_batch is {ids_per_batch}, but the training data has {len(self.rows_of)} identities; "
                f"set sampler.ids_per_batch={len(self.rows_of)} or fewer"
            )
        if images_per_id > 1 and max(map(len, self.rows_of)) == 1:
            raise DatasetError(
                f"sampler.images_per_id is {images_per_id}, but every identity of the training data has one picture: "
                "nobody can be compared with another picture of themselves; add pictures, or set sampler.kind=shuffled"
            )
        if epoch == "images":
            self.iterations_per_epoch = max(1, round(len(labels) / (ids_per_batch * images_per_id)))
        else:
            self.iterations_per_epoch = -(-len(self.rows_of) // ids_per_batch)
        self._epoch_rows = lru_cache(maxsize=2)(self._plan_epoch)

    def batch(self, iteration: int) -> list[Draw]:
        """The batch of one iteration, counted from 0 through all epochs."""
        epoch, position = divmod(iteration, self.iterations_per_epoch)
        return _with_seeds(self._epoch_rows(epoch)[position], self.seed, iteration)

    def batches(self, first: int, last: int) -> Iterator[list[Draw]]:
        """The batches of the iterations first, ..., last - 1."""
        return (self.batch(iteration) for iteration in range(first, last))

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """(iterations_per_epoch, B) rows."""
        generator = np.random.default_rng((self.seed, epoch))
        per_round = len(self.rows_of) // self.ids_per_batch
        rounds = -(-self.iterations_per_epoch // per_round)
        waiting: list[list[int]] = [[] for _ in self.rows_of]
        batches = []
        for _ in range(rounds):
            order = generator.permutation(len(self.rows_of))[: per_round * self.ids_per_batch]
            for people in order.reshape(per_round, self.ids_per_batch):
                rows: list[int] = []
                for person in people:
                    queue = waiting[person]
                    while len(queue) < self.images_per_id:
                        again = generator.permutation(self.rows_of[person]).tolist()
                        # Rows that still wait go last, so that no picture meets itself unless there are too few.
                        queue = [*queue, *(row for row in again if row not in queue), *queue]
                    rows += queue[: self.images_per_id]
                    waiting[person] = queue[self.images_per_id :]
                batches.append(rows)
        return np.array(batches[: self.iterations_per_epoch])


class ShuffledSampler:
    """Batches of `batch_size` pictures, every picture at most once per epoch; what does not fill a batch is left out.

    Raises:
        DatasetError: there are fewer pictures than one batch holds.
        ValueError: `batch_size` is below 1.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > num_rows:
            raise DatasetError(
                f"sampler.batch_size is {batch_size}, but the training data has {num_rows} pictures; "
                f"set sampler.batch_size={num_rows} or fewer"
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.iterations_per_epoch = num_rows // batch_size
        self._order = lru_cache(maxsize=2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(num_rows))

    def batch(self, iteration: int) -> list[Draw]:
        """The batch of one iteration, counted from 0 through all epochs."""
        epoch, position = divmod(iteration, self.iterations_per_epoch)
        rows = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return _with_seeds(rows, self.seed, iteration)

    def batches(self, first: int, last: int) -> Iterator[list[Draw]]:
        """The batches of the iterations first, ..., last - 1."""
        return (self.batch(iteration) for iteration in range(first, last))


def in_order(num_rows: int, batch_size: int, *, first: int = 0) -> Iterator[list[Draw]]:
    """All rows from `first` on, in order; the last batch may be smaller. For evaluation, where nothing is drawn."""
    for start in range(first, num_rows, batch_size):
        yield [Draw(row, 0) for row in range(start, min(start + batch_size, num_rows))]


def _with_seeds(rows: np.ndarray, seed: int, iteration: int) -> list[Draw]:
    # The third number keeps these draws apart from those of the epoch's order.
    seeds = np.random.default_rng((seed, iteration, 1)).integers(0, 1 << 62, size=len(rows))
    return [Draw(int(row), int(draw_seed)) for row, draw_seed in zip(rows, seeds, strict=True)]
