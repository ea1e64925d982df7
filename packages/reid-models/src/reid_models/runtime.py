"""The one place that knows devices, precision, random state and how a run is stopped.

    runtime = Runtime.from_environment(device="auto", precision="fp32", max_hours=8)
    network = runtime.prepare(network)
    with runtime.watch_signals():
        for batch in loader:
            with runtime.autocast():
                loss = step(network, runtime.to_device(batch))
            if reason := runtime.stop_reason():
                ...save...; raise Stopped(f"{reason}: saved iteration 300 in runs/teacher; ...")

Everything else takes modules and tensors and works the same on CUDA, MPS and the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from reid_eval import stopping
from reid_models.config import ConfigError

M = TypeVar("M", bound=nn.Module)
Precision = Literal["fp32", "bf16", "fp16"]

logger = logging.getLogger(__name__)


class Runtime:
    """Device, precision, random state and stop requests of this process."""

    def __init__(self, device: torch.device, precision: Precision = "fp32", max_hours: float | None = None) -> None:
        self.device = device
        self.precision = precision
        self._max_hours, self._began_s = max_hours, time.monotonic()

    @classmethod
    def from_environment(
        cls, device: str = "auto", precision: Precision = "fp32", max_hours: float | None = None
    ) -> Runtime:
        """Choose a device ("auto" takes CUDA, then MPS, then the CPU) and start the clock of `max_hours`.

        Raises:
            ConfigError: the device does not exist here, or `max_hours` is not positive.
        """
        if max_hours is not None and not max_hours > 0:
            raise ConfigError(f"--max-hours: must be positive, got {max_hours:g}")
        return cls(choose_device(device), precision, max_hours)

    @classmethod
    def for_inference(cls, device: str = "auto", *, half: bool = False) -> Runtime:
        """A device to embed on, in float32 or in `half` of it: bfloat16 on a CPU, elsewhere float16.

        Raises:
            ConfigError: the device does not exist here.
        """
        chosen = choose_device(device)
        return cls(chosen, ("bf16" if chosen.type == "cpu" else "fp16") if half else "fp32")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return True

    def prepare(self, module: M) -> M:
        """Move a network to the device, in the memory layout that convolutions like best."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to_device(self, value: Any) -> Any:
        """Move tensors to the device, also inside tuples, named tuples, lists and dicts."""
        if isinstance(value, Tensor):
            return value.to(self.device, non_blocking=True)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.to_device(item) for item in value))
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_device(item) for item in value)
        if isinstance(value, dict):
            return {key: self.to_device(item) for key, item in value.items()}
        return value

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes: bfloat16 or float16 where they are allowed, or plain float32."""
        match self.precision:
            case "bf16":
                return torch.autocast(self.device.type, dtype=torch.bfloat16)
            case "fp16":
                return torch.autocast(self.device.type, dtype=torch.float16)
        return contextlib.nullcontext()

    @contextmanager
    def rounded_products(self) -> Iterator[None]:
        """Inference in half of float32: on a CPU convolutions multiply in bfloat16 while sums and maps stay float32.

        Does nothing in precision fp32; elsewhere than on a CPU, and before PyTorch 2.9, it is `autocast`.
        """
        conv: Any = getattr(torch.backends.mkldnn, "conv", None)
        if self.precision == "fp32" or self.device.type != "cpu" or not hasattr(conv, "fp32_precision"):
            with self.autocast():
                yield
            return
        before = conv.fp32_precision
        conv.fp32_precision = "bf16"
        try:
            yield
        finally:
            conv.fp32_precision = before

    @property
    def map_dtype(self) -> torch.dtype:
        """The type in which a network may keep its maps for inference: bfloat16 on a CPU that has its arithmetic.

        Elsewhere, and in precision fp32, float32: then `rounded_products` rounds what it can. A bfloat16 map takes half
        the time that rounding a float32 one for its products does.
        """
        able: Mapping[str, Any] = getattr(
            torch.cpu, "get_capabilities", dict
        )()  # older versions of PyTorch do not tell
        wanted = self.precision == "bf16" and self.device.type == "cpu"
        return torch.bfloat16 if wanted and (able.get("avx512_bf16") or able.get("amx_bf16")) else torch.float32

    @contextmanager
    def side_by_side(self, tasks: int) -> Iterator[ThreadPoolExecutor | None]:
        """A pool that infers `tasks` things at a time, with PyTorch's threads dealt out among them; None but on a CPU.

        A CPU is busier with a picture for each thread than with all threads at each small map in turn, and the maps of
        one picture stay in a core's cache. A task enters `no_grad` by itself. There is none either where products are
        rounded but not maps, as that may be said to one thread only.
        """
        if self.device.type != "cpu" or (self.precision != "fp32" and self.map_dtype == torch.float32):
            yield None
            return
        threads = torch.get_num_threads()
        workers = min(tasks, threads)
        begun = threading.Barrier(workers)

        def begin() -> None:
            torch.get_num_threads()  # PyTorch sets a new thread up when first asked, and that would undo the next line
            torch.set_num_threads(threads // workers)

        with ThreadPoolExecutor(workers, "infer", begin) as pool:
            list(pool.map(lambda _: begun.wait(), range(workers)))
            torch.set_num_threads(threads)  # of threads that begin later, elsewhere
            yield pool

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that float16 gradients do not vanish; does nothing in another precision."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def compiled(self, module: Callable[..., Any], *, frozen: bool = False) -> Callable[..., Any]:
        """What torch.compile makes of a module or function or, when its first call fails, itself, with a warning.

        The compiled function shares the module's weights; `frozen` says that they and the sizes of inputs never change.
        """
        options: dict[str, Any] = {"options": {"freezing": True}, "dynamic": False} if frozen else {}
        function: Callable[..., Any] = torch.compile(module, **options)
        has_run = False

        def call(*inputs: Any) -> Any:
            nonlocal function, has_run
            if has_run:
                return function(*inputs)
            try:
                output = function(*inputs)
            except Exception as error:  # whatever a compiler may say; the module itself says it again if it is to blame
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("torch.compile does not work here, going on without it (%s)", reason[:160])
                function = module
                output = module(*inputs)
            has_run = True
            return output

        return call

    def seed_everything(self, seed: int) -> None:
        """Seed PyTorch's global generators, which initial weights and dropout draw from."""
        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The state of the global generators, for a checkpoint."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Go back to a stored state; what a checkpoint of another device lacks stays as it is."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        elif self.device.type == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"])

    def peak_bytes(self) -> int | None:
        """The most memory taken so far: by tensors on a CUDA device, elsewhere by the process; None on Windows."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return None
        import resource  # which Windows has not

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @contextmanager
    def watch_signals(self) -> Iterator[None]:
        """Within the block signals only ask to stop, as in `reid_eval.stopping`, and so does the end of `max_hours`."""
        with stopping.stoppable(self._max_hours, began_s=self._began_s):
            yield

    def stop_reason(self) -> str | None:
        """Why the work of the blocks around should save and leave now, or None."""
        return stopping.stop_reason()

    def keep_freed_memory(self) -> None:
        """On a CPU let the C library keep large blocks that are freed, instead of giving them back to the system.

        A step asks for the same maps again and again, and pages fresh from the system are filled with zeros first: up
        to a fifth of the time. The most that is in use at once stays what it was. Of glibc alone; elsewhere nothing.
        It changes the whole process, so commands ask for it, and functions do not.
        """
        if self.device.type != "cpu":
            return
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError, TypeError):  # another C library, or another system
            return
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 64 << 20)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: no such device here; those that exist are named.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available = [f"cuda:{number}" for number in range(torch.cuda.device_count())] + available
    if name == "auto":
        return torch.device(available[0])
    if name in available or (name == "cuda" and "cuda:0" in available):
        return torch.device(name)
    raise ConfigError(f"--device {name}: not available here; choose from auto, {', '.join(available)}")
