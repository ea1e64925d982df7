"""What a GPU does with all of it: the tests marked `gpu`, full-size steps, pictures, features, a demo, loss curves.

    bash benchmarks/gpu.sh [WHEELS] [OUT]                          # sets up what is missing first, without a network
    python benchmarks/gpu.py --out runs/gpu                        # eight minutes at most
    python benchmarks/gpu.py --out /tmp/try --tiny --device cpu    # tries all of it, on a CPU, at tiny sizes

Each part runs in a process of its own, within a time of its own; one that fails or is stopped is told, the others go
on, and the exit code is 1. OUT/results.json and OUT/results.md are written anew with every row, so whoever stops this
has what was measured until then. OUT/logs holds what each part said. Data is the toy world, drawn first; steps are
timed on batches that lie on the device already, so no loader is in their time. Full size is that of
configs/dgnet_market.yaml (batches of 8, every term on, a teacher) and configs/mgn_market.yaml (batches of 64), with 751
people and random weights. "fp32" is PyTorch's default, in which cuDNN may round products to TF32; "fp32, no TF32" is
exact. What is compiled comes last, as far as the time goes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from processor import describe

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
MINUTES = 7.6
FINISH_S = 3.0
"""kept back for the last writing"""
PRECISIONS = ("fp32", "bf16", "fp16")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part works, on what, and how large."""

    out: Path
    device: str
    tiny: bool
    until_s: float = float("inf")
    """when this part's time is over, of time.monotonic()"""

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def toy(self) -> Path:
        return self.work / "toy"

    @property
    def pictures(self) -> Path:
        return self.work / "pictures"

    @property
    def num_ids(self) -> int:
        """People that classifiers tell apart."""
        return 16 if self.tiny else 751

    @property
    def number(self) -> int:
        """Pictures to generate, and to extract features of."""
        return 24 if self.tiny else 2000

    @property
    def steps(self) -> int:
        return 2 if self.tiny else 10


# --- the machine ----------------------------------------------------------------------------------------------------


