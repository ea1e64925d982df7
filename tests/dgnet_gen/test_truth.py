import hashlib
import json
import math
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from dgnet_gen.cli import main
from dgnet_gen.truth import METRIC_NAMES, swap_truth, truth_sheet
from reid_eval.cards import UnlikeError, compare
from reid_eval.errors import ReidError
from reid_eval.files import read_pixels, save_image
from reid_models.data.generated import COLUMNS, ManifestError
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import ToyWorldError, draw, load_toy_records, make_toy_dataset
from reid_models.data.transforms import resize_pixels

SIZE = (64, 32)
CARD = {
    "format": 2, "kind": "dgnet-generation", "checkpoint": "hand-made", "iteration": 0, "plan": "random", "seed": 0,
    "image_hw": list(SIZE), "grouping": "appearance", "image_format": "png", "quality": None, "precision": "fp32",
    "data": ".", "complete": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "raw", ids=6, cameras=2, per_camera=2, image_hw=SIZE)


def pretend(folder, toy, paint):
    """A generated folder of six swaps whose pictures are whatever `paint(appearance name, structure name)` gives."""
    index = DatasetIndex.open(toy).split("train_all")
    rows = [",".join(COLUMNS)]
    for number in range(6):
        look, pose = index[number], index[(number + 5) % len(index)]
        name = f"{look.pid:04d}/{number}.png"
        save_image(folder / name, paint(look.path.name, pose.path.name))
        rows.append(f"{name},{pose.path.name},{look.path.name},{pose.pid},{look.pid},1,1,1")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    digest = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(CARD | {"images": 6, "manifest_sha256": digest}))
    return folder


def true_picture(toy):
    records = load_toy_records(toy)
    return lambda look, pose: draw(records.appearance(look), records.structure(pose), SIZE)


def test_the_true_picture_itself_is_perfect(toy, tmp_path):
    report = swap_truth(pretend(tmp_path, toy, true_picture(toy)), toy)
    assert np.isinf(report.psnr_db[:, 0]).all()
    assert report.ssim[:, 0] == pytest.approx(1)
    assert report.gain_db == math.inf


def test_returning_a_parent_scores_exactly_its_baseline(toy, tmp_path):
    paths = {record.path.name: record.path for record in DatasetIndex.open(toy)}
    report = swap_truth(pretend(tmp_path, toy, lambda _, pose: resize_pixels(read_pixels(paths[pose]), SIZE)), toy)
    assert report.psnr_db[:, 0] == pytest.approx(report.psnr_db[:, 1])
    assert report.gain_db == pytest.approx(min(0, report.psnr_db[:, 1].mean() - report.psnr_db[:, 2].mean()))


def test_only_swaps_with_the_same_truth_are_compared(toy, tmp_path):
    other = make_toy_dataset(tmp_path / "other", ids=6, cameras=2, per_camera=2, image_hw=SIZE, seed=1)
    grey = lambda *_: np.full((*SIZE, 3), 128, np.uint8)  # noqa: E731
    first, second = (swap_truth(pretend(tmp_path / str(level), toy, grey), toy).metrics() for level in (1, 2))
    assert all(comparison.change == 0 for comparison in compare(first, second))
    with pytest.raises(UnlikeError, match=r"swap_truth_psnr_db: not comparable: .*data"):
        compare(first, swap_truth(pretend(tmp_path / "3", other, grey), other).metrics())


def test_psnr_is_what_its_definition_says(toy, tmp_path):
    paint = true_picture(toy)
    report = swap_truth(pretend(tmp_path, toy, lambda *names: paint(*names) ^ 4), toy)  # every channel 4 levels off
    assert report.psnr_db[:, 0] == pytest.approx(20 * math.log10(255 / 4))


def test_one_picture_that_equals_its_truth_hides_none_of_the_others(toy, tmp_path):
    paint, names = true_picture(toy), []

    def paint_one_exactly(*parents):
        names.append(parents)
        return paint(*parents) ^ (4 if len(names) > 1 else 0)

    report = swap_truth(pretend(tmp_path, toy, paint_one_exactly), toy)
    assert report.mean_psnr_db("generated") == pytest.approx(20 * math.log10(255 / 4))
    assert math.isfinite(report.gain_db)
    assert "1 equal to the truth" in report.to_text()
    (psnr,) = (result for result in report.metrics() if result.name == "swap_truth_psnr_db")
    assert psnr.value == pytest.approx(20 * math.log10(255 / 4))
    assert "equal to the truth, left out: 1" in psnr.protocol


def test_names_are_known_before_anything_is_measured(toy, tmp_path):
    report = swap_truth(pretend(tmp_path, toy, true_picture(toy)), toy)
    assert tuple(result.name for result in report.metrics()) == METRIC_NAMES
    assert all(result.made_by["how"]["data"] for result in report.metrics())


