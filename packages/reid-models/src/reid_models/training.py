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
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import reid_eval
import reid_models
from reid_eval.errors import ReidError, Stopped
from reid_eval.progress import progress
from reid_eval.ranking import RankReport, rank
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
        _must("network.width", self.width, self.width >= 1, "at least 1")
        _must("network.last_stride", self.last_stride, self.last_stride in (1, 2), "1 or 2")
        _must("network.bottleneck", self.bottleneck, self.bottleneck >= 1, "at least 1")
        _must("network.dropout", self.dropout, 0 <= self.dropout < 1, "a probability below 1")


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are put together: "identity" has ids_per_batch people with images_per_id pictures of each,
    "shuffled" has batch_size pictures of anybody."""

    kind: Literal["identity", "shuffled"] = "identity"
    ids_per_batch: int = 16
    images_per_id: int = 4
    batch_size: int = 64

    def __post_init__(self) -> None:
        _must("sampler.ids_per_batch", self.ids_per_batch, self.ids_per_batch >= 2, "at least 2")
        _must("sampler.images_per_id", self.images_per_id, self.images_per_id >= 1, "at least 1")
        _must("sampler.batch_size", self.batch_size, self.batch_size >= 2, "at least 2")


@dataclass(frozen=True)
class LossConfig:
    """The weight of each term, 0 for none, and what the terms need."""

    id: float = 1.0
    triplet: float = 1.0
    margin: float = 0.3
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not (self.id >= 0 and self.triplet >= 0 and 0 < self.id + self.triplet < math.inf):
            raise ConfigError(f"loss: id {self.id:g} and triplet {self.triplet:g}; expected weights >= 0, not both 0")
        _must("loss.margin", self.margin, 0 <= self.margin < math.inf, "0 or more")
        _must("loss.label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "0 to below 1")


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
        _must("optim.lr", self.lr, 0 < self.lr < math.inf, "positive")
        _must("optim.trunk_lr_factor", self.trunk_lr_factor, 0 <= self.trunk_lr_factor < math.inf, "0 or more")
        _must("optim.weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _must("optim.momentum", self.momentum, 0 <= self.momentum < 1, "0 to below 1")


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
        _must("schedule.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _must("schedule.warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "at least 0")
        for name in ("warmup_factor", "gamma", "final_factor"):
            value = getattr(self, name)
            _must(f"schedule.{name}", value, 0 <= value <= 1, "between 0 and 1")

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
        for name in ("num_workers", "cache_mib"):
            _must(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _must(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _must("seed", self.seed, 0 <= self.seed < 1 << 63, "at least 0 and below 2^63")
        _must("augmentation.flip", self.augmentation.flip, 0 <= self.augmentation.flip <= 1, "between 0 and 1")
        _must("augmentation.erase", self.augmentation.erase, 0 <= self.augmentation.erase <= 1, "between 0 and 1")
        _must("augmentation.pad_px", self.augmentation.pad_px, self.augmentation.pad_px >= 0, "at least 0")
        if self.loss.triplet > 0 and self.sampler.kind != "identity":
            raise ConfigError("loss.triplet: needs sampler.kind=identity, several pictures of a person in a batch")
        if self.loss.triplet > 0 and self.sampler.images_per_id < 2:
            raise ConfigError(
                "sampler.images_per_id: a triplet needs at least 2 pictures of a person, "
                f"got {self.sampler.images_per_id}; or set loss.triplet=0"
            )


def _must(name: str, value: float, holds: bool, be: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: must be {be}, got {value}")


class DivergedError(ReidError):
    """A loss or a weight is not finite any more."""


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
        DivergedError: a loss or a weight is not finite.
        Stopped: a signal or the time limit came; the state is saved.
    """
    if data.unparsed:
        logger.warning(
            "%s: %d image names do not parse and are left out, such as %s; see reid-models check",
            data.root, len(data.unparsed), data.unparsed[0].name,
        )  # fmt: skip
    index = data.split("train_all")
    _refuse_poor_data(index)
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
    begins = not (resume and RunDir(Path(out), "reid", made_by).iterations())
    network = build_network(config.network, index.num_ids, load_weights=begins)
    run = RunDir.create(out, config, kind="reid", made_by=made_by, resume=resume)
    checkpoint = run.resume_from() if resume else None
    if checkpoint is not None:
        network.load_state_dict(checkpoint.networks["reid"])
    runtime.prepare(network)
    trainer = _Trainer(config, network, sampler, runtime, index)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    dataset = PersonDataset(index, config.image_hw, augmentation=config.augmentation, cache_mib=config.cache_mib)

    def save() -> None:
        run.save(trainer.checkpoint(made_by))
        run.keep_last(config.keep_checkpoints)

    def leave(reason: str) -> NoReturn:
        save()
        raise Stopped(
            f"{reason}: saved iteration {trainer.iteration} in {run.path}; run it again to go on (train: with --resume)"
        )

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
            try:
                report = trainer.measure(data, run.path.name)
            except Stopped as stopped:
                leave(str(stopped))
            except ReidError:  # such as a damaged picture in the gallery: the steps up to here are not lost by it
                save()
                raise
            trainer.record(report, run, made_by)
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
                    leave(reason)
                finish_epoch()
    finally:
        run.close()
    return run


