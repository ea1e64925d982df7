"""Which generated pictures count as made, who may make them, and what a stop leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dgnet_gen.generated_folder import GeneratedFolder, Parents
from dgnet_gen.generation import Writing, generate, regenerate
from dgnet_gen.generation_plan import plan_generation
from reid_eval.errors import OutputError, Stopped
from reid_eval.files import list_images, save_image
from reid_eval.locks import BusyError
from reid_eval.stopping import stoppable
from reid_models.data.generated import generated_index, read_card, read_manifest, read_records
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.runtime import Runtime
from tests.dgnet_gen.conftest import TINY


@pytest.fixture(scope="module")
def plan(index):
    return plan_generation(index, count=9)


@pytest.fixture(scope="module")
def whole(model, plan, tmp_path_factory):
    """A finished folder; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "fake"
    generate(model, plan, out)
    return out


@pytest.fixture
def fake(whole, tmp_path):
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "fake"))


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in list_images(folder)}


def replaced_by_a_link(picture, other):
    picture.unlink()
    picture.symlink_to(other)


SPOILT = {
    "missing": lambda picture, other: picture.unlink(),
    "empty": lambda picture, other: picture.write_bytes(b""),
    "cut off": lambda picture, other: picture.write_bytes(picture.read_bytes()[:-20]),
    "a bit flipped": lambda picture, other: picture.write_bytes(
        picture.read_bytes()[:60] + bytes([picture.read_bytes()[60] ^ 1]) + picture.read_bytes()[61:]
    ),
    "another picture": lambda picture, other: shutil.copy2(other, picture),
    "a link to another picture": replaced_by_a_link,
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_picture_that_is_not_as_it_was_made_is_told_and_made_again(model, plan, whole, fake, capsys, name):
    picture, other = list_images(fake)[2], list_images(fake)[4]
    SPOILT[name](picture, other)
    with pytest.raises(Exception, match=picture.name):
        generated_index(fake)
    generate(model, plan, fake)
    assert pictures(fake) == pictures(whole)
    assert not picture.is_symlink()
    assert len(generated_index(fake)) == 9
    assert (picture.name in capsys.readouterr().err) == (name != "missing")


def test_the_card_says_complete_only_while_all_pictures_are_right(model, plan, fake, monkeypatch):
    assert read_card(fake)["complete"]
    list_images(fake)[0].write_bytes(b"")
    monkeypatch.setattr(GeneratedFolder, "save", lambda *_: (_ for _ in ()).throw(OutputError("full")))
    with pytest.raises(OutputError, match="full"):
        generate(model, plan, fake)
    assert not read_card(fake)["complete"]
    monkeypatch.undo()
    generate(model, plan, fake)
    assert read_card(fake)["complete"]


def test_a_part_does_not_say_complete_while_another_parts_picture_is_wrong(model, plan, tmp_path):
    fake = tmp_path / "fake"
    generate(model, plan, fake, part=(1, 2))
    list_images(fake)[0].write_bytes(b"")
    generate(model, plan, fake, part=(2, 2))
    assert not read_card(fake)["complete"]
    generate(model, plan, fake, part=(1, 2))
    assert read_card(fake)["complete"]
    generated_index(fake)


def test_pictures_whose_parents_were_replaced_are_made_again_and_no_others(model, tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))
    index = DatasetIndex.open(raw).split("train_all")
    plan, fake = plan_generation(index), tmp_path / "fake"
    generate(model, plan, fake)
    before = {path: path.stat() for path in list_images(fake)}
    parent = index[3].path
    state = parent.stat()
    save_image(parent, np.zeros((64, 32, 3), np.uint8))
    os.utime(parent, ns=(state.st_atime_ns, state.st_mtime_ns))
    generate(model, plan, fake)
    changed = {path for path in list_images(fake) if path.stat().st_ino != before[path].st_ino}
    stem = parent.stem
    assert changed == {path for path in before if stem in path.name}
    assert len(changed) == 2
    generate(model, plan, tmp_path / "anew")
    assert pictures(fake) == pictures(tmp_path / "anew")


