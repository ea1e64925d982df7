"""On a GPU re-ID networks train, are extracted from and rank as on a CPU, as far as rounding goes."""

import numpy as np
import pytest
import torch

from reid_eval.errors import Stopped
from reid_eval.ranking import rank
from reid_models.config import config_from_dict
from reid_models.extraction import extract_features, load_embedder
from reid_models.runtime import Runtime, choose_device
from reid_models.training import ReidTrainConfig, build_network, train_reid

pytestmark = pytest.mark.gpu

TINY = {
    "image_hw": [48, 16],
    "network": {"trunk": "small", "width": 8, "weights": "none", "head_features": 8, "bottleneck": 16, "dropout": 0.0},
    "sampler": {"ids_per_batch": 4, "images_per_id": 2},
    "schedule": {"epochs": 2, "warmup_epochs": 0},
    "num_workers": 0,
    "log_every": 1,
    "eval_every": 2,
    "checkpoint_every": 1,
}
KINDS = {
    "baseline": {},
    "mgn": {"loss": {"terms": "CrossEntropy + 2*Triplet + Circle"}},
    "pcb": {"loss": {"terms": "CrossEntropy"}},
}


def config(kind="baseline", **groups):
    values = TINY | KINDS[kind] | groups
    return config_from_dict(ReidTrainConfig, values | {"network": TINY["network"] | {"kind": kind, "num_stripes": 2}})


def train(config, index, out, device, **options):
    return train_reid(config, index, out, Runtime.from_environment(device, config.precision), **options)


def losses(run):
    return [line for line in run.read_log() if "cross_entropy" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_begins_as_on_the_cpu_and_its_checkpoint_is_used_there(toy_index, tmp_path, gpu, kind):
    ours = train(config(kind), toy_index, tmp_path / "gpu", gpu)
    reference = train(config(kind), toy_index, tmp_path / "cpu", "cpu")
    # Before the first update sums alone are in another order; after it Adam may step either way where gradients are 0.
    for found, expected, within in zip(losses(ours), losses(reference), (1e-4, 3e-2), strict=False):
        terms = [name for name in expected if name not in ("iteration", "time", "lr", "epoch")]
        assert "cross_entropy" in terms
        assert [found[name] for name in terms] == pytest.approx([expected[name] for name in terms], rel=within)
    vectors = [extract_features(load_embedder(ours.path, device=device), toy_index).features for device in (gpu, "cpu")]
    np.testing.assert_allclose(*vectors, atol=1e-4)


def test_features_of_the_gpu_rank_as_those_of_the_cpu(toy_index, tmp_path, gpu):
    run = train(config(), toy_index, tmp_path / "run", "cpu")
    features = [extract_features(load_embedder(run.path, device=device), toy_index) for device in (gpu, "cpu")]
    found, expected = (rank(each) for each in features)
    # Distances that differ in the last digit may change places.
    assert found.map_hits == pytest.approx(expected.map_hits, abs=2e-3)
    np.testing.assert_allclose(found.cmc, expected.cmc, atol=0.13)  # one of eight queries


def test_half_precision_is_near(toy_index, tmp_path, gpu):
    run = train(config(), toy_index, tmp_path / "run", gpu)
    plain, half = (
        extract_features(load_embedder(run.path, device=gpu, half=half), toy_index).features for half in (False, True)
    )
    assert 0 < np.linalg.norm(plain - half, axis=1).max() < 0.05  # 8 or 11 bits a number


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(toy_index, tmp_path, gpu, precision, kind):
    settings = config(precision=precision, optim={"kind": kind, "lr": 1e-3}, schedule={"epochs": 4, "warmup_epochs": 0})
    run = train(settings, toy_index, tmp_path / "run", gpu)
    plain = train(config(), toy_index, tmp_path / "plain", gpu)
    assert losses(run)[0]["cross_entropy"] == pytest.approx(losses(plain)[0]["cross_entropy"], rel=0.05)
    assert losses(run)[-1]["cross_entropy"] < losses(run)[0]["cross_entropy"]
    weights = run.load("last").networks["reid"]
    assert all(value.dtype in (torch.float32, torch.int64) and value.isfinite().all() for value in weights.values())


class Overflowing(Runtime):
    """Its first step in float16 overflows, and no later one."""

    def grad_scaler(self):
        return torch.amp.GradScaler(self.device.type, init_scale=2.0**70, backoff_factor=2.0**-60)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_first_step_that_overflows_leaves_no_trace(toy_index, tmp_path, gpu, kind):
    torch.full((1 << 20,), 1e30, device=gpu)  # what uninitialised memory may hold
    optim = {"kind": kind, "lr": 1e-3}
    settings = config(precision="fp16", optim=optim, schedule={"epochs": 4, "warmup_epochs": 0})
    run = train_reid(settings, toy_index, tmp_path / "run", Overflowing(choose_device(gpu), "fp16"))
    plain = train(settings, toy_index, tmp_path / "plain", gpu)
    moved = [
        max(
            float((value - start).abs().max())
            for value, start in zip(run.load("last").networks["reid"].values(), initial(settings), strict=True)
            if value.is_floating_point()
        )
        for run in (run, plain)
    ]
    assert moved[0] < 3 * moved[1]


def initial(config):
    torch.manual_seed(config.seed)
    return build_network(config.network, 4).state_dict().values()


def test_a_training_that_was_stopped_goes_on(toy_index, tmp_path, gpu):
    whole = train(config(), toy_index, tmp_path / "whole", gpu)
    with pytest.raises(Stopped):
        train(config(), toy_index, tmp_path / "cut", gpu, stop_at=2)
    cut = train(config(), toy_index, tmp_path / "cut", gpu, resume=True)
    found, expected = losses(cut)[-1], losses(whole)[-1]
    assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-2)  # atomic sums have no order


def test_networks_and_maps_keep_channels_last(gpu):
    runtime = Runtime(choose_device(gpu))
    network = runtime.prepare(build_network(config().network, 4))
    maps = network.trunk(runtime.to_device(torch.randn(4, 3, 48, 16)).contiguous(memory_format=torch.channels_last))
    assert maps.device.type == torch.device(gpu).type
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_the_runtime_knows_the_devices_memory_and_random_state(gpu):
    runtime = Runtime.from_environment(gpu)
    state = runtime.rng_state()
    first = torch.rand(4, device=runtime.device)
    runtime.set_rng_state(state)
    assert torch.equal(torch.rand(4, device=runtime.device), first)
    assert runtime.peak_bytes() > 0


@pytest.mark.slow
def test_a_compiled_network_trains_and_embeds_as_the_plain_one(toy_index, tmp_path, gpu, caplog):
    plain = train(config(), toy_index, tmp_path / "plain", gpu)
    run = train(config(compile=True), toy_index, tmp_path / "run", gpu)
    assert losses(run)[0]["cross_entropy"] == pytest.approx(losses(plain)[0]["cross_entropy"], rel=1e-3)
    vectors = [
        extract_features(load_embedder(plain.path, device=gpu, compile=compile), toy_index, batch_size=8).features
        for compile in (False, True)
    ]
    np.testing.assert_allclose(*vectors, atol=1e-3)
    assert "torch.compile does not work here" not in caplog.text
