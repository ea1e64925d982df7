"""Files as other programs save them: the network in them is found by its tensors, and nothing in them is run."""

import argparse
import copy
import datetime
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from reid_models.foreign import read_content
from reid_models.networks import Baseline
from reid_models.networks.resnet import make_trunk
from reid_models.published import WeightsError
from reid_models.weights import load_trunk_weights, load_weights, network_of, read_weights

FT_NET = "person re-id baseline, ft_net"


@pytest.fixture
def state(published_state):
    return published_state("net_last", num_ids=5)


@pytest.fixture
def save(tmp_path):
    def write(content, name="a.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


def holds(weights, state):
    return weights.state.keys() == state.keys() and all(map(torch.equal, weights.state.values(), state.values()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda state: {"epoch": 7, "state_dict_ema": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"whatever": {"deep": [1, 2], "down": {"it": state}}},
        lambda state: {"net": {f"_orig_mod.{name}": value for name, value in state.items()}, "one": torch.zeros(1)},
        lambda state: {"state_dict": state, "center_loss": {"centers": torch.zeros(5, 3)}},
        lambda state: {f"reid.{name}": value for name, value in state.items()},
    ],
    ids=["model", "ema", "deep", "compiled", "losses", "lightning"],
)  # fmt: skip
def test_a_known_network_is_found_wherever_it_lies(wrap, state, save):
    weights = read_weights(save(wrap(state)))
    assert weights.describe() == FT_NET
    assert holds(weights, state)
    assert weights.notices


def test_of_several_networks_one_has_to_be_named(state, save):
    averaged = {f"module.{name}": value + 1 for name, value in state.items()}
    file = save({"model": state, "ema": {"model": averaged}, "epoch": 3})
    with pytest.raises(WeightsError, match=rf"holds 2 networks, model and ema.model; say .* {file}::ema.model$"):
        read_weights(file)
    weights = read_weights(f"{file}::ema.model")
    assert weights.path == file
    assert torch.equal(weights.state["model.bn1.bias"], state["model.bn1.bias"] + 1)
    with pytest.raises(WeightsError, match=r"has no entry mode of names and tensors; found model and ema.model"):
        read_weights(f"{file}::mode")


def test_a_trunk_is_found_by_its_own_names(save):
    torch.manual_seed(1)
    made, trunk = make_trunk("small", width=4).state_dict(), make_trunk("small", width=4)
    file = save({"net": {f"backbone.{name}": value for name, value in made.items()}, "lr": 0.1})
    load_trunk_weights(trunk, str(file))
    assert all(torch.equal(value, made[name]) for name, value in trunk.state_dict().items())
    load_trunk_weights(trunk, f"{file}::net")
    with pytest.raises(WeightsError, match=r"1 tensors \(w, ...\), none called as those of the trunk"):
        load_trunk_weights(trunk, str(save({"w": torch.zeros(1)})))


def test_what_can_do_nothing_may_lie_beside_the_tensors(state, save):
    aside = {
        "rank1": np.float64(0.9), "ids": np.arange(3), "kind": np.dtype("int8"), "args": argparse.Namespace(lr=1),
        "when": datetime.datetime(2018, 8, 28), "where": Path("data/market"),
    }  # fmt: skip
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        assert holds(read_weights(save({"state_dict": state, **aside}, **options)), state)
    with pytest.raises(WeightsError, match=r"in a pickle protocol after 2.* use those: python -c"):
        read_weights(save({"state_dict": state}, pickle_protocol=4))


class Evil:
    """Makes a folder when it is read as pickles are."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_a_file_that_is_refused_says_the_line_that_keeps_its_tensors(state, tmp_path, save, monkeypatch):
    (tmp_path / "their_code.py").write_text("class Options: pass")
    monkeypatch.syspath_prepend(tmp_path)
    options = __import__("their_code").Options()
    file = save({"nets": {"a": state, "note": None}, "options": options, "epoch": 7}, "it's a.pth")
    with pytest.raises(WeightsError, match=r"refused: holds more than tensors \(their_code.Options\)") as caught:
        read_weights(file)
    line = str(caught.value).split("use those: ")[1]
    assert "\n" not in line
    line = line.replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(["bash", "-c", line], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert holds(read_weights(tmp_path / "it's a-tensors.pth"), state)


def early(state):
    """The same network as the baseline saved it in early 2018."""
    names = {"classifier.add_block.": "model.fc.", "classifier.classifier.": "classifier."}
    kept = {name: value for name, value in state.items() if not name.startswith("model.fc.")}
    return {re.sub("|".join(map(re.escape, names)), lambda old: names[old[0]], name): v for name, v in kept.items()}


def test_the_baseline_of_2018_is_named_and_read(state, save):
    weights = read_weights(save(early(state)))
    assert weights.describe() == "person re-id baseline of 2018, ft_net"
    network = network_of(weights.origin)
    report = load_weights(network, weights)
    assert len(report.matched) == 327
    assert torch.equal(network.reduce.bias, state["classifier.add_block.0.bias"])
    assert torch.equal(network.classifier.weight, state["classifier.classifier.0.weight"])
    assert "2048 numbers" in " ".join(report.notices)


def test_a_leaky_relu_stands_before_the_classifier_where_it_did():
    torch.manual_seed(0)
    network = Baseline(make_trunk("small", width=4), 5, bottleneck=8, leaky=True).eval()
    found = network(torch.randn(2, 3, 32, 16))
    bent = torch.where(found.embeddings > 0, found.embeddings, found.embeddings / 10)
    torch.testing.assert_close(found.logits[0], network.classifier(bent))


class Resnet(torch.nn.Module):
    """Named tensors as modules in modules, to be saved as a program."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            place = self
            *words, last = name.split(".")
            for word in words:
                if not hasattr(place, word):
                    place.add_module(word, torch.nn.Module())
                place = getattr(place, word)
            place.register_buffer(last, value)

    def forward(self, images):
        return images


def test_a_torchscript_archive_gives_its_tensors_and_runs_nothing(tmp_path, state):
    small = {name: value if value.ndim < 3 else value[:2, :2].clone() for name, value in state.items()}
    kept = ("model.conv1", "model.bn1", "model.layer4", "classifier")
    small = {name: value for name, value in small.items() if name.startswith(kept)}
    torch.jit.save(torch.jit.trace(Resnet(small), torch.zeros(1)), str(tmp_path / "a.pt"))
    weights = read_weights(tmp_path / "a.pt")
    assert weights.describe() == FT_NET
    assert weights.state.keys() == small.keys()
    assert all(torch.equal(value, small[name]) for name, value in weights.state.items())


def tar_of(state, file, extra=None):
    """A file as PyTorch 0.1 wrote it: a tar of three pickles with raw numbers between."""
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, protocol=2)
    pickle.dump(len(state), tensors, protocol=2)
    for key, value in enumerate(state.values()):
        kind = "Float" if value.is_floating_point() else "Long"
        pickle.dump((key, "cpu", getattr(torch, f"{kind}Storage")), storages, protocol=2)
        storages.write(struct.pack("<q", value.numel()) + value.contiguous().numpy().tobytes())
        pickle.dump((1000 + key, key, getattr(torch, f"{kind}Tensor")), tensors, protocol=2)
        tensors.write(struct.pack("<ii", value.ndim, 0))
        tensors.write(struct.pack(f"<{2 * value.ndim}q", *value.shape, *value.contiguous().stride()))
        tensors.write(struct.pack("<q", 0))
    pickle.dump([], storages, protocol=2)

    class Place:
        def __init__(self, key):
            self.key = key

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.key if isinstance(value, Place) else None

    content = io.BytesIO()
    places = OrderedDict((name, Place(1000 + key)) for key, name in enumerate(state))
    Pickler(content, protocol=2).dump({"state_dict": places, "extra": extra})
    with tarfile.open(file, "w") as tar:
        for name, stream in {"storages": storages, "tensors": tensors, "pickle": content}.items():
            (member := tarfile.TarInfo(name)).size = len(stream.getvalue())
            tar.addfile(member, io.BytesIO(stream.getvalue()))


