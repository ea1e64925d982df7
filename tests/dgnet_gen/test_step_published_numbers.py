"""A whole training step at full size computes what the published code computes.

Weights, pictures and labels are drawn by a rule from names, so nothing but names and results had to be exchanged.
`data/golden_dgnet_step.npz` holds what the published code computed from them in float64: losses, tensors on the way,
gradients, updates and batch norms in five settings, and its schedules. Dropout is off and what chance decides is
given.

Three are always compared in float32, within what round-off alone does to the published code; between them they have
everything. In float64 each takes a minute or two: REID_GOLDEN=1 compares all five, to 1e-8 in values and 1e-6 in
gradients.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dgnet_gen import losses
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.pairs import PairBatch
from dgnet_gen.published import published_tables
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.step import Draws, Step, late_weights, lr_factor, make_optimizers
from dgnet_gen.teacher import Teacher, TrainedNetwork
from reid_models.networks import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.published import Published, baseline_names
from reid_models.runtime import Runtime
from tests.dgnet_gen.networks.test_published_numbers import fill_value, image

NUM_IDS = 751
PICTURES = "x_a", "x_b", "xp_a", "xp_b"
NEVER_USED = {"model.fc.weight", "model.fc.bias"}
"""ImageNet's classifier: in the published network and in none of its passes"""
HEADS = "classifier1", "classifier2"


@dataclass(frozen=True)
class Tolerances:
    """Relative errors; `noise` is of the largest gradient norm of a network, for gradients that are 0 in theory."""

    losses: float
    forward: float
    norms: dict[str, float]
    samples: dict[str, float]
    ignored_below: float
    noise: float
    updates: dict[str, float]
    after: float
    batch_norms: float


