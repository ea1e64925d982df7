import errno
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from reid_eval import files
from reid_eval.errors import OutputError
from reid_eval.locks import BusyError
from reid_models.runs import Checkpoint, CheckpointError, RunDir


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    image_hw: tuple[int, int] = (64, 32)
    steps: int = 10
    log_every: int = 1

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"log_every"})
    MAY_GROW: ClassVar[frozenset[str]] = frozenset({"steps"})


def checkpoint(iteration, **changes):
    weight = torch.full((2, 3), float(iteration))
    values = {"kind": "reid", "iteration": iteration, "config": {"lr": 0.1}, "networks": {"net": {"w": weight}}}
    return Checkpoint(**(values | changes))


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={"index_fingerprint": "abc"})


def test_a_checkpoint_comes_back_as_it_was_saved(run):
    run.save(checkpoint(100, rng={"cpu": torch.get_rng_state()}, progress={"best_map": 0.5}))
    loaded = run.load(100)
    assert loaded.iteration == 100
    assert loaded.progress == {"best_map": 0.5}
    assert torch.equal(loaded.networks["net"]["w"], torch.full((2, 3), 100.0))
    assert torch.equal(loaded.rng["cpu"], torch.get_rng_state())


def test_last_is_the_highest_iteration_and_old_ones_can_be_dropped(run):
    for iteration in (5, 100, 20):
        run.save(checkpoint(iteration))
    assert run.load("last").iteration == 100
    run.keep_last(2)
    assert run.iterations() == [20, 100]


def test_an_iteration_that_does_not_exist_lists_those_that_do(run):
    run.save(checkpoint(20))
    with pytest.raises(CheckpointError, match=r"no checkpoint of iteration 30; there are 20$"):
        run.load(30)
    run.save(checkpoint(20), best=True)
    with pytest.raises(CheckpointError, match=r"there are 20, and best$"):
        run.load(30)


def test_a_run_without_a_best_checkpoint_says_what_there_is(run):
    for which in ("best", "last", 3):
        with pytest.raises(CheckpointError, match="run: has no checkpoint yet; train until it has saved one"):
            run.load(which)
    run.save(checkpoint(20))
    with pytest.raises(CheckpointError, match=r"no best checkpoint .* choose last, or an iteration: 20$"):
        run.load("best")


@pytest.mark.parametrize(
    ("saved", "best", "which", "remedy"),
    [
        ([7], False, "last", "remove it to start over"),
        ([5, 7], False, 7, "remove it to go on from iteration 5"),
        ([5, 7], True, "best", "choose last, or an iteration: 5, 7"),
    ],
)
def test_a_checkpoint_cut_in_half_is_named_with_the_remedy(run, saved, best, which, remedy):
    for iteration in saved:
        file = run.save(checkpoint(iteration))
    if best:
        file = run.save(checkpoint(5), best=True)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{file.name}: damaged or no checkpoint .*; {remedy}$"):
        run.load(which)


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(run, monkeypatch):
    run.save(checkpoint(7))

    def broken_disk(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", broken_disk)
    with pytest.raises(CheckpointError, match=r"00000007\.pt: cannot be read \(Input/output error\)$"):
        run.load("last")


def test_a_checkpoint_that_would_run_code_is_refused(run):
    run.checkpoints.mkdir()
    torch.save({"kind": "reid", "settings": Settings()}, run.checkpoints / "00000001.pt")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        run.load(1)


def test_a_checkpoint_of_a_future_format_is_refused(run):
    run.save(checkpoint(1, format=99))
    with pytest.raises(CheckpointError, match="format 99"):
        run.load(1)


def test_a_failed_write_leaves_the_old_checkpoint(run, monkeypatch):
    file = run.save(checkpoint(1))
    before = file.read_bytes()

    def disk_full(values, stream):
        stream.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OutputError, match=r"00000001\.pt: could not be written"):
        run.save(checkpoint(1, progress={"new": 1}))
    assert file.read_bytes() == before
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == [file.name, "index.json"]
    assert run.load(1).progress == {}


def test_a_folder_with_foreign_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match=r"thesis\.tex.*nothing was changed"):
        RunDir.create(tmp_path, Settings(), kind="reid", made_by={})
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_existing_run_is_continued_only_on_request(run):
    with pytest.raises(OutputError, match="--resume"):
        RunDir.create(run.path, Settings(), kind="reid", made_by=run.made_by)
    assert RunDir.create(run.path, Settings(), kind="reid", made_by=run.made_by, resume=True).path == run.path


