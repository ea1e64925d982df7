"""Published files into our networks and back: all of a file or nothing of it, and never its code."""

import os
import pickle
import re

import pytest
import torch

from reid_models.networks import MGN, PCB, Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.published import recognise
from reid_models.weights import (
    WeightsError,
    load_weights,
    network_of,
    original_state,
    read_weights,
    write_original,
)


@pytest.fixture
def save(tmp_path):
    def write(state, name="net_last.pth", **options):
        torch.save(state, tmp_path / name, **options)
        return tmp_path / name

    return write


def values(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def unchanged(network, before):
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.fixture(scope="module")
def baseline():
    """A re-id baseline of 751 identities, not to be changed by what succeeds."""
    torch.manual_seed(0)
    return Baseline(make_trunk("resnet50"), 751)


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "before-1.6"])
def test_every_tensor_of_net_last_arrives_under_our_name(published_state, save, zip_file):
    state = published_state("net_last")
    weights = read_weights(save(state, _use_new_zipfile_serialization=zip_file))
    network = network_of(weights.origin)
    report = load_weights(network, weights)
    assert (len(report.matched), report.dropped) == (327, ("model.fc.weight", "model.fc.bias"))
    for ours, theirs in weights.names(network.state_dict()).items():
        assert torch.equal(network.state_dict()[ours], state[theirs]), (ours, theirs)


def test_the_baseline_goes_out_as_net_last_with_its_names_shapes_types_and_order(layout, baseline):
    entries, _ = layout("net_last")
    written = original_state(baseline)
    assert [(name, (tuple(value.shape), value.dtype)) for name, value in written.items()] == list(entries.items())
    assert not written["model.fc.weight"].any()


def test_the_baseline_that_went_out_and_came_back_is_the_same(baseline, tmp_path):
    write_original(baseline, tmp_path / "net_last.pth")
    again = network_of(recognise({name: value.shape for name, value in original_state(baseline).items()}, "state"))
    load_weights(again, tmp_path / "net_last.pth")
    assert unchanged(again, values(baseline))


def test_a_file_of_ours_is_written_as_programs_from_before_pytorch_1_6_read_it(baseline, tmp_path):
    write_original(baseline, tmp_path / "net_last.pth")
    assert not (tmp_path / "net_last.pth").read_bytes().startswith(b"PK")


def test_a_small_trunk_has_no_published_counterpart(tmp_path):
    with pytest.raises(WeightsError, match=r"network.trunk=small: no published program"):
        write_original(Baseline(make_trunk("small", width=4), 5), tmp_path / "net_last.pth")
    assert not list(tmp_path.iterdir())


def mgn(granularities=(1, 2, 3), *, trunk="resnet50", **settings):
    with torch.device("meta"):
        return MGN(make_trunk(trunk), 5, granularities, **settings)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: mgn(trunk="small"), "trunk=small"),
        (lambda: mgn(trunk="resnet50_ibn_a"), "trunk=resnet50_ibn_a"),
        (lambda: mgn(pool="gem"), "pool=gem"),
        (lambda: mgn(neck="bnneck"), "neck=bnneck"),
        (lambda: mgn(first_stride=1), "first_stride=1"),
        (lambda: mgn((1, 2)), "granularities=1-2 with classifier bias"),
        (lambda: mgn((1, 2, 4)), "granularities=1-2-4 with classifier bias"),
        (lambda: PCB(make_trunk("resnet50", last_stride=2), 5), "last_stride=2"),
        (lambda: Baseline(make_trunk("resnet50_ibn_a"), 5), "trunk=resnet50_ibn_a"),
    ],
)
def test_a_network_that_nobody_published_is_refused_by_the_setting_that_makes_the_difference(network, message):
    with pytest.raises(WeightsError, match=f"^network.{message}: no published program has such a network"):
        original_state(network())


MGN_FILES = ["mgn_1-2-3", "mgn_1-2-4", "mgn_1-3-4"]


@pytest.mark.parametrize("name", MGN_FILES)
def test_every_tensor_of_mgn_arrives_and_goes_out_again_in_the_files_order(layout, published_state, save, name):
    entries, parameters = layout(name)
    state = published_state(name)
    weights = read_weights(save(state, "model_best.pt"))
    network = network_of(weights.origin)
    assert load_weights(network, weights).matched == tuple(entries)
    again = original_state(network)
    assert [(key, (tuple(value.shape), value.dtype)) for key, value in again.items()] == list(entries.items())
    assert all(torch.equal(value, state[key]) for key, value in again.items())
    learned = {theirs for ours, theirs in weights.names(dict(network.named_parameters())).items()}
    assert [key for key in again if key in learned] == parameters


