"""The reference decoder's refusals, and crop and resize against exact arithmetic in float64."""

import importlib.util
from fractions import Fraction

import numpy as np
import pytest
import torch
from stored_samples import jpeg_of, random_stored, smooth_image

from fastwi.data.decode import center_crop, decode_jpeg, decoder, fit
from fastwi.errors import BetonError


def resized_in_float64(image_HWC: np.ndarray, to_height: int, to_width: int) -> np.ndarray:
    """The documented resize without its roundings."""

    def weights(size: int, to_size: int) -> np.ndarray:
        """[to_size, size]: a triangle of half-width max(scale, 1) input pixels around each output pixel's centre."""
        scale = size / to_size
        centres = (np.arange(to_size) + 0.5) * scale
        distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
        triangle = np.maximum(0.0, 1.0 - distance)
        return triangle / triangle.sum(axis=1, keepdims=True)

    height, width = image_HWC.shape[:2]
    rows = np.einsum("wx,hxc->hwc", weights(width, to_width), image_HWC.astype(np.float64))
    return np.einsum("hy,ywc->hwc", weights(height, to_height), rows)


def test_fit_is_the_documented_crop_and_resize(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width, to_height, to_width = (int(side) for side in generator.integers(1, 70, 4))
    image_HWC = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left, rows, columns = center_crop(height, width, to_height, to_width)
    crop_HWC = image_HWC[top : top + rows, left : left + columns]
    fitted_HWC = fit(image_HWC, to_height, to_width)
    assert fitted_HWC.shape == (to_height, to_width, 3)
    assert fitted_HWC.dtype == np.uint8
    # Two roundings to 8 bits, half a step each; weights are rounded to 2^-22 of 255, 140 of them at most.
    expected_HWC = resized_in_float64(crop_HWC, to_height, to_width)
    assert np.abs(fitted_HWC - expected_HWC).max() <= 1.02
    np.testing.assert_array_equal(fit(image_HWC, to_height, to_width), fitted_HWC)


def test_images_of_the_size_are_untouched_and_exact_crops_only_cropped(seed: int) -> None:
    image_HWC = np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    assert fit(image_HWC, 9, 14) is image_HWC
    np.testing.assert_array_equal(fit(image_HWC, 9, 9), image_HWC[:, 2:11])


def test_center_crop_is_the_nearest_to_the_targets_shape(seed: int) -> None:
    height, width, to_height, to_width = (int(side) for side in np.random.default_rng(seed).integers(1, 300, 4))
    top, left, rows, columns = center_crop(height, width, to_height, to_width)
    assert rows == height or columns == width
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    # Centered: what is left over is halved, the odd pixel at the end.
    assert 0 <= height - rows - 2 * top <= 1
    assert 0 <= width - columns - 2 * left <= 1
    exact = Fraction(height * to_width, to_height) if rows == height else Fraction(width * to_height, to_width)
    found = columns if rows == height else rows
    assert abs(found - exact) <= Fraction(1, 2) or found == 1


def test_center_crop_by_hand() -> None:
    assert center_crop(100, 150, 32, 32) == (0, 25, 100, 100)
    assert center_crop(7, 5, 3, 4) == (1, 0, 4, 5)  # 3.75 rows to the nearest
    assert center_crop(6, 5, 1, 2) == (1, 0, 3, 5)  # 2.5 rows: halves up
    assert center_crop(1, 1000, 32, 32) == (0, 499, 1, 1)
    assert center_crop(1000, 1, 2, 900) == (499, 0, 1, 1)


def test_what_is_no_jpeg_of_the_size(seed: int) -> None:
    image_HWC = smooth_image(np.random.default_rng(seed), 24, 16)
    data = jpeg_of(image_HWC)
    with pytest.raises(BetonError, match="is a JPEG of 24 x 16 pixels, not 16 x 24 as the file says"):
        decode_jpeg(data, 16, 24)
    for bad in (b"", b"x" * 500, b"\x89PNG\r\n\x1a\n" + bytes(90)):
        with pytest.raises(BetonError, match="is not a JPEG"):
            decode_jpeg(bad, 24, 16)
    with pytest.raises(BetonError, match="is a damaged JPEG"):
        decode_jpeg(data[:-20], 24, 16)


@pytest.mark.ffcv
@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")
def test_ffcvs_decoder(seed: int) -> None:
    torch.set_num_threads(2)
    decode = decoder("ffcv")
    assert torch.get_num_threads() == 2
    generator = np.random.default_rng(seed)
    difference = []
    for image in random_stored(seed, 30, jpegs=1.0)[0]:
        pixels_HWC = decode(image.data, image.height, image.width)
        assert pixels_HWC.shape == (image.height, image.width, 3)
        reference_HWC = decode_jpeg(image.data, image.height, image.width)
        difference.append(np.abs(pixels_HWC.astype(int) - reference_HWC))
    # FFCV asks for the fast inverse DCT: about one intensity off in the mean, more where the quality is high.
    assert 0 < np.concatenate([each.reshape(-1) for each in difference]).mean() < 4
    assert max(each.max() for each in difference) <= 64
    image_HWC = smooth_image(generator, 12, 12)
    for data, said in (
        (jpeg_of(image_HWC)[:-20], "is damaged"),
        (b"no image", "is not a JPEG"),
        (jpeg_of(image_HWC[:6]), "is a JPEG of 6 x 12 pixels, not 12 x 12"),
        (jpeg_of(image_HWC, "CMYK"), "of a kind that FFCV cannot decode"),
    ):
        with pytest.raises(BetonError, match=said):
            decode(data, 12, 12)
