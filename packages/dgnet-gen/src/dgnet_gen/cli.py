"""The commands of dgnet-gen: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rich_click as click

from dgnet_gen import __version__
from reid_eval.errors import user_errors

if TYPE_CHECKING:
    from dgnet_gen.model import DGNet
    from reid_models.data.index import DatasetIndex

_PATH = click.Path(path_type=Path)
_run = click.option(
    "--run",
    type=_PATH,
    default=Path("runs/dgnet"),
    show_default=True,
    help="A trained run's folder, or one of the published program (config.yaml, checkpoints/gen_*.pt).",
)
_which = click.option(
    "--which-epoch", default="last", show_default=True, help="The checkpoint: a number of iterations, last, or best."
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_data = click.option(
    "--data", type=_PATH, help="The dataset; by default the one the run was trained on. A published folder needs it."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgnet-gen")
def main() -> None:
    """Generate pedestrians that wear each other's clothes."""


@main.command()
@click.option(
    "--config", "config_file", type=_PATH, help="YAML settings, also the published program's; without it its own."
)
@click.option("--data", type=_PATH, required=True, help="A dataset, prepared or raw.")
@click.option("--out", type=_PATH, default=Path("runs/dgnet"), show_default=True, help="The run's folder.")
@click.option(
    "--teacher",
    "teachers",
    type=_PATH,
    multiple=True,
    help="A run of reid-models train, or a folder with the re-id baseline's net_last.pth; may be repeated.",
)
@click.option(
    "--begin-with", type=_PATH, help="Go on from a training of the published program: its folder with optimizer.pt."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--plan", is_flag=True, help="Try a few steps, say what the training takes, and write nothing.")
@_device
@click.option("--max-hours", type=float, help="Save and leave with exit code 75 after this many hours.")
@_json
def train(
    config_file: Path | None,
    data: Path,
    out: Path,
    teachers: tuple[Path, ...],
    begin_with: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    plan: bool,
    device: str,
    max_hours: float | None,
    as_json: bool,
) -> None:
    """Train DG-Net on a dataset's training pictures.

    SIGTERM, SIGINT and --max-hours save and leave with exit code 75; the same command with --resume goes on as if it
    had never stopped.

    \b
    Example:
      dgnet-gen train --config configs/dgnet_market.yaml --data data/market --teacher runs/teacher --out runs/dgnet
      dgnet-gen train --config configs/dgnet_market.yaml --data data/market --teacher runs/teacher --plan
    """
    if plan and resume:
        raise click.UsageError("--plan writes nothing and --resume goes on with a run: give one of them")
    with user_errors():
        from dgnet_gen.exchange import PublishedFolder, load_train_config
        from reid_models.data.index import DatasetIndex
        from reid_models.runtime import Runtime

        folder = None if begin_with is None else PublishedFolder.open(begin_with)
        if folder is not None and config_file is None:
            config_file = folder.path / "config.yaml"
        config = load_train_config(config_file, overrides)
        runtime = Runtime.from_environment(device, config.precision, max_hours)
        index = DatasetIndex.open(data)
        if plan:
            from dgnet_gen.plan import plan_training

            planned = plan_training(config, index, runtime, teachers, folder)
            click.echo(planned.to_json() if as_json else planned.to_text())
            return
        from dgnet_gen.training import train_dgnet

        run = train_dgnet(config, index, out, runtime, teachers=teachers, begin_with=folder, resume=resume)
        iteration = run.iterations()[-1]
        last = {
            name: value for line in run.read_log() if line["iteration"] == iteration for name, value in line.items()
        }
    click.echo(f"wrote {run.path}", err=True)
    if as_json:
        click.echo(json.dumps({"run": str(run.path), **last}))
    else:
        terms = ", ".join(f"{name} {last[name]:.3f}" for name in ("recon_self", "recon_same_id", "identity"))
        click.echo(f"{run.path}: {iteration} iterations, {terms}")


@main.command()
@_run
@_which
@_data
@click.option("--out", type=_PATH, help="Output folder; by default RUN/fake/ITERATION.")
@click.option("--count", type=int, help="How many pictures; by default one per training picture.")
@click.option("--seed", type=int, default=0, show_default=True, help="Who meets whom.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_device
@_json
def generate(
    run: Path,
    which_epoch: str,
    data: Path | None,
    out: Path | None,
    count: int | None,
    seed: int,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Make pictures offline: every training picture's appearance in the structure of somebody else's picture.

    They lie in folders of the appearance's identity, with a manifest that names both parents, checkpoint and seed. Run
    again to finish an interrupted generation.

    \b
    Example:
      dgnet-gen generate --run runs/dgnet --which-epoch 100000
    """
    with user_errors():
        from dgnet_gen.generation import generate as generate_images
        from dgnet_gen.generation import plan_generation

        model, index = _open(run, which_epoch, data, device)
        plan = plan_generation(index.split("train_all"), count, seed=seed)
        out = out or run / "fake" / f"{model.iteration:08d}"
        manifest = generate_images(model, plan, out, batch_size=batch_size)
    summary = {"images": len(plan), "folder": str(out), "manifest": str(manifest), "checkpoint": model.checkpoint_id}
    click.echo(json.dumps(summary) if as_json else f"{len(plan)} pictures in {out}")


@main.command()
@_run
@_which
@_data
@click.option("--structures", type=_PATH, multiple=True, help="A picture whose pose is taken; may be repeated.")
@click.option("--appearances", type=_PATH, multiple=True, help="A picture whose clothes are taken; may be repeated.")
@click.option("--rows", type=click.IntRange(min=1), default=6, show_default=True, help="Structures to pick.")
@click.option("--cols", type=click.IntRange(min=1), default=6, show_default=True, help="Appearances to pick.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the picking.")
@click.option("--scale", type=click.IntRange(1, 8), default=1, show_default=True, help="Enlarge the sheet.")
@click.option("--out", type=_PATH, default=Path("swap.png"), show_default=True, help="The sheet, .png or .jpg.")
@_device
def swap(
    run: Path,
    which_epoch: str,
    data: Path | None,
    structures: tuple[Path, ...],
    appearances: tuple[Path, ...],
    rows: int,
    cols: int,
    seed: int,
    scale: int,
    out: Path,
    device: str,
) -> None:
    """A sheet of people in each other's clothes: poses down the left, clothes across the top.

    Takes any pictures by path, of any size, or picks different people from the run's data.

    \b
    Example:
      dgnet-gen swap --run runs/dgnet --rows 6 --cols 8 --out swap.png
      dgnet-gen swap --run runs/dgnet --structures a.jpg --appearances b.jpg --out swap.png
    """
    with user_errors():
        from dgnet_gen.visualise import enlarged, pick_people, swap_grid
        from reid_eval.files import save_image

        if structures and appearances:
            model = _load(run, which_epoch, device)
        else:
            model, index = _open(run, which_epoch, data, device)
            picked_structures, picked_appearances = pick_people(index, rows, cols, seed=seed)
            structures = structures or tuple(picked_structures)
            appearances = appearances or tuple(picked_appearances)
        save_image(out, enlarged(swap_grid(model, structures, appearances), scale))
    click.echo(out)


@main.command("swap-truth")
@click.argument("generated", type=_PATH)
@click.option("--toy", type=_PATH, required=True, help="The toy dataset that the parents are from.")
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
@click.option("--sheet", type=_PATH, help="Also draw structure, appearance, generated and truth, one above the other.")
@_json
def swap_truth(generated: Path, toy: Path, out: Path | None, sheet: Path | None, as_json: bool) -> None:
    """Compare generated swaps with the true picture, which the toy world can draw.

    PSNR and SSIM, beside two answers that need no network: the structure picture unchanged, the appearance picture
    unchanged.

    \b
    Example:
      dgnet-gen swap-truth runs/demo/generated --toy runs/demo/toy
    """
    with user_errors():
        from dgnet_gen.truth import swap_truth as compare
        from dgnet_gen.truth import truth_sheet
        from reid_eval.files import save_image

        report = compare(generated, toy)
        if out is not None:
            for result in report.metrics():
                result.save(out)
            click.echo(f"wrote {len(report.metrics())} metric files into {out}", err=True)
        if sheet is not None:
            save_image(sheet, truth_sheet(generated, toy))
            click.echo(f"wrote {sheet}", err=True)
    click.echo(report.to_json() if as_json else report.to_text())


@main.command()
@click.option("--run", "run_path", type=_PATH, required=True, help="A trained run's folder.")
@click.option("--which", default="last", show_default=True, help="The checkpoint: a number of iterations, or last.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["original"]),
    default="original",
    show_default=True,
    help="For the program that published DG-Net.",
)
@click.option("--out", type=_PATH, required=True, help="The folder, such as outputs/NAME of that program.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@_json
def export(run_path: Path, which: str, file_format: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a run's checkpoint as a folder that the published program loads, and trains on from.

    config.yaml, and below checkpoints gen_, id_ and dis_ITERATION.pt, and optimizer.pt.

    \b
    Example:
      dgnet-gen export --run runs/dgnet --which 100000 --format original --out outputs/ours
    """
    with user_errors():
        from dgnet_gen.exchange import export_run

        exported = export_run(run_path, _iteration(which, "--which"), out, overwrite=overwrite)
    for file in exported.files:
        click.echo(f"wrote {exported.folder}/{file}", err=True)
    if as_json:
        click.echo(exported.to_json())
    else:
        click.echo(f"{exported.folder}: iteration {exported.iteration}; set teacher in config.yaml before training on")


def _load(run: Path, which_epoch: str, device: str) -> DGNet:
    from dgnet_gen.model import DGNet

    return DGNet.load(run, _iteration(which_epoch), device=device)


def _open(run: Path, which_epoch: str, data: Path | None, device: str) -> tuple[DGNet, DatasetIndex]:
    from dgnet_gen.exchange import PublishedFolder
    from reid_models.config import ConfigError
    from reid_models.data.index import DatasetIndex
    from reid_models.runs import RunDir

    if data is None and PublishedFolder.is_one(run):
        raise ConfigError(f"{run}: a published folder, and where its data lie here is not known; give --data")
    model = _load(run, which_epoch, device)
    return model, DatasetIndex.open(data or Path(RunDir.open(run, "dgnet").made_by["data"]))


def _iteration(which_epoch: str, option: str = "--which-epoch") -> int | Literal["last", "best"]:
    from reid_models.config import ConfigError

    match which_epoch:
        case "last":
            return "last"
        case "best":
            return "best"
    if not which_epoch.isdigit():
        raise ConfigError(f"{option} {which_epoch}: expected a number of iterations, last, or best")
    return int(which_epoch)


if __name__ == "__main__":
    main()
