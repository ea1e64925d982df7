from collections import Counter

import numpy as np
import pytest
import torch

from dgnet_gen.pairs import PairDataset, pair_batches
from reid_eval.files import ImageError, save_image
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord

IMAGE_HW = (32, 16)


@pytest.fixture
def index(tmp_path):
    """Eleven noisy pictures: pids 3, 5 and 9 have three, five and three."""
    return make_index(tmp_path, [3] * 3 + [5] * 5 + [9] * 3)


def make_index(folder, pids):
    generator = np.random.default_rng(0)
    records = []
    for number, pid in enumerate(pids):
        path = folder / f"{pid:04}_c{number % 2 + 1}s1_{number:06}_00.png"
        save_image(path, generator.integers(0, 256, (40, 20, 3), dtype=np.uint8))
        records.append(ImageRecord(path, pid, number % 2 + 1, "train"))
    return DatasetIndex(folder, "market1501", tuple(records))


def make_pairs(index, **changes):
    return PairDataset(index, IMAGE_HW, **({"batch_size": 4, "seed": 0, "pad_px": 2} | changes))


def same(batch, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(batch, other, strict=True))


def test_a_batch_holds_two_sides_with_labels_that_fit(index):
    batch = make_pairs(index).batch(0)
    for images in (batch.anchors_a, batch.positives_a, batch.anchors_b, batch.positives_b):
        assert images.shape == (4, 3, *IMAGE_HW)
    assert batch.labels_a.tolist() == index.label_array[batch.rows_a.numpy()].tolist()
    assert batch.labels_b.tolist() == index.label_array[batch.rows_b.numpy()].tolist()


def test_positives_are_other_pictures_of_the_same_person_drawn_evenly(index):
    pairs = make_pairs(index)
    partners = Counter()
    for iteration in range(600):
        for side in (0, 1):
            for anchor, positive in zip(pairs.anchors(side, iteration), pairs.positives(side, iteration), strict=True):
                assert anchor != positive
                assert index.pids[anchor] == index.pids[positive]
                partners[int(anchor), int(positive)] += 1
    of_first = [count for (anchor, _), count in partners.items() if anchor == 3]
    assert len(of_first) == 4  # all of person 5's other pictures
    assert max(of_first) < 1.5 * min(of_first)


def test_a_person_with_one_picture_is_its_own_positive(tmp_path):
    pairs = make_pairs(make_index(tmp_path, [1, 2, 2, 3]))
    assert all(
        positive == anchor
        for iteration in range(8)
        for anchor, positive in zip(pairs.anchors(0, iteration), pairs.positives(0, iteration), strict=True)
        if anchor in (0, 3)
    )


def test_an_epoch_meets_every_picture_at_most_once_and_the_sides_differ(index):
    pairs = make_pairs(index)
    assert pairs.steps_per_epoch == 2
    for side in (0, 1):
        met = np.concatenate([pairs.anchors(side, iteration) for iteration in (2, 3)])
        assert len(set(met.tolist())) == 8
    assert [pairs.anchors(0, i).tolist() for i in range(4)] != [pairs.anchors(1, i).tolist() for i in range(4)]


def test_a_batch_depends_on_seed_and_iteration_alone(index):
    pairs = make_pairs(index)
    expected = pairs.batch(5)
    assert same(make_pairs(index, cache_bytes=1 << 20).batch(5), expected)
    assert same(pairs.batch(5), expected)
    assert not same(make_pairs(index, seed=1).batch(5), expected)
    assert not same(pairs.batch(6), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_processes(index, num_workers):
    pairs = make_pairs(index)
    before = torch.get_rng_state()
    batches = list(pair_batches(pairs, 3, 7, num_workers=num_workers))
    assert len(batches) == 4
    assert all(same(batch, pairs.batch(iteration)) for iteration, batch in enumerate(batches, start=3))
    assert torch.equal(before, torch.get_rng_state())


def test_the_cast_is_fixed_and_of_different_people(index):
    cast = make_pairs(index).cast(6)
    assert cast == make_pairs(index).cast(6)
    assert sorted(index.pids[cast].tolist()) == [3, 5, 9]


def test_one_person_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="4 training images show 1 people, expected at least 2"):
        make_pairs(make_index(tmp_path, [7] * 4))


def test_a_batch_larger_than_the_data_is_refused_with_a_size_that_fits(tmp_path):
    with pytest.raises(DatasetError, match=r"3 training images, expected at least batch_size \(4\); set batch_size=3"):
        make_pairs(make_index(tmp_path, [1, 1, 2]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_is_named_in_one_line(index, num_workers):
    for path in index.paths:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match="not a readable image") as caught:
        list(pair_batches(make_pairs(index), 0, 2, num_workers=num_workers))
    assert "\n" not in str(caught.value)
