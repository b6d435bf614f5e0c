"""What every reader of a .beton file checks before it believes a word of it: counts, places, the allocation table.

Nothing is allocated before all counts are known to fit the file's size. Each problem is one line that names the file.
"""

import mmap
import os
import stat
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
    RGB_IMAGE,
    STORED_APART,
    VERSION,
    metadata_record,
)
from fastwi.errors import BetonError


@dataclass(frozen=True)
class Contents:
    """What a file says of itself, as far as `read_contents` has checked it.

    Attributes:
        image_field: name of the image field, as FFCV's Loader offers it.
        field_names: of all fields.
        images_N: the image field's records (`format.FIELD_RECORDS[RGB_IMAGE]`), a view of the file.
        labels_N: int64 `[N]`, a copy.
        data_start, data_end: bytes between which pixels lie: from the metadata's end to the allocation table.
        table: the allocation table (`format.ALLOCATION`), every entry inside of the data; a view of the file.
    """

    image_field: str
    field_names: tuple[str, ...]
    images_N: np.ndarray
    labels_N: np.ndarray
    data_start: int
    data_end: int
    table: np.ndarray


def refuse(path: Path, what: str) -> NoReturn:
    """Raise the BetonError of a file that is not of a kind that can be used."""
    raise BetonError(f"{path}: {what}")


def damaged(path: Path, what: str) -> NoReturn:
    """Raise the BetonError of a file that contradicts itself."""
    refuse(path, f"{what}; the file is damaged or cut short, write it anew")


def open_file(path: Path) -> int:
    """A descriptor of the file, opened for reading.

    Raises:
        BetonError: the file does not exist or cannot be read.
    """
    try:
        # Before opening: opening a named pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            refuse(path, "is not a regular file; give the path of a .beton file")
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        refuse(path, "does not exist; write it with `python -m data_prep`")
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror or error}); check the path and its permissions")


def map_file(path: Path, descriptor: int) -> np.ndarray:
    """An open file as a read-only uint8 array, which keeps it mapped for as long as it lives.

    Raises:
        BetonError: the file cannot be mapped or is shorter than a header.
    """
    size = os.fstat(descriptor).st_size
    if size < HEADER.itemsize:
        refuse(path, f"has {size} bytes, less than a .beton header; write it anew")
    try:
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be mapped into memory ({error}); check the file system")


def read_contents(path: Path, file_N: np.ndarray) -> Contents:
    """Check header, fields, metadata and allocation table against the size of the file (`map_file`).

    Raises:
        BetonError: the file is cut short, foreign, inconsistent or has other fields than one of each kind.
    """
    size = len(file_N)
    header = np.frombuffer(file_N, dtype=HEADER, count=1)[0]
    version, fields, samples = (int(header[name]) for name in ("version", "num_fields", "num_samples"))
    page_size, table_start = int(header["page_size"]), int(header["alloc_table_ptr"])
    if version != VERSION:
        refuse(path, f"is not a .beton file of version {VERSION} (its version says {version}); write it anew")
    if page_size == 0 or page_size & (page_size - 1):
        damaged(path, f"says pages have {page_size} bytes, which is no power of two")
    if samples == 0:
        refuse(path, "holds no samples; write it from a dataset that has some")

    metadata_start = HEADER.itemsize + fields * FIELD.itemsize
    if metadata_start > size:
        damaged(path, f"says it has {fields} fields, more than its {size} bytes hold")
    described = np.frombuffer(file_N, FIELD, count=fields, offset=HEADER.itemsize)
    type_ids = described["type_id"].tolist()
    image_at, label_at = _find_fields(path, type_ids)
    record = metadata_record(type_ids)
    metadata_end = metadata_start + samples * record.itemsize
    if metadata_end > size:
        damaged(path, f"says it has {samples} samples, more than its {size} bytes hold")
    if not metadata_end <= table_start <= size:
        damaged(path, f"says its allocation table is at byte {table_start} of {size}")

    metadata_N = np.frombuffer(file_N, record, count=samples, offset=metadata_start)
    regions = samples * sum(type_id in STORED_APART for type_id in type_ids)
    names = tuple(name.tobytes().split(b"\0")[0].decode("ascii", "replace") for name in described["name"])
    return Contents(
        image_field=names[image_at],
        field_names=names,
        images_N=metadata_N[f"f{image_at}"],
        labels_N=np.array(metadata_N[f"f{label_at}"], dtype=np.int64),  # a view would keep the file mapped
        data_start=metadata_end,
        data_end=table_start,
        table=_read_table(path, file_N[table_start:], table_start, regions),
    )


