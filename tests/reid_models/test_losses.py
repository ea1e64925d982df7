import math

import pytest
import torch
import torch.nn.functional as F

from reid_models.losses import (
    CenterLoss,
    batch_hard_triplet,
    circle_loss,
    cross_entropy,
    hardest_distances,
    margin_sample_mining,
    pairwise_distance,
    spread_of_distances,
)

ODD_BATCHES = pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5], [3], [2, 0, 1, 0, 2, 1, 0, 7, 2]],
    ids=["pairs", "odd-one-out", "all-different", "all-same", "alone", "mixed"],
)

METRIC_LOSSES = pytest.mark.parametrize(
    "loss",
    [
        lambda features, labels: batch_hard_triplet(features, labels, margin=0.3),
        lambda features, labels: batch_hard_triplet(features, labels, margin=None),
        lambda features, labels: margin_sample_mining(features, labels, margin=0.3),
        circle_loss,
        lambda features, labels: CenterLoss(1, 10, features.shape[1])([features], labels),
    ],
    ids=["triplet", "soft-triplet", "msml", "circle", "center"],
)


def random_features(count, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64, requires_grad=True)


def wavy_features():
    """(12, 8) float64, four identities of three: the case with published results."""
    i = torch.arange(12, dtype=torch.float64)[:, None]
    k = torch.arange(8, dtype=torch.float64)[None, :]
    return torch.sin(1.7 * i + 0.9 * k) + 0.3 * torch.cos(3.1 * i * k), torch.arange(12) // 3


def test_the_features_of_the_published_results_are_these():
    features, _ = wavy_features()
    expected = torch.tensor([0.3, 1.0833269096, 1.2738476309], dtype=torch.float64)
    torch.testing.assert_close(features[0, :3], expected)
    assert features.sum().item() == pytest.approx(9.6644285870)


@pytest.mark.parametrize(("margin", "expected"), [(1.2, 3.833641825689), (0.3, 2.933641825689)])
def test_batch_hard_triplet_gives_the_published_value(margin, expected):
    features, labels = wavy_features()
    assert batch_hard_triplet(features, labels, margin=margin).item() == pytest.approx(expected, abs=1e-10)


def test_batch_hard_triplet_gives_the_published_gradient():
    features, labels = wavy_features()
    features.requires_grad_()
    batch_hard_triplet(features, labels, margin=1.2).backward()
    assert features.grad.norm().item() == pytest.approx(0.641818637855, abs=1e-10)
    assert features.grad[0, 0].item() == pytest.approx(0.014087146422, abs=1e-10)


def test_soft_margin_triplet_gives_the_published_value():
    features, labels = wavy_features()
    assert batch_hard_triplet(features, labels, margin=None).item() == pytest.approx(2.707460112040, abs=1e-10)


def test_hardest_distances_give_the_published_values():
    farthest, nearest = hardest_distances(pairwise_distance(wavy_features()[0]), wavy_features()[1])
    p = [3.693717, 3.165760, 3.693717, 4.124180, 3.382453, 4.124180, 4.070511, 3.065902, 4.070511, 3.755261]
    n = [1.010502, 0.985844, 1.304905, 1.052502, 0.933379, 0.985844, 1.264807, 1.181887, 0.933379, 1.090173]
    assert farthest.tolist() == pytest.approx([*p, 3.525192, 3.755261], abs=1e-6)
    assert nearest.tolist() == pytest.approx([*n, 1.052502, 1.027220], abs=1e-6)


def test_margin_sample_mining_gives_the_published_value_and_moves_four_images():
    features, labels = wavy_features()
    features.requires_grad_()
    loss = margin_sample_mining(features, labels, margin=1.2)
    loss.backward()
    assert loss.item() == pytest.approx(4.390801530116, abs=1e-10)
    assert features.grad.norm().item() == pytest.approx(2, abs=1e-10)
    assert features.grad.norm(dim=1).nonzero().flatten().tolist() == [3, 4, 5, 8]


def test_margin_sample_mining_is_not_the_triplet_loss_that_a_study_ran_under_its_name():
    features, labels = wavy_features()
    msml, triplet = margin_sample_mining(features, labels, margin=1.2), batch_hard_triplet(features, labels, margin=1.2)
    assert (msml - triplet).item() == pytest.approx(4.390801530116 - 3.833641825689, abs=1e-10)


def slow_pairs(features, labels, i):
    """Distances of image i to those of its identity, itself included with 0, and to all others."""
    others = range(len(labels))
    positives = [
        (features[i] - features[j]).norm() if i != j else features.sum() * 0 for j in others if labels[j] == labels[i]
    ]
    return positives, [(features[i] - features[j]).norm() for j in others if labels[j] != labels[i]]


def slow_triplet(features, labels, margin):
    violations = []
    for i in range(len(labels)):
        positives, negatives = slow_pairs(features, labels, i)
        if negatives:
            excess = max(positives) - min(negatives)
            violations.append(torch.log1p(excess.exp()) if margin is None else torch.relu(excess + margin))
    return sum(violations) / len(violations) if violations else features.sum() * 0


