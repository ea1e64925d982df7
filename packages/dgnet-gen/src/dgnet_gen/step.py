"""One step of DG-Net: discriminator, then generator and appearance encoder together (Zheng et al. 2019).

a and b are two batches of photographs, x_ij has the appearance of i and the structure of j:

1. codes of both; swapped pictures x_ba, x_ab; each picture from its own codes; each from its positive's appearance
2. the discriminator learns to tell x_ba, x_ab from photographs
3. generator and appearance encoder learn together. Appearance codes are cut off from the graph and swapped pictures
   are judged by a frozen view of the appearance encoder, so that neither side trains the other's weights.

Weights are applied once, in `_weights`. What chance decides is drawn by (seed, iteration), not from a stream. The
gradient of a sum is the sum of gradients, so what shares no graph goes backward as soon as it is there: at no time are
there graphs of more than two passes of the appearance encoder and two of the decoder.

    step = Step(model, make_optimizers(model, config.optim), config, runtime, teacher)
    terms = step(0, [batch])         # {"recon_self": 1.2, ..., "total": 61.0}
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dgnet_gen import losses
from dgnet_gen.model import DGNet
from dgnet_gen.networks.batches import in_batches
from dgnet_gen.networks.encoders import AppearanceOutput
from dgnet_gen.pairs import PairBatch
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.teacher import Teacher
from reid_models.checkpoints import DivergedError
from reid_models.data.transforms import random_erasing, random_tone, to_gray
from reid_models.optimizers import guarded
from reid_models.runtime import Runtime

MOST_SKIPPED = 50
"""float16: so many steps in a row without a finite gradient, and the training is given up"""


@dataclass(frozen=True)
class Draws:
    """What chance decides in a step beside dropout."""

    trains_encoder: bool
    """whether re-encoding a swapped picture trains the structure encoder; otherwise it trains the picture"""
    erased: tuple[Tensor, ...] | None
    """anchors a, b, positives a, b with rectangles erased, for the identity losses; None when nothing is ever erased"""
    gray: Tensor | None = None
    """anchors a, b as the structure encoder sees them, if not as they are"""


def draw(batch: PairBatch, seed: int, *, erasing: float, encoder_again: float, tone: float = 0.0) -> Draws:
    """The draws of a batch. `erasing` and `encoder_again` are probabilities, `tone` is a share."""
    generator = torch.Generator().manual_seed(seed)
    photographs = batch.anchors_a, batch.anchors_b, batch.positives_a, batch.positives_b
    erased = None
    if erasing > 0:
        erased = tuple(random_erasing(images, erasing, generator=generator) for images in photographs)
    trains_encoder = bool(torch.rand((), generator=generator) < encoder_again)
    gray = None
    if tone > 0:
        gray = random_tone(to_gray(torch.cat([batch.anchors_a, batch.anchors_b])), tone, generator=generator)
    return Draws(trains_encoder, erased, gray)


@dataclass(frozen=True)
class _Made:
    """What step 1 makes of a batch: codes without gradients, swapped pictures with theirs."""

    structure: Tensor
    """of a, then b, in the structure encoder's graph"""
    structure_leaf: Tensor
    """the same where the decoder's graphs begin; collects their gradients"""
    f_a: Tensor
    f_b: Tensor
    x_ba: Tensor
    x_ab: Tensor
    terms: dict[str, Tensor]
    """those of photographs, whose gradients are there already"""


