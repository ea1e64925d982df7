"""Training of the other networks and losses, and every setting of a step."""

import copy
import dataclasses
import math

import pytest
import torch

from reid_eval.errors import Stopped
from reid_models import training
from reid_models.config import ConfigError, config_from_dict
from reid_models.data.loading import PersonDataset, make_loader
from reid_models.data.samplers import IdentitySampler
from reid_models.extraction import load_embedder
from reid_models.networks import MGN
from reid_models.networks.folding import folded
from reid_models.runs import RunDir
from reid_models.runtime import Runtime
from reid_models.training import OptimConfig, ReidTrainConfig, ScheduleConfig, build_network, make_optimizer, train_reid

MGN_TINY = {
    "image_hw": [48, 16],
    "network": {"kind": "mgn", "trunk": "small", "width": 4, "weights": "none", "head_features": 8},
    "sampler": {"ids_per_batch": 4, "images_per_id": 2},
    "loss": {"terms": "1*CrossEntropy+2*Triplet", "margin": 1.2, "label_smoothing": 0.0},
    "schedule": {"epochs": 4, "warmup_epochs": 0},
    "num_workers": 0,
    "log_every": 3,
    "eval_every": 4,
    "checkpoint_every": 4,
}


def config(**groups):
    values = {**MGN_TINY}
    for name, value in groups.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return config_from_dict(ReidTrainConfig, values)


def train(index, out, *, resume=False, stop_at=None, **groups):
    chosen = config(**groups)
    runtime = Runtime.from_environment("cpu", chosen.precision)
    return train_reid(chosen, index, out, runtime, resume=resume, stop_at=stop_at)


def weights_of(run, network="reid"):
    return run.load("last").networks[network]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("granularities", ["1-2-3", "1-2-4", "1-3-4", "1-2-3-4"])
def test_every_layout_trains_and_is_extracted_from(toy_index, tmp_path, granularities):
    network = {"granularities": granularities, "classifier_bias": granularities == "1-2-3"}
    run = train(toy_index, tmp_path / "run", network=network, image_hw=[96, 16])
    heads = {name.split(".")[1] for name in weights_of(run) if name.startswith("heads.")}
    assert load_embedder(run.path).num_features == 8 * len(heads)
    assert run.load("last").progress["best_map"] > 0


@pytest.mark.parametrize(
    ("terms", "logged"),
    [
        ("1*CrossEntropy+2*Triplet", {"cross_entropy", "triplet"}),
        ("1*CrossEntropy+2*MSMLLoss", {"cross_entropy", "msml"}),
        ("1*CrossEntropy+2*Triplet+0.005*CenterLoss", {"cross_entropy", "triplet", "center"}),
        ("CrossEntropy+SoftTriplet+0.1*Circle", {"cross_entropy", "soft_triplet", "circle"}),
    ],
)
def test_every_loss_trains_and_is_logged_under_its_name(toy_index, tmp_path, terms, logged):
    line = train(toy_index, tmp_path / "run", loss={"terms": terms}).read_log()[0]
    assert logged == line.keys() - {"iteration", "lr", "epoch"}
    assert all(math.isfinite(line[name]) for name in logged)


def test_pcb_trains_with_the_identity_loss(toy_index, tmp_path):
    network = {"kind": "pcb", "num_stripes": 3}
    run = train(toy_index, tmp_path / "run", network=network, loss={"terms": "CrossEntropy"})
    assert load_embedder(run.path).num_features == 3 * 32


def test_a_run_that_stops_after_every_epoch_equals_one_that_never_stops(toy_index, tmp_path):
    groups = {"optim": {"amsgrad": True}, "augmentation": {"erase": 0.5}, "checkpoint_every": 1, "eval_every": 2}
    straight = train(toy_index, tmp_path / "straight", **groups)
    epoch = straight.load("last").iteration // 4
    for finished in (1, 2, 3):
        with pytest.raises(Stopped):
            train(toy_index, tmp_path / "stopped", stop_at=finished * epoch, resume=finished > 1, **groups)
    stopped = train(toy_index, tmp_path / "stopped", resume=True, **groups)
    assert_same(weights_of(stopped), weights_of(straight))
    assert stopped.read_log() == straight.read_log()
    assert stopped.load("best").progress == straight.load("best").progress