def slow_margin_sample_mining(features, labels, margin):
    pairs = [slow_pairs(features, labels, i) for i in range(len(labels))]
    positives = [distance for positive, _ in pairs for distance in positive]
    negatives = [distance for _, negative in pairs for distance in negative]
    return torch.relu(max(positives) - min(negatives) + margin) if negatives else features.sum() * 0


def slow_circle(features, labels, m, gamma):
    anchors = []
    for i in range(len(labels)):
        sums, counts = [0.0, 0.0], [0, 0]
        for j in range(len(labels)):
            cosine = F.cosine_similarity(features[i], features[j], dim=0)
            if labels[i] != labels[j]:
                weight, sign, wanted, side = max(0, cosine.item() + m), 1, m, 0
            else:
                weight, sign, wanted, side = max(0, 1 + m - cosine.item()), -1, 1 - m, 1
            if i != j:
                sums[side] = sums[side] + torch.exp(sign * gamma * weight * (cosine - wanted))
                counts[side] += 1
        if min(counts) > 0:
            anchors.append(torch.log(1 + sums[0] * sums[1]))
    return sum(anchors) / len(anchors) if anchors else features.sum() * 0


def assert_same_value_and_gradient(fast, slow, features):
    # the fast distance is at least 1e-6, also of an image to itself
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-9)
    gradients = (torch.autograd.grad(loss, features)[0] for loss in (fast, slow))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)


@ODD_BATCHES
@pytest.mark.parametrize("margin", [3.0, 0.0, None])
def test_batch_hard_triplet_agrees_with_the_slow_version(labels, margin):
    features = random_features(len(labels))
    fast = batch_hard_triplet(features, torch.tensor(labels), margin=margin)
    assert_same_value_and_gradient(fast, slow_triplet(features, labels, margin), features)


@ODD_BATCHES
@pytest.mark.parametrize("margin", [3.0, 0.0])
def test_margin_sample_mining_agrees_with_the_slow_version(labels, margin):
    features = random_features(len(labels))
    fast = margin_sample_mining(features, torch.tensor(labels), margin=margin)
    assert_same_value_and_gradient(fast, slow_margin_sample_mining(features, labels, margin), features)


@ODD_BATCHES
@pytest.mark.parametrize(("m", "gamma"), [(0.25, 128), (0.4, 5)])
def test_circle_loss_agrees_with_the_slow_version(labels, m, gamma):
    features = random_features(len(labels))
    fast = circle_loss(features, torch.tensor(labels), m=m, gamma=gamma)
    assert_same_value_and_gradient(fast, slow_circle(features, labels, m, gamma), features)


def test_circle_loss_of_two_twins_at_a_right_angle_is_known_by_hand():
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    # s_p = 1 and s_n = 0, so a_p = a_n = m: log(1 + 2 exp(-gamma m^2) exp(-gamma m^2))
    expected = math.log1p(2 * math.exp(-2 * 8 * 0.25**2))
    assert circle_loss(features, torch.tensor([0, 0, 1, 1]), gamma=8).item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [3.0, None])
def test_the_smooth_parts_have_the_gradient_of_finite_differences(margin):
    features, labels = random_features(6, dim=4), torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda values: batch_hard_triplet(values, labels, margin=margin), features)
    assert torch.autograd.gradcheck(lambda values: margin_sample_mining(values, labels, margin=3.0), features)
    logits = random_features(6, dim=5, seed=1)
    assert torch.autograd.gradcheck(lambda values: cross_entropy(values, labels, label_smoothing=0.1), logits)
    center = CenterLoss(1, 3, 4).double()
    assert torch.autograd.gradcheck(lambda values, _: center([values], labels), (features, center.centers))


@METRIC_LOSSES
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1]])
@pytest.mark.parametrize(
    "values",
    [torch.ones(4, 8), torch.zeros(4, 8), torch.eye(8)[[0, 0, 1, 1]], torch.eye(8)[[0, 1, 0, 1]] * 1e-20],
    ids=["equal", "zeros", "twins", "tiny"],
)
def test_zero_distances_and_zero_vectors_give_finite_gradients(loss, values, labels):
    features = values.clone().requires_grad_()
    value = loss(features, torch.tensor(labels))
    value.backward()
    assert value.isfinite()
    assert features.grad.abs().max() < 1e4


@METRIC_LOSSES
def test_a_value_that_is_not_a_number_is_not_hidden(loss):
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    features[1, 2] = torch.nan
    assert loss(features, torch.tensor([0, 0, 1, 1])).isnan()


@METRIC_LOSSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_features_give_float32_values_under_autocast(loss, dtype):
    features = F.normalize(random_features(16, dim=256), dim=1).detach() * 1e4
    features = features.to(dtype).requires_grad_()
    labels = torch.arange(16) // 4
    torch.manual_seed(0)  # the centres
    with torch.autocast("cpu", dtype=dtype):
        value = loss(features, labels)
    value.backward()
    torch.manual_seed(0)
    assert value.dtype == torch.float32
    # float32 squares of a norm of 1e4 are good to some 10, which is 1e-3 of a distance; circle multiplies by gamma
    torch.testing.assert_close(value.double(), loss(features.detach().double(), labels).double(), atol=0.05, rtol=1e-4)
    assert features.grad.isfinite().all()


