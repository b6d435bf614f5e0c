"""A dataset that lives on the device whole: uint8 images and int64 labels.

Shapes: N images, H height, W width, C channels, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.beton import StoredBeton, content_sha256
from fastwi.data.noise import Stream, permutation
from fastwi.errors import UserError

if TYPE_CHECKING:
    from fastwi.data.batches import Dataset
    from fastwi.data.card import Card

_AGAIN = "write the dataset again with python -m data_prep"


@dataclass(frozen=True)
class ResidentDataset:
    """One split on one device.

    images_NHWC uint8 contiguous; labels_N int64; table_C256 float32: `normalisation_table` of the training images.
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
        """Images in the order `order_N` (int64 positions), `size` at a time; the last chunk may be shorter.

        Yields (images_DHWC uint8 contiguous, at_N int64), both on the device: image n of the chunk is
        images_DHWC[at_N[n]]. Here they are all images, without a copy. Neither may be written to.
        """
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


def random_images(images: int, device: torch.device, seed: int = 0) -> ResidentDataset:
    """Images of 32 x 32 uniform pixels with labels of 10 classes: for measurements where no dataset is."""
    draw = torch.Generator().manual_seed(seed)
    return ResidentDataset(
        images_NHWC=torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=draw).to(device),
        labels_N=torch.randint(0, 10, (images,), generator=draw).to(device),
        table_C256=normalisation_table((0.5,) * 3, (0.25,) * 3).to(device),
        classes=10,
    )


def open_beton(directory: str | Path, split: str, card: "Card") -> StoredBeton:
    """The beton of `split`, whose labels, sizes and encoding are those of its card. Raises UserError otherwise."""
    from fastwi.data.card import beton_path  # imports pydantic

    beton = StoredBeton(beton_path(directory, split))
    height, width, _ = card.image_shape
    wrong = ""
    if len(beton) != card.counts[split]:
        wrong = f"{len(beton)} images, but card.json says {card.counts[split]}"
    elif not 0 <= beton.labels_N.min() <= beton.labels_N.max() < len(card.classes):
        wrong = f"labels outside 0 .. {len(card.classes) - 1}"
    elif card.encoding == "raw" and not beton.all_raw:
        wrong = "holds JPEGs, but card.json says raw"
    elif card.sizes == "one" and beton.one_size != (height, width):
        wrong = f"holds images of other sizes than {height} x {width}, as card.json says"
    if wrong:
        raise UserError(f"{beton.path}: {wrong}; {_AGAIN}")
    return beton


def resident_split(
    beton: StoredBeton, split: str, card: "Card", device: torch.device, images: int = 0
) -> ResidentDataset:
    """The split in `beton`, raw images that `open_beton` has opened; it is closed.

    `images` > 0 keeps that many, evenly over classes, the same ones every time. Raises UserError where images or
    labels are not those of the card.
    """
    images_NHWC, labels_N = beton.read_raw(), beton.labels_N
    beton.close()
    # Results are filed under the card's digest: what was replaced since the card was written must not pass for it.
    if content_sha256(images_NHWC, labels_N) != card.sha256[split]:
        said = "not the images and labels that card.json was written for (SHA-256)"
        raise UserError(f"{beton.path}: {said}; {_AGAIN}")
    kept_N = chosen_images(beton, images)
    return ResidentDataset(
        images_NHWC=torch.from_numpy(images_NHWC[kept_N] if images else images_NHWC).to(device),
        labels_N=torch.from_numpy(labels_N[kept_N]).to(device),
        table_C256=normalisation_table(card.mean, card.std).to(device),
        classes=len(card.classes),
    )


def require_resident(dataset: "Dataset", who: str) -> ResidentDataset:
    """`dataset`. Raises UserError where its images do not lie on the device; `who` names what needs them there."""
    if not isinstance(dataset, ResidentDataset):
        raise UserError(f"{who}: streamed images do not serve; set data.streaming: resident")
    return dataset


def chosen_images(beton: StoredBeton, images: int) -> NDArray[np.int64]:
    """Positions of the images that are used; 0: all. The planner sees to it that there are as many."""
    return even_subset(beton.labels_N, images) if images else np.arange(len(beton))


def even_subset(labels_N: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """Positions of `images` images, in file order, with class counts that differ by at most one where possible.

    The choice is drawn once from a fixed stream, so that every run sees the same subset.
    """
    shuffled = permutation(0, Stream.SUBSET, 0, len(labels_N))
    # Taking the lowest ranks first takes classes evenly.
    rank_N = ranks_in_class(labels_N, shuffled)
    return np.sort(shuffled[np.argsort(rank_N[shuffled], kind="stable")[:images]])


def ranks_in_class(labels_N: NDArray[np.int64], order_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of each of N images among those of its class, in the order `order_N` (positions)."""
    rank_N = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        members = order_N[labels_N[order_N] == label]
        rank_N[members] = np.arange(len(members))
    return rank_N
