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
from itertools import pairwise
from typing import Literal

import numpy as np

from reid_eval.sorting import in_whole_numbers, sorted_with_places

# Where a wrong answer stands that is exactly as far as a right one: as the gallery has them, after it, or before it.
Ties = Literal["index", "optimistic", "pessimistic"]

# Up to this share of a block is picked out of it; of more, whole rows are sorted.
_FEW = 1 / 16

# Entries of a block that are looked at together: their flags stay in a processor's cache.
_ENTRIES = 2**20

# Queries, gallery numbers and distances of wrong answers, and the numbers of right answers that are farther for sure.
_Unsure = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

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

        Blocks of different queries may be counted at the same time.

        Shapes:
            block  (B, G')  the distances, exact, or rough and less something of the query
            less   (B,)     what the block's rows are less than the distances
            error  (B,)     how far they can be off then; `exact` gives the true ones where that matters
        """
        num_rows = max(1, _ENTRIES // block.shape[1])
        unsure = []
        for start in range(0, len(block), num_rows):
            some = slice(start, start + num_rows)
            less_here, error_here = (None if numbers is None else numbers[some] for numbers in (less, error))
            unsure.append(self._counted(block[some], first_query + start, first_column, less_here, error_here))
        queries, columns, values, stops = map(np.concatenate, zip(*unsure, strict=True))
        if not len(queries):
            return
        distances = values if exact is None else exact(queries, columns)
        starts = np.flatnonzero(np.diff(queries, prepend=-1)).tolist()
        for start, stop in pairwise([*starts, len(queries)]):
            self._settle(queries[start], columns[start:stop], distances[start:stop], stops[start:stop])

    def _counted(
        self,
        block: np.ndarray,
        first_query: int,
        first_column: int,
        less: np.ndarray | None,
        error: np.ndarray | None,
    ) -> _Unsure:
        """Count what is surely before; of what is perhaps: queries, gallery numbers, distances (exact if the block is).

        The last are the numbers of the right answers before which each surely does not come.
        """
        starts = self.answers.starts[first_query : first_query + len(block) + 1]
        here, first = slice(starts[0], starts[-1]), starts[:-1] - starts[0]
        rows = np.repeat(np.arange(len(block)), np.diff(starts))
        lower = upper = self.distances[here]
        if less is not None and error is not None:
            centre = lower - less[rows]  # float64
            lower, upper = ((centre + side * error[rows]).astype(block.dtype) for side in (-1, 1))
        last = np.full(len(block), -np.inf, dtype=block.dtype)
        last[rows] = upper  # of those of a row the last one stays
        within = self._wrong(block, first_query, first_column, last)
        if np.count_nonzero(within) > _FEW * within.size:
            return self._counted_in_rows(
                block, within, first_query, first_column, lower, upper, less, exact=error is None
            )
        hits = np.flatnonzero(within)
        wrong_rows = hits // block.shape[1]
        columns = hits - wrong_rows * block.shape[1]
        values = block[wrong_rows, columns]

        # Whole numbers that rise by row, then by distance, then by column.
        wrong_order, lower_order, upper_order = in_whole_numbers(values, lower, upper)
        shift = (block.shape[1] - 1).bit_length()
        keys = (((wrong_rows << 32) + wrong_order) << shift) + columns
        bounds = np.searchsorted(wrong_rows, np.arange(len(block) + 1))
        for start, stop in pairwise(bounds.tolist()):
            keys[start:stop].sort()
        lower_keys = ((rows << 32) + lower_order) << shift
        surely = np.searchsorted(keys, lower_keys)
        perhaps = np.searchsorted(keys, ((rows << 32) + upper_order + 1) << shift)
        self.before[here] += surely - bounds[rows]
        open_ = keys[_union(surely, perhaps)]
        open_rows, open_columns = open_ >> (32 + shift), open_ & ((1 << shift) - 1)
        distances = block[open_rows, open_columns]
        return (
            first_query + open_rows,
            first_column + open_columns,
            distances if less is None else distances + less[open_rows],
            np.searchsorted(lower_keys, open_, "right") - first[open_rows],
        )

    def _counted_in_rows(
        self,
        block: np.ndarray,
        within: np.ndarray,
        first_query: int,
        first_column: int,
        lower: np.ndarray,
        upper: np.ndarray,
        less: np.ndarray | None,
        *,
        exact: bool,
    ) -> _Unsure:
        """The same, where most of a row counts: each is sorted as a whole, and by numbers alone if these are exact."""
        starts = self.answers.starts[first_query : first_query + len(block) + 1]
        unsure = []
        for number in np.flatnonzero(np.diff(starts)).tolist():
            here = slice(starts[number], starts[number + 1])
            low, up = (limits[here.start - starts[0] : here.stop - starts[0]] for limits in (lower, upper))
            row = np.where(within[number], block[number], block.dtype.type(np.inf))
            near, order = (np.sort(row), None) if exact else sorted_with_places(row)
            surely, perhaps = near.searchsorted(low), near.searchsorted(up, "right")
            self.before[here] += surely
            if (perhaps == surely).all():
                continue
            if order is None:
                near, order = sorted_with_places(row)
            open_ = _union(surely, perhaps)
            distances = near[open_] if less is None else near[open_] + less[number]
            queries = np.full(len(open_), first_query + number)
            unsure.append((queries, first_column + order[open_], distances, low.searchsorted(near[open_], "right")))
        if not unsure:
            nobody = np.empty(0, dtype=np.int64)
            return nobody, nobody, self.distances[:0], nobody
        queries, columns, distances, stops = map(np.concatenate, zip(*unsure, strict=True))
        return queries, columns, distances, stops

    def _wrong(self, block: np.ndarray, first_query: int, first_column: int, last: np.ndarray) -> np.ndarray:
        """Which of a block (B, G') are wrong answers and no farther than `last` (B,)."""
        within = block <= last[:, None]
        if self.junk is not None:
            within[:, self.junk[first_column : first_column + block.shape[1]]] = False
        mate_starts = self.answers.mate_starts[first_query : first_query + len(block) + 1]
        rows = np.repeat(np.arange(len(block)), np.diff(mate_starts))
        columns = self.answers.mates[mate_starts[0] : mate_starts[-1]] - first_column
        inside = (columns >= 0) & (columns < block.shape[1])
        within[rows[inside], columns[inside]] = False
        return within

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


def _union(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """All numbers in any of the ranges from starts to stops, both of which rise."""
    starts = np.maximum(starts, np.concatenate([[0], np.maximum.accumulate(stops)[:-1]]))
    lengths = np.maximum(stops - starts, 0)
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
