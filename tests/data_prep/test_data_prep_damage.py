"""Damage inside PNGs and JPEGs, which Pillow decodes without a word."""

import io

import numpy as np
import pytest
from encoded import chunk, encoded, exif, picture
from PIL import Image
from stored_samples import jpeg_of, smooth_image

from data_prep.decode import ImageError, check_jpeg, decode_image, simplejpeg

needs_simplejpeg = pytest.mark.skipif(simplejpeg is None, reason="simplejpeg is not installed")


def entropy_coded(data: bytes) -> int:
    """Where the data of the first scan begin."""
    scan = data.index(b"\xff\xda")
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")


@needs_simplejpeg
@pytest.mark.parametrize("damage", ["left over", "missing"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_damaged_in_the_middle_are_refused(seed: int, progressive: bool, damage: str) -> None:
    data = jpeg_of(smooth_image(np.random.default_rng(seed), 64, 48), progressive=progressive)
    begin = entropy_coded(data)
    end = begin + next(at for at in range(len(data)) if data[begin + at] == 0xFF and data[begin + at + 1])
    half = (begin + end) // 2
    changed = data[:half] + (data[begin:half] * 3 if damage == "left over" else b"") + data[end:]
    with Image.open(io.BytesIO(changed)) as image:
        image.load()  # Pillow decodes it
    with pytest.raises(ImageError, match="damaged"):
        decode_image(changed)


@needs_simplejpeg
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"keep_rgb": True}, {"subsampling": 2}, {"restart_marker_rows": 1}],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_whole_jpegs_of_every_kind_pass(seed: int, mode: str, options: dict[str, object]) -> None:
    image = Image.fromarray(smooth_image(np.random.default_rng(seed), 33, 40)).convert(mode)
    looked_at = check_jpeg(encoded(image, "JPEG", **options))
    assert looked_at or (mode == "CMYK" and "subsampling" in options)  # which libjpeg-turbo's API does not know


def test_every_flipped_bit_of_a_png_is_found(seed: int) -> None:
    data = encoded(picture(), exif=exif(1), pnginfo=None)
    decode_image(data)
    generator = np.random.default_rng(seed)
    for at in generator.integers(8, len(data) - 12, 200):  # the last chunk is empty
        changed = bytearray(data)
        changed[at] ^= 1 << int(generator.integers(8))
        with pytest.raises(ImageError):
            decode_image(bytes(changed))


def test_a_png_without_its_end_is_refused() -> None:
    """All pixels are there, but what follows them, EXIF's orientation say, may be lost."""
    data = encoded(picture())
    for cut in (1, 4, 8, 12):
        with pytest.raises(ImageError, match="damaged"):
            decode_image(data[:-cut])
    after = data[:-12] + chunk(b"eXIf", exif(3)[6:]) + data[-12:]
    np.testing.assert_array_equal(decode_image(after).pixels_HWC, np.asarray(picture())[::-1, ::-1])
