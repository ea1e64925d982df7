"""Offline images: the pictures of a plan, a manifest of their parents, and a card that says how they were made.

    plan = plan_generation(index)                              # every training picture's appearance once
    generate(DGNet.load("runs/dgnet"), plan, "runs/dgnet/fake/00100000")
    pixels = regenerate(model, "runs/dgnet/fake/00100000", "0002/0002_c1s1_000451_03__in__0007_c2s3_070952_01.png")

Pictures lie in folders of the identity whose appearance they show, so the folder is the label to train with:
`0002/0002_c1s1_000451_03__in__0007_c2s3_070952_01.png` is person 2 in the pose of a picture of person 7. A second
folder by the structure's identity can be made beside it. The same plan and checkpoint give the same bytes, however the
work is cut, interrupted or shared. An interrupted generation goes on where it stopped; a folder of another plan is
refused; nothing is ever removed but what a killed process left half written.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import dgnet_gen
from dgnet_gen.generation_plan import GenerationPlan, Grouping
from dgnet_gen.model import DGNet
from dgnet_gen.painter import UNIT, Painter
from reid_eval.errors import OutputError
from reid_eval.files import atomic_path, save_image, write_text
from reid_eval.outputs import claim_folder
from reid_eval.progress import progress
from reid_models.data.generated import (
    CARD_FILE,
    COLUMNS,
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    ManifestError,
    read_card,
    read_manifest,
)
from reid_models.runtime import Runtime

CameraPolicy = Literal["structure", "appearance", "unknown"]
ImageFormat = Literal["png", "jpg", "webp"]


@dataclass(frozen=True)
class Writing:
    """How pictures are written, and what is said of them."""

    image_format: ImageFormat = "png"
    quality: int = 95
    """of jpg and webp"""
    camera: CameraPolicy = "structure"
    """whose camera a picture is said to be of: background and light come with the structure"""

    @property
    def suffix(self) -> str:
        """Of the files' names."""
        return f".{self.image_format}"


