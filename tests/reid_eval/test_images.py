import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_eval.extractors import RandomExtractor
from reid_eval.files import ImageError
from reid_eval.frechet import StatisticsError
from reid_eval.images import feature_set, fid


class MeanColour:
    """The simplest honest extractor: a picture's mean red, green and blue."""

    name = "mean_colour:rgb"
    description = "mean colour"
    num_features = 3
    quotable = True
    fingerprint = "mean colour"
    calls = 0

    def __call__(self, pixels_batch):
        self.calls += 1
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
    assert "Pictures: 3 real, 3 generated. Features: mean colour." in result.protocol


def test_pictures_of_different_sizes_stand_in_one_batch(tmp_path):
    small, large = noise(3), noise(3, height=40, width=30)
    mixed = save(tmp_path / "mixed", [*small, *large])
    assert feature_set(mixed, RandomExtractor(), batch_size=6).count == 6


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


def test_an_extractor_that_must_not_be_quoted_says_so_in_its_metrics_name(tmp_path):
    unquotable = MeanColour()
    unquotable.quotable = False
    root = save(tmp_path / "a", noise(4))
    assert fid(root, root, unquotable).name == "fid_mean_colour_demo"
