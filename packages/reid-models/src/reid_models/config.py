"""Settings: frozen dataclasses from defaults, a YAML file and `--set section.key=value`, in this order.

A dataclass beside the code it steers is the whole truth about its settings: names, types, defaults, and in
`__post_init__` the ranges. Unknown keys and wrong types are refused with the right key suggested. Values are plain:
nothing is taken from the environment or from another setting.

    config = load_config(ReidTrainConfig, Path("configs/baseline_market.yaml"), ["optim.lr=3e-4"])
    dump_config(config, run / "config.yaml")
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from reid_eval.errors import ReidError, reason_of
from reid_eval.files import write_text
from reid_eval.reading import read_text, reading

T = TypeVar("T")


MOST_PX = 10_000
"""of a picture's height, width or border: a slip of the keyboard must not take all memory"""


class ConfigError(ReidError):
    """A setting is unknown, has the wrong type, or a value that makes no sense."""


def load_config(
    cls: type[T],
    file: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
) -> T:
    """The settings of `cls`: its defaults, changed by a YAML file, changed by `section.key=value` texts.

    `values` are taken in place of what the file says.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown, a value has the wrong type or range.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None:
        layers.append((str(file), _read_yaml(Path(file)) if values is None else values))
    layers += [(_told(override), _read_override(override)) for override in overrides]
    return _merge(cls, layers)


def config_from_dict(cls: type[T], values: Mapping[str, Any], *, source: str = "stored settings") -> T:
    """The settings of `cls` from a plain nested dict, such as a checkpoint holds; keys not given keep their default.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range.
    """
    return _merge(cls, [(source, values)])


def config_dict(config: Any) -> dict[str, Any]:
    """The settings as nested plain containers (dict, list, str, numbers, None)."""
    return _plain(OmegaConf.structured(config))


def dump_config(config: Any, file: Path | str) -> None:
    """Write the resolved settings as YAML, whole or not at all."""
    write_text(file, OmegaConf.to_yaml(OmegaConf.structured(config)))


def settings_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two plain settings dicts, one text `key: before -> after` per setting."""
    return [f"{key}: {old} -> {new}" for key, (old, new) in changed_settings(before, after).items()]


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two plain dicts, by their full key: before and after."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[f"{prefix}{key}"] = old, new
    return changed


def all_settings(cls: type) -> list[str]:
    """The full keys of all settings of a class, such as schedule.epochs, and of its groups."""
    return _all_keys(_sections(cls), {field.name: field for field in dataclasses.fields(cls)})


_EXPECTED = "settings as 'key: value' lines"
_MAX_SETTINGS_BYTES = 1 << 20


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ConfigError(f"{file}: no such settings file; {_files_like(file)}")
    text = read_text(file, ConfigError, _EXPECTED, limit=_MAX_SETTINGS_BYTES)
    with reading(file, ConfigError, _EXPECTED, remedy="correct it"):
        values = _plain(OmegaConf.create(text))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected {_EXPECTED}, found a {type(values).__name__}")
    return values


def _read_override(override: str) -> dict[str, Any]:
    """What one `section.key=value` text says, as nested dicts."""
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{_told(override)}: expected section.key=value, for example --set optim.lr=3e-4")
    try:
        return _plain(OmegaConf.from_dotlist([override]))
    except Exception as error:  # whatever a parser makes of it
        raise ConfigError(f"{_told(override)}: no YAML value ({reason_of(error)})") from None


def _told(override: str) -> str:
    return f"--set {override if len(override) <= 80 else f'{override[:77]}...'}"


def _files_like(file: Path) -> str:
    """The settings files that a name which is none may have meant."""
    near = sorted({path for folder in (file.parent, Path("configs")) for path in folder.glob("*.y*ml")})
    if not near:
        return "expected a YAML file, such as those in configs/ of the repository"
    close = difflib.get_close_matches(file.stem, [path.stem for path in near], n=3, cutoff=0.5)
    meant = [str(path) for stem in close for path in near if path.stem == stem]
    return f"did you mean {meant[0]}?" if meant else f"there are {', '.join(map(str, near))}"


