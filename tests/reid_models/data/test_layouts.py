"""Which dataset a folder is: decided by all that it holds, so that nothing stray in it changes the answer."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from reid_models.data.check import check_dataset
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.prepare import prepare_dataset
from reid_models.data.synthetic import LAYOUTS, make_toy_dataset

PICTURE = "0009_c1s1_000451_03.jpg"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A small dataset of every layout of the toy world, and each prepared. Not to be written to."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        raw = make_toy_dataset(root / "toys" / layout, ids=4, cameras=2, per_camera=2, layout=layout, image_hw=(16, 8))
        shutil.move(raw / "labeled" if layout == "cuhk03np" else raw, root / layout)
        prepare_dataset(root / layout, root / f"prepared-{layout}")
    for camid, side in enumerate("ab"):
        write(root / "viper", *(f"cam_{side}/{pid:03d}_{90 * camid}.bmp" for pid in range(1, 9)))
    write(root / "veri776", *(f"image_{split}/{pid:04d}_c00{camid}_00016450_0.jpg" for camid in (1, 2)
                              for split, pid in (("train", 1), ("train", 2), ("query", 3), ("test", 3))))  # fmt: skip
    for name in ("anna", "bert", "cora"):
        write(root / "words", f"{name}/1.jpg", f"{name}/2.jpg")
    return root


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (len(name) % 256, 0, 0)).save(root / name)
    return root


def people(index: DatasetIndex) -> list[tuple[str, int, int, str]]:
    return [
        (record.split, record.pid, record.camid, record.path.relative_to(index.root).as_posix()) for record in index
    ]


KINDS = (*LAYOUTS, *(f"prepared-{layout}" for layout in LAYOUTS), "viper", "veri776", "words")


def folders_of(root: Path) -> list[Path]:
    """The dataset's folder, those in it, and one of a person where there are any."""
    first = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    second = [sorted(path for path in folder.iterdir() if path.is_dir())[:1] for folder in first]
    return [root, *first, *(path for paths in second for path in paths)]


def thumbnails(folder: Path) -> None:
    write(folder, f"@eaDir/{PICTURE}/SYNOPHOTO_THUMB_M.jpg", f"__MACOSX/._{PICTURE}", f".git/{PICTURE}")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "lost+found").mkdir()


def folders_called_like_pictures(folder: Path) -> None:
    (folder / PICTURE).mkdir()
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg" / "notes.txt").write_text("no picture")


def links_in_circles(folder: Path) -> None:
    (folder / "itself").symlink_to("itself")
    (folder / "parent").symlink_to("..")
    (folder / ".here").symlink_to(".")


def empty_folders_of_telling_names(folder: Path) -> None:
    for name in ("train_all", "gallery", "query", "train", "val", "test", "bounding_box_test", "image_train", "cam_a"):
        (folder / name).mkdir(exist_ok=True)


HARMLESS = (thumbnails, folders_called_like_pictures, links_in_circles, empty_folders_of_telling_names)


@pytest.mark.parametrize("stray", HARMLESS, ids=lambda stray: stray.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_no_pictures_of_people_changes_nothing(datasets, tmp_path, kind, stray):
    before = DatasetIndex.open(datasets / kind)
    root = Path(shutil.copytree(datasets / kind, tmp_path / kind, symlinks=False))
    for folder in folders_of(root):
        stray(folder)
    after = DatasetIndex.open(root)
    assert (after.layout, people(after), after.unparsed) == (before.layout, people(before), ())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("folders", "words")])
def test_a_backup_in_any_folder_is_left_out_and_told(datasets, tmp_path, kind):
    """Not where people's folders are called by words, of which a backup may be one."""
    before = DatasetIndex.open(datasets / kind)
    root = Path(shutil.copytree(datasets / kind, tmp_path / kind, symlinks=False))
    for folder in folders_of(root):
        write(folder / "removed", *(f"{number}{PICTURE}" for number in range(30)))
        write(folder / "old" / "removed", PICTURE)
    after = DatasetIndex.open(root)
    assert (after.layout, people(after)) == (before.layout, people(before))
    left_out = [path.relative_to(root).as_posix() for path in after.left_out]
    passed_over = {path.parent.relative_to(root).as_posix() for path in after.unparsed}  # beside people's folders
    assert {"removed", "old"} <= {name.rpartition("/")[2] for name in left_out} | passed_over
    check = check_dataset(root)
    assert check.can_train == check_dataset(datasets / kind).can_train
    assert any("left out" in finding.what for finding in check.findings)


def test_the_split_folder_of_another_layout_changes_nothing(datasets, tmp_path):
    market, prepared = (
        Path(shutil.copytree(datasets / kind, tmp_path / kind)) for kind in ("market1501", "prepared-dukemtmc")
    )
    write(market, "train/0009/a.jpg", "val/0009/b.jpg", "query/query/" + PICTURE)
    write(prepared, f"bounding_box_train/{PICTURE}", f"query/{PICTURE}", f"image_train/{PICTURE}")
    for root, kind in ((market, "market1501"), (prepared, "prepared-dukemtmc")):
        before, after = DatasetIndex.open(datasets / kind), DatasetIndex.open(root)
        assert (after.layout, people(after)) == (before.layout, people(before))
        assert after.left_out


def test_a_table_or_a_list_of_ones_own_does_not_make_market_another_dataset(datasets, tmp_path):
    root = Path(shutil.copytree(datasets / "market1501", tmp_path / "market"))
    (root / "list_train.txt").write_text("notes on training\n")
    (root / "index.json").write_text('{"index_fingerprint": "of another program"}')
    assert people(DatasetIndex.open(root)) == people(DatasetIndex.open(datasets / "market1501"))


