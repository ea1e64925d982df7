"""What was measured, and the one page that shows it.

A `MetricResult` is a number together with how it was made; it lives in `metrics/<name>.json`. A `Report` puts results
and pictures on one self-contained page: no network, no scripts, pictures inside the file.

    MetricResult("fid_reid", 3.2, higher_is_better=False, protocol="...", made_by={...}).save("runs/metrics")

    results = [MetricResult.load(file) for file in sorted(Path("runs/metrics").glob("*.json"))]
    report = Report(
        title="Demo",
        summary="People wear each other's clothes.",
        lead=Picture(Path("swap.png"), "Swaps", row_axis="structure (pose)", column_axis="appearance (clothes)"),
        groups=group_metrics(results),                   # tables, from the names of the results
        pictures=[Picture(Path("truth.png"), "Truth")],
        settings={"dgnet": {"seed": 0}},                 # a mapping, or the text of a settings file
        provenance={"data": {"fingerprint": "..."}},
        timings=[Timing("train", 61.5, "400 iterations")],
    )
    write_report("runs/report.html", report)             # and runs/report.json beside it
    write_report("report.html", report_of_folder("runs"))
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import reid_eval
from reid_eval.errors import ReidError
from reid_eval.files import file_fingerprint, list_images, read_pixels, write_text
from reid_eval.progress import duration

METRIC_FORMAT = 1
REPORT_FORMAT = 1


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

    def to_json(self) -> str:
        """One JSON object, what `save` writes."""
        return json.dumps({"format": METRIC_FORMAT, **_plain(asdict(self))}, indent=2)

    def save(self, folder: Path | str) -> Path:
        """Write `folder/<name>.json`, replacing an earlier one; returns its path."""
        file = Path(folder) / f"{self.name}.json"
        write_text(file, self.to_json() + "\n")
        return file

    @classmethod
    def load(cls, file: Path | str) -> MetricResult:
        """Read what `save` wrote.

        Raises:
            ReportError: the file is missing, damaged, or of another format.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ReportError(f"{file}: no such metric file") from None
        except (ValueError, OSError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise ReportError(f"{file}: not a metric file ({reason}); measure again") from None
        if not isinstance(values, dict) or "format" not in values:
            raise ReportError(f"{file}: not a metric file (expected a JSON object with a format); measure again")
        found = values.pop("format")
        if found != METRIC_FORMAT:
            raise ReportError(
                f"{file}: metric format {found}, expected {METRIC_FORMAT}; made by another version of reid-eval"
            )
        expected = {key: kind for key, kind in _METRIC_FIELDS.items() if key in values or key != "unit"}
        wrong = [key for key, kind in expected.items() if not isinstance(values.get(key), kind)]
        wrong += sorted(values.keys() - _METRIC_FIELDS.keys())
        if wrong:
            raise ReportError(f"{file}: not a metric file ({', '.join(wrong)} missing or wrong); measure again")
        try:
            return cls(**{**values, "value": float(values["value"])})
        except ValueError as error:
            raise ReportError(f"{file}: not a metric file ({error}); measure again") from None


# What a metric file holds; the value may be the text "inf".
_METRIC_FIELDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "value": (int, float, str),
    "higher_is_better": (bool,),
    "protocol": (str,),
    "made_by": (dict,),
    "unit": (str,),
}


@dataclass(frozen=True)
class Picture:
    """A picture file to show, with what a reader has to know to understand it.

    `row_axis` says what changes from row to row of a sheet (written down its left side), `column_axis` what changes
    from column to column (written along its top).
    """

    file: Path
    title: str
    caption: str = ""
    row_axis: str = ""
    column_axis: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One measure in all its variants: a result, or None, for each column of its group."""

    label: str
    results: tuple[MetricResult | None, ...]


@dataclass(frozen=True)
class MetricGroup:
    """A table of results. With `percent`, fractions 0..1 are shown times 100."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    percent: bool = False

    @property
    def results(self) -> list[MetricResult]:
        """All results, row by row."""
        return [result for row in self.rows for result in row.results if result is not None]


