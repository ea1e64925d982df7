"""What was measured, and the one page that shows it.

A `MetricResult` is a number together with how it was made; it lives in `metrics/<name>.json`.

    MetricResult("fid_reid", 3.2, higher_is_better=False, protocol="...", made_by={...}).save("runs/metrics")
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reid_eval.errors import ReidError
from reid_eval.files import write_text

METRIC_FORMAT = 1


class ReportError(ReidError):
    """A metric file cannot be used, or there is nothing to report."""


@dataclass(frozen=True)
class MetricResult:
    """One measured number.

    `name` says how it was measured (`map_hits_rerank`, `fid_inception`) and is its file name: lower case letters,
    digits, `_`. `protocol` says the same in full sentences, and `made_by` names versions, inputs and networks.
    The unit is "" for plain numbers and fractions 0..1.
    """

    name: str
    value: float
    higher_is_better: bool
    protocol: str
    made_by: dict[str, Any]
    unit: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"metric name {self.name!r}: expected lower case letters, digits and _")
        if math.isnan(self.value):
            raise ValueError(f"metric {self.name}: not a number")

    @property
    def quotable(self) -> bool:
        """False for numbers that only show that the machinery works, such as `fid_random_demo`."""
        return "demo" not in self.name.split("_")

    def save(self, folder: Path | str) -> Path:
        """Write `folder/<name>.json`, replacing an earlier one; returns its path."""
        file = Path(folder) / f"{self.name}.json"
        write_text(file, json.dumps({"format": METRIC_FORMAT, **_plain(asdict(self))}, indent=2) + "\n")
        return file

    @classmethod
    def load(cls, file: Path | str) -> MetricResult:
        """Read what `save` wrote.

        Raises:
            ReportError: the file is missing, damaged, or of another format.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            found = values.pop("format")
        except FileNotFoundError:
            raise ReportError(f"{file}: no such metric file") from None
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            raise ReportError(f"{file}: not a metric file ({error}); measure again") from None
        if found != METRIC_FORMAT:
            raise ReportError(
                f"{file}: metric format {found}, expected {METRIC_FORMAT}; made by another version of reid-eval"
            )
        try:
            return cls(**{**values, "value": float(values["value"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{file}: not a metric file ({error}); measure again") from None


def _plain(value: Any) -> Any:
    """The same in what JSON knows; infinity has no JSON number and becomes the text "inf"."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    return str(value)
