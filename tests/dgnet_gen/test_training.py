import dataclasses
import os
import shutil
import signal
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dgnet_gen.cli import main
from dgnet_gen.model import Codes, DGNet, NetworksConfig
from dgnet_gen.pairs import PairDataset
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.step import DivergedError
from dgnet_gen.teacher import TeacherError
from dgnet_gen.training import checkpoint_bytes, choose_pictures, num_checkpoints, repainting_error, train_dgnet
from reid_eval.errors import OutputError, Stopped
from reid_eval.files import ImageError, read_pixels, save_image
from reid_models.config import ConfigError, config_dict, dump_config
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord
from reid_models.data.transforms import eval_transform
from reid_models.runs import Checkpoint, CheckpointError, RunDir
from reid_models.runtime import Runtime
from reid_models.training import NetworkConfig, ReidTrainConfig, build_network
from reid_models.weights import WeightsError

TINY = NetworksConfig(
    image_hw=(32, 16),
    trunk="small",
    trunk_width=2,
    bottleneck=8,
    structure_dim=2,
    n_res=1,
    mlp_dim=8,
    discriminator_dim=2,
    discriminator_res=1,
    num_scales=2,
)
CONFIG = DGNetTrainConfig(
    networks=TINY,
    weights=LossWeights(warm_iter=1, warm_scale=0.5, teacher=0.0),
    trunk_weights="none",
    batch_size=3,
    max_iter=6,
    pad_px=2,
    num_workers=0,
    log_every=2,
    sample_every=4,
    checkpoint_every=3,
)


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "data", people=3)


def make_index(folder, people):
    """Plain-coloured people on noise, four pictures of each."""
    generator = np.random.default_rng(0)
    records = []
    for pid in range(people):
        colour = generator.integers(0, 256, 3)
        for number in range(4):
            pixels = generator.integers(0, 256, (32, 16, 3), dtype=np.uint8)
            pixels[6:28, 4:12] = colour
            path = folder / "bounding_box_train" / f"{pid + 1:04}_c{number % 2 + 1}s1_{number:06}_00.png"
            save_image(path, pixels)
            records.append(ImageRecord(path, pid + 1, number % 2 + 1, "train"))
    return DatasetIndex(folder, "market1501", tuple(records))


TEACHER = ReidTrainConfig(
    image_hw=(32, 16), network=NetworkConfig(trunk="small", width=2, weights="none", bottleneck=8)
)
WITH_TEACHER = dataclasses.replace(CONFIG, weights=LossWeights(warm_iter=1, warm_teacher_iter=0, warm_scale=0.5))


def make_teacher(folder, index, seed=1):
    """A run of a re-identification network that has learned nothing yet."""
    made_by = {"num_ids": index.num_ids, "index_fingerprint": index.fingerprint, "data": str(index.root)}
    run = RunDir.create(folder, TEACHER, kind="reid", made_by=made_by)
    torch.manual_seed(seed)
    network = build_network(TEACHER.network, index.num_ids)
    run.save(Checkpoint("reid", 5, config_dict(TEACHER), {"reid": network.state_dict()}, made_by=made_by))
    return folder


def cpu():
    return Runtime.from_environment("cpu")


