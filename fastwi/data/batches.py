"""What the engine asks of a dataset: labels, a table, and the images of an epoch's order, chunk after chunk."""

import torch
from torch import Tensor

from fastwi.data.resident import ResidentDataset
from fastwi.data.streamed import StreamedDataset

_CHUNK = 512  # images gathered at a time

Dataset = ResidentDataset | StreamedDataset
"""The same order, offsets, flips and table give the same batches to the bit, wherever the images come from."""


def whole_images(dataset: Dataset) -> Tensor:
    """All images of `dataset` in its order, uint8 [N, H, W, C] on its device. Raises what its `chunks` raises."""
    device = dataset.labels_N.device
    images_NHWC = torch.empty((len(dataset), *dataset.image_shape), dtype=torch.uint8, device=device)
    first = 0
    for images_DHWC, at_N in dataset.chunks(torch.arange(len(dataset), device=device), _CHUNK):
        images_NHWC[first : first + len(at_N)] = images_DHWC[at_N]
        first += len(at_N)
    return images_NHWC
