"""Behind the means: pairs of cameras, the worst queries, people taken for each other, labels that may be wrong.

report = rank(features)
details = details_of(features, report)
details.camera_pairs, details.worst, details.confused, details.label_errors
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from reid_eval.distances import squared_distances_to
from reid_eval.errors import printable
from reid_eval.features import ReidFeatures
from reid_eval.progress import progress
from reid_eval.ranking import Contest, RankReport, contest, distractors

_SHOWN = 10
_BLOCK = 256


@dataclass(frozen=True)
class CameraPair:
    """How queries of one camera are answered if their right answers shall come from one other camera."""

    query_camid: int | str
    gallery_camid: int | str
    num_queries: int
    rank1: float  # share of them whose first picture from that camera is right
    num_right: int


@dataclass(frozen=True)
class WorstQuery:
    """A query far down by average precision."""

    path: str
    pid: int | str
    camid: int | str
    ap_hits: float
    first_hit_place: int  # from 1


@dataclass(frozen=True)
class ConfusedPair:
    """Two people of whom queries of the one find the other first."""

    pid: int | str
    taken_for: int | str
    num_queries: int


@dataclass(frozen=True)
class LikelyLabelError:
    """Two pictures of different identities, mutually nearest, and nearer than the query's own right answers."""

    path: str
    pid: int | str
    other_path: str
    other_pid: int | str
    distance_share: float  # of the distance to the nearest right answer


@dataclass(frozen=True)
class Details:
    """What stands behind the means of one report; all of the plain ranking.

    Where identities or cameras were given as words, they are named by these. A distractor is nobody, so it is counted
    apart from people who are taken for each other.
    """

    camera_pairs: list[CameraPair]
    worst: list[WorstQuery]
    confused: list[ConfusedPair]
    num_distracted: int  # queries whose first image is a distractor
    label_errors: list[LikelyLabelError]

    def to_text(self, shown: int = _SHOWN) -> str:
        """Tables for people, the first lines of each."""
        lines = ["camera pairs (query, gallery): queries, rank-1 among the pictures of that camera alone"]
        lines += [
            f"  {pair.query_camid:>3} {pair.gallery_camid:>3}: {pair.num_queries:>6} {100 * pair.rank1:>7.2f}%"
            for pair in self.camera_pairs
        ]
        lines.append("worst queries: average precision (hits), place of the first right image")
        lines += [
            f"  {query.path} (pid {query.pid}, camera {query.camid}): {100 * query.ap_hits:.2f}%, "
            f"{query.first_hit_place}"
            for query in self.worst[:shown]
        ]
        lines.append("people taken for each other: queries whose first image is the other one's")
        lines += [f"  {pair.pid} -> {pair.taken_for}: {pair.num_queries}" for pair in self.confused[:shown]]
        if self.num_distracted:
            lines.append(f"  a distractor (pid 0) comes first: {self.num_distracted}")
        lines.append("labels to look at: mutually nearest images of different identities, distance as share of the")
        lines.append("distance to the nearest right image")
        lines += [
            f"  {error.path} ({error.pid}) and {error.other_path} ({error.other_pid}): {error.distance_share:.2f}"
            for error in self.label_errors[:shown]
        ]
        return "\n".join(printable(line) for line in lines)


