import csv
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dgnet_gen.cli import main
from dgnet_gen.generation import Estimate, Writing, estimate, generate, regenerate
from dgnet_gen.generation_plan import plan_generation
from dgnet_gen.model import Codes, DGNet
from dgnet_gen.painter import UNIT, Painter
from reid_eval.errors import OutputError
from reid_eval.files import ImageError, atomic_path, list_images, read_pixels
from reid_models.data.generated import ManifestError, read_manifest
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform, to_pixels
from reid_models.runtime import Runtime
from tests.dgnet_gen.conftest import TINY


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in list_images(folder)}


def distinct(plan):
    return {(row.structure.path, row.appearance.path) for row in plan}


def test_the_published_plan_uses_every_picture_once_for_its_clothes_and_once_for_its_pose(index):
    plan = plan_generation(index)
    assert sorted(row.appearance.path for row in plan) == sorted(index.paths)
    assert sorted(row.structure.path for row in plan) == sorted(index.paths)
    assert all(row.appearance.pid != row.structure.pid for row in plan)


def test_rounds_of_the_published_plan_use_every_picture_equally_often(index):
    plan = plan_generation(index, count=3 * len(index))
    assert len(distinct(plan)) == 3 * len(index)
    assert set(np.bincount(plan.pairs[:, 1]).tolist()) == {3}
    part = plan_generation(index, count=5)
    assert len({row.appearance.path for row in part}) == len({row.structure.path for row in part}) == 5


@pytest.mark.parametrize("kind", ["published", "random", "per-identity 6"])
def test_a_plan_is_a_function_of_the_seed(index, kind):
    same, again, other = (plan_generation(index, kind=kind, seed=seed).pairs for seed in (3, 3, 4))
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


@pytest.mark.parametrize("kind", ["published", "random"])
def test_all_pairs_there_are_can_be_asked_for_and_not_one_more(index, kind):
    everybody = plan_generation(index, kind="all-pairs")
    assert len(everybody) == sum(len(index) - (index.pids == pid).sum() for pid in index.pids)
    assert distinct(plan_generation(index, count=len(everybody), kind=kind)) == distinct(everybody)
    with pytest.raises(DatasetError, match=f"has {len(everybody)} pairs"):
        plan_generation(index, count=len(everybody) + 1, kind=kind)


@pytest.mark.parametrize("each", [1, 5, 48])
def test_a_number_per_identity_is_the_same_for_all(index, each):
    plan = plan_generation(index, kind=f"per-identity {each}")
    assert len(distinct(plan)) == each * index.num_ids
    appearances = [row.appearance.pid for row in plan]
    assert all(appearances.count(pid) == each for pid in index.labels)
    assert all(row.appearance.pid != row.structure.pid for row in plan)
    with pytest.raises(DatasetError, match="person"):
        plan_generation(index, kind="per-identity 49")


def test_a_table_is_a_plan_and_its_mistakes_are_named_with_their_line(index, tmp_path):
    first, second = index[0].path, index[3].path
    table = tmp_path / "wishes.csv"
    relative = os.path.relpath(second, index.root)
    table.write_text(f"structure,appearance\n{first.name},{relative}\n{first.name},{first.name}\n")
    plan = plan_generation(index, kind=str(table))
    assert [(row.structure.path, row.appearance.path) for row in plan] == [(first, first), (first, second)]
    for text, told in (
        ("pose,clothes\n", "no column structure, appearance, found pose, clothes"),
        ("structure,appearance\n", "no rows"),
        (f"structure,appearance\n{first.name},nobody.jpg\n", r"line 2: no training picture 'nobody\.jpg'"),
        (f"structure,appearance\n{first.name},{first.name}\n{first.name},{first.name}\n", "line 3: this pair"),
    ):
        table.write_text(text)
        with pytest.raises(DatasetError, match=told):
            plan_generation(index, kind=str(table))
    with pytest.raises(DatasetError, match="no such file"):
        plan_generation(index, kind="missing.csv")


