"""Whatever settings, run folders and checkpoints hold: they are used, or refused in one line; nothing crashes."""

import copy
import dataclasses
import json
import random
import shutil
from dataclasses import dataclass

import pytest
import torch
import yaml

from reid_eval.errors import ReidError, Stopped
from reid_models.config import all_settings, config_dict, config_from_dict, load_config
from reid_models.extraction import load_embedder
from reid_models.runs import Checkpoint, RunDir
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, train_reid

TINY = {
    "image_hw": [32, 16],
    "network": {"trunk": "small", "width": 4, "weights": "none", "bottleneck": 16},
    "sampler": {"ids_per_batch": 4, "images_per_id": 2},
    "schedule": {"epochs": 1, "warmup_epochs": 1},
    "num_workers": 0,
}
ODD = [
    None, True, -1, 0, 1 << 40, 1 << 70, 10**400, 1.5, float("nan"), float("inf"), "", "x", "???", "${oc.env:HOME}",
    "${x", "\udcff", "\0", "a" * 10_000, [], [1], {}, {"a": 1}, {1: 2}, [[[]]], {"0": 64}, "1e999", "[", "best",
]  # fmt: skip
TENSORS = [torch.zeros(0), torch.zeros(2), torch.tensor(float("nan")), torch.zeros(2).to_sparse(), torch.zeros(2) + 1j]
TOKENS = [
    b"\xff\xfe", b"\0", b"[" * 2000, b"{", b"}", b": ", b"- ", b"&a ", b"*a", b"!!python/object:os.system", b"1e999",
    b"${oc.env:HOME}", b"\n", b"\t", b"'", b"???", b"null", b"9" * 5000, b"<<: ", b"%", b"\xf0\x9f\x98\x80",
]  # fmt: skip


def used(use, *arguments, **options):
    """Whether something was used; what is refused is one line."""
    said = ""
    try:
        use(*arguments, **options)
    except Stopped:
        pass
    except ReidError as error:
        said = str(error)
    assert "\n" not in said
    return not said


def spoilt_text(content, choose):
    """Some bytes of a text changed, removed, or put in."""
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(content) + 1)
        match choose.randrange(4):
            case 0:
                content = content[:at] + bytes([choose.randrange(256)]) + content[at + 1 :]
            case 1:
                content = content[:at] + content[at + choose.randint(1, 20) :]
            case 2:
                content = content[:at] + choose.choice(TOKENS) + content[at:]
            case 3:
                content = content[:at]
    return content


def spoilt_values(values, choose, odd):
    """A nested dict with some entries replaced by odd ones, removed, or under another name."""
    values = copy.deepcopy(values)
    for _ in range(choose.randint(1, 3)):
        node = values
        while True:
            key = choose.choice(list(node))
            if not isinstance(node[key], dict) or not node[key] or choose.random() < 0.3:
                break
            node = node[key]
        match choose.randrange(4):
            case 0 if len(node) > 1:
                del node[key]
            case 1:
                node[choose.choice(["x", "", 5, "a.b"])] = node.pop(key)
            case _:
                node[key] = choose.choice(odd)
    return values


def test_settings_files(tmp_path):
    choose, file, kept = random.Random(0), tmp_path / "settings.yaml", 0
    values = config_dict(ReidTrainConfig())
    whole = yaml.safe_dump(values).encode()
    for turn in range(80):
        if turn % 2:
            file.write_bytes(spoilt_text(whole, choose))
        else:
            file.write_text(json.dumps(spoilt_values(values, choose, ODD), skipkeys=True))
        kept += used(load_config, ReidTrainConfig, file)
    assert 0 < kept < 40


def test_set_texts():
    choose, kept = random.Random(0), 0
    keys = [*all_settings(ReidTrainConfig), "", ".", "a..b", "[0]", "image_hw[0]", "seed[x]", "\udcff"]
    for _ in range(120):
        key, equals = choose.choice(keys), choose.choice(["=", "=", "=", "", ":"])
        value = choose.choice([*ODD, "64", "[64,32]", "{a: b}", "&a [*a]", "!!set {x}", "2020-01-01", "=", "'"])
        kept += used(load_config, ReidTrainConfig, None, [f"{key}{equals}{value}"])
    assert 0 < kept < 60


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    image_hw: tuple[int, int] = (64, 32)
    name: str = "a"


def look_at(path, cls):
    """All that commands ask of a run without training it."""
    run = RunDir.find(path, "reid", resume=True)
    if run is not None:
        run.read_log()
        run.data_place()
        run.config(cls)
        for iteration in run.iterations():
            run.load(iteration)


def go_on(path, config, made_by):
    RunDir.create(path, config, kind="reid", made_by=made_by, resume=True).resume_from()


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "log.jsonl", "checkpoints/index.json"])
def test_the_texts_of_a_run(tmp_path, name):
    made_by = {"data": "/data", "layout": "csv", "source": "/data/a.csv", "num_ids": 4, "index_fingerprint": "abc"}
    made_by |= {"weights": {"file": "a.pt", "dropped": ["fc"]}, "teachers": [{"file": "t.pt", "fingerprint": "1"}]}
    run = RunDir.create(tmp_path / "run", Settings(), kind="reid", made_by=made_by)
    run.log_file.write_text("".join(json.dumps({"iteration": n, "loss": 0.5}) + "\n" for n in range(10)))
    run.save(Checkpoint("reid", 5, config_dict(Settings()), {"reid": {"w": torch.zeros(2)}}, made_by=made_by))
    choose, kept = random.Random(0), 0
    whole = (run.path / name).read_bytes()
    for turn in range(50):
        spoilt = spoilt_text(whole, choose)
        if turn % 2 and name.endswith(".json"):
            spoilt = json.dumps(spoilt_values(json.loads(whole), choose, ODD), skipkeys=True).encode()
        (run.path / name).write_bytes(spoilt)
        kept += used(look_at, run.path, Settings)
        used(go_on, run.path, Settings(), made_by)
    assert (kept == 50) == (name == "log.jsonl")


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of-an-earlier-version"])
def test_checkpoints(toy_index, tmp_path, recorded):
    config, runtime = config_from_dict(ReidTrainConfig, TINY), Runtime.from_environment("cpu")
    with pytest.raises(Stopped):
        train_reid(config, toy_index, tmp_path / "whole", runtime, stop_at=2)
    whole = RunDir.open(tmp_path / "whole")
    values = dataclasses.asdict(whole.load())
    choose, kept, path = random.Random(0), 0, tmp_path / "run"
    for turn in range(9):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole.path, path)
        file = path / "checkpoints" / "00000002.pt"
        torch.save(spoilt_values(values, choose, [*ODD, *TENSORS]), file)
        if not recorded:
            (path / "checkpoints" / "index.json").unlink()
        elif used(Checkpoint.read, file):
            RunDir.open(path).save(Checkpoint.read(file))
        used(look_at, path, ReidTrainConfig)
        kept += used(load_embedder, path, device="cpu")
        if turn % 6:
            used(go_on, path, config, whole.made_by)
        else:
            used(train_reid, config, toy_index, path, Runtime.from_environment("cpu", max_hours=1e-9), resume=True)
    assert kept < 9
