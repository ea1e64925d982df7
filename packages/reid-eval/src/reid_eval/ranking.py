"""Rank a gallery against queries: mean average precision in both published forms, CMC and mINP.

Arrays in, numbers out: no files, no devices. A gallery picture with the query's identity *and* camera is neither right
nor wrong and is left out for that query; a junk crop (pid -1) is left out for all; a distractor (pid 0) is an ordinary
wrong answer. An unknown camera (-1) equals no other, so nothing is left out on its account. Equal distances keep the
order of the gallery. Average precision is published in two forms, "hits" (mean of the precision at each hit: torchreid,
fast-reid, scikit-learn today) and "trapezoid" (the official Market-1501 evaluation); both are always reported.

    features = ReidFeatures.load("runs/teacher/features.npz")
    report = rank(features, rerank=RerankParams())     # plain and re-ranked, side by side
    report.map_hits, report.cmc[0], report.reranked.map_hits
    print(report.to_text())
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reid_eval import __version__
from reid_eval.distances import squared_distances, unit_length
from reid_eval.errors import ReidError
from reid_eval.features import ReidFeatures
from reid_eval.progress import progress
from reid_eval.rerank import FeatureDistances, RerankParams, reranked_blocks

if TYPE_CHECKING:
    from reid_eval.report import MetricResult

Metric = Literal["cosine", "euclidean"]

REPORTED_RANKS = (1, 3, 5, 10)

_CMC_LENGTH = 50
_BLOCK_QUERIES = 256


class RankingError(ReidError):
    """These features or distances cannot be ranked; the message says which rows stand in the way."""


@dataclass(frozen=True, eq=False)
class QueryScores:
    """How well each query was answered, and the means over the queries that have a right answer.

    Shapes, one entry per query in file order:
        ap_hits, ap_trapezoid, inp  (Q,)  float64, 0..1; NaN for a query without a right answer
        first_hit                   (Q,)  int64, wrong answers before the first right one; -1 if there is none
        num_good                    (Q,)  int64, right answers in the gallery
        num_same_camera             (Q,)  int64, pictures left out because identity and camera are the query's
        tied                        (Q,)  bool, a right and a wrong answer are equally far: the order is a convention
    """

    ap_hits: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    first_hit: np.ndarray
    num_good: np.ndarray
    num_same_camera: np.ndarray
    tied: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """(Q,) bool: the query has a right answer in another camera."""
        return self.num_good > 0

    @property
    def num_valid(self) -> int:
        return int(self.valid.sum())

    @property
    def num_invalid(self) -> int:
        return len(self.num_good) - self.num_valid

    @property
    def map_hits(self) -> float:
        """Mean over valid queries of the mean precision at each hit."""
        return self._mean(self.ap_hits)

    @property
    def map_trapezoid(self) -> float:
        """Mean over valid queries of the area under precision and recall, as the official Market evaluation has it."""
        return self._mean(self.ap_trapezoid)

    @property
    def minp(self) -> float:
        """Mean over valid queries of the share of right answers among all pictures down to the last right one."""
        return self._mean(self.inp)

    @property
    def cmc(self) -> np.ndarray:
        """(50,) float64: `cmc[k - 1]` is the share of valid queries with a right answer among the first k."""
        return self.cmc_curve(_CMC_LENGTH)

    def cmc_curve(self, length: int) -> np.ndarray:
        """The first `length` entries of the cumulative match curve; it is defined beyond the gallery's end too."""
        first = self.first_hit[self.valid]
        answered_at = np.bincount(first[first < length], minlength=length)
        return np.cumsum(answered_at) / self.num_valid

    def rank_at(self, k: int) -> float:
        """Share of valid queries with a right answer among the first k."""
        return float(self.cmc_curve(k)[k - 1])

    def _mean(self, per_query: np.ndarray) -> float:
        # In file order, as the published programs add: the sum is then theirs to the last bit.
        return float(np.add.accumulate(per_query[self.valid])[-1] / self.num_valid)


