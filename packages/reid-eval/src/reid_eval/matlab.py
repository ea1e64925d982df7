"""MATLAB files (5 to 7), read by a process of its own: SciPy's reader can be made to crash, or to take all memory.

    with open_mat("pytorch_result.mat", FeatureFileError) as arrays:
        arrays["query_f"]

Whatever ends that process, a crash too, is one line here. It is asked for an array at a time, so those that nobody
needs are not read.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from reid_eval.arrays import Header, StoredArrays, read_body, read_header, refuse_disproportion
from reid_eval.errors import ReidError, reason_of
from reid_eval.reading import reading, refuse_irregular

_EXPECTED = "a .mat of MATLAB 5 to 7"
_HDF5 = b"\x89HDF\r\n\x1a\n"

# Enough for Python with SciPy and an array read, turned and sent; a file may pack to a fiftieth of it.
_MEMORY_BYTES, _MEMORY_RATIO = 2 << 30, 50
_SECONDS, _BYTES_PER_SECOND = 60.0, 1 << 20

# What MATLAB calls types, where they are smaller than its usual one.
_TYPES = {
    **dict.fromkeys(("int8", "uint8", "logical"), np.uint8),
    **dict.fromkeys(("int16", "uint16"), np.uint16),
    **dict.fromkeys(("int32", "uint32", "single", "char"), np.uint32),
}

# The child finds the same packages as we do, and nothing that lies where the command was started.
_CHILD = "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); from reid_eval.matlab import answer; answer()"


class MatArrays(StoredArrays):
    """The arrays of a MATLAB file, from the process that reads it."""

    def __init__(self, child: subprocess.Popen[bytes], file: Path, error: type[ReidError]) -> None:
        self._child, self._file, self._error = child, file, error
        self._headers = {
            name: Header(tuple(shape), np.dtype(_TYPES.get(kind, np.float64))) for name, shape, kind in self._listing()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def _listing(self) -> list[tuple[str, list[int], str]]:
        return self._receive()["arrays"]

    def header(self, name: str) -> Header:
        return self._headers[name]

    def __getitem__(self, name: str) -> np.ndarray:
        header = self._headers[name]
        refuse_disproportion(self._file, name, header.nbytes, self._file.stat().st_size, self._error)
        with reading(self._file, self._error, _EXPECTED), self._or_its_death():
            assert self._child.stdin is not None
            os.write(self._child.stdin.fileno(), json.dumps(name).encode() + b"\n")
            self._receive()
            return read_body(self._stdout, read_header(self._stdout))

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None
        return self._child.stdout

    def _receive(self) -> dict[str, Any]:
        """The child's next line, or what it died of."""
        with reading(self._file, self._error, _EXPECTED), self._or_its_death():
            said = json.loads(self._stdout.readline())
        if "error" in said:
            raise self._error(
                f"{self._file}: cut off or damaged ({said['error']}); expected {_EXPECTED}; write it again"
            )
        return said

    @contextmanager
    def _or_its_death(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)
            if not (code := self._child.poll()):
                raise
            died = f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
            if -code == signal.SIGKILL:  # by `open_mat`, or by a system without memory
                died = "took too much time or memory"
            raise self._error(
                f"{self._file}: damaged: the process that read it {died}; expected {_EXPECTED}; write it again"
            ) from error


def begins_like_mat(start: bytes) -> bool:
    """Whether a file that begins so is of MATLAB 5 and later."""
    return start.startswith(b"MATLAB ") or _HDF5 in start


@contextmanager
def open_mat(file: Path | str, error: type[ReidError]) -> Iterator[MatArrays]:
    """The arrays of a MATLAB file, within the block.

    Raises:
        error: the file is missing, damaged, of MATLAB 7.3, or takes too much memory or time; while arrays are read too.
    """
    file = Path(file)
    size = refuse_irregular(file, error, _EXPECTED)
    with reading(file, error, _EXPECTED), file.open("rb") as stream:
        start = stream.read(1024)
    if not start:
        raise error(f"{file}: is empty; expected {_EXPECTED}")
    if _HDF5 in start or b"MATLAB 7.3" in start:
        raise error(
            f"{file}: a .mat of MATLAB 7.3 (HDF5), expected one of MATLAB 5 to 7; save it again with -v7, or with "
            "scipy.io.savemat"
        )
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, "\n".join(sys.path), str(file), str(_MEMORY_BYTES + _MEMORY_RATIO * size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    with child:
        overdue = threading.Timer(_SECONDS + size / _BYTES_PER_SECOND, child.kill)
        overdue.daemon = True
        overdue.start()
        try:
            yield MatArrays(child, file, error)
        finally:
            overdue.cancel()
            child.kill()


def answer() -> None:
    """The child: say what the file of the command line holds, then each array whose name is a line of the input."""
    file, max_memory = sys.argv[1], int(sys.argv[2])
    _limit_memory(max_memory)
    from scipy.io import whosmat

    output = sys.stdout.buffer
    try:
        _say(output, {"arrays": [(name, [int(n) for n in shape], kind) for name, shape, kind in whosmat(file)]})
        for line in sys.stdin.buffer:
            array = _plain(file, json.loads(line))
            _say(output, {})
            np.lib.format.write_array_header_1_0(output, np.lib.format.header_data_from_array_1_0(array))
            output.write(array.reshape(-1).view(np.uint8).data)
            output.flush()
    except Exception as error:  # damaged files make SciPy's reader fail in many ways
        _say(output, {"error": reason_of(error)})


def _plain(file: str, name: str) -> np.ndarray:
    """An array of a file; a cell of texts as an array of texts."""
    from scipy.io import loadmat

    array = np.asarray(loadmat(file, variable_names=[name])[name])
    cells = [np.ravel(cell) for cell in array.ravel()] if array.dtype.kind == "O" else []
    is_text = all(len(cell) == 1 and cell.dtype.kind == "U" for cell in cells if len(cell))
    if array.dtype.kind not in "fiubU" and not (cells and is_text):
        raise ValueError(f"{name} is sparse, complex, a structure or a cell, expected numbers or texts")
    if cells:
        return np.array([str(cell[0]) if len(cell) else "" for cell in cells], dtype=np.str_)
    return np.ascontiguousarray(array)


def _say(output: IO[bytes], values: dict[str, Any]) -> None:
    output.write(json.dumps(values).encode() + b"\n")
    output.flush()


def _limit_memory(max_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
