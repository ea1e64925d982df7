"""Time and values of the picture metrics, beside the programs that are usually taken for them.

    .venv/bin/python benchmarks/images.py                         # every part, small: some minutes
    .venv/bin/python benchmarks/images.py frechet --size large    # two Gaussians in 2048 dimensions
    .venv/bin/python benchmarks/images.py features --size large   # 200 pictures on each side
    .venv/bin/python benchmarks/images.py --size tiny --repeat 1  # to try the script itself

features  a folder of JPEGs to statistics: reid-eval stats beside pytorch-fid's command, and what bfloat16 changes
values    FID, KID, precision and recall beside pytorch-fid, torch-fidelity and clean-fid, LPIPS beside lpips
frechet   the distance of two Gaussians beside SciPy's matrix root, of full and of lower rank
all       all metrics in one pass beside each alone
ssim      pairs of pictures beside scikit-image, a pair at a time
cache     the second call of a command on unchanged folders

Pictures are made up, 128x64 as pedestrians are, and networks have random weights in the published files' format: that
changes no time, and all programs read the same file. Each way runs in a process of its own, the ways in turns, and of
--repeat runs the quickest counts; what two ways found has to agree. Ratios are of processor time, within one run, and
by the clock. Both sides have the same OMP_NUM_THREADS. A program that is not installed is named and left out; for all:

    pip install pytorch-fid torch-fidelity clean-fid lpips
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from originals import tell
from PIL import Image
from processor import tell as tell_processor
from skimage.metrics import structural_similarity

from reid_eval.feature_sets import FeatureSet
from reid_eval.frechet import frechet_distance
from reid_eval.images import METRICS, Metric, Protocol, measure_images
from reid_eval.similarity import ssim_of_batch

PICTURE_HW = (128, 64)
PER_IDENTITY = 10
PUBLISHED_NAME = "pt_inception-2015-12-05-6726825d.pth"
REID_EVAL = "from reid_eval.cli import main; main()"
KID_SUBSETS = 20


@dataclass(frozen=True)
class Size:
    """Pictures on each side, pairs for SSIM, dimensions of the Gaussians."""

    pictures: int
    pairs: int
    dimensions: int


SIZES = {"tiny": Size(6, 8, 64), "small": Size(60, 128, 512), "large": Size(200, 512, 2048)}


@dataclass(frozen=True)
class Place:
    """The folder that everything is written in, and how large it all is."""

    root: Path
    size: Size

    @property
    def sides(self) -> tuple[Path, Path]:
        """Real and generated pictures, without folders for identities: pytorch-fid looks for none."""
        return self.root / "real", self.root / "fake"

    @property
    def people(self) -> tuple[Path, Path]:
        """The same with a folder for each identity."""
        return self.root / "real_people", self.root / "fake_people"

    @property
    def inception(self) -> Path:
        """Where torch's hub has the published file, and so where the other programs look for it."""
        return self.root / "torch" / "hub" / "checkpoints" / PUBLISHED_NAME

    @property
    def trunk(self) -> Path:
        return self.root / "alexnet.pth"

    @property
    def heads(self) -> Path:
        return self.root / "heads.pth"


# --- pictures and weights -------------------------------------------------------------------------------------------


def make_pictures(place: Place) -> None:
    """People of a few broad colours, seen twice: what is generated is softer and darker."""
    rng = np.random.default_rng(0)
    height, width = PICTURE_HW
    for flat, by_person, share in zip(place.sides, place.people, (0.0, 0.5), strict=True):
        flat.mkdir()
        for number in range(place.size.pictures):
            person, turn = divmod(number, PER_IDENTITY)
            colours = np.random.default_rng([1, person]).integers(0, 256, (8, 3, 3)) + rng.integers(-40, 40, (8, 3, 3))
            picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
            pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
            pixels = pixels * (1 - 0.2 * share) + rng.normal(0, 20 * (1 - share), (height, width, 1))
            made = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            folder = by_person / f"{person:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            made.save(folder / f"{turn:02d}.jpg", quality=90)
            made.save(flat / f"{person:04d}_c1s1_{turn:06d}_00.jpg", quality=90)


