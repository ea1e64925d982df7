import json
import logging
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import inception

from reid_eval import fid as fid_module
from reid_eval.fid import (
    INCEPTION_FILE,
    ExtractorError,
    ImageStats,
    InceptionExtractor,
    RandomExtractor,
    StatisticsError,
    extractor_from_name,
    fid,
    frechet_distance,
    image_stats,
)
from reid_eval.files import ImageError

DATA = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())
VECTORS = DATA["frechet"]


class MeanColour:
    """The simplest honest extractor: a picture's mean red, green and blue."""

    name = "mean_colour:rgb"
    description = "mean colour"
    num_features = 3
    quotable = True

    def __call__(self, pixels_batch):
        return np.stack([pixels.reshape(-1, 3).mean(axis=0) for pixels in pixels_batch])


def noise(count: int, seed: int = 0, height: int = 16, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (count, 1, 1, 3))
    return (base + rng.integers(0, 56, (count, height, width, 3))).astype(np.uint8)


def save(root: Path, pictures, names=None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names or [f"{number:03}.png" for number in range(len(pictures))], pictures, strict=True):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def stats_of(features: np.ndarray, batch_size: int = 1000) -> ImageStats:
    stats = ImageStats(features.shape[1])
    for start in range(0, len(features), batch_size):
        stats.update(features[start : start + batch_size])
    return stats


def distance(first: np.ndarray, second: np.ndarray) -> float:
    sides = stats_of(first), stats_of(second)
    return frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_distance_is_that_of_other_programs(vector):
    value = distance(np.array(vector["input"]["x"]), np.array(vector["input"]["y"]))
    assert value == pytest.approx(vector["expected"]["closed_form"]["fid"], abs=1e-12)
    # The published programs take a general matrix root, which loses digits when the covariance is singular.
    assert value == pytest.approx(vector["expected"]["pytorch_fid"]["fid"], abs=1e-6)


def test_diagonal_covariances_by_hand():
    vector = {name: np.array(value) for name, value in DATA["frechet_diagonal"].items() if name[:2] in ("mu", "si")}
    value = frechet_distance(vector["mu1"], vector["sigma1"], vector["mu2"], vector["sigma2"])
    assert value == pytest.approx(2**2 + 1**2 + (1 - 3) ** 2 + (2 - 4) ** 2)


def test_covariances_that_commute_have_a_closed_form():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    first, second = np.array([9.0, 4, 1, 0.25, 0, 0]), np.array([1.0, 4, 0, 16, 2, 0])
    covs = [rotation @ np.diag(values) @ rotation.T for values in (first, second)]
    expected = np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(np.zeros(6), covs[0], np.zeros(6), covs[1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 40, 200])
def test_far_fewer_pictures_than_features_lose_no_digits(count):
    rng = np.random.default_rng(count)
    first, second = rng.normal(size=(count, 100)), 1.5 * rng.normal(size=(count + 3, 100)) + 0.2
    a, b = ((side - side.mean(axis=0)) / np.sqrt(len(side) - 1) for side in (first, second))
    trace_of_root = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # from the samples, without any covariance
    means = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    assert distance(first, second) == pytest.approx(means + (a**2).sum() + (b**2).sum() - 2 * trace_of_root, rel=1e-10)


def test_directions_of_little_variance_count():
    first, second = np.diag([1.0, 1e-8]), np.diag([1.0, 4e-8])
    assert frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(1e-8, rel=1e-6)


def test_the_distance_is_symmetric():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 8)), rng.normal(size=(60, 8)) * 2
    assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_a_set_is_at_distance_0_from_itself_and_never_below(seed):
    features = np.random.default_rng(seed).normal(size=(20, 30))
    assert 0 <= distance(features, features[::-1]) < 1e-12


def test_pictures_that_are_all_alike_have_a_distance_too():
    assert distance(np.ones((5, 3)), np.ones((4, 3))) == 0


def test_a_shift_alone_costs_its_square():
    features = np.random.default_rng(0).normal(size=(30, 4))
    assert distance(features, features + np.array([3, 0, 4, 0])) == pytest.approx(25)


