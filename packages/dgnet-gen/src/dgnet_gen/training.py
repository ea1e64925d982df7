"""Train DG-Net, and leave at any moment without losing anything.

    config = load_config(DGNetTrainConfig, Path("configs/dgnet_market.yaml"))
    data, runtime = DatasetIndex.open("data/market"), Runtime.from_environment()
    run = train_dgnet(config, data, Path("runs/dgnet"), runtime, teachers=["runs/teacher"])

One step is `dgnet_gen.step`. Batches and draws are functions of the seed and the iteration, everything else lies in the
checkpoint: a resumed run equals one that never stopped.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgnet_gen
import reid_models
from dgnet_gen import losses
from dgnet_gen.exchange import PublishedFolder
from dgnet_gen.model import Codes, DGNet
from dgnet_gen.pairs import PairBatch, PairDataset, pair_batches
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.step import Step, make_optimizers
from dgnet_gen.teacher import Teacher, TeacherError
from reid_eval.errors import OutputError
from reid_eval.files import read_pixels
from reid_eval.progress import progress, say
from reid_eval.reading import reading
from reid_models.checkpoints import Checkpoint, CheckpointError, finite_states
from reid_models.config import ConfigError, config_dict, settings_difference
from reid_models.data.index import DatasetIndex
from reid_models.data.transforms import eval_transform
from reid_models.optimizers import load_optimizer_state
from reid_models.runs import RunDir
from reid_models.runtime import Runtime
from reid_models.saving import Saver
from reid_models.training import made_of, trainable
from reid_models.weights import load_trunk_weights

logger = logging.getLogger(__name__)

SHEET_PEOPLE = 6
KNOWN_PICTURES = 64
JUDGED_PEOPLE = 64


def train_dgnet(
    config: DGNetTrainConfig,
    data: DatasetIndex,
    out: Path | str,
    runtime: Runtime,
    *,
    teachers: Sequence[Path | str] = (),
    begin_with: PublishedFolder | None = None,
    resume: bool = False,
    reset: bool = False,
    stop_at: int | None = None,
    source: Path | str | None = None,
) -> RunDir:
    """Train on a dataset's train_all split; writes a run folder and returns it.

    `teachers` are runs or files whose soft labels the appearance encoder learns from. `begin_with` is a published
    training whose newest weights, optimizer states and iteration this one goes on from. Checkpoints are kept as
    `keep_checkpoints` and `keep_every` say, and the one that repaints people best as "best". `stop_at` leaves, as if
    asked to stop, after that many iterations. `source` is recorded as the place that `data` was opened from.

    With `resume` a run goes on from its last checkpoint, with the teachers and the beginning that it had: they need not
    be named again, and others are refused. Settings that decide nothing of what is learned may be others, and
    `max_iter` may be larger. With `reset` an earlier run in `out` is moved aside, once all the rest is read.

    Raises:
        DatasetError: the data cannot be trained on.
        TeacherError: a teacher is missing, not asked for, or of other people.
        ConfigError, CheckpointError, WeightsError: `begin_with` is of other networks or people, finished, or damaged.
        OutputError, CheckpointError: `out` is not to be written, not to be resumed, or somebody trains there; or the
            disk is too small.
        DivergedError: a loss is not finite any more.
        Stopped: a signal or the time limit came; the state is saved.
    """
    found = RunDir.find(out, "dgnet", resume=resume, reset=reset)
    recorded: Mapping[str, Any] = found.made_by if found is not None else {}
    begins = found is None or not found.iterations()
    index = trainable(data)
    pairs = make_pairs(config, index)
    teacher = load_teacher(config, teachers or _recorded_teachers(recorded), index, runtime)
    made_by = made_of(data, index, source, dgnet_gen=dgnet_gen.__version__, reid_models=reid_models.__version__)
    if teacher is not None:
        made_by["teachers"] = teacher.made_by
        _tell_what_teachers_know(teacher, pairs, runtime)
    if begin_with is None and begins and recorded.get("begun_with"):
        begin_with = PublishedFolder.open(recorded["begun_with"]["folder"])
    if begin_with is not None:
        refuse_other_beginning(begin_with, config, index)
        made_by["begun_with"] = {"folder": str(begin_with.path.resolve()), "iteration": begin_with.iterations()[-1]}
    elif recorded.get("begun_with"):
        made_by["begun_with"] = recorded["begun_with"]
    runtime.seed_everything(config.seed)
    model = DGNet(config.networks, index.num_ids)
    refuse_full_disk(config, model, Path(out), None if found is None else found.iterations())
    # Before the folder is made: weights that cannot be had leave nothing behind.
    beginning = _beginning(config, model, begin_with) if begins else None
    with RunDir.training(
        out, config, kind="dgnet", made_by=made_by, by="dgnet-gen train", resume=resume, reset=reset
    ) as run:
        checkpoint = run.resume_from(expected=not begins) if resume else None
        for network in model.networks().values():
            runtime.prepare(network).train()
        trainer = _Trainer(config, model, runtime, teacher, index)
        if checkpoint is not None:
            trainer.restore(checkpoint, str(run.checkpoint_file(checkpoint.iteration)))
        elif beginning is not None:
            trainer.begin_with(*beginning)
        _train(trainer, run, pairs, choose_pictures(data, JUDGED_PEOPLE, config.seed), stop_at)
    return run


def _recorded_teachers(made_by: Mapping[str, Any]) -> list[str]:
    return [teacher["file"] for teacher in made_by.get("teachers") or ()]


def _beginning(
    config: DGNetTrainConfig, model: DGNet, begin_with: PublishedFolder | None
) -> tuple[DGNet, dict[str, Any]] | None:
    """A published training's networks and optimizer states; without one the model's trunk is filled."""
    if begin_with is None:
        load_trunk_weights(model.appearance_encoder.trunk, config.trunk_weights, setting="trunk_weights")
        return None
    published = begin_with.load(device="cpu")
    return published, begin_with.optimizer_states(published, make_optimizers(published, config.optim))


def _train(
    trainer: _Trainer,
    run: RunDir,
    pairs: PairDataset,
    judged: Sequence[tuple[Path, Path]],
    stop_at: int | None,
) -> None:
    """All steps that are left, with what is due between them."""
    config, runtime, start = trainer.config, trainer.runtime, trainer.iteration
    saver = Saver(
        run,
        lambda: trainer.checkpoint(run.made_by),
        lambda: trainer.iteration,
        minutes=config.checkpoint_minutes,
        keep=config.keep_checkpoints,
        every=config.keep_every,
    )
    cast = torch.stack([eval_transform(pairs.store.read(row), pairs.image_hw) for row in pairs.cast(SHEET_PEOPLE)])
    batches = pair_batches(
        pairs, start * config.accumulate, config.max_iter * config.accumulate, num_workers=config.num_workers
    )
    with runtime.watch_signals(), progress("DG-Net", config.max_iter, start) as bar:
        if trainer.recorded_at < start and (start % config.checkpoint_every == 0 or start == config.max_iter):
            _record(trainer, run, saver, judged)  # what an error has prevented
        started_s = time.monotonic()
        for parts in saver.watched(in_groups(batches, config.accumulate)):
            values = trainer.step(trainer.iteration, [runtime.to_device(part) for part in parts])
            trainer.iteration = iteration = trainer.iteration + 1
            is_last = iteration == config.max_iter
            if iteration % config.log_every == 0 or is_last:
                run.log(iteration, values | trainer.step.settings_at(iteration - 1))
            if iteration % config.sample_every == 0 or is_last:
                run.sample(iteration, "swap", _sheet(trainer.step.average, cast))
            if iteration % config.checkpoint_every == 0 or is_last:
                _record(trainer, run, saver, judged)
            reason = runtime.stop_reason()
            if stop_at is not None and iteration >= stop_at:
                reason = reason or f"asked to stop at iteration {stop_at}"
            if reason and not is_last:
                saver.leave(reason)
            saver.by_the_clock()
            pace = (iteration - start) / max(time.monotonic() - started_s, 1e-9)
            bar.advance(1, _note(values, pace))


def _record(trainer: _Trainer, run: RunDir, saver: Saver, judged: Sequence[tuple[Path, Path]]) -> None:
    """Judge the networks, and save them as a checkpoint that is due."""
    with saver.before_errors():  # such as a damaged picture among those judged
        score = repainting_error(trainer.step.average, judged)
    trainer.record(score, run)
    saver.save()


def refuse_other_beginning(folder: PublishedFolder, config: DGNetTrainConfig, index: DatasetIndex) -> None:
    """Refuse to go on from a published training that does not belong to these settings and pictures.

    Raises:
        CheckpointError, ConfigError: it is of other people or other networks, or finished.
    """
    published = folder.config
    if published.num_ids != index.num_ids:
        raise CheckpointError(
            f"{folder.path}: is of {published.num_ids} people, the training pictures in {index.root} show "
            f"{index.num_ids}; go on with the data it was trained on"
        )
    if changes := settings_difference(config_dict(published.networks), config_dict(config.networks)):
        raise ConfigError(
            f"{folder.path}: has other networks ({'; '.join(changes)}); leave --config out to take its own settings"
        )
    if (done := folder.iterations()[-1]) >= config.max_iter:
        raise ConfigError(f"{folder.path}: has done {done} of max_iter {config.max_iter}; set max_iter higher to go on")


def make_pairs(config: DGNetTrainConfig, index: DatasetIndex) -> PairDataset:
    """The batches of a training.

    Raises:
        DatasetError: fewer pictures than a batch holds, or a single identity.
    """
    return PairDataset(
        index,
        config.networks.image_hw,
        batch_size=config.batch_size,
        seed=config.seed,
        flip=config.flip,
        pad_px=config.pad_px,
        cache_bytes=config.cache_mib << 20,
    )


def load_teacher(
    config: DGNetTrainConfig, teachers: Sequence[Path | str], index: DatasetIndex, runtime: Runtime
) -> Teacher | None:
    """The teachers that the settings ask for; None when they ask for none.

    Raises:
        TeacherError: asked for and not given, or given and not asked for; or of other people.
    """
    asked = config.weights.teacher
    if asked > 0 and not teachers:
        raise TeacherError(
            f"weights.teacher is {asked:g}, and no teacher was given; give --teacher RUN (made by reid-models train), "
            "or train without one: --set weights.teacher=0"
        )
    if teachers and asked == 0:
        raise TeacherError(
            f"--teacher {teachers[0]}: weights.teacher is 0, so nobody would ask it; leave the teacher out, "
            "or set weights.teacher above 0 (published: 2)"
        )
    if not teachers:
        return None
    return Teacher.load(
        teachers,
        index,
        runtime,
        train_bn=config.train_bn,
        dropout=config.teacher.dropout,
        style=config.teacher.style,
        decay=config.teacher.decay,
    )


def _tell_what_teachers_know(teacher: Teacher, pairs: PairDataset, runtime: Runtime) -> None:
    """Warn of a teacher that does not know the photographs: perhaps it numbers the same people in another order."""
    batches = [pairs.batch(iteration) for iteration in range(max(1, KNOWN_PICTURES // pairs.batch_size))]
    seen = [
        teacher.recognised(runtime.to_device(batch.anchors_a), runtime.to_device(batch.labels_a)) for batch in batches
    ]
    for made_by, share in zip(teacher.made_by, np.mean(seen, axis=0), strict=True):
        logger.info("%s: recognises %.0f %% of the training pictures looked at", made_by["file"], 100 * share)
        if share < 0.5:
            logger.warning(
                "%s: this teacher recognises only %.0f %% of the training pictures; is it trained, and on the same "
                "people in the same order?",
                made_by["file"], 100 * share,
            )  # fmt: skip


class _Trainer:
    """The state of a training, in and out of checkpoints."""

    def __init__(
        self, config: DGNetTrainConfig, model: DGNet, runtime: Runtime, teacher: Teacher | None, index: DatasetIndex
    ) -> None:
        self.config, self.model, self.runtime = config, model, runtime
        self.optimizers = make_optimizers(model, config.optim)
        self.step = Step(model, self.optimizers, config, runtime, teacher, file_of=lambda row: index[row].path.name)
        self.iteration = 0
        self.recorded_at = 0
        """the iteration that was last judged"""
        self.best: float | None = None
        self.best_at = 0
        """the iteration that repaints people best"""

    def record(self, score: float, run: RunDir) -> None:
        """Log how well people are repainted, and keep the networks if never better."""
        run.log(self.iteration, {"eval_recon_same_id": score})
        self.recorded_at = self.iteration
        if self.best is None or score < self.best:
            self.best, self.best_at = score, self.iteration
            run.save(self.checkpoint(run.made_by), best=True)
        where = "" if self.best_at == 0 else f", iteration {self.best_at}"  # earlier versions did not note it
        say(f"iteration {self.iteration}: repainting error {score:.4f}; best {self.best:.4f}{where}")

    def checkpoint(self, made_by: Mapping[str, Any]) -> Checkpoint:
        """Everything that the next step depends on.

        Raises:
            DivergedError: a weight is not finite; a checkpoint of it would be of no use.
        """
        calmer = "what was saved before is intact; lower the learning rate or resume from an earlier checkpoint"
        return Checkpoint(
            kind="dgnet",
            iteration=self.iteration,
            config=config_dict(self.config),
            networks=finite_states(self._networks(), self.iteration, calmer),
            optimizers={name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            rng=self.runtime.rng_state(),
            progress={
                "best": self.best,
                "best_at": self.best_at,
                "recorded_at": self.recorded_at,
                "scaler": self.step.scaler.state_dict(),
                "skipped": self.step.skipped,
            },
            made_by=dict(made_by),
        )

    def begin_with(self, published: DGNet, optimizer_states: Mapping[str, Any]) -> None:
        """Go on from another program's training."""
        states = {name: network.state_dict() for name, network in published.networks().items()}
        for model in (self.model, self.step.average):
            model.load_networks(states, source="published folder")
        for name, optimizer in self.optimizers.items():
            # A head that the published training had no teacher for may begin to learn now.
            load_optimizer_state(
                optimizer, optimizer_states[name], source=f"published folder, optimizer {name}", may_begin=True
            )
        self.iteration = self.recorded_at = published.iteration

    def restore(self, checkpoint: Checkpoint, source: str) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: its networks are not those of these settings, or it lacks what this version goes on from.
        """
        if "scaler" not in checkpoint.progress:
            raise CheckpointError(
                f"{source}: iteration {checkpoint.iteration} was saved by an earlier version, whose trainings this one "
                "cannot go on with; generate from it, or train anew with another --out"
            )
        own = checkpoint.networks
        trained = own | {name: own[f"trained_{name}"] for name in ("structure", "decoder") if f"trained_{name}" in own}
        self.model.load_networks(trained, source=source)
        if self.config.ema_decay > 0:
            self.step.average.load_networks(own, source=source)
        progress = checkpoint.progress
        with reading(source, CheckpointError, "a checkpoint to go on from", remedy="go on from an earlier one"):
            for name, optimizer in self.optimizers.items():
                load_optimizer_state(optimizer, checkpoint.optimizers[name], source=f"{source}: optimizer {name}")
            self.runtime.set_rng_state(checkpoint.rng)
            self.step.scaler.load_state_dict(progress["scaler"])
            self.step.skipped = int(progress["skipped"])
            self.best = None if progress["best"] is None else float(progress["best"])
            self.best_at = int(progress.get("best_at", 0))
            # Earlier versions judged an iteration whenever they saved it where it was due.
            self.recorded_at = int(progress.get("recorded_at", checkpoint.iteration))
            self.iteration = checkpoint.iteration

    def _networks(self) -> dict[str, nn.Module]:
        """The four to use; with a moving average also what it follows, trained_structure and trained_decoder."""
        networks = self.step.average.networks()
        if self.config.ema_decay > 0:
            now = self.model.networks()
            networks |= {f"trained_{name}": now[name] for name in ("structure", "decoder")}
        return networks


def choose_pictures(data: DatasetIndex, count: int, seed: int) -> list[tuple[Path, Path]]:
    """Pictures of up to `count` people, each with another picture of the person (the same one when there is no other).

    Of people who were not trained on where the dataset has query and gallery; the same ones every time.
    """
    unseen = {"query", "gallery"} & set(data.splits)
    of_person: dict[int, list[Path]] = {}
    for record in data:
        # 0 is a distractor and -1 junk there: many people under one number.
        if record.split in (unseen or {"train", "val"}) and (record.pid > 0 or not unseen):
            of_person.setdefault(record.pid, []).append(record.path)
    rng = np.random.default_rng([seed, 6])
    chosen = []
    for pid in rng.permutation(sorted(of_person))[:count]:
        own = of_person[int(pid)]
        first, second = rng.permutation(len(own))[:2] if len(own) > 1 else (0, 0)
        chosen.append((own[first], own[second]))
    return chosen


def repainting_error(model: DGNet, pictures: Sequence[tuple[Path, Path]], *, batch_size: int = 16) -> float:
    """How far people are from themselves when painted in what they wear on another picture; in evaluation mode.

    The mean absolute difference, in network input, of each first picture to its structure in the second's appearance.

    Raises:
        ImageError: a file is missing or damaged.
    """
    differences = []
    with _evaluating(model):
        for start in range(0, len(pictures), batch_size):
            first, second = (
                torch.stack([eval_transform(read_pixels(path), model.image_hw) for path in paths])
                for paths in zip(*pictures[start : start + batch_size], strict=True)
            )
            painted = model.decode(Codes(model.appearance(second), model.structure(first))).cpu()
            differences += [losses.reconstruction(made, real).item() for made, real in zip(painted, first, strict=True)]
    return float(np.mean(differences))


def refuse_full_disk(config: DGNetTrainConfig, model: DGNet, out: Path, present: Sequence[int] | None = None) -> None:
    """Refuse a training whose checkpoints the disk cannot hold, before anything is written.

    `present` are the iterations whose checkpoints are there already.

    Raises:
        OutputError: what they need and what there is.
    """
    size = checkpoint_bytes(config, model)
    needed = size * max(1, num_checkpoints(config) - len(present or ()))
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{out}: the checkpoints of this training need {needed / 2**30:.1f} GiB ({num_checkpoints(config)} of "
            f"{size / 2**20:.0f} MiB), {free / 2**30:.1f} GiB are free; free some space, or keep fewer with "
            "--set keep_every=0"
        )


def checkpoint_bytes(config: DGNetTrainConfig, model: DGNet) -> int:
    """The size of one checkpoint: networks, their optimizers' states and, if kept, the moving average."""
    weights = {
        name: sum(value.nbytes for value in network.state_dict().values()) for name, network in model.networks().items()
    }
    generator = weights["structure"] + weights["decoder"]
    total = sum(weights.values()) + 2 * (generator + weights["discriminator"])  # Adam's two moments
    if config.optim.momentum > 0:
        total += weights["appearance"]
    if config.ema_decay > 0:
        total += generator
    return total


