"""The commands of dgnet-gen: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import rich_click as click
from click.core import ParameterSource

from dgnet_gen import __version__
from reid_eval.cli import Alphas
from reid_eval.errors import printable, user_errors
from reid_models.cli import SettingsCommand

if TYPE_CHECKING:
    import numpy as np

    from dgnet_gen.model import DGNet
    from reid_models.data.index import DatasetIndex

F = TypeVar("F", bound=Callable[..., Any])

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
_format = click.option(
    "--format", "image_format", type=click.Choice(["png", "jpg", "webp"]), default="png", show_default=True
)
_quality = click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of jpg and webp."
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there, whatever it is, but no input.")
_data = click.option(
    "--data", type=_PATH, help="The dataset; by default the one the run was trained on. A published folder needs it."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgnet-gen")
def main() -> None:
    """Generate pedestrians that wear each other's clothes."""


def _train_settings() -> type:
    from dgnet_gen.settings import DGNetTrainConfig

    return DGNetTrainConfig


@main.command(cls=SettingsCommand, settings=_train_settings)
@click.option(
    "--config", "config_file", type=_PATH, help="YAML settings, also the published program's; without it its own."
)
@click.option("--data", type=_PATH, help="A dataset, prepared or raw; a run that is gone on with knows its own.")
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
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint; --out alone is enough.")
@click.option("--reset", is_flag=True, help="Move an earlier run of this name aside, to OUT.old-1 and so on.")
@click.option("--plan", is_flag=True, help="Try a few steps, say what the training takes, and write nothing.")
@_device
@click.option("--max-hours", type=float, help="Save and leave with exit code 75 after this many hours.")
@_json
def train(
    config_file: Path | None,
    data: Path | None,
    out: Path,
    teachers: tuple[Path, ...],
    begin_with: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    reset: bool,
    plan: bool,
    device: str,
    max_hours: float | None,
    as_json: bool,
) -> None:
    """Train DG-Net on a dataset's training pictures.

    SIGTERM, SIGINT, SIGHUP (a closed terminal), SIGUSR1 and --max-hours save and leave with exit code 75. With --resume
    the run goes on as if it had never stopped: with its own settings, data and teachers, none of which need be named.
    A larger --set max_iter=N may be asked for, and what decides nothing of what is learned may be set anew.

    \b
    Example:
      dgnet-gen train --config configs/dgnet_market.yaml --data data/market \\
        --teacher runs/teacher --out runs/dgnet
      dgnet-gen train --resume --out runs/dgnet
      dgnet-gen train --config configs/dgnet_market.yaml --data data/market \\
        --teacher runs/teacher --plan
    """
    if plan and (resume or reset):
        raise click.UsageError("--plan writes nothing, --resume and --reset do: give one of them")
    if reset and resume:
        raise click.UsageError("--reset begins anew and --resume goes on: give one of them")
    if data is None and not resume:
        raise click.UsageError("Missing option '--data': the dataset to train on")
    with user_errors():
        from dgnet_gen.exchange import PublishedFolder, load_train_config
        from dgnet_gen.settings import DGNetTrainConfig
        from reid_models.config import ConfigError
        from reid_models.data.index import DatasetIndex
        from reid_models.runs import RunDir
        from reid_models.runtime import Runtime

        folder = None if begin_with is None else PublishedFolder.open(begin_with)
        found = RunDir.find(out, "dgnet", resume=True) if resume else None
        if found is not None and config_file is None:
            config = found.config(DGNetTrainConfig, overrides)
        else:
            if folder is not None and config_file is None:
                config_file = folder.path / "config.yaml"
            config = load_train_config(config_file, overrides)
        if data is None:
            if found is None:
                raise ConfigError(f"{out}: no run here to go on with; give --data to begin one")
            data = found.data_place()
        runtime = Runtime.from_environment(device, config.precision, max_hours)
        runtime.keep_freed_memory()
        index = DatasetIndex.open(data)
        if plan:
            from dgnet_gen.plan import plan_training

            planned = plan_training(config, index, runtime, teachers, folder)
            click.echo(planned.to_json() if as_json else planned.to_text())
            return
        from dgnet_gen.training import train_dgnet

        run = train_dgnet(
            config, index, out, runtime,
            teachers=teachers, begin_with=folder, resume=resume, reset=reset, source=data,
        )  # fmt: skip
        iteration = run.iterations()[-1]
        last: dict[str, float] = {"iteration": iteration}
        for line in run.read_log():
            last |= line if line["iteration"] == iteration else {}
    click.echo(f"wrote {run.path}", err=True)
    if as_json:
        click.echo(json.dumps({"run": str(run.path), **last}))
    else:
        shown = ("recon_self", "recon_same_id", "identity")
        terms = "".join(f", {name} {last[name]:.3f}" for name in shown if name in last)
        click.echo(f"{run.path}: {iteration} iterations{terms}")


