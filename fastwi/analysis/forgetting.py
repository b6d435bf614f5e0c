"""Forgetting events: how often an example that was classified correctly is misclassified at the next measurement.

Toneva et al. 2019 (An Empirical Study of Example Forgetting during Deep Neural Network Learning), section 3: with
acc_t the correctness at measurement t, a forgetting event is acc_t > acc_{t+1}. An example is unforgettable where it
was learned at some measurement and never forgotten after. One that was never learned has no event, but for sorting it
is 'considered forgotten an infinite number of times'.

There a measurement is an example's own presentation in training, with augmentation. Here it is a pass without
augmentation over networks saved along a trajectory: as many measurements as there are networks.

Shapes: M trajectories (members), N images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastwi.analysis.splits import LogitsEngine, example_metrics
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Forgetting of M trajectories over consecutive measurements; `merge` joins one span with the span after it.

    Attributes:
        measurements: how many there were, 1 or more.
        events_MN: int64, forgetting events.
        learned_MN: bool, correct at some measurement.
        first_MN, last_MN: bool, correct at the first and at the last measurement.
    """

    measurements: int
    events_MN: NDArray[np.int64]
    learned_MN: NDArray[np.bool_]
    first_MN: NDArray[np.bool_]
    last_MN: NDArray[np.bool_]

    @classmethod
    def of(cls, correct_MN: ArrayLike) -> "Forgetting":
        """One measurement: correctness of each image, bool [M, N]. Raises UserError for anything else."""
        correct = np.array(correct_MN)  # a copy: the caller's array may change
        if correct.dtype != np.bool_ or correct.ndim != 2:
            raise UserError(f"correct_MN: {correct.dtype} {correct.shape}; give bool [M, N]")
        return cls(1, np.zeros(correct.shape, dtype=np.int64), correct, correct, correct)

    def update(self, correct_MN: ArrayLike) -> "Forgetting":
        """With the next measurement. Raises UserError for other members or images."""
        return self.merge(Forgetting.of(correct_MN))

    def merge(self, after: "Forgetting") -> "Forgetting":
        """This span and then `after`, of the same trajectories. Associative, to the bit; the order matters."""
        if self.events_MN.shape != after.events_MN.shape:
            raise UserError(
                f"forgetting: {self.events_MN.shape} members and images, then {after.events_MN.shape}; "
                "measure the same networks on the same images each time"
            )
        return Forgetting(
            self.measurements + after.measurements,
            self.events_MN + after.events_MN + (self.last_MN & ~after.first_MN),
            self.learned_MN | after.learned_MN,
            self.first_MN,
            after.last_MN,
        )

    @property
    def unforgettable_MN(self) -> NDArray[np.bool_]:
        """Learned and never forgotten."""
        return self.learned_MN & (self.events_MN == 0)

    def scores(self, never_learned: float = math.inf) -> NDArray[np.float64]:
        """For sorting, float64 [N]: events summed over trajectories; `never_learned` is what such a one counts.

        Infinity is the paper's rule. Its authors' code counts `measurements` instead: the order is the same for one
        trajectory, but over several an example that one of them never learned need not come last.
        """
        total_N: NDArray[np.float64] = np.where(self.learned_MN, self.events_MN, float(never_learned)).sum(axis=0)
        return total_N


def forgetting_events(engine: LogitsEngine, snapshots: Iterable[Population], dataset: ResidentDataset) -> Forgetting:
    """Forgetting of every image of `dataset` along M trajectories.

    snapshots: the same M members at consecutive times, oldest first; an iterable, so that they can be loaded one at a
    time. Raises UserError where there is none, or where their numbers of members differ.
    """
    spans = (Forgetting.of(example_metrics(engine, population, dataset).correct_MN) for population in snapshots)
    first = next(spans, None)
    if first is None:
        raise UserError("snapshots: none was given; give the networks along a trajectory, oldest first")
    return reduce(Forgetting.merge, spans, first)