def generate(
    model: DGNet,
    plan: GenerationPlan,
    out: Path | str,
    *,
    by_structure: Path | str | None = None,
    writing: Writing = Writing(),
    runtime: Runtime | None = None,
    batch_size: int = 32,
    workers: int = 2,
    memory_mib: float = 1024,
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Make the pictures of a plan that are not there yet; returns the manifest's path.

    `by_structure` is a second folder with the same pictures by the structure's identity, linked where the disk can.
    `runtime` says the precision, float32 without it. `batch_size` pictures are under way at once, read and saved by
    `workers` threads; `memory_mib` bounds the appearances kept in memory. None of these changes a pixel. `part` (k, n)
    makes the k-th of n parts of the plan, so that n processes can share it.

    Raises:
        OutputError: a folder holds other files, or pictures of another plan, checkpoint or format; a full disk. What
            was made stays.
        ImageError: a parent cannot be read; what was made stays.
    """
    runtime = runtime or Runtime(model.device)
    trees = [_Tree(model, plan, Path(out), "appearance", writing, runtime)]
    if by_structure is not None:
        trees.append(_Tree(model, plan, Path(by_structure), "structure", writing, runtime))
    for tree in trees:
        tree.claim()
    for tree in trees:
        tree.begin(alone=part[1] == 1)
    first, last = ((len(plan) * number) // part[1] for number in (part[0] - 1, part[0]))
    missing = np.array(
        [position for position in range(first, last) if not all(tree.has(position) for tree in trees)], np.int64
    )
    painter = Painter(
        model, plan.index.paths, runtime=runtime, workers=workers, ahead=batch_size, memory_mib=memory_mib
    )
    backlog = threading.Semaphore(max(batch_size, UNIT))
    failed: list[BaseException] = []

    def save(position: int, pixels: np.ndarray) -> None:
        try:
            trees[0].save(position, pixels)
            for tree in trees[1:]:
                tree.link(position, trees[0])
        except BaseException as error:  # told by the thread that paints
            failed.append(error)
        finally:
            backlog.release()

    with (
        progress("generating", last - first, last - first - len(missing)) as bar,
        ThreadPoolExecutor(workers, "save") as pool,
    ):
        for position, pixels in zip(missing.tolist(), painter.paint(plan.pairs[missing]), strict=True):
            backlog.acquire()
            if failed:
                break
            pool.submit(save, position, pixels)
            bar.advance()
    if failed:
        raise failed[0]
    for tree in trees:
        tree.finish()
    return trees[0].manifest


@dataclass(frozen=True)
class Estimate:
    """What a generation will take on this machine, from a few pictures of it."""

    images: int
    hours: float
    gigabytes: float
    """10^9 bytes of pictures and manifest, once per folder where links are not possible"""
    images_per_s: float

    def to_text(self) -> str:
        """One line."""
        return (
            f"{self.images:,} pictures: about {self.hours:.2f} hours ({self.images_per_s:.1f} a second) and "
            f"{self.gigabytes:.2f} GB"
        )

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    def refuse_full_disk(self, out: Path | str) -> None:
        """Say beforehand that the pictures will not fit.

        Raises:
            OutputError: less space is left at `out` than they need.
        """
        there = next(folder for folder in (Path(out).absolute(), *Path(out).absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free / 1e9
        if free < self.gigabytes:
            raise OutputError(
                f"{out}: {self.images:,} pictures need about {self.gigabytes:.2f} GB and {free:.2f} GB are free; free "
                "some space, choose another --out, a smaller --count, or --format jpg"
            )


def estimate(
    model: DGNet,
    plan: GenerationPlan,
    *,
    writing: Writing = Writing(),
    runtime: Runtime | None = None,
    workers: int = 2,
) -> Estimate:
    """Hours and gigabytes of a plan, measured on some of its pairs.

    Raises:
        ImageError: a parent cannot be read.
    """
    pairs = plan.pairs[np.unique(np.linspace(0, len(plan) - 1, 2 * UNIT).round().astype(np.int64))]
    painter = Painter(model, plan.index.paths, runtime=runtime or Runtime(model.device), workers=workers)
    alone = pairs[:1].repeat(UNIT, 0)  # one encoding of each kind, a unit of decoding
    list(painter.paint(alone))  # the first pass through a network is slow
    began_s = time.perf_counter()
    list(painter.paint(alone))
    unit_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    list(painter.paint(np.concatenate([alone, alone])))
    decode_s = (time.perf_counter() - began_s - unit_s) / UNIT
    encode_s = max(unit_s - UNIT * decode_s, 0) / UNIT  # of both codes of a picture
    painted = list(painter.paint(pairs))
    began_s = time.perf_counter()
    sizes = [len(_encoded(pixels, writing)) for pixels in painted]
    save_s = (time.perf_counter() - began_s) / len(painted)
    number = len(plan)
    encodings = max(len(np.unique(plan.pairs[:, column])) for column in (0, 1))
    per_image_s = max(decode_s, 1e-6) + save_s / workers
    total_s = number * per_image_s + encodings * encode_s
    row_bytes = len(",".join(map(str, _row(plan, 0, "appearance", writing))))
    return Estimate(number, total_s / 3600, number * (float(np.mean(sizes)) + row_bytes) / 1e9, number / total_s)


def _encoded(pixels: np.ndarray, writing: Writing) -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[writing.image_format]
    quality = {} if writing.image_format == "png" else {"quality": writing.quality}
    Image.fromarray(pixels).save(stream, format=kind, **quality)
    return stream.getvalue()


def regenerate(
    model: DGNet, folder: Path | str, file: str, *, data: Path | str | None = None, to: Path | str | None = None
) -> np.ndarray:
    """One picture of a generated folder again from its manifest's row: pixels, uint8 RGB (H, W, 3).

    `data` is the dataset's folder if it has moved. `to` also writes the file, byte for byte as in the folder.

    Raises:
        ManifestError: no such folder or picture, or the model is not the one that made it.
        ImageError: a parent cannot be read.
    """
    card, rows = read_manifest(folder)
    row = next((row for row in rows if row["file"] == file), None)
    if row is None:
        raise ManifestError(f"{folder}: no picture {file} in its manifest; expected a name such as {rows[0]['file']}")
    if card["checkpoint"] != model.checkpoint_id:
        raise ManifestError(
            f"{folder}: made by checkpoint {card['checkpoint']} (iteration {card['iteration']}), not by "
            f"{model.checkpoint_id} (iteration {model.iteration}); give that --run and --which-epoch"
        )
    root = Path(data if data is not None else card["data"])
    runtime = Runtime(model.device, card["precision"])
    painter = Painter(model, [root / row["structure"], root / row["appearance"]], runtime=runtime, workers=1)
    pixels = next(painter.paint(np.array([[0, 1]])))
    if to is not None:
        if Path(to).suffix.lower() != f".{card['image_format']}":
            raise OutputError(f"{to}: the pictures of this folder are .{card['image_format']}; give such a name")
        save_image(to, pixels, quality=card["quality"] or Writing.quality)
    return pixels


_MAY_CHANGE = ("made_by", "torch", "device", "data", "complete")
"""entries of a card that do not make it another plan"""


def _is_card(file: Path) -> bool:
    """Whether a card.json is of generated pictures, if perhaps damaged; not that of another program."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # `read_card` says that it is damaged
    return isinstance(found, dict) and found.get("kind") == "dgnet-generation"


class _Tree:
    """One output folder: its card, its manifest, its pictures."""

    def __init__(
        self, model: DGNet, plan: GenerationPlan, path: Path, grouping: Grouping, writing: Writing, runtime: Runtime
    ) -> None:
        self.plan, self.path, self.grouping, self.writing = plan, path, grouping, writing
        self.manifest = path / MANIFEST_FILE
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line.encode("utf-8", "backslashreplace"))
        self.card: dict[str, Any] = {
            "format": MANIFEST_FORMAT,
            "kind": "dgnet-generation",
            "checkpoint": model.checkpoint_id,
            "iteration": model.iteration,
            "plan": plan.kind,
            "seed": plan.seed,
            "images": len(plan),
            "image_hw": list(model.image_hw),
            "grouping": grouping,
            "image_format": writing.image_format,
            "quality": None if writing.image_format == "png" else writing.quality,
            "camera_policy": writing.camera,
            "precision": runtime.precision,
            "index_fingerprint": plan.index.fingerprint,
            "manifest_sha256": digest.hexdigest(),
            "data": str(plan.index.root.resolve()),
            "made_by": f"dgnet_gen {dgnet_gen.__version__}",
            "torch": str(torch.__version__),
            "device": str(model.device),
            "complete": False,
        }

    def claim(self) -> None:
        """See that the folder may be written to.

        Raises:
            OutputError: it holds other files, or pictures of another plan.
        """
        claim_folder(self.path, CARD_FILE, what="generated pictures", is_ours=_is_card)
        if (self.path / CARD_FILE).exists():
            try:
                found = read_card(self.path)
            except ManifestError as error:
                raise OutputError(f"{error}; or choose another --out") from None
            changed = [
                f"{key} {found.get(key)} -> {value}"
                for key, value in self.card.items()
                if key not in _MAY_CHANGE and found.get(key) != value
            ]
            if changed:
                told = [text for text in changed if not text.startswith("manifest_sha256")] or ["other pairs"]
                raise OutputError(
                    f"{self.path}: holds pictures of another plan ({', '.join(told)}); choose another --out"
                )

    def begin(self, *, alone: bool) -> None:
        """Write card and manifest where they are not there, and remove what a killed process left half written.

        Unless `alone`, young half files may be another process's and stay.
        """
        if not (self.path / CARD_FILE).exists():
            write_text(self.path / CARD_FILE, json.dumps(self.card, indent=2) + "\n")
        if not self.manifest.exists():
            with atomic_path(self.manifest) as part, part.open("wb") as stream:
                for line in self._lines():
                    stream.write(line.encode("utf-8", "backslashreplace"))
        for half in self.path.glob("*/.*__in__*.part"):
            if alone or time.time() - half.stat().st_mtime > _ABANDONED_AFTER_S:
                half.unlink(missing_ok=True)

    def has(self, position: int) -> bool:
        return self._file(position).exists()

    def save(self, position: int, pixels: np.ndarray) -> None:
        if not self.has(position):
            save_image(self._file(position), pixels, quality=self.writing.quality)

    def link(self, position: int, other: _Tree) -> None:
        """The picture of another tree here too."""
        file, source = self._file(position), other._file(position)
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, file)
        except FileExistsError:
            return
        except OSError:  # another disk, or one that knows no links
            with atomic_path(file) as part:
                shutil.copyfile(source, part)

    def finish(self) -> None:
        """Say in the card that all pictures are there, if they are."""
        if all(self.has(position) for position in range(len(self.plan))):
            write_text(self.path / CARD_FILE, json.dumps(self.card | {"complete": True}, indent=2) + "\n")

    def _file(self, position: int) -> Path:
        return self.path / self.plan.file(position, self.writing.suffix, self.grouping)

    def _lines(self) -> Iterator[str]:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for position in range(len(self.plan)):
            writer.writerow(_row(self.plan, position, self.grouping, self.writing))
            yield stream.getvalue()
            stream.seek(0)
            stream.truncate()


_ABANDONED_AFTER_S = 60.0


def _row(plan: GenerationPlan, position: int, grouping: Grouping, writing: Writing) -> tuple[object, ...]:
    """A picture's values in the order of `COLUMNS`."""
    planned = plan[position]
    structure, appearance = planned.structure, planned.appearance
    camid = {"structure": structure.camid, "appearance": appearance.camid, "unknown": -1}[writing.camera]
    return (
        plan.file(position, writing.suffix, grouping),
        _relative(structure.path, plan.index.root),
        _relative(appearance.path, plan.index.root),
        structure.pid,
        appearance.pid,
        structure.camid,
        appearance.camid,
        camid,
    )


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")