class Step:
    """One training step over the four networks, and the state that goes with it.

    `file_of` names a row of the data in errors.
    """

    def __init__(
        self,
        model: DGNet,
        optimizers: Mapping[str, torch.optim.Optimizer],
        config: DGNetTrainConfig,
        runtime: Runtime,
        teacher: Teacher | None = None,
        *,
        file_of: Callable[[int], str] = str,
    ) -> None:
        self.model, self.optimizers, self.config, self.runtime = model, optimizers, config, runtime
        self.teacher, self.file_of = teacher, file_of
        self.scaler = runtime.grad_scaler()
        self.skipped = 0
        """steps in a row that float16 gave no finite gradient for"""
        self.average = copy.copy(model)
        """what is shown and generated from: the model, or with a moving average of its structure encoder and decoder"""
        if config.ema_decay > 0:
            self.average.structure_encoder = copy.deepcopy(model.structure_encoder).requires_grad_(False)
            self.average.decoder = copy.deepcopy(model.decoder).requires_grad_(False)
        self.base_lrs = {
            name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()
        }

    def settings_at(self, iteration: int) -> dict[str, float]:
        """Learning rates and ramped weights of a 0-based iteration, for the log."""
        optim, late = self.config.optim, late_weights(iteration, self.config.weights)
        return {
            "lr_generator": optim.lr_generator * lr_factor(iteration, optim, optim.gamma),
            "lr_appearance": optim.lr_appearance * lr_factor(iteration, optim, optim.gamma_appearance),
            **{f"weight_{name}": weight for name, weight in late.items()},
        }

    def __call__(
        self, iteration: int, parts: Sequence[PairBatch], draws: Sequence[Draws] | None = None
    ) -> dict[str, float]:
        """Update all networks by the mean gradients of some batches; returns the unweighted terms and the two totals.

        Raises:
            DivergedError: a term is not finite; the networks that it would have trained are as before.
        """
        self._set_rates(iteration)
        if draws is None:
            draws = [self._draw(part, iteration * len(parts) + number) for number, part in enumerate(parts)]
        sums: dict[str, float] = {}

        def add(terms: dict[str, Tensor], part: PairBatch) -> None:
            values = dict(zip(terms, torch.stack([term.detach() for term in terms.values()]).tolist(), strict=True))
            self._refuse_nonfinite(values, iteration, part)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / len(parts)

        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        weights, share = _weights(self.config.weights, iteration), 1 / len(parts)
        made = self._make(parts[0], draws[0], weights, share) if len(parts) == 1 else None
        for part, drawn in zip(parts, draws, strict=True):
            # Of several batches no graph is kept until the discriminator has learnt from all: they are made twice.
            x_ba, x_ab = (made.x_ba, made.x_ab) if made else self._swapped(part, drawn)
            terms = self._discriminator_terms(part, x_ba, x_ab)
            add(terms | (made.terms if made else {}), part)
            (share * terms["discriminator"]).backward()
        self.optimizers["discriminator"].step()
        for part, drawn in zip(parts, draws, strict=True):
            now = made or self._make(part, drawn, weights, share)
            terms = self._swapped_terms(iteration, now, part, drawn)
            self._add_gradients(terms, weights, share)
            terms |= self._lessons(now, part, weights, share)
            now.structure.backward(now.structure_leaf.grad)
            total = _weigh(now.terms | terms, weights).detach()
            add(terms | {"total": total} | ({} if made else now.terms), part)
        self._update_generator(iteration)
        return sums

    def _add_gradients(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], share: float) -> None:
        self.scaler.scale(share * _weigh(terms, weights)).backward()

    def _set_rates(self, iteration: int) -> None:
        optim = self.config.optim
        for name, optimizer in self.optimizers.items():
            gamma = optim.gamma_appearance if name == "appearance" else optim.gamma
            factor = lr_factor(iteration, optim, gamma)
            for group, base_lr in zip(optimizer.param_groups, self.base_lrs[name], strict=True):
                group["lr"] = base_lr * factor

    def _draw(self, part: PairBatch, number: int) -> Draws:
        config = self.config
        seed = config.seed * 1_000_003 + number
        return draw(part, seed, erasing=config.erasing, encoder_again=config.encoder_again, tone=config.tone)

    def _make(self, batch: PairBatch, draws: Draws, weights: Mapping[str, float], share: float) -> _Made:
        """Codes, swapped pictures, and the gradients of all terms of photographs."""
        model, x_a, x_b = self.model, batch.anchors_a, batch.anchors_b
        with self.runtime.autocast():
            structure = model.structure_encoder(_seen_gray(batch, draws))
        leaf = structure.detach().requires_grad_()
        s_a, s_b = leaf.chunk(2)
        codes, terms = self._recognised(batch, draws, weights, share)
        f_a, f_b, fp_a, fp_b = codes
        with self.runtime.autocast():
            again = model.decoder(torch.cat([f_a, f_b, fp_a, fp_b]), torch.cat([s_a, s_b, s_a, s_b]))
            a_self, b_self, a_same, b_same = again.chunk(4)
        painted = {
            "recon_self": losses.reconstruction(a_self, x_a) + losses.reconstruction(b_self, x_b),
            "recon_same_id": losses.reconstruction(a_same, x_a) + losses.reconstruction(b_same, x_b),
        }
        self._add_gradients(painted, weights, share)
        with self.runtime.autocast():
            x_ba, x_ab = model.decoder(torch.cat([f_a, f_b]), torch.cat([s_b, s_a])).chunk(2)
        terms |= {name: term.detach() for name, term in painted.items()}
        return _Made(structure, leaf, f_a, f_b, x_ba, x_ab, terms)

    def _recognised(
        self, batch: PairBatch, draws: Draws, weights: Mapping[str, float], share: float
    ) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        """Codes of anchors a, b, positives a, b, and the identity terms, whose gradients are added here."""
        encoder = self.model.appearance_encoder
        photographs = torch.cat([batch.anchors_a, batch.anchors_b, batch.positives_a, batch.positives_b])
        codes: Sequence[Tensor] = ()
        if draws.erased is not None:
            # When erased copies give the logits, the clean pass gives codes alone, which have no gradient; its batch
            # statistics still count.
            with torch.no_grad(), self.runtime.autocast(), in_batches(encoder, 4):
                codes = encoder(photographs).code.chunk(4)
        with self.runtime.autocast(), in_batches(encoder, 4):
            seen = encoder(photographs if draws.erased is None else torch.cat(draws.erased))
        if draws.erased is None:
            codes = seen.code.chunk(4)
        a, b, pa, pb = seen.primary.chunk(4)
        l_a, l_b = batch.labels_a, batch.labels_b
        terms = {
            "identity": losses.identity(a, l_a) + losses.identity(b, l_b),
            "identity_positive": losses.identity(pa, l_a) + losses.identity(pb, l_b),
        }
        if self.teacher is not None:
            # In the graph from the start: with weight 0 its gradients are 0 and not absent, so weight decay acts on
            # the fine-grained head all along, as published.
            a, b, *_ = seen.fine.chunk(4)
            terms["fine_real"] = losses.identity(a, l_a) + losses.identity(b, l_b)
        self._add_gradients(terms, weights, share)
        return codes, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _swapped(self, batch: PairBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """x_ba and x_ab alone, without a trace in the running statistics."""
        model, x_a, x_b = self.model, batch.anchors_a, batch.anchors_b
        with self.runtime.autocast():
            s_a, s_b = model.structure_encoder(_seen_gray(batch, draws)).chunk(2)
            code = _frozen(model.appearance_encoder, torch.cat([x_a, x_b]), train_bn=True).code
            return model.decoder(code, torch.cat([s_b, s_a])).chunk(2)

    def _discriminator_terms(self, batch: PairBatch, x_ba: Tensor, x_ab: Tensor) -> dict[str, Tensor]:
        weights, discriminator, gan = self.config.weights, self.model.discriminator, self.config.gan
        real = torch.cat([batch.anchors_a, batch.anchors_b]).requires_grad_()
        fake = torch.cat([x_ba, x_ab]).detach()
        # The penalty is a second derivative: float32 throughout. Two batches of equal size, each with its own mean.
        real_maps = discriminator(real)
        fake_maps = discriminator(fake.to(real.dtype))
        game = 2 * losses.discrimination(fake_maps, real_maps, gan)
        penalty = 2 * losses.penalty(real_maps, real, gan)
        total = weights.adversarial * (game + weights.gradient_penalty * penalty)
        return {"discriminator": total, "gradient_penalty": penalty}

    def _swapped_terms(self, iteration: int, made: _Made, batch: PairBatch, draws: Draws) -> dict[str, Tensor]:
        """The terms that swapped pictures have gradients of; late ones as soon as their weight has left 0."""
        model, config = self.model, self.config
        late = late_weights(iteration, config.weights)
        x_a, x_b, l_a, l_b = batch.anchors_a, batch.anchors_b, batch.labels_a, batch.labels_b
        swapped = torch.cat([made.x_ba, made.x_ab])
        terms: dict[str, Tensor] = {}
        with self.runtime.autocast():
            again = _frozen(model.appearance_encoder, swapped, train_bn=config.train_bn)
            with _reading(model.discriminator):
                swapped_maps = model.discriminator(swapped)
            if late["recon_structure"] > 0 or late["cycle"] > 0:
                gray = to_gray(torch.cat([made.x_ab, made.x_ba]))  # the structures of a, then of b
                if draws.trains_encoder:
                    again_s = model.structure_encoder(gray.detach())
                else:
                    with _reading(model.structure_encoder):
                        again_s = model.structure_encoder(gray)
            if late["cycle"] > 0:
                x_aba, x_bab = model.decoder(again.code, again_s).chunk(2)
        # Two halves of equal size, each with a mean of its own.
        terms["adversarial"] = 2 * losses.adversarial(swapped_maps, config.gan)
        terms["recon_identity"] = 2 * losses.identity(again.primary, torch.cat([l_a, l_b]))
        if late["recon_appearance"] > 0:
            terms["recon_appearance"] = 2 * losses.reconstruction(again.code, torch.cat([made.f_a, made.f_b]))
        if late["recon_structure"] > 0:
            terms["recon_structure"] = 2 * losses.reconstruction(again_s, made.structure)
        if late["cycle"] > 0:
            terms["cycle"] = losses.reconstruction(x_aba, x_a) + losses.reconstruction(x_bab, x_b)
        return terms

    def _lessons(self, made: _Made, batch: PairBatch, weights: Mapping[str, float], share: float) -> dict[str, Tensor]:
        """The heads learn from swapped pictures: the primary one from the teacher, the fine one whose pose it is.

        The passes count in the running statistics: the network learns from these pictures as from photographs.
        """
        if self.teacher is None or weights["primary"] == weights["fine"] == 0:
            return {}
        l_a, l_b = batch.labels_a, batch.labels_b
        appearance, structure = torch.cat([l_a, l_b]), torch.cat([l_b, l_a])
        swapped = torch.cat([made.x_ba, made.x_ab]).detach()
        with self.runtime.autocast(), in_batches(self.model.appearance_encoder, 2):
            target = self.teacher.soft_labels(swapped, appearance, structure, batches=2)
            seen = self.model.appearance_encoder(swapped)
        # Two halves of equal size, each with a mean of its own.
        terms = {
            "primary": 2 * losses.distillation(seen.primary, target),
            "fine": 2 * losses.identity(seen.fine, structure),
        }
        self._add_gradients(terms, weights, share)
        return {name: term.detach() for name, term in terms.items()}

    def _update_generator(self, iteration: int) -> None:
        """Step both optimizers, unless float16 gave gradients that are not finite; move the average."""
        scale = self.scaler.get_scale()
        for name in ("generator", "appearance"):
            self.scaler.step(self.optimizers[name])
        self.scaler.update()
        # The scale goes down when a gradient was not finite, and at no other time.
        self.skipped = self.skipped + 1 if self.scaler.get_scale() < scale else 0
        if self.skipped >= MOST_SKIPPED:
            raise DivergedError(
                f"iteration {iteration + 1}: no finite float16 gradient in {self.skipped} steps in a row; resume from "
                "an earlier checkpoint in a new run with precision=bf16 or fp32, or with lower learning rates"
            )
        if self.config.ema_decay > 0:
            # The first steps are forgotten faster, or the random start would stay in the average for long.
            decay = min(self.config.ema_decay, (iteration + 1) / (iteration + 11))
            pairs = (
                (self.average.structure_encoder, self.model.structure_encoder),
                (self.average.decoder, self.model.decoder),
            )
            with torch.no_grad():
                for mean, network in pairs:
                    torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - decay)

    def _refuse_nonfinite(self, values: Mapping[str, float], iteration: int, batch: PairBatch) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            now = self.settings_at(iteration)
            files = ", ".join(self.file_of(row) for row in batch.rows_a[:3].tolist())
            raise DivergedError(
                f"iteration {iteration + 1}: {', '.join(broken)} is not finite at lr_generator "
                f"{now['lr_generator']:g}, lr_appearance {now['lr_appearance']:g} (batch with {files}, ...); "
                "what was saved before is intact; lower the learning rate or resume from an earlier checkpoint"
            )