@pytest.mark.parametrize(
    ("settings", "made_by", "message"),
    [
        (Settings(lr=0.2), {"index_fingerprint": "abc"}, r"other settings \(lr: 0.1 -> 0.2\)"),
        (Settings(), {"index_fingerprint": "xyz"}, r"other data \(fingerprint abc -> xyz\)"),
    ],
)
def test_resuming_refuses_a_silent_change(run, settings, made_by, message):
    with pytest.raises(CheckpointError, match=message):
        RunDir.create(run.path, settings, kind="reid", made_by=made_by, resume=True)


def test_a_run_of_another_kind_is_refused(run):
    with pytest.raises(CheckpointError, match="is a 'reid' run, expected a 'dgnet' run"):
        RunDir.open(run.path, "dgnet")


def test_a_missing_run_lists_those_nearby(run):
    with pytest.raises(CheckpointError, match=r"no run here.*runs nearby: .*run"):
        RunDir.open(run.path.parent / "other")


def test_resuming_cuts_the_log_back_to_the_checkpoint(run):
    for iteration in (10, 20, 30):
        run.log(iteration, {"loss": iteration / 10})
    run.save(checkpoint(20))
    with run.log_file.open("a") as stream:
        stream.write('{"iteration": 4')  # killed while writing
    assert run.resume_from().iteration == 20
    assert [line["iteration"] for line in run.read_log()] == [10, 20]
    run.log_file.write_text(run.log_file.read_text().rstrip())  # killed before the end of the line
    run.resume_from()
    run.log(30, {"loss": 3.0})
    assert [line["iteration"] for line in run.read_log()] == [10, 20, 30]
    run.close()


def test_checkpoints_that_are_gone_since_the_run_was_looked_at_are_an_error_that_changes_nothing(run):
    run.log(3, {"loss": 1.0})
    before = run.log_file.read_bytes()
    with pytest.raises(CheckpointError, match="its checkpoints are gone since this was begun; run it again"):
        run.resume_from(expected=True)
    assert run.log_file.read_bytes() == before


def test_resuming_without_a_checkpoint_says_that_it_starts_from_the_beginning(run, caplog):
    run.log(10, {"loss": 1.0})
    assert run.resume_from() is None
    assert "run: no checkpoint to go on from, so the training starts from the beginning" in caplog.text
    assert run.read_log() == []
    run.close()


def test_resuming_removes_what_a_killed_process_left_half_written_and_nothing_else(run):
    run.save(checkpoint(20))
    code = "from reid_eval.files import _writer; print(_writer())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    left = run.checkpoints / f".00000030.pt.{dead}.ab12cd34.part"
    of_others = [run.checkpoints / f".00000030.pt.{files._writer()}.ab12cd34.part", run.path / ".thesis.tex.part"]
    for file in (left, *of_others):
        file.write_bytes(b"half")
    run.resume_from()
    assert not left.exists()
    assert all(file.exists() for file in of_others)


def test_after_resuming_tensorboard_shows_every_iteration_once(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for iteration in (10, 20, 30):
        run.log(iteration, {"loss": 1.0})
    run.save(checkpoint(20))
    run.close()
    later_s = time.time() + 60  # TensorBoard reads its files in the order of the second they were begun in
    monkeypatch.setattr("time.time", lambda: later_s)
    run.resume_from()
    for iteration in (30, 40):
        run.log(iteration, {"loss": 2.0})
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]


def test_log_and_samples_reach_tensorboard(run):
    run.log(1, {"loss": 2.0})
    file = run.sample(1, "swap", np.zeros((8, 4, 3), np.uint8))
    run.close()
    assert json.loads(run.log_file.read_text()) == {"iteration": 1, "loss": 2.0}
    assert file.name == "swap_00000001.png"
    assert list((run.path / "tensorboard").iterdir())


# --- which files are this run's checkpoints ---------------------------------------------------------------------------


def again(run, settings=None, **made_by):
    """The run, to be gone on with."""
    made_by = {**run.made_by, **made_by}
    return RunDir.create(run.path, settings or Settings(), kind="reid", made_by=made_by, resume=True)