def test_one_numbered_folder_among_people_of_words_is_a_person_and_one_word_among_numbers_is_not(tmp_path):
    words = DatasetIndex.open(write(tmp_path / "words", "anna/1.jpg", "bert/1.jpg", "2023/1.jpg"))
    assert words.names == {1: "2023", 2: "anna", 3: "bert"}
    numbers = DatasetIndex.open(write(tmp_path / "numbers", "0002/1.jpg", "0007/1.jpg", "todo/1.jpg"))
    assert (numbers.labels.keys(), numbers.names) == ({2, 7}, {})


def test_a_folder_of_many_among_people_of_words_is_nobody(tmp_path):
    write(tmp_path, "anna/1.jpg", "bert/1.jpg", "all/0002_c1_1.jpg", "all/0003_c1_1.jpg")
    index = DatasetIndex.open(tmp_path)
    assert (index.layout, index.names) == ("folders", {1: "anna", 2: "bert"})
    assert [path.parent.name for path in index.unparsed] == ["all", "all"]


def test_train_and_test_with_a_folder_per_person_are_training_and_gallery(tmp_path):
    write(tmp_path, *(f"{person}/{number}.jpg" for person in ("train/anna", "train/bert", "test/cora", "test/dora")
                      for number in (1, 2)))  # fmt: skip
    index = DatasetIndex.open(tmp_path)
    assert {split: index.split(split).num_ids for split in index.splits} == {"train": 2, "gallery": 2}
    assert index.names == {1: "anna", 2: "bert", 3: "cora", 4: "dora"}
    said = check_dataset(tmp_path).to_text()
    assert "the folder test is taken for the gallery" in said
    assert "put the pictures that ask into query, those that answer into gallery" in said


def test_beside_train_and_val_test_is_the_gallery_and_beside_a_gallery_it_is_left_out(tmp_path):
    three = write(tmp_path / "three", "train/1/a.jpg", "train/2/a.jpg", "val/1/b.jpg", "val/2/b.jpg", "test/3/a.jpg")
    assert {split: len(DatasetIndex.open(three).split(split)) for split in ("train", "val", "gallery")} == {
        "train": 2, "val": 2, "gallery": 1,
    }  # fmt: skip
    index = DatasetIndex.open(write(three, "gallery/4/a.jpg", "query/4/b.jpg"))
    assert set(index.split("gallery").pids) == {4}
    assert index.left_out == (three / "test",)


def test_msmt17_without_lists_is_known_by_its_names_and_other_people_are_not_taken_for_it(tmp_path):
    write(tmp_path / "msmt", *(f"{half}/0000/0000_000_01_0303morning_0008_0.jpg" for half in ("train", "test")))
    with pytest.raises(DatasetError, match=r"looks like MSMT17 without list_train\.txt"):
        DatasetIndex.open(tmp_path / "msmt")
    write(tmp_path / "mine", "train/0000/1.jpg", "train/0001/1.jpg", "test/0002/1.jpg")
    assert DatasetIndex.open(tmp_path / "mine").layout == "prepared"


def test_split_folders_with_pictures_of_anybody_say_what_is_missing(tmp_path):
    with pytest.raises(DatasetError, match="train and test with images of anybody; expected a folder per person in it"):
        DatasetIndex.open(write(tmp_path, "train/holiday.jpg", "test/beach.jpg"))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("market1501", "dukemtmc"), ("market1501", "cuhk03np"), ("market1501", "folders"), ("market1501", "veri776"),
     ("market1501", "prepared"), ("market1501", "msmt17"), ("market1501", "viper"), ("dukemtmc", "market1501"),
     ("prepared-market1501", "folders"), ("prepared-market1501", "market1501"), ("folders", "prepared"),
     ("msmt17", "prepared")],
)  # fmt: skip
def test_a_layout_that_contradicts_what_lies_there_is_refused(datasets, kind, layout):
    found = DatasetIndex.open(datasets / kind).layout
    with pytest.raises(DatasetError, match=rf"no dataset of layout {layout}, but of {found}; leave --layout out"):
        DatasetIndex.open(datasets / kind, layout)


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "cuhk03np"])
def test_a_layout_may_be_chosen_where_the_names_do_not_tell(tmp_path, layout):
    write(tmp_path, *(f"{split}/0001_c{camid}_x.jpg" for camid, split in
                      enumerate(("bounding_box_train", "bounding_box_test", "query"), start=1)))  # fmt: skip
    assert DatasetIndex.open(tmp_path, layout).layout == layout


def test_occluded_duke_and_duke_may_be_asked_for_by_either_name(datasets):
    assert people(DatasetIndex.open(datasets / "dukemtmc", "occluded-duke")) == people(
        DatasetIndex.open(datasets / "dukemtmc")
    )


def test_a_flat_folder_with_a_table_in_it_is_told_of_the_table(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "people.csv").write_text("filename,person\na.jpg,Anna\nb.jpg,Bert\n")
    with pytest.raises(DatasetError, match=r"2 images without a folder per person.*did you mean .*people\.csv\?"):
        DatasetIndex.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open everything")
def test_a_folder_without_permission_is_one_line(datasets, tmp_path):
    root = Path(shutil.copytree(datasets / "market1501", tmp_path / "market"))
    (root / "query").chmod(0)
    with pytest.raises(DatasetError, match=r"query: cannot be opened \(permission denied\)"):
        DatasetIndex.open(root)
    (root / "query").chmod(0o700)


def test_a_folder_that_cannot_be_opened_is_one_line(datasets, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "query":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"query: cannot be opened \(permission denied\); what lies in it would be"):
        DatasetIndex.open(datasets / "market1501")
