import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_eval.sorting import in_whole_numbers, sorted_with_places


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), split=st.integers(0, 30))
def test_whole_numbers_are_in_the_order_of_the_values(dtype, values, split):
    numbers = np.array([*values, 0.0, -0.0, np.inf, -np.inf], dtype=dtype)
    found = np.concatenate(in_whole_numbers(numbers[:split], numbers[split:]))
    assert found.dtype == np.int64
    assert found.min() >= 0
    assert found.max() < 2**32 - 1
    np.testing.assert_array_equal(found[:, None] < found, numbers[:, None] < numbers)
    np.testing.assert_array_equal(found[:, None] == found, numbers[:, None] == numbers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num", [1, 2, 200])
def test_equal_values_keep_their_order(dtype, num):
    values = np.random.default_rng(0).integers(-3, 4, num).astype(dtype)
    values[7:9] = np.inf
    found, places = sorted_with_places(values)
    np.testing.assert_array_equal(places, np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(found, np.sort(values))
