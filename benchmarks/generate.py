"""64 structures x 64 appearances at full size, 256 x 128, beside the published way: one pair at a time.

The published way reads two pictures, passes one through the structure encoder and one through the appearance encoder,
decodes a single swap with maps doubled before they are convolved and each norm by its formula, and saves it twice as
JPEG, once for either identity, as the published tool does. It is timed on some of the pairs; ours makes them all, in
two folders too. Weights are random, which changes no time, but pictures have the contrast of photographs, so that grey
levels mean something; pixels are compared on the pairs that both made. Then how many products each way multiplies; the
decoder alone, its convolutions one by one on its own maps, and the fastest that this machine multiplies; and the peak
memory of 256 pictures beside that of all.

    .venv/bin/python benchmarks/generate.py                      # some five minutes on two cores
    .venv/bin/python benchmarks/generate.py --half               # in bfloat16: two minutes
    .venv/bin/python benchmarks/generate.py --side 16            # 16 x 16
    .venv/bin/python benchmarks/generate.py --tiny               # small networks, to try the script itself
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dgnet_step import TINY, plain_decode
from originals import tell
from processor import describe
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgnet_gen.generation import Writing, generate
from dgnet_gen.generation_plan import GenerationPlan
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.networks.painting import paint, prepare, ready, styles
from dgnet_gen.painter import UNIT, Painter
from reid_eval.files import read_pixels, save_image
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform, to_gray, to_pixels
from reid_models.runtime import Runtime

FEW = 16
"""structures, and appearances, of the plan whose memory is compared with that of the whole one"""


@torch.no_grad()
def published_way(model: DGNet, structure: Path, appearance: Path, *out: Path) -> np.ndarray:
    """One swap from two files to files, with nothing kept for the next."""
    pose, look = (eval_transform(read_pixels(file), model.image_hw)[None] for file in (structure, appearance))
    code, shape = model.appearance_encoder(look).code, model.structure_encoder(to_gray(pose))
    pixels = to_pixels(plain_decode(model.decoder, code, shape))[0]
    for file in out:
        save_image(file, pixels, quality=75)
    return pixels


class Convolutions(TorchFunctionMode):
    """Maps, kernels and biases of the convolutions within, and how many products they take."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []
        self.products = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.conv2d:
            self.calls.append(args[:3])
            self.products += args[1][0].numel() * result.numel()
        return result


def best_s(function: Callable[[], object], repeats: int = 5) -> float:
    function()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - began_s)
    return min(times)