def test_a_picture_that_is_empty_is_named_and_nothing_is_measured(toy, tmp_path):
    next(pretend(tmp_path, toy, true_picture(toy)).glob("*/2.png")).write_bytes(b"")
    with pytest.raises(ManifestError, match=r"2\.png: is empty"):
        swap_truth(tmp_path, toy)


def test_a_parent_that_the_records_know_and_the_folder_has_not_is_named(toy, tmp_path):
    pretend(tmp_path / "fake", toy, true_picture(toy))
    shutil.copytree(toy, tmp_path / "toy")
    (gone,) = (tmp_path / "toy").rglob(DatasetIndex.open(toy).split("train_all")[0].path.name)
    gone.unlink()
    with pytest.raises(ToyWorldError, match=f"no picture {gone.name}"):
        swap_truth(tmp_path / "fake", tmp_path / "toy")


ODD = [None, True, -1, 0, 1e300, float("nan"), "", "x", [], {}, [1, 2], [-5, 300, 1e9], {"a": 1}, 10**30]


def test_nothing_that_is_in_the_records_of_a_toy_world_is_more_than_one_line(toy, tmp_path):
    pretend(tmp_path / "fake", toy, true_picture(toy))
    shutil.copytree(toy, tmp_path / "toy")
    whole = (tmp_path / "toy" / "toy.json").read_text()
    used = [record.path.name for record in DatasetIndex.open(toy).split("train_all")]
    rng = np.random.default_rng(0)

    def any_of(values):
        return values[int(rng.integers(len(values)))]

    told = []
    for number in range(140):
        world = json.loads(whole)
        record = world["images"][any_of(used)]
        match number % 4:
            case 0:
                kind = any_of(["appearance", "structure"])
                record[kind][any_of(list(record[kind]))] = any_of(ODD)
            case 1:
                kind = any_of(["appearance", "structure"])
                record[kind] = {("hat" if place == 0 else key): value for place, (key, value) in
                                enumerate(record[kind].items())} if number % 8 else any_of(ODD)  # fmt: skip
            case 2:
                inner = any_of([world, world["images"], world["made_of"], record])
                inner[any_of(list(inner))] = any_of(ODD)
        text = json.dumps(world)
        if number % 4 == 3:
            place = int(rng.integers(len(text)))
            text = text[:place] + any_of(["", "[", '"', "\0", "\udcff"]) + text[place + int(rng.integers(9)) :]
        (tmp_path / "toy" / "toy.json").write_text(text, errors="surrogateescape")
        try:
            swap_truth(tmp_path / "fake", tmp_path / "toy").to_text()
        except ReidError as error:
            told.append(str(error))
    assert len(told) > 40
    assert all("toy" in line and "\n" not in line for line in told)


def test_every_number_is_named_with_its_protocol(toy, tmp_path):
    report = swap_truth(pretend(tmp_path, toy, true_picture(toy)), toy)
    names = {result.name for result in report.metrics()}
    assert {
        "swap_truth_psnr_db",
        "swap_truth_psnr_db_structure_unchanged",
        "swap_truth_ssim_appearance_unchanged",
    } <= names
    assert all("6 swaps" in result.protocol for result in report.metrics())


def test_a_picture_of_the_manifest_that_is_missing_is_named(toy, tmp_path):
    pretend(tmp_path, toy, true_picture(toy))
    next(tmp_path.glob("*/3.png")).unlink()
    with pytest.raises(ManifestError, match=r"3\.png: named in the manifest but not there"):
        swap_truth(tmp_path, toy)


def test_a_world_that_does_not_know_the_parents_is_refused(toy, tmp_path):
    pretend(tmp_path / "fake", toy, true_picture(toy))
    other = make_toy_dataset(tmp_path / "other", ids=2, cameras=1, per_camera=2, seed=9, image_hw=SIZE)
    with pytest.raises(ToyWorldError):
        swap_truth(tmp_path / "fake", other)


def test_the_sheet_shows_structure_appearance_generated_truth(toy, tmp_path):
    sheet = truth_sheet(pretend(tmp_path, toy, true_picture(toy)), toy, columns=3)
    assert sheet.shape == (4 * SIZE[0], 3 * SIZE[1], 3)
    assert np.array_equal(sheet[2 * SIZE[0] : 3 * SIZE[0]], sheet[3 * SIZE[0] :])


def test_the_command_prints_saves_and_draws(toy, tmp_path):
    folder = pretend(tmp_path / "fake", toy, lambda *names: np.zeros((*SIZE, 3), np.uint8))
    arguments = [str(folder), "--toy", str(toy), "--out", str(tmp_path / "metrics"), "--sheet", str(tmp_path / "s.png")]
    result = CliRunner().invoke(main, ["swap-truth", *arguments])
    assert result.exit_code == 0
    assert "structure unchanged" in result.stdout
    assert (tmp_path / "s.png").is_file()
    assert (tmp_path / "metrics" / "swap_truth_gain_db.json").is_file()
    values = json.loads(CliRunner().invoke(main, ["swap-truth", *arguments[:3], "--json"]).stdout)
    assert values["images"] == 6
