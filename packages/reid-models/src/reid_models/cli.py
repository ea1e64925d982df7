"""The commands of reid-models: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from reid_eval.errors import OutputError, printable, user_errors
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
@click.option(
    "--preview", type=click.Path(path_type=Path), help="Write a contact sheet (.png) too: six people, a row each."
)
@click.option("--overwrite", is_flag=True, help="Let --preview replace a file that toy has not made.")
def toy(
    out: Path,
    ids: int,
    cameras: int,
    per_camera: int,
    seed: int,
    layout: str,
    image_size: str,
    preview: Path | None,
    overwrite: bool,
) -> None:
    """Draw a dataset of pedestrians of whom everything is known.

    OUT gets the pictures and toy.json, which holds for each picture what is worn and where the body is. The same
    arguments give the same bytes. Run again, also after it was stopped (exit code 75), it completes what is missing.

    \b
    Example:
      reid-models toy data/toy-raw --ids 16 --cameras 4 --preview data/toy.png
    """
    with user_errors():
        from reid_eval.files import save_image
        from reid_eval.outputs import claim_file
        from reid_eval.stopping import stoppable
        from reid_models.data.synthetic import contact_sheet, load_toy_records, make_toy_dataset, parse_image_size

        def may_write(sheet: Path) -> Path:
            suffixes = (".png", ".jpg", ".jpeg", ".webp")
            return claim_file(sheet, _TOY, inputs=[out], suffixes=suffixes, overwrite=overwrite)

        if preview is not None:
            may_write(preview)  # before anything is drawn
        with stoppable():
            make_toy_dataset(
                out,
                ids=ids,
                cameras=cameras,
                per_camera=per_camera,
                seed=seed,
                layout=layout,
                image_hw=parse_image_size(image_size),
            )
        click.echo(printable(f"wrote {len(load_toy_records(out))} pictures of {ids} people to {out}"), err=True)
        if preview is not None:
            save_image(may_write(preview), contact_sheet(out), maker=_TOY)  # by now it may be a picture of the dataset
            click.echo(printable(f"wrote {preview}"), err=True)


_TOY, _EXTRACT = "reid-models toy", "reid-models extract"
_layout = click.option("--layout", default="auto", show_default=True, help="The layout; auto recognises it by content.")


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@_layout
@click.option("--decode", is_flag=True, help="Read every picture too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(data: Path, layout: str, decode: bool, as_json: bool) -> None:
    """Say what a dataset holds, what it should hold, and what to do about the difference.

    DATA is a folder in any known layout, whatever it is called, or a CSV. The exit code is 0 when training could start
    and 1 when it could not.

    \b
    Example:
      reid-models check Market-1501-v15.09.15 --decode
    """
    with user_errors():
        from reid_eval.stopping import stoppable
        from reid_models.data.check import check_dataset

        with stoppable():
            result = check_dataset(data, layout=layout, decode=decode)
    click.echo(result.to_json() if as_json else result.to_text())
    sys.exit(0 if result.can_train else 1)


@main.command()
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="The dataset as it was unpacked.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new or empty folder, or an earlier one.")
@_layout
@click.option("--copy", is_flag=True, help="Copy the pictures instead of linking them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prepare(raw: Path, out: Path, layout: str, copy: bool, as_json: bool) -> None:
    """Lay a dataset out as one folder per identity: train_all, train, val, query, gallery, multi-query.

    Nothing is moved or removed. Run again, also after it was stopped (exit code 75), it adds what is missing and mends
    links whose pictures have moved.

    \b
    Example:
      reid-models prepare --raw Market-1501-v15.09.15 --out data/market
    """
    with user_errors():
        from reid_eval.stopping import stoppable
        from reid_models.data.prepare import prepare_dataset

        with stoppable():
            index = prepare_dataset(raw, out, layout=layout, copy=copy)
        training = ("train_all",) if {"train", "val"} & set(index.splits) else ()
        parts = {split: index.split(split) for split in (*training, *index.splits)}
    click.echo(printable(f"wrote {out}"), err=True)
    if as_json:
        counts = {split: {"images": len(part), "ids": part.num_ids} for split, part in parts.items()}
        click.echo(json.dumps({"out": str(out), "splits": counts}))
    else:
        for split, part in parts.items():
            click.echo(f"{split:<12}{len(part):>8} images{part.num_ids:>7} ids")


class SettingsCommand(click.RichCommand):
    """A command with --set: a setting that is given as an option of its own is answered with how to set it."""

    def __init__(self, *arguments: Any, settings: Callable[[], type], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings = settings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and say of an unknown option which setting it may mean."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (meant := self._meant(error.option_name)) is None:
                raise
            after = words[words.index(error.option_name) + 1 :] if error.option_name in words else []
            given = next((word.partition("=")[2] for word in words if word.startswith(f"{error.option_name}=")), "")
            value = given or (after[0] if after and not after[0].startswith("-") else "VALUE")
            raise click.UsageError(
                f"No such option: {error.option_name}; settings are changed with --set {meant}={value}", ctx
            ) from None

    def _meant(self, option: str) -> str | None:
        from reid_models.config import all_settings

        keys = {key.rpartition(".")[2]: key for key in reversed(all_settings(self.settings()))}
        close = difflib.get_close_matches(option.lstrip("-").replace("-", "_"), keys, n=1, cutoff=0.75)
        return keys[close[0]] if close else None


def _train_settings() -> type:
    from reid_models.training import ReidTrainConfig

    return ReidTrainConfig


_PATH = click.Path(path_type=Path)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")


@main.command(cls=SettingsCommand, settings=_train_settings)
@click.option("--config", "config_file", type=_PATH, help="YAML settings; without it a full-size ResNet-50.")
@click.option("--data", type=_PATH, help="A dataset, prepared or raw; a run that is gone on with knows its own.")
@click.option("--out", type=_PATH, required=True, help="The run's folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint; --out alone is enough.")
@click.option("--reset", is_flag=True, help="Move an earlier run of this name aside, to OUT.old-1 and so on.")
@click.option("--weights", type=_PATH, help="Start from a published file or a checkpoint; see reid-models inspect.")
@click.option(
    "--drop", multiple=True, metavar="NAME", help="What of --weights to leave out: a name's beginning; may be repeated."
)
@click.option("--extra-data", type=_PATH, help="Mix in generated pictures: a folder of dgnet-gen generate.")
@click.option("--ratio", type=float, help="Their share of every batch; by default 0.5.")
@click.option(
    "--labels",
    type=click.Choice(["hard", "smooth", "teacher"]),
    default="hard",
    show_default=True,
    help="What is said of them: who lent the clothes; the same, smoothed; what --teacher says.",
)
@click.option("--teacher", type=_PATH, help="For --labels teacher: a run trained on the same photographs alone.")
@_device
@click.option("--max-hours", type=float, help="Save and leave with exit code 75 after this many hours.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(
    config_file: Path | None,
    data: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    resume: bool,
    reset: bool,
    weights: Path | None,
    drop: tuple[str, ...],
    extra_data: Path | None,
    ratio: float | None,
    labels: Literal["hard", "smooth", "teacher"],
    teacher: Path | None,
    device: str,
    max_hours: float | None,
    as_json: bool,
) -> None:
    """Train a re-identification network and evaluate it as it goes.

    SIGTERM, SIGINT, SIGHUP (a closed terminal), SIGUSR1 and --max-hours save and leave with exit code 75. With --resume
    the run goes on as if it had never stopped: with its own settings, data, weights and generated pictures, none of
    which need be named. More epochs may be asked for (--set schedule.epochs=200), and what decides nothing of what is
    learned may be set anew.

    \b
    Example:
      reid-models train --config configs/baseline_market.yaml \\
        --data data/market --out runs/teacher
      reid-models train --resume --out runs/teacher
      reid-models train --config configs/mgn_market.yaml \\
        --data data/market --out runs/mgn --weights model_best.pt
      reid-models train --data data/market --out runs/with \\
        --extra-data runs/dgnet/fake/00100000 --ratio 0.5
    """
    if reset and resume:
        raise click.UsageError("--reset begins anew and --resume goes on: give one of them")
    if drop and not weights:
        raise click.UsageError("--drop says what of --weights to leave out: give both")
    if extra_data is None and (labels != "hard" or teacher is not None or ratio is not None):
        raise click.UsageError("--ratio, --labels and --teacher are about generated pictures: give --extra-data too")
    if data is None and not resume:
        raise click.UsageError("Missing option '--data': the dataset to train on")
    with user_errors():
        from reid_models.config import ConfigError, load_config
        from reid_models.data.index import DatasetIndex
        from reid_models.extra import Extra
        from reid_models.runs import RunDir
        from reid_models.runtime import Runtime
        from reid_models.training import ReidTrainConfig, train_reid

        found = RunDir.find(out, "reid", resume=True) if resume else None
        if found is not None and config_file is None:
            config = found.config(ReidTrainConfig, overrides)
        else:
            config = load_config(ReidTrainConfig, config_file, overrides)
        if data is None:
            if found is None:
                raise ConfigError(f"{out}: no run here to go on with; give --data to begin one")
            data = found.data_place()
        runtime = Runtime.from_environment(device, config.precision, max_hours)
        runtime.keep_freed_memory()
        index = DatasetIndex.open(data)
        extra = None
        if extra_data is not None:
            extra = Extra.open(extra_data, ratio=0.5 if ratio is None else ratio, labels=labels, teacher=teacher)
        run = train_reid(
            config, index, out, runtime,
            resume=resume, reset=reset, weights=weights, drop=drop, extra=extra, source=data,
        )  # fmt: skip
        last = run.load("last")
        best_map = last.progress["best_map"]
        key, what = ("best_map_hits_rerank", "re-ranked mAP") if config.eval_rerank else ("best_map_hits", "mAP")
    click.echo(f"wrote {run.path}", err=True)
    if as_json:
        click.echo(json.dumps({"run": str(run.path), "iteration": last.iteration, key: best_map}))
    else:
        measured = "not evaluated" if best_map is None else f"best {what} {best_map:.4f}"
        click.echo(f"{run.path}: {last.iteration} iterations, {measured}")


@main.command()
@click.option("--run", "run_path", type=_PATH, help="A trained run's folder, also of dgnet-gen.")
@click.option("--weights", type=_PATH, help="In place of --run: a published file; see reid-models inspect.")
@click.option("--out", type=_PATH, help="The feature file (.npz); by default features.npz in the run's folder.")
@click.option("--data", type=_PATH, help="The dataset; by default the one the run was trained on.")
@click.option("--images", type=_PATH, help="In place of --data: a folder of pictures, however they are called.")
@click.option(
    "--split", "splits", multiple=True, metavar="NAME", help="In place of query and gallery: train_all, multi-query ..."
)
@click.option("--overwrite", is_flag=True, help="Let --out replace a file that extract has not made.")
@click.option("--which", default="last", show_default=True, help="The checkpoint: last, best, or its iteration.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Add the vector of the mirrored picture.")
@click.option("--untrained", is_flag=True, help="The same network as its training found it, to compare with.")
@click.option("--alpha", type=float, help="Of a DG-Net: its fine head's weight (0.5); 0 for none, -1 for it alone.")
@click.option("--parts", is_flag=True, help="Of a DG-Net: keep both heads, so that rank --alpha can choose later.")
@click.option("--half", is_flag=True, help="Compute in 16 bits: faster where the hardware has them, less exact.")
@click.option("--compile", is_flag=True, help="Compile the network first; docs/results.md says what it gains.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that read pictures."
)
@click.option("--max-hours", type=float, help="Keep what is made and leave with exit code 75 after this time.")
@_device
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def extract(
    run_path: Path | None,
    weights: Path | None,
    out: Path | None,
    data: Path | None,
    images: Path | None,
    splits: tuple[str, ...],
    overwrite: bool,
    which: str,
    flip: bool,
    untrained: bool,
    alpha: float | None,
    parts: bool,
    half: bool,
    compile: bool,
    batch_size: int,
    workers: int,
    max_hours: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Write the feature file of a dataset's query and gallery, which reid-eval rank reads.

    Where there is neither, as in a folder per person, it is of all training pictures, to be ranked among themselves.
    Stopped by a signal or --max-hours (exit code 75), or killed, it leaves the vectors made so far beside the file, and
    the same command goes on from them; pictures that have become others since are read again.

    \b
    Example:
      reid-models extract --run runs/teacher --out runs/teacher/features.npz
      reid-models extract --weights model_best.pt --data Market --out mgn.npz
      reid-models extract --run runs/teacher --images photos --out photos.npz
      reid-models extract --run runs/dgnet --alpha 0.5 --split query \\
        --split gallery --split multi-query
      reid-models extract --run runs/dgnet --parts --out parts.npz
    """
    if (run_path is None) == (weights is None):
        raise click.UsageError("give either --run or --weights")
    if data and images:
        raise click.UsageError("give either --data or --images")
    if images and splits:
        raise click.UsageError("--split is for --data: a folder of pictures has no splits")
    if weights and not ((data or images) and out):
        raise click.UsageError("--weights needs --data or --images, and --out: a file does not tell where its data is")
    if images and not out:
        raise click.UsageError("--images needs --out: a run's own features.npz is of its dataset")
    if weights and (untrained or which != "last" or alpha is not None or parts):
        raise click.UsageError("--untrained, --which, --alpha and --parts are for --run: a file holds one network")
    if parts and alpha is not None:
        raise click.UsageError("--parts leaves the weight of the heads to reid-eval rank --alpha: give one of them")
    with user_errors():
        from reid_eval.errors import Stopped
        from reid_eval.locks import locked
        from reid_eval.outputs import claim_file
        from reid_eval.stopping import stoppable
        from reid_models.config import ConfigError
        from reid_models.data.check import ranked_splits
        from reid_models.data.index import DatasetError, DatasetIndex
        from reid_models.extraction import extract_features, is_feature_file, load_embedder, load_file, parse_which
        from reid_models.foreign import split_entry
        from reid_models.runs import RunDir

        began_s = time.monotonic()
        if max_hours is not None and not max_hours > 0:
            raise ConfigError(f"--max-hours: must be positive, got {max_hours:g}")

        if run_path is not None:
            if not (data or images):
                if not (run_path / "run.json").exists():
                    load_embedder(run_path, parse_which(which), "cpu")  # says so if there is no network either
                    raise DatasetError(f"{run_path}: does not tell where its data is; give it with --data")
                data = RunDir.open(run_path).data_place()
            out = out or run_path / "features.npz"
        if data is not None and not data.exists():
            raise DatasetError(f"{data}: the dataset is not there; give the folder that holds it with --data")
        assert out is not None
        if out.is_dir():
            raise OutputError(f"{out}: is a folder; expected a file's name, such as {out / 'features.npz'}")
        read = [place for place in (run_path, weights and split_entry(weights)[0], data, images) if place]

        def claim() -> Path:
            assert out is not None
            return claim_file(
                out, _EXTRACT, is_ours=is_feature_file, inputs=read, suffixes=[".npz"], overwrite=overwrite
            )

        claim()  # before any work
        index = DatasetIndex.from_images(images) if images else DatasetIndex.open(str(data))
        if not (images or splits) and (splits := ranked_splits(index)) != ("query", "gallery"):
            missing = " and no ".join(split for split in ("query", "gallery") if split not in splits)
            click.echo(printable(f"{index.root}: no {missing}, so the vectors are of {splits[0]}"), err=True)
        if run_path is not None:
            embedder = load_embedder(
                run_path, parse_which(which), device, untrained=untrained, half=half, compile=compile,
                alpha="parts" if parts else alpha,
            )  # fmt: skip
        else:
            embedder = load_file(str(weights), device, half=half, compile=compile)
        embedder.runtime.keep_freed_memory()
        partial = out.with_name(f"{out.name}.partial")
        with locked(out, _EXTRACT):
            claim()
            try:
                with stoppable(max_hours, began_s=began_s):
                    features = extract_features(
                        embedder,
                        index,
                        ("images",) if images else splits,
                        flip=flip,
                        batch_size=batch_size,
                        num_workers=workers,
                        partial=partial,
                    )
            except Stopped as stopped:
                made = f"vectors made so far are in {partial}" if partial.exists() else "no vector was made yet"
                raise Stopped(f"{stopped}: {made}; run the same command to go on") from None
            features.save(out)
            splits_of, num_features = features.splits.tolist(), features.num_features
            del features  # which reads from the file that is removed now
            partial.unlink()
    counts = {split: splits_of.count(split) for split in dict.fromkeys(splits_of)}
    click.echo(printable(f"wrote {out}"), err=True)
    if as_json:
        summary = {"file": str(out), **counts, "num_features": num_features, "extractor": embedder.name}
        click.echo(json.dumps(summary))
    else:
        pictures = " and ".join(f"{number} {split}" for split, number in counts.items()).removesuffix(" images")
        click.echo(f"{pictures} pictures, {num_features} numbers each, by {embedder.name}")


