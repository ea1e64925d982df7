"""What a user can do wrong with dgnet-gen: one line that says so, exit code 1, and nothing lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dgnet_gen.cli import main
from reid_models.data.synthetic import make_toy_dataset
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
    refuses(train(sound, raw, tmp_path / "out"), "show 1 people, expected at least 2")
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
    refuses(train(sound, sound / "raw", run, "--resume", "--set", "max_iter=9"), "max_iter: 4 -> 9")
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
