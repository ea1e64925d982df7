"""Every picture metric of two sets of pictures in one pass: each file is decoded once, each feature computed once.

    measure_images("real", "fake", extractor=extractor_from_name("inception"), metrics=("fid", "kid", "prdc", "ssim"))
    fid("real", "fake", extractor_from_name("reid:runs/teacher"))      # the Frechet distance alone

With a cache folder, features are kept by the content of the pictures and of the extractor, and whole answers by
everything that they depend on, so that the same question is answered without decoding a picture.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.extractors import Extractor
from reid_eval.feature_sets import FeatureSet, FeatureSetError
from reid_eval.files import describe_images, fingerprint, list_images, write_text
from reid_eval.frechet import StatisticsError
from reid_eval.lpips import Lpips
from reid_eval.one_pass import FeaturesOf, Measure, Reading, read_once
from reid_eval.pair_results import (
    DSSIM_LAB,
    PSNR,
    SSIM,
    PairJob,
    PairMetric,
    lpips_metric,
    of_pairs_job,
    within_identity_job,
)
from reid_eval.pairs import NamedPairs, PairsError, identity_pairs, pairs_by_name, pairs_from_table
from reid_eval.report import MetricResult
from reid_eval.set_results import fid_result, identity_results, kid_results, log_remarks, prdc_results

logger = logging.getLogger(__name__)

Metric = Literal["fid", "kid", "prdc", "ssim", "lpips", "identity", "pairs"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_OF_FEATURES = ("fid", "kid", "prdc")
_CACHE_FORMAT = 2

DGNET_IMAGES = 12_936


@dataclass(frozen=True)
class Protocol:
    """How pictures are chosen and paired.

    `max_images` takes a seeded part of a side that has more. `rounds` and `dssim_lab` are the DG-Net paper's: pairs
    are drawn in so many rounds, and compared by (1 - SSIM) / 2 in Lab colours instead of SSIM. `kid_subsets` asks for
    torch-fidelity's KID. `variant` ends the names of these results, and `note` their protocols.
    """

    pairs: int = 10
    rounds: int = 1
    seed: int = 0
    max_images: int | None = None
    dssim_lab: bool = False
    variant: str = ""
    note: str = ""
    kid_subsets: int | None = None
    kid_subset_size: int = 1000
    resize_pairs: bool = False


DGNET_PAPER = Protocol(
    pairs=10,
    rounds=5,
    seed=10,
    max_images=DGNET_IMAGES,
    dssim_lab=True,
    variant="dgnet",
    note=(
        "As in the DG-Net paper, except that files are sorted, pictures and pairs drawn with a seed, and no incomplete "
        "last batch dropped."
    ),
)
"""The DG-Net paper's sets, pairs and rounds; the extractor has to be Inception with the resize rule dgnet."""


@dataclass(frozen=True)
class _Side:
    """A folder of pictures or a statistics file, with its content's hash."""

    where: Path
    paths: tuple[Path, ...]
    described: dict[str, Any]
    stored: FeatureSet | None = None

    def folder(self, what: str) -> Path:
        if self.stored is not None:
            raise FeatureSetError(
                f"{self.where}: is a statistics file, and {what} needs the pictures; give their folder"
            )
        return self.where