def _refuse_references(source: str, values: Any, key: str = "") -> None:
    """Settings say what they are: nothing is taken from the environment or from another setting."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            _refuse_references(source, value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            _refuse_references(source, value, key)
    elif isinstance(values, str) and ("${" in values or values == "???"):  # as OmegaConf writes what is elsewhere
        raise ConfigError(f"{source}: {key}: found {values!r}, a reference; expected the value itself")


def _merge(cls: type[T], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> T:
    tree = OmegaConf.structured(cls)
    for source, values in layers:
        try:
            _refuse_references(source, values)
            _refuse_unknown(cls, values, source)
            tree = OmegaConf.merge(tree, values)
        except ConfigError:
            raise
        except Exception as error:  # of OmegaConf, or of Python's own conversions
            name = getattr(error, "full_key", None)
            key = f"{name}: " if name else ""
            reason = reason_of(error).replace("Value '$VALUE' of type '$VALUE_TYPE'", "a value")  # as it leaves them
            raise ConfigError(f"{source}: {key}{reason}") from None
    sources = ", ".join(source for source, _ in layers)
    try:
        config = OmegaConf.to_object(tree)
        config_dict(config)  # which meets what is none within a list
    except Exception as error:  # a check of the settings' own, or a value that is missing
        cause = error if isinstance(error, ConfigError) else error.__cause__ or error
        raise ConfigError(f"{sources}: {reason_of(cause)}" if sources else reason_of(cause)) from None
    assert isinstance(config, cls)
    return config


def _refuse_unknown(cls: type, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    known = {field.name: field for field in dataclasses.fields(cls)}
    sections = _sections(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            everywhere = [] if close else [path for path in _all_keys(sections, known) if path.endswith(f".{key}")]
            hint = (
                f"did you mean {prefix}{close[0]}?"
                if close
                else f"did you mean {prefix}{everywhere[0]}?"
                if everywhere
                else f"known here: {', '.join(known)}"
            )
            raise ConfigError(f"{source}: unknown setting {name}; {hint}")
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {name} is a group of settings, expected {name}.<key>, found {value!r}")
            _refuse_unknown(sections[key], value, source, f"{name}.")
        elif isinstance(value, Mapping):
            default = config_dict(cls)[key]
            expected = f"a whole list, such as {default}" if isinstance(default, list) else "one value"
            raise ConfigError(f"{source}: {name}: expected {expected}, found {value}")
        elif isinstance(value, list) and (default := _length_told(known[key])) and len(value) != len(default):
            # OmegaConf's own refusal does not say of which setting
            raise ConfigError(f"{source}: {name}: expected {len(default)} values, such as {default}, found {value}")


def _length_told(field: dataclasses.Field[Any]) -> list[Any]:
    """The default of a setting that has as many values as it, always; empty for others."""
    return list(field.default) if isinstance(field.default, tuple) else []


@cache
def _sections(cls: type) -> dict[str, type]:
    """The fields of a settings class that are settings classes themselves."""
    node = OmegaConf.structured(cls)
    types = {field.name: OmegaConf.get_type(node, field.name) for field in dataclasses.fields(cls)}
    return {name: kind for name, kind in types.items() if kind is not None and dataclasses.is_dataclass(kind)}


def _all_keys(sections: Mapping[str, type], known: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = [f"{prefix}{name}" for name in known]
    for name, kind in sections.items():
        fields = {field.name: field for field in dataclasses.fields(kind)}
        keys += _all_keys(_sections(kind), fields, f"{prefix}{name}.")
    return keys


def _plain(node: Any) -> Any:
    """Nested dicts and lists; tuples become lists, so that settings equal what they are read back as."""
    if OmegaConf.is_config(node):  # which would resolve references when looked into
        return _plain(OmegaConf.to_container(node, resolve=False, enum_to_str=True))
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return node
