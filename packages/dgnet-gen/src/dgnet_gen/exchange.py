"""Folders of the published DG-Net program: a training of theirs as a model of ours, and a run of ours as one of theirs.

    outputs/E0.5new_reid0.5_w30000/
        config.yaml
        checkpoints/  gen_00100000.pt  id_00100000.pt  dis_00100000.pt  optimizer.pt

    folder = PublishedFolder.open("outputs/E0.5new_reid0.5_w30000")
    model = folder.load("last")                                    # or DGNet.load(folder), wherever a run's folder goes
    states = folder.optimizer_states(model, make_optimizers(model, optim))
    export_run("runs/dgnet", "last", "outputs/ours")

Files are read as tensors and plain containers only: nothing in them can run code.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from dgnet_gen.model import DGNet
from dgnet_gen.published import (
    FILES,
    PublishedConfig,
    from_published,
    is_published_settings,
    optimizer_states_from_published,
    optimizer_states_to_published,
    published_config,
    published_settings,
    published_tables,
    to_published,
    training_tree,
    training_values,
)
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.step import make_optimizers
from reid_eval.errors import OutputError
from reid_eval.files import atomic_path, file_fingerprint, fingerprint
from reid_eval.locks import locked
from reid_eval.outputs import claim_file
from reid_models.config import config_from_dict, load_config
from reid_models.foreign import read_content
from reid_models.runs import CheckpointError, RunDir
from reid_models.runtime import choose_device
from reid_models.weights import refuse_unusable, write_contents

logger = logging.getLogger(__name__)

_GENERATOR_NAME = re.compile(r"gen_(\d{8,})\.pt")
OPTIMIZER_FILE = "optimizer.pt"


def load_train_config(file: Path | None, overrides: Sequence[str] = ()) -> DGNetTrainConfig:
    """The settings of a training from a file of ours or of the published program, changed by `section.key=value` texts.

    Raises:
        ConfigError: see `load_config` and `published_config`.
    """
    if file is None or not is_published_settings(file):
        return load_config(DGNetTrainConfig, file, overrides)
    return load_config(DGNetTrainConfig, file, overrides, values=training_tree(published_config(file), str(file)))


class PublishedFolder:
    """A training that the published program wrote, or one that was exported for it."""

    def __init__(self, path: Path, config: PublishedConfig) -> None:
        self.path, self.config = path, config
        self.checkpoints = path / "checkpoints"

    @staticmethod
    def is_one(path: Path | str) -> bool:
        """Whether a folder has the published program's generators and is no run of ours."""
        path = Path(path)
        return not (path / "run.json").exists() and bool(_iterations(path))

    @classmethod
    def open(cls, path: Path | str) -> PublishedFolder:
        """Find one and read its settings.

        Raises:
            CheckpointError: no generator there, or no config.yaml beside the checkpoints.
            ConfigError: the settings name no network that the program made work.
        """
        path = Path(path)
        if not _iterations(path):
            raise CheckpointError(
                f"{path}: no checkpoints/gen_ITERATION.pt here; expected a published training's folder"
            )
        config_file = path / "config.yaml"
        if not config_file.is_file():
            raise CheckpointError(
                f"{config_file}: not there; the published program copies its settings to this place, and without them "
                "the networks are not known"
            )
        return cls(path, published_config(config_file))

    def iterations(self) -> list[int]:
        """The iterations that have a generator, ascending."""
        return _iterations(self.path)

    def load(
        self, which: int | Literal["last", "best"] = "last", *, device: str = "auto", for_use: bool = False
    ) -> DGNet:
        """The model of an iteration in evaluation mode, every weight from the files.

        `for_use` takes a folder without the discriminator's file, which only a training reads: it stays random, and
        that is said.

        Raises:
            CheckpointError: no such iteration (those that exist are listed), a file is missing or does not fit.
            WeightsError: a file is damaged, holds more than tensors, or a weight that is not finite.
        """
        iteration = self._iteration(which)
        files = {name: self.checkpoints / f"{name}_{iteration:08d}.pt" for name in FILES}
        if for_use and not files["dis"].exists():
            logger.warning("%s: not there; the discriminator stays random, and pictures do not need it", files["dis"])
            del files["dis"]
        for file in files.values():
            if not file.is_file():
                raise CheckpointError(f"{file}: not there; iteration {iteration} needs {', '.join(FILES)}")
        model = DGNet(self.config.networks, self.config.num_ids)
        tables = published_tables(model)
        networks = model.networks()
        for name, file in files.items():
            state = _read_state(file)
            if name == "id":
                self._refuse_other_identities(file, state)
            states, _ = from_published(tables[name], state, source=str(file))
            for network, values in states.items():
                networks[network].load_state_dict(values)
        model.iteration = iteration
        model.checkpoint_id = fingerprint((file_fingerprint(file) for file in files.values()), digits=64)
        return model.to(choose_device(device)).eval()

    def optimizer_states(self, model: DGNet, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """State dicts for the optimizers of a model of this folder, to go on where the published training stopped.

        Raises:
            CheckpointError: no optimizer.pt, the model is not the newest (whose states it holds), or it does not fit.
            WeightsError: the file is damaged, or holds more than tensors.
        """
        file = self.checkpoints / OPTIMIZER_FILE
        newest = self.iterations()[-1]
        if model.iteration != newest:
            raise CheckpointError(
                f"{file}: holds the states of the newest iteration, {newest}, not of {model.iteration}; "
                f"go on from {newest}"
            )
        return optimizer_states_from_published(read_content(file), model, optimizers, source=str(file))

    def _iteration(self, which: int | Literal["last", "best"]) -> int:
        available = self.iterations()
        if which == "last":
            return available[-1]
        if which not in available:
            raise CheckpointError(
                f"{self.path}: no checkpoint of iteration {which}; there are {', '.join(map(str, available[-12:]))}"
            )
        return int(which)

    def _refuse_other_identities(self, file: Path, state: Mapping[str, Tensor]) -> None:
        for name in ("classifier1.classifier.0.weight", "classifier.classifier.0.weight"):
            if name in state and len(state[name]) != self.config.num_ids:
                raise CheckpointError(
                    f"{file}: its classifier is of {len(state[name])} identities, but ID_class in "
                    f"{self.path / 'config.yaml'} is {self.config.num_ids}; correct ID_class if the two belong together"
                )


def _iterations(path: Path) -> list[int]:
    folder = path / "checkpoints"
    names = [_GENERATOR_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def _read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a published file, which lie under "a"."""
    content = read_content(file)
    if not isinstance(content.get("a"), dict):
        raise CheckpointError(
            f"{file}: expected a state dict under 'a', found {', '.join(map(str, list(content)[:3]))}; is it a file of "
            "the published DG-Net?"
        )
    state = content["a"]
    refuse_unusable(file, state)
    if state and all(name.startswith("module.") for name in state):  # written from several GPUs
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


@dataclass(frozen=True)
class Exported:
    """A folder for the published program."""

    folder: str
    iteration: int
    files: list[str]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))


def export_run(
    run: Path | str, which: int | Literal["last", "best"], out: Path | str, *, overwrite: bool = False
) -> Exported:
    """Write a checkpoint of a run as a folder that the published program loads strictly and trains on from.

    Its unused ImageNet classifier is zeros. Settings that our training does not have are the published ones;
    data_root is where our data lie, and the teacher's name has to be set before training on.

    Raises:
        CheckpointError: no run there, or no such checkpoint.
        ConfigError: the published program has no such network; the setting that makes the difference is named.
        WeightsError: a weight is not finite.
        OutputError: a file is there already and `overwrite` is not set, or one cannot be written.
    """
    if PublishedFolder.is_one(run):
        raise CheckpointError(f"{run}: is a folder of the published program already; copy it")
    run_dir, out = RunDir.open(run, "dgnet"), Path(out)
    checkpoint = run_dir.load(which)
    config = config_from_dict(DGNetTrainConfig, checkpoint.config, source=str(run_dir.checkpoint_file(which)))
    model = DGNet(config.networks, int(checkpoint.made_by["num_ids"]))
    training = training_values(config) | {"data_root": str(checkpoint.made_by.get("data", ""))}
    settings = published_settings(config.networks, model.num_ids, training)
    model.load_networks(checkpoint.networks, source=str(run_dir.path))
    contents: dict[Path, Any] = {}
    for name, state in to_published(model).items():
        refuse_unusable(f"{run_dir.checkpoint_file(which)}: {name}", state)
        contents[out / "checkpoints" / f"{name}_{checkpoint.iteration:08d}.pt"] = {"a": OrderedDict(state)}
    if checkpoint.optimizers:
        contents[out / "checkpoints" / OPTIMIZER_FILE] = optimizer_states_to_published(
            checkpoint.optimizers, model, make_optimizers(model, config.optim)
        )
    config_file = out / "config.yaml"
    for file in (config_file, *contents):
        if file.exists() and not overwrite:
            raise OutputError(f"{file}: exists already; choose another --out, or replace it with --overwrite")
        claim_file(file, "dgnet-gen export", inputs=[run], overwrite=True)
    with locked(config_file, "dgnet-gen export"), atomic_path(config_file) as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        write_contents(contents)
    files = [str(file.relative_to(out)) for file in (config_file, *contents)]
    return Exported(str(out), checkpoint.iteration, files)
