"""Vectors to rank by from a DG-Net, as reid-models extract makes them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dgnet_gen.cli import main as dgnet_gen
from dgnet_gen.features import DGNetEmbedder, load_embedder
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.settings import DGNetTrainConfig, LossWeights
from dgnet_gen.training import train_dgnet
from reid_eval.features import ReidFeatures
from reid_eval.files import read_pixels
from reid_eval.foreign import load_features
from reid_eval.parts import weighted
from reid_eval.ranking import rank
from reid_models.cli import main
from reid_models.config import ConfigError
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform
from reid_models.extraction import extract_features
from reid_models.extraction import load_embedder as load_any
from reid_models.runtime import Runtime

NETWORKS = NetworksConfig(
    image_hw=(32, 16), trunk="small", trunk_width=4, bottleneck=8, structure_dim=4, n_downsample=1, n_res=1, mlp_dim=8,
    discriminator_dim=4, discriminator_res=1, num_scales=1,
)  # fmt: skip
CONFIG = DGNetTrainConfig(
    networks=NETWORKS, weights=LossWeights(teacher=0.0), trunk_weights="none", batch_size=4, max_iter=3, pad_px=1,
    num_workers=0, keep_every=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "raw"
    make_toy_dataset(root, ids=8, cameras=2, per_camera=3, seed=0, image_hw=(64, 32))
    return DatasetIndex.open(root)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dgnet"
    return train_dgnet(CONFIG, data, out, Runtime.from_environment("cpu")).path


def reid_models(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_both_heads_are_normalised_flipped_and_added_as_published(run, data):
    features = extract_features(load_any(run, device="cpu", alpha=1.0), data).features
    model = DGNet.load(run, device="cpu")
    paths = [*data.split("query").paths, *data.split("gallery").paths]
    images = torch.stack([eval_transform(read_pixels(path), model.image_hw) for path in paths])
    expected = model.reid_features(images).numpy()  # each half of length 1
    np.testing.assert_allclose(features * np.sqrt(2), expected, atol=1e-5)


@pytest.mark.parametrize(("alpha", "weights"), [(None, (1, 0.5)), (0.0, (1, 0)), (-1.0, (0, 1)), (2.0, (1, 2))])
def test_products_are_the_published_scores_up_to_a_factor(run, data, alpha, weights):
    halves = extract_features(load_any(run, device="cpu", alpha=1.0), data).features * np.sqrt(2)
    primary, fine = np.split(halves.astype(float), 2, axis=1)
    scores = weights[0] * primary @ primary.T + weights[1] * fine @ fine.T
    found = extract_features(load_any(run, device="cpu", alpha=alpha), data)
    np.testing.assert_allclose(found.features @ found.features.T, scores / sum(weights), atol=1e-5)
    assert found.meta["network_made_by"]["alpha"] == (0.5 if alpha is None else alpha)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -1.0])
def test_every_alpha_can_be_made_from_the_parts(run, data, alpha):
    stored = extract_features(load_any(run, device="cpu", alpha="parts"), data)
    places = stored.meta["parts"]
    assert places == {"coarse": [0, 8], "fine": [8, 16]}
    coarse, fine = (stored.features[:, slice(*places[name])].astype(float) for name in ("coarse", "fine"))
    for part in (coarse, fine):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-6)
    weighted = np.hstack([0 * coarse, fine] if alpha == -1 else [coarse, np.sqrt(alpha) * fine])
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    found = extract_features(load_any(run, device="cpu", alpha=alpha), data)
    np.testing.assert_allclose(found.features, weighted, atol=1e-6)
    assert "parts" not in found.meta


def test_the_command_extracts_from_a_run_of_dgnet_without_naming_its_data(run):
    result = reid_models("extract", "--run", run, "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0, result.output
    features = ReidFeatures.load(run / "features.npz")
    assert features.num_features == 16
    assert features.meta["extractor"] == "dgnet:dgnet@3"


def test_one_command_ranks_with_every_alpha_and_writes_the_published_files(run, data, tmp_path):
    mat, out = tmp_path / "pytorch_result.mat", tmp_path / "metrics"
    arguments = ["test", "--run", run, "--device", "cpu", "--workers", 0, "--mat", mat, "--out", out, "--json"]
    result = CliRunner().invoke(dgnet_gen, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    found = {report["alpha"]: report["plain"]["map_hits"] for report in json.loads(result.stdout)["alphas"]}
    # Another way: an extraction for each alpha, and the published file through the reader of foreign files.
    for alpha in (0.0, 0.5, -1.0):
        direct = rank(extract_features(load_any(run, device="cpu", alpha=alpha), data)).map_hits
        assert found[alpha] == pytest.approx(direct)
        assert rank(weighted(load_features(mat), alpha)).map_hits == pytest.approx(direct)
    assert {file.stem for file in out.glob("map_hits*.json")} == {
        f"map_hits_alpha_{a}" for a in ("0", "0_5", "minus_1")
    }


def test_test_is_refused_before_its_work(run, data, tmp_path):
    def test(*arguments):
        return CliRunner().invoke(dgnet_gen, ["test", "--device", "cpu", *map(str, arguments)])

    (tmp_path / "theirs.mat").write_text("of somebody else")
    for arguments, message in (
        (["--run", run, "--mat", tmp_path / "theirs.mat"], "theirs.mat: exists and was not made by dgnet-gen test"),
        (["--run", run, "--mat", tmp_path / "mine.npz"], "expected a name that ends in .mat"),
        (["--run", run, "--multi-query", "mean"], "no images in split multi-query"),
        (["--run", tmp_path, "--data", data.root], "no training of DG-Net"),
    ):
        result = test(*arguments)
        assert (result.exit_code, message in result.stderr) == (1, True), result.output
    assert (tmp_path / "theirs.mat").read_text() == "of somebody else"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "-2"], "--alpha -2: expected 0 or more, or -1"),
        (["--untrained"], "--untrained is for runs of reid-models train, this one is of dgnet"),
        (["--which", "7"], "no checkpoint of iteration 7"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, arguments, message):
    result = reid_models("extract", "--run", run, "--device", "cpu", *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_one_head_has_nothing_to_weigh(run):
    model = DGNet(dataclasses.replace(NETWORKS, heads="one"), 4)
    runtime = Runtime.for_inference("cpu")
    assert DGNetEmbedder(model, runtime, alpha=None, run="x").alpha == 0
    for alpha in (0.5, "parts"):
        with pytest.raises(ConfigError, match=r"one head.* nothing to weigh"):
            DGNetEmbedder(model, runtime, alpha=alpha, run="x")


def test_what_is_no_dgnet_is_left_to_others(data, tmp_path):
    assert load_embedder(tmp_path) is None
    assert load_embedder(data.root) is None