def test_a_copy_named_by_a_date_is_no_checkpoint_and_costs_none(run):
    file = run.save(checkpoint(20))
    copy = run.checkpoints / "20261128.pt"
    shutil.copy(file, copy)
    assert run.iterations() == [20]
    for iteration in (30, 40):
        run.save(checkpoint(iteration))
        run.keep_last(1)
    assert run.iterations() == [40]
    assert again(run).resume_from().iteration == 40
    assert copy.exists()


def test_a_run_of_an_earlier_version_is_found_by_names_that_say_what_is_inside(run):
    for iteration in (20, 100):
        run.save(checkpoint(iteration))
    run.save(checkpoint(20), best=True)
    (run.checkpoints / "index.json").unlink()
    shutil.copy(run.checkpoints / "00000100.pt", run.checkpoints / "20261128.pt")
    torch.save({"weight": torch.zeros(2)}, run.checkpoints / "20261129.pt")  # of another program
    run = RunDir.open(run.path)
    assert run.iterations() == [20, 100]
    assert run.load("best").iteration == 20
    run = again(run)
    assert run.resume_from().iteration == 100
    run.save(checkpoint(120))
    run.keep_last(1)
    assert run.iterations() == [120]
    assert sorted(file.name for file in run.checkpoints.glob("2026*.pt")) == ["20261128.pt", "20261129.pt"]


def test_a_damaged_checkpoint_of_an_earlier_version_is_not_passed_over(run):
    for iteration in (20, 100):
        file = run.save(checkpoint(iteration))
    (run.checkpoints / "index.json").unlink()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"00000100\.pt: damaged .*; remove it to go on from iteration 20$"):
        again(run).resume_from()


def test_a_passing_checkpoint_is_kept_until_the_next_one_and_pushes_no_other_out(run):
    for iteration, passing in ((10, False), (14, True), (17, True), (20, False), (25, True)):
        run.save(checkpoint(iteration), passing=passing)
        run.keep_last(2)
        assert run.iterations()[-1] == iteration
    assert run.iterations() == [10, 20, 25]
    assert [run.is_passing(iteration) for iteration in (10, 20, 25)] == [False, False, True]


def test_a_file_that_somebody_put_in_a_checkpoints_place_is_not_removed(run):
    file = run.save(checkpoint(10))
    file.write_bytes(b"my notes")
    run.save(checkpoint(20))
    run.keep_last(1)
    assert file.read_bytes() == b"my notes"


def test_killed_between_its_record_and_the_move_the_earlier_checkpoint_counts(run, monkeypatch):
    run.save(checkpoint(10))
    run.save(checkpoint(10), best=True)
    with monkeypatch.context() as killed:
        replace = os.replace
        killed.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".json") else os._exit(0))
        if (child := os.fork()) == 0:
            run.save(checkpoint(20), best=True)
        os.waitpid(child, 0)
        if (child := os.fork()) == 0:
            run.save(checkpoint(20))
        os.waitpid(child, 0)
    assert run.load("best").iteration == 10
    assert again(run).resume_from().iteration == 10


def test_a_damaged_record_is_named_with_what_to_do(run):
    run.save(checkpoint(10))
    record = run.checkpoints / "index.json"
    record.write_text(record.read_text().replace('"iteration": 10', '"iteration": 11'))
    for use in (run.load, run.iterations, lambda: again(run)):
        with pytest.raises(CheckpointError, match=r"index\.json: .*; without it, checkpoints are found by their names"):
            use()


# --- going on with what is another's, or changed ----------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    """A run with other settings on other data."""
    return RunDir.create(tmp_path / "other", Settings(lr=0.5), kind="reid", made_by={"index_fingerprint": "xyz"})


def saved_by(run, iteration, **config):
    return run.save(checkpoint(iteration, config=config, made_by=dict(run.made_by)))


def test_the_checkpoint_of_another_run_is_refused_with_what_differs(run, other):
    file = saved_by(run, 10, lr=0.1)
    shutil.copy(saved_by(other, 10, lr=0.5), file)
    message = r"00000010\.pt: is of another run \(lr: 0\.1 -> 0\.5; data: fingerprint abc -> xyz; run: \w+ -> \w+\)"
    with pytest.raises(CheckpointError, match=message):
        again(run).resume_from()
    with pytest.raises(CheckpointError, match="is of another run"):
        RunDir.open(run.path).load()
    (run.checkpoints / "index.json").unlink()  # as if of an earlier version
    with pytest.raises(CheckpointError, match=message):
        again(run).resume_from()


