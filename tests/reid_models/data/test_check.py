import itertools
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid_models.cli import main
from reid_models.data.check import PUBLISHED, check_dataset, fitting_protocol, ranked_splits, training_findings
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.data.prepare import prepare_dataset
from reid_models.data.synthetic import make_toy_dataset


def write_images(root: Path, *names: str) -> Path:
    """Files of noise, no two alike."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (16, 8, 3), np.uint8)
        Image.fromarray(noise).save(file)
    return root


SOUND = (
    "bounding_box_train/0002_c1s1_000001_01.jpg",
    "bounding_box_train/0002_c2s1_000002_01.jpg",
    "bounding_box_train/0007_c1s1_000003_01.jpg",
    "bounding_box_train/0007_c2s1_000004_01.jpg",
    "query/0003_c1s1_000005_00.jpg",
    "bounding_box_test/0003_c2s1_000006_01.jpg",
)


def findings(root: Path, **options) -> dict[str, str]:
    """Severity of each finding, by what it says."""
    return {finding.what: finding.severity for finding in check_dataset(root, **options).findings}


def said(root: Path, words: str, **options) -> str:
    """The severity of the one finding that says these words."""
    found = [severity for what, severity in findings(root, **options).items() if words in what]
    assert len(found) == 1, findings(root, **options)
    return found[0]


def full_set(dataset: str, variant: int = 0) -> list[ImageRecord]:
    """As many records as published in every split and camera, with Market's names, of pictures that are nowhere."""
    records = []
    for split, full in PUBLISHED[dataset][variant].items():
        camids = [camid for camid, images in enumerate(full.cameras, start=1) for _ in range(images)]
        for row, camid in enumerate(camids or [1] * full.images):
            pid = row % full.ids
            path = Path("nowhere", split, f"{pid:04d}_c{camid}s1_{row:06d}_01.jpg")
            records.append(ImageRecord(path, pid, camid, split))
    return records


def check_records(records: list[ImageRecord], layout: str):
    return check_dataset(DatasetIndex(Path("nowhere"), layout, tuple(records)))


def test_a_sound_subset_has_nothing_but_a_note_on_its_size(tmp_path):
    write_images(tmp_path, *SOUND)
    assert list(findings(tmp_path, decode=True).values()) == ["note"]
    assert check_dataset(tmp_path).can_train


def test_splits_and_cameras_are_counted_beside_the_published_numbers(tmp_path):
    write_images(
        tmp_path, *SOUND, "bounding_box_test/-1_c1s1_000007_01.jpg", "bounding_box_test/0000_c2s1_000008_01.jpg"
    )
    by_name = {split.split: split for split in check_dataset(tmp_path).splits}
    assert by_name["train"].images == 4
    assert by_name["train"].expected_images == 12_936
    assert by_name["train"].cameras == {1: 2, 2: 2}
    assert (by_name["gallery"].junk, by_name["gallery"].distractors) == (1, 1)


def test_published_counts_are_those_of_the_datasets_own_lists():
    sums = {layout: sum(full.images for full in variants[0].values()) for layout, variants in PUBLISHED.items()}
    assert sums["market1501"] == 36_036
    assert sums["msmt17"] == 126_441
    assert sums["dukemtmc"] == 36_411
    assert sums["occluded-duke"] == 35_489


def test_the_published_cameras_of_a_split_sum_to_its_images():
    splits = [(name, full) for name, variants in PUBLISHED.items() for counts in variants for full in counts.values()]
    with_cameras = [(name, full) for name, full in splits if full.cameras]
    assert {name for name, _ in with_cameras} == {"market1501", "occluded-duke", "msmt17", "cuhk03np"}
    assert all(sum(full.cameras) == full.images for _, full in with_cameras)
    assert {name: len(full.cameras) for name, full in with_cameras} == {
        "market1501": 6, "occluded-duke": 8, "msmt17": 15, "cuhk03np": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "variant"),
    [("market1501", 0), ("dukemtmc", 0), ("occluded-duke", 0), ("cuhk03np", 0), ("cuhk03np", 1)],
)
def test_a_full_set_is_said_to_be_all_as_published(dataset, variant):
    check = check_records(full_set(dataset, variant), dataset)
    text = check.to_text()
    assert "all as published" in text
    assert " / " not in text
    assert not [finding for finding in check.findings if "published" in finding.what]


