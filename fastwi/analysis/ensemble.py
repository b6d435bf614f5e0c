"""The children's ensemble beside their average: is the gain that of averaging weights, or of having n networks?

The ensemble of n networks outputs the mean of their probabilities (Lakshminarayanan et al. 2017, section 2.4). It
costs n forward passes an image, the average of weights one.

Shapes: M members, N images, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.splits import LogitsEngine
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Scores
from fastwi.errors import UserError
from fastwi.population import Population


@dataclass(frozen=True, eq=False)
class EnsembleControl:
    """Loss (nats) and accuracy (%) of children [M], of their ensemble [1] and of their average [1]."""

    children: Scores
    ensemble: Scores
    average: Scores


def ensemble_control(
    engine: LogitsEngine, children: Population, average: Population, dataset: ResidentDataset
) -> EnsembleControl:
    """Children, their ensemble and their weight average on `dataset`, each network passed over it once.

    Every network is evaluated with its own batch-norm statistics: give children and average whose statistics had the
    same treatment. Raises UserError where there are no children, or more than one average.
    """
    if not children.members or average.members != 1:
        raise UserError(f"{children.members} children and {average.members} averages; give children and one average")
    labels_N, of_children, total_NK = dataset.labels_N, [], torch.empty(0)
    for m in range(children.members):
        log_NK = _log_probabilities(engine, children, m, dataset)
        of_children.append(_totals(log_NK, labels_N))
        # In logarithms, so that no probability underflows.
        total_NK = torch.logaddexp(total_NK, log_NK) if m else log_NK
    of_ensemble = _totals(total_NK - float(np.log(children.members)), labels_N)
    of_average = _totals(_log_probabilities(engine, average, 0, dataset), labels_N)
    return EnsembleControl(*(_scores(totals, len(dataset)) for totals in (of_children, [of_ensemble], [of_average])))


def _log_probabilities(engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset) -> Tensor:
    """Logarithms of member m's probabilities on the whole dataset, float64 [N, K]."""
    log_NK = torch.empty((len(dataset), dataset.classes), dtype=torch.float64, device=dataset.labels_N.device)
    for positions, logits_nK in engine.logits(population, m, dataset):
        log_NK[positions] = functional.log_softmax(logits_nK.double(), dim=1)
    return log_NK


def _totals(log_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Summed cross-entropy (nats) and number of correct images, float64 [2]."""
    loss = -log_NK.gather(1, labels_N[:, None]).sum()
    return torch.stack([loss, (log_NK.argmax(1) == labels_N).sum().double()])


def _scores(totals: list[Tensor], images: int) -> Scores:
    mean_M2 = (torch.stack(totals) / images).cpu().numpy()
    return Scores(loss_M=mean_M2[:, 0], accuracy_M=100 * mean_M2[:, 1])
