import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from reid_models.cli import main
from reid_models.data.check import check_dataset
from reid_models.data.index import DatasetError, DatasetIndex, FileIdentity, ImageRecord, parse_name
from reid_models.data.synthetic import make_toy_dataset


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (number % 256, 0, 0)).save(file)
    return root


MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0007_c6s3_070952_01.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/1501_c6s1_000151_01.jpg",
    "query/1501_c2s1_000151_00.jpg",
)


def people(index: DatasetIndex) -> list[tuple[str, int, int]]:
    return [(record.split, record.pid, record.camid) for record in index]


@pytest.mark.parametrize(
    ("name", "pid", "camid"),
    [
        ("0002_c1s1_000451_03.jpg", 2, 1),
        ("-1_c3s1_000401_03.jpg", -1, 3),
        ("0000_c5s2_000151_01.jpg", 0, 5),
        ("0005_c2_f0046985.jpg", 5, 2),
        ("0001_c014_00016450_0.jpg", 1, 14),
        ("0001_c001_00016450_0.jpg", 1, 1),
        ("1467_c2_10.png", 1467, 2),
        ("0000_000_01_0303morning_0008_0.jpg", 0, 1),
        ("0123_004_15_0114noon_1234_12_ex.jpg", 123, 15),
        ("12345_c10s1_000451_03.jpg", 12345, 10),
    ],
)
def test_a_published_name_gives_identity_and_whole_camera_number(name, pid, camid):
    assert parse_name(name) == FileIdentity(pid, camid)


@pytest.mark.parametrize(
        "name",
    ["notes.jpg", "c1_0002.jpg", "0002.jpg", "0002_c_1.jpg", "x0002_c1s1_1_1.jpg", "٣_c1.jpg", "-2020_c1.jpg",
     "99999999999999999999_c1s1_1_1.jpg", "1_c99999999999999999999.jpg"],
)  # fmt: skip
def test_a_name_that_does_not_parse_is_not_guessed(name):
    assert parse_name(name) is None


def test_market_is_recognised_whatever_the_folder_is_called(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path / "run-2020_c1 copy", *MARKET))
    assert index.layout == "market1501"
    assert people(index) == [
        ("train", 2, 1), ("train", 7, 6), ("query", 1501, 2),
        ("gallery", -1, 1), ("gallery", 0, 1), ("gallery", 1501, 6),
    ]  # fmt: skip


def test_hand_drawn_boxes_are_the_multi_query_split(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, *MARKET, "gt_bbox/1501_c2s1_000151_00.jpg"))
    assert people(index.split("multi-query")) == [("multi-query", 1501, 2)]


def test_hidden_files_and_thumbnails_are_no_images(tmp_path):
    write_images(tmp_path, *MARKET, "bounding_box_train/._0002_c1s1_000451_03.jpg")
    (tmp_path / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")
    index = DatasetIndex.open(tmp_path)
    assert len(index) == len(MARKET)
    assert index.unparsed == ()


JUNK = ("Thumbs.db", ".DS_Store", "._{}", "{}.txt")


@pytest.mark.parametrize(
    "names",
    [
        ("image_train/0001_c001_00016450_0.jpg", "image_test/0002_c010_00016450_0.jpg"),
        ("cam_a/001_0.bmp", "cam_b/001_90.bmp"),
        ("train_all/0002/0002_c1s1_000451_03.jpg", "gallery/0003/0003_c1s1_000451_03.jpg"),
        ("anna/holiday.jpg", "bert/x.png"),
    ],
    ids=["veri776", "viper", "prepared", "folders"],
)
def test_what_windows_and_macos_leave_among_pictures_is_no_image_in_any_layout(tmp_path, names):
    write_images(tmp_path, *names)
    before = DatasetIndex.open(tmp_path)
    for name in (tmp_path / name for name in names):
        for junk in JUNK:
            (name.parent / junk.format(name.name)).write_bytes(b"x")
    write_images(tmp_path, "__MACOSX/._holiday.jpg", ".Trash/0002_c1s1_000451_03.jpg")
    assert DatasetIndex.open(tmp_path) == before
    assert before.unparsed == ()


def test_pictures_may_be_of_any_format_and_their_suffix_in_capitals(tmp_path):
    names = [
        f"bounding_box_train/000{pid}_c1_1{suffix}"
        for pid, suffix in enumerate((".png", ".bmp", ".JPG", ".jpeg", ".JFIF"))
    ]
    assert len(DatasetIndex.open(write_images(tmp_path, *names))) == 5
    assert check_dataset(tmp_path, decode=True).can_train


@pytest.mark.parametrize(
    "names",
    [
        MARKET,
        tuple(f"cam_{side}/{pid:03d}_90.bmp" for pid in range(1, 9) for side in "ab"),
        ("anna/2.jpg", "anna/1.jpg", "bert/1.jpg", "zoe/1.jpg"),
        ("train_all/0002/a.jpg", "train_all/0002/b.jpg", "train_all/0001/c.jpg", "gallery/3/d.jpg"),
    ],
    ids=["market1501", "viper", "folders", "prepared"],
)
def test_the_order_in_which_a_file_system_lists_does_not_matter(tmp_path, monkeypatch, names):
    index = DatasetIndex.open(write_images(tmp_path, *names))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: reversed(list(scandir(folder))))
    assert DatasetIndex.open(tmp_path) == index