def num_checkpoints(config: DGNetTrainConfig) -> int:
    """How many files lie in checkpoints/ at the fullest.

    The last, those for good, the best, one of the clock or of a stop, and one being written.
    """
    saved = {*range(config.checkpoint_every, config.max_iter, config.checkpoint_every), config.max_iter}
    last = set(sorted(saved)[-config.keep_checkpoints :])
    for_good = {iteration for iteration in saved if config.keep_every and iteration % config.keep_every == 0}
    return len(last | for_good) + 3


def in_groups(batches: Iterable[PairBatch], size: int) -> Iterator[list[PairBatch]]:
    """Lists of `size` batches that follow each other."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _note(values: Mapping[str, float], pace: float) -> str:
    shown = ("recon_self", "recon_same_id", "adversarial", "recon_identity", "identity", "primary")
    return " ".join(f"{name} {values[name]:.3f}" for name in shown if name in values) + f" {pace:.1f} it/s"


@contextmanager
def _evaluating(model: DGNet) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        for network in model.networks().values():
            network.train()


def _sheet(model: DGNet, images: Tensor) -> np.ndarray:
    """Everybody in everybody's pose: structures down the left, appearances across the top."""
    from dgnet_gen.visualise import grid_of

    with _evaluating(model):
        codes = model.encode(images)
        return grid_of(model, images, images, codes.structure, codes.appearance)
