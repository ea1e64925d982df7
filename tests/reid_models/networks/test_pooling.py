import logging

import pytest
import torch
import torch.nn.functional as F

from reid_models.networks.pooling import StripePool


def feature_map(height=24, width=8, dtype=torch.float32):
    return torch.rand(2, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stripes", [1, 2, 3, 4, 6, 8, 12, 24])
def test_stripes_of_a_24x8_map_are_those_of_fixed_kernels(stripes):
    kernel = (24 // stripes, 8)
    torch.testing.assert_close(StripePool(stripes, "avg")(feature_map()), F.avg_pool2d(feature_map(), kernel))
    torch.testing.assert_close(StripePool(stripes, "max")(feature_map()), F.max_pool2d(feature_map(), kernel))


def test_the_generalised_mean_is_that_of_the_formula():
    top = StripePool(2, "gem")(feature_map())[:, :, 0, 0]
    torch.testing.assert_close(top, feature_map()[:, :, :12].pow(3).mean((2, 3)).pow(1 / 3))


def test_the_generalised_mean_lies_between_average_and_maximum():
    pool, values = StripePool(3, "gem").double(), feature_map(dtype=torch.float64)
    torch.nn.init.constant_(pool.p, 1.0)
    torch.testing.assert_close(pool(values), StripePool(3, "avg")(values))
    torch.nn.init.constant_(pool.p, 1000.0)
    # 64 numbers, of which one is the largest: (1/64)^(1/1000) = 0.996
    torch.testing.assert_close(pool(values), StripePool(3, "max")(values), rtol=0.005, atol=0)


def test_the_exponent_is_learned_also_where_the_map_is_zero():
    pool = StripePool(2, "gem")
    pool(torch.relu(feature_map() - 0.5)).sum().backward()
    assert pool.p.grad.isfinite().all()
    assert pool.p.grad.abs() > 0


def test_half_precision_holds_the_powers():
    values = 1000 * feature_map()
    pooled = StripePool(2, "gem")(values.half())
    torch.testing.assert_close(pooled, StripePool(2, "gem")(values), rtol=1e-3, atol=0)  # float16 has 11 bits


def test_rows_that_do_not_divide_are_warned_of_once(caplog):
    pool = StripePool(5)
    with caplog.at_level(logging.WARNING):
        assert pool(feature_map()).shape == pool(feature_map()).shape == (2, 3, 5, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "feature maps of 24 rows are cut into 5 stripes, which overlap"
    ]


def test_fewer_rows_than_stripes_are_refused():
    with pytest.raises(ValueError, match="2 rows cannot be cut into 3 stripes"):
        StripePool(3)(feature_map(height=2))


@pytest.mark.parametrize("arguments", [(0, "avg"), (2, "median")])
def test_a_pool_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        StripePool(*arguments)
