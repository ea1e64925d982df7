"""DG-Net as its authors' program writes it: names of tensors, settings, optimizer states.

Values in, values out; the only file read is a settings file, and files of tensors are `dgnet_gen.exchange`'s. A
published training has three files, gen (structure encoder and decoder), id (appearance encoder) and dis
(discriminator). Our tensors are called NETWORK.KEY here, such as "decoder.finish.0.conv.weight".

    settings = published_config("outputs/E0.5new_reid0.5_w30000/config.yaml")
    model = DGNet(settings.networks, settings.num_ids)
    published_tables(model)["dis"]["cnns.0.9.bias"].ours      # "discriminator.scales.0.9.bias"
    settings.training["recon_x_w"]                            # 5.0
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.networks.layers import ResidualBlock, SelfAttention
from reid_eval.reading import read_text, reading
from reid_models.config import ConfigError, config_dict
from reid_models.optimizers import checked_states
from reid_models.runs import CheckpointError

logger = logging.getLogger(__name__)

FILES = {"gen": ("structure", "decoder"), "id": ("appearance",), "dis": ("discriminator",)}
"""The published files and our networks in each."""
OPTIMIZERS = {"gen": "generator", "id": "appearance", "dis": "discriminator"}
"""The optimizer of each file, and ours."""

STOCK: dict[str, Any] = {
    "apex": False, "B_w": 0.2, "ID_class": 751, "ID_stride": 1, "ID_style": "AB", "T_w": 1.0, "batch_size": 8,
    "beta1": 0.0, "beta2": 0.999, "crop_image_height": 256, "crop_image_width": 128, "data_root": "../Market/pytorch/",
    "dis.LAMBDA": 0.01, "dis.activ": "lrelu", "dis.dim": 32, "dis.gan_type": "lsgan", "dis.n_layer": 2, "dis.n_res": 4,
    "dis.non_local": 0, "dis.norm": "none", "dis.num_scales": 3, "dis.pad_type": "reflect", "display_size": 16,
    "erasing_p": 0.5, "gamma": 0.1, "gamma2": 0.1, "gan_w": 1.0, "gen.activ": "lrelu", "gen.dec": "basic",
    "gen.dim": 16, "gen.dropout": 0.0, "gen.id_dim": 2048, "gen.init": "kaiming", "gen.mlp_dim": 512,
    "gen.mlp_norm": "none", "gen.n_downsample": 2, "gen.n_res": 4, "gen.non_local": 0, "gen.pad_type": "reflect",
    "gen.tanh": False, "id_w": 1.0, "image_display_iter": 5000, "image_save_iter": 5000, "input_dim_a": 1,
    "input_dim_b": 1, "log_iter": 1, "lr2": 0.002, "lr_d": 1e-4, "lr_g": 1e-4, "lr_policy": "multistep",
    "max_cyc_w": 2.0, "max_iter": 100_000, "max_teacher_w": 2.0, "max_w": 1.0, "new_size": 128, "norm_id": False,
    "num_workers": 8, "pid_w": 1.0, "pool": "max", "recon_f_w": 0.0, "recon_id_w": 0.5, "recon_s_w": 0.0,
    "recon_x_cyc_w": 0.0, "recon_x_w": 5.0, "recon_xp_w": 5.0, "single": "gray", "snapshot_save_iter": 10_000,
    "sqrt": False, "step_size": 60_000, "teacher": "best", "teacher_style": 0, "teacher_w": 0.0, "train_bn": True,
    "use_decoder_again": True, "use_encoder_again": 0.5, "vgg_w": 0.0, "warm_iter": 30_000, "warm_scale": 0.0005,
    "warm_teacher_iter": 30_000, "weight_decay": 0.0005,
}  # fmt: skip
"""Every key that the published program reads, "gen.dim" for dim under gen, and what Market-1501 was trained with."""

UNREAD = frozenset({"gen.style_dim", "input_dim_b", "new_size", "sqrt", "use_decoder_again"})
"""Keys that change nothing in the published program."""
PATHS = frozenset(
    {"data_root", "vgg_model_path"}
    | {f"data_{kind}_{split}_{side}" for kind in ("folder", "list") for split in ("train", "test") for side in "ab"}
)
"""Keys that say where things lie; the options of a command say it here."""
NETWORK_KEYS = frozenset(
    {"ID_class", "ID_stride", "ID_style", "crop_image_height", "crop_image_width", "input_dim_a", "norm_id", "pool"}
    | {"single", *(key for key in STOCK if key.startswith(("gen.", "dis.")))}
) - {"dis.LAMBDA", "dis.gan_type"}
"""Keys that `NetworksConfig` and the number of identities answer to."""
TRAINING_KEYS = frozenset(STOCK) - NETWORK_KEYS - PATHS - UNREAD
"""Keys that steer a training."""

TRAINING_NAMES = {
    "B_w": "weights.fine", "T_w": "weights.primary", "batch_size": "batch_size", "beta1": "optim.beta1",
    "beta2": "optim.beta2", "dis.LAMBDA": "weights.gradient_penalty", "dis.gan_type": "gan", "erasing_p": "erasing",
    "gamma": "optim.gamma", "gamma2": "optim.gamma_appearance", "gan_w": "weights.adversarial",
    "id_w": "weights.identity", "image_save_iter": "sample_every", "log_iter": "log_every",
    "lr2": "optim.lr_appearance", "lr_d": "optim.lr_discriminator", "lr_g": "optim.lr_generator",
    "lr_policy": "optim.policy",
    "max_cyc_w": "weights.cycle", "max_iter": "max_iter", "max_teacher_w": "weights.teacher",
    "max_w": "weights.recon_structure", "num_workers": "num_workers", "pid_w": "weights.identity_positive",
    "recon_id_w": "weights.recon_identity", "recon_x_w": "weights.recon_self", "recon_xp_w": "weights.recon_same_id",
    "snapshot_save_iter": "checkpoint_every", "step_size": "optim.step_size", "teacher_style": "teacher.style",
    "train_bn": "train_bn", "use_encoder_again": "encoder_again", "warm_iter": "weights.warm_iter",
    "warm_scale": "weights.warm_scale", "warm_teacher_iter": "weights.warm_teacher_iter",
    "weight_decay": "optim.weight_decay",
}  # fmt: skip
"""Published names of the settings of a training, and where they are in our training settings."""

STARTS = ("recon_f_w", "recon_s_w", "recon_x_cyc_w", "teacher_w", "vgg_w")
"""Weights that every published training starts at 0, and the last one keeps there."""

_ACTIVATIONS = {"lrelu": "leaky_relu", "relu": "relu", "prelu": "prelu", "selu": "selu", "tanh": "tanh"}
_PADDINGS = {"reflect": "reflect", "replicate": "replicate", "zero": "zero"}
_CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "gen.activ": ("activation", _ACTIVATIONS),
    "gen.pad_type": ("padding", _PADDINGS),
    "gen.init": ("init", {kind: kind for kind in ("kaiming", "gaussian", "xavier", "orthogonal", "default")}),
    "gen.dec": ("decoder_blocks", {kind: kind for kind in ("basic", "parallel", "series")}),
    "gen.mlp_norm": ("mlp_norm", {"none": "none", "in": "instance"}),
    "dis.activ": ("discriminator_activation", _ACTIVATIONS),
    "dis.pad_type": ("discriminator_padding", _PADDINGS),
    "dis.norm": ("discriminator_norm", {"none": "none", "bn": "batch", "in": "instance", "ln": "layer"}),
}
_NUMBERS = {
    "gen.dim": "structure_dim", "gen.dropout": "structure_dropout", "gen.mlp_dim": "mlp_dim",
    "gen.n_downsample": "n_downsample", "gen.tanh": "structure_tanh", "dis.dim": "discriminator_dim",
    "dis.n_layer": "discriminator_layers", "dis.n_res": "discriminator_res", "dis.num_scales": "num_scales",
}  # fmt: skip
_FIXED = {
    "gen.id_dim": (2048, "the published program cuts the appearance code into four slices of 2048"),
    "gen.n_res": (4, "the published program cuts the appearance code for four residual blocks"),
    "input_dim_a": (1, "the structure encoder reads a grey picture"),
    "single": ("gray", "edges were never used for a published result and are not computed here"),
}
_BROKEN = {
    ("gen.dec", "slim"): "its slices never fitted, so it could not run",
    ("dis.norm", "sn"): "it could not run",
    ("dis.gan_type", "wgan"): "its network never ran; lsgan and nsgan did",
    ("ID_style", "PCB"): "it dropped out every feature, so its authors do not support it; AB and normal are read",
}


class PublishedConfig(NamedTuple):
    """A published settings file, understood."""

    networks: NetworksConfig
    num_ids: int
    training: dict[str, Any]
    """All of `TRAINING_KEYS` by their published names; where the file is silent, what the program would take."""
    paths: dict[str, Any]
    """What the file says of `PATHS`; options of our commands take their place."""


def published_config(settings: Mapping[str, Any] | Path | str) -> PublishedConfig:
    """Read a published settings file (latest.yaml, latest-fp16.yaml, the config.yaml of a training), or its values.

    Keys that it does not have are what the published program takes for them. Keys that the program does not have are
    named in a warning.

    Raises:
        ConfigError: no such file, no YAML, a value of the wrong type, or an option that the program never made work.
    """
    source = "published settings" if isinstance(settings, Mapping) else str(settings)
    found = dict(_flat(settings if isinstance(settings, Mapping) else _read_yaml(Path(settings)), source))
    known = STOCK.keys() | UNREAD | PATHS
    if unknown := [key for key in found if key not in known]:
        logger.warning("%s: unknown keys, not read: %s", source, ", ".join(map(_with_hint, unknown)))
    paths = {key: found[key] for key in sorted(PATHS & found.keys())}
    if paths:
        logger.info("%s: not read, because options say it here (such as --data): %s", source, ", ".join(paths))
    # Without the key the program leaves the last stage of its ResNet as it is.
    values = STOCK | {"ID_stride": 2}
    values |= {key: _typed(key, value, source) for key, value in found.items() if key in STOCK and key not in PATHS}
    for (key, value), reason in _BROKEN.items():
        if values[key] == value:
            raise ConfigError(f"{source}: {key}: {value}: {reason}")
    for key, (only, reason) in _FIXED.items():
        if values[key] != only:
            raise ConfigError(f"{source}: {key}: {values[key]}: expected {only}, because {reason}")
    if values["ID_class"] < 1:
        raise ConfigError(f"{source}: ID_class: expected the number of identities, found {values['ID_class']}")
    training = {key: values[key] for key in sorted(TRAINING_KEYS)}
    return PublishedConfig(_networks(values, source), values["ID_class"], training, paths)


def _networks(values: Mapping[str, Any], source: str) -> NetworksConfig:
    ours: dict[str, Any] = {name: values[key] for key, name in _NUMBERS.items()}
    for key, (name, choices) in _CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(f"{source}: {key}: expected one of {', '.join(choices)}, found {values[key]!r}")
        ours[name] = choices[values[key]]
    height, width = values["crop_image_height"], values["crop_image_width"]
    plain = values["ID_style"] != "AB"  # the program compares like this, so "ab" is plain too
    if plain:
        logger.warning("%s: ID_style %s: a single head, last stride 2", source, values["ID_style"])
    try:
        return NetworksConfig(
            image_hw=(height, width),
            last_stride=2 if plain or values["ID_stride"] != 1 else 1,
            heads="one" if plain else "two",
            pool="max" if values["pool"] == "max" else "avg",
            normalise_code=plain and values["norm_id"],
            enlarge_small=height <= 128,
            n_res=values["gen.n_res"],
            decoder_attention=values["gen.non_local"] > 0,
            discriminator_attention=min(values["dis.non_local"], 2),
            **ours,
        )
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def published_settings(
    config: NetworksConfig, num_ids: int, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The published program's settings for networks of ours, nested as in its files; `training` by published names.

    Raises:
        ConfigError: the program has no such network; the setting that makes the difference is named.
    """
    _refuse_unpublished(config)
    dropouts = (config.dropout_primary, config.dropout_fine)
    if dropouts != (0.5, 0.75):
        logger.warning(
            "networks.dropout_primary and dropout_fine are %g and %g; the published program trains with 0.5 and 0.75",
            *dropouts,
        )
    values = STOCK | dict(training or {})
    values |= {key: getattr(config, name) for key, name in _NUMBERS.items()}
    for key, (name, choices) in _CHOICES.items():
        values[key] = next(theirs for theirs, ours in choices.items() if ours == getattr(config, name))
    values |= {
        "ID_class": num_ids,
        "ID_stride": config.last_stride,
        "ID_style": "normal" if config.heads == "one" else "AB",
        "crop_image_height": config.image_hw[0],
        "crop_image_width": config.image_hw[1],
        "pool": config.pool,
        "norm_id": config.normalise_code,
        "gen.non_local": int(config.decoder_attention),
        "dis.non_local": config.discriminator_attention,
    }
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, name = key.partition(".")
        if dot:
            nested.setdefault(group, {})[name] = value
        else:
            nested[key] = value
    return nested