def test_mgn_of_a_few_identities_is_the_same_after_a_file_and_back(tmp_path):
    torch.manual_seed(0)
    network = MGN(make_trunk("resnet50"), 5, (1, 2, 3), head_features=8, pool="max")
    published = write_original(network, tmp_path / "model_best.pt")
    assert (published.num_ids, published.head_features, published.pool) == (5, 8, "max")
    again = network_of(read_weights(tmp_path / "model_best.pt").origin)
    load_weights(again, tmp_path / "model_best.pt")
    assert unchanged(again, values(network))


def test_the_one_reduction_of_reid_mgn_goes_to_every_head(published_state, save):
    state = {
        re.sub(r"^backone|^reduction_0", lambda found: {"b": "backbone", "r": "reduction"}[found[0][0]], name): value
        for name, value in published_state("mgn_1-2-3", num_ids=5).items()
        if not re.match(r"reduction_[1-7]", name)
    }
    weights = read_weights(save(state, "model.pt"))
    network = network_of(weights.origin)
    report = load_weights(network, weights)
    assert len(report.matched) == len(state) == 640
    assert {head.reduce.weight[0, 0].item() for head in network.heads} == {state["reduction.0.weight"][0, 0].item()}


def pcb_state(state, parts=6):
    """The re-id baseline's PCB, made of its ft_net: a classifier of 256 features for each part."""
    trunk = {name: value for name, value in state.items() if name.startswith("model.")}
    head = {name.removeprefix("classifier."): value for name, value in state.items() if name not in trunk}
    narrow = {
        name: value[tuple(slice(256) if size == 512 else slice(None) for size in value.shape)]
        for name, value in head.items()
    }
    return trunk | {f"classifier{part}.{name}": value for part in range(parts) for name, value in narrow.items()}


def test_pcb_arrives_and_goes_out_again(published_state, save):
    state = pcb_state(published_state("net_last", num_ids=5))
    weights = read_weights(save(state))
    network = network_of(weights.origin)
    report = load_weights(network, weights)
    assert report.dropped == ("model.fc.weight", "model.fc.bias")
    again = original_state(network)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in report.matched)


def test_a_pcb_is_no_baseline_and_says_what_it_is(published_state, save, baseline):
    with pytest.raises(WeightsError, match="person re-id baseline, PCB of 6 parts, does not fit Baseline: "):
        load_weights(baseline, save(pcb_state(published_state("net_last"))))


def test_pool_and_size_of_mgn_come_from_the_experiments_config_txt(published_state, save, tmp_path):
    (tmp_path / "model").mkdir()
    file = save(published_state("mgn_1-2-3", num_ids=5), "model/model_best.pt")
    assert read_weights(file).origin.settings_from is None
    (tmp_path / "config.txt").write_text("2018-08-28\n\npool: max\nheight: 256\nwidth: 128\n\n")
    origin = read_weights(file).origin
    assert (origin.pool, origin.image_hw, origin.settings_from) == ("max", (256, 128), str(tmp_path / "config.txt"))


def test_a_weight_that_is_not_finite_is_not_written(tmp_path):
    baseline = Baseline(make_trunk("resnet50"), 5)
    baseline.norm.running_var[3] = torch.inf
    with pytest.raises(WeightsError, match=r"classifier.add_block.1.running_var holds NaN or infinity"):
        write_original(baseline, tmp_path / "net_last.pth")
    assert not list(tmp_path.iterdir())


def renamed(state):
    return {
        ("classifier.add_block.0.wight" if "add_block.0.weight" in name else name): value
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"1 missing \(classifier.add_block.0.weight\); 1 left over \(classifier.add_block.0.wight\)"),
        (lambda state: state | {"model.layer5.weight": torch.zeros(1)}, r"1 left over \(model.layer5.weight\)"),
        (
            lambda state: state | {"model.bn1.weight": torch.zeros(8)},
            r"1 reshaped \(model.bn1.weight \(8,\), not \(64,\)\)",
        ),
        (
            lambda state: state | {"model.bn1.weight": torch.full((64,), torch.nan)},
            r"model.bn1.weight holds NaN or inf",
        ),
        (lambda state: state | {"epoch": 7}, r"expected a state dict \(names and tensors\), found 'epoch': int"),
        (lambda state: {}, r"expected a state dict \(names and tensors\), found an empty one"),
        (lambda state: torch.zeros(3), r"expected a state dict \(names and tensors\), found Tensor"),
        (lambda state: {"a": [state]}, r"expected a state dict \(names and tensors\), found 'a': list"),
        (lambda state: {"conv.weight": torch.zeros(1)}, r"of no network known here"),
    ],
    ids=["renamed", "left-over", "reshaped", "nan", "epoch", "empty", "tensor", "nested", "foreign"],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(published_state, save, baseline, change, message):
    before = values(baseline)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(baseline, save(change(published_state("net_last"))))
    assert "\n" not in str(caught.value)
    assert "net_last.pth: " in str(caught.value)
    assert unchanged(baseline, before)