def machine(place: Place) -> Iterator[Row]:
    import torch

    row: Row = {"processor": describe().splitlines()[0], "CPUs": os.cpu_count(), "python": platform.python_version()}
    row |= {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        row["commit"] = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    if place.device.startswith("cuda"):
        torch.zeros(1, device=place.device)  # says what is wrong where there is none
        card = torch.cuda.get_device_properties(place.device)
        row |= {"card": card.name, "memory GiB": round(card.total_memory / 2**30, 1)}
        row["compute capability"] = f"{card.major}.{card.minor}"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout
            row["driver"] = said.splitlines()[0].strip()
    yield row


def draw(place: Place) -> Iterator[Row]:
    """The toy world, and as many pictures as features are wanted of: its own under several names."""
    from reid_eval.files import list_images
    from reid_models.data.synthetic import make_toy_dataset

    start_s = time.perf_counter()
    make_toy_dataset(place.toy, ids=16 if place.tiny else 64, cameras=4, per_camera=2, seed=0, image_hw=(128, 64))
    files = list_images(place.toy)
    place.pictures.mkdir(parents=True)
    for number in range(place.number):
        file = files[number % len(files)]
        shutil.copyfile(file, place.pictures / f"{number:05d}{file.suffix}")
    yield {"people": 16 if place.tiny else 64, "drawn": len(files), "s": time.perf_counter() - start_s}


# --- steps ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Timed:
    seconds: list[float]
    peak_bytes: int | None
    first_s: float
    """of the very first step, compilation included"""


def timed(runtime: Any, step: Callable[[], object], steps: int) -> Timed:
    """The time of each of some steps after three that warm up, and the most memory that one took."""
    import torch

    on_cuda = runtime.device.type == "cuda"

    def once() -> float:
        start_s = time.perf_counter()
        step()
        if on_cuda:
            torch.cuda.synchronize(runtime.device)
        return time.perf_counter() - start_s

    first_s = once()
    for _ in range(2):
        once()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    return Timed([once() for _ in range(steps)], runtime.peak_bytes(), first_s)


def row_of(way: str, images: int, found: Timed, **more: Any) -> Row:
    middle_s = median(found.seconds)
    return {
        "way": way,
        "images/s": images / middle_s,
        "ms a step": 1e3 * middle_s,
        "fastest": 1e3 * min(found.seconds),
        "slowest": 1e3 * max(found.seconds),
        "peak GiB": None if found.peak_bytes is None else found.peak_bytes / 2**30,
        "first step s": found.first_s,
        **more,
    }


@contextlib.contextmanager
def exact(yes: bool) -> Iterator[None]:
    """Float32 products without TF32."""
    import torch

    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    if yes:
        for backend in backends:
            backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def each_way(place: Place, measure: Callable[[str, bool], Row], *, compiled: bool) -> Iterator[Row]:
    """One row for each precision; a way that fails has its reason in its row, and the others are tried."""
    import torch

    ways = [(precision, False) for precision in (("bf16", "fp16", "fp32") if compiled else PRECISIONS)]
    if not compiled and place.device.startswith("cuda"):
        ways.insert(1, ("fp32", True))
    longest_s = 0.0
    for precision, is_exact in ways:
        way = precision + (", no TF32" if is_exact else "") + (", compiled" if compiled else "")
        start_s = time.monotonic()
        if start_s + longest_s > place.until_s:
            yield {"way": way, "not begun": "too little time was left"}
            continue
        try:
            with exact(is_exact):
                yield measure(precision, compiled) | {"way": way}
        except Exception as error:  # whatever a device or a compiler may say
            traceback.print_exc()
            yield {"way": way, "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
        if place.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if compiled:
            torch.compiler.reset()
        longest_s = max(longest_s, time.monotonic() - start_s)


class Warnings(logging.Handler):
    """What the packages warn of, as they go on without what they warn of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("reid_models.runtime").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def mgn(place: Place, *, compiled: bool = False) -> Iterator[Row]:
    import torch

    from reid_models.config import load_config
    from reid_models.data.index import DatasetIndex
    from reid_models.data.loading import PersonDataset
    from reid_models.data.samplers import IdentitySampler
    from reid_models.losses import LossSum
    from reid_models.runtime import Runtime, choose_device
    from reid_models.training import ReidTrainConfig, build_network, make_optimizer

    small = ["image_hw=[96,32]", "network.trunk=small", "network.width=4", "sampler.ids_per_batch=4"]
    overrides = ["network.weights=none", *(small if place.tiny else [])]
    config = load_config(ReidTrainConfig, CONFIGS / "mgn_market.yaml", overrides)
    index = DatasetIndex.open(place.toy).split("train_all")
    dataset = PersonDataset(index, config.image_hw, augmentation=config.augmentation, cache_mib=1024)
    sampler = IdentitySampler(index.label_array, config.sampler.ids_per_batch, config.sampler.images_per_id, seed=0)
    batches = [dataset.batch(draws) for draws in sampler.batches(0, 4)]
    warnings = Warnings()

    def measure(precision: str, compile: bool) -> Row:
        runtime = Runtime(choose_device(place.device), precision)  # type: ignore[arg-type]
        torch.manual_seed(0)
        network = runtime.prepare(build_network(config.network, place.num_ids)).train()
        forward = runtime.compiled(network) if compile else network
        dims = (config.network.head_features,) * 3
        terms, margin = config.loss.parsed(), config.loss.margin
        loss = LossSum(terms, num_ids=place.num_ids, metric_dims=dims, margin=margin, label_smoothing=0.0)
        optimizer, scaler = make_optimizer(network, config.optim), runtime.grad_scaler()
        on_device = [runtime.to_device(batch) for batch in batches]
        losses: list[float] = []

        def step() -> None:
            images, labels, _ = on_device[len(losses) % len(on_device)]
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                output = forward(images)
            total, _ = loss(output.logits, output.metric, labels)
            scaler.scale(total).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(total.item())

        found = timed(runtime, step, place.steps)
        row = row_of(precision, len(on_device[0].images), found, first_loss=losses[0], last_loss=losses[-1])
        return row | ({"warned": warnings.said.pop()} if warnings.said else {})

    yield from each_way(place, measure, compiled=compiled)


def dgnet(place: Place, *, compiled: bool = False) -> Iterator[Row]:
    import torch

    from dgnet_gen.model import DGNet
    from dgnet_gen.pairs import PairDataset
    from dgnet_gen.step import Step, make_optimizers
    from dgnet_gen.teacher import Teacher, TrainedNetwork
    from reid_models.data.index import DatasetIndex
    from reid_models.networks import Baseline
    from reid_models.networks.resnet import make_trunk
    from reid_models.runtime import Runtime, choose_device

    config = dgnet_config(place)
    image_hw = config.networks.image_hw
    index = DatasetIndex.open(place.toy).split("train_all")
    pairs = PairDataset(index, image_hw, batch_size=config.batch_size, seed=0, cache_bytes=1 << 30)
    batches = [pairs.batch(iteration) for iteration in range(4)]
    late = 50_000  # of the published 100,000: every ramp is at its top

    def measure(precision: str, compile: bool) -> Row:
        runtime = Runtime(choose_device(place.device), precision)  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = DGNet(config.networks, place.num_ids)
        trunk = make_trunk(config.networks.trunk, width=config.networks.trunk_width)
        teacher = Teacher([TrainedNetwork(Baseline(trunk, place.num_ids), image_hw, {})])
        for network in (*model.networks().values(), *(trained.network for trained in teacher.networks)):
            runtime.prepare(network)
        for name, network in model.networks().items():
            network.train()
            # Not the other two: the discriminator's penalty is a second derivative, which no compiled function has.
            if compile and name in ("appearance", "structure"):
                network.compile()
        chosen = dataclasses.replace(config, precision=precision)
        step = Step(model, make_optimizers(model, config.optim), chosen, runtime, teacher)
        on_device = [runtime.to_device(batch) for batch in batches]
        totals: list[float] = []

        def once() -> None:
            number = len(totals)
            totals.append(step(late + number, [on_device[number % len(on_device)]])["total"])

        found = timed(runtime, once, place.steps)
        images = 2 * config.batch_size
        return row_of(precision, images, found, first_loss=totals[0], last_loss=totals[-1], skipped=step.skipped)

    yield from each_way(place, measure, compiled=compiled)


def dgnet_config(place: Place) -> Any:
    from dgnet_gen.settings import DGNetTrainConfig
    from reid_models.config import load_config

    small = [
        "networks.image_hw=[64,32]", "networks.trunk=small", "networks.trunk_width=4", "networks.bottleneck=16",
        "networks.structure_dim=4", "networks.n_res=2", "networks.mlp_dim=16", "networks.discriminator_dim=4",
        "networks.discriminator_res=1", "networks.num_scales=2", "batch_size=3",
    ]  # fmt: skip
    overrides = ["trunk_weights=none", *(small if place.tiny else [])]
    return load_config(DGNetTrainConfig, CONFIGS / "dgnet_market.yaml", overrides)


# --- pictures and features ------------------------------------------------------------------------------------------


def generate_pictures(place: Place) -> Iterator[Row]:
    import numpy as np
    import torch

    from dgnet_gen.generation import Writing, generate
    from dgnet_gen.generation_plan import plan_generation
    from dgnet_gen.model import DGNet
    from dgnet_gen.painter import Painter
    from reid_models.data.index import DatasetIndex
    from reid_models.runtime import Runtime, choose_device

    torch.manual_seed(0)
    model = DGNet(dgnet_config(place).networks, place.num_ids).eval()
    with torch.no_grad():  # pictures of a random network with the contrast of photographs
        picture = model.decode(model.encode(torch.randn(1, 3, *model.image_hw)))
        model.decoder.finish[-1].conv.weight /= picture.std()  # type: ignore[union-attr]
    on_cpu = copy.deepcopy(model)
    model.to(choose_device(place.device))
    index = DatasetIndex.open(place.toy).split("train_all")
    plan = plan_generation(index, place.number, kind="random", seed=0)
    few = plan.pairs[: 8 if place.tiny else 16]
    expected = np.stack(list(Painter(on_cpu, index.paths).paint(few))).astype(int)
    for half in (False, True):
        runtime = Runtime.for_inference(place.device, half=half)
        if runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(runtime.device)
        list(Painter(model, index.paths, runtime=runtime).paint(few))  # not timed: kernels are chosen
        made = np.stack(list(Painter(model, index.paths, runtime=runtime).paint(few))).astype(int)
        out = place.work / f"generated-{runtime.precision}"
        start_s = time.perf_counter()
        generate(model, plan, out, runtime=runtime, writing=Writing("jpg"), batch_size=64, workers=os.cpu_count() or 2)
        elapsed_s = time.perf_counter() - start_s
        peak = runtime.peak_bytes()
        shutil.rmtree(out)
        off = np.abs(made - expected)
        yield {
            "way": f"{runtime.precision}, to JPEG files",
            "pictures": len(plan),
            "s": elapsed_s,
            "images/s": len(plan) / elapsed_s,
            "peak GiB": None if peak is None else peak / 2**30,
            "grey levels off the CPU: mean": off.mean(),
            "most": int(off.max()),
        }


def extract(place: Place) -> Iterator[Row]:
    import torch

    from reid_models.config import load_config
    from reid_models.data.index import DatasetIndex
    from reid_models.extraction import NetworkEmbedder, extract_features
    from reid_models.runtime import Runtime
    from reid_models.training import ReidTrainConfig, build_network

    small = ["image_hw=[96,32]", "network.trunk=small", "network.width=4"]
    overrides = ["network.weights=none", *(small if place.tiny else [])]
    config = load_config(ReidTrainConfig, CONFIGS / "mgn_market.yaml", overrides)
    torch.manual_seed(0)
    network = build_network(config.network, place.num_ids).eval()
    index = DatasetIndex.from_images(place.pictures)
    workers = 0 if place.tiny else min(12, os.cpu_count() or 1)
    few = torch.randn(8, 3, *config.image_hw, generator=torch.Generator().manual_seed(0))
    for half in (False, True):
        runtime = Runtime.for_inference(place.device, half=half)
        embedder = NetworkEmbedder(copy.deepcopy(network), name="gpu", image_hw=config.image_hw, runtime=runtime)
        with torch.inference_mode():
            plain = torch.nn.functional.normalize(network.embed(few))
            off = (embedder.finish(embedder.embed(few)) - plain).norm(dim=1).max().item()
        batch = torch.randn(64 if not place.tiny else 8, 3, *config.image_hw)
        passes = timed(runtime, lambda embedder=embedder, batch=batch: embedder.embed(batch), place.steps)
        start_s = time.perf_counter()
        extract_features(embedder, index, ["images"], num_workers=workers)
        elapsed_s = time.perf_counter() - start_s
        yield {
            "way": f"MGN, {runtime.precision}, with mirror images",
            "pictures": len(index),
            "s": elapsed_s,
            "images/s": len(index) / elapsed_s,
            "images/s without loader and mirror images": len(batch) / median(passes.seconds),
            "peak GiB": None if passes.peak_bytes is None else passes.peak_bytes / 2**30,
            "a vector of length 1 moves by": off,
        }


def inception(place: Place) -> Iterator[Row]:
    import numpy as np
    from images import write_inception

    from reid_eval.extractors import InceptionExtractor
    from reid_eval.files import list_images, read_pixels

    file = place.work / "weights" / "inception.pth"
    write_inception(file)
    files = list_images(place.pictures)[: 4 if place.tiny else None]
    pictures = [read_pixels(path) for path in files]
    expected = InceptionExtractor(file, device="cpu", any_weights=True)(pictures[:2])
    for half in (False, True):
        extractor = InceptionExtractor(file, device=place.device, any_weights=True, half=half)
        found = extractor(pictures[:2])
        extractor(pictures[:64])  # not timed: kernels are chosen
        start_s = time.perf_counter()
        for start in range(0, len(pictures), 64):
            extractor(pictures[start : start + 64])
        elapsed_s = time.perf_counter() - start_s
        yield {
            "way": f"Inception, {'bf16' if half else 'fp32'}, decoded pictures",
            "pictures": len(pictures),
            "s": elapsed_s,
            "images/s": len(pictures) / elapsed_s,
            "off the CPU by, of the largest": float(np.abs(found - expected).max() / np.abs(expected).max()),
        }
    if place.tiny:
        return
    words = ["stats", place.pictures, place.work / "stats.npz", "--weights", file, "--any-weights", "--no-cache"]
    start_s = time.perf_counter()
    command = [sys.executable, "-c", "from reid_eval.cli import main; main()", *words, "--device", place.device]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    elapsed_s = time.perf_counter() - start_s
    yield {
        "way": "reid-eval stats, fp32, from start to end",
        "pictures": len(pictures),
        "s": elapsed_s,
        "images/s": len(pictures) / elapsed_s,
    }


# --- trainings ------------------------------------------------------------------------------------------------------


def curves(place: Place) -> Iterator[Row]:
    """Losses of small trainings from one seed, on the CPU and on the device; without dropout, as each draws its own."""
    from dgnet_gen.settings import DGNetTrainConfig
    from dgnet_gen.training import train_dgnet
    from reid_eval.errors import Stopped
    from reid_models.config import load_config
    from reid_models.data.index import DatasetIndex
    from reid_models.runs import RunDir
    from reid_models.runtime import Runtime
    from reid_models.training import ReidTrainConfig, train_reid

    iterations, every = (4, 2) if place.tiny else (50, 5)
    data = DatasetIndex.open(place.toy)
    without = ["networks.dropout_primary=0", "networks.dropout_fine=0", f"max_iter={iterations}", f"log_every={every}"]
    small = load_config(DGNetTrainConfig, CONFIGS / "demo_dgnet.yaml", [*without, "num_workers=0"])
    # A batch of 4 x 4 and as many epochs as make enough iterations; it is stopped when there are enough.
    texts = ["network.dropout=0", f"log_every={every}", "schedule.epochs=50", "schedule.warmup_epochs=0"]
    texts += ["sampler.ids_per_batch=4", "num_workers=0", "eval_every=1000", "checkpoint_every=1000"]
    reid = load_config(ReidTrainConfig, CONFIGS / "demo_baseline.yaml", texts)

    def logs(device: str, name: str) -> dict[str, dict[int, Row]]:
        with exact(True):
            out = place.work / f"curves-{name}"
            dgnet_run = train_dgnet(small, data, out / "dgnet", Runtime.from_environment(device))
            with contextlib.suppress(Stopped):
                train_reid(reid, data, out / "reid", Runtime.from_environment(device), stop_at=iterations)
        logs = {"DG-Net": dgnet_run.read_log(), "re-ID": RunDir.open(out / "reid", "reid").read_log()}
        lines: dict[str, dict[int, Row]] = {what: {} for what in logs}
        for what, log in logs.items():
            for line in log:  # an evaluation has a line of its own
                lines[what].setdefault(int(line["iteration"]), {}).update(line)
        return lines

    on_cpu, on_device = logs("cpu", "cpu"), logs(place.device, "device")
    terms = {"DG-Net": ("total", "recon_self", "identity"), "re-ID": ("cross_entropy", "triplet")}
    apart = []
    for what, lines in on_cpu.items():
        for iteration, line in lines.items():
            other = on_device[what].get(iteration, {})
            row: Row = {"training": what, "iteration": iteration}
            for term in terms[what]:
                if term in line:
                    row |= {f"{term}, CPU": line[term], f"{term}, {place.device}": other.get(term)}
                    apart.append(abs(other[term] - line[term]) / max(abs(line[term]), 1e-3))
            if len(row) > 2:
                yield row
    yield {"training": "both", "iteration": "all", "largest relative difference": max(apart)}


# --- commands -------------------------------------------------------------------------------------------------------


def run_tests(place: Place) -> Iterator[Row]:
    """The tests marked `gpu` that take no minutes; those of compilation are in the compiled steps."""
    files = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").glob("*/test_gpu.py"))
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", *files]
    if place.tiny:
        words += ["-k", "float64 or channels_last or rank"]
    environment = os.environ | {"REID_TEST_GPU": place.device, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    lines = done.stdout.strip().splitlines() or ["pytest said nothing"]
    yield {"result": lines[-1].strip("= ")}
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"result": line}
    if done.returncode != 0:
        raise RuntimeError(lines[-1].strip("= "))


def demo(place: Place) -> Iterator[Row]:
    """The whole road on drawn pedestrians, too short to learn much."""
    out = place.work / "demo"
    epochs, iterations = (1, 4) if place.tiny else (6, 150)
    sets = [f"teacher.schedule.epochs={epochs}", "teacher.schedule.warmup_epochs=0", f"dgnet.max_iter={iterations}"]
    sets += ["dgnet.weights.warm_iter=50", f"dgnet.checkpoint_every={iterations}", f"dgnet.sample_every={iterations}"]
    if place.tiny:
        sets += ["teacher.sampler.ids_per_batch=4", "teacher.network.width=4", "dgnet.networks.structure_dim=4"]
    words = [sys.executable, "-m", "pipelines", "demo", "--out", str(out), "--device", place.device]
    for text in sets:
        words += ["--set", text]
    start_s = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, stdout=sys.stderr)
    elapsed_s = time.perf_counter() - start_s
    for file in sorted((out / "stages").glob("*.json"), key=lambda file: file.stat().st_mtime):
        record = json.loads(file.read_text())
        yield {"stage": file.stem, "s": record.get("elapsed_s"), "what came out": record.get("summary")}
    yield {"stage": "all", "s": elapsed_s, "what came out": "report.html"}


# --- parts ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Something to measure; its seconds are of MINUTES in all, and what is left over goes to those that come last."""

    title: str
    rows: Callable[[Place], Iterator[Row]]
    budget_s: float


PARTS = {
    "machine": Part("Machine", machine, 60),
    "draw": Part("Data: the toy world", draw, 30),
    "mgn": Part("Ten training steps of MGN, 384 x 128, batches of 64", mgn, 50),
    "dgnet": Part("Ten training steps of DG-Net, 256 x 128, two batches of 8, every term on", dgnet, 70),
    "tests": Part("Tests marked gpu", run_tests, 80),
    "generate": Part("2,000 generated pictures, 256 x 128", generate_pictures, 45),
    "extract": Part("Features of 2,000 pictures", extract, 35),
    "inception": Part("Inception features of 2,000 pictures", inception, 45),
    "curves": Part("Losses of the CPU and of the device, from one seed", curves, 40),
    "demo": Part("The demo, shortened", demo, 75),
    "mgn_compiled": Part("MGN's steps, compiled", lambda place: mgn(place, compiled=True), 110),
    "dgnet_compiled": Part("DG-Net's steps, both encoders compiled", lambda place: dgnet(place, compiled=True), 1e9),
}


def work(name: str, place: Place, rows: Path) -> int:
    """A part, in the process of its own; a row is one line of a file as soon as it is there."""
    started_by = os.getppid()

    def watch() -> None:  # nothing is left running behind a parent that was killed
        while os.getppid() == started_by:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    failed = 0
    with rows.open("a", encoding="utf-8") as stream:
        for row in PARTS[name].rows(place):
            failed += "failed" in row
            stream.write(json.dumps({key: plain(value) for key, value in row.items()}) + "\n")
            stream.flush()
    return min(failed, 1)


def plain(value: Any) -> Any:
    """What JSON knows, of numbers that NumPy or PyTorch made."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    return float(value)


# --- all of them ----------------------------------------------------------------------------------------------------


class Report:
    """The results so far, as JSON and as a page of tables."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.parts: list[dict[str, Any]] = []

    def begin(self, name: str, budget_s: float) -> dict[str, Any]:
        part = {"part": name, "title": PARTS[name].title, "budget_s": budget_s, "status": "running", "rows": []}
        self.parts.append(part)
        return part

    def write(self) -> None:
        results = {"format": 1, "device": self.place.device, "tiny": self.place.tiny, "parts": self.parts}
        _write(self.place.out / "results.json", json.dumps(results, indent=1) + "\n")
        _write(self.place.out / "results.md", self.markdown())

    def markdown(self) -> str:
        lines = [f"# Measured on {self.place.device}{', at tiny sizes' if self.place.tiny else ''}", ""]
        for part in self.parts:
            elapsed = f" ({part['elapsed_s']:.0f} s)" if "elapsed_s" in part else ""
            lines += [f"## {part['title']}", "", f"{part['status']}{elapsed}", ""]
            lines += table(part["rows"])
        return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*lines, *("| " + " | ".join(cell) + " |" for cell in cells), ""]


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/").replace("\n", " ")


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def run_part(name: str, report: Report, budget_s: float) -> bool:
    """Run one part and follow its rows; whether it ended well."""
    place = report.place
    rows, log = place.work / f"{name}.jsonl", place.out / "logs" / f"{name}.txt"
    part = report.begin(name, budget_s)
    report.write()
    words = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--rows", str(rows)]
    words += ["--out", str(place.out), "--device", place.device, *(["--tiny"] if place.tiny else [])]
    words += ["--budget", f"{budget_s:.0f}"]
    # Tiny tensors on a CPU that others use too: threads would wait for each other.
    threads = {"OMP_NUM_THREADS": "1"} if place.tiny and place.device == "cpu" else {}
    start_s = time.monotonic()
    with log.open("w") as stream:
        # A group of its own, so that all that the part started can be ended with it.
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=os.environ | threads, preexec_fn=os.setpgrp)
        read = 0
        try:
            while process.poll() is None and time.monotonic() - start_s < budget_s:
                time.sleep(0.2)
                read = follow(rows, part, read, report)
        finally:
            timed_out = process.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    follow(rows, part, read, report)
    part["elapsed_s"] = time.monotonic() - start_s
    if timed_out:
        part["status"] = f"stopped after {budget_s:.0f} s, its time; what was measured until then stays"
    elif process.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        part["status"] = (
            f"failed ({last[-1][:300] if last else f'exit code {process.returncode}'}); see logs/{name}.txt"
        )
    else:
        part["status"] = "done"
    report.write()
    print(f"{name}: {part['status']} ({part['elapsed_s']:.0f} s)", flush=True)
    return part["status"] == "done"


