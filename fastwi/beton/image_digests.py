"""The file beside a .beton that has a digest of each of its images, so that a streamed one is checked as it is read.

One record an image, in the order of the .beton, and nothing else: its label, and BLAKE2b (16 bytes) over mode,
height, width, number of stored bytes and label (little-endian int64 each), then the bytes as they are stored.
BLAKE2b, since its speed needs no special instructions of the processor.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastwi.errors import BetonError

RECORD = np.dtype([("label", "<i8"), ("digest", "V16")])
_BYTES = 16
_NUMBERS = 5 * 8  # bytes of the numbers that go before those that are stored

Stored = bytes | bytearray | memoryview


def image_digest(mode: int, height: int, width: int, label: int, stored: Stored) -> bytes:
    """The 16 bytes that name an image as it is stored, with its label."""
    return _digest(np.array([mode, height, width, len(stored), label], "<i8").tobytes(), stored)


def _digest(numbers: bytes, stored: Stored) -> bytes:
    digest = hashlib.blake2b(numbers, digest_size=_BYTES)
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
        return cls(labels_N.astype("<i8"), b"".join(digests))

    @classmethod
    def read(cls, path: str | os.PathLike[str], sha256: str) -> "ImageDigests":
        """Read the file `path`.

        Raises BetonError where it is missing or is not the one of this SHA-256.
        """
        path = Path(path)
        again = "write the dataset again with python -m data_prep"
        try:
            if not path.is_file():  # a named pipe would wait for ever
                raise BetonError(f"{path}: the digests of the images are missing; {again}")
            data = path.read_bytes()
        except OSError as error:
            raise BetonError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BetonError(f"{path}: not the digests that card.json was written for (SHA-256); {again}")
        records_N = np.frombuffer(data, RECORD)
        return cls(records_N["label"].astype(np.int64), records_N["digest"].tobytes())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    def __getitem__(self, n: int) -> bytes:
        """The digest of image n."""
        return self.digests[n * _BYTES : (n + 1) * _BYTES]

    def checker(
        self, modes_N: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray, sizes_N: np.ndarray
    ) -> Callable[[int, Stored], bool]:
        """A function of n and stored bytes: whether these are image n, of the mode and sizes given (int64 each).

        All that can be done beforehand is: it is called for every image that is streamed.
        """
        columns = (modes_N, heights_N, widths_N, sizes_N, self.labels_N)
        numbers, digests = np.stack(columns, axis=1).astype("<i8").tobytes(), self.digests

        def check(n: int, stored: Stored) -> bool:
            found = _digest(numbers[n * _NUMBERS : (n + 1) * _NUMBERS], stored)
            return found == digests[n * _BYTES : (n + 1) * _BYTES]

        return check

    def to_bytes(self) -> bytes:
        """The content of the file."""
        records_N = np.zeros(len(self), RECORD)
        records_N["label"] = self.labels_N
        records_N["digest"] = np.frombuffer(self.digests, f"V{_BYTES}")
        return records_N.tobytes()

    @property
    def sha256(self) -> str:
        """Of the file, as 64 hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
