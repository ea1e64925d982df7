"""Our networks at full size compute what the published code computes.

Weights and inputs are drawn by a rule from the name of each tensor in the published checkpoints, so nothing but names
and results had to be exchanged. `data/golden_dgnet.npz` holds the results of the published code (float64) for these
weights: arrays in full, or as `#sample` (every stride-th number), `#shape` and `#stats` (the stride comes last).
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dgnet_gen.model import Codes, DGNet, NetworksConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden_dgnet.npz"
SEED = 7
NUM_IDS = 751


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def model():
    model = DGNet(NetworksConfig(), NUM_IDS)
    for network in model.networks().values():
        state = network.state_dict()
        for name, tensor in state.items():
            file, key = published_name(network, name)
            state[name] = torch.from_numpy(np.asarray(fill_value(file, key, tensor.shape)))
        network.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def x():
    return torch.from_numpy(image("x", (2, 3, 256, 128)))


@pytest.fixture(scope="module")
def seen(model, x):
    with torch.no_grad():
        return model.appearance_encoder(x)


def test_parameter_counts_are_those_of_the_published_networks(model):
    counts = model.describe()
    assert counts["structure"] + counts["decoder"] == 13_380_675
    assert counts["appearance"] == 28_427_782 - 2_049_000  # theirs carries an unused ImageNet classifier
    assert counts["discriminator"] == 1_025_571


def test_structure_code(model, x, golden):
    assert difference(golden, "s", model.structure(x)) < 1e-5


def test_appearance_code(seen, golden):
    assert difference(golden, "f", seen.code) < 1e-5


def test_logits_and_embeddings_of_both_heads(seen, golden):
    embedding1, embedding2 = seen.embeddings.chunk(2, dim=1)
    found = {"p1": seen.primary, "p2": seen.fine, "embedding1": embedding1, "embedding2": embedding2}
    assert {name for name, array in found.items() if difference(golden, name, array) >= 1e-5} == set()


def test_slices_of_the_code_drive_the_residual_blocks(model, seen, golden):
    for number, part in enumerate(seen.code.chunk(4, dim=1)):
        assert difference(golden, f"mlp_w{number + 1}", model.decoder.scales[number](part)) < 1e-5
        assert difference(golden, f"mlp_b{number + 1}", model.decoder.shifts[number](part)) < 1e-5


@pytest.mark.parametrize(("structure", "appearance"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_decoded_picture(model, seen, x, golden, structure, appearance):
    codes = Codes(seen.code[[appearance]], model.structure(x[[structure]]))
    assert difference(golden, f"G_s{structure}_f{appearance}", model.decode(codes)) < 1e-5


def test_discriminator_maps(model, seen, x, golden):
    swapped = model.decode(Codes(seen.code.flip(0), model.structure(x)))
    with torch.no_grad():
        for name, images in (("x", x), ("swap", swapped)):
            for scale, patch_map in enumerate(model.discriminator(images)):
                assert difference(golden, f"D_{name}_scale{scale}", patch_map) < 1e-5


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


RULES = {
    "StructureEncoder": (
        "gen",
        [
            (r"stem\.(\d+)\.(.+)", r"enc_content.model.\1.\2"),
            (r"blocks\.(\d+)\.first\.(.+)", r"enc_content.model.4.model.\1.model.0.\2"),
            (r"blocks\.(\d+)\.second\.(.+)", r"enc_content.model.4.model.\1.model.1.\2"),
            (r"pyramid\.plain\.(.+)", r"enc_content.model.5.conv1.\1"),
            (r"pyramid\.dilated\.0\.(\d)\.(.+)", r"enc_content.model.5.conv6.\1.\2"),
            (r"pyramid\.dilated\.1\.(\d)\.(.+)", r"enc_content.model.5.conv12.\1.\2"),
            (r"pyramid\.dilated\.2\.(\d)\.(.+)", r"enc_content.model.5.conv18.\1.\2"),
            (r"pyramid\.fuse\.(.+)", r"enc_content.model.5.fuse.\1"),
        ],
    ),
    "Decoder": (
        "gen",
        [
            (r"blocks\.(\d+)\.first\.(.+)", r"dec.model.1.model.\1.model.0.\2"),
            (r"blocks\.(\d+)\.second\.(.+)", r"dec.model.1.model.\1.model.1.\2"),
            (r"scales\.(\d+)\.(\d+)\.(.+)", lambda m: f"mlp_w{int(m[1]) + 1}.model.{int(m[2]) // 2}.fc.{m[3]}"),
            (r"shifts\.(\d+)\.(\d+)\.(.+)", lambda m: f"mlp_b{int(m[1]) + 1}.model.{int(m[2]) // 2}.fc.{m[3]}"),
            (r"upsampled\.(\d+)\.(.+)", lambda m: f"dec.model.{3 + 2 * int(m[1])}.{m[2]}"),
            (r"finish\.(\d+)\.(.+)", lambda m: f"dec.model.{6 + int(m[1])}.{m[2]}"),
        ],
    ),
    "AppearanceEncoder": (
        "id",
        [
            (r"trunk\.(.+)", r"model.\1"),
            (r"primary\.reduce\.(.+)", r"classifier1.add_block.0.\1"),
            (r"primary\.norm\.(.+)", r"classifier1.add_block.1.\1"),
            (r"primary\.classifier\.(.+)", r"classifier1.classifier.0.\1"),
            (r"fine\.reduce\.(.+)", r"classifier2.add_block.0.\1"),
            (r"fine\.norm\.(.+)", r"classifier2.add_block.1.\1"),
            (r"fine\.classifier\.(.+)", r"classifier2.classifier.0.\1"),
        ],
    ),
    "MultiScaleDiscriminator": (
        "dis",
        [
            (r"scales\.(\d)\.(\d)\.first\.(.+)", r"cnns.\1.\2.model.0.\3"),
            (r"scales\.(\d)\.(\d)\.second\.(.+)", r"cnns.\1.\2.model.1.\3"),
            (r"scales\.(\d)\.(.+)", r"cnns.\1.\2"),
        ],
    ),
}


def published_name(network, name):
    """The file and the key of one of our tensors in the published checkpoints."""
    file, rules = RULES[type(network).__name__]
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return file, re.sub(pattern, replacement, name)
    raise KeyError(name)