def follow(rows: Path, part: dict[str, Any], read: int, report: Report) -> int:
    """Take over the whole lines that have come since; returns how many there are now."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True) if rows.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    for line in whole[read:]:
        part["rows"].append(json.loads(line))
        print(f"{part['part']}: " + ", ".join(f"{key} {shown(value)}" for key, value in part["rows"][-1].items()))
    if len(whole) > read:
        report.write()
    return len(whole)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a new folder; default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few pictures, to try the script")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together; default: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=float("inf"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    place = Place(options.out.resolve(), options.device, options.tiny, time.monotonic() + options.budget)
    if options.part:
        return work(options.part, place, options.rows)
    chosen = [name for name in options.parts.split(",") if name]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts: found {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if place.out.exists() and any(place.out.iterdir()):
        parser.error(f"--out {place.out}: is not empty; name a new folder")
    place.work.mkdir(parents=True)
    (place.out / "logs").mkdir()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    deadline_s = time.monotonic() + 60 * options.minutes
    report, well = Report(place), True
    try:
        for name in chosen:
            left_s = deadline_s - time.monotonic() - FINISH_S
            if left_s < 5:
                report.begin(name, 0)["status"] = "not begun: no time was left"
                well = False
                continue
            budget_s = min(PARTS[name].budget_s * options.minutes / MINUTES, left_s)
            well &= run_part(name, report, budget_s)
            if name == "machine" and not well:
                break  # nothing else could be measured
    finally:
        for part in report.parts:
            if part["status"] == "running":
                part["status"] = "stopped from outside; what was measured until then stays"
        report.write()
        shutil.rmtree(place.work, ignore_errors=True)
    print(f"{place.out}/results.md")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
