"""What networks make of single training examples: EL2N, forgetting, splits by score; and the ensemble of networks.

Shapes: M members, N images, n images of a batch, K classes, S splits.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.evaluator import Evaluator, Values
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Engine, Scores
from fastwi.errors import UserError
from fastwi.population import Population

LogitsEngine = Engine | Evaluator
"""What gives logits, by its method of that name."""


def el2n_scores(
    engine: LogitsEngine, populations: Population | Iterable[Population], dataset: ResidentDataset
) -> Values:
    """The EL2N score of every image, float64 [N], in 0 .. sqrt(2): how far from its label networks put it.

    Paul, Ganguli, Dziugaite 2021 (Deep Learning on a Data Diet), definition 2.3: E ||p(w, x) - y||_2, p the softmax
    output and y the one-hot label; the mean over all members of all populations, which may come one at a time. They
    should be independent: children of one parent are not. Raises UserError for no network, and for one that diverged.
    """
    networks = 0
    total_N = np.zeros(len(dataset))
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


def forgetting_scores(
    engine: LogitsEngine,
    snapshots: Iterable[Population],
    dataset: ResidentDataset,
    never_learned: float = math.inf,
) -> Values:
    """How often each image that was classified correctly is misclassified at the next measurement, float64 [N].

    Toneva et al. 2019 (An Empirical Study of Example Forgetting during Deep Neural Network Learning), section 3, with
    passes over saved networks for measurements. Events are summed over M trajectories.

    snapshots: the same M members at consecutive times, oldest first; they may come one at a time. never_learned: what
    a trajectory counts that is never right; infinity is the paper's rule, its authors' code counts the measurements.
    Raises UserError for no snapshot, and for other numbers of members.
    """
    last_MN = None
    events_MN = np.array(0)
    learned_MN = np.array(False)
    for population in snapshots:
        right_MN = torch.empty((population.members, len(dataset)), dtype=torch.bool, device="cpu")
        for m in range(population.members):
            for positions, labels_n, logits_nK in _outputs(engine, population, m, dataset):
                right_MN[m, positions.cpu()] = (logits_nK.argmax(1) == labels_n).cpu()
        correct_MN = right_MN.numpy()
        if last_MN is not None:
            if correct_MN.shape != last_MN.shape:
                members = f"{len(last_MN)} members, then {len(correct_MN)}"
                raise UserError(f"forgetting: {members}; measure the same networks each time")
            events_MN = events_MN + (last_MN & ~correct_MN)
        learned_MN = learned_MN | correct_MN
        last_MN = correct_MN
    if last_MN is None:
        raise UserError("snapshots: none was given; give the networks along a trajectory, oldest first")
    total_N: Values = np.where(learned_MN, events_MN, float(never_learned)).sum(axis=0)
    return total_N


def equal_splits(scores_N: ArrayLike, splits: int = 4) -> NDArray[np.int64]:
    """The split of each image, int64 [N] of 0 .. splits - 1, by ascending score (paper, Figure 5: 4 splits).

    Equal scores keep the order of the dataset. Where `splits` does not divide N, the first N mod splits ones have one
    image more. Raises UserError for scores that are not one number an image, and for less than one image a split.
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
) -> tuple[Values, Values]:
    """Accuracy (%) and loss (nats) of every member on every split, float64 [M, S], from one pass a member.

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
    return 100 * mean_MS2[..., 1], mean_MS2[..., 0]


def ensemble_scores(engine: LogitsEngine, networks: Population, dataset: ResidentDataset) -> Scores:
    """Loss (nats) and accuracy (%) of the members' ensemble, float64 [1] each.

    It outputs the mean of their probabilities (Lakshminarayanan et al. 2017, section 2.4), and costs a forward pass a
    member. Each has its own batch-norm statistics. Raises UserError where there is no member.
    """
    if not networks.members:
        raise UserError("an ensemble of no networks; give at least one")
    # In logarithms, so that no probability underflows.
    log_NK = functools.reduce(torch.logaddexp, log_probabilities(engine, networks, dataset))
    log_NK -= math.log(networks.members)
    loss = functional.nll_loss(log_NK, dataset.labels_N)
    right = (log_NK.argmax(1) == dataset.labels_N).double().mean()
    return Scores(loss[None].cpu().numpy(), 100 * right[None].cpu().numpy())


def log_probabilities(engine: LogitsEngine, networks: Population, dataset: ResidentDataset) -> Iterator[Tensor]:
    """Yield each member's log softmax outputs, float64 [N, K], images in the dataset's order."""
    for m in range(networks.members):
        log_NK = torch.empty(0)
        for positions, _, logits_nK in _outputs(engine, networks, m, dataset):
            if not log_NK.numel():  # a network may have more outputs than the dataset has classes
                log_NK = logits_nK.new_empty((len(dataset), logits_nK.shape[1]))
            log_NK[positions] = functional.log_softmax(logits_nK, dim=1)
        yield log_NK


def _outputs(
    engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Member m on `dataset`, a batch at a time: positions int64 [n], labels int64 [n], logits float64 [n, K]."""
    for positions, logits_nK in engine.logits(population, m, dataset):
        yield positions, dataset.labels_N[positions], logits_nK.double()
