import pytest
import torch

from dgnet_gen.networks.decoder import Decoder, mix


def small_decoder(**changes):
    torch.manual_seed(0)
    return Decoder(**({"code_length": 8, "channels": 4, "n_upsample": 2, "n_res": 2, "mlp_dim": 5} | changes))


@pytest.mark.parametrize("n_upsample", [1, 2, 3])
def test_every_upsampling_doubles_the_picture(n_upsample):
    picture = small_decoder(channels=8, n_upsample=n_upsample)(torch.rand(2, 8), torch.rand(2, 8, 8, 4))
    assert picture.shape == (2, 3, 8 << n_upsample, 4 << n_upsample)


def test_refuses_a_code_that_cannot_be_cut():
    with pytest.raises(ValueError, match="cannot be cut into 3"):
        small_decoder(n_res=3)


def test_slice_k_of_the_code_drives_block_k_alone():
    decoder = small_decoder().double()
    structure = torch.rand(1, 4, 8, 4, dtype=torch.float64)
    code = torch.rand(1, 8, dtype=torch.float64)
    changed = code.clone()
    changed[:, 4:] += 1
    after_first = []
    handle = decoder.blocks[0].register_forward_hook(lambda block, inputs, output: after_first.append(output))
    pictures = decoder(code, structure), decoder(changed, structure)
    handle.remove()
    torch.testing.assert_close(*after_first)
    assert not torch.allclose(*pictures)


def test_pictures_in_a_batch_do_not_touch_each_other():
    decoder = small_decoder().double()
    codes, structures = torch.rand(3, 8, dtype=torch.float64), torch.rand(3, 4, 8, 4, dtype=torch.float64)
    together = decoder(codes, structures)
    for number in range(3):
        torch.testing.assert_close(
            together[number], decoder(codes[number : number + 1], structures[number : number + 1])[0]
        )


def test_nothing_is_remembered_between_calls():
    decoder = small_decoder()
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    inputs = torch.rand(1, 8), torch.rand(1, 4, 8, 4)
    first = decoder(*inputs)
    decoder(torch.rand(1, 8), torch.rand(1, 4, 8, 4))
    assert torch.equal(decoder(*inputs), first)
    assert all(torch.equal(value, state[name]) for name, value in decoder.state_dict().items())


def test_mix_pairs_every_structure_with_every_appearance():
    appearance, structure = mix(torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([1.0, 2.0])[:, None, None, None])
    assert list(zip(structure.flatten().tolist(), appearance.flatten().tolist(), strict=True)) == [
        (1, 10), (1, 20), (1, 30), (2, 10), (2, 20), (2, 30)
    ]  # fmt: skip
