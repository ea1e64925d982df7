import pytest
import torch

from dgnet_gen.networks.decoder import Decoder, mix
from dgnet_gen.networks.painting import paint, prepare, styles


@pytest.mark.parametrize(
    "options",
    [{}, {"blocks": "series"}, {"blocks": "parallel"}, {"attention": True}, {"mlp_norm": "instance"}, {"n_res": 1}],
    ids=str,
)
def test_painting_in_parts_is_what_the_decoder_does_in_one(options):
    torch.manual_seed(0)
    decoder = Decoder(16, 8, **{"n_res": 4, "mlp_dim": 8} | options).double().eval()
    if decoder.attention is not None:
        torch.nn.init.ones_(decoder.attention.gamma)
    appearance, structure = torch.randn(3, 16).double(), torch.randn(2, 8, 8, 4).double()
    with torch.no_grad():
        worn, ground = styles(decoder, appearance), prepare(decoder, structure)
        rows = torch.tensor([0, 0, 0, 1, 1, 1])
        made = paint(decoder, worn.repeat(2, 1, 1, 1), ground.pick(rows))
        torch.testing.assert_close(made, decoder(*mix(appearance, structure)))
    assert (ground.normalised is None) == ("blocks" in options)
