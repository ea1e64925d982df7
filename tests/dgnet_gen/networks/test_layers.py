import pytest
import torch
import torch.nn.functional as F

from dgnet_gen.networks import layers
from dgnet_gen.networks.layers import (
    ConvUnit,
    ResidualBlock,
    SampleNorm,
    SelfAttention,
    adaptive_instance_norm,
    init_weights,
    make_activation,
    pad,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=["cpu", "elsewhere"])
def any_device(request, monkeypatch):
    """With the CPU's group norm, and as on a device whose group norm does not take channels that come last."""
    if request.param == "elsewhere":
        monkeypatch.setattr(layers, "_group_norm_fits", lambda x: False)
        monkeypatch.setattr(torch, "native_group_norm", None)


@pytest.mark.usefixtures("any_device")
def test_adaptive_instance_norm_agrees_with_the_slow_version():
    x, scale, shift = normal(2, 3, 5, 4), normal(2, 3, seed=1), normal(2, 3, seed=2)
    slow = torch.empty_like(x)
    for sample in range(2):
        for channel in range(3):
            plane = x[sample, channel]
            deviation = ((plane - plane.mean()) ** 2).mean().add(1e-5).sqrt()
            slow[sample, channel] = (plane - plane.mean()) / deviation * scale[sample, channel] + shift[sample, channel]
    torch.testing.assert_close(adaptive_instance_norm(x, scale, shift), slow)


def test_adaptive_instance_norm_forgets_brightness_and_contrast():
    x, scale, shift = normal(1, 2, 8, 8), normal(1, 2, seed=1), normal(1, 2, seed=2)
    changed = 100 * x + 7
    # eps 1e-5 beside a variance of 1 is what is left of the contrast
    expected, found = (adaptive_instance_norm(value, scale, shift) for value in (x, changed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_written_gradients_of_both_norms_are_those_of_their_formulas(dtype):
    def adaptive(x, scale, shift):
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * scale[..., None, None] + shift[..., None, None]

    def by_sample(x, gamma, beta):
        deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        return (x - mean) / (deviation + 1e-5) * gamma[:, None, None] + beta[:, None, None]

    x, of_y = (3 * normal(2, 3, 5, 4) + 1).to(dtype), normal(2, 3, 5, 4, seed=7).to(dtype)
    norm = SampleNorm(3)

    def sample_norm(x, gamma, beta):
        return torch.func.functional_call(norm, {"gamma": gamma, "beta": beta}, (x,))

    wide = torch.promote_types(dtype, torch.float32)  # what learned parameters are in
    for found, formula, parameters in (
        (adaptive_instance_norm, adaptive, (normal(2, 3, seed=1).to(dtype), normal(2, 3, seed=2).to(dtype))),
        (sample_norm, by_sample, (normal(3, seed=1).to(wide), normal(3, seed=2).to(wide))),
    ):
        ours = [value.clone().requires_grad_() for value in (x, *parameters)]
        theirs = [value.detach().double().requires_grad_() for value in ours]
        grads = torch.autograd.grad(found(*ours), ours, of_y)
        expected = torch.autograd.grad(formula(*theirs), theirs, of_y.double())
        for value, grad, right in zip(ours, grads, expected, strict=True):
            assert grad.dtype == value.dtype
            rough = {} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(grad.double(), right, **rough)


@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_norms_of_one_picture_without_gradient_are_those_of_many(level):
    x, scale, shift = 1e-3 * normal(1, 3, 5, 4) + level, normal(1, 3, seed=1), normal(1, 3, seed=2)
    norm = SampleNorm(3).double()
    with torch.no_grad():
        found = adaptive_instance_norm(x, scale, shift), norm(x)
    torch.testing.assert_close(found, (adaptive_instance_norm(x, scale, shift), norm(x)))


@pytest.mark.usefixtures("any_device")
def test_both_norms_have_second_derivatives():
    x, scale, shift = (normal(*shape).requires_grad_() for shape in ((2, 3, 3, 2), (2, 3), (2, 3)))
    assert torch.autograd.gradgradcheck(adaptive_instance_norm, (x, scale, shift))
    norm = SampleNorm(3).double()
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.usefixtures("any_device")
def test_sample_norm_of_a_flat_map_is_the_shift_and_passes_finite_gradients():
    norm = SampleNorm(2).double()
    x = torch.full((1, 2, 3, 3), 4.0, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert x.grad.isfinite().all()
    with torch.no_grad():
        assert torch.equal(norm(x), torch.zeros_like(y))


@pytest.mark.usefixtures("any_device")
def test_sample_norm_treats_every_sample_alone_with_the_unbiased_deviation():
    norm = SampleNorm(3).double()
    x = normal(2, 3, 4, 4) * torch.tensor([1.0, 50.0], dtype=torch.float64)[:, None, None, None]
    for sample in range(2):
        expected = (x[sample] - x[sample].mean()) / (x[sample].std() + 1e-5)
        expected = expected * norm.gamma[:, None, None] + norm.beta[:, None, None]
        torch.testing.assert_close(norm(x)[sample], expected)


@pytest.mark.usefixtures("any_device")
def test_sample_norm_computes_in_float32_for_half_precision():
    norm = SampleNorm(2)
    x = normal(1, 2, 16, 16, dtype=torch.float32) + 100
    found = norm(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.bfloat16().float()), rtol=1e-2, atol=1e-2)  # 8 bits of precision


@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("number", [1, 2])
def test_norms_leave_channels_where_they_are(number):
    x = normal(number, 3, 6, 4).to(memory_format=torch.channels_last)
    norm = SampleNorm(3).double()
    scale, shift = normal(number, 3), normal(number, 3, seed=1)
    with torch.no_grad():
        for y in (norm(x), adaptive_instance_norm(x, scale, shift)):
            assert y.is_contiguous(memory_format=torch.channels_last)
    for y in (norm(x), adaptive_instance_norm(x, scale, shift)):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 9)])
