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
import reid_eval
import reid_models
from dgnet_gen import losses
from dgnet_gen.exchange import PublishedFolder
from dgnet_gen.model import Codes, DGNet
from dgnet_gen.pairs import PairBatch, PairDataset, pair_batches
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.step import DivergedError, Step, make_optimizers
from dgnet_gen.teacher import Teacher, TeacherError
from reid_eval.errors import OutputError, Stopped
from reid_eval.files import read_pixels
from reid_eval.progress import progress
from reid_models.config import ConfigError, config_dict, settings_difference
from reid_models.data.index import DatasetIndex
from reid_models.data.transforms import eval_transform
from reid_models.runs import Checkpoint, CheckpointError, RunDir
from reid_models.runtime import Runtime
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
    stop_at: int | None = None,
) -> RunDir:
    """Train on a dataset's train_all split; writes a run folder and returns it.

    `teachers` are runs or files whose soft labels the appearance encoder learns from. `begin_with` is a published
    training whose newest weights, optimizer states and iteration this one goes on from. To resume, name both again.
    Checkpoints are kept as `keep_checkpoints` and `keep_every` say, and the one that repaints people best as "best".
    `stop_at` leaves, as if asked to stop, after that many iterations.

    Raises:
        DatasetError: the data cannot be trained on.
        TeacherError: a teacher is missing, not asked for, or of other people.
        ConfigError, CheckpointError, WeightsError: `begin_with` is of other networks or people, finished, or damaged.
        OutputError, CheckpointError: `out` is not to be written, or not to be resumed, or the disk is too small.
        DivergedError: a loss is not finite any more.
        Stopped: a signal or the time limit came; the state is saved.
    """
    index = data.split("train_all")
    pairs = make_pairs(config, index)
    teacher = load_teacher(config, teachers, index, runtime)
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
    if teacher is not None:
        made_by["teachers"] = teacher.made_by
        _tell_what_teachers_know(teacher, pairs, runtime)
    if begin_with is not None:
        refuse_other_beginning(begin_with, config, index)
        made_by["begun_with"] = {"folder": str(begin_with.path.resolve()), "iteration": begin_with.iterations()[-1]}
    runtime.seed_everything(config.seed)
    model = DGNet(config.networks, index.num_ids)
    refuse_full_disk(config, model, Path(out))
    # Before the folder is made: weights that cannot be had leave nothing behind.
    published = None
    if not (resume and RunDir(Path(out), "dgnet", made_by).iterations()):
        if begin_with is None:
            load_trunk_weights(model.appearance_encoder.trunk, config.trunk_weights)
        else:
            published = begin_with.load(device="cpu")
            states = begin_with.optimizer_states(published, make_optimizers(published, config.optim))
    run = RunDir.create(out, config, kind="dgnet", made_by=made_by, resume=resume)
    checkpoint = run.resume_from() if resume else None
    for network in model.networks().values():
        runtime.prepare(network).train()
    trainer = _Trainer(config, model, runtime, teacher, index)
    if checkpoint is not None:
        trainer.restore(checkpoint, str(run.path))
    elif published is not None:
        trainer.begin_with(published, states)
    cast = torch.stack([eval_transform(pairs.store.read(row), pairs.image_hw) for row in pairs.cast(SHEET_PEOPLE)])
    judged = choose_pictures(data, JUDGED_PEOPLE, config.seed)

    def save() -> None:
        run.save(trainer.checkpoint(made_by))
        run.keep_last(config.keep_checkpoints, every=config.keep_every)

    start = trainer.iteration
    batches = pair_batches(
        pairs, start * config.accumulate, config.max_iter * config.accumulate, num_workers=config.num_workers
    )
    try:
        with runtime.watch_signals(), progress("DG-Net", config.max_iter, start) as bar:
            started_s = time.monotonic()
            for parts in in_groups(batches, config.accumulate):
                values = trainer.step(trainer.iteration, [runtime.to_device(part) for part in parts])
                trainer.iteration = iteration = trainer.iteration + 1
                pace = (iteration - start) / max(time.monotonic() - started_s, 1e-9)
                bar.advance(1, _note(values, pace))
                is_last = iteration == config.max_iter
                if iteration % config.log_every == 0 or is_last:
                    run.log(iteration, values | trainer.step.settings_at(iteration - 1))
                if iteration % config.sample_every == 0 or is_last:
                    run.sample(iteration, "swap", _sheet(trainer.step.average, cast))
                reason = runtime.stop_reason()
                if stop_at is not None and iteration >= stop_at:
                    reason = reason or f"asked to stop at iteration {stop_at}"
                if iteration % config.checkpoint_every == 0 or is_last:
                    trainer.record(repainting_error(trainer.step.average, judged), run, made_by)
                    save()
                elif reason:
                    save()
                if reason and not is_last:
                    raise Stopped(
                        f"{reason}: saved iteration {iteration} in {run.path}; "
                        "run it again to go on (train: with --resume)"
                    )
    finally:
        run.close()
    return run


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
        self.best: float | None = None

    def record(self, score: float, run: RunDir, made_by: Mapping[str, Any]) -> None:
        """Log how well people are repainted, and keep the networks if never better."""
        run.log(self.iteration, {"eval_recon_same_id": score})
        if self.best is None or score < self.best:
            self.best = score
            run.save(self.checkpoint(made_by), best=True)

    def checkpoint(self, made_by: Mapping[str, Any]) -> Checkpoint:
        """Everything that the next step depends on.

        Raises:
            DivergedError: a weight is not finite; a checkpoint of it would be of no use.
        """
        for network in self._networks().values():
            for name, value in network.state_dict().items():
                if not value.isfinite().all():
                    raise DivergedError(
                        f"{name} is not finite after iteration {self.iteration}, so it is not saved; what was saved "
                        "before is intact; lower the learning rate or resume from an earlier checkpoint"
                    )
        return Checkpoint(
            kind="dgnet",
            iteration=self.iteration,
            config=config_dict(self.config),
            networks={name: _on_cpu(network.state_dict()) for name, network in self._networks().items()},
            optimizers={name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            rng=self.runtime.rng_state(),
            progress={"best": self.best, "scaler": self.step.scaler.state_dict(), "skipped": self.step.skipped},
            made_by=dict(made_by),
        )

    def begin_with(self, published: DGNet, optimizer_states: Mapping[str, Any]) -> None:
        """Go on from another program's training."""
        states = {name: network.state_dict() for name, network in published.networks().items()}
        for model in (self.model, self.step.average):
            model.load_networks(states, source="published folder")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizer_states[name])
        self.iteration = published.iteration

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
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(checkpoint.optimizers[name])
        self.runtime.set_rng_state(checkpoint.rng)
        self.step.scaler.load_state_dict(checkpoint.progress["scaler"])
        self.step.skipped = checkpoint.progress["skipped"]
        self.best = checkpoint.progress["best"]
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


def refuse_full_disk(config: DGNetTrainConfig, model: DGNet, out: Path) -> None:
    """Refuse a training whose checkpoints the disk cannot hold, before anything is written.

    Raises:
        OutputError: what they need and what there is.
    """
    size = checkpoint_bytes(config, model)
    present = len(list((out / "checkpoints").glob("*.pt")))
    needed = size * max(1, num_checkpoints(config) - present)
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
    """How many files lie in checkpoints/ at the fullest: the last, those for good, the best, and one being written."""
    saved = {*range(config.checkpoint_every, config.max_iter, config.checkpoint_every), config.max_iter}
    last = set(sorted(saved)[-config.keep_checkpoints :])
    for_good = {iteration for iteration in saved if config.keep_every and iteration % config.keep_every == 0}
    return len(last | for_good) + 2


def in_groups(batches: Iterable[PairBatch], size: int) -> Iterator[list[PairBatch]]:
    """Lists of `size` batches that follow each other."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in state.items()}


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
