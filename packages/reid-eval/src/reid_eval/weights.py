"""Weight files of the networks that measure pictures: which are known, where they lie, whether they are whole.

A file is looked for in the folders of $REID_WEIGHTS, in `weights/` of our cache folder and in torch hub's cache; then
it is fetched, with a notice, unless that is forbidden. A file of another content is refused: nothing ever takes its
place.

    file = find_weights(known_weights("inception"))       # the path of a verified file, or WeightFileError
    import_weights("Downloads")                           # copies what it knows into the cache
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reid_eval.errors import ReidError
from reid_eval.files import atomic_path, file_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class WeightFileError(ReidError):
    """A weight file is missing, damaged, of another content, or does not fit its network."""


@dataclass(frozen=True)
class WeightFile:
    """A published weight file: its name in commands, its file name, the beginning of its SHA-256 and its size."""

    name: str
    file: str
    sha256_start: str
    size: str
    purpose: str


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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reid-eval"


def search_folders() -> list[Path]:
    """The folders weights are looked for in, in this order."""
    named = [Path(folder) for folder in os.environ.get("REID_WEIGHTS", "").split(os.pathsep) if folder]
    torch_home = (
        os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    )
    return [*named, cache_folder() / "weights", Path(torch_home) / "hub" / "checkpoints"]


def is_offline() -> bool:
    """Whether $REID_OFFLINE forbids fetching."""
    return os.environ.get("REID_OFFLINE", "") not in ("", "0")


def locate(weights: WeightFile) -> Path | None:
    """The first file of this name in the search folders, or None. LPIPS' heads also lie in the package lpips, if
    installed.
    """
    folders = search_folders()
    if weights.name.startswith("lpips-") and (package := importlib.util.find_spec("lpips")) is not None:
        folders += [Path(place) / "weights" / "v0.1" for place in package.submodule_search_locations or ()]
    return next((folder / weights.file for folder in folders if (folder / weights.file).is_file()), None)


def find_weights(weights: WeightFile, *, offline: bool = False) -> Path:
    """The verified file of published weights, fetched into the cache, with a notice, if it is nowhere.

    Raises:
        WeightFileError: it cannot be had, or what lies there is damaged or something else.
    """
    file = locate(weights)
    if file is None:
        file = fetch_weights(weights, offline=offline)
    verify_weights(weights, file)
    return file


def verify_weights(weights: WeightFile, file: Path) -> str:
    """The SHA-256 of a file, which has to be that of the published weights.

    Raises:
        WeightFileError: it is not, or there is no such file.
    """
    sha256 = weights_sha256(file, expected=weights)
    if not sha256.startswith(weights.sha256_start):
        raise WeightFileError(
            f"{file}: SHA-256 {sha256[:8]}..., expected {weights.sha256_start[:8]}...: damaged, or not {weights.file} "
            f"({weights.size}); remove it, or name the right file with --weights"
        )
    return sha256


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
    """Fetch a published file into the cache folder and verify it.

    Raises:
        WeightFileError: that is forbidden, not possible, or gives another content.
    """
    file = cache_folder() / "weights" / weights.file
    address = _address(weights)
    wanted = f"{weights.file} ({weights.size}, SHA-256 {weights.sha256_start[:8]}...)"
    source = f"get it from {address}" if address else "it is in the package lpips: pip install --no-deps lpips"
    remedy = f"{source} and put it at {file} or into a folder named by REID_WEIGHTS, or name it with --weights FILE"
    if offline or is_offline() or not address:
        why = "" if not address else ", and fetching is forbidden (--offline or REID_OFFLINE)"
        raise WeightFileError(f"{wanted}: in none of {', '.join(map(str, search_folders()))}{why}; {remedy}")
    import torch

    logger.warning("fetching %s: %s -> %s", wanted, address, file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(file), hash_prefix=weights.sha256_start)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightFileError(f"{file}: not there, and {wanted} could not be fetched ({error}); {remedy}") from None
    return file


def _address(weights: WeightFile) -> str:
    """Where the file is published, as the package that it belongs to says; "" if it ships inside a package."""
    if weights.name.startswith("lpips-"):
        return ""
    if weights.name == "inception":
        from pytorch_fid.inception import FID_WEIGHTS_URL

        return str(FID_WEIGHTS_URL)
    from torchvision.models import get_model_weights

    published = [str(choice.url) for choice in get_model_weights(weights.name)]
    return next(address for address in published if address.endswith(f"/{weights.file}"))


def import_weights(folder: Path | str) -> list[tuple[WeightFile, Path]]:
    """Copy the known files below a folder, whatever they are called, into the cache: what was copied and whereto.

    Raises:
        WeightFileError: there is no such folder, or nothing known in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightFileError(f"{folder}: no such folder; expected one that holds weight files")
    candidates = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".pth", ".pt"))
    copied = []
    for path in candidates:
        sha256 = weights_sha256(path)
        for weights in KNOWN:
            if sha256.startswith(weights.sha256_start):
                file = cache_folder() / "weights" / weights.file
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


@dataclass(frozen=True)
class WeightStatus:
    """Where a known file lies, if anywhere, and whether it is whole ("unchecked" unless asked)."""

    weights: WeightFile
    file: Path | None
    state: Literal["missing", "unchecked", "whole", "damaged"]


def weights_status(*, verify: bool = False) -> list[WeightStatus]:
    """Of every known file."""
    found = []
    for weights in KNOWN:
        file = locate(weights)
        state: Literal["missing", "unchecked", "whole", "damaged"] = "unchecked" if file else "missing"
        if file and verify:
            state = "whole" if weights_sha256(file).startswith(weights.sha256_start) else "damaged"
        found.append(WeightStatus(weights, file, state))
    return found


def published_name(file: str) -> WeightFile | None:
    """A torchvision file says the beginning of its SHA-256 in its name: resnet50-11ad3fa6.pth."""
    match = re.fullmatch(r"([\w.-]+)-([0-9a-f]{8})\.pth", file)
    return WeightFile(match[1], file, match[2], "size as published by torchvision", "") if match else None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name; nothing in the file is executed. Wrapping dictionaries are opened.

    Raises:
        WeightFileError: it cannot be read, or holds no tensors.
    """
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightFileError(f"{file}: no such file") from None
    except Exception as error:  # what torch raises for a file that is none is not defined
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightFileError(f"{file}: not a weight file ({reason}); expected a dictionary of tensors") from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise WeightFileError(f"{file}: not a weight file; expected a dictionary of tensors")
    return found


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
