"""Read .beton files of raw images, JPEGs or both: `StoredBeton` one image at a time, `read_beton` as arrays.

Header, fields, metadata and allocation table are checked against the file's size when it is opened, before memory is
taken for them; each image when it is read, where its digest is known (`fastwi.beton.image_digests`). Files are read
with pread: one that is cut short while it is mapped into memory kills the process (SIGBUS).
"""

import itertools
import os
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from fastwi.beton.format import (
    ALLOCATION,
    FIELD,
    FIELD_RECORDS,
    HEADER,
    INT,
    JPEG,
    RAW,
    RGB_IMAGE,
    STORED_APART,
    VERSION,
    metadata_record,
)
from fastwi.beton.image_digests import ImageDigests, Stored, image_digest
from fastwi.errors import BetonError

MAX_JPEG_PIXELS = 1 << 26
"""A JPEG of a few bytes may claim any size; more pixels than this are refused before memory is taken for them."""


@dataclass(frozen=True)
class Beton:
    """images_NHWC: uint8 `[N, H, W, 3]`, RGB, contiguous, in the order of the samples. labels_N: int64 `[N]`."""

    images_NHWC: np.ndarray
    labels_N: np.ndarray


def read_beton(path: str | os.PathLike[str]) -> Beton:
    """Read a whole .beton file whose images are raw and of one size. Raises BetonError for others and bad ones."""
    beton = StoredBeton(path)
    try:
        return Beton(beton.read_raw(), beton.labels_N)
    finally:
        beton.close()