@dataclass(frozen=True, eq=False)
class RankReport:
    """Scores of one feature file, with everything needed to say how they came about.

    The short names (`map_hits`, `cmc`, ...) are the plain ranking; the re-ranked one stands beside it in `reranked`.
    """

    plain: QueryScores
    reranked: QueryScores | None
    rerank: RerankParams | None
    metric: Metric
    num_gallery: int  # ranked: junk is gone, distractors are in
    num_distractors: int
    num_junk: int
    num_unknown_query_cameras: int
    num_unknown_gallery_cameras: int
    made_by: dict[str, Any]

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
        columns = [column for column in (self.plain, self.reranked) if column is not None]
        lines = [" " * 17 + "".join(f"{name:>12}" for name in ("plain", "re-ranked")[: len(columns)])]
        for label, _, values in self._rows(columns):
            lines.append(f"{label:<17}" + "".join(f"{100 * value:>11.2f}%" for value in values))
        return "\n".join([*lines, "", *self._remarks()])

    def to_json(self) -> str:
        """One JSON object: fractions 0..1 at full precision, counts and conventions."""
        return json.dumps(
            {
                "plain": _scores_json(self.plain),
                "reranked": None if self.reranked is None else _scores_json(self.reranked),
                "queries": {
                    "valid": self.num_valid_queries,
                    "invalid": self.num_invalid_queries,
                    "unknown_camera": self.num_unknown_query_cameras,
                },
                "gallery": {
                    "ranked": self.num_gallery,
                    "distractors": self.num_distractors,
                    "junk_left_out": self.num_junk,
                    "unknown_camera": self.num_unknown_gallery_cameras,
                },
                "metric": self.metric,
                "rerank": None if self.rerank is None else _params_json(self.rerank),
                "protocol": self.protocol,
                "made_by": self.made_by,
            },
            indent=2,
        )

    def metrics(self) -> list[MetricResult]:
        """One metric file's content for each number, plain and re-ranked; values are fractions 0..1."""
        from reid_eval.report import MetricResult

        results = []
        for scores, suffix in ((self.plain, ""), (self.reranked, "_rerank")):
            if scores is None:
                continue
            made_by = {**self.made_by, "metric": self.metric}
            protocol = self.protocol
            if suffix and self.rerank is not None:
                made_by["rerank"] = _params_json(self.rerank)
                protocol = f"{_rerank_sentence(self.rerank)} {protocol}"
            for _, name, (value,) in self._rows([scores]):
                results.append(
                    MetricResult(
                        name=f"{name}{suffix}",
                        value=value,
                        higher_is_better=True,
                        protocol=f"{_MEANING[name]} {protocol}",
                        made_by=made_by,
                    )
                )
        return results

    @property
    def protocol(self) -> str:
        """The conventions in sentences: what was ranked against what, and what was left out."""
        return " ".join(self._protocol())

    def _protocol(self) -> Iterator[str]:
        distance = "cosine distance" if self.metric == "cosine" else "Euclidean distance of the vectors as stored"
        yield (
            f"{_count(self.num_valid_queries, 'query', 'queries')} against {self.num_gallery} gallery images "
            f"({_count(self.num_distractors, 'distractor')} among them), single query, {distance}."
        )
        yield (
            f"Left out: {_count(self.num_junk, 'junk crop')} (pid -1), per query the images with its identity and its "
            f"camera, and {_count(self.num_invalid_queries, 'query', 'queries')} without a right image."
        )
        yield "Equal distances in gallery order."
        if self.num_unknown_query_cameras or self.num_unknown_gallery_cameras:
            yield (
                f"The camera of {_count(self.num_unknown_query_cameras, 'query', 'queries')} and "
                f"{_count(self.num_unknown_gallery_cameras, 'gallery image')} is unknown: the same-camera rule could "
                "not be applied to them."
            )

    def _rows(self, columns: list[QueryScores]) -> Iterator[tuple[str, str, list[float]]]:
        yield "mAP (hits)", "map_hits", [scores.map_hits for scores in columns]
        yield "mAP (trapezoid)", "map_trapezoid", [scores.map_trapezoid for scores in columns]
        yield "mINP", "minp", [scores.minp for scores in columns]
        for k in REPORTED_RANKS:
            yield f"rank-{k}", f"rank{k}", [scores.rank_at(k) for scores in columns]

    def _remarks(self) -> Iterator[str]:
        yield "hits: mean precision at each hit (torchreid, fast-reid); trapezoid: the official Market-1501 evaluation"
        yield from self._protocol()
        if self.rerank is not None:
            yield _rerank_sentence(self.rerank)
        num_tied = int(self.plain.tied.sum())
        if num_tied:
            yield f"In {_count(num_tied, 'query', 'queries')} a right and a wrong image are equally far (plain)."


