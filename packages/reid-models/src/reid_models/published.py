"""Weight files that other people's code writes: what a file is, and the names its tensors have in our networks.

Names and shapes in, names out: no files, no networks. Tensors are called as the file calls them unless a name says
`ours`. What a file does not tell (pooling, strides, input size) is the published default until a settings file says
otherwise; `settings_from` names that file.

    published = recognise({name: value.shape for name, value in state.items()}, source="model_best.pt")
    published.describe()                                   # "MGN-pytorch, granularities 1-2-3"
    published.file_names(["heads.0.reduce.weight"])        # {"heads.0.reduce.weight": "reduction_0.0.weight"}
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from reid_eval.errors import ReidError

T = TypeVar("T")

Names = tuple[tuple[str, str], ...]
"""What a name begins with in the file, and in ours; in the file's order."""


class WeightsError(ReidError):
    """A weight file is missing, damaged, or does not fit the network."""


class UnknownNetworkError(WeightsError):
    """The tensors of a file are of no network known here."""


@dataclass(frozen=True)
class Published:
    """A network as somebody published it."""

    kind: Literal["mgn", "pcb", "baseline", "trunk"]
    maker: str
    """whose code writes such files"""
    names: Names
    stripes: tuple[int, ...] = ()
    """of each branch of MGN (the granularities); of PCB one number; else none"""
    num_ids: int = 0
    """0 for a trunk"""
    head_features: int = 0
    """length of the vector of each head"""
    classifier_bias: bool = True
    trunk: Literal["resnet50", "resnet50_ibn_a"] = "resnet50"
    unused: tuple[str, ...] = ()
    """beginnings of names that are in the file and that no forward pass reads"""
    pool: Literal["avg", "max"] = "avg"
    last_stride: int = 2
    """of the trunk, or of MGN's first branch"""
    image_hw: tuple[int, int] = (256, 128)
    leaky: bool = False
    """whether a leaky ReLU stands before the classifier of the baseline"""
    settings_from: str | None = None
    """the file that told pool, last_stride and image_hw; None when they are assumed"""

    @property
    def num_heads(self) -> int:
        """How many vectors an embedding is put together from."""
        match self.kind:
            case "mgn":
                return len(self.stripes) + sum(self.stripes[1:])
            case "pcb":
                return self.stripes[0]
            case "baseline":
                return 1
        return 0

    def describe(self) -> str:
        """Whose network it is, and of which form."""
        form = {
            "mgn": f"granularities {'-'.join(map(str, self.stripes))}",
            "pcb": f"PCB of {' '.join(map(str, self.stripes))} parts",
            "baseline": "ft_net",
        }
        ibn = " on ResNet-50-IBN-a" if self.trunk == "resnet50_ibn_a" else ""
        return f"{self.maker}, {form[self.kind]}{ibn}" if self.kind in form else self.maker

    def file_names(self, ours: Iterable[str]) -> dict[str, str]:
        """The file's name for each of our names, module by module in the file's order.

        A name that the file has no word for keeps its own, last.
        """
        ours = list(ours)
        named = {
            name: theirs_begins + name.removeprefix(ours_begins)
            for theirs_begins, ours_begins in self.names
            for name in ours
            if name.startswith(ours_begins)
        }
        return named | {name: name for name in ours if name not in named}

    def with_config_txt(self, text: str, source: str) -> Published:
        """As trained with the options in MGN-pytorch's config.txt; another program's config.txt changes nothing."""
        # Every start of the original appends its options: the last ones count.
        options = dict(re.findall(r"^(pool|height|width): (.*)$", text, re.MULTILINE))
        if not options:
            return self
        pool, height, width = (options.get(name, "") for name in ("pool", "height", "width"))
        if pool not in ("avg", "max") or not (height.isdecimal() and width.isdecimal()):
            raise WeightsError(
                f"{source}: pool {pool!r}, height {height!r}, width {width!r}; expected avg or max and two numbers, as "
                "MGN-pytorch writes them; correct or remove this file"
            )
        return dataclasses.replace(self, pool=pool, image_hw=(int(height), int(width)), settings_from=source)

    def with_opts(self, values: Any, source: str) -> Published:
        """As trained with the baseline repository's opts.yaml, of which only the stride matters here."""
        stride = values.get("stride", 2) if isinstance(values, Mapping) else None
        if stride not in (1, 2):
            raise WeightsError(
                f"{source}: expected a mapping with stride 1 or 2, as the re-id baseline writes it; correct this file"
            )
        if self.kind == "pcb":  # which has stride 1 whatever its options say
            return self
        return dataclasses.replace(self, last_stride=stride, settings_from=source)