EXACT = Tolerances(
    losses=1e-8,
    forward=1e-8,
    norms=dict.fromkeys(("gen", "id", "dis"), 1e-6),
    samples=dict.fromkeys(("gen", "id", "dis"), 1e-6),
    ignored_below=1e-9,
    noise=1e-9,
    updates=dict.fromkeys(("gen", "id", "dis"), 1e-6),
    after=1e-9,
    batch_norms=1e-8,
)
# Batch norms of three pictures amplify round-off: in float64, weights off by half a unit in float32's last place move
# the gradient of the fine head's first layer by 1.5e-4 of itself, 4,500 times as much, and a pass in float32 rounds
# after each of a hundred layers, whose sums every processor takes in another order. The kernels of tests/cpus.py were
# off from float64 by at most, for gen, id and dis: norms 2.5e-3, 4.6e-3 and 6e-5, samples 8e-3, 1.2e-2 and 5e-5,
# updates 4e-4, 1.8e-3 and 2e-5; forward 1.8e-5. About three times that is allowed. Adam's first step is about lr = 1e-4
# whatever the gradient, also where that is round-off; SGD's goes with the gradient, so its updates are as uncertain.
SINGLE = Tolerances(
    losses=2e-5,
    forward=5e-5,
    norms={"gen": 1e-2, "id": 1.5e-2, "dis": 1e-3},
    samples={"gen": 3e-2, "id": 4e-2, "dis": 1e-3},
    ignored_below=1e-4,
    noise=1e-3,
    updates={"gen": 1e-3, "id": 6e-3, "dis": 1e-3},
    after=2.1e-4,
    batch_norms=5e-5,
)
ALL_CASES = "early_again", "early_copy", "late_again", "late_copy", "late_again_erased"
ALWAYS = "early_again", "late_copy", "late_again_erased"
needs_minutes = pytest.mark.skipif(not os.environ.get("REID_GOLDEN"), reason="minutes each; set REID_GOLDEN=1")


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "data" / "golden_dgnet_step.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@dataclass
class Done:
    """A finished step: `parameters` and `before` are by network and published name."""

    case: str
    within: Tolerances
    terms: dict[str, float]
    forward: dict[str, torch.Tensor]
    parameters: dict[str, dict[str, torch.nn.Parameter]]
    before: dict[str, dict[str, torch.Tensor]]
    batch_norms: dict[str, dict[str, torch.nn.Module]]

    @property
    def prefix(self):
        return f"{self.case}/f64"

    @property
    def is_late(self):
        return self.case.startswith("late")


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((case, torch.float32), id=f"{case}-float32") for case in ALWAYS),
        *(pytest.param((case, torch.float64), id=f"{case}-float64", marks=needs_minutes) for case in ALL_CASES),
    ],
)
def done(request, golden):
    case, dtype = request.param
    config = DGNetTrainConfig(networks=NetworksConfig(dropout_primary=0.0, dropout_fine=0.0))
    model = DGNet(config.networks, NUM_IDS)
    parameters, before, batch_norms = {}, {}, {"id": {}, "teacher": {}}
    theirs = published_names(model)
    for kind, network in model.networks().items():
        names = {name: theirs[f"{kind}.{name}"] for name in network.state_dict()}
        state = {
            name: torch.from_numpy(np.asarray(fill_value(*names[name], value.shape)))
            for name, value in network.state_dict().items()
        }
        network.load_state_dict(state)
        network.to(dtype).train()
        for name, parameter in network.named_parameters():
            file, key = names[name]
            parameters.setdefault(file, {})[key] = parameter
            before.setdefault(file, {})[key] = parameter.detach().clone()
        for name, part in network.named_modules():
            if isinstance(part, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                batch_norms["id"][names[f"{name}.weight"][1].removesuffix(".weight")] = part
    teacher, batch_norms["teacher"] = filled_teacher(dtype)
    step = Step(
        model, make_optimizers(model, config.optim), config, Runtime.from_environment("cpu"), Teacher([teacher])
    )
    images = {name: torch.from_numpy(image(name, (3, 3, 256, 128))).to(dtype) for name in PICTURES}
    forward = recorded(model, erases=case.endswith("erased"))
    draws = Draws("again" in case, erased(images, golden) if case.endswith("erased") else None)
    terms = step(50_000 if case.startswith("late") else 0, [pair_batch(images, golden)], [draws])
    within = EXACT if dtype == torch.float64 else SINGLE
    return Done(case, within, terms, forward, parameters, before, batch_norms)


def published_names(model):
    """The file and the key there of every tensor of ours, "network.name"."""
    tables = published_tables(model)
    return {slot.ours: (file, key) for file, table in tables.items() for key, slot in table.items() if slot.ours}


def filled_teacher(dtype):
    """The teacher with the weights of the rule, and its batch norms by their published names."""
    network = Baseline(make_trunk("resnet50", last_stride=1), NUM_IDS, dropout=0.0)
    ours = network.state_dict()
    names = Published("baseline", "", baseline_names()).file_names(ours)
    network.load_state_dict(
        {name: torch.from_numpy(np.asarray(fill_value("teacher", names[name], ours[name].shape))) for name in ours}
    )
    norms = {
        names[f"{name}.weight"].removesuffix(".weight"): part
        for name, part in network.named_modules()
        if isinstance(part, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
    }
    return TrainedNetwork(network.to(dtype), (256, 128), {}), norms


def pair_batch(images, golden):
    l_a, l_b = (torch.from_numpy(golden[f"labels/{name}"]) for name in ("l_a", "l_b"))
    rows = torch.arange(3)
    return PairBatch(images["x_a"], images["xp_a"], l_a, images["x_b"], images["xp_b"], l_b, rows, rows)


def erased(images, golden):
    """Copies with the given rectangles in the mean colour; -1 means untouched."""
    copies = tuple(images[name].clone() for name in PICTURES)
    for copy, rectangles in zip(copies, golden["erased_rectangles"], strict=True):
        for picture, (top, left, height, width) in zip(copy, rectangles, strict=True):
            if top >= 0:
                picture[:, top : top + height, left : left + width] = 0
    return copies


def recorded(model, *, erases):
    """The tensors of a step on their way, under their golden names, filled as the networks are called."""
    found, calls = {}, [0]

    def structure(module, inputs, output):
        if "s_a" not in found:
            found["s_a"], found["s_b"] = output.chunk(2)

    def decoder(module, inputs, output):
        if "x_a_recon" not in found:
            names = "x_a_recon", "x_b_recon", "x_a_recon_p", "x_b_recon_p"
            found.update(zip(names, output.chunk(4), strict=True))
        elif "x_ba" not in found:
            found.update(zip(("x_ba", "x_ab"), output.chunk(2), strict=True))

    def appearance(module, inputs, output):
        if "f_a" not in found:
            found["f_a"], found["f_b"], *_ = output.code.chunk(4)
        if calls[0] == (1 if erases else 0):
            for head, logits in (("head1", output.primary), ("head2", output.fine)):
                names = (f"{who}_{head}" for who in ("p_a", "p_b", "pp_a", "pp_b"))
                found.update(zip(names, logits.chunk(4), strict=True))
        calls[0] += 1

    model.structure_encoder.register_forward_hook(structure)
    model.decoder.register_forward_hook(decoder)
    model.appearance_encoder.register_forward_hook(appearance)
    return found


def error(golden, name, found):
    """The relative error of a tensor, or of its stored part."""
    found = np.asarray(found.detach().double() if isinstance(found, torch.Tensor) else found, np.float64)
    if name in golden:
        expected = golden[name]
    else:
        assert tuple(golden[f"{name}#shape"]) == found.shape
        expected = golden[f"{name}#sample"]
        found = found.reshape(-1)[:: int(golden[f"{name}#stats"][-1])][: len(expected)]
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300)


@pytest.mark.slow
def test_every_loss_term_is_the_published_one(done, golden):
    theirs = dict(zip(golden[f"{done.case}/loss_names"], golden[f"{done.prefix}/losses"], strict=True))

    def both(name):
        return theirs[f"{name}_a"] + theirs[f"{name}_b"]

    expected = {
        "recon_self": both("gen_recon_x"),
        "recon_same_id": both("gen_recon_xp"),
        "adversarial": both("gen_adv"),
        "recon_identity": theirs["gen_recon_id"],
        "identity": theirs["ce_a_head1"] + theirs["ce_b_head1"],
        "fine_real": theirs["ce_a_head2"] + theirs["ce_b_head2"],
        "identity_positive": theirs["pid"],
        "gradient_penalty": both("dis_reg") / 0.01,
        "discriminator": theirs["dis_total"],
        "total": theirs["gen_total"],
    }
    if done.is_late:
        expected |= {
            "recon_appearance": both("gen_recon_f"),
            "recon_structure": both("gen_recon_s"),
            "cycle": both("gen_cycrecon_x"),
            "primary": theirs["kl_ba"] + theirs["kl_ab"],
            "fine": theirs["ce_teacher_b_on_ba"] + theirs["ce_teacher_b_on_ab"],
        }
    assert done.terms == pytest.approx(expected, rel=done.within.losses)


@pytest.mark.slow
def test_the_tensors_on_the_way_are_the_published_ones(done, golden):
    errors = {name: error(golden, f"{done.prefix}/forward/{name}", tensor) for name, tensor in done.forward.items()}
    assert len(errors) == 18
    assert {name: value for name, value in errors.items() if not value < done.within.forward} == {}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["gen", "id", "dis"])
