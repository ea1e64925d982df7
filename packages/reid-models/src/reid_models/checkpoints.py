"""One checkpoint of a training: written whole, and read only if every bit is as it was written.

    Checkpoint("reid", 1000, config, {"reid": network.state_dict()}).save("teacher.pt")
    checkpoint = Checkpoint.load("runs/teacher/checkpoints/00001000.pt")
    load_state(network, checkpoint.network("reid"), "runs/teacher")

A file holds tensors and plain containers only and loads with `weights_only=True`: nothing in it can run code. A run
records what it wrote in `index.json` beside its checkpoints: iteration, size and SHA-256 of each. What is read is
compared with that record where there is one, and always with the checksums that the file itself holds.
torch is imported by reading and writing only.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid_eval.errors import ReidError, reason_of
from reid_eval.files import atomic_path, file_fingerprint, write_text
from reid_eval.reading import read_json_object, reading, refuse_irregular, sealed, unsealed, verify_zip

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT_FORMAT = 1
INDEX_FILE = "index.json"
MOST_IDS = 10_000_000
_INDEX_FORMAT = 1
_MOST_ITERATIONS = 1 << 62
_EXPECTED = "a checkpoint of a run"


class CheckpointError(ReidError):
    """A run or a checkpoint is missing, damaged, or not of the kind that was asked for."""


class DamagedError(CheckpointError):
    """The file is there, but not as it was written, or it holds no checkpoint."""


class DivergedError(ReidError):
    """A loss or a weight is not finite any more."""


@dataclass(frozen=True)
class Written:
    """What a run recorded of a checkpoint file that it wrote."""

    iteration: int
    bytes: int
    sha256: str
    passing: bool = False
    """kept until the next checkpoint only"""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to use a run, or to go on as if it had never stopped.

    Holds tensors and plain containers only. `iteration` counts finished optimiser steps. `schedules` is for schedules
    with a state of their own; it is empty where the learning rate is a function of the iteration. `progress` is the
    trainer's own state (epoch, best value). `made_by` names package versions, the data and the run.
    """

    kind: str
    iteration: int
    config: dict[str, Any]
    networks: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    format: int = CHECKPOINT_FORMAT

    def save(self, file: Path | str) -> None:
        """Write the checkpoint, whole or not at all."""
        with atomic_path(file) as part:
            self.write(part)

    def write(self, file: Path) -> Written:
        """Write the checkpoint where a file may be half written, and say what it should hold now."""
        import torch

        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        # Through a stream of our own a full disk is told as such; by itself PyTorch's zip writer hides the reason.
        with file.open("wb") as stream:
            hashing: Any = _HashingStream(stream)
            try:
                torch.save(values, hashing)
            except RuntimeError as error:
                if hashing.error is not None:
                    raise hashing.error from None
                raise OSError(f"PyTorch could not write it: {str(error).splitlines()[0]}") from error
        return Written(self.iteration, hashing.written, hashing.digest.hexdigest())

    @classmethod
    def load(cls, file: Path | str) -> Checkpoint:
        """Read a checkpoint onto the CPU, if it is as it was written.

        Raises:
            CheckpointError: no such file, damaged, another than the run recorded, of an unknown format, or no
                checkpoint of ours.
        """
        checkpoint = cls.read(file)
        refuse_unrecorded(Path(file))
        return checkpoint

    @classmethod
    def read(cls, file: Path | str) -> Checkpoint:
        """The same without a look at what the run recorded.

        Raises:
            CheckpointError: no such file, damaged, of an unknown format, or no checkpoint of ours.
        """
        file = Path(file)
        if not file.exists():
            raise CheckpointError(f"{file}: no such checkpoint")
        refuse_irregular(file, CheckpointError, _EXPECTED)
        _verify(file)
        values = _load(file)
        wanted = ("kind", "iteration", "config", "networks", "format")
        if not isinstance(values, dict) or not values.keys() >= set(wanted):
            raise DamagedError(f"{file}: holds no checkpoint of a run (expected {', '.join(wanted)})")
        if values["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{file}: checkpoint format {_found(values['format'])}, this version reads {CHECKPOINT_FORMAT}; "
                "use the version that wrote it"
            )
        if odd := next(_odd(values), None):
            raise DamagedError(f"{file}: holds no checkpoint of a run ({odd})")
        return cls(**{entry.name: values[entry.name] for entry in dataclasses.fields(cls) if entry.name in values})

    def num_ids(self, source: Path | str) -> int:
        """How many people the networks tell apart; `source` names the checkpoint in an error.

        Raises:
            CheckpointError: it does not tell.
        """
        if "num_ids" not in self.made_by:
            raise CheckpointError(f"{source}: the checkpoint of iteration {self.iteration} does not tell num_ids")
        return int(self.made_by["num_ids"])

    def network(self, *names: str, source: Path | str) -> dict[str, Tensor]:
        """The weights of the first of some networks that there is.

        Raises:
            CheckpointError: there is none of them.
        """
        for name in names:
            if name in self.networks:
                return self.networks[name]
        found = ", ".join(self.networks)
        raise CheckpointError(f"{source}: holds no {names[-1]} network at iteration {self.iteration} (found {found})")