def test_padding_reflects_where_the_map_is_large_enough(height, width):
    x = normal(1, 1, height, width)
    torch.testing.assert_close(pad(x, 3), F.pad(x, (3, 3, 3, 3), mode="reflect"))


def test_padding_repeats_the_edge_where_it_cannot_reflect():
    x = normal(1, 1, 8, 3)
    assert torch.equal(pad(x, 3), F.pad(x, (3, 3, 3, 3), mode="replicate"))


def test_padding_of_nothing_is_nothing():
    x = normal(1, 1, 4, 4)
    assert pad(x, 0) is x


@pytest.mark.parametrize(("stride", "dilation", "hw"), [(1, 1, (8, 6)), (2, 1, (4, 3)), (1, 2, (8, 6))])
def test_a_unit_keeps_or_halves_the_size(stride, dilation, hw):
    unit = ConvUnit(2, 5, 3, stride=stride, dilation=dilation)
    assert unit(torch.zeros(1, 2, 8, 6)).shape == (1, 5, *hw)


def test_nothing_follows_the_sum_of_a_residual_block():
    block = ResidualBlock(3, "instance")
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = normal(2, 3, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(block(x), x)


def test_the_two_units_of_a_block_get_their_own_half_of_the_parameters():
    block = ResidualBlock(2, "adain").double()
    x, scales, shifts = normal(1, 2, 5, 5), normal(1, 4, seed=1), normal(1, 4, seed=2)
    inner = block.first(x, scales[:, :2], shifts[:, :2])
    expected = x + block.second(inner, scales[:, 2:], shifts[:, 2:])
    torch.testing.assert_close(block(x, scales, shifts), expected)


@pytest.mark.parametrize(("kind", "mode"), [("reflect", "reflect"), ("replicate", "replicate"), ("zero", "constant")])
def test_padding_is_of_the_kind_asked_for(kind, mode):
    x = normal(1, 2, 5, 6)
    assert torch.equal(pad(x, 2, kind), F.pad(x, (2, 2, 2, 2), mode=mode))
    unit = ConvUnit(2, 3, 3, padding=kind, active=False).double()
    assert torch.equal(unit(x), unit.conv(F.pad(x, (1, 1, 1, 1), mode=mode)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.2 * x)),
        ("relu", lambda x: x.clamp(min=0)),
        ("prelu", lambda x: torch.where(x > 0, x, 0.25 * x)),
        # Klambauer et al. 2017: lambda and alpha that keep mean 0 and variance 1
        ("selu", lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1))),
        ("tanh", lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
    ],
)
def test_activations_are_their_formulas(name, expected):
    x = normal(1, 2, 3, 3)
    torch.testing.assert_close(make_activation(name).double()(x.clone()), expected(x))
    unit = ConvUnit(2, 2, 1, activation=name).double()
    torch.testing.assert_close(unit(x), expected(unit.conv(x)))


