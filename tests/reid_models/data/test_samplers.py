from collections import Counter

import numpy as np
import pytest

from reid_models.data.index import DatasetError
from reid_models.data.samplers import IdentitySampler, ShuffledSampler, in_order

LABELS = np.repeat(np.arange(7), [5, 1, 2, 9, 4, 4, 6])  # 31 pictures of 7 people, one of them pictured once


def rows_of(batch):
    return [draw.row for draw in batch]


@pytest.mark.parametrize(("people", "pictures"), [(2, 2), (3, 4), (7, 3), (5, 1)])
def test_every_batch_holds_p_people_with_k_pictures_each(people, pictures):
    sampler = IdentitySampler(LABELS, people, pictures, seed=0)
    for batch in sampler.batches(0, 40):
        labels = LABELS[rows_of(batch)].reshape(people, pictures)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0])) == people


def test_no_picture_meets_itself_unless_its_person_has_too_few():
    sampler = IdentitySampler(LABELS, 7, 4, seed=0)
    enough = {label for label, count in Counter(LABELS.tolist()).items() if count >= 4}
    for batch in sampler.batches(0, 60):
        counts = Counter(rows_of(batch))
        assert {LABELS[row] for row, count in counts.items() if count > 1}.isdisjoint(enough)


def test_everybody_comes_round_equally_often_and_so_do_their_pictures():
    sampler = IdentitySampler(np.repeat(np.arange(6), 4), 3, 2, seed=1)
    assert sampler.iterations_per_epoch == 4
    for epoch in range(5):
        rows = [row for batch in sampler.batches(epoch * 4, epoch * 4 + 4) for row in rows_of(batch)]
        assert sorted(rows) == list(range(24))


def test_a_batch_depends_on_seed_and_iteration_alone():
    forwards = list(IdentitySampler(LABELS, 3, 2, seed=4).batches(0, 30))
    other = IdentitySampler(LABELS, 3, 2, seed=4)
    backwards = [other.batch(iteration) for iteration in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert forwards != list(IdentitySampler(LABELS, 3, 2, seed=5).batches(0, 30))


def test_every_epoch_has_an_order_of_its_own():
    sampler = IdentitySampler(LABELS, 3, 2, seed=0)
    length = sampler.iterations_per_epoch
    epochs = {str([rows_of(batch) for batch in sampler.batches(e * length, e * length + length)]) for e in range(5)}
    assert len(epochs) == 5


def test_every_draw_has_a_seed_of_its_own():
    sampler = IdentitySampler(LABELS, 3, 2, seed=0)
    seeds = [draw.seed for batch in sampler.batches(0, 50) for draw in batch]
    assert len(set(seeds)) == len(seeds)


def test_too_many_people_per_batch_are_refused_with_both_numbers():
    with pytest.raises(DatasetError, match=r"ids_per_batch is 8, but the training data has 7 identities; set .*=7"):
        IdentitySampler(LABELS, 8, 2, seed=0)


def test_one_identity_is_refused():
    with pytest.raises(DatasetError, match="1 identity; telling people apart needs at least 2"):
        IdentitySampler([3, 3, 3], 1, 2, seed=0)


def test_several_pictures_of_a_person_are_refused_where_everybody_has_one():
    with pytest.raises(DatasetError, match=r"images_per_id is 2, but every identity .* one picture.*kind=shuffled"):
        IdentitySampler(np.arange(5), 2, 2, seed=0)
    assert len(IdentitySampler(np.arange(5), 2, 1, seed=0).batch(0)) == 2


@pytest.mark.parametrize(("people", "pictures"), [(0, 2), (2, 0), (-1, -1)])
def test_a_batch_of_nobody_is_refused(people, pictures):
    with pytest.raises(ValueError, match=f"at least 1 identity with 1 picture, got {people} x {pictures}"):
        IdentitySampler(LABELS, people, pictures, seed=0)


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_shuffled_batch_without_pictures_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        ShuffledSampler(31, batch_size, seed=0)


def test_shuffled_batches_hold_every_picture_at_most_once_per_epoch():
    sampler = ShuffledSampler(31, 4, seed=0)
    assert sampler.iterations_per_epoch == 7
    epochs = [[row for batch in sampler.batches(e * 7, e * 7 + 7) for row in rows_of(batch)] for e in range(3)]
    assert all(len(set(rows)) == 28 for rows in epochs)
    assert epochs[0] != epochs[1]
    assert sampler.batch(9) == ShuffledSampler(31, 4, seed=0).batch(9)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(DatasetError, match="batch_size is 32, but the training data has 31 pictures"):
        ShuffledSampler(31, 32, seed=0)


def test_in_order_gives_every_row_once():
    assert [rows_of(batch) for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]
