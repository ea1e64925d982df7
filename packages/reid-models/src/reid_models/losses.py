"""Training losses: functions of tensors, unweighted; the text that combines them; a watch for collapse.

Features and logits may have any float type and the functions may be called inside autocast: they compute in at least
float32. Gradients are finite also at distance 0, and a batch that a loss says nothing about gives a 0 that has a
gradient. Distances are Euclidean, of the features as they are. Labels are int64, 0 .. num_ids-1.

    terms = parse_loss("CrossEntropy + 2*Triplet + 0.005*Center")
    loss = LossSum(terms, num_ids=751, metric_dims=(256, 256, 256), margin=1.2, label_smoothing=0.0)
    total, values = loss(logits, metric, labels)  # values: {"cross_entropy": ..., "triplet": ..., "center": ...}
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy against (1 - e) of the one-hot label plus e / K of every class, e being `label_smoothing`.

    Shapes:
        logits   (B, K)
        labels   (B,), or (B, K) probabilities
        returns  ()
    """
    return F.cross_entropy(_at_least_float32(logits), labels, label_smoothing=label_smoothing)


def batch_hard_triplet(features: Tensor, labels: Tensor, *, margin: float | None) -> Tensor:
    """Triplet loss on the farthest positive p and the nearest negative n of every anchor (Hermans et al. 2017).

    max(0, p - n + margin), or with margin None the paper's soft margin log(1 + exp(p - n)). An anchor is its own
    positive too, so one without a second picture counts with p = 0. The result is 0 if the batch has one identity.

    Shapes:
        features  (B, D)
        labels    (B,)
        returns   ()
    """
    farthest_positive, nearest_negative = hardest_distances(pairwise_distance(features), labels)
    excess = farthest_positive - nearest_negative  # (B,), -inf without a negative: both forms give 0
    violation = F.softplus(excess) if margin is None else F.relu(excess + margin)
    return violation.mean()