def mgn_names(stripes: Sequence[int], *, trunk: str = "backone", shared_reduction: bool = False) -> Names:
    """MGN-pytorch's names (its trunk really is spelled "backone") in the order of its modules.

    `shared_reduction` is ReID-MGN's: one reduction, which all our heads take.
    """
    branches = range(len(stripes))
    parts = [(branch, stripe) for branch in branches[1:] for stripe in range(stripes[branch])]
    heads = range(len(stripes) + len(parts))
    stages = ("0.", "conv1."), ("1.", "bn1."), ("4.", "layer1."), ("5.", "layer2."), ("6.", "layer3.0.")
    classifiers = [f"fc_id_2048_{branch}." for branch in branches]
    classifiers += [f"fc_id_256_{branch}_{stripe}." for branch, stripe in parts]
    return (
        *((f"{trunk}.{theirs}", f"shared.{ours}") for theirs, ours in stages),
        *((f"p{b + 1}.{part}.", f"branches.{b}.layer{part + 3}.") for b in branches for part in (0, 1)),
        *(
            (f"reduction{'' if shared_reduction else f'_{head}'}.{part}.", f"heads.{head}.{ours}.")
            for head in heads
            for part, ours in enumerate(("reduce", "norm"))
        ),
        *((theirs, f"heads.{head}.classifier.") for head, theirs in enumerate(classifiers)),
    )


def baseline_names(parts: int | None = None) -> Names:
    """The re-id baseline's names: ft_net's, or with `parts` PCB's."""
    heads = [("classifier.", "")] if parts is None else [(f"classifier{i}.", f"heads.{i}.") for i in range(parts)]
    layers = ("add_block.0.", "reduce."), ("add_block.1.", "norm."), ("classifier.0.", "classifier.")
    return (("model.", "trunk."), *((head + layer, ours + name) for head, ours in heads for layer, name in layers))


EARLY_BASELINE_NAMES: Names = (
    ("model.fc.0.", "reduce."),
    ("model.fc.1.", "norm."),
    ("model.", "trunk."),
    ("classifier.0.", "classifier."),
)
"""The re-id baseline's ft_net of early 2018: its bottleneck stands in place of ImageNet's classifier."""


def recognise(shapes: Mapping[str, Sequence[int]], source: str) -> Published:
    """What a state dict is, from its names and shapes; `source` names it in errors.

    A name too many or too few does not keep a network from being recognised.

    Raises:
        UnknownNetworkError: no network known here.
        WeightsError: what the size of a known network is read from is not there.
    """

    def any_begins(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in shapes)

    ibn = any(".IN." in name for name in shapes)
    trunk: Literal["resnet50", "resnet50_ibn_a"] = "resnet50_ibn_a" if ibn else "resnet50"
    if any_begins("p1.") and (any_begins("backone.") or any_begins("backbone.")):
        return _recognise_mgn(shapes, source)
    if any_begins("model.layer4.") and any_begins("classifier0."):
        parts = len({name.split(".")[0] for name in shapes if re.match(r"classifier\d+\.", name)})
        return Published(
            "pcb", "person re-id baseline", baseline_names(parts), (parts,),
            *_size(shapes, r"classifier\d+\.classifier\.0", source),
            trunk=trunk, unused=("model.fc.",), last_stride=1, image_hw=(384, 192),
        )  # fmt: skip
    if any_begins("model.layer4.") and any_begins("model.fc.0."):
        size = _size(shapes, r"classifier\.0", source)
        return Published(
            "baseline", "person re-id baseline of 2018", EARLY_BASELINE_NAMES, (), *size, trunk=trunk, leaky=True
        )
    if any_begins("model.layer4.") and any_begins("classifier."):
        size = _size(shapes, r"classifier\.classifier\.0", source)
        return Published(
            "baseline", "person re-id baseline", baseline_names(), (), *size, trunk=trunk, unused=("model.fc.",)
        )
    if any_begins("conv1.") and any_begins("layer4."):
        maker = "IBN-Net's ResNet-50-IBN-a" if ibn else "torchvision's ResNet-50"
        return Published("trunk", maker, (("", ""),), trunk=trunk, unused=("fc.",), image_hw=(224, 224))
    raise UnknownNetworkError(
        f"{source}: {len(shapes)} tensors ({', '.join(list(shapes)[:2])}, ...) of no network known here; known are "
        "MGN-pytorch, ReID-MGN, the re-id baseline (ft_net, PCB), torchvision's ResNet-50 and our own checkpoints"
    )


