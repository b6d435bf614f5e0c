"""Encoded images to RGB pixels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prepared import digits

from data_prep.decode import ImageError, decode_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture() -> Image.Image:
    """A real digit, one half of it coloured."""
    pixels_HWC = digits().train.images_NHWC[0].copy()
    pixels_HWC[:, 8:, 1] //= 2
    return Image.fromarray(pixels_HWC)


def test_rgb_comes_out_as_it_is() -> None:
    np.testing.assert_array_equal(decode_rgb(encoded(picture()), None), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = picture().convert(mode)
    np.testing.assert_array_equal(decode_rgb(encoded(image), None), np.asarray(image.convert("RGB")))


def test_a_transparent_palette(recwarn: pytest.WarningsRecorder) -> None:
    image = picture().quantize(8)
    data = encoded(image, transparency=bytes([0, 128] + [255] * 6))
    np.testing.assert_array_equal(decode_rgb(data, None), np.asarray(image.convert("RGB")))
    assert len(recwarn) == 0


def test_jpeg_is_close() -> None:
    decoded = decode_rgb(encoded(picture(), "JPEG", quality=95, subsampling=0), None)
    assert np.abs(decoded.astype(int) - np.asarray(picture())).mean() < 4


def test_resizing() -> None:
    assert decode_rgb(encoded(picture().resize((9, 31))), 12).shape == (12, 12, 3)
    flat = Image.new("RGB", (7, 5), (10, 20, 30))
    np.testing.assert_array_equal(decode_rgb(encoded(flat), 4), np.full((4, 4, 3), (10, 20, 30), np.uint8))
    np.testing.assert_array_equal(decode_rgb(encoded(picture()), 16), np.asarray(picture()))


def test_any_damage_is_an_image_or_an_image_error() -> None:
    generator = np.random.default_rng(3)
    read, refused = 0, 0
    for data in (encoded(picture()), encoded(picture(), "JPEG")):
        for _ in range(300):
            changed = bytearray(data)
            changed[generator.integers(len(data))] = generator.integers(256)
            changed = changed[: generator.integers(len(data) // 2, 2 * len(data))]
            try:
                read += decode_rgb(bytes(changed), None).shape[2] == 3
            except ImageError:
                refused += 1
    assert read + refused == 600
    assert min(read, refused) > 0


def test_another_format_is_refused() -> None:
    with pytest.raises(ImageError, match="neither a PNG nor a JPEG"):
        decode_rgb(encoded(picture(), "BMP"), None)


@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_more_pixels_than_any_dataset_has(side: int) -> None:
    """A file of a few kilobytes that would take a gigabyte; Pillow warns of the second and refuses the third."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    with pytest.raises(ImageError, match=r"too many|exceeds limit"):
        decode_rgb(data, 16)
