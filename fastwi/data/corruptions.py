"""Corrupted images, made as those of CIFAR-10-C, from any dataset.

Hendrycks, Dietterich 2019 (Benchmarking Neural Network Robustness to Common Corruptions and Perturbations), with the
strengths of their script for CIFAR-10 (hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py), which are weaker
than ImageNet-C's. Here are those that need NumPy, SciPy and Pillow alone: 8 of the 15, and 3 of the 4 further ones.
Left out: glass, motion and zoom blur, snow, frost, fog, elastic transform, spatter. Draws differ from the script's.

Shapes: N images, H height, W width, C channels; intensities x are float64 in 0..1.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Intensities = NDArray[np.float64]

_TOGETHER = 500  # images in float64 at one time


def corrupted(images_NHWC: Pixels, name: str, severity: int) -> Pixels:
    """The images under corruption `name` of `fastwi.config.sweep.CORRUPTIONS`, severity 1 to 5: uint8 [N, H, W, C].

    Draws are a function of name, severity and the image's place, those of shot_noise also of the pixels up to there.
    Intensities are rounded down, as CIFAR-10-C's are.
    """
    change, strengths = _CORRUPTIONS[name]
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint64)
    draw = np.random.Generator(np.random.Philox(key=[words[0], severity]))
    result_NHWC = np.empty_like(images_NHWC)
    for first in range(0, len(images_NHWC), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        x_NHWC = change(images_NHWC[part] / 255.0, strengths[severity - 1], draw)
        result_NHWC[part] = np.clip(x_NHWC, 0, 1) * 255
    return result_NHWC


def _gaussian_noise(x: Intensities, scale: float, draw: np.random.Generator) -> Intensities:
    return x + draw.normal(scale=scale, size=x.shape)


def _shot_noise(x: Intensities, photons: float, draw: np.random.Generator) -> Intensities:
    return draw.poisson(x * photons) / photons


def _impulse_noise(x: Intensities, share: float, draw: np.random.Generator) -> Intensities:
    """That share of the values is 0 or 1, each for one half."""
    uniform = draw.random(x.shape)
    return np.where(uniform < share, (uniform < share / 2).astype(np.float64), x)


def _speckle_noise(x: Intensities, scale: float, draw: np.random.Generator) -> Intensities:
    return x + x * draw.normal(scale=scale, size=x.shape)


def _gaussian_blur(x: Intensities, sigma: float, draw: np.random.Generator) -> Intensities:
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest"))


def _defocus_blur(x: Intensities, lens: tuple[float, float], draw: np.random.Generator) -> Intensities:
    """Means over a disk of some radius, whose edge is softened by a Gaussian of 3 x 3 values."""
    from scipy import ndimage

    radius, sigma = lens
    at = np.arange(-3, 4)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    soft = ndimage.convolve(disk, np.outer(bell, bell) / bell.sum() ** 2, mode="constant") / disk.sum()
    return np.asarray(ndimage.convolve(x, soft[None, :, :, None], mode="mirror"))


def _contrast(x: Intensities, factor: float, draw: np.random.Generator) -> Intensities:
    means = x.mean(axis=(1, 2), keepdims=True)
    return (x - means) * factor + means


def _brightness(x: Intensities, added: float, draw: np.random.Generator) -> Intensities:
    """More value in hue, saturation, value: all channels by one factor; black becomes grey."""
    value = x.max(axis=3, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    return np.where(value > 0, x / np.where(value > 0, value, 1) * brighter, brighter)


def _saturate(x: Intensities, change: tuple[float, float], draw: np.random.Generator) -> Intensities:
    """The saturation s becomes s * factor + added. Grey has the hue of red, the first channel."""
    factor, added = change
    value = x.max(axis=3, keepdims=True)
    below = value - x
    span = below.max(axis=3, keepdims=True)
    saturation = np.clip(span / np.where(value > 0, value, 1) * factor + added, 0, 1)
    grey = np.array([0.0, 1.0, 1.0])
    return value * (1 - saturation * np.where(span > 0, below / np.where(span > 0, span, 1), grey))


def _pixelate(x: Intensities, share: float, draw: np.random.Generator) -> Intensities:
    height, width = x.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize(small, box).resize((width, height), box))


def _jpeg(x: Intensities, quality: int, draw: np.random.Generator) -> Intensities:
    def through_file(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, through_file)


def _by_pillow(x: Intensities, change: Callable[[Image.Image], Image.Image]) -> Intensities:
    """Each image changed as 8-bit RGB."""
    pixels_NHWC = np.rint(x * 255).astype(np.uint8)
    changed = [np.asarray(change(Image.fromarray(pixels_HWC)), np.float64) for pixels_HWC in pixels_NHWC]
    return np.stack(changed) / 255


_CORRUPTIONS: dict[str, tuple[Callable[[Intensities, Any, np.random.Generator], Intensities], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
