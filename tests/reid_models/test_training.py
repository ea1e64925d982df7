import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch

from reid_eval.errors import OutputError, Stopped
from reid_eval.files import ImageError
from reid_models.config import ConfigError, config_from_dict
from reid_models.data.check import training_findings
from reid_models.data.index import DatasetError, DatasetIndex
from reid_models.data.samplers import IdentitySampler
from reid_models.evaluation import Evaluation
from reid_models.runs import CheckpointError, RunDir
from reid_models.runtime import Runtime
from reid_models.training import (
    DivergedError,
    OptimConfig,
    ReidTrainConfig,
    ScheduleConfig,
    build_network,
    make_optimizer,
    train_reid,
)
from reid_models.weights import WeightsError

# Four people of six pictures, eight pictures in a batch: three iterations make an epoch.
TINY = {
    "image_hw": [32, 16],
    "network": {"trunk": "small", "width": 4, "weights": "none", "bottleneck": 16},
    "sampler": {"ids_per_batch": 4, "images_per_id": 2},
    "augmentation": {"pad_px": 2, "erase": 0.3},
    "schedule": {"epochs": 4, "warmup_epochs": 1},
    "num_workers": 0,
    "log_every": 5,
    "eval_every": 2,
    "checkpoint_every": 1,
}


def tiny_config(**groups):
    values = {**TINY}
    for name, value in groups.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return config_from_dict(ReidTrainConfig, values)


def train(index, out, *, resume=False, stop_at=None, **groups):
    return train_reid(
        tiny_config(**groups), index, out, Runtime.from_environment("cpu"), resume=resume, stop_at=stop_at
    )


