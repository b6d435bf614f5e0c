"""Betons of JPEGs and raw images of any sizes, and FFCV's writer for the like."""

import io
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.dataset import Split
from fastwi.beton import StoredBeton, StoredImage, write_stored
from fastwi.beton.digests import DIGEST, image_digest
from fastwi.beton.format import JPEG, RAW, page_size_for
from fastwi.sealed import sha256_of


def smooth_image(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], more like a photograph than noise is."""
    coarse = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg_of(image_HWC: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def random_stored(
    seed: int, samples: int, sides: tuple[int, int] = (1, 40), jpegs: float = 0.5
) -> tuple[list[StoredImage], np.ndarray]:
    """Images of random sizes, a share `jpegs` of them JPEGs of many kinds, and labels 0 .. 9."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(samples):
        height, width = (int(side) for side in generator.integers(sides[0], sides[1] + 1, 2))
        image_HWC = smooth_image(generator, height, width)
        if generator.random() < jpegs:
            options = {
                "quality": int(generator.integers(30, 100)),
                "subsampling": int(generator.integers(3)),
                "progressive": bool(generator.integers(2)),
            }
            mode = ("RGB", "L")[int(generator.random() < 0.2)]
            images.append(StoredImage(JPEG, height, width, jpeg_of(image_HWC, mode, **options)))
        else:
            images.append(StoredImage(RAW, height, width, image_HWC.tobytes()))
    return images, generator.integers(0, 10, samples)


def write_images(path: Path, images: list[StoredImage], labels_N: np.ndarray, largest: int = 0) -> Path:
    """Write a beton, with pages for images of `largest` bytes."""
    write_stored(path, images, labels_N, page_size_for(largest or max(len(image.data) for image in images)))
    return path


def read_beton(path: Path) -> Split:
    """All of a beton of raw images of one size."""
    with closing(StoredBeton(path)) as beton:
        return Split(beton.read_raw(), beton.labels_N)


def write_beton(path: Path, images_NHWC: np.ndarray, labels_N: np.ndarray, page_size: int = 0) -> None:
    images = (image for image, _ in Split(images_NHWC, labels_N).stored())
    write_stored(path, images, labels_N, page_size or page_size_for(images_NHWC[0].nbytes))


def write_digests(path: Path, images: list[StoredImage], labels_N: np.ndarray) -> str:
    """Write the digests of the images that `write_images` writes; the SHA-256 of the file."""
    digests_N = np.zeros(len(images), DIGEST)
    for n, image in enumerate(images):
        label = int(labels_N[n])
        digest = image_digest(image.mode, image.height, image.width, label, image.data)
        digests_N[n] = (label, digest)
    path.write_bytes(digests_N.tobytes())
    return sha256_of(digests_N.tobytes())
