"""From rows of an index to batches of network input.

    dataset = PersonDataset(train, image_hw=(256, 128), augmentation=Augmentation())
    for batch in make_loader(dataset, sampler.batches(0, 1000), num_workers=4):
        network(batch.images)

What a batch holds depends on the index, the draws and the augmentation alone: not on workers, not on what came before.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reid_eval.errors import ReidError
from reid_eval.stopping import STOP_SIGNALS
from reid_models.data.index import DatasetIndex
from reid_models.data.pixels import PixelStore, take_remarks
from reid_models.data.samplers import Draw
from reid_models.data.transforms import eval_transform, train_transform

logger = logging.getLogger(__name__)

K = TypeVar("K")
B = TypeVar("B")


class Batch(NamedTuple):
    """One step's pictures."""

    images: Tensor
    """(B, 3, H, W) float32 network input"""
    labels: Tensor
    """(B,) int64 identities renumbered 0 .. num_ids - 1 within the dataset's index"""
    rows: Tensor
    """(B,) int64 rows of the dataset's index"""


@dataclass(frozen=True)
class Augmentation:
    """How a training picture is varied; see `train_transform`."""

    flip: float = 0.5
    pad_px: int = 10
    erase: float = 0.0


class PersonDataset:
    """Pictures of an index as network input, addressed by `Draw`; without augmentation the draw's seed does nothing.

    `cache_mib` bounds the decoded pictures that each loading process keeps.
    """

    def __init__(
        self,
        index: DatasetIndex,
        image_hw: tuple[int, int],
        *,
        augmentation: Augmentation | None = None,
        cache_mib: float = 0,
    ) -> None:
        self.index, self.image_hw, self.augmentation = index, image_hw, augmentation
        self.labels = index.label_array
        self.store = PixelStore(index, image_hw, int(cache_mib * (1 << 20)))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        """One image (3, H, W), its label and its row.

        Raises:
            ImageError: the file is missing or damaged.
        """
        row, seed = draw
        pixels = self.store.read(row)
        if self.augmentation is None:
            image = eval_transform(pixels, self.image_hw)
        else:
            image = train_transform(
                pixels,
                self.image_hw,
                generator=torch.Generator().manual_seed(seed),
                flip=self.augmentation.flip,
                pad=self.augmentation.pad_px,
                erase=self.augmentation.erase,
            )
        return image, int(self.labels[row]), row

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """The pictures of some draws together.

        Raises:
            ImageError: a file is missing or damaged.
        """
        images, labels, rows = zip(*(self[draw] for draw in draws), strict=True)
        # Each picture lies in memory pixel by pixel, as it was decoded, and so does the batch: nothing is rearranged.
        stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return Batch(stacked, torch.tensor(labels), torch.tensor(rows))


def make_loader(
    dataset: PersonDataset, batches: Iterable[list[Draw]], *, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches, in the order given, decoded by `num_workers` processes (0: by this one).

    Raises:
        ImageError: a file is missing or damaged, as soon as its batch is reached.
    """
    return load_each(dataset.batch, batches, num_workers=num_workers, pin_memory=pin_memory)


def load_each(
    make: Callable[[K], B], keys: Iterable[K], *, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[B]:
    """make(key) for every key, in order, made ahead of time by `num_workers` processes (0: by this one).

    There are never more processes than processors. They leave stop signals to this one, also those that a terminal or a
    scheduler sends to the whole group, and end with the iterator or with this process. The global random state is not
    touched, and an error that a user can mend arrives here as it was raised there.
    """
    loader = DataLoader(
        _ErrorsAsValues(make),
        sampler=keys,
        batch_size=None,  # a key makes a whole batch
        num_workers=_at_most_one_a_processor(num_workers),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
        # Its own generator, as the loader would otherwise draw a seed from the global one, which dropout uses too.
        generator=torch.Generator(),
    )
    others = {*multiprocessing.active_children()}
    with _signals_held():  # until each worker has said that it leaves them to us
        iterator = iter(loader)
    workers = {process: os.getpid() for process in multiprocessing.active_children() if process not in others}
    _workers.update(workers)
    try:
        for made, remarks in iterator:
            for remark in remarks:
                _remark(remark)
            if isinstance(made, ReidError):
                raise made
            yield made
    finally:
        del iterator  # which asks the workers to end, and waits for them
        for worker in workers:
            if worker.is_alive():  # it is stuck
                worker.kill()
            del _workers[worker]


class _ErrorsAsValues(Dataset[object]):
    """Hands a user's error on as a value, where a worker would turn it into a page of traceback; and what there is to
    remark on the pictures that were read."""

    def __init__(self, make: Callable[[Any], object]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> tuple[object, list[str]]:
        made: object
        try:
            made = self.make(key)
        except ReidError as error:
            made = error
        return made, take_remarks()


@cache
def _remark(text: str) -> None:
    """Say something once in the life of this process."""
    logger.warning(text)


def _at_most_one_a_processor(num_workers: int) -> int:
    """Each worker keeps a processor busy, so more of them gain nothing but pictures in memory."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers > there:
        _remark(f"{there} of {num_workers} workers read pictures, one for each processor; the result is the same")
    return min(num_workers, there)


def _leave_signals_to_the_parent(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Within the block stop signals wait, also for processes that begin there."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_workers: dict[BaseProcess, int] = {}
"""those at work, with the process that began them"""


@atexit.register
def _end_workers() -> None:
    """Where an iterator is left standing, its workers would wait for ever, as they ignore the signal that ends them."""
    mine = [worker for worker, parent in _workers.items() if parent == os.getpid() and worker.is_alive()]
    if mine and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their end for an error
    for worker in mine:
        worker.kill()
