"""Weight files of the networks that measure pictures: which are known, where they lie, whether they are whole.

A file is looked for in the folders of $REID_WEIGHTS, in `weights/` of our cache folder and in torch hub's cache; then
it is fetched, with a notice, unless that is forbidden. A file of another content is refused: nothing ever takes its
place.

Of most files only the first eight digits of their SHA-256 are published, in their names. What these verify is
remembered whole, in our cache, and compared from then on; results record the whole SHA-256 of what made them.

    file = find_weights(known_weights("inception"))       # the path of a verified file, or WeightFileError
    import_weights("Downloads")                           # copies what it knows into the cache
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import re
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import URLError

from reid_eval.errors import OutputError, ReidError, reason_of
from reid_eval.files import atomic_path, file_fingerprint, write_text
from reid_eval.reading import reading, refuse_irregular, sealed, unsealed, verify_zip

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class WeightFileError(ReidError):
    """A weight file is missing, damaged, of another content, or does not fit its network."""


@dataclass(frozen=True)
class WeightFile:
    """A published weight file: its name in commands, its file name, its SHA-256 as far as that is published, its size.

    `model` is the name of its network in torchvision, where that is another; `is_of_hub` says that whoever uses the
    file looks for it in torch hub's cache alone.
    """

    name: str
    file: str
    sha256_start: str
    size: str
    purpose: str
    model: str = ""
    is_of_hub: bool = False


KNOWN = (
    WeightFile("inception", "pt_inception-2015-12-05-6726825d.pth", "6726825d", "91 MiB", "FID, KID and relatives"),
    WeightFile("alexnet", "alexnet-owt-7be5be79.pth", "7be5be79", "233 MiB", "LPIPS, AlexNet's layers"),
    WeightFile("vgg16", "vgg16-397923af.pth", "397923af", "528 MiB", "LPIPS, VGG16's layers"),
    WeightFile("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", "b8a52dc0", "4.7 MiB", "LPIPS, SqueezeNet's layers"),
    WeightFile(
        "lpips-alex",
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "6009 bytes",
        "LPIPS 0.1, linear heads on AlexNet",
    ),
    WeightFile(
        "lpips-vgg",
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "7289 bytes",
        "LPIPS 0.1, linear heads on VGG16",
    ),
    WeightFile(
        "lpips-squeeze",
        "squeeze.pth",
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        "10811 bytes",
        "LPIPS 0.1, linear heads on SqueezeNet",
    ),
    WeightFile("resnet50", "resnet50-11ad3fa6.pth", "11ad3fa6", "98 MiB", "--extractor torchvision:resnet50"),
    WeightFile(
        "convnext_tiny", "convnext_tiny-983f1562.pth", "983f1562", "109 MiB", "--extractor torchvision:convnext_tiny"
    ),
    WeightFile(
        "resnet50_v1",
        "resnet50-0676ba61.pth",
        "0676ba61",
        "98 MiB",
        "what training starts from, network.weights=imagenet",
        model="resnet50",
        is_of_hub=True,
    ),
)


def known_weights(name: str) -> WeightFile:
    """The published file of this name.

    Raises:
        WeightFileError: no such name.
    """
    for weights in KNOWN:
        if weights.name == name:
            return weights
    raise WeightFileError(f"{name}: no known weight file; expected one of {', '.join(file.name for file in KNOWN)}")


def cache_folder() -> Path:
    """Where features, results and weights are kept: $REID_CACHE, else `reid-eval` in the user's cache folder."""
    if chosen := os.environ.get("REID_CACHE"):
        return Path(chosen)
    return _user_cache() / "reid-eval"


def _user_cache() -> Path:
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # nobody's home is known, as in some containers
        return Path(tempfile.gettempdir()) / f"cache-of-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def search_folders() -> list[Path]:
    """The folders weights are looked for in, in this order."""
    named = [Path(folder) for folder in os.environ.get("REID_WEIGHTS", "").split(os.pathsep) if folder]
    return [*named, cache_folder() / "weights", _hub_folder()]


