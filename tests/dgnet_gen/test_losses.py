import math

import pytest
import torch

from dgnet_gen import losses


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_identity_is_computed_in_float32_at_least(dtype):
    loss = losses.identity(torch.tensor([[1.0, 2.0]], dtype=dtype), torch.tensor([0]))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-6)


def test_the_game_by_hand():
    real, fake = [torch.tensor([0.5, 1.0]), torch.tensor([2.0])], [torch.tensor([0.0, 1.0]), torch.tensor([-1.0])]
    # first scale: mean(0, 1) + mean(0.25, 0); second: 1 + 1
    assert losses.discrimination(fake, real).item() == pytest.approx(0.5 + 0.125 + 2)
    # first scale: 2 mean(1, 0); second: 2 * 4
    assert losses.adversarial(fake).item() == pytest.approx(1 + 8)


def test_a_discriminator_that_is_right_pays_nothing():
    assert losses.discrimination([torch.zeros(2, 1, 4, 2)], [torch.ones(2, 1, 4, 2)]).item() == 0
    assert losses.adversarial([torch.ones(2, 1, 4, 2)]).item() == 0


@pytest.mark.parametrize(
    ("iteration", "structure", "cycle"),
    [
        (0, 0, 0),
        (30_000, 0, 0),
        (30_001, 0, 0),
        (30_002, 0.001, 0.001),
        (31_000, 0.5, 0.5),
        (32_000, 1, 1),
        (34_000, 1, 2),
        (99_999, 1, 2),
    ],
)
def test_ramps_of_the_published_training(iteration, structure, cycle):
    schedule = {"start": 30_000, "step": 0.0005}
    assert losses.ramp(iteration, **schedule, maximum=1) == pytest.approx(structure)
    assert losses.ramp(iteration, **schedule, maximum=2) == pytest.approx(cycle)
