"""Rank a gallery against queries: mean average precision in both published forms, CMC and mINP.

Arrays in, numbers out: no files, no devices. A junk crop (pid -1) is left out for all queries; a distractor (pid 0) is
an ordinary wrong answer. What else is left out for a query is the protocol's:

    cross-camera   gallery pictures with the query's identity *and* camera; an unknown camera (-1) equals no other
    no-camera      nothing: cameras are not looked at
    leave-one-out  the query's own picture: every picture of a person is a query against all others. Where there are no
                   splits "query" and "gallery", all pictures take part, and identity 0 is a person like others

Equal distances keep the order of the gallery. Average precision is published in two forms, "hits" and "trapezoid" (see
`scores`); both are always reported.

    features = ReidFeatures.load("runs/teacher/features.npz")
    report = rank(features, rerank=RerankParams())     # plain and re-ranked, side by side
    report.map_hits, report.cmc[0], report.reranked.map_hits
    print(report.to_text())
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy

from reid_eval import __version__
from reid_eval.distances import (
    ArrayVectors,
    JoinedVectors,
    Metric,
    MetricVectors,
    Vectors,
    paired_squared_distances,
    rough_distances,
    rough_error,
    squared_distances_to,
    squared_lengths,
    unit_length,
)
from reid_eval.errors import ReidError
from reid_eval.features import ReidFeatures, is_mapped
from reid_eval.neighbours import FeatureDistances
from reid_eval.places import PlaceCounts, RightAnswers, Ties, right_answers
from reid_eval.progress import progress
from reid_eval.records import RankedData
from reid_eval.rerank import (
    RerankParams,
    RoughBlock,
    memory_of_reranking,
    rough_swept_blocks,
    swept_blocks,
)
from reid_eval.scores import REPORTED_RANKS, QueryScores, SingleShot, SingleShotCurves, scores_from_places
from reid_eval.tables import csv_text
from reid_eval.threads import num_side_by_side, side_by_side

if TYPE_CHECKING:
    from reid_eval.details import Details
    from reid_eval.report import MetricResult

logger = logging.getLogger(__name__)

ProtocolName = Literal["cross-camera", "no-camera", "leave-one-out"]
Pooling = Literal["mean", "max"]

MULTI_QUERY = "multi-query"  # the split with further pictures of the queries

_BLOCK_QUERIES = 256
_FEW_QUERIES = 8  # rows of given distances that stay in a processor's cache between two looks
_BLOCK_BYTES = 128 * 2**20  # of gallery vectors at a time
_PROGRAM_BYTES = 200 * 2**20  # Python with NumPy and SciPy, and what small things need
_VECTORS = 4096


class RankingError(ReidError):
    """These features or distances cannot be ranked; the message says which rows stand in the way."""


@dataclass(frozen=True, eq=False)
class RankReport:
    """Scores of one feature file, with everything needed to say how they came about.

    The short names (`map_hits`, `cmc`, ...) are the plain ranking; the re-ranked one stands beside it in `reranked`.
    """

    plain: QueryScores
    reranked: QueryScores | None
    rerank: RerankParams | None
    metric: Metric
    protocol_name: ProtocolName
    multi_query: Pooling | None
    single_shot: SingleShot | None
    ties: Ties
    num_gallery: int  # ranked: junk is gone, distractors are in
    num_distractors: int
    num_junk: int
    num_unknown_query_cameras: int
    num_unknown_gallery_cameras: int
    num_unpooled: int  # queries of a multi-query run that have no further picture
    num_copies: int  # queries with a right answer at distance 0
    query_rows: np.ndarray  # (Q,) rows of the feature file: entry q of every per-query array is about row query_rows[q]
    made_by: dict[str, Any]
    data: RankedData  # who was searched for among whom
    alpha: float | None = None  # weight of the vectors' fine part, where it was chosen; see `parts`

    @property
    def map_hits(self) -> float:
        return self.plain.map_hits

    @property
    def map_trapezoid(self) -> float:
        return self.plain.map_trapezoid

    @property
    def minp(self) -> float:
        return self.plain.minp

    @property
    def cmc(self) -> np.ndarray:
        return self.plain.cmc

    @property
    def num_valid_queries(self) -> int:
        return self.plain.num_valid

    @property
    def num_invalid_queries(self) -> int:
        return self.plain.num_invalid

    def to_text(self) -> str:
        """A table for people: percentages, then the counts and conventions behind them."""
        return text_of_reports([self])

    def to_json(
        self, swept: Sequence[tuple[RerankParams, QueryScores]] | None = None, details: Details | None = None
    ) -> str:
        """One JSON object: fractions 0..1 at full precision, counts and conventions, what a sweep gave, and details."""
        scores: dict[str, Any] = {
            "plain": _scores_json(self.plain),
            "reranked": None if self.reranked is None else _scores_json(self.reranked),
        }
        if swept is not None:
            scores["sweep"] = [{**_params_json(params), **_scores_json(found)} for params, found in swept]
        if details is not None:
            scores["details"] = asdict(details)
        return json.dumps({**scores, **self.card}, indent=2)

    def to_csv(self, features: ReidFeatures) -> str:
        """A line per query: file, labels, both average precisions, INP, place of the first hit, and the counts."""
        return csv_of_reports([self], features)

    @property
    def columns(self) -> list[tuple[str, str, QueryScores]]:
        """What the report shows: heading, what its names end in, and scores."""
        suffix = "" if self.alpha is None else f"_{alpha_name(self.alpha)}"
        shown = [("plain", suffix, self.plain)]
        if self.reranked is not None:
            shown.append(("re-ranked", f"{suffix}_rerank", self.reranked))
        return shown

    def with_reranked(self, params: RerankParams, scores: QueryScores) -> RankReport:
        """The same plain scores with others beside them."""
        return replace(self, rerank=params, reranked=scores)

    @property
    def card(self) -> dict[str, Any]:
        """How the numbers were made: counts, conventions, versions, and whose features they are of."""
        return {
            "queries": {
                "valid": self.num_valid_queries,
                "invalid": self.num_invalid_queries,
                "unknown_camera": self.num_unknown_query_cameras,
                "without_further_pictures": self.num_unpooled,
                "with_a_copy_in_the_gallery": self.num_copies,
            },
            "gallery": {
                "ranked": self.num_gallery,
                "distractors": self.num_distractors,
                "junk_left_out": self.num_junk,
                "unknown_camera": self.num_unknown_gallery_cameras,
            },
            "protocol_name": self.protocol_name,
            "multi_query": self.multi_query,
            "alpha": self.alpha,
            "single_shot": None if self.single_shot is None else _single_shot_json(self.single_shot),
            "average_precision": {name: _MEANING[name] for name in ("map_hits", "map_trapezoid")},
            "ties": self.ties,
            "metric": self.metric,
            "normalisation": _NORMALISATION[self.metric],
            "rerank": None if self.rerank is None else _params_json(self.rerank),
            "protocol": self.protocol,
            "record": self.record(self.rerank),
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
            "made_by": self.made_by,
        }

    def metrics(self) -> list[MetricResult]:
        """One metric file's content for each number, plain and re-ranked; values are fractions 0..1."""
        from reid_eval.report import MetricResult

        results = []
        for _, suffix, scores in self.columns:
            made_by = {**self.made_by, "metric": self.metric, "protocol": self.protocol_name}
            protocol, rerank = self.protocol, None
            if scores is self.reranked and self.rerank is not None:
                rerank = self.rerank
                made_by["rerank"] = _params_json(rerank)
                protocol = f"{protocol} {rerank_sentence(rerank)}"
            for _, name, (value,) in _rows([scores]):
                results.append(
                    MetricResult(
                        name=f"{name}{suffix}",
                        value=value,
                        higher_is_better=True,
                        protocol=f"{_MEANING[name]} {protocol}",
                        made_by={**made_by, "how": self.record(rerank, name)},
                    )
                )
        return results

    def record(self, rerank: RerankParams | None = None, name: str = "") -> dict[str, Any]:
        """All that has to be the same where a number, of the metric `name`, is compared with another; see `cards`."""
        record = {
            **self.data.record,
            "queries": len(self.query_rows),
            "gallery": self.num_gallery,
            "protocol": self.protocol_name,
            "distance": self.metric,
            "ties": self.ties,
            "multi-query": self.multi_query or "none",
            "re-ranking": "none" if rerank is None else _params_text(rerank),
        }
        if form := _FORMS.get(name):
            record["average precision"] = form
        if self.single_shot is not None and name.endswith("_single_shot"):
            shots = _single_shot_json(self.single_shot)
            record["single shot"] = " ".join(f"{key} {said}" for key, said in shots.items())
        return record

    @property
    def protocol(self) -> str:
        """The conventions in sentences: what was ranked against what, and what was left out."""
        return " ".join(self._protocol())

    def _protocol(self) -> Iterator[str]:
        pictures = "single query"
        if self.multi_query is not None:
            pictures = f"multi-query ({self.multi_query} of the same-camera pictures)"
        yield (
            f"{_count(self.num_valid_queries, 'query', 'queries')} against {self.num_gallery} gallery images "
            f"({_count(self.num_distractors, 'distractor')} among them), {self.protocol_name}, {pictures}, "
            f"{_DISTANCE[self.metric]}."
        )
        yield (
            f"Left out: {_count(self.num_junk, 'junk crop')} (pid -1), {_LEFT_OUT[self.protocol_name]}"
            f"{_count(self.num_invalid_queries, 'query', 'queries')} without a right image."
        )
        yield _TIES[self.ties]
        if self.alpha is not None:
            yield _ALPHA_ALONE if self.alpha == -1 else f"Coarse and fine part of the vectors count 1 : {self.alpha:g}."
        if self.num_unpooled:
            yield f"{_count(self.num_unpooled, 'query has', 'queries have')} no same-camera pictures and stand alone."
        if self.single_shot is not None:
            yield _single_shot_sentence(self.single_shot)
        if self.num_unknown_query_cameras or self.num_unknown_gallery_cameras:
            yield (
                f"The camera of {_count(self.num_unknown_query_cameras, 'query', 'queries')} and "
                f"{_count(self.num_unknown_gallery_cameras, 'gallery image')} is unknown: the same-camera rule could "
                "not be applied to them."
            )

    def _remarks(self) -> Iterator[str]:
        yield "hits: mean precision at each hit (torchreid, fast-reid); trapezoid: the official Market-1501 evaluation"
        yield from self._protocol()
        if self.rerank is not None:
            yield rerank_sentence(self.rerank)
        if self.num_invalid_queries:
            yield (
                "With 0 for queries without a right image, as the official program divides, mAP (trapezoid) is "
                f"{100 * self.plain.map_trapezoid_of_all:.2f}%."
            )
        num_tied = int(self.plain.tied.sum())
        if num_tied:
            yield f"In {_count(num_tied, 'query', 'queries')} a right and a wrong image are equally far (plain)."
        if self.num_copies:
            yield (
                f"{_count(self.num_copies, 'query has', 'queries have')} a right image at distance 0: "
                "the same picture may be in both."
            )


