"""train and extract with a file of somebody else's, and a run that is begun anew."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid_eval.features import ReidFeatures
from reid_models.cli import main
from reid_models.extraction import NetworkEmbedder, extract_features, load_embedder
from reid_models.networks import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.runs import RunDir
from reid_models.runtime import Runtime
from reid_models.weights import write_original

TINY = """
image_hw: [32, 16]
network: {trunk: small, width: 4, weights: none, bottleneck: 8}
sampler: {ids_per_batch: 4, images_per_id: 2}
schedule: {epochs: 1, warmup_epochs: 0}
num_workers: 0
"""


def reid_models(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def train(tmp_path, toy_root):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)

    def run(name, *arguments):
        return reid_models("train", "--config", config, "--data", toy_root, "--out", tmp_path / name, *arguments)

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A net_last.pth of three identities, and the network in it."""
    torch.manual_seed(0)
    network = Baseline(make_trunk("resnet50", last_stride=2), 3)
    file = tmp_path_factory.mktemp("models") / "net_last.pth"
    write_original(network, file)
    return file, network


def test_a_published_file_gives_features_as_its_network_does(published, toy_root, toy_index, tmp_path):
    file, network = published
    out = tmp_path / "features.npz"
    result = reid_models(
        "extract", "--weights", file, "--data", toy_root, "--out", out, "--device", "cpu", "--json", "--split", "query"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["extractor"] == "file:net_last.pth"
    features = ReidFeatures.load(out)
    assert features.meta["network_made_by"]["network"] == "person re-id baseline, ft_net"
    embedder = NetworkEmbedder(network, name="x", image_hw=(256, 128), runtime=Runtime.from_environment("cpu"))
    np.testing.assert_allclose(features.features, extract_features(embedder, toy_index, ["query"]).features, atol=1e-5)


def test_with_a_file_of_weights_nothing_is_looked_for_in_the_network(published, toy_root, tmp_path, monkeypatch):
    def connect(*_):
        raise AssertionError("somebody asked the internet")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty-cache"))
    file, _ = published
    options = ["--weights", file, "--data", toy_root, "--device", "cpu"]
    only = ["--split", "query", "--workers", 0, "--out", tmp_path / "features.npz"]
    assert reid_models("extract", *options, *only).exit_code == 0
    settings = tmp_path / "full-size.yaml"
    settings.write_text("network: {last_stride: 2}\nschedule: {epochs: 1}\nimage_hw: [32, 16]\nnum_workers: 0\n")
    sets = ["--set", "sampler.ids_per_batch=4", "--drop", "classifier"]
    result = reid_models("train", "--config", settings, *options, "--out", tmp_path / "run", *sets)
    assert result.exit_code == 0, result.output


def test_training_starts_from_all_of_a_checkpoint(train, tmp_path):
    assert train("first").exit_code == 0
    best = tmp_path / "first" / "checkpoints" / "best.pt"
    result = train("second", "--weights", best, "--set", "optim.lr=1e-30", "--set", "optim.weight_decay=0")
    assert result.exit_code == 0, result.output
    first, second = (RunDir.open(tmp_path / name).load("last") for name in ("first", "second"))
    for name, value in first.networks["reid"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second.networks["reid"][name], value)
    assert second.made_by["weights"]["file"] == str(best)


def test_untrained_is_the_network_that_the_file_held(train, tmp_path):
    train("first")
    best = tmp_path / "first" / "checkpoints" / "best.pt"
    assert train("second", "--weights", best, "--set", "optim.lr=0.1").exit_code == 0
    expected = load_embedder(tmp_path / "first", "best", "cpu").network.state_dict()
    untrained = load_embedder(tmp_path / "second", device="cpu", untrained=True).network.state_dict()
    assert all(torch.equal(untrained[name], expected[name]) for name in expected)


def test_a_training_goes_on_with_the_weights_it_started_from_and_no_others(train, tmp_path):
    train("first")
    best = tmp_path / "first" / "checkpoints" / "best.pt"
    train("second", "--weights", best)
    last = tmp_path / "first" / "checkpoints" / "00000003.pt"
    refused = train("second", "--resume", "--weights", last)
    assert refused.exit_code == 1
    assert f"cannot resume with other weights to start from ({best}" in refused.stderr
    for more in ([], ["--weights", best]):
        assert train("second", "--resume", *more).exit_code == 0
    assert train("first", "--resume", "--weights", best).exit_code == 1


def test_a_weight_file_that_has_changed_is_not_started_from_in_its_place(train, tmp_path):
    train("first")
    weights = Path(shutil.copy(tmp_path / "first" / "checkpoints" / "best.pt", tmp_path / "start.pt"))
    train("second", "--weights", weights)
    for file in (tmp_path / "second" / "checkpoints").iterdir():
        file.unlink()
    whole = weights.read_bytes()
    train("third", "--set", "seed=1")
    shutil.copy(tmp_path / "third" / "checkpoints" / "best.pt", weights)
    refused = train("second", "--resume")
    assert refused.exit_code == 1
    assert f"{weights}: is not what the training was to start from any more" in refused.stderr
    weights.write_bytes(whole)
    assert train("second", "--resume").exit_code == 0


def test_classifiers_of_other_people_are_refused_unless_dropped(train, tmp_path):
    train("first")
    checkpoint = tmp_path / "three.pt"
    values = torch.load(tmp_path / "first" / "checkpoints" / "best.pt", weights_only=True)
    for name in ("classifier.weight", "classifier.bias"):
        values["networks"]["reid"][name] = values["networks"]["reid"][name][:3].clone()
    torch.save(values, checkpoint)
    refused = train("second", "--weights", checkpoint)
    assert refused.exit_code == 1
    assert "reshaped (classifier.weight (3, 8), not (4, 8)" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "second").exists()
    assert train("second", "--weights", checkpoint, "--drop", "classifier.").exit_code == 0


