import json

import numpy as np
import pytest
import torch

from reid_eval.features import ReidFeatures
from reid_eval.files import read_pixels
from reid_eval.ranking import rank
from reid_models.config import config_from_dict
from reid_models.data.index import DatasetError
from reid_models.extraction import NetworkEmbedder, extract_features, frechet_extractor, load_embedder
from reid_models.runs import CheckpointError
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, train_reid


@pytest.fixture(scope="module")
def run(toy_index, tmp_path_factory):
    """A network trained for a few seconds, so that it knows people better than chance."""
    config = config_from_dict(
        ReidTrainConfig,
        {
            "image_hw": [32, 16],
            "network": {"trunk": "small", "width": 8, "weights": "none", "bottleneck": 32},
            "sampler": {"ids_per_batch": 4, "images_per_id": 4},
            "augmentation": {"pad_px": 2},
            "optim": {"lr": 0.003},
            "schedule": {"epochs": 30, "warmup_epochs": 0},
            "num_workers": 0,
            "eval_every": 15,
        },
    )
    return train_reid(config, toy_index, tmp_path_factory.mktemp("runs") / "teacher", Runtime.from_environment("cpu"))


def test_every_picture_gets_a_unit_vector_with_its_identity_camera_split_and_path(run, toy_index):
    features = extract_features(load_embedder(run.path, device="cpu"), toy_index, batch_size=5)
    wanted = [*toy_index.split("query"), *toy_index.split("gallery")]
    assert features.pids.tolist() == [record.pid for record in wanted]
    assert features.camids.tolist() == [record.camid for record in wanted]
    assert features.splits.tolist() == [record.split for record in wanted]
    assert features.paths[0] == f"query/{wanted[0].path.name}"
    np.testing.assert_allclose(np.linalg.norm(features.features, axis=1), 1, rtol=1e-6)


def test_vectors_do_not_depend_on_the_batch_or_the_workers(run, toy_index):
    embedder = load_embedder(run.path, device="cpu")
    one = extract_features(embedder, toy_index, batch_size=1).features
    many = extract_features(embedder, toy_index, batch_size=7, num_workers=1).features
    np.testing.assert_allclose(one, many, atol=1e-5)  # convolutions of another batch size add in another order


def test_with_flip_a_picture_and_its_mirror_image_get_the_same_vector(run, toy_index):
    class Mirrored:
        def __init__(self, embedder):
            self.embedder = embedder
            self.name, self.image_hw, self.num_features = "mirrored", embedder.image_hw, embedder.num_features

        def embed(self, images):
            return self.embedder.embed(images.flip(3))

    embedder = load_embedder(run.path, device="cpu")
    plain = extract_features(embedder, toy_index, ["query"]).features
    np.testing.assert_allclose(extract_features(Mirrored(embedder), toy_index, ["query"]).features, plain, atol=1e-6)
    without = extract_features(embedder, toy_index, ["query"], flip=False).features
    assert np.abs(without - plain).max() > 1e-3


def test_the_features_name_their_makers(run, toy_index, tmp_path):
    extract_features(load_embedder(run.path, device="cpu"), toy_index).save(tmp_path / "features.npz")
    meta = ReidFeatures.load(tmp_path / "features.npz").meta
    assert meta["extractor"] == "reid:teacher@60"
    assert meta["index_fingerprint"] == toy_index.fingerprint
    assert meta["network_made_by"]["index_fingerprint"] == toy_index.split("train_all").fingerprint
    assert (meta["flip"], meta["image_hw"]) == (True, [32, 16])
    json.dumps(meta)


def test_the_trained_network_beats_the_one_it_started_from(run, toy_index):
    scores = {}
    for untrained in (False, True):
        embedder = load_embedder(run.path, device="cpu", untrained=untrained)
        features = extract_features(embedder, toy_index)
        scores[features.meta["extractor"]] = rank(features).map_hits
    assert scores["reid:teacher@60"] > scores["reid:teacher@untrained"] + 0.1


def test_the_untrained_network_is_the_one_that_training_started_from(run):
    from reid_models.training import build_network

    torch.manual_seed(0)
    start = build_network(run.config(ReidTrainConfig).network, num_ids=4)
    untrained = load_embedder(run.path, device="cpu", untrained=True).network
    for name, value in start.state_dict().items():
        assert torch.equal(value, untrained.state_dict()[name]), name


def test_best_and_numbered_checkpoints_can_be_chosen(run, toy_index):
    assert load_embedder(run.path, which=run.iterations()[0], device="cpu").name.endswith(f"@{run.iterations()[0]}")
    best = run.load("best")
    assert load_embedder(run.path, which="best", device="cpu").name == f"reid:teacher@{best.iteration}"
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 7"):
        load_embedder(run.path, which=7, device="cpu")


def test_extracting_while_training_leaves_the_network_in_training(toy_index, run):
    network = load_embedder(run.path, device="cpu").network.train()
    embedder = NetworkEmbedder(
        network, name="x", image_hw=(32, 16), num_features=32, runtime=Runtime.from_environment("cpu")
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    extract_features(embedder, toy_index)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_frechet_extractor_embeds_pictures_of_any_size(run, toy_index):
    extractor = frechet_extractor(str(run.path), "cpu")
    assert (extractor.name, extractor.num_features, extractor.quotable) == ("reid:teacher@60", 32, True)
    first = read_pixels(toy_index.paths[0])
    features = extractor([first, first[:40, :20], first])
    assert (features.shape, features.dtype) == ((3, 32), np.float32)
    np.testing.assert_allclose(features[0], features[2], atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_a_folder_without_a_run_and_a_split_without_images_are_explained(run, toy_index, tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        frechet_extractor(str(tmp_path), "cpu")
    with pytest.raises(DatasetError, match="no images in split multi-query"):
        extract_features(load_embedder(run.path, device="cpu"), toy_index, ["multi-query"])
