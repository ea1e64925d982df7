import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dgnet_gen.cli import main
from dgnet_gen.model import Codes, DGNet, NetworksConfig
from dgnet_gen.settings import DGNetTrainConfig
from dgnet_gen.visualise import (
    GAP_PX,
    enlarged,
    interpolate,
    one_by_one,
    pick_people,
    rainbow,
    save_animation,
    smooth,
    swap,
    swap_grid,
)
from reid_eval.errors import OutputError
from reid_eval.files import ImageError, read_pixels
from reid_models.config import config_dict
from reid_models.data.generated import read_manifest
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform, resize_pixels, to_pixels
from reid_models.runs import Checkpoint, RunDir

HEIGHT, WIDTH = 32, 16
TINY = NetworksConfig(
    image_hw=(HEIGHT, WIDTH), trunk="small", trunk_width=4, bottleneck=8, structure_dim=4, n_res=2, mlp_dim=8,
    discriminator_dim=4, discriminator_res=1, num_scales=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = make_toy_dataset(tmp_path_factory.mktemp("toy") / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))
    return DatasetIndex.open(root)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DGNet(TINY, num_ids=4).eval()


def tile(sheet, row, column):
    top, left = row * (HEIGHT + GAP_PX), column * (WIDTH + GAP_PX)
    return sheet[top : top + HEIGHT, left : left + WIDTH].astype(int)


def test_structures_go_down_and_appearances_across(model, index):
    structures, appearances = pick_people(index.split("train_all"), 2, 3)
    sheet = swap_grid(model, structures, appearances)
    assert sheet.shape == (3 * HEIGHT + 2 * GAP_PX, 4 * WIDTH + 3 * GAP_PX, 3)
    assert (tile(sheet, 0, 0) == 255).all()
    for row, path in enumerate(structures, start=1):
        photograph = resize_pixels(read_pixels(path), (HEIGHT, WIDTH)).astype(int)
        assert np.abs(tile(sheet, row, 0) - photograph).max() <= 1
    for column, path in enumerate(appearances, start=1):
        photograph = resize_pixels(read_pixels(path), (HEIGHT, WIDTH)).astype(int)
        assert np.abs(tile(sheet, 0, column) - photograph).max() <= 1


def test_each_tile_has_the_rows_structure_and_the_columns_appearance(model, index):
    structures, appearances = pick_people(index.split("train_all"), 2, 3)
    sheet = swap_grid(model, structures, appearances)
    pose = model.structure(eval_transform(read_pixels(structures[1]), TINY.image_hw)[None])
    look = model.appearance(eval_transform(read_pixels(appearances[2]), TINY.image_hw)[None])
    wanted = to_pixels(model.decode(Codes(look, pose)))[0].astype(int)
    assert np.abs(tile(sheet, 2, 3) - wanted).max() <= 1
    assert np.abs(tile(sheet, 1, 3) - wanted).max() > 1