def margin_sample_mining(features: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Margin sample mining loss: one farthest positive and one nearest negative pair per batch (Xiao et al. 2017).

    max(0, P - N + margin). The two pairs need not share an image, unlike those of `batch_hard_triplet`. P is 0 if no
    two images share an identity; the result is 0 if all do.

    Shapes:
        features  (B, D)
        labels    (B,)
        returns   ()
    """
    farthest_positive, nearest_negative = hardest_distances(pairwise_distance(features), labels)
    return F.relu(farthest_positive.amax() - nearest_negative.amin() + margin)


def circle_loss(features: Tensor, labels: Tensor, *, m: float = 0.25, gamma: float = 128.0) -> Tensor:
    """Circle loss on the pairs of a batch (Sun et al. 2020), by the cosine s of the features.

    Per anchor log(1 + sum_n exp(gamma a_n (s_n - m)) sum_p exp(-gamma a_p (s_p - 1 + m))), the weights
    a_n = max(0, s_n + m) and a_p = max(0, 1 + m - s_p) taken as constants. The mean over the anchors that have a
    positive other than themselves and a negative; 0 if none has. A vector of zeros has cosine 0 with all, and no
    gradient.

    Shapes:
        features  (B, D)
        labels    (B,)
        returns   ()
    """
    features = _at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        norm = features.norm(dim=1, keepdim=True)
        directions = torch.where(norm < 1e-6, 0, features / norm.clamp(min=1e-6))
        cosine = directions @ directions.T  # (B, B)
    positive, negative = _pair_masks(labels)
    fixed = cosine.detach()
    push = gamma * F.relu(fixed + m) * (cosine - m)
    pull = -gamma * F.relu(1 + m - fixed) * (cosine - (1 - m))
    push = push.masked_fill(~negative, -torch.inf).logsumexp(1)  # (B,), -inf without a negative
    pull = pull.masked_fill(~positive, -torch.inf).logsumexp(1)
    usable = positive.any(1) & negative.any(1)
    return F.softplus(push + pull).sum() / usable.sum().clamp(min=1)


def hardest_distances(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the distances (B, B) every anchor's (B,) to its farthest positive, itself included, and nearest negative.

    The latter is inf where the batch has no other identity.
    """
    same = labels[:, None] == labels[None, :]
    return distance.masked_fill(~same, -torch.inf).amax(1), distance.masked_fill(same, torch.inf).amin(1)


def pairwise_distance(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) between the rows of features (B, D), with a gradient that stays finite at 0."""
    features = _at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        norm_sq = features.square().sum(1)
        distance_sq = norm_sq[:, None] + norm_sq[None, :] - 2 * features @ features.T
        return distance_sq.clamp(min=1e-12).sqrt()


class CenterLoss(nn.Module):
    """Half the squared distance to a learned centre of the identity (Wen et al. 2016), mean over batch and vectors.

    The paper sums over the batch; the mean keeps the loss independent of its size. The half is the paper's: code of the
    field, the study's too, leaves it out, so a weight from there is doubled here (0.005 there is 0.01). Each metric
    vector of a network lives in a space of its own and so has centres of its own, which start at N(0, 1). They are
    meant for plain SGD (`LossSum.center_optimizer`): a step moves a centre by lr n / (B V) of its way to the mean of
    its n images.

    Shapes:
        metric   V tensors (B, D)
        labels   (B,)
        returns  ()
        centers  (V, num_ids, D)   the parameter
    """

    def __init__(self, num_vectors: int, num_ids: int, dim: int) -> None:
        super().__init__()
        if min(num_vectors, num_ids, dim) < 1:
            raise ValueError(f"centres need a shape of at least (1, 1, 1), got {(num_vectors, num_ids, dim)}")
        self.centers = nn.Parameter(torch.randn(num_vectors, num_ids, dim))

    def forward(self, metric: Sequence[Tensor], labels: Tensor) -> Tensor:
        if len(metric) != len(self.centers):
            raise ValueError(f"centres for {len(self.centers)} metric vectors, got {len(metric)}")
        features = torch.stack(tuple(metric))  # (V, B, D)
        return 0.5 * (features - self.centers[:, labels]).square().sum(2).mean()


LossName = Literal["cross_entropy", "triplet", "soft_triplet", "msml", "center", "circle"]


class LossTerm(NamedTuple):
    """One term of a sum; the name is the one in the log."""

    name: LossName
    weight: float


def parse_loss(text: str) -> tuple[LossTerm, ...]:
    """The terms of a text such as "CrossEntropy + 2*Triplet", in its order.

    A term is `weight*name`, or `name` for weight 1. Blanks, case and underscores do not matter. The names, by the log:

        cross_entropy   CrossEntropy, CE, ID        soft_triplet   SoftTriplet
        triplet         Triplet                     center         CenterLoss, Center
        msml            MSMLLoss, MSML              circle         CircleLoss, Circle

    Raises:
        ValueError: an empty, unknown or repeated term, or a weight that is not a positive finite number; one line.
    """
    terms: list[LossTerm] = []
    for part in re.split(r"(?<![\d.]e)\+", text, flags=re.IGNORECASE):  # the + of 1e+3 is part of a number
        term = part.strip()
        if not term:
            raise ValueError(f"loss {text!r}: empty term; expected weight*name + weight*name, such as CE + 2*Triplet")
        factor, times, spelling = term.rpartition("*")
        weight = _parse_weight(term, factor.strip()) if times else 1.0
        name = _parse_name(term, spelling.strip())
        if name in {known for known, _ in terms}:
            raise ValueError(f"loss term {term!r}: {name} is there already; give one weight to each name")
        terms.append(LossTerm(name, weight))
    return tuple(terms)


def _parse_weight(term: str, factor: str) -> float:
    try:
        weight = float(factor)
    except ValueError:
        raise ValueError(
            f"loss term {term!r}: the weight {factor!r} is not a number; expected weight*name, such as 2*Triplet"
        ) from None
    if not 0 < weight < math.inf:
        raise ValueError(f"loss term {term!r}: the weight must be positive and finite, got {weight:g}")
    return weight


def _parse_name(term: str, spelling: str) -> LossName:
    match spelling.lower().replace("_", ""):
        case "crossentropy" | "ce" | "id":
            return "cross_entropy"
        case "triplet":
            return "triplet"
        case "softtriplet":
            return "soft_triplet"
        case "msmlloss" | "msml":
            return "msml"
        case "centerloss" | "center":
            return "center"
        case "circleloss" | "circle":
            return "circle"
    names = get_args(LossName)
    close = difflib.get_close_matches(spelling.lower(), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known names: {', '.join(names)}"
    raise ValueError(f"loss term {term!r}: unknown name {spelling!r}; {hint}")


class LossSum(nn.Module):
    """The weighted sum of loss terms, and each of them unweighted.

    cross_entropy is the mean over the classifiers of a network, every other term the mean over its metric vectors.
    `margin` is that of triplet and msml, `label_smoothing` that of cross_entropy; `metric_dims` holds the length of
    each metric vector. The parameters are the centres of center, if there is such a term, and have their own optimizer:

        centers = loss.center_optimizer()
        total.backward()
        centers.step()

    Shapes:
        logits   one (B, K) per classifier
        metric   one (B, D) per metric vector
        labels   (B,)
        targets  (B, K) probabilities that replace the labels in cross_entropy, smoothing included
        returns  total (), and the terms () under their names, in the order of `terms`

    Raises:
        ValueError: no terms; a term on metric vectors where there are none; center on vectors of unequal length.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        *,
        num_ids: int,
        metric_dims: Sequence[int],
        margin: float,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a loss needs at least one term")
        self.terms, self.margin, self.label_smoothing = tuple(terms), margin, label_smoothing
        self.center: CenterLoss | None = None
        for name, _ in self.terms:
            if name != "cross_entropy" and not metric_dims:
                raise ValueError(f"loss term {name}: needs metric vectors and this network has none; use cross_entropy")
            if name == "center":
                if len(set(metric_dims)) > 1:
                    raise ValueError(f"loss term center: needs metric vectors of one length, got {tuple(metric_dims)}")
                self.center = CenterLoss(len(metric_dims), num_ids, metric_dims[0])

    def forward(
        self, logits: Sequence[Tensor], metric: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, dict[LossName, Tensor]]:
        values = {name: self._value(name, logits, metric, labels, targets) for name, _ in self.terms}
        total = torch.stack([weight * values[name] for name, weight in self.terms]).sum()
        return total, values

    def _value(
        self,
        name: LossName,
        logits: Sequence[Tensor],
        metric: Sequence[Tensor],
        labels: Tensor,
        targets: Tensor | None,
    ) -> Tensor:
        match name:
            case "cross_entropy" if targets is not None:
                return _mean([cross_entropy(each, targets) for each in logits])
            case "cross_entropy":
                return _mean([cross_entropy(each, labels, label_smoothing=self.label_smoothing) for each in logits])
            case "triplet":
                return _mean([batch_hard_triplet(each, labels, margin=self.margin) for each in metric])
            case "soft_triplet":
                return _mean([batch_hard_triplet(each, labels, margin=None) for each in metric])
            case "msml":
                return _mean([margin_sample_mining(each, labels, margin=self.margin) for each in metric])
            case "circle":
                return _mean([circle_loss(each, labels) for each in metric])
            case "center":
                assert self.center is not None
                return self.center(metric, labels)

    def center_optimizer(self, lr: float = 0.5) -> torch.optim.SGD | None:
        """Plain SGD for the centres, or None without any.

        The centres move by lr times the gradient of the unweighted term: its weight decides how hard they pull at the
        features, not how fast they follow them. Plain SGD is linear, so dividing the gradients by the weight before a
        step is the same as dividing lr by it, which cannot be forgotten and suits accumulated and scaled gradients.
        """
        if self.center is None:
            return None
        return torch.optim.SGD(self.center.parameters(), lr=lr / dict(self.terms)["center"])


class Spread(NamedTuple):
    """How far apart the pictures of one person and of two people lie in a batch; nan where it has no such pair."""

    mean_positive: float
    """mean distance of two pictures of one identity"""
    mean_negative: float
    """mean distance of two identities' pictures"""
    relative: float
    """mean distance of two pictures over the mean norm of the features, the norm taken as at least 1e-3"""
    active_share: float
    """of the anchors with a negative, those whose `batch_hard_triplet` is not 0"""

    @property
    def collapsed(self) -> bool:
        """Whether the features tell nothing apart: nearly equal, or strangers no farther than a person from itself.

        A single batch can say so by chance, and an untrained network does: warn when it lasts.
        """
        # Distances in float32 are good to some 1e-3 of the norm.
        return self.relative < 0.01 or self.mean_negative <= self.mean_positive


@torch.no_grad()
def spread_of_distances(features: Tensor, labels: Tensor, *, margin: float) -> Spread:
    """Measure a batch for collapse. Waits for the device once.

    Shapes:
        features  (B, D)
        labels    (B,)
    """
    distance = pairwise_distance(features)  # (B, B)
    positive, negative = _pair_masks(labels)
    norm = _at_least_float32(features).norm(dim=1).mean()
    farthest_positive, nearest_negative = hardest_distances(distance, labels)
    active = (farthest_positive - nearest_negative + margin > 0).to(distance.dtype)
    values = (
        _masked_mean(distance, positive),
        _masked_mean(distance, negative),
        _masked_mean(distance, positive | negative) / norm.clamp(min=1e-3),
        _masked_mean(active, negative.any(1)),
    )
    return Spread(*torch.stack(values).tolist())


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum() / mask.sum()  # nan of nothing; values[mask] would wait for the device


def _pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs (B, B) are two pictures of one identity, and which of two."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
