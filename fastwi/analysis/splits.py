"""Accuracy and loss on equal splits of the training set by an example's score (paper, Figure 5).

Also the pass under all per-example analyses: each network's outputs on each image once, without augmentation.

Shapes: M members, N images, K classes, S splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population


class LogitsEngine(Protocol):
    """An engine, as far as these analyses need one: `fastwi.engine.base.Engine` is such."""

    def logits(self, population: Population, m: int, dataset: ResidentDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions int64 [n], logits float32 [n, K]) until each image of `dataset` was there once."""
        ...


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Accuracy (%) and mean cross-entropy (nats) of each member on each split, float64 [M, S].

    images_S: int64, the images of each split. Column 0 is Split 1, that of the lowest scores.
    """

    accuracy_MS: NDArray[np.float64]
    loss_MS: NDArray[np.float64]
    images_S: NDArray[np.int64]


def member_batches(
    engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Member m on `dataset`, a batch at a time: positions int64 [n], loss float64 [n] (nats), correct bool [n].

    They are on the device. A member that has diverged has losses that are not finite; they are passed on as they are.
    """
    for positions, logits_nK in engine.logits(population, m, dataset):
        labels_n = dataset.labels_N[positions]
        loss_n = functional.cross_entropy(logits_nK.double(), labels_n, reduction="none")
        yield positions, loss_n, logits_nK.argmax(1) == labels_n


def correct_images(engine: LogitsEngine, population: Population, dataset: ResidentDataset) -> NDArray[np.bool_]:
    """Whether each member is right about each image, bool [M, N], as a host array."""
    correct_MN = torch.empty((population.members, len(dataset)), dtype=torch.bool, device=dataset.labels_N.device)
    for m in range(population.members):
        for positions, _, correct_n in member_batches(engine, population, m, dataset):
            correct_MN[m, positions] = correct_n
    found: NDArray[np.bool_] = correct_MN.cpu().numpy()
    return found


def equal_splits(scores_N: ArrayLike, splits: int = 4) -> NDArray[np.int64]:
    """The split of each image, int64 [N] of 0 .. splits - 1, by ascending score (paper, Figure 5: 4 splits).

    Split 0 here is the paper's Split 1, that of the lowest scores. Equal scores keep the order of the dataset. Where
    `splits` does not divide N, the first N mod splits ones have one image more. Raises UserError for scores that are
    not a list of numbers, for NaN, and for less than one image a split.
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    if scores.ndim != 1:
        raise UserError(f"scores: shape {scores.shape}; give one number an image, [N]")
    undefined = np.flatnonzero(np.isnan(scores))
    if len(undefined):
        raise UserError(f"scores: that of image {undefined[0]} is NaN; compute scores from networks that are finite")
    if not 1 <= splits <= len(scores):
        raise UserError(f"splits: {splits} splits of {len(scores)} images; choose 1 to {len(scores)}")
    splits_N = np.empty(len(scores), dtype=np.int64)
    for split, positions in enumerate(np.array_split(np.argsort(scores, kind="stable"), splits)):
        splits_N[positions] = split
    return splits_N


def split_scores(
    engine: LogitsEngine, population: Population, dataset: ResidentDataset, splits_N: ArrayLike
) -> SplitScores:
    """Accuracy and loss of every member on every split, from one pass over `dataset` a member.

    splits_N: the split of each image, such as `equal_splits` gives; every number from 0 to the largest must occur.
    Raises UserError for splits that do not fit the dataset.
    """
    given = np.asarray(splits_N)
    fits = given.shape == (len(dataset),) and given.dtype.kind in "iu" and int(given.min()) >= 0
    if not fits or len(np.unique(given)) != int(given.max()) + 1:
        raise UserError(
            f"splits: {given.dtype} {given.shape} for {len(dataset)} images, or a number left out; give each image "
            "one of 0, 1, 2 ..., from scores of this very dataset"
        )
    images_S = np.bincount(given)
    device = dataset.labels_N.device
    splits = torch.from_numpy(given.astype(np.int64)).to(device)
    numbers_S1 = torch.arange(len(images_S), device=device)[:, None]
    total_MS2 = torch.zeros((population.members, len(images_S), 2), dtype=torch.float64, device=device)
    for m in range(population.members):
        for positions, loss_n, correct_n in member_batches(engine, population, m, dataset):
            # A mask and a sum: the same to the bit each time, where a scatter on a GPU adds in any order; and an
            # infinite loss stays in its own split, where a product with a 0-1 matrix would spread NaN.
            inside_Sn = splits[positions] == numbers_S1
            total_MS2[m, :, 0] += torch.where(inside_Sn, loss_n, 0.0).sum(1)
            total_MS2[m, :, 1] += (inside_Sn & correct_n).sum(1)
    mean_MS2 = total_MS2.cpu().numpy() / images_S[:, None]
    return SplitScores(
        accuracy_MS=100 * mean_MS2[..., 1], loss_MS=mean_MS2[..., 0], images_S=images_S.astype(np.int64)
    )
