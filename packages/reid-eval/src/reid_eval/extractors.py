"""Networks that turn pictures into feature vectors, by name: the features a set of pictures is measured in.

inception          the network of the published FID
torchvision:NAME   a torchvision model without its classifier (resnet50, convnext_tiny, vit_b_16, ...)
timm:NAME          the same of timm, if that is installed (vit_small_patch16_224.dino, ...)
reid:RUN           the embeddings of a trained re-ID run, offered by reid-models
random             a small seeded random network for demonstrations

Weights are found and checked when the extractor is made, but the network is built when the first pictures come: a
cached answer then costs no import of torch.

    extractor = extractor_from_name("inception", weights=Path("pt_inception-2015-12-05-6726825d.pth"))
    extractor([pixels, pixels])                        # (2, 2048)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.files import fingerprint, max_pixels
from reid_eval.resizing import RESIZE_TEXT, ResizeRule, resized, rows_by_shape
from reid_eval.weights import (
    find_weights,
    known_weights,
    published_name,
    read_tensors,
    refuse_unfit,
    verify_weights,
    weights_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor, device, nn

# What torchvision's and timm's ImageNet models expect, unless timm says otherwise.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_BACKBONE_HW = (224, 224)

# So many pixels at native size take about 1 GiB in a network.
_PIXELS_AT_ONCE = 1 << 22


class ExtractorError(ReidError):
    """A feature extractor is not known, or cannot be used as asked."""


class Extractor(Protocol):
    """Pictures of any sizes in, one feature vector each out; a picture's vector depends on no other picture."""

    name: str
    """names the metric, fid_<name up to a colon>"""
    quotable: bool
    """False if the number only shows that the machinery works; its metric's name then ends in _demo"""

    @property
    def description(self) -> str:
        """Network, weights and resize, for the protocol sentence."""

    @property
    def num_features(self) -> int:
        """D."""

    @property
    def fingerprint(self) -> str:
        """A hash of whatever decides the vectors."""

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, num_features)."""


def weights_of(extractor: Extractor) -> dict[str, str]:
    """The whole SHA-256 of each weight file that decides an extractor's vectors, as far as it has `weights`."""
    return dict(getattr(extractor, "weights", {}))


def extractor_from_name(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    resize: ResizeRule = "legacy",
    half: bool = False,
    offline: bool = False,
    any_weights: bool = False,
) -> Extractor:
    """`inception`, `torchvision:NAME`, `timm:NAME`, `random`, or what an installed package offers, such as `reid:RUN`.

    A package offers `kind:ARGUMENT` by an entry point named `kind` in the group "reid_eval.extractors", called with
    the argument and the device. `half` computes in bfloat16. `any_weights` takes a file of another content than the
    published one, under a name that cannot be quoted.

    Raises:
        ExtractorError: no such extractor, or one that has no use for what was given.
        WeightFileError: its weights cannot be had.
    """
    kind, _, argument = name.partition(":")
    if name == "inception":
        return InceptionExtractor(
            weights, device=device, resize=resize, half=half, offline=offline, any_weights=any_weights
        )
    if kind in ("torchvision", "timm"):
        if not argument:
            raise ExtractorError(f"--extractor {name}: which one? expected {kind}:NAME, such as {kind}:resnet50")
        return BackboneExtractor(
            kind, argument, weights, device=device, resize=resize, half=half, offline=offline, any_weights=any_weights
        )
    given = {"--weights": weights is not None, "--resize": resize != "legacy", "--half": half}
    for option in (option for option, is_given in given.items() if is_given):
        raise ExtractorError(f"{option}: only for the extractors inception, torchvision and timm, not {name}")
    if name == "random":
        torch_device(device)  # one that is none is refused, though this network has no use for any
        return RandomExtractor()
    from importlib.metadata import entry_points

    offered = {entry.name: entry for entry in entry_points(group="reid_eval.extractors")}
    if kind in offered:
        if not argument:
            raise ExtractorError(f"--extractor {name}: which one? expected {kind}:RUN, the folder of a trained run")
        extractor: Extractor = offered[kind].load()(argument, device)
        return extractor
    if kind == "reid":
        raise ExtractorError(f"--extractor {name}: reid-models is not installed; pip install reid-models")
    known = ["inception", "random", "torchvision:NAME", "timm:NAME", *(f"{offer}:RUN" for offer in sorted(offered))]
    raise ExtractorError(f"--extractor {name}: not known; expected one of {', '.join(known)}")


