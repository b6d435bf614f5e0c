"""Damage, depth and frames of PNG and JPEG files that Pillow decodes without a word.

JPEG has no checksums. A decoder sees what leads it astray: codes that do not exist, data left over or missing at the
end. No decoder sees damage that leaves a valid JPEG of another picture, as most single flipped bits do. PNG has
checksums, and all damage is found.
"""

import zlib

# simplejpeg is libjpeg-turbo with an error where others have a line on the terminal, and Pillow nothing.
try:
    import simplejpeg
except ImportError:  # a platform that it is not built for
    simplejpeg = None

JPEGS_ARE_CHECKED = simplejpeg is not None
"""Whether JPEGs are looked at for damage that Pillow passes over."""

_GREY, _PNG_START = 0, 8
_IMAGE, _ANIMATION, _TRANSPARENT, _END = b"IHDR", b"acTL", b"tRNS", b"IEND"


class ImageError(Exception):
    """The file is no image that can be used; the message says why, `fix` what to do."""

    def __init__(self, message: str, fix: str = "replace or remove it") -> None:
        super().__init__(message)
        self.fix = fix


def check_jpeg_data(data: bytes) -> bool:
    """Raise ImageError where libjpeg-turbo would have to guess. Pillow has decoded `data` already.

    False where it could not be checked: simplejpeg is not installed, or does not know the kind of subsampling.
    """
    if not JPEGS_ARE_CHECKED:
        return False
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
    except ValueError as error:
        raise ImageError(f"damaged image ({error})") from error
    return True


def check_png_data(data: bytes) -> None:
    """Hold every chunk to its checksum. Raises ImageError for damage, 16 bits a channel and animations."""
    at, depth, colour = _PNG_START, 0, 0
    while True:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise ImageError("damaged image (the PNG is cut short)")
        content = memoryview(data)[at + 8 : end - 4]
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError(f"damaged image (PNG chunk {kind!r} does not match its checksum)")
        if kind == _IMAGE and length >= 10:
            depth, colour = content[8], content[9]
            if depth > 8:
                raise ImageError(f"has {depth} bits a channel, not 8", "convert it to 8 bits")
        if kind == _TRANSPARENT and colour == _GREY and depth < 8:
            raise ImageError(f"has a transparent grey of {depth} bits, which Pillow misreads", "convert it to 8 bits")
        if kind == _ANIMATION and int.from_bytes(content[:4], "big") > 1:
            raise ImageError("is animated, of several frames", "save the frame that you want")
        if kind == _END:
            return
        at = end
