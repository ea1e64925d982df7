"""Asking long work to stop: signals and time limits, looked at where nothing is lost.

    with stoppable(max_hours=8):
        for batch in batches:
            check_stop("vectors made so far are in features.npz.partial")      # raises Stopped, exit code 75
            ...

SIGTERM, SIGINT, SIGHUP (a closed terminal) and SIGUSR1 (a scheduler's warning) count. Within the block they are only
noted; a second SIGINT interrupts at once. A signal that is ignored when the block begins, as nohup does with SIGHUP,
stays ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reid_eval.errors import ReidError, Stopped

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


class _Requests:
    """What has asked the `stoppable` blocks of this process to stop."""

    def __init__(self) -> None:
        self.blocks = 0
        self.signal: str | None = None
        self.deadlines: list[tuple[float, float]] = []
        """when by the monotonic clock, in seconds, and the hours that were asked for"""

    def note(self, number: int, frame: Any) -> None:
        """A signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


_requests = _Requests()


@contextmanager
def stoppable(max_hours: float | None = None, *, began_s: float | None = None) -> Iterator[None]:
    """Within the block signals only ask to stop, and so does the end of `max_hours`. Blocks may be nested.

    The hours are counted from `began_s` of the monotonic clock, by default from now. Python delivers signals to the
    main thread alone, so elsewhere a block notes none.

    Raises:
        ReidError: `max_hours` is less than 0, or not a number.
    """
    if max_hours is not None and not max_hours >= 0:
        raise ReidError(f"--max-hours {max_hours:g}: expected a number of hours from 0 on, such as 8 or 0.5")
    began_s = time.monotonic() if began_s is None else began_s
    deadline = [] if max_hours is None else [(began_s + max_hours * 3600, max_hours)]
    _requests.blocks += 1
    _requests.deadlines += deadline
    try:
        with handling(_requests.note):
            yield
    finally:
        _requests.blocks -= 1
        for entry in deadline:
            _requests.deadlines.remove(entry)
        if not _requests.blocks:
            _requests.signal = None


def stop_reason() -> str | None:
    """Why the work of the blocks around should save and leave now: a signal's name or the time limit; or None."""
    if _requests.signal is not None:
        return _requests.signal
    now = time.monotonic()
    return next((f"--max-hours {hours:g} reached" for when, hours in _requests.deadlines if now >= when), None)


def check_stop(saved: str = "nothing is half written") -> None:
    """Leave here if something has asked to.

    Raises:
        Stopped: it has; the message says why and what was `saved`.
    """
    if reason := stop_reason():
        raise Stopped(f"{reason}: {saved}; run the same command to go on")


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have a handler called for each of `STOP_SIGNALS` that is not ignored, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    ours = [number for number, found in before.items() if found not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def interrupt(number: int, frame: Any) -> None:
    """A signal handler for work with nothing to save: leave at once."""
    raise KeyboardInterrupt(signal.Signals(number).name)
