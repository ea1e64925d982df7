"""Cards, manifests and records of generated pictures, as they were written and as anything else."""

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from reid_eval.files import save_image
from reid_eval.reading import sealed
from reid_models.data.generated import (
    COLUMNS,
    RECORDS_HEADER,
    MadePicture,
    ManifestError,
    generated_index,
    read_card,
    read_manifest,
    read_records,
)

CARD = {
    "format": 2, "kind": "dgnet-generation", "checkpoint": "0" * 64, "iteration": 7, "plan": "random", "seed": 0,
    "image_hw": [8, 4], "grouping": "appearance", "image_format": "png", "quality": None, "camera_policy": "structure",
    "precision": "fp32", "index_fingerprint": "0" * 16, "data": "data", "complete": True,
}  # fmt: skip
ROWS = [[f"000{look}/{look}__in__{9 - look}.png", f"{9 - look}.jpg", f"{look}.jpg", 9 - look, look, 1, 2, 1]
        for look in range(1, 5)]  # fmt: skip


def table_of(rows):
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])
    return stream.getvalue().encode("utf-8", "surrogateescape")


def write(folder, manifest, *, seal=True, **changes):
    """Card and manifest that fit each other."""
    values = CARD | {"images": manifest.count(b"\n") - 1, "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
    values |= changes
    (folder / "card.json").write_text(sealed(values) if seal else json.dumps(values))
    (folder / "manifest.csv").write_bytes(manifest)


@pytest.fixture
def folder(tmp_path):
    """A finished folder of four pictures."""
    lines = [f"{RECORDS_HEADER}\n"]
    for number, (file, *_) in enumerate(ROWS):
        save_image(tmp_path / file, np.full((8, 4, 3), number, np.uint8))
        content = (tmp_path / file).read_bytes()
        lines.append(MadePicture(len(content), hashlib.sha256(content).hexdigest(), "f" * 64).to_line(number))
    (tmp_path / "pictures.csv").write_text("".join(lines))
    write(tmp_path, table_of(ROWS))
    return tmp_path


def test_a_folder_is_read_as_it_was_written(folder):
    card, rows = read_manifest(folder)
    assert card.items() >= CARD.items()
    assert [list(row.values()) for row in rows] == ROWS
    assert [record.pid for record in generated_index(folder)] == [1, 2, 3, 4]


CHANGED = {
    "a value": lambda text: text.replace(b"3.jpg,6,3", b"3.jpg,6,4"),
    "a byte": lambda text: text.replace(b"__in__8", b"__in__5"),
    "a row less": lambda text: text.rsplit(b"\n", 2)[0] + b"\n",
    "a row too many": lambda text: text + text.splitlines(keepends=True)[-1],
    "a value too many": lambda text: text.replace(b",1\n", b",1,more\n", 1),
    "no rows": lambda text: text.split(b"\n")[0] + b"\n",
    "nothing": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "line ends": lambda text: text.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_manifest_that_was_changed_is_refused(folder, name):
    changed = CHANGED[name](table_of(ROWS))
    assert changed != table_of(ROWS)
    (folder / "manifest.csv").write_bytes(changed)
    with pytest.raises(ManifestError, match=r"manifest\.csv: damaged, or changed"):
        read_manifest(folder)


def test_a_card_that_was_changed_is_refused(folder):
    whole = json.loads((folder / "card.json").read_text())
    for name, value in whole.items():
        for changed in ({**whole, name: not value}, {key: kept for key, kept in whole.items() if key != name}):
            if name == "sha256" and name not in changed:
                continue  # as version 0.1.0 wrote it
            (folder / "card.json").write_text(json.dumps(changed))
            with pytest.raises(ManifestError, match=r"card\.json"):
                read_card(folder)


OUTSIDE = ["../x.png", "0001/../../x.png", "/etc/x.png", "0001\\..\\..\\x.png", "C:\\x.png", "C:x.png", "a\0b.png", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_leads_out_of_its_folder_is_refused_even_with_a_card_that_fits(folder, name):
    write(folder, table_of([[name, *ROWS[0][1:]], *ROWS[1:]]), images=4)
    with pytest.raises(ManifestError, match=r"manifest\.csv"):
        read_manifest(folder)


WRONG_ROWS = [
    [*ROWS[0], "more"], ROWS[0][:-1], [*ROWS[0][:3], "one", *ROWS[0][4:]], [*ROWS[0][:3], "9" * 20, *ROWS[0][4:]],
    [*ROWS[0][:7], "-2"], [*ROWS[0][:7], ""],
]  # fmt: skip


@pytest.mark.parametrize("row", WRONG_ROWS, ids=map(str, range(len(WRONG_ROWS))))
def test_a_row_that_is_none_is_named_with_its_line_even_with_a_card_that_fits(folder, row):
    write(folder, table_of([ROWS[1], row]), seal=False)
    with pytest.raises(ManifestError, match=r"manifest\.csv, line 3: "):
        read_manifest(folder)


def test_a_card_of_another_number_of_pictures_is_refused(folder):
    write(folder, table_of(ROWS), images=5)
    with pytest.raises(ManifestError, match="4 rows; expected 5"):
        read_manifest(folder)


def test_what_is_no_regular_file_is_refused(folder):
    (folder / "manifest.csv").unlink()
    (folder / "manifest.csv").mkdir()
    with pytest.raises(ManifestError, match="is a folder"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda picture: picture.unlink(), "named in the manifest but not there"),
        (lambda picture: picture.write_bytes(b""), "is empty"),
        (lambda picture: picture.write_bytes(picture.read_bytes()[:-1]), "not the .* that were written"),
        (lambda picture: shutil.copy2(picture.parent.parent / ROWS[1][0], picture), "something else|not the"),
        (lambda picture: (picture.unlink(), picture.mkdir()), "is a folder"),
    ],
    ids=["missing", "empty", "cut off", "another", "a folder"],
)
def test_a_picture_that_is_not_as_it_was_made_is_named(folder, spoil, told):
    spoil(folder / ROWS[2][0])
    with pytest.raises(ManifestError, match=rf"3__in__6\.png: .*{told}"):
        generated_index(folder)


def test_a_picture_without_a_record_is_not_made_and_one_record_of_several_has_to_fit(folder):
    lines = (folder / "pictures.csv").read_text().splitlines(keepends=True)
    (folder / "pictures.csv").write_text("".join([*lines[:3], lines[4]]))
    with pytest.raises(ManifestError, match=r"3__in__6\.png: is not recorded"):
        generated_index(folder)
    (folder / "pictures.2-of-3.csv").write_text("".join([lines[0], "2,9,", "a" * 64, ",", "b" * 64, "\n", lines[3]]))
    assert read_records(folder)[2][0].bytes == 9
    assert len(read_records(folder)[2]) == 2
    assert len(generated_index(folder)) == 4


ODD = [None, True, -1, 0, 1e300, 10**30, "", "x", "\0", "../..", [], {}, [[]], {"format": 2}, "9" * 25]


def test_nothing_that_is_in_a_card_a_manifest_or_records_is_more_than_one_line(folder):
    rng = np.random.default_rng(0)
    manifest, records = table_of(ROWS), (folder / "pictures.csv").read_bytes()
    whole = CARD | {"images": 4, "manifest_sha256": hashlib.sha256(manifest).hexdigest()}

    def spoilt(content):
        content = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, len(content) + 1))
            match rng.integers(4):
                case 0:
                    content[place : place + 1] = bytes([rng.integers(256)])
                case 1:
                    del content[place : place + int(rng.integers(1, 40))]
                case 2:
                    content[place:place] = bytes(rng.choice([b",", b'"', b"\n", b"\0", b"\xff", b"[", b"../"]))
                case 3:
                    content = content[:place] or bytearray(b"{")
        return bytes(content)

    refused = []
    for number in range(600):
        write(folder, manifest, seal=bool(rng.integers(2)))
        (folder / "pictures.csv").write_bytes(records)
        match number % 4:
            case 0:
                changed = spoilt(manifest)
                write(folder, changed, seal=bool(rng.integers(2)), images=int(rng.integers(1, 6)))
            case 1:
                (folder / "card.json").write_bytes(spoilt((folder / "card.json").read_bytes()))
            case 2:
                values = whole | {str(rng.choice(list(whole))): ODD[rng.integers(len(ODD))]}
                (folder / "card.json").write_text(sealed(values) if rng.integers(2) else json.dumps(values))
            case 3:
                (folder / "pictures.csv").write_bytes(spoilt(records))
        try:
            generated_index(folder)
        except ManifestError as error:
            refused.append(str(error))
    assert len(refused) > 250
    assert all(str(folder) in line and "\n" not in line for line in refused)


def test_a_card_nested_without_end_is_one_line(tmp_path):
    Path(tmp_path, "card.json").write_text("[" * 100_000)
    with pytest.raises(ManifestError, match=r"card\.json: cannot be read \(nested too deeply\)"):
        read_card(tmp_path)
