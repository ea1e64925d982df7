"""Similarities of pairs of pictures, as results: diversity within identities, fidelity between two folders.

    ssim_within_identity("fake", pairs=10, seed=0)    # MetricResult: diversity, not fidelity
    ssim_of_pairs("made", "truth")                    # MetricResult: fidelity

Diversity has no better direction: noise is more varied than people are, and a picture that shows nothing less. It is
read beside that of real pictures, and `beside_real` says how far from it.

The functions with `_job` take part in a pass that serves other metrics too: they give what is to be read, and a
function that makes the result when it has been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import reid_eval
from reid_eval.files import describe_images, list_images, passed_over_text
from reid_eval.lpips import Lpips
from reid_eval.one_pass import PairMeasure, PairValues, read_once
from reid_eval.pairs import IdentityPairs, NamedPairs, PairsError, identity_pairs, pairs_by_name
from reid_eval.report import MetricResult
from reid_eval.similarity import (
    DSSIM_LAB_PROTOCOL,
    SSIM_PROTOCOL,
    dssim_lab_of_batch,
    mean_psnr_db,
    psnr_of_batch,
    ssim_of_batch,
)

_PSNR_PROTOCOL = (
    "PSNR over all pixels and channels, 0..255, at native size; the mean is that of the pairs that differ, since the "
    "PSNR of equal pictures is infinite."
)


@dataclass(frozen=True)
class PairMetric:
    """A similarity: its name in results, how a batch of pairs is measured, and how that is said.

    `weights` has the SHA-256 of each weight file behind it, and `elsewhere` says which other number goes by the name.
    """

    name: str
    measure: PairMeasure
    protocol: str
    alike_is_higher: bool
    unit: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    elsewhere: str = ""


SSIM = PairMetric(
    "ssim",
    ssim_of_batch,
    SSIM_PROTOCOL,
    alike_is_higher=True,
    elsewhere="DG-Net's compute_market.py prints another number as SSIM: --preset dgnet-paper.",
)
PSNR = PairMetric("psnr", psnr_of_batch, _PSNR_PROTOCOL, alike_is_higher=True, unit="dB")
DSSIM_LAB = PairMetric(
    "dssim_lab",
    dssim_lab_of_batch,
    DSSIM_LAB_PROTOCOL,
    alike_is_higher=False,
    elsewhere="It is what DG-Net's compute_market.py prints as SSIM; scikit-image's SSIM is that without --preset.",
)


def lpips_metric(lpips: Lpips) -> PairMetric:
    """LPIPS with a network."""
    return PairMetric(lpips.name, lpips, f"{lpips.description}.", alike_is_higher=False, weights=lpips.weights)


@dataclass(frozen=True)
class PairJob:
    """Values to be read in a pass, the result to be made of them afterwards, and its name."""

    name: str
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
    """The mean over pairs within identities: how varied the pictures of a person are, which has no better direction.

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
        more_varied = "lower" if metric.alike_is_higher else "higher"
        sentences = [
            f"Mean over {said}: diversity, not fidelity; {more_varied} is more varied, and right is what real pictures "
            "have.",
            drawn.remarks,
            f"{values.num_resized} of {len(there)} pairs resized to equal size.",
            *_left_out(there, pictures),
            metric.protocol,
            metric.elsewhere,
            note,
        ]
        return MetricResult(
            name=full_name,
            value=value,
            higher_is_better=None,
            protocol=" ".join(sentence for sentence in sentences if sentence),
            made_by={
                "reid_eval": reid_eval.__version__,
                "how": _how(metric, how),
                "pictures": pictures,
                **({"interval": [min(means), max(means)]} if len(means) > 1 else {}),
            },
            unit=metric.unit,
        )

    return PairJob(full_name, values, result)


def beside_real(result: MetricResult, real: MetricResult) -> list[MetricResult]:
    """A diversity of generated pictures with its distance to that of real ones, and the latter."""
    apart = result.value - real.value
    said = f"Real pictures have {real.value:.4f}, so these are {abs(apart):.4f} {'above' if apart > 0 else 'below'} it."
    beside = {"value": real.value, "difference": apart, "pictures": real.made_by["pictures"]}
    return [
        replace(result, protocol=f"{result.protocol} {said}", made_by={**result.made_by, "beside_real": beside}),
        real,
    ]


def _how(metric: PairMetric, how: dict[str, Any]) -> dict[str, Any]:
    return {"measure": metric.protocol, **how, **({"weights": metric.weights} if metric.weights else {})}


def _left_out(there: np.ndarray, *pictures: dict[str, Any]) -> list[str]:
    """Sentences about pairs that could not be read, and files that were not taken for pictures."""
    unread = int((~there).sum())
    said = [f"{unread} pairs with an unreadable picture left out."] if unread else []
    others = [(side["folder"], side["passed_over"]) for side in pictures if side.get("passed_over")]
    return said + [passed_over_text(where, counts) for where, counts in others]


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
    full_name = name or f"{stem}_of_pairs{'_demo' * (stem != metric.name)}"

    def result() -> MetricResult:
        there = ~np.isnan(values.values)
        if not there.any():
            raise PairsError(f"{first} and {second}: of none of the {len(there)} pairs could both pictures be read")
        if metric is PSNR:
            value, num_equal = mean_psnr_db(values.values[there])
        else:
            value, num_equal = float(values.values[there].mean()), 0
        num_pairs = int(there.sum()) - (num_equal if math.isfinite(value) else 0)
        sentences = [
            f"Mean over {num_pairs} pairs of pictures {how['pairs']}: fidelity.",
            f"{num_equal} pairs are equal." if num_equal else "",
            f"{named.num_alone} pictures without a partner left out.",
            f"{values.num_resized} resized to equal size." if values.num_resized else "",
            *_left_out(there, *pictures),
            metric.protocol,
        ]
        return MetricResult(
            name=full_name,
            value=value,
            higher_is_better=metric.alike_is_higher,
            protocol=" ".join(sentence for sentence in sentences if sentence),
            made_by={
                "reid_eval": reid_eval.__version__,
                "how": _how(metric, how),
                "first": pictures[0],
                "second": pictures[1],
                **({"equal_pairs": num_equal} if metric is PSNR else {}),
            },
            unit=metric.unit,
        )

    return PairJob(full_name, values, result)


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

    This is diversity, not fidelity: right is what real pictures have (`beside_real`). See `within_identity` for what it
    raises. `name` names the result, when several sets of pictures are measured for one report:
    `ssim_within_identity_real`.
    """
    return within_identity(root, [SSIM], pairs=pairs, seed=seed, name=name)[0]


def ssim_of_pairs(first: Path | str, second: Path | str, *, name: str = "ssim_of_pairs") -> MetricResult:
    """Mean SSIM of the pictures that two folders hold under the same relative path: fidelity. See `of_pairs`."""
    return of_pairs(first, second, [SSIM], name=name)[0]