def test_files_that_do_not_parse_are_listed(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, *MARKET, "query/holiday.jpg"))
    assert [path.name for path in index.unparsed] == ["holiday.jpg"]


def test_duke(tmp_path):
    write_images(tmp_path, "bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c8_f0046985.jpg",
                 "bounding_box_test/0005_c2_f0046985.jpg")  # fmt: skip
    index = DatasetIndex.open(tmp_path)
    assert index.layout == "dukemtmc"
    assert people(index) == [("train", 1, 2), ("query", 5, 8), ("gallery", 5, 2)]


def test_occluded_duke_is_duke_whose_queries_lie_in_the_gallery_too(tmp_path):
    write_images(tmp_path, "bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c8_f0046985.jpg",
                 "bounding_box_test/0005_c8_f0046985.jpg", "bounding_box_test/0005_c2_f0046985.jpg")  # fmt: skip
    assert DatasetIndex.open(tmp_path).layout == "occluded-duke"


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("mask_train_v2", "mask_test_v2")], ids=["V1", "V2"])
def test_msmt17_reads_its_lists_and_keeps_two_digit_cameras(tmp_path, train, test):
    write_images(tmp_path, f"{train}/0000/0000_000_01_0303morning_0008_0.jpg",
                 f"{train}/0000/0000_001_15_0303morning_0008_0_ex.jpg", f"{test}/0000/0000_000_10_0114noon_0009_12.jpg",
                 f"{test}/0000/0000_001_02_0114noon_0009_1.jpg")  # fmt: skip
    lists = {
        "train": "0000/0000_000_01_0303morning_0008_0.jpg 0\n", "val": "0000/0000_001_15_0303morning_0008_0_ex.jpg 0\n",
        "query": "0000/0000_000_10_0114noon_0009_12.jpg 0\n", "gallery": "0000/0000_001_02_0114noon_0009_1.jpg 0\n",
    }  # fmt: skip
    for split, text in lists.items():
        (tmp_path / f"list_{split}.txt").write_text(text)
    index = DatasetIndex.open(tmp_path)
    assert index.layout == "msmt17"
    assert people(index) == [("train", 0, 1), ("val", 0, 15), ("query", 0, 10), ("gallery", 0, 2)]
    assert all(record.path.is_file() for record in index)
    assert len(index.split("train_all")) == 2


def small_msmt17(root: Path, line: str) -> Path:
    write_images(root, "train/0000/0000_000_01_0303morning_0008_0.jpg", "test/0000/0000_000_10_0114noon_0009_12.jpg")
    (root / "list_train.txt").write_text(f"0000/0000_000_01_0303morning_0008_0.jpg 0\n\n{line}\n", encoding="utf-8")
    (root / "list_query.txt").write_text("0000\\0000_000_10_0114noon_0009_12.jpg 0\r\n")
    return root


def test_msmt17_lists_may_be_written_on_windows(tmp_path):
    index = DatasetIndex.open(small_msmt17(tmp_path, ""))
    assert people(index) == [("train", 0, 1), ("query", 0, 10)]
    assert all(record.path.is_file() for record in index)


@pytest.mark.parametrize(
    "columns", ["", " 0 1", " zero", " -1", " ²", " 99999999999999999999"],
    ids=["no-pid", "three", "text", "negative", "superscript", "too-large"],
)  # fmt: skip
def test_an_msmt17_line_of_wrong_columns_is_listed(tmp_path, columns):
    name = "0001_000_02_0303morning_0008_0.jpg"
    index = DatasetIndex.open(small_msmt17(tmp_path, f"0001/{name}{columns}"))
    assert people(index) == [("train", 0, 1), ("query", 0, 10)]
    assert [path.name for path in index.unparsed] == [name]


