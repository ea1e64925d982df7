"""From rows of an index to batches of network input.

    dataset = PersonDataset(train, image_hw=(256, 128), augmentation=Augmentation())
    for batch in make_loader(dataset, sampler.batches(0, 1000), num_workers=4):
        network(batch.images)

What a batch holds depends on the index, the draws and the augmentation alone: not on workers, not on what came before.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reid_eval.errors import ReidError
from reid_eval.stopping import STOP_SIGNALS
from reid_models.data.index import DatasetIndex
from reid_models.data.pixels import PixelStore
from reid_models.data.samplers import Draw
from reid_models.data.transforms import eval_transform, train_transform

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

    The processes leave stop signals to this one, the global random state is not touched, and an error that a user can
    mend arrives here as it was raised there.
    """
    with warnings.catch_warnings():  # more processes than processors are asked for on purpose
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _ErrorsAsValues(make),
            sampler=keys,
            batch_size=None,  # a key makes a whole batch
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            # Its own generator, as the loader would otherwise draw a seed from the global one, which dropout uses too.
            generator=torch.Generator(),
        )
        batches = iter(loader)
    for made in batches:
        if isinstance(made, ReidError):
            raise made
        yield made


class _ErrorsAsValues(Dataset[object]):
    """Hands a user's error on as a value: a worker would turn it into a page of traceback."""

    def __init__(self, make: Callable[[Any], object]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> object:
        try:
            return self.make(key)
        except ReidError as error:
            return error


def _leave_signals_to_the_parent(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
