"""Who was searched for among whom, as hashes: what two rankings have to share if their numbers are compared.

    data = RankedData.of(features, query_rows, gallery_rows, cameras=True)
    data.record        # {"data": "eebff4501da55b61", "picture names": ..., "flip": True}

The vectors do not count, nor does the order of the rows, nor what is carried along unranked. Hashes are made when they
are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from reid_eval.features import ReidFeatures, named
from reid_eval.files import fingerprint

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class RankedData:
    """The ranked rows of a feature file without their vectors, queries first.

    Shapes: roles (0 query, 1 gallery), pids, camids, paths (Q + G,). `cameras` says whether cameras count.
    """

    roles: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    paths: np.ndarray
    meta: Mapping[str, Any]
    cameras: bool

    @classmethod
    def of(
        cls, features: ReidFeatures, query_rows: np.ndarray, gallery_rows: np.ndarray, *, cameras: bool
    ) -> RankedData:
        """The rows that take part in a ranking; the same row may be both."""
        rows = np.concatenate([query_rows, gallery_rows])
        roles = np.repeat([0, 1], [len(query_rows), len(gallery_rows)])
        return cls(roles, features.pids[rows], features.camids[rows], features.paths[rows], features.meta, cameras)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Hashes of identities and, where they count, cameras; of pictures, if they have names; and what is known of
        the choices by which pictures became vectors.
        """
        pids, people = _canonical(self.pids, self.meta, "names")
        camids, cameras = _canonical(self.camids, self.meta, "camera_names")
        if not self.cameras:
            camids, cameras = np.zeros_like(camids), []
        order = np.lexsort((camids, pids, self.roles))
        labels = np.stack([self.roles, pids, camids])[:, order].astype("<i8")
        record: dict[str, Any] = {"data": fingerprint([*people, "cameras", *cameras, labels.tobytes()])}
        if self.meta.get("picture_names", True):
            record["picture names"] = self._hash_of_names(pids)
        network = self.meta.get("network_made_by")
        alpha = self.meta.get("alpha", network.get("alpha") if isinstance(network, dict) else None)
        known = {"flip": self.meta.get("flip"), "alpha": alpha}
        return record | {key: value for key, value in known.items() if value is not None}

    def _hash_of_names(self, pids: np.ndarray) -> str:
        """Of file names alone, since programs write paths of different beginnings; a sum of hashes knows no order."""
        total = 0
        for start in range(0, len(pids), _ROWS):
            some = (array[start : start + _ROWS].tolist() for array in (self.paths, self.roles, pids))
            for path, role, pid in zip(*some, strict=True):
                line = f"{path.rsplit('/', 1)[-1]}\0{role}\0{pid}".encode("utf-8", "surrogatepass")
                total += int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little")
        return f"{total % 2**64:016x}"


def _canonical(numbers: np.ndarray, meta: Mapping[str, Any], kind: str) -> tuple[np.ndarray, list[str]]:
    """Labels as they are or, where they stand for words, by the places of these words among all that occur."""
    found, places = np.unique(numbers, return_inverse=True)
    names = [named(meta, kind, number) for number in found.tolist()]
    if names == found.tolist():
        return numbers, []
    texts = [str(name) for name in names]
    order = np.argsort(np.argsort(np.array(texts)))
    return order[places], sorted(texts)