def _rows(columns: Sequence[QueryScores]) -> Iterator[tuple[str, str, list[float]]]:
    """Label, name of the metric, and its value in each column."""
    yield "mAP (hits)", "map_hits", [scores.map_hits for scores in columns]
    yield "mAP (trapezoid)", "map_trapezoid", [scores.map_trapezoid for scores in columns]
    yield "mINP", "minp", [scores.minp for scores in columns]
    for k in REPORTED_RANKS:
        yield f"rank-{k}", f"rank{k}", [scores.rank_at(k) for scores in columns]
    curves = [curve for scores in columns if (curve := scores.single_shot_cmc) is not None]
    if curves:
        for k in REPORTED_RANKS:
            yield f"rank-{k} (1 shot)", f"rank{k}_single_shot", [float(curve[k - 1]) for curve in curves]


def text_of_reports(reports: Sequence[RankReport]) -> str:
    """A table for people of one report, or of several that differ in alpha alone: percentages, then what is behind."""
    columns = [column for report in reports for column in report.columns]
    width = 12 if len(columns) < 4 else 10
    lines = [" " * 17 + "".join(f"{heading:>{width}}" for heading, _, _ in columns)]
    if alphas := [f"alpha {report.alpha:g}" for report in reports for _ in report.columns if report.alpha is not None]:
        lines.insert(0, " " * 17 + "".join(f"{alpha:>{width}}" for alpha in alphas))
    for label, _, values in _rows([scores for _, _, scores in columns]):
        lines.append(f"{label:<17}" + "".join(f"{100 * value:>{width - 1}.2f}%" for value in values))
    said = [list(report._remarks()) for report in reports]
    common = [remark for remark in said[0] if all(remark in others for others in said)]
    of_one = dict.fromkeys(
        f"alpha {report.alpha:g}: {remark}"
        for report, remarks in zip(reports, said, strict=True)
        for remark in remarks
        if remark not in common
    )
    return "\n".join([*lines, "", *common, *of_one])


def csv_of_reports(reports: Sequence[RankReport], features: ReidFeatures) -> str:
    """A line per query of one report, or of several that differ in alpha alone."""
    first, *_ = reports
    columns = [column for report in reports for column in report.columns]
    names = [*QUERY_COLUMNS]
    names += [f"{name}{suffix}" for _, suffix, _ in columns for name in _SCORE_COLUMNS]
    lines = []
    for query, row in enumerate(first.query_rows):
        line: list[Any] = [str(features.paths[row])]
        line += [features.name_of(features.pids[row]), features.camera_name(features.camids[row])]
        line += [first.plain.num_good[query], first.plain.num_same_camera[query]]
        for _, _, scores in columns:
            if not scores.valid[query]:
                line += [""] * len(_SCORE_COLUMNS)
                continue
            numbers = (scores.ap_hits[query], scores.ap_trapezoid[query], scores.inp[query])
            line += [*(float(number) for number in numbers), int(scores.first_hit[query]) + 1]
        lines.append(line)
    return csv_text([names, *lines])