def test_reset_moves_the_earlier_run_aside(train, tmp_path):
    train("run")
    before = (tmp_path / "run" / "log.jsonl").read_text()
    assert train("run").exit_code == 1
    for number in (1, 2):
        result = train("run", "--reset")
        assert result.exit_code == 0, result.output
        assert f"moved the earlier run to {tmp_path}/run.old-{number}" in result.stderr
    assert (tmp_path / "run.old-1" / "log.jsonl").read_text() == before
    assert RunDir.open(tmp_path / "run").iterations()


def test_reset_moves_nothing_that_is_no_run(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    result = train("run", "--reset")
    assert result.exit_code == 1
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--reset", "--resume"], "give one of them"),
        (["train", "--drop", "x"], "give both"),
        (["extract"], "give either --run or --weights"),
        (["extract", "--weights", "a.pth"], "--weights needs --data or --images, and --out"),
        (["extract", "--run", "r", "--data", "d", "--images", "i"], "give either --data or --images"),
        (["extract", "--run", "r", "--images", "i"], "--images needs --out"),
        (["extract", "--run", "r", "--images", "i", "--split", "query"], "--split is for --data"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(arguments, message):
    required = ["--data", "d", "--out", "o"] if arguments[0] == "train" else []
    result = reid_models(*arguments, *required)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such weight file"), (b"nonsense", "damaged or no weight file"), ("run", "give the run's folder")],
)
def test_a_file_that_embeds_nothing_is_one_line(train, tmp_path, toy_root, content, message):
    file = tmp_path / "weights.pth"
    if content == "run":
        train("run")
        file = tmp_path / "run" / "checkpoints" / "best.pt"
    elif content is not None:
        file.write_bytes(content)
    result = reid_models("extract", "--weights", file, "--data", toy_root, "--out", tmp_path / "f.npz")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "f.npz").exists()
