from pathlib import Path

import pytest
from PIL import Image

from reid_models.data.index import DatasetError, DatasetIndex, FileIdentity, parse_name
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
    "name", ["notes.jpg", "c1_0002.jpg", "0002.jpg", "0002_c_1.jpg", "x0002_c1s1_1_1.jpg", "٣_c1.jpg"]
)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,pid\nx.jpg,1\n", "no column camid, split"),
        ("path,pid,camid,split\nx.jpg,one,1,train\n", "line 2: pid 'one'"),
        ("path,pid,camid,split\nx.jpg,1,1,trainn\n", "line 2: split 'trainn'"),
        ("path,pid,camid,split\n", "no rows"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path, text, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        DatasetIndex.open(tmp_path / "people.csv")


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


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "msmt17", "folders"])
def test_every_layout_of_the_toy_world_is_recognised_and_wholly_parsed(tmp_path, layout):
    make_toy_dataset(tmp_path, ids=4, cameras=2, per_camera=2, layout=layout, image_hw=(32, 16))
    index = DatasetIndex.open(tmp_path)
    assert index.layout == layout
    assert index.unparsed == ()
    assert all(record.camid in (1, 2) for record in index)