def write_inception(file: Path) -> None:
    """Random weights that keep the signal's size, under the published names and shapes."""
    import torch

    from reid_eval.inception import tensor_shapes

    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in tensor_shapes().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        elif name.endswith(("conv.weight", "fc.weight")):
            state[name] = torch.randn(shape, generator=draw) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(shape, generator=draw) + 0.5
        else:
            state[name] = torch.randn(shape, generator=draw) * 0.1
    file.parent.mkdir(parents=True)
    torch.save(state, file)


def write_lpips(place: Place) -> None:
    """A random AlexNet and random heads, as torchvision and LPIPS 0.1 publish them."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    torch.save(models.alexnet(weights=None).state_dict(), place.trunk)
    widths = (64, 192, 384, 256, 256)
    heads = {f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1) / width for number, width in enumerate(widths)}
    torch.save(heads, place.heads)


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    elapsed_s: float
    cpu_s: float  # of all threads and processes; what else runs on the machine disturbs it little
    found: Any


Way = Callable[[], Measured]


def command(place: Place, *words: str | Path) -> Way:
    """A program of Python from its start to its end, imports included; found is what it prints."""

    def run() -> Measured:
        environment = os.environ | {"TORCH_HOME": str(place.root / "torch"), "REID_CACHE": str(place.root / "cache")}
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
            start_s = time.perf_counter()
            process = subprocess.Popen([sys.executable, *map(str, words)], env=environment, stdout=printed, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            elapsed_s = time.perf_counter() - start_s
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                said.seek(0)
                sys.exit(f"{' '.join(map(str, words))}: {said.read().decode()}")
            printed.seek(0)
            return Measured(elapsed_s, usage.ru_utime + usage.ru_stime, printed.read().decode())

    return run


def function(prepare: Callable[[Place], Any], work: Callable[[Any], Any], place: Place) -> Way:
    """A function in a fresh process, without what prepares its input."""

    def run() -> Measured:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(prepare, work, place, theirs))
        process.start()
        theirs.close()
        try:
            measured: Measured = ours.recv()
        except EOFError:
            sys.exit(f"{work}: failed, as it says above")
        process.join()
        return measured

    return run


def _work(prepare: Callable[[Place], Any], work: Callable[[Any], Any], place: Place, answer: Connection) -> None:
    os.environ["TORCH_HOME"] = str(place.root / "torch")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        inputs = prepare(place)
        start_s, start_cpu_s = time.perf_counter(), _cpu_s()
        found = work(inputs)
        measured = Measured(time.perf_counter() - start_s, _cpu_s() - start_cpu_s, found)
    answer.send(measured)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_turns(ways: dict[str, Way], repeat: int) -> dict[str, Measured]:
    """The quickest of some runs of each way, one after the other so that none has the better hours; and print."""
    runs: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            runs[name].append(way())
    best = {}
    for name, measured in runs.items():
        best[name] = Measured(
            min(one.elapsed_s for one in measured), min(one.cpu_s for one in measured), measured[0].found
        )
        print(f"  {name:<34}{best[name].cpu_s:>9.3f} s of processor time in {best[name].elapsed_s:.3f} s", flush=True)
    return best


def faster(ours: Measured, other: Measured) -> str:
    return f"{other.cpu_s / ours.cpu_s:.2f} x as fast ({other.elapsed_s / ours.elapsed_s:.2f} x by the clock)"


def has(package: str, name: str) -> bool:
    """Whether a package can be imported; if not, say why and how it comes."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"  {name} is left out ({error}): pip install {name}")
        return False
    return True


