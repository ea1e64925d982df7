"""Signals and time limits: noted within a block, acted on where nothing is lost."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from reid_eval.errors import ReidError, Stopped
from reid_eval.stopping import STOP_SIGNALS, check_stop, stop_reason, stoppable


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_only_asks_within_the_block(number):
    before = signal.getsignal(number)
    with stoppable():
        assert stop_reason() is None
        os.kill(os.getpid(), number)
        assert stop_reason() == number.name
        with pytest.raises(Stopped, match=f"{number.name}: 3 rows are kept; run the same command to go on"):
            check_stop("3 rows are kept")
    assert stop_reason() is None
    assert signal.getsignal(number) == before


def test_a_second_control_c_interrupts_at_once():
    with stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_an_inner_block_was_asked_the_outer_one_knows():
    with stoppable(max_hours=1):
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop_reason() == "SIGHUP"


def test_the_time_of_a_block_ends_and_that_of_another_begins_anew():
    with stoppable(max_hours=1e-9):
        assert stop_reason() == "--max-hours 1e-09 reached"
        with stoppable(max_hours=5):
            assert stop_reason() == "--max-hours 1e-09 reached"
    with stoppable(max_hours=5):
        assert stop_reason() is None
    check_stop()


@pytest.mark.parametrize("hours", [float("nan"), -1])
def test_hours_that_are_no_number_or_less_than_none_are_refused(hours):
    with pytest.raises(ReidError, match="expected a number of hours from 0 on"), stoppable(hours):
        pass


def test_the_hours_may_be_counted_from_an_earlier_moment():
    with stoppable(max_hours=1, began_s=time.monotonic() - 3601):
        assert stop_reason() == "--max-hours 1 reached"
    with stoppable(max_hours=1, began_s=time.monotonic() - 3000):
        assert stop_reason() is None


def test_in_a_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_nohup_ignores_stays_ignored():
    code = (
        "import os, signal\n"
        "from reid_eval.stopping import stoppable, stop_reason\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stoppable():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(stop_reason())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "None\n"
