"""One training step of DG-Net at full size, 256 x 128, all terms on, beside a straightforward way of writing it.

The straightforward way runs every picture batch through every network on its own, copies the appearance encoder and the
structure encoder for passes that must not train them, keeps graphs that nobody reads, doubles maps before it convolves
them, computes the decoder's norms by their formulas. It starts from the same weights and is given the same draws;
terms have to agree, with --exact updated weights too. Dropout is off, as both would draw other numbers. Times are the
best of some steps, in one process; the ratios are what counts. Memory is what a step needs beyond what lay there before
it (Linux tells).

    .venv/bin/python benchmarks/dgnet_step.py                    # some minutes on two cores
    .venv/bin/python benchmarks/dgnet_step.py --compile          # and what torch.compile adds: minutes more
    .venv/bin/python benchmarks/dgnet_step.py --exact            # one step each in float64, compared to 1e-10
    .venv/bin/python benchmarks/dgnet_step.py --profile          # where the time goes
    .venv/bin/python benchmarks/dgnet_step.py --tiny             # small networks, to try the script itself
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from originals import tell
from processor import describe
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dgnet_gen import losses
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.networks.decoder import Decoder
from dgnet_gen.pairs import PairBatch
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.step import Draws, Step, draw, late_weights, make_optimizers
from dgnet_gen.teacher import Teacher, TrainedNetwork
from reid_models.data.transforms import to_gray
from reid_models.networks import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.runtime import Precision, Runtime

NUM_IDS = 751
NO_DROPOUT: dict[str, Any] = {"dropout_primary": 0.0, "dropout_fine": 0.0}
FULL = NetworksConfig(**NO_DROPOUT)
TINY = NetworksConfig(
    **NO_DROPOUT, image_hw=(64, 32), trunk="small", trunk_width=4, bottleneck=16, structure_dim=4, n_res=2,
    mlp_dim=16, discriminator_dim=4, discriminator_res=1, num_scales=2,
)  # fmt: skip
ITERATION = 50_000
"""of the published 100,000: every ramp is at its top"""

Way = Callable[[int, PairBatch, Draws], dict[str, float]]


class StraightforwardStep:
    """The step as it is described: one pass after the other, and copies for what must not be trained."""

    def __init__(self, model: DGNet, config: DGNetTrainConfig, teacher: Teacher) -> None:
        self.model, self.config, self.teacher = model, config, teacher
        self.optimizers = make_optimizers(model, config.optim)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["fused"] = False

    def decode(self, code: Tensor, structure: Tensor) -> Tensor:
        return plain_decode(self.model.decoder, code, structure)

    def __call__(self, iteration: int, batch: PairBatch, draws: Draws) -> dict[str, float]:
        model, config, weights = self.model, self.config, self.config.weights
        x_a, x_b, xp_a, xp_b = batch.anchors_a, batch.anchors_b, batch.positives_a, batch.positives_b
        l_a, l_b = batch.labels_a, batch.labels_b
        assert draws.erased is not None
        s_a, s_b = model.structure_encoder(to_gray(x_a)), model.structure_encoder(to_gray(x_b))
        f_a, f_b, fp_a, fp_b = (model.appearance_encoder(images).code for images in (x_a, x_b, xp_a, xp_b))
        a, b, pa, pb = (model.appearance_encoder(images) for images in draws.erased)
        x_ba, x_ab = self.decode(f_a, s_b), self.decode(f_b, s_a)
        a_self, b_self = self.decode(f_a, s_a), self.decode(f_b, s_b)
        a_same, b_same = self.decode(fp_a, s_a), self.decode(fp_b, s_b)

        self.optimizers["discriminator"].zero_grad()
        game, penalty = torch.zeros(()), torch.zeros(())
        for fake, real in ((x_ba, x_a), (x_ab, x_b)):
            real = real.clone().requires_grad_()
            real_maps = model.discriminator(real)
            game = game + losses.discrimination(model.discriminator(fake.detach()), real_maps, config.gan)
            penalty = penalty + losses.penalty(real_maps, real, config.gan)
        dis_total = weights.adversarial * (game + weights.gradient_penalty * penalty)
        dis_total.backward()
        self.optimizers["discriminator"].step()

        frozen = copy.deepcopy(model.appearance_encoder)
        for part in frozen.modules():
            if isinstance(part, nn.Dropout):
                part.eval()
        again_a, again_b = frozen(x_ba), frozen(x_ab)
        encoder = model.structure_encoder
        if draws.trains_encoder:
            s_a2, s_b2 = encoder(to_gray(x_ab.detach())), encoder(to_gray(x_ba.detach()))
        else:
            encoder = copy.deepcopy(encoder)
            s_a2, s_b2 = encoder(to_gray(x_ab)), encoder(to_gray(x_ba))
        x_aba, x_bab = self.decode(again_a.code, s_a2), self.decode(again_b.code, s_b2)
        adversarial = torch.zeros(())
        for fake in (x_ba, x_ab):
            adversarial = adversarial + losses.adversarial(model.discriminator(fake), config.gan)
        target_ba = self.teacher.soft_labels(x_ba.detach(), l_a, l_b)
        target_ab = self.teacher.soft_labels(x_ab.detach(), l_b, l_a)
        ba, ab = model.appearance_encoder(x_ba.detach()), model.appearance_encoder(x_ab.detach())
        late = late_weights(iteration, weights)
        l1, ce = losses.reconstruction, losses.identity
        terms = {
            "recon_self": l1(a_self, x_a) + l1(b_self, x_b),
            "recon_same_id": l1(a_same, x_a) + l1(b_same, x_b),
            "identity": ce(a.primary, l_a) + ce(b.primary, l_b),
            "identity_positive": ce(pa.primary, l_a) + ce(pb.primary, l_b),
            "fine_real": ce(a.fine, l_a) + ce(b.fine, l_b),
            "adversarial": adversarial,
            "recon_identity": ce(again_a.primary, l_a) + ce(again_b.primary, l_b),
            "recon_appearance": l1(again_a.code, f_a) + l1(again_b.code, f_b),
            "recon_structure": l1(s_a2, s_a) + l1(s_b2, s_b),
            "cycle": l1(x_aba, x_a) + l1(x_bab, x_b),
            "primary": losses.distillation(ba.primary, target_ba) + losses.distillation(ab.primary, target_ab),
            "fine": ce(ba.fine, l_b) + ce(ab.fine, l_a),
        }
        total = (
            weights.recon_self * terms["recon_self"]
            + weights.recon_same_id * terms["recon_same_id"]
            + weights.identity * terms["identity"]
            + weights.identity_positive * terms["identity_positive"]
            + weights.identity * weights.teacher * weights.fine * terms["fine_real"]
            + weights.adversarial * terms["adversarial"]
            + weights.recon_identity * terms["recon_identity"]
            + late["recon_appearance"] * terms["recon_appearance"]
            + late["recon_structure"] * terms["recon_structure"]
            + late["cycle"] * terms["cycle"]
            + late["teacher"] * (weights.primary * terms["primary"] + weights.fine * terms["fine"])
        )
        for name in ("generator", "appearance"):
            self.optimizers[name].zero_grad()
        total.backward()
        for name in ("generator", "appearance"):
            self.optimizers[name].step()
        terms |= {"discriminator": dis_total, "gradient_penalty": penalty, "total": total}
        return {name: term.item() for name, term in terms.items()}


def plain_decode(decoder: Decoder, code: Tensor, structure: Tensor) -> Tensor:
    """The decoder as it is described: doubled maps, and each norm by its formula."""

    def adain(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # an instance norm by a batch norm over one long row of channels
        flat = F.batch_norm(y.reshape(1, -1, *y.shape[2:]), None, None, scale.flatten(), shift.flatten(), training=True)
        return flat.view_as(y)

    def by_sample(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        flat = y.view(len(y), -1)
        mean, deviation = flat.mean(1).view(-1, 1, 1, 1), flat.std(1).view(-1, 1, 1, 1)
        return (y - mean) / (deviation + 1e-5) * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)

    x = structure
    slices = code.chunk(len(decoder.blocks), dim=1)
    for block, mlp1, mlp2, part in zip(decoder.blocks, decoder.scales, decoder.shifts, slices, strict=True):
        (scale1, scale2), (shift1, shift2) = mlp1(part).chunk(2, dim=1), mlp2(part).chunk(2, dim=1)
        y = block.first.activation(adain(block.first.conv(F.pad(x, (1, 1, 1, 1), mode="reflect")), scale1, shift1))
        y = adain(block.second.conv(F.pad(y, (1, 1, 1, 1), mode="reflect")), scale2, shift2)
        x = y.add_(x)
    for unit in decoder.upsampled:
        assert unit.norm is not None
        x = F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (2, 2, 2, 2), mode="reflect")
        x = unit.activation(by_sample(unit.conv(x), unit.norm.gamma, unit.norm.beta))
    return decoder.finish(x)


class Setup:
    """Networks with equal weights for every way, a batch, and the draws of two steps."""

    def __init__(self, networks: NetworksConfig, batch_size: int, dtype: torch.dtype = torch.float32) -> None:
        self.config = DGNetTrainConfig(networks=networks, trunk_weights="none", batch_size=batch_size)
        torch.manual_seed(0)
        self.model = DGNet(self.config.networks, NUM_IDS)
        self.teacher = Baseline(make_trunk(networks.trunk, width=networks.trunk_width), NUM_IDS).to(dtype)
        for network in self.model.networks().values():
            network.to(dtype)
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(batch_size, 3, *networks.image_hw, generator=generator).to(dtype) for _ in range(4)]
        labels = [torch.randint(0, NUM_IDS, (batch_size,), generator=generator) for _ in range(2)]
        rows = torch.arange(batch_size)
        self.batch = PairBatch(images[0], images[1], labels[0], images[2], images[3], labels[1], rows, rows)
        drawn = draw(self.batch, 0, erasing=0.5, encoder_again=0.5)
        self.draws = [dataclasses.replace(drawn, trains_encoder=trains) for trains in (False, True)]

    def teachers(self) -> Teacher:
        return Teacher([TrainedNetwork(copy.deepcopy(self.teacher), self.config.networks.image_hw, {})])

    def straightforward(self) -> tuple[DGNet, Way]:
        model = copy.deepcopy(self.model)
        for network in model.networks().values():
            network.train()
        return model, StraightforwardStep(model, self.config, self.teachers())

    def ours(self, precision: Precision = "fp32", compile: bool = False) -> tuple[DGNet, Way]:
        model, teacher = copy.deepcopy(self.model), self.teachers()
        runtime = Runtime(torch.device("cpu"), precision)
        runtime.keep_freed_memory()
        for network in (*model.networks().values(), *(trained.network for trained in teacher.networks)):
            runtime.prepare(network)
        for name, network in model.networks().items():
            network.train()
            # torch 2.14 compiles the decoder's padding wrongly where channels come last, and no second derivatives,
            # which the discriminator's penalty asks for.
            if compile and name in ("appearance", "structure"):
                network.compile()
        step = Step(model, make_optimizers(model, self.config.optim), self.config, runtime, teacher)
        return model, lambda iteration, batch, draws: step(iteration, [batch], [draws])


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that some work needs at its peak beyond what lay there before; nan where the system does not tell."""
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # what lies there freed is not in use
    try:
        refs.write_text("5")  # forget the peak so far
        before = _status_mib(status, "VmRSS")
        work()
        return _status_mib(status, "VmHWM") - before
    except OSError:
        work()
        return float("nan")


