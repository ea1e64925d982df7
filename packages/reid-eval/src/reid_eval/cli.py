"""The commands of reid-eval: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
The commands that measure pictures are in `cli_images`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from reid_eval import __version__, cli_images
from reid_eval.errors import OutputError, printable, user_errors

# Whether a path is there, readable and of the right kind is said by who opens it, in one line.
_PATH = click.Path(readable=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reid-eval")
def main() -> None:
    """Measure person re-identification and person-image generation."""


class MemorySize(click.ParamType):
    """500M, 8G, 8GiB: bytes, counted in powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT])(?:i?B)?", value, re.IGNORECASE)
        if match is None:
            self.fail(f"found {value!r}, expected a number and M, G or T, such as 500M or 8G", param, ctx)
        return int(float(match[1]) * 1024 ** {"M": 2, "G": 3, "T": 4}[match[2].upper()])


class SweptValues(click.ParamType):
    """k1=10,20: a setting of re-ranking and the values it takes."""

    name = "name=values"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[float]]:
        if isinstance(value, tuple):
            return value
        name, _, texts = value.partition("=")
        number = {"k1": int, "k2": int, "lambda": float}.get(name)
        if number is None:
            self.fail(f"found {value!r}, expected k1=, k2= or lambda= and values, such as k1=10,20,30", param, ctx)
        try:
            return name, [number(text) for text in texts.split(",")]
        except ValueError:
            self.fail(f"found {texts!r} for {name}, expected numbers with commas between them", param, ctx)


class Alphas(click.ParamType):
    """0,0.5,-1: weights of the fine part of DG-Net's vectors."""

    name = "values"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            alphas = tuple(dict.fromkeys(float(text) for text in value.split(",")))
        except ValueError:
            alphas = ()
        if not alphas or not all(alpha == -1 or 0 <= alpha < math.inf for alpha in alphas):
            self.fail(
                f"found {value!r}, expected numbers from 0 on, or -1 for the fine part alone: 0,0.5,-1", param, ctx
            )
        return alphas