def test_pictures_of_any_size_can_be_swapped(model, tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for name, shape in (("wide.png", (40, 90, 3)), ("tall.jpg", (200, 50, 3))):
        files.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(files[-1])
    assert swap_grid(model, files, files).shape[1] == 3 * WIDTH + 2 * GAP_PX


def test_a_file_that_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.txt"):
        swap_grid(model, [tmp_path / "notes.txt"], [tmp_path / "notes.txt"])


def test_picked_people_differ_and_are_the_same_every_time(index):
    rows, columns = pick_people(index, 3, 4, seed=5)
    assert pick_people(index, 3, 4, seed=5) == (rows, columns)
    pid = {record.path: record.pid for record in index}
    assert len({pid[path] for path in columns}) == 4
    assert all(pid[path] > 0 for path in rows + columns)


def test_more_columns_than_people_repeat_people(index):
    _, columns = pick_people(index.split("train_all"), 1, 9)
    assert len(columns) == 9


def test_enlarging_keeps_the_picture():
    pixels = np.full((4, 2, 3), 70, np.uint8)
    assert (enlarged(pixels, 3) == 70).all()
    assert enlarged(pixels, 3).shape == (12, 6, 3)


def painted_alone(model, structure, appearance):
    """A swap made by itself, as numbers."""
    look, pose = (eval_transform(read_pixels(path), TINY.image_hw)[None] for path in (appearance, structure))
    return to_pixels(model.decode(Codes(model.appearance(look), model.structure(pose))))[0].astype(int)


def test_labels_stand_around_the_same_sheet(model, index):
    structures, appearances = pick_people(index.split("train_all"), 2, 3)
    sheet = swap(model, structures, appearances)
    plain, labelled = sheet.pixels(labels=False), sheet.pixels()
    height, width = plain.shape[:2]
    # The body is somewhere in the labelled sheet, as it was.
    tops = range(labelled.shape[0] - height + 1)
    lefts = range(labelled.shape[1] - width + 1)
    found = [
        (top, left)
        for top in tops
        for left in lefts
        if np.array_equal(labelled[top : top + height, left : left + width][HEIGHT:], plain[HEIGHT:])
    ]
    assert found
    assert min(found)[0] > 0
    assert (labelled[: min(found)[0]] < 100).any()
    assert sheet.rows == tuple(f"{int(path.name[:4])} c{path.name[6]}" for path in structures)


def test_the_rainbow_has_structures_across_and_everybody_as_they_are_on_its_diagonal(model, index):
    people = pick_people(index, 4, 0)[0]
    sheet = rainbow(model, people, rows=2, columns=3)
    assert sheet.painted.shape == (2, 3, HEIGHT, WIDTH, 3)
    for row, column in ((0, 0), (1, 1), (1, 2)):
        wanted = painted_alone(model, people[column], people[row])
        assert np.abs(sheet.painted[row, column].astype(int) - wanted).max() <= 1
    assert np.abs(sheet.painted[0, 1].astype(int) - sheet.painted[1, 0]).max() > 1


@pytest.mark.parametrize("of", ["appearance", "structure"])
@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_smooth_goes_from_ones_own_code_to_the_next_ones(model, index, of, path):
    people = pick_people(index, 3, 0, seed=2)[0]
    sheet = smooth(model, people, of=of, steps=5, path=path)
    assert sheet.painted.shape == (3, 5, HEIGHT, WIDTH, 3)
    for row, person in enumerate(people):
        following = people[(row + 1) % 3]
        end = (person, following) if of == "appearance" else (following, person)
        for column, parents in ((0, (person, person)), (4, end)):
            wanted = painted_alone(model, *parents)
            assert np.abs(sheet.painted[row, column].astype(int) - wanted).max() <= 1
        assert np.array_equal(sheet.right[row], sheet.left[(row + 1) % 3])
    frames = sheet.frames()
    assert len(frames) == 2 * 5 - 2
    assert frames[0].shape == (3 * HEIGHT, 3 * WIDTH, 3)
    assert np.array_equal(frames[1], frames[-1])
    assert np.array_equal(frames[4][HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH], sheet.painted[1, 4])


def test_smooth_needs_somebody_to_go_to(model, index):
    with pytest.raises(DatasetError, match="at least 2"):
        smooth(model, index.paths[:1])


def test_a_spherical_path_turns_steadily_and_keeps_lengths_between_its_ends():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    way = [interpolate(a, b, share, "spherical").flatten(1) for share in np.linspace(0, 1, 6).tolist()]
    torch.testing.assert_close(way[0], a.flatten(1))
    torch.testing.assert_close(way[-1], b.flatten(1))
    lengths = torch.stack([point.norm(dim=1) for point in way])
    torch.testing.assert_close(lengths.diff(dim=0), lengths.diff(dim=0)[:1].expand(5, -1))
    turns = torch.stack([torch.cosine_similarity(p, q).acos() for p, q in itertools.pairwise(way)])
    torch.testing.assert_close(turns, turns[:1].expand(5, -1))
    torch.testing.assert_close(turns.sum(0), torch.cosine_similarity(a.flatten(1), b.flatten(1)).acos())


def test_paths_between_codes_of_one_direction_are_straight():
    code = torch.rand(2, 8)
    for path in ("spherical", "linear"):
        torch.testing.assert_close(interpolate(code, 3 * code, 0.25, path), 1.5 * code)
        torch.testing.assert_close(interpolate(code, torch.zeros(2, 8), 0.5, "linear"), code / 2)
        assert interpolate(code, -code, 0.3, path).isfinite().all()
        assert interpolate(code, torch.zeros(2, 8), 0.3, path).isfinite().all()


def test_one_by_one_writes_every_pair_and_says_who_its_parents_are(model, index, tmp_path):
    structures, appearances = pick_people(index, 2, 3)
    one_by_one(model, structures, appearances, tmp_path / "pairs")
    _, rows = read_manifest(tmp_path / "pairs")
    path_of = {path.name: path for path in (*structures, *appearances)}
    parents = {(path_of[Path(row["structure"]).name], path_of[Path(row["appearance"]).name]) for row in rows}
    assert parents == {(structure, appearance) for structure in structures for appearance in appearances}
    for row in rows:
        wanted = painted_alone(model, *(path_of[Path(row[kind]).name] for kind in ("structure", "appearance")))
        assert np.abs(read_pixels(tmp_path / "pairs" / row["file"]).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_holds_its_frames_for_ever(tmp_path, suffix):
    frames = [np.full((6, 5, 3), level, np.uint8) for level in (0, 100, 200)]
    save_animation(tmp_path / f"film{suffix}", frames)
    with Image.open(tmp_path / f"film{suffix}") as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (3, (5, 6), 0)
        for number, level in enumerate((0, 100, 200)):
            film.seek(number)
            assert np.abs(np.asarray(film.convert("RGB")).astype(int) - level).max() <= 3  # a palette, a lossy codec
            assert film.info["duration"] == 100


def test_animations_that_cannot_be_written_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(OutputError, match=r"install imageio-ffmpeg .* or choose \.gif"):
        save_animation(tmp_path / "film.mp4", [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(OutputError, match=r"\.gif, \.webp or \.mp4, not \.avi"):
        save_animation(tmp_path / "film.avi", [np.zeros((4, 4, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_an_mp4_holds_its_frames(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the extra dgnet-gen[video] is not installed")
    frames = [np.full((33, 47, 3), level, np.uint8) for level in (0, 100, 200)]
    save_animation(tmp_path / "film.mp4", frames)
    meta, *read = ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    assert meta["size"] == (48, 34)
    assert len(read) == 3
    for frame, level in zip(read, (0, 100, 200), strict=True):
        assert np.abs(np.frombuffer(frame, np.uint8).astype(int) - level).max() <= 4  # a lossy codec


def test_people_can_be_chosen(index):
    first, second = [pid for pid in index.labels if pid > 0][:2]
    pid = {record.path: record.pid for record in index}
    picked = pick_people(index, 3, 1, pids=[second, first])
    assert [pid[path] for path in picked[0]] == [second, first, second]
    assert [pid[path] for path in picked[1]] == [second]
    with pytest.raises(DatasetError, match="no pictures of person 999"):
        pick_people(index, 1, 1, pids=[999])


def test_where_nobody_is_known_any_pictures_are_picked(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 16)).save(tmp_path / f"{name}.png")
    rows, columns = pick_people(DatasetIndex.from_images(tmp_path), 2, 4)
    assert len(set(rows)) == 2
    assert len(columns) == 4
    assert len(set(columns)) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, model, index):
    """The model as a run that a command can be pointed at."""
    config = DGNetTrainConfig(networks=TINY, trunk_weights="none")
    made_by = {"num_ids": model.num_ids, "data": str(index.root), "index_fingerprint": index.fingerprint}
    folder = RunDir.create(tmp_path_factory.mktemp("run") / "dgnet", config, kind="dgnet", made_by=made_by)
    networks = {name: network.state_dict() for name, network in model.networks().items()}
    folder.save(Checkpoint("dgnet", 30, config_dict(config), networks, made_by=made_by))
    return folder.path


def dgnet_gen(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["swap", "rainbow", "smooth", "smooth-structure", "one-by-one"])
def test_every_visualiser_makes_something_without_options(run, tmp_path, monkeypatch, command):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dgnet").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    result = dgnet_gen(command)
    assert result.exit_code == 0, result.output
    made = tmp_path / result.output.strip()
    assert made.is_dir() if command == "one-by-one" else read_pixels(made).shape[0] >= 128


@pytest.mark.parametrize("command", ["swap", "rainbow", "smooth", "smooth-structure", "one-by-one"])
def test_every_visualiser_takes_a_split_or_a_folder_and_says_what_is_wrong(run, index, tmp_path, command):
    out = tmp_path / ("pairs" if command == "one-by-one" else "sheet.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.fromarray(read_pixels(index.paths["ab".index(name)])).save(photos / f"{name}.png")
    base = (command, "--run", run, "--rows", 2)
    assert dgnet_gen(*base, "--split", "query", "--out", out).exit_code == 0
    assert dgnet_gen(*base, "--images", photos, "--out", out.with_name(f"2{out.name}")).exit_code == 0
    (photos / "c.png").write_text("no picture")
    for more, told in (
        (("--which-epoch", "77"), "no checkpoint of iteration 77; there are 30"),
        (("--run", run.parent / "other"), "runs nearby: " + str(run)),
        (("--split", "train_val"), "no images in split train_val"),
        (("--images", tmp_path / "nowhere"), "no such folder"),
        (("--images", photos, "--rows", 3), "c.png: not a readable image"),
        (("--images", photos, "--split", "query"), "give either it"),
        (("--pids", "two"), "expected numbers of people"),
    ):
        result = dgnet_gen(*base, "--out", tmp_path / "new.png", *more)
        assert (result.exit_code, told in result.output) == (1, True), result.output
    assert not (tmp_path / "new.png").is_file()


def test_smooth_writes_a_film_too(run, index, tmp_path):
    pictures = [option for path in index.paths[:2] for option in ("--pictures", path)]
    film, sheet = tmp_path / "film.gif", tmp_path / "sheet.png"
    result = dgnet_gen("smooth", "--run", run, *pictures, "--steps", 4, "--animate", film, "--out", sheet)
    assert result.exit_code == 0, result.output
    with Image.open(film) as frames:
        assert frames.n_frames == 6


def test_a_sheet_that_is_named_like_a_film_is_wrong_usage():
    result = dgnet_gen("smooth", "--run", "nowhere", "--out", "film.gif")
    assert (result.exit_code, "write a film with --animate film.gif" in result.output) == (2, True), result.output
