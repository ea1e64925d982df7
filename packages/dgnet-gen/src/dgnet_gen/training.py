"""Train DG-Net: the alternating step of discriminator, generator and appearance encoder.

    config = load_config(DGNetTrainConfig, Path("configs/dgnet_market.yaml"))
    run = train_dgnet(config, DatasetIndex.open("data/market"), Path("runs/dgnet"), Runtime.from_environment())

One step follows Zheng et al. 2019. a and b are two batches, x_ij has the appearance of i and the structure of j:

1. codes of both; swapped pictures x_ba, x_ab; each picture from its own codes; each from its positive's appearance
2. the discriminator learns to tell x_ba, x_ab from photographs
3. generator and appearance encoder learn together. Appearance codes are cut off from the graph and swapped pictures
   are judged by a frozen view of the appearance encoder, so that neither side trains the other's weights.

The weights are applied once, in `_total`. The terms of structure codes and of the cycle are let in late. The published
code also adds an appearance-code term; both of its sides are cut off from the graph, so it trains nothing and is left
out here. The loss of the fine-grained head comes with a teacher; until then that head is not trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

import dgnet_gen
import reid_eval
import reid_models
from dgnet_gen import losses
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.pairs import PairBatch, PairDataset, pair_batches
from reid_eval.errors import ReidError, Stopped
from reid_eval.progress import progress
from reid_models.config import ConfigError, config_dict
from reid_models.data.index import DatasetIndex
from reid_models.data.transforms import eval_transform, random_erasing, to_gray
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import load_trunk_weights

SHEET_PEOPLE = 6


@dataclass(frozen=True)
class LossWeights:
    """The weight of every term; those of late terms are what their ramps climb to."""

    recon_self: float = 5.0
    recon_same_id: float = 5.0
    adversarial: float = 1.0
    recon_identity: float = 0.5
    identity: float = 1.0
    identity_positive: float = 1.0
    recon_structure: float = 1.0
    cycle: float = 2.0
    gradient_penalty: float = 0.01
    warm_iter: int = 30_000
    """late terms are absent up to this iteration"""
    warm_scale: float = 0.0005
    """and grow by this much in each one after it"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"weights.{name}: must be 0 or more, got {value:g}")


@dataclass(frozen=True)
class OptimConfig:
    """Adam for generator and discriminator, Nesterov SGD for the appearance encoder; multistep decay for all."""

    lr_generator: float = 1e-4
    lr_discriminator: float = 1e-4
    lr_appearance: float = 0.002
    head_lr_factor: float = 10.0
    beta1: float = 0.0
    beta2: float = 0.999
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step_size: int = 60_000
    """decay at step_size, 1.5 and 1.75 times it"""
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr_generator", "lr_discriminator", "lr_appearance", "head_lr_factor", "step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name}: must be positive, got {getattr(self, name):g}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name}: must be at least 0 and below 1, got {getattr(self, name):g}")


@dataclass(frozen=True)
class DGNetTrainConfig:
    """Everything that decides a training; the defaults are the published ones for Market-1501."""

    networks: NetworksConfig = field(default_factory=NetworksConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trunk_weights: str = "imagenet"
    """"imagenet", "none" (random, said aloud) or a file"""
    batch_size: int = 8
    """anchors of each of the two batches"""
    max_iter: int = 100_000
    flip: float = 0.5
    pad_px: int = 10
    erasing: float = 0.5
    """probability of erasing a rectangle of what the identity losses see"""
    encoder_again: float = 0.5
    """probability that re-encoding a swapped picture trains the structure encoder instead of the picture"""
    train_bn: bool = True
    """whether the frozen view of the appearance encoder normalises by the batch"""
    precision: Literal["fp32", "bf16"] = "fp32"
    num_workers: int = 4
    cache_mib: int = 512
    """decoded pictures kept in memory by each worker"""
    log_every: int = 10
    sample_every: int = 5_000
    checkpoint_every: int = 10_000
    keep_checkpoints: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_iter", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("num_workers", "cache_mib", "pad_px", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        for name in ("flip", "erasing", "encoder_again"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: is a probability, expected 0 to 1, got {getattr(self, name):g}")
        if self.batch_size < 2:
            raise ConfigError("batch_size: batch norm needs at least 2, got 1")
        if self.networks.heads == "one":
            raise ConfigError("networks.heads: one is for published networks that are only used; training takes two")
        if self.trunk_weights == "imagenet" and self.networks.trunk != "resnet50":
            raise ConfigError(
                f"trunk_weights: imagenet is for networks.trunk=resnet50, found {self.networks.trunk}; "
                "set trunk_weights=none or name a file"
            )


