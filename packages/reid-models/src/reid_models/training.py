"""Train a re-identification network, evaluate it as it goes, and leave at any moment without losing anything.

    config = load_config(ReidTrainConfig, Path("configs/baseline_market.yaml"))
    run = train_reid(config, DatasetIndex.open("data/market"), Path("runs/teacher"), Runtime.from_environment())

An epoch is about one pass over the training split; the random state, the learning rate and the batches are functions
of the seed and the iteration, or lie in the checkpoint: a resumed run equals one that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import reid_eval
import reid_models
from reid_eval.errors import ReidError, Stopped
from reid_eval.progress import progress
from reid_eval.ranking import rank
from reid_models import losses
from reid_models.config import ConfigError, config_dict
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.loading import Augmentation, Batch, PersonDataset, make_loader
from reid_models.data.samplers import BatchSampler, IdentitySampler, ShuffledSampler
from reid_models.data.transforms import to_pixels
from reid_models.extraction import NetworkEmbedder, extract_features
from reid_models.networks.baseline import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import load_trunk_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkConfig:
    """The network: a trunk and the bottleneck classifier on it."""

    trunk: Literal["resnet50", "small"] = "resnet50"
    width: int = 16
    """of the small trunk's first stage; resnet50 has its own"""
    last_stride: int = 1
    weights: str = "imagenet"
    """what the trunk starts from: "imagenet", "none" (random) or a file"""
    bottleneck: int = 512
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _at_least(1, network_width=self.width, network_bottleneck=self.bottleneck)
        if self.last_stride not in (1, 2):
            raise ConfigError(f"network.last_stride: expected 1 or 2, got {self.last_stride}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout: expected a probability below 1, got {self.dropout:g}")


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are put together: "identity" has ids_per_batch people with images_per_id pictures of each,
    "shuffled" has batch_size pictures of anybody."""

    kind: Literal["identity", "shuffled"] = "identity"
    ids_per_batch: int = 16
    images_per_id: int = 4
    batch_size: int = 64

    def __post_init__(self) -> None:
        _at_least(2, sampler_ids_per_batch=self.ids_per_batch, sampler_batch_size=self.batch_size)
        _at_least(1, sampler_images_per_id=self.images_per_id)


@dataclass(frozen=True)
class LossConfig:
    """The weight of each term, 0 for none, and what the terms need."""

    id: float = 1.0
    triplet: float = 1.0
    margin: float = 0.3
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.id, self.triplet) < 0 or self.id + self.triplet == 0:
            raise ConfigError(f"loss: id {self.id:g} and triplet {self.triplet:g}; expected weights >= 0, not both 0")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing: expected 0 to below 1, got {self.label_smoothing:g}")


@dataclass(frozen=True)
class OptimConfig:
    """Adam, or SGD with Nesterov momentum; weight decay acts on all parameters."""

    kind: Literal["adam", "sgd"] = "adam"
    lr: float = 3.5e-4
    trunk_lr_factor: float = 1.0
    """the trunk's learning rate is lr times this"""
    weight_decay: float = 5e-4
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"optim.lr: must be positive, got {self.lr:g}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then steps of gamma at the milestones, or half a cosine down to final_factor."""

    kind: Literal["multistep", "cosine"] = "multistep"
    epochs: int = 120
    warmup_epochs: int = 10
    warmup_factor: float = 0.1
    milestones: list[int] = field(default_factory=lambda: [40, 70])
    """finished epochs at which the learning rate is multiplied by gamma"""
    gamma: float = 0.1
    final_factor: float = 0.01

    def __post_init__(self) -> None:
        _at_least(1, schedule_epochs=self.epochs)
        _at_least(0, schedule_warmup_epochs=self.warmup_epochs)

    def lr_factor(self, iteration: int, iterations_per_epoch: int) -> float:
        """What learning rates are multiplied by in the step number `iteration`, from 0."""
        warmup = self.warmup_epochs * iterations_per_epoch
        factor = 1.0
        if iteration < warmup:
            factor = self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup
        if self.kind == "multistep":
            epoch = iteration // iterations_per_epoch
            return factor * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if iteration < warmup:
            return factor
        share = (iteration - warmup) / max(1, self.epochs * iterations_per_epoch - warmup)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class ReidTrainConfig:
    """Everything that decides a training. The defaults train a ResNet-50 on a dataset of Market-1501's size."""

    image_hw: tuple[int, int] = (256, 128)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(erase=0.5))
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    num_workers: int = 4
    cache_mib: int = 256
    """decoded pictures kept in memory by each loading process"""
    log_every: int = 20
    """iterations"""
    eval_every: int = 10
    """epochs; the last one is always evaluated"""
    checkpoint_every: int = 10
    """epochs; the last one is always kept"""
    keep_checkpoints: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.image_hw) < 16:
            raise ConfigError(f"image_hw: height and width must be at least 16, got {list(self.image_hw)}")
        _at_least(0, num_workers=self.num_workers, cache_mib=self.cache_mib, seed=self.seed)
        _at_least(1, log_every=self.log_every, eval_every=self.eval_every)
        _at_least(1, checkpoint_every=self.checkpoint_every, keep_checkpoints=self.keep_checkpoints)
        if self.loss.triplet > 0 and self.sampler.kind != "identity":
            raise ConfigError("loss.triplet: needs sampler.kind=identity, several pictures of a person in a batch")
        if self.loss.triplet > 0 and self.sampler.images_per_id < 2:
            raise ConfigError(
                "sampler.images_per_id: a triplet needs at least 2 pictures of a person, "
                f"got {self.sampler.images_per_id}; or set loss.triplet=0"
            )


