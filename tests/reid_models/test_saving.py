"""When a training saves: where it is due, by the clock, before it leaves, and before an error."""

from dataclasses import dataclass

import pytest
import torch

from reid_eval.errors import OutputError, ReidError, Stopped
from reid_models.runs import Checkpoint, RunDir
from reid_models.saving import Saver


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1


class Counter:
    """A training that only counts."""

    iteration = 0

    def checkpoint(self):
        return Checkpoint("reid", self.iteration, {"lr": 0.1}, {"reid": {"w": torch.tensor(self.iteration)}})


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={})


@pytest.fixture
def counter():
    return Counter()


@pytest.fixture
def saver(run, counter):
    return Saver(run, counter.checkpoint, lambda: counter.iteration, minutes=15, keep=2)


def test_by_the_clock_it_is_saved_once_in_so_many_minutes(run, counter, saver, monkeypatch):
    now = saver._saved_at_s
    monkeypatch.setattr("time.monotonic", lambda: now)
    saved = []
    for counter.iteration in range(1, 60):
        now += 60
        saver.by_the_clock()
        if counter.iteration == 20:
            saver.save()
        saved.append(run.iterations())
    assert [counts[-1] for counts in saved[14::5] if counts] == [15, 20, 20, 20, 35, 35, 35, 50, 50]
    assert run.iterations() == [20, 50]


def test_the_clock_can_be_turned_off(run, counter, saver, monkeypatch):
    saver.minutes = 0
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    counter.iteration = 5
    saver.by_the_clock()
    assert run.iterations() == []


def test_leaving_saves_and_says_where(run, counter, saver):
    counter.iteration = 7
    with pytest.raises(Stopped, match=rf"SIGHUP: saved iteration 7 in {run.path}; run it again .*--resume"):
        saver.leave("SIGHUP")
    assert run.load().iteration == 7
    assert run.is_passing(7)


def test_a_checkpoint_that_was_due_stays_when_a_training_leaves_there(run, counter, saver):
    counter.iteration = 7
    saver.save()
    with pytest.raises(Stopped):
        saver.leave("SIGTERM")
    assert not run.is_passing(7)


def test_one_that_was_passing_is_still_due(run, counter, saver):
    counter.iteration = 7
    with pytest.raises(Stopped):
        saver.leave("SIGTERM")
    again = Saver(run, counter.checkpoint, lambda: counter.iteration, minutes=15, keep=2)
    assert not again.is_saved()
    again.save()
    assert again.is_saved()
    assert not run.is_passing(7)


def test_an_error_in_making_a_batch_costs_nothing(run, counter, saver, capsys):
    def batches():
        yield from (1, 2, 3)
        raise ReidError("a.jpg: not readable")

    with pytest.raises(ReidError, match=r"a\.jpg: not readable"):
        for counter.iteration in saver.watched(batches()):
            pass
    assert run.load().iteration == 3
    assert f"saved iteration 3 in {run.path}" in capsys.readouterr().err


def test_before_the_first_step_an_error_leaves_no_checkpoint(run, saver):
    with pytest.raises(ReidError), saver.before_errors():
        raise ReidError("a.jpg: not readable")
    assert run.iterations() == []


def test_what_cannot_be_saved_does_not_hide_the_error(run, counter, saver, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OutputError("the disk is full")

    counter.iteration = 3
    monkeypatch.setattr(RunDir, "save", full)
    with pytest.raises(ReidError, match=r"a\.jpg"), saver.before_errors():
        raise ReidError("a.jpg: not readable")
    assert "could not be saved: the disk is full" in caplog.text


def test_asked_to_stop_is_no_error(run, counter, saver):
    counter.iteration = 3
    with pytest.raises(Stopped), saver.before_errors():
        raise Stopped("SIGTERM")
    assert run.iterations() == []