def test_a_nearly_full_set_names_the_split_and_the_camera_where_images_are_missing():
    records = full_set("market1501")
    lost = [record for record in records if (record.split, record.camid) == ("train", 3)][:100]
    check = check_records([record for record in records if record not in set(lost)], "market1501")
    said = {finding.what: finding for finding in check.findings}
    split = said["nearly the published full set, but train 12,836 instead of 12,936"]
    camera = said["1 cameras hold another number of images than published"]
    assert (split.severity, camera.severity) == ("warning", "warning")
    assert camera.examples == ("train c3: 2,607 instead of 2,707",)
    text = check.to_text()
    assert "all as published" not in text
    assert "found / published, where they differ" in text
    assert re.search(r"^train +12,836 / 12,936 +751 +0 +0$", text, re.MULTILINE)
    assert re.search(r"^c3 +2,607 / 2,707 +717 +3,803$", text, re.MULTILINE)


def test_pictures_renamed_to_another_camera_are_found_though_their_number_is_right():
    records = full_set("market1501")
    records[0] = replace(records[0], camid=2)
    check = check_records(records, "market1501")
    cameras = [finding.examples for finding in check.findings if "cameras hold another number" in finding.what]
    assert cameras == [("train c1: 2,016 instead of 2,017", "train c2: 1,710 instead of 1,709")]
    assert not [finding for finding in check.findings if "nearly" in finding.what]


def test_a_part_is_noted_and_a_split_that_is_not_there_counts_as_none_of_its_images():
    check = check_records([record for record in full_set("market1501") if record.split != "query"], "market1501")
    severity = {finding.what: finding.severity for finding in check.findings}
    assert severity["not the published full set: query 0 instead of 3,368"] == "note"
    text = check.to_text()
    assert "all as published" not in text
    assert re.search(r"^query +0 / 3,368 +0 / 750 ", text, re.MULTILINE)


def test_cameras_without_any_picture_share_a_line(tmp_path):
    write_images(tmp_path, *SOUND)
    assert "no image of c3, c4, c5, c6\n" in check_dataset(tmp_path).to_text()


def test_a_dataset_without_published_counts_is_compared_with_none(tmp_path):
    text = check_dataset(write_images(tmp_path, "anna/1.jpg", "anna/2.jpg", "bert/1.jpg", "bert/2.jpg")).to_text()
    assert "published" not in text
    assert re.search(r"^unknown +4$", text, re.MULTILINE)


def test_a_full_prepared_market_has_one_picture_of_each_identity_held_out():
    met = set()
    records = []
    for record in full_set("market1501"):
        is_first = record.split == "train" and record.pid not in met
        met |= {record.pid} if is_first else set()
        records.append(replace(record, split="val") if is_first else record)
    check = check_records(records, "prepared")
    counts = {split.split: (split.images, split.expected_images) for split in check.splits}
    assert (counts["train"], counts["val"]) == ((12_185, 12_185), (751, 751))
    assert "nowhere: prepared (market1501)" in check.to_text()
    assert "all as published" in check.to_text()


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "msmt17", "cuhk03np"])
def test_a_prepared_folder_is_known_by_its_names(tmp_path, layout):
    raw = make_toy_dataset(tmp_path / "raw", ids=4, cameras=2, per_camera=2, layout=layout, image_hw=(32, 16))
    check = check_dataset(prepare_dataset(raw / "labeled" if layout == "cuhk03np" else raw, tmp_path / "data"))
    assert (check.layout, check.dataset) == ("prepared", layout)
    assert not [finding.what for finding in check.findings if "training and test" in finding.what]
    if layout == "msmt17":
        assert {split.distractors for split in check.splits} == {0}  # its 0000 is a person like any other


