import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch

from reid_eval.files import ImageError, read_pixels, save_image
from reid_eval.stopping import STOP_SIGNALS
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.data.loading import Augmentation, PersonDataset, make_loader
from reid_models.data.samplers import Draw, IdentitySampler, in_order
from reid_models.data.transforms import eval_transform

IMAGE_HW = (32, 16)


@pytest.fixture
def index(tmp_path):
    """Twelve noisy pictures of pids 3, 5 and 9."""
    records = []
    generator = np.random.default_rng(0)
    for number, pid in enumerate(np.repeat([3, 5, 9], 4).tolist()):
        path = tmp_path / f"{pid:04}_c{number % 2 + 1}s1_{number:06}_00.jpg"
        save_image(path, generator.integers(0, 256, (40, 20, 3), dtype=np.uint8))
        records.append(ImageRecord(path, pid, number % 2 + 1, "train"))
    return DatasetIndex(tmp_path, "market1501", tuple(records))


def test_evaluation_batches_hold_every_picture_in_order(index):
    batches = list(make_loader(PersonDataset(index, IMAGE_HW), in_order(len(index), 5)))
    assert [len(batch.rows) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.labels for batch in batches]).tolist() == np.repeat([0, 1, 2], 4).tolist()
    images = torch.cat([batch.images for batch in batches])
    expected = torch.stack([eval_transform(read_pixels(path), IMAGE_HW) for path in index.paths])
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(("num_workers", "cache_mib"), [(0, 1), (2, 0), (2, 1), (0, 6 * 32 * 16 * 3 / (1 << 20))])
def test_a_batch_does_not_depend_on_workers_or_on_the_cache(index, num_workers, cache_mib):
    sampler = IdentitySampler(index.label_array, 2, 2, seed=0)

    def load(first, last, **arguments):
        workers = arguments.pop("num_workers", 0)
        dataset = PersonDataset(index, IMAGE_HW, augmentation=Augmentation(erase=0.5), **arguments)
        return list(make_loader(dataset, sampler.batches(first, last), num_workers=workers))

    plain = load(0, 6)
    other = load(3, 6, num_workers=num_workers, cache_mib=cache_mib)
    for expected, batch in zip(plain[3:], other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, batch, strict=True))


def test_the_same_picture_varies_with_its_draw(index):
    dataset = PersonDataset(index, IMAGE_HW, augmentation=Augmentation())
    images = {dataset[Draw(0, seed)][0].numpy().tobytes() for seed in range(20)}
    assert len(images) > 15


def test_loading_leaves_the_global_random_state_alone(index):
    before = torch.get_rng_state()
    list(make_loader(PersonDataset(index, IMAGE_HW, augmentation=Augmentation()), in_order(12, 4)))
    assert torch.equal(before, torch.get_rng_state())


def test_the_cache_keeps_what_it_has_decoded(index):
    dataset = PersonDataset(index, IMAGE_HW, cache_mib=1)
    before = dataset[Draw(0, 0)][0]
    index.paths[0].unlink()
    torch.testing.assert_close(dataset[Draw(0, 0)][0], before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_picture_is_one_line_that_names_it(index, num_workers):
    broken = index.paths[7]
    broken.write_bytes(broken.read_bytes()[:400])
    loader = make_loader(PersonDataset(index, IMAGE_HW), in_order(12, 2), num_workers=num_workers)
    with pytest.raises(ImageError) as caught:
        list(loader)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_processes_that_load_leave_stop_signals_to_the_one_that_trains(index):
    before = multiprocessing.active_children()
    loader = make_loader(PersonDataset(index, IMAGE_HW), in_order(12, 1), num_workers=2)
    seen = [next(loader), next(loader)]  # one of each process
    workers = [process for process in multiprocessing.active_children() if process not in before]
    for number in STOP_SIGNALS:
        for worker in workers:
            os.kill(worker.pid, number)
    seen += loader
    assert len(workers) == 2
    assert torch.cat([batch.rows for batch in seen]).tolist() == list(range(12))


def test_more_processes_than_processors_are_no_cause_for_a_warning(index):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workers = (os.cpu_count() or 1) + 1
        assert len(list(make_loader(PersonDataset(index, IMAGE_HW), in_order(12, 6), num_workers=workers))) == 2
