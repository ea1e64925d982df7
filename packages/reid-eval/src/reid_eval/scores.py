"""From the places of the right answers to the published numbers.

Average precision is published in two forms, "hits" (mean of the precision at each hit: torchreid, fast-reid,
scikit-learn today) and "trapezoid" (the official Market-1501 evaluation); both are always there. The curve of a single
gallery shot (CUHK03, as it was first used) keeps one picture of each identity: its expected value has a closed form,
and repeated draws are there too.

    scores = scores_from_places(answers, places, tied)
    scores.map_hits, scores.map_trapezoid, scores.minp, scores.cmc, scores.ap_hits
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid_eval.places import RightAnswers

REPORTED_RANKS = (1, 3, 5, 10, 20)

_CMC_LENGTH = 50


@dataclass(frozen=True, eq=False)
class QueryScores:
    """How well each query was answered, and the means over the queries that have a right answer.

    Shapes, one entry per query in file order:
        ap_hits, ap_trapezoid, inp  (Q,)  float64, 0..1; NaN for a query without a right answer
        first_hit                   (Q,)  int64, wrong answers before the first right one; -1 if there is none
        num_good                    (Q,)  int64, right answers in the gallery
        num_same_camera             (Q,)  int64, pictures left out because identity and camera are the query's
        tied                        (Q,)  bool, a right and a wrong answer are equally far: the order is a convention
        places                      (M,)  int64, places from 0 of the right answers of all queries, rising within one
        single_shot                 (Q, 50)  float64, share of the draws of one picture per identity in which the right
                                             one is among the first k; None if it was not asked for
    """

    ap_hits: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    first_hit: np.ndarray
    num_good: np.ndarray
    num_same_camera: np.ndarray
    tied: np.ndarray
    places: np.ndarray
    single_shot: np.ndarray | None = None

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
    def map_trapezoid_of_all(self) -> float:
        """The same with 0 for queries without a right answer, as the official program divides."""
        return self.map_trapezoid * self.num_valid / len(self.num_good)

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

    def precision_at_recall(self, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
        """Recall from 0 to 1 and, for each, the mean over valid queries of the best precision at that recall or more.

        Shapes: (points,), (points,) float64.
        """
        recall = np.linspace(0, 1, points)
        total = np.zeros(points)
        ends = np.cumsum(self.num_good)
        for query in np.flatnonzero(self.valid):
            num_good = self.num_good[query]
            place = self.places[ends[query] - num_good : ends[query]]
            precision = np.arange(1, num_good + 1) / (place + 1)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            # The first hit with at least this recall; the small number is for recalls such as 0.07 x 100 of 7.000001.
            total += best[np.maximum(np.ceil(recall * num_good - 1e-9).astype(int) - 1, 0)]
        return recall, total / self.num_valid

    @property
    def single_shot_cmc(self) -> np.ndarray | None:
        """(50,) float64: mean over valid queries of `single_shot`."""
        return None if self.single_shot is None else self.single_shot[self.valid].mean(axis=0)

    def _mean(self, per_query: np.ndarray) -> float:
        # In file order, as the published programs add: the sum is then theirs to the last bit.
        return float(np.add.accumulate(per_query[self.valid])[-1] / self.num_valid)


def scores_from_places(
    answers: RightAnswers, place: np.ndarray, tied: np.ndarray, single_shot: np.ndarray | None = None
) -> QueryScores:
    """The published formulas; every sum runs in the order and the arithmetic of the official program.

    Shapes: place (M,) from 0, rising within a query; tied (Q,).
    """
    num_query, num_good, query_of = answers.num_query, answers.num_good, answers.query_of
    hit = np.arange(len(place)) - answers.starts[query_of] + 1  # i, from 1
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
        num_same_camera=answers.num_left_out,
        tied=tied,
        places=place,
        single_shot=single_shot,
    )


@dataclass(frozen=True)
class SingleShot:
    """One picture per identity in the gallery: the expected curve, or the mean of so many seeded draws per query."""

    repetitions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repetitions is not None and self.repetitions < 1:
            raise ValueError(f"single shot: repetitions must be at least 1, got {self.repetitions}")


class SingleShotCurves:
    """Single-gallery-shot curves of queries, from their distances to the whole gallery.

    Every identity is one person, distractors (pid 0) together too. Which pictures count is as in the full ranking.
    """

    def __init__(self, answers: RightAnswers, g_pids: np.ndarray, how: SingleShot) -> None:
        _, self.person_of = np.unique(g_pids, return_inverse=True)
        self.num_of = np.bincount(self.person_of)
        self.by_person = np.argsort(self.person_of, kind="stable")
        self.first_of = np.cumsum(self.num_of) - self.num_of
        self.answers, self.how = answers, how

    def curve(self, query: int, distances: np.ndarray) -> np.ndarray:
        """(50,) of one query with distances (G,); NaN if it has no right answer."""
        good = self.answers.rows[self.answers.starts[query] : self.answers.starts[query + 1]]
        if not len(good):
            return np.full(_CMC_LENGTH, np.nan)
        if self.how.repetitions is None:
            return self._expected(query, distances, good)
        return self._drawn(query, distances, good, self.how.repetitions)

    def _expected(self, query: int, distances: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Right answers are drawn equally often; a person stands before one with the share of its nearer pictures.

        How many stand before is a sum of independent draws, whose distribution is built up person by person.
        """
        good = good[np.lexsort((good, distances[good]))]
        rows = np.flatnonzero(distances <= distances[good[-1]])
        rows = rows[~np.isin(rows, self.answers.mates_of(query), assume_unique=True)]
        rows = rows[np.argsort(distances[rows], kind="stable")]
        persons = self.person_of[rows]
        chance = np.zeros((len(good), _CMC_LENGTH))  # of exactly k others before each right answer
        chance[:, 0] = 1
        nearer = np.empty((len(good), len(self.num_of)), dtype=np.int64)
        for number, row in enumerate(good):
            num_before = _num_before(distances[rows], rows, distances[row], row)
            nearer[number] = np.bincount(persons[:num_before], minlength=len(self.num_of))
        before = nearer / self.num_of
        for person in np.flatnonzero(nearer[-1]):
            share = before[:, person, None]
            shifted = np.pad(chance, ((0, 0), (1, 0)))[:, :-1]
            chance = chance * (1 - share) + shifted * share
        return np.cumsum(chance.mean(axis=0))

    def _drawn(self, query: int, distances: np.ndarray, good: np.ndarray, repetitions: int) -> np.ndarray:
        rng = np.random.default_rng((self.how.seed, query))
        own = good[rng.integers(len(good), size=repetitions)]  # (R,)
        others = np.flatnonzero(np.arange(len(self.num_of)) != self.person_of[good[0]])
        numbers = rng.integers(self.num_of[others], size=(repetitions, len(others)))
        drawn = self.by_person[self.first_of[others] + numbers]  # (R, persons)
        own_distance = distances[own][:, None]
        nearer = (distances[drawn] < own_distance) | ((distances[drawn] == own_distance) & (drawn < own[:, None]))
        place = nearer.sum(axis=1)
        return np.cumsum(np.bincount(place[place < _CMC_LENGTH], minlength=_CMC_LENGTH)) / repetitions


def _num_before(distances: np.ndarray, rows: np.ndarray, distance: float, row: int) -> int:
    """How many of the pictures `rows`, sorted by distance, come before `row`; equal distances in gallery order."""
    start, stop = (int(np.searchsorted(distances, distance, side)) for side in ("left", "right"))
    return start + int(np.searchsorted(rows[start:stop], row))