def test_prepared_occluded_duke_and_viper_are_known_by_their_names(tmp_path):
    duke = write_images(tmp_path / "duke", "bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c8_f0046985.jpg",
                        "bounding_box_test/0005_c8_f0046985.jpg")  # fmt: skip
    viper = write_images(tmp_path / "viper", *(f"cam_{side}/{pid:03d}_90.bmp" for pid in range(1, 5) for side in "ab"))
    assert check_dataset(prepare_dataset(duke, tmp_path / "1")).dataset == "occluded-duke"
    assert check_dataset(prepare_dataset(viper, tmp_path / "2")).dataset == "viper"


def test_a_prepared_folder_of_other_names_is_compared_with_nothing(tmp_path):
    check = check_dataset(write_images(tmp_path, "train_all/1/a.jpg", "train_all/2/b.jpg", "gallery/3/c.jpg"))
    assert check.dataset == "prepared"
    assert {split.expected_images for split in check.splits} == {None}


def test_names_that_do_not_parse_are_listed(tmp_path):
    write_images(tmp_path, *SOUND, "query/holiday.jpg")
    assert said(tmp_path, "1 image names do not parse") == "warning"


def test_one_identity_cannot_be_trained_on(tmp_path):
    write_images(tmp_path, *SOUND[:2])
    assert said(tmp_path, "one identity") == "error"
    assert not check_dataset(tmp_path).can_train


def test_one_camera_is_said(tmp_path):
    write_images(tmp_path, SOUND[0], SOUND[2])
    assert said(tmp_path, "all training images are from one camera (c1)") == "warning"
    assert check_dataset(tmp_path).can_train


def test_identities_with_one_image_or_one_camera_are_said(tmp_path):
    train = tmp_path / "bounding_box_train"
    write_images(tmp_path, *SOUND)
    write_images(train, "0008_c1s1_000009_01.jpg", "0009_c1s1_000010_01.jpg", "0009_c1s1_000011_01.jpg")
    assert said(tmp_path, "1 training identities have one image") == "warning"
    assert said(tmp_path, "1 training identities are seen by one camera") == "note"


def test_junk_in_training_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "bounding_box_train/-1_c1s1_000020_01.jpg")
    assert said(tmp_path, "1 training images are junk") == "warning"


def test_a_camera_the_dataset_does_not_have_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "bounding_box_train/0002_c7s1_000020_01.jpg")
    assert said(tmp_path, "camera 7 in a dataset of 6 cameras") == "warning"


def test_an_identity_in_training_and_test_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "bounding_box_test/0002_c3s1_000012_01.jpg")
    assert said(tmp_path, "1 identities are in training and test") == "warning"


def test_msmt17_may_use_a_number_for_two_people(tmp_path):
    make_toy_dataset(tmp_path, ids=4, cameras=2, per_camera=2, layout="msmt17", image_hw=(32, 16))
    assert not [what for what in findings(tmp_path) if "training and test" in what]


def test_a_query_without_a_match_in_another_camera_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "query/0004_c1s1_000013_00.jpg", "bounding_box_test/0004_c1s1_000014_01.jpg")
    assert said(tmp_path, "1 of 2 queries have no match") == "warning"


def test_queries_that_match_in_their_own_camera_alone_are_ranked_without_cameras(tmp_path):
    write_images(tmp_path, *SOUND[:4], "query/0003_c1s1_000005_00.jpg", "bounding_box_test/0003_c1s1_000006_01.jpg")
    assert said(tmp_path, "1 of 1 queries have no match in another camera") == "warning"
    assert fitting_protocol(DatasetIndex.open(tmp_path))[0] == "no-camera"
    assert check_dataset(tmp_path).can_train


def test_queries_whose_people_are_not_in_the_gallery_are_an_error(tmp_path):
    write_images(tmp_path, *SOUND[:4], "query/0003_c1s1_000005_00.jpg", "bounding_box_test/0004_c2s1_000006_01.jpg")
    assert said(tmp_path, "no query has its person in the gallery") == "error"
    assert fitting_protocol(DatasetIndex.open(tmp_path))[0] is None
    assert not check_dataset(tmp_path).can_train


