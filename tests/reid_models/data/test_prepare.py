import errno
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from reid_eval.errors import OutputError
from reid_eval.files import atomic_path
from reid_eval.locks import locked
from reid_models.cli import main
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.prepare import prepare_dataset
from reid_models.data.synthetic import make_toy_dataset


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_mtime_ns, path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def contents(index: DatasetIndex, split: str) -> set[tuple[str, int, int]]:
    return {(record.path.name, record.pid, record.camid) for record in index.split(split)}


def test_the_prepared_dataset_holds_the_same_people_under_the_fields_names(toy_root, tmp_path):
    raw, prepared = DatasetIndex.open(toy_root), prepare_dataset(toy_root, tmp_path / "data")
    for split in ("train_all", "query", "gallery"):
        assert contents(prepared, split) == contents(raw, split)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "train_all", "train", "val", "query", "gallery", "index.json",
    }  # fmt: skip


def test_val_is_the_first_picture_of_each_identity_in_sorted_order(toy_root, tmp_path):
    raw, prepared = DatasetIndex.open(toy_root), prepare_dataset(toy_root, tmp_path / "data")
    first = {record.pid: record.path.name for record in reversed(raw.split("train").records)}
    assert {record.pid: record.path.name for record in prepared.split("val")} == first
    assert contents(prepared, "train").isdisjoint(contents(prepared, "val"))


def test_msmt17_keeps_its_published_val_list(tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=4, cameras=2, per_camera=3, layout="msmt17", image_hw=(32, 16))
    prepared = prepare_dataset(raw, tmp_path / "data")
    assert contents(prepared, "val") == contents(DatasetIndex.open(raw), "val")


def test_links_are_relative_and_copies_are_copies(toy_root, tmp_path):
    linked = prepare_dataset(toy_root, tmp_path / "linked")[0].path
    copied = prepare_dataset(toy_root, tmp_path / "copied", copy=True)[0].path
    assert linked.is_symlink()
    assert not Path(os.readlink(linked)).is_absolute()
    assert not copied.is_symlink()
    assert copied.read_bytes() == linked.read_bytes()


