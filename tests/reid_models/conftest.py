import gzip
import json
from pathlib import Path

import pytest
import torch

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


@pytest.fixture
def layout():
    """The entries of a published file, {name: (shape, dtype)} in the file's order, and its optimizer's parameters.

    Names are mgn_1-2-3, mgn_1-2-4, mgn_1-3-4 and net_last, all for the 751 identities of Market-1501.
    """

    def read(name):
        content = json.loads(gzip.decompress((Path(__file__).parent / f"published/{name}.json.gz").read_bytes()))
        entries = {key: (tuple(shape), getattr(torch, dtype)) for key, shape, dtype in content["entries"]}
        return entries, content["parameters"]

    return read


@pytest.fixture
def published_state(layout):
    """A state dict as published, in which each tensor holds its position and takes the memory of one number.

    `num_ids` gives the classifiers another size.
    """

    def make(name, num_ids=751):
        entries, _ = layout(name)
        return {
            key: torch.tensor(position, dtype=dtype).expand([num_ids if size == 751 else size for size in shape])
            for position, (key, (shape, dtype)) in enumerate(entries.items())
        }

    return make
