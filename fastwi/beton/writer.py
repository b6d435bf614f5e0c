"""Write a .beton file in one streaming pass, the same bytes as FFCV's DatasetWriter with one worker."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np

from fastwi.beton.format import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE_FIELD,
    INT,
    JPEG,
    LABEL_FIELD,
    MAX_PAGE_SIZE,
    MAX_SIDE,
    RAW,
    RGB_IMAGE,
    VERSION,
    metadata_record,
    next_page,
    page_size_for,
)
from fastwi.errors import BetonError
from fastwi.files import atomic_open

REPORT_EVERY = 500  # images


@dataclass(frozen=True)
class StoredImage:
    """One image as a .beton holds it: `data` is pixels [height, width, 3] (mode RAW) or a whole JPEG file (JPEG)."""

    mode: int
    height: int
    width: int
    data: bytes


class ImageTooLarge(BetonError):
    """An image does not fit a page; `needed` is its size in bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


def check_arrays(images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    """Raise BetonError unless a .beton can hold the arrays: uint8 [N, H, W, 3] and N integers."""
    shape = images_NHWC.shape
    if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise BetonError(f"images_NHWC: {images_NHWC.dtype}{list(shape)}; a .beton holds uint8 [N, H, W, 3]")
    if max(shape[1:3]) > MAX_SIDE:
        raise BetonError(f"images_NHWC: {shape[1]} x {shape[2]} pixels; a .beton holds at most {MAX_SIDE} a side")
    if labels_N.dtype.kind not in "iu" or labels_N.shape != shape[:1]:
        raise BetonError(f"labels_N: {labels_N.dtype}{list(labels_N.shape)}; give {shape[0]} integers")
    if labels_N.dtype.kind == "u" and int(labels_N.max()) > np.iinfo(np.int64).max:
        raise BetonError(f"labels_N: {labels_N.max()} does not fit int64; give smaller labels")


def write_beton(
    path: str | os.PathLike[str], images_NHWC: np.ndarray, labels_N: np.ndarray, *, page_size: int | None = None
) -> None:
    """Write images and labels as `path`, whole or not at all. The same arrays give the same bytes.

    Memory: one image and about 100 bytes a sample; the arrays may be memory-mapped and larger than memory.

    Args:
        path: the file to write; an earlier one is replaced once the new one is complete.
        images_NHWC: uint8 `[N, H, W, 3]`, RGB, in any memory layout.
        labels_N: integers `[N]` that fit int64.
        page_size: bytes of a page, a power of two that holds an image; None: `page_size_for` one.

    Raises:
        BetonError: the arrays or the page size cannot be a .beton file.
        UserError: the operating system refuses to write (disk full, not writable, ...).
    """
    check_arrays(images_NHWC, labels_N)
    height, width = images_NHWC.shape[1:3]
    page_size = page_size_for(height * width * 3) if page_size is None else page_size
    with atomic_open(path) as stream:
        images = (StoredImage(RAW, height, width, image_HWC.tobytes()) for image_HWC in images_NHWC)
        write_stored_stream(stream, images, labels_N, page_size)


def write_stored_stream(
    stream: IO[bytes],
    images: Iterable[StoredImage],
    labels_N: np.ndarray,
    page_size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `images` into a stream that stands at its start and can seek. An OSError comes out as it is.

    Images lie in order, none across two pages of `page_size` bytes. Memory: one image and about 100 bytes a sample.
    `progress` is called now and then with the number of images written so far.

    Raises:
        ImageTooLarge: an image does not fit a page.
        BetonError: an image or the page size cannot be in a .beton file, or there is not one image a label.
    """
    samples = len(labels_N)
    if not 0 < page_size <= MAX_PAGE_SIZE or page_size & (page_size - 1):
        raise BetonError(f"page_size: {page_size}; give a power of two up to {MAX_PAGE_SIZE} that holds each image")
    metadata_N = np.zeros(samples, metadata_record([RGB_IMAGE, INT]))
    metadata_N["f1"] = labels_N
    table = np.zeros(samples, ALLOCATION)
    position = next_page(HEADER.itemsize + 2 * FIELD.itemsize + metadata_N.nbytes, page_size)
    page_end, count = position + page_size, 0
    stream.seek(position)
    for n, image in enumerate(images):
        if n >= samples:
            raise BetonError(f"more than {samples} images for {samples} labels; give one a label")
        _check_image(image, n, page_size)
        if len(image.data) > page_end - position:
            stream.write(bytes(page_end - position))
            position, page_end = page_end, page_end + page_size
        stream.write(image.data)
        metadata_N["f0"][n] = (image.mode, image.width, image.height, position)
        table[n] = (n, position, len(image.data))
        position, count = position + len(image.data), n + 1
        if progress is not None and (count % REPORT_EVERY == 0 or count == samples):
            progress(count)
    if count != samples or count == 0:
        raise BetonError(f"{count} images for {samples} labels; give one a label, and at least one")
    stream.write(bytes(page_end - position))
    stream.write(table.tobytes())

    header = np.array([(VERSION, 2, page_size, samples, page_end)], HEADER)
    fields = np.zeros(2, FIELD)
    fields["type_id"] = RGB_IMAGE, INT
    fields["name"] = IMAGE_FIELD.encode(), LABEL_FIELD.encode()
    stream.seek(0)
    for part in (header, fields, metadata_N):
        stream.write(part.tobytes())


def _check_image(image: StoredImage, n: int, page_size: int) -> None:
    size = len(image.data)
    if not (1 <= image.height <= MAX_SIDE and 1 <= image.width <= MAX_SIDE):
        raise BetonError(f"image {n}: {image.height} x {image.width} pixels; a .beton holds 1 to {MAX_SIDE} a side")
    fits = size == image.height * image.width * 3 if image.mode == RAW else image.mode == JPEG and size > 0
    if not fits:
        raise BetonError(f"image {n}: {size} bytes of mode {image.mode}; give what the mode and size say")
    if size > page_size:
        raise ImageTooLarge(f"image {n}: {size} bytes, more than a page of {page_size}", size)
