"""A tiny world and a tiny model of it, for whoever generates; not to be written to."""

import pytest
import torch

from dgnet_gen.model import DGNet, NetworksConfig
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset

TINY = NetworksConfig(
    image_hw=(32, 16), trunk="small", trunk_width=4, bottleneck=8, structure_dim=4, n_res=2, mlp_dim=8,
    discriminator_dim=4, discriminator_res=1, num_scales=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))


@pytest.fixture(scope="module")
def index(toy):
    return DatasetIndex.open(toy).split("train_all")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DGNet(TINY, num_ids=4).to(torch.device("cpu")).eval()