def test_a_second_run_changes_nothing_and_adds_what_is_missing(toy_root, tmp_path):
    out = tmp_path / "data"
    index = prepare_dataset(toy_root, out)
    before = snapshot(out)
    prepare_dataset(toy_root, out)
    assert snapshot(out) == before
    index[0].path.unlink()
    prepare_dataset(toy_root, out)
    assert snapshot(out).keys() == before.keys()


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_files(root: Path, *names: str) -> Path:
    """Files under pictures' names. Nobody looks into them here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def fail_after(monkeypatch, method: str, calls: int):
    """Let a method of Path meet a full disk after so many calls."""
    original, counter = getattr(Path, method), itertools.count()

    def until_full(path, *arguments):
        if next(counter) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, *arguments)

    monkeypatch.setattr(Path, method, until_full)


def finish_as_told(out: Path) -> DatasetIndex:
    """Read the command in the refusal to open `out`, and run it."""
    with pytest.raises(DatasetError, match="its preparation was cut short; finish it with 'reid-models ") as refusal:
        DatasetIndex.open(out)
    told = str(refusal.value).split("'")[1]
    result = command(*told.split()[1:])
    assert result.exit_code == 0, result.output
    return DatasetIndex.open(out)


def test_a_preparation_that_was_cut_short_is_not_opened_and_says_how_to_finish_it(toy_root, tmp_path, monkeypatch):
    out = tmp_path / "data"
    with monkeypatch.context() as patch:
        fail_after(patch, "symlink_to", 20)
        with pytest.raises(OutputError):
            prepare_dataset(toy_root, out)
    assert json.loads((out / "index.json").read_text())["complete"] is False
    assert command("check", out).output.startswith(f"error: {out}: its preparation was cut short")
    finished = finish_as_told(out)
    assert json.loads((out / "index.json").read_text())["complete"] is True
    assert len(finished) == len(DatasetIndex.open(toy_root))


def test_a_table_whose_preparation_was_cut_short_is_named_itself(tmp_path, monkeypatch):
    write_files(tmp_path, "a/x.jpg", "a/y.jpg")
    (tmp_path / "people.csv").write_text("path,pid,camid,split\na/x.jpg,1,1,train\na/y.jpg,2,2,gallery\n")
    with monkeypatch.context() as patch:
        fail_after(patch, "symlink_to", 1)
        with pytest.raises(OutputError):
            prepare_dataset(tmp_path / "people.csv", tmp_path / "data")
    assert len(finish_as_told(tmp_path / "data")) == 2


def test_copying_that_is_killed_is_finished_by_the_command_it_names(tmp_path):
    raw = write_files(tmp_path / "raw", *(f"bounding_box_train/{pid:04d}_c1s1_1_1.jpg" for pid in range(400)))
    out = tmp_path / "data"
    code = f"from reid_models.data.prepare import *; prepare_dataset({str(raw)!r}, {str(out)!r}, copy=True)"
    run = subprocess.Popen([sys.executable, "-c", code])
    while len(list(out.glob("*/*/*.jpg"))) < 5 and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    index = finish_as_told(out)
    assert len(index) == 400
    assert not any(record.path.is_symlink() for record in index)
    assert all((raw / "bounding_box_train" / path.name).read_bytes() == path.read_bytes() for path in index.paths)
    assert not list(out.rglob(".*"))  # nothing half written is left


def test_a_disk_that_fills_while_copying_is_one_line_and_loses_nothing(toy_root, tmp_path, monkeypatch):
    out = tmp_path / "data"
    before = snapshot(toy_root)
    with monkeypatch.context() as patch:
        fail_after(patch, "write_bytes", 10)
        result = command("prepare", "--raw", toy_root, "--out", out, "--copy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"error: .*could not be written \(No space left on device\).*\n", result.stderr)
    copied = [path for path in out.rglob("*") if path.is_file() and path.name != "index.json"]
    assert len(copied) == 10
    assert all(path.read_bytes() == next(toy_root.glob(f"*/{path.name}")).read_bytes() for path in copied)
    assert snapshot(toy_root) == before
    assert len(finish_as_told(out)) == len(DatasetIndex.open(toy_root))


def test_a_picture_that_cannot_be_copied_is_named_itself(toy_root, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = command("prepare", "--raw", toy_root, "--out", tmp_path / "data", "--copy")
    assert result.exit_code == 1
    assert re.fullmatch(rf"error: {re.escape(str(toy_root))}/\S+\.jpg: permission denied\n", result.stderr)


def test_links_whose_raw_pictures_have_moved_are_mended(toy_root, tmp_path):
    raw, moved, out = tmp_path / "raw", tmp_path / "deep" / "moved", tmp_path / "data"
    shutil.copytree(toy_root, raw)
    before = prepare_dataset(raw, out)
    moved.parent.mkdir()
    raw.rename(moved)
    assert not any(path.exists() for path in before.paths)
    after = prepare_dataset(moved, out)
    assert after.records == before.records
    assert all(path.resolve().is_relative_to(moved) for path in after.paths)
    assert json.loads((out / "index.json").read_text())["raw"] == str(moved)
    assert not list(out.rglob(".*"))


def test_links_become_copies_when_those_are_asked_for(toy_root, tmp_path):
    prepare_dataset(toy_root, tmp_path / "data")
    index = prepare_dataset(toy_root, tmp_path / "data", copy=True)
    files = list((tmp_path / "data").rglob("*.jpg"))
    assert len(files) > len(index)  # train_all holds those of train and val once more
    assert not any(path.is_symlink() for path in files)
    assert all(path.read_bytes() == next(toy_root.glob(f"*/{path.name}")).read_bytes() for path in files)


def of_a_dead_process(name: str) -> str:
    """What a process that was killed leaves beside a file that it was writing."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    alive = str(os.getpid())
    with atomic_path(Path(name)) as part:
        return part.name.replace(f".{alive}-", f".{process.pid}-")


@pytest.mark.parametrize("copy", [False, True])
def test_what_killed_runs_have_half_written_is_removed_and_nothing_else(toy_root, tmp_path, copy):
    folder = prepare_dataset(toy_root, tmp_path / "data", copy=copy)[0].path.parent
    abandoned = folder / of_a_dead_process(str(tmp_path / "x.jpg"))
    for file in (abandoned, folder / ".mine", folder / ".notes.part"):
        file.write_bytes(b"x")
    prepare_dataset(toy_root, tmp_path / "data", copy=copy)
    assert {path.name for path in folder.glob(".*")} == {".mine", ".notes.part"}


