"""A dataset as the loaders return it and the writer takes it: two splits, each read one image at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastwi.beton import StoredImage
from fastwi.beton.format import RAW


class Images(Protocol):
    """The images and labels of a split."""

    @property
    def labels_N(self) -> np.ndarray:
        """Integers `[N]`, indices into the classes."""

    def stored(self) -> Iterator[tuple[StoredImage, np.ndarray]]:
        """Each image as it is to be stored, and its pixels, uint8 `[H, W, 3]`. May be called again."""


@dataclass(frozen=True)
class Split:
    """`Images` in memory: `images_NHWC` uint8 `[N, H, W, 3]` RGB, `labels_N` integers `[N]`."""

    images_NHWC: np.ndarray
    labels_N: np.ndarray

    def stored(self) -> Iterator[tuple[StoredImage, np.ndarray]]:
        """As `Images.stored` says; raw."""
        height, width = self.images_NHWC.shape[1:3]
        for image_HWC in self.images_NHWC:
            yield StoredImage(RAW, height, width, image_HWC.tobytes()), image_HWC


@dataclass(frozen=True)
class ImageSet:
    """Two splits, and what the card says about them.

    notes: what was done to pixels; warnings: a line for each thing that a user should know of. Both are known once
    all images have been read.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    source: str
    notes: Callable[[], list[str]] = list
    warnings: Callable[[], list[str]] = list


def is_text(name: str) -> bool:
    """Whether a name from the file system is UTF-8. Python has a surrogate for each byte of it that is not."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
