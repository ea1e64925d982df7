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


@pytest.mark.parametrize("blocks", ["basic", "series", "parallel"])
def test_every_kind_of_block_has_the_same_weights_and_paints_another_picture(blocks):
    decoder, basic = small_decoder(blocks=blocks), small_decoder()
    decoder.load_state_dict(basic.state_dict())
    inputs = torch.rand(1, 8), torch.rand(1, 4, 8, 4)
    assert torch.equal(decoder(*inputs), basic(*inputs)) == (blocks == "basic")


def test_attention_comes_after_the_blocks_and_starts_without_effect():
    decoder, plain = small_decoder(attention=True), small_decoder()
    left_over = decoder.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in left_over} == {"attention"}
    inputs = torch.rand(1, 8), torch.rand(1, 4, 8, 4)
    assert torch.equal(decoder(*inputs), plain(*inputs))
    torch.nn.init.ones_(decoder.attention.gamma)
    seen = []
    decoder.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    decoder.attention.register_forward_hook(lambda part, inputs, output: seen.append(inputs[0]))
    assert not torch.allclose(decoder(*inputs), plain(*inputs))
    assert torch.equal(*seen)


def test_dropout_acts_on_the_structure_in_training_alone():
    decoder, plain = small_decoder(dropout=0.5), small_decoder()
    inputs = torch.rand(1, 8), torch.rand(1, 4, 8, 4)
    assert torch.equal(decoder.eval()(*inputs), plain(*inputs))
    seen = []
    decoder.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(inputs[0]))
    decoder.train()(*inputs)
    dropped = seen[0] == 0
    assert 0 < dropped.sum() < dropped.numel()
    torch.testing.assert_close(seen[0][~dropped], 2 * inputs[1][~dropped])


def test_a_normalised_mlp_forgets_the_scale_of_its_hidden_layer():
    decoder = small_decoder(mlp_norm="instance", activation="relu").double()
    part = torch.rand(2, 4, dtype=torch.float64)
    first, hidden, second, _, last = decoder.scales[0]
    x = first(part)
    for layer in (second, last):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = layer(x.clamp(min=0))
    torch.testing.assert_close(decoder.scales[0](part), x)
    assert not list(hidden.parameters())


def test_prelu_is_learned_in_every_unit_and_mlp():
    names = small_decoder(activation="prelu").state_dict()
    assert {name.rsplit(".activation", 1)[0] for name in names if "activation" in name} == {
        *(f"{kind}.{k}.{hidden}" for kind in ("scales", "shifts") for k in (0, 1) for hidden in (1, 3)),
        "blocks.0.first", "blocks.1.first", "upsampled.0", "upsampled.1", "finish.0", "finish.1",
    }  # fmt: skip


@pytest.mark.parametrize("padding", ["replicate", "zero"])
def test_padding_changes_the_edge_of_the_picture(padding):
    torch.manual_seed(1)
    inputs = torch.rand(1, 8), torch.rand(1, 4, 8, 4)
    assert not torch.allclose(small_decoder(padding=padding)(*inputs), small_decoder()(*inputs))
