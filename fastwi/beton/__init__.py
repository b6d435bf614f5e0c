"""FFCV's .beton files in NumPy alone: readers, writers and digests of the content.

A sample is one RGB image and one integer label. `read_beton` and `write_beton` are for raw uint8 pixels of one size,
as arrays; `StoredBeton` and `write_stored_stream` for raw images and JPEGs of any sizes, one at a time.
`fastwi.beton.format` describes the bytes. FFCV reads what is written here, and the other way round.
"""

from fastwi.beton.digests import content_sha256
from fastwi.beton.reader import Beton, StoredBeton, read_beton
from fastwi.beton.writer import StoredImage, write_beton, write_stored_stream

__all__ = [
    "Beton",
    "StoredBeton",
    "StoredImage",
    "content_sha256",
    "read_beton",
    "write_beton",
    "write_stored_stream",
]
