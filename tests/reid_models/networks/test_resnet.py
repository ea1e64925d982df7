import pytest
import torch
import torchvision

from reid_models.networks.resnet import make_trunk


@pytest.mark.parametrize(
    ("name", "last_stride", "shape"),
    [
        ("resnet50", 1, (2048, 4, 2)),
        ("resnet50", 2, (2048, 2, 1)),
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


def test_the_last_stride_changes_no_state_key():
    keys = [list(make_trunk("resnet50", last_stride=stride).state_dict()) for stride in (1, 2)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("arguments", [{"last_stride": 3}, {"width": 0}])
def test_a_size_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="got"):
        make_trunk("small", **arguments)
