"""Weights that were made elsewhere: by explicit path, strictly, and never by falling back to something else.

load_trunk_weights(trunk, "weights/resnet50.pth")
load_trunk_weights(trunk, "imagenet")     # torchvision's file from the torch hub cache, fetched there if it is missing
"""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from reid_eval.errors import ReidError
from reid_eval.files import file_fingerprint
from reid_models.networks.resnet import ResNet50Trunk

logger = logging.getLogger(__name__)


class WeightsError(ReidError):
    """A weight file is missing, damaged, or does not fit the network."""


def load_trunk_weights(trunk: nn.Module, source: str) -> None:
    """Fill a trunk with weights from `source`: a file, "imagenet" (torchvision's ResNet-50, V1), or "none".

    The entries of a classifier (`fc.*`) are left out; everything else must match. "none" keeps the random weights.

    Raises:
        WeightsError: no such file, it cannot be read or fetched, or its tensors are not the trunk's.
    """
    if source == "none":
        logger.warning("the trunk starts from random weights (network.weights is none)")
        return
    if source == "imagenet":
        if not isinstance(trunk, ResNet50Trunk):
            raise WeightsError(
                "network.weights=imagenet: these weights are for trunk resnet50; set network.weights=none for another"
            )
        file = _imagenet_file()
    else:
        file = Path(source)
    state = _read_state(file)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    _load_strictly(trunk, state, file)
    logger.info("trunk: weights of %s", file)


def _imagenet_file() -> Path:
    """torchvision's file in the torch hub cache, fetched when missing, its checksum compared with its name."""
    from torchvision.models import ResNet50_Weights

    url = ResNet50_Weights.IMAGENET1K_V1.url
    name = url.rsplit("/", 1)[1]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    checksum = name.rsplit("-", 1)[1].removesuffix(".pth")
    if not file.is_file():
        logger.warning("fetching ImageNet weights (98 MB): %s -> %s", url, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"{file}: not there, and could not be fetched from {url} ({error}); put the file there, "
                "or set network.weights to a file, or to none for random weights"
            ) from None
    elif not file_fingerprint(file).startswith(checksum):
        raise WeightsError(f"{file}: damaged (its SHA-256 does not begin with {checksum}); remove it and run again")
    return file


def _read_state(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise WeightsError(f"{file}: no such weight file; give its path, imagenet, or none for random weights")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever zip, pickle or the file system raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{file}: damaged or no weight file ({reason[:120]})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file}: expected a state dict (names and tensors), found something else")
    return state


def _load_strictly(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    own = network.state_dict()
    # Files from before PyTorch 0.4.1 have no batch counters; PyTorch reads them, and so do we.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    left_over = sorted(state.keys() - own.keys())
    misfits = [name for name in own if name in state and own[name].shape != state[name].shape]
    for what, names in (("missing", missing), ("not known", left_over), ("of another shape", misfits)):
        if names:
            raise WeightsError(
                f"{file}: {len(names)} of {len(own)} tensors {what} ({', '.join(names[:3])}, ...); "
                "is this a file for this trunk?"
            )
    network.load_state_dict(own | state)