def test_gradients_reach_the_same_parameters_by_the_same_amount(done, golden, net):
    expected = dict(zip(golden[f"param_names/{net}"], golden[f"{done.prefix}/grad_norm/{net}"], strict=True))
    unused = {name for name, norm in expected.items() if np.isnan(norm)}
    assert unused == (NEVER_USED if net == "id" else set())
    assert expected.keys() - done.parameters[net].keys() == unused
    largest = np.nanmax(golden[f"{done.prefix}/grad_norm/{net}"])
    wrong = {}
    for name, parameter in done.parameters[net].items():
        assert parameter.grad is not None, name
        norm = float(parameter.grad.norm())
        if expected[name] > done.within.ignored_below * largest:
            if not abs(norm / expected[name] - 1) < done.within.norms[net]:
                wrong[name] = (norm, expected[name])
        elif not abs(norm - expected[name]) < done.within.noise * largest:
            wrong[name] = (norm, expected[name])
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["gen", "id", "dis"])
def test_gradients_have_the_published_values(done, golden, net):
    begin = f"{done.prefix}/grad/{net}/"
    names = {name.removeprefix(begin).removesuffix("#shape") for name in golden if name.startswith(begin)}
    names -= {name for name in names if "#" in name}
    assert len(names) >= 6
    if not done.is_late:  # the fine-grained head has zeros, which have no relative error
        fine = {name for name in names if name.startswith("classifier2")}
        assert all(not done.parameters[net][name].grad.any() for name in fine)
        names -= fine
    errors = {name: error(golden, begin + name, done.parameters[net][name].grad) for name in names}
    assert {name: value for name, value in errors.items() if not value < done.within.samples[net]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["gen", "id", "dis"])
