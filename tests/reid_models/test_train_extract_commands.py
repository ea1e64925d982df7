"""`reid-models train` and `reid-models extract`, as a person uses them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid_eval.cli import main as reid_eval_main
from reid_eval.features import ReidFeatures
from reid_eval.locks import locked
from reid_eval.stopping import STOP_SIGNALS
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


def test_extract_writes_over_nothing_but_feature_files(run, toy_root, tmp_path):
    picture = sorted(toy_root.rglob("*.jpg"))[0]
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(3))
    for out, words in (
        (picture, "ends in .npz"),
        (run / "config.yaml", "ends in .npz"),
        (tmp_path / "foreign.npz", "was not made by reid-models extract"),
    ):
        before = out.read_bytes()
        result = reid_models("extract", "--run", run, "--out", out, "--device", "cpu")
        assert (result.exit_code, result.stdout, words in result.stderr) == (1, "", True), result.output
        assert out.read_bytes() == before
    with locked(tmp_path / "new.npz", "a test"):
        result = reid_models("extract", "--run", run, "--out", tmp_path / "new.npz", "--device", "cpu")
    assert (result.exit_code, "a test (process " in result.stderr) == (1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.npz"]


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


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_stop_signal_to_the_whole_group_saves_and_leaves_with_75(config_file, toy_root, tmp_path, number):
    """As Ctrl-C, a closed terminal or a batch system sends it: to the command and to those that load its pictures."""
    out = tmp_path / "run"
    arguments = ["--config", config_file, "--data", toy_root, "--out", out, "--device", "cpu", "--set"]
    sets = ["schedule.epochs=100000", "--set", "checkpoint_every=1", "--set", "num_workers=2"]
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
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: {number.name}: saved iteration ")
    assert last.endswith("run it again to go on (train: with --resume)")
    assert "Traceback" not in stderr
    assert f"saved iteration {RunDir.open(out).iterations()[-1]} in" in last


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_extraction_goes_on_where_it_was_stopped_or_killed(run, toy_index, tmp_path, caplog, number):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for copy in range(800):
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
    assert "800 pictures, 16 numbers each, by reid:teacher@6" in result.stdout
    assert not partial.exists()
    features = ReidFeatures.load(out).features
    np.testing.assert_allclose(features[: len(toy_index)], features[len(toy_index) : 2 * len(toy_index)], atol=1e-5)


def test_extract_writes_over_nothing_but_its_own_files(run, toy_root, tmp_path):
    picture = next((toy_root / "query").iterdir())
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, features=np.zeros((1, 2)), note=["mine"])
    for out, said in (
        (run / "checkpoints" / "best.pt", "ends in .npz"), (run / "config.yaml", "ends in .npz"),
        (picture, "ends in .npz"), (foreign, "was not made by reid-models extract"),
    ):  # fmt: skip
        before = out.read_bytes()
        result = reid_models("extract", "--run", run, "--data", toy_root, "--out", out, "--device", "cpu")
        assert (result.exit_code, said in result.stderr) == (1, True), result.output
        assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    options = ["--run", run, "--out", foreign, "--device", "cpu", "--no-flip", "--workers", "0"]
    assert reid_models("extract", *options, "--overwrite").exit_code == 0
    assert reid_models("extract", *options).exit_code == 0
    with locked(foreign, "a test"):
        result = reid_models("extract", *options)
    assert (result.exit_code, "a test (process" in result.stderr) == (1, True)


def test_an_extraction_leaves_at_its_time_and_goes_on(run, tmp_path):
    out = tmp_path / "f.npz"
    options = ["--run", run, "--out", out, "--device", "cpu", "--batch-size", "8", "--workers", "0"]
    result = reid_models("extract", *options, "--max-hours", "1e-9")
    assert (result.exit_code, out.exists()) == (75, False)
    assert "--max-hours 1e-09 reached: no vector was made yet; run the same command to go on" in result.stderr
    assert reid_models("extract", *options, "--max-hours", "0").exit_code == 1
    assert reid_models("extract", *options, "--max-hours", "1").exit_code == 0


def test_folders_of_people_are_ranked_by_their_names(run, toy_index, tmp_path):
    by_person = {}
    for record in toy_index:
        by_person.setdefault(record.pid, []).append(record.path)
    for name, pictures in zip(
        ("Anna Müller", "Bob", "李雷"), [two for two in by_person.values() if len(two) > 2], strict=False
    ):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, picture in enumerate(pictures[:3]):
            shutil.copy(picture, tmp_path / "photos" / name / f"{number}.jpg")
    out = tmp_path / "photos.npz"
    result = reid_models("extract", "--run", run, "--images", tmp_path / "photos", "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    features = ReidFeatures.load(out)
    assert [features.name_of(pid) for pid in features.pids[::3]] == ["Anna Müller", "Bob", "李雷"]
    assert features.meta["names"] == {"1": "Anna Müller", "2": "Bob", "3": "李雷"}
    ranked = CliRunner().invoke(
        reid_eval_main, ["rank", "--features", str(out), "--protocol", "leave-one-out", "--json"]
    )
    assert ranked.exit_code == 0, ranked.output
    assert json.loads(ranked.stdout)["queries"]["valid"] == 9


def test_other_splits_and_half_precision_can_be_asked_for(run, tmp_path):
    file = tmp_path / "train.npz"
    options = ["--run", run, "--out", file, "--split", "train_all", "--split", "query", "--half", "--device", "cpu"]
    result = reid_models("extract", *options, "--json")
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)
    features = ReidFeatures.load(file)
    assert (counts["train"], counts["query"]) == (len(features.split("train")), len(features.query)) == (24, 8)
    assert features.meta["precision"] == "bf16"


def test_people_of_a_folder_each_are_ranked_among_themselves_by_their_names(run, toy_root, tmp_path):
    pictures = sorted((toy_root / "bounding_box_train").glob("*.jpg"))[:6]
    for number, picture in enumerate(pictures):
        folder = tmp_path / "people" / ("Anna Müller" if number % 2 else "Bert")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / f"{number}.jpg")
    result = reid_models("extract", "--run", run, "--data", tmp_path / "people", "--out", tmp_path / "f.npz")
    assert result.exit_code == 0, result.output
    assert "no query and no gallery, so the vectors are of train_all" in result.stderr
    features = ReidFeatures.load(tmp_path / "f.npz")
    assert features.meta["names"] == {"1": "Anna Müller", "2": "Bert"}
    ranked = CliRunner().invoke(reid_eval_main, ["rank", "--features", str(tmp_path / "f.npz")])
    assert "ranking by the protocol leave-one-out" in ranked.stderr
    assert "6 queries against 6 gallery images" in ranked.stdout


@pytest.mark.slow
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
    assert reid_models("extract", "--run", out).exit_code == 0
    identity = json.loads((out / "run.json").read_text())
    del identity["made_by"]["source"]  # as an earlier version wrote it
    (out / "run.json").write_text(json.dumps(identity))
    result = reid_models("extract", "--run", out)
    assert (result.exit_code, "give that .csv with --data" in result.stderr) == (1, True)
    assert reid_models("extract", "--run", out, "--data", table).exit_code == 0


def test_a_run_goes_on_by_its_folder_alone(config_file, toy_root, tmp_path):
    """With settings, table, weights and the rest that it was begun with; what is named must not differ."""
    index = DatasetIndex.open(toy_root)
    rows = [f"{record.path},{record.pid},{record.camid},{record.split}" for record in index]
    (tmp_path / "toy.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    base = ["train", "--config", config_file, "--data", tmp_path / "toy.csv", "--device", "cpu", "--set", "seed=4"]
    assert reid_models(*base, "--out", tmp_path / "first").exit_code == 0
    weights = tmp_path / "first" / "checkpoints" / "best.pt"
    begun = [*base, "--weights", weights, "--drop", "classifier."]
    assert reid_models(*begun, "--out", tmp_path / "straight").exit_code == 0
    out = tmp_path / "run"
    assert reid_models(*begun, "--out", out, "--max-hours", "1e-9").exit_code == 75
    for more in (["--set", "seed=5"], ["--config", config_file], ["--data", toy_root], ["--weights", weights]):
        result = reid_models("train", "--resume", "--out", out, "--device", "cpu", *more)
        assert (result.exit_code, "cannot resume with other" in result.stderr) == (1, True), result.output
    result = reid_models("train", "--resume", "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    found, expected = (RunDir.open(run).load().networks["reid"] for run in (out, tmp_path / "straight"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    longer = reid_models("train", "--resume", "--out", out, "--device", "cpu", "--set", "schedule.epochs=3")
    assert "9 iterations" in longer.stdout
    assert reid_models("train", "--resume", "--out", out, "--device", "cpu").exit_code == 0


def test_where_there_is_no_run_to_go_on_with_the_data_are_asked_for(tmp_path):
    result = reid_models("train", "--resume", "--out", tmp_path / "run")
    assert (result.exit_code, "no run here to go on with; give --data to begin one" in result.stderr) == (1, True)
    assert not (tmp_path / "run").exists()
    result = reid_models("train", "--out", tmp_path / "run")
    assert (result.exit_code, "Missing option '--data'" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--epochs", "3"], "--set schedule.epochs=3"),
        (["--num-epochs=7"], "--set schedule.epochs=7"),
        (["--lr", "0.1"], "--set optim.lr=0.1"),
        (["--batch-size", "8"], "--set sampler.batch_size=8"),
        (["--eval-rerank"], "--set eval_rerank=VALUE"),
    ],
)
def test_a_setting_that_is_given_as_an_option_is_answered_with_how_to_set_it(toy_root, tmp_path, given, meant):
    result = reid_models("train", "--data", toy_root, "--out", tmp_path / "run", *given)
    said = " ".join(result.stderr.replace("│", "").split())
    assert (result.exit_code, f"settings are changed with {meant}" in said) == (2, True), said


def test_an_option_that_is_nothing_like_a_setting_is_only_unknown(tmp_path):
    result = reid_models("train", "--out", tmp_path / "run", "--colour", "red")
    assert (result.exit_code, "--set" in result.stderr.split("Error")[1]) == (2, False)


def test_reset_moves_nothing_before_all_else_is_read(run, config_file, toy_root, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    base = ["train", "--config", config_file, "--data", toy_root, "--out", out, "--device", "cpu", "--reset"]
    for more in (
        ["--weights", tmp_path / "gone.pt"],
        ["--set", "sampler.ids_per_batch=9"],
        ["--data", tmp_path / "no"],
    ):
        assert reid_models(*base, *more).exit_code == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with locked(out, "a test"):
        result = reid_models(*base)
    assert (result.exit_code, "is writing here" in result.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
