"""How a training is measured as it goes: who is searched for among whom, and what is said of it.

evaluation = Evaluation.of(data, "auto")         # None where nothing can be measured
report = evaluation.measure(embedder, rerank=True, num_workers=4)
scores_of(report)                                # {"eval_map_hits": 0.81, "eval_rank1": 0.92, ...}
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from reid_eval.ranking import ProtocolName, QueryScores, RankReport, rank, rerank_params
from reid_models.config import ConfigError
from reid_models.data.check import fitting_protocol, ranked_splits
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.extraction import Embedder, extract_features

logger = logging.getLogger(__name__)

EvalProtocol = Literal["auto", "cross-camera", "no-camera", "leave-one-out"]
RANKS = (1, 3, 5, 10)


@dataclass(frozen=True)
class Evaluation:
    """Ranks pictures of a dataset under one protocol."""

    data: DatasetIndex
    protocol: ProtocolName
    splits: tuple[str, ...]
    num_queries: int
    num_selves: int
    """queries whose own picture lies in the gallery and counts as a right answer"""

    @classmethod
    def of(cls, data: DatasetIndex, asked: EvalProtocol) -> Evaluation | None:
        """How to measure on a dataset; None, and a warning, where nothing can be.

        "auto" takes cross-camera where anybody can be found under another camera, and else says what it takes.

        Raises:
            ConfigError: the protocol that is asked for has no query with an answer.
        """
        splits = tuple(split for split in ("query", "gallery") if split in data.splits)
        protocol, why = fitting_protocol(data) if asked == "auto" else (asked, "")
        if not splits or (len(splits) == 1 and asked != "auto" and asked != "leave-one-out"):
            logger.warning(
                "%s: no query and gallery, so nothing is evaluated and no best checkpoint is kept; afterwards "
                "'reid-models extract' and 'reid-eval rank' rank %s among themselves",
                data.root, "those whom it was trained on" if ranked_splits(data) == ("train_all",) else "its people",
            )  # fmt: skip
            return None
        query, gallery = ([record for record in data if record.split == name] for name in ("query", "gallery"))
        if asked != "auto" and not _is_answerable(query, gallery, asked):
            raise ConfigError(
                f"eval_protocol: under {asked} no query of {data.root} has a right answer; set eval_protocol=auto, or "
                "see reid-models check"
            )
        if protocol is None:
            logger.warning("%s: %s, so nothing is evaluated", data.root, why)
            return None
        if protocol != "leave-one-out" and any(record.pid < 0 for record in query):
            logger.warning("%s: junk (-1) among the queries, so nothing is evaluated; take it out", data.root)
            return None
        if asked == "auto" and protocol != "cross-camera":
            logger.warning("%s: %s: the protocol is %s (eval_protocol)", data.root, why, protocol)
        return cls(data, protocol, splits, len(query), _selves(query, gallery, protocol))

    def measure(self, embedder: Embedder, *, rerank: bool, num_workers: int) -> RankReport:
        """Rank with an embedder, and re-rank too.

        Raises:
            Stopped: something asked to stop.
            ImageError: a picture is damaged.
        """
        features = extract_features(embedder, self.data, self.splits, num_workers=num_workers)
        params = rerank_params(features) if rerank else None
        # A bad epoch may be followed by better ones.
        report = rank(features, rerank=params, protocol=self.protocol, even_if_collapsed=True)
        if self.num_selves:
            logger.warning(
                "%d of %d query pictures lie in the gallery too and find themselves, so mAP %.4f and rank-1 %.4f say "
                "little; list each picture once, or tell the cameras",
                self.num_selves, self.num_queries, report.map_hits, report.cmc[0],
            )  # fmt: skip
        return report


def _is_answerable(query: list[ImageRecord], gallery: list[ImageRecord], protocol: ProtocolName) -> bool:
    cameras_of: defaultdict[int, list[int]] = defaultdict(list)
    for record in [*query, *gallery] if protocol == "leave-one-out" else gallery:
        cameras_of[record.pid].append(record.camid)
    match protocol:
        case "leave-one-out":
            lowest = 0 if any(record.pid == 0 for record in query) else 1  # 0 is a distractor where nobody asks for it
            return any(len(cameras) > 1 for pid, cameras in cameras_of.items() if pid >= lowest)
        case "no-camera":
            return any(record.pid in cameras_of for record in query)
    # Camera -1 is unknown and hides nothing.
    return any(set(cameras_of[record.pid]) - ({record.camid} - {-1}) for record in query)


def _selves(query: list[ImageRecord], gallery: list[ImageRecord], protocol: ProtocolName) -> int:
    """How many queries have their own picture among the right answers."""
    shown: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in gallery:
        shown[os.path.realpath(record.path)].append(record)

    def finds_itself(record: ImageRecord) -> bool:
        same = [other for other in shown.get(os.path.realpath(record.path), ()) if other.pid == record.pid]
        hidden = protocol == "cross-camera" and record.camid != -1
        return any(not hidden or other.camid != record.camid for other in same)

    return sum(map(finds_itself, query))


def scores_of(report: RankReport) -> dict[str, float]:
    """What the log keeps of an evaluation."""
    columns: list[tuple[str, QueryScores]] = [("", report.plain)]
    if report.reranked is not None:
        columns.append(("_rerank", report.reranked))
    scores = {}
    for suffix, column in columns:
        scores[f"eval_map_hits{suffix}"] = column.map_hits
        scores |= {f"eval_rank{rank}{suffix}": float(column.cmc[rank - 1]) for rank in RANKS}
    return scores


def told(scores: dict[str, float]) -> str:
    """The scores of an evaluation in one line."""
    lines = []
    for suffix, title in (("", ""), ("_rerank", "re-ranked ")):
        if f"eval_map_hits{suffix}" in scores:
            ranks = "/".join(f"{scores[f'eval_rank{rank}{suffix}']:.4f}" for rank in RANKS)
            names = "/".join(map(str, RANKS))
            lines.append(f"{title}mAP {scores[f'eval_map_hits{suffix}']:.4f}, rank-{names} {ranks}")
    return "; ".join(lines)