QUERY_COLUMNS = ("path", "pid", "camid", "right_answers", "left_out")


def is_query_table(file: Path | str) -> bool:
    """Whether a file is a table of `csv_of_reports`, by the columns that it begins with."""
    start = ",".join([*QUERY_COLUMNS, *_SCORE_COLUMNS[:1]]).encode()
    with open(file, "rb") as stream:
        return stream.read(len(start)) == start


def metric_names(alphas: Sequence[float] = (), *, reranked: bool, single_shot: bool) -> list[str]:
    """What the metrics of a report, or of several, will be called."""
    measures = [name for name in _MEANING if single_shot or not name.endswith("_single_shot")]
    suffixes = [f"_{alpha_name(alpha)}" for alpha in alphas] or [""]
    ends = ["", "_rerank"] if reranked else [""]
    return [f"{name}{suffix}{end}" for suffix in suffixes for end in ends for name in measures]


_SCORE_COLUMNS = ("ap_hits", "ap_trapezoid", "inp", "first_hit_place")


def alpha_name(alpha: float) -> str:
    """How the name of a metric tells alpha: alpha_0_5, alpha_minus_1."""
    return "alpha_" + f"{alpha:g}".replace("-", "minus_").replace("+", "").replace(".", "_")


_MEANING = {
    "map_hits": "Mean average precision, mean of the precision at each hit (the form of torchreid and fast-reid).",
    "map_trapezoid": "Mean average precision, trapezoid form (the official Market-1501 evaluation).",
    "minp": "Mean inverse negative penalty: right images as a share of all images down to the last right one.",
    **{
        f"rank{k}": f"Cumulative match, rank-{k}: share of queries with a right image among the first {k}."
        for k in REPORTED_RANKS
    },
    **{
        f"rank{k}_single_shot": f"Single-gallery-shot match, rank-{k}: one picture of each identity in the gallery."
        for k in REPORTED_RANKS
    },
}

_FORMS = {
    "map_hits": "hits (mean of the precision at each hit)",
    "map_trapezoid": "trapezoid (the official Market-1501 evaluation)",
}

_DISTANCE: dict[Metric, str] = {
    "cosine": "cosine distance",
    "euclidean": "Euclidean distance of the vectors as stored",
    "dot": "dot product of the vectors as stored, the largest first",
    "hamming": "Hamming distance of binary codes",
    "hamming-packed": "Hamming distance of binary codes, eight bits in a byte",
}

_NORMALISATION: dict[Metric, str] = {
    "cosine": "unit length",
    "euclidean": "none",
    "dot": "none",
    "hamming": "none",
    "hamming-packed": "none",
}

_ALPHA_ALONE = "Only the fine part of the vectors counts (alpha -1)."

_TIES: dict[Ties, str] = {
    "index": "Equal distances in gallery order.",
    "optimistic": "Of equal distances right images come first.",
    "pessimistic": "Of equal distances wrong images come first.",
}

_LEFT_OUT: dict[ProtocolName, str] = {
    "cross-camera": "per query the images with its identity and its camera, and ",
    "no-camera": "",
    "leave-one-out": "per query its own image, and ",
}


@dataclass(frozen=True, eq=False)
class Contest:
    """Who is searched for among whom: queries, gallery and right answers of a feature file under a protocol.

    Shapes:
        query_rows    (Q,)  rows of the feature file, in its order
        gallery_rows  (G,)  the same, junk left out
    """

    features: ReidFeatures
    metric: Metric
    protocol_name: ProtocolName
    multi_query: Pooling | None
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    query: MetricVectors
    gallery: MetricVectors
    answers: RightAnswers
    num_junk: int
    num_unpooled: int

    @property
    def leaves_one_out(self) -> bool:
        return self.protocol_name == "leave-one-out"


def contest(
    features: ReidFeatures,
    *,
    metric: Metric = "cosine",
    protocol: ProtocolName = "cross-camera",
    multi_query: Pooling | None = None,
    even_if_collapsed: bool = False,
) -> Contest:
    """Choose queries, gallery and right answers; see `rank`.

    Raises:
        RankingError: a split is empty, a query is junk, no query has a right answer, or vectors do not fit the metric.
    """
    _refuse_other("metric", metric, get_args(Metric))
    _refuse_other("protocol", protocol, get_args(ProtocolName))
    if protocol == "leave-one-out" and multi_query is not None:
        raise RankingError("multi-query: leave-one-out has single pictures as queries; choose one of the two")
    query_rows, gallery_rows, num_junk = _rows_of(features, protocol)
    pids, camids = features.pids, features.camids
    answers = right_answers(
        pids[query_rows],
        camids[query_rows],
        pids[gallery_rows],
        camids[gallery_rows],
        cameras=protocol == "cross-camera",
        itself=np.searchsorted(gallery_rows, query_rows) if protocol == "leave-one-out" else None,
    )
    if not len(answers.rows):
        if protocol == "leave-one-out":
            raise RankingError(
                f"no picture has a right answer: all {len(query_rows)} have different identities "
                f"({_ten_of(pids[query_rows], features.name_of)}); expected several pictures of a person"
            )
        why = _why_no_valid_query(
            pids[query_rows], camids[query_rows], pids[gallery_rows], camids[gallery_rows], answers, features.name_of
        )
        raise RankingError(why + _misread_cameras(features, np.concatenate([query_rows, gallery_rows])))
    ranked = np.concatenate([query_rows, gallery_rows])
    try:
        _refuse_constant(features, ranked)
        if metric == "cosine":
            _refuse_zeros(features, query_rows, "query")
            _refuse_zeros(features, gallery_rows, "gallery")
    except RankingError as error:
        if not even_if_collapsed:
            raise
        logger.warning("ranking all the same: %s", error)
    if metric == "hamming":
        _refuse_other_than_bits(features, ranked)
    if metric == "hamming-packed":
        _refuse_other_than_bytes(features, ranked)
    vectors, num_unpooled = features.features, 0
    query_vectors, rows_of_query = vectors, query_rows
    if multi_query is not None:
        query_vectors, num_unpooled = pooled_queries(features, query_rows, metric=metric, how=multi_query)
        rows_of_query = np.arange(len(query_rows))
    exponent = _exponent(vectors, ranked) if metric in ("euclidean", "dot") else 0
    gallery = MetricVectors(vectors, gallery_rows, metric, exponent, side="gallery")
    if metric == "dot":
        gallery.longest_sq = max(
            float(squared_lengths(np.ldexp(vectors[some], exponent)).max()) for some in _some_rows(gallery_rows)
        )
    return Contest(
        features=features,
        metric=metric,
        protocol_name=protocol,
        multi_query=multi_query,
        query_rows=query_rows,
        gallery_rows=gallery_rows,
        query=MetricVectors(query_vectors, rows_of_query, metric, exponent),
        gallery=gallery,
        answers=answers,
        num_junk=num_junk,
        num_unpooled=num_unpooled,
    )


