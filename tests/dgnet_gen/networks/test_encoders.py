import pytest
import torch

from dgnet_gen.networks.encoders import AppearanceEncoder, StructureEncoder
from reid_models.networks.resnet import make_trunk


def small_encoder(stripes=4, dropouts=(0.5, 0.75), **changes):
    torch.manual_seed(0)
    trunk = make_trunk("small", width=2)
    return AppearanceEncoder(trunk, 5, stripes=stripes, bottleneck=6, dropouts=dropouts, **changes)


@pytest.mark.parametrize(("dim", "n_downsample"), [(2, 1), (2, 2), (3, 3)])
def test_structure_code_has_the_promised_shape(dim, n_downsample):
    encoder = StructureEncoder(dim, n_downsample, n_res=1)
    code = encoder(torch.rand(2, 1, 64, 32))
    assert encoder.out_channels == dim * 2 ** (n_downsample + 1)
    assert code.shape == (2, encoder.out_channels, 64 >> n_downsample, 32 >> n_downsample)


def test_structure_does_not_see_how_bright_a_picture_is():
    torch.manual_seed(0)
    encoder = StructureEncoder(2, 2, 1).double()
    gray = torch.rand(1, 1, 32, 16, dtype=torch.float64)
    # the first norm takes the brightness out; its eps (1e-5) leaves a trace of the contrast
    torch.testing.assert_close(encoder(3 * gray + 2), encoder(gray), rtol=1e-3, atol=1e-3)


def test_structure_encoder_refuses_no_halving():
    with pytest.raises(ValueError, match="n_downsample"):
        StructureEncoder(4, 0)


def test_appearance_code_interleaves_channels_and_stripes():
    encoder = small_encoder(stripes=4).eval()
    images = torch.rand(2, 3, 64, 32)
    feature_map = encoder.trunk(images)  # (2, 16, 8, 4)
    code = encoder(images).code
    assert code.shape == (2, encoder.code_length) == (2, 4 * 16)
    for channel, stripe in [(0, 0), (0, 3), (7, 2), (15, 3)]:
        expected = feature_map[:, channel, 2 * stripe : 2 * stripe + 2].flatten(1).amax(1)
        torch.testing.assert_close(code[:, 4 * channel + stripe], expected)


def test_appearance_code_carries_no_gradient_but_the_logits_do():
    output = small_encoder()(torch.rand(4, 3, 32, 16))
    assert not output.code.requires_grad
    assert output.primary.requires_grad
    assert output.fine.requires_grad


def test_both_heads_read_the_same_features_with_their_own_weights():
    output = small_encoder().eval()(torch.rand(3, 3, 32, 16))
    assert output.primary.shape == output.fine.shape == (3, 5)
    assert output.embeddings.shape == (3, 12)
    assert not torch.equal(*output.embeddings.chunk(2, dim=1))


def test_output_is_of_one_type_in_training_and_evaluation():
    encoder = small_encoder()
    images = torch.rand(3, 3, 32, 16)
    assert type(encoder.train()(images)) is type(encoder.eval()(images))


def test_average_pooling_means_every_stripe_and_the_whole():
    encoder = small_encoder(pool="avg").eval()
    images = torch.rand(2, 3, 64, 32)
    feature_map = encoder.trunk(images)  # (2, 16, 8, 4)
    output = encoder(images)
    expected = feature_map.view(2, 16, 4, 2, 4).mean((3, 4))  # channels by stripes
    torch.testing.assert_close(output.code, expected.flatten(1))
    embedding, logits = encoder.primary(feature_map.mean((2, 3)))
    torch.testing.assert_close(output.primary, logits)
    torch.testing.assert_close(output.embeddings[:, :6], embedding)


def test_one_head_has_the_primary_logits_alone_and_a_code_with_a_graph():
    encoder, both = small_encoder(heads="one"), small_encoder()
    left_over = encoder.load_state_dict(both.state_dict(), strict=False).unexpected_keys
    assert {name.split(".")[0] for name in left_over} == {"fine"}
    images = torch.rand(3, 3, 32, 16)
    output, expected = encoder.eval()(images), both.eval()(images)
    assert torch.equal(output.fine, output.primary)
    torch.testing.assert_close(output.primary, expected.primary)
    torch.testing.assert_close(output.embeddings, expected.embeddings[:, :6])
    torch.testing.assert_close(output.code, expected.code)
    assert output.code.requires_grad


def test_a_normalised_code_has_length_one_and_the_same_direction():
    images = torch.rand(3, 3, 32, 16)
    code = small_encoder(heads="one", normalise_code=True).eval()(images).code
    plain = small_encoder(heads="one").eval()(images).code
    torch.testing.assert_close(code.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(code, torch.nn.functional.normalize(plain))


@pytest.mark.parametrize(("rows", "factor"), [(64, 2), (128, 2), (144, 1)])
def test_pictures_of_up_to_128_rows_are_seen_at_twice_their_size(rows, factor):
    images = torch.rand(1, 3, rows, 16)
    larger = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    found = small_encoder(enlarge_small=True).eval()(images)
    torch.testing.assert_close(found.code, small_encoder().eval()(larger).code)


def test_tanh_bounds_the_structure_code():
    torch.manual_seed(0)
    bounded = StructureEncoder(2, 2, 1, tanh=True)
    plain = StructureEncoder(2, 2, 1)
    plain.load_state_dict(bounded.state_dict())
    gray = torch.rand(1, 1, 32, 16)
    torch.testing.assert_close(bounded(gray), plain(gray).tanh())
    assert plain(gray).abs().max() > 1


@pytest.mark.parametrize("padding", ["replicate", "zero"])
def test_the_structure_encoder_pads_as_it_is_told(padding):
    torch.manual_seed(0)
    reflecting = StructureEncoder(2, 1, 1)
    other = StructureEncoder(2, 1, 1, padding=padding)
    other.load_state_dict(reflecting.state_dict())
    gray = torch.rand(1, 1, 32, 16)
    assert not torch.allclose(other(gray), reflecting(gray))


def test_only_units_with_an_activation_learn_one():
    names = StructureEncoder(2, 1, 1, activation="prelu").state_dict()
    assert [name.removesuffix(".activation.weight") for name in names if "activation" in name] == [
        "stem.0", "stem.1", "blocks.0.first", *(f"pyramid.dilated.{k}.0" for k in range(3))
    ]  # fmt: skip