def _at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            group, _, key = name.partition("_")
            dotted = f"{group}.{key}" if group in ("network", "sampler", "schedule") else name
            raise ConfigError(f"{dotted}: must be at least {minimum}, got {value}")


class DivergedError(ReidError):
    """A loss is not finite any more."""


def build_network(config: NetworkConfig, num_ids: int, *, load_weights: bool = True) -> Baseline:
    """The network of these settings. Its random part draws from the global generator.

    Raises:
        WeightsError: the trunk's weights cannot be had, or do not fit.
    """
    trunk = make_trunk(config.trunk, last_stride=config.last_stride, width=config.width)
    network = Baseline(trunk, num_ids, bottleneck=config.bottleneck, dropout=config.dropout)
    if load_weights:
        load_trunk_weights(trunk, config.weights)
    return network


def train_reid(
    config: ReidTrainConfig,
    data: DatasetIndex,
    out: Path | str,
    runtime: Runtime,
    *,
    resume: bool = False,
    stop_at: int | None = None,
) -> RunDir:
    """Train on a dataset's train_all split, evaluate on query and gallery; writes a run folder and returns it.

    The last checkpoints are kept under their iteration, the one of the highest mAP as "best". `stop_at` leaves, as if
    asked to stop, after that many iterations.

    Raises:
        DatasetError, ConfigError: the data cannot be trained on or evaluated, or not with these settings.
        OutputError, CheckpointError: `out` is not to be written, or not to be resumed.
        WeightsError: the trunk's weights cannot be had.
        DivergedError: a loss is not finite.
        Stopped: a signal or the time limit came; the state is saved.
    """
    index = data.split("train_all")
    _refuse_one_camera(index)
    sampler = _make_sampler(config, index)
    can_evaluate = _can_evaluate(data)
    made_by: dict[str, Any] = {
        "reid_models": reid_models.__version__,
        "reid_eval": reid_eval.__version__,
        "torch": str(torch.__version__),
        "data": str(data.root.resolve()),
        "layout": data.layout,
        "index_fingerprint": index.fingerprint,
        "num_ids": index.num_ids,
    }
    runtime.seed_everything(config.seed)
    # Before the folder is made: weights that cannot be had leave nothing behind.
    network = build_network(config.network, index.num_ids, load_weights=not resume)
    run = RunDir.create(out, config, kind="reid", made_by=made_by, resume=resume)
    checkpoint = run.resume_from() if resume else None
    if resume and checkpoint is None:
        load_trunk_weights(network.trunk, config.network.weights)
    if checkpoint is not None:
        network.load_state_dict(checkpoint.networks["reid"])
    runtime.prepare(network)
    trainer = _Trainer(config, network, sampler, runtime)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    dataset = PersonDataset(index, config.image_hw, augmentation=config.augmentation, cache_mib=config.cache_mib)

    def save() -> None:
        run.save(trainer.checkpoint(made_by))
        run.keep_last(config.keep_checkpoints)

    def finish_epoch() -> None:
        """Evaluate and save where it is due; each at most once per iteration, also when a resumed run begins here."""
        is_last = trainer.iteration == trainer.iterations
        epoch, within = divmod(trainer.iteration, sampler.iterations_per_epoch)
        if trainer.iteration == 0 or within:
            return
        evaluate = (
            can_evaluate and (is_last or epoch % config.eval_every == 0) and trainer.evaluated_at < trainer.iteration
        )
        if evaluate:
            trainer.evaluate(data, run, made_by)
        if (is_last or epoch % config.checkpoint_every == 0) and (
            evaluate or trainer.iteration not in run.iterations()
        ):
            save()

    try:
        with runtime.watch_signals(), progress("re-ID", trainer.iterations, trainer.iteration) as bar:
            finish_epoch()
            batches = sampler.batches(trainer.iteration, trainer.iterations)
            loader = make_loader(
                dataset, batches, num_workers=config.num_workers, pin_memory=runtime.device.type == "cuda"
            )
            for batch in loader:
                if trainer.iteration == 0:
                    run.sample(0, "batch", batch_sheet(batch, index, config.sampler.images_per_id))
                trainer.step(batch)
                if trainer.iteration % config.log_every == 0 or trainer.iteration == trainer.iterations:
                    run.log(trainer.iteration, trainer.take_means())
                bar.advance(1, trainer.note())
                reason = runtime.stop_reason()
                if stop_at is not None and trainer.iteration >= stop_at:
                    reason = reason or f"asked to stop at iteration {stop_at}"
                if reason and trainer.iteration < trainer.iterations:
                    save()
                    raise Stopped(
                        f"{reason}: saved iteration {trainer.iteration} in {run.path}; continue with --resume"
                    )
                finish_epoch()
    finally:
        run.close()
    return run