def test_an_activation_of_another_name_is_refused():
    with pytest.raises(ValueError, match="got 'gelu'"):
        make_activation("gelu")


def test_only_prelu_has_something_to_learn():
    learned = {
        name: list(make_activation(name).state_dict()) for name in ("leaky_relu", "relu", "prelu", "selu", "tanh")
    }
    assert learned == {"leaky_relu": [], "relu": [], "prelu": ["weight"], "selu": [], "tanh": []}


def test_a_unit_keeps_norm_then_activation_then_convolution():
    unit = ConvUnit(2, 2, 3, norm="layer", activation="prelu")
    assert list(unit.state_dict()) == ["norm.gamma", "norm.beta", "activation.weight", "conv.weight", "conv.bias"]


def slow_instance_norm(x):
    deviation = ((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3), keepdim=True).add(1e-5).sqrt()
    return (x - x.mean((2, 3), keepdim=True)) / deviation


@pytest.mark.parametrize("norm", ["adain_series", "adain_parallel"])
def test_units_with_two_norms_agree_with_the_slow_version(norm):
    unit = ConvUnit(3, 3, 3, norm=norm).double()
    x, scale, shift = normal(2, 3, 6, 5), normal(2, 3, seed=1), normal(2, 3, seed=2)
    y = unit.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))
    painted = slow_instance_norm(y if norm == "adain_series" else x) * scale[..., None, None] + shift[..., None, None]
    y = slow_instance_norm(y + painted)
    torch.testing.assert_close(unit(x, scale, shift), torch.where(y > 0, y, 0.2 * y))


def test_a_batch_norm_is_over_the_batch():
    unit = ConvUnit(2, 3, 1, norm="batch", active=False).double()
    y = unit.conv(normal(4, 2, 5, 5))
    mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(unit(normal(4, 2, 5, 5)), (y - mean) / (variance + 1e-5).sqrt())


def test_self_attention_agrees_with_a_loop_over_positions():
    attention = SelfAttention(16).double()
    torch.nn.init.constant_(attention.gamma, 0.7)
    x = normal(2, 16, 3, 4)
    expected = x.clone()
    for sample in range(2):
        query, key, value = (
            part(x[[sample]])[0].flatten(1) for part in (attention.query, attention.key, attention.value)
        )
        for here in range(12):
            weights = torch.stack([(query[:, here] * key[:, there]).sum() for there in range(12)]).exp()
            seen = sum(weights[there] * value[:, there] for there in range(12)) / weights.sum()
            expected[sample, :, here // 4, here % 4] += 0.7 * seen
    torch.testing.assert_close(attention(x), expected)


def test_fresh_self_attention_changes_nothing_but_can_learn():
    attention = SelfAttention(16)
    x = normal(1, 16, 4, 4, dtype=torch.float32)
    assert torch.equal(attention(x), x)
    attention(x).square().sum().backward()
    assert attention.gamma.grad.abs() > 0
    assert {name: tuple(value.shape) for name, value in attention.state_dict().items()} == {
        "gamma": (1,), "query.weight": (2, 16, 1, 1), "query.bias": (2,), "key.weight": (2, 16, 1, 1),
        "key.bias": (2,), "value.weight": (16, 16, 1, 1), "value.bias": (16,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "deviation"),
    [
        ("kaiming", (2 / (8 * 9)) ** 0.5),
        ("gaussian", 0.02),
        ("xavier", 2**0.5 * (2 / (8 * 9 + 200 * 9)) ** 0.5),
        ("orthogonal", (2 / 200) ** 0.5),  # 72 orthogonal columns of length sqrt 2, over 200 rows
    ],
)
def test_fresh_weights_have_the_deviation_of_their_rule(kind, deviation):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 200, 3)
    init_weights(conv, kind)
    assert conv.weight.std().item() == pytest.approx(deviation, rel=0.03)  # 14400 numbers: 1 % is three deviations
    assert conv.bias.abs().max() == 0


def test_default_weights_are_left_as_they_are():
    conv = torch.nn.Conv2d(2, 2, 3)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    init_weights(conv, "default")
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
