import errno
import json
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from reid_eval.errors import OutputError
from reid_models.runs import Checkpoint, CheckpointError, RunDir


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    image_hw: tuple[int, int] = (64, 32)


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
    assert [entry.name for entry in run.checkpoints.iterdir()] == [file.name]


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


def test_resuming_without_a_checkpoint_says_that_it_starts_from_the_beginning(run, caplog):
    run.log(10, {"loss": 1.0})
    assert run.resume_from() is None
    assert "run: no checkpoint to go on from, so the training starts from the beginning" in caplog.text
    assert run.read_log() == []
    run.close()


def test_resuming_removes_what_a_killed_process_left_half_written(run):
    file = run.save(checkpoint(20))
    for left in (run.checkpoints / ".00000030.pt.ab12.part", run.path / ".log.jsonl.cd34.part"):
        left.write_bytes(b"half")
    run.resume_from()
    assert sorted(path for path in run.path.rglob("*") if path.is_file()) == sorted(
        [file, run.path / "run.json", run.config_file]
    )


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
