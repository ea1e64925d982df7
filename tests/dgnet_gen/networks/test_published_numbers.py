"""Our networks at full size compute what the published code computes.

Weights and inputs are drawn by a rule from the name of each tensor in the published checkpoints, so nothing but names
and results had to be exchanged. `data/golden_dgnet.npz` holds the results of the published code (float64) for these
weights in evaluation mode: arrays in full, or as `#sample` (every stride-th number), `#shape` and `#stats` (the stride
comes last).
"""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dgnet_gen.model import Codes, DGNet, NetworksConfig
from dgnet_gen.published import from_published, published_tables

GOLDEN = Path(__file__).parents[1] / "data" / "golden_dgnet.npz"
SEED = 7
NUM_IDS = 751
TOLERANCE = {"float32": 1e-5, "float64": 1e-8}  # relative; float32 is compared with the float64 results too


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def files():
    """The published files by the rule, of the names and shapes that our table has for them."""
    with torch.device("meta"):
        tables = published_tables(DGNet(NetworksConfig(), NUM_IDS))
    return {
        file: {
            name: torch.from_numpy(np.asarray(fill_value(file, name, slot.value.shape))) for name, slot in table.items()
        }
        for file, table in tables.items()
    }


@pytest.fixture(scope="module")
def model(files):
    # the published code enlarges small pictures whatever size it was trained with
    model = DGNet(NetworksConfig(enlarge_small=True), NUM_IDS)
    for file, table in published_tables(model).items():
        networks, _ = from_published(table, files[file], source=file)
        for network, state in networks.items():
            model.networks()[network].load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module", params=["float32", "float64"])
def found(request, model):
    """What our networks give for every stored array that concerns them, and the tolerance."""
    if request.param == "float64":
        model = copy.deepcopy(model)
        for network in model.networks().values():
            network.double()
    x, small = (
        torch.from_numpy(image(name, (2, 3, *hw))).to(getattr(torch, request.param))
        for name, hw in (("x", (256, 128)), ("x_small", (128, 64)))
    )
    with torch.no_grad():
        seen, seen_small = model.appearance_encoder(x), model.appearance_encoder(small)
    s, small_s = model.structure(x), model.structure(small)
    embedding1, embedding2 = seen.embeddings.chunk(2, dim=1)
    arrays = {
        "x": x, "s": s, "f": seen.code, "p1": seen.primary, "p2": seen.fine,
        "embedding1": embedding1, "embedding2": embedding2, "reid_feature": model.reid_features(x),
        "small_s": small_s, "small_f": seen_small.code, "small_p1": seen_small.primary,
        "small_recon": model.decode(Codes(seen_small.code, small_s)),
    }  # fmt: skip
    for number, part in enumerate(seen.code.chunk(4, dim=1)):
        arrays[f"mlp_w{number + 1}"] = model.decoder.scales[number](part)
        arrays[f"mlp_b{number + 1}"] = model.decoder.shifts[number](part)
    for structure in (0, 1):
        for appearance in (0, 1):
            made = model.decode(Codes(seen.code[[appearance]], s[[structure]]))
            arrays[f"G_s{structure}_f{appearance}"] = made
    swapped = model.decode(Codes(seen.code.flip(0), s))
    with torch.no_grad():
        for name, images in (("x", x), ("swap", swapped)):
            for scale, patch_map in enumerate(model.discriminator(images)):
                arrays[f"D_{name}_scale{scale}"] = patch_map
    return arrays, TOLERANCE[request.param]


def test_every_stored_array_is_compared(found, golden):
    arrays, _ = found
    assert arrays.keys() == {name.partition("#")[0] for name in golden}


def test_networks_compute_the_published_numbers(found, golden):
    arrays, tolerance = found
    differences = {name: difference(golden, name, array) for name, array in arrays.items()}
    assert {name: value for name, value in differences.items() if not value < tolerance} == {}


def test_parameter_counts_are_those_of_the_published_networks(model):
    counts = model.describe()
    assert counts["structure"] + counts["decoder"] == 13_380_675
    assert counts["appearance"] == 28_427_782 - 2_049_000  # theirs carries an unused ImageNet classifier
    assert counts["discriminator"] == 1_025_571


@pytest.mark.parametrize(
    ("file", "entries", "total", "total_abs"),
    [
        ("gen", 134, 1111.478926, 434535.8791),
        ("id", 338, 43231.782590, 940477.2963),
        ("dis", 84, 0.782626, 35834.2555),
    ],
)
def test_files_drawn_by_the_rule_have_the_published_sums(files, file, entries, total, total_abs):
    values = [value.double() for value in files[file].values()]
    assert len(values) == entries
    assert sum(value.sum().item() for value in values) == pytest.approx(total, abs=1e-5)  # printed to six decimals
    assert sum(value.abs().sum().item() for value in values) == pytest.approx(total_abs, abs=1e-3)  # to four


def difference(golden, name, found):
    """The relative error of a tensor, or of its stored part."""
    found = found.detach().double().numpy()
    if name in golden:
        expected = golden[name]
    else:
        assert tuple(golden[f"{name}#shape"]) == found.shape
        expected = golden[f"{name}#sample"]
        found = found.reshape(-1)[:: int(golden[f"{name}#stats"][-1])][: len(expected)]
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def normal(name, shape):
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(tuple(shape))


def fill_value(file, key, shape):
    """The value of a tensor of a published file ("gen", "id", "dis") by its name there."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    drawn = normal(f"{file}:{key}", shape)
    if last == "running_var":
        value = 1 + 0.1 * np.abs(drawn)
    elif last == "running_mean":
        value = 0.1 * drawn
    elif drawn.ndim == 1 and last in ("weight", "gamma"):
        value = (0.1 if key.endswith("bn3.weight") else 1.0) * (1 + 0.1 * drawn)
    elif drawn.ndim == 1:
        value = 0.05 * drawn
    elif key.endswith(".classifier.0.weight"):
        value = 0.02 * drawn
    else:
        value = (0.7 if file == "dis" else 1.0) * drawn * np.sqrt(2.0 / np.prod(shape[1:]))
    return value.astype(np.float32)


def image(name, shape):
    n, c, h, w = shape
    coarse = normal(f"input:{name}:coarse", (n, c, h // 16, w // 16)).repeat(16, axis=2).repeat(16, axis=3)
    return (0.8 * coarse + 0.6 * normal(f"input:{name}:fine", shape)).astype(np.float32)
