import dataclasses

import pytest
import torch

from dgnet_gen.model import NETWORK_NAMES, Codes, DGNet, NetworksConfig
from reid_models.config import ConfigError, config_dict, load_config
from reid_models.runs import Checkpoint, CheckpointError, RunDir

TINY = NetworksConfig(
    image_hw=(32, 16),
    trunk="small",
    trunk_width=2,
    bottleneck=6,
    structure_dim=2,
    n_res=1,
    mlp_dim=8,
    discriminator_dim=2,
    discriminator_res=1,
    num_scales=2,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run needs to hold for its networks to be built again."""

    networks: NetworksConfig = TINY


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return DGNet(TINY, num_ids=5).eval()


def tiny_images(count, seed=0):
    return torch.randn(count, 3, *TINY.image_hw, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at iterations 10 and 20."""
    run = RunDir.create(tmp_path / "run", Settings(), kind="dgnet", made_by={"num_ids": 5})
    for iteration in (10, 20):
        states = {name: network.state_dict() for name, network in tiny_model(iteration).networks().items()}
        run.save(Checkpoint("dgnet", iteration, config_dict(Settings()), states, made_by={"num_ids": 5}))
    return run


def test_codes_and_pictures_have_the_promised_shapes():
    model, images = tiny_model(), tiny_images(3)
    codes = model.encode(images)
    assert codes.appearance.shape == (3, 4 * 16)
    assert codes.structure.shape == (3, 16, 8, 4)
    assert model.decode(codes).shape == images.shape


def test_swapping_a_person_with_itself_changes_nothing():
    model = tiny_model()
    codes = model.encode(tiny_images(2))
    twice = Codes(codes.appearance[[0, 0]], codes.structure[[0, 0]])
    first, second = model.decode(twice)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, model.decode(codes)[0])


def test_swapped_pictures_depend_on_both_codes():
    model = tiny_model()
    codes = model.encode(tiny_images(2))
    pictures = [model.decode(Codes(codes.appearance[[a]], codes.structure[[s]])) for a in (0, 1) for s in (0, 1)]
    assert all(not torch.allclose(pictures[i], pictures[j], atol=1e-3) for i in range(4) for j in range(4) if i != j)


def test_encoding_and_decoding_keep_no_graph():
    model = tiny_model()
    codes = model.encode(tiny_images(1))
    assert not any(tensor.requires_grad for tensor in (*codes, model.decode(codes)))


def test_a_mirrored_picture_has_the_same_vector_to_rank_by_and_each_head_length_one():
    model, images = tiny_model(), tiny_images(3)
    vectors = model.reid_features(images)
    assert vectors.shape == (3, 2 * TINY.bottleneck)
    torch.testing.assert_close(model.reid_features(images.flip(3)), vectors)
    torch.testing.assert_close(vectors.unflatten(1, (2, -1)).norm(dim=2), torch.ones(3, 2))


def test_a_loaded_model_makes_the_pictures_of_the_saved_one(run):
    images = tiny_images(2)
    for which, iteration in (("last", 20), (20, 20), (10, 10)):
        model = DGNet.load(run.path, which, device="cpu")
        assert model.iteration == iteration
        saved = tiny_model(iteration)
        torch.testing.assert_close(model.decode(model.encode(images)), saved.decode(saved.encode(images)))
        assert not any(network.training for network in model.networks().values())


def test_checkpoints_are_told_apart(run):
    ids = {DGNet.load(run.path, which, device="cpu").checkpoint_id for which in (10, 20)}
    assert len(ids) == 2


def test_load_names_the_iterations_there_are(run):
    with pytest.raises(CheckpointError, match=r"10, 20"):
        DGNet.load(run.path, 15, device="cpu")


def test_load_refuses_a_checkpoint_cut_in_half(run):
    file = run.checkpoint_file(20)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"00000020\.pt: damaged"):
        DGNet.load(run.path, device="cpu")
    assert DGNet.load(run.path, 10, device="cpu").iteration == 10


def test_load_refuses_a_run_of_another_kind(tmp_path):
    RunDir.create(tmp_path / "teacher", Settings(), kind="reid", made_by={})
    with pytest.raises(CheckpointError, match="is a 'reid' run, expected a 'dgnet' run"):
        DGNet.load(tmp_path / "teacher", device="cpu")


def test_weights_of_other_widths_are_refused_by_network():
    other = DGNet(dataclasses.replace(TINY, mlp_dim=9), num_ids=5)
    states = {name: network.state_dict() for name, network in other.networks().items()}
    with pytest.raises(CheckpointError, match="somewhere: the decoder network does not fit") as caught:
        tiny_model().load_networks(states, source="somewhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_missing_network_is_named(name):
    states = {other: network.state_dict() for other, network in tiny_model().networks().items() if other != name}
    with pytest.raises(CheckpointError, match=f"holds no {name} network"):
        tiny_model().load_networks(states, source="somewhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("networks.image_hw=[30,16]", "networks.image_hw: 30 x 16 must be multiples of 4"),
        ("networks.image_hw=[8,8]", "at least 16"),
        ("networks.image_hw=[1000000,64]", "networks.image_hw: 1000000 x 64 must be at most 10000 each way"),
        ("networks.structure_dim=0", "networks.structure_dim: must be at least 1"),
        ("networks.n_res=3", "networks.n_res: the appearance code of 64 cannot be cut into 3"),
        ("networks.mlp_dims=4", "did you mean networks.mlp_dim"),
        ("networks.trunk=vgg", "networks.trunk"),
        ("networks.activation=gelu", "networks.activation"),
        ("networks.last_stride=3", "networks.last_stride: must be 1 or 2, got 3"),
        ("networks.structure_dropout=1", "networks.structure_dropout: must be at least 0 and below 1"),
        ("networks.discriminator_attention=3", "networks.discriminator_attention: must be 0, 1 or 2, got 3"),
        ("networks.discriminator_attention=-1", "networks.discriminator_attention: must be at least 0"),
        ("networks.normalise_code=true", "networks.normalise_code: has a meaning for networks.heads=one alone"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Settings, overrides=[override])
