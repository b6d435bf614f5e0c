"""A dataset in memory, as the loaders return it and the writers take it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Called with (stage, done, total): what is being done, and how many images of how many.
Report = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A Report that says nothing."""


@dataclass(frozen=True)
class Split:
    """`images_NHWC` uint8 `[N, H, W, 3]` RGB and `labels_N` integers `[N]`, indices into the classes."""

    images_NHWC: "np.ndarray"
    labels_N: "np.ndarray"


@dataclass(frozen=True)
class ImageSet:
    """Two splits with images of one size, and what the card says about where they came from."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str
