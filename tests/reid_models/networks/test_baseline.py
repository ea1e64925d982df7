import pytest
import torch

from reid_models.networks.baseline import Baseline
from reid_models.networks.output import ReidOutput
from reid_models.networks.resnet import make_trunk


def tiny_baseline(**arguments):
    torch.manual_seed(0)
    return Baseline(make_trunk("small", width=4), num_ids=5, bottleneck=16, **arguments)


@pytest.mark.parametrize("training", [True, False])
def test_training_and_evaluation_return_the_same_type_and_shapes(training):
    output = tiny_baseline().train(training)(torch.randn(2, 3, 32, 16))
    assert isinstance(output, ReidOutput)
    (logits,), (metric,) = output.logits, output.metric
    assert (logits.shape, output.embeddings.shape, metric is output.embeddings) == ((2, 5), (2, 16), True)


def test_embed_gives_the_embeddings_of_forward_and_needs_no_classifier():
    network, images = tiny_baseline().eval(), torch.randn(2, 3, 32, 16)
    embeddings = network(images).embeddings
    del network.classifier
    torch.testing.assert_close(network.embed(images), embeddings, rtol=0, atol=0)


def test_one_picture_can_be_evaluated():
    with torch.inference_mode():
        assert tiny_baseline().eval()(torch.randn(1, 3, 32, 16)).embeddings.shape == (1, 16)


def test_dropout_acts_on_the_logits_and_never_on_the_embeddings():
    network = tiny_baseline(dropout=0.9).train()
    images = torch.randn(4, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    first, second = network(images), network(images)
    torch.testing.assert_close(first.embeddings, second.embeddings)
    assert not torch.equal(first.logits[0], second.logits[0])


def test_the_full_size_head_has_the_published_number_of_parameters():
    network = Baseline(make_trunk("resnet50"), num_ids=751)
    head = sum(value.numel() for name, value in network.named_parameters() if not name.startswith("trunk."))
    assert head == (2048 * 512 + 512) + 2 * 512 + (512 * 751 + 751)


def test_untrained_logits_hardly_prefer_anybody():
    (logits,) = tiny_baseline().eval()(torch.randn(4, 3, 32, 16)).logits
    assert logits.abs().max() < 0.1
