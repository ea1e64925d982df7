"""The commands of reid-eval: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import rich_click as click

from reid_eval import __version__
from reid_eval.errors import user_errors


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reid-eval")
def main() -> None:
    """Measure person re-identification and person-image generation."""


@main.command()
@click.option(
    "--features", "features_file", required=True, type=click.Path(path_type=Path), help="Feature file (.npz) to score."
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Compare directions, or the vectors as stored.",
)
@click.option(
    "--rerank/--no-rerank", "with_rerank", default=False, show_default=True, help="Show re-ranked numbers too."
)
@click.option("--k1", type=int, default=20, show_default=True, help="Re-ranking: neighbours that must be mutual.")
@click.option("--k2", type=int, default=6, show_default=True, help="Re-ranking: neighbours to average over; 1 is none.")
@click.option(
    "--lambda", "lambda_", type=float, default=0.3, show_default=True, help="Re-ranking: share of the plain distance."
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write one metric file per number into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rank(
    features_file: Path,
    metric: Literal["cosine", "euclidean"],
    with_rerank: bool,
    k1: int,
    k2: int,
    lambda_: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print mAP (both published forms), mINP and CMC of a feature file, plain and, if asked, re-ranked beside it.

    \b
    Example:
      reid-eval rank --features runs/teacher/features.npz --rerank
    """
    with user_errors():
        from reid_eval import ranking
        from reid_eval.features import ReidFeatures
        from reid_eval.rerank import RerankParams

        params = RerankParams(k1=k1, k2=k2, lambda_=lambda_) if with_rerank else None
        report = ranking.rank(ReidFeatures.load(features_file), rerank=params, metric=metric)
        click.echo(report.to_json() if as_json else report.to_text())
        if out is not None:
            results = report.metrics()
            for result in results:
                result.save(out)
            click.echo(f"wrote {len(results)} metric files into {out}", err=True)


if __name__ == "__main__":
    main()
