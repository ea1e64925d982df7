from pathlib import Path

import pytest

from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig, TeacherConfig
from reid_models.config import ConfigError, load_config

CONFIGS = Path(__file__).parents[2] / "configs"

# The published settings for Market-1501, by their names there; the first values of the ramps are 0.
PUBLISHED = {
    "B_w": 0.2, "batch_size": 8, "beta1": 0, "beta2": 0.999, "crop_image_height": 256, "crop_image_width": 128,
    "dis.LAMBDA": 0.01, "dis.dim": 32, "dis.gan_type": "lsgan", "dis.n_layer": 2, "dis.n_res": 4, "dis.num_scales": 3,
    "erasing_p": 0.5, "gamma": 0.1, "gamma2": 0.1, "gan_w": 1, "gen.dim": 16, "gen.mlp_dim": 512,
    "gen.n_downsample": 2, "gen.n_res": 4, "ID_stride": 1, "id_w": 1, "image_save_iter": 5000, "lr2": 0.002,
    "lr_d": 1e-4, "lr_g": 1e-4, "lr_policy": "multistep", "max_cyc_w": 2, "max_iter": 100_000, "max_teacher_w": 2,
    "max_w": 1, "pid_w": 1, "recon_id_w": 0.5, "recon_x_w": 5, "recon_xp_w": 5, "snapshot_save_iter": 10_000,
    "step_size": 60_000, "T_w": 1, "teacher_style": 0, "train_bn": True, "use_encoder_again": 0.5,
    "warm_iter": 30_000, "warm_teacher_iter": 30_000, "warm_scale": 0.0005, "weight_decay": 0.0005,
}  # fmt: skip


def as_published(config):
    """Our settings by the published names."""
    networks, weights, optim = config.networks, config.weights, config.optim
    assert weights.recon_appearance == weights.recon_structure
    return {
        "B_w": weights.fine, "batch_size": config.batch_size, "beta1": optim.beta1, "beta2": optim.beta2,
        "crop_image_height": networks.image_hw[0], "crop_image_width": networks.image_hw[1],
        "dis.LAMBDA": weights.gradient_penalty, "dis.dim": networks.discriminator_dim, "dis.gan_type": config.gan,
        "dis.n_layer": networks.discriminator_layers, "dis.n_res": networks.discriminator_res,
        "dis.num_scales": networks.num_scales, "erasing_p": config.erasing, "gamma": optim.gamma,
        "gamma2": optim.gamma_appearance, "gan_w": weights.adversarial, "gen.dim": networks.structure_dim,
        "gen.mlp_dim": networks.mlp_dim, "gen.n_downsample": networks.n_downsample, "gen.n_res": networks.n_res,
        "ID_stride": networks.last_stride, "id_w": weights.identity, "image_save_iter": config.sample_every,
        "lr2": optim.lr_appearance, "lr_d": optim.lr_discriminator, "lr_g": optim.lr_generator,
        "lr_policy": optim.policy, "max_cyc_w": weights.cycle, "max_iter": config.max_iter,
        "max_teacher_w": weights.teacher, "max_w": weights.recon_structure, "pid_w": weights.identity_positive,
        "recon_id_w": weights.recon_identity, "recon_x_w": weights.recon_self, "recon_xp_w": weights.recon_same_id,
        "snapshot_save_iter": config.checkpoint_every, "step_size": optim.step_size, "T_w": weights.primary,
        "teacher_style": config.teacher.style, "train_bn": config.train_bn, "use_encoder_again": config.encoder_again,
        "warm_iter": weights.warm_iter, "warm_teacher_iter": weights.warm_teacher_iter,
        "warm_scale": weights.warm_scale, "weight_decay": optim.weight_decay,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [("market", {}), ("duke", {}), ("cuhk03np", {}), ("msmt17", {"max_iter": 150_000})],
)
def test_the_settings_are_the_published_ones(name, changes):
    config = load_config(DGNetTrainConfig, CONFIGS / f"dgnet_{name}.yaml")
    assert as_published(config) == PUBLISHED | changes
    assert (config.optim.head_lr_factor, config.optim.momentum, config.accumulate, config.ema_decay) == (10, 0.9, 1, 0)
    assert (config.pad_px, config.flip, config.precision, config.teacher.dropout) == (10, 0.5, "fp32", True)


def test_market_writes_every_default_out():
    given = load_config(DGNetTrainConfig, CONFIGS / "dgnet_market.yaml")
    assert given == load_config(DGNetTrainConfig, overrides=["num_workers=8"])
    text = (CONFIGS / "dgnet_market.yaml").read_text()
    for part in (LossWeights(), OptimConfig(), TeacherConfig()):
        assert all(f"  {name}:" in text for name in vars(part))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.style=5", "teacher.style: no style 5; choose 0 what the teachers say; 1 "),
        ("teacher.decay=-1", "teacher.decay: must be 0 or more, got -1"),
        ("gan=wgan", "gan"),
        ("optim.policy=cosine", "optim.policy"),
        ("optim.gamma=-1", "optim.gamma: must be 0 or more"),
        ("weights.warm_scale=-1", "weights.warm_scale: must be 0 or more"),
        ("keep_every=-1", "keep_every: must be 0 or more"),
        ("weights.teacher_w=2", "did you mean weights.teacher?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(DGNetTrainConfig, overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
