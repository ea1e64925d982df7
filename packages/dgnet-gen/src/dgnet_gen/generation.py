"""Offline images: a deterministic plan of who appears in whose pose, the pictures, and a manifest of their parents.

    plan = plan_generation(index, count=None, seed=0)          # every training picture's appearance once
    generate(DGNet.load("runs/dgnet"), plan, Path("runs/dgnet/fake/00100000"))

Pictures lie in folders of the identity whose appearance they show, so the folder is the label to train with:
`0002/0002_c1s1_000451_03__in__0007_c2s3_070952_01.png` is person 2 in the pose of a picture of person 7. The manifest
is one JSON object per line; the first names checkpoint, seed and data. An interrupted generation goes on where it
stopped; a folder of another plan is refused; nothing is ever removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dgnet_gen
from dgnet_gen.model import Codes, DGNet
from reid_eval.errors import OutputError, ReidError
from reid_eval.files import claim_folder, read_pixels, save_image, write_text
from reid_eval.progress import progress
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord
from reid_models.data.transforms import eval_transform, to_pixels

MANIFEST_FILE = "manifest.jsonl"
MANIFEST_FORMAT = 1
_CODE_CACHE_BYTES = 1 << 30


class ManifestError(ReidError):
    """A folder of generated pictures has no readable manifest."""


@dataclass(frozen=True)
class PlannedImage:
    """One picture to be made."""

    structure: ImageRecord
    appearance: ImageRecord

    @property
    def file(self) -> str:
        """Its name relative to the output folder: appearance identity, then both parents' names."""
        folder = f"{self.appearance.pid:04d}" if self.appearance.pid >= 0 else str(self.appearance.pid)
        return f"{folder}/{self.appearance.path.stem}__in__{self.structure.path.stem}.png"


@dataclass(frozen=True)
class GenerationPlan:
    """Pictures in the order they are made, with what the order was drawn from."""

    rows: tuple[PlannedImage, ...]
    seed: int
    index_fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)


def plan_generation(index: DatasetIndex, count: int | None = None, *, seed: int = 0) -> GenerationPlan:
    """Give every picture's appearance the structure of a random picture of somebody else.

    With `count`, that many pictures: a random part of them, or further rounds with other partners. No pair repeats
    within a plan. `index` is the split to draw from, train_all for the published plan.

    Raises:
        DatasetError: a single identity, or more pictures asked for than there are pairs.
    """
    if index.num_ids < 2:
        raise DatasetError(f"{index.root}: {index.num_ids} identity; swapping takes at least 2")
    pids = index.pids
    others = {pid: np.flatnonzero(pids != pid) for pid in index.labels}
    possible = sum(len(others[int(pid)]) for pid in pids)
    wanted = len(index) if count is None else count
    if not 1 <= wanted <= possible:
        raise DatasetError(
            f"--count {wanted}: {index.root} has {possible} pairs of different people; choose 1 to {possible}"
        )
    rng = np.random.default_rng([seed, 11])
    rows: list[PlannedImage] = []
    seen: set[tuple[int, int]] = set()
    while len(rows) < wanted:
        order = np.arange(len(index)) if count is None else rng.permutation(len(index))
        for appearance in order:
            if len(rows) == wanted:
                break
            structure = int(rng.choice(others[int(pids[appearance])]))
            if (int(appearance), structure) not in seen:
                seen.add((int(appearance), structure))
                rows.append(PlannedImage(index[structure], index[int(appearance)]))
    return GenerationPlan(tuple(rows), seed, index.fingerprint)


