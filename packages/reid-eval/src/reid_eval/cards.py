"""May two numbers be compared? Each says how it was made; numbers of unlike making are refused.

Likeness is asked for in the metric's name, in everything under `how` (features, kernel, pairs, seed ...), in the real
pictures (their content), and in the number of generated ones, on which the bias depends. Only the generated pictures
may differ.

    compare(load_results("a.json"), load_results("b.json"))    # [Comparison("fid_inception", 3.1, 2.8, ...), ...]
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError
from reid_eval.report import MetricResult, ReportError

ANSWER_FORMAT = 1


class UnlikeError(ReidError):
    """Two numbers were made differently and say nothing about each other."""


@dataclass(frozen=True)
class Comparison:
    """Two values of one metric."""

    name: str
    first: float
    second: float
    higher_is_better: bool
    unit: str
    intervals_overlap: bool | None
    """None where a value has no interval"""

    @property
    def change(self) -> float:
        """Second less first; NaN of two infinite values."""
        return self.second - self.first

    def to_text(self) -> str:
        """One line."""
        better = self.change > 0 if self.higher_is_better else self.change < 0
        verdict = "equal" if self.change == 0 else "better" if better else "worse"
        if self.intervals_overlap:
            verdict += ", but the intervals overlap"
        values = f"{self.first:.4f} -> {self.second:.4f} {self.unit}".rstrip()
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
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None  # MetricResult says what is wrong with it
    if not isinstance(stored, dict) or "metrics" not in stored:
        return [MetricResult.load(file)]
    if stored.get("format") != ANSWER_FORMAT:
        raise ReportError(f"{file}: format {stored.get('format')}, expected {ANSWER_FORMAT}")
    try:
        results = [
            MetricResult(**{key: value for key, value in one.items() if key != "format"}) for one in stored["metrics"]
        ]
        return [MetricResult(**{**vars(result), "value": float(result.value)}) for result in results]
    except (TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{file}: not an object of metrics ({error}); measure again") from None


def compare(first: Sequence[MetricResult], second: Sequence[MetricResult]) -> list[Comparison]:
    """The metrics that both have, value beside value.

    Raises:
        UnlikeError: there are none, or one of them was made differently; says in what.
    """
    others = {result.name: result for result in second}
    common = [(result, others[result.name]) for result in first if result.name in others]
    if not common:
        names = [", ".join(result.name for result in side) for side in (first, second)]
        raise UnlikeError(f"no metric is in both: {names[0]} against {names[1]}; measure both in the same way")
    for one, other in common:
        if unlike := differences(one, other):
            raise UnlikeError(f"{one.name}: not comparable: {'; '.join(unlike)}")
    return [
        Comparison(
            one.name, one.value, other.value, one.higher_is_better, one.unit, _overlap(one.made_by, other.made_by)
        )
        for one, other in common
    ]


def differences(first: MetricResult, second: MetricResult) -> list[str]:
    """In what two results of one metric were made differently; empty if they may be compared."""
    cards = [_card(result) for result in (first, second)]
    keys = list(dict.fromkeys([*cards[0], *cards[1]]))
    return [
        f"{key}: {cards[0].get(key, 'not given')} against {cards[1].get(key, 'not given')}"
        for key in keys
        if cards[0].get(key) != cards[1].get(key)
    ]


def _card(result: MetricResult) -> dict[str, Any]:
    """Whatever has to be the same."""
    made_by = result.made_by
    if "how" not in made_by:
        return {"unit": result.unit, "protocol": result.protocol}
    card: dict[str, Any] = {"unit": result.unit, **made_by["how"]}
    for side in ("real", "second"):
        if side in made_by:
            card[f"{side} pictures"] = made_by[side].get("fingerprint", made_by[side].get("folder"))
    for side in ("fake", "first", "pictures"):
        if side in made_by:
            card["number of generated pictures"] = made_by[side].get("images")
    return card


def _overlap(first: dict[str, Any], second: dict[str, Any]) -> bool | None:
    if "interval" not in first or "interval" not in second:
        return None
    (low1, high1), (low2, high2) = first["interval"], second["interval"]
    return not (math.isnan(low1) or math.isnan(low2)) and max(low1, low2) <= min(high1, high2)
