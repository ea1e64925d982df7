"""Settings: frozen dataclasses from defaults, a YAML file and `--set section.key=value`, in this order.

A dataclass beside the code it steers is the whole truth about its settings: names, types, defaults, and in
`__post_init__` the ranges. Unknown keys and wrong types are refused with the right key suggested.

    config = load_config(ReidTrainConfig, Path("configs/baseline_market.yaml"), ["optim.lr=3e-4"])
    dump_config(config, run / "config.yaml")
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from reid_eval.errors import ReidError
from reid_eval.files import write_text

T = TypeVar("T")


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
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected section.key=value, for example --set optim.lr=3e-4")
        try:
            layers.append((f"--set {override}", _plain(OmegaConf.from_dotlist([override]))))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"--set {override}: {_first_line(error)}") from None
    return _merge(cls, layers)


def config_from_dict(cls: type[T], values: Mapping[str, Any], *, source: str = "stored settings") -> T:
    """The settings of `cls` from a plain nested dict, such as a checkpoint holds; keys not given keep their default."""
    return _merge(cls, [(source, values)])


def config_dict(config: Any) -> dict[str, Any]:
    """The settings as nested plain containers (dict, list, str, numbers, None)."""
    return _plain(OmegaConf.structured(config))


def dump_config(config: Any, file: Path | str) -> None:
    """Write the resolved settings as YAML, whole or not at all."""
    write_text(file, OmegaConf.to_yaml(OmegaConf.structured(config)))


def settings_difference(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two plain settings dicts, one text `key: before -> after` per setting."""
    texts = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            texts += settings_difference(old, new, f"{prefix}{key}.")
        elif old != new:
            texts.append(f"{prefix}{key}: {old} -> {new}")
    return texts


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{file}: no such settings file; see configs/ for examples")
    try:
        values = _plain(OmegaConf.load(file))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not a readable YAML file ({_first_line(error)})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected settings as 'key: value' lines, found a {type(values).__name__}")
    return values


def _merge(cls: type[T], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> T:
    tree = OmegaConf.structured(cls)
    for source, values in layers:
        _refuse_unknown(cls, values, source)
        try:
            tree = OmegaConf.merge(tree, values)
        except OmegaConfBaseException as error:
            key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
            raise ConfigError(f"{source}: {key}{_first_line(error)}") from None
    try:
        config = OmegaConf.to_object(tree)
    except ConfigError as error:
        sources = ", ".join(source for source, _ in layers)
        raise ConfigError(f"{sources}: {error}" if sources else str(error)) from None
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error
        raise ConfigError(_first_line(cause)) from None
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
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if OmegaConf.is_config(node):
        return _plain(OmegaConf.to_container(node, resolve=True, enum_to_str=True))
    return node


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
