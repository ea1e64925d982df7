import hashlib
import itertools
import logging
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageFilter
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from reid_eval.errors import Stopped
from reid_eval.extractors import RandomExtractor
from reid_eval.feature_sets import FeatureSetError
from reid_eval.files import ImageError, list_images
from reid_eval.frechet import StatisticsError, frechet_distance_of_features
from reid_eval.images import DGNET_PAPER, Protocol, feature_set, fid, measure_images, plan_images
from reid_eval.pairs import identity_pairs
from reid_eval.stopping import stoppable


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


# --- kinds of files -------------------------------------------------------------------------------------------------


def some_pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (24, 12, 3), dtype=np.uint8)


def animated(file: Path, **options) -> None:
    first = Image.fromarray(some_pixels())
    first.save(file, save_all=True, append_images=[Image.fromarray(255 - some_pixels())], **options)


def rotated(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(some_pixels()).save(file, exif=exif, quality=95)


def transparent(file: Path) -> None:
    Image.fromarray(np.dstack([some_pixels(), np.full((24, 12), 40, np.uint8)])).save(file)


def palette(file: Path, **options) -> None:
    Image.fromarray(some_pixels()).quantize(64).save(file, **options)


def rgb_of_16_bits(file: Path) -> None:
    """A PNG of 16 bits per channel, whose high bytes are the pixels. Pillow reads such files and writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = some_pixels().shape[:2]
    rows = (some_pixels().astype(np.uint16) * 256 + 77).astype(">u2").reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def as_stored(file: Path) -> np.ndarray:
    """The first frame's colours as they are stored, by Pillow's other way into a file."""
    parser = ImageFile.Parser()
    parser.feed(file.read_bytes())
    image = parser.close()
    image.info.clear()  # Pillow warns of the transparency in it
    return np.asarray(image.convert("RGB"))


FIRST_FRAME = "are animations, of which the first frame counts"


@pytest.mark.parametrize(
    ("name", "write", "expected", "remark"),
    [
        ("a.jpg", lambda file: Image.fromarray(some_pixels()).convert("CMYK").save(file), as_stored, ""),
        (
            "a.png",
            lambda file: Image.fromarray(some_pixels()[:, :, 1]).save(file),
            lambda _: some_pixels()[..., [1] * 3],
            "",
        ),
        ("a.png", rgb_of_16_bits, lambda _: some_pixels(), ""),
        ("a.png", transparent, lambda _: some_pixels(), "have transparency, which is dropped"),
        ("a.gif", palette, as_stored, ""),
        ("a.png", partial(palette, transparency=bytes(64)), as_stored, "have transparency, which is dropped"),
        ("a.jpg", rotated, as_stored, "ask for a rotation (Exif) that is not applied"),
        ("a.gif", animated, as_stored, FIRST_FRAME),
        ("a.webp", partial(animated, lossless=True), lambda _: some_pixels(), FIRST_FRAME),
        ("a.png", animated, lambda _: some_pixels(), FIRST_FRAME),
        ("a.tif", animated, lambda _: some_pixels(), FIRST_FRAME),
    ],
    ids=["cmyk", "grey", "16-bit", "rgba", "palette", "clear-palette", "exif", "gif", "webp", "apng", "tiff"],
)
def test_a_picture_of_any_kind_counts_as_its_colours_and_what_is_lost_is_said(
    tmp_path, name, write, expected, remark, recwarn
):
    real = save(tmp_path / "real", noise(3))
    odd, plain = (save(tmp_path / side, noise(2, seed=1)) for side in ("odd", "plain"))
    write(odd / name)
    save(plain, [expected(odd / name)], ["a.png"])
    result = fid(real, odd, MeanColour())
    assert result.value == pytest.approx(fid(real, plain, MeanColour()).value, rel=1e-12)
    assert "3 real, 3 generated" in result.protocol
    said = [text for text in result.made_by["remarks"] if text.startswith("1 generated")]
    assert said == [f"1 generated pictures {remark}."] * bool(remark)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("page.jpg", lambda file: file.write_text("<html>404</html>"), "of no known format"),
        ("empty.png", lambda file: file.write_bytes(b""), "of no known format"),
        ("cut.jpg", lambda file: (rotated(file), file.write_bytes(file.read_bytes()[:400])), "runcated"),
        ("deep.png", lambda file: Image.fromarray(some_pixels()[:, :, 0].astype(np.uint16)).save(file), "8 bits"),
        ("folder.png", lambda file: file.symlink_to("nowhere"), "no such image file"),
    ],
    ids=["text", "empty", "truncated", "16-bit-grey", "broken-link"],
)
def test_what_cannot_be_read_is_named_and_counted_or_stops_everything(tmp_path, name, write, words, caplog):
    real, fake = save(tmp_path / "real", noise(3)), save(tmp_path / "fake", noise(3, seed=1))
    alone = fid(real, fake, MeanColour()).value
    write(fake / name)
    (result,) = measure_images(real, fake, metrics=["fid"], extractor=MeanColour(), strict=False)
    assert result.value == alone
    assert (result.made_by["fake"]["images"], result.made_by["fake"]["unreadable"]) == (3, 1)
    assert "1 generated pictures could not be read and are left out." in result.protocol
    assert f"left out: {fake / name}: " in caplog.text
    assert words in caplog.text
    with pytest.raises(ImageError, match=rf"{name}: .*{words}"):
        measure_images(real, fake, metrics=["fid"], extractor=MeanColour(), strict=True)


# --- laws -----------------------------------------------------------------------------------------------------------

EVERYTHING = ("fid", "kid", "prdc", "ssim", "identity", "pairs")


def people(
    root: Path, *, seed: int, pids: Sequence[int] = range(6), count: int = 8, change=lambda pixels: pixels
) -> Path:
    """A folder per person, who wears a gradient of colours and stripes; `change` is what a generator does to it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:1:32j, 0:1:16j]
    for pid in pids:
        look = np.random.default_rng(1000 + pid)
        base, down, across = look.uniform(60, 195, 3), look.uniform(-80, 80, 3), look.uniform(-80, 80, 3)
        waves = look.uniform(4, 9)
        for number in range(count):
            light = rng.uniform(-25, 25) + rng.uniform(-25, 25) * rows[..., None]
            pixels = base + down * (rows[..., None] - 0.5) + across * (columns[..., None] - 0.5) + light
            pixels = pixels + 20 * np.sin(2 * np.pi * (waves * rows[..., None] + rng.uniform()))
            pixels = pixels + rng.normal(0, 6, pixels.shape)
            save(root / f"{pid:04}", [change(pixels.clip(0, 255).astype(np.uint8))], [f"{pid:04}_c1_{number}.png"])
    return root


