"""Who appears in whose pose: the plans of offline generation, as pairs of rows of an index.

    plan = plan_generation(index)                              # published: everybody's pictures once, a round
    plan = plan_generation(index, count=5000, kind="random", seed=3)
    plan = plan_generation(index, kind="per-identity 8")       # or "all-pairs", or a table "wishes.csv"

A plan depends on the index, the kind, the count and the seed alone. Its pairs are sorted by structure, then by
appearance, which is the order the pictures are made in: so a structure is needed once and then never again.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord

Grouping = Literal["appearance", "structure"]

_PER_IDENTITY = re.compile(r"per-identity[ :=]+(\d{1,9})")


@dataclass(frozen=True)
class PlannedImage:
    """One picture to be made."""

    structure: ImageRecord
    appearance: ImageRecord


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """Pairs of rows of an index, with what they were drawn from."""

    index: DatasetIndex = field(repr=False)
    pairs: np.ndarray = field(repr=False)
    """(N, 2) int32 rows: structure, appearance"""
    kind: str
    seed: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> PlannedImage:
        structure, appearance = self.pairs[position].tolist()
        return PlannedImage(self.index[structure], self.index[appearance])

    def __iter__(self) -> Iterator[PlannedImage]:
        return (self[position] for position in range(len(self)))

    def file(self, position: int, suffix: str, grouping: Grouping = "appearance") -> str:
        """A picture's name relative to the output folder: an identity, then both parents' names."""
        structure, appearance = self.pairs[position].tolist()
        pid = self.index[appearance if grouping == "appearance" else structure].pid
        folder = f"{pid:04d}" if pid >= 0 else str(pid)
        return f"{folder}/{self._names[appearance]}__in__{self._names[structure]}{suffix}"

    @cached_property
    def _names(self) -> list[str]:
        """A name for every row that no other row has: its file's, with its folders where that is not enough."""
        paths = [Path(os.path.relpath(record.path, self.index.root)) for record in self.index]
        for names in (
            [path.stem for path in paths],
            ["-".join(path.with_suffix("").parts) for path in paths],
            ["-".join(path.parts) for path in paths],
        ):
            if len(set(names)) == len(names):
                return names
        return [f"{name}-{row}" for row, name in enumerate(names)]


def plan_generation(
    index: DatasetIndex, count: int | None = None, *, kind: str = "published", seed: int = 0
) -> GenerationPlan:
    """Draw a plan of one of these kinds; no pair comes twice in any.

    published: a round gives every picture's appearance the structure of a picture of somebody else, every structure
        used once too, as far as that can be. `count` asks for several rounds, or a random part of the last one.
    random: every appearance takes a structure of somebody else at random; `count` as above.
    all-pairs: every appearance in every structure of somebody else.
    per-identity N: N pictures of every person, going through their own pictures.
    a .csv: its rows, columns structure and appearance; files relative to the index's folder, or names alone.

    Raises:
        DatasetError: an unknown kind, a single identity, more pictures asked for than there are pairs, `count` with a
            kind that has its own, or a table that names no pictures of the index.
    """
    if kind.lower().endswith(".csv"):
        pairs = _listed(index, Path(kind))
        _refuse_count(count, kind)
    else:
        if index.num_ids < 2:
            raise DatasetError(f"{index.root}: {index.num_ids} identity; swapping takes at least 2")
        per_identity = _PER_IDENTITY.fullmatch(kind)
        if kind == "published":
            pairs = _in_rounds(index, count, seed)
        elif kind == "random":
            pairs = _at_random(index, count, seed)
        elif kind == "all-pairs":
            _refuse_count(count, kind)
            pairs = _everybody(index)
        elif per_identity:
            _refuse_count(count, kind)
            pairs = _of_each_person(index, int(per_identity[1]), seed)
        else:
            raise DatasetError(
                f"--plan {kind}: expected published, random, all-pairs, 'per-identity N' or a table's name ending "
                "in .csv"
            )
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return GenerationPlan(index, np.ascontiguousarray(pairs[order], np.int32), kind, seed)


def _refuse_count(count: int | None, kind: str) -> None:
    if count is not None:
        raise DatasetError(f"--count {count}: --plan {kind} has a number of its own; use --plan random or published")


def _wanted(index: DatasetIndex, count: int | None) -> int:
    possible = _possible(index.pids)
    wanted = len(index) if count is None else count
    if not 1 <= wanted <= possible:
        raise DatasetError(
            f"--count {wanted}: {index.root} has {possible} pairs of different people; choose 1 to {possible}"
        )
    return wanted


def _at_random(index: DatasetIndex, count: int | None, seed: int) -> np.ndarray:
    wanted = _wanted(index, count)
    pids = index.pids
    others = {pid: np.flatnonzero(pids != pid) for pid in index.labels}
    rng = np.random.default_rng([seed, 11])
    seen: dict[tuple[int, int], None] = {}
    while len(seen) < wanted:
        order = np.arange(len(index)) if count is None else rng.permutation(len(index))
        for appearance in order.tolist():
            if len(seen) == wanted:
                break
            seen[int(rng.choice(others[int(pids[appearance])])), appearance] = None
    return np.array(list(seen), np.int64)


