"""What `reid-models train` and `extract` say to a wrong input: one line, exit code 1, and nothing is lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from reid_models.cli import main
from reid_models.runs import RunDir

# Four people of six pictures, eight pictures in a batch: three iterations make an epoch.
TINY = """
image_hw: [32, 16]
network: {trunk: small, width: 4, weights: none, bottleneck: 16}
sampler: {ids_per_batch: 4, images_per_id: 2}
schedule: {epochs: 2, warmup_epochs: 1}
num_workers: 0
log_every: 2
checkpoint_every: 1
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def train(config_file):
    def command(data, out, *more):
        arguments = ["train", "--config", config_file, "--data", data, "--out", out, "--device", "cpu", *more]
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return command


@pytest.fixture(scope="module")
def finished(config_file, toy_root, tmp_path_factory):
    """A finished run of two checkpoints, not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    arguments = ["train", "--config", config_file, "--data", toy_root, "--out", out, "--device", "cpu"]
    assert CliRunner().invoke(main, [str(argument) for argument in arguments]).exit_code == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "teacher"))


@pytest.fixture
def unfinished(run):
    """The run as it was after its first epoch."""
    for name in ("00000006.pt", "best.pt"):
        (run / "checkpoints" / name).unlink()
    log = run / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if json.loads(line)["iteration"] <= 3))
    return run


@pytest.fixture
def data(toy_root, tmp_path):
    """A copy of the toy dataset to spoil."""
    return Path(shutil.copytree(toy_root, tmp_path / "data"))


def extract(run, *more):
    return CliRunner().invoke(main, [str(part) for part in ("extract", "--run", run, "--device", "cpu", *more)])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(result, *texts):
    """Exit code 1, nothing on stdout, and as the last line of stderr the only error, which holds the texts."""
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in result.stderr
    for text in texts:
        assert str(text) in lines[-1]


def keep_training_pictures(data, keep):
    for picture in (data / "bounding_box_train").iterdir():
        if not keep(picture.name):
            picture.unlink()


def test_a_wrong_folder(train, run, tmp_path):
    missing, text = tmp_path / "nowhere", tmp_path / "notes.txt"
    text.write_text("no pictures")
    assert_refused(train(missing, tmp_path / "new"), missing, "no such folder; expected the folder that holds")
    assert_refused(train(text, tmp_path / "new"), text, "is a file; expected the folder that holds a dataset")
    assert not (tmp_path / "new").exists()
    before = contents(run)
    assert_refused(extract(run, "--data", missing), missing, "give the folder that holds it with --data")
    assert_refused(extract(tmp_path), tmp_path, "no run here", f"runs nearby: {run}")
    assert contents(run) == before


def test_an_empty_folder(train, run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    before = contents(run)
    assert_refused(train(empty, tmp_path / "new"), empty, "no images and no known folders", "expected for example")
    assert_refused(extract(run, "--data", empty), empty, "no images and no known folders")
    assert not (tmp_path / "new").exists()
    assert contents(run) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_training_picture(train, unfinished, data, tmp_path, workers):
    for picture in (data / "bounding_box_train").iterdir():
        picture.write_bytes(picture.read_bytes()[:500])
    before = contents(unfinished / "checkpoints")
    if workers == 0:
        result = train(data, unfinished, "--resume")
    else:
        result = train(data, tmp_path / "new", "--set", f"num_workers={workers}")
    assert_refused(result, data / "bounding_box_train", "not a readable image", "restore or remove this file")
    assert contents(unfinished / "checkpoints") == before
    assert RunDir.open(unfinished).load("last").iteration == 3


def test_a_truncated_query_costs_no_training_step(train, finished, data, tmp_path):
    """It is met by the evaluation after the last step. Once it is whole again, the run ends as if nothing had been."""
    query = sorted((data / "query").iterdir())[0]
    whole = query.read_bytes()
    query.write_bytes(whole[:500])
    result = train(data, tmp_path / "new", "--set", "checkpoint_every=9", "--set", "eval_every=1")
    assert_refused(result, query, "not a readable image")
    assert RunDir.open(tmp_path / "new").iterations() == [3]
    query.write_bytes(whole)
    result = train(data, tmp_path / "new", "--set", "checkpoint_every=9", "--set", "eval_every=1", "--resume")
    assert result.exit_code == 0, result.output
    weights, expected = (RunDir.open(path).load("last").networks["reid"] for path in (tmp_path / "new", finished))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_truncated_query_gives_no_feature_file(run, data):
    assert extract(run, "--data", data).exit_code == 0
    query = sorted((data / "query").iterdir())[0]
    query.write_bytes(query.read_bytes()[:500])
    before = contents(run)
    assert_refused(extract(run, "--data", data), query, "not a readable image", "restore or remove this file")
    assert contents(run) == before


def test_names_that_do_not_parse(train, run, data, tmp_path, caplog):
    pictures = sorted((data / "bounding_box_train").iterdir())
    pictures[0].rename(pictures[0].with_name("holiday.jpg"))
    assert train(data, tmp_path / "some", "--set", "schedule.epochs=1").exit_code == 0
    assert "1 image names do not parse and are left out" in caplog.text
    assert "holiday.jpg" in caplog.text
    for picture in [path for path in data.rglob("*.jpg") if path.name != "holiday.jpg"]:
        picture.rename(picture.with_name(f"my_{picture.name}"))
    assert_refused(train(data, tmp_path / "none"), data, "64 names do not parse, e.g. my_")
    assert_refused(extract(run, "--data", data), data, "names do not parse")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("sets", [[], ["loss.terms=CrossEntropy", "sampler.kind=shuffled", "sampler.batch_size=4"]])
def test_one_identity(train, data, tmp_path, sets):
    keep_training_pictures(data, lambda name: name.startswith("0002"))
    result = train(data, tmp_path / "new", *(part for text in sets for part in ("--set", text)))
    assert_refused(result, data, "one identity to train on", "at least two")
    assert not (tmp_path / "new").exists()


def test_more_identities_in_a_batch_than_there_are(train, toy_root, tmp_path):
    result = train(toy_root, tmp_path / "new", "--set", "sampler.ids_per_batch=9")
    assert_refused(result, "sampler.ids_per_batch is 9, but the training data has 4 identities", "ids_per_batch=4 or")
    assert not (tmp_path / "new").exists()


def test_a_misspelt_key(train, toy_root, tmp_path):
    result = train(toy_root, tmp_path / "new", "--set", "sampler.ids_per_bach=4")
    assert_refused(result, "unknown setting sampler.ids_per_bach; did you mean sampler.ids_per_batch?")
    file = tmp_path / "typo.yaml"
    file.write_text("schedule: {epoch: 2}\n")
    result = train(toy_root, tmp_path / "new", "--config", file)  # the last --config counts
    assert_refused(result, file, "unknown setting schedule.epoch; did you mean schedule.epochs?")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["new", "resume"])
def test_an_output_folder_with_foreign_files(train, toy_root, tmp_path, more):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("ten years")
    before = contents(tmp_path / "thesis")
    assert_refused(train(toy_root, tmp_path / "thesis", *more), tmp_path / "thesis", "thesis.tex", "choose another")
    assert contents(tmp_path / "thesis") == before


def test_an_output_place_that_is_no_folder(train, run, toy_root, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(train(toy_root, tmp_path / "notes.txt"), "notes.txt: is a file", "choose another place")
    assert_refused(train(toy_root, tmp_path / "notes.txt" / "run"), "could not be written", "choose another --out")
    assert_refused(extract(run, "--out", run), f"{run}: is a folder", run / "features.npz")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("size", ["half", 5000, 0])
def test_a_checkpoint_cut_in_half(train, run, toy_root, size):
    """The one before stays; once the damaged one is removed, the run goes on from it and ends as it had ended."""
    file = run / "checkpoints" / "00000006.pt"
    whole = RunDir.open(run).load("last")
    os.truncate(file, file.stat().st_size // 2 if size == "half" else size)
    before = contents(run)
    for result in (extract(run), train(toy_root, run, "--resume")):
        assert_refused(result, file, "damaged or no checkpoint", "remove it to go on from iteration 3")
    assert contents(run) == before
    file.unlink()
    assert train(toy_root, run, "--resume").exit_code == 0
    weights = RunDir.open(run).load("last").networks["reid"]
    assert all(torch.equal(weights[name], whole.networks["reid"][name]) for name in weights)


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_goes_on(train, data, run, finished):
    result = train(data, run, "--resume")
    assert result.exit_code == 0, result.output
    assert (run / "log.jsonl").read_text() == (finished / "log.jsonl").read_text()
    weights, expected = (RunDir.open(path).load("last").networks["reid"] for path in (run, finished))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("moment", ["writing", "reaching the disk"])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(train, unfinished, finished, toy_root, monkeypatch, moment):
    before = contents(unfinished / "checkpoints")

    def half(values, stream):
        stream.write(b"half")
        no_space()

    with monkeypatch.context() as full:
        full.setattr(*((torch, "save", half) if moment == "writing" else (os, "fsync", no_space)))
        result = train(toy_root, unfinished, "--resume")
    # Its record reaches the disk before it does.
    assert_refused(result, "/checkpoints/", ": could not be written (No space left on device)", "free some space")
    assert contents(unfinished / "checkpoints") == before
    assert_goes_on(train, toy_root, unfinished, finished)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_is_full_when_the_log_is_written(train, unfinished, finished, toy_root):
    before = contents(unfinished / "checkpoints")
    log = unfinished / "log.jsonl"
    saved = log.read_text()
    log.unlink()
    log.symlink_to("/dev/full")
    assert_refused(train(toy_root, unfinished, "--resume"), log, "No space left on device", "free some space")
    assert contents(unfinished / "checkpoints") == before
    log.unlink()
    log.write_text(saved + '{"iteration": 4, "i')  # as far as the space went
    assert_goes_on(train, toy_root, unfinished, finished)


def test_a_disk_that_is_full_when_tensorboard_writes(train, unfinished, finished, toy_root, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = contents(unfinished / "checkpoints")
    with monkeypatch.context() as full:
        full.setattr(RecordWriter, "write", no_space)
        result = train(toy_root, unfinished, "--resume")
    assert_refused(result, unfinished / "tensorboard", "No space left on device", "free some space")
    assert contents(unfinished / "checkpoints") == before
    assert_goes_on(train, toy_root, unfinished, finished)


def test_a_disk_that_is_full_when_features_are_written(run, monkeypatch):
    assert extract(run).exit_code == 0
    before = contents(run)
    monkeypatch.setattr(os, "fsync", no_space)
    assert_refused(extract(run), run / "features.npz", "No space left on device", "free some space")
    (run / "features.npz.partial").unlink()  # the vectors, from which the same command goes on
    assert contents(run) == before
