"""Write a .beton file of images as they are given, raw or JPEG, of any sizes, in one streaming pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np

from fastwi.beton.format import (
    ALLOCATION,
    FIELD,
    HEADER,
    INT,
    JPEG,
    MAX_PAGE_SIZE,
    MAX_SIDE,
    RAW,
    RGB_IMAGE,
    VERSION,
    metadata_record,
    next_page,
)
from fastwi.beton.writer import IMAGE_FIELD, LABEL_FIELD, page_size_for
from fastwi.errors import BetonError


@dataclass(frozen=True)
class StoredImage:
    """One image as a .beton holds it: `data` is pixels [height, width, 3] (mode RAW) or a whole JPEG file (JPEG)."""

    mode: int
    height: int
    width: int
    data: bytes


def write_stored_stream(
    stream: IO[bytes],
    images: Iterable[StoredImage],
    labels_N: np.ndarray,
    largest: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `images` into a stream that stands at its start and can seek. An OSError comes out as it is.

    The bytes are laid out as FFCV's DatasetWriter with one worker lays them out: in order, none across two pages.
    Memory: one image and about 100 bytes a sample.

    Args:
        stream: opened for writing bytes.
        images: as many as labels.
        labels_N: integers `[N]`.
        largest: bytes of the largest image, or more; decides the size of pages.
        progress: called now and then with the number of images written so far.

    Raises:
        BetonError: an image cannot be in a .beton file, or there is not one a label.
    """
    samples = len(labels_N)
    page_size = page_size_for(largest)
    if page_size > MAX_PAGE_SIZE:
        raise BetonError(f"an image of {largest} bytes; a .beton holds at most {MAX_PAGE_SIZE} an image")
    record = metadata_record([RGB_IMAGE, INT])
    metadata_N = np.zeros(samples, record)
    metadata_N["f1"] = labels_N
    table = np.zeros(samples, ALLOCATION)
    start = next_page(HEADER.itemsize + 2 * FIELD.itemsize + metadata_N.nbytes, page_size)
    position, page_end, count = start, start + page_size, 0
    stream.seek(start)
    for n, image in enumerate(images):
        _check_image(image, n, samples, page_size)
        if len(image.data) > page_end - position:
            stream.write(bytes(page_end - position))
            position, page_end = page_end, page_end + page_size
        stream.write(image.data)
        metadata_N["f0"][n] = (image.mode, image.width, image.height, position)
        table[n] = (n, position, len(image.data))
        position, count = position + len(image.data), n + 1
        if progress is not None and (count % 500 == 0 or count == samples):
            progress(count)
    if count != samples or count == 0:
        raise BetonError(f"{count} images for {samples} labels; give one a label, and at least one")
    stream.write(bytes(page_end - position))
    stream.write(table.tobytes())

    header = np.zeros(1, HEADER)
    header[0] = (VERSION, 2, page_size, samples, page_end)
    fields = np.zeros(2, FIELD)
    fields["type_id"] = RGB_IMAGE, INT
    fields["name"] = IMAGE_FIELD.encode(), LABEL_FIELD.encode()
    stream.seek(0)
    for part in (header, fields, metadata_N):
        stream.write(part.tobytes())


def _check_image(image: StoredImage, n: int, samples: int, page_size: int) -> None:
    if n >= samples:
        raise BetonError(f"more than {samples} images for {samples} labels; give one a label")
    if not (1 <= image.height <= MAX_SIDE and 1 <= image.width <= MAX_SIDE):
        raise BetonError(f"image {n}: {image.height} x {image.width} pixels; a .beton holds 1 to {MAX_SIDE} a side")
    fits = len(image.data) == image.height * image.width * 3 if image.mode == RAW else image.mode == JPEG
    if not fits or not 0 < len(image.data) <= page_size:
        raise BetonError(f"image {n}: {len(image.data)} bytes of mode {image.mode}; give what the mode and size say")