def test_a_query_split_without_a_gallery_is_said(tmp_path):
    write_images(tmp_path, *SOUND[:5])
    assert said(tmp_path, "a query split but no gallery split") == "warning"


def test_a_truncated_picture_is_found_by_decoding(tmp_path):
    write_images(tmp_path, *SOUND)
    file = tmp_path / SOUND[0]
    file.write_bytes(file.read_bytes()[:-40])
    assert not [what for what in findings(tmp_path) if "cannot be read" in what]
    assert said(tmp_path, "1 images cannot be read", decode=True) == "error"


def test_an_empty_file_is_an_error(tmp_path):
    write_images(tmp_path, *SOUND)
    (tmp_path / SOUND[0]).write_bytes(b"")
    assert said(tmp_path, "1 files are empty") == "error"


def test_byte_identical_files_are_found_and_links_are_not_copies(tmp_path):
    write_images(tmp_path, *SOUND)
    copy = tmp_path / "bounding_box_train/0007_c3s1_000099_01.jpg"
    copy.write_bytes((tmp_path / SOUND[0]).read_bytes())
    assert said(tmp_path, "1 groups of byte-identical files") == "warning"
    copy.unlink()
    os.symlink(tmp_path / SOUND[0], copy)
    assert not [what for what in findings(tmp_path) if "byte-identical" in what]


def test_queries_that_lie_in_the_gallery_belong_to_occluded_duke(tmp_path):
    write_images(tmp_path, "bounding_box_train/0001_c2_f0046182.jpg", "bounding_box_train/0001_c3_f0046183.jpg",
                 "bounding_box_train/0002_c2_f0046182.jpg", "bounding_box_train/0002_c3_f0046183.jpg",
                 "query/0005_c8_f0046985.jpg", "bounding_box_test/0005_c2_f0046985.jpg")  # fmt: skip
    copy = tmp_path / "bounding_box_test/0005_c8_f0046985.jpg"
    copy.write_bytes((tmp_path / "query/0005_c8_f0046985.jpg").read_bytes())
    assert said(tmp_path, "1 query images lie in the gallery too") == "note"
    assert not [what for what in findings(tmp_path) if "byte-identical" in what]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_under_a_pictures_name_are_an_error_and_never_opened(tmp_path):
    write_images(tmp_path, *SOUND)
    os.mkfifo(tmp_path / "bounding_box_train" / "0002_c3s1_000030_01.jpg")
    (tmp_path / "bounding_box_train" / "0002_c4s1_000031_01.jpg").symlink_to("/dev/zero")
    assert said(tmp_path, "2 pictures are pipes, devices or folders", decode=True) == "error"


def test_a_picture_without_permission_is_an_error_before_any_is_read(tmp_path, monkeypatch):
    write_images(tmp_path, *SOUND)
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != Path(SOUND[0]).name)
    assert said(tmp_path, "1 images cannot be read") == "error"
    assert [finding.severity for finding in training_findings(DatasetIndex.open(tmp_path))][:1] == ["error"]


def test_links_whose_pictures_have_moved_are_told_from_files_that_are_not_there(tmp_path):
    raw = write_images(tmp_path / "raw", *SOUND)
    index = prepare_dataset(raw, tmp_path / "data")
    raw.rename(tmp_path / "moved")
    check = check_dataset(tmp_path / "data")
    (finding,) = [finding for finding in check.findings if "links lead nowhere" in finding.what]
    assert (finding.severity, finding.what.split()[0]) == ("error", str(len(index)))
    assert finding.examples[0].startswith("train_all/0002/0002_c2s1_000002_01.jpg -> ..")
    assert not [finding for finding in check.findings if "not there" in finding.what]
    assert CliRunner().invoke(main, ["check", str(tmp_path / "data")]).exit_code == 1


def test_training_and_check_have_one_verdict(tmp_path):
    """What is cheap to see is seen by both; check adds what was published and what reading shows."""
    write_images(tmp_path, *SOUND, "query/holiday.jpg", "bounding_box_train/0008_c1s1_000009_01.jpg", "old/x.jpg")
    (tmp_path / SOUND[0]).write_bytes(b"")
    cheap, all_of_it = training_findings(DatasetIndex.open(tmp_path)), check_dataset(tmp_path).findings
    assert [finding for finding in all_of_it if "published" not in finding.what] == cheap
    assert [finding.severity for finding in cheap] == ["error", "warning", "warning", "note"]