@pytest.mark.parametrize(
    ("ids_per_batch", "image_hw", "head_features"),
    [(3, [48, 16], 8), (2, [64, 48], 8), (4, [16, 16], 3), (3, [128, 16], 1)],
    ids=["one-person-left-over", "wide", "small", "tall"],
)
def test_batches_pictures_and_heads_may_have_any_size(toy_index, tmp_path, ids_per_batch, image_hw, head_features):
    network = {"head_features": head_features, "granularities": "1-2"}
    sampler = {"ids_per_batch": ids_per_batch, "epoch": "identities"}
    run = train(toy_index, tmp_path / "run", network=network, sampler=sampler, image_hw=image_hw)
    assert load_embedder(run.path, device="cpu").num_features == 4 * head_features


def test_more_pictures_of_a_person_than_there_are_is_told(toy_index, tmp_path, caplog):
    train(toy_index, tmp_path / "enough", schedule={"epochs": 1})
    assert "fewer pictures" not in caplog.text
    run = train(toy_index, tmp_path / "run", sampler={"images_per_id": 9}, schedule={"epochs": 1})
    assert "4 of 4 identities have fewer pictures than sampler.images_per_id=9" in caplog.text
    assert run.load("last").progress["best_map"] > 0


def test_centres_move_and_are_resumed_like_everything_else(toy_index, tmp_path):
    groups = {
        "loss": {"terms": "CrossEntropy+0.005*CenterLoss"},
        "ema_decay": 0.9,
        "accumulate": 2,
        "optim": {"kind": "nadam"},
        "schedule": {"epochs": 6},
    }
    straight = train(toy_index, tmp_path / "straight", **groups)
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "stopped", stop_at=2, **groups)
    early = RunDir.open(tmp_path / "stopped").load("last").networks["loss"]
    stopped = train(toy_index, tmp_path / "stopped", resume=True, **groups)
    for network in ("reid", "average", "loss"):
        assert_same(weights_of(stopped, network), weights_of(straight, network))
    assert stopped.read_log() == straight.read_log()
    assert not torch.equal(early["center.centers"], weights_of(stopped, "loss")["center.centers"])


def test_batches_of_one_step_give_the_mean_of_their_gradients(toy_index):
    chosen = config(
        optim={"kind": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}, accumulate=3
    )
    index, runtime = toy_index.split("train_all"), Runtime.from_environment("cpu")
    sampler = IdentitySampler(index.label_array, 4, 2, seed=0)
    parts = list(make_loader(PersonDataset(index, chosen.image_hw), sampler.batches(0, 3)))
    network = build_network(chosen.network, index.num_ids)
    alone = copy.deepcopy(network).train()
    trainer = training._Trainer(chosen, network, sampler, runtime, index)
    total = torch.zeros(())
    for part in parts:
        output = alone(part.images)
        total = total + trainer.loss(output.logits, output.metric, part.labels)[0] / 3
    total.backward()
    trainer.step(parts)
    for name, before in alone.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), before - 0.01 * before.grad)
    assert (trainer.iteration, trainer.iterations) == (1, 4 * 1)


