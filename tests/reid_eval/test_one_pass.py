import math
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_eval import one_pass
from reid_eval.errors import Stopped
from reid_eval.files import ImageError
from reid_eval.one_pass import FeaturesOf, MeasureError, PairValues, Reading, read_once
from reid_eval.similarity import ssim_of_batch
from reid_eval.stopping import stoppable


class Sums:
    """An extractor that gives the sum of a picture's values, and notes how many it gets at a time."""

    num_features = 1

    def __init__(self):
        self.batches = []

    def __call__(self, pixels_batch):
        self.batches.append(len(pixels_batch))
        return np.array([[pixels.sum(dtype=np.int64)] for pixels in pixels_batch], np.float64)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    files = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        files.append(tmp_path / f"{number:02}.png")
    return files


def sums_of(paths) -> list[int]:
    return [int(np.asarray(Image.open(path)).sum()) for path in paths]


def all_pairs(paths) -> list[tuple[Path, Path]]:
    return [(first, second) for first in paths for second in paths if first < second]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("pixels_ahead", [1, 130, 300, 1 << 24])
def test_however_little_may_be_decoded_ahead_every_picture_comes_in_its_turn(paths, monkeypatch, pixels_ahead, workers):
    monkeypatch.setattr(one_pass, "_PIXELS_AHEAD", pixels_ahead)  # a picture has 128
    paths[3].write_bytes(b"damaged")
    paths[7].write_bytes(paths[7].read_bytes()[:80])
    features = FeaturesOf(paths, Sums(), batch_size=5)
    reading = read_once([features], workers=workers, strict=False)
    whole = [path for number, path in enumerate(paths) if number not in (3, 7)]
    assert features.vectors[:, 0].tolist() == sums_of(whole)
    assert features.read_paths == whole == list(reading.met)
    assert set(reading.unreadable) == {paths[3], paths[7]}
    assert reading.described(paths[:4]) == {
        "codecs": {"PNG": 3},
        "modes": {"RGB": 3},
        "sizes": {"16x8": 3},
        "unreadable": 1,
    }


@pytest.mark.parametrize("pixels_ahead", [130, 1 << 24])
def test_no_thread_waits_for_ever_when_a_pass_ends_early(paths, monkeypatch, pixels_ahead):
    monkeypatch.setattr(one_pass, "_PIXELS_AHEAD", pixels_ahead)
    paths[2].write_bytes(b"damaged")
    before = threading.active_count()
    with pytest.raises(ImageError, match=r"02\.png"):
        read_once([FeaturesOf(paths, Sums())], workers=3, strict=True)
    assert threading.active_count() == before


def test_large_pictures_make_small_batches(paths, monkeypatch):
    sums = Sums()
    monkeypatch.setattr(one_pass, "_BATCH_BYTES", 2 * 16 * 8 * 3)
    read_once([FeaturesOf(paths, sums, batch_size=50)])
    assert sums.batches == [2] * 6


def test_a_picture_that_cannot_be_held_is_decoded_again_and_changes_no_value(paths, monkeypatch):
    expected = PairValues(all_pairs(paths), ssim_of_batch, resize_second=False)
    read_once([expected])
    monkeypatch.setattr(one_pass, "_HELD_BYTES", 3 * 16 * 8 * 3)
    values = PairValues(all_pairs(paths), ssim_of_batch, resize_second=False)
    read_once([values])
    assert values.values.tolist() == expected.values.tolist()


def test_a_measure_that_gives_no_number_is_an_error_and_no_pair_that_could_not_be_read(paths):
    def measure(first, second):
        return np.array([math.nan if (a == b).all() else 1.0 for a, b in zip(first, second, strict=True)])

    values = PairValues([(paths[0], paths[1]), (paths[2], paths[2])], measure, resize_second=False)
    with pytest.raises(MeasureError, match=r"02\.png and .*02\.png: measured as what is no number"):
        read_once([values], strict=False)


def test_vectors_that_are_known_need_no_picture(paths, monkeypatch):
    sums = Sums()
    features = FeaturesOf(paths, sums, batch_size=3)
    features.know(np.array([0, 5]), np.array([[-1.0], [-5.0]]))
    for number in (0, 5):
        paths[number].write_bytes(b"not to be read")
    reading = read_once([features], reading=Reading())
    expected = [float(total) for total in sums_of([path for number, path in enumerate(paths) if number not in (0, 5)])]
    assert features.vectors[:, 0].tolist() == [-1.0, *expected[:4], -5.0, *expected[4:]]
    assert set(reading.met) == set(paths) - {paths[0], paths[5]}


def test_who_asks_to_stop_finds_in_the_measure_what_is_done(paths):
    sums = Sums()
    features = FeaturesOf(paths, sums, batch_size=2)
    with stoppable(max_hours=0), pytest.raises(Stopped, match="--max-hours 0 reached"):
        read_once([features])
    assert len(features.rows) <= 2


def test_a_limit_of_pixels_that_is_no_number_is_no_fault_of_the_pictures(paths, monkeypatch):
    monkeypatch.setenv("REID_MAX_PIXELS", "many")
    with pytest.raises(ImageError, match="REID_MAX_PIXELS=many: expected a number"):
        read_once([FeaturesOf(paths, Sums())], strict=False)
