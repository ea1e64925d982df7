"""Weights that were made elsewhere: by explicit path, strictly, and never by falling back to something else.

    load_trunk_weights(trunk, "weights/resnet50.pth")
    load_trunk_weights(trunk, "imagenet")     # torchvision's file from the torch hub cache, fetched if it is missing

    weights = read_weights("experiment/adam_0/model/model_best.pt")   # what it is: weights.origin.describe()
    network = network_of(weights.origin)                              # the network it fits, random as yet
    report = load_weights(network, weights)                           # all of it, or WeightsError and no change
    write_original(network, "model_best.pt")                          # under the original's names, in its order

Files are read as tensors and plain containers only: nothing in them can run code (see `foreign`).
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import yaml
from torch import Tensor, nn

from reid_eval.files import atomic_path, file_fingerprint
from reid_eval.reading import read_text, reading
from reid_models.foreign import entries_of, read_content, split_entry
from reid_models.networks import MGN, PCB, Baseline, ReidNetwork
from reid_models.networks.resnet import ResNet50Trunk, Trunk, make_trunk
from reid_models.published import (
    Published,
    UnknownNetworkError,
    WeightsError,
    bare_names,
    baseline_names,
    mgn_names,
    recognise,
)
from reid_models.runs import Checkpoint

logger = logging.getLogger(__name__)

_BATCH_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file, all finite, and what they are."""

    path: Path
    origin: Published | Checkpoint
    state: dict[str, Tensor]
    """by the file's own names, less what a wrapper put before all of them"""
    notices: tuple[str, ...] = ()

    def describe(self) -> str:
        """What the file is, in a few words."""
        if isinstance(self.origin, Checkpoint):
            return f"checkpoint of a {self.origin.kind} run at iteration {self.origin.iteration}"
        return self.origin.describe()

    def names(self, ours: Iterable[str]) -> dict[str, str]:
        """The file's name for each of our names, in the file's order."""
        if isinstance(self.origin, Checkpoint):
            return {name: name for name in ours}
        return self.origin.file_names(ours)


@dataclass(frozen=True)
class WeightsReport:
    """How the tensors of a file and of a network meet, by the file's names."""

    file: str
    what: str
    network: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """the network has them, the file has not"""
    left_over: tuple[str, ...]
    """the file has them, the network has not"""
    reshaped: tuple[str, ...]
    """both have them, of different shapes, which are told"""
    dropped: tuple[str, ...]
    """left out on purpose; what the network has of them stays as it is"""
    notices: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, left over or reshaped."""
        return not (self.missing or self.left_over or self.reshaped)

    def to_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"matched     {len(self.matched)} tensors of {self.network}"]
        for title, names in self._unmatched().items():
            lines.append(f"{title:<12}{len(names) or 'none'}")
            lines.extend(f"            {name}" for name in names)
        if self.dropped:
            lines.append(f"left out    {', '.join(self.dropped)}")
        lines.extend(f"note        {notice}" for notice in self.notices)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"fits": self.fits}

    def refusal(self) -> str:
        """Why it does not fit, in one line."""
        found = "; ".join(
            f"{len(names)} {title} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for title, names in self._unmatched().items()
            if names
        )
        return (
            f"{self.file}: {self.what}, does not fit {self.network}: {found}; nothing was loaded; "
            "name what to leave out (names, or what they begin with), or take the network that the file is of"
        )

    def _unmatched(self) -> dict[str, tuple[str, ...]]:
        return {"missing": self.missing, "left over": self.left_over, "reshaped": self.reshaped}


def read_weights(source: Path | str) -> WeightFile:
    """Read a file and say what it is: a state dict of a published network, or a checkpoint of ours.

    The state dict may lie at any depth among other things, such as an optimizer's; where several are of networks known
    here, "FILE::ENTRY" names one. Of MGN-pytorch the experiment's config.txt is read too, of the re-id baseline
    opts.yaml, when they lie where those programs put them.

    Raises:
        WeightsError: no such file, damaged, more than tensors, a weight that is not finite, no network known here, or
            several.
        CheckpointError: a checkpoint of ours in an unknown format.
    """
    file, entry = split_entry(source)
    content = read_content(file)
    if {"kind", "iteration", "networks", "format"} <= content.keys() and not entry:
        checkpoint = Checkpoint.load(file)
        for state in checkpoint.networks.values():
            refuse_unusable(file, state)
        networks = checkpoint.networks  # a moving average, where one was kept, is what was evaluated
        return WeightFile(file, checkpoint, networks.get("average", networks.get("reid", {})))

    def known(shapes: Mapping[str, Sequence[int]]) -> Published:
        return recognise(shapes, str(file))

    origin, state, notices = _network_in(file, entry, content, known)
    if origin.leaky:
        notices = (*notices, "its own evaluation ranked by the trunk's 2048 numbers; here those of the bottleneck are")
    return WeightFile(file, _with_settings(origin, file), state, notices)


def _network_in(
    file: Path, entry: str, content: Mapping[str, Any], known: Callable[[Mapping[str, Sequence[int]]], Published]
) -> tuple[Published, dict[str, Tensor], tuple[str, ...]]:
    """The one network that `known` knows among the tensors of a file, those tensors, and what is to be told."""
    entries = entries_of(content)
    if entry:
        if entry not in entries:
            raise WeightsError(f"{file}: has no entry {entry} of names and tensors; found {_listed(entries) or 'none'}")
        entries = {entry: entries[entry]}
    found, refusals = {}, []
    for place, state in entries.items():
        try:
            found[place] = bare_names({name: value.shape for name, value in state.items()}, known)
        except UnknownNetworkError as error:
            refusals.append((len(state), str(error)))
    if len(found) > 1:
        raise WeightsError(
            f"{file}: holds {len(found)} networks, {_listed(found)}; say which is meant, such as "
            f"{file}::{list(found)[-1]}"
        )
    if not found:
        if not refusals:
            refuse_unusable(file, content)  # which names the first entry that is no tensor
        raise UnknownNetworkError(max(refusals)[1])
    ((place, (origin, bare, notices)),) = found.items()
    if place:
        notices = (f"taken from the entry {place}; what lies beside it is not read", *notices)
    state = {bare[name]: value for name, value in entries[place].items()}
    refuse_unusable(file, state)
    return origin, state, notices


def _listed(names: Iterable[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def refuse_unusable(source: Path | str, state: Mapping[str, Tensor]) -> None:
    """Let only names and plain, finite tensors pass.

    Raises:
        WeightsError: the first entry that is anything else.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise WeightsError(
                f"{source}: expected a state dict (names and tensors), found {name!r}: {type(value).__name__}"
            )
        if not _told(source, name, value).isfinite().all():
            raise WeightsError(f"{source}: {name} holds NaN or infinity, so the network would compute nothing else")


