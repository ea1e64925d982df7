import subprocess
import sys

import numpy as np
import pytest
import torch

from reid_eval.files import list_images, read_pixels
from reid_eval.images import measure_images
from reid_models import extraction
from reid_models.config import config_dict, config_from_dict
from reid_models.data.transforms import eval_transform
from reid_models.run_extractor import RunExtractor
from reid_models.runs import Checkpoint, CheckpointError, RunDir
from reid_models.training import ReidTrainConfig, build_network


def save_checkpoint(run: RunDir, config: ReidTrainConfig, iteration: int) -> None:
    torch.manual_seed(iteration)
    state = build_network(config.network, 4).state_dict()
    run.save(Checkpoint("reid", iteration, config_dict(config), {"reid": state}, made_by={"num_ids": 4}))


@pytest.fixture
def config():
    network = {"trunk": "small", "width": 8, "weights": "none", "bottleneck": 16}
    return config_from_dict(ReidTrainConfig, {"image_hw": [32, 16], "network": network})


@pytest.fixture
def run(config, tmp_path):
    """As much of a run as an extractor reads."""
    run = RunDir.create(tmp_path / "teacher", config, kind="reid", made_by={})
    save_checkpoint(run, config, 60)
    return run


def test_pictures_of_any_size_get_the_embeddings_of_the_run(run, toy_root):
    extractor = RunExtractor(run.path, "cpu")
    assert (extractor.name, extractor.num_features, extractor.quotable) == ("reid:teacher@60", 16, True)
    first = read_pixels(list_images(toy_root)[0])
    pictures = [first, first[:40, :20], first]
    embedder = extraction.load_embedder(run.path, device="cpu")
    expected = [embedder.embed(eval_transform(pixels, (32, 16))[None]).numpy()[0] for pixels in pictures]
    features = extractor(pictures)
    np.testing.assert_allclose(features, expected, atol=1e-5)  # batches of another size round differently
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_what_is_kept_is_given_without_the_network_and_torch_until_the_checkpoint_changes(
    run, config, toy_root, tmp_path, monkeypatch
):
    sides, cache = (toy_root / "query", toy_root / "bounding_box_train"), tmp_path / "cache"

    def measure():
        return measure_images(*sides, metrics=["fid"], extractor=RunExtractor(run.path, "cpu"), cache=cache)[0]

    first = measure()
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "load_embedder", lambda *_, **__: pytest.fail("opened"))
        assert measure() == first
    script = f"""
import sys
from pathlib import Path
from reid_eval.images import measure_images
from reid_models.run_extractor import RunExtractor
sides, cache = {tuple(map(str, sides))}, Path({str(cache)!r})
print(measure_images(*sides, metrics=["fid"], extractor=RunExtractor({str(run.path)!r}, "cpu"), cache=cache)[0].value)
print("torch" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert answer.split() == [str(first.value), "False"]
    save_checkpoint(run, config, 120)
    other = measure()
    assert "reid:teacher@120" in other.protocol
    assert other.value != first.value


def test_another_checkpoint_and_another_name_are_another_extractor(run, config):
    first = RunExtractor(run.path)
    assert RunExtractor(run.path).fingerprint == first.fingerprint
    save_checkpoint(run, config, 120)
    assert RunExtractor(run.path).fingerprint != first.fingerprint
    assert first.name == "reid:teacher@60"  # the network that the fingerprint is of
    (run.checkpoints / "00000120.pt").unlink()
    assert RunExtractor(run.path.rename(run.path.with_name("other"))).fingerprint != first.fingerprint


def test_a_folder_without_a_run_or_a_checkpoint_is_said_at_once(config, tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        RunExtractor(tmp_path, "cpu")
    run = RunDir.create(tmp_path / "new", config, kind="reid", made_by={})
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        RunExtractor(run.path, "cpu")
