"""What has changed is told by content: a copy with its old date is noticed, a touched file is not."""

import os
import shutil
import time

import pytest

from pipelines import contents
from pipelines.contents import Contents, files_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.jpg", "a/b/3.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "a"


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """As if some time had passed since the files were written."""
    monkeypatch.setattr(contents, "_TICK_NS", -1_000_000_000)


def test_nothing_has_changed(folder):
    then = Contents.of([folder])
    assert len(then.files) == 3
    assert then.change([folder]) is None
    assert then.change() is None


@pytest.mark.parametrize("replace", ["in place", "cp -p", "same size"])
def test_a_file_of_another_content_is_noticed_whatever_its_date(folder, replace):
    then = Contents.of([folder])
    file = folder / "1.jpg"
    before = file.stat()
    if replace == "cp -p":
        other = folder.parent / "other.jpg"
        other.write_bytes(b"b/1.jpg"[: before.st_size])
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        shutil.copy2(other, file)
    else:
        file.write_bytes(b"x" * (before.st_size + (replace == "in place")))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert then.change([folder]) == "1 file changed (1.jpg)"


def test_a_touched_or_copied_file_is_the_same(folder):
    then = Contents.of([folder])
    os.utime(folder / "1.jpg")
    shutil.copy(folder / "b" / "2.jpg", folder.parent / "2.jpg")
    os.replace(folder.parent / "2.jpg", folder / "b" / "2.jpg")
    assert then.change([folder]) is None


def test_what_is_missing_and_what_is_new_is_named(folder):
    then = Contents.of([folder])
    (folder / "b" / "3.jpg").unlink()
    (folder / "4.jpg").write_bytes(b"4")
    (folder / "5.jpg").write_bytes(b"5")
    assert then.change([folder]) == "1 file missing (3.jpg), 2 files new (4.jpg, ...)"
    assert then.change() == "1 file missing (3.jpg)"


def test_hidden_files_and_thumbnails_are_no_part_of_a_folder(folder):
    then = Contents.of([folder])
    (folder / "@eaDir").mkdir()
    for name in (".lock", "@eaDir/1.jpg"):
        (folder / name).write_bytes(b"")
    assert then.change([folder]) is None
    assert [path.rpartition("/")[2] for path in files_of([folder])] == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_file_written_just_before_it_was_looked_at_is_looked_at_again(folder, monkeypatch):
    monkeypatch.setattr(contents, "_TICK_NS", 3_600_000_000_000)
    then = Contents.of([folder])
    same_state = contents._state
    monkeypatch.setattr(contents, "_state", lambda path: then.files[path].state)  # as within one tick of the clock
    (folder / "1.jpg").write_bytes(b"A/1.jpg")
    assert then.change([folder]) == "1 file changed (1.jpg)"
    monkeypatch.setattr(contents, "_state", same_state)


def test_known_files_are_not_read_again(folder, monkeypatch):
    then = Contents.of([folder])
    (folder / "1.jpg").write_bytes(b"other")
    read = []
    monkeypatch.setattr(contents, "file_fingerprint", lambda path: read.append(path) or "0")
    now = Contents.of([folder], known=then)
    assert [path.rpartition("/")[2] for path in read] == ["1.jpg"]
    assert now.files.keys() == then.files.keys()


def test_a_record_may_be_moved_with_its_files(folder, tmp_path):
    values = Contents.of([folder]).to_values(tmp_path)
    assert sorted(values["files"]) == ["a/1.jpg", "a/b/2.jpg", "a/b/3.jpg"]
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    shutil.copytree(tmp_path, moved)
    assert Contents.from_values(values, moved).change([moved / "a"]) is None
    assert Contents.from_values(values, tmp_path).at_ns <= time.time_ns()