def assert_equal(found, expected, where=""):
    """Nested containers of tensors and plain values are equal to the bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for position, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_equal(a, b, f"{where}[{position}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def test_a_run_holds_its_log_its_checkpoints_and_a_picture_of_a_batch(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", keep_checkpoints=2)
    assert run.iterations() == [9, 12]
    log = run.read_log()
    assert [line["iteration"] for line in log if "cross_entropy" in line] == [5, 10, 12]
    assert [line["iteration"] for line in log if "eval_map_hits" in line] == [6, 12]
    assert {"cross_entropy", "triplet", "lr", "epoch"} < log[0].keys()
    assert (run.samples / "batch_00000000.png").is_file()
    made_by = run.load().made_by
    train_part = toy_index.split("train_all")
    assert (made_by["num_ids"], made_by["index_fingerprint"]) == (4, train_part.fingerprint)
    assert {"reid_models", "torch", "data", "layout"} <= made_by.keys()


def test_the_best_checkpoint_is_the_one_of_the_highest_map(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", eval_every=1)
    maps = {line["iteration"]: line["eval_map_hits"] for line in run.read_log() if "eval_map_hits" in line}
    best = run.load("best")
    assert maps[best.iteration] == max(maps.values()) == best.progress["best_map"]


@pytest.mark.parametrize("stop_at", [4, 6], ids=["within-an-epoch", "where-an-evaluation-is-due"])
def test_a_resumed_run_equals_one_that_never_stopped(toy_index, tmp_path, stop_at):
    straight = train(toy_index, tmp_path / "straight")
    with pytest.raises(Stopped, match=f"saved iteration {stop_at} .*--resume"):
        train(toy_index, tmp_path / "stopped", stop_at=stop_at)
    torch.manual_seed(99)
    resumed = train(toy_index, tmp_path / "stopped", resume=True)
    for which in ("last", "best"):
        assert_equal(dataclasses.asdict(resumed.load(which)), dataclasses.asdict(straight.load(which)))
    assert resumed.log_file.read_text() == straight.log_file.read_text()


def test_saving_by_the_clock_changes_nothing_and_a_kill_costs_minutes(toy_index, tmp_path):
    straight = train(toy_index, tmp_path / "straight", checkpoint_minutes=0)
    run = train(toy_index, tmp_path / "run", checkpoint_minutes=1e-9, checkpoint_every=2)
    assert run.log_file.read_text() == straight.log_file.read_text()
    kept = tmp_path / "kept.pt"

    def keep_and_stop(run, checkpoint, **options):
        file = save(run, checkpoint, **options)
        if checkpoint.iteration == 7:  # in the middle of the third epoch
            shutil.copytree(run.path, kept)
        return file

    save = RunDir.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "save", keep_and_stop)
        train(toy_index, tmp_path / "killed", checkpoint_minutes=1e-9, checkpoint_every=2)
    assert RunDir.open(kept).iterations() == [6, 7]
    resumed = train(toy_index, kept, resume=True)
    assert_equal(
        dataclasses.asdict(resumed.load()) | {"config": 0}, dataclasses.asdict(straight.load()) | {"config": 0}
    )
    assert resumed.log_file.read_text() == straight.log_file.read_text()


def test_a_longer_training_equals_one_that_was_begun_longer(toy_index, tmp_path):
    long = train(toy_index, tmp_path / "long", schedule={"epochs": 6, "milestones": [3]}, log_every=3)
    train(toy_index, tmp_path / "run", schedule={"epochs": 4, "milestones": [3]}, log_every=3)
    run = train(toy_index, tmp_path / "run", schedule={"epochs": 6, "milestones": [3]}, log_every=3, resume=True)
    for which in ("last", "best"):
        assert_equal(run.load(which).networks, long.load(which).networks)
        assert_equal(run.load(which).optimizers, long.load(which).optimizers)
        assert_equal(run.load(which).progress, long.load(which).progress)
    assert run.log_file.read_text() == long.log_file.read_text()
    assert run.config(ReidTrainConfig).schedule.epochs == 6
    assert json.loads((run.path / "run.json").read_text())["changes"][0]["settings"] == ["schedule.epochs: 4 -> 6"]
    with pytest.raises(CheckpointError, match=r"schedule\.epochs: 6 -> 5"):
        train(toy_index, tmp_path / "run", schedule={"epochs": 5, "milestones": [3]}, log_every=3, resume=True)


def test_a_cosine_that_is_made_longer_says_that_it_was_another_one(toy_index, tmp_path, caplog):
    schedule = {"kind": "cosine", "warmup_epochs": 0}
    train(toy_index, tmp_path / "run", schedule={"epochs": 1, **schedule})
    assert "cosine" not in caplog.text
    train(toy_index, tmp_path / "run", schedule={"epochs": 2, **schedule}, resume=True)
    assert "a cosine depends on the number of epochs" in caplog.text


@pytest.mark.parametrize(
    ("groups", "change"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"optim": {"lr": 0.5}}, "optim.lr: 0.00035 -> 0.5"),
        ({"schedule": {"milestones": [1]}}, "schedule.milestones: "),
        ({"eval_rerank": True}, "eval_rerank: False -> True"),
    ],
)
def test_what_decides_what_is_learned_does_not_change(toy_index, tmp_path, groups, change):
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "run", stop_at=1)
    with pytest.raises(CheckpointError, match=f"cannot resume with other settings .*{change}"):
        train(toy_index, tmp_path / "run", resume=True, **groups)
    unimportant = {"num_workers": 1, "cache_mib": 1, "log_every": 4, "eval_every": 3, "keep_checkpoints": 9}
    train(toy_index, tmp_path / "run", resume=True, **unimportant)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_bad_costs_no_step(toy_root, tmp_path, workers):
    data = DatasetIndex.open(shutil.copytree(toy_root, tmp_path / "data"))
    straight = train(data, tmp_path / "straight")
    index, config = data.split("train_all"), tiny_config()
    sampler = IdentitySampler(index.label_array, 4, 2, config.seed)
    batches = [{draw.row for draw in sampler.batch(iteration)} for iteration in range(3)]
    row = min(batches[2] - batches[1] - batches[0])
    whole = index[row].path.read_bytes()
    index[row].path.write_bytes(whole[:500])
    with pytest.raises(ImageError, match=index[row].path.name):
        train(data, tmp_path / "run", num_workers=workers, checkpoint_every=4)
    assert RunDir.open(tmp_path / "run").iterations() == [2]
    index[row].path.write_bytes(whole)
    run = train(data, tmp_path / "run", resume=True, num_workers=workers, checkpoint_every=4)
    assert_equal(run.load().networks, straight.load().networks)
    assert run.iterations() == [12]


def test_every_evaluation_is_told_and_logged(toy_index, tmp_path, capsys):
    run = train(toy_index, tmp_path / "run", eval_every=2, eval_rerank=True)
    found = [line for line in run.read_log() if "eval_map_hits" in line]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == len(found) == 2
    best = 0
    for line, scores, epoch in zip(lines, found, (2, 4), strict=True):
        assert {f"eval_rank{k}{suffix}" for k in (1, 3, 5, 10) for suffix in ("", "_rerank")} < scores.keys()
        best = max(best, scores["eval_map_hits_rerank"])
        assert line.startswith(f"epoch {epoch}: mAP {scores['eval_map_hits']:.4f}, rank-1/3/5/10 ")
        assert f"re-ranked mAP {scores['eval_map_hits_rerank']:.4f}" in line
        assert f"; best re-ranked {best:.4f}, epoch " in line


def test_the_last_note_holds_the_last_evaluation(toy_index, tmp_path, monkeypatch):
    notes = []

    class Bar:
        def advance(self, steps=1, note=""):
            notes.append(note)

    monkeypatch.setattr("reid_models.training.progress", lambda *arguments: contextlib.nullcontext(Bar()))
    run = train(toy_index, tmp_path / "run", eval_every=1, schedule={"epochs": 2})
    maps = [line["eval_map_hits"] for line in run.read_log() if "eval_map_hits" in line]
    assert len(notes) == 6
    assert "mAP" not in notes[1]
    assert notes[2].endswith(f"mAP {maps[0]:.3f} (best {maps[0]:.3f})")
    assert notes[5].endswith(f"mAP {maps[1]:.3f} (best {max(maps):.3f})")


@pytest.mark.parametrize(
    "progress",
    [{}, {"best_map": "high"}, {"window": [1]}, {"evaluated_at": None}, {"collapsed_for": "x"}],
)
def test_a_checkpoint_whose_progress_is_odd_is_not_gone_on_from(toy_index, tmp_path, progress):
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "run", stop_at=2)
    run = RunDir.open(tmp_path / "run")
    checkpoint = run.load()
    run.save(dataclasses.replace(checkpoint, progress={**checkpoint.progress, **progress} if progress else {}))
    with pytest.raises(CheckpointError, match=r"00000002\.pt: cannot be read .*expected a checkpoint to go on from"):
        train(toy_index, tmp_path / "run", resume=True)


@pytest.mark.parametrize("entry", ["optimizers", "rng", "networks"])
def test_a_checkpoint_that_lacks_something_is_not_gone_on_from(toy_index, tmp_path, entry):
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "run", stop_at=2)
    run = RunDir.open(tmp_path / "run")
    run.save(dataclasses.replace(run.load(), **{entry: {"other": {}}}))
    with pytest.raises(CheckpointError, match=r"00000002\.pt: ") as caught:
        train(toy_index, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(toy_index, tmp_path):
    schedule = {"epochs": 1}
    runs = [train(toy_index, tmp_path / f"run{n}", schedule=schedule, seed=seed) for n, seed in enumerate([3, 3, 4])]
    first, second, other = (run.log_file.read_text() for run in runs)
    assert first == second != other


def test_resuming_a_finished_run_does_nothing(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in run.checkpoints.iterdir()}
    log = run.log_file.read_text()
    train(toy_index, tmp_path / "run", resume=True)
    assert {file: file.stat().st_mtime_ns for file in run.checkpoints.iterdir()} == before
    assert run.log_file.read_text() == log


def test_a_stop_signal_saves_and_can_be_resumed(toy_index, tmp_path):
    """The signal comes once the first checkpoint is there, so that it meets the training and not its preparation."""
    out = tmp_path / "run"

    def send_when_running():
        while not list(out.glob("checkpoints/*.pt")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send_when_running)
    sender.start()
    with pytest.raises(Stopped, match="SIGTERM: saved iteration") as caught:
        train(toy_index, out, schedule={"epochs": 2000}, eval_every=2000)
    sender.join()
    assert caught.value.exit_code == 75
    saved = RunDir.open(out).load()
    assert f"saved iteration {saved.iteration} " in str(caught.value)


def test_a_stop_asked_for_in_the_last_step_finds_a_finished_run(toy_index, tmp_path):
    run = train(toy_index, tmp_path / "run", schedule={"epochs": 1}, stop_at=3)
    assert (run.iterations(), run.load("best").iteration) == ([3], 3)


def test_every_step_takes_the_learning_rates_of_its_iteration(toy_index, tmp_path):
    schedule = {"warmup_epochs": 1, "warmup_factor": 0.1}
    optim = {"kind": "sgd", "lr": 0.01, "trunk_lr_factor": 0.5}
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "run", stop_at=2, schedule=schedule, optim=optim)
    trunk, head = RunDir.open(tmp_path / "run").load().optimizers["reid"]["param_groups"]
    # the second of three steps that climb from a tenth to the whole
    assert (trunk["lr"], head["lr"]) == pytest.approx((0.005 * 0.4, 0.01 * 0.4))


def test_the_network_sees_varied_pictures(toy_index, tmp_path):
    plain = {"flip": 0.0, "pad_px": 0, "erase": 0.0}
    runs = [train(toy_index, tmp_path / name, stop_at=3, schedule={"epochs": 1}, **groups)
            for name, groups in (("varied", {}), ("plain", {"augmentation": plain}))]  # fmt: skip
    varied, same = (run.read_log()[0]["cross_entropy"] for run in runs)
    assert varied != same


@pytest.fixture
def asked_while_evaluating(monkeypatch):
    """What asks to stop comes while the network is evaluated, and not before."""

    def arrange(reason):
        measure = Evaluation.measure

        def asked(*arguments, **options):
            with monkeypatch.context() as now:
                now.setattr(Runtime, "stop_reason", lambda runtime: reason)
                return measure(*arguments, **options)

        monkeypatch.setattr(Evaluation, "measure", asked)

    return arrange


@pytest.mark.parametrize("reason", ["SIGTERM", "--max-hours 8 reached"])
def test_an_evaluation_is_not_waited_for(toy_index, tmp_path, asked_while_evaluating, reason, monkeypatch):
    straight = train(toy_index, tmp_path / "straight")
    with monkeypatch.context():
        asked_while_evaluating(reason)
        with pytest.raises(Stopped, match=f"{reason}: saved iteration 6 "):
            train(toy_index, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(toy_index, tmp_path / "stopped", resume=True)
    for which in ("last", "best"):
        assert_equal(dataclasses.asdict(resumed.load(which)), dataclasses.asdict(straight.load(which)))
    assert resumed.log_file.read_text() == straight.log_file.read_text()
    assert resumed.iterations() == straight.iterations()


@pytest.mark.parametrize("resume", [False, True])
def test_weights_that_cannot_be_had_leave_nothing_behind(toy_index, tmp_path, resume):
    with pytest.raises(WeightsError, match="no such weight file"):
        train(toy_index, tmp_path / "run", resume=resume, network={"weights": str(tmp_path / "gone.pth")})
    assert not (tmp_path / "run").exists()


def test_resuming_needs_the_weight_file_no_more(toy_index, tmp_path):
    file = tmp_path / "trunk.pth"
    torch.save(build_network(tiny_config().network, 4).trunk.state_dict(), file)
    network = {"weights": str(file)}
    with pytest.raises(Stopped):
        train(toy_index, tmp_path / "run", stop_at=2, network=network)
    file.unlink()
    assert train(toy_index, tmp_path / "run", resume=True, network=network).iterations()[-1] == 12


def test_training_learns_to_tell_the_training_people_apart(toy_index, tmp_path):
    log = train(
        toy_index, tmp_path / "run", schedule={"epochs": 30}, optim={"lr": 0.003}, eval_every=30, log_every=15
    ).read_log()
    first, last = (line for line in (log[0], [line for line in log if "cross_entropy" in line][-1]))
    assert last["cross_entropy"] < 0.7 * first["cross_entropy"]
    assert last["triplet"] < 0.7 * first["triplet"]


def test_data_without_queries_is_trained_on_without_evaluation(toy_index, tmp_path, caplog):
    run = train(toy_index.split("train_all"), tmp_path / "run", schedule={"epochs": 1})
    assert "nothing is evaluated" in caplog.text
    assert not any("eval_map_hits" in line for line in run.read_log())
    assert not (run.checkpoints / "best.pt").exists()


@pytest.mark.parametrize("groups", [{"loss": {"terms": "CrossEntropy"}}, {"loss": {"terms": "Triplet"}}])
def test_either_loss_can_be_left_out(toy_index, tmp_path, groups):
    log = train(toy_index, tmp_path / "run", schedule={"epochs": 1}, **groups).read_log()
    assert ("cross_entropy" in log[0]) != ("triplet" in log[0])


def test_half_precision_trains_and_keeps_its_weights_in_float32(toy_index, tmp_path):
    config = tiny_config(schedule={"epochs": 1}, precision="bf16")
    run = train_reid(config, toy_index, tmp_path / "run", Runtime.from_environment("cpu", precision="bf16"))
    plain = train(toy_index, tmp_path / "plain", schedule={"epochs": 1})
    assert run.load().networks["reid"]["reduce.weight"].dtype == torch.float32
    # bfloat16 has 8 bits of mantissa
    assert run.read_log()[0]["cross_entropy"] == pytest.approx(plain.read_log()[0]["cross_entropy"], rel=0.05)
    assert run.read_log()[0]["cross_entropy"] != plain.read_log()[0]["cross_entropy"]


def test_shuffled_batches_train_with_the_identity_loss(toy_index, tmp_path):
    run = train(
        toy_index,
        tmp_path / "run",
        sampler={"kind": "shuffled", "batch_size": 6},
        loss={"terms": "CrossEntropy"},
        optim={"kind": "sgd", "lr": 0.02, "trunk_lr_factor": 0.1},
        schedule={"epochs": 1},
    )
    assert run.iterations() == [4]


def test_a_loss_that_is_not_finite_is_named_with_iteration_and_learning_rate(toy_index, tmp_path):
    message = r"loss \w+ is (nan|inf) at iteration \d+, learning rate \S+ \(batch with (\w+\.jpg), .*, \.\.\.\); lower"
    with pytest.raises(DivergedError, match=message) as caught:
        train(toy_index, tmp_path / "run", optim={"kind": "sgd", "lr": 1e30}, schedule={"warmup_epochs": 0})
    named = re.findall(r"\w+\.jpg", str(caught.value))
    assert len(named) == 3
    assert set(named) <= {path.name for path in toy_index.split("train_all").paths}


def test_weights_that_are_not_finite_are_never_saved(toy_index, tmp_path):
    """The step that breaks them has a finite loss; a checkpoint of it could only fail again."""
    with pytest.raises(DivergedError, match=r"trunk\.\S+ is not finite after iteration 1, .*not saved; lower optim.lr"):
        train(toy_index, tmp_path / "run", stop_at=1, optim={"kind": "sgd", "lr": 1e300})
    assert RunDir.open(tmp_path / "run").iterations() == []


def only(index, keep):
    return DatasetIndex(index.root, index.layout, tuple(record for record in index if keep(record)))


@pytest.mark.parametrize(
    ("keep", "groups", "message"),
    [
        (lambda record: record.split != "train" or record.pid == 2, {}, "one identity to train on"),
        (lambda record: True, {"sampler": {"ids_per_batch": 5}}, "ids_per_batch is 5, but .* has 4 identities"),
        (lambda record: record.split != "train", {}, "no training images"),
    ],
    ids=["one-identity", "p-too-large", "no-training-data"],
)
def test_data_that_cannot_be_trained_on_leaves_nothing_behind(toy_index, tmp_path, keep, groups, message):
    with pytest.raises(DatasetError, match=message) as caught:
        train(only(toy_index, keep), tmp_path / "run", **groups)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"sampler": {"images_per_id": 1}}, "sampler.images_per_id: triplet needs at least 2"),
        ({"sampler": {"kind": "shuffled"}}, "needs sampler.kind=identity"),
        ({"sampler": {"ids_per_batch": 1}}, "sampler.ids_per_batch: must be at least 2"),
        ({"loss": {"terms": "Triplett"}}, "did you mean triplet"),
        ({"optim": {"lr": 0.0}}, "optim.lr: must be positive"),
        ({"image_hw": [8, 8]}, "image_hw: height and width"),
        ({"network": {"last_stride": 3}}, "network.last_stride"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"seed": 1 << 63}, "seed: must be .* below 2\\^63"),
        ({"optim": {"weight_decay": -1.0}}, "optim.weight_decay: must be 0 or more, got -1"),
        ({"optim": {"lr": math.nan}}, "optim.lr: must be positive, got nan"),
        ({"optim": {"momentum": 1.0}}, "optim.momentum: must be 0 to below 1"),
        ({"loss": {"margin": -0.1}}, "loss.margin: must be 0 or more"),
        ({"loss": {"terms": "CE + nan*Triplet"}}, "the weight must be positive and finite, got nan"),
        ({"schedule": {"gamma": 10.0}}, "schedule.gamma: must be between 0 and 1, got 10"),
        ({"network": {"width": 0}}, "network.width: must be at least 1, got 0"),
        ({"augmentation": {"flip": 2.0}}, "augmentation.flip: must be between 0 and 1"),
        ({"augmentation": {"pad_px": -1}}, "augmentation.pad_px: must be at least 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(groups, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**groups)


@pytest.mark.parametrize(
    ("keep", "protocol"),
    [
        (lambda record: record.split != "train" or record.camid == 1, "cross-camera"),
        (lambda record: record.split == "train" or record.camid == 1, "no-camera"),
        (lambda record: record.camid == 1, "no-camera"),
    ],
    ids=["of-training", "of-testing", "of-all"],
)
def test_pictures_of_one_camera_are_trained_on_and_evaluated_by_what_fits(toy_index, tmp_path, keep, protocol, caplog):
    data = only(toy_index, keep)
    assert all(finding.severity != "error" for finding in training_findings(data))
    run = train(data, tmp_path / "run", schedule={"epochs": 2})
    assert run.load("best").progress["best_map"] > 0
    assert ("the protocol is no-camera" in caplog.text) == (protocol == "no-camera")


def test_what_check_says_of_the_data_is_said_when_a_training_begins(toy_index, tmp_path, caplog):
    data = only(toy_index, lambda record: record.split != "train" or record.camid == 1 or record.pid != 2)
    data = dataclasses.replace(data, unparsed=(data.root / "holiday.jpg",))
    train(data, tmp_path / "run", schedule={"epochs": 1})
    warnings = [finding.what for finding in training_findings(data) if finding.severity == "warning"]
    assert any("do not parse" in what for what in warnings)
    for what in warnings:
        assert what in caplog.text


def test_an_existing_run_is_not_written_over(toy_index, tmp_path):
    train(toy_index, tmp_path / "run", schedule={"epochs": 1})
    with pytest.raises(OutputError, match="--resume"):
        train(toy_index, tmp_path / "run", schedule={"epochs": 1})


def test_warm_up_climbs_in_a_straight_line_and_steps_follow_the_finished_epochs():
    schedule = ScheduleConfig(kind="multistep", epochs=10, warmup_epochs=2, warmup_factor=0.1, milestones=[5, 8])
    factors = [schedule.lr_factor(iteration, 10) for iteration in (0, 10, 20, 49, 50, 79, 80, 99)]
    np.testing.assert_allclose(factors, [0.1, 0.55, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_published_step_schedule_is_reproduced():
    """Learning rate 2e-4 with steps after epochs 320 and 380: 2e-4 in epoch 320, 2e-5 in 321, 2e-6 in 381."""
    schedule = ScheduleConfig(kind="multistep", epochs=400, warmup_epochs=0, milestones=[320, 380])
    rates = [2e-4 * schedule.lr_factor((epoch - 1) * 47, 47) for epoch in (1, 320, 321, 380, 381, 400)]
    np.testing.assert_allclose(rates, [2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6])


def test_the_cosine_falls_from_one_to_its_last_value():
    schedule = ScheduleConfig(kind="cosine", epochs=12, warmup_epochs=2, warmup_factor=0.5, final_factor=0.2)
    factors = [schedule.lr_factor(iteration, 10) for iteration in (0, 10, 20, 70, 120)]
    np.testing.assert_allclose(factors, [0.5, 0.75, 1, 0.6, 0.2])


def test_the_trunk_has_its_own_learning_rate_and_every_parameter_has_one_group():
    network = build_network(tiny_config().network, 4)
    optimizer = make_optimizer(network, OptimConfig(kind="sgd", lr=0.02, trunk_lr_factor=0.1))
    trunk, head = optimizer.param_groups
    assert (trunk["lr"], head["lr"]) == pytest.approx((0.002, 0.02))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert {id(p) for p in trunk["params"]} == {id(p) for p in network.trunk.parameters()}
