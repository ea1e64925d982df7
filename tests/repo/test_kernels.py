"""No network of ours asks for the kernel that writes past its memory.

oneDNN's AVX2 gradient of the weights of a strided 1x1 convolution, where channels come last and there are fewer than 8
(uxlfoundation/oneDNN#6035). Which processor takes that kernel does not matter here: the call is looked for.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from dgnet_gen.model import DGNet, NetworksConfig
from reid_models.networks import MGN, PCB, Baseline
from reid_models.networks.resnet import make_trunk

TINY = NetworksConfig(
    image_hw=(32, 16), trunk="small", trunk_width=1, bottleneck=4, structure_dim=1, n_res=1, mlp_dim=4,
    discriminator_dim=1, discriminator_res=1, num_scales=2,
)  # fmt: skip
IMAGES = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
REID = {
    "baseline": lambda: Baseline(make_trunk("small", width=1, last_stride=2), 3, bottleneck=4),
    "mgn": lambda: MGN(make_trunk("small", width=1), 3, head_features=4),
    "pcb": lambda: PCB(make_trunk("small", width=1), 3, num_stripes=2, head_features=4),
    "resnet50": lambda: make_trunk("resnet50", last_stride=2),
    "resnet50_ibn_a": lambda: make_trunk("resnet50_ibn_a", last_stride=2),
}


class StridedPointwise(TorchFunctionMode):
    """The inputs' channels of every 1x1 convolution with a stride within."""

    def __init__(self):
        super().__init__()
        self.calls, self.channels = 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            named = dict(zip(("input", "weight", "bias", "stride"), args, strict=False)) | (kwargs or {})
            stride = named.get("stride", 1)
            self.calls += 1
            if named["weight"].shape[2:] == (1, 1) and stride not in (1, (1, 1), [1, 1]):
                self.channels.append(named["weight"].shape[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", REID)
def test_no_re_id_network_however_narrow_strides_over_few_channels(kind):
    network = REID[kind]().train()
    with StridedPointwise() as seen:
        network(IMAGES)
    assert seen.calls >= 9
    assert not [channels for channels in seen.channels if channels < 8]


def test_no_part_of_a_dgnet_however_narrow_strides_over_few_channels():
    model = DGNet(TINY, num_ids=3)
    images = IMAGES[:, :, :32, :16]
    with StridedPointwise() as seen:
        model.decode(model.encode(images))
        model.discriminator(images)
    assert seen.calls >= 20
    assert not [channels for channels in seen.channels if channels < 8]


def test_the_call_is_found():
    with StridedPointwise() as seen:
        torch.nn.Conv2d(4, 8, 1, stride=2)(torch.randn(1, 4, 6, 6))
    assert seen.channels == [4]