def _refuse_unpublished(config: NetworksConfig) -> None:
    needed: dict[str, Any] = {"trunk": "resnet50", "stripes": 4, "bottleneck": 512, "n_res": 4}
    needed |= {"enlarge_small": True} if config.image_hw[0] <= 128 else {}
    needed |= {"last_stride": 2} if config.heads == "one" else {}
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"networks.{name}={getattr(config, name)}: the published program has no such network "
                f"(expected {name}={value}), so it could not use these weights"
            )


def training_values(config: Any) -> dict[str, Any]:
    """What our training settings say, by published names: those of `TRAINING_NAMES`, and apex."""
    tree = config_dict(config)
    values = {}
    for theirs, ours in TRAINING_NAMES.items():
        group, dot, name = ours.partition(".")
        values[theirs] = tree[group][name] if dot else tree[group]
    return values | {"apex": tree["precision"] == "fp16", "image_display_iter": tree["sample_every"]}


def is_published_settings(file: Path) -> bool:
    """Whether a settings file is one of the published program: it names its networks under gen and dis."""
    try:
        return {"gen", "dis"} <= _read_yaml(file).keys()
    except ConfigError:  # no settings at all, or none that it could have written
        return False


def training_tree(published: PublishedConfig, source: str) -> dict[str, Any]:
    """A published training in our settings, nested as in our YAML.

    Without a teacher's name there is none. What is written how often is as theirs; the size of sheets is ours.

    Raises:
        ConfigError: a late weight that does not start at 0, or the perceptual loss, which never worked.
    """
    values = published.training
    for key in STARTS:
        if values[key] != 0:
            raise ConfigError(f"{source}: {key}: {values[key]}: expected 0, as in every published training")
    tree: dict[str, Any] = {"networks": config_dict(published.networks)}
    for theirs, ours in TRAINING_NAMES.items():
        group, dot, name = ours.partition(".")
        if dot:
            tree.setdefault(group, {})[name] = values[theirs]
        else:
            tree[group] = values[theirs]
    tree["precision"] = "fp16" if values["apex"] else "fp32"
    tree["weights"]["recon_appearance"] = values["max_w"]
    if not values["teacher"]:
        tree["weights"]["teacher"] = 0.0
    return tree