def test_a_copy_that_is_empty_or_cut_off_is_made_again(toy_root, tmp_path):
    index = prepare_dataset(toy_root, tmp_path / "data", copy=True)
    whole = [path.read_bytes() for path in index.paths]
    index.paths[0].write_bytes(b"")
    index.paths[1].write_bytes(whole[1][:100])
    before = index.paths[2].stat()
    prepare_dataset(toy_root, tmp_path / "data", copy=True)
    assert [path.read_bytes() for path in index.paths] == whole
    assert index.paths[2].stat() == before
    index.paths[0].write_bytes(b"")
    prepare_dataset(toy_root, tmp_path / "data")  # without --copy by a link
    assert index.paths[0].is_symlink()
    assert [path.read_bytes() for path in index.paths] == whole


def test_links_lead_to_the_raw_dataset_that_was_named_last(toy_root, tmp_path):
    other = Path(shutil.copytree(toy_root, tmp_path / "other"))
    prepare_dataset(toy_root, tmp_path / "data")
    index = prepare_dataset(other, tmp_path / "data")
    assert all(path.resolve().is_relative_to(other) for path in index.paths)


def test_names_of_people_are_kept_in_a_table(tmp_path):
    raw = write_files(tmp_path / "raw", "Anna Müller/1.jpg", "Anna Müller/2.jpg", "=1+1/1.jpg")
    prepared = prepare_dataset(raw, tmp_path / "data")
    assert prepared.names == DatasetIndex.open(raw).names == {1: "=1+1", 2: "Anna Müller"}
    assert contents(prepared, "train_all") == {("1.jpg", 1, -1), ("1.jpg", 2, -1), ("2.jpg", 2, -1)}
    assert (tmp_path / "data/train_all/0002/1.jpg").is_symlink()
    assert prepare_dataset(raw, tmp_path / "data").names == prepared.names


def test_a_folder_prepared_by_an_earlier_version_is_opened_and_gets_its_names(tmp_path):
    raw = write_files(tmp_path / "raw", "anna/1.jpg", "bert/1.jpg")
    prepare_dataset(raw, tmp_path / "data")
    marker = tmp_path / "data" / "index.json"
    values = json.loads(marker.read_text())
    earlier = {key: value for key, value in values.items() if key not in ("sha256", "names")}
    marker.write_text(json.dumps(earlier, indent=2) + "\n")
    assert DatasetIndex.open(tmp_path / "data").names == {}
    assert prepare_dataset(raw, tmp_path / "data").names == {1: "anna", 2: "bert"}


def test_a_damaged_marker_of_ours_is_one_line_and_never_another_dataset(tmp_path):
    raw = write_files(tmp_path / "raw", "anna/1.jpg", "bert/1.jpg")
    prepared = prepare_dataset(raw, tmp_path / "data")
    marker = tmp_path / "data" / "index.json"
    whole = marker.read_bytes()
    refused = 0
    for position in range(len(whole)):
        marker.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            index = DatasetIndex.open(tmp_path / "data")
        except DatasetError as error:
            assert "prepare the dataset again in a new folder" in str(error)  # noqa: PT017
            refused += 1
        else:  # no marker of ours any more, or a space is another; the folders are read as they are
            assert index.records == prepared.records
            assert index.names in (prepared.names, {})
    assert refused > 0.8 * len(whole)
    marker.write_bytes(whole.replace(b"anna", b"hans"))
    result = command("prepare", "--raw", raw, "--out", tmp_path / "data")
    assert (result.exit_code, "values are not those that were written" in result.stderr) == (1, True)


def test_long_names_get_numbers_in_front_and_still_fit(tmp_path):
    names = ["x" * 251 + ".jpg", "x" * 250 + "y.jpg", "ü" * 125 + ".jpg"]
    write_files(tmp_path, *names)
    rows = "".join(f"{name},Anna,2\n" for name in names)
    (tmp_path / "people.csv").write_text(f"path,pid,camid\n{rows}")
    for copy in (False, True):
        prepared = prepare_dataset(tmp_path / "people.csv", tmp_path / f"data-{copy}", copy=copy)
        assert (len(prepared), set(prepared.camids)) == (3, {2})
        assert all(len(os.fsencode(path.name)) <= 255 for path in prepared.paths)


def test_of_two_preparations_at_once_one_is_refused(toy_root, tmp_path):
    out = tmp_path / "data"
    prepare_dataset(toy_root, out)
    before = snapshot(out)
    other = make_toy_dataset(tmp_path / "other", ids=4, cameras=2, per_camera=2, seed=1, image_hw=(32, 16))
    with locked(out, "reid-models prepare"):
        with pytest.raises(OutputError, match=r"data: reid-models prepare \(process \d+.*is writing here"):
            prepare_dataset(toy_root, out, copy=True)
        with pytest.raises(OutputError, match="holds another dataset"):
            prepare_dataset(other, out)
        assert snapshot(out).keys() - {".lock"} == before.keys()
    assert snapshot(out) == before


