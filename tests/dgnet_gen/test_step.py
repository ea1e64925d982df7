import dataclasses
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.pairs import PairBatch
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.step import MOST_SKIPPED, DivergedError, Draws, Step, draw, lr_factor, make_optimizers
from dgnet_gen.teacher import Teacher, TrainedNetwork
from reid_models.networks import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.runtime import Runtime

NUM_IDS = 3
TINY = NetworksConfig(
    image_hw=(32, 16),
    trunk="small",
    trunk_width=2,
    bottleneck=8,
    structure_dim=2,
    n_res=1,
    mlp_dim=8,
    discriminator_dim=2,
    discriminator_res=1,
    num_scales=2,
)
CALM = dataclasses.replace(TINY, dropout_primary=0.0, dropout_fine=0.0)
NO_WEIGHTS = LossWeights(
    **dict.fromkeys(vars(LossWeights()), 0.0) | {"warm_iter": 0, "warm_teacher_iter": 0, "warm_scale": 1.0}
)
CONFIG = DGNetTrainConfig(
    networks=TINY, weights=LossWeights(warm_iter=1, warm_teacher_iter=1, warm_scale=0.5), trunk_weights="none"
)
LATE = 10
"""an iteration at which every term is in, with its full weight"""


def make_step(config, *, with_teacher=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = DGNet(config.networks, NUM_IDS)
    for network in model.networks().values():
        network.to(dtype).train()
    for parameter in model.discriminator.parameters():
        parameter.data.mul_(20)  # it starts so small that it would say nothing
    teacher = make_teacher(dtype) if with_teacher else None
    runtime = Runtime.from_environment("cpu", config.precision)
    return Step(model, make_optimizers(model, config.optim), config, runtime, teacher)


def make_teacher(dtype=torch.float32):
    generator = torch.random.get_rng_state()
    torch.manual_seed(5)
    network = Baseline(make_trunk("small", width=2), NUM_IDS, bottleneck=8, dropout=0.0)
    torch.nn.init.normal_(network.classifier.weight)  # a teacher that has an opinion
    torch.random.set_rng_state(generator)
    return Teacher([TrainedNetwork(network.to(dtype), TINY.image_hw, {})])


def make_batch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(3, 3, 4, 2, generator=generator) for _ in range(4)]
    images = [F.interpolate(image, size=TINY.image_hw, mode="bilinear").to(dtype) for image in coarse]
    labels_a, labels_b, rows = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2])
    return PairBatch(images[0], images[1], labels_a, images[2], images[3], labels_b, rows, rows)