class _NetworkExtractor(ABC):
    """Weights, device and precision of a network that is built when the first pictures come."""

    def __init__(self, file: Path, network: str, *, sha256: str, device: str, resize: ResizeRule, half: bool) -> None:
        self.file, self.sha256, self.resize, self.half = file, sha256, resize, half
        self.weights = {network: sha256}
        self._device_name = device

    @property
    def fingerprint(self) -> str:
        """A hash of whatever decides the vectors."""
        return fingerprint([self.description, self.sha256])

    @property
    @abstractmethod
    def description(self) -> str:
        """Network, weights and resize, for the protocol sentence."""

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network with its weights in it."""

    @cached_property
    def _device(self) -> device:
        return torch_device(self._device_name)

    @cached_property
    def _network(self) -> nn.Module:
        import torch

        network = self._build().eval().to(self._device)
        network = network.to(memory_format=torch.channels_last)
        return network.to(torch.bfloat16) if self.half else network

    def _run(self, images: Tensor) -> np.ndarray:
        """Network input (B, 3, H, W) to vectors (B, num_features), float32."""
        import torch

        dtype = torch.bfloat16 if self.half else torch.float32
        with torch.inference_mode():
            features: Tensor = self._network(images.to(dtype, memory_format=torch.channels_last))
        return features.flatten(1).float().cpu().numpy()

    def _each_size(
        self, pixels_batch: list[np.ndarray], num_features: int, run: Callable[[list[np.ndarray]], np.ndarray]
    ) -> np.ndarray:
        """Unresized pictures go through the network size by size."""
        vectors = np.empty((len(pixels_batch), num_features), np.float32)
        for rows in rows_by_shape(pixels_batch):
            height, width = pixels_batch[rows[0]].shape[:2]
            if (allowed := max_pixels(_PIXELS_AT_ONCE)) < height * width:
                raise ExtractorError(
                    f"a picture of {height}x{width} pixels, not resized: expected at most {allowed:,}, which take "
                    "about 1 GiB; choose another --resize, or set REID_MAX_PIXELS"
                )
            at_once = max(1, _PIXELS_AT_ONCE // (height * width))
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                vectors[some] = run([pixels_batch[row] for row in some])
        return vectors


class InceptionExtractor(_NetworkExtractor):
    """FID's Inception network (2048 features), fed as the program that the resize rule is named after.

    legacy scales 0..255 to -1..1, the others to (x - 128) / 128.
    """

    num_features = 2048

    def __init__(
        self,
        weights: Path | None = None,
        *,
        device: str = "auto",
        resize: ResizeRule = "legacy",
        half: bool = False,
        offline: bool = False,
        any_weights: bool = False,
    ) -> None:
        published = known_weights("inception")
        file = weights if weights is not None else find_weights(published, offline=offline)
        is_other = any_weights and weights is not None
        sha256 = weights_sha256(file, expected=published) if is_other else verify_weights(published, file)
        self.quotable = sha256.startswith(published.sha256_start)
        self.name = "inception" if self.quotable else "inception_demo"
        super().__init__(file, "inception", sha256=sha256, device=device, resize=resize, half=half)

    @property
    def description(self) -> str:
        """Network, weights and resize."""
        size = "" if self.resize == "none" else "to 299x299, "
        whose = "" if self.quotable else "NOT the published ones, never to be quoted, "
        return (
            f"Inception of 2015-12-05 (pool3, 2048 features), weights {whose}SHA-256 {self.sha256[:8]}, pictures "
            f"{size}{RESIZE_TEXT[self.resize]}{', bfloat16' if self.half else ''}"
        )

    def _build(self) -> nn.Module:
        from reid_eval.inception import FidInception, tensor_shapes

        state = read_tensors(self.file)
        refuse_unfit(self.file, {name: value.shape for name, value in state.items()}, tensor_shapes())
        return FidInception(state)

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, 2048), float32."""
        if self.resize == "none":
            return self._each_size(pixels_batch, self.num_features, self._vectors)
        return self._vectors(pixels_batch)

    def _vectors(self, pixels_batch: list[np.ndarray]) -> np.ndarray:
        from reid_eval.inception import MIN_SIZE_PX

        for pixels in pixels_batch:
            if self.resize == "none" and min(pixels.shape[:2]) < MIN_SIZE_PX:
                raise ExtractorError(
                    f"a picture of {pixels.shape[0]}x{pixels.shape[1]} pixels, not resized: Inception needs at least "
                    f"{MIN_SIZE_PX}x{MIN_SIZE_PX}; choose another --resize"
                )
        levels = resized(pixels_batch, self.resize, (299, 299), self._device)
        return self._run(levels / 127.5 - 1 if self.resize == "legacy" else (levels - 128) / 128)


