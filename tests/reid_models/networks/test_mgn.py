import pytest
import torch
import torch.nn.functional as F

from reid_models.networks.mgn import MGN, parse_granularities
from reid_models.networks.output import ReidOutput
from reid_models.networks.resnet import make_trunk


def tiny_mgn(granularities=(1, 2, 3), trunk=None, **arguments):
    torch.manual_seed(0)
    return MGN(trunk or make_trunk("small", width=2), 5, granularities, **({"head_features": 6} | arguments))


def pictures(count=4, height=96, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    return make_trunk("resnet50")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("neck", ["relu", "bnneck"])
@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
def test_output_has_a_head_for_every_branch_and_every_stripe(training, neck, pool):
    network = tiny_mgn((1, 2, 4), pool=pool, neck=neck).train(training)
    output = network(pictures())
    assert isinstance(output, ReidOutput)
    assert output.embeddings.shape == (4, network.num_features) == (4, 9 * 6)
    assert [logits.shape for logits in output.logits] == 9 * [(4, 5)]
    assert [vectors.shape for vectors in output.metric] == 3 * [(4, 6)]


@pytest.mark.parametrize("neck", ["relu", "bnneck"])
def test_embed_gives_the_embeddings_of_forward_and_classifies_nothing(neck):
    network = tiny_mgn(neck=neck).eval()
    embeddings = network(pictures()).embeddings
    for head in network.heads:
        del head.classifier
    torch.testing.assert_close(network.embed(pictures()), embeddings, rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
@pytest.mark.parametrize("neck", ["relu", "bnneck"])
def test_both_losses_reach_every_parameter(pool, neck):
    network = tiny_mgn(pool=pool, neck=neck).train()
    output = network(pictures(8))
    loss = sum(logits.logsumexp(1).sum() for logits in output.logits) + sum(v.square().sum() for v in output.metric)
    loss.backward()
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert {name for name, value in network.named_parameters() if value.grad is not None} == trained
    fixed = {f"heads.{head}.norm.bias" for head in range(8)} if neck == "bnneck" else set()
    assert {name for name, _ in network.named_parameters()} - trained == fixed


@pytest.mark.parametrize(
    ("granularities", "with_bias", "without"),
    [
        ((1, 2, 3), 70_351_800, 70_345_792),
        ((1, 2, 4), 71_069_607, 71_062_848),
        ((1, 3, 4), 71_787_414, 71_779_904),
        ((1, 2, 3, 4), 94_491_491, 94_481_728),
        ((1, 2), 46_929_916, 46_926_912),
        ((1, 3), 47_647_723, 47_643_968),
    ],
)
def test_parameters_are_as_many_as_published(resnet, granularities, with_bias, without):
    for bias, expected in ((True, with_bias), (False, without)):
        network = MGN(resnet, 751, granularities, classifier_bias=bias)
        assert sum(value.numel() for value in network.parameters()) == expected


def test_the_original_has_the_published_number_of_entries(resnet):
    network = MGN(resnet, 751)
    assert (len(network.state_dict()), len(list(network.parameters())), network.num_features) == (682, 349, 2048)
    names = ["shared.layer3.0.conv1.weight", "branches.1.layer4.0.downsample.0.weight", "heads.4.classifier.bias"]
    assert set(names) <= set(network.state_dict())


def test_heads_start_equal_but_for_their_classifiers():
    torch.manual_seed(0)
    network = MGN(make_trunk("small", width=16), num_ids=200)
    first, *others = network.heads
    for head in others:
        assert torch.equal(head.reduce.weight, first.reduce.weight)
        assert torch.equal(head.norm.weight, first.norm.weight)
        assert not torch.equal(head.classifier.weight, first.classifier.weight)
    # Standard errors: 1/sqrt(2n) of a deviation for n numbers, 32768, 256 and 51200 of them.
    assert first.reduce.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert first.norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert first.norm.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert first.classifier.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert first.norm.bias.abs().max() == first.classifier.bias.abs().max() == 0


def test_branches_start_as_the_trunk_and_share_nothing():
    trunk = make_trunk("small", width=2)
    network = tiny_mgn(trunk=trunk)
    for branch in network.branches:
        for name, value in branch.stage.state_dict().items():
            assert torch.equal(value, trunk.stages[3].state_dict()[name])
    own = [value.data_ptr() for value in (*network.state_dict().values(), *trunk.state_dict().values())]
    assert len(set(own)) == len(own)


@pytest.mark.parametrize("trunk", ["resnet50", "resnet50_ibn_a", "small"])
def test_a_branch_after_the_shared_part_is_the_trunk(trunk):
    for stride in (1, 2):
        whole = make_trunk(trunk, last_stride=stride, width=2).eval()
        network = MGN(whole, 2, (1,), first_stride=stride).eval()
        with torch.inference_mode():
            torch.testing.assert_close(network.branches[0](network.shared(pictures(1))), whole(pictures(1)))


@pytest.mark.parametrize(("first_stride", "heights"), [(2, [6, 12, 12]), (1, [12, 12, 12])])
def test_only_the_first_branch_lowers_the_resolution(first_stride, heights):
    network = tiny_mgn(first_stride=first_stride).eval()
    shared = network.shared(pictures())
    assert [branch(shared).shape[2] for branch in network.branches] == heights


def test_a_stripe_head_sees_its_stripe_only_and_stripes_run_from_top_to_bottom():
    network = tiny_mgn((1, 2, 3)).eval()
    network.shared, network.branches = torch.nn.Identity(), torch.nn.ModuleList(3 * [torch.nn.Identity()])
    seen = {}
    for row in range(12):
        feature_map = torch.zeros(1, 16, 12, 4)
        feature_map[:, :, row] = 1
        flat = network.embed(feature_map) - network.embed(torch.zeros(1, 16, 12, 4))
        seen[row] = [head for head, vector in enumerate(flat.unflatten(1, (8, 6))[0]) if vector.abs().max() > 0]
    assert seen == {row: [0, 1, 2, 3 + row // 6, 5 + row // 4] for row in range(12)}


def test_the_bottleneck_neck_normalises_what_metric_losses_compare():
    network = tiny_mgn(neck="bnneck").eval()
    output = network(pictures())
    assert all(head.classifier.bias is None for head in network.heads)
    head = network.heads[0]
    # Untrained statistics are mean 0 and variance 1.
    scaled = head.norm.weight * output.metric[0] / (1 + head.norm.eps) ** 0.5
    torch.testing.assert_close(output.embeddings[:, :6], scaled)
    torch.testing.assert_close(output.logits[0], F.linear(scaled, head.classifier.weight))


def test_the_original_neck_gives_no_negative_number_and_one_vector_for_both_losses():
    output = tiny_mgn().eval()(pictures())
    assert output.embeddings.min() == 0
    torch.testing.assert_close(torch.cat(output.metric, dim=1), output.embeddings[:, :18], rtol=0, atol=0)


def test_granularities_are_read_as_they_are_written():
    assert parse_granularities("1-2-3") == (1, 2, 3)
    assert parse_granularities("1") == (1,)


@pytest.mark.parametrize("text", ["1-x", "", "1--2", "1,2", "2-3", "1-1", "1-2-0"])
def test_granularities_that_make_no_sense_are_explained(text):
    with pytest.raises(ValueError, match=r"^granularities must be .*such as 1-2-3, got"):
        parse_granularities(text)


@pytest.mark.parametrize("granularities", [(), (2, 3), (1, 1), (1, 2, -4)])
def test_a_network_of_such_granularities_is_refused(granularities):
    with pytest.raises(ValueError, match="granularities must be"):
        tiny_mgn(granularities)


@pytest.mark.parametrize("arguments", [{"pool": "median"}, {"neck": "long"}, {"first_stride": 3}, {"head_features": 0}])
def test_an_argument_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        tiny_mgn(**arguments)
