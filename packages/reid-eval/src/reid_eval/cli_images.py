"""The commands of reid-eval that measure pictures: fid, kid, prdc, ssim, lpips, images, stats, weights, diff.

All of them ask `images.measure_images`, so each is a part of the one pass that `images` makes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import rich_click as click
from click.core import ParameterSource

from reid_eval.errors import OutputError, ReidError, printable, user_errors

if TYPE_CHECKING:
    from reid_eval.images import Metric, Protocol
    from reid_eval.report import MetricResult
    from reid_eval.resizing import ResizeRule

KEEP = "not kept: --out FOLDER/metrics writes these numbers as metric files, which reid-eval report FOLDER collects"
"""what a command that measures says where it was not asked to write"""

F = TypeVar("F", bound=Callable[..., None])

# Whether a path is there, readable and of the right kind is said by who opens it, in one line.
_PATH = click.Path(readable=False, path_type=Path)
_METRICS = ("fid", "kid", "prdc", "ssim", "lpips", "identity", "pairs")
_TABLE_COLUMNS = ("name", "value", "low", "high", "unit", "higher_is_better", "protocol")
_RESIZE = ("legacy", "clean", "tensorflow", "dgnet", "none")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help text."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_extractor_options = _options(
    click.option_panel("Features", options=["--extractor", "--weights", "--resize", "--half"]),
    click.option(
        "--extractor",
        "extractor_name",
        default="inception",
        show_default=True,
        help="inception; torchvision:NAME; timm:NAME; reid:RUN, a trained re-ID run; or random, for demonstration.",
    ),
    click.option(
        "--weights", type=_PATH, help="The extractor's weight file; else it is looked for (reid-eval weights)."
    ),
    click.option(
        "--resize",
        type=click.Choice(_RESIZE),
        default="legacy",
        show_default=True,
        help="Rule for the network's size: pytorch-fid's, clean-fid's, TensorFlow's, the DG-Net paper's, or none.",
    ),
    click.option("--half", is_flag=True, help="Compute features in bfloat16."),
)
_weight_options = _options(
    click.option_panel("Weight files", options=["--any-weights", "--offline"]),
    click.option(
        "--any-weights", is_flag=True, help="Take weight files that are not the published ones; never to be quoted."
    ),
    click.option("--offline", is_flag=True, help="Never fetch anything (also REID_OFFLINE=1)."),
)
_lpips_options = _options(
    click.option_panel("LPIPS", options=["--net", "--lpips-weights", "--heads"]),
    click.option(
        "--net",
        type=click.Choice(["alex", "vgg", "squeeze"]),
        default="alex",
        show_default=True,
        help="The network.",
    ),
    click.option("--lpips-weights", type=_PATH, help="Weight file of that network, as torchvision publishes it."),
    click.option("--heads", type=_PATH, help="File of the linear heads."),
)
_pair_options = _options(
    click.option_panel("Pairs", options=["--pairs", "--seed", "--pairs-file", "--resize-pairs"]),
    click.option(
        "--pairs", type=click.IntRange(min=1), default=10, show_default=True, help="Random pairs per identity."
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pairs."),
    click.option(
        "--pairs-file", type=_PATH, help="Two folders: a .csv with columns first,second in place of equal names."
    ),
    click.option("--resize-pairs", is_flag=True, help="Two folders: resize the second of a pair to the first."),
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_preset = click.option(
    "--preset",
    type=click.Choice(["dgnet-paper"]),
    help="One folder: the number that DG-Net's compute_market.py prints; its measure, pairs and rounds.",
)
_read_options = _options(
    click.option("--workers", type=click.IntRange(min=1), help="Threads that decode ahead; they change no number."),
    click.option("--strict", is_flag=True, help="Stop at a picture that cannot be read, instead of leaving it out."),
    click.option("--cache/--no-cache", default=True, show_default=True, help="Keep features and answers (REID_CACHE)."),
    click.option(
        "--max-hours",
        type=click.FloatRange(min=0),
        help="Stop after so long, with exit code 75; features made so far are kept.",
    ),
)
_run_options = _options(
    click.option("--batch-size", type=click.IntRange(min=1), default=50, show_default=True, help="Pictures at a time."),
    _device,
    _read_options,
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace files that are no such output; never an input.")
_output_options = _options(
    click.option_panel("Output", options=["--out", "--csv", "--json", "--overwrite", "--help"]),
    click.option("--out", type=_PATH, help="Also write a metric file per number into this folder."),
    click.option("--csv", "csv_file", type=_PATH, help="Also write a line per number."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    _overwrite,
)


def _running(*options: str) -> Callable[[F], F]:
    """The panel of the options about how a command runs."""
    return click.option_panel("Running", options=[*options, "--workers", "--strict", "--cache", "--max-hours"])


@click.command()
@click.argument("real", type=_PATH)
@click.argument("fake", type=_PATH)
@_extractor_options
@_weight_options
@_running("--batch-size", "--device")
@_run_options
@_output_options
def fid(real: Path, fake: Path, **options: Any) -> None:
    """Print the Frechet distance between two sets of pictures: how alike they are as sets.

    A set is a folder, with all pictures below it, or a statistics file .npz (of reid-eval stats, or of pytorch-fid).
    The number's name says whose features it was measured in: fid_inception is the published FID, fid_reid that of a
    trained re-ID run, fid_random_demo means nothing and shows only that everything works.

    \b
    Examples:
      reid-eval fid data/market/train_all runs/dgnet/fake/00100000
      reid-eval fid real.npz fake --extractor reid:runs/teacher --out metrics
    """
    _measure(real, fake, ["fid"], **options)


@click.command()
@click.argument("real", type=_PATH)
@click.argument("fake", type=_PATH)
@click.option_panel("Protocol", options=["--subsets", "--subset-size"])
@click.option(
    "--subsets", type=click.IntRange(min=1), help="Mean over so many random subsets, as torch-fidelity takes it."
)
@click.option(
    "--subset-size", type=click.IntRange(min=2), default=1000, show_default=True, help="Pictures of a subset."
)
@_extractor_options
@_weight_options
@_running("--batch-size", "--device")
@_run_options
@_output_options
def kid(real: Path, fake: Path, subsets: int | None, subset_size: int, **options: Any) -> None:
    """Print the kernel distance (KID) between two sets of pictures, with an interval of 95 %.

    It has no bias from the number of pictures, so it is the one to take where they are few. It may be negative.

    \b
    Examples:
      reid-eval kid data/market/train_all runs/dgnet/fake/00100000
      reid-eval kid real.npz fake --subsets 100 --out metrics
    """
    if subsets is None and _given("subset_size"):
        raise click.UsageError("--subset-size is about --subsets: give both")
    _measure(real, fake, ["kid"], protocol={"kid_subsets": subsets, "kid_subset_size": subset_size}, **options)


@click.command()
@click.argument("real", type=_PATH)
@click.argument("fake", type=_PATH)
@_extractor_options
@_weight_options
@_running("--batch-size", "--device")
@_run_options
@_output_options
def prdc(real: Path, fake: Path, **options: Any) -> None:
    """Print precision and recall, density and coverage of generated pictures.

    Precision and density ask whether generated pictures are like real ones; recall and coverage, whether all kinds of
    real ones are met.

    \b
    Example:
      reid-eval prdc data/market/train_all runs/dgnet/fake/00100000
    """
    _measure(real, fake, ["prdc"], **options)


@click.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH, required=False)
@_pair_options
@_preset
@_running()
@_read_options
@_output_options
def ssim(first: Path, second: Path | None, preset: str | None, **options: Any) -> None:
    """Print the mean SSIM of pairs of pictures.

    One folder: random pairs within each identity's folder. That is diversity, how varied the pictures of a person
    are, and not fidelity: no direction is better, and right is what real pictures have. Two folders: the pictures of
    equal relative path, whatever their suffix, or of --pairs-file; PSNR too. That is fidelity.

    SSIM is scikit-image's default (uniform 7x7 window) on RGB 0..255 at native size; other programs mean other numbers.
    What DG-Net's compute_market.py prints as SSIM is (1 - SSIM) / 2 in Lab colours: --preset dgnet-paper.

    \b
    Examples:
      reid-eval ssim runs/dgnet/fake/00100000
      reid-eval ssim runs/dgnet/fake/00100000 --preset dgnet-paper
      reid-eval ssim reconstructed originals
    """
    _refuse_unused_pair_options(names_pairs=second is not None)
    _measure(second, first, ["pairs"] if second else ["ssim"], **_with_preset(preset, second, options))


@click.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH, required=False)
@_lpips_options
@_weight_options
@_pair_options
@_preset
@_running("--device")
@_device
@_read_options
@_output_options
def lpips(first: Path, second: Path | None, preset: str | None, **options: Any) -> None:
    """Print the mean LPIPS (0.1) of pairs of pictures: a distance, 0 for equal pictures.

    One folder: random pairs within each identity's folder. That is diversity, higher being more varied, and not
    fidelity: right is what real pictures have. Two folders: the pictures of equal relative path, or of --pairs-file,
    with SSIM and PSNR of the same pairs. That is fidelity, lower being better.

    --preset dgnet-paper takes pairs and rounds as DG-Net's compute_market.py, a part of PerceptualSimilarity, does.

    \b
    Examples:
      reid-eval lpips runs/dgnet/fake/00100000 --net alex
      reid-eval lpips runs/dgnet/fake/00100000 --preset dgnet-paper
    """
    _refuse_unused_pair_options(names_pairs=second is not None)
    metrics: list[Metric] = ["pairs"] if second else ["lpips"]
    _measure(second, first, metrics, needs_lpips=True, **_with_preset(preset, second, options))


def _with_preset(preset: str | None, second: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command about pairs, with those that a preset fixes."""
    if preset is None:
        return options
    if second is not None:
        raise click.UsageError(f"--preset {preset}: only for one folder")
    if fixed := _given("pairs", "seed"):
        raise click.UsageError(f"--preset {preset} fixes {_spelt(fixed)}; leave it out, or the preset")
    from reid_eval.images import DGNET_PAPER

    return {**options, "pairs": DGNET_PAPER.pairs, "seed": DGNET_PAPER.seed, "protocol": vars(DGNET_PAPER)}


