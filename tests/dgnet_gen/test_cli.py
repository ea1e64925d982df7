"""What a user can do wrong with dgnet-gen: one line that says so, exit code 1, and nothing lost."""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dgnet_gen.cli import main
from dgnet_gen.model import Codes, DGNet
from reid_eval.files import read_pixels, save_image
from reid_eval.outputs import is_made_by
from reid_models.data.generated import read_manifest
from reid_models.data.synthetic import make_toy_dataset
from reid_models.data.transforms import eval_transform
from reid_models.runs import RunDir

TINY = """
networks: {image_hw: [32, 16], trunk: small, trunk_width: 2, bottleneck: 8, structure_dim: 2, n_res: 1, mlp_dim: 8,
  discriminator_dim: 2, discriminator_res: 1, num_scales: 1}
trunk_weights: none
weights: {teacher: 0}
batch_size: 2
max_iter: 4
pad_px: 1
num_workers: 0
checkpoint_every: 2
"""


def dgnet_gen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refuses(result: Result, *words: object) -> None:
    """One line on stderr that holds these words, nothing on stdout, exit code 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    for word in words:
        assert str(word) in lines[-1]


def files_below(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A dataset, settings and a finished run of them; not to be written to."""
    root = tmp_path_factory.mktemp("sound")
    make_toy_dataset(root / "raw", ids=6, cameras=2, per_camera=2, image_hw=(64, 32))
    (root / "tiny.yaml").write_text(TINY)
    result = dgnet_gen("train", "--config", root / "tiny.yaml", "--data", root / "raw", "--out", root / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["iteration"] == 4
    return root


@pytest.fixture
def raw(sound, tmp_path):
    """A copy of the dataset that a test may spoil."""
    return Path(shutil.copytree(sound / "raw", tmp_path / "raw"))


@pytest.fixture
def run(sound, tmp_path):
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(sound / "run", tmp_path / "run"))


def train(sound: Path, data: Path, out: Path, *more: object) -> Result:
    return dgnet_gen("train", "--config", sound / "tiny.yaml", "--data", data, "--out", out, *more)


def test_a_wrong_folder_is_named(sound, tmp_path):
    refuses(train(sound, tmp_path / "Markt", tmp_path / "out"), "Markt: no such folder")
    refuses(dgnet_gen("generate", "--run", tmp_path / "rnu"), "rnu: no run here")
    refuses(dgnet_gen("generate", "--run", sound / "run", "--data", tmp_path / "Markt"), "Markt: no such folder")