class _Trainer:
    """The state of a training: network, optimizer, counters; and one step of it."""

    def __init__(
        self,
        config: ReidTrainConfig,
        network: Baseline,
        sampler: BatchSampler,
        runtime: Runtime,
        index: DatasetIndex,
    ) -> None:
        self.config, self.network, self.sampler, self.runtime = config, network.train(), sampler, runtime
        self.index = index
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
            DivergedError: a term is not finite; no weight has changed.
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
        self._refuse_nonfinite(values, lr, batch)
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

    def measure(self, data: DatasetIndex, name: str) -> RankReport:
        """Rank query against gallery with the network as it is.

        Raises:
            Stopped: a signal came. The state is as before, so the evaluation starts over when the run goes on.
        """
        embedder = _UntilSignal(
            self.network,
            name=f"reid:{name}@{self.iteration}",
            image_hw=self.config.image_hw,
            num_features=self.network.num_features,
            runtime=self.runtime,
        )
        report = rank(extract_features(embedder, data, num_workers=self.config.num_workers))
        self._since_s = time.monotonic()
        return report

    def record(self, report: RankReport, run: RunDir, made_by: Mapping[str, Any]) -> None:
        """Log an evaluation of the present network, and keep the network if it is the best so far."""
        run.log(self.iteration, {"eval_map_hits": report.map_hits, "eval_rank1": float(report.cmc[0])})
        logger.info("epoch %g: mAP %.4f", self.iteration / self.sampler.iterations_per_epoch, report.map_hits)
        self.evaluated_at = self.iteration
        if self.best_map is None or report.map_hits > self.best_map:
            self.best_map = float(report.map_hits)
            run.save(self.checkpoint(made_by), best=True)

    def checkpoint(self, made_by: Mapping[str, Any]) -> Checkpoint:
        """Everything that the next step depends on.

        Raises:
            DivergedError: a weight is not finite; a checkpoint of it would be of no use.
        """
        for name, value in self.network.state_dict().items():
            if not value.isfinite().all():
                raise DivergedError(
                    f"{name} is not finite after iteration {self.iteration}, so it is not saved; {_CALMER}"
                )
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

    def _refuse_nonfinite(self, values: Mapping[str, float], lr: float, batch: Batch) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                files = ", ".join(self.index[row].path.name for row in batch.rows[:3].tolist())
                raise DivergedError(
                    f"loss {name} is {value} at iteration {self.iteration}, learning rate {lr:.3g} "
                    f"(batch with {files}, ...); {_CALMER}"
                )


_CALMER = "lower optim.lr or lengthen schedule.warmup_epochs in a new run; what was saved before is intact"


class _UntilSignal(NetworkEmbedder):
    """Embeds until a signal asks to stop: an evaluation may take longer than a batch system waits."""

    def embed(self, images: Tensor) -> Tensor:
        if self.runtime.stop_signal is not None:
            raise Stopped(self.runtime.stop_signal)
        return super().embed(images)


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
    return ShuffledSampler(len(index), sampler.batch_size, config.seed)


def _refuse_poor_data(index: DatasetIndex) -> None:
    if index.num_ids < 2:
        raise DatasetError(
            f"{index.root}: all {len(index)} training pictures are of one identity; telling people apart needs at "
            "least 2; add pictures of others, or see reid-models check"
        )
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