def test_a_moving_average_is_evaluated_and_extracted_from(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", ema_decay=0.5, schedule={"epochs": 1})
    average, network = weights_of(run, "average"), weights_of(run)
    assert any(not torch.equal(average[name], network[name]) for name in network)
    expected = build_network(run.config(ReidTrainConfig).network, 4, load_weights=False)
    expected.load_state_dict(average)
    assert_same(load_embedder(run.path, device="cpu").network.state_dict(), folded(expected).state_dict())


def test_a_moving_average_follows_its_recurrence(toy_index, tmp_path):
    networks = []
    original = training._Trainer._move_average

    def spy(trainer, average):
        before = {name: value.clone() for name, value in average.named_parameters()}
        original(trainer, average)
        networks.append((trainer.iteration, before, dict(trainer.network.named_parameters())))
        decay = min(0.5, trainer.iteration / (trainer.iteration + 10))
        for name, value in average.named_parameters():
            expected = decay * before[name] + (1 - decay) * trainer.network.get_parameter(name)
            torch.testing.assert_close(value, expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Trainer, "_move_average", spy)
        train(toy_index, tmp_path / "run", ema_decay=0.5, schedule={"epochs": 2})
    assert len(networks) == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_an_mgn(toy_index, tmp_path, precision):
    run = train(toy_index, tmp_path / "run", precision=precision)
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights_of(run).values())
    assert (run.load("last").progress["scaler"] != {}) == (precision == "fp16")


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(toy_index, tmp_path, monkeypatch, caplog):
    def refuse(module):
        def call(*inputs):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    plain = train(toy_index, tmp_path / "plain", schedule={"epochs": 1})
    run = train(toy_index, tmp_path / "run", compile=True, schedule={"epochs": 1})
    assert_same(weights_of(run), weights_of(plain))
    assert "torch.compile does not work here, going on without it (no compiler here)" in caplog.text


@pytest.mark.parametrize("kind", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
def test_every_optimizer_trains(toy_index, tmp_path, kind):
    run = train(toy_index, tmp_path / "run", optim={"kind": kind, "amsgrad": True, "lr": 1e-4}, schedule={"epochs": 1})
    assert run.iterations() == [3]


def by_hand(kind, weight, gradients, settings):
    """A weight after steps with these gradients, from the formulas of the optimizers, in float64."""
    lr, decay = settings.lr, settings.weight_decay
    beta1, beta2, momentum = settings.beta1, settings.beta2, settings.momentum
    mean = square = largest = buffer = 0.0
    product = 1.0
    for step, gradient in enumerate(gradients, 1):
        if kind == "adamw":
            weight -= lr * decay * weight
        else:
            gradient += decay * weight
        if kind == "sgd":
            buffer = gradient if step == 1 else momentum * buffer + (1 - settings.dampening) * gradient
            weight -= lr * (gradient + momentum * buffer if settings.nesterov else buffer)
            continue
        if kind == "rmsprop":
            square = 0.99 * square + 0.01 * gradient**2
            buffer = momentum * buffer + gradient / (square**0.5 + settings.eps)
            weight -= lr * buffer
            continue
        mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
        if kind == "nadam":  # Dozat 2016, with PyTorch's momentum decay of 4e-3
            now, following = (beta1 * (1 - 0.5 * 0.96 ** (at * 4e-3)) for at in (step, step + 1))
            product *= now
            nudged = (1 - now) * gradient / (1 - product) + following * mean / (1 - product * following)
            weight -= lr * nudged / ((square / (1 - beta2**step)) ** 0.5 + settings.eps)
            continue
        largest = max(largest, square) if settings.amsgrad else square
        weight -= lr * mean / (1 - beta1**step) / ((largest / (1 - beta2**step)) ** 0.5 + settings.eps)
    return weight


OPTIMIZERS = [
    ("adam", {"amsgrad": True}), ("adam", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-2}), ("adamw", {}), ("nadam", {}),
    ("rmsprop", {}), ("sgd", {}), ("sgd", {"nesterov": False, "dampening": 0.1, "momentum": 0.8}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=str)
def test_every_optimizer_steps_by_its_formula_and_its_decay_acts_on_trunk_and_head(kind, settings):
    optim = OptimConfig(kind=kind, lr=0.1, weight_decay=0.3, trunk_lr_factor=0.5, **settings)
    network = build_network(config(network={"kind": "baseline"}, loss={"terms": "CrossEntropy"}).network, num_ids=3)
    optimizer = make_optimizer(network, optim)
    for group, factor in zip(optimizer.param_groups, (0.5, 1.0), strict=True):
        weight = group["params"][-1]
        weight.data.fill_(2.0)
        group["expected"] = by_hand(kind, 2.0, [0.7, -0.2, 0.5], dataclasses.replace(optim, lr=0.1 * factor))
    for gradient in (0.7, -0.2, 0.5):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    for group in optimizer.param_groups:
        weight = group["params"][-1]
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, group["expected"]))


