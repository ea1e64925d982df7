import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from reid_eval.errors import OutputError, Stopped
from reid_eval.features import FeatureFileError, ReidFeatures
from reid_eval.ranking import rank
from reid_models.config import config_from_dict
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.extraction import NetworkEmbedder, extract_features, load_embedder
from reid_models.networks.baseline import Baseline
from reid_models.networks.folding import folded
from reid_models.networks.resnet import make_trunk
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

        def finish(self, vectors):
            return self.embedder.finish(vectors)

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
    start = folded(build_network(run.config(ReidTrainConfig).network, num_ids=4))
    untrained = load_embedder(run.path, device="cpu", untrained=True).network
    for name, value in start.state_dict().items():
        assert torch.equal(value, untrained.state_dict()[name]), name


def test_best_and_numbered_checkpoints_can_be_chosen(run, toy_index):
    assert load_embedder(run.path, which=run.iterations()[0], device="cpu").name.endswith(f"@{run.iterations()[0]}")
    best = run.load("best")
    assert load_embedder(run.path, which="best", device="cpu").name == f"reid:teacher@{best.iteration}"
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 7"):
        load_embedder(run.path, which=7, device="cpu")


def test_extracting_leaves_the_network_as_it_is(toy_index):
    network = Baseline(make_trunk("small", width=4), 4, bottleneck=8).train()
    embedder = NetworkEmbedder(network, name="x", image_hw=(32, 16), runtime=Runtime.from_environment("cpu"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    extract_features(embedder, toy_index)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class StoppedAfter:
    """An embedder that a signal stops after some batches, or never; counts the pictures it is given."""

    def __init__(self, embedder, batches=-1):
        self.embedder, self.left, self.pictures = embedder, batches, 0
        self.name, self.image_hw, self.num_features = embedder.name, embedder.image_hw, embedder.num_features
        self.fingerprint = embedder.fingerprint

    def embed(self, images):
        if self.left == 0:
            raise Stopped("SIGTERM")
        self.left -= 1
        self.pictures += len(images)
        return self.embedder.embed(images)

    def finish(self, vectors):
        return self.embedder.finish(vectors)


@pytest.fixture
def interrupted(run, toy_index, tmp_path):
    """An extraction of 40 pictures in batches of 8, stopped after three; the embedder, and the file of its vectors."""
    embedder, partial = load_embedder(run.path, device="cpu"), tmp_path / "deep" / "features.npz.partial"
    with pytest.raises(Stopped):
        extract_features(StoppedAfter(embedder, 3), toy_index, flip=False, batch_size=8, partial=partial)
    return embedder, partial


def go_on(embedder, index, partial):
    """The features, and how many pictures had to be embedded for them."""
    counting = StoppedAfter(embedder)
    features = extract_features(counting, index, flip=False, batch_size=8, partial=partial)
    return features, counting.pictures


def test_an_extraction_that_was_stopped_goes_on_and_gives_what_one_that_was_not_gives(interrupted, toy_index, caplog):
    embedder, partial = interrupted
    total = len(toy_index.split("query")) + len(toy_index.split("gallery"))
    features, embedded = go_on(embedder, toy_index, partial)
    assert embedded == total - 24
    assert f"going on after 24 of {total} pictures" in caplog.text
    straight = extract_features(embedder, toy_index, flip=False, batch_size=8)
    np.testing.assert_array_equal(features.features, straight.features)
    assert (features.paths == straight.paths).all()
    assert go_on(embedder, toy_index, partial)[1] == 0


def test_a_vector_that_was_cut_off_is_made_again(interrupted, toy_index):
    embedder, partial = interrupted
    partial.write_bytes(partial.read_bytes()[:-5])
    features, _ = go_on(embedder, toy_index, partial)
    # Rows that meet in batches of another composition differ in the last digits.
    straight = extract_features(embedder, toy_index, flip=False, batch_size=8)
    np.testing.assert_allclose(features.features, straight.features, atol=1e-5)


def test_a_picture_that_was_replaced_is_embedded_again_whatever_its_time_and_size_say(interrupted, toy_index):
    embedder, partial = interrupted
    sixth, another = toy_index.split("query").paths[5:7]
    before, state = sixth.read_bytes(), sixth.stat()
    sixth.write_bytes(another.read_bytes().ljust(len(before), b"\0"))
    os.utime(sixth, (state.st_atime - 9, state.st_mtime - 9))
    try:
        total = len(toy_index.split("query")) + len(toy_index.split("gallery"))
        features, embedded = go_on(embedder, toy_index, partial)
    finally:
        sixth.write_bytes(before)
        os.utime(sixth, (state.st_atime, state.st_mtime))
    assert embedded == total - 5
    np.testing.assert_allclose(features.features[5], features.features[6], atol=1e-5)


def test_a_vector_with_a_flipped_bit_is_made_again(interrupted, toy_index):
    embedder, partial = interrupted
    content = bytearray(partial.read_bytes())
    content[64 + 5 * (4 * embedder.num_features + 8) + 3] ^= 1
    partial.write_bytes(content)
    total = len(toy_index.split("query")) + len(toy_index.split("gallery"))
    assert go_on(embedder, toy_index, partial)[1] == total - 5


@pytest.mark.parametrize("other", ["network", "picture size"])
def test_vectors_of_something_else_are_not_gone_on_from(other, interrupted, run, toy_index, caplog):
    embedder, partial = interrupted
    match other:
        case "network":
            embedder = load_embedder(run.path, run.iterations()[0], "cpu", untrained=True)
        case "picture size":
            embedder.image_hw = (48, 24)
    total = len(toy_index.split("query")) + len(toy_index.split("gallery"))
    features, embedded = go_on(embedder, toy_index, partial)
    assert embedded == total
    assert "is of another extraction" in caplog.text
    np.testing.assert_array_equal(
        features.features, extract_features(embedder, toy_index, flip=False, batch_size=8).features
    )


def test_a_file_that_is_no_partial_one_is_left_alone(run, toy_index, tmp_path):
    notes = tmp_path / "features.npz.partial"
    notes.write_text("my notes on the weather, which are longer than the first line of such a file is")
    before = notes.read_bytes()
    with pytest.raises(OutputError, match="holds no rows of an extraction; move it away"):
        extract_features(load_embedder(run.path, device="cpu"), toy_index, partial=notes)
    assert notes.read_bytes() == before


def test_half_precision_is_near_and_says_so(run, toy_index):
    plain = extract_features(load_embedder(run.path, device="cpu"), toy_index)
    half = extract_features(load_embedder(run.path, device="cpu", half=True), toy_index)
    assert (plain.meta["precision"], half.meta["precision"]) == ("fp32", "bf16")
    # Eight bits of mantissa: about 0.5 % per rounding, and vectors of length 1.
    distances = np.linalg.norm(plain.features - half.features, axis=1)
    assert 1e-4 < distances.max() < 0.05


def test_a_compiled_network_sees_batches_of_one_size(run, toy_index, monkeypatch):
    seen = []

    def compile(function, **options):
        assert options["options"] == {"freezing": True}
        return lambda images: seen.append(tuple(images.shape)) or function(images)

    monkeypatch.setattr(torch, "compile", compile)
    compiled = extract_features(load_embedder(run.path, device="cpu", compile=True), toy_index, batch_size=7)
    plain = extract_features(load_embedder(run.path, device="cpu"), toy_index, batch_size=7)
    np.testing.assert_allclose(compiled.features, plain.features, atol=1e-5)
    assert set(seen) == {(7, 3, 32, 16)}


def test_a_vector_that_is_not_finite_names_its_picture(run, toy_index):
    embedder = load_embedder(run.path, device="cpu")
    embedder.network.reduce.weight.fill_(3e38)
    with pytest.raises(FeatureFileError, match=rf"{toy_index.split('query').paths[0].name}: its vector is not finite"):
        extract_features(embedder, toy_index)


def test_any_folder_of_pictures_gives_features(run, toy_index, tmp_path):
    for name, source in (("me.jpg", 0), ("below/0007_c2_x.png", 1), ("below/You.JPG", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(toy_index.paths[source]).resize((50, 200)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    index = DatasetIndex.from_images(tmp_path)
    features = extract_features(load_embedder(run.path, device="cpu"), index, ["images"])
    assert features.paths.tolist() == ["below/0007_c2_x.png", "below/You.JPG", "me.jpg"]
    assert (features.pids.tolist(), features.camids.tolist()) == ([7, -1, -1], [2, -1, -1])
    assert set(features.splits) == {"images"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: no images here or below"):
        DatasetIndex.from_images(tmp_path / "empty")
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        DatasetIndex.from_images(tmp_path / "nowhere")


def test_a_split_without_images_is_explained(run, toy_index):
    with pytest.raises(DatasetError, match="no images in split multi-query"):
        extract_features(load_embedder(run.path, device="cpu"), toy_index, ["multi-query"])
