"""Arrays in files: known before they are read, read only when asked for, never out of proportion."""

import io
import struct
import zipfile

import numpy as np
import pytest

from reid_eval.arrays import open_npz, read_npy
from reid_eval.errors import ReidError


class ArrayError(ReidError):
    pass


VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
WORDS = np.array(["a", "Łódź", ""])


def some_file(folder, **arrays):
    np.savez(folder / "f.npz", **{"vectors": VECTORS, "words": WORDS, **arrays})
    return folder / "f.npz"


def opened(file):
    return open_npz(file, ArrayError, "a file of arrays")


def npy(header: bytes | None = None, version=b"\x01\x00", body=b"") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


def with_member(folder, content: bytes, method=zipfile.ZIP_STORED):
    file = some_file(folder)
    with zipfile.ZipFile(file, "a", method) as archive:
        archive.writestr("odd.npy", content)
    return file


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_was_written_comes_back_and_is_known_before(tmp_path, write):
    arrays = {"vectors": VECTORS, "columns": np.asfortranarray(VECTORS), "words": WORDS, "one": np.int64(3)}
    arrays |= {"big": VECTORS.astype(">f8"), "none": np.zeros((0, 3)), "text": np.array("{}"), "bits": VECTORS > 3}
    write(tmp_path / "f.npz", **arrays)
    with opened(tmp_path / "f.npz") as stored:
        assert set(stored) == set(arrays)
        for name, array in arrays.items():
            header = stored.header(name)
            assert (header.shape, header.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(stored[name], array)


def test_a_mapped_array_is_the_same_and_its_checksum_is_compared(tmp_path):
    file = some_file(tmp_path)
    with opened(file) as stored:
        mapped = stored.mapped("vectors")
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, VECTORS)
    content = bytearray(file.read_bytes())
    content[content.index(VECTORS.tobytes()) + 5] ^= 1
    file.write_bytes(content)
    with opened(file) as stored, pytest.raises(ArrayError, match="CRC"):
        stored.mapped("vectors")
    with opened(file) as stored, pytest.raises(ArrayError, match="CRC"):
        stored["vectors"]


@pytest.mark.parametrize("name", ["vectors", "none"])
def test_the_checksum_of_a_packed_array_is_compared(tmp_path, name):
    np.savez_compressed(tmp_path / "f.npz", vectors=VECTORS, none=np.zeros((0, 3)))
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        checksum = archive.getinfo(f"{name}.npy").CRC.to_bytes(4, "little")
    content = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(content.replace(checksum, bytes(4)))
    with opened(tmp_path / "f.npz") as stored, pytest.raises(ArrayError, match="CRC"):
        stored[name]


def test_what_is_packed_is_not_mapped(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", vectors=VECTORS)
    with opened(tmp_path / "f.npz") as stored:
        assert stored.mapped("vectors") is None


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "magic string"),
        (npy(b"{'descr': '<f4', "), "odd|expected"),
        (npy(b"("), "expected a file of arrays"),
        (npy(GOOD.replace(b"<f4", b"|O"), body=bytes(16)), "Python objects"),
        (npy(GOOD.replace(b"(2,)", b"(-2,)")), "expected numbers or texts"),
        (npy(GOOD.replace(b"(2,)", b"(2,-1,-4)"), body=bytes(32)), "expected numbers or texts"),
        (npy(GOOD.replace(b"'<f4'", b"[('a', '<f4')]"), body=bytes(8)), "expected numbers or texts"),
        (npy(GOOD.replace(b"<f4", b"<U0")), "expected numbers or texts"),
        (npy(GOOD.replace(b"<f4", b"<U1"), body=b"\xff" * 8), "characters that do not exist"),
        (npy(GOOD, body=bytes(4)), "odd has 4 bytes, its header says 8"),
        (npy(GOOD, version=b"\x09\x00", body=bytes(8)), "9.0"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(100), "a header of 2,147,483,648 bytes"),
    ],
    ids=[
        "text", "never-closes", "open", "objects", "negative", "negatives", "records", "no-text", "no-character",
        "too-short", "version", "header",
    ],
)  # fmt: skip
def test_an_array_that_is_none_is_one_line_and_only_if_it_is_asked_for(tmp_path, content, words):
    with opened(with_member(tmp_path, content)) as stored:
        np.testing.assert_array_equal(stored["vectors"], VECTORS)
        with pytest.raises(ArrayError, match=words) as error:
            stored["odd"]
    assert str(tmp_path / "f.npz") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_than_numpys_are_refused(tmp_path, method):
    file = with_member(tmp_path, npy(GOOD, body=bytes(8)), method)
    with opened(file) as stored, pytest.raises(ArrayError, match="is packed by method"):
        stored["odd"]


def test_a_small_file_does_not_become_a_large_array(tmp_path):
    rows = 40_000_000
    header = GOOD.replace(b"(2,)", b"(%d,)" % rows)
    file = with_member(tmp_path, npy(header, body=bytes(4 * rows)), zipfile.ZIP_DEFLATED)
    with opened(file) as stored:
        assert stored.header("odd").shape == (rows,)
        with pytest.raises(ArrayError, match="would unpack to 152 MiB from"):
            stored["odd"]


def test_a_file_that_lies_about_its_packed_size_does_not_become_large_either(tmp_path):
    rows = 40_000_000
    header = GOOD.replace(b"(2,)", b"(%d,)" % rows)
    file = with_member(tmp_path, npy(header, body=bytes(4 * rows)), zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 24] = struct.pack("<I", 4 * rows)  # the packed size in the table at the end
    file.write_bytes(content)
    with opened(file) as stored, pytest.raises(ArrayError):
        stored["odd"]


def test_the_one_array_of_an_npy_is_mapped_and_a_cut_one_refused(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    assert isinstance(read_npy(tmp_path / "a.npy", ArrayError, "vectors"), np.memmap)
    content = (tmp_path / "a.npy").read_bytes()
    for end in (0, 5, 9, 40, 100, len(content) - 1):
        (tmp_path / "a.npy").write_bytes(content[:end])
        with pytest.raises(ArrayError, match=r"a\.npy: cannot be read"):
            read_npy(tmp_path / "a.npy", ArrayError, "vectors")


def test_no_zip_at_all_is_one_line(tmp_path):
    for content in (b"", b"PK\x03\x04", io.BytesIO().getvalue() + b"\x93NUMPY"):
        (tmp_path / "f.npz").write_bytes(content)
        with pytest.raises(ArrayError, match="not a zip file"), opened(tmp_path / "f.npz"):
            pass
