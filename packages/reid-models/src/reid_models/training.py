"""Train a re-identification network, evaluate it as it goes, and leave at any moment without losing anything.

    config = load_config(ReidTrainConfig, Path("configs/baseline_market.yaml"))
    run = train_reid(config, DatasetIndex.open("data/market"), Path("runs/teacher"), Runtime.from_environment())

An epoch is about one pass over the training split; the random state, the learning rate and the batches are functions
of the seed and the iteration, or lie in the checkpoint: a resumed run equals one that never stopped.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import reid_eval
import reid_models
from reid_eval.errors import Stopped
from reid_eval.files import file_fingerprint
from reid_eval.progress import progress, say
from reid_eval.ranking import RankReport
from reid_eval.reading import reading
from reid_models import losses
from reid_models.checkpoints import CheckpointError, DivergedError, finite_states, load_state
from reid_models.config import MOST_PX, ConfigError, config_dict, config_from_dict
from reid_models.data.check import training_findings
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.loading import Augmentation, Batch, PersonDataset, make_loader
from reid_models.data.samplers import BatchSampler, IdentitySampler, ShuffledSampler
from reid_models.data.transforms import to_pixels
from reid_models.evaluation import EvalProtocol, Evaluation, scores_of, told
from reid_models.extra import Extra, ExtraDataError, SoftTargets
from reid_models.extraction import NetworkEmbedder
from reid_models.foreign import split_entry
from reid_models.losses import LossSum, LossTerm, parse_loss
from reid_models.networks import MGN, PCB, Baseline, ReidNetwork
from reid_models.networks.mgn import parse_granularities
from reid_models.networks.pooling import PoolKind
from reid_models.networks.resnet import TrunkName, make_trunk
from reid_models.optimizers import guarded, load_optimizer_state
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Precision, Runtime
from reid_models.saving import Saver
from reid_models.weights import load_trunk_weights, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkConfig:
    """The network: a trunk, and what stands on it. A setting that names a kind is read by that kind alone."""

    kind: Literal["baseline", "mgn", "pcb"] = "baseline"
    trunk: TrunkName = "resnet50"
    width: int = 16
    """of the small trunk's first stage; the others have their own"""
    weights: str = "imagenet"
    """what the trunk starts from: "imagenet", "none" (random) or a file"""
    last_stride: int = 1
    """baseline"""
    bottleneck: int = 512
    """baseline"""
    dropout: float = 0.5
    """baseline, pcb"""
    granularities: str = "1-2-3"
    """mgn: stripes of each branch, the first the whole person"""
    head_features: int = 256
    """mgn, pcb: length of each head's vector"""
    pool: PoolKind = "avg"
    """mgn"""
    neck: Literal["relu", "bnneck"] = "relu"
    """mgn"""
    classifier_bias: bool = True
    """mgn with neck relu"""
    first_stride: int = 2
    """mgn: of the first branch's last stage"""
    num_stripes: int = 6
    """pcb"""

    def __post_init__(self) -> None:
        for name in ("width", "bottleneck", "head_features", "num_stripes"):
            _must_count(f"network.{name}", getattr(self, name))
        for name in ("last_stride", "first_stride"):
            _must(f"network.{name}", getattr(self, name), getattr(self, name) in (1, 2), "1 or 2")
        _must("network.dropout", self.dropout, 0 <= self.dropout < 1, "a probability below 1")
        try:
            parse_granularities(self.granularities)
        except ValueError as error:
            raise ConfigError(f"network.granularities: {error}") from None


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are put together: "identity" has ids_per_batch people with images_per_id pictures of each,
    "shuffled" has batch_size pictures of anybody."""

    kind: Literal["identity", "shuffled"] = "identity"
    ids_per_batch: int = 16
    images_per_id: int = 4
    batch_size: int = 64
    epoch: Literal["images", "identities"] = "images"
    """identity: an epoch has as many batches as hold all images once, or, as in MGN-pytorch, all identities once"""

    def __post_init__(self) -> None:
        _must_count("sampler.ids_per_batch", self.ids_per_batch, 2)
        _must_count("sampler.images_per_id", self.images_per_id)
        _must_count("sampler.batch_size", self.batch_size, 2)


@dataclass(frozen=True)
class LossConfig:
    """The terms with their weights, such as "CrossEntropy + 2*Triplet + 0.005*CenterLoss", and what they need."""

    terms: str = "CrossEntropy + Triplet"
    margin: float = 0.3
    """of Triplet and MSML"""
    label_smoothing: float = 0.1
    center_lr: float = 0.5
    """how fast centres follow, whatever the weight of their term"""

    def __post_init__(self) -> None:
        self.parsed()
        _must("loss.margin", self.margin, 0 <= self.margin < math.inf, "0 or more")
        _must("loss.label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "0 to below 1")
        _must("loss.center_lr", self.center_lr, 0 < self.center_lr < math.inf, "positive")

    def parsed(self) -> tuple[LossTerm, ...]:
        """The terms in their order."""
        try:
            return parse_loss(self.terms)
        except ValueError as error:
            raise ConfigError(f"loss.terms: {error}") from None


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer; weight decay acts on all parameters, decoupled from the gradient in adamw alone."""

    kind: Literal["adam", "adamw", "nadam", "rmsprop", "sgd"] = "adam"
    lr: float = 3.5e-4
    trunk_lr_factor: float = 1.0
    """the learning rate of what stood on its own before, trunk and branches, is lr times this"""
    weight_decay: float = 5e-4
    beta1: float = 0.9
    """adam, adamw, nadam"""
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    """adam, adamw"""
    momentum: float = 0.9
    """sgd, rmsprop"""
    dampening: float = 0.0
    """sgd without Nesterov"""
    nesterov: bool = True
    """sgd"""

    def __post_init__(self) -> None:
        _must("optim.lr", self.lr, 0 < self.lr < math.inf, "positive")
        _must("optim.eps", self.eps, 0 < self.eps < math.inf, "positive")
        for name in ("trunk_lr_factor", "weight_decay"):
            _must(f"optim.{name}", getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("beta1", "beta2", "momentum", "dampening"):
            _must(f"optim.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "0 to below 1")
        if self.kind == "sgd" and self.nesterov and (self.momentum == 0 or self.dampening > 0):
            raise ConfigError("optim.nesterov: needs momentum above 0 and no dampening; or set optim.nesterov=false")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then steps of gamma, at the milestones or at regular intervals, or half a cosine."""

    kind: Literal["multistep", "step", "cosine"] = "multistep"
    epochs: int = 120
    warmup_epochs: int = 10
    warmup_factor: float = 0.1
    milestones: list[int] = field(default_factory=lambda: [40, 70])
    """multistep: finished epochs at which the learning rate is multiplied by gamma"""
    step_epochs: int = 60
    """step: the learning rate is multiplied by gamma whenever so many epochs are finished"""
    gamma: float = 0.1
    final_factor: float = 0.01
    """cosine: where it ends"""

    def __post_init__(self) -> None:
        for name in ("epochs", "step_epochs"):
            _must_count(f"schedule.{name}", getattr(self, name))
        _must_count("schedule.warmup_epochs", self.warmup_epochs, 0)
        for name in ("warmup_factor", "gamma", "final_factor"):
            value = getattr(self, name)
            _must(f"schedule.{name}", value, 0 <= value <= 1, "between 0 and 1")

    def lr_factor(self, iteration: int, iterations_per_epoch: int) -> float:
        """What learning rates are multiplied by in the step number `iteration`, from 0."""
        warmup = self.warmup_epochs * iterations_per_epoch
        factor = 1.0
        if iteration < warmup:
            factor = self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup
        epoch = iteration // iterations_per_epoch
        match self.kind:
            case "multistep":
                return factor * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
            case "step":
                return factor * self.gamma ** (epoch // self.step_epochs)
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
    accumulate: int = 1
    """batches whose gradients are averaged for one step; losses look at each batch alone"""
    ema_decay: float = 0.0
    """above 0, a moving average of the weights is kept, evaluated and extracted from"""
    precision: Precision = "fp32"
    compile: bool = False
    """compile the network with torch.compile; where that fails, go on without and say so"""
    num_workers: int = 4
    cache_mib: int = 256
    """decoded pictures kept in memory by each loading process"""
    log_every: int = 20
    """iterations"""
    eval_every: int = 10
    """epochs; the last one is always evaluated"""
    eval_rerank: bool = False
    """re-rank too, and call the checkpoint of the highest re-ranked mAP the best"""
    eval_protocol: EvalProtocol = "auto"
    """auto: cross-camera where a query has an answer in another camera, else no-camera"""
    checkpoint_every: int = 10
    """epochs; the last one is always kept"""
    checkpoint_minutes: float = 15.0
    """the most that a kill may cost: so long after the last checkpoint there is another, kept until the next; 0 for no
    limit"""
    keep_checkpoints: int = 3
    seed: int = 0

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"num_workers", "cache_mib", "log_every", "eval_every"}
        | {"checkpoint_every", "checkpoint_minutes", "keep_checkpoints"}
    )
    """what a run may be gone on with that was begun otherwise: it decides nothing that is learned"""
    MAY_GROW: ClassVar[frozenset[str]] = frozenset({"schedule.epochs"})
    """and what may become larger"""

    def __post_init__(self) -> None:
        if not 16 <= min(self.image_hw) <= max(self.image_hw) <= MOST_PX:
            raise ConfigError(
                f"image_hw: height and width must be at least 16 and at most {MOST_PX}, got {list(self.image_hw)}"
            )
        _must("num_workers", self.num_workers, 0 <= self.num_workers <= MOST_WORKERS, f"0 to {MOST_WORKERS}")
        _must("cache_mib", self.cache_mib, 0 <= self.cache_mib < 1 << 31, "0 to below 2^31")
        _must("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "0 to below 1")
        for name in ("accumulate", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _must_count(name, getattr(self, name))
        minutes = self.checkpoint_minutes
        _must("checkpoint_minutes", minutes, 0 <= minutes < math.inf, "0 or more")
        _must("seed", self.seed, 0 <= self.seed < 1 << 63, "at least 0 and below 2^63")
        _must("augmentation.flip", self.augmentation.flip, 0 <= self.augmentation.flip <= 1, "between 0 and 1")
        _must("augmentation.erase", self.augmentation.erase, 0 <= self.augmentation.erase <= 1, "between 0 and 1")
        pad_px = self.augmentation.pad_px
        _must("augmentation.pad_px", pad_px, pad_px >= 0, "at least 0")
        _must("augmentation.pad_px", pad_px, pad_px <= MOST_PX, f"at most {MOST_PX}")
        mined = [name for name, _ in self.loss.parsed() if name not in ("cross_entropy", "center")]
        if mined and self.sampler.kind != "identity":
            raise ConfigError(
                f"loss.terms: {mined[0]} needs sampler.kind=identity, several pictures of a person at once"
            )
        if mined and self.sampler.images_per_id < 2:
            raise ConfigError(
                f"sampler.images_per_id: {mined[0]} needs at least 2 pictures of a person, "
                f"got {self.sampler.images_per_id}; or take it out of loss.terms"
            )
        if self.network.kind == "pcb" and [name for name, _ in self.loss.parsed()] != ["cross_entropy"]:
            raise ConfigError(
                "loss.terms: network.kind=pcb has no vectors for metric losses; set loss.terms=CrossEntropy"
            )


MOST_WORKERS = 1_000
"""each is a process, and all are begun at once"""


def _must(name: str, value: float, holds: bool, be: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: must be {be}, got {value}")


def _must_count(name: str, value: int, least: int = 1) -> None:
    _must(name, value, value >= least, f"at least {least}")
    _must(name, value, value < 1 << 31, "below 2^31")


COLLAPSED_AFTER = 5


def build_network(config: NetworkConfig, num_ids: int, *, load_weights: bool = True) -> ReidNetwork:
    """The network of these settings. Its random part draws from the global generator.

    Raises:
        WeightsError: the trunk's weights cannot be had, or do not fit.
    """
    last_stride = config.last_stride if config.kind == "baseline" else 1
    trunk = make_trunk(config.trunk, last_stride=last_stride, width=config.width)
    if load_weights:
        load_trunk_weights(trunk, config.weights)
    match config.kind:
        case "baseline":
            return Baseline(trunk, num_ids, bottleneck=config.bottleneck, dropout=config.dropout)
        case "mgn":
            return MGN(
                trunk,
                num_ids,
                parse_granularities(config.granularities),
                head_features=config.head_features,
                pool=config.pool,
                neck=config.neck,
                classifier_bias=config.classifier_bias,
                first_stride=config.first_stride,
            )
        case "pcb":
            return PCB(
                trunk,
                num_ids,
                num_stripes=config.num_stripes,
                head_features=config.head_features,
                dropout=config.dropout,
            )


def train_reid(
    config: ReidTrainConfig,
    data: DatasetIndex,
    out: Path | str,
    runtime: Runtime,
    *,
    resume: bool = False,
    reset: bool = False,
    stop_at: int | None = None,
    weights: Path | str | None = None,
    drop: Sequence[str] = (),
    extra: Extra | None = None,
    source: Path | str | None = None,
) -> RunDir:
    """Train on a dataset's train_all split, evaluate on query and gallery; writes a run folder and returns it.

    The last checkpoints are kept under their iteration, the one of the highest mAP as "best". `stop_at` leaves, as if
    asked to stop, after that many iterations. `weights` is a published file or a checkpoint of ours to start from in
    place of the trunk's weights; all of it has to fit but what `drop` names (see `weights.load_weights`). `extra` mixes
    generated pictures into the batches. `source` is recorded as the place that `data` was opened from.

    With `resume` a run goes on from its last checkpoint, with the weights and generated pictures that it was begun
    with: they need not be named again, and others are refused. Settings that decide nothing of what is learned may be
    others, and there may be more epochs. With `reset` an earlier run in `out` is moved aside, once all else is read.

    Raises:
        DatasetError, ConfigError: the data cannot be trained on or evaluated, or not with these settings.
        OutputError, CheckpointError: `out` is not to be written, not to be resumed, or somebody trains there.
        WeightsError: the weights to start from cannot be had, or do not fit.
        ManifestError, ExtraDataError: the generated pictures or their teacher do not go with the data.
        DivergedError: a loss or a weight is not finite.
        Stopped: a signal or the time limit came; the state is saved.
    """
    found = RunDir.find(out, "reid", resume=resume, reset=reset)
    recorded: Mapping[str, Any] = found.made_by if found is not None else {}
    begins = found is None or not found.iterations()
    index = trainable(data)
    sampler = _make_sampler(config, index)
    if extra is None and recorded.get("extra"):
        extra = Extra.recorded(recorded["extra"])
    shown = index  # the rows that a batch may have
    if extra is not None:
        shown = extra.joined(index)
        sampler = extra.sampler(sampler, shown, config.seed)
    evaluation = Evaluation.of(data, config.eval_protocol)
    targets = None if extra is None else _soft_targets(config, index, extra, runtime)
    runtime.seed_everything(config.seed)
    # Before the folder is made: weights that cannot be had leave nothing behind.
    start = _start(weights, drop, recorded.get("weights"), begins=begins)
    network = build_network(config.network, index.num_ids, load_weights=begins and start is None)
    if begins and start is not None:
        load_weights(network, start["file"], start["dropped"])
    made_by = made_of(data, index, source, reid_models=reid_models.__version__)
    made_by |= {"extra": extra.made_by} if extra is not None else {}
    made_by |= {"weights": start} if start is not None else {}
    with RunDir.training(
        out, config, kind="reid", made_by=made_by, by="reid-models train", resume=resume, reset=reset
    ) as run:
        checkpoint = run.resume_from(expected=not begins) if resume else None
        runtime.prepare(network)
        trainer = _Trainer(config, network, sampler, runtime, shown, targets)
        if checkpoint is not None:
            trainer.restore(checkpoint, run)
        _tell_what_changes(run, config)
        dataset = PersonDataset(shown, config.image_hw, augmentation=config.augmentation, cache_mib=config.cache_mib)
        _train(trainer, run, dataset, evaluation, stop_at)
    return run


def trainable(data: DatasetIndex) -> DatasetIndex:
    """The pictures of a dataset that are trained on, as `reid-models check` judges them; says what is odd about them.

    Raises:
        DatasetError: there is something about the dataset that speaks against training on it.
    """
    findings = training_findings(data)
    for finding in findings:
        what = f"{finding.what} ({finding.examples[0]})" if finding.examples else finding.what
        if finding.severity == "error":
            raise DatasetError(f"{data.root}: {what}; {finding.remedy}; see reid-models check")
        if finding.severity == "warning":
            logger.warning("%s: %s; %s", data.root, what, finding.remedy)
    return data.split("train_all")


def made_of(data: DatasetIndex, index: DatasetIndex, source: Path | str | None, **versions: str) -> dict[str, Any]:
    """What a run on some data is made of, for its records; `index` is what is trained on."""
    return {
        **versions,
        "reid_eval": reid_eval.__version__,
        "torch": str(torch.__version__),
        "data": str(data.root.resolve()),
        **({} if source is None else {"source": str(Path(source).resolve())}),
        "layout": data.layout,
        "index_fingerprint": index.fingerprint,
        "num_ids": index.num_ids,
    }


def _start(
    weights: Path | str | None, drop: Sequence[str], recorded: Mapping[str, Any] | None, *, begins: bool
) -> dict[str, Any] | None:
    """The file to start from, for a run's records; of one that is begun already, what it was started from.

    Raises:
        CheckpointError: a run is to begin from another file than it was told at first.
    """
    start: dict[str, Any]
    if weights is not None:
        start = {"file": str(Path(weights).resolve()), "dropped": list(drop)}
    elif begins and recorded:
        start = dict(recorded)
    else:
        return dict(recorded) if recorded else None
    file, _ = split_entry(start["file"])
    if not file.is_file():  # whoever reads it will say so
        return start
    sha256 = file_fingerprint(file)
    if start.get("sha256", sha256) != sha256:
        raise CheckpointError(f"{start['file']}: is not what the training was to start from any more; restore it")
    return start | {"sha256": sha256}


def _tell_what_changes(run: RunDir, config: ReidTrainConfig) -> None:
    if config.schedule.kind == "cosine" and any(change.startswith("schedule.epochs:") for change in run.changes):
        logger.warning(
            "%s: a cosine depends on the number of epochs, so learning rates were others up to here than those of a "
            "training begun with %d",
            run.path, config.schedule.epochs,
        )  # fmt: skip


def _train(
    trainer: _Trainer, run: RunDir, dataset: PersonDataset, evaluation: Evaluation | None, stop_at: int | None
) -> None:
    """All steps that are left, with what is due between them."""
    config, runtime = trainer.config, trainer.runtime
    saver = Saver(
        run,
        lambda: trainer.checkpoint(run.made_by),
        lambda: trainer.iteration,
        minutes=config.checkpoint_minutes,
        keep=config.keep_checkpoints,
    )
    with runtime.watch_signals(), progress("re-ID", trainer.iterations, trainer.iteration) as bar:
        _finish_epoch(trainer, run, saver, evaluation)
        batches = trainer.sampler.batches(trainer.iteration * config.accumulate, trainer.iterations * config.accumulate)
        loader = make_loader(dataset, batches, num_workers=config.num_workers, pin_memory=runtime.device.type == "cuda")
        for parts in saver.watched(_in_groups(loader, config.accumulate)):
            if trainer.iteration == 0:
                run.sample(0, "batch", batch_sheet(parts[0], trainer.index, config.sampler.images_per_id))
            trainer.step(parts)
            is_last = trainer.iteration == trainer.iterations
            if trainer.iteration % config.log_every == 0 or is_last:
                run.log(trainer.iteration, trainer.take_means())
            reason = runtime.stop_reason()
            if stop_at is not None and trainer.iteration >= stop_at:
                reason = reason or f"asked to stop at iteration {stop_at}"
            if reason and not is_last:
                saver.leave(reason)
            _finish_epoch(trainer, run, saver, evaluation)
            saver.by_the_clock()
            bar.advance(1, trainer.note())


def _finish_epoch(trainer: _Trainer, run: RunDir, saver: Saver, evaluation: Evaluation | None) -> None:
    """Evaluate and save where it is due; each at most once per iteration, also when a resumed run begins here."""
    config, is_last = trainer.config, trainer.iteration == trainer.iterations
    epoch, within = divmod(trainer.iteration, trainer.iterations_per_epoch)
    if trainer.iteration == 0 or within:
        return
    evaluate = (is_last or epoch % config.eval_every == 0) and trainer.evaluated_at < trainer.iteration
    if evaluation is not None and evaluate:
        try:
            with saver.before_errors():  # such as a damaged picture in the gallery
                report = trainer.measure(evaluation, run.path.name)
        except Stopped as stopped:
            saver.leave(trainer.runtime.stop_reason() or str(stopped))
        trainer.record(report, run)
    is_due = is_last or epoch % config.checkpoint_every == 0
    if is_due and (not saver.is_saved() or (evaluation is not None and evaluate)):
        saver.save()


def _in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches that follow each other."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


class _Trainer:
    """The state of a training: networks, optimizers, counters; and one step of it."""

    def __init__(
        self,
        config: ReidTrainConfig,
        network: ReidNetwork,
        sampler: BatchSampler,
        runtime: Runtime,
        index: DatasetIndex,
        targets: SoftTargets | None = None,
    ) -> None:
        self.config, self.network, self.sampler, self.runtime = config, network.train(), sampler, runtime
        self.index, self.targets = index, targets
        self.forward = runtime.compiled(network) if config.compile else network
        self.loss = LossSum(
            config.loss.parsed(),
            num_ids=index.num_ids,
            metric_dims=_metric_dims(config.network),
            margin=config.loss.margin,
            label_smoothing=config.loss.label_smoothing,
        )
        self.loss.to(runtime.device)
        self.average = copy.deepcopy(network).requires_grad_(False) if config.ema_decay > 0 else None
        """moving average of the network"""
        self.optimizer = make_optimizer(network, config.optim)
        self.center_optimizer = self.loss.center_optimizer(config.loss.center_lr)
        self.scaler = runtime.grad_scaler()
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.iterations_per_epoch = max(1, sampler.iterations_per_epoch // config.accumulate)
        self.iterations = config.schedule.epochs * self.iterations_per_epoch
        self.iteration = 0
        self.evaluated_at = 0
        self.last_map: float | None = None
        """of the last evaluation, and the highest: re-ranked where that is asked for"""
        self.best_map: float | None = None
        self.best_at = 0
        """the iteration of the best evaluation"""
        self.window: dict[str, float] = {}
        """sums since the last line of the log"""
        self.window_steps = 0
        self.collapsed_for = 0
        """how many of the batches looked at, up to the last one, were collapsed"""
        self._last: dict[str, float] = {}
        self._images_per_s = 0.0
        self._since_s = time.monotonic()

    @property
    def lr(self) -> float:
        """The head's learning rate in the next step."""
        return self.config.optim.lr * self.config.schedule.lr_factor(self.iteration, self.iterations_per_epoch)

    def step(self, parts: Sequence[Batch]) -> None:
        """One step of the optimizer, with the mean of the gradients of some batches.

        Raises:
            DivergedError: a term is not finite; no weight has changed.
        """
        config, lr = self.config, self.lr
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * lr / config.optim.lr
        self.iteration += 1
        for optimizer in self._optimizers().values():
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in parts:
            values = self._add_gradients(part, lr, share=1 / len(parts))
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        for optimizer in self._optimizers().values():
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self._move_average(self.average)
        values = {name: value / len(parts) for name, value in sums.items()}
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.window_steps += 1
        self._last = values | {"lr": lr}
        now_s = time.monotonic()
        pace = sum(len(part.labels) for part in parts) / max(now_s - self._since_s, 1e-9)
        self._images_per_s = 0.9 * self._images_per_s + 0.1 * pace if self._images_per_s else pace
        self._since_s = now_s

    def _add_gradients(self, batch: Batch, lr: float, share: float) -> dict[str, float]:
        """Forward and backward of one batch; returns its unweighted terms."""
        images, labels, rows = self.runtime.to_device(batch)
        with self.runtime.autocast():
            output = self.forward(images)
            targets = None if self.targets is None else self.targets(images, labels, rows)
        total, terms = self.loss(output.logits, output.metric, labels, targets)
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        self._refuse_nonfinite(values, lr, batch)
        self.scaler.scale(share * total).backward()
        if self.iteration % self.config.log_every == 0:
            self._watch_spread((output.metric or (output.embeddings,))[0].detach(), labels)
        return values

    def _watch_spread(self, vectors: Tensor, labels: Tensor) -> None:
        spread = losses.spread_of_distances(vectors, labels, margin=self.config.loss.margin)
        self.collapsed_for = self.collapsed_for + 1 if spread.collapsed else 0
        if self.collapsed_for == COLLAPSED_AFTER:
            logger.warning(
                "collapsed: in the last %d batches looked at, vectors of strangers lie no farther apart than those "
                "of one person (%.3g against %.3g); lower optim.lr, lengthen schedule.warmup_epochs, or give "
                "CrossEntropy more weight in loss.terms",
                COLLAPSED_AFTER, spread.mean_negative, spread.mean_positive,
            )  # fmt: skip

    def _move_average(self, average: ReidNetwork) -> None:
        # The first steps are forgotten faster, or the random start would stay in the average for long.
        decay = min(self.config.ema_decay, self.iteration / (self.iteration + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(self.network.parameters()), 1 - decay)
            for mean, now in zip(average.buffers(), self.network.buffers(), strict=True):
                mean.copy_(now)

    def _networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds: "reid", and where there are any, its moving "average" and the centres, "loss"."""
        networks: dict[str, nn.Module] = {"reid": self.network}
        if self.average is not None:
            networks["average"] = self.average
        if self.center_optimizer is not None:
            networks["loss"] = self.loss
        return networks

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        own: dict[str, torch.optim.Optimizer] = {"reid": self.optimizer}
        return own if self.center_optimizer is None else own | {"centers": self.center_optimizer}

    def take_means(self) -> dict[str, float]:
        """The mean of each term since the last time, the learning rate, and the epochs done."""
        means = {name: value / self.window_steps for name, value in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means | {"lr": self._last["lr"], "epoch": self.iteration / self.iterations_per_epoch}

    def note(self) -> str:
        """How it goes, in a few words."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in self._last.items() if name != "lr")
        scores = ""
        if self.best_map is not None:
            last = self.best_map if self.last_map is None else self.last_map
            scores = f" mAP {last:.3f} (best {self.best_map:.3f})"
        return f"{terms} lr {self._last['lr']:.1e} {self._images_per_s:.0f} images/s{scores}"

    def measure(self, evaluation: Evaluation, name: str) -> RankReport:
        """Rank query against gallery with the network as it is, or with its moving average if there is one.

        Raises:
            Stopped: something asked for it. The state is as before, so the evaluation starts over in a resumed run.
        """
        embedder = NetworkEmbedder(
            self.average or self.network,
            name=f"reid:{name}@{self.iteration}",
            image_hw=self.config.image_hw,
            runtime=self.runtime,
        )
        report = evaluation.measure(embedder, rerank=self.config.eval_rerank, num_workers=self.config.num_workers)
        self._since_s = time.monotonic()
        return report

    def record(self, report: RankReport, run: RunDir) -> None:
        """Log an evaluation of the present network, and keep the network if it is the best so far."""
        scores = scores_of(report)
        run.log(self.iteration, scores)
        self.evaluated_at = self.iteration
        self.last_map = scores.get("eval_map_hits_rerank", scores["eval_map_hits"])
        if self.best_map is None or self.last_map > self.best_map:
            self.best_map, self.best_at = self.last_map, self.iteration
            run.save(self.checkpoint(run.made_by), best=True)
        epoch, best = (f"epoch {at / self.iterations_per_epoch:g}" for at in (self.iteration, self.best_at))
        where = "" if self.best_at == 0 else f", {best}"  # earlier versions did not note it
        of_best = "best re-ranked" if self.config.eval_rerank else "best"
        say(f"{epoch}: {told(scores)}; {of_best} {self.best_map:.4f}{where}")

    def checkpoint(self, made_by: Mapping[str, Any]) -> Checkpoint:
        """Everything that the next step depends on.

        Raises:
            DivergedError: a weight is not finite; a checkpoint of it would be of no use.
        """
        return Checkpoint(
            kind="reid",
            iteration=self.iteration,
            config=config_dict(self.config),
            networks=finite_states(self._networks(), self.iteration, _CALMER),
            optimizers={name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            rng=self.runtime.rng_state(),
            progress={
                "evaluated_at": self.evaluated_at,
                "last_map": self.last_map,
                "best_map": self.best_map,
                "best_at": self.best_at,
                "window": dict(self.window),
                "window_steps": self.window_steps,
                "collapsed_for": self.collapsed_for,
                "scaler": self.scaler.state_dict(),
            },
            made_by=dict(made_by),
        )

    def restore(self, checkpoint: Checkpoint, run: RunDir) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it lacks something, or something does not fit.
        """
        source = run.checkpoint_file(checkpoint.iteration)
        progress = checkpoint.progress
        for name, network in self._networks().items():
            load_state(network, checkpoint.network(name, source=source), source)
        with reading(source, CheckpointError, "a checkpoint to go on from", remedy="go on from an earlier one"):
            for name, optimizer in self._optimizers().items():
                load_optimizer_state(optimizer, checkpoint.optimizers[name], source=f"{source}: optimizer {name}")
            self.scaler.load_state_dict(progress["scaler"])
            self.runtime.set_rng_state(checkpoint.rng)
            self.iteration = checkpoint.iteration
            self.evaluated_at = int(progress["evaluated_at"])
            self.best_map = None if progress["best_map"] is None else float(progress["best_map"])
            self.last_map = None if progress.get("last_map") is None else float(progress["last_map"])
            self.best_at = int(progress.get("best_at", 0))
            self.window = {name: float(value) for name, value in progress["window"].items()}
            self.window_steps = int(progress["window_steps"])
            self.collapsed_for = int(progress["collapsed_for"])

    def _refuse_nonfinite(self, values: Mapping[str, float], lr: float, batch: Batch) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                files = ", ".join(self.index[row].path.name for row in batch.rows[:3].tolist())
                raise DivergedError(
                    f"loss {name} is {value} at iteration {self.iteration}, learning rate {lr:.3g} "
                    f"(batch with {files}, ...); {_CALMER}"
                )


_CALMER = "lower optim.lr or lengthen schedule.warmup_epochs in a new run; what was saved before is intact"


def make_optimizer(network: ReidNetwork, config: OptimConfig) -> torch.optim.Optimizer:
    """One group for the trunk and the branches copied from it, one for what stands on them."""
    modules = [network.shared, network.branches] if isinstance(network, MGN) else [network.trunk]
    trunk = [parameter for module in modules for parameter in module.parameters()]
    in_trunk = {id(parameter) for parameter in trunk}
    head = [parameter for parameter in network.parameters() if id(parameter) not in in_trunk]
    groups = [{"params": trunk, "lr": config.lr * config.trunk_lr_factor}, {"params": head, "lr": config.lr}]
    betas, decay, eps = (config.beta1, config.beta2), config.weight_decay, config.eps
    optimizer: torch.optim.Optimizer
    match config.kind:
        case "adam":
            optimizer = torch.optim.Adam(
                groups, betas=betas, eps=eps, weight_decay=decay, amsgrad=config.amsgrad, fused=True
            )
        case "adamw":
            optimizer = torch.optim.AdamW(
                groups, betas=betas, eps=eps, weight_decay=decay, amsgrad=config.amsgrad, fused=True
            )
        case "nadam":
            optimizer = torch.optim.NAdam(groups, betas=betas, eps=eps, weight_decay=decay)
        case "rmsprop":
            optimizer = torch.optim.RMSprop(groups, eps=eps, weight_decay=decay, momentum=config.momentum)
        case "sgd":
            optimizer = torch.optim.SGD(
                groups, momentum=config.momentum, dampening=config.dampening, weight_decay=decay,
                nesterov=config.nesterov, fused=config.dampening == 0,
            )  # fmt: skip
    return guarded(optimizer)


def _metric_dims(config: NetworkConfig) -> tuple[int, ...]:
    """The lengths of the network's metric vectors."""
    match config.kind:
        case "baseline":
            return (config.bottleneck,)
        case "mgn":
            return (config.head_features,) * len(parse_granularities(config.granularities))
        case "pcb":
            return ()


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
        draw.text((left + 1, top + height * scale), f"{index.name_of(record.pid)[:12]} c{record.camid}", fill="black")
    return np.asarray(sheet)


def _make_sampler(config: ReidTrainConfig, index: DatasetIndex) -> BatchSampler:
    sampler = config.sampler
    if sampler.kind == "identity":
        made = IdentitySampler(
            index.label_array, sampler.ids_per_batch, sampler.images_per_id, config.seed, epoch=sampler.epoch
        )
        if few := sum(len(rows) < sampler.images_per_id for rows in made.rows_of):
            logger.warning(
                "%d of %d identities have fewer pictures than sampler.images_per_id=%d; batches show some twice",
                few, len(made.rows_of), sampler.images_per_id,
            )  # fmt: skip
        return made
    return ShuffledSampler(len(index), sampler.batch_size, config.seed)


def _soft_targets(
    config: ReidTrainConfig, photographs: DatasetIndex, extra: Extra, runtime: Runtime
) -> SoftTargets | None:
    """What is to be said of mixed batches; None where labels are enough."""
    if extra.labels == "hard":
        return None
    teacher = None
    if extra.teacher is not None:
        teacher = _load_teacher(extra.teacher, photographs, config.image_hw)
        runtime.prepare(teacher)
    return SoftTargets(
        num_ids=photographs.num_ids,
        num_photographs=len(photographs),
        label_smoothing=config.loss.label_smoothing,
        smoothing=extra.smoothing,
        teacher=teacher,
    )


def _load_teacher(run: Path, photographs: DatasetIndex, image_hw: tuple[int, int]) -> ReidNetwork:
    """A run's last network, in evaluation mode."""
    checkpoint = RunDir.open(run, "reid").load("last")
    fingerprint = checkpoint.made_by.get("index_fingerprint")
    if fingerprint != photographs.fingerprint or checkpoint.num_ids(run) != photographs.num_ids:
        raise ExtraDataError(
            f"{run}: this teacher was trained on other pictures (fingerprint {fingerprint}, here "
            f"{photographs.fingerprint}); train it on the same data, without --extra-data"
        )
    config = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(run))
    if config.image_hw != image_hw:
        raise ConfigError(
            f"image_hw: {list(image_hw)}, but the teacher {run} knows pictures of {list(config.image_hw)}; "
            f"set image_hw=[{config.image_hw[0]},{config.image_hw[1]}]"
        )
    network = build_network(config.network, photographs.num_ids, load_weights=False)
    load_state(network, checkpoint.network("average", "reid", source=run), run)
    return network.eval().requires_grad_(False)
