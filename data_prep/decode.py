"""One PNG or JPEG file to RGB pixels: what a viewer shows, or a refusal."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageColor

from data_prep.damage import ImageError, check_jpeg_data, check_png_data
from fastwi.errors import UserError

# Of up to 8 bits a channel. Pillow shows some PNGs of 16 bits as RGB too: `check_png_data` refuses them.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

MAX_PIXELS = 1 << 26
"""A file of a few bytes may claim any size; more pixels than this are refused before memory is taken for them."""

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
_TRANSPARENT = (
    "has transparent pixels, which have no colour of their own",
    "pass --background with a colour to lay such images on, white for example",
)


@dataclass(frozen=True)
class DecodedImage:
    """`pixels_HWC` uint8 `[H, W, 3]` RGB, and what was done to get there.

    jpeg: it was no PNG. turned: as its EXIF orientation says. flattened: laid on the background, because some pixels
    are transparent. cmyk: inks became colours by Pillow's plain formula. profile: it has a colour profile or gamma
    other than sRGB's, which was not applied. unchecked: it is a JPEG, and could not be checked for damage that Pillow
    passes over.
    """

    pixels_HWC: np.ndarray
    jpeg: bool
    turned: bool = False
    flattened: bool = False
    cmyk: bool = False
    profile: bool = False
    unchecked: bool = False


def background_colour(text: str | None) -> tuple[int, int, int] | None:
    """The colour that `text` names, as in CSS: white, #ff8000, ... None stays None. Raises UserError."""
    if text is None:
        return None
    try:
        colour: tuple[int, ...] = ImageColor.getrgb(text)
    except ValueError:
        colour = ()
    if len(colour) != 3:  # a fourth number is an alpha
        raise UserError(f"background {text}: not a colour; give a name such as white, or #rrggbb")
    red, green, blue = colour
    return red, green, blue


def decode_image(
    data: bytes, size: int | None = None, background: tuple[int, int, int] | None = None
) -> DecodedImage:
    """The pixels of an encoded image, turned as its EXIF orientation says.

    Args:
        data: the content of a PNG or JPEG file.
        size: resize to size x size pixels (bilinear over the area that a pixel covers); None: leave as it is.
        background: the colour that images with transparent pixels are laid on; None: they are refused.

    Raises:
        ImageError: the data is damaged, of another format, animated, transparent, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings(), io.BytesIO(data) as stream:
            # Pillow warns of many pixels and of odd EXIF data, on the terminal.
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=("PNG", "JPEG"))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"has {image.height} x {image.width} pixels, too many for an image of a dataset")
            if image.format == "PNG":
                check_png_data(data)
            if image.mode not in MODES:
                raise ImageError(f"has pixels of mode {image.mode}, not 8 bits a channel", "convert it to 8 bits")
            image.load()  # a PNG's EXIF data may come after its pixels
            unchecked = image.format != "PNG" and not check_jpeg_data(data)
            turn = _TURNS.get(_orientation(image))
            rgb, flattened = without_alpha(image, background)
            if turn is not None:
                rgb = rgb.transpose(turn)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("neither a PNG nor a JPEG image") from None
    except Exception as error:  # Pillow's plugins raise many kinds: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"damaged image ({error})") from error
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return DecodedImage(
        np.asarray(rgb),
        jpeg=image.format != "PNG",
        turned=turn is not None,
        flattened=flattened,
        cmyk=image.mode == "CMYK",
        profile=_other_colours(image),
        unchecked=unchecked,
    )


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
    """An image of `MODES` in RGB, and whether it was laid on the background.

    Raises ImageError where it has transparent pixels and no background is given.
    """
    if "A" not in image.mode and "transparency" not in image.info:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    lowest, _ = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return rgba.convert("RGB"), False
    if background is None:
        raise ImageError(*_TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB"), True


def _other_colours(image: Image.Image) -> bool:
    """Whether the file asks for other colours than its values have in sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if profile:  # its description names it, in ASCII or in UTF-16
        return b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile
    gamma = image.info.get("gamma")
    return gamma is not None and "srgb" not in image.info and abs(gamma - _SRGB_GAMMA) > 0.005
