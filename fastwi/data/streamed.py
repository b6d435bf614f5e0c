"""A dataset that stays on the disk: images are decoded chunk by chunk, in whatever order the noise asks for.

Shapes: N images, H height, W width, C channels, K classes.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.beton import StoredBeton
from fastwi.data.pool import Decoder, PooledDecoder
from fastwi.errors import UserError


@dataclass(frozen=True)
class StreamedDataset:
    """One split of which only labels and a few chunks are in memory.

    file_N int64: where each of these images is in the file, which stays open as long as the dataset is there.
    labels_N int64 and table_C256 float32 are on the device that chunks go to.
    """

    decoder: Decoder
    file_N: NDArray[np.int64]
    labels_N: Tensor
    table_C256: Tensor
    classes: int
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    def chunks(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `fastwi.data.batches.Dataset.chunks` says; each chunk is a tensor of its own, of its images in order.

        Raises ValueError for positions outside of the dataset.
        """
        device = self.labels_N.device
        height, width, _ = self.image_shape
        order = order_N.cpu().numpy()
        if size < 1 or (len(order) and not 0 <= order.min() <= order.max() < len(self)):
            raise ValueError(f"chunks of {size} of positions that are not all in 0 .. {len(self) - 1}")
        decoded = self.decoder.chunks(self.file_N[order], size, height, width, device.type == "cuda")
        with closing(decoded):  # type: ignore[type-var]
            for images_NHWC in decoded:
                yield images_NHWC.to(device, non_blocking=True), torch.arange(len(images_NHWC), device=device)

    def part(self, at_N: Tensor) -> "StreamedDataset":
        """The images at positions `at_N`, in that order, as a dataset of their own over the same file."""
        at = at_N.to(self.labels_N.device)
        return replace(self, file_N=self.file_N[at.cpu().numpy()], labels_N=self.labels_N[at])


def open_decoder(beton: StoredBeton, name: str) -> Decoder:
    """The decoder `name` (data.decoder) over `beton`; auto is the reference. Raises UserError without ffcv."""
    if name != "ffcv":
        return PooledDecoder(beton)
    try:
        from fastwi.data.ffcv_loader import LoaderDecoder
    except ImportError as error:
        fix = "`python -m fastwi.doctor` says what is missing, or set data.decoder: auto"
        raise UserError(f"data.decoder: ffcv cannot be imported ({error}); {fix}") from error
    return LoaderDecoder(beton)