_MEANING = {
    "map_hits": "Mean average precision, mean of the precision at each hit (the form of torchreid and fast-reid).",
    "map_trapezoid": "Mean average precision, trapezoid form (the official Market-1501 evaluation).",
    "minp": "Mean inverse negative penalty: right images as a share of all images down to the last right one.",
    **{
        f"rank{k}": "Cumulative match, rank-k: share of queries with a right image among the first k."
        for k in REPORTED_RANKS
    },
}


def rank(
    features: ReidFeatures,
    *,
    rerank: RerankParams | None = None,
    metric: Metric = "cosine",
    block_queries: int = _BLOCK_QUERIES,
) -> RankReport:
    """Score the query rows of a feature file against its gallery rows, and once more re-ranked if asked.

    "cosine" compares directions, "euclidean" the vectors as stored. Re-ranking uses the squared distances of the same
    vectors, junk left out of the neighbourhoods too. Distances exist for `block_queries` queries at a time; the
    numbers do not depend on it.

    Raises:
        RankingError: a split is empty, a query is junk, no query has a right answer, or a vector is zero (cosine).
        RerankError: fewer pictures than re-ranking needs neighbours.
    """
    query, gallery = features.query, features.gallery
    for name, part in (("query", query), ("gallery", gallery)):
        if not len(part):
            found = ", ".join(sorted(set(features.splits.tolist()))) or "nothing"
            raise RankingError(f"features: no {name} pictures; found splits {found}, expected query and gallery")
    junk = gallery.pids == -1
    num_junk = int(junk.sum())
    if num_junk:
        gallery = gallery.rows(np.flatnonzero(~junk))
        if not len(gallery):
            raise RankingError(f"features: all {num_junk} gallery pictures are junk (pid -1), nothing is left to rank")
    if metric == "cosine":
        query_vectors, gallery_vectors = _directions(query, "query"), _directions(gallery, "gallery")
    elif metric == "euclidean":
        query_vectors, gallery_vectors = _near_unit_size(query.features, gallery.features)
    else:
        raise RankingError(f"metric: found {metric!r}, expected 'cosine' or 'euclidean'")

    labels = (query.pids, query.camids, gallery.pids, gallery.camids)
    blocks = (
        squared_distances(query_vectors[start : start + block_queries], gallery_vectors)
        for start in range(0, len(query), block_queries)
    )
    plain = _score(blocks, *labels, what="ranking")
    reranked = None
    if rerank is not None:
        points = FeatureDistances(np.concatenate([query_vectors, gallery_vectors]))
        reranked_distances = reranked_blocks(points, len(query), rerank, block_rows=block_queries)
        reranked = _score(reranked_distances, *labels, what="re-ranking")
    # MSMT17 numbers its people from 0: where somebody asks for person 0, pid 0 is a person and no distractor.
    distractors = 0 if (query.pids == 0).any() else int((gallery.pids == 0).sum())
    return RankReport(
        plain=plain,
        reranked=reranked,
        rerank=rerank,
        metric=metric,
        num_gallery=len(gallery),
        num_distractors=distractors,
        num_junk=num_junk,
        num_unknown_query_cameras=int((query.camids == -1).sum()),
        num_unknown_gallery_cameras=int((gallery.camids == -1).sum()),
        made_by={**features.meta, "reid_eval": __version__, "features": features.fingerprint},
    )


