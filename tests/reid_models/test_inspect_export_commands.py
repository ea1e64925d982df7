"""`reid-models inspect` and `reid-models export`, as a person uses them."""

import json
import os

import pytest
import torch
import torchvision
import yaml
from click.testing import CliRunner

from reid_eval.locks import locked
from reid_models.cli import main
from reid_models.config import config_dict, config_from_dict
from reid_models.runs import Checkpoint, RunDir
from reid_models.training import ReidTrainConfig, build_network
from reid_models.weights import load_weights, network_of, read_weights


def reid_models(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result, message):
    """Whether a command said this in one line, printed nothing else and left with 1."""
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    return True


def make_run(path, network):
    """A run as a training leaves it, without the training: five identities, checkpoint 7."""
    config = config_from_dict(ReidTrainConfig, {"network": {"weights": "none", **network}})
    made_by = {"reid_models": "0.1.0", "torch": "2.14.1", "num_ids": 5, "data": "/data/market"}
    run = RunDir.create(path, config, kind="reid", made_by=made_by)
    torch.manual_seed(0)
    state = build_network(config.network, 5).state_dict()
    run.save(Checkpoint("reid", 7, config_dict(config), {"reid": state}, made_by=made_by))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the re-id baseline on ResNet-50, not to be written to."""
    return make_run(tmp_path_factory.mktemp("runs") / "teacher", {"trunk": "resnet50", "last_stride": 1})


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "small", {"trunk": "small", "width": 4, "bottleneck": 8})


@pytest.mark.parametrize(
    ("name", "what", "heads", "num_matched"),
    [
        ("mgn_1-2-3", "MGN-pytorch, granularities 1-2-3", "8 of 256 features, classifiers with bias", 682),
        ("mgn_1-2-4", "the study on MGN-pytorch", "9 of 256 features, classifiers without bias", 681),
        ("mgn_1-3-4", "the study on MGN-pytorch", "10 of 256 features, classifiers without bias", 688),
        ("net_last", "person re-id baseline, ft_net", "1 of 512 features, classifiers with bias", 327),
    ],
)
def test_inspect_says_what_a_published_file_is(published_state, tmp_path, name, what, heads, num_matched):
    file = tmp_path / "model.pt"
    torch.save(published_state(name), file)
    result = reid_models("inspect", file)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{file}: {what}")
    for line in ("identities  751", f"heads       {heads}", f"matched     {num_matched} tensors", "left over   none"):
        assert line in result.stdout
    assert ("left out    model.fc.weight, model.fc.bias" in result.stdout) == (name == "net_last")
    found = json.loads(reid_models("inspect", file, "--json").stdout)
    assert (found["fits"], found["facts"]["identities"], len(found["report"]["matched"])) == (True, 751, num_matched)


def test_inspect_knows_torchvisions_file_and_what_it_cannot_tell(tmp_path):
    with torch.device("meta"):
        shapes = torchvision.models.resnet50().state_dict()
    file = tmp_path / "resnet50.pth"
    torch.save({name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}, file)
    result = reid_models("inspect", file)
    assert result.exit_code == 0, result.output
    assert "torchvision's ResNet-50" in result.stdout
    assert "left out    fc.weight, fc.bias" in result.stdout
    assert "assumed: the file does not tell" in result.stdout


def test_inspect_lists_what_is_missing_left_over_and_reshaped_and_leaves_with_1(published_state, tmp_path):
    state = published_state("mgn_1-2-3")
    state["reduction_7.0.wight"] = state.pop("reduction_7.0.weight")
    state["fc_id_2048_0.weight"] = torch.zeros(16, 256)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "model.pt")
    result = reid_models("inspect", tmp_path / "model.pt")
    assert result.exit_code == 1
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[lines.index("missing     1") + 1] == "reduction_7.0.weight"
    assert lines[lines.index("left over   1") + 1] == "reduction_7.0.wight"
    assert lines[lines.index("reshaped    1") + 1] == "fc_id_2048_0.weight (16, 256), not (751, 256)"
    assert "note        every name begins with module. and was read without it" in lines


def test_inspect_reads_a_run_and_a_checkpoint_of_ours(run):
    whole, one = reid_models("inspect", run), reid_models("inspect", run / "checkpoints" / "00000007.pt")
    for result in (whole, one):
        assert result.exit_code == 0, result.output
        assert ": checkpoint of a reid run at iteration 7" in result.stdout
        assert "made by     reid_models 0.1.0, torch 2.14.1" in result.stdout
        assert '"trunk": "resnet50"' in result.stdout
        assert "matched     327 tensors of Baseline" in result.stdout
    assert "checkpoints 7" in whole.stdout


def test_inspect_knows_a_run_of_another_package_by_name(tmp_path):
    networks = {"generator": {"a": torch.zeros(1)}, "discriminator": {"b": torch.zeros(1), "c": torch.zeros(1)}}
    Checkpoint("dgnet", 3, {"networks": {"trunk": "small"}}, networks, made_by={"dgnet_gen": "0.1.0"}).save(
        tmp_path / "a.pt"
    )
    result = reid_models("inspect", tmp_path / "a.pt")
    assert result.exit_code == 0, result.output
    assert "checkpoint of a dgnet run at iteration 3" in result.stdout
    assert "tensors     generator 1, discriminator 2" in result.stdout


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "before-1.6"])
def test_inspect_refuses_a_pickle_that_would_run_code(tmp_path, zip_file):
    file = tmp_path / "model.pt"
    torch.save({"a": Evil(tmp_path / "it-ran")}, file, _use_new_zipfile_serialization=zip_file)
    assert refused(reid_models("inspect", file), "refused: holds more than tensors (posix.mkdir)")
    assert not (tmp_path / "it-ran").exists()


def test_inspect_refuses_what_is_no_weight_file_in_one_line(published_state, tmp_path, small_run):
    file = tmp_path / "model.pt"
    assert refused(reid_models("inspect", file), "model.pt: no such weight file")
    assert refused(reid_models("inspect", tmp_path), "no run here (run.json is missing)")
    file.write_text("not a checkpoint")
    assert refused(reid_models("inspect", file), "damaged or no weight file")
    torch.save(published_state("mgn_1-2-3") | {"p2.0.0.bn1.weight": torch.full((256,), torch.nan)}, file)
    assert refused(reid_models("inspect", file), "p2.0.0.bn1.weight holds NaN or infinity")
    checkpoint = RunDir.open(small_run).load("last")
    checkpoint.networks["reid"]["norm.weight"][0] = torch.inf
    checkpoint.save(file)
    assert refused(reid_models("inspect", file), "norm.weight holds NaN or infinity")


def test_export_writes_what_the_baseline_and_dgnet_load_with_its_opts_yaml(layout, run, tmp_path):
    out = tmp_path / "models" / "teacher" / "net_last.pth"
    result = reid_models("export", "--run", run, "--format", "original", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["file"] == str(out)
    assert yaml.safe_load((out.parent / "opts.yaml").read_text()) == {"nclasses": 5, "stride": 1}
    written, (entries, _) = torch.load(out, weights_only=True), layout("net_last")
    assert list(written) == list(entries)
    assert {name: tuple(value.shape) for name, value in written.items()} == {
        name: tuple(5 if size == 751 else size for size in shape) for name, (shape, _) in entries.items()
    }
    weights = read_weights(out)
    again = network_of(weights.origin)
    load_weights(again, weights)
    trained = RunDir.open(run).load("last").networks["reid"]
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())
    assert again.trunk.layer4[0].conv2.stride == (1, 1)


def test_export_writes_mgn_for_the_original_and_says_with_which_options_it_takes_it(layout, tmp_path):
    run = make_run(tmp_path / "mgn", {"kind": "mgn", "head_features": 8, "pool": "max"})
    out = tmp_path / "experiment" / "ours" / "model" / "model_best.pt"
    result = reid_models("export", "--run", run, "--which", "7", "--out", out)
    assert result.exit_code == 0, result.output
    assert (
        "--num_classes 5 --feats 8 --pool max --height 256 --width 128; its pools are made for 384x128" in result.stdout
    )
    assert sorted(os.listdir(out.parent)) == ["model_best.pt"]
    written, (entries, _) = read_weights(out), layout("mgn_1-2-3")
    assert list(written.state) == list(entries)
    trained = RunDir.open(run).load("last").networks["reid"]
    assert all(torch.equal(trained[ours], written.state[theirs]) for ours, theirs in written.names(trained).items())


def test_export_keeps_what_is_there_unless_told_to_replace_it(run, tmp_path):
    (tmp_path / "opts.yaml").write_text("mine")
    command = ["export", "--run", run, "--out", tmp_path / "net_last.pth"]
    assert refused(reid_models(*command), "opts.yaml: exists already")
    assert sorted(os.listdir(tmp_path)) == ["opts.yaml"]
    assert reid_models(*command, "--overwrite").exit_code == 0
    assert refused(reid_models(*command), "net_last.pth: exists already; choose another --out, or replace it with --ov")
    assert refused(reid_models("export", "--run", run, "--out", tmp_path), "is a folder; expected a file's name")
    with locked(tmp_path / "net_last.pth", "reid-models export"):
        assert refused(reid_models(*command, "--overwrite"), "reid-models export (process ")
    assert refused(reid_models(*command[:-1], run / "config.yaml", "--overwrite"), "which this command reads")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("newest", "--which newest: expected last, best"),
        ("8", "no checkpoint of iteration 8; there are 7"),
        ("best", "no best checkpoint"),
    ],
)
def test_export_explains_a_checkpoint_that_is_not_there(run, tmp_path, which, message):
    result = reid_models("export", "--run", run, "--which", which, "--out", tmp_path / "net_last.pth")
    assert refused(result, message)
    assert not list(tmp_path.iterdir())


def test_export_names_the_setting_that_no_published_network_has(small_run, tmp_path):
    result = reid_models("export", "--run", small_run, "--out", tmp_path / "net_last.pth")
    assert refused(result, "network.trunk=small: no published program has such a network")
    assert not list(tmp_path.iterdir())
