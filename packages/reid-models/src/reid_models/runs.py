"""What a training run leaves on disk, and how it is found again.

    runs/teacher/
        run.json                    what kind of run, on which data, made by which versions
        config.yaml                 the resolved settings, written before the first step
        log.jsonl                   one JSON object per logged iteration
        checkpoints/00001000.pt     tensors and plain containers only, written atomically
        samples/  tensorboard/

    run = RunDir.create(Path("runs/teacher"), config, kind="reid", made_by={...}, resume=False)
    run.save(checkpoint)
    weights = RunDir.open("runs/teacher").load("last").networks["reid"]

`Checkpoint` files load with `weights_only=True`: nothing in them can run code. torch is imported by reading and writing
them only, so that a run can be found without it.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from reid_eval.errors import OutputError, ReidError
from reid_eval.files import atomic_path, save_image, write_text
from reid_eval.outputs import claim_folder
from reid_models.config import config_dict, config_from_dict, dump_config, load_config, settings_difference

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")
logger = logging.getLogger(__name__)

RUN_FORMAT = 1
CHECKPOINT_FORMAT = 1
_CHECKPOINT_NAME = re.compile(r"(\d{8,})\.pt")


class CheckpointError(ReidError):
    """A run or a checkpoint is missing, damaged, or not of the kind that was asked for."""


class _DamagedError(CheckpointError):
    """The file is there and can be read, but holds no checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to use a run, or to go on as if it had never stopped.

    Holds tensors and plain containers only. `iteration` counts finished optimiser steps. `schedules` is for schedules
    with a state of their own; it is empty where the learning rate is a function of the iteration. `progress` is the
    trainer's own state (epoch, best value). `made_by` names package versions and the data.
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
        import torch

        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        # Through a stream of our own a full disk is told as such; by itself PyTorch's zip writer hides the reason.
        with atomic_path(file) as part, part.open("wb") as stream:
            try:
                torch.save(values, stream)
            except RuntimeError as error:
                raise OSError(f"PyTorch could not write it: {str(error).splitlines()[0]}") from error

    @classmethod
    def load(cls, file: Path | str) -> Checkpoint:
        """Read a checkpoint onto the CPU.

        Raises:
            CheckpointError: no such file, cut off, of an unknown format, or no checkpoint of ours.
        """
        import torch

        file = Path(file)
        if not file.is_file():
            raise CheckpointError(f"{file}: no such checkpoint")
        try:
            values = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever zip, pickle or the file system raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            # A file cut short makes PyTorch seek before its start: EINVAL. Other refusals say nothing of what it holds.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise CheckpointError(f"{file}: cannot be read ({error.strerror or reason})") from None
            raise _DamagedError(f"{file}: damaged or no checkpoint ({reason[:120]})") from None
        if not isinstance(values, dict) or not {"kind", "iteration", "networks", "format"} <= values.keys():
            raise _DamagedError(f"{file}: holds no checkpoint of a run (expected kind, iteration, networks, format)")
        if values["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{file}: checkpoint format {values['format']}, this version reads {CHECKPOINT_FORMAT}; "
                "use the version that wrote it"
            )
        return cls(**values)