def train_dgnet(
    config: DGNetTrainConfig,
    data: DatasetIndex,
    out: Path | str,
    runtime: Runtime,
    *,
    resume: bool = False,
    stop_at: int | None = None,
) -> RunDir:
    """Train on a dataset's train_all split; writes a run folder and returns it.

    `stop_at` leaves, as if asked to stop, after that many iterations.

    Raises:
        DatasetError: the data cannot be trained on.
        OutputError, CheckpointError: `out` is not to be written, or not to be resumed.
        DivergedError: a loss is not finite any more.
        Stopped: a signal or the time limit came; the state is saved.
    """
    index = data.split("train_all")
    pairs = PairDataset(
        index,
        config.networks.image_hw,
        batch_size=config.batch_size,
        seed=config.seed,
        flip=config.flip,
        pad_px=config.pad_px,
        cache_bytes=config.cache_mib << 20,
    )
    made_by: dict[str, Any] = {
        "dgnet_gen": dgnet_gen.__version__,
        "reid_models": reid_models.__version__,
        "reid_eval": reid_eval.__version__,
        "torch": str(torch.__version__),
        "data": str(data.root.resolve()),
        "layout": data.layout,
        "index_fingerprint": index.fingerprint,
        "num_ids": index.num_ids,
    }
    runtime.seed_everything(config.seed)
    model = DGNet(config.networks, index.num_ids)
    if not resume:  # before the folder is made: weights that cannot be had leave nothing behind
        load_trunk_weights(model.appearance_encoder.trunk, config.trunk_weights)
    run = RunDir.create(out, config, kind="dgnet", made_by=made_by, resume=resume)
    checkpoint = run.resume_from() if resume else None
    if checkpoint is not None:
        model.load_networks(checkpoint.networks, source=str(run.path))
    elif resume:
        load_trunk_weights(model.appearance_encoder.trunk, config.trunk_weights)
    for network in model.networks().values():
        runtime.prepare(network)
        network.train()
    optimizers = make_optimizers(model, config.optim)
    start = 0
    if checkpoint is not None:
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(checkpoint.optimizers[name])
        runtime.set_rng_state(checkpoint.rng)
        start = checkpoint.iteration
    step = Step(model, optimizers, config, runtime)

    def save(iteration: int) -> None:
        run.save(
            Checkpoint(
                kind="dgnet",
                iteration=iteration,
                config=config_dict(config),
                networks={name: _on_cpu(network.state_dict()) for name, network in model.networks().items()},
                optimizers={name: optimizer.state_dict() for name, optimizer in optimizers.items()},
                rng=runtime.rng_state(),
                made_by=made_by,
            )
        )
        run.keep_last(config.keep_checkpoints)

    batches = pair_batches(pairs, start, config.max_iter, num_workers=config.num_workers)
    cast = torch.stack([eval_transform(pairs.store.read(row), pairs.image_hw) for row in pairs.cast(SHEET_PEOPLE)])
    try:
        with runtime.watch_signals(), progress("DG-Net", config.max_iter, start) as bar:
            started_s = time.monotonic()
            for iteration, batch in enumerate(batches, start=start + 1):
                terms = step(iteration - 1, runtime.to_device(batch))
                values = {name: float(value) for name, value in terms.items()}
                _refuse_nonfinite(values, iteration, config.optim, index, batch)
                pace = (iteration - start) / max(time.monotonic() - started_s, 1e-9)
                bar.advance(1, _note(values, pace))
                is_last = iteration == config.max_iter
                if iteration % config.log_every == 0 or is_last:
                    run.log(iteration, values | step.settings_at(iteration - 1))
                if iteration % config.sample_every == 0 or is_last:
                    run.sample(iteration, "swap", _sheet(model, cast))
                reason = runtime.stop_reason()
                if stop_at is not None and iteration >= stop_at:
                    reason = reason or f"asked to stop at iteration {stop_at}"
                if iteration % config.checkpoint_every == 0 or is_last or reason:
                    save(iteration)
                if reason and not is_last:
                    raise Stopped(
                        f"{reason}: saved iteration {iteration} in {run.path}; "
                        "run it again to go on (train: with --resume)"
                    )
    finally:
        run.close()
    return run