class BackboneExtractor(_NetworkExtractor):
    """A torchvision or timm model up to its last linear layer, with ImageNet's normalisation.

    Without a weight file the one that torchvision publishes is looked for; timm's models always need a file. A file
    that lacks the last layer (as those of self-supervised models do) fits too.
    """

    def __init__(
        self,
        library: str,
        model: str,
        weights: Path | None,
        *,
        device: str = "auto",
        resize: ResizeRule = "legacy",
        half: bool = False,
        offline: bool = False,
        any_weights: bool = False,
    ) -> None:
        if resize in ("tensorflow", "dgnet"):
            raise ExtractorError(f"--resize {resize}: only for Inception; expected legacy, clean or none for {model}")
        self.library, self.model = library, model
        published = None
        if weights is None:
            published = _published_backbone(library, model)
            weights = find_weights(published, offline=offline)
        sha256 = weights_sha256(weights)
        if (said := published_name(weights.name)) and not any_weights:
            verify_weights(said, weights)
        self.quotable = not any_weights
        safe = "".join(character if character.isalnum() else "_" for character in model.lower())
        self.name = f"{safe}:{sha256[:8]}"
        super().__init__(weights, model, sha256=sha256, device=device, resize=resize, half=half)

    @property
    def description(self) -> str:
        """Network, weights and resize."""
        size = "" if self.resize == "none" else "to the model's size, "
        whose = "" if self.quotable else "NOT as published, never to be quoted, "
        return (
            f"{self.library}'s {self.model} before its last linear layer, weights {whose}{self.file.name}, SHA-256 "
            f"{self.sha256[:8]}, pictures {size}{RESIZE_TEXT[self.resize]}{', bfloat16' if self.half else ''}"
        )

    @cached_property
    def _made(self) -> tuple[nn.Module, int, tuple[int, int], Any, Any]:
        """Network, length of its vectors, size, mean and deviation of its input."""
        if self.library == "timm":
            return _timm_model(self.model, self.file)
        return (*_torchvision_model(self.model, self.file), _BACKBONE_HW, _IMAGENET_MEAN, _IMAGENET_STD)

    def _build(self) -> nn.Module:
        return self._made[0]

    @property
    def num_features(self) -> int:
        """D."""
        return self._made[1]

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, num_features), float32."""
        if self.resize == "none":
            return self._each_size(pixels_batch, self.num_features, self._vectors)
        return self._vectors(pixels_batch)

    def _vectors(self, pixels_batch: list[np.ndarray]) -> np.ndarray:
        import torch

        _, _, image_hw, mean, std = self._made
        levels = resized(pixels_batch, self.resize, image_hw, self._device)
        shift, scale = (torch.tensor(values, device=self._device)[:, None, None] for values in (mean, std))
        try:
            return self._run((levels / 255 - shift) / scale)
        except (RuntimeError, AssertionError) as error:
            if self.resize != "none":
                raise
            reason = str(error).strip().splitlines()[0]
            raise ExtractorError(f"--resize none: {self.model} does not take these pictures ({reason})") from None


def _published_backbone(library: str, model: str) -> Any:
    for name in (model, model.replace("-", "_")):
        if library == "torchvision":
            try:
                return known_weights(name)
            except ReidError:
                break
    raise ExtractorError(f"--extractor {library}:{model}: needs its weight file; name it with --weights FILE")


def _torchvision_model(name: str, file: Path) -> tuple[nn.Module, int]:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ExtractorError(f"--extractor torchvision:{name}: torchvision has no classifier of this name")
    extra = {"init_weights": False, "aux_logits": False} if name in ("inception_v3", "googlenet") else {}
    return _without_classifier(torchvision.models.get_model(name, weights=None, **extra), name, file)


def _timm_model(name: str, file: Path) -> tuple[nn.Module, int, tuple[int, int], Any, Any]:
    try:
        import timm
    except ImportError:
        raise ExtractorError(f"--extractor timm:{name}: timm is not installed; pip install timm") from None
    try:
        network = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise ExtractorError(f"--extractor timm:{name}: {str(error).splitlines()[0]}") from None
    expects = network.pretrained_cfg
    if any(isinstance(module, _linear()) for module in network.get_classifier().modules()):
        network, num_features = _without_classifier(network, name, file)
    else:  # a model published without a classifier
        _load_strictly(network, read_tensors(file), file)
        num_features = network.num_features
    return network, num_features, expects["input_size"][1:], expects["mean"], expects["std"]


def _linear() -> type:
    from torch import nn

    return nn.Linear


def _without_classifier(network: nn.Module, name: str, file: Path) -> tuple[nn.Module, int]:
    """A network with its last linear layer taken off and a file's weights in it, and how many features that layer
    saw.
    """
    from torch import nn

    linears = [(where, module) for where, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ExtractorError(f"{name}: has no linear layer to take features before; choose another model")
    where, last = linears[-1]
    network.set_submodule(where, nn.Identity())
    state = {key: value for key, value in read_tensors(file).items() if not key.startswith(f"{where}.")}
    _load_strictly(network, state, file)
    return network, last.in_features


def _load_strictly(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    own = network.state_dict()
    # Old files lack the counters of batch norms, which evaluation does not read.
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    shapes = ({key: value.shape for key, value in tensors.items()} for tensors in (state, own))
    refuse_unfit(file, *shapes)
    network.load_state_dict(state)


class RandomExtractor:
    """A small convolutional network with seeded random weights: it needs no file, and its distance means nothing.

    It runs on the CPU in float64, so that a demonstration shows the same number everywhere.
    """

    name = "random_demo"
    num_features = 64
    quotable = False
    fingerprint = "random 2019"
    description = (
        "a small network with random weights (64 features), pictures resized to 64x32, bilinear: "
        "for demonstration only, never to be quoted"
    )

    @cached_property
    def _network(self) -> nn.Module:
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(2019)
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((3, 16), (16, 32), (32, self.num_features)):
            conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
            nn.init.normal_(conv.weight, std=(2 / (9 * in_channels)) ** 0.5, generator=generator)
            layers += [conv, nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels (uint8, RGB, (H, W, 3) each) to vectors (B, 64), float64."""
        import torch

        with torch.inference_mode():
            levels = resized(pixels_batch, "legacy", (64, 32), torch.device("cpu"))
            features: Tensor = self._network(2 * (levels / 255).double() - 1)
        return features.numpy()


def torch_device(name: str) -> device:
    """The device of a name; auto is CUDA where there is one.

    Raises:
        ExtractorError: it cannot be used here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        zeros = torch.zeros(1, device=name)
        zeros.cpu()  # "meta" is a device too, but holds no numbers
        return zeros.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExtractorError(f"--device {name}: cannot be used here ({reason}); try auto or cpu") from None
