"""Steps of fused optimizers, whatever was skipped before and wherever their states come from."""

import copy
import math

import pytest
import torch
from torch import nn

from reid_models.networks.baseline import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.optimizers import checked_states, guarded, load_optimizer_state
from reid_models.runs import CheckpointError
from reid_models.training import OptimConfig, make_optimizer

KINDS = [
    OptimConfig(kind="adam"),
    OptimConfig(kind="adam", amsgrad=True),
    OptimConfig(kind="adamw"),
    OptimConfig(kind="nadam"),
    OptimConfig(kind="rmsprop"),
    OptimConfig(kind="sgd"),
    OptimConfig(kind="sgd", nesterov=False, dampening=0.3),
    OptimConfig(kind="sgd", nesterov=False, momentum=0.0),
]
NAMES = ["adam", "amsgrad", "adamw", "nadam", "rmsprop", "sgd", "sgd-dampened", "sgd-plain"]
each_kind = pytest.mark.parametrize("config", KINDS, ids=NAMES)


@pytest.fixture
def memory_holds_nan():
    """Memory that nobody has written yet may hold anything; here it holds NaN, so that nothing depends on luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def small_network(dtype=torch.float32):
    torch.manual_seed(0)
    network = Baseline(make_trunk("small", width=4), 3, bottleneck=8).to(dtype)
    return network.to(memory_format=torch.channels_last)


def gradients(network, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = torch.empty_like(parameter).copy_(drawn)


@each_kind
def test_a_skipped_first_step_leaves_no_trace(config, memory_holds_nan):
    skipping, straight = small_network(), small_network()
    one, other = make_optimizer(skipping, config), make_optimizer(straight, config)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    gradients(skipping, 1, 4.0)
    next(skipping.parameters()).grad.fill_(torch.inf)
    scaler.scale(torch.zeros(1))  # makes the scale
    scaler.step(one)
    scaler.update()
    assert scaler.get_scale() == 2.0
    for before, after in zip(straight.parameters(), skipping.parameters(), strict=True):
        assert torch.equal(before, after)
    for seed in (2, 3):
        gradients(skipping, seed, 2.0)
        scaler.step(one)
        scaler.update()
        gradients(straight, seed)
        other.step()
    for expected, found in zip(straight.parameters(), skipping.parameters(), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected)


def slow_adam(weight, gradient, state, lr, beta1, beta2, eps, decay):
    """Kingma and Ba 2015, algorithm 1, with weight decay in the gradient; everything contiguous."""
    gradient = gradient + decay * weight
    mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient**2
    steps = float(state["step"]) + 1
    unbiased = (square / (1 - beta2**steps)).sqrt() + eps
    return weight - lr * mean / (1 - beta1**steps) / unbiased


def slow_sgd(weight, gradient, state, lr, momentum, decay):
    gradient = gradient + decay * weight
    momentum_buffer = momentum * state["momentum_buffer"] + gradient
    return weight - lr * (gradient + momentum * momentum_buffer)


def plain_states(network, kinds, seed=5):
    """States as another program writes them: contiguous, counted by an integer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        place: {kind: torch.rand(value.shape, generator=generator, dtype=torch.float64) for kind in kinds}
        | ({"step": 7} if "exp_avg" in kinds else {})
        for place, value in enumerate(network.parameters())
    }


def by_loading(optimizer, states, network):
    load_optimizer_state(optimizer, {"state": states, "param_groups": groups_of(optimizer)}, source="x")


def by_torch_itself(optimizer, states, network):
    states = {
        place: state | ({"step": torch.tensor(7.0)} if "step" in state else {}) for place, state in states.items()
    }
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def before_the_network_moves(optimizer, states, network):
    network.to(memory_format=torch.contiguous_format)
    by_loading(optimizer, states, network)
    network.to(memory_format=torch.channels_last)


def groups_of(optimizer):
    """What a state dict of an old PyTorch says of groups: their parameters."""
    return [{"params": group["params"]} for group in optimizer.state_dict()["param_groups"]]


@pytest.mark.parametrize("put", [by_loading, by_torch_itself, before_the_network_moves])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_from_states_in_another_memory_layout_is_the_step_of_the_formula(kind, put):
    network = small_network(torch.float64)
    config = OptimConfig(kind=kind, lr=0.1, weight_decay=0.01)
    optimizer = make_optimizer(network, config)
    states = plain_states(network, ("exp_avg", "exp_avg_sq") if kind == "adam" else ("momentum_buffer",))
    put(optimizer, copy.deepcopy(states), network)
    gradients(network, 6)
    expected = []
    for place, weight in enumerate(network.parameters()):
        now, gradient = weight.detach().clone().contiguous(), weight.grad.clone().contiguous()
        if kind == "adam":
            expected.append(slow_adam(now, gradient, states[place], 0.1, 0.9, 0.999, 1e-8, 0.01))
        else:
            expected.append(slow_sgd(now, gradient, states[place], 0.1, 0.9, 0.01))
    optimizer.step()
    for found, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach().contiguous(), wanted, rtol=1e-10, atol=1e-10)


