"""Read .beton files of raw images, JPEGs or both.

Header, metadata and allocation table are checked against the file's size when it is opened; each image when it is
read, where its digest is known (`fastwi.beton.digests`). Files are read with pread: one that is cut short while it is
mapped into memory kills the process (SIGBUS).
"""

import hashlib
import itertools
import os
import weakref
from pathlib import Path
from typing import NoReturn

import numpy as np

from fastwi.beton.digests import content_head, image_digest
from fastwi.beton.format import ALLOCATION, FIELD, FIELD_TYPES, HEADER, JPEG, METADATA_START, RAW, RECORD, VERSION
from fastwi.errors import BetonError
from fastwi.files import open_plain

MAX_JPEG_PIXELS = 1 << 26
"""A JPEG of a few bytes may claim any size; more pixels than this are refused before memory is taken for them."""

_DAMAGED = "the file is damaged or cut short, write it again"


class StoredBeton:
    """An open .beton file. Only its metadata are held in memory. Safe to read from several threads.

    Images may lie in any order and with gaps, as FFCV's workers leave them. The file stays open until `close`, or
    until nothing refers to this object. A file that another one replaces meanwhile is read on.

    modes_N uint8 (`format.RAW` or `format.JPEG`); heights_N and widths_N (pixels), sizes_N (bytes as stored),
    pointers_N (bytes from the start of the file) and labels_N int64.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises BetonError where the file is missing, cut short, inconsistent or not supported."""
        self.path = Path(path)
        self._digests_N: np.ndarray | None = None
        try:
            self._file = open_plain(self.path)
        except OSError as error:
            fix = "write it with `python -m data_prep`, or check the path and its permissions"
            self._refuse(f"cannot be read ({error.strerror or error}); {fix}")
        self._closer = weakref.finalize(self, self._file.close)
        try:
            self._read_metadata(os.fstat(self._file.fileno()).st_size)
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

    def hold_to(self, digests_N: np.ndarray) -> None:
        """Refuse, from now on, every image that does not have its digest; at once, labels that are others."""
        if not np.array_equal(self.labels_N, digests_N["label"]):
            self._refuse("not the labels that the dataset was written with; write the dataset again")
        self._digests_N = digests_N

    def read(self, n: int) -> bytearray:
        """The bytes of image n as stored: pixels [H, W, 3], or a JPEG. Raises BetonError for what has changed."""
        stored = bytearray(int(self.sizes_N[n]))
        self._fill(memoryview(stored), int(self.pointers_N[n]), f"image {n}")
        if self._digests_N is not None:
            found = image_digest(int(self.modes_N[n]), *self.size(n), int(self.labels_N[n]), stored)
            if found != self._digests_N["digest"][n].tobytes():
                fix = "write the dataset again with python -m data_prep, and check the disk"
                self._refuse(f"image {n} is not the one that the dataset was written with (BLAKE2b); {fix}")
        return stored

    def read_raw(self) -> np.ndarray:
        """All images, uint8 [N, H, W, 3]; digests are not checked. Raises BetonError for JPEGs and several sizes."""
        if not self.all_raw or self.one_size is None:
            self._refuse("holds JPEGs or images of several sizes; write it with raw images of one size")
        image_bytes = int(self.sizes_N[0])
        rows = np.empty((len(self), image_bytes), np.uint8)
        # Images that lie one after another, a page of them mostly, are read at once.
        starts = [0, *(np.flatnonzero(np.diff(self.pointers_N) != image_bytes) + 1).tolist(), len(self)]
        for first, end in itertools.pairwise(starts):
            self._fill(rows[first:end].reshape(-1).data, int(self.pointers_N[first]), f"image {first}")
        return rows.reshape(len(self), *self.size(0), 3)

    def sha256(self) -> str:
        """The digest of the content, as 64 hexadecimal digits, reading one image at a time.

        For raw images of one size it is their `content_sha256`. For all others SHA-256 over the count; of each image
        its mode, height, width and number of bytes (int64) and the bytes as stored; the labels as int64.
        """
        size = self.one_size if self.all_raw else None
        several = f"stored images [{len(self)}] labels int64\n".encode()
        digest = hashlib.sha256(content_head((len(self), *size, 3)) if size else several)
        for n in range(len(self)):
            stored = self.read(n)
            if size is None:
                digest.update(np.array([self.modes_N[n], *self.size(n), len(stored)], "<i8").data)
            digest.update(stored)
        digest.update(self.labels_N.astype("<i8").data)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._closer()

    def _refuse(self, what: str) -> NoReturn:
        raise BetonError(f"{self.path}: {what}")

    def _fill(self, target: memoryview, start: int, name: str) -> None:
        """Read bytes of the file from `start` on until `target` is full."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._file.fileno(), [target[done:]], start + done)
            except OSError as error:
                raise BetonError(f"{self.path}: {name} cannot be read ({error.strerror or error})") from error
            if count == 0:
                self._refuse(f"ends before {name} does; {_DAMAGED}")
            done += count

    def _array(self, dtype: np.dtype, count: int, start: int) -> np.ndarray:
        values = np.empty(count, dtype)
        self._fill(values.view(np.uint8).data, start, "metadata")
        return values

    def _read_metadata(self, size: int) -> None:
        """Check header, fields, metadata and allocation table against the file's size in bytes."""
        if size < METADATA_START:
            self._refuse(f"has {size} bytes, too few for a .beton file; {_DAMAGED}")
        version, fields, page_size, samples, table_start = self._array(HEADER, 1, 0)[0].item()
        if version != VERSION:
            self._refuse(f"is not a .beton file of version {VERSION} (its version says {version}); write it again")
        types = tuple(self._array(FIELD, 2, HEADER.itemsize)["type_id"].tolist())
        if fields != 2 or types != FIELD_TYPES:
            self._refuse(f"has {fields} fields, the first of types {types}; give one of an RGB image and an integer")
        metadata_end = METADATA_START + samples * RECORD.itemsize
        table_end = table_start + samples * ALLOCATION.itemsize
        if samples == 0 or page_size.bit_count() != 1 or metadata_end > table_start or table_end != size:
            said = f"{samples} samples, pages of {page_size} bytes, an allocation table at byte {table_start}"
            self._refuse(f"has {size} bytes, and its header says {said}; {_DAMAGED}")
        records_N = self._array(RECORD, samples, METADATA_START)
        table_N = self._array(ALLOCATION, samples, table_start)
        table_N = table_N[np.argsort(table_N["sample_id"])]
        images_N = records_N["image"]
        self.labels_N: np.ndarray = records_N["label"].astype(np.int64)
        self.modes_N: np.ndarray = images_N["mode"].copy()
        self.heights_N: np.ndarray = images_N["height"].astype(np.int64)
        self.widths_N: np.ndarray = images_N["width"].astype(np.int64)
        # What does not fit int64 becomes negative, and is refused with the rest.
        self.pointers_N: np.ndarray = images_N["data_ptr"].astype(np.int64)
        self.sizes_N: np.ndarray = table_N["size"].astype(np.int64)
        listed_N = (table_N["sample_id"] == np.arange(samples)) & (table_N["ptr"] == images_N["data_ptr"])
        self._check_images(listed_N, metadata_end, table_start)

    def _check_images(self, listed_N: np.ndarray, start: int, end: int) -> None:
        """Every image can be decoded, and lies between bytes `start` and `end` in a place of its own.

        listed_N: whether the allocation table has the image at its place.
        """
        raw_N, pixels_N = self.modes_N == RAW, self.heights_N * self.widths_N
        order_N = np.argsort(self.pointers_N, kind="stable")
        room_N = np.empty_like(self.pointers_N)
        room_N[order_N] = np.diff(self.pointers_N[order_N], append=end)
        wrong = {
            "is neither raw nor a JPEG": ~raw_N & (self.modes_N != JPEG),
            "has no pixels": pixels_N == 0,
            "has too many pixels for a JPEG": ~raw_N & (pixels_N > MAX_JPEG_PIXELS),
            "is not in the allocation table": ~listed_N,
            "has another number of bytes": (self.sizes_N <= 0) | (raw_N & (self.sizes_N != 3 * pixels_N)),
            "lies where other data are": (self.pointers_N < start) | (self.sizes_N > room_N),
        }
        for what, wrong_N in wrong.items():
            if wrong_N.any():
                n = int(wrong_N.argmax())
                pixels = f"{self.heights_N[n]} x {self.widths_N[n]} pixels"
                place = f"{self.sizes_N[n]} bytes at byte {self.pointers_N[n]}"
                self._refuse(f"image {n} {what} (mode {self.modes_N[n]}, {pixels}, {place}); {_DAMAGED}")
