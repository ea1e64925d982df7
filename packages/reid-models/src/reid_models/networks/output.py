"""What every re-identification network says of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ReidOutput(NamedTuple):
    """What `forward` returns, training or not; `embed` returns the embeddings alone and classifies nothing."""

    embeddings: Tensor
    """(B, D) vectors to rank by"""
    logits: tuple[Tensor, ...]
    """(B, K) scores of the training identities, one per classifier; the identity loss is the mean over them"""
    metric: tuple[Tensor, ...]
    """(B, d) vectors that metric losses compare, each of its own length; a metric loss is the mean over them"""