def test_sides_of_different_extractors_are_refused():
    with pytest.raises(StatisticsError, match="8 features against 4: expected one extractor"):
        distance(np.random.default_rng(0).normal(size=(9, 8)), np.random.default_rng(0).normal(size=(9, 4)))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_streaming_statistics_are_numpys(batch_size):
    features = np.random.default_rng(0).normal(loc=1e4, size=(100, 5)).astype(np.float32)  # far from 0: cancellation
    stats = stats_of(features, batch_size)
    assert stats.count == 100
    np.testing.assert_allclose(stats.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(stats.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(StatisticsError, match="not finite"):
        stats_of(np.array([[1.0, np.nan]]))


def test_a_folder_is_at_distance_0_from_itself_whatever_the_batch_size_and_the_names(tmp_path):
    pictures = noise(11)
    root = save(tmp_path / "a", pictures)
    other = save(tmp_path / "b", pictures, [f"{10 - number:03}/x.png" for number in range(11)])
    assert fid(root, other, RandomExtractor(), batch_size=3).value == pytest.approx(0, abs=1e-12)


def test_neither_batch_size_nor_order_changes_the_distance(tmp_path):
    real, fake = save(tmp_path / "real", noise(9)), save(tmp_path / "fake", noise(12, seed=1))
    turned = save(tmp_path / "turned", noise(12, seed=1)[::-1])
    expected = fid(real, fake, RandomExtractor()).value
    assert expected > 1e-4
    assert fid(real, fake, RandomExtractor(), batch_size=1).value == pytest.approx(expected, rel=1e-9)
    assert fid(real, turned, RandomExtractor(), batch_size=5).value == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_mean_colours_by_hand(tmp_path):
    grey = [np.full((4, 4, 3), level, np.uint8) for level in (10, 20, 30)]
    lighter = [pixels + np.uint8(6) for pixels in grey]
    result = fid(save(tmp_path / "a", grey), save(tmp_path / "b", lighter), MeanColour())
    assert result.value == pytest.approx(3 * 6**2)
    assert (result.name, result.higher_is_better) == ("fid_mean_colour", False)
    assert "between 3 real and 3 generated pictures. Features: mean colour." in result.protocol


def test_pictures_of_different_sizes_stand_in_one_batch(tmp_path):
    small, large = noise(3), noise(3, height=40, width=30)
    mixed = save(tmp_path / "mixed", [*small, *large])
    assert image_stats(mixed, RandomExtractor(), batch_size=6).count == 6


def test_a_result_knows_its_pictures_by_content(tmp_path):
    real, fake = save(tmp_path / "real", noise(4)), save(tmp_path / "fake", noise(4, seed=1))
    made_by = fid(real, fake, RandomExtractor()).made_by
    assert made_by["extractor"] == "random_demo"
    assert made_by["real"]["images"] == 4
    assert made_by["real"]["fingerprint"] != made_by["fake"]["fingerprint"]


def test_few_pictures_and_uneven_sides_are_remarked(tmp_path, caplog):
    real, fake = save(tmp_path / "real", noise(5)), save(tmp_path / "fake", noise(8, seed=1))
    with caplog.at_level(logging.WARNING):
        result = fid(real, fake, RandomExtractor())
    for text in (result.protocol, caplog.text):
        assert "With 5 pictures for 64 features" in text
        assert "differ in size (5 and 8)" in text


def test_enough_pictures_give_no_remark(tmp_path, caplog):
    real, fake = save(tmp_path / "real", noise(20)), save(tmp_path / "fake", noise(20, seed=1))
    fid(real, fake, MeanColour())
    assert caplog.text == ""


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_with_too_few_pictures_is_named(tmp_path, count):
    real, fake = save(tmp_path / "real", noise(4)), save(tmp_path / "fake", noise(count))
    with pytest.raises(StatisticsError, match=rf"fake: {count} pictures below it"):
        fid(real, fake, RandomExtractor())


def test_too_few_generated_pictures_are_known_before_the_real_ones_are_read(tmp_path):
    class Reached(MeanColour):
        def __call__(self, pixels_batch):
            pytest.fail("the extractor ran")

    real, fake = save(tmp_path / "real", noise(4)), save(tmp_path / "fake", noise(1))
    with pytest.raises(StatisticsError, match="fake: 1 pictures below it"):
        fid(real, fake, Reached())


def test_a_damaged_picture_is_named(tmp_path):
    real = save(tmp_path / "real", noise(4))
    (real / "001.png").write_bytes((real / "001.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"001\.png: not a readable image"):
        fid(real, real, RandomExtractor())


def test_the_random_extractor_forbids_quoting_and_repeats_itself():
    extractor = extractor_from_name("random")
    assert (extractor.name, extractor.quotable) == ("random_demo", False)
    assert "never to be quoted" in extractor.description
    batch = list(noise(3))
    features = extractor(batch)
    assert features.shape == (3, extractor.num_features)
    np.testing.assert_array_equal(features, RandomExtractor()(batch))
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_an_extractor_that_must_not_be_quoted_says_so_in_its_metrics_name(tmp_path):
    unquotable = MeanColour()
    unquotable.quotable = False
    root = save(tmp_path / "a", noise(4))
    assert fid(root, root, unquotable).name == "fid_mean_colour_demo"


@pytest.fixture(scope="module")
def random_inception_state():
    """Random weights under the published file's names, scaled so that signals neither die nor explode on the way."""
    generator = torch.Generator().manual_seed(0)
    state = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            fan_in = value[0].numel()
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    return dict(state)


def test_inception_is_pytorch_fids_network_fed_as_it_feeds_it(random_inception_state, monkeypatch):
    extractor = InceptionExtractor(random_inception_state, device="cpu")
    pictures = [*noise(2), *noise(1, height=30, width=20)]
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: random_inception_state)
    theirs = inception.InceptionV3([3]).eval()
    with torch.inference_mode():
        images = [torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 for pixels in pictures]
        expected = torch.cat([theirs(image)[0].flatten(1) for image in images]).numpy()
    assert expected.shape == (3, 2048)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    # Convolutions round differently in batches of another size.
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-4, atol=1e-6)


def test_inception_leaves_pytorch_fid_as_it_was(random_inception_state):
    before = inception.load_state_dict_from_url
    InceptionExtractor(random_inception_state, device="cpu")
    assert inception.load_state_dict_from_url is before


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("invalid hash"), HTTPException("cut off")])
def test_missing_inception_weights_name_file_size_address_and_remedy(tmp_path, monkeypatch, caplog, error):
    def offline(*_, **__):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ExtractorError) as refusal:
        extractor_from_name("inception")
    message = str(refusal.value)
    assert "\n" not in message
    for words in (str(tmp_path / "hub" / "checkpoints" / INCEPTION_FILE), "91 MiB", "https://", "--weights FILE"):
        assert words in message
    assert "fetching FID's Inception weights" in caplog.text  # announced before it was tried


