"""The stages of the road, from raw photographs to `report.html`, and what each result depends on.

report = walk(demo_road(Path("runs/demo"), Path("configs")))
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import click

from dgnet_gen.generation import generate
from dgnet_gen.generation_plan import plan_generation
from dgnet_gen.model import DGNet
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.training import train_dgnet
from dgnet_gen.truth import swap_truth, truth_sheet
from dgnet_gen.visualise import enlarged, pick_people, swap_grid
from pipelines.stages import Stage, read_record, run_stages
from reid_eval import __version__
from reid_eval.errors import OutputError, ReidError, printable
from reid_eval.extractors import Extractor, extractor_from_name
from reid_eval.features import ReidFeatures
from reid_eval.files import save_image
from reid_eval.images import fid
from reid_eval.locks import locked
from reid_eval.outputs import is_made_by, refuse_foreign_folder
from reid_eval.pair_results import beside_real, ssim_within_identity
from reid_eval.ranking import ProtocolName, rank, rerank_params
from reid_eval.report import (
    MetricResult,
    Picture,
    Report,
    ReportError,
    Timing,
    claim_report,
    group_metrics,
    write_report,
)
from reid_eval.stopping import stoppable
from reid_models.config import ConfigError, config_dict, load_config
from reid_models.data.check import check_dataset, fitting_protocol, ranked_splits
from reid_models.data.generated import read_card, read_manifest
from reid_models.data.index import PREPARED_FILE, DatasetError, DatasetIndex
from reid_models.data.layouts import read_marker
from reid_models.data.prepare import prepare_dataset
from reid_models.data.synthetic import make_toy_dataset
from reid_models.evaluation import Evaluation
from reid_models.extraction import extract_features, load_embedder
from reid_models.runs import RunDir
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, train_reid
from reid_models.weights import WeightsError

MAKER = "python -m pipelines"
"""as its pictures say"""


@dataclass(frozen=True)
class ToyWorld:
    """The drawn pedestrians of the demo."""

    ids: int = 48
    cameras: int = 4
    per_camera: int = 6
    seed: int = 0
    image_hw: tuple[int, int] = (128, 64)


@dataclass(frozen=True)
class Road:
    """Everything that decides a walk: data, settings, where it goes. `toy` is drawn into `raw` first when given."""

    title: str
    out: Path
    raw: Path
    teacher: ReidTrainConfig
    dgnet: DGNetTrainConfig
    layout: str = "auto"
    toy: ToyWorld | None = None
    extractors: tuple[str, ...] = ("reid",)
    """Frechet distances to measure: reid (the teacher's features), random, inception"""
    fid_weights: Path | None = None
    """Inception's weight file; None takes it from the torch hub cache"""
    generate_count: int | None = None
    grid: tuple[int, int] = (3, 20)
    seed: int = 0
    device: str = "auto"
    max_hours: float | None = None

    @property
    def prepared(self) -> Path:
        """One folder per identity."""
        return self.out / "data"

    @property
    def teacher_run(self) -> Path:
        """The run of the re-identification network."""
        return self.out / "teacher"

    @property
    def dgnet_run(self) -> Path:
        """The run of the generator."""
        return self.out / "dgnet"

    @property
    def generated(self) -> Path:
        """Generated pictures in folders of their appearance's identity."""
        return self.out / "generated"

    @property
    def metrics(self) -> Path:
        """One file per number."""
        return self.out / "metrics"

    @property
    def pictures(self) -> Path:
        """Sheets for the report."""
        return self.out / "pictures"

    @property
    def report(self) -> Path:
        """The page at the end."""
        return self.out / "report.html"


def demo_road(
    out: Path,
    configs: Path,
    toy: ToyWorld | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    max_hours: float | None = None,
) -> Road:
    """The road on a toy world, with small networks; `overrides` are texts like "dgnet.max_iter=100".

    Raises:
        ConfigError: an override names no setting of the teacher or of DG-Net, or gives it a value that makes no sense.
    """
    toy = toy or ToyWorld()
    changes = _by_trainer(overrides)
    seed = f"seed={toy.seed}"
    return Road(
        title="Pedestrians in each other's clothes",
        out=out,
        raw=out / "toy",
        toy=toy,
        layout="market1501",
        teacher=load_config(ReidTrainConfig, configs / "demo_baseline.yaml", (seed, *changes["teacher"])),
        dgnet=load_config(DGNetTrainConfig, configs / "demo_dgnet.yaml", (seed, *changes["dgnet"])),
        extractors=("reid", "random"),
        seed=toy.seed,
        device=device,
        max_hours=max_hours,
    )


def market_road(
    raw: Path,
    out: Path,
    configs: Path,
    *,
    layout: str = "auto",
    preset: Literal["full", "small"] = "full",
    overrides: Sequence[str] = (),
    fid_inception: bool | None = None,
    fid_weights: Path | None = None,
    device: str = "auto",
    max_hours: float | None = None,
) -> Road:
    """The road on a real dataset, at published sizes ("full") or small enough for a CPU ("small").

    `overrides` are texts like "dgnet.max_iter=100". `fid_inception` says whether to measure the published FID too; None
    does so for the full preset, or where its weights are named.

    Raises:
        ConfigError: an override names no setting of the teacher or of DG-Net, or gives it a value that makes no sense.
    """
    teacher, dgnet = {"full": ("baseline_market", "dgnet_market"), "small": ("small_baseline", "small_dgnet")}[preset]
    changes = _by_trainer(overrides)
    if fid_inception is None:
        fid_inception = preset == "full" or fid_weights is not None
    return Road(
        title=f"Pedestrians of {raw.resolve().name} in each other's clothes",
        out=out,
        raw=raw,
        layout=layout,
        teacher=load_config(ReidTrainConfig, configs / f"{teacher}.yaml", changes["teacher"]),
        dgnet=load_config(DGNetTrainConfig, configs / f"{dgnet}.yaml", changes["dgnet"]),
        extractors=("reid", "inception") if fid_inception else ("reid",),
        fid_weights=fid_weights,
        device=device,
        max_hours=max_hours,
    )


def _by_trainer(overrides: Sequence[str]) -> dict[str, list[str]]:
    """What each trainer is told by texts like "teacher.schedule.epochs=5"."""
    changes: dict[str, list[str]] = {"teacher": [], "dgnet": []}
    for override in overrides:
        trainer, dot, rest = override.partition(".")
        if not dot or trainer not in changes:
            raise ConfigError(
                f"--set {override}: expected teacher.KEY=VALUE or dgnet.KEY=VALUE, for example --set dgnet.max_iter=500"
            )
        changes[trainer].append(rest)
    return changes


def walk(road: Road) -> Path:
    """Do what is not done yet; returns the report.

    What would stop a later stage after days of training stops it at once: an unknown dataset, missing weights, a file
    or folder of somebody else.

    Raises:
        ReidError: what a stage refuses; everything finished stays, and the same walk goes on there.
    """
    runtime = Runtime.from_environment(road.device)
    raw = cache(lambda: DatasetIndex.open(road.raw, road.layout))
    if road.toy is None:
        raw()
    if "inception" in road.extractors:
        extractor_from_name("inception", weights=road.fid_weights, device="cpu")
    _refuse_missing_weights(road)
    ours = {*_measured(road), *_written(road, "report")}
    _refuse_foreign(road, ours)
    stages = _stages(road, runtime, raw, ours)
    records = road.out / "stages"
    records.mkdir(parents=True, exist_ok=True)
    with locked(records, MAKER), stoppable(road.max_hours):
        run_stages(stages, road.out)
    return road.report


def _refuse_missing_weights(road: Road) -> None:
    """See that the weight files are there that trainings which have not begun will start from."""
    for run, file, setting in (
        (road.teacher_run, road.teacher.network.weights, "teacher.network.weights"),
        (road.dgnet_run, road.dgnet.trunk_weights, "dgnet.trunk_weights"),
    ):
        if file not in ("none", "imagenet") and not _has_begun(run) and not Path(file).is_file():
            raise WeightsError(f"{file}: no such weight file (--set {setting}); give its path, imagenet, or none")


def _refuse_foreign(road: Road, ours: set[Path]) -> None:
    """See that nothing of somebody else lies where results will be written; `ours` are the files of earlier walks."""
    for stage, folder, marker, is_ours in (
        ("prepare", road.prepared, PREPARED_FILE, lambda file: read_marker(file.parent) is not None),
        ("teacher", road.teacher_run, "run.json", lambda file: _says(file, kind="reid")),
        ("dgnet", road.dgnet_run, "run.json", lambda file: _says(file, kind="dgnet")),
        ("generate", road.generated, "card.json", lambda file: _says(file, kind="dgnet-generation")),
    ):
        if read_record(road.out, stage) is None:
            refuse_foreign_folder(folder, marker, what=f"{folder.name} of this pipeline", is_ours=is_ours)
    pictures = {road.pictures / "swap.png", road.pictures / "truth.png"} - ours
    foreign = [file for file in sorted(pictures) if file.exists() and not is_made_by(file, MAKER)]
    foreign += [file for file in sorted(road.metrics.glob("*.json")) if file not in ours and not _is_metric(file)]
    if foreign:
        raise OutputError(f"{foreign[0]}: exists and was not made by {MAKER}; move it, or choose another --out")
    claim_report(road.report, overwrite=road.report in ours)


def _is_metric(file: Path) -> bool:
    try:
        return bool(MetricResult.load(file))
    except ReportError:
        return False


def _says(file: Path, **values: str) -> bool:
    """Whether a marker says so. A damaged one counts as ours: who reads it will say so."""
    try:
        found = json.loads(file.read_bytes())
    except Exception:  # whatever a parser makes of it
        return True
    return isinstance(found, dict) and all(found.get(key) == value for key, value in values.items())


def _broken(folder: Path, read: Callable[[Path], object]) -> Path | None:
    """A folder that holds something and cannot be read as what it was made as."""
    try:
        is_empty = not folder.is_dir() or all(entry.name.startswith(".") for entry in folder.iterdir())
        return None if is_empty or read(folder) is not None else folder
    except ReidError:
        return folder


def _stages(road: Road, runtime: Runtime, raw: Callable[[], DatasetIndex], ours: set[Path]) -> list[Stage]:
    """The stages in their order: what each depends on, reads and writes. `ours` are files that may be replaced."""
    made: list[Path] = []  # what the evaluation has written
    stages = [
        Stage(
            "prepare",
            key=lambda: f"{raw().layout} {raw().fingerprint}",
            work=lambda: _prepare(road, raw()),
            reads=lambda: raw().paths,
            writes=lambda: [road.prepared],
            broken=lambda: _broken(road.prepared, read_marker),
        ),
        Stage(
            "teacher",
            key=lambda: _settings_key(road.teacher),
            work=lambda: _train_teacher(road, runtime),
            reads=lambda: _pictures(road, "train_all"),
            writes=lambda: _run_files(road.teacher_run),
            makes=road.teacher_run,
            broken=lambda: _broken(road.teacher_run, lambda run: RunDir.open(run, "reid")),
        ),
        Stage(
            "dgnet",
            key=lambda: _settings_key(road.dgnet),
            work=lambda: _train_dgnet(road, runtime),
            reads=lambda: [*_pictures(road, "train_all"), *_teachers(road)],
            writes=lambda: _run_files(road.dgnet_run),
            makes=road.dgnet_run,
            broken=lambda: _broken(road.dgnet_run, lambda run: RunDir.open(run, "dgnet")),
        ),
        Stage(
            "generate",
            key=lambda: f"{road.generate_count} {road.seed}",
            work=lambda: _generate(road),
            reads=lambda: [*_pictures(road, "train_all"), _last_checkpoint(road.dgnet_run)],
            writes=lambda: [road.generated],
            makes=road.generated,
            fixed_key=True,
            broken=lambda: _broken(road.generated, read_card),
        ),
        Stage(
            "evaluate",
            key=lambda: (
                f"{road.extractors} {road.fid_weights} {road.grid} {road.seed} {road.teacher.eval_protocol} "
                f"{__version__}"
            ),
            work=lambda: _evaluate(road, made, ours),
            reads=lambda: [
                *_pictures(road, "query", "gallery", "train_all"),
                _last_checkpoint(road.teacher_run),
                _last_checkpoint(road.dgnet_run),
                road.generated,
                *([road.raw / "toy.json"] if road.toy is not None else []),
            ],
            writes=lambda: made,
        ),
    ]
    if road.toy is not None:
        stages.insert(0, Stage("draw", key=lambda: repr(road.toy), work=lambda: _draw(road), writes=lambda: [road.raw]))
    names = [stage.name for stage in stages]
    report = Stage(
        "report",
        key=lambda: f"{__version__} {road.title} {_settings_key(road.teacher)} {_settings_key(road.dgnet)}",
        work=lambda: _report(road, names, ours),
        reads=lambda: [*_measured(road), *_sheets(road)],
        writes=lambda: [road.report, road.report.with_suffix(".json")],
    )
    return [*stages, report]


def _pictures(road: Road, *splits: str) -> list[Path]:
    """The prepared pictures of some splits, as far as there are such splits."""
    data = DatasetIndex.from_prepared(road.prepared)
    there = {"train_all", *data.splits}
    return [path for split in splits if split in there for path in data.split(split).paths]


def _run_files(path: Path) -> list[Path]:
    """What the stages after a training need of its run."""
    return [path / "run.json", path / "config.yaml", _last_checkpoint(path)]


def _last_checkpoint(path: Path) -> Path:
    return RunDir.open(path).checkpoint_file("last")


def _teachers(road: Road) -> list[Path]:
    return [_last_checkpoint(road.teacher_run)] if road.dgnet.weights.teacher > 0 else []


def _measured(road: Road) -> list[Path]:
    """What the evaluation wrote, and no older measurement that still lies there."""
    return _written(road, "evaluate")


def _written(road: Road, stage: str) -> list[Path]:
    record = read_record(road.out, stage)
    return [Path(path) for path in record.written.files] if record is not None and record.written is not None else []


def _sheets(road: Road) -> list[Path]:
    """The last sheet of each training."""
    found = [sorted(run.glob("samples/*.png"))[-1:] for run in (road.dgnet_run, road.teacher_run)]
    return [sheet for sheets in found for sheet in sheets]


def _draw(road: Road) -> str:
    assert road.toy is not None
    toy = road.toy
    make_toy_dataset(
        road.raw, ids=toy.ids, cameras=toy.cameras, per_camera=toy.per_camera, seed=toy.seed, image_hw=toy.image_hw
    )
    return f"{toy.ids} people in {toy.cameras} places"


def _prepare(road: Road, raw: DatasetIndex) -> str:
    # Every picture is read once: a damaged one stops the walk here, and not in the middle of a training.
    check = check_dataset(raw, decode=True)
    if not check.can_train:
        worst = check.findings[0]
        example = f" ({worst.examples[0]})" if worst.examples else ""
        raise DatasetError(
            f"{road.raw}: {worst.what}{example}; {worst.remedy}; 'reid-models check {road.raw} --decode' shows all"
        )
    index = prepare_dataset(road.raw, road.prepared, index=raw)
    counts = ", ".join(f"{len(index.split(split))} {split}" for split in ("train_all", *index.splits))
    return f"{raw.layout}: {counts}"


def _settings_key(config: ReidTrainConfig | DGNetTrainConfig) -> str:
    return json.dumps(config_dict(config), sort_keys=True)


def _train_teacher(road: Road, runtime: Runtime) -> str:
    data = DatasetIndex.from_prepared(road.prepared)
    run = train_reid(
        road.teacher,
        data,
        road.teacher_run,
        _with_precision(runtime, road.teacher.precision),
        resume=_has_begun(road.teacher_run),
    )
    return f"{run.iterations()[-1]} iterations on {run.made_by['num_ids']} identities"


def _train_dgnet(road: Road, runtime: Runtime) -> str:
    data = DatasetIndex.from_prepared(road.prepared)
    teachers = [road.teacher_run] if road.dgnet.weights.teacher > 0 else []
    run = train_dgnet(
        road.dgnet,
        data,
        road.dgnet_run,
        _with_precision(runtime, road.dgnet.precision),
        teachers=teachers,
        resume=_has_begun(road.dgnet_run),
    )
    return f"{run.iterations()[-1]} iterations on {run.made_by['num_ids']} identities"


def _has_begun(run: Path) -> bool:
    return (run / "run.json").exists()


def _with_precision(runtime: Runtime, precision: Any) -> Runtime:
    runtime.precision = precision
    return runtime


def _generate(road: Road) -> str:
    model = DGNet.load(road.dgnet_run, device=road.device)
    index = DatasetIndex.from_prepared(road.prepared).split("train_all")
    plan = plan_generation(index, road.generate_count, kind="random", seed=road.seed)
    generate(model, plan, road.generated)
    return f"{len(plan)} pictures of {index.num_ids} people"


def _evaluate(road: Road, made: list[Path], ours: set[Path]) -> str:
    """Measure everything; `made` tells what was written, `ours` are files of an earlier walk, damaged or not."""
    data = DatasetIndex.from_prepared(road.prepared)
    results = [
        *ranking(road, data),
        *_distances(road),
        *beside_real(
            ssim_within_identity(road.generated, seed=road.seed),
            _renamed(ssim_within_identity(road.prepared / "train_all", seed=road.seed), "real"),
        ),
    ]
    if road.toy is not None:
        results += swap_truth(road.generated, road.raw).metrics()
        save_image(
            road.pictures / "truth.png", enlarged(truth_sheet(road.generated, road.raw, columns=12), 2), maker=MAKER
        )
    model = DGNet.load(road.dgnet_run, device=road.device)
    structures, appearances = pick_people(data.split("train_all"), *road.grid, seed=road.seed)
    scale = max(1, 128 // model.image_hw[0])
    save_image(road.pictures / "swap.png", enlarged(swap_grid(model, structures, appearances), scale), maker=MAKER)
    made[:] = [result.save(road.metrics, overwrite=road.metrics / f"{result.name}.json" in ours) for result in results]
    made += [file for file in (road.pictures / "truth.png", road.pictures / "swap.png") if file.exists()]
    return f"{len(results)} measurements"


def _ranked(road: Road, data: DatasetIndex) -> tuple[ProtocolName | None, str]:
    """The protocol that people are ranked by, as the teacher's own evaluations are; if by none, why."""
    if ranked_splits(data) == ("train_all",):
        return fitting_protocol(data)
    evaluation = Evaluation.of(data, road.teacher.eval_protocol)
    if evaluation is not None:
        return evaluation.protocol, ""
    return None, fitting_protocol(data)[1] or "junk (-1) among the queries"


def ranking(road: Road, data: DatasetIndex) -> list[MetricResult]:
    """The trained network plain and re-ranked, and the same network before training; none where nothing can be ranked.

    Without query and gallery those are ranked among themselves whom the network was trained on; names say so.
    """
    protocol, _ = _ranked(road, data)
    if protocol is None:
        return []
    splits = ranked_splits(data)
    results: list[MetricResult] = []
    for untrained, name in ((False, ""), (True, "untrained")):
        embedder = load_embedder(road.teacher_run, device=road.device, untrained=untrained)
        file = road.teacher_run / (f"features_{name}.npz" if name else "features.npz")
        partial = file.with_name(f"{file.name}.partial")
        extract_features(embedder, data, splits, partial=partial).save(file)
        partial.unlink()
        features = ReidFeatures.load(file)
        report = rank(features, rerank=rerank_params(features), protocol=protocol, even_if_collapsed=True)
        results += [_renamed(result, name) for result in report.metrics()]
    results = [result for result in results if not result.name.endswith("_rerank_untrained")]
    return [_of_seen(result) for result in results] if splits == ("train_all",) else results


def _of_seen(result: MetricResult) -> MetricResult:
    """A number about people seen in training, under a name of its own."""
    protocol = f"{result.protocol} The network was trained on these very pictures: nothing is said of other people."
    return dataclasses.replace(result, name=f"{result.name}_seen", protocol=protocol)


def _distances(road: Road) -> list[MetricResult]:
    names = [f"reid:{road.teacher_run}" if name == "reid" else name for name in road.extractors]
    real = road.prepared / "train_all"
    return [fid(real, road.generated, _extractor(road, name)) for name in names]


def _extractor(road: Road, name: str) -> Extractor:
    weights = road.fid_weights if name == "inception" else None
    return extractor_from_name(name, weights=weights, device=road.device)


def _renamed(result: MetricResult, variant: str) -> MetricResult:
    return dataclasses.replace(result, name=f"{result.name}_{variant}" if variant else result.name)


def what_is_missing(road: Road, data: DatasetIndex) -> str:
    """What the report cannot tell, why, and how it is measured; nothing if it tells all."""
    protocol, why = _ranked(road, data)
    if protocol is None:
        return (
            f"How well people are found is not measured: {why}. With pictures of other people, a folder or a table: "
            f"reid-models extract --run {road.teacher_run} --data DATASET --out features.npz, "
            f"then reid-eval rank --features features.npz --out {road.metrics}."
        )
    if ranked_splits(data) == ("train_all",):
        return (
            "There is no query and no gallery, so people are searched for among those whom the network was trained on. "
            f"For others: reid-models extract --run {road.teacher_run} --data DATASET --out features.npz, then "
            "reid-eval rank --features features.npz."
        )
    if protocol != "cross-camera":
        return f"People are ranked by the protocol {protocol}: {fitting_protocol(data)[1] or 'as asked for'}."
    return ""


def _report(road: Road, stages: list[str], ours: set[Path]) -> str:
    done = {name: read_record(road.out, name) for name in stages}
    timings = [Timing(name, record.elapsed_s, record.summary) for name, record in done.items() if record]
    results = [MetricResult.load(file) for file in sorted(_measured(road)) if file.suffix == ".json"]
    card, rows = read_manifest(road.generated)
    pictures = []
    if road.toy is not None:
        pictures.append(
            Picture(
                road.pictures / "truth.png",
                "Generated swaps and the truth",
                "From top to bottom: the structure's picture, the appearance's picture, what the network made of them, "
                "and the true picture, which the toy world can draw.",
            )
        )
    teacher, dgnet = RunDir.open(road.teacher_run, "reid"), RunDir.open(road.dgnet_run, "dgnet")
    for run, title in ((dgnet, "A training sheet of DG-Net"), (teacher, "A training batch of the re-ID network")):
        sheets = sorted(run.samples.glob("*.png"))
        pictures += [Picture(sheets[-1], title, f"{run.path.name}/{sheets[-1].name}")] if sheets else []
    missing = what_is_missing(road, DatasetIndex.from_prepared(road.prepared))
    if missing:
        click.echo(printable(missing), err=True)
    report = Report(
        title=road.title,
        summary=(
            f"{dgnet.made_by['num_ids']} people to learn from; DG-Net after {card['iteration']} iterations painted "
            f"{len(rows)} of them in the pose of somebody else. {missing}"
        ).strip(),
        lead=Picture(
            road.pictures / "swap.png",
            "Everybody in everybody's pose",
            "Left: pictures that give the pose. Top: pictures that give the clothes. Inside: painted by DG-Net.",
            row_axis="structure (pose)",
            column_axis="appearance (clothes)",
        ),
        groups=group_metrics(results),
        pictures=pictures,
        settings={"teacher": config_dict(road.teacher), "dgnet": config_dict(road.dgnet)},
        provenance={"teacher": teacher.made_by, "dgnet": dgnet.made_by, "generated": card},
        timings=timings,
    )
    write_report(road.report, report, overwrite=road.report in ours)
    return f"{road.report}"