def test_two_releases_of_msmt17_in_one_folder_are_refused(tmp_path):
    write_images(small_msmt17(tmp_path, ""), "mask_train_v2/0000/0000_000_01_0303morning_0008_0.jpg")
    with pytest.raises(DatasetError, match="holds train of V1 and mask_train_v2 of V2; expected one release"):
        DatasetIndex.open(tmp_path)


def test_msmt17_lists_without_their_pictures_say_which_folder_is_missing(tmp_path):
    shutil.rmtree(small_msmt17(tmp_path, "") / "test")
    with pytest.raises(DatasetError, match="has lists but no folder test or mask_test_v2; unpack"):
        DatasetIndex.open(tmp_path)


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")], ids=["V1", "V2"])
def test_msmt17_without_its_lists_is_told_what_is_missing(tmp_path, folders):
    write_images(tmp_path, *(f"{folder}/0000/0000_000_01_0303morning_0008_0.jpg" for folder in folders))
    with pytest.raises(DatasetError, match=r"looks like MSMT17 without list_train\.txt; unpack its four lists"):
        DatasetIndex.open(tmp_path)


def test_cuhk03_as_its_authors_pack_it_is_refused_with_advice(tmp_path):
    write_images(tmp_path, "images_labeled/1_001_1_01.png", "images_detected/1_001_1_01.png")
    (tmp_path / "cuhk-03.mat").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"as its authors pack it \(cuhk-03\.mat, .*\), without a split.*CUHK03-NP"):
        DatasetIndex.open(tmp_path)


def test_cuhk03_asks_which_half_when_there_are_two(tmp_path):
    for half in ("labeled", "detected"):
        write_images(tmp_path / half, "bounding_box_train/0003_c1_1.png", "query/0004_c1_1.png",
                     "bounding_box_test/0004_c2_7.png")  # fmt: skip
    index = DatasetIndex.open(tmp_path / "labeled")
    assert index.layout == "cuhk03np"
    assert people(index) == [("train", 3, 1), ("query", 4, 1), ("gallery", 4, 2)]
    with pytest.raises(DatasetError, match="both detected and labeled; choose one"):
        DatasetIndex.open(tmp_path)


def test_veri_keeps_three_digit_cameras(tmp_path):
    write_images(tmp_path, "image_train/0001_c001_00016450_0.jpg", "image_query/0002_c020_00016450_0.jpg",
                 "image_test/0002_c010_00016450_0.jpg")  # fmt: skip
    index = DatasetIndex.open(tmp_path)
    assert index.layout == "veri776"
    assert people(index) == [("train", 1, 1), ("query", 2, 20), ("gallery", 2, 10)]


def test_viper_pairs_its_two_folders_and_draws_the_same_halves_every_time(tmp_path):
    write_images(tmp_path, *(f"cam_{camera}/{pid:03d}_{angle}.bmp" for pid in (1, 2, 5, 9)
                             for camera, angle in (("a", 0), ("b", 90))))  # fmt: skip
    index = DatasetIndex.open(tmp_path)
    assert index.layout == "viper"
    assert {split: len(index.split(split)) for split in index.splits} == {"train": 4, "query": 2, "gallery": 2}
    assert {record.camid for record in index.split("query")} == {1}
    assert DatasetIndex.open(tmp_path).records == index.records
    train, test = set(index.split("train").labels), set(index.split("query").labels)
    assert train.isdisjoint(test)


def test_prepared_folders_give_the_identity_and_val_is_part_of_train_all(tmp_path):
    a, b = "0002/0002_c1s1_000451_03.jpg", "0002/0002_c2s1_000451_03.jpg"
    write_images(tmp_path, f"train_all/{a}", f"train_all/{b}", f"val/{a}", f"train/{b}",
                 "gallery/-1/-1_c1s1_000401_03.jpg", "query/0003/0003_c1s1_000451_00.jpg",
                 "gallery/0000/0000_c1s1_000151_01.jpg")  # fmt: skip
    index = DatasetIndex.open(tmp_path)
    assert index.layout == "prepared"
    assert people(index) == [("train", 2, 2), ("val", 2, 1), ("query", 3, 1), ("gallery", -1, 1), ("gallery", 0, 1)]
    assert len(index.split("train_all")) == 2


