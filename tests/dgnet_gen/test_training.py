import dataclasses
import json
import os
import signal
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from dgnet_gen.cli import main
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.pairs import PairBatch
from dgnet_gen.training import (
    DGNetTrainConfig,
    DivergedError,
    LossWeights,
    OptimConfig,
    Step,
    lr_factor,
    make_optimizers,
    train_dgnet,
)
from reid_eval.errors import Stopped
from reid_eval.files import save_image
from reid_models.config import ConfigError, dump_config
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord
from reid_models.runs import CheckpointError, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import WeightsError

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
NO_WEIGHTS = LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0) | {"warm_iter": 0, "warm_scale": 1.0})
CONFIG = DGNetTrainConfig(
    networks=TINY,
    weights=LossWeights(warm_iter=1, warm_scale=0.5),
    trunk_weights="none",
    batch_size=3,
    max_iter=6,
    pad_px=2,
    num_workers=0,
    log_every=2,
    sample_every=4,
    checkpoint_every=3,
)
LATE = 10
"""an iteration at which every term is in"""


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "data", people=3)


def make_index(folder, people):
    """Plain-coloured people on noise, four pictures of each."""
    generator = np.random.default_rng(0)
    records = []
    for pid in range(people):
        colour = generator.integers(0, 256, 3)
        for number in range(4):
            pixels = generator.integers(0, 256, (32, 16, 3), dtype=np.uint8)
            pixels[6:28, 4:12] = colour
            path = folder / "bounding_box_train" / f"{pid + 1:04}_c{number % 2 + 1}s1_{number:06}_00.png"
            save_image(path, pixels)
            records.append(ImageRecord(path, pid + 1, number % 2 + 1, "train"))
    return DatasetIndex(folder, "market1501", tuple(records))


def cpu():
    return Runtime.from_environment("cpu")


def make_step(config):
    torch.manual_seed(0)
    model = DGNet(config.networks, num_ids=3)
    for network in model.networks().values():
        network.train()
    return Step(model, make_optimizers(model, config.optim), config, cpu())


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(3, 3, 4, 2, generator=generator) for _ in range(4)]
    images = [F.interpolate(image, size=TINY.image_hw, mode="bilinear") for image in coarse]
    labels_a, labels_b, rows = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2])
    return PairBatch(images[0], images[1], labels_a, images[2], images[3], labels_b, rows, rows)


def slow_terms(model, updated_discriminator, batch):
    """The terms of a late step, one batch and one network at a time, from the paper's definitions."""

    def l1(made, real):
        return (made - real).abs().mean()

    def mean_square(maps, target):
        return sum((patch_map - target).square().mean() for patch_map in maps)

    def paint(structure, appearance):
        return model.decoder(appearance, structure)

    x_a, x_b, l_a, l_b = batch.anchors_a, batch.anchors_b, batch.labels_a, batch.labels_b
    s_a, s_b = (model.structure_encoder(x.mean(1, keepdim=True)) for x in (x_a, x_b))
    a, b, a2, b2 = (model.appearance_encoder(x) for x in (x_a, x_b, batch.positives_a, batch.positives_b))
    x_ba, x_ab = paint(s_b, a.code), paint(s_a, b.code)
    penalty = 0.0
    for x in (x_a.clone().requires_grad_(), x_b.clone().requires_grad_()):
        for patch_map in model.discriminator(x):
            (slope,) = torch.autograd.grad(patch_map.sum(), x, retain_graph=True)
            penalty += slope.square().sum((1, 2, 3)).mean()
    game = sum(
        mean_square(model.discriminator(fake), 0) + mean_square(model.discriminator(real), 1)
        for fake, real in ((x_ba, x_a), (x_ab, x_b))
    )
    copy = deepcopy(model.appearance_encoder)
    again_a, again_b = copy(x_ba), copy(x_ab)
    s_a2, s_b2 = (model.structure_encoder(x.mean(1, keepdim=True)) for x in (x_ab, x_ba))
    return {
        "recon_self": l1(paint(s_a, a.code), x_a) + l1(paint(s_b, b.code), x_b),
        "recon_same_id": l1(paint(s_a, a2.code), x_a) + l1(paint(s_b, b2.code), x_b),
        "recon_structure": l1(s_a2, s_a) + l1(s_b2, s_b),
        "cycle": l1(paint(s_a2, again_a.code), x_a) + l1(paint(s_b2, again_b.code), x_b),
        "adversarial": 2 * sum(mean_square(updated_discriminator(x), 1) for x in (x_ba, x_ab)),
        "recon_identity": F.cross_entropy(again_a.primary, l_a) + F.cross_entropy(again_b.primary, l_b),
        "identity": F.cross_entropy(a.primary, l_a) + F.cross_entropy(b.primary, l_b),
        "identity_positive": F.cross_entropy(a2.primary, l_a) + F.cross_entropy(b2.primary, l_b),
        "gradient_penalty": penalty,
        "discriminator": game + 0.01 * penalty,
    }


