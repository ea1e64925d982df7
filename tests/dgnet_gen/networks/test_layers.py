import pytest
import torch
import torch.nn.functional as F

from dgnet_gen.networks.layers import ConvUnit, ResidualBlock, SampleNorm, adaptive_instance_norm, reflect_pad


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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


def test_sample_norm_treats_every_sample_alone_with_the_unbiased_deviation():
    norm = SampleNorm(3).double()
    x = normal(2, 3, 4, 4) * torch.tensor([1.0, 50.0], dtype=torch.float64)[:, None, None, None]
    for sample in range(2):
        expected = (x[sample] - x[sample].mean()) / (x[sample].std() + 1e-5)
        expected = expected * norm.gamma[:, None, None] + norm.beta[:, None, None]
        torch.testing.assert_close(norm(x)[sample], expected)


def test_sample_norm_computes_in_float32_for_half_precision():
    norm = SampleNorm(2)
    x = normal(1, 2, 16, 16, dtype=torch.float32) + 100
    found = norm(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.bfloat16().float()), rtol=1e-2, atol=1e-2)  # 8 bits of precision


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 9)])
def test_padding_reflects_where_the_map_is_large_enough(height, width):
    x = normal(1, 1, height, width)
    torch.testing.assert_close(reflect_pad(x, 3), F.pad(x, (3, 3, 3, 3), mode="reflect"))


def test_padding_repeats_the_edge_where_it_cannot_reflect():
    x = normal(1, 1, 8, 3)
    assert torch.equal(reflect_pad(x, 3), F.pad(x, (3, 3, 3, 3), mode="replicate"))


def test_padding_of_nothing_is_nothing():
    x = normal(1, 1, 4, 4)
    assert reflect_pad(x, 0) is x


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