def late_weights(iteration: int, weights: LossWeights) -> dict[str, float]:
    """The weights of the late terms in the total of a 0-based iteration; 0 while a term is absent."""

    def entered(start: int, maximum: float) -> float:
        schedule: dict[str, Any] = {"start": start, "step": weights.warm_scale, "maximum": maximum}
        return losses.ramp(iteration + 1, **schedule) if losses.ramp(iteration, **schedule) > 0 else 0.0

    return {
        "recon_appearance": entered(weights.warm_iter, weights.recon_appearance),
        "recon_structure": entered(weights.warm_iter, weights.recon_structure),
        "cycle": entered(weights.warm_iter, weights.cycle),
        "teacher": entered(weights.warm_teacher_iter, weights.teacher),
    }


def _weights(weights: LossWeights, iteration: int) -> dict[str, float]:
    """Equation 10 of the paper, with the cycle and the late weights of the published training: each term's weight."""
    late = late_weights(iteration, weights)
    # What photographs teach the fine-grained head follows the teacher's weight one iteration later, as published.
    teacher_before = losses.ramp(
        iteration, start=weights.warm_teacher_iter, step=weights.warm_scale, maximum=weights.teacher
    )
    return {
        "recon_self": weights.recon_self,
        "recon_same_id": weights.recon_same_id,
        "adversarial": weights.adversarial,
        "recon_identity": weights.recon_identity,
        "identity": weights.identity,
        "fine_real": weights.identity * teacher_before * weights.fine,
        "identity_positive": weights.identity_positive,
        "recon_appearance": late["recon_appearance"],
        "recon_structure": late["recon_structure"],
        "cycle": late["cycle"],
        "primary": late["teacher"] * weights.primary,
        "fine": late["teacher"] * weights.fine,
    }