@click.command()
@click.argument("real", type=_PATH)
@click.argument("fake", type=_PATH)
@click.option_panel("Metrics", options=["--metrics", "--reid", "--preset"])
@click.option(
    "--metrics",
    default="fid,kid,prdc,ssim",
    show_default=True,
    help="Which, with commas between: fid, kid, prdc, ssim, lpips, identity, pairs.",
)
@click.option("--reid", "reid_name", help="Also identity consistency, in the features of this extractor (reid:RUN).")
@click.option(
    "--preset",
    type=click.Choice(["dgnet-paper"]),
    help="The DG-Net paper's protocol: fid and ssim, its sets, pairs, rounds and sizes.",
)
@_extractor_options
@_lpips_options
@_weight_options
@_pair_options
@_running("--batch-size", "--device")
@_run_options
@_output_options
def images(real: Path, fake: Path, metrics: str, reid_name: str | None, preset: str | None, **options: Any) -> None:
    """Print all metrics of generated pictures, in one pass that decodes each picture once.

    ssim and lpips are diversity within identities, for both sides; without --metrics, ssim is left out where there is
    no folder per identity. pairs is fidelity, of pictures of equal relative path; identity asks whether a re-ID network
    still sees the right person. lpips needs its weight files (reid-eval weights).

    \b
    Examples:
      reid-eval images data/market/train_all runs/dgnet/fake/00100000
      reid-eval images real fake --metrics fid,kid,ssim,lpips --out metrics
      reid-eval images real fake --reid reid:runs/teacher --csv numbers.csv
      reid-eval images data/market/train_all fake --preset dgnet-paper
    """
    asked = list(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    unknown = [name for name in asked if name not in _METRICS]
    if unknown or not asked:
        raise click.UsageError(
            f"--metrics {metrics}: {', '.join(unknown) or 'none'} not known; expected some of {', '.join(_METRICS)}"
        )
    given = set(_given("metrics", "resize", "pairs", "seed", "extractor_name"))
    if "pairs" not in asked and (unused := _given("pairs_file", "resize_pairs")):
        raise click.UsageError(f"{_spelt(unused)}: only for --metrics pairs")
    protocol: dict[str, Any] = {}
    if preset is not None:
        if fixed := sorted(given - {"metrics"}):
            raise click.UsageError(f"--preset dgnet-paper fixes {_spelt(fixed)}; leave it out, or the preset")
        from reid_eval.images import DGNET_PAPER

        protocol = vars(DGNET_PAPER)
        options |= {"resize": "dgnet", "pairs": DGNET_PAPER.pairs, "seed": DGNET_PAPER.seed}
        asked = asked if "metrics" in given else ["fid", "ssim"]
    if "metrics" not in given and preset is None:
        for side in (real, fake):
            with user_errors():
                compared = _holds_identities(side)
            if not compared:
                asked = [name for name in asked if name != "ssim"]
                where = printable(str(side))
                click.echo(f"ssim left out: {where} has no folder per identity with two pictures in it", err=True)
    if reid_name is not None and "identity" not in asked:
        asked.append("identity")
    if "identity" in asked and reid_name is None:
        raise click.UsageError("identity needs --reid, the extractor to see identities with, such as reid:runs/teacher")
    _measure(real, fake, cast("list[Metric]", asked), reid_name=reid_name, protocol=protocol, **options)


def _holds_identities(side: Path) -> bool:
    """Whether there are pictures to be compared within an identity; what is missing or empty is not judged."""
    from reid_eval.files import list_images
    from reid_eval.pairs import pictures_by_folder

    if not side.is_dir():
        return side.suffix.lower() != ".npz"
    paths = list_images(side)
    return not paths or any(len(members) > 1 for members in pictures_by_folder(side, paths).values())


def _given(*names: str) -> list[str]:
    """Which of some options of the running command were given."""
    context = click.get_current_context()
    assert context is not None
    return [name for name in names if context.get_parameter_source(name) != ParameterSource.DEFAULT]


def _spelt(names: Sequence[str]) -> str:
    return ", ".join("--" + name.removesuffix("_name").replace("_", "-") for name in names)


def _refuse_unused_pair_options(*, names_pairs: bool) -> None:
    unused = _given("pairs", "seed") if names_pairs else _given("pairs_file", "resize_pairs")
    if unused:
        raise click.UsageError(f"{_spelt(unused)}: only for {'one folder' if names_pairs else 'two folders'}")


@click.command()
@click.argument("folder", type=_PATH)
@click.argument("out", type=_PATH)
@_extractor_options
@_weight_options
@_running("--batch-size", "--device")
@_run_options
@click.option_panel("Output", options=["--overwrite", "--help"])
@_overwrite
def stats(
    folder: Path,
    out: Path,
    batch_size: int,
    workers: int | None,
    strict: bool,
    cache: bool,
    max_hours: float | None,
    overwrite: bool,
    extractor_name: str,
    **extractor: Any,
) -> None:
    """Write the statistics of a folder's pictures, for fid, kid and prdc to take in its place.

    The .npz holds mu and sigma, as pytorch-fid reads them, and beside them the features of each picture and a card.

    \b
    Example:
      reid-eval stats data/market/train_all real.npz
    """
    with user_errors(), contextlib.ExitStack() as held:
        from reid_eval.extractors import extractor_from_name
        from reid_eval.feature_sets import is_statistics_file
        from reid_eval.images import feature_set, pictures_below
        from reid_eval.outputs import claim_file
        from reid_eval.stopping import stoppable
        from reid_eval.weights import cache_folder

        inputs = [place for place in (folder, extractor["weights"]) if place is not None]

        def claim() -> list[Path]:
            maker, suffixes = "reid-eval stats", [".npz"]
            return [
                claim_file(
                    out, maker, is_ours=is_statistics_file, inputs=inputs, suffixes=suffixes, overwrite=overwrite
                )
            ]

        claim()
        pictures_below(folder)
        network = extractor_from_name(extractor_name, **extractor)
        _hold(held, claim, "reid-eval stats")
        with stoppable(max_hours):
            made = feature_set(
                folder,
                network,
                batch_size=batch_size,
                workers=workers,
                strict=strict,
                cache=cache_folder() if cache else None,
            )
        made.save(out)
        click.echo(
            printable(f"wrote {out}: {made.count} pictures, {made.num_features} features. {made.extractor}"), err=True
        )


def _hold(held: contextlib.ExitStack, claim: Callable[[], list[Path]], by: str) -> None:
    """Be the only one who writes to some files from here on, which are still ours then."""
    from reid_eval.locks import locked

    for file in claim():
        held.enter_context(_folder_of(file))
        held.enter_context(locked(file, by))
    claim()


@contextlib.contextmanager
def _folder_of(file: Path) -> Iterator[None]:
    """The folder of an output, made for the time of the block, and gone after it if nothing was written there."""
    missing = [folder for folder in file.absolute().parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # something lies there
                folder.rmdir()


@click.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare two measurements (metric files, or what images --json printed), if they may be compared.

    They may if only the vectors, or the generated pictures, differ: metric, extractor, weights, resize, real pictures,
    pairs and the number of generated pictures have to be the same; for rankings the people, cameras and pictures, the
    protocol, the distance, the form of average precision and the re-ranking. If not, the difference is named.

    Exit code 0: they were compared, whichever is better. 1: they may not be, or one of them cannot be read.

    \b
    Example:
      reid-eval diff runs/a/metrics/map_hits.json runs/b/metrics/map_hits.json
    """
    with user_errors():
        from reid_eval.cards import compare, load_results

        found = compare(load_results(first), load_results(second), files=(first, second))
        if as_json:
            rows = [{**vars(one), "change": one.change} for one in found]
            click.echo(json.dumps({"format": 1, "comparisons": rows}, indent=2))
        else:
            click.echo("\n".join(one.to_text() for one in found))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def weights() -> None:
    """Weight files of the networks that measure pictures: list, fetch, verify, import.

    They are looked for in the folders of REID_WEIGHTS, in our cache and in torch hub's cache.

    \b
    Example:
      reid-eval weights list
      reid-eval weights import Downloads
    """


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def weights_list(as_json: bool) -> None:
    """Print the known files, their size, checksum, and where they lie.

    Each is missing, or there and unchecked; weights verify reads them.

    \b
    Example:
      reid-eval weights list
    """
    with user_errors():
        _show_weights(verify=False, as_json=as_json)


@weights.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def weights_verify(as_json: bool) -> None:
    """Compare the files that are there with their checksums; fails if one is damaged.

    Whole: of the SHA-256 that is published. Prefix verified: it begins with the eight digits that are published, and is
    the same as before; printed is all of it.

    \b
    Example:
      reid-eval weights verify
    """
    with user_errors():
        from reid_eval.weights import WeightFileError

        damaged = [
            str(status.file) for status in _show_weights(verify=True, as_json=as_json) if status.state == "damaged"
        ]
        if damaged:
            raise WeightFileError(f"{', '.join(damaged)}: damaged; remove and fetch or import again")


@weights.command("fetch")
@click.argument("names", nargs=-1, required=True)
@click.option("--offline", is_flag=True, help="Never fetch: only say what is missing.")
def weights_fetch(names: tuple[str, ...], offline: bool) -> None:
    """Fetch known files, by the names that weights list prints, into the cache, unless they are there already.

    What training starts from (resnet50_v1) goes into torch hub's cache, where training looks for it.

    \b
    Example:
      reid-eval weights fetch inception alexnet
    """
    with user_errors():
        from reid_eval.weights import find_weights, known_weights

        for published in [known_weights(name) for name in names]:
            click.echo(printable(f"{published.name}: {find_weights(published, offline=offline)}"))


@weights.command("import")
@click.argument("folder", type=_PATH)
def weights_import(folder: Path) -> None:
    """Copy the known files below a folder into the cache, whatever they are called there.

    Their checksums tell what they are.

    \b
    Example:
      reid-eval weights import Downloads
    """
    with user_errors():
        from reid_eval.weights import import_weights

        for published, file in import_weights(folder):
            click.echo(printable(f"{published.name}: {file}"))


def add_to(main: click.Group) -> None:
    """Register these commands."""
    for command in (fid, kid, prdc, ssim, lpips, images, stats, diff, weights):
        main.add_command(command)


def _show_weights(*, verify: bool, as_json: bool) -> Sequence[Any]:
    from reid_eval.weights import search_folders, warn_of_settings, weights_status

    found = weights_status(verify=verify)
    rows = [
        {
            "name": one.weights.name,
            "state": one.state,
            "file": one.weights.file,
            "size": one.weights.size,
            "sha256": one.weights.sha256_start,
            "found_sha256": one.sha256,
            "purpose": one.weights.purpose,
            "path": str(one.file or ""),
        }
        for one in found
    ]
    if as_json:
        click.echo(json.dumps({"format": 1, "weights": rows}, indent=2))
        return found
    for row in rows:
        digest = row["found_sha256"] or f"{row['sha256'][:8]}..."
        line = f"{row['name']:<14} {row['state']:<15} {row['size']:>11}  SHA-256 {digest}  {row['file']}"
        click.echo(printable(f"{line}  ({row['purpose']}){'  ' + row['path'] if row['path'] else ''}"))
    click.echo(printable(f"looked for in: {', '.join(map(str, search_folders()))}"), err=True)
    warn_of_settings()
    return found


def _measure(
    real: Path | None,
    fake: Path,
    metrics: Sequence[Metric],
    *,
    out: Path | None,
    csv_file: Path | None,
    as_json: bool,
    overwrite: bool,
    workers: int | None,
    strict: bool,
    cache: bool,
    max_hours: float | None,
    batch_size: int = 50,
    device: str = "auto",
    extractor_name: str | None = None,
    weights: Path | None = None,
    resize: ResizeRule = "legacy",
    half: bool = False,
    any_weights: bool = False,
    offline: bool = False,
    net: Any = "alex",
    lpips_weights: Path | None = None,
    heads: Path | None = None,
    needs_lpips: bool = False,
    reid_name: str | None = None,
    pairs: int = 10,
    seed: int = 0,
    pairs_file: Path | None = None,
    resize_pairs: bool = False,
    protocol: dict[str, Any] | None = None,
) -> None:
    """Ask for the metrics, print them, and write them where that was asked for."""
    context = click.get_current_context()
    assert context is not None
    command = f"reid-eval {context.info_name}"
    with user_errors(), contextlib.ExitStack() as held:
        from reid_eval.extractors import extractor_from_name
        from reid_eval.images import Protocol, plan_images, refuse_missing
        from reid_eval.outputs import begins_with, claim_file
        from reid_eval.report import claim_metrics
        from reid_eval.stopping import stoppable
        from reid_eval.weights import cache_folder

        read = (real, fake, pairs_file, weights, lpips_weights, heads)
        inputs = [place for place in read if place is not None]

        def claim(names: Sequence[str] = ()) -> list[Path]:
            """The files that will be written; before the work, so that it is not in vain."""
            files = []
            if csv_file is not None:
                header, maker = ",".join(_TABLE_COLUMNS), f"{command} --csv"
                files.append(
                    claim_file(
                        csv_file,
                        maker,
                        is_ours=lambda file: begins_with(file, header),
                        inputs=inputs,
                        overwrite=overwrite,
                    )
                )
            if out is not None:
                files += claim_metrics(out, names, inputs=inputs, overwrite=overwrite)
                if csv_file is not None and csv_file.resolve() in {file.resolve() for file in files[1:]}:
                    raise OutputError(f"{csv_file}: two outputs of this command; give each a name of its own")
            return files

        claim()
        # A wrong folder should not wait for a network to be loaded, or even fetched.
        refuse_missing([side for side in (real, fake) if side is not None], metrics)
        how: Protocol = Protocol(**{"pairs": pairs, "seed": seed, "resize_pairs": resize_pairs, **(protocol or {})})
        extractor = None
        if extractor_name is not None and {"fid", "kid", "prdc"} & set(metrics):
            extractor = extractor_from_name(
                extractor_name,
                weights=weights,
                resize=resize,
                half=half,
                device=device,
                any_weights=any_weights,
                offline=offline,
            )
        reid = None
        if reid_name is not None:
            reid = extractor_from_name(reid_name, device=device)
        lpips_network = None
        if needs_lpips or "lpips" in metrics:
            from reid_eval.lpips import Lpips

            lpips_network = Lpips(
                net, weights=lpips_weights, heads=heads, device=device, offline=offline, any_weights=any_weights
            )
        plan = plan_images(
            real,
            fake,
            metrics=metrics,
            extractor=extractor,
            reid=reid,
            lpips=lpips_network,
            pairs_file=pairs_file,
            protocol=how,
            batch_size=batch_size,
            strict=strict,
            cache=cache_folder() if cache else None,
        )
        if out is not None or csv_file is not None:
            names = plan.names if out is not None else []
            _hold(held, lambda: claim(names), command)
        with stoppable(max_hours):
            results = plan.run(workers=workers)
        wrote: list[Path] = []
        failed: ReidError | None = None
        try:
            if csv_file is not None:
                from reid_eval.files import write_text

                write_text(csv_file, _csv(results))
                wrote.append(csv_file)
            if out is not None:
                wrote += [result.save(out, overwrite=overwrite) for result in results]
        except ReidError as error:  # the numbers are worth more than the files
            failed = error
        _show(results, as_json=as_json)
        for file in wrote:
            click.echo(f"wrote {printable(str(file))}", err=True)
        if failed is not None:
            raise failed
        if not wrote:
            click.echo(KEEP, err=True)


def _show(results: Sequence[MetricResult], *, as_json: bool) -> None:
    if as_json:
        from reid_eval.cards import answer_json
        from reid_eval.set_results import log_remarks

        log_remarks(results)
        click.echo(results[0].to_json() if len(results) == 1 else answer_json(results))
        return
    for result in results:
        low_high = result.made_by.get("interval")
        interval = f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
        value = f"{result.value:.4f}{interval} {result.unit}".rstrip()
        click.echo(f"{result.name}: {value} ({_direction(result)})")
    if len(results) == 1:
        click.echo(printable(results[0].protocol))
    else:
        click.echo("\n".join(["", *map(printable, _protocols(results))]))


def _direction(result: MetricResult) -> str:
    """Which direction is better; of a diversity how far it is from that of real pictures, where that is known."""
    if result.higher_is_better is not None:
        return f"{'higher' if result.higher_is_better else 'lower'} is better"
    if beside := result.made_by.get("beside_real"):
        return f"{beside['difference']:+.4f} from that of real pictures, which is right"
    return "of real pictures" if result.name.endswith("_real") else "right is what real pictures have"


def _protocols(results: Sequence[MetricResult]) -> list[str]:
    """Every sentence of several protocols once, after the names that it is about."""
    from reid_eval.report import sentences

    about: dict[str, list[str]] = {}
    for result in results:
        for sentence in sentences(result.protocol):
            about.setdefault(sentence, []).append(result.name)
    said: dict[str, list[str]] = {}
    for sentence, names in about.items():
        said.setdefault("all" if len(names) == len(results) else ", ".join(names), []).append(sentence)
    return [f"{names}: {' '.join(found)}" for names, found in said.items()]


def _csv(results: Sequence[MetricResult]) -> str:
    from reid_eval.tables import csv_text

    rows: list[list[object]] = [list(_TABLE_COLUMNS)]
    for result in results:
        low, high = result.made_by.get("interval", ("", ""))
        better = "" if result.higher_is_better is None else result.higher_is_better
        rows.append([result.name, result.value, low, high, result.unit, better, result.protocol])
    return csv_text(rows)
