"""Write a raw .beton file in one streaming pass, the same bytes as FFCV's DatasetWriter with one worker."""

import os
from collections.abc import Callable
from typing import IO

import numpy as np

from fastwi.beton.format import (
    ALLOCATION,
    FIELD,
    HEADER,
    INT,
    MAX_PAGE_SIZE,
    MAX_SIDE,
    PAGE_SIZE,
    RAW,
    RGB_IMAGE,
    VERSION,
    metadata_record,
    next_page,
)
from fastwi.errors import BetonError
from fastwi.files import atomic_open

# The names under which FFCV's Loader offers the two fields.
IMAGE_FIELD, LABEL_FIELD = "image", "label"


def write_beton(
    path: str | os.PathLike[str],
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    *,
    page_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write images and labels as `path`, whole or not at all. The same arrays give the same bytes.

    Memory: one page and about 100 bytes a sample; the arrays may be memory-mapped and larger than memory.

    Args:
        path: the file to write; an earlier one is replaced once the new one is complete.
        images_NHWC: uint8 `[N, H, W, 3]`, RGB, in any memory layout.
        labels_N: integers `[N]` that fit int64.
        page_size: bytes of a page, a power of two that holds at least one image; None: `page_size_for` one.
            FFCV itself writes no pages below 2 MiB but reads them.
        progress: called now and then with the number of images written so far.

    Raises:
        BetonError: the arrays or the page size cannot be a .beton file.
        UserError: the operating system refuses to write (disk full, not writable, ...).
    """
    with atomic_open(path) as stream:
        write_stream(stream, images_NHWC, labels_N, page_size=page_size, progress=progress)


def page_size_for(image_bytes: int) -> int:
    """The page size for images of `image_bytes` bytes: the default, or a larger one that holds an image."""
    return max(PAGE_SIZE, 1 << (image_bytes - 1).bit_length())


def _check_arrays(images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    shape = images_NHWC.shape
    if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise BetonError(f"images_NHWC: {images_NHWC.dtype}{list(shape)}; a .beton holds uint8 [N, H, W, 3]")
    if max(shape[1:3]) > MAX_SIDE:
        raise BetonError(f"images_NHWC: {shape[1]} x {shape[2]} pixels; a .beton holds at most {MAX_SIDE} a side")
    if labels_N.dtype.kind not in "iu" or labels_N.shape != shape[:1]:
        raise BetonError(f"labels_N: {labels_N.dtype}{list(labels_N.shape)}; give {shape[0]} integers")
    if labels_N.dtype.kind == "u" and int(labels_N.max()) > np.iinfo(np.int64).max:
        raise BetonError(f"labels_N: {labels_N.max()} does not fit int64; give smaller labels")


def write_stream(
    stream: IO[bytes],
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    *,
    page_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """`write_beton` into a stream that stands at its start; an OSError comes out as it is.

    Every place is known beforehand, so the parts go out in order and nothing is revisited.
    """
    _check_arrays(images_NHWC, labels_N)
    samples, height, width, _ = images_NHWC.shape
    image_bytes = height * width * 3
    if page_size is None:
        page_size = page_size_for(image_bytes)
    if page_size < image_bytes or page_size > MAX_PAGE_SIZE or page_size & (page_size - 1):
        bounds = f"from {image_bytes} (bytes of an image) to {MAX_PAGE_SIZE}"
        raise BetonError(f"page_size: {page_size}; give a power of two {bounds}")
    per_page = page_size // image_bytes
    pages = -(-samples // per_page)
    record = metadata_record([RGB_IMAGE, INT])
    data_start = next_page(HEADER.itemsize + 2 * FIELD.itemsize + samples * record.itemsize, page_size)

    page_N, place_N = np.divmod(np.arange(samples, dtype=np.uint64), np.uint64(per_page))
    pointers_N = np.uint64(data_start) + page_N * np.uint64(page_size) + place_N * np.uint64(image_bytes)

    header = np.zeros(1, HEADER)
    header[0] = (VERSION, 2, page_size, samples, data_start + pages * page_size)
    fields = np.zeros(2, FIELD)
    fields["type_id"] = RGB_IMAGE, INT
    fields["name"] = IMAGE_FIELD.encode(), LABEL_FIELD.encode()
    metadata_N = np.zeros(samples, record)
    for name, value in (("mode", RAW), ("width", width), ("height", height), ("data_ptr", pointers_N)):
        metadata_N["f0"][name] = value
    metadata_N["f1"] = labels_N
    for part in (header, fields, metadata_N):
        stream.write(part.tobytes())
    stream.write(bytes(data_start - header.nbytes - fields.nbytes - metadata_N.nbytes))

    page = np.zeros(page_size, np.uint8)
    for first in range(0, samples, per_page):
        block_NHWC = images_NHWC[first : first + per_page]
        used = len(block_NHWC) * image_bytes
        page[:used].reshape(block_NHWC.shape)[...] = block_NHWC
        page[used:] = 0  # the last page may hold fewer images than the one before it
        stream.write(page.data)
        if progress is not None:
            progress(first + len(block_NHWC))

    table = np.zeros(samples, ALLOCATION)
    table["sample_id"] = np.arange(samples)
    table["ptr"] = pointers_N
    table["size"] = image_bytes
    stream.write(table.tobytes())