def test_classifiers_of_another_size_are_refused_unless_only_features_are_needed(published_state, save, caplog):
    file = save(published_state("net_last", num_ids=702))
    network = Baseline(make_trunk("resnet50"), 5)
    with pytest.raises(WeightsError, match=r"2 reshaped \(classifier.classifier.0.weight \(702, 512\), not \(5, 512\)"):
        load_weights(network, file)
    classifier = network.classifier.weight.clone()
    report = load_weights(network, file, features_only=True)
    assert set(report.dropped) - {"model.fc.weight", "model.fc.bias"} == {
        "classifier.classifier.0.weight",
        "classifier.classifier.0.bias",
    }
    assert "2 tensors of classifiers do not fit and are left out" in caplog.text
    assert torch.equal(network.classifier.weight, classifier)
    assert torch.equal(
        network.norm.bias,
        torch.full((512,), float(list(published_state("net_last")).index("classifier.add_block.1.bias"))),
    )


def test_what_is_named_is_dropped_from_the_file_and_kept_in_the_network(published_state, save):
    network = Baseline(make_trunk("resnet50"), 5)
    state = published_state("net_last", num_ids=702) | {"note.made": torch.zeros(1)}
    before = network.classifier.weight.clone()
    report = load_weights(network, save(state), drop=["classifier.classifier", "note.made"])
    assert {"note.made", "classifier.classifier.0.bias"} < set(report.dropped)
    assert torch.equal(network.classifier.weight, before)


@pytest.mark.parametrize("text", ["clasifier", ""])
def test_dropping_what_is_nowhere_is_a_misspelling(published_state, save, baseline, text):
    with pytest.raises(WeightsError, match=f"neither the file nor the network has '{text}', which is to be dropped"):
        load_weights(baseline, save(published_state("net_last")), drop=[text])


def test_a_file_without_batch_counters_starts_them_at_0(published_state, save, caplog):
    state = {name: value for name, value in published_state("net_last").items() if "num_batches" not in name}
    network = Baseline(make_trunk("resnet50"), 751)
    network.norm.num_batches_tracked.fill_(9)
    report = load_weights(network, save(state))
    assert report.fits
    assert network.norm.num_batches_tracked == 0
    assert "54 batch counters are not in the file" in caplog.text


def test_a_wrappers_prefix_is_taken_off_and_told(published_state, save, baseline):
    state = {f"module.{name}": value for name, value in published_state("net_last").items()}
    weights = read_weights(save(state))
    assert weights.notices == ("every name begins with module. and was read without it",)
    assert weights.origin.describe() == "person re-id baseline, ft_net"


def test_the_stride_comes_from_opts_yaml_beside_the_file(published_state, save, tmp_path):
    file = save(published_state("net_last"))
    assert (read_weights(file).origin.last_stride, read_weights(file).origin.settings_from) == (2, None)
    (tmp_path / "opts.yaml").write_text("nclasses: 751\nstride: 1\n")
    origin = read_weights(file).origin
    assert (origin.last_stride, origin.settings_from) == (1, str(tmp_path / "opts.yaml"))
    assert network_of(origin).trunk.layer4[0].conv2.stride == (1, 1)
    (tmp_path / "opts.yaml").write_text("stride: [1")
    with pytest.raises(WeightsError, match=r"opts.yaml: cannot be read \(") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("form", ["zip", "before-1.6", "bare-pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(save, tmp_path, form):
    trap = tmp_path / "it-ran"
    content = {"model.conv1.weight": torch.zeros(1), "evil": Evil(trap)}
    if form == "bare-pickle":
        file = tmp_path / "net_last.pth"
        file.write_bytes(pickle.dumps({"evil": Evil(trap)}, protocol=2))
    else:
        file = save(content, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"refused: holds more than tensors \(posix.mkdir\)") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    torch.load(file, weights_only=False) if form != "bare-pickle" else pickle.loads(file.read_bytes())
    assert trap.exists(), "the trap itself would work"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such weight file"),
        (b"", "damaged or no weight file"),
        (b"not a checkpoint at all\n", "damaged or no weight file"),
        (b"PK\x03\x04" + bytes(400), "damaged or no weight file"),
        (pickle.dumps({"a": 1}, protocol=4), "damaged or no weight file|expected a state dict"),
    ],
    ids=["missing", "empty", "text", "half-a-zip", "other-pickle"],
)
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, recwarn, content, message):
    file = tmp_path / "model_best.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{re.escape(str(file))}: .*({message})") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not recwarn.list


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "before-1.6"])
def test_a_file_cut_in_half_is_damaged(published_state, save, zip_file):
    file = save(published_state("net_last"), _use_new_zipfile_serialization=zip_file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged or no weight file"):
        read_weights(file)


def test_a_whole_network_that_was_pickled_is_refused_by_the_name_of_its_class(save, baseline):
    with pytest.raises(
        WeightsError, match=r"refused: holds more than tensors \(reid_models.networks.baseline.Baseline\)"
    ):
        read_weights(save(baseline))
