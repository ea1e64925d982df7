import pytest
import torch
import torch.nn.functional as F
import yaml

from dgnet_gen.teacher import Teacher, TeacherError, TrainedNetwork
from reid_models.config import config_dict
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.networks import MGN, PCB, Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.published import WeightsError
from reid_models.runs import Checkpoint, CheckpointError, RunDir
from reid_models.runtime import Runtime
from reid_models.training import LossConfig, NetworkConfig, ReidTrainConfig, build_network
from reid_models.weights import write_original

IMAGE_HW = (32, 16)
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "data", [1, 2, 3])


def make_index(root, pids):
    """Names of pictures in Market's layout; nobody looks at the pictures."""
    folder = root / "bounding_box_train"
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for pid in pids:
        path = folder / f"{pid:04}_c1s1_000000_00.jpg"
        path.touch()
        records.append(ImageRecord(path, pid, 1, "train"))
    return DatasetIndex(root, "market1501", tuple(records))


def cpu():
    return Runtime.from_environment("cpu")


def make_run(folder, index, kind="baseline", *, networks=("reid",), **made_by):
    """A run of an untrained network on the small trunk; further `networks` have other weights."""
    network = NetworkConfig(kind=kind, trunk="small", width=2, weights="none", bottleneck=8, num_stripes=2)
    config = ReidTrainConfig(image_hw=IMAGE_HW, network=network, loss=LossConfig(terms="CrossEntropy"))
    made_by = {
        "num_ids": index.num_ids, "index_fingerprint": index.fingerprint, "data": str(index.root)
    } | made_by  # fmt: skip
    states = {}
    for seed, name in enumerate(networks):
        torch.manual_seed(seed)
        states[name] = build_network(config.network, made_by["num_ids"]).state_dict()
    run = RunDir.create(folder, config, kind="reid", made_by=made_by)
    run.save(Checkpoint("reid", 5, config_dict(config), states, made_by=made_by))
    return run


def images(seed=0, image_hw=IMAGE_HW):
    return torch.randn(3, 3, *image_hw, generator=torch.Generator().manual_seed(seed))


def opinionated(network):
    """With classifiers that tell pictures apart even untrained."""
    for part in network.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight)
    return network


def small_baseline(seed=0, dropout=0.5):
    torch.manual_seed(seed)
    return opinionated(Baseline(make_trunk("small", width=2), 3, bottleneck=8, dropout=dropout))


def test_soft_labels_are_the_mean_of_the_picture_and_its_mirror_image():
    network, x = small_baseline(), images()
    teacher = Teacher([TrainedNetwork(network, IMAGE_HW, {})], train_bn=False)
    plain, mirrored = (network(view).logits[0].softmax(1) for view in (x, x.flip(3)))
    target = teacher.soft_labels(x, LABELS, LABELS)
    torch.testing.assert_close(target, (plain + mirrored) / 2)
    torch.testing.assert_close(teacher.soft_labels(x.flip(3), LABELS, LABELS), target)
    assert not target.requires_grad


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norms_are_in_the_mode_they_are_told(train_bn):
    network = small_baseline()
    running = network.norm.running_mean.clone()
    teacher = Teacher([TrainedNetwork(network, IMAGE_HW, {})], train_bn=train_bn)
    first = teacher.soft_labels(images(), LABELS, LABELS)
    alone = [teacher.soft_labels(images()[[0, number]], LABELS[:2], LABELS[:2])[0] for number in (1, 2)]
    assert torch.equal(network.norm.running_mean, running) != train_bn
    # By the batch, what is said of a picture depends on what stands beside it.
    assert torch.allclose(alone[0], alone[1]) != train_bn
    # Running statistics have moved meanwhile and are never used.
    torch.testing.assert_close(teacher.soft_labels(images(), LABELS, LABELS), first)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_acts_when_it_is_told_to(dropout):
    teacher = Teacher([TrainedNetwork(small_baseline(), IMAGE_HW, {})], train_bn=False, dropout=dropout)
    one, two = (teacher.soft_labels(images(), LABELS, LABELS) for _ in range(2))
    assert torch.equal(one, two) != dropout


def test_a_teacher_that_names_one_person_names_who_lent_the_clothes():
    structure = LABELS.roll(1)
    teacher = Teacher([TrainedNetwork(small_baseline(), IMAGE_HW, {})], style=2)
    torch.testing.assert_close(teacher.soft_labels(images(), LABELS, structure), torch.eye(3))


@pytest.mark.parametrize("kind", ["pcb", "mgn"])
def test_a_network_with_several_classifiers_says_the_mean_of_their_probabilities(kind):
    trunk = make_trunk("small", width=2)
    network = opinionated(PCB(trunk, 3, num_stripes=2) if kind == "pcb" else MGN(trunk, 3, (1, 2)))
    teacher = Teacher([TrainedNetwork(network, IMAGE_HW, {})], train_bn=False)
    heads = [logits.softmax(1) for view in (images(), images().flip(3)) for logits in network(view).logits]
    assert len(heads) == 2 * (2 if kind == "pcb" else 4)
    torch.testing.assert_close(teacher.soft_labels(images(), LABELS, LABELS), sum(heads) / len(heads))


def test_a_teacher_is_asked_what_it_knows():
    networks = [TrainedNetwork(small_baseline(seed), IMAGE_HW, {}) for seed in (0, 1)]
    teacher = Teacher(networks, train_bn=False)
    first = teacher.probabilities(networks[0], images()).argmax(1)
    assert teacher.recognised(images(), first)[0] == 1
    wrong = torch.stack([first[0], (first[1] + 1) % 3, (first[2] + 1) % 3])
    assert teacher.recognised(images(), wrong)[0] == pytest.approx(1 / 3)