def rank_distances(
    distances: np.ndarray, q_pids: np.ndarray, q_camids: np.ndarray, g_pids: np.ndarray, g_camids: np.ndarray
) -> QueryScores:
    """Score distances that somebody else computed, (Q, G), smaller is closer; the rules are those of `rank`.

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
    bad = np.flatnonzero(~np.isfinite(distances).all(axis=1))
    if len(bad):
        raise RankingError(f"distances: {len(bad)} rows hold NaN or infinite values, the first is row {bad[0]}")
    kept = np.flatnonzero(labels[2] != -1)
    blocks = (distances[start : start + _BLOCK_QUERIES, kept] for start in range(0, num_query, _BLOCK_QUERIES))
    return _score(blocks, labels[0], labels[1], labels[2][kept], labels[3][kept], what="ranking")


def rerank_params(features: ReidFeatures) -> RerankParams:
    """The published k1 = 20, k2 = 6, lambda = 0.3; of hardly any test pictures, the nearest that make sense."""
    num_ranked = len(features.query) + int((features.gallery.pids != -1).sum())
    k1 = max(1, min(20, num_ranked - 1))
    return RerankParams(k1=k1, k2=min(6, k1 + 1))


def _directions(part: ReidFeatures, name: str) -> np.ndarray:
    zero = np.flatnonzero(~part.features.any(axis=1))
    if len(zero):
        raise RankingError(
            f"features: {len(zero)} {name} vectors are zero, the first is {part.paths[zero[0]]}; they have no "
            "direction for the cosine; extract these pictures again or use the Euclidean metric"
        )
    return unit_length(part.features)


def _near_unit_size(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both times one power of two, which is exact: squared distances then fit a float32, and keep their order."""
    _, exponent = np.frexp(max(np.abs(query).max(), np.abs(gallery).max()))
    return np.ldexp(query, -exponent), np.ldexp(gallery, -exponent)


def _score(
    blocks: Iterable[np.ndarray],
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    *,
    what: str,
) -> QueryScores:
    """Score consecutive blocks (B, G) of the distances of all queries; the gallery holds no junk."""
    junk_queries = np.flatnonzero(q_pids < 0)
    if len(junk_queries):
        raise RankingError(
            f"query row {junk_queries[0]} has pid {q_pids[junk_queries[0]]}: a junk crop cannot be searched for "
            f"({len(junk_queries)} such queries); take them out of the query split"
        )
    by_pid = np.argsort(g_pids, kind="stable")
    first_mate = np.searchsorted(g_pids[by_pid], q_pids, "left")
    last_mate = np.searchsorted(g_pids[by_pid], q_pids, "right")
    is_mate = np.zeros(len(g_pids), dtype=bool)

    num_query = len(q_pids)
    places: list[np.ndarray] = []
    num_same_camera = np.zeros(num_query, dtype=np.int64)
    tied = np.zeros(num_query, dtype=bool)
    with progress(what, num_query) as bar:
        for block in blocks:
            for distances in block:
                q = len(places)
                mates = by_pid[first_mate[q] : last_mate[q]]  # the query's identity, in gallery order
                same_camera = (g_camids[mates] == q_camids[q]) & (q_camids[q] != -1)
                good = mates[~same_camera]
                num_same_camera[q] = same_camera.sum()
                is_mate[mates] = True
                hits, tied[q] = _places_of_hits(distances, good, is_mate)
                is_mate[mates] = False
                places.append(hits)
            bar.advance(len(block))
    if not any(len(hits) for hits in places):
        raise RankingError(_why_no_valid_query(q_pids, g_pids, num_same_camera))
    return _scores_from_places(places, num_same_camera, tied)