def test_a_tar_of_pytorch_0_1_is_read_and_runs_nothing(tmp_path, state):
    few = {name: value for name, value in state.items() if value.ndim < 2 or "classifier.classifier" in name}
    tar_of(few, tmp_path / "a.pth")
    assert holds(read_weights(tmp_path / "a.pth"), few)
    tar_of({"w": torch.zeros(2)}, tmp_path / "evil.pth", Evil(tmp_path / "it-ran"))
    with pytest.raises(WeightsError, match=r"refused: holds more than tensors \(posix.mkdir\)"):
        read_content(tmp_path / "evil.pth")
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("place", ["beside", "within"])
def test_code_beside_what_is_harmless_is_refused(state, save, tmp_path, place):
    evil = Evil(tmp_path / "it-ran")
    content = {"state_dict": state, "x": np.float64(1), "args": argparse.Namespace(a=evil)}
    if place == "beside":
        content["y"] = evil
    with pytest.raises(WeightsError, match=r"refused: holds more than tensors \(posix.mkdir\)"):
        read_weights(save(content))
    assert not (tmp_path / "it-ran").exists()


def test_a_damaged_number_is_noticed_by_the_files_own_checksum(state, save):
    file = save(state)
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<f", 9.0))] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a.pth: damaged: the checksum of .* in it does not fit"):
        read_weights(file)