def _refuse_other(name: str, found: str, choices: Sequence[str]) -> None:
    if found not in choices:
        expected = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise RankingError(f"{name}: found {found!r}, expected {expected}")


def rank(
    features: ReidFeatures,
    *,
    rerank: RerankParams | None = None,
    metric: Metric = "cosine",
    protocol: ProtocolName = "cross-camera",
    multi_query: Pooling | None = None,
    single_shot: SingleShot | None = None,
    ties: Ties = "index",
    max_memory: int | None = None,
    block_queries: int | None = None,
    even_if_collapsed: bool = False,
) -> RankReport:
    """Score the query rows of a feature file against its gallery rows, and once more re-ranked if asked.

    "cosine" compares directions, "euclidean" the vectors as stored, "dot" has the largest products first, "hamming"
    compares binary codes (two values), "hamming-packed" such codes eight bits to a byte. Re-ranking uses the squared
    distances of the same vectors, junk left out of the neighbourhoods too. With `multi_query` the pictures of split
    "multi-query" with a query's identity and camera are pooled into its vector. `ties` says where wrong pictures stand
    that are exactly as far as a right one: in gallery order, behind or before it. Distances exist for `block_queries`
    queries at a time; the numbers do not depend on it, nor on `max_memory` (bytes, see `plan_memory`).

    Vectors that are all equal, or zero with the cosine, are refused; with `even_if_collapsed` a warning is logged and
    ties decide, which is what a training wants that goes on after its evaluation.

    Raises:
        RankingError: see `contest`; or the memory does not suffice.
        RerankError: fewer pictures than re-ranking needs neighbours.
    """
    sweep = [] if rerank is None else [rerank]
    report, swept = rank_swept(
        features,
        sweep,
        metric=metric,
        protocol=protocol,
        multi_query=multi_query,
        single_shot=single_shot,
        ties=ties,
        max_memory=max_memory,
        block_queries=block_queries,
        even_if_collapsed=even_if_collapsed,
    )
    return report if rerank is None else report.with_reranked(rerank, swept[0])


def rank_swept(
    features: ReidFeatures,
    sweep: Sequence[RerankParams],
    *,
    metric: Metric = "cosine",
    protocol: ProtocolName = "cross-camera",
    multi_query: Pooling | None = None,
    single_shot: SingleShot | None = None,
    ties: Ties = "index",
    max_memory: int | None = None,
    block_queries: int | None = None,
    even_if_collapsed: bool = False,
) -> tuple[RankReport, list[QueryScores]]:
    """The plain report, and the re-ranked scores under each of several settings; neighbours are found only once."""
    _refuse_other("ties", ties, get_args(Ties))
    who = contest(
        features, metric=metric, protocol=protocol, multi_query=multi_query, even_if_collapsed=even_if_collapsed
    )
    plan = _plan(who, sweep, single_shot, max_memory, block_queries)
    curves = None
    if single_shot is not None:
        curves = SingleShotCurves(who.answers, features.pids[who.gallery_rows], single_shot)
    with ThreadPoolExecutor(1) as beside:
        vectors = beside.submit(lambda: features.fingerprint)  # of large files it takes seconds
        plain, swept, num_copies = _scored(who, plan, sweep, curves, ties)

    camids = features.camids
    looks_at_cameras = protocol == "cross-camera"
    report = RankReport(
        plain=plain,
        reranked=None,
        rerank=None,
        metric=metric,
        protocol_name=protocol,
        multi_query=multi_query,
        single_shot=single_shot,
        ties=ties,
        num_gallery=len(who.gallery),
        num_distractors=int(distractors(features)[who.gallery_rows].sum()),
        num_junk=who.num_junk,
        num_unknown_query_cameras=int((camids[who.query_rows] == -1).sum()) if looks_at_cameras else 0,
        num_unknown_gallery_cameras=int((camids[who.gallery_rows] == -1).sum()) if looks_at_cameras else 0,
        num_unpooled=who.num_unpooled,
        num_copies=num_copies,
        query_rows=who.query_rows,
        made_by={
            **{key: value for key, value in features.meta.items() if key not in _NOT_OF_THE_MAKING},
            "reid_eval": __version__,
            "features": vectors.result(),
        },
        data=RankedData.of(
            features, who.query_rows, who.gallery_rows, cameras=looks_at_cameras or multi_query is not None
        ),
        alpha=features.meta.get("alpha"),
    )
    return report, swept


# What the meta of a feature file says of its rows, and not of what made them.
_NOT_OF_THE_MAKING = ("names", "camera_names", "picture_names", "parts")


def sweep_text(sweep: Sequence[RerankParams], swept: Sequence[QueryScores]) -> str:
    """A table for people: one line per setting of re-ranking."""
    lines = ["re-ranked    k1   k2  lambda  mAP (hits)  mAP (trapezoid)    mINP  rank-1"]
    for params, scores in zip(sweep, swept, strict=True):
        lines.append(
            f"{params.distance:<10}{params.k1:>5}{params.k2:>5}{params.lambda_:>8g}{100 * scores.map_hits:>11.2f}%"
            f"{100 * scores.map_trapezoid:>16.2f}%{100 * scores.minp:>7.2f}%{100 * scores.rank_at(1):>7.2f}%"
        )
    return "\n".join(lines)


def rank_distances(
    distances: np.ndarray,
    *,
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    cameras: bool = True,
    single_shot: SingleShot | None = None,
    ties: Ties = "index",
) -> QueryScores:
    """Score distances that somebody else computed, (Q, G), smaller is closer; the rules are those of `rank`.

    Labels are named, since programs disagree about their order: q_pids, q_camids (Q,), g_pids, g_camids (G,).

    Raises:
        RankingError: shapes do not match, a distance is NaN or infinite, a query is junk, no query is valid.
    """
    distances = np.asarray(distances)
    labels = [np.asarray(array).astype(np.int64) for array in (q_pids, q_camids, g_pids, g_camids)]
    num_query, num_gallery = len(labels[0]), len(labels[2])
    if not distances.shape == (num_query, num_gallery) == (len(labels[1]), len(labels[3])):
        raise RankingError(
            f"distances: found shape {distances.shape} with {num_query} and {num_gallery} identities and "
            f"{len(labels[1])} and {len(labels[3])} cameras, expected a row per query and a column per gallery image"
        )
    if distances.dtype not in (np.float32, np.float64):
        distances = distances.astype(np.float32 if distances.dtype == np.float16 else np.float64)
    _refuse_other("ties", ties, get_args(Ties))
    _refuse_junk_queries(labels[0])
    junk = labels[2] == -1
    kept = np.flatnonzero(~junk)
    answers = right_answers(*labels, cameras=cameras)
    if not len(answers.rows):
        raise RankingError(_why_no_valid_query(labels[0], labels[1], labels[2][kept], labels[3][kept], answers))
    if single_shot is not None:
        _refuse_not_finite(distances)
        answers = right_answers(labels[0], labels[1], labels[2][kept], labels[3][kept], cameras=cameras)
        curves = SingleShotCurves(answers, labels[2][kept], single_shot)
        starts = range(0, num_query, _BLOCK_QUERIES)
        blocks = ([np.take(distances[start : start + _BLOCK_QUERIES], kept, axis=1)] for start in starts)
        ((scores,), _) = _scores_of_blocks(blocks, answers, 1, curves=curves, ties=ties, what="ranking")
        return scores
    counts = PlaceCounts(answers, distances[answers.query_of, answers.rows], ties=ties, junk=junk)
    ones = np.ones(num_gallery, dtype=distances.dtype)
    with progress("ranking", num_query) as bar:
        for start in range(0, num_query, _FEW_QUERIES):
            block = distances[start : start + _FEW_QUERIES]
            with np.errstate(over="ignore", invalid="ignore"):
                sums = block @ ones  # finite only if all terms are
            if not np.isfinite(sums).all():
                _refuse_not_finite(distances)  # or they are only large
            counts.add(block, first_query=start)
            bar.advance(len(block))
    return scores_from_places(answers, counts.places, counts.tied)


