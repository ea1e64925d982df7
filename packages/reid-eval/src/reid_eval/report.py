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
from reid_eval.errors import OutputError, ReidError
from reid_eval.files import file_fingerprint, list_images, read_pixels, write_text
from reid_eval.locks import locked
from reid_eval.outputs import claim_file, is_made_by
from reid_eval.progress import duration
from reid_eval.reading import read_json_object, read_text, reading

METRIC_FORMAT = 1
REPORT_FORMAT = 1

REPORT_MAKER = "reid-eval report"
"""as the page says in its head"""

_MAX_DEPTH = 32


class ReportError(ReidError):
    """A metric file cannot be used, or there is nothing to report."""


@dataclass(frozen=True)
class MetricResult:
    """One measured number.

    `name` says how it was measured (`map_hits_rerank`, `fid_inception`) and is its file name: lower case letters,
    digits, `_`. `protocol` says the same in full sentences, and `made_by` names versions, inputs and networks; its
    entry `how` is the record of all that has to be the same where two values are compared, see `cards`.
    The unit is "" for plain numbers and fractions 0..1. `higher_is_better` is None where neither is, as with
    diversity, which is to be read beside that of real pictures.
    """

    name: str
    value: float
    higher_is_better: bool | None
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

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write `folder/<name>.json`, replacing an earlier measurement; returns its path.

        Raises:
            OutputError: what lies there is no metric file, and is not to be overwritten; or it cannot be written.
        """
        (file,) = claim_metrics(folder, [self.name], overwrite=overwrite)
        write_text(file, self.to_json() + "\n")
        return file

    @classmethod
    def load(cls, file: Path | str) -> MetricResult:
        """Read what `save` wrote.

        Raises:
            ReportError: the file is missing, damaged, or of another format.
        """
        return cls.from_json(read_json_object(file, ReportError, _EXPECTED), file)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], file: Path | str) -> MetricResult:
        """A result from the object that a file holds.

        Raises:
            ReportError: it is none, or of another format.
        """
        values = dict(values)
        if "format" not in values:
            raise ReportError(f"{file}: not a metric file (expected a JSON object with a format); measure again")
        found = values.pop("format")
        if found != METRIC_FORMAT:
            raise ReportError(
                f"{file}: metric format {found}, expected {METRIC_FORMAT}; made by another version of reid-eval"
            )
        expected = {key: kind for key, kind in _METRIC_FIELDS.items() if key in values or key != "unit"}
        wrong = [key for key, kind in expected.items() if key not in values or not isinstance(values[key], kind)]
        wrong += sorted(values.keys() - _METRIC_FIELDS.keys())
        wrong += ["value"] if isinstance(values.get("value"), bool) else []
        if wrong:
            raise ReportError(f"{file}: not a metric file ({', '.join(wrong)} missing or wrong); measure again")
        if _is_deeper(values["made_by"], _MAX_DEPTH):
            raise ReportError(f"{file}: not a metric file (made_by nested more than {_MAX_DEPTH} deep); measure again")
        with reading(file, ReportError, _EXPECTED, remedy="measure again"):
            return cls(**{**values, "value": float(values["value"])})


_EXPECTED = "a metric file"


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def claim_metrics(
    folder: Path | str, names: Iterable[str], *, inputs: Iterable[Path | str] = (), overwrite: bool = False
) -> list[Path]:
    """See that the files of some metrics may be written into a folder: absent, or earlier measurements.

    Raises:
        OutputError: one of them is something else, or the folder is none or one of the inputs; nothing was changed.
    """
    folder, read = Path(folder), [Path(place) for place in inputs]
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; expected a folder for metric files")
    if folder.is_dir() and any(place.exists() and place.samefile(folder) for place in read):
        raise OutputError(
            f"{folder}: is read by this command, so it is no place for metric files; choose another folder"
        )
    files = [folder / f"{name}.json" for name in names]
    return [claim_file(file, "reid-eval", is_ours=_is_metric_file, inputs=read, overwrite=overwrite) for file in files]


def _is_metric_file(file: Path) -> bool:
    try:
        return MetricResult.load(file).name == file.stem
    except ReportError:
        return False


# What a metric file holds; the value may be the text "inf".
_METRIC_FIELDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "value": (int, float, str),
    "higher_is_better": (bool, type(None)),
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

    @property
    def higher_is_better(self) -> bool | None:
        """None where neither is."""
        return next(direction(result) for result in self.results if result is not None)

    def beside_real(self, result: MetricResult) -> str:
        """How far a value is from that of real pictures, where that is what it is to be read beside."""
        real = next((one for one in self.results if one is not None and one.name.endswith("_real")), None)
        if self.higher_is_better is not None or real is None or result is real:
            return ""
        return f"{result.value - real.value:+.4g} from real"


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


RANKING_MEASURES = {
    "map_hits": "mAP (hits)",
    "map_trapezoid": "mAP (trapezoid)",
    **{f"rank{k}": f"rank-{k}" for k in (1, 3, 5, 10, 20)},
    "minp": "mINP",
}
_LPIPS = {"alex": "AlexNet", "vgg": "VGG16", "squeeze": "SqueezeNet"}
_DIVERSITY = {
    "ssim_within_identity": "SSIM within an identity",
    "dssim_lab_within_identity_dgnet": "DSSIM in Lab (DG-Net's “SSIM”)",
    **{f"lpips_{net}_within_identity": f"LPIPS within an identity, {name}" for net, name in _LPIPS.items()},
}
_TABLES = (
    _Table("Finding people, in percent", "plain", RANKING_MEASURES, percent=True),
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
    _Table("How varied the pictures of a person are", "generated", _DIVERSITY),
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
    "seen": "people seen in training",
    "rerank_seen": "seen, re-ranked",
    "untrained_seen": "seen, untrained",
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
            measure = measure_of(result, table.labels)
            if measure:
                cells[measure, result.name.removeprefix(measure).lstrip("_")] = result
        left = [result for result in left if result not in cells.values()]
        variants = sorted({variant for _, variant in cells}, key=_variant_order)
        rows = (
            MetricRow(label, tuple(cells.get((measure, variant)) for variant in variants))
            for measure, label in table.labels.items()
        )
        columns = tuple(_column(name) or table.plain_column for name in variants)
        if cells:
            groups.append(
                MetricGroup(table.title, columns, tuple(row for row in rows if any(row.results)), table.percent)
            )
    if left:
        rows_left = tuple(MetricRow(result.name.replace("_", " "), (result,)) for result in left)
        groups.append(MetricGroup("Other measures", ("value",), rows_left))
    return groups


def _column(variant: str) -> str:
    """What stands above the values of a variant: `alpha_0_5_rerank` is "alpha 0.5, re-ranked"."""
    if match := re.fullmatch(r"alpha_(minus_)?(\d+)(?:_(\d+))?(_rerank)?", variant):
        minus, whole, digits, rerank = match.groups()
        return f"alpha {'-' * bool(minus)}{whole}{f'.{digits}' * bool(digits)}{', re-ranked' * bool(rerank)}"
    return _VARIANTS.get(variant, variant.replace("_", " "))


def direction(result: MetricResult) -> bool | None:
    """Whether higher is better; None where neither is: diversity is to be as that of real pictures."""
    return None if measure_of(result, _DIVERSITY) else result.higher_is_better


def measure_of(result: MetricResult, known: Iterable[str]) -> str:
    """The known measure that a result's name begins with, or nothing."""
    name = result.name
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
            f"{how_to_measure(folder)}"
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
        summary=f"{len(files)} measurements and {len(pictures)} pictures, collected below {folder}."
        + f" {how_to_measure(folder)}." * (not files),
        lead=lead,
        groups=groups,
        pictures=[picture for picture in pictures if picture is not lead],
        settings={
            file.relative_to(folder).as_posix(): _settings_text(file) for file in sorted(folder.rglob("config.yaml"))
        },
    )