def test_training_findings_read_no_file(tmp_path, monkeypatch):
    write_images(tmp_path, *SOUND)
    index = DatasetIndex.open(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    for owner, name in ((Path, "open"), (Path, "read_bytes"), (Image, "open")):
        monkeypatch.setattr(owner, name, refuse)
    assert training_findings(index) == []


def table(folder: Path, *rows: str) -> Path:
    """A table of pictures, each of which is drawn."""
    write_images(folder, *(row.split(",")[0] for row in rows))
    (folder / "people.csv").write_text("\n".join(["path,pid,camid,split", *rows]) + "\n")
    return folder / "people.csv"


TRAINING = ("1a.jpg,1,1,train", "1b.jpg,1,2,train", "2a.jpg,2,1,train", "2b.jpg,2,2,train")
TEST = ("3a.jpg,3,1,query", "3b.jpg,3,2,gallery")


def test_a_table_that_lists_every_picture_once_is_sound(tmp_path):
    assert findings(table(tmp_path, *TRAINING, *TEST)) == {}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("1a.jpg,2,1,train",), "1 pictures are listed under several people"),
        (("1a.jpg,1,1,gallery",), "1 pictures are in training and test"),
        (("3a.jpg,3,2,gallery",), "1 queries are in the gallery themselves, and no camera leaves them out"),
        (("3b.jpg,3,2,gallery",), "1 pictures are listed more than once"),
        (("./x/../3b.jpg,3,2,gallery",), "1 pictures are listed more than once"),
    ],
    ids=["two-people", "training-and-test", "its-own-answer", "twice", "by-another-path"],
)
def test_a_picture_that_a_table_lists_twice_is_said(tmp_path, rows, words):
    file = table(tmp_path, *TRAINING, *TEST)
    file.write_text(file.read_text() + "\n".join(rows) + "\n")
    (tmp_path / "x").mkdir()
    assert said(file, words) == "warning"


def test_queries_that_find_themselves_are_said_where_cameras_are_unknown_and_harmless_where_they_are_not(tmp_path):
    both = "3a.jpg,3,{0},query", "3a.jpg,3,{0},gallery", "3b.jpg,3,{1},gallery"
    (tmp_path / "known").mkdir()
    unknown = table(tmp_path, *TRAINING, *(row.format(-1, -1) for row in both))
    known = table(tmp_path / "known", *TRAINING, *(row.format(1, 2) for row in both))
    one = table(tmp_path / "one", *TRAINING, *(row.format(1, 1) for row in both))
    assert said(unknown, "no camera leaves them out") == "warning"
    assert said(one, "no camera leaves them out") == "warning"  # ranked without regard to cameras
    assert said(known, "1 queries are in the gallery too") == "note"


def test_a_link_to_another_picture_is_that_picture(tmp_path):
    write_images(tmp_path, *SOUND)
    (tmp_path / "bounding_box_train/0007_c3s1_000099_01.jpg").symlink_to(tmp_path / SOUND[0])
    assert said(tmp_path, "1 pictures are listed under several people") == "warning"


def test_people_have_their_names_in_what_is_said(tmp_path):
    write_images(tmp_path, "Anna Müller/1.jpg", "Anna Müller/2.jpg", "Bert/1.jpg")
    check = check_dataset(tmp_path)
    assert "people: 1 Anna Müller, 2 Bert\n" in check.to_text()
    (single,) = [finding for finding in check.findings if "have one image" in finding.what]
    assert single.examples == ("Bert",)
    assert json.loads(check.to_json())["names"] == {"1": "Anna Müller", "2": "Bert"}


