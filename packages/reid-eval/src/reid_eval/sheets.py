"""Pictures of a ranking: what each query found, in order, and the curves of a report.

    worst = choose_queries(features, report, order="worst", count=20)
    write_sheets("sheets", features, report, images="data/market", queries=worst)
    plot_curves("curves.png", report)

A sheet shows the query, then the nearest gallery pictures from left to right: a green frame is right, red is wrong,
grey is left out by the protocol (and takes no place). Distances are those of the plain ranking.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from reid_eval.distances import squared_distances_to, squared_lengths
from reid_eval.errors import ReidError, printable
from reid_eval.features import ReidFeatures
from reid_eval.files import atomic_path, read_pixels, save_image, short_name, write_text
from reid_eval.locks import locked
from reid_eval.outputs import claim_folder, is_made_by, refuse_foreign_folder
from reid_eval.ranking import Contest, RankReport, contest

Order = Literal["worst", "best", "random"]
Kind = Literal["query", "right", "wrong", "left out"]

_HEIGHT, _WIDTH, _FRAME, _CAPTION, _GAP = 128, 64, 4, 38, 6
_COLOURS: dict[Kind, tuple[int, int, int]] = {
    "query": (40, 80, 200),
    "right": (0, 150, 60),
    "wrong": (210, 30, 30),
    "left out": (150, 150, 150),
}


class SheetError(ReidError):
    """The pictures of a ranking cannot be drawn as asked."""


@dataclass(frozen=True)
class Found:
    """One picture of a ranked list; `distance` is 1 - cos, Euclid's, bits, or the product."""

    path: str
    pid: int | str
    camid: int | str
    kind: Kind
    distance: float


def choose_queries(
    features: ReidFeatures,
    report: RankReport,
    *,
    order: Order = "worst",
    count: int = 20,
    names: Sequence[str] = (),
    seed: int = 0,
) -> np.ndarray:
    """Numbers of queries (count,): by average precision (hits), at random, or those whose path ends with a name.

    Raises:
        SheetError: no query has one of the names.
    """
    if names:
        paths = features.paths[report.query_rows].tolist()
        chosen = []
        for name in names:
            found = [query for query, path in enumerate(paths) if path == name or Path(path).name == name]
            if not found:
                raise SheetError(f"no query is called {name}; the first of {len(paths)} is {paths[0]}")
            chosen += found
        return np.array(chosen)
    valid = np.flatnonzero(report.plain.valid)
    match order:
        case "worst":
            return valid[np.argsort(report.plain.ap_hits[valid], kind="stable")][:count]
        case "best":
            return valid[np.argsort(-report.plain.ap_hits[valid], kind="stable")][:count]
        case "random":
            return np.sort(np.random.default_rng(seed).permutation(valid)[:count])


def ranked_list(who: Contest, query: int, top: int) -> list[Found]:
    """The query, then the nearest gallery pictures until `top` of them count."""
    features = who.features
    distances = squared_distances_to(who.query.take(np.array([query])), who.gallery)[0]
    answers = who.answers
    right = set(answers.rows[answers.starts[query] : answers.starts[query + 1]].tolist())
    left_out = set(answers.mates_of(query).tolist()) - right
    shown = _shown(who, query, distances)
    found = [_found(features, who.query_rows[query], "query", 0.0)]
    counted = 0
    for column in np.argsort(distances, kind="stable").tolist():
        if counted == top:
            break
        kind: Kind = "right" if column in right else "left out" if column in left_out else "wrong"
        counted += kind != "left out"
        found.append(_found(features, who.gallery_rows[column], kind, float(shown[column])))
    return found


def _shown(who: Contest, query: int, distance_sq: np.ndarray) -> np.ndarray:
    """What people expect in place of the squared distances that all metrics are compared by."""
    wide = distance_sq.astype(np.float64)
    match who.metric:
        case "cosine":
            return wide / 2
        case "euclidean":
            return np.ldexp(np.sqrt(wide), -who.query.exponent)
        case "dot":
            query_sq = squared_lengths(who.query.take(np.array([query])))[0]
            return np.ldexp((query_sq + who.gallery.longest_sq - wide) / 2, -2 * who.query.exponent)
        case "hamming" | "hamming-packed":
            return wide


def _found(features: ReidFeatures, row: int, kind: Kind, distance: float) -> Found:
    pid, camid = features.name_of(features.pids[row]), features.camera_name(features.camids[row])
    return Found(str(features.paths[row]), pid, camid, kind, distance)


def write_sheets(
    folder: Path | str,
    features: ReidFeatures,
    report: RankReport,
    *,
    images: Path | str,
    queries: np.ndarray,
    top: int = 10,
) -> Path:
    """One PNG per query and a page `index.html` with all of them, into a folder of theirs; returns the page.

    `images` is the folder that the paths of the feature file begin in.

    Raises:
        SheetError: a picture is missing; nothing is written then.
        ImageError: a picture is damaged; the page is then one that says "not finished", or an earlier one.
        OutputError: the folder holds other files.
    """
    claim_sheets(folder, images, make=False)
    who = contest(features, metric=report.metric, protocol=report.protocol_name, multi_query=report.multi_query)
    lists = [ranked_list(who, query, top) for query in queries.tolist()]
    for path in sorted({one.path for found in lists for one in found}):
        if not (Path(images) / path).is_file():
            raise SheetError(
                f"{Path(images) / path}: no such image file; is --images the folder that the paths begin in?"
            )
    folder = claim_sheets(folder, images)
    page, parts = folder / _MARKER, []
    with locked(folder, SHEETS_MAKER):
        for number, (query, found) in enumerate(zip(queries.tolist(), lists, strict=True)):
            name = short_name(f"{number:04d}_{Path(found[0].path).stem}.png")
            save_image(folder / name, draw_sheet(found, Path(images)), maker=SHEETS_MAKER)
            parts.append(_section(found, name, float(report.plain.ap_hits[query])))
        write_text(page, _PAGE.format(protocol=html.escape(report.protocol), parts="\n".join(parts)))
    return page


