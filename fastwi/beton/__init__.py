"""FFCV's .beton files in NumPy alone, of one RGB image and one integer label a sample.

Images are raw or JPEGs, of any sizes, read and written one at a time. FFCV reads what is written here, and the other
way round.
"""

from fastwi.beton.digests import content_sha256
from fastwi.beton.reader import StoredBeton
from fastwi.beton.writer import StoredImage, write_stored

__all__ = ["StoredBeton", "StoredImage", "content_sha256", "write_stored"]