def test_an_unknown_plan_and_a_count_beside_a_plan_that_has_one_are_refused(index):
    with pytest.raises(DatasetError, match="expected published, random, all-pairs"):
        plan_generation(index, kind="all")
    with pytest.raises(DatasetError, match="number of its own"):
        plan_generation(index, 3, kind="all-pairs")


def test_one_identity_cannot_be_swapped(index):
    alone = index.subset([row for row in range(len(index)) if index[row].pid == index[0].pid])
    with pytest.raises(DatasetError, match="1 identity"):
        plan_generation(alone)


def test_pictures_of_one_name_in_several_folders_get_names_that_differ(tmp_path):
    for person in "12":
        for number in "ab":
            (tmp_path / person).mkdir(exist_ok=True)
            Image.new("RGB", (8, 16)).save(tmp_path / person / f"{number}.png")
    plan = plan_generation(DatasetIndex.open(tmp_path).split("train_all"), kind="all-pairs")
    names = {plan.file(position, ".png") for position in range(len(plan))}
    assert len(names) == len(plan) == 8
    assert "0001/1-a__in__2-b.png" in names


def test_pictures_lie_in_the_folder_of_the_appearances_identity(model, index, tmp_path):
    generate(model, plan_generation(index, count=5), tmp_path / "fake")
    card, rows = read_manifest(tmp_path / "fake")
    assert (card["checkpoint"], card["complete"], card["seed"], card["images"]) == ("untrained", True, 0, 5)
    assert set(pictures(tmp_path / "fake")) == {row["file"] for row in rows}
    for row in rows:
        folder, name = row["file"].split("/")
        assert folder == f"{row['appearance_pid']:04d}"
        appearance, structure = name.removesuffix(".png").split("__in__")
        assert row["appearance"].endswith(f"/{appearance}.jpg")
        assert row["structure"].endswith(f"/{structure}.jpg")
        assert (index.root / row["structure"]).is_file()
        assert row["camid"] == row["structure_camid"]


@pytest.mark.parametrize(("camera", "column"), [("appearance", "appearance_camid"), ("unknown", None)])
def test_the_manifests_camera_follows_the_policy(model, index, tmp_path, camera, column):
    generate(model, plan_generation(index, count=5), tmp_path / "fake", writing=Writing(camera=camera))
    card, rows = read_manifest(tmp_path / "fake")
    assert card["camera_policy"] == camera
    assert all(row["camid"] == (row[column] if column else -1) for row in rows)


def test_a_picture_is_what_its_parents_decode_to(model, index, tmp_path):
    plan = plan_generation(index, count=9)
    generate(model, plan, tmp_path / "fake")
    for position, row in enumerate(plan):
        look, pose = (eval_transform(read_pixels(r.path), (32, 16))[None] for r in (row.appearance, row.structure))
        wanted = to_pixels(model.decode(Codes(model.appearance(look), model.structure(pose))))[0]
        made = read_pixels(tmp_path / "fake" / plan.file(position, ".png"))
        # Convolutions of another batch size may round differently: one grey level.
        assert np.abs(made.astype(int) - wanted.astype(int)).max() <= 1


WAYS = {
    "one at a time": {"batch_size": 1, "workers": 1},
    "many at a time": {"batch_size": 100, "workers": 4},
    "appearances on disk": {"memory_mib": 0},
    "some appearances on disk": {"memory_mib": 3 * 2 * 2 * 64 * 4 / (1 << 20)},
}


def test_no_pixel_depends_on_how_the_work_is_done(model, index, tmp_path):
    plan = plan_generation(index, count=21, seed=1)
    generate(model, plan, tmp_path / "plain")
    wanted = pictures(tmp_path / "plain")
    assert len(wanted) == 21
    for name, way in WAYS.items():
        generate(model, plan, tmp_path / name, **way)
        assert pictures(tmp_path / name) == wanted, name
    for number in (3, 1, 2):
        generate(model, plan, tmp_path / "parts", part=(number, 3))
        assert read_manifest(tmp_path / "parts")[0]["complete"] == (number == 2)
    assert pictures(tmp_path / "parts") == wanted


