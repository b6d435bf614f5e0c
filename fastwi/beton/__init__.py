"""FFCV's .beton files in NumPy alone, of one RGB image and one integer label a sample.

`read_beton` and `write_beton` are for raw pixels of one size, as arrays; `StoredBeton` and `write_stored_stream` for
raw images and JPEGs of any sizes, one at a time. FFCV reads what is written here, and the other way round.
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