def assert_equal_checkpoints(expected, found):
    assert expected.networks.keys() == found.networks.keys()
    for name, state in expected.networks.items():
        assert all(torch.equal(value, found.networks[name][key]) for key, value in state.items()), name
    for name, state in expected.optimizers.items():
        for number, entries in state["state"].items():
            other = found.optimizers[name]["state"][number]
            assert all(
                torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in entries.items()
            )
    assert torch.equal(expected.rng["cpu"], found.rng["cpu"])
    assert expected.progress == found.progress


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_equals_never_having_stopped(index, tmp_path, num_workers):
    config = dataclasses.replace(CONFIG, num_workers=num_workers)
    whole = train_dgnet(config, index, tmp_path / "whole", cpu())
    with pytest.raises(Stopped, match=r"iteration 4 .*--resume"):
        train_dgnet(config, index, tmp_path / "parts", cpu(), stop_at=4)
    parts = train_dgnet(config, index, tmp_path / "parts", cpu(), resume=True)
    assert_equal_checkpoints(whole.load(6), parts.load(6))
    assert whole.read_log() == parts.read_log()
    sheets = [(run.samples / "swap_00000006.png").read_bytes() for run in (whole, parts)]
    assert sheets[0] == sheets[1]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Pictures, a configuration with everything on, its teachers, and its training that was never stopped."""
    folder = tmp_path_factory.mktemp("everything")
    index = make_index(folder / "data", people=3)
    config = dataclasses.replace(WITH_TEACHER, accumulate=2, ema_decay=0.9, erasing=0.7, tone=0.8, encoder_again=0.5)
    teachers = [make_teacher(folder / "teacher", index), make_teacher(folder / "other", index, seed=2)]
    return index, config, teachers, train_dgnet(config, index, folder / "whole", cpu(), teachers=teachers)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_stopping_anywhere_with_everything_on_equals_never_having_stopped(everything, tmp_path, stop_at):
    index, config, teachers, whole = everything
    with pytest.raises(Stopped):
        train_dgnet(config, index, tmp_path / "parts", cpu(), teachers=teachers, stop_at=stop_at)
    parts = train_dgnet(config, index, tmp_path / "parts", cpu(), teachers=teachers, resume=True)
    for which in (6, "best"):
        assert_equal_checkpoints(whole.load(which), parts.load(which))
    assert whole.read_log() == parts.read_log()
    assert {"primary", "fine", "fine_real", "weight_teacher"} <= whole.read_log()[-2].keys()


def test_saving_by_the_clock_changes_nothing(index, tmp_path):
    whole = train_dgnet(dataclasses.replace(CONFIG, checkpoint_minutes=0.0), index, tmp_path / "whole", cpu())
    with pytest.raises(Stopped):
        train_dgnet(dataclasses.replace(CONFIG, checkpoint_minutes=1e-9), index, tmp_path / "run", cpu(), stop_at=5)
    assert RunDir.open(tmp_path / "run").iterations() == [3, 5]
    run = train_dgnet(dataclasses.replace(CONFIG, checkpoint_minutes=1e-9), index, tmp_path / "run", cpu(), resume=True)
    assert_equal_checkpoints(whole.load(6), run.load(6))
    assert (run.iterations(), run.read_log()) == (whole.iterations(), whole.read_log())


def test_a_longer_training_equals_one_that_was_begun_longer(index, tmp_path):
    long = train_dgnet(dataclasses.replace(CONFIG, max_iter=9), index, tmp_path / "long", cpu())
    train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    run = train_dgnet(dataclasses.replace(CONFIG, max_iter=9, log_every=2), index, tmp_path / "run", cpu(), resume=True)
    assert_equal_checkpoints(long.load(9), run.load(9))
    assert run.config(DGNetTrainConfig).max_iter == 9
    with pytest.raises(CheckpointError, match=r"other settings \(max_iter: 9 -> 8\)"):
        train_dgnet(dataclasses.replace(CONFIG, max_iter=8), index, tmp_path / "run", cpu(), resume=True)


def test_teachers_need_not_be_named_again(index, tmp_path):
    teachers = [make_teacher(tmp_path / "teacher", index), make_teacher(tmp_path / "other", index, seed=2)]
    whole = train_dgnet(WITH_TEACHER, index, tmp_path / "whole", cpu(), teachers=teachers)
    with pytest.raises(Stopped):
        train_dgnet(WITH_TEACHER, index, tmp_path / "parts", cpu(), teachers=teachers, stop_at=2)
    parts = train_dgnet(WITH_TEACHER, index, tmp_path / "parts", cpu(), resume=True)
    assert_equal_checkpoints(whole.load(6), parts.load(6))


@pytest.mark.parametrize("at", [2, 6], ids=["of-a-batch", "of-those-judged"])
def test_a_picture_that_goes_bad_costs_no_step(index, tmp_path, monkeypatch, at):
    whole = train_dgnet(CONFIG, index, tmp_path / "whole", cpu())
    place = "dgnet_gen.pairs.PairDataset.batch" if at == 2 else "dgnet_gen.training.repainting_error"
    original = PairDataset.batch if at == 2 else repainting_error

    def bad(*arguments, **options):
        if at == 6 and RunDir.open(tmp_path / "run").iterations() == [3]:
            raise ImageError("a.png: not a readable image")
        if at == 2 and arguments[1] == 2:
            raise ImageError("a.png: not a readable image")
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, bad)
        with pytest.raises(ImageError):
            train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    assert RunDir.open(tmp_path / "run").iterations()[-1] == at
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True)
    assert_equal_checkpoints(whole.load(6), run.load(6))
    assert (run.iterations(), run.read_log()) == (whole.iterations(), whole.read_log())


def test_every_judgement_is_told(index, tmp_path, capsys):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    scores = {line["iteration"]: line["eval_recon_same_id"] for line in run.read_log() if "eval_recon_same_id" in line}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("iteration ")]
    assert lines[0] == f"iteration 3: repainting error {scores[3]:.4f}; best {scores[3]:.4f}, iteration 3"
    assert f"iteration 6: repainting error {scores[6]:.4f}; best {min(scores.values()):.4f}" in lines[1]


def test_random_weights_are_told_by_the_setting_that_asks_for_them(index, tmp_path, caplog):
    train_dgnet(dataclasses.replace(CONFIG, max_iter=1), index, tmp_path / "run", cpu())
    assert "random weights (trunk_weights is none)" in caplog.text
    assert "network.weights" not in caplog.text


def test_a_teacher_that_is_asked_for_must_be_given_and_the_other_way_round(index, tmp_path):
    with pytest.raises(TeacherError, match=r"weights.teacher is 2, and no teacher .* --set weights.teacher=0"):
        train_dgnet(WITH_TEACHER, index, tmp_path / "run", cpu())
    teacher = make_teacher(tmp_path / "teacher", index)
    with pytest.raises(TeacherError, match=r"weights\.teacher is 0, so nobody would ask it"):
        train_dgnet(CONFIG, index, tmp_path / "run", cpu(), teachers=[teacher])
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_nobody_is_warned_of(index, tmp_path, caplog):
    teacher = make_teacher(tmp_path / "teacher", index)
    network = RunDir.open(teacher).load()
    network.networks["reid"]["classifier.bias"][:] = torch.tensor([0.0, 0.0, 1e6])  # everybody is the third person
    RunDir.open(teacher).save(network)
    train_dgnet(dataclasses.replace(WITH_TEACHER, max_iter=1), index, tmp_path / "run", cpu(), teachers=[teacher])
    assert "this teacher recognises only 3" in caplog.text


def test_going_on_with_another_teacher_is_refused(index, tmp_path):
    first, second = (make_teacher(tmp_path / f"teacher{seed}", index, seed) for seed in (1, 2))
    with pytest.raises(Stopped):
        train_dgnet(WITH_TEACHER, index, tmp_path / "run", cpu(), teachers=[first], stop_at=1)
    with pytest.raises(CheckpointError, match=r"cannot resume with other teachers \(.*teacher1.* -> .*teacher2"):
        train_dgnet(WITH_TEACHER, index, tmp_path / "run", cpu(), teachers=[second], resume=True)


def test_going_on_with_other_settings_lists_every_change(index, tmp_path):
    train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    changed = dataclasses.replace(CONFIG, erasing=0.1, flip=0.2, pad_px=3, seed=4, gan="nsgan", ema_decay=0.5)
    with pytest.raises(CheckpointError, match="cannot resume with other settings") as caught:
        train_dgnet(changed, index, tmp_path / "run", cpu(), resume=True)
    changes = ("erasing: 0.5 -> 0.1", "flip: 0.5 -> 0.2", "pad_px: 2 -> 3", "seed: 0 -> 4", "gan: lsgan -> nsgan")
    assert all(text in str(caught.value) for text in (*changes, "ema_decay: 0.0 -> 0.5"))


def test_a_checkpoint_of_an_earlier_version_is_not_gone_on_with(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    run.save(dataclasses.replace(run.load(6), progress={}))
    with pytest.raises(CheckpointError, match="iteration 6 was saved by an earlier version"):
        train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True)
    assert DGNet.load(run.path, device="cpu").iteration == 6


def test_a_moving_average_is_what_is_generated_from(index, tmp_path):
    run = train_dgnet(dataclasses.replace(CONFIG, ema_decay=0.9), index, tmp_path / "run", cpu())
    networks = run.load(6).networks
    assert set(networks) == {*DGNet(TINY, 3).networks(), "trained_structure", "trained_decoder"}
    loaded = DGNet.load(run.path, device="cpu").decoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in networks["decoder"].items())
    assert any(not torch.equal(networks["trained_decoder"][name], value) for name, value in loaded.items())


def test_checkpoints_stay_as_told(index, tmp_path):
    config = dataclasses.replace(CONFIG, max_iter=7, checkpoint_every=1, keep_checkpoints=2, keep_every=3)
    run = train_dgnet(config, index, tmp_path / "run", cpu())
    assert run.iterations() == [3, 6, 7]
    scores = {line["iteration"]: line["eval_recon_same_id"] for line in run.read_log() if "eval_recon_same_id" in line}
    assert len(scores) == 7
    assert run.load("best").iteration == min(scores, key=scores.get)
    # Which counts one of the clock or of a stop, and one that is being written.
    assert len(list(run.checkpoints.glob("*.pt"))) == num_checkpoints(config) - 2


@pytest.mark.parametrize(
    ("max_iter", "every", "last", "for_good", "files"),
    [(7, 1, 2, 3, 6), (100_000, 10_000, 2, 10_000, 13), (100_000, 10_000, 2, 0, 5), (5, 10, 3, 0, 4)],
)
def test_files_are_counted_before_they_are_written(max_iter, every, last, for_good, files):
    changes = {"max_iter": max_iter, "checkpoint_every": every, "keep_checkpoints": last, "keep_every": for_good}
    assert num_checkpoints(dataclasses.replace(CONFIG, **changes)) == files


def test_a_checkpoint_is_as_large_as_it_was_said_to_be(index, tmp_path):
    config = dataclasses.replace(CONFIG, ema_decay=0.5, networks=dataclasses.replace(TINY, mlp_dim=512, bottleneck=512))
    run = train_dgnet(config, index, tmp_path / "run", cpu())
    told = checkpoint_bytes(config, DGNet(config.networks, 3))
    # Names and settings come on top of the tensors.
    assert told < run.checkpoint_file(6).stat().st_size < 1.2 * told


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_anything_is_written(index, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OutputError, match=r"checkpoints of this training need .* GiB \(5 of .* MiB\), 0.0 GiB are free"
    ):
        train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    assert not (tmp_path / "run").exists()


def test_people_who_were_not_trained_on_are_judged_where_there_are_any(index, tmp_path):
    trained = {record.path for record in index}
    pictures = choose_pictures(index, 64, seed=0)
    assert len(pictures) == 3
    assert {path for pair in pictures for path in pair} <= trained
    assert all(first != second and first.name[:4] == second.name[:4] for first, second in pictures)
    assert pictures == choose_pictures(index, 64, seed=0)
    unseen = tuple(
        ImageRecord(tmp_path / f"{pid}_{number}.png", pid, 1, "query") for pid in (-1, 0, 8, 9) for number in range(2)
    )
    more = DatasetIndex(index.root, index.layout, (*index.records, *unseen))
    assert {first.name[0] for first, _ in choose_pictures(more, 64, seed=0)} == {"8", "9"}


def test_a_person_with_one_picture_is_judged_by_it(tmp_path):
    records = tuple(ImageRecord(tmp_path / f"{pid}.png", pid, 1, "train") for pid in (1, 2))
    assert sorted(choose_pictures(DatasetIndex(tmp_path, "folders", records), 5, seed=0)) == [
        (tmp_path / f"{pid}.png",) * 2 for pid in (1, 2)
    ]


def test_the_repainting_error_is_that_of_one_picture_at_a_time(index):
    model = DGNet(TINY, num_ids=3)
    pictures = choose_pictures(index, 3, seed=0)
    slow = []
    for pair in pictures:
        pose, clothes = (eval_transform(read_pixels(path), TINY.image_hw)[None] for path in pair)
        model.eval()
        slow.append(float((model.decode(Codes(model.appearance(clothes), model.structure(pose))) - pose).abs().mean()))
    model.appearance_encoder.train()
    for batch_size in (1, 2, 16):
        assert repainting_error(model, pictures, batch_size=batch_size) == pytest.approx(np.mean(slow), rel=1e-5)
    assert model.appearance_encoder.training


def test_people_with_one_picture_and_pictures_of_any_size_are_trained_on(tmp_path):
    generator = np.random.default_rng(0)
    records = []
    for number, (height, width) in enumerate([(9, 70), (300, 11), (32, 16), (2, 3), (64, 64)]):
        path = tmp_path / "data" / f"{number:04}.png"
        save_image(path, generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        records.append(ImageRecord(path, number, 1, "train"))
    run = train_dgnet(CONFIG, DatasetIndex(tmp_path / "data", "folders", tuple(records)), tmp_path / "run", cpu())
    assert run.iterations() == [3, 6]


def test_a_run_leaves_settings_log_checkpoints_and_sheets(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    assert run.iterations() == [3, 6]
    assert sorted(path.name for path in run.samples.iterdir()) == ["swap_00000004.png", "swap_00000006.png"]
    log = run.read_log()
    assert [line["iteration"] for line in log if "total" in line] == [2, 4, 6]
    assert [line["iteration"] for line in log if "eval_recon_same_id" in line] == [3, 6]
    assert {"recon_self", "adversarial", "cycle", "lr_generator", "weight_cycle"} <= log[-2].keys()
    assert run.config(DGNetTrainConfig) == CONFIG
    model = DGNet.load(run.path, device="cpu")
    assert (model.iteration, model.num_ids) == (6, 3)


def test_a_finished_run_is_left_as_it_is(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    before = run.checkpoint_file(6).read_bytes()
    assert train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True).iterations() == [3, 6]
    assert run.checkpoint_file(6).read_bytes() == before


def test_a_signal_saves_and_leaves(index, tmp_path):
    config = dataclasses.replace(CONFIG, max_iter=100_000)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Stopped, match="SIGTERM: saved iteration") as caught:
        train_dgnet(config, index, tmp_path / "run", cpu())
    timer.join()
    assert caught.value.exit_code == 75
    assert RunDir.open(tmp_path / "run").load("last").iteration >= 1


def test_the_time_limit_saves_and_leaves(index, tmp_path):
    with pytest.raises(Stopped, match="--max-hours"):
        train_dgnet(CONFIG, index, tmp_path / "run", Runtime.from_environment("cpu", max_hours=1e-9))
    assert RunDir.open(tmp_path / "run").iterations() == [1]


def test_a_loss_that_is_not_finite_names_itself_and_the_iteration(index, tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(lr_generator=1e30))
    with pytest.raises(DivergedError, match=r"iteration 2: .*recon_self.* not finite at lr_generator 1e\+30"):
        train_dgnet(config, index, tmp_path / "run", cpu())


def test_weights_that_are_not_finite_are_not_saved(index, tmp_path):
    # One step that overflows without a loss that shows it: the next one would, but the checkpoint comes first.
    optim = OptimConfig(lr_generator=1e38, weight_decay=1e5)
    config = dataclasses.replace(CONFIG, checkpoint_every=1, optim=optim)
    with pytest.raises(DivergedError, match="is not finite after iteration 1, so it is not saved"):
        train_dgnet(config, index, tmp_path / "run", cpu())
    assert RunDir.open(tmp_path / "run").iterations() == []


def test_one_person_cannot_be_trained_on(tmp_path):
    with pytest.raises(DatasetError, match="one identity to train on"):
        train_dgnet(CONFIG, make_index(tmp_path / "data", people=1), tmp_path / "run", cpu())
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_had_leave_nothing_behind(index, tmp_path):
    config = dataclasses.replace(CONFIG, trunk_weights=str(tmp_path / "absent.pth"))
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        train_dgnet(config, index, tmp_path / "run", cpu())
    assert not (tmp_path / "run").exists()


def test_resuming_from_a_checkpoint_cut_in_half_names_it(index, tmp_path):
    run = train_dgnet(CONFIG, index, tmp_path / "run", cpu())
    file = run.checkpoint_file(6)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"00000006\.pt: damaged"):
        train_dgnet(CONFIG, index, tmp_path / "run", cpu(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk_weights": "imagenet"}, "trunk_weights: imagenet is for networks.trunk=resnet50, found small"),
        ({"batch_size": 1}, "batch_size: batch norm needs at least 2"),
        ({"erasing": 1.5}, "erasing: is a probability"),
        ({"max_iter": 0}, "max_iter: must be at least 1"),
        ({"networks": dataclasses.replace(TINY, heads="one")}, "networks.heads: one is for published networks"),
        ({"accumulate": 0}, "accumulate: must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay: must be at least 0 and below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_the_command_trains(index, tmp_path):
    dump_config(CONFIG, tmp_path / "tiny.yaml")
    arguments = ["train", "--config", tmp_path / "tiny.yaml", "--data", index.root, "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--set", "max_iter=2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert RunDir.open(tmp_path / "run", "dgnet").iterations() == [2]
    assert {line["iteration"] for line in RunDir.open(tmp_path / "run").read_log()} == {2}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "weights.recon_sefl=1"], "did you mean weights.recon_self?"),
        (["--set", "max_iter=many"], "max_iter"),
        (["--config", "absent.yaml"], "absent.yaml: no such settings file"),
        (["--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_the_command_explains_what_it_was_given_wrongly(index, tmp_path, extra, message):
    arguments = ["train", "--data", str(index.root), "--out", str(tmp_path / "run"), *extra]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