def test_units_are_what_keeps_pixels_apart(model, index):
    rng = np.random.default_rng(0)
    pairs = np.array(sorted({tuple(pair) for pair in rng.integers(0, len(index), (40, 2)).tolist()}))
    painter = Painter(model, index.paths)
    together = list(painter.paint(pairs))
    for position in range(0, len(pairs), 5):
        alone = next(painter.paint(pairs[position : position + 1]))
        assert np.array_equal(alone, together[position])


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {}], ids=["maps", "products"])
def test_sixteen_bits_are_some_grey_levels_off_and_depend_on_no_neighbour(model, index, monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    pairs = plan_generation(index, count=9).pairs
    exact = np.stack(list(Painter(model, index.paths).paint(pairs)))
    painter = Painter(model, index.paths, runtime=Runtime.for_inference("cpu", half=True))
    asked = set()
    setting = getattr(torch.backends.mkldnn, "conv", None)  # since PyTorch 2.9; before it autocast does what it can

    def note(conv, inputs, _):
        asked.add((inputs[0].dtype, getattr(setting, "fp32_precision", "bf16")))

    convolutions = [part for part in painter._decoder.modules() if isinstance(part, torch.nn.Conv2d)]
    for conv in convolutions:
        conv.register_forward_hook(note)
    rounded = np.stack(list(painter.paint(pairs)))
    assert np.abs(rounded.astype(int) - exact).mean() < 1
    if able:
        assert {dtype for dtype, _ in asked} == {torch.bfloat16}
        assert (rounded != exact).any()  # maps are stored in 8 bits of precision by any processor
    else:  # whether products are rounded is up to the processor: one without the instructions multiplies in float32
        assert asked == {(torch.float32, "bf16")}
    assert all(np.array_equal(next(painter.paint(pairs[row : row + 1])), rounded[row]) for row in range(0, 9, 4))


def test_every_picture_is_encoded_once_however_often_it_is_used(model, index):
    seen = {"appearance": [], "structure": []}
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(len(inputs[0])))
        for name, network in model.networks().items()
        if name in seen
    ]
    plan = plan_generation(index, kind="all-pairs")
    list(Painter(model, index.paths).paint(plan.pairs))
    for hook in hooks:
        hook.remove()
    assert len(plan) > 100
    assert {name: sum(counts) for name, counts in seen.items()} == dict.fromkeys(seen, -(-len(index) // UNIT) * UNIT)


def test_any_picture_is_made_again_byte_for_byte_from_its_row(model, index, tmp_path):
    for suffix in ("png", "jpg", "webp"):
        folder = tmp_path / suffix
        generate(model, plan_generation(index, count=11), folder, writing=Writing(suffix, quality=80))
        _, rows = read_manifest(folder)
        for row in rows[::5]:
            regenerate(model, folder, row["file"], to=tmp_path / f"again.{suffix}")
            assert (tmp_path / f"again.{suffix}").read_bytes() == (folder / row["file"]).read_bytes()


def test_a_picture_is_not_made_again_from_a_stranger(model, index, tmp_path):
    generate(model, plan_generation(index, count=3), tmp_path / "fake")
    file = read_manifest(tmp_path / "fake")[1][0]["file"]
    with pytest.raises(ManifestError, match=r"no picture 0001/me\.png"):
        regenerate(model, tmp_path / "fake", "0001/me.png")
    other = DGNet(TINY, num_ids=4).eval()
    other.checkpoint_id = "beef"
    with pytest.raises(ManifestError, match=r"checkpoint untrained .* not by beef"):
        regenerate(other, tmp_path / "fake", file)


def test_the_second_folder_holds_the_same_pictures_by_the_structures_identity(model, index, tmp_path):
    plan = plan_generation(index, count=9)
    generate(model, plan, tmp_path / "fake", by_structure=tmp_path / "poses")
    looks, poses = pictures(tmp_path / "fake"), pictures(tmp_path / "poses")
    for row in read_manifest(tmp_path / "poses")[1]:
        folder, name = row["file"].split("/")
        assert folder == f"{row['structure_pid']:04d}"
        assert poses[row["file"]] == looks[f"{row['appearance_pid']:04d}/{name}"]
    assert len(poses) == 9
    next((tmp_path / "poses").glob("*/*.png")).unlink()
    generate(model, plan, tmp_path / "fake", by_structure=tmp_path / "poses")
    assert pictures(tmp_path / "poses") == poses


def test_an_interrupted_generation_is_finished_without_making_anything_twice(model, index, tmp_path):
    plan = plan_generation(index, count=6)
    generate(model, plan, tmp_path / "fake")
    whole = pictures(tmp_path / "fake")
    kept = sorted(whole)[0]
    before = (tmp_path / "fake" / kept).stat().st_mtime_ns
    for file in sorted(whole)[3:]:
        (tmp_path / "fake" / file).unlink()
    with atomic_path(tmp_path / "fake" / kept) as half:  # of a process that lives
        generate(model, plan, tmp_path / "fake")
        assert half.exists()
        half.write_bytes(whole[kept])
    (tmp_path / "fake" / kept).touch()
    os.utime(tmp_path / "fake" / kept, ns=(before, before))
    generate(model, plan, tmp_path / "fake")
    assert pictures(tmp_path / "fake") == whole
    assert (tmp_path / "fake" / kept).stat().st_mtime_ns == before


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from dgnet_gen.generation import generate
from dgnet_gen.generation_plan import plan_generation
from dgnet_gen.model import DGNet, NetworksConfig
from reid_models.data.index import DatasetIndex

sync, written = os.fsync, []

def kill_at_the_twentieth(descriptor):
    written.append(descriptor)
    if len(written) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = kill_at_the_twentieth
torch.manual_seed(0)
model = DGNet(NetworksConfig(**{settings}), num_ids=4).to(torch.device("cpu")).eval()
plan = plan_generation(DatasetIndex.open(sys.argv[1]).split("train_all"), kind="all-pairs")
generate(model, plan, sys.argv[2])
"""


def test_a_generation_killed_while_it_writes_ends_in_the_same_folder(index, tmp_path):
    script, fake = KILLED_WHILE_WRITING.replace("{settings}", repr(vars(TINY))), tmp_path / "fake"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(index.root), str(fake)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    survivors = pictures(fake)
    assert 10 < len(survivors) < 20
    assert list(fake.glob("*/.*.part"))
    torch.manual_seed(0)
    model = DGNet(TINY, num_ids=4).to(torch.device("cpu")).eval()
    plan = plan_generation(index, kind="all-pairs")
    generate(model, plan, tmp_path / "never-stopped")
    wanted = pictures(tmp_path / "never-stopped")
    assert survivors.items() <= wanted.items()
    generate(model, plan, fake)
    assert pictures(fake) == wanted
    assert not list(fake.glob("**/.*"))


def test_a_folder_of_another_plan_is_refused_and_kept(model, index, tmp_path):
    generate(model, plan_generation(index, count=3), tmp_path / "fake")
    before = pictures(tmp_path / "fake")
    with pytest.raises(OutputError, match=r"another plan.*seed 0 -> 1"):
        generate(model, plan_generation(index, count=3, seed=1), tmp_path / "fake")
    with pytest.raises(OutputError, match=r"another plan.*image_format png -> jpg"):
        generate(model, plan_generation(index, count=3), tmp_path / "fake", writing=Writing("jpg"))
    with pytest.raises(OutputError, match=r"another plan.*grouping appearance -> structure"):
        generate(model, plan_generation(index, count=3), tmp_path / "new", by_structure=tmp_path / "fake")
    assert pictures(tmp_path / "fake") == before
    assert not (tmp_path / "new").exists()


def test_a_folder_with_foreign_files_is_refused_and_kept(model, index, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        generate(model, plan_generation(index, count=3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_parent_is_named_and_what_was_made_stays(model, tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=4, cameras=2, per_camera=8, image_hw=(64, 32))
    index = DatasetIndex.open(raw).split("train_all")
    look, *poses = [record.path for record in index if record.pid != index[0].pid or record is index[0]]
    table = tmp_path / "plan.csv"
    table.write_text("structure,appearance\n" + "".join(f"{pose.name},{look.name}\n" for pose in poses))
    poses[-1].write_bytes(poses[-1].read_bytes()[:200])
    with pytest.raises(ImageError, match=poses[-1].name):
        generate(model, plan_generation(index, kind=str(table)), tmp_path / "fake", batch_size=1)
    assert len(pictures(tmp_path / "fake")) == UNIT


def test_a_full_disk_is_one_error_and_what_was_made_stays(model, index, tmp_path, monkeypatch):
    plan, save, saved = plan_generation(index), Image.Image.save, []

    def until_full(self, *arguments, **options):
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", until_full)
    with pytest.raises(OutputError, match="No space left"):
        generate(model, plan, tmp_path / "fake", workers=1, batch_size=1)
    monkeypatch.undo()
    assert len(pictures(tmp_path / "fake")) == 3
    assert not list((tmp_path / "fake").glob("*/.*"))
    generate(model, plan, tmp_path / "fake")
    assert read_manifest(tmp_path / "fake")[0]["complete"]


def test_an_estimate_grows_with_the_plan_and_refuses_a_disk_that_is_too_small(model, index, tmp_path):
    few, many = (estimate(model, plan_generation(index, kind=kind)) for kind in ("published", "all-pairs"))
    assert (few.images, many.images) == (len(index), len(index) * (len(index) - 4))
    generate(model, plan_generation(index), tmp_path / "fake")
    written = sum(len(content) for content in pictures(tmp_path / "fake").values())
    # The estimate knows all of so few pictures, and a line of the manifest each.
    assert written / 1e9 < few.gigabytes < written / 1e9 * 1.3
    assert many.gigabytes == pytest.approx(few.gigabytes * many.images / few.images, rel=0.1)
    assert few.hours > 0
    few.refuse_full_disk(tmp_path / "not" / "there")
    of_a_library = Estimate(10**12, hours=1.0, gigabytes=1e12, images_per_s=1.0)
    with pytest.raises(OutputError, match="GB are free"):
        of_a_library.refuse_full_disk(tmp_path)


def test_a_manifest_that_is_missing_or_damaged_is_named(model, index, tmp_path):
    with pytest.raises(ManifestError, match=r"no card\.json"):
        read_manifest(tmp_path)
    (tmp_path / "card.json").write_text('{"form')
    with pytest.raises(ManifestError, match=r"card\.json: cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"format": 9}) + "\n")
    with pytest.raises(ManifestError, match="format 9"):
        read_manifest(tmp_path)
    folder = tmp_path / "fake"
    manifest = generate(model, plan_generation(index, count=3), folder)
    with manifest.open(newline="") as stream:
        assert len(list(csv.reader(stream))) == 4
    manifest.write_text("a,b\n")
    with pytest.raises(ManifestError, match=r"manifest\.csv: damaged"):
        read_manifest(folder)
    manifest.unlink()
    with pytest.raises(ManifestError, match=r"manifest\.csv: not there"):
        read_manifest(folder)
    generate(model, plan_generation(index, count=3), folder)
    assert len(read_manifest(folder)[1]) == 3


def test_the_command_lists_runs_and_refuses_a_wrong_epoch(tmp_path):
    result = CliRunner().invoke(main, ["generate", "--run", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no run here" in result.output
    result = CliRunner().invoke(main, ["generate", "--run", str(tmp_path), "--which-epoch", "newest"])
    assert result.exit_code == 1
    assert "expected a number of iterations, last, or best" in result.output


@pytest.mark.parametrize("part", ["2", "0/2", "3/2", "a/b"])
def test_a_part_that_makes_no_sense_is_refused(tmp_path, part):
    result = CliRunner().invoke(main, ["generate", "--run", str(tmp_path / "none"), "--part", part])
    assert result.exit_code == 1
    assert "expected K" in result.output