class StoredBeton:
    """An open .beton file. Only its metadata are held in memory. Safe to read from several threads.

    Images may lie in any order and with gaps, as FFCV's workers leave them. The file stays open until `close`, or
    until nothing refers to this object any more. A file that another one replaces meanwhile is read on.

    image_field and field_names are as FFCV's Loader offers them; modes_N uint8 (`format.RAW` or `format.JPEG`);
    heights_N and widths_N in pixels, sizes_N in stored bytes, labels_N: int64.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises BetonError: the file does not exist, is cut short, foreign, inconsistent or not supported."""
        self.path = Path(path)
        self._digests: ImageDigests | None = None
        try:
            # Before opening: opening a named pipe would wait for a writer.
            if not stat.S_ISREG(self.path.stat().st_mode):
                self._refuse("is not a regular file; give the path of a .beton file")
            self.descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            self._refuse("does not exist; write it with `python -m data_prep`")
        except OSError as error:
            self._refuse(f"cannot be read ({error.strerror or error}); check the path and its permissions")
        self._finalizer = weakref.finalize(self, os.close, self.descriptor)
        try:
            self._read_metadata(os.fstat(self.descriptor).st_size)
        except BaseException:
            self.close()
            raise

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
        height, width = self.size(0)
        alike = (self.heights_N == height).all() and (self.widths_N == width).all()
        return (height, width) if alike else None

    def size(self, n: int) -> tuple[int, int]:
        """Height and width of image n."""
        return int(self.heights_N[n]), int(self.widths_N[n])

    def hold_to(self, digests: ImageDigests) -> None:
        """Refuse, from now on, every image that does not have its digest; at once, labels that are others."""
        if not np.array_equal(self.labels_N, digests.labels_N):
            self._refuse("not the labels that the dataset was written with; write the dataset again")
        self._digests = digests

    def check(self, n: int, stored: Stored) -> None:
        """Raise BetonError unless `stored` are the bytes of image n, where its digest is known."""
        if self._digests is None:
            return
        found = image_digest(int(self.modes_N[n]), *self.size(n), int(self.labels_N[n]), stored)
        if found != self._digests[n]:
            self._refuse(
                f"image {n} is not the one that the dataset was written with (BLAKE2b); write the dataset again with "
                "python -m data_prep, and check the disk"
            )

    def read(self, n: int) -> bytearray:
        """The bytes of image n as they are stored: pixels [H, W, 3], or a JPEG.

        Raises BetonError where the file was cut short since it was opened, the image changed, or the disk fails.
        """
        stored = bytearray(int(self.sizes_N[n]))
        self.read_into(n, memoryview(stored))
        return stored

    def read_into(self, n: int, target: memoryview) -> None:
        """`read` into the `sizes_N[n]` bytes of `target`, without a copy between."""
        self._fill(target, int(self._pointers_N[n]), f"image {n}")
        self.check(n, target)

    def read_raw(self) -> np.ndarray:
        """All images, uint8 [N, H, W, 3]; digests are not looked at.

        Raises BetonError where one is a JPEG or of another size than the first, or memory is too small.
        """
        height, width = self.size(0)
        odd = np.flatnonzero((self.modes_N != RAW) | (self.heights_N != height) | (self.widths_N != width))
        if len(odd):
            n = int(odd[0])
            if self.modes_N[n] != RAW:
                self._refuse(f"image {n} is JPEG; write the file with write_mode='raw'")
            found = f"{self.heights_N[n]} x {self.widths_N[n]}"
            self._refuse(f"image {n} is {found}, image 0 is {height} x {width}; write it with one size")
        image_bytes = height * width * 3
        try:
            rows = np.empty((len(self), image_bytes), np.uint8)
        except MemoryError:
            self._refuse(f"holds {len(self) * image_bytes / 2**30:.1f} GiB of pixels, more than memory; use fewer")
        # Images that lie one after another, a page of them mostly, are read at once.
        starts = [0, *(np.flatnonzero(np.diff(self._pointers_N) != image_bytes) + 1).tolist(), len(self)]
        for first, end in itertools.pairwise(starts):
            self._fill(rows[first:end].reshape(-1).data, int(self._pointers_N[first]), f"image {first}")
        return rows.reshape(len(self), height, width, 3)

    def close(self) -> None:
        """Close the file. Nobody may be reading; doing it twice is no error."""
        self._finalizer()

    def _refuse(self, what: str) -> NoReturn:
        raise BetonError(f"{self.path}: {what}")

    def _damaged(self, what: str) -> NoReturn:
        self._refuse(f"{what}; the file is damaged or cut short, write it again")

    def _fill(self, target: memoryview, start: int, name: str) -> None:
        """Read bytes of the file from `start` on until `target` is full."""
        if not self._finalizer.alive:
            self._refuse(f"{name} is asked for, but the file has been closed")
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self.descriptor, [target[done:]], start + done)
            except OSError as error:
                raise BetonError(f"{self.path}: {name} cannot be read ({error.strerror or error})") from error
            if count == 0:
                self._damaged(f"ends before {name} does")
            done += count

    def _array(self, dtype: np.dtype, count: int, start: int) -> np.ndarray:
        values = np.empty(count, dtype)
        if count:
            self._fill(values.view(np.uint8).data, start, "metadata")
        return values

    def _read_metadata(self, size: int) -> None:
        """Check header, fields, metadata and allocation table against the file's size in bytes."""
        if size < HEADER.itemsize:
            self._refuse(f"has {size} bytes, less than a .beton header; write it again")
        version, fields, page_size, samples, table_start = self._array(HEADER, 1, 0)[0].item()
        if version != VERSION:
            self._refuse(f"is not a .beton file of version {VERSION} (its version says {version}); write it again")
        if page_size == 0 or page_size & (page_size - 1):
            self._damaged(f"says pages have {page_size} bytes, which is not a power of two")
        if samples == 0:
            self._refuse("holds no samples; write it from a dataset that has some")

        metadata_start = HEADER.itemsize + fields * FIELD.itemsize
        if metadata_start > size:
            self._damaged(f"says it has {fields} fields, more than its {size} bytes hold")
        described = self._array(FIELD, fields, HEADER.itemsize)
        type_ids: list[int] = described["type_id"].tolist()
        unknown = sorted(set(type_ids) - FIELD_RECORDS.keys())
        if unknown:
            self._refuse(f"has a field of type {unknown[0]}, which is not one of FFCV's own; write it without")
        images, labels = type_ids.count(RGB_IMAGE), type_ids.count(INT)
        if (images, labels) != (1, 1):
            self._refuse(f"has {images} RGB image fields and {labels} integer fields; write it with one of each")

        record = metadata_record(type_ids)
        metadata_end = metadata_start + samples * record.itemsize
        if metadata_end > size:
            self._damaged(f"says it has {samples} samples, more than its {size} bytes hold")
        if not metadata_end <= table_start <= size:
            self._damaged(f"says its allocation table is at byte {table_start} of {size}")
        regions = samples * sum(type_id in STORED_APART for type_id in type_ids)
        if size - table_start != regions * ALLOCATION.itemsize:
            expected = f"{regions} allocations of {ALLOCATION.itemsize} bytes"
            self._damaged(f"ends in {size - table_start} bytes of allocation table, which should be {expected}")
        table = self._array(ALLOCATION, regions, table_start)
        # Two comparisons, not a sum: a sum of damaged numbers may overflow.
        if np.any(table["ptr"] > table_start) or np.any(table["size"] > table_start - table["ptr"]):
            self._damaged("has an allocation outside of its data")

        metadata_N = self._array(record, samples, metadata_start)
        images_N = metadata_N[f"f{type_ids.index(RGB_IMAGE)}"]
        self.labels_N: np.ndarray = metadata_N[f"f{type_ids.index(INT)}"].astype(np.int64)
        self.modes_N: np.ndarray = images_N["mode"].copy()
        self.heights_N: np.ndarray = images_N["height"].astype(np.int64)
        self.widths_N: np.ndarray = images_N["width"].astype(np.int64)
        self.field_names = tuple(
            name.tobytes().split(b"\0")[0].decode("ascii", "replace") for name in described["name"]
        )
        self.image_field = self.field_names[type_ids.index(RGB_IMAGE)]
        self._check_kinds()
        sizes_N = self._stored_sizes(images_N["data_ptr"], table)
        self._check_places(images_N["data_ptr"], sizes_N, metadata_end, table_start)
        self.sizes_N: np.ndarray = sizes_N.astype(np.int64)
        self._pointers_N: np.ndarray = images_N["data_ptr"].astype(np.int64)

    def _check_kinds(self) -> None:
        """Modes are known, no image is without pixels, and no JPEG claims too many of them."""
        unknown = np.flatnonzero((self.modes_N != RAW) & (self.modes_N != JPEG))
        if len(unknown):
            n, mode = unknown[0], self.modes_N[unknown[0]]
            self._refuse(f"image {n} is encoded in an unknown way (mode {mode}); write it as raw or JPEG")
        pixels_N = self.heights_N * self.widths_N
        empty = np.flatnonzero(pixels_N == 0)
        if len(empty):
            height, width = self.size(int(empty[0]))
            self._damaged(f"says image {empty[0]} is {height} x {width} pixels")
        large = np.flatnonzero((self.modes_N == JPEG) & (pixels_N > MAX_JPEG_PIXELS))
        if len(large):
            height, width = self.size(int(large[0]))
            self._refuse(f"image {large[0]} is a JPEG of {height} x {width} pixels, too many; write it smaller")

    def _stored_sizes(self, pointers_N: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Bytes of each image by the allocation table, uint64; those of raw images must be the ones of their pixels.

        An image's entry is the one for its sample and place. Other fields' entries are elsewhere: no two regions
        share a place, except where a file is damaged or a region is empty; then the largest counts.
        """
        table = table[table["sample_id"] < len(self)]
        sample = table["sample_id"].astype(np.int64)
        of_image = pointers_N[sample] == table["ptr"]
        sizes_N = np.zeros(len(self), np.uint64)
        np.maximum.at(sizes_N, sample[of_image], table["size"][of_image])
        raw_N, pixel_bytes_N = self.modes_N == RAW, self.heights_N * self.widths_N * 3
        unknown = np.flatnonzero((sizes_N == 0) | (raw_N & (sizes_N != pixel_bytes_N.astype(np.uint64))))
        if len(unknown):
            n = unknown[0]
            expected = f" of {pixel_bytes_N[n]} bytes" if raw_N[n] else ""
            self._damaged(f"has no allocation{expected} for image {n}")
        return sizes_N

    def _check_places(self, pointers_N: np.ndarray, sizes_N: np.ndarray, start: int, end: int) -> None:
        """Every image begins at byte `start` or later (the table says where it ends); no two share a byte."""
        outside = np.flatnonzero(pointers_N < start)
        if len(outside):
            place = f"byte {pointers_N[outside[0]]}, outside of bytes {start} to {end}"
            self._damaged(f"says image {outside[0]} is at {place}")
        order_N = np.argsort(pointers_N, kind="stable")
        if np.any(np.diff(pointers_N[order_N]) < sizes_N[order_N][:-1]):
            self._damaged("says that two images overlap")
