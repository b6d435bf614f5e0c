"""One PNG or JPEG file to RGB pixels."""

import io
import warnings

import numpy as np
from PIL import Image

# 16-bit greys and floats would be clipped, not scaled, on their way to 8 bits.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

MAX_PIXELS = 1 << 26
"""A file of a few bytes may claim any size; more pixels than this are refused before memory is taken for them."""


class ImageError(Exception):
    """The file is no image that can be used; the message says why."""


def decode_rgb(data: bytes, size: int | None) -> np.ndarray:
    """The pixels of an encoded image: uint8 `[H, W, 3]`. Transparency is dropped.

    Args:
        data: the content of a PNG or JPEG file.
        size: resize to size x size pixels (bilinear over the area that a pixel covers); None: leave as it is.

    Raises:
        ImageError: the data is damaged, of another format, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings(), io.BytesIO(data) as stream:
            # Pillow warns of many pixels, on the terminal; here they are refused, in one line.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=("PNG", "JPEG"))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"has {image.height} x {image.width} pixels, too many for an image of a dataset")
            if image.mode not in _MODES:
                raise ImageError(f"has pixels of mode {image.mode}, not 8 bits a channel")
            # A palette's transparency must be resolved first; Pillow warns otherwise.
            rgb = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("neither a PNG nor a JPEG image") from None
    except Exception as error:  # Pillow's plugins raise many kinds: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"damaged image ({error})") from error
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)
