"""What networks make of single training examples: EL2N, forgetting, splits by score; and the ensemble of networks.

All rest on one pass of each network over the images, without augmentation.

Shapes: M members, N images, n images of a batch, K classes, S splits.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.evaluator import Values
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Scores
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

    accuracy_MS: Values
    loss_MS: Values
    images_S: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Forgetting of M trajectories over `measurements` passes.

    events_MN: int64, forgetting events. learned_MN: bool, correct at some measurement.
    """

    measurements: int
    events_MN: NDArray[np.int64]
    learned_MN: NDArray[np.bool_]

    def scores(self, never_learned: float = math.inf) -> Values:
        """For sorting, float64 [N]: events summed over trajectories; `never_learned` is what such a one counts.

        Infinity is the paper's rule. Its authors' code counts `measurements` instead: the order is the same for one
        trajectory, but over several an example that one of them never learned need not come last.
        """
        total_N: Values = np.where(self.learned_MN, self.events_MN, float(never_learned)).sum(axis=0)
        return total_N


def el2n_scores(
    engine: LogitsEngine, populations: Population | Iterable[Population], dataset: ResidentDataset
) -> Values:
    """The EL2N score of every image, float64 [N], in 0 .. sqrt(2): how far from its label networks put it.

    Paul, Ganguli, Dziugaite 2021 (Deep Learning on a Data Diet), definition 2.3: E ||p(w, x) - y||_2, p the softmax
    output and y the one-hot label; the mean over all members of all populations, which may come one at a time. They
    should be independent networks early in training: children of one parent are not. Raises UserError where there is
    no network, or one has diverged.
    """
    networks, total_N = 0, np.zeros(len(dataset))
    for population in [populations] if isinstance(populations, Population) else populations:
        for m in range(population.members):
            norms_N = torch.empty(len(dataset), dtype=torch.float64, device=dataset.labels_N.device)
            for positions, labels_n, logits_nK in _outputs(engine, population, m, dataset):
                error_nK = functional.softmax(logits_nK, dim=1)
                # softmax - onehot, without the one-hot matrix
                error_nK[torch.arange(len(labels_n), device=labels_n.device), labels_n] -= 1.0
                norms_N[positions] = torch.linalg.vector_norm(error_nK, dim=1)
            if not norms_N.isfinite().all():
                place = int((~norms_N.isfinite()).nonzero()[0])
                raise UserError(
                    f"network {networks}: its score of image {place} is NaN; leave out networks that diverged"
                )
            networks += 1
            total_N += norms_N.cpu().numpy()
    if not networks:
        raise UserError("scores: no network was given; give at least one")
    return total_N / networks


def forgetting_events(engine: LogitsEngine, snapshots: Iterable[Population], dataset: ResidentDataset) -> Forgetting:
    """How often images that were classified correctly are misclassified at the next measurement, on M trajectories.

    Toneva et al. 2019 (An Empirical Study of Example Forgetting during Deep Neural Network Learning), section 3: with
    acc_t the correctness at measurement t, an event is acc_t > acc_{t+1}. There a measurement is an example's own
    presentation in training; here it is a pass over networks that were saved.

    snapshots: the same M members at consecutive times, oldest first; they may come one at a time. Raises UserError
    where there is none, or where their numbers of members differ.
    """
    measurements, last_MN, events_MN, learned_MN = 0, np.array(False), np.array(0), np.array(False)
    for population in snapshots:
        right_MN = torch.empty((population.members, len(dataset)), dtype=torch.bool)
        for m in range(population.members):
            for positions, labels_n, logits_nK in _outputs(engine, population, m, dataset):
                right_MN[m, positions.cpu()] = (logits_nK.argmax(1) == labels_n).cpu()
        correct_MN = right_MN.numpy()
        if measurements and correct_MN.shape != last_MN.shape:
            raise UserError(
                f"forgetting: {len(last_MN)} members, then {len(correct_MN)}; measure the same networks each time"
            )
        events_MN = events_MN + (last_MN & ~correct_MN)
        learned_MN = learned_MN | correct_MN
        measurements, last_MN = measurements + 1, correct_MN
    if not measurements:
        raise UserError("snapshots: none was given; give the networks along a trajectory, oldest first")
    return Forgetting(measurements, events_MN, learned_MN)


def equal_splits(scores_N: ArrayLike, splits: int = 4) -> NDArray[np.int64]:
    """The split of each image, int64 [N] of 0 .. splits - 1, by ascending score (paper, Figure 5: 4 splits).

    Split 0 here is the paper's Split 1, that of the lowest scores. Equal scores keep the order of the dataset. Where
    `splits` does not divide N, the first N mod splits ones have one image more. Raises UserError for scores that are
    not one number an image, for NaN, and for less than one image a split.
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
        for positions, labels_n, logits_nK in _outputs(engine, population, m, dataset):
            loss_n = functional.cross_entropy(logits_nK, labels_n, reduction="none")
            # A mask and a sum: the same to the bit each time, where a scatter on a GPU adds in any order; and an
            # infinite loss stays in its own split, where a product with a 0-1 matrix would spread NaN.
            inside_Sn = splits[positions] == numbers_S1
            total_MS2[m, :, 0] += torch.where(inside_Sn, loss_n, 0.0).sum(1)
            total_MS2[m, :, 1] += (inside_Sn & (logits_nK.argmax(1) == labels_n)).sum(1)
    mean_MS2 = total_MS2.cpu().numpy() / images_S[:, None]
    return SplitScores(100 * mean_MS2[..., 1], mean_MS2[..., 0], images_S.astype(np.int64))


def ensemble_scores(engine: LogitsEngine, networks: Population, dataset: ResidentDataset) -> Scores:
    """Loss (nats) and accuracy (%) of the members' ensemble, float64 [1] each.

    It outputs the mean of their probabilities (Lakshminarayanan et al. 2017, section 2.4), and costs a forward pass a
    member. Each has its own batch-norm statistics. Raises UserError where there is no member.
    """
    if not networks.members:
        raise UserError("an ensemble of no networks; give at least one")
    shape = (len(dataset), dataset.classes)
    total_NK = torch.full(shape, -math.inf, dtype=torch.float64, device=dataset.labels_N.device)
    for m in range(networks.members):
        for positions, _, logits_nK in _outputs(engine, networks, m, dataset):
            # In logarithms, so that no probability underflows.
            log_nK = functional.log_softmax(logits_nK, dim=1)
            total_NK[positions] = torch.logaddexp(total_NK[positions], log_nK)
    log_NK = total_NK - math.log(networks.members)
    loss = functional.nll_loss(log_NK, dataset.labels_N)
    right = (log_NK.argmax(1) == dataset.labels_N).double().mean()
    return Scores(loss[None].cpu().numpy(), 100 * right[None].cpu().numpy())


def _outputs(
    engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Member m on `dataset`, a batch at a time: positions int64 [n], labels int64 [n], logits float64 [n, K]."""
    for positions, logits_nK in engine.logits(population, m, dataset):
        yield positions, dataset.labels_N[positions], logits_nK.double()
