import os
import subprocess
import sys

import pytest
import torch
import torchvision

from reid_models.networks.resnet import SmallTrunk, make_trunk


@pytest.mark.parametrize(
    ("name", "last_stride", "shape"),
    [
        ("resnet50", 1, (2048, 4, 2)),
        ("resnet50", 2, (2048, 2, 1)),
        ("resnet50_ibn_a", 1, (2048, 4, 2)),
        ("resnet50_ibn_a", 2, (2048, 2, 1)),
        ("small", 1, (64, 8, 4)),
        ("small", 2, (64, 4, 2)),
    ],
)
def test_a_trunk_keeps_the_promised_shape(name, last_stride, shape):
    trunk = make_trunk(name, last_stride=last_stride, width=8).eval()
    with torch.inference_mode():
        assert trunk(torch.zeros(1, 3, 64, 32)).shape == (1, *shape)
    assert trunk.num_features == shape[0]


def test_the_resnet_trunk_takes_torchvisions_weights_and_gives_its_feature_map():
    theirs = torchvision.models.resnet50(weights=None).eval()
    ours = make_trunk("resnet50", last_stride=2).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pooled = theirs.avgpool(ours(images)).flatten(1)
        torch.testing.assert_close(theirs.fc(pooled), theirs(images))


def test_a_seed_gives_the_weights_of_torchvisions_network():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    after = torch.rand(4)
    for last_stride in (2, 1):
        torch.manual_seed(3)
        ours = make_trunk("resnet50", last_stride=last_stride).state_dict()
        assert torch.equal(torch.rand(4), after), "whoever draws next draws the same"
        assert [*ours, "fc.weight", "fc.bias"] == list(theirs)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_gradients_are_those_of_torchvisions_network():
    theirs = torchvision.models.resnet50(weights=None).double()
    ours = make_trunk("resnet50", last_stride=2).double()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs.fc = torch.nn.Identity()
    ours(images).mean((2, 3)).square().sum().backward()
    theirs(images).square().sum().backward()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_neither_training_nor_extraction_waits_for_torchvision():
    program = (
        "import sys\n"
        "import reid_models.training, reid_models.extraction, dgnet_gen.training, dgnet_gen.generation\n"
        "from reid_models.networks.resnet import make_trunk\n"
        "make_trunk('resnet50')\n"
        "print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_last_stride_changes_no_state_key():
    keys = [list(make_trunk("resnet50", last_stride=stride).state_dict()) for stride in (1, 2)]
    assert keys[0] == keys[1]


def test_the_ibn_trunk_has_the_published_names_and_as_many_parameters_as_the_plain_one():
    plain, ibn = make_trunk("resnet50"), make_trunk("resnet50_ibn_a")
    blocks = [f"layer{stage}.{block}.bn1." for stage, count in ((1, 3), (2, 4), (3, 6)) for block in range(count)]
    halves = ["IN.weight", "IN.bias", *(f"BN.{name}" for name in torch.nn.BatchNorm2d(1).state_dict())]
    expected = {name for name in plain.state_dict() if not name.startswith(tuple(blocks))}
    expected |= {block + half for block in blocks for half in halves}
    assert set(ibn.state_dict()) == expected
    assert len(expected) == 318 + 2 * 13
    assert sum(value.numel() for value in ibn.parameters()) == sum(value.numel() for value in plain.parameters())
    assert {ibn.state_dict()[f"layer3.0.bn1.{half}.weight"].shape for half in ("IN", "BN")} == {(128,)}


def test_the_first_half_of_the_channels_is_normalised_by_picture_also_in_evaluation():
    norm = make_trunk("resnet50_ibn_a").eval().layer1[0].bn1
    x = 5 + 3 * torch.randn(2, 64, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        y = norm(x)
    torch.testing.assert_close(y[:, :32].mean((2, 3)), torch.zeros(2, 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(y[:, :32].var((2, 3), correction=0), torch.ones(2, 32), rtol=1e-4, atol=0)
    torch.testing.assert_close(y[:, 32:], x[:, 32:] / (1 + norm.BN.eps) ** 0.5)  # untrained: mean 0, variance 1


@pytest.mark.parametrize("arguments", [{"last_stride": 3}, {"width": 0}])
def test_a_size_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="got"):
        make_trunk("small", **arguments)


def test_a_shortcut_with_a_stride_gives_what_a_strided_convolution_does():
    shortcut = SmallTrunk(width=4).stages[1].shortcut[0]
    x = torch.randn(2, 4, 9, 6, requires_grad=True)
    expected = torch.einsum("oi,bihw->bohw", shortcut.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(shortcut(x), expected)
    gradients = [torch.autograd.grad(y.square().sum(), (x, shortcut.weight)) for y in (shortcut(x), expected)]
    torch.testing.assert_close(*gradients)


def test_a_narrow_trunk_trains_on_a_processor_with_avx2_alone():
    # oneDNN's AVX2 kernels, chosen here wherever x86-64 can run them, once ended the process in the first steps.
    steps = (
        "import torch\n"
        "from reid_models.networks.resnet import SmallTrunk\n"
        "trunk = SmallTrunk(width=2).to(memory_format=torch.channels_last)\n"
        "for step in range(60):\n"
        "    trunk(torch.randn(8, 3, 32, 16).to(memory_format=torch.channels_last)).sum().backward()\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", steps], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