def slow_terms(model, updated_discriminator, batch, gan):
    """The terms of a late step, one batch and one network at a time, from the paper's definitions."""

    def l1(made, real):
        return (made - real).abs().mean()

    def game(maps, target):
        if gan == "lsgan":
            return sum((patch_map - target).square().mean() for patch_map in maps)
        return sum(F.binary_cross_entropy(m.sigmoid(), torch.full_like(m, target)) for m in maps)

    def paint(structure, appearance):
        return model.decoder(appearance, structure)

    x_a, x_b, l_a, l_b = batch.anchors_a, batch.anchors_b, batch.labels_a, batch.labels_b
    s_a, s_b = (model.structure_encoder(x.mean(1, keepdim=True)) for x in (x_a, x_b))
    a, b, a2, b2 = (model.appearance_encoder(x) for x in (x_a, x_b, batch.positives_a, batch.positives_b))
    x_ba, x_ab = paint(s_b, a.code), paint(s_a, b.code)
    penalty = 0.0
    for x in (x_a.clone().requires_grad_(), x_b.clone().requires_grad_()):
        for patch_map in model.discriminator(x):
            said = patch_map.sigmoid() if gan == "nsgan" else patch_map
            (slope,) = torch.autograd.grad(said.sum(), x, retain_graph=True)
            penalty += slope.square().sum((1, 2, 3)).mean()
    both_sides = sum(
        game(model.discriminator(fake), 0.0) + game(model.discriminator(real), 1.0)
        for fake, real in ((x_ba, x_a), (x_ab, x_b))
    )
    copy = deepcopy(model.appearance_encoder)
    again_a, again_b = copy(x_ba), copy(x_ab)
    s_a2, s_b2 = (model.structure_encoder(x.mean(1, keepdim=True)) for x in (x_ab, x_ba))
    said_ba, said_ab = model.appearance_encoder(x_ba), model.appearance_encoder(x_ab)
    kl = 0.0
    for said, picture in ((said_ba, x_ba), (said_ab, x_ab)):
        network = make_teacher().networks[0].network
        target = (network(picture).logits[0].softmax(1) + network(picture.flip(3)).logits[0].softmax(1)) / 2
        kl += (target * (target.log() - said.primary.log_softmax(1))).sum(1).mean()
    return {
        "recon_self": l1(paint(s_a, a.code), x_a) + l1(paint(s_b, b.code), x_b),
        "recon_same_id": l1(paint(s_a, a2.code), x_a) + l1(paint(s_b, b2.code), x_b),
        "recon_appearance": l1(again_a.code, a.code) + l1(again_b.code, b.code),
        "recon_structure": l1(s_a2, s_a) + l1(s_b2, s_b),
        "cycle": l1(paint(s_a2, again_a.code), x_a) + l1(paint(s_b2, again_b.code), x_b),
        "adversarial": (2 if gan == "lsgan" else 1) * sum(game(updated_discriminator(x), 1.0) for x in (x_ba, x_ab)),
        "recon_identity": F.cross_entropy(again_a.primary, l_a) + F.cross_entropy(again_b.primary, l_b),
        "identity": F.cross_entropy(a.primary, l_a) + F.cross_entropy(b.primary, l_b),
        "fine_real": F.cross_entropy(a.fine, l_a) + F.cross_entropy(b.fine, l_b),
        "identity_positive": F.cross_entropy(a2.primary, l_a) + F.cross_entropy(b2.primary, l_b),
        "primary": kl,
        "fine": F.cross_entropy(said_ba.fine, l_b) + F.cross_entropy(said_ab.fine, l_a),
        "gradient_penalty": penalty,
        "discriminator": both_sides + 0.01 * penalty,
    }


@pytest.mark.parametrize("encoder_again", [0.0, 1.0])
@pytest.mark.parametrize("gan", ["lsgan", "nsgan"])
def test_the_terms_are_those_of_the_slow_version(encoder_again, gan):
    config = dataclasses.replace(CONFIG, networks=CALM, erasing=0.0, encoder_again=encoder_again, gan=gan)
    step = make_step(config)
    before = deepcopy(step.model)
    terms = step(LATE, [make_batch()])
    expected = slow_terms(before, step.model.discriminator, make_batch(), gan)
    assert terms.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        # Batched and single passes round differently, and batch norms of three pictures amplify it.
        assert terms[name] == pytest.approx(float(value.detach()), rel=1e-4, abs=0), name


def trained_by(term, **changes):
    """The networks that a step changes when all weights but those named are 0."""
    weights = dataclasses.replace(NO_WEIGHTS, **changes.pop("also", {}), **{term: 1.0})
    config = dataclasses.replace(CONFIG, weights=weights, optim=OptimConfig(weight_decay=0.0), **changes)
    step = make_step(config)
    encoder = step.model.appearance_encoder
    parts = step.model.networks() | {"appearance": encoder.trunk, "primary": encoder.primary, "fine": encoder.fine}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    step(LATE, [make_batch()])
    return {
        name
        for name, part in parts.items()
        if any(not torch.equal(old, new) for old, new in zip(before[name], part.parameters(), strict=True))
    }