def _in_rounds(index: DatasetIndex, count: int | None, seed: int) -> np.ndarray:
    wanted = _wanted(index, count)
    number, pids = len(index), index.pids
    rng = np.random.default_rng([seed, 12])
    seen: set[int] = set()  # structure * number + appearance
    while len(seen) < wanted:
        before = np.fromiter(seen, np.int64, len(seen))
        structure_of = rng.permutation(number)
        everybody = np.arange(number)

        def forbidden(structures: np.ndarray, appearances: np.ndarray, before: np.ndarray = before) -> np.ndarray:
            return (pids[structures] == pids[appearances]) | np.isin(structures * number + appearances, before)

        # Who met himself, or a partner of an earlier round, changes places with somebody who may.
        for appearance in np.flatnonzero(forbidden(structure_of, everybody)).tolist():
            own = np.full(number, appearance)
            fits = ~forbidden(structure_of, own) & ~forbidden(np.full(number, structure_of[appearance]), everybody)
            if (partners := np.flatnonzero(fits)).size:
                partner = int(rng.choice(partners))
                structure_of[[appearance, partner]] = structure_of[[partner, appearance]]
            elif (free := np.flatnonzero(~forbidden(everybody, own))).size:
                structure_of[appearance] = rng.choice(free)  # one that is used twice then
        made = np.flatnonzero(~forbidden(structure_of, everybody))
        if len(made) > wanted - len(seen):
            made = rng.permutation(made)[: wanted - len(seen)]
        seen.update((structure_of[made] * number + made).tolist())
    codes = np.fromiter(seen, np.int64, len(seen))
    return np.stack([codes // number, codes % number], axis=1)


def _everybody(index: DatasetIndex) -> np.ndarray:
    pids = index.pids
    pairs = np.empty((_possible(pids), 2), np.int32)
    filled = 0
    for structure in range(len(index)):
        others = np.flatnonzero(pids != pids[structure])
        pairs[filled : filled + len(others), 0] = structure
        pairs[filled : filled + len(others), 1] = others
        filled += len(others)
    return pairs


def _possible(pids: np.ndarray) -> int:
    _, sizes = np.unique(pids, return_counts=True)
    return int(len(pids) ** 2 - (sizes**2).sum())


def _of_each_person(index: DatasetIndex, each: int, seed: int) -> np.ndarray:
    pids = index.pids
    rng = np.random.default_rng([seed, 13])
    pairs: list[tuple[int, int]] = []
    for pid in index.labels:
        own, others = np.flatnonzero(pids == pid), np.flatnonzero(pids != pid)
        if not 1 <= each <= len(own) * len(others):
            raise DatasetError(
                f"--plan per-identity {each}: person {pid} has {len(own) * len(others)} pairs with others; choose 1 "
                "to the smallest such number"
            )
        # Round r gives picture k of the person partner k + r of a shuffled list that is long enough for all rounds.
        own = rng.permutation(own)
        partners = [rng.permutation(others) for _ in own]
        pairs += [(int(partners[k % len(own)][k // len(own)]), int(own[k % len(own)])) for k in range(each)]
    return np.array(pairs, np.int64)


def _listed(index: DatasetIndex, file: Path) -> np.ndarray:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(
            f"--plan {file}: no such file; expected a table with the columns structure,appearance"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"--plan {file}: no readable table ({error}); save it as CSV in UTF-8") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"structure", "appearance"} <= set(table.fieldnames or ()):
        raise DatasetError(f"{file}: expected the columns structure,appearance in the first line")
    row_of: dict[str, int | None] = {}
    for row, record in enumerate(index):
        row_of[record.path.name] = None if record.path.name in row_of else row
    for row, record in enumerate(index):
        row_of[os.path.relpath(record.path, index.root).replace(os.sep, "/")] = row
        row_of[str(record.path)] = row
    pairs: dict[tuple[int, int], None] = {}
    for values in table:
        where = f"{file}, line {table.line_num}"
        rows = []
        for column in ("structure", "appearance"):
            name = (values[column] or "").strip().replace("\\", "/")
            found = row_of.get(name, -1)
            if found is None:
                raise DatasetError(f"{where}: several pictures are called {name}; give the path from {index.root} on")
            if found < 0:
                raise DatasetError(
                    f"{where}: no training picture {name!r} in {index.root}; expected a file's name, or its path from "
                    "there on"
                )
            rows.append(found)
        if (rows[0], rows[1]) in pairs:
            raise DatasetError(f"{where}: this pair is listed above already; remove the line")
        pairs[rows[0], rows[1]] = None
    if not pairs:
        raise DatasetError(f"{file}: no rows; expected a pair of pictures per line")
    return np.array(list(pairs), np.int64)
