import io
import os
import re
import signal
import sys

import pytest

from reid_eval import progress as module
from reid_eval.errors import Stopped
from reid_eval.progress import progress, track
from reid_eval.stopping import stoppable


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(monkeypatch):
    """Make stderr a terminal; in the test itself, for pytest replaces stderr when a test begins."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_track_passes_every_item_on_in_order():
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert list(track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert list(track([], "reading")) == []


def test_quick_work_says_nothing_when_nobody_watches(capsys):
    list(track(range(1000), "reading"))
    assert capsys.readouterr() == ("", "")


def test_long_work_speaks_in_lines_on_stderr_and_ends_with_the_last(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    with progress("training", 10, done=7) as bar:
        bar.advance(note="loss 2.5")
        bar.advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{clock} training: 8/10 \(0 s, 0 s left\) loss 2\.5\n{clock} training: 10/10 \(0 s\)\n", err)


def test_lines_keep_their_distance_in_time_but_the_last_is_not_lost(capsys, monkeypatch):
    now_s = iter([0.0, 5.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now_s))
    with progress("reading", 4) as bar:
        for _ in range(4):
            bar.advance()
    lines = [line.partition(" reading: ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["2/4 (11 s, 11 s left)", "4/4 (13 s)"]


def test_work_without_a_known_end_counts(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    list(track(iter("ab"), "reading"))
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()] == ["1", "2"]


def test_a_terminal_sees_a_bar(monkeypatch):
    terminal = watch(monkeypatch)
    with progress("reading", 2) as bar:
        bar.advance(note="0002_c1s1.jpg")
        bar.advance()
    assert "reading" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_at_80_columns_a_bar_shows_the_count_and_both_times(monkeypatch):
    terminal = watch(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with progress("extracting from a folder with a long name", 100_000, done=99_000) as bar:
        bar.advance(500, note="recon_self 0.123 recon_same_id 0.456 adversarial 0.789 identity 1.234 0.9 it/s")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).strip().splitlines()[-1]
    assert len(last) <= 80
    assert re.search(r"extracting from.* 99500/100000 +0:00:00 +(-:--:--|\d:\d\d:\d\d) +recon_self", last)


def test_a_stop_that_was_asked_for_comes_between_two_items():
    with stoppable():
        items = track("abc", "reading")
        assert next(items) == "a"
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            next(items)


def test_a_terminal_that_is_gone_ends_no_work(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    for closed in (stream, None):
        monkeypatch.setattr(sys, "stderr", closed)
        if closed is not None:
            monkeypatch.setattr(stream, "isatty", lambda: False, raising=False)
        assert list(track("ab", "reading")) == ["a", "b"]


def test_what_a_terminal_would_obey_is_escaped(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    list(track("a", "reading \x1b[2J"))
    assert "reading \\x1b[2J" in capsys.readouterr().err


def test_what_is_done_is_shown_as_it_is_written(monkeypatch):
    terminal = watch(monkeypatch)
    with progress("reading real[/old]", 1) as bar:
        bar.advance(note="[red]a[/b].jpg")
    assert "reading real[/old]" in terminal.getvalue()
    assert "[red]a[/b].jpg" in terminal.getvalue()


def test_work_inside_work_leaves_the_one_bar_alone(monkeypatch):
    watch(monkeypatch)
    with progress("training", 2), progress("ranking", 1) as inner:
        assert isinstance(inner, module._Lines)
    with progress("training", 1) as again:
        assert not isinstance(again, module._Lines)


def test_a_bar_is_gone_after_an_error(monkeypatch):
    watch(monkeypatch)
    with pytest.raises(ValueError), progress("training", 2):
        raise ValueError
    with progress("training", 1) as again:
        assert not isinstance(again, module._Lines)
