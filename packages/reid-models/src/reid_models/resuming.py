"""What may differ when a training is gone on with, and what makes it another one.

A settings class names in MAY_CHANGE what decides nothing that is learned (how often is logged, how many processes
read), and in MAY_GROW what only makes a training longer. All else is the run: other settings, data, teachers or weights
to start from are refused with what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reid_models.checkpoints import CheckpointError
from reid_models.config import changed_settings, config_dict


def fixed_settings(cls: type, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Those of the settings that never change."""
    free = _free(cls) | _growing(cls)
    return {
        name: fixed_settings(cls, value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{prefix}{name}" not in free
    }


def _free(cls: type) -> frozenset[str]:
    return getattr(cls, "MAY_CHANGE", frozenset())


def _growing(cls: type) -> frozenset[str]:
    return getattr(cls, "MAY_GROW", frozenset())


def extending_settings(path: Path, before: Mapping[str, Any], config: Any) -> list[str]:
    """See that a run may go on with some settings; returns those that extend it.

    Raises:
        CheckpointError: others have changed.
    """
    cls, after = type(config), config_dict(config)
    refused: list[str] = []
    allowed: list[str] = []
    for key, (old, new) in changed_settings(before, after).items():
        may = key in _free(cls) or (key in _growing(cls) and new > old)
        (allowed if may else refused).append(f"{key}: {old} -> {new}")
    if refused:
        raise CheckpointError(
            f"{path}: cannot resume with other settings ({'; '.join(refused)}); "
            "use the run's own settings or another --out"
        )
    return allowed


_MAY_NOT_DIFFER = {
    "index_fingerprint": ("data", "use the data it was started on or another --out"),
    "weights": ("weights to start from", "go on with those it was started with, or choose another --out"),
    "extra": ("generated pictures", "go on with those it was started with, or choose another --out"),
    "teachers": ("teachers", "go on with those it was started with, or choose another --out"),
    "begun_with": ("published training to begin with", "go on with the one it was started with"),
}


def refuse_other_origin(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """See that a run goes on with the data and files that it was begun with; both are an entry made_by.

    Raises:
        CheckpointError: it does not.
    """
    for name, (what, remedy) in _MAY_NOT_DIFFER.items():
        if differing := other_origin(before, after, [name]):
            told = differing[0].removeprefix(f"{what}: ")
            raise CheckpointError(f"{path}: cannot resume with other {what} ({told}); {remedy}")


def other_origin(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Iterable[str] = tuple(_MAY_NOT_DIFFER)
) -> list[str]:
    """What a run was made from and another was not, such as "data: fingerprint abc -> xyz"."""
    return [
        f"{_MAY_NOT_DIFFER[name][0]}: {_origin(before.get(name))} -> {_origin(after.get(name), short=True)}"
        for name in names
        if not _agree(before.get(name), after.get(name))
    ]


def _agree(old: Any, new: Any) -> bool:
    """Whether two records say the same; what one of them leaves open, as an earlier version did, may be anything."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return all(_agree(old[key], new[key]) for key in old.keys() & new.keys())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_agree, old, new))
    return bool(old == new)


def _origin(value: Any, *, short: bool = False) -> str:
    """Data by their fingerprint; weights, teachers and generated pictures by what was recorded of them."""
    match value:
        case None | []:
            return "none"
        case str():
            return value if short else f"fingerprint {value}"
        case {"file": file, "dropped": dropped}:
            content = f" (SHA-256 {str(value['sha256'])[:16]})" if "sha256" in value else ""
            return " without ".join([f"{file}{content}", *map(str, dropped)])
        case {"file": file, "fingerprint": known}:
            return f"{file} {known}"
        case list():
            return ", ".join(map(_origin, value))
        case dict():
            return " ".join(f"{name} {entry}" for name, entry in value.items() if entry is not None)
    return str(value)
