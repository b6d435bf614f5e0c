"""Digests of a dataset's content. Where in the file images lie, and which file holds them, does not matter."""

import hashlib

import numpy as np

from fastwi.beton.stream import StoredBeton
from fastwi.beton.writer import check_arrays

_BLOCK = 1 << 24  # bytes hashed at a time, so that a strided array is never copied whole


def content_sha256(images_NHWC: np.ndarray, labels_N: np.ndarray) -> str:
    """SHA-256 over shape, dtype and values of a split, as 64 hexadecimal digits.

    images_NHWC is uint8 `[N, H, W, 3]` in any memory layout, labels_N integers `[N]`, hashed as int64.
    Raises BetonError where the arrays have other dtypes or do not belong together.
    """
    check_arrays(images_NHWC, labels_N)
    digest = hashlib.sha256(_content_head(images_NHWC.shape))
    step = max(1, _BLOCK // images_NHWC[0].nbytes)
    for first in range(0, len(images_NHWC), step):
        digest.update(np.ascontiguousarray(images_NHWC[first : first + step]).data)
    digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
    return digest.hexdigest()


def stored_sha256(beton: StoredBeton) -> str:
    """The digest of an open file's content, as 64 hexadecimal digits, reading one image at a time.

    For raw images of one size it is their `content_sha256`. For all others SHA-256 over the count; of each image its
    mode, height, width and number of bytes (little-endian int64) and the bytes as stored; the labels as int64.
    """
    size = beton.one_size if beton.all_raw else None
    head = f"stored images [{len(beton)}] labels int64\n".encode()
    digest = hashlib.sha256(_content_head((len(beton), *size, 3)) if size else head)
    for n in range(len(beton)):
        stored = beton.read(n)
        if size is None:
            digest.update(np.array([beton.modes_N[n], *beton.size(n), len(stored)], "<i8").data)
        digest.update(stored)
    digest.update(beton.labels_N.astype("<i8").data)
    return digest.hexdigest()


def _content_head(shape_NHWC: tuple[int, ...]) -> bytes:
    return f"images uint8 [{','.join(map(str, shape_NHWC))}] labels int64\n".encode()