def claim_sheets(folder: Path | str, images: Path | str, *, make: bool = True) -> Path:
    """See that `write_sheets` may write there: an empty or new folder, or one of earlier sheets.

    With `make` the folder is made, with a page that says that it is not finished, by which it is known as ours.

    Raises:
        OutputError: it holds other files.
    """
    folder = Path(folder)
    claim = claim_folder if make else refuse_foreign_folder
    claim(folder, _MARKER, what="ranked lists", is_ours=lambda page: is_made_by(page, SHEETS_MAKER), inputs=[images])
    if make and not (folder / _MARKER).exists():
        write_text(folder / _MARKER, _PAGE.format(protocol="Not finished: run the same command again.", parts=""))
    return folder


def draw_sheet(found: Sequence[Found], images: Path) -> np.ndarray:
    """Pixels (H, W, 3): framed pictures in a row, file name and distance under each."""
    step = _WIDTH + 2 * _FRAME + _GAP
    sheet = Image.new("RGB", (step * len(found) + _GAP, _HEIGHT + 2 * _FRAME + _CAPTION + 2 * _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (one, caption) in enumerate(zip(found, _captions(found), strict=True)):
        left, above = _GAP + number * step, _GAP
        right, below = left + _WIDTH + 2 * _FRAME - 1, above + _HEIGHT + 2 * _FRAME - 1
        draw.rectangle((left, above, right, below), fill=_COLOURS[one.kind])
        picture = Image.fromarray(read_pixels(images / one.path)).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + _FRAME, above + _FRAME))
        name = printable(Path(one.path).stem)
        lines = [name[:12], name[12:][-12:], caption]  # who it is stands at the beginning of most names
        if isinstance(one.pid, str):
            lines = [printable(one.pid)[:12], name[-12:], caption]
        draw.multiline_text((left, below + 2), "\n".join(lines), fill="black", spacing=1)
    return np.asarray(sheet)


def _captions(found: Sequence[Found]) -> Iterator[str]:
    place = 0
    for one in found:
        place += one.kind in ("right", "wrong")
        match one.kind:
            case "query":
                yield "query"
            case "left out":
                yield f"- {one.distance:.3f}"
            case _:
                yield f"{place}: {one.distance:.3f}"


SHEETS_MAKER = "reid-eval rank --sheets"
"""as the page says in its head"""

PLOT_MAKER = "reid-eval rank --plot"
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

_MARKER = "index.html"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="generator" content="made by reid-eval rank --sheets">
<title>Ranked lists</title>
<style>body {{ font-family: sans-serif; }} img {{ max-width: 100%; }}</style>
<h1>Ranked lists</h1>
<p>{protocol} Green: right; red: wrong; grey: left out.</p>
{parts}
</html>
"""


def _section(found: Sequence[Found], name: str, ap_hits: float) -> str:
    title = html.escape(found[0].path)
    listed = ", ".join(html.escape(f"{one.path} ({_who(one)}{one.kind})") for one in found[1:])
    precision = "no right image" if np.isnan(ap_hits) else f"average precision (hits) {100 * ap_hits:.2f}%"
    said = html.escape(_who(found[0])) + precision
    return f'<h2>{title}</h2>\n<p>{said}</p>\n<img src="{html.escape(name)}" alt="{title}: {listed}">'


def _who(one: Found) -> str:
    """The person, where people were given as words."""
    return f"{one.pid}, " if isinstance(one.pid, str) else ""


def plot_curves(file: Path | str, *reports: RankReport) -> None:
    """The match curve, and mean precision over recall, of each column of some reports, as PNG, SVG or PDF.

    Raises:
        SheetError: the suffix is none of these.
    """
    from matplotlib.figure import Figure

    suffix = Path(file).suffix.lower()
    if suffix not in PLOT_SUFFIXES:
        raise SheetError(f"{file}: curves are written as .png, .svg or .pdf")
    figure = Figure(figsize=(9, 4), layout="constrained")
    match_axes, recall_axes = figure.subplots(1, 2)
    for alpha, (name, _, scores) in [(one.alpha, column) for one in reports for column in one.columns]:
        name = name if alpha is None else f"alpha {alpha:g}, {name}"
        match_axes.plot(np.arange(1, len(scores.cmc) + 1), 100 * scores.cmc, label=name)
        recall, precision = scores.precision_at_recall()
        recall_axes.plot(100 * recall, 100 * precision, label=name)
    match_axes.set(xlabel="rank", ylabel="queries with a right image (%)", title="CMC")
    recall_axes.set(xlabel="recall (%)", ylabel="mean precision (%)", title="precision and recall")
    match_axes.legend()
    made_by = {"Software" if suffix == ".png" else "Creator": f"made by {PLOT_MAKER}"}
    with atomic_path(file) as part:
        figure.savefig(part, format=suffix[1:], metadata=made_by)
