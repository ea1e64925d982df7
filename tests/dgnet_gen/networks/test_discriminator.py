import pytest
import torch
import torch.nn.functional as F

from dgnet_gen.networks.discriminator import MultiScaleDiscriminator, gradient_penalty
from dgnet_gen.networks.layers import ConvUnit, SelfAttention


@pytest.mark.parametrize("num_scales", [1, 3])
def test_maps_shrink_by_half_from_scale_to_scale(num_scales):
    maps = MultiScaleDiscriminator(dim=2, n_layer=2, n_res=1, num_scales=num_scales)(torch.rand(2, 3, 64, 32))
    assert [tuple(patch_map.shape) for patch_map in maps] == [
        (2, 1, 16 >> scale, 8 >> scale) for scale in range(num_scales)
    ]


def test_the_second_scale_sees_the_picture_at_half_size():
    torch.manual_seed(0)
    discriminator = MultiScaleDiscriminator(dim=2, n_res=1, num_scales=2)
    discriminator.scales[1].load_state_dict(discriminator.scales[0].state_dict())
    images = torch.rand(1, 3, 32, 32)
    half = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
    torch.testing.assert_close(discriminator(images)[1], discriminator(half)[0])


def test_a_constant_picture_stays_constant_at_every_scale():
    maps = MultiScaleDiscriminator(dim=2, n_res=1)(torch.full((1, 3, 32, 32), 0.3))
    for patch_map in maps:
        torch.testing.assert_close(patch_map, patch_map[..., :1, :1].expand_as(patch_map))


def test_penalty_of_a_linear_map_is_the_squared_norm_of_its_weights():
    weight = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]], dtype=torch.float64)  # (1, 2, 2)
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    scores = (images * weight).sum((1, 2, 3), keepdim=True)
    expected = weight.square().sum()  # the same for every sample, so also their mean
    torch.testing.assert_close(gradient_penalty([scores], images), expected)
    torch.testing.assert_close(gradient_penalty([scores, 3 * scores], images), 10 * expected)


def test_penalty_of_a_square_trains_with_the_second_derivative():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    images = torch.rand(4, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty([scale * images.square()], images)  # the gradient is 2 scale x
    expected = 4 * scale**2 * images.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(penalty, expected)
    (slope,) = torch.autograd.grad(penalty, scale)
    torch.testing.assert_close(slope, (8 * scale * images.square().sum((1, 2, 3)).mean()).detach())


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "layer"])
def test_every_norm_gives_maps_of_the_same_size(norm):
    discriminator = MultiScaleDiscriminator(dim=2, n_res=1, num_scales=2, norm=norm)
    maps = discriminator(torch.rand(2, 3, 32, 16))
    assert [tuple(patch_map.shape) for patch_map in maps] == [(2, 1, 8, 4), (2, 1, 4, 2)]
    of_a_norm = {name.rsplit(".", 1)[1] for name in discriminator.state_dict() if ".norm." in name}
    assert of_a_norm == {
        "none": set(), "instance": set(), "layer": {"gamma", "beta"},
        "batch": {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"},
    }[norm]  # fmt: skip


def test_only_a_batch_norm_lets_pictures_touch_each_other():
    images = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    touching = set()
    for norm in ("none", "batch", "instance", "layer"):
        torch.manual_seed(0)
        discriminator = MultiScaleDiscriminator(dim=2, n_res=1, num_scales=1, norm=norm)
        if not torch.allclose(discriminator(images)[0][:1], discriminator(images[:1])[0], rtol=1e-4, atol=1e-6):
            touching.add(norm)
    assert touching == {"batch"}


@pytest.mark.parametrize(("attention", "places"), [(0, []), (1, [7]), (2, [5, 8])])
def test_attention_stands_before_the_last_convolution_and_then_before_the_blocks(attention, places):
    discriminator = MultiScaleDiscriminator(dim=4, n_layer=2, n_res=2, num_scales=1, attention=attention)
    layers = list(discriminator.scales[0])
    assert [number for number, layer in enumerate(layers) if isinstance(layer, SelfAttention)] == places
    assert isinstance(layers[-1], torch.nn.Conv2d)
    for number in places:
        torch.nn.init.ones_(layers[number].gamma)
    images = torch.rand(1, 3, 32, 16, requires_grad=True)
    penalty = gradient_penalty(discriminator(images), images)
    penalty.backward()  # the second derivative passes through the attention
    assert all(layers[number].gamma.grad is not None for number in places)


def test_attention_is_0_1_or_2():
    with pytest.raises(ValueError, match="attention must be 0, 1 or 2, got 3"):
        MultiScaleDiscriminator(attention=3)


def test_activation_and_padding_reach_every_unit():
    discriminator = MultiScaleDiscriminator(dim=2, n_res=1, num_scales=1, activation="prelu", padding="zero")
    units = [part for part in discriminator.modules() if isinstance(part, ConvUnit)]
    assert {unit.padding_kind for unit in units} == {"zero"}
    assert sum(isinstance(unit.activation, torch.nn.PReLU) for unit in units) == len(units) - 1  # not before the sum