@dataclass(frozen=True)
class Timing:
    """How long a stage took, and what came out of it."""

    stage: str
    elapsed_s: float
    summary: str = ""


@dataclass(frozen=True)
class Report:
    """Everything on the page. The lead picture and the groups make its first screen."""

    title: str
    summary: str
    lead: Picture | None
    groups: Sequence[MetricGroup]
    pictures: Sequence[Picture] = ()
    settings: Mapping[str, Mapping[str, Any] | str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timings: Sequence[Timing] = ()

    @property
    def results(self) -> list[MetricResult]:
        """The results of all groups."""
        return [result for group in self.groups for result in group.results]


@dataclass(frozen=True)
class _Table:
    """Measures that belong side by side, by the beginning of their names."""

    title: str
    plain_column: str
    labels: Mapping[str, str]
    percent: bool = False


_LPIPS = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet"}
_TABLES = (
    _Table(
        "Finding people, in percent",
        "plain",
        {
            "map_hits": "mAP (hits)",
            "map_trapezoid": "mAP (trapezoid)",
            **{f"rank{k}": f"rank-{k}" for k in (1, 3, 5, 10, 20)},
            "minp": "mINP",
        },
        percent=True,
    ),
    _Table(
        "Swaps against the true picture",
        "generated",
        {
            "swap_truth_psnr_db": "PSNR",
            "swap_truth_ssim": "SSIM",
            "swap_truth_gain_db": "gain over the better baseline",
        },
    ),
    _Table(
        "Generated pictures as a set, by features",
        "value",
        {
            "fid": "Fréchet distance",
            "kid": "kernel distance (KID)",
            "precision": "precision",
            "recall": "recall",
            "density": "density",
            "coverage": "coverage",
            "identity_top1": "identity, top-1",
            "identity_similarity": "identity, similarity",
            "identity_margin": "identity, margin",
        },
    ),
    _Table(
        "How varied the pictures of a person are",
        "generated",
        {
            "ssim_within_identity": "SSIM within an identity",
            "dssim_lab_within_identity_dgnet": "DSSIM in Lab (DG-Net's “SSIM”)",
            **{f"lpips_{net}_within_identity": f"LPIPS within an identity, {name}" for net, name in _LPIPS.items()},
        },
    ),
    _Table(
        "Pairs of pictures, how alike they are",
        "generated",
        {
            "ssim_of_pairs": "SSIM of pairs",
            "psnr_of_pairs": "PSNR of pairs",
            **{f"lpips_{net}_of_pairs": f"LPIPS of pairs, {name}" for net, name in _LPIPS.items()},
        },
    ),
)
_VARIANTS = {
    "rerank": "re-ranked",
    "structure_unchanged": "baseline: structure unchanged",
    "appearance_unchanged": "baseline: appearance unchanged",
    "inception": "Inception",
    "reid": "re-ID",
    "random_demo": "random features",
}


def group_metrics(results: Iterable[MetricResult]) -> list[MetricGroup]:
    """Tables from results, by their names: `map_hits` and `map_hits_rerank` share a row, `rerank` is a column.

    A name is that of a known measure, then optionally `_` and a variant, any one (`ssim_within_identity_real` stands
    in a column "real"). Names that begin with no known measure come last, in a table of their own.
    """
    left = list(results)
    groups = []
    for table in _TABLES:
        cells: dict[tuple[str, str], MetricResult] = {}
        for result in left:
            measure = _measure(result.name, table.labels)
            if measure:
                cells[measure, result.name.removeprefix(measure).lstrip("_")] = result
        left = [result for result in left if result not in cells.values()]
        variants = sorted({variant for _, variant in cells}, key=_variant_order)
        rows = (
            MetricRow(label, tuple(cells.get((measure, variant)) for variant in variants))
            for measure, label in table.labels.items()
        )
        columns = tuple(_VARIANTS.get(name, name.replace("_", " ")) or table.plain_column for name in variants)
        if cells:
            groups.append(
                MetricGroup(table.title, columns, tuple(row for row in rows if any(row.results)), table.percent)
            )
    if left:
        rows_left = tuple(MetricRow(result.name.replace("_", " "), (result,)) for result in left)
        groups.append(MetricGroup("Other measures", ("value",), rows_left))
    return groups


def _measure(name: str, known: Iterable[str]) -> str:
    """The known measure that a name begins with, or nothing."""
    return next((measure for measure in known if name == measure or name.startswith(f"{measure}_")), "")


def _variant_order(variant: str) -> tuple[bool, bool, str]:
    return variant != "", variant != "rerank", variant


def report_of_folder(folder: Path | str, *, title: str = "") -> Report:
    """Collect what lies below a folder: `metrics/*.json`, `pictures/*`, the last of each of `samples/*`, `config.yaml`.

    Metric files of different folders stand in tables of their own. A picture named `swap...` becomes the lead.

    Raises:
        ReportError: there is no such folder, nothing in it to show, or a metric or settings file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found_instead = "is a file" if folder.exists() else "no such folder"
        raise ReportError(f"{folder}: {found_instead}; expected the folder of a run")
    pictures = list(_pictures_below(folder))
    files = sorted(folder.rglob("metrics/*.json"))
    if not files and not pictures:
        raise ReportError(
            f"{folder}: no metrics/*.json and no pictures/ or samples/ below it; is this the folder of a run? "
            "Measure first, with --out FOLDER/metrics"
        )
    homes = sorted({file.parent.parent for file in files})
    groups = []
    for home in homes:
        where = home.relative_to(folder).as_posix()
        for group in group_metrics(MetricResult.load(file) for file in files if file.parent.parent == home):
            heading = f"{group.title} ({where})" if len(homes) > 1 else group.title
            groups.append(MetricGroup(heading, group.columns, group.rows, group.percent))
    lead = next((picture for picture in pictures if picture.column_axis), pictures[0] if pictures else None)
    return Report(
        title=title or f"Report of {folder.resolve().name}",
        summary=f"{len(files)} measurements and {len(pictures)} pictures, collected below {folder}.",
        lead=lead,
        groups=groups,
        pictures=[picture for picture in pictures if picture is not lead],
        settings={
            file.relative_to(folder).as_posix(): _settings_text(file) for file in sorted(folder.rglob("config.yaml"))
        },
    )


def _settings_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ReportError(f"{file}: not a text in UTF-8; expected the settings of a run") from None


def _pictures_below(folder: Path) -> Iterator[Picture]:
    newest: dict[tuple[Path, str], Path] = {}  # samples/<name>_<iteration>.png: sorted, so the last one stays
    for path in list_images(folder):
        if path.parent.name == "pictures":
            newest[path.parent, path.stem] = path
        elif path.parent.name == "samples":
            newest[path.parent, re.sub(r"_\d+$", "", path.stem)] = path
    for (_, name), path in newest.items():
        axes = ("structure (pose)", "appearance (clothes)") if name.startswith("swap") else ("", "")
        where = path.relative_to(folder).as_posix()
        yield Picture(path, name.replace("_", " ").capitalize(), where, row_axis=axes[0], column_axis=axes[1])


def write_report(out: Path | str, report: Report) -> Path:
    """Write the page `out` and, beside it with the suffix .json, its numbers at full precision; returns `out`.

    The same report gives the same bytes.

    Raises:
        ReportError: `out` is no name for a page.
        ImageError: a picture is missing or damaged.
        OutputError: the page cannot be written there.
    """
    import jinja2

    out = Path(out)
    if out.is_dir():
        raise ReportError(f"{out}: is a folder; expected the file of the page, such as {out / 'report.html'}")
    if out.suffix.lower() == ".json":
        raise ReportError(f"{out}: the page's numbers go there; expected its own file, such as {out.stem}.html")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reid_eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        report=report,
        tables=[{"group": group, "remarks": _remarks(group)} for group in report.groups],
        makers=_makers(report.results),
        shown=_shown,
        interval=_interval,
        inlined=_inlined,
        flat=_flat,
        duration=duration,
        version=reid_eval.__version__,
        json_name=out.with_suffix(".json").name,
    )
    write_text(out, page)
    write_text(out.with_suffix(".json"), json.dumps(_report_json(report), indent=2, ensure_ascii=False) + "\n")
    return out


def _remarks(group: MetricGroup) -> list[tuple[str, str]]:
    """Every sentence of the results' protocols, once: (what it is about, sentences), first those about all ("")."""
    about: dict[str, list[str]] = {}  # sentence -> the labels it holds for
    cells = [
        (row.label, column, sentences(result.protocol))
        for row in group.rows
        for column, result in zip(group.columns, row.results, strict=True)
        if result is not None
    ]
    for row, column, said in cells:
        in_row = [others for label, _, others in cells if label == row]
        in_column = [others for _, label, others in cells if label == column]
        for sentence in said:
            if len(cells) > 1 and all(sentence in others for _, _, others in cells):
                label = ""
            elif all(sentence in others for others in in_row):
                label = row
            elif len(in_column) > 1 and all(sentence in others for others in in_column):
                label = column
            else:
                label = f"{row}, {column}"
            labels = about.setdefault(sentence, [])
            if label not in labels:
                labels.append(label)
    remarks: dict[str, list[str]] = {}
    for sentence, labels in about.items():
        remarks.setdefault("; ".join(labels), []).append(sentence)
    return sorted(((label, " ".join(said)) for label, said in remarks.items()), key=lambda item: item[0] != "")


def sentences(protocol: str) -> list[str]:
    """The sentences of a protocol, each with a capital letter and a full stop."""
    parts = re.split(r"(?<=[.!?]) (?=[A-Z0-9])", protocol.strip())
    return [part[0].upper() + part[1:] + ("" if part[-1] in ".!?" else ".") for part in parts if part]


def _makers(results: Iterable[MetricResult]) -> list[tuple[list[str], dict[str, str]]]:
    """(names, what made them), results with the same maker together."""
    makers: dict[str, tuple[list[str], dict[str, str]]] = {}
    for result in results:
        key = json.dumps(_plain(result.made_by), sort_keys=True)
        makers.setdefault(key, ([], _flat(result.made_by)))[0].append(result.name)
    return list(makers.values())


def _shown(result: MetricResult, percent: bool) -> str:
    if result.unit == "dB":
        return f"{result.value:+.2f} dB" if "gain" in result.name else f"{result.value:.2f} dB"
    if percent:
        return f"{100 * result.value:.1f}"
    return f"{result.value:.4g} {result.unit}".rstrip()


def _interval(result: MetricResult) -> str:
    """The interval of a value, where its maker gave one."""
    ends = result.made_by.get("interval")
    if not isinstance(ends, (list, tuple)) or [type(end) for end in ends] != [float, float]:
        return ""
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `outer.inner` -> text, in their order."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _inlined(picture: Picture) -> dict[str, Any]:
    """The picture as a data URI with its size in pixels; what is neither PNG nor JPEG becomes PNG."""
    height, width = read_pixels(picture.file).shape[:2]
    data = picture.file.read_bytes()
    if data.startswith(b"\x89PNG"):
        kind = "png"
    elif data.startswith(b"\xff\xd8"):
        kind = "jpeg"
    else:
        kind, data = "png", _as_png(picture.file)
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def _as_png(file: Path) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(read_pixels(file)).save(stream, format="PNG")
    return stream.getvalue()


def _report_json(report: Report) -> Any:
    pictures = [*([report.lead] if report.lead else []), *report.pictures]
    return _plain(
        {
            "format": REPORT_FORMAT,
            "reid_eval": reid_eval.__version__,
            "title": report.title,
            "summary": report.summary,
            "metrics": [
                {"group": group.title, **asdict(result)} for group in report.groups for result in group.results
            ],
            "pictures": [{**asdict(picture), "sha256": file_fingerprint(picture.file)} for picture in pictures],
            "settings": report.settings,
            "provenance": report.provenance,
            "timings": [asdict(timing) for timing in report.timings],
        }
    )


def _plain(value: Any) -> Any:
    """The same in what JSON knows; infinity has no JSON number and becomes the text "inf"."""
    if isinstance(value, Mapping):
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