def test_records_that_were_cut_off_cost_the_picture_that_they_were_of(model, plan, whole, fake):
    records = fake / "pictures.csv"
    records.write_bytes(records.read_bytes()[:-30])
    assert len(read_records(fake)) == 8
    generate(model, plan, fake)
    assert pictures(fake) == pictures(whole)
    assert len(read_records(fake)) == 9
    records.unlink()
    generate(model, plan, fake)
    assert len(generated_index(fake)) == 9


def test_a_lost_link_is_made_without_painting_and_a_spoilt_file_is_mended_in_both_folders(
    model, plan, whole, tmp_path, monkeypatch
):
    fake, poses = tmp_path / "fake", tmp_path / "poses"
    generate(model, plan, fake, by_structure=poses)
    wanted = pictures(poses)
    with monkeypatch.context() as patch:
        patch.setattr(GeneratedFolder, "save", lambda *_: pytest.fail("painted again"))
        list_images(poses)[1].unlink()
        generate(model, plan, fake, by_structure=poses)
    assert pictures(poses) == wanted
    list_images(poses)[0].write_bytes(b"through the link into the other folder too")
    generate(model, plan, fake, by_structure=poses)
    assert (pictures(fake), pictures(poses)) == (pictures(whole), wanted)


def test_a_folder_of_version_0_1_0_is_read_and_gone_on_with(model, plan, whole, fake, monkeypatch):
    card = json.loads((fake / "card.json").read_text())
    for name in ("sha256", "levels"):
        del card[name]
    model.checkpoint_id = "0123456789abcdef" * 4
    (fake / "card.json").write_text(json.dumps(card | {"checkpoint": "0123456789abcdef"}))
    (fake / "pictures.csv").unlink()
    assert len(generated_index(fake)) == 9
    kept, cut, empty = list_images(fake)[:3]
    inode = kept.stat().st_ino
    cut.write_bytes(cut.read_bytes()[:100])
    empty.write_bytes(b"")
    with pytest.raises(Exception, match=f"{empty.name}: is empty"):
        generated_index(fake)
    generate(model, plan, fake)
    model.checkpoint_id = "untrained"
    assert pictures(fake) == pictures(whole)
    assert kept.stat().st_ino == inode
    assert read_card(fake)["checkpoint"] == "0123456789abcdef" * 4
    assert len(generated_index(fake)) == 9


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.csv", b""),
        ("manifest.csv", b"file,structure\n"),
        ("card.json", b""),
        ("card.json", b"[" * 100_000),
        ("card.json", b'{"format": 2, "kind": "dgnet-generation"}'),
    ],
)
def test_a_damaged_card_or_manifest_is_refused_and_nothing_is_changed(model, plan, fake, name, content):
    (fake / name).write_bytes(content)
    before = {path: path.read_bytes() for path in fake.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=name):
        generate(model, plan, fake)
    assert {path: path.read_bytes() for path in fake.rglob("*") if path.is_file()} == before


def test_a_manifest_that_was_removed_is_written_anew(model, plan, whole, fake):
    (fake / "manifest.csv").unlink()
    generate(model, plan, fake)
    assert (fake / "manifest.csv").read_bytes() == (whole / "manifest.csv").read_bytes()


def held(model, plan, path, part):
    folder = GeneratedFolder(model, plan, path, "appearance", Writing(), Runtime(model.device), Parents(plan))
    return folder.held(part, f"test {part}")


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ((1, 1), (1, 1), False),
        ((1, 4), (1, 4), False),
        ((1, 4), (2, 4), True),
        ((1, 4), (1, 1), False),
        ((1, 1), (1, 4), False),
        ((1, 4), (1, 2), False),  # whose pictures overlap
    ],
)
def test_the_same_picture_is_made_by_one_at_a_time(model, plan, tmp_path, first, second, fits):
    fake = tmp_path / "fake"
    with ExitStack() as stack:
        stack.enter_context(held(model, plan, fake, first))
        before = sorted(fake.rglob("*"))
        if fits:
            stack.enter_context(held(model, plan, fake, second))
        else:
            with pytest.raises(BusyError, match=r"test .* is writing here"):
                stack.enter_context(held(model, plan, fake, second))
            assert sorted(fake.rglob("*")) == before
    with held(model, plan, fake, second):
        pass
    assert not list(fake.glob(".*"))


