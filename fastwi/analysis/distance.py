"""How far networks are from each other: in weights, and as functions.

Shapes: C networks (children), N images, K classes, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastwi.analysis.evaluator import Evaluator, Values, check_rows
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population

_COLUMNS = 2**16  # of weights that are in float64 at one time


@dataclass(frozen=True)
class WeightDistances:
    """Distances of C networks' parameters, float64; batch-norm statistics have no part in them.

    l2_CC: L2 distance of each two. displacement_C: L2 norm of each one's way from the parent; cosine_CC: of the
    angle between two such ways, NaN for one of length 0. The last two are None where no parent was given.
    """

    members: tuple[int, ...]
    l2_CC: Values
    displacement_C: Values | None
    cosine_CC: Values | None


@dataclass(frozen=True)
class FunctionDistances:
    """Distances of C networks' outputs on one dataset, float64 [C, C] each; zero on the diagonal.

    disagreement_CC: % of images whose predicted class differs (Fort, Hu, Lakshminarayanan 2019, Deep Ensembles: A
    Loss Landscape Perspective, section 3). kl_CC: mean over images of KL(p_i || p_j), nats; not symmetric. l2_CC:
    mean over images of ||p_i - p_j||_2, at most the square root of 2; p are the softmax outputs.
    """

    members: tuple[int, ...]
    disagreement_CC: Values
    kl_CC: Values
    l2_CC: Values


@torch.no_grad()
def weight_distances(
    population: Population, members: Sequence[int] | None = None, parent: int | None = None
) -> WeightDistances:
    """Distances between `members` (None: all but the parent), and of their displacements from member `parent`.

    All sums are in float64. Raises UserError for a number that no member has.
    """
    chosen = _chosen(population, members, parent)
    check_rows(population, chosen if parent is None else [*chosen, parent])
    count = len(chosen)
    weights_MP = population.weights_MP
    gram_CC = torch.zeros(count, count, dtype=torch.float64, device=population.device)
    origin = parent if parent is not None else chosen[0]
    for first in range(0, population.layout.P, _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        # As differences from one of them: siblings are near each other, and most digits would cancel.
        d_CP = weights_MP[chosen, columns].double() - weights_MP[origin, columns].double()
        gram_CC += d_CP @ d_CP.T
    norm2_C = gram_CC.diagonal()
    scale_CC = norm2_C[:, None] + norm2_C
    distance2_CC = scale_CC - 2 * gram_CC
    # Where two are far nearer to each other than to the origin digits cancel after all: those pairs one by one.
    near = torch.nonzero(((distance2_CC <= 1e-6 * scale_CC) & (scale_CC > 0)).triu(1)).tolist()
    for i, j in near:
        apart_P = weights_MP[chosen[i]].double() - weights_MP[chosen[j]].double()
        distance2_CC[i, j] = distance2_CC[j, i] = apart_P @ apart_P
    l2_CC = distance2_CC.fill_diagonal_(0.0).sqrt().cpu().numpy()
    if parent is None:
        return WeightDistances(tuple(chosen), l2_CC, None, None)
    norm_C = norm2_C.sqrt()
    cosine_CC = (gram_CC / (norm_C[:, None] * norm_C)).clamp(-1, 1)
    return WeightDistances(tuple(chosen), l2_CC, norm_C.cpu().numpy(), cosine_CC.cpu().numpy())


@torch.no_grad()
def function_distances(
    evaluator: Evaluator, population: Population, dataset: ResidentDataset, members: Sequence[int] | None = None
) -> FunctionDistances:
    """Distances between the outputs of `members` (None: all) on `dataset`, each with its own statistics.

    All pairs are compared batch by batch, in float64. A diverged network's KL and L2 are NaN. Raises UserError for
    bad input.
    """
    chosen = _chosen(population, members, None)
    check_rows(population, chosen)
    count = len(chosen)
    different_CC, kl_CC, l2_CC = torch.zeros(3, count, count, dtype=torch.float64, device=evaluator.device)
    for _, logits_CNK in evaluator.batches(population, chosen, dataset):
        log_CNK = logits_CNK.double().log_softmax(dim=2)
        p_CNK, class_CN = log_CNK.exp(), logits_CNK.argmax(dim=2)
        # KL(p_i || p_j) = <p_i, log p_i> - <p_i, log p_j>: one matrix product for all pairs.
        cross_CC = p_CNK.flatten(1) @ log_CNK.flatten(1).T
        kl_CC += cross_CC.diagonal()[:, None] - cross_CC
        for i in range(count):
            different_CC[i] += (class_CN != class_CN[i]).sum(dim=1)
            l2_CC[i] += torch.linalg.vector_norm(p_CNK - p_CNK[i], dim=2).sum(dim=1)
    means = (total_CC / len(dataset) for total_CC in (100 * different_CC, kl_CC, l2_CC))
    return FunctionDistances(tuple(chosen), *(mean_CC.cpu().numpy() for mean_CC in means))


def tangent_departure(
    evaluator: Evaluator, population: Population, dataset: ResidentDataset, children: Sequence[int], average: int
) -> float:
    """How far the average's outputs are from the mean of the children's, in units of the children's spread.

    The mean over images of ||f(average) - mean of f(children)||_2 over the mean of ||f(child) - mean of
    f(children)||_2, f the logits: 0 where the network is linear in its weights between the children (the tangent
    regime of Izmailov et al. 2018, Averaging Weights Leads to Wider Optima, section 3.5). NaN or infinite where the
    children's outputs are equal.
    """
    off, spread = torch.zeros(2, dtype=torch.float64, device=evaluator.device)
    for _, logits_MNK in evaluator.batches(population, [*children, average], dataset):
        children_CNK, average_NK = logits_MNK[:-1].double(), logits_MNK[-1].double()
        mean_NK = children_CNK.mean(dim=0)
        off += torch.linalg.vector_norm(average_NK - mean_NK, dim=1).sum()
        spread += torch.linalg.vector_norm(children_CNK - mean_NK, dim=2).mean(dim=0).sum()
    return float(off / spread)


def _chosen(population: Population, members: Sequence[int] | None, parent: int | None) -> list[int]:
    """`members`, or all but the parent. Raises UserError where there is none."""
    chosen = [m for m in range(population.members) if m != parent] if members is None else list(members)
    if not chosen:
        raise UserError("no member is left to compare; give members, or a population of more than the parent")
    return chosen