class _HashingStream:
    """A file that is written from its beginning to its end, and the SHA-256 of what was written."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.digest, self.written = stream, hashlib.sha256(), 0
        self.error: OSError | None = None
        """why the disk took no more, which PyTorch does not pass on"""

    def write(self, data: Any) -> int:
        try:
            self.stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.written += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        self.stream.flush()


def _verify(file: Path) -> None:
    """Compare the checksums in the file with what it holds."""
    try:
        verify_zip(file, CheckpointError, _EXPECTED)
    except CheckpointError as error:
        cause = error.__context__
        if cause is None:  # a checksum that does not fit
            raise DamagedError(f"{file}: damaged or no checkpoint ({str(error).removeprefix(f'{file}: ')})") from None
        raise _unreadable(file, cause) from None


def _load(file: Path, *, mapped: bool = False) -> Any:
    """What torch.load makes of a file; `mapped` leaves tensors on the disk."""
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever zip, pickle or the file system raise
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: BaseException) -> CheckpointError:
    # A file cut short makes PyTorch seek before its start: EINVAL. Other refusals say nothing of what it holds.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return CheckpointError(f"{file}: cannot be read ({error.strerror or reason_of(error)})")
    return DamagedError(f"{file}: damaged or no checkpoint ({reason_of(error)[:120]})")


def _odd(values: Mapping[str, Any]) -> Iterator[str]:
    """What is not as in a checkpoint of ours."""
    if not isinstance(values["kind"], str):
        yield f"kind is {_found(values['kind'])}, expected a text"
    iteration = values["iteration"]
    if type(iteration) is not int or not 0 <= iteration < _MOST_ITERATIONS:
        yield f"iteration is {_found(iteration)}, expected a number of steps"
    for name in ("config", "networks", "optimizers", "schedules", "rng", "progress", "made_by"):
        entry = values.get(name, {})
        if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
            yield f"{name} is {_found(entry)}, expected entries with names"
    for name in ("networks", "optimizers", "schedules"):
        for key, entry in values.get(name, {}).items():
            if not isinstance(entry, dict):
                yield f"{name}.{key} is {_found(entry)}, expected a dict"
    if not values["networks"]:
        yield "networks are none"
    for network, state in values["networks"].items():
        for name, value in state.items():
            if not isinstance(name, str) or not _is_plain_tensor(value):
                yield f"networks.{network} holds {name!r}: {_found(value)}, expected names and plain tensors"
    num_ids = values.get("made_by", {}).get("num_ids", 1)
    if type(num_ids) is not int or not 1 <= num_ids <= MOST_IDS:
        yield f"made_by.num_ids is {_found(num_ids)}, expected a number of people"


def _is_plain_tensor(value: Any) -> bool:
    import torch

    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return is_plain and not (value.is_quantized or value.is_complex() or value.is_meta)


def _found(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, (str, int, float)) or value is None else type(value).__name__


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Fill a network with all of its weights, and no others.

    Raises:
        CheckpointError: names or shapes are not those of the network.
    """
    try:
        network.load_state_dict(dict(state))
    except Exception as error:  # of names and shapes, and whatever odd tensors make of it
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: its weights do not fit the network of its settings ({reason})") from None