def off_by(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


# --- features -------------------------------------------------------------------------------------------------------


def features(place: Place, repeat: int) -> None:
    print(f"features: {place.size.pictures} JPEGs to statistics, commands from start to end")
    real, fake = place.sides

    def ours(folder: Path, out: str, *more: str) -> Way:
        words = ("stats", folder, place.root / out, "--weights", place.inception, "--any-weights", "--no-cache", *more)
        return command(place, "-c", REID_EVAL, *words)

    theirs = place.root / "pytorch_fid.npz"

    def pytorch_fid() -> Measured:
        theirs.unlink(missing_ok=True)
        return command(place, "-m", "pytorch_fid", "--save-stats", real, theirs)()

    ways = {"ours, float32": ours(real, "real.npz"), "ours, bfloat16": ours(real, "real_half.npz", "--half")}
    if has("pytorch_fid", "pytorch-fid"):
        ways["pytorch-fid"] = pytorch_fid
    took = in_turns(ways, repeat)
    plain = FeatureSet.load(place.root / "real.npz")
    if "pytorch-fid" in took:
        published = FeatureSet.load(theirs)
        for mine, other in ((plain.mean, published.mean), (plain.covariance, published.covariance)):
            difference = float(np.abs(mine - other).max() / np.abs(other).max())
            assert 0 < difference < 1e-3, difference
            print(f"    mean or covariance differ by {difference:.1e} of the largest")
        print(f"    ours is {faster(took['ours, float32'], took['pytorch-fid'])}")
        print(f"    in bfloat16 {faster(took['ours, bfloat16'], took['pytorch-fid'])}")
    ours(fake, "fake.npz")()
    ours(fake, "fake_half.npz", "--half")()
    sets = {name: FeatureSet.load(place.root / f"{name}.npz") for name in ("real", "fake", "real_half", "fake_half")}
    between = frechet_distance_of(sets["real"], sets["fake"])
    halves = frechet_distance_of(sets["real_half"], sets["fake_half"])
    print(f"    FID {between:.4f}, both sides in bfloat16 {halves:.4f}: {100 * (halves / between - 1):+.2f} %")
    rounding = frechet_distance_of(sets["real"], sets["real_half"])
    print(f"    FID between the same pictures in float32 and in bfloat16: {rounding:.4f}")


def frechet_distance_of(first: FeatureSet, second: FeatureSet) -> float:
    """Without asking whether the precision is the same."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


# --- values ---------------------------------------------------------------------------------------------------------


def our_values(place: Place, resize: Any) -> dict[str, float]:
    from reid_eval.extractors import extractor_from_name

    extractor = extractor_from_name("inception", weights=place.inception, any_weights=True, resize=resize)
    how = Protocol(kid_subsets=KID_SUBSETS, kid_subset_size=place.size.pictures // 2)
    results = measure_images(*place.sides, metrics=("fid", "kid", "prdc"), extractor=extractor, protocol=how)
    return {result.name.partition("_")[0]: result.value for result in results}


def as_it_is(place: Place) -> Place:
    return place


def ours_legacy(place: Place) -> dict[str, float]:
    return our_values(place, "legacy")


def ours_tensorflow(place: Place) -> dict[str, float]:
    return our_values(place, "tensorflow")


def ours_clean(place: Place) -> dict[str, float]:
    return our_values(place, "clean")


def torch_fidelity(place: Place) -> dict[str, float]:
    import torch
    from torch_fidelity import calculate_metrics

    real, fake = map(str, place.sides)
    found = calculate_metrics(
        input1=fake,
        input2=real,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=place.size.pictures // 2,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(place.inception),
        cuda=torch.cuda.is_available(),
        batch_size=50,
        cache=False,
        verbose=False,
    )
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    names |= {name: name for name in ("precision", "recall")}
    return {ours: found[theirs] for ours, theirs in names.items()}


def clean_fid(place: Place) -> dict[str, float]:
    """Its own reading, resizing and network; from the file that torch's hub has, as its TorchScript one is fetched."""
    import torch
    from cleanfid.fid import compare_folders
    from cleanfid.inception_pytorch import InceptionV3

    network = InceptionV3([3], resize_input=False, normalize_input=False).eval()

    def model(levels: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = network((levels - 128) / 128)[0]
        return vectors.flatten(1)

    real, fake = map(str, place.sides)
    return {"fid": float(compare_folders(real, fake, model, "clean", 0, 50, torch.device("cpu"), verbose=False))}


def read_pairs(place: Place) -> tuple[Place, list[np.ndarray], list[np.ndarray]]:
    sides = [[np.asarray(Image.open(file)) for file in sorted(side.iterdir())] for side in place.sides]
    return place, sides[0], sides[1]


def our_lpips(inputs: tuple[Place, list[np.ndarray], list[np.ndarray]]) -> np.ndarray:
    from reid_eval.lpips import Lpips

    place, first, second = inputs
    return Lpips("alex", weights=place.trunk, heads=_lpips_heads(), any_weights=True)(first, second)


def lpips_package(inputs: tuple[Place, list[np.ndarray], list[np.ndarray]]) -> np.ndarray:
    """With its own heads, and the random trunk in the network that it builds."""
    import lpips
    import torch

    place, *sides = inputs
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    trunk = torch.load(place.trunk)
    names = network.net.state_dict()  # slice1.0.weight for features.0.weight
    network.net.load_state_dict({name: trunk[f"features.{name.partition('.')[2]}"] for name in names})
    first, second = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 127.5 - 1 for side in sides)
    with torch.no_grad():
        return np.array([float(network(one[None], other[None])) for one, other in zip(first, second, strict=True)])


def _lpips_heads() -> Path:
    found = importlib.util.find_spec("lpips")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "weights" / "v0.1" / "alex.pth"


def values(place: Place, repeat: int) -> None:
    print(f"values: {place.size.pictures} pictures on each side, the same weights")
    real, fake = place.sides
    if has("pytorch_fid", "pytorch-fid"):
        took = in_turns(
            {
                "ours, legacy": function(as_it_is, ours_legacy, place),
                "pytorch-fid": command(place, "-m", "pytorch_fid", real, fake),
            },
            1,
        )
        printed = re.search(r"FID:\s+(\S+)", took["pytorch-fid"].found)
        assert printed is not None, took["pytorch-fid"].found
        agree({"fid": float(printed[1])}, took["ours, legacy"].found, {"fid": 1e-3})
    if has("torch_fidelity", "torch-fidelity"):
        took = in_turns(
            {
                "ours, tensorflow": function(as_it_is, ours_tensorflow, place),
                "torch-fidelity": function(as_it_is, torch_fidelity, place),
            },
            1,
        )
        # A picture in 1000 may lie on the border of a ball: its distances are float32 there.
        within = {"fid": 1e-3, "kid": 1e-3, "precision": 0.02, "recall": 0.02}
        agree(took["torch-fidelity"].found, took["ours, tensorflow"].found, within)
    if has("cleanfid.fid", "clean-fid"):
        took = in_turns(
            {
                "ours, clean": function(as_it_is, ours_clean, place),
                "clean-fid": function(as_it_is, clean_fid, place),
            },
            1,
        )
        agree(took["clean-fid"].found, took["ours, clean"].found, {"fid": 1e-3})
    if has("lpips", "lpips"):
        took = in_turns(
            {"our LPIPS": function(read_pairs, our_lpips, place), "lpips": function(read_pairs, lpips_package, place)},
            repeat,
        )
        mine, other = took["our LPIPS"].found, took["lpips"].found
        difference = float(np.abs(mine / other - 1).max())
        assert difference < 1e-4, difference
        print(f"    {len(mine)} pairs differ by {difference:.1e} of the value at most; ", end="")
        print(f"ours is {faster(took['our LPIPS'], took['lpips'])}")


def agree(theirs: dict[str, float], ours: dict[str, float], within: dict[str, float]) -> None:
    for name, value in theirs.items():
        difference = off_by(ours[name], value) if value else abs(ours[name])
        print(f"    {name:<10} {value:.8g}, ours {ours[name]:.8g}: {difference:.1e}")
        assert difference < within[name], name


# --- the Frechet distance -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussians:
    """Moments of two sets of vectors, and the distance from the vectors' own products."""

    mean1: np.ndarray
    cov1: np.ndarray
    mean2: np.ndarray
    cov2: np.ndarray
    exact: float


def gaussians(num_vectors: int, length: int) -> Gaussians:
    """Of what a network's last layer may give: correlated numbers, none below 0."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((64, length)) / 8
    sides = []
    for number in range(2):
        some = rng.standard_normal((num_vectors + 100 * number, 64)) * (1 + 0.1 * number) @ mixing
        some = np.maximum(some + 0.3 * rng.standard_normal(some.shape) + 0.05 * number, 0)
        mean = some.mean(axis=0)
        sides.append((mean, (some - mean) / np.sqrt(len(some) - 1)))
    (mean1, first), (mean2, second) = sides
    # tr (C1 C2)^1/2 is the sum of the singular values of the product of any two factors.
    trace = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    exact = np.square(mean1 - mean2).sum() + np.square(first).sum() + np.square(second).sum() - 2 * trace
    return Gaussians(mean1, first.T @ first, mean2, second.T @ second, float(exact))


def of_full_rank(place: Place) -> Gaussians:
    return gaussians(place.size.dimensions * 5 // 4, place.size.dimensions)


def of_lower_rank(place: Place) -> Gaussians:
    return gaussians(place.size.dimensions // 2, place.size.dimensions)


def our_distance(pair: Gaussians) -> tuple[float, float]:
    return frechet_distance(pair.mean1, pair.cov1, pair.mean2, pair.cov2), pair.exact


def matrix_root(pair: Gaussians) -> tuple[float, float]:
    """The general root of the product, and again with something on the diagonals if that was not finite."""
    from scipy import linalg

    root = linalg.sqrtm(pair.cov1 @ pair.cov2)
    if not np.isfinite(root).all():
        little = 1e-6 * np.eye(len(pair.cov1))
        root = linalg.sqrtm((pair.cov1 + little) @ (pair.cov2 + little))
    gap = pair.mean1 - pair.mean2
    value = gap @ gap + np.trace(pair.cov1) + np.trace(pair.cov2) - 2 * np.trace(root.real)
    return float(value), pair.exact


def frechet(place: Place, repeat: int) -> None:
    for prepare, rank in ((of_full_rank, "full rank"), (of_lower_rank, "rank of half as many vectors as dimensions")):
        print(f"frechet: two Gaussians in {place.size.dimensions} dimensions, {rank}")
        took = in_turns(
            {"ours": function(prepare, our_distance, place), "matrix root": function(prepare, matrix_root, place)},
            repeat,
        )
        (mine, exact), (other, _) = took["ours"].found, took["matrix root"].found
        assert off_by(mine, exact) < 1e-9, (mine, exact)
        if prepare is of_full_rank:
            assert off_by(mine, other) < 1e-6, (mine, other)
        print(f"    {exact:.10g} from the vectors; ours off by {off_by(mine, exact):.0e}, ", end="")
        print(f"the matrix root by {off_by(other, exact):.0e}")
        print(f"    ours is {faster(took['ours'], took['matrix root'])}")


# --- all at once ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """Some metrics of the folders; as picklable as a function of the module."""

    metrics: tuple[Metric, ...]

    def __call__(self, place: Place) -> dict[str, float]:
        from reid_eval.extractors import RandomExtractor, extractor_from_name
        from reid_eval.lpips import Lpips

        extractor = extractor_from_name("inception", weights=place.inception, any_weights=True)
        lpips = Lpips("alex", weights=place.trunk, heads=place.heads, any_weights=True)
        results = measure_images(
            *place.people,
            metrics=self.metrics,
            extractor=extractor if {"fid", "kid", "prdc"} & set(self.metrics) else None,
            lpips=lpips if "lpips" in self.metrics else None,
            reid=RandomExtractor() if "identity" in self.metrics else None,
        )
        return {result.name: result.value for result in results}


def with_torch(place: Place) -> Place:
    """Importing it is not measured."""
    import torch
    import torchvision

    assert torch.__version__
    assert torchvision.__version__
    return place


def all_metrics(place: Place, repeat: int) -> None:
    print(f"all: {place.size.pictures} pictures on each side, a pass for each metric and one for all")
    asked: list[tuple[Metric, ...]] = [*((metric,) for metric in METRICS), METRICS]
    took = in_turns({", ".join(one): function(with_torch, Ask(one), place) for one in asked}, repeat)
    together = took[", ".join(METRICS)]
    alone = {metric: took[metric] for metric in METRICS}
    for measured in alone.values():
        for name, value in measured.found.items():
            assert np.isclose(together.found[name], value, rtol=1e-6, equal_nan=True), name
    dearest = max(alone, key=lambda metric: alone[metric].cpu_s)
    cpu_s, elapsed_s = alone[dearest].cpu_s, alone[dearest].elapsed_s
    print(f"    {len(together.found)} numbers together take {together.cpu_s / cpu_s:.2f} x {dearest} alone", end="")
    print(f" ({together.elapsed_s / elapsed_s:.2f} x by the clock), ", end="")
    print(f"and {together.cpu_s / sum(measured.cpu_s for measured in alone.values()):.2f} x one after the other")


# --- SSIM -----------------------------------------------------------------------------------------------------------


def pairs_128(place: Place) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return _pairs(place.size.pairs, 128, 64)


def pairs_256(place: Place) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return _pairs(place.size.pairs // 4, 256, 128)


def _pairs(num: int, height: int, width: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    other = rng.integers(0, 256, first.shape, dtype=np.uint8)
    shares = np.linspace(0, 1, num)[:, None, None, None]
    return list(first), list((first * shares + other * (1 - shares)).astype(np.uint8))


def our_ssim(pairs: tuple[list[np.ndarray], list[np.ndarray]]) -> np.ndarray:
    """32 pairs at a time, as in a pass over files."""
    first, second = pairs
    batches = [slice(start, start + 32) for start in range(0, len(first), 32)]
    return np.concatenate([ssim_of_batch(first[batch], second[batch]) for batch in batches])


def scikit_image(pairs: tuple[list[np.ndarray], list[np.ndarray]]) -> np.ndarray:
    return np.array([structural_similarity(*pair, data_range=255, channel_axis=2) for pair in zip(*pairs, strict=True)])


def ssim(place: Place, repeat: int) -> None:
    for prepare, size, num in ((pairs_128, "128x64", place.size.pairs), (pairs_256, "256x128", place.size.pairs // 4)):
        print(f"ssim: {num} pairs of {size}")
        took = in_turns(
            {
                "ours": function(prepare, our_ssim, place),
                "scikit-image": function(prepare, scikit_image, place),
            },
            repeat,
        )
        difference = float(np.abs(took["ours"].found - took["scikit-image"].found).max())
        assert difference < 1e-6, difference
        print(f"    values differ by {difference:.0e} at most; ours is {faster(took['ours'], took['scikit-image'])}")


# --- the cache ------------------------------------------------------------------------------------------------------


def cache(place: Place, repeat: int) -> None:
    real, fake = place.people
    given = ("--weights", place.inception, "--any-weights", "--json")
    for words in (("fid", real, fake), ("images", real, fake, "--metrics", "fid,kid,prdc,ssim")):
        print(f"cache: reid-eval {words[0]}, {place.size.pictures} pictures on each side")
        call = command(place, "-c", REID_EVAL, *words, *given)
        first = in_turns({"first call": call}, 1)["first call"]
        second = in_turns({"second call": call}, repeat)["second call"]
        assert json.loads(first.found) == json.loads(second.found)
        print(f"    the same answer in {second.elapsed_s:.2f} s")


PARTS = {"features": features, "values": values, "frechet": frechet, "all": all_metrics, "ssim": ssim, "cache": cache}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way; default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if options.repeat < 1:
        parser.error(f"--repeat {options.repeat}: expected at least 1")
    parts = options.parts or list(PARTS)
    tell_processor()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), SIZES[options.size])
        if set(parts) & {"features", "values", "all", "cache"}:
            make_pictures(place)
            write_inception(place.inception)
            write_lpips(place)
        for part in parts:
            PARTS[part](place, options.repeat)
    if options.size != "tiny":
        tell("FID")


if __name__ == "__main__":
    main()
