"""Write a .beton file in one streaming pass, the same bytes as FFCV's DatasetWriter with one worker."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastwi.beton import format as form
from fastwi.beton.format import JPEG, MAX_PAGE_SIZE, MAX_SIDE, RAW
from fastwi.errors import BetonError


@dataclass(frozen=True)
class StoredImage:
    """One image as a .beton holds it: `data` is pixels [height, width, 3] (mode RAW) or a whole JPEG file (JPEG)."""

    mode: int
    height: int
    width: int
    data: bytes


class ImageTooLarge(BetonError):
    """An image does not fit a page; `needed` is its size in bytes."""

    def __init__(self, needed: int, page_size: int) -> None:
        super().__init__(f"an image has {needed} bytes, more than a page of {page_size}; give larger pages")
        self.needed = needed


def write_stored(path: Path, images: Iterable[StoredImage], labels_N: np.ndarray, page_size: int) -> None:
    """Write `images` as `path`, which is not flushed. An OSError comes out as it is.

    Images lie in order, none across two pages of `page_size` bytes. Memory: one image and 48 bytes a sample.
    Raises ImageTooLarge where an image does not fit a page, BetonError where an image or the page size cannot be in a
    .beton file, ValueError where there is not one image a label.
    """
    if not 0 < page_size <= MAX_PAGE_SIZE or page_size.bit_count() != 1:
        raise BetonError(f"page_size: {page_size}; give a power of two up to {MAX_PAGE_SIZE} that holds each image")
    samples = len(labels_N)
    records_N = np.zeros(samples, form.RECORD)
    records_N["label"] = labels_N
    table_N = np.zeros(samples, form.ALLOCATION)
    with open(path, "wb") as stream:
        position = -(-(form.METADATA_START + records_N.nbytes) // page_size) * page_size
        page_end = position + page_size
        stream.seek(position)
        for n, image in zip(range(samples), images, strict=True):
            size = len(image.data)
            _check_image(image, n)
            if size > page_size:
                raise ImageTooLarge(size, page_size)
            if size > page_end - position:
                stream.write(bytes(page_end - position))
                position, page_end = page_end, page_end + page_size
            stream.write(image.data)
            records_N["image"][n] = (image.mode, image.width, image.height, position)
            table_N[n] = (n, position, size)
            position += size
        stream.write(bytes(page_end - position))
        stream.write(table_N.tobytes())

        header = np.array([(form.VERSION, len(form.FIELD_TYPES), page_size, samples, page_end)], form.HEADER)
        fields = np.zeros(len(form.FIELD_TYPES), form.FIELD)
        fields["type_id"] = form.FIELD_TYPES
        fields["name"] = [name.encode() for name in form.FIELD_NAMES]
        stream.seek(0)
        for part in (header, fields, records_N):
            stream.write(part.tobytes())


def _check_image(image: StoredImage, n: int) -> None:
    """Raise BetonError where a .beton cannot hold image n."""
    size = len(image.data)
    fits = size == image.height * image.width * 3 if image.mode == RAW else image.mode == JPEG and size > 0
    if not fits or not 1 <= min(image.height, image.width) <= max(image.height, image.width) <= MAX_SIDE:
        what = f"{size} bytes of mode {image.mode} for {image.height} x {image.width} pixels"
        raise BetonError(f"image {n}: {what}; a .beton holds raw images and JPEGs of 1 to {MAX_SIDE} pixels a side")