class RunDir:
    """One training run on disk. Make one with `create`, find one with `open`."""

    def __init__(self, path: Path, kind: str, made_by: Mapping[str, Any]) -> None:
        self.path, self.kind, self.made_by = path, kind, dict(made_by)
        self.config_file = path / "config.yaml"
        self.log_file = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self._writer: SummaryWriter | None = None
        self._resumed_at: int | None = None

    @classmethod
    def create(
        cls, path: Path | str, config: Any, *, kind: str, made_by: Mapping[str, Any], resume: bool = False
    ) -> RunDir:
        """Start a run in a new or empty folder, or return to it with `resume` under the same settings and data.

        `made_by` holds plain values; its entries `index_fingerprint`, `weights`, `teachers` and `extra`, when given,
        must not change on resume.

        Raises:
            OutputError: the folder holds other files, or a run already and `resume` is not set; or it cannot be made.
            CheckpointError: resuming with other settings, another kind, other data, other teachers, or other weights to
                start from.
        """
        path = Path(path)
        with _writing(path, "choose another --out"):
            claim_folder(path, "run.json", what="a run", is_ours=_is_identity)
        run = cls(path, kind, made_by)
        if (path / "run.json").exists() and run.config_file.exists():
            stored = cls.open(path, kind)
            if not resume:
                state = f"a run at iteration {stored.iterations()[-1]}" if stored.iterations() else "a run"
                raise OutputError(f"{path}: already holds {state}; continue it with --resume or choose another --out")
            _refuse_changes(stored, config, made_by)
            return run
        identity = {"format": RUN_FORMAT, "kind": kind, "made_by": dict(made_by)}
        with _writing(path, "choose another --out"):
            write_text(path / "run.json", json.dumps(identity, indent=2) + "\n")
            dump_config(config, run.config_file)
        return run

    @staticmethod
    def set_aside(path: Path | str) -> Path | None:
        """Rename an earlier run, RUN to RUN.old-1 or the next free number; returns where it went, None without one.

        Raises:
            CheckpointError: what is there is no run.
            OutputError: it cannot be renamed.
        """
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return None
        RunDir.open(path)
        targets = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
        target = next(target for target in targets if not target.exists())
        with _writing(path, "move it yourself, or choose another --out"):
            path.rename(target)
        return target

    @classmethod
    def open(cls, path: Path | str, kind: Literal["reid", "dgnet"] | str | None = None) -> RunDir:
        """Find an existing run.

        Raises:
            CheckpointError: there is none (those nearby are listed), or it is of another kind.
        """
        path = Path(path)
        file = path / "run.json"
        if not file.is_file():
            nearby = sorted({str(found.parent) for found in _runs_near(path)})
            hint = f"runs nearby: {', '.join(nearby[:8])}" if nearby else "train one first"
            raise CheckpointError(f"{path}: no run here (run.json is missing); {hint}")
        try:
            identity = json.loads(file.read_text(encoding="utf-8"))
            found_format, found_kind = identity["format"], identity["kind"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{file}: damaged; expected a JSON object with format and kind") from None
        if found_format != RUN_FORMAT:
            raise CheckpointError(f"{file}: run format {found_format}, this version reads {RUN_FORMAT}")
        if kind is not None and found_kind != kind:
            raise CheckpointError(f"{path}: is a {found_kind!r} run, expected a {kind!r} run")
        return cls(path, found_kind, identity.get("made_by", {}))

    def config(self, cls: type[T]) -> T:
        """The settings the run was started with."""
        return load_config(cls, self.config_file)

    def iterations(self) -> list[int]:
        """The iterations that have a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (_CHECKPOINT_NAME.fullmatch(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def checkpoint_file(self, which: int | Literal["last", "best"]) -> Path:
        """The file of one checkpoint: an iteration, "last", or "best" (where the trainer keeps one).

        Raises:
            CheckpointError: there is none; those that exist are listed.
        """
        available = self.iterations()
        if which == "best":
            file = self.checkpoints / "best.pt"
            if file.is_file():
                return file
        if not available:
            raise CheckpointError(f"{self.path}: has no checkpoint yet; train until it has saved one")
        if which == "best":
            raise CheckpointError(
                f"{self.path}: no best checkpoint (a re-ID run keeps one from its first evaluation on); "
                f"choose last, or an iteration: {_listed(available)}"
            )
        if which != "last" and which not in available:
            raise CheckpointError(
                f"{self.path}: no checkpoint of iteration {which}; there are {_listed(available)}"
                f"{', and best' if (self.checkpoints / 'best.pt').is_file() else ''}"
            )
        return self._file_of(available[-1] if which == "last" else which)

    def load(self, which: int | Literal["last", "best"] = "last") -> Checkpoint:
        """Read one checkpoint onto the CPU.

        Raises:
            CheckpointError: there is none, it is damaged, or not of this run's kind.
        """
        file = self.checkpoint_file(which)
        try:
            checkpoint = Checkpoint.load(file)
        except _DamagedError as error:
            others = [iteration for iteration in self.iterations() if self._file_of(iteration) != file]
            if which == "best" or not others:
                remedy = f"choose last, or an iteration: {_listed(others)}" if others else "remove it to start over"
            else:
                remedy = f"remove it to go on from iteration {others[-1]}"
            raise CheckpointError(f"{error}; {remedy}") from None
        if checkpoint.kind != self.kind:
            raise CheckpointError(f"{self.path}: a {checkpoint.kind!r} checkpoint lies in a {self.kind!r} run")
        return checkpoint

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write a checkpoint under its iteration, or as the best one so far."""
        file = self.checkpoints / "best.pt" if best else self._file_of(checkpoint.iteration)
        checkpoint.save(file)
        return file

    def keep_last(self, count: int, *, every: int = 0) -> None:
        """Remove this run's older numbered checkpoints, all but the newest `count` (at least 1).

        Those at multiples of `every` stay too; 0 for none.
        """
        for iteration in self.iterations()[: -max(count, 1)]:
            if not (every and iteration % every == 0):
                self._file_of(iteration).unlink(missing_ok=True)

    def resume_from(self) -> Checkpoint | None:
        """The newest checkpoint, with log and TensorBoard cut back to it; None, and a warning, when there is none yet.

        A damaged newest checkpoint is an error that names it: going back in silence would lose work unseen. What a
        killed process left half written is removed.
        """
        checkpoint = self.load("last") if self.iterations() else None
        if checkpoint is None:
            logger.warning("%s: no checkpoint to go on from, so the training starts from the beginning", self.path)
        self._resumed_at = checkpoint.iteration if checkpoint else 0
        for part in [*self.path.glob(".*.part"), *self.path.glob("*/.*.part")]:
            part.unlink(missing_ok=True)
        if self.log_file.is_file():
            text = self.log_file.read_text(encoding="utf-8")
            kept = "".join(f"{line}\n" for line in text.splitlines() if _iteration_of(line) <= self._resumed_at)
            if kept != text:
                write_text(self.log_file, kept)
        return checkpoint

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append scalars to log.jsonl and TensorBoard."""
        numbers = {name: float(value) for name, value in values.items()}
        with _writing(self.log_file), self.log_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"iteration": iteration, **numbers}) + "\n")
        with _writing(self.path / "tensorboard"):
            for name, value in numbers.items():
                self._tensorboard().add_scalar(name, value, iteration)

    def read_log(self) -> list[dict[str, float]]:
        """The logged lines, oldest first; a last line cut off by a kill is left out."""
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if _iteration_of(line) < _NEVER]

    def sample(self, iteration: int, name: str, pixels: np.ndarray) -> Path:
        """Save a picture (uint8, RGB, (H, W, 3)) under samples/ and show it in TensorBoard."""
        file = self.samples / f"{name}_{iteration:08d}.png"
        save_image(file, pixels)
        with _writing(self.path / "tensorboard"):
            self._tensorboard().add_image(name, pixels, iteration, dataformats="HWC")
        return file

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with _writing(self.path / "tensorboard"):
                writer.close()

    def _file_of(self, iteration: int) -> Path:
        return self.checkpoints / f"{iteration:08d}.pt"

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            _leave_write_errors_to_the_caller()
            # Steps after the checkpoint that a run went on from are hidden: they are done and logged again.
            purge_step = None if self._resumed_at is None else self._resumed_at + 1
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)
        return self._writer


@contextmanager
def _writing(target: Path, remedy: str = "free some space and run again") -> Iterator[None]:
    """Say which file or folder could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: could not be written ({error.strerror or error}); nothing that existed was changed; {remedy}"
        ) from error


