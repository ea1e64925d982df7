import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pytorch_fid import inception

from reid_eval import extractors
from reid_eval.extractors import ExtractorError, InceptionExtractor, RandomExtractor, extractor_from_name
from reid_eval.inception import tensor_shapes
from reid_eval.resizing import resized
from reid_eval.weights import WeightFileError

DATA = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())


def noise(count: int, seed: int = 0, height: int = 16, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (count, 1, 1, 3))
    return (base + rng.integers(0, 56, (count, height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def inception_state():
    """Random weights in the published format, scaled so that signals neither die nor explode on the way."""
    generator = torch.Generator().manual_seed(0)
    state = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif name.endswith(("bn.bias", "running_mean")):
            state[name] = torch.randn(value.shape, generator=generator) * 0.1
    return dict(state)


@pytest.fixture(scope="module")
def inception_file(inception_state, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "random_inception.pth"
    torch.save(inception_state, file)
    return file


def test_the_published_file_has_these_tensors(inception_state):
    assert {name: tuple(value.shape) for name, value in inception_state.items()} == tensor_shapes()
    assert len(inception_state) == 566


def test_inception_gives_pytorch_fids_features(inception_state, inception_file, monkeypatch):
    extractor = InceptionExtractor(inception_file, device="cpu", any_weights=True)
    pictures = [*noise(2), *noise(1, height=30, width=20)]
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: inception_state)
    theirs = inception.InceptionV3([3]).eval()
    with torch.inference_mode():
        images = [torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 for pixels in pictures]
        expected = torch.cat([theirs(image)[0].flatten(1) for image in images]).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    # Folded batch norms and batches of another size round differently.
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    half = InceptionExtractor(inception_file, device="cpu", any_weights=True, half=True)
    assert 0 < np.abs(half(pictures) - expected).max() / np.abs(expected).max() < 0.02
    assert "bfloat16" in half.description


def test_weights_that_are_not_the_published_ones_say_so(inception_file):
    with pytest.raises(WeightFileError, match=r"SHA-256 [0-9a-f]{8}\.\.\., expected 6726825d\.\.\."):
        extractor_from_name("inception", weights=inception_file)
    extractor = extractor_from_name("inception", weights=inception_file, any_weights=True)
    assert (extractor.name, extractor.quotable) == ("inception_demo", False)
    assert "NOT the published ones" in extractor.description


def test_unresized_pictures_keep_their_size_and_small_and_large_ones_are_refused(inception_file, monkeypatch):
    extractor = InceptionExtractor(inception_file, device="cpu", any_weights=True, resize="none")
    pictures = [*noise(1, height=80, width=76), *noise(2, height=90, width=75)]
    alone = np.concatenate([extractor([pixels]) for pixels in pictures])
    np.testing.assert_allclose(extractor(pictures), alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())
    monkeypatch.setattr(extractors, "_PIXELS_AT_ONCE", 90 * 75)  # one at a time
    np.testing.assert_allclose(extractor(pictures), alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())
    with pytest.raises(ExtractorError, match="16x8 pixels, not resized: Inception needs at least 75x75"):
        extractor(list(noise(1)))
    with pytest.raises(ExtractorError, match=r"91x75 pixels, not resized: expected at most 6,750, .* REID_MAX_PIXELS"):
        extractor(list(noise(1, height=91, width=75)))


def test_a_file_of_another_network_is_said_to_be_one(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightFileError, match=r"does not fit the network: 565 tensors missing .*1 of another shape"):
        InceptionExtractor(file, device="cpu", any_weights=True)(list(noise(1)))
    file.write_text("a text")
    with pytest.raises(WeightFileError, match="expected a weight file"):
        InceptionExtractor(file, device="cpu", any_weights=True)(list(noise(1)))


@pytest.mark.parametrize(
    ("rule", "recorded"),
    [("legacy", "pytorch_fid_bilinear"), ("tensorflow", "tensorflow1_bilinear"), ("clean", "clean_fid_bicubic")],
)
def test_resize_rules_are_those_of_the_programs(rule, recorded):
    picture = np.repeat(np.array(DATA["resize"]["input"], np.uint8)[:, :, None], 3, axis=2)
    expected = np.array(DATA["resize"][recorded]["out"])
    result = resized([picture], rule, expected.shape, torch.device("cpu"))
    assert result.shape == (1, 3, *expected.shape)
    np.testing.assert_allclose(result[0, 1].numpy(), expected, atol=2e-4)  # of 255


def test_the_dgnet_rule_is_tensorflows_after_256x128():
    picture = noise(1, height=40, width=30)[0]
    large = np.asarray(extractors_image(picture).resize((128, 256), 3))
    direct = resized([large], "tensorflow", (299, 299), torch.device("cpu"))
    torch.testing.assert_close(resized([picture], "dgnet", (299, 299), torch.device("cpu")), direct)


def extractors_image(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def test_a_torchvision_model_gives_what_its_classifier_sees(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None)
    file = tmp_path / "squeezenet.pth"
    torch.save(network.state_dict(), file)
    with pytest.raises(ExtractorError, match="no linear layer"):
        extractor_from_name("torchvision:squeezenet1_1", weights=file, device="cpu")(list(noise(1)))
    network = torchvision.models.resnet18(weights=None).eval()
    file = tmp_path / "mine.pth"
    without_head = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    torch.save({"state_dict": without_head}, file)  # as self-supervised models are published
    extractor = extractor_from_name("torchvision:resnet18", weights=file, device="cpu", resize="clean")
    pictures = list(noise(2, height=50, width=30))
    levels = resized(pictures, "clean", (224, 224), torch.device("cpu"))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = network((levels / 255 - mean) / std).numpy()
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (extractor.num_features, extractor.name.partition(":")[0]) == (512, "resnet18")
    assert "mine.pth" in extractor.description


@pytest.mark.parametrize(
    ("model", "num_features", "size"),
    [("resnet18", 512, 224), ("convnext_atto", 320, 224), ("vit_small_patch14_dinov2", 384, 518)],
)
def test_a_timm_model_gives_what_its_classifier_would_see(tmp_path, model, num_features, size):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    extractor = extractor_from_name(f"timm:{model}", weights=tmp_path / "mine.pth", device="cpu")
    pictures = list(noise(2, height=50, width=30))
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        images = (resized(pictures, "legacy", (size, size), torch.device("cpu")) / 255 - mean) / std
        expected = network.forward_head(network.forward_features(images), pre_logits=True).numpy()
    assert (extractor.num_features, expected.shape) == (num_features, (2, num_features))
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("torchvision:", {}, "which one"),
        ("torchvision:resnet7", {"weights": "w.pth"}, "no classifier of this name"),
        ("torchvision:resnet18", {}, "needs its weight file; name it with --weights FILE"),
        ("timm:vit_tiny", {}, "needs its weight file"),
        ("torchvision:resnet18", {"weights": "w.pth", "resize": "dgnet"}, "only for Inception"),
        ("random", {"resize": "clean"}, "--resize: only for"),
        ("random", {"half": True}, "--half: only for"),
        ("random", {"device": "x"}, "--device x: cannot be used here"),
    ],
)
def test_what_cannot_be_extracted_is_explained(tmp_path, monkeypatch, name, options, words):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, "w.pth")
    options = {key: Path(value) if key == "weights" else value for key, value in options.items()}
    with pytest.raises(ExtractorError, match=words):
        extractor_from_name(name, **options)(list(noise(1)))


def test_the_random_extractor_forbids_quoting_and_repeats_itself():
    extractor = extractor_from_name("random")
    assert (extractor.name, extractor.quotable) == ("random_demo", False)
    assert "never to be quoted" in extractor.description
    batch = list(noise(3))
    features = extractor(batch)
    assert features.shape == (3, extractor.num_features)
    np.testing.assert_array_equal(features, RandomExtractor()(batch))
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "expected one of inception, random"),
        ("random:3", "not known"),
        ("reid", "which one"),
        ("reid:", "which one"),
    ],
)
def test_an_extractor_that_is_not_known_is_explained(name, message):
    pytest.importorskip("reid_models")
    with pytest.raises(ExtractorError, match=message):
        extractor_from_name(name)


def test_features_of_a_run_need_the_other_package(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(ExtractorError, match="reid-models is not installed"):
        extractor_from_name("reid:runs/teacher")


def test_a_weight_file_for_an_extractor_without_one_is_refused(tmp_path):
    with pytest.raises(ExtractorError, match="--weights: only for the extractors"):
        extractor_from_name("random", weights=tmp_path / "a.pth")


@pytest.mark.parametrize("device", ["tpu9", "meta"])
def test_a_device_that_is_not_there_is_refused(inception_file, device):
    with pytest.raises(ExtractorError, match=f"--device {device}: cannot be used here"):
        InceptionExtractor(inception_file, device=device, any_weights=True)(list(noise(1)))
