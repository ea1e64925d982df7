import pytest
import torch

from dgnet_gen.networks.decoder import Decoder, mix
from dgnet_gen.networks.painting import paint, prepare, ready, styles

OPTIONS = [
    {}, {"blocks": "series"}, {"blocks": "parallel"}, {"attention": True}, {"mlp_norm": "instance"}, {"n_res": 1},
    {"n_upsample": 1}, {"n_upsample": 3}, {"dropout": 0.5}, {"padding": "replicate"}, {"padding": "zero"},
    {"activation": "relu"}, {"activation": "prelu"}, {"activation": "selu"}, {"activation": "tanh"},
]  # fmt: skip


def decoder_of(options):
    torch.manual_seed(0)
    decoder = Decoder(16, 8, **{"n_res": 4, "mlp_dim": 8} | options).eval()
    if decoder.attention is not None:
        torch.nn.init.ones_(decoder.attention.gamma)
    return decoder


@torch.no_grad()
def painted_one_by_one(decoder, painter, appearance, structure):
    worn, ground = styles(decoder, appearance), prepare(decoder, structure)
    return torch.cat(
        [
            paint(painter, worn[column : column + 1], ground.pick(torch.tensor([row])))
            for row in range(len(structure))
            for column in range(len(appearance))
        ]
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_painting_in_parts_is_what_the_decoder_does_in_one(options):
    decoder = decoder_of(options).double()
    appearance, structure = torch.randn(3, 16).double(), torch.randn(2, 8, 8, 4).double()
    painter = ready(decoder, torch.float64)
    with torch.no_grad():
        expected = decoder(*mix(appearance, structure))
        worn, ground = styles(decoder, appearance), prepare(decoder, structure)
        together = paint(painter, worn.repeat(2, 1, 1, 1), ground.pick(torch.tensor([0, 0, 0, 1, 1, 1])))
    assert (ground.normalised is None) == ("blocks" in options)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(painted_one_by_one(decoder, painter, appearance, structure), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sixteen_bits_paint_nearly_the_same(options):
    decoder = decoder_of(options)
    appearance, structure = torch.randn(3, 16), torch.randn(2, 8, 8, 4)
    found = painted_one_by_one(decoder, ready(decoder, torch.bfloat16), appearance, structure)
    with torch.no_grad():
        expected = decoder(*mix(appearance, structure))
    assert found.dtype == torch.bfloat16
    # 8 bits a number, a dozen roundings one after the other; in series a norm enlarges those of what is not normed yet
    assert (found - expected).norm() < (0.15 if options == {"blocks": "series"} else 0.06) * expected.norm()


def test_a_decoder_made_ready_leaves_the_one_it_is_made_of_alone():
    decoder = decoder_of({})
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    ready(decoder, torch.bfloat16)
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())
    assert all(value.requires_grad and value.dtype == torch.float32 for value in decoder.parameters())
    assert all(unit.kernels is None for unit in decoder.upsampled)