class _Trainer:
    """The state of a training: network, optimizer, counters; and one step of it."""

    def __init__(self, config: ReidTrainConfig, network: Baseline, sampler: BatchSampler, runtime: Runtime) -> None:
        self.config, self.network, self.sampler, self.runtime = config, network.train(), sampler, runtime
        self.optimizer = make_optimizer(network, config.optim)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.iterations = config.schedule.epochs * sampler.iterations_per_epoch
        self.iteration = 0
        self.evaluated_at = 0
        self.best_map: float | None = None
        self.window: dict[str, float] = {}
        """sums since the last line of the log"""
        self.window_steps = 0
        self._last: dict[str, float] = {}
        self._images_per_s = 0.0
        self._since_s = time.monotonic()

    @property
    def lr(self) -> float:
        """The head's learning rate in the next step."""
        return self.config.optim.lr * self.config.schedule.lr_factor(self.iteration, self.sampler.iterations_per_epoch)

    def step(self, batch: Batch) -> None:
        """One step of the optimizer.

        Raises:
            DivergedError: a term is not finite; the network is as before the step.
        """
        config, lr = self.config, self.lr
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * lr / config.optim.lr
        images, labels, _ = self.runtime.to_device(batch)
        with self.runtime.autocast():
            output = self.network(images)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=images.device)
        if config.loss.id > 0:
            terms["id"] = losses.cross_entropy(output.logits, labels, label_smoothing=config.loss.label_smoothing)
            total = total + config.loss.id * terms["id"]
        if config.loss.triplet > 0:
            terms["triplet"] = losses.batch_hard_triplet(output.embeddings, labels, margin=config.loss.margin)
            total = total + config.loss.triplet * terms["triplet"]
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        self.iteration += 1
        self._refuse_nonfinite(values, lr)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.window_steps += 1
        self._last = values | {"lr": lr}
        now_s = time.monotonic()
        pace = len(labels) / max(now_s - self._since_s, 1e-9)
        self._images_per_s = 0.9 * self._images_per_s + 0.1 * pace if self._images_per_s else pace
        self._since_s = now_s

    def take_means(self) -> dict[str, float]:
        """The mean of each term since the last time, the learning rate, and the epochs done."""
        means = {name: value / self.window_steps for name, value in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means | {"lr": self._last["lr"], "epoch": self.iteration / self.sampler.iterations_per_epoch}

    def note(self) -> str:
        """How it goes, in a few words."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in self._last.items() if name != "lr")
        best = "" if self.best_map is None else f" mAP {self.best_map:.3f}"
        return f"{terms} lr {self._last['lr']:.1e} {self._images_per_s:.0f} images/s{best}"

    def evaluate(self, data: DatasetIndex, run: RunDir, made_by: Mapping[str, Any]) -> None:
        """Rank query against gallery, log it, and keep the network if it is the best so far."""
        embedder = NetworkEmbedder(
            self.network,
            name=f"reid:{run.path.name}@{self.iteration}",
            image_hw=self.config.image_hw,
            num_features=self.network.num_features,
            runtime=self.runtime,
        )
        report = rank(extract_features(embedder, data, num_workers=self.config.num_workers))
        run.log(self.iteration, {"eval_map_hits": report.map_hits, "eval_rank1": float(report.cmc[0])})
        logger.info("epoch %g: mAP %.4f", self.iteration / self.sampler.iterations_per_epoch, report.map_hits)
        self.evaluated_at = self.iteration
        if self.best_map is None or report.map_hits > self.best_map:
            self.best_map = float(report.map_hits)
            run.save(self.checkpoint(made_by), best=True)
        self._since_s = time.monotonic()

    def checkpoint(self, made_by: Mapping[str, Any]) -> Checkpoint:
        """Everything that the next step depends on."""
        return Checkpoint(
            kind="reid",
            iteration=self.iteration,
            config=config_dict(self.config),
            networks={"reid": {name: value.detach().cpu() for name, value in self.network.state_dict().items()}},
            optimizers={"reid": self.optimizer.state_dict()},
            rng=self.runtime.rng_state(),
            progress={
                "evaluated_at": self.evaluated_at,
                "best_map": self.best_map,
                "window": dict(self.window),
                "window_steps": self.window_steps,
            },
            made_by=dict(made_by),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; the network's weights are loaded already."""
        self.optimizer.load_state_dict(checkpoint.optimizers["reid"])
        self.runtime.set_rng_state(checkpoint.rng)
        self.iteration = checkpoint.iteration
        self.evaluated_at = checkpoint.progress["evaluated_at"]
        self.best_map = checkpoint.progress["best_map"]
        self.window = dict(checkpoint.progress["window"])
        self.window_steps = checkpoint.progress["window_steps"]

    def _refuse_nonfinite(self, values: Mapping[str, float], lr: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"loss {name} is {value} at iteration {self.iteration}, learning rate {lr:.3g}; "
                    "lower optim.lr or lengthen schedule.warmup_epochs and start again"
                )


def make_optimizer(network: Baseline, config: OptimConfig) -> torch.optim.Optimizer:
    """One group for the trunk, one for the head."""
    trunk = list(network.trunk.parameters())
    in_trunk = {id(parameter) for parameter in trunk}
    head = [parameter for parameter in network.parameters() if id(parameter) not in in_trunk]
    groups = [{"params": trunk, "lr": config.lr * config.trunk_lr_factor}, {"params": head, "lr": config.lr}]
    if config.kind == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(
            groups, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=nesterov, fused=True
        )
    return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=True)


