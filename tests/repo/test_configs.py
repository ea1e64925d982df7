"""Every settings file under configs/ is read by the trainer it is for."""

from pathlib import Path

import pytest

from dgnet_gen.settings import DGNetTrainConfig
from reid_models.config import load_config
from reid_models.training import ReidTrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def trainer_of(file: Path) -> type:
    return DGNetTrainConfig if "dgnet" in file.stem else ReidTrainConfig


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_settings_file_loads(file):
    assert load_config(trainer_of(file), file)


def test_there_is_one_per_trainer_and_preset():
    names = {file.stem for file in FILES}
    assert {"baseline_market", "dgnet_market"} <= names
    assert {f"{preset}_{trainer}" for preset in ("demo", "small") for trainer in ("baseline", "dgnet")} <= names


def test_the_study_is_repeated_with_its_own_evaluation():
    """Its commands tested every 50 epochs of 400, re-ranked."""
    files = [file for file in FILES if file.stem.startswith("study_")]
    assert len(files) == 5
    for config in (load_config(ReidTrainConfig, file) for file in files):
        assert (config.schedule.epochs, config.eval_every, config.eval_rerank) == (400, 50, True)