def measure_images(
    real: Path | str | None,
    fake: Path | str,
    *,
    metrics: Sequence[Metric],
    extractor: Extractor | None = None,
    reid: Extractor | None = None,
    lpips: Lpips | None = None,
    pairs_file: Path | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 50,
    workers: int | None = None,
    strict: bool = True,
    cache: Path | None = None,
) -> list[MetricResult]:
    """The asked metrics of generated pictures `fake`, against `real` where they compare.

    Both are folders, or statistics files for what can be made of these. `fid`, `kid`, `prdc` need `extractor`;
    `identity` needs `reid`; `lpips` needs `lpips`. `ssim` and `lpips` are diversity within the identities' folders,
    of both sides if both are folders of identities. `pairs` is fidelity, SSIM, PSNR and, with `lpips`, LPIPS of
    pictures of equal relative path or in the rows of `pairs_file`, whose columns first and second are generated and
    real.

    Raises:
        ImageError: a folder is missing, or, `strict`, a picture cannot be read.
        StatisticsError, FeatureSetError, PairsError: the pictures do not give a number that was asked for.
    """
    how = protocol or Protocol()
    if batch_size < 1:
        raise StatisticsError(f"batch size {batch_size}: expected at least 1")
    wants_sets = any(metric in metrics for metric in (*_OF_FEATURES, "identity"))
    sides = [_side(fake, needs_two=wants_sets)]
    if real is not None:
        sides.insert(0, _side(real, needs_two=wants_sets))
    asked = {
        "format": _CACHE_FORMAT,
        "reid_eval": reid_eval.__version__,
        "sides": [side.described for side in sides],
        "metrics": sorted(metrics),
        "extractor": extractor.fingerprint if extractor is not None else "",
        "reid": reid.fingerprint if reid is not None else "",
        "lpips": lpips.fingerprint if lpips is not None else "",
        "pairs_file": pairs_file.read_text(encoding="utf-8", errors="replace")
        if pairs_file and pairs_file.is_file()
        else "",
        "protocol": asdict(how),
        "strict": strict,
    }
    answer = _Answer(cache, fingerprint([json.dumps(asked, sort_keys=True)]))
    if (known := answer.load()) is not None:
        return known
    work = _Work(how, batch_size, cache)
    if real is not None:
        _plan_sets(work, sides[0], sides[1], metrics, extractor, reid)
    diversity = [DSSIM_LAB if how.dssim_lab else SSIM] if "ssim" in metrics else []
    if "lpips" in metrics and lpips is not None:
        diversity.append(lpips_metric(lpips))
    _plan_diversity(work, sides, diversity)
    if "pairs" in metrics and real is not None:
        fidelity = [SSIM, PSNR, *([lpips_metric(lpips)] if lpips is not None else [])]
        _plan_pairs(work, sides[0], sides[1], fidelity, pairs_file)
    results = work.run([side for side in sides if side.stored is None], workers=workers, strict=strict)
    answer.save(results)
    return results


def fid(
    real: Path | str, fake: Path | str, extractor: Extractor, *, batch_size: int = 50, strict: bool = True
) -> MetricResult:
    """The Frechet distance between two folders of pictures (or statistics files), as `fid_<extractor>`; warns of what
    makes it incomparable. See `measure_images`.
    """
    results = measure_images(real, fake, metrics=["fid"], extractor=extractor, batch_size=batch_size, strict=strict)
    log_remarks(results)
    return results[0]


def feature_set(
    folder: Path | str,
    extractor: Extractor,
    *,
    batch_size: int = 50,
    workers: int | None = None,
    strict: bool = True,
    cache: Path | None = None,
) -> FeatureSet:
    """The features of all pictures below a folder, at any depth.

    Raises:
        ImageError: there is no such folder, or, `strict`, a picture cannot be read.
        StatisticsError: there are fewer than two pictures.
    """
    work = _Work(Protocol(), batch_size, cache)
    side = _side(folder, needs_two=True)
    made = work.features(side, extractor)
    work.read([side], workers=workers, strict=strict)
    return made()


def pictures_below(folder: Path | str) -> list[Path]:
    """All pictures below a folder, at any depth, at least the two that a covariance needs.

    Raises:
        ImageError: there is no such folder.
        StatisticsError: there are fewer than two pictures.
    """
    paths = list_images(folder)
    if len(paths) < 2:
        raise StatisticsError(
            f"{folder}: {len(paths)} pictures below it, a Frechet distance needs at least 2 on each side"
        )
    return paths


def refuse_missing(places: Sequence[Path | str], metrics: Sequence[Metric]) -> None:
    """Say early what would stop `measure_images` late: a missing folder or file, or too few pictures.

    Raises:
        ImageError, StatisticsError, FeatureSetError: a place is not what is needed.
    """
    for place in map(Path, places):
        if place.suffix.lower() == ".npz" and not place.is_dir():
            FeatureSet.load(place)
        elif any(metric in metrics for metric in (*_OF_FEATURES, "identity")):
            pictures_below(place)
        else:
            list_images(place)


