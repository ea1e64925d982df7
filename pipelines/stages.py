"""Stages that run once: each remembers what it was made from and what it made, and is skipped while both are the same.

A stage has a key (its settings), files that it reads and files that it writes. `OUT/stages/NAME.json` holds all three,
files by their content. A finished stage is skipped if the key is the same, nothing that it read is other, and all that
it wrote is there unchanged; otherwise it is done again, and the reason is said. A stage that was stopped goes on from
what it has made, unless what it reads has changed meanwhile: then what it had made is set aside first.

    run_stages([Stage("prepare", key, work, reads=..., writes=...), ...], out)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import click

from pipelines.contents import Contents
from reid_eval.errors import OutputError, ReidError, Stopped
from reid_eval.files import write_text
from reid_eval.progress import duration
from reid_eval.reading import sealed, unsealed
from reid_eval.stopping import check_stop

RECORD_FORMAT = 2


def _nothing() -> Iterable[Path]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    All functions are called when the stages before have finished, so they may read what those made. `work` does the
    step and returns one line that says what came out. `reads` and `writes` give files and folders; `writes` is asked
    when the work is done. `makes` is a folder that is of no use once what the stage reads has changed, or with
    `fixed_key` its key: it is renamed then, never removed. Where a key may change, the work itself decides. `broken`
    gives a folder of an earlier run that cannot be gone on with, such as one without its marker: it is renamed too.
    """

    name: str
    key: Callable[[], str]
    work: Callable[[], str]
    reads: Callable[[], Iterable[Path]] = _nothing
    writes: Callable[[], Iterable[Path]] = _nothing
    makes: Path | None = None
    fixed_key: bool = False
    broken: Callable[[], Path | None] = lambda: None


@dataclass(frozen=True)
class StageRecord:
    """What is remembered of a stage: its key, what it read and wrote, what came out, and how long it took.

    A stage that has begun and not finished has `written` None.
    """

    key: str
    read: Contents
    written: Contents | None = None
    summary: str = ""
    elapsed_s: float = 0.0


class _RecordError(ReidError):
    """A record is missing, damaged or of another format: the stage counts as not begun."""


def run_stages(stages: Sequence[Stage], out: Path) -> dict[str, StageRecord]:
    """Run the stages in order, skipping those that are done; returns the record of each.

    A stage's work may read the records of those before it with `read_record`.

    Raises:
        Stopped: something asked to stop (see `reid_eval.stopping`); what is finished stays finished.
    """
    records: dict[str, StageRecord] = {}
    for number, stage in enumerate(stages, start=1):
        check_stop("what is finished is kept")
        title = f"[{number}/{len(stages)}] {stage.name}"
        record = read_record(out, stage.name)
        key, places = stage.key(), list(stage.reads())
        why, is_of_no_use = _why_again(stage, record, key, places)
        if record is not None and why is None and record.written is not None:
            click.echo(f"{title}: done before ({duration(record.elapsed_s)}); {record.summary}", err=True)
        else:
            click.echo(f"{title} ..." if why is None else f"{title}: again, since {why}", err=True)
            if is_of_no_use and stage.makes is not None:
                _set_aside(stage.makes, title)
            if record is not None and (broken := stage.broken()) is not None:
                _set_aside(broken, title)
            record = _run(stage, key, places, out, record)
            click.echo(f"{title}: {record.summary} ({duration(record.elapsed_s)})", err=True)
        records[stage.name] = record
    return records


def _why_again(stage: Stage, record: StageRecord | None, key: str, places: list[Path]) -> tuple[str | None, bool]:
    """Why a recorded stage has to run again, None if it has not; and whether what it has made is of no use for that."""
    if record is None:
        return None, False
    if other := record.read.change(places):
        return f"of what it reads {other}", True
    if record.key != key:
        return "its settings have changed", stage.fixed_key
    if record.written is not None and (other := record.written.change()):
        return f"of what it made {other}", False
    return None, False


def _run(stage: Stage, key: str, places: list[Path], out: Path, earlier: StageRecord | None) -> StageRecord:
    read = Contents.of(places, known=earlier.read if earlier is not None else None)
    _write_record(out, stage.name, StageRecord(key, read))
    began_s = monotonic()
    try:
        summary = stage.work()
    except Stopped as stopped:
        saved = str(stopped).partition("; run ")[0]  # what to run is for commands of their own
        raise Stopped(f"{saved}, in stage {stage.name}; run the same command to go on") from None
    elapsed_s = monotonic() - began_s
    record = StageRecord(key, read, Contents.of(stage.writes()), summary, elapsed_s)
    _write_record(out, stage.name, record)
    return record


def _set_aside(folder: Path, title: str) -> None:
    """Rename a folder to NAME.old-1, or the next free number, and say so."""
    if not folder.exists():
        return
    targets = (folder.with_name(f"{folder.name}.old-{number}") for number in itertools.count(1))
    target = next(target for target in targets if not target.exists())
    try:
        folder.rename(target)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be renamed to {target.name} ({error.strerror}); move it yourself"
        ) from None
    click.echo(f"{title}: what it made before is kept in {target}", err=True)


def read_record(out: Path, name: str) -> StageRecord | None:
    """The record of a stage; None if it never began or the record cannot be read."""
    try:
        values = unsealed(_record_file(out, name), _RecordError, "a stage's record")
        if values["format"] != RECORD_FORMAT:
            return None
        return StageRecord(
            values["key"],
            Contents.from_values(values["read"], out),
            Contents.from_values(values["written"], out) if values["written"] is not None else None,
            values["summary"],
            values["elapsed_s"],
        )
    except (_RecordError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _record_file(out: Path, name: str) -> Path:
    return out / "stages" / f"{name}.json"


def _write_record(out: Path, name: str, record: StageRecord) -> None:
    values = {
        "format": RECORD_FORMAT,
        "key": record.key,
        "summary": record.summary,
        "elapsed_s": record.elapsed_s,
        "read": record.read.to_values(out),
        "written": record.written.to_values(out) if record.written is not None else None,
    }
    write_text(_record_file(out, name), sealed(values))
