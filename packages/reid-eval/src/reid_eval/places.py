"""Where the right answers of each query stand, by counting instead of sorting.

Every published number follows from the places of the right answers, and the place of one is the number of pictures
nearer than it. So a gallery is not sorted: the distances of the few right answers are known first, and then the gallery
may pass by in any blocks, of any size, each adding to the counts. Equal distances keep the order of the gallery.
Distances may be rough: those too near to a right answer to be sure of are asked for once more, exactly.

    answers = right_answers(q_pids, q_camids, g_pids, g_camids)
    counts = PlaceCounts(answers, distances_of_right_answers)
    for start in range(0, num_gallery, 1000):
        counts.add(distances[:, start : start + 1000], first_column=start)
    counts.places
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reid_eval.sorting import sorted_with_places

# Where a wrong answer stands that is exactly as far as a right one: as the gallery has them, after it, or before it.
Ties = Literal["index", "optimistic", "pessimistic"]

# Up to this share of a row is picked out of it; of more, the whole row is sorted.
_FEW = 1 / 16

# Exact distances (M,) float32 of pairs: query numbers (M,) and gallery numbers (M,).
ExactPairs = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class RightAnswers:
    """The right answers of each query among G gallery pictures, and who else shares its identity.

    Shapes; query q has the entries `starts[q]` to `starts[q + 1]` of `rows`, `mate_starts[q]` to ... of `mates`
        starts, mate_starts  (Q + 1,)  int64
        rows                 (M,)      int64, gallery numbers of right answers, rising within a query
        mates                (L,)      int64, the same with the pictures that are left out, rising within a query
    """

    starts: np.ndarray
    rows: np.ndarray
    mate_starts: np.ndarray
    mates: np.ndarray

    @property
    def num_query(self) -> int:
        return len(self.starts) - 1

    @property
    def num_good(self) -> np.ndarray:
        """(Q,) int64, right answers of each query."""
        return np.diff(self.starts)

    @property
    def num_left_out(self) -> np.ndarray:
        """(Q,) int64, pictures of its identity that do not count for it."""
        return np.diff(self.mate_starts) - self.num_good

    @property
    def query_of(self) -> np.ndarray:
        """(M,) int64, the query of each right answer."""
        return np.repeat(np.arange(self.num_query), self.num_good)

    def queries(self, start: int, stop: int) -> RightAnswers:
        """The right answers of some queries, numbered from 0."""
        rows, mates = (slice(starts[start], starts[stop]) for starts in (self.starts, self.mate_starts))
        return RightAnswers(
            starts=self.starts[start : stop + 1] - self.starts[start],
            rows=self.rows[rows],
            mate_starts=self.mate_starts[start : stop + 1] - self.mate_starts[start],
            mates=self.mates[mates],
        )

    def mates_of(self, query: int) -> np.ndarray:
        return self.mates[self.mate_starts[query] : self.mate_starts[query + 1]]


def right_answers(
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    *,
    cameras: bool = True,
    itself: np.ndarray | None = None,
) -> RightAnswers:
    """Gallery pictures with the query's identity, unless camera (if `cameras` count) or picture are the query's own.

    `itself` (Q,) holds the gallery number of the query's own picture. An unknown camera (-1) equals no other.
    """
    by_pid = np.argsort(g_pids, kind="stable")
    first = np.searchsorted(g_pids[by_pid], q_pids, "left")
    num_mates = np.searchsorted(g_pids[by_pid], q_pids, "right") - first
    query_of = np.repeat(np.arange(len(q_pids)), num_mates)
    mate_starts = np.concatenate([[0], np.cumsum(num_mates)])
    mates = by_pid[np.arange(len(query_of)) + (first - mate_starts[:-1])[query_of]]
    left_out = np.zeros(len(mates), dtype=bool)
    if cameras:
        left_out = (g_camids[mates] == q_camids[query_of]) & (q_camids[query_of] != -1)
    if itself is not None:
        left_out |= mates == itself[query_of]
    num_good = np.bincount(query_of[~left_out], minlength=len(q_pids))
    return RightAnswers(
        starts=np.concatenate([[0], np.cumsum(num_good)]), rows=mates[~left_out], mate_starts=mate_starts, mates=mates
    )


class PlaceCounts:
    """Counts, for every right answer, the wrong ones before it, as blocks of distances come by.

    `junk` (G,) bool marks pictures that count for nobody; `ties` is the rule for equal distances.

    Shapes; the entries of query q are those of `RightAnswers.starts`, sorted by distance
        distances  (M,)  exact
        rows       (M,)  int64, gallery numbers
        before     (M,)  int64, wrong answers seen so far that come before
        tied       (Q,)  bool, a right and a wrong answer seen so far are equally far: the order is a convention
    """

    def __init__(
        self, answers: RightAnswers, distances: np.ndarray, *, ties: Ties = "index", junk: np.ndarray | None = None
    ) -> None:
        order = np.lexsort((answers.rows, distances, answers.query_of))
        self.answers, self.ties, self.junk = answers, ties, junk
        self.distances, self.rows = distances[order], answers.rows[order]
        self.before = np.zeros(len(order), dtype=np.int64)
        self.tied = np.zeros(answers.num_query, dtype=bool)

    @property
    def places(self) -> np.ndarray:
        """(M,) int64: places from 0, rising within a query, of its right answers among all pictures that count."""
        starts = self.answers.starts[:-1]
        return self.before + np.arange(len(self.before)) - np.repeat(starts, self.answers.num_good)

    def add(
        self,
        block: np.ndarray,
        *,
        first_query: int = 0,
        first_column: int = 0,
        less: np.ndarray | None = None,
        error: np.ndarray | None = None,
        exact: ExactPairs | None = None,
    ) -> None:
        """Count a block of distances: queries from `first_query`, gallery from `first_column`.

        Shapes:
            block  (B, G')  the distances, exact, or rough and less something of the query
            less   (B,)     what the block's rows are less than the distances
            error  (B,)     how far they can be off then; `exact` gives the true ones where that matters
        """
        answers = self.answers
        stop_column = first_column + block.shape[1]
        junk = np.zeros(block.shape[1], dtype=bool) if self.junk is None else self.junk[first_column:stop_column]
        passed_over = _PassedOver(junk)
        unsure: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        for number, row in enumerate(block):
            query = first_query + number
            here = slice(answers.starts[query], answers.starts[query + 1])
            if here.start == here.stop:
                continue
            mates = answers.mates_of(query)
            if mates[0] < first_column or mates[-1] >= stop_column:
                mates = mates[(mates >= first_column) & (mates < stop_column)]
            lower = upper = self.distances[here]
            if less is not None and error is not None:
                centre = lower - less[number]  # float64
                lower, upper = ((centre + side * error[number]).astype(block.dtype) for side in (-1, 1))
            near, columns = passed_over.wrong(row, mates - first_column, upper[-1], name_them=exact is not None)
            surely, perhaps = near.searchsorted(lower, "left"), near.searchsorted(upper, "right")
            self.before[here] += surely
            if (perhaps > surely).any():
                if columns is None:
                    near, columns = passed_over.wrong(row, mates - first_column, upper[-1], name_them=True)
                assert columns is not None
                open_ = _union(surely, perhaps)
                values = near[open_]
                true = values if less is None else values + less[number]  # if the block is exact
                # The right answers from number `start` to `stop` may come before it or after it.
                stop = lower.searchsorted(values, "right")
                unsure.append((query, columns[open_] + first_column, true, stop))
        if exact is not None and unsure:
            queries = np.repeat([query for query, *_ in unsure], [len(columns) for _, columns, *_ in unsure])
            exactly = exact(queries, np.concatenate([columns for _, columns, *_ in unsure]))
            ends = np.cumsum([len(columns) for _, columns, *_ in unsure])[:-1]
            unsure = [
                (*some[:2], values, some[3]) for some, values in zip(unsure, np.split(exactly, ends), strict=True)
            ]
        for query, columns, values, stop in unsure:
            self._settle(query, columns, values, stop)

    def _settle(self, query: int, columns: np.ndarray, distances: np.ndarray, stop: np.ndarray) -> None:
        """Count wrong answers (M,) whose exact distance is known now; right ones from number `stop` on have theirs."""
        here = slice(self.answers.starts[query], self.answers.starts[query + 1])
        hits, rows = self.distances[here], self.rows[here]
        place = np.searchsorted(hits, distances, "left")
        tied = np.flatnonzero(hits[np.minimum(place, len(hits) - 1)] == distances)
        if len(tied):
            self.tied[query] = True
            match self.ties:
                case "index":
                    # Of the hits at the very same distance, those earlier in the gallery come before this one too.
                    after_all = max(int(rows.max()), int(columns.max())) + 1
                    keys = np.searchsorted(hits, hits, "left") * after_all + rows  # rising
                    place[tied] = np.searchsorted(keys, place[tied] * after_all + columns[tied])
                case "optimistic":
                    place[tied] = np.searchsorted(hits, distances[tied], "right")
                case "pessimistic":
                    pass
        length = len(hits) + 1
        gained = np.bincount(place, minlength=length) - np.bincount(stop, minlength=length)
        self.before[here] += np.cumsum(gained)[:-1]


class _PassedOver:
    """The wrong answers of one row after another: what is not junk and does not share the query's identity."""

    def __init__(self, junk: np.ndarray) -> None:
        self.flags = junk.copy()  # (G',) junk, and for a moment the mates of a query
        self.junk = np.flatnonzero(junk)
        self.within = np.empty(len(junk), dtype=bool)

    def wrong(
        self, row: np.ndarray, mates: np.ndarray, last: np.generic, *, name_them: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Distances of at least all wrong answers up to `last`, rising, and their columns if they are to be named.

        What is passed over comes at the end, infinitely far, or not at all.
        """
        np.less_equal(row, last, out=self.within)
        if np.count_nonzero(self.within) > _FEW * len(row):
            near = row.copy()
            near[self.junk] = near[mates] = np.inf
            if name_them:
                return sorted_with_places(near)
            near.sort()
            return near, None
        columns = self.within.nonzero()[0]
        self.flags[mates] = True
        columns = columns[~self.flags[columns]]
        self.flags[mates] = False
        near, order = sorted_with_places(row[columns])
        return near, columns[order]


def _union(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """All numbers in any of the ranges from starts to stops, both of which rise."""
    starts = np.maximum(starts, np.concatenate([[0], np.maximum.accumulate(stops)[:-1]]))
    lengths = np.maximum(stops - starts, 0)
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