def batch_sheet(batch: Batch, index: DatasetIndex, columns: int) -> np.ndarray:
    """A picture of a batch as the network sees it, with identity and camera under each; pixels (H, W, 3)."""
    pixels = to_pixels(batch.images)
    height, width = pixels.shape[1:3]
    scale = max(1, round(128 / height))
    columns = columns if columns > 1 else 8
    caption_px = 14
    cell_h, cell_w = height * scale + caption_px, width * scale + 4
    sheet = Image.new("RGB", (columns * cell_w, -(-len(pixels) // columns) * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (picture, row) in enumerate(zip(pixels, batch.rows.tolist(), strict=True)):
        left, top = position % columns * cell_w, position // columns * cell_h
        enlarged = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top))
        record = index[row]
        draw.text((left + 1, top + height * scale), f"{record.pid} c{record.camid}", fill="black")
    return np.asarray(sheet)


def _make_sampler(config: ReidTrainConfig, index: DatasetIndex) -> BatchSampler:
    sampler = config.sampler
    if sampler.kind == "identity":
        return IdentitySampler(index.label_array, sampler.ids_per_batch, sampler.images_per_id, config.seed)
    if index.num_ids < 2:
        raise DatasetError(f"{index.root}: one identity in the training data; telling people apart needs at least 2")
    return ShuffledSampler(len(index), sampler.batch_size, config.seed)


def _refuse_one_camera(index: DatasetIndex) -> None:
    cameras = np.unique(index.camids)
    if len(cameras) == 1 and cameras[0] != -1:
        raise DatasetError(
            f"{index.root}: all {len(index)} training pictures are from camera {cameras[0]}; recognising people "
            "across cameras needs at least 2; add pictures of another camera"
        )


def _can_evaluate(data: DatasetIndex) -> bool:
    """Whether there are queries to rank; says so when there are none.

    Raises:
        DatasetError: there are, but none can ever be answered.
    """
    if not {"query", "gallery"} <= set(data.splits):
        logger.warning("%s: no query and gallery, so nothing is evaluated and no best checkpoint is kept", data.root)
        return False
    if not _answerable(data.split("query"), data.split("gallery")):
        raise DatasetError(
            f"{data.root}: no query has its person in the gallery under another camera, so nothing could be measured; "
            "see reid-models check"
        )
    return True


def _answerable(query: DatasetIndex, gallery: DatasetIndex) -> bool:
    cameras_of: dict[int, set[int]] = {}
    for record in gallery:
        cameras_of.setdefault(record.pid, set()).add(record.camid)
    return any(
        cameras_of.get(record.pid, set()) - ({record.camid} - {-1})  # camera -1 is unknown and hides nothing
        for record in query
        if record.pid >= 0
    )