@each_kind
def test_a_state_dict_of_its_own_fits_and_goes_on_as_if_nothing_had_been(config):
    straight, resumed = small_network(), small_network()
    one, other = make_optimizer(straight, config), make_optimizer(resumed, config)
    for seed in (1, 2):
        gradients(straight, seed)
        one.step()
    resumed.load_state_dict(straight.state_dict())
    saved = copy.deepcopy(one.state_dict())
    # Everything that torch keeps is what is asked for here, and nothing else.
    states = checked_states(other, saved, source="x")
    for place, state in enumerate(states):
        kept = {kind: value for kind, value in saved["state"].get(place, {}).items() if value is not None}
        assert state.keys() == kept.keys()
    saved["param_groups"] = [{"params": group["params"]} for group in saved["param_groups"]]
    load_optimizer_state(other, saved, source="x")
    for network, optimizer in ((straight, one), (resumed, other)):
        gradients(network, 3)
        optimizer.step()
    for expected, found in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_rates_and_decays_stay_the_optimizers_own():
    network = small_network()
    one = make_optimizer(network, OptimConfig(kind="sgd", lr=0.5, weight_decay=0.25, momentum=0.5))
    gradients(network, 1)
    one.step()
    other = make_optimizer(network, OptimConfig(kind="sgd", lr=0.1))
    load_optimizer_state(other, one.state_dict(), source="x")
    group = other.param_groups[1]
    assert (group["lr"], group["weight_decay"], group["momentum"], group["fused"]) == (0.1, 5e-4, 0.9, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.clear(), "holds no states of an optimizer"),
        (lambda saved: saved.update(state=3), "cannot be read"),
        (lambda saved: saved.update(param_groups=[1, 2]), "cannot be read"),
        (lambda saved: saved["param_groups"].pop(), r"groups of \[\d+\] parameters, these settings have"),
        (lambda saved: saved["param_groups"][0]["params"].pop(), r"groups of \[\d+, \d+\] parameters"),
        (lambda saved: saved["state"][0].pop("exp_avg_sq"), "has no exp_avg_sq of parameter 0; it is cut"),
        (lambda saved: saved["state"][0].pop("step"), "has no step of parameter 0"),
        (lambda saved: saved["state"].update({0: "gone"}), "cannot be read"),
        (
            lambda saved: saved["state"][0].update(exp_avg=torch.zeros(3)),
            r"exp_avg of parameter 0 is \(3,\), not \(4, ",
        ),
        (lambda saved: saved["state"][0]["exp_avg"].fill_(math.nan), "exp_avg of parameter 0 holds NaN or infinity"),
        (lambda saved: saved["state"][0].update(step=math.inf), "step of parameter 0 holds NaN or infinity"),
        (lambda saved: saved["state"][0].update(step=torch.zeros(2)), r"step of parameter 0 is \(2,\), expected one"),
        (lambda saved: saved["state"][0].update(step="many"), "cannot be read"),
        (lambda saved: saved["state"][0].update(exp_avg=[1.0]), "exp_avg of parameter 0 is list, expected a tensor"),
        (
            lambda saved: saved["state"][0].update(exp_avg=saved["state"][0]["exp_avg"].to_sparse()),
            "exp_avg of parameter 0 is Tensor, expected a tensor of numbers",
        ),
    ],
)
def test_states_that_do_not_fit_are_one_line_and_change_nothing(change, message):
    network = small_network()
    optimizer = make_optimizer(network, OptimConfig(kind="adam"))
    gradients(network, 1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(CheckpointError, match=f"^runs/x, optimizer reid: {message}") as caught:
        load_optimizer_state(optimizer, saved, source="runs/x, optimizer reid")
    assert "\n" not in str(caught.value)
    for place, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[place][kind]) for kind, value in state.items())


def trained_without_the_classifier():
    """As by a loss that does not look at it: it has no gradient, and so no state."""
    network = small_network()
    optimizer = make_optimizer(network, OptimConfig(kind="adam"))
    gradients(network, 1)
    for parameter in network.classifier.parameters():
        parameter.grad = None
    optimizer.step()
    return network, copy.deepcopy(optimizer.state_dict())


def test_a_parameter_that_never_had_a_gradient_has_no_state_and_needs_none():
    network, saved = trained_without_the_classifier()
    optimizer = make_optimizer(network, OptimConfig(kind="adam"))
    load_optimizer_state(optimizer, saved, source="x")
    gradients(network, 2)
    for parameter in network.classifier.parameters():
        parameter.grad = None
    optimizer.step()


def test_a_state_that_is_missing_is_seen_by_the_first_step_which_changes_nothing():
    network, saved = trained_without_the_classifier()
    optimizer = make_optimizer(network, OptimConfig(kind="adam"))
    load_optimizer_state(optimizer, saved, source="x")
    gradients(network, 2)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with pytest.raises(CheckpointError, match=r"^x: no state for 2 parameters that are trained .*of shape \(3, 8\)"):
        optimizer.step()
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))
    load_optimizer_state(optimizer, saved, source="x", may_begin=True)
    optimizer.step()


def test_momenta_of_some_parameters_alone_are_completed():
    network = small_network()
    optimizer = make_optimizer(network, OptimConfig(kind="sgd", lr=0.1, weight_decay=0.0))
    gradients(network, 1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"] = {place: state for place, state in saved["state"].items() if place % 2}
    load_optimizer_state(optimizer, saved, source="x", may_begin=True)
    gradients(network, 2)
    first = next(network.parameters())
    expected = first.detach() - 0.1 * (1 + 0.9) * first.grad
    optimizer.step()
    torch.testing.assert_close(first.detach(), expected)


def test_a_fused_momentum_with_dampening_cannot_be_guarded():
    with pytest.raises(ValueError, match="without dampening"):
        guarded(torch.optim.SGD([nn.Parameter(torch.ones(1))], momentum=0.9, dampening=0.1, fused=True))
