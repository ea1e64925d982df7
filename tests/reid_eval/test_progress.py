import io
import sys

import pytest

from reid_eval import progress as module
from reid_eval.progress import progress, track


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
    assert capsys.readouterr() == ("", "training: 8/10 loss 2.5\ntraining: 10/10\n")


def test_lines_keep_their_distance_in_time_but_the_last_is_not_lost(capsys, monkeypatch):
    now_s = iter([0.0, 5.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now_s))
    with progress("reading", 4) as bar:
        for _ in range(4):
            bar.advance()
    assert capsys.readouterr().err == "reading: 2/4\nreading: 4/4\n"


def test_work_without_a_known_end_counts(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    list(track(iter("ab"), "reading"))
    assert capsys.readouterr().err == "reading: 1\nreading: 2\n"


def test_a_terminal_sees_a_bar(monkeypatch):
    terminal = watch(monkeypatch)
    with progress("reading", 2) as bar:
        bar.advance(note="0002_c1s1.jpg")
        bar.advance()
    assert "reading" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


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