def test_a_folder_of_another_seed_that_came_a_moment_before_is_refused(model, index, tmp_path):
    fake = tmp_path / "fake"
    with (
        held(model, plan_generation(index, seed=1), fake, (1, 2)),
        pytest.raises(OutputError, match="another plan"),
        held(model, plan_generation(index, seed=2), fake, (2, 2)),
    ):
        pass
    assert read_card(fake)["seed"] == 1


def test_the_two_folders_have_to_be_two(model, plan, tmp_path):
    with pytest.raises(OutputError, match="by appearance already"):
        generate(model, plan, tmp_path / "fake", by_structure=tmp_path / "x" / ".." / "fake")
    assert not (tmp_path / "fake").exists()


def test_a_link_to_a_folder_is_followed(model, plan, whole, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "fake")
    generate(model, plan, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert pictures(tmp_path / "disk" / "fake") == pictures(whole)


def test_a_time_limit_stops_and_the_next_run_ends_in_the_same_folder(model, plan, whole, tmp_path):
    with pytest.raises(Stopped, match=r"max-hours .* run the same command to go on"), stoppable(max_hours=1e-9):
        generate(model, plan, tmp_path / "fake")
    generate(model, plan, tmp_path / "fake")
    assert pictures(tmp_path / "fake") == pictures(whole)


STOPPED_WHILE_PAINTING = """
import sys, torch
from dgnet_gen.generation import generate
from dgnet_gen.generation_plan import plan_generation
from dgnet_gen.model import DGNet, NetworksConfig
from reid_eval.errors import user_errors
from reid_eval.stopping import stoppable
from reid_models.data.index import DatasetIndex

torch.manual_seed(0)
model = DGNet(NetworksConfig(**{settings}), num_ids=4).to(torch.device("cpu")).eval()
plan = plan_generation(DatasetIndex.open(sys.argv[1]).split("train_all"), kind="all-pairs")
with user_errors(), stoppable():
    generate(model, plan, sys.argv[2], batch_size=1)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_stops_with_75_and_what_was_made_is_kept(model, index, tmp_path, name):
    script, fake = STOPPED_WHILE_PAINTING.replace("{settings}", repr(vars(TINY))), tmp_path / "fake"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(index.root), str(fake)], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not list(fake.glob("*/*.png")):
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 75, error
    assert f"error: {name}: " in error
    survivors = pictures(fake)
    assert len(survivors) == len(read_records(fake)) < 192
    assert not list(fake.rglob(".*"))
    plan = plan_generation(index, kind="all-pairs")
    generate(model, plan, fake)
    assert survivors.items() <= pictures(fake).items()
    assert len(generated_index(fake)) == len(plan)


def test_names_of_two_long_parents_are_shortened_and_the_manifest_keeps_them(model, tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))
    for path in (raw / "bounding_box_train").glob("*.jpg"):
        path.rename(path.with_name(f"{path.stem}_".ljust(200, "x") + ".jpg"))
    index = DatasetIndex.open(raw).split("train_all")
    generate(model, plan_generation(index), tmp_path / "fake")
    _, rows = read_manifest(tmp_path / "fake")
    assert len({row["file"] for row in rows}) == len(index) == len(list_images(tmp_path / "fake"))
    assert all((raw / row[parent]).is_file() for row in rows for parent in ("structure", "appearance"))
    regenerate(model, tmp_path / "fake", rows[0]["file"])


def test_names_that_are_no_text_are_the_same_in_the_manifest_and_on_the_disk(model, tmp_path):
    raw = make_toy_dataset(tmp_path / "raw", ids=8, cameras=2, per_camera=2, image_hw=(64, 32))
    for path in (raw / "bounding_box_train").glob("*.jpg"):
        path.rename(os.fsdecode(os.fsencode(path).replace(b".jpg", b"\xff.jpg")))
    index = DatasetIndex.open(raw).split("train_all")
    generate(model, plan_generation(index), tmp_path / "fake")
    made = generated_index(tmp_path / "fake")
    assert all(path.is_file() for path in made.paths)
    file = read_manifest(tmp_path / "fake")[1][0]["file"]
    regenerate(model, tmp_path / "fake", file, to=tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "fake" / file).read_bytes()
