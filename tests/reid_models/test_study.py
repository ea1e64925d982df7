"""The five variants of the study learn to recognise people whom they have never seen, with the CPU preset as it is.

Two are always trained, all five with REID_GOLDEN=1.
"""

import os
from functools import cache
from pathlib import Path

import pytest

from reid_eval.ranking import rank
from reid_models.config import load_config
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.extraction import extract_features, load_embedder
from reid_models.runtime import Runtime
from reid_models.training import ReidTrainConfig, train_reid

PRESET = Path(__file__).parents[2] / "configs" / "mgn_cpu.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Draws a world once: half of the people for training, the others to be recognised."""

    @cache
    def draw(ids, per_camera):
        folder = tmp_path_factory.mktemp("study") / "toy"
        make_toy_dataset(folder, ids=ids, cameras=4, per_camera=per_camera, seed=0)
        return DatasetIndex.open(folder)

    return draw


needs_minutes = pytest.mark.skipif(not os.environ.get("REID_GOLDEN"), reason="half a minute each; set REID_GOLDEN=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ids", "per_camera", "setting"),
    [
        pytest.param(32, 4, "network.granularities=1-2-3", id="1-2-3", marks=needs_minutes),
        pytest.param(32, 4, "network.granularities=1-2-4", id="1-2-4", marks=needs_minutes),
        pytest.param(32, 4, "network.granularities=1-3-4", id="1-3-4"),
        pytest.param(32, 4, "loss.terms=1*CrossEntropy+2*Triplet+0.005*CenterLoss", id="center"),
        # One pair of people decides each step, so it takes more steps, and epochs of more people have more.
        pytest.param(48, 6, "loss.terms=1*CrossEntropy+2*MSMLLoss", id="msml", marks=needs_minutes),
    ],
)
def test_a_variant_of_the_study_recognises_unseen_people(world, ids, per_camera, setting, tmp_path):
    data = world(ids, per_camera)
    assert not set(data.split("train_all").pids) & set(data.split("query").pids)
    config = load_config(ReidTrainConfig, PRESET, [setting, "eval_every=1000"])
    run = train_reid(config, data, tmp_path / "run", Runtime.from_environment("cpu"))
    rank1 = {}
    for untrained in (True, False):
        report = rank(extract_features(load_embedder(run.path, device="cpu", untrained=untrained), data))
        rank1[untrained] = float(report.cmc[0])
    assert rank1[True] < 0.4
    assert rank1[False] > 0.9