def test_an_empty_folder_says_what_was_expected(sound, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses(train(sound, tmp_path / "empty", tmp_path / "out"), "empty: no known dataset layout", "bounding_box_train")
    refuses(dgnet_gen("swap-truth", tmp_path / "empty", "--toy", sound / "raw"), "no card.json", "generate")
    assert not (tmp_path / "out").exists()


def test_names_that_do_not_parse_are_counted_with_an_example(sound, tmp_path):
    (tmp_path / "odd" / "bounding_box_train").mkdir(parents=True)
    (tmp_path / "odd" / "bounding_box_train" / "holiday.jpg").write_bytes(b"")
    refuses(train(sound, tmp_path / "odd", tmp_path / "out"), "1 names do not parse", "holiday.jpg")


def test_one_person_has_nobody_to_swap_with(sound, raw, tmp_path):
    pictures = sorted((raw / "bounding_box_train").glob("*.jpg"))
    for path in pictures:
        if path.name[:4] != pictures[0].name[:4]:
            path.unlink()
    refuses(train(sound, raw, tmp_path / "out"), "one identity to train on", "at least two")
    assert not (tmp_path / "out").exists()


def test_a_batch_larger_than_the_data_is_said_with_both_numbers(sound, tmp_path):
    result = train(sound, sound / "raw", tmp_path / "out", "--set", "batch_size=100")
    refuses(result, "12 training images", "batch_size (100)", "set batch_size=12 or less")


def test_a_damaged_picture_is_named(sound, raw, tmp_path):
    damaged = sorted((raw / "bounding_box_train").glob("*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:300])
    refuses(train(sound, raw, tmp_path / "out"), damaged.name, "restore or remove")
    refuses(dgnet_gen("generate", "--run", sound / "run", "--data", raw, "--out", tmp_path / "fake"), damaged.name)
    arguments = ("--structures", damaged, "--appearances", damaged, "--out", tmp_path / "swap.png")
    refuses(dgnet_gen("swap", "--run", sound / "run", *arguments), damaged.name)
    assert not (tmp_path / "swap.png").exists()


def test_a_misspelt_key_suggests_the_right_one(sound, tmp_path):
    result = train(sound, sound / "raw", tmp_path / "out", "--set", "weights.recon_sefl=1")
    refuses(result, "weights.recon_sefl", "did you mean weights.recon_self?")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_foreign_files_is_left_alone(sound, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    refuses(train(sound, sound / "raw", tmp_path), "thesis.tex", "choose another --out")
    refuses(dgnet_gen("generate", "--run", sound / "run", "--out", tmp_path), "thesis.tex", "choose another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_existing_run_is_not_written_over(sound, run):
    before = files_below(run)
    refuses(train(sound, sound / "raw", run), "already holds a run at iteration 4", "--resume")
    refuses(train(sound, sound / "raw", run, "--resume", "--set", "max_iter=3"), "max_iter: 4 -> 3")
    refuses(train(sound, sound / "raw", run, "--resume", "--set", "pad_px=2"), "pad_px: 1 -> 2")
    assert files_below(run) == before


def test_a_checkpoint_cut_in_half_is_named_and_the_one_before_still_serves(sound, run, tmp_path):
    last = RunDir.open(run).checkpoint_file("last")
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    for command in ("generate", "swap"):
        refuses(dgnet_gen(command, "--run", run, "--out", tmp_path / "fake.png"), last.name, "damaged")
    refuses(train(sound, sound / "raw", run, "--resume"), last.name, "damaged")
    earlier = dgnet_gen("generate", "--run", run, "--which-epoch", 2, "--out", tmp_path / "fake", "--count", 2)
    assert earlier.exit_code == 0, earlier.output


def test_an_iteration_without_a_checkpoint_lists_those_there_are(sound):
    refuses(dgnet_gen("generate", "--run", sound / "run", "--which-epoch", 100000), "100000", "there are 2, 4")


def test_a_disk_that_fills_up_while_generating_keeps_what_was_made_and_can_be_finished(sound, tmp_path, monkeypatch):
    out = tmp_path / "fake"
    arguments = ("generate", "--run", sound / "run", "--out", out, "--batch-size", 1)
    sync, written = os.fsync, []

    def full_after_four(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_four)
    refuses(dgnet_gen(*arguments), "No space left on device", "nothing that existed was changed")
    made = files_below(out)
    assert len(made) == 5  # card, manifest, records and two pictures, and no half one
    monkeypatch.setattr(os, "fsync", sync)
    assert dgnet_gen(*arguments).exit_code == 0
    for name in ("card.json", "pictures.csv"):  # which say now that all pictures are there
        del made[out / name]
    assert files_below(out).items() >= made.items()
    assert len(files_below(out)) == 15


def test_a_disk_that_fills_up_while_training_keeps_the_checkpoint_before(sound, tmp_path, monkeypatch):
    out = tmp_path / "run"
    replace = os.replace

    def full_at_the_fourth_step(part, file):
        if Path(file).name == "00000004.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, file)

    monkeypatch.setattr(os, "replace", full_at_the_fourth_step)
    refuses(train(sound, sound / "raw", out), "00000004.pt", "No space left on device")
    assert RunDir.open(out).iterations() == [2]
    monkeypatch.setattr(os, "replace", replace)
    assert train(sound, sound / "raw", out, "--resume").exit_code == 0
    whole, parts = (RunDir.open(root).load(4).networks for root in (sound / "run", out))
    assert all(whole[name][key].equal(parts[name][key]) for name in whole for key in whole[name])


def test_a_run_goes_on_by_its_folder_alone_and_may_become_longer(sound, tmp_path):
    out = tmp_path / "run"
    assert train(sound, sound / "raw", out, "--max-hours", "1e-9").exit_code == 75
    result = dgnet_gen("train", "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    whole, parts = (RunDir.open(root).load(4).networks for root in (sound / "run", out))
    assert all(whole[name][key].equal(parts[name][key]) for name in whole for key in whole[name])
    assert "6 iterations" in dgnet_gen("train", "--resume", "--out", out, "--set", "max_iter=6").stdout
    refuses(dgnet_gen("train", "--resume", "--out", tmp_path / "none"), "no run here to go on with; give --data")


def test_an_earlier_run_is_moved_aside_on_request(sound, run):
    result = train(sound, sound / "raw", run, "--reset")
    assert result.exit_code == 0, result.output
    assert f"moved the earlier run to {run}.old-1" in result.stderr
    assert RunDir.open(f"{run}.old-1").iterations() == [2, 4]


def test_a_setting_that_is_given_as_an_option_is_answered_with_how_to_set_it(sound, tmp_path):
    result = train(sound, sound / "raw", tmp_path / "out", "--max-iter", 9)
    assert result.exit_code == 2
    assert "settings are changed with --set max_iter=9" in " ".join(result.stderr.replace("│", "").split())
    assert dgnet_gen("train", "--out", tmp_path / "out").exit_code == 2  # without --data


SHEETS = ["swap", "rainbow", "smooth", "smooth-structure"]


def drawing(file: Path, level: int = 9) -> bytes:
    """A picture of somebody else's."""
    save_image(file, np.full((8, 8, 3), level, np.uint8))
    return file.read_bytes()


@pytest.mark.parametrize("command", SHEETS)
def test_a_sheet_replaces_an_earlier_one_of_its_command_and_nothing_else_unasked(sound, tmp_path, command):
    out = tmp_path / "sheet.png"
    arguments = (command, "--run", sound / "run", "--rows", 2, "--out", out)
    foreign = drawing(out)
    refuses(dgnet_gen(*arguments), "sheet.png", f"not made by dgnet-gen {command}", "--overwrite")
    assert out.read_bytes() == foreign
    assert dgnet_gen(*arguments, "--overwrite").exit_code == 0
    assert is_made_by(out, f"dgnet-gen {command}")
    assert dgnet_gen(*arguments, "--seed", 1).exit_code == 0
    other = SHEETS[SHEETS.index(command) - 1]
    refuses(dgnet_gen(other, *arguments[1:]), f"not made by dgnet-gen {other}")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_says_who_made_it_and_replaces_its_like_alone(sound, tmp_path, suffix):
    film = tmp_path / f"film{suffix}"
    arguments = ("smooth", "--run", sound / "run", "--rows", 2, "--steps", 2, "--out", tmp_path / "sheet.png")
    film.write_bytes(b"ten years of work")
    refuses(dgnet_gen(*arguments, "--animate", film), film.name, "--overwrite")
    assert not (tmp_path / "sheet.png").exists()
    assert dgnet_gen(*arguments, "--animate", film, "--overwrite").exit_code == 0
    assert is_made_by(film, "dgnet-gen smooth")
    assert dgnet_gen(*arguments, "--animate", film).exit_code == 0


def test_a_film_and_a_sheet_are_two_files(tmp_path):
    result = dgnet_gen("smooth", "--out", tmp_path / "a.webp", "--animate", tmp_path / "b" / ".." / "a.webp")
    assert (result.exit_code, "the same file" in result.output) == (2, True)


def test_an_input_is_never_written_to(sound, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        drawing(photos / f"{name}.png", 200)
    run = Path(shutil.copytree(sound / "run", tmp_path / "run"))
    drawing(run / "sheet.png")
    before = files_below(tmp_path)
    a, b = photos / "a.png", photos / "b.png"
    (tmp_path / "link.png").symlink_to(a)
    for arguments in (
        ("swap", "--structures", a, "--appearances", b, "--out", a),
        ("swap", "--structures", a, "--appearances", b, "--out", tmp_path / "link.png"),
        ("rainbow", "--pictures", a, "--pictures", b, "--out", run / "sheet.png"),
        ("rainbow", "--images", photos, "--out", b),
        ("smooth", "--images", photos, "--out", b),
        ("smooth-structure", "--images", photos, "--out", tmp_path / "new.png", "--animate", tmp_path / "link.png"),
    ):
        refuses(dgnet_gen(*arguments, "--run", run, "--overwrite"), ".png")
    refuses(dgnet_gen("one-by-one", "--run", run, "--structures", a, "--appearances", b, "--out", photos), "photos")
    for place in (run, sound / "raw"):
        refuses(dgnet_gen("test", "--run", run, "--out", place, "--overwrite"), "is read by this command")
    assert files_below(tmp_path) == before | {tmp_path / "link.png": a.read_bytes()}


def test_an_output_is_refused_before_any_work(tmp_path):
    drawing(tmp_path / "sheet.png")
    nowhere = ("--run", tmp_path / "nowhere", "--out", tmp_path / "sheet.png")
    for arguments in (*((command, *nowhere) for command in SHEETS), ("regenerate", "fake", "x.png", *nowhere)):
        refused = "no run here" if arguments[0] == "regenerate" else "sheet.png: exists"  # known once it is made
        refuses(dgnet_gen(*arguments), refused)
    truth = ("swap-truth", tmp_path / "nowhere", "--toy", tmp_path / "nowhere")
    refuses(dgnet_gen(*truth, "--sheet", tmp_path / "sheet.png"), "sheet.png: exists")
    (tmp_path / "swap_truth_gain_db.json").write_text("{}")
    refuses(dgnet_gen(*truth, "--out", tmp_path), "swap_truth_gain_db.json: exists")


def test_an_earlier_sheet_that_is_picked_as_a_picture_is_an_input(sound, tmp_path):
    save_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), maker="dgnet-gen swap")
    before = files_below(tmp_path)
    arguments = ("swap", "--run", sound / "run", "--images", tmp_path, "--rows", 1, "--cols", 1)
    refuses(dgnet_gen(*arguments, "--out", tmp_path / "a.png"), "a.png: is read by this command")
    assert files_below(tmp_path) == before


def test_a_link_as_out_is_followed(sound, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "disk.png")
    for _ in range(2):
        assert dgnet_gen("swap", "--run", sound / "run", "--rows", 2, "--out", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert is_made_by(tmp_path / "disk.png", "dgnet-gen swap")


@pytest.fixture(scope="module")
def generated(sound):
    """Pictures that the run generated; not to be written to."""
    result = dgnet_gen("generate", "--run", sound / "run", "--count", 6, "--out", sound / "fake")
    assert result.exit_code == 0, result.output
    return sound / "fake"


def test_a_picture_made_again_replaces_one_of_the_same_folder_and_nothing_else_unasked(sound, generated, tmp_path):
    first, second = read_manifest(generated)[1][:2]
    out = tmp_path / "again.png"

    def regenerate(row, *more, to=out):
        return dgnet_gen("regenerate", generated, row["file"], "--run", sound / "run", "--out", to, *more)

    drawing(out)
    refuses(regenerate(first), "again.png", "--overwrite")
    assert regenerate(first, "--overwrite").exit_code == 0
    assert out.read_bytes() == (generated / first["file"]).read_bytes()
    assert regenerate(second).exit_code == 0
    assert out.read_bytes() == (generated / second["file"]).read_bytes()
    before = files_below(generated)
    for more in ((), ("--overwrite",)):
        refuses(regenerate(first, *more, to=generated / second["file"]), "which this command reads")
    refuses(regenerate(first, to=tmp_path / "new" / "again.bmp"), "ends in .png")
    assert files_below(generated) == before
    assert not (tmp_path / "new").exists()


def test_metric_files_and_a_sheet_of_the_truth_replace_their_like_alone(sound, generated, tmp_path):
    arguments = ("swap-truth", generated, "--toy", sound / "raw", "--out", tmp_path, "--sheet", tmp_path / "truth.png")
    for _ in range(2):
        assert dgnet_gen(*arguments).exit_code == 0
    for name in ("swap_truth_ssim.json", "truth.png"):
        (tmp_path / name).write_text("{}")
        before = files_below(tmp_path)
        refuses(dgnet_gen(*arguments), name, "--overwrite")
        assert files_below(tmp_path) == before
        assert dgnet_gen(*arguments, "--overwrite").exit_code == 0
    picture = generated / read_manifest(generated)[1][0]["file"]
    refuses(dgnet_gen(*arguments[:4], "--sheet", picture, "--overwrite"), "which this command reads")
    refuses(dgnet_gen(*arguments[:4], "--out", generated, "--overwrite"), "is read by this command")


def test_numbers_that_are_none_are_one_line(sound, tmp_path):
    run = ("--run", sound / "run", "--out", tmp_path / "out.png")
    for command, option, value in (
        ("swap", "--pids", "2,²"),
        ("swap", "--pids", "9" * 5000),
        ("swap", "--which-epoch", "²"),
        ("generate", "--part", "1/²"),
        ("generate", "--part", "1/" + "9" * 5000),
        ("generate", "--max-hours", "0"),
        ("generate", "--max-hours", "nan"),
        ("generate", "--plan", "per-identity 999999999"),
    ):
        refuses(dgnet_gen(command, *run, option, value), option)
    for command in ("generate", "swap", "one-by-one"):
        assert dgnet_gen(command, *run, "--seed", "-1").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_time_limit_leaves_with_75_and_the_same_command_goes_on(sound, tmp_path):
    arguments = ("generate", "--run", sound / "run", "--out", tmp_path / "fake")
    result = dgnet_gen(*arguments, "--max-hours", 1e-9)
    assert (result.exit_code, "--max-hours 1e-09 reached" in result.stderr) == (75, True), result.output
    assert dgnet_gen(*arguments).exit_code == 0


def test_a_name_steers_no_terminal(sound, tmp_path):
    out = tmp_path / "a\x1b]0;mine\x07.png"
    result = dgnet_gen("swap", "--run", sound / "run", "--rows", 2, "--out", out)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "a\\x1b]0;mine\\x07.png" in result.output


def test_published_pixels_are_cut_off_and_written_as_the_published_program_does(sound, tmp_path):
    arguments = ("generate", "--run", sound / "run", "--count", 4, "--out", tmp_path / "fake")
    result = dgnet_gen(*arguments, "--published-pixels", "--format", "png")
    assert (result.exit_code, "leave --format and --quality out" in result.output) == (2, True)
    assert dgnet_gen(*arguments, "--published-pixels").exit_code == 0
    refuses(dgnet_gen(*arguments, "--format", "jpg", "--quality", 75), "levels truncated -> rounded")
    model, rows = DGNet.load(sound / "run", device="cpu"), read_manifest(tmp_path / "fake")[1]
    differing = 0
    for row in rows:
        look, pose = (
            eval_transform(read_pixels(sound / "raw" / row[parent]), model.image_hw)[None]
            for parent in ("appearance", "structure")
        )
        image = model.decode(Codes(model.appearance(look), model.structure(pose)))[0].numpy().transpose(1, 2, 0)
        values = (np.array([0.229, 0.224, 0.225]) * image + np.array([0.485, 0.456, 0.406])) * 255.0
        stream = io.BytesIO()
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(stream, format="JPEG")
        with Image.open(tmp_path / "fake" / row["file"]) as made, Image.open(stream) as wanted:
            assert made.quantization == wanted.quantization
            assert made.layer == wanted.layer  # colours at half the resolution
            # Numbers of another batch size may fall on the other side of a level.
            differing += int((np.asarray(made, int) != np.asarray(wanted, int)).mean() > 0.02)
    assert differing == 0
    assert dgnet_gen("regenerate", tmp_path / "fake", rows[0]["file"], "--run", sound / "run", "--out",
                     tmp_path / "again.jpg").exit_code == 0  # fmt: skip
    assert (tmp_path / "again.jpg").read_bytes() == (tmp_path / "fake" / rows[0]["file"]).read_bytes()


def test_a_folder_is_its_pictures_in_the_order_of_their_names(sound, tmp_path):
    pictures = sorted((sound / "raw" / "query").iterdir())[:2]
    for name, picture in zip(("b/2.jpg", "a/9.jpg"), pictures, strict=True):
        (tmp_path / "people" / name).parent.mkdir(parents=True)
        shutil.copy(picture, tmp_path / "people" / name)
    named = [option for picture in reversed(pictures) for option in ("--pictures", picture)]
    for out, given in (("folder.png", ["--pictures", tmp_path / "people"]), ("named.png", named)):
        result = dgnet_gen("rainbow", "--run", sound / "run", "--no-labels", "--out", tmp_path / out, *given)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "folder.png").read_bytes() == (tmp_path / "named.png").read_bytes()
    (tmp_path / "empty").mkdir()
    refuses(dgnet_gen("swap", "--run", sound / "run", "--structures", tmp_path / "empty"), "empty: no pictures here")
