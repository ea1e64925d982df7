"""`reid-models train` and `reid-models extract`, as a person uses them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid_eval.features import ReidFeatures
from reid_models.cli import main
from reid_models.data.index import DatasetIndex
from reid_models.runs import RunDir

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
        (["--data", "nowhere"], "nowhere: the dataset is not there; give the folder that holds it with --data"),
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
        (["--set", "sampler.images_per_id=1"], "triplet needs at least 2 pictures"),
        (["--set", "network.weights=nowhere.pth"], "nowhere.pth: no such weight file"),
        (["--max-hours", "0"], "--max-hours: must be positive"),
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
    assert "run it again to go on (train: with --resume)" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_extraction_goes_on_where_it_was_stopped_or_killed(run, toy_index, tmp_path, caplog, number):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for copy in range(2000):
        source = toy_index.paths[copy % len(toy_index)]
        (pictures / f"{copy:04}{source.suffix}").symlink_to(source)
    out = tmp_path / "features.npz"
    options = ["--run", run, "--images", pictures, "--out", out, "--device", "cpu", "--batch-size", "5"]
    partial = tmp_path / "features.npz.partial"
    command = [sys.executable, "-m", "reid_models.cli", "extract", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline_s = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline_s:
            if partial.exists() and partial.stat().st_size > 5000:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out.exists()) == (75 if number == signal.SIGTERM else -number, False), stderr
    if number == signal.SIGTERM:
        assert f"SIGTERM: vectors made so far are in {partial}; run the same command to go on" in stderr
    result = reid_models("extract", *options)
    assert result.exit_code == 0, result.output
    assert "going on after" in caplog.text
    assert "2000 pictures, 16 numbers each, by reid:teacher@6" in result.stdout
    assert not partial.exists()
    features = ReidFeatures.load(out).features
    np.testing.assert_allclose(features[: len(toy_index)], features[len(toy_index) : 2 * len(toy_index)], atol=1e-5)


def test_other_splits_and_half_precision_can_be_asked_for(run, tmp_path):
    file = tmp_path / "train.npz"
    options = ["--run", run, "--out", file, "--split", "train_all", "--split", "query", "--half", "--device", "cpu"]
    result = reid_models("extract", *options, "--json")
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)
    features = ReidFeatures.load(file)
    assert (counts["train"], counts["query"]) == (len(features.split("train")), len(features.query)) == (24, 8)
    assert features.meta["precision"] == "bf16"


def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(config_file, toy_root, tmp_path):
    """kill -9 twice: before the first checkpoint, and at a later moment."""
    sets = ["schedule.epochs=20", "eval_every=7", "checkpoint_every=1", "log_every=2"]
    arguments = ["--config", config_file, "--data", toy_root, "--device", "cpu"]
    arguments += [part for text in sets for part in ("--set", text)]
    assert reid_models("train", *arguments, "--out", tmp_path / "straight").exit_code == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "reid_models.cli", "train", *map(str, arguments), "--out", str(out), "--resume"]
    for reached in (0, 10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wanted = out / "run.json" if reached == 0 else out / "checkpoints"
        deadline_s = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline_s:
            if wanted.exists() and (reached == 0 or any(n >= reached for n in RunDir.open(out).iterations())):
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert RunDir.open(out).iterations()[-1] < 60
    assert reid_models("train", *arguments, "--out", out, "--resume").exit_code == 0
    for which in ("last", "best"):
        found, expected = (RunDir.open(run).load(which) for run in (out, tmp_path / "straight"))
        assert found.iteration == expected.iteration
        weights = found.networks["reid"]
        assert all(torch.equal(weights[name], value) for name, value in expected.networks["reid"].items())
    assert (out / "log.jsonl").read_text() == (tmp_path / "straight" / "log.jsonl").read_text()


def test_max_hours_saves_and_leaves_with_75(config_file, toy_root, tmp_path):
    arguments = ["--config", config_file, "--data", toy_root, "--device", "cpu", "--out", tmp_path / "run"]
    result = reid_models("train", *arguments, "--max-hours", "1e-9")
    assert (result.exit_code, result.stdout) == (75, "")
    assert "--max-hours 1e-09 reached: saved iteration 1 in" in result.stderr
    assert reid_models("train", *arguments).exit_code == 1  # not without --resume
    assert reid_models("train", *arguments, "--resume").exit_code == 0


def test_a_run_trained_on_a_table_asks_for_it_when_features_are_wanted(config_file, toy_root, tmp_path):
    index = DatasetIndex.open(toy_root)
    rows = [f"{record.path},{record.pid},{record.camid},{record.split}" for record in index]
    table = tmp_path / "toy.csv"
    table.write_text("\n".join(["path,pid,camid,split", *rows]))
    out = tmp_path / "run"
    assert reid_models("train", "--config", config_file, "--data", table, "--out", out).exit_code == 0
    result = reid_models("extract", "--run", out)
    assert (result.exit_code, "give that .csv with --data" in result.stderr) == (1, True)
    assert reid_models("extract", "--run", out, "--data", table).exit_code == 0
