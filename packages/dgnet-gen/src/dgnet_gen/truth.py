"""How close generated swaps are to the true picture, which the toy world can draw.

For a picture with the appearance of j and the structure of i the truth is `draw(appearance_j, structure_i)`. Two
answers that need no network are measured beside it: returning the structure picture unchanged, and returning the
appearance picture unchanged. A generator that does not beat both has learned nothing about swapping.

    report = swap_truth("runs/demo/fake", "runs/demo/toy")
    report.gain_db        # dB above the better of the two
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dgnet_gen
from reid_eval.files import fingerprint, read_pixels
from reid_eval.progress import track
from reid_eval.reading import reading
from reid_eval.report import MetricResult
from reid_eval.similarity import psnr_db, ssim
from reid_models.data.generated import read_manifest, refuse_faulty_pictures
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import RECORDS_FILE, ToyWorldError, draw, load_toy_records
from reid_models.data.transforms import resize_pixels

ANSWERS = ("generated", "structure_unchanged", "appearance_unchanged")

_SUFFIXES = dict(zip(ANSWERS, ("", "_structure_unchanged", "_appearance_unchanged"), strict=True))

METRIC_NAMES = (
    *(f"swap_truth_{kind}{suffix}" for suffix in _SUFFIXES.values() for kind in ("psnr_db", "ssim")),
    "swap_truth_gain_db",
)
"""of all that `SwapTruth.metrics` gives"""


@dataclass(frozen=True)
class SwapTruth:
    """Agreement with the truth: arrays (N, 3), a column for each of `ANSWERS`, a row for each picture."""

    files: list[str]
    psnr_db: np.ndarray
    ssim: np.ndarray
    made_by: dict[str, Any]

    def mean_psnr_db(self, answer: str) -> float:
        """Mean PSNR of an answer; pictures equal to the truth, which have none, are left out unless all are."""
        values = self.psnr_db[:, ANSWERS.index(answer)]
        finite = values[np.isfinite(values)]
        return float(finite.mean()) if finite.size else np.inf

    def num_equal(self, answer: str) -> int:
        """How many pictures of an answer are equal to the truth."""
        return int(np.isinf(self.psnr_db[:, ANSWERS.index(answer)]).sum())

    @property
    def gain_db(self) -> float:
        """Mean PSNR of the generated pictures above that of the better answer without a network."""
        generated, *unchanged = map(self.mean_psnr_db, ANSWERS)
        return 0.0 if generated == max(unchanged) else generated - max(unchanged)

    def metrics(self) -> list[MetricResult]:
        """PSNR and SSIM of the three answers, and the gain."""

        def result(name: str, value: float, what: str, equal: int = 0, unit: str = "") -> MetricResult:
            protocol = (
                f"mean over {len(self.files)} swaps of {what} against the picture drawn from the appearance and "
                "structure records of the parents, at the generated size"
            )
            left_out = f"; pictures equal to the truth, left out: {equal}" if equal else ""
            made_by = self.made_by | {"how": {"measure": what, **self.made_by["how"]}}
            return MetricResult(name, value, True, protocol + left_out, made_by, unit)

        results = []
        for column, answer in enumerate(ANSWERS):
            suffix, equal = _SUFFIXES[answer], self.num_equal(answer)
            psnr = self.mean_psnr_db(answer)
            results += [
                result(f"swap_truth_psnr_db{suffix}", psnr, "PSNR (RGB, 8 bit)", equal, "dB"),
                result(f"swap_truth_ssim{suffix}", float(self.ssim[:, column].mean()), "SSIM (RGB, 7x7 uniform)"),
            ]
        gain = "PSNR of the generated pictures less that of the better unchanged parent"
        return [*results, result("swap_truth_gain_db", self.gain_db, gain, unit="dB")]

    def to_text(self) -> str:
        """A table for people."""
        lines = [f"{len(self.files)} swaps against the true picture", f"{'':24}{'PSNR':>10}{'SSIM':>9}"]
        for column, answer in enumerate(ANSWERS):
            equal = self.num_equal(answer)
            lines.append(
                f"{answer.replace('_', ' '):24}{self.mean_psnr_db(answer):7.2f} dB{self.ssim[:, column].mean():9.3f}"
                + (f"   {equal} equal to the truth" if equal else "")
            )
        lines.append(f"gain over the better unchanged parent: {self.gain_db:+.2f} dB")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object: the means and their maker."""
        values = {result.name: result.value for result in self.metrics()}
        return json.dumps({**values, "images": len(self.files), "made_by": self.made_by}, indent=2)