@pytest.mark.parametrize(
    ("term", "changes", "networks"),
    [
        ("recon_self", {}, {"structure", "decoder"}),
        ("recon_same_id", {}, {"structure", "decoder"}),
        ("adversarial", {}, {"structure", "decoder", "discriminator"}),
        ("recon_identity", {}, {"structure", "decoder"}),
        ("identity", {}, {"appearance", "primary"}),
        ("identity", {"also": {"teacher": 1.0, "fine": 1.0}}, {"appearance", "primary", "fine"}),
        ("identity_positive", {}, {"appearance", "primary"}),
        ("recon_appearance", {}, set()),
        ("recon_structure", {"encoder_again": 1.0}, {"structure"}),
        ("recon_structure", {"encoder_again": 0.0}, {"structure", "decoder"}),
        ("cycle", {"encoder_again": 1.0}, {"structure", "decoder"}),
        ("cycle", {"encoder_again": 0.0}, {"structure", "decoder"}),
        ("primary", {"also": {"teacher": 1.0}}, {"appearance", "primary"}),
        ("fine", {"also": {"teacher": 1.0}}, {"appearance", "fine"}),
        ("teacher", {}, set()),
        ("gradient_penalty", {}, set()),
    ],
)
def test_each_term_trains_only_its_networks(term, changes, networks):
    assert trained_by(term, **changes) == networks


def test_the_structure_encoder_learns_from_its_second_look_or_the_picture_does():
    gradients = {}
    for again in (False, True):
        config = dataclasses.replace(CONFIG, weights=dataclasses.replace(NO_WEIGHTS, recon_structure=1.0))
        step = make_step(config)
        step(LATE, [make_batch()], [Draws(again, None)])
        gradients[again] = [p.grad for p in step.model.decoder.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in gradients[True])
    assert any(gradient is not None and gradient.any() for gradient in gradients[False])


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("term", ["recon_structure", "cycle"])
def test_gradients_of_the_second_look_are_those_of_a_frozen_copy_or_of_frozen_pictures(term, again):
    config = dataclasses.replace(CONFIG, networks=CALM, weights=dataclasses.replace(NO_WEIGHTS, **{term: 1.0}))
    step, batch = make_step(config, dtype=torch.float64), make_batch(dtype=torch.float64)
    model = deepcopy(step.model)
    step(LATE, [batch], [Draws(again, None)])
    x_a, x_b = batch.anchors_a, batch.anchors_b
    s_a, s_b = (model.structure_encoder(x.mean(1, keepdim=True)) for x in (x_a, x_b))
    f_a, f_b = (model.appearance_encoder(x).code for x in (x_a, x_b))
    x_ba, x_ab = model.decoder(f_a, s_b), model.decoder(f_b, s_a)
    if again:
        s_a2, s_b2 = (model.structure_encoder(x.detach().mean(1, keepdim=True)) for x in (x_ab, x_ba))
    else:
        frozen = deepcopy(model.structure_encoder).requires_grad_(False)
        s_a2, s_b2 = (frozen(x.mean(1, keepdim=True)) for x in (x_ab, x_ba))
    if term == "recon_structure":
        loss = (s_a2 - s_a.detach()).abs().mean() + (s_b2 - s_b.detach()).abs().mean()
    else:
        copy = deepcopy(model.appearance_encoder)
        x_aba, x_bab = model.decoder(copy(x_ba).code, s_a2), model.decoder(copy(x_ab).code, s_b2)
        loss = (x_aba - x_a).abs().mean() + (x_bab - x_b).abs().mean()
    loss.backward()
    for name in ("structure_encoder", "decoder"):
        slow = dict(getattr(model, name).named_parameters())
        for key, parameter in getattr(step.model, name).named_parameters():
            expected = torch.zeros_like(parameter) if slow[key].grad is None else slow[key].grad
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-10, msg=f"{name}.{key}")


