"""Encoded images to RGB pixels."""

import struct
import zlib

import numpy as np
import pytest
from encoded import chunk, deep_png, encoded, exif, picture, png_of_chunks
from PIL import Image, ImageCms

from data_prep.decode import ImageError, background_colour, decode_image
from fastwi.data.decode import fit
from fastwi.errors import UserError


def decode_rgb(data: bytes, size: int | None = None) -> np.ndarray:
    return decode_image(data, size).pixels_HWC


@pytest.mark.parametrize("mode", ["RGB", "1", "L", "LA", "P", "RGBA"])  # those with alpha are opaque
def test_other_modes_become_rgb(mode: str) -> None:
    image = picture().convert(mode)
    np.testing.assert_array_equal(decode_rgb(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_are_turned_as_their_exif_data_say(kind: str, orientation: int) -> None:
    options = {} if kind == "PNG" else {"quality": 95, "subsampling": 0}
    upright = decode_image(encoded(picture(), kind, **options))
    turned = decode_image(encoded(picture(), kind, exif=exif(orientation), **options))
    assert ("turned" in turned.notes) == (orientation != 1)
    pixels_HWC = upright.pixels_HWC
    # EXIF 2.32, 4.6.4: which corner of the scene the first row and the first column of the file are at.
    expected_HWC = {
        1: pixels_HWC,
        2: pixels_HWC[:, ::-1],
        3: pixels_HWC[::-1, ::-1],
        4: pixels_HWC[::-1],
        5: pixels_HWC.transpose(1, 0, 2),
        6: pixels_HWC[::-1].transpose(1, 0, 2),
        7: pixels_HWC[::-1, ::-1].transpose(1, 0, 2),
        8: pixels_HWC[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(turned.pixels_HWC, expected_HWC)


def test_odd_exif_data_turn_nothing() -> None:
    for data in (exif(0), exif(9), b"Exif\0\0no TIFF", exif(6)[:-20]):
        decoded = decode_image(encoded(picture(), exif=data))
        assert "turned" not in decoded.notes
        np.testing.assert_array_equal(decoded.pixels_HWC, np.asarray(picture()))


def transparent(kind: str) -> bytes:
    """A picture whose first row is transparent."""
    if kind in ("RGBA", "LA"):
        image = picture().convert(kind)
        alpha = np.full((16, 16), 255, np.uint8)
        alpha[0] = 0
        image.putalpha(Image.fromarray(alpha))
        return encoded(image)
    if kind == "P":
        return encoded(picture().quantize(8), transparency=bytes([0, 128] + [255] * 6))
    pixels_HWC = np.maximum(np.asarray(picture()), 1)
    pixels_HWC[0] = 0  # and no other pixel is, by what tRNS says of the colour 0
    image = Image.fromarray(pixels_HWC) if kind == "RGB" else Image.fromarray(pixels_HWC[..., 0])
    return encoded(image, transparency=(0, 0, 0) if kind == "RGB" else 0)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_refused_or_laid_on_a_colour(kind: str) -> None:
    image = picture().convert("RGBA")
    image.putpixel((3, 3), (9, 9, 9, 254))  # a little is enough
    with pytest.raises(ImageError, match="transparent"):
        decode_image(encoded(image))
    data = transparent(kind)
    with pytest.raises(ImageError, match="transparent") as caught:
        decode_image(data)
    assert "--background" in caught.value.fix
    white, green = (decode_image(data, background=colour) for colour in ((255, 255, 255), (0, 200, 0)))
    assert "flattened" in white.notes & green.notes
    if kind == "P":
        assert (white.pixels_HWC.astype(int) - green.pixels_HWC >= 0).all()
        assert (white.pixels_HWC != green.pixels_HWC).any()
    else:
        assert (white.pixels_HWC[0] == 255).all()
        assert (green.pixels_HWC[0] == (0, 200, 0)).all()
        np.testing.assert_array_equal(white.pixels_HWC[1:], green.pixels_HWC[1:])


def test_colours_of_a_background() -> None:
    assert background_colour(None) is None
    assert background_colour("white") == (255, 255, 255)
    assert background_colour("#ff8000") == (255, 128, 0)
    for wrong in ("paper", "#ffffff80", ""):
        with pytest.raises(UserError, match=f"background {wrong}: "):
            background_colour(wrong)


def few_bits(*more: tuple[bytes, bytes]) -> bytes:
    """A PNG of four grey pixels of 2 bits."""
    rows = zlib.compress(bytes([0, 0b00011011]))
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    return png_of_chunks((b"IHDR", header), *more, (b"IDAT", rows), (b"IEND", b""))


def large(side: int) -> bytes:
    """A file of a few kilobytes that would take a gigabyte; Pillow warns of some and refuses others."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_of_chunks((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))


# A PNG of 16 bits whose first chunk says "8 bits" at the header's place.
DEEP = deep_png(np.full((9, 7, 3), 40_000), 2)
TEXT_FIRST = DEEP[:8] + chunk(b"tEXt", b"Comment\0\x08\x02aa") + DEEP[8:]


def test_few_bits_a_grey_are_scaled() -> None:
    np.testing.assert_array_equal(decode_image(few_bits()).pixels_HWC[0, :, 0], (0, 85, 170, 255))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (deep_png(np.full((9, 7, 1), 40_000), 0), "16 bits"),
        (DEEP, "16 bits"),
        (deep_png(np.full((9, 7, 2), 40_000), 4), "16 bits"),
        (deep_png(np.full((9, 7, 4), 40_000), 6), "16 bits"),
        (few_bits((b"tRNS", b"\0\0")), "transparent grey of 2 bits"),
        (encoded(picture(), save_all=True, append_images=[picture().rotate(90)]), "animated"),
        (TEXT_FIRST, "begin with its header"),
        (large(8193), "8193 x 8193 pixels, too many"),
        (encoded(Image.new("L", (65536, 1))), "1 x 65536 pixels, too many"),
        (encoded(Image.new("L", (1, 65536))), "65536 x 1 pixels, too many"),
        (large(10_000), "too many"),
        (large(60_000), "exceeds limit"),
    ],
)
def test_images_that_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        decode_image(data, 16)


def test_the_first_picture_of_a_camera_is_the_one_that_it_shows() -> None:
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture().rotate(90)])
    np.testing.assert_array_equal(decode_rgb(data), decode_rgb(encoded(picture(), "JPEG")))


def test_inks_and_profiles_are_counted() -> None:
    assert "cmyk" in decode_image(encoded(picture().convert("CMYK"), "JPEG")).notes
    assert "cmyk" not in decode_image(encoded(picture(), "JPEG")).notes
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "JPEG"):
        for profile, other in ((None, False), (srgb, False), (b"desc sRGB IEC61966-2.1", False), (lab, True)):
            decoded = decode_image(encoded(picture(), kind, icc_profile=profile))
            assert ("profile" in decoded.notes) == other
    plain = encoded(picture())
    for gamma, more, other in ((45455, b"", False), (100000, b"", True), (100000, chunk(b"sRGB", b"\0"), False)):
        with_gamma = plain[:33] + more + chunk(b"gAMA", struct.pack(">I", gamma)) + plain[33:]
        assert ("profile" in decode_image(with_gamma).notes) == other  # sRGB overrides a gamma


def test_resizing() -> None:
    assert decode_rgb(encoded(picture().resize((9, 31))), 12).shape == (12, 12, 3)
    flat = Image.new("RGB", (7, 5), (10, 20, 30))
    np.testing.assert_array_equal(decode_rgb(encoded(flat), 4), np.full((4, 4, 3), (10, 20, 30), np.uint8))
    pixels_HWC = np.asarray(picture())
    for size in (8, 12, 16, 24):
        np.testing.assert_array_equal(decode_rgb(encoded(picture()), size), fit(pixels_HWC, size, size))
