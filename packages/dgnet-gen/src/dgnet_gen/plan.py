"""What a training will be, before it is started: networks, memory, disk and time. Nothing is written.

print(plan_training(config, DatasetIndex.open("data/market"), Runtime.from_environment()).to_text())
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgnet_gen.exchange import PublishedFolder
from dgnet_gen.model import DGNet
from dgnet_gen.pairs import pair_batches
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.step import Step, make_optimizers
from dgnet_gen.training import (
    checkpoint_bytes,
    in_groups,
    load_teacher,
    make_pairs,
    num_checkpoints,
    refuse_other_beginning,
)
from reid_models.data.index import DatasetIndex
from reid_models.runtime import Runtime
from reid_models.training import trainable
from reid_models.weights import load_trunk_weights

PROBED_STEPS = 5


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes in MiB; times are of steps as they are at the end of the training, when all terms are in."""

    device: str
    precision: str
    images: int
    identities: int
    image_hw: tuple[int, int]
    parameters: dict[str, int]
    """of each network"""
    teachers: int
    images_per_step: int
    """decoded in one step"""
    steps_per_epoch: float
    """steps that decode as many anchors as there are pictures, on each of the two sides"""
    steps: int
    state_mib: float
    """networks, gradients and optimizers"""
    peak_mib: float | None
    """what the probe took at most: on a CUDA device, elsewhere of the whole process; None where nobody tells"""
    checkpoint_mib: float
    checkpoints: int
    """files at the fullest"""
    step_s: float
    hours: float

    def to_text(self) -> str:
        """A few lines for a terminal."""
        height, width = self.image_hw
        networks = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        peak = "" if self.peak_mib is None else f"; {self.peak_mib:,.0f} MiB at most in the probe"
        disk_gib = self.checkpoints * self.checkpoint_mib / 1024
        rows = {
            "data": f"{self.images:,} pictures of {self.identities:,} people, at {height}x{width}",
            "networks": f"{sum(self.parameters.values()):,} parameters: {networks}; teachers: {self.teachers}",
            "device": f"{self.device}, {self.precision}",
            "memory": f"{self.state_mib:,.0f} MiB for networks, gradients and optimizers{peak}",
            "disk": f"{disk_gib:.1f} GiB at most: {self.checkpoints} checkpoints of {self.checkpoint_mib:,.0f} MiB",
            "steps": f"{self.steps:,} of {self.images_per_step} pictures, {self.steps_per_epoch:,.1f} per epoch",
            "time": f"{self.step_s:.3f} s a step (of {PROBED_STEPS}, with all terms in), {self.hours:.1f} hours",
        }
        return "\n".join(f"{name:<10}{text}" for name, text in rows.items())

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))


def plan_training(
    config: DGNetTrainConfig,
    data: DatasetIndex,
    runtime: Runtime,
    teachers: Sequence[Path | str] = (),
    begin_with: PublishedFolder | None = None,
) -> TrainingPlan:
    """Set a training up, take a few steps and throw them away.

    Raises:
        DatasetError, TeacherError, WeightsError, CheckpointError, ConfigError: as `train_dgnet` would.
    """
    index = trainable(data)
    pairs = make_pairs(config, index)
    teacher = load_teacher(config, teachers, index, runtime)
    runtime.seed_everything(config.seed)
    if begin_with is None:
        model = DGNet(config.networks, index.num_ids)
        load_trunk_weights(model.appearance_encoder.trunk, config.trunk_weights, setting="trunk_weights")
    else:
        refuse_other_beginning(begin_with, config, index)
        model = begin_with.load(device="cpu")
    steps = config.max_iter - model.iteration
    for network in model.networks().values():
        runtime.prepare(network).train()
    step = Step(model, make_optimizers(model, config.optim), config, runtime, teacher)
    batches = pair_batches(pairs, 0, PROBED_STEPS * config.accumulate, num_workers=config.num_workers)
    last = max(0, config.max_iter - 1)
    finished_s = []
    for parts in itertools.islice(in_groups(batches, config.accumulate), PROBED_STEPS):
        step(last, [runtime.to_device(part) for part in parts])
        finished_s.append(time.perf_counter())
    # The first step also finds the fastest kernels and fills the workers' queues.
    step_s = (finished_s[-1] - finished_s[0]) / (len(finished_s) - 1)
    weights = sum(value.nbytes for network in model.networks().values() for value in network.parameters())
    checkpoint, peak = checkpoint_bytes(config, model), runtime.peak_bytes()
    return TrainingPlan(
        device=str(runtime.device),
        precision=config.precision,
        images=len(index),
        identities=index.num_ids,
        image_hw=config.networks.image_hw,
        parameters=model.describe(),
        teachers=len(teachers),
        images_per_step=4 * config.batch_size * config.accumulate,
        steps_per_epoch=pairs.steps_per_epoch / config.accumulate,
        steps=steps,
        state_mib=(checkpoint + weights) / 2**20,
        peak_mib=None if peak is None else peak / 2**20,
        checkpoint_mib=checkpoint / 2**20,
        checkpoints=num_checkpoints(config),
        step_s=step_s,
        hours=step_s * steps / 3600,
    )