@pytest.mark.parametrize("encoder_again", [0.0, 1.0])
def test_the_terms_are_those_of_the_slow_version(encoder_again):
    networks = dataclasses.replace(TINY, dropout_primary=0.0, dropout_fine=0.0)
    step = make_step(dataclasses.replace(CONFIG, networks=networks, erasing=0.0, encoder_again=encoder_again))
    before = deepcopy(step.model)
    terms = step(LATE, make_batch())
    expected = slow_terms(before, step.model.discriminator, make_batch())
    assert terms.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value.detach()), rel=1e-4), name


def trained_by(term, **changes):
    """The networks that a step changes when all weights but one are 0."""
    weights = dataclasses.replace(NO_WEIGHTS, **{term: 1.0})
    config = dataclasses.replace(CONFIG, weights=weights, optim=OptimConfig(weight_decay=0.0), **changes)
    step = make_step(config)
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in step.model.networks().items()}
    step(LATE, make_batch())
    return {
        name
        for name, net in step.model.networks().items()
        if any(not torch.equal(old, new) for old, new in zip(before[name], net.parameters(), strict=True))
    }


@pytest.mark.parametrize(
    ("term", "encoder_again", "networks"),
    [
        ("recon_self", 0.5, {"structure", "decoder"}),
        ("recon_same_id", 0.5, {"structure", "decoder"}),
        ("adversarial", 0.5, {"structure", "decoder", "discriminator"}),
        ("recon_identity", 0.5, {"structure", "decoder"}),
        ("identity", 0.5, {"appearance"}),
        ("identity_positive", 0.5, {"appearance"}),
        ("recon_structure", 1.0, {"structure"}),
        ("recon_structure", 0.0, {"structure", "decoder"}),
        ("cycle", 1.0, {"structure", "decoder"}),
        ("cycle", 0.0, {"structure", "decoder"}),
        ("gradient_penalty", 0.5, set()),
    ],
)
def test_each_term_trains_only_its_networks(term, encoder_again, networks):
    assert trained_by(term, encoder_again=encoder_again) == networks


def test_the_fine_head_waits_for_its_teacher():
    step = make_step(CONFIG)
    step(LATE, make_batch())
    encoder = step.model.appearance_encoder
    assert all(parameter.grad is None for parameter in encoder.fine.parameters())
    assert all(parameter.grad is not None for parameter in encoder.primary.parameters())


@pytest.mark.parametrize(("erasing", "passes"), [(0.0, 4), (0.5, 8)])
def test_batch_norms_see_each_real_batch_and_no_generated_one(erasing, passes):
    step = make_step(dataclasses.replace(CONFIG, erasing=erasing))
    step(LATE, make_batch())
    counts = {
        int(buffer)
        for name, buffer in step.model.appearance_encoder.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    assert counts == {passes}


def test_late_terms_are_computed_only_when_their_ramp_has_begun():
    step = make_step(CONFIG)  # warm_iter 1
    assert "cycle" not in step(2, make_batch())
    assert {"cycle", "recon_structure"} <= step(3, make_batch()).keys()


def test_the_total_is_the_weighted_sum_of_the_terms():
    terms = make_step(CONFIG)(LATE, make_batch())
    weights = dataclasses.asdict(CONFIG.weights)
    expected = sum(float(terms[name]) * weights[name] for name in terms.keys() & weights.keys() - {"gradient_penalty"})
    assert float(terms["total"]) == pytest.approx(expected, rel=1e-5)


def test_training_on_one_batch_learns_to_paint_and_to_recognise_it():
    networks = dataclasses.replace(TINY, dropout_primary=0.0, structure_dim=4)
    weights = dataclasses.replace(NO_WEIGHTS, recon_self=5.0, identity=1.0)
    optim = OptimConfig(lr_generator=5e-3, lr_appearance=0.02)
    config = dataclasses.replace(CONFIG, networks=networks, weights=weights, erasing=0.0, optim=optim)
    step, batch = make_step(config), make_batch()
    first = step(0, batch)
    for _ in range(150):
        last = step(0, batch)
    assert float(last["recon_self"]) < 0.5 * float(first["recon_self"])
    assert float(last["identity"]) < 0.1 * float(first["identity"])


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 1), (59_998, 1), (59_999, 0.1), (89_998, 0.1), (89_999, 0.01), (104_999, 0.001)]
)
def test_learning_rates_fall_as_published(iteration, factor):
    assert lr_factor(iteration, OptimConfig()) == pytest.approx(factor)


