"""Tables as people have them: one reader, whoever wrote them."""

import csv
import io

import numpy as np
import pytest

from reid_eval.errors import ReidError
from reid_eval.tables import csv_text, number_identities, portable, read_table


class TableError(ReidError):
    pass


ROWS = [(2, {"path": "a/1.jpg", "pid": "Anna Müller"}), (3, {"path": "b,2.jpg", "pid": "7"})]


def read(file, **more):
    return read_table(file, TableError, required=["path", "pid"], **more)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["path,pid", "Filename,person", " PID ,path", '"image","ID"'])
def test_a_table_is_read_whoever_wrote_it(tmp_path, encoding, delimiter, end, header):
    rows = [["a/1.jpg", "Anna Müller"], ['"b,2.jpg"', "7"]]
    if header.startswith(" PID"):
        rows = [row[::-1] for row in rows]
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (tmp_path / "a.csv").write_bytes((end.join(lines) + end).encode(encoding))
    assert read(tmp_path / "a.csv") == ROWS


def test_other_columns_and_empty_lines_are_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("\nnote,pid,path\n\nx,1,a.jpg\n, , \ny,2,b.jpg\n")
    assert read(tmp_path / "a.csv", optional=["camid"]) == [
        (4, {"path": "a.jpg", "pid": "1"}),
        (6, {"path": "b.jpg", "pid": "2"}),
    ]


def test_a_column_of_its_own_name_goes_before_one_that_is_also_called_so(tmp_path):
    (tmp_path / "a.csv").write_text("label,pid,path\nwrong,1,a.jpg\n")
    assert read(tmp_path / "a.csv")[0][1]["pid"] == "1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no rows"),
        ("path,who is it\n1,2\n", "no column pid, found path, who is it"),
        ("path,pid\n1\n", "line 2: too few values"),
        ("path,pid\n1,2,3\n", "line 2: too many values"),
        ('path,pid\n"a,1\nb,2\n', "line 2: unexpected end of data"),
        ("path,pid\na\0,1\n", "zero byte"),
        ("path,pid\n" + "a" * 200_000 + ",1\n", "field larger than field limit"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, content, words):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(TableError, match=words) as error:
        read(tmp_path / "a.csv")
    assert str(error.value).startswith(str(tmp_path / "a.csv"))
    assert len(str(error.value).splitlines()) == 1


def test_paths_of_windows_are_paths():
    assert portable("a\\b\\1.jpg") == "a/b/1.jpg"


@pytest.mark.parametrize(
    ("texts", "numbers", "names"),
    [
        (["7", "-1", "0"], [7, -1, 0], {}),
        (["Bob", "Anna", "Bob", "-1"], [2, 1, 2, -1], {1: "Anna", 2: "Bob"}),
        (["7", "Anna"], [1, 2], {1: "7", 2: "Anna"}),
        (["12345678901234567890", "12345678901234567891"], [1, 2], None),
        (["٣", "1"], [2, 1], {1: "1", 2: "٣"}),
        (["-2"], [1], {1: "-2"}),
        ([], [], {}),
    ],
)
def test_identities_may_be_words(texts, numbers, names):
    found, named = number_identities(texts)
    np.testing.assert_array_equal(found, np.array(numbers, dtype=np.int64))
    assert found.dtype == np.int64
    assert names is None or named == names


def test_texts_that_a_spreadsheet_would_run_are_marked_and_numbers_are_not():
    rows = [["name", "value"], ["=1+1", -1], ["+x", 0.5], ["@a", "-2"], ["\tb", "c"], ["\rd", ""], ["a=b", "1-2"]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == [
        ["name", "value"],
        ["'=1+1", "-1"],
        ["'+x", "0.5"],
        ["'@a", "'-2"],
        ["'\tb", "c"],
        ["'\rd", ""],
        ["a=b", "1-2"],
    ]


def test_numbers_keep_all_their_digits():
    assert csv_text([[0.1 + 0.2, 1 / 3, np.int64(7)]]) == "0.30000000000000004,0.3333333333333333,7\n"
