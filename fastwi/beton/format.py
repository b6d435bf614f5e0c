"""The bytes of a .beton file, version 2, as FFCV 1.0.2 writes it. All numbers are little-endian.

    header               24 bytes
    field descriptors    1,041 bytes a field: its type, its name, arguments (zeros for the fields used here)
    metadata             one record a sample, all fields side by side, aligned as a C compiler would
    padding              zeros up to a multiple of the page size
    pages                pixels or JPEGs; an image lies within one page, the rest of a page is zeros
    allocation table     one record a stored image (sample, place, size), up to the end of the file

An image field's record says mode (raw or JPEG), width, height and where the pixels or the JPEG start, in bytes from
the start of the file; how long a JPEG is, only the allocation table knows. An integer field's record is the number.

Source: the documentation of FFCV (https://docs.ffcv.io) and files that its DatasetWriter writes.
"""

import numpy as np

VERSION = 2
PAGE_SIZE = 1 << 21  # bytes; the smallest that FFCV writes, so small sets are not mostly padding
MAX_PAGE_SIZE = 1 << 31  # bytes; the largest power of two in the header's 32 bits
MAX_SIDE = (1 << 16) - 1  # pixels; width and height are 16-bit

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "V16"), ("arguments", "V1024")])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

INT = 1
RGB_IMAGE = 2
RAW, JPEG = 1, 0  # an RGB image's modes
IMAGE_FIELD, LABEL_FIELD = "image", "label"  # the names under which FFCV's Loader offers the fields written here

# What each type of field stores in a sample's metadata record. Of fields other than the image and the label only
# size and alignment matter.
FIELD_RECORDS = {
    0: np.dtype("<f8"),  # float
    INT: np.dtype("<i8"),
    RGB_IMAGE: np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]),
    3: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # bytes
    4: np.dtype("<u8"),  # array
    5: np.dtype([("ptr", "<u8"), ("size", "<u8")]),  # JSON
    6: np.dtype("<u8"),  # torch tensor
}
# Types that store one region a sample outside of the metadata, and so one entry in the allocation table.
STORED_APART = (RGB_IMAGE, 3, 4, 5, 6)


def metadata_record(type_ids: list[int]) -> np.dtype:
    """The dtype of one sample's metadata: members f0, f1, ... in the order of the fields.

    Raises KeyError for a type that FIELD_RECORDS lacks.
    """
    names = [f"f{position}" for position in range(len(type_ids))]
    formats = [FIELD_RECORDS[type_id] for type_id in type_ids]
    return np.dtype(list(zip(names, formats, strict=True)), align=True)


def page_size_for(image_bytes: int) -> int:
    """The page size where the largest image has `image_bytes` bytes: a power of two, PAGE_SIZE or more."""
    return max(PAGE_SIZE, 1 << (image_bytes - 1).bit_length())


def next_page(position: int, page_size: int) -> int:
    """The first multiple of `page_size` at or after `position`, both in bytes."""
    return -(-position // page_size) * page_size
