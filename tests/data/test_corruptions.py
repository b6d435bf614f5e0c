"""Corrupted images against colorsys, Pillow, plain loops, and the moments of the noise."""

import colorsys
import itertools

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


def test_strengths_are_those_of_the_script_for_cifar_10():
    assert {name: strengths for name, (_, strengths) in corruptions._CORRUPTIONS.items()} == {
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.1),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "jpeg": (80, 65, 58, 50, 40),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "shot_noise": (500, 250, 100, 75, 50),
        "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    }
    assert tuple(corruptions._CORRUPTIONS) == CORRUPTIONS


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
    for n in (7, 505):
        again = corrupted(images_NHWC[n : n + 1], name, 3)
        assert bool((again == found[2][n]).all()) == (not name.endswith("noise"))


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

    def mirrored(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    cross = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    square = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    # Disks of radius 1/2, 1 and 3/2.
    for severity, disk, sigma in ((3, [(0, 0)], 0.6), (4, cross, 0.2), (5, square, 0.1)):
        bell = np.exp(-np.array([1, 0, 1]) / (2 * sigma**2))
        bell /= bell.sum()
        expected = np.zeros_like(image)
        for (y, x), (i, j) in itertools.product(disk, square):
            weight = bell[i + 1] * bell[j + 1] / len(disk)
            for h, w in itertools.product(range(height), range(width)):
                expected[h, w] += weight * image[mirrored(h + y + i, height), mirrored(w + x + j, width)]
        found = corrupted(images_NHWC[9:10], "defocus_blur", severity)[0]
        assert (np.abs(found - expected + 0.5) <= 0.5 + 1e-9).all()

    reach = np.arange(-2, 3)  # SciPy's: to 4 sigma
    bell = np.exp(-(reach**2) / (2 * 0.6**2))
    bell /= bell.sum()
    rows = [
        sum(b * image[np.clip(i + r, 0, height - 1)] for b, r in zip(bell, reach, strict=True)) for i in range(height)
    ]
    both = [
        sum(b * np.array(rows)[:, np.clip(j + r, 0, width - 1)] for b, r in zip(bell, reach, strict=True))
        for j in range(width)
    ]
    expected = np.stack(both, axis=1)
    found = corrupted(images_NHWC[9:10], "gaussian_blur", 2)[0]
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


def test_neither_corruptions_nor_images_share_draws():
    """Images beyond those that are in float64 at one time neither."""
    grey = np.full((2 * corruptions._TOGETHER, 8, 8, 3), 128, np.uint8)
    names = [name for name in CORRUPTIONS if name.endswith("noise")]
    halves = np.concatenate([corrupted(grey, name, 5).astype(float).reshape(2, -1) for name in names])
    assert abs(np.corrcoef(halves)[np.triu_indices(2 * len(names), 1)]).max() < 0.03
