"""On a GPU DG-Net trains and paints as on a CPU, as far as rounding goes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dgnet_gen.generation_plan import plan_generation
from dgnet_gen.model import Codes, DGNet
from dgnet_gen.painter import Painter
from dgnet_gen.step import Step, make_optimizers
from dgnet_gen.teacher import Teacher
from dgnet_gen.training import train_dgnet
from reid_eval.errors import Stopped
from reid_models.runtime import Runtime, choose_device
from tests.dgnet_gen.conftest import TINY
from tests.dgnet_gen.test_step import CALM, LATE, NUM_IDS, make_batch, make_teacher
from tests.dgnet_gen.test_step import CONFIG as STEP_CONFIG
from tests.dgnet_gen.test_training import CONFIG

pytestmark = pytest.mark.gpu


def make_step(device, precision="fp32", dtype=torch.float32):
    """A step as the trainer makes it, channels last, with a teacher."""
    config = dataclasses.replace(STEP_CONFIG, networks=CALM, erasing=0.0, precision=precision)
    runtime = Runtime(choose_device(device), precision)
    torch.manual_seed(0)
    model, teacher = DGNet(config.networks, NUM_IDS), make_teacher(dtype)
    for parameter in model.discriminator.parameters():
        parameter.data.mul_(20)  # it starts so small that it would say nothing
    for network in (*model.networks().values(), *(trained.network for trained in teacher.networks)):
        runtime.prepare(network.to(dtype)).train()
    return Step(model, make_optimizers(model, config.optim), config, runtime, Teacher(teacher.networks))


def step_on(device, precision="fp32", dtype=torch.float32):
    """The terms of a step in which every term counts, and the weights after it."""
    step = make_step(device, precision, dtype)
    terms = step(LATE, [step.runtime.to_device(make_batch(dtype=dtype))])
    weights = {
        f"{name}.{key}": value.detach().cpu()
        for name, network in step.model.networks().items()
        for key, value in network.state_dict().items()
    }
    return terms, weights


def test_a_step_in_float64_is_that_of_the_cpu(gpu):
    (found, weights), (expected, on_cpu) = (step_on(device, dtype=torch.float64) for device in (gpu, "cpu"))
    assert found == pytest.approx(expected, rel=1e-7)
    for name, value in on_cpu.items():
        # Adam steps by lr = 1e-4 either way where a gradient is noise; SGD does not.
        within = 1e-8 if name.startswith("appearance") else 2.1e-4
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=within, msg=name)


def test_a_step_in_float32_has_the_terms_of_the_cpu(gpu):
    (found, _), (expected, _) = (step_on(device) for device in (gpu, "cpu"))
    assert found == pytest.approx(expected, rel=2e-3)  # batch norms of three pictures amplify rounding


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_in_half_precision_has_nearly_the_same_terms(gpu, precision):
    (found, weights), (expected, _) = step_on(gpu, precision), step_on(gpu)
    for name in ("recon_self", "recon_same_id", "discriminator", "cycle", "recon_structure"):
        assert found[name] == pytest.approx(expected[name], rel=0.1), name
    assert all(value.isfinite().all() for value in weights.values())


def test_maps_keep_channels_last(gpu):
    step = make_step(gpu)
    model, batch = step.model, step.runtime.to_device(make_batch())
    structure = model.structure_encoder(batch.anchors_a.mean(1, keepdim=True))
    painted = model.decoder(model.appearance_encoder(batch.anchors_a).code, structure)
    assert painted.device.type == torch.device(gpu).type
    assert painted.is_contiguous(memory_format=torch.channels_last)


def test_pictures_are_those_of_the_cpu_and_depend_on_no_neighbour(index, gpu):
    torch.manual_seed(0)
    on_cpu = DGNet(TINY, num_ids=4).to(torch.device("cpu")).eval()
    on_gpu = copy.deepcopy(on_cpu).to(choose_device(gpu))
    pairs = plan_generation(index, count=11).pairs
    expected, found = (np.stack(list(Painter(model, index.paths).paint(pairs))) for model in (on_cpu, on_gpu))
    assert np.abs(found.astype(int) - expected).max() <= 1
    for position in (0, 4, 10):
        (alone,) = Painter(on_gpu, index.paths).paint(pairs[position : position + 1])
        assert np.array_equal(alone, found[position])
    half = Painter(on_gpu, index.paths, runtime=Runtime.for_inference(gpu, half=True))
    assert np.abs(np.stack(list(half.paint(pairs))).astype(int) - expected).mean() < 1


def test_one_picture_is_decoded_as_among_others(gpu):
    torch.manual_seed(0)
    model = DGNet(TINY, num_ids=4).to(choose_device(gpu)).eval()
    codes = model.encode(torch.randn(3, 3, 32, 16))
    together = model.decode(codes)
    for row in range(3):
        alone = model.decode(Codes(codes.appearance[row : row + 1], codes.structure[row : row + 1]))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_runs_stops_goes_on_and_is_used_on_a_cpu(index, tmp_path, gpu, precision):
    config = dataclasses.replace(CONFIG, precision=precision, ema_decay=0.5, tone=0.5, log_every=1)

    def train(folder, device, **options):
        return train_dgnet(config, index, tmp_path / folder, Runtime.from_environment(device, precision), **options)

    with pytest.raises(Stopped):
        train("run", gpu, stop_at=2)
    run = train("run", gpu, resume=True)
    assert [line["iteration"] for line in run.read_log() if "total" in line] == list(range(1, config.max_iter + 1))
    model = DGNet.load(run.path, device="cpu")
    assert model.iteration == config.max_iter
    assert all(
        value.isfinite().all() for network in model.networks().values() for value in network.state_dict().values()
    )
    if precision == "fp32":
        first = train("cpu", "cpu").read_log()[0]
        # Dropout draws other numbers there; pictures have none.
        assert run.read_log()[0]["recon_self"] == pytest.approx(first["recon_self"], rel=1e-3)
