"""Digests of a dataset's content, and the file beside a .beton that has a digest of each of its images.

With that file a streamed image is checked when it is read. It has one record an image, in the order of the .beton:
its label, and BLAKE2b (16 bytes) over mode, height, width, number of stored bytes and label (little-endian int64
each), then the bytes as they are stored. BLAKE2b is fast on processors without special instructions.
"""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np

from fastwi.errors import BetonError
from fastwi.files import open_plain
from fastwi.sealed import sha256_of

_DIGEST_BYTES = 16
DIGEST = np.dtype([("label", "<i8"), ("digest", f"V{_DIGEST_BYTES}")])

Stored = bytes | bytearray | memoryview


def image_digest(mode: int, height: int, width: int, label: int, stored: Stored) -> bytes:
    """The 16 bytes that name an image as it is stored, with its label."""
    numbers = struct.pack("<5q", mode, height, width, len(stored), label)
    digest = hashlib.blake2b(numbers, digest_size=_DIGEST_BYTES)
    digest.update(stored)
    return digest.digest()


def read_digests(path: str | os.PathLike[str], sha256: str) -> np.ndarray:
    """The content of the file, DIGEST `[N]`. Raises BetonError where it cannot be read or has another SHA-256."""
    fix = "write the dataset again with python -m data_prep"
    try:
        with open_plain(Path(path)) as stream:
            data = stream.read()
    except OSError as error:
        raise BetonError(
            f"{path}: the digests of images cannot be read ({error.strerror or error}); {fix}"
        ) from error
    if sha256_of(data) != sha256:
        raise BetonError(f"{path}: not the digests that card.json was written for (SHA-256); {fix}")
    return np.frombuffer(data, DIGEST)


def content_sha256(images_NHWC: np.ndarray, labels_N: np.ndarray) -> str:
    """SHA-256 over shape, dtype and values of a split, as 64 hexadecimal digits.

    images_NHWC: uint8 `[N, H, W, 3]` in any memory layout. labels_N: integers `[N]`, hashed as int64.
    """
    digest = hashlib.sha256(content_head(images_NHWC.shape))
    digest.update(np.ascontiguousarray(images_NHWC).data)
    digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
    return digest.hexdigest()


def content_head(shape_NHWC: tuple[int, ...]) -> bytes:
    """What `content_sha256` hashes before the pixels."""
    return f"images uint8 [{','.join(map(str, shape_NHWC))}] labels int64\n".encode()
