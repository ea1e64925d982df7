"""DG-Net learns: one batch is reproduced, and people who swap with themselves stay who they are."""

import pytest
import torch

from dgnet_gen.model import Codes, DGNet, NetworksConfig
from dgnet_gen.pairs import PairDataset
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.step import Step, make_optimizers
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.runtime import Runtime

CONFIG = DGNetTrainConfig(
    networks=NetworksConfig(
        image_hw=(32, 16), trunk="small", trunk_width=4, bottleneck=16, dropout_primary=0.0, structure_dim=4,
        n_downsample=1, n_res=2, mlp_dim=32, discriminator_dim=4, discriminator_res=1, num_scales=1,
    ),
    weights=LossWeights(adversarial=0.05, recon_identity=0.05, teacher=0.0, warm_iter=60, warm_scale=0.02),
    optim=OptimConfig(lr_generator=3e-3, beta1=0.5, policy="step", step_size=120, gamma=0.3),
    trunk_weights="none",
    erasing=0.0,
    pad_px=0,
    flip=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model after 240 steps on one batch, and the batch."""
    root = tmp_path_factory.mktemp("learning") / "toy"
    make_toy_dataset(root, ids=8, cameras=2, per_camera=2, seed=0, image_hw=(32, 16))
    index = DatasetIndex.open(root).split("train_all")
    batch = PairDataset(index, CONFIG.networks.image_hw, batch_size=4, seed=0, flip=0.0, pad_px=0).batch(0)
    torch.manual_seed(0)
    model = DGNet(CONFIG.networks, index.num_ids)
    for network in model.networks().values():
        network.train()
    step = Step(model, make_optimizers(model, CONFIG.optim), CONFIG, Runtime.from_environment("cpu"))
    terms = [step(iteration, [batch]) for iteration in range(240)]
    return model.eval(), batch, terms


def mean_difference(made, real):
    return float((made - real).abs().mean())


@pytest.mark.slow
def test_one_batch_is_reproduced(learned):
    model, batch, terms = learned
    for name in ("recon_self", "recon_same_id"):
        assert terms[-1][name] < 0.25 * terms[0][name], name
    assert terms[-1]["identity"] < 0.05 * terms[0]["identity"]
    assert terms[-1]["cycle"] < 0.5 * terms[70]["cycle"]
    colour = mean_difference(batch.anchors_a.mean((2, 3), keepdim=True), batch.anchors_a)
    assert mean_difference(model.decode(model.encode(batch.anchors_a)), batch.anchors_a) < 0.4 * colour


@pytest.mark.slow
def test_people_who_swap_with_themselves_stay_and_with_others_change(learned):
    model, batch, _ = learned
    x, labels = batch.anchors_a, batch.labels_a
    codes = model.encode(x)
    twice = Codes(codes.appearance.repeat(2, 1), codes.structure.repeat(2, 1, 1, 1))
    torch.testing.assert_close(model.decode(twice), model.decode(codes).repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-4)
    other = next(row for row in range(1, len(x)) if labels[row] != labels[0])
    swapped = model.decode(Codes(codes.appearance[[other]], codes.structure[[0]]))
    assert mean_difference(swapped, x[[0]]) > 1.5 * mean_difference(model.decode(codes)[[0]], x[[0]])
