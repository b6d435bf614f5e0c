"""The file beside a .beton that has a digest of each of its images, so that a streamed one is checked as it is read.

One record an image, in the order of the .beton, and nothing else: its label, and BLAKE2b (16 bytes) over mode,
height, width, number of stored bytes and label (little-endian int64 each), then the bytes as they are stored.
BLAKE2b, since its speed needs no special instructions of the processor.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastwi.errors import BetonError

_BYTES = 16
RECORD = np.dtype([("label", "<i8"), ("digest", f"V{_BYTES}")])

Stored = bytes | bytearray | memoryview


def image_digest(mode: int, height: int, width: int, label: int, stored: Stored) -> bytes:
    """The 16 bytes that name an image as it is stored, with its label."""
    digest = hashlib.blake2b(struct.pack("<5q", mode, height, width, len(stored), label), digest_size=_BYTES)
    digest.update(stored)
    return digest.digest()


@dataclass(frozen=True, eq=False)
class ImageDigests:
    """Labels and digests of the images of one .beton, in its order.

    labels_N int64; digests: `image_digest` of each image, one after another.
    """

    labels_N: np.ndarray
    digests: bytes

    @classmethod
    def of(cls, digests: Iterable[bytes], labels_N: np.ndarray) -> "ImageDigests":
        """Of images whose `image_digest` is known."""
        return cls(labels_N, b"".join(digests))

    @classmethod
    def read(cls, path: str | os.PathLike[str], sha256: str) -> "ImageDigests":
        """Read the file `path`.

        Raises BetonError where it is missing or is not the one of this SHA-256.
        """
        path = Path(path)
        again = "write the dataset again with python -m data_prep"
        try:
            if not path.is_file():  # opening a named pipe would wait for a writer
                raise BetonError(f"{path}: the digests of the images are missing; {again}")
            data = path.read_bytes()
        except OSError as error:
            raise BetonError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BetonError(f"{path}: not the digests that card.json was written for (SHA-256); {again}")
        records_N = np.frombuffer(data, RECORD)
        return cls(records_N["label"].astype(np.int64), records_N["digest"].tobytes())

    def __getitem__(self, n: int) -> bytes:
        """The digest of image n."""
        return self.digests[n * _BYTES : (n + 1) * _BYTES]

    def to_bytes(self) -> bytes:
        """The content of the file."""
        records_N = np.zeros(len(self.labels_N), RECORD)
        records_N["label"] = self.labels_N
        records_N["digest"] = np.frombuffer(self.digests, RECORD["digest"])
        return records_N.tobytes()

    @property
    def sha256(self) -> str:
        """Of the file, as 64 hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
