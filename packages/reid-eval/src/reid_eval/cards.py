"""May two numbers be compared? Each says how it was made; numbers of unlike making are refused.

Likeness is asked for in the metric's name, in everything of its record `made_by["how"]` (data, protocol, distance;
features, kernel, pairs, seed ...), in the real pictures (their content), and in the number of generated ones, on which
the bias depends. Only the vectors, or the generated pictures, may differ. A number without a complete record is
comparable with none.

    compare(load_results("a.json"), load_results("b.json"))    # [Comparison("fid_inception", 3.1, 2.8, ...), ...]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError, printable
from reid_eval.reading import read_json_object
from reid_eval.report import RANKING_MEASURES, MetricResult, ReportError, direction, measure_of

ANSWER_FORMAT = 1

# What the record of a ranking always has; see `RankReport.record`.
_OF_A_RANKING = ("data", "queries", "gallery", "protocol", "distance", "ties", "multi-query", "re-ranking")

# What is compared only where both sides know it.
_WHERE_KNOWN = ("picture names", "flip", "alpha")

_SAID = {
    "data": "what was measured on (data: identities, cameras and splits of a ranking, true pictures of swaps)",
    "picture names": "file names of what was ranked (picture names)",
    "real pictures": "content of the real pictures",
    "second pictures": "content of the second pictures",
}


class UnlikeError(ReidError):
    """Two numbers were made differently, or do not say how, and say nothing about each other."""


@dataclass(frozen=True)
class Comparison:
    """Two values of one metric."""

    name: str
    first: float
    second: float
    higher_is_better: bool | None
    unit: str
    intervals_overlap: bool | None
    """None where a value has no interval"""

    @property
    def change(self) -> float:
        """Second less first; 0 of equal values, infinite ones too."""
        return 0.0 if self.first == self.second else self.second - self.first

    def to_text(self) -> str:
        """One line."""
        if self.change == 0:
            verdict = "equal"
        elif self.higher_is_better is None:
            verdict = "higher" if self.change > 0 else "lower"
        else:
            verdict = "better" if (self.change > 0) == self.higher_is_better else "worse"
        if self.intervals_overlap:
            verdict += ", but the intervals overlap"
        values = f"{self.first:.4f} -> {self.second:.4f} {printable(self.unit)}".rstrip()
        return f"{self.name}: {values} ({self.change:+.4f}, {verdict})"


def answer_json(results: Sequence[MetricResult]) -> str:
    """Several results as one JSON object, which `load_results` reads."""
    return json.dumps(
        {"format": ANSWER_FORMAT, "metrics": [json.loads(result.to_json()) for result in results]}, indent=2
    )


def load_results(file: Path | str) -> list[MetricResult]:
    """A metric file, or an object of several as `reid-eval images --json` prints it.

    Raises:
        ReportError: the file is missing, damaged, or of another format.
    """
    stored = read_json_object(file, ReportError, "a metric file, or what reid-eval images --json printed")
    if "metrics" not in stored:
        return [MetricResult.from_json(stored, file)]
    if stored.get("format") != ANSWER_FORMAT:
        raise ReportError(f"{file}: format {stored.get('format')}, expected {ANSWER_FORMAT}")
    metrics = stored["metrics"]
    if not isinstance(metrics, list) or not all(isinstance(one, dict) for one in metrics):
        raise ReportError(f"{file}: not an object of metrics; measure again")
    return [MetricResult.from_json(one, file) for one in metrics]


def compare(
    first: Sequence[MetricResult], second: Sequence[MetricResult], *, files: tuple[Any, Any] = ("first", "second")
) -> list[Comparison]:
    """The metrics that both have, value beside value; `files` is where they come from, for messages.

    Raises:
        UnlikeError: there are none, or one of them was made differently, or does not say how; says in what.
    """
    others = {result.name: result for result in second}
    common = [(result, others[result.name]) for result in first if result.name in others]
    if not common:
        names = [", ".join(result.name for result in side) or "none" for side in (first, second)]
        raise UnlikeError(f"no metric is in both: {names[0]} against {names[1]}; measure both in the same way")
    for pair in common:
        for result, file in zip(pair, files, strict=True):
            if missing := missing_in_record(result):
                again = "reid-eval rank FEATURES --out FOLDER" if _is_ranking(result) else "with --out FOLDER"
                raise UnlikeError(
                    f"{file}: {result.name} does not say how it was made ({', '.join(missing)} missing), so it can be "
                    f"compared with nothing; measure it again with this version ({again})"
                )
        if unlike := differences(*pair):
            raise UnlikeError(f"{pair[0].name}: not comparable: {'; '.join(unlike)}")
    return [
        Comparison(one.name, one.value, other.value, direction(one), one.unit, _overlap(one.made_by, other.made_by))
        for one, other in common
    ]


def missing_in_record(result: MetricResult) -> list[str]:
    """What a result would have to say for being compared, and does not; empty if its record is complete."""
    made_by = result.made_by
    how = made_by.get("how")
    if not isinstance(how, Mapping) or not how:
        return ["its record"]
    if _is_ranking(result):
        needed = [*_OF_A_RANKING, *(["average precision"] if result.name.startswith("map_") else [])]
        return [key for key in needed if how.get(key) is None]
    if "data" in how:  # measured on what is said there, all of it
        return []
    sides = {side: made_by[side] for side in _SIDES if isinstance(made_by.get(side), Mapping)}
    if not sides:
        return ["the pictures"]
    missing = [f"content of the {side} pictures" for side in _COMPARED_BY_CONTENT if not _fingerprint(sides, side)]
    missing += [f"number of the {side} pictures" for side in sides if sides[side].get("images") is None]
    return missing


def _is_ranking(result: MetricResult) -> bool:
    return bool(measure_of(result, RANKING_MEASURES))


_SIDES = ("real", "fake", "first", "second", "pictures")
_COMPARED_BY_CONTENT = ("real", "second")


def _fingerprint(sides: Mapping[str, Any], side: str) -> bool:
    return side not in sides or bool(sides[side].get("fingerprint"))


def differences(first: MetricResult, second: MetricResult) -> list[str]:
    """In what two results of one metric were made differently; empty if they may be compared."""
    cards = [_card(result) for result in (first, second)]
    keys = list(dict.fromkeys([*cards[0], *cards[1]]))
    return [
        f"{_SAID.get(key, key)}: {_short(cards[0].get(key))} against {_short(cards[1].get(key))}"
        for key in keys
        if cards[0].get(key) != cards[1].get(key)
        and not (key in _WHERE_KNOWN and (key not in cards[0] or key not in cards[1]))
    ]


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _card(result: MetricResult) -> dict[str, Any]:
    """Whatever has to be the same."""
    made_by = result.made_by
    card: dict[str, Any] = {"unit": result.unit, **made_by["how"]}
    for side in _COMPARED_BY_CONTENT:
        if side in made_by:
            card[f"{side} pictures"] = made_by[side]["fingerprint"]
    for side in ("fake", "first", "pictures"):
        if side in made_by:
            card["number of generated pictures"] = made_by[side]["images"]
    return card


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool | None:
    ends = [_interval(made_by) for made_by in (first, second)]
    if None in ends:
        return None
    (low1, high1), (low2, high2) = ends  # type: ignore[misc]
    return max(low1, low2) <= min(high1, high2)


def _interval(made_by: Mapping[str, Any]) -> tuple[float, float] | None:
    ends = made_by.get("interval")
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends):
        return None
    return float(ends[0]), float(ends[1])