def _status_mib(status: Path, name: str) -> float:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1024


@dataclasses.dataclass
class Measured:
    elapsed_s: float
    peak_mib: float
    first: dict[str, float]
    """the terms of the first step"""
    weights: dict[str, Tensor]
    """after it"""


def measure(model: DGNet, way: Way, setup: Setup, repeats: int) -> Measured:
    """Memory and results of a first step; then the time of both kinds of step, `repeats` times (0: not)."""
    first: dict[str, float] = {}
    peak = peak_mib(lambda: first.update(way(ITERATION, setup.batch, setup.draws[0])))
    weights = {
        f"{name}.{key}": value.clone()
        for name, network in model.networks().items()
        for key, value in network.state_dict().items()
    }
    times = []
    for draws in setup.draws:  # half of the steps train the structure encoder again, half do not
        best_s = float("inf") if repeats else 0.0
        for _ in range(repeats):
            start_s = time.perf_counter()
            way(ITERATION, setup.batch, draws)
            best_s = min(best_s, time.perf_counter() - start_s)
        times.append(best_s)
    return Measured(sum(times) / len(times), peak, first, weights)


def agreement(found: Measured, expected: Measured, *, exact: bool = False) -> str:
    """How near the terms are, and in float64 the updated weights; stops when they are not.

    In float32 two orders of the same sums differ through batch norms of few pictures, a term by up to 1e-3, the total
    by less than 1e-4. Where gradients are noise, Adam may step either way.
    """
    assert found.first.keys() == expected.first.keys()
    apart = {name: abs(found.first[name] - value) / max(abs(value), 1e-2) for name, value in expected.first.items()}
    assert apart["total"] < (1e-10 if exact else 1e-4), apart
    assert max(apart.values()) < (1e-8 if exact else 1e-3), apart
    for name, value in expected.weights.items() if exact else ():
        assert (found.weights[name] - value).abs().max() <= 2.1e-4 + 1e-7 * value.abs().max(), name
    return f"total agrees to {apart['total']:.0e}, each term to {max(apart.values()):.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4, help="of each of a and b; published: 8 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="also with both encoders compiled")
    parser.add_argument("--exact", action="store_true", help="compare one step in float64, and nothing else")
    parser.add_argument("--profile", action="store_true", help="print where our step spends its time, and nothing else")
    parser.add_argument("--tiny", action="store_true", help="small networks and pictures: to try this script")
    options = parser.parse_args()
    networks = TINY if options.tiny else FULL
    setup = Setup(networks, options.batch_size, torch.float64 if options.exact else torch.float32)
    print(describe())
    height, width = networks.image_hw
    print(f"DG-Net at {height} x {width}, {NUM_IDS} people, batches of {options.batch_size}")
    if options.profile:
        _, way = setup.ours()
        way(ITERATION, setup.batch, setup.draws[0])
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            way(ITERATION, setup.batch, setup.draws[0])
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
        return
    if options.exact:
        both = measure(*setup.ours(), setup, 0), measure(*setup.straightforward(), setup, 0)
        print(f"float64: {agreement(*both, exact=True)}")
        return
    plain = measure(*setup.straightforward(), setup, options.repeats)

    def line(name: str, measured: Measured, remark: str = "") -> None:
        print(
            f"{name:<28}{measured.elapsed_s:>7.2f} s a step {plain.elapsed_s / measured.elapsed_s:>6.2f} x"
            f"{measured.peak_mib:>8.0f} MiB {100 * measured.peak_mib / plain.peak_mib:>5.0f} %  {remark}",
            flush=True,
        )

    line("straightforward, float32", plain)
    ours = measure(*setup.ours(), setup, options.repeats)
    line("ours, float32", ours, agreement(ours, plain))
    line("ours, precision: bf16", measure(*setup.ours("bf16"), setup, options.repeats))
    if options.compile:
        compiled = measure(*setup.ours(compile=True), setup, options.repeats)
        line("ours, encoders compiled", compiled, agreement(compiled, plain))
    if not options.tiny:
        tell("DG-Net, training step")


if __name__ == "__main__":
    main()
