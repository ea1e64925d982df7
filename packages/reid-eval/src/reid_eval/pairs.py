"""Which pictures are compared with which: within identities, by equal names, or as a table says.

identity_pairs("fake", list_images("fake"), pairs=10, seed=0)   # IdentityPairs: of the same folder, at random
pairs_by_name("made", "truth")                                  # NamedPairs: of equal relative path
pairs_from_table("pairs.csv", "made", "truth")                  # NamedPairs: first,second per line
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.files import fingerprint, list_images
from reid_eval.tables import portable, read_table

logger = logging.getLogger(__name__)


class PairsError(ReidError):
    """There are no pairs to compare, or it is not clear which."""


@dataclass(frozen=True)
class IdentityPairs:
    """Pairs of pictures of one identity each, `round_of` saying in which round each was drawn (from 0)."""

    pairs: list[tuple[Path, Path]]
    round_of: list[int]
    num_folders: int
    num_single: int
    num_beside: int
    """pictures that lie beside the identities' folders"""

    @property
    def remarks(self) -> str:
        """What was left out, in a sentence or two."""
        beside = f" {self.num_beside} pictures beside the folders left out." if self.num_beside else ""
        return f"{self.num_single} folders of a single picture skipped.{beside}"


def identity_pairs(
    root: Path | str, paths: Sequence[Path], *, pairs: int = 10, seed: int = 0, rounds: int = 1
) -> IdentityPairs:
    """`pairs` random pairs of different pictures of each identity's folder, in each of `rounds`.

    `root` holds one folder per identity, at any depth; each folder's pairs follow from `seed` and its own name.
    Folders of one picture are skipped and counted, and so are pictures beside the folders.

    Raises:
        PairsError: no folder below `root` holds two pictures, or a number is out of its range.
    """
    root = Path(root)
    if pairs < 1 or rounds < 1:
        raise PairsError(f"pairs = {pairs}, rounds = {rounds}: expected at least 1 pair per identity")
    if seed < 0:
        raise PairsError(f"seed = {seed}: expected 0 or more")
    folders = pictures_by_folder(root, paths)
    varied = {folder: members for folder, members in folders.items() if len(members) > 1}
    if not varied:
        raise PairsError(
            f"{root}: {len(paths)} pictures in {len(folders)} folders, none of which holds two pictures; "
            "expected one folder per identity"
        )
    found: list[tuple[Path, Path]] = []
    round_of = []
    for folder, members in sorted(varied.items()):
        rng = np.random.default_rng([seed, int(fingerprint([folder.relative_to(root).as_posix()]), 16)])
        for number in range(pairs * rounds):
            first, second = rng.choice(len(members), 2, replace=False)
            found.append((members[first], members[second]))
            round_of.append(number // pairs)
    num_beside = len(paths) - sum(map(len, folders.values()))
    return IdentityPairs(found, round_of, len(varied), len(folders) - len(varied), num_beside)


def pictures_by_folder(root: Path, paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Pictures by the folder they lie in, without those directly in `root`."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        if path.parent != root:
            folders.setdefault(path.parent, []).append(path)
    return folders


@dataclass(frozen=True)
class NamedPairs:
    """A picture of the first folder and its partner in the second each; `num_alone` have no partner."""

    pairs: list[tuple[Path, Path]]
    num_alone: int


def pairs_by_name(first: Path | str, second: Path | str) -> NamedPairs:
    """The pictures that two folders hold under the same relative path, whatever the suffix.

    Raises:
        PairsError: no path is in both folders, or a folder has two pictures of one name.
        ImageError: a folder is missing.
    """
    sides = [_by_stem(Path(first)), _by_stem(Path(second))]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise PairsError(
            f"{first} ({len(sides[0])} pictures) and {second} ({len(sides[1])} pictures): no relative path is in both; "
            "expected the same folders and names on both sides, or a table of pairs (--pairs-file)"
        )
    return NamedPairs(
        [(sides[0][stem], sides[1][stem]) for stem in common], len(sides[0]) + len(sides[1]) - 2 * len(common)
    )


def pairs_from_table(table: Path | str, first: Path | str, second: Path | str) -> NamedPairs:
    """The pairs of a .csv file: the columns `first` and `second` hold paths, absolute or relative to the two folders.

    Raises:
        PairsError: there is no such table, it lacks the columns, has no rows, or names a file that is not there.
    """
    rows = read_table(table, PairsError, required=["first", "second"], expected="a table (.csv) of pairs, first,second")
    if not rows:
        raise PairsError(f"{table}: column names and no rows; expected a row per pair")
    pairs = []
    for line, row in rows:
        files = [Path(root) / portable(row[name]) for name, root in (("first", first), ("second", second))]
        for file in files:
            if not os.path.isfile(file):
                raise PairsError(f"{table}, line {line}: {file}: no such file")
        pairs.append((files[0], files[1]))
    if repeated := len(pairs) - len(set(pairs)):
        logger.warning("%s: %d rows repeat a pair that stands above them, and count again", table, repeated)
    listed = [set(list_images(root)) - {pair[side] for pair in pairs} for side, root in enumerate((first, second))]
    return NamedPairs(pairs, len(listed[0]) + len(listed[1]))


def _by_stem(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(root):
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise PairsError(f"{path} and {found[stem].name} differ only in their suffix: which one is meant?")
        found[stem] = path
    return found
