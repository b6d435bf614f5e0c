"""Corrupted images against colorsys, Pillow, plain loops, and the moments of the noise."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from fastwi.config.sweep import CORRUPTIONS
from fastwi.data import corruptions
from fastwi.data.corruptions import corrupted


@pytest.fixture
def images_NHWC(seed):
    """Random colours, with black, white and grey images; more than are in float64 at one time."""
    images = np.random.default_rng(seed).integers(0, 256, (510, 6, 9, 3), dtype=np.uint8)
    images[:3] = np.array([0, 255, 100], np.uint8)[:, None, None, None]
    return images


def test_each_name_of_the_option_has_five_strengths():
    assert tuple(corruptions._CORRUPTIONS) == CORRUPTIONS
    assert all(len(strengths) == 5 for _, strengths in corruptions._CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_are_changed_the_same_way_each_time_and_more_with_severity(name, images_NHWC):
    before = images_NHWC.copy()
    found = [corrupted(images_NHWC, name, severity) for severity in range(1, 6)]
    assert (images_NHWC == before).all()
    assert all(each.dtype == np.uint8 and each.shape == images_NHWC.shape for each in found)
    assert (corrupted(images_NHWC, name, 2) == found[1]).all()
    changes = [float(np.abs(each.astype(float) - images_NHWC).mean()) for each in found]
    assert changes[0] > 0.5
    if name not in ("saturate", "pixelate"):  # less saturation at 1 and 2, more from 3 on; pixels of 6 x 9 are few
        assert changes == sorted(set(changes))
    # What is not noise is a function of the image alone, wherever it stands.
    again = corrupted(images_NHWC[7:8], name, 3)
    assert bool((again == found[2][7:8]).all()) == (not name.endswith("noise"))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(2, 1, 7, 3), (2, 7, 1, 3), (2, 1, 1, 3)])
def test_images_of_one_pixel_a_side(name, shape):
    assert corrupted(np.full(shape, 100, np.uint8), name, 5).shape == shape


def by_colorsys(pixel, change):
    hsv = change(*colorsys.rgb_to_hsv(*(pixel / 255.0)))
    return 255 * np.clip(np.array(colorsys.hsv_to_rgb(*hsv)), 0, 1)


@pytest.mark.parametrize(
    ("name", "severity", "change"),
    [
        ("brightness", 4, lambda h, s, v: (h, s, min(v + 0.2, 1))),
        ("saturate", 1, lambda h, s, v: (h, s * 0.3, v)),
        ("saturate", 5, lambda h, s, v: (h, min(s * 2.5 + 0.2, 1), v)),
    ],
)
def test_colours_are_those_of_colorsys(name, severity, change, images_NHWC):
    images = images_NHWC[:6]
    expected = np.array([by_colorsys(pixel, change) for pixel in images.reshape(-1, 3)]).reshape(images.shape)
    found = corrupted(images, name, severity)
    assert ((found <= expected + 1e-9) & (found > expected - 1 - 1e-9)).all()  # rounded down


def test_contrast_pulls_towards_each_channels_mean(images_NHWC):
    found = corrupted(images_NHWC[:5], "contrast", 3)
    for image, changed in zip(images_NHWC[:5].astype(float), found, strict=True):
        for channel in range(3):
            mean = image[..., channel].mean()
            expected = mean + 0.4 * (image[..., channel] - mean)
            assert (np.abs(changed[..., channel] - expected + 0.5) <= 0.5 + 1e-9).all()


def test_blurs_against_loops(images_NHWC):
    image = images_NHWC[9].astype(float)
    height, width, _ = image.shape
    bell = np.exp(-np.array([1, 0, 1]) / (2 * 0.2**2)) / np.exp(-np.array([1, 0, 1]) / (2 * 0.2**2)).sum()
    kernel: dict[tuple[int, int], float] = {}
    for y, x in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):  # the disk of radius 1
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                at = (y + i, x + j)
                kernel[at] = kernel.get(at, 0) + bell[i + 1] * bell[j + 1] / 5

    def mirrored(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    expected = np.zeros_like(image)
    for (y, x), weight in kernel.items():
        for i in range(height):
            for j in range(width):
                expected[i, j] += weight * image[mirrored(i + y, height), mirrored(j + x, width)]
    found = corrupted(images_NHWC[9:10], "defocus_blur", 4)[0]
    assert (np.abs(found - expected + 0.5) <= 0.5 + 1e-9).all()

    reach = np.arange(-4, 5)
    bell = np.exp(-(reach**2) / 2) / np.exp(-(reach**2) / 2).sum()
    rows = [
        sum(b * image[np.clip(i + r, 0, height - 1)] for b, r in zip(bell, reach, strict=True)) for i in range(height)
    ]
    both = [
        sum(b * np.array(rows)[:, np.clip(j + r, 0, width - 1)] for b, r in zip(bell, reach, strict=True))
        for j in range(width)
    ]
    expected = np.stack(both, axis=1)
    found = corrupted(images_NHWC[9:10], "gaussian_blur", 5)[0]
    assert (np.abs(found - expected + 0.5) <= 0.5 + 1e-9).all()


def test_pixelate_and_jpeg_are_pillows(images_NHWC, tmp_path):
    image = Image.fromarray(images_NHWC[11])
    small = image.resize((int(9 * 0.75), int(6 * 0.75)), Image.Resampling.BOX).resize((9, 6), Image.Resampling.BOX)
    assert (corrupted(images_NHWC[11:12], "pixelate", 4)[0] == np.asarray(small)).all()
    image.save(tmp_path / "x.jpg", quality=40)
    with Image.open(tmp_path / "x.jpg") as read:
        assert (corrupted(images_NHWC[11:12], "jpeg", 5)[0] == np.asarray(read)).all()


@pytest.mark.parametrize(
    ("name", "severity", "deviation"),
    [("gaussian_noise", 3, 0.08), ("shot_noise", 5, (0.5 / 50) ** 0.5), ("speckle_noise", 5, 0.5 * 0.2)],
)
def test_moments_of_noise(name, severity, deviation):
    grey = np.full((40, 32, 32, 3), 128, np.uint8)
    noise = corrupted(grey, name, severity) / 255.0 + 0.5 / 255 - 128 / 255.0
    count = noise.size
    assert abs(noise.mean()) < 5 * deviation / count**0.5 + 1e-3
    assert noise.std() == pytest.approx(deviation, rel=0.02)
    other = corrupted(grey, name, severity - 1).astype(float)
    flat = np.concatenate([noise, other]).reshape(80, -1)
    assert abs(np.corrcoef(flat)[np.triu_indices(80, 1)]).max() < 0.1  # no two share draws


def test_impulse_noise_is_black_and_white():
    grey = np.full((40, 32, 32, 3), 128, np.uint8)
    found = corrupted(grey, "impulse_noise", 5)
    shares = [(found == value).mean() for value in (0, 255, 128)]
    assert shares == pytest.approx([0.035, 0.035, 0.93], abs=2e-3)
