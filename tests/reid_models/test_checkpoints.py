"""A checkpoint is read only if it is as it was written, and holds what a checkpoint holds."""

import dataclasses
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from reid_models.checkpoints import (
    Checkpoint,
    CheckpointError,
    DivergedError,
    finite_states,
    glance,
    load_state,
    read_record,
)
from reid_models.runs import RunDir


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1


def checkpoint(**changes):
    generator = torch.Generator().manual_seed(0)
    state = {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator), "bn.count": torch.tensor(7)}
    moments = {"exp_avg": torch.randn(4, 3, generator=generator), "step": torch.tensor(3.0)}
    values = {
        "kind": "reid",
        "iteration": 20,
        "config": {"lr": 0.1},
        "networks": {"reid": state},
        "optimizers": {"reid": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}},
        "rng": {"cpu": torch.get_rng_state()[:64].clone()},
        "progress": {"best_map": 0.5},
        "made_by": {"num_ids": 4},
    }
    return Checkpoint(**(values | changes))


def same(found, expected):
    """Whether nested containers of tensors and plain values are equal to the bit."""
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("recorded", [True, False], ids=["in-its-run", "a-lone-copy"])
def test_of_400_flipped_bits_all_are_noticed_or_change_nothing(tmp_path, recorded):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={})
    file = run.save(checkpoint())
    whole = dataclasses.asdict(Checkpoint.load(file))
    if not recorded:
        file = shutil.copy(file, tmp_path / "copy.pt")
    content = bytearray(file.read_bytes())
    choose, unnoticed = random.Random(0), 0
    for _ in range(400):
        place, bit = choose.randrange(len(content)), choose.randrange(8)
        content[place] ^= 1 << bit
        file.write_bytes(content)
        content[place] ^= 1 << bit
        said, found = reads(file)
        if found is not None:
            unnoticed += 1
            assert same(found, whole)
        else:
            assert str(file) in said
            assert "\n" not in said
    assert unnoticed == 0 or not recorded


def reads(file):
    """What is said of a file that is refused, or what it holds."""
    try:
        return "", dataclasses.asdict(Checkpoint.load(file))
    except CheckpointError as error:
        return str(error), None


def test_every_read_of_a_run_notices_a_flipped_bit(tmp_path):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={})
    file = run.save(checkpoint())
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 5] ^= 1  # the version of the program that made the archive: nobody reads it
    file.write_bytes(content)
    again = RunDir.create(run.path, Settings(), kind="reid", made_by={}, resume=True)
    for use in (RunDir.open(run.path).load, again.resume_from, lambda: Checkpoint.load(file)):
        with pytest.raises(
            CheckpointError, match=r"00000020\.pt: not the checkpoint that this run wrote here .*SHA-256"
        ):
            use()


def test_what_is_recorded_is_what_was_written(tmp_path):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={})
    file = run.save(checkpoint())
    sha256 = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    ((written,),) = read_record(run.checkpoints).values()
    assert (written.iteration, written.bytes, written.sha256) == (20, file.stat().st_size, sha256)


TENSOR = torch.zeros(2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": 3}, "kind is 3"),
        ({"iteration": "x"}, "iteration is 'x'"),
        ({"iteration": -1}, "iteration is -1"),
        ({"iteration": True}, "iteration is True"),
        ({"iteration": 1 << 70}, "iteration is 118"),
        ({"config": None}, "config is None"),
        ({"networks": {}}, "networks are none"),
        ({"networks": [1]}, "networks is list"),
        ({"networks": {"reid": [TENSOR]}}, "networks.reid is list"),
        ({"networks": {"reid": {"a": 5}}}, "networks.reid holds 'a': 5"),
        ({"networks": {"reid": {3: TENSOR}}}, "networks.reid holds 3: Tensor"),
        ({"networks": {"reid": {"a": TENSOR.to_sparse()}}}, "plain tensors"),
        ({"networks": {"reid": {"a": TENSOR + 1j}}}, "plain tensors"),
        ({"optimizers": {"reid": 5}}, "optimizers.reid is 5"),
        ({"rng": TENSOR}, "rng is Tensor"),
        ({"progress": [0.5]}, "progress is list"),
        ({"made_by": "me"}, "made_by is 'me'"),
        ({"made_by": {"num_ids": "six"}}, "made_by.num_ids is 'six'"),
        ({"made_by": {"num_ids": -1}}, "made_by.num_ids is -1"),
        ({"made_by": {"num_ids": 10**12}}, "made_by.num_ids is 1000000000000"),
        ({"format": "1"}, "checkpoint format '1'"),
    ],
)
def test_odd_contents_are_one_line_that_names_file_and_entry(tmp_path, changes, said):
    file = tmp_path / "odd.pt"
    torch.save({**dataclasses.asdict(checkpoint()), **changes}, file)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["kind", "iteration", "config", "networks", "format"])
