"""As many threads as matrix products may use, of which each multiplies for itself.

Threads that share one product wait for each other, and all of them for what is done between products. Where the work
falls into parts, a part per thread leaves none idle.

    with side_by_side() as spread:
        list(spread(multiply_and_count, parts))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits

_MOST = 8  # every thread has a block of memory


def num_side_by_side() -> int:
    """Threads of `side_by_side`: what NumPy's BLAS has now (OMP_NUM_THREADS), at most 8; 1 where it cannot be told."""
    found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return min(_MOST, max(found, default=1))


@contextmanager
def side_by_side() -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, but in `num_side_by_side` threads; BLAS has a single one in each until the end."""
    num = num_side_by_side()
    if num == 1:
        yield map
        return
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num) as pool:
        yield pool.map
