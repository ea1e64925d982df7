"""Random folders, tables and lists near those that are known: each is a dataset or one line, never a traceback."""

import os
import random
from pathlib import Path

import pytest

from reid_eval.errors import ReidError
from reid_models.data.check import check_dataset, fitting_protocol, training_findings
from reid_models.data.index import DatasetIndex
from reid_models.data.layouts import LAYOUTS

FOLDERS = [
    b"bounding_box_train", b"bounding_box_test", b"query", b"gt_bbox", b"image_train", b"image_query", b"image_test",
    b"cam_a", b"cam_b", b"train_all", b"train", b"val", b"gallery", b"multi-query", b"test", b"mask_train_v2",
    b"labeled", b"0002", b"-1", b"v0012", b"0000", b"anna", b"Bert M\xc3\xbcller", b"\xff\xfe", b"x.jpg", b".git",
    b"@eaDir", b"a\nb", b"99999999999999999999",
]  # fmt: skip
FILES = [
    b"0002_c1s1_000451_03.jpg", b"0007_c6s3_070952_01.jpg", b"-1_c1s1_000401_03.jpg", b"0001_c2_f0046182.jpg",
    b"0003_c1_1.png", b"0001_c001_00016450_0.jpg", b"0000_000_01_0303morning_0008_0.jpg", b"001_45.bmp",
    b"ca_001_45.bmp", b"x.jpg", b"\xff.jpg", b"a\x1bb_c1.jpg", b"\xd9\xa3_c1.jpg", b"Thumbs.db",
    b"._0002_c1s1_000451_03.jpg", b"list_train.txt", b"list_query.txt", b"index.json", b"people.csv", b"toy.json",
    b"1_c99999999999999999999.jpg", b"\n.jpg", b"n" * 250 + b".jpg",
]  # fmt: skip
GOOD_TABLE = 'path,pid,camid,split\nx.jpg,4,1,train\n"y, 1.jpg",Anna Müller,-1,query\nz.jpg,0,2,gallery\n'.encode()
GOOD_LIST = b"0000/0000_000_01_0303morning_0008_0.jpg 0\n0001/0001_000_02_0303morning_0008_0.jpg 1\n"
GOOD_MARKER = b"""{"format": 1, "made_by": "reid_models 0.1.0", "raw": "/x", "layout": "csv", "copies": false,
  "index_fingerprint": "0123456789abcdef", "names": {"1": "anna"}, "complete": true}"""


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A content with something cut, doubled, replaced or put in."""
    for _ in range(rng.randrange(4)):
        at, length = rng.randrange(len(content) + 1), rng.randrange(8)
        new = rng.choice(
            [b"", rng.randbytes(length), content[at : at + length] * 2, b'"', b"[" * 20, b"\0", b"-", b"\n"]
        )
        content = content[:at] + new + content[at + length :]
    return content


def fill(rng: random.Random, folder: bytes, depth: int = 0) -> None:
    os.mkdir(folder)
    for name in rng.sample(FILES, rng.randrange(6)):
        path = os.path.join(folder, name)
        match rng.randrange(12):
            case 0:
                os.mkdir(path)
            case 1:
                os.symlink(rng.choice([b"nowhere", b".", b"..", name, b"/dev/zero"]), path)
            case 2 if hasattr(os, "mkfifo"):
                os.mkfifo(path)
            case _:
                good = GOOD_LIST if b"list" in name else GOOD_TABLE if b"csv" in name else GOOD_MARKER
                Path(os.fsdecode(path)).write_bytes(damaged(rng, good))
    for name in rng.sample(FOLDERS, rng.randrange(7) if depth < 2 else 0):
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            if rng.random() < 0.1:
                os.symlink(rng.choice([b"..", b".", name, b"train"]), path)
            else:
                fill(rng, path, depth + 1)


def judge(index: DatasetIndex) -> None:
    """Everything that is asked of an index."""
    assert index.records
    assert index.label_array.max() < index.num_ids
    assert len(index.fingerprint) == 16
    assert all(index.name_of(pid) for pid in index.labels)
    assert fitting_protocol(index)[0] in ("cross-camera", "no-camera", "leave-one-out", None)
    training_findings(index)
    check = check_dataset(index, decode=True)
    assert check.to_text().isprintable() or all(line.isprintable() for line in check.to_text().splitlines())
    check.to_json().encode()


def opened(make, *arguments) -> DatasetIndex | None:
    try:
        return make(*arguments)
    except ReidError:
        return None


@pytest.mark.parametrize("seed", range(6))
def test_any_tree_of_folders_is_a_dataset_or_one_line(tmp_path, seed):
    rng = random.Random(seed)
    read = 0
    for number in range(20):
        root = tmp_path / str(number)
        fill(rng, os.fsencode(root))
        for index in (opened(DatasetIndex.open, root), opened(DatasetIndex.open, root, rng.choice(LAYOUTS)),
                      opened(DatasetIndex.from_images, root)):  # fmt: skip
            if index is not None:
                read += 1
                judge(index)
    assert read > 10  # the trees are near enough to datasets


def test_any_table_and_any_list_is_read_or_one_line(tmp_path):
    rng = random.Random(0)
    table, msmt = tmp_path / "people.csv", tmp_path / "msmt"
    for half in ("train", "test"):
        (msmt / half).mkdir(parents=True)
    read = 0
    for number in range(400):
        content = rng.randbytes(60) if number % 10 == 0 else damaged(rng, GOOD_TABLE)
        table.write_bytes(content.decode("utf-8", "replace").encode("utf-16") if number % 7 == 0 else content)
        (msmt / "list_train.txt").write_bytes(damaged(rng, GOOD_LIST))
        for index in (opened(DatasetIndex.open, table), opened(DatasetIndex.open, msmt)):
            if index is not None:
                read += 1
                judge(index)
    assert read > 100
