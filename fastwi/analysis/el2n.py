"""EL2N: how far from its label networks put an example early in training.

Paul, Ganguli, Dziugaite 2021 (Deep Learning on a Data Diet), section 2.2, definition 2.3: the EL2N score of (x, y) is
E ||p(w, x) - y||_2, p the softmax output and y the one-hot label; the expectation is over networks that are
independent: of other initialisation and noise. Children of one parent are not. Used in the paper's Figure 5.

Shapes: N images, K classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.splits import LogitsEngine
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population


def error_norms(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """||softmax(logits) - onehot(label)||_2 of each image, float64 [N], in 0 .. sqrt(2)."""
    error_NK = functional.softmax(logits_NK.double(), dim=1)
    # softmax - onehot, without the one-hot matrix
    error_NK[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1.0
    return torch.linalg.vector_norm(error_NK, dim=1)


def el2n_scores(
    engine: LogitsEngine, populations: Population | Iterable[Population], dataset: ResidentDataset
) -> NDArray[np.float64]:
    """The EL2N score of every image, float64 [N]: the mean of `error_norms` over all members of all populations.

    populations: may come one at a time. Images are not augmented. The members should be independent networks early
    in training. Raises UserError where there is no network, or one has diverged.
    """
    networks, total_N = 0, np.zeros(len(dataset))
    for population in [populations] if isinstance(populations, Population) else populations:
        for m in range(population.members):
            norms_N = torch.empty(len(dataset), dtype=torch.float64, device=dataset.labels_N.device)
            for positions, logits_nK in engine.logits(population, m, dataset):
                norms_N[positions] = error_norms(logits_nK, dataset.labels_N[positions])
            if not norms_N.isfinite().all():
                place = int((~norms_N.isfinite()).nonzero()[0])
                raise UserError(
                    f"network {networks}: its score of image {place} is NaN; leave out networks that diverged"
                )
            networks, total_N = networks + 1, total_N + norms_N.cpu().numpy()
    if not networks:
        raise UserError("scores: no network was given; give at least one")
    return total_N / networks
