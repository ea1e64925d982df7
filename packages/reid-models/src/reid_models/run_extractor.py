"""A trained run as the features that reid-eval measures sets of pictures in: its `--extractor reid:RUN`.

The checkpoint's bytes decide the vectors, so reid-eval finds what it has kept without the network: that is built, and
torch imported, when the first pictures come.

    extractor = RunExtractor("runs/teacher")
    extractor([pixels, pixels])                 # (2, num_features)
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import reid_models
from reid_eval.files import file_fingerprint, fingerprint
from reid_models.runs import RunDir

if TYPE_CHECKING:
    from reid_models.extraction import NetworkEmbedder, Which


class RunExtractor:
    """An `Extractor` of the newest checkpoint of a run, or of what an installed package embeds in a run's place.

    Raises:
        CheckpointError: there is no such run, or it has no checkpoint yet.
    """

    quotable = True

    def __init__(self, run: Path | str, device: str = "auto") -> None:
        self.run, self.device = Path(run), device
        self._which: Which = "last"
        if (self.run / "run.json").is_file():
            # By its number: a training may go on meanwhile, and its newest checkpoint become another.
            file = RunDir.open(self.run).checkpoint_file("last")
            self._which = int(file.stem)
            sha256 = file_fingerprint(file)
            made_of = [reid_models.__version__, self.run.resolve().name, file.name, sha256]
            self.weights = {"checkpoint": sha256}
        else:  # a published folder, which only its own package can read
            made_of = [self.description, self._embedder.fingerprint]
            self.weights = {"published folder": self._embedder.fingerprint}
        self.fingerprint = fingerprint(made_of)

    @cached_property
    def _embedder(self) -> NetworkEmbedder:
        from reid_models.extraction import load_embedder

        return load_embedder(self.run, self._which, self.device)

    @property
    def name(self) -> str:
        """The network's, such as reid:teacher@1000."""
        return self._embedder.name

    @property
    def num_features(self) -> int:
        """D."""
        return self._embedder.num_features

    @property
    def description(self) -> str:
        """Network and resize."""
        height, width = self._embedder.image_hw
        return f"embeddings of {self.name}, {self.num_features} features, bicubic to {height}x{width}"

    def __call__(self, pixels_batch: list[np.ndarray], /) -> np.ndarray:
        """Pixels of any sizes to embeddings (B, num_features), float32, of whatever length they have."""
        import torch

        from reid_models.data.transforms import eval_transform

        images = torch.stack([eval_transform(pixels, self._embedder.image_hw) for pixels in pixels_batch])
        return self._embedder.embed(images).numpy()
