"""Images of one digit as PNG and JPEG files of many kinds."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from prepared import digits


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture() -> Image.Image:
    """A real digit, one half of it coloured, so that no two of its eight orientations are the same."""
    pixels_HWC = digits().train.images_NHWC[0].copy()
    pixels_HWC[:, 8:, 1] //= 2
    return Image.fromarray(pixels_HWC)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def deep_png(pixels_HWC: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour. `colour`: PNG's number of the kind."""
    height, width = pixels_HWC.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    return png_of_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
