"""Weights across the border: what a file or a run is, and a run's network as a file for the program that published it.

inspect("experiment/adam_0/model/model_best.pt").to_text()
export_run("runs/teacher", "best", "models/ours/net_last.pth")
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reid_eval.errors import OutputError
from reid_eval.files import write_text
from reid_eval.locks import locked
from reid_eval.outputs import claim_file
from reid_models.config import config_from_dict
from reid_models.extraction import Which
from reid_models.networks import ReidNetwork
from reid_models.published import Published
from reid_models.runs import Checkpoint, RunDir
from reid_models.training import ReidTrainConfig, build_network
from reid_models.weights import (
    WeightFile,
    WeightsError,
    WeightsReport,
    compare,
    network_of,
    published_as,
    read_weights,
    write_original,
)


@dataclass(frozen=True)
class Inspection:
    """What a file or a run is, and how its tensors fit the network that it says it is of."""

    path: str
    what: str
    facts: dict[str, Any]
    report: WeightsReport | None
    """None for a run of another package, whose networks are not known here"""

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against using it."""
        return self.report is None or self.report.fits

    def to_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.path}: {self.what}", *(f"{name:<12}{value}" for name, value in self.facts.items())]
        return "\n".join([*lines, self.report.to_text()] if self.report else lines)

    def to_json(self) -> str:
        """One JSON object."""
        report = self.report and self.report.to_dict()
        return json.dumps(
            {"path": self.path, "what": self.what, "facts": self.facts, "fits": self.fits, "report": report}
        )


def inspect(path: Path | str) -> Inspection:
    """Say what a weight file, a checkpoint of ours or a run's folder is; of a run its newest checkpoint is read.

    Raises:
        WeightsError: no weights, damaged, more than tensors, not finite, or of no network known here.
        CheckpointError: the folder is no run or has no checkpoint, or a format is unknown.
        ConfigError: the settings of a checkpoint are not of this version.
    """
    path, kept = Path(path), {}
    if path.is_dir():
        run = RunDir.open(path)
        file = run.checkpoint_file("last")
        best = ["best"] if run.has_best() else []
        kept = {"checkpoints": ", ".join([*map(str, run.iterations()), *best])}
    else:
        file = path
    weights = read_weights(file)
    if isinstance(weights.origin, Published):
        with torch.device("meta"):
            network = network_of(weights.origin)
        return Inspection(str(path), weights.describe(), _published_facts(weights), compare(network, weights))
    checkpoint = weights.origin
    report = compare(_bare_network(checkpoint, file), weights) if checkpoint.kind == "reid" else None
    return Inspection(str(path), weights.describe(), kept | _checkpoint_facts(checkpoint), report)


def _published_facts(weights: WeightFile) -> dict[str, Any]:
    origin = weights.origin
    assert isinstance(origin, Published)
    height, width = origin.image_hw
    told_by = f"from {origin.settings_from}" if origin.settings_from else "assumed: the file does not tell"
    facts: dict[str, Any] = {"tensors": len(weights.state)}
    if origin.kind != "trunk":
        bias = "with" if origin.classifier_bias else "without"
        facts |= {
            "identities": origin.num_ids,
            "heads": f"{origin.num_heads} of {origin.head_features} features, classifiers {bias} bias",
        }
    pool = {"avg": "average", "max": "maximum"}[origin.pool]
    return facts | {"made for": f"{height}x{width}, {pool} pooling, last stride {origin.last_stride} ({told_by})"}


def _checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    versions = ("reid_models", "dgnet_gen", "torch")
    made_by = checkpoint.made_by
    facts: dict[str, Any] = {
        "tensors": ", ".join(f"{name} {len(state)}" for name, state in checkpoint.networks.items()),
        "network": json.dumps(checkpoint.config.get("network", checkpoint.config.get("networks"))),
        "identities": made_by.get("num_ids"),
        "data": made_by.get("data"),
        "made by": ", ".join(f"{name} {made_by[name]}" for name in versions if name in made_by),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _bare_network(checkpoint: Checkpoint, file: Path) -> ReidNetwork:
    """The network of a run's settings, without memory for its weights."""
    config = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(file))
    with torch.device("meta"):
        return build_network(config.network, checkpoint.num_ids(file), load_weights=False)


@dataclass(frozen=True)
class Exported:
    """A file for another program, and what that program has to be told."""

    file: str
    what: str
    options: str

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))


def export_run(run: Path | str, which: Which, out: Path | str, *, overwrite: bool = False) -> Exported:
    """Write a checkpoint's network as a file that the program which published the network loads strictly.

    For the re-id baseline opts.yaml is written beside it: without, DG-Net and the baseline would take last stride 2.

    Raises:
        CheckpointError: no run there, or no such checkpoint.
        WeightsError: no published program has such a network; the setting that makes the difference is named.
        OutputError: a file is there already and `overwrite` is not set, or it cannot be written.
    """
    out = Path(out)
    file = RunDir.open(run, "reid").checkpoint_file(which)
    weights = read_weights(file)
    if not isinstance(weights.origin, Checkpoint):
        raise WeightsError(f"{file}: {weights.describe()}, expected a checkpoint of ours")
    checkpoint = weights.origin
    network = _bare_network(checkpoint, file)
    report = compare(network, weights)
    if not report.fits:
        raise WeightsError(report.refusal())
    network.load_state_dict(weights.state, assign=True)
    published = published_as(network)
    opts = out.parent / "opts.yaml" if published.kind in ("baseline", "pcb") else None
    for target in filter(None, (out, opts)):
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; expected a file's name, such as {target / 'net_last.pth'}")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already; choose another --out, or replace it with --overwrite")
        claim_file(target, "reid-models export", inputs=[run], overwrite=True)
    with locked(out, "reid-models export"):
        write_original(network, out)
        if opts is not None:
            write_text(opts, f"nclasses: {published.num_ids}\nstride: {published.last_stride}\n")
    image_hw = config_from_dict(ReidTrainConfig, checkpoint.config, source=str(file)).image_hw
    return Exported(str(out), published.describe(), _options(published, image_hw))


def _options(published: Published, image_hw: tuple[int, int]) -> str:
    """What the file does not tell the program that will load it."""
    height, width = image_hw
    if published.kind == "mgn":
        fixed = "" if image_hw == (384, 128) else "; its pools are made for 384x128 and for no other size"
        return (
            f"--num_classes {published.num_ids} --feats {published.head_features} --pool {published.pool} "
            f"--height {height} --width {width}{fixed}"
        )
    linear_num = "" if published.head_features == 512 else f" --linear_num {published.head_features}"
    return f"opts.yaml beside it (stride {published.last_stride}){linear_num}; pictures of {height}x{width}"