def test_a_cache_that_cannot_be_made_is_said_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "hub").write_text("a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ExtractorError, match=r"could not be fetched .*--weights FILE"):
        extractor_from_name("inception")


def test_a_weight_file_that_is_not_there_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ExtractorError, match=r"mine\.pth: no such file, expected pt_inception"):
        extractor_from_name("inception", weights=tmp_path / "mine.pth")


def test_other_weights_are_never_taken_for_the_published_ones(tmp_path, random_inception_state):
    file = tmp_path / INCEPTION_FILE
    torch.save(random_inception_state, file)
    with pytest.raises(ExtractorError, match=r"SHA-256 [0-9a-f]{8}\.\.\., expected 6726825d\.\.\."):
        extractor_from_name("inception", weights=file)


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
    monkeypatch.setattr(fid_module, "entry_points", lambda group: [])
    with pytest.raises(ExtractorError, match="reid-models is not installed"):
        extractor_from_name("reid:runs/teacher")


def test_a_weight_file_for_an_extractor_without_one_is_refused(tmp_path):
    with pytest.raises(ExtractorError, match="only the extractor inception"):
        extractor_from_name("random", weights=tmp_path / "a.pth")


@pytest.mark.parametrize("device", ["tpu9", "meta"])
def test_a_device_that_is_not_there_is_refused(random_inception_state, device):
    with pytest.raises(ExtractorError, match=f"--device {device}: cannot be used here"):
        InceptionExtractor(random_inception_state, device=device)
