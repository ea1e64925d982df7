"""Similarities of pairs of pictures, as results: diversity within identities, fidelity between two folders.

    ssim_within_identity("fake", pairs=10, seed=0)    # MetricResult: diversity, not fidelity
    ssim_of_pairs("made", "truth")                    # MetricResult: fidelity

The functions with `_job` take part in a pass that serves other metrics too: they give what is to be read, and a
function that makes the result when it has been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import reid_eval
from reid_eval.files import describe_images, list_images
from reid_eval.lpips import Lpips
from reid_eval.one_pass import PairMeasure, PairValues, read_once
from reid_eval.pairs import IdentityPairs, NamedPairs, PairsError, identity_pairs, pairs_by_name
from reid_eval.report import MetricResult
from reid_eval.similarity import (
    DSSIM_LAB_PROTOCOL,
    SSIM_PROTOCOL,
    dssim_lab_of_batch,
    psnr_of_batch,
    ssim_of_batch,
)

_PSNR_PROTOCOL = "PSNR over all pixels and channels, 0..255, at native size; infinite for equal pictures."


@dataclass(frozen=True)
class PairMetric:
    """A similarity: its name in results, how a batch of pairs is measured, and how that is said."""

    name: str
    measure: PairMeasure
    protocol: str
    alike_is_higher: bool
    unit: str = ""


SSIM = PairMetric("ssim", ssim_of_batch, SSIM_PROTOCOL, alike_is_higher=True)
PSNR = PairMetric("psnr", psnr_of_batch, _PSNR_PROTOCOL, alike_is_higher=True, unit="dB")
DSSIM_LAB = PairMetric("dssim_lab", dssim_lab_of_batch, DSSIM_LAB_PROTOCOL, alike_is_higher=False)


def lpips_metric(lpips: Lpips) -> PairMetric:
    """LPIPS with a network."""
    return PairMetric(lpips.name, lpips, f"{lpips.description}.", alike_is_higher=False)


@dataclass(frozen=True)
class PairJob:
    """Values to be read in a pass, and the result to be made of them afterwards."""

    values: PairValues
    result: Callable[[], MetricResult]


def within_identity_job(
    root: Path | str,
    drawn: IdentityPairs,
    metric: PairMetric,
    *,
    how: dict[str, Any],
    pictures: dict[str, Any],
    name: str = "",
    variant: str = "",
    note: str = "",
) -> PairJob:
    """The mean over pairs within identities: how varied the pictures of a person are.

    With several rounds the mean is taken over the rounds so far after each, and the result is the middle between the
    largest and the smallest of these means, with both as interval, as in the DG-Net paper.
    """
    values = PairValues(drawn.pairs, metric.measure, resize_second=True)
    stem = metric.name.removesuffix("_demo")
    parts = [f"{stem}_within_identity", variant, "" if stem == metric.name else "demo"]
    full_name = name or "_".join(part for part in parts if part)

    def result() -> MetricResult:
        there = ~np.isnan(values.values)
        if not there.any():
            raise PairsError(f"{root}: of none of its {len(values.values)} pairs could both pictures be read")
        rounds = np.array(drawn.round_of)
        means = [float(values.values[there & (rounds <= number)].mean()) for number in range(rounds.max() + 1)]
        value = (max(means) + min(means)) / 2
        said = f"{how['pairs']} random pairs of pictures in each of {drawn.num_folders} identity folders"
        said += f" (seed {how['seed']})"
        if len(means) > 1:
            said += f", {len(means)} rounds; middle of the largest and smallest mean so far"
        unread = int((~there).sum())
        return MetricResult(
            name=full_name,
            value=value,
            higher_is_better=not metric.alike_is_higher,
            protocol=(
                f"Mean over {said}: diversity, not fidelity. {drawn.remarks} {values.num_resized} of {len(there)} "
                "pairs "
                f"resized to equal size.{f' {unread} pairs with an unreadable picture left out.' * (unread > 0)} "
                f"{metric.protocol}{f' {note}' * bool(note)}"
            ),
            made_by={
                "reid_eval": reid_eval.__version__,
                "how": {"measure": metric.protocol, **how},
                "pictures": pictures,
                **({"interval": [min(means), max(means)]} if len(means) > 1 else {}),
            },
            unit=metric.unit,
        )

    return PairJob(values, result)


def of_pairs_job(
    first: Path | str,
    second: Path | str,
    named: NamedPairs,
    metric: PairMetric,
    *,
    resize: bool = False,
    how: dict[str, Any],
    pictures: tuple[dict[str, Any], dict[str, Any]],
    name: str = "",
) -> PairJob:
    """The mean over pairs of pictures of two folders: how close the first's are to the second's.

    With `resize`, the second picture of a pair of different sizes is resized to the first; without, that is an error.
    """
    values = PairValues(named.pairs, metric.measure, resize_second=resize)
    stem = metric.name.removesuffix("_demo")

    def result() -> MetricResult:
        there = ~np.isnan(values.values)
        if not there.any():
            raise PairsError(f"{first} and {second}: of none of the {len(there)} pairs could both pictures be read")
        unread = int((~there).sum())
        resized = f" {values.num_resized} resized to equal size." if values.num_resized else ""
        return MetricResult(
            name=name or f"{stem}_of_pairs{'_demo' * (stem != metric.name)}",
            value=float(values.values[there].mean()),
            higher_is_better=metric.alike_is_higher,
            protocol=(
                f"Mean over {int(there.sum())} pairs of pictures {how['pairs']}: fidelity. "
                f"{named.num_alone} pictures without a partner left out.{resized}"
                f"{f' {unread} pairs with an unreadable picture left out.' * (unread > 0)} {metric.protocol}"
            ),
            made_by={
                "reid_eval": reid_eval.__version__,
                "how": {"measure": metric.protocol, **how},
                "first": pictures[0],
                "second": pictures[1],
            },
            unit=metric.unit,
        )

    return PairJob(values, result)


def within_identity(
    root: Path | str,
    metrics: Sequence[PairMetric],
    *,
    pairs: int = 10,
    seed: int = 0,
    name: str = "",
    workers: int | None = None,
    strict: bool = True,
) -> list[MetricResult]:
    """`within_identity_job` of several metrics in a pass of their own.

    Raises:
        PairsError: no folder below `root` holds two pictures, or a number is out of its range.
        SimilarityError, LpipsError: a picture is too small.
        ImageError: there is no such folder, or, `strict`, a picture cannot be read.
    """
    root = Path(root)
    paths = list_images(root)
    drawn = identity_pairs(root, paths, pairs=pairs, seed=seed)
    how = {"pairs": pairs, "seed": seed}
    described = describe_images(root, paths)
    jobs = [within_identity_job(root, drawn, metric, how=how, pictures=described, name=name) for metric in metrics]
    read_once([job.values for job in jobs], workers=workers, strict=strict, what=f"pairs within {root}")
    return [job.result() for job in jobs]


def of_pairs(
    first: Path | str,
    second: Path | str,
    metrics: Sequence[PairMetric],
    *,
    named: NamedPairs | None = None,
    resize: bool = False,
    name: str = "",
    workers: int | None = None,
    strict: bool = True,
) -> list[MetricResult]:
    """`of_pairs_job` of several metrics in a pass of their own; pairs are those of equal relative path unless given.

    Raises:
        PairsError: no path is in both folders.
        SimilarityError, LpipsError: the two pictures of a pair differ in size, or are too small.
        ImageError: a folder is missing, or, `strict`, a picture cannot be read.
    """
    how = {"pairs": "named in a table" if named is not None else "with equal relative path", "resize": resize}
    named = named if named is not None else pairs_by_name(first, second)
    pictures = (describe_images(first, list_images(first)), describe_images(second, list_images(second)))
    jobs = [
        of_pairs_job(first, second, named, metric, resize=resize, how=how, pictures=pictures, name=name)
        for metric in metrics
    ]
    read_once([job.values for job in jobs], workers=workers, strict=strict, what="pairs")
    return [job.result() for job in jobs]


def ssim_within_identity(
    root: Path | str, *, pairs: int = 10, seed: int = 0, name: str = "ssim_within_identity"
) -> MetricResult:
    """Mean SSIM of random pairs of pictures inside each identity's folder: the lower, the more varied the pictures.

    This is diversity, not fidelity; see `within_identity` for what it raises. `name` names the result, when several
    sets of pictures are measured for one report: `ssim_within_identity_real`.
    """
    return within_identity(root, [SSIM], pairs=pairs, seed=seed, name=name)[0]


def ssim_of_pairs(first: Path | str, second: Path | str, *, name: str = "ssim_of_pairs") -> MetricResult:
    """Mean SSIM of the pictures that two folders hold under the same relative path: fidelity. See `of_pairs`."""
    return of_pairs(first, second, [SSIM], name=name)[0]
