import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from reid_eval.files import ImageError, read_pixels, save_image
from reid_models.data import loading
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.data.loading import Augmentation, PersonDataset, load_each, make_loader
from reid_models.data.samplers import Draw, IdentitySampler, in_order
from reid_models.data.transforms import eval_transform
from reid_models.training import batch_sheet

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


def test_a_sheet_of_a_batch_calls_people_by_their_names(index):
    batch = PersonDataset(index, IMAGE_HW).batch([Draw(row, 0) for row in range(4)])
    anna, bert, unnamed = (
        batch_sheet(batch, replace(index, names=names), 2).tobytes() for names in ({3: "Anna"}, {3: "Bert"}, {})
    )
    assert len({anna, bert, unnamed}) == 3
    assert batch_sheet(batch, replace(index, names={5: "Cora"}), 2).tobytes() == unnamed  # who is not in it
    batch_sheet(batch, replace(index, names={3: "王小明 \udcff\n with a very long name"}), 2)


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


@pytest.fixture
def remarks(caplog):
    """What has been said so far; nothing was said before."""
    loading._remark.cache_clear()
    caplog.set_level(logging.WARNING)
    yield lambda: [record.getMessage() for record in caplog.records]
    loading._remark.cache_clear()


def test_there_are_no_more_workers_than_processors_and_no_raw_warning(monkeypatch, remarks):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            made = load_each(str, range(20), num_workers=8)
            first = next(made)
            assert len(multiprocessing.active_children()) == 1
            assert [first, *made] == [str(number) for number in range(20)]
    assert remarks() == ["1 of 8 workers read pictures, one for each processor; the result is the same"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_odd_about_pictures_is_said_once(index, remarks, num_workers):
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (index.paths[3], index.paths[10]):
        Image.fromarray(read_pixels(path)).save(path, exif=turned)
    Image.fromarray(read_pixels(index.paths[7])).convert("CMYK").save(index.paths[7])
    for _ in range(2):
        list(make_loader(PersonDataset(index, IMAGE_HW), in_order(12, 2), num_workers=num_workers))
    assert sorted(remarks()) == [
        "some pictures are CMYK and become RGB without their colour profile; 'reid-models check --decode' counts them",
        "some pictures ask for a rotation (Exif) that is not applied; 'reid-models check --decode' counts them",
    ]


@pytest.mark.parametrize("how", ["closed", "failed", "used up"])
def test_workers_end_with_their_iterator(index, how):
    if how == "failed":
        index.paths[3].write_bytes(b"")
    made = make_loader(PersonDataset(index, IMAGE_HW), in_order(12, 1), num_workers=2)
    next(made)
    assert multiprocessing.active_children()
    if how == "closed":
        made.close()
    elif how == "failed":
        with pytest.raises(ImageError):
            list(made)
    else:
        assert len(list(made)) == 11
    assert not multiprocessing.active_children()


def run_python(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_process_whose_iterator_is_left_standing_ends():
    """Its workers ignore the signal by which Python ends them."""
    process = run_python("""
from reid_models.data.loading import load_each
made = load_each(str, range(100), num_workers=2)
print(next(made))
""")
    try:
        assert process.communicate(timeout=100) == ("0\n", "")
    finally:
        process.kill()
    assert process.returncode == 0


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs groups of processes")
def test_signals_to_the_whole_group_neither_end_workers_nor_turn_into_an_error():
    """As Ctrl-C, a closed terminal and a scheduler send them, from before the workers are there until they are done."""
    process = run_python(
        """
import os, signal, time
from reid_eval.stopping import STOP_SIGNALS
from reid_models.data.loading import load_each
def make(number):
    time.sleep(0.02)
    return number
main = os.getpid()
def fatal_to_workers(*_):
    if os.getpid() != main:
        os._exit(1)
for number in STOP_SIGNALS:
    signal.signal(number, fatal_to_workers)
print("ready", flush=True)
print(sum(load_each(make, range(60), num_workers=2)), flush=True)
""",
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        assert process.communicate() == (f"{sum(range(60))}\n", "")
    finally:
        process.kill()