@torch.no_grad()
def report_decoder(plain: DGNet, runtime: Runtime, ours_s: float) -> None:
    """Where the time of a picture goes, and what arithmetic alone would allow."""
    look = torch.rand(1, 3, *plain.image_hw)
    with Convolutions() as published:
        shape = plain.structure_encoder(to_gray(look))
        plain_decode(plain.decoder, plain.appearance_encoder(look).code, shape)
    decoder = ready(plain.decoder, runtime.map_dtype)
    worn = styles(plain.decoder, torch.rand(1, plain.appearance_encoder.code_length))
    ground = prepare(plain.decoder, shape.to(memory_format=torch.channels_last))
    with Convolutions() as ours:
        paint(decoder, worn, ground)

    @torch.no_grad()
    def painted(_: int) -> None:
        paint(decoder, worn, ground)

    @torch.no_grad()
    def convolved(_: int) -> None:
        for maps, kernel, bias in ours.calls:
            nn.functional.conv2d(maps, kernel, bias)

    with runtime.rounded_products(), runtime.side_by_side(UNIT) as pool:
        all_of = map if pool is None else pool.map
        whole_s = best_s(lambda: list(all_of(painted, range(UNIT)))) / UNIT
        alone_s = best_s(lambda: list(all_of(convolved, range(UNIT)))) / UNIT
        square = torch.randn(2048, 2048, dtype=runtime.map_dtype)
        fastest = 2e-9 * len(square) ** 3 / best_s(lambda: square @ square)
    print(
        f"10^9 products a picture: {published.products / 1e9:.2f} the published way, {ours.products / 1e9:.2f} ours; "
        f"at equal speed that is {published.products / ours.products:.2f}"
    )
    print(f"decoder alone {1 / whole_s:8.2f} images/s, {whole_s / ours_s:.0%} of ours")
    print(
        f"its convolutions one by one {1 / alone_s:.2f} images/s, {alone_s / whole_s:.0%} of the decoder, "
        f"{2e-9 * ours.products / alone_s:.0f} GFLOP/s; a product of large matrices: {fastest:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help=f"structures, and appearances; {FEW} to 64")
    parser.add_argument("--published", type=int, default=24, help="pairs to time the published way on")
    parser.add_argument("--half", action="store_true", help="ours in 16 bits")
    parser.add_argument("--tiny", action="store_true", help="small networks, 4 x 4 pictures: to try this script")
    arguments = parser.parse_args()
    side, few = (4, 2) if arguments.tiny else (arguments.side, FEW)
    if not few <= side <= 64:
        parser.error(f"--side {side}: expected {few} to 64")
    print(describe())
    runtime = Runtime.for_inference("cpu", half=arguments.half)
    torch.manual_seed(0)
    plain = DGNet(TINY if arguments.tiny else NetworksConfig(), num_ids=751).eval()
    with torch.no_grad():
        last = plain.decoder.finish[-1].conv
        picture = plain.decode(plain.encode(torch.randn(1, 3, *plain.image_hw)))
        last.weight /= picture.std()
    model = copy.deepcopy(plain).to(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        toy = make_toy_dataset(root / "toy", ids=8 if arguments.tiny else 64, cameras=2, per_camera=2)
        index = DatasetIndex.open(toy).split("train_all")

        def plan_of(side: int) -> GenerationPlan:
            rows = np.arange(2 * side)
            pairs = np.stack([rows[:side].repeat(side), np.tile(rows[side:], side)], axis=1).astype(np.int32)
            return GenerationPlan(index, pairs, "side by side", 0)

        def make(plan: GenerationPlan, name: str) -> tuple[float, float]:
            """Seconds a picture, and this process's peak memory so far in GB."""
            began_s = time.perf_counter()
            generate(
                model,
                plan,
                root / name / "looks",
                by_structure=root / name / "poses",
                runtime=runtime,
                writing=Writing("jpg"),
            )
            return (time.perf_counter() - began_s) / len(plan), (runtime.peak_bytes() or 0) / 1e9

        plan = plan_of(side)
        chosen = np.linspace(0, len(plan) - 1, min(arguments.published, len(plan))).round().astype(int).tolist()
        parents = [(plan[at].structure.path, plan[at].appearance.path) for at in chosen]
        published_way(plain, *parents[0], root / "first.jpg")
        began_s = time.perf_counter()
        references = [
            published_way(plain, *pair, *(root / tree / f"{number}.jpg" for tree in ("id", "bg")))
            for number, pair in enumerate(parents)
        ]
        published_s = (time.perf_counter() - began_s) / len(chosen)
        _, peak_of_few = make(plan_of(few), "few")
        ours_s, peak = make(plan, "all")
        made = list(Painter(model, index.paths, runtime=runtime).paint(plan.pairs[chosen]))
    off = np.abs(np.stack(made).astype(int) - np.stack(references))
    print(f"{len(plan)} pictures, {'bfloat16' if arguments.half else 'float32'}")
    print(f"published way {1 / published_s:8.2f} images/s  1.00   (timed on {len(chosen)} pairs)")
    print(f"ours          {1 / ours_s:8.2f} images/s  {published_s / ours_s:.2f}")
    print(
        f"grey levels apart: at most {off.max()}, {off.mean():.4f} in the mean, {(off > 1).mean():.2%} by more than one"
    )
    report_decoder(plain, runtime, ours_s)
    print(f"peak memory {peak_of_few:.2f} GB for {few**2} pictures, {peak:.2f} GB for all")
    if not arguments.tiny:
        tell("DG-Net, every picture", "DG-Net, 16")


if __name__ == "__main__":
    main()
