from copy import deepcopy

import pytest
import torch
from torch import nn

from dgnet_gen.networks.batches import in_batches, norm_by_batch


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5),
    ).double()  # fmt: skip


def run(net, batches, *, together):
    """Outputs, gradients of pictures and weights, and the running statistics."""
    pictures = torch.cat(batches).requires_grad_()
    if together:
        with in_batches(net, len(batches)):
            said = net(pictures)
    else:
        said = torch.cat([net(part) for part in pictures.chunk(len(batches))])
    said.pow(3).sum().backward()
    weights = [parameter.grad for parameter in net.parameters() if parameter.requires_grad]
    return [said, pictures.grad, *weights, *net.state_dict().values()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("trains", ["all", "nothing", "evaluates"])
def test_batches_in_one_pass_are_batches_one_after_the_other(trains, channels_last):
    plain = network().requires_grad_(trains != "nothing").train(trains != "evaluates")
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    ours = deepcopy(plain)
    norm_by_batch(ours)
    # of other brightness each, so that statistics differ
    batches = [torch.randn(4, 3, 8, 6, dtype=torch.float64) * (1 + k) + k for k in range(3)]
    expected, found = run(plain, batches, together=False), run(ours, batches, together=True)
    assert len(expected) == len(found)
    for right, value in zip(expected, found, strict=True):
        torch.testing.assert_close(value, right)


def test_after_the_block_a_batch_is_one_batch_and_the_keys_are_the_same():
    plain, ours = network(), network()
    norm_by_batch(ours)
    x = torch.randn(6, 3, 8, 6, dtype=torch.float64)
    with in_batches(ours, 3):
        apart = ours(x)
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours(x), plain(x))
    assert not torch.allclose(apart, plain(x))
    assert not deepcopy(ours)[1].batches > 1