def test_all_parameters_move_by_the_published_amount(done, golden, net):
    expected = dict(zip(golden[f"param_names/{net}"], golden[f"{done.prefix}/update_norm/{net}"], strict=True))
    found = {
        name: float((parameter.detach() - done.before[net][name]).norm())
        for name, parameter in done.parameters[net].items()
    }
    norms = np.array([[found[name], expected[name]] for name in found])
    assert np.linalg.norm(norms[:, 0] - norms[:, 1]) < done.within.updates[net] * np.linalg.norm(norms[:, 1])
    if done.within is EXACT:
        assert found == pytest.approx({name: expected[name] for name in found}, rel=done.within.updates[net])
    begin = f"{done.prefix}/after/{net}/"
    for name in {name.removeprefix(begin).split("#")[0] for name in golden if name.startswith(begin)}:
        stored = golden[f"{begin}{name}"] if begin + name in golden else golden[f"{begin}{name}#sample"]
        stride = 1 if begin + name in golden else int(golden[f"{begin}{name}#stats"][-1])
        now = done.parameters[net][name].detach().double().numpy().reshape(-1)[::stride][: stored.size]
        np.testing.assert_allclose(now, stored.reshape(-1), rtol=0, atol=done.within.after, err_msg=name)


@pytest.mark.slow
def test_the_appearance_encoder_moves_by_its_gradients_and_its_decay_alone(done):
    """What round-off leaves of a gradient goes into the step as it is: Nesterov's first is (1 + momentum) lr long."""
    for name, parameter in done.parameters["id"].items():
        before, lr = done.before["id"][name].double(), 0.02 if name.startswith(HEADS) else 0.002
        expected = before - 1.9 * lr * (parameter.grad.double() + 5e-4 * before)
        # Two roundings of the parameter's size, as the step is far smaller.
        rounding = 2 * torch.finfo(parameter.dtype).eps
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=rounding, atol=rounding, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["id", "teacher"])
def test_batch_norms_have_seen_the_published_batches(done, golden, net):
    names = golden[f"bn_names/{net}"]
    assert set(names) == set(done.batch_norms[net])
    norms = [done.batch_norms[net][name] for name in names]
    counts = [int(norm.num_batches_tracked) for norm in norms]
    assert counts == golden[f"{done.prefix}/bn_count_after/{net}"].tolist()
    found = [
        [float(x) for buffer in (norm.running_mean, norm.running_var) for x in (buffer.sum(), buffer.norm())]
        for norm in norms
    ]
    np.testing.assert_allclose(
        found, golden[f"{done.prefix}/bn_after/{net}"], rtol=done.within.batch_norms, atol=done.within.batch_norms
    )
    begin = f"{done.prefix}/bn/{net}/"
    for key in [name for name in golden if name.startswith(begin)]:
        layer, buffer = key.removeprefix(begin).rsplit(".", 1)
        assert error(golden, key, getattr(done.batch_norms[net][layer], buffer)) < done.within.batch_norms, key


