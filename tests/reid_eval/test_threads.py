import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from reid_eval.threads import num_side_by_side, side_by_side


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def multiply_and_fail():
    with side_by_side() as spread:
        assert set(blas_threads()) == {1}
        products = spread(lambda number: np.full((3, 4), number) @ np.ones((4, 2)), range(5))
        assert [product[0, 0] for product in products] == [0, 4, 8, 12, 16]
        list(spread(lambda number: 1 / number, [1, 0]))


def test_each_thread_multiplies_for_itself_and_afterwards_all_is_as_before():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert num_side_by_side() == max(before)
        with pytest.raises(ZeroDivisionError):
            multiply_and_fail()
        assert blas_threads() == before


def test_there_is_one_thread_where_blas_may_have_one():
    with threadpool_limits(1, user_api="blas"):
        assert num_side_by_side() == 1
        with side_by_side() as spread:
            assert list(spread(str, [1, 2])) == ["1", "2"]