def _recognise_mgn(shapes: Mapping[str, Sequence[int]], source: str) -> Published:
    """MGN: its branches are the p1, p2, ...; the stripes of branch b + 1 the fc_id_256_b_*."""
    num_branches = len({name.split(".")[0] for name in shapes if re.match(r"p\d+\.", name)})
    parts = Counter(branch for branch, _ in {found for name in shapes for found in _STRIPE.findall(name)})
    stripes = (1, *(parts[str(branch)] for branch in range(1, num_branches)))
    if min(stripes[1:], default=2) < 2:
        raise WeightsError(
            f"{source}: an MGN, but its stripes cannot be counted (of the classifiers fc_id_256_BRANCH_STRIPE each "
            f"branch after the first has at least 2, found {', '.join(map(str, stripes[1:]))})"
        )
    num_ids, features, bias = _size(shapes, r"fc_id_(2048|256)_\w+", source)
    trunk = "backone" if any(name.startswith("backone.") for name in shapes) else "backbone"
    shared_reduction = any(name.startswith("reduction.") for name in shapes)
    maker = "MGN-pytorch" if bias else "the study on MGN-pytorch (classifiers without bias)"
    return Published(
        "mgn",
        "ReID-MGN" if trunk == "backbone" else maker,
        mgn_names(stripes, trunk=trunk, shared_reduction=shared_reduction),
        stripes,
        num_ids,
        features,
        bias,
        pool="max" if trunk == "backbone" else "avg",
        image_hw=(384, 128),
    )


MOST_IDS = 10_000_000
_MOST_FEATURES = 1 << 16
_STRIPE = re.compile(r"^fc_id_256_(\d+)_(\d+)\.")


def _size(shapes: Mapping[str, Sequence[int]], classifier: str, source: str) -> tuple[int, int, bool]:
    """Identities, features and bias of a file's classifiers; where they disagree, those of most."""
    sizes = Counter(
        tuple(shape)
        for name, shape in shapes.items()
        if re.fullmatch(rf"{classifier}\.weight", name) and len(shape) == 2 and min(shape) > 0
    )
    if not sizes:
        raise WeightsError(
            f"{source}: has no classifier (no name like {classifier}.weight), so identities cannot be counted"
        )
    (num_ids, features), _ = sizes.most_common(1)[0]
    if num_ids > MOST_IDS or features > _MOST_FEATURES:
        raise WeightsError(f"{source}: classifiers of {num_ids} people by {features} features, more than can be")
    return num_ids, features, any(re.fullmatch(rf"{classifier}\.bias", name) for name in shapes)


_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""what DataParallel, torch.compile, and sharding put into the names of what they wrap"""


def bare_names(
    shapes: Mapping[str, Sequence[int]], recognise: Callable[[Mapping[str, Sequence[int]]], T]
) -> tuple[T, dict[str, str], tuple[str, ...]]:
    """What `recognise` makes of a state dict once nothing is left in its names that wrappers have put there.

    That are the words of known wrappers, wherever they stand, and the words that every name begins with, if
    the network is not known by its names with them. Given back are also the bare name for each of the file's, and what
    was taken off, for people.

    Raises:
        UnknownNetworkError: it is not known without them either; in the words of the first look.
    """
    bare, prefix, refusal = {name: name for name in shapes}, "", None
    while True:
        plain = {name: _without_wrappers(one) for name, one in bare.items()}
        if len(set(plain.values())) < len(plain):  # two names would become one
            plain = bare
        first = {one.split(".", 1)[0] if "." in one else "" for one in bare.values()}
        word = first.pop() if len(first) == 1 else ""
        if word not in _WRAPPERS:
            try:
                known = recognise({plain[name]: shape for name, shape in shapes.items()})
                break
            except UnknownNetworkError as error:
                refusal = refusal or error
                if not word:
                    raise refusal from None
        prefix += f"{word}."
        bare = {name: one.removeprefix(f"{word}.") for name, one in bare.items()}
    inside = sorted({word for one in bare.values() for word in one.split(".") if word in _WRAPPERS})
    notices = [f"every name begins with {prefix} and was read without it"] if prefix else []
    if inside and plain is not bare:
        notices.append(f"names hold {', '.join(inside)} of a wrapper and were read without it")
    return known, plain, tuple(notices)


def _without_wrappers(name: str) -> str:
    *words, last = name.split(".")
    return ".".join([*(word for word in words if word not in _WRAPPERS), last])
