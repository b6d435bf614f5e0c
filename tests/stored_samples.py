"""Betons of JPEGs and raw images of any sizes, and FFCV's writer for the like."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fastwi.beton import StoredImage, write_stored_stream
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


def write_stored(path: Path, images: list[StoredImage], labels_N: np.ndarray, largest: int = 0) -> Path:
    with open(path, "wb") as stream:
        write_stored_stream(
            stream, images, labels_N, page_size_for(largest or max(len(image.data) for image in images))
        )
    return path


def write_digests(path: Path, images: list[StoredImage], labels_N: np.ndarray) -> str:
    """Write the digests of the images that `write_stored` writes; the SHA-256 of the file."""
    digests_N = np.zeros(len(images), DIGEST)
    for n, image in enumerate(images):
        label = int(labels_N[n])
        digest = image_digest(image.mode, image.height, image.width, label, image.data)
        digests_N[n] = (label, digest)
    path.write_bytes(digests_N.tobytes())
    return sha256_of(digests_N.tobytes())