def test_an_entry_that_is_missing_is_asked_for(tmp_path, name):
    values = dataclasses.asdict(checkpoint())
    del values[name]
    torch.save(values, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd\.pt: holds no checkpoint of a run \(expected .*{name}"):
        Checkpoint.load(tmp_path / "odd.pt")


def test_what_a_later_version_may_add_is_passed_over(tmp_path):
    torch.save({**dataclasses.asdict(checkpoint()), "colour": "red"}, tmp_path / "new.pt")
    assert Checkpoint.load(tmp_path / "new.pt").iteration == 20


@pytest.mark.parametrize("content", [b"", b"PK", b"no checkpoint", "folder", "missing"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "odd.pt"
    if content == "folder":
        file.mkdir()
    elif content != "missing":
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd\.pt: "):
        Checkpoint.load(file)


def test_a_network_that_is_asked_for_and_not_there_is_named():
    with pytest.raises(CheckpointError, match=r"runs/a: holds no loss network at iteration 20 \(found reid\)"):
        checkpoint().network("average", "loss", source="runs/a")
    assert checkpoint().network("average", "reid", source="runs/a").keys() == {"conv.weight", "bn.count"}
    with pytest.raises(CheckpointError, match="runs/a: the checkpoint of iteration 20 does not tell num_ids"):
        checkpoint(made_by={}).num_ids("runs/a")


@pytest.mark.parametrize("state", [{}, {"weight": TENSOR}, {"weight": torch.zeros(3, 2), "more": TENSOR}])
def test_weights_of_another_network_are_one_line(state):
    with pytest.raises(CheckpointError, match=r"a\.pt: its weights do not fit the network of its settings") as caught:
        load_state(torch.nn.Linear(2, 3, bias=False), state, "a.pt")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_no_checkpoint():
    network = torch.nn.Linear(2, 3)
    assert finite_states({"reid": network}, 5, "")["reid"].keys() == {"weight", "bias"}
    network.bias.data[1] = float("nan")
    with pytest.raises(DivergedError, match="bias is not finite after iteration 5, so it is not saved; lower it"):
        finite_states({"reid": network}, 5, "lower it")


def test_a_glance_reads_no_tensors_and_tells_what_is_none(tmp_path):
    checkpoint().save(tmp_path / "a.pt")
    torch.save({"weight": TENSOR}, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-100])
    seen = glance(tmp_path / "a.pt")
    assert (seen.iteration, seen.config, seen.made_by) == (20, {"lr": 0.1}, {"num_ids": 4})
    assert glance(tmp_path / "b.pt").iteration is None
    assert glance(tmp_path / "c.pt") is None


def test_a_file_that_grows_larger_than_files_may_is_one_line_and_the_one_before_stays(tmp_path):
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by={})
    run.save(checkpoint(iteration=10))
    code = f"""
import resource, torch
from reid_eval.errors import user_errors
from reid_models.runs import Checkpoint, RunDir
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with user_errors():
    state = {{"w": torch.zeros(1 << 20)}}
    RunDir.open({str(run.path)!r}).save(Checkpoint("reid", 20, {{"lr": 0.1}}, {{"reid": state}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "00000020.pt: could not be written (File too large)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert RunDir.open(run.path).load().iteration == 10
