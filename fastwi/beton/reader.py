"""Read a raw .beton file into two arrays: checked against the file's size first, then one pass of copying."""

import os
from dataclasses import dataclass
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
from fastwi.beton.format import RAW


@dataclass(frozen=True)
class Beton:
    """The content of a .beton file.

    Attributes:
        images_NHWC: uint8 `[N, H, W, 3]`, RGB, contiguous, in the order of the samples.
        labels_N: int64 `[N]`.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray


def read_beton(path: str | os.PathLike[str]) -> Beton:
    """Read a whole .beton file with one raw RGB image field and one integer field, all images of one size.

    The file is memory-mapped. Nothing is allocated before all counts and places are known to fit the file's
    size. The images may lie in any order and with any gaps, as FFCV's workers leave them. Files with JPEGs or images
    of several sizes are for `fastwi.beton.stream`.

    Raises:
        BetonError: the file does not exist, is cut short, foreign, inconsistent or of a kind not supported.
    """
    path = Path(path)
    descriptor = open_file(path)
    try:
        file_N = map_file(path, descriptor)
    finally:
        os.close(descriptor)
    contents = read_contents(path, file_N)
    samples = len(contents.labels_N)
    height, width = _image_size(path, contents.images_N)
    image_bytes = height * width * 3
    check_places(path, contents, np.full(samples, image_bytes, np.uint64))
    _check_allocations(path, contents, image_bytes)

    # A view whose row p is the image_bytes bytes from byte p on: picking its rows is the one pass of copying.
    windows = np.lib.stride_tricks.sliding_window_view(file_N, image_bytes)
    try:
        images_NHWC = np.ascontiguousarray(windows[contents.images_N["data_ptr"].astype(np.int64)])
    except MemoryError:
        refuse(path, f"holds {samples * image_bytes / 2**30:.1f} GiB of pixels, more than memory; use fewer")
    return Beton(images_NHWC.reshape(samples, height, width, 3), contents.labels_N)


def _image_size(path: Path, images_N: np.ndarray) -> tuple[int, int]:
    """Height and width in pixels, the same for all images, all of them raw."""
    encoded = np.flatnonzero(images_N["mode"] != RAW)
    if len(encoded):
        first = int(encoded[0])
        kind = "JPEG" if images_N["mode"][first] == 0 else "encoded in an unknown way"
        refuse(path, f"image {first} is {kind}; write the file with write_mode='raw'")
    height, width = int(images_N["height"][0]), int(images_N["width"][0])
    odd = np.flatnonzero((images_N["height"] != height) | (images_N["width"] != width))
    if len(odd):
        first = int(odd[0])
        other = f"{images_N['height'][first]} x {images_N['width'][first]}"
        refuse(path, f"image {first} is {other}, image 0 is {height} x {width}; write it with one size")
    check_sides(path, images_N)
    return height, width


def _check_allocations(path: Path, contents: Contents, image_bytes: int) -> None:
    """The allocation table knows every image by its sample, place and size."""
    found_N, sizes_N = find_allocations(contents)
    unknown = np.flatnonzero(~found_N | (sizes_N != image_bytes))
    if len(unknown):
        damaged(path, f"has no allocation of {image_bytes} bytes for image {unknown[0]}")
