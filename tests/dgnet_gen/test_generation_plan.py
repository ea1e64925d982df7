"""Plans against their definition written plainly, and tables as people bring them."""

from pathlib import Path

import numpy as np
import pytest

from dgnet_gen.generation_plan import plan_generation
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord


def index_of(pids, suffix=".jpg"):
    records = (ImageRecord(Path(f"/data/{row:04d}{suffix}"), pid, 1, "train") for row, pid in enumerate(pids))
    return DatasetIndex(Path("/data"), "images", tuple(records))


def plain_rounds(pids, wanted, seed):
    """The published plan by its definition, with sets of pairs: (structure, appearance)."""
    number, everybody = len(pids), range(len(pids))
    rng = np.random.default_rng([seed, 12])
    seen = set()

    def fits(structure, appearance):
        return pids[structure] != pids[appearance] and (structure, appearance) not in before

    while len(seen) < wanted:
        before = frozenset(seen)
        structure_of = rng.permutation(number).tolist()
        for appearance in [row for row in everybody if not fits(structure_of[row], row)]:
            structure = structure_of[appearance]
            partners = [row for row in everybody if fits(structure_of[row], appearance) and fits(structure, row)]
            free = [row for row in everybody if fits(row, appearance)]
            if partners:
                partner = int(rng.choice(partners))
                structure_of[appearance], structure_of[partner] = structure_of[partner], structure
            elif free:
                structure_of[appearance] = int(rng.choice(free))
        made = [row for row in everybody if fits(structure_of[row], row)]
        if len(made) > wanted - len(seen):
            made = rng.permutation(made)[: wanted - len(seen)].tolist()
        seen |= {(structure_of[row], row) for row in made}
    return sorted(seen)


def test_rounds_are_those_of_their_plain_definition():
    rng = np.random.default_rng(0)
    for seed in range(120):
        pids = rng.integers(1, rng.integers(3, 9), rng.integers(2, 15)).tolist()
        possible = sum(a != b for a in pids for b in pids)
        if possible:
            wanted = int(rng.choice([possible, rng.integers(1, possible + 1)]))
            found = plan_generation(index_of(pids), wanted, seed=seed).pairs
            assert [tuple(pair) for pair in found.tolist()] == plain_rounds(pids, wanted, seed), (pids, wanted, seed)


@pytest.mark.parametrize(("people", "each", "wanted"), [(40, 3, 2500), (2, 30, 1500), (97, 1, 600)])
def test_rounds_of_larger_sets_are_those_of_their_plain_definition(people, each, wanted):
    pids = [person for person in range(1, people + 1) for _ in range(each)]
    found = plan_generation(index_of(pids), wanted, seed=5).pairs
    assert [tuple(pair) for pair in found.tolist()] == plain_rounds(pids, wanted, 5)


@pytest.mark.parametrize("wanted", [None, 100])  # of 140 that there are
def test_random_structures_are_those_chosen_from_a_list_of_all_others(wanted):
    pids = [1, 2, 1, 3, 3, 1, 2, 4, 1, 2, 3, 1, 1, 5]
    rng, chosen = np.random.default_rng([7, 11]), {}
    while len(chosen) < (wanted or len(pids)):
        for appearance in range(len(pids)) if wanted is None else rng.permutation(len(pids)).tolist():
            if len(chosen) < (wanted or len(pids)):
                others = [row for row, pid in enumerate(pids) if pid != pids[appearance]]
                chosen[int(rng.choice(others)), appearance] = None
    found = plan_generation(index_of(pids), wanted, kind="random", seed=7).pairs
    assert [tuple(pair) for pair in found.tolist()] == sorted(chosen)


def test_a_negative_seed_is_refused():
    with pytest.raises(DatasetError, match="--seed -1: expected 0 or more"):
        plan_generation(index_of([1, 2]), seed=-1)


WISHES = b"structure,appearance\n0000.jpg,0002.jpg\n0001.jpg,0003.jpg\n"
TABLES = {
    "a byte order mark": b"\xef\xbb\xbf" + WISHES,
    "UTF-16": WISHES.decode().encode("utf-16"),
    "semicolons and spaces": WISHES.replace(b",", b" ; "),
    "tabs and Windows lines": WISHES.replace(b",", b"\t").replace(b"\n", b"\r\n"),
    "more columns in another order": b"who,Appearance,Structure\nme,0002.jpg,0000.jpg\nyou,0003.jpg,0001.jpg\n",
    "whole paths": WISHES.replace(b"000", b"/data/000"),
    "Windows paths": WISHES.replace(b"000", rb"\data\000"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_spreadsheets_and_other_systems_write_it(tmp_path, name):
    (tmp_path / "wishes.csv").write_bytes(TABLES[name])
    plan = plan_generation(index_of([1, 1, 2, 2]), kind=str(tmp_path / "wishes.csv"))
    assert plan.pairs.tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize("row", ["0000.jpg,0002.jpg,0003.jpg", "0000.jpg", '"0000.jpg,0002.jpg', "0000.jpg\0,0002.jpg"])
def test_a_row_that_is_none_is_one_line(tmp_path, row):
    (tmp_path / "wishes.csv").write_text(f"structure,appearance\n0001.jpg,0003.jpg\n{row}\n")
    with pytest.raises(DatasetError, match=r"wishes\.csv"):
        plan_generation(index_of([1, 1, 2, 2]), kind=str(tmp_path / "wishes.csv"))


def test_nothing_that_is_in_a_table_is_more_than_one_line(tmp_path):
    rng, table, index = np.random.default_rng(0), tmp_path / "wishes.csv", index_of([1, 1, 2, 2])
    told = []
    for _ in range(1500):
        content = bytearray(TABLES[str(rng.choice(list(TABLES)))])
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(0, len(content) + 1))
            if rng.integers(2):
                content[place : place + int(rng.integers(0, 9))] = bytes(rng.integers(0, 256, rng.integers(0, 4)))
            else:
                content[place:place] = bytes(rng.choice([b",", b'"', b"\n", b"\0", b"\xff\xfe", b"structure", b"\r"]))
        table.write_bytes(content)
        try:
            plan_generation(index, kind=str(table))
        except DatasetError as error:
            told.append(str(error))
    assert len(told) > 700
    assert all("wishes.csv" in line and "\n" not in line for line in told)


def test_names_too_long_for_a_file_are_shortened_and_stay_apart():
    plan = plan_generation(index_of([1, 2, 3], suffix="x" * 140 + ".jpg"), kind="all-pairs")
    names = [plan.file(position, ".png") for position in range(len(plan))]
    assert len(set(names)) == len(names) == 6
    assert max(len(Path(name).name.encode()) for name in names) == 255
    assert all(name.endswith(".png") for name in names)