def test_the_defaults_of_an_optimizer_are_those_of_mgn_pytorch():
    adam = make_optimizer(build_network(config().network, num_ids=3), OptimConfig(lr=2e-4, amsgrad=True)).defaults
    assert (adam["amsgrad"], adam["betas"], adam["eps"], adam["weight_decay"]) == (True, (0.9, 0.999), 1e-8, 5e-4)


def test_shared_part_and_branches_learn_as_the_trunk_and_heads_as_the_head():
    network = build_network(config().network, num_ids=3)
    assert isinstance(network, MGN)
    trunk, head = make_optimizer(network, OptimConfig(lr=1.0, trunk_lr_factor=0.1)).param_groups
    assert (trunk["lr"], head["lr"]) == (pytest.approx(0.1), 1.0)
    in_head = {id(parameter) for parameter in head["params"]}
    assert in_head == {id(parameter) for parameter in network.heads.parameters()}


def test_the_published_decay_holds_for_the_epochs_of_its_log():
    """decay_type step_320_380 at 2e-4: epochs 1, 320, 321, 380, 381, 400, counted from 1."""
    schedule = ScheduleConfig(kind="multistep", epochs=400, warmup_epochs=0, milestones=[320, 380])
    rates = [2e-4 * schedule.lr_factor((epoch - 1) * 47, 47) for epoch in (1, 320, 321, 380, 381, 400)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6])
    step = ScheduleConfig(kind="step", step_epochs=60, warmup_epochs=0)
    assert [step.lr_factor((epoch - 1) * 47, 47) for epoch in (1, 60, 61, 121)] == pytest.approx([1, 1, 0.1, 0.01])


def test_an_epoch_of_identities_is_that_of_the_original():
    labels = [label for label in range(751) for _ in range(5)]
    sampler = IdentitySampler(labels, 16, 4, seed=0, epoch="identities")
    assert sampler.iterations_per_epoch == 47
    assert len(sampler.batch(46)) == 64


def test_re_ranking_as_it_goes_decides_the_best(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", eval_rerank=True)
    line = next(line for line in run.read_log() if "eval_map_hits_rerank" in line)
    assert run.load("best").progress["best_map"] == line["eval_map_hits_rerank"] != line["eval_map_hits"]


def test_collapsed_vectors_are_told(toy_index, tmp_path, monkeypatch, caplog):
    def collapse(metric, labels, *, margin):
        return training.losses.Spread(1.0, 0.5, 1.0, 1.0)

    monkeypatch.setattr(training.losses, "spread_of_distances", collapse)
    train(toy_index, tmp_path / "run", log_every=1)
    told = [record.message for record in caplog.records if record.message.startswith("collapsed")]
    assert len(told) == 1
    assert "lower optim.lr" in told[0]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"network": {"granularities": "2-3"}}, "network.granularities: granularities must be 1"),
        ({"network": {"granularities": "1-x"}}, "network.granularities: granularities must be numbers"),
        ({"network": {"kind": "mgm"}}, "mgm"),
        ({"network": {"pool": "avq"}}, "avq"),
        ({"loss": {"terms": "1*CrossEntropy+2*MSMLLos"}}, "did you mean msml"),
        ({"loss": {"terms": ""}}, "loss.terms"),
        ({"loss": {"center_lr": 0}}, "loss.center_lr: must be positive"),
        ({"network": {"kind": "pcb"}}, "pcb has no vectors for metric losses"),
        ({"sampler": {"kind": "shuffled"}}, "triplet needs sampler.kind=identity"),
        ({"optim": {"kind": "sgd", "dampening": 0.5}}, "optim.nesterov"),
        ({"ema_decay": 1.0}, "ema_decay: must be 0 to below 1"),
        ({"accumulate": 0}, "accumulate: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(groups, message):
    with pytest.raises(ConfigError, match=message):
        config(**groups)


def test_a_run_says_which_network_it_is(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", schedule={"epochs": 1})
    assert run.load("last").config["network"]["granularities"] == "1-2-3"
    assert dataclasses.asdict(run.config(ReidTrainConfig)) == dataclasses.asdict(config(schedule={"epochs": 1}))
