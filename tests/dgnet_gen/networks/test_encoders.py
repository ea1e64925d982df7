import pytest
import torch

from dgnet_gen.networks.encoders import AppearanceEncoder, StructureEncoder
from reid_models.networks.resnet import make_trunk


def small_encoder(stripes=4, dropouts=(0.5, 0.75)):
    torch.manual_seed(0)
    return AppearanceEncoder(make_trunk("small", width=2), 5, stripes=stripes, bottleneck=6, dropouts=dropouts)


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
