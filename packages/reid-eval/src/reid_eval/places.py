"""Where the right answers of each query stand, by counting instead of sorting.

Every published number follows from the places of the right answers, and the place of one is the number of pictures
nearer than it. So a gallery is not sorted: the distances of the few right answers are known first, and then the gallery
may pass by in any blocks, of any size, each adding to the counts. Equal distances keep the order of the gallery.
Distances may be rough: those too near to a right answer to be sure of are asked for once more, exactly.

    answers = right_answers(q_pids, q_camids, g_pids, g_camids)
    counts = PlaceCounts(answers, distances_of_right_answers)
    for start in range(0, num_gallery, 1000):
        counts.add(distances[:, start : start + 1000].copy(), first_column=start)
    counts.places
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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

    Shapes; the entries of query q are those of `RightAnswers.starts`, sorted by distance
        distances  (M,)  exact
        rows       (M,)  int64, gallery numbers
        before     (M,)  int64, wrong answers seen so far that come before
        tied       (Q,)  bool, a right and a wrong answer seen so far are equally far: the order is a convention
    """

    def __init__(self, answers: RightAnswers, distances: np.ndarray) -> None:
        order = np.lexsort((answers.rows, distances, answers.query_of))
        self.answers = answers
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
        """Count a block of distances, which is overwritten: queries from `first_query`, gallery from `first_column`.

        Shapes:
            block  (B, G')  the distances, exact, or rough and less something of the query
            less   (B,)     what the block's rows are less than the distances
            error  (B,)     how far they can be off then; `exact` gives the true ones where that matters
        """
        answers = self.answers
        stop_column = first_column + block.shape[1]
        unsure: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        for number, row in enumerate(block):
            query = first_query + number
            here = slice(answers.starts[query], answers.starts[query + 1])
            if here.start == here.stop:
                continue
            mates = answers.mates_of(query)
            if len(mates) and mates[-1] >= first_column and mates[0] < stop_column:
                row[mates[(mates >= first_column) & (mates < stop_column)] - first_column] = np.inf
            lower = upper = self.distances[here]
            if less is not None and error is not None:
                centre = lower - less[number]  # float64
                lower, upper = ((centre + side * error[number]).astype(block.dtype) for side in (-1, 1))
            last = upper[-1].item()  # a Python number is compared in the block's own precision
            near = row[row <= last]
            near.sort()
            surely_before = near.searchsorted(lower, "left")
            self.before[here] += surely_before
            if (near.searchsorted(upper, "right") > surely_before).any():
                columns = np.flatnonzero(row <= last)
                values = row[columns]
                start, stop = upper.searchsorted(values, "left"), lower.searchsorted(values, "right")
                open_ = start < stop  # the right answers between these two may come before it or after it
                true = values[open_] if less is None else values[open_] + less[number]  # if the block is exact
                unsure.append((query, columns[open_] + first_column, true, stop[open_]))
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
            # Of the hits at the very same distance, those earlier in the gallery come before this wrong answer too.
            self.tied[query] = True
            after_all = max(int(rows.max()), int(columns.max())) + 1
            keys = np.searchsorted(hits, hits, "left") * after_all + rows  # rising
            place[tied] = np.searchsorted(keys, place[tied] * after_all + columns[tied])
        length = len(hits) + 1
        gained = np.bincount(place, minlength=length) - np.bincount(stop, minlength=length)
        self.before[here] += np.cumsum(gained)[:-1]
