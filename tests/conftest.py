import os

import pytest
import torch

# Small tensors on two cores: one thread each is faster than two that wait for each other, and repeats bit for bit.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    # Files with slow tests first: of two processes neither is left alone with them at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("realdata") and not os.environ.get("REID_REALDATA"):
            item.add_marker(pytest.mark.skip(reason="needs a real dataset; name its folder in REID_REALDATA"))
