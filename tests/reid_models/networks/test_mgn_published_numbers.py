"""MGN at full size computes what the published code computes, forward and backward.

Weights and pictures are drawn by a rule from names, those of the published checkpoints for weights, so nothing but
names and results had to be exchanged. `golden_mgn.npz` holds what the published code computed from them: arrays in
full, or as `#sample` (every stride-th number), `#shape` and `#stats` (the stride comes last). Four variants; the
first is compared in every respect, of the others the first blocks, which are the same, get no gradients.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid_models.losses import batch_hard_triplet, cross_entropy
from reid_models.networks.mgn import MGN, parse_granularities
from reid_models.networks.output import ReidOutput
from reid_models.networks.resnet import make_trunk

SEED = 7

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden_mgn.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@dataclass
class Computed:
    """What a network says in evaluation, of the mirror images too, and then in a step of training.

    Gradients and batch norms are by their published names.
    """

    evaluated: ReidOutput
    mirrored: torch.Tensor
    trained: ReidOutput
    triplet_each: torch.Tensor
    ce_each: torch.Tensor
    total: torch.Tensor
    gradients: dict[str, torch.Tensor]
    batch_norms: dict[str, nn.BatchNorm2d]


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(image("mgn_x", (4, 3, 384, 128)))


@pytest.fixture(scope="module")
def computed(images, golden):
    return compute(filled("1-2-3").double(), images.double(), golden["labels"])


def test_the_input_is_the_published_one(images, golden):
    assert difference(golden, "1-2-3/f64/eval/x", images) == 0


def test_every_output_in_evaluation(computed, golden):
    assert worst_output(golden, "1-2-3/f64/eval", computed.evaluated) < 1e-8


def test_features_of_pictures_and_their_mirror_images_together(computed, golden):
    assert difference(golden, "1-2-3/f64/eval/feature_flip", with_mirror_image(computed)) < 1e-8


def test_every_output_in_training(computed, golden):
    assert worst_output(golden, "1-2-3/f64/train", computed.trained) < 1e-8


def test_both_losses_and_their_sum(computed, golden):
    assert worst_loss(golden, "1-2-3/f64", computed) < 1e-8


def test_the_gradient_of_every_parameter(computed, golden):
    names = golden["1-2-3/param_names"].tolist()
    assert set(names) == set(computed.gradients)
    for name, measure in {"grad_norm": torch.linalg.vector_norm, "grad_sum": torch.sum}.items():
        found = [measure(computed.gradients[key]).item() for key in names]
        np.testing.assert_allclose(found, golden[f"1-2-3/f64/train/{name}"], rtol=1e-6, atol=1e-9)


def test_single_numbers_of_sixteen_gradients(computed, golden):
    prefix = "1-2-3/f64/train/grad/"
    keys = {name.removeprefix(prefix).split("#")[0] for name in golden if name.startswith(prefix)}
    assert len(keys) == 16
    wrong = {key for key in keys if difference(golden, prefix + key, computed.gradients[key]) >= 1e-6}
    assert wrong == set()


def test_the_statistics_that_a_training_pass_leaves(computed, golden):
    found = [statistics(computed.batch_norms[name]) for name in golden["1-2-3/bn_names"]]
    np.testing.assert_allclose(found, golden["1-2-3/f64/train/bn_after"], rtol=1e-8)


@pytest.mark.parametrize("variant", ["1-2-4", "1-3-4", "1-2-3-max"])
def test_the_other_variants(variant, images, golden):
    network = filled(variant).double()
    last = tuple(f"branches.{branch}.layer4.2." for branch in range(3))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("heads.", *last)))
    found = compute(network, images.double(), golden["labels"], num_evaluated=1)
    assert worst_output(golden, f"{variant}/f64/eval", found.evaluated) < 1e-8
    assert difference(golden, f"{variant}/f64/eval/feature_flip", with_mirror_image(found)) < 1e-8
    assert worst_output(golden, f"{variant}/f64/train", found.trained) < 1e-8
    assert worst_loss(golden, f"{variant}/f64", found) < 1e-8
    norms = dict(zip(golden[f"{variant}/param_names"], golden[f"{variant}/f64/train/grad_norm"], strict=True))
    keys = [key for key in norms if key.startswith(("reduction_", "fc_id_", "p1.1.2.", "p2.1.2.", "p3.1.2."))]
    assert set(keys) == set(found.gradients)
    ours = [torch.linalg.vector_norm(found.gradients[key]).item() for key in keys]
    np.testing.assert_allclose(ours, [norms[key] for key in keys], rtol=1e-6, atol=1e-9)


def test_single_precision_stays_as_close_as_round_off_lets_it(images, golden):
    # Tolerances: published for float32 against float64, from what round-off alone does to these networks.
    found = compute(filled("1-2-3"), images, golden["labels"], num_evaluated=1)
    assert worst_output(golden, "1-2-3/f64/eval", found.evaluated) < 1e-5
    assert worst_output(golden, "1-2-3/f64/train", found.trained) < 5e-5
    assert worst_loss(golden, "1-2-3/f64", found) < 2e-5
    names, norms = golden["1-2-3/param_names"], golden["1-2-3/f64/train/grad_norm"]
    ours = np.array([torch.linalg.vector_norm(found.gradients[name]).item() for name in names])
    telling = norms > 1e-4 * norms.max()
    np.testing.assert_allclose(ours[telling], norms[telling], rtol=0.02)
    left = [statistics(found.batch_norms[name]) for name in golden["1-2-3/bn_names"]]
    np.testing.assert_allclose(left, golden["1-2-3/f64/train/bn_after"], rtol=1e-5, atol=1e-5)


def filled(variant):
    """The network of a variant, its tensors drawn from their published names."""
    text = variant.removesuffix("-max")
    network = MGN(
        make_trunk("resnet50"),
        num_ids=751,
        granularities=parse_granularities(text),
        pool="max" if variant.endswith("-max") else "avg",
        classifier_bias=text == "1-2-3",
    )
    published = published_names(network.granularities)
    state = network.state_dict()
    for name, tensor in state.items():
        state[name] = torch.from_numpy(np.asarray(fill_value(published(name), tensor.shape)))
    network.load_state_dict(state)
    return network


def compute(network, images, labels, num_evaluated=4):
    labels, published = torch.from_numpy(labels), published_names(network.granularities)
    with torch.no_grad():
        evaluated = network.eval()(images[:num_evaluated])
        mirrored = network.embed(images[:num_evaluated].flip(3))
    trained = network.train()(images)
    triplet_each = torch.stack([batch_hard_triplet(vectors, labels, margin=1.2) for vectors in trained.metric])
    ce_each = torch.stack([cross_entropy(logits, labels) for logits in trained.logits])
    total = ce_each.mean() + 2 * triplet_each.mean()
    total.backward()
    gradients = {published(name): value.grad for name, value in network.named_parameters() if value.requires_grad}
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    norms = {published(f"{name}.").rstrip("."): module for name, module in norms.items()}
    return Computed(evaluated, mirrored, trained, triplet_each, ce_each, total, gradients, norms)


def published_names(granularities):
    """Our names to MGN-pytorch's, whose heads are spread over reductions and two families of classifiers."""
    branches = range(len(granularities))
    classifiers = [f"fc_id_2048_{branch}" for branch in branches]
    classifiers += [f"fc_id_256_{b}_{stripe}" for b in branches[1:] for stripe in range(granularities[b])]
    theirs = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3.0": "6"}
    beginnings = {f"shared.{name}.": f"backone.{number}." for name, number in theirs.items()}
    beginnings |= {f"branches.{b}.layer{n}.": f"p{b + 1}.{n - 3}." for b in branches for n in (3, 4)}
    for head, classifier in enumerate(classifiers):
        beginnings[f"heads.{head}.reduce."] = f"reduction_{head}.0."
        beginnings[f"heads.{head}.norm."] = f"reduction_{head}.1."
        beginnings[f"heads.{head}.classifier."] = f"{classifier}."

    def published(name):
        (ours,) = [beginning for beginning in beginnings if name.startswith(beginning)]
        return beginnings[ours] + name.removeprefix(ours)

    return published