def _told(source: Path | str, name: str, value: Tensor) -> Tensor:
    """The numbers of a tensor that a file really holds: those that are said again along a dimension are seen once."""
    once = value[tuple(slice(None) if step else slice(0, 1) for step in value.stride())]
    if once.numel() * once.element_size() > once.untyped_storage().nbytes():
        raise WeightsError(f"{source}: {name} of shape {tuple(value.shape)} holds more numbers than its file")
    return once


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta)


def _with_settings(origin: Published, file: Path) -> Published:
    config_txt, opts = file.absolute().parent.parent / "config.txt", file.parent / "opts.yaml"
    if origin.maker != "ReID-MGN" and origin.kind == "mgn" and config_txt.is_file():
        return origin.with_config_txt(config_txt.read_text(encoding="utf-8", errors="replace"), str(config_txt))
    if origin.kind in ("baseline", "pcb") and opts.is_file():
        expected = "the options of a training in YAML"
        text = read_text(opts, WeightsError, expected)
        with reading(opts, WeightsError, expected, remedy="correct or remove it"):
            values = yaml.safe_load(text)
        return origin.with_opts(values, str(opts))
    return origin


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]


def compare(
    network: nn.Module, weights: WeightFile, drop: Sequence[str] = (), *, features_only: bool = False
) -> WeightsReport:
    """How a file fits a network; arguments as of `load_weights`.

    Raises:
        WeightsError: `drop` names nothing that the file or the network has.
    """
    own = network.state_dict()
    names = weights.names(own)
    wanted = {theirs: own[ours].shape for ours, theirs in names.items()}
    unused = () if isinstance(weights.origin, Checkpoint) else weights.origin.unused
    everything = dict.fromkeys([*wanted, *weights.state])
    for text in drop:
        if not text or not any(name.startswith(text) for name in everything):
            raise WeightsError(f"{weights.path}: neither the file nor the network has {text!r}, which is to be dropped")
    dropped = {name for name in everything if name.startswith((*unused, *drop))}
    notices = list(weights.notices)
    if features_only:
        classifiers = {theirs for ours, theirs in names.items() if re.search(r"(^|\.)classifier\.", ours)}
        misfits = [
            name for name in classifiers if name not in weights.state or weights.state[name].shape != wanted[name]
        ]
        if misfits:
            notices.append(
                f"{len(misfits)} tensors of classifiers do not fit and are left out: features do not need them"
            )
            dropped |= classifiers
    counters = {name for name in wanted if name.endswith(_BATCH_COUNTER) and name not in weights.state}
    if counters:
        notices.append(f"{len(counters)} batch counters are not in the file (PyTorch before 0.4.1) and start at 0")
    both = [name for name in wanted if name in weights.state and name not in dropped]
    return WeightsReport(
        file=str(weights.path),
        what=weights.describe(),
        network=type(network).__name__,
        matched=tuple(name for name in both if weights.state[name].shape == wanted[name]),
        missing=tuple(name for name in wanted if name not in weights.state and name not in dropped | counters),
        left_over=tuple(name for name in weights.state if name not in wanted and name not in dropped),
        reshaped=tuple(
            f"{name} {tuple(weights.state[name].shape)}, not {tuple(wanted[name])}"
            for name in both
            if weights.state[name].shape != wanted[name]
        ),
        dropped=tuple(name for name in everything if name in dropped),
        notices=tuple(notices),
    )