@pytest.mark.parametrize(
    "large",
    [
        lambda: torch.zeros(1).expand(1 << 40, 512),
        lambda: torch.zeros(1 << 20).as_strided((1 << 19, 1 << 19), (1, 1)),
    ],
    ids=["said-again", "overlapping"],
)
def test_a_small_file_takes_little_memory_whatever_it_says(state, save, large):
    file = save(state | {"classifier.classifier.0.weight": large()})
    with pytest.raises(WeightsError, match=r"more than can be|holds more numbers than its file"):
        read_weights(file)


ODD = [
    None, 1.5, "x", [], {}, torch.zeros(0), torch.zeros(2, 2), torch.tensor(float("nan")), torch.zeros(2).to_sparse(),
    torch.zeros(2) + 1j, torch.zeros(3, dtype=torch.int8), np.float32(1), argparse.ArgumentParser,
    torch.zeros(1).expand(9, 1 << 40),
]  # fmt: skip


def spoilt(content, choose):
    """A file's bytes with some changed, left out or put in twice."""
    at, length = choose.randrange(len(content)), choose.randrange(1, 64)
    match choose.randrange(4):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + content[at + length :]
        case 2:
            return content[:at] + content[at : at + length] + content[at:]
    return b"".join([content[:at], bytes([content[at] ^ 1 << choose.randrange(8)]), content[at + 1 :]])


class Longer:
    """Is saved as a tensor that says more numbers than its storage has."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.zeros(5)._typed_storage(), 0, (1 << 28,), (1,), False, {})


@pytest.mark.parametrize("zip_file", [True, False])
def test_numbers_that_a_file_does_not_have_are_not_made_up(state, save, zip_file):
    file = save({"a": state, "b": {"c": [Longer()]}}, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(WeightsError, match=r"a.pth: damaged"):
        read_weights(file)


def refusal(file):
    """What is said of a file, or None if it is read."""
    try:
        read_weights(file)
    except WeightsError as error:
        return str(error)


@pytest.mark.parametrize("form", ["zip", "before-1.6", "tar", "torchscript"])
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(state, tmp_path, form, capfd):
    few = {name: value for name, value in state.items() if value.ndim < 2 or "classifier.0.w" in name}
    few |= {"model.layer4.0.conv1.weight": torch.zeros(3, 2, 1, 1)}
    file, choose = tmp_path / "a.pth", random.Random(0)
    match form:
        case "tar":
            tar_of(few, file)
        case "torchscript":
            torch.jit.save(torch.jit.trace(Resnet(few), torch.zeros(1)), str(file))
        case _:
            torch.save({"model": few, "epoch": 3}, file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    read = 0
    for turn in range(24):
        if turn % 3 or form in ("tar", "torchscript"):
            file.write_bytes(spoilt(whole, choose))
        else:
            content = copy.copy(few)
            for _ in range(choose.randint(1, 3)):
                content[choose.choice([*few, "model.x"])] = choose.choice(ODD)
            torch.save({"model": content, "epoch": choose.choice(ODD)}, file)
        said = refusal(file)
        read += said is None
        assert said is None or said.startswith(f"{file}: ")
        assert said is None or "\n" not in said
    assert read < 24
    assert not capfd.readouterr().err