@cache
def _leave_write_errors_to_the_caller() -> None:
    """TensorBoard raises what its thread could not write in the next call; the thread's own traceback says it twice."""
    tell = threading.excepthook

    def tell_others(told: threading.ExceptHookArgs) -> None:
        from_tensorboard = type(told.thread).__module__.startswith("tensorboard.")
        if not (from_tensorboard and isinstance(told.exc_value, OSError)):
            tell(told)

    threading.excepthook = tell_others


_NEVER = 1 << 62


def _is_identity(file: Path) -> bool:
    """Whether a run.json is of a run, if perhaps damaged; not that of another program."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # `RunDir.open` says that it is damaged
    return isinstance(found, dict) and {"format", "kind"} <= found.keys()


def _iteration_of(line: str) -> int:
    """The iteration of a log line; a line that a kill has cut off belongs to none."""
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return _NEVER


def _listed(iterations: list[int]) -> str:
    if not iterations:
        return "none yet"
    texts = [str(iteration) for iteration in iterations]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:4], "...", *texts[-4:]])


def _runs_near(path: Path) -> list[Path]:
    """run.json files below `path`, or beside it when it does not exist."""
    root = path if path.is_dir() else path.parent
    return [*root.glob("run.json"), *root.glob("*/run.json"), *root.glob("*/*/run.json")] if root.is_dir() else []


def _refuse_changes(stored: RunDir, config: Any, made_by: Mapping[str, Any]) -> None:
    before = config_dict(config_from_dict(type(config), config_dict(stored.config(type(config)))))
    changed = settings_difference(before, config_dict(config))
    if changed:
        raise CheckpointError(
            f"{stored.path}: cannot resume with other settings ({'; '.join(changed)}); "
            "use the run's own settings or another --out"
        )
    old, new = stored.made_by.get("index_fingerprint"), made_by.get("index_fingerprint")
    if old != new:
        raise CheckpointError(
            f"{stored.path}: cannot resume on other data (fingerprint {old} -> {new}); "
            "use the data it was started on or another --out"
        )
    old, new = stored.made_by.get("weights"), made_by.get("weights")
    if old != new:
        raise CheckpointError(
            f"{stored.path}: cannot resume with other weights to start from ({_told(old)} -> {_told(new)}); "
            "give the --weights and --drop it was started with, or another --out"
        )
    old, new = stored.made_by.get("extra"), made_by.get("extra")
    if old != new:
        raise CheckpointError(
            f"{stored.path}: cannot resume with other generated pictures ({_extra(old)} -> {_extra(new)}); "
            "give the --extra-data, --ratio, --labels and --teacher it was started with, or another --out"
        )
    old, new = (_files(made.get("teachers")) for made in (stored.made_by, made_by))
    if old != new:
        raise CheckpointError(
            f"{stored.path}: cannot resume with other teachers ({old} -> {new}); "
            "give the --teacher it was started with, or another --out"
        )


def _files(teachers: list[dict[str, Any]] | None) -> str:
    return ", ".join(f"{teacher['file']} {teacher['fingerprint']}" for teacher in teachers or ()) or "none"


def _extra(made_by: Mapping[str, Any] | None) -> str:
    if made_by is None:
        return "none"
    return " ".join(f"{name} {value}" for name, value in made_by.items() if value is not None)


def _told(start: Mapping[str, Any] | None) -> str:
    return "none" if start is None else " without ".join([str(start["file"]), *start["dropped"]])