def details_of(features: ReidFeatures, report: RankReport, *, num_worst: int = 100) -> Details:
    """Go once more through all distances of a plain report, a block at a time."""
    who = contest(features, metric=report.metric, protocol=report.protocol_name, multi_query=report.multi_query)
    first_wrong, wrong_sq, right_sq, nearest_query, pairs = _search(who)
    paths, pids, camids = features.paths, features.pids, features.camids
    name, camera = features.name_of, features.camera_name
    is_distractor = distractors(features)
    valid = np.flatnonzero(report.plain.valid)
    worst = valid[np.argsort(report.plain.ap_hits[valid], kind="stable")][:num_worst]
    mistaken = np.flatnonzero((first_wrong >= 0) & (wrong_sq < right_sq) & report.plain.valid)
    found = who.gallery_rows[first_wrong[mistaken]]
    people = mistaken[~is_distractor[found]]
    confused = Counter(
        (int(pids[who.query_rows[query]]), int(pids[who.gallery_rows[first_wrong[query]]])) for query in people
    )
    mutual = [query for query in mistaken if nearest_query[first_wrong[query]] == query]
    errors = [
        LikelyLabelError(
            path=str(paths[who.query_rows[query]]),
            pid=name(pids[who.query_rows[query]]),
            other_path=str(paths[who.gallery_rows[first_wrong[query]]]),
            other_pid=name(pids[who.gallery_rows[first_wrong[query]]]),
            distance_share=float(np.sqrt(wrong_sq[query] / right_sq[query])),
        )
        for query in mutual
        if not is_distractor[who.gallery_rows[first_wrong[query]]]
    ]
    return Details(
        camera_pairs=[
            replace(pair, query_camid=camera(int(pair.query_camid)), gallery_camid=camera(int(pair.gallery_camid)))
            for pair in pairs
        ],
        worst=[
            WorstQuery(
                path=str(paths[row]),
                pid=name(pids[row]),
                camid=camera(camids[row]),
                ap_hits=float(report.plain.ap_hits[query]),
                first_hit_place=int(report.plain.first_hit[query]) + 1,
            )
            for query in worst
            for row in [who.query_rows[query]]
        ],
        confused=[
            ConfusedPair(name(pid), name(other), count)
            for (pid, other), count in sorted(confused.items(), key=lambda kv: (-kv[1], kv[0]))
        ],
        num_distracted=len(mistaken) - len(people),
        label_errors=sorted(errors, key=lambda error: (error.distance_share, error.path)),
    )


def _search(who: Contest) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[CameraPair]]:
    """Nearest wrong picture of each query, its distance, that of the nearest right one, and who is nearest to each.

    Shapes: (Q,) gallery number or -1; (Q,) and (Q,) squared distances, infinite if there is none; (G,) query number.
    """
    answers = who.answers
    g_camids = who.features.camids[who.gallery_rows]
    q_camids = who.features.camids[who.query_rows]
    of_camera = {int(camid): np.flatnonzero(g_camids == camid) for camid in np.unique(g_camids) if camid != -1}
    num_query, num_gallery = len(who.query), len(who.gallery)
    first_wrong = np.full(num_query, -1)
    wrong_sq, right_sq = np.full(num_query, np.inf), np.full(num_query, np.inf)
    nearest_query, nearest_sq = np.full(num_gallery, -1), np.full(num_gallery, np.inf)
    asked: Counter[tuple[int, int]] = Counter()
    right: Counter[tuple[int, int]] = Counter()
    with progress("details", num_query) as bar:
        for start in range(0, num_query, _BLOCK):
            block = squared_distances_to(who.query.take(slice(start, start + _BLOCK)), who.gallery)
            for query, row in enumerate(block, start=start):
                good = answers.rows[answers.starts[query] : answers.starts[query + 1]]
                good_sq = row[good]
                right_sq[query] = good_sq.min(initial=np.inf)
                row[answers.mates_of(query)] = np.inf
                first_wrong[query] = row.argmin() if np.isfinite(row.min()) else -1
                wrong_sq[query] = row.min()
                nearer = row < nearest_sq
                nearest_query[nearer], nearest_sq[nearer] = query, row[nearer]
                for camid in np.unique(g_camids[good]):
                    if camid == -1:
                        continue
                    mine = g_camids[good] == camid
                    pair = (int(q_camids[query]), int(camid))
                    asked[pair] += 1
                    right[pair] += bool(good_sq[mine].min() < row[of_camera[int(camid)]].min())
            bar.advance(len(block))
    pairs = [CameraPair(*pair, asked[pair], right[pair] / asked[pair], right[pair]) for pair in sorted(asked)]
    return first_wrong, wrong_sq, right_sq, nearest_query, pairs
