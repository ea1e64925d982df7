"""MGN at full size, 384 x 128: embedding, evaluating, a training step and loading, beside the same network run plainly.

Plainly is how scripts run it: as the memory lies, with a graph and all classifiers also where only embeddings are
wanted, in float32, with the optimizer's defaults. All in one process, each way timed in turn, the best of some runs:
the ratios are what counts. What two ways compute has to agree.

    .venv/bin/python benchmarks/mgn.py                # six minutes on two cores
    .venv/bin/python benchmarks/mgn.py --no-compile   # three
    .venv/bin/python benchmarks/mgn.py --tiny         # a try of the script itself
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
from originals import tell
from processor import describe
from torch import Tensor, nn

from reid_eval.files import read_pixels
from reid_eval.ranking import rank
from reid_models.data.index import DatasetIndex
from reid_models.data.loading import Augmentation, PersonDataset, make_loader
from reid_models.data.samplers import IdentitySampler
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform
from reid_models.extraction import NetworkEmbedder, extract_features
from reid_models.losses import LossSum, parse_loss
from reid_models.networks import MGN
from reid_models.networks.folding import folded
from reid_models.networks.resnet import make_trunk
from reid_models.runtime import Runtime
from reid_models.training import OptimConfig, make_optimizer

IMAGE_HW = (384, 128)
NUM_IDS = 751


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return min(times)


class Table:
    """Lines of images per second, each beside the first."""

    def __init__(self, title: str) -> None:
        print(f"\n{title}")
        self.first = 0.0

    def line(self, way: str, images_per_s: float, remark: str = "") -> None:
        self.first = self.first or images_per_s
        print(f"  {way:<44}{images_per_s:>9.2f} images/s {images_per_s / self.first:>6.2f} x  {remark}", flush=True)


def make_network(tiny: bool) -> MGN:
    """An MGN 1-2-3 whose norms have seen something."""
    torch.manual_seed(0)
    network = MGN(make_trunk("small", width=4) if tiny else make_trunk("resnet50"), NUM_IDS)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


def embedder(network: MGN, image_hw: tuple[int, int], *, half: bool = False, compile: bool = False) -> NetworkEmbedder:
    runtime = Runtime.for_inference("cpu", half=half)
    runtime.keep_freed_memory()
    return NetworkEmbedder(network, name="benchmark", image_hw=image_hw, runtime=runtime, compile=compile)


def plain_vectors(network: MGN, images: Tensor) -> Tensor:
    """All that the network says, of which the embeddings are taken."""
    return network(images).embeddings.detach()


def convolution_limit_s(network: MGN, images: Tensor, repeats: int) -> float:
    """Seconds of the convolutions alone, each on the input that it has in the network."""
    network = folded(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda conv, inputs, _: calls.append((conv, inputs[0].clone())))
    with torch.inference_mode():
        network.embed(images.contiguous(memory_format=torch.channels_last))
        todo = list(calls)
        return best_s(lambda: [conv._conv_forward(x, conv.weight, conv.bias) for conv, x in todo], repeats)


def embedding(network: MGN, images: Tensor, repeats: int, compile: bool) -> None:
    table = Table("embedding, passes of the network")
    number, image_hw = len(images), (images.shape[2], images.shape[3])
    plain = copy.deepcopy(network).eval()
    expected = nn.functional.normalize(plain_vectors(plain, images))

    def line(way: str, work: Callable[[], Tensor], largest: float, remark: str = "") -> float:
        change = (nn.functional.normalize(work()) - expected).norm(dim=1).max().item()
        assert change < largest, f"{way}: vectors of length 1 lie {change} apart"
        elapsed_s = best_s(work, repeats)
        table.line(way, number / elapsed_s, remark or f"vectors of length 1 move by {change:.0e}")
        return elapsed_s

    line("plain", lambda: plain_vectors(plain, images), 1e-6, " ")
    with torch.inference_mode():
        line("plain, but without a graph", lambda: plain(images).embeddings, 1e-5)
    ours = embedder(network, image_hw)
    ours_s = line("ours, float32", lambda: ours.embed(images), 1e-4)
    limit_s = convolution_limit_s(network, images, repeats)
    table.line("  (its convolutions alone)", number / limit_s, f"ours is at {100 * limit_s / ours_s:.0f} % of that")
    if compile:
        compiled = embedder(network, image_hw, compile=True)
        start_s = time.perf_counter()
        compiled.embed(images)
        took_s = time.perf_counter() - start_s
        line("ours, float32, --compile", lambda: compiled.embed(images), 1e-4, f"after {took_s:.0f} s of compiling")
    half = embedder(network, image_hw, half=True)
    line("ours, --half (bfloat16)", lambda: half.embed(images), 0.05)


def evaluation(network: MGN, root: Path, image_hw: tuple[int, int], repeats: int) -> None:
    index = DatasetIndex.open(root)
    chosen = [*index.split("query"), *index.split("gallery")]
    table = Table(
        f"evaluation as a training goes: {len(chosen)} pictures and their mirror images read, embedded, ranked"
    )
    plain = copy.deepcopy(network).eval()

    def plainly() -> np.ndarray:
        vectors = torch.empty(0)
        for start in range(0, len(chosen), 16):
            pixels = [read_pixels(record.path) for record in chosen[start : start + 16]]
            images = torch.stack([eval_transform(picture, image_hw) for picture in pixels]).contiguous()
            both = plain_vectors(plain, images) + plain_vectors(plain, images.flip(3))
            vectors = torch.cat([vectors, both / both.norm(dim=1, keepdim=True)])
        return vectors.numpy()

    def ours() -> np.ndarray:
        features = extract_features(embedder(network, image_hw), index, batch_size=16, num_workers=2)
        rank(features)
        return features.features

    np.testing.assert_allclose(ours(), plainly(), atol=1e-4)
    table.line("plain", len(chosen) / best_s(plainly, repeats))
    table.line("ours, float32", len(chosen) / best_s(ours, repeats))


def training_step(network: MGN, images: Tensor, repeats: int, compile: bool) -> float:
    """Prints, and returns images/s of the fastest way."""
    table = Table(f"a training step, batch of {len(images)}, 1*CrossEntropy+2*Triplet, Adam with AMSGrad")
    labels = torch.arange(len(images) // 4).repeat_interleave(4)
    loss = LossSum(
        parse_loss("1*CrossEntropy+2*Triplet"), num_ids=NUM_IDS, metric_dims=(256,) * 3, margin=1.2, label_smoothing=0.0
    )
    fastest = 0.0

    def line(way: str, ours: bool, precision: str = "fp32", compile: bool = False) -> float:
        nonlocal fastest
        runtime = Runtime(torch.device("cpu"), precision)  # type: ignore[arg-type]
        runtime.keep_freed_memory()
        trained = copy.deepcopy(network).train()
        batch = images
        if ours:
            trained = runtime.prepare(trained)
            batch = images.contiguous(memory_format=torch.channels_last)  # as the loader gives it
            optimizer = make_optimizer(trained, OptimConfig(lr=2e-4, amsgrad=True))
        else:
            optimizer = torch.optim.Adam(trained.parameters(), lr=2e-4, weight_decay=5e-4, amsgrad=True)
        forward = runtime.compiled(trained) if compile else trained
        first_loss = []

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                output = forward(batch)
            total, _ = loss(output.logits, output.metric, labels)
            total.backward()
            optimizer.step()
            first_loss.append(total.item())

        elapsed_s = best_s(step, repeats)
        table.line(way, len(images) / elapsed_s, f"first loss {first_loss[0]:.4f}")
        fastest = max(fastest, len(images) / elapsed_s)
        return first_loss[0]

    expected = line("plain", False)
    assert abs(line("ours, float32", True) - expected) < 1e-3 * expected
    if compile:
        line("ours, float32, compile: true", True, compile=True)
    line("ours, precision: bf16", True, "bf16")
    return fastest


def loading(root: Path, image_hw: tuple[int, int], step_images_per_s: float, batches: int) -> None:
    table = Table("loading for training, batches of 64 from JPEG files of 128 x 64, erasing on")
    index = DatasetIndex.open(root).split("train_all")
    augmentation = Augmentation(pad_px=0, erase=0.5)
    for workers, cache_mib in ((0, 0), (2, 0), (2, 256)):
        dataset = PersonDataset(index, image_hw, augmentation=augmentation, cache_mib=cache_mib)
        sampler = IdentitySampler(index.label_array, 16, 4, seed=0)
        loader = make_loader(dataset, sampler.batches(0, batches + 8), num_workers=workers)
        for _ in range(8):
            next(loader)
        start_s = time.perf_counter()
        number = sum(len(batch.labels) for batch in loader)
        pace = number / (time.perf_counter() - start_s)
        remark = f"{pace / step_images_per_s:.0f} x what the fastest step here takes" if workers else ""
        table.line(f"num_workers: {workers}, cache_mib: {cache_mib}", pace, remark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    parser.add_argument("--tiny", action="store_true", help="a small network and pictures: to try this script")
    options = parser.parse_args()
    network = make_network(options.tiny)
    image_hw = (96, 32) if options.tiny else IMAGE_HW
    images = torch.randn(options.batch_size, 3, *image_hw, generator=torch.Generator().manual_seed(0))
    print(describe())
    print(f"MGN 1-2-3 on {'the small trunk' if options.tiny else 'ResNet-50'}, {image_hw[0]} x {image_hw[1]}")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        make_toy_dataset(small, ids=8, cameras=3, per_camera=4, seed=0, image_hw=(128, 64))
        make_toy_dataset(large, ids=32, cameras=4, per_camera=1 if options.tiny else 6, seed=0, image_hw=(128, 64))
        embedding(network, images, options.repeats, not options.no_compile)
        evaluation(network, small, image_hw, max(1, options.repeats - 1))
        fastest = training_step(network, images, options.repeats, not options.no_compile)
        loading(large, image_hw, fastest, batches=2 if options.tiny else 16)
    if not options.tiny:
        tell("MGN")


if __name__ == "__main__":
    main()
