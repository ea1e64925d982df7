import ctypes
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

from reid_eval.errors import Stopped
from reid_eval.stopping import STOP_SIGNALS, check_stop, stop_reason
from reid_models.config import ConfigError
from reid_models.runtime import Runtime, choose_device


class Pair(NamedTuple):
    images: torch.Tensor
    names: list


def test_an_unknown_device_lists_those_that_exist():
    with pytest.raises(ConfigError, match=r"--device tpu: not available here; choose from auto, .*cpu"):
        choose_device("tpu")


def test_the_random_state_comes_back():
    runtime = Runtime(torch.device("cpu"))
    runtime.seed_everything(3)
    state = runtime.rng_state()
    first = torch.rand(4)
    torch.rand(7)
    runtime.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_asks_to_stop_and_the_old_handler_returns(number):
    runtime = Runtime(torch.device("cpu"))
    before = signal.getsignal(number)
    with runtime.watch_signals():
        assert runtime.stop_reason() is None
        os.kill(os.getpid(), number)
        assert runtime.stop_reason() == signal.Signals(number).name
    assert signal.getsignal(number) is before
    assert runtime.stop_reason() is None


def test_a_second_interrupt_does_not_wait():
    runtime = Runtime(torch.device("cpu"))
    with runtime.watch_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_time_limit_is_a_reason_to_stop_and_counts_from_the_beginning():
    with Runtime(torch.device("cpu"), max_hours=1).watch_signals():
        assert stop_reason() is None
    late = Runtime(torch.device("cpu"), max_hours=1e-7)
    while time.monotonic() < late._began_s + 3600e-7:
        pass
    with late.watch_signals():
        assert late.stop_reason() == "--max-hours 1e-07 reached"
        with pytest.raises(Stopped, match="--max-hours 1e-07 reached"):
            check_stop()  # what has no runtime knows it too
    for hours in (0, float("nan")):
        with pytest.raises(ConfigError, match="must be positive"):
            Runtime.from_environment("cpu", max_hours=hours)


def test_a_runtime_leaves_the_memory_of_the_process_alone_until_a_command_asks(monkeypatch):
    asked = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda parameter, value: asked.append(parameter)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    runtime = Runtime.from_environment("cpu")
    assert asked == []
    runtime.keep_freed_memory()
    assert len(asked) == 3
    Runtime(torch.device("meta")).keep_freed_memory()
    assert len(asked) == 3


def test_containers_keep_their_type_on_the_way_to_the_device():
    moved = Runtime(torch.device("cpu")).to_device({"pair": Pair(torch.zeros(2), ["a"]), "epoch": 3})
    assert isinstance(moved["pair"], Pair)
    assert moved["epoch"] == 3


def test_bf16_computes_in_bfloat16():
    runtime = Runtime(torch.device("cpu"), precision="bf16")
    with runtime.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_maps_are_rounded_only_where_it_is_asked_for_and_the_processor_can(monkeypatch):
    cpu = torch.device("cpu")
    for able, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert Runtime(cpu, "bf16").map_dtype == expected
        assert Runtime(cpu).map_dtype == torch.float32
    with Runtime(cpu, "bf16").side_by_side(2) as pool:
        assert pool is None  # what rounds products there is a setting of one thread


def test_threads_are_dealt_out_side_by_side_and_all_there_again_afterwards():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with Runtime(torch.device("cpu")).side_by_side(2) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {2}
            assert torch.get_num_threads() == 4
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 4
        with Runtime(torch.device("cpu")).side_by_side(9) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    finally:
        torch.set_num_threads(before)