def _find_fields(path: Path, type_ids: list[int]) -> tuple[int, int]:
    """Positions of the one image field and of the one integer field."""
    unknown = sorted(set(type_ids) - FIELD_RECORDS.keys())
    if unknown:
        refuse(path, f"has a field of type {unknown[0]}, which is not one of FFCV's own; write it without")
    images, labels = type_ids.count(RGB_IMAGE), type_ids.count(INT)
    if (images, labels) != (1, 1):
        refuse(path, f"has {images} RGB image fields and {labels} integer fields; write it with one of each")
    return type_ids.index(RGB_IMAGE), type_ids.index(INT)


def _read_table(path: Path, table_bytes: np.ndarray, data_end: int, regions: int) -> np.ndarray:
    """The allocation table, which lists so many regions, all inside the data."""
    if len(table_bytes) != regions * ALLOCATION.itemsize:
        expected = f"{regions} allocations of {ALLOCATION.itemsize} bytes"
        damaged(path, f"ends in {len(table_bytes)} bytes of allocation table, which should be {expected}")
    table = np.frombuffer(table_bytes, ALLOCATION)
    end = np.uint64(data_end)
    # Two comparisons, not a sum: a sum of damaged numbers may overflow.
    if np.any(table["ptr"] > end) or np.any(table["size"] > end - table["ptr"]):
        damaged(path, "has an allocation outside of its data")
    return table


def check_sides(path: Path, images_N: np.ndarray) -> None:
    """No image is without pixels."""
    flat = np.flatnonzero((images_N["height"] == 0) | (images_N["width"] == 0))
    if len(flat):
        first = images_N[flat[0]]
        damaged(path, f"says its images are {first['height']} x {first['width']} pixels")


def check_places(path: Path, contents: Contents, sizes_N: np.ndarray) -> None:
    """Every image, of `sizes_N` bytes (uint64), lies inside the data, and no two share a byte."""
    start, end = np.uint64(contents.data_start), np.uint64(contents.data_end)
    pointers_N = contents.images_N["data_ptr"]
    too_large_N = sizes_N > end - start
    last_N = end - np.where(too_large_N, end - start, sizes_N)
    outside = np.flatnonzero(too_large_N | (pointers_N < start) | (pointers_N > last_N))
    if len(outside):
        place = f"byte {pointers_N[outside[0]]}, outside of bytes {start} to {end}"
        damaged(path, f"says image {outside[0]} is at {place}")
    order_N = np.argsort(pointers_N, kind="stable")
    if np.any(np.diff(pointers_N[order_N]) < sizes_N[order_N][:-1]):
        damaged(path, "says that two images overlap")


def find_allocations(contents: Contents) -> tuple[np.ndarray, np.ndarray]:
    """The bytes that the allocation table gives each image: (found_N bool, sizes_N uint64).

    An image's entry is the one for its sample and place. Other fields' entries are elsewhere: no two regions share
    a place, except where a file is damaged or a region is empty; then the largest counts.
    """
    samples = len(contents.images_N)
    table = contents.table[contents.table["sample_id"] < np.uint64(samples)]
    sample = table["sample_id"].astype(np.int64)
    of_image = contents.images_N["data_ptr"][sample] == table["ptr"]
    sizes_N = np.zeros(samples, np.uint64)
    found_N = np.zeros(samples, bool)
    np.maximum.at(sizes_N, sample[of_image], table["size"][of_image])
    found_N[sample[of_image]] = True
    return found_N, sizes_N
