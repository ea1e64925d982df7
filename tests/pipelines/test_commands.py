"""What a user can do wrong on the way: one line that says so, exit code 1, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.__main__ import main
from pipelines.road import market_road
from reid_models.data.synthetic import make_toy_dataset

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refuses(result: Result, *words: str) -> None:
    """One line that holds these words, and exit code 1."""
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.stderr.rstrip().endswith(errors[0])
    for word in words:
        assert word in errors[0], errors[0]


@pytest.fixture
def raw(tmp_path):
    """A raw dataset that a test may spoil."""
    return make_toy_dataset(tmp_path / "raw", ids=6, cameras=2, per_camera=2, image_hw=(64, 32))


def files_below(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_wrong_folder_is_named(tmp_path):
    refuses(
        run("market", "--raw", tmp_path / "Markt", "--out", tmp_path / "out", "--preset", "small"), "Markt", "folder"
    )


def test_an_empty_folder_says_what_was_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("market", "--raw", tmp_path / "empty", "--out", tmp_path / "out", "--preset", "small")
    refuses(result, "empty", "bounding_box_train")


def test_a_damaged_picture_stops_the_walk_before_any_training(raw, tmp_path):
    damaged = sorted((raw / "bounding_box_train").glob("*.jpg"))[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    result = run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small")
    refuses(result, "1 images cannot be read", damaged.name, "restore")
    assert not (tmp_path / "out" / "teacher").exists()


def test_one_person_cannot_walk_the_road(raw, tmp_path):
    people = sorted({path.name[:4] for path in (raw / "bounding_box_train").glob("*.jpg")})
    for path in (raw / "bounding_box_train").glob("*.jpg"):
        if path.name[:4] != people[0]:
            path.unlink()
    refuses(run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small"), "one identity", "at least two")


def test_more_people_a_batch_than_there_are_is_said_with_both_numbers(raw, tmp_path):
    result = run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small")
    refuses(result, "sampler.ids_per_batch is 4", "3 identities")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dgnet.max_itr=5", ("max_itr", "did you mean max_iter")),
        ("teacher.optim.lrr=1", ("lrr", "did you mean")),
        ("dgnt.max_iter=5", ("dgnt.max_iter=5", "teacher.KEY=VALUE")),
        ("max_iter=5", ("max_iter=5", "teacher.KEY=VALUE")),
        ("dgnet.max_iter=many", ("max_iter", "many")),
    ],
)
def test_a_misspelt_setting_is_refused_before_anything_is_made(tmp_path, override, words):
    refuses(run("demo", "--out", tmp_path / "out", "--set", override), *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_foreign_files_is_left_alone(raw, tmp_path):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "thesis.txt").write_text("years of work")
    before = files_below(out)
    refuses(run("market", "--raw", raw, "--out", out, "--preset", "small"), "thesis.txt", "choose another")
    assert files_below(out) == before


def test_missing_inception_weights_are_missed_before_the_training(raw, tmp_path):
    result = run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small", "--fid-weights", "gone.pth")
    refuses(result, "gone.pth", "pt_inception-2015-12-05-6726825d.pth")
    assert not (tmp_path / "out").exists()


def test_settings_reach_their_trainer_and_the_published_fid_is_measured_where_it_can_be():
    overrides = ("teacher.schedule.epochs=3", "dgnet.max_iter=7")
    road = market_road(Path("raw"), Path("out"), CONFIGS, preset="small", overrides=overrides)
    assert (road.teacher.schedule.epochs, road.dgnet.max_iter) == (3, 7)
    assert road.extractors == ("reid",)
    weights = Path("inception.pth")
    assert "inception" in market_road(Path("raw"), Path("out"), CONFIGS).extractors
    assert "inception" in market_road(Path("raw"), Path("out"), CONFIGS, preset="small", fid_weights=weights).extractors
    assert "inception" not in market_road(Path("raw"), Path("out"), CONFIGS, fid_inception=False).extractors


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dgnet/run.json", b'{"kind": "marathon", "km": 42}'),
        ("generated/card.json", b'{"birthday": "Anna"}'),
        ("pictures/swap.png", b"somebody's"),
        ("metrics/map_hits.json", b"{}"),
        ("report.html", b"somebody's"),
    ],
)
def test_what_somebody_else_put_there_is_refused_before_any_work(raw, tmp_path, name, content):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    result = run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small")
    refuses(result, str(file.parent if name.endswith(("run.json", "card.json")) else file), "choose another")
    assert files_below(tmp_path / "out") == {file: content}


@pytest.mark.parametrize("setting", ["teacher.network.weights", "dgnet.trunk_weights"])
def test_missing_trunk_weights_are_missed_before_any_training(raw, tmp_path, setting):
    result = run("market", "--raw", raw, "--out", tmp_path / "out", "--preset", "small", "--set", f"{setting}=gone.pth")
    refuses(result, "gone.pth", f"--set {setting}")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_walk_that_is_stopped_in_the_middle_goes_on_where_it_was(raw, tmp_path, tiny_settings):
    out = tmp_path / "out"
    settings = (*tiny_settings, "dgnet.max_iter=60", "dgnet.checkpoint_every=10", "dgnet.networks.image_hw=[32,16]")
    command = [sys.executable, "-m", "pipelines", "market", "--raw", str(raw), "--out", str(out), "--device", "cpu"]
    command += ["--preset", "small", *(part for setting in settings for part in ("--set", setting))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checkpoints = out / "dgnet" / "checkpoints"
    for number in (signal.SIGHUP, signal.SIGTERM):
        done = {file.name for file in checkpoints.glob("*.pt")}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as walking:
            while walking.poll() is None and not {file.name for file in checkpoints.glob("*.pt")} - done:
                time.sleep(0.02)
            walking.send_signal(number)
            told = walking.communicate()[1]
        assert walking.returncode == 75, told
        assert told.rstrip().endswith("in stage dgnet; run the same command to go on")
        assert not (out / "report.html").exists()
    before = files_below(out / "teacher" / "checkpoints")
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "teacher: done before" in again.stderr
    assert files_below(out / "teacher" / "checkpoints") == before
    assert (out / "report.html").is_file()
