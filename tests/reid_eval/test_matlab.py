"""MATLAB files are read by a process of their own, whose death is one line."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from reid_eval import matlab
from reid_eval.errors import ReidError
from reid_eval.matlab import open_mat


class MatError(ReidError):
    pass


VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def mat(folder, packed=False, **arrays):
    savemat(folder / "f.mat", {"vectors": VECTORS, **arrays}, do_compression=packed)
    return folder / "f.mat"


def read(file, *names):
    with open_mat(file, MatError) as arrays:
        return [arrays[name] for name in names]


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_come_back_and_their_shapes_are_known_before(tmp_path, packed):
    wanted = {"vectors": VECTORS, "ids": np.array([[7, 8, 255]], dtype=np.uint8), "none": np.zeros((0, 3))}
    file = mat(tmp_path, packed, **wanted)
    with open_mat(file, MatError) as arrays:
        assert set(arrays) == set(wanted)
        for name, array in wanted.items():
            assert arrays.header(name).shape == array.shape
            np.testing.assert_array_equal(arrays[name], array)


def test_texts_come_back_from_a_cell_and_from_a_matrix_of_characters(tmp_path):
    cell = np.array(["a.jpg", "", "Łódź.jpg"], dtype=object)
    file = mat(tmp_path, cell=cell, rows=np.array(["ab", "cd"]))
    found, rows = read(file, "cell", "rows")
    assert (found.tolist(), rows.tolist()) == (cell.tolist(), ["ab", "cd"])


@pytest.mark.parametrize(
    "odd",
    [csc_matrix(np.eye(3)), {"a": 1}, np.array([1, "a", np.ones(3)], dtype=object)],
    ids=["sparse", "struct", "cell"],
)
def test_what_is_no_array_is_refused_and_only_if_it_is_asked_for(tmp_path, odd):
    file = mat(tmp_path, odd=odd)
    with open_mat(file, MatError) as arrays:
        np.testing.assert_array_equal(arrays["vectors"], VECTORS)
        with pytest.raises(MatError, match=r"f\.mat: .*odd is sparse, complex, a structure or a cell"):
            arrays["odd"]


def test_a_file_that_crashes_its_reader_is_one_line(tmp_path):
    content = bytearray(mat(tmp_path).read_bytes())
    place = content.index(b"vectors") + 8
    assert content[place] == 7  # the type of the numbers: single
    content[place] = 23  # which is none
    (tmp_path / "f.mat").write_bytes(content)
    with pytest.raises(MatError, match=r"f\.mat: ") as error:
        read(tmp_path / "f.mat", "vectors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_whatever_ends_the_reading_process_is_one_line(tmp_path, number):
    with open_mat(mat(tmp_path), MatError) as arrays:
        os.kill(arrays._child.pid, number)
        words = "took too much time or memory" if number == signal.SIGKILL else f"ended with {number.name}"
        with pytest.raises(MatError, match=f"the process that read it {words}"):
            arrays["vectors"]


def test_a_reader_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "_SECONDS", 0.0)
    with pytest.raises(MatError, match="took too much time or memory"):
        read(mat(tmp_path), "vectors")
    assert not any(isinstance(thread, threading.Timer) and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory so")
def test_a_reader_whose_memory_does_not_suffice_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "_MEMORY_BYTES", 1 << 26)
    monkeypatch.setattr(matlab, "_MEMORY_RATIO", 0)
    with pytest.raises(MatError, match=r"f\.mat: ") as error:
        read(mat(tmp_path), "vectors")
    assert "\n" not in str(error.value)


def test_a_small_file_does_not_become_a_large_array(tmp_path):
    file = mat(tmp_path, packed=True, large=np.zeros((1, 80_000_000), dtype=np.uint8))
    with pytest.raises(MatError, match="large would unpack to 76 MiB"):
        read(file, "large")


def test_the_reader_takes_nothing_from_the_folder_it_is_started_in(tmp_path, monkeypatch):
    file = mat(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read(file, "vectors")[0], VECTORS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "save it again with -v7"),
        (b"hello", "f.mat: "),
    ],
    ids=["empty", "hdf5", "text"],
)
def test_what_is_no_such_file_is_one_line(tmp_path, content, words):
    (tmp_path / "f.mat").write_bytes(content)
    with pytest.raises(MatError, match=words):
        read(tmp_path / "f.mat", "vectors")
