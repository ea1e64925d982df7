"""The networks of DG-Net as one thing to encode, swap and save.

model = DGNet.load("runs/dgnet")                  # or a published folder; evaluation mode, best device there is
codes = model.encode(images)                      # Codes(appearance (B, D), structure (B, C, h, w))
swapped = model.decode(Codes(codes.appearance.flip(0), codes.structure))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.networks.decoder import Blocks, Decoder
from dgnet_gen.networks.discriminator import DiscriminatorNorm, MultiScaleDiscriminator
from dgnet_gen.networks.encoders import AppearanceEncoder, StructureEncoder
from dgnet_gen.networks.layers import Activation, Init, Padding
from reid_eval.files import file_fingerprint
from reid_eval.reading import reading
from reid_models.config import MOST_PX, ConfigError, config_from_dict
from reid_models.data.transforms import to_gray
from reid_models.networks.resnet import make_trunk
from reid_models.runs import CheckpointError, RunDir
from reid_models.runtime import choose_device

NETWORK_NAMES = ("appearance", "structure", "decoder", "discriminator")


class Codes(NamedTuple):
    """What DG-Net keeps of a picture."""

    appearance: Tensor
    """(B, D) what is worn"""
    structure: Tensor
    """(B, C, h, w) where the body is"""


@dataclass(frozen=True)
class NetworksConfig:
    """Every width and choice of the four networks; the defaults are the published full size."""

    image_hw: tuple[int, int] = (256, 128)
    trunk: Literal["resnet50", "small"] = "resnet50"
    trunk_width: int = 16
    """first stage of the small trunk; resnet50 has its own"""
    last_stride: int = 1
    stripes: int = 4
    bottleneck: int = 512
    dropout_primary: float = 0.5
    dropout_fine: float = 0.75
    heads: Literal["two", "one"] = "two"
    """of the appearance encoder; one is the published "plain" style, which nothing here trains"""
    pool: Literal["max", "avg"] = "max"
    """of the appearance encoder, for code and heads"""
    normalise_code: bool = False
    """whether an appearance code has length 1, for heads one"""
    enlarge_small: bool = False
    """whether the appearance encoder sees pictures of up to 128 rows at twice their size, as published"""
    structure_dim: int = 16
    structure_tanh: bool = False
    structure_dropout: float = 0.0
    """on the structure code that enters the decoder"""
    n_downsample: int = 2
    n_res: int = 4
    mlp_dim: int = 512
    mlp_norm: Literal["none", "instance"] = "none"
    decoder_blocks: Blocks = "basic"
    decoder_attention: bool = False
    activation: Activation = "leaky_relu"
    """of structure encoder and decoder"""
    padding: Padding = "reflect"
    """of structure encoder and decoder"""
    init: Init = "kaiming"
    """of structure encoder and decoder"""
    discriminator_dim: int = 32
    discriminator_layers: int = 2
    discriminator_res: int = 4
    num_scales: int = 3
    discriminator_norm: DiscriminatorNorm = "none"
    discriminator_activation: Activation = "leaky_relu"
    discriminator_padding: Padding = "reflect"
    discriminator_attention: int = 0
    """self-attention blocks: 1 before the last convolution, 2 also before the residual blocks"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("discriminator_res", "discriminator_attention") else 1
            if type(value) is int and value < least:
                raise ConfigError(f"networks.{name}: must be at least {least}, got {value}")
        if self.last_stride > 2:
            raise ConfigError(f"networks.last_stride: must be 1 or 2, got {self.last_stride}")
        if self.discriminator_attention > 2:
            raise ConfigError(
                f"networks.discriminator_attention: must be 0, 1 or 2, got {self.discriminator_attention}"
            )
        for name in ("dropout_primary", "dropout_fine", "structure_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"networks.{name}: must be at least 0 and below 1, got {getattr(self, name):g}")
        if self.normalise_code and self.heads == "two":
            raise ConfigError("networks.normalise_code: has a meaning for networks.heads=one alone, found heads=two")
        height, width = self.image_hw
        if max(height, width) > MOST_PX:
            raise ConfigError(f"networks.image_hw: {height} x {width} must be at most {MOST_PX} each way")
        step = 2**self.n_downsample
        if height % step or width % step or min(height, width) < 4 * step:
            raise ConfigError(
                f"networks.image_hw: {height} x {width} must be multiples of {step} and at least {4 * step} "
                f"(n_downsample is {self.n_downsample})"
            )
        num_features = 2048 if self.trunk == "resnet50" else 8 * self.trunk_width
        if self.stripes * num_features % self.n_res:
            raise ConfigError(
                f"networks.n_res: the appearance code of {self.stripes * num_features} cannot be cut into {self.n_res}"
            )


class DGNet:
    """The four networks of one DG-Net, sharing a device."""

    def __init__(self, config: NetworksConfig, num_ids: int) -> None:
        self.config = config
        self.num_ids = num_ids
        self.image_hw = config.image_hw
        self.iteration = 0
        self.checkpoint_id = "untrained"
        """SHA-256 of the checkpoint's file"""
        trunk = make_trunk(config.trunk, last_stride=config.last_stride, width=config.trunk_width)
        self.appearance_encoder = AppearanceEncoder(
            trunk,
            num_ids,
            stripes=config.stripes,
            bottleneck=config.bottleneck,
            dropouts=(config.dropout_primary, config.dropout_fine),
            heads=config.heads,
            pool=config.pool,
            normalise_code=config.normalise_code,
            enlarge_small=config.enlarge_small,
        )
        self.structure_encoder = StructureEncoder(
            config.structure_dim,
            config.n_downsample,
            config.n_res,
            tanh=config.structure_tanh,
            activation=config.activation,
            padding=config.padding,
            init=config.init,
        )
        self.decoder = Decoder(
            self.appearance_encoder.code_length,
            self.structure_encoder.out_channels,
            n_upsample=config.n_downsample,
            n_res=config.n_res,
            mlp_dim=config.mlp_dim,
            mlp_norm=config.mlp_norm,
            blocks=config.decoder_blocks,
            attention=config.decoder_attention,
            dropout=config.structure_dropout,
            activation=config.activation,
            padding=config.padding,
            init=config.init,
        )
        self.discriminator = MultiScaleDiscriminator(
            config.discriminator_dim,
            config.discriminator_layers,
            config.discriminator_res,
            config.num_scales,
            norm=config.discriminator_norm,
            activation=config.discriminator_activation,
            padding=config.discriminator_padding,
            attention=config.discriminator_attention,
        )

    @classmethod
    def load(
        cls, run: Path | str | RunDir, which: int | Literal["last", "best"] = "last", *, device: str = "auto"
    ) -> DGNet:
        """A trained DG-Net in evaluation mode, from a run folder and an iteration.

        The folder may also be a published one (config.yaml and checkpoints/gen_*.pt). Without its dis file the
        discriminator stays random, which is said: codes and pictures do not need it.

        Raises:
            CheckpointError: no such run or iteration (those that exist are listed), or it does not fit.
            WeightsError, ConfigError: a published file that cannot be used, or settings that name no network.
        """
        from dgnet_gen.exchange import PublishedFolder  # which builds models

        if not isinstance(run, RunDir) and PublishedFolder.is_one(run):
            return PublishedFolder.open(run).load(which, device=device, for_use=True)
        run_dir = run if isinstance(run, RunDir) else RunDir.open(run, "dgnet")
        checkpoint, file = run_dir.load(which), run_dir.checkpoint_file(which)
        with reading(file, CheckpointError, "a checkpoint of 'dgnet-gen train'"):
            config = config_from_dict(NetworksConfig, checkpoint.config["networks"], source=str(run_dir.config_file))
            model = cls(config, int(checkpoint.made_by["num_ids"]))
            model.load_networks(checkpoint.networks, source=str(run_dir.path))
        model.iteration = checkpoint.iteration
        model.checkpoint_id = file_fingerprint(file)
        return model.to(choose_device(device)).eval()

    def networks(self) -> dict[str, nn.Module]:
        """The four networks by the names they have in checkpoints."""
        return {
            "appearance": self.appearance_encoder,
            "structure": self.structure_encoder,
            "decoder": self.decoder,
            "discriminator": self.discriminator,
        }

    def load_networks(self, states: dict[str, dict[str, Tensor]], *, source: str) -> None:
        """Strictly load the weights of all four networks.

        Raises:
            CheckpointError: a network or a key is missing, left over, or of another shape.
        """
        for name, network in self.networks().items():
            if name not in states:
                raise CheckpointError(f"{source}: holds no {name} network (found {', '.join(states) or 'none'})")
            try:
                network.load_state_dict(states[name])
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(f"{source}: the {name} network does not fit these settings ({reason})") from None

    def to(self, device: torch.device) -> DGNet:
        """Move all networks to a device."""
        for network in self.networks().values():
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def eval(self) -> DGNet:
        """Put all networks in evaluation mode."""
        for network in self.networks().values():
            network.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.decoder.parameters()).device

    @torch.no_grad()
    def appearance(self, images: Tensor) -> Tensor:
        """Appearance codes (B, D) of images (B, 3, H, W) of this model's size, as a trained model sees them."""
        return self.appearance_encoder(images.to(self.device)).code

    @torch.no_grad()
    def structure(self, images: Tensor) -> Tensor:
        """Structure codes (B, C, h, w) of images (B, 3, H, W)."""
        return self.structure_encoder(to_gray(images.to(self.device)))

    def encode(self, images: Tensor) -> Codes:
        """Both codes of images (B, 3, H, W)."""
        return Codes(self.appearance(images), self.structure(images))

    @torch.no_grad()
    def reid_features(self, images: Tensor) -> Tensor:
        """Vectors to rank by (B, num_heads * bottleneck) of images (B, 3, H, W): each head's part has length 1.

        A part is the sum of the head's normalised embeddings of a picture and of its mirror image, normalised again.
        """
        encoder, number = self.appearance_encoder, self.appearance_encoder.num_heads
        seen = [encoder(pictures.to(self.device)).embeddings for pictures in (images, images.flip(3))]
        return unit_parts(unit_parts(seen[0], number) + unit_parts(seen[1], number), number)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Pictures (B, 3, H, W) painted from codes, in network input space."""
        return self.decoder(codes.appearance.to(self.device), codes.structure.to(self.device))

    def is_made_from(self, checkpoint_id: str) -> bool:
        """Whether a recorded checkpoint is this model's; version 0.1.0 recorded the first 16 of 64 hex digits."""
        return checkpoint_id in (self.checkpoint_id, self.checkpoint_id[:16])

    def describe(self) -> dict[str, Any]:
        """Parameters per network, for a log or a report."""
        return {name: sum(p.numel() for p in net.parameters()) for name, net in self.networks().items()}


def unit_parts(vectors: Tensor, number: int) -> Tensor:
    """Vectors (B, D) with each of their `number` equal parts at length 1."""
    return F.normalize(vectors.unflatten(1, (number, -1)), dim=2).flatten(1)
