from pathlib import Path

import pytest

from pipelines.road import Road, ToyWorld, demo_road, walk

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "teacher.schedule.epochs=2", "teacher.schedule.warmup_epochs=0", "teacher.sampler.ids_per_batch=2",
    "teacher.network.width=4", "teacher.eval_every=2", "teacher.network.bottleneck=16", "dgnet.max_iter=4",
    "dgnet.batch_size=2", "dgnet.networks.structure_dim=4", "dgnet.networks.trunk_width=4", "dgnet.networks.mlp_dim=8",
    "dgnet.networks.discriminator_dim=4", "dgnet.sample_every=2", "dgnet.checkpoint_every=2", "dgnet.log_every=1",
    "dgnet.weights.teacher=2", "dgnet.weights.warm_teacher_iter=0", "dgnet.weights.warm_scale=0.5",
)  # fmt: skip


def tiny_road(out: Path, **changes) -> Road:
    """The demo's road at the smallest size."""
    toy = ToyWorld(ids=12, cameras=2, per_camera=3, image_hw=(64, 32))
    return demo_road(out, CONFIGS, toy, overrides=TINY, device="cpu", **changes)


@pytest.fixture(scope="session")
def make_tiny_road():
    return tiny_road


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """What `--set` takes to walk the smallest road."""
    return TINY


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """A finished walk of the smallest road; not to be written to."""
    road = tiny_road(tmp_path_factory.mktemp("road") / "demo")
    walk(road)
    return road
