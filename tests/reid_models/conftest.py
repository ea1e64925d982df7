import pytest

from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    """Eight drawn people, half of them for training, two cameras; Market-1501's layout. Not to be written to."""
    root = tmp_path_factory.mktemp("toy") / "raw"
    make_toy_dataset(root, ids=8, cameras=2, per_camera=3, seed=0, image_hw=(64, 32))
    return root


@pytest.fixture(scope="session")
def toy_index(toy_root):
    return DatasetIndex.open(toy_root)