def test_a_folder_per_person_can_be_trained_on_and_is_told_how_it_is_ranked(tmp_path):
    check = check_dataset(
        write_images(tmp_path, *(f"{name}/{number}.jpg" for name in ("anna", "bert") for number in "12"))
    )
    assert check.can_train
    (finding,) = [finding for finding in check.findings if "no query and no gallery" in finding.what]
    assert (finding.severity, "rank --protocol leave-one-out" in finding.remedy) == ("note", True)


@pytest.mark.parametrize("present", ["query", "gallery"])
def test_a_query_or_a_gallery_alone_is_ranked_leave_one_out(tmp_path, present):
    index = DatasetIndex.open(table(tmp_path, *TRAINING, f"3a.jpg,3,1,{present}", f"3b.jpg,3,2,{present}"))
    assert fitting_protocol(index)[0] == "leave-one-out"
    assert fitting_protocol(index.subset([0, 1, 2, 3, 4]))[0] is None  # nobody is there twice


def test_pictures_without_query_and_gallery_are_ranked_among_themselves(tmp_path):
    index = DatasetIndex.open(table(tmp_path, *TRAINING))
    assert (ranked_splits(index), fitting_protocol(index)[0]) == (("train_all",), "leave-one-out")
    alone = index.subset([int(np.flatnonzero(index.pids == pid)[0]) for pid in np.unique(index.pids)])
    assert fitting_protocol(alone) == (None, "no split query or gallery, and nobody in two pictures")


def test_identity_0_is_counted_as_a_distractor_in_market_and_as_a_person_in_a_table(tmp_path):
    write_images(tmp_path / "market", *SOUND, "bounding_box_test/0000_c2s1_000008_01.jpg")
    own = table(tmp_path / "own", *TRAINING, "0a.jpg,0,1,query", "0b.jpg,0,2,gallery")
    for place, expected in ((tmp_path / "market", 1), (own, 0)):
        (gallery,) = [split for split in check_dataset(place).splits if split.split == "gallery"]
        assert gallery.distractors == expected
    assert findings(own) == {}
    zero = table(tmp_path / "zero", "1a.jpg,0,1,train", "1b.jpg,0,2,train", "2a.jpg,1,1,train", "2b.jpg,1,2,train")
    assert check_dataset(zero).can_train


def test_a_training_of_one_person_and_junk_is_a_training_of_one_person(tmp_path):
    write_images(tmp_path, *SOUND[:2], "bounding_box_train/-1_c1s1_000020_01.jpg")
    assert said(tmp_path, "one identity to train on") == "error"


def test_junk_among_the_queries_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "query/-1_c1s1_000021_01.jpg")
    assert said(tmp_path, "1 queries are junk (-1)") == "warning"


def test_people_of_one_picture_each_are_told_what_training_is_left(tmp_path):
    write_images(tmp_path, SOUND[0], SOUND[3])
    assert said(tmp_path, "all training identities have one image") == "warning"