def _side(where: Path | str, *, needs_two: bool) -> _Side:
    where = Path(where)
    if where.suffix.lower() == ".npz" and not where.is_dir():
        stored = FeatureSet.load(where)
        content = fingerprint([stored.mean.tobytes(), stored.covariance.tobytes()])
        return _Side(where, (), {"folder": str(where), "fingerprint": content}, stored)
    paths = pictures_below(where) if needs_two else list_images(where)
    return _Side(where, tuple(paths), dict(describe_images(where, paths)))


def _plan_sets(
    work: _Work,
    real: _Side,
    fake: _Side,
    metrics: Sequence[Metric],
    extractor: Extractor | None,
    reid: Extractor | None,
) -> None:
    if extractor is not None and any(metric in metrics for metric in _OF_FEATURES):
        sets = [work.features(side, extractor) for side in (real, fake)]

        def of_sets() -> list[MetricResult]:
            first, second = (made() for made in sets)
            found = []
            if "fid" in metrics:
                found.append(fid_result(first, second, variant=work.how.variant, note=work.how.note))
            if "kid" in metrics:
                found += kid_results(first, second, subsets=work.how.kid_subsets, subset_size=work.how.kid_subset_size)
            if "prdc" in metrics:
                found += prdc_results(first, second)
            return found

        work.results.append(of_sets)
    if reid is not None and "identity" in metrics:
        seen = [work.features(side, reid) for side in (real, fake)]
        work.results.append(lambda: identity_results(*(made() for made in seen)))


def _plan_diversity(work: _Work, sides: Sequence[_Side], metrics: Sequence[PairMetric]) -> None:
    how = work.how
    for side in reversed(sides if metrics else ()):  # the generated side first
        is_reference = side is not sides[-1]
        try:
            root = side.folder("diversity within identities")
            drawn = identity_pairs(root, side.paths, pairs=how.pairs, seed=how.seed, rounds=how.rounds)
        except (PairsError, FeatureSetError) as error:
            if not is_reference:
                raise
            logger.warning("no diversity of the real side for comparison: %s", error)
            continue
        settings = {"pairs": how.pairs, "rounds": how.rounds, "seed": how.seed}
        variant = "_".join(part for part in (how.variant, "real" if is_reference else "") if part)
        for metric in metrics:
            work.add_pairs(
                within_identity_job(
                    root, drawn, metric, how=settings, pictures=side.described, variant=variant, note=how.note
                )
            )


def _plan_pairs(work: _Work, real: _Side, fake: _Side, metrics: Sequence[PairMetric], pairs_file: Path | None) -> None:
    first, second = (side.folder("similarity of pairs") for side in (fake, real))
    named: NamedPairs = (
        pairs_from_table(pairs_file, first, second) if pairs_file is not None else pairs_by_name(first, second)
    )
    settings = {
        "pairs": "named in a table" if pairs_file is not None else "with equal relative path",
        "resize": work.how.resize_pairs,
    }
    for metric in metrics:
        work.add_pairs(
            of_pairs_job(
                first,
                second,
                named,
                metric,
                resize=work.how.resize_pairs,
                how=settings,
                pictures=(fake.described, real.described),
            )
        )


