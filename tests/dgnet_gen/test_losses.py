import math

import pytest
import torch
import torch.nn.functional as F

from dgnet_gen import losses
from dgnet_gen.settings import LossWeights
from dgnet_gen.step import late_weights


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(rows, num_ids, seed=0):
    return drawn(rows, num_ids, seed=seed).softmax(1)


def test_reconstruction_is_the_mean_difference_and_never_trains_its_target():
    made = torch.tensor([1.0, 2.0], requires_grad=True)
    real = torch.tensor([2.0, 5.0], requires_grad=True)
    loss = losses.reconstruction(made, real)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert made.grad.tolist() == [-0.5, -0.5]
    assert real.grad is None


def test_identity_of_logits_that_know_nothing_is_the_logarithm_of_the_number_of_people():
    assert losses.identity(torch.zeros(4, 751), torch.tensor([0, 1, 2, 750])).item() == pytest.approx(math.log(751))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_terms_are_computed_in_float32_at_least(dtype):
    logits, labels = torch.tensor([[1.0, 2.0]], dtype=dtype), torch.tensor([0])
    maps = [torch.tensor([0.5], dtype=dtype)]
    target = torch.tensor([[1.0, 0.0]], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found = [
        losses.identity(logits, labels),
        losses.distillation(logits, target),
        losses.reconstruction(logits, logits + 1),
        losses.adversarial(maps),
        losses.discrimination(maps, maps, "nsgan"),
    ]
    assert {term.dtype for term in found} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert found[0].item() == pytest.approx(math.log(1 + math.e), rel=1e-6)


def test_the_game_by_hand():
    real, fake = [torch.tensor([0.5, 1.0]), torch.tensor([2.0])], [torch.tensor([0.0, 1.0]), torch.tensor([-1.0])]
    # first scale: mean(0, 1) + mean(0.25, 0); second: 1 + 1
    assert losses.discrimination(fake, real).item() == pytest.approx(0.5 + 0.125 + 2)
    # first scale: 2 mean(1, 0); second: 2 * 4
    assert losses.adversarial(fake).item() == pytest.approx(1 + 8)


def test_the_non_saturating_game_is_cross_entropy_of_probabilities():
    real, fake = [drawn(2, 1, 4, 2), drawn(2, 1, 2, 1, seed=1)], [drawn(2, 1, 4, 2, seed=2), drawn(2, 1, 2, 1, seed=3)]

    def cross_entropy(maps, target):
        return sum(F.binary_cross_entropy(m.sigmoid(), torch.full_like(m, target)) for m in maps)

    torch.testing.assert_close(losses.adversarial(fake, "nsgan"), cross_entropy(fake, 1.0))
    expected = cross_entropy(fake, 0.0) + cross_entropy(real, 1.0)
    torch.testing.assert_close(losses.discrimination(fake, real, "nsgan"), expected)


def test_a_discriminator_that_is_right_pays_nothing():
    assert losses.discrimination([torch.zeros(2, 1, 4, 2)], [torch.ones(2, 1, 4, 2)]).item() == 0
    assert losses.adversarial([torch.ones(2, 1, 4, 2)]).item() == 0


@pytest.mark.parametrize("gan", ["lsgan", "nsgan"])
def test_the_penalty_of_a_linear_discriminator_is_the_square_of_its_weights(gan):
    weights, images = drawn(3, 4, 2), drawn(5, 3, 4, 2, seed=1).requires_grad_()
    said = (weights * images).sum((1, 2, 3))
    slope = 1.0 if gan == "lsgan" else (said.sigmoid() * (1 - said.sigmoid())).detach()
    expected = (slope * torch.ones(5)).square().mean() * weights.square().sum()
    found = losses.penalty([said, said], images, gan)  # two scales that say the same
    torch.testing.assert_close(found, (2 * expected).to(found.dtype))


def test_distillation_is_the_divergence_by_the_loop_and_zeros_cost_nothing():
    logits, target = drawn(3, 5), probabilities(3, 5, seed=1)
    target[0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    slow = 0.0
    for said, wanted in zip(logits.softmax(1).tolist(), target.tolist(), strict=True):
        slow += sum(t * (math.log(t) - math.log(p)) for p, t in zip(said, wanted, strict=True) if t > 0) / 3
    assert losses.distillation(logits, target).item() == pytest.approx(slow)


def test_distillation_vanishes_where_the_student_says_what_the_teacher_says():
    logits = drawn(4, 6)
    assert losses.distillation(logits, logits.softmax(1)).item() == pytest.approx(0, abs=1e-12)


APPEARANCE, STRUCTURE = torch.tensor([0, 3]), torch.tensor([2, 3])


def test_styles_say_what_they_are_called():
    said = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.2, 0.2, 0.2, 0.4]])
    expected = {
        0: said.tolist(),
        1: [[0, 1, 0, 0], [0, 0, 0, 1]],
        2: [[1, 0, 0, 0], [0, 0, 0, 1]],
        3: [[0.25] * 4, [0.25] * 4],
        4: [[0.25, 0, 0.75, 0], [0, 0, 0, 1]],
    }
    assert len(expected) == len(losses.TEACHER_STYLES)
    for style, target in expected.items():
        found = losses.soft_target([said], APPEARANCE, STRUCTURE, style=style)
        torch.testing.assert_close(found, torch.tensor(target, dtype=torch.float32))


@pytest.mark.parametrize("style", range(5))
@pytest.mark.parametrize("count", [1, 3])
def test_every_target_is_a_distribution(style, count):
    said = [probabilities(2, 4, seed=seed) for seed in range(count)]
    target = losses.soft_target(said, APPEARANCE, STRUCTURE, style=style, decay=0.5)
    torch.testing.assert_close(target.sum(1), torch.ones(2, dtype=torch.float64))
    assert (target >= 0).all()


def test_identities_that_nobody_believes_in_share_the_target():
    said = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    found = losses.soft_target([said], APPEARANCE[:1], STRUCTURE[:1], style=4)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 0.5, 0.0]]))


def test_several_teachers_are_added_one_after_the_other():
    first, second, third = (probabilities(2, 4, seed=seed) for seed in range(3))
    mean = losses.soft_target([first, second, third], APPEARANCE, STRUCTURE)
    torch.testing.assert_close(mean, (first + second + third) / 3)
    fading = losses.soft_target([first, second, third], APPEARANCE, STRUCTURE, decay=0.5)
    torch.testing.assert_close(fading, (0.25 * first + 0.5 * second + third) / 1.75)


def test_late_terms_enter_with_two_steps_and_stop_at_their_maximum():
    weights = LossWeights(warm_iter=10, warm_teacher_iter=20, warm_scale=0.25)
    found = [late_weights(iteration, weights) for iteration in range(40)]
    assert [late["recon_structure"] for late in found[:16]] == [0] * 12 + [0.5, 0.75, 1, 1]
    assert [late["cycle"] for late in found[11:20]] == [0, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2]
    assert [late["teacher"] for late in found[20:25]] == [0, 0, 0.5, 0.75, 1]
    assert found[39]["teacher"] == 2