def test_pictures_are_resized_to_what_the_teacher_was_trained_on():
    network = small_baseline()
    teacher = Teacher([TrainedNetwork(network, (64, 32), {})], train_bn=False)
    enlarged = F.interpolate(images(), size=(64, 32), mode="bilinear", antialias=True)
    expected = (network(enlarged).logits[0].softmax(1) + network(enlarged.flip(3)).logits[0].softmax(1)) / 2
    torch.testing.assert_close(teacher.soft_labels(images(), LABELS, LABELS), expected)


def test_the_probabilities_of_half_precision_are_float32():
    teacher = Teacher([TrainedNetwork(small_baseline(), IMAGE_HW, {})])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = teacher.soft_labels(images(), LABELS, LABELS)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.sum(1), torch.ones(3))


@pytest.mark.parametrize("kind", ["baseline", "pcb", "mgn"])
def test_a_run_of_ours_teaches(index, tmp_path, kind):
    run = make_run(tmp_path / "run", index, kind)
    teacher = Teacher.load([run.path], index, cpu(), train_bn=False)
    (trained,) = teacher.networks
    assert trained.image_hw == IMAGE_HW
    assert all(torch.equal(v, run.load().networks["reid"][k]) for k, v in trained.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())
    assert teacher.soft_labels(images(), LABELS, LABELS).shape == (3, 3)
    file = run.checkpoint_file("last")
    assert teacher.made_by == Teacher.load([file], index, cpu()).made_by
    assert teacher.made_by[0]["file"] == str(file.resolve())


def test_where_a_moving_average_was_kept_it_teaches(index, tmp_path):
    run = make_run(tmp_path / "run", index, networks=("reid", "average"))
    network = Teacher.load([run.path], index, cpu()).networks[0].network
    average = run.load().networks["average"]
    assert all(torch.equal(value, average[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_published_baseline_teaches_with_the_stride_of_its_options(index, tmp_path, stride, named):
    torch.manual_seed(0)
    network = opinionated(Baseline(make_trunk("resnet50", last_stride=stride), 3)).eval()
    write_original(network, tmp_path / "best" / "net_last.pth")
    (tmp_path / "best" / "opts.yaml").write_text(yaml.safe_dump({"stride": stride, "nclasses": 3}))
    path = tmp_path / "best" if named == "folder" else tmp_path / "best" / "net_last.pth"
    teacher = Teacher.load([path], index, cpu(), train_bn=False)
    assert teacher.networks[0].image_hw == (256, 128)
    x = images(image_hw=(256, 128))
    with torch.no_grad():
        expected = (network(x).logits[0].softmax(1) + network(x.flip(3)).logits[0].softmax(1)) / 2
    torch.testing.assert_close(teacher.soft_labels(x, LABELS, LABELS), expected)
    (tmp_path / "best" / "opts.yaml").write_text("stride: 2020-99-99")
    with pytest.raises(WeightsError, match=r"opts\.yaml: cannot be read .*; correct or remove it"):
        Teacher.load([path], index, cpu())


def test_a_teacher_of_another_number_of_people_is_refused_with_both_numbers(index, tmp_path):
    run = make_run(tmp_path / "run", make_index(tmp_path / "other", [1, 2, 3, 4]))
    with pytest.raises(TeacherError, match=r"this teacher knows 4 people, the training pictures .* show 3"):
        Teacher.load([run.path], index, cpu())
    write_original(Baseline(make_trunk("resnet50"), 7), tmp_path / "net_last.pth")
    with pytest.raises(TeacherError, match=r"net_last.pth: this teacher knows 7 people, .* show 3"):
        Teacher.load([tmp_path / "net_last.pth"], index, cpu())


def test_a_teacher_of_as_many_other_people_is_refused(index, tmp_path):
    run = make_run(tmp_path / "run", make_index(tmp_path / "other", [1, 2, 9]))
    with pytest.raises(TeacherError, match="knows 3 other people"):
        Teacher.load([run.path], index, cpu())


def test_a_teacher_of_the_same_people_on_other_pictures_is_taken(index, tmp_path):
    other = make_index(tmp_path / "other", [1, 2, 3])
    extra = other.root / "bounding_box_train" / "0003_c2s1_000009_00.jpg"
    extra.touch()
    more = DatasetIndex(other.root, "market1501", (*other.records, ImageRecord(extra, 3, 2, "train")))
    assert more.fingerprint != index.fingerprint
    assert Teacher.load([make_run(tmp_path / "run", more).path], index, cpu()).networks


def test_a_teacher_whose_data_is_gone_is_taken_only_for_the_same_pictures(index, tmp_path):
    Teacher.load([make_run(tmp_path / "same", index, data=str(tmp_path / "gone")).path], index, cpu())
    run = make_run(tmp_path / "run", index, data=str(tmp_path / "gone"), index_fingerprint="0123")
    with pytest.raises(TeacherError, match=r"trained on other pictures \(fingerprint 0123, here .*its data is gone"):
        Teacher.load([run.path], index, cpu())


def test_what_is_no_teacher_is_named(index, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty: no teacher here; expected a run .* or .*net_last.pth"):
        Teacher.load([tmp_path / "empty"], index, cpu())
    with pytest.raises(WeightsError, match=r"absent.pth: no such weight file"):
        Teacher.load([tmp_path / "absent.pth"], index, cpu())
    torch.save(make_trunk("resnet50").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="which classifies nobody"):
        Teacher.load([tmp_path / "resnet.pth"], index, cpu())
    RunDir.create(tmp_path / "generator", ReidTrainConfig(), kind="dgnet", made_by={})
    with pytest.raises(CheckpointError, match="is a 'dgnet' run, expected a 'reid' run"):
        Teacher.load([tmp_path / "generator"], index, cpu())
