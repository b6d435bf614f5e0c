"""A digest of a dataset's content, the same whatever file or memory layout holds it."""

import hashlib

import numpy as np

from fastwi.beton.stream import StoredBeton
from fastwi.errors import BetonError

_BLOCK = 1 << 24  # bytes hashed at a time, so that a strided array is never copied whole


class ContentDigest:
    """`content_sha256` of images that come in pieces: `update` with all of them in order, then `finish`."""

    def __init__(self, shape_NHWC: tuple[int, ...]) -> None:
        shape = ",".join(str(size) for size in shape_NHWC)
        self._digest = hashlib.sha256(f"images uint8 [{shape}] labels int64\n".encode())

    def update(self, pixels: bytes | np.ndarray) -> None:
        """The pixels of the next images, contiguous."""
        self._digest.update(pixels if isinstance(pixels, bytes) else pixels.reshape(-1).data)

    def finish(self, labels_N: np.ndarray) -> str:
        """64 hexadecimal digits."""
        self._digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
        return self._digest.hexdigest()


class StoredDigest:
    """Digest of a split whose images are JPEGs or of several sizes: `update` with each in order, then `finish`.

    SHA-256 over the count; of each image its mode, height, width, number of bytes (little-endian int64) and the bytes
    as they are stored; the labels as int64. Where in the file they lie does not matter.
    """

    def __init__(self, count: int) -> None:
        self._digest = hashlib.sha256(f"stored images [{count}] labels int64\n".encode())

    def update(self, mode: int, height: int, width: int, stored: bytes) -> None:
        """The next image."""
        self._digest.update(np.array([mode, height, width, len(stored)], "<i8").tobytes())
        self._digest.update(stored)

    def finish(self, labels_N: np.ndarray) -> str:
        """64 hexadecimal digits."""
        self._digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
        return self._digest.hexdigest()


def content_sha256(images_NHWC: np.ndarray, labels_N: np.ndarray) -> str:
    """SHA-256 over shape, dtype and values of a split, as 64 hexadecimal digits.

    Args:
        images_NHWC: uint8 `[N, H, W, C]`, in any memory layout.
        labels_N: integers `[N]`; hashed as int64, so their own dtype does not matter.

    Raises:
        BetonError: the arrays have other dtypes or do not belong together.
    """
    if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4:
        raise BetonError(f"images_NHWC: {images_NHWC.dtype}{list(images_NHWC.shape)}; give uint8 [N, H, W, C]")
    if labels_N.dtype.kind not in "iu" or labels_N.shape != images_NHWC.shape[:1]:
        raise BetonError(f"labels_N: {labels_N.dtype}{list(labels_N.shape)}; give {len(images_NHWC)} integers")
    digest = ContentDigest(images_NHWC.shape)
    image_bytes = int(np.prod(images_NHWC.shape[1:], dtype=np.int64))
    step = max(1, _BLOCK // max(1, image_bytes))
    for first in range(0, len(images_NHWC), step):
        digest.update(np.ascontiguousarray(images_NHWC[first : first + step]))
    return digest.finish(labels_N)


def stored_sha256(beton: StoredBeton) -> str:
    """The digest of an open file's content, reading one image at a time.

    For raw images of one size it is their `content_sha256`; for all others that of `StoredDigest`.

    Raises:
        BetonError: an image cannot be read.
    """
    size = beton.one_size
    if size is not None and beton.all_raw:
        content = ContentDigest((len(beton), *size, 3))
        for n in range(len(beton)):
            content.update(beton.read(n))
        return content.finish(beton.labels_N)
    return every_image_sha256(beton)


def every_image_sha256(beton: StoredBeton) -> str:
    """`StoredDigest` of an open file's images, whatever they are. Raises BetonError where one cannot be read."""
    stored = StoredDigest(len(beton))
    for n in range(len(beton)):
        stored.update(int(beton.modes_N[n]), *beton.size(n), beton.read(n))
    return stored.finish(beton.labels_N)