def generate(model: DGNet, plan: GenerationPlan, out: Path | str, *, batch_size: int = 32) -> Path:
    """Make the pictures of a plan that are not there yet; returns the manifest's path.

    Raises:
        OutputError: `out` holds other files, or pictures of another plan or checkpoint.
        ImageError: a parent cannot be read; what was made stays.
    """
    out = claim_folder(out, MANIFEST_FILE, what="generated pictures")
    manifest = out / MANIFEST_FILE
    text = "".join(json.dumps(line) + "\n" for line in _manifest_lines(model, plan))
    if manifest.exists() and manifest.read_text(encoding="utf-8") != text:
        raise OutputError(f"{out}: {_difference(manifest, text)}; choose another --out")
    write_text(manifest, text)
    missing = [row for row in plan.rows if not (out / row.file).exists()]
    encoder = _Encoder(model)
    with progress("generating", len(plan), len(plan) - len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            codes = Codes(
                encoder.encode([row.appearance.path for row in batch], "appearance"),
                encoder.encode([row.structure.path for row in batch], "structure"),
            )
            for row, pixels in zip(batch, to_pixels(model.decode(codes)), strict=True):
                save_image(out / row.file, pixels)
            bar.advance(len(batch))
    return manifest


def read_manifest(folder: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a folder's manifest.

    Raises:
        ManifestError: none there, damaged, or of an unknown format.
    """
    file = Path(folder) / MANIFEST_FILE
    if not file.is_file():
        raise ManifestError(f"{folder}: no {MANIFEST_FILE}; expected a folder made by 'dgnet-gen generate'")
    try:
        header, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found = header["format"]
    except (ValueError, KeyError, TypeError):
        raise ManifestError(f"{file}: damaged; generate again into a new folder") from None
    if found != MANIFEST_FORMAT:
        raise ManifestError(f"{file}: manifest format {found}, this version reads {MANIFEST_FORMAT}")
    return header, rows


def _manifest_lines(model: DGNet, plan: GenerationPlan) -> Iterator[dict[str, Any]]:
    yield {
        "format": MANIFEST_FORMAT,
        "kind": "dgnet-generation",
        "made_by": f"dgnet_gen {dgnet_gen.__version__}",
        "checkpoint": model.checkpoint_id,
        "iteration": model.iteration,
        "seed": plan.seed,
        "index_fingerprint": plan.index_fingerprint,
        "image_hw": list(model.image_hw),
        "images": len(plan),
    }
    for row in plan.rows:
        yield {
            "file": row.file,
            "appearance": row.appearance.path.name,
            "structure": row.structure.path.name,
            "appearance_pid": row.appearance.pid,
            "structure_pid": row.structure.pid,
            "appearance_camid": row.appearance.camid,
            "structure_camid": row.structure.camid,
        }


def _difference(manifest: Path, text: str) -> str:
    """How the manifest that is there differs from the one that is wanted, in words."""
    there, wanted = manifest.read_text(encoding="utf-8").split("\n", 1)[0], json.loads(text.split("\n", 1)[0])
    try:
        header = json.loads(there)
    except ValueError:
        return "holds a damaged manifest"
    changed = [f"{key} {header.get(key)} -> {wanted[key]}" for key in wanted if header.get(key) != wanted[key]]
    return f"holds pictures of another plan ({', '.join(changed) or 'other pairs'})"


class _Encoder:
    """Codes of files, each encoded once as long as memory allows."""

    def __init__(self, model: DGNet) -> None:
        self.model = model
        self._left_bytes = _CODE_CACHE_BYTES
        self._codes: dict[tuple[str, Path], Tensor] = {}

    def encode(self, paths: Sequence[Path], kind: str) -> Tensor:
        """Appearance or structure codes of the files, in order, on the CPU."""
        fresh: dict[Path, Tensor] = {}
        new = [path for path in dict.fromkeys(paths) if (kind, path) not in self._codes]
        if new:
            images = torch.stack([eval_transform(read_pixels(path), self.model.image_hw) for path in new])
            encode = self.model.appearance if kind == "appearance" else self.model.structure
            fresh = dict(zip(new, encode(images).cpu(), strict=True))
        codes = torch.stack([fresh[path] if path in fresh else self._codes[kind, path] for path in paths])
        for path, code in fresh.items():
            if code.nbytes <= self._left_bytes:
                self._left_bytes -= code.nbytes
                self._codes[kind, path] = code.clone()
        return codes
