"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

Results go to stdout and nothing else does, so a command's output can be piped while its progress is watched.

    for path in track(paths, "decoding"):
        ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")

_LINE_EVERY_S = 10.0

_bar_is_shown = False


class Progress(Protocol):
    """What a piece of work tells while it goes on."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that `steps` more are done; `note` (a loss, a file) replaces the previous one."""


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass the items on while showing how many of them are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


@contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """Show work of `total` steps, `done` of which are behind us (a resumed run).

    One bar at a time: work inside work that already has a bar (an evaluation inside a training) speaks in lines.
    """
    global _bar_is_shown
    if not sys.stderr.isatty() or _bar_is_shown:
        yield _Lines(what, total, done)
        return
    _bar_is_shown = True
    try:
        with _bar(what, total, done) as bar:
            yield bar
    finally:
        _bar_is_shown = False


class _Lines:
    """One line every ten seconds, and a last one if there was a first."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self.what, self.total, self.done = what, total, done
        self.printed_at_s = time.monotonic()
        self.printed = False

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        now_s = time.monotonic()
        finished = self.done == self.total and self.printed
        if now_s - self.printed_at_s >= _LINE_EVERY_S or finished:
            self.printed_at_s, self.printed = now_s, True
            of_total = f"/{self.total}" if self.total is not None else ""
            print(f"{self.what}: {self.done}{of_total} {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def _bar(what: str, total: int | None, done: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),  # it may name a folder "[x]"
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(what, total=total, completed=done, note="")

        class Bar:
            def advance(self, steps: int = 1, note: str = "") -> None:
                bars.advance(task, steps)
                if note:
                    bars.update(task, note=note)

        yield Bar()