class _Work:
    """What one pass has to read, and what is to be made of it afterwards."""

    def __init__(self, how: Protocol, batch_size: int, cache: Path | None) -> None:
        self.how, self.batch_size, self.cache = how, batch_size, cache
        self.measures: list[Measure] = []
        self.results: list[Callable[[], list[MetricResult]]] = []
        self._readings: dict[Path, Reading] = {}

    def add_pairs(self, job: PairJob) -> None:
        self.measures.append(job.values)
        self.results.append(lambda: [job.result()])

    def features(self, side: _Side, extractor: Extractor) -> Callable[[], FeatureSet]:
        """Have a side's features computed, unless they are known; the function gives them once the pass is over."""
        if side.stored is not None:
            stored = side.stored
            if stored.extractor and stored.extractor != extractor.description:
                raise FeatureSetError(
                    f"{side.where}: made by {stored.extractor}; asked for was {extractor.description}; "
                    "give the folder, or ask for the same extractor"
                )
            return lambda: stored
        paths = self._chosen(side.paths)
        key = fingerprint(
            [
                str(_CACHE_FORMAT),
                str(side.described["fingerprint"]),
                extractor.fingerprint,
                str(self.how.max_images),
                str(self.how.seed),
            ]
        )
        kept = self.cache / "features" / f"{key}.npz" if self.cache is not None else None
        if kept is not None and kept.is_file():
            try:
                known = FeatureSet.load(kept)
                return lambda: replace(known, pictures={**known.pictures, "folder": str(side.where)})
            except ReidError as error:
                logger.warning("computed again: %s", error)
        measure = FeaturesOf(paths, extractor, batch_size=self.batch_size)
        self.measures.append(measure)
        made: list[FeatureSet] = []

        def result() -> FeatureSet:
            if not made:
                made.append(self._feature_set(side, extractor, measure))
                if kept is not None:
                    made[0].save(kept)
            return made[0]

        return result

    def _chosen(self, paths: Sequence[Path]) -> list[Path]:
        limit = self.how.max_images
        if limit is None or len(paths) <= limit:
            return list(paths)
        rows = np.random.default_rng(self.how.seed).choice(len(paths), limit, replace=False)
        return [paths[row] for row in sorted(rows)]

    def _feature_set(self, side: _Side, extractor: Extractor, measure: FeaturesOf) -> FeatureSet:
        vectors, read = measure.vectors, measure.read_paths
        reading = self._readings[side.where]
        if len(vectors) < 2:
            raise StatisticsError(
                f"{side.where}: {len(vectors)} of {len(side.paths)} pictures could be read, and at least 2 are "
                "needed on "
                "each side"
            )
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise StatisticsError(
                f"{read[bad]}: the extractor gave features that are not finite; are its weights damaged?"
            )
        return FeatureSet(
            extractor=extractor.description,
            name=extractor.name,
            quotable=extractor.quotable,
            features=vectors,
            files=tuple(path.relative_to(side.where).as_posix().encode("utf-8", "replace").decode() for path in read),
            pictures={**side.described, "images": len(vectors), **_met(reading)},
        )

    def read(self, sides: Sequence[_Side], *, workers: int | None, strict: bool) -> None:
        roots = [side.where for side in sides]
        self._readings = {root: Reading() for root in roots}
        if self.measures:
            self._readings |= read_once(self.measures, roots=roots, workers=workers, strict=strict)

    def run(self, sides: Sequence[_Side], *, workers: int | None, strict: bool) -> list[MetricResult]:
        self.read(sides, workers=workers, strict=strict)
        return [result for make in self.results for result in make()]


def _met(reading: Reading) -> dict[str, Any]:
    """What was met in reading, for a card: only what is there."""
    met: dict[str, Any] = {
        "codecs": dict(sorted(reading.codecs.items())),
        "modes": dict(sorted(reading.modes.items())),
        "sizes": dict(sorted(reading.sizes.items())),
        "animated": reading.animated,
        "rotated": reading.rotated,
        "transparent": reading.transparent,
        "unreadable": len(reading.unreadable),
    }
    return {key: value for key, value in met.items() if value}


class _Answer:
    """A whole answer in the cache."""

    def __init__(self, cache: Path | None, key: str) -> None:
        self.file = cache / "answers" / f"{key}.json" if cache is not None else None

    def load(self) -> list[MetricResult] | None:
        """The results, or None."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            results = [MetricResult(**{**values, "value": float(values["value"])}) for values in stored]
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("measured again: %s: not a kept answer (%s)", self.file, error)
            return None
        logger.warning("answered from the cache: nothing has changed (%s)", self.file)
        return results

    def save(self, results: Sequence[MetricResult]) -> None:
        """Keep them."""
        if self.file is not None:
            plain = [
                {**asdict(result), "value": str(result.value) if np.isinf(result.value) else result.value}
                for result in results
            ]
            write_text(self.file, json.dumps(plain, indent=2) + "\n")
