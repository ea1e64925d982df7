"""Arrays in files of others: known by name, looked at before they are unpacked, read only when somebody asks.

    with open_npz("features.npz", FeatureFileError, "a feature file") as arrays:
        arrays.header("features")          # Header(shape=(28, 512), dtype=float32): the first bytes tell
        arrays["features"]                 # read now, its checksum compared
        arrays.mapped("features")          # left on the disk; the checksum is compared all the same

An array that nobody needs never condemns a file, and none takes memory out of proportion to its file. Python objects
are never read.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from reid_eval.errors import ReidError
from reid_eval.reading import reading, refuse_irregular

# Numbers of features hardly pack at all, so what unpacks to a hundred times its size is not what it seems.
_MAX_RATIO = 100
_NEVER_TOO_LARGE = 64 * 2**20

_BLOCK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 10_000
_NPY = b"\x93NUMPY"
_MEMBER = ".npy"


class Header(NamedTuple):
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    in_columns: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class StoredArrays(Mapping[str, Any]):
    """Arrays by name, in whatever file they lie; a name is read when it is asked for."""

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)  # a mapping's own way would be to read it

    def header(self, name: str) -> Header:
        """Shape and type of an array, before it is read."""
        array = self[name]
        return Header(np.shape(array), np.asarray(array).dtype)

    def mapped(self, name: str) -> np.ndarray | None:
        """An array left on the disk; None where it cannot stay there."""
        return None


class ArraysInMemory(StoredArrays):
    """Arrays that are there already."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class NpzArrays(StoredArrays):
    """The arrays of an open .npz."""

    def __init__(self, archive: zipfile.ZipFile, file: Path, error: type[ReidError], expected: str) -> None:
        self._archive, self._file, self._error, self._expected = archive, file, error, expected
        self._entries = {
            entry.filename.removesuffix(_MEMBER): entry
            for entry in archive.infolist()
            if entry.filename.endswith(_MEMBER)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def header(self, name: str) -> Header:
        with self._open(name) as (_, header, _):
            return header

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with self._open(name) as (stream, header, _):
            stored = min(entry.compress_size, self._file.stat().st_size)  # the archive may say what it likes
            refuse_disproportion(self._file, name, entry.file_size, stored, self._error)
            return read_body(stream, header)  # to the last byte, where the checksum is compared

    def mapped(self, name: str) -> np.ndarray | None:
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with self._open(name) as (stream, header, start):
            while stream.read(_BLOCK_BYTES):  # to the end, where the checksum is compared
                pass
            with self._file.open("rb") as content:
                content.seek(entry.header_offset + 26)  # the lengths of the name and of the extra field of this entry
                name_length, extra_length = (int.from_bytes(content.read(2), "little") for _ in range(2))
            offset = entry.header_offset + 30 + name_length + extra_length + start
            order: Any = "F" if header.in_columns else "C"
            return np.memmap(self._file, dtype=header.dtype, mode="r", offset=offset, shape=header.shape, order=order)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Header, int]]:
        """The stream of an array, behind its header; the header; and the length of that."""
        entry = self._entries[name]
        with reading(self._file, self._error, self._expected):
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is packed by method {entry.compress_type}, which NumPy never takes")
            with self._archive.open(entry) as stream:
                header = read_header(stream)
                start = stream.tell()
                if header.nbytes != entry.file_size - start:
                    raise ValueError(
                        f"{name} has {entry.file_size - start:,} bytes, its header says {header.nbytes:,} for "
                        f"{header.dtype} of shape {header.shape}"
                    )
                yield stream, header, start


@contextmanager
def open_npz(file: Path | str, error: type[ReidError], expected: str) -> Iterator[NpzArrays]:
    """The arrays of a .npz, within the block. `expected` is what the file should be, for messages.

    Raises:
        error: the file is missing, no .npz, or damaged; while arrays are read too.
    """
    file = Path(file)
    refuse_irregular(file, error, expected)
    with reading(file, error, expected):
        archive = zipfile.ZipFile(file)
    with archive:
        yield NpzArrays(archive, file, error, expected)


def begins_like_npy(start: bytes) -> bool:
    """Whether a file that begins so is a .npy, the file of one array."""
    return start.startswith(_NPY)


def read_header(stream: IO[bytes]) -> Header:
    """Shape and type at the beginning of a .npy.

    Raises:
        ValueError and whatever damaged bytes make of it: not that of numbers or texts.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NumPy's format {version[0]}.{version[1]}, expected 1.0 or 2.0")
    length = stream.read(2 if version == (1, 0) else 4)
    if (num_bytes := int.from_bytes(length, "little")) > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {num_bytes:,} bytes, expected shape and type of one array")
    content = io.BytesIO(length + stream.read(num_bytes))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(content)
    if dtype.hasobject:
        raise ValueError("Python objects, which are never read, since they can run code")
    is_empty_text = dtype.itemsize == 0 and math.prod(shape) > 0
    if dtype.kind == "V" or is_empty_text or any(length < 0 for length in shape):
        raise ValueError(f"{dtype} of shape {shape}, expected numbers or texts")
    return Header(shape, dtype, in_columns)


def read_body(stream: IO[bytes], header: Header) -> np.ndarray:
    """The numbers or texts behind a header.

    Raises:
        ValueError: there are fewer, or texts that are none.
    """
    content = np.empty(header.nbytes, dtype=np.uint8)
    view, done = content.data, 0
    while done < len(content):
        if not (some := stream.read(min(_BLOCK_BYTES, len(content) - done))):
            raise ValueError(f"{done:,} bytes of {len(content):,}")
        view[done : done + len(some)] = some
        done += len(some)
    if not header.nbytes:
        return np.zeros(header.shape, header.dtype)
    array = content.view(header.dtype).reshape(header.shape, order="F" if header.in_columns else "C")
    if header.dtype.kind == "U":
        points = content.view(np.dtype("u4").newbyteorder(header.dtype.byteorder))
        if points.max(initial=0) > sys.maxunicode:
            raise ValueError("texts with characters that do not exist")
    return array


def read_npy(file: Path | str, error: type[ReidError], expected: str) -> np.ndarray:
    """The one array of a .npy, mapped from the disk.

    Raises:
        error: the file is missing, no .npy, or cut off.
    """
    file = Path(file)
    refuse_irregular(file, error, expected)
    with reading(file, error, expected), file.open("rb") as stream:
        header = read_header(stream)
        start, size = stream.tell(), file.stat().st_size
        if header.nbytes > size - start:
            raise ValueError(f"{size - start:,} bytes of {header.nbytes:,}, {header.dtype} of shape {header.shape}")
        if not header.nbytes:
            return np.zeros(header.shape, header.dtype)
        order: Any = "F" if header.in_columns else "C"
        return np.memmap(file, dtype=header.dtype, mode="r", offset=start, shape=header.shape, order=order)


def refuse_disproportion(file: Path | str, name: str, nbytes: int, stored: int, error: type[ReidError]) -> None:
    """See that an array needs no more memory than its file makes likely.

    Raises:
        error: it would unpack to a hundred times what is stored, and to more than 64 MiB.
    """
    if nbytes > max(_NEVER_TOO_LARGE, _MAX_RATIO * stored):
        raise error(
            f"{file}: {name} would unpack to {nbytes >> 20:,} MiB from {stored >> 10:,} KiB; expected numbers, which "
            "hardly pack; write the file again, uncompressed"
        )