def _flat(values: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key not in ("gen", "dis"):
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            raise ConfigError(f"{source}: {key}: expected a group of settings, found {value!r}")


def _read_yaml(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        raise ConfigError(f"{file}: no such settings file; the published program keeps a config.yaml with a training")
    expected = "settings as 'key: value' lines"
    text = read_text(file, ConfigError, expected)
    with reading(file, ConfigError, expected, remedy="correct it"):
        values = yaml.safe_load(text)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file}: expected {expected}, found {type(values).__name__}")
    return values


def _with_hint(key: str) -> str:
    close = difflib.get_close_matches(key, STOCK, n=1)
    return f"{key} (did you mean {close[0]}?)" if close else key


def _typed(key: str, value: Any, source: str) -> Any:
    """A value of the type that the stock value has; YAML 1.1 reads 1e-4 as text."""
    stock = STOCK[key]
    if isinstance(stock, str):
        if value is None or isinstance(value, str):
            return value or ""
    elif isinstance(stock, bool):
        if isinstance(value, bool):
            return value
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(stock, float) and number == number:
            return number
        if isinstance(stock, int) and number.is_integer():
            return int(number)
    kind = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[type(stock)]
    raise ConfigError(f"{source}: {key}: expected {kind}, found {value!r}")


class Slot(NamedTuple):
    """What a published tensor is here."""

    ours: str | None
    """None for what no forward pass reads"""
    value: Tensor
    """ours as it is; for what nothing reads, what is written for it"""


Table = dict[str, Slot]
"""The tensors of a published file by name, in the file's order."""


def published_tables(model: DGNet) -> dict[str, Table]:
    """For each of `FILES` the published name of every tensor of a model.

    The files also hold what nothing reads: an ImageNet classifier in id, and statistics in the decoder's AdaIN layers.

    Raises:
        ConfigError: the published program has no such network; the setting that makes the difference is named.
    """
    _refuse_unpublished(model.config)
    own = {
        f"{network}.{key}": value.detach()
        for network, part in model.networks().items()
        for key, value in part.state_dict().items()
    }
    tables: dict[str, Table] = {}
    for file, names in _names(model).items():
        table = tables[file] = {}
        for theirs, ours in names:
            if ours.startswith("decoder.blocks."):
                channels = own[f"{ours}conv.bias"].shape
                table[f"{theirs}norm.running_mean"] = Slot(None, torch.zeros(channels))
                table[f"{theirs}norm.running_var"] = Slot(None, torch.ones(channels))
            table |= {
                theirs + name.removeprefix(ours): Slot(name, value)
                for name, value in own.items()
                if name.startswith(ours)
            }
            if ours == "appearance.trunk.":
                table["model.fc.weight"] = Slot(None, torch.zeros(1000, 2048))
                table["model.fc.bias"] = Slot(None, torch.zeros(1000))
    assert sum(slot.ours is not None for table in tables.values() for slot in table.values()) == len(own)
    return tables


def _names(model: DGNet) -> dict[str, list[tuple[str, str]]]:
    """What a name begins with in a published file, and in ours, in the file's order."""
    encoder, decoder = model.structure_encoder, model.decoder
    stem = len(encoder.stem)
    gen = [(f"enc_content.model.{i}.", f"structure.stem.{i}.") for i in range(stem)]
    for k in range(len(encoder.blocks)):
        gen += _block(f"enc_content.model.{stem}.model.{k}.", f"structure.blocks.{k}.")
    gen.append((f"enc_content.model.{stem + 1}.conv1.", "structure.pyramid.plain."))
    for k, theirs in enumerate(("conv6", "conv12", "conv18")):  # whose dilations are 3, 6 and 9 all the same
        gen += [
            (f"enc_content.model.{stem + 1}.{theirs}.{i}.", f"structure.pyramid.dilated.{k}.{i}.") for i in range(2)
        ]
    gen.append((f"enc_content.model.{stem + 1}.fuse.", "structure.pyramid.fuse."))
    for k in range(len(decoder.blocks)):
        gen += _block(f"dec.model.1.model.{k}.", f"decoder.blocks.{k}.")
    position = 2
    if decoder.attention is not None:
        gen += _attention("dec.model.2.", "decoder.attention.")
        position += 1
    gen += [(f"dec.model.{position + 2 * i + 1}.", f"decoder.upsampled.{i}.") for i in range(len(decoder.upsampled))]
    position += 2 * len(decoder.upsampled)
    gen += [(f"dec.model.{position + i}.", f"decoder.finish.{i}.") for i in range(len(decoder.finish))]
    for letter, ours in (("w", "scales"), ("b", "shifts")):
        for k in range(len(decoder.blocks)):
            for layer in range(3):
                begins = f"mlp_{letter}{k + 1}.model.{layer}."
                gen.append((f"{begins}fc.", f"decoder.{ours}.{k}.{2 * layer}."))
                gen.append((f"{begins}activation.", f"decoder.{ours}.{k}.{2 * layer + 1}.activation."))
    one = model.config.heads == "one"
    heads = [("classifier.", "primary")] if one else [("classifier1.", "primary"), ("classifier2.", "fine")]
    layers = (("add_block.0.", "reduce."), ("add_block.1.", "norm."), ("classifier.0.", "classifier."))
    id_ = [("model.", "appearance.trunk.")]
    id_ += [(head + layer, f"appearance.{ours}.{name}") for head, ours in heads for layer, name in layers]
    dis: list[tuple[str, str]] = []
    for s, scale in enumerate(model.discriminator.scales):
        assert isinstance(scale, nn.Sequential)
        for i, part in enumerate(scale):
            pair = f"cnns.{s}.{i}.", f"discriminator.scales.{s}.{i}."
            match part:
                case ResidualBlock():
                    dis += _block(*pair)
                case SelfAttention():
                    dis += _attention(*pair)
                case _:
                    dis.append(pair)
    return {"gen": gen, "id": id_, "dis": dis}


def _block(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{theirs}model.0.", f"{ours}first."), (f"{theirs}model.1.", f"{ours}second.")]


def _attention(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{theirs}gamma", f"{ours}gamma")] + [
        (f"{theirs}{part}_conv.", f"{ours}{part}.") for part in ("query", "key", "value")
    ]


def to_published(model: DGNet, unread: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """The published files' tensors of a model, in their order; `unread` are values of what nothing reads.

    Raises:
        ConfigError: the published program has no such network.
    """
    unread = unread or {}
    return {
        file: {
            name: (slot.value if slot.ours else unread.get(name, slot.value)).cpu().contiguous()
            for name, slot in table.items()
        }
        for file, table in published_tables(model).items()
    }


def from_published(
    table: Table, state: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """A published file's tensors by our networks and keys, and what of it nothing reads.

    The published Market-1501 generator has self-attention in its residual blocks, which the program itself leaves out
    on loading; it is left out here too, and said.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    extra = [name for name in state if name not in table]
    dropped = [name for name in extra if _BLOCK_ATTENTION.search(name)]
    missing = [name for name in table if name not in state]
    left_over = [name for name in extra if name not in dropped]
    reshaped = [
        f"{name} {tuple(state[name].shape)}, not {tuple(slot.value.shape)}"
        for name, slot in table.items()
        if name in state and state[name].shape != slot.value.shape
    ]
    unmatched = {"missing": missing, "left over": left_over, "of another shape": reshaped}
    if any(unmatched.values()):
        found = "; ".join(
            f"{len(names)} {title} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for title, names in unmatched.items()
            if names
        )
        raise CheckpointError(
            f"{source}: does not fit the networks of its config.yaml: {found}; nothing was loaded; "
            "was it trained with these settings?"
        )
    if dropped:
        logger.warning(
            "%s: %d tensors of self-attention in residual blocks (%s, ...) are left out, as by the published program",
            source, len(dropped), dropped[0],
        )  # fmt: skip
    networks: dict[str, dict[str, Tensor]] = {}
    unread = {}
    for name, slot in table.items():
        if slot.ours is None:
            unread[name] = state[name]
        else:
            network, _, key = slot.ours.partition(".")
            networks.setdefault(network, {})[key] = state[name]
    return networks, unread


_BLOCK_ATTENTION = re.compile(
    r"^(enc_content|dec)\.model\.\d+\.model\.\d+\.(.+\.)?(nonloc\..+|(query|key|value)_conv\.\w+|(?<!norm\.)gamma)$"
)


def published_optimizer_layout(model: DGNet) -> dict[str, list[dict[str, str | None]]]:
    """For each of `OPTIMIZERS` its parameter groups: published names, in the order of the states, and ours."""
    parameters = {
        f"{network}.{key}" for network, part in model.networks().items() for key, _ in part.named_parameters()
    }
    layout = {}
    for file, table in published_tables(model).items():
        names = {
            name: slot.ours for name, slot in table.items() if slot.ours in parameters or name.startswith("model.fc.")
        }
        # One group for the trunk and one for each head; the others have a single group.
        first = [name.partition(".")[0] if file == "id" else "" for name in names]
        layout[file] = [
            {name: ours for begins, (name, ours) in zip(first, names.items(), strict=True) if begins == group}
            for group in dict.fromkeys(first)
        ]
    return layout


def optimizer_states_from_published(
    stored: Mapping[str, Any], model: DGNet, optimizers: Mapping[str, torch.optim.Optimizer], *, source: str
) -> dict[str, dict[str, Any]]:
    """A published optimizer.pt as state dicts for our optimizers: their settings, and the states of the file.

    The file tells states by position alone, so number and shape are compared with the published order. A parameter
    without a state (the unused classifier has none) starts without one.

    Raises:
        CheckpointError: an optimizer is missing, or positions or shapes are not those of this model.
    """
    layout = published_optimizer_layout(model)
    names_of = _parameter_names(model)
    result = {}
    for file, ours in OPTIMIZERS.items():
        entry = stored.get(file)
        if not isinstance(entry, Mapping) or not {"state", "param_groups"} <= entry.keys():
            raise CheckpointError(f"{source}: no optimizer {file!r} (expected gen, id and dis, each with its states)")
        with reading(source, CheckpointError, "a published optimizer.pt"):
            # PyTorch before 1.6 wrote numbers of its own as keys; in a group they always lie in order.
            positions = [list(group["params"]) for group in entry["param_groups"]]
            sizes, expected = ([len(group) for group in groups] for groups in (positions, layout[file]))
            if sizes != expected:
                raise CheckpointError(
                    f"{source}: {file} has groups of {sizes} parameters, these networks have {expected}"
                )
            found = [entry["state"].get(position) for group in positions for position in group]
        names = [(theirs, name) for group in layout[file] for theirs, name in group.items()]
        states = {name: state for (_, name), state in zip(names, found, strict=True) if name is not None and state}
        without = [name for _, name in names if name is not None and name not in states]
        if file != "id" and states and without:
            raise CheckpointError(
                f"{source}: {file} has no state for {len(without)} parameters ({without[0]}, ...); it is cut or damaged"
            )
        optimizer = optimizers[ours]
        own = [names_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        groups = optimizer.state_dict()["param_groups"]
        named = {"state": {place: states[name] for place, name in enumerate(own) if name in states}}
        told = {name: f"{theirs} in {file}" for theirs, name in names}
        checked = checked_states(
            optimizer, named | {"param_groups": groups}, source=source, names=[told[name] for name in own]
        )
        result[ours] = {
            "state": {
                place: {kind: torch.tensor(float(value)) if kind == "step" else value for kind, value in state.items()}
                for place, state in enumerate(checked)
                if state
            },
            "param_groups": groups,
        }
    return result


def optimizer_states_to_published(
    states: Mapping[str, Mapping[str, Any]], model: DGNet, optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, dict[str, Any]]:
    """Our optimizers' state dicts as the content of a published optimizer.pt.

    `optimizers` are fresh ones of the same settings: they tell the order of ours, and the learning rates of the start.

    Raises:
        CheckpointError: the states are not of such optimizers.
    """
    hyper = {
        "gen": ("betas", "eps", "weight_decay", "amsgrad"),
        "id": ("momentum", "dampening", "weight_decay", "nesterov"),
    }
    hyper["dis"] = hyper["gen"]
    names_of = _parameter_names(model)
    result = {}
    for file, groups in published_optimizer_layout(model).items():
        ours, optimizer = states[OPTIMIZERS[file]], optimizers[OPTIMIZERS[file]]
        saved_groups = ours["param_groups"]
        if [len(group["params"]) for group in saved_groups] != [len(g["params"]) for g in optimizer.param_groups]:
            raise CheckpointError(f"optimizer {OPTIMIZERS[file]}: its states are not of these settings")
        position_of, group_of = {}, {}
        for saved, fresh in zip(saved_groups, optimizer.param_groups, strict=True):
            for position, parameter in zip(saved["params"], fresh["params"], strict=True):
                position_of[names_of[id(parameter)]] = position
                group_of[names_of[id(parameter)]] = (saved, fresh)
        state: dict[int, Any] = {}
        written, count = [], 0
        for group in groups:
            saved, fresh = group_of[next(name for name in group.values() if name is not None)]
            for number, name in enumerate(group.values(), start=count):
                if name is not None and (own := ours["state"].get(position_of[name])):
                    state[number] = {
                        kind: value.cpu().contiguous() if isinstance(value, Tensor) else value
                        for kind, value in own.items()
                    }
            values = {"lr": saved["lr"], **{name: saved[name] for name in hyper[file]}, "initial_lr": fresh["lr"]}
            written.append(values | {"params": list(range(count, count + len(group)))})
            count += len(group)
        result[file] = {"state": state, "param_groups": written}
    return result


def _parameter_names(model: DGNet) -> dict[int, str]:
    """Our name of every parameter, by its identity."""
    return {
        id(parameter): f"{network}.{key}"
        for network, part in model.networks().items()
        for key, parameter in part.named_parameters()
    }