@pytest.mark.slow
def test_a_teacher_in_evaluation_gives_the_published_labels_in_every_style(golden):
    trained, _ = filled_teacher(torch.float64)
    x = torch.from_numpy(image("x", (2, 3, 256, 128))).double()
    labels = [torch.from_numpy(golden[f"labels/eval_{name}"]) for name in ("appearance", "structure")]
    said = Teacher([trained], train_bn=False).probabilities(trained, x)
    for style in range(len(losses.TEACHER_STYLES)):
        target = losses.soft_target([said], *labels, style=style)
        # The published code makes its uniform target in float32, so 1/751 is off by 4e-8 there.
        within = 1e-7 if style == 3 else 1e-8
        assert error(golden, f"eval/f64/teacher_target_style{style}", target) < within
    assert error(golden, "eval/f64/teacher_logits", trained.network(x).logits[0]) < 1e-8
    by_batch = Teacher([trained], train_bn=True).networks[0].network(x).logits[0]
    assert error(golden, "eval/f64/teacher_logits_trainbn", by_batch) < 1e-8


def test_weights_and_learning_rates_follow_the_published_schedules(golden):
    weights, optim = LossWeights(), OptimConfig()
    maxima = {"recon_f_w": 1.0, "recon_s_w": 1.0, "recon_x_cyc_w": 2.0, "teacher_w": 2.0}
    ours = {"recon_f_w": "recon_appearance", "recon_s_w": "recon_structure"}
    ours |= {"recon_x_cyc_w": "cycle", "teacher_w": "teacher"}
    rates = {"gen": 1e-4, "dis": 1e-4, "id_backbone": 0.002, "id_head1": 0.02, "id_head2": 0.02}
    names = golden["tables/ramp_names"].tolist()
    assert golden["tables/lr_names"].tolist() == list(rates)
    for row, iteration in enumerate(golden["tables/iterations"].tolist()):
        before = [losses.ramp(iteration, start=30_000, step=weights.warm_scale, maximum=maxima[name]) for name in names]
        assert before == pytest.approx(golden["tables/ramp_before"][row].tolist())
        late = late_weights(iteration, weights)
        # A term whose weight was 0 at the start of the iteration is not computed, whatever its weight has grown to.
        expected = np.where(np.array(before) > 0, golden["tables/ramp_in_total"][row], 0)
        assert [late[ours[name]] for name in names] == pytest.approx(expected.tolist())
        found = [rate * lr_factor(iteration, optim, optim.gamma) for rate in rates.values()]
        assert found == pytest.approx(golden["tables/lr"][row].tolist())


def test_optimizers_hold_parameters_in_the_published_order(golden):
    model = DGNet(NetworksConfig(), num_ids=2)
    names, key_of = published_names(model), {}
    for kind, network in model.networks().items():
        for name, parameter in network.named_parameters():
            key_of[parameter] = names[f"{kind}.{name}"][1]
    optimizers = make_optimizers(model, OptimConfig())

    def keys(group):
        return [key_of[parameter] for parameter in group["params"]]

    (generator,), (discriminator,) = optimizers["generator"].param_groups, optimizers["discriminator"].param_groups
    assert keys(generator) == golden["param_names/gen"].tolist()
    assert keys(discriminator) == golden["param_names/dis"].tolist()
    used = [name for name in golden["param_names/id"] if name not in NEVER_USED]
    heads = [[name for name in used if name.startswith(f"{head}.")] for head in HEADS]
    trunk = [name for name in used if not name.startswith(HEADS)]
    assert [keys(group) for group in optimizers["appearance"].param_groups] == [trunk, *heads]
    assert len(trunk) == 161 - 2


def test_the_optimizers_are_those_of_the_published_training():
    optimizers = make_optimizers(DGNet(NetworksConfig(trunk="small"), num_ids=2), OptimConfig())
    for name in ("generator", "discriminator"):
        (group,) = optimizers[name].param_groups
        assert type(optimizers[name]) is torch.optim.Adam
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.0, 0.999), 1e-8, 5e-4)
    groups = optimizers["appearance"].param_groups
    assert [group["lr"] for group in groups] == [0.002, 0.02, 0.02]
    assert all(
        (g["momentum"], g["nesterov"], g["weight_decay"], g["dampening"]) == (0.9, True, 5e-4, 0) for g in groups
    )