def _places_of_hits(distances: np.ndarray, good: np.ndarray, is_mate: np.ndarray) -> tuple[np.ndarray, bool]:
    """Places, from 0 and rising, of the right answers among all that count; and whether a wrong one ties with them.

    Counts instead of sorting: only wrong answers as near as the last right one matter, and each of them only has to
    find its place among the few right ones.

    Shapes:
        distances  (G,)  of one query
        good       (n,)  the right answers, rising
        is_mate    (G,)  bool, has the query's identity: right, or left out because of its camera
    """
    if not len(good):
        return np.empty(0, dtype=np.int64), False
    good = good[np.argsort(distances[good], kind="stable")]
    good_distances = distances[good]
    near = np.flatnonzero(distances <= good_distances[-1])
    near = near[~is_mate[near]]  # wrong answers
    nearer_hits = np.searchsorted(good_distances, distances[near], "left")
    tied = np.flatnonzero(good_distances[nearer_hits] == distances[near])
    if len(tied):
        # Of the hits at the very same distance, those earlier in the gallery come before this wrong answer too.
        group = np.searchsorted(good_distances, good_distances, "left")
        keys = group * len(distances) + good  # rising: hits at one distance are in gallery order
        nearer_hits[tied] = np.searchsorted(keys, nearer_hits[tied] * len(distances) + near[tied])
    wrong_before = np.cumsum(np.bincount(nearer_hits, minlength=len(good) + 1))[: len(good)]
    return np.arange(len(good)) + wrong_before, bool(len(tied))


def _scores_from_places(places: list[np.ndarray], num_same_camera: np.ndarray, tied: np.ndarray) -> QueryScores:
    """The published formulas; every sum runs in the order and the arithmetic of the official program."""
    num_query = len(places)
    num_good = np.array([len(hits) for hits in places], dtype=np.int64)
    query_of = np.repeat(np.arange(num_query), num_good)
    place = np.concatenate(places)  # r, from 0
    hit = np.concatenate([np.arange(1, n + 1) for n in num_good])  # i, from 1
    after = hit * 1.0 / (place + 1)  # precision just after the hit
    before = np.where(place > 0, (hit - 1) / np.maximum(place, 1), 1.0)  # and just before it
    recall_step = 1.0 / num_good[query_of]
    last = np.cumsum(num_good)[num_good > 0] - 1
    first = last + 1 - num_good[num_good > 0]

    valid = num_good > 0
    ap_hits = np.full(num_query, np.nan)
    ap_trapezoid = np.full(num_query, np.nan)
    inp = np.full(num_query, np.nan)
    first_hit = np.full(num_query, -1, dtype=np.int64)
    # bincount adds its weights one after another, in order.
    ap_hits[valid] = np.bincount(query_of, weights=after, minlength=num_query)[valid] / num_good[valid]
    trapezoids = recall_step * (before + after) / 2
    ap_trapezoid[valid] = np.bincount(query_of, weights=trapezoids, minlength=num_query)[valid]
    inp[valid] = num_good[valid] / (place[last] + 1)
    first_hit[valid] = place[first]
    return QueryScores(
        ap_hits=ap_hits,
        ap_trapezoid=ap_trapezoid,
        inp=inp,
        first_hit=first_hit,
        num_good=num_good,
        num_same_camera=num_same_camera,
        tied=tied,
    )


def _why_no_valid_query(q_pids: np.ndarray, g_pids: np.ndarray, num_same_camera: np.ndarray) -> str:
    shared = len(np.intersect1d(q_pids, g_pids))
    message = f"no query has a right answer: query and gallery share {_count(shared, 'identity', 'identities')}"
    if not shared:
        return f"{message}; expected the same people in both; are the labels of one of them numbered anew?"
    return (
        f"{message}, all of them only in the query's own camera ({num_same_camera.sum()} images left out); expected a "
        "second camera; set camids to -1 if the cameras are not known"
    )


def _scores_json(scores: QueryScores) -> dict[str, Any]:
    return {
        "map_hits": scores.map_hits,
        "map_trapezoid": scores.map_trapezoid,
        "minp": scores.minp,
        **{f"rank{k}": scores.rank_at(k) for k in REPORTED_RANKS},
        "cmc": scores.cmc.tolist(),
        "queries_with_ties": int(scores.tied.sum()),
    }


def _params_json(params: RerankParams) -> dict[str, float]:
    return {"k1": params.k1, "k2": params.k2, "lambda": params.lambda_}


def _rerank_sentence(params: RerankParams) -> str:
    return (
        f"Re-ranked by k-reciprocal neighbours among queries and gallery (k1={params.k1}, k2={params.k2}, "
        f"lambda={params.lambda_:g}, squared distances)."
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