def finite_states(networks: Mapping[str, nn.Module], iteration: int, remedy: str) -> dict[str, dict[str, Tensor]]:
    """The weights of some networks on the CPU, for a checkpoint.

    Raises:
        DivergedError: one is not finite; a checkpoint of it would be of no use.
    """
    states = {name: network.state_dict() for name, network in networks.items()}
    for state in states.values():
        for name, value in state.items():
            if not value.isfinite().all():
                raise DivergedError(f"{name} is not finite after iteration {iteration}, so it is not saved; {remedy}")
    return {name: {key: value.detach().cpu() for key, value in state.items()} for name, state in states.items()}


@dataclass(frozen=True)
class Glance:
    """What a checkpoint says of itself, unverified; `iteration` is None where a file holds something else."""

    iteration: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)


def glance(file: Path) -> Glance | None:
    """Look into a checkpoint without reading its tensors; None when it is damaged."""
    state = file.stat()
    return _glance(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _glance(file: Path, size: int, changed_ns: int) -> Glance | None:
    try:
        values = _load(file, mapped=True)
    except CheckpointError:
        return None
    if not isinstance(values, dict) or not values.keys() >= {"kind", "iteration"}:
        return Glance()
    config, made_by = values.get("config"), values.get("made_by", {})
    if type(values["iteration"]) is not int or not isinstance(config, dict) or not isinstance(made_by, dict):
        return None
    return Glance(values["iteration"], config, made_by)


# --- what a run recorded --------------------------------------------------------------------------------------------

Record = dict[str, tuple[Written, ...]]
"""What was written under each name. While a file is replaced there are two, the earlier and the new one."""


def read_record(folder: Path) -> Record | None:
    """What a run recorded of its checkpoints; None where there is no record, or a file of somebody else.

    Raises:
        CheckpointError: the record is damaged.
    """
    file = folder / INDEX_FILE
    if not file.exists():
        return None
    expected = "the record of a run's checkpoints"
    try:
        if "checkpoints" not in read_json_object(file, CheckpointError, expected):
            return None
        values = unsealed(file, CheckpointError, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; without it, checkpoints are found by their names") from None
    with reading(file, CheckpointError, expected):
        if values["format"] != _INDEX_FORMAT:
            raise CheckpointError(f"{file}: format {values['format']}, this version reads {_INDEX_FORMAT}")
        return {name: tuple(Written(**one) for one in written) for name, written in values["checkpoints"].items()}


def write_record(folder: Path, record: Record) -> None:
    """Write what a run has recorded of its checkpoints."""
    plain = {name: [dataclasses.asdict(one) for one in written] for name, written in sorted(record.items())}
    write_text(folder / INDEX_FILE, sealed({"format": _INDEX_FORMAT, "checkpoints": plain}))


def describe(file: Path, iteration: int) -> Written:
    """What is to be recorded of a checkpoint that lies there already."""
    return Written(iteration, os.stat(file).st_size, file_fingerprint(file))


def refuse_unrecorded(file: Path) -> None:
    """See that a checkpoint is what the run that it lies in recorded under this name, if that recorded anything.

    Raises:
        DamagedError: it is not.
        CheckpointError: the record is damaged.
    """
    # The file first: a training that goes on meanwhile records a file before it puts it there.
    sha256 = file_fingerprint(file) if (file.parent / INDEX_FILE).exists() else ""
    written = (read_record(file.parent) or {}).get(file.name)
    if written and sha256 not in {one.sha256 for one in written}:
        raise DamagedError(
            f"{file}: not the checkpoint that this run wrote here (its SHA-256 is not that in "
            f"{file.parent.name}/{INDEX_FILE}); it was damaged or replaced"
        )
