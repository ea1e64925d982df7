"""The command `python -m pipelines`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import rich_click as click

from reid_eval import __version__
from reid_eval.errors import user_errors

CONFIGS = Path(__file__).parents[1] / "configs"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The whole road: prepare, teacher, DG-Net, generate, evaluate, report.

    What is done is not done again; what was killed goes on when the same command is given again.
    """


_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_max_hours = click.option("--max-hours", type=float, help="Save and leave with exit code 75 after this many hours.")
_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TRAINER.KEY=VALUE",
    help="Change one setting of the teacher or of dgnet; may be repeated.",
)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the toy world, the networks and the plan.")
@_set
@_device
@_max_hours
def demo(out: Path, seed: int, overrides: tuple[str, ...], device: str, max_hours: float | None) -> None:
    """Walk the road on drawn pedestrians: small networks, CPU, no downloads, minutes.

    Ends in OUT/report.html, one file that opens anywhere.

    \b
    Example:
      python -m pipelines demo --out runs/demo
    """
    with user_errors():
        from pipelines.road import ToyWorld, demo_road, walk
        from reid_models.runtime import Runtime

        Runtime.from_environment(device).keep_freed_memory()
        toy = ToyWorld(seed=seed)
        report = walk(demo_road(out, CONFIGS, toy, overrides=overrides, device=device, max_hours=max_hours))
    click.echo(report)


@main.command()
@click.option("--raw", required=True, type=click.Path(path_type=Path), help="The dataset as it was unpacked.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--layout", default="auto", show_default=True, help="Layout of --raw; auto recognises it by content.")
@click.option(
    "--preset",
    type=click.Choice(["full", "small"]),
    default="full",
    show_default=True,
    help="full: published sizes, for a GPU. small: small networks and images, for trying on a CPU.",
)
@_set
@click.option(
    "--fid/--no-fid",
    "fid_inception",
    default=None,
    help="Measure the published FID too; it needs Inception's weights. By default with --preset full.",
)
@click.option(
    "--fid-weights",
    type=click.Path(path_type=Path),
    help="Inception's weight file; by default the torch hub cache, fetched there (91 MiB) if missing.",
)
@_device
@_max_hours
def market(
    raw: Path,
    out: Path,
    layout: str,
    preset: Literal["full", "small"],
    overrides: tuple[str, ...],
    fid_inception: bool | None,
    fid_weights: Path | None,
    device: str,
    max_hours: float | None,
) -> None:
    """Walk the road on a real dataset in Market-1501's or any other known layout.

    Ends in OUT/report.html, one file that opens anywhere.

    \b
    Example:
      python -m pipelines market --raw Market-1501-v15.09.15 --out runs
      python -m pipelines market --raw Market-1501-v15.09.15 --out runs/small \\
        --preset small --set dgnet.max_iter=500
    """
    with user_errors():
        from pipelines.road import market_road, walk
        from reid_models.runtime import Runtime

        Runtime.from_environment(device).keep_freed_memory()
        road = market_road(
            raw,
            out,
            CONFIGS,
            layout=layout,
            preset=preset,
            overrides=overrides,
            fid_inception=fid_inception,
            fid_weights=fid_weights,
            device=device,
            max_hours=max_hours,
        )
        report = walk(road)
    click.echo(report)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m pipelines"))