def _weigh(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _seen_gray(batch: PairBatch, draws: Draws) -> Tensor:
    return to_gray(torch.cat([batch.anchors_a, batch.anchors_b])) if draws.gray is None else draws.gray


def _frozen(encoder: nn.Module, images: Tensor, *, train_bn: bool) -> AppearanceOutput:
    """What the encoder as it is now says of two batches: gradients reach the pictures, never weights or statistics.

    Dropout is off; batch norms use each batch if `train_bn`.
    """
    parameters = {name: parameter.detach() for name, parameter in encoder.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.eval()
    if train_bn:
        for part in encoder.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.train()
    try:
        with in_batches(encoder, 2):
            return functional_call(encoder, (parameters, buffers), (images,))
    finally:
        encoder.train()


@contextmanager
def _reading(network: nn.Module) -> Iterator[None]:
    """Within the block the network passes gradients on but collects none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def make_optimizers(model: DGNet, optim: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """The three optimisers: generator (structure encoder and decoder), discriminator, appearance.

    Groups and the order of parameters are those of the published training, whose states go by position: the decoder's
    small networks come last, scales before shifts; the appearance encoder has a group for the trunk and one per head.
    """
    adam: dict[str, Any] = {"betas": (float(optim.beta1), float(optim.beta2)), "weight_decay": optim.weight_decay}
    adam["fused"] = True
    small_networks = ("scales.", "shifts.")
    decoder = list(model.decoder.named_parameters())
    generator = [
        *model.structure_encoder.parameters(),
        *(parameter for name, parameter in decoder if not name.startswith(small_networks)),
        *(parameter for begin in small_networks for name, parameter in decoder if name.startswith(begin)),
    ]
    encoder = model.appearance_encoder
    lr_head = optim.lr_appearance * optim.head_lr_factor
    appearance = [
        {"params": list(encoder.trunk.parameters()), "lr": optim.lr_appearance},
        {"params": list(encoder.primary.parameters()), "lr": lr_head},
        {"params": list(encoder.fine.parameters()), "lr": lr_head},
    ]
    sgd: dict[str, Any] = {"momentum": optim.momentum, "nesterov": optim.momentum > 0, "fused": True}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "generator": torch.optim.Adam(generator, lr=optim.lr_generator, **adam),
        "discriminator": torch.optim.Adam(model.discriminator.parameters(), lr=optim.lr_discriminator, **adam),
        "appearance": torch.optim.SGD(appearance, lr=optim.lr_appearance, weight_decay=optim.weight_decay, **sgd),
    }
    return {name: guarded(optimizer) for name, optimizer in optimizers.items()}


def lr_factor(iteration: int, optim: OptimConfig, gamma: float) -> float:
    """What learning rates are multiplied by at a 0-based iteration; a decay acts one iteration early, as published."""
    half, quarter = optim.step_size // 2, optim.step_size // 4
    match optim.policy:
        case "multistep":
            milestones = (optim.step_size, optim.step_size + half, optim.step_size + half + quarter)
            return gamma ** sum(iteration + 1 >= milestone for milestone in milestones)
        case "step":
            return gamma ** ((iteration + 1) // optim.step_size)
    return 1.0
