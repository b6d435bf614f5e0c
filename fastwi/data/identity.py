"""What of a dataset decides a result, by name: all that a step reads of it, and what turns it into pixels."""

import importlib.metadata

import PIL
from PIL import features

from fastwi.config.schema import DataConfig
from fastwi.data.card import SPLITS, Card


def data_contents(card: Card, data: DataConfig) -> dict[str, str]:
    """Name -> content of everything that decides what networks see of a dataset, beside the numbers of images.

    Floats are written exactly. Decoders and the library that resizes count, with their versions, where they are used.
    """
    height, width = target_size(card, data)
    contents = {f"{split} images": card.sha256[split] for split in SPLITS}
    contents |= {
        "mean": " ".join(repr(float(value)) for value in card.mean),
        "std": " ".join(repr(float(value)) for value in card.std),
        "classes": str(len(card.classes)),
        "encoding": card.encoding,
        "image size": f"{height} x {width} of {' x '.join(map(str, card.image_shape))}, {card.sizes}",
    }
    pillow = f"Pillow {PIL.__version__}"
    if card.encoding != "raw":
        contents["decoder"] = _ffcv() if data.decoder == "ffcv" else f"{pillow}, {_libjpeg()}"
    if card.sizes != "one" or (height, width) != card.image_shape[:2]:
        contents["resize"] = pillow
    return contents


def target_size(card: Card, data: DataConfig) -> tuple[int, int]:
    """Height and width that all images have once they are read."""
    return (data.image_size, data.image_size) if data.image_size else card.image_shape[:2]


def _ffcv() -> str:
    try:
        return f"ffcv {importlib.metadata.version('ffcv')}"
    except importlib.metadata.PackageNotFoundError:
        return "ffcv"  # opening the dataset reports that it is missing


def _libjpeg() -> str:
    turbo = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
