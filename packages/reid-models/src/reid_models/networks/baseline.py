"""The baseline: a trunk with one bottleneck classifier. Small, and the teacher that DG-Net is trained with."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class ReidOutput(NamedTuple):
    """What a re-identification network says of a batch."""

    logits: Tensor
    """(B, K) scores of the training identities"""
    embeddings: Tensor
    """(B, D) vectors to rank by"""


class Baseline(nn.Module):
    """Trunk, global average pooling, linear bottleneck, batch norm, dropout, classifier.

    The embedding is what leaves the batch norm: no non-linearity, and dropout acts on the classifier's input only.
    Bottleneck and classifier are those of "person re-id baseline", the published teacher of DG-Net.

    Shapes:
        images   (B, 3, H, W)   normalised network input
        returns  ReidOutput(logits (B, num_ids), embeddings (B, bottleneck)), in training and in evaluation
    """

    def __init__(self, trunk: nn.Module, num_ids: int, *, bottleneck: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        if num_ids < 1:
            raise ValueError(f"num_ids must be at least 1, got {num_ids}")
        self.trunk = trunk
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Linear(int(trunk.num_features), bottleneck)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bottleneck, num_ids)
        self.num_features = bottleneck
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out")
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> ReidOutput:
        pooled = self.pool(self.trunk(images)).flatten(1)  # (B, C)
        embeddings = self.norm(self.reduce(pooled))
        return ReidOutput(self.classifier(self.dropout(embeddings)), embeddings)
