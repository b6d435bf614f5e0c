"""The children's ensemble beside their average: is the gain that of averaging weights, or of having n networks?

The ensemble of n networks outputs the mean of their probabilities (Lakshminarayanan et al. 2017, section 2.4). It
costs n forward passes an image, the average of weights one.

Shapes: M members, L groups of members, N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
class Ensemble:
    """The sum of n networks' probabilities, as its logarithm: float64 [N, K], without underflow at any logits."""

    networks: int
    log_total_NK: Tensor

    @classmethod
    def of(cls, logits_NK: Tensor) -> "Ensemble":
        """One network, by its logits."""
        return cls(1, functional.log_softmax(logits_NK.double(), dim=1))

    def update(self, logits_NK: Tensor) -> "Ensemble":
        """With one network more. Raises UserError for other images or classes."""
        return self.merge(Ensemble.of(logits_NK))

    def merge(self, other: "Ensemble") -> "Ensemble":
        """Of both's networks together. Raises UserError for other images or classes."""
        mine, theirs = tuple(self.log_total_NK.shape), tuple(other.log_total_NK.shape)
        if mine != theirs:
            raise UserError(f"ensemble: logits of shape {mine} and {theirs}; give networks on the same images")
        return Ensemble(self.networks + other.networks, torch.logaddexp(self.log_total_NK, other.log_total_NK))

    @property
    def log_probabilities_NK(self) -> Tensor:
        """The logarithm of the mean of probabilities, float64."""
        return self.log_total_NK - float(np.log(self.networks))

    def totals(self, labels_N: Tensor) -> Tensor:
        """Summed cross-entropy (nats) and number of correct images, float64 [2]."""
        log_NK = self.log_probabilities_NK
        loss = -log_NK.gather(1, labels_N[:, None]).sum()
        return torch.stack([loss, (log_NK.argmax(1) == labels_N).sum().double()])


@dataclass(frozen=True, eq=False)
class EnsembleControl:
    """Loss and accuracy of children [M], of each group's ensemble [L] and of each group's average [L]."""

    groups: tuple[tuple[int, ...], ...]
    children: Scores
    ensemble: Scores
    average: Scores

    def rows(self, split: str = "test") -> list[dict[str, Any]]:
        """One row a group: what its children (their mean, and the best), ensemble and average reach.

        Accuracies in %, losses in nats; `split` names the dataset in the columns.
        """
        rows = []
        for place, group in enumerate(self.groups):
            of_children = list(group)
            row: dict[str, Any] = {"group": place, "children": len(group)}
            for name, scores, at in (
                ("mean_child", self.children, of_children),
                ("ensemble", self.ensemble, [place]),
                ("average", self.average, [place]),
            ):
                row[f"{name}_{split}_accuracy_%"] = float(scores.accuracy_M[at].mean())
                row[f"{name}_{split}_loss"] = float(scores.loss_M[at].mean())
            row[f"best_child_{split}_accuracy_%"] = float(self.children.accuracy_M[of_children].max())
            row[f"best_child_{split}_loss"] = float(self.children.loss_M[of_children].min())
            rows.append(row)
        return rows


def ensemble_control(
    engine: LogitsEngine,
    children: Population,
    average: Population,
    dataset: ResidentDataset,
    groups: Sequence[Sequence[int]] | None = None,
) -> EnsembleControl:
    """Children, their ensembles and their weight averages on `dataset`, each network passed over it once.

    groups: rows of `children`, one list of 1 or more an ensemble, all children as one by default; `average` has one
    member a group, in that order. Every network is evaluated with its own batch-norm statistics: give children and
    average whose statistics had the same treatment. Holds N x K float64 numbers on the device for each group that is
    not complete yet, so give groups of neighbouring rows where there are many.

    Raises UserError for groups that do not fit.
    """
    chosen = _groups(children, groups)
    if average.members != len(chosen):
        raise UserError(f"average: {average.members} members for {len(chosen)} groups; give one a group")
    labels_N = dataset.labels_N
    of_children: list[Tensor] = []
    of_ensembles: dict[int, Tensor] = {}
    growing: dict[int, Ensemble] = {}
    for m in range(children.members):
        member = _whole(engine, children, m, dataset)
        of_children.append(member.totals(labels_N))
        for place, group in enumerate(chosen):
            if m in group:
                growing[place] = growing[place].merge(member) if place in growing else member
                if m == max(group):
                    of_ensembles[place] = growing.pop(place).totals(labels_N)
    of_averages = [_whole(engine, average, m, dataset).totals(labels_N) for m in range(average.members)]
    return EnsembleControl(
        groups=chosen,
        children=_scores(of_children, len(dataset)),
        ensemble=_scores([of_ensembles[place] for place in range(len(chosen))], len(dataset)),
        average=_scores(of_averages, len(dataset)),
    )


def _whole(engine: LogitsEngine, population: Population, m: int, dataset: ResidentDataset) -> Ensemble:
    """Member m alone on the whole dataset."""
    log_NK = torch.empty((len(dataset), dataset.classes), dtype=torch.float64, device=dataset.labels_N.device)
    for positions, logits_nK in engine.logits(population, m, dataset):
        log_NK[positions] = Ensemble.of(logits_nK).log_total_NK
    return Ensemble(1, log_NK)


def _groups(children: Population, groups: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    """The groups, checked."""
    if groups is None:
        return (tuple(range(children.members)),)
    for place, group in enumerate(groups):
        if not group or len(set(group)) != len(group):
            raise UserError(f"groups: group {place} is {list(group)}; give one or more different children")
        for m in group:
            if not 0 <= m < children.members:
                raise UserError(f"groups: no child {m}; there are children 0 to {children.members - 1}")
    if not groups:
        raise UserError("groups: none was given; give at least one, or leave it out for all children")
    return tuple(tuple(group) for group in groups)


def _scores(totals: Sequence[Tensor], images: int) -> Scores:
    """Means from sums [2] a network."""
    mean_M2 = (torch.stack(list(totals)) / images).cpu().numpy()
    return Scores(loss_M=mean_M2[:, 0], accuracy_M=100 * mean_M2[:, 1])