def load_weights(
    network: nn.Module, file: WeightFile | Path | str, drop: Sequence[str] = (), *, features_only: bool = False
) -> WeightsReport:
    """Fill a network with a file's weights: all of them, or none.

    `drop` holds names, or what names begin with, in the file's spelling: those are not loaded, and where the network
    has them it keeps what it has. With `features_only` the classifiers are dropped when they are of another size.

    Raises:
        WeightsError: the file cannot be used (see `read_weights`) or does not fit; the network is unchanged.
    """
    weights = file if isinstance(file, WeightFile) else read_weights(file)
    report = compare(network, weights, drop, features_only=features_only)
    if not report.fits:
        raise WeightsError(report.refusal())
    for notice in report.notices:
        logger.warning("%s: %s", weights.path, notice)
    own, matched, dropped = network.state_dict(), set(report.matched), set(report.dropped)
    loaded = {ours: weights.state[theirs] for ours, theirs in weights.names(own).items() if theirs in matched}
    counters = {
        ours: torch.zeros_like(own[ours])
        for ours, theirs in weights.names(own).items()
        if ours.endswith(_BATCH_COUNTER) and theirs not in matched | dropped
    }
    network.load_state_dict(own | counters | loaded)
    logger.info("%s: %d tensors of %s", type(network).__name__, len(matched), weights.path)
    return report


def network_of(origin: Published, num_ids: int | None = None) -> ReidNetwork | Trunk:
    """The network that a published file is of, with random weights; `num_ids` for classifiers of another size."""
    num_ids = origin.num_ids if num_ids is None else num_ids
    trunk = make_trunk(origin.trunk, last_stride=origin.last_stride)
    match origin.kind:
        case "trunk":
            return trunk
        case "baseline":
            return Baseline(trunk, num_ids, bottleneck=origin.head_features, leaky=origin.leaky)
        case "pcb":
            return PCB(trunk, num_ids, num_stripes=origin.stripes[0], head_features=origin.head_features)
        case "mgn":
            return MGN(
                trunk,
                num_ids,
                origin.stripes,
                head_features=origin.head_features,
                pool=origin.pool,
                classifier_bias=origin.classifier_bias,
                first_stride=origin.last_stride,
            )


def published_as(network: ReidNetwork) -> Published:
    """The published network that one of ours equals.

    Raises:
        WeightsError: there is none; the setting that makes the difference is named.
    """
    pool: Any = "avg"
    strided: Any  # what has the stage whose stride a file does not tell
    strides: tuple[int, ...]
    match network:
        case MGN():
            names, strided, strides = mgn_names(network.granularities), network.branches[0], (2,)
            pool, head = network.pools[0].kind, network.heads[0]
            bias = "with" if head.classifier.bias is not None else "without"
            _refuse_unpublished("neck", head.neck, ("relu",))
            _refuse_unpublished("pool", pool, ("avg", "max"))
            _refuse_unpublished(
                "granularities",
                f"{'-'.join(map(str, network.granularities))} {bias} classifier bias",
                ("1-2-3 with classifier bias", "1-2-4 without classifier bias", "1-3-4 without classifier bias"),
            )
        case PCB():
            names, strided, strides = baseline_names(len(network.heads)), network.trunk, (1,)
        case Baseline():
            if network.leaky:
                raise WeightsError("a baseline of 2018 is read and not written; save the file that it was read from")
            names, strided, strides = baseline_names(), network.trunk, (1, 2)
    state = network.state_dict()
    trunk = "resnet50_ibn_a" if any(".IN." in name for name in state) else "resnet50"
    _refuse_unpublished("trunk", trunk if any(".layer1." in name for name in state) else "small", ("resnet50",))
    stride = strided.layer4[0].conv2.stride[0]
    _refuse_unpublished("first_stride" if isinstance(network, MGN) else "last_stride", stride, strides)
    theirs = Published("trunk", "", names).file_names(state)
    found = recognise({theirs[ours]: value.shape for ours, value in state.items()}, type(network).__name__)
    return dataclasses.replace(found, pool=pool, last_stride=stride)


