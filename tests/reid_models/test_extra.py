"""Generated pictures in a training: which come into a batch, and what is said of them."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reid_eval.errors import Stopped
from reid_eval.files import read_pixels, save_image
from reid_models.cli import main
from reid_models.config import ConfigError, config_from_dict
from reid_models.data.generated import COLUMNS, ManifestError
from reid_models.data.index import DatasetIndex
from reid_models.data.samplers import IdentitySampler, ShuffledSampler
from reid_models.extra import Extra, ExtraDataError, SoftTargets
from reid_models.losses import LossSum, parse_loss
from reid_models.networks.output import ReidOutput
from reid_models.runs import CheckpointError
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, train_reid

TINY = {
    "image_hw": [32, 16],
    "network": {"trunk": "small", "width": 4, "weights": "none", "bottleneck": 16},
    "sampler": {"ids_per_batch": 4, "images_per_id": 2},
    "augmentation": {"pad_px": 2},
    "schedule": {"epochs": 2, "warmup_epochs": 0},
    "num_workers": 0,
    "log_every": 1,
    "eval_every": 2,
    "checkpoint_every": 1,
}
CARD = {
    "format": 2, "kind": "dgnet-generation", "checkpoint": "hand-made", "iteration": 0, "plan": "random", "seed": 0,
    "image_hw": [32, 16], "grouping": "appearance", "image_format": "png", "quality": None, "precision": "fp32",
    "data": ".",
}  # fmt: skip
MGN = {
    "image_hw": [48, 16],
    "network": {"kind": "mgn", "trunk": "small", "width": 4, "weights": "none", "head_features": 8},
}


def config(**groups):
    return config_from_dict(ReidTrainConfig, TINY | groups)


@pytest.fixture(scope="module")
def photographs(toy_index):
    return toy_index.split("train_all")


def pretend(folder, photographs, *, people=None, complete=True, shift_pid=0):
    """A generated folder: every photograph darkened, said to be in the pose of the next one."""
    lines = [",".join(COLUMNS)]
    for number, record in enumerate(photographs):
        if people is not None and record.pid not in people:
            continue
        pid, other = record.pid + shift_pid, photographs[(number + 1) % len(photographs)]
        file = f"{pid:04d}/{record.path.stem}__in__{other.path.stem}.png"
        save_image(folder / file, read_pixels(record.path) // 2)
        lines.append(f"{file},{other.path.name},{record.path.name},{other.pid},{pid},1,2,1")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    digest = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    card = CARD | {"images": len(lines) - 1, "manifest_sha256": digest, "complete": complete}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def fake(tmp_path_factory, photographs):
    return pretend(tmp_path_factory.mktemp("fake") / "00000300", photographs)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["identity", "shuffled"])
def test_a_batch_keeps_its_people_and_gets_its_share_of_generated_pictures(photographs, fake, ratio, kind):
    extra = Extra.open(fake, ratio=ratio)
    joined = extra.joined(photographs)
    assert joined.num_ids == photographs.num_ids
    named = replace(photographs, names={pid: f"person {pid}" for pid in photographs.labels})
    assert extra.joined(named).names == named.names
    base = (
        IdentitySampler(photographs.label_array, 4, 2, 7)
        if kind == "identity"
        else ShuffledSampler(len(photographs), 8, 7)
    )
    mixed = extra.sampler(base, joined, seed=7)
    assert mixed.iterations_per_epoch == base.iterations_per_epoch
    seen = set()
    for iteration in range(200):
        plain, draws = base.batch(iteration), mixed.batch(iteration)
        rows = np.array([draw.row for draw in draws])
        assert (rows >= len(photographs)).sum() == round(ratio * 8)
        assert joined.label_array[rows].tolist() == [int(photographs.label_array[draw.row]) for draw in plain]
        assert [draw.seed for draw in draws] == [draw.seed for draw in plain]
        seen.update(rows[rows >= len(photographs)].tolist())
    assert seen == set(range(len(photographs), len(joined)))
    assert list(mixed.batches(3, 5)) == [mixed.batch(3), mixed.batch(4)]


def test_somebody_of_whom_nothing_is_generated_keeps_the_photographs(photographs, tmp_path):
    first = photographs[0].pid
    extra = Extra.open(pretend(tmp_path, photographs, people=[first]), ratio=0.9)
    joined = extra.joined(photographs)
    mixed = extra.sampler(IdentitySampler(photographs.label_array, 4, 2, 0), joined, seed=0)
    rows = [draw.row for iteration in range(20) for draw in mixed.batch(iteration)]
    assert {joined[row].pid for row in rows if row >= len(photographs)} == {first}
    assert {joined[row].pid for row in rows} == set(photographs.labels)


class Says(torch.nn.Module):
    """A teacher of two heads that says the same of every picture."""

    def __init__(self, *heads):
        super().__init__()
        self.heads = [torch.tensor(head).log() for head in heads]

    def forward(self, images):
        return ReidOutput(images.flatten(1), tuple(head.expand(len(images), -1) for head in self.heads), ())


def test_what_is_said_of_a_mixed_batch_can_be_worked_out_by_hand():
    images, labels, rows = torch.zeros(3, 3, 4, 2), torch.tensor([0, 2, 1]), torch.tensor([4, 10, 99])
    smooth = SoftTargets(num_ids=4, num_photographs=10, label_smoothing=0.1, smoothing=0.4)
    wanted = torch.tensor([[0.925, 0.025, 0.025, 0.025], [0.1, 0.1, 0.7, 0.1], [0.1, 0.7, 0.1, 0.1]])
    torch.testing.assert_close(smooth(images, labels, rows), wanted)
    teacher = Says([0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.4])
    taught = SoftTargets(num_ids=4, num_photographs=10, label_smoothing=0.1, smoothing=0.4, teacher=teacher)
    wanted[1:] = torch.tensor([0.2, 0.2, 0.2, 0.4])
    torch.testing.assert_close(taught(images, labels, rows), wanted)


def test_targets_that_are_labels_are_the_loss_of_labels():
    torch.manual_seed(0)
    logits, metric = (torch.randn(6, 5), torch.randn(6, 5)), (torch.randn(6, 3),)
    labels = torch.tensor([0, 0, 3, 3, 4, 4])
    loss = LossSum(parse_loss("CrossEntropy + Triplet"), num_ids=5, metric_dims=(3,), margin=0.3, label_smoothing=0.1)
    targets = SoftTargets(num_ids=5, num_photographs=10, label_smoothing=0.1, smoothing=0.9)
    said = targets(torch.zeros(6, 3, 2, 2), labels, torch.arange(6))
    torch.testing.assert_close(loss(logits, metric, labels, said), loss(logits, metric, labels))


@pytest.mark.parametrize("groups", [{}, MGN], ids=["baseline", "mgn"])
def test_training_with_generated_pictures_goes_on_as_if_it_had_never_stopped(toy_index, fake, tmp_path, groups):
    runtime = Runtime.from_environment("cpu")
    extra = Extra.open(fake, ratio=0.5, labels="smooth")
    whole = train_reid(config(**groups), toy_index, tmp_path / "whole", runtime, extra=extra)
    with pytest.raises(Stopped):
        train_reid(config(**groups), toy_index, tmp_path / "cut", runtime, extra=extra, stop_at=2)
    cut = train_reid(config(**groups), toy_index, tmp_path / "cut", runtime, resume=True)
    plain = train_reid(config(**groups), toy_index, tmp_path / "plain", runtime)
    states = [run.load("last").networks["reid"] for run in (whole, cut, plain)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert whole.iterations()[-1] == plain.iterations()[-1]
    assert whole.made_by["extra"]["labels"] == "smooth"
    assert whole.made_by["index_fingerprint"] == plain.made_by["index_fingerprint"]
    train_reid(config(**groups), toy_index, tmp_path / "cut", runtime, resume=True)  # with those it was begun with
    for run, other in (("cut", Extra.open(fake, ratio=0.25, labels="smooth")), ("plain", extra)):
        with pytest.raises(CheckpointError, match="cannot resume with other generated pictures"):
            train_reid(config(**groups), toy_index, tmp_path / run, runtime, extra=other, resume=True)


def test_a_teacher_must_know_the_photographs_and_their_size(toy_index, photographs, fake, tmp_path):
    runtime = Runtime.from_environment("cpu")
    short = {"schedule": {"epochs": 1, "warmup_epochs": 0}, "eval_every": 1}
    teacher = train_reid(config(**short), toy_index, tmp_path / "teacher", runtime).path
    taught = Extra.open(fake, labels="teacher", teacher=teacher)
    run = train_reid(config(**short), toy_index, tmp_path / "taught", runtime, extra=taught)
    assert run.made_by["extra"]["teacher"] == str(teacher.resolve())
    train_reid(config(**short), toy_index, tmp_path / "taught", runtime, resume=True)
    train_reid(
        config(**short | {"schedule": {"epochs": 2, "warmup_epochs": 0}}), toy_index, teacher, runtime, resume=True
    )
    with pytest.raises(CheckpointError, match="cannot resume with other generated pictures"):
        train_reid(config(**short), toy_index, tmp_path / "taught", runtime, resume=True)  # the teacher has changed
    with pytest.raises(ConfigError, match=r"knows pictures of \[32, 16\]; set image_hw=\[32,16\]"):
        train_reid(config(**short, image_hw=[48, 16]), toy_index, tmp_path / "large", runtime, extra=taught)
    with_others = DatasetIndex(toy_index.root, toy_index.layout, toy_index.records[1:])
    with pytest.raises(ExtraDataError, match="trained on other pictures"):
        train_reid(config(**short), with_others, tmp_path / "others", runtime, extra=taught)
    assert not (tmp_path / "large").exists()
    assert not (tmp_path / "others").exists()


def test_generated_strangers_are_refused_before_a_folder_is_made(toy_index, photographs, tmp_path):
    extra = Extra.open(pretend(tmp_path / "fake", photographs, shift_pid=1000))
    with pytest.raises(ExtraDataError, match=f"{photographs.num_ids} people who are in none"):
        train_reid(config(), toy_index, tmp_path / "run", Runtime.from_environment("cpu"), extra=extra)
    assert not (tmp_path / "run").exists()


def test_folders_and_numbers_that_make_no_sense_are_named(photographs, fake, tmp_path):
    with pytest.raises(ManifestError, match=r"no card\.json"):
        Extra.open(tmp_path)
    with pytest.raises(ManifestError, match="not finished"):
        Extra.open(pretend(tmp_path / "half", photographs, complete=False))
    gone = pretend(tmp_path / "gone", photographs)
    next(gone.glob("*/*.png")).unlink()
    with pytest.raises(ManifestError, match="named in the manifest but not there"):
        Extra.open(gone)
    for ratio in (0, 1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--ratio"):
            Extra.open(fake, ratio=ratio)
    for options in ({"labels": "teacher"}, {"teacher": "runs/teacher"}):
        with pytest.raises(ConfigError, match="need each other"):
            Extra.open(fake, **options)


def test_the_command_trains_with_them(toy_root, fake, tmp_path):
    settings = tmp_path / "tiny.yaml"
    settings.write_text(json.dumps(TINY | {"schedule": {"epochs": 1, "warmup_epochs": 0}}))
    base = ["train", "--config", str(settings), "--data", str(toy_root), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*base, "--labels", "smooth"])
    assert result.exit_code == 2
    assert "--extra-data" in result.output
    result = CliRunner().invoke(main, [*base, "--extra-data", str(fake), "--ratio", "0.5", "--labels", "smooth"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["made_by"]["extra"]["ratio"] == 0.5
