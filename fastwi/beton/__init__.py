"""FFCV's .beton files in NumPy alone: readers, writers and a digest of the content.

One RGB image and one integer label a sample. `read_beton` and `write_beton` are for raw uint8 pixels of one size,
whole; `StoredBeton` and `fastwi.beton.stored_writer` for JPEGs and images of any sizes, one at a time, which
`fastwi.beton.image_digests` names each. FFCV reads what is written here and the other way round;
`fastwi.beton.format` describes the bytes.
"""

from fastwi.beton.digest import content_sha256, stored_sha256
from fastwi.beton.reader import Beton, read_beton
from fastwi.beton.stream import StoredBeton
from fastwi.beton.writer import write_beton

__all__ = ["Beton", "StoredBeton", "content_sha256", "read_beton", "stored_sha256", "write_beton"]
