"""`reid-models train` and `reid-models extract`, as a person uses them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from reid_eval.features import ReidFeatures
from reid_models.cli import main

TINY = """
image_hw: [32, 16]
network: {trunk: small, width: 4, weights: none, bottleneck: 16}
sampler: {ids_per_batch: 4, images_per_id: 2}
schedule: {epochs: 2, warmup_epochs: 1}
num_workers: 0
"""


def reid_models(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="module")
def run(config_file, toy_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    result = reid_models("train", "--config", config_file, "--data", toy_root, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "6 iterations, best mAP 0." in result.stdout
    return out


def test_a_trained_run_gives_a_feature_file_without_naming_its_data_again(run):
    result = reid_models("extract", "--run", run, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    features = ReidFeatures.load(run / "features.npz")
    assert (summary["query"], summary["gallery"]) == (len(features.query), len(features.gallery))
    assert features.meta["extractor"] == summary["extractor"] == "reid:teacher@6"


def test_the_untrained_network_and_the_missing_flip_are_named_in_the_file(run, tmp_path):
    file = tmp_path / "untrained.npz"
    result = reid_models("extract", "--run", run, "--out", file, "--untrained", "--no-flip", "--device", "cpu")
    assert result.exit_code == 0, result.output
    meta = ReidFeatures.load(file).meta
    assert (meta["extractor"], meta["flip"]) == ("reid:teacher@untrained", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--which", "newest"], "--which newest: expected last, best"),
        (["--which", "5"], "no checkpoint of iteration 5; there are 6"),
        (["--data", "nowhere"], "nowhere: the dataset is not there"),
        (["--device", "cuda:99"], "--device cuda:99: not available here"),
    ],
)
def test_extract_explains_what_it_cannot_do_in_one_line(run, arguments, message):
    result = reid_models("extract", "--run", run, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_extract_says_that_a_folder_is_no_run(tmp_path):
    result = reid_models("extract", "--run", tmp_path)
    assert (result.exit_code, "no run here" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optim.lrr=1"], "unknown setting optim.lrr; did you mean optim.lr?"),
        (["--set", "sampler.ids_per_batch=9"], "ids_per_batch is 9, but the training data has 4 identities"),
        (["--set", "sampler.images_per_id=1"], "a triplet needs at least 2 pictures"),
        (["--set", "network.weights=nowhere.pth"], "nowhere.pth: no such weight file"),
        (["--max-hours", "0"], "--max-hours: must be positive"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_train_explains_what_it_cannot_do_and_leaves_nothing_behind(
    config_file, toy_root, tmp_path, arguments, message
):
    out = tmp_path / "run"
    result = reid_models("train", "--config", config_file, "--data", toy_root, "--out", out, *arguments)
    assert result.exit_code == 1
    assert f"{message}" in result.stderr
    assert not out.exists()


def test_a_damaged_picture_stops_the_training_with_its_name(config_file, toy_root, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(toy_root, data)
    broken = sorted((data / "bounding_box_train").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:500])
    result = reid_models("train", "--config", config_file, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert str(broken) in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_a_stop_signal_to_the_whole_group_saves_and_leaves_with_75(config_file, toy_root, tmp_path, number, workers):
    """As Ctrl-C or a batch system sends it: to the command and to the processes that load its pictures."""
    out = tmp_path / "run"
    arguments = ["--config", config_file, "--data", toy_root, "--out", out, "--device", "cpu", "--set"]
    sets = ["schedule.epochs=100000", "--set", "checkpoint_every=1", "--set", f"num_workers={workers}"]
    command = [sys.executable, "-m", "reid_models.cli", "train", *map(str, arguments), *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    try:
        deadline_s = time.monotonic() + 120
        while not list(out.glob("checkpoints/*.pt")) and time.monotonic() < deadline_s and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, stderr
    assert f"{number.name}: saved iteration" in stderr
    assert "continue with --resume" in stderr