@main.command()
@_run
@_which
@_data
@click.option("--out", type=_PATH, help="Output folder; by default RUN/fake/ITERATION.")
@click.option("--out-by-structure", type=_PATH, help="A second folder: the same pictures by the structure's identity.")
@click.option(
    "--plan",
    "kind",
    default="published",
    show_default=True,
    metavar="PLAN",
    help="published, random, all-pairs, 'per-identity N', or a .csv with the columns structure,appearance.",
)
@click.option("--count", type=int, help="How many pictures; by default one per training picture.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Who meets whom.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say how long it takes and how large it gets; stop.")
@_format
@_quality
@click.option(
    "--published-pixels",
    is_flag=True,
    help="Grey levels and files as the published program's: levels cut off instead of rounded, JPEG of quality 75.",
)
@click.option(
    "--camera",
    type=click.Choice(["structure", "appearance", "unknown"]),
    default="structure",
    show_default=True,
    help="Whose camera the manifest gives a picture.",
)
@click.option("--half", is_flag=True, help="Paint in 16 bits: faster, and some grey levels off here and there.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Pictures under way at once."
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Threads that read, and that save."
)
@click.option(
    "--memory",
    "memory_mib",
    type=click.FloatRange(min=0),
    default=1024,
    show_default=True,
    help="MiB of appearances kept in memory; the others wait on disk.",
)
@click.option("--part", default="1/1", show_default=True, metavar="K/N", help="Make the K-th of N parts alone.")
@click.option("--max-hours", type=float, help="Leave with exit code 75 after this many hours; what is made stays.")
@_device
@_json
@click.pass_context
def generate(
    context: click.Context,
    run: Path,
    which_epoch: str,
    data: Path | None,
    out: Path | None,
    out_by_structure: Path | None,
    kind: str,
    count: int | None,
    seed: int,
    only_estimate: bool,
    image_format: Literal["png", "jpg", "webp"],
    quality: int,
    published_pixels: bool,
    camera: Literal["structure", "appearance", "unknown"],
    half: bool,
    batch_size: int,
    workers: int,
    memory_mib: float,
    part: str,
    max_hours: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Make pictures offline: every training picture's appearance in the structure of somebody else's picture.

    They lie in folders of the appearance's identity, with a manifest of both parents (manifest.csv) and a card
    (card.json) that names checkpoint, plan and seed. The same plan gives the same bytes, whatever --batch-size,
    --workers and --part are.

    Stopped by a signal or --max-hours (exit code 75), or killed, it keeps what is made, and the same command goes on;
    what has been lost, damaged or replaced since is made again. Parts may be made beside each other.

    Pictures are rounded to grey levels and written as PNG. To compare with numbers that were measured on the published
    program's pictures, make them as it does, with --published-pixels.

    \b
    Example:
      dgnet-gen generate --run runs/dgnet --which-epoch 100000
      dgnet-gen generate --run runs/dgnet --count 128307 --format jpg --estimate
      dgnet-gen generate --run runs/dgnet --plan "per-identity 8" --out eight
    """
    if published_pixels:
        for name in ("image_format", "quality"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError("--published-pixels says format and quality: leave --format and --quality out")
    with user_errors():
        from dgnet_gen.generation import PUBLISHED, Writing
        from dgnet_gen.generation import estimate as estimate_images
        from dgnet_gen.generation import generate as generate_images
        from dgnet_gen.generation_plan import plan_generation
        from reid_eval.stopping import stoppable
        from reid_models.config import ConfigError
        from reid_models.runtime import Runtime

        if max_hours is not None and not max_hours > 0:
            raise ConfigError(f"--max-hours: must be positive, got {max_hours:g}")
        share = _part(part)
        with stoppable(max_hours):
            model, index = _open(run, which_epoch, data, device)
            plan = plan_generation(index.split("train_all"), count, kind=kind, seed=seed)
            out = out or run / "fake" / f"{model.iteration:08d}"
            writing = replace(PUBLISHED, camera=camera) if published_pixels else Writing(image_format, quality, camera)
            runtime = Runtime.for_inference(str(model.device), half=half)
            runtime.keep_freed_memory()
            if only_estimate or len(plan) >= _WORTH_AN_ESTIMATE:
                expected = estimate_images(model, plan, writing=writing, runtime=runtime, workers=workers)
                if only_estimate:
                    click.echo(expected.to_json() if as_json else expected.to_text())
                    return
                click.echo(expected.to_text(), err=True)
                if not out.exists():
                    expected.refuse_full_disk(out)
            manifest = generate_images(
                model,
                plan,
                out,
                by_structure=out_by_structure,
                writing=writing,
                runtime=runtime,
                batch_size=batch_size,
                workers=workers,
                memory_mib=memory_mib,
                part=share,
            )
    summary = {"images": len(plan), "folder": str(out), "manifest": str(manifest), "checkpoint": model.checkpoint_id}
    click.echo(json.dumps(summary) if as_json else f"{len(plan)} pictures in {printable(str(out))}")


_WORTH_AN_ESTIMATE = 1000
"""pictures; fewer are made in about the time that measuring takes"""


def _part(text: str) -> tuple[int, int]:
    from reid_models.config import ConfigError

    numbers = text.split("/")
    if len(numbers) != 2 or not all(map(_is_number, numbers)):
        raise ConfigError(f"--part {text}: expected K/N, such as 1/4")
    number, parts = map(int, numbers)
    if not 1 <= number <= parts:
        raise ConfigError(f"--part {text}: expected K from 1 to N")
    return number, parts


@main.command()
@click.argument("folder", type=_PATH)
@click.argument("file")
@click.option("--run", type=_PATH, required=True, help="The run that made the folder.")
@_which
@click.option("--data", type=_PATH, help="The dataset, if it has moved since.")
@click.option("--out", type=_PATH, required=True, help="The picture's file.")
@_overwrite
@_device
def regenerate(
    folder: Path,
    file: str,
    run: Path,
    which_epoch: str,
    data: Path | None,
    out: Path,
    overwrite: bool,
    device: str,
) -> None:
    """Make one picture of a generated FOLDER again, byte for byte, from its manifest's row FILE.

    An earlier picture of the same folder is replaced at --out, anything else with --overwrite alone.

    \b
    Example:
      dgnet-gen regenerate fake 0002/a__in__b.png --run runs/dgnet --out c.png
    """
    with user_errors():
        from dgnet_gen.generation import regenerate as make_again

        _claim(out, "regenerate", (run, data), overwrite=True)
        make_again(_load(run, which_epoch, device), folder, file, data=data, to=out, overwrite=overwrite)
    click.echo(printable(str(out)))


_split = click.option("--split", help="Pick from this split alone, such as query; by default from all.")
_images = click.option(
    "--images", type=_PATH, help="In place of --data: a folder of pictures, however they are called."
)
_pids = click.option("--pids", metavar="2,7,...", help="Pick pictures of these people, in this order.")
_seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the picking.")
_scale = click.option(
    "--scale", type=click.IntRange(1, 16), help="Enlarge the pictures; by default to at least 128 rows."
)
_labels = click.option("--labels/--no-labels", default=True, show_default=True, help="Who is who, at the edges.")
_structures = click.option(
    "--structures", type=_PATH, multiple=True, help="A picture, or folder, to take poses of; may be repeated."
)
_appearances = click.option(
    "--appearances", type=_PATH, multiple=True, help="A picture, or folder, to take clothes of; may be repeated."
)
_pictures = click.option("--pictures", type=_PATH, multiple=True, help="A picture, or folder of them; may be repeated.")
_animate = click.option("--animate", type=_PATH, help="Also write the same as a film: .gif, .webp or .mp4.")
_steps = click.option("--steps", type=click.IntRange(min=2), default=11, show_default=True, help="Pictures in a row.")
_path = click.option(
    "--path", type=click.Choice(["spherical", "linear"]), default="spherical", show_default=True, help="Between codes."
)


_SHEETS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FILMS = (".gif", ".webp", ".mp4")


def _claim(
    out: Path,
    command: str,
    inputs: Iterable[Path | None],
    *,
    overwrite: bool,
    suffixes: Iterable[str] = _SHEETS,
) -> None:
    """See that a command may write a picture or a film there: nothing, or an earlier one of its own."""
    from reid_eval.outputs import claim_file

    read = [place for place in inputs if place is not None]
    claim_file(out, f"dgnet-gen {command}", inputs=read, suffixes=suffixes, overwrite=overwrite)


def _save(out: Path, pixels: np.ndarray, command: str, inputs: Iterable[Path | None], *, overwrite: bool) -> None:
    """Write a sheet that says which command made it, with nobody else writing there."""
    from reid_eval.files import save_image
    from reid_eval.locks import locked

    with locked(out, f"dgnet-gen {command}"):
        _claim(out, command, inputs, overwrite=overwrite)
        save_image(out, pixels, maker=f"dgnet-gen {command}")
    click.echo(printable(str(out)))


def _listed(places: tuple[Path, ...]) -> tuple[Path, ...]:
    """Pictures as they are named, those of a folder in the order of their names."""
    from reid_eval.files import ImageError, list_images

    pictures: list[Path] = []
    for place in places:
        found = list_images(place) if place.is_dir() else [place]
        if not found:
            raise ImageError(f"{place}: no pictures here or below; name a picture, or a folder that holds some")
        pictures += found
    return tuple(pictures)


def _number(option: str, default: int, help_text: str) -> Callable[[F], F]:
    return click.option(option, type=click.IntRange(min=1), default=default, show_default=True, help=help_text)


@main.command()
@_run
@_which
@_data
@_split
@_images
@_structures
@_appearances
@_number("--rows", 6, "Structures to pick.")
@_number("--cols", 6, "Appearances to pick.")
@_pids
@_seed
@_scale
@_labels
@click.option("--out", type=_PATH, default=Path("swap.png"), show_default=True, help="The sheet, .png, .jpg or .webp.")
@_overwrite
@_device
def swap(
    run: Path,
    which_epoch: str,
    data: Path | None,
    split: str | None,
    images: Path | None,
    structures: tuple[Path, ...],
    appearances: tuple[Path, ...],
    rows: int,
    cols: int,
    pids: str | None,
    seed: int,
    scale: int | None,
    labels: bool,
    out: Path,
    overwrite: bool,
    device: str,
) -> None:
    """A sheet of people in each other's clothes: poses down the left, clothes across the top.

    Takes any pictures by path, of any size, or picks different people from the run's data, a split of it, or a folder.

    \b
    Example:
      dgnet-gen swap --run runs/dgnet --rows 6 --cols 8 --out swap.png
      dgnet-gen swap --run runs/dgnet --structures a.jpg --appearances b.jpg
    """
    with user_errors():
        from dgnet_gen import visualise

        _claim(out, "swap", (run, data, images, *structures, *appearances), overwrite=overwrite)
        structures, appearances = _listed(structures), _listed(appearances)
        if structures and appearances:
            model = _load(run, which_epoch, device)
        else:
            model, index = _open_pictures(run, which_epoch, data, split, images, device)
            picked = visualise.pick_people(index, rows, cols, seed=seed, pids=_numbers(pids))
            structures, appearances = structures or tuple(picked[0]), appearances or tuple(picked[1])
        sheet = visualise.swap(model, structures, appearances)
        pixels = sheet.pixels(scale or _scale_for(model), labels=labels)
        _save(out, pixels, "swap", (run, data, images, *structures, *appearances), overwrite=overwrite)


@main.command()
@_run
@_which
@_data
@_split
@_images
@_pictures
@_number("--rows", 7, "Appearances, the first of the pictures.")
@_number("--cols", 7, "Structures, the first of the pictures.")
@_pids
@_seed
@_scale
@_labels
@click.option("--out", type=_PATH, default=Path("rainbow.png"), show_default=True, help="The sheet.")
@_overwrite
@_device
def rainbow(
    run: Path,
    which_epoch: str,
    data: Path | None,
    split: str | None,
    images: Path | None,
    pictures: tuple[Path, ...],
    rows: int,
    cols: int,
    pids: str | None,
    seed: int,
    scale: int | None,
    labels: bool,
    out: Path,
    overwrite: bool,
    device: str,
) -> None:
    """The paper's first figure: the same people give poses, across the top, and clothes, down the left.

    The diagonal shows everybody as they are, repainted.

    \b
    Example:
      dgnet-gen rainbow --run runs/dgnet --rows 5 --cols 9 --seed 3
      dgnet-gen rainbow --run runs/dgnet --images photos --out people.png
    """
    with user_errors():
        from dgnet_gen import visualise

        _claim(out, "rainbow", (run, data, images, *pictures), overwrite=overwrite)
        pictures = _listed(pictures)
        if pictures:
            model = _load(run, which_epoch, device)
        else:
            model, index = _open_pictures(run, which_epoch, data, split, images, device)
            pictures = tuple(visualise.pick_people(index, max(rows, cols), 0, seed=seed, pids=_numbers(pids))[0])
        sheet = visualise.rainbow(model, pictures, rows=rows, columns=cols)
        pixels = sheet.pixels(scale or _scale_for(model), labels=labels)
        _save(out, pixels, "rainbow", (run, data, images, *pictures), overwrite=overwrite)


def _smooth_options(command: F) -> F:
    rows = _number("--rows", 4, "People to pick, each on the way to the next.")
    shown = (_run, _which, _data, _split, _images, _pictures, rows, _steps, _path, _pids, _seed, _scale, _labels)
    for option in reversed((*shown, _animate)):
        command = option(command)
    return command


@main.command()
@_smooth_options
@click.option("--out", type=_PATH, default=Path("smooth.png"), show_default=True, help="The sheet.")
@_overwrite
@_device
def smooth(**options: Any) -> None:
    """From one person's clothes to the next one's, in the pose of the first: a row for each.

    The way is along a circle; the published program's is a straight line, --path linear.

    \b
    Example:
      dgnet-gen smooth --run runs/dgnet --rows 4 --animate smooth.gif
      dgnet-gen smooth --pictures a.jpg --pictures b.jpg --path linear
    """
    _smooth("appearance", **options)


@main.command("smooth-structure")
@_smooth_options
@click.option("--out", type=_PATH, default=Path("smooth-structure.png"), show_default=True, help="The sheet.")
@_overwrite
@_device
def smooth_structure(**options: Any) -> None:
    """From one person's pose to the next one's, in the clothes of the first: a row for each.

    The way is along a circle; the published program's is a straight line, --path linear.

    \b
    Example:
      dgnet-gen smooth-structure --run runs/dgnet --animate poses.webp
    """
    _smooth("structure", **options)


def _smooth(
    of: Literal["appearance", "structure"],
    *,
    run: Path,
    which_epoch: str,
    data: Path | None,
    split: str | None,
    images: Path | None,
    pictures: tuple[Path, ...],
    rows: int,
    steps: int,
    path: Literal["spherical", "linear"],
    pids: str | None,
    seed: int,
    scale: int | None,
    labels: bool,
    animate: Path | None,
    out: Path,
    overwrite: bool,
    device: str,
) -> None:
    if out.suffix.lower() in (".gif", ".mp4"):
        raise click.UsageError(f"--out is the sheet, which stands still; write a film with --animate {out}")
    if animate is not None and animate.resolve() == out.resolve():
        raise click.UsageError("--out and --animate name the same file: the sheet and the film are two")
    command = "smooth" if of == "appearance" else "smooth-structure"
    with user_errors():
        from dgnet_gen import visualise
        from reid_eval.locks import locked

        def claim_film(read: Iterable[Path | None]) -> None:
            if animate is not None:
                _claim(animate, command, read, overwrite=overwrite, suffixes=_FILMS)

        inputs = (run, data, images, *pictures)
        _claim(out, command, inputs, overwrite=overwrite)
        claim_film(inputs)
        pictures = _listed(pictures)
        if pictures:
            model = _load(run, which_epoch, device)
        else:
            model, index = _open_pictures(run, which_epoch, data, split, images, device)
            pictures = tuple(visualise.pick_people(index, rows, 0, seed=seed, pids=_numbers(pids))[0])
        sheet = visualise.smooth(model, pictures, of=of, steps=steps, path=path)
        inputs = (run, data, images, *pictures)
        _save(out, sheet.pixels(scale or _scale_for(model), labels=labels), command, inputs, overwrite=overwrite)
        if animate is not None:
            with locked(animate, f"dgnet-gen {command}"):
                claim_film(inputs)
                frames = sheet.frames(scale or _scale_for(model))
                visualise.save_animation(animate, frames, maker=f"dgnet-gen {command}")
            click.echo(printable(str(animate)))


@main.command("one-by-one")
@_run
@_which
@_data
@_split
@_images
@_structures
@_appearances
@_number("--rows", 4, "Structures to pick.")
@_number("--cols", 4, "Appearances to pick.")
@_pids
@_seed
@_format
@_quality
@click.option("--out", type=_PATH, default=Path("one-by-one"), show_default=True, help="The folder.")
@_device
def one_by_one(
    run: Path,
    which_epoch: str,
    data: Path | None,
    split: str | None,
    images: Path | None,
    structures: tuple[Path, ...],
    appearances: tuple[Path, ...],
    rows: int,
    cols: int,
    pids: str | None,
    seed: int,
    image_format: Literal["png", "jpg", "webp"],
    quality: int,
    out: Path,
    device: str,
) -> None:
    """Everybody's clothes in everybody's pose, a file each, with a manifest as generate writes it.

    Run again to go on after an interruption.

    \b
    Example:
      dgnet-gen one-by-one --run runs/dgnet --rows 16 --cols 16
      dgnet-gen one-by-one --structures a.jpg --appearances b.jpg --out pair
    """
    from reid_eval.stopping import stoppable

    with user_errors(), stoppable():
        from dgnet_gen import visualise
        from dgnet_gen.generation import Writing

        structures, appearances = _listed(structures), _listed(appearances)
        if structures and appearances:
            model = _load(run, which_epoch, device)
        else:
            model, index = _open_pictures(run, which_epoch, data, split, images, device)
            picked = visualise.pick_people(index, rows, cols, seed=seed, pids=_numbers(pids))
            structures, appearances = structures or tuple(picked[0]), appearances or tuple(picked[1])
        writing = Writing(image_format, quality)
        manifest = visualise.one_by_one(model, structures, appearances, out, writing=writing)
    click.echo(printable(str(manifest.parent)))


@main.command("test")
@_run
@_which
@_data
@click.option(
    "--alpha",
    "alphas",
    type=Alphas(),
    default="0,0.5,-1",
    show_default=True,
    help="Weights of the fine-grained head, a column each; 0 for none, -1 for it alone.",
)
@click.option(
    "--multi-query", type=click.Choice(["mean", "max"]), help="Pool the query with its same-camera pictures, and how."
)
@click.option("--rerank", is_flag=True, help="Show re-ranked numbers too.")
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
@click.option(
    "--mat",
    type=_PATH,
    help="Also write the vectors as the published program: pytorch_result.mat, and multi_query.mat beside it.",
)
@_overwrite
@click.option("--half", is_flag=True, help="Compute in 16 bits: faster where the hardware has them, less exact.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that read pictures."
)
@click.option("--max-hours", type=click.FloatRange(min=0), help="Leave with exit code 75 after this many hours.")
@_device
@_json
def test_run(
    run: Path,
    which_epoch: str,
    data: Path | None,
    alphas: tuple[float, ...],
    multi_query: Literal["mean", "max"] | None,
    rerank: bool,
    out: Path | None,
    mat: Path | None,
    overwrite: bool,
    half: bool,
    batch_size: int,
    workers: int,
    max_hours: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Rank a dataset's query and gallery by a DG-Net's two heads, with every weight between them.

    Pictures are looked at once. reid-models extract --run and reid-eval rank do the same in two steps, with more to
    choose. Stopped by a signal or --max-hours (exit code 75) it keeps nothing.

    \b
    Example:
      dgnet-gen test --run runs/dgnet --out runs/dgnet/metrics
      dgnet-gen test --run outputs/E0.5new_reid0.5_w30000 --data data/market \\
        --multi-query mean --mat pytorch_result.mat
    """
    from reid_eval.stopping import stoppable

    with user_errors(), stoppable(max_hours), ExitStack() as held:
        from dgnet_gen.features import load_embedder
        from dgnet_gen.published_result import claim_results, save_results
        from reid_eval import ranking
        from reid_eval.locks import locked
        from reid_eval.parts import weighted
        from reid_eval.progress import say
        from reid_eval.report import claim_metrics
        from reid_models.config import ConfigError
        from reid_models.data.index import DatasetIndex
        from reid_models.extraction import extract_features

        index = DatasetIndex.open(_data_of(run, data))
        names = ranking.metric_names(alphas, reranked=rerank, single_shot=False)

        def claim() -> list[Path]:
            inputs = [run, index.root]
            files = [] if out is None else claim_metrics(out, names, inputs=inputs, overwrite=overwrite)
            if mat is not None:
                files += claim_results(mat, multi_query=bool(multi_query), inputs=inputs, overwrite=overwrite)
            return files

        claim()
        embedder = load_embedder(run, _iteration(which_epoch), device, half=half, alpha="parts")
        if embedder is None:
            raise ConfigError(f"{run}: no training of DG-Net; rank others with reid-models extract and reid-eval rank")
        for file in claim():
            held.enter_context(locked(file, "dgnet-gen test"))
        claim()
        splits = ("query", "gallery", *(["multi-query"] if multi_query else []))
        features = extract_features(embedder, index, splits, batch_size=batch_size, num_workers=workers)
        protocol, why = ranking.fitting_protocol(features)
        if why:
            say(f"{why}: ranking by the protocol {protocol}")
        params = ranking.rerank_params(features) if rerank else None
        reports = [
            ranking.rank(weighted(features, alpha), rerank=params, protocol=protocol, multi_query=multi_query)
            for alpha in alphas
        ]
        if out is not None:
            for result in [result for report in reports for result in report.metrics()]:
                result.save(out, overwrite=overwrite)
            click.echo(f"wrote {len(names)} metric files into {printable(str(out))}", err=True)
        if mat is not None:
            for file in save_results(mat, features):
                click.echo(f"wrote {printable(str(file))}", err=True)
    if as_json:
        click.echo(json.dumps({"alphas": [json.loads(report.to_json()) for report in reports]}, indent=2))
    else:
        click.echo(ranking.text_of_reports(reports))


@main.command("swap-truth")
@click.argument("generated", type=_PATH)
@click.option("--toy", type=_PATH, required=True, help="The toy dataset that the parents are from.")
@click.option("--out", type=_PATH, help="Also write one metric file per number into this folder.")
@click.option("--sheet", type=_PATH, help="Also draw structure, appearance, generated and truth, one above the other.")
@_overwrite
@_json
def swap_truth(
    generated: Path, toy: Path, out: Path | None, sheet: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Compare generated swaps with the true picture, which the toy world can draw.

    PSNR and SSIM, beside two answers that need no network: the structure picture unchanged, the appearance picture
    unchanged.

    \b
    Example:
      dgnet-gen swap-truth runs/demo/generated --toy runs/demo/toy
    """
    with user_errors():
        from dgnet_gen.truth import METRIC_NAMES, truth_sheet
        from dgnet_gen.truth import swap_truth as compare
        from reid_eval.report import claim_metrics

        def claim() -> None:
            if out is not None:
                claim_metrics(out, METRIC_NAMES, inputs=[generated, toy], overwrite=overwrite)
            if sheet is not None:
                _claim(sheet, "swap-truth", [generated, toy], overwrite=overwrite)

        claim()
        report = compare(generated, toy)
        claim()
        if out is not None:
            for result in report.metrics():
                result.save(out, overwrite=overwrite)
            click.echo(printable(f"wrote {len(METRIC_NAMES)} metric files into {out}"), err=True)
        if sheet is not None:
            _save(sheet, truth_sheet(generated, toy), "swap-truth", [generated, toy], overwrite=overwrite)
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
      dgnet-gen export --run runs/dgnet --which 100000 --out outputs/ours
    """
    with user_errors():
        from dgnet_gen.exchange import export_run

        exported = export_run(run_path, _iteration(which, "--which"), out, overwrite=overwrite)
    for file in exported.files:
        click.echo(printable(f"wrote {exported.folder}/{file}"), err=True)
    if as_json:
        click.echo(exported.to_json())
    else:
        folder = printable(exported.folder)
        click.echo(f"{folder}: iteration {exported.iteration}; set teacher in config.yaml before training on")


def _load(run: Path, which_epoch: str, device: str) -> DGNet:
    from dgnet_gen.model import DGNet

    return DGNet.load(run, _iteration(which_epoch), device=device)


def _open(run: Path, which_epoch: str, data: Path | None, device: str) -> tuple[DGNet, DatasetIndex]:
    from reid_models.data.index import DatasetIndex

    _iteration(which_epoch)  # a word that is none is said first
    place = _data_of(run, data)
    return _load(run, which_epoch, device), DatasetIndex.open(place)


def _data_of(run: Path, data: Path | None) -> Path:
    """The dataset that was named, or the one of a run."""
    from dgnet_gen.exchange import PublishedFolder
    from reid_models.config import ConfigError
    from reid_models.runs import RunDir

    if data is not None:
        return data
    if PublishedFolder.is_one(run):
        raise ConfigError(f"{run}: a published folder, and where its data lie here is not known; give --data")
    return RunDir.open(run, "dgnet").data_place()


def _open_pictures(
    run: Path, which_epoch: str, data: Path | None, split: str | None, images: Path | None, device: str
) -> tuple[DGNet, DatasetIndex]:
    """A model, and where to pick pictures for it: a folder of any, or a dataset or one of its splits."""
    from reid_models.config import ConfigError
    from reid_models.data.index import DatasetIndex

    if images is not None:
        if data is not None or split is not None:
            raise ConfigError("--images takes a folder as it is: give either it, or --data and --split")
        index = DatasetIndex.from_images(images)
        return _load(run, which_epoch, device), index
    model, index = _open(run, which_epoch, data, device)
    return model, index if split is None else index.split(split)


def _numbers(pids: str | None) -> tuple[int, ...]:
    from reid_models.config import ConfigError

    texts = [text.strip() for text in pids.split(",")] if pids else []
    if not all(map(_is_number, texts)):
        raise ConfigError(f"--pids {pids}: expected numbers of people, such as 2,7,11")
    return tuple(map(int, texts))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _scale_for(model: DGNet) -> int:
    return max(1, -(-128 // model.image_hw[0]))


def _iteration(which_epoch: str, option: str = "--which-epoch") -> int | Literal["last", "best"]:
    from reid_models.config import ConfigError

    match which_epoch:
        case "last":
            return "last"
        case "best":
            return "best"
    if not _is_number(which_epoch):
        raise ConfigError(f"{option} {which_epoch}: expected a number of iterations, last, or best")
    return int(which_epoch)


if __name__ == "__main__":
    main()
