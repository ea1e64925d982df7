"""Offline images: the pictures of a plan, a manifest of their parents, and a card that says how they were made.

    plan = plan_generation(index)                              # every training picture's appearance once
    generate(DGNet.load("runs/dgnet"), plan, "runs/dgnet/fake/00100000")
    pixels = regenerate(model, "runs/dgnet/fake/00100000", "0002/0002_c1s1_000451_03__in__0007_c2s3_070952_01.png")

Pictures lie in folders of the identity whose appearance they show, so the folder is the label to train with:
`0002/0002_c1s1_000451_03__in__0007_c2s3_070952_01.png` is person 2 in the pose of a picture of person 7. A second
folder by the structure's identity can be made beside it. The same plan and checkpoint give the same bytes, however the
work is cut, interrupted or shared. An interrupted generation goes on where it stopped, and what is no longer as it was
made is made again; a folder of another plan is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgnet_gen.generated_folder import PLAIN, PUBLISHED, GeneratedFolder, Parents, Writing, in_fixed_order, manifest_row
from dgnet_gen.generation_plan import GenerationPlan
from dgnet_gen.model import DGNet
from dgnet_gen.painter import UNIT, Painter
from reid_eval.errors import OutputError, Stopped
from reid_eval.files import atomic_path, file_fingerprint
from reid_eval.locks import locked
from reid_eval.outputs import claim_file
from reid_eval.progress import progress
from reid_eval.stopping import check_stop, stop_reason
from reid_models.data.generated import ManifestError, read_manifest, read_records
from reid_models.runtime import Runtime

__all__ = ["PLAIN", "PUBLISHED", "Estimate", "Writing", "estimate", "generate", "regenerate"]

logger = logging.getLogger(__name__)


def generate(
    model: DGNet,
    plan: GenerationPlan,
    out: Path | str,
    *,
    by_structure: Path | str | None = None,
    writing: Writing = PLAIN,
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
        OutputError: a folder holds other files, or pictures of another plan, checkpoint or format; somebody else makes
            the same pictures there; a full disk. What was made stays.
        ImageError: a parent cannot be read; what was made stays.
        Stopped: within `stopping.stoppable`, something asked to stop; what was made stays.
    """
    runtime = runtime or Runtime(model.device)
    parents = Parents(plan)
    folder = GeneratedFolder(model, plan, Path(out), "appearance", writing, runtime, parents)
    folders = [folder]
    if by_structure is not None:
        folders.append(GeneratedFolder(model, plan, Path(by_structure), "structure", writing, runtime, parents))
        if os.path.realpath(out) == os.path.realpath(by_structure):
            raise OutputError(f"{by_structure}: is the folder by appearance already; choose another")
    for one in folders:
        one.refuse_foreign()
    first, last = ((len(plan) * number) // part[1] for number in (part[0] - 1, part[0]))
    by = f"dgnet-gen {'one-by-one' if plan.kind == 'one-by-one' else 'generate'}"
    with ExitStack() as stack:
        for one in in_fixed_order(folders):
            stack.enter_context(one.held(part, by if part[1] == 1 else f"{by} --part {part[0]}/{part[1]}"))
        missing = folder.faulty(first, last)
        for other in folders[1:]:
            for position in sorted({*other.faulty(first, last)} - {*missing}):
                other.link(position, folder)

        def save(position: int, pixels: np.ndarray) -> None:
            folder.save(position, pixels)
            for other in folders[1:]:
                other.link(position, folder)

        painter = Painter(
            model,
            plan.index.paths,
            runtime=runtime,
            workers=workers,
            ahead=batch_size,
            memory_mib=memory_mib,
            levels=writing.levels,
        )
        with progress("generating", last - first, last - first - len(missing)) as bar:
            pictures = painter.paint(plan.pairs[np.array(missing, np.int64)])
            with closing(pictures):
                stopped = _save_all(missing, pictures, save, workers, max(batch_size, UNIT), bar.advance)
        if stopped is not None:
            reason, made = stopped
            raise Stopped(
                f"{reason}: {last - first - len(missing) + made} of {last - first} pictures are in {out}; run the same "
                "command to go on"
            )
        for one in folders:
            one.finish()
    return folder.manifest


def _save_all(
    positions: list[int],
    pictures: Iterable[np.ndarray],
    save: Callable[[int, np.ndarray], None],
    workers: int,
    ahead: int,
    saved: Callable[[], None],
) -> tuple[str, int] | None:
    """Save pictures in threads as they are painted; where something asks to stop, why, and how many there are then."""
    backlog = threading.Semaphore(ahead)
    failed: list[BaseException] = []

    def save_one(position: int, pixels: np.ndarray) -> None:
        try:
            save(position, pixels)
        except BaseException as error:  # told by the thread that paints
            failed.append(error)
        finally:
            backlog.release()

    painted, stopped = iter(pictures), None
    with ThreadPoolExecutor(workers, "save") as pool:
        for number, position in enumerate(positions):
            if reason := stop_reason():
                stopped = reason, number
                break
            pixels = next(painted)
            backlog.acquire()
            if failed:
                break
            pool.submit(save_one, position, pixels)
            saved()
    if failed:
        raise failed[0]
    return stopped


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
    writing: Writing = PLAIN,
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

    def paint_s(some: np.ndarray) -> float:
        check_stop()
        began_s = time.perf_counter()
        list(painter.paint(some))
        return time.perf_counter() - began_s

    paint_s(alone)  # the first pass through a network is slow
    unit_s = paint_s(alone)
    decode_s = (paint_s(np.concatenate([alone, alone])) - unit_s) / UNIT
    encode_s = max(unit_s - UNIT * decode_s, 0) / UNIT  # of both codes of a picture
    painted = list(painter.paint(pairs))
    began_s = time.perf_counter()
    sizes = [len(writing.encoded(pixels)) for pixels in painted]
    save_s = (time.perf_counter() - began_s) / len(painted)
    number = len(plan)
    encodings = max(len(np.unique(plan.pairs[:, column])) for column in (0, 1))
    per_image_s = max(decode_s, 1e-6) + save_s / workers
    total_s = number * per_image_s + encodings * encode_s
    row_bytes = len(",".join(map(str, manifest_row(plan, 0, "appearance", writing)))) + _RECORD_BYTES
    return Estimate(number, total_s / 3600, number * (float(np.mean(sizes)) + row_bytes) / 1e9, number / total_s)


_RECORD_BYTES = 142
"""of a line of pictures.csv"""


def regenerate(
    model: DGNet,
    folder: Path | str,
    file: str,
    *,
    data: Path | str | None = None,
    to: Path | str | None = None,
    overwrite: bool = False,
) -> np.ndarray:
    """One picture of a generated folder again from its manifest's row: pixels, uint8 RGB (H, W, 3).

    `data` is the dataset's folder if it has moved. `to` also writes the file, byte for byte as in the folder; where
    another machine or version rounds differently, or a parent has changed, that is said. An earlier picture of the same
    folder is replaced there, and with `overwrite` anything that is not read.

    Raises:
        ManifestError: no such folder or picture, or the model is not the one that made it.
        ImageError: a parent cannot be read.
        OutputError: `to` is a file of something else, or cannot be written.
    """
    card, rows = read_manifest(folder)
    number = next((number for number, row in enumerate(rows) if row["file"] == file), None)
    if number is None:
        raise ManifestError(f"{folder}: no picture {file} in its manifest; expected a name such as {rows[0]['file']}")
    if not model.is_made_from(card["checkpoint"]):
        raise ManifestError(
            f"{folder}: made by checkpoint {card['checkpoint']} (iteration {card['iteration']}), not by "
            f"{model.checkpoint_id} (iteration {model.iteration}); give that --run and --which-epoch"
        )
    root = Path(data if data is not None else card["data"])
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder, and the parents' pictures were there; give --data")
    parents = [root / rows[number]["structure"], root / rows[number]["appearance"]]
    writing = Writing(card["image_format"], card["quality"] or Writing.quality, levels=card.get("levels", "rounded"))
    painter = Painter(
        model, parents, runtime=Runtime(model.device, card["precision"]), workers=1, levels=writing.levels
    )
    pixels = next(painter.paint(np.array([[0, 1]])))
    content = writing.encoded(pixels)
    records = read_records(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    if number in records and sha256 not in {made.sha256 for made in records[number]}:
        logger.warning(
            "%s: not byte for byte what was written: another device, number of threads or version, or other parents",
            file,
        )
    if to is not None:
        elsewhere = Path(folder).resolve() not in Path(to).resolve().parents
        ours = {sha256, *(made.sha256 for several in records.values() if elsewhere for made in several)}

        def claim() -> None:
            claim_file(
                to,
                _REGENERATE,
                is_ours=lambda found: found.is_file() and file_fingerprint(found) in ours,
                inputs=[folder, *parents],
                suffixes=[".jpg", ".jpeg"] if writing.image_format == "jpg" else [writing.suffix],
                overwrite=overwrite,
            )

        claim()
        with locked(to, _REGENERATE), atomic_path(to) as part:
            claim()
            part.write_bytes(content)
    return pixels


_REGENERATE = "dgnet-gen regenerate"