def worst_output(golden, prefix, output):
    """The largest relative error of the published tuple: embeddings, metric vectors, logits."""
    published = [output.embeddings, *output.metric, *output.logits]
    assert f"{prefix}/out{len(published):02}" not in {name.split("#")[0] for name in golden}
    return max(difference(golden, f"{prefix}/out{number:02}", found) for number, found in enumerate(published))


def with_mirror_image(found):
    return nn.functional.normalize(found.evaluated.embeddings + found.mirrored)


def worst_loss(golden, prefix, found):
    each = {"triplet_each": found.triplet_each, "ce_each": found.ce_each, "total_1CE_2Triplet": found.total}
    return max(
        np.abs(value.detach().double().numpy() / golden[f"{prefix}/train/{name}"] - 1).max()
        for name, value in each.items()
    )


def statistics(norm):
    return [
        measure(values.double()).item()
        for values in (norm.running_mean, norm.running_var)
        for measure in (torch.sum, torch.linalg.vector_norm)
    ]


def difference(golden, name, found):
    """The relative error of the stored part of a tensor, or of its first rows."""
    shape, found = tuple(found.shape), found.detach().double().numpy().reshape(-1)
    if name in golden:
        expected, expected_shape = golden[name].reshape(-1), golden[name].shape
    else:
        expected, expected_shape = golden[f"{name}#sample"], tuple(golden[f"{name}#shape"])
        found = found[:: int(golden[f"{name}#stats"][-1])]
    assert shape[1:] == expected_shape[1:]
    assert shape[0] <= expected_shape[0]
    length = min(len(found), len(expected))
    return np.linalg.norm(found[:length] - expected[:length]) / np.linalg.norm(expected[:length])


def normal(name, shape):
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(tuple(shape))


def fill_value(key, shape):
    """The value of a tensor of a published MGN by its name there."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    drawn = normal(f"mgn:{key}", shape)
    if last == "running_var":
        value = 1 + 0.1 * np.abs(drawn)
    elif last == "running_mean":
        value = 0.1 * drawn
    elif drawn.ndim == 1 and last == "weight":
        value = (0.1 if key.endswith("bn3.weight") else 1.0) * (1 + 0.1 * drawn)
    elif drawn.ndim == 1:
        value = 0.05 * drawn
    elif key.startswith("fc_id_"):
        value = 0.02 * drawn
    else:
        value = drawn * np.sqrt(2.0 / np.prod(shape[1:]))
    return value.astype(np.float32)


def image(name, shape):
    n, c, h, w = shape
    coarse = normal(f"input:{name}:coarse", (n, c, h // 16, w // 16)).repeat(16, axis=2).repeat(16, axis=3)
    return (0.8 * coarse + 0.6 * normal(f"input:{name}:fine", shape)).astype(np.float32)
