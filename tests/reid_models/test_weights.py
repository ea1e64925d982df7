from urllib.error import URLError

import pytest
import torch
import torchvision

from reid_models.networks.resnet import make_trunk
from reid_models.weights import WeightsError, load_trunk_weights


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return make_trunk("small", width=4)


def file_of(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_a_file_fills_the_trunk_and_its_classifier_is_left_out(tmp_path, trunk):
    torch.manual_seed(1)
    other = make_trunk("small", width=4).state_dict()
    load_trunk_weights(
        trunk, file_of(tmp_path, other | {"fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)})
    )
    for name, value in trunk.state_dict().items():
        torch.testing.assert_close(value, other[name])


def test_an_old_file_without_batch_counters_fits(tmp_path, trunk):
    state = {name: value for name, value in trunk.state_dict().items() if "num_batches" not in name}
    load_trunk_weights(trunk, file_of(tmp_path, state))


def test_torchvisions_file_fits_the_trunk(tmp_path):
    resnet = torchvision.models.resnet50().state_dict()
    trunk = make_trunk("resnet50")
    load_trunk_weights(trunk, file_of(tmp_path, resnet))
    assert all(torch.equal(value, resnet[name]) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize("name", ["resnet50", "resnet50_ibn_a"])
def test_a_wrapped_file_fits_its_trunk_and_no_other(tmp_path, caplog, name):
    made, trunk = make_trunk(name).state_dict(), make_trunk(name)
    wrapped = {f"module.{key}": value for key, value in made.items()} | {"module.fc.weight": torch.zeros(1000, 2048)}
    file = file_of(tmp_path, {"state_dict": wrapped, "epoch": 100})
    load_trunk_weights(trunk, file)
    assert all(torch.equal(value, made[key]) for key, value in trunk.state_dict().items())
    assert "every name begins with module." in caplog.text
    assert "taken from the entry state_dict" in caplog.text
    other = make_trunk("resnet50" if name == "resnet50_ibn_a" else "resnet50_ibn_a")
    with pytest.raises(WeightsError, match=r"missing \(layer1.0.bn1"):
        load_trunk_weights(other, file)


def test_none_keeps_the_random_weights(trunk):
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    load_trunk_weights(trunk, "none")
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("stem.0.weight"), "1 missing .stem.0.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 left over .extra"),
        (
            lambda state: state.update({"stem.0.weight": torch.zeros(3, 3)}),
            "1 reshaped .stem.0.weight .3, 3., not .4, 3, 3, 3.",
        ),
    ],
    ids=["missing", "left-over", "misfit"],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, trunk, change, message):
    state = dict(make_trunk("small", width=4).state_dict())
    change(state)
    before = trunk.stages[0].body[0].weight.clone()
    with pytest.raises(WeightsError, match=message):
        load_trunk_weights(trunk, file_of(tmp_path, state))
    assert torch.equal(trunk.stages[0].body[0].weight, before)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such weight file"), (b"PK\x03\x04", "damaged or no weight")]
)
def test_a_missing_or_broken_file_is_one_line(tmp_path, trunk, content, message):
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_trunk_weights(trunk, str(file))
    assert "\n" not in str(caught.value)


def test_imagenet_weights_are_for_the_resnet_alone(trunk):
    with pytest.raises(WeightsError, match="for trunk resnet50"):
        load_trunk_weights(trunk, "imagenet")


def test_a_damaged_file_in_the_cache_is_recognised_by_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="does not begin with 0676ba61"):
        load_trunk_weights(make_trunk("resnet50"), "imagenet")


def test_imagenet_weights_that_cannot_be_fetched_are_one_line_with_a_way_out(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(WeightsError, match=r"no route to host.*none for random weights") as caught:
        load_trunk_weights(make_trunk("resnet50"), "imagenet")
    assert "\n" not in str(caught.value)
