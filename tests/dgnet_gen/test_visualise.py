import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_gen.model import Codes, DGNet, NetworksConfig
from dgnet_gen.visualise import GAP_PX, enlarged, pick_people, swap_grid
from reid_eval.files import ImageError, read_pixels
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform, resize_pixels, to_pixels

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
