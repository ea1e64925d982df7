"""The commands of reid-models: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from reid_eval.errors import user_errors
from reid_models import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reid-models")
def main() -> None:
    """Prepare re-ID datasets, train recognition networks and extract features."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--ids", type=int, default=16, show_default=True, help="People; half train, half test.")
@click.option("--cameras", type=int, default=4, show_default=True, help="Cameras, each in its own place.")
@click.option("--per-camera", type=int, default=6, show_default=True, help="Pictures of each person in each camera.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed is another world.")
@click.option(
    "--layout",
    type=click.Choice(["market1501", "dukemtmc", "msmt17", "cuhk03np", "folders"]),
    default="market1501",
    show_default=True,
    help="Folders and file names of this published dataset.",
)
@click.option("--image-size", default="128x64", show_default=True, metavar="HxW", help="Height x width in pixels.")
@click.option("--preview", type=click.Path(path_type=Path), help="Write a contact sheet (.png) too: one row a person.")
def toy(
    out: Path, ids: int, cameras: int, per_camera: int, seed: int, layout: str, image_size: str, preview: Path | None
) -> None:
    """Draw a dataset of pedestrians of whom everything is known.

    OUT gets the pictures and toy.json, which holds for each picture what is worn and where the body is. The same
    arguments give the same bytes. Run again, it completes what is missing.

    \b
    Example:
      reid-models toy data/toy-raw --ids 16 --cameras 4 --per-camera 6 --preview data/toy.png
    """
    with user_errors():
        from reid_eval.files import save_image
        from reid_models.data.synthetic import contact_sheet, load_toy_records, make_toy_dataset, parse_image_size

        make_toy_dataset(
            out,
            ids=ids,
            cameras=cameras,
            per_camera=per_camera,
            seed=seed,
            layout=layout,
            image_hw=parse_image_size(image_size),
        )
        click.echo(f"wrote {len(load_toy_records(out))} pictures of {ids} people to {out}", err=True)
        if preview is not None:
            save_image(preview, contact_sheet(out))
            click.echo(f"wrote {preview}", err=True)


if __name__ == "__main__":
    main()