def _refuse_unpublished(setting: str, value: object, published: Sequence[object]) -> None:
    if value not in published:
        raise WeightsError(
            f"network.{setting}={value}: no published program has such a network, so none could load it; "
            f"published: {', '.join(map(str, published))}"
        )


def original_state(network: ReidNetwork) -> dict[str, Tensor]:
    """A network's tensors by the names and in the order of the program that published it, which loads them strictly.

    The re-id baseline keeps ImageNet's classifier and never uses it; here it is zeros.

    Raises:
        WeightsError: no published program has such a network.
    """
    own = network.state_dict()
    state = {theirs: own[ours].detach().cpu() for ours, theirs in published_as(network).file_names(own).items()}
    in_trunk = {name: value for name, value in state.items() if name.startswith("model.")}
    unused = {"model.fc.weight": torch.zeros(1000, 2048), "model.fc.bias": torch.zeros(1000)} if in_trunk else {}
    return in_trunk | unused | state


def write_original(network: ReidNetwork, file: Path | str) -> Published:
    """Write a network's weights for the program that published it; says what was written.

    Raises:
        WeightsError: no published program has such a network; or a weight is not finite.
        OutputError: the file cannot be written.
    """
    state = original_state(network)
    refuse_unusable("the network", state)
    write_contents({Path(file): OrderedDict(state)})
    return published_as(network)


def write_contents(contents: Mapping[Path, Any]) -> None:
    """Write files of tensors and plain containers for programs from before PyTorch 1.6, in its format: all, or none.

    Raises:
        OutputError: one cannot be written.
    """
    with ExitStack() as stack:
        for file, content in contents.items():
            part = stack.enter_context(atomic_path(file))
            with part.open("wb") as stream:
                try:
                    torch.save(content, stream, _use_new_zipfile_serialization=False)
                except RuntimeError as error:
                    raise OSError(f"PyTorch could not write it: {_first_line(str(error))}") from error


def load_trunk_weights(trunk: nn.Module, source: str, *, setting: str = "network.weights") -> None:
    """Fill a trunk with weights from `source`: a file, "imagenet" (torchvision's ResNet-50, V1), or "none".

    The entries of a classifier (`fc.*`) are left out; everything else must match. "none" keeps the random weights.
    `setting` is the one that holds `source`, for messages.

    Raises:
        WeightsError: no such file, it cannot be read or fetched, or its tensors are not the trunk's.
    """
    if source == "none":
        logger.warning("the trunk starts from random weights (%s is none)", setting)
        return
    if source == "imagenet":
        if not isinstance(trunk, ResNet50Trunk):
            raise WeightsError(
                f"{setting}=imagenet: these weights are for trunk resnet50; set {setting}=none for another"
            )
        file, entry = _imagenet_file(setting), ""
    else:
        file, entry = split_entry(source)
        if not file.is_file():
            raise WeightsError(f"{file}: no such weight file; give its path, imagenet, or none for random weights")
    own = trunk.state_dict()

    def known(shapes: Mapping[str, Sequence[int]]) -> Published:
        if not own.keys() & shapes.keys():
            raise UnknownNetworkError(
                f"{file}: {len(shapes)} tensors ({_first_names(shapes)}), none called as those of the trunk "
                f"({_first_names(own)}); give a file of this trunk alone"
            )
        return _ANY_TRUNK

    _, state, notices = _network_in(file, entry, read_content(file), known)
    load_weights(trunk, WeightFile(file, _ANY_TRUNK, state, notices))


def _first_names(names: Iterable[str]) -> str:
    return ", ".join([*list(names)[:2], "..."])


_ANY_TRUNK = Published("trunk", "a trunk's weights", (("", ""),), unused=("fc.",))


_IMAGENET_FILE = "resnet50-0676ba61.pth"
"""torchvision's IMAGENET1K_V1; the digits are the beginning of its SHA-256"""


def _imagenet_file(setting: str) -> Path:
    """torchvision's file in the torch hub cache, fetched when missing, its checksum compared with its name."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / _IMAGENET_FILE
    checksum = _IMAGENET_FILE.rsplit("-", 1)[1].removesuffix(".pth")
    if not file.is_file():
        from torchvision.models import ResNet50_Weights  # which takes seconds to import

        url = ResNet50_Weights.IMAGENET1K_V1.url
        logger.warning("fetching ImageNet weights (98 MB): %s -> %s", url, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"{file}: not there, and could not be fetched from {url} ({error}); put the file there, "
                f"or set {setting} to a file, or to none for random weights"
            ) from None
    elif not file_fingerprint(file).startswith(checksum):
        raise WeightsError(f"{file}: damaged (its SHA-256 does not begin with {checksum}); remove it and run again")
    return file
