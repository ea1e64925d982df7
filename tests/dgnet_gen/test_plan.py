import json

import pytest
from click.testing import CliRunner

from dgnet_gen.cli import main
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.plan import plan_training
from dgnet_gen.settings import DGNetTrainConfig, LossWeights
from dgnet_gen.teacher import TeacherError
from dgnet_gen.training import checkpoint_bytes
from reid_models.config import dump_config
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.runtime import Runtime

CONFIG = DGNetTrainConfig(
    networks=NetworksConfig(
        image_hw=(32, 16), trunk="small", trunk_width=2, bottleneck=8, structure_dim=2, n_res=1, mlp_dim=8,
        discriminator_dim=2, discriminator_res=1, num_scales=2,
    ),
    weights=LossWeights(teacher=0.0),
    trunk_weights="none",
    batch_size=4,
    accumulate=2,
    max_iter=7200,
    num_workers=0,
    checkpoint_every=1000,
    keep_every=3000,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan") / "toy"
    make_toy_dataset(root, ids=6, cameras=2, per_camera=3, seed=0, image_hw=(32, 16))
    return DatasetIndex.open(root)


def test_a_plan_counts_what_the_training_will_be(data):
    plan = plan_training(CONFIG, data, Runtime.from_environment("cpu"))
    model = DGNet(CONFIG.networks, 3)
    assert (plan.images, plan.identities, plan.teachers) == (18, 3, 0)
    assert plan.parameters == model.describe()
    assert (plan.images_per_step, plan.steps, plan.steps_per_epoch) == (32, 7200, 2.0)
    # 7000 and 7200, 3000 and 6000, the best, one of the clock, one being written
    assert plan.checkpoints == 2 + 2 + 1 + 1 + 1
    assert plan.checkpoint_mib == pytest.approx(checkpoint_bytes(CONFIG, model) / 2**20)
    assert plan.hours == pytest.approx(2 * plan.step_s)
    assert plan.peak_mib > plan.state_mib > plan.checkpoint_mib


def test_the_command_prints_a_plan_and_writes_nothing(data, tmp_path):
    dump_config(CONFIG, tmp_path / "tiny.yaml")
    arguments = ["train", "--config", tmp_path / "tiny.yaml", "--data", data.root, "--out", tmp_path / "run", "--plan"]
    command = [*map(str, arguments), "--device", "cpu"]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0, told.output
    for text in ("18 pictures of 3 people, at 32x16", "7,200 of 32 pictures, 2.0 per epoch", "hours", "teachers: 0"):
        assert text in told.stdout
    as_json = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert as_json["steps"] == 7200
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_what_the_training_would_refuse_the_plan_refuses(data):
    config = DGNetTrainConfig(networks=CONFIG.networks, trunk_weights="none")
    with pytest.raises(TeacherError, match="no teacher was given"):
        plan_training(config, data, Runtime.from_environment("cpu"))


def test_a_plan_of_a_run_that_goes_on_is_refused(data):
    result = CliRunner().invoke(main, ["train", "--data", str(data.root), "--plan", "--resume"])
    assert (result.exit_code, "give one of them" in result.output) == (2, True)