def test_heads_learn_faster_than_the_trunk():
    step = make_step(CONFIG)
    step(0, make_batch())
    trunk, heads = (group["lr"] for group in step.optimizers["appearance"].param_groups)
    assert (trunk, heads) == (0.002, 0.02)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_equals_never_having_stopped(index, tmp_path, num_workers):
    config = dataclasses.replace(CONFIG, num_workers=num_workers)
    whole = train_dgnet(config, index, tmp_path / "whole", cpu())
    with pytest.raises(Stopped, match=r"iteration 4 .*--resume"):
        train_dgnet(config, index, tmp_path / "parts", cpu(), stop_at=4)
    parts = train_dgnet(config, index, tmp_path / "parts", cpu(), resume=True)
    expected, found = whole.load(6), parts.load(6)
    for name, state in expected.networks.items():
        assert all(torch.equal(value, found.networks[name][key]) for key, value in state.items())
    for name, state in expected.optimizers.items():
        for number, entries in state["state"].items():
            other = found.optimizers[name]["state"][number]
            assert all(
                torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in entries.items()
            )
    assert torch.equal(expected.rng["cpu"], found.rng["cpu"])
    assert whole.read_log() == parts.read_log()
    sheets = [(run.samples / "swap_00000006.png").read_bytes() for run in (whole, parts)]
    assert sheets[0] == sheets[1]


def test_a_run_leaves_settings_log_checkpoints_and_sheets(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    assert run.iterations() == [3, 6]
    assert sorted(path.name for path in run.samples.iterdir()) == ["swap_00000004.png", "swap_00000006.png"]
    assert [line["iteration"] for line in run.read_log()] == [2, 4, 6]
    assert {"recon_self", "adversarial", "cycle", "lr_generator", "weight_cycle"} <= run.read_log()[-1].keys()
    assert run.config(DGNetTrainConfig) == CONFIG
    model = DGNet.load(run.path, device="cpu")
    assert (model.iteration, model.num_ids) == (6, 3)


def test_a_finished_run_is_left_as_it_is(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    before = run.checkpoint_file(6).read_bytes()
    assert train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True).iterations() == [3, 6]
    assert run.checkpoint_file(6).read_bytes() == before


def test_a_signal_saves_and_leaves(index, tmp_path):
    config = dataclasses.replace(CONFIG, max_iter=100_000)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Stopped, match="SIGTERM: saved iteration") as caught:
        train_dgnet(config, index, tmp_path / "run", cpu())
    timer.join()
    assert caught.value.exit_code == 75
    assert RunDir.open(tmp_path / "run").load("last").iteration >= 1


def test_the_time_limit_saves_and_leaves(index, tmp_path):
    with pytest.raises(Stopped, match="--max-hours"):
        train_dgnet(CONFIG, index, tmp_path / "run", Runtime.from_environment("cpu", max_hours=1e-9))
    assert RunDir.open(tmp_path / "run").iterations() == [1]


def test_a_loss_that_is_not_finite_names_itself_and_the_iteration(index, tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(lr_generator=1e30))
    with pytest.raises(DivergedError, match=r"iteration 2: .*recon_self.* not finite at lr_generator 1e\+30"):
        train_dgnet(config, index, tmp_path / "run", cpu())


def test_one_person_cannot_be_trained_on(tmp_path):
    with pytest.raises(DatasetError, match="expected at least 2"):
        train_dgnet(CONFIG, make_index(tmp_path / "data", people=1), tmp_path / "run", cpu())
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_had_leave_nothing_behind(index, tmp_path):
    config = dataclasses.replace(CONFIG, trunk_weights=str(tmp_path / "absent.pth"))
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        train_dgnet(config, index, tmp_path / "run", cpu())
    assert not (tmp_path / "run").exists()


def test_resuming_from_a_checkpoint_cut_in_half_names_it(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    file = run.checkpoint_file(6)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"00000006\.pt: damaged"):
        train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk_weights": "imagenet"}, "trunk_weights: imagenet is for networks.trunk=resnet50, found small"),
        ({"batch_size": 1}, "batch_size: batch norm needs at least 2"),
        ({"erasing": 1.5}, "erasing: is a probability"),
        ({"max_iter": 0}, "max_iter: must be at least 1"),
        ({"networks": dataclasses.replace(TINY, heads="one")}, "networks.heads: one is for published networks"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_the_command_trains(index, tmp_path):
    dump_config(CONFIG, tmp_path / "tiny.yaml")
    arguments = ["train", "--config", tmp_path / "tiny.yaml", "--data", index.root, "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--set", "max_iter=2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert RunDir.open(tmp_path / "run", "dgnet").iterations() == [2]
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text())["iteration"] == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "weights.recon_sefl=1"], "did you mean weights.recon_self?"),
        (["--set", "max_iter=many"], "max_iter"),
        (["--config", "absent.yaml"], "absent.yaml: no such settings file"),
        (["--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_the_command_explains_what_it_was_given_wrongly(index, tmp_path, extra, message):
    arguments = ["train", "--data", str(index.root), "--out", str(tmp_path / "run"), *extra]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
