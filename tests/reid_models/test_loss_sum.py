import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from reid_models.losses import (
    CenterLoss,
    LossSum,
    LossTerm,
    batch_hard_triplet,
    circle_loss,
    cross_entropy,
    margin_sample_mining,
    parse_loss,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_center_loss_gives_the_published_value():
    i, k = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    features = torch.sin(1.7 * i + 0.9 * k) + 0.3 * torch.cos(3.1 * i * k)
    center = CenterLoss(1, 4, 8).double()
    center.load_state_dict({"centers": torch.cos(0.5 * torch.arange(4)[:, None] + 0.2 * k)[None]})
    assert center([features], torch.arange(12) // 3).item() == pytest.approx(3.007094425190, abs=1e-10)


@pytest.mark.parametrize("labels", [[0, 0, 3, 3], [4, 4, 4, 4], [0, 1, 2, 3], [2]])
def test_center_loss_agrees_with_the_slow_version(labels):
    metric, center = torch.randn(3, len(labels), 8).double(), CenterLoss(3, 5, 8).double()
    slow = [
        sum(0.5 * (vector[i] - table[label]).norm() ** 2 for i, label in enumerate(labels)) / len(labels)
        for vector, table in zip(metric, center.centers, strict=True)
    ]
    torch.testing.assert_close(center(tuple(metric), torch.tensor(labels)), sum(slow) / 3)


def test_the_weight_of_the_studys_preset_is_that_of_its_loss_without_the_half():
    preset = yaml.safe_load((Path(__file__).parents[2] / "configs" / "study_center.yaml").read_text())
    weight = dict(parse_loss(preset["loss"]["terms"]))["center"]
    metric, labels, center = torch.randn(3, 6, 8).double(), torch.arange(6) // 2, CenterLoss(3, 3, 8).double()
    theirs = sum(
        ((vector - table[label]) ** 2).sum()
        for vectors, table in zip(metric, center.centers, strict=True)
        for vector, label in zip(vectors, labels, strict=True)
    ) / (3 * 6)
    torch.testing.assert_close(weight * center(tuple(metric), labels), 0.005 * theirs)


def test_a_step_moves_a_centre_the_documented_share_of_its_way_and_no_other_centre():
    metric, labels = torch.randn(2, 8, 4), torch.tensor([1, 1, 1, 3, 3, 3, 3, 3])
    loss = LossSum(parse_loss("Center"), num_ids=6, metric_dims=(4, 4), margin=0.3, label_smoothing=0.0)
    before = loss.center.centers.detach().clone()
    loss((), tuple(metric), labels)[0].backward()
    loss.center_optimizer().step()
    expected = before.clone()
    for label, count in ((1, 3), (3, 5)):
        mean = metric[:, labels == label].mean(1)
        expected[:, label] += 0.5 * count / (8 * 2) * (mean - before[:, label])
    torch.testing.assert_close(loss.center.centers.detach(), expected)
    assert (loss.center.centers != before).any(2).any(0).tolist() == [False, True, False, True, False, False]


def trained_centers(weight, *, accumulate=1, scaler=None):
    """Centres after five steps on a fixed stream of batches."""
    torch.manual_seed(0)
    terms = parse_loss(f"CE + {weight}*Center")
    loss = LossSum(terms, num_ids=4, metric_dims=(8, 8), margin=0.3, label_smoothing=0.0)
    optimizer = loss.center_optimizer()
    for _ in range(5):
        metric, logits, labels = torch.randn(2, 8, 8), torch.randn(8, 4, requires_grad=True), torch.arange(8) % 4
        for part in torch.arange(8).chunk(accumulate):
            total, _ = loss((logits[part],), tuple(metric[:, part]), labels[part])
            (scaler.scale(total / accumulate) if scaler else total / accumulate).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
    return loss.center.centers.detach()


def test_the_speed_of_the_centres_does_not_depend_on_the_weight():
    plain = trained_centers(1)
    torch.testing.assert_close(trained_centers(0.0005), plain)
    torch.testing.assert_close(trained_centers(20, accumulate=4), plain)
    torch.testing.assert_close(trained_centers(0.0005, scaler=torch.amp.GradScaler("cpu")), plain)
    torch.testing.assert_close(trained_centers(0.005, accumulate=2, scaler=torch.amp.GradScaler("cpu")), plain)


def test_the_pull_on_the_features_does_depend_on_the_weight():
    metric = torch.randn(4, 8, requires_grad=True)
    gradients = []
    for weight in (1, 0.25):
        torch.manual_seed(0)
        loss = LossSum((LossTerm("center", weight),), num_ids=4, metric_dims=(8,), margin=0.3, label_smoothing=0.0)
        gradients.append(torch.autograd.grad(loss((), (metric,), torch.arange(4))[0], metric)[0])
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0])