def _refuse_not_finite(distances: np.ndarray) -> None:
    starts = range(0, len(distances), _BLOCK_QUERIES)
    bad = [
        start + np.flatnonzero(~np.isfinite(distances[start : start + _BLOCK_QUERIES]).all(axis=1)) for start in starts
    ]
    if num_bad := sum(map(len, bad)):
        first = min(rows[0] for rows in bad if len(rows))
        raise RankingError(f"distances: {num_bad} rows hold NaN or infinite values, the first is row {first}")


def rerank_params(features: ReidFeatures) -> RerankParams:
    """The published k1 = 20, k2 = 6, lambda = 0.3; of hardly any test pictures, the nearest that make sense."""
    num_gallery = int((features.gallery.pids != -1).sum())
    k1 = max(1, min(20, num_gallery, len(features.query) + num_gallery - 1))
    return RerankParams(k1=k1, k2=min(6, k1 + 1))


def pooled_queries(
    features: ReidFeatures, query_rows: np.ndarray, *, metric: Metric, how: Pooling
) -> tuple[np.ndarray, int]:
    """One vector per query: mean or maximum of the multi-query pictures with its identity and camera.

    For the cosine each picture is scaled to length 1 first. A query without any keeps its own vector.

    Returns the vectors (Q, D) float32, and how many queries kept their own.

    Raises:
        RankingError: there are no such pictures.
    """
    boxes = features.split(MULTI_QUERY)
    if not len(boxes):
        found = ", ".join(sorted(set(features.splits.tolist())))
        raise RankingError(f"features: no pictures of split {MULTI_QUERY!r} to pool, found {found}")
    vectors = unit_length(boxes.features) if metric == "cosine" else boxes.features
    of_person: dict[tuple[int, int], list[int]] = {}
    for box, key in enumerate(zip(boxes.pids.tolist(), boxes.camids.tolist(), strict=True)):
        of_person.setdefault(key, []).append(box)
    pooled = features.features[query_rows].astype(np.float32)
    num_unpooled = 0
    for query, row in enumerate(query_rows):
        mine = of_person.get((int(features.pids[row]), int(features.camids[row])), [])
        num_unpooled += not mine
        if mine:
            pooled[query] = vectors[mine].mean(axis=0) if how == "mean" else vectors[mine].max(axis=0)
    if num_unpooled == len(query_rows):
        raise RankingError(
            f"features: none of the {len(boxes)} pictures of split {MULTI_QUERY!r} has a query's identity and camera"
        )
    zero = np.flatnonzero(~pooled.any(axis=1))
    if metric == "cosine" and len(zero):
        raise RankingError(
            f"features: the pictures of {len(zero)} queries add up to zero, the first is "
            f"{features.paths[query_rows[zero[0]]]}; zero has no direction for the cosine"
        )
    return pooled, num_unpooled


# --- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """How large the blocks are, and what the whole program needs with them."""

    block_queries: int
    block_gallery: int
    needed_bytes: int
    features_bytes: int  # of that, the feature file in memory; one that is mapped from the disk counts as nothing

    def to_text(self) -> str:
        """One line for people, before the work starts."""
        return (
            f"needs about {_bytes_text(self.needed_bytes)} of memory ({_bytes_text(self.features_bytes)} of them "
            f"features), with blocks of {self.block_queries} queries x {self.block_gallery} gallery pictures"
        )


def plan_memory(
    features: ReidFeatures,
    sweep: Sequence[RerankParams] = (),
    *,
    metric: Metric = "cosine",
    protocol: ProtocolName = "cross-camera",
    multi_query: Pooling | None = None,
    single_shot: SingleShot | None = None,
    max_memory: int | None = None,
) -> MemoryPlan:
    """What `rank` with the same arguments will need, blocks made small enough for `max_memory` bytes.

    Raises:
        RankingError: even the smallest blocks need more.
    """
    who = contest(features, metric=metric, protocol=protocol, multi_query=multi_query)
    return _plan(who, sweep, single_shot, max_memory, None)