@main.command()
@click.argument("file", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what a weight file is, and how its tensors fit the network it is of.

    FILE is of MGN-pytorch (also the study's variants, and ReID-MGN), of the re-id baseline (ft_net, PCB; opts.yaml
    beside it is read), torchvision's ResNet-50, a checkpoint of ours, or a run's folder. The exit code is 1 when
    tensors are missing, left over or of another shape.

    \b
    Example:
      reid-models inspect experiment/adam_0/model/model_best.pt
    """
    with user_errors():
        from reid_models.exchange import inspect

        result = inspect(file)
    click.echo(result.to_json() if as_json else result.to_text())
    sys.exit(0 if result.fits else 1)


@main.command()
@click.option("--run", "run_path", type=_PATH, required=True, help="A trained run's folder.")
@click.option("--which", default="last", show_default=True, help="The checkpoint: last, best, or its iteration.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["original"]),
    default="original",
    show_default=True,
    help="For the program that published the network: MGN-pytorch, or the re-id baseline (and DG-Net).",
)
@click.option("--out", type=_PATH, required=True, help="The file; beside a net_last.pth its opts.yaml is written too.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(run_path: Path, which: str, file_format: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a run's network as a file that the program which published that network loads.

    Names and shapes of its tensors are that program's; values are copied as they are.

    \b
    Example:
      reid-models export --run runs/teacher --which best \\
        --format original --out models/teacher/net_last.pth
    """
    with user_errors():
        from reid_models.exchange import export_run
        from reid_models.extraction import parse_which

        exported = export_run(run_path, parse_which(which), out, overwrite=overwrite)
    click.echo(f"wrote {exported.file}", err=True)
    click.echo(exported.to_json() if as_json else f"{exported.file}: {exported.what}; needs {exported.options}")


if __name__ == "__main__":
    main()