def test_a_batch_of_one_identity_still_has_a_gradient():
    features = torch.randn(4, 8, requires_grad=True)
    batch_hard_triplet(features, torch.zeros(4, dtype=torch.long), margin=0.3).backward()
    assert features.grad.abs().max() == 0


def test_equal_features_give_the_margin_and_a_finite_gradient():
    features = torch.ones(4, 8, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), margin=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert features.grad.isfinite().all()


def test_an_image_is_a_millionth_from_itself_and_from_its_copy():
    assert pairwise_distance(torch.zeros(2, 8)).flatten().tolist() == pytest.approx([1e-6] * 4, rel=1e-6)


def test_distances_are_computed_in_float32_even_under_autocast():
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 20
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pairwise_distance(features), pairwise_distance(features.float()))
    assert pairwise_distance(features.half()).dtype == torch.float32
    difference = features[:, None] - features[None, :]
    # the expanded square loses digits near 0: the diagonal is 1e-6 to some 1e-2 at this size of features
    torch.testing.assert_close(pairwise_distance(features), difference.norm(dim=2), atol=0.05, rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 1.669749465897), (0.1, 1.725701834431)])
def test_cross_entropy_gives_the_published_value(smoothing, expected):
    i = torch.arange(12, dtype=torch.float64)[:, None]
    logits = 2 * torch.sin(0.7 * i * torch.arange(1, 6))
    loss = cross_entropy(logits, torch.arange(12) % 5, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_cross_entropy_is_the_mean_over_the_batch_of_minus_the_log_probability():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = (-math.log(0.75) - math.log(0.5)) / 2
    assert cross_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx(expected)
    assert cross_entropy(logits.bfloat16(), torch.tensor([1, 0])).dtype == torch.float32
    assert F.cross_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx(expected)


def people(spread_within, num_ids=8, images_per_id=4, dim=64):
    """Features of unit-sized people whose pictures differ by about `spread_within`."""
    generator = torch.Generator().manual_seed(0)
    people = F.normalize(torch.randn(num_ids, 1, dim, generator=generator), dim=2)
    noise = F.normalize(torch.randn(num_ids, images_per_id, dim, generator=generator), dim=2)
    return (people + spread_within * noise).flatten(0, 1), torch.arange(num_ids).repeat_interleave(images_per_id)


def test_the_spread_of_four_images_is_known_by_hand():
    features, labels = torch.tensor([[3.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    spread = spread_of_distances(features, labels, margin=0.5)
    negatives = [3, 10**0.5, 5, 18**0.5]
    assert spread.mean_positive == pytest.approx((4 + 1) / 2)
    assert spread.mean_negative == pytest.approx(sum(negatives) / 4)
    assert spread.relative == pytest.approx((4 + 1 + sum(negatives)) / 6 / ((3 + 5 + 0 + 1) / 4))
    assert spread.active_share == 2 / 4  # p is 4, 4, 1, 1 and n is 3, 18**0.5, 3, 10**0.5
    assert spread_of_distances(features, labels, margin=0.0).active_share == 1 / 4


def test_people_told_apart_have_not_collapsed():
    features, labels = people(0.3)
    healthy = spread_of_distances(features, labels, margin=0.3)
    assert (healthy.collapsed, healthy.active_share) == (False, 0)
    assert healthy.mean_positive < 0.5 < 1.2 < healthy.mean_negative
    longer_than_float16 = spread_of_distances((8e4 * features).half(), labels, margin=0.3)
    assert longer_than_float16.relative == pytest.approx(healthy.relative, rel=1e-3)  # float16 has three digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1e-3, 1, 1e4])
def test_equal_features_of_any_size_have_collapsed(size, dtype):
    features, labels = people(0)
    same = (size * features[:1]).expand(len(labels), -1).to(dtype)
    assert spread_of_distances(same, labels, margin=0.3).collapsed


def test_nearly_equal_features_have_collapsed_though_strangers_are_farther():
    features, labels = people(0.3)
    spread = spread_of_distances(10 + 0.1 * features, labels, margin=0.3)
    assert spread.mean_negative > 2 * spread.mean_positive
    assert spread.collapsed


def test_features_that_do_not_depend_on_the_person_have_collapsed():
    features, _ = people(0, num_ids=4)
    assert spread_of_distances(features, torch.arange(4).repeat(4), margin=0.3).collapsed


def test_a_batch_without_such_pairs_says_nothing_of_them():
    features, _ = people(0.3, num_ids=2)
    one_identity = spread_of_distances(features, torch.zeros(8, dtype=torch.long), margin=0.3)
    assert math.isnan(one_identity.mean_negative)
    assert math.isnan(one_identity.active_share)
    assert (one_identity.collapsed, one_identity.mean_positive > 0) == (False, True)
    all_different = spread_of_distances(features, torch.arange(8), margin=0.3)
    assert math.isnan(all_different.mean_positive)
    assert not all_different.collapsed
    assert not spread_of_distances(features[:1], torch.zeros(1, dtype=torch.long), margin=0.3).collapsed