def prepare_when_all_are_ready(raw, out, barrier):
    barrier.wait()
    try:
        prepare_dataset(raw, out)
    except OutputError:
        raise SystemExit(1) from None


def test_two_datasets_prepared_into_one_folder_at_once_never_mix(toy_root, tmp_path):
    other = make_toy_dataset(tmp_path / "other", ids=4, cameras=2, per_camera=2, seed=1, image_hw=(32, 16))
    forked = multiprocessing.get_context("fork")
    for _ in range(3):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        barrier = forked.Barrier(2)
        both = [
            forked.Process(target=prepare_when_all_are_ready, args=(raw, tmp_path / "data", barrier))
            for raw in (toy_root, other)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert sorted(process.exitcode for process in both) == [0, 1]
        found = DatasetIndex.open(tmp_path / "data")
        assert contents(found, "query") in [contents(DatasetIndex.open(raw), "query") for raw in (toy_root, other)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("copy", [[], ["--copy"]], ids=["links", "copies"])
def test_a_preparation_that_is_asked_to_stop_leaves_with_75_and_is_finished_by_the_same_command(
    toy_root, tmp_path, monkeypatch, name, copy
):
    arguments = ("prepare", "--raw", toy_root, "--out", tmp_path / "data", *copy)
    placed = itertools.count()
    monkeypatch.setattr(os, "readlink", sending(name, placed, os.readlink))
    monkeypatch.setattr(os, "lstat", sending(name, placed, os.lstat))
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (75, ""), result.output
    assert result.stderr.splitlines()[-1].startswith(f"error: {name}: nothing is half written; run the same command")
    monkeypatch.undo()
    with pytest.raises(DatasetError, match="its preparation was cut short"):
        DatasetIndex.open(tmp_path / "data")
    assert command(*arguments).exit_code == 0
    assert len(DatasetIndex.open(tmp_path / "data")) == len(DatasetIndex.open(toy_root))


def sending(name: str, calls, original):
    """A function that sends this process a signal when `calls` has counted to 10."""

    def counted(*arguments, **options):
        if next(calls) == 10:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*arguments, **options)

    return counted


def test_listed_pictures_that_are_not_there_are_refused_before_anything_is_written(tmp_path):
    write_files(tmp_path, "x.jpg")
    (tmp_path / "people.csv").write_text("path,pid,camid,split\nx.jpg,1,1,train\ny.jpg,2,2,train\n")
    with pytest.raises(DatasetError, match=r"1 of 2 pictures are not there, e\.g\. .*y\.jpg; restore them or correct"):
        prepare_dataset(tmp_path / "people.csv", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_pictures_of_one_name_are_refused_before_anything_is_written(tmp_path):
    write_files(tmp_path, "a/x.jpg", "b/x.jpg")
    (tmp_path / "people.csv").write_text("path,pid,camid,split\na/x.jpg,1,1,train\nb/x.jpg,1,1,train\n")
    with pytest.raises(DatasetError, match="two pictures of one name"):
        prepare_dataset(tmp_path / "people.csv", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("inside", ["gallery", "train_all", "query/prepared", "bounding_box_train/prepared"])
def test_a_place_that_would_change_what_the_raw_folder_is_is_refused(toy_root, tmp_path, inside):
    raw = Path(shutil.copytree(toy_root, tmp_path / "raw"))
    with pytest.raises(
        DatasetError, match=f"lies in .*{inside.split('/')[0]} of the raw dataset; choose another --out"
    ):
        prepare_dataset(raw, raw / inside)
    assert snapshot(raw).keys() == snapshot(toy_root).keys()


def test_another_place_in_the_raw_folder_leaves_it_what_it_is(toy_root, tmp_path):
    raw = Path(shutil.copytree(toy_root, tmp_path / "raw"))
    prepare_dataset(raw, raw / "pytorch")
    assert DatasetIndex.open(raw).layout == "market1501"
    assert DatasetIndex.open(raw).fingerprint == DatasetIndex.open(toy_root).fingerprint


def test_viper_gets_person_and_camera_in_front_of_its_names(tmp_path):
    raw = write_files(tmp_path / "raw", *(f"cam_{side}/{pid:03d}_90.bmp" for pid in (1, 2, 4, 9) for side in "ab"))
    prepared = prepare_dataset(raw, tmp_path / "data")
    assert (tmp_path / "data/train_all").is_dir()
    names = {(record.path.name, record.pid, record.camid) for record in prepared}
    assert names == {(f"{pid:04d}_c{camid}_{pid:03d}_90.bmp", pid, camid) for pid in (1, 2, 4, 9) for camid in (1, 2)}
    assert prepared.split("query").camids.tolist() == [1, 1]


def test_a_table_decides_the_camera_whatever_a_name_says(tmp_path):
    unknown = ("0009_c2s1_1_1.jpg", "0000_000_01_0303morning_0008_0.jpg", "z.jpg")
    write_files(tmp_path, "x.jpg", "0007_c5s1_1_1.jpg", "0008_c2s1_1_1.jpg", "y.jpg", *unknown)
    (tmp_path / "people.csv").write_text(
        "path,pid,camid,split\nx.jpg,4,2,train\n0007_c5s1_1_1.jpg,7,3,train\n0008_c2s1_1_1.jpg,8,2,train\n"
        "y.jpg,-1,12,gallery\n0009_c2s1_1_1.jpg,9,,query\n0000_000_01_0303morning_0008_0.jpg,9,-1,query\nz.jpg,9,,query\n"
    )
    prepared = prepare_dataset(tmp_path / "people.csv", tmp_path / "data")
    assert contents(prepared, "train_all") == {
        ("0004_c2_x.jpg", 4, 2), ("0007_c3_0007_c5s1_1_1.jpg", 7, 3), ("0008_c2s1_1_1.jpg", 8, 2),
    }  # fmt: skip
    assert contents(prepared, "gallery") == {("-1_c12_y.jpg", -1, 12)}
    assert contents(prepared, "query") == {
        (f"0009_{unknown[0]}", 9, -1),
        (f"0009_{unknown[1]}", 9, -1),
        ("z.jpg", 9, -1),
    }


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"format": 2, "index_fingerprint": ""}'])
def test_a_foreign_or_damaged_index_file_is_refused_and_kept(toy_root, tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(OutputError, match="choose another --out"):
        prepare_dataset(toy_root, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("index.json", text)]


def test_the_raw_dataset_is_left_as_it_was(toy_root, tmp_path):
    before = snapshot(toy_root)
    prepare_dataset(toy_root, tmp_path / "data", copy=True)
    assert snapshot(toy_root) == before


def test_a_folder_with_foreign_files_is_refused_and_kept(toy_root, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        prepare_dataset(toy_root, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_dataset_is_not_mixed_in(toy_root, tmp_path):
    prepare_dataset(toy_root, tmp_path / "data")
    other = make_toy_dataset(tmp_path / "other", ids=4, cameras=2, per_camera=2, seed=1, image_hw=(32, 16))
    with pytest.raises(OutputError, match="holds another dataset"):
        prepare_dataset(other, tmp_path / "data")


def test_the_raw_folder_cannot_be_prepared_into_itself(toy_root):
    before = snapshot(toy_root)
    with pytest.raises(DatasetError, match="the raw dataset itself"):
        prepare_dataset(toy_root, toy_root)
    assert snapshot(toy_root) == before


def test_where_links_are_impossible_copies_are_suggested(toy_root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OutputError, match=r"no link can be made here.*use --copy"):
        prepare_dataset(toy_root, tmp_path / "data")


def test_people_in_plain_folders_have_no_query_to_prepare(tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=4, cameras=2, per_camera=2, layout="folders", image_hw=(32, 16))
    assert prepare_dataset(raw, tmp_path / "data").splits == ("train", "val")


def test_the_command_counts_what_it_prepared(toy_root, tmp_path):
    result = CliRunner().invoke(main, ["prepare", "--raw", str(toy_root), "--out", str(tmp_path / "data")])
    assert result.exit_code == 0
    assert "train_all" in result.stdout
    as_json = command("prepare", "--raw", toy_root, "--out", tmp_path / "data", "--json")
    values = json.loads(as_json.stdout)
    assert values["out"] == str(tmp_path / "data")
    assert values["splits"]["train_all"] == {"images": 24, "ids": 4}
    assert values["splits"]["val"] == {"images": 4, "ids": 4}
    failed = CliRunner().invoke(main, ["prepare", "--raw", str(tmp_path), "--out", str(tmp_path / "x")])
    assert failed.exit_code == 1
    assert failed.output.startswith("error: ")