class _World:
    """What a toy dataset knows of its pictures."""

    def __init__(self, toy: Path | str) -> None:
        self.file = Path(toy) / RECORDS_FILE
        with self._reading():
            self._records = load_toy_records(toy)
        self._paths = {record.path.name: record.path for record in DatasetIndex.open(toy)}

    def _reading(self) -> Any:
        return reading(self.file, ToyWorldError, "the records that 'reid-models toy' wrote", remedy="draw it again")

    def truth(self, row: dict[str, Any], image_hw: tuple[int, int]) -> np.ndarray:
        """The true picture of a manifest's row."""
        with self._reading():
            look, pose = self._records.appearance(row["appearance"]), self._records.structure(row["structure"])
            return draw(look, pose, image_hw)

    def parent(self, name: str, image_hw: tuple[int, int]) -> np.ndarray:
        """A picture of the dataset at the generated size."""
        path = self._paths.get(Path(name).name)
        if path is None:
            raise ToyWorldError(f"{self.file.parent}: no picture {Path(name).name}, a parent of the generated ones")
        return resize_pixels(read_pixels(path), image_hw)


def swap_truth(generated: Path | str, toy: Path | str) -> SwapTruth:
    """Compare every picture of a generated folder with its truth.

    `toy` is the folder that `reid-models toy` made, with the parents' pictures and records.

    Raises:
        ManifestError: no manifest, or a picture of it is not there or not as it was made.
        ToyWorldError: the toy world does not know a parent.
    """
    generated = Path(generated)
    card, rows = read_manifest(generated)
    world = _World(toy)
    refuse_faulty_pictures(generated, card, rows)
    psnr, structural = np.zeros((len(rows), 3)), np.zeros((len(rows), 3))
    truths = []
    for number, row in enumerate(track(rows, "comparing with the truth")):
        made = read_pixels(generated / row["file"])
        image_hw = (made.shape[0], made.shape[1])
        truth = world.truth(row, image_hw)
        truths.append(fingerprint([row["structure"], row["appearance"], truth.tobytes()]))
        answers = [made, *(world.parent(row[kind], image_hw) for kind in ("structure", "appearance"))]
        psnr[number] = [psnr_db(answer, truth) for answer in answers]
        structural[number] = [ssim(answer, truth) for answer in answers]
    made_by = {
        "dgnet_gen": dgnet_gen.__version__,
        "generated": str(generated),
        "checkpoint": card["checkpoint"],
        "iteration": card["iteration"],
        "seed": card["seed"],
        "toy": str(toy),
        "how": {"data": fingerprint(sorted(truths), digits=64), "swaps": len(rows), "image_hw": card["image_hw"]},
    }
    return SwapTruth([row["file"] for row in rows], psnr, structural, made_by)


def truth_sheet(generated: Path | str, toy: Path | str, *, columns: int = 8) -> np.ndarray:
    """Rows: structure, appearance, generated, truth; evenly chosen swaps across. uint8 (H, W, 3)."""
    generated = Path(generated)
    _, rows = read_manifest(generated)
    world = _World(toy)
    chosen = [rows[position] for position in np.linspace(0, len(rows) - 1, min(columns, len(rows))).round().astype(int)]
    strips = []
    for row in chosen:
        made = read_pixels(generated / row["file"])
        image_hw = (made.shape[0], made.shape[1])
        parents = [world.parent(row[kind], image_hw) for kind in ("structure", "appearance")]
        strips.append(np.concatenate([*parents, made, world.truth(row, image_hw)], axis=0))
    return np.concatenate(strips, axis=1)
