import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid_models.cli import main
from reid_models.data.check import PUBLISHED, check_dataset
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
    sums = {layout: sum(images for images, _ in variants[0].values()) for layout, variants in PUBLISHED.items()}
    assert sums["market1501"] == 36_036
    assert sums["msmt17"] == 126_441
    assert sums["dukemtmc"] == 36_411
    assert sums["occluded-duke"] == 35_489


def test_names_that_do_not_parse_are_listed(tmp_path):
    write_images(tmp_path, *SOUND, "query/holiday.jpg")
    assert said(tmp_path, "1 image names do not parse") == "warning"


def test_one_identity_cannot_be_trained_on(tmp_path):
    write_images(tmp_path, *SOUND[:2])
    assert said(tmp_path, "one identity") == "error"
    assert not check_dataset(tmp_path).can_train


def test_one_camera_is_said(tmp_path):
    write_images(tmp_path, SOUND[0], SOUND[2])
    assert said(tmp_path, "all images are from one camera") == "warning"


def test_identities_with_one_image_or_one_camera_are_said(tmp_path):
    train = tmp_path / "bounding_box_train"
    write_images(tmp_path, *SOUND)
    write_images(train, "0008_c1s1_000009_01.jpg", "0009_c1s1_000010_01.jpg", "0009_c1s1_000011_01.jpg")
    assert said(tmp_path, "1 training identities have one image") == "warning"
    assert said(tmp_path, "1 training identities are seen by one camera") == "note"


def test_an_identity_in_training_and_test_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "bounding_box_test/0002_c3s1_000012_01.jpg")
    assert said(tmp_path, "1 identities are in training and test") == "warning"


def test_msmt17_may_use_a_number_for_two_people(tmp_path):
    make_toy_dataset(tmp_path, ids=4, cameras=2, per_camera=2, layout="msmt17", image_hw=(32, 16))
    assert not [what for what in findings(tmp_path) if "training and test" in what]


def test_a_query_without_a_match_in_another_camera_is_said(tmp_path):
    write_images(tmp_path, *SOUND, "query/0004_c1s1_000013_00.jpg", "bounding_box_test/0004_c1s1_000014_01.jpg")
    assert said(tmp_path, "1 of 2 queries have no match") == "warning"


def test_no_query_with_a_match_is_an_error(tmp_path):
    write_images(tmp_path, *SOUND[:4], "query/0003_c1s1_000005_00.jpg", "bounding_box_test/0003_c1s1_000006_01.jpg")
    assert said(tmp_path, "1 of 1 queries have no match") == "error"


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
    assert values["can_train"] is True


@pytest.mark.realdata
def test_a_real_dataset_can_be_trained_on():
    assert check_dataset(os.environ["REID_REALDATA"], decode=True).can_train
