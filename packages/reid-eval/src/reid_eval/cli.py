"""The commands of reid-eval: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rich_click as click

from reid_eval import __version__
from reid_eval.errors import user_errors

if TYPE_CHECKING:
    from reid_eval.report import MetricResult

# Whether a path is there, readable and of the right kind is said by who opens it, in one line.
_PATH = click.Path(readable=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reid-eval")
def main() -> None:
    """Measure person re-identification and person-image generation."""


@main.command()
@click.option("--features", "features_file", required=True, type=_PATH, help="Feature file (.npz) to score.")
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
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
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


@main.command()
@click.argument("real", type=_PATH)
@click.argument("fake", type=_PATH)
@click.option(
    "--extractor",
    "extractor_name",
    default="inception",
    show_default=True,
    help="inception; reid:RUN, a trained re-ID run; or random, for demonstration only.",
)
@click.option("--weights", type=_PATH, help="Inception's weight file; else the torch hub cache.")
@click.option("--batch-size", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--out", type=_PATH, help="Also write the metric file into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fid(
    real: Path,
    fake: Path,
    extractor_name: str,
    weights: Path | None,
    batch_size: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the Frechet distance between all pictures below two folders: how alike the two sets are as sets.

    The number's name says whose features it was measured in: fid_inception is the published FID, fid_reid that of a
    trained re-ID run, fid_random_demo means nothing and shows only that everything works.

    \b
    Example:
      reid-eval fid data/market/train_all runs/dgnet/fake/00100000
      reid-eval fid real fake --extractor reid:runs/teacher --out runs/metrics
    """
    with user_errors():
        from reid_eval import fid as frechet

        for folder in (real, fake):  # a wrong folder should not wait for the network to be loaded, or even fetched
            frechet.pictures_below(folder)
        extractor = frechet.extractor_from_name(extractor_name, weights=weights, device=device)
        _show(frechet.fid(real, fake, extractor, batch_size=batch_size), out, as_json)


@main.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH, required=False)
@click.option("--pairs", type=click.IntRange(min=1), default=10, show_default=True, help="Random pairs per identity.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pairs.")
@click.option("--out", type=_PATH, help="Also write the metric file into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ssim(first: Path, second: Path | None, pairs: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Print the mean SSIM of pairs of pictures.

    One folder: random pairs within each identity's folder. That is diversity, how varied the pictures of a person are,
    and not fidelity. Two folders: the pictures of equal relative path, whatever their suffix. That is fidelity.

    SSIM is scikit-image's default (uniform 7x7 window) on RGB 0..255 at native size; other programs mean other numbers.

    \b
    Example:
      reid-eval ssim runs/dgnet/fake/00100000
      reid-eval ssim reconstructed originals
    """
    with user_errors():
        from reid_eval.similarity import ssim_of_pairs, ssim_within_identity

        result = ssim_of_pairs(first, second) if second else ssim_within_identity(first, pairs=pairs, seed=seed)
        _show(result, out, as_json)


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


def _show(result: MetricResult, out: Path | None, as_json: bool) -> None:
    if as_json:
        click.echo(result.to_json())
    else:
        better = "higher" if result.higher_is_better else "lower"
        value = f"{result.value:.4f} {result.unit}".rstrip()
        click.echo(f"{result.name}: {value} ({better} is better)\n{result.protocol}")
    if out is not None:
        click.echo(f"wrote {result.save(out)}", err=True)


if __name__ == "__main__":
    main()