def test_graphs_are_gone_through_as_soon_as_they_are_complete():
    now, peak, total = 0, 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal now, peak, total
            self.tensor, self.size = tensor, tensor.nbytes
            now, total = now + self.size, total + self.size
            peak = max(peak, now)

        def __del__(self):
            nonlocal now
            now -= self.size

    step = make_step(CONFIG)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step(LATE, [make_batch()])
    assert now == 0
    assert peak < 0.5 * total


def test_no_pass_is_made_twice_and_no_graph_is_kept_that_nobody_reads():
    step = make_step(dataclasses.replace(CONFIG, erasing=0.5))
    calls = {name: [] for name in (*step.model.networks(), "teacher")}
    networks = step.model.networks() | {"teacher": step.teacher.networks[0].network}
    for name, network in networks.items():
        network.register_forward_hook(lambda *_, name=name: calls[name].append(torch.is_grad_enabled()))
    step(LATE, [make_batch()])
    # Clean photographs give codes alone; then erased ones, the frozen view, and what the heads learn from.
    assert calls["appearance"] == [False, True, True, True]
    assert calls["teacher"] == [False]
    # What belongs together goes through together: the decoder paints people as they are, then swapped, then swapped
    # back.
    assert [len(calls[name]) for name in ("structure", "decoder", "discriminator")] == [2, 3, 3]


def test_without_a_teacher_its_terms_are_absent_and_the_fine_head_rests():
    step = make_step(CONFIG, with_teacher=False)
    terms = step(LATE, [make_batch()])
    assert not terms.keys() & {"primary", "fine", "fine_real"}
    encoder = step.model.appearance_encoder
    assert all(parameter.grad is None for parameter in encoder.fine.parameters())
    assert all(parameter.grad is not None for parameter in encoder.primary.parameters())


def test_before_the_teacher_is_let_in_only_weight_decay_acts_on_the_fine_head():
    step = make_step(CONFIG)
    before = [parameter.detach().clone() for parameter in step.model.appearance_encoder.fine.parameters()]
    terms = step(0, [make_batch()])
    assert not terms.keys() & {"primary", "fine"}
    for old, parameter in zip(before, step.model.appearance_encoder.fine.parameters(), strict=True):
        assert parameter.grad is not None
        # Nesterov's first step with gradient g = 5e-4 w is lr (1 + momentum) g.
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.02 * 1.9 * 5e-4))


def test_the_fine_head_follows_the_teachers_weight_one_iteration_later():
    step = make_step(dataclasses.replace(CONFIG, weights=dataclasses.replace(CONFIG.weights, warm_scale=0.25)))
    for iteration, before in ((2, 0.0), (3, 0.25), (4, 0.5)):
        terms = step(iteration, [make_batch()])
        late, weights = step.settings_at(iteration), step.config.weights
        expected = sum(terms[name] * getattr(weights, name) for name in EARLY) + terms["fine_real"] * before * 0.2
        expected += sum(
            terms.get(name, 0.0) * late[f"weight_{name}"] for name in ("recon_appearance", "recon_structure", "cycle")
        )
        expected += late["weight_teacher"] * (terms.get("primary", 0.0) + 0.2 * terms.get("fine", 0.0))
        assert terms["total"] == pytest.approx(expected, rel=1e-5)


EARLY = "recon_self", "recon_same_id", "adversarial", "recon_identity", "identity", "identity_positive"


