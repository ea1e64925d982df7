"""Who appears in whose pose: the plans of offline generation, as pairs of rows of an index.

    plan = plan_generation(index)                              # published: everybody's pictures once, a round
    plan = plan_generation(index, count=5000, kind="random", seed=3)
    plan = plan_generation(index, kind="per-identity 8")       # or "all-pairs", or a table "wishes.csv"

A plan depends on the index, the kind, the count and the seed alone. Its pairs are sorted by structure, then by
appearance, which is the order the pictures are made in: so a structure is needed once and then never again.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from reid_eval.files import short_name
from reid_eval.tables import portable, read_table
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
        """A picture's name relative to the output folder: an identity, then both parents' names.

        What is longer than a file's name may be is shortened, and stays apart from all others.
        """
        structure, appearance = self.pairs[position].tolist()
        pid = self.index[appearance if grouping == "appearance" else structure].pid
        folder = f"{pid:04d}" if pid >= 0 else str(pid)
        return f"{folder}/{short_name(f'{self._names[appearance]}__in__{self._names[structure]}{suffix}')}"

    @cached_property
    def relative_paths(self) -> list[str]:
        """Where every row's picture lies below the index's folder, as every system writes it."""
        return [os.path.relpath(record.path, self.index.root).replace(os.sep, "/") for record in self.index]

    @cached_property
    def _names(self) -> list[str]:
        """A name for every row that no other row has: its file's, with its folders where that is not enough."""
        paths = [Path(path) for path in self.relative_paths]
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
            kind that has its own, a negative seed, or a table that names no pictures of the index.
    """
    if seed < 0:
        raise DatasetError(f"--seed {seed}: expected 0 or more")
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
    pids = index.pids.tolist()
    rows_of: dict[int, list[int]] = {}
    for row, pid in enumerate(pids):
        rows_of.setdefault(pid, []).append(row)
    # How many rows of other people stand before each of a person's own.
    others_before = {pid: [row - number for number, row in enumerate(rows)] for pid, rows in rows_of.items()}
    rng = np.random.default_rng([seed, 11])
    seen: dict[tuple[int, int], None] = {}
    while len(seen) < wanted:
        order = np.arange(len(index)) if count is None else rng.permutation(len(index))
        for appearance in order.tolist():
            if len(seen) == wanted:
                break
            before = others_before[pids[appearance]]
            number = int(rng.integers(len(index) - len(before)))
            seen[number + bisect.bisect_right(before, number), appearance] = None  # that row among those of others
    return np.array(list(seen), np.int64)


def _in_rounds(index: DatasetIndex, count: int | None, seed: int) -> np.ndarray:
    """Rounds: everybody's structures in random order beside everybody's appearances, without a pair that may not be.

    A pair may not be of one person, nor of an earlier round. An appearance in such a pair changes structures with one
    that may take it, at random among all that there are; where there is none it takes any structure that it may, a
    second time then, and where there is none either it goes without in this round.
    """
    wanted = _wanted(index, count)
    number, pids = len(index), index.pids
    rng = np.random.default_rng([seed, 12])
    structures_of, appearances_of = _Met(number), _Met(number)
    while len(structures_of) < wanted:
        structure_of = rng.permutation(number)
        for appearance in np.flatnonzero(_clash(structure_of, pids, structures_of)).tolist():
            structure = int(structure_of[appearance])
            may_take = structures_of.strangers(appearance, pids)
            may_have = appearances_of.strangers(structure, pids)
            if (partners := (may_take[structure_of] & may_have).nonzero()[0]).size:
                partner = partners[rng.integers(partners.size)]
                structure_of[appearance], structure_of[partner] = structure_of[partner], structure
            elif (free := may_take.nonzero()[0]).size:
                structure_of[appearance] = free[rng.integers(free.size)]
        made = np.flatnonzero(~_clash(structure_of, pids, structures_of))
        if len(made) > wanted - len(structures_of):
            made = rng.permutation(made)[: wanted - len(structures_of)]
        structures_of.add(made, structure_of[made])
        appearances_of.add(structure_of[made], made)
    appearances, structures = np.divmod(structures_of.codes, number)
    return np.stack([structures, appearances], axis=1)


class _Met:
    """Whom each row has met: pairs (row, other) as sorted numbers, so that the others of a row stand together."""

    def __init__(self, number: int) -> None:
        self.number, self.codes = number, np.empty(0, np.int64)
        self._starts = [0] * (number + 1)
        """where the others of each row begin"""

    def __len__(self) -> int:
        return len(self.codes)

    def add(self, rows: np.ndarray, others: np.ndarray) -> None:
        self.codes = np.sort(np.concatenate([self.codes, rows * self.number + others]), kind="stable")
        self._starts = np.searchsorted(self.codes, np.arange(self.number + 1) * self.number).tolist()

    def have(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(N,) bool, whether each row has met the other beside it."""
        codes = rows * self.number + others
        return np.append(self.codes, -1)[np.searchsorted(self.codes, codes)] == codes

    def strangers(self, row: int, pids: np.ndarray) -> np.ndarray:
        """(number,) bool, whom a row has not met and who are somebody else."""
        fits = pids != pids[row]
        fits[self.codes[self._starts[row] : self._starts[row + 1]] - row * self.number] = False
        return fits


def _clash(structure_of: np.ndarray, pids: np.ndarray, structures_of: _Met) -> np.ndarray:
    """(N,) bool, which appearances may not have the structure that they are given."""
    return (pids[structure_of] == pids) | structures_of.have(np.arange(len(pids)), structure_of)


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
    columns = ("structure", "appearance")
    table = read_table(file, DatasetError, required=columns, expected="a table with the columns structure,appearance")
    row_of: dict[str, int | None] = {}
    for row, record in enumerate(index):
        row_of[record.path.name] = None if record.path.name in row_of else row
    for row, record in enumerate(index):
        row_of[os.path.relpath(record.path, index.root).replace(os.sep, "/")] = row
        row_of[str(record.path)] = row
    pairs: dict[tuple[int, int], None] = {}
    for line, values in table:
        where = f"{file}, line {line}"
        rows = []
        for column in columns:
            name = values[column]
            found = row_of.get(name, row_of.get(portable(name), -1))
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
