import numpy as np
import pytest
import torch
from PIL import Image

from reid_models.data.transforms import (
    DEVIATION,
    MEAN,
    eval_transform,
    random_erasing,
    random_tone,
    resize_pixels,
    to_gray,
    to_images,
    to_pixels,
    train_transform,
)


def some_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_grey_level_comes_back_from_network_input():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(to_pixels(to_images(pixels)), pixels)


def test_pixels_outside_the_range_are_clipped():
    assert set(to_pixels(torch.full((1, 3, 2, 2), 100.0)).ravel()) == {255}
    assert set(to_pixels(torch.full((1, 3, 2, 2), -100.0)).ravel()) == {0}


def test_levels_are_rounded_or_cut_off():
    levels = torch.tensor([0.4, 0.6, 99.9, 254.5001]).double()
    mean, deviation = (torch.tensor(values).double()[:, None] for values in (MEAN, DEVIATION))
    images = ((levels / 255 - mean) / deviation).float().view(1, 3, 2, 2)
    assert to_pixels(images)[0, :, :, 0].ravel().tolist() == [0, 1, 100, 255]
    assert to_pixels(images, levels="truncated")[0, :, :, 1].ravel().tolist() == [0, 0, 99, 254]


def test_the_mean_colour_becomes_zero_and_one_deviation_becomes_one():
    unit = torch.tensor([MEAN, [m + d for m, d in zip(MEAN, DEVIATION, strict=True)]])
    pixels = (unit * 255).round().to(torch.uint8).numpy()[:, None, None, :]
    expected = torch.tensor([0.0, 1.0])[:, None].expand(2, 3)
    # a grey level is 1/255, up to 0.02 of a deviation; rounding costs half of it
    torch.testing.assert_close(to_images(pixels)[:, :, 0, 0], expected, atol=0.01, rtol=0)


def test_gray_is_the_mean_of_the_normalised_channels():
    images = to_images(some_pixels(2, 8, 4, 3))
    torch.testing.assert_close(to_gray(images)[:, 0], (images[:, 0] + images[:, 1] + images[:, 2]) / 3)


def test_evaluation_resizes_with_pillows_bicubic_to_height_and_width():
    pixels = some_pixels(50, 21, 3)
    by_pillow = np.asarray(Image.fromarray(pixels).resize((32, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_pixels(pixels, (64, 32)), by_pillow)
    image = eval_transform(pixels, (64, 32))
    assert image.shape == (3, 64, 32)
    torch.testing.assert_close(image, to_images(by_pillow)[0])


def test_training_without_augmentation_is_evaluation():
    pixels = some_pixels(50, 21, 3)
    image = train_transform(pixels, (64, 32), generator=generator(), flip=0, pad=0)
    torch.testing.assert_close(image, eval_transform(pixels, (64, 32)))


def test_a_certain_flip_mirrors():
    pixels = some_pixels(8, 4, 3)
    image = train_transform(pixels, (8, 4), generator=generator(), flip=1, pad=0)
    torch.testing.assert_close(image, eval_transform(pixels, (8, 4)).flip(2))


def test_padding_moves_the_picture_and_repeats_its_edge():
    pixels = np.zeros((8, 4, 3), dtype=np.uint8)
    pixels[:, -1] = 255
    columns_lit = {
        int(
            (
                to_pixels(train_transform(pixels, (8, 4), generator=generator(seed), flip=0, pad=3)[None])[0, 0, :, 0]
                > 0
            ).sum()
        )
        for seed in range(60)
    }
    assert columns_lit == {0, 1, 2, 3, 4}


def test_the_generator_alone_decides():
    pixels = some_pixels(30, 15, 3)

    def drawn(seed):
        torch.manual_seed(seed + 1)
        return train_transform(pixels, (32, 16), generator=generator(0), erase=1.0)

    torch.testing.assert_close(drawn(1), drawn(2))
    other = train_transform(pixels, (32, 16), generator=generator(5), erase=1.0)
    assert not torch.equal(drawn(1), other)


def test_erasing_sets_one_rectangle_to_the_mean_colour_and_leaves_its_input_alone():
    images = torch.ones(200, 3, 64, 32)
    erased = random_erasing(images, 1.0, generator=generator())
    assert images.min() == 1
    for image in erased:
        zeros = (image == 0).all(0)
        rows, columns = zeros.any(1).nonzero()[:, 0], zeros.any(0).nonzero()[:, 0]
        box_h, box_w = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert zeros.sum() == box_h * box_w
        assert 0.01 < box_h * box_w / (64 * 32) < 0.43  # 2 % to 40 %, sides rounded to whole pixels


def test_erased_rectangles_reach_from_2_to_40_percent_and_from_flat_to_tall():
    """Zhong et al. 2017 draw both uniformly: of so many, some come near each end, and none passes it."""
    zeros = (random_erasing(torch.ones(1500, 1, 100, 100), 1.0, generator=generator()) == 0)[:, 0]
    heights, widths = zeros.any(2).sum(1), zeros.any(1).sum(1)
    share, aspect = heights * widths / 100**2, heights / widths
    rounded = 0.01  # sides are whole pixels of 100
    assert 0.02 - rounded < share.min() < 0.03
    assert 0.38 < share.max() < 0.40 + rounded
    assert 0.27 < aspect.min() < 0.36  # 0.3, by sides of 8 pixels and more
    assert 3.0 < aspect.max() < 3.7
    torch.testing.assert_close(share.median(), torch.tensor(0.21), atol=0.02, rtol=0)  # 1500 draws scatter by 0.004


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_erasing_happens_as_often_as_asked(probability, low, high):
    erased = random_erasing(torch.ones(200, 3, 16, 8), probability, generator=generator())
    assert low <= int((erased == 0).flatten(1).any(1).sum()) <= high


def test_a_random_tone_is_a_curve_in_the_picture_s_own_range():
    levels = torch.linspace(-2, 2, 32).repeat(50, 1, 4, 1) + torch.arange(50.0)[:, None, None, None]
    toned = random_tone(levels, 1.0, generator=generator())
    assert torch.equal(toned[:, :, 0], toned[:, :, 3])  # equal levels stay equal
    assert (toned >= levels.amin((1, 2, 3), keepdim=True) - 1e-4).all()
    assert (toned <= levels.amax((1, 2, 3), keepdim=True) + 1e-4).all()
    # Straight between four values: of 30 second differences only those at the two inner values are not 0.
    assert ((toned[:, 0, 0].diff(n=2, dim=1).abs() > 1e-4).sum(1) <= 4).all()
    assert len({round(float(row[0]), 4) for row in toned[:, 0, 0] - levels[:, 0, 0]}) == 50  # each by its own curve
    falling = (toned[:, 0, 0].diff(dim=1) < 0).any(1)
    assert 5 < int(falling.sum()) < 45


def test_no_share_of_a_tone_leaves_pictures_as_they_are_and_flat_ones_are_finite():
    gray = torch.randn(3, 1, 8, 4)
    assert torch.equal(random_tone(gray, 0.0, generator=generator()), gray)
    assert random_tone(torch.ones(1, 1, 4, 4), 1.0, generator=generator()).isfinite().all()
    assert torch.equal(random_tone(gray, 0.5, generator=generator(1)), random_tone(gray, 0.5, generator=generator(1)))