def how_to_measure(folder: Path) -> str:
    """Which command makes numbers that a report of this folder would show, by what lies there."""
    astray = next((file for file in sorted(folder.glob("*.json")) if _is_metric_file(file)), None)
    if astray is not None:
        return f"Only folders called metrics are collected: move {astray} and the like into {folder / 'metrics'}"
    vectors = sorted(folder.rglob("features*.npz"))
    if vectors:
        return f"Measure first: reid-eval rank {vectors[0]} --out {vectors[0].parent / 'metrics'}"
    runs = sorted(folder.rglob("run.json"))
    if runs:
        run = runs[0].parent
        ranked = f"reid-eval rank {run}/features.npz --out {run}/metrics"
        return f"Measure first: reid-models extract --run {run}, then {ranked}"
    return (
        f"Measure first: reid-eval rank FEATURES --out {folder}/metrics, reid-eval fid REAL GENERATED --out "
        f"{folder}/metrics"
    )


def _settings_text(file: Path) -> str:
    return read_text(file, ReportError, "the settings of a run")


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


def claim_report(out: Path | str, *, inputs: Iterable[Path | str] = (), overwrite: bool = False) -> tuple[Path, Path]:
    """See that a page and its numbers may be written: absent, or an earlier report. Returns the two files.

    `inputs` are the folders that the report is collected from: what lies in them and is no report is never replaced.

    Raises:
        OutputError: the name is not that of a page, or something else lies at one of the two places.
    """
    out, inputs = Path(out), list(inputs)
    page = claim_file(
        out, REPORT_MAKER, is_ours=_is_page, inputs=inputs, suffixes=(".html", ".htm"), overwrite=overwrite
    )
    numbers = claim_file(
        out.with_suffix(".json"), REPORT_MAKER, is_ours=_is_numbers, inputs=inputs, overwrite=overwrite
    )
    return page, numbers


def _is_page(file: Path) -> bool:
    if is_made_by(file, REPORT_MAKER):
        return True
    with file.open("rb") as stream:  # version 0.1.0 signed at the end
        stream.seek(max(0, file.stat().st_size - 1000))
        return b"<footer>Written by reid-eval " in stream.read()


def _is_numbers(file: Path) -> bool:
    try:
        return read_json_object(file, ReportError, "a report").keys() >= {"reid_eval", "title", "metrics", "pictures"}
    except ReportError:
        return False


def write_report(
    out: Path | str, report: Report, *, inputs: Iterable[Path | str] = (), overwrite: bool = False
) -> Path:
    """Write the page `out` and, beside it with the suffix .json, its numbers at full precision; returns `out`.

    The same report gives the same bytes.

    Raises:
        ImageError: a picture is missing or damaged.
        OutputError: see `claim_report`; or the page cannot be written there.
    """
    import jinja2

    out, numbers = claim_report(out, inputs=inputs, overwrite=overwrite)
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
        maker=REPORT_MAKER,
        inlined=_inlined,
        flat=_flat,
        duration=duration,
        version=reid_eval.__version__,
        json_name=numbers.name,
    )
    with locked(out, REPORT_MAKER):
        write_text(out, page)
        write_text(numbers, json.dumps(_report_json(report), indent=2, ensure_ascii=False) + "\n")
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