def values(real: Path, fake: Path, metrics=EVERYTHING, **how) -> dict[str, float]:
    extractor = RandomExtractor()
    found = measure_images(real, fake, metrics=metrics, extractor=extractor, reid=extractor, **how)
    return {result.name.replace("_random_demo", ""): result.value for result in found}


def blurred(radius: float):
    return lambda pixels: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(deviation: float):
    rng = np.random.default_rng(7)
    return lambda pixels: (pixels + rng.normal(0, deviation, pixels.shape)).clip(0, 255).astype(np.uint8)


def test_batch_size_and_workers_change_no_measure(tmp_path):
    real, fake = (
        people(tmp_path / "real", seed=0, count=3),
        people(tmp_path / "fake", seed=1, count=3, change=noisy(20)),
    )
    expected = values(real, fake)
    assert len(expected) == 13
    for how in ({"batch_size": 1, "workers": 1}, {"batch_size": 7, "workers": 3}):
        assert values(real, fake, **how) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_order_of_the_files_changes_no_measure_of_sets(tmp_path):
    real, fake = (
        people(tmp_path / "real", seed=0, count=3),
        people(tmp_path / "fake", seed=1, count=3, change=noisy(20)),
    )
    metrics = ("fid", "kid", "prdc", "identity")
    expected = values(real, fake, metrics)
    for root in (real, fake):
        for folder in sorted(root.iterdir()):
            for number, file in enumerate(sorted(folder.iterdir())):
                file.rename(folder / f"{folder.name}_c{9 - number}.png")
    assert values(real, fake, metrics) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_set_against_itself(tmp_path):
    root = people(tmp_path / "real", seed=0, count=4)
    found = values(root, root)
    features = feature_set(root, RandomExtractor()).features
    n, kernel = len(features), (features @ features.T / features.shape[1] + 1) ** 3
    others = (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    expected = {
        "fid": 0,
        "kid": 2 / n * (others - np.trace(kernel) / n),  # unbiased, so a little below 0 where pictures are the same
        "precision": 1,
        "recall": 1,
        "density": 1,  # each picture's ball holds itself and k - 1 others
        "coverage": 1,
        "identity_top1": 1,
        "ssim_of_pairs": 1,
        "psnr_of_pairs": np.inf,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_two_halves_of_one_set_are_close(tmp_path):
    first, second = people(tmp_path / "first", seed=0), people(tmp_path / "second", seed=1)
    other = people(tmp_path / "other", seed=1, pids=range(10, 16))
    halves, apart = (values(first, side, ("fid", "prdc", "ssim")) for side in (second, other))
    assert 0 < halves["fid"] < apart["fid"] / 5
    for name in ("precision", "recall"):
        assert halves[name] > 0.9 > 0.6 > apart[name]
    assert halves["coverage"] > 0.9 > apart["coverage"]
    assert halves["ssim_within_identity"] == pytest.approx(halves["ssim_within_identity_real"], abs=0.05)
    (kid,) = measure_images(first, second, metrics=["kid"], extractor=RandomExtractor())
    low, high = kid.made_by["interval"]
    assert low < 0 < high


@pytest.mark.parametrize(("change", "amounts"), [(blurred, (0.5, 1.5, 4)), (noisy, (15, 45, 120))])
def test_blur_and_noise_move_every_measure_of_fidelity_the_same_way(tmp_path, change, amounts):
    real = people(tmp_path / "real", seed=0, count=5)
    steps = [values(real, people(tmp_path / str(amount), seed=0, count=5, change=change(amount))) for amount in amounts]
    for name in ("fid", "kid"):
        assert steps[0][name] < steps[1][name] < steps[2][name]
    for name in ("ssim_of_pairs", "psnr_of_pairs"):
        assert steps[0][name] > steps[1][name] > steps[2][name]
    for name in ("recall", "identity_top1", "identity_similarity"):
        assert steps[0][name] > steps[2][name]
    for name in ("precision", "coverage"):  # of which enough is left as long as people can be told apart
        assert steps[0][name] >= steps[1][name] >= steps[2][name]
    # Smooth pictures of a person are alike, and noise is like nothing.
    diversity = [step["ssim_within_identity"] for step in steps]
    assert diversity == sorted(diversity, reverse=change is noisy)


def test_dropping_people_costs_recall_and_coverage_but_not_precision(tmp_path):
    real = people(tmp_path / "real", seed=0)
    whole, part = (
        values(real, people(tmp_path / name, seed=1, pids=pids, count=count))
        for name, pids, count in (("whole", range(6), 8), ("part", range(2), 24))
    )
    assert part["fid"] > 5 * whole["fid"]
    assert part["kid"] > whole["kid"]
    for name in ("recall", "coverage"):
        assert part[name] < 0.6 < 0.9 < whole[name]
    assert part["precision"] >= whole["precision"]


def test_one_picture_again_and_again_has_no_diversity(tmp_path):
    fake = people(tmp_path / "fake", seed=0, count=3, change=lambda pixels: np.full_like(pixels, 99))
    found = values(people(tmp_path / "real", seed=0, count=3), fake, ("ssim", "prdc"))
    assert found["ssim_within_identity"] == 1 > found["ssim_within_identity_real"]
    assert found["recall"] == 0  # no ball of equal pictures has a radius


# --- identities -----------------------------------------------------------------------------------------------------


def test_identity_consistency_by_hand(tmp_path):
    red, green, blue = np.eye(3, dtype=int) * 200
    colours = {"0001": [red, red // 2], "0002": [green], "0003": [blue]}
    made = {"0001": [red], "0002": [green * 3 // 5 + blue * 4 // 5], "0003": [blue], "0009": [red]}
    for side, people_of in (("real", colours), ("fake", made)):
        for pid, shown in people_of.items():
            flat = [np.full((4, 4, 3), colour, np.uint8) for colour in shown]
            save(tmp_path / side / pid, flat)
    results = measure_images(tmp_path / "real", tmp_path / "fake", metrics=["identity"], reid=MeanColour())
    found = {result.name: result.value for result in results}
    # The second's cosines are 0.6 with their own colour and 0.8 with the third's; the fourth's person is not there.
    assert found == pytest.approx(
        {
            "identity_top1_mean_colour": 2 / 3,
            "identity_similarity_mean_colour": (1 + 0.6 + 1) / 3,
            "identity_margin_mean_colour": (1 - 0.2 + 1) / 3,
        }
    )
    assert "1 generated pictures of identities without a real picture left out." in results[0].protocol


def test_identities_that_are_not_among_the_real_ones_are_said(tmp_path):
    real, fake = people(tmp_path / "real", seed=0, count=2), people(tmp_path / "fake", seed=0, pids=(7, 8), count=2)
    with pytest.raises(FeatureSetError, match=r"fake: none of its identities \(7, 8, \.\.\.\) is among the 6"):
        measure_images(real, fake, metrics=["identity"], reid=MeanColour())


# --- statistics files -----------------------------------------------------------------------------------------------


def test_statistics_of_another_extractor_are_refused(tmp_path):
    real, fake = save(tmp_path / "real", noise(4)), save(tmp_path / "fake", noise(4, seed=1))
    feature_set(real, MeanColour()).save(tmp_path / "real.npz")
    feature_set(fake, RandomExtractor()).save(tmp_path / "fake.npz")
    for side in (fake, tmp_path / "fake.npz"):
        with pytest.raises(FeatureSetError, match=r"real\.npz: made by mean colour; asked for was a small network"):
            fid(tmp_path / "real.npz", side, RandomExtractor())
    np.savez(tmp_path / "bare.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(FeatureSetError, match=r"bare\.npz has 5 features and .*fake 3: made by different extractors"):
        fid(tmp_path / "bare.npz", fake, MeanColour())


# --- the DG-Net paper -----------------------------------------------------------------------------------------------


def test_the_dgnet_papers_protocol_in_numbers():
    assert (DGNET_PAPER.max_images, DGNET_PAPER.pairs, DGNET_PAPER.rounds) == (12_936, 10, 5)


def test_the_dgnet_papers_dissimilarity_round_by_round(tmp_path):
    root = people(tmp_path / "fake", seed=0, pids=(1, 2), count=4, change=noisy(30))
    results = measure_images(None, root, metrics=["ssim"], protocol=DGNET_PAPER)
    (result,) = results
    drawn = identity_pairs(root, list_images(root), pairs=10, rounds=5, seed=DGNET_PAPER.seed)
    assert Counter(drawn.round_of) == dict.fromkeys(range(5), 20)

    def dissimilarity(first, second):
        sides = []
        for file in (first, second):
            level = ((np.asarray(Image.open(file)) / 127.5 - 1).astype(np.float32) + 1) * np.float32(127.5)
            sides.append(rgb2lab(level.astype(np.uint8)).astype(np.float32))
        return (1 - structural_similarity(*sides, data_range=100, channel_axis=2)) / 2

    found = np.array([dissimilarity(*pair) for pair in drawn.pairs])
    means = [found[np.array(drawn.round_of) <= last].mean() for last in range(5)]
    assert result.name == "dssim_lab_within_identity_dgnet"
    assert result.value == pytest.approx((max(means) + min(means)) / 2, rel=1e-5)
    assert result.made_by["interval"] == pytest.approx([min(means), max(means)], rel=1e-5)
    assert max(means) > min(means)
    assert result.higher_is_better is None


def test_a_side_with_more_pictures_than_the_protocol_takes_is_drawn_from_with_a_seed(tmp_path):
    real, fake = save(tmp_path / "real", noise(9)), save(tmp_path / "fake", noise(4, seed=1))

    def measured(**changes):
        how = replace(DGNET_PAPER, **changes)
        return measure_images(real, fake, metrics=["fid"], extractor=MeanColour(), protocol=how)[0]

    all_of_them, some = measured(), measured(max_images=5)
    assert [(one.made_by["real"]["images"], one.made_by["fake"]["images"]) for one in (all_of_them, some)] == [
        (9, 4),
        (5, 4),
    ]
    assert some.value == measured(max_images=5).value
    assert some.value != measured(max_images=5, seed=11).value
    vectors, others = (feature_set(side, MeanColour()).features for side in (real, fake))
    parts = (list(rows) for rows in itertools.combinations(range(9), 5))
    assert min(abs(frechet_distance_of_features(vectors[rows], others) - some.value) for rows in parts) < 1e-9


# --- what is told beside the numbers ----------------------------------------------------------------------------------


def test_one_equal_pair_of_many_leaves_the_mean_of_the_others_and_is_counted(tmp_path):
    first, second = save(tmp_path / "a", noise(5)), save(tmp_path / "b", noise(5, seed=1))
    save(second, noise(5)[:1])
    some, all_equal = (measure_images(side, first, metrics=["pairs"])[1] for side in (second, first))
    pixels = [noise(5, seed=seed).astype(np.float64) for seed in (0, 1)]
    errors = [np.square(pixels[0][number] - pixels[1][number]).mean() for number in range(1, 5)]
    assert some.value == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]), rel=1e-12)
    assert some.made_by["equal_pairs"] == 1
    assert "Mean over 4 pairs" in some.protocol
    assert "1 pairs are equal." in some.protocol
    assert (all_equal.value, all_equal.made_by["equal_pairs"]) == (np.inf, 5)
    assert "Mean over 5 pairs" in all_equal.protocol
    assert "5 pairs are equal." in all_equal.protocol


def test_diversity_has_no_better_direction_and_says_how_far_it_is_from_that_of_real_pictures(tmp_path):
    real, mush = (
        people(tmp_path / "real", seed=0, count=4),
        people(tmp_path / "mush", seed=1, count=4, change=noisy(90)),
    )
    made, of_real = measure_images(real, mush, metrics=["ssim"])
    assert (made.name, of_real.name) == ("ssim_within_identity", "ssim_within_identity_real")
    assert made.value < of_real.value  # noise is more varied than people are, and no better
    assert (made.higher_is_better, of_real.higher_is_better) == (None, None)
    beside = made.made_by["beside_real"]
    assert (beside["value"], beside["difference"]) == (of_real.value, made.value - of_real.value)
    assert beside["pictures"] == of_real.made_by["pictures"]
    assert (
        f"Real pictures have {of_real.value:.4f}, so these are {-beside['difference']:.4f} below it." in made.protocol
    )
    (alone,) = measure_images(None, mush, metrics=["ssim"])
    assert (alone.value, alone.higher_is_better, alone.made_by["how"]) == (made.value, None, made.made_by["how"])


def test_files_that_may_have_been_meant_as_pictures_are_counted_by_their_suffixes(tmp_path):
    real, fake = people(tmp_path / "real", seed=0, count=2), people(tmp_path / "fake", seed=1, count=2)
    for name in ("0000/a.avif", "0000/b.AVIF", "0001/c", "notes.txt", "index.json", ".hidden.avif", "README"):
        (fake / name).write_bytes(b"")
    (fake / "@eaDir").mkdir()
    (fake / "@eaDir" / "d.avif").write_bytes(b"")
    results = measure_images(real, fake, metrics=["fid", "ssim", "pairs"], extractor=MeanColour())
    remark = f"3 files in {fake} passed over, by their suffixes no pictures (.avif: 2, without a suffix: 1)."
    assert [remark in result.protocol for result in results] == [True, True, False, True, True]
    assert remark in results[0].made_by["remarks"]


@pytest.mark.parametrize("quotable", [True, False])
@pytest.mark.parametrize("stored", [(), ("real",), ("real", "fake")])
def test_the_names_of_the_numbers_are_known_before_anything_is_measured(tmp_path, stored, quotable):
    extractor = MeanColour()
    extractor.quotable = quotable
    places = {side: people(tmp_path / side, seed=seed, count=3) for seed, side in enumerate(("real", "fake"))}
    metrics = ["fid", "kid", "prdc", "identity"] if stored else list(EVERYTHING)
    for side in stored:
        feature_set(places[side], extractor).save(tmp_path / f"{side}.npz")
        places[side] = tmp_path / f"{side}.npz"
    for how in (Protocol(), replace(DGNET_PAPER, kid_subsets=2, kid_subset_size=5)):
        plan = plan_images(
            places["real"], places["fake"], metrics=metrics, extractor=extractor, reid=extractor, protocol=how
        )
        names = plan.names
        assert names == [result.name for result in plan.run()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("metric", "count", "words"),
    [
        ("kid", 1, "a kernel distance (KID) needs at least 2"),
        ("fid", 1, "a Frechet distance needs at least 2"),
        ("prdc", 5, "precision, recall, density and coverage need at least 6"),
        ("identity", 1, "identity consistency needs at least 2"),
    ],
)
def test_each_metric_of_too_few_pictures_is_called_by_its_own_name(tmp_path, metric, count, words):
    real, fake = save(tmp_path / "real", noise(6)), save(tmp_path / "fake", noise(count))
    with pytest.raises(StatisticsError, match=rf"fake: {count} pictures below it, ") as refusal:
        measure_images(real, fake, metrics=[metric], extractor=MeanColour(), reid=MeanColour())
    assert words in str(refusal.value)


@pytest.mark.parametrize("spoilt", ["zero", "equal"])
def test_vectors_that_tell_no_identity_are_refused_and_no_accident(tmp_path, spoilt):
    class Spoilt(MeanColour):
        def __call__(self, pixels_batch):
            vectors = super().__call__(pixels_batch)
            return vectors * 0 if spoilt == "zero" else vectors * 0 + 1

    root = people(tmp_path / "real", seed=0, count=2)
    words = {"zero": "0000_c1_0.png: a vector of zeros", "equal": "all vectors are equal"}[spoilt]
    with pytest.raises(StatisticsError, match=words.replace(".", r"\.")):
        measure_images(root, root, metrics=["identity"], reid=Spoilt())


def test_a_statistics_file_is_known_by_all_of_its_content(tmp_path):
    real, fake = save(tmp_path / "real", noise(9)), save(tmp_path / "fake", noise(9, seed=1))
    for name, folder in (("real", real), ("fake", fake)):
        feature_set(folder, MeanColour()).save(tmp_path / f"{name}.npz")
    cache = tmp_path / "cache"

    def measured():
        places = tmp_path / "real.npz", tmp_path / "fake.npz"
        return measure_images(*places, metrics=["kid"], extractor=MeanColour(), cache=cache)[0]

    first = measured()
    assert first.made_by["real"]["statistics"] == {
        "file": str(tmp_path / "real.npz"),
        "sha256": hashlib.sha256((tmp_path / "real.npz").read_bytes()).hexdigest(),
    }
    with np.load(tmp_path / "fake.npz") as stored:  # another order of the rows: the same moments
        arrays = {**stored, "features": stored["features"][::-1], "files": stored["files"][::-1]}
    np.savez(tmp_path / "fake.npz", **arrays)
    again = measured()
    assert again.value == pytest.approx(first.value, rel=1e-9)
    assert again.made_by["fake"]["statistics"] != first.made_by["fake"]["statistics"]


# --- stopping and going on --------------------------------------------------------------------------------------------


class StopsItself(MeanColour):
    """An extractor in whose third batch the process is asked to stop."""

    def __call__(self, pixels_batch):
        vectors = super().__call__(pixels_batch)
        if self.calls == 3:
            signal.raise_signal(signal.SIGTERM)
        return vectors


def test_features_that_were_made_before_a_stop_are_not_made_again(tmp_path):
    real, fake = save(tmp_path / "real", noise(9)), save(tmp_path / "fake", noise(12, seed=1))
    rotated(fake / "000.png")
    how = {"metrics": ["fid"], "batch_size": 2, "cache": tmp_path / "cache", "workers": 1}
    with stoppable(), pytest.raises(Stopped, match=r"SIGTERM: 6 features are kept in .*cache; run the same command"):
        measure_images(real, fake, extractor=StopsItself(), **how)
    extractor = MeanColour()
    (result,) = measure_images(real, fake, extractor=extractor, **how)
    assert extractor.calls == 2 + 6  # three pictures of the real side, and all of the other
    (whole,) = measure_images(real, fake, metrics=["fid"], extractor=MeanColour(), batch_size=2)
    assert (result.value, result.made_by) == (whole.value, whole.made_by)


def test_a_picture_that_stops_everything_costs_no_feature_that_was_made(tmp_path):
    real = save(tmp_path / "real", noise(9))
    (real / "008.png").write_bytes(b"damaged")
    how = {"batch_size": 2, "cache": tmp_path / "cache"}
    extractor = MeanColour()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"008\.png"):
            feature_set(real, extractor, strict=True, **how)
    assert extractor.calls == 4


def test_without_a_cache_nothing_is_said_to_be_kept(tmp_path):
    real = save(tmp_path / "real", noise(9))
    with stoppable(), pytest.raises(Stopped, match="SIGTERM: no features are kept"):
        feature_set(real, StopsItself(), batch_size=2)


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE = """
import resource, sys
from pathlib import Path
from reid_eval.errors import Stopped
from reid_eval.extractors import RandomExtractor
from reid_eval.images import Protocol, fid, measure_images
import torch, skimage.color
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
small, large = sys.argv[1:]
fid(small, small, RandomExtractor())
before = peak()
fid(large, large, RandomExtractor())
for dssim_lab in (False, True):
    measure_images(None, large, metrics=["ssim"], protocol=Protocol(pairs=1, dssim_lab=dssim_lab))
measure_images(large, large, metrics=["pairs"])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_the_largest_pictures_that_are_read_take_about_a_gigabyte(tmp_path):
    """Three million pixels here, so that it is quick; that is an eleventh of the limit."""
    small = save(tmp_path / "small", noise(2))
    save(tmp_path / "large" / "1", [np.repeat(np.repeat(noise(1, seed=seed)[0], 125, 0), 188, 1) for seed in (0, 1)])
    command = [sys.executable, "-c", LARGE, str(small), str(tmp_path / "large")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.splitlines()[-1]) < 220
