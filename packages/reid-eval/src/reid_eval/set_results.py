"""Metrics of two sets of features, as results that say how they were made.

fid_result(real, fake)                # fid_inception
kid_results(real, fake)               # kid_inception, with its interval
prdc_results(real, fake)              # precision_inception, recall_..., density_..., coverage_...
identity_results(real, fake)          # identity_top1_reid, identity_similarity_reid

What a reader of a number has to know about its pictures ends its protocol, and stands in `made_by["remarks"]`;
`log_remarks` warns of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

import reid_eval
from reid_eval.distances import unit_length
from reid_eval.feature_sets import FeatureSet, FeatureSetError, Maker, frechet_of_sets, refuse_unlike
from reid_eval.files import passed_over_text
from reid_eval.frechet import StatisticsError
from reid_eval.kid import kid, kid_subsets
from reid_eval.prdc import DENSITY_K, PRECISION_K, prdc
from reid_eval.report import MetricResult

logger = logging.getLogger(__name__)

_ROWS = 1024

# The numbers that each metric of two sets gives.
SET_METRICS = {
    "fid": ("fid",),
    "kid": ("kid",),
    "prdc": ("precision", "recall", "density", "coverage"),
    "identity": ("identity_top1", "identity_similarity", "identity_margin"),
}


def result_name(metric: str, real: Maker, fake: Maker, *, variant: str = "") -> str:
    """What a number in the features of these makers is called: `fid_inception`, `fid_random_demo`, `kid_reid_subsets`.

    A statistics file need not say what made it; then the other side does.
    """
    described = real if real.extractor or not fake.extractor else fake
    extractor = described.name.partition(":")[0].removesuffix("_demo") or "unknown"
    is_demo = not (real.quotable and fake.quotable)
    return "_".join(part for part in (metric, extractor, variant, "demo" if is_demo else "") if part)


def fid_result(real: FeatureSet, fake: FeatureSet, *, variant: str = "", note: str = "") -> MetricResult:
    """The squared Frechet distance, `fid_<extractor>_<variant>`; `note` is what the variant's protocol has to say.

    Raises:
        FeatureSetError: the sets were made by different extractors.
        StatisticsError: a set has fewer than two pictures, or its statistics are no mean and covariance.
    """
    found = frechet_of_sets(real, fake)
    remarks = [*found.remarks, *_remarks(real, fake)]
    counts = [side.count for side in (real, fake) if side.count is not None]
    if counts and min(counts) <= real.num_features:
        remarks.insert(
            0,
            f"With {min(counts)} pictures for {real.num_features} features the covariance is singular and the value "
            "too high: "
            "compare it only with values from as many pictures, or use KID, which has no such bias.",
        )
    if len(counts) == 2 and max(counts) > 1.1 * min(counts):
        remarks.append(f"The sides differ in size ({counts[0]} and {counts[1]}); the bias depends on it.")
    what = "Squared Frechet distance"
    return _result("fid", found.value, False, what, real, fake, remarks, variant=variant, note=note)


def kid_results(
    real: FeatureSet, fake: FeatureSet, *, subsets: int | None = None, subset_size: int = 1000, seed: int = 2020
) -> list[MetricResult]:
    """The kernel distance over all pictures with a 95 % interval, or, with `subsets`, as mean over random subsets.

    Raises:
        FeatureSetError: the sets were made by different extractors, or a file has no features.
        StatisticsError: a set has too few pictures.
    """
    x, y = _features(real, fake, "KID")
    if subsets is None:
        found = kid(x, y)
        what = "Kernel Inception distance, polynomial kernel of degree 3, unbiased, over all pictures; interval of 95 %"
        value, low, high, how = found.value, found.low, found.high, {"kernel": "(x.y / D + 1)^3", "pairs": "all"}
        variant = ""
    else:
        value, deviation = kid_subsets(y, x, subsets=subsets, subset_size=subset_size, seed=seed)
        what = (
            f"Kernel Inception distance, polynomial kernel of degree 3, mean over {subsets} random subsets of "
            f"{subset_size} "
            f"pictures (seed {seed}, torch-fidelity's draws with the generated set first); interval of one deviation"
        )
        how = {"kernel": "(x.y / D + 1)^3", "pairs": f"{subsets} subsets of {subset_size}, seed {seed}"}
        low, high, variant = value - deviation, value + deviation, "subsets"
    remarks = _remarks(real, fake)
    result = _result("kid", value, False, what, real, fake, remarks, how=how, variant=variant, interval=(low, high))
    return [result]


def prdc_results(
    real: FeatureSet, fake: FeatureSet, *, k: int = PRECISION_K, density_k: int = DENSITY_K
) -> list[MetricResult]:
    """Improved precision and recall, density and coverage.

    Raises:
        FeatureSetError: the sets were made by different extractors, or a file has no features.
        StatisticsError: a set has too few pictures for so many neighbours.
    """
    found = prdc(*_features(real, fake, "precision and recall"), k=k, density_k=density_k)
    ball = f"ball that reaches to its neighbour number {k}, border inside"
    open_ball = f"ball that reaches to its neighbour number {density_k}, border outside"
    said = {
        "precision": f"Share of generated pictures inside some real picture's {ball}",
        "recall": f"Share of real pictures inside some generated picture's {ball}",
        "density": f"Number of real pictures in whose {open_ball}, a generated picture lies, divided by {density_k}",
        "coverage": f"Share of real pictures in whose {open_ball}, a generated picture lies",
    }
    remarks = _remarks(real, fake)
    return [
        _result(
            name,
            getattr(found, name),
            True,
            text,
            real,
            fake,
            remarks,
            how={"k": k if name in ("precision", "recall") else density_k},
        )
        for name, text in said.items()
    ]


def identity_results(real: FeatureSet, fake: FeatureSet) -> list[MetricResult]:
    """Does a re-ID network see the appearance's identity in a generated picture? Top-1 and mean similarity.

    A generated picture's identity is the one its folder or file name says. `identity_top1` is the share of generated
    pictures whose most similar real picture (cosine) has their identity; `identity_similarity` is the mean, over
    generated pictures, of the mean cosine to the real pictures of their identity; `identity_margin` is that less the
    same with the most similar other identity. Pictures of an identity without a real picture are left out and
    counted.

    Raises:
        FeatureSetError: the sets were made by different extractors, or no generated picture has a real identity.
    """
    x, y = _features(real, fake, "identity consistency")
    for side, vectors in ((real, x), (fake, y)):
        if len(side.files) != len(vectors):
            raise FeatureSetError(
                f"{side.where}: does not name the pictures of its {len(vectors)} features, and names hold the "
                "identities; give the folder"
            )
        if len(zeros := np.flatnonzero(~vectors.any(axis=1))):
            raise StatisticsError(
                f"{side.where}: {side.files[zeros[0]]}: a vector of zeros, which has no direction to compare"
            )
    if (x == x[0]).all():
        raise StatisticsError(f"{real.where}: all vectors are equal, so no identity can be told by them")
    real_ids, fake_ids = (np.array([identity_of(file) for file in side.files]) for side in (real, fake))
    known, real_rows = np.unique(real_ids, return_inverse=True)
    has_real = np.isin(fake_ids, known)
    if not has_real.any() or len(known) < 2:
        raise FeatureSetError(
            f"{fake.where}: none of its identities ({', '.join(np.unique(fake_ids)[:3])}, ...) is among the "
            f"{len(known)} of "
            f"{real.where}; expected a folder per identity, or file names such as 0002_c1s1_000451_03.jpg, on both "
            "sides"
        )
    x, y, own = unit_length(x), unit_length(y[has_real]), np.searchsorted(known, fake_ids[has_real])
    counts = np.bincount(real_rows)
    is_right, similarity, margin = [], [], []
    centres = np.zeros((len(known), x.shape[1]))
    np.add.at(centres, real_rows, x.astype(np.float64))
    centres /= counts[:, None]
    for start in range(0, len(y), _ROWS):
        some, mine = y[start : start + _ROWS].astype(np.float64), own[start : start + _ROWS]
        is_right.append(real_rows[np.argmax(some @ x.T.astype(np.float64), axis=1)] == mine)
        mean_cosine = some @ centres.T  # the mean of the cosines, as vectors have length 1
        rows = np.arange(len(some))
        similarity.append(mean_cosine[rows, mine])
        others = mean_cosine.copy()
        others[rows, mine] = -np.inf
        margin.append(similarity[-1] - others.max(axis=1))
    left = int((~has_real).sum())
    remarks = _remarks(real, fake)
    if left:
        remarks.append(f"{left} generated pictures of identities without a real picture left out.")
    said = {
        "identity_top1": ("Share of generated pictures whose most similar real picture has their identity", is_right),
        "identity_similarity": (
            "Mean cosine between a generated picture and the real ones of its identity",
            similarity,
        ),
        "identity_margin": (
            "Mean cosine between a generated picture and the real ones of its identity, less that to the ones of the "
            "most similar other identity",
            margin,
        ),
    }
    return [
        _result(name, float(np.concatenate(values).mean()), True, text, real, fake, remarks)
        for name, (text, values) in said.items()
    ]


def log_remarks(results: Iterable[MetricResult]) -> None:
    """Warn of what a reader of these numbers has to know, of each thing once."""
    for remark in dict.fromkeys(remark for result in results for remark in result.made_by.get("remarks", ())):
        logger.warning("%s", remark)


def identity_of(file: str) -> str:
    """The identity in a relative path: the number before _c in the file name's beginning, else the folder's name.

    Leading zeros do not count. A generated picture's folder comes first, since its name may begin with another's.
    """
    path = PurePosixPath(file)
    folder = path.parent.name
    match = re.match(r"-?\d+", folder) or re.match(r"(-?\d+)(?=_)", path.name)
    text = match[0] if match else folder
    return str(int(text)) if match else text


def _features(real: FeatureSet, fake: FeatureSet, what: str) -> tuple[np.ndarray, np.ndarray]:
    refuse_unlike(real, fake)
    sides = real.needed_features(what), fake.needed_features(what)
    for side, features in zip((real, fake), sides, strict=True):
        if not np.isfinite(features).all():
            raise StatisticsError(f"{side.where}: features that are not finite; are the extractor's weights damaged?")
    return sides


def _result(
    metric: str,
    value: float,
    higher_is_better: bool,
    what: str,
    real: FeatureSet,
    fake: FeatureSet,
    remarks: list[str],
    *,
    how: dict[str, Any] | None = None,
    variant: str = "",
    note: str = "",
    interval: tuple[float, float] | None = None,
) -> MetricResult:
    described = next((side for side in (real, fake) if side.extractor), real)
    weights = {**fake.weights, **real.weights}
    trusted = [side.where for side in (real, fake) if not side.extractor]
    if trusted:
        remarks = [*remarks, f"{' and '.join(trusted)} does not say what made it and is taken on trust."]
    counts = ["an unknown number of" if side.count is None else side.count for side in (real, fake)]
    return MetricResult(
        name=result_name(metric, real.maker, fake.maker, variant=variant),
        value=value,
        higher_is_better=higher_is_better,
        protocol=" ".join(
            [
                f"{what}.",
                f"Pictures: {counts[0]} real, {counts[1]} generated.",
                f"Features: {described.extractor or f'{described.num_features}, of an unknown extractor'}.",
                *([note] if note else []),
                *remarks,
            ]
        ),
        made_by={
            "reid_eval": reid_eval.__version__,
            "extractor": described.name,
            "how": {"features": described.extractor, **(how or {}), **({"weights": weights} if weights else {})},
            "real": real.pictures,
            "fake": fake.pictures,
            **({"interval": list(interval)} if interval else {}),
            **({"remarks": list(remarks)} if remarks else {}),
        },
    )


def _remarks(real: FeatureSet, fake: FeatureSet) -> list[str]:
    """What a reader of the number has to know about the pictures."""
    remarks = []
    for what, text in (("codecs", "codecs"), ("sizes", "native sizes")):
        sides = [side.pictures.get(what) for side in (real, fake)]
        if all(sides) and set(sides[0]) != set(sides[1]):  # type: ignore[arg-type]
            first, second = (_most(side) for side in sides)  # type: ignore[arg-type]
            remarks.append(f"The sides differ in {text} ({first} and {second}), which alone moves the value.")
    for side, which in ((real, "real"), (fake, "generated")):
        for key, text in (
            ("unreadable", "could not be read and are left out"),
            ("animated", "are animations, of which the first frame counts"),
            ("rotated", "ask for a rotation (Exif) that is not applied"),
            ("transparent", "have transparency, which is dropped"),
        ):
            if number := side.pictures.get(key):
                remarks.append(f"{number} {which} pictures {text}.")
        if others := side.pictures.get("passed_over"):
            remarks.append(passed_over_text(side.pictures.get("folder", side.where), others))
    return remarks


def _most(counts: dict[str, int]) -> str:
    """The commonest names."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
