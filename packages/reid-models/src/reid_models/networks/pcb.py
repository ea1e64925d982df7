"""PCB: the person in stripes of equal height, each with a classifier of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reid_models.networks.output import ReidOutput
from reid_models.networks.pooling import StripePool
from reid_models.networks.resnet import Trunk


class PCB(nn.Module):
    """Part-based Convolutional Baseline (Sun et al. 2018), in the form of "person re-id baseline".

    The trunk's map is averaged over each stripe; dropout; then per stripe linear bottleneck, batch norm, dropout,
    classifier. The embedding is what is pooled, before all that: the vectors of the stripes, top first, each scaled to
    length 1 / sqrt(num_stripes), so that every stripe counts the same and the whole has length 1. The published trunk
    has last stride 1, and there is nothing for a metric loss to compare.

    Shapes:
        images   (B, 3, H, W)   normalised network input; ValueError when the map has fewer rows than stripes
        returns  ReidOutput(embeddings (B, num_stripes trunk.num_features), num_stripes x logits (B, num_ids), no
                 metric vectors), in training and in evaluation
    """

    def __init__(
        self, trunk: Trunk, num_ids: int, *, num_stripes: int = 6, head_features: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if num_ids < 1:
            raise ValueError(f"num_ids must be at least 1, got {num_ids}")
        if head_features < 1:
            raise ValueError(f"head_features must be at least 1, got {head_features}")
        self.trunk = trunk
        self.pool = StripePool(num_stripes)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(
            _Head(trunk.num_features, head_features, num_ids, dropout) for _ in range(num_stripes)
        )
        self.num_features = num_stripes * trunk.num_features

    def forward(self, images: Tensor) -> ReidOutput:
        stripes = self._stripes(images)
        dropped = self.dropout(stripes)
        logits = tuple(head(dropped[:, number]) for number, head in enumerate(self.heads))
        return ReidOutput(_unit_length(stripes), logits, ())

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the vectors to rank by (B, num_features), without classifying anything."""
        return _unit_length(self._stripes(images))

    def _stripes(self, images: Tensor) -> Tensor:
        return self.pool(self.trunk(images)).squeeze(3).transpose(1, 2)  # (B, S, C)


def _unit_length(stripes: Tensor) -> Tensor:
    """Stripes (B, S, C) to vectors (B, S C) of length 1, to which every stripe contributes the same."""
    return F.normalize(stripes, dim=2).flatten(1) / stripes.shape[1] ** 0.5


class _Head(nn.Module):
    """Vectors of one stripe (B, C) to logits (B, K)."""

    def __init__(self, in_features: int, head_features: int, num_ids: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_features, head_features)
        self.norm = nn.BatchNorm1d(head_features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head_features, num_ids)
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out")
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.norm(self.reduce(vectors))))