@main.command()
@click.option_panel(
    "Input", options=["--features", "--labels", "--query", "--gallery", "--multi-query-features", "--alpha"]
)
@click.option_panel(
    "Protocol",
    options=["--protocol", "--metric", "--ties", "--multi-query", "--single-shot", "--repetitions", "--seed"],
)
@click.option_panel("Re-ranking", options=["--rerank", "--k1", "--k2", "--lambda", "--rerank-distance", "--sweep"])
@click.option_panel(
    "Output",
    options=["--out", "--json", "--card", "--details", "--csv", "--plot", "--overwrite", "--max-memory", "--help"],
)
@click.option_panel("Sheets", options=["--sheets", "--images", "--order", "--query-name", "--sheet-count", "--top"])
@click.argument("file", type=_PATH, required=False)
@click.option("--features", "features_file", type=_PATH, help="The same as FILE.")
@click.option(
    "--labels",
    "labels_file",
    type=_PATH,
    help="Table (.csv) with a line per vector of FILE, or of --query and --gallery: pid, split, camid, path.",
)
@click.option("--query", "query_file", type=_PATH, help="In place of FILE: .npy with the query vectors.")
@click.option("--gallery", "gallery_file", type=_PATH, help="... .npy with the gallery vectors; with --labels.")
@click.option("--multi-query-features", type=_PATH, help="File with those pictures (mquery_f ...), if a separate one.")
@click.option(
    "--alpha",
    "alphas",
    type=Alphas(),
    default=(),
    help="DG-Net's vectors: weights of the fine part, such as 0,0.5,-1 (alone), a column each.",
)
@click.option(
    "--protocol",
    type=click.Choice(["cross-camera", "no-camera", "leave-one-out"]),
    help="Left out for a query: its identity in its camera, nothing, or only its own picture. "
    "[default: what fits the data, cross-camera if it can]",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean", "dot", "hamming", "hamming-packed"]),
    default="cosine",
    show_default=True,
    help="Compare directions, the vectors as stored, their products, or binary codes (packed: 8 bits to a byte).",
)
@click.option(
    "--ties",
    type=click.Choice(["index", "optimistic", "pessimistic"]),
    default="index",
    show_default=True,
    help="Equally far right and wrong pictures: in gallery order, right ones first, or wrong ones first.",
)
@click.option(
    "--multi-query", type=click.Choice(["mean", "max"]), help="Pool the query with its same-camera pictures, and how."
)
@click.option("--single-shot", is_flag=True, help="Also the match with one picture per identity (CUHK03 classic).")
@click.option("--repetitions", type=click.IntRange(min=1), help="Single shot: draw so often, not the expected value.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws and random sheets.")
@click.option(
    "--rerank/--no-rerank", "with_rerank", default=False, show_default=True, help="Show re-ranked numbers too."
)
@click.option("--k1", type=int, default=20, show_default=True, help="Neighbours that must be mutual.")
@click.option("--k2", type=int, default=6, show_default=True, help="Neighbours to average over; 1 is none.")
@click.option("--lambda", "lambda_", type=float, default=0.3, show_default=True, help="Share of the plain distance.")
@click.option(
    "--rerank-distance",
    type=click.Choice(["squared", "quartic", "raw"]),
    default="squared",
    show_default=True,
    help="The power that enters; squared is the authors' and MGN's, quartic torchreid's and layumi's.",
)
@click.option(
    "--sweep", type=SweptValues(), multiple=True, help="Re-rank with every combination: k1=10,20 (k2=, lambda=, too)."
)
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--card", is_flag=True, help="Print only how the numbers come about, as JSON.")
@click.option("--details", is_flag=True, help="Also print camera pairs, worst queries, confused people, likely errors.")
@click.option("--csv", "csv_file", type=_PATH, help="Also write a line per query.")
@click.option(
    "--plot", "plot_file", type=_PATH, help="Also draw the match and precision-recall curves (.png, .svg, .pdf)."
)
@click.option("--overwrite", is_flag=True, help="Replace output files that rank did not make; never an input.")
@click.option("--max-memory", type=MemorySize(), help="Do with so much memory, such as 8G, or say what is needed.")
@click.option("--sheets", type=_PATH, help="Draw ranked lists into this new folder; needs --images.")
@click.option("--images", type=_PATH, help="Folder that the paths of the feature file begin in.")
@click.option(
    "--order",
    type=click.Choice(["worst", "best", "random"]),
    default="worst",
    show_default=True,
    help="Of which queries (random: by --seed).",
)
@click.option("--query-name", "query_names", multiple=True, help="Of the query with this file name.")
@click.option("--sheet-count", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Pictures per query.")
def rank(
    file: Path | None,
    features_file: Path | None,
    labels_file: Path | None,
    query_file: Path | None,
    gallery_file: Path | None,
    multi_query_features: Path | None,
    alphas: tuple[float, ...],
    protocol: Literal["cross-camera", "no-camera", "leave-one-out"] | None,
    metric: Literal["cosine", "euclidean", "dot", "hamming", "hamming-packed"],
    ties: Literal["index", "optimistic", "pessimistic"],
    multi_query: Literal["mean", "max"] | None,
    single_shot: bool,
    repetitions: int | None,
    seed: int,
    with_rerank: bool,
    k1: int,
    k2: int,
    lambda_: float,
    rerank_distance: Literal["squared", "quartic", "raw"],
    sweep: tuple[tuple[str, list[float]], ...],
    out: Path | None,
    as_json: bool,
    card: bool,
    details: bool,
    csv_file: Path | None,
    plot_file: Path | None,
    overwrite: bool,
    max_memory: int | None,
    sheets: Path | None,
    images: Path | None,
    order: Literal["worst", "best", "random"],
    query_names: tuple[str, ...],
    sheet_count: int,
    top: int,
) -> None:
    """Print mAP (both published forms), mINP and CMC of a feature file, plain and, if asked, re-ranked beside it.

    FILE is our .npz, or .npz, .mat, .pt of other programs, or the .npy of one array of vectors with --labels: a table
    with the columns pid (or person) and, if known, split, camid (or camera) and path (or filename). Identities may be
    words. Without query and gallery every picture is a query against all others. See docs/evaluation.md.

    \b
    Examples:
      reid-eval rank runs/teacher/features.npz --rerank --out runs/teacher/metrics
      reid-eval rank vectors.npy --labels people.csv
      reid-eval rank pytorch_result.mat --alpha 0,0.5,-1
      reid-eval rank features.mat --sweep k1=10,20,30 --sweep lambda=0.1,0.3
    """
    file = _one_source(file, features_file, query_file, gallery_file, labels_file)
    if sheets is not None and images is None:
        raise click.UsageError("--sheets needs --images, the folder that the paths of the feature file begin in")
    if len(alphas) > 1 and (details or sheets is not None or card or sweep):
        raise click.UsageError("--details, --sheets, --card and --sweep are about one value of --alpha")
    with user_errors(), contextlib.ExitStack() as held:
        from reid_eval import foreign, ranking
        from reid_eval.details import details_of
        from reid_eval.files import write_text
        from reid_eval.locks import locked
        from reid_eval.outputs import claim_file
        from reid_eval.parts import parts_of, weighted
        from reid_eval.report import claim_metrics
        from reid_eval.rerank import RerankParams, params_grid
        from reid_eval.scores import SingleShot
        from reid_eval.sheets import PLOT_MAKER, PLOT_SUFFIXES, choose_queries, claim_sheets, plot_curves, write_sheets

        one = RerankParams(k1=k1, k2=k2, lambda_=lambda_, distance=rerank_distance)
        grid = params_grid(one, dict(sweep)) if sweep else [one] if with_rerank else []
        shot = SingleShot(repetitions, seed) if single_shot or repetitions is not None else None

        # Outputs are claimed before the work, so that none is refused after it.
        inputs = [one for one in (file, query_file, gallery_file, labels_file, multi_query_features, images) if one]
        names = ranking.metric_names(alphas, reranked=with_rerank and not sweep, single_shot=shot is not None)
        metric_files = claim_metrics(out, names, inputs=inputs, overwrite=overwrite) if out is not None else []
        if csv_file is not None:
            claim_file(
                csv_file, "reid-eval rank --csv", is_ours=ranking.is_query_table, inputs=inputs, overwrite=overwrite
            )
        if plot_file is not None:
            claim_file(plot_file, PLOT_MAKER, suffixes=PLOT_SUFFIXES, inputs=inputs, overwrite=overwrite)
        refuse_equal([*metric_files, *(place for place in (csv_file, plot_file) if place is not None)])
        if sheets is not None and images is not None:
            claim_sheets(sheets, images, make=False)

        if query_file is not None and gallery_file is not None and labels_file is not None:
            features = foreign.load_features_and_labels(query_file, gallery_file, labels_file)
        elif file is not None and labels_file is not None:
            features = foreign.load_matrix_and_labels(file, labels_file)
        elif file is not None:
            features = foreign.load_features(file, multi_query=multi_query_features)
        if protocol is None:
            protocol, why = ranking.fitting_protocol(features)
            if why:
                click.echo(f"{why}: ranking by the protocol {protocol}", err=True)
        if not alphas and "parts" not in features.meta and parts_of(features) is not None:
            click.echo(
                "the halves of these vectors have length 1 each, as DG-Net's: both count the same here (alpha 1); "
                "--alpha 0,0.5,-1 weighs them as published",
                err=True,
            )
        in_use = 0
        if len(alphas) > 1 and max_memory is not None:  # the vectors as stored stay beside those as weighted
            in_use = features.features.nbytes
        how: dict[str, Any] = {
            "metric": metric,
            "protocol": protocol,
            "multi_query": multi_query,
            "single_shot": shot,
            "max_memory": None if max_memory is None else max_memory - in_use,
        }
        reports: list[ranking.RankReport] = []
        for alpha in alphas or (None,):
            compared = features if alpha is None else weighted(features, alpha)
            if not reports:
                click.echo(ranking.plan_memory(compared, grid, **how).to_text(), err=True)
                for place in metric_files:
                    held.enter_context(locked(place, "reid-eval rank --out"))
            report, swept = ranking.rank_swept(compared, grid, ties=ties, **how)
            if grid and not sweep:
                report = report.with_reranked(grid[0], swept[0])
            reports.append(report)

        behind = details_of(compared, report) if details and not card else None
        if card:
            click.echo(json.dumps(report.card, indent=2))
        elif as_json and len(reports) > 1:
            click.echo(json.dumps({"alphas": [json.loads(one.to_json()) for one in reports]}, indent=2))
        elif as_json:
            click.echo(report.to_json(list(zip(grid, swept, strict=True)) if sweep else None, behind))
        else:
            click.echo(ranking.text_of_reports(reports))
            if sweep:
                click.echo("\n" + ranking.sweep_text(grid, swept))
            if behind is not None:
                click.echo("\n" + behind.to_text())
        if out is not None:
            results = [result for report in reports for result in report.metrics()]
            for result in results:
                result.save(out, overwrite=overwrite)
            _wrote(out, f"{len(results)} metric files into ")
        if csv_file is not None:
            write_text(csv_file, ranking.csv_of_reports(reports, features))
            _wrote(csv_file)
        if plot_file is not None:
            plot_curves(plot_file, *reports)
            _wrote(plot_file)
        if sheets is not None and images is not None:
            chosen = choose_queries(compared, report, order=order, count=sheet_count, names=query_names, seed=seed)
            page = write_sheets(sheets, compared, report, images=images, queries=chosen, top=top)
            _wrote(page, f"{len(chosen)} ranked lists into ")
        if out is None and not card:
            click.echo(cli_images.KEEP, err=True)


def _one_source(
    file: Path | None, features: Path | None, query: Path | None, gallery: Path | None, labels: Path | None
) -> Path | None:
    """The file that was named in one way or the other; None where two files were."""
    if file is not None and features is not None:
        raise click.UsageError("FILE and --features are the same: give one of them")
    file = file or features
    if (file is None) == (query is None and gallery is None) or (query is None) != (gallery is None):
        if not (file is None and query is None and gallery is None):
            raise click.UsageError("give FILE, or --query, --gallery and --labels together")
        raise click.UsageError("which vectors? give FILE, or --query, --gallery and --labels together")
    if query is not None and labels is None:
        raise click.UsageError("--query and --gallery need --labels, a table with a line per vector")
    return file


def refuse_equal(outputs: Sequence[Path]) -> None:
    """See that a command writes each of its outputs to a place of its own."""
    places = [place.resolve() for place in outputs]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise OutputError(f"{twice}: two outputs of this command; give each a name of its own")


def _wrote(place: Path, what: str = "") -> None:
    click.echo(f"wrote {what}{printable(str(place))}", err=True)


@main.command()
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, default=Path("report.html"), show_default=True, help="The page; ends in .html.")
@click.option("--title", default="", help="Headline; the folder's name if not given.")
@click.option("--overwrite", is_flag=True, help="Replace files that report did not make; none of FOLDER.")
def report(folder: Path, out: Path, title: str, overwrite: bool) -> None:
    """Collect what was measured below a folder into one self-contained page, and its numbers into a .json beside it.

    Collected are metrics/*.json, pictures/*, the newest of each series in samples/, and config.yaml, at any depth.
    Where nothing was measured, it says which command measures; with nothing to show at all there is no page (exit
    code 1).

    \b
    Example:
      reid-eval report runs --out report.html
    """
    with user_errors():
        from reid_eval.report import claim_report, how_to_measure, report_of_folder, write_report

        claim_report(out, inputs=[folder], overwrite=overwrite)
        collected = report_of_folder(folder, title=title)
        write_report(out, collected, inputs=[folder], overwrite=overwrite)
        click.echo(f"wrote {printable(str(out))} and {printable(str(out.with_suffix('.json')))}", err=True)
        if not collected.results:
            click.echo(f"no metrics/*.json below {printable(str(folder))}. {how_to_measure(folder)}", err=True)


cli_images.add_to(main)

if __name__ == "__main__":
    main()
