"""The terms of DG-Net's objective (Zheng et al. 2019), each a function, and the ramp that lets the late ones in.

The names follow the paper: two pictures x_i and x_j of two batches; x_ij is painted from the appearance of i and the
structure of j. Weights are applied once, in `dgnet_gen.step`. Everything is computed in float32 at least, whatever the
precision of the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_gen.networks.discriminator import gradient_penalty

Gan = Literal["lsgan", "nsgan"]


def reconstruction(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference to a target that gets no gradient: equations 1 and 2 (pictures), 4 and 5 (codes).

    Shapes:
        made, real  equal
        returns     ()
    """
    return (_wide(made) - _wide(real.detach())).abs().mean()


def identity(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of identity logits: equation 3 on photographs, 6 and 9 on swapped pictures.

    Shapes:
        logits   (B, K)
        labels   (B,)
        returns  ()
    """
    return F.cross_entropy(_wide(logits), labels)


def adversarial(maps: Sequence[Tensor], gan: Gan = "lsgan") -> Tensor:
    """The generator's side of equation 7, summed over scales.

    lsgan: 2 mean (D - 1)^2. nsgan: mean -log sigmoid D, the non-saturating form.
    """
    match gan:
        case "lsgan":
            terms = [2 * (_wide(patch_map) - 1).square().mean() for patch_map in maps]
        case "nsgan":
            terms = [F.softplus(-_wide(patch_map)).mean() for patch_map in maps]
    return torch.stack(terms).sum()


def discrimination(fake: Sequence[Tensor], real: Sequence[Tensor], gan: Gan = "lsgan") -> Tensor:
    """The discriminator's side of equation 7, summed over scales.

    lsgan: mean D(fake)^2 + mean (D(real) - 1)^2. nsgan: mean -log(1 - sigmoid D(fake)) + mean -log sigmoid D(real).
    """
    pairs = zip(fake, real, strict=True)
    match gan:
        case "lsgan":
            terms = [_wide(f).square().mean() + (_wide(r) - 1).square().mean() for f, r in pairs]
        case "nsgan":
            terms = [F.softplus(_wide(f)).mean() + F.softplus(-_wide(r)).mean() for f, r in pairs]
    return torch.stack(terms).sum()


def penalty(maps: Sequence[Tensor], images: Tensor, gan: Gan = "lsgan") -> Tensor:
    """The gradient penalty on photographs (Mescheder et al. 2018), summed over scales, unweighted.

    With nsgan it is that of the probability, sigmoid D, and not of D itself.
    """
    return gradient_penalty([patch_map.sigmoid() for patch_map in maps] if gan == "nsgan" else list(maps), images)


def distillation(logits: Tensor, target: Tensor) -> Tensor:
    """KL divergence from a soft target to the softmax of logits, mean over pictures: L_prim, equation 8.

    Shapes:
        logits   (B, K)
        target   (B, K)   rows sum to 1, zeros allowed
        returns  ()
    """
    return F.kl_div(F.log_softmax(_wide(logits), dim=1), target, reduction="batchmean")


TEACHER_STYLES = (
    "what the teachers say",
    "their first choice alone",
    "the identity of the appearance",
    "every identity alike",
    "what they say of the two identities that were swapped",
)


def soft_target(
    said: Sequence[Tensor], appearance: Tensor, structure: Tensor, *, style: int = 0, decay: float = 1.0
) -> Tensor:
    """What the primary head is to say of swapped pictures, from what each teacher says of them.

    Teachers are summed up one after the other, `decay` times the sum so far plus the next. `style` counts through
    TEACHER_STYLES; in the last one a picture whose two identities nobody believes in gets both alike.

    Shapes:
        said                   (B, K) per teacher, rows sum to 1
        appearance, structure  (B,)   labels of who lent clothes and pose
        returns                (B, K) rows sum to 1
    """
    total = torch.zeros_like(said[0])
    for probabilities in said:
        total = decay * total + probabilities
    num_ids = total.shape[1]
    match style:
        case 0:
            target = total
        case 1:
            target = F.one_hot(total.argmax(1), num_ids).to(total.dtype)
        case 2:
            target = F.one_hot(appearance, num_ids).to(total.dtype)
        case 3:
            target = torch.ones_like(total)
        case 4:
            both = F.one_hot(appearance, num_ids) + F.one_hot(structure, num_ids) > 0
            target = torch.where(both, total + torch.finfo(total.dtype).tiny, 0)
        case _:
            raise ValueError(f"style must be 0 to {len(TEACHER_STYLES) - 1}, got {style}")
    return target / target.sum(dim=1, keepdim=True)


def ramp(iteration: int, *, start: int, step: float, maximum: float) -> float:
    """The weight of a late term before a 0-based iteration: it grows by `step` in each one after `start`.

    A term is absent from an iteration that begins with weight 0; otherwise it counts with the weight that the iteration
    grows to, `ramp(iteration + 1)`. So it enters with two steps.
    """
    return min(step * max(0, iteration - start - 1), maximum)


def _wide(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