def _hub_folder() -> Path:
    return Path(os.environ.get("TORCH_HOME") or _user_cache() / "torch") / "hub" / "checkpoints"


def _home_of(weights: WeightFile) -> Path:
    """Where a file is put when it is fetched or imported."""
    return (_hub_folder() if weights.is_of_hub else cache_folder() / "weights") / weights.file


def is_offline() -> bool:
    """Whether $REID_OFFLINE forbids fetching."""
    return os.environ.get("REID_OFFLINE", "") not in ("", "0")


def locate(weights: WeightFile) -> Path | None:
    """The first file of this name in the search folders, or None. LPIPS' heads also lie in the package lpips, if
    installed.
    """
    folders = [_hub_folder()] if weights.is_of_hub else search_folders()
    if weights.name.startswith("lpips-") and (package := importlib.util.find_spec("lpips")) is not None:
        folders += [Path(place) / "weights" / "v0.1" for place in package.submodule_search_locations or ()]
    return next((folder / weights.file for folder in folders if _is_file(folder / weights.file)), None)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # nobody may look there
        return False


def warn_of_settings() -> None:
    """Say which of the folders in $REID_WEIGHTS are none."""
    for named in os.environ.get("REID_WEIGHTS", "").split(os.pathsep):
        if named and not os.path.isdir(named):
            found = "is a file" if os.path.exists(named) else "no such folder"
            logger.warning("REID_WEIGHTS: %s: %s; expected folders of weight files", named, found)


def find_weights(weights: WeightFile, *, offline: bool = False) -> Path:
    """The verified file of published weights, fetched into the cache, with a notice, if it is nowhere.

    Raises:
        WeightFileError: it cannot be had, or what lies there is damaged or something else.
    """
    file = locate(weights)
    if file is None:
        warn_of_settings()
        file = fetch_weights(weights, offline=offline)
    verify_weights(weights, file)
    return file


def verify_weights(weights: WeightFile, file: Path) -> str:
    """The SHA-256 of a file, which has to be that of the published weights: as far as it is published, and beyond that
    what it was before.

    Raises:
        WeightFileError: it is not, or there is no such file.
    """
    sha256 = weights_sha256(file, expected=weights)
    if not sha256.startswith(weights.sha256_start):
        raise WeightFileError(
            f"{file}: SHA-256 {sha256[:8]}..., expected {weights.sha256_start[:8]}...: damaged, or not {weights.file} "
            f"({weights.size}); remove it, or name the right file with --weights"
        )
    _refuse_other_than_before(weights, file, sha256)
    return sha256


def _refuse_other_than_before(weights: WeightFile, file: Path, sha256: str) -> None:
    """Compare the whole SHA-256 with that of the file that had this name before, and remember it.

    Raises:
        WeightFileError: they differ.
    """
    if len(weights.sha256_start) == len(sha256):
        return
    record = cache_folder() / "weights" / "sha256.json"
    expected = "the SHA-256 of weight files that were used"
    try:
        known = unsealed(record, WeightFileError, expected) if _is_file(record) else {}
    except WeightFileError as error:
        logger.warning("begun again: %s", error)
        known = {}
    if (before := known.get(weights.file, sha256)) != sha256:
        raise WeightFileError(
            f"{file}: SHA-256 {sha256} begins as published, but {before} was used under this name before: one of them "
            f"is not the published file; fetch it again, or remove {record} if you know why"
        )
    if weights.file not in known:
        try:
            write_text(record, sealed({**known, weights.file: sha256}))
        except (OutputError, OSError) as error:
            logger.info("not remembered: %s", reason_of(error))


def weights_sha256(file: Path, *, expected: WeightFile | None = None) -> str:
    """The SHA-256 of a weight file.

    Raises:
        WeightFileError: it cannot be read.
    """
    try:
        return file_fingerprint(file)
    except OSError as error:
        wanted = (
            f", expected {expected.file} ({expected.size}, SHA-256 {expected.sha256_start[:8]}...)" if expected else ""
        )
        reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        raise WeightFileError(f"{file}: {reason}{wanted}") from None


