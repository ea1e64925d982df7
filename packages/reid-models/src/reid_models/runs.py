"""What a training run leaves on disk, and how it is found again.

    runs/teacher/
        run.json                    what kind of run, on which data, made by which versions
        config.yaml                 the resolved settings, written before the first step
        log.jsonl                   one JSON object per logged iteration
        checkpoints/00001000.pt     tensors and plain containers only, written atomically
        checkpoints/index.json      what the run wrote there: only that is its own, and is ever removed
        samples/  tensorboard/

    with RunDir.training("runs/teacher", config, kind="reid", made_by={...}, by="reid-models train") as run:
        run.save(checkpoint)                    # nobody else writes here meanwhile
    weights = RunDir.open("runs/teacher").load("last").network("reid", source="runs/teacher")

torch is imported by reading and writing checkpoints only, so that a run can be found without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from reid_eval.errors import OutputError, ReidError
from reid_eval.files import atomic_path, fingerprint, remove_abandoned, save_image, write_text
from reid_eval.locks import locked
from reid_eval.outputs import claim_folder, refuse_foreign_folder
from reid_eval.progress import say
from reid_eval.reading import read_json_object, reading
from reid_models.checkpoints import (
    Checkpoint,
    CheckpointError,
    DamagedError,
    Record,
    describe,
    glance,
    read_record,
    refuse_unrecorded,
    write_record,
)
from reid_models.config import config_dict, config_from_dict, dump_config, load_config, settings_difference
from reid_models.resuming import extending_settings, fixed_settings, other_origin, refuse_other_origin

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Checkpoint", "CheckpointError", "RunDir"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

RUN_FORMAT = 1
KINDS = ("reid", "dgnet")
_CHECKPOINT_NAME = re.compile(r"(\d{8,})\.pt")
_BEST = "best.pt"


class RunDir:
    """One training run on disk. Make one with `training` or `create`, find one with `open`.

    `id` is a hash of what decides the run, kept in its run.json and its checkpoints; empty in runs of earlier versions.
    """

    def __init__(self, path: Path, kind: str, made_by: Mapping[str, Any], run_id: str = "") -> None:
        self.path, self.kind, self.made_by, self.id = path, kind, dict(made_by), run_id
        self.config_file = path / "config.yaml"
        self.log_file = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.changes: list[str] = []
        """settings that have changed as this run was gone on with: texts such as max_iter: 30 -> 40"""
        self._config: Any = None
        self._writer: SummaryWriter | None = None
        self._resumed_at: int | None = None

    @classmethod
    @contextmanager
    def training(
        cls,
        path: Path | str,
        config: Any,
        *,
        kind: str,
        made_by: Mapping[str, Any],
        by: str,
        resume: bool = False,
        reset: bool = False,
    ) -> Iterator[RunDir]:
        """`create` a run and be the only one to write to it within the block; `by` is who does so, for others to read.

        `reset` first moves an earlier run of this name aside.

        Raises:
            BusyError: somebody trains it.
            OutputError, CheckpointError: as `create` and `set_aside`.
        """
        path = Path(path)
        cls.find(path, kind, resume=resume, reset=reset)
        if reset:
            cls.set_aside(path, by)
        with _writing(path, "choose another --out"):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path, by):
            run = cls.create(path, config, kind=kind, made_by=made_by, resume=resume)
            try:
                yield run
            finally:
                run.close()

    @classmethod
    def find(cls, path: Path | str, kind: str, *, resume: bool = False, reset: bool = False) -> RunDir | None:
        """The run to go on with in a folder that is to hold one; None where a new one may begin. Nothing is changed.

        Raises:
            OutputError: the folder holds other files, or a run already and neither `resume` nor `reset` is set.
            CheckpointError: the run is damaged, or of another kind.
        """
        path = Path(path)
        with _writing(path, "choose another --out"):
            refuse_foreign_folder(path, "run.json", what="a run", is_ours=_is_identity)
            if not (path / "run.json").exists():
                return None
        if reset:
            _refuse_present_folder(path)
            cls.open(path)
            return None
        stored = cls.open(path, kind)
        iterations = stored.iterations()
        if not (iterations or stored.config_file.exists() or stored.log_file.exists()):
            return stored if resume else None  # killed before it had written its settings
        if not resume:
            state = f"a run at iteration {iterations[-1]}" if iterations else "a run"
            raise OutputError(
                f"{path}: already holds {state}; continue it with --resume, move it aside with --reset, or choose "
                "another --out"
            )
        return stored

    @classmethod
    def create(
        cls, path: Path | str, config: Any, *, kind: str, made_by: Mapping[str, Any], resume: bool = False
    ) -> RunDir:
        """Start a run in a new or empty folder, or return to it with `resume` under the same settings and data.

        `made_by` holds plain values; its entries `index_fingerprint`, `weights`, `teachers`, `extra` and `begun_with`,
        when given, must not change on resume. Settings that the class of `config` names in MAY_CHANGE may, and those in
        MAY_GROW may become larger: `resume_from` records that, and restores lost settings from the checkpoints.

        Raises:
            OutputError: the folder holds other files, or a run already and `resume` is not set; or it cannot be made.
            CheckpointError: resuming with other settings, another kind, other data, other teachers, or other weights to
                start from.
        """
        path = Path(path)
        stored = cls.find(path, kind, resume=resume)
        with _writing(path, "choose another --out"):
            claim_folder(path, "run.json", what="a run", is_ours=_is_identity)
        if stored is not None:
            return stored._go_on(config, made_by)
        run = cls(path, kind, made_by, _run_id(kind, config, made_by))
        run._config = config
        with _writing(path, "choose another --out"):
            run._write_identity()
            dump_config(config, run.config_file)
        return run

    def _go_on(self, config: Any, made_by: Mapping[str, Any]) -> RunDir:
        """This run for a training with these settings, if it may be gone on with them; nothing is written yet."""
        before = self._settings(type(config))
        refuse_other_origin(self.path, self.made_by, made_by)
        run = RunDir(self.path, self.kind, made_by, self.id)
        run._config = config
        run.changes = [] if before is None else extending_settings(self.path, before, config)
        return run

    def _write_settings(self, at: int) -> None:
        """Record settings that have changed at an iteration, and restore those that are lost."""
        is_lost = self._config is not None and not self.config_file.exists()
        if self.changes:
            self._write_identity({"iteration": at, "settings": self.changes})
            logger.warning("%s: goes on with %s", self.path, "; ".join(self.changes))
        if self.changes or is_lost:
            with _writing(self.path):
                dump_config(self._config, self.config_file)
        if is_lost and at:
            logger.warning("%s: was lost; restored from the checkpoints", self.config_file)

    def _settings(self, cls: type) -> dict[str, Any] | None:
        """The settings the run was last trained with; from the checkpoints where config.yaml is lost; None if both are.

        Raises:
            ConfigError: they are not of this class.
            CheckpointError: config.yaml is lost, and the checkpoints do not agree.
        """
        if self.config_file.exists():
            return config_dict(load_config(cls, self.config_file))
        files = sorted(self._files(), key=lambda file: file.name != _BEST)  # the newest last
        found = [(file, known.config) for file in files if (known := glance(file))]
        settings = [(file, config_dict(config_from_dict(cls, config, source=str(file)))) for file, config in found]
        for (earlier, old), (later, new) in itertools.pairwise(settings):
            if changed := settings_difference(fixed_settings(cls, old), fixed_settings(cls, new)):
                raise CheckpointError(
                    f"{self.config_file}: lost, and cannot be restored: {earlier.name} and {later.name} have other "
                    f"settings ({'; '.join(changed)}); move away what is not of this run"
                )
        return settings[-1][1] if settings else None

    def _write_identity(self, change: Mapping[str, Any] | None = None) -> None:
        """Write run.json; with `change`, what is there and a change of settings."""
        file = self.path / "run.json"
        if change is None:
            identity: dict[str, Any] = {"format": RUN_FORMAT, "kind": self.kind, "id": self.id, "made_by": self.made_by}
        else:
            identity = read_json_object(file, CheckpointError, _IDENTITY)
            earlier = identity.get("changes")
            identity["changes"] = [*(earlier if isinstance(earlier, list) else []), change]
        with _writing(self.path):
            write_text(file, json.dumps(identity, indent=2) + "\n")

    @staticmethod
    def set_aside(path: Path | str, by: str = "a reset") -> Path | None:
        """Rename an earlier run, RUN to RUN.old-1 or the next free number; returns where it went, None without one.

        Raises:
            CheckpointError: what is there is no run.
            OutputError: it cannot be renamed, somebody trains it, or we are in it.
        """
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return None
        _refuse_present_folder(path)
        RunDir.open(path)
        targets = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
        target = next(target for target in targets if not target.exists())
        with locked(path, by), _writing(path, "move it yourself, or choose another --out"):
            path.rename(target)
        (target / ".lock").unlink(missing_ok=True)  # it has moved along, and nobody holds it any more
        say(f"moved the earlier run to {target}")
        return target

    @classmethod
    def open(cls, path: Path | str, kind: Literal["reid", "dgnet"] | str | None = None) -> RunDir:
        """Find an existing run.

        Raises:
            CheckpointError: there is none (those nearby are listed), it is damaged, or it is of another kind.
        """
        path = Path(path)
        file = path / "run.json"
        if not file.exists():
            nearby = sorted({str(found.parent) for found in _runs_near(path)})
            hint = f"runs nearby: {', '.join(nearby[:8])}" if nearby else "train one first"
            raise CheckpointError(f"{path}: no run here (run.json is missing); {hint}")
        identity = read_json_object(file, CheckpointError, _IDENTITY)
        found_format, found_kind = identity.get("format"), identity.get("kind")
        if type(found_format) is not int or not isinstance(found_kind, str):
            raise CheckpointError(f"{file}: damaged; expected {_IDENTITY}")
        if found_format != RUN_FORMAT:
            raise CheckpointError(f"{file}: run format {found_format}, this version reads {RUN_FORMAT}")
        if kind is not None and found_kind != kind:
            raise CheckpointError(f"{path}: is a {found_kind!r} run, expected a {kind!r} run")
        with reading(file, CheckpointError, _IDENTITY):
            return cls(path, found_kind, _checked(identity.get("made_by", {})), _text(identity.get("id", ""), "id"))

    def config(self, cls: type[T], overrides: Sequence[str] = ()) -> T:
        """The settings the run was last trained with, changed by `section.key=value` texts.

        Raises:
            ConfigError: they are not of this class, or an override is none.
            CheckpointError: they are lost, and cannot be restored from the checkpoints.
        """
        settings = self._settings(cls)
        if settings is None:
            raise CheckpointError(f"{self.config_file}: not there, and no checkpoint tells the settings")
        return load_config(cls, self.config_file, overrides, values=settings)

    def data_place(self) -> Path:
        """Where the data lie that the run was trained on.

        Raises:
            CheckpointError: the run does not tell, or they were a table whose place was not recorded.
        """
        source, data = self.made_by.get("source"), self.made_by.get("data")
        if isinstance(source, str):
            return Path(source)
        if not isinstance(data, str):
            raise CheckpointError(f"{self.path}: does not tell where its data is; give it with --data")
        if self.made_by.get("layout") == "csv":
            raise CheckpointError(f"{self.path}: was trained on a table in {data}; give that .csv with --data")
        return Path(data)

    def iterations(self) -> list[int]:
        """The iterations that have a checkpoint, ascending.

        Raises:
            CheckpointError: the record of the checkpoints is damaged.
        """
        return [int(file.stem) for file in self._files() if file.name != _BEST]

    def is_passing(self, iteration: int) -> bool:
        """Whether the checkpoint of an iteration is kept until the next one only."""
        written = (read_record(self.checkpoints) or {}).get(self._file_of(iteration).name)
        return written is not None and written[-1].passing

    def has_best(self) -> bool:
        """Whether there is a best checkpoint."""
        return any(file.name == _BEST for file in self._files())

    def checkpoint_file(self, which: int | Literal["last", "best"]) -> Path:
        """The file of one checkpoint: an iteration, "last", or "best" (where the trainer keeps one).

        Raises:
            CheckpointError: there is none; those that exist are listed.
        """
        available = self.iterations()
        if which == "best" and self.has_best():
            return self.checkpoints / _BEST
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
                f"{', and best' if self.has_best() else ''}"
            )
        return self._file_of(available[-1] if which == "last" else which)

    def load(self, which: int | Literal["last", "best"] = "last") -> Checkpoint:
        """Read one checkpoint onto the CPU.

        Raises:
            CheckpointError: there is none, it is damaged, not as this run wrote it, or of another run.
        """
        file = self.checkpoint_file(which)
        try:
            checkpoint = Checkpoint.read(file)
            self._refuse_stranger(checkpoint, file)
            refuse_unrecorded(file)
        except DamagedError as error:
            others = [iteration for iteration in self.iterations() if self._file_of(iteration) != file]
            if which == "best" or not others:
                remedy = f"choose last, or an iteration: {_listed(others)}" if others else "remove it to start over"
            else:
                remedy = f"remove it to go on from iteration {others[-1]}"
            raise CheckpointError(f"{error}; {remedy}") from None
        return checkpoint

    def _refuse_stranger(self, checkpoint: Checkpoint, file: Path) -> None:
        """See that a checkpoint is of this run.

        Raises:
            CheckpointError: it is of another; says what differs.
        """
        if checkpoint.kind != self.kind:
            raise CheckpointError(f"{self.path}: a {checkpoint.kind!r} checkpoint lies in a {self.kind!r} run")
        if file.name != _BEST and int(file.stem) != checkpoint.iteration:
            raise DamagedError(f"{file}: holds iteration {checkpoint.iteration}, not the one it is named by")
        if differing := self._differences(checkpoint.config, checkpoint.made_by, file):
            raise DamagedError(f"{file}: is of another run ({'; '.join(differing)})")

    def _differences(self, config: Mapping[str, Any], made_by: Mapping[str, Any], file: Path) -> list[str]:
        """What a checkpoint of this run would not have; settings and data count when it is to be gone on with."""
        differing = []
        if self._config is not None:
            cls = type(self._config)
            theirs = config_dict(config_from_dict(cls, config, source=str(file)))
            differing = settings_difference(fixed_settings(cls, config_dict(self._config)), fixed_settings(cls, theirs))
            if "index_fingerprint" in made_by:
                differing += other_origin(self.made_by, made_by)
        if self.id and made_by.get("run_id", self.id) != self.id:
            differing.append(f"run: {self.id} -> {made_by['run_id']}")
        return differing

    def save(self, checkpoint: Checkpoint, *, best: bool = False, passing: bool = False) -> Path:
        """Write a checkpoint under its iteration, or as the best one so far.

        `passing` says that it is kept until the next one only.
        """
        if self.id:
            checkpoint = dataclasses.replace(checkpoint, made_by={**checkpoint.made_by, "run_id": self.id})
        file = self.checkpoints / _BEST if best else self._file_of(checkpoint.iteration)
        with atomic_path(file) as part:
            written = dataclasses.replace(checkpoint.write(part), passing=passing)
            # Recorded before it is there: killed in between, the earlier file of this name is still known.
            record = self._record()
            earlier = record.get(file.name, ())[-1:] if file.exists() else ()
            self._write_record({**record, file.name: (*earlier, written)}, new=file.name)
        return file

    def keep_last(self, count: int, *, every: int = 0) -> None:
        """Remove this run's older numbered checkpoints, all but the newest `count` (at least 1), and passing ones.

        Those at multiples of `every` stay too; 0 for none. The newest of all stays in any case.
        """
        record = read_record(self.checkpoints) or {}
        files = [file for file in self._files() if file.name in record and file.name != _BEST]
        regular = [file for file in files if not record[file.name][-1].passing]
        for_good = (file for file in regular if every and int(file.stem) % every == 0)
        kept = {*files[-1:], *regular[-max(count, 1) :], *for_good}
        for file in files:
            # Of another size, it is not what was written here: somebody has put it there.
            if file not in kept and file.stat().st_size in {one.bytes for one in record[file.name]}:
                file.unlink(missing_ok=True)

    def resume_from(self, *, expected: bool = False) -> Checkpoint | None:
        """The newest checkpoint, with log and TensorBoard cut back to it; None when there is none yet.

        `expected` says that there was one before the run was locked.

        A damaged newest checkpoint is an error that names it: going back in silence would lose work unseen. What a
        killed process left half written is removed.

        Raises:
            CheckpointError: it is damaged, of other settings, other data or another run, or expected and gone.
        """
        checkpoint = self.load("last") if self.iterations() else None
        if checkpoint is None and expected:
            raise CheckpointError(f"{self.path}: its checkpoints are gone since this was begun; run it again")
        if checkpoint is None and self.log_file.is_file():
            logger.warning("%s: no checkpoint to go on from, so the training starts from the beginning", self.path)
        if checkpoint is not None and read_record(self.checkpoints) is None:
            self._write_record(self._record())
        self._resumed_at = checkpoint.iteration if checkpoint else 0
        self._write_settings(self._resumed_at)
        for folder in (self.path, self.checkpoints, self.samples):
            remove_abandoned(folder)
        if self.log_file.is_file():
            before = self.log_file.read_bytes()
            lines = before.decode(errors="replace").splitlines()
            kept = "".join(f"{line}\n" for line in lines if _iteration_of(line) <= self._resumed_at)
            if kept.encode() != before:
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
        """The logged lines, oldest first; a line that cannot be read, or was cut off by a kill, is left out."""
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_bytes().decode(errors="replace").splitlines()
        return [values for line in lines if (values := _numbers_of(line))]

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

    def _files(self) -> list[Path]:
        """This run's checkpoints that are there: by iteration, then the best one."""
        record = read_record(self.checkpoints)
        if record is None:
            found = dict(self._unrecorded())
        else:
            files = {self.checkpoints / name: written[-1].iteration for name, written in record.items()}
            found = {file: iteration for file, iteration in files.items() if file.is_file()}
        return sorted(found, key=lambda file: (file.name == _BEST, found[file]))

    def _unrecorded(self) -> Iterator[tuple[Path, int]]:
        """Checkpoints of an earlier version by their names; a name that is not that of what it holds is none."""
        for file in sorted(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else ():
            match = _CHECKPOINT_NAME.fullmatch(file.name)
            if not (match or file.name == _BEST) or not file.is_file():
                continue
            known = glance(file)  # of a damaged one nothing is known: whoever reads it will say so
            named = int(match[1]) if match else None
            iteration = (named or 0) if known is None else known.iteration
            if iteration is not None and named in (None, iteration):
                yield file, iteration

    def _record(self) -> Record:
        """What is recorded of the checkpoints or, in a run of an earlier version, what is to be recorded."""
        record = read_record(self.checkpoints)
        if record is not None:
            return record
        own = {file: iteration for file, iteration in self._unrecorded() if self._is_own(file)}
        return {file.name: (describe(file, iteration),) for file, iteration in own.items()}

    def _is_own(self, file: Path) -> bool:
        known = glance(file)
        try:
            return known is not None and not self._differences(known.config, known.made_by, file)
        except ReidError:  # settings that are none
            return False

    def _write_record(self, record: Record, new: str = "") -> None:
        """Record checkpoints, of which `new` is about to be there, and forget passing ones that are gone."""
        wanted = {
            name: written
            for name, written in record.items()
            if name == new or not written[-1].passing or (self.checkpoints / name).exists()
        }
        write_record(self.checkpoints, wanted)

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


_IDENTITY = "a run's run.json: a JSON object with format, kind and made_by"
_NEVER = 1 << 62


def _is_identity(file: Path) -> bool:
    """Whether a run.json is of a run, if perhaps damaged; not that of another program."""
    try:
        found = json.loads(file.read_bytes())
    except Exception:  # whatever a parser makes of it
        return True  # `RunDir.open` says that it is damaged
    return isinstance(found, dict) and found.get("kind") in KINDS and "format" in found


def _checked(made_by: Any) -> dict[str, Any]:
    """The entry made_by of a run.json, if what is read of it later is as it was written.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(made_by, dict):
        raise ValueError(f"made_by is {type(made_by).__name__}")
    for name in ("index_fingerprint", "data", "source", "layout"):
        _text(made_by.get(name, ""), f"made_by.{name}")
    for name in ("weights", "extra", "begun_with"):
        if not isinstance(made_by.get(name, {}), dict):
            raise ValueError(f"made_by.{name} is {type(made_by[name]).__name__}")
    for name, entries in (("weights", [made_by.get("weights")]), ("teachers", made_by.get("teachers", []))):
        for entry in filter(None, entries):
            _text(entry["file"], f"made_by.{name}.file")
    if not isinstance(made_by.get("weights", {}).get("dropped", []), list):
        raise ValueError("made_by.weights.dropped is no list")
    return made_by


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}")
    return value


def _run_id(kind: str, config: Any, made_by: Mapping[str, Any]) -> str:
    """A hash of what decides a run: the same for two runs that are told the same, as they do the same."""
    settings = fixed_settings(type(config), config_dict(config))
    return fingerprint([kind, json.dumps(settings, sort_keys=True), json.dumps(dict(made_by), sort_keys=True)])


def _refuse_present_folder(path: Path) -> None:
    here, folder = Path.cwd(), path.resolve()
    if folder == here or folder in here.parents:
        raise OutputError(f"{path}: is the folder you are in, so it cannot be moved aside; go elsewhere (cd) first")


def _numbers_of(line: str) -> dict[str, float]:
    """The values of a log line; none where it is no such line."""
    try:
        values = json.loads(line)
        is_fine = type(values["iteration"]) is int and 0 <= values["iteration"] < _NEVER
        is_fine = is_fine and all(isinstance(value, (int, float)) for value in values.values())
    except Exception:  # whatever a parser makes of it
        return {}
    return values if is_fine else {}


def _iteration_of(line: str) -> int:
    """The iteration of a log line; a line that cannot be read belongs to none."""
    return int(_numbers_of(line).get("iteration", _NEVER))


def _listed(iterations: list[int]) -> str:
    if not iterations:
        return "none yet"
    texts = [str(iteration) for iteration in iterations]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:4], "...", *texts[-4:]])


def _runs_near(path: Path) -> list[Path]:
    """run.json files below `path`, or beside it when it does not exist."""
    root = path if path.is_dir() else path.parent
    return [*root.glob("run.json"), *root.glob("*/run.json"), *root.glob("*/*/run.json")] if root.is_dir() else []
