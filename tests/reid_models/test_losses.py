import math

import pytest
import torch
import torch.nn.functional as F

from reid_models.losses import batch_hard_triplet, cross_entropy, pairwise_distance


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


def slow_triplet(features, labels, margin):
    violations = []
    for i in range(len(labels)):
        distance = [(features[i] - other).norm().item() for other in features]
        positives = [distance[j] for j in range(len(labels)) if labels[j] == labels[i]]
        negatives = [distance[j] for j in range(len(labels)) if labels[j] != labels[i]]
        if negatives:
            violations.append(max(0.0, max(positives) - min(negatives) + margin))
    return sum(violations) / len(violations) if violations else 0.0


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5], [3]],
    ids=["pairs", "odd-one-out", "all-different", "all-same", "alone"],
)
def test_batch_hard_triplet_agrees_with_the_slow_version(labels):
    features = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast = batch_hard_triplet(features, torch.tensor(labels), margin=3.0)
    assert fast.item() == pytest.approx(slow_triplet(features, labels, margin=3.0), abs=1e-5)


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