def test_a_prepared_folder_of_another_tool_may_have_train_all_alone(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, "train_all/v0012/0012_c003_00016450_0.jpg"))
    assert people(index) == [("train", 12, 3)]


@pytest.mark.parametrize("folders", [("train", "val"), ("query",), ("train", "val", "query")])
def test_a_split_with_a_folder_per_person_is_a_prepared_one(tmp_path, folders):
    index = DatasetIndex.open(write_images(tmp_path, *(f"{name}/0002/0002_c1s1_000451_03.jpg" for name in folders)))
    assert (index.layout, index.splits) == ("prepared", folders)


def test_people_without_numbers_have_one_number_in_all_splits(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, "train_all/cora/1.jpg", "query/bert/1.jpg", "gallery/anna/1.jpg",
                                           "gallery/bert/2.jpg"))  # fmt: skip
    assert people(index) == [("train", 3, -1), ("query", 2, -1), ("gallery", 1, -1), ("gallery", 2, -1)]


def test_where_some_folders_are_numbered_the_others_are_nobody(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, "0003/a.jpg", "0007/b.jpg", "todo/c.jpg"))
    assert people(index) == [("train", 3, -1), ("train", 7, -1)]
    assert [path.name for path in index.unparsed] == ["c.jpg"]


@pytest.mark.parametrize("other", ["1", "v0001"])
def test_two_spellings_of_one_number_are_refused(tmp_path, other):
    write_images(tmp_path, "train_all/0001/a.jpg", f"train_all/{other}/b.jpg", "gallery/1/c.jpg")
    with pytest.raises(DatasetError, match=r"the same number as .*; expected one folder per person, rename one"):
        DatasetIndex.open(tmp_path)


def test_a_folder_of_several_peoples_pictures_is_no_persons_folder(tmp_path):
    write_images(tmp_path, "photos/0002_c1s1_000451_03.jpg", "photos/0007_c1s1_000451_03.jpg")
    with pytest.raises(DatasetError, match="photos holds images of several people; if it is one person, say --layout"):
        DatasetIndex.open(tmp_path)
    assert people(DatasetIndex.open(tmp_path, "folders")) == [("train", 1, 1), ("train", 1, 1)]


def test_a_plain_folder_per_person_has_unknown_cameras(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, "anna/holiday.jpg", "bert/0002_c3_1.jpg", "bert/x.png"))
    assert index.layout == "folders"
    assert people(index) == [("train", 1, -1), ("train", 2, 3), ("train", 2, -1)]


def test_a_table_is_read_relative_to_itself(tmp_path):
    write_images(tmp_path, "a/x.jpg", "y.jpg")
    (tmp_path / "people.csv").write_text("path,pid,camid,split\na/x.jpg,4,11,train\ny.jpg,-1,2,gallery\n")
    index = DatasetIndex.open(tmp_path / "people.csv")
    assert people(index) == [("train", 4, 11), ("gallery", -1, 2)]
    assert all(record.path.is_file() for record in index)


