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
from reid_eval.report import MetricResult
from reid_eval.similarity import psnr_db, ssim
from reid_models.data.generated import ManifestError, read_manifest
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import draw, load_toy_records
from reid_models.data.transforms import resize_pixels

ANSWERS = ("generated", "structure_unchanged", "appearance_unchanged")


@dataclass(frozen=True)
class SwapTruth:
    """Agreement with the truth: arrays (N, 3), a column for each of `ANSWERS`, a row for each picture."""

    files: list[str]
    psnr_db: np.ndarray
    ssim: np.ndarray
    made_by: dict[str, Any]
    data: str
    """hash of the true pictures: numbers are comparable if they are the same"""

    @property
    def gain_db(self) -> float:
        """Mean PSNR of the generated pictures above that of the better answer without a network."""
        generated, *unchanged = self.psnr_db.mean(axis=0)
        return float(generated - max(unchanged))

    def metrics(self) -> list[MetricResult]:
        """PSNR and SSIM of the three answers, and the gain."""
        protocol = (
            f"mean over {len(self.files)} swaps of {{}} against the picture drawn from the appearance and structure "
            "records of the parents, at the generated size"
        )
        results = []
        for column, answer in enumerate(ANSWERS):
            suffix = "" if answer == "generated" else f"_{answer}"
            for kind, values, unit in (("psnr_db", self.psnr_db, "dB"), ("ssim", self.ssim, "")):
                what = {"psnr_db": "PSNR (RGB, 8 bit)", "ssim": "SSIM (RGB, 7x7 uniform)"}[kind]
                value = float(values[:, column].mean())
                name = f"swap_truth_{kind}{suffix}"
                results.append(MetricResult(name, value, True, protocol.format(what), self._made_by(what), unit))
        gain = "PSNR of the generated pictures less that of the better unchanged parent"
        results.append(
            MetricResult("swap_truth_gain_db", self.gain_db, True, protocol.format(gain), self._made_by(gain), "dB")
        )
        return results

    def _made_by(self, measure: str) -> dict[str, Any]:
        return {**self.made_by, "how": {"measure": measure, "data": self.data, "swaps": len(self.files)}}

    def to_text(self) -> str:
        """A table for people."""
        lines = [f"{len(self.files)} swaps against the true picture", f"{'':24}{'PSNR':>10}{'SSIM':>9}"]
        for column, answer in enumerate(ANSWERS):
            psnr, structural = self.psnr_db[:, column].mean(), self.ssim[:, column].mean()
            lines.append(f"{answer.replace('_', ' '):24}{psnr:7.2f} dB{structural:9.3f}")
        lines.append(f"gain over the better unchanged parent: {self.gain_db:+.2f} dB")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object: the means and their maker."""
        values = {result.name: result.value for result in self.metrics()}
        return json.dumps({**values, "images": len(self.files), "made_by": self.made_by}, indent=2)


def swap_truth(generated: Path | str, toy: Path | str) -> SwapTruth:
    """Compare every picture of a generated folder with its truth.

    `toy` is the folder that `reid-models toy` made, with the parents' pictures and records.

    Raises:
        ManifestError: no manifest, or a picture of it is not there.
        ToyWorldError: the toy world does not know a parent.
    """
    generated = Path(generated)
    card, rows = read_manifest(generated)
    records = load_toy_records(toy)
    paths = {record.path.name: record.path for record in DatasetIndex.open(toy)}
    psnr, structural = np.zeros((len(rows), 3)), np.zeros((len(rows), 3))
    truths = []
    for number, row in enumerate(track(rows, "comparing with the truth")):
        file = generated / row["file"]
        if not file.is_file():
            raise ManifestError(
                f"{file}: named in the manifest but not there; run 'dgnet-gen generate' again to finish it"
            )
        made = read_pixels(file)
        image_hw = made.shape[:2]
        names = {kind: Path(row[kind]).name for kind in ("structure", "appearance")}
        truth = draw(records.appearance(names["appearance"]), records.structure(names["structure"]), image_hw)
        truths.append(fingerprint([row["structure"], row["appearance"], str(truth.shape), truth.tobytes()]))
        answers = [
            made,
            *(resize_pixels(read_pixels(paths[name]), image_hw) for name in names.values()),
        ]
        psnr[number] = [psnr_db(answer, truth) for answer in answers]
        structural[number] = [ssim(answer, truth) for answer in answers]
    made_by = {
        "dgnet_gen": dgnet_gen.__version__,
        "generated": str(generated),
        "checkpoint": card["checkpoint"],
        "iteration": card["iteration"],
        "seed": card["seed"],
        "toy": str(toy),
    }
    return SwapTruth([row["file"] for row in rows], psnr, structural, made_by, fingerprint(sorted(truths)))


def truth_sheet(generated: Path | str, toy: Path | str, *, columns: int = 8) -> np.ndarray:
    """Rows: structure, appearance, generated, truth; evenly chosen swaps across. uint8 (H, W, 3)."""
    generated = Path(generated)
    _, rows = read_manifest(generated)
    records = load_toy_records(toy)
    paths = {record.path.name: record.path for record in DatasetIndex.open(toy)}
    chosen = [rows[position] for position in np.linspace(0, len(rows) - 1, min(columns, len(rows))).round().astype(int)]
    strips = []
    for row in chosen:
        made = read_pixels(generated / row["file"])
        image_hw = made.shape[:2]
        names = {kind: Path(row[kind]).name for kind in ("structure", "appearance")}
        parents = [resize_pixels(read_pixels(paths[name]), image_hw) for name in names.values()]
        truth = draw(records.appearance(names["appearance"]), records.structure(names["structure"]), image_hw)
        strips.append(np.concatenate([*parents, made, truth], axis=0))
    return np.concatenate(strips, axis=1)
