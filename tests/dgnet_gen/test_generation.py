import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dgnet_gen.cli import main
from dgnet_gen.generation import ManifestError, generate, plan_generation, read_manifest
from dgnet_gen.model import DGNet, NetworksConfig
from reid_eval.errors import OutputError
from reid_eval.files import ImageError, list_images, read_pixels
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.synthetic import make_toy_dataset

TINY = NetworksConfig(
    image_hw=(32, 16), trunk="small", trunk_width=4, bottleneck=8, structure_dim=4, n_res=2, mlp_dim=8,
    discriminator_dim=4, discriminator_res=1, num_scales=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))


@pytest.fixture(scope="module")
def index(toy):
    return DatasetIndex.open(toy).split("train_all")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DGNet(TINY, num_ids=4).eval()


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in list_images(folder)}


def test_every_picture_gives_its_appearance_once_to_somebody_elses_pose(index):
    plan = plan_generation(index)
    assert [row.appearance for row in plan.rows] == list(index)
    assert all(row.appearance.pid != row.structure.pid for row in plan.rows)


def test_the_plan_is_a_function_of_the_seed(index):
    assert plan_generation(index, seed=3) == plan_generation(index, seed=3)
    assert plan_generation(index, seed=3) != plan_generation(index, seed=4)


def test_further_rounds_repeat_no_pair(index):
    plan = plan_generation(index, count=3 * len(index))
    assert len({(row.appearance.path, row.structure.path) for row in plan.rows}) == 3 * len(index)


def test_more_pictures_than_pairs_are_refused_with_the_number(index):
    possible = sum(len(index) - (index.pids == pid).sum() for pid in index.pids)
    assert len(plan_generation(index, count=int(possible))) == possible
    with pytest.raises(DatasetError, match=f"has {possible} pairs"):
        plan_generation(index, count=int(possible) + 1)


def test_one_identity_cannot_be_swapped(index):
    alone = index.subset([row for row in range(len(index)) if index[row].pid == index[0].pid])
    with pytest.raises(DatasetError, match="1 identity"):
        plan_generation(alone)


def test_pictures_lie_in_the_folder_of_the_appearances_identity(model, index, tmp_path):
    generate(model, plan_generation(index, count=5), tmp_path / "fake")
    header, rows = read_manifest(tmp_path / "fake")
    assert header["checkpoint"] == "untrained"
    assert set(pictures(tmp_path / "fake")) == {row["file"] for row in rows}
    for row in rows:
        folder, name = row["file"].split("/")
        assert folder == f"{row['appearance_pid']:04d}"
        appearance, structure = name.removesuffix(".png").split("__in__")
        assert row["appearance"] == f"{appearance}.jpg"
        assert row["structure"] == f"{structure}.jpg"


def test_a_picture_is_what_its_parents_decode_to(model, index, tmp_path):
    from dgnet_gen.model import Codes
    from reid_models.data.transforms import eval_transform, to_pixels

    plan = plan_generation(index, count=3)
    generate(model, plan, tmp_path / "fake")
    row = plan.rows[1]
    look, pose = (eval_transform(read_pixels(r.path), (32, 16))[None] for r in (row.appearance, row.structure))
    wanted = to_pixels(model.decode(Codes(model.appearance(look), model.structure(pose))))[0]
    made = read_pixels(tmp_path / "fake" / row.file)
    # Convolutions of another batch size may round differently: one grey level.
    assert np.abs(made.astype(int) - wanted.astype(int)).max() <= 1


def test_the_batch_size_changes_nothing_visible(model, index, tmp_path):
    plan = plan_generation(index, count=7)
    generate(model, plan, tmp_path / "one", batch_size=1)
    generate(model, plan, tmp_path / "many", batch_size=5)
    for file in pictures(tmp_path / "one"):
        one, many = read_pixels(tmp_path / "one" / file), read_pixels(tmp_path / "many" / file)
        assert np.abs(one.astype(int) - many.astype(int)).max() <= 1


def test_an_interrupted_generation_is_finished_without_making_anything_twice(model, index, tmp_path):
    plan = plan_generation(index, count=6)
    generate(model, plan, tmp_path / "fake")
    whole = pictures(tmp_path / "fake")
    kept = sorted(whole)[0]
    before = (tmp_path / "fake" / kept).stat().st_mtime_ns
    for file in sorted(whole)[3:]:
        (tmp_path / "fake" / file).unlink()
    generate(model, plan, tmp_path / "fake")
    assert pictures(tmp_path / "fake").keys() == whole.keys()
    assert (tmp_path / "fake" / kept).stat().st_mtime_ns == before


def test_a_folder_of_another_plan_is_refused_and_kept(model, index, tmp_path):
    generate(model, plan_generation(index, count=3), tmp_path / "fake")
    before = pictures(tmp_path / "fake")
    with pytest.raises(OutputError, match=r"another plan.*seed 0 -> 1"):
        generate(model, plan_generation(index, count=3, seed=1), tmp_path / "fake")
    assert pictures(tmp_path / "fake") == before


def test_a_folder_with_foreign_files_is_refused_and_kept(model, index, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        generate(model, plan_generation(index, count=3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_parent_is_named_and_what_was_made_stays(model, tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=4, cameras=2, per_camera=2, image_hw=(64, 32))
    index = DatasetIndex.open(raw).split("train_all")
    plan = plan_generation(index)
    last = plan.rows[-1].appearance.path
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(ImageError, match=last.name):
        generate(model, plan, tmp_path / "fake", batch_size=1)
    assert pictures(tmp_path / "fake")


def test_a_manifest_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest\.jsonl"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"form')
    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"format": 9}) + "\n")
    with pytest.raises(ManifestError, match="format 9"):
        read_manifest(tmp_path)


def test_the_command_lists_runs_and_refuses_a_wrong_epoch(tmp_path):
    result = CliRunner().invoke(main, ["generate", "--run", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no run here" in result.output
    result = CliRunner().invoke(main, ["generate", "--run", str(tmp_path), "--which-epoch", "newest"])
    assert result.exit_code == 1
    assert "expected a number of iterations, last, or best" in result.output
