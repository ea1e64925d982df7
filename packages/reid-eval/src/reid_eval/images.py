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
from reid_eval.errors import Stopped
from reid_eval.extractors import Extractor, weights_of
from reid_eval.feature_sets import FeatureSet, FeatureSetError
from reid_eval.files import describe_images, file_fingerprint, fingerprint, list_images, passed_over
from reid_eval.frechet import StatisticsError
from reid_eval.image_cache import ImageCache, Part
from reid_eval.lpips import Lpips
from reid_eval.one_pass import FeaturesOf, Measure, Reading, read_once
from reid_eval.pair_results import (
    DSSIM_LAB,
    PSNR,
    SSIM,
    PairJob,
    PairMetric,
    beside_real,
    lpips_metric,
    of_pairs_job,
    within_identity_job,
)
from reid_eval.pairs import NamedPairs, PairsError, identity_pairs, pairs_by_name, pairs_from_table
from reid_eval.report import MetricResult
from reid_eval.set_results import (
    SET_METRICS,
    Maker,
    fid_result,
    identity_results,
    kid_results,
    log_remarks,
    prdc_results,
    result_name,
)
from reid_eval.stopping import check_stop, stop_reason

logger = logging.getLogger(__name__)

Metric = Literal["fid", "kid", "prdc", "ssim", "lpips", "identity", "pairs"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_OF_FEATURES = ("fid", "kid", "prdc")
_CACHE_FORMAT = 3

# What each metric of sets is called, and how many pictures of a side it needs at least.
_NEEDED: dict[str, tuple[str, int]] = {
    "prdc": ("precision, recall, density and coverage need", 6),
    "fid": ("a Frechet distance needs", 2),
    "kid": ("a kernel distance (KID) needs", 2),
    "identity": ("identity consistency needs", 2),
}

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
        Stopped: within `stopping.stoppable`, something asked to stop; features made so far are in the cache.
    """
    return plan_images(
        real,
        fake,
        metrics=metrics,
        extractor=extractor,
        reid=reid,
        lpips=lpips,
        pairs_file=pairs_file,
        protocol=protocol,
        batch_size=batch_size,
        strict=strict,
        cache=cache,
    ).run(workers=workers)


class ImagesPlan:
    """What `measure_images` will measure: the names are known before a picture is decoded."""

    def __init__(self, work: _Work, key: str, known: list[MetricResult] | None, *, strict: bool) -> None:
        self._work, self._key, self._known, self._strict = work, key, known, strict

    @property
    def is_answered(self) -> bool:
        """Whether the cache holds the results."""
        return self._known is not None

    @property
    def names(self) -> list[str]:
        """Those of the results."""
        if self._known is not None:
            return [result.name for result in self._known]
        return [name for planned in self._work.planned for name in planned.names()]

    def run(self, *, workers: int | None = None) -> list[MetricResult]:
        """The results."""
        if self._known is not None:
            return self._known
        results = self._work.run(workers=workers, strict=self._strict)
        self._work.cache.keep_answer(self._key, results)
        return results


def plan_images(
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
    strict: bool = True,
    cache: Path | None = None,
) -> ImagesPlan:
    """What `measure_images` does, up to where pictures are decoded."""
    how = protocol or Protocol()
    if batch_size < 1:
        raise StatisticsError(f"batch size {batch_size}: expected at least 1")
    sides = [_side(fake, metrics)]
    if real is not None:
        sides.insert(0, _side(real, metrics))
    asked = {
        "format": _CACHE_FORMAT,
        "reid_eval": reid_eval.__version__,
        "sides": [side.described for side in sides],
        "metrics": sorted(metrics),
        "extractor": extractor.fingerprint if extractor is not None else "",
        "reid": reid.fingerprint if reid is not None else "",
        "lpips": lpips.fingerprint if lpips is not None else "",
        "pairs_file": file_fingerprint(pairs_file) if pairs_file is not None and pairs_file.is_file() else "",
        "protocol": asdict(how),
        "strict": strict,
    }
    work = _Work(how, batch_size, ImageCache(cache))
    key = fingerprint([json.dumps(asked, sort_keys=True)])
    plan = ImagesPlan(work, key, work.cache.answer(key), strict=strict)
    if plan.is_answered:
        return plan
    if real is not None:
        _plan_sets(work, sides[0], sides[1], metrics, extractor, reid)
    diversity = [DSSIM_LAB if how.dssim_lab else SSIM] if "ssim" in metrics else []
    if "lpips" in metrics and lpips is not None:
        diversity.append(lpips_metric(lpips))
    _plan_diversity(work, sides, diversity)
    if "pairs" in metrics and real is not None:
        fidelity = [SSIM, PSNR, *([lpips_metric(lpips)] if lpips is not None else [])]
        _plan_pairs(work, sides[0], sides[1], fidelity, pairs_file)
    return plan


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
        Stopped: within `stopping.stoppable`, something asked to stop; features made so far are in the cache.
    """
    work = _Work(Protocol(), batch_size, ImageCache(cache))
    side = _folder_side(Path(folder), pictures_below(folder))
    made = work.features(side, extractor)
    work.read(workers=workers, strict=strict)
    return made()


def pictures_below(folder: Path | str, metrics: Sequence[Metric] = ()) -> list[Path]:
    """All pictures below a folder, at any depth, at least as many as the metrics need; without any, as a covariance.

    Raises:
        ImageError: there is no such folder.
        StatisticsError: there are too few pictures.
    """
    paths = list_images(folder)
    needed = [found for metric, found in _NEEDED.items() if metric in metrics] or [("a covariance needs", 2)]
    for what, number in needed:
        if len(paths) < number:
            raise StatisticsError(
                f"{folder}: {len(paths)} pictures below it, {what} at least {number}{' on each side' * bool(metrics)}"
            )
    return paths


def refuse_missing(places: Sequence[Path | str], metrics: Sequence[Metric]) -> None:
    """Say early what would stop `measure_images` late: a missing folder or file, or too few pictures.

    Raises:
        ImageError, StatisticsError, FeatureSetError: a place is not what is needed.
    """
    for place in map(Path, places):
        if _is_statistics(place):
            FeatureSet.load(place)
        elif _are_of_sets(metrics):
            pictures_below(place, metrics)
        else:
            list_images(place)


def _are_of_sets(metrics: Sequence[Metric]) -> bool:
    return any(metric in _NEEDED for metric in metrics)


def _is_statistics(place: Path) -> bool:
    return place.suffix.lower() == ".npz" and not place.is_dir()


def _side(where: Path | str, metrics: Sequence[Metric]) -> _Side:
    where = Path(where)
    if not _is_statistics(where):
        return _folder_side(where, pictures_below(where, metrics) if _are_of_sets(metrics) else list_images(where))
    sha256 = file_fingerprint(where)
    stored = FeatureSet.load(where)
    if "fingerprint" not in stored.pictures:  # nobody knows which pictures they were, but these moments are known
        content = fingerprint([stored.mean.tobytes(), stored.covariance.tobytes()])
        stored = replace(stored, pictures={**stored.pictures, "fingerprint": content})
    stored = replace(stored, pictures={**stored.pictures, "statistics": {"file": str(where), "sha256": sha256}})
    return _Side(where, (), {"folder": str(where), "sha256": sha256}, stored)


def _folder_side(where: Path, paths: Sequence[Path]) -> _Side:
    others = passed_over(where)
    described = {**describe_images(where, paths), **({"passed_over": others} if others else {})}
    return _Side(where, tuple(paths), described)


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
                check_stop()
            if "kid" in metrics:
                found += kid_results(first, second, subsets=work.how.kid_subsets, subset_size=work.how.kid_subset_size)
                check_stop()
            if "prdc" in metrics:
                found += prdc_results(first, second)
            return found

        variants = {"fid": work.how.variant, "kid": "subsets" if work.how.kid_subsets is not None else ""}

        def names() -> list[str]:
            makers = [_maker(side, extractor) for side in (real, fake)]
            asked = [metric for metric in _OF_FEATURES if metric in metrics]
            return [
                result_name(name, *makers, variant=variants.get(metric, ""))
                for metric in asked
                for name in SET_METRICS[metric]
            ]

        work.planned.append(_Planned(names, of_sets))
    if reid is not None and "identity" in metrics:
        seen = [work.features(side, reid) for side in (real, fake)]
        work.planned.append(
            _Planned(
                lambda: [
                    result_name(name, *(_maker(side, reid) for side in (real, fake)))
                    for name in SET_METRICS["identity"]
                ],
                lambda: identity_results(*(made() for made in seen)),
            )
        )


def _maker(side: _Side, extractor: Extractor) -> Maker:
    if side.stored is not None:
        return side.stored.maker
    return Maker("to be asked", extractor.name, extractor.quotable)


def _plan_diversity(work: _Work, sides: Sequence[_Side], metrics: Sequence[PairMetric]) -> None:
    how = work.how
    settings = {"pairs": how.pairs, "rounds": how.rounds, "seed": how.seed}
    drawn = []
    for side in reversed(sides if metrics else ()):  # the generated side first
        is_reference = side is not sides[-1]
        try:
            root = side.folder("diversity within identities")
            pairs = identity_pairs(root, side.paths, pairs=how.pairs, seed=how.seed, rounds=how.rounds)
        except (PairsError, FeatureSetError) as error:
            if not is_reference:
                raise
            logger.warning("no diversity of the real side for comparison: %s", error)
            continue
        drawn.append((root, pairs, side, "_".join(part for part in (how.variant, "real" * is_reference) if part)))
    for metric in metrics:
        jobs = [
            within_identity_job(
                root, pairs, metric, how=settings, pictures=side.described, variant=variant, note=how.note
            )
            for root, pairs, side, variant in drawn
        ]
        work.add_pairs(jobs, beside_real if len(jobs) == 2 else lambda only: [only])


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
        job = of_pairs_job(
            first,
            second,
            named,
            metric,
            resize=work.how.resize_pairs,
            how=settings,
            pictures=(fake.described, real.described),
        )
        work.add_pairs([job], lambda only: [only])


@dataclass(frozen=True)
class _Planned:
    """Results that are to be made once the pass is over, and their names."""

    names: Callable[[], list[str]]
    make: Callable[[], list[MetricResult]]


@dataclass(frozen=True)
class _Unmade:
    """Features of a side that are to be read, and where they are kept."""

    side: _Side
    extractor: Extractor
    measure: FeaturesOf
    key: str


class _Work:
    """What one pass has to read, and what is to be made of it afterwards."""

    def __init__(self, how: Protocol, batch_size: int, cache: ImageCache) -> None:
        self.how, self.batch_size, self.cache = how, batch_size, cache
        self.measures: list[Measure] = []
        self.planned: list[_Planned] = []
        self._reading = Reading()
        self._unmade: list[_Unmade] = []
        self._made: dict[str, FeatureSet] = {}

    def add_pairs(self, jobs: Sequence[PairJob], made: Callable[..., list[MetricResult]]) -> None:
        """Have pairs read; `made` makes results of the jobs' results."""
        self.measures += [job.values for job in jobs]
        self.planned.append(_Planned(lambda: [job.name for job in jobs], lambda: made(*(job.result() for job in jobs))))

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
        fingerprint_of_side = str(side.described["fingerprint"])
        key = fingerprint(
            [
                str(_CACHE_FORMAT),
                fingerprint_of_side,
                extractor.fingerprint,
                str(self.how.max_images),
                str(self.how.seed),
            ]
        )
        if (known := self.cache.features(key, fingerprint_of_side)) is not None:
            self._made[key] = known
        elif key not in {unmade.key for unmade in self._unmade}:
            paths = self._chosen(side.paths)
            measure = FeaturesOf(paths, extractor, batch_size=self.batch_size)
            if (part := self.cache.part(key, len(paths))) is not None:
                logger.warning("%s: %d of %d features were made before", side.where, len(part.rows), len(paths))
                measure.know(part.rows, part.vectors)
                self._reading.met |= {paths[row]: met for row, met in zip(part.rows, part.met, strict=True)}
            self.measures.append(measure)
            self._unmade.append(_Unmade(side, extractor, measure, key))

        def of_side() -> FeatureSet:  # the same pictures may have lain elsewhere, beside other files
            others: dict[str, Any] = {
                name: value for name, value in side.described.items() if name in ("folder", "passed_over")
            }
            pictures = {name: value for name, value in self._made[key].pictures.items() if name != "passed_over"}
            return replace(self._made[key], pictures={**pictures, **others}, file="")

        return of_side

    def _chosen(self, paths: Sequence[Path]) -> list[Path]:
        limit = self.how.max_images
        if limit is None or len(paths) <= limit:
            return list(paths)
        rows = np.random.default_rng(self.how.seed).choice(len(paths), limit, replace=False)
        return [paths[row] for row in sorted(rows)]

    def _feature_set(self, side: _Side, extractor: Extractor, measure: FeaturesOf) -> FeatureSet:
        vectors, read = measure.vectors, measure.read_paths
        if len(vectors) < 2:
            raise StatisticsError(
                f"{side.where}: {len(vectors)} of {len(side.paths)} pictures could be read, and at least 2 are needed "
                "on each side"
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
            pictures={**side.described, "images": len(vectors), **self._reading.described(side.paths)},
            weights=weights_of(extractor),
        )

    def read(self, *, workers: int | None, strict: bool) -> None:
        """Read the pictures, and keep the features that they give: also of a part, if the rest has to wait."""
        try:
            if any(measure.groups for measure in self.measures):
                read_once(self.measures, workers=workers, strict=strict, reading=self._reading)
        except BaseException as error:
            kept = sum(self._keep_part(unmade) for unmade in self._unmade)
            if isinstance(error, Stopped):
                saved = f"{kept} features are kept in {self.cache.folder}" if kept else "no features are kept"
                raise Stopped(f"{stop_reason() or 'stopped'}: {saved}; run the same command to go on") from None
            raise
        for unmade in self._unmade:
            self._made[unmade.key] = self._feature_set(unmade.side, unmade.extractor, unmade.measure)
            self.cache.keep_features(unmade.key, self._made[unmade.key])

    def _keep_part(self, unmade: _Unmade) -> int:
        rows = unmade.measure.rows
        if not len(rows):
            return 0
        met = [self._reading.met[unmade.measure.paths[row]] for row in rows]
        return len(rows) if self.cache.keep_part(unmade.key, Part(rows, unmade.measure.vectors, met)) else 0

    def run(self, *, workers: int | None, strict: bool) -> list[MetricResult]:
        """The results."""
        self.read(workers=workers, strict=strict)
        results = []
        for planned in self.planned:
            check_stop()
            results += planned.make()
        return results