def test_center_loss_explains_wrong_shapes():
    with pytest.raises(ValueError, match=r"centres for 2 metric vectors, got 1"):
        CenterLoss(2, 4, 8)([torch.zeros(3, 8)], torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(1, 0, 8\)"):
        CenterLoss(1, 0, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1*CrossEntropy+1*Triplet", [("cross_entropy", 1), ("triplet", 1)]),
        ("1*CrossEntropy+2*Triplet+0.005*CenterLoss", [("cross_entropy", 1), ("triplet", 2), ("center", 0.005)]),
        ("1*CrossEntropy+2*MSMLLoss", [("cross_entropy", 1), ("msml", 2)]),
        ("  .5 *  triplet+ce ", [("triplet", 0.5), ("cross_entropy", 1)]),
        ("1e+3*ID + 2E+1*MSML + 1.e+1*Center", [("cross_entropy", 1000), ("msml", 20), ("center", 10)]),
        ("SoftTriplet+circle", [("soft_triplet", 1), ("circle", 1)]),
        ("CIRCLELOSS\t+\nsoft_triplet", [("circle", 1), ("soft_triplet", 1)]),
    ],
)
def test_a_loss_text_is_read(text, expected):
    assert parse_loss(text) == tuple(expected)


@pytest.mark.parametrize("name", ["cross_entropy", "triplet", "soft_triplet", "msml", "center", "circle"])
def test_every_name_in_the_log_is_a_name_in_the_text(name):
    assert parse_loss(f"2*{name}") == (LossTerm(name, 2.0),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty term"),
        ("  ", "empty term"),
        ("CE+", "empty term"),
        ("CE++Triplet", "empty term"),
        ("+CE", "empty term"),
        ("CE+Triplet+2*id", "loss term '2*id': cross_entropy is there already"),
        ("CE+2*Tripet", "loss term '2*Tripet': unknown name 'Tripet'; did you mean triplet?"),
        ("CrossEntropyLoss", "did you mean cross_entropy?"),
        ("Centre", "did you mean center?"),
        ("hinge", "known names: cross_entropy, triplet, soft_triplet, msml, center, circle"),
        ("2*", "loss term '2*': unknown name ''"),
        ("2", "loss term '2': unknown name '2'"),
        ("two*CE", "loss term 'two*CE': the weight 'two' is not a number"),
        ("*CE", "the weight '' is not a number"),
        ("2*3*CE", "the weight '2*3' is not a number"),
        ("Triplet*2", "loss term 'Triplet*2': the weight 'Triplet' is not a number; expected weight*name"),
        ("CE+0*Triplet", "loss term '0*Triplet': the weight must be positive and finite, got 0"),
        ("-1*CE", "must be positive and finite, got -1"),
        ("inf*CE", "must be positive and finite, got inf"),
        ("nan*CE", "must be positive and finite, got nan"),
        ("1e999*CE", "must be positive and finite, got inf"),
    ],
)
def test_a_loss_text_that_makes_no_sense_is_explained_in_one_line(text, says):
    with pytest.raises(ValueError) as caught:
        parse_loss(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def outputs(num_logits=8, num_vectors=3, batch=12, num_ids=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_logits, batch, num_ids, generator=generator, requires_grad=True)
    metric = torch.randn(num_vectors, batch, 16, generator=generator, requires_grad=True)
    return logits, metric, torch.arange(batch) % num_ids


def test_the_sum_is_made_of_the_means_over_classifiers_and_metric_vectors():
    logits, metric, labels = outputs()
    terms = parse_loss("0.005*Center + 2*Triplet + SoftTriplet + 3*MSML + 0.1*Circle + CrossEntropy")
    loss = LossSum(terms, num_ids=5, metric_dims=(16, 16, 16), margin=1.2, label_smoothing=0.1)
    total, values = loss(tuple(logits), tuple(metric), labels)
    expected = {
        "center": loss.center(tuple(metric), labels),
        "triplet": sum(batch_hard_triplet(vector, labels, margin=1.2) for vector in metric) / 3,
        "soft_triplet": sum(batch_hard_triplet(vector, labels, margin=None) for vector in metric) / 3,
        "msml": sum(margin_sample_mining(vector, labels, margin=1.2) for vector in metric) / 3,
        "circle": sum(circle_loss(vector, labels) for vector in metric) / 3,
        "cross_entropy": sum(cross_entropy(each, labels, label_smoothing=0.1) for each in logits) / 8,
    }
    assert list(values) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value)
    weights = (0.005, 2, 1, 3, 0.1, 1)
    torch.testing.assert_close(total, sum(w * value for w, value in zip(weights, expected.values(), strict=True)))


