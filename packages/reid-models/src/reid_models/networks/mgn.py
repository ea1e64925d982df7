"""MGN: the person as a whole and in stripes of several heights, a branch of the network for each.

trunk = make_trunk("resnet50")
load_trunk_weights(trunk, "imagenet")
network = MGN(trunk, num_ids=751, granularities=parse_granularities("1-2-3"))
network.embed(images)      # (B, 2048)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from reid_models.networks.output import ReidOutput
from reid_models.networks.pooling import PoolKind, StripePool
from reid_models.networks.resnet import Trunk


class MGN(nn.Module):
    """Multiple Granularity Network (Wang et al. 2018) over any list of granularities, the first of which is 1.

    The first part of the trunk is shared, the rest copied for each branch: `trunk` comes with its weights loaded and
    stays as it is. Every branch describes the whole person; all but the first, which keep the resolution of the shared
    map, also each of their stripes. A head reduces a pooled vector to `head_features` numbers and classifies them.
    Heads, and with them embeddings and logits, are in this order: the branches' whole-person heads, then their stripes,
    branch by branch, each from top to bottom. The metric vectors are those of the whole-person heads.

    Defaults are those of the public repository MGN-pytorch, which differs from the paper: average pooling, the same
    reduced vectors for both losses. `neck` "bnneck" (Luo et al. 2019) is a batch norm without shift instead of batch
    norm and ReLU: what enters it is the metric vector, what leaves it embedding and classifier input, and classifiers
    have no bias, whatever `classifier_bias` is.

    Shapes:
        images   (B, 3, H, W)   normalised network input; ValueError when the map has fewer rows than stripes
        returns  ReidOutput(embeddings (B, R head_features), R x logits (B, num_ids), metric vectors (B, head_features),
                 one per branch) with R = num_features / head_features heads, in training and in evaluation
    """

    def __init__(
        self,
        trunk: Trunk,
        num_ids: int,
        granularities: Sequence[int] = (1, 2, 3),
        *,
        head_features: int = 256,
        pool: PoolKind = "avg",
        neck: Literal["relu", "bnneck"] = "relu",
        classifier_bias: bool = True,
        first_stride: int = 2,
    ) -> None:
        super().__init__()
        _refuse_bad_granularities(granularities)
        if num_ids < 1:
            raise ValueError(f"num_ids must be at least 1, got {num_ids}")
        if head_features < 1:
            raise ValueError(f"head_features must be at least 1, got {head_features}")
        if neck not in ("relu", "bnneck"):
            raise ValueError(f"neck must be 'relu' or 'bnneck', got {neck!r}")
        if first_stride not in (1, 2):
            raise ValueError(f"first_stride must be 1 or 2, got {first_stride}")
        num_branches, stripes = len(granularities), granularities[1:]
        num_heads = num_branches + sum(stripes)
        self.granularities = tuple(granularities)
        self.num_features = num_heads * head_features
        self.shared = trunk.shared_part()
        self.branches = nn.ModuleList(trunk.branch(first_stride if b == 0 else 1) for b in range(num_branches))
        self.pools = nn.ModuleList(StripePool(number, pool) for number in (*num_branches * [1], *stripes))
        # One draw for all heads, as in the original: they start equal and are told apart by where they look.
        reduce = nn.Conv2d(trunk.num_features, head_features, 1, bias=False)
        norm = nn.BatchNorm2d(head_features)
        nn.init.kaiming_normal_(reduce.weight)
        nn.init.normal_(norm.weight, mean=1.0, std=0.02)
        self.heads: Sequence[_Head] = nn.ModuleList(  # type: ignore[assignment]
            _Head(copy.deepcopy(reduce), copy.deepcopy(norm), num_ids, neck, classifier_bias) for _ in range(num_heads)
        )

    def forward(self, images: Tensor) -> ReidOutput:
        metric, embeddings = self._vectors(images)
        logits = tuple(head.classifier(vectors) for head, vectors in zip(self.heads, embeddings, strict=True))
        return ReidOutput(torch.cat(embeddings, dim=1), logits, tuple(metric[: len(self.granularities)]))

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the vectors to rank by (B, num_features), without classifying anything."""
        return torch.cat(self._vectors(images)[1], dim=1)

    def _vectors(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For each head what metric losses compare, and the embedding; (B, head_features) each."""
        shared = self.shared(images)
        maps = [branch(shared) for branch in self.branches]
        pooled = [pool(map) for pool, map in zip(self.pools, [*maps, *maps[1:]], strict=True)]  # (B, C, S, 1) each
        by_head = [vector for stripes in pooled for vector in stripes.split(1, dim=2)]  # (B, C, 1, 1) each
        pairs = [head(vector) for head, vector in zip(self.heads, by_head, strict=True)]
        return [metric for metric, _ in pairs], [embedding for _, embedding in pairs]


class _Head(nn.Module):
    """A pooled vector (B, C, 1, 1) to its metric vector and its embedding (B, D), which the classifier takes."""

    def __init__(
        self, reduce: nn.Conv2d, norm: nn.BatchNorm2d, num_ids: int, neck: Literal["relu", "bnneck"], bias: bool
    ) -> None:
        super().__init__()
        self.reduce, self.norm, self.neck = reduce, norm, neck
        self.classifier = nn.Linear(reduce.out_channels, num_ids, bias=bias and neck == "relu")
        nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out")
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)
        if neck == "bnneck":
            norm.bias.requires_grad_(False)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        reduced = self.reduce(pooled)
        normed = self.norm(reduced).flatten(1)
        if self.neck == "bnneck":
            return reduced.flatten(1), normed
        embeddings = normed.relu()
        return embeddings, embeddings


def parse_granularities(text: str) -> tuple[int, ...]:
    """Granularities as they are written: "1-2-3" is (1, 2, 3).

    Raises:
        ValueError: anything but numbers, the first not 1, or another below 2.
    """
    words = text.split("-")
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"granularities must be numbers joined by -, such as 1-2-3, got {text!r}")
    granularities = tuple(int(word) for word in words)
    _refuse_bad_granularities(granularities)
    return granularities


def _refuse_bad_granularities(granularities: Sequence[int]) -> None:
    if not granularities or granularities[0] != 1 or min(granularities[1:], default=2) < 2:
        raise ValueError(
            "granularities must be 1 (the whole person), then numbers of stripes of at least 2, such as 1-2-3, "
            f"got {'-'.join(map(str, granularities)) or 'none'}"
        )
