"""Stages that run once: each remembers what it was made from and is skipped while that has not changed.

A stage has a key, a hash of everything that decides its result (settings, data, the keys before it). When it has
finished, `<out>/stages/<name>.json` records the key; a later run with the same key skips it. A stage that was
killed left no record and is started again; the library functions it calls then go on from what they find.

    run_stages([Stage("prepare", key, work, outputs=[folder]), ...], out)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reid_eval.files import fingerprint, write_text
from reid_eval.progress import duration

RECORD_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    `key` is called when the stages before have finished, so it may read what they made. `work` does the step and
    returns one line that says what came out. `outputs` must all exist for the stage to count as done.
    """

    name: str
    key: Callable[[], str]
    work: Callable[[], str]
    outputs: Sequence[Path]


@dataclass(frozen=True)
class StageRecord:
    """What is remembered of a finished stage: its key, what came out, and how long it took."""

    key: str
    summary: str
    elapsed_s: float


def run_stages(stages: Sequence[Stage], out: Path) -> dict[str, StageRecord]:
    """Run the stages in order, skipping those that are done; returns the record of each.

    A stage's work may read the records of those before it with `read_record`.
    """
    records: dict[str, StageRecord] = {}
    before = ""
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        key = fingerprint([before, stage.name, stage.key()])
        record = read_record(out, stage.name)
        if record is not None and record.key == key and all(path.exists() for path in stage.outputs):
            click.echo(f"{title}: done before ({duration(record.elapsed_s)}); {record.summary}", err=True)
        else:
            click.echo(f"{title} ...", err=True)
            started_s = time.monotonic()
            summary = stage.work()
            record = StageRecord(key, summary, time.monotonic() - started_s)
            _write_record(out, stage.name, record)
            click.echo(f"{title}: {summary} ({duration(record.elapsed_s)})", err=True)
        records[stage.name] = record
        before = key
    return records


def read_record(out: Path, name: str) -> StageRecord | None:
    """The record of a finished stage; None if it never finished or the record cannot be read."""
    try:
        values = json.loads(_record_file(out, name).read_text(encoding="utf-8"))
        if values.pop("format") != RECORD_FORMAT:
            return None
        return StageRecord(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_file(out: Path, name: str) -> Path:
    return out / "stages" / f"{name}.json"


def _write_record(out: Path, name: str, record: StageRecord) -> None:
    values = {"format": RECORD_FORMAT, "key": record.key, "summary": record.summary, "elapsed_s": record.elapsed_s}
    write_text(_record_file(out, name), json.dumps(values, indent=2) + "\n")