def test_the_sum_of_a_batch_of_one_identity_is_the_cross_entropy_and_has_a_gradient():
    logits, metric, _ = outputs()
    labels = torch.zeros(12, dtype=torch.long)
    terms = parse_loss("CE+Triplet+SoftTriplet+MSML+Circle")
    loss = LossSum(terms, num_ids=5, metric_dims=(16, 16, 16), margin=1.2, label_smoothing=0.0)
    total, values = loss(tuple(logits), tuple(metric), labels)
    total.backward()
    assert total.item() == values["cross_entropy"].item()
    assert (logits.grad.abs().max() > 0, metric.grad.abs().max().item()) == (True, 0)


def test_an_untrained_head_starts_at_the_log_of_the_number_of_identities():
    loss = LossSum(parse_loss("CE"), num_ids=751, metric_dims=(), margin=0.3, label_smoothing=0.1)
    total, _ = loss((torch.zeros(4, 751),), (), torch.arange(4))
    assert total.item() == pytest.approx(math.log(751))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_of_large_half_precision_outputs_is_finite_under_autocast(dtype):
    logits, metric, labels = outputs()
    large = (1e4 * F.normalize(metric, dim=2)).to(dtype)
    terms = parse_loss("CE + Triplet + SoftTriplet + MSML + Circle + 0.005*Center")
    loss = LossSum(terms, num_ids=5, metric_dims=(16, 16, 16), margin=1.2, label_smoothing=0.0)
    with torch.autocast("cpu", dtype=dtype):
        total, values = loss(tuple(logits.to(dtype)), tuple(large), labels)
    total.backward()
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert all(value.isfinite() for value in (total, *values.values()))
    assert metric.grad.isfinite().all()
    assert loss.center.centers.grad.isfinite().all()


def test_the_state_of_a_sum_is_its_centres():
    sizes = {"num_ids": 7, "metric_dims": (16, 16), "margin": 0.3, "label_smoothing": 0.0}
    loss, plain = LossSum(parse_loss("CE+0.1*Center"), **sizes), LossSum(parse_loss("CE+Triplet"), **sizes)
    assert {key: value.shape for key, value in loss.state_dict().items()} == {"center.centers": (2, 7, 16)}
    assert (plain.state_dict(), list(plain.parameters()), plain.center_optimizer()) == ({}, [], None)


@pytest.mark.parametrize("name", ["triplet", "soft_triplet", "msml", "center", "circle"])
def test_a_term_on_metric_vectors_needs_some(name):
    with pytest.raises(ValueError, match=f"loss term {name}: needs metric vectors"):
        LossSum((LossTerm(name, 1.0),), num_ids=5, metric_dims=(), margin=0.3, label_smoothing=0.0)


def test_a_sum_explains_what_it_cannot_be_built_from():
    with pytest.raises(ValueError, match="at least one term"):
        LossSum((), num_ids=5, metric_dims=(4,), margin=0.3, label_smoothing=0.0)
    with pytest.raises(ValueError, match=r"center: needs metric vectors of one length, got \(4, 8\)"):
        LossSum(parse_loss("Center"), num_ids=5, metric_dims=(4, 8), margin=0.3, label_smoothing=0.0)