def _plan(
    who: Contest,
    sweep: Sequence[RerankParams],
    single_shot: SingleShot | None,
    max_memory: int | None,
    block_queries: int | None,
) -> MemoryPlan:
    if sweep and who.metric == "dot":
        raise RankingError(
            "re-ranking: dot products are no distances between pictures; use the metric cosine or euclidean"
        )
    for params in sweep:
        if params.k1 > len(who.gallery):
            raise RankingError(
                f"re-ranking: k1 = {params.k1} is larger than the gallery of {len(who.gallery)} pictures; use a k1 of "
                f"{len(who.gallery)} or less"
            )
    num_query, num_gallery, length = len(who.query), len(who.gallery), who.gallery.num_features
    queries = block_queries or min(_BLOCK_QUERIES, max(num_query, 1))
    gallery = max(1, min(num_gallery, _BLOCK_BYTES // (4 * length)))
    while True:
        needed, in_memory = _needed(who, sweep, single_shot, queries, gallery)
        if max_memory is None or needed <= max_memory:
            return MemoryPlan(queries, gallery, needed, in_memory)
        if queries <= 8 and gallery <= 1024:
            raise RankingError(
                f"memory: needs about {_bytes_text(needed)} even in small blocks ({_bytes_text(in_memory)} of them "
                f"features), the limit is {_bytes_text(max_memory)}; raise --max-memory"
                + (", or map the features from an uncompressed file" if in_memory > max_memory / 2 else "")
            )
        # Whichever block is the larger share is halved.
        if gallery > 1024 and (queries <= 8 or gallery * length > 2 * queries * gallery):
            gallery = max(1024, gallery // 2)
        else:
            queries = max(8, queries // 2)


def _needed(
    who: Contest, sweep: Sequence[RerankParams], single_shot: SingleShot | None, queries: int, gallery: int
) -> tuple[int, int]:
    """Bytes that the whole program needs at its peak, and those of them that are the features."""
    num_query, num_gallery, length = len(who.query), len(who.gallery), who.gallery.num_features
    stored = who.features.features
    in_memory = 0 if is_mapped(stored) else stored.nbytes
    labels = 100 * len(who.features) + 60 * num_gallery + 100 * len(who.answers.rows)
    pooled = 4 * num_query * length if who.multi_query is not None else 0
    # Vectors as stored and as compared, rough distances and their scratch, and pairs in float64.
    ranking = (
        4 * ((1 if gallery == num_gallery else 2) * gallery + (num_query if num_query <= gallery else 0)) * length
        + 16 * queries * length
        + num_side_by_side() * (4 * queries * (gallery + 2 * 4096) + 2**23)
        + 48 * 2048 * length
    )
    if single_shot is not None:
        ranking = max(ranking, 12 * queries * num_gallery + 24 * 4096 * length)
    reranking = 0
    if sweep:
        num_points = num_gallery if who.leaves_one_out else num_query + num_gallery
        reranking = memory_of_reranking(num_points, num_gallery, length, sweep, queries)
    return _PROGRAM_BYTES + in_memory + labels + pooled + max(ranking, reranking), in_memory


def _bytes_text(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


# --- who is ranked --------------------------------------------------------------------------------------------------


def _rows_of(features: ReidFeatures, protocol: ProtocolName) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of the queries and of the gallery without junk, and how many junk crops there were."""
    is_query, is_gallery = features.splits == "query", features.splits == "gallery"
    if protocol == "leave-one-out":
        ranked = is_query | is_gallery if has_splits(features) else features.splits != MULTI_QUERY
        if not ranked.any():
            raise RankingError(f"features: no pictures to rank; {_found_splits(features)}")
        if (features.pids[ranked] == -1).all():
            raise RankingError(
                f"features: all {ranked.sum()} pictures have pid -1 (junk, or nobody knows who); expected identities; "
                "name people by a folder each, or in a table"
            )
        junk = ranked & (features.pids == -1)
        gallery_rows = np.flatnonzero(ranked & ~junk)
        return np.flatnonzero(ranked & ~junk & ~distractors(features)), gallery_rows, int(junk.sum())
    for name, rows in (("query", is_query), ("gallery", is_gallery)):
        if not rows.any():
            raise RankingError(
                f"features: no {name} pictures; {_found_splits(features)}; without them rank by the protocol "
                "leave-one-out"
            )
    query_rows = np.flatnonzero(is_query)
    _refuse_junk_queries(features.pids[query_rows])
    junk = is_gallery & (features.pids == -1)
    gallery_rows = np.flatnonzero(is_gallery & ~junk)
    if not len(gallery_rows):
        raise RankingError(f"features: all {junk.sum()} gallery pictures are junk (pid -1), nothing is left to rank")
    return query_rows, gallery_rows, int(junk.sum())


def fitting_protocol(features: ReidFeatures) -> tuple[ProtocolName, str]:
    """The protocol that these data allow, and why it is not cross-camera; nothing where it is.

    Where there is nothing to rank, the one that says so. Where file names tell of other cameras than the labels do,
    these are probably misread, and no other protocol takes the place of cross-camera.
    """
    protocol, why = protocol_of(features.pids, features.camids, features.splits)
    if protocol is None:
        return ("cross-camera", "") if has_splits(features) else ("leave-one-out", why)
    ranked = np.flatnonzero(np.isin(features.splits, ("query", "gallery")))
    if protocol == "no-camera" and (features.camids[ranked] != -1).any() and _misread_cameras(features, ranked):
        return "cross-camera", ""
    return protocol, why


def protocol_of(pids: np.ndarray, camids: np.ndarray, splits: np.ndarray) -> tuple[ProtocolName | None, str]:
    """The protocol that pictures can be ranked by, and why it is not cross-camera; None, and why, if by none.

    "cross-camera" where anybody is asked for who is in the gallery under another camera; "no-camera" where no camera is
    known, or all such pictures are of the query's own; "leave-one-out" where query or gallery stands alone, or neither
    is there, and somebody is in two pictures.

    Shapes:
        pids, camids  (N,)  int
        splits        (N,)  text
    """
    query, gallery = (splits == "query") & (pids >= 0), (splits == "gallery") & (pids >= 0)
    if not (query.any() and gallery.any()):
        with_splits = bool(query.any() or gallery.any())
        taken = query | gallery if with_splits else (splits != MULTI_QUERY) & (pids >= 0)
        taken &= (pids != 0) if with_splits and not (pids[query] == 0).any() else True  # distractors
        alone = "no split gallery" if query.any() else "no split query" if with_splits else "no split query or gallery"
        if len(taken_pids := pids[taken]) == len(np.unique(taken_pids)):
            return None, f"{alone}, and nobody in two pictures"
        return "leave-one-out", f"{alone}, so every picture is a query against all others"
    people, place = np.unique(pids[gallery], return_inverse=True)
    lowest = np.full(len(people), np.iinfo(np.int64).max)
    highest = np.full(len(people), -1)
    np.minimum.at(lowest, place, camids[gallery])
    np.maximum.at(highest, place, camids[gallery])
    found = np.searchsorted(people, pids[query]).clip(max=len(people) - 1)
    is_there = people[found] == pids[query]
    if not is_there.any():
        return None, "no query has its person in the gallery"
    if (camids[query] == -1).all() and (camids[gallery] == -1).all():
        return "no-camera", "no camera is known, so none is left out"
    own = camids[query]
    if (is_there & ((own == -1) | (lowest[found] != own) | (highest[found] != own))).any():
        return "cross-camera", ""
    return "no-camera", "no query has its person in the gallery under another camera, so none is left out"


def has_splits(features: ReidFeatures) -> bool:
    """Whether any picture is of split "query" or "gallery"; if not, only leave-one-out can rank them."""
    return bool(np.isin(features.splits, ("query", "gallery")).any())


def _found_splits(features: ReidFeatures) -> str:
    found = ", ".join(sorted(set(features.splits.tolist()))) or "nothing"
    return f"found splits {found}, expected query and gallery"


def distractors(features: ReidFeatures) -> np.ndarray:
    """(N,) bool. Distractors stand in a gallery; and where a query has pid 0, as in MSMT17, that is a person too."""
    if not has_splits(features) or (features.pids[features.splits == "query"] == 0).any():
        return np.zeros(len(features), dtype=bool)
    return features.pids == 0


def _refuse_junk_queries(q_pids: np.ndarray) -> None:
    junk_queries = np.flatnonzero(q_pids < 0)
    if len(junk_queries):
        raise RankingError(
            f"query row {junk_queries[0]} has pid {q_pids[junk_queries[0]]}: a junk crop cannot be searched for "
            f"({len(junk_queries)} such queries); take them out of the query split"
        )


def _some_rows(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _VECTORS] for start in range(0, len(rows), _VECTORS))


def _refuse_zeros(features: ReidFeatures, rows: np.ndarray, name: str) -> None:
    zero = np.concatenate([some[~features.features[some].any(axis=1)] for some in _some_rows(rows)])
    if len(zero):
        raise RankingError(
            f"features: {len(zero)} {name} vectors are zero, the first is {features.paths[zero[0]]}; they have no "
            "direction for the cosine; extract these pictures again or use the Euclidean metric"
        )


def _refuse_constant(features: ReidFeatures, rows: np.ndarray) -> None:
    first = features.features[rows[0]]
    if len(rows) > 1 and all((features.features[some] == first).all() for some in _some_rows(rows)):
        raise RankingError(
            f"features: all {len(rows)} vectors are equal, so nothing can be ranked; the network has collapsed, or its "
            "input was the same picture; extract again"
        )


def _refuse_other_than_bits(features: ReidFeatures, rows: np.ndarray) -> None:
    found: set[float] = set()
    for some in _some_rows(rows):
        codes = features.features[some]
        bad = np.flatnonzero(~((codes == 1) | (codes == 0) | (codes == -1)).all(axis=1))
        if len(bad):
            code = codes[bad[0]]
            value = code[(code != 0) & (np.abs(code) != 1)][0]
            raise RankingError(
                f"features: found {value:g} in {features.paths[some[bad[0]]]}, expected binary codes of 0 and 1 or of "
                "-1 and 1 for the Hamming metric, or the metric hamming-packed for bytes of eight bits"
            )
        found |= {value for value in (-1.0, 0.0) if (codes == value).any()}
    if len(found) == 2:
        raise RankingError("features: found 0 and -1, expected codes of 0 and 1 or of -1 and 1 for the Hamming metric")


def _refuse_other_than_bytes(features: ReidFeatures, rows: np.ndarray) -> None:
    for some in _some_rows(rows):
        codes = features.features[some]
        bad = np.flatnonzero(~((codes >= 0) & (codes <= 255) & (codes == np.round(codes))).all(axis=1))
        if len(bad):
            raise RankingError(
                f"features: the code of {features.paths[some[bad[0]]]} holds other numbers than bytes, expected 0 to "
                "255 for the metric hamming-packed, or hamming for codes with a bit in each entry"
            )


def _exponent(vectors: np.ndarray, rows: np.ndarray) -> int:
    """A power of two for all, which is exact: squared distances then fit a float32, and keep their order."""
    largest = max(float(np.abs(vectors[some]).max()) for some in _some_rows(rows))
    return -int(np.frexp(largest)[1])


def _all_of(vectors: Vectors) -> np.ndarray:
    found = np.empty((len(vectors), vectors.num_features), dtype=np.float32)
    for start in range(0, len(vectors), _VECTORS):
        found[start : start + _VECTORS] = vectors.take(slice(start, start + _VECTORS))
    return found


# --- scoring --------------------------------------------------------------------------------------------------------


def _scored(
    who: Contest, plan: MemoryPlan, sweep: Sequence[RerankParams], curves: SingleShotCurves | None, ties: Ties
) -> tuple[QueryScores, list[QueryScores], int]:
    """Plain scores, those of each setting of re-ranking, and how many queries have a right answer at distance 0."""
    if curves is None:
        plain, num_copies = _plain_scores(who, plan, ties)
    else:
        blocks = (
            [squared_distances_to(who.query.take(slice(start, start + plan.block_queries)), who.gallery)]
            for start in range(0, len(who.query), plan.block_queries)
        )
        ((plain,), num_copies) = _scores_of_blocks(blocks, who.answers, 1, curves=curves, ties=ties, what="ranking")
    if not sweep:
        return plain, [], num_copies
    points = who.gallery if who.leaves_one_out else JoinedVectors(who.query, who.gallery)
    distances = FeatureDistances(_all_of(points))
    reranked: Iterable[Sequence[np.ndarray | RoughBlock]]
    if who.leaves_one_out or curves is not None or any(params.distance != "squared" for params in sweep):
        places = np.searchsorted(who.gallery_rows, who.query_rows)
        reranked = swept_blocks(
            distances,
            places if who.leaves_one_out else np.arange(len(who.query)),
            sweep,
            first_gallery=0 if who.leaves_one_out else len(who.query),
            block_rows=plan.block_queries,
        )
    else:
        reranked = rough_swept_blocks(distances, len(who.query), sweep, block_rows=plan.block_queries)
    swept, _ = _scores_of_blocks(reranked, who.answers, len(sweep), curves=curves, ties=ties, what="re-ranking")
    return plain, swept, num_copies


def _plain_scores(who: Contest, plan: MemoryPlan, ties: Ties) -> tuple[QueryScores, int]:
    """Scores from rough products, exact where it matters; and the number of queries with a right answer at 0.

    The gallery passes by once, so it may lie on disk; for each part of it all queries are asked.
    """
    answers, length = who.answers, who.gallery.num_features
    num_query, num_gallery = len(who.query), len(who.gallery)
    query: Vectors = who.query
    gallery: Vectors = who.gallery
    gallery_sq = None
    if num_query <= plan.block_gallery:  # prepared only once
        query = ArrayVectors(query.take(slice(0, num_query)))
    if num_gallery <= plan.block_gallery:
        gallery = ArrayVectors(gallery.take(slice(0, num_gallery)))
        gallery_sq = squared_lengths(gallery.take(slice(0, num_gallery)))
    blocks = [
        slice(start, min(start + plan.block_queries, num_query)) for start in range(0, num_query, plan.block_queries)
    ]

    def right_answers_of(some: slice) -> np.ndarray:
        here = answers.queries(some.start, some.stop)
        rows = ArrayVectors(query.take(some))
        return paired_squared_distances(rows, here.query_of, gallery, here.rows, y_sq=gallery_sq)

    with side_by_side() as spread:
        right = list(spread(right_answers_of, blocks))
    counts = PlaceCounts(answers, np.concatenate(right), ties=ties)
    binary = who.metric in ("hamming", "hamming-packed")  # sums of ones: no product is rough
    buffers: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(num_side_by_side()):
        buffers.put(np.empty(plan.block_queries * min(plan.block_gallery, num_gallery), dtype=np.float32))

    def count(first_column: int, columns: np.ndarray, columns_sq: np.ndarray, some: slice) -> None:
        rows = query.take(some)
        rows_sq = squared_lengths(rows)
        exact = _ExactPairs(ArrayVectors(rows), some.start, ArrayVectors(columns), first_column, columns_sq)
        buffer = buffers.get()
        try:
            out = buffer[: len(rows) * len(columns)].reshape(len(rows), len(columns))
            counts.add(
                rough_distances(rows, columns, columns_sq.astype(np.float32), out),
                first_query=some.start,
                first_column=first_column,
                less=rows_sq,
                error=np.zeros(len(rows)) if binary else rough_error(rows_sq, float(columns_sq.max()), length),
                exact=None if binary else exact,
            )
        finally:
            buffers.put(buffer)  # or the next part would wait for ever

    with progress("ranking", num_gallery) as bar, side_by_side() as spread:
        for first_column, columns in _taken_ahead(gallery, plan.block_gallery):
            columns_sq = squared_lengths(columns) if gallery_sq is None else gallery_sq
            list(spread(partial(count, first_column, columns, columns_sq), blocks))  # raises what was raised there
            bar.advance(len(columns))
    num_copies = len(np.unique(answers.query_of[counts.distances == 0]))
    return scores_from_places(answers, counts.places, counts.tied), num_copies


def _taken_ahead(vectors: Vectors, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first and the vectors, `size` at a time; the next ones are read and scaled in the meantime."""
    starts = range(0, len(vectors), size)
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(vectors.take, slice(0, size))
        for start in starts:
            taken = coming.result()
            if start != starts[-1]:
                coming = beside.submit(vectors.take, slice(start + size, start + 2 * size))
            yield start, taken


@dataclass(frozen=True)
class _ExactPairs:
    """Exact distances between queries and gallery pictures of one block, by their numbers in the whole."""

    rows: Vectors
    first_row: int
    columns: Vectors
    first_column: int
    columns_sq: np.ndarray

    def __call__(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        rows, columns = queries - self.first_row, gallery - self.first_column
        return paired_squared_distances(self.rows, rows, self.columns, columns, y_sq=self.columns_sq)


def _scores_of_blocks(
    blocks: Iterable[Sequence[np.ndarray | RoughBlock]],
    answers: RightAnswers,
    num_settings: int,
    *,
    curves: SingleShotCurves | None,
    ties: Ties,
    what: str,
) -> tuple[list[QueryScores], int]:
    """Score distances to the whole gallery: blocks of consecutive queries, one (B, G) per setting, exact or rough.

    Returns the scores of each setting, and how many queries have a right answer at distance 0 in the first.
    """
    counted: list[list[PlaceCounts]] = [[] for _ in range(num_settings)]
    shots: list[list[np.ndarray]] = [[] for _ in range(num_settings)]
    start = 0
    with progress(what, answers.num_query) as bar:
        for settings in blocks:
            first = settings[0]
            stop = start + len(first.values if isinstance(first, RoughBlock) else first)
            here = answers.queries(start, stop)
            for setting, block in enumerate(settings):
                if isinstance(block, RoughBlock):
                    counts = PlaceCounts(here, block.exact(here.query_of, here.rows), ties=ties)
                    counts.add(block.values, less=np.zeros(stop - start), error=block.error, exact=block.exact)
                    counted[setting].append(counts)
                    continue
                if curves is not None:
                    shots[setting] += [curves.curve(start + number, row) for number, row in enumerate(block)]
                counts = PlaceCounts(here, block[here.query_of, here.rows], ties=ties)
                counts.add(block)
                counted[setting].append(counts)
            bar.advance(stop - start)
            start = stop
    scores = [
        scores_from_places(
            answers,
            np.concatenate([counts.places for counts in counted[setting]]),
            np.concatenate([counts.tied for counts in counted[setting]]),
            np.stack(shots[setting]) if curves is not None else None,
        )
        for setting in range(num_settings)
    ]
    num_copies = sum(len(np.unique(counts.answers.query_of[counts.distances == 0])) for counts in counted[0])
    return scores, num_copies


def _why_no_valid_query(
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    answers: RightAnswers,
    name_of: Callable[[int], int | str] = int,
) -> str:
    shared = len(np.intersect1d(q_pids, g_pids))
    message = f"no query has a right answer: query and gallery share {_count(shared, 'identity', 'identities')}"
    if not shared:
        return (
            f"{message} (queries: {_ten_of(q_pids, name_of)}; gallery: {_ten_of(g_pids, name_of)}); expected the same "
            "people in both; are the labels of one of them numbered anew?"
        )
    return (
        f"{message}, all of them only in the query's own camera ({answers.num_left_out.sum()} images left out; cameras "
        f"of the queries: {_ten_of(q_camids)}; of the gallery: {_ten_of(g_camids)}); expected a second camera; set "
        "camids to -1 if the cameras are not known, or rank with the protocol no-camera"
    )


def _ten_of(numbers: np.ndarray, name_of: Callable[[int], int | str] = int) -> str:
    found = np.unique(numbers)
    first = ", ".join(str(name_of(number)) for number in found[:10].tolist())
    return first + (f", ... ({len(found)})" if len(found) > 10 else "")


def _misread_cameras(features: ReidFeatures, rows: np.ndarray) -> str:
    """A hint if file names tell of other cameras than the labels do, else nothing."""
    named = [(row, match[1]) for row in rows if (match := re.search(r"_c(\d+)", features.paths[row]))]
    wrong = [(row, camera) for row, camera in named if int(camera) != features.camids[row]]
    if not wrong or len({camera for _, camera in named}) < 2:
        return ""
    row, camera = wrong[0]
    return (
        f"; cameras may be misread: {features.paths[row]} has camera {camera} in its name and camid "
        f"{features.camids[row]} in the file"
    )


def _scores_json(scores: QueryScores) -> dict[str, Any]:
    curve = scores.single_shot_cmc
    return {
        "map_hits": scores.map_hits,
        "map_trapezoid": scores.map_trapezoid,
        "map_trapezoid_of_all_queries": scores.map_trapezoid_of_all,
        "minp": scores.minp,
        **{f"rank{k}": scores.rank_at(k) for k in REPORTED_RANKS},
        "cmc": scores.cmc.tolist(),
        **({} if curve is None else {"single_shot_cmc": curve.tolist()}),
        "queries_with_ties": int(scores.tied.sum()),
    }


def _params_json(params: RerankParams) -> dict[str, float | str]:
    return {"k1": params.k1, "k2": params.k2, "lambda": params.lambda_, "distance": params.distance}


def _params_text(params: RerankParams) -> str:
    return " ".join(f"{key}={value}" for key, value in _params_json(params).items())


def _single_shot_json(how: SingleShot) -> dict[str, int | str]:
    if how.repetitions is None:
        return {"repetitions": "expected value"}
    return {"repetitions": how.repetitions, "seed": how.seed}


def _single_shot_sentence(how: SingleShot) -> str:
    drawn = "expected value" if how.repetitions is None else f"mean of {how.repetitions} draws, seed {how.seed}"
    return f"Single shot: one picture of each identity in the gallery ({drawn})."


def rerank_sentence(params: RerankParams) -> str:
    """What the re-ranked numbers were re-ranked by."""
    entering = {"squared": "squared distances", "quartic": "distances to the fourth power", "raw": "plain distances"}
    return (
        f"Re-ranked by k-reciprocal neighbours among queries and gallery (k1={params.k1}, k2={params.k2}, "
        f"lambda={params.lambda_:g}, {entering[params.distance]})."
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
