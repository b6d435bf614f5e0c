"""A dataset that lives on the device whole: uint8 images and int64 labels.

Shapes: N images, H height, W width, C channels, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.beton import content_sha256, read_beton
from fastwi.data.batches import Dataset
from fastwi.data.card import Card, read_card
from fastwi.data.noise import Stream, permutation
from fastwi.errors import UserError


@dataclass(frozen=True)
class ResidentDataset:
    """One split on one device.

    images_NHWC uint8 contiguous; labels_N int64; table_C256 float32: the normalised value of each intensity of
    each channel, (v / 255 - mean) / std. The card's mean and std are of the training images.
    """

    images_NHWC: Tensor
    labels_N: Tensor
    table_C256: Tensor
    classes: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.images_NHWC.shape[1:]
        return height, width, channels

    def chunks(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `fastwi.data.batches.Dataset.chunks` says, without a copy: all images, and a part of the order."""
        for first in range(0, len(order_N), size):
            yield self.images_NHWC, order_N[first : first + size]

    def part(self, at_N: Tensor) -> "ResidentDataset":
        """The images at positions `at_N`, in that order, as a dataset of their own."""
        at = at_N.to(self.labels_N.device)
        return replace(self, images_NHWC=self.images_NHWC[at], labels_N=self.labels_N[at])


def normalisation_table(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[C, 256] float32: (v / 255 - mean) / std for each intensity v, rounded once from float64."""
    v_256 = torch.arange(256, dtype=torch.float64) / 255
    mean_C1 = torch.tensor(mean, dtype=torch.float64)[:, None]
    # A channel that never varies has std 0: it is centred, not divided.
    std_C1 = torch.tensor([s if s > 0 else 1.0 for s in std], dtype=torch.float64)[:, None]
    return ((v_256 - mean_C1) / std_C1).float()


def load_split(
    directory: str | Path, split: str, device: torch.device, images: int = 0, card: Card | None = None
) -> tuple[ResidentDataset, Card]:
    """Read `split` ("train" or "test") of the dataset in `directory` onto `device`, with the dataset's card.

    `images` > 0 keeps that many images, evenly over classes, the same ones every time. `card`: the dataset's, where
    it is read already.
    Raises UserError where the card or the beton is missing, damaged, or they disagree with each other.
    """
    card = card or read_card(Path(directory))
    path = Path(directory) / f"{split}.beton"
    beton = read_beton(path)
    images_NHWC, labels_N = beton.images_NHWC, beton.labels_N
    check_split(path, labels_N, card, split)
    # Results are filed under the card's digest: what was replaced since the card was written must not pass for it.
    if images_NHWC.shape[1:] != card.image_shape or content_sha256(images_NHWC, labels_N) != card.sha256[split]:
        raise UserError(
            f"{path}: not the images and labels that card.json was written for (SHA-256); "
            "write the dataset again with python -m data_prep"
        )
    if images:
        kept = chosen_images(path, labels_N, split, images)
        images_NHWC, labels_N = images_NHWC[kept], labels_N[kept]
    dataset = ResidentDataset(
        images_NHWC=torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(device),
        labels_N=torch.from_numpy(np.ascontiguousarray(labels_N)).to(device),
        table_C256=normalisation_table(tuple(card.mean), tuple(card.std)).to(device),
        classes=len(card.classes),
    )
    return dataset, card


def require_resident(dataset: Dataset, who: str) -> ResidentDataset:
    """`dataset`. Raises UserError where its images do not lie on the device, as `who` needs them."""
    if not isinstance(dataset, ResidentDataset):
        raise UserError(f"{who}: streamed images won't do; set data.streaming: resident")
    return dataset


def check_split(path: Path, labels_N: NDArray[np.int64], card: Card, split: str) -> None:
    """Raise UserError where a beton's labels are not those of its card."""
    if len(labels_N) != card.counts[split]:
        raise UserError(
            f"{path}: {len(labels_N)} images, but card.json says {card.counts[split]}; "
            "write the dataset again with python -m data_prep"
        )
    if len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < len(card.classes):
        raise UserError(f"{path}: labels outside 0 .. {len(card.classes) - 1}; write the dataset again")


def chosen_images(path: Path, labels_N: NDArray[np.int64], split: str, images: int) -> NDArray[np.int64]:
    """Positions of `data.{split}_images` images (`even_subset`). Raises UserError where there are not so many."""
    if images > len(labels_N):
        raise UserError(f"data.{split}_images: {images} asked for, {path} has {len(labels_N)}")
    return even_subset(labels_N, images)


def even_subset(labels_N: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """Positions of `images` images, in file order, with class counts that differ by at most one where possible.

    The choice is drawn once from a fixed stream, so that every run sees the same subset.
    """
    shuffled = permutation(0, Stream.SUBSET, 0, len(labels_N))
    # The rank of each image within its class; taking the lowest ranks first takes classes evenly.
    rank_N = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        members = shuffled[labels_N[shuffled] == label]
        rank_N[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(rank_N[shuffled], kind="stable")[:images]])