def test_a_table_may_be_written_by_a_spreadsheet_on_windows(tmp_path):
    write_images(tmp_path, "a/x.jpg", "a/y, 2.jpg")
    text = 'path,pid,camid,split,note\r\na\\x.jpg,4,1,train,\r\n"a\\y, 2.jpg",5,-1,train,old\r\n\r\n'
    (tmp_path / "People.CSV").write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark
    index = DatasetIndex.open(tmp_path / "People.CSV")
    assert people(index) == [("train", 4, 1), ("train", 5, -1)]
    assert all(record.path.is_file() for record in index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,camid\nx.jpg,1\n", "no column pid, found path, camid"),
        ("path,pid,camid,split\nx.jpg,,1,train\n", "line 2: no pid; expected a number or a name"),
        ("path,pid,camid,split\nx.jpg,1,-2,train\n", "line 2: camid -2; expected a number from 0, -1 for none"),
        ("path,pid,split\nx.jpg,1,gallery\ny.jpg,1,test\n", "line 3: split 'test' beside query or gallery"),
        ("path,pid,camid,split\nx.jpg,1,1,trainn\n", "line 2: split 'trainn'"),
        ("path,pid,camid,split\n", "no rows"),
        ("", "no rows"),
        ("path,pid,camid,split\nx.jpg,1,1\n", "line 2: too few values"),
        ("path,pid,camid,split\nx.jpg,1,1,train\na,b.jpg,1,1,train\n", "line 3: too many values"),
        ("path,pid,camid,split\n ,1,1,train\n", "line 2: no path"),
        ("path,pid,camid,split\nx.jpg,-2,1,train\n", "line 2: pid -2; expected a number from 0"),
        ('path,pid,camid,split\n"x.jpg,1,1,train\ny.jpg,2,1,train\n', "line 2: unexpected end of data"),
        ("path,pid,camid,split\nJosé.jpg,1,1,train\n".encode("latin-1"), r"no text in UTF-8 \(byte 24\); .*save it"),
        ("path,pid,camid,split\n".encode("utf-16-le"), "holds a zero byte"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path, text, message):
    (tmp_path / "people.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message):
        DatasetIndex.open(tmp_path / "people.csv")


def open_table(folder: Path, text: str | bytes, name: str = "people.csv") -> DatasetIndex:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return DatasetIndex.open(folder / name)


def test_people_of_a_table_may_have_names_and_keep_them(tmp_path):
    index = open_table(tmp_path, "filename,person\nx.jpg,Bob\ny.jpg,Anna Müller\nz.jpg,-1\nv.jpg,Bob\n")
    assert [(record.path.name, record.pid) for record in index] == [
        ("v.jpg", 2),
        ("x.jpg", 2),
        ("y.jpg", 1),
        ("z.jpg", -1),
    ]
    assert index.names == {1: "Anna Müller", 2: "Bob"}
    assert [index.name_of(pid) for pid in (1, 2, -1)] == ["Anna Müller", "Bob", "-1"]
    assert index.split("train").subset([0]).names == index.names


def test_a_table_without_camera_and_split_is_for_training_with_unknown_cameras(tmp_path):
    assert people(open_table(tmp_path, "path,pid\nx.jpg,4\ny.jpg,7\n")) == [("train", 4, -1), ("train", 7, -1)]


def test_a_table_of_train_and_test_has_its_test_people_in_the_gallery(tmp_path):
    index = open_table(tmp_path, "path,pid,set\na.jpg,1,Train\nb.jpg,1,validation\nc.jpg,2,test\n")
    assert people(index) == [("train", 1, -1), ("val", 1, -1), ("gallery", 2, -1)]


def test_cameras_of_a_table_may_be_words_fractions_or_missing(tmp_path):
    north = open_table(tmp_path, "path,pid,camera\na.jpg,1,south\nb.jpg,1,north\nc.jpg,1,\nd.jpg,1,-1\n")
    assert north.camids.tolist() == [2, 1, -1, -1]
    exported = open_table(tmp_path, "path,pid,camid\na.jpg,3.0,12.0\nb.jpg,10.0,\n")  # numbers with gaps
    assert people(exported) == [("train", 3, 12), ("train", 10, -1)]
    assert exported.names == {}


def test_identities_too_long_for_64_bits_are_names(tmp_path):
    index = open_table(tmp_path, "path,pid\na.jpg,20231105123456789012\nb.jpg,7\n")
    assert index.names == {1: "20231105123456789012", 2: "7"}


@pytest.mark.parametrize(
    "content",
    [
        "path;pid;split\na/x.jpg;4;train\n".encode("utf-8-sig"),
        "path\tpid\tsplit\na\\x.jpg\t4\ttrain\n".encode("utf-16"),
        b"PATH , Person,Split\r\n a/x.jpg , 4 ,train\r\n",
    ],
    ids=["semicolons", "utf-16-tabs", "capitals-and-spaces"],
)
@pytest.mark.parametrize("name", ["people.csv", "people.TSV"])
def test_a_table_may_come_from_any_spreadsheet(tmp_path, content, name):
    write_images(tmp_path, "a/x.jpg")
    index = open_table(tmp_path, content, name)
    assert people(index) == [("train", 4, -1)]
    assert index[0].path.is_file()


def test_a_table_may_lie_beside_the_folder_of_its_pictures(tmp_path):
    write_images(tmp_path, "photos/x.jpg", "photos/y.jpg", "other/z.jpg")
    index = open_table(tmp_path, "filename,person\nx.jpg,Anna\ny.jpg,Bert\n")
    assert all(record.path.is_file() for record in index)
    assert index.root == tmp_path
    write_images(tmp_path, "second/x.jpg")  # now two folders have it, and nothing is guessed
    assert open_table(tmp_path, "filename,person\nx.jpg,Anna\n")[0].path == tmp_path / "x.jpg"


def test_a_list_of_msmt17_may_be_saved_by_a_windows_editor(tmp_path):
    small_msmt17(tmp_path, "")
    (tmp_path / "list_query.txt").write_bytes("0000/0000_000_10_0114noon_0009_12.jpg 0\r\n".encode("utf-16"))
    assert people(DatasetIndex.open(tmp_path)) == [("train", 0, 1), ("query", 0, 10)]


def images_of(folder: Path, *names: str) -> list[tuple[str, str, int]]:
    """File, person and camera of each picture that was made under these names."""
    index = DatasetIndex.from_images(write_images(folder, *names))
    return [(record.path.name, index.name_of(record.pid), record.camid) for record in index]


def test_any_folder_of_pictures_has_the_people_of_its_folders(tmp_path):
    assert images_of(tmp_path, "anna/1.jpg", "Bert Meier/x_c3.jpg", "Bert Meier/2.jpg", "loose.jpg") == [
        ("2.jpg", "Bert Meier", -1), ("x_c3.jpg", "Bert Meier", -1), ("1.jpg", "anna", -1), ("loose.jpg", "-1", -1),
    ]  # fmt: skip
    numbers = DatasetIndex.from_images(write_images(tmp_path / "numbers", "0007/a.jpg", "12/b.jpg", "-1/c.jpg"))
    assert (numbers.pids.tolist(), numbers.names) == ([-1, 7, 12], {})


def test_in_any_folder_of_pictures_names_that_parse_say_who_it_is(tmp_path):
    assert images_of(tmp_path / "flat", "0002_c1s1_1_1.jpg", "x.jpg") == [
        ("0002_c1s1_1_1.jpg", "2", 1),
        ("x.jpg", "-1", -1),
    ]
    market = images_of(tmp_path / "market", *MARKET)
    assert {(pid, camid) for _, pid, camid in market} == {
        ("2", 1),
        ("7", 6),
        ("-1", 1),
        ("0", 1),
        ("1501", 6),
        ("1501", 2),
    }


def test_one_folder_of_pictures_below_is_not_a_person(tmp_path):
    assert images_of(tmp_path, "photos/a.jpg", "photos/b.jpg") == [("a.jpg", "-1", -1), ("b.jpg", "-1", -1)]


@pytest.mark.parametrize(
    ("names", "is_nobody"),
    [
        (("bounding_box_test/0000_c1s1_1_1.jpg", "query/0001_c1s1_1_1.jpg"), True),
        (("bounding_box_test/0000_c1s1_1_1.jpg", "query/0000_c2s1_1_1.jpg"), False),
        (("gallery/0000/0000_c1s1_1_1.jpg", "gallery/0001/0001_c1s1_1_1.jpg", "query/0001/0001_c2s1_1_1.jpg"), True),
        (("0/a.jpg", "1/a.jpg"), False),
    ],
    ids=["market", "numbered-from-0", "prepared", "folders"],
)
def test_identity_0_is_nobody_in_a_gallery_like_markets_and_a_person_elsewhere(tmp_path, names, is_nobody):
    assert DatasetIndex.open(write_images(tmp_path, *names)).has_distractors is is_nobody


def test_identity_0_of_a_table_is_a_person(tmp_path):
    text = "path,pid,camid,split\na.jpg,0,1,gallery\nb.jpg,1,1,gallery\nc.jpg,1,2,query\n"
    assert not open_table(tmp_path, text).has_distractors


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"no known dataset layout.*expected for example bounding_box_train"):
        DatasetIndex.open(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        DatasetIndex.open(tmp_path / "nowhere")


def test_the_parent_of_a_dataset_suggests_its_child(tmp_path):
    write_images(tmp_path / "Market-1501-v15.09.15", *MARKET)
    with pytest.raises(DatasetError, match=r"did you mean .*Market-1501-v15\.09\.15\?"):
        DatasetIndex.open(tmp_path)


def test_a_dataset_two_folders_below_is_suggested_too(tmp_path):
    write_images(tmp_path / "market1501" / "Market-1501-v15.09.15", *MARKET)
    with pytest.raises(DatasetError, match=r"there is one below; did you mean .*market1501.Market-1501-v15\.09\.15\?"):
        DatasetIndex.open(tmp_path)


def test_several_datasets_below_are_all_suggested(tmp_path):
    for name in ("Market", "msmt17", "toy"):
        write_images(tmp_path / name, *MARKET)
    with pytest.raises(DatasetError, match=r"there are 3 below; did you mean .*Market or .*msmt17 or .*toy\?"):
        DatasetIndex.open(tmp_path)


def test_a_folder_whose_names_all_fail_to_parse_is_refused_with_an_example(tmp_path):
    write_images(tmp_path, "bounding_box_train/holiday.jpg")
    with pytest.raises(DatasetError, match=r"1 names do not parse, e\.g\. holiday\.jpg"):
        DatasetIndex.open(tmp_path)


def test_an_unknown_layout_suggests_the_nearest(tmp_path):
    with pytest.raises(DatasetError, match="did you mean market1501"):
        DatasetIndex.open(tmp_path, "market")


def test_a_missing_split_names_those_that_exist(tmp_path):
    index = DatasetIndex.open(write_images(tmp_path, MARKET[0]))
    with pytest.raises(DatasetError, match="no images in split gallery; found train"):
        index.split("gallery")


def test_names_of_files_may_hold_anything_that_a_system_allows(tmp_path):
    odd = [
        b"0002_c1s1_1_\n1.jpg",
        b"0003_c1s1_1_1\x1b[2J.jpg",
        b"0004_c1s1_1_\xff.jpg",
        b"0005_c1s1_1_1.jpg",
        b"\xff.jpg",
    ]
    (tmp_path / "bounding_box_train").mkdir()
    for name in odd:
        (tmp_path / "bounding_box_train" / os.fsdecode(name)).write_bytes(b"x")
    index = DatasetIndex.open(tmp_path)
    assert len(index) + len(index.unparsed) == len(odd)
    assert len(index.fingerprint) == 16
    result = CliRunner().invoke(main, ["check", str(tmp_path), "--decode"])
    assert (result.exit_code, "3 images cannot be read" in result.output) == (1, True)  # what is said is plain text
    assert "\x1b" not in result.output
    assert CliRunner().invoke(main, ["check", str(tmp_path), "--json", "--decode"]).exit_code == 1


def test_labels_number_the_sorted_identities_of_a_split(tmp_path):
    train = DatasetIndex.open(write_images(tmp_path, *MARKET)).split("train_all")
    assert train.labels == {2: 0, 7: 1}
    assert train.label_array.tolist() == [0, 1]


def test_the_fingerprint_does_not_depend_on_where_the_data_lies(tmp_path):
    here = DatasetIndex.open(write_images(tmp_path / "here", *MARKET))
    there = DatasetIndex.open(write_images(tmp_path / "there" / "deep", *MARKET))
    fewer = DatasetIndex.open(write_images(tmp_path / "fewer", *MARKET[:-1]))
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint != fewer.fingerprint


@pytest.mark.parametrize("change", [{"pid": 8}, {"camid": 9}, {"split": "gallery"}, {"path": "query/other.jpg"}])
def test_the_fingerprint_depends_on_all_that_a_record_says(change):
    record = ImageRecord(Path("data/query/x.jpg"), 7, 1, "query")
    changed = replace(record, **{key: Path("data", value) if key == "path" else value for key, value in change.items()})
    before, after = (DatasetIndex(Path("data"), "csv", (one,)).fingerprint for one in (record, changed))
    assert before != after


def test_the_fingerprint_is_the_same_whichever_way_a_path_is_written(tmp_path, monkeypatch):
    """Fast for paths that begin with the dataset's folder, and the same for all others."""
    expected = DatasetIndex.open(write_images(tmp_path, *MARKET)).fingerprint
    monkeypatch.chdir(tmp_path)
    around = tmp_path / "query" / ".."
    assert {DatasetIndex.open(root).fingerprint for root in (".", around, f"{tmp_path}/", tmp_path)} == {expected}


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "msmt17", "folders"])
def test_every_layout_of_the_toy_world_is_recognised_and_wholly_parsed(tmp_path, layout):
    make_toy_dataset(tmp_path, ids=4, cameras=2, per_camera=2, layout=layout, image_hw=(32, 16))
    index = DatasetIndex.open(tmp_path)
    assert index.layout == layout
    assert index.unparsed == ()
    assert all(record.camid in (1, 2) for record in index)
