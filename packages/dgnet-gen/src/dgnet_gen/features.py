"""Vectors to rank by from a trained DG-Net: what `reid-models extract --run` takes for its runs and published folders.

The appearance encoder is a re-identification network with two heads. The published evaluation takes each head's
embedding, of a picture and of its mirror image, to length 1, adds the two, and takes the sum to length 1 again: the
primary part p and the fine-grained part f of a picture. A query q and a gallery picture g score
<p_q, p_g> + alpha <f_q, f_g>; alpha is 0.5 as published, 0 for the primary part alone, and -1 says the fine part alone.

There are two ways to write them:

- with an alpha: [p, sqrt(alpha) f] taken to length 1 (for -1: [0, f]). The parts are weighted by the root of their
  weight on both sides, so any ranking by cosine or Euclidean distance is the published one. The program itself weighs
  the query alone.
- with alpha "parts": [p, f] as they are, each of length 1, and the file's meta says where they stand, in the words of
  `reid_eval`: {"parts": {"coarse": [0, D], "fine": [D, 2 D]}}, coarse being p. Every alpha is made from them by the
  formula above, without another extraction.

The published pytorch_result.mat holds [p, f] too, see `published_result`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_gen.exchange import PublishedFolder
from dgnet_gen.model import DGNet, unit_parts
from dgnet_gen.networks.encoders import AppearanceEncoder
from reid_models.config import ConfigError
from reid_models.extraction import NetworkEmbedder
from reid_models.runs import RunDir
from reid_models.runtime import Runtime

ALPHA = 0.5
"""the published weight of the fine-grained head"""


class _Heads(nn.Module):
    """The appearance encoder as something that embeds."""

    def __init__(self, encoder: AppearanceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.primary.reduce.out_features * encoder.num_heads

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the heads' embeddings side by side, each of length 1."""
        return unit_parts(self.encoder(images).embeddings.float(), self.encoder.num_heads)


Alpha = float | Literal["parts"]


class DGNetEmbedder(NetworkEmbedder):
    """An `Embedder` of a DG-Net's two heads. `alpha` weighs the fine-grained one; 0 is the primary alone, -1 the fine.

    "parts" leaves both as they are, so that alpha can be chosen later; `parts` says then where they stand.

    Raises:
        ConfigError: `alpha` is neither -1 nor from 0 on, or the network has one head and `alpha` is not 0.
    """

    parts: dict[str, list[int]] | None = None
    """for a feature file's meta"""

    def __init__(self, model: DGNet, runtime: Runtime, *, alpha: Alpha | None, compile: bool = False, **made_by: Any):
        self.num_heads = model.appearance_encoder.num_heads
        self.alpha: Alpha = alpha if alpha is not None else ALPHA if self.num_heads == 2 else 0.0
        if self.alpha == "parts":
            if self.num_heads == 1:
                raise ConfigError(
                    f"{made_by['run']}: this network has one head, so there is nothing to weigh; take its vectors as "
                    "they are (reid-models extract without --alpha), and rank those"
                )
            length = model.appearance_encoder.primary.reduce.out_features
            self.parts = {"coarse": [0, length], "fine": [length, 2 * length]}
        elif not (self.alpha == -1 or 0 <= self.alpha < math.inf):
            raise ConfigError(f"--alpha {self.alpha:g}: expected 0 or more, or -1 for the fine-grained head alone")
        elif self.num_heads == 1 and self.alpha != 0:
            raise ConfigError(f"--alpha {self.alpha:g}: this network has one head and nothing to weigh")
        super().__init__(
            _Heads(model.appearance_encoder),
            name=f"dgnet:{made_by['run']}@{model.iteration}",
            image_hw=model.image_hw,
            runtime=runtime,
            made_by=made_by | {"iteration": model.iteration, "checkpoint": model.checkpoint_id, "alpha": self.alpha},
            compile=compile,
        )

    def finish(self, vectors: Tensor) -> Tensor:
        """The sum over views (B, D) to vectors of length 1, whose parts weigh 1 and alpha; or to parts of length 1."""
        whole = unit_parts(vectors, self.num_heads)
        if self.alpha == "parts":
            return whole
        parts = whole.unflatten(1, (self.num_heads, -1))
        primary, fine = (0.0, 1.0) if self.alpha == -1 else (1.0, self.alpha)
        weights = torch.tensor([primary, fine][: self.num_heads]).sqrt()
        return F.normalize((parts * weights[:, None]).flatten(1), dim=1)


def load_embedder(
    run: Path | str,
    which: int | Literal["last", "best"] = "last",
    device: str = "auto",
    *,
    half: bool = False,
    compile: bool = False,
    alpha: Alpha | None = None,
) -> DGNetEmbedder | None:
    """The embedder of a DG-Net run or of a published folder; None when `run` is neither. For `alpha` see above.

    Raises:
        CheckpointError, WeightsError, ConfigError: no such iteration, it cannot be used, or `alpha` makes no sense.
    """
    run = Path(run)
    is_ours = (run / "run.json").is_file() and RunDir.open(run).kind == "dgnet"
    if not is_ours and not PublishedFolder.is_one(run):
        return None
    model = DGNet.load(run, which, device="cpu")
    runtime = Runtime.for_inference(device, half=half)
    return DGNetEmbedder(model, runtime, alpha=alpha, compile=compile, run=str(run.resolve().name))
