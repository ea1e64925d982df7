import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reid_eval.files import ImageError
from reid_eval.pair_results import ssim_of_pairs, ssim_within_identity
from reid_eval.pairs import PairsError
from reid_eval.similarity import SimilarityError, dssim_lab, mean_psnr_db, psnr_db, ssim, ssim_of_batch

VECTORS = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())["ssim"]


def noise(seed: int, height: int = 20, width: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(root: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_ssim_gives_the_published_programs_numbers(vector):
    first, second = (np.array(vector["input"][side], np.uint8) for side in ("a", "b"))
    expected = vector["expected"]["skimage_uniform"]["ssim"]
    assert ssim(first, second) == pytest.approx(expected, abs=1e-7)  # the last division is float32


# The last two are computed in several strips, the very last with one row left over.
@pytest.mark.parametrize("size", [(7, 7), (7, 30), (128, 64), (33, 8), (200, 97), (15, 2000)])
def test_ssim_agrees_with_scikit_image(size):
    first = noise(0, *size)
    second = (first * 0.6 + noise(1, *size) * 0.4).astype(np.uint8)
    expected = structural_similarity(first, second, data_range=255, channel_axis=2)
    assert ssim(first, second) == pytest.approx(expected, abs=1e-7)  # the last division is float32
    assert ssim(second, first) == ssim(first, second)


def test_a_picture_is_wholly_similar_to_itself():
    assert ssim(noise(0), noise(0)) == pytest.approx(1, abs=1e-7)


def test_flat_black_against_flat_white_follows_from_the_formula():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    c1 = 2.55**2
    assert ssim(black, white) == pytest.approx(c1 / (255**2 + c1))


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_dgnet_papers_dissimilarity_is_that_of_its_program(vector):
    first, second = (np.array(vector["input"][side], np.uint8) for side in ("a", "b"))
    expected = vector["expected"]["dgnet_dssim_lab"]["value"]
    assert dssim_lab(first, second) == pytest.approx(expected, abs=1e-7)  # theirs is computed in float32


def test_a_batch_holds_the_values_of_its_pairs():
    firsts, seconds = [noise(number, 40, 30) for number in range(5)], [noise(9, 40, 30)] * 5
    expected = [ssim(*pair) for pair in zip(firsts, seconds, strict=True)]
    np.testing.assert_array_equal(ssim_of_batch(firsts, seconds), expected)


def test_psnr_by_hand_and_against_scikit_image():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black + np.uint8(255)) == 0
    assert psnr_db(black, black + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr_db(noise(0), noise(1)) == pytest.approx(peak_signal_noise_ratio(noise(0), noise(1), data_range=255))


def test_the_psnr_of_equal_pictures_is_infinite():
    assert psnr_db(noise(0), noise(0)) == math.inf


@pytest.mark.parametrize("measure", [ssim, psnr_db])
def test_pictures_of_different_size_are_refused_with_both_sizes(measure):
    with pytest.raises(SimilarityError, match="20x11x3 and 11x20x3"):
        measure(noise(0, 20, 11), noise(0, 11, 20))


@pytest.mark.parametrize("measure", [ssim, psnr_db])
def test_pictures_in_floats_are_refused(measure):
    with pytest.raises(SimilarityError, match="float64: expected uint8"):
        measure(noise(0) / 255, noise(0) / 255)


def test_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(SimilarityError, match="6x20 pixels: SSIM needs at least 7x7"):
        ssim(noise(0, 6, 20), noise(1, 6, 20))


def test_two_pictures_of_one_person_leave_one_possible_pair(tmp_path):
    root = save(tmp_path, {"0001/a.png": noise(0), "0001/b.png": noise(1)})
    result = ssim_within_identity(root, pairs=3)
    assert result.value == pytest.approx(ssim(noise(0), noise(1)))
    assert result.name == "ssim_within_identity"


def test_only_pictures_of_the_same_folder_are_paired(tmp_path):
    pictures = {f"{pid}/{number}.png": noise(pid) for pid in range(4) for number in range(3)}
    assert ssim_within_identity(save(tmp_path, pictures)).value == pytest.approx(1)


def test_the_pairs_follow_from_the_seed_and_the_folders_own_name(tmp_path):
    pictures = {f"1/{number}.png": noise(number) for number in range(8)}
    alone = save(tmp_path / "alone", pictures)
    again, other = (ssim_within_identity(alone, seed=seed).value for seed in (0, 1))
    assert ssim_within_identity(alone, seed=0).value == again != other
    flat = {f"0/{number}.png": np.zeros_like(noise(0)) for number in range(2)}  # SSIM 1
    with_another = save(tmp_path / "both", pictures | flat)
    assert ssim_within_identity(with_another, seed=0).value == pytest.approx((again + 1) / 2)


def test_folders_of_one_picture_are_skipped_and_counted(tmp_path):
    root = save(tmp_path, {"1/a.png": noise(0), "1/b.png": noise(0), "2/a.png": noise(1), "3/a.png": noise(2)})
    result = ssim_within_identity(root)
    assert result.value == pytest.approx(1)
    assert "2 folders of a single picture skipped" in result.protocol
    assert "diversity, not fidelity" in result.protocol
    assert "beside the folders" not in result.protocol


def test_pictures_beside_the_folders_are_left_out_and_counted(tmp_path):
    root = save(tmp_path, {"1/a.png": noise(0), "1/b.png": noise(0), "a.png": noise(1), "b.png": noise(2)})
    result = ssim_within_identity(root)
    assert result.value == pytest.approx(1)
    assert "2 pictures beside the folders left out" in result.protocol


def test_a_pair_of_different_sizes_is_resized_and_counted(tmp_path):
    root = save(
        tmp_path, {"1/a.png": np.full((20, 10, 3), 90, np.uint8), "1/b.png": np.full((40, 20, 3), 90, np.uint8)}
    )
    result = ssim_within_identity(root, pairs=4)
    assert result.value == pytest.approx(1)
    assert "4 of 4 pairs resized" in result.protocol


@pytest.mark.parametrize("names", [[], ["a.png", "b.png"], ["1/a.png", "2/a.png"]], ids=["empty", "flat", "single"])
def test_a_folder_without_two_pictures_of_anybody_is_refused(tmp_path, names):
    with pytest.raises(PairsError, match="one folder per identity"):
        ssim_within_identity(save(tmp_path, {name: noise(0) for name in names}))


def test_a_seed_below_0_is_refused(tmp_path):
    with pytest.raises(PairsError, match="seed = -1: expected 0 or more"):
        ssim_within_identity(tmp_path, seed=-1)


def test_pictures_smaller_than_the_window_are_named(tmp_path):
    root = save(tmp_path, {"1/a.png": noise(0, 6, 20), "1/b.png": noise(1, 6, 20)})
    with pytest.raises(SimilarityError, match=r"1/[ab]\.png and .*1/[ab]\.png: pictures of 6x20 pixels"):
        ssim_within_identity(root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ImageError, match="nowhere: no such folder"):
        ssim_within_identity(tmp_path / "nowhere")


def test_pairs_of_equal_path_are_compared_whatever_their_suffix(tmp_path):
    made = save(tmp_path / "made", {"1/a.png": noise(0), "1/b.png": noise(1), "2/a.png": noise(2)})
    truth = save(tmp_path / "truth", {"1/a.bmp": noise(0), "1/b.png": noise(5), "9/a.png": noise(2)})
    result = ssim_of_pairs(made, truth)
    assert result.value == pytest.approx((1 + ssim(noise(1), noise(5))) / 2)
    assert "2 pairs" in result.protocol
    assert "2 pictures without a partner" in result.protocol


def test_folders_that_share_no_name_are_refused(tmp_path):
    made, truth = save(tmp_path / "made", {"a.png": noise(0)}), save(tmp_path / "truth", {"b.png": noise(0)})
    with pytest.raises(PairsError, match="no relative path is in both"):
        ssim_of_pairs(made, truth)


def test_a_pair_of_different_sizes_is_refused_by_name(tmp_path):
    made = save(tmp_path / "made", {"a.png": noise(0, 20, 11)})
    truth = save(tmp_path / "truth", {"a.png": noise(0, 40, 22)})
    with pytest.raises(SimilarityError, match=r"made/a\.png and .*truth/a\.png"):
        ssim_of_pairs(made, truth)


def test_two_files_that_differ_only_in_their_suffix_are_refused(tmp_path):
    made = save(tmp_path / "made", {"a.png": noise(0), "a.bmp": noise(1)})
    with pytest.raises(PairsError, match="which one is meant"):
        ssim_of_pairs(made, made)


def test_a_result_knows_the_pictures_it_was_made_from(tmp_path):
    root = save(tmp_path / "one", {"1/a.png": noise(0), "1/b.png": noise(1)})
    other = save(tmp_path / "two", {"1/a.png": noise(0), "1/b.png": noise(2)})
    made_by, other_made_by = (ssim_within_identity(folder).made_by["pictures"] for folder in (root, other))
    assert made_by["images"] == 2
    assert made_by["fingerprint"] != other_made_by["fingerprint"]


# --- pictures of any size -------------------------------------------------------------------------------------------


def patterned(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(7, 30_000), (9, 24_001), (700, 500), (30_000, 7)])
def test_large_pictures_in_strips_are_compared_as_whole_ones(height, width):
    first, second = patterned(height, width, 0), patterned(height, width, 1)
    assert ssim(first, second) == pytest.approx(
        structural_similarity(first, second, channel_axis=2, data_range=255), abs=1e-7
    )
    labs = [
        rgb2lab((((side / 127.5 - 1).astype(np.float32) + 1) * np.float32(127.5)).astype(np.uint8)).astype(np.float32)
        for side in (first, second)
    ]
    expected = (1 - structural_similarity(*labs, channel_axis=2, data_range=100)) / 2
    assert dssim_lab(first, second) == pytest.approx(expected, rel=1e-5)
    error_sq = np.square(first.astype(np.float64) - second).mean()
    assert psnr_db(first, second) == pytest.approx(10 * math.log10(255**2 / error_sq), rel=1e-12)


def test_one_value_of_a_large_picture_counts():
    first = np.zeros((1500, 1500, 3), np.uint8)
    second = first.copy()
    second[-1, -1, -1] = 1
    assert psnr_db(first, second) == pytest.approx(10 * math.log10(255**2 * first.size), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([20, 30], (25, 0)), ([20, np.inf, 30], (25, 1)), ([np.inf, np.inf], (np.inf, 2))],
)
def test_equal_pairs_are_counted_beside_the_mean_of_the_others(values, expected):
    assert mean_psnr_db(np.array(values)) == expected
