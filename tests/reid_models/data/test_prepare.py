import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from reid_eval.errors import OutputError
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
    failed = CliRunner().invoke(main, ["prepare", "--raw", str(tmp_path), "--out", str(tmp_path / "x")])
    assert failed.exit_code == 1
    assert failed.output.startswith("error: ")
