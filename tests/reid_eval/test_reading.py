"""Reading what comes from elsewhere: whatever goes wrong is one line, and damage is noticed."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reid_eval.errors import ReidError
from reid_eval.reading import read_bytes, read_json_object, read_text, reading, seal_of, sealed, unsealed, verify_zip


class DamagedError(ReidError):
    pass


@pytest.mark.parametrize("error", [ValueError("one\ntwo"), KeyError(), RecursionError(), MemoryError(), EOFError()])
def test_whatever_a_parser_raises_is_one_line(error):
    with pytest.raises(DamagedError) as raised, reading("a.npz", DamagedError, "a feature file"):
        raise error
    text = str(raised.value)
    assert text.startswith("a.npz: cannot be read (")
    assert "expected a feature file" in text
    assert len(text.splitlines()) == 1


def test_an_error_that_is_one_line_already_stays():
    with pytest.raises(ReidError, match=r"^a\.npz: nothing in it$"), reading("a.npz", DamagedError, "features"):
        raise ReidError("a.npz: nothing in it")


def test_what_is_missing_a_folder_or_a_pipe_is_named_as_that(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, words in [("absent", "no such file"), (".", "is a folder"), ("pipe", "is a pipe or a device")]:
        with pytest.raises(DamagedError, match=words):
            read_bytes(tmp_path / place, DamagedError, "settings")
    with pytest.raises(DamagedError, match="is a pipe or a device"):
        read_bytes("/dev/zero", DamagedError, "settings")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", DamagedError, "settings", limit=5) == b"12345"
    with pytest.raises(DamagedError, match="5 bytes; expected settings, of at most 4"):
        read_bytes(tmp_path / "a", DamagedError, "settings", limit=4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_editors_write_it(tmp_path, encoding):
    (tmp_path / "a").write_text("größe: 3\n", encoding=encoding)
    assert read_text(tmp_path / "a", DamagedError, "settings") == "größe: 3\n"


@pytest.mark.parametrize("content", ["größe".encode("latin-1"), b"a\0b", b"\xff\xfea"])
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DamagedError):
        read_text(tmp_path / "a", DamagedError, "settings")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1]", "null", '{"a": 1e999999999'])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a").write_text(content)
    with pytest.raises(DamagedError):
        read_json_object(tmp_path / "a", DamagedError, "settings")


def test_every_flipped_bit_of_a_stored_member_is_noticed(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, values=np.arange(50, dtype=np.float32))
    verify_zip(file, DamagedError, "a feature file")
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        start = archive.infolist()[0].header_offset + 30 + len("values.npy") + 20
    for bit in range(0, 8 * 200, 7):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(DamagedError):
            verify_zip(file, DamagedError, "a feature file")


def test_what_is_sealed_comes_back_and_every_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "a.json"
    values = {"value": 0.5, "names": ("a", "b"), "of": {2: 1, 10: 2}, "nan": float("inf")}
    file.write_text(sealed(values))
    assert unsealed(file, DamagedError, "a kept answer") == json.loads(json.dumps(values))
    content = file.read_bytes()
    unnoticed = [bit for bit in range(8 * len(content)) if not _is_noticed(file, content, bit)]
    # White space between values may change, values may not.
    assert all(json.loads(_flipped(content, bit)) == json.loads(content) for bit in unnoticed)


def _flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def _is_noticed(file: Path, content: bytes, bit: int) -> bool:
    file.write_bytes(_flipped(content, bit))
    try:
        unsealed(file, DamagedError, "a kept answer")
    except DamagedError:
        return True
    return False


def test_a_seal_holds_however_the_json_is_laid_out(tmp_path):
    values = {"b": (1, 2.5), "a": {"x": None}}
    (tmp_path / "a.json").write_text(json.dumps({"sha256": seal_of(values), **values}, indent=7))
    assert unsealed(tmp_path / "a.json", DamagedError, "a kept answer") == {"b": [1, 2.5], "a": {"x": None}}
