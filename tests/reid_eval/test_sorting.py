import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_eval.sorting import rising_bits, sorted_with_places


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
def test_bits_rise_as_the_numbers_do(values):
    numbers = np.array(values, dtype=np.float32)
    order = np.argsort(rising_bits(numbers), kind="stable")
    np.testing.assert_array_equal(numbers[order], np.sort(numbers))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_values_keep_their_order(dtype):
    values = np.random.default_rng(0).integers(-3, 4, 200).astype(dtype)
    values[values == 0] = 0.0
    values[:5] = np.inf
    found, places = sorted_with_places(values)
    np.testing.assert_array_equal(places, np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(found, np.sort(values))
