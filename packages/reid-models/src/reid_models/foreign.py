"""What weight files of other programs hold: tensors and plain containers, of which nothing is ever executed.

    content = read_content("model_best.pt")                 # whatever was saved: {"epoch": 60, "state_dict": {...}}
    entries_of(content)                                     # {"state_dict": {...}}: each mapping of tensors in it
    split_entry("model_best.pt::state_dict")                # (Path("model_best.pt"), "state_dict")

Read are zip files and files from before PyTorch 1.6 (torch.save), TorchScript archives (their tensors; never their
program) and the tar archives of PyTorch 0.1. Checksums, where a file has them, are compared. Numbers of NumPy, options
of argparse, dates and paths beside the tensors are passed over: each becomes an object that does nothing.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid_eval.errors import reason_of
from reid_eval.reading import refuse_irregular, verify_zip
from reid_models.published import WeightsError

_EXPECTED = "a weight file, as torch.save writes it"
_REMEDY = "copy or fetch it again"
_MOST_NESTED = 8


def split_entry(path: Path | str) -> tuple[Path, str]:
    """A path such as "model.pth::model_ema" as file and entry; the entry is empty where none is named."""
    file, _, entry = str(path).partition("::")
    return Path(file), entry


def read_content(file: Path) -> dict[str, Any]:
    """What a file holds, tensors and plain containers only, on the CPU.

    Raises:
        WeightsError: no such file, damaged, more than tensors, or no filled dict.
    """
    if not file.exists():
        raise WeightsError(f"{file}: no such weight file")
    refuse_irregular(file, WeightsError, _EXPECTED)
    try:
        with warnings.catch_warnings():  # of foreign pickles, which are refused in any case
            warnings.simplefilter("ignore")
            content = _content_of(file)
    except WeightsError:
        raise
    except Exception as error:  # torch.load raises whatever zip, pickle or the file system raise
        asked = re.search(r"GLOBAL (\S+)|(Unsupported operand)", str(error))
        if asked and (asked[1] or zipfile.is_zipfile(file)):  # whose checksums were compared: it is not damaged
            what = asked[1] or "in a pickle protocol after 2"
            raise WeightsError(
                f"{file}: refused: holds more than tensors ({what}), and such a file can run code; nothing was "
                f"run; if you trust whoever made it, keep its tensors alone and use those: {_line_that_strips(file)}"
            ) from None
        unhelpful = isinstance(error, pickle.UnpicklingError | KeyError)
        reason = "no pickle of tensors" if unhelpful else reason_of(error)[:120]
        raise WeightsError(f"{file}: damaged or no weight file ({reason})") from None
    if not isinstance(content, dict) or not content:
        found = "an empty one" if content == {} else type(content).__name__
        raise WeightsError(f"{file}: expected a state dict (names and tensors), found {found}")
    _refuse_invented(file, content)
    return content


def _refuse_invented(file: Path, content: Any) -> None:
    """See that every number comes from the file: PyTorch makes room for those that a tensor says and no storage has."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_meta:
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    if sum(storages.values()) > (size := file.stat().st_size):
        raise WeightsError(f"{file}: damaged: its tensors say {sum(storages.values()):,} bytes, the file has {size:,}")


def _line_that_strips(file: Path) -> str:
    """A line for the shell that keeps the tensors of a file, however they are nested, and nothing else."""
    kept = str(file.with_name(f"{file.stem}-tensors.pth"))
    code = (
        "import torch; keep = lambda x: x if isinstance(x, torch.Tensor) else keep(x.state_dict()) if "
        'hasattr(x, "state_dict") else {k: v for k, v in zip(x, map(keep, x.values())) if v is not None} if '
        f'isinstance(x, dict) else None; torch.save(keep(torch.load({json.dumps(str(file))}, "cpu", '
        f"weights_only=False)), {json.dumps(kept)})"
    )
    return f"python -c {shlex.quote(code)}"