def fetch_weights(weights: WeightFile, *, offline: bool = False) -> Path:
    """Fetch a published file to where it is looked for, and verify it; where nothing can be written there, to a
    temporary folder that ends with this process.

    Raises:
        WeightFileError: that is forbidden, not possible, or gives another content.
    """
    file = _home_of(weights)
    address = _address(weights)
    wanted = f"{weights.file} ({weights.size}, SHA-256 {weights.sha256_start[:8]}...)"
    source = f"get it from {address}" if address else "it is in the package lpips: pip install --no-deps lpips"
    remedy = f"{source} and put it at {file} or into a folder named by REID_WEIGHTS, or name it with --weights FILE"
    if offline or is_offline() or not address:
        why = "" if not address else ", and fetching is forbidden (--offline or REID_OFFLINE)"
        raise WeightFileError(f"{wanted}: in none of {', '.join(map(str, search_folders()))}{why}; {remedy}")
    logger.warning("fetching %s: %s -> %s", wanted, address, file)
    try:
        try:
            return _download(weights, address, file)
        except OSError as error:
            if isinstance(error, (URLError, ConnectionError, TimeoutError)):
                raise
            logger.warning("not kept for the next time: %s: %s", file.parent, reason_of(error))
            folder = tempfile.mkdtemp(prefix="reid-eval-weights-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return _download(weights, address, Path(folder) / weights.file)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = reason_of(error)
        raise WeightFileError(f"{file}: not there, and {wanted} could not be fetched ({reason}); {remedy}") from None


def _download(weights: WeightFile, address: str, file: Path) -> Path:
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(address, str(file), hash_prefix=weights.sha256_start)
    return file


def _address(weights: WeightFile) -> str:
    """Where the file is published, as the package that it belongs to says; "" if it ships inside a package."""
    if weights.name.startswith("lpips-"):
        return ""
    if weights.name == "inception":
        from pytorch_fid.inception import FID_WEIGHTS_URL

        return str(FID_WEIGHTS_URL)
    from torchvision.models import get_model_weights

    published = [str(choice.url) for choice in get_model_weights(weights.model or weights.name)]
    return next(address for address in published if address.endswith(f"/{weights.file}"))


def import_weights(folder: Path | str) -> list[tuple[WeightFile, Path]]:
    """Copy the known files below a folder, whatever they are called, into the cache: what was copied and whereto.

    Raises:
        WeightFileError: there is no such folder, or nothing known in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightFileError(f"{folder}: no such folder; expected one that holds weight files")
    candidates = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".pth", ".pt") and _is_file(path))
    copied = []
    for path in candidates:
        try:
            sha256 = weights_sha256(path)
        except WeightFileError as error:
            logger.warning("passed over: %s", error)
            continue
        for weights in KNOWN:
            if sha256.startswith(weights.sha256_start):
                file = _home_of(weights)
                if not (file.is_file() and file.samefile(path)):
                    with atomic_path(file) as part:
                        shutil.copyfile(path, part)
                copied.append((weights, file))
    if not copied:
        raise WeightFileError(
            f"{folder}: {len(candidates)} files .pth or .pt below it, none of them known by its SHA-256; "
            "see reid-eval weights list"
        )
    return copied


State = Literal["missing", "unchecked", "whole", "prefix verified", "damaged"]


@dataclass(frozen=True)
class WeightStatus:
    """Where a known file lies, if anywhere, and, if asked, its SHA-256 and what that says.

    "prefix verified" means that it begins as published, and no more of it is published.
    """

    weights: WeightFile
    file: Path | None
    state: State
    sha256: str = ""


def weights_status(*, verify: bool = False) -> list[WeightStatus]:
    """Of every known file."""
    return [_status(weights, verify) for weights in KNOWN]


def _status(weights: WeightFile, verify: bool) -> WeightStatus:
    file = locate(weights)
    if file is None or not verify:
        return WeightStatus(weights, file, "unchecked" if file else "missing")
    try:
        sha256 = verify_weights(weights, file)
    except WeightFileError as error:
        logger.warning("%s", error)
        return WeightStatus(weights, file, "damaged")
    return WeightStatus(weights, file, "whole" if sha256 == weights.sha256_start else "prefix verified", sha256)


def published_name(file: str) -> WeightFile | None:
    """A torchvision file says the beginning of its SHA-256 in its name: resnet50-11ad3fa6.pth."""
    match = re.fullmatch(r"([\w.-]+)-([0-9a-f]{8})\.pth", file)
    return WeightFile(match[1], file, match[2], "size as published by torchvision", "") if match else None


_EXPECTED = "a weight file, a dictionary of tensors by name"

# Under which entry programs keep the tensors beside others; of several the first.
_WRAPPERS = ("state_dict", "model", "net", "network", "module", "weights", "params", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "params_ema")
# What wrappers of networks put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name; nothing in the file is executed, and its checksums are compared.

    Dictionaries that hold the tensors beside others are opened, and what a wrapped or compiled network puts before
    every name is taken off.

    Raises:
        WeightFileError: it cannot be read, is damaged, or holds no tensors.
    """
    import torch

    refuse_irregular(file, WeightFileError, _EXPECTED)
    if zipfile.is_zipfile(file):
        _refuse_torchscript(file)
        verify_zip(file, WeightFileError, _EXPECTED)
    elif tarfile.is_tarfile(file):
        raise WeightFileError(f"{file}: a tar archive, as PyTorch wrote before 0.2; save it again with a later one")
    with reading(file, WeightFileError, _EXPECTED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of foreign pickles, which are refused in any case
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if asked := re.search(r"GLOBAL (\S+)", str(error)):
                raise WeightFileError(
                    f"{file}: holds more than tensors ({asked[1]}), and such a file can run code, so nothing of it was "
                    "read; where you trust it, torch.load(FILE, weights_only=False) and torch.save of its state dict "
                    "alone make a file that is read here"
                ) from None
            raise
    return _unwrapped(file, found)


def _refuse_torchscript(file: Path) -> None:
    with reading(file, WeightFileError, _EXPECTED), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise WeightFileError(
            f"{file}: a TorchScript program, expected {_EXPECTED}; load it with torch.jit.load and save its "
            "state_dict() with torch.save"
        )


def _unwrapped(file: Path, found: Any) -> dict[str, Tensor]:
    import torch

    taken: list[str] = []
    while isinstance(found, dict) and not all(isinstance(value, torch.Tensor) for value in found.values()):
        entries = [key for key in (*_WRAPPERS, *_AVERAGES) if isinstance(found.get(key), dict)]
        if not entries or len(taken) > 3:
            odd = next(name for name, value in found.items() if not isinstance(value, torch.Tensor))
            raise WeightFileError(f"{file}: expected {_EXPECTED}, found {str(odd)[:60]!r}: {type(found[odd]).__name__}")
        if len(entries) > 1:
            logger.warning("%s: the tensors of its entry %s; also there: %s", file, entries[0], ", ".join(entries[1:]))
        taken.append(entries[0])
        found = found[entries[0]]
    if not isinstance(found, dict) or not found:
        raise WeightFileError(f"{file}: expected {_EXPECTED}, found {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise WeightFileError(
                f"{file}: expected {_EXPECTED}, found {str(name)[:60]!r}, of kind {value.dtype}, {value.layout}"
            )
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in found)), ""):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return dict(found)


def refuse_unfit(file: Path | str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Compare names and shapes of a file's tensors with those of a network.

    Raises:
        WeightFileError: they differ; says how many are missing, left over or of another shape, and the first of each.
    """
    missing = sorted(expected.keys() - found.keys())
    left = sorted(found.keys() - expected.keys())
    other = sorted(name for name in found.keys() & expected.keys() if tuple(found[name]) != tuple(expected[name]))
    said = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for names, what in ((missing, "tensors missing"), (left, "left over"), (other, "of another shape"))
        if names
    ]
    if said:
        raise WeightFileError(f"{file}: does not fit the network: {', '.join(said)}")
