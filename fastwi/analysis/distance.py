"""How far networks are from each other: in weights, and as functions.

Shapes: C networks (children), N images, K classes, P parameters.
"""

from dataclasses import dataclass

import torch

from fastwi.analysis.evaluator import Evaluator, Values, check_members
from fastwi.data.resident import ResidentDataset
from fastwi.population import Population

_COLUMNS = 2**16  # of weights that are in float64 at one time


@dataclass(frozen=True)
class WeightDistances:
    """Distances of C networks' parameters, float64; batch-norm statistics have no part in them.

    l2_CC: L2 distance of each two. displacement_C: L2 norm of each one's way from the parent. cosine_CC: of the angle
    between two such ways, NaN for one of length 0.
    """

    l2_CC: Values
    displacement_C: Values
    cosine_CC: Values


@dataclass(frozen=True)
class FunctionDistances:
    """Distances of C networks' outputs on one dataset, float64 [C, C] each; zero on the diagonal.

    disagreement_CC: % of images whose predicted class differs (Fort, Hu, Lakshminarayanan 2019, Deep Ensembles: A
    Loss Landscape Perspective, section 3). kl_CC: mean over images of KL(p_i || p_j), nats, p the softmax outputs.
    """

    disagreement_CC: Values
    kl_CC: Values


@torch.no_grad()
def weight_distances(children: Population, parent: Population) -> WeightDistances:
    """Distances between the children, and of their displacements from `parent`, a population of one. In float64.

    Raises UserError for another number of parents, and ValueError where the children are of another architecture.
    """
    check_members(parent, 1)
    if children.layout != parent.layout:
        difference = children.layout.difference(parent.layout, ("the children", "the parent"))
        raise ValueError(f"children and parent are of different architectures: {difference}")
    weights_CP = children.weights_MP
    parent_1P = parent.weights_MP
    gram_CC = torch.zeros(len(weights_CP), len(weights_CP), dtype=torch.float64, device=children.device)
    for child_CP, origin_1P in zip(weights_CP.split(_COLUMNS, 1), parent_1P.split(_COLUMNS, 1), strict=True):
        d_CP = child_CP.double() - origin_1P.double()
        gram_CC += d_CP @ d_CP.T
    norm2_C = gram_CC.diagonal()
    scale_CC = norm2_C[:, None] + norm2_C
    distance2_CC = scale_CC - 2 * gram_CC
    # Where two are far nearer to each other than to the parent most digits cancel: those pairs one by one.
    near = torch.nonzero(((distance2_CC <= 1e-6 * scale_CC) & (scale_CC > 0)).triu(1)).tolist()
    for i, j in near:
        apart_P = weights_CP[i].double() - weights_CP[j].double()
        distance2_CC[i, j] = distance2_CC[j, i] = apart_P @ apart_P
    l2_CC = distance2_CC.fill_diagonal_(0.0).sqrt()
    norm_C = norm2_C.sqrt()
    cosine_CC = (gram_CC / (norm_C[:, None] * norm_C)).clamp(-1, 1)
    return WeightDistances(l2_CC.cpu().numpy(), norm_C.cpu().numpy(), cosine_CC.cpu().numpy())


@torch.no_grad()
def function_distances(evaluator: Evaluator, networks: Population, dataset: ResidentDataset) -> FunctionDistances:
    """Distances between the outputs of all members on `dataset`, each with its own statistics. In float64."""
    count = networks.members
    different_CC, kl_CC = torch.zeros(2, count, count, dtype=torch.float64, device=evaluator.device)
    for logits_CNK in evaluator.batches(networks, dataset):
        log_CNK = logits_CNK.double().log_softmax(dim=2)
        class_CN = logits_CNK.argmax(dim=2)
        # KL(p_i || p_j) = <p_i, log p_i> - <p_i, log p_j>: one matrix product for all pairs.
        cross_CC = log_CNK.exp().flatten(1) @ log_CNK.flatten(1).T
        kl_CC += cross_CC.diagonal()[:, None] - cross_CC
        for i in range(count):
            different_CC[i] += (class_CN != class_CN[i]).sum(dim=1)
    images = len(dataset)
    return FunctionDistances((100 * different_CC / images).cpu().numpy(), (kl_CC / images).cpu().numpy())


def tangent_departure(
    evaluator: Evaluator, children: Population, average: Population, dataset: ResidentDataset
) -> float:
    """How far the average's logits are from the mean of the children's, in units of the children's spread.

    The mean over images of ||f(average) - mean of f(children)||_2 over that of ||f(child) - mean of f(children)||_2:
    0 where the network is linear in its weights between the children (the tangent regime of Izmailov et al. 2018,
    Averaging Weights Leads to Wider Optima, section 3.5). NaN or infinite where the children's outputs are equal.
    Raises UserError where `average` is not one network.
    """
    check_members(average, 1)
    off, spread = torch.zeros(2, dtype=torch.float64, device=evaluator.device)
    both = (evaluator.batches(children, dataset), evaluator.batches(average, dataset))
    for children_CNK, average_1NK in zip(*both, strict=True):
        mean_NK = children_CNK.double().mean(dim=0)
        off += torch.linalg.vector_norm(average_1NK[0].double() - mean_NK, dim=1).sum()
        spread += torch.linalg.vector_norm(children_CNK.double() - mean_NK, dim=2).mean(dim=0).sum()
    return float(off / spread)