def test_lost_settings_are_compared_with_and_restored_from_the_checkpoints(run, caplog):
    saved_by(run, 10, lr=0.1)
    kept = run.config_file.read_text()
    run.config_file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot resume with other settings \(lr: 0\.1 -> 0\.2\)"):
        again(run, Settings(lr=0.2))
    assert not run.config_file.exists()
    assert RunDir.open(run.path).config(Settings) == Settings()
    again(run).resume_from()
    assert run.config_file.read_text() == kept
    assert "config.yaml: was lost; restored from the checkpoints" in caplog.text


def test_lost_settings_are_not_restored_from_checkpoints_that_disagree(run):
    saved_by(run, 10, lr=0.1)
    saved_by(run, 20, lr=0.3)
    run.config_file.unlink()
    with pytest.raises(
        CheckpointError, match=r"00000010\.pt and 00000020\.pt have other settings \(lr: 0\.1 -> 0\.3\)"
    ):
        again(run, Settings(lr=0.3))


def test_settings_that_extend_a_run_are_recorded_and_others_refused(run):
    saved_by(run, 10, lr=0.1)
    again(run, Settings(steps=20, log_every=5)).resume_from()
    assert RunDir.open(run.path).config(Settings) == Settings(steps=20, log_every=5)
    changes = json.loads((run.path / "run.json").read_text())["changes"]
    assert changes == [{"iteration": 10, "settings": ["log_every: 1 -> 5", "steps: 10 -> 20"]}]
    with pytest.raises(CheckpointError, match=r"other settings \(steps: 20 -> 15\)"):
        again(run, Settings(steps=15, log_every=5))


def test_a_run_that_is_not_gone_on_with_keeps_its_settings(run):
    file = saved_by(run, 10, lr=0.1)
    file.write_bytes(file.read_bytes()[:100])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="damaged"):
        again(run, Settings(steps=20)).resume_from()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


WEIGHTS, BEGINNING = {"file": "a.pt", "dropped": []}, {"folder": "f", "iteration": 3}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("weights", WEIGHTS, {**WEIGHTS, "dropped": ["fc"]}, r"a\.pt -> a\.pt without fc"),
        ("weights", {**WEIGHTS, "sha256": "1"}, {**WEIGHTS, "sha256": "2"}, r"SHA-256 1\) -> a\.pt \(SHA-256 2"),
        ("extra", {"folder": "f", "ratio": 0.5}, None, r"folder f ratio 0\.5 -> none"),
        ("teachers", [{"file": "t", "fingerprint": "1"}], [{"file": "t", "fingerprint": "2"}], "t 1 -> t 2"),
        ("begun_with", BEGINNING, {**BEGINNING, "iteration": 4}, "iteration 3 -> folder f iteration 4"),
    ],
)
def test_what_a_run_was_begun_with_stays(tmp_path, name, old, new, message):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={name: old})
    assert again(run).path == run.path
    with pytest.raises(CheckpointError, match=rf"cannot resume with other .*{message}"):
        again(run, **{name: new})


def test_what_an_earlier_version_did_not_record_may_be_anything(tmp_path):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={"weights": {"file": "a", "dropped": []}})
    again(run, weights={"file": "a", "dropped": [], "sha256": "1"})


def test_two_runs_that_are_told_the_same_are_the_same_run(tmp_path, run, other):
    twin = RunDir.create(tmp_path / "twin", Settings(steps=99), kind="reid", made_by=dict(run.made_by))
    assert run.id == twin.id == RunDir.open(run.path).id != other.id


# --- whose folder it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"experiment": 7}', '{"format": 1, "kind": "experiment"}', "[1]", '"reid"'])
@pytest.mark.parametrize("beside", [None, "config.yaml", "log.jsonl", "checkpoints/00000005.pt", "samples/a.png"])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"reset": True}], ids=["new", "resume", "reset"])
def test_a_run_json_of_another_program_marks_no_run(tmp_path, content, beside, options):
    for name, text in (("run.json", content), (beside, "mine")):
        if name is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(OutputError, match="nothing was changed"),
        RunDir.training(tmp_path, Settings(), kind="reid", made_by={}, by="a test", **options),
    ):
        pass
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_one_trains_and_a_second_is_told_who_does(tmp_path):
    options = {"kind": "reid", "made_by": {}, "by": "a test", "resume": True}
    with RunDir.training(tmp_path / "run", Settings(), **options) as run:
        for more in ({}, {"resume": False, "reset": True}):
            message = rf"run: a test \(process {os.getpid()} on .*, since .*\) is writing here"
            with pytest.raises(BusyError, match=message), RunDir.training(run.path, Settings(), **options | more):
                pass
        run.save(checkpoint(3))
    with RunDir.training(run.path, Settings(), **options) as run:
        assert run.resume_from().iteration == 3
    assert not (run.path / ".lock").exists()


