"""One writer at a time, also across processes and after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reid_eval.errors import OutputError
from reid_eval.locks import BusyError, is_locked, locked

HOLD = """
import sys, time
from reid_eval.locks import locked
with locked(sys.argv[1], "reid-models train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold a lock until they are stopped."""
    started = []

    def start(target: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("name", ["run", "features.npz", "n" * 250 + ".npz"])
def test_the_second_is_told_who_holds_it_and_since_when(tmp_path, holder, name):
    target = tmp_path / name
    if name == "run":
        target.mkdir()
    first = holder(target)
    with pytest.raises(BusyError) as error, locked(target, "reid-models extract"):
        pass
    year = time.strftime("%Y-")
    for words in (str(target), f"reid-models train (process {first.pid} on ", f"since {year}", "nothing was changed"):
        assert words in str(error.value)
    assert is_locked(target)


def test_a_lock_is_free_after_a_kill(tmp_path, holder):
    holder(tmp_path).send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_locked(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    with locked(tmp_path, "reid-models train"):
        pass


def test_nothing_is_left_behind(tmp_path):
    with (
        locked(tmp_path / "a" / "features.npz", "x"),
        pytest.raises(BusyError),
        locked(tmp_path / "a/features.npz", "y"),
    ):
        pass
    assert os.listdir(tmp_path / "a") == []
    with pytest.raises(ValueError), locked(tmp_path, "x"):
        raise ValueError
    assert os.listdir(tmp_path) == ["a"]
    assert not is_locked(tmp_path)


def test_locks_of_different_files_do_not_meet(tmp_path):
    with locked(tmp_path / "a.npz", "x"), locked(tmp_path / "b.npz", "x"), locked(tmp_path, "x"):
        pass


def test_of_many_that_begin_at_once_one_writes_at_a_time(tmp_path):
    writing, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal writing, most, done
        while True:
            try:
                with locked(tmp_path / "file", "x"):
                    with guard:
                        writing += 1
                        most = max(most, writing)
                    time.sleep(0.001)
                    with guard:
                        writing -= 1
                        done += 1
                return
            except BusyError:
                time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 16)


def test_a_holder_that_has_not_written_its_name_holds_it_all_the_same(tmp_path, holder):
    holder(tmp_path)
    (tmp_path / ".lock").write_text("")
    with pytest.raises(BusyError, match="another process is writing here"), locked(tmp_path, "x"):
        pass
    (tmp_path / ".lock").write_text(json.dumps({"by": 1}))
    with pytest.raises(BusyError, match="another process is writing here"), locked(tmp_path, "x"):
        pass


def test_the_second_waits_a_moment_for_the_name_of_the_first(tmp_path, holder):
    first = holder(tmp_path)
    signed = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").write_text("")  # as between taking a lock and signing it
    threading.Timer(0.1, (tmp_path / ".lock").write_text, [signed]).start()
    with pytest.raises(BusyError, match=rf"reid-models train \(process {first.pid} on "), locked(tmp_path, "x"):
        pass


def test_a_place_where_no_lock_can_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be locked"), locked(tmp_path / "file" / "run", "x"):
        pass
