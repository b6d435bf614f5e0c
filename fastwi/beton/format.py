"""The bytes of a .beton file, version 2, as FFCV 1.0.2 writes it. All numbers are little-endian.

    header               24 bytes
    field descriptors    1,041 bytes a field: its type, its name, arguments (zeros for the two fields used here)
    metadata             one record a sample, aligned as a C compiler would
    padding              zeros up to a multiple of the page size
    pages                pixels or JPEGs; an image lies within one page, the rest of a page is zeros
    allocation table     one record a sample (sample, place, size), in any order, up to the end of the file

A sample's record has the image (mode, width, height, where the pixels or the JPEG start in the file) and the label.
Only the allocation table has the length of a JPEG.

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
FIELD_TYPES = (2, 1)  # an RGB image, an integer
FIELD_NAMES = ("image", "label")  # as FFCV's Loader offers them
RAW, JPEG = 1, 0  # an image's modes
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
RECORD = np.dtype([("image", _IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
METADATA_START = HEADER.itemsize + len(FIELD_TYPES) * FIELD.itemsize  # bytes from the start of the file


def page_size_for(image_bytes: int) -> int:
    """The page size where the largest image has `image_bytes` bytes: a power of two, PAGE_SIZE or more."""
    return max(PAGE_SIZE, 1 << (image_bytes - 1).bit_length())