def _content_of(file: Path) -> Any:
    if zipfile.is_zipfile(file):
        verify_zip(file, WeightsError, _EXPECTED)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            packed = [one.filename for one in members if one.compress_type != zipfile.ZIP_STORED]
            if any("/data/" in name or name.endswith("/data.pkl") for name in packed):
                raise WeightsError(f"{file}: its tensors are compressed, as PyTorch never writes them; unpack it first")
            if data := next((one.filename for one in members if one.filename.endswith("/data.pkl")), None):
                folder = data.removesuffix("data.pkl")
                if f"{folder}constants.pkl" in archive.namelist():
                    return _script_tensors(archive, folder)
    elif tarfile.is_tarfile(file):
        # Only these names are found by its unpickler, whatever the file asks for.
        restricted = types.SimpleNamespace(
            Unpickler=_TarUnpickler, load=lambda stream, **_: _TarUnpickler(stream).load(), __name__="restricted"
        )
        return torch.load(file, map_location="cpu", pickle_module=restricted, weights_only=False)
    elif _is_safetensors(file):
        raise WeightsError(
            f"{file}: a safetensors file; expected {_EXPECTED}; where safetensors is installed, "
            "torch.save(safetensors.torch.load_file(FILE), NEW) makes one"
        )
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.fullmatch(rb".{6}\0\0\{\s*\"", stream.read(10), re.DOTALL) is not None


# --- what may lie beside tensors ------------------------------------------------------------------------------------


class _Aside:
    """In place of something that no weight is read from; takes whatever it is made of, and keeps nothing."""

    def __new__(cls, *values: Any, **named: Any) -> _Aside:
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        """Nothing is done with them."""

    def __setstate__(self, state: Any) -> None:
        """Nor with what it knew."""


_HARMLESS_NAMES = {
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "datetime": "date datetime time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
}

# Under the names of what they stand for, by which torch.load finds them: the real ones are never called.
_HARMLESS: list[Any] = [
    type(name, (_Aside,), {"__module__": module, "__qualname__": name})
    for module, names in _HARMLESS_NAMES.items()
    for name in names.split()
]


# --- TorchScript ----------------------------------------------------------------------------------------------------


class _ScriptModule:
    """A module of a TorchScript archive: its attributes, of which only tensors and modules are looked at."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _ScriptUnpickler(pickle.Unpickler):
    """Makes modules without their code, and tensors; refuses all else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}data.pkl"))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _ScriptModule
        if module == "torch.jit._pickle":  # lists, and what type they have
            return _Aside
        return _of_torch(module, name)

    def persistent_load(self, saved: Any) -> Any:
        _, kind, key, _, _ = saved
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}") or b"\0")
            octets = torch.frombuffer(content, dtype=torch.uint8)
            self.storages[key] = torch.storage.TypedStorage(
                wrap_storage=octets.untyped_storage(), dtype=kind.dtype, _internal=True
            )
        return self.storages[key]


def _of_torch(module: str, name: str) -> Any:
    """What tensors are made of.

    Raises:
        UnpicklingError: anything else is asked for.
    """
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        return getattr(torch._utils, name)
    if module == "torch" and re.fullmatch(r"[A-Z][A-Za-z0-9]*(Storage|Tensor)", name):
        return getattr(torch, name)
    raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _script_tensors(archive: zipfile.ZipFile, folder: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}

    def collect(module: _ScriptModule, prefix: str, depth: int) -> None:
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                state[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, _ScriptModule) and depth < 4 * _MOST_NESTED:
                collect(value, f"{prefix}{name}.", depth + 1)

    collect(_ScriptUnpickler(archive, folder).load(), "", 0)
    return state


class _TarUnpickler(pickle.Unpickler):
    """Of the archives of PyTorch 0.1."""

    def find_class(self, module: str, name: str) -> Any:
        return _of_torch(module, name)


# --- which of its mappings holds a network --------------------------------------------------------------------------


def entries_of(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in what a file holds, by the keys that lead to it ("" for all of it)."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()

    def look(value: Mapping[Any, Any], place: tuple[str, ...]) -> None:
        if id(value) in seen or not value:
            return
        seen.add(id(value))
        if all(isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items()):
            found[".".join(place)] = dict(value)
        elif len(place) < _MOST_NESTED:
            for name, one in value.items():
                if isinstance(one, dict):
                    look(one, (*place, str(name)))

    look(content, ())
    return found
