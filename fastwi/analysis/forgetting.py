"""Forgetting events: how often an example that was classified correctly is misclassified at the next measurement.

Toneva et al. 2019 (An Empirical Study of Example Forgetting during Deep Neural Network Learning), section 3: with
acc_t the correctness at measurement t, a forgetting event is acc_t > acc_{t+1}. An example that was never learned has
no event, but for sorting it is 'considered forgotten an infinite number of times'.

There a measurement is an example's own presentation in training, with augmentation. Here it is a pass without
augmentation over networks saved along a trajectory: as many measurements as there are networks.

Shapes: M trajectories (members), N images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastwi.analysis.splits import LogitsEngine, correct_images
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Forgetting of M trajectories over `measurements` passes.

    events_MN: int64, forgetting events. learned_MN: bool, correct at some measurement.
    """

    measurements: int
    events_MN: NDArray[np.int64]
    learned_MN: NDArray[np.bool_]

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
    measurements, last_MN, events_MN, learned_MN = 0, np.array(False), np.array(0), np.array(False)
    for population in snapshots:
        correct_MN = correct_images(engine, population, dataset)
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
