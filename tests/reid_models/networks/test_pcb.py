import pytest
import torch

from reid_models.networks.output import ReidOutput
from reid_models.networks.pcb import PCB
from reid_models.networks.resnet import make_trunk


def tiny_pcb(**arguments):
    torch.manual_seed(0)
    return PCB(make_trunk("small", width=2), num_ids=5, **({"num_stripes": 3, "head_features": 6} | arguments))


def pictures(count=4):
    return torch.randn(count, 3, 96, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
def test_output_has_logits_for_every_stripe(training):
    network = tiny_pcb().train(training)
    output = network(pictures())
    assert isinstance(output, ReidOutput)
    assert output.embeddings.shape == (4, network.num_features) == (4, 3 * 16)
    assert ([logits.shape for logits in output.logits], output.metric) == (3 * [(4, 5)], ())


def test_the_embedding_has_unit_length_and_stripes_that_count_the_same():
    network = tiny_pcb().eval()
    embeddings = network.embed(pictures())
    stripes = embeddings.unflatten(1, (3, 16))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(stripes.norm(dim=2), torch.full((4, 3), 3**-0.5))
    middle = network.trunk(pictures())[:, :, 4:8].mean((2, 3))
    torch.testing.assert_close(stripes[:, 1], torch.nn.functional.normalize(middle) / 3**0.5)


def test_embed_gives_the_embeddings_of_forward_and_needs_no_head():
    network = tiny_pcb().eval()
    embeddings = network(pictures()).embeddings
    del network.heads
    torch.testing.assert_close(network.embed(pictures()), embeddings, rtol=0, atol=0)


def test_a_head_sees_its_stripe_only():
    network = tiny_pcb().eval()
    network.trunk = torch.nn.Identity()
    empty, top = torch.zeros(1, 16, 12, 4), torch.zeros(1, 16, 12, 4)
    top[:, :, :4] = 1
    same = [torch.equal(a, b) for a, b in zip(network(empty).logits, network(top).logits, strict=True)]
    assert same == [False, True, True]


def test_dropout_acts_on_the_logits_and_never_on_the_embeddings():
    network = tiny_pcb(dropout=0.9).train()
    first, second = network(pictures()), network(pictures())
    torch.testing.assert_close(first.embeddings, second.embeddings)
    assert not torch.equal(first.logits[0], second.logits[0])


def test_heads_of_the_full_size_have_the_published_number_of_parameters():
    network = PCB(make_trunk("resnet50"), num_ids=751)
    heads = sum(value.numel() for value in network.heads.parameters())
    assert heads == 6 * ((2048 * 256 + 256) + 2 * 256 + (256 * 751 + 751))
    assert network.num_features == 6 * 2048
    assert {"trunk.conv1.weight", "heads.5.reduce.bias", "heads.0.norm.running_var"} <= set(network.state_dict())


def test_the_identity_losses_reach_every_parameter():
    network = tiny_pcb().train()
    sum(logits.logsumexp(1).sum() for logits in network(pictures(8)).logits).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("arguments", [{"num_stripes": 0}, {"head_features": 0}])
def test_a_size_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        tiny_pcb(**arguments)