def test_a_run_killed_before_its_settings_were_written_begins_anew(run):
    run.config_file.unlink()
    assert RunDir.find(run.path, "reid") is None
    assert RunDir.create(run.path, Settings(lr=0.7), kind="reid", made_by={}).config(Settings) == Settings(lr=0.7)


@pytest.mark.parametrize("out", [".", "..", "checkpoints/.."])
def test_the_folder_one_is_in_is_not_moved_aside(run, monkeypatch, out):
    run.save(checkpoint(1))
    monkeypatch.chdir(run.checkpoints if out == ".." else run.path)
    with pytest.raises(
        OutputError, match=r"is the folder you are in, so it cannot be moved aside; go elsewhere \(cd\)"
    ):
        RunDir.find(out, "reid", reset=True)
    assert run.iterations() == [1]


def test_a_run_that_is_moved_aside_leaves_nothing_locked(run):
    target = RunDir.set_aside(run.path, "a test")
    assert not run.path.exists()
    assert sorted(path.name for path in target.iterdir()) == ["config.yaml", "run.json"]


# --- odd contents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"", b"\xff\xfe\x00", b"{", b'{"format": 1, "kind": "reid", "made_by": "x"}',
        b'{"format": 1, "kind": "reid", "made_by": null}', b'{"format": 1, "kind": "reid", "id": 5}',
        b'{"format": 1e999, "kind": "reid"}', b'{"format": 2, "kind": "reid"}',
        b'{"format": 1, "kind": "reid", "made_by": {"data": 5}}',
        b'{"format": 1, "kind": "reid", "made_by": {"weights": [1]}}',
        b'{"format": 1, "kind": "reid", "made_by": {"weights": {"file": "a", "dropped": 3}}}',
        b'{"format": 1, "kind": "reid", "made_by": {"teachers": [{"file": 3}]}}',
    ],
)  # fmt: skip
def test_a_damaged_run_json_is_one_line_that_names_it(run, content):
    (run.path / "run.json").write_bytes(content)
    for use in (
        RunDir.open,
        lambda path: RunDir.find(path, "reid"),
        lambda path: RunDir.find(path, "reid", reset=True),
    ):
        with pytest.raises(CheckpointError, match=r"run\.json: ") as caught:
            use(run.path)
        assert "\n" not in str(caught.value)
    assert (run.path / "run.json").read_bytes() == content


def test_a_log_line_that_cannot_be_read_is_left_out(run):
    run.log(10, {"loss": 1.0})
    good = run.log_file.read_bytes()
    bad = [b"\xff\xfe", b'{"iteration": 1e999}', b'{"iteration": "5"}', b'{"iteration": true}', b"[" * 5000, b"5"]
    bad += [b'{"iteration": -3}', b'{"iteration": ' + b"9" * 5000 + b"}", b'{"iteration": 3, "loss": "low"}', b"{"]
    run.log_file.write_bytes(b"\n".join(bad) + b"\n" + good)
    assert run.read_log() == [{"iteration": 10, "loss": 1.0}]
    run.save(checkpoint(20))
    run.resume_from()
    assert run.log_file.read_bytes() == good
    run.close()


def test_where_the_data_lie_is_told_or_asked_for(tmp_path):
    def place(**made_by):
        return RunDir(tmp_path, "reid", made_by).data_place()

    assert str(place(data="/d", layout="market1501")) == "/d"
    assert str(place(data="/d", layout="csv", source="/d/people.csv")) == "/d/people.csv"
    with pytest.raises(CheckpointError, match=r"was trained on a table in /d; give that \.csv with --data"):
        place(data="/d", layout="csv")
    with pytest.raises(CheckpointError, match="does not tell where its data is; give it with --data"):
        place()
