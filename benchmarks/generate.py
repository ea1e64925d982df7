"""64 structures x 64 appearances at full size, 256 x 128, beside the published way: one pair at a time.

The published way reads two pictures, passes one through the structure encoder and one through the appearance encoder,
decodes a single swap with maps doubled before they are convolved, and saves it. It is timed on some of the pairs and
scaled up; ours makes them all. Weights are random, which changes no time. Pixels are compared on the pairs that both
made. Then the decoder alone, its convolutions one by one on prepared maps, and the peak memory of a quarter of the
pairs beside that of all.

    .venv/bin/python benchmarks/generate.py                      # some ten minutes on two cores
    .venv/bin/python benchmarks/generate.py --half               # products in bfloat16
    .venv/bin/python benchmarks/generate.py --side 8             # 8 x 8, to try it
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dgnet_step import plain_decode
from torch import Tensor, nn

from dgnet_gen.generation import Writing, generate
from dgnet_gen.generation_plan import GenerationPlan
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.networks.painting import paint, prepare, styles
from dgnet_gen.painter import UNIT
from reid_eval.files import read_pixels, save_image
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform, to_gray, to_pixels
from reid_models.runtime import Runtime


@torch.no_grad()
def published_way(model: DGNet, structure: Path, appearance: Path, out: Path) -> np.ndarray:
    """One swap from two files to a file, with nothing kept for the next."""
    pose, look = (eval_transform(read_pixels(file), model.image_hw)[None] for file in (structure, appearance))
    code, shape = model.appearance_encoder(look).code, model.structure_encoder(to_gray(pose))
    pixels = to_pixels(plain_decode(model.decoder, code, shape))[0]
    save_image(out, pixels)
    return pixels


@torch.no_grad()
def decoder_s(model: DGNet, runtime: Runtime) -> tuple[float, float, float]:
    """Seconds a picture of the decoder, of its convolutions alone, and their multiplications per picture."""
    layout = torch.channels_last
    worn = styles(model.decoder, torch.rand(UNIT, model.appearance_encoder.code_length))
    shape = torch.randn(1, model.structure_encoder.out_channels, model.image_hw[0] // 4, model.image_hw[1] // 4)
    ground = prepare(model.decoder, shape.to(memory_format=layout)).pick(torch.zeros(UNIT, dtype=torch.long))
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        calls.append((inputs[0], module.weight))

    hooks = [part.register_forward_pre_hook(record) for part in model.decoder.modules() if isinstance(part, nn.Conv2d)]
    paint(model.decoder, worn, ground)
    for hook in hooks:
        hook.remove()
    # The doubled convolutions call no module: four 3x3 kernels on the small map each.
    for unit, size in zip(model.decoder.upsampled, (4, 2), strict=True):
        channels = unit.conv.in_channels
        maps = torch.randn(UNIT, channels, model.image_hw[0] // size + 2, model.image_hw[1] // size + 2)
        calls.append((maps.to(memory_format=layout), torch.randn(4 * unit.conv.out_channels, channels, 3, 3)))
    products = sum(
        weight.numel() * (maps.shape[2] - weight.shape[2] + 1) * (maps.shape[3] - weight.shape[3] + 1)
        for maps, weight in calls
    )

    def convolve() -> None:
        for maps, weight in calls:
            nn.functional.conv2d(maps, weight)

    with runtime.rounded_products():
        whole = best_s(lambda: paint(model.decoder, worn, ground))
        alone = best_s(convolve)
    return whole / UNIT, alone / UNIT, products


def best_s(function: Callable[[], object], repeats: int = 5) -> float:
    function()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - began_s)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="structures, and appearances")
    parser.add_argument("--published", type=int, default=24, help="pairs to time the published way on")
    parser.add_argument("--half", action="store_true", help="ours with products in 16 bits")
    arguments = parser.parse_args()
    runtime = Runtime.for_inference("cpu", half=arguments.half)
    torch.manual_seed(0)
    plain = DGNet(NetworksConfig(), num_ids=751).eval()
    ours = copy.deepcopy(plain).to(torch.device("cpu"))
    side = arguments.side
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        index = DatasetIndex.open(make_toy_dataset(root / "toy", ids=64, cameras=2, per_camera=2)).split("train_all")
        rows = np.arange(2 * side)
        pairs = np.stack([rows[:side].repeat(side), np.tile(rows[side:], side)], axis=1).astype(np.int32)
        plan = GenerationPlan(index, pairs, "side by side", 0)

        chosen = np.linspace(0, len(plan) - 1, arguments.published).round().astype(int).tolist()
        published_way(plain, plan[0].structure.path, plan[0].appearance.path, root / "first.png")
        began_s = time.perf_counter()
        references = [
            published_way(plain, plan[at].structure.path, plan[at].appearance.path, root / "published" / f"{at}.png")
            for at in chosen
        ]
        published_s = (time.perf_counter() - began_s) / len(chosen)

        quarter = GenerationPlan(index, pairs[: len(pairs) // 4], "side by side", 0)
        generate(ours, quarter, root / "quarter", runtime=runtime)
        peak_of_quarter = runtime.peak_bytes() or 0
        began_s = time.perf_counter()
        generate(ours, plan, root / "ours", runtime=runtime, writing=Writing())
        ours_s = (time.perf_counter() - began_s) / len(plan)
        peak = runtime.peak_bytes() or 0
        off = [
            np.abs(read_pixels(root / "ours" / plan.file(at, ".png")).astype(int) - reference)
            for at, reference in zip(chosen, references, strict=True)
        ]
    whole_s, alone_s, products = decoder_s(ours, runtime)
    print(f"{len(plan)} pictures, {'products in 16 bits' if arguments.half else 'float32'}")
    print(f"published way {1 / published_s:8.2f} images/s  1.00   (timed on {len(chosen)} pairs)")
    print(f"ours          {1 / ours_s:8.2f} images/s  {published_s / ours_s:.2f}")
    print(f"grey levels apart: at most {max(part.max() for part in off)}, {np.mean(off):.4f} in the mean")
    print(f"decoder alone {1 / whole_s:8.2f} images/s, {whole_s / ours_s:.0%} of ours")
    print(
        f"its convolutions one by one {1 / alone_s:.2f} images/s, {alone_s / whole_s:.0%} of the decoder, "
        f"{2e-9 * products / alone_s:.0f} GFLOP/s"
    )
    print(f"peak memory {peak_of_quarter / 1e9:.2f} GB for a quarter of the pairs, {peak / 1e9:.2f} GB for all")


if __name__ == "__main__":
    main()