def save_as(file: Path, mode: str, **options) -> None:
    noise = np.random.default_rng(len(str(file))).integers(0, 256, (16, 8, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(file, **options)


def test_decoding_tells_what_pictures_hold_that_pixels_do_not_show(tmp_path):
    names = [f"bounding_box_train/000{pid}_c{camid}s1_{pid}_1" for pid in (1, 2, 3) for camid in (1, 2)]
    write_images(tmp_path, *(f"{name}.jpg" for name in names))
    turned = Image.Exif()
    turned[0x0112] = 6
    save_as(tmp_path / f"{names[0]}.jpg", "RGB", exif=turned)
    save_as(tmp_path / f"{names[1]}.jpg", "CMYK")
    save_as(tmp_path / f"{names[2]}.jpg", "L")
    save_as(tmp_path / f"{names[3]}0.png", "RGBA")
    frames = [Image.new("RGB", (8, 16), colour).convert("P") for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"{names[4]}0.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((16, 8), 40_000, np.uint16)).save(tmp_path / f"{names[5]}0.png")
    found = findings(tmp_path, decode=True)
    for what, severity in {
        "1 pictures ask for a rotation (Exif) that is not applied": "warning",
        "1 pictures are animations, of which the first frame counts": "note",
        "1 pictures have transparency, which is dropped": "note",
        "4 pictures are not RGB and are converted (1 CMYK, 1 L, 1 P, 1 RGBA)": "note",
        "pictures of 3 codecs (6 JPEG, 1 GIF, 1 PNG)": "note",
        "1 images cannot be read": "error",
    }.items():
        assert found.get(what) == severity, found
    (deep,) = [finding for finding in check_dataset(tmp_path, decode=True).findings if "cannot be read" in finding.what]
    assert "expected 8 bits per channel" in deep.examples[0]
    assert not [what for what in findings(tmp_path) if "Exif" in what]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_decoding_that_is_asked_to_stop_leaves_with_75(tmp_path, monkeypatch, name):
    write_images(tmp_path, *SOUND)
    open_image, calls = Image.open, itertools.count()

    def open_and_send(*arguments, **options):
        if next(calls) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", open_and_send)
    result = CliRunner().invoke(main, ["check", str(tmp_path), "--decode"])
    assert (result.exit_code, result.stdout) == (75, "")
    assert (result.stderr.count("\n"), result.stderr.startswith(f"error: {name}: ")) == (1, True)


def test_looking_at_many_files_can_be_stopped_too(tmp_path, monkeypatch):
    write_images(tmp_path, *SOUND)
    for number, name in enumerate(SOUND):
        (tmp_path / name).write_bytes(b"x" * (number + 1))  # none has the size of another, so none is read
    look = os.access

    def look_and_send(*arguments):
        if Path(arguments[0]).name == Path(SOUND[1]).name:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(*arguments)

    monkeypatch.setattr(os, "access", look_and_send)
    result = CliRunner().invoke(main, ["check", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (75, "")


def test_veri_queries_may_lie_in_its_gallery(tmp_path):
    write_images(tmp_path, "image_train/0001_c001_00016450_0.jpg", "image_train/0002_c001_00016450_0.jpg",
                 "image_query/0003_c002_00016450_0.jpg", "image_test/0003_c005_00016450_0.jpg")  # fmt: skip
    shutil.copy(tmp_path / "image_query/0003_c002_00016450_0.jpg", tmp_path / "image_test")
    assert said(tmp_path, "1 query images lie in the gallery too") == "note"
    assert not [what for what in findings(tmp_path) if "byte-identical" in what]


def test_a_listed_file_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "people.csv").write_text("path,pid,camid,split\nx.jpg,1,1,train\ny.jpg,2,2,train\n")
    assert said(tmp_path / "people.csv", "2 listed files are not there") == "error"


def test_every_finding_says_what_to_do(tmp_path):
    write_images(tmp_path, *SOUND[:2], "query/holiday.jpg")
    check = check_dataset(tmp_path)
    assert check.findings
    assert all(finding.remedy in check.to_text() for finding in check.findings)


def test_the_exit_code_says_whether_training_could_start(tmp_path):
    write_images(tmp_path / "sound", *SOUND)
    write_images(tmp_path / "lonely", *SOUND[:2])
    assert CliRunner().invoke(main, ["check", str(tmp_path / "sound")]).exit_code == 0
    assert CliRunner().invoke(main, ["check", str(tmp_path / "lonely")]).exit_code == 1
    missing = CliRunner().invoke(main, ["check", str(tmp_path / "nowhere")])
    assert missing.exit_code == 1
    assert "nowhere: no such folder" in missing.output


def test_json_holds_the_same(tmp_path):
    write_images(tmp_path, *SOUND)
    values = json.loads(CliRunner().invoke(main, ["check", str(tmp_path), "--json"]).stdout)
    assert values["layout"] == "market1501"
    assert values["dataset"] == "market1501"
    assert values["can_train"] is True
    by_name = {split["split"]: split for split in values["splits"]}
    assert by_name["train"]["cameras"] == {"1": 2, "2": 2}
    assert by_name["query"]["expected_cameras"] == {"1": 668, "2": 530, "3": 717, "4": 248, "5": 622, "6": 583}


@pytest.mark.realdata
def test_a_real_dataset_can_be_trained_on():
    assert check_dataset(os.environ["REID_REALDATA"], decode=True).can_train
