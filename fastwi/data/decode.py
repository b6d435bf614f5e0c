"""One stored image to pixels of the dataset's size: decoders of JPEGs, and the crop and resize that follow.

The reference decoder is Pillow's libjpeg-turbo with its accurate inverse DCT and smooth upsampling. It gives the
pixels that `python -m data_prep` stores in a raw beton, so a JPEG set and a raw set from the same files train the
same. FFCV decodes with the fast inverse DCT: almost every image differs, by one intensity of 256 in the mean.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastwi.errors import BetonError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = ("L", "RGB", "CMYK")  # of JPEGs, in Pillow's words; all become RGB
Decode = Callable[[bytes | bytearray, int, int], np.ndarray]


def decode_jpeg(data: bytes | bytearray, height: int, width: int) -> np.ndarray:
    """The pixels of a JPEG file: uint8 [height, width, 3]. EXIF orientation is not applied.

    Raises BetonError, without the image's name, where the data is not a JPEG, damaged, or of another size.
    """
    with _opened(data, height, width) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Importing FFCV, which takes seconds, sets torch's threads to 1."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def decoder(name: str) -> Decode:
    """What decodes JPEGs (`data.decoder`): `decode_jpeg`, or FFCV's decoder, which raises the same errors.

    Raises UserError where FFCV cannot be imported.
    """
    if name != "ffcv":
        return decode_jpeg
    try:
        with torch_threads_kept():
            from ffcv.libffcv import imdecode
    except ImportError as error:
        fix = "`python -m fastwi.doctor` says what is missing, or set data.decoder: auto"
        raise UserError(f"data.decoder: ffcv cannot be imported ({error}); {fix}") from error

    def decode(data: bytes | bytearray, height: int, width: int) -> np.ndarray:
        with _opened(data, height, width):  # FFCV scales a JPEG of another size, or leaves pixels unwritten
            pixels_HWC = np.empty((height, width, 3), np.uint8)
        if imdecode(np.frombuffer(data, np.uint8), pixels_HWC, height, width, height, width) != 0:
            raise BetonError("is damaged, or a JPEG of a kind that FFCV cannot decode")
        return pixels_HWC

    return decode


@contextmanager
def _opened(data: bytes | bytearray, height: int, width: int) -> "Iterator[Image]":
    import PIL.Image  # here: raw images need no Pillow

    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.size != (width, height):
                found = f"{image.height} x {image.width} pixels, not {height} x {width} as the file says"
                raise BetonError(f"is a JPEG of {found}")
            if image.mode not in MODES:
                raise BetonError(f"is a JPEG of mode {image.mode}, not one of {', '.join(MODES)}")
            yield image
    except BetonError:
        raise
    except PIL.Image.UnidentifiedImageError:
        raise BetonError("is not a JPEG") from None
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, struct.error, ...
        raise BetonError(f"is a damaged JPEG ({error})") from error


def center_crop(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest centered box whose aspect ratio is the target's.

    One side stays whole; the other is the nearest whole number of pixels (halves up), at least 1. Of an odd number
    of pixels left over, one more is cut off at the bottom or right.
    """
    if width * to_height > height * to_width:
        cropped = max(1, (2 * height * to_width + to_height) // (2 * to_height))
        return 0, (width - cropped) // 2, height, cropped
    cropped = max(1, (2 * width * to_height + to_width) // (2 * to_width))
    return (height - cropped) // 2, 0, cropped, width


def fit(pixels_HWC: np.ndarray, to_height: int, to_width: int) -> np.ndarray:
    """`pixels_HWC` (uint8, RGB) as [to_height, to_width, 3]; untouched where it has that size.

    Else `center_crop`, then Pillow's bilinear resize: every output pixel is the mean of the crop under a triangle
    as wide as 2 output pixels (2 input pixels where the image grows), along rows, then along columns, rounded to 8
    bits after each.
    """
    height, width = pixels_HWC.shape[:2]
    if (height, width) == (to_height, to_width):
        return pixels_HWC
    top, left, height, width = center_crop(height, width, to_height, to_width)
    crop_HWC = pixels_HWC[top : top + height, left : left + width]
    if (height, width) == (to_height, to_width):
        return crop_HWC
    import PIL.Image

    image = PIL.Image.fromarray(np.ascontiguousarray(crop_HWC))
    return np.asarray(image.resize((to_width, to_height), PIL.Image.Resampling.BILINEAR))
