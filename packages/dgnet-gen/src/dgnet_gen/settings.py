"""Every setting of a DG-Net training; the defaults are the published ones for Market-1501.

config = load_config(DGNetTrainConfig, Path("configs/dgnet_market.yaml"), ["weights.cycle=1"])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dgnet_gen.losses import TEACHER_STYLES, Gan
from dgnet_gen.model import NetworksConfig
from reid_models.config import MOST_PX, ConfigError
from reid_models.runtime import Precision
from reid_models.training import MOST_WORKERS


@dataclass(frozen=True)
class LossWeights:
    """The weight of every term; those of late terms are what their ramps climb to."""

    recon_self: float = 5.0
    recon_same_id: float = 5.0
    adversarial: float = 1.0
    recon_identity: float = 0.5
    identity: float = 1.0
    """of photographs; the fine-grained head counts `teacher` times `fine` beside the primary one"""
    identity_positive: float = 1.0
    recon_appearance: float = 1.0
    """late; both of its sides are cut off from the graph, so it moves the total and no weight"""
    recon_structure: float = 1.0
    """late"""
    cycle: float = 2.0
    """late"""
    teacher: float = 2.0
    """late, from warm_teacher_iter on: primary and fine together; 0 trains without a teacher"""
    primary: float = 1.0
    fine: float = 0.2
    gradient_penalty: float = 0.01
    warm_iter: int = 30_000
    """late terms are absent up to this iteration"""
    warm_teacher_iter: int = 30_000
    """and those of the teacher up to this one"""
    warm_scale: float = 0.0005
    """and grow by this much in each one after it"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"weights.{name}: must be 0 or more, got {value:g}")


@dataclass(frozen=True)
class OptimConfig:
    """Adam for generator and discriminator, Nesterov SGD for the appearance encoder; one schedule for all."""

    lr_generator: float = 1e-4
    lr_discriminator: float = 1e-4
    lr_appearance: float = 0.002
    head_lr_factor: float = 10.0
    beta1: float = 0.0
    beta2: float = 0.999
    momentum: float = 0.9
    weight_decay: float = 5e-4
    policy: Literal["multistep", "step", "constant"] = "multistep"
    """decay at step_size, 1.5 and 1.75 times it; at every step_size; or never"""
    step_size: int = 60_000
    gamma: float = 0.1
    """of generator and discriminator"""
    gamma_appearance: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr_generator", "lr_discriminator", "lr_appearance", "head_lr_factor", "step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name}: must be positive, got {getattr(self, name):g}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name}: must be at least 0 and below 1, got {getattr(self, name):g}")
        for name in ("weight_decay", "gamma", "gamma_appearance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name}: must be 0 or more, got {getattr(self, name):g}")


@dataclass(frozen=True)
class TeacherConfig:
    """What becomes of what the teachers say; read only when weights.teacher is above 0."""

    style: int = 0
    """0 what they say; 1 their first choice; 2 the appearance's identity; 3 all alike; 4 what they say of the two"""
    dropout: bool = True
    """whether their dropout acts, as it does in the published training from its first sample sheet on"""
    decay: float = 1.0
    """of several: what the sum so far is multiplied by before the next one is added"""

    def __post_init__(self) -> None:
        if not 0 <= self.style < len(TEACHER_STYLES):
            told = "; ".join(f"{number} {text}" for number, text in enumerate(TEACHER_STYLES))
            raise ConfigError(f"teacher.style: no style {self.style}; choose {told}")
        if not 0 <= self.decay < math.inf:
            raise ConfigError(f"teacher.decay: must be 0 or more, got {self.decay:g}")


@dataclass(frozen=True)
class DGNetTrainConfig:
    """Everything that decides a training. The number of identities comes from the data."""

    networks: NetworksConfig = field(default_factory=NetworksConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trunk_weights: str = "imagenet"
    """"imagenet", "none" (random, said aloud) or a file"""
    batch_size: int = 8
    """anchors of each of the two batches"""
    accumulate: int = 1
    """batches whose gradients are averaged for one step; batch norms see each alone"""
    max_iter: int = 100_000
    flip: float = 0.5
    pad_px: int = 10
    erasing: float = 0.5
    """probability of erasing a rectangle of what the identity losses see"""
    tone: float = 0.0
    """up to this share the grey levels of photographs follow a random curve before the structure encoder sees them, so
    that what is bright and what is dark must come from the appearance; not published, where it is 0"""
    encoder_again: float = 0.5
    """probability that re-encoding a swapped picture trains the structure encoder instead of the picture"""
    train_bn: bool = True
    """whether the frozen view of the appearance encoder and the teachers normalise by the batch"""
    gan: Gan = "lsgan"
    ema_decay: float = 0.0
    """above 0, a moving average of structure encoder and decoder is kept, shown and generated from"""
    precision: Precision = "fp32"
    num_workers: int = 4
    cache_mib: int = 512
    """decoded pictures kept in memory by each worker"""
    log_every: int = 10
    sample_every: int = 5_000
    checkpoint_every: int = 10_000
    checkpoint_minutes: float = 15.0
    """the most that a kill may cost: so long after the last checkpoint there is another, kept until the next; 0 for no
    limit"""
    keep_checkpoints: int = 2
    """the last ones; the best one is kept beside them"""
    keep_every: int = 10_000
    """and those at multiples of this for good; 0 for none"""
    seed: int = 0

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"num_workers", "cache_mib", "log_every", "sample_every"}
        | {"checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_every"}
    )
    """what a run may be gone on with that was begun otherwise: it decides nothing that is learned"""
    MAY_GROW: ClassVar[frozenset[str]] = frozenset({"max_iter"})
    """and what may become larger"""

    def __post_init__(self) -> None:
        counted = "batch_size", "accumulate", "max_iter", "log_every", "sample_every", "checkpoint_every"
        for name in (*counted, "keep_checkpoints"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ConfigError(f"{name}: must be at least 1 and below 2^31, got {getattr(self, name)}")
        for name in ("num_workers", "cache_mib", "pad_px", "keep_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        for name, most in (("num_workers", MOST_WORKERS), ("pad_px", MOST_PX), ("seed", (1 << 63) - 1)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name}: must be at most {most}, got {getattr(self, name)}")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(f"checkpoint_minutes: must be 0 or more, got {self.checkpoint_minutes:g}")
        for name in ("flip", "erasing", "encoder_again", "tone"):
            if not 0 <= getattr(self, name) <= 1:
                kind = "share" if name == "tone" else "probability"
                raise ConfigError(f"{name}: is a {kind}, expected 0 to 1, got {getattr(self, name):g}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: must be at least 0 and below 1, got {self.ema_decay:g}")
        if self.batch_size < 2:
            raise ConfigError("batch_size: batch norm needs at least 2, got 1")
        if self.networks.heads == "one":
            raise ConfigError("networks.heads: one is for published networks that are only used; training takes two")
        if self.trunk_weights == "imagenet" and self.networks.trunk != "resnet50":
            raise ConfigError(
                f"trunk_weights: imagenet is for networks.trunk=resnet50, found {self.networks.trunk}; "
                "set trunk_weights=none or name a file"
            )
