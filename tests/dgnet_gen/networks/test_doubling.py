import pytest
import torch
import torch.nn.functional as F

from dgnet_gen.networks.doubling import convolve_doubled, doubled_kernels
from dgnet_gen.networks.layers import ConvUnit, pad

SIZES = [(2, 2), (2, 5), (3, 2), (4, 4), (7, 3)]


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_convolution_of_the_doubled_map_and_so_are_its_gradients(size, kind):
    x, weight, bias = drawn(2, 3, *size), drawn(4, 3, 5, 5), drawn(4)
    slowly = F.conv2d(pad(F.interpolate(x, scale_factor=2, mode="nearest"), 2, kind), weight, bias)
    found = convolve_doubled(x, doubled_kernels(weight, bias), reflect=kind == "reflect", zero=kind == "zero")
    torch.testing.assert_close(found, slowly)
    with torch.no_grad():  # adds its edges otherwise
        again = convolve_doubled(x, doubled_kernels(weight, bias), reflect=kind == "reflect", zero=kind == "zero")
    torch.testing.assert_close(again, slowly)
    towards = torch.randn_like(slowly)
    gradients = torch.autograd.grad((found * towards).sum(), (x, weight, bias))
    torch.testing.assert_close(gradients, torch.autograd.grad((slowly * towards).sum(), (x, weight, bias)))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (4, 2)])
@pytest.mark.parametrize("kind", ["reflect", "replicate", "zero"])
def test_a_unit_that_doubles_is_a_unit_after_doubling_however_small_the_map(size, kind):
    unit = ConvUnit(3, 4, 5, norm="layer", padding=kind, doubling=True).double()
    plain = ConvUnit(3, 4, 5, norm="layer", padding=kind).double()
    plain.load_state_dict(unit.state_dict())
    x = drawn(2, 3, *size)
    torch.testing.assert_close(unit(x), plain(F.interpolate(x, scale_factor=2, mode="nearest")))


def test_only_a_kernel_of_five_may_double():
    with pytest.raises(ValueError, match="doubling needs a kernel of 5, got 3"):
        ConvUnit(3, 4, 3, doubling=True)


def test_half_precision_sums_kernels_before_rounding_them():
    x, weight = torch.randn(2, 8, 6, 4), torch.randn(4, 8, 5, 5)
    exact = convolve_doubled(x.double(), doubled_kernels(weight.double(), None), reflect=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve_doubled(x, doubled_kernels(weight, None), reflect=True)
    assert found.dtype == torch.bfloat16
    # Inputs and kernels are rounded to 8 bits once each.
    assert (found - exact).norm() < 0.006 * exact.norm()
