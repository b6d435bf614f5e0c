"""What the engine asks of a dataset: labels, a table, and the images of an epoch's order, chunk after chunk.

Shapes: N images of a chunk or of the dataset, D images of the tensor that a chunk lies in, H W C of an image.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 512  # images gathered at a time


class Dataset(Protocol):
    """One split, whose images are on one device when they are asked for.

    The same order, offsets, flips and table give the same batches to the bit, wherever the images come from.
    """

    def __len__(self) -> int:
        """Number of images."""

    @property
    def labels_N(self) -> Tensor:
        """int64 [N] on the device."""

    @property
    def table_C256(self) -> Tensor:
        """float32 [C, 256] on the device: the normalised value of each intensity of each channel."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image that `chunks` yields."""

    def chunks(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in the order `order_N` (int64 positions), `size` at a time; the last chunk may be shorter.

        Yields (images_DHWC uint8 contiguous, at_N int64), both on the device: image n of the chunk is
        images_DHWC[at_N[n]]. Neither may be written to. Close an iterator that is left early, or drop it.
        Raises UserError where an image cannot be read or decoded.
        """

    def part(self, at_N: Tensor) -> "Dataset":
        """The images at positions `at_N` (int64), in that order, as a dataset of their own."""


def whole_images(dataset: Dataset) -> Tensor:
    """All images of `dataset` in its order, uint8 [N, H, W, C] on its device. Raises what `Dataset.chunks` raises."""
    device = dataset.labels_N.device
    images_NHWC = torch.empty((len(dataset), *dataset.image_shape), dtype=torch.uint8, device=device)
    first = 0
    for images_DHWC, at_N in dataset.chunks(torch.arange(len(dataset), device=device), _CHUNK):
        images_NHWC[first : first + len(at_N)] = images_DHWC[at_N]
        first += len(at_N)
    return images_NHWC
