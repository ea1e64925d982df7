import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from reid_eval.errors import OutputError, ReidError, Stopped, user_errors
from reid_eval.features import FeatureFileError
from reid_eval.files import ImageError
from reid_eval.outputs import claim_file


def leave_with(error):
    with pytest.raises(SystemExit) as exit_, user_errors():
        raise error
    return exit_.value.code


@pytest.mark.parametrize("kind", [ReidError, OutputError, ImageError, FeatureFileError])
def test_what_a_user_can_mend_is_one_line_on_stderr_and_exit_code_1(kind, capsys):
    assert leave_with(kind("a.npz: not a feature file")) == 1
    assert capsys.readouterr() == ("", "error: a.npz: not a feature file\n")


def test_work_that_was_stopped_and_saved_has_its_own_exit_code(capsys):
    assert leave_with(Stopped("time is up: saved iteration 5")) == 75
    assert "saved iteration 5" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_names_the_file(number, capsys):
    assert leave_with(OSError(number, os.strerror(number), "runs/log.jsonl")) == 1
    assert "runs/log.jsonl: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG])
def test_a_path_that_cannot_be_used_is_named(number, capsys):
    assert leave_with(OSError(number, "Some Reason", "runs/a")) == 1
    assert capsys.readouterr().err == "error: runs/a: some reason\n"


def test_a_message_of_several_lines_becomes_one(capsys):
    leave_with(ReidError("a\nb.npz: not a feature file"))
    assert capsys.readouterr().err == "error: a b.npz: not a feature file\n"


def test_control_c_leaves_with_75_as_any_stop_does(capsys):
    assert leave_with(KeyboardInterrupt()) == 75
    assert "interrupted: nothing is half written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_leaves_with_75_and_its_name(name, capsys):
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(SystemExit) as exit_, user_errors():
        os.kill(os.getpid(), getattr(signal, name))
    assert exit_.value.code == 75
    assert f"{name}: nothing is half written" in capsys.readouterr().err
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_file_larger_than_files_may_be_is_named(capsys):
    assert leave_with(OSError(errno.EFBIG, "File too large", "runs/log.jsonl")) == 1
    assert "runs/log.jsonl: larger than files may be here" in capsys.readouterr().err


def test_a_working_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit), user_errors():
        claim_file("a.png", "reid-eval rank --plot")
    assert capsys.readouterr().err.startswith("error: the folder that this was started in is gone;")


def test_too_little_memory_is_no_traceback(capsys):
    assert leave_with(MemoryError("Unable to allocate 9 TiB")) == 1
    assert "out of memory (Unable to allocate 9 TiB)" in capsys.readouterr().err
    for too_large in ((1 << 30, 1 << 30), (1 << 62, 1 << 62)):  # more than is addressed, and than is counted
        with pytest.raises(RuntimeError) as said:
            torch.empty(too_large)
        assert leave_with(said.value) == 1
        assert capsys.readouterr().err.count("out of memory (") == 1


def test_what_a_terminal_would_obey_is_escaped(capsys):
    leave_with(ImageError("a\x1b[2Jb\x07.jpg: not a readable image"))
    assert capsys.readouterr().err == "error: a\\x1b[2Jb\\x07.jpg: not a readable image\n"


def test_a_command_without_an_error_stream_still_has_its_exit_code():
    code = "from reid_eval.errors import *\nwith user_errors():\n    raise ReidError('nobody hears this')\n"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{code}" 2>&-'], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("bug", [ValueError("ours"), OSError(errno.EIO, "Input/output error")], ids=["value", "disk"])
def test_anything_else_is_a_bug_and_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), user_errors():
        raise bug


def test_what_goes_well_is_left_alone(capsys):
    with user_errors():
        pass
    assert capsys.readouterr() == ("", "")
