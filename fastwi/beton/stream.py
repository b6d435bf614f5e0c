"""Open a .beton file of raw images, JPEGs or both, of any sizes, and read its images one at a time.

Images are read with pread, not through a memory map: a file that is cut short while it is mapped kills the process
(SIGBUS), where a short read is an error with a name. Places and sizes are checked when the file is opened, and each
image when it is read, where its digest is known (`fastwi.beton.image_digests`).
"""

import contextlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastwi.beton.checks import (
    Contents,
    check_places,
    check_sides,
    damaged,
    find_allocations,
    map_file,
    open_file,
    read_contents,
    refuse,
)
from fastwi.beton.format import JPEG, RAW
from fastwi.beton.image_digests import ImageDigests, Stored
from fastwi.errors import BetonError

MAX_JPEG_PIXELS = 1 << 26
"""A JPEG of a few bytes may claim any size; more pixels than this are refused before memory is taken for them."""


class StoredBeton:
    """An open .beton file. Nothing of it but its metadata is held in memory. Safe to read from several threads.

    The file stays open until `close`, or until nothing refers to this object any more. A file that another one
    replaces meanwhile is read on as it was.

    Attributes:
        path: of the file.
        descriptor: of the open file.
        image_field, field_names: names, as FFCV's Loader offers the fields.
        modes_N: uint8, `format.RAW` or `format.JPEG`.
        heights_N, widths_N: int64, pixels.
        sizes_N: int64, bytes that are stored.
        labels_N: int64.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Check the whole file but its pixels.

        Raises:
            BetonError: the file does not exist, is cut short, foreign, inconsistent or of a kind not supported.
        """
        self.path = Path(path)
        self._is_image: Callable[[int, Stored], bool] | None = None
        self.descriptor = open_file(self.path)
        self._finalizer = weakref.finalize(self, os.close, self.descriptor)
        try:
            self._read_metadata(map_file(self.path, self.descriptor))
        except BaseException:
            self.close()
            raise

    def _read_metadata(self, file_N: np.ndarray) -> None:
        """Copies, all of them: a view would keep the file mapped."""
        contents = read_contents(self.path, file_N)
        images_N = contents.images_N
        self.image_field, self.field_names = contents.image_field, contents.field_names
        self.modes_N: np.ndarray = images_N["mode"].copy()
        self.heights_N: np.ndarray = images_N["height"].astype(np.int64)
        self.widths_N: np.ndarray = images_N["width"].astype(np.int64)
        self.labels_N = contents.labels_N
        self._check_modes_and_sides(images_N)
        sizes_N = self._stored_sizes(contents)
        check_places(self.path, contents, sizes_N)
        self.sizes_N: np.ndarray = sizes_N.astype(np.int64)
        self._pointers_N: np.ndarray = images_N["data_ptr"].astype(np.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    @property
    def all_raw(self) -> bool:
        """Whether no image is a JPEG."""
        return bool((self.modes_N == RAW).all())

    @property
    def one_size(self) -> tuple[int, int] | None:
        """Height and width of every image; None where they differ."""
        height, width = int(self.heights_N[0]), int(self.widths_N[0])
        alike = (self.heights_N == height).all() and (self.widths_N == width).all()
        return (height, width) if alike else None

    def size(self, n: int) -> tuple[int, int]:
        """Height and width of image n."""
        return int(self.heights_N[n]), int(self.widths_N[n])

    def hold_to(self, digests: ImageDigests) -> None:
        """Refuse, from now on, every image that is not the one of its digest.

        Raises:
            BetonError: the labels, which are read already, are not those of `digests`.
        """
        if not np.array_equal(self.labels_N, digests.labels_N):
            refuse(self.path, "not the labels that the dataset was written with; write the dataset again")
        self._is_image = digests.checker(self.modes_N, self.heights_N, self.widths_N, self.sizes_N)

    def check(self, n: int, stored: Stored) -> None:
        """Raise BetonError unless `stored` are the bytes of image n, where its digest is known."""
        if self._is_image is not None and not self._is_image(n, stored):
            refuse(
                self.path, f"image {n} is not the one that the dataset was written with (BLAKE2b); write the dataset "
                "again with python -m data_prep, and check the disk"
            )  # fmt: skip

    def read(self, n: int) -> bytes:
        """The bytes of image n as they are stored: pixels [H, W, 3], or a JPEG.

        Raises:
            BetonError: the file has been cut short since it was opened, the image changed, or the disk fails.
        """
        size, stored = int(self.sizes_N[n]), b""
        if self._finalizer.alive:
            with contextlib.suppress(OSError):  # `read_into` meets it again, and says which image it was
                stored = os.pread(self.descriptor, size, int(self._pointers_N[n]))
        if len(stored) == size:
            self.check(n, stored)
            return stored
        in_parts = bytearray(size)
        self.read_into(n, memoryview(in_parts))
        return bytes(in_parts)

    def read_into(self, n: int, target: memoryview) -> None:
        """`read` into the `sizes_N[n]` bytes of `target`, without a copy between."""
        if not self._finalizer.alive:
            raise BetonError(f"{self.path}: image {n} is asked for, but the file has been closed")
        done, start = 0, int(self._pointers_N[n])
        while done < len(target):
            try:
                count = os.preadv(self.descriptor, [target[done:]], start + done)
            except OSError as error:
                raise BetonError(f"{self.path}: image {n} cannot be read ({error.strerror or error})") from error
            if count == 0:
                damaged(self.path, f"ends before image {n} does")
            done += count
        self.check(n, target)

    def close(self) -> None:
        """Close the file. Nobody may be reading; doing it twice is no error."""
        self._finalizer()

    def _check_modes_and_sides(self, images_N: np.ndarray) -> None:
        unknown = np.flatnonzero((self.modes_N != RAW) & (self.modes_N != JPEG))
        if len(unknown):
            mode = self.modes_N[unknown[0]]
            refuse(
                self.path, f"image {unknown[0]} is encoded in an unknown way (mode {mode}); write it as raw or JPEG"
            )
        check_sides(self.path, images_N)
        large = np.flatnonzero((self.modes_N == JPEG) & (self.heights_N * self.widths_N > MAX_JPEG_PIXELS))
        if len(large):
            height, width = self.size(int(large[0]))
            refuse(self.path, f"image {large[0]} is a JPEG of {height} x {width} pixels, too many; write it smaller")

    def _stored_sizes(self, contents: Contents) -> np.ndarray:
        """Bytes of each image, uint64: of raw ones by their pixels, of JPEGs by the allocation table."""
        found_N, sizes_N = find_allocations(contents)
        pixel_bytes_N = (self.heights_N * self.widths_N * 3).astype(np.uint64)
        raw_N = self.modes_N == RAW
        unknown = np.flatnonzero(~found_N | (raw_N & (sizes_N != pixel_bytes_N)) | (sizes_N == 0))
        if len(unknown):
            n = unknown[0]
            expected = f" of {pixel_bytes_N[n]} bytes" if raw_N[n] else ""
            damaged(self.path, f"has no allocation{expected} for image {n}")
        return sizes_N
