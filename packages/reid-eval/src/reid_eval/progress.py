"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

Results go to stdout and nothing else does, so a command's output can be piped while its progress is watched.

    for path in track(paths, "decoding"):
        ...
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from reid_eval.errors import printable
from reid_eval.stopping import check_stop

T = TypeVar("T")

_LINE_EVERY_S = 10.0

_bar_is_shown = False


class Progress(Protocol):
    """What a piece of work tells while it goes on."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that `steps` more are done; `note` (a loss, a file) replaces the previous one."""


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass the items on while showing how many of them are done.

    Raises:
        Stopped: within `stopping.stoppable`, something asked to stop; it is raised between two items.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total) as bar:
        for item in items:
            check_stop()
            yield item
            bar.advance()


@contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """Show work of `total` steps, `done` of which are behind us (a resumed run).

    One bar at a time: work inside work that already has a bar (an evaluation inside a training) speaks in lines.
    """
    global _bar_is_shown
    if sys.stderr is None or not sys.stderr.isatty() or _bar_is_shown:
        yield _Lines(what, total, done)
        return
    _bar_is_shown = True
    try:
        with _bar(what, total, done) as bar:
            yield bar
    finally:
        _bar_is_shown = False


class _Lines:
    """One line every ten seconds, with the clock and the time that is left, and a last one if there was a first."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self.what, self.total, self.done, self.first = what, total, done, done
        self.began_at_s = self.printed_at_s = time.monotonic()
        self.printed = False

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        now_s = time.monotonic()
        finished = self.done == self.total and self.printed
        if now_s - self.printed_at_s >= _LINE_EVERY_S or finished:
            self.printed_at_s, self.printed = now_s, True
            clock = time.strftime("%Y-%m-%d %H:%M:%S")
            say(f"{clock} {self.what}: {self.done}{self._left(now_s)} {note}")

    def _left(self, now_s: float) -> str:
        """How much there is in all, and how long the rest takes at the pace so far."""
        if self.total is None:
            return ""
        elapsed_s = now_s - self.began_at_s
        if self.done == self.total:
            return f"/{self.total} ({duration(elapsed_s)})"
        left_s = elapsed_s * (self.total - self.done) / max(self.done - self.first, 1)
        return f"/{self.total} ({duration(elapsed_s)}, {duration(left_s)} left)"


def say(line: str) -> None:
    """A line on stderr, if anybody can read it there."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, the work goes on
            print(printable(line).rstrip(), file=sys.stderr, flush=True)


def duration(elapsed_s: float) -> str:
    """Seconds as people say them: 8 s, 3 min 20 s, 2 h 05 min."""
    total_s = round(elapsed_s)
    if total_s < 60:
        return f"{total_s} s"
    minutes, seconds = divmod(total_s, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _bar(what: str, total: int | None, done: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    columns = (
        # Where a terminal is narrow the name and the note give way, never the count and the times.
        TextColumn(
            "{task.description}", markup=False, table_column=Column(max_width=24, overflow="ellipsis", no_wrap=True)
        ),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(min_width=len(str(total or "")) * 2 + 1, no_wrap=True)),
        TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
        TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, overflow="ellipsis", no_wrap=True)
        ),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=False, expand=True) as bars:
        task = bars.add_task(printable(what), total=total, completed=done, note="")

        class Bar:
            def advance(self, steps: int = 1, note: str = "") -> None:
                bars.advance(task, steps)
                if note:
                    bars.update(task, note=printable(note))

        yield Bar()
