"""The commands of reid-eval: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
The commands that measure pictures are in `cli_images`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from reid_eval import __version__, cli_images
from reid_eval.errors import user_errors

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


@main.command()
@click.option(
    "--features",
    "features_file",
    type=_PATH,
    help="Feature file: our .npz, or .npz, .mat, .pt of other programs; see docs/evaluation.md.",
)
@click.option("--query", "query_file", type=_PATH, help="In place of --features: .npy with the query vectors.")
@click.option("--gallery", "gallery_file", type=_PATH, help="... .npy with the gallery vectors.")
@click.option("--labels", "labels_file", type=_PATH, help="... .csv with the columns split, pid, camid, path.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean", "dot", "hamming", "hamming-packed"]),
    default="cosine",
    show_default=True,
    help="Compare directions, the vectors as stored, their products, or binary codes (packed: 8 bits to a byte).",
)
@click.option(
    "--protocol",
    type=click.Choice(["cross-camera", "no-camera", "leave-one-out"]),
    default="cross-camera",
    show_default=True,
    help="Left out for a query: its identity in its camera, nothing, or only its own picture.",
)
@click.option(
    "--multi-query", type=click.Choice(["mean", "max"]), help="Pool the query with its same-camera pictures, and how."
)
@click.option("--multi-query-features", type=_PATH, help="File with those pictures (mquery_f ...), if a separate one.")
@click.option("--single-shot", is_flag=True, help="Also the match with one picture per identity (CUHK03 classic).")
@click.option("--repetitions", type=click.IntRange(min=1), help="Single shot: draw so often, not the expected value.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws and random sheets.")
@click.option(
    "--rerank/--no-rerank", "with_rerank", default=False, show_default=True, help="Show re-ranked numbers too."
)
@click.option("--k1", type=int, default=20, show_default=True, help="Re-ranking: neighbours that must be mutual.")
@click.option("--k2", type=int, default=6, show_default=True, help="Re-ranking: neighbours to average over; 1 is none.")
@click.option(
    "--lambda", "lambda_", type=float, default=0.3, show_default=True, help="Re-ranking: share of the plain distance."
)
@click.option(
    "--rerank-distance",
    type=click.Choice(["squared", "quartic", "raw"]),
    default="squared",
    show_default=True,
    help="Re-ranking: the power that enters; squared is the authors' and MGN's, quartic torchreid's and layumi's.",
)
@click.option(
    "--sweep", type=SweptValues(), multiple=True, help="Re-rank with every combination: k1=10,20 (k2=, lambda=, too)."
)
@click.option(
    "--ties",
    type=click.Choice(["index", "optimistic", "pessimistic"]),
    default="index",
    show_default=True,
    help="Equally far right and wrong pictures: in gallery order, right ones first, or wrong ones first.",
)
@click.option("--max-memory", type=MemorySize(), help="Do with so much memory, such as 8G, or say what is needed.")
@click.option("--csv", "csv_file", type=_PATH, help="Also write a line per query.")
@click.option("--details", is_flag=True, help="Also print camera pairs, worst queries, confused people, likely errors.")
@click.option(
    "--plot", "plot_file", type=_PATH, help="Also draw the match and precision-recall curves (.png, .svg, .pdf)."
)
@click.option("--sheets", type=_PATH, help="Also draw ranked lists into this new folder; needs --images.")
@click.option("--images", type=_PATH, help="Folder that the paths of the feature file begin in.")
@click.option(
    "--order",
    type=click.Choice(["worst", "best", "random"]),
    default="worst",
    show_default=True,
    help="Sheets: of which queries (random: by --seed).",
)
@click.option("--query-name", "query_names", multiple=True, help="Sheets: of the query with this file name.")
@click.option("--sheet-count", type=click.IntRange(min=1), default=20, show_default=True, help="Sheets: how many.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Sheets: pictures per query.")
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--card", is_flag=True, help="Print only how the numbers come about, as JSON.")
def rank(
    features_file: Path | None,
    query_file: Path | None,
    gallery_file: Path | None,
    labels_file: Path | None,
    metric: Literal["cosine", "euclidean", "dot", "hamming", "hamming-packed"],
    protocol: Literal["cross-camera", "no-camera", "leave-one-out"],
    multi_query: Literal["mean", "max"] | None,
    multi_query_features: Path | None,
    single_shot: bool,
    repetitions: int | None,
    seed: int,
    with_rerank: bool,
    k1: int,
    k2: int,
    lambda_: float,
    rerank_distance: Literal["squared", "quartic", "raw"],
    sweep: tuple[tuple[str, list[float]], ...],
    ties: Literal["index", "optimistic", "pessimistic"],
    max_memory: int | None,
    csv_file: Path | None,
    details: bool,
    plot_file: Path | None,
    sheets: Path | None,
    images: Path | None,
    order: Literal["worst", "best", "random"],
    query_names: tuple[str, ...],
    sheet_count: int,
    top: int,
    out: Path | None,
    as_json: bool,
    card: bool,
) -> None:
    """Print mAP (both published forms), mINP and CMC of a feature file, plain and, if asked, re-ranked beside it.

    \b
    Example:
      reid-eval rank --features runs/teacher/features.npz --rerank
      reid-eval rank --features pytorch_result.mat --sweep k1=10,20,30 --sweep lambda=0.1,0.3 --max-memory 8G
    """
    separate = [query_file, gallery_file, labels_file]
    if any(separate) == (features_file is not None) or (any(separate) and not all(separate)):
        raise click.UsageError("name the vectors by --features, or by --query, --gallery and --labels together")
    if sheets is not None and images is None:
        raise click.UsageError("--sheets needs --images, the folder that the paths of the feature file begin in")
    with user_errors():
        from reid_eval import ranking
        from reid_eval.details import details_of
        from reid_eval.files import write_text
        from reid_eval.foreign import load_features, load_features_and_labels
        from reid_eval.rerank import RerankParams, params_grid
        from reid_eval.scores import SingleShot
        from reid_eval.sheets import choose_queries, plot_curves, write_sheets

        if query_file is not None and gallery_file is not None and labels_file is not None:
            features = load_features_and_labels(query_file, gallery_file, labels_file)
        elif features_file is not None:
            features = load_features(features_file, multi_query=multi_query_features)
        one = RerankParams(k1=k1, k2=k2, lambda_=lambda_, distance=rerank_distance)
        grid = params_grid(one, dict(sweep)) if sweep else [one] if with_rerank else []
        shot = SingleShot(repetitions, seed) if single_shot or repetitions is not None else None
        how: dict[str, Any] = {
            "metric": metric,
            "protocol": protocol,
            "multi_query": multi_query,
            "single_shot": shot,
            "max_memory": max_memory,
        }
        click.echo(ranking.plan_memory(features, grid, **how).to_text(), err=True)
        report, swept = ranking.rank_swept(features, grid, ties=ties, **how)
        if grid and not sweep:
            report = report.with_reranked(grid[0], swept[0])
        behind = details_of(features, report) if details and not card else None
        if card:
            click.echo(json.dumps(report.card, indent=2))
        elif as_json:
            click.echo(report.to_json(list(zip(grid, swept, strict=True)) if sweep else None, behind))
        else:
            click.echo(report.to_text())
            if sweep:
                click.echo("\n" + ranking.sweep_text(grid, swept))
            if behind is not None:
                click.echo("\n" + behind.to_text())
        if csv_file is not None:
            write_text(csv_file, report.to_csv(features))
            click.echo(f"wrote {csv_file}", err=True)
        if plot_file is not None:
            plot_curves(plot_file, report)
            click.echo(f"wrote {plot_file}", err=True)
        if sheets is not None and images is not None:
            chosen = choose_queries(features, report, order=order, count=sheet_count, names=query_names, seed=seed)
            page = write_sheets(sheets, features, report, images=images, queries=chosen, top=top)
            click.echo(f"wrote {len(chosen)} ranked lists into {page}", err=True)
        if out is not None:
            results = report.metrics()
            for result in results:
                result.save(out)
            click.echo(f"wrote {len(results)} metric files into {out}", err=True)


@main.command()
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, default=Path("report.html"), show_default=True)
@click.option("--title", default="", help="Headline; the folder's name if not given.")
def report(folder: Path, out: Path, title: str) -> None:
    """Collect what was measured below a folder into one self-contained page, and its numbers into a .json beside it.

    Collected are metrics/*.json, pictures/*, the newest of each series in samples/, and config.yaml, at any depth.

    \b
    Example:
      reid-eval report runs --out report.html
    """
    with user_errors():
        from reid_eval.report import report_of_folder, write_report

        write_report(out, report_of_folder(folder, title=title))
        click.echo(f"wrote {out} and {out.with_suffix('.json')}", err=True)


cli_images.add_to(main)

if __name__ == "__main__":
    main()