@pytest.mark.parametrize(
    ("erasing", "with_teacher", "passes"), [(0.0, False, 4), (0.5, False, 8), (0.5, True, 10), (0.0, True, 6)]
)
def test_batch_norms_see_each_batch_once_and_swapped_pictures_only_as_lessons(erasing, with_teacher, passes):
    step = make_step(dataclasses.replace(CONFIG, erasing=erasing), with_teacher=with_teacher)
    step(LATE, [make_batch()])
    counts = {
        int(buffer)
        for name, buffer in step.model.appearance_encoder.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    assert counts == {passes}


@pytest.mark.parametrize("train_bn", [True, False])
def test_the_frozen_view_normalises_as_told_and_leaves_no_trace(train_bn):
    config = dataclasses.replace(CONFIG, train_bn=train_bn, erasing=0.0, networks=CALM)
    step, batch = make_step(config), make_batch()
    encoder = deepcopy(step.model.appearance_encoder)
    pictures = []
    step.model.decoder.register_forward_hook(lambda module, inputs, output: pictures.append(output.detach().chunk(2)))
    terms = step(0, [batch])
    for images in (batch.anchors_a, batch.anchors_b, batch.positives_a, batch.positives_b):
        encoder(images)
    encoder.train(train_bn)
    expected = sum(
        F.cross_entropy(encoder(picture).primary, labels)
        for picture, labels in zip(pictures[1], (batch.labels_a, batch.labels_b), strict=True)
    )
    assert terms["recon_identity"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_late_terms_are_computed_only_when_their_ramp_has_begun():
    step = make_step(CONFIG)  # warm_iter 1
    late = {"cycle", "recon_structure", "recon_appearance", "primary", "fine"}
    assert not late & step(2, [make_batch()]).keys()
    assert late <= step(3, [make_batch()]).keys()


def test_codes_are_looked_at_again_only_for_terms_that_count():
    weights = dataclasses.replace(CONFIG.weights, recon_structure=0.0, cycle=0.0)
    step, calls = make_step(dataclasses.replace(CONFIG, weights=weights)), []
    step.model.structure_encoder.register_forward_hook(lambda *_: calls.append(1))
    step(LATE, [make_batch()])
    assert len(calls) == 1


@pytest.mark.parametrize("again", [False, True])
def test_the_same_batch_twice_teaches_what_it_teaches_once(again):
    config = dataclasses.replace(CONFIG, networks=CALM)
    updated = []
    gray = draw(make_batch(dtype=torch.float64), 3, erasing=0.0, encoder_again=1.0, tone=1.0).gray
    for count in (1, 2):
        step = make_step(config, dtype=torch.float64)
        terms = step(LATE, [make_batch(dtype=torch.float64)] * count, [Draws(again, None, gray)] * count)
        networks = step.model.networks()
        updated.append(
            (terms, {f"{n}.{k}": p.detach() for n, net in networks.items() for k, p in net.named_parameters()})
        )
    (terms, once), (terms2, twice) = updated
    assert terms2 == pytest.approx(terms)
    for name, parameter in once.items():
        if not name.endswith("conv.bias"):  # where a norm follows, its gradient is round-off, and Adam's step is not
            torch.testing.assert_close(twice[name], parameter, msg=name)


def test_accumulated_batches_are_drawn_apart():
    step = make_step(dataclasses.replace(CONFIG, erasing=1.0))
    first, second = (step._draw(make_batch(), number).erased for number in (0, 1))
    assert not torch.equal(first[0], second[0])


def test_erasing_changes_the_identity_terms_alone():
    batch = make_batch()
    erased = tuple(torch.zeros_like(images) + images.mean() for images in (batch[0], batch[3], batch[1], batch[4]))
    terms = [
        make_step(dataclasses.replace(CONFIG, networks=CALM))(0, [batch], [Draws(True, drawn)])
        for drawn in (None, erased)
    ]
    changed = {name for name in terms[0] if terms[0][name] != pytest.approx(terms[1][name], rel=1e-6)}
    # The frozen view normalises by the batch, so what photographs did to running statistics does not matter.
    assert changed == {"identity", "identity_positive", "fine_real", "total"}


def test_a_tone_is_seen_by_the_structure_encoder_and_by_nobody_else():
    batch = make_batch()
    gray = draw(batch, 3, erasing=0.0, encoder_again=1.0, tone=1.0).gray
    step = make_step(dataclasses.replace(CONFIG, networks=CALM))
    seen = []
    step.model.structure_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = [
        step(0, [batch], [Draws(True, None, gray)]),
        make_step(dataclasses.replace(CONFIG, networks=CALM))(0, [batch], [Draws(True, None)]),
    ]
    assert torch.equal(seen[0], gray)
    assert not torch.allclose(gray, torch.cat([batch.anchors_a, batch.anchors_b]).mean(1, keepdim=True))
    same = {name for name in terms[0] if terms[0][name] == pytest.approx(terms[1][name], rel=1e-6)}
    assert same == {"identity", "identity_positive", "fine_real", "gradient_penalty"}


def test_draws_follow_their_probabilities_and_their_seed():
    batch = make_batch()
    assert draw(batch, 3, erasing=0.0, encoder_again=1.0) == Draws(True, None)
    assert draw(batch, 3, erasing=0.0, encoder_again=0.0) == Draws(False, None)
    half = [draw(batch, seed, erasing=0.0, encoder_again=0.5).trains_encoder for seed in range(400)]
    assert sum(half) == pytest.approx(200, abs=50)  # five deviations of a fair coin
    one, two = (draw(batch, 8, erasing=0.9, encoder_again=0.5) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one.erased, two.erased, strict=True))
    assert not torch.equal(one.erased[0], batch.anchors_a)


def test_a_moving_average_follows_the_generator():
    step = make_step(dataclasses.replace(CONFIG, ema_decay=0.5))
    average = [parameter.clone() for parameter in step.average.decoder.parameters()]
    for iteration in range(3):
        step(iteration, [make_batch()])
        decay = min(0.5, (iteration + 1) / (iteration + 11))
        now = step.model.decoder.parameters()
        average = [decay * mean + (1 - decay) * new.detach() for mean, new in zip(average, now, strict=True)]
    for mean, expected in zip(step.average.decoder.parameters(), average, strict=True):
        torch.testing.assert_close(mean, expected)
    assert not any(parameter.requires_grad for parameter in step.average.structure_encoder.parameters())
    assert step.average.appearance_encoder is step.model.appearance_encoder


def test_without_a_moving_average_the_model_itself_is_shown():
    step = make_step(CONFIG)
    assert step.average.networks() == step.model.networks()


@pytest.mark.parametrize(("network", "term"), [("discriminator", "discriminator"), ("decoder", "recon_self")])
def test_a_term_that_is_not_finite_stops_before_the_update(network, term):
    step = make_step(CONFIG)
    next(step.model.networks()[network].parameters()).data.fill_(torch.nan)
    before = deepcopy({name: net.state_dict() for name, net in step.model.networks().items()})
    with pytest.raises(
        DivergedError, match=rf"iteration 1: .*{term}.* not finite at lr_generator 0.0001, .*\(batch with"
    ):
        step(0, [make_batch()])
    for name, net in step.model.networks().items():
        parameters = dict(net.named_parameters())
        assert all(torch.equal(before[name][key], p.detach()) or p.isnan().any() for key, p in parameters.items())


def test_float16_without_a_finite_gradient_skips_and_then_gives_up():
    step = make_step(CONFIG)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # every gradient overflows
    before = deepcopy(step.model.decoder.state_dict())
    step(0, [make_batch()])
    assert step.skipped == 1
    assert all(torch.equal(before[name], value) for name, value in step.model.decoder.state_dict().items())
    step.skipped = MOST_SKIPPED - 1
    with pytest.raises(DivergedError, match=f"no finite float16 gradient in {MOST_SKIPPED} steps"):
        step(1, [make_batch()])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_first_step_leaves_no_momentum(parts):
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written holds NaN
    try:
        step = make_step(dataclasses.replace(CONFIG, precision="fp16"))
        step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        step(0, [make_batch()] * parts)
        assert step.skipped == 1
        for name in ("generator", "appearance"):
            for state in step.optimizers[name].state.values():
                assert all(not value.any() for value in state.values())
        step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        step(1, [make_batch()] * parts)
        assert step.skipped == 0
        for network in step.model.networks().values():
            assert all(value.isfinite().all() for value in network.state_dict().values())
    finally:
        torch.use_deterministic_algorithms(False)


def test_swapped_pictures_teach_the_primary_head_whose_clothes_and_the_fine_head_whose_pose():
    step, batch = make_step(dataclasses.replace(CONFIG, networks=CALM, erasing=0.0)), make_batch()
    step.teacher = Teacher(step.teacher.networks, style=2)  # its word is the appearance's label
    seen = []
    step.model.appearance_encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    terms = step(LATE, [batch])
    clothes = torch.cat([batch.labels_a, batch.labels_b])  # x_ba, then x_ab, which wear those of the first
    pose = torch.cat([batch.labels_b, batch.labels_a])
    assert terms["primary"] == pytest.approx(2 * F.cross_entropy(seen[-1].primary, clothes).item())
    assert terms["fine"] == pytest.approx(2 * F.cross_entropy(seen[-1].fine, pose).item())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_terms(precision):
    config = dataclasses.replace(CONFIG, networks=CALM, erasing=0.0)
    full = make_step(config)(LATE, [make_batch()])
    half = make_step(dataclasses.replace(config, precision=precision))(LATE, [make_batch()])
    # bfloat16 keeps eight bits, and a batch norm over three pictures divides by small deviations.
    for name in ("recon_self", "recon_same_id", "discriminator", "cycle", "recon_structure"):
        assert half[name] == pytest.approx(full[name], rel=0.1), name
    assert half["gradient_penalty"] == pytest.approx(full["gradient_penalty"])  # of photographs, in float32


def test_training_on_one_batch_learns_to_paint_and_to_recognise_it():
    networks = dataclasses.replace(TINY, dropout_primary=0.0, structure_dim=4)
    weights = dataclasses.replace(NO_WEIGHTS, recon_self=5.0, identity=1.0)
    optim = OptimConfig(lr_generator=5e-3, lr_appearance=0.02)
    config = dataclasses.replace(CONFIG, networks=networks, weights=weights, erasing=0.0, optim=optim)
    step, batch = make_step(config, with_teacher=False), make_batch()
    first = step(0, [batch])
    for _ in range(80):
        last = step(0, [batch])
    assert last["recon_self"] < 0.5 * first["recon_self"]
    assert last["identity"] < 0.1 * first["identity"]


@pytest.mark.parametrize(
    ("policy", "iteration", "factor"),
    [
        ("multistep", 0, 1),
        ("multistep", 59_998, 1),
        ("multistep", 59_999, 0.1),
        ("multistep", 89_998, 0.1),
        ("multistep", 89_999, 0.01),
        ("multistep", 104_999, 0.001),
        ("step", 59_998, 1),
        ("step", 59_999, 0.1),
        ("step", 179_999, 0.001),
        ("constant", 10**6, 1),
    ],
)
def test_learning_rates_fall_as_published(policy, iteration, factor):
    assert lr_factor(iteration, OptimConfig(policy=policy), 0.1) == pytest.approx(factor)


def test_heads_learn_faster_than_the_trunk_and_the_encoder_has_a_decay_of_its_own():
    optim = OptimConfig(policy="step", step_size=2, gamma=0.5, gamma_appearance=0.1)
    step = make_step(dataclasses.replace(CONFIG, optim=optim))
    step(0, [make_batch()])
    assert [group["lr"] for group in step.optimizers["appearance"].param_groups] == [0.002, 0.02, 0.02]
    step(1, [make_batch()])
    assert [group["lr"] for group in step.optimizers["appearance"].param_groups] == pytest.approx([2e-4, 2e-3, 2e-3])
    assert step.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(5e-5)
    assert step.settings_at(1)["lr_appearance"] == pytest.approx(2e-4)