class DivergedError(ReidError):
    """A loss is not finite."""


class Step:
    """One training step over the four networks."""

    def __init__(
        self,
        model: DGNet,
        optimizers: Mapping[str, torch.optim.Optimizer],
        config: DGNetTrainConfig,
        runtime: Runtime,
    ) -> None:
        self.model, self.optimizers, self.config, self.runtime = model, optimizers, config, runtime
        optim = config.optim
        self.base_lr = {
            "generator": [optim.lr_generator],
            "discriminator": [optim.lr_discriminator],
            "appearance": [optim.lr_appearance, optim.lr_appearance * optim.head_lr_factor],
        }

    def settings_at(self, iteration: int) -> dict[str, float]:
        """Learning rates and ramped weights of a 0-based iteration, for the log."""
        weights = self.config.weights
        factor = lr_factor(iteration, self.config.optim)
        return {
            "lr_generator": self.config.optim.lr_generator * factor,
            "lr_appearance": self.config.optim.lr_appearance * factor,
            "weight_recon_structure": self._ramp(iteration, weights.recon_structure),
            "weight_cycle": self._ramp(iteration, weights.cycle),
        }

    def _ramp(self, iteration: int, maximum: float) -> float:
        weights = self.config.weights
        return losses.ramp(iteration, start=weights.warm_iter, step=weights.warm_scale, maximum=maximum)

    def __call__(self, iteration: int, batch: PairBatch) -> dict[str, Tensor]:
        """Update all networks; returns the unweighted terms and the two totals, without gradients."""
        factor = lr_factor(iteration, self.config.optim)
        for name, optimizer in self.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self.base_lr[name], strict=True):
                group["lr"] = lr * factor
        # Drawn by address, not from a stream: a resumed run draws the same.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + iteration)
        with self.runtime.autocast():
            made = self._forward(batch, generator)
        terms = self._discriminator_step(made, batch)
        terms |= self._generator_step(iteration, made, batch, generator)
        return {name: value.detach() for name, value in terms.items()}

    def _forward(self, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Codes, the six decoded batches in one call, and the logits that the identity losses see."""
        model = self.model
        x_a, x_b = batch.anchors_a, batch.anchors_b
        s_a, s_b = model.structure_encoder(to_gray(torch.cat([x_a, x_b]))).chunk(2)
        # Batch norm sees one batch at a time, in this order. When erased copies give the logits, the clean passes give
        # codes alone, which have no gradient.
        erasing = self.config.erasing > 0
        clean = []
        with torch.set_grad_enabled(not erasing):
            for images in (x_a, x_b, batch.positives_a, batch.positives_b):
                clean.append(model.appearance_encoder(images))
        f_a, f_b, fp_a, fp_b = (output.code for output in clean)
        if erasing:
            outputs = [
                model.appearance_encoder(random_erasing(images, self.config.erasing, generator=generator))
                for images in (x_a, x_b, batch.positives_a, batch.positives_b)
            ]
        else:
            outputs = clean
        appearance = torch.cat([f_a, f_b, f_a, f_b, fp_a, fp_b])
        structure = torch.cat([s_b, s_a, s_a, s_b, s_a, s_b])
        x_ba, x_ab, a_self, b_self, a_same, b_same = model.decoder(appearance, structure).chunk(6)
        return {
            "s_a": s_a, "s_b": s_b, "f_a": f_a, "f_b": f_b, "x_ba": x_ba, "x_ab": x_ab,
            "a_self": a_self, "b_self": b_self, "a_same": a_same, "b_same": b_same,
            "p_a": outputs[0].primary, "p_b": outputs[1].primary,
            "pp_a": outputs[2].primary, "pp_b": outputs[3].primary,
        }  # fmt: skip

    def _discriminator_step(self, made: dict[str, Tensor], batch: PairBatch) -> dict[str, Tensor]:
        weights, discriminator = self.config.weights, self.model.discriminator
        real = torch.cat([batch.anchors_a, batch.anchors_b]).requires_grad_()
        fake = torch.cat([made["x_ba"], made["x_ab"]]).detach()
        # The penalty is a second derivative: float32 throughout. Both halves weigh as two losses of their own mean.
        real_maps = discriminator(real)
        fake_maps = discriminator(fake.to(real.dtype))
        adversarial = 2 * losses.discrimination(fake_maps, real_maps)
        penalty = 2 * losses.penalty(real_maps, real)
        total = weights.adversarial * (adversarial + weights.gradient_penalty * penalty)
        optimizer = self.optimizers["discriminator"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return {"discriminator": total, "gradient_penalty": penalty}

    def _generator_step(
        self, iteration: int, made: dict[str, Tensor], batch: PairBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        model, weights = self.model, self.config.weights
        structure_weight = self._ramp(iteration, weights.recon_structure)
        cycle_weight = self._ramp(iteration, weights.cycle)
        x_ba, x_ab = made["x_ba"], made["x_ab"]
        terms: dict[str, Tensor] = {}
        with self.runtime.autocast():
            again_a, again_b = _frozen(model.appearance_encoder, x_ba, x_ab, train_bn=self.config.train_bn)
            with _reading(model.discriminator):
                swapped_maps = model.discriminator(torch.cat([x_ba, x_ab]))
            trains_encoder = bool(torch.rand((), generator=generator) < self.config.encoder_again)
            if structure_weight > 0 or cycle_weight > 0:
                gray = to_gray(torch.cat([x_ab, x_ba]))  # the structures of a, then of b
                if trains_encoder:
                    again_s = model.structure_encoder(gray.detach())
                else:
                    with _reading(model.structure_encoder):
                        again_s = model.structure_encoder(gray)
                s_a2, s_b2 = again_s.chunk(2)
                terms["recon_structure"] = losses.reconstruction(s_a2, made["s_a"]) + losses.reconstruction(
                    s_b2, made["s_b"]
                )
                if cycle_weight > 0:
                    cycled = model.decoder(torch.cat([again_a.code, again_b.code]), again_s)
                    x_aba, x_bab = cycled.chunk(2)
                    terms["cycle"] = losses.reconstruction(x_aba, batch.anchors_a) + losses.reconstruction(
                        x_bab, batch.anchors_b
                    )
        x_a, x_b, l_a, l_b = batch.anchors_a, batch.anchors_b, batch.labels_a, batch.labels_b
        terms |= {
            "recon_self": losses.reconstruction(made["a_self"], x_a) + losses.reconstruction(made["b_self"], x_b),
            "recon_same_id": losses.reconstruction(made["a_same"], x_a) + losses.reconstruction(made["b_same"], x_b),
            "adversarial": 2 * losses.adversarial(swapped_maps),  # two halves of equal size, each its own mean
            "recon_identity": losses.identity(again_a.primary, l_a) + losses.identity(again_b.primary, l_b),
            "identity": losses.identity(made["p_a"], l_a) + losses.identity(made["p_b"], l_b),
            "identity_positive": losses.identity(made["pp_a"], l_a) + losses.identity(made["pp_b"], l_b),
        }
        total = _total(terms, weights, structure_weight, cycle_weight)
        for name in ("generator", "appearance"):
            self.optimizers[name].zero_grad(set_to_none=True)
        total.backward()
        self.optimizers["generator"].step()
        self.optimizers["appearance"].step()
        return terms | {"total": total}


def _total(terms: dict[str, Tensor], weights: LossWeights, structure_weight: float, cycle_weight: float) -> Tensor:
    """Equation 9 of the paper, with the weights of this iteration."""
    total = (
        weights.recon_self * terms["recon_self"]
        + weights.recon_same_id * terms["recon_same_id"]
        + weights.adversarial * terms["adversarial"]
        + weights.recon_identity * terms["recon_identity"]
        + weights.identity * terms["identity"]
        + weights.identity_positive * terms["identity_positive"]
    )
    if "recon_structure" in terms:
        total = total + structure_weight * terms["recon_structure"]
    if "cycle" in terms:
        total = total + cycle_weight * terms["cycle"]
    return total


def _frozen(encoder: nn.Module, *batches: Tensor, train_bn: bool) -> list[Any]:
    """Outputs of the encoder as it is now: gradients reach the pictures, never its weights or running statistics.

    Dropout is off; batch norms use the batch if `train_bn`.
    """
    parameters = {name: parameter.detach() for name, parameter in encoder.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.eval()
    if train_bn:
        for part in encoder.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.train()
    try:
        return [functional_call(encoder, (parameters, buffers), (images,)) for images in batches]
    finally:
        encoder.train()


@contextmanager
def _reading(network: nn.Module) -> Iterator[None]:
    """Within the block the network passes gradients on but collects none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def make_optimizers(model: DGNet, optim: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """The three optimisers: generator (structure encoder and decoder), discriminator, appearance."""
    adam: dict[str, Any] = {"betas": (float(optim.beta1), float(optim.beta2)), "weight_decay": optim.weight_decay}
    generator = [*model.structure_encoder.parameters(), *model.decoder.parameters()]
    encoder = model.appearance_encoder
    heads = [*encoder.primary.parameters(), *encoder.fine.parameters()]
    return {
        "generator": torch.optim.Adam(generator, lr=optim.lr_generator, **adam),
        "discriminator": torch.optim.Adam(model.discriminator.parameters(), lr=optim.lr_discriminator, **adam),
        "appearance": torch.optim.SGD(
            [
                {"params": list(encoder.trunk.parameters()), "lr": optim.lr_appearance},
                {"params": heads, "lr": optim.lr_appearance * optim.head_lr_factor},
            ],
            lr=optim.lr_appearance,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.momentum > 0,
        ),
    }


def lr_factor(iteration: int, optim: OptimConfig) -> float:
    """What learning rates are multiplied by at a 0-based iteration; a decay acts one iteration early, as published."""
    half, quarter = optim.step_size // 2, optim.step_size // 4
    milestones = (optim.step_size, optim.step_size + half, optim.step_size + half + quarter)
    return optim.gamma ** sum(iteration + 1 >= milestone for milestone in milestones)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in state.items()}


def _refuse_nonfinite(
    values: Mapping[str, float], iteration: int, optim: OptimConfig, index: DatasetIndex, batch: PairBatch
) -> None:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        files = [index[int(row)].path.name for row in batch.rows_a[:3]]
        raise DivergedError(
            f"iteration {iteration}: {', '.join(broken)} is not finite at lr_generator {optim.lr_generator:g} "
            f"(batch with {', '.join(files)}, ...); lower the learning rate or resume from an earlier checkpoint"
        )


def _note(values: Mapping[str, float], pace: float) -> str:
    shown = ("recon_self", "recon_same_id", "adversarial", "recon_identity", "identity")
    return " ".join(f"{name} {values[name]:.3f}" for name in shown) + f" {pace:.1f} it/s"


def _sheet(model: DGNet, images: Tensor) -> np.ndarray:
    """Everybody in everybody's pose: structures down the left, appearances across the top."""
    from dgnet_gen.visualise import grid_of

    model.eval()
    try:
        codes = model.encode(images)
        return grid_of(model, images, images, codes.structure, codes.appearance)
    finally:
        for network in model.networks().values():
            network.train()
