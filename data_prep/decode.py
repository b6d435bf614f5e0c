"""One PNG or JPEG file to RGB pixels: what a viewer shows, or a refusal.

PNG has checksums, and all damage is found. JPEG has none: damage is found where a decoder meets codes that do not
exist, or data left over or missing, and not where it leaves a valid JPEG of another picture.
"""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageColor

from fastwi.beton.format import MAX_SIDE
from fastwi.beton.reader import MAX_JPEG_PIXELS
from fastwi.errors import UserError

# simplejpeg is libjpeg-turbo with an error where others print a line on the terminal, and Pillow nothing.
try:
    import simplejpeg
except ImportError:  # a platform that it is not built for
    simplejpeg = None

# Of up to 8 bits a channel. Pillow shows some PNGs of 16 bits as RGB too: `_check_png` refuses them.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG: length, type, checksum

# EXIF's orientations, and how Pillow turns an image that has one.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB_GAMMA = 0.45455


class ImageError(Exception):
    """The file is not an image that can be used; the message says why, `fix` what to do."""

    def __init__(self, message: str, fix: str = "replace or remove it") -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True)
class DecodedImage:
    """`pixels_HWC` uint8 `[H, W, 3]` RGB, whether the file is a JPEG, and notes of what was done to get there.

    Notes: "turned" (EXIF), "flattened" (laid on the background), "cmyk" (by Pillow's plain formula), "profile" (other
    colours than sRGB, not applied), "unchecked" (for damage of a JPEG that Pillow accepts).
    """

    pixels_HWC: np.ndarray
    jpeg: bool
    notes: set[str]


def background_colour(text: str | None) -> tuple[int, int, int] | None:
    """The colour that `text` names, as in CSS: white, #ff8000, ... None stays None. Raises UserError."""
    if text is None:
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)  # type: ignore[misc]
        return red, green, blue
    except ValueError:  # not a colour, or one with an alpha
        raise UserError(f"background {text}: not a colour; give a name such as white, or #rrggbb") from None


def decode_image(
    data: bytes, size: int | None = None, background: tuple[int, int, int] | None = None
) -> DecodedImage:
    """The pixels of a PNG or JPEG file, turned as its EXIF orientation says.

    size: resize to size x size pixels (bilinear over the area that a pixel covers). background: the colour that
    images with transparent pixels are laid on; without one they are refused.
    Raises ImageError for damaged data, other formats, animations, and more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings(), io.BytesIO(data) as stream:
            # Pillow warns of many pixels and of odd EXIF data, on the terminal.
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=("PNG", "JPEG"))
            if image.width * image.height > MAX_JPEG_PIXELS or max(image.size) > MAX_SIDE:
                raise ImageError(f"has {image.height} x {image.width} pixels, too many for an image of a dataset")
            jpeg = image.format != "PNG"
            if not jpeg:
                _check_png(data)
            if image.mode not in MODES:
                raise ImageError(f"has pixels of mode {image.mode}, not 8 bits a channel", "convert it to 8 bits")
            image.load()  # a PNG's EXIF data may come after its pixels
            unchecked = jpeg and not check_jpeg(data)
            rgb, flattened = without_alpha(image, background)
            turn = _TURNS.get(_orientation(image))
            if turn is not None:
                rgb = rgb.transpose(turn)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("neither a PNG nor a JPEG image") from None
    except Exception as error:  # Pillow's plugins raise many kinds: OSError, SyntaxError, struct.error, ...
        said = re.sub(r"b'(\w+)'", r"\1", str(error))  # Pillow names chunks as bytes
        raise ImageError(f"damaged image ({said})") from error
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    found = {
        "turned": turn is not None,
        "flattened": flattened,
        "cmyk": image.mode == "CMYK",
        "profile": _other_colours(image),
        "unchecked": unchecked,
    }
    return DecodedImage(np.asarray(rgb), jpeg, {note for note, is_so in found.items() if is_so})


def check_jpeg(data: bytes) -> bool:
    """Raise ImageError where libjpeg-turbo would have to guess. Pillow has decoded `data` already.

    False where simplejpeg is not installed, or does not know the kind of subsampling.
    """
    if simplejpeg is None:
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


def _check_png(data: bytes) -> None:
    """Compare every chunk with its checksum, and refuse what Pillow does not show as a viewer does."""
    if _END not in data:  # Pillow does not look at the last chunk
        raise ImageError("damaged image (the PNG's end is missing)")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        transparent, frames = "transparency" in image.info, getattr(image, "n_frames", 1)
        image.verify()
    if data[12:16] != b"IHDR":
        raise ImageError("damaged image (the PNG does not begin with its header)")
    depth, colour = data[24], data[25]
    if depth > 8:
        raise ImageError(f"has {depth} bits a channel, not 8", "convert it to 8 bits")
    if transparent and colour == 0 and depth < 8:
        raise ImageError(f"has a transparent grey of {depth} bits, which Pillow misreads", "convert it to 8 bits")
    if frames > 1:
        raise ImageError("is animated, of several frames", "save the frame that you want")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where there is none or it cannot be read, as for viewers."""
    # Not Pillow's getexif: it takes an orientation out of XMP data too, which viewers ignore.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF data is a file format of its own, and any of it may be damaged
        return 1


def without_alpha(image: Image.Image, background: tuple[int, int, int] | None) -> tuple[Image.Image, bool]:
    """An image of `MODES` in RGB, and whether it was laid on the background, without which ImageError is raised."""
    if "A" not in image.mode and "transparency" not in image.info:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    lowest, _ = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return rgba.convert("RGB"), False
    if background is None:
        fix = "pass --background with a colour to lay such images on, white for example"
        raise ImageError("has transparent pixels, which have no colour of their own", fix)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB"), True


def _other_colours(image: Image.Image) -> bool:
    """Whether the file asks for other colours than its values have in sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if profile:  # its description names it, in ASCII or in UTF-16
        return b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile
    gamma = image.info.get("gamma")
    return gamma is not None and "srgb" not in image.info and abs(gamma - _SRGB_GAMMA) > 0.005
