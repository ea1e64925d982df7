"""The baseline: a trunk with one bottleneck classifier. Small, and the teacher that DG-Net is trained with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reid_models.networks.output import ReidOutput
from reid_models.networks.resnet import Trunk


class Baseline(nn.Module):
    """Trunk, global average pooling, linear bottleneck, batch norm, dropout, classifier.

    The embedding is what leaves the batch norm: no non-linearity, and dropout acts on the classifier's input only.
    It is the metric vector too.
    Bottleneck and classifier are those of "person re-id baseline", the published teacher of DG-Net. With `leaky` a
    leaky ReLU (0.1) stands before the dropout, as it did there in 2018.

    Shapes:
        images   (B, 3, H, W)   normalised network input
        returns  ReidOutput(embeddings (B, bottleneck), logits (B, num_ids), metric (B, bottleneck)), the last two in
                 tuples of one, in training and in evaluation
    """

    def __init__(
        self, trunk: Trunk, num_ids: int, *, bottleneck: int = 512, dropout: float = 0.5, leaky: bool = False
    ) -> None:
        super().__init__()
        if num_ids < 1:
            raise ValueError(f"num_ids must be at least 1, got {num_ids}")
        self.trunk = trunk
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Linear(trunk.num_features, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.leaky = leaky
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bottleneck, num_ids)
        self.num_features = bottleneck
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out")
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> ReidOutput:
        embeddings = self.embed(images)
        bent = F.leaky_relu(embeddings, 0.1) if self.leaky else embeddings
        return ReidOutput(embeddings, (self.classifier(self.dropout(bent)),), (embeddings,))

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the vectors to rank by (B, bottleneck), without classifying anything."""
        pooled = self.pool(self.trunk(images)).flatten(1)  # (B, C)
        return self.norm(self.reduce(pooled))
