import pytest
import torch
from torch import nn

from reid_models.networks import MGN, PCB, Baseline
from reid_models.networks.folding import folded
from reid_models.networks.resnet import make_trunk

NETWORKS = {
    "baseline": lambda: Baseline(make_trunk("resnet50"), 3, bottleneck=8),
    "mgn": lambda: MGN(make_trunk("small", width=4), 3, (1, 2, 4), head_features=8),
    "mgn-bnneck-gem": lambda: MGN(make_trunk("small", width=4), 3, (1, 3), head_features=8, neck="bnneck", pool="gem"),
    "mgn-ibn": lambda: MGN(make_trunk("resnet50_ibn_a"), 3, (1, 2), head_features=8),
    "pcb": lambda: PCB(make_trunk("small", width=4), 3, num_stripes=2, head_features=8),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network whose norms have seen something and are not the identity."""
    torch.manual_seed(0)
    made = NETWORKS[request.param]()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return made.train()


def test_folding_changes_no_embedding(network):
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    found = folded(network).embed(images)
    with torch.no_grad():
        expected = network.eval().embed(images)
    # Scales move from after a sum to before it, through up to 50 layers.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_folding_leaves_no_norm_after_a_convolution_and_the_network_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    left = [type(part) for part in folded(network).modules() if isinstance(part, nn.BatchNorm2d)]
    in_halves = sum(type(part).__name__ == "_InstanceBatchNorm" for part in network.modules())
    assert len(left) == in_halves  # the halves that follow no convolution of their own
    assert network.training
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
