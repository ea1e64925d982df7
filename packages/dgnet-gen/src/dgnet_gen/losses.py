"""The terms of DG-Net's objective (Zheng et al. 2019), each a function, and the ramp that lets them in.

The names follow the paper: two pictures x_i and x_j of two batches; x_ij is painted from the appearance of i and the
structure of j. Weights are applied once, in `dgnet_gen.training`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_gen.networks.discriminator import gradient_penalty


def reconstruction(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference to a target that gets no gradient: L_recon of the paper's equations 1, 2 and 4.

    Shapes:
        made, real  equal
        returns     ()
    """
    return (made - real.detach()).abs().mean()


def identity(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of identity logits (equation 3): logits (B, K), labels (B,), returns ()."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def adversarial(maps: list[Tensor]) -> Tensor:
    """The generator's side of the least-squares game, over scales: sum of 2 mean (D - 1)^2."""
    return torch.stack([2 * (patch_map - 1).square().mean() for patch_map in maps]).sum()


def discrimination(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """The discriminator's side: sum over scales of mean D(fake)^2 + mean (D(real) - 1)^2."""
    terms = [f.square().mean() + (r - 1).square().mean() for f, r in zip(fake, real, strict=True)]
    return torch.stack(terms).sum()


def penalty(maps: list[Tensor], images: Tensor) -> Tensor:
    """The gradient penalty on real pictures, summed over scales; unweighted."""
    return gradient_penalty(maps, images)


def ramp(iteration: int, *, start: int, step: float, maximum: float) -> float:
    """The weight of a late term at a 0-based iteration: 0 up to `start`, then `step` more each time, up to `maximum`.

    The term is first computed one iteration after the weight has left zero, so it enters with two steps.
    """
    if iteration <= start + 1:
        return 0.0
    return min(step * (iteration - start), maximum)
